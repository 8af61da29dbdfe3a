"""The wheel `docmetric`: built from this folder, installed into an environment that has nothing else, and used there as a
newcomer would: init, serve, register and classify over HTTP."""
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
import zipfile
from email.parser import Parser

import pytest

from tests.helpers.programs import ROOT

NO_NETWORK = re.compile("Temporary failure in name resolution|NewConnectionError|Network is unreachable")
SHIPPED = ROOT / "inference" / "models"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """As `pip wheel . --no-deps -w dist`, from a copy of the files that a checkout has. Hatchling is in requirements.txt."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "inference", source / "inference")
    subprocess.run([sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation", "-w", dist,
                    "--quiet"],
                   check=True)
    built, = dist.glob("docmetric-*-py3-none-any.whl")
    return built


@pytest.fixture(scope="module")
def bin(wheel, tmp_path_factory):
    """The folder of programs of a new environment with the wheel, its `server` extra, and what those need."""
    place = tmp_path_factory.mktemp("newcomer") / "venv"
    venv.create(place, with_pip=True)
    done = subprocess.run([place / "bin" / "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check",
                           f"{wheel}[server]"], capture_output=True, text=True, cwd=place)
    if NO_NETWORK.search(done.stdout + done.stderr):
        pytest.skip("no network to install the wheel's dependencies from")
    assert done.returncode == 0, done.stderr
    return place / "bin"


@pytest.fixture
def run(bin, tmp_path):
    """A program of that environment, in another folder than the repository."""
    def run(program, *words, status=0):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run([bin / program, *map(str, words)], cwd=tmp_path, env=environment, capture_output=True,
                              text=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done
    return run


def test_it_holds_what_runs_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        code = {name: archive.read(name).decode() for name in names if name.endswith(".py")}
        metadata = Parser().parsestr(archive.read(next(name for name in names if name.endswith("METADATA"))).decode())
    assert {name.split("/")[0] for name in names} == {"docmetric", f"docmetric-{metadata['Version']}.dist-info"}
    assert {"docmetric/models/docmetric.onnx", "docmetric/models/finder.onnx", "docmetric/server/page/index.html",
            "docmetric/registry/core.py", "docmetric/commands/init.py", "docmetric/server/__main__.py"} <= set(names)
    assert len([name for name in names if name.startswith("docmetric/models/registry/")]) == 18
    assert not [name for name in names if name.endswith((".pt", ".pyc")) or "test" in name.split("/")[1]]
    assert wheel.stat().st_size < 10e6
    for name, text in code.items():
        assert not re.search(r"^\s*(from inference[. ]|import inference\b)", re.sub('""".*?"""', "", text, flags=re.DOTALL),
                             re.MULTILINE), f"{name}: imports by the folder's name in the repository"
    required = {re.split(r"[\[ ;<>=]", one)[0] for one in metadata.get_all("Requires-Dist") if "extra ==" not in one}
    assert required == {"numpy", "opencv-python-headless", "onnxruntime", "apsw"}
    assert {"server", "ann", "postgres", "qdrant", "heif", "pdf", "gpu"} == set(metadata.get_all("Provides-Extra"))


def test_the_environment_has_neither_torch_nor_the_repository(run):
    code = ("from importlib.util import find_spec; import docmetric, docmetric.registry\n"
            "print([name for name in ('torch', 'inference', 'configs') if find_spec(name)], docmetric.__file__)")
    missing, file = run("python", "-c", code).stdout.split(" ", 1)
    assert missing == "[]" and "site-packages" in file
    assert "both installed" not in run("docmetric", "--help").stderr
    assert run("python", "-m", "docmetric", "--help").stdout == run("docmetric", "--help").stdout
    assert re.fullmatch(r"docmetric \d+\.\d+\.\d+\n", run("docmetric", "--version").stdout)


def test_a_newcomer_has_an_answer_within_a_minute(bin, run, tmp_path):
    began = time.monotonic()
    run("docmetric", "init", "types")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    server = subprocess.Popen([bin / "docmetric", "serve", "types", "--port", "0", "--workers", "2"], cwd=tmp_path,
                              stdout=subprocess.PIPE, text=True, env=environment)
    try:
        url = re.search(r"http://\S+", server.stdout.readline())[0]
        assert "<html" in ask(url, "/").lower() and "swagger" in ask(url, "/docs").lower()
        added = json.loads(ask(url, "/v1/collections/default/references?label=passport",
                               (SHIPPED / "registry" / "passport_1000021.jpg").read_bytes()))
        assert added["label"] == "passport"
        for photo, label in ("passport_1000021", "passport"), ("never_registered_form_1000023", None):
            for _ in range(4):                                       # whichever of the two processes answers
                result, = json.loads(ask(url, "/v1/collections/default/classify",
                                         (SHIPPED / "photos" / f"{photo}.jpg").read_bytes()))["results"]
                assert result["label"] == label, result
        took = time.monotonic() - began
        done = run("docmetric", "classify", url, SHIPPED / "photos" / "passport_1000021.jpg")
        assert "passport_1000021.jpg: passport 0.9" in done.stdout
    finally:
        server.terminate()
        assert server.wait(60) == 0
    assert took < 60
    assert "passport: 1 reference" in run("docmetric", "ls", "types").stdout


def test_the_server_starts_as_a_module_too(bin, run, tmp_path):
    """Its worker processes are spawned, and must find the package under its installed name."""
    run("docmetric", "init", "types")
    server = subprocess.Popen([bin / "python", "-m", "docmetric.server", "types", "--port", "0", "--workers", "1"],
                              cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert ask(re.search(r"http://\S+", server.stdout.readline())[0], "/readyz")
    finally:
        server.terminate()
        assert server.wait(60) == 0


def test_an_extra_that_is_missing_is_named(run, tmp_path):
    (tmp_path / "scan.pdf").write_bytes(b"%PDF-1.4\n%%EOF\n")
    run("docmetric", "init", "types")
    done = run("docmetric", "add", "types", "scan.pdf", "--type", "a", status=2)
    assert 'docmetric[pdf]' in done.stderr and done.stderr.count("\n") == 1


def ask(url, path, body=None):
    """The answer to a GET, or a POST of a body, as text."""
    request = urllib.request.Request(url + path, body, {"Content-Type": "application/octet-stream"} if body else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()) from None
