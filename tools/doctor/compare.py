"""Whether two files hold one image that was saved twice: recompressed, resized, brightened, slightly cropped.

One is laid over the other: corner points are followed by optical flow (Lucas-Kanade) and give an affine map (RANSAC). Its
gray levels are mapped to the other's by the curve that fits best, so that brightness, contrast and clipped whites do not
count. What remains must be small everywhere, relative to the contrast around it, and nowhere stand out from what remains
elsewhere: two copies of a form agree in nearly all of their pixels and differ in the name, so no mean over the image tells
them apart.

Measured on 240 synthetic forms and 410 real images, each changed in 8 ways: 0.2 % of the changed ones are missed, and none
of 960 forms with another name is taken for the same; the limits below stand where the two kinds part. With local structure
(SSIM) in place of the curve, 1.5 % of the forms are taken for the same. With ECC (cv2.findTransformECC) in place of the
points, up to 14 % of the cropped forms are missed.
"""
import cv2
import numpy as np

SIDE, LARGE = 128, 256  # pixels of the resized images; most different ones differ visibly in the small ones
ALIKE = 0.85   # of the correlation of small images; of 5,200 pairs of copies the lowest has 0.886
LIMIT = 1.15   # largest difference between two copies of one image
QUIET = 0.3    # a difference up to this need not be like the others
ALONE = 8.0    # times what 98 % of the image's structure shows: a larger one is a changed field
REACH = 0.06   # how far a corner may move, in sides: 3 % cut off on each side move it by 0.03
POINTS = 200   # corner points that are followed, at most
AGREE = 0.3    # of them must fit the map
CONTRAST = 50.0  # standard deviation of all gray levels that counts at most: a black half must not hide what is in the white
COLOR = 12.0   # largest mean difference of a color channel, levels: a red card is not the black one
NEARBY = np.exp(-np.arange(-24, 25) ** 2 / (2 * 8 ** 2))  # weights of gray levels that share a place on the curve


def may_be_one(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two small images, gray uint8 `[32,32]`, may be one image, by their correlation at the best shift of up to
    2 pixels: a quick test, after which one of five candidates is still to be compared by `difference`."""
    a, b = (cv2.GaussianBlur(image, (0, 0), 1) for image in (a, b))
    return cv2.matchTemplate(b, a[2:-2, 2:-2], cv2.TM_CCOEFF_NORMED).max() >= ALIKE


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """How much BGR uint8 `a` and `b`, both `[s,s,3]`, differ where they differ most: at most 1 for one and the same image,
    infinite where none can be laid over the other. s: SIDE, or LARGE, which shows a name that differs on a whole page."""
    a, b = (cv2.cvtColor(image, cv2.COLOR_BGR2YCrCb) for image in (a, b))
    place = _place(a[:, :, 0], b[:, :, 0])
    if place is None:
        return np.inf
    a, b = _overlap(a, b, place)
    one, other = (cv2.GaussianBlur(image[:, :, 0].astype(np.float32), (0, 0), 0.5) for image in (a, b))
    worst, usual = min(_rest(one, other), _rest(other, one))  # clipped whites follow from the others, but not conversely
    chroma = [cv2.resize(image[:, :, 1:], (16, 16), interpolation=cv2.INTER_AREA) - 128.0 for image in (a, b)]
    gain = min(1, other.std() / max(one.std(), 1)), min(1, one.std() / max(other.std(), 1))  # less contrast, less color
    color = np.abs(chroma[0] * gain[0] - chroma[1] * gain[1]).mean((0, 1)).max()
    return float(max(worst / min(LIMIT, max(QUIET, ALONE * usual)), color / COLOR))


def _place(a, b):
    """The affine map `[2,3]` from pixels of gray `a` to those of `b`, or None."""
    a, b = (np.clip(128 + (image.astype(np.float32) - image.mean()) * (50 / max(image.std(), 1)), 0, 255).astype(np.uint8)
            for image in (a, b))  # flow takes equal brightness for granted
    points = cv2.goodFeaturesToTrack(a, POINTS, 0.01, 4)
    if points is None:
        return None
    moved, followed, _ = cv2.calcOpticalFlowPyrLK(a, b, points, None, winSize=(15, 15), maxLevel=2)
    followed = followed[:, 0] == 1
    if followed.sum() < 6:
        return None
    place, fits = cv2.estimateAffine2D(points[followed], moved[followed], ransacReprojThreshold=1)
    if place is None or fits.sum() < AGREE * len(points):
        return None
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]) * len(a)
    return place if np.abs(corners @ place[:, :2].T + place[:, 2] - corners).max() <= REACH * len(a) else None


def _overlap(a, b, place):
    """`a`, and `b` as it lies over it, both cut to the rows and columns where both show something."""
    side = len(a)
    margin = max(1, side // 64)
    inside = []
    for axis in (1, 0):
        factor, shift = place[axis, axis], place[axis, 2]  # pixel i shows about factor * i + shift
        first, last = max(margin, (margin - shift) / factor), min(side - 1 - margin, (side - 1 - margin - shift) / factor)
        inside.append(slice(int(np.ceil(first)), int(last) + 1))
    b = cv2.warpAffine(b, place, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return a[tuple(inside)], b[tuple(inside)]


def _rest(a, b):
    """(largest, 98 % quantile over the structure) of what `a` has beyond the best curve of `b`'s gray levels."""
    rest = a - a.mean() - (b - b.mean()) * (a.std() / max(b.std(), 1))
    level = cv2.convertScaleAbs(b)
    total, count = (np.convolve(np.bincount(level.ravel(), weights, 256), NEARBY, "same")
                    for weights in (rest.ravel(), None))
    rest -= cv2.LUT(level, (total / np.maximum(count, 1e-6)).astype(np.float32))
    window = max(4, len(a) // 16), max(4, len(a) // 16)
    variance = a.var()
    around = np.maximum(cv2.blur(a * a, window) - cv2.blur(a, window) ** 2, 0)
    rest = np.abs(cv2.GaussianBlur(rest, (0, 0), 0.8)) / np.sqrt(0.5 * around + 0.2 * min(variance, CONTRAST ** 2) + 50)
    structure = rest[around > 0.05 * variance]
    return float(rest.max()), float(np.quantile(structure, 0.98)) if len(structure) else 0.0
