"""The model and the types that come with the project: what a user has before giving anything of their own."""
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

import synth
from backbones.reader import read_reader
from eval import evaluate_folder
from eval.open_set import open_set
from inference.classify import DEFAULT_MODEL, DEFAULT_REGISTRY
from inference.image import list_images, type_label
from inference.model import load_model
from inference.read import DEFAULT_MODEL as READER
from inference.reader import LineReader
from inference.text import edit_distance, normalize
from ocr.fonts import find_faces
from ocr.lines import LineMaker
from ocr.text import CHARSET, Texts

FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")
ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT / "inference" / "models" / "photos"


@pytest.fixture(scope="module")
def model():
    return load_model(DEFAULT_MODEL)


def test_the_file_is_small_and_has_no_paths_of_the_machine_that_made_it(model):
    data = DEFAULT_MODEL.read_bytes()
    assert len(data) <= 3e6
    assert b".py\"" not in data and b"File \"" not in data          # the exporter's stack traces
    assert not any(str(value).startswith("/") for value in model.metadata["config"].values())
    assert not any(root.startswith("/") for root in model.metadata["config"]["data"])


def test_its_thresholds_come_from_enough_pairs(model):
    table, source = model.metadata["thresholds"], model.metadata["thresholds_from"]
    assert {"1e-2", "1e-3", "1e-4"} <= set(table) and source["pairs"]["negative"] >= 1e6
    scores = [table[rate]["threshold"] for rate in sorted(table, key=float)]
    assert scores == sorted(scores, reverse=True)
    assert model.threshold_at(1e-4) == table["1e-4"]["threshold"]


def test_classify_without_a_model_or_a_registry(tmp_path):
    """As in the README, from another folder: captures of registered types get their label, the others none."""
    done = subprocess.run([sys.executable, ROOT / "inference" / "classify.py", PHOTOS, "--json"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "using the shipped files" in done.stderr
    found = {Path(result["image"]).stem: result["label"] for result in json.loads(done.stdout)}
    registered = {type_label(name) for name in list_images(DEFAULT_REGISTRY)}
    known = {name for name in found if not name.startswith("never_registered")}
    assert len(registered) == 18 and len(known) == 12 and len(found) == 18 and known <= registered
    assert sum(found[name] == name for name in known) >= 11
    assert sum(found[name] is None for name in set(found) - known) == 6
    assert not any(found[name] not in (name, None) for name in known)


def test_the_shipped_types_are_those_that_the_code_draws():
    """`tools/release.sh registry` would write the same pixels as those in the repository."""
    import cv2
    for name in list_images(DEFAULT_REGISTRY):
        shipped = cv2.imread(os.path.join(DEFAULT_REGISTRY, name))
        drawn = synth.render(0, int(name.split("_")[-1].split(".")[0]), 0)
        assert shipped.shape == drawn.shape and np.abs(shipped.astype(int) - drawn).mean() < 8


def test_types_that_it_was_not_trained_on(model, tmp_path):
    """The limits are well below the figures of the model card: they detect a broken network, decoder or resizing."""
    synth.write_eval(tmp_path / "eval", 40, 3, seed=0, first_type=3_000_000)
    result = evaluate_folder(model.embed, tmp_path / "eval", model.image_size)
    report = result.as_dict()
    assert report["auroc"] > .995 and report["top1"] > .93 and report["tpr_at_fpr"]["1e-2"] > .93
    assert report["baseline"]["top1"] < report["top1"] - .2
    found = open_set(model, result)
    assert found.unknown_rejected > .93 and found.correctly_identified > .85


def test_the_shipped_reader(tmp_path):
    """Small, without paths of the machine that made it; reads lines that the generator draws with matplotlib's fonts. The
    limit is well above what it reached there: it detects a broken network, decoder or resizing."""
    data = READER.read_bytes()
    assert len(data) <= 3e6 and b"File \"" not in data
    reader = LineReader(READER)
    assert not any(str(value).startswith("/") for value in reader.about["config"].values())
    make = LineMaker(find_faces([FONTS], CHARSET), Texts(CHARSET), height=48, seed=5)
    samples = [sample for sample in map(make, range(60)) if len(sample.text) > 8][:40]
    readings = reader.read([sample.image for sample in samples])
    edits = sum(edit_distance(normalize(reading.text), normalize(sample.text)) for reading, sample in zip(readings, samples))
    assert edits <= .1 * sum(len(sample.text) for sample in samples)


def test_read_without_a_model(tmp_path):
    """As in the README, from another folder: a clean line of the generator's."""
    import cv2
    line = np.full((60, 900), 255, np.uint8)
    cv2.putText(line, "The quick brown fox jumps", (10, 44), cv2.FONT_HERSHEY_COMPLEX, 1.4, 0, 2, cv2.LINE_AA)
    cv2.imwrite(str(tmp_path / "line.png"), line)
    done = subprocess.run([sys.executable, ROOT / "inference" / "read.py", "line.png", "--json"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "shipped reader" in done.stderr
    found, = json.loads(done.stdout)
    assert found["text"].replace(" ", "") == "Thequickbrownfoxjumps" and len(found["characters"]) == 21


def test_the_readers_weights_are_those_of_the_file():
    """`reader.pt`, from which configs/read_tune goes on, and the exported file say the same."""
    state, classes = read_reader(READER.with_suffix(".pt"))
    reader = LineReader(READER)
    assert classes == reader.about["classes"]
    centers = torch.nn.functional.normalize(state["centers"], dim=1).numpy()
    assert np.abs(centers - reader.model.centers).max() < 2e-3
