"""What there is below a folder, and what one look at each file shows: can training use it, and what is unusual."""
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dataset import MAX_ASPECT, load_resized
from inference.header import read_header
from inference.image import EXTENSIONS, ImageError, load_image, map_ahead, resize
from tools.doctor.compare import LARGE, SIDE

ROUGH = 32         # pixels of a side of the gray images whose thumbnails are searched
LONG = 10          # times its width: beyond it an image, squashed to a square, loses most of what it shows along one side
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WebP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}
BLANK_SIDE = 384   # pixels of the longest side at which content is looked for: noise averages out, a line of text does not
BLANK_NOISE = 7.0  # gray levels of deviation beyond which there is texture, not a scanner's noise
BLANK_STEP = 8.0   # gray levels that ink differs from the paper around it, at least
BLANK_SHARE = 1.5e-4  # of the pixels: the number of a page alone takes twice that
BLANK_UNEVEN = 2.5  # gray levels by which one part of an empty page may be noisier than another
BLANK_SHADE = 120  # gray levels from one end of an empty page to the other: above that it is not blank


@dataclass
class Look:
    """What one file is. Of a file that training would skip, `reason` and nothing else."""
    reason: str = ""
    odd: dict[str, str] | None = None   # {what: more about it}: "small", "long", "extension"; it can be used all the same
    blank: bool = False
    large: bool = False                 # both sides are at least twice those of the largest images that are compared
    digest: bytes = b""                 # of the pixels
    rough: np.ndarray | None = None     # gray uint8 [32,32]
    fine: bytes = b""                   # BGR [128,128,3] as a JPEG file: a hundred thousand images take half a gigabyte


def look_at_all(paths: list[str], side: int, image_size: int) -> Iterator[Look]:
    """A `Look` at each file, in their order, decoded once by a pool of threads. side: of training's resized images."""
    return map_ahead(lambda path: look_at(path, side, image_size), paths)


def look_at(path: str, side: int, image_size: int) -> Look:
    """One file, decoded as `dataset.load_resized` does; see `look_at_all`."""
    try:
        pixels = load_image(path, side)
        height, width = pixels.shape[:2]
        if max(height, width) > MAX_ASPECT * min(height, width):
            load_resized(path, side)  # refuses it in training's own words
        with open(path, "rb") as file:
            header = read_header(file.read())  # whose size is the file's own, where a large JPEG came smaller
    except ImageError as error:
        return Look(str(error))
    except OSError as error:  # it was deleted between the two
        return Look(f"cannot be read: {error.strerror}")
    odd = {}
    if 2 * min(height, width) < image_size:
        odd["small"] = f"{width}x{height} pixels"
    if max(height, width) > LONG * min(height, width):
        odd["long"] = f"{max(height, width) / min(height, width):.1f} times as long as wide"
    if FORMATS[os.path.splitext(path)[1].lower()] != header.format:
        odd["extension"] = f"a {header.format} file"
    small = resize(pixels, SIDE)
    return Look("", odd, is_blank(pixels), min(header.height, header.width) >= 2 * LARGE,
                hashlib.blake2b(pixels, digest_size=16, key=b"%dx%d" % (width, height)).digest(),
                cv2.resize(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), (ROUGH, ROUGH), interpolation=cv2.INTER_AREA),
                cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())


def is_blank(pixels: np.ndarray) -> bool:
    """Whether uint8 BGR `[H,W,3]` shows nothing: an empty page, noise, shading and all, or a lens cap.

    What remains of an image after the local mean is subtracted is noise if it is weak and the same everywhere; pages of
    text too small to be read have margins, and the least text is a few pixels far above the noise.
    """
    gray = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    height, width = gray.shape
    shrink = BLANK_SIDE / max(height, width)
    if shrink < 1:
        height, width = max(8, round(height * shrink)), max(8, round(width * shrink))
        gray = cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA)
    smooth = cv2.GaussianBlur(gray.astype(np.float32), (0, 0), 1)
    around = cv2.blur(smooth, (max(2, width // 16) * 2 + 1, max(2, height // 16) * 2 + 1), borderType=cv2.BORDER_REFLECT)
    rest = smooth - around
    some = slice(None, None, rest.size // 4096 + 1)  # of the pixels: sorting all would take longer than decoding
    rest = np.abs(rest - np.median(rest.ravel()[some]))
    noise = 1.4826 * np.median(rest.ravel()[some])
    low, high = np.quantile(around.ravel()[some], (0.01, 0.99))
    parts = np.sqrt(cv2.resize(rest * rest, (8, 8), interpolation=cv2.INTER_AREA))
    even = parts.max() - np.median(parts) < max(BLANK_UNEVEN, 0.6 * noise)
    return bool(noise < BLANK_NOISE and even and high - low < BLANK_SHADE
                and (rest > max(BLANK_STEP, 6 * noise)).mean() < BLANK_SHARE)


def others_below(folder: Path) -> tuple[Counter, list[str]]:
    """({extension: how many files}, hidden images) below a folder: what `list_images` passes over.

    Hidden are files and folders with a leading dot; "" counts files without an extension.
    """
    extensions, hidden, seen = Counter(), [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:  # a loop of links
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inside = os.path.relpath(parent, folder)
        in_hidden = any(part.startswith(".") for part in inside.split(os.sep) if part not in (".", ".."))
        for name in files:
            extension = os.path.splitext(name)[1].lower()
            if extension not in EXTENSIONS:
                extensions[extension] += 1
            elif in_hidden or name.startswith("."):
                hidden.append(os.path.normpath(os.path.join(inside, name)))
    return extensions, sorted(hidden)
