"""A detector's boxes: decoded from its heatmaps; moved between an image and its resized image. numpy and OpenCV only.

Boxes are (x0, y0, x1, y1) in pixels, from edge to edge: pixel i of a row reaches from i to i + 1.

    session = onnxruntime.InferenceSession("model.onnx")                # of a run of the task `localizer`
    outputs = session.run(None, {"img": images})                        # heat and sides of each stride: see `decode`
    found = decode([out[i] for out in outputs], strides, threshold=threshold)
    boxes = to_image(found.boxes, width, height, image_size, fit)       # in pixels of the image itself
"""
from typing import NamedTuple

import cv2
import numpy as np

from .image import fitted_sides


class Detections(NamedTuple):
    """What was found in an image, the highest score first: `boxes` float64 `[N,4]`, `scores` in 0..1 `[N]`, `classes` int64
    `[N]`."""
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


def decode(outputs, strides, threshold: float = 0.3, overlap: float = 0.5, most: int = 1000) -> Detections:
    """The boxes in a network's outputs for one image, in pixels of the resized image.

    outputs: for each stride s two arrays, heat and sides. heat `[C,h,w]`: before the sigmoid, the score that an object of a
    class has its center in a cell, s x s pixels. sides `[C,4,h,w]`: how far, in pixels, its left, top, right and bottom side
    are from the cell's center. A cell is a peak where no neighbor has a higher score, which stands for most of a
    non-maximum suppression (CenterNet, https://arxiv.org/abs/1904.07850); duplicates that remain, such as one object
    found at two strides, are removed by their overlap.
    threshold: of scores. overlap: of two boxes of a class with a higher IoU the one with the lower score is dropped.
    most: so many are kept at most.
    """
    boxes, scores, classes = [], [], []
    for stride, heat, sides in zip(strides, outputs[::2], outputs[1::2], strict=True):
        heat = heat.astype(np.float32)
        highest = np.stack([cv2.dilate(plane, np.ones((3, 3), np.uint8)) for plane in heat])  # of a cell and its neighbors
        score = 1 / (1 + np.exp(-heat.clip(-80, 80).astype(np.float64)))                     # [C,h,w]
        c, row, column = np.nonzero((heat >= highest) & (score >= threshold))
        center = (np.stack([column, row, column, row], 1) + 0.5) * stride                    # [n,4]
        boxes.append(center + sides[c, :, row, column] * np.array([-1.0, -1.0, 1.0, 1.0]))
        scores.append(score[c, row, column])
        classes.append(c)
    boxes, scores, classes = map(np.concatenate, (boxes, scores, classes))
    order = np.argsort(-scores, kind="stable")[:10 * most]  # far more peaks than objects: a network that has learned nothing
    boxes, scores, classes = boxes[order], scores[order], classes[order]
    corner_and_size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    kept = cv2.dnn.NMSBoxesBatched(corner_and_size, scores, classes.astype(np.int32), 0.0, overlap) if len(boxes) else []
    kept = np.sort(np.asarray(kept, np.int64))[:most]
    return Detections(boxes[kept], scores[kept], classes[kept].astype(np.int64))


def overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes `[N,4]` and `[M,4]`: `[N,M]`; 0 where neither has an area."""
    low, high = np.maximum(one[:, None, :2], other[:, :2]), np.minimum(one[:, None, 2:], other[:, 2:])
    both = (high - low).clip(0).prod(2)                                                      # [N,M]
    area, of = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (one, other))
    whole = area[:, None] + of - both
    return np.divide(both, whole, out=np.zeros_like(both), where=whole > 0)


def to_square(boxes: np.ndarray, width: int, height: int, size: int, fit: str = "squash") -> np.ndarray:
    """Boxes `[N,4]` of an image in its resized image, `[size, size]`, as `fit_square` makes it."""
    scale, shift = _placed(width, height, size, fit)
    return boxes * scale + shift


def to_image(boxes: np.ndarray, width: int, height: int, size: int, fit: str = "squash") -> np.ndarray:
    """Boxes `[N,4]` of the resized image, `[size, size]`, in the image itself, clipped to it."""
    scale, shift = _placed(width, height, size, fit)
    return ((boxes - shift) / scale).clip(0, [width, height, width, height])


def _placed(width, height, size, fit):
    """(scale, shift) of x, y, x, y from the image to its resized image."""
    inner = np.array(fitted_sides(width, height, size, fit))
    return np.tile(inner / [width, height], 2), np.tile((size - inner) // 2, 2)
