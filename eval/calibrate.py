"""Thresholds, and the margin to the runner-up, from a folder of the user's own, written into an exported model.

    python -m eval --model model.onnx --calibrate DIR

    model = load_model("model.onnx")
    calibrate("model.onnx", evaluate_folder(model.embed, "DIR", model.image_size))
"""
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx

from eval.gallery import registered
from inference.errors import UserError
from inference.files import replacing
from inference.model import METADATA_KEY, load_model
from inference.search import top_k

MARGIN_FPR = "1e-3"     # the margin is judged among what this rate's threshold lets pass
FEWEST_WRONG = 5        # wrong names; the median of fewer says little
MOST_LOST = 0.01        # of the right names
PRICE = 2               # right names that may be lost for each wrong one refused: a wrong name is worse than none


def calibrate(path, result) -> dict:
    """Write what `result`, an `Evaluation` of the ONNX file `path` on a folder, says of its scores into that file.

    Returns what was written, entries of the metadata: `thresholds`, see `threshold_table`; `margin`, see
    `choose_margin`, 0.0 where that says no or the table has no 1e-3; `thresholds_from`, where they come from: `data` (the
    folder's own name), `types`, `images`, `pairs`, the rates left out as `too_few_negatives`, and of the images that are
    named at 1e-3 without a margin how many rightly, `named_right`, and how many not, `named_wrong`.

    The file is replaced at once or stays as it was, and its network is not touched. Raises UserError when it is not an
    exported model or cannot be written, or when there are too few pairs for any threshold.
    """
    model, report = load_model(path), result.as_dict()
    table = threshold_table(report)
    if table is None:
        raise UserError(f"{result.folder}: its {result.verification.negative} pairs of different types are too few for any "
                        f"threshold, and {path} stays as it was; at least 10 are needed, and 1,000 for a rate of 1e-3")
    right = wrong = np.empty(0)
    if MARGIN_FPR in table:
        right, wrong = leads(result, table[MARGIN_FPR]["threshold"])
    entries = {"thresholds": table, "margin": choose_margin(right, wrong), "thresholds_from": {
        "data": os.path.basename(os.path.abspath(result.folder)),
        **{key: report[key] for key in ("types", "images", "pairs", "too_few_negatives")},
        "named_right": len(right), "named_wrong": len(wrong)}}
    _replace_metadata(Path(os.path.realpath(path)), model.metadata | entries)  # a link stays a link
    return entries


def threshold_table(report: dict) -> dict | None:
    """What `Evaluation.as_dict` holds -> {"1e-3": {"threshold": score, "tpr": share}, ...} without the rates that there
    are too few negative pairs for; None when none is left.
    """
    unsure = report["too_few_negatives"]
    return {rate: {"threshold": threshold, "tpr": report["tpr_at_fpr"][rate]}
            for rate, threshold in report["thresholds"].items() if rate not in unsure} or None


def leads(result, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """By how much the best type leads the second, for the images that score `threshold` or more: in scores, float32
    `[right]` where the best type is the image's own and `[wrong]` where it is another.

    As a user would have it: the references are registered (of a type without any, its first image), the others asked for.
    """
    kept = registered(result.labels, [item.is_reference for item in result.items])
    rows = np.flatnonzero(kept)
    rows = rows[np.argsort(result.labels[rows], kind="stable")]  # a type's references side by side
    starts = np.unique(result.labels[rows], return_index=True)[1]  # every type is there: its place is its label
    cosines, types = top_k(result.embeddings[~kept], result.embeddings[rows], 2, starts)  # (N, 2) each
    scores = (cosines + 1) / 2
    lead = (scores[:, 0] - scores[:, 1])[scores[:, 0] >= threshold]
    is_right = (types[:, 0] == result.labels[~kept])[scores[:, 0] >= threshold]
    return lead[is_right], lead[~is_right]


def choose_margin(right: np.ndarray, wrong: np.ndarray) -> float:
    """The lead over the second best type below which a name is not to be trusted; `right` and `wrong` as from `leads`.

    The smallest multiple of 1e-4 that refuses half of the wrong names. 0.0, no margin, where there are fewer than 5 wrong
    names to judge by, or where it would cost more than 1 % of the right names or two for each wrong one.
    """
    if len(wrong) < FEWEST_WRONG:
        return 0.0
    median = float(np.sort(wrong)[(len(wrong) - 1) // 2])
    margin = (np.floor(median * 1e4) + 1) / 1e4
    lost, refused = np.count_nonzero(right < margin), np.count_nonzero(wrong < margin)
    return float(margin) if lost <= min(MOST_LOST * len(right), PRICE * refused) else 0.0


def _replace_metadata(path, metadata):
    with replacing(path) as unchecked:
        proto = onnx.load_model_from_string(path.read_bytes())
        next(entry for entry in proto.metadata_props if entry.key == METADATA_KEY).value = json.dumps(metadata)
        unchecked.write_bytes(proto.SerializeToString())
        shutil.copymode(path, unchecked)
        assert load_model(unchecked).metadata == metadata
