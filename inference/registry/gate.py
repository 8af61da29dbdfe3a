"""The registration gate: whether a picture is good enough to be a reference. numpy and OpenCV only.

    quality = inspect(pixels, quad)          # uint8 BGR; the document's corners in it, or None: all of the picture
    for finding in findings(quality): print(finding.message)

A bad reference does harm for years: it misses its own type, and where a network has little to go by, others come near. Each
limit below is where the shipped network begins to lose; how many good references it refuses was counted.
"""
from typing import NamedTuple

import cv2
import numpy as np

from ..image import resize
from ..rectify import as_quad, rectify, sides_of

SIDE = 256  # longest side in pixels at which a document is looked at: twice what the network sees
# Sharpness is measured on 64 x 64 pixels, half of what the network sees: finer detail does not matter to it. (Scores of 300
# documents against other captures fall by .002 with a Gaussian of sigma 1 pixel of its 128, by .02 with 2, .07 with 3, .13
# with 4; by .05 with a motion of 10 pixels, .09 with 14.)
FINE = 64
REACH = 15  # pixels of these 64: an edge is compared with the contrast around it
FAINTEST = 16  # levels of 255: what has less contrast is no edge
WHITE = 250  # levels: all colors at or above are as good as saturated

LEAST_SIDE = 24  # pixels, of the shorter side: with 20 the scores fall by .02 to .04, with 15 by .05 to .08
LEAST_CONTRAST = 32  # levels of 255, see `Quality`; 4,600 pictures and photos of every kind have 44 or more
# See `Quality`. Refuses 0 to .7 % of each kind of clean pictures and real photos, 1.5 % of synthetic captures; of those
# blurred by sigma 3 (as above) 81 to 97 %, by sigma 4 all, by a motion of 14 pixels 80 to 99 %.
LEAST_SHARPNESS = 24.0
MOST_GLARE = 0.03  # of the area: with 4 % scores fall by .03, with 15 % by .06


class Quality(NamedTuple):
    """What `inspect` measured of a document.

    `width`, `height`: of the flat document, in pixels of the picture. `contrast`: between neighboring dark and light parts,
    levels of 255, where it is highest (the 99th percentile); nothing is there below LEAST_CONTRAST. `sharpness`: how steep
    edges are, 0..100, in percent of the contrast around them that one pixel of FINE x FINE spans, in the direction (across
    or down) in which they are less steep; 100 where there is no edge at all. `glare`: the share of the area that a
    reflection made white, 0..1.
    """
    width: int
    height: int
    contrast: float
    sharpness: float
    glare: float


class Finding(NamedTuple):
    """Why a picture should not become a reference. `code`: "blur", "glare", "small", "blank" (and of the registry's search
    "near-duplicate", "look-alike"). `message`: one line with the way out. `details`: numbers, as JSON values."""
    code: str
    message: str
    details: dict


def inspect(pixels: np.ndarray, quad=None, divisor: int = 1) -> Quality:
    """Measure the document in a picture, uint8 BGR `[H,W,3]`. quad: its corners in these pixels, clockwise from its top left
    (None: all of the picture). divisor: the picture has been reduced so many times, along both axes, since it was taken.
    Takes 2 to 3 ms for 1600 x 1200 pixels. Raises ImageError for corners that cannot be used.
    """
    document, width, height = _flat(pixels, quad)
    gray = cv2.cvtColor(document, cv2.COLOR_BGR2GRAY)[:, :, None]
    planes = cv2.split(document)
    contrast, sharpness = _edges(resize(gray, FINE).reshape(FINE, FINE))
    return Quality(width * divisor, height * divisor, contrast, sharpness, _glare(cv2.min(cv2.min(*planes[:2]), planes[2])))


def findings(quality: Quality) -> list[Finding]:
    """What speaks against a picture of this quality; of one that shows nothing, only that."""
    found = []
    shorter = min(quality.width, quality.height)
    if shorter < LEAST_SIDE:
        found.append(Finding("small", f"too small ({quality.width} x {quality.height} pixels, at least {LEAST_SIDE} on the "
                             "shorter side): take the photo closer, or give a larger image",
                             {"width": quality.width, "height": quality.height, "least": LEAST_SIDE}))
    if quality.contrast < LEAST_CONTRAST:
        return [*found, Finding("blank", f"shows nothing (contrast {quality.contrast:.0f}, at least {LEAST_CONTRAST}): see "
                                "that the document is in the image, printed side up, and well lit",
                                {"contrast": round(quality.contrast, 1), "least": LEAST_CONTRAST})]
    if quality.sharpness < LEAST_SHARPNESS:
        found.append(Finding("blur", f"too blurred (sharpness {quality.sharpness:.0f}, at least {LEAST_SHARPNESS:.0f}): "
                             "take the photo again closer and hold still",
                             {"sharpness": round(quality.sharpness, 1), "least": LEAST_SHARPNESS}))
    if quality.glare > MOST_GLARE:
        found.append(Finding("glare", f"a reflection covers {quality.glare:.0%} of the document (at most {MOST_GLARE:.0%}): "
                             "tilt the document or the camera away from the lamp and take the photo again",
                             {"glare": round(quality.glare, 3), "most": MOST_GLARE}))
    return found


def _flat(pixels, quad):
    """(the flat document, no side above SIDE; its width and height in pixels of the picture)"""
    rows, columns = pixels.shape[:2]
    if quad is not None:
        quad = as_quad(quad, columns, rows)
        sides = np.linalg.norm(np.roll(quad, -1, 0) - quad, axis=1)  # top, right, bottom, left
        width, height = round((sides[0] + sides[2]) / 2), round((sides[1] + sides[3]) / 2)
        size = sides_of(quad, columns, rows, min(SIDE, max(width, height)))
        return rectify(pixels, quad, size), width, height
    step = 1  # by powers of two OpenCV is ten times faster
    while max(rows, columns) >= 2 * step * SIDE and min(rows, columns) >= 2 * step:
        step *= 2
    part = pixels[:rows // step * step, :columns // step * step]
    part = resize(part, columns // step, rows // step)
    scale = min(1, SIDE / max(part.shape[:2]))
    return resize(part, max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))), columns, rows


def _edges(gray):
    """(contrast, sharpness) of `Quality`. gray: uint8 `[FINE,FINE]`.

    An edge that a lens or a motion has smeared over n pixels rises by 1/n of its height a pixel, whatever its height: so
    dark and light prints, and much and little of it, are measured alike. The median over the fifth with the most contrast.
    """
    contrast, sharpness = [], [100.0]
    for plane in (gray, np.ascontiguousarray(gray.T)):
        row = np.ones((1, REACH), np.uint8)
        around = cv2.subtract(cv2.dilate(plane, row), cv2.erode(plane, row)).astype(np.float32)
        slope = cv2.filter2D(plane, cv2.CV_32F, np.float32([[-0.5, 0, 0.5]]), borderType=cv2.BORDER_REPLICATE)
        steepest = cv2.dilate(np.abs(slope), row)
        contrast.append(float(np.percentile(around, 99)))
        edges = around >= max(FAINTEST, np.percentile(around, 80))
        if edges.sum() >= FINE:
            sharpness.append(float(100 * np.median(steepest[edges] / around[edges])))
    return max(contrast), min(sharpness)


def _glare(light):
    """The share of the area that a reflection covers. light: the darkest of the three colors, uint8 `[h,w]`.

    White paper and white print end at an edge, and white margins reach the border of the picture; a reflection fades out
    over some pixels. On 398 real photos of glossy covers, with and without reflections, 12 % have more than MOST_GLARE, and
    in all of those it can be seen; of clean pictures 0 % of 100 covers and 100 synthetic documents, 2 % of 606 documents,
    of 1,500 pictures of every kind and of 300 photographs. A reflection on a page that is white itself is not told from it.
    """
    white = (light >= WHITE).astype(np.uint8)
    rim = white.astype(bool) & (cv2.erode(white, np.ones((3, 3), np.uint8)) == 0)
    if not rim.any():
        return 0.0
    border = np.concatenate([white[0], white[-1], white[:, 0], white[:, -1]])
    beside = cv2.erode(light, np.ones((5, 5), np.uint8))[rim]     # the darkest within 2 pixels
    around = cv2.erode(light, np.ones((13, 13), np.uint8))[rim]   # and within 6
    if (beside < 155).mean() > 0.1 or (around <= 215).mean() < 0.5 or border.mean() > 0.3:
        return 0.0
    spots = cv2.morphologyEx(white, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    return float(spots.mean())
