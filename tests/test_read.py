"""Reading lines, in Python and on the command line, and all mistakes that a user can make there."""
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

import inference.characters
import inference.reader
from inference import LineReader
from inference.characters import Characters, load_characters, save_characters
from inference.classify import DocClassifier
from inference.cli import exit_status
from inference.errors import UserError
from inference.image import ImageError, load_gray, load_image
from inference.lines import line_size, load_line
from inference.read import SHOWN, main, to_coco
from inference.reader import BATCH, BATCH_WIDTH, PAD, PART, ReaderModel, _grouped
from tests.helpers import models
from tests.helpers.reading import CLASSES, GAP, HEIGHT, SCALE, STRIDE, WIDE, about, centers, draw, patterns, write_reader

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ["hello world", "the quick brown fox, jumps.", "a", "it's well-known", "over 111 lazy dogs"]


def status_of(arguments):
    return exit_status(lambda: main([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_reader(tmp_path_factory.mktemp("model") / "reader.onnx")


@pytest.fixture(scope="module")
def reader(model):
    return LineReader(model, threads=2)


@pytest.fixture
def lines(tmp_path):
    """A folder of the lines TEXTS, and the paths of their images."""
    paths = [tmp_path / "lines" / f"{number}.png" for number in range(len(TEXTS))]
    for path, text in zip(paths, TEXTS):
        models.save(path, draw(text))
    return paths


# ---------------------------------------------------------------- what is read
def test_lines_and_where_their_characters_are(reader):
    for text, height in zip(TEXTS, (40, 80, 120, 40, 80)):
        image = draw(text, height)
        for given in (image, cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), image[:, :, None]):
            reading, = reader.read([given])
            assert reading.text == text and reading.error is None and reading.size == image.shape[::-1]
            assert 0.9 < reading.confidence <= 1
        assert "".join(one.text for one in reading.characters) == text.replace(" ", "")
        places = [place for place, one in enumerate(text) if one != " "]
        for place, one in zip(places, reading.characters):
            x0, y0, x1, y1 = one.box
            middle, scale = 8 + place * (WIDE + GAP) + WIDE / 2, height / HEIGHT
            assert abs((x0 + x1) / 2 / scale - middle) <= WIDE / 2 and (y0, y1) == (0, height)
            assert abs((one.column + .5) * STRIDE - middle) <= WIDE / 2 and 0.9 < one.confidence <= 1
            assert one.alternatives[0][0] == one.text and len(one.alternatives) == 3
            chances = [chance for _, chance in one.alternatives]
            assert chances == sorted(chances, reverse=True) and sum(chances) <= 1 + 1e-6 and "" not in dict(one.alternatives)


def test_all_alternatives_sum_to_one(model):
    one, = LineReader(model, top_k=1000).read([draw("a")])[0].characters
    assert {text for text, _ in one.alternatives} == set(CLASSES[1:])  # all but blank
    assert sum(chance for _, chance in one.alternatives) == pytest.approx(1)


def test_columns_are_the_softmax_of_the_cosines(reader):
    image = draw("a b.", 80)
    columns, = reader.columns([image])
    assert columns.embeddings.shape == (-(-image.shape[1] // 2 // STRIDE), 8)
    logits = SCALE * columns.embeddings.astype(np.float64) @ centers().T
    expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert np.allclose(columns.log_probs, expected, atol=1e-4)
    assert columns.scale == 0.5 / STRIDE and columns.boxes.shape == (len(columns.log_probs), 4)
    assert int((8 + WIDE) * columns.scale) < len(columns.log_probs)
    x = (8 + WIDE / 2) * 2  # the middle of the first character in the image
    assert columns.log_probs[int(x * columns.scale)].argmax() == CLASSES.index("a")
    assert reader.ids("a b") == [CLASSES.index(one) for one in "a b"] and reader.ids("A") is None
    assert (columns.boxes[:, ::2] <= image.shape[1]).all() and (columns.boxes >= 0).all()


def test_nothing_is_read_as_nothing(reader):
    for blank in (np.full((40, 300), 255, np.uint8), np.full((40, 300), 235, np.uint8), np.zeros((40, 300), np.uint8),
                  np.full((8, 8), 255, np.uint8)):
        reading, = reader.read([blank])
        assert reading.text == "" and reading.characters == [] and reading.error is None and reading.confidence > 0.9
    assert reader.read([]) == []


def test_spaces_are_a_class_and_never_lost(reader, model):
    """A list of classes that is split at white space has no space, and each class after it has its neighbor's name."""
    assert reader.classes[:3] == ["", " ", "a"] and reader.read([draw("  a  b ")])[0].text == "a b"
    assert [one.text for one in reader.read([draw("a b")])[0].characters] == ["a", "b"]
    assert " " not in LineReader(model, without=" ").read([draw("a b")])[0].text


def test_tidy_and_two_quotes(model, reader):
    image = draw("he said , ''so ''.")
    reading, = reader.read([image])
    assert reading.text == 'he said, "so".' and "".join(one.text for one in reading.characters) == 'hesaid,"so".'
    assert LineReader(model, tidy=False).read([image])[0].text == "he said , ''so ''."
    first = reading.characters[7]
    assert first.box[2] - first.box[0] == 2 * WIDE + GAP and first.text == '"'


def test_a_line_of_5000_pixels_and_more(reader):
    text = ("abcdefghij klmno " * 20).strip()
    image = draw(text)
    assert image.shape[1] > 5000 and reader.read([image])[0].text == text


def test_light_letters_on_dark_ground(reader):
    assert [reading.text for reading in reader.read([255 - draw(text) for text in TEXTS])] == TEXTS
    dim = (draw("so dark") * 0.4).astype(np.uint8)  # dark paper is not light ink
    reading, = LineReader(Brightened(reader.model)).read([dim])
    assert reading.text == "so dark"


class Brightened:
    """A reader for lines at 0.4 of their brightness."""

    def __init__(self, model):
        self.model, self.about, self.centers = model, model.about, model.centers

    def run(self, batch):
        return self.model.run(np.minimum(batch / np.float32(0.4), 1))


def test_vertical_lines(model):
    image = np.ascontiguousarray(np.rot90(draw("top to", 80), -1))  # np.rot90 turns it back, so that its top is left
    by_option = LineReader(model, vertical=True)
    reading, = by_option.read([image])
    assert reading.text == "top to" and reading.size == image.shape[::-1] and by_option.vertical
    tops = [one.box[1] for one in reading.characters]
    assert tops == sorted(tops) and all(one.box[0] == 0 and one.box[2] == 80 for one in reading.characters)
    assert abs(sum(reading.characters[0].box[1::2]) / 2 - 2 * (8 + WIDE / 2)) <= WIDE
    columns, = by_option.columns([image])
    assert columns.log_probs[int(2 * (8 + WIDE / 2) * columns.scale)].argmax() == CLASSES.index("t")
    assert LineReader(model).read([image])[0].text != "top to"  # the direction is said, not guessed from the shape


def test_a_model_of_vertical_lines(tmp_path):
    model = write_reader(tmp_path / "vertical.onnx", about(vertical=True))
    image = np.ascontiguousarray(np.rot90(draw("down"), -1))
    assert LineReader(model).read([image])[0].text == "down"
    assert LineReader(model, vertical=False).read([draw("along")])[0].text == "along"


def random_lines(count):
    """Lines of all widths, mostly noise: what is read of them changes with any small difference."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(count):
        line = draw("".join(rng.choice(CLASSES[1:], rng.integers(1, 40))))
        line = np.clip(line + rng.normal(0, 90, line.shape), 0, 255).astype(np.uint8)
        lines.append(cv2.resize(line, (int(line.shape[1] * rng.uniform(0.7, 1.3)), 40)))
    return lines


def test_the_text_depends_neither_on_the_batch_nor_on_the_threads(model, monkeypatch):
    images = random_lines(40)
    alone = [LineReader(model, threads=1).read([image])[0] for image in images]
    assert len({reading.text for reading in alone}) > 35
    for threads, batch, part in ((1, BATCH, 40), (2, 3, 7), (4, 64, 32)):
        monkeypatch.setattr(inference.reader, "BATCH", batch)
        monkeypatch.setattr(inference.reader, "PART", part)
        assert LineReader(model, threads=threads).read(images) == alone


def test_lines_of_one_padded_width_run_together(model):
    seen = []

    class Counted(ReaderModel):
        def run(self, batch):
            seen.append(batch.shape)
            return super().run(batch)

    reader = LineReader(Counted(model, threads=1))
    seen.clear()
    reader.read([draw("a" * count) for count in (1, 2, 3, 4, 5, 1)])  # 24 to 88 pixels
    assert sorted(seen) == [(2, 1, HEIGHT, 2 * PAD), (4, 1, HEIGHT, PAD)]


def test_wide_lines_run_in_smaller_batches():
    assert [len(group) for group in _grouped(dict.fromkeys(range(20), BATCH_WIDTH))] == [BATCH, BATCH, 4]
    assert [len(group) for group in _grouped(dict.fromkeys(range(5), 4 * BATCH_WIDTH))] == [2, 2, 1]


def test_results_come_in_order_and_in_bounded_memory(model):
    taken = []

    class Images(list):
        def __getitem__(self, position):
            taken.append(position)
            return super().__getitem__(position)

    texts = [CLASSES[2 + number % 20] * 3 for number in range(200)]
    stream = LineReader(model, threads=2).stream(Images(map(draw, texts)))
    assert next(stream).text == texts[0]
    assert len(taken) <= 2 * 2 * PART  # two parts a thread
    assert [reading.text for reading in stream] == texts[1:]


# ---------------------------------------------------------------- images that cannot be used
def test_a_bad_image_is_an_entry_and_the_others_are_read(reader, lines, tmp_path):
    bad = {"missing.png": None, "text.png": b"hello", "empty.png": b"", "half.png": lines[1].read_bytes()[:300]}
    for name, content in bad.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    given = [lines[0], *(tmp_path / name for name in bad), draw("ok"), np.zeros((40, 300, 2), np.uint8), None, lines[1]]
    readings = reader.read(given)
    assert [reading.text for reading in readings] == [TEXTS[0], "", "", "", "", "ok", "", "", TEXTS[1]]
    said = [reading.error for reading in readings]
    assert said[0] is said[5] is said[8] is None
    assert said[1] == "file not found" and "not an image" in said[2] and said[3] == "empty file" and "truncated" in said[4]
    assert "shape" in said[6] and "no image" in said[7]
    assert all(reading.characters == [] and reading.confidence == 0 for reading in readings if reading.error)
    with pytest.raises(ImageError, match="missing.png: file not found"):
        list(reader.columns(given))


def test_shapes_that_are_no_line(reader):
    thin, wide, large = (np.full(shape, 255, np.uint8) for shape in ((1, 500), (8, 100_000), (3000, 2000)))
    said = [reading.error for reading in reader.read([thin, wide, large])]
    assert "smaller than 8" in said[0] and "times as long as high" in said[1] and said[2] is None


def test_a_bomb_is_not_decoded(reader, tmp_path):
    """The header says 100,000 x 100,000 pixels."""
    data = cv2.imencode(".bmp", np.zeros((8, 8), np.uint8))[1].tobytes()
    path = tmp_path / "bomb.bmp"
    path.write_bytes(data[:18] + (100_000).to_bytes(4, "little") * 2 + data[26:])
    reading, = reader.read([path])
    assert reading.error and reading.text == ""


def test_gray_is_what_the_colors_give(tmp_path):
    rng = np.random.default_rng(0)
    gray, color = rng.integers(0, 256, (20, 30), np.uint8), rng.integers(0, 256, (20, 30, 3), np.uint8)
    pictures = {"gray.png": gray, "gray.jpg": gray, "gray.bmp": gray, "color.png": color, "color.jpg": color,
                "deep.png": gray.astype(np.uint16) * 257, "clear.png": rng.integers(0, 256, (20, 30, 4), np.uint8)}
    for name, image in pictures.items():
        path = models.save(tmp_path / name, image)
        expected = cv2.cvtColor(load_image(path), cv2.COLOR_BGR2GRAY)
        assert np.array_equal(load_gray(path), expected) and load_gray(path).shape == (20, 30)
        if name.endswith(".png"):
            assert np.array_equal(load_gray(image), expected)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_size_of_a_turned_tiff(tmp_path, orientation):
    """Its decoder turns it, unlike those of the other formats."""
    from PIL import Image
    path = tmp_path / "line.tif"
    Image.fromarray(np.zeros((9, 30), np.uint8)).save(path, tiffinfo={0x0112: orientation})
    for vertical in (False, True):
        assert line_size(path, vertical) == load_line(path, vertical).shape[::-1]


# ---------------------------------------------------------------- models that are none
def test_a_model_of_another_task_is_told_with_the_program_that_takes_it(model, tmp_path):
    other = models.write_model(tmp_path / "documents.onnx")
    with pytest.raises(UserError, match="task=registration.*task=reading.*classify.py") as caught:
        LineReader(other)
    assert str(other) in str(caught.value)
    with pytest.raises(UserError, match="task=reading.*task=registration.*read.py"):
        DocClassifier(model=model, register_root=tmp_path)


@pytest.mark.parametrize("changes", [
    dict(classes=["", "a", " "]), dict(classes=[" ", "", "a"]), dict(classes="abc"), dict(classes=["", " "]),
    dict(classes=["", " ", *"abb"]), dict(classes=["", " ", "a b"]), dict(classes=["", " ", "\t"]),
    dict(classes=["", " ", "\x7f"]), dict(classes=["", " ", "\ud800"]),
    dict(classes=["", " ", 3]), dict(classes=["", " ", ""]), dict(classes=["", " ", "x" * 17]), dict(classes=None),
    dict(scale=0), dict(scale="20"), dict(scale=float("nan")), dict(scale=1e9), dict(stride=0), dict(stride=7),
    dict(stride=2.0), dict(height=32), dict(height=None), dict(vertical=1), dict(vertical=None), dict(image_size=32),
    dict(format=2)], ids=str)
def test_metadata_that_is_refused(tmp_path, changes):
    path = write_reader(tmp_path / "reader.onnx", about(**changes))
    with pytest.raises(UserError) as caught:
        ReaderModel(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def not_finite(row=3, value=np.nan):
    changed = centers()
    changed[row, 0] = value
    return changed


@pytest.mark.parametrize("options, said", [
    (dict(class_centers=centers()[:-1]), "centers"), (dict(class_centers=centers() * np.float32(1.1)), "centers"),
    (dict(class_centers=not_finite()), "centers"), (dict(class_centers=not_finite(value=np.inf)), "centers"),
    (dict(class_centers=np.ones((len(CLASSES), 4), np.float32) / 2), "cannot load|centers"), (dict(gain=0.0), "unit vector"),
    (dict(gain=np.nan), "unit vector"), (dict(outputs=("embeddings", "boxes")), "not a model"),
    (dict(metadata=json.dumps(about(stride=4))), "unit vector"), (dict(metadata="[" * 5000), "not a model"),
    (dict(metadata="{}"), "not a model"), (dict(metadata=about(classes=CLASSES + ["A"])), "centers")], ids=str)
def test_networks_that_are_refused(tmp_path, options, said):
    path = write_reader(tmp_path / "reader.onnx", **options)
    with pytest.raises(UserError, match=said) as caught:
        ReaderModel(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["embeddings", "boxes", "centers"])
@pytest.mark.parametrize("operator, options", [("SequenceConstruct", {}), ("Cast", dict(to=onnx.TensorProto.STRING)),
                                               ("ReduceMax", dict(keepdims=0))], ids=["sequence", "text", "scalar"])
def test_outputs_of_other_types_are_refused(tmp_path, name, operator, options):
    path = write_reader(tmp_path / "reader.onnx")
    changed = onnx.load(path)
    for node in changed.graph.node:
        for names in (node.input, node.output):
            names[:] = [f"inner_{name}" if one == name else one for one in names]
    changed.graph.node.append(onnx.helper.make_node(operator, [f"inner_{name}"], [name], **options))
    if operator == "ReduceMax" and name == "embeddings":  # and centers of as few axes
        table, = (one for one in changed.graph.initializer if one.name == "table")
        table.CopyFrom(onnx.numpy_helper.from_array(np.float32([1] + [0] * (len(CLASSES) - 1)), "table"))
        del changed.graph.output[2].type.tensor_type.shape.dim[1]
    output, = (output for output in changed.graph.output if output.name == name)
    output.CopyFrom(onnx.helper.make_tensor_sequence_value_info(name, onnx.TensorProto.FLOAT, None)
                    if operator == "SequenceConstruct" else
                    onnx.helper.make_tensor_value_info(name, options.get("to", onnx.TensorProto.FLOAT), None))
    path.write_bytes(changed.SerializeToString())
    with pytest.raises(UserError, match="reader.onnx"):
        ReaderModel(path)


def test_files_that_are_no_model(model, tmp_path):
    damaged = tmp_path / "damaged.onnx"
    for content in (model.read_bytes()[:-200], b"", b"hello", os.urandom(2000)):
        damaged.write_bytes(content)
        with pytest.raises(UserError, match="damaged.onnx"):
            LineReader(damaged)
    with pytest.raises(UserError, match="no such model file"):
        LineReader(tmp_path / "missing.onnx")


@pytest.mark.parametrize("options", [dict(top_k=0), dict(threads=-1), dict(dictionary="missing.txt"),
                                     dict(characters="missing.npz")], ids=str)
def test_options_that_are_refused(model, options):
    with pytest.raises(UserError, match="top-k 0|threads -1|missing"):
        LineReader(model, **options)


# ---------------------------------------------------------------- characters that are missing, or added
def test_characters_that_do_not_occur(model):
    image = draw("abc")
    assert LineReader(model).read([image])[0].text == "abc"
    reader = LineReader(model, without="b")
    reading, = reader.read([image])
    assert "b" not in reading.text and reading.text[0] == "a" and reading.text[-1] == "c" and reader.warnings == []
    assert all("b" not in dict(one.alternatives) or dict(one.alternatives)["b"] == 0 for one in reading.characters)
    columns, = reader.columns([image])
    assert np.isneginf(columns.log_probs[:, CLASSES.index("b")]).all()
    assert np.allclose(np.exp(columns.log_probs).sum(1), 1, atol=1e-5)                # the others share its probability
    assert LineReader(model, without="\u0436b").warnings == ["without \u0436: the model has no such characters"]


def unused_pattern():
    """A character that the model does not know: its pattern differs from all others, in one cell from that of a."""
    new = patterns()[CLASSES.index("a")].copy()
    new[3] *= -1
    image = draw("aXa".replace("X", "a"))
    x = 8 + WIDE + GAP
    image[:, x:x + WIDE] = np.repeat(np.where(new > 0, 255, 0), HEIGHT // 8)[:, None]
    return new / np.float32(8 ** 0.5), image


def test_registered_characters(model, tmp_path):
    center, image = unused_pattern()
    path = tmp_path / "characters.npz"
    known = ReaderModel(model).centers
    save_characters(path, Characters(["\u00e9"], center[None], np.float32([0.05])), known)
    assert LineReader(model).read([image])[0].text != "a\u00e9a"
    reader = LineReader(model, characters=path)
    reading, = reader.read([image])
    assert reading.text == "a\u00e9a" and reader.registered == ["\u00e9"] and reader.classes[-1] == "\u00e9"
    assert LineReader(model, characters=path, without="\u00e9").read([image])[0].text != "a\u00e9a"
    save_characters(path, Characters(["\u00e9"], center[None], np.float32([1.5])), known)
    assert "\u00e9" not in LineReader(model, characters=path).read([image])[0].text  # the offset


def test_several_centers_of_one_text_are_one_class(model, tmp_path):
    center, image = unused_pattern()
    path = tmp_path / "characters.npz"
    added = Characters(["a", "\u00e9", "a"], np.stack([center, centers()[5], center]), np.zeros(3, np.float32))
    save_characters(path, added, ReaderModel(model).centers)
    reader = LineReader(model, characters=path)
    reading, = reader.read([image])
    assert reading.text == "aaa" and reader.classes == [*CLASSES, "\u00e9"]
    columns, = reader.columns([image])
    assert columns.log_probs.shape[1] == len(CLASSES) + 1 and np.allclose(np.exp(columns.log_probs).sum(1), 1, atol=1e-5)


def test_files_of_characters_that_are_refused(model, tmp_path, monkeypatch):
    known, path = ReaderModel(model).centers, tmp_path / "characters.npz"
    good = dict(text=np.array(["x"]), centers=centers()[2:3], offset=np.zeros(1, np.float32))

    def refused(said, **changes):
        arrays = {**good, **changes}
        save_characters(path, Characters(["x"], centers()[2:3], np.zeros(1, np.float32)), known)
        with np.load(path) as saved:
            model_hash = saved["model"]
        np.savez(path, **{"model": model_hash, **arrays})
        with pytest.raises(UserError, match=said) as caught:
            load_characters(path, known)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    for changes in (dict(text=np.array([" "])), dict(text=np.array(["x", "y"])), dict(text=np.array([3])),
                    dict(centers=2 * centers()[2:3]), dict(centers=centers()[2:3, :4]), dict(centers=not_finite()[3:4]),
                    dict(centers=centers()[2:3].astype(np.float64)), dict(offset=np.zeros(2, np.float32)),
                    dict(offset=np.float32([np.nan])), dict(offset=np.float32([5])), dict(text=np.array("x")),
                    dict(text=np.array([{}]))):
        refused("not a file of characters", **changes)
    refused("another model", model=np.array("0" * 64))
    refused("another model", model=np.array([1, 2]))
    save_characters(path, Characters(["x"], centers()[2:3], np.zeros(1, np.float32)), known)
    with pytest.raises(UserError, match="another model"):
        load_characters(path, -known)
    vast = io.BytesIO()  # says that it holds 4 TB
    np.lib.format.write_array_header_1_0(vast, dict(descr="<f4", fortran_order=False, shape=(10 ** 12, 1)))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name in ("text", "centers", "offset", "model"):
            file.writestr(f"{name}.npy", vast.getvalue())
    odd = []  # headers that numpy's parser fails on in ways of its own, and a damaged stream
    for header, method in ((b"(\n", zipfile.ZIP_STORED), (b"\t  x\n y", zipfile.ZIP_STORED), (b"x" * 999, zipfile.ZIP_LZMA),
                           (b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,)}" % 10 ** 28, zipfile.ZIP_STORED)):
        odd.append(io.BytesIO())
        with zipfile.ZipFile(odd[-1], "w", method) as file:
            file.writestr("text.npy", b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header)
    odd = [one.getvalue() for one in odd]
    odd[2] = odd[2][:50] + b"\xff" * 8 + odd[2][58:]
    for content in (path.read_bytes()[:-30], b"", b"hello", packed.getvalue(), *odd):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a file of characters"):
            load_characters(path, known)
    monkeypatch.setattr(inference.characters, "MAX_BYTES", 10_000)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("text.npy", bytes(10_001))
    with pytest.raises(UserError, match="larger than"):
        load_characters(path, known)


def test_a_dictionary_that_no_word_can_be_spelled_from(model, tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\u0436\u0436\u0436 5\nhellp 2\n", encoding="utf-8")
    reader = LineReader(model, dictionary=path)
    assert reader.read([draw("hello world")])[0].text == "hello world"  # the columns are sure of it


def test_a_dictionary_changes_the_characters_too(model, tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("helln 5\n")
    image = draw("hello it")
    x = 8 + 4 * (WIDE + GAP)
    o, n = (patterns()[CLASSES.index(one)] for one in "on")
    between = 255 / 4 * (1 + (o + 0.95 * n) / 1.95)  # as a column's cells it is nearly as like n as it is like o
    image[:, x:x + WIDE] = np.repeat(between, HEIGHT // 8)[:, None].astype(np.uint8)
    plain, changed = (LineReader(model, dictionary=words).read([image])[0] for words in (None, path))
    assert plain.text == "hello it" and changed.text == "helln it"
    assert [one.text for one in changed.characters] == list("hellnit")
    for one, other in zip(plain.characters, changed.characters):
        assert abs(one.column - other.column) <= WIDE / STRIDE and np.allclose(one.box, other.box, atol=WIDE)
    assert changed.characters[4].confidence < 0.6 and changed.characters[4].alternatives[0][0] == "o"


# ---------------------------------------------------------------- the command
def test_text_is_printed(model, lines, capsys):
    assert status_of([lines[0], "--model", model]) == 0
    assert capsys.readouterr().out == TEXTS[0] + "\n"
    assert status_of([lines[0].parent, "--model", model, "--threads", "2"]) == 0
    assert capsys.readouterr().out == "".join(f"{path}: {text}\n" for path, text in zip(lines, TEXTS))


def test_json_of_good_and_bad_images(model, lines, tmp_path, capsys):
    assert status_of([lines[3], tmp_path / "missing.png", "--model", model, "--json", "--top-k", "2"]) == 0
    good, bad = json.loads(capsys.readouterr().out)
    assert good["image"] == str(lines[3]) and good["text"] == TEXTS[3] and good["error"] is None
    assert list(good["characters"][0]) == ["text", "confidence", "box", "alternatives"]
    assert [list(one) for one in good["characters"][0]["alternatives"]] == [["text", "probability"]] * 2
    assert bad["text"] == "" and bad["characters"] == [] and bad["error"] == "file not found" and bad["confidence"] == 0
    assert status_of([tmp_path / "missing.png", "--model", model]) == 2  # nothing could be used
    assert "missing.png: cannot be used: file not found" in capsys.readouterr().out


def test_coco_in_and_out(model, lines, tmp_path, capsys):
    source, out = tmp_path / "coco.json", tmp_path / "found.json"
    images = [{"id": 40 + number, "file_name": f"lines/{path.name}", "license": 1} for number, path in enumerate(lines[:2])]
    source.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    before = source.read_bytes()
    assert status_of(["--coco", source, "--model", model, "--coco-out", out]) == 0
    coco = json.loads(out.read_text())
    assert [(image["id"], image["file_name"], image["text"], image["license"]) for image in coco["images"]] == [
        (40, "lines/0.png", TEXTS[0], 1), (41, "lines/1.png", TEXTS[1], 1)]
    assert (coco["images"][0]["width"], coco["images"][0]["height"]) == draw(TEXTS[0]).shape[::-1]
    assert coco["categories"] == [{"id": 0, "name": "char"}, {"id": 1, "name": "word"}]
    first = [one for one in coco["annotations"] if one["image_id"] == 40]
    chars, words = ([one for one in first if one["category_id"] == kind] for kind in (0, 1))
    assert "".join(one["text"] for one in chars) == "helloworld" and [one["text"] for one in words] == ["hello", "world"]
    assert len({one["id"] for one in coco["annotations"]}) == len(coco["annotations"])
    x0, y0, wide, high = words[0]["bbox"]
    assert x0 == chars[0]["bbox"][0] and x0 + wide == sum(chars[4]["bbox"][::2]) and (y0, high) == (0, HEIGHT)
    assert status_of(["--coco", source, "--model", model, "--coco-out", source]) == 2
    assert source.read_bytes() == before and "is the file that is read" in capsys.readouterr().err


def test_coco_of_a_line_without_text(model, tmp_path):
    blank = models.save(tmp_path / "blank.png", np.full((40, 90), 255, np.uint8))
    assert status_of([blank, "--model", model, "--coco-out", tmp_path / "found.json"]) == 0
    coco = json.loads((tmp_path / "found.json").read_text())
    assert coco["annotations"] == [] and coco["images"] == [
        {"id": 1, "file_name": "blank.png", "text": "", "vertical": False, "width": 90, "height": 40}]


def test_coco_of_images_that_cannot_be_used(model, lines, tmp_path):
    """Without a size they would make the file invalid; what a file said of them before stays."""
    out, source = tmp_path / "found.json", tmp_path / "coco.json"
    assert status_of(["", tmp_path / "none.png", lines[0], "--model", model, "--coco-out", out]) == 0
    image, = json.loads(out.read_text())["images"]
    assert image["file_name"] == "lines/0.png" and image["text"] == TEXTS[0]
    listed = [{"id": 5, "file_name": "none.png", "text": "known", "width": 3, "height": 4},
              {"id": 6, "file_name": "lines/0.png", "width": 3, "height": 4}]
    source.write_text(json.dumps({"images": listed}))
    assert status_of(["--coco", source, "--model", model, "--coco-out", out]) == 0
    first, second = json.loads(out.read_text())["images"]
    assert first == listed[0] and (second["width"], second["height"]) == draw(TEXTS[0]).shape[::-1]


def test_words_of_characters_of_several_letters():
    """A class of two ' is one " in the text, a glyph of two words is one character: each word has a box."""
    for text, characters, left in (('" b', ["''", "b"], [0, 10]), ("a b", ["a b"], [0, 0])):
        found = [{"text": one, "box": [10 * i, 0, 10 * i + 8, 9], "confidence": 1.0} for i, one in enumerate(characters)]
        line = {"image": "a.png", "error": None, "size": (20, 9), "text": text, "characters": found}
        words = [one for one in to_coco([line], {}, ".")["annotations"] if one["category_id"] == 1]
        assert [word["text"] for word in words] == text.split() and [word["bbox"][0] for word in words] == left


def test_files_that_coco_out_must_not_replace(model, lines, tmp_path, capsys):
    before = lines[0].read_bytes()
    words = tmp_path / "words.txt"
    words.write_text("hello\n")
    for out in (lines[0], model, words, tmp_path, tmp_path / "none" / "coco.json"):
        assert status_of([*lines, "--model", model, "--dictionary", words, "--coco-out", out]) == 2
        said = capsys.readouterr()
        assert said.out == "" and str(out) in said.err and said.err.count("\n") == 1  # before anything is read
    assert lines[0].read_bytes() == before


def test_coco_out_of_files_is_a_folder_of_lines(model, lines, tmp_path):
    """What `ocr/folder.py` reads: the boxes belong to the characters of the text."""
    from ocr.folder import read_lines
    folder = lines[0].parent
    assert status_of([folder, "--model", model, "--coco-out", folder / "coco.json"]) == 0
    (folder / "lines.tsv").write_text("file\ttext\n" + "".join(f"{path.name}\t{text}\n" for path, text in zip(lines, TEXTS)))
    for line in read_lines(folder):
        assert len(line.boxes) == len(line.text.replace(" ", "")) and (np.diff(line.boxes[:, 0]) > 0).all()


@pytest.mark.parametrize("content", [
    "", "[]", "{", '{"images": 3}', '{"images": []}', '{"images": [{"id": 1}]}', '{"images": [{"id": 1, "file_name": 3}]}',
    '{"images": [{"id": "x", "file_name": "a"}]}', '{"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}]}',
    '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}',
    '{"images": [{"id": 1e999, "file_name": "a"}]}',
    '{"images": [{"id": 1, "file_name": "a\\u0000"}]}', '{"images": [{"id": 1, "file_name": "\\ud800"}]}',
    "[" * 100_000, None],
    ids=lambda text: str(text)[:60])
def test_a_broken_coco_file(model, tmp_path, capsys, content):
    path = tmp_path / "coco.json"
    if content is not None:
        path.write_text(content)
    assert status_of(["--coco", path, "--model", model]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and str(path) in said.err


def test_drawings(model, lines, tmp_path, capsys):
    shown = tmp_path / "shown"
    (lines[0].parent / "bad.png").write_bytes(b"")
    assert status_of([lines[0].parent, "--model", model, "--show", shown]) == 0
    assert sorted(path.name for path in shown.iterdir()) == [f"{number:05}_{number}.jpg" for number in range(len(TEXTS))]
    drawing = cv2.imread(str(shown / "00001_1.jpg"))
    assert drawing.shape[0] > HEIGHT and (drawing[:HEIGHT].std(2) > 20).any()  # colored boxes
    assert status_of([lines[0], "--model", model, "--show", lines[0].parent]) == 2
    assert "lies in it" in capsys.readouterr().err


def test_a_drawing_of_a_page_that_is_thin(model, tmp_path):
    page = models.save(tmp_path / "thin.png", np.full((8, 40_000), 255, np.uint8))
    assert status_of(["--page", page, "--model", model, "--show", tmp_path / "shown"]) == 0
    assert cv2.imread(str(tmp_path / "shown" / "00000_thin.jpg")).shape == (1, SHOWN, 3)


@pytest.mark.parametrize("arguments, said", [
    ([], "give images"), (["a.png", "--coco", "b.json"], "give images"), (["a.png", "--top-k", "0"], "top-k 0"),
    (["a.png", "--threads", "-1"], "threads -1"), (["a.png", "--threads", "x"], "--threads"),
    (["a.png", "--dictionary", "none.txt"], "none.txt"), (["a.png", "--characters", "none.npz"], "none.npz")])
def test_mistakes_are_one_line(model, arguments, said, capsys):
    assert status_of([*arguments, "--model", model]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_what_has_no_effect_is_told(model, lines, capsys):
    assert status_of([lines[0], "--model", model, "--without", "\u0436"]) == 0
    assert capsys.readouterr().err == "warning: without \u0436: the model has no such characters\n"


def test_the_script_and_the_package_are_the_same_program(model, lines):
    """As a script, in a process of its own, without torch."""
    code = ("import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
            "sys.path[0] = 'inference'; runpy.run_path(sys.argv[0], run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code, "inference/read.py", lines[0].parent, "--model", model], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines() == [f"{path}: {text}" for path, text in zip(lines, TEXTS)]
