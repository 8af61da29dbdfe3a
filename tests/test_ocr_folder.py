"""Folders of lines: what is read, how it is selected, and what is refused."""
import json
import logging

import cv2
import numpy as np
import pytest

from inference.errors import UserError
from inference.lines import CATEGORIES
from ocr.folder import new_folder, read_lines

ROWS = [("a.png", "in a", "x"), ("b.png", "“So,”", "x"), ("c.png", "no", "y"), ("d.png", "", "z")]


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, ROWS)
    return tmp_path


def write(folder, rows, header="file\ttext\tbook"):
    (folder / "images").mkdir(exist_ok=True)
    for file, *_ in rows:
        cv2.imwrite(str(folder / "images" / file), np.full((8, 20), 255, np.uint8))
    (folder / "lines.tsv").write_text("\n".join([header, *map("\t".join, rows)]) + "\n", encoding="utf-8")


def write_boxes(folder, boxes, **image):
    """coco.json with these boxes (x, y, w, h) of a.png."""
    (folder / "coco.json").write_text(json.dumps({
        "images": [{"id": 7, "file_name": "a.png", "width": 20, "height": 8, "text": "in a", **image}],
        "categories": CATEGORIES,
        "annotations": [{"id": i, "image_id": 7, "category_id": kind, "bbox": box} for i, (kind, box) in enumerate(boxes)]}))


def test_lines_have_path_text_and_further_columns(folder):
    lines = read_lines(folder)
    assert [(line.file, line.text, line.fields) for line in lines] == [(f, t, {"book": b}) for f, t, b in ROWS]
    assert all(line.boxes is None and line.path == folder / "images" / line.file for line in lines)


def test_windows_ends_byte_order_mark_and_quotes_are_read_as_they_are(folder):
    text = '\ufefffile\ttext\r\na.png\t"He said\r\nb.png\tall" \r\n'
    (folder / "lines.tsv").write_bytes(text.encode())
    assert [line.text for line in read_lines(folder)] == ['"He said', 'all" ']


def test_images_may_lie_in_the_folder_or_anywhere(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "e.png"
    (folder / "images" / "a.png").rename(other)
    (folder / "images" / "b.png").rename(folder / "b.png")
    write_rows = f"file\ttext\n{other}\tone\nb.png\ttwo\nimages/c.png\tthree\n"
    (folder / "lines.tsv").write_text(write_rows)
    assert [line.path for line in read_lines(folder)] == [other, folder / "b.png", folder / "images" / "c.png"]


@pytest.mark.parametrize("where, files", [("book=x", "ab"), ("book!=x", "cd"), ("book=y,z", "cd"), ("file=c.png", "c")])
def test_lines_are_selected_by_a_column(folder, where, files):
    assert [line.file[0] for line in read_lines(folder, where)] == list(files)


def test_a_smaller_draw_is_a_part_of_a_larger_one(tmp_path):
    write(tmp_path, [(f"{i}.png", "text", "x") for i in range(40)])
    draws = [{line.file for line in read_lines(tmp_path, count=count, seed=3)} for count in (5, 20, 40, 1000)]
    assert [len(draw) for draw in draws] == [5, 20, 40, 40] and draws[0] < draws[1] < draws[2]
    assert draws[0] != {line.file for line in read_lines(tmp_path, count=5, seed=4)}


def test_boxes_are_sorted_along_the_line_by_their_centers(folder):
    # The second letter begins left of the first, as an italic j after an f; the word's box does not count.
    write_boxes(folder, [(1, [0, 0, 9, 8]), (0, [12, 1, 4, 5]), (0, [3, 0, 6, 8]), (0, [2, 0, 2, 8])])
    boxes = read_lines(folder)[0].boxes
    assert boxes.dtype == np.float32
    assert boxes.tolist() == [[2, 0, 4, 8], [3, 0, 9, 8], [12, 1, 16, 6]]


def test_boxes_of_a_vertical_line_are_sorted_downward(folder):
    write_boxes(folder, [(0, [0, 9, 2, 2]), (0, [5, 1, 2, 2]), (0, [3, 5, 2, 2])], vertical=True)
    assert read_lines(folder)[0].boxes[:, 1].tolist() == [1, 5, 9]


def test_boxes_that_do_not_match_the_text_are_reported_and_not_used(folder, caplog):
    write_boxes(folder, [(0, [1, 1, 2, 2])])
    with caplog.at_level(logging.WARNING):
        assert all(line.boxes is None for line in read_lines(folder))
    assert len(caplog.records) == 1 and "1 of 4 lines" in caplog.text


@pytest.mark.parametrize("box", [[5, 1, 0, 2], [5, 1, 2, -2], [float("nan"), 1, 2, 2], [5, 1, 1e30, 2],
                                 [5, float("-inf"), 2, 2]])
def test_boxes_without_area_are_reported_and_not_used(folder, caplog, box):
    write_boxes(folder, [(0, [1, 1, 2, 2]), (0, box), (0, [9, 1, 2, 2])])
    assert read_lines(folder)[0].boxes is None and "1 of 4 lines" in caplog.text
    write_boxes(folder, [(0, [1, 1, 2, 2]), (0, [5, 1, 2, 2]), (0, [9, 1, 2, 2])])
    assert len(read_lines(folder)[0].boxes) == 3


def test_a_broken_coco_file_does_not_matter_where_no_boxes_are_wanted(folder):
    (folder / "coco.json").write_text("{")
    assert len(read_lines(folder, with_boxes=False)) == 4


@pytest.mark.parametrize("numbers, told", [({"count": -1}, "--count -1"), ({"count": 2, "seed": -1}, "--seed -1")])
def test_numbers_below_0_are_refused(folder, numbers, told):
    with pytest.raises(UserError, match=told):
        read_lines(folder, **numbers)


def test_a_new_folder_is_complete_or_absent(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as part:
        (part / "file").write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()  # empty: may be written to
    with new_folder(tmp_path / "out") as part:
        (part / "file").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "file").read_text() == "whole"
    for path in (tmp_path / "out", tmp_path / "out" / "file"):
        with pytest.raises(UserError, match="exists already"), new_folder(path):
            pytest.fail("there is something")
    with pytest.raises(UserError, match="cannot be written"), new_folder(tmp_path / "out" / "file" / "below"):
        pytest.fail("a file has no folder")
    assert (tmp_path / "out" / "file").read_text() == "whole"


@pytest.mark.parametrize("content, told", [
    (None, "lines.tsv: cannot be read"), ("image\ttext\na.png\tone\n", "no column 'file'"),
    ("file\tbook\na.png\tx\n", "no column 'text'"), ("file\ttext\n\n", "no lines"),
    ("file\ttext\na.png\tone\ttwo\n", "line 2 has 3 columns"), ("file\ttext\na.png\tone\na.png\ttwo\n", "lists a.png again"),
    ("file\ttext\na.png\tone\nimages/a.png\ttwo\n", "lists images/a.png again"),
    ("file\ttext\n" + "the text in the wrong column " * 10 + "\ta.png\n", "is neither in"),
    ("file\ttext\nlost.png\tone\n", "lost.png is neither in"), ("file\ttext\n../\tone\n", "is neither in")])
def test_a_table_that_is_none_is_refused_in_one_line(folder, content, told):
    (folder / "lines.tsv").unlink()
    if content is not None:
        (folder / "lines.tsv").write_text(content)
    with pytest.raises(UserError, match=told) as caught:
        read_lines(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where, told", [
    ("page=1", "no column 'page'"), ("book", "COLUMN=VALUE"), ("book=q", "no line with")])
def test_a_selection_that_selects_nothing_is_refused(folder, where, told):
    with pytest.raises(UserError, match=told):
        read_lines(folder, where)


@pytest.mark.parametrize("content", [
    "{", "[]", "3", '{"images": [], "categories": []}', '{"images": [{"id": 1}], "categories": [], "annotations": []}',
    '{"images": [], "categories": [{"id": 0, "name": "char"}], '
    '"annotations": [{"id": 0, "image_id": 1, "category_id": 0, "bbox": [1, 2, 3, 4]}]}',
    '{"images": [], "categories": [], "annotations": [{"id": 0, "image_id": 1, "category_id": 0, "bbox": [1, 2, "x"]}]}',
    '{"images": [], "categories": [], "annotations": [{"id": 0, "image_id": [1], "category_id": 0, "bbox": [1, 2, 3, 4]}]}',
    '{"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}], "categories": [], "annotations": []}',
    '{"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "images/a.png"}], "categories": [], '
    '"annotations": []}', "[" * 100_000])
def test_broken_json_is_refused_in_one_line(folder, content):
    (folder / "coco.json").write_text(content)
    with pytest.raises(UserError, match="coco.json: not a COCO file of lines") as caught:
        read_lines(folder)
    assert "\n" not in str(caught.value)
