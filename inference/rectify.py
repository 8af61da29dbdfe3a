"""From four corners in an image to the flat document. numpy and OpenCV only.

A quad is four corners, float64 `[4,2]` (x, y) in pixels of the image, from edge to edge (pixel i of a row reaches from i to
i + 1), clockwise as seen, the first of them the top left one of the result. Corners may lie outside of the image.
"""
import math

import cv2
import numpy as np

from .image import MIN_SIDE, ImageError, as_bgr, load_reduced, resize
from .quads import inside, is_quad

FAR = 1.0  # corners lie no farther outside of the image than so many of its sides
VISIBLE = 0.25  # least share of a quad's area that must lie in the image
FOCAL = 0.6, 2.5  # of cameras, in longer sides of the image; an estimate outside of these limits is not believed
TYPICAL = 1.1  # a phone's main camera
LONGEST = 20  # aspects from 1:20 to 20:1
OVER = 1.5  # the image is reduced no further than to so many of its pixels for one of the result: embeddings stay (.9999)
MOST_OVER = 8  # samples that the warp takes for a pixel of the result, along each axis, at most


def rectify(image: np.ndarray, quad, size: int | tuple[int, int]) -> np.ndarray:
    """What lies inside `quad` in `image` (an array as `cv2.imread` returns it), seen from the front: uint8 BGR.

    size: (width, height) of the result, or its longer side, where the aspect is estimated (`aspect_of`). Antialiased: the
    part of the image that is needed is reduced first, then warped at twice the size of the result or more, then averaged.
    Beyond the image its border goes on. Memory: the part that is needed and at most 64 times the result, wherever the
    corners lie. Raises ImageError for corners that cannot be used (`problem_of`).
    """
    image = as_bgr(image)
    height, width = image.shape[:2]
    quad = as_quad(quad, width, height)
    if not isinstance(size, tuple):
        size = sides_of(quad, width, height, size)

    sides = _lengths(quad)
    along = np.array([max(sides[0], sides[2]), max(sides[1], sides[3])])  # across and down, pixels of the image
    halved = max(0, int(np.log2((along / size).min() / OVER)))  # so many times: by powers of two OpenCV is ten times faster
    step = 2 ** halved
    low = np.floor(quad.min(0)).clip(0, [width - 1, height - 1]).astype(int)  # what is needed of the image, whole steps
    high = np.ceil(quad.max(0)).clip(low + 1, [width, height]).astype(int)
    count = np.minimum(-(-(high - low) // step), np.array([width, height]) // step).clip(1)
    low = np.minimum(low, [width, height] - count * step).clip(0)
    part = image[low[1]:low[1] + count[1] * step, low[0]:low[0] + count[0] * step]
    part = resize(part, int(count[0]), int(count[1]))

    # Samples across and down: as many to a pixel of the result as pixels of the part.
    grid = np.ceil(along / step / size).clip(1, MOST_OVER).astype(int) * size
    frame = np.float32([(0, 0), (grid[0], 0), grid, (0, grid[1])])
    # OpenCV has the middle of the first pixel at 0; with quads from edge to edge it is at 0.5.
    corners = (quad - low) / step - 0.5
    matrix = cv2.getPerspectiveTransform(corners.astype(np.float32), frame - np.float32(0.5))
    warped = cv2.warpPerspective(part, matrix, (int(grid[0]), int(grid[1])), flags=cv2.INTER_LINEAR,
                                 borderMode=cv2.BORDER_REPLICATE)
    return resize(warped, *size)


def load_with_corners(image, corners, for_size: int, least: int) -> tuple[np.ndarray, int, np.ndarray]:
    """A path, or an array as `cv2.imread` returns it -> uint8 BGR; how often it is smaller than the file says, as from
    `load_reduced`; and the corners, given in the image's own pixels, as `as_quad` has them. What has a side below `least`
    pixels when the file is decoded for `for_size` is decoded whole. Raises ImageError."""
    pixels, divisor = load_reduced(image, for_size)
    quad = as_quad(corners, pixels.shape[1] * divisor, pixels.shape[0] * divisor)
    if divisor > 1 and min(_lengths(quad)) < least * divisor:
        pixels, divisor = load_reduced(image)
    return pixels, divisor, quad


def as_quad(corners, width: int, height: int) -> np.ndarray:
    """Four corners in an image of this size, given in any form: float64 `[4,2]`. Raises ImageError where `problem_of` says
    why they cannot be used."""
    try:
        quad = np.asarray(corners, np.float64)
    except (TypeError, ValueError, OverflowError):  # not numbers, a ragged list, or an int beyond all floats
        quad = np.empty(0)
    if problem := problem_of(quad, width, height):
        raise ImageError(f"corners: {problem}")
    return quad


def problem_of(quad: np.ndarray, width: int, height: int) -> str | None:
    """Why a quad in an image of this size cannot be rectified; None where it can."""
    if quad.shape != (4, 2) or not all(map(math.isfinite, quad.ravel().tolist())):
        return "expected four, each [x, y] in pixels, clockwise from the document's top left"
    wide, high = FAR * width, FAR * height
    if not all(-wide <= x <= width + wide and -high <= y <= height + high for x, y in quad.tolist()):
        return f"too far outside of the image, which has {width}x{height} pixels"
    if not is_quad(quad):
        return ("they go counterclockwise; begin at the document's top left and go clockwise" if is_quad(quad[::-1]) else
                "no convex quadrilateral; begin at the document's top left and go clockwise")
    if min(_lengths(quad)) < MIN_SIDE:
        return f"a side is shorter than {MIN_SIDE} pixels"
    if inside(quad, width, height) < VISIBLE * cv2.contourArea(quad.astype(np.float32)):
        return "less than a quarter of the document lies in the image"
    return None


def _lengths(quad):
    """Of the sides of a quad, pixels: top, right, bottom, left."""
    corners = quad.tolist()
    return list(map(math.dist, corners, corners[1:] + corners[:1]))


def sides_of(quad: np.ndarray, width: int, height: int, longest: int) -> tuple[int, int]:
    """(width, height) in pixels of the flat document with its estimated aspect (`aspect_of`), the longer side as given."""
    aspect = aspect_of(quad, width, height)
    return max(1, round(longest * min(1, aspect))), max(1, round(longest * min(1, 1 / aspect)))


def aspect_of(quad: np.ndarray, width: int, height: int) -> float:
    """Width / height of the flat rectangle that a camera sees as `quad` in an image of this size.

    After Zhang and He, "Whiteboard scanning and image enhancement" (https://www.microsoft.com/en-us/research/publication/
    whiteboard-scanning-and-image-enhancement/), section 3: the optical axis meets the middle of the image, the pixels are
    squares; then the quad gives the focal length, and both give the aspect. The focal length cannot be told from a quad that
    is nearly a parallelogram: where it comes out as that of no camera, a phone's is taken, which for a parallelogram gives
    the ratio of its sides.
    """
    unit = max(width, height)
    corners = np.column_stack([(quad - [width / 2, height / 2]) / unit, np.ones(4)])
    one, two, four, three = corners  # the paper's m1..m4: top left, top right, bottom left, bottom right
    k2 = np.cross(one, four) @ three / (np.cross(two, four) @ three)
    k3 = np.cross(one, four) @ two / (np.cross(three, four) @ two)
    across, down = k2 * two - one, k3 * three - one  # n2, n3: along the rectangle's sides
    vanishing = across[2] * down[2]
    square = -(across[:2] @ down[:2]) / vanishing if vanishing else 0.0  # of the focal length
    focal = np.sqrt(square) if FOCAL[0] ** 2 <= square <= FOCAL[1] ** 2 else TYPICAL
    lens = np.array([1 / focal, 1 / focal, 1])
    return float(np.clip(np.linalg.norm(across * lens) / np.linalg.norm(down * lens), 1 / LONGEST, LONGEST))
