"""The rooms and their order: imports go one way, without circles, and shared helpers have one home each."""
import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A module may import from its own room and from those before it. Rooms of one rank do not know each other.
ORDER = [{"inference"}, {"engine"}, {"losses"}, {"kernels", "augment"}, {"partial_fc", "dataset", "backbones", "synth"},
         {"ocr"}, {"eval"}, {"adverts"}, {"tasks"}, {"configs"}, {"train_v2", "onnx_export", "__main__"}, {"tools"},
         {"benchmarks"}, {"tests"}]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
FILES = sorted(path for path in ROOT.rglob("*.py")
               if not any(part.startswith((".", "work_dirs")) for part in path.relative_to(ROOT).parts))
# `python -m dataset doctor` is a public command, whose report is made by a tool.
EXCEPTIONS = {("dataset.py", "tools.doctor")}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def room_of(module):
    """A package's `__main__` is a program and stands with train_v2, unless its package stands after that."""
    room = module.split(".")[0]
    return "__main__" if module.endswith("__main__") and RANK[room] < RANK["__main__"] else room


def source_of(node, path):
    """The module that an `ImportFrom` of a file names, relative or not."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    base = ".".join(package.split(".")[:len(package.split(".")) - node.level + 1]) if node.level else ""
    return ".".join(filter(None, (base, node.module)))


def imports_of(path):
    """The project's modules that a file imports, at its top and inside functions alike."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = source_of(node, path)
            found = [name if (name := f"{source}.{alias.name}") in MODULES else source for alias in node.names]
        else:
            continue
        yield from (name for name in found if name.split(".")[0] in {module.split(".")[0] for module in MODULES})


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    room, name = room_of(module_of(path)), str(path.relative_to(ROOT))
    for imported in imports_of(path):
        if (name, imported) in EXCEPTIONS or imported.split(".")[0] == module_of(path).split(".")[0]:
            continue
        assert RANK[room_of(imported)] < RANK[room], f"{name} imports {imported}: {room} stands before {room_of(imported)}"


def test_imported_names_exist():
    """Also of modules that no test runs: a name that moved is seen at once."""
    def names_of(tree):
        """What a module may bind; names within its functions are among them, so this is a little too kind."""
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield node.name
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                yield from ((alias.asname or alias.name.split(".")[0]) for alias in node.names)

    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
    bound = {name: set(names_of(tree)) | {"__doc__", "__file__", "__name__"} for name, tree in trees.items()}
    wrong = [f"{name} imports {alias.name} from {source}" for name, path in MODULES.items()
             for node in ast.walk(trees[name]) if isinstance(node, ast.ImportFrom)
             if (source := source_of(node, path)) in MODULES
             for alias in node.names
             if alias.name not in bound[source] | {"*"} and f"{source}.{alias.name}" not in MODULES
             and "__getattr__" not in bound[source]]
    assert not wrong, wrong


def test_there_are_no_circles():
    known = {name: {other for other in imports_of(path) if other in MODULES and (str(path.relative_to(ROOT)), other)
                    not in EXCEPTIONS} for name, path in MODULES.items()}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name):], name])
        if name not in done:
            path.append(name)
            for other in sorted(known[name] - {name}):
                visit(other)
            done.add(path.pop())

    for name in known:
        visit(name)


def test_inference_is_alone_and_imports_itself_relatively():
    allowed = {"": {"numpy", "cv2", "onnxruntime"}, "registry": {"numpy", "cv2", "onnxruntime", "apsw"},
               "commands": {"numpy", "cv2"}, "server": {"numpy", "fastapi", "starlette", "pydantic", "uvicorn", "anyio",
                                                        "prometheus_client", "python_multipart", "fastapi_offline"}}
    on_demand = {"torch": "search_cuda.py", "rapidocr": "segments.py", "tokenizers": "classifier.py",
                 "faiss": "approximate.py", "psycopg": "postgres.py", "pgvector": "postgres.py",
                 "qdrant_client": "qdrant.py", "sklearn": "unknowns.py", "pillow_heif": "convert.py",
                 "pypdfium2": "convert.py"}
    for path in (ROOT / "inference").rglob("*.py"):
        room = path.relative_to(ROOT / "inference").parts[0] if path.parent != ROOT / "inference" else ""
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0 or isinstance(node, ast.Import):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                for top in (name.split(".")[0] for name in names):
                    known = top in sys.stdlib_module_names or top in allowed[room] or on_demand.get(top) == path.name
                    assert known, f"{path.name} imports {top}"


def test_onnx_runtime_comes_after_what_turns_off_its_reports():
    for path in FILES:
        if path.relative_to(ROOT).parts[0] in ("inference", "tests"):
            continue
        lines = {}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for name in [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]:
                    lines.setdefault(name.split(".")[0], []).append(node.lineno)
        if "onnxruntime" in lines:
            assert min(lines.get("inference", [10**9])) < min(lines["onnxruntime"]), f"{path}: import inference first"


def test_helpers_have_one_home():
    """The user's errors, atomic replacement and the command line: defined once, in files of the standard library alone."""
    homes = {"UserError": "errors", "printable": "errors", "first_line": "errors", "replacing": "files", "run_cli": "cli",
             "Parser": "cli"}
    for name, home in homes.items():
        defined = [str(path.relative_to(ROOT)) for path in FILES if path.relative_to(ROOT).parts[0] != "tests"
                   for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                   if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name]
        assert defined == [f"inference/{home}.py"], (name, defined)
    for home in set(homes.values()):
        for imported in imports_of(ROOT / "inference" / f"{home}.py"):
            assert imported in {f"inference.{other}" for other in homes.values()}, imported
        top = {name.split(".")[0] for node in ast.walk(ast.parse((ROOT / f"inference/{home}.py").read_text()))
               if isinstance(node, ast.Import) for name in [alias.name for alias in node.names]}
        assert top <= set(sys.stdlib_module_names)


def test_benchmarks_and_tests_do_not_import_each_other():
    for path in FILES:
        top = path.relative_to(ROOT).parts[0]
        if top in ("benchmarks", "tests"):
            other = {"benchmarks": "tests", "tests": "benchmarks"}[top]
            assert not any(name.split(".")[0] == other for name in imports_of(path)), path
