"""Evaluation of photos as a camera took them: the documents' corners are known, from a file or as a finder gives them."""
import csv
import json

import cv2
import numpy as np
import pytest

from eval import evaluate_folder
from eval.__main__ import main
from eval.find import Seen
from eval.scenes import link_scenes
from inference.cli import exit_status
from inference.errors import UserError
from inference.finder import Finder, Found
from inference.model import load_model
from inference.views import read_corners
from tests.helpers.models import blocks, save, view_of, write_model
from tests.helpers.photos import photo

KINDS = 6
QUADS = np.array([[(40, 20), (120, 35), (110, 110), (30, 95)], [(70, 30), (150, 20), (140, 90), (60, 100)]], float)


def background(number):
    return cv2.resize(blocks(100 + number, 64), (200, 150), interpolation=cv2.INTER_NEAREST)


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "tiny.onnx", mean=0)


@pytest.fixture
def scenes(tmp_path):
    """scenes/KIND_N.png with scenes/corners.csv; covers/KIND/reference.png. Small documents on a background of large blocks,
    which decides what the model sees of the whole photo."""
    lines = []
    for kind in range(KINDS):
        document = blocks(kind, 48)
        save(tmp_path / "covers" / f"k{kind}" / "reference.png", document)
        for number, quad in enumerate(QUADS):
            inside = cv2.fillConvexPoly(np.zeros((150, 200, 1), np.uint8), quad.astype(int), 1)
            save(tmp_path / "scenes" / f"k{kind}_{number}.png",
                 np.where(inside, photo(document, quad, 200, 150), background(number)))
            lines.append([f"k{kind}_{number}.png", f"k{kind}", *quad.ravel()])
    with open(tmp_path / "scenes" / "corners.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file", "type", *(f"{axis}{i}" for i in range(4) for axis in "xy")], *lines])
    return tmp_path / "scenes"


@pytest.fixture
def linked(scenes, tmp_path):
    return link_scenes(scenes, tmp_path / "covers", tmp_path / "linked")


class Known(Finder):
    """Knows the corners in the photos, which it tells apart by their backgrounds, and finds nothing in a reference."""
    image_size, fit = 64, "pad"

    def __init__(self):
        pass

    def find(self, image):
        if image.shape[:2] == (48, 48):
            return None
        return Found(QUADS[int(tuple(image[145, 5]) == tuple(background(1)[145, 5]))], .9)


def evaluated(model, folder, **options):
    loaded = load_model(model)
    load = Seen(loaded.image_size, loaded.fit, **options) if options else None
    return evaluate_folder(loaded.embed, folder, loaded.image_size, progress=False, load=load)


def test_scenes_are_linked_as_an_evaluation_folder(linked):
    found = sorted(path.relative_to(linked).as_posix() for path in linked.rglob("*.png"))
    assert found == sorted(f"k{kind}/{name}.png" for kind in range(KINDS)
                           for name in ("reference", f"k{kind}_0", f"k{kind}_1"))


def test_mistakes_in_scenes_are_one_line(scenes, tmp_path):
    with pytest.raises(UserError, match="no k0/reference.jpg, the reference of k0_0.png"):
        link_scenes(scenes, save(tmp_path / "other" / "reference.png", view_of(0, 0)).parent, tmp_path / "out")
    for text, message in {"a,b\n1,2\n": "cannot be read as a list", "file,type\na.png,k0\na.png,k0\n": "named twice",
                          "file,type\n../a.png,k0\n": "in a folder below"}.items():
        (scenes / "corners.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            link_scenes(scenes, tmp_path / "covers", tmp_path / "out")
    (scenes / "corners.csv").unlink()
    with pytest.raises(UserError, match="corners.csv: cannot be read as a list"):
        link_scenes(scenes, tmp_path / "covers", tmp_path / "out")


def test_corners_make_photos_comparable(model, scenes, linked):
    """The backgrounds decide without corners: photos of one background are alike. With them, what lies in the corners does,
    for the thumbnail too."""
    plain, found = evaluated(model, linked), evaluated(model, linked, corners=read_corners(scenes / "corners.csv"))
    assert plain.identification.top1 < .7 and found.identification.top1 == found.baseline[1].top1 == 1
    assert plain.verification.auroc < .9 and found.verification.auroc == found.baseline[0].auroc == 1
    assert plain.baseline[0].auroc < .9


def test_find_always_is_given_corners_and_auto_compares_the_image_too(model, scenes, linked):
    corners, always, auto = (evaluated(model, linked, **options) for options in (
        {"corners": read_corners(scenes / "corners.csv")}, {"find": True, "finder": Known()},
        {"find": "auto", "finder": Known()}))
    assert np.array_equal(always.views, corners.views) and always.as_dict() == corners.as_dict()
    whole = evaluated(model, linked)
    assert auto.upright == 2 and np.array_equal(auto.views[0], whole.embeddings)
    assert np.array_equal(auto.embeddings, always.embeddings)       # of a reference, no document is found: its image, twice
    unit = auto.views / np.linalg.norm(auto.views, axis=2, keepdims=True)
    scores = (np.einsum("vid,wjd->vwij", unit, unit).max(axis=(0, 1)) + 1) / 2
    first, second = np.triu_indices(len(auto.labels), 1)
    same = auto.labels[first] == auto.labels[second]
    positive, negative = scores[first, second][same], scores[first, second][~same]
    assert auto.verification.auroc == pytest.approx((positive[:, None] > negative).mean(), abs=.001)


def test_the_command_takes_corners_and_turns(model, scenes, linked, capsys):
    arguments = ["--model", str(model), "--data", str(linked), "--corners", str(scenes / "corners.csv"), "--json"]
    main(arguments)
    upright = json.loads(capsys.readouterr().out)
    assert upright["top1"] == 1
    main([*arguments, "--orientation", "any"])
    turned = json.loads(capsys.readouterr().out)
    assert turned["top1"] == 1
    assert all(turned["thresholds"][rate] >= threshold for rate, threshold in upright["thresholds"].items())


def test_calibration_with_corners_and_the_open_set(model, scenes, linked, capsys):
    arguments = ["--model", str(model), "--corners", str(scenes / "corners.csv"), "--json"]
    main([*arguments, "--calibrate", str(linked)])
    thresholds = json.loads(capsys.readouterr().out)["thresholds"]
    loaded = load_model(model)
    assert loaded.threshold_at(.1) == thresholds["1e-1"] <= loaded.threshold_at(.1, "any")
    for orientation in ("upright", "any"):
        main([*arguments, "--data", str(linked), "--open-set", "--fpr", "1e-1", "--orientation", orientation])
        measured = json.loads(capsys.readouterr().out)["open_set"]
        assert measured["threshold"] == loaded.threshold_at(.1, orientation)
        assert (measured["known"], measured["strangers"]) == (2 * KINDS, 3 * KINDS) and measured["accepted"] == 1


def test_mistakes_are_one_line(model, linked, tmp_path, capsys):
    for said, arguments in {"no file of corners": ["--corners", tmp_path / "none.csv"],
                            "invalid choice: 'often'": ["--find", "often"],
                            "--finder f.onnx: is of use with --find": ["--finder", "f.onnx"],
                            "invalid choice: 'down'": ["--orientation", "down"],
                            "nowhere.onnx": ["--find", "auto", "--finder", tmp_path / "nowhere.onnx"]}.items():
        assert exit_status(lambda: main(["--model", str(model), "--data", str(linked), *map(str, arguments)])) == 2
        out, err = capsys.readouterr()
        assert out == "" and said in err and err.startswith("error: ") and err.count("\n") == 1, (said, err)
