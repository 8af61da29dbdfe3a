"""Transcribed lines -> boxes. The reader of these tests knows the truth: an image's gray at a column is its class."""
import itertools
import json

import cv2
import numpy as np
import pytest

import ocr.align
from inference.cli import exit_status
from inference.decode import BLANK, SPACE
from inference.reader import LineReader
from ocr.align import APART, align_lines, in_order, main, path_of, to_coco, to_ink
from ocr.coco import validate
from ocr.folder import read_lines

CLASSES = ["", " ", *"abcdefgh.,'-"]
HEIGHT, STRIDE, STEP = 8, 2, 18  # of the reader; between the grays of two classes
SCALE = 2  # pixels of an image to one of the reader's


class Truthful:
    """The class at a column is 255 - STEP * class in the line's first row; where the last row has another one, that is the
    second best. A box is as wide as the run of the first row's gray, and as high as what is neither white nor first row."""
    about = {"height": HEIGHT, "stride": STRIDE, "classes": CLASSES, "scale": 20.0, "vertical": False}
    centers = np.eye(len(CLASSES), dtype=np.float32)

    def run(self, lines):
        first, last = (np.rint((1 - lines[:, 0, row, ::STRIDE]) * 255 / STEP).astype(int) for row in (0, -1))  # [B,T]
        embeddings = self.centers[first] * .8 + self.centers[last] * .6
        boxes = np.zeros((*first.shape, 4), np.float32)
        for line, ids, box in zip(lines[:, 0], first, boxes):
            start = np.flatnonzero(np.diff(ids, prepend=-1))
            for at, end in zip(start, [*start[1:], len(ids)]):
                ink = np.flatnonzero(line[1:-1, at * STRIDE] < 1)
                if len(ink):
                    box[at:end] = at * STRIDE, ink[0] + 1, end * STRIDE, ink[-1] + 2
        return embeddings / np.linalg.norm(embeddings, axis=2, keepdims=True), boxes


def drawn(r, text, misread=0.0, vertical=False):
    """(image, boxes [n,4] of the characters) of a line that the reader reads as `text`, but for a share of characters that
    it takes for others, the right one being its second choice."""
    image, boxes, at = np.full((HEIGHT, 24 * len(text) + 24), 255, np.uint8), [], 6
    for character in text:
        number, wide = CLASSES.index(character), STRIDE * int(r.integers(1, 4))
        seen = int(r.integers(2, len(CLASSES))) if r.uniform() < misread else number
        image[0, at:at + wide], image[-1, at:at + wide] = 255 - STEP * seen, 255 - STEP * number
        if character != " ":
            top, bottom = sorted(r.choice(np.arange(2, HEIGHT - 1), 2, replace=False))
            image[top:bottom, at:at + wide] = 90
            boxes.append([at, top, at + wide, bottom])
        at += wide + STRIDE * int(r.integers(2, 5))
    image, boxes = np.repeat(np.repeat(image[:, :at], SCALE, 0), SCALE, 1), SCALE * np.array(boxes, float).reshape(-1, 4)
    if vertical:  # np.rot90 of it is the line: its top is the left
        high, image = image.shape[0], np.rot90(image, -1)
        boxes = np.stack([high - boxes[:, 3], boxes[:, 0], high - boxes[:, 1], boxes[:, 2]], 1)
    return np.ascontiguousarray(image), boxes


def folder_of(folder, texts, seen=None, seed=0, misread=0.0, vertical=False):
    """A folder of transcribed lines, {file: boxes}. seen: what the images show, where that is not the transcription."""
    r, boxes = np.random.default_rng(seed), {}
    (folder / "images").mkdir(parents=True)
    for number, text in enumerate(seen or texts):
        image, boxes[f"{number}.png"] = drawn(r, text, misread, vertical)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
    (folder / "lines.tsv").write_text("file\ttext\tbook\n" + "".join(
        f"{number}.png\t{text}\t{'ab'[number % 2]}\n" for number, text in enumerate(texts)), encoding="utf-8")
    return boxes


def random_texts(seed, count=10):
    r = np.random.default_rng(seed)
    word = lambda: "".join(r.choice(CLASSES[2:8], r.integers(1, 7)))
    return [" ".join(word() for _ in range(r.integers(1, 5))) for _ in range(count)]


def aligned(folder, **options):
    return align_lines(LineReader(Truthful()), read_lines(folder), **options)


@pytest.fixture
def run(monkeypatch):
    """The exit status of the command, with the reader of these tests."""
    def reader(model, threads, **options):
        return LineReader(Truthful(), **options)
    monkeypatch.setattr(ocr.align, "LineReader", reader)
    return lambda *words: exit_status(lambda: main([*map(str, words), "--model", "reader.onnx"]))


# ---------------------------------------------------------------- the path
def spelled(path):
    """What CTC reads from the classes of the columns."""
    return [number for number, _ in itertools.groupby(path) if number != BLANK]


@pytest.mark.parametrize("seed", range(12))
def test_the_path_is_the_best_of_all_that_spell_the_text(seed):
    r = np.random.default_rng(seed)
    columns, classes = 6, 4
    log_probs = np.log(r.dirichlet(np.full(classes, .5), columns)).astype(np.float32)
    probs = np.exp(log_probs.astype(float))
    probs[:, BLANK] += probs[:, SPACE]
    ids = r.integers(2, classes, r.integers(1, 4)).tolist()
    chance = {path: probs[np.arange(columns), path].prod()
              for path in itertools.product((BLANK, *range(2, classes)), repeat=columns)}
    best = max((path for path in chance if spelled(path) == ids), key=chance.get)
    at, confidence = path_of(log_probs, ids)
    assert confidence == pytest.approx((chance[best] / max(chance.values())) ** (1 / len(ids)), rel=1e-5)
    start = [0, *np.flatnonzero(np.diff(best)) + 1, columns]
    runs = [range(low, high) for low, high in zip(start, start[1:]) if best[low] != BLANK]
    assert at.tolist() == [max(run, key=lambda column: probs[column, number]) for run, number in zip(runs, ids)]


def test_what_the_reader_reads_has_confidence_1_and_spaces_do_not_count():
    r = np.random.default_rng(0)
    for text, transcribed in (("ab cd", "ab cd"), ("ab cd", "abcd"), ("ab .", "ab."), ("abcd", "a bcd")):
        reader = LineReader(Truthful())
        columns, = reader.columns([drawn(r, text)[0]])
        assert path_of(columns.log_probs, reader.ids(transcribed.replace(" ", "")))[1] == pytest.approx(1, abs=1e-4)


# ---------------------------------------------------------------- boxes
@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("misread", [0, .3])
@pytest.mark.parametrize("seed", range(3))
def test_boxes_are_those_of_the_characters_even_of_those_that_are_misread(tmp_path, run, seed, misread, vertical):
    texts = random_texts(seed)
    boxes = folder_of(tmp_path / "lines", texts, seed=seed, misread=misread, vertical=vertical)
    file = tmp_path / "lines" / "coco.json"
    assert run(tmp_path / "lines", "--out", file, "--min-confidence", 0, *["--vertical"] * vertical) == 0
    assert validate(file, tmp_path / "lines" / "images") == []
    for line, text in zip(read_lines(tmp_path / "lines"), texts):  # the folder's own reader sorts them along the line
        assert line.text == text and np.abs(line.boxes - boxes[line.file]).max() < .02
    content = json.loads(file.read_text())
    assert [(image["text"], image["book"], bool(image.get("vertical"))) for image in content["images"]] \
        == [(text, "ab"[number % 2], vertical) for number, text in enumerate(texts)]
    words = [entry["bbox"] for entry in content["annotations"] if entry["category_id"] == 1]
    assert len(words) == sum(len(text.split()) for text in texts)
    expected = []
    for text, own in zip(texts, boxes.values()):
        end = np.cumsum([len(word) for word in text.split()])
        expected += [[*part[:, :2].min(0), *np.ptp(np.concatenate([part[:, :2], part[:, 2:]]), axis=0)]
                     for part in np.split(own, end[:-1])]
    assert np.allclose(words, expected, atol=.02)


def test_characters_above_each_other_stay_in_the_order_of_the_text():
    """Boxes are matched with the text by their middles: a period below a quote could come after it."""
    boxes = in_order(np.array([[2, 4, 8, 12], [12, 10, 16, 12], [9.5, 2, 14.5, 6], [18, 2, 24, 12.]]), 0)  # a.'b
    middle = boxes[:, ::2].mean(1)
    assert (np.diff(middle) >= APART - 1e-9).all() and middle.tolist() == pytest.approx([5, 14, 14 + APART, 21])
    assert (boxes[:, 2] - boxes[:, 0]).tolist() == pytest.approx([6, 4, 5, 6])


def test_small_boxes_are_moved_to_the_ink():
    image = np.full((40, 200), 230, np.uint8)
    ink = np.array([[10, 28, 14, 32], [40, 8, 43, 14], [44, 8, 47, 14], [80, 10, 110, 32], [130, 20, 140, 32],
                    [140, 20, 152, 32], [170, 20, 174, 24]])  # . " M, two letters that touch, and a speck
    for x0, y0, x1, y1 in ink:
        image[y0:y1, x0:x1] = 40
    boxes = np.array([[9, 27, 12.5, 33.5], [41, 7, 46, 12.5], [78, 11, 108, 31], [129, 19, 139, 31], [100.5, 2, 105, 6]])
    moved = to_ink(image, boxes, 40)
    assert moved[:2].tolist() == [[10, 28, 14, 32], [40, 8, 47, 14]]
    assert (moved[2:] == boxes[2:]).all()  # large; not to be told from its neighbor; without ink
    assert (to_ink(np.full((40, 200), 230, np.uint8), boxes, 40) == boxes).all()
    turned = np.array([[10, 30.5, 14, 29.5], [100, 4, 104, 4], [60, 40, 64, 40]])  # the top below the bottom; no area
    assert to_ink(image, turned, 40).tolist() == [[10, 28, 14, 32], [100, 2.4, 104, 5.6], [60, 38.4, 64, 40]]


def test_text_stays_as_typed_where_each_character_has_a_box(tmp_path):
    texts = ["\u2018ab\u2019 c\u2014d", "a--b", "''ab", "a  b"]
    folder_of(tmp_path, texts, ["'ab' c-d", "a-b", "ab", "a b"])
    reader = Truthful()
    reader.about = {**reader.about, "classes": [name if name != "," else '"' for name in CLASSES]}
    found, _ = align_lines(LineReader(reader), read_lines(tmp_path), least=0)
    assert [one.text for one in found] == ["\u2018ab\u2019 c\u2014d", "a-b", '"ab', "a b"]
    assert [len(one.boxes) for one in found] == [7, 3, 3, 2]


# ---------------------------------------------------------------- lines that cannot be aligned
def test_wrong_transcriptions_are_skipped(tmp_path):
    seen = random_texts(3, 12)
    texts = [seen[1], *seen[1:]]                            # another line's text
    texts[1] = seen[1] + " abc"                             # a word too many
    seen[2], texts[2] = "abcd efgh dcba", "abcd dcba"       # a word too few
    seen[3], texts[3] = "abcdefgh" * 5, "abcdefga" + "abcdefgh" * 4  # one wrong letter: kept, the boxes are right
    boxes = folder_of(tmp_path, texts, seen)
    found, skipped = aligned(tmp_path, least=.1)
    (reason, examples), = skipped.items()
    assert reason.startswith("lines whose text is not what the reader sees")
    assert [example.split(":")[0] for example in examples] == ["0.png", "1.png", "2.png"]
    assert [one.line.file for one in found] == [f"{number}.png" for number in range(3, 12)]
    assert np.abs(found[0].boxes - boxes["3.png"]).max() < .02


def test_what_cannot_be_aligned_is_reported_and_not_fatal(tmp_path, run, capsys):
    texts = ["ab", "a\u2020b x", "ab", "ab" * 40, "", "cd"]
    folder_of(tmp_path / "lines", texts, ["ab", "ab", "ab", "ab", "ab", "cd"])
    (tmp_path / "lines" / "images" / "2.png").write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "lines" / "images" / "0.png"), np.full((8, 20_000), 255, np.uint8))  # no line of text
    assert run(tmp_path / "lines", "--out", tmp_path / "boxes.json") == 0
    said = capsys.readouterr().out
    for words in ("skipped 2: images that cannot be used (0.png: ", "2.png: not an image",
                  "skipped 1: lines with characters that the reader does not know (1.png: x \u2020)",
                  "skipped 1: lines whose text is too long for the image (3.png: ", "skipped 1: lines without text (4.png)",
                  "boxes.json: 1 of 6 lines, 2 characters"):
        assert words in said, said
    assert [image["file_name"] for image in json.loads((tmp_path / "boxes.json").read_text())["images"]] == ["5.png"]


def test_nothing_is_written_over_or_without_a_line(tmp_path, run, capsys):
    folder_of(tmp_path / "lines", ["xyz"], ["ab"])
    assert run(tmp_path / "lines", "--out", tmp_path / "boxes.json") == 2
    assert "none of the 1 lines could be aligned" in capsys.readouterr().err and not (tmp_path / "boxes.json").exists()
    (tmp_path / "boxes.json").write_text("mine")
    assert run(tmp_path / "lines", "--out", tmp_path / "boxes.json") == 2
    assert "exists already" in capsys.readouterr().err and (tmp_path / "boxes.json").read_text() == "mine"
    assert run(tmp_path / "lines", "--out", tmp_path / "new.json", "--min-confidence", "2") == 2


def test_a_part_of_the_lines_is_aligned(tmp_path, run):
    folder_of(tmp_path / "lines", random_texts(4))
    assert run(tmp_path / "lines", "--out", tmp_path / "b.json", "--where", "book=b", "--count", 3) == 0
    assert {image["book"] for image in json.loads((tmp_path / "b.json").read_text())["images"]} == {"b"}
    assert len(json.loads((tmp_path / "b.json").read_text())["images"]) == 3


def test_the_file_and_not_a_column_says_whether_a_line_is_vertical(tmp_path, run):
    boxes = folder_of(tmp_path / "lines", ["ab.c"])
    (tmp_path / "lines" / "lines.tsv").write_text("file\ttext\tvertical\n0.png\tab.c\tno\n")
    assert run(tmp_path / "lines", "--out", tmp_path / "lines" / "coco.json") == 0
    assert np.abs(read_lines(tmp_path / "lines")[0].boxes - boxes["0.png"]).max() < .02


def test_lines_are_aligned_beside_a_broken_coco_file(tmp_path, run):
    folder_of(tmp_path / "lines", ["abc"])
    (tmp_path / "lines" / "coco.json").write_text("{")
    assert run(tmp_path / "lines", "--out", tmp_path / "boxes.json") == 0


def test_the_confidence_is_in_the_file(tmp_path):
    folder_of(tmp_path, ["abcdefgh"], ["abcdefga"])
    found, _ = aligned(tmp_path, least=0)
    assert to_coco(found)["images"][0]["confidence"] == round(found[0].confidence, 4) < .9
