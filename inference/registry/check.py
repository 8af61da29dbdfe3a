"""Whether a store is whole, what can be saved of one that is not, and copies of it while it is in use.

    report = check("STORE")                  # database, vectors, models, pictures
    report = check("STORE", rebuild=True)    # vectors again from the pictures; what can be read of a broken database
    backup("STORE", "BACKUPS/monday"); restore("BACKUPS/monday", "STORE")

A backup is a store itself. traffic.sqlite and the pictures of unknowns are in none of this: they are expendable.
"""
import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

import apsw

from ..errors import UserError, first_line, printable
from ..files import replacing
from ..header import read_header
from ..model import load_model
from .blobs import Blobs, swept
from .core import Store
from .errors import Busy, Damaged, StoreFull
from .files import DATABASE, is_store
from .graph import graph_hash
from .schema import NEW_ID, TABLES, checksummed, open_database, transaction, translated
from .store import Change
from .tables import NO_TABLES, tables_of
from .wal import page_is_whole, replay, wal_damage

ORPHAN = 3600  # seconds after which a file without a row belongs to no transaction under way
SHOWN = 20  # problems of one kind that are told one by one
LOST = "lost"  # folder of a store for pictures whose references were lost
SALVAGED = ("collection", "model", "type", "reference", "feature", "threshold", "look_alike", "event", "api_key")
GIVE_UP = 20_000  # rows in a row that cannot be read, after which the rest of a table counts as lost
STOP = "stop everything that uses the store, and try again"


# ---- check ----

def check(store, rebuild: bool = False, progress=None) -> dict:
    """Look at everything in a store, a path or a `Store`.

    Answers {ok, problems: lines, repaired: lines, swept: files that nothing refers to and that were deleted, collections,
    types, references, pictures, features, models}. ok: there are no problems, or all of them were repaired.

    rebuild: vectors that are missing or damaged are made again from the pictures. Where the database itself is damaged, its
    readable rows move to a new one, and the damaged file stays beside it; nothing else may use the store then. Pictures and
    models cannot be made again: restore them from a backup. progress: called with a line for each step. Raises UserError
    where there is no store.
    """
    path = Path(store.path if isinstance(store, Store) else store)
    if not is_store(path):
        raise UserError(f"{path}: no store there; give the folder that holds {DATABASE}")
    report, say = _Report(), progress or (lambda line: None)
    say("reading the database")
    broken = _database_problems(path / DATABASE)
    if broken:
        report.add("database", broken, repaired=rebuild)
        if not rebuild:
            return report.result()
        say("saving what can be read of the database")
        _salvage(path, report)
    with contextlib.ExitStack() as stack:
        store = store if isinstance(store, Store) and not broken else stack.enter_context(Store(path))
        _check_models(store, report)
        say("reading vectors")
        _check_features(store, report, rebuild, say)
        say("reading pictures")
        _check_pictures(store, report, bool(broken))
        for name, where in (("collections", "collection"), ("types", "type WHERE removed IS NULL"),
                            ("references", "reference WHERE removed IS NULL"), ("pictures", "picture"),
                            ("features", "feature"), ("models", "model")):
            report.counts[name] = store.read(f"SELECT count(*) FROM {where}")[0][0]
    return report.result()


class _Report:
    def __init__(self):
        self.problems, self.repaired, self.swept, self.counts, self._open = [], [], [], {}, 0

    def add(self, what: str, lines: list[str], repaired: bool = False):
        """Problems of one kind."""
        shown = [printable(line) for line in lines[:SHOWN]]
        if len(lines) > SHOWN:
            shown.append(f"{what}: {len(lines) - SHOWN:,} more of this kind")
        (self.repaired if repaired else self.problems).extend(shown)

    def result(self):
        return dict(ok=not self.problems, problems=self.problems, repaired=self.repaired, swept=self.swept) | self.counts


def _database_problems(path) -> list[str]:
    """What is wrong with the file, as SQLite and its checksums say: of pages, of the log, of references between tables."""
    if damage := wal_damage(f"{path}-wal"):  # also where others have it open, who go on until they read there
        return [f"{path}: {damage}"]
    try:
        with contextlib.closing(open_database(path)) as db, translated(path):
            found = [row[0] for row in db.execute("PRAGMA integrity_check(20)")]
            problems = [f"{path}: {first_line(line)}" for line in found if line != "ok"]
            rows = list(db.execute("PRAGMA foreign_key_check"))
            return problems + [f"{path}: row {row} of {table} refers to a {parent} that is not there"
                               for table, row, parent, _ in rows[:SHOWN]]
    except UserError as error:
        if isinstance(error, Damaged) or not page_is_whole(path):  # or else it is a database of another program or version
            return [str(error)]
        raise


def _check_models(store, report):
    missing = []
    for digest, tables, name, collection in store.read("""SELECT m.hash, m.tables, m.name, c.name FROM model m
            JOIN collection c ON c.id = m.collection WHERE m.state != 'retired'"""):
        path = store.model_path(digest)
        try:
            if graph_hash(path) != digest:
                missing.append(f"{path}: model {name} of collection {collection} is damaged; restore it from a backup")
            else:
                store.model(digest, tables)  # that it runs
        except UserError as error:
            missing.append(f"model {name} of collection {collection}: {error}")
    report.add("models", missing)


def _check_features(store, report, rebuild, say):
    """Vectors that are damaged, or are not there for a reference that counts."""
    usable = {}  # id of a model: bytes of a vector
    for number, digest in store.read("SELECT id, hash FROM model"):
        with contextlib.suppress(UserError):  # has been told
            usable[number] = 4 * store.model(digest).embedding_size
    bad = []  # (reference, model, why)
    with store.reading() as db:
        rows = db.execute("SELECT reference, model, parts, vectors, crc32 FROM feature")
        for reference, model, parts, vectors, crc in rows:
            if zlib.crc32(vectors) != crc or len(vectors) != parts * usable.get(model, len(vectors) / max(parts, 1)):
                bad.append((reference, model, "are damaged"))
        bad += [(*row, "are missing") for row in db.execute("""
            SELECT r.id, m.id FROM reference r JOIN model m ON m.collection = r.collection
            WHERE r.removed IS NULL AND m.state IN ('active', 'ready')
            AND NOT EXISTS (SELECT 1 FROM feature f WHERE f.model = m.id AND f.reference = r.id)""")]
    failed, done = [], []
    if rebuild and bad:  # a registry does not open with damaged ones
        with store.write() as db:
            db.executemany("DELETE FROM feature WHERE reference = ? AND model = ?", [entry[:2] for entry in bad])
    for collection, in store.read("SELECT name FROM collection") if rebuild and bad else ():
        registry = store.collection(collection)
        mine = {row[0] for row in store.read("SELECT id FROM reference WHERE collection = ?", (registry.id,))}
        made = []
        for reference, model, why in (entry for entry in bad if entry[0] in mine):
            line = f"reference {reference} of collection {collection}: its vectors {why}"
            try:
                made.append((reference, model, registry.features_of(reference, model)))
                done.append(line)
            except (UserError, KeyError) as error:
                failed.append(f"{line}, and cannot be made again: {error}")
            if len(made) % 1000 == 0:
                say(f"made {len(made):,} of {len(bad):,} vectors again")
        if made:
            with store.write() as db:
                change = Change(db, registry.id, "check", None, None, None)
                for reference, model, vectors in made:
                    registry.write_feature(db, reference, model, vectors)
                    db.execute("UPDATE reference SET changed = ? WHERE id = ?", (change.event, reference))
                change.finish(f"made the vectors of {len(made):,} references again", {})
    report.add("vectors", done, repaired=True)
    report.add("vectors", failed if rebuild else [
        f"reference {reference}: its vectors {why}; docmetric check --rebuild makes them" for reference, _, why in bad])


def _check_pictures(store, report, salvaged):
    """Each picture against its name; then pictures and models that nothing refers to."""
    uses = {}
    for name, number in store.read("SELECT picture, id FROM reference WHERE removed IS NULL ORDER BY id"):
        uses.setdefault(name, number)
    bad = []
    for name, size in store.read("SELECT sha256, bytes FROM picture"):
        try:
            store.blobs.get(name)
        except (Damaged, ValueError) as error:
            whose = f"reference {uses[name]}" if name in uses else "a removed reference"
            bad.append(f"{whose}: {error}")
    report.add("pictures", bad)
    with store.write() as db:  # whoever registers one of these now, waits
        keep = {row[0] for row in db.execute("SELECT sha256 FROM picture")}
        if salvaged:
            lost = [name for name in store.blobs.names() if name not in keep]
            (store.path / LOST).mkdir(exist_ok=True)
            for name in lost:
                os.replace(store.blobs.path(name), store.path / LOST / name)
            if lost:
                report.add("pictures", [f"{len(lost):,} pictures have lost their references; they lie in "
                                        f"{store.path / LOST}: register them again"])
        old, folder = time.time() - ORPHAN, store.path / "models"
        used = {row[0] for row in db.execute("SELECT hash FROM model")}
        unused = [] if salvaged else [path for path in folder.glob("*.onnx") if path.stem not in used]
        report.swept = store.blobs.sweep(keep, old) + swept([*folder.glob(".*.partial"), *unused], old)


# ---- saving what can be read ----

def _salvage(folder, report):
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
    def lines(kind, numbers):
        report.problems.extend(f"{kind} {number}: its row was lost" for number in numbers[:SHOWN])

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
            lines("collection", [number])
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
        lines("type", [number])
    blobs = Blobs(folder / "blobs")
    for name, in list(db.execute("SELECT DISTINCT picture FROM reference")):
        data = b""
        with contextlib.suppress(UserError, ValueError):
            data = blobs.get(name)
        header = read_header(data)
        db.execute("INSERT INTO picture VALUES (?, ?, ?, ?)",
                   (name, len(data), header.width if header else 0, header.height if header else 0))
    _mend_models(db, folder, now, lines)
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


def _mend_models(db, folder, now, lines):
    """Each collection needs an active model: the newest that it has, or one of the files. Thresholds that were lost are
    those of the model's file, which may be another collection's."""
    for number, digest in list(db.execute("SELECT id, hash FROM model WHERE NOT json_valid(tables)")):
        db.execute("UPDATE model SET tables = ? WHERE id = ?", (_tables_in(folder / "models" / f"{digest}.onnx"), number))
        lines("the thresholds of model", [number])
    for collection, in list(db.execute("SELECT id FROM collection WHERE id NOT IN (SELECT collection FROM model "
                                       "WHERE state = 'active')")):
        found = list(db.execute("SELECT id FROM model WHERE collection = ? ORDER BY state = 'ready' DESC, id DESC",
                                (collection,)))
        lost = list(db.execute("SELECT f.model, count(*) FROM feature f JOIN reference r ON r.id = f.reference "
                               "WHERE r.collection = ? AND f.model NOT IN (SELECT id FROM model) GROUP BY f.model "
                               "ORDER BY count(*) DESC", (collection,)))
        files = [path for path in sorted((folder / "models").glob("*.onnx")) if _is_whole(path)]
        if found:
            db.execute("UPDATE model SET state = 'active' WHERE id = ?", found[0])
            lines("the active model of collection", [collection])
        elif files:
            # Vectors are made again unless it is surely the model that made them.
            number = lost[0][0] if lost and len(files) == 1 else next(db.execute(
                "SELECT coalesce(max(id), 0) + 1 + (SELECT coalesce(max(model), 0) FROM feature) FROM model"))[0]
            db.execute("INSERT INTO model(id, collection, hash, name, state, tables, created) "
                       "VALUES (?, ?, ?, ?, 'active', ?, ?)",
                       (number, collection, files[0].stem, "recovered", _tables_in(files[0]), now))
            lines("the model of collection", [collection])
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


# ---- copies ----

@contextlib.contextmanager
def full_disk(path):
    """What the system says of files below `path`, as ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreFull(f"{path}: no room on the disk; make room, or choose another disk") from None
        raise UserError(f"{path}: cannot be written ({error.strerror}); check its permissions") from None


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
                report = _Report()
                report.problems += _database_problems(partial / DATABASE)
                _check_models(made, report)
                _check_features(made, report, False, say)
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
        raise Busy(f"{source}: pictures were deleted for good while it was copied; try again") from None
    with replacing(place) as partial:
        partial.write_bytes(data)
    counts["copied"] += 1
    counts["bytes"] += len(data)
