"""Augmentation of text lines: small changes of size, place and ink, and of the boxes with them. On the host, by OpenCV."""
import cv2
import numpy as np

from inference.lines import resize_line

BINARY = 0.6  # share of lines whose ink is made anew as black on white, since scans of books often are


def augment_line(image: np.ndarray, boxes: np.ndarray | None, height: int, rng: np.random.Generator
                 ) -> tuple[np.ndarray, np.ndarray | None]:
    """A gray line uint8 `[h,w]`, dark on light, as a scan of the same print might show it, `height` pixels high; boxes
    float32 `[n,4]` (x0, y0, x1, y1), or None, move along.

    Standard deviations: 10 % wider or narrower, 6 % larger or smaller, 4 % of the height up or down, a slope of 0.1 degrees,
    a slant of 2 degrees. Then in half of the lines other ink: blurred, with noise, thicker or thinner, binary or gray.
    """
    line, scale = resize_line(image, height)
    boxes = None if boxes is None else boxes * scale
    width = augmented_width(line.shape[1], rng)
    high, slope, slant = np.exp(rng.normal(0, 0.06)), rng.normal(0, 0.002), rng.normal(0, 0.03)
    ratio, middle = width / line.shape[1], line.shape[1] / 2
    up = (1 - high) * height / 2 + rng.normal(0, 0.04 * height) - slope * middle
    matrix = np.float32([[ratio, slant, -slant * height / 2], [slope, high, up]])
    line = cv2.warpAffine(line, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    if boxes is not None:
        center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
        center, half = center @ matrix[:, :2].T + matrix[:, 2], half * [ratio, high]
        boxes = np.concatenate([center - half, center + half], 1).astype(np.float32)
    return (_other_ink(line, rng) if rng.random() < 0.5 else line), boxes


def augmented_width(width: int, rng: np.random.Generator) -> int:
    """The width that `augment_line` gives a line `width` pixels wide at its height: the first number that it draws."""
    return max(1, round(width * np.exp(rng.normal(0, 0.1))))


def _other_ink(line: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    ink = cv2.GaussianBlur(255 - line, (0, 0), rng.uniform(0.3, 1.1)).astype(np.float32) / 255
    noise = rng.standard_normal(line.shape, np.float32)
    grain = cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.5, 1.2))
    level = rng.uniform(0.3, 0.62) + rng.uniform(0, 0.12) * grain / (grain.std() + 1e-6)
    if rng.random() < BINARY:
        sharp = 1 / (1 + np.exp(np.clip((level - ink) * rng.uniform(12, 40), -30, 30)))
        return np.uint8(255 * (1 - sharp))
    shade = rng.uniform(0.5, 1) * np.clip((ink - level) * rng.uniform(1, 3) + 0.5, 0, 1)
    paper = rng.uniform(0.7, 1)
    return np.uint8(np.clip(255 * paper * (1 - shade) + rng.uniform(0, 10) * noise, 0, 255))
