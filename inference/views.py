"""What of an image is compared with the references: the image as it is, the document found in it, or both."""
import csv
import os
from typing import NamedTuple

import cv2
import numpy as np

from .errors import UserError
from .finder import Finder
from .image import fit_square, fitted_sides, load_reduced
from .model import Model
from .quads import inside
from .rectify import load_with_corners, rectify, sides_of

FINDS = {"auto": "auto", "always": True, "never": False}  # the words of command lines and stores, and what `Views` takes
MAX_CORNERS = 64 << 20  # bytes of a file of corners: a million images
# From this share of the image on, a document that is found is the image: cropped already, by hand or by a scanner. What the
# finder takes for the document there may be a frame in its design. (Photos that were never cropped: the median is 37 %.)
COVERED = 0.85


def find_in_references(find):
    """What `find` is for references where nothing else is asked: "auto" does clean ones no harm."""
    return "auto" if find else False


class Seen(NamedTuple):
    """Of an image: the corners of the document in it, float64 `[4,2]` in the image's own pixels (None: none was found), the
    finder's score (None: none was found, or the corners were given), and which views of it there are, in their order:
    "image", "document"."""
    quad: np.ndarray | None
    score: float | None
    views: tuple[str, ...]


class Views:
    """`views(image)` -> (one or two resized images as `model` takes them, `Seen`).

    find: False: the image as it is. True: the document in it; where none is found, the image. "auto": both, the image first,
    unless none is found or it is nearly all of the image: then the image alone.
    finder: a `Finder`, or the path of one; None: the shipped one. `corners`, {real path: quad}, are given by hand: there the
    document is the one view, whatever `find` says. Raises UserError for a finder that cannot be used. Memory: one decoded
    image for each thread that calls.
    """

    def __init__(self, model: Model, find=False, finder=None, backend: str = "cpu", corners: dict | None = None):
        if not any(find is choice or find == choice == "auto" for choice in FINDS.values()):
            raise UserError(f"find {find}: unknown; use False, True or \"auto\"")
        self.model, self.find, self.corners = model, find, corners or {}
        self.finder = None
        # Decoded no smaller than twice this: enough for the finder, and for a document of a quarter of the image's side.
        self.for_size = 2 * model.image_size
        if find:
            self.finder = finder if isinstance(finder, Finder) else Finder(finder, backend)
            self.for_size = max(self.for_size, self.finder.image_size)

    def __call__(self, image, quad=None) -> tuple[list[np.ndarray], Seen]:
        """A path, or an array as `cv2.imread` returns it; quad: the document's corners where they are known, in the image's
        own pixels. Raises ImageError."""
        if quad is None and not self.find and not self.corners:
            return [self.model.prepare(image)], Seen(None, None, ("image",))
        pixels, here, seen = self.look(image, quad)
        return [self._document(pixels, here) if view == "document" else self.model.prepare(pixels)
                for view in seen.views], seen

    def look(self, image, quad=None) -> tuple[np.ndarray, np.ndarray | None, Seen]:
        """An image as `__call__` takes it -> (uint8 BGR, perhaps decoded at a fraction of its size; the corners in these
        pixels or None; `Seen`)."""
        if quad is None and self.corners and isinstance(image, (str, os.PathLike)):
            quad = self.corners.get(os.path.realpath(image))
        if quad is not None:
            pixels, divisor, quad = load_with_corners(image, quad, self.for_size, self.model.image_size)
            return pixels, quad / divisor, Seen(quad, None, ("document",))
        pixels, divisor = load_reduced(image, self.for_size)
        height, width = pixels.shape[:2]
        found = self.finder.find(pixels) if self.find else None
        if found is None:
            return pixels, None, Seen(None, None, ("image",))
        views = ("document",)
        if self.find == "auto":
            nearly_all = inside(found.quad, width, height) >= COVERED * width * height
            views = ("image",) if nearly_all else ("image", "document")
        return pixels, found.quad, Seen(found.quad * divisor, found.score, views)

    def _document(self, pixels, quad):
        """What lies in `quad`, as the network takes it: at once at that size."""
        size, fit = self.model.image_size, self.model.fit
        flat = (size, size) if fit == "squash" else sides_of(quad, pixels.shape[1], pixels.shape[0], size)
        return cv2.cvtColor(fit_square(rectify(pixels, quad, fitted_sides(*flat, size, fit)), size, fit), cv2.COLOR_BGR2RGB)


def read_corners(path) -> dict[str, np.ndarray]:
    """Corners given by hand: {real path of an image: quad}.

    path: a CSV file with a head, of which the columns file,x0,y0,x1,y1,x2,y2,x3,y3 are read: the image, below the folder of
    the CSV file, and the corners in its pixels (upright, as EXIF says), clockwise from the document's top left. Raises
    UserError, also where none of the images exists; whether corners can be used shows when their image is read.
    """
    folder, corners = os.path.dirname(os.path.abspath(path)), {}
    columns = ["file", *(f"{axis}{i}" for i in range(4) for axis in "xy")]
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > MAX_CORNERS:
            raise UserError(f"{path}: no file of corners; give a CSV file with the columns {','.join(columns)}")
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.DictReader(file)
            if missing := [name for name in columns if name not in (rows.fieldnames or ())]:
                raise UserError(f"{path}: has no column {missing[0]}; its first line must name {','.join(columns)}")
            for row in rows:
                numbers = [float(row[name]) for name in columns[1:]]
                corners[os.path.realpath(os.path.join(folder, row["file"]))] = np.reshape(numbers, (4, 2))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except (TypeError, ValueError, csv.Error):  # a short line has None
        raise UserError(f"{path}: line {rows.line_num}: expected the name of an image and eight numbers") from None
    if not any(map(os.path.exists, corners)):
        raise UserError(f"{path}: no image that it names exists; their paths are relative to {folder}")
    return corners
