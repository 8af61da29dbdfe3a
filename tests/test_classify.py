"""Registering and classifying, in Python and on the command line, and all mistakes that a user can make there."""
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from inference.classify import DocClassifier, main
from inference.cli import counted, exit_status
from inference.errors import UserError
from inference.finder import Finder
from inference.gallery import Gallery
from inference.image import ImageError, fit_square
from inference.model import PART, Part, _Bound, load_model
from tests.helpers.models import METADATA, SIZE, WIDTH, blocks, save, write_model
from tests.helpers.programs import run_with_only

ROOT = Path(__file__).parent.parent
THRESHOLDS = {"1e-1": {"threshold": 0.6, "tpr": 0.99}, "1e-2": {"threshold": 0.7, "tpr": 0.9},
              "1e-3": {"threshold": 0.8, "tpr": 0.8}}


def status_of(arguments):
    return exit_status(lambda: main(arguments))


def elsewhere(location):
    """A tensor whose value is in another file."""
    tensor = numpy_helper.from_array(np.float32(0.4), "mean")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture
def register(tmp_path):
    """Three types: two folders, one of them with two references, and a file in the root."""
    root = tmp_path / "register"
    save(root / "passport" / "a.png", blocks(1))
    save(root / "passport" / "b.png", blocks(2))
    save(root / "cards" / "bank" / "x.jpg", blocks(3))
    save(root / "licence.png", blocks(4))
    return root


@pytest.fixture
def classifier(model, register):
    return DocClassifier(model=model, register_root=register, threshold=0.9)


def features(image):
    """The formula of the model of `write_model`, in numpy; image: uint8 BGR [64, 64, 3]."""
    flat = (image[:, :, ::-1].reshape(4, 16, 4, 16, 3).mean(axis=(1, 3)) / 255).transpose(2, 0, 1).ravel() - 0.4
    return flat / np.linalg.norm(flat)


# ---------------------------------------------------------------- in Python
def test_recognizes_each_reference(classifier):
    assert classifier.warnings == []
    for seed, label in [(1, "passport"), (2, "passport"), (3, "cards/bank"), (4, "licence")]:
        found, score = classifier(blocks(seed))
        assert found == label and score > 0.999
    assert {label: bank.shape for label, bank in classifier.bank.items()} == {
        "cards/bank": (1, WIDTH), "licence": (1, WIDTH), "passport": (2, WIDTH)}


def test_get_register_reads_another_folder(classifier, tmp_path):
    save(tmp_path / "other" / "visa.png", blocks(7))
    assert list(classifier.get_register(tmp_path / "other")) == ["visa"]
    assert len(classifier.bank) == 3


def test_a_rejected_image_has_its_true_score(classifier):
    unknown = blocks(9)
    cosines = [features(blocks(seed)) @ features(unknown) for seed in (1, 2, 3, 4)]
    label, score = classifier(unknown)
    assert label is None
    assert score == pytest.approx((max(cosines) + 1) / 2, abs=2e-3)  # one reference is a JPEG


def test_top_k_has_distinct_labels_by_their_best_reference(classifier):
    unknown = blocks(9)
    scores = {"passport": max(features(blocks(1)) @ features(unknown), features(blocks(2)) @ features(unknown)),
              "cards/bank": features(blocks(3)) @ features(unknown), "licence": features(blocks(4)) @ features(unknown)}
    expected = sorted(scores, key=scores.get, reverse=True)
    for k in (1, 2, 3, 10):
        result, = classifier.classify([unknown], top_k=k)
        assert [entry["label"] for entry in result["top_k"]] == expected[:k]
        for entry in result["top_k"]:
            assert entry["score"] == pytest.approx((scores[entry["label"]] + 1) / 2, abs=2e-3)


def test_channels_and_range_are_those_of_the_model(classifier):
    """An image gives its own feature, which is not the feature with blue and red exchanged."""
    image = blocks(5)
    assert np.abs(classifier.extract_feature(image) - features(image)).max() < 1e-5
    assert np.abs(classifier.extract_feature(image[:, :, ::-1]) - features(image)).max() > 0.01


def test_takes_paths_and_whatever_imread_returns(classifier, tmp_path):
    gray = cv2.cvtColor(blocks(6), cv2.COLOR_BGR2GRAY)
    path = save(tmp_path / "gray.png", gray)
    expected = classifier(path)
    assert classifier(str(path)) == classifier(gray) == classifier(cv2.cvtColor(gray, cv2.COLOR_GRAY2BGRA)) == expected
    assert classifier(gray.astype(np.uint16) * 257) == expected


def test_a_batch_is_its_images_one_by_one(classifier):
    images = [blocks(seed) for seed in range(150)]  # more than two chunks
    images[70] = np.zeros((2, 2, 3), np.uint8)
    results = classifier.classify(images)
    assert len(results) == 150 and results[70]["error"] == "2x2 pixels: smaller than 8"
    for index in (0, 3, 69, 71, 149):
        label, score = classifier(images[index])
        assert results[index]["label"] == label and results[index]["score"] == pytest.approx(score, abs=1e-6)
    assert classifier.classify([]) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_many_files_in_order_with_bad_ones_between(model, register, tmp_path, threads):
    """More than one part per thread. The results are in the order of the files, and equal those of single files."""
    paths = [save(tmp_path / f"{seed}.png", blocks(seed)) for seed in range(200)]
    bad = [0, 15, 16, 17, 77, 199] + list(range(96, 112))  # a whole part among them
    for index in bad:
        paths[index].write_bytes(b"")
    classifier = DocClassifier(model=model, register_root=register, threshold=0.9, threads=threads)
    assert classifier.model.threads == threads
    results = classifier.classify(paths, top_k=2)
    assert [result["image"] for result in results] == [str(path) for path in paths]
    assert [index for index, result in enumerate(results) if result["error"] == "empty file"] == sorted(bad)
    for index in set(range(200)) - set(bad):
        label, score = classifier(paths[index])
        assert results[index]["label"] == label and results[index]["score"] == pytest.approx(score, abs=1e-6)
        assert results[index]["top_k"][0]["score"] == results[index]["score"]


def test_the_first_result_comes_before_all_images_are_read(classifier, monkeypatch):
    prepared = []
    prepare = classifier.model.prepare
    monkeypatch.setattr(classifier.model, "prepare", lambda image: prepared.append(0) or prepare(image))
    images = [blocks(1)] * 2000
    results = classifier.stream(images)
    assert next(results)["label"] == "passport"
    assert len(prepared) <= (2 * classifier.model.threads + 1) * PART["cpu"]
    results.close()


def test_one_bad_image_raises_with_its_name(classifier, tmp_path):
    with pytest.raises(ImageError, match="nowhere.jpg: file not found"):
        classifier(tmp_path / "nowhere.jpg")
    with pytest.raises(ImageError, match="imread returns None"):
        classifier(cv2.imread(str(tmp_path / "nowhere.jpg")))


def test_embed_is_normalized_for_any_number_of_images(model):
    loaded = load_model(model, threads=1)
    assert loaded.image_size == SIZE and loaded.embedding_size == WIDTH and loaded.metadata == METADATA
    for count in (0, 1, 65):
        embedded = loaded.embed(np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8))
        assert embedded.shape == (count, WIDTH) and embedded.dtype == np.float32
        assert np.abs(np.linalg.norm(embedded, axis=1) - 1).max(initial=0) < 1e-5
    with pytest.raises(ValueError, match="expected uint8"):
        loaded.embed(np.zeros((1, SIZE, SIZE, 3), np.float32))


# ---------------------------------------------------------------- the registry
def test_colliding_labels_are_reported(model, tmp_path):
    for seed, name in enumerate(["A/B.jpg", "A_B.jpg", "A_B.png", "C.png", "C/x.png", "D/E.png"]):
        save(tmp_path / name, blocks(seed))
    registry = Gallery(tmp_path, load_model(model))
    assert registry.labels == ["A", "A_B", "C", "D"]
    assert len(registry.bank["A_B"]) == 2 and len(registry.bank["C"]) == 2
    assert len(registry.warnings) == 2
    assert registry.warnings[0].startswith("A_B.jpg, A_B.png: share the label")
    assert registry.warnings[1].startswith("C.png, C/: share the label")


def test_the_same_image_twice_is_reported(model, tmp_path):
    for name in ("A/1.png", "A/2.png", "B/1.bmp", "C/1.png"):
        save(tmp_path / name, blocks(1 if name[0] in "AB" else 3))
    save(tmp_path / "C" / "2.png", blocks(3))
    first, second = Gallery(tmp_path, load_model(model)).warnings
    assert first == "A/1.png, A/2.png, B/1.bmp: the same image, registered as different types; keep one of them"
    assert second == "C/1.png, C/2.png: the same image, registered more than once"


def test_unreadable_references_are_reported_and_skipped(model, register):
    (register / "passport" / "text.jpg").write_text("not an image")
    (register / "empty").mkdir()
    (register / "empty" / "zero.png").touch()
    registry = Gallery(register, load_model(model))
    assert registry.labels == ["cards/bank", "licence", "passport"]
    assert registry.warnings[0] == "empty/zero.png: empty file; skipped"
    assert registry.warnings[1].startswith("passport/text.jpg: not an image") and len(registry.warnings) == 2


def test_the_best_types_are_those_of_the_plain_maximum(tmp_path):
    """Random registries: few and many types, some of one reference, some of hundreds."""
    rng = np.random.default_rng(0)
    for _ in range(15):
        types = int(rng.integers(1, 60))
        counts = np.where(rng.random(types) < 0.2, rng.integers(1, 120, types), 1)
        bank = {f"type {index:02}": rng.standard_normal((count, WIDTH), np.float32) for index, count in enumerate(counts)}
        bank = {label: features / np.linalg.norm(features, axis=1, keepdims=True) for label, features in bank.items()}
        registry = registry_of(bank, tmp_path)
        queries = rng.standard_normal((9, WIDTH), np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        expected = np.stack([(queries.astype(np.float64) @ bank[label].T).max(axis=1) for label in registry.labels], axis=1)
        k = int(rng.integers(1, 70))
        scores, found = registry.top(queries, k)
        assert found.shape == scores.shape == (9, min(k, types)) and scores.dtype == np.float32
        assert np.array_equal(found, np.argsort(-expected, axis=1, kind="stable")[:, :k])
        assert np.abs(scores - (np.take_along_axis(expected, found, axis=1) + 1) / 2).max() < 1e-6


def registry_of(bank, folder):
    """A registry of these features: one empty image file per reference, for which a fake model gives the feature."""
    class Given:
        def stream(self, sources, views):
            names = [Path(source).relative_to(folder / "bank").parts for source in sources]
            features = np.stack([bank[label][int(Path(file).stem)] for label, file in names])
            images = np.arange(len(names)).astype(np.uint64).view(np.uint8).reshape(len(names), 8)
            yield Part(list(range(len(names))), images, features, {})

    shutil.rmtree(folder / "bank", ignore_errors=True)
    for label, features in bank.items():
        (folder / "bank" / label).mkdir(parents=True)
        for row in range(len(features)):
            (folder / "bank" / label / f"{row:03}.png").touch()
    return Gallery(folder / "bank", Given())


def test_look_alikes_are_those_of_all_pairs(tmp_path, monkeypatch):
    """Random registries against a loop over all references: the best match of each reference among the other types."""
    rng = np.random.default_rng(1)
    for threshold in (0.0, 0.5, 0.62, 1.01):
        bank = {f"type {index}": rng.standard_normal((rng.integers(1, 4), WIDTH), np.float32) for index in range(12)}
        bank["type 3"][0] = bank["type 7"][0] + 0.1
        bank = {label: features / np.linalg.norm(features, axis=1, keepdims=True) for label, features in bank.items()}
        expected = {}
        for label, references in bank.items():
            for reference in references:
                scores = {other: float((bank[other] @ reference).max() + 1) / 2 for other in bank if other != label}
                score, other = max((score, other) for other, score in scores.items())
                pair = tuple(sorted((label, other), key=sorted(bank).index))
                if score >= threshold:
                    expected[pair] = max(score, expected.get(pair, 0))
        found = registry_of(bank, tmp_path).look_alikes(threshold)
        assert {(first, second): pytest.approx(score, abs=1e-6) for first, second, score in found} == expected
        assert [score for *_, score in found] == sorted((score for *_, score in found), reverse=True)
        assert threshold > 1 or found[0][:2] == ("type 3", "type 7")
    assert registry_of({"alone": bank["type 0"]}, tmp_path).look_alikes(0) == []
    monkeypatch.setattr("inference.gallery.COMPARED", 1)
    assert registry_of(bank, tmp_path).look_alikes(0) is None


def test_look_alikes_take_few_lines(model, tmp_path, monkeypatch):
    for number in range(6):
        save(tmp_path / f"edition {number}.png", np.clip(blocks(1).astype(int) + number, 0, 255))
    warnings = DocClassifier(model=model, register_root=tmp_path, threshold=0.9).warnings
    assert len(warnings) == 4 and all("look alike: their references score" in line for line in warnings[:3])
    assert re.fullmatch(r"\d+ more pairs of types look alike", warnings[3])
    assert DocClassifier(model=model, register_root=tmp_path, threshold=1).warnings == []
    monkeypatch.setattr("inference.gallery.COMPARED", 5)
    warning, = DocClassifier(model=model, register_root=tmp_path, threshold=0.9).warnings
    assert "types that look alike were not searched for" in warning


def test_types_that_look_alike_have_higher_thresholds_unless_one_was_given(tmp_path):
    """By the formula: from the threshold of the table, a quarter of the way up to the score of the two references."""
    table = {"1e-4": {"threshold": 0.8, "tpr": 0.9}}
    path = write_model(tmp_path / "model.onnx", METADATA | {"thresholds": table})
    for name, image in (("first", blocks(1)), ("second", blend(0.1)), ("other", blocks(5))):
        save(tmp_path / "types" / f"{name}.png", image)
    classifier = DocClassifier(model=path, register_root=tmp_path / "types")
    score = (features(blocks(1)) @ features(blend(0.1)) + 1) / 2
    raised = 0.8 + (score - 0.8) / 4
    expected = {"first": raised, "other": 0.8, "second": raised}
    assert 0.8 < score and classifier.thresholds == pytest.approx(expected, abs=2e-3)
    between = 0
    for share in np.linspace(0, 1, 60):  # from one type, through the thresholds, to an image of no type
        (result,), own = classifier.classify([blend(share)]), classifier.thresholds
        best = result["top_k"][0]["label"]
        assert result["label"] == (best if result["score"] >= own[best] else None)
        between += 0.8 <= result["score"] < own[best]
    assert between
    given = DocClassifier(model=path, register_root=tmp_path / "types", threshold=0.8)
    assert set(given.thresholds.values()) == {0.8}


# ---------------------------------------------------------------- the runner-up gap
def blend(share):
    """An image whose feature is about `share` of the way from blocks(1) to blocks(3)."""
    return cv2.addWeighted(blocks(1), 1 - share, blocks(3), share, 0)


@pytest.mark.parametrize("own", [None, 0.05])
def test_the_runner_up_gap_rejects_images_close_to_two_types(tmp_path, register, own):
    """By the formula: the gap between the best and the second type decides; the score stays the true one."""
    path = write_model(tmp_path / "model.onnx", METADATA | {"margin": own})
    for margin in (None, 0, 0.02, 0.2, 1):
        classifier = DocClassifier(model=path, register_root=register, threshold=0.6, margin=margin)
        assert classifier.margin == (own or 0 if margin is None else margin)
        images = [blend(share / 20) for share in range(21)]
        for image, result in zip(images, classifier.classify(images, top_k=4)):
            assert set(result) == {"image", "label", "score", "top_k", "error"}
            first, second = (entry["score"] for entry in result["top_k"][:2])
            refused = first < 0.6 or first - second < classifier.margin
            assert result["label"] == (None if refused else result["top_k"][0]["label"])
            cosines = [features(blocks(seed)) @ features(image) for seed in (1, 2, 3, 4)]
            truth = sorted((max(cosines[:2]), *cosines[2:]))  # seeds 1 and 2 are both passports
            assert (first, second) == pytest.approx(((truth[2] + 1) / 2, (truth[1] + 1) / 2), abs=2e-3)
            assert classifier(image) == (result["label"], result["score"]) == (result["label"], first)
            single, = classifier.classify([image])
            assert single == result | {"top_k": result["top_k"][:1]}
    labels = [result["label"] for result in classifier.classify(images)]  # margin 1: no gap is that large
    assert set(labels) == {None}


def test_a_single_type_has_no_second(model, tmp_path):
    save(tmp_path / "passport.png", blocks(1))
    classifier = DocClassifier(model=model, register_root=tmp_path, threshold=0.6, margin=1)
    assert classifier(blocks(1))[0] == "passport" and len(classifier.classify([blocks(1)], top_k=3)[0]["top_k"]) == 1


def test_the_runner_up_gap_is_reported(model, register, tmp_path, capsys):
    between, unknown = save(tmp_path / "between.png", blend(0.5)), save(tmp_path / "unknown.png", blocks(9))
    limits = "--threshold", 0.7, "--margin", 0.2
    for top_k in (1, 3):
        assert status_of(arguments(model, register, between, unknown, *limits, "--top-k", top_k)) == 0
        line, other = capsys.readouterr().out.splitlines()
        ways = [f"(too close to {names})" for names in ("passport and cards/bank", "cards/bank and passport")]
        assert line.startswith(f"{between}: not registered 0.") and any(way in line for way in ways)
        assert other.startswith(f"{unknown}: not registered 0.") and "too close" not in other
        assert line.endswith(")") and line.count(" (") == (1 if top_k == 1 else 2)
    assert status_of(arguments(model, register, between, "--threshold", 0.7, "--margin", 0)) == 0
    assert "not registered" not in capsys.readouterr().out


# ---------------------------------------------------------------- what is shipped
def test_without_model_and_registry_the_shipped_ones(model, register, tmp_path, capsys, monkeypatch):
    image = str(save(tmp_path / "image.png", blocks(4)))
    monkeypatch.setattr("inference.classify.DEFAULT_MODEL", model)
    monkeypatch.setattr("inference.classify.DEFAULT_REGISTRY", register)
    for given, said in (([], [model, register]), (["--model", str(model)], [register]),
                        (["--register", str(register)], [model])):
        assert status_of([*given, image, "--json", "--threshold", "0.9"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)[0]["label"] == "licence"
        assert err == f"using the shipped files: {' and '.join(map(str, said))}\n"
    assert DocClassifier(threshold=0.9)(blocks(4))[0] == "licence"


def test_nothing_shipped(model, register, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("inference.classify.DEFAULT_MODEL", tmp_path / "nowhere.onnx")
    monkeypatch.setattr("inference.classify.DEFAULT_REGISTRY", tmp_path / "nowhere")
    assert "nowhere.onnx: the shipped model is missing" in refused(capsys, ["--register", str(register), "x.png"])
    message = refused(capsys, ["--model", str(model), "x.png"])
    assert "nowhere: the shipped registry is missing" in message and "--register" in message


# ---------------------------------------------------------------- thresholds
@pytest.mark.parametrize("fpr, expected", [(0.1, 0.6), (0.05, 0.7), (0.01, 0.7), (0.001, 0.8), (1, 0.6), (None, 0.8)])
def test_fpr_picks_the_nearest_rate_not_above(tmp_path, register, fpr, expected):
    table = THRESHOLDS | {"1e-4": {"threshold": 0.85}, "1e-5": {"threshold": 0.9}}
    path = write_model(tmp_path / "model.onnx", METADATA | {"thresholds": table})
    classifier = DocClassifier(model=path, register_root=register, fpr=fpr)
    assert classifier.threshold == expected and classifier.warnings == []


@pytest.mark.parametrize("types, find, expected", [
    (50, False, 0.8), (51, False, 0.85), (100, False, 0.85), (101, False, 0.87), (25, "auto", 0.8), (26, "auto", 0.85)])
def test_the_default_rate_lets_one_unknown_image_in_twenty_pass(tmp_path, types, find, expected):
    """0.05 / (types x views), at most 1e-3; the nearest rate not above it."""
    table = {"1e-2": 0.7, "1e-3": 0.8, "5e-4": 0.85, "2e-4": 0.87}
    path = write_model(tmp_path / "model.onnx", METADATA | {"thresholds": {k: {"threshold": v} for k, v in table.items()}})
    for number in range(types):
        save(tmp_path / "register" / f"{number:03}.png", blocks(number))
    finder = None
    if find:
        finder = Finder.__new__(Finder)  # one that is not asked: references are taken as they are
        finder.image_size = 224
    classifier = DocClassifier(model=path, register_root=tmp_path / "register", find=find, finder=finder,
                               find_references=False)
    assert classifier.threshold == expected


def test_a_threshold_that_nothing_passes(tmp_path, register):
    """Just above 1: the result of `eval` where different types have the same image."""
    table = {"1e-3": {"threshold": 1 + 2 ** -24}}
    path = write_model(tmp_path / "model.onnx", METADATA | {"thresholds": table})
    assert DocClassifier(model=path, register_root=register)(blocks(1))[0] is None


def test_a_table_that_ends_before_the_default(tmp_path, register):
    ends = {rate: entry for rate, entry in THRESHOLDS.items() if rate != "1e-3"} | {"2e-3": {"threshold": 0.8}}
    path = write_model(tmp_path / "model.onnx", METADATA | {"thresholds": ends})
    classifier = DocClassifier(model=path, register_root=register)
    assert classifier.threshold == 0.8
    assert classifier.warnings == ["the model has no threshold for a false positive rate of 0.001; using 0.8000, since "
                                   "the lowest rate of its table is 0.002"]
    few = write_model(tmp_path / "few.onnx", METADATA | {"thresholds": {"1e-1": {"threshold": 0.56, "tpr": 1.0}}})
    classifier = DocClassifier(model=few, register_root=register)  # its own threshold would accept nearly everything
    assert classifier.threshold == 0.75 and "using 0.7500" in classifier.warnings[0]
    assert DocClassifier(model=few, register_root=register, fpr=1e-1).threshold == 0.56


def test_threshold_without_a_table(model, register, tmp_path):
    classifier = DocClassifier(model=model, register_root=register)
    assert classifier.threshold == 0.75 and "0.75" in classifier.warnings[0]
    with pytest.raises(UserError, match="--threshold"):
        DocClassifier(model=model, register_root=register, fpr=0.01)
    path = write_model(tmp_path / "model.onnx", METADATA | {"thresholds": THRESHOLDS})
    with pytest.raises(UserError, match="--threshold"):
        DocClassifier(model=path, register_root=register, fpr=1e-4)


# ---------------------------------------------------------------- the command line
def arguments(model, register, *others):
    return ["--model", str(model), "--register", str(register), *map(str, others)]


def refused(capsys, command):
    """Runs a command that must fail with exit status 2 and one line; returns the line."""
    assert status_of(command) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    return err


def test_json_and_bad_images_among_good_ones(model, register, tmp_path, capfd):
    good = save(tmp_path / "good.png", blocks(1))
    whole = cv2.imencode(".jpg", blocks(2))[1].tobytes()
    (tmp_path / "cut.jpg").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "text.jpg").write_text("Dear Sir or Madam")
    (tmp_path / "zero.jpg").touch()
    save(tmp_path / "dot.png", blocks(1)[:1, :1])
    save(tmp_path / "long.png", cv2.resize(blocks(1), (20_000, 20)))
    names = ["missing.jpg", "good.png", "cut.jpg", "text.jpg", "zero.jpg", "dot.png", "long.png"]
    status = status_of(arguments(model, register, *(tmp_path / name for name in names), "--json", "--top-k", 2,
                                 "--threshold", 0.9))
    out, err = capfd.readouterr()
    assert status == 0 and err == ""
    results = json.loads(out)
    assert [result["image"] for result in results] == [str(tmp_path / name) for name in names]
    reasons = ["file not found", None, "truncated JPEG", "not an image", "empty file", "1x1 pixels", None]
    for result, reason in zip(results, reasons):
        assert set(result) == {"image", "label", "score", "top_k", "error"}
        if reason:
            assert reason in result["error"]
            assert result["label"] is None and result["score"] is None and result["top_k"] == []
        else:
            assert result["error"] is None and len(result["top_k"]) == 2
    assert results[1]["label"] == "passport" and results[1]["image"] == str(good)
    assert results[1]["score"] == results[1]["top_k"][0]["score"] > 0.999


def test_plain_output_and_status(model, register, tmp_path, capsys):
    known, unknown = save(tmp_path / "known.png", blocks(3)), save(tmp_path / "unknown.png", blocks(9))
    assert status_of(arguments(model, register, known, unknown, tmp_path / "missing.png", "--threshold", 0.9)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{known}: cards/bank 0.9") or lines[0].startswith(f"{known}: cards/bank 1.0")
    assert lines[1].startswith(f"{unknown}: not registered 0.")
    assert lines[2] == f"{tmp_path / 'missing.png'}: cannot be used: file not found"
    assert status_of(arguments(model, register, tmp_path / "missing.png")) == 2


def test_folders_stand_for_the_images_below_them(model, register, tmp_path, capsys):
    save(tmp_path / "in" / "deep" / "b.png", blocks(3))
    save(tmp_path / "in" / "a.png", blocks(4))
    (tmp_path / "in" / "c.jpg").write_text("not an image")
    (tmp_path / "in" / "notes.txt").touch()
    (tmp_path / "none").mkdir()
    command = arguments(model, register, tmp_path / "in", tmp_path / "none", register / "passport" / "a.png", "--json",
                        "--threshold", 0.9, "--threads", 2, "--backend", "cpu", "--gallery", "cpu")
    assert status_of(command) == 0
    results = json.loads(capsys.readouterr().out)
    assert [(Path(result["image"]).name, result["label"]) for result in results] == [
        ("a.png", "licence"), ("c.jpg", None), ("b.png", "cards/bank"), ("none", None), ("a.png", "passport")]
    assert results[0]["image"] == str(tmp_path / "in" / "a.png") and "is a folder" in results[3]["error"]
    assert status_of(arguments(model, register, tmp_path / "none")) == 2


def test_progress_is_shown_only_on_a_terminal(monkeypatch, capsys):
    parts = [Part([0, 0, 1], None, None, {2: "bad"}), Part([3, 3], None, None, {})]  # two views of some images
    now = itertools.count(step=3)
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    assert list(counted(parts, 4, "classifying", True)) == parts and capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(counted(parts, 4, "classifying", False)) == parts and capsys.readouterr() == ("", "")
    assert list(counted(parts, 4, "classifying", True)) == parts
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("\rclassifying 3/4, ") and "\rclassifying 4/4, " in err and err.endswith("\n")


def test_a_closed_pipe_is_no_error(model, register):
    script = [sys.executable, str(ROOT / "inference" / "classify.py")]
    process = subprocess.Popen(script + arguments(model, register, register, "--threshold", 0.9), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 141


def test_warnings_go_to_stderr(model, register, tmp_path, capsys):
    (register / "zero.png").touch()
    assert status_of(arguments(model, register, register / "licence.png", "--json")) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["label"] == "licence"
    assert "warning: zero.png: empty file; skipped\n" in err and "using 0.75" in err


@pytest.mark.parametrize("options, reason", [
    (["--threshold", "1.5"], "between 0 and 1"),
    (["--threshold", "nan"], "between 0 and 1"),
    (["--threshold", "high"], "invalid float"),
    (["--fpr", "0"], "above 0"),
    (["--fpr", "0.01"], "give --threshold"),
    (["--fpr", "0.01", "--threshold", "0.5"], "not allowed with"),
    (["--top-k", "0"], "at least 1"),
    (["--tresh", "0.5"], "unrecognized"),
    (["--margin", "-0.1"], "between 0 and 1"),
    (["--margin", "nan"], "between 0 and 1"),
    (["--margin", "wide"], "invalid float"),
    (["--backend", "tpu"], "use cpu or cuda"),
    (["--gallery", "tpu", "--threshold", "0.5"], "use cpu or cuda"),
    (["--threads", "-1"], "at least 1"),
])
def test_wrong_options(model, register, capsys, options, reason):
    assert reason in refused(capsys, arguments(model, register, register / "licence.png", *options))


def test_wrong_registry(model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad" / "type").mkdir(parents=True)
    (tmp_path / "bad" / "type" / "zero.png").touch()
    (tmp_path / "file").touch()
    for name, reason in [("empty", "no image in it"), ("bad", "none of its 1 images can be read (type/zero.png: empty"),
                         ("file", "not a folder"), ("missing", "no such folder")]:
        message = refused(capsys, arguments(model, tmp_path / name, "x.png", "--threshold", 0.5))
        assert reason in message and str(tmp_path / name) in message


@pytest.mark.parametrize("options, reason", [
    ({"metadata": None}, "not a model of this project"),
    ({"metadata": {"format": 1}}, "not a model of this project"),
    ({"metadata": METADATA | {"format": 99}}, "format is 99"),
    ({"metadata": METADATA | {"image_size": 32}}, "not a model of this project"),
    ({"metadata": METADATA | {"embedding_size": 7}}, "not a model of this project"),
    ({"input_name": "data"}, "not a model of this project"),
    ({"metadata": METADATA | {"image_size": 16.0}}, "not a model of this project"),
    ({"metadata": METADATA | {"image_size": 10 ** 6}, "side": 10 ** 6}, "not a model of this project"),  # 3 TB an image
    ({"metadata": "[" * 100_000}, "not a model of this project"),
    ({"metadata": "[]"}, "not a model of this project"),
    ({"metadata": METADATA | {"thresholds": [0.5]}}, "not a model of this project"),
    ({"metadata": METADATA | {"thresholds": {"1e-3": 0.5}}}, "not a model of this project"),
    ({"metadata": METADATA | {"thresholds": {"1e-3": {"tpr": 0.5}}}}, "not a model of this project"),
    ({"metadata": METADATA | {"thresholds": {"1e-3": {"threshold": "high"}}}}, "not a model of this project"),
    ({"metadata": METADATA | {"thresholds": {"1e-3": {"threshold": float("nan")}}}}, "not a model of this project"),
    ({"metadata": METADATA | {"thresholds": {"seldom": {"threshold": 0.5}}}}, "not a model of this project"),
    ({"metadata": METADATA | {"margin": "wide"}}, "not a model of this project"),
    ({"metadata": METADATA | {"margin": -0.1}}, "not a model of this project"),
    ({"metadata": METADATA | {"margin": float("nan")}}, "not a model of this project"),
    ({"metadata": METADATA | {"margin": [0.1]}}, "not a model of this project"),
    ({"metadata": METADATA | {"fit": "crop"}}, "not a model of this project"),
    ({"metadata": METADATA | {"fit": ["pad"]}}, "not a model of this project"),
    ({"metadata": METADATA | {"fit": None}}, "not a model of this project"),
    ({"more_inputs": ["more"]}, "not a model of this project"),
    ({"last": "Mystery", "domain": "custom"}, "cannot load"),
    ({"last": "\x1b[31mMystery\n", "domain": "custom"}, "cannot load"),
    ({"mean": elsewhere("../../../../etc/passwd")}, "cannot load"),
    ({"mean": elsewhere("/etc/passwd")}, "cannot load"),
    ({"mean": elsewhere("beside.bin")}, "cannot load"),
    ({"last": "Relu"}, "not L2-normal"),
    ({"then": [helper.make_node("Sub", ["unit", "unit"], ["feats"])]}, "not L2-normal"),
    ({"then": [helper.make_node("Sub", ["unit", "unit"], ["zero"]), helper.make_node("Log", ["zero"], ["feats"])]},
     "not 48 finite numbers"),
    ({"then": [helper.make_node("Flatten", ["unit"], ["feats"], axis=0)]}, "not 48 finite numbers"),  # [1, 96] of two
    ({"batch": 1}, "does not run"),
])
def test_a_model_that_is_not_ours(tmp_path, register, capfd, monkeypatch, options, reason):
    (tmp_path / "beside.bin").write_bytes(np.float32(0.4).tobytes())
    monkeypatch.chdir(tmp_path)
    path = write_model(tmp_path / "other.onnx", **options)
    message = refused(capfd, arguments(path, register, register / "licence.png"))
    assert reason in message and str(path) in message and "onnx_export.py" in message and "\x1b" not in message


@pytest.mark.parametrize("said", [{}, {"fit": "squash"}, {"fit": "pad"}])
def test_a_model_says_how_an_image_is_resized(tmp_path, said):
    fit, image = said.get("fit", "squash"), blocks(1, 60)[:20]
    loaded = load_model(write_model(tmp_path / "fit.onnx", METADATA | said))
    assert loaded.fit == fit and np.array_equal(loaded.prepare(image), fit_square(image, SIZE, fit)[:, :, ::-1])


def test_a_model_that_breaks_at_some_images(tmp_path, register, capfd):
    """For a black image its features are not finite. That is an error of the model, so the command ends."""
    path = write_model(tmp_path / "other.onnx", then=[helper.make_node("Mul", ["unit", "flat"], ["more"]),
                                                        helper.make_node("Div", ["more", "flat"], ["feats"])])
    black = save(tmp_path / "black.png", np.zeros((64, 64, 3), np.uint8))
    message = refused(capfd, arguments(path, register, register / "licence.png", black, "--json", "--threshold", 0.9))
    assert f"{path}: its features are not 48 finite numbers" in message


def test_an_unreadable_model(tmp_path, register, model, capfd):
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "cut.onnx").write_bytes(model.read_bytes()[:200])
    (tmp_path / "endless.onnx").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.onnx")
    with open(tmp_path / "large.onnx", "wb") as file:
        file.truncate(3 << 30)  # a sparse file: it takes no space on the disk
    for name, reason in [("text.onnx", ""), ("empty.onnx", ""), ("cut.onnx", ""), ("missing.onnx", "no such model"),
                         (".", "no such model"), ("endless.onnx", "no such model"), ("pipe.onnx", "no such model"),
                         ("large.onnx", "larger than the 2 GiB")]:
        message = refused(capfd, arguments(tmp_path / name, register, register / "licence.png"))
        assert reason in message and str(tmp_path / name) in message


def test_backends(model, monkeypatch):
    with pytest.raises(UserError, match="use cpu or cuda"):
        load_model(model, backend="tpu")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UserError, match="^backend cuda: this ONNX Runtime has no CUDA"):
        load_model(model, backend="cuda")


def test_cuda_works_or_is_refused_in_one_line(model, register, capfd):
    try:
        label, _ = DocClassifier(model=model, register_root=register, backend="cuda")(blocks(1))
    except UserError as error:
        assert str(error).startswith("backend cuda: ") and "\n" not in str(error)
        assert capfd.readouterr() == ("", "")
    else:
        assert label == "passport"


@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="no ONNX Runtime for CUDA")
def test_cuda_gives_the_cpus_features(model):
    try:
        gpu = load_model(model, backend="cuda")
    except UserError:
        pytest.skip("no CUDA device")
    images = np.random.default_rng(0).integers(0, 256, (150, SIZE, SIZE, 3), np.uint8)
    for count in (1, 3, 64, 150):
        assert np.abs(gpu.embed(images[:count]) - load_model(model).embed(images[:count])).max() < 1e-4


def test_padded_runs_as_cuda_takes_them(model):
    """A run of 5 images in a buffer for 8, and again with others: the rest of the buffer does not matter."""
    loaded = load_model(model)
    images = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 3), np.uint8)
    bound = _Bound(loaded.session, 8, SIZE, "cpu")
    for part in (images[:8], images[2:7], images[8:]):
        assert np.array_equal(bound.run(part), loaded.embed(part))


def test_standalone_without_torch_from_any_folder(model, register, tmp_path):
    """In a process that can import only numpy, cv2, onnxruntime, `inference` and the standard library."""
    script = ROOT / "inference" / "classify.py"
    process = run_with_only(["numpy", "cv2", "onnxruntime", "inference"], script,
                            *arguments(model, register, register / "licence.png", "--json"), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)[0]["label"] == "licence"
    plain = subprocess.run([sys.executable, str(script), *arguments(model, register, "nowhere.png")],
                           cwd=tmp_path, capture_output=True, text=True)
    assert plain.returncode == 2 and "Traceback" not in plain.stderr
