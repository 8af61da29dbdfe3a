"""`docmetric`, in process on a store with the shipped model and types: what each command does, says, and refuses; the same
commands on a server."""
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from inference.__main__ import COMMANDS, MODULES, both_runtimes, main
from inference.cli import exit_status
from inference.commands import every, progress
from tests.helpers.models import write_model
from tests.helpers.programs import ROOT

SHIPPED = ROOT / "inference" / "models"
TYPES, PHOTOS = SHIPPED / "registry", SHIPPED / "photos"
PASSPORT, FORM = PHOTOS / "passport_1000021.jpg", PHOTOS / "never_registered_form_1000023.jpg"


@pytest.fixture
def docmetric(capfd):
    """Runs a command: (status, its JSON or text, stderr)."""
    def run(*words):
        status = exit_status(lambda: main([str(word) for word in words]))
        said = capfd.readouterr()
        return status, json.loads(said.out) if "--json" in words else said.out, said.err
    return run


@pytest.fixture
def ok(docmetric):
    def run(*words):
        status, out, err = docmetric(*words)
        assert status == 0 and err == "", (words, err)
        return out
    return run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A store with the shipped types, made once."""
    path = tmp_path_factory.mktemp("prepared") / "types"
    assert main(["init", str(path), str(TYPES)]) == 0
    return path


@pytest.fixture
def store(prepared, tmp_path, ok):
    """A copy of it: `cp` of a store that nobody uses is a store."""
    path = tmp_path / "types"
    subprocess.run(["cp", "-r", prepared, path], check=True)
    return path


# ---- the commands ----

def test_a_folder_is_registered_and_captures_are_classified(store, ok):
    listed = ok("ls", store, "--json")
    assert len(listed) == 18 and {one["label"] for one in listed} == {path.stem for path in TYPES.glob("*.jpg")}
    found = {Path(one["image"]).stem: one["label"] for one in ok("classify", store, PHOTOS, "--json")}
    unknown = {name for name in found if name.startswith("never_registered")}
    assert len(found) == 18 and len(unknown) == 6 and not any(found[name] for name in unknown)
    assert all(found[name] in (name, None) for name in found) and sum(map(bool, found.values())) >= 11
    text = ok("classify", store, PASSPORT, FORM, "--top-k", 2)
    assert re.match(rf"{PASSPORT}: passport_1000021 0\.\d{{4}} \(passport_1000021 0\.\d{{4}}, \w+ 0\.\d{{4}}\)\n", text)
    assert f"{FORM}: not registered 0." in text


def test_registering_moving_and_undoing(store, ok, docmetric):
    added, = ok("add", store, FORM, "--type", "form", "--json")
    assert added["new_type"] and added["label"] == "form" and added["error"] is None
    assert ok("search", store, FORM, "-k", 1, "--json") == [dict(reference=added["reference"], label="form", kind="type",
                                                                 score=pytest.approx(1, abs=1e-4))]
    ok("mv", store, "form", "tax form")
    assert [one["label"] for one in ok("ls", store, "tax", "--json")] == ["tax form"]
    status, _, err = docmetric("mv", store, "tax form", "menu_1000016")
    assert status == 2 and "merge" in err
    merged, = ok("mv", store, "tax form", "menu_1000016", "--merge", "--json")
    assert merged["references"] == [added["reference"]]
    ok("mv", store, "parcel", "--reference", added["reference"])
    assert [one["reference"] for one in ok("ls", store, "--references", "parcel", "--json")] == [added["reference"]]
    ok("rm", store, "--reference", added["reference"])
    assert not ok("ls", store, "--references", "parcel", "--json")
    ok("undo", store)
    assert ok("ls", store, "--references", "parcel", "--json")
    ok("rm", store, "parcel", "menu_1000016")
    assert len(ok("ls", store, "--json")) == 17
    events = ok("ls", store, "--events", "--json")
    assert [one["what"] for one in events][:3] == ["remove", "remove", "undo"] and events[0]["who"]
    ok("undo", store, events[1]["event"])
    assert [one["label"] for one in ok("ls", store, "parcel", "--json")] == ["parcel"]
    assert ok("purge", store, "--older", "0d") == "deleted 1 reference and 1 image\n"
    assert len(ok("ls", store, "--events", "--limit", 1).splitlines()) == 1


def test_what_the_gate_refuses_does_not_stop_the_others(store, docmetric, ok):
    again = TYPES / "menu_1000016.jpg"
    status, out, err = docmetric("add", store, again, FORM, PHOTOS / "missing.jpg", "--type", "menu_1000016")
    assert status == 2 and out.startswith(f"{FORM}: registered as menu_1000016 (reference 19, event 2)")
    refused, missing = err.splitlines()
    assert refused.startswith(f"error: {again}: reference") and "nearly the same" in refused and "file not found" in missing
    status, results, err = docmetric("add", store, again, "--type", "menu_1000016", "--json")
    assert status == 2 and err == "" and results[0]["findings"][0]["code"] == "near-duplicate"
    assert ok("add", store, again, "--type", "menu_1000016", "--force", "--json")[0]["findings"]


def test_a_known_unknown_is_rejected(store, ok):
    ok("add", store, FORM, "--unknown")
    assert "not registered 1.0000 (nearest to a known unknown)" in ok("classify", store, FORM)
    assert "(known unknown)" in ok("ls", store, "--references")


def test_corners_by_hand(store, ok, docmetric):
    added, = ok("add", store, FORM, "--type", "form", "--quad", "10,10,300,10,300,200,10,200", "--force", "--json")
    assert added["quad"] == [[10, 10], [300, 10], [300, 200], [10, 200]]
    assert "--quad 1,2,x: must be eight numbers" in docmetric("add", store, FORM, "--type", "form", "--quad", "1,2,x")[2]


def test_folders_are_one_change(store, ok, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "scans" / name).mkdir(parents=True)
    (tmp_path / "scans" / "a" / "1.jpg").write_bytes(FORM.read_bytes())
    (tmp_path / "scans" / "b" / "1.jpg").write_bytes(PASSPORT.read_bytes())
    assert ok("add", store, tmp_path / "scans") == "registered 2 images of 2 types, 2 of them new (event 2)\n"
    ok("undo", store)
    assert len(ok("ls", store, "--json")) == 18


def test_all_images_of_a_folder_that_cannot_be_used_are_named(store, ok, docmetric, tmp_path):
    """PDF and HEIC files count as images; a folder is registered as a whole, or with --skip what can be used of it."""
    scans = tmp_path / "scans"
    (scans / "form").mkdir(parents=True)
    shutil.copy(FORM, scans / "form" / "1.jpg")
    (scans / "form" / "2.PDF").write_bytes(b"%PDF-1.4\n%%EOF\n")
    (scans / "cut.jpg").write_bytes(FORM.read_bytes()[:3000])
    (scans / "notes.txt").write_text("no image")
    for words in (["add", store, scans], ["init", tmp_path / "new", scans]):
        status, out, err = docmetric(*words)
        assert status == 2 and out == "" and err.count("\n") == 3
        assert re.search(r"scans/form/2\.PDF: ", err) and "scans/cut.jpg: truncated JPEG" in err
        assert "nothing was registered: 2 of 3 images cannot be used" in err
    assert len(ok("ls", store, "--json")) == 18 and ok("ls", tmp_path / "new") == "nothing is registered yet\n"
    status, results, err = docmetric("add", store, scans, "--skip", "--json")
    assert status == 2 and err == "" and [bool(one["error"]) for one in results] == [True, True, False]
    assert results[2]["label"] == "form" and len(ok("ls", store, "--json")) == 19
    assert ok("ls", store, "--references", "form", "--json")[0]["source"] == "1.jpg"


def test_each_line_is_printed_when_its_change_is_made(store, docmetric, ok):
    """The second of three does not exist: the first is gone, and told."""
    status, out, err = docmetric("rm", store, "--reference", 3, 99, 4)
    assert status == 2 and out.endswith("1 reference (event 2)\n") and err.startswith("error: reference 99: ")
    status, results, err = docmetric("mv", store, "menu_1000016", "--reference", 5, 99, "--json")
    assert status == 2 and [one["reference"] for one in results] == [5] and err.count("\n") == 1
    assert len(ok("ls", store, "--references", "--json")) == 17


def test_ctrl_c_loses_nothing_that_was_told(store, ok):
    images = [str(FORM)] * 5000
    adding = subprocess.Popen([sys.executable, "-m", "inference", "add", store, *images, "--type", "form", "--force"],
                              cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              # A program in the background of a shell ignores it, and so would what it starts.
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    first = adding.stdout.readline()
    adding.send_signal(signal.SIGINT)
    out, err = adding.communicate(timeout=60)
    assert adding.returncode == 130 and err == "", err
    told = re.findall(r"\(reference (\d+), ", first + out)
    held = [str(one["reference"]) for one in ok("ls", store, "--references", "form", "--json")]
    assert held[:len(told)] == told and 1 <= len(told) <= len(held) <= len(told) + 1 < 5000
    ok("check", store)


@pytest.mark.parametrize("closed, said", [(">&-", ""), ("2>&-", "none\n"), ("<&- >&- 2>&-", "")])
def test_closed_streams_are_no_mistake(store, closed, said, ok):
    """As a service may start it. What is written to a stream that is closed goes nowhere, not into the next file opened."""
    program = f"{sys.executable} -m inference"
    command = f"{program} add {store} {FORM} --type form --force {closed}; echo $?"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0" and done.stderr == ""
    assert len(ok("ls", store, "--json")) == 19
    command = f"{program} ls {store} nothing {closed}; {program} ls none {closed}; echo $?"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout == said + "2\n") and ("error: none: no store there" in done.stderr) == (closed == ">&-")
    ok("check", store)


def test_collections_are_registries_by_themselves(store, ok, docmetric):
    made = ok("init", store, "--collection", "parcels", "--orientation", "any", "--find", "never", "--json")
    assert (made["name"], made["orientation"], made["find"], made["types"]) == ("parcels", "any", "never", 0)
    assert ok("ls", store, "--collection", "parcels") == "nothing is registered yet\n"
    assert "(nothing is registered yet)" in ok("classify", store, FORM, "--collection", "parcels")
    assert [one["name"] for one in ok("ls", store, "--collections", "--json")] == ["default", "parcels"]
    assert "is there already" in docmetric("init", store, "--collection", "parcels")[2]
    assert "there is none of this name; there are default, parcels" in docmetric("ls", store, "--collection", "x")[2]


def test_the_threshold(store, ok):
    suggested = ok("calibrate", store, "--json")
    assert suggested["now"]["threshold"] == pytest.approx(ok("ls", store, "--json")[0]["threshold"], abs=0.2)
    assert f"suggested {suggested['threshold']:.4f}" in ok("calibrate", store)
    assert ok("calibrate", store, "--threshold", 0.99, "--json")["threshold"] == 0.99
    assert "not registered" in ok("classify", store, PASSPORT)
    ok("calibrate", store, "--threshold", 0.5, "--type", "passport_1000021")
    assert "not registered" not in ok("classify", store, PASSPORT)
    assert "threshold automatic" in ok("calibrate", store, "--automatic")
    assert ok("calibrate", store, "--apply", "--json")["threshold"] == pytest.approx(suggested["threshold"])


def test_another_model(store, ok, docmetric, tmp_path):
    other = write_model(tmp_path / "other.onnx")
    first, = ok("model", "ls", store, "--json")
    added = ok("model", "add", store, other, "--json")
    assert added["state"] == "ready" and added["references"] == 18
    assert "threshold" in ok("model", "report", store, added["hash"][:8])
    assert "is in use" in docmetric("model", "rm", store, first["hash"])[2]
    ok("model", "activate", store, added["hash"][:6])
    assert {one["hash"]: one["state"] for one in ok("model", "ls", store, "--json")}[added["hash"]] == "active"
    ok("model", "activate", store, first["hash"])
    ok("model", "rm", store, added["hash"])
    assert len(ok("model", "ls", store, "--json")) == 1


def test_keys(store, ok, docmetric):
    assert "no keys" in ok("key", "ls", store)
    text = ok("key", "add", store, "scanner", "--scopes", "classify", "--expires", "90d").strip()
    assert re.fullmatch(r"dm_1_[0-9a-f]{64}", text)
    assert re.match(r" +1  scanner  classify  all collections  expires ", ok("key", "ls", store))
    assert "revoked" in ok("key", "rm", store, 1)
    assert docmetric("key", "rm", store, 7)[2] == "error: key 7: there is none of this number\n"


def test_backup_export_and_check(store, ok, docmetric, tmp_path):
    ok("add", store, FORM, "--type", "form")
    ok("backup", store, tmp_path / "copy")
    ok("restore", tmp_path / "copy", tmp_path / "again")
    assert len(ok("ls", tmp_path / "again", "--json")) == 19
    assert docmetric("restore", tmp_path / "copy", tmp_path / "again")[0] == 2
    ok("export", store, tmp_path / "types.zip")
    ok("init", tmp_path / "other")
    ok("import", tmp_path / "other", tmp_path / "types.zip")
    assert len(ok("ls", tmp_path / "other", "--json")) == 19
    ok("check", store)
    victim = next((store / "blobs").glob("*/*"))
    victim.write_bytes(b"x" + victim.read_bytes()[1:])
    status, out, err = docmetric("check", store)
    assert status == 2 and victim.name[:8] in out + err


def test_review_without_unknowns(store, ok, docmetric):
    assert "nothing to review" in ok("review", store)
    assert docmetric("review", store, "--name", "form", 5)[0] == 2


# ---- on a server ----

@contextlib.contextmanager
def serving(store, *options):
    """The address of a server of a store."""
    process = subprocess.Popen([sys.executable, "-m", "inference", "serve", store, "--port", "0", "--workers", "1",
                                *options], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield re.search(r"http://\S+", process.stdout.readline())[0]
    finally:
        process.terminate()
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def server(prepared, tmp_path_factory):
    """The address of a server with a copy of the store, that keeps unknowns."""
    path = tmp_path_factory.mktemp("served") / "types"
    subprocess.run(["cp", "-r", prepared, path], check=True)
    with serving(path, "--keep-unknown", "1d") as url:
        yield url


def test_the_same_commands_on_a_server(server, ok, docmetric, tmp_path):
    assert len(ok("ls", server, "--json")) == 18
    assert f"{PASSPORT}: passport_1000021 0." in ok("classify", server, PASSPORT)
    assert "not registered" in ok("classify", server, FORM)
    cluster, = ok("review", server, "--json")
    ok("review", server, "--save", tmp_path / "unknown")
    kept = tmp_path / "unknown" / "1" / f"{cluster['cover']}.jpg"
    assert kept.read_bytes() == FORM.read_bytes()
    assert "would register 1 image as form" in ok("review", server, "--name", "form", cluster["cover"], "--dry-run")
    ok("review", server, "--name", "form", cluster["cover"])
    assert f"{FORM}: form 1.0000" in ok("classify", server, FORM) and "nothing to review" in ok("review", server)
    assert ok("search", server, FORM, "-k", 1, "--json")[0]["label"] == "form"
    added, = ok("add", server, PHOTOS / "plate_1000008.jpg", "--type", "plate_1000008", "--json")
    ok("mv", server, "form", "tax form")
    ok("mv", server, "plates", "--reference", added["reference"])
    ok("rm", server, "plates")
    ok("undo", server)
    assert {"tax form", "plates"} <= {one["label"] for one in ok("ls", server, "--json")}
    ok("export", server, tmp_path / "types.zip")
    assert (tmp_path / "types.zip").stat().st_size > 100_000
    assert [one["name"] for one in ok("ls", server, "--collections", "--json")] == ["default"]
    status, _, err = docmetric("rm", server, "nothing of this name")
    assert status == 2 and err.count("\n") == 1 and "there is none of this name" in err
    assert "works on the folder of a store" in docmetric("backup", server, tmp_path / "copy")[2]


def test_serve_leaves_the_environment_as_it_was(docmetric, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    before = dict(os.environ)
    assert docmetric("serve", "nowhere", "--port", 0)[0] == 2  # a worker finds out, after all is set
    assert os.environ == before


def test_a_server_with_keys(server, ok, docmetric, monkeypatch):
    key = ok("key", "add", server, "office", "--scopes", "admin").strip()
    status, _, err = docmetric("ls", server)
    assert (status, err) == (2, f"error: {server}: asks for a key; put it into the variable DOCMETRIC_KEY\n")
    monkeypatch.setenv("DOCMETRIC_KEY", key)
    assert ok("ls", server)
    assert ok("key", "ls", server, "--json")[0]["name"] == "office"


# ---- mistakes and help ----

@pytest.mark.parametrize("words, says", [
    ([], None), (["frob"], "no such command"), (["ls"], "STORE"), (["ls", "nowhere"], "docmetric init nowhere"),
    (["ls", "{store}", "a", "--events"], "TEXT is of use for types"),
    (["ls", "{store}", "--limit", "0"], "no number from 1"),
    (["ls", "{store}", "--references", "nope"], "type nope: there is none"),
    (["init", "new", "nowhere"], "nowhere: no such folder"), (["init", "{store}"], "docmetric add {store} FOLDER registers"),
    (["init", "."], "other files are in it; docmetric init STORE ."), (["init", "{store}", "{store}"], "no image in it"),
    (["add", "{store}", "{store}"], "no image in it"), (["classify", "{store}", "{store}/blobs"], "no image in it"),
    (["add", "{store}", "", "--type", "a"], "name of a file"), (["classify", "{store}", ""], "name of a file"),
    (["add", "{store}", "photo.jpg"], "say what it shows with --type"), (["add", "{store}"], "IMAGE"),
    (["add", "{store}", "nowhere.jpg", "--type", "a"], "nowhere.jpg: file not found"),
    (["add", "{store}", "a", "--type", "a", "--unknown"], "not allowed with"),
    (["add", "{store}", "a.jpg", "--type", "\n"], "label"),
    (["rm", "{store}"], "name the types"), (["rm", "{store}", "nope"], "type nope: there is none"),
    (["rm", "{store}", "--reference", "99"], "reference 99: there is none"),
    (["mv", "{store}", "a"], "give the type and its new name"), (["mv", "{store}", "a", "b"], "type a: there is none"),
    (["undo", "{store}", "99"], "event 99"), (["search", "{store}", "gone.jpg"], "gone.jpg"),
    (["classify", "{store}", "a.jpg", "--top-k", "0"], "no number from 1"),
    (["calibrate", "{store}", "--threshold", "2"], "between 0"),
    (["calibrate", "{store}", "--type", "a"], "--type: needs"), (["purge", "{store}"], "--older"),
    (["purge", "{store}", "--older", "x"], "duration"), (["key", "add", "{store}"], "give its name"),
    (["key", "add", "{store}", "a", "--scopes", "all"], "invalid choice"), (["model", "add", "{store}"], "give a file"),
    (["model", "add", "{store}", "README.md"], "README.md"), (["model", "report", "{store}", "14"], "four digits"),
    (["review", "{store}", "3"], "say what becomes"), (["review", "{store}", "--drop"], "need the numbers"),
    (["import", "{store}", "nowhere.zip"], "nowhere.zip"), (["export", "{store}", "nowhere/a.zip"], "nowhere"),
    (["export", "{store}", "."], "such as ./types.zip"), (["backup", "{store}", "{store}/copy"], "lies in the store itself"),
    (["import", "http://127.0.0.1:1", "{store}"], "docmetric add http://127.0.0.1:1 {store}"),
    (["serve", "http://127.0.0.1:1"], "works on the folder"),
    (["backup", "http://127.0.0.1:1", "x"], "works on the folder"), (["restore", "nowhere", "x"], "nowhere"),
    (["check", "nowhere"], "nowhere"), (["ls", "http://127.0.0.1:1"], "http://127.0.0.1:1"),
    *((words, "99999999999999999999") for words in (
        ["rm", "{store}", "--reference", "9" * 20], ["mv", "{store}", "a", "--reference", "9" * 20],
        ["undo", "{store}", "9" * 20], ["review", "{store}", "--drop", "9" * 20], ["key", "rm", "{store}", "9" * 20],
        ["search", "{store}", "a.jpg", "-k", "9" * 20], ["classify", "{store}", "a.jpg", "--top-k", "9" * 20])),
    (["ls", "{store}", "--collection", "\udcff"], "no UTF-8"), (["ls", "{store}", "\udcff"], "no UTF-8"),
    (["rm", "http://a..b", "x"], "cannot be reached"), (["rm", "http://127.0.0.1:1", "\udcff"], "UTF-8"),
    (["serve", "nowhere"], "nowhere: no store there"), (["serve", "{store}", "--port", "99999999"], "99999999"),
])
def test_mistakes_are_one_line_and_exit_2(words, says, store, docmetric, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("no model")
    before = sorted(path.name for path in tmp_path.iterdir())
    status, out, err = docmetric(*(word.format(store=store) for word in words))
    assert status == 2
    if words:
        assert out == "" and err.startswith("error: ") and says.format(store=store) in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before      # a mistake leaves nothing behind


def test_an_export_does_not_take_the_place_of_a_device(store, docmetric, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    status, out, err = docmetric("export", store, tmp_path / "pipe")
    assert status == 2 and out == "" and "is no file but a device" in err and err.count("\n") == 1
    assert (tmp_path / "pipe").is_fifo()


def test_output_that_finds_no_room_is_one_line(store):
    for words in (["ls", store], ["ls", store, "--json"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run([sys.executable, "-m", "inference", *map(str, words)], cwd=ROOT, stdout=full,
                                  stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2 and done.stderr == "error: no room on the disk that the output goes to\n", done.stderr


@pytest.mark.parametrize("command", MODULES)
def test_help_has_usage_examples_and_defaults(command, capfd):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    said = capfd.readouterr()
    assert end.value.code == 0 and said.err == "" and said.out.startswith("usage: docmetric " + command)
    assert f"\n    docmetric {command} " in said.out and said.out.endswith("\n")
    assert all(len(line) <= 130 for line in said.out.splitlines())


def test_the_version(ok):
    assert ok("--version") == "docmetric from the repository\n"


def test_help_lists_every_command(capfd):
    assert main(["--help"]) == 0
    said = capfd.readouterr().out
    listed = set(re.findall(r"(?:^ {4}|\S {2,})([a-z]+) {2,}[a-z]", said, re.MULTILINE))
    assert set(MODULES) == listed and set(COMMANDS) < listed


def test_the_program_itself_is_quick_to_say_what_it_can():
    """Neither ONNX Runtime nor OpenCV is loaded for it."""
    code = ("import sys; from inference.__main__ import main; main(['--help'])\n"
            "assert not {'cv2', 'onnxruntime'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- the documentation ----

def test_metrics_of_the_documentation_exist():
    """Prometheus adds _total to the names of counters, and _bucket to those of histograms."""
    code = (ROOT / "inference" / "server" / "metrics.py").read_text()
    named = set(re.findall(r"\bdocmetric_[a-z_]+", (ROOT / "docs" / "operate.md").read_text()))
    assert len(named) > 5 and not [name for name in named if f'"{re.sub("_(total|bucket)$", "", name)}"' not in code]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def test_commands_of_the_documentation_exist(capfd):
    pages = [*ROOT.glob("docs/*.md"), ROOT / "inference" / "README.md"]
    lines = [re.sub(r"^(\S+=\S+ |sudo -u \S+ |\S+/(?=docmetric ))+", "", line) for page in pages
             for block in blocks(page, "(?:ba)?sh") for line in block.replace("\\\n", " ").splitlines()]
    lines += [inline.replace("\n", " ") for page in pages for inline in re.findall(r"`(docmetric [^`]+)`", page.read_text())]
    used = [words[1:] for line in lines if (words := shlex.split(line, comments=True))[:1] == ["docmetric"]]
    assert len(used) > 20
    for command, *words in used:
        if command in ("COMMAND", "--help", "--version"):
            continue
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said = capfd.readouterr().out
        for word in words:
            if word.startswith("--"):
                assert re.search(rf"{word}\b", said), f"docmetric {command} {' '.join(words)}: no option {word}"


def test_the_examples_of_the_registry_print_what_the_documentation_says(store, ok, monkeypatch):
    monkeypatch.chdir(ROOT)
    example, = (block for block in blocks(ROOT / "docs" / "registry.md", "text") if block.startswith("$ "))
    for command, said in re.findall(r"^\$ docmetric (.*)\n((?:[^$].*\n)+)", example, re.MULTILINE):
        words = shlex.split(command.replace("REGISTRY", str(store)), comments=True)
        printed, expected = (re.sub(r"\d\d$", "", text.strip()) for text in (ok(*words), said))  # digits of a score
        assert printed == expected


def test_json_has_the_keys_that_the_documentation_names(store, docmetric, tmp_path):
    """A line of the documentation names a command and the options that tell it from others; here with what else it needs."""
    section = (ROOT / "docs" / "registry.md").read_text().split("## Commands in scripts")[1].split("```")[1]
    lines = re.sub(r" \(.*?\)", "", re.sub(r"\n +", " ", section)).strip().splitlines()[1:]
    keys_of = {command: set(keys.split(", ")) for line in lines
               for commands, keys in [re.split(" {2,}", line)] for command in commands.split(", ")}
    copy, file = tmp_path / "copy", tmp_path / "types.zip"
    used = [("init", tmp_path / "new"), ("add", store, FORM, "--type", "form"), ("classify", store, FORM),
            ("search", store, FORM), ("ls", store), ("ls --references", store), ("ls --events", store),
            ("ls --collections", store), ("mv", store, "form", "a"), ("mv --reference", "19", "--", store, "b"),
            ("mv --merge", store, "b", "menu_1000016"), ("rm", store, "menu_1000016"), ("undo", store),
            ("calibrate", store), ("calibrate --threshold", "0.8", store), ("export", store, file), ("import", store, file),
            ("backup", store, copy), ("restore", copy, tmp_path / "again"), ("check", store), ("model ls", store),
            ("model build", store, "14ff"), ("key add", store, "a"), ("key ls", store), ("key rm", store, "1"),
            ("purge", "--older", "0d", store)]
    for command, *words in used:
        name, *options = command.split()
        status, value, err = docmetric(name, "--json", *options, *words)
        one = value[0] if isinstance(value, list) else value
        of_add = {"key"} if command in ("key ls", "key rm") else set()
        assert status == 0 and keys_of[command] - of_add == set(one), (command, err)
    assert {command for command, *_ in used} == keys_of.keys()


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_examples_of_the_http_api_run(prepared, tmp_path, ok):
    """Each command of curl, in order, on a new store with a key; then the program in Python."""
    page, store = ROOT / "docs" / "http_api.md", tmp_path / "types"
    ok("init", store)
    key = ok("key", "add", store, "reader", "--scopes", "admin").strip()
    shutil.copy(TYPES / "passport_1000021.jpg", tmp_path / "passport.jpg")
    shutil.copy(PASSPORT, tmp_path / "photo.jpg")
    lines = [line for block in blocks(page, "bash") for line in block.splitlines() if line.startswith("curl ")]
    with serving(store) as url:
        answers = []
        for line in lines:
            done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                                  env={**os.environ, "URL": url, "DOCMETRIC_KEY": key})
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            answers.append(json.loads(done.stdout) if done.stdout else None)
        assert answers[0]["label"] == "passport" and answers[1]["results"][0]["label"] == "passport"
        assert len(answers) == 10 and len(answers[2]["results"]) == 2 and zipfile.is_zipfile(tmp_path / "types.zip")
        example, = blocks(page, "python")
        said = subprocess.run([sys.executable, "-c", f"url, key = {url!r}, {key!r}\n{example}"], cwd=tmp_path,
                              capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert said.returncode == 0 and "photo.jpg passport 0.9" in said.stdout, said.stderr


def test_what_the_page_on_privacy_says_of_classified_images(tmp_path, ok):
    """Nothing of an image that was classified is in any file of the store, unless that was asked for."""
    store = tmp_path / "types"
    ok("init", store)
    ok("add", store, TYPES / "passport_1000021.jpg", "--type", "passport")
    for options, kept in ([], False), (["--keep-unknown", "1d"], True):
        with serving(store, *options) as url:
            ok("classify", url, PASSPORT, FORM)
        held = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
        assert (FORM.read_bytes() in held) == kept and PASSPORT.read_bytes() not in held
        assert FORM.name.encode() not in held and b"127.0.0.1" not in held
        assert list((store / "blobs").rglob("*/*")) and (store / "unknown").exists() == kept
    ok("rm", store, "passport")
    ok("purge", store, "--older", "0d")
    assert not list((store / "blobs").glob("*/*"))


def test_onnx_runtime_reports_to_nobody(store, tmp_path):
    """It would keep a number for this machine, and what it has to send, in the user's cache."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment |= dict(HOME=str(home), XDG_CACHE_HOME=str(home))
    for words in (["-m", "inference", "classify", store], ["inference/classify.py", "--register", TYPES]):
        done = subprocess.run([sys.executable, *map(str, words), str(PASSPORT)], cwd=ROOT, env=environment,
                              capture_output=True, text=True)
        assert "passport_1000021" in done.stdout and done.returncode == 0, done.stderr
    assert not list(home.rglob("*"))


# ---- small parts ----

def test_two_runtimes_are_named_with_the_way_out(monkeypatch, capfd):
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"onnxruntime": "1.23", "onnxruntime-gpu": "1.24"}[name])
    assert main(["--help"]) == 0
    said = capfd.readouterr().err
    assert said.startswith("warning: onnxruntime 1.23 and onnxruntime-gpu 1.24 are both installed") and said.count("\n") == 1
    monkeypatch.undo()
    assert both_runtimes() is None


def test_listings_are_read_page_by_page():
    asked = []

    def page(after, limit):
        asked.append(limit)
        return [dict(id=number) for number in range(after + 1, min(after + limit, 1200) + 1)]

    assert [one["id"] for one in every(page, "id")] == list(range(1, 1201)) and asked[0] == 500
    assert len(list(every(page, "id", 700))) == 700 and asked[-1] == 200


def test_progress_is_shown_on_a_terminal_alone(capfd, monkeypatch):
    times = iter([0, 1, 3, 3.1, 9])
    monkeypatch.setattr("inference.commands.time.monotonic", lambda: next(times))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    show = progress("embedding", 40)
    for done in (1, 20, 21, 40):
        show(done)
    assert capfd.readouterr().err == "\rembedding 20/40, 7/s \rembedding 40/40, 4/s \n"
    monkeypatch.undo()
    progress("embedding", 1)(1)
    assert capfd.readouterr().err == ""


def test_environment_is_not_what_names_the_user(monkeypatch, store, ok):
    """A container's user may have no name: changes are made all the same."""
    monkeypatch.setattr("inference.commands.getpass.getuser", lambda: (_ for _ in ()).throw(OSError("no name")))
    ok("rm", store, "menu_1000016")
    assert ok("ls", store, "--events", "--json")[0]["who"] is None
    assert os.path.isdir(store)
