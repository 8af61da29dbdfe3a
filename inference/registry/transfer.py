"""A collection as one ZIP file, and back; and folders of reference images.

    registry.export("types.zip")
    registry.import_("types.zip")            # or a folder: DIR/TYPE/*.jpg, DIR/TYPE.jpg

The file can be unpacked and looked at:

    registry.json        {format, collection, find, orientation, margin, threshold, model, types: [{label, threshold}]}
    references.jsonl     a line for each reference: {label, kind, file, sha256, quad, found, orientation, source, who,
                         created}
    types/LABEL/7.jpg    its picture, as it was registered; each picture is there once for each of its references
    unknown/9.jpg        pictures of known unknowns

Vectors are not in it: whoever imports it embeds the pictures with a model of their own. What is imported is one event. A
file that comes from elsewhere is checked as a whole before anything is registered, and never unpacked to a disk.
"""
import contextlib
import hashlib
import json
import math
import os
import re
import stat
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, first_line, printable
from ..files import replacing
from ..image import MAX_BYTES, ImageError, list_images, map_ahead, read_bytes, type_label
from .errors import Busy, Invalid, Outdated
from .formats import content_type
from .inputs import checked_quad, clean_label, clean_text

FORMAT = 1
HEAD, REFERENCES = "registry.json", "references.jsonl"
SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp", "image/bmp": ".bmp", "image/tiff": ".tiff"}
MOST_REFERENCES = 300_000  # of a file; larger registries move by `docmetric backup`
MAX_HEAD = 64 << 20  # bytes of HEAD
MAX_LINE = 64 << 10  # of REFERENCES
MAX_NAMES = 128 << 20  # bytes of all names in a ZIP file
AHEAD = 16  # pictures in memory at the same time, at most
RATIO = 20  # a ZIP file unpacks to no more than so many times its size, and SPARE: pictures are compressed already
SPARE = 64 << 20
CHECKED = "it must be a file of docmetric export"
PICTURES = """SELECT t.name, r.picture FROM reference r LEFT JOIN type t ON t.id = r.type
              WHERE r.collection = ? AND r.removed IS NULL"""
CONFLICTS = ("skip", "merge")
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


# ---- export ----

def export(registry, target) -> dict:
    """Write a collection, without what was removed, to `target`, a path or a binary file: {types, references, bytes}.
    Memory: one picture, and some 500 bytes for each. A path is complete or stays as it was. Raises UserError, Damaged."""
    with registry.store.reading() as db:  # all of one state
        head = dict(format=FORMAT, collection=registry.name)
        head |= dict(zip(("find", "orientation", "margin"), next(db.execute(
            "SELECT find, orientation, margin FROM collection WHERE id = ?", (registry.id,)))))
        model, digest, name = next(db.execute("SELECT id, hash, name FROM model WHERE collection = ? AND state = 'active'",
                                              (registry.id,)))
        given = dict(db.execute("SELECT type, value FROM threshold WHERE model = ? AND removed IS NULL", (model,)))
        types = dict(db.execute("SELECT id, name FROM type WHERE collection = ? AND removed IS NULL ORDER BY id",
                                (registry.id,)))
        rows = db.execute("SELECT id, type, kind, picture, quad, found, orientation, source, who, created FROM reference "
                          "WHERE collection = ? AND removed IS NULL ORDER BY id", (registry.id,)).fetchall()
    head |= dict(threshold=given.get(None), model=dict(hash=digest, name=name),
                 types=[dict(label=label, threshold=given.get(number)) for number, label in types.items()])
    if len(rows) > MOST_REFERENCES:
        raise UserError(f"collection {registry.name}: {len(rows):,} references are more than the {MOST_REFERENCES:,} that "
                        "an export may have; move the store with docmetric backup")
    with contextlib.ExitStack() as stack:
        if isinstance(target, (str, os.PathLike)):
            target = stack.enter_context(open(stack.enter_context(replacing(target)), "wb"))
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            lines = []
            for number, kind_of, kind, picture, quad, found, orientation, source, who, created in rows:
                data = registry.store.blobs.get(picture)
                folder = "unknown" if kind_of is None else f"types/{folder_of(types[kind_of])}"
                file = f"{folder}/{number}{SUFFIXES.get(content_type(data), '')}"
                archive.writestr(_info(file), data)
                lines.append(json.dumps(dict(
                    label=types.get(kind_of), kind=kind, file=file, sha256=picture, quad=json.loads(quad) if quad else None,
                    found=found, orientation=orientation, source=source, who=who, created=created), ensure_ascii=False))
            archive.writestr(_info(REFERENCES), "".join(line + "\n" for line in lines).encode())
            archive.writestr(_info(HEAD), json.dumps(head, ensure_ascii=False, indent=1).encode())
        size = target.tell()
    return dict(types=len(types), references=len(rows), bytes=size)


def _info(name):
    """Without a date, so that the same registry gives the same file."""
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info


def folder_of(label: str) -> str:
    """A label as the name of a folder on any system: %2F for / and the like, 200 bytes at most."""
    name = re.sub(r'[<>:"/\\|?*%]|^[. ]|[. ]$', lambda found: f"%{ord(found[0]):02X}", label)
    return name.encode()[:200].decode(errors="ignore")


# ---- import ----

def import_(registry, source, on_conflict: str = "skip", who: str | None = None, progress=None) -> dict:
    """Register what `source` holds, as one event: a ZIP file of `export` (a path, or a binary file that can seek), or a
    folder of images, in which each folder is a type, and each image that lies in no folder.

    on_conflict: a type that is there already stays as it is ("skip"), or gets those references that it does not have
    ("merge"). Thresholds come along where the model is the same and the type is new (that of all types: where the collection
    has none). Settings of the collection stay. progress: called with the number of pictures done.

    Answers {event (None: there was nothing to do), types: new ones, references: new ones, skipped}. Memory: a few pictures,
    and some KB for each reference. Raises UserError, in one line, for anything that is not as it should be; then nothing was
    changed.
    """
    if on_conflict not in CONFLICTS:
        raise Invalid(f"on_conflict {printable(on_conflict)[:40]}: must be {' or '.join(CONFLICTS)}")
    if isinstance(source, (str, os.PathLike)) and os.path.isdir(source):
        if os.path.exists(os.path.join(source, HEAD)):
            raise UserError(f"{source}: is a file of docmetric export, unpacked; give the ZIP file")
        return _register(registry, _of_folder(source), {}, f"folder {Path(source).name}", on_conflict, who, progress)
    name = printable(source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", None) or "the file")[:200]
    with contextlib.ExitStack() as stack:
        try:
            if isinstance(source, (str, os.PathLike)):
                if not os.path.isfile(source):
                    raise UserError(f"{name}: no such file; give a file of docmetric export, or a folder of images")
                source = stack.enter_context(open(source, "rb"))
            archive = stack.enter_context(_opened(name, source))
            head, entries = _checked(name, archive)
        except UNREADABLE as error:
            raise UserError(f"{name}: not a ZIP file, damaged or truncated ({first_line(error)}); {CHECKED}") from None
        return _register(registry, entries, head, os.path.basename(name), on_conflict, who, progress)


def _of_folder(folder):
    files = list_images(folder)
    if not files:
        raise UserError(f"{folder}: no image in it; put an image of each type there")
    for file in files:
        path = os.path.join(folder, file)
        yield Entry(path, clean_label(type_label(file)), "type", None, 0, printable(os.path.basename(file))[-500:],
                    lambda path=path: read_bytes(path))


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


def _opened(name, file):
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
            raise UserError(f"{name}: {size:,} bytes that unpack to {total:,}, more than pictures do; {CHECKED}")
        if len(seen) > 2 * MOST_REFERENCES:
            raise UserError(f"{name}: {len(seen):,} files, more than the limit of {2 * MOST_REFERENCES:,}; {CHECKED}")
        for needed in (HEAD, REFERENCES):
            if needed not in seen:
                raise UserError(f"{name}: has no {needed}; {CHECKED} (a folder of images is given as a folder, unpacked)")
    except BaseException:
        archive.close()
        raise
    return archive


def _checked(name, archive):
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
                raise UserError(f"{name}: {printable(picture)[:80]}: is not the picture that was exported (its SHA-256 is "
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


class _Nothing(Exception):
    """There is nothing to register: all of `skipped` entries are there already."""

    def __init__(self, skipped):
        super().__init__()
        self.skipped = skipped


def _register(registry, entries, head, origin, on_conflict, who, progress):
    who, began = clean_text(who, "who"), time.time()
    with registry.store.pictures() as put:
        wanted, skipped = _embedded(registry, entries, on_conflict, put, progress)
        try:
            return registry.mutate("import", lambda change: _inserted(
                registry, change, wanted, skipped, head, origin, on_conflict, who), who)
        except _Nothing as nothing:
            return dict(event=None, types=0, references=0, skipped=nothing.skipped)
        except Outdated:
            raise Busy(f"{origin}: a model or a setting was changed, or a picture was deleted, while the pictures were "
                       f"embedded, {time.time() - began:.0f} s; import it again") from None


def _embedded(registry, entries, on_conflict, put, progress):
    """([(Entry, Prepared without its data, name of its picture)], number of entries that are there already)"""
    there, have = set(registry.labels), set(registry.store.read(PICTURES, (registry.id,)))
    wanted, skipped = [], 0

    def ready(entry):  # None: there is nothing to do
        if entry.label in there and on_conflict == "skip":
            return None
        try:
            data = entry.read()
            if (entry.label, hashlib.sha256(data).hexdigest()) in have:
                return None
            prepared = registry.prepare(data, entry.quad, entry.orientation)
        except ImageError as error:
            raise ImageError(f"{entry.name}: {error}") from None
        return entry, prepared._replace(data=b""), put(prepared.data)

    for done, one in enumerate(map_ahead(ready, entries, ahead=AHEAD, threads=registry.store.threads), 1):
        if one is None or (one[0].label, one[2]) in have:
            skipped += 1
        else:
            have.add((one[0].label, one[2]))
            wanted.append(one)
        if progress:
            progress(done)
    return wanted, skipped


def _inserted(registry, change, wanted, skipped, head, origin, on_conflict, who):
    """As the body of `mutate`: (a line about what was done, the answer)."""
    db = change.db
    old = {row[0] for row in db.execute("SELECT name FROM type WHERE collection = ? AND removed IS NULL", (registry.id,))}
    present = set(db.execute(PICTURES, (registry.id,)))
    (empty,), = db.execute("SELECT NOT EXISTS (SELECT 1 FROM reference WHERE collection = ? AND removed IS NULL)",
                           (registry.id,))
    new, count = {}, 0
    for entry, prepared, sha256 in wanted:
        # Someone may have registered the same in the meantime.
        if entry.label in old and on_conflict == "skip" or (entry.label, sha256) in present:
            skipped += 1
            continue
        number = None
        if entry.label is not None:
            number, made = registry.type_named(change, entry.label)
            if made:
                new[entry.label] = number
        registry.insert(change, prepared, sha256, number, entry.kind, entry.source or origin, who, ())
        count += 1
    for label in head.get("types", ()):
        if label not in old and label not in new:
            new[label] = registry.type_named(change, label)[0]
    if not count and not new:
        raise _Nothing(skipped)
    (model, digest), = db.execute("SELECT id, hash FROM model WHERE collection = ? AND state = 'active'", (registry.id,))
    if digest == head.get("model"):
        values = {new[label]: value for label, value in head["types"].items() if label in new and value is not None}
        if empty and not old and head["threshold"] is not None and not list(db.execute(
                "SELECT 1 FROM threshold WHERE model = ? AND type IS NULL AND removed IS NULL", (model,))):
            values[None] = head["threshold"]
        for number, value in values.items():
            change.insert("threshold", collection=registry.id, model=model, type=number, value=value, source="imported")
    return (f"imported {count:,} pictures and {len(new):,} new types from {origin}",
            dict(event=change.event, types=len(new), references=count, skipped=skipped))
