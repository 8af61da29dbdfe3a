"""The submission: one row for each test image, in the split's order, of exactly the models that were tuned."""
import csv
import json
import random

import numpy as np
import pytest

from adverts.fusion import fit, read_models
from adverts.split import Split, write_split
from adverts.submit import main, write_submission
from inference.cli import exit_status
from tests.helpers.opinions import make_split, opinions, write


def prepare(folder, split):
    """Files of two models, split.csv and fusion.json in a folder. Returns the words of the command, without --out."""
    files = [write(folder / "look.safetensors", split, opinions(split, 1.5, 0)),
             write(folder / "tfidf.safetensors", split, opinions(split, 5, 1), "text")]
    write_split(folder / "split.csv", split)
    (folder / "fusion.json").write_text(json.dumps(fit(read_models(files, split), split)))
    return [*map(str, files), "--split", str(folder / "split.csv"), "--fusion", str(folder / "fusion.json")]


@pytest.fixture
def words(tmp_path):
    return prepare(tmp_path, make_split())


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def shuffled():
    """Its order is that of nothing: neither of names nor of labels. One file is named like a formula, one with a comma."""
    split = make_split()
    names = {"test/02.jpg": "test/a, b/02.jpg", "test/03.jpg": "test/=1+2 ü広告.jpg"}
    return Split(random.Random(3).sample([row._replace(file=names.get(row.file, row.file)) for row in split.rows],
                                         len(split.rows)))


def test_each_test_image_has_a_row_in_the_splits_order(shuffled, tmp_path):
    tests = [row for row in shuffled.rows if row.role == "test"]
    assert [row.file for row in tests] != sorted(row.file for row in tests)
    log_p = np.full((len(shuffled.rows), 4), -9.0)
    for place, row in enumerate(shuffled.rows):
        log_p[place, shuffled.classes.index(row.label) if row.label else 0] = 0
    assert write_submission(tmp_path / "s.csv", shuffled, log_p) == [f"{tmp_path}/s.csv: 16 images"]
    expected = [[row.file.removeprefix("test/").removeprefix("a, b/"), row.label] for row in tests]
    assert rows(tmp_path / "s.csv") == [["image_id", "category_id"], *expected]


def test_the_path_names_an_image_where_names_come_twice(shuffled, tmp_path):
    twice = Split([row._replace(file=f"test/{row.label}/1.jpg") if row.file in ("test/05.jpg", "test/06.jpg") else row
                   for row in shuffled.rows])
    note, = write_submission(tmp_path / "s.csv", twice, np.zeros((len(twice.rows), 4)) + np.arange(4))
    assert "image_id is the path" in note
    assert [name for name, _ in rows(tmp_path / "s.csv")[1:]] == [row.file for row in twice.rows if row.role == "test"]


def test_an_image_that_no_model_knows_has_a_row_too(shuffled, tmp_path):
    log_p = np.tile(np.arange(4.0), (len(shuffled.rows), 1))
    place = next(place for place, row in enumerate(shuffled.rows) if row.file == "test/07.jpg")
    log_p[place] = 0
    notes = write_submission(tmp_path / "s.csv", shuffled, log_p)
    assert len(rows(tmp_path / "s.csv")) == 17 and "1 of them, such as test/07.jpg" in notes[1]


def test_the_command(words, tmp_path, capsys):
    out = tmp_path / "submission.csv"
    assert not main([*words, "--out", str(out), "--report", str(tmp_path / "report")])
    assert "16 images" in capsys.readouterr().out and (tmp_path / "report" / "report.html").is_file()
    split, found = make_split(), dict(rows(out)[1:])
    label = {row.file.rpartition("/")[2]: row.label for row in split.rows if row.role == "test"}
    fusion = json.loads((tmp_path / "fusion.json").read_text())
    accuracy = np.mean([found[name] == label[name] for name in label])
    assert found.keys() == label.keys() and accuracy == pytest.approx(fusion["scores"][fusion["choice"]]["test"]["accuracy"])


def refused(words, capsys):
    assert exit_status(lambda: main(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_a_test_image_without_prediction_is_refused(words, tmp_path, capsys):
    logits = opinions(make_split(), 1.5, 0)
    del logits["test/09.jpg"]
    write(tmp_path / "look.safetensors", make_split(), logits)
    error = refused([*words, "--out", str(tmp_path / "s.csv")], capsys)
    assert "1 of 69 images are not predicted, such as test/09.jpg" in error
    assert not (tmp_path / "s.csv").exists()


def test_other_models_than_those_tuned_are_refused(words, tmp_path, capsys):
    out, split = ["--out", str(tmp_path / "s.csv")], make_split()
    assert "tfidf is missing, and is a model of the fusion" in refused([words[0], *words[2:], *out], capsys)
    third = write(tmp_path / "third.safetensors", split, opinions(split, 1, 2))
    assert "third is given, and is not a model" in refused([str(third), *words, *out], capsys)
    write(tmp_path / "look.safetensors", split, opinions(split, 1.5, 7))
    assert "look: its predictions have changed since the fusion was tuned" in refused([*words, *out], capsys)


def test_other_splits_and_fusions_are_refused(words, tmp_path, capsys):
    out, path = ["--out", str(tmp_path / "s.csv")], tmp_path / "fusion.json"
    fusion = json.loads(path.read_text())
    for change, says in (({"split": "0" * 16}, "another split, 0000"), ({"form": "sum"}, "cannot be used as a fusion"),
                         ({"models": fusion["models"][:1], "fallback": {}}, "tfidf is given")):
        path.write_text(json.dumps({**fusion, **change}))
        assert says in refused([*words, *out], capsys)
    parts = fusion["cross_fitted"]
    for wrong in ([], parts[:2], 3, [3, *parts[1:]], [{}, *parts[1:]], [{**parts[0], "models": []}, *parts[1:]]):
        path.write_text(json.dumps({**fusion, "cross_fitted": wrong}))
        assert "cross_fitted cannot be used" in refused([*words, *out], capsys)
    del fusion["cross_fitted"]
    path.write_text(json.dumps(fusion))
    assert "does not say how it was tuned" in refused([*words, *out], capsys)


def test_mistakes_in_the_command_are_one_line(words, tmp_path, capsys):
    out = ["--out", str(tmp_path / "s.csv")]
    assert "give --out, --report, or both" in refused(words, capsys)
    assert "give --report DIR too" in refused([*words, *out, "--data", str(tmp_path)], capsys)
    assert "no/s.csv" in refused([*words, "--out", str(tmp_path / "no" / "s.csv")], capsys)
    assert "fusion.json" in refused([*words[:-1], str(tmp_path / "no" / "fusion.json"), *out], capsys)


def test_without_test_images_there_is_a_report_alone(tmp_path, capsys):
    words = prepare(tmp_path, make_split(tests=0))
    assert "no images of role test" in refused([*words, "--out", str(tmp_path / "s.csv")], capsys)
    assert not main([*words, "--report", str(tmp_path / "report")])
    assert (tmp_path / "report" / "report.html").is_file()
