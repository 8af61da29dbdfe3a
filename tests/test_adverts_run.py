"""All stages by one command: what is done is not done again, what has changed is, and what was stopped is resumed."""
import argparse
import csv
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

import onnx_export
import train_v2
from adverts import ocr, run
from adverts.__main__ import main as adverts
from adverts.run import MODELS, Plan, Stage, Stages, alone, chosen_models, given_keys, main
from adverts.split import Row, Split, read_split
from inference.errors import UserError
from tests.helpers.stages import run_stage
from tests.helpers.texts import make_levels

ROOT = Path(__file__).parent.parent
TINY = ["ads_small.network=test_efficientnet", "ads_small.pretrained=false", "ads_small.freeze=0", "ads_small.image_size=32",
        "ads_small.max_steps=3", "ads_small.device=cpu", "ads_small.num_workers=0"]


def writes(out, text="x", log=None, more=""):
    """The words of a command that writes `text` to the file `out` and adds a line to the file `log`."""
    log = str(log or os.devnull)
    return ["-c", f"open({str(out)!r}, 'w').write({text!r}); open({log!r}, 'a').write('{text}\\n'); {more}"]


@pytest.fixture
def in_process(monkeypatch):
    """The commands run within the test's process, which has imported torch; their words are collected."""
    def wait_for(words, log):
        given.append(words)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", words)
            return {"train_v2.py": train_v2.main, "onnx_export.py": onnx_export.main,
                    "-m": lambda: adverts(words[2:])}[words[0]]() or 0

    given = []
    monkeypatch.setattr(run, "_wait_for", wait_for)
    return given


def test_from_a_folder_to_a_submission_and_a_classifier(tmp_path, in_process, capsys, monkeypatch):
    monkeypatch.setattr(ocr, "make_reader", make_levels)
    data, out = tmp_path / "data", tmp_path / "out"
    adverts(["demo", "--out", str(data), "--classes", "6", "--each", "5", "--test-each", "1"])
    words = ["--data", str(data), "--out", str(out), "--test", str(data / "labels.csv"), "--folds", "2",
             "--models", "tfidf", "thumbnail", "ads_small", "--set", *TINY]
    main(words)
    said = capsys.readouterr().out
    split = read_split(out / "split.csv")
    with open(out / "submission.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image_id", "category_id"]
    assert [row[0] for row in rows] == [row.file.removeprefix("test/") for row in split.part("test")]
    assert {row[1] for row in rows} <= set(split.classes) and len(rows) == 6
    assert (out / "report/report.html").stat().st_size > 10_000
    for name in ("tfidf", "thumbnail", "ads_small"):  # out of fold and test, in the table at the end
        assert re.search(rf"^{name}( \(used\))? +[01]\.\d{{3}}  [01]\.\d{{3}}$", said.split("out of fold   test")[-1], re.M)
    served = json.loads((out / "classifier/fusion.json").read_text())
    assert [model["name"] for model in served["models"]] == ["ads_small"] and (out / "classifier/image.onnx").is_file()
    student = next(words for words in in_process if "fold=-1" in words)
    assert f"teacher={out}/predictions/fused.safetensors" in student and "unlabeled=test" in student

    first = len(in_process)
    assert first == len(re.findall(r", about \d+ s: python ", said)) == 13
    main(words)
    assert len(in_process) == first and capsys.readouterr().out.count("done before") == first
    (out / "predictions/thumbnail.safetensors").unlink()
    main(words)
    assert [done[2] for done in in_process[first:]] == ["predict"]  # it comes out as before, so no later stage has to run
    capsys.readouterr()
    monkeypatch.setattr(run, "_wait_for", lambda words, log: 1)
    with pytest.raises(UserError, match="stage train ads_small fold 0 failed"):  # another rate: trained again
        main([*words, "ads_small.lr=1e-4"])
    assert capsys.readouterr().out.count("done before") == 4  # split, ocr and the models without training


def test_without_test_images_and_without_networks(tmp_path, in_process, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    adverts(["demo", "--out", str(data), "--classes", "6", "--each", "6", "--test-each", "1"])
    main(["--data", str(data / "train"), "--out", str(out), "--models", "thumbnail", "--quick"])
    assert read_split(out / "split.csv").folds == 3
    assert [words[2] for words in in_process] == ["split", "predict", "tune", "submit"]
    assert not (out / "submission.csv").exists() and not (out / "classifier").exists()
    main(["--data", str(data / "train"), "--out", str(out), "--models", "thumbnail", "--quick"])
    assert len(in_process) == 4
    (data / "train/coffee_d00/0000.jpg").unlink()  # other data: what depends on it is done again
    main(["--data", str(data / "train"), "--out", str(out), "--models", "thumbnail", "--quick"])
    assert len(in_process) == 8 and len(read_split(out / "split.csv").rows) == 35


def test_the_stages_of_images_and_texts():
    """The quick models first; a text is read before a model of texts wants it; what is served is tuned for itself."""
    rows = [Row(f"{name}/{i}.jpg", name, f"{name}{i}", "train", i) for name in "ab" for i in (0, 1)]
    args = argparse.Namespace(data="DIR", quick=False)
    names = [name for name, model in MODELS.items() if model.default]
    plan = Plan(args, Path("OUT"), Split(rows), "digest", names, {"ads_small": ["lr=1"]}).stages()
    plan = {stage.name: stage for stage in plan}
    assert list(plan) == [
        "predict thumbnail", "ocr", "predict tfidf", "train ads_text_small fold 0", "train ads_text_small fold 1",
        "predict ads_text_small", "train ads_small fold 0", "train ads_small fold 1", "predict ads_small", "tune", "submit",
        "train ads_text_small all", "export ads_text_small", "train ads_small all", "export ads_small", "tune served",
        "classifier"]
    assert plan["train ads_text_small fold 1"].words == [
        "train_v2.py", "configs/ads_text_small", "texts=OUT/texts.jsonl", "split=OUT/split.csv", "fold=1",
        "output=OUT/runs/ads_text_small_fold1", "resume=auto"]
    assert plan["train ads_small all"].words[2:5] == ["data=DIR", "split=OUT/split.csv", "fold=-1"]  # nobody to be taught
    assert plan["train ads_small all"].words[-1] == "lr=1"
    assert plan["classifier"].words[3:] == ["--image", "OUT/runs/ads_small_all", "--text", "OUT/runs/ads_text_small_all",
                                            "--fusion", "OUT/served.json", "--out", "OUT/classifier"]
    made = set()  # each file that a stage reads is written by one before it
    for stage in plan.values():
        assert {path for path in stage.inputs if isinstance(path, Path)} <= made | {Path("OUT/split.csv")}
        made |= set(stage.outputs)


def test_a_stage_is_done_again_when_it_must_be(tmp_path, capsys):
    source, first, second, log = (tmp_path / name for name in ("source", "first", "second", "log"))
    source.write_text("1")

    def count(text="x", setting="a"):
        stages = Stages(tmp_path)  # as another start of the program has it
        for stage in (Stage("one", writes(first, text, log), [source, setting], [first]),
                      Stage("two", writes(second, "y", log), [first], [second])):
            stages.run(stage)
        return log.read_text().split()

    assert count() == ["x", "y"] and count() == ["x", "y"]
    source.write_text("2")
    assert count() == ["x", "y", "x"]          # what it writes is the same, so the second one stays
    assert count("z") == ["x", "y", "x", "z", "y"]
    assert count("z", "b") == ["x", "y", "x", "z", "y", "z"]
    second.write_text("damaged")
    assert count("z", "b")[-1:] == ["y"] and len(log.read_text().split()) == 7
    first.unlink()
    assert count("z", "b")[-1:] == ["z"] and len(log.read_text().split()) == 8
    assert capsys.readouterr().out.count("done before") == 2 + 1 + 1 + 1 + 1


def test_a_stage_that_fails_is_not_done(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"stage one failed \(3\), its error is above"):
        Stages(tmp_path).run(Stage("one", writes(out, more="raise SystemExit(3)"), [], [out]))
    with pytest.raises(UserError, match="stage one has not written"):
        Stages(tmp_path).run(Stage("one", ["-c", "pass"], [], [tmp_path / "other"]))
    stage = Stage("train", ["-c", "print('why'); raise SystemExit(2)"], [], [out], folder=tmp_path / "run")
    with pytest.raises(UserError, match="logs/train.log says why"):
        Stages(tmp_path).run(stage)
    assert (tmp_path / "logs/train.log").read_text() == "why\n"
    assert not Stages(tmp_path).done(stage)


def test_a_run_resumes_unless_its_command_has_changed(tmp_path):
    folder = tmp_path / "run"
    for words, kept in ((["-c", "raise SystemExit(1)"], False), (["-c", "raise SystemExit(1)"], True),
                        (["-c", "raise SystemExit(2)"], False)):
        stage = Stage("train", words, [], [folder / "model.pt"], folder=folder)
        with pytest.raises(UserError):
            Stages(tmp_path).run(stage)
        assert (folder / "checkpoint").exists() == kept
        folder.mkdir(exist_ok=True)
        (folder / "checkpoint").write_text("")


def test_a_run_that_had_ended_and_lost_its_files_begins_anew(tmp_path):
    """A training that resumes at its end has nothing more to do, and writes no model."""
    folder = tmp_path / "run"
    code = f"""
from pathlib import Path
folder = Path({str(folder)!r})
if not (folder / "checkpoint").exists():
    folder.mkdir()
    (folder / "checkpoint").write_text("")
    (folder / "model.pt").write_text("")
"""
    stage = Stage("train", ["-c", code], [], [folder / "model.pt"], folder=folder)
    Stages(tmp_path).run(stage)
    (folder / "model.pt").unlink()
    Stages(tmp_path).run(stage)
    assert (folder / "model.pt").exists()


def test_a_training_that_was_stopped_alone_is_not_done(tmp_path):
    """It saves and ends as it should: only how far it has come tells."""
    folder = tmp_path / "run"
    code = f"""
from pathlib import Path
folder = Path({str(folder)!r})
(folder / f"checkpoints/step-{{6 if folder.exists() else 4}}").mkdir(parents=True)
(folder / "run.json").write_text('{{"steps": 6}}')
(folder / "model.pt").write_text("")
"""
    stage = Stage("train", ["-c", code], [], [folder / "model.pt"], folder=folder)
    with pytest.raises(UserError, match="stage train was stopped at step 4 of 6; run the command again to resume"):
        Stages(tmp_path).run(stage)
    assert not Stages(tmp_path).done(stage)
    Stages(tmp_path).run(stage)
    assert Stages(tmp_path).done(stage) and (folder / "checkpoints/step-4").exists()


@pytest.mark.parametrize("number, whole_group", [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)])
def test_stopped_it_lets_the_command_save_and_resumes(tmp_path, number, whole_group):
    """A terminal sends SIGINT to the whole group, `kill` a signal to the program alone."""
    ready, saved, out = (tmp_path / name for name in ("ready", "saved", "out"))
    code = f"""
import signal, sys, time
from pathlib import Path
def save(*_):
    time.sleep(.5)
    Path({str(saved)!r}).write_text("")
    sys.exit(0)
if not Path({str(saved)!r}).exists():
    signal.signal(signal.SIGINT, save), signal.signal(signal.SIGTERM, save)
    Path({str(ready)!r}).write_text("")
    time.sleep(60)
Path({str(out)!r}).write_text("")
"""
    stage = Stage("train", ["-c", code], [], [out], folder=tmp_path / "run")
    program = multiprocessing.get_context("spawn").Process(target=run_stage, args=(tmp_path, stage))
    program.start()
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert time.monotonic() < deadline and program.is_alive()
        time.sleep(.01)
    if whole_group:
        os.killpg(program.pid, number)
    else:
        os.kill(program.pid, number)
    program.join(30)
    assert program.exitcode == 130 and saved.exists() and not out.exists()
    assert not Stages(tmp_path).done(stage)
    Stages(tmp_path).run(stage)
    assert out.exists() and Stages(tmp_path).done(stage)


def test_models_and_their_keys():
    assert chosen_models([]) == [name for name, model in MODELS.items() if model.default]
    assert chosen_models(["tfidf", "thumbnail", "tfidf"]) == ["tfidf", "thumbnail"]
    with pytest.raises(UserError, match="--models bert: not known; choose from thumbnail"):
        chosen_models(["bert"])
    assert given_keys(["ads_small.lr=1", "ads_small.a.b=c=d"], ["ads_small"]) == {"ads_small": ["lr=1", "a.b=c=d"]}
    for word in ("lr=1", "ads_small.lr", "tfidf.lr=1", "ads_b4.lr=1"):
        with pytest.raises(UserError, match="give MODEL.KEY=VALUE"):
            given_keys([word], ["ads_small", "tfidf"])
    for word in ("ads_small.fold=1", "ads_small.output=DIR", "ads_small.split=s.csv"):
        with pytest.raises(UserError, match="is set here for each training"):
            given_keys([word], ["ads_small"])


def test_without_the_reader_of_text_one_line_names_the_way_out(monkeypatch):
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install rapidocr, or give --models thumbnail"):
        chosen_models([])
    assert chosen_models(["thumbnail"]) == ["thumbnail"]


@pytest.mark.parametrize("content", ["{", "[1]", '{"split": 3}', "[" * 100_000])
def test_records_that_are_damaged(tmp_path, content):
    (tmp_path / "stages.json").write_text(content)
    with pytest.raises(UserError, match="cannot be read; remove it"):
        Stages(tmp_path)


def test_commands_are_set_up_for_speed_unless_the_user_has_said_otherwise(tmp_path, monkeypatch):
    for name in run.SPEED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    out = tmp_path / "out"
    code = f"import json, os; json.dump(dict(os.environ), open({str(out)!r}, 'w'))"
    Stages(tmp_path).run(Stage("one", ["-c", code], [], [out]))
    seen = json.loads(out.read_text())
    assert seen.items() >= {**run.SPEED, "GOMP_SPINCOUNT": "7"}.items() and seen["PATH"] == os.environ["PATH"]
    with open(ROOT / "run.sh") as script:  # the same for all that the project runs
        told = re.findall(r"\b([A-Z_]+)=(?:\$\{\w+:-)?(\d+)", "".join(line for line in script if line.startswith("export")))
    assert told and dict(told).items() <= run.SPEED.items()


def test_two_at_once_in_one_folder_are_refused(tmp_path, capsys):
    words = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--models", "thumbnail"]
    with alone(tmp_path / "out"):
        with pytest.raises(UserError, match="another `adverts run` is at work there"):
            main(words)
    with pytest.raises(UserError, match="data: no such folder"):  # the lock is free again
        main(words)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out .*file: cannot be written"):
        main([*words, "--out", str(tmp_path / "file")])


def test_mistakes_are_told_before_anything_is_begun(tmp_path, in_process):
    for more, says in ((["--folds", "1"], "--folds 1"), (["--test-share", "2"], "--test-share"), (["--models", "x"], "x")):
        with pytest.raises(UserError, match=says):
            main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), *more])
    assert not in_process and not (tmp_path / "out").exists()


def test_a_broken_link_is_no_image_but_stops_nothing(tmp_path, in_process, capsys):
    data = tmp_path / "data"
    adverts(["demo", "--out", str(data), "--classes", "6", "--each", "5", "--test-each", "1"])
    (data / "train/coffee_d00/link.jpg").symlink_to("nowhere.jpg")
    main(["--data", str(data), "--out", str(tmp_path / "out"), "--models", "thumbnail", "--quick"])
    assert "skipped: train/coffee_d00/link.jpg" in capsys.readouterr().err
    with open(tmp_path / "out/submission.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 1 + 6
