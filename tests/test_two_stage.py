"""Two-stage reading: a localizer and a recognizer that know the truth, sheets of lines, and a localizer's export."""
import json

import cv2
import numpy as np
import pytest

import onnx_export
from configs import load_config
from eval.coco import read_coco
from inference import two_stage
from inference.crops import crop
from inference.errors import UserError
from inference.glyph_index import GlyphIndex, probe_of
from inference.model import load_model
from inference.read import main as command
from inference.two_stage import WORD_COSINE, Localizer, TwoStageReader, load_recognizer
from ocr.__main__ import main as ocr
from tasks import get_task
from tests.helpers.models import METADATA, SIZE, blocks, write_model

ALPHABET = "abcdefgh .,'"
HEIGHT = 40


def drawn(text, wide=24, gap=4, space=16):
    """A line of characters, each 4x4 colors of its own: (BGR `[HEIGHT,W,3]`, boxes of the characters, of the words)."""
    cells, boxes, words, x = [], [], [], 8
    for letter in text:
        if letter == " ":
            x += space
            words.append(None)
            continue
        if not words or words[-1] is None:
            words.append([x, 8, x, 32])
        cells.append((x, blocks(ALPHABET.index(letter) + 1, 24)))
        boxes.append([x, 8, x + wide, 32])
        words[-1][2] = x + wide
        x += wide + gap
    image = np.full((HEIGHT, x + 8, 3), 255, np.uint8)
    for left, cell in cells:
        image[8:32, left:left + wide] = cell
    return image, np.array(boxes, float).reshape(-1, 4), np.array([word for word in words if word], float).reshape(-1, 4)


class Told:
    """A localizer that knows where things are in lines of a width; another width shows nothing."""

    def __init__(self, *lines):
        self.lines = {image.shape[1]: (boxes, words) for image, boxes, words in lines}
        self.seen = []

    def find(self, line):
        self.seen.append(line.shape)
        boxes, words = self.lines.get(line.shape[1], (np.zeros((0, 4)),) * 2)
        return boxes, np.full(len(boxes), 0.9), words


class Looks:
    """A recognizer by the nearest crop, of characters or of words."""
    size, crop = SIZE, "tight"

    def __init__(self, references):
        self.texts = self.classes = list(references)
        self.features = np.stack([self.of(image) for image in references.values()])
        self.calls = []

    @staticmethod
    def of(image):
        flat = image.astype(float).ravel() - 128
        return flat / np.linalg.norm(flat)

    def name(self, crops, k):
        self.calls.append(len(crops))
        cosine = np.stack([self.of(image) for image in crops]) @ self.features.T
        best = np.argsort(-cosine, 1)[:, :k]
        return [[self.texts[i] for i in row] for row in best], np.take_along_axis(cosine, best, 1)


def characters(kind="tight"):
    references = {}
    for letter in ALPHABET.replace(" ", ""):
        image, boxes, _ = drawn(letter)
        references[letter] = crop(image, boxes[0], kind, SIZE)
    return Looks(references)


def reader(*texts, **options):
    lines = [drawn(text) for text in texts]
    return TwoStageReader(Told(*lines), characters(), tidy=False, **options), [image for image, *_ in lines]


# ---------------------------------------------------------------- reading
def test_characters_words_and_spaces():
    read, images = reader("abc de f", "hgf", "a")
    found = read.read(images)
    assert [one.text for one in found] == ["abc de f", "hgf", "a"]
    assert read.classes == sorted(ALPHABET)
    for image, one, text in zip(images, found, ("abc de f", "hgf", "a")):
        _, boxes, _ = drawn(text)
        assert one.size == (image.shape[1], HEIGHT) and np.allclose([c.box for c in one.characters], boxes)
        assert "".join(c.text for c in one.characters) == text.replace(" ", "")
        for c in one.characters:
            assert 0 < c.confidence <= 0.9 and len(c.alternatives) == 3 and c.alternatives[0][0] == c.text
            assert 1 >= sum(share for _, share in c.alternatives) > 0.5
            assert c.column == int((c.box[0] + c.box[2]) / 2)
        assert one.confidence == pytest.approx(np.prod([c.confidence for c in one.characters]))


def test_without_words_there_are_no_spaces_and_no_crash():
    image, boxes, words = drawn("ab cd")
    found, = TwoStageReader(Told((image, boxes, words[:0])), characters()).read([image])
    assert found.text == "abcd"
    twice = np.concatenate([words, words[1:] + [1, 0, 3, 0]])             # a word that was found twice
    assert TwoStageReader(Told((image, boxes, twice)), characters()).read([image])[0].text == "ab cd"
    beyond = np.array([[image.shape[1] - 3.0, 8, image.shape[1], 32]])     # and one behind the last character
    assert TwoStageReader(Told((image, boxes, beyond)), characters()).read([image])[0].text == "abcd"


def test_the_text_depends_neither_on_other_lines_nor_on_threads():
    texts = ["abc", "de fgh", "a b", "hh gg ff", "cab"] * 3
    alone = [reader(*texts, threads=1)[0].read([drawn(text)[0]])[0] for text in texts]
    for threads in (1, 3):
        read, images = reader(*texts, threads=threads)
        assert read.read(images) == alone and [one.text for one in alone] == texts
        assert list(read.stream(iter(images[:4]))) == alone[:4]


def test_vertical_lines_are_turned_and_their_crops_are_not():
    """Characters stand one below the other, upright: the localizer gets the line turned, the recognizer the characters."""
    _, boxes, words = drawn("abc d")
    tall = np.full((boxes[-1, 2].astype(int) + 16, HEIGHT, 3), 255, np.uint8)
    for (x0, _, x1, _), letter in zip(boxes.astype(int), "abcd"):
        tall[x0:x1, 8:32] = blocks(ALPHABET.index(letter) + 1, 24)
    turned = np.ascontiguousarray(np.rot90(tall))
    told = Told((turned, boxes, words))
    found, = TwoStageReader(told, characters(), vertical=True).read([tall])
    assert told.seen == [turned.shape[:2]] and found.text == "abc d"
    assert np.allclose([c.box for c in found.characters], boxes[:, [1, 0, 3, 2]])
    assert found.size == (HEIGHT, tall.shape[0])


@pytest.mark.parametrize("cosine, text", [(WORD_COSINE + 0.05, "ab ef"), (WORD_COSINE - 0.05, "ab cd")])
def test_a_word_is_read_as_a_whole_where_a_reference_is_near_enough(cosine, text):
    class Words:
        size = SIZE

        def name(self, crops, k):
            return [["gh"] if i == 0 else ["ef"] for i in range(len(crops))], np.array([[0.1], [cosine]])
    image, boxes, words = drawn("ab cd")
    read = TwoStageReader(Told((image, boxes, words)), characters(), words=Words())
    found, = read.read([image])
    assert found.text == text and [c.text for c in found.characters] == list(text.replace(" ", ""))
    fewer = TwoStageReader(Told((image, boxes[:3], words)), characters(), words=Words())    # the d was not found
    found, = fewer.read([image])
    assert found.text == text.replace("cd", "c")
    assert [c.text for c in found.characters] == (["a", "b", "ef"] if "ef" in text else ["a", "b", "c"])


def test_words_by_a_second_index():
    image, boxes, words = drawn("abc de")
    shown = {text: crop(image, box, "tight", SIZE) for text, box in zip(("abc", "de"), words)}
    spelled = {"bac": shown["abc"], "ed": shown["de"]}                     # so that it can be told who read it
    assert TwoStageReader(Told((image, boxes, words)), characters(), words=Looks(spelled)).read([image])[0].text == "bac ed"


def test_what_cannot_be_read(tmp_path):
    read, (image,) = reader("abc")
    (tmp_path / "broken.png").write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "line.png"), image)
    found = read.read([np.full((30, 99, 3), 255, np.uint8), str(tmp_path / "broken.png"), str(tmp_path / "missing.png"),
                       str(tmp_path / "line.png"), image[:, :, 0]])
    assert [one.text for one in found] == ["", "", "", "abc", found[4].text]
    assert found[0].error is None and "not an image" in found[1].error and "not found" in found[2].error
    assert found[1].characters == [] and len(found[4].characters) == 3    # gray: other letters, but no crash
    assert read.read([]) == []


def test_tidy_and_double_quotes():
    image, boxes, words = drawn("''ab , c''")
    found, = TwoStageReader(Told((image, boxes, words)), characters()).read([image])
    assert found.text == '"ab, c"' and "".join(c.text for c in found.characters) == '"ab,c"'


def test_wrong_options_are_named():
    for options, says in (({"crop": "wide"}, "tight, line"), ({"top_k": 0}, "at least 1"), ({"threads": -1}, "at least 1")):
        with pytest.raises(UserError, match=says):
            reader("a", **options)


# ---------------------------------------------------------------- exported models
def test_a_recognizer_of_a_file_with_its_index(tmp_path):
    path = write_model(tmp_path / "model.onnx", {**METADATA, "crop": "line"})
    with pytest.raises(UserError, match="--index"):
        load_recognizer(path)
    model = load_model(path)
    texts = list(ALPHABET.replace(" ", ""))
    lines = [drawn(letter) for letter in texts]
    crops = np.stack([crop(image, boxes[0], "line", SIZE) for image, boxes, _ in lines])
    index = tmp_path / "index.npz"
    GlyphIndex(texts, model.embed(np.ascontiguousarray(crops[..., ::-1])), probe_of(model.embed, SIZE)).save(index)
    line = drawn("head fed, a cab")
    found, = TwoStageReader(Told(line), path, index).read([line[0]])
    assert found.text == "head fed, a cab" and found.characters[0].alternatives[0][0] == "h"
    with pytest.raises(UserError, match="no such model file"):
        TwoStageReader(Told(line), tmp_path / "none.onnx", index)


def test_the_command_reads_in_two_stages(tmp_path, capsys, monkeypatch):
    line = drawn("head fed")
    cv2.imwrite(str(tmp_path / "line.png"), line[0])
    monkeypatch.setattr(two_stage, "Localizer", lambda *_: Told(line))
    monkeypatch.setattr(two_stage, "load_recognizer", lambda *_: characters())
    assert command(["--localizer", "l.onnx", "--recognizer", "r.onnx", str(tmp_path / "line.png")]) == 0
    assert capsys.readouterr().out == "head fed\n"
    for given, says in ((["--localizer", "l.onnx"], "needs both"), (["--index", "i.npz"], "needs both"),
                        (["--localizer", "l", "--recognizer", "r", "--without", "x"], "--without: is not for")):
        with pytest.raises(UserError, match=says):
            command([*given, str(tmp_path / "line.png")])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An untrained localizer of lines, and the same network in torch."""
    cfg = load_config("lines_localizer", ["network=test_convnext", "width=32", "image_size=64", "line_height=32"])
    info = {"classes": ["char", "word"]}
    network = get_task("localizer").restore(cfg, info).eval()
    path = tmp_path_factory.mktemp("localizer") / "localizer.onnx"
    item = get_task("localizer").export(cfg, info, network)
    onnx_export.export(item, path, onnx_export.describe(item, cfg))
    return path


def test_a_localizer_takes_lines_of_any_width(exported):
    localizer = Localizer(exported, threshold=0.01)
    line = np.uint8(np.random.default_rng(0).integers(0, 256, (70, 300)))
    boxes, scores, words = localizer.find(line)
    assert len(boxes) and boxes.shape == (len(scores), 4) and words.shape[1] == 4
    assert (boxes >= 0).all() and (boxes <= [300, 70] * 2).all() and (np.diff(boxes[:, 0] + boxes[:, 2]) >= 0).all()
    for shape in ((1, 8), (8, 1), (20, 5000), (3, 60_000)):
        boxes, *_ = localizer.find(np.full(shape, 200, np.uint8))
        assert (boxes <= [*shape[::-1]] * 2).all()
    assert all(len(part) == 0 for part in Localizer(exported, threshold=1.0).find(line))


@pytest.mark.parametrize("key, value", [("task", "finder"), ("classes", ["word"]), ("classes", None), ("strides", [0]),
                                        ("strides", [4]), ("image_size", "x"), ("width_step", None), ("overlap", 7)])
def test_what_is_no_localizer_is_refused(exported, tmp_path, key, value):
    import onnx
    model = onnx.load(exported)
    entry, = (entry for entry in model.metadata_props if entry.key == "docmetric")
    entry.value = json.dumps({**json.loads(entry.value), key: value})
    onnx.save(model, tmp_path / "wrong.onnx")
    with pytest.raises(UserError, match="not a localizer of lines"):
        Localizer(tmp_path / "wrong.onnx")


def test_a_line_height_that_no_network_can_take_is_refused():
    with pytest.raises(UserError, match="multiple of 32"):
        load_config("lines_localizer", ["line_height=40"])


# ---------------------------------------------------------------- sheets
def write_lines(folder, texts):
    """A folder of lines with the boxes of their characters."""
    (folder / "images").mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": [{"id": 0, "name": "char"}, {"id": 1, "name": "word"}]}
    rows = ["file\ttext"]
    for number, text in enumerate(texts):
        image, boxes, _ = drawn(text)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
        rows.append(f"{number}.png\t{text}")
        content["images"].append({"id": number, "file_name": f"{number}.png", "width": image.shape[1], "height": HEIGHT,
                                  "text": text})
        content["annotations"] += [{"id": len(content["annotations"]) + i, "image_id": number, "category_id": 0,
                                    "bbox": [x0, y0, x1 - x0, y1 - y0]} for i, (x0, y0, x1, y1) in enumerate(boxes.tolist())]
    (folder / "lines.tsv").write_text("\n".join(rows) + "\n")
    (folder / "coco.json").write_text(json.dumps(content))
    return content


def test_sheets_have_every_word_once_and_where_its_pixels_are(tmp_path, capsys):
    texts = ["abc de fgh a", "hg", "f ed cba abcdefgh", "abcdefghabcdefgh a"]
    write_lines(tmp_path / "lines", texts)
    ocr(["windows", str(tmp_path / "lines"), "--out", str(tmp_path / "sheets"), "--height", "40", "--side", "280"])
    names, sheets = read_coco(tmp_path / "sheets" / "coco.json")
    assert names == ["char", "word"] and "4 lines" in capsys.readouterr().out
    looks, found = characters(), []
    for name, truth in sheets.items():
        image = cv2.imread(str(tmp_path / "sheets" / "images" / name))
        assert image.shape == (280, 280, 3) and (truth.width, truth.height) == (280, 280)
        gray = Looks({text: np.repeat(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[:, :, None], 3, 2) for text, image in
                      zip(looks.texts, [crop(*drawn(text)[:1], drawn(text)[1][0], "tight", SIZE) for text in looks.texts])})
        chars, words = truth.boxes[truth.classes == 0], truth.boxes[truth.classes == 1]
        for x0, y0, x1, y1 in words:
            middle = (chars[:, ::2].mean(1), chars[:, 1::2].mean(1))
            own = chars[(middle[0] > x0) & (middle[0] < x1) & (middle[1] > y0) & (middle[1] < y1)]
            own = own[np.argsort(own[:, 0])]
            assert np.allclose([own[:, 0].min(), own[:, 2].max()], [x0, x1]) and int(y0) // 40 == int(y1 - 1) // 40
            read = gray.name(np.stack([crop(image, box, "tight", SIZE) for box in own]), 1)[0]
            found.append("".join(row[0] for row in read))
    wide = "abcdefghabcdefgh"                                              # 444 pixels: wider than a sheet
    assert sorted(found) == sorted(word for text in texts for word in text.split() if word != wide)


def test_sheets_are_seeded_refused_twice_and_lines_without_boxes_told(tmp_path, capsys):
    content = write_lines(tmp_path / "lines", ["abc de", "fgh", "ab"])
    content["annotations"].pop()                                           # of the last line: one box too few
    (tmp_path / "lines" / "coco.json").write_text(json.dumps(content))
    for name in ("one", "two"):
        ocr(["windows", str(tmp_path / "lines"), "--out", str(tmp_path / name), "--height", "40", "--side", "240"])
    assert "1 lines have no boxes" in capsys.readouterr().out
    one, two = ((tmp_path / name / "coco.json").read_text() for name in ("one", "two"))
    assert one == two
    for more, says in ((["--out", str(tmp_path / "one")], "exists already"),
                       (["--out", str(tmp_path / "x"), "--side", "250"], "multiple of --height 64")):
        with pytest.raises(UserError, match=says):
            ocr(["windows", str(tmp_path / "lines"), *more])
    (tmp_path / "lines" / "coco.json").unlink()
    with pytest.raises(UserError, match="none of its 3 lines has boxes"):
        ocr(["windows", str(tmp_path / "lines"), "--out", str(tmp_path / "y")])
