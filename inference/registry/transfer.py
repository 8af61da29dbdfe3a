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
import os
import re
import stat
import time
import zipfile
from pathlib import Path

from ..errors import UserError, first_line, plural, printable
from ..files import replacing
from ..image import ImageError, list_images, map_ahead, type_label
from .archive import CHECKED, FORMAT, HEAD, MOST_REFERENCES, REFERENCES, UNREADABLE, Entry, checked, opened
from .errors import Busy, Invalid, Outdated
from .formats import EXTENSIONS, content_type
from .inputs import clean_label, clean_text, picture_of

SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp", "image/bmp": ".bmp", "image/tiff": ".tiff"}
AHEAD = 16  # pictures in memory at the same time, at most
PICTURES = """SELECT t.name, r.picture FROM reference r LEFT JOIN type t ON t.id = r.type
              WHERE r.collection = ? AND r.removed IS NULL"""
CONFLICTS = ("skip", "merge")


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
            head, entries = checked(name, stack.enter_context(opened(name, source)))
        except UNREADABLE as error:
            raise UserError(f"{name}: not a ZIP file, damaged or truncated ({first_line(error)}); {CHECKED}") from None
        return _register(registry, entries, head, os.path.basename(name), on_conflict, who, progress)


def _of_folder(folder):
    files = list_images(folder, EXTENSIONS)
    if not files:
        raise UserError(f"{folder}: no image in it; put an image of each type there")
    for file in files:
        path = os.path.join(folder, file)
        yield Entry(path, clean_label(type_label(file)), "type", None, 0, printable(os.path.basename(file))[-500:],
                    lambda path=path: picture_of(path))


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
            raise Busy(f"{origin}: a model or a setting was changed, or an image was deleted, while the images were "
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
    return (f"imported {plural(count, 'image')} and {len(new):,} new types from {origin}",
            dict(event=change.event, types=len(new), references=count, skipped=skipped))
