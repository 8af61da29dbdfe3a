"""A folder of decoded images, uint8, in one file, mapped into memory by every process that reads them.

    FOLDER/256px-v1/pixels    4,096 bytes that begin with a line naming the file, then a row RGB [3,256,256] for each image
    FOLDER/256px-v1/index     the same line, then one for each file: [path, size, mtime_ns, row, or why it cannot be used]
    FOLDER/256px-v1/lock      held by the process that adds to them

A file is known by its absolute path, size and time of change, so a start only looks at those. One index serves all data of
a side, so a start reads all of its lines, the other data's too: about 2 us each, two seconds for a million images.
Pixels reach the disk before their line is written: what has a whole line is whole, and a build that was killed continues
after the last one. A cache that is damaged in any other way is built anew: nothing is in it that cannot be decoded again.
Its files are then new ones, so whoever still maps the old pixels keeps them.
Rows of files that changed or went stay until the folder is deleted, which is safe whenever no run is starting.
"""
import contextlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from inference.errors import UserError
from inference.files import replacing
from inference.image import ImageError, map_ahead

VERSION = 1         # of the files' form and of what a row holds; another version has folders of its own
HEADER = 4096       # bytes before the first row
AT_ONCE = 256       # images between two writes to the index: what a killed build has to do again
SHARE = 1 / 2       # of what is free on the disk: a build takes no more, since a home must not be full when it is done

log = logging.getLogger("docmetric")
write_through = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class CacheUnavailable(Exception):
    """There is no room for the cache, or no way to write it; the message says why. Images can still be decoded each time."""


def default_folder() -> Path:
    """${XDG_CACHE_HOME:-~/.cache}/docmetric. Raises CacheUnavailable where there is no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "docmetric"
    except RuntimeError:
        raise CacheUnavailable("no home folder to keep it in") from None


class ImageCache:
    """Resized images of one side, in `folder`/<side>px-v1. `decode(path)` gives uint8 `[3,side,side]` or raises ImageError.

    kind: what else tells apart the images that `decode` makes of a file, such as "pad"; it has a folder of its own.
    """

    def __init__(self, folder: Path, side: int, decode: Callable[[str], np.ndarray], kind: str = ""):
        self.folder = Path(folder) / "-".join(filter(None, (f"{side}px", kind, f"v{VERSION}")))
        self.pixels, self.index = self.folder / "pixels", self.folder / "index"
        self.side, self.decode, self.row_bytes = side, decode, 3 * side * side
        self.name = b'{"docmetric images": %d, "side": %d,' % (VERSION, side)  # a file that begins otherwise is not ours

    def open(self, paths: list[str], progress: bool = True) -> tuple[np.ndarray, dict[str, int | str]]:
        """(uint8 `[rows,3,side,side]`, mapped read-only; {path: its row, or why the file cannot be used}).

        Decodes what is new or changed. Of several processes that want to, one does while the others wait; a process that
        finds everything there waits for nobody. progress: whoever decodes shows a bar, if stderr is a terminal.
        Raises CacheUnavailable, and UserError for a folder that holds something else.
        """
        stamps, unread = _stamps(paths), {}
        try:
            self._read()
            if self._missing(stamps):
                self.folder.mkdir(parents=True, exist_ok=True)
                with self._locked():
                    if not self._read():
                        self._start()
                    if missing := self._missing(stamps):
                        unread = self._add(missing, progress)
                        self._read()
            return self.images, {path: stamp if isinstance(stamp, str) else unread.get(path) or self.known[path][2]
                                 for path, stamp in stamps.items()}
        except OSError as error:
            raise CacheUnavailable(f"{self.folder}: {error.strerror or error}") from None

    def _missing(self, stamps: dict) -> list[str]:
        return [path for path, stamp in stamps.items()
                if not isinstance(stamp, str) and self.known.get(path, ())[:2] != stamp]

    @contextlib.contextmanager
    def _locked(self):
        try:
            import fcntl
        except ImportError:  # on Windows; only here, as everything else works there
            raise CacheUnavailable(f"{self.folder}: this system has no file locks (fcntl) to fill it under") from None
        with open(self.folder / "lock", "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info(f"waiting for another process, which is filling the image cache {self.folder}")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _read(self) -> bool:
        """Take `images`, mapped; `known` {path: (size, mtime_ns, row or reason)}; and where the index's whole lines `end`.

        False where there is no cache, or a damaged one: then there are no images.
        """
        shape = 0, 3, self.side, self.side
        self.images, self.known, self.end, known = np.empty(shape, np.uint8), {}, 0, {}
        try:
            index = self.index.read_bytes()
            end = index.rfind(b"\n") + 1  # a killed build may have left part of a line behind it
            header, *lines = index[:end].splitlines()
            with open(self.pixels, "rb") as pixels:
                if not header.startswith(self.name) or not pixels.read(HEADER).startswith(header + b"\n"):
                    return False
                rows = (os.fstat(pixels.fileno()).st_size - HEADER) // self.row_bytes
                images = np.asarray(np.memmap(pixels, np.uint8, "r", HEADER, (rows, *shape[1:]))) if rows else self.images
            for path, size, mtime, row in map(json.loads, lines):
                if type(row) is not str and not (type(row) is int and 0 <= row < rows):
                    return False
                known[path] = size, mtime, row
        except (FileNotFoundError, ValueError, TypeError, RecursionError):  # the others: of a damaged line
            return False
        self.images, self.known, self.end = images, known, end
        return True

    def _start(self) -> None:
        """New files without images, in place of damaged ones."""
        damaged = [file for file in (self.pixels, self.index) if file.exists()]
        for file in damaged:
            with open(file, "rb") as opened:
                if opened.read(len(self.name)) not in (self.name, b""):
                    raise UserError(f"{file}: not an image cache of this project; delete it, or name another folder with "
                                    "cache=FOLDER (cache=false: none)")
        if damaged:
            log.warning(f"image cache {self.folder}: damaged; it is built anew")
        header = self.name + b' "id": "%s"}\n' % uuid.uuid4().hex.encode()
        try:
            for file, content in ((self.pixels, header.ljust(HEADER, b"\0")), (self.index, header)):
                with replacing(file) as partial, open(partial, "wb") as opened:
                    opened.write(content)
                    opened.flush()
                    os.fsync(opened.fileno())
        except UserError as error:
            raise CacheUnavailable(str(error)) from None
        self.end = len(header)

    def _add(self, paths: list[str], progress: bool) -> dict[str, str]:
        """Decode `paths` into new rows. Returns {path: reason} of those that could not be read at all: they may be readable
        the next time, so it is not written down."""
        needed, free = len(paths) * self.row_bytes, shutil.disk_usage(self.folder).free
        if needed > SHARE * free:
            raise CacheUnavailable(f"{self.folder} has {size_text(free)} free, of which a cache takes at most half: too "
                                   f"little for {size_text(needed)}")
        log.info(f"image cache {self.folder}: decoding {len(paths):,} images, {size_text(needed)}")

        def look(path):
            """(stamp, pixels or reason, whether the reason is one of the moment)"""
            stamp = _stamp(path)
            try:
                return stamp, self.decode(path), False
            except ImageError as error:
                return stamp, str(error), isinstance(error.__context__, OSError)

        # The bar says what the log may not: of several ranks any may decode, and only the first one's log is shown.
        looked = tqdm(map_ahead(look, paths), f"image cache, {size_text(needed)}: decoding", len(paths), unit="img",
                      disable=None if progress else True)
        unread, lines = {}, []
        row = 1 + max((row for *_, row in self.known.values() if isinstance(row, int)), default=-1)
        with open(self.pixels, "r+b") as pixels, open(self.index, "r+b") as index:
            pixels.seek(HEADER + row * self.row_bytes)
            index.seek(self.end)  # over the part of a line that a killed build left there
            for number, (path, (stamp, image, for_now)) in enumerate(zip(paths, looked), 1):
                if for_now or isinstance(stamp, str):
                    unread[path] = image if for_now else stamp
                elif isinstance(image, str):
                    lines.append([path, *stamp, image])
                else:
                    lines.append([path, *stamp, row])
                    pixels.write(image.data)
                    row += 1
                if number % AT_ONCE == 0 or number == len(paths):
                    pixels.flush()
                    write_through(pixels.fileno())
                    index.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))  # ASCII, whatever the names
                    index.flush()
                    lines.clear()
        return unread


def size_text(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def _stamp(path: str) -> tuple[int, int] | str:
    try:
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    except FileNotFoundError:
        return "file not found"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _stamps(paths: list[str]) -> dict[str, tuple[int, int] | str]:
    parts = (paths[start:start + 1024] for start in range(0, len(paths), 1024))  # threads: a network's disk answers slowly
    return {path: stamp for part in map_ahead(lambda part: [(path, _stamp(path)) for path in part], parts)
            for path, stamp in part}
