"""THE decoder of the project: training, evaluation and inference all read and resize images here.

numpy, OpenCV and the standard library only. Images are uint8 BGR `[H, W, 3]`, as `cv2.imread` gives them.
"""
import contextlib
import os
import stat
import threading
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import cv2
import numpy as np

from .errors import ImageError, UserError
from .header import png_pixels, read_header

MIN_SIDE = 8  # pixels; less shows nothing
MAX_INPUT = 4096  # pixels: a network takes images of no longer side
MAX_PIXELS = 178_956_970  # PIL's limit for a decompression bomb: 512 MiB of BGR
MAX_BYTES = 512 * 2**20
MAX_SCANS = 100  # of a progressive JPEG, which usually has ten: each costs time, and needs few bytes
MAX_WAYS = 100  # along which links may lead to one folder: some that point at each other make millions of paths
EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}

FITS = ("squash", "pad")  # how an image is resized for a network, see `fit_square`

# JPEG decoders can skip the higher frequencies of each block of 8x8.
REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}

BAND = 1 << 16  # pixels converted at a time: what that takes lies in the cache, and is nothing beside a large image

# What is wrong with a file is told once, by ImageError, not on stderr as well.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
# There are threads enough (`map_ahead`); with OpenCV's own beside them, each of ours that resizes would leave 872 bytes
# behind when it ends (https://github.com/opencv/opencv/issues/9745).
cv2.setNumThreads(1)


class _Room:
    """Room for so many pixels, which threads take and give back; one that finds too little left waits."""

    def __init__(self, pixels: int):
        self.left, self.changed = pixels, threading.Condition()

    @contextlib.contextmanager
    def take(self, pixels: int):
        with self.changed:
            self.changed.wait_for(lambda: pixels <= self.left)
            self.left -= pixels
        try:
            yield
        finally:
            with self.changed:
                self.left += pixels
                self.changed.notify_all()


# A pixel takes up to 16 bytes while it is decoded: sixteen threads with the largest image each would take 45 GB.
_room = _Room(2 * MAX_PIXELS)


def load_image(image, for_size: int | None = None) -> np.ndarray:
    """The path of a JPEG, PNG, WebP, BMP or TIFF file, or its content as bytes: uint8 BGR `[H, W, 3]`, upright, transparency
    on white. An array goes through `as_bgr`.

    for_size: the side it will be resized to; a JPEG far larger is then decoded at a fraction of its size (`decode`).
    Raises ImageError with the reason alone ("truncated JPEG"): the caller knows the path.
    """
    return load_reduced(image, for_size)[0]


def load_gray(image) -> np.ndarray:
    """`load_image` in gray, uint8 `[H, W]`: a gray file does not pass through three colors."""
    if isinstance(image, (str, os.PathLike)):
        return _decode(read_bytes(image), None, _to_gray)[0]
    return _to_gray(image)


def load_reduced(image, for_size: int | None = None) -> tuple[np.ndarray, int]:
    """`load_image`, and how often the image is smaller than the file says, along both axes: 1, 2, 4 or 8."""
    if isinstance(image, (str, os.PathLike)):
        image = read_bytes(image)
    return decode_reduced(image, for_size) if isinstance(image, bytes) else (as_bgr(image), 1)


def read_bytes(image) -> bytes:
    """The content of an image file. Raises ImageError for what is no regular file of a size within the limit."""
    try:
        status = os.stat(image)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise ImageError("is a folder, not an image" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{status.st_size} bytes: larger than the limit of {MAX_BYTES}")
        with open(image, "rb") as file:  # cv2.imread cannot open every path on every system
            return file.read(status.st_size)  # no more: some of /proc's files are regular, empty, and have no end
    except FileNotFoundError:
        raise ImageError("file not found") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise ImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def decode(data: bytes, for_size: int | None = None) -> np.ndarray:
    """Decode an image file's content: uint8 BGR `[H, W, 3]`, upright, transparency on white. Raises ImageError.

    for_size: a JPEG both of whose sides are at least four times that long comes at 1/2, 1/4 or 1/8 of its size, no side
    below twice `for_size` (unless a size that does not divide would shift it by a tenth of a pixel of the result). The
    low frequencies of its blocks give that directly, in a third of the time for a phone's photo; what
    `resize` then makes of it differs from the whole image's average by under one level of 255 in the mean (tests: photos).
    """
    return decode_reduced(data, for_size)[0]


def decode_reduced(data: bytes, for_size: int | None = None) -> tuple[np.ndarray, int]:
    """`decode`, and how often the image is smaller than the file says, along both axes: 1, 2, 4 or 8."""
    return _decode(data, for_size, _to_bgr)


def _decode(data, for_size, convert):
    if not data:
        raise ImageError("empty file")
    header = read_header(data)
    if header is None:
        raise ImageError("not an image (JPEG, PNG, WebP, BMP or TIFF)")
    if header.problem:
        raise ImageError(f"{header.problem} {header.format}")
    if header.width * header.height > MAX_PIXELS:
        raise ImageError(f"{header.width}x{header.height} pixels: larger than the limit of {MAX_PIXELS}")
    if header.scans > MAX_SCANS:
        raise ImageError(f"{header.scans} scans: more than the limit of {MAX_SCANS}")
    divisor, flags, pixels = 1, cv2.IMREAD_UNCHANGED, header.width * header.height
    if for_size and header.format == "JPEG":
        divisor = next((divisor for divisor in REDUCED
                        if all(side >= 2 * divisor * for_size and side >= 10 * (-side % divisor) * for_size
                               for side in (header.width, header.height))), 1)
    if divisor > 1:
        flags = REDUCED[divisor] | cv2.IMREAD_IGNORE_ORIENTATION
    if header.format == "PNG":
        data = png_pixels(data)
    with _room.take(pixels // divisor ** 2 if header.scans == 1 else pixels):
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error:
            image = None
        if image is None:
            raise ImageError(f"damaged or unsupported {header.format}")
        image = convert(image, header.premultiplied and image.dtype == np.uint8)
        return _upright(image, header.orientation), divisor


def as_bgr(array: np.ndarray) -> np.ndarray:
    """Anything `cv2.imread` may return -> uint8 BGR `[H, W, 3]`.

    Takes gray `[H, W]` or `[H, W, 1]`, BGR, or BGRA (put on white); uint8, uint16 (0..65535) or float (0..1).
    Raises ImageError for anything else, None included.
    """
    return _to_bgr(array, premultiplied=False)


def resize(image: np.ndarray, width: int, height: int | None = None) -> np.ndarray:
    """`[H, W, C]` -> `[height, width, C]` (height None: width), aspect ignored: area average along an axis that shrinks,
    bilinear along one that grows. (OpenCV's INTER_AREA averages only when both axes shrink, hence two steps.)
    """
    sides = width, height or width
    shrunk = min(image.shape[1], sides[0]), min(image.shape[0], sides[1])
    if shrunk != (image.shape[1], image.shape[0]):
        image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != sides:
        image = cv2.resize(image, sides, interpolation=cv2.INTER_LINEAR)
    return image


def fit_square(image: np.ndarray, size: int, fit: str = "squash") -> np.ndarray:
    """`[H, W, 3]` -> `[size, size, 3]`: the whole image as a network takes it.

    fit "squash": the aspect is ignored. "pad": the aspect is kept, the image is centered (see `fitted_sides`), and one color
    fills the rest: the median of its border. Raises ValueError for another `fit`.
    """
    width, height = fitted_sides(image.shape[1], image.shape[0], size, fit)
    image = resize(image, width, height)
    if (width, height) == (size, size):
        return image
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).T
    middle = width + height  # of twice as many: the median lies between two; np.median takes 0.1 ms
    low, high = np.partition(border, (middle - 1, middle))[:, middle - 1:middle + 1].T.tolist()
    color = [round((one + other) / 2) for one, other in zip(low, high)]
    left, top = (size - width) // 2, (size - height) // 2
    return cv2.copyMakeBorder(image, top, size - height - top, left, size - width - left, cv2.BORDER_CONSTANT,
                              value=color)


def fitted_sides(width: int, height: int, size: int, fit: str) -> tuple[int, int]:
    """(width, height) that an image has inside the result of `fit_square`, in pixels.

    A padded side differs from `size` by an even number, so that the padding is the same on both sides of the image: turned
    and padded is padded and turned.
    """
    if fit not in FITS:
        raise ValueError(f"fit {fit!r}: choose one of {', '.join(FITS)}")
    if fit == "squash":
        return size, size
    long = max(width, height)
    return tuple(max(2 - size % 2, size - 2 * round(size * (long - side) / (2 * long))) for side in (width, height))


def list_images(root, extensions=EXTENSIONS) -> list[str]:
    """Sorted POSIX paths, relative to `root`, of the image files below it, told by their extension, in lower case.

    Links are followed, loops are not; hidden files and folders (a leading dot) are skipped. Raises UserError when
    `root` is missing, is not a folder, it or a folder below it cannot be read, or links multiply.
    """
    found, waiting, ways = [], [(os.fspath(root), "", frozenset())], Counter()
    try:
        while waiting:
            folder, prefix, above = waiting.pop()
            status = os.stat(folder)
            identity = status.st_dev, status.st_ino
            if identity in above:
                continue
            ways[identity] += 1
            if ways[identity] > MAX_WAYS:
                raise UserError(f"{folder}: links lead to it in more than {MAX_WAYS} ways; take some of them away")
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    # isdir is False for a broken link, where entry.is_dir may raise; for all others no further stat is due
                    if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                        waiting.append((entry.path, f"{prefix}{entry.name}/", above | {identity}))
                    elif os.path.splitext(entry.name)[1].lower() in extensions:
                        found.append(prefix + entry.name)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such folder; check the path") from None
    except NotADirectoryError as error:
        raise UserError(f"{error.filename}: not a folder; give the folder that holds the images") from None
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from None
    return sorted(found)


def images_at(path) -> list[str]:
    """The images below a folder, as `list_images` finds them. Anything else, and a folder without images, is kept, so that
    it gets a result of its own."""
    below = [os.path.join(path, file) for file in list_images(path)] if os.path.isdir(path) else []
    return below or [path]


def available_cores() -> int:
    """Cores that this process may use: fewer than the machine's under `taskset`."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """One for each core that this process may use, at most 16."""
    return min(16, available_cores())


def map_ahead(function, items, ahead: int = 64, threads: int = 0):
    """Yield `function(item)` in the order of `items`, computed by a thread pool at most `ahead` items early.

    OpenCV decodes without Python's lock, so threads are enough; memory stays bounded for any number of files.
    `threads` 0: `default_threads()`.
    """
    with ThreadPoolExecutor(threads or default_threads()) as pool:
        waiting = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # the reader may stop early: a full queue is not worth waiting for
            for future in waiting:
                future.cancel()


def type_label(relative_path: str) -> str:
    """The document type of an image below a root: its folder's path; its own stem when it lies in the root."""
    path = PurePosixPath(relative_path)
    return path.stem if path.parent == PurePosixPath(".") else path.parent.as_posix()


def _to_bgr(array, premultiplied):
    if array is None:
        raise ImageError("no image (cv2.imread returns None for a file it cannot read)")
    if not isinstance(array, np.ndarray):
        raise ImageError(f"expected a path or an array as cv2.imread returns it, not {type(array).__name__}")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ImageError(f"array of shape {list(array.shape)}: expected [H, W], [H, W, 3] or [H, W, 4]")
    height, width, channels = array.shape
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{width}x{height} pixels: smaller than {MIN_SIDE}")
    if channels == 3 and array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    bgr = np.empty((height, width, 3), np.uint8)
    rows = max(1, BAND // width)
    for top in range(0, height, rows):
        band = _as_uint8(array[top:top + rows])
        if channels == 4:
            band = _on_white(band, premultiplied)
        bgr[top:top + rows] = np.repeat(band, 3, axis=2) if channels == 1 else band
    return bgr


def _to_gray(array, premultiplied=False):
    if isinstance(array, np.ndarray) and array.ndim == 2 and array.dtype == np.uint8 and min(array.shape) >= MIN_SIDE:
        return array
    return cv2.cvtColor(_to_bgr(array, premultiplied), cv2.COLOR_BGR2GRAY)


def _as_uint8(array):
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return np.rint(array * np.float32(1 / 257)).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # also refuses NaN
            raise ImageError("float pixels outside 0..1")
        return np.rint(array * 255).astype(np.uint8)
    raise ImageError(f"pixels of type {array.dtype}: expected uint8, uint16 or float")


def _on_white(bgra, premultiplied):
    color, alpha = bgra[:, :, :3].astype(np.uint16), bgra[:, :, 3:].astype(np.uint16)
    if not premultiplied:
        color = (color * alpha + 127) // 255  # 255 * 255 + 127 still fits
    return np.minimum(color + (255 - alpha), 255).astype(np.uint8)


def _upright(image, orientation):
    """Undo EXIF's orientation: 5 to 8 have rows and columns exchanged, the others are only mirrored."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
