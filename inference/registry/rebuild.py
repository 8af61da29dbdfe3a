"""What can be saved of a store whose database is damaged: a new one with the rows that can be read of it."""
import contextlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import apsw

from ..errors import UserError, printable
from ..header import read_header
from ..model import load_model
from .blobs import Blobs
from .errors import Busy, Damaged
from .files import DATABASE
from .graph import graph_hash
from .schema import TABLES, checksummed, full_disk, open_database, transaction, translated
from .tables import NO_TABLES, tables_of
from .wal import replay, wal_damage

SALVAGED = ("collection", "model", "type", "reference", "feature", "threshold", "look_alike", "event", "api_key")
GIVE_UP = 20_000  # rows in a row that cannot be read, after which the rest of a table counts as lost
STOP = "stop everything that uses the store, and try again"


def salvage(folder, report):
    """A new database with what can be read of the damaged one."""
    path = folder / DATABASE
    try:
        # No more than SQLite itself, which looks who has it open before it looks at a page.
        with contextlib.closing(apsw.Connection(os.fspath(path))) as db:
            db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)  # the log stays as it is
            db.set_busy_timeout(2000)
            db.pragma("locking_mode", "exclusive")
            db.execute("BEGIN IMMEDIATE")
    except apsw.BusyError:
        raise Busy(f"{path}: is in use; {STOP}") from None
    except apsw.Error:
        pass  # as damaged as that
    with tempfile.TemporaryDirectory(prefix=".rebuild-", dir=folder) as work, full_disk(folder):
        old, new = Path(work, "old.sqlite"), Path(work, DATABASE)
        _copy_readable(path, old)
        if os.path.exists(f"{path}-wal"):
            shutil.copyfile(f"{path}-wal", f"{old}-wal")
            if wal_damage(f"{old}-wal"):
                _replay(path, old, report)
        with contextlib.ExitStack() as stack:
            target = stack.enter_context(contextlib.closing(open_database(new, create=TABLES)))
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            db = stack.enter_context(contextlib.closing(_readable(old, new)))
            target.pragma("foreign_keys", False)
            made = target.total_changes()
            with translated(new), transaction(target):
                for table in SALVAGED:
                    _copy_rows(db, target, table, report)
                if target.total_changes() == made:
                    raise Damaged(f"{path}: nothing of it can be read; restore a backup")
                _mend(target, folder, report)
            target.pragma("foreign_keys", True)
            left = list(target.execute("PRAGMA foreign_key_check"))
            if left:
                raise Damaged(f"{path}: what can be read of it does not fit together; restore a backup")
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{path}{suffix}", f"{path}.damaged-{stamp}{suffix}")
        os.replace(new, path)
    report.repaired.append(f"{path}: what could be read is in a new one; the damaged file is {path.name}.damaged-{stamp}")


def _copy_readable(path, copy):
    """A copy with zeros where the disk gives nothing."""
    with open(path, "rb") as file, open(copy, "wb") as out:
        size = os.fstat(file.fileno()).st_size
        for start in range(0, size, 1 << 16):
            try:
                file.seek(start)
                block = file.read(1 << 16)
            except OSError:
                block = bytes(min(1 << 16, size - start))
            out.write(block)


def _replay(path, old, report):
    """The damaged log of a copy into the copy."""
    mended, damaged = replay(f"{old}-wal", old)
    os.unlink(f"{old}-wal")
    if mended:
        report.repaired.append(f"{path}: {mended:,} flipped bits of its log were flipped back")
    if damaged:
        report.problems.append(f"{path}: {damaged:,} pages of its log are damaged; what was on them is unsure, or lost")


def _readable(old, fresh):
    """A connection to the copy of a damaged database. Its schema says where each table begins: the same for every database
    that this version makes, so that of a fresh one can take its place."""
    for attempt in ("as it is", "fresh schema", "without log"):
        if attempt == "fresh schema":
            with contextlib.closing(apsw.Connection(os.fspath(fresh))) as db:
                places = [number for number, in db.execute("SELECT pageno FROM dbstat WHERE name = 'sqlite_schema'")]
            content = bytearray(fresh.read_bytes())
            size = int.from_bytes(content[16:18], "big")
            with open(old, "r+b") as file:
                there = os.fstat(file.fileno()).st_size // size
                content[28:32] = max(there, len(content) // size).to_bytes(4, "big")
                content[32:40] = bytes(8)  # no list of free pages
                for number in {*places, *range(there + 1, len(content) // size + 1)}:  # empty tables where there was none
                    file.seek((number - 1) * size)
                    file.write(content[(number - 1) * size:number * size])
        if attempt == "without log":
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{old}-wal")
        db = apsw.Connection(os.fspath(old), vfs=checksummed())
        try:
            if attempt != "as it is":
                db.execute("PRAGMA checksum_verification = OFF")
            if {row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")} >= set(SALVAGED):
                return db
        except (apsw.Error, ValueError):
            pass
        db.close()
    raise Damaged(f"{old.parent.parent / DATABASE}: nothing of it can be read; restore a backup")


def _copy_rows(db, target, table, report):
    """The rows of a table, in ever smaller parts where some cannot be read; those on damaged pages, where they make sense,
    in a second round without checksums."""
    columns = [row[1] for row in target.execute(f"PRAGMA table_info({table})")]
    columns = columns if "id" in columns else ["rowid", *columns]
    names = ", ".join(columns)
    insert = f"INSERT OR IGNORE INTO {table}({names}) VALUES ({', '.join('?' * len(columns))})"
    failed, unsure, dropped = [], 0, 0

    def read(low, high):
        """Inserts what can be read, row by row; the ranges that cannot are added to `failed`."""
        nonlocal dropped
        waiting, hopeless = [(low, high)], 0
        while waiting and hopeless < GIVE_UP:
            low, high = waiting.pop()
            try:
                rows = db.execute(f"SELECT {names} FROM {table} WHERE rowid BETWEEN ? AND ?", (low, high)).fetchall()
            except (apsw.Error, ValueError):  # ValueError: a text that is no UTF-8
                if low == high:
                    failed.append(low)
                    hopeless += 1
                    continue
                middle = (low + high) // 2
                waiting += [(middle + 1, high), (low, middle)]
                continue
            hopeless = 0 if rows else hopeless
            for row in rows:
                try:
                    target.execute(insert, row)
                except apsw.Error:
                    dropped += 1
        return hopeless >= GIVE_UP

    try:
        last = next(db.execute(f"SELECT max(rowid) FROM {table}"))[0] or 0
    except apsw.Error:
        last = 2 * GIVE_UP
    for low in range(1, last + 1, 1000):
        if read(low, min(low + 999, last)):
            break
    if failed:
        db.execute("PRAGMA checksum_verification = OFF")
        again, failed[:] = list(failed), []
        before = target.total_changes()
        for number in again:
            read(number, number)
        unsure = target.total_changes() - before
        db.execute("PRAGMA checksum_verification = ON")
    if unsure:
        report.problems.append(f"{unsure:,} rows of {table} come from damaged pages: look whether they are right")
    if dropped:
        report.problems.append(f"{dropped:,} rows of {table} made no sense and were dropped")


def _mend(db, folder, report):
    """What else must be there so that the rows fit together."""
    def lost(kind, number):
        report.problems.append(f"{kind} {number}: its row was lost")

    now = time.time()
    for table, column, otherwise in (("reference", "quad", None), ("reference", "quality", None), ("event", "changes", "[]"),
                                     ("event", "result", "{}")):
        db.execute(f"UPDATE {table} SET {column} = ? WHERE {column} IS NOT NULL AND NOT json_valid({column})", (otherwise,))
    for table, column, otherwise in (("type", "name", "'recovered ' || id"), ("reference", "source", "NULL"),
                                     ("reference", "who", "NULL"), ("event", "who", "NULL"), ("event", "text", "''")):
        bad = [(number,) for number, text in db.execute(f"SELECT id, {column} FROM {table} WHERE {column} IS NOT NULL")
               if printable(text) != text]
        db.executemany(f"UPDATE {table} SET {column} = {otherwise} WHERE id = ?", bad)
    for table in ("model", "type", "reference", "threshold", "event"):
        for number, in list(db.execute(f"SELECT DISTINCT collection FROM {table} WHERE collection NOT IN "
                                       "(SELECT id FROM collection)")):
            db.execute("INSERT INTO collection(id, name, find, orientation, created) VALUES (?, ?, 'auto', 'upright', ?)",
                       (number, f"recovered-{number}", now))
            lost("collection", number)
    labels = {}
    for text, in db.execute("SELECT result FROM event"):
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            result = json.loads(text)
            for one in (result, *(result.get("references") or ())):
                if isinstance(one, dict) and one.get("type") and one.get("label"):
                    labels[one["type"]] = one["label"]
    for number, collection in list(db.execute("SELECT DISTINCT type, collection FROM reference WHERE type IS NOT NULL AND "
                                              "type NOT IN (SELECT id FROM type) GROUP BY type")):
        taken = list(db.execute("SELECT 1 FROM type WHERE collection = ? AND name = ? AND removed IS NULL",
                                (collection, labels.get(number))))
        name = labels[number] if number in labels and not taken else f"recovered {number}"
        db.execute("INSERT INTO type(id, collection, name, created) VALUES (?, ?, ?, ?)", (number, collection, name, now))
        lost("type", number)
    blobs = Blobs(folder / "blobs")
    for name, in list(db.execute("SELECT DISTINCT picture FROM reference")):
        data = b""
        with contextlib.suppress(UserError, ValueError):
            data = blobs.get(name)
        header = read_header(data)
        db.execute("INSERT INTO picture VALUES (?, ?, ?, ?)",
                   (name, len(data), header.width if header else 0, header.height if header else 0))
    _mend_models(db, folder, now, lost)
    db.execute("UPDATE event SET undoes = NULL WHERE undoes NOT IN (SELECT id FROM event)")
    db.execute("UPDATE event SET undone_by = NULL WHERE undone_by NOT IN (SELECT id FROM event)")
    for table, column, parent in (("feature", "reference", "reference"), ("feature", "model", "model"),
                                  ("look_alike", "reference", "reference"), ("look_alike", "other", "reference"),
                                  ("look_alike", "model", "model"), ("threshold", "model", "model"),
                                  ("threshold", "type", "type")):
        db.execute(f"DELETE FROM {table} WHERE {column} IS NOT NULL AND {column} NOT IN (SELECT id FROM {parent})")
    # Everyone reads everything again: events that were lost may have said less.
    last, = next(db.execute("SELECT coalesce(max(id), 0) FROM event"))
    for table in ("collection", "model", "type", "reference", "threshold"):
        db.execute(f"UPDATE {table} SET changed = min(changed, ?)", (last,))


def _mend_models(db, folder, now, lost):
    """Each collection needs an active model: the newest that it has, or one of the files. Thresholds that were lost are
    those of the model's file, which may be another collection's."""
    for number, digest in list(db.execute("SELECT id, hash FROM model WHERE NOT json_valid(tables)")):
        db.execute("UPDATE model SET tables = ? WHERE id = ?", (_tables_in(folder / "models" / f"{digest}.onnx"), number))
        lost("the thresholds of model", number)
    for collection, in list(db.execute("SELECT id FROM collection WHERE id NOT IN (SELECT collection FROM model "
                                       "WHERE state = 'active')")):
        found = list(db.execute("SELECT id FROM model WHERE collection = ? ORDER BY state = 'ready' DESC, id DESC",
                                (collection,)))
        made = list(db.execute("SELECT f.model, count(*) FROM feature f JOIN reference r ON r.id = f.reference "
                               "WHERE r.collection = ? AND f.model NOT IN (SELECT id FROM model) GROUP BY f.model "
                               "ORDER BY count(*) DESC", (collection,)))
        files = [path for path in sorted((folder / "models").glob("*.onnx")) if _is_whole(path)]
        if found:
            db.execute("UPDATE model SET state = 'active' WHERE id = ?", found[0])
            lost("the active model of collection", collection)
        elif files:
            # Vectors are made again unless it is surely the model that made them.
            number = made[0][0] if made and len(files) == 1 else next(db.execute(
                "SELECT coalesce(max(id), 0) + 1 + (SELECT coalesce(max(model), 0) FROM feature) FROM model"))[0]
            db.execute("INSERT INTO model(id, collection, hash, name, state, tables, created) "
                       "VALUES (?, ?, ?, ?, 'active', ?, ?)",
                       (number, collection, files[0].stem, "recovered", _tables_in(files[0]), now))
            lost("the model of collection", collection)
        else:
            raise Damaged(f"{folder / 'models'}: no model is left there; copy one from a backup")


def _tables_in(path):
    try:
        return tables_of(load_model(path, threads=1))
    except UserError:
        return NO_TABLES


def _is_whole(path):
    try:
        return graph_hash(path) == path.stem
    except UserError:
        return False
