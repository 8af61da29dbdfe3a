"""Serving classifiers of images and of the text in them: the fused answer, derived anew; text that is read, given or
missing; untrusted folders; the command; and how a folder is gathered."""
import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import onnx_export
from adverts.__main__ import main as adverts
from configs import load_config
from inference import AdvertClassifier, classifier
from inference.classify import main
from inference.cli import exit_status
from inference.errors import UserError
from inference.image import ImageError
from inference.ngrams import Ngrams, document
from inference.segments import DEFAULT_SIDE, MAX_PIXELS, Segment, make_reader, read_segments
from tasks import get_task
from tests.helpers.classifiers import (
    COLORS,
    NGRAMS,
    SIDE,
    WORDS,
    image_about,
    text_about,
    tokenizer,
    write_folder,
    write_image_classifier,
    write_text_classifier,
    write_token_classifier,
)
from tests.helpers.models import METADATA, blocks, save, write_model
from tests.helpers.programs import run_with_only

ROOT = Path(__file__).resolve().parent.parent
BOX = [[4, 6], [60, 6], [60, 20], [4, 20]]


def softmax(values):
    weights = np.exp(values - np.max(values))
    return weights / weights.sum()


def by_color(path):
    """Probabilities of the image classifier of the helpers, in the order of COLORS."""
    mean = cv2.imread(str(path)).reshape(-1, 3).mean(0) / 255
    return softmax([8 * mean @ np.array(color) / 255 for color in COLORS.values()])


def by_word(text):
    ngrams = Ngrams(**NGRAMS)
    rows = ngrams.rows(text)
    return softmax([40 * np.isin(rows, ngrams.rows(WORDS[name])).mean() for name in COLORS])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The text network has its classes in another order than the fusion."""
    return write_folder(tmp_path_factory.mktemp("serving") / "classifier", text=text_about(classes=["blue", "red", "green"]))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twelve images in two folders; sides are multiples of SIDE, so that resizing keeps the mean color exactly."""
    root = tmp_path_factory.mktemp("images")
    return [str(save(root / f"shop{i % 2}" / f"{i:02}.png", blocks(i, 2 * SIDE))) for i in range(12)]


@pytest.fixture(scope="module")
def texts(images):
    """Of each image, by the last two parts of its path; every fourth has none."""
    said = [["ROUGE"], ["vert", "  et   Rouge"], ["bleu 100 %", "VERT"], []]
    return {id_of(path): [Segment(text, 0.9, BOX) for text in said[i % 4]] for i, path in enumerate(images)}


def id_of(path):
    return "/".join(path.split("/")[-2:])


def text_of(texts, path):
    return document([segment.text for segment in texts[id_of(path)]])


# ---------------------------------------------------------------- answers
def test_the_fused_answer_is_that_of_the_formula(folder, images, texts):
    """log p = 0.5 log p_image + 0.7 log p_text + constant; without text the fallback, the image alone."""
    served = AdvertClassifier(folder, texts=texts)
    assert served.classes == list(COLORS)
    for path, result in zip(images, served.classify(images, top_k=3)):
        image, text = by_color(path), text_of(texts, path)
        expected = softmax(0.5 * np.log(image) + 0.7 * np.log(by_word(text))) if text else image
        found = {entry["label"]: entry["probability"] for entry in result["top_k"]}
        assert np.allclose([found[name] for name in COLORS], expected, atol=1e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        best = int(expected.argmax())
        assert result["label"] == list(COLORS)[best] == result["top_k"][0]["label"]
        assert result["probability"] == result["top_k"][0]["probability"] == pytest.approx(expected[best], abs=1e-5)
        assert result["models"]["image"] == pytest.approx(image[best], abs=1e-5)
        assert result["models"]["text"] == (pytest.approx(by_word(text)[best], abs=1e-5) if text else None)
        assert (result["image"], result["text"], result["error"]) == (path, text, None)
        assert result["segments"] == [segment._asdict() for segment in texts[id_of(path)]]


def test_a_mean_of_probabilities_with_temperatures(tmp_path, images, texts):
    models = [{"name": "w", "kind": "text", "weight": 3, "temperature": 2.0},
              {"name": "c", "kind": "image", "weight": 1, "temperature": 0.5}]
    served = AdvertClassifier(write_folder(tmp_path / "m", form="mean", models=models, fallback={}), texts=texts)
    for path, result in zip(images, served.classify(images, 3)):
        image, text = softmax(np.log(by_color(path)) / 0.5), text_of(texts, path)
        expected = (3 * softmax(np.log(by_word(text)) / 2) + image) / 4 if text else image
        found = {entry["label"]: entry["probability"] for entry in result["top_k"]}
        assert np.allclose([found[name] for name in COLORS], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_one_file_is_a_classifier(tmp_path, images, texts, kind):
    path = (write_image_classifier if kind == "image" else write_text_classifier)(tmp_path / "any name.onnx")
    for image, result in zip(images, AdvertClassifier(path, texts=texts).classify(images, 3)):
        text = text_of(texts, image)
        if kind == "text" and not text:  # nothing to go by: no class, all alike
            assert result["label"] is None and result["error"] is None and result["models"] == {"text": None}
            assert result["probability"] == pytest.approx(1 / 3)
            continue
        found = {entry["label"]: entry["probability"] for entry in result["top_k"]}
        expected = by_color(image) if kind == "image" else by_word(text)
        assert np.allclose([found[name] for name in COLORS], expected, atol=1e-5)
        assert list(result["models"]) == [kind]


def test_there_is_no_class_where_all_are_equally_likely(tmp_path, images, texts):
    """The weight of the only network that sees the image is 0, and there is no fallback."""
    served = AdvertClassifier(write_folder(tmp_path / "c", weights=(0, 1), fallback={}), texts=texts)
    for path, result in zip(images, served.classify(images)):
        assert (result["label"] is None) == (not text_of(texts, path))
        assert result["label"] or result["probability"] == pytest.approx(1 / 3)


def test_the_answer_depends_on_no_other_image_and_on_no_thread(folder, images, texts):
    """Bit by bit: one thread, three, one image at a time, arrays."""
    whole = AdvertClassifier(folder, texts=texts, threads=1).classify(images, 3)
    assert AdvertClassifier(folder, texts=texts, threads=3).classify(images, 3) == whole
    served = AdvertClassifier(folder, texts=texts)
    assert [served.classify([image], 3)[0] for image in images] == whole
    assert served.classify(images[::-1], 3) == whole[::-1]
    assert [served(image) for image in images] == [(result["label"], result["probability"]) for result in whole]
    for image, result in zip(images, whole):
        segments = [Segment(**segment) for segment in result["segments"]]
        assert served(cv2.imread(image), segments) == (result["label"], result["probability"])


def test_an_image_is_decoded_and_fitted_as_in_training(tmp_path):
    """fit=pad keeps the aspect, so the mean color is that of the padded image; a large JPEG is decoded at a fraction."""
    image = np.full((256, 768, 3), COLORS["blue"], np.uint8)
    image[40:-40, 40:-40] = COLORS["red"]
    path = save(tmp_path / "large.jpg", cv2.GaussianBlur(image, (0, 0), 5))
    means = {}
    for fit in ("pad", "squash"):
        served = AdvertClassifier(write_image_classifier(tmp_path / f"{fit}.onnx", image_about(fit=fit)))
        result, = served.classify([path], 3)
        means[fit] = [{entry["label"]: entry["probability"] for entry in result["top_k"]}[name] for name in COLORS]
    small = cv2.resize(cv2.imread(str(path)), (SIDE, 10), interpolation=cv2.INTER_AREA)  # 256 / 768 of SIDE, even
    border = np.median(np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]]), 0)
    padded = np.full((SIDE, SIDE, 3), border)
    top = (SIDE - small.shape[0]) // 2
    padded[top:top + small.shape[0]] = small
    for fit, image in (("pad", padded), ("squash", small)):
        expected = softmax([8 * image.reshape(-1, 3).mean(0) / 255 @ np.array(color) / 255 for color in COLORS.values()])
        assert np.allclose(means[fit], expected, atol=8 * 1.5 / 255)  # a level of 255, and rounding
    assert np.abs(np.subtract(*means.values())).max() > 0.1


IMAGE = ["network=test_convnext", "norm=ln", "embedding_size=16", "image_size=32", "fit=pad", "pretrained=false", "data=x"]
BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 40}


def export(config, keys, info, path):
    """A run with random weights, exported to `path`: (its task, its config, its network)."""
    cfg = load_config(config, keys)
    task = get_task(cfg.task)
    torch.manual_seed(0)
    network = task.restore(cfg, info).eval()
    with torch.no_grad():
        for weight in (network.classify[1].weight, getattr(network.encoder, "table", None)):
            if weight is not None:
                weight.copy_(torch.randn(weight.shape))  # so that the classes' probabilities differ
    item = task.export(cfg, info, network)
    onnx_export.export(item, path, onnx_export.describe(item, cfg))
    return task, cfg, network


@pytest.mark.parametrize("encoder", ["ngrams", "bert"])
def test_exports_say_what_weights_were_tuned_on(tmp_path, encoder):
    """`predict_split`, which makes the logits that weights are tuned on, and the served folder agree on every image."""
    keys, info = ["ngram_buckets=512", "embedding_size=8", "texts=x", "split=x"], {"classes": ["d", "c", "b", "a"]}
    if encoder == "bert":
        pytest.importorskip("transformers")
        keys = ["text_network=x", "max_tokens=6", "pooling=mean", "texts=x", "split=x"]
        info["encoder"] = {"config": {**BERT, "vocab_size": 4}, "tokenizer": json.loads(tokenizer())}
    runs = {"looks": export("classification_small", IMAGE, {"classes": ["a", "b", "c", "d"]}, tmp_path / "looks.onnx"),
            "words": export("ads_text_small", keys, info, tmp_path / "words.onnx")}
    said = {"small.png": ["ROUGE  vert", "\n"], "photo.jpg": ["Bleu", "新品 BLEU 100 %", "vert " * 9], "large.webp": []}
    names = [save(tmp_path / name, blocks(seed, side).repeat(2, 1)).name
             for seed, (name, side) in enumerate(zip(said, (20, 512, 96)))]
    classes, expected = ["b", "a", "d", "c"], {}
    for name, (task, cfg, network) in runs.items():
        order = [("abcd" if name == "looks" else "dcba").index(c) for c in classes]
        found, _ = task.predict_split(cfg, network, names, tmp_path, said)
        expected[name] = {image: np.log(softmax(logits.numpy()[order].astype(float) / 2)) for image, logits in found.items()}
    fusion = {"form": "product", "classes": classes, "fallback": {"image": {"looks": 0.9}, "text": {}},
              "models": [{"name": "looks", "kind": "image", "weight": 0.4, "temperature": 2.0},
                         {"name": "words", "kind": "text", "weight": 0.8, "temperature": 2.0}]}
    (tmp_path / "tuned.json").write_text(json.dumps(fusion))
    assert adverts(["classifier", "--image", str(tmp_path / "looks.onnx"), "--text", str(tmp_path / "words.onnx"),
                    "--fusion", str(tmp_path / "tuned.json"), "--out", str(tmp_path / "out")]) == 0
    texts = {name: [Segment(text, 1.0, BOX) for text in lines] for name, lines in said.items()}
    served = AdvertClassifier(tmp_path / "out", texts=texts).classify([tmp_path / name for name in names], 4)
    for name, result in zip(names, served):
        found = {entry["label"]: entry["probability"] for entry in result["top_k"]}
        looks, words = (expected[model].get(name) for model in runs)
        fused = softmax(0.9 * looks if words is None else 0.4 * looks + 0.8 * words)
        assert (words is None) == (name == "large.webp") and np.ptp(fused) > 0.1
        assert np.allclose([found[c] for c in classes], fused, atol=1e-4)


def test_images_that_cannot_be_used_are_listed(folder, images, texts, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    some = [images[0], str(tmp_path / "broken.jpg"), str(tmp_path / "missing.png"), images[1]]
    served = AdvertClassifier(folder, texts=texts, threads=2)
    first, broken, missing, last = served.classify(some)
    assert [first, last] == served.classify([images[0], images[1]])
    assert missing == {"image": some[2], "label": None, "probability": None, "top_k": [], "text": None, "segments": [],
                       "models": {}, "error": "file not found"}
    assert "JPEG" in broken["error"]
    with pytest.raises(ImageError, match="missing.png: file not found"):
        served(some[2])
    words = AdvertClassifier(folder / "text.onnx", texts={**texts, "broken.jpg": [Segment("ROUGE", 1.0, BOX)]})
    assert words.classify([images[0], some[1]])[1]["error"] == broken["error"]  # also where the image is not looked at


# ---------------------------------------------------------------- text
def drawn_word(path, word="VERT", color=(200, 60, 40)):
    image = np.full((120, 320, 3), color, np.uint8)
    cv2.putText(image, word, (40, 80), cv2.FONT_HERSHEY_SIMPLEX, 2, (255, 255, 255), 5, cv2.LINE_AA)
    return str(save(path, image))


def test_text_is_read_in_the_image(folder, tmp_path, capsys):
    """By rapidocr itself: the image is blue, the word says green. Two threads have a reader each."""
    pytest.importorskip("rapidocr")
    paths = [drawn_word(tmp_path / "word.png"), drawn_word(tmp_path / "plain.png", "")]
    served = AdvertClassifier(folder, threads=2)
    word, plain = served.classify(paths)
    assert word["text"] == "VERT" and word["label"] == "green" and word["models"]["image"] < 0.5 < word["models"]["text"]
    (x0, y0), _, (x1, y1), _ = word["segments"][0]["box"]
    assert 20 < x0 < 60 and 15 < y0 < 60 and 150 < x1 < 250 and 75 < y1 < 110
    assert plain["text"] == "" and plain["segments"] == [] and plain["label"] == "blue" and plain["models"]["text"] is None
    assert served(cv2.imread(paths[0])) == (word["label"], word["probability"])

    shown = tmp_path / "shown"
    assert main(["--classifier", str(folder), *paths, "--show", str(shown)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{paths[0]}: green {word['probability']:.4f} text: VERT",
                     f"{paths[1]}: blue {plain['probability']:.4f} no text"]
    framed, bare = (cv2.imread(str(file)).astype(int) for file in sorted(shown.iterdir()))
    at = framed[round((y0 + y1) / 2), x0 - 2:x0 + 3]
    assert (np.abs(at - classifier.GREEN).max(1) < 40).any()                      # the frame's left side
    assert np.abs(bare[:104, :304] - (200, 60, 40)).max() < 12 and (bare[130:] < 100).any()  # no frame; the class


def test_no_image_is_enlarged_beyond_the_limit(monkeypatch):
    """By rapidocr's own rules; with sides in whole 32 pixels the limit holds to 15 %."""
    detector = pytest.importorskip("rapidocr.ch_ppocr_det.utils").DetPreProcess
    enlarged, resize = [], detector.resize

    def seen(self, image):
        enlarged.append(resize(self, image).shape[:2])  # and there is no text
    monkeypatch.setattr(detector, "resize", seen)
    shapes = [(8, 2000), (2000, 8), (8, 30_000), (30_000, 8), (300, 8), (40, 1000), (1000, 29), (3000, 87), (500, 700),
              (2500, 2500)]
    for side in (0, 300, 480, 736, 2000):
        read = make_reader(side)
        for shape in shapes:
            assert read(np.zeros((*shape, 3), np.uint8)) == []
    assert len(enlarged) == 5 * len(shapes) and max(height * width for height, width in enlarged) <= 1.15 * MAX_PIXELS
    assert enlarged[8::len(shapes)] == [(512, 704), (512, 704), (512, 704), (736, 1024), (1984, 2816)]  # as without a limit


def test_boxes_in_a_narrow_image_are_in_its_own_pixels():
    pytest.importorskip("rapidocr")
    image = np.full((80, 2900, 3), 255, np.uint8)
    cv2.putText(image, "WINTER SALE", (1400, 60), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (0, 0, 0), 3, cv2.LINE_AA)
    segment, = make_reader()(image)
    columns, rows = (np.flatnonzero((image[:, :, 0] < 128).any(axis)) for axis in (0, 1))
    (left, top), (right, bottom) = np.min(segment.box, 0), np.max(segment.box, 0)
    assert segment.text.replace(" ", "") == "WINTERSALE"
    assert np.allclose([left, top, right, bottom], [columns[0], rows[0], columns[-1], rows[-1]], atol=20)


def test_the_reader_has_the_setting_that_the_folder_names(tmp_path, images, monkeypatch):
    asked, calls = [], []

    def make_reader(side):
        asked.append(side)
        return lambda image: calls.append(image.shape) or [Segment("BLEU", 0.9, BOX)]
    monkeypatch.setattr(classifier, "make_reader", make_reader)
    results = AdvertClassifier(write_folder(tmp_path / "c", side=736), threads=1).classify(images[:3])
    assert asked == [736] and calls == [(2 * SIDE, 2 * SIDE, 3)] * 3 and {result["text"] for result in results} == {"BLEU"}
    AdvertClassifier(write_text_classifier(tmp_path / "t.onnx"))
    AdvertClassifier(tmp_path / "c" / "image.onnx")  # reads nothing
    assert asked == [736, DEFAULT_SIDE]


def test_an_image_whose_text_cannot_be_read_is_listed(folder, images, monkeypatch):
    def fails(image):
        raise ZeroDivisionError("by zero\nand more")
    monkeypatch.setattr(classifier, "make_reader", lambda side: fails)
    reasons = [result["error"] for result in AdvertClassifier(folder).classify(images[:2])]
    assert reasons == ["its text cannot be read (by zero)"] * 2


def test_without_rapidocr(folder, images, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    monkeypatch.setattr("inference.segments.version", lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name)))
    assert exit_status(lambda: main(["--classifier", str(folder), images[0]])) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install rapidocr" in said and "--without-text" in said and "--texts" in said
    assert exit_status(lambda: main(["--classifier", str(folder / "text.onnx"), images[0]])) == 2
    said = capsys.readouterr().err
    assert "pip install rapidocr" in said and "--without-text" not in said
    assert main(["--classifier", str(folder), images[0], "--without-text", "--json"]) == 0
    result, = json.loads(capsys.readouterr().out)
    assert result["text"] is None and result["probability"] == pytest.approx(by_color(images[0]).max(), abs=1e-5)
    texts = {Path(images[0]).name: [Segment("BLEU", 1.0, BOX)]}
    assert AdvertClassifier(folder, texts=texts, without_text=True).classify(images[:1], 1) == [result]


def test_texts_belong_to_the_image_whose_path_ends_with_their_id(folder, images, tmp_path, monkeypatch):
    long, short = images[0].split("/")[-2] + "/" + images[0].split("/")[-1], images[0].split("/")[-1]
    texts = {short: [Segment("BLEU", 1.0, BOX)], long: [Segment("ROUGE", 1.0, BOX)]}
    served = AdvertClassifier(folder, texts=texts)
    assert [one["text"] for one in served.classify(images[:2])] == ["ROUGE", None]  # the longest; one that is not in them
    monkeypatch.chdir(Path(images[0]).parent)
    assert served.classify([short])[0]["text"] == "ROUGE"
    other = save(tmp_path / short, blocks(0))
    assert served.classify([other])[0]["text"] == "BLEU"
    twin = save(tmp_path / "elsewhere" / short, blocks(0))
    with pytest.raises(UserError, match=f"the id '{short}' is the end of two paths"):
        served.classify([other, twin])
    assert len(served.classify([other, other])) == 2
    for empty in ({"nowhere.png": []}, {}):
        with pytest.raises(UserError, match="texts: none of the 2 images"):
            AdvertClassifier(folder, texts=empty).classify(images[:2])


def test_a_line_of_texts_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("inference.segments.MAX_LINE", 1000)
    file, first, second = tmp_path / "texts.jsonl", {"id": "a", "segments": []}, {"id": "b", "segments": []}
    file.write_text(f"{json.dumps(first)}\n{json.dumps(second | {'error': 'e' * 900})}\n")
    assert read_segments(file) == {"a": [], "b": []}
    file.write_text(f"{json.dumps(first)}\n{json.dumps(second | {'error': 'e' * 1000})}\n")
    with pytest.raises(UserError, match="line 2 is not the text of an image"):
        read_segments(file)


def test_an_encoder_of_hugging_face(images, tmp_path, monkeypatch):
    """The tokenizer is in the file. Only the first tokens count, as many as in training."""
    pytest.importorskip("tokenizers")
    about = {**text_about(), "tokenizer": tokenizer(), "max_tokens": 6}
    said = [Segment(text, 1.0, BOX) for text in ("Vert vert vert ROUGE", "perhaps bleu", "rouge rouge rouge")]
    for more in ((), ("token_type_ids",)):
        served = AdvertClassifier(write_token_classifier(tmp_path / "t.onnx", about, more), texts={})
        label, probability = served(images[0], said)
        assert label == "green" and probability == pytest.approx(softmax([3, 1, 1])[0], abs=1e-5)
    panics = [json.dumps({**json.loads(tokenizer()), **change}) for change in (
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA////AAAAAAAA"}})]
    for change in (dict(tokenizer="{}"), dict(tokenizer=5), dict(tokenizer=None), dict(max_tokens=10**9),
                   dict(max_tokens="6"), dict(classes=None), *(dict(tokenizer=one) for one in panics)):
        path = write_token_classifier(tmp_path / "bad.onnx", {**about, **change})
        with pytest.raises(UserError, match="bad.onnx: ") as caught:
            AdvertClassifier(path, texts={})
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="pip install tokenizers"):
        AdvertClassifier(tmp_path / "t.onnx", texts={})


# ---------------------------------------------------------------- the command
def write_texts(path, texts):
    path.write_text("".join(json.dumps({"id": name, "segments": [segment._asdict() for segment in segments]}) + "\n"
                            for name, segments in texts.items()))
    return str(path)


def test_the_command(folder, images, texts, tmp_path, capsys):
    file = write_texts(tmp_path / "texts.jsonl", texts)
    expected = AdvertClassifier(folder, texts=read_segments(file)).classify(images, 2)
    root = str(Path(images[0]).parents[1])
    assert main(["--classifier", str(folder), root, "--texts", file, "--json", "--top-k", "2", "--threads", "2"]) == 0
    found = {result["image"]: result for result in json.loads(capsys.readouterr().out)}
    assert found == {result["image"]: result for result in expected}
    assert main(["--classifier", str(folder), *images, "--texts", file, "--top-k", "2"]) == 0
    for line, result in zip(capsys.readouterr().out.splitlines(), expected, strict=True):
        one, two = (f"{entry['label']} {entry['probability']:.4f}" for entry in result["top_k"])
        said = " text: " + result["text"].replace("\n", " | ") if result["text"] else " no text"
        assert line == f"{result['image']}: {one} ({one}, {two}){said}"
    assert main(["--classifier", str(folder / "text.onnx"), images[3], "--texts", file]) == 0
    assert capsys.readouterr().out == f"{images[3]}: no class (nothing to classify by) no text\n"
    assert exit_status(lambda: main(["--classifier", str(folder), "nowhere.png", "--without-text"])) == 2
    assert capsys.readouterr().out == "nowhere.png: cannot be used: file not found\n"


@pytest.mark.parametrize("more, said", [
    (["--register", "types"], "--register: is of no use with --classifier"), (["--gap", "0.1"], "--gap: is of no use"),
    (["--model", "m.onnx"], "--model: is of no use"), (["--threshold", "0"], "--threshold: is of no use"),
    (["--find"], "--find: is of no use"), (["--orientation", "any"], "--orientation: is of no use"),
    (["--backend", "cuda"], "--backend: is of no use"), (["--corners", "c.csv"], "--corners: is of no use"),
    (["--classifier", ""], "error: : no such model file"),
    (["--texts", "t.jsonl", "--without-text"], "not allowed with"), (["--top-k", "0"], "--top-k 0: must be"),
    (["--threads", "-1"], "threads -1: must be"), (["--texts", "missing.jsonl"], "missing.jsonl: cannot be read")])
def test_options_that_do_not_fit_are_refused(folder, images, capsys, more, said):
    assert exit_status(lambda: main(["--classifier", str(folder), images[0], *more])) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_options_of_classifiers_need_one(capsys):
    for more in (["--texts", "t.jsonl"], ["--without-text"]):
        assert exit_status(lambda: main(["image.png", *more])) == 2
        assert f"{more[0]}: is of use with --classifier alone" in capsys.readouterr().err


def test_text_alone_cannot_go_without(folder, images, capsys):
    assert exit_status(lambda: main(["--classifier", str(folder / "text.onnx"), images[0], "--without-text"])) == 2
    assert "--without-text leaves nothing" in capsys.readouterr().err


def test_alone_without_torch(folder, images, texts, tmp_path):
    """A copy of inference/ elsewhere, in a process that can import numpy, cv2, onnxruntime and the standard library only."""
    shutil.copytree(ROOT / "inference", tmp_path / "copied", ignore=shutil.ignore_patterns("models", "__pycache__"))
    file = write_texts(tmp_path / "texts.jsonl", texts)
    done = run_with_only(["numpy", "cv2", "onnxruntime", "copied"], "copied/classify.py", "--classifier", folder, images[0],
                         "--texts", file, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == AdvertClassifier(folder, texts=texts).classify(images[:1])


# ---------------------------------------------------------------- untrusted files
@pytest.mark.parametrize("about", [
    "", "[]", "{}", "[" * 100_000, '{"format": 1, "task": ["classification"]}', image_about(classes=None),
    image_about(classes=["one"]), image_about(classes=["red", "red", "blue"]), image_about(classes=["red", 5, "blue"]),
    image_about(classes={"red": 1}), image_about(classes=["red", "green"]), image_about(classes=["red", "", "blue"]),
    image_about(classes=[str(c) for c in range(100_001)]), image_about(image_size=10**9), image_about(image_size=SIDE + 1),
    image_about(image_size=True), image_about(fit="../x"), image_about(fit=["pad"]), image_about(format=2),
    image_about(task="registration"), image_about(task="reading"), image_about(task="\n" * 10_000),
    image_about(format="2\n" * 10_000), image_about(more=" " * (1 << 20))])
def test_an_untrusted_image_classifier_is_one_line(tmp_path, monkeypatch, about):
    monkeypatch.setattr("inference.model.MAX_METADATA", 1 << 20)
    with pytest.raises(UserError) as caught:
        AdvertClassifier(write_image_classifier(tmp_path / "m.onnx", about))
    assert str(caught.value).startswith(str(tmp_path / "m.onnx"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(tmp_path)) + 500


@pytest.mark.parametrize("about", [
    text_about(ngrams=None), text_about(ngrams={}), text_about(ngrams=[1, 3, 512]), text_about(ngrams={**NGRAMS, "low": 0}),
    text_about(ngrams={**NGRAMS, "buckets": 10 * 2**30}), text_about(ngrams={**NGRAMS, "buckets": 0}),
    text_about(ngrams={**NGRAMS, "buckets": 1e3}), text_about(ngrams={**NGRAMS, "high": 10**9}),
    text_about(ngrams={**NGRAMS, "low": 3, "high": 2}), text_about(ngrams={**NGRAMS, "low": "1"}),
    text_about(classes=["red", "green"]), text_about(format="1"), text_about(ngrams={**NGRAMS, "low": True})])
def test_an_untrusted_text_classifier_is_one_line(tmp_path, about):
    with pytest.raises(UserError) as caught:
        AdvertClassifier(write_text_classifier(tmp_path / "m.onnx", about), texts={})
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(tmp_path / "m.onnx"))


@pytest.mark.parametrize("write, said", [
    (lambda path: path, "no such model file"), (lambda path: path.write_bytes(b"x"), "cannot load"),
    (write_model, "task=registration"),
    (lambda path: write_image_classifier(path, outputs=("probabilities",)), "has no output logits"),
    (lambda path: write_image_classifier(path, gain=np.nan), "finite number for each of its 3 classes"),
    (lambda path: write_text_classifier(path, text_about(ngrams={**NGRAMS, "buckets": 1 << 24})), "does not run"),
    (lambda path: write_text_classifier(path, image_about()), "not a model of this project"),
    (lambda path: write_image_classifier(path, text_about()), "not a model of this project")])
def test_a_file_that_is_no_classifier_is_one_line(tmp_path, write, said):
    write(tmp_path / "m.onnx")
    with pytest.raises(UserError, match=said) as caught:
        AdvertClassifier(tmp_path / "m.onnx", texts={})
    assert "\n" not in str(caught.value) and "m.onnx" in str(caught.value)


def test_a_registration_model_is_told_from_a_classifier(tmp_path, images, capsys):
    path = write_image_classifier(tmp_path / "c.onnx")
    assert exit_status(lambda: main(["--model", str(path), "--register", str(Path(images[0]).parent), images[0]])) == 2
    assert "use this one with inference/classify.py --classifier" in capsys.readouterr().err
    path = write_model(tmp_path / "m.onnx", METADATA)
    assert exit_status(lambda: main(["--classifier", str(path), images[0]])) == 2
    assert "use this one with inference/classify.py --model" in capsys.readouterr().err


def named(**changes):
    model = {"name": "a", "kind": "image", "weight": 1.0, "temperature": 1.0}
    return [{**model, **changes}, {"name": "b", "kind": "text", "weight": 1.0, "temperature": 1.0}]


@pytest.mark.parametrize("changes, said", [
    (dict(models=named(weight=float("nan"))), "weight"), (dict(models=named(weight=-1)), "weight"),
    (dict(models=named(temperature=0)), "temperature"), (dict(models=named(weight="1")), "weight"),
    (dict(models=named(kind="sound")), "kind"), (dict(models=named(kind="text")), "no text_2.onnx"),
    (dict(models=[]), "models"), (dict(models=named() * 60), "models"), (dict(form="median"), "form"),
    (dict(models=named(weight=0)[:1]), "weights are 0"), (dict(side=-1), "side"), (dict(side=10**9), "side"),
    (dict(classes=["red", "green"]), "'blue' is a class"), (dict(classes=["red", "green", "blue", "x"]), "'x' is a class"),
    (dict(classes="red"), "classes"), (dict(models=[*named(), {**named()[0], "name": "c"}]), "no image_2.onnx"),
    (dict(models=named(name="../a")), None)])
def test_an_untrusted_fusion_is_one_line(tmp_path, changes, said):
    folder = write_folder(tmp_path / "c", **{"fallback": {}, **changes})
    if said is None:  # its names open no file
        AdvertClassifier(folder, texts={})
        return
    with pytest.raises(UserError, match=said) as caught:
        AdvertClassifier(folder, texts={})
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_folder_whose_files_are_of_other_kinds(tmp_path):
    folder = write_folder(tmp_path / "c")
    write_image_classifier(folder / "text.onnx")
    with pytest.raises(UserError, match="text.onnx: a model of task=classification, where .* has one of kind text"):
        AdvertClassifier(folder, texts={})


def test_a_folder_without_a_fusion(tmp_path):
    with pytest.raises(UserError, match="has no fusion.json; give a folder of python -m adverts classifier"):
        AdvertClassifier(tmp_path)
    (tmp_path / "fusion.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="cannot be used as a fusion"):
        AdvertClassifier(tmp_path)


# ---------------------------------------------------------------- gathering
@pytest.fixture
def runs(tmp_path):
    """Two runs that were exported, and the fusion of their models: (image run, text run, fusion)."""
    for name, write in (("small_all", write_image_classifier), ("words_fold1", write_text_classifier)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "model.onnx")
        (tmp_path / name / "run.json").write_text('{"split": "abc"}')
    folder = write_folder(tmp_path / "tuned", split="abc", fallback={}, models=[
        {"name": "words", "kind": "text", "weight": 0.7, "temperature": 1.5},
        {"name": "small", "kind": "image", "weight": 0.5, "temperature": 1.0}])
    return tmp_path / "small_all", tmp_path / "words_fold1", folder / "fusion.json"


def gathered(runs, out, *more):
    image, text, fusion = map(str, runs)
    return exit_status(lambda: adverts(["classifier", "--image", image, "--text", text, "--fusion", fusion,
                                        "--out", str(out), *more]))


def test_a_folder_is_gathered_and_served(runs, tmp_path, images, texts, capsys):
    out = tmp_path / "new" / "classifier"
    for side in (0, 736):  # the second time over the first
        assert gathered(runs, out, "--side", str(side)) == 0
        assert "text.onnx: words, weight 0.700" in capsys.readouterr().out
        assert sorted(file.name for file in out.iterdir()) == ["fusion.json", "image.onnx", "text.onnx"]
        fusion = json.loads((out / "fusion.json").read_text())
        assert fusion == {**json.loads(runs[2].read_text()), "side": side}
    for path, result in zip(images, AdvertClassifier(out, texts=texts).classify(images, 3)):
        image, text = by_color(path), text_of(texts, path)
        expected = softmax(0.5 * np.log(image) + (0.7 * np.log(by_word(text)) / 1.5 if text else 0))
        found = {entry["label"]: entry["probability"] for entry in result["top_k"]}
        assert np.allclose([found[name] for name in COLORS], expected, atol=1e-5)


def test_two_networks_of_a_kind(runs, tmp_path):
    fusion = json.loads(runs[2].read_text())
    fusion["models"].insert(0, {"name": "large", "kind": "image", "weight": 2.0, "temperature": 1.0})
    runs[2].write_text(json.dumps(fusion))
    write_image_classifier(tmp_path / "other.onnx", gain=1.0)
    assert gathered(runs, tmp_path / "out", "--image", f"large={tmp_path / 'other.onnx'}", str(runs[0])) == 0
    first, second = tmp_path / "out" / "image.onnx", tmp_path / "out" / "image_2.onnx"
    large, small = (tmp_path / "other.onnx").read_bytes(), (runs[0] / "model.onnx").read_bytes()
    assert (first.read_bytes(), second.read_bytes()) == (large, small) != (small, large)
    assert AdvertClassifier(tmp_path / "out", texts={}).classes == list(COLORS)
    fusion["models"] = [fusion["models"][2], fusion["models"][0], fusion["models"][1]]  # written again, from itself
    runs[2].write_text(json.dumps(fusion))
    assert adverts(["classifier", "--image", f"large={first}", f"small={second}", "--text", str(runs[1]),
                    "--fusion", str(runs[2]), "--out", str(tmp_path / "out")]) == 0
    assert (first.read_bytes(), second.read_bytes()) == (small, large)


def test_networks_that_the_weights_were_not_tuned_for_are_refused(runs, tmp_path, capsys):
    image, text, _ = runs
    write_image_classifier(tmp_path / "stranger.onnx")
    write_image_classifier(tmp_path / "small_2.onnx", image_about(classes=["red", "green", "blue"][::-1]))
    other = write_image_classifier(tmp_path / "small_3.onnx", image_about(classes=["red", "green", "azure"]), gain=1.0)
    (tmp_path / "small_empty").mkdir()
    for more, said in (
            (["--image", str(tmp_path / "stranger.onnx")], "was tuned for words (text), small (image)"),
            (["--image", str(image), str(tmp_path / "small_2.onnx")], "small is given by"),
            (["--image", str(text)], "was tuned for"), (["--image", f"small={text}"], "task=text_classification"),
            (["--image", f"small={other}"], "small_3.onnx"), (["--image", str(tmp_path / "small_empty")], "export it"),
            (["--side", "-1"], "--side -1"), (["--fusion", "none.json"], "none.json: cannot be read")):
        assert gathered(runs, tmp_path / "out", *more) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    (image / "run.json").write_text('{"split": "other"}')
    assert gathered(runs, tmp_path / "out") == 2 and "another split (other)" in capsys.readouterr().err
    for kind, path, missing in (("--image", image, "words"), ("--text", text, "small")):
        (image / "run.json").unlink(missing_ok=True)
        assert exit_status(lambda: adverts(["classifier", kind, str(path), "--fusion", str(runs[2]),
                                            "--out", str(tmp_path / "out")])) == 2
        assert f"was tuned with {missing}, which is not given" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_is_whole_or_no_classifier(runs, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert gathered(runs, out) == 0

    def stops(source, target):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("adverts.classifier.shutil.copyfile", stops)
    assert gathered(runs, out) == 2
    with pytest.raises(UserError, match="has no fusion.json"):
        AdvertClassifier(out, texts={})
