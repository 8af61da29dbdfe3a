"""The command that predicts a split: what it says and refuses before it begins. What runs say: test_labels.py."""
from types import SimpleNamespace

import pytest
import torch

from adverts.split import write_split
from adverts.texts import write_texts
from engine.predictions import read_predictions
from inference.errors import UserError
from tests.helpers.opinions import make_split, opinions
from tools import predict


@pytest.fixture
def split(tmp_path):
    found = make_split()
    write_split(tmp_path / "split.csv", found)
    return found


def words(tmp_path, *more):
    return ["--data", str(tmp_path), "--split", str(tmp_path / "split.csv"), "--out", str(tmp_path / "P"), *more]


def fake_runs(monkeypatch, split, **keys):
    """Runs of the folds 0, 1, 2 whose networks say the same."""
    said = {name: torch.tensor(z) for name, z in opinions(split, 3, 0).items()}
    task = SimpleNamespace(sees="image", predict_split=lambda cfg, network, names, data, texts: (
        {name: said[name] for name in names}, {}))
    cfg = SimpleNamespace(**{"task": "any", "teacher": "", "teacher_weight": 1.0, **keys})
    monkeypatch.setattr(predict, "get_task", lambda name: task)
    monkeypatch.setattr(predict, "_load", lambda run, split: (None, cfg, torch.arange(4), int(run)))


@pytest.mark.parametrize("keys, says", [({}, ""), ({"teacher": "fused"}, "it had a teacher"),
                                        ({"teacher": "fused", "teacher_weight": 0.0}, "")])
def test_runs_that_may_know_their_fold_are_a_warning(split, tmp_path, monkeypatch, capsys, keys, says):
    """A fusion of all folds knows the labels of the fold that a student holds out."""
    fake_runs(monkeypatch, split, **keys)
    assert predict.main(words(tmp_path, "0", "1", "2")) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "may be too good" in line]
    assert [f"of fold {fold} " in line and says in line for fold, line in enumerate(told)] == [True] * 3 * bool(says)
    assert read_predictions(tmp_path / "P").folds.tolist().count(-1) == 24


def test_a_run_of_all_folds_with_a_teacher_is_as_it_should_be(split, tmp_path, monkeypatch, capsys):
    """It speaks of no image that it could have learned from."""
    fake_runs(monkeypatch, split, teacher="fused")
    assert predict.main(words(tmp_path, "-1")[:-1] + ["--", "-1"]) == 0
    assert "too good" not in capsys.readouterr().err
    assert set(read_predictions(tmp_path / "P").ids) == {row.file for row in split.rows if row.role != "train"}


@pytest.mark.parametrize("more, says", [
    ([], "give runs, or --model"), (["0", "--model", "tfidf"], "give runs, or --model"),
    (["--model", "tfidf"], "give --texts"), (["--model", "thumbnail", "--out", "no/P"], "no/P: its folder does not exist"),
    (["--model", "thumbnail"], "none of the 69 images"), (["nowhere"], "nowhere")])
def test_mistakes_are_one_line(split, tmp_path, more, says):
    with pytest.raises(UserError, match=says) as error:
        predict.main(words(tmp_path, *more))
    assert "\n" not in str(error.value) and not (tmp_path / "P").exists()


def test_without_any_text_there_is_nothing_to_learn_from(split, tmp_path):
    write_texts(tmp_path / "texts.jsonl", ((row.file, [], "") for row in split.rows))
    with pytest.raises(UserError, match="tfidf: without fold 0 there are not two classes"):
        predict.main(words(tmp_path, "--model", "tfidf", "--texts", str(tmp_path / "texts.jsonl")))
