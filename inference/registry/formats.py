"""Image files of every kind that people send: what the decoder takes stays as it is, HEIC and PDF are converted.

    data = usable(data)                      # JPEG, PNG, WebP, BMP or TIFF; a page of a PDF file: usable(data, page=2)

HEIC takes `pip install "docmetric[heif]"` (pillow-heif), PDF `pip install "docmetric[pdf]"` (pypdfium2). Both are read by a
process of their own (`convert.py`; about .1 s more), which bounds memory and time, and may crash.
"""
import importlib.util
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np

from ..errors import first_line
from ..header import read_header
from ..image import EXTENSIONS as IMAGE_EXTENSIONS
from ..image import MAX_PIXELS, ImageError, as_bgr, decode, resize

CONVERT = Path(__file__).with_name("convert.py")
MAX_MEMORY = 3 << 30  # bytes that a conversion may take: the largest image, MAX_PIXELS, in all its planes
MAX_SECONDS = 90
EXTENSIONS = IMAGE_EXTENSIONS | {".heic", ".heif", ".pdf"}  # of files in a folder
AT_ONCE = threading.BoundedSemaphore(2)  # conversions
QUALITY = 95  # of the JPEG that a HEIC image becomes

TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WebP": "image/webp", "BMP": "image/bmp", "TIFF": "image/tiff",
         "HEIC": "image/heic", "PDF": "application/pdf"}
NEEDS = {"HEIC": ("pillow_heif", "heif"), "PDF": ("pypdfium2", "pdf")}  # package, extra
# The brands of ISO/IEC 23008-12: a file that begins with one of these is a still image, or a sequence of them.
_HEIC = re.compile(rb".{4}ftyp(heic|heix|heim|heis|hevc|hevx|hevm|hevs|mif1|mif2|msf1)", re.DOTALL)


def kind_of(data: bytes) -> str | None:
    """"JPEG", "PNG", "WebP", "BMP", "TIFF", "HEIC" or "PDF", as the content says; None for anything else."""
    if _HEIC.match(data):
        return "HEIC"
    if b"%PDF-" in data[:1024]:  # readers take what stands before it
        return "PDF"
    header = read_header(data)
    return header.format if header else None


def content_type(data: bytes) -> str:
    """The media type of a file's content: "image/jpeg", ..., "application/octet-stream" for what is no image."""
    return TYPES.get(kind_of(data), "application/octet-stream")


def usable(data: bytes, page: int = 1) -> bytes:
    """A file's content -> content that `image.decode` takes: as it is, a HEIC image as JPEG, a page of a PDF file (the first
    is 1) as PNG, 150 dots per inch, its longer side of 1,000 to 2,500 pixels. What is no image at all stays, too: the
    decoder says so. Raises ImageError for what is damaged, encrypted or too large, and where the package for it is missing.
    """
    kind = "HEIC" if _HEIC.match(data) else "PDF" if b"%PDF-" in data[:1024] else None
    if kind is None:
        return data
    pixels = as_bgr(_converted(kind, data, page))
    if kind == "PDF":
        return cv2.imencode(".png", pixels)[1].tobytes()
    if max(pixels.shape) > 65_500:
        raise ImageError(f"{pixels.shape[1]}x{pixels.shape[0]} pixels: a side is longer than the limit of 65500")
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def thumbnail(data: bytes, size: int) -> bytes:
    """A small JPEG of an image that `usable` gave: no side above `size` pixels, the aspect kept. Raises ImageError."""
    pixels = decode(data, size)
    scale = min(1, size / max(pixels.shape[:2]))
    pixels = resize(pixels, max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def _converted(kind, data, page):
    """uint8 `[H, W, 1, 3 or 4]`"""
    package, extra = NEEDS[kind]
    if importlib.util.find_spec(package) is None:
        raise ImageError(f'a {kind} file: to read it, pip install "docmetric[{extra}]"')
    command = [sys.executable, str(CONVERT), kind.lower(), str(page), str(MAX_PIXELS), str(MAX_MEMORY)]
    try:
        with AT_ONCE:
            done = subprocess.run(command, input=data, capture_output=True, timeout=MAX_SECONDS)
    except subprocess.TimeoutExpired:
        raise ImageError(f"{kind} that takes more than {MAX_SECONDS} s to read") from None
    except OSError as error:
        raise ImageError(f"a {kind} file cannot be read here ({error.strerror})") from None
    head, _, rows = done.stdout.partition(b"\n")
    try:
        answer = json.loads(head)
    except ValueError:  # the process was killed, or has crashed
        raise ImageError(f"damaged or too complex {kind}") from None
    if "error" in answer:
        raise ImageError(first_line(answer["error"]))
    height, width, channels = (answer[name] for name in ("height", "width", "channels"))
    if len(rows) != height * width * channels:
        raise ImageError(f"damaged or too complex {kind}")
    return np.frombuffer(rows, np.uint8).reshape(height, width, channels)
