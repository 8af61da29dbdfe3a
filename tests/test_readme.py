"""What README.md and docs/ name exists (links, commands, options, configs, keys), and they use the project's words."""
import ast
import re
import shlex
from pathlib import Path

import pytest

from configs import find_config, keys_of, load_config, names

ROOT = Path(__file__).resolve().parent.parent
READMES = ROOT / "README.md", ROOT / "README_cn.md"
PAGES = [*READMES, *sorted((ROOT / "docs").glob("*.md")), ROOT / "inference/models/README.md",
         ROOT / "inference/models/reader.md", ROOT / "benchmarks/RESULTS.md"]
WRITTEN_THERE = {"folders"}     # configs that a page writes
# That are not the project's own. test_docmetric_cli.py looks at the commands of docmetric, and runs those of curl.
PROGRAMS = {"pip", "torchrun", "source", "export", "python", "python3", "curl", "docker", "docmetric", "install"}
# DESIGN's words not to use (in English), and spellings of another English. `centres_lr` and other keys keep their names.
AVOIDED = re.compile(r"\b(made (documents|photos|captures|types)|centres(?![_-])|left out|strangers?|judged?|judgement|"
                     r"goes on|going on|pictures?|colours?|grey|recognis\w*|optimis\w*|quantis\w*|behaviour|licence|"
                     r"unlabelled|the house|normalis\w*|neighbours?|go on|rehears\w*)\b", re.IGNORECASE)


def code_blocks(path: Path, language: str = r"\w*") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def prose(path: Path) -> str:
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(path: Path) -> list[list[str]]:
    """The words of each command in bash blocks and in `inline code` that begins with a command."""
    lines = "\n".join(code_blocks(path, "bash")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:python|torchrun|\./run\.sh|tools/|benchmarks/)[^`\n]* [^`\n]*)`", prose(path))
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def without_comments(blocks: list[str]) -> list[str]:
    return [ast.unparse(ast.parse(block)) for block in blocks]


def source_of(words: list[str]) -> Path | None:
    """The project's file that a command runs, None for one that runs none. Fails where it does not exist."""
    words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    if words[0] in ("python", "python3", "torchrun", ".venv/bin/python"):
        options = iter(words[1:])
        for word in options:
            if word == "-m":
                name = next(options)
                if name == "venv":
                    return None
                if name == "dataset":                                       # it hands `doctor` over
                    return ROOT / "tools/doctor/__init__.py"
                file = ROOT / (name.replace(".", "/") + ".py")
                found = [path for path in (file, file.with_suffix("") / "__main__.py") if path.is_file()]
                assert found, f"python -m {name}: no such module"
                return found[0]
            if not word.startswith("-"):
                assert (ROOT / word).is_file(), f"{word}: no such file"
                return ROOT / word
        return None
    if words[0] in PROGRAMS or words[0].startswith(".venv/bin/"):
        return None
    assert (ROOT / words[0]).is_file(), f"{words[0]}: neither a file nor a known program"
    return ROOT / words[0]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file(path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if not link.startswith("http") and not (path.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_exists(path):
    for words in commands(path):
        file = source_of(words)
        if file is None:
            continue
        text = "".join(part.read_text() for part in (file.parent.glob("*.py") if "__" in file.name else [file]))
        for option in words[words.index("-m") + 2 if "-m" in words else 1:]:
            if option.startswith("--") and words[0] != "torchrun":
                assert option.split("=")[0] in text or option == "--help", f"{' '.join(words)}: no option {option}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_config_and_key_exists(path):
    tasks = "reading", "finder", "registration", "text_classification", "classification"
    every = {name: key for task in tasks for name, key in keys_of(task).items()}
    text = path.read_text(encoding="utf-8")
    for name in set(re.findall(r"configs/([a-z0-9_]+)\b(?!\.py)", text)) - WRITTEN_THERE:
        find_config(name)
    inline = " ".join(re.findall(r"`([a-z_]+=[^`\s\"]*(?: [a-z_]+=[^`\s\"]*)*)`", text)).split()
    given = [(word, every) for word in inline] + [(word, keys_of_command(words, every)) for words in commands(path)
                                                  for word in words[1:] if re.match(r"[a-z_]+=", word)]
    for word, keys in given:
        name, _, value = word.partition("=")
        assert name in keys, f"{word}: no such key"
        if value and not re.search(r"[A-Z]", value):                        # FOLDER, FILE and N stand for something
            keys[name].checked(name, keys[name].parse(name, value))


def keys_of_command(words: list[str], otherwise: dict) -> dict:
    """The keys of the task of the config that a command names; `otherwise` where it names none of the project's."""
    config = next((word.removeprefix("configs/") for word in words if word.startswith("configs/")), None)
    return keys_of(load_config(f"configs/{config}").task) if config in names() else otherwise


def test_a_command_has_the_keys_of_its_config():
    every = {"nothing": None}
    reading = keys_of_command(["python", "train_v2.py", "configs/read_tune", "lines=LINES"], every)
    assert "lines" in reading and "network" not in reading
    assert "lines" not in keys_of_command(["python", "train_v2.py", "configs/lcnet_cos"], every)
    assert keys_of_command(["python", "train_v2.py", "configs/folders"], every) is every


def test_the_table_of_configs_is_complete():
    text = (ROOT / "docs/training.md").read_text()
    missing = [name for name in names() if f"`{name}`" not in text]
    assert not missing, f"configs/{missing[0]}.py: add a row to the tables of configs in docs/training.md"


def test_both_readmes_have_the_same_code_and_english_is_short():
    """Their comments differ, each in its own language; the output in text blocks is the same to the letter."""
    english, chinese = READMES
    assert commands(english) == commands(chinese) != []
    for language, rest in ("python", without_comments), ("text", lambda blocks: blocks):
        assert rest(code_blocks(english, language)) == rest(code_blocks(chinese, language)) != []
    assert len(code_blocks(english)) == len(code_blocks(chinese))
    assert len(english.read_text().splitlines()) <= 150


def test_the_task_that_the_documentation_writes_is_whole():
    """Its imports are there, and nothing that a task must have is missing."""
    example, = (block for block in code_blocks(ROOT / "docs/tasks.md", "python") if "Task(" in block)
    scope = {"__name__": "example"}
    exec(compile(example, "docs/tasks.md", "exec"), scope)
    tasks = [value for value in scope.values() if isinstance(value, type) and value.__module__ == "example"]
    assert [task.__abstractmethods__ for task in tasks] == [frozenset()]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_words_are_those_of_the_field(path):
    found = [f"{match[0]}: {line}" for line in prose(path).splitlines() for match in AVOIDED.finditer(line)]
    assert not found
