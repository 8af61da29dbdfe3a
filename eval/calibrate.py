"""Write thresholds and the runner-up gap, measured on the user's own folder, into an exported model.

    python -m eval --model model.onnx --calibrate DIR

    model = load_model("model.onnx")
    upright, turned = (evaluate_folder(model.embed, "DIR", model.image_size, fit=model.fit, orientation=orientation)
                       for orientation in ("upright", "any"))
    calibrate("model.onnx", upright, turned)

The runner-up gap is the least difference between the scores of the best and the second best type at which a label is given.
The model's metadata call it `margin`.
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

GAP_FPR = "1e-3"        # the gap is chosen among the images that pass the threshold of this rate
FEWEST_WRONG = 5        # wrong labels; the median of fewer is not reliable
MOST_LOST = 0.01        # share of the right labels that the gap may reject
PRICE = 2               # right labels that may be lost for each wrong one rejected: a wrong label is worse than none


def calibrate(path, result, turned) -> dict:
    """Write the thresholds and the runner-up gap, measured on a folder, into the ONNX file `path`.

    result: an `Evaluation` of that model; turned: one of the same folder with orientation="any". Returns the metadata
    entries that were written:
    - `thresholds` of `result` and `thresholds_any` of `turned`, see `threshold_table`
    - `margin`, the runner-up gap, see `choose_gap`; 0.0 also where the table has no entry for 1e-3
    - `thresholds_from`, the origin: `data` (name of the folder), `types`, `images`, `pairs`, `too_few_negatives` (the rates
      that were skipped), and the labels given at 1e-3 without a gap: `named_right` of them are right, `named_wrong` wrong.

    The file is replaced atomically, and its network does not change. Raises UserError when it is not an exported model, when
    it cannot be written, or when there are too few pairs for any threshold.
    """
    model, report = load_model(path), result.as_dict()
    table = threshold_table(report)
    if table is None:
        raise UserError(f"{result.folder}: its {result.verification.negative} pairs of different types are too few for any "
                        f"threshold, so {path} was not changed; a rate of 1e-1 needs 10 pairs, 1e-3 needs 1,000")
    right = wrong = np.empty(0)
    if GAP_FPR in table:
        right, wrong = gaps(result, table[GAP_FPR]["threshold"])
    entries = {"thresholds": table, "thresholds_any": threshold_table(turned.as_dict()),
               "margin": choose_gap(right, wrong), "thresholds_from": {
                   "data": os.path.basename(os.path.abspath(result.folder)),
                   **{key: report[key] for key in ("types", "images", "pairs", "too_few_negatives")},
                   "named_right": len(right), "named_wrong": len(wrong)}}
    _replace_metadata(Path(os.path.realpath(path)), model.metadata | entries)  # a symbolic link stays one
    return entries


def threshold_table(report: dict) -> dict | None:
    """`Evaluation.as_dict()` -> {"1e-3": {"threshold": score, "tpr": share}, ...}. Rates with too few negative pairs are
    skipped; None when no rate is left.
    """
    unsure = report["too_few_negatives"]
    return {rate: {"threshold": threshold, "tpr": report["tpr_at_fpr"][rate]}
            for rate, threshold in report["thresholds"].items() if rate not in unsure} or None


def gaps(result, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Score of the best type minus score of the second best, for each image whose best score reaches `threshold`: float32
    `[right]` for images whose best type is their own, and float32 `[wrong]` for the others.

    The protocol is that of a user: the references are registered (of a type without any, its first image), and the other
    images are the queries.
    """
    kept = registered(result.labels, [item.is_reference for item in result.items])
    rows = np.flatnonzero(kept)
    rows = rows[np.argsort(result.labels[rows], kind="stable")]  # the references of a type side by side
    starts = np.unique(result.labels[rows], return_index=True)[1]  # every type has one, so row i belongs to label i
    references = result.views[:, rows].swapaxes(0, 1)  # (R, V, D)
    found = [top_k(view[~kept], references.reshape(-1, view.shape[1]), 2, starts * len(result.views))
             for view in result.views[:result.upright]]
    cosines, types = (np.concatenate(parts, axis=1) for parts in zip(*found))  # (N, 2 * upright), two of each view
    best = types[np.arange(len(types)), cosines.argmax(axis=1)]
    scores = (cosines + 1) / 2
    first, second = scores.max(axis=1), np.where(types == best[:, None], -np.inf, scores).max(axis=1)
    gap, is_right = first - second, best == result.labels[~kept]
    passes = first >= threshold
    return gap[passes & is_right], gap[passes & ~is_right]


def choose_gap(right: np.ndarray, wrong: np.ndarray) -> float:
    """The runner-up gap below which a label is not reliable; `right` and `wrong` as from `gaps`.

    It is the smallest multiple of 1e-4 that rejects half of the wrong labels. It is 0.0, which means off, where there are
    fewer than 5 wrong labels, or where it would also reject more than 1 % of the right labels, or more than two right labels
    for each wrong one.
    """
    if len(wrong) < FEWEST_WRONG:
        return 0.0
    median = float(np.sort(wrong)[(len(wrong) - 1) // 2])
    gap = (np.floor(median * 1e4) + 1) / 1e4
    lost, rejected = np.count_nonzero(right < gap), np.count_nonzero(wrong < gap)
    return float(gap) if lost <= min(MOST_LOST * len(right), PRICE * rejected) else 0.0


def _replace_metadata(path, metadata):
    with replacing(path) as unchecked:
        proto = onnx.load_model_from_string(path.read_bytes())
        next(entry for entry in proto.metadata_props if entry.key == METADATA_KEY).value = json.dumps(metadata)
        unchecked.write_bytes(proto.SerializeToString())
        shutil.copymode(path, unchecked)
        assert load_model(unchecked).metadata == metadata
