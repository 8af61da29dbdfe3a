"""What a new user meets first: run.sh with a stand-in for Python, so that nothing is installed, and the first look."""
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from configs import load_config
from inference.errors import UserError
from tools import demo_time, first_look
from tools.doctor import estimate

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT / "inference" / "models" / "photos"
# Stands for python3 and for .venv/bin/python: says what it was asked to do, and is pip as pip is.
STAND_IN = """#!/bin/bash
case "$*" in
*"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
*"-m pip"*) echo "WARNING: Location is ignored"
    [ -z "$NO_NETWORK" ] || { echo "ERROR: no matching distribution"; exit 1; } ;;
*"import cv2"*) [ -z "$NO_LIBGL" ] || [ -e .venv/asked ] || { touch .venv/asked; exit 1; } ;;
*"-c import sys"*) ;;
*) echo "python $*" ;;
esac
"""


ON_ALL_CORES = f"-n {min(4, os.sysconf('SC_NPROCESSORS_ONLN'))} --dist loadfile"


@pytest.fixture
def run(tmp_path):
    """Runs run.sh in a folder of its own, called from another one."""
    project, programs = tmp_path / "project with space", tmp_path / "bin"
    project.mkdir()
    programs.mkdir()
    shutil.copy(ROOT / "run.sh", project)
    shutil.copy(ROOT / "requirements.txt", project)
    (programs / "python3").write_text(STAND_IN)
    (programs / "python3").chmod(0o755)

    def run(*words, **environment):
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run([project / "run.sh", *words], cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, "PATH": path, **environment})
    return run


def test_pip_is_quiet_and_called_once(run):
    done = run("test", "-k", "margin")
    assert done.returncode == 0 and done.stdout == f"python -m pytest {ON_ALL_CORES} -k margin\n"
    assert "setting up .venv" in done.stderr and "WARNING" not in done.stderr
    again = run("test")
    assert again.stdout == f"python -m pytest {ON_ALL_CORES}\n" and again.stderr == ""


def test_a_pip_that_fails_is_shown_and_tried_again(run):
    done = run("test", NO_NETWORK="1")
    assert done.returncode == 2 and done.stdout == ""
    assert "ERROR: no matching distribution" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: pip install failed")
    assert run("test").returncode == 0


def test_without_libgl_opencv_is_taken_headless(run):
    done = run("test", NO_LIBGL="1")
    assert done.returncode == 0 and "opencv-python-headless takes its place" in done.stderr


def test_the_first_look_comes_before_the_demo_says_how_long_it_takes(run):
    done = run()  # the stand-in draws no documents, so the demo ends where it would copy them
    said = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("python -m")]
    assert said[:3] == ["tools.first_look", "tools.demo_time", "synth"]


def test_help_and_mistakes(run):
    done = run("--help")
    assert done.returncode == 0 and "./run.sh test" in done.stdout and "#" not in done.stdout
    done = run("tset")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "./run.sh --help" in done.stderr


def test_the_first_look_names_what_it_shows(tmp_path, capsys):
    first_look.main(["--out", str(tmp_path / "new" / "look.png"), "--columns", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 19 and any(line.split() == ["passport_1000021.jpg", "passport_1000021", "(0.94)"] for line in lines)
    assert sum("not registered" in line for line in lines if line.startswith("never_registered")) == 6
    sheet = cv2.imread(str(tmp_path / "new" / "look.png"))
    cell = first_look.draw_cell({"image": "damaged.jpg", "label": None, "score": None, "top_k": [], "error": "empty"}, {})
    assert sheet.shape == (5 * cell.shape[0], 4 * cell.shape[1], 3)                # 18 captures in rows of 4
    # the field of the first capture holds what its file does, but for scaling
    shown = sheet[first_look.GAP:][:first_look.SIDE, first_look.GAP:][:, :first_look.SIDE]
    photo = cv2.imread(str(PHOTOS / "bank_card_1000001.jpg"))
    height = round(first_look.SIDE * photo.shape[0] / photo.shape[1])
    top = (first_look.SIDE - height) // 2
    small = cv2.resize(photo, (first_look.SIDE, height), interpolation=cv2.INTER_AREA)
    assert np.abs(shown[top:top + height].astype(int) - small).mean() < 1


def test_the_first_look_refuses_in_one_line(tmp_path):
    for words, says in ((["--out", str(tmp_path / "a.txt")], "must end in .png or .jpg"),
                        (["--columns", "0"], "at least 1"), ([str(tmp_path)], "no image")):
        with pytest.raises(UserError, match=says):
            first_look.main(words)


def test_the_time_of_the_demo_is_that_of_its_steps(capsys, monkeypatch):
    monkeypatch.setattr(estimate, "ENOUGH", 0.0)
    assert 0 < demo_time.seconds_per_step(load_config("configs/demo", ["batch_size=4", "image_size=32"]), classes=8) < 60
    monkeypatch.setattr(demo_time, "seconds_per_step", lambda cfg, classes: 10.0)
    monkeypatch.setattr(demo_time, "seconds_per_document", lambda: 0.0)
    monkeypatch.setattr(demo_time.time, "process_time", lambda: 0.0)
    demo_time.main([])  # 50 epochs of 2,400 images by 128 are 938 steps of 13 s, and 15 s
    assert "about 203 minutes on this machine: 938 training steps of 13000 ms" in capsys.readouterr().out
    assert [demo_time.duration(seconds) for seconds in (2, 44, 89, 90, 239)] == [
        "10 seconds", "40 seconds", "90 seconds", "2 minutes", "4 minutes"]
