"""The README's commands, end to end on made documents: train, torchrun, export, evaluate, register, classify."""
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["network=test_efficientnet", "image_size=32", "embedding_size=32", "batch_size=16", "max_steps=6", "log_every=2",
         "num_workers=1", "device=cpu", "cache=true"]


def run(*command, status=0, cwd=ROOT):
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def torchrun(processes, *command):
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}",
                           "--master_addr=127.0.0.1", f"--master_port={free_port()}", *map(str, command)],
                          cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    run("-m", "synth", folder, "--train-types", 8, "--copies", 2, "--eval-types", 4, "--captures", 2)
    return folder


@pytest.fixture(scope="module")
def trained(made):
    done = run("train_v2.py", "configs/demo", f"data={made / 'train'}:1:labelled", f"output={made / 'run'}", *SMALL,
               f"eval_data={made / 'eval'}")
    assert "step 6/6 loss" in done.stderr and "eval 6/6 auroc" in done.stderr
    run("onnx_export.py", made / "run")
    return made / "run"


def test_evaluation_of_the_run_and_of_its_export_agree(made, trained):
    reports = []
    for model in (trained, trained / "model.onnx"):
        done = run("-m", "eval", "--model", model, "--data", made / "eval", "--report", made / "report", "--json")
        reports.append(json.loads(done.stdout))
        assert (made / "report" / "report.html").stat().st_size > 10_000
    assert reports[0]["pairs"] == reports[1]["pairs"] == {"positive": 12, "negative": 54}
    assert reports[0]["auroc"] == pytest.approx(reports[1]["auroc"], abs=0.02)
    assert json.loads((trained / "eval.json").read_text())["auroc"] == pytest.approx(reports[0]["auroc"], abs=1e-6)


def test_registering_and_classifying(made, trained, tmp_path):
    references = sorted((made / "eval").glob("*/reference.jpg"))
    done = run(ROOT / "inference/classify.py", "--model", trained / "model.onnx", "--register", made / "eval", "--json",
               "--threshold", "0", references[0], "missing.jpg", cwd=tmp_path)
    first, second = json.loads(done.stdout)
    assert first["label"] == references[0].parent.name and first["score"] == pytest.approx(1, abs=1e-5)
    assert second["label"] is None and second["error"]


def test_two_processes_on_real_files(made):
    done = torchrun(2, "train_v2.py", "configs/demo", f"data={made / 'train'}", "expansion=24", f"output={made / 'two'}",
                    *SMALL, f"eval_data={made / 'eval'}")
    assert done.returncode == 0, done.stderr
    assert "num_classes 384" in done.stderr and "world 2" in done.stderr and "step 6/6" in done.stderr
    files = {file.name for file in (made / "two" / "checkpoints" / "last").iterdir()}
    assert {"centres-0-192.safetensors", "centres-192-384.safetensors"} <= files


def test_more_processes_than_classes(made, tmp_path):
    one = sorted((made / "train").glob("*/*.jpg"))[0].parent
    done = torchrun(3, "train_v2.py", "configs/demo", f"data={one}", "expansion=1", f"output={tmp_path}", *SMALL)
    assert done.returncode != 0
    assert "error: data: 2 classes cannot be shared by 3 processes" in done.stderr


def test_a_file_that_breaks_in_the_loader_ends_every_rank(made, tmp_path):
    """One rank alone meets the broken file; the run ends with the file's name, and ends for all."""
    script = tmp_path / "breaks.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "import dataset\nimport train_v2\nfrom inference.cli import run_cli\n"
        "load = dataset.ImageFolders.load\n"
        "def breaks(self, image):\n"
        "    if image == 3: self.paths[3] = 'gone.jpg'\n"
        "    return load(self, image)\n"
        "dataset.ImageFolders.load = breaks\n"
        "run_cli(train_v2.main)\n")
    done = torchrun(2, script, ROOT, "configs/demo", f"data={made / 'train'}:1", f"output={tmp_path / 'run'}", *SMALL,
                    "cache=false")
    assert done.returncode != 0
    assert "error: gone.jpg: file not found" in done.stderr


LONG = [*SMALL, "max_steps=100000", "log_every=1", "save_every=1", "resume=auto"]


def steps_of(output):
    with open(output / "results.csv", newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def reached(process, output, step):
    """Wait until a run's checkpoints have got to `step`."""
    deadline = time.monotonic() + 120
    while not any(int(path.name[5:]) >= step for path in (output / "checkpoints").glob("step-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)


def test_ctrl_c_a_killed_rank_and_a_scheduler(made, tmp_path):
    """One run in three parts: Ctrl-C, which its loader's processes get too; a rank that is killed and that torchrun starts
    again; SIGTERM to torchrun. No step is lost, none is in the table twice."""
    command = ["configs/demo", f"data={made / 'train'}:1", f"output={tmp_path}", *LONG]
    piped = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    one = subprocess.Popen([sys.executable, "train_v2.py", *command, "cache=false"], **piped)
    reached(one, tmp_path, 2)
    os.killpg(one.pid, signal.SIGINT)
    said = one.communicate(timeout=60)[1]
    stopped = steps_of(tmp_path)[-1]
    assert one.returncode == 0 and "Traceback" not in said, said
    assert f"stopped after step {stopped}/100000 by SIGINT; resume=auto goes on from there" in said
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
    two = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--max-restarts=1",
                            "--master_addr=127.0.0.1", f"--master_port={free_port()}", script, ROOT, *command], **piped)
    reached(two, tmp_path, stopped + 6)
    two.send_signal(signal.SIGTERM)
    said = two.communicate(timeout=60)[1]
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
    done = run(*command, status=2)
    assert done.stderr.startswith("error: ") and says in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_run_sh_knows_its_words():
    done = subprocess.run(["bash", ROOT / "run.sh", "tset"], capture_output=True, text=True)
    assert done.returncode == 2 and "./run.sh or ./run.sh test" in done.stderr


def test_run_sh_takes_the_headless_opencv_where_the_other_does_not_import(tmp_path):
    """On a bare Debian opencv-python lacks libGL. A stand-in for Python notes what it is asked and fails likewise."""
    for name in ("run.sh", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin" / "python3"
    stand_in.write_text(f"""#!/usr/bin/env bash
echo "$*" >> {tmp_path}/asked
if [ "$1 $2" = "-m venv" ]; then mkdir -p .venv/bin && cp "$0" .venv/bin/python; fi
if [ "$*" = "-c import cv2" ] && ! grep -q headless {tmp_path}/asked; then exit 1; fi
""")
    stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    for _ in range(2):
        done = subprocess.run(["bash", tmp_path / "run.sh", "test", "-x"], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text()
    assert "install --quiet --disable-pip-version-check opencv-python-headless" in asked
    assert asked.count("-r requirements.txt") == 1  # the second time finds the environment as it should be
    assert asked.count("-m pytest -x") == 2
