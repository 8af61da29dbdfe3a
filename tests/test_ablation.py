"""benchmarks/ablation.py: rows are what they say, the table has its form, a stop loses nothing, mistakes are refused.

One test starts the command itself; in the others its commands run in this process.
"""
import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from configs import load_config
from engine.distributed import Ranks
from inference.errors import UserError
from tests.test_train import CPU
from train_v2 import train

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import ablation  # noqa: E402
from ablation import DATA, FILE, ROWS, Ablation, Stopped, overrides, settings  # noqa: E402

COMMON, GIVEN = {"pretrained": False, "data": "a:8,b"}, {FILE: "weights.pt", DATA: "a:8"}


@pytest.fixture
def commands(monkeypatch):
    """The commands that were called; they run in this process."""
    called = []

    def call(self, *words):
        called.append(words)
        if words[0] == "-m":
            from eval.__main__ import main
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                main(words[2:])
            return said.getvalue()
        with contextlib.redirect_stderr(io.StringIO()):
            train(load_config(words[1], words[2:]), Ranks(0, 1, CPU))
    monkeypatch.setattr(Ablation, "call", call)
    return called


def trainings(commands):
    return [Path(word.removeprefix("output=")).name for words in commands for word in words if word.startswith("output=")]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_differs_from_its_base_in_what_it_says_alone(name):
    row = ROWS[name]
    config, changes = settings(name, COMMON, GIVEN)
    here = load_config(config, overrides(changes))
    if row.base in ROWS:
        config, changes = settings(row.base, COMMON, GIVEN)
        base, common = load_config(config, overrides(changes)), {}
    else:
        base, common = load_config(row.base), {**COMMON, "data": ["a:8", "b"]}
    expected = {**{key: {FILE: "weights.pt", DATA: ["a:8"]}.get(value, value) if isinstance(value, str) else value
                   for key, value in row.changes.items()}, **common}
    assert {key: here[key] for key in here if here[key] != base[key]} == {
        key: value for key, value in expected.items() if value != base[key]}
    assert row.base not in ROWS or all(base[key] != value for key, value in expected.items()), "says what is no change"


def test_the_reference_has_its_published_recipe():
    config, changes = settings("reference", COMMON, GIVEN)
    cfg = load_config(config, overrides(changes))
    assert (cfg.lr, cfg.centres_optimizer, cfg.centres_lr, cfg.weight_decay) == (1e-3, "adamw", 1e-3, 1e-3)
    assert (cfg.s, cfg.m, cfg.margin_warmup, cfg.augment, cfg.head, cfg.norm) == (64, 0.4, 0, "reference", "flatten", "ln")
    assert (cfg.batch_size, cfg.sample_rate, cfg.schedule, cfg.warmup, cfg.clip) == (512, 0.3, "polynomial", 0.1, 5)


def test_every_row_of_the_reference_s_table_is_there():
    assert {"ln-cos", "ln-arc", "ln-softmax", "bn-cos", "ln-cos-squeeze", "ln-cos-gap", "f128-r96-ln-cos",
            "efficientnet_b0-ln-cos"} <= {row.reference for row in ROWS.values()}


def test_the_table_goes_on_after_a_stop_and_keeps_what_failed_for_later(tmp_path, commands, monkeypatch, capsys):
    call, quick = Ablation.call, [str(tmp_path), "--quick", "--rows", "ours,bn,ema"]

    def interrupted(self, *words):
        if "ema=0.999" in words:
            raise Stopped
        if "norm=bn" in words:
            raise UserError("the loss was not finite")
        return call(self, *words)
    monkeypatch.setattr(Ablation, "call", interrupted)
    assert ablation.main(quick) is None
    assert "stopped; the same command goes on" in capsys.readouterr().err and not (tmp_path / "table.md").exists()
    assert trainings(commands) == ["ours"]

    monkeypatch.setattr(Ablation, "call", lambda self, *words: interrupted(self, *words) if "norm=bn" in words
                        else call(self, *words))
    with pytest.raises(UserError, match="1 of 3 rows failed, the first bn: the loss was not finite; the same command"):
        ablation.main(quick)
    assert trainings(commands) == ["ours", "ema"]
    assert [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[2:5]] == [
        "16x16 colour thumbnail", "`ours`", "`ema`"]

    monkeypatch.setattr(Ablation, "call", call)
    ablation.main(quick)
    assert trainings(commands) == ["ours", "ema", "bn"]
    said = capsys.readouterr()
    assert "2 of 3 rows are there" in said.err and said.out == (tmp_path / "table.md").read_text()
    head, rule, *lines = [[cell.strip() for cell in line.strip("|\n").split("|")]
                          for line in said.out.splitlines() if line.startswith("|")]
    assert head[:4] == ["", "reference's row", "differs from", "MB"] and rule == ["---"] * len(head)
    assert head[4:] == ["made/eval: AUROC", "TPR at 1e-2", "TPR at 1e-4", "top-1", "samples", "images/s", "min"]
    assert [line[:3] for line in lines[1:]] == [
        ["`ours`", "LBN squeeze", ablation.differs("ours")], ["`bn`", "bn-cos", "ours, norm=bn"],
        ["`ema`", "", "ours, ema=0.999"]]
    known = json.loads((tmp_path / "rows.json").read_text())["rows"]
    for line in lines:
        assert len(line) == len(head) and all(0 <= float(cell) <= 1 for cell in line[4:8])
    assert float(lines[1][4]) == round(known["ours"]["judged"][f"{tmp_path}/made/eval"]["model"]["AUROC"], 3)
    assert "too few negative pairs to speak of FPR 1e-4" in said.out
    assert all((tmp_path / name / "model.pt").is_file() for name in ("ours", "bn", "ema"))

    with pytest.raises(UserError, match="rows.json: row ours is there with max_steps=4, asked for is 2; give another OUT"):
        ablation.main([*quick, "--samples=16"])
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(UserError, match="not what this command wrote"):
        ablation.main(quick)


def test_a_training_that_was_cut_off_goes_on(tmp_path, commands, monkeypatch):
    """Its checkpoint is taken only where the settings are the same; else the run begins anew."""
    call, quick = Ablation.call, [str(tmp_path), "--quick", "--rows", "ours"]

    def no_judge(self, *words):
        if words[0] == "-m":
            raise Stopped
        return call(self, *words)
    monkeypatch.setattr(Ablation, "call", no_judge)
    for samples, resume in ((32, "false"), (32, "auto"), (16, "false")):
        ablation.main([*quick, "--samples", str(samples)])
        assert commands[-1][-1] == f"resume={resume}"
    assert (tmp_path / "ours/earlier-1").is_dir()


def test_the_same_time(tmp_path, commands, monkeypatch, capsys):
    def speeds(output, after=0):
        return (40.0 if "reference" in output.name else 80.0), 0.1 if after else 0.05
    monkeypatch.setattr(ablation, "speed_of", speeds)
    monkeypatch.setattr(ablation, "QUICK", {**ablation.QUICK, "batch_size": 64})
    ablation.main([str(tmp_path), "--quick", "--same-time", "0.05"])
    assert trainings(commands) == ["speed-reference", "speed-ours", "reference-0.05min", "ours-0.05min"]
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["samples"] for row in rows.values()] == [128, 256]  # 60 * .05 * speed, in whole batches
    last = capsys.readouterr().out.splitlines()[-1]
    one, other = (row["judged"][f"{tmp_path}/made/eval"]["model"]["TPR at 1e-4"] for row in rows.values())
    assert (f"TPR at FPR 1e-4 reference-0.05min {one:.4f}, ours-0.05min {other:.4f}; errors (1 - TPR) {1 - one:.4f} / "
            f"{1 - other:.4f} = {(1 - one) / (1 - other):.2f}") in last
    with pytest.raises(UserError, match="wants two rows"):
        ablation.main([str(tmp_path), "--quick", "--same-time", "0.05", "--rows", "ours"])


def test_the_speed_is_that_of_the_steps(tmp_path):
    with open(tmp_path / "results.csv", "w", newline="") as file:
        csv.writer(file).writerows([("step", "samples", "images_per_second"), (1, 100, 10), (2, 200, 50), (2, 200, ""),
                                    (4, 400, 50)])
    assert ablation.speed_of(tmp_path) == pytest.approx((400 / 16, 16 / 60))
    assert ablation.speed_of(tmp_path, after=100) == pytest.approx((50, 6 / 60))


def test_rows_that_want_what_was_not_given_are_left_out(capsys):
    bare = {FILE: None, DATA: None}
    assert ablation.wanted("ours,pretrained,no-made,x8", bare, ["a", "b:1"]) == ["ours", "x8"]
    assert set(ablation.wanted(None, bare, ["a:1"])) == set(ROWS) - {"pretrained", "no-made", "x8", "x24"}
    assert "pretrained: left out; it wants --pretrained FILE" in capsys.readouterr().err
    assert ablation.wanted(None, GIVEN, ["a"]) == list(ROWS)
    with pytest.raises(UserError, match="nothing is left to run"):
        ablation.wanted("pretrained", bare, ["a"])


@pytest.mark.parametrize("words, says", [
    ([], "name a folder to write to"),
    (["OUT"], "give --data ROOTS to train on and --eval DIR to judge by"),
    (["OUT", "--data=DATA", "--eval=none"], "none: no such folder"),
    (["OUT", "--data=none", "--eval=DATA"], "none: no such folder"),
    (["OUT", "--data=DATA", "--eval=DATA"], "is trained on"),
    (["OUT", "--data=DATA/..", "--eval=DATA"], "is trained on"),
    (["OUT", "--data=DATA", "--eval=FLAT"], "needs two types at least, and two images of one"),
    (["OUT", "--data=DATA", "--eval=EVAL", "--rows="], "--rows : no such row"),
    (["OUT", "--data=DATA", "--eval=EVAL", "--rows=ous"], "--rows ous: no such row; did you mean ours"),
    (["OUT", "--data=DATA", "--eval=EVAL", "--rows=ours,ours"], "names a row twice"),
    (["OUT", "--data=DATA", "--eval=EVAL", "--samples=0"], "--samples 0: must be above 0"),
    (["OUT", "--data=DATA", "--eval=EVAL", "--same-time=nan"], "--same-time nan: must be above 0"),
    (["OUT", "--data=DATA", "--eval=EVAL", "--pretrained=none"], "--pretrained none: no such file"),
    (["OUT", "--data=DATA", "--eval=EVAL", "--threads=9999"], "--threads 9999: there are"),
    (["DATA/0.png", "--data=DATA", "--eval=EVAL"], "cannot be written"),
])
def test_mistakes_are_refused_in_one_line(tmp_path, words, says):
    from tests.test_train import make_images
    (tmp_path / "some").mkdir()
    data, flat = make_images(tmp_path / "some/data"), make_images(tmp_path / "flat")
    (tmp_path / "eval").mkdir()
    judge = [make_images(tmp_path / "eval" / kind) for kind in "ab"][0].parent
    for short, path in {"DATA": data, "EVAL": judge, "FLAT": flat, "OUT": tmp_path / "out"}.items():
        words = [word.replace(short, str(path)) for word in words]
    with pytest.raises(UserError, match=says) as error:
        ablation.main(words)
    assert "\n" not in str(error.value)


def test_what_a_command_says_and_how_it_ends(tmp_path):
    rows = Ablation(tmp_path, COMMON, GIVEN, [])
    assert rows.call("-c", "import sys; print(1); print(2, file=sys.stderr)") == "1\n"
    with pytest.raises(UserError, match="^data: no folder$"):
        rows.call("-c", "import sys; sys.exit('so it began\\nerror: data: no folder')")
    began = time.monotonic()
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    with rows.signals, pytest.raises(Stopped):
        timer.start()
        rows.call("-c", "import time; time.sleep(60)")
    assert time.monotonic() - began < 30 and rows.signals.seen == "SIGTERM"


def test_the_command_itself(tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks/ablation.py"), "out", "--quick", "--rows", "ours"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n|") == 3 and "| `ours` | LBN squeeze |" in done.stdout
