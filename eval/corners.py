"""How exactly a finder says where the corners of documents are, and whether there is one."""
import numpy as np

from eval.coco import Boxes
from inference.quads import overlap

IOU = 0.9  # with this overlap a document's content is told as well as with its exact corners: 2 % of its sides


def corners_report(found: list[tuple[np.ndarray, np.ndarray]], truth: list[Boxes]) -> dict:
    """Of each image, the best of the quads that were `found` (quads `[N,4,2]` and scores `[N]`, the best first, whatever
    its score) against the largest of its documents, in pixels of the image.

    iou_90, iou_85: share of the images with a document in which that IoU is at least .9, .85. iou: the mean. error: the
    median over these images of the mean distance of the corners, as a share of the document's diagonal, 1 where nothing was
    found; within_2, within_5: share of errors of at most 2, 5 %. auroc: of the best scores, images with a document against
    images without; None where one kind is missing. threshold: the score at which as large a share of the images with a
    document is missed as of the others is taken; None likewise.
    """
    scores = np.array([best[0] if len(best) else 0.0 for _, best in found])
    there = np.array([len(image.quads) > 0 for image in truth])
    pairs = [(quads[0] if len(quads) else None, max(image.quads, key=area)) for (quads, _), image in zip(found, truth)
             if len(image.quads)]
    iou = np.array([0.0 if quad is None else overlap(quad, right) for quad, right in pairs])
    error = np.array([1.0 if quad is None else min(1.0, corner_error(quad, right)) for quad, right in pairs])
    share = {"iou_90": iou >= IOU, "iou_85": iou >= 0.85, "within_2": error <= 0.02, "within_5": error <= 0.05}
    auroc, threshold = _separation(scores[there], scores[~there])
    return {**{name: float(right.mean()) if len(right) else 0.0 for name, right in share.items()},
            "iou": float(iou.mean()) if len(iou) else 0.0, "error": float(np.median(error)) if len(error) else 1.0,
            "auroc": auroc, "threshold": threshold, "images": len(truth), "documents": len(pairs)}


def corner_error(quad: np.ndarray, right: np.ndarray) -> float:
    """Mean distance of corners `[4,2]` from the right ones, whichever of them is the first, over the mean diagonal."""
    diagonal = (np.linalg.norm(right[0] - right[2]) + np.linalg.norm(right[1] - right[3])) / 2
    return min(np.linalg.norm(np.roll(quad, k, 0) - right, axis=1).mean() for k in range(4)) / diagonal


def area(quad: np.ndarray) -> float:
    """Of a quad, by the shoelace formula."""
    x, y = quad.T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _separation(there: np.ndarray, empty: np.ndarray) -> tuple[float | None, float | None]:
    if not len(there) or not len(empty):
        return None, None
    auroc = (there[:, None] > empty).mean() + (there[:, None] == empty).mean() / 2
    scores = np.unique(np.concatenate([there, empty]))
    limits = (scores[1:] + scores[:-1]) / 2 if len(scores) > 1 else scores  # between scores: no rounding decides
    missed = np.searchsorted(np.sort(there), limits) / len(there)
    taken = 1 - np.searchsorted(np.sort(empty), limits) / len(empty)
    return float(auroc), float(limits[np.abs(missed - taken).argmin()])
