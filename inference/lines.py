"""Text lines as a reader takes them: gray, dark ink on light ground, all of one height."""
import cv2
import numpy as np

from .header import read_header
from .image import ImageError, load_gray, read_bytes

CATEGORIES = [{"id": 0, "name": "char"}, {"id": 1, "name": "word"}]  # of COCO files of lines


def line_size(path, vertical: bool = False) -> tuple[int, int]:
    """(width, height) in pixels of what `load_line` makes of an image file. The header tells; a TIFF is decoded, since its
    decoder may turn it. Raises ImageError."""
    header = read_header(read_bytes(path))
    if header is None:
        raise ImageError("not an image (JPEG, PNG, WebP, BMP or TIFF)")
    if header.problem:
        raise ImageError(f"{header.problem} {header.format}")
    if header.format == "TIFF":
        return load_line(path, vertical).shape[::-1]
    turns = vertical + (header.orientation > 4)  # EXIF's orientations from 5 on lie on their side
    return (header.height, header.width) if turns == 1 else (header.width, header.height)


def load_line(path, vertical: bool = False) -> np.ndarray:
    """The line in an image file, gray uint8 `[h,w]`; `vertical`: one that runs from top to bottom, turned counterclockwise,
    so that its top is the left. Raises ImageError."""
    return gray_line(load_gray(path), vertical)


def gray_line(image: np.ndarray, vertical: bool = False) -> np.ndarray:
    """An image uint8 `[H,W]` or BGR `[H,W,3]` as `load_line` gives it."""
    gray = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return np.ascontiguousarray(np.rot90(gray)) if vertical else gray


def turned(boxes: np.ndarray, height: int) -> np.ndarray:
    """Boxes `[n,4]` (x0, y0, x1, y1) of a vertical line's image where `gray_line` has turned it; height: of the turned
    line."""
    return np.stack([boxes[:, 1], height - boxes[:, 2], boxes[:, 3], height - boxes[:, 0]], 1)


def turned_back(boxes: np.ndarray, height: int) -> np.ndarray:
    """The inverse of `turned`: boxes in a turned line, `height` pixels high, in the vertical line's own image."""
    return np.stack([height - boxes[:, 3], boxes[:, 0], height - boxes[:, 1], boxes[:, 2]], 1)


def resize_line(line: np.ndarray, height: int) -> tuple[np.ndarray, float]:
    """(gray `[h,w]` resized to `height` pixels, its aspect kept, the scale)."""
    high, wide = line.shape
    how = cv2.INTER_AREA if height < high else cv2.INTER_LINEAR
    return cv2.resize(line, (resized_width(wide, high, height), height), interpolation=how), height / high


def resized_width(wide: int, high: int, height: int) -> int:
    """The width of a line `wide` x `high` pixels that `resize_line` makes `height` pixels high."""
    return max(1, round(wide * height / high))
