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
    heat, corners, corner_heat, corner_shift = outputs
    stride = size / heat.shape[2]
    peaks = sorted(_peaks(heat[0], threshold), key=lambda peak: -peak[0])[:AT_MOST]
    seen = _seen(corner_heat[0], corner_shift, size) if peaks else None
    quads, scores, ranks = [], [], []
    for score, row, column in peaks:
        center = (column + 0.5) * stride, (row + 0.5) * stride
        quad = corners[:, row, column].reshape(4, 2).astype(np.float64) + center
        if not (np.abs(quad - size / 2).max() <= LARGEST * size and is_quad(quad)):        # NaN is no number below a limit
            continue
        exact = _snap(quad, seen, size / corner_heat.shape[2])
        quad = ordered(exact if is_quad(exact) else quad)
        if all(overlap(quad, other) <= SAME for other in quads):
            quads.append(quad)
            scores.append(score)
            ranks.append(score * math.sqrt(inside(quad, size, size)))
    best = sorted(range(len(quads)), key=lambda i: -ranks[i])[:most]
    return np.array([quads[i] for i in best]).reshape(-1, 4, 2), np.array([scores[i] for i in best])


# What follows is plain Python: for so few numbers NumPy takes several times as long, most of all after a network has run,
# which leaves little of NumPy in the processor's caches.

def _peaks(heat, threshold):
    """(score, row, column) of the cells `[h,w]` that no neighbor exceeds and whose score is `threshold` at least."""
    rows = heat.tolist()
    for row, column in np.argwhere(heat >= _before_sigmoid(threshold) - 1e-6).tolist():
        here, score = rows[row][column], _sigmoid(rows[row][column])
        around = slice(max(0, column - 1), column + 2)
        if score >= threshold and all(max(other[around]) <= here for other in rows[max(0, row - 1):row + 2]):
            yield score, row, column


def _seen(heat, shift, size):
    """[(column, row, x, y, score)] of the cells in which a corner may be seen; the corner's x, y in pixels. What scores less
    than SEEN / e is no better than a corner of score SEEN that is as far away as the reach, which counts so much."""
    row, column = np.nonzero(heat >= _before_sigmoid(0.99 * SEEN / math.e))
    stride, (right, down) = size / heat.shape[1], shift[:, row, column].tolist()
    return [(c, r, (c + 0.5) * stride + x, (r + 0.5) * stride + y, _sigmoid(value)) for c, r, x, y, value
            in zip(column.tolist(), row.tolist(), right, down, heat[row, column].tolist())]


def _snap(quad: np.ndarray, seen: list, stride: float) -> np.ndarray:
    """`quad` with each corner moved to the best one that is seen near it: score, less for what is farther away."""
    corners = quad.tolist()
    reach = max(1.5 * stride, NEAR * min(math.dist(corners[0], corners[2]), math.dist(corners[1], corners[3])))
    for i, (x, y) in enumerate(corners):
        left, top, right, bottom = (int(at / stride) for at in (x - reach, y - reach, x + reach, y + reach))
        best = 0.0
        for column, row, at_x, at_y, score in seen:
            if left <= column <= right and top <= row <= bottom:
                away = math.hypot(at_x - x, at_y - y) / reach
                value = score * math.exp(-away * away)
                if value > best:
                    best, corners[i] = value, [at_x, at_y] if score >= SEEN and away <= 1 else [x, y]
    return np.array(corners)


def is_quad(quad: np.ndarray) -> bool:
    """Whether the corners go around a convex area clockwise, none of them (nearly) on the line between its neighbors."""
    corners, around = quad.tolist(), 0.0
    for (x0, y0), (x, y), (x1, y1) in zip(corners[-1:] + corners, corners, corners[1:] + corners[:1]):
        cross = (x - x0) * (y1 - y) - (y - y0) * (x1 - x)
        if not cross > 0.05 * math.hypot(x - x0, y - y0) * math.hypot(x1 - x, y1 - y):     # NaN is not greater either
            return False
        around += math.atan2(cross, (x - x0) * (x1 - x) + (y - y0) * (y1 - y))
    return around < 2 * math.pi + 1                                                        # once around, not twice


def ordered(quad: np.ndarray) -> np.ndarray:
    """The corners of a convex quad `[4,2]` in the order that this file's quads have."""
    corners = np.asarray(quad, np.float64).tolist()
    x, y = (sum(values) / 4 for values in zip(*corners))
    one, two, three, four = corners = sorted(corners, key=lambda at: math.atan2(at[1] - y, at[0] - x))  # y points down

    def level(one, two, three, four):
        """How level its upper side would be, were `one` the first corner: the cosine of both long sides' mean direction."""
        across, down = two[0] - one[0] + three[0] - four[0], two[1] - one[1] + three[1] - four[1]
        return across / max(math.hypot(across, down), 1e-9)

    turns = [level(one, two, three, four), level(two, three, four, one), level(three, four, one, two),
             level(four, one, two, three)]
    first = turns.index(max(turns))
    return np.array(corners[first:] + corners[:first])


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


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-min(max(x, -80), 80)))


def _before_sigmoid(score: float) -> float:
    return math.log(max(score, 1e-40) / max(1 - score, 1e-16))
