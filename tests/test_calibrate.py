"""Calibration and open-set evaluation: recomputed from the scores of all pairs; and errors around the model file."""
import itertools
import json
import os
import stat
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from eval import evaluate_folder
from eval.__main__ import main
from eval.calibrate import calibrate, choose_gap, gaps, threshold_table
from eval.gallery import registered
from eval.open_set import open_set
from inference.classify import DocClassifier
from inference.cli import exit_status
from inference.errors import UserError
from inference.model import load_model
from tests.helpers.models import SIZE, save, view_of, write_model
from tests.helpers.programs import run_without

KINDS, VIEWS = 12, 4   # 48 images: 1,056 pairs of different types, enough for a rate of 1e-3


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "tiny.onnx", mean=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each type has a reference and other images; the last one has no reference."""
    root = tmp_path_factory.mktemp("data") / "mine"
    for kind, view in itertools.product(range(KINDS), range(VIEWS)):
        name = "reference" if view == 0 and kind < KINDS - 1 else f"photo{view}"
        save(root / f"kind{kind:02}" / f"{name}.png", view_of(kind, view))
    return root


def evaluated(model, folder, orientation="upright"):
    loaded = load_model(model)
    return evaluate_folder(loaded.embed, folder, loaded.image_size, progress=False, baseline=False, orientation=orientation)


def calibrated(model, folder):
    return calibrate(model, evaluated(model, folder), evaluated(model, folder, "any"))


def metadata_of(path):
    return json.loads({entry.key: entry.value for entry in onnx.load(path).metadata_props}["docmetric"])


# ---------------------------------------------------------------- thresholds and runner-up gap
def test_rates_with_too_few_pairs_are_skipped():
    report = {"thresholds": {"1e-1": .6, "1e-2": .7, "1e-3": .8}, "tpr_at_fpr": {"1e-1": 1.0, "1e-2": .9, "1e-3": .5}}
    assert threshold_table(report | {"too_few_negatives": ["1e-3"]}) == {
        "1e-1": {"threshold": .6, "tpr": 1.0}, "1e-2": {"threshold": .7, "tpr": .9}}
    assert threshold_table(report | {"too_few_negatives": list(report["thresholds"])}) is None


def test_registered_are_the_references_or_the_first():
    labels = [0, 0, 0, 1, 1, 2, 0, 2]
    is_reference = [False, True, False, False, False, False, True, True]
    assert np.flatnonzero(registered(labels, is_reference)).tolist() == [1, 3, 6, 7]


@pytest.mark.parametrize("upright, turns", [(1, 1), (2, 1), (1, 4), (2, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_runner_up_gaps_equal_a_plain_loop(seed, upright, turns):
    """Random embeddings, some types with several references, one with none, in any order of the images."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.concatenate([np.arange(7), rng.integers(0, 7, 40)]))
    views = upright * turns
    embeddings = (rng.standard_normal((7, 6))[labels] + rng.standard_normal((views, len(labels), 6))).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=2, keepdims=True)
    is_reference = (rng.random(len(labels)) < .3) & (labels != 4)
    result = SimpleNamespace(labels=labels, views=embeddings, upright=upright,
                             items=[SimpleNamespace(is_reference=flag) for flag in is_reference])
    gallery = {kind: [i for i in np.flatnonzero(labels == kind) if is_reference[i]] or [np.flatnonzero(labels == kind)[0]]
               for kind in range(7)}
    kept = {i for rows in gallery.values() for i in rows}
    expected = {True: [], False: []}
    for i in set(range(len(labels))) - kept:
        scores = {kind: max((float(embeddings[q, i] @ embeddings[v, j]) + 1) / 2
                            for j in rows for q in range(upright) for v in range(views)) for kind, rows in gallery.items()}
        first, second = sorted(scores, key=scores.get)[:-3:-1]
        if scores[first] >= .7:
            expected[first == labels[i]].append(scores[first] - scores[second])
    for found, truth in zip(gaps(result, .7), (expected[True], expected[False])):
        assert len(truth) > 0 and np.sort(found) == pytest.approx(sorted(truth), abs=1e-5)


@pytest.mark.parametrize("seed", range(30))
def test_the_gap_is_the_smallest_that_pays(seed):
    """Tries every multiple of 1e-4 until one rejects half of the wrong labels."""
    rng = np.random.default_rng(seed)
    wrong = rng.exponential(.01, rng.integers(1, 30))
    right = rng.exponential(.01 * 10 ** rng.uniform(0, 2), rng.integers(0, 3000))
    smallest = next(step / 1e4 for step in itertools.count(1) if 2 * (wrong < step / 1e4).sum() >= len(wrong))
    lost, refused = (right < smallest).sum(), (wrong < smallest).sum()
    pays = len(wrong) >= 5 and lost <= .01 * len(right) and lost <= 2 * refused
    assert choose_gap(right, wrong) == (smallest if pays else 0)


def test_the_gap_by_hand():
    wrong, right = np.array([.001, .002, .0125, .3, .4]), np.full(1000, .1)
    assert choose_gap(right, wrong) == .0126
    assert choose_gap(right, wrong[:4]) == 0                                         # too few wrong labels
    assert choose_gap(np.append(right, [.01] * 6), wrong) == .0126                  # six lost for three
    assert choose_gap(np.append(right, [.01] * 7), wrong) == 0                      # more than two for each wrong one
    assert choose_gap(np.append(right[:200], [.01] * 3), wrong) == 0                 # more than 1 %
    assert choose_gap(right, np.empty(0)) == choose_gap(np.empty(0), np.empty(0)) == 0


# ---------------------------------------------------------------- into the file
def test_the_file_has_the_figures_of_the_folder(model, folder, tmp_path):
    before, result, turned = onnx.load(model), evaluated(model, folder), evaluated(model, folder, "any").verification
    images = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
    features = load_model(model).embed(images)
    os.chmod(model, 0o640)
    written = calibrated(model, folder)

    expected = {rate: {"threshold": result.verification.thresholds[rate], "tpr": result.verification.tpr_at_fpr[rate]}
                for rate in ("1e-1", "5e-2", "2e-2", "1e-2", "5e-3", "2e-3", "1e-3")}
    assert written["thresholds"] == expected
    assert written["thresholds_any"] == {rate: {"threshold": turned.thresholds[rate], "tpr": turned.tpr_at_fpr[rate]}
                                         for rate in expected}
    assert all(entry["threshold"] > expected[rate]["threshold"] for rate, entry in written["thresholds_any"].items())
    assert written["margin"] == choose_gap(*gaps(result, expected["1e-3"]["threshold"]))
    origin = written["thresholds_from"]
    assert origin.pop("named_right") + origin.pop("named_wrong") <= KINDS * (VIEWS - 1)
    assert origin == {"data": "mine", "types": KINDS, "images": KINDS * VIEWS, "pairs": {"positive": 72, "negative": 1056},
                      "too_few_negatives": ["5e-4", "2e-4", "1e-4", "5e-5", "2e-5", "1e-5"]}
    after = onnx.load(model)
    assert after.graph == before.graph and np.array_equal(load_model(model).embed(images), features)
    assert metadata_of(model) == json.loads(before.metadata_props[0].value) | calibrated(model, folder)
    assert list(tmp_path.iterdir()) == [model] and stat.S_IMODE(model.stat().st_mode) == 0o640
    assert DocClassifier(model=model, register_root=folder).threshold == expected["1e-3"]["threshold"]


def test_a_link_stays_a_link(model, folder, tmp_path):
    (tmp_path / "link.onnx").symlink_to(model)
    calibrated(tmp_path / "link.onnx", folder)
    assert (tmp_path / "link.onnx").is_symlink() and "1e-3" in metadata_of(model)["thresholds"]


def test_the_gap_goes_into_the_file(model, folder, monkeypatch):
    monkeypatch.setattr("eval.calibrate.choose_gap", lambda right, wrong: .0123)
    calibrated(model, folder)
    assert DocClassifier(model=model, register_root=folder).margin == load_model(model).margin == .0123


def test_a_file_that_cannot_be_written_does_not_change(model, folder, tmp_path, monkeypatch):
    before, result = model.read_bytes(), evaluated(model, folder)

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("os.replace", "shutil.copymode", "pathlib.Path.write_bytes"):
        with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot be written .No space left") as caught:
            patch.setattr(name, full)
            calibrate(model, result, result)
        assert "\n" not in str(caught.value) and str(model) in str(caught.value)
        assert model.read_bytes() == before and list(tmp_path.iterdir()) == [model]

    def broken(path):
        if str(path).endswith(".partial"):
            raise UserError("broken")
        return load_model(path)

    monkeypatch.setattr("eval.calibrate.load_model", broken)
    with pytest.raises(UserError, match="broken"):
        calibrate(model, result, result)
    assert model.read_bytes() == before and list(tmp_path.iterdir()) == [model]


def test_too_few_pairs_for_any_threshold(model, tmp_path):
    before = model.read_bytes()
    for name in ("a/1", "a/2", "b/1", "b/2", "b/3"):
        save(tmp_path / "few" / f"{name}.png", view_of(ord(name[0]), int(name[2])))
    with pytest.raises(UserError, match="its 6 pairs of different types are too few"):
        calibrated(model, tmp_path / "few")
    save(tmp_path / "few" / "c" / "1.png", view_of(0, 0))     # 11 pairs: no threshold for 1e-3, so no gap either
    written = calibrated(model, tmp_path / "few")
    assert list(written["thresholds"]) == ["1e-1"] and written["margin"] == 0
    assert model.read_bytes() != before


# ---------------------------------------------------------------- the open set
def table_of(model, **entries):
    """The model with these entries in its metadata."""
    proto = onnx.load(model)
    proto.metadata_props[0].value = json.dumps(json.loads(proto.metadata_props[0].value) | entries)
    onnx.save(proto, model)
    return model


@pytest.mark.parametrize("threshold, margin", [(.8, 0), (.85, .03), (.9, .01), (0, 0), (1.001, 0), (0, 1)])
def test_the_open_set_equals_a_plain_loop(model, folder, threshold, margin):
    table_of(model, thresholds={"1e-2": {"threshold": .99}, "1e-4": {"threshold": threshold}}, margin=margin)
    result = evaluated(model, folder)
    rows, labels = result.embeddings, result.labels
    references = {kind: np.flatnonzero(labels == kind)[-1 if kind < KINDS - 1 else 0] for kind in range(KINDS)}
    assert all(result.items[row].is_reference for row in list(references.values())[:-1])    # "photo" < "reference"
    identified, correct, rejected = [], [], []
    for half in (0, 1):
        inside = [kind for kind in range(KINDS) if kind % 2 == half]
        own = {}  # types whose references look alike have a higher threshold
        for kind in inside:
            others = [(float(rows[references[kind]] @ rows[references[other]]) + 1) / 2 for other in inside if other != kind]
            own[kind] = threshold + max(0, max(others) - threshold) / 4
        for row in range(len(rows)):
            if row in [references[kind] for kind in inside]:
                continue
            scores = {kind: (float(rows[row] @ rows[references[kind]]) + 1) / 2 for kind in inside}
            first, second = sorted(scores, key=scores.get)[:-3:-1]
            labeled = scores[first] >= own[first] and scores[first] - scores[second] >= margin
            if labels[row] in inside:
                identified.append(labeled)
                correct.append(labeled and first == labels[row])
            else:
                rejected.append(not labeled)
    found = open_set(model, result)
    assert (found.known, found.unknown) == (len(identified), len(rejected)) == (KINDS * (VIEWS - 1), KINDS * VIEWS)
    assert (found.threshold, found.gap) == (threshold, margin)
    assert (found.identified, found.correctly_identified, found.unknown_rejected) == pytest.approx(
        (np.mean(identified), np.mean(correct), np.mean(rejected)), abs=1e-12)
    assert open_set(model, result, fpr=1e-2).threshold == .99


def test_an_open_set_of_references_alone(model, tmp_path):
    for name in ("a/reference1", "a/reference2", "b/reference"):
        save(tmp_path / "data" / f"{name}.png", view_of(ord(name[0]), 0))
    with pytest.raises(UserError, match="all images are references"):
        open_set(model, evaluated(model, tmp_path / "data"))


# ---------------------------------------------------------------- the command
def test_the_json_document_is_that_of_the_evaluation(model, folder, tmp_path, capsys):
    main(["--model", str(model), "--data", str(folder), "--json"])
    plain = json.loads(capsys.readouterr().out)
    main(["--model", str(model), "--calibrate", str(folder), "--json", "--report", str(tmp_path / "report")])
    out, err = capsys.readouterr()
    assert json.loads(out) == plain and (tmp_path / "report" / "report.html").is_file()
    assert f"{model}: now has the thresholds of {folder} for FPR 1e-1 to 1e-3, and a runner-up gap of 0\n" in err
    assert metadata_of(model)["thresholds_from"]["data"] == "mine"

    main(["--model", str(model), "--data", str(folder), "--open-set", "--fpr", "1e-2", "--json"])
    document = json.loads(capsys.readouterr().out)
    measured = document.pop("open_set")
    assert document == plain and measured["threshold"] == plain["thresholds"]["1e-2"]
    assert set(measured) == {"threshold", "margin", "accepted", "right", "refused", "known", "strangers"}


def test_calibrating_needs_no_torch(model, folder):
    done = run_without(["torch", "sklearn", "matplotlib"], "-m", "eval", "--model", model, "--calibrate", folder,
                       "--open-set")
    assert done.returncode == 0, done.stderr
    threshold = metadata_of(model)["thresholds"]["1e-3"]["threshold"]
    assert "Open set, half of the types registered, then the other half" in done.stdout
    assert f"(threshold {threshold:.4f}, runner-up gap 0.0000)" in done.stdout


def test_mistakes_are_one_line(model, folder, tmp_path, capsys):
    before = model.read_bytes()
    save(tmp_path / "run" / "x.png", view_of(0, 0))
    (tmp_path / "text.onnx").write_text("not a model")
    for said, arguments in {
        "export the run first": ["--model", tmp_path / "run", "--calibrate", folder],
        "export the run first:": ["--model", tmp_path / "run", "--data", folder, "--open-set"],
        "not allowed with": ["--model", model, "--calibrate", folder, "--data", folder],
        "--data --calibrate is required": ["--model", model],
        "--fpr is for --open-set": ["--model", model, "--data", folder, "--fpr", "0.1"],
        "fpr 2.0": ["--model", model, "--data", folder, "--open-set", "--fpr", "2"],
        "no threshold": ["--model", model, "--data", folder, "--open-set", "--fpr", "1e-3"],
        "nowhere: no such folder": ["--model", model, "--calibrate", tmp_path / "nowhere"],
        "1 readable images": ["--model", model, "--calibrate", tmp_path / "run"],
        "cannot load it": ["--model", tmp_path / "text.onnx", "--calibrate", folder],
    }.items():
        assert exit_status(lambda: main([str(argument) for argument in arguments])) == 2, said
        out, err = capsys.readouterr()
        assert out == "" and said in err and err.startswith("error: ") and err.count("\n") == 1, (said, err)
    assert model.read_bytes() == before
