"""Synthetic adverts: what a class shares with others, the best accuracy that is possible, and that the text can be read."""
import csv
import re
from collections import Counter, defaultdict
from itertools import combinations

import cv2
import numpy as np
import pytest

from adverts.demo import TRADES, WITHOUT_TEXT, Kind, ceilings, draw, kinds, main
from adverts.split import make_split
from inference.errors import UserError
from inference.segments import make_reader


@pytest.mark.parametrize("count", range(6, 25))
def test_a_third_shares_its_drawing_and_a_third_its_text(count):
    classes = kinds(count)
    assert len(set(classes)) == len({kind.name for kind in classes}) == count  # both together always tell
    for field in ("drawing", "trade"):
        shared = Counter(getattr(kind, field) for kind in classes)
        assert set(shared.values()) == {1, 2} and Counter(shared.values())[2] == count // 6
    pairs = [sum(getattr(a, field) == getattr(b, field) for field in Kind._fields) for a, b in combinations(classes, 2)]
    assert max(pairs) == 1


@pytest.mark.parametrize("count", [6, 12, 17])
def test_ceilings_are_those_of_the_best_guess(count):
    """Every look of an advert, with its probability for each class: the best takes the likeliest class of each look."""
    classes, without = kinds(count), 1 / 8
    for name, seen in {"image": lambda kind, text: kind.drawing, "text": lambda kind, text: text and kind.trade,
                       "both": lambda kind, text: (kind.drawing, text and kind.trade)}.items():
        joint = defaultdict(lambda: np.zeros(count))
        for number, kind in enumerate(classes):
            joint[seen(kind, True)][number] += (1 - without) / count
            joint[seen(kind, False)][number] += without / count
        assert ceilings(classes, without)[name] == pytest.approx(sum(look.max() for look in joint.values()))
    best = ceilings(kinds(12), .05)
    assert best["both"] > best["image"] + .15 > best["text"] + .15  # fusion must win


def test_command(tmp_path, capsys):
    words = ["--classes", "6", "--each", "6", "--test-each", "20"]
    main(["--out", str(tmp_path / "d"), *words])
    assert "0.833 by image alone, 0.800 by text alone, 0.992 by both" in capsys.readouterr().out
    with open(tmp_path / "d/labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == sorted(f"test/{path.name}" for path in (tmp_path / "d/test").iterdir())
    assert Counter(row["label"] for row in rows) == {kind.name: 20 for kind in kinds(6)}
    assert [row["label"] for row in rows] != sorted(row["label"] for row in rows)  # names do not give classes away
    split = make_split(tmp_path / "d", tests=[str(tmp_path / "d/labels.csv")], folds=3)
    assert len(split.part("train")) == 36 and {row.file: row.label for row in split.part("test")} == {
        row["file"]: row["label"] for row in rows}
    main(["--out", str(tmp_path / "again"), *words])
    for path in (tmp_path / "d").rglob("*.jpg"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "d")).read_bytes()
    with pytest.raises(UserError, match="exists already"):
        main(["--out", str(tmp_path / "d"), *words])


def test_text_can_be_read_and_is_of_the_trade():
    assert len({word for words in TRADES.values() for word in words}) == sum(map(len, TRADES.values()))
    read, right, classes = make_reader(side=0), 0, kinds(12)

    def words(kind, number):
        return set(re.findall("[a-z]+", " ".join(segment.text for segment in read(draw(0, kind, number))).lower()))

    for kind in classes:
        found = words(kind, 0)
        right += len(found & set(TRADES[kind.trade])) >= 3  # of four
        assert not any(found & set(TRADES[other.trade]) for other in classes if other.trade != kind.trade)
    assert right >= len(classes) - 1
    assert words(classes[0], WITHOUT_TEXT // 2) == set()  # though a line of the drawing may be read as a Chinese one


def test_adverts_of_a_class_differ_but_keep_its_colors():
    """For most adverts the colors are nearer to those of their class than to those of other drawings."""
    classes = kinds(12)

    def look(kind, number):
        return np.bincount(cv2.resize(draw(0, kind, number), (64, 64)).reshape(-1, 3).astype(int) // 64 @ [16, 4, 1],
                           minlength=64) / 4096

    means = np.array([np.mean([look(kind, number) for number in range(8)], 0) for kind in classes])
    right = 0
    for row, kind in enumerate(classes):
        nearest = np.abs(means - look(kind, 8)).sum(1).argmin()
        right += classes[nearest].drawing == kind.drawing
        assert not np.array_equal(draw(0, kind, 0)[:100, :100], draw(0, kind, 1)[:100, :100])
    assert right >= 8


@pytest.mark.parametrize("options, message", [(["--classes", "5"], "give 6 to 24"), (["--classes", "25"], "give 6 to 24"),
                                              (["--each", "4"], "at least 5"), (["--test-each", "0"], "at least 1"),
                                              (["--seed", "-1"], "--seed -1")])
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        main(["--out", str(tmp_path / "d"), *options])
