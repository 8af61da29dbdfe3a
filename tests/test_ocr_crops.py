"""Crops of characters and words. Lines whose characters are blocks of a gray that tells which one it is."""
import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from inference.cli import exit_status
from inference.crops import class_folder, class_text, crop
from ocr.crops import main

GROUND, HEIGHT = 250, 40
LETTERS = {character: 5 + 6 * i for i, character in enumerate("abcdefghijklmnopqrstuvwxyzA.é一/")}  # the gray of each


def drawn(r, text, vertical=False):
    """(image, boxes x y w h) of a line: each character a block in its gray. Words are 8 pixels apart, characters 2."""
    image, boxes, at = np.full((HEIGHT, 30 * len(text) + 16), GROUND, np.uint8), [], 4
    for character in text:
        if character == " ":
            at += 6
            continue
        w, h = int(r.integers(4, 20)), int(r.integers(4, 20))
        y = int(r.integers(4, HEIGHT - h - 4))
        image[y:y + h, at:at + w] = LETTERS[character]
        boxes.append([at, y, w, h])
        at += w + 2
    image = image[:, :at + 4]
    if vertical:
        image, boxes = image.T, [[y, x, h, w] for x, y, w, h in boxes]
    return image, boxes


def folder_of(folder, texts, seed=0, vertical=False, edit=None):
    """A folder of lines with boxes in random order. edit: what to change in the COCO file before it is written."""
    r = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    images, annotations, boxes_of = [], [], {}
    for number, text in enumerate(texts):
        image, boxes = drawn(r, text, vertical)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
        images.append({"id": number + 50, "file_name": f"{number}.png", "width": image.shape[1], "height": image.shape[0],
                       "text": text})
        boxes_of[f"{number}.png"] = boxes
        annotations += [{"id": len(annotations) + i, "image_id": number + 50, "category_id": 7, "bbox": boxes[place]}
                        for i, place in enumerate(r.permutation(len(boxes)))]
        annotations.append({"id": len(annotations), "image_id": number + 50, "category_id": 3,  # a word is no character
                            "bbox": [0, 0, image.shape[1], image.shape[0]]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "char"},
                                                                            {"id": 3, "name": "word"}]}
    if edit:
        edit(content)
    (folder / "coco.json").write_text(json.dumps(content))
    (folder / "lines.tsv").write_text("file\ttext\tbook\n" + "".join(
        f"{i}.png\t{text}\t{'ab'[i % 2]}\n" for i, text in enumerate(texts)), encoding="utf-8")
    return boxes_of


def random_texts(seed, count=8):
    r = np.random.default_rng(seed)
    word = lambda: "".join(r.choice(list(LETTERS), r.integers(1, 7)))
    return [" ".join(word() for _ in range(r.integers(1, 4))) for _ in range(count)]


def run(*words):
    return exit_status(lambda: main([str(word) for word in words]))


def coco_of(folder):
    return "--coco", folder / "coco.json", "--images", folder / "images"


def table(folder):
    with open(folder / "crops.tsv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def grays(folder, row):
    """The grays of a crop that are not its ground, the most frequent first."""
    pixels = cv2.imread(str(folder / row["file"]), cv2.IMREAD_GRAYSCALE)
    values, counts = np.unique(pixels[pixels != GROUND], return_counts=True)
    return values[np.argsort(-counts)].tolist()


# ---------------------------------------------------------------- one crop
@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_tight_crop_is_the_box_in_a_square_of_the_ground(channels):
    image = np.full((40, 100, *channels), GROUND, np.uint8)
    image[10:20, 50:54] = 7
    pixels = crop(image, (50, 10, 54, 20), "tight", 0)
    assert pixels.shape == (12, 12, *channels)  # a pixel more on each side of the longer one
    ink = np.zeros((12, 12, *channels), bool)
    ink[1:11, 4:8] = True
    assert (pixels == np.where(ink, 7, GROUND)).all()
    assert crop(image, (50, 10, 54, 20), "tight", 48).shape == (48, 48, *channels)


def test_the_pad_is_a_share_of_the_longer_side():
    image = np.full((100, 300), GROUND, np.uint8)
    assert crop(image, (100, 20, 140, 60), "tight", 0, pad=.05).shape == (44, 44)
    assert crop(image, (100, 20, 140, 60), "tight", 0, pad=.25).shape == (60, 60)


@pytest.mark.parametrize("top", [2, 15, 30])
def test_a_crop_of_the_whole_height_keeps_the_place_on_the_line(top):
    image = np.full((40, 100), GROUND, np.uint8)
    image[top:top + 6, 50:56] = 7
    pixels = crop(image, (50, top, 56, top + 6), "line", 0)
    assert pixels.shape == (40, 40) and (np.nonzero((pixels == 7).any(1))[0] == np.arange(top, top + 6)).all()
    turned = crop(image.T, (top, 50, top + 6, 56), "line", 0, vertical=True)
    assert (turned == pixels.T).all()


def test_the_rest_of_the_square_has_the_color_of_the_border():
    image = np.full((40, 100, 3), (200, 220, 240), np.uint8)
    image[10:14, 40:60] = 0
    pixels = crop(image, (40, 10, 60, 14), "tight", 0)
    assert pixels.shape == (22, 22, 3) and (pixels[0] == (200, 220, 240)).all() and (pixels[-1] == (200, 220, 240)).all()


def test_a_box_beyond_the_image_shows_what_is_in_it_and_one_outside_is_refused():
    image = np.full((40, 100), GROUND, np.uint8)
    image[30:, 90:] = 7
    assert crop(image, (90, 30, 115, 60), "tight", 64).min() == 7
    for box in ((100, 0, 110, 40), (-9, 0, 0, 40), (10, 40, 20, 50), (10, 10, 10, 20), (20, 10, 10, 20), (np.nan, 0, 9, 9)):
        with pytest.raises(ValueError, match="no pixel"):
            crop(image, box)
    with pytest.raises(ValueError, match="tight, line"):
        crop(image, (0, 0, 9, 9), "loose")


def test_class_folders_are_safe_and_say_their_text():
    texts = ["A", " ", "é", "一", "an", "../x", ".", "CON", "𝔄", "a-b", "\\", "\n"]
    names = [class_folder(text) for text in texts]
    assert names[:5] == ["65", "32", "233", "19968", "97-110"] and [class_text(name) for name in names] == texts
    assert all(set(name) <= set("0123456789-") for name in names) and len(set(names)) == len(names)
    for name in ("", "a", "065", "65-", "1114112", "٦", "crops.tsv"):
        with pytest.raises(ValueError):
            class_text(name)
    with pytest.raises(ValueError):
        class_folder("x" * 100)
    with pytest.raises(ValueError):
        class_folder("")


# ---------------------------------------------------------------- crops of lines
@pytest.mark.parametrize("kind", ["tight", "line"])
@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_each_crop_shows_the_character_that_it_is_filed_under(tmp_path, seed, kind, vertical):
    texts = random_texts(seed)
    boxes_of = folder_of(tmp_path / "lines", texts, seed, vertical)
    assert run(tmp_path / "lines", "--out", tmp_path / "crops", "--crop", kind, "--size", 0, *["--vertical"] * vertical) == 0
    rows = table(tmp_path / "crops")
    assert [(row["source"], row["text"]) for row in rows] \
        == [(f"{i}.png", character) for i, text in enumerate(texts) for character in text.replace(" ", "")]
    boxes = [[x, y, x + w, y + h] for source in boxes_of for x, y, w, h in boxes_of[source]]
    assert [[float(edge) for edge in row["box"].split()] for row in rows] == boxes
    for row in rows:
        assert Path(row["file"]).parent.name == str(ord(row["text"]))
        assert grays(tmp_path / "crops", row)[0] == LETTERS[row["text"]]
    files = {path.relative_to(tmp_path / "crops").as_posix() for path in (tmp_path / "crops").rglob("*.png")}
    assert files == {row["file"] for row in rows} and len(files) == len(rows)


def test_spaces_are_a_class_of_their_own_where_they_are_kept(tmp_path):
    """EffOCR's list of references is split at white space: this class vanishes, and every later label is another one."""
    texts = random_texts(5)
    folder_of(tmp_path / "lines", texts)
    assert run(tmp_path / "lines", "--out", tmp_path / "crops", "--spaces", "keep", "--size", 0) == 0
    rows = table(tmp_path / "crops")
    assert [row["text"] for row in rows] == list("".join(texts)) and " " in [row["text"] for row in rows]
    for row in rows:
        x0, y0, x1, y1 = map(float, row["box"].split())
        if row["text"] == " ":
            assert row["file"].startswith("32/") and x1 - x0 == 4  # half of the gap
            assert not grays(tmp_path / "crops", row)
        else:
            assert grays(tmp_path / "crops", row)[0] == LETTERS[row["text"]]


@pytest.mark.parametrize("vertical", [False, True])
def test_words_show_all_their_characters(tmp_path, vertical):
    texts = [*random_texts(6), "../ ./.", "z" * 70]  # the last is too long for the name of a folder
    mark = lambda content: [image.update(vertical=vertical) for image in content["images"]]
    folder_of(tmp_path / "lines", texts, vertical=vertical, edit=mark)
    assert run(tmp_path / "lines", "--out", tmp_path / "crops", "--words", "--size", 0) == 0
    rows = table(tmp_path / "crops")
    assert [row["text"] for row in rows] == [word for text in texts[:-1] for word in text.split()]
    for row in rows:
        assert class_text(Path(row["file"]).parent.as_posix()) == row["text"]
        assert set(grays(tmp_path / "crops", row)) == {LETTERS[character] for character in row["text"]}
    assert {path.parent.parent for path in tmp_path.rglob("*.png")} == {tmp_path / "lines", tmp_path / "crops"}


def test_lines_whose_numbers_differ_are_reported_and_not_fatal(tmp_path, capsys):
    texts = random_texts(7, 6)
    longer = lambda content: [image.update(text=image["text"] + "x") for image in content["images"][:4]]
    folder_of(tmp_path / "lines", texts, edit=longer)
    assert run(*coco_of(tmp_path / "lines"), "--out", tmp_path / "crops") == 0
    said = capsys.readouterr().out.splitlines()
    count = len(texts[0].replace(" ", ""))
    assert said[0].startswith("skipped 4: lines whose numbers of boxes and of characters differ (0.png: "
                              f"{count} and {count + 1}, 1.png: ")
    assert said[0].endswith(", ...)") and said[-1].endswith("from 2 lines")
    assert {row["source"] for row in table(tmp_path / "crops")} == {"4.png", "5.png"}


def test_what_cannot_be_cut_is_skipped_and_never_written_as_a_blank(tmp_path, capsys):
    """EffOCR makes zero images of failed crops, and reads them."""
    texts = ["ab", "cd", "ef", "gh", "ij", "kl"]

    def edit(content):
        first = {image["id"]: [entry for entry in content["annotations"] if entry["image_id"] == image["id"]
                               and entry["category_id"] == 7][0] for image in content["images"]}
        first[50]["bbox"] = [0, -50, 4, 10]  # outside: this crop alone is skipped
        first[51]["bbox"] = [0, 0, -3, 4]
        first[52]["bbox"] = None
        content["images"] = [image for image in content["images"] if image["id"] != 53]
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 53]

    folder_of(tmp_path / "lines", texts, edit=edit)
    (tmp_path / "lines" / "images" / "4.png").write_bytes(b"no image")
    assert run(*coco_of(tmp_path / "lines"), "--out", tmp_path / "crops") == 0
    said = capsys.readouterr().out
    for words in ("skipped 2: lines with a box that is not left, top, width and height (1.png, 2.png)",
                  "skipped 1: images that cannot be used (4.png: not an image",
                  "skipped 1: crops that cannot be made (0.png, "):
        assert words in said, said
    rows = table(tmp_path / "crops")
    assert [row["source"] for row in rows] == ["0.png", "5.png", "5.png"]
    assert all(grays(tmp_path / "crops", row) for row in rows)


def test_lines_are_chosen_by_a_column_and_by_count(tmp_path, capsys):
    folder_of(tmp_path / "lines", random_texts(8, 10))
    assert run(tmp_path / "lines", "--out", tmp_path / "b", "--where", "book=b") == 0
    assert {row["source"] for row in table(tmp_path / "b")} == {"1.png", "3.png", "5.png", "7.png", "9.png"}
    for count in (2, 4):
        assert run(tmp_path / "lines", "--out", tmp_path / str(count), "--count", count) == 0
    few, many = ({row["source"] for row in table(tmp_path / name)} for name in "24")
    assert len(few) == 2 and len(many) == 4 and few < many


def test_nothing_is_overwritten_and_a_failed_run_leaves_nothing(tmp_path, capsys):
    folder_of(tmp_path / "lines", ["ab"])
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    assert run(tmp_path / "lines", "--out", full) == 2
    assert f"{full}: exists already" in capsys.readouterr().err and [path.name for path in full.iterdir()] == ["mine.txt"]
    (tmp_path / "lines" / "images" / "0.png").write_bytes(b"no image")
    assert run(tmp_path / "lines", "--out", tmp_path / "new") == 2
    assert "there is nothing to cut; skipped 1: images that cannot be used" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "lines"]


@pytest.mark.parametrize("words, said", [
    ([], "give a folder LINES, or --coco F"), (["LINES", "--coco", "F"], "give a folder LINES, or --coco F"),
    (["--coco", "F"], "give a folder LINES, or --coco F"),
    (["--coco", "F", "--images", "D", "--count", "3"], "need a folder"),
    (["LINES", "--words", "--spaces", "keep"], "choose one"), (["LINES", "--pad", "-1"], "--pad"),
    (["LINES", "--size", "99999"], "--size"), (["LINES"], "coco.json: no such file")])
def test_options_that_make_no_sense_are_one_line(tmp_path, capsys, words, said):
    folder_of(tmp_path / "LINES", ["ab"])
    (tmp_path / "LINES" / "coco.json").unlink()
    words = [tmp_path / word if word == "LINES" else word for word in words]
    assert run(*words, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
