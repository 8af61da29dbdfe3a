"""Untrusted input is data: nothing of it is executed, and names are escaped before they are printed. (For images see
test_image.py and faults/, for models test_classify.py.) No name is written to results.csv, so no spreadsheet runs one.
"""
import ast
import io
import json
import os
import pickle  # to write files that must not be read
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from backbones import get_model
from configs import load_config, load_run, read_config, save_config
from engine.log import get_logger
from eval import evaluate_folder
from eval.__main__ import main as evaluate
from eval.report import write_report
from inference.classify import main as classify
from inference.cli import exit_status
from inference.errors import UserError, printable
from inference.image import list_images
from tests.helpers.models import SIZE, blocks, write_model

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(file for depth in ("*.py", "*/*.py", "*/*/*.py") for file in ROOT.glob(depth))
EXECUTES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "runpy"}
ALLOWED = {("configs/__init__.py", "runpy"),            # a config is the user's own Python
           ("inference/classify.py", "__import__"),     # its own package, when it runs as a script
           ("inference/read.py", "__import__"),
           ("tests/helpers/programs.py", "runpy"), ("tests/test_augment.py", "runpy"),  # the project's own commands
           ("tests/test_readme.py", "exec"), ("tests/test_train.py", "exec"),  # the code of the docs
           ("tests/test_text_classification.py", "pickle"), ("tests/test_untrusted.py", "pickle")}


def executed(tree):
    """The names in a source file that could execute their input, or be made to."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (name for name in names if name.partition(".")[0] in EXECUTES)
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {item.arg: ast.unparse(item.value) for item in node.keywords}
        if (called in ("eval", "exec", "__import__", "os.system", "os.popen", "torch.hub.load", "torch.jit.load")
                or given.get("shell", "False") != "False" or given.get("allow_pickle", "False") != "False"
                or called == "torch.load" and given.get("weights_only") != "True"):
            yield called


def test_nothing_in_the_source_executes_what_it_reads():
    found = {(file.relative_to(ROOT).as_posix(), name) for file in SOURCES for name in executed(ast.parse(file.read_text()))}
    assert len(SOURCES) > 50 and found <= ALLOWED


@pytest.mark.parametrize("source", [
    "import pickle", "from pickle import loads", "torch.load(f)", "torch.load(f, weights_only=False)", "exec(x)",
    "eval(text)", "import yaml", "subprocess.run(x, shell=True)", "np.load(f, allow_pickle=True)"])
def test_that_test_finds(source):
    assert list(executed(ast.parse(source)))


# ---------------------------------------------------------------- weights and runs
class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def pickled(value):
    return pickle.dumps(value, 2)


def zipped(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def legacy(value):
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def cfg():
    return load_config("demo", ["network=test_efficientnet", "image_size=32", "embedding_size=16"])


@pytest.mark.parametrize("dumped", [pickled, zipped, legacy])
def test_weights_that_would_execute_something_are_refused(tmp_path, capsys, cfg, dumped):
    marker = tmp_path / "executed"
    (tmp_path / "model.pt").write_bytes(dumped({"head.embed.0.weight": Evil(marker)}))
    save_config(cfg, tmp_path)
    for read in (lambda: load_run(tmp_path), lambda: get_model(cfg, pretrained=str(tmp_path / "model.pt"))):
        with pytest.raises(UserError, match="model.pt: cannot be read as weights") as caught:
            read()
        assert "\n" not in str(caught.value)
    assert exit_status(lambda: evaluate(["--model", str(tmp_path), "--data", str(tmp_path)])) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert not marker.exists()


@pytest.mark.parametrize("state", [5, [torch.zeros(2)], {"head.embed.0.weight": 5}, {5: torch.zeros(2)},
                                   {"head.embed.0.weight": {"a": torch.zeros(2)}}])
def test_weights_that_are_no_state_dict_are_refused(tmp_path, cfg, state):
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match="w.pt: cannot be read as weights .not a state dict"):
        get_model(cfg, pretrained=str(tmp_path / "w.pt"))


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_weights_of_another_kind_are_refused(tmp_path, cfg):
    state = get_model(cfg, pretrained=False).state_dict()
    state["head.embed.0.weight"] = state["head.embed.0.weight"].to_sparse()
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match="w.pt: cannot be read as weights") as caught:
        get_model(cfg, pretrained=str(tmp_path / "w.pt"))
    assert "\n" not in str(caught.value)


def test_weights_in_a_pipe_do_not_block(tmp_path, cfg):
    os.mkfifo(tmp_path / "w.pt")
    with pytest.raises(UserError, match="w.pt: no such file"):
        get_model(cfg, pretrained=str(tmp_path / "w.pt"))


@pytest.mark.parametrize("content", [
    "", "null", "\xff", "[" * 100_000, '{"network": 5}', '{"network": "lcnet_050", "image_size": 1000000}',
    '{"network": "lcnet_050", "embedding_size": 1000000}', '{"network": "lcnet_050", "image_size": 1e999}',
    '{"network": "lcnet_050", "m": ' + "[" * 500 + "]" * 500 + "}", '{"network": "lcnet_050", "s": ' + "9" * 5000 + "}",
    '{"network": "lcnet_050", "data": [{}]}', '{"network": "lcnet_050", "norm": ["ln"]}',
    '{"network": "lcnet_050", "head": "../x"}'])
def test_an_untrusted_config_is_checked(tmp_path, content):
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match="config.json: cannot be read") as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_unknown_keys_of_a_config_are_skipped(tmp_path, cfg):
    save_config(cfg, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "__class__": "x", "update": "y", "later": {"a": [{}]}}))
    assert read_config(tmp_path) == cfg


# ---------------------------------------------------------------- names
NAMES = [b"\xff\xfe", b"new\nline", b"\x1b[31mred\x1b]0;title\x07", b"a\rb", b"\xc2\x9b31m", b"\xe2\x80\xa8", b"=cmd",
         b"-rf", b"a...", b"<script>alert(1)<", b"\"quoted\" 'name'", b"\xe2\x80\xae\xe6\x9b\xb8", b"$x_{$", b"_private"]


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Types and files with the worst names that a file system allows."""
    folder = tmp_path_factory.mktemp("named")
    for seed, name in enumerate(NAMES):
        here = os.path.join(os.fsencode(folder), name)
        os.mkdir(here)
        for file, content in ((b"reference", blocks(seed)), (b"photo", blocks(seed) // 2), (b"bad", None)):
            with open(os.path.join(here, file + name + b".png"), "wb") as out:
                out.write(b"no image" if content is None else cv2.imencode(".png", content)[1].tobytes())
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model.onnx")


def test_printable():
    assert printable("a\nb\x1b[m\x9b\x7f\u2028\u202e\udcff") == r"a\nb\x1b[m\x9b\x7f\u2028\u202e\udcff"
    assert printable("straße 書類 שלום \\n 'x'") == "straße 書類 שלום \\n 'x'"


def test_a_log_has_one_line_per_message(tmp_path, capfd):
    log = get_logger(0, tmp_path)
    log.info("skipped: a\nb\x1b[31m\udcff.png: empty file")
    get_logger()  # closes the file
    lines = capfd.readouterr().err, (tmp_path / "training.log").read_text()
    assert all(text.endswith(r"skipped: a\nb\x1b[31m\udcff.png: empty file" + "\n") for text in lines)
    assert [text.count("\n") for text in lines] == [1, 1]


def test_every_name_is_listed_and_stays_below_the_root(named):
    names = list_images(named)
    assert len(names) == 3 * len(NAMES) and {os.fsencode(name).split(b"/")[0] for name in names} == set(NAMES)
    assert all(Path(named, name).resolve().is_relative_to(named) for name in names)


def test_a_result_is_one_line_for_any_names(model, named, capsys):
    arguments = ["--model", str(model), "--register", str(named), str(named)]
    assert exit_status(lambda: classify([*arguments, "--top-k", "2"])) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3 * len(NAMES) == out.count("\n")
    assert len(err.splitlines()) == 1 + len(NAMES) + 4 == err.count("\n")  # the threshold, bad files, types that look alike
    assert out.replace("\n", "").isprintable()
    assert not any(character in out + err for character in "\r\x1b\x07\x9b\u2028")
    assert r"\x1b[31mred" in out and r"new\nline" in out and r"\udcff\udcfe" in out

    assert exit_status(lambda: classify([*arguments, "--json"])) == 0
    results = json.loads(capsys.readouterr().out)
    assert {os.fsencode(result["image"]) for result in results} == {os.fsencode(named / name) for name in list_images(named)}
    assert {os.fsencode(result["label"]) for result in results if result["label"]} == set(NAMES)


def test_an_error_is_one_line_for_any_names(model, named, capsys):
    bad = os.fsdecode(b"\xff\n\x1b[2J")
    for arguments in (["--model", bad, "--register", str(named), "x"], ["--model", str(model), "--register", bad, "x"],
                      ["--model", str(model), "--register", str(named), "x", "--" + bad]):
        assert exit_status(lambda: classify(arguments)) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and r"\udcff\n\x1b[2J" in err


def test_an_evaluation_with_any_names(model, named, tmp_path, capsys):
    assert exit_status(lambda: evaluate(["--model", str(model), "--data", str(named)])) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\u2028" not in out and r"\x1b[31mred" in out
    assert exit_status(lambda: evaluate(["--model", str(model), "--data", str(named), "--json"])) == 0
    found = json.loads(capsys.readouterr().out)
    assert {os.fsencode(entry["file"]).split(b"/")[0] for entry in found["unreadable"]} == set(NAMES)

    few = tmp_path / "few"  # few enough for a legend
    few.mkdir()
    for name in NAMES[:9]:
        os.symlink(os.path.join(os.fsencode(named), name), os.path.join(os.fsencode(few), name))
    result = evaluate_folder(lambda images: images.reshape(len(images), -1).astype(np.float32), few, SIZE, progress=False)
    page = write_report(result, tmp_path / "report", os.fsdecode(b"\xff.onnx")).read_bytes()
    assert b"<script>" not in page and page.decode("utf-8")
    assert json.loads((tmp_path / "report" / "metrics.json").read_text()) == result.as_dict()


def test_names_that_the_terminal_cannot_encode(model, named):
    """An ASCII terminal, in a process without locale settings."""
    done = subprocess.run([sys.executable, ROOT / "inference" / "classify.py", "--model", model, "--register", named, named],
                          capture_output=True, env={"PYTHONIOENCODING": "ascii", "PATH": os.environ["PATH"]})
    assert done.returncode == 0 and done.stdout.isascii() and done.stdout.count(b"\n") == 3 * len(NAMES)
