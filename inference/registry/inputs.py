"""What callers hand in, checked and brought to one form: images, labels, corners."""
import hashlib
import json
import os
import unicodedata

import cv2
import numpy as np

from ..errors import printable
from ..image import as_bgr, read_bytes
from .errors import Invalid
from .formats import usable

LONGEST_NAME = 200
LONGEST_TEXT = 500  # of `source` and `who`


def opened(image):
    """An image as `load_reduced` takes it: HEIC and PDF are converted."""
    if isinstance(image, (str, os.PathLike)):
        image = read_bytes(image)
    return usable(bytes(image)) if isinstance(image, (bytes, bytearray, memoryview)) else image


def picture_of(image) -> bytes:
    """The bytes of a picture as it is kept: an array as PNG."""
    data = opened(image)
    if isinstance(data, bytes):
        return data
    return cv2.imencode(".png", as_bgr(data))[1].tobytes()


def clean_label(label) -> str:
    """A label as it is stored: NFC, without white space around it. Raises Invalid for an empty, long or unprintable one."""
    return _clean(label, "label", LONGEST_NAME)


def clean_text(text, what: str) -> str | None:
    return None if text is None else _clean(text, what, LONGEST_TEXT)


def _clean(text, what, longest):
    if not isinstance(text, str):
        raise Invalid(f"{what}: must be text")
    text = unicodedata.normalize("NFC", text).strip()
    if not text or len(text) > longest:
        raise Invalid(f"{what}: must have 1 to {longest} characters, not {len(text)}")
    if printable(text) != text:
        raise Invalid(f"{what} {printable(text)[:80]}: must be printable, without line breaks and control characters")
    return text


def checked_quad(quad):
    """A quad as JSON values. Raises Invalid."""
    if quad is None:
        return None
    try:
        return np.asarray(quad, np.float64).reshape(4, 2).tolist()
    except (TypeError, ValueError, OverflowError):
        raise Invalid("quad: must be four corners, each [x, y] in pixels, clockwise from the document's top left") from None


def corners_of(quad):
    return None if quad is None else np.round(quad, 2).tolist()


def name_of(image):
    return str(image) if isinstance(image, (str, os.PathLike)) else None


def digest_of(*values) -> str:
    """Of a request, to tell a repeated one from another."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
