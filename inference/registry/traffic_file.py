"""traffic.sqlite beside the registry, the pictures of unknowns, and the thread that writes both; see `traffic.py`."""
import logging
import os
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from pathlib import Path

import apsw

from ..errors import UserError, first_line
from .blobs import Blobs
from .errors import Damaged, NotFound
from .schema import open_database, transaction, translated

APPLICATION, VERSION = 0x444D5452, 1  # "DMTR"
KEEP_DECISIONS = 100_000
KEEP_PICTURES, KEEP_BYTES = 20_000, 2 << 30  # of unknowns; the oldest go first
EVERY = .5        # seconds between two writes
IDLE = 10.0       # seconds without anything to do after which the writing thread ends
SWEEP = 60.0      # seconds between two looks for what has expired
WAITS = 5_000     # milliseconds for another process's transaction
WAITING, WAITING_BYTES = 20_000, 64 << 20  # that wait to be written, at most: decisions (the oldest are dropped), pictures

TABLES = """
CREATE TABLE decision(
    row INTEGER PRIMARY KEY, id INTEGER NOT NULL UNIQUE, collection INTEGER NOT NULL, created REAL NOT NULL,
    model TEXT NOT NULL, event INTEGER NOT NULL, best INTEGER, score REAL, second INTEGER, second_score REAL, label TEXT,
    reason TEXT NOT NULL, threshold REAL, margin REAL, correct INTEGER, right TEXT) STRICT;
CREATE INDEX decision_of_collection ON decision(collection, row);
CREATE INDEX feedback ON decision(collection, row) WHERE correct IS NOT NULL;
CREATE TABLE unknown(
    id INTEGER PRIMARY KEY AUTOINCREMENT, collection INTEGER NOT NULL, decision INTEGER NOT NULL, created REAL NOT NULL,
    expires REAL NOT NULL, picture TEXT NOT NULL, bytes INTEGER NOT NULL, seen INTEGER NOT NULL DEFAULT 1, quad TEXT,
    score REAL, model TEXT NOT NULL, parts INTEGER NOT NULL, vectors BLOB NOT NULL, turned BLOB,
    UNIQUE (collection, picture)) STRICT;
CREATE INDEX unknown_picture ON unknown(picture);
CREATE INDEX unknown_expires ON unknown(expires);
CREATE TABLE dismissed(
    collection INTEGER NOT NULL, picture TEXT NOT NULL, expires REAL NOT NULL, PRIMARY KEY (collection, picture))
    STRICT, WITHOUT ROWID;
CREATE TABLE settled(collection INTEGER PRIMARY KEY, reference INTEGER NOT NULL) STRICT;
"""
log = logging.getLogger("docmetric")

_files, _files_lock = weakref.WeakValueDictionary(), threading.Lock()


def file_of(folder):
    """One for each store and process, whatever number of collections: it has a thread and a connection."""
    key = os.path.realpath(folder), os.getpid()
    with _files_lock:
        file = _files.get(key)
        if file is None:
            file = _files[key] = TrafficFile(folder)
        return file


class TrafficFile:
    """traffic.sqlite and the pictures of unknowns of a store, and the thread that writes them.

    Losing all of it does no harm, so what is damaged is moved aside and made anew, and what cannot be written is dropped,
    with a line in the log, one a minute.
    """

    def __init__(self, folder):
        self.path = Path(folder) / "traffic.sqlite"
        self.pictures = Blobs(Path(folder) / "unknown")
        self.keep_decisions, self.keep_bytes = KEEP_DECISIONS, KEEP_BYTES
        self._db, self._inode, self._lock = None, None, threading.RLock()  # the lock: of the connection
        self._waiting, self._bytes = deque(maxlen=WAITING), 0
        self._wake, self._thread, self._starting = threading.Event(), None, threading.Lock()
        self._told = self._swept = float("-inf")

    # ---------------------------------------------------------------- the writing thread
    def put(self, row, picture=None) -> None:
        """To be written soon. Costs the caller microseconds."""
        if picture is not None:
            if self._bytes + len(picture[0]) > WAITING_BYTES:
                picture = None
            else:
                self._bytes += len(picture[0])
        self._waiting.append((row, picture))
        self.work()

    def work(self) -> None:
        """Have the thread look."""
        if not self._wake.is_set():
            self._wake.set()
        thread = self._thread
        if thread is None or not thread.is_alive():  # also after a fork
            with self._starting:
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
                    self._thread.start()

    def _run(self):
        idle_since = time.monotonic()
        while True:
            if self._wake.wait(min(IDLE, SWEEP)):
                self._wake.clear()
                if self._waiting:
                    time.sleep(EVERY)  # what comes meanwhile is written along
                idle_since = time.monotonic()
            self.flush()
            stays = self.sweep()
            if not stays and time.monotonic() - idle_since >= IDLE:
                with self._starting:
                    if not self._wake.is_set():
                        self._thread = None
                        return

    def flush(self) -> None:
        """Write what waits, in this thread."""
        if not self._waiting:
            return
        with self._lock:  # nobody returns before what another thread took out is written
            rows = [self._waiting.popleft() for _ in range(len(self._waiting))]
            self._bytes = 0
            try:
                pictures = [(row, self.pictures.put(picture[0]), picture) for row, picture in rows if picture]
                self.write(lambda db: self._insert(db, [row for row, _ in rows], pictures))
            except UserError as error:
                self.tell(f"{len(rows)} decisions were not noted", error)

    def _insert(self, db, rows, pictures):
        db.executemany("INSERT OR IGNORE INTO decision(id, collection, created, model, event, best, score, second, "
                       "second_score, label, reason, threshold, margin) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)", rows)
        db.execute("DELETE FROM decision WHERE correct IS NULL AND row <= (SELECT max(row) FROM decision) - ?",
                   (self.keep_decisions,))
        for row, name, (image, expires, quad, model, parts, vectors) in pictures:
            decision, collection, created, score = row[0], row[1], row[2], row[6]
            if not list(db.execute("SELECT 1 FROM dismissed WHERE collection = ? AND picture = ? AND expires > ?",
                                   (collection, name, created))):
                db.execute("INSERT INTO unknown(collection, decision, created, expires, picture, bytes, quad, score, model, "
                           "parts, vectors) VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT(collection, picture) DO UPDATE SET "
                           "seen = seen + 1, expires = excluded.expires",
                           (collection, decision, created, expires, name, len(image), quad, score, model, parts, vectors))

    def close(self) -> None:
        self.flush()
        with self._lock:
            self._close()

    # ---------------------------------------------------------------- what has expired
    def sweep(self, now: float | None = None) -> bool:
        """Delete what has expired or is too much, rows and pictures; returns whether anything is left that will expire.
        Without `now` (seconds since 1970), only once a minute."""
        if now is None and time.monotonic() - self._swept < SWEEP:
            return self.pictures.folder.is_dir()
        self._swept = time.monotonic()
        if not self.pictures.folder.is_dir():
            return False
        try:
            self.write(lambda db: self._expire(db, time.time() if now is None else now))
            kept = {name for name, in self.read("SELECT picture FROM unknown")}
            # Without a row: of a file that was lost, or of a kill between the two. Young ones may be about to get theirs.
            self.pictures.sweep(kept, time.time() - SWEEP)
            return bool(kept)
        except (UserError, OSError) as error:
            self.tell("images of unknowns were not deleted", error)
            return True

    def _expire(self, db, now):
        gone = [row for row, in db.execute("SELECT id FROM unknown WHERE expires <= ?", (now,))]
        count, size = 0, 0
        for row, size_of in db.execute("SELECT id, bytes FROM unknown WHERE expires > ? ORDER BY id DESC", (now,)):
            count, size = count + 1, size + size_of
            if count > KEEP_PICTURES or size > self.keep_bytes:
                gone.append(row)
        db.execute("DELETE FROM dismissed WHERE expires <= ?", (now,))
        self.delete(db, gone)

    def delete(self, db, unknowns) -> None:
        """Unknowns by id, in a transaction of `write`: their rows now, their pictures when it is committed."""
        names = [name for unknown in unknowns
                 for name, in db.execute("DELETE FROM unknown WHERE id = ? RETURNING picture", (unknown,))]
        self._gone += [name for name in names
                       if not list(db.execute("SELECT 1 FROM unknown WHERE picture = ? LIMIT 1", (name,)))]

    # ---------------------------------------------------------------- the database
    def read(self, sql, bindings=()) -> list[tuple]:
        """Rows; none where the file is not there yet. Raises UserError."""
        if not self.path.exists():
            return []
        with self._lock:
            return self._tried(lambda db: list(db.execute(sql, bindings)))

    def write(self, work):
        """`work(db)` in a transaction -> what it returns. Raises UserError."""
        with self._lock:
            self._gone = []

            def transact(db):
                self._gone.clear()
                with transaction(db):
                    return work(db)
            answer = self._tried(transact)
            if self._gone:
                for name in self._gone:
                    with suppress(OSError):
                        self.pictures.delete(name)
                with suppress(apsw.Error):  # what was deleted does not stay in the log of SQLite
                    self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            return answer

    def _tried(self, work):
        """work(db); once more with a new file where this one is damaged."""
        try:
            return self._on_database(work)
        except UserError as error:
            if not self._is_useless(error):
                raise
            self._renew(error)
        return self._on_database(work)

    def _on_database(self, work):
        try:
            with translated(self.path):
                return work(self._open())
        except UserError as error:
            if not isinstance(error, NotFound):
                self._close()
            raise

    def _open(self):
        try:
            inode = os.stat(self.path).st_ino
        except OSError:
            inode = None
        if inode != self._inode:  # deleted, or made anew by another process
            self._close()
        if self._db is None:
            self._db = open_database(self.path, create=TABLES, application=APPLICATION, version=VERSION)
            self._db.set_busy_timeout(WAITS)
            self._inode = os.stat(self.path).st_ino
        return self._db

    def _close(self):
        if self._db is not None:
            with suppress(apsw.Error):
                self._db.close()
            self._db = None

    def _is_useless(self, error):
        """Whether it is the file that is wrong, and neither the disk nor a permission."""
        cause = error.__context__
        if isinstance(error, Damaged):
            return not isinstance(cause, apsw.IOError) or cause.extendedresult == apsw.SQLITE_IOERR_DATA
        try:
            head = self.path.read_bytes()[:72]
        except OSError:
            return False
        header = tuple(int.from_bytes(head[place:place + 4], "big") for place in (68, 60))
        return len(head) == 72 and type(error) is UserError and header != (APPLICATION, VERSION)

    def _renew(self, error):
        aside = self.path.with_name(self.path.name + ".damaged")
        try:
            for end in ("-wal", "-shm"):
                Path(f"{self.path}{end}").unlink(missing_ok=True)
            os.replace(self.path, aside)
        except FileNotFoundError:  # another process was faster
            pass
        except OSError:
            raise error from None
        self.tell(f"the file is now {aside.name}, and a new one was made", error)

    def tell(self, what, error):
        if time.monotonic() - self._told >= 60:
            self._told = time.monotonic()
            log.warning("%s: %s (%s)", self.path, what, first_line(error))
