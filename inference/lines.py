"""Text lines as a reader takes them: gray, dark ink on light ground, all of one height."""
import cv2
import numpy as np

from .image import load_image


def load_line(path, vertical: bool = False) -> np.ndarray:
    """The line in an image file, gray uint8 `[h,w]`; `vertical`: one that runs from top to bottom, turned counterclockwise, so
    that its top is the left. Raises ImageError."""
    return gray_line(load_image(path), vertical)


def gray_line(image: np.ndarray, vertical: bool = False) -> np.ndarray:
    """An image uint8 `[H,W]` or BGR `[H,W,3]` as `load_line` gives it."""
    gray = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return np.ascontiguousarray(np.rot90(gray)) if vertical else gray


def resize_line(line: np.ndarray, height: int) -> tuple[np.ndarray, float]:
    """(gray `[h,w]` resized to `height` pixels, its aspect kept, the scale)."""
    scale = height / line.shape[0]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(line, (max(8, round(line.shape[1] * scale)), height), interpolation=how), scale
