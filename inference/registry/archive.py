"""A file of `transfer.export`, wherever it comes from: checked as a whole, and never unpacked to a disk."""
import hashlib
import json
import math
import os
import re
import stat
import struct
import zipfile
import zlib
from typing import NamedTuple

from ..errors import UserError, first_line, printable
from ..image import MAX_BYTES
from .errors import Invalid
from .inputs import checked_quad, clean_label, clean_text

FORMAT = 1
HEAD, REFERENCES = "registry.json", "references.jsonl"
MOST_REFERENCES = 300_000  # of a file; larger registries move by `docmetric backup`
MAX_HEAD = 64 << 20  # bytes of HEAD
MAX_LINE = 64 << 10  # of REFERENCES
MAX_NAMES = 128 << 20  # bytes of all names in a ZIP file
RATIO = 20  # a ZIP file unpacks to no more than so many times its size, and SPARE: pictures are compressed already
SPARE = 64 << 20
CHECKED = "it must be a file of docmetric export"
# What zipfile raises for bytes of any other form.
UNREADABLE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError)


class Entry(NamedTuple):
    """A picture that is to be registered: `name` says where it comes from, `read()` gives its bytes."""
    name: str
    label: str | None
    kind: str
    quad: list | None
    orientation: int
    source: str | None
    read: object


class _Bounded:
    """A file of which nobody reads more than MAX_NAMES at once. `zipfile` reads the list of names as a whole, and its size
    may stand in either of two places."""

    def __init__(self, name, file):
        self._name, self._file = name, file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size=-1):
        if size > MAX_NAMES:
            raise UserError(f"{self._name}: a directory of {size:,} bytes, more than the limit of {MAX_NAMES:,}; {CHECKED}")
        return self._file.read(size)


def opened(name, file):
    """A ZipFile whose list of names is of a bounded size, and which holds nothing but plain files with plain names."""
    size = file.seek(0, os.SEEK_END)
    archive = zipfile.ZipFile(_Bounded(name, file))
    try:
        seen, total = set(), 0
        for info in archive.infolist():
            shown = printable(info.orig_filename)[:80]
            parts = info.orig_filename.split("/")
            if (printable(info.orig_filename) != info.orig_filename or "\\" in info.orig_filename or ".." in parts
                    or info.orig_filename.startswith("/") or re.match("[A-Za-z]:", info.orig_filename)):
                raise UserError(f"{name}: holds the name {shown}, which could lead out of a folder; {CHECKED}")
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(f"{name}: {shown} is a link or no plain file; {CHECKED}")
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f"{name}: {shown} is encrypted, or compressed in an unusual way; {CHECKED}")
            if info.orig_filename in seen:
                raise UserError(f"{name}: holds {shown} twice; {CHECKED}")
            seen.add(info.orig_filename)
            total += info.file_size
        if total > RATIO * size + SPARE:
            raise UserError(f"{name}: {size:,} bytes that unpack to {total:,}, more than images do; {CHECKED}")
        if len(seen) > 2 * MOST_REFERENCES:
            raise UserError(f"{name}: {len(seen):,} files, more than the limit of {2 * MOST_REFERENCES:,}; {CHECKED}")
        for needed in (HEAD, REFERENCES):
            if needed not in seen:
                raise UserError(f"{name}: has no {needed}; {CHECKED} (a folder of images is given as a folder, unpacked)")
    except BaseException:
        archive.close()
        raise
    return archive


def checked(name, archive):
    """(the content of HEAD, [Entry]) of an export, all of it checked, the pictures too."""
    head = _head(name, _member(name, archive, HEAD, MAX_HEAD))
    entries, checked, members = [], {}, {info.orig_filename: info for info in archive.infolist()}
    with archive.open(REFERENCES) as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            where = f"{name}: {REFERENCES}, line {number}"
            if len(line) > MAX_LINE or number > MOST_REFERENCES:
                raise UserError(f"{where}: {'too long' if len(line) > MAX_LINE else 'too many lines'}; {CHECKED}")
            try:
                label, kind, picture, sha256, quad, orientation, source = _reference(_json(line))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError, UserError) as error:
                why = f" ({error})" if isinstance(error, UserError) else ""
                raise UserError(f"{where}: no reference{why}; {CHECKED}") from None
            if picture not in members:
                raise UserError(f"{where}: there is no {printable(picture)[:80]}; {CHECKED}")
            if picture not in checked:
                digest = hashlib.sha256()
                if members[picture].file_size > MAX_BYTES:
                    raise UserError(f"{name}: {picture}: larger than the limit of {MAX_BYTES:,} bytes")
                with archive.open(members[picture]) as content:
                    while block := content.read(1 << 20):
                        digest.update(block)
                checked[picture] = digest.hexdigest()
            if checked[picture] != sha256:
                raise UserError(f"{name}: {printable(picture)[:80]}: is not the image that was exported (its SHA-256 is "
                                "another one); export again")
            entries.append(Entry(f"{name}: {picture}", label, kind, quad, orientation, source,
                                 lambda picture=picture: _member(name, archive, picture, MAX_BYTES)))
    return head, entries


def _json(text):
    def refuse(word):
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)  # NaN is no JSON


def _head(name, content):
    try:
        head = _json(content)
        version = head["format"]
        if version != FORMAT:
            raise UserError(f"{name}: its format is {printable(version)[:20]}, this program reads {FORMAT}; install a newer "
                            "docmetric")
        threshold, digest = head.get("threshold"), head["model"]["hash"]
        types = {clean_label(one["label"]): one.get("threshold") for one in head["types"]}
        for value in (threshold, *types.values()):
            if not (value is None or type(value) in (int, float) and 0 <= value <= 1):
                raise ValueError
        return dict(threshold=threshold, model=digest, types=types)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, Invalid) as error:
        why = f" ({error})" if isinstance(error, Invalid) else ""
        raise UserError(f"{name}: {HEAD} is not one of this program{why}; {CHECKED}") from None


def _reference(row):
    """The columns of a line of REFERENCES. Raises what a line of any other form raises."""
    kind, picture, sha256, orientation = row["kind"], row["file"], row["sha256"], row.get("orientation", 0)
    if kind not in ("type", "unknown") or (row["label"] is None) != (kind == "unknown"):
        raise ValueError
    if not isinstance(picture, str) or not isinstance(sha256, str) or orientation not in (0, 90, 180, 270):
        raise ValueError
    quad = checked_quad(row.get("quad")) if row.get("found") is None else None  # what was found is found again
    if quad is not None and not all(math.isfinite(value) for corner in quad for value in corner):
        raise ValueError
    return (None if kind == "unknown" else clean_label(row["label"]), kind, picture, sha256, quad, orientation,
            clean_text(row.get("source"), "source"))


def _member(name, archive, member, most):
    try:
        with archive.open(member) as file:
            data = file.read(most + 1)
    except UNREADABLE as error:
        raise UserError(f"{name}: {printable(member)[:80]} is damaged ({first_line(error)}); {CHECKED}") from None
    if len(data) > most:
        raise UserError(f"{name}: {printable(member)[:80]}: larger than the limit of {most:,} bytes")
    return data
