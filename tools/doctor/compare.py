"""Whether two squares show one picture, saved twice: recompressed, resized, brightened, a little cropped.

One square is laid over the other by a shift and a scale along each axis, which is what a cut edge leaves after squashing
(inverse compositional Gauss-Newton: Baker and Matthews 2004, https://doi.org/10.1023/B:VISI.0000011205.11775.fd). Its tones
are mapped to the other's by whatever curve fits best, so that brightness, contrast and whites that were clipped do not
count. What then remains must be small everywhere, as measured by the contrast around it, and nowhere stand out from what
remains elsewhere: two copies of a form agree in nearly all of their pixels and differ in the name, so no average over the
picture tells them apart.
"""
import cv2
import numpy as np

ROUGH, FINE, LARGE = 32, 128, 256  # pixels of the squares: of two different pictures most show it on the small ones
# {side: (blur, steps of alignment, largest difference that one picture may show)}
LEVELS = {ROUGH: (0.8, 6, 1.3), 64: (0.7, 4, 1.35), FINE: (0.5, 4, 1.1), LARGE: (0.5, 4, 1.1)}
QUIET = 0.35   # a difference up to this need not be like the others
ALONE = 8.0    # times what 98 % of the picture's structure shows: a larger one is a changed field
REACH = 0.12   # how far an edge may move, in half sides: 3 % cut off on each side move it by 0.06
CONTRAST = 50.0  # deviation of all grey levels that counts at most: a black half must not hide what is in the white one
COLOUR = 12.0   # largest mean difference of a colour channel, levels: a red card is not the black one
_NEAR = np.exp(-np.arange(-24, 25) ** 2 / (2 * 8 ** 2))  # weights of grey levels that share their place on a tone curve


def rough_place(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """Where grey uint8 `b` lies over `a`, both `[32,32]`: float64 `[4]`, shift and scale down, shift and scale across, in
    half sides. None where they are two pictures."""
    place, worst, _ = _compare(a, b, np.zeros(4))
    return place if worst <= LEVELS[ROUGH][-1] else None


def difference(a: np.ndarray, b: np.ndarray, place: np.ndarray) -> float:
    """How much BGR uint8 `a` and `b`, both `[128,128,3]` or `[256,256,3]`, differ where they differ most, `b` lying about at
    `place`: at most 1 for one and the same picture. The larger squares show a name that differs on a whole page."""
    one, other = (cv2.cvtColor(square, cv2.COLOR_BGR2YCrCb) for square in (a, b))
    for side in (side for side in LEVELS if ROUGH < side <= len(a)):
        grey = (cv2.resize(square[:, :, 0], (side, side), interpolation=cv2.INTER_AREA) for square in (one, other))
        place, worst, usual = _compare(*grey, place)
        limit = LEVELS[side][-1]
        if worst > limit:
            return worst / limit
    return max(worst / min(limit, max(QUIET, ALONE * usual)), _colours_apart(one[:, :, 1:], other[:, :, 1:], place) / COLOUR)


def _compare(a, b, place):
    """(the place of `b` over `a`, their largest difference there, what 98 % of the structure differs by)."""
    blur, steps, limit = LEVELS[len(a)]
    a, b = _smooth(a, blur), _smooth(b, blur)
    place = _align(a, b, place, steps)
    rests = [_rests(a, b, place)]
    if len(a) >= FINE and rests[0][0] > limit / 2:
        rests += [_rests(*pair, place) for pair in _equally_sharp(a, b)]
    return place, *min(rests)


def _align(a, b, place, steps):
    """The place at which `b` lies best over `a`."""
    side = len(a)
    at = (np.arange(side, dtype=np.float32) * 2 + 1) / side - 1
    down, across = (cv2.Sobel(a, cv2.CV_32F, *axis, ksize=1, scale=side / 4) for axis in ((0, 1), (1, 0)))
    slopes = np.stack([down, down * at[:, None], across, across * at]).reshape(4, -1)  # [4, side * side]
    normal = (slopes @ slopes.T).astype(np.float64)
    step = np.linalg.inv(normal + np.eye(4) * (1e-3 * np.trace(normal) / 4 + 1e-3))
    for _ in range(steps):
        moved, inside = _moved(b, place)
        rest = np.zeros_like(a)
        rest[inside] = _linear_rest(a[inside], moved[inside])
        place = np.minimum(np.maximum(place + step @ (slopes @ rest.ravel()), -REACH), REACH)
    return place


def _moved(b, place):
    """`b` `[s,s,...]` as it lies at `place`, and the rows and columns that then show something of it."""
    side = len(b)
    margin = max(1, side // 64)
    factors, starts, inside = [], [], []
    for shift, scale in place.reshape(2, 2).tolist():
        factor, start = 1 + scale, ((1 + scale) * (1 - side) + (1 + shift) * side - 1) / 2  # i shows factor * i + start
        factors.append(factor)
        starts.append(start)
        first, last = max(margin, (margin - start) / factor), min(side - 1 - margin, (side - 1 - margin - start) / factor)
        inside.append(slice(int(-(-first // 1)), int(last // 1) + 1))
    matrix = np.array([[factors[1], 0, starts[1]], [0, factors[0], starts[0]]])
    return cv2.warpAffine(b, matrix, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                          borderMode=cv2.BORDER_REPLICATE), tuple(inside)


def _linear_rest(a, b):
    """What `a` has beyond the best gain x `b` + offset; a negative is another picture."""
    a, b = a - cv2.mean(a)[0], b - cv2.mean(b)[0]
    return a - (max(np.vdot(a, b), 0) / max(np.vdot(b, b), 1e-6)) * b


def _rests(a, b, place):
    """(the largest difference of `a` and `b` at `place`, what 98 % of the structure differs by), by the contrast around."""
    moved, inside = _moved(b, place)
    a, b = np.ascontiguousarray(a[inside]), np.ascontiguousarray(moved[inside])
    return min(_rests_of(a, b), _rests_of(b, a))  # clipped whites follow from the others, which do not follow from them


def _rests_of(a, b):
    """`_rests` of what `a` has beyond any curve of `b`'s grey levels."""
    rest = _linear_rest(a, b)
    level = cv2.convertScaleAbs(b)
    total, count = (np.convolve(np.bincount(level.ravel(), weights, 256), _NEAR, "same") for weights in (rest.ravel(), None))
    rest -= cv2.LUT(level, (total / np.maximum(count, 1e-6)).astype(np.float32))
    window = max(4, len(a) // 16), max(4, len(a) // 16)
    a = a - cv2.mean(a)[0]
    variance = cv2.mean(a * a)[0]
    around = np.maximum(cv2.blur(a * a, window) - cv2.blur(a, window) ** 2, 0)
    rest = np.abs(_smooth(rest, 0.8)) / np.sqrt(0.5 * around + 0.2 * min(variance, CONTRAST ** 2) + 50)
    structure = rest[around > 0.05 * variance]
    place = int(0.98 * len(structure))
    return float(rest.max()), float(np.partition(structure, place)[place]) if len(structure) else 0.0


def _equally_sharp(a, b):
    """The pair with the sharper one blurred, more and more, as one of them may have been smaller; nothing where none is."""
    edges = [cv2.norm(cv2.Laplacian(square, cv2.CV_32F), cv2.NORM_L1) / max(square.std(), 1) for square in (a, b)]
    if max(edges) > 1.07 * min(edges):
        for blur in (0.8, 1.2, 1.8):
            yield (_smooth(a, blur), b) if edges[0] > edges[1] else (a, _smooth(b, blur))


def _smooth(square, sigma):
    return cv2.GaussianBlur(square.astype(np.float32), (0, 0), sigma)


def _colours_apart(a, b, place):
    """The mean difference of the two colour channels, `[s,s,2]`, the larger of them, in levels."""
    a, b = (cv2.resize(colours, (16, 16), interpolation=cv2.INTER_AREA).astype(np.float32) for colours in (a, b))
    moved, inside = _moved(b, place)
    return float(np.abs(a[inside] - moved[inside]).mean((0, 1)).max())
