"""A finder's quads: decoded from its outputs; moved between an image and its resized image. numpy and OpenCV only.

A quad is the four corners of a document, float64 `[4,2]` (x, y) in pixels, from edge to edge (pixel i of a row reaches from
i to i + 1), clockwise as seen in the image, from the corner that becomes the top left one under the least turn. Which way up
the document lies is not known. Corners may lie outside of the image.

    session = onnxruntime.InferenceSession("model.onnx")                # of a run of the task `finder`
    outputs = session.run(None, {"img": images})                        # heat, corners, corner_heat, corner_shift
    quads, scores = decode([out[i] for out in outputs], image_size)
    quads = to_image(quads, width, height, image_size, fit)             # in pixels of the image itself

The file's metadata has `task` "finder", `image_size` and `fit`; its scores are calibrated so that 0.5 is the limit.
"""
import math

import cv2
import numpy as np

from .image import fitted_sides

NEAR = 0.2  # a corner that is seen replaces one that is guessed within this share of the quad's shorter diagonal
SEEN = 0.2  # least score of a corner that is seen
AT_MOST = 20  # candidates that are looked at: a network that has learned nothing has many
LARGEST = 4.0  # a corner farther out than so many sides of the input is not believed
SAME = 0.5  # two quads with a higher IoU are one document


def decode(outputs, size: int, threshold: float = 0.5, most: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """(quads float64 `[N,4,2]` in pixels of the resized image, `size` x `size`; scores in 0..1 `[N]`), the best first.

    outputs: of one image, four arrays. heat `[1,h,w]`: before the sigmoid, the score that the middle of a document lies in a
    cell (CenterNet, https://arxiv.org/abs/1904.07850); corners `[8,h,w]`: x, y of its four corners from the cell's center,
    pixels; corner_heat `[1,H,W]`: before the sigmoid, the score that a corner of some document lies in a cell; corner_shift
    `[2,H,W]`: that corner from the cell's center, pixels. The second pair is exact where a corner can be seen, and the first
    tells which four belong together, and where they are when they are covered or outside of the image.
    threshold: of scores. most: so many are kept at most. The best is the one with the highest score x sqrt(area in the
    image): of several documents that are surely there, the largest.
    """
    heat, corners, corner_heat, corner_shift = (np.asarray(out, np.float64) for out in outputs)
    stride = size / heat.shape[2]
    plane = heat[0].astype(np.float32)
    score = _sigmoid(heat[0])                                                              # [h,w]
    row, column = np.nonzero((plane >= cv2.dilate(plane, np.ones((3, 3), np.uint8))) & (score >= threshold))
    order = np.argsort(-score[row, column], kind="stable")[:AT_MOST]
    row, column = row[order], column[order]
    center = (np.stack([column, row], 1) + 0.5) * stride                                   # [n,2]
    guessed = center[:, None] + corners[:, row, column].T.reshape(-1, 4, 2)                # [n,4,2]
    quads, scores, ranks = [], [], []
    for quad, one in zip(guessed, score[row, column]):
        if not (np.isfinite(quad).all() and np.abs(quad - size / 2).max() <= LARGEST * size and is_quad(quad)):
            continue
        exact = _snap(quad, corner_heat[0], corner_shift, size)
        quad = ordered(exact if is_quad(exact) else quad)
        if all(overlap(quad, other) <= SAME for other in quads):
            quads.append(quad)
            scores.append(one)
            ranks.append(one * math.sqrt(inside(quad, size, size)))
    best = np.argsort(-np.array(ranks), kind="stable")[:most]
    return np.array(quads).reshape(-1, 4, 2)[best], np.array(scores)[best]


def _snap(quad: np.ndarray, heat: np.ndarray, shift: np.ndarray, size: int) -> np.ndarray:
    """`quad` with each corner moved to the best one that is seen near it: score, less for what is farther away."""
    stride, moved = size / heat.shape[1], quad.copy()
    reach = max(1.5 * stride, NEAR * min(math.dist(quad[0], quad[2]), math.dist(quad[1], quad[3])))
    for i, (x, y) in enumerate(quad):
        left, top = (max(0, int((at - reach) / stride)) for at in (x, y))
        window = slice(top, max(0, int((y + reach) / stride) + 1)), slice(left, max(0, int((x + reach) / stride) + 1))
        score = _sigmoid(heat[window])                                                     # [r,c]
        if not score.size:
            continue
        row, column = np.indices(score.shape)  # [r, c] each
        seen = np.stack([(column + left + 0.5) * stride, (row + top + 0.5) * stride]) + shift[(slice(None), *window)]
        away = np.hypot(seen[0] - x, seen[1] - y) / reach
        best = np.argmax(score * np.exp(-away ** 2))
        if score.flat[best] >= SEEN and away.flat[best] <= 1:
            moved[i] = seen.reshape(2, -1)[:, best]
    return moved


def is_quad(quad: np.ndarray) -> bool:
    """Whether the corners go around a convex area clockwise, none of them (nearly) on the line between its neighbors."""
    one, other = quad - np.roll(quad, 1, 0), np.roll(quad, -1, 0) - quad                   # the sides at each corner
    cross = one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    turn = (one * other).sum(1)
    return bool((cross > 0.05 * lengths).all() and (lengths > 0).all()
                and np.arctan2(cross, turn).sum() < 2 * math.pi + 1)                       # once around, not twice


def ordered(quad: np.ndarray) -> np.ndarray:
    """The corners of a convex quad `[4,2]` in the order that this file's quads have."""
    quad = np.asarray(quad, np.float64)
    around = quad - quad.mean(0)
    quad = quad[np.argsort(np.arctan2(around[:, 1], around[:, 0]))]                        # clockwise: y points down
    across = quad[[1, 2, 3, 0]] - quad + quad[[2, 3, 0, 1]] - quad[[3, 0, 1, 2]]           # were this corner the first
    return np.roll(quad, -int(np.argmax(across[:, 0] / np.hypot(*across.T).clip(1e-9))), 0)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two convex quads `[4,2]`; 0 where neither has an area."""
    one, other = (np.asarray(quad, np.float32) for quad in (one, other))
    both = cv2.intersectConvexConvex(one, other)[0]
    whole = cv2.contourArea(one) + cv2.contourArea(other) - both
    return both / whole if whole > 0 else 0.0


def inside(quad: np.ndarray, width: int, height: int) -> float:
    """The area of a convex quad `[4,2]` that lies in an image of this size, pixels."""
    frame = np.float32([(0, 0), (width, 0), (width, height), (0, height)])
    return float(cv2.intersectConvexConvex(quad.astype(np.float32), frame)[0])


def to_square(quads: np.ndarray, width: int, height: int, size: int, fit: str = "squash") -> np.ndarray:
    """Quads `[N,4,2]` of an image in its resized image, `[size, size]`, as `fit_square` makes it."""
    inner = np.array(fitted_sides(width, height, size, fit))
    return quads * (inner / [width, height]) + (size - inner) // 2


def to_image(quads: np.ndarray, width: int, height: int, size: int, fit: str = "squash") -> np.ndarray:
    """Quads `[N,4,2]` of the resized image, `[size, size]`, in the image itself; not clipped."""
    inner = np.array(fitted_sides(width, height, size, fit))
    return (quads - (size - inner) // 2) / (inner / [width, height])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.clip(-80, 80)))
