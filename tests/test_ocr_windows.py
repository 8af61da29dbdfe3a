"""Sheets of lines: what is refused, and vertical lines. tests/test_two_stage.py has what they show."""
import json

import cv2
import numpy as np
import pytest

from inference.cli import exit_status
from inference.lines import CATEGORIES
from ocr.windows import main

CHARACTERS = [[10, 4, 18, 60], [10, 70, 18, 74], [10, 90, 18, 110]]  # x0 y0 x1 y1 of "ab c", downward


@pytest.fixture
def folder(tmp_path):
    """A vertical line whose COCO file does not say so; the first letter is the one most to the right."""
    (tmp_path / "lines" / "images").mkdir(parents=True)
    image = np.full((120, 32), 255, np.uint8)
    annotations = []
    for at, (x0, y0, x1, y1) in enumerate(CHARACTERS):
        x0, x1 = x0 - 2 * at, x1 - 2 * at
        image[y0:y1, x0:x1] = 0
        annotations.append({"id": at, "image_id": 0, "category_id": 0, "bbox": [x0, y0, x1 - x0, y1 - y0]})
    cv2.imwrite(str(tmp_path / "lines" / "images" / "a.png"), image)
    (tmp_path / "lines" / "lines.tsv").write_text("file\ttext\na.png\tab c\n")
    (tmp_path / "lines" / "coco.json").write_text(json.dumps({"images": [
        {"id": 0, "file_name": "a.png", "width": 32, "height": 120}], "categories": CATEGORIES, "annotations": annotations}))
    return tmp_path


def run(*words):
    return exit_status(lambda: main([*map(str, words)]))


def test_vertical_lines_are_cut_between_their_words(folder):
    assert run(folder / "lines", "--out", folder / "sheets", "--vertical", "--height", 32, "--side", 128) == 0
    boxes = [entry for entry in json.loads((folder / "sheets" / "coco.json").read_text())["annotations"]]
    words = [entry["bbox"] for entry in boxes if entry["category_id"] == 1]
    assert [[round(edge) for edge in (x, x + w)] for x, _, w, _ in words] == [[4, 74], [90, 110]]  # "ab" and "c"


@pytest.mark.parametrize("more, told", [
    (["--seed", -1], "--seed -1"), (["--count", -1], "--count -1"), (["--side", 99968], "multiple of --height"),
    (["--where", "book=a"], "no column")])
def test_options_that_make_no_sense_are_one_line_and_write_nothing(folder, capsys, more, told):
    assert run(folder / "lines", "--out", folder / "sheets", *more) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["lines"]


def test_a_folder_with_something_in_it_stays_as_it_is(folder, capsys):
    (folder / "sheets").mkdir()
    (folder / "sheets" / "coco.json").write_text("mine")
    assert run(folder / "lines", "--out", folder / "sheets") == 2 and "exists already" in capsys.readouterr().err
    assert [path.name for path in (folder / "sheets").iterdir()] == ["coco.json"]
