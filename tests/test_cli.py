"""The commands of the README, end to end on synthetic documents: train, torchrun, export, evaluate, register, classify."""
import csv
import json
import os
import signal

import pytest

from inference.cli import Parser
from tests.helpers.programs import ROOT, Program, launch, run, torchrun, wait_until

SMALL = ["network=test_efficientnet", "image_size=32", "embedding_size=32", "batch_size=16", "max_steps=6", "log_every=2",
         "num_workers=1", "device=cpu", "cache=true"]


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    run("-m", "synth", folder, "--train-types", 8, "--copies", 2, "--eval-types", 4, "--captures", 2)
    return folder


@pytest.fixture(scope="module")
def trained(documents):
    done = Program("train_v2.py", "configs/demo", f"data={documents / 'train'}:1:labelled", f"output={documents / 'run'}",
                   *SMALL, f"eval_data={documents / 'eval'}").wait()
    assert done.returncode == 0 and "step 6/6 loss" in done.stderr and "eval 6/6 auroc" in done.stderr, done.stderr
    run("onnx_export.py", documents / "run")
    return documents / "run"


def test_evaluation_of_the_run_and_of_its_export_agree(documents, trained):
    options = "--data", documents / "eval", "--json"
    of_run = Program("-m", "eval", "--model", trained, *options).wait()
    of_export = run("-m", "eval", "--model", trained / "model.onnx", *options, "--report", documents / "report")
    reports = [json.loads(done.stdout) for done in (of_run, of_export)]
    assert (documents / "report" / "report.html").stat().st_size > 10_000
    assert reports[0]["pairs"] == reports[1]["pairs"] == {"positive": 12, "negative": 54}
    assert reports[0]["auroc"] == pytest.approx(reports[1]["auroc"], abs=0.02)
    assert json.loads((trained / "eval.json").read_text())["auroc"] == pytest.approx(reports[0]["auroc"], abs=1e-6)


def test_registering_and_classifying(documents, trained, tmp_path):
    references = sorted((documents / "eval").glob("*/reference.jpg"))
    done = run(ROOT / "inference/classify.py", "--model", trained / "model.onnx", "--register", documents / "eval", "--json",
               "--threshold", "0", references[0], "missing.jpg", cwd=tmp_path)
    first, second = json.loads(done.stdout)
    assert first["label"] == references[0].parent.name and first["score"] == pytest.approx(1, abs=1e-5)
    assert second["label"] is None and second["error"]


def test_torchrun_with_two_ranks(documents):
    done = torchrun(2, "train_v2.py", "configs/demo", f"data={documents / 'train'}", "expansion=24",
                    f"output={documents / 'two'}", *SMALL, f"eval_data={documents / 'eval'}").wait()
    assert done.returncode == 0, done.stderr
    assert "num_classes 384" in done.stderr and "world 2" in done.stderr and "step 6/6" in done.stderr
    files = {file.name for file in (documents / "two" / "checkpoints" / "last").iterdir()}
    assert {"centres-0-192.safetensors", "centres-192-384.safetensors"} <= files


def test_more_processes_than_classes(documents, tmp_path):
    one_type = sorted((documents / "train").glob("*/*.jpg"))[0].parent
    for done in launch(3, "train_v2.py", "configs/demo", f"data={one_type}", "expansion=1", f"output={tmp_path}", *SMALL):
        assert done.returncode == 2 and "error: data: 2 classes cannot be shared by 3 processes" in done.stderr, done.stderr


def test_a_file_that_breaks_in_the_loader_ends_every_rank(documents, tmp_path):
    """Only one rank reads the broken file. It names the file, and all ranks end with a line."""
    script = tmp_path / "breaks.py"
    script.write_text(
        "import dataset\nimport train_v2\nfrom inference.cli import run_cli\n"
        "load = dataset.ImageFolders.load\n"
        "def breaks(self, image):\n"
        "    if image == 3: self.paths[3] = 'gone.jpg'\n"
        "    return load(self, image)\n"
        "dataset.ImageFolders.load = breaks\n"
        "run_cli(train_v2.main)\n")
    ranks = launch(2, script, "configs/demo", f"data={documents / 'train'}:1", f"output={tmp_path / 'run'}", *SMALL,
                   "cache=false")
    assert [done.returncode for done in ranks] == [2, 2]
    assert sum("error: gone.jpg: file not found" in done.stderr for done in ranks) == 1
    assert all(done.stderr.count("error: ") == 1 for done in ranks)


def steps_of(output):
    with open(output / "results.csv", newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_ctrl_c_a_killed_rank_and_a_scheduler(documents, tmp_path):
    """One run in three parts: Ctrl-C, which the processes of its loader get too; a rank that is killed, and that torchrun
    starts again; SIGTERM to torchrun. No step is lost, and none is in the table twice."""
    command = ["configs/demo", f"data={documents / 'train'}:1", f"output={tmp_path}", *SMALL, "max_steps=100000",
               "log_every=1", "save_every=1", "resume=auto"]

    def saved(step):
        return lambda: any(int(path.name[5:]) >= step for path in (tmp_path / "checkpoints").glob("step-*"))

    one = Program("train_v2.py", *command, "cache=false")
    wait_until(saved(2), one)
    os.killpg(one.pid, signal.SIGINT)
    done = one.wait(60)
    stopped = steps_of(tmp_path)[-1]
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert f"stopped after step {stopped}/100000 by SIGINT; resume=auto continues from there" in done.stderr
    assert json.loads((tmp_path / "checkpoints/last/manifest.json").read_text())["step"] == stopped

    script = tmp_path / "dies.py"
    script.write_text(
        "import os, signal, sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "from tasks import registration as task\nimport train_v2\nfrom inference.cli import run_cli\n"
        "losses = task.RegistrationTask.losses\n"
        "def dies(self, batch):\n"
        "    if (os.environ['RANK'], os.environ['TORCHELASTIC_RESTART_COUNT']) == ('1', '0') and self.partial_fc.step > "
        f"{stopped + 3}:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return losses(self, batch)\n"
        "task.RegistrationTask.losses = dies\n"
        "run_cli(train_v2.main)\n")
    two = torchrun(2, "--max-restarts=1", script, ROOT, *command)
    wait_until(saved(stopped + 6), two)
    os.kill(two.pid, signal.SIGTERM)
    said = two.wait(60).stderr
    stopped = steps_of(tmp_path)[-1]
    assert f"stopped after step {stopped}/100000 by SIGTERM" in said, said
    assert "error: rank 0 stops: contact with the other ranks was lost at step" in said, said
    assert json.loads((tmp_path / "checkpoints/last/manifest.json").read_text())["step"] == stopped
    assert steps_of(tmp_path) == list(range(1, stopped + 1))
    assert not list(tmp_path.glob("earlier-*"))


@pytest.mark.parametrize("command, says", [
    (["train_v2.py", "configs/demo", "data=nowhere"], "nowhere: no such folder"),
    (["train_v2.py"], "usage: train_v2.py"),
    (["train_v2.py", "configs/dmo"], "did you mean configs/demo"),
    (["onnx_export.py", "nowhere"], "nowhere"),
    (["-m", "eval", "--model", "nowhere.onnx", "--data", "."], "nowhere.onnx: no such file"),
    (["inference/classify.py", "--model", "README.md", "--register", ".", "x.jpg"], "README.md"),
])
def test_mistakes_are_one_line_and_exit_2(command, says):
    done = Program(*command).wait()
    assert done.returncode == 2 and done.stdout == "", done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and says in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("command", [["onnx_export.py"], ["-m", "eval"], ["-m", "synth"], ["inference/classify.py"]])
def test_help_has_usage_examples_and_defaults(command):
    done = Program(*command, "--help").wait()
    said = done.stdout
    assert done.returncode == 0 and said.startswith("usage: ") and done.stderr == ""
    assert said.count(f"\n    python {' '.join(command)} ") >= 2, "examples"


def test_help_shows_the_defaults_that_there_are():
    parser = Parser()
    parser.add_argument("--number", type=int, default=0, help="a number")
    parser.add_argument("--text", help="a text")
    parser.add_argument("--flag", action="store_true", help="a flag")
    parser.add_argument("--own", default=5, help="its own words (default: five)")
    lines = dict(line.strip().split("  ", 1) for line in parser.format_help().splitlines() if line.startswith("  --"))
    assert {name.split()[0]: text.strip() for name, text in lines.items()} == {
        "--number": "a number (default: 0)", "--text": "a text", "--flag": "a flag",
        "--own": "its own words (default: five)"}
