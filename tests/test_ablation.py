"""tools/ablation.py: rows are what they say, the table has its form, a stop loses nothing, mistakes are refused."""
import contextlib
import csv
import io
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from configs import load_config
from engine.distributed import Ranks
from inference.errors import UserError
from tests.helpers.runs import CPU, make_images
from tools import ablation
from tools.ablation import ROWS, settings
from train_v2 import train

COMMON, GIVEN = ["pretrained=false", "data=a:8,b"], {"pretrained": "weights.pt", "data": "a:8"}


@pytest.fixture
def commands(monkeypatch):
    """The commands that were called; they run in this process."""
    called = []

    def call(*words):
        called.append(words)
        if words[0] == "-m":
            from eval.__main__ import main
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                main(words[2:])
            return said.getvalue()
        with contextlib.redirect_stderr(io.StringIO()):
            train(load_config(words[1], words[2:]), Ranks(0, 1, CPU))
    monkeypatch.setattr(ablation, "call", call)
    return called


def trainings(commands):
    return [Path(word.removeprefix("output=")).name for words in commands for word in words if word.startswith("output=")]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_differs_from_its_base_in_what_it_says_alone(name):
    base, *changes = ROWS[name][0].split()
    here = load_config(*divided(settings(name, COMMON, GIVEN)))
    there = load_config(*divided(settings(base, COMMON, GIVEN) if base in ROWS else [base, *COMMON]))
    keys = [change.partition("=")[0] for change in changes]
    differ = [key for key in here if here[key] != there[key]]
    assert set(differ) <= set(keys)
    assert base not in ROWS or set(differ) == set(keys), "names what is no change"


def divided(words):
    return words[0], words[1:]


def test_the_reference_has_its_published_recipe():
    cfg = load_config(*divided(settings("reference", COMMON, GIVEN)))
    assert (cfg.lr, cfg.centres_optimizer, cfg.centres_lr, cfg.weight_decay) == (1e-3, "adamw", 1e-3, 1e-3)
    assert (cfg.s, cfg.m, cfg.margin_warmup, cfg.augment, cfg.head, cfg.norm) == (64, 0.4, 0, "reference", "flatten", "ln")
    assert (cfg.batch_size, cfg.sample_rate, cfg.schedule, cfg.warmup, cfg.clip) == (512, 0.3, "polynomial", 0.1, 5)
    assert load_config(*divided(settings("pretrained", COMMON, GIVEN))).pretrained == "weights.pt"


def test_every_row_of_the_reference_s_table_is_there():
    assert {"ln-cos", "ln-arc", "ln-softmax", "bn-cos", "ln-cos-squeeze", "ln-cos-gap", "f128-r96-ln-cos",
            "efficientnet_b0-ln-cos"} <= {reference for _, reference in ROWS.values()}


def test_the_table_continues_after_a_stop_and_keeps_what_failed_for_later(tmp_path, commands, monkeypatch, capsys):
    call, quick, spoilt = ablation.call, [str(tmp_path), "--quick", "--rows", "ours,ln,ema"], {}

    def spoiling(*words):
        for word, error in spoilt.items():
            if word in words:
                raise error
        return call(*words)
    monkeypatch.setattr(ablation, "call", spoiling)
    spoilt.update({"ema=0.999": KeyboardInterrupt(), "norm=ln": UserError("the loss was not finite")})
    assert ablation.main(quick) is None
    assert "stopped; the same command continues" in capsys.readouterr().err and not (tmp_path / "table.md").exists()
    assert trainings(commands) == ["ours"]

    del spoilt["ema=0.999"]
    with pytest.raises(UserError, match="1 of 3 rows failed, the first ln: the loss was not finite; the same command"):
        ablation.main(quick)
    assert trainings(commands) == ["ours", "ema"]
    assert [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[2:5]] == [
        "16x16 color thumbnail", "`ours`", "`ema`"]

    spoilt.clear()
    ablation.main(quick)
    assert trainings(commands) == ["ours", "ema", "ln"]
    said = capsys.readouterr()
    assert said.out == (tmp_path / "table.md").read_text()
    head, rule, *lines = [[cell.strip() for cell in line.strip("|\n").split("|")]
                          for line in said.out.splitlines() if line.startswith("|")]
    assert head[:4] == ["", "reference's row", "differs from", "MB"] and rule == ["---"] * len(head)
    assert head[4:] == ["synthetic/eval: AUROC", "TPR at 1e-2", "TPR at 1e-4", "top-1", "samples", "images/s", "min"]
    assert [line[:3] for line in lines[1:]] == [
        ["`ours`", "LBN squeeze", ablation.differs("ours")], ["`ln`", "ln-cos-squeeze", "ours, norm=ln"],
        ["`ema`", "", "ours, ema=0.999"]]
    known = json.loads((tmp_path / "rows.json").read_text())
    for line in lines:
        assert len(line) == len(head) and all(0 <= float(cell) <= 1 for cell in line[4:8])
    assert float(lines[1][4]) == round(known["ours"]["evaluated"][f"{tmp_path}/synthetic/eval"]["model"]["AUROC"], 3)
    assert "too few negative pairs for FPR 1e-4" in said.out
    assert all((tmp_path / name / "model.pt").is_file() for name in ("ours", "ln", "ema"))

    with pytest.raises(UserError, match="row ours is there with max_steps=4, asked for is max_steps=2; give another OUT"):
        ablation.main([*quick, "--samples=16"])
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(UserError, match="not what this command wrote"):
        ablation.main(quick)


def test_a_training_that_was_stopped_continues(tmp_path, commands, monkeypatch):
    """Its checkpoint is taken only where the settings are the same; else the run begins anew."""
    call, quick = ablation.call, [str(tmp_path), "--quick", "--rows", "ours"]

    def no_evaluation(*words):
        if words[0] == "-m":
            raise KeyboardInterrupt
        return call(*words)
    monkeypatch.setattr(ablation, "call", no_evaluation)
    for samples, resume in ((16, "false"), (16, "auto"), (8, "false")):
        ablation.main([*quick, "--samples", str(samples)])
        assert commands[-1][-1] == f"resume={resume}"
    assert (tmp_path / "ours/earlier-1").is_dir()


def test_the_same_time(tmp_path, commands, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "speed_of", lambda output: ((40.0 if "reference" in output.name else 80.0), 0.05))
    monkeypatch.setattr(ablation, "MEASURED", 8)
    monkeypatch.setattr(ablation, "QUICK", [*ablation.QUICK, "batch_size=64"])
    same_time = [str(tmp_path), "--quick", "--same-time", "0.05"]
    ablation.main(same_time)
    assert trainings(commands) == ["speed-reference", "reference-0.05min", "speed-ours", "ours-0.05min"]
    rows = [row for row in json.loads((tmp_path / "rows.json").read_text()).values() if row["evaluated"]]
    assert [row["samples"] for row in rows] == [128, 256]  # 60 * .05 * speed, in whole batches
    last = capsys.readouterr().out.splitlines()[-1]
    one, other = (row["evaluated"][f"{tmp_path}/synthetic/eval"]["model"]["TPR at 1e-4"] for row in rows)
    assert (f"TPR at FPR 1e-4 reference-0.05min {one:.4f}, ours-0.05min {other:.4f}; errors (1 - TPR) {1 - one:.4f} / "
            f"{1 - other:.4f} = {(1 - one) / (1 - other):.2f}") in last
    with pytest.raises(UserError, match="needs two rows"):
        ablation.main([*same_time, "--rows", "ours"])


def test_the_speed_is_that_of_the_steps_after_the_first(tmp_path):
    rows = [("step", "samples", "images_per_second"), (1, 100, 10), (2, 200, 50), (2, 200, ""), (4, 400, 25)]
    for count, speed, minutes in ((4, 300 / 10, 20 / 60), (1, 10, 10 / 60)):
        with open(tmp_path / "results.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows[:count + 1])
        assert ablation.speed_of(tmp_path) == pytest.approx((speed, minutes))


def test_rows_that_need_what_was_not_given_are_not_run():
    bare = {"pretrained": None, "data": None}
    assert set(ablation.wanted(None, bare)) == set(ROWS) - {"pretrained", "no-synthetic"}
    assert ablation.wanted(None, GIVEN) == list(ROWS) and ablation.wanted("x8,ours", bare) == ["x8", "ours"]
    with pytest.raises(UserError, match="--rows pretrained: needs --pretrained FILE"):
        ablation.wanted("ours,pretrained", bare)


@pytest.mark.parametrize("words, says", [
    ([], "name a folder to write to"),
    (["OUT"], "give --data ROOTS to train on and --eval DIR to evaluate on"),
    (["OUT", "--data=DATA", "--eval=none"], "none: no such folder"),
    (["OUT", "--data=none", "--eval=EVAL"], "none: no such folder"),
    (["OUT", "--data=EVAL", "--eval=EVAL"], "is trained on"),
    (["OUT", "--data=EVAL/..", "--eval=EVAL"], "is trained on"),
    (["OUT", "--data=DATA", "--eval=FLAT"], "needs two types at least, and two images of one"),
    (["OUT", "--data=DATA", "--eval=EVAL", "--rows="], "--rows : no such row"),
    (["OUT", "--data=DATA", "--eval=EVAL", "--rows=ous"], "--rows ous: no such row; --list names them"),
    (["OUT", "--data=DATA", "--eval=EVAL", "--rows=ours,ours"], "names a row twice"),
    (["OUT", "--data=DATA", "--eval=EVAL", "--samples=0"], "--samples 0: must be above 0"),
    (["OUT", "--data=DATA", "--eval=EVAL", "--same-time=nan"], "--same-time nan: must be above 0"),
    (["OUT", "--data=DATA", "--eval=EVAL", "--pretrained=none"], "--pretrained none: no such file"),
    (["DATA/0.png", "--data=DATA", "--eval=EVAL"], "cannot be written"),
])
def test_mistakes_are_refused_in_one_line(tmp_path, words, says):
    (tmp_path / "some").mkdir()
    data, flat = make_images(tmp_path / "some/data"), make_images(tmp_path / "flat")
    (tmp_path / "types/eval").mkdir(parents=True)
    types = [make_images(tmp_path / "types/eval" / kind) for kind in "ab"][0].parent
    for short, path in {"DATA": data, "EVAL": types, "FLAT": flat, "OUT": tmp_path / "out"}.items():
        words = [word.replace(short, str(path)) for word in words]
    with pytest.raises(UserError, match=says) as error:
        ablation.main(words)
    assert "\n" not in str(error.value)


def test_what_a_command_says_and_how_it_ends(monkeypatch):
    assert ablation.call("-c", "import sys; print(1); print(2, file=sys.stderr)") == "1\n"
    with pytest.raises(UserError, match="^data: no folder$"):
        ablation.call("-c", "import sys; sys.exit('so it began\\nerror: data: no folder')")
    began, before = time.monotonic(), signal.signal(signal.SIGTERM, signal.default_int_handler)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        ablation.call("-c", "import time; time.sleep(60)")
    signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - began < 30


def test_the_list_shows_every_row(capsys):
    ablation.main(["--list"])
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == list(ROWS)
    assert "ours, norm=bn" in said and "ours, pretrained=--pretrained" in said
