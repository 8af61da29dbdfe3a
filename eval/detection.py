"""How many of the objects in some images a detector finds, and how much of what it finds is there."""
import numpy as np

from eval.coco import Boxes
from inference.boxes import Detections, overlaps


def detection_report(found: list[Detections], truth: list[Boxes], names: list[str], overlap: float = 0.5) -> dict:
    """Precision, recall and F1 at the score that gives the highest F1, which is `threshold`, together and for each class.

    found: of each image, whatever its score; boxes as in `truth`, in pixels of the image. In the order of their scores,
    each is matched with the object of its class that it overlaps most (IoU of `overlap` at least) and that none before it
    took; so what is matched at one threshold is matched at every lower one.
    """
    parts = [(one.scores, one.classes, _matched(one, other, overlap)) for one, other in zip(found, truth, strict=True)]
    scores, classes, right = map(np.concatenate, zip(*parts))
    objects = np.concatenate([image.classes for image in truth])
    order = np.argsort(-scores, kind="stable")
    scores, classes, right = scores[order], classes[order], right[order]
    end = np.append(scores[1:] != scores[:-1], True)[:len(scores)].nonzero()[0]   # equal scores pass together
    f1 = 2 * right.cumsum()[end] / (end + 1 + len(objects))                       # F1 = 2 TP / (found + objects)
    count = end[f1.argmax()] + 1 if len(f1) and f1.max() > 0 else 0

    def rates(right, objects):
        hits = int(right.sum())
        return {"precision": hits / max(1, len(right)), "recall": hits / max(1, len(objects)),
                "f1": 2 * hits / max(1, len(right) + len(objects)), "objects": len(objects), "found": len(right)}
    classes, right = classes[:count], right[:count]
    return {**rates(right, objects), "iou": overlap, "threshold": float(scores[count - 1]) if count else None,
            "images": len(truth), "classes": {name: rates(right[classes == c], objects[objects == c])
                                              for c, name in enumerate(names)}}


def _matched(found: Detections, truth: Boxes, overlap: float) -> np.ndarray:
    """bool `[N]`: which of the detections, the highest score first, finds an object."""
    iou = overlaps(found.boxes, truth.boxes)                                      # [N,M]
    iou[found.classes[:, None] != truth.classes] = 0
    right = np.zeros(len(iou), bool)
    for i, row in enumerate(iou):
        best = row.argmax() if len(row) else 0
        if len(row) and row[best] >= overlap:
            right[i], iou[i:, best] = True, 0
    return right
