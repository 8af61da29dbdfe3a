"""The finder: a small network that says where in a photo the document lies.

    found = Finder().find(image)                         # uint8 BGR, as cv2.imread gives it; None: no document
    document = rectify(image, found.quad, 480)           # seen from the front, 480 pixels on the longer side

The shipped one is `tools/release.sh`'s; `python train_v2.py configs/finder` trains another. numpy, OpenCV, ONNX Runtime.
"""
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from .errors import UserError, first_line
from .image import as_bgr, fit_square, resize
from .model import AGAIN, not_ours, open_session, read_metadata
from .quads import decode, to_image
from .rectify import problem_of, rectify

__all__ = ["DEFAULT_FINDER", "Finder", "Found", "rectify"]

DEFAULT_FINDER = Path(__file__).resolve().parent / "models" / "finder.onnx"
ENOUGH = 1.5  # times the finder's input: an image is first halved as long as it stays longer than that
OUTPUTS = ["heat", "corners", "corner_heat", "corner_shift"]  # see `quads.decode`


class Found(NamedTuple):
    """A document in an image: its corners, float64 `[4,2]` (x, y) in pixels of the image from edge to edge, clockwise from
    the one that becomes the top left under the least turn; and how sure the finder is, 0..1. Corners may lie outside."""
    quad: np.ndarray
    score: float


class Finder:
    """`find(image)` is the document in an image. `path`: an exported model of task=finder (None: the shipped one);
    `backend` "cpu" or "cuda". It may be called from several threads; each run takes one. `image_size` is the side of the
    network's input. Raises UserError for a file that is no such model.
    """

    def __init__(self, path=None, backend: str = "cpu"):
        if path is None:
            path = DEFAULT_FINDER
            if not path.exists():
                raise UserError(f"{path}: the shipped finder is missing; give another one with --finder or finder=, or "
                                "train one: python train_v2.py configs/finder")
        self.path = path
        self.session = open_session(path, backend, batch=1)
        metadata = read_metadata(path, self.session, "finder")
        if [port.name for port in self.session.get_outputs()] != OUTPUTS:
            raise not_ours(path)
        self.image_size: int = metadata["image_size"]
        self.fit: str = metadata.get("fit", "squash")
        self.find(np.full((self.image_size, self.image_size, 3), 128, np.uint8))

    def find(self, image: np.ndarray) -> Found | None:
        """The document in `image`, an array as `cv2.imread` returns it: of several the best one that can be rectified; None
        without any. Raises ImageError for another array."""
        image = as_bgr(image)
        height, width = image.shape[:2]
        step = 1  # by powers of two OpenCV is ten times faster
        while max(width, height) >= 2 * step * ENOUGH * self.image_size and min(width, height) >= 2 * step:
            step *= 2
        height, width = height // step * step, width // step * step
        image = resize(image[:height, :width], width // step, height // step)
        pixels = np.empty((1, 3, self.image_size, self.image_size), np.float32)
        for channel, plane in zip(cv2.split(fit_square(image, self.image_size, self.fit))[::-1], pixels[0]):
            np.divide(channel, np.float32(255), out=plane)  # RGB in [0, 1]; by planes it takes half as long as transposed
        try:
            outputs = self.session.run(OUTPUTS, {"img": pixels})
            quads, scores = decode([out[0] for out in outputs], self.image_size)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class; decode's tell of wrong shapes
            raise UserError(f"{self.path}: the finder does not run ({first_line(error)}); {AGAIN}") from None
        for quad, score in zip(to_image(quads, width, height, self.image_size, self.fit), scores):
            if problem_of(quad, width, height) is None:
                return Found(quad, float(score))
        return None
