"""A folder of decoded images: squares of uint8 pixels in one file, mapped into memory by every process that reads them.

    FOLDER/256px-v1/pixels    4,096 bytes that begin with a line naming the file, then a row RGB [3,256,256] for each image
    FOLDER/256px-v1/index     the same line, then one for each file: [path, size, mtime_ns, row, or why it cannot be used]
    FOLDER/256px-v1/lock      held by the process that adds to them

A file is known by its absolute path, size and time of change, so a start only looks at those. One index serves all data of
a side, so a start reads all of its lines, the other data's too: about 2 us each, two seconds for a million images.
Pixels reach the disk before their line is written: what has a line is whole, and a build that was killed goes on where it
was. Nothing is ever changed in place but by appending; a damaged file is replaced by a new one, so whoever still maps the
old one keeps it.
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
    """The squares of one side, in `folder`/<side>px-v1. `decode(path)` gives uint8 `[3,side,side]` or raises ImageError."""

    def __init__(self, folder: Path, side: int, decode: Callable[[str], np.ndarray]):
        self.folder, self.side, self.decode = Path(folder) / f"{side}px-v{VERSION}", side, decode
        self.row_bytes = 3 * side * side
        self.header, self.known, self.sound = b"", {}, False

    def open(self, paths: list[str], progress: bool = True) -> tuple[np.ndarray, dict[str, int | str]]:
        """(uint8 `[rows,3,side,side]`, mapped read-only; {path: its row, or why the file cannot be used}).

        Decodes what is new or changed. Of several processes that want to, one does while the others wait; a process that
        finds everything there waits for nobody. progress: whoever decodes shows a bar, if stderr is a terminal.
        Raises CacheUnavailable, and UserError for a folder that holds something else.
        """
        stamps = _stamps(paths)
        unread = {}  # a file that cannot be read now may be readable the next time, so it is not written down
        try:
            self._read()
            if self._missing(stamps):
                self.folder.mkdir(parents=True, exist_ok=True)
                with self._locked():
                    self._read()
                    if not self.sound:
                        self._repair()
                    unread = self._add(self._missing(stamps), progress)
            return self._map(), {path: stamp if isinstance(stamp, str) else unread.get(path) or self.known[path][2]
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

    def _read(self) -> None:
        """Take `known` {path: (size, mtime_ns, row or reason)} from the index: its whole lines whose row is there.

        Unless it is `sound`, it is missing, torn, or has lines that are not true, and must be repaired before it grows.
        """
        self.header, self.known, self.sound = b"", {}, False
        try:
            lines = (self.folder / "index").read_bytes().split(b"\n")
            with open(self.folder / "pixels", "rb") as pixels:
                beginning = pixels.read(HEADER)
                rows = (os.fstat(pixels.fileno()).st_size - HEADER) // self.row_bytes
        except FileNotFoundError:
            return
        self.header, torn = lines[0], lines[-1]
        if not self.header.startswith(self._name()) or not beginning.startswith(self.header + b"\n"):
            return
        self.sound = len(lines) > 1 and not torn
        for line in lines[1:-1]:
            try:
                path, size, mtime, row = json.loads(line)
                if type(row) is not str and not (type(row) is int and 0 <= row < rows):
                    raise ValueError
                self.known[path] = size, mtime, row
            except (ValueError, TypeError, RecursionError):  # of a damaged line
                self.sound = False

    def _repair(self) -> None:
        """Make both files anew, or the index alone where the pixels belong to it."""
        beginnings = [_beginning(self.folder / name) for name in ("pixels", "index")]
        for name, beginning in zip(("pixels", "index"), beginnings):
            if beginning and not beginning.startswith(self._name()):
                raise UserError(f"{self.folder / name}: not an image cache of this project; delete it, or name another "
                                "folder with cache=FOLDER (cache=false: none)")
        whole = self.header.startswith(self._name()) and beginnings[0].startswith(self.header + b"\n")
        if any(beginnings):
            log.warning(f"image cache {self.folder}: stopped while it was written, or damaged; "
                        + (f"{len(self.known):,} of its files need not be read again" if whole else "it is built anew"))
        if not whole:
            self.known, self.header = {}, self._name() + b' "id": "%s"}' % uuid.uuid4().hex.encode()
            _replace(self.folder / "pixels", (self.header + b"\n").ljust(HEADER, b"\0"))
        lines = (_line(path, *entry) for path, entry in self.known.items())
        _replace(self.folder / "index", self.header + b"\n" + b"".join(lines))

    def _add(self, paths: list[str], progress: bool) -> dict[str, str]:
        """Decode `paths` into new rows. Returns {path: reason} of those that could not be read at all."""
        if not paths:
            return {}
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

        unread, lines = {}, []
        row = 1 + max((row for *_, row in self.known.values() if isinstance(row, int)), default=-1)
        with open(self.folder / "pixels", "r+b") as pixels, open(self.folder / "index", "ab") as index:
            def write_down():
                pixels.flush()
                write_through(pixels.fileno())
                index.write(b"".join(lines))
                index.flush()
                lines.clear()

            pixels.seek(HEADER + row * self.row_bytes)
            # The bar says what the log may not: of several ranks any may decode, and only the first one's log is shown.
            looked = tqdm(map_ahead(look, paths), f"image cache, {size_text(needed)}: decoding", len(paths), unit="img",
                          disable=None if progress else True)
            for path, (stamp, square, for_now) in zip(paths, looked):
                if for_now or isinstance(stamp, str):
                    unread[path] = square if for_now else stamp
                    continue
                entry = *stamp, square if isinstance(square, str) else row
                if not isinstance(square, str):
                    pixels.write(square.data)
                    row += 1
                self.known[path] = entry
                lines.append(_line(path, *entry))
                if len(lines) == AT_ONCE:
                    write_down()
            write_down()
        return unread

    def _map(self) -> np.ndarray:
        with open(self.folder / "pixels", "rb") as pixels:
            if not pixels.read(HEADER).startswith(self.header + b"\n"):
                raise UserError(f"{self.folder}: was replaced while this run started; start it again")
            rows = (os.fstat(pixels.fileno()).st_size - HEADER) // self.row_bytes
            shape = rows, 3, self.side, self.side
            return np.asarray(np.memmap(pixels, np.uint8, "r", HEADER, shape)) if rows else np.empty(shape, np.uint8)

    def _name(self) -> bytes:
        return b'{"docmetric images": %d, "side": %d,' % (VERSION, self.side)


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


def _line(path: str, size: int, mtime: int, row: int | str) -> bytes:
    return json.dumps([path, size, mtime, row]).encode() + b"\n"  # ASCII: what is no text in a file's name is escaped


def _beginning(file: Path) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read(HEADER)
    except FileNotFoundError:
        return b""


def _replace(file: Path, content: bytes) -> None:
    new = file.with_name(file.name + ".new")
    with open(new, "wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    new.replace(file)
