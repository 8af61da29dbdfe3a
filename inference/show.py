"""Drawings of results: the image with the document's corners drawn, and beside it the document seen from the front."""
import os
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from .errors import UserError, printable
from .files import replacing
from .image import ImageError, load_image, resize
from .rectify import load_with_corners, rectify

SIDE, GAP, TEXT = 400, 8, 24  # pixels: the longer side of image and document, the space around them, a line of text
GREEN, RED, BLACK, WHITE = (70, 150, 30), (50, 50, 210), (20, 20, 20), 255  # BGR


def show_folder(folder, images, references=None) -> Path:
    """Make the folder for drawings. Raises UserError where it cannot be made, or where one of the `images` (paths) or the
    folder of `references` lies in it: a drawing must not replace an image, nor become a reference."""
    folder = Path(folder)
    real = os.path.realpath(folder)
    if references and os.path.commonpath([real, root := os.path.realpath(references)]) == root:
        raise UserError(f"--show {folder}: lies among the reference images, {references}; name another folder")
    inside = next((path for path in images if os.path.dirname(os.path.realpath(path)) == real), None)
    if inside is not None:
        raise UserError(f"--show {folder}: {inside} lies in it; name another folder, so that no image is replaced")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--show {folder}: cannot be made ({error.strerror}); name a folder that can be written") from None
    return folder


def write_drawing(folder: Path, number: int, result: dict, draw: Callable[[dict], np.ndarray]) -> None:
    """Write `draw(result)`, of a result for a path, as `NUMBER_NAME.jpg`: the number keeps images of one name apart. None is
    written for an image that cannot be used. Raises UserError."""
    if result["error"]:
        return
    try:
        drawing = draw(result)
    except ImageError:  # read a moment ago, and gone or changed since
        return
    name = re.sub(r"[^\w.-]", "_", Path(result["image"]).stem, flags=re.ASCII)[:80]
    with replacing(folder / f"{number:05}_{name}.jpg") as partial:
        partial.write_bytes(cv2.imencode(".jpg", drawing)[1])


def draw(result: dict) -> np.ndarray:
    """A result of `DocClassifier.classify` for a path -> uint8 BGR. Green: a registered type. What is beside the image is
    upright where the result has an orientation. Raises ImageError."""
    quad = result.get("quad")
    if quad is None:
        image = load_image(result["image"], SIDE)
    else:
        image, divisor, quad = load_with_corners(result["image"], quad, SIDE, SIDE // 4)
    color = RED if result["label"] is None else GREEN
    parts = [_shrunk(image)]
    if quad is not None:
        quad = quad / divisor
        scale = np.divide(parts[0].shape[1::-1], image.shape[1::-1])
        points = np.rint((quad * scale - 0.5) * 16).astype(np.int32)  # in sixteenths of a pixel
        parts[0] = parts[0].copy()
        cv2.polylines(parts[0], [points], True, color, 2, cv2.LINE_AA, shift=4)
        cv2.circle(parts[0], points[0].tolist(), 5 * 16, color, cv2.FILLED, cv2.LINE_AA, shift=4)  # the first corner
        turns = (result.get("orientation") or 0) // 90
        parts.append(np.rot90(rectify(image, quad, SIDE), turns))  # counterclockwise
    width = sum(part.shape[1] + GAP for part in parts) + GAP
    sheet = np.full((max(part.shape[0] for part in parts) + 2 * GAP + TEXT, max(width, SIDE), 3), WHITE, np.uint8)
    left = GAP
    for part in parts:
        sheet[GAP:GAP + part.shape[0], left:left + part.shape[1]] = part
        left += part.shape[1] + GAP
    said = f"{result['label'] or 'not registered'} {result['score']:.4f}"
    if result.get("view") == "image" and quad is not None:
        said += " (by the whole image)"
    write_text(sheet, said, (GAP, sheet.shape[0] - GAP), 15, color)
    return sheet


def write_text(image: np.ndarray, text: str, place: tuple[int, int], size: int, color) -> None:
    """Write a line of text, whose letters are some `size` pixels high, with the left end of its baseline at `place`. OpenCV
    5 has a font of all scripts; the one of OpenCV 4 shows letters with accents as question marks."""
    if hasattr(cv2, "FontFace"):
        cv2.putText(image, printable(text), place, color, cv2.FontFace("uni"), size, 400)
    else:
        cv2.putText(image, printable(text), place, cv2.FONT_HERSHEY_SIMPLEX, size / 30, color, 1, cv2.LINE_AA)


def _shrunk(image):
    scale = min(1, SIDE / max(image.shape[:2]))
    return resize(image, *(max(1, round(side * scale)) for side in image.shape[1::-1]))
