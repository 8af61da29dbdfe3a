"""The score from which an image gets a label."""
from .errors import UserError
from .model import TURNS, Model

# Without a threshold or rate of the user's: an unknown image is compared with every type, so the rate of pairs follows from
# the share of unknown images that may get a label. Where types are few, the rate of pairs is the limit.
UNKNOWN_LABELED = 0.05
HIGHEST_FPR = 1e-3
# Two types that look alike get a threshold this far up, from the usual threshold (0) to the score of their references (1).
# On synthetic types with two editions each, 0.25 rejected 1 % of the right labels, 0.5 rejected 4 %, and 1 rejected 26 %.
RAISED = 0.25
FALLBACK_THRESHOLD = 0.75  # for a model that was exported before it was evaluated


def raised(threshold: float, score: float) -> float:
    """The threshold of two types whose references score `score` with each other, `threshold` or more."""
    return threshold + RAISED * (score - threshold)


def choose_threshold(model: Model, threshold: float | None, fpr: float | None, orientation: str,
                     compared: int = 1) -> tuple[float, list[str]]:
    """(the lowest score at which a label is given, warnings).

    threshold, fpr: as the user gave them, or None. compared: what an image is compared with, types x views: without either,
    it decides the rate. Raises UserError.
    """
    if threshold is not None:
        if not 0 <= threshold <= 1:
            raise UserError(f"threshold {threshold}: must be between 0 and 1; a score is (cosine + 1) / 2")
        return threshold, []
    if fpr is not None and not 0 < fpr <= 1:
        raise UserError(f"fpr {fpr}: must be above 0 and at most 1; it is the share of wrong matches to allow")
    rate = min(HIGHEST_FPR, UNKNOWN_LABELED / compared) if fpr is None else fpr
    table, allowed, bounded = orientation, rate, ""
    if orientation == "any" and model.lowest_rate("any") is None:
        # The best of four scores passes at most four times as often as one.
        table, allowed, bounded = "upright", rate / TURNS, " / 4, since it was not calibrated for orientation any"
    chosen = model.threshold_at(allowed, table)
    if chosen is not None:
        return chosen, [f"using {chosen:.4f}, the model's threshold for a false positive rate of {rate:g}{bounded}: "
                        "python -m eval --calibrate measures what is needed"] if bounded else []
    if fpr is not None:
        raise UserError(f"fpr {fpr:g}: the model has no threshold for such a low rate{bounded}; give --threshold, "
                        "or calibrate the model on more images: python -m eval --calibrate")
    missing = f"the model has no threshold for a false positive rate of {rate:g}{bounded}; "
    lowest = model.lowest_rate(table)
    if lowest is None:
        return FALLBACK_THRESHOLD, [f"{missing}using {FALLBACK_THRESHOLD}"]
    # A table without low rates comes from few images. Its threshold for 1e-1 of the pairs would accept nearly everything.
    chosen = max(model.threshold_at(lowest, table), FALLBACK_THRESHOLD)
    return chosen, [f"{missing}using {chosen:.4f}, since the lowest rate of its table is {lowest:g}"]
