"""The databases of a store: how they are opened, and what tables registry.sqlite has.

SQLite comes with `apsw`, whatever Python was built with: releases 3.7.0 to 3.51.2 can corrupt a database in WAL mode
(https://sqlite.org/wal.html#walresetbug). Every page carries a checksum (https://sqlite.org/cksumvfs.html), and what is read
from the log is verified (layer.py): a flipped bit on the disk is an error and never an answer. Times are seconds since 1970.
"""
import contextlib
import errno
import os
import re
import threading

import apsw

from ..errors import UserError, first_line
from .errors import Busy, Damaged, StoreFull
from .layer import LogDamaged, VerifiedLogs

LEAST_SQLITE = "3.51.3"
APPLICATION = 0x444D5247  # "DMRG", in the header of registry.sqlite
VERSION = 2
WAITS = 30_000  # milliseconds for another process's transaction
CHECKSUM = 8  # bytes of each page
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, the size that a file may have
NETWORK = ("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "afs", "9p", "ceph", "lustre", "glusterfs", "beegfs", "gpfs",
           "orangefs", "vboxsf", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.juicefs",
           "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse")
NEW_ID = "SELECT lower(hex(randomblob(16)))"  # of a store: a copy of one is another
CHECK = "docmetric check STORE says more, and docmetric check STORE --rebuild saves what can be saved"

# Rows that are deleted for good have ids that are never given again: events speak of them.
TABLES = """
CREATE TABLE collection(
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, find TEXT NOT NULL, orientation TEXT NOT NULL, margin REAL,
    created REAL NOT NULL, changed INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE model(
    id INTEGER PRIMARY KEY, collection INTEGER NOT NULL REFERENCES collection(id), hash TEXT NOT NULL, name TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('building', 'ready', 'active', 'retired')), created REAL NOT NULL,
    tables TEXT NOT NULL, -- of thresholds, see tables.py
    changed INTEGER NOT NULL DEFAULT 0, UNIQUE (collection, hash)) STRICT;
CREATE UNIQUE INDEX one_active_model ON model(collection) WHERE state = 'active';
CREATE TABLE type(
    id INTEGER PRIMARY KEY AUTOINCREMENT, collection INTEGER NOT NULL REFERENCES collection(id), name TEXT NOT NULL,
    created REAL NOT NULL, removed REAL, changed INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE UNIQUE INDEX one_type_of_a_name ON type(collection, name) WHERE removed IS NULL;
CREATE INDEX type_of_collection ON type(collection, id);
CREATE INDEX changed_type ON type(collection, changed);
CREATE TABLE picture(
    sha256 TEXT PRIMARY KEY, bytes INTEGER NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE reference(
    id INTEGER PRIMARY KEY AUTOINCREMENT, collection INTEGER NOT NULL REFERENCES collection(id),
    type INTEGER REFERENCES type(id),
    kind TEXT NOT NULL CHECK (kind IN ('type', 'unknown')), picture TEXT NOT NULL REFERENCES picture(sha256),
    quad TEXT, found REAL, orientation INTEGER NOT NULL DEFAULT 0, quality TEXT, source TEXT, who TEXT,
    created REAL NOT NULL, removed REAL, changed INTEGER NOT NULL DEFAULT 0,
    CHECK ((kind = 'unknown') = (type IS NULL))) STRICT;
CREATE INDEX changed_reference ON reference(collection, changed);
CREATE INDEX reference_of_type ON reference(type, id);
CREATE INDEX reference_of_collection ON reference(collection, id);
CREATE INDEX reference_of_picture ON reference(picture, collection);
CREATE TABLE feature(
    reference INTEGER NOT NULL REFERENCES reference(id), model INTEGER NOT NULL REFERENCES model(id), parts INTEGER NOT NULL,
    vectors BLOB NOT NULL, crc32 INTEGER NOT NULL, UNIQUE (model, reference)) STRICT;
CREATE INDEX feature_of_reference ON feature(reference);
CREATE TABLE threshold(
    id INTEGER PRIMARY KEY AUTOINCREMENT, collection INTEGER NOT NULL REFERENCES collection(id),
    model INTEGER NOT NULL REFERENCES model(id), type INTEGER REFERENCES type(id), value REAL NOT NULL, source TEXT NOT NULL,
    created REAL NOT NULL, removed REAL, changed INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE look_alike(
    id INTEGER PRIMARY KEY, model INTEGER NOT NULL REFERENCES model(id), reference INTEGER NOT NULL REFERENCES reference(id),
    other INTEGER NOT NULL REFERENCES reference(id), score REAL NOT NULL) STRICT;
CREATE INDEX look_alike_of_model ON look_alike(model, score);
CREATE INDEX look_alike_of_reference ON look_alike(reference);
CREATE INDEX look_alike_of_other ON look_alike(other);
CREATE TABLE event(
    id INTEGER PRIMARY KEY AUTOINCREMENT, collection INTEGER NOT NULL REFERENCES collection(id), created REAL NOT NULL,
    who TEXT, what TEXT NOT NULL, text TEXT NOT NULL, changes TEXT NOT NULL, result TEXT NOT NULL, key TEXT, request TEXT,
    undoes INTEGER REFERENCES event(id), undone_by INTEGER REFERENCES event(id)) STRICT;
CREATE UNIQUE INDEX one_event_of_a_key ON event(collection, key) WHERE key IS NOT NULL;
CREATE INDEX event_of_collection ON event(collection, id);
CREATE INDEX undone_event ON event(undone_by) WHERE undone_by IS NOT NULL;
CREATE TABLE api_key(
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, hash BLOB NOT NULL, scopes TEXT NOT NULL, collections TEXT,
    created REAL NOT NULL, expires REAL, revoked REAL) STRICT;
CREATE TABLE store(id TEXT NOT NULL) STRICT;
""" + "INSERT INTO store " + NEW_ID + ";"


class Database(apsw.Connection):
    def close(self, force: bool = False) -> None:
        """A damaged log stays where it is; the next one to open the database is told."""
        with contextlib.suppress(LogDamaged):
            super().close(force)


def open_database(path, *, create: str = "", application: int = APPLICATION, version: int = VERSION
                  ) -> apsw.Connection:
    """A connection to the database at `path`, in WAL mode, that one thread at a time may use. A commit is on the disk when
    it returns: only so is a log that a power cut left known from a damaged one (`wal.wal_damage`).

    create: the SQL of its tables where there is no such file yet; "": then it is a UserError. application, version: what the
    header of the file must say. Raises UserError, Damaged, StoreFull, Busy.
    """
    check_sqlite(apsw.sqlite_lib_version())
    with translated(path):
        flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
        db = Database(os.fspath(path), flags=flags, vfs=checksummed())
        try:
            # What is found to be another's file, or damaged, is left as it is: also its -wal.
            db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
            db.set_busy_timeout(WAITS)
            if create:
                _make(db, create, application, version)
            found = db.pragma("application_id"), db.pragma("user_version")
            if found[0] != application:
                raise UserError(f"{path}: not a database of this program; give the folder of a store")
            if found[1] != version:
                raise UserError(f"{path}: its format is {found[1]}, this program reads {version}; install the docmetric "
                                "that wrote it, or a newer one")
            if db.reserve_bytes() != CHECKSUM:  # this byte of the header says whether there are checksums, so it has none
                raise Damaged(f"{path}: its pages have no checksums; {CHECK}")
            db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, False)
            db.pragma("synchronous", "FULL")
            db.pragma("foreign_keys", True)
            db.pragma("trusted_schema", False)
            db.pragma("cell_size_check", True)
            db.pragma("journal_size_limit", 64 << 20)
            db.pragma("secure_delete", True)  # of what is deleted for good nothing stays in the file
        except BaseException as error:
            full = is_full(db, error)
            db.close()
            if full:
                raise apsw.FullError(str(error)) from None
            raise
    return db


def _make(db, tables, application, version):
    """The tables, where the file has none yet. Several processes may come at the same time, or be killed at any moment."""
    if db.pragma("application_id") == application:
        return
    if db.pragma("page_count") == 0:
        with contextlib.suppress(apsw.BusyError):  # another process is at it
            db.reserve_bytes(reserve=CHECKSUM)
            db.pragma("journal_mode", "wal")
    with transaction(db):
        if db.pragma("page_count") > 1 or db.pragma("application_id") or db.pragma("user_version"):
            return  # another process was faster, or it is another program's file
        db.execute(tables)
        db.pragma("application_id", application)
        db.pragma("user_version", version)
    with contextlib.suppress(apsw.BusyError):  # so that the tables do not hang on the log
        db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)


@contextlib.contextmanager
def transaction(db: apsw.Connection):
    """A transaction that holds the right to write from its beginning."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException as error:
        full = is_full(db, error)
        if db.in_transaction:
            db.execute("ROLLBACK")
        if full:
            raise apsw.FullError(str(error)) from None
        raise


def is_full(db: apsw.Connection, error: BaseException) -> bool:
    """Whether a quota, or the size that a file may have, is used up: SQLite knows the full disk alone."""
    return isinstance(error, apsw.IOError) and db.system_errno in FULL


@contextlib.contextmanager
def translated(path):
    """SQLite's errors as ours, which name the file."""
    try:
        yield
    except (apsw.CorruptError, apsw.NotADBError, apsw.SchemaChangeError, apsw.FormatError) as error:
        raise Damaged(f"{path}: damaged ({first_line(error)}); {CHECK}") from None
    except apsw.FullError:
        raise StoreFull(f"{path}: no room on the disk; nothing was changed; make room, or move the store") from None
    except (apsw.BusyError, apsw.LockedError, apsw.ProtocolError):
        raise Busy(f"{path}: another process has been writing for {WAITS // 1000} s; try again") from None
    except apsw.CantOpenError:
        raise UserError(f"{path}: no such database, or it cannot be opened; check the path and its permissions") from None
    except (apsw.ReadOnlyError, apsw.PermissionsError, apsw.AuthError):
        raise UserError(f"{path}: cannot be written; check the permissions of its folder") from None
    except apsw.ConnectionClosedError:
        raise UserError(f"{path}: was closed; open the store again") from None
    except LogDamaged as error:
        raise Damaged(f"{path}: {error}; {CHECK}") from None
    except apsw.IOError as error:
        if error.extendedresult == apsw.SQLITE_IOERR_DATA:
            raise Damaged(f"{path}: a page has not the checksum it was written with; {CHECK}") from None
        raise Damaged(f"{path}: cannot be read or written ({first_line(error)}); check the disk; {CHECK}") from None
    except UnicodeDecodeError:  # of a text in a row
        raise Damaged(f"{path}: damaged (a text that is no UTF-8); {CHECK}") from None
    except apsw.SQLError as error:  # a table of ours is not there, or not as we made it
        raise Damaged(f"{path}: damaged ({first_line(error)}); {CHECK}") from None


@contextlib.contextmanager
def full_disk(path):
    """What the system says of files below `path`, as ours."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StoreFull(f"{path}: no room on the disk; make room, or choose another disk") from None
        raise UserError(f"{path}: cannot be written ({error.strerror}); check its permissions") from None


def check_sqlite(version: str) -> None:
    """Raises UserError for an SQLite that can corrupt a database."""
    if [int(part) for part in version.split(".")] < [int(part) for part in LEAST_SQLITE.split(".")]:
        raise UserError(f"SQLite {version} can corrupt a store; install apsw {LEAST_SQLITE} or newer: pip install -U apsw")


def check_local(folder, mounts: str = "/proc/self/mounts") -> None:
    """Raises UserError where `folder` is on a network file system: several machines would not see each other's locks, and
    the memory that WAL mode shares is not shared there. Says nothing where the system has no such list."""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            rows = [line.split(" ") for line in file]
    except OSError:
        return
    real = os.path.realpath(folder)
    kind, longest = "", -1
    for row in rows:
        # A blank, a tab, a line break and a backslash are written as three octal digits.
        place = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), row[1])
        if (real == place or real.startswith(place.rstrip("/") + "/")) and len(place) >= longest:
            kind, longest = row[2], len(place)
    if kind in NETWORK:
        raise UserError(f"{folder}: on a network disk ({kind}), where SQLite cannot keep it whole; put the store on a local "
                        "disk, and let others use it through docmetric serve")


_layer, _layering = None, threading.Lock()


def checksummed() -> str:
    """The name of the file layer with checksums. What wrote pages without them would leave wrong ones in them."""
    global _layer
    with _layering:
        if _layer is None:
            try:
                import apsw.sqlite_extra
                with contextlib.closing(apsw.Connection(":memory:")) as memory:
                    apsw.sqlite_extra.load(memory, "cksumvfs")  # stays for the whole process
            except Exception as error:  # whatever way it is missing
                raise UserError(f"this apsw has no checksums for pages ({first_line(error)}); install that of PyPI: pip "
                                "install --force-reinstall apsw") from None
            _layer = VerifiedLogs(__name__, "cksmvfs")
    return __name__
