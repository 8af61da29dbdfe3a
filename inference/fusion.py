"""Late fusion: what several classifiers say of an image becomes one prediction. numpy and the standard library only.

    fusion = read_fusion("classifier/fusion.json")                        # `python -m adverts tune` writes it
    log_p = combine({"image": logits, "text": other_logits}, fusion)      # [N,C]

A model m has a temperature T and a weight w, and says p_m = softmax(logits / T). The two forms are

    product     log p = sum of w_m log p_m + constant       (product of experts, or logarithmic opinion pool)
    mean        p = sum of w_m p_m / sum of w_m             (linear opinion pool)

over the models that have a prediction. Where only models of one kind have one, as for an image without text, the weights are
those of `fallback` for that kind, which were tuned without the other kind. No prediction at all: all classes are equally
likely.
"""
import json

import numpy as np

from .errors import UserError, first_line, printable

FORMS = ("product", "mean")
KINDS = ("image", "text")
MAX_BYTES = 64 * 2**20  # of a file: 100,000 classes with long names take 10 MB
MAX_MODELS = 100
LARGEST = 1e6  # weight or temperature; 1 / LARGEST is the least temperature. With these no product overflows


def log_softmax(values: np.ndarray) -> np.ndarray:
    """Over the last axis; finite for finite values."""
    values = values - values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


def combine(logits: dict[str, np.ndarray], fusion: dict) -> np.ndarray:
    """Log probabilities float64 `[N,C]` of N images by {model's name: its logits `[N,C]`}, rows of NaN where it has none.

    fusion: as `read_fusion` returns it; C is in the order of its `classes`. A model that is not in `logits` has no
    prediction of any image. Raises ValueError where these do not fit together, or a number of a row is not finite.
    """
    models = fusion["models"]
    if unknown := set(logits) - {model["name"] for model in models}:
        raise ValueError(f"{min(unknown)!r} is not a model of the fusion")
    count = len(next(iter(logits.values()))) if logits else 0
    shape = count, len(fusion["classes"])
    for name, rows in logits.items():
        if np.shape(rows) != shape:
            raise ValueError(f"{name!r} has logits {list(np.shape(rows))}, and {list(shape)} are needed")
    has = np.array([_has(model["name"], logits, count) for model in models])                     # bool [M,N]
    total = np.zeros(shape) if fusion["form"] == "product" else np.full(shape, -np.inf)
    for model, weight in zip(models, _weights(fusion, has)):                                     # weight [N]
        used = np.flatnonzero(weight)
        if len(used):
            log_p = log_softmax(np.asarray(logits[model["name"]], np.float64)[used] / model["temperature"])
            w = weight[used, None]
            total[used] = (total[used] + w * log_p if fusion["form"] == "product" else
                           np.logaddexp(total[used], np.log(w) + log_p))
    total[np.isneginf(total).all(1)] = 0                                                         # no model: uniform
    return log_softmax(total)


def _has(name, logits, count):
    """bool `[N]`: whether a model has a prediction of an image."""
    if name not in logits:
        return np.zeros(count, bool)
    finite = np.isfinite(logits[name])
    if not (finite.all(1) | np.isnan(logits[name]).all(1)).all():
        raise ValueError(f"{name!r}: a row has numbers that are not finite")
    return finite[:, 0]


def _weights(fusion, has):
    """float64 `[M,N]`: the weight of each model for each image, 0 where it has no prediction of it."""
    models = fusion["models"]
    kinds = np.array([model["kind"] for model in models])
    weights = np.array([model["weight"] for model in models], np.float64)[:, None] * has
    for kind, given in fusion["fallback"].items():
        alone = has[kinds == kind].any(0) & ~has[kinds != kind].any(0)                           # [N]
        fallback = np.array([given.get(model["name"], 0.0) for model in models])                 # [M]
        weights[:, alone] = fallback[:, None] * has[:, alone]
    return weights


def read_fusion(path) -> dict:
    """The fusion in a JSON file: form, models [{name, kind, weight, temperature}], fallback {kind: {name: weight}}, classes,
    and whatever else it holds. Raises UserError, one line, for any other file; it may come from anyone."""
    way_out = "`python -m adverts tune` writes one"
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
        fusion = json.loads(content.decode())
        check_fusion(fusion)
    except OSError as error:
        raise UserError(printable(f"{path}: cannot be read ({error.strerror}); {way_out}")) from None
    except (ValueError, RecursionError) as error:
        raise UserError(printable(f"{path}: cannot be used as a fusion ({first_line(error)}); {way_out}")) from None
    return fusion


def check_fusion(fusion) -> None:
    """Raises ValueError unless `combine` can use it."""
    if not isinstance(fusion, dict) or fusion.get("form") not in FORMS:
        raise ValueError(f"its form is not one of {', '.join(FORMS)}")
    classes, models, fallback = fusion.get("classes"), fusion.get("models"), fusion.get("fallback")
    if not _distinct(classes) or len(classes) < 2:
        raise ValueError("classes must be two or more different names")
    if not isinstance(models, list) or not 0 < len(models) <= MAX_MODELS or not all(isinstance(m, dict) for m in models):
        raise ValueError(f"models must be a list of 1 to {MAX_MODELS}")
    if not _distinct([model.get("name") for model in models]):
        raise ValueError("the models must have different names")
    for model in models:
        if model.get("kind") not in KINDS:
            raise ValueError(f"the kind of {model['name']!r} is not one of {', '.join(KINDS)}")
        weight, temperature = model.get("weight"), model.get("temperature")
        if not (_number(weight) and _number(temperature) and temperature >= 1 / LARGEST):
            raise ValueError(f"{model['name']!r} needs a weight of 0 to {LARGEST:g} and a temperature of {1 / LARGEST:g} to "
                             f"{LARGEST:g}")
    of_kind = {kind: {model["name"] for model in models if model["kind"] == kind} for kind in KINDS}
    if not isinstance(fallback, dict) or not all(
            kind in KINDS and isinstance(given, dict) and given.keys() <= of_kind[kind] and all(map(_number, given.values()))
            for kind, given in fallback.items()):
        raise ValueError("fallback must give weights of 0 or more to models, by their kind")


def _distinct(names):
    return isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)


def _number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LARGEST
