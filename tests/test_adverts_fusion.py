"""Fusion: its formulas, that weights are optimal and tuned on out-of-fold predictions alone, and what is refused."""
import json
import math
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adverts import fusion as module
from adverts.fusion import (
    FORMS,
    apply,
    compare,
    fit,
    interval,
    mean_weights,
    product_weights,
    read_models,
    stack,
    temperature,
)
from adverts.split import Split, write_split
from adverts.tune import main
from engine.predictions import read_predictions
from inference.cli import exit_status
from inference.errors import UserError
from inference.fusion import combine, log_softmax, read_fusion
from tests.helpers.opinions import make_split, opinions, write

GIVEN = {"form": "product", "classes": ["a", "b", "c"],
         "models": [{"name": "look", "kind": "image", "weight": 0.7, "temperature": 2.0},
                    {"name": "bag", "kind": "text", "weight": 1.1, "temperature": 0.5},
                    {"name": "tfidf", "kind": "text", "weight": 0.0, "temperature": 1.0}],
         "fallback": {"image": {"look": 0.9}, "text": {"bag": 0.3, "tfidf": 0.6}}}


def softmax(z):
    e = [math.exp(v - max(z)) for v in z]
    return [v / sum(e) for v in e]


def pooled(form, parts):
    """Probabilities of one image from [(logits, temperature, weight)], by the formulas as they stand in the literature."""
    if not parts:
        return [1 / 3] * 3
    p = [softmax([v / heat for v in z]) for z, heat, _ in parts]
    if form == "product":
        joint = [math.prod(one[c] ** w for one, (_, _, w) in zip(p, parts)) for c in range(3)]
    else:
        joint = [sum(w * one[c] for one, (_, _, w) in zip(p, parts)) for c in range(3)]
    return [v / sum(joint) for v in joint]


@pytest.fixture(scope="module")
def split():
    return make_split()


@pytest.fixture
def files(split, tmp_path):
    """Two models, of which the better one is of texts and has no prediction of some images."""
    text = {name: z for name, z in opinions(split, 2.5, 1).items() if name not in ("train/002.jpg", "test/03.jpg")}
    return [write(tmp_path / "look.safetensors", split, opinions(split, 1.5, 0)),
            write(tmp_path / "tfidf.safetensors", split, text, "text")]


# -- combining --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("form", ["product", "mean"])
def test_predictions_are_combined_as_the_formula_says(form):
    """Every pattern of models that have a prediction: all, those of one kind (the fallback), some, none (uniform)."""
    logits = {name: np.random.default_rng(n).normal(size=(8, 3)) * 3 for n, name in enumerate(("look", "bag", "tfidf"))}
    for n, name in enumerate(logits):
        logits[name][[row for row in range(8) if row >> n & 1]] = np.nan
    found = combine(logits, {**GIVEN, "form": form})
    for row in range(8):
        look, bag, tfidf = (not row >> n & 1 for n in range(3))
        w = (0.7, 1.1, 0.0) if look and (bag or tfidf) else (0.9, 0.3, 0.6)
        parts = [(logits[name][row], heat, weight) for name, heat, weight, has in
                 zip(logits, (2.0, 0.5, 1.0), w, (look, bag, tfidf)) if has]
        np.testing.assert_allclose(np.exp(found[row]), pooled(form, parts), atol=1e-12)


def test_a_model_that_is_not_there_has_no_prediction():
    z = np.random.default_rng(0).normal(size=(4, 3))
    absent = np.full((4, 3), np.nan)
    np.testing.assert_array_equal(combine({"look": z}, GIVEN), combine({"look": z, "bag": absent, "tfidf": absent}, GIVEN))
    assert (combine({"look": z}, GIVEN).argmax(1) == z.argmax(1)).all()


@pytest.mark.parametrize("form", ["product", "mean"])
def test_extreme_numbers_stay_finite(form):
    z = np.array([[3e38, -3e38, 0]], np.float32)
    found = combine({"look": z, "bag": -z, "tfidf": z}, {**GIVEN, "form": form})
    assert np.isfinite(found).all() and np.exp(found).sum() == pytest.approx(1)


@pytest.mark.parametrize("logits, says", [
    ({"look": [[0, math.nan, 0]]}, "look.*not finite"), ({"look": [[0, math.inf, 0]]}, "look.*not finite"),
    ({"look": [[0, 0]]}, "look.*needed"), ({"look": [[0, 0, 0]], "bag": [[0, 0, 0]] * 2}, "bag.*needed"),
    ({"other": [[0, 0, 0]]}, "'other' is not a model")])
def test_what_does_not_fit_is_refused(logits, says):
    with pytest.raises(ValueError, match=says):
        combine({name: np.array(z, float) for name, z in logits.items()}, GIVEN)


@pytest.mark.parametrize("change", [
    {"form": "sum"}, {"form": None}, {"classes": ["a"]}, {"classes": ["a", "a"]}, {"classes": "ab"}, {"classes": [1, 2]},
    {"models": []}, {"models": {}}, {"models": [1]}, {"models": GIVEN["models"][:1] * 2},
    {"models": [{**GIVEN["models"][0], "name": str(n)} for n in range(101)], "fallback": {}},
    {"fallback": None}, {"fallback": {"sound": {}}}, {"fallback": {"image": {"bag": 1.0}}},
    {"fallback": {"image": {"look": -1}}}, {"fallback": {"image": 3}},
    *({"models": [{**GIVEN["models"][0], **wrong}], "fallback": {}} for wrong in (
        {"weight": -0.1}, {"weight": math.nan}, {"weight": math.inf}, {"weight": "1"}, {"weight": True}, {"weight": None},
        {"temperature": 0}, {"temperature": -1}, {"temperature": 1e-300}, {"temperature": math.nan}, {"kind": "sound"},
        {"name": 3}, {"name": None}))])
def test_an_untrusted_file_is_refused_in_one_line(change, tmp_path):
    path = tmp_path / "fusion.json"
    path.write_text(json.dumps(GIVEN))
    assert read_fusion(path) == GIVEN
    path.write_text(json.dumps({**GIVEN, **change}))
    with pytest.raises(UserError, match="cannot be used as a fusion") as caught:
        read_fusion(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"[]", b"null", b"\xff", b'{"form": "product"}'])
def test_other_files_are_refused_in_one_line(content, tmp_path):
    (tmp_path / "fusion.json").write_bytes(content)
    with pytest.raises(UserError, match="fusion.json: cannot be used"):
        read_fusion(tmp_path / "fusion.json")
    for path in (tmp_path, tmp_path / "missing.json"):
        with pytest.raises(UserError, match="cannot be read"):
            read_fusion(path)


# -- tuning -----------------------------------------------------------------------------------------------------------

def problem(models=3, images=80, classes=4, seed=0):
    """(log probabilities [M,N,C], labels [N]); the last model contradicts the truth."""
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=images)
    z = rng.normal(size=(models, images, classes))
    z[np.arange(models)[:, None], np.arange(images), label] += np.linspace(1.5, -1, models)[:, None]
    return log_softmax(z), label


def cross_entropy(w, log_p, label):
    """torch's, float64, whose slope is autograd's; the labels are softened as Platt did."""
    mixed, share = (torch.as_tensor(w)[:, None, None] * torch.tensor(log_p)).sum(0), 1 / (1 + len(label))
    return torch.nn.functional.cross_entropy(mixed, torch.tensor(label), label_smoothing=share)


@pytest.mark.parametrize("seed", range(3))
def test_the_product_is_at_its_optimum(seed):
    """Slope zero where a weight is positive, and not downwards where it is at 0: enough, as the loss is convex."""
    log_p, label = problem(seed=seed)
    found = torch.tensor(product_weights(log_p, label), requires_grad=True)
    loss = cross_entropy(found, log_p, label) + module.RIDGE * (found ** 2).sum()
    slope, = torch.autograd.grad(loss, found)
    positive = found > 0
    assert (found >= 0).all() and positive[0] and not positive[-1]
    assert slope[positive].abs().max() < 1e-6 and (slope[~positive] > -1e-6).all()
    for other in np.random.default_rng(seed).uniform(0, 2, (50, 3)):
        assert cross_entropy(other, log_p, label) + module.RIDGE * (other ** 2).sum() >= loss.detach() - 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_is_at_its_optimum(seed):
    log_p, label = problem(seed=seed)
    w = mean_weights(log_p, label)
    p = np.exp(log_p[:, np.arange(len(label)), label])
    assert (w >= 0).all() and w.sum() == pytest.approx(1, abs=1e-12)
    slope = (p / (w @ p)).mean(1)  # of the mean log likelihood: on the simplex, 1 where a weight is positive, else at most 1
    assert abs(slope[w > 0] - 1).max() < 1e-6 and (slope[w == 0] < 1 + 1e-6).all()
    for other in np.random.default_rng(seed).dirichlet(np.ones(3), 50):
        assert np.log(other @ p).mean() <= np.log(w @ p).mean() + 1e-12


def test_the_temperature_is_at_its_optimum_and_follows_the_scale():
    log_p, label = problem(1)
    heat = temperature(log_p[0], label)
    steepness = torch.tensor(1 / heat, dtype=torch.float64, requires_grad=True)
    slope, = torch.autograd.grad(cross_entropy(steepness[None], log_p, label), steepness)
    assert abs(slope) < 1e-6
    assert temperature(10 * log_p[0], label) == pytest.approx(10 * heat, rel=1e-5)


def test_a_model_that_is_always_right_does_not_make_it_certain():
    """Without a bound, the best temperature of images that are all right is 0."""
    label = np.arange(40) % 4
    heat = temperature(np.eye(4)[label], label)
    assert .01 < heat < 1
    weights = product_weights(log_softmax(np.eye(4)[label] / heat)[None].repeat(2, 0), label)
    assert weights == pytest.approx([.5, .5], abs=.05)  # two that say the same share the weight


def test_the_scale_of_logits_changes_nothing(split, files, tmp_path):
    (tmp_path / "ten").mkdir()
    tens = [write(tmp_path / "ten" / file.name, split, {name: 10 * z for name, z in zip(given.ids, given.values.numpy())},
                  given.about["input"]) for file in files for given in [read_predictions(file)]]
    one, ten = (fit(read_models(each, split), split) for each in (files, tens))
    for a, b in zip(one["models"], ten["models"]):
        assert (b["weight"], b["temperature"]) == pytest.approx((a["weight"], 10 * a["temperature"]), rel=1e-4)


def test_fusion_wins_where_each_model_sees_half(split, tmp_path):
    halves = {"look": ("image", ["ash", "birch"], 0), "tfidf": ("text", ["cedar", "dogwood"], 1)}
    files = [write(tmp_path / f"{name}.safetensors", split, opinions(split, 6, seed, classes), kind)
             for name, (kind, classes, seed) in halves.items()]
    found = fit(read_models(files, split), split)
    scores = found["scores"]
    assert found["choice"] == "product"
    for part in (scores["product"], scores["product"]["test"]):
        assert part["against_best"]["difference"] > .15 and part["accuracy"] > .75
    assert scores["product"]["against_best"]["p"] < .05


def test_the_best_single_model_is_kept_where_fusion_is_worse(split, tmp_path):
    """The fixed weights trust images more than texts; here they see little, loudly."""
    text = {name: z for name, z in opinions(split, 4, 1).items() if name not in ("train/000.jpg", "test/00.jpg")}
    files = [write(tmp_path / "look.safetensors", split, {name: 30 * z for name, z in opinions(split, 0.7, 0).items()}),
             write(tmp_path / "tfidf.safetensors", split, text, "text")]
    models = read_models(files, split)
    found = fit(models, split, "fixed")
    assert found["scores"]["fixed"]["accuracy"] < found["scores"]["tfidf"]["accuracy"]
    assert found["choice"] == found["best"] == "tfidf"
    assert {model["name"]: model["weight"] > 0 for model in found["models"]} == {"look": False, "tfidf": True}
    log_p = apply(found, models, split)
    logits, _ = stack(models, [row.file for row in split.rows], split.classes)
    has_text = ~np.isnan(logits[1, :, 0])
    assert (log_p.argmax(1) == np.where(has_text, np.nan_to_num(logits[1]).argmax(1), logits[0].argmax(1))).all()
    train = np.array([row.role == "train" for row in split.rows])
    label = np.array([split.classes.index(row.label) for row in split.rows if row.role == "train"])
    assert (log_p[train].argmax(1) == label).mean() >= found["scores"]["tfidf"]["accuracy"]


def test_the_best_single_model_is_kept_for_images_without_text_too(split, tmp_path):
    """The best one is of images, beside a poor one: where there is no text, these two are not fused either."""
    without = {row.file for row in split.rows if int(row.file[-5]) % 2}
    text = {name: z for name, z in opinions(split, 0.2, 1).items() if name not in without}
    files = [write(tmp_path / "look.safetensors", split, opinions(split, 3, 0)),
             write(tmp_path / "other.safetensors", split, {name: 30 * z for name, z in opinions(split, 0.7, 2).items()}),
             write(tmp_path / "tfidf.safetensors", split, text, "text")]
    models = read_models(files, split)
    found = fit(models, split, "fixed")
    assert found["choice"] == found["best"] == "look" and found["fallback"]["image"].keys() == {"look"}
    log_p = apply(found, models, split)
    logits, _ = stack(models, [row.file for row in split.rows], split.classes)
    assert (log_p.argmax(1) == logits[0].argmax(1)).all()  # so the score that is told is that of what is used


def test_fixed_weights_are_those_of_the_contest(split, files, tmp_path):
    """.6 of the mean softmax of the image models, .4 of the text models', as they are."""
    more = write(tmp_path / "other.safetensors", split, opinions(split, 1.5, 5))
    models = read_models([*files, more], split)
    ids = [row.file for row in split.rows if row.file not in ("train/002.jpg", "test/03.jpg")]
    logits, _ = stack(models, ids, split.classes)
    p = np.exp(log_softmax(logits))
    expected = .6 * (p[0] + p[2]) / 2 + .4 * p[1]
    weights = module.tune("fixed", models, logits, np.zeros(len(ids), int))
    fused = combine(dict(zip(("look", "tfidf", "other"), logits)), {"form": "mean", "classes": split.classes, **weights})
    np.testing.assert_allclose(np.exp(fused), expected, atol=1e-12)


def test_a_single_file_is_its_own_fusion(split, files):
    models = read_models(files[:1], split)
    found = fit(models, split)
    assert found["choice"] == found["best"] == "look" and list(found["scores"]) == ["look"] and found["fallback"] == {}
    assert (apply(found, models, split).argmax(1) == stack(models, [row.file for row in split.rows],
                                                           split.classes)[0][0].argmax(1)).all()


# -- nothing leaks, nothing depends on an order -----------------------------------------------------------------------

def test_order_of_ids_classes_and_rows_changes_nothing(split, files, tmp_path):
    """To the last bit, since all is put into one order first."""
    rng, turned = random.Random(0), []
    (tmp_path / "turned").mkdir()
    for file in files:
        given = read_predictions(file)
        columns, names = rng.sample(range(4), 4), rng.sample(given.ids, len(given.ids))
        logits = dict(zip(given.ids, given.values.numpy()))
        turned.append(write(tmp_path / "turned" / file.name, split, {name: logits[name][columns] for name in names},
                            given.about["input"], [given.classes[c] for c in columns]))
    other = Split(rng.sample(split.rows, len(split.rows)))
    one, two = fit(read_models(files, split), split), fit(read_models(turned, other), other)
    for found in (one, two):
        for part in (found, *found["cross_fitted"]):
            for model in part["models"]:
                del model["predictions"]  # the digest of a file says what its columns are
    assert one == two


@pytest.mark.parametrize("form", FORMS)
def test_test_images_take_no_part(split, files, tmp_path, form):
    """Neither their labels nor what is predicted of them."""
    tests = {row.file for row in split.rows if row.role == "test"}
    blind = Split([row._replace(label="") if row.role == "test" else row for row in split.rows])
    (tmp_path / "other").mkdir()
    others = []
    for file in files:
        given = read_predictions(file)
        logits = {name: z * (-5 if name in tests else 1) for name, z in zip(given.ids, given.values.numpy())}
        others.append(write(tmp_path / "other" / file.name, blind, logits, given.about["input"]))
    one, two = fit(read_models(files, split), split, form), fit(read_models(others, blind), blind, form)
    assert one["scores"][form]["test"]["images"] == 16 and two["scores"][form]["test"] is None
    for found in (one, two):
        for part in (found, *found["cross_fitted"]):
            for model in part["models"]:
                del model["predictions"]
        for scores in found["scores"].values():
            del scores["test"]
        del found["split"]
    assert one == two


def test_a_training_image_takes_no_part_in_its_own_weights(split, files):
    """Other labels in a fold change the weights of the others, and not the weights with which that fold is predicted."""
    turned = Split([row._replace(label=split.classes[-1 - split.classes.index(row.label)]) if row.fold == 1 else row
                    for row in split.rows])
    models = read_models(files, split)
    one, two = fit(models, split), fit(models, turned)
    assert one["cross_fitted"][1] == two["cross_fitted"][1]
    for part, other in ((one, two), *((one["cross_fitted"][k], two["cross_fitted"][k]) for k in (0, 2))):
        assert part["models"] != other["models"]
    rows = [row for row in split.rows if row.fold == 1]
    logits, _ = stack(models, [row.file for row in rows], split.classes)
    found = {row.file: z for row, z in zip(split.rows, apply(one, models, split))}
    expected = combine(dict(zip(("look", "tfidf"), logits)), {**one, **one["cross_fitted"][1]})
    np.testing.assert_array_equal(np.stack([found[row.file] for row in rows]), expected)


def test_scores_are_of_the_cross_fitted_predictions(split, files):
    models = read_models(files, split)
    found = fit(models, split)
    train = [place for place, row in enumerate(split.rows) if row.role == "train"]
    label = [split.classes.index(split.rows[place].label) for place in train]
    log_p = apply(found, models, split)[train]
    score = found["scores"][found["choice"]]
    assert score["accuracy"] == pytest.approx((log_p.argmax(1) == label).mean())
    assert score["nll"] == pytest.approx(-log_p[np.arange(len(label)), label].mean())
    assert score["interval"][0] < score["accuracy"] < score["interval"][1]


def test_an_image_that_a_model_does_not_know_counts_as_wrong(split, tmp_path):
    """All classes are alike there; that the first of them is the label is no merit."""
    known = {name: z for name, z in opinions(split, 50, 0).items() if name != "train/000.jpg"}
    models = read_models([write(tmp_path / "tfidf.safetensors", split, known, "text")], split)
    assert split.rows[0].label == split.classes[0]
    assert fit(models, split)["scores"]["tfidf"]["accuracy"] == pytest.approx(44 / 45)


# -- statistics -------------------------------------------------------------------------------------------------------

def test_the_exact_test_of_mcnemar():
    hit, other = np.array([1] * 7 + [0] + [1] * 9, bool), np.array([0] * 7 + [1] + [1] * 9, bool)
    found = compare(hit, other, np.arange(17))
    assert (found["gained"], found["lost"], found["difference"]) == (7, 1, pytest.approx(6 / 17))
    assert found["p"] == pytest.approx(2 * (1 + 8) / 2 ** 8)  # 0 or 1 of 8 fair coins, both sides
    assert compare(hit, hit, np.arange(17))["p"] == 1


def test_the_interval_draws_whole_groups():
    """Four copies of each of 50 images are 50 pieces of evidence, not 200."""
    values = np.repeat(np.arange(50) % 5 < 4, 4)
    low, high = interval(values, np.repeat(np.arange(50), 4))
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(.8 * .2 / 50), rel=.15)
    low, high = interval(values, np.arange(200))
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(.8 * .2 / 200), rel=.15)


# -- what is refused --------------------------------------------------------------------------------------------------

def wrong(split, tmp_path, change):
    """A file of predictions with one thing wrong."""
    logits, folds = opinions(split, 1, 0), {row.file: row.fold for row in split.rows}
    about, classes, kind = {}, split.classes, "image"
    if change == "learned":
        folds["train/105.jpg"] = 0
    elif change == "mean":
        folds["train/105.jpg"] = -1
    elif change == "missing":
        del logits["test/04.jpg"]
    elif change == "fold":
        kind, logits = "text", {name: z for name, z in logits.items() if not name.startswith("train/2")}
    elif change == "split":
        about["split"] = "0" * 16
    elif change == "input":
        about["input"] = "sound"
    elif change == "class":
        classes = [*split.classes[:-1], "elm"]
    return write(tmp_path / "one.safetensors", split, logits, kind, classes, folds, about)


@pytest.mark.parametrize("change, says", [
    ("learned", "train/105.jpg is in fold 1, and was predicted by the model of fold 0, which learned from it"),
    ("mean", "train/105.jpg is in fold 1, and was predicted by models that learned from it"),
    ("missing", "1 of 69 images are not predicted, such as test/04.jpg"), ("fold", "no image of fold 2 is predicted"),
    ("split", "another split"), ("input", "'sound'"), ("class", "'dogwood' is a class of the split alone")])
def test_predictions_that_do_not_fit_are_refused(split, tmp_path, change, says):
    with pytest.raises(UserError) as caught:
        read_models([wrong(split, tmp_path, change)], split)
    assert says in str(caught.value) and "one.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_images_that_could_not_be_read_may_be_missing(split, tmp_path):
    logits = opinions(split, 1, 0)
    del logits["test/04.jpg"]
    path = write(tmp_path / "one.safetensors", split, logits, about={"unreadable": ["test/04.jpg"]})
    assert read_models([path], split)[0].name == "one"


def test_names_must_differ(split, files, tmp_path):
    (tmp_path / "again").mkdir()
    again = write(tmp_path / "again" / "look.safetensors", split, opinions(split, 1, 0))
    with pytest.raises(UserError, match="look is a form of fusion, or another model's name"):
        read_models([files[0], again], split)
    with pytest.raises(UserError, match="mean is a form of fusion"):
        read_models([write(tmp_path / "mean.safetensors", split, opinions(split, 1, 0))], split)


@pytest.mark.parametrize("change, says", [("nan", "not finite"), ("double", "comes twice"), ("folds", "has no folds")])
def test_broken_files_are_refused(split, files, change, says):
    """Changed behind the back of `write_predictions`, which would not write them."""
    tensors = load_file(files[0])
    if change == "nan":
        tensors["values"][3] = math.nan
    elif change == "double":
        ids = json.loads(tensors["ids"].numpy().tobytes())
        tensors["ids"] = torch.frombuffer(bytearray(json.dumps([ids[0], *ids[:1], *ids[2:]]).encode()), dtype=torch.uint8)
    else:
        del tensors["folds"]
    about = {"kind": "logits", "classes": split.classes, "about": read_predictions(files[0]).about}
    save_file(tensors, files[0], {"predictions": json.dumps(about)})
    with pytest.raises(UserError, match=says):
        read_models(files, split)


def test_no_image_with_all_models_is_refused(split, tmp_path):
    """Two text models of which each knows what the other does not."""
    rows = {m: {name: z for name, z in opinions(split, 1, m).items() if int(name[-5]) % 2 == m} for m in range(2)}
    models = read_models([write(tmp_path / f"{m}.safetensors", split, rows[m], "text") for m in rows], split)
    with pytest.raises(UserError, match="no training image has a prediction of each of 0, 1"):
        fit(models, split)


# -- the command ------------------------------------------------------------------------------------------------------

def test_the_command_writes_weights_and_a_teacher(split, files, tmp_path, capsys):
    write_split(tmp_path / "split.csv", split)
    out, fused = tmp_path / "fusion.json", tmp_path / "fused.safetensors"
    assert not main([*map(str, files), "--split", str(tmp_path / "split.csv"), "--out", str(out), "--fused", str(fused)])
    said = capsys.readouterr().out
    assert all(name in said for name in ("look", "tfidf", *FORMS, "out of fold, 45 images", "test, 16 images"))
    fusion, models = read_fusion(out), read_models(files, split)
    assert fusion == json.loads(json.dumps(fit(models, split)))
    teacher = read_predictions(fused)
    assert teacher.ids == [row.file for row in split.rows] and teacher.classes == split.classes
    assert teacher.folds.tolist() == [row.fold for row in split.rows]
    np.testing.assert_allclose(teacher.values.numpy(), apply(fusion, models, split), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(teacher.values.exp().sum(1).numpy(), 1, atol=1e-5)


def test_mistakes_in_the_command_are_one_line(split, files, tmp_path, capsys):
    write_split(tmp_path / "split.csv", split)
    good = [str(files[0]), "--split", str(tmp_path / "split.csv"), "--out", str(tmp_path / "fusion.json")]
    for wrong in ([], good[1:], [*good, "--form", "sum"], [good[0], *good], [str(tmp_path / "no.safetensors"), *good[1:]],
                  [str(tmp_path / "split.csv"), *good[1:]], [*good[:1], "--split", str(files[0]), *good[3:]],
                  [*good[:3], "--out", str(tmp_path / "no" / "fusion.json")]):
        assert exit_status(lambda: main(wrong)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "fusion.json").exists()
