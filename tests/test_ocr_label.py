"""Labels by a reader itself: which lines are kept, and that nobody looks at their transcriptions."""
import csv
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

import ocr.label
from inference.cli import exit_status
from inference.dictionary import Dictionary
from inference.reader import Character, Reading
from ocr.folder import read_lines
from ocr.label import Unlabeled, changed, find_lines, label_lines, main, sureness, write_lines


def reading(text, confidences):
    return Reading(text, 1.0, [Character(letter, sure, (0, 0, 1, 1), 0, []) for letter, sure
                               in zip(text.replace(" ", ""), confidences)])


class Fake:
    """Knows a line by the gray of its middle: {gray: (text, confidence of its worst letter)}. The gray 50 is read otherwise
    in an image that is not 100 pixels wide, 60 in one that has moved up."""

    def __init__(self, known):
        self.known, self.seen, self.vertical = known, 0, False

    def read(self, images):
        self.seen += len(images)
        for image in images:
            gray = int(image[image.shape[0] // 2, image.shape[1] // 2])
            text, worst = self.known[gray]
            if gray == 50 and image.shape[1] != 100 or gray == 60 and image[-1, 50] != 255:
                text += "x"
            yield reading(text, [worst] + [1] * len(text))


def write_image(path, gray):
    """A line 40 x 100 with a band of one gray on white; its lowest row is black."""
    image = np.full((40, 100), 255, np.uint8)
    image[8:32] = gray
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)
    return path


KNOWN = {10: ("a sure line", .95), 20: ("an unsure one", .3), 30: ("", 0.), 40: ("Zwyx is a word", .99), 50: ("wide", 1.),
         60: ("moved", 1.), 70: ("zwyx is not", 1.)}


@pytest.fixture
def images(tmp_path):
    return [Unlabeled(write_image(tmp_path / "in" / f"{gray}.png", gray), {"book": "b"}) for gray in KNOWN]


def test_what_is_kept_and_why_the_rest_is_not(images, tmp_path):
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    images.insert(3, Unlabeled(tmp_path / "in" / "broken.png", {}))
    words = {"a", "sure", "line", "is", "word", "not", "wide", "moved"}
    found = {one.line.path.stem: one for one in label_lines(Fake(KNOWN), images, .9, words)}
    assert {name: one.text for name, one in found.items() if not one.reason} == {"10": "a sure line", "40": "Zwyx is a word",
                                                                                 "60": "moved"}
    assert {name: one.reason.split(" (")[0] for name, one in found.items() if one.reason} == {
        "20": "not sure enough", "30": "nothing is read", "broken": "the image cannot be used", "70": "a word is not listed",
        "50": "read otherwise when the image changes a little"}
    assert found["10"].confidence == pytest.approx(.95)
    lax = [one for one in label_lines(Fake(KNOWN), images, .2) if not one.reason]
    assert {one.line.path.stem for one in lax} == {"10", "20", "40", "60", "70"}


def test_only_sure_lines_are_read_again(images):
    reader = Fake(KNOWN)
    list(label_lines(reader, images, .999))
    assert reader.seen == len(images) + 5 * 3      # 50, 60 and 70 are surer than that


def test_sureness_is_that_of_the_lowest_tenth():
    assert sureness(reading("a" * 25, [.9] * 23 + [.1, .3])) == pytest.approx(.2)
    assert sureness(reading("ab", [.9, .5])) == .5
    assert sureness(reading("", [])) == 0


@pytest.mark.parametrize("shape", [(40, 300), (13, 9), (120, 64, 3)])
def test_changed_images_differ_from_the_line_and_keep_its_type(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    versions = changed(image)
    assert len(versions) == 5 and all(one.dtype == np.uint8 and one.ndim == len(shape) for one in versions)
    assert all(one.shape != shape or (one != image).any() for one in versions)
    assert versions[0].shape[1] >= shape[1] >= versions[1].shape[1] and versions[2].shape[0] > shape[0]
    assert (versions[3][1:] == image[:-1]).all() or shape[0] > 60       # a pixel of a line of 40
    assert versions[3].shape == versions[4].shape == shape


def test_a_vertical_line_is_changed_like_the_turned_one():
    image = np.random.default_rng(0).integers(0, 256, (400, 40), np.uint8)
    versions = changed(image, vertical=True)
    assert all(np.array_equal(np.rot90(one), other) for one, other in zip(versions, changed(np.rot90(image)), strict=True))
    assert versions[0].shape == (416, 40) and versions[3].shape == image.shape
    assert (versions[3][:, :-1] == image[:, 1:]).all()       # moved across the line by a pixel: nothing of its ends is lost


def test_the_words_of_a_dictionary_have_apostrophes():
    line = Unlabeled("line.png", {})
    for text, reason in {"don't you": "", "a dog's day": "", "don't yxu": "a word is not listed"}.items():
        words = Dictionary(["don't", "you", "a", "dog", "day"])
        assert ocr.label._first_look(line, None, iter([reading(text, [1] * 20)]), .9, words).reason == reason


def lines_folder(folder, texts):
    for gray in texts:
        write_image(folder / "images" / f"{gray}.png", gray)
    (folder / "lines.tsv").write_text("file\ttext\tbook\n" + "".join(f"{gray}.png\t{text}\tb{gray}\n"
                                                                     for gray, text in texts.items()))
    return folder


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(ocr.label, "LineReader", lambda model, **options: Fake(KNOWN))


def test_the_transcriptions_are_not_looked_at(fake, tmp_path):
    for name, texts in {"true": {10: "a sure line", 20: "b"}, "lies": {10: "something else", 20: "a\u0301 lie"}}.items():
        main([str(lines_folder(tmp_path / name, texts)), "--model", "m.onnx", "--out", str(tmp_path / f"{name} out")])
    true, lies = ((tmp_path / f"{name} out" / "lines.tsv").read_text() for name in ("true", "lies"))
    assert true.replace(f"{tmp_path}/true/", "") == lies.replace(f"{tmp_path}/lies/", "")
    line, = read_lines(tmp_path / "lies out")
    assert line.text == "a sure line" and line.fields == {"confidence": "0.9500", "book": "b10"}
    assert line.path == (tmp_path / "lies" / "images" / "10.png").resolve()


def test_a_folder_of_images_needs_no_list(fake, images, tmp_path, capsys):
    main([str(tmp_path / "in"), "--model", "m.onnx", "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert "4 of 7 lines are kept" in said.err and "1 nothing is read" in said.err
    with open(tmp_path / "out" / "lines.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert {Path(row["file"]).stem: row["text"] for row in rows}["40"] == "Zwyx is a word"


def test_mistakes_are_one_line(fake, images, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "odd" / "a\tb.png", 10)
    write_image(tmp_path / "odd bytes" / "a.png", 10).rename(tmp_path / "odd bytes" / os.fsdecode(b"\xff.png"))
    write_image(tmp_path / "unsure" / "a.png", 20)
    write_lines([], tmp_path / "there")
    for said, arguments in {"lines.tsv: exists": [tmp_path / "in", "--out", tmp_path / "there"],
                            "no images": [tmp_path / "empty"],
                            "--where book=a: needs a lines.tsv": [tmp_path / "in", "--where", "book=a"],
                            "--confidence 2: a probability": [tmp_path / "in", "--confidence", "2"],
                            "a tab, a new line": [tmp_path / "odd"], "or no UTF-8": [tmp_path / "odd bytes"],
                            "no line passes": [tmp_path / "unsure"],
                            "no such folder": [tmp_path / "nowhere"]}.items():
        arguments = [str(one) for one in ("--out", tmp_path / "out", *arguments, "--model", "m.onnx")]
        assert exit_status(lambda: main(arguments)) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(error) == 1 and said in error[0], (said, error)
    assert not (tmp_path / "out").exists()


def test_lines_of_a_folder_carry_their_columns(tmp_path):
    folder = lines_folder(tmp_path / "lines", {10: "x", 20: "y"})
    assert [line.fields for line in find_lines(folder, "book=b20")] == [{"book": "b20"}]
