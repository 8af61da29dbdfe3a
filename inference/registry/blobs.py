"""Pictures by their content: FOLDER/ab/<SHA-256 in hexadecimal>. A name says nothing that a user gave, so it cannot lead out
of the folder; the same picture lies there once; whoever reads one knows that it is whole."""
import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from .errors import Damaged, StoreFull
from .schema import FULL

NAME = re.compile("[0-9a-f]{64}")


def write_durably(path: Path, data: bytes, what: str) -> None:
    """Write a file that is whole or absent, and, when this returns, on the disk; in the place of one that is there. Several
    threads and processes may write the same one. Raises StoreFull, UserError."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        _sync(path.parent)
        for folder in list(path.parents)[:2]:  # may be new themselves, made by whichever process
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) not in _durable:
                _sync(folder.parent)
                _durable.add((status.st_dev, status.st_ino))
    except OSError as error:
        if error.errno in FULL:
            raise StoreFull(f"{path.parent}: no room on the disk for {what} of {len(data):,} bytes; nothing was changed; "
                            "make room, or move the store") from None
        raise UserError(f"{path.parent}: cannot be written ({error.strerror}); check its permissions") from None


_durable: set[tuple[int, int]] = set()  # folders whose names this process has seen to the disk: device and inode


def _sync(folder):
    """See that the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Blobs:
    """The pictures below `folder`, which is made when the first one comes. Several threads and processes may use it."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r}: not a SHA-256 in hexadecimal")
        return self.folder / name[:2] / name

    def put(self, data: bytes) -> str:
        """Its name. When this returns, the picture is on the disk: a kill or a power cut before that leaves a temporary file
        at most, which `sweep` takes away. Raises StoreFull."""
        name = hashlib.sha256(data).hexdigest()
        path = self.path(name)
        if path.exists() and self._intact(path, data):
            with contextlib.suppress(OSError):  # a picture that is put again is no orphan of long ago (`check`)
                os.utime(path)
            with contextlib.suppress(OSError):  # who put it there may be killed before they do so
                _sync(path.parent)
        else:
            write_durably(path, data, "an image")
        return name

    @staticmethod
    def _intact(path, data):
        try:
            return path.read_bytes() == data
        except OSError:
            return False

    def get(self, name: str) -> bytes:
        """Raises Damaged where the picture is missing or is not what was put there."""
        try:
            data = self.path(name).read_bytes()
        except OSError as error:
            raise Damaged(f"{self.path(name)}: a registered image cannot be read ({error.strerror}); restore it from a "
                          "backup, or remove its reference") from None
        if hashlib.sha256(data).hexdigest() != name:
            raise Damaged(f"{self.path(name)}: a registered image is damaged; restore it from a backup, or remove its "
                          "reference")
        return data

    def has(self, name: str) -> bool:
        return self.path(name).is_file()

    def delete(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def names(self) -> Iterator[str]:
        """Of all pictures that are there, in any order."""
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            if NAME.fullmatch(path.name):
                yield path.name

    def sweep(self, keep: set[str], older_than: float) -> list[str]:
        """Delete pictures not in `keep`, and temporary files, that were last written before `older_than` (since 1970);
        returns their names. Younger ones may belong to a transaction that is under way."""
        return swept((path for path in self.folder.glob("[0-9a-f][0-9a-f]/*") if path.name not in keep), older_than)


def swept(paths, older_than: float) -> list[str]:
    """Delete the files that were last written before `older_than`; returns their names."""
    names = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < older_than:
                path.unlink()
                names.append(path.name)
    return names
