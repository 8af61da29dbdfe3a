"""Copies of a store while it is in use.

    backup("STORE", "BACKUPS/monday"); restore("BACKUPS/monday", "STORE")

A backup is a store itself. traffic.sqlite and the pictures of unknowns are in none: they are expendable.
"""
import contextlib
import os
import shutil
from collections import Counter
from pathlib import Path

import apsw

from ..errors import UserError
from ..files import replacing
from .blobs import Blobs
from .check import Report, check_features, check_models, database_problems
from .core import Store
from .errors import Busy, Damaged
from .files import DATABASE, is_store
from .schema import NEW_ID, checksummed, full_disk, open_database, translated


def backup(store, path, progress=None) -> dict:
    """Copy a store, a path or a `Store`, to the new folder `path`, while it is in use: the database as of one moment, the
    pictures that it refers to, the models. The folder is complete, on the disk and verified, or is not there.

    Pictures are hard links to those of the store where it lies on the same disk, or else to those of other backups beside
    `path`, and copies where neither can be. Answers {pictures, copied, linked, bytes: of what was copied}. Raises UserError.
    """
    source = Path(store.path if isinstance(store, Store) else store)
    target = Path(path)
    return _copy(source, target, [source, *(other for other in sorted(target.absolute().parent.glob("*"))
                                            if is_store(other))], progress)


def restore(path, store, progress=None) -> dict:
    """Make a store in the new folder `store` from a backup, which is verified. A store that is there stays as it is.
    Answers what `backup` does. Raises UserError."""
    return _copy(Path(path), Path(store), [], progress)


def _copy(source, target, beside, progress):
    """beside: stores whose pictures may be linked."""
    say = progress or (lambda line: None)
    if not is_store(source):
        raise UserError(f"{source}: no store there; give the folder that holds {DATABASE}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: is there already; give a new folder")
    counts = Counter(pictures=0, copied=0, linked=0, bytes=0)
    partial = target.with_name(f".{target.name}.partial")
    with full_disk(target):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            say("copying the database")
            _copy_database(source / DATABASE, partial / DATABASE)
            with contextlib.closing(open_database(partial / DATABASE)) as db:
                pictures = [row[0] for row in db.execute("SELECT sha256 FROM picture")]
                models = {row[0] for row in db.execute("SELECT hash FROM model WHERE state != 'retired'")}
                kept = {row[0] for row in db.execute("SELECT hash FROM model")}
                db.execute(f"UPDATE store SET id = ({NEW_ID})")  # what an engine knows of the one is not of the other
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            say(f"copying {len(pictures):,} pictures")
            for name in pictures:
                _copy_picture(source, Blobs(partial / "blobs"), name, beside, counts)
            (partial / "models").mkdir()
            for digest in sorted(kept):
                file = source / "models" / f"{digest}.onnx"
                if digest in models or file.exists():  # that of a retired one may have been deleted
                    shutil.copyfile(file, partial / "models" / file.name)
            say("verifying")
            with Store(partial) as made:
                report = Report()
                report.problems += database_problems(partial / DATABASE)
                check_models(made, report)
                check_features(made, report, False, say)
            # Missing or damaged vectors can be made again; the rest must be whole.
            if report.problems:
                raise Damaged(f"{source}: a copy would be damaged: {report.problems[0]}; docmetric check says more")
            if hasattr(os, "sync"):
                os.sync()
            if target.exists():
                target.rmdir()
            os.rename(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return dict(counts)


def _copy_database(source, target):
    """As of one moment, while others write."""
    with contextlib.closing(open_database(source)) as old, translated(target):
        with contextlib.closing(apsw.Connection(os.fspath(target), vfs=checksummed())) as new:
            with new.backup("main", old, "main") as copying:
                copying.step(-1)


def _copy_picture(source, target, name, beside, counts):
    place = target.path(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    counts["pictures"] += 1
    for other in beside:
        try:
            os.link(Blobs(other / "blobs").path(name), place)
        except OSError:  # is not there, or on another disk
            continue
        with contextlib.suppress(Damaged):
            target.get(name)
            counts["linked"] += 1
            return
        place.unlink()
    try:
        data = Blobs(source / "blobs").get(name)
    except Damaged:
        with contextlib.closing(open_database(source / DATABASE)) as db:
            if list(db.execute("SELECT 1 FROM picture WHERE sha256 = ?", (name,))):
                raise
        raise Busy(f"{source}: images were deleted for good while it was copied; try again") from None
    with replacing(place) as partial:
        partial.write_bytes(data)
    counts["copied"] += 1
    counts["bytes"] += len(data)
