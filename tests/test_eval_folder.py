"""`evaluate_folder` and `python -m eval` on folders of synthetic images. An ONNX file needs no torch."""
import base64
import json
import re
from html import unescape

import cv2
import numpy as np
import pytest
from easydict import EasyDict

from eval import evaluate_folder
from eval.__main__ import main
from eval.folder import find_images, read_images
from eval.pairs import RATES
from eval.report import write_report
from eval.thumbnail import thumbnail
from inference.errors import UserError
from inference.image import load_image, resize
from tests.helpers.models import SIZE, WIDTH, save, view_of, write_model
from tests.helpers.programs import ROOT, run_without

COVERS = ROOT.parent / "shared" / "data" / "covers"
NOT_NEEDED = ["torch", "sklearn", "matplotlib"]     # by an evaluation of an ONNX file without a report


@pytest.fixture
def folder(tmp_path):
    """4 types, each with a reference and 3 other images."""
    for kind, name in enumerate(["card/front", "card/back", "letter", "bill"]):
        save(tmp_path / "data" / name / "reference.png", view_of(kind, 0))
        for photo in range(1, 4):
            save(tmp_path / "data" / name / f"photo{photo}.png", view_of(kind, photo))
    return tmp_path / "data"


def embed(images):
    """The 4x4 thumbnail minus its mean."""
    cells = images.reshape(len(images), 4, SIZE // 4, 4, SIZE // 4, 3).mean(axis=(2, 4)).reshape(len(images), -1)
    return cells - cells.mean(axis=1, keepdims=True)


# ---------------------------------------------------------------- folders

def test_types_references_and_order(tmp_path):
    image = view_of(0, 0)
    for name in ["b/c/1.jpg", "b/2.PNG", "b/Reference-2.jpeg", "a.jpg", "reference.tif"]:
        save(tmp_path / name, image)
    (tmp_path / "b" / "notes.txt").write_text("not an image")
    found = [(item.name, item.type, item.is_reference) for item in find_images(tmp_path)]
    assert found == [("a.jpg", "a", False), ("b/2.PNG", "b", False), ("b/Reference-2.jpeg", "b", True),
                     ("b/c/1.jpg", "b/c", False), ("reference.tif", "reference", True)]


def test_reading_ahead_is_bounded(folder):
    items, prepared = find_images(folder), []
    reading = read_images(items, prepared.append, ahead=3)
    assert next(reading)[0] == items[0]
    assert len(prepared) <= 3
    assert [item for item, _, _ in reading] == items[1:] and len(prepared) == len(items)


def test_embed_gets_uint8_rgb_of_the_asked_size_in_order(tmp_path):
    colors = {"a/1": (0, 0, 255), "a/2": (0, 255, 0), "b/1": (255, 0, 0)}        # BGR: red, green, blue
    for name, color in colors.items():
        save(tmp_path / f"{name}.png", np.full((20, 50, 3), color, np.uint8))
    seen = []

    def watch(images):
        assert images.dtype == np.uint8 and images.shape[1:] == (SIZE, SIZE, 3) and images.flags["C_CONTIGUOUS"]
        seen.append(len(images))
        return images[:, 0, 0].astype(np.float32)

    result = evaluate_folder(watch, tmp_path, SIZE, batch_size=2, progress=False)
    assert seen == [2, 1]
    assert result.embeddings.tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_the_pixels_are_the_same_as_in_classify(tmp_path):
    """Also for a large JPEG, which is decoded at a reduced size."""
    large = np.random.default_rng(0).integers(0, 256, (32 * SIZE, 40 * SIZE, 3), np.uint8)
    for name in ("a/1", "a/2", "b/1"):
        save(tmp_path / f"{name}.jpg", large)
    seen = []
    evaluate_folder(lambda images: seen.append(images) or images[:, 0, 0], tmp_path, SIZE, progress=False)
    decoded = load_image(tmp_path / "a/1.jpg", SIZE)
    assert decoded.shape[1] < large.shape[1]
    assert np.array_equal(seen[0][0], resize(decoded, SIZE)[:, :, ::-1])


def test_file_names_and_batch_size_change_nothing(folder, tmp_path):
    first = evaluate_folder(embed, folder, SIZE, progress=False)
    renamed = {"card/front": "2", "card/back": "4", "letter": "1", "bill": "3"}
    for kind in renamed:
        for photo in range(4):
            source = folder / kind / (f"photo{photo}.png" if photo else "reference.png")
            target = tmp_path / "renamed" / renamed[kind] / (f"{9 - photo}.png" if photo else "reference.png")
            save(target, cv2.imread(str(source)))
    second = evaluate_folder(embed, tmp_path / "renamed", SIZE, batch_size=3, progress=False)
    ours, theirs = first.as_dict(), second.as_dict()
    assert ours.pop("data") != theirs.pop("data") and ours == theirs
    assert .5 < ours["auroc"] < 1


def test_baseline_is_the_thumbnail(folder):
    result = evaluate_folder(embed, folder, SIZE, progress=False)
    vectors = np.stack([thumbnail(cv2.imread(str(item.path))) for item in result.items])
    assert vectors.shape == (16, 768) and np.abs(vectors.mean(axis=1)).max() < 1e-3
    scores = (np.corrcoef(vectors) + 1) / 2             # the cosine of vectors minus their means is the correlation
    i, j = np.triu_indices(16, 1)
    same = result.labels[i] == result.labels[j]
    positive, negative = scores[i, j][same], scores[i, j][~same]
    assert result.baseline[0].auroc == pytest.approx((positive[:, None] > negative).mean(), abs=1e-9)
    assert evaluate_folder(embed, folder, SIZE, progress=False, baseline=False).as_dict()["baseline"] is None


def test_any_way_up_finds_images_that_were_turned(folder, tmp_path):
    """All images turned: nothing changes where the model and the thumbnail compare four turns."""
    for item in find_images(folder):
        quarters = 0 if item.is_reference else int(item.name[-5])        # photo1.png: by one quarter
        save(tmp_path / "turned" / item.name, np.rot90(cv2.imread(str(item.path)), quarters))
    scores = {name: evaluate_folder(embed, where, SIZE, progress=False, orientation=orientation).as_dict()
              for name, where, orientation in (("upright", folder, "upright"), ("before", folder, "any"),
                                               ("turned", tmp_path / "turned", "any"))}
    for found in scores.values():
        found.pop("data")
    assert scores["turned"]["top1"] == scores["before"]["top1"]
    assert scores["turned"]["baseline"] == scores["before"]["baseline"]
    assert scores["turned"] == scores["before"] and scores["turned"] != scores["upright"]


def test_an_image_may_have_several_views(folder):
    """`load` gives one or two images of an item; of one alone, the first is there twice."""
    plain = evaluate_folder(embed, folder, SIZE, progress=False)

    def load(item):
        image = load_image(item.path)
        return [image] if item.is_reference else [255 - image, image]

    result = evaluate_folder(embed, folder, SIZE, progress=False, batch_size=3, load=load)
    assert result.views.shape == (2, 16, 48) and result.thumbnails.shape == (2, 16, 768) and result.upright == 2
    references = np.array([item.is_reference for item in result.items])
    assert np.array_equal(result.views[0, references], plain.embeddings[references])
    assert np.array_equal(result.views[1], plain.embeddings)


def test_unreadable_files_are_skipped_and_listed(folder):
    clean = evaluate_folder(embed, folder, SIZE, progress=False).as_dict()
    (folder / "bill" / "empty.jpg").write_bytes(b"")
    (folder / "letter" / "text.jpg").write_text("not an image")
    save(folder / "bill" / "half.jpg", view_of(1, 1))
    half = folder / "bill" / "half.jpg"
    half.write_bytes(half.read_bytes()[:300])
    dirty = evaluate_folder(embed, folder, SIZE, progress=False)
    assert [name for name, _ in dirty.unreadable] == ["bill/empty.jpg", "bill/half.jpg", "letter/text.jpg"]
    assert all(reason for _, reason in dirty.unreadable)
    assert {**dirty.as_dict(), "unreadable": []} == clean
    assert "bill/empty.jpg" in dirty.table()


@pytest.mark.parametrize("files, message", [
    (["a/1.png"], "1 readable images"),
    (["a/1.png", "a/2.png"], "all images are of one type, 'a', so there is no negative pair"),
    (["a/1.png", "b/1.png"], "no positive pair"),
    (["a/1.txt"], "no images found"),
])
def test_nothing_to_compare(tmp_path, files, message):
    for file in files:
        save(tmp_path / file, view_of(0, 0)) if file.endswith("png") else (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=message) as error:
        evaluate_folder(embed, tmp_path, SIZE, progress=False)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_with_unreadable_files_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"0 readable images \(1 unreadable, e.g. a/1.jpg: "):
        evaluate_folder(embed, tmp_path, SIZE, progress=False)


def test_embeddings_that_are_not_numbers_name_the_image(folder):
    with pytest.raises(UserError, match=r"bill/photo1.png.*not finite"):
        evaluate_folder(lambda images: np.full((len(images), 4), np.nan), folder, SIZE, progress=False)


@pytest.mark.skipif(not COVERS.is_dir(), reason="needs the covers data")
def test_baseline_on_covers():
    """The published figures, of images decoded for 128 pixels: AUROC .861, TPR at FPR 1e-4 .152, top-1 .525."""
    baseline = evaluate_folder(lambda x: x[:, ::16, ::16].reshape(len(x), -1), COVERS, 128, progress=False).as_dict()[
        "baseline"]
    assert baseline["auroc"] == pytest.approx(.861, abs=.001)
    assert baseline["tpr_at_fpr"]["1e-4"] == pytest.approx(.152, abs=.001)
    assert baseline["top1"] == pytest.approx(.525, abs=.001)


# ---------------------------------------------------------------- the report

def test_report_is_one_file_and_escapes_names(tmp_path):
    bad = "<b>&\"'$x_{$"      # HTML, and broken TeX for the legend
    for kind, name in enumerate([bad, "b"]):
        for photo in range(2):
            save(tmp_path / "data" / name / f"<img src=q{photo}>.png", view_of(kind, photo))
    result = evaluate_folder(embed, tmp_path / "data", SIZE, progress=False)
    page = write_report(result, tmp_path / "report", "<model>").read_text(encoding="utf-8")
    assert "<b>&" not in page and "<img src=q" not in page and "<model>" not in page
    assert bad in unescape(page) and "<img src=q1>.png" in unescape(page)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 4 + 2 * (2 + 4) and all(source.startswith("data:image/") for source in sources)
    for name in ["roc.png", "scores.png", "pca.png", "tsne.png"]:
        assert cv2.imread(str(tmp_path / "report" / name)).std() > 5      # not a blank image
    assert json.loads((tmp_path / "report" / "metrics.json").read_text()) == result.as_dict()


def test_the_report_shows_the_documents_that_were_found(folder, tmp_path):
    document = np.full((30, 30, 3), (0, 0, 255), np.uint8)
    result = evaluate_folder(embed, folder, SIZE, progress=False, load=lambda item: [load_image(item.path), document])
    page = write_report(result, tmp_path / "report", "m").read_text()
    shown = re.findall(r'<img alt="" src="data:image/jpeg;base64,([^"]*)"', page)
    assert len(shown) == 2 * 40
    for image in shown:
        image = cv2.imdecode(np.frombuffer(base64.b64decode(image), np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == document.shape and np.abs(image.astype(int) - document).max() < 5


@pytest.mark.parametrize("vectors", [np.ones((3, 4)), [[1.], [-1.], [2.]], [[1, 0], [1, 0], [0, 1]]],
                         ids=["all equal", "one dimension", "three images"])
def test_report_of_very_little(tmp_path, vectors):
    for name in ["a/1.png", "a/2.png", "b/1.png"]:
        save(tmp_path / "data" / name, view_of(0, 0))
    result = evaluate_folder(lambda images: vectors, tmp_path / "data", SIZE, progress=False, baseline=False)
    assert "score" in write_report(result, tmp_path / "report", "m").read_text(encoding="utf-8")


# ---------------------------------------------------------------- the command

def test_json_is_the_only_thing_on_stdout_and_needs_no_torch(folder, tmp_path):
    model = write_model(tmp_path / "tiny.onnx", mean=0)
    done = run_without(NOT_NEEDED, "-m", "eval", "--model", model, "--data", folder, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for metrics in (found, found["baseline"]):
        assert set(metrics["tpr_at_fpr"]) == set(metrics["thresholds"]) == set(RATES)
        assert 0 <= metrics["auroc"] <= 1 and 0 <= metrics["top1"] <= 1
        assert metrics["pairs"] == {"positive": 4 * 6, "negative": 16 * 15 // 2 - 4 * 6}
        assert metrics["too_few_negatives"] == [rate for rate, one_in in RATES.items() if one_in > 96] != []
    assert (found["images"], found["types"], found["references"], found["top1_queries"]) == (16, 4, 4, 12)
    assert found["unreadable"] == []

    def same_model(images):
        cells = images.reshape(len(images), 4, SIZE // 4, 4, SIZE // 4, 3).mean(axis=(2, 4))
        return cells.transpose(0, 3, 1, 2).reshape(len(images), -1)
    assert found["auroc"] == evaluate_folder(same_model, folder, SIZE, progress=False).verification.auroc


def test_table_and_report(folder, tmp_path):
    model = write_model(tmp_path / "tiny.onnx", mean=0)
    done = run_without(["torch"], "-m", "eval", "--model", model, "--data", folder, "--report", tmp_path / "out" / "report")
    assert done.returncode == 0, done.stderr
    for text in ["AUROC", "TPR at FPR 1e-4", "top-1", "thumbnail", "Too few negative pairs for FPR 1e-2, 1e-3"]:
        assert text in done.stdout
    assert (tmp_path / "out" / "report" / "report.html").is_file()


def test_a_run_is_evaluated_as_its_network(folder, tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    import configs

    class Network(torch.nn.Module):
        def forward(self, images):      # float [B, 3, S, S] in [0, 1]
            assert images.dtype == torch.float32 and 0 <= images.min() and .5 < images.max() <= 1
            return torch.nn.functional.avg_pool2d(images, SIZE // 4).flatten(1)

    cfg = EasyDict(task="registration", image_size=SIZE, embedding_size=WIDTH)
    monkeypatch.setattr(configs, "load_run", lambda output: (Network().eval(), cfg))
    main(["--model", str(tmp_path), "--data", str(folder), "--json"])
    run = json.loads(capsys.readouterr().out)
    main(["--model", str(write_model(tmp_path / "tiny.onnx", mean=0)), "--data", str(folder), "--json"])
    exported = json.loads(capsys.readouterr().out)
    assert run["auroc"] == pytest.approx(exported["auroc"], abs=1e-6) and run["top1"] == exported["top1"]


def test_bad_input_is_one_line_and_status_2(folder, tmp_path):
    model = write_model(tmp_path / "tiny.onnx", mean=0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a file")
    for named, arguments in {
        "nowhere.onnx": ["--model", tmp_path / "nowhere.onnx", "--data", folder],
        "nowhere": ["--model", model, "--data", tmp_path / "nowhere"],
        "empty": ["--model", model, "--data", tmp_path / "empty"],
        "tiny.onnx": ["--model", model, "--data", model],
        "needs torch": ["--model", tmp_path, "--data", folder],
        "not a model": ["--model", tmp_path / "file", "--data", folder],
        "--report": ["--model", model, "--data", folder, "--report", tmp_path / "file"],
        "--batch-size": ["--model", model, "--data", folder, "--batch-size", "0"],
    }.items():
        done = run_without(["torch"], "-m", "eval", *arguments, "--json")
        lines = done.stderr.strip().split("\n")
        assert done.returncode == 2 and done.stdout == "" and len(lines) == 1, (named, done)
        assert lines[0].startswith("error: ") and (named in lines[0] or named == "not a model"), (named, lines)
