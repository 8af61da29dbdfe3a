"""How much each model counts is tuned on out-of-fold predictions: of training images, by models that had not learned from
them. Labels and predictions of test images take no part.

`fit` tunes and scores; `apply` is the prediction of every image. The training images' own are cross-fitted: the weights for
fold k are tuned on the other folds, so that the scores are fair and a student can be taught with them.
"""
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.stats import binomtest

from adverts.split import Split
from engine.predictions import Predictions, read_predictions
from inference.errors import UserError, first_line, printable
from inference.fusion import KINDS, check_fusion, combine, log_softmax

FORMS = ("product", "mean", "fixed")
FIXED = {"image": 0.6, "text": 0.4}  # of the contest's system, over its softmax outputs as they are
RIDGE = 1e-3                         # on the weights; matters where models say nearly the same
STEEPEST = 1e3                       # 1 / temperature is at most this, and at least its inverse
DRAWS = 1000                         # of the bootstrap
Z = np.ndarray                       # logits or log probabilities, float64 [M,N,C]: models, images, classes


class Model(NamedTuple):
    """One file of predictions. name: the file's; kind: "image" or "text", what the model sees."""
    name: str
    kind: str
    predictions: Predictions


def read_models(files: Sequence, split: Split) -> list[Model]:
    """The models in files of predictions. Raises UserError, one line, unless they are out-of-fold predictions of this split:
    of every image, but those without text for a model of texts, and those listed in `about["unreadable"]`."""
    models = [Model(Path(file).stem, *_checked(file, split)) for file in files]
    for place, model in enumerate(models):
        if model.name in FORMS or model.name in [other.name for other in models[:place]]:
            raise UserError(printable(f"{files[place]}: {model.name} is a form of fusion, or another model's name; give "
                                      "each model once, or rename the file"))
    return models


def _checked(file, split):
    """(kind, predictions) of a file."""
    given = read_predictions(file)
    again = "write it again with `python -m adverts predict --split` of this split"
    kind, digest = given.about.get("input"), given.about.get("split")
    if given.kind != "logits" or given.folds is None:
        problem = "has no " + ("folds" if given.kind == "logits" else "logits")
    elif kind not in KINDS:
        problem = f"does not say what its model sees (about: input is {kind!r}, and not one of {', '.join(KINDS)})"
    elif digest != split.digest():
        problem = f"was made for another split ({digest})"
    elif other := set(given.classes) ^ set(split.classes):
        problem = f"{min(other)!r} is a class of {'its own' if min(other) in given.classes else 'the split'} alone"
    else:
        problem = _wrong_row(given, split, kind)
    if problem:
        raise UserError(printable(f"{file}: {problem}; {again}"))
    return kind, given


def _wrong_row(given, split, kind):
    """What is wrong with the rows of a file; None: nothing."""
    fold_of = dict(zip(given.ids, given.folds.tolist()))
    for row in split.part("train"):
        if (fold := fold_of.get(row.file, row.fold)) != row.fold:
            seen = "models that learned from it" if fold < 0 else f"the model of fold {fold}, which learned from it"
            return f"{row.file} is in fold {row.fold}, and was predicted by {seen}"
    for fold in range(split.folds):
        if not any(row.file in fold_of for row in split.part("train", fold)):
            return f"no image of fold {fold} is predicted"
    told = given.about.get("unreadable")
    unreadable = {name for name in told if isinstance(name, str)} if isinstance(told, list) else set()
    missing = {row.file for row in split.rows} - fold_of.keys() - unreadable
    if kind == "image" and missing:
        return f"{len(missing):,} of {len(split.rows):,} images are not predicted, such as {min(missing)}"
    return None


def stack(models: Sequence[Model], ids: Sequence[str], classes: Sequence[str]) -> tuple[Z, np.ndarray]:
    """(logits float64 `[M,N,C]`, folds int64 `[M,N]`) of samples by id and of classes by name; rows of NaN, and the fold -1,
    where a model has no prediction."""
    logits = np.full((len(models), len(ids), len(classes)), np.nan)
    folds = np.full((len(models), len(ids)), -1)
    for m, (_, _, given) in enumerate(models):
        column = [given.classes.index(name) for name in classes]
        row = {name: place for place, name in enumerate(given.ids)}
        known = [n for n, name in enumerate(ids) if name in row]
        rows = [row[ids[n]] for n in known]
        logits[m, known] = given.values.numpy()[rows][:, column]
        folds[m, known] = given.folds.numpy()[rows]
    return logits, folds


# -- tuning: logits [M,N,C] of labeled images -> weights -------------------------------------------------------------

def temperature(logits: np.ndarray, label: np.ndarray) -> float:
    """The T with the least cross entropy of softmax(logits / T), `[N,C]`. Guo et al. 2017, https://arxiv.org/abs/1706.04599

    Convex in 1 / T.
    """
    return float(1 / _least(lambda w: _cross_entropy(w, logits[None], label), np.ones(1), 1 / STEEPEST, STEEPEST)[0])


def product_weights(log_p: Z, label: np.ndarray) -> np.ndarray:
    """w `[M]`, >= 0, with the least mean cross entropy of softmax(sum of w_m log p_m) + RIDGE |w|^2: strictly convex."""
    def loss(w):
        value, slope = _cross_entropy(w, log_p, label)
        return value + RIDGE * w @ w, slope + 2 * RIDGE * w
    return _least(loss, np.full(len(log_p), 1 / len(log_p)), 0, None)


def mean_weights(log_p: Z, label: np.ndarray) -> np.ndarray:
    """w `[M]`, >= 0 and of sum 1, with the least mean of -log(sum of w_m p_m(label)).

    Convex. With the sum of w added to it the least lies at sum 1 by itself: there, the slope along w is sum w - 1.
    """
    p = np.maximum(np.exp(log_p[:, np.arange(len(label)), label]), 1e-12)                        # [M,N]

    def loss(w):
        mixed = np.maximum(w @ p, 1e-300)
        return w.sum() - np.log(mixed).mean(), 1 - (p / mixed).mean(1)
    w = _least(loss, np.full(len(p), 1 / len(p)), 0, None)
    return w / w.sum()


def _cross_entropy(w, z, label):
    """(mean cross entropy of softmax(sum of w_m z_m), its slope `[M]`).

    The labels are softened as if one of N + 1 images were of all classes alike: without that, w would be infinite where
    every image is right. Platt 1999, "Probabilistic outputs for support vector machines", softens them so too.
    """
    log_p, spread = log_softmax(np.tensordot(w, z, 1)), 1 / (1 + len(label))                     # [N,C]
    target = np.full(log_p.shape, spread / log_p.shape[1])
    target[np.arange(len(label)), label] += 1 - spread
    return -(target * log_p).sum() / len(label), np.tensordot(z, np.exp(log_p) - target, 2) / len(label)


def _least(loss, start, low, high):
    """Where a convex function, which returns (value, slope), is least between two bounds."""
    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(low, high)] * len(start),
                    options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 1000}).x


def tune(form: str, models: Sequence[Model], logits: Z, label: np.ndarray) -> dict:
    """The part {models, fallback} of a fusion (`inference/fusion.py`), tuned on labeled images.

    form: one of FORMS, or the name of a model, which is then used alone where it has a prediction, the fallback of its kind
    included. The weights are tuned on the images of which all models have a prediction; those of the fallback, on those of
    which all of that kind have one.
    """
    kinds = [model.kind for model in models]
    has = ~np.isnan(logits[:, :, 0])                                                             # [M,N]
    heat = [1.0 if form == "fixed" else temperature(rows[known], label[known]) for rows, known in zip(logits, has)]
    log_p = log_softmax(logits / np.reshape(heat, (-1, 1, 1)))

    def weights(of):
        """{name: weight} of the models at the places `of`."""
        if form == "fixed":
            share = {kind: FIXED[kind] / sum(kinds[m] == kind for m in of) for kind in {kinds[m] for m in of}}
            w = np.array([share[kinds[m]] for m in of])
        else:
            known = has[of].all(0)
            if not known.any():
                raise UserError(f"no training image has a prediction of each of {', '.join(models[m].name for m in of)}; "
                                "nothing can be tuned on")
            w = (mean_weights if form == "mean" else product_weights)(log_p[of][:, known], label[known])
        return dict(zip([models[m].name for m in of], (w / w.sum() if form in ("fixed", "mean") else w).tolist()))

    def used(of):
        """Those at the places `of` that are used together: the one that is used alone, if it is among them."""
        return [m for m in of if models[m].name == form] or of

    main = weights(used(list(range(len(models)))))
    fallback = {kind: weights(used([m for m in range(len(models)) if kinds[m] == kind])) for kind in sorted(set(kinds))}
    return {"models": [{"name": model.name, "kind": model.kind, "weight": main.get(model.name, 0.0), "temperature": t}
                       for model, t in zip(models, heat)], "fallback": fallback if len(fallback) > 1 else {}}


# -- scoring, and the choice ------------------------------------------------------------------------------------------

class Fitted(NamedTuple):
    """A fusion: its weights tuned on all training images, and `[K]` those tuned without each fold."""
    form: str
    final: dict
    without: list[dict]

    def log_p(self, models: Sequence[Model], logits: Z, folds: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """Log probabilities float64 `[N,C]` of images in these folds, each by the weights tuned without its fold; fold -1:
        by those tuned on all."""
        found = np.empty(logits.shape[1:])
        for fold in np.unique(folds):
            rows, weights = folds == fold, self.final if fold < 0 else self.without[fold]
            fusion = {"form": _form(self.form), "classes": classes, **weights}
            found[rows] = combine({model.name: z[rows] for model, z in zip(models, logits)}, fusion)
        return found


def cross_fit(form: str, models: Sequence[Model], logits: Z, label: np.ndarray, folds: np.ndarray) -> Fitted:
    """Tune as `tune` does, on all labeled images, and once without each fold."""
    parts = [np.ones(len(label), bool), *(folds != fold for fold in range(folds.max() + 1))]
    final, *without = (tune(form, models, logits[:, rows], label[rows]) for rows in parts)
    return Fitted(form, final, without)


def right(log_p: np.ndarray, label: np.ndarray) -> np.ndarray:
    """bool `[N]`: the class is the most likely one. An image of which nothing is known, all classes alike, is not right."""
    return (log_p.argmax(1) == label) & (np.ptp(log_p, 1) > 0)


def score(log_p: np.ndarray, label: np.ndarray, groups: Sequence[str]) -> dict:
    """{images, accuracy, interval, nll} of log probabilities `[N,C]`; nll: mean cross entropy, in nats."""
    hit = right(log_p, label)
    return {"images": len(label), "accuracy": float(hit.mean()), "interval": interval(hit, groups),
            "nll": _nll(log_p, label)}


def _nll(log_p, label):
    return float(-log_p[np.arange(len(label)), label].mean())


def compare(hit: np.ndarray, other: np.ndarray, groups: Sequence[str]) -> dict:
    """{difference, interval, gained, lost, p} of two models by whether they are right, bool `[N]`. p: exact McNemar test,
    two sides: how often so uneven a gain and loss comes about where neither is better."""
    gained, lost = int((hit & ~other).sum()), int((other & ~hit).sum())
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return {"difference": (gained - lost) / len(hit), "interval": interval(hit.astype(int) - other, groups),
            "gained": gained, "lost": lost, "p": float(p)}


def interval(values: np.ndarray, groups: Sequence[str]) -> list[float]:
    """[low, high], 95 %, of the mean of values `[N]`: a bootstrap over groups, whose images are alike."""
    place = np.unique(groups, return_inverse=True)[1]
    sums = np.stack([np.bincount(place, values), np.bincount(place)], 1)                         # [G,2]
    rng = np.random.default_rng(0)
    drawn = np.array([sums[rng.integers(len(sums), size=len(sums))].sum(0) for _ in range(DRAWS)])
    return np.quantile(drawn[:, 0] / drawn[:, 1], [.025, .975]).tolist()


def fit(models: Sequence[Model], split: Split, form: str = "product") -> dict:
    """The fusion of models for a split, as JSON values: what `inference.fusion.combine` takes, and beside it

    choice          the form, or a model's name: the one that is best by itself is kept where the fusion, cross-fitted, is
                    right less often on training images
    cross_fitted    [{models, fallback}] tuned without each fold
    split           digest
    best            the model that is best by itself, out of fold
    scores          {model or form: `score`, and "against_best": `compare` with the best model, and "test": the same two
                    where labels of test images are known, else null}

    Raises UserError where nothing can be tuned on.
    """
    classes = split.classes
    train = sorted(split.part("train"))  # so that the order of the split's rows changes nothing, to the last bit
    test = sorted(row for row in split.part("test") if row.label)
    label, test_label = (np.array([classes.index(row.label) for row in rows], int) for rows in (train, test))
    logits, test_logits = (stack(models, [row.file for row in rows], classes)[0] for rows in (train, test))
    folds, groups = np.array([row.fold for row in train]), [row.group for row in train]

    found = {}  # {model or form: (Fitted, log_p of train, log_p of test)}
    for m, model in enumerate(models):
        found[model.name] = _predicted(cross_fit("product", [model], logits[[m]], label, folds), [model], logits[[m]],
                                       test_logits[[m]], folds, classes)
    best = max(found, key=lambda name: (right(found[name][1], label).mean(), -_nll(found[name][1], label)))
    for name in FORMS if len(models) > 1 else ():
        found[name] = _predicted(cross_fit(name, models, logits, label, folds), models, logits, test_logits, folds, classes)

    scores, test_groups = {}, [row.group for row in test]
    for name, (_, log_p, test_p) in found.items():
        scores[name] = {**score(log_p, label, groups), "test": None,
                        "against_best": compare(right(log_p, label), right(found[best][1], label), groups)}
        if test:
            scores[name]["test"] = {**score(test_p, test_label, test_groups), "against_best": compare(
                right(test_p, test_label), right(found[best][2], test_label), test_groups)}
    choice = form if len(models) > 1 and scores[form]["accuracy"] >= scores[best]["accuracy"] else best
    chosen = found[choice][0] if choice != best or len(models) == 1 else cross_fit(best, models, logits, label, folds)
    digest = {model.name: model.predictions.digest() for model in models}
    for part in (chosen.final, *chosen.without):
        part["models"] = [{**entry, "predictions": digest[entry["name"]]} for entry in part["models"]]
    return {"form": _form(choice), **chosen.final, "classes": classes, "choice": choice, "split": split.digest(),
            "best": best, "cross_fitted": chosen.without, "scores": scores}


def _form(name):
    """That of `combine` for a form of this module or a model's name."""
    return "mean" if name in ("mean", "fixed") else "product"


def _predicted(fitted, models, logits, test_logits, folds, classes):
    return (fitted, fitted.log_p(models, logits, folds, classes),
            fitted.log_p(models, test_logits, np.full(test_logits.shape[1], -1), classes))


def apply(fusion: dict, models: Sequence[Model], split: Split) -> np.ndarray:
    """Log probabilities float64 `[N,C]` of the split's rows, in their order, by a fusion that `fit` gave: training images by
    the weights tuned without their fold. Raises UserError where models, predictions or split are not those that it had."""
    check_fitted(fusion, models, split)
    logits, _ = stack(models, [row.file for row in split.rows], fusion["classes"])
    fitted = Fitted(fusion["choice"], fusion, fusion["cross_fitted"])
    return fitted.log_p(models, logits, np.array([row.fold for row in split.rows]), fusion["classes"])


def check_fitted(fusion: dict, models: Sequence[Model], split: Split) -> None:
    """Raises UserError unless `fit` made the fusion of these models and this split."""
    again = "run `python -m adverts tune` again"
    if not {"choice", "best", "split", "cross_fitted", "scores"} <= fusion.keys():
        raise UserError(f"the fusion does not say how it was tuned; {again}")
    try:
        if len(fusion["cross_fitted"]) != split.folds:
            raise ValueError("not one part for each fold")
        for part in fusion["cross_fitted"]:
            check_fusion({**fusion, "models": part["models"], "fallback": part["fallback"]})
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"the fusion's cross_fitted cannot be used ({first_line(error)}); {again}") from None
    if fusion["split"] != split.digest():
        raise UserError(printable(f"the fusion was tuned for another split, {fusion['split']}; {again}, or give that split"))
    tuned = {model["name"]: model.get("predictions") for model in fusion["models"]}
    for name in sorted(tuned.keys() ^ {model.name for model in models}):
        raise UserError(printable(f"{name} is {'missing, and is' if name in tuned else 'given, and is not'} a model of the "
                                  f"fusion; give the files that it was tuned on, or {again}"))
    for model in models:
        if tuned[model.name] != model.predictions.digest():
            raise UserError(printable(f"{model.name}: its predictions have changed since the fusion was tuned; {again}"))
