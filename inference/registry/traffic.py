"""What a collection was asked and what it answered: traffic.sqlite beside the registry.

By default only the numbers of a decision are kept: when, the best two types and their scores, the label that was given and
why; nothing of the image, no name of a file, no address. Rejected pictures (`unknowns.py`) are kept only where someone asked
for it, for so long, and are then deleted with their rows. All of it is expendable: where the file is damaged, missing or
locked, or the disk is full, classification goes on, and the registry never reads it.
"""
import json
import logging
import os
import secrets
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
KEEP_FEEDBACK = 10_000  # decisions with feedback are rare and worth more: they stay when the others go
KEEP_PICTURES, KEEP_BYTES = 20_000, 2 << 30  # of unknowns; the oldest go first
EVERY = .5        # seconds between two writes
IDLE = 10.0       # seconds without anything to do after which the writing thread ends
SWEEP = 60.0      # seconds between two looks for what has expired
WAITS = 5_000     # milliseconds for another process's transaction
WAITING, WAITING_BYTES = 20_000, 64 << 20  # that wait to be written, at most: decisions (the oldest are dropped), pictures
KEPT = ("below-threshold", "runner-up-gap", "empty")  # reasons for which a picture is an unknown
EXAMPLES = 20

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


class Traffic:
    """Decisions, feedback and rejected pictures of one collection.

    store: a `Store`; collection: its name. `keep_decisions`: rows, of all collections together. `keep_unknown`: seconds for
    which rejected pictures and their features are kept; 0: they are not, and those that are there stay until their time.
    Every method may be called from several threads, and several processes share the file.
    """

    def __init__(self, store, collection: str, keep_unknown: float = 0.0):
        self.store, self.keep_unknown = store, keep_unknown
        self.collection, = store.read("SELECT id FROM collection WHERE name = ?", (collection,))[0]
        self.file = _file_of(store.path)
        if self.file.pictures.folder.is_dir():
            self.file.work()  # what has expired is deleted, though nobody asks anything

    @property
    def keep_decisions(self) -> int:
        return self.file.keep_decisions

    @keep_decisions.setter
    def keep_decisions(self, rows: int):
        self.file.keep_decisions = rows

    def record(self, result: dict, look=None, image: bytes | None = None) -> int:
        """Note a result of `Registry.classify`; -> the decision's id, at once (it is written within a second).

        look, image: the `Look` and the file as it was sent. They are kept only for a rejected picture, and only with
        `keep_unknown`.
        """
        decision = secrets.randbits(53)  # processes need no agreement, and JavaScript's numbers hold it
        now, top, model, event = time.time(), result["top_k"], result["model"], result["event"]
        (best, score), (second, second_score) = (_entry(top, 0), _entry(top, 1))
        picture = None
        if (self.keep_unknown > 0 and look is not None and image is not None and result["label"] is None
                and result["reason"] in KEPT):
            quad = None if look.quad is None or look.found is not None else json.dumps(_listed(look.quad))
            # The model by its whole hash: the features are those of this network alone.
            picture = (bytes(image), now + self.keep_unknown, quad, look.model, len(look.features),
                       look.features.astype("<f4").tobytes())
        self.file.put((decision, self.collection, now, model, event, best, score, second, second_score, result["label"],
                       result["reason"], result["threshold"], result["margin"]), picture)
        return decision

    def forget(self, kinds: list[int], labels: list[str]) -> None:
        """Delete the decisions that name what was deleted for good: types by their ids, known unknowns by minus theirs, and
        types that feedback named by their labels."""
        self.flush()
        if not (self.file.path.exists() and (kinds or labels)):
            return
        try:
            self.file.write(lambda db: db.execute(
                "DELETE FROM decision WHERE collection = ?3 AND (best IN (SELECT value FROM json_each(?1)) OR second IN "
                "(SELECT value FROM json_each(?1)) OR right IN (SELECT value FROM json_each(?2)))",
                (json.dumps(kinds), json.dumps(labels), self.collection)))
        except UserError as error:
            self.file.tell("decisions about what was deleted for good were not deleted", error)

    def flush(self) -> None:
        """Write what waits. Says nothing where it cannot be written; see the log."""
        self.file.flush()

    def close(self) -> None:
        """Write what waits. Whoever uses the file again, another collection say, opens it again."""
        self.file.close()

    def decisions(self, after: int = 0, limit: int = 100, newest: bool = False, feedback: bool = False) -> list[dict]:
        """Those that came after the decision `after` (0: from the first), the oldest first; `newest`: those before it, the
        newest first. feedback: only decisions with feedback.

        Each: {decision, when (seconds since 1970), label, score, reason, top: [{type, kind, score}] (the best two types; a
        known unknown has the kind "unknown" and its `reference`), threshold, margin, model, event, correct (True, False, or
        None: nobody said), right (the right label, where it was told)}.
        """
        self.flush()
        row = f"coalesce((SELECT row FROM decision WHERE id = ?), {'0' if after or not newest else '9e18'})"
        rows = self.file.read(
            f"SELECT {', '.join(_DECISION)} FROM decision WHERE collection = ? AND row {'<' if newest else '>'} {row}"
            f"{' AND correct IS NOT NULL' if feedback else ''} ORDER BY row {'DESC' if newest else ''} LIMIT ?",
            (self.collection, after, limit))
        return [_decision(dict(zip(_DECISION, row))) for row in rows]

    def feedback(self, decision: int, correct: bool, label: str | None = None) -> dict:
        """Say whether a decision was right, and what the right label is: None: of no registered type (or the given one,
        where it was right). The last word counts. -> the decision. Raises NotFound for one that is not kept any longer."""
        self.flush()

        def write(db):
            if not list(db.execute("UPDATE decision SET correct = ?, right = ? WHERE id = ? AND collection = ? RETURNING id",
                                   (int(correct), label, decision, self.collection))):
                raise NotFound(f"decision {decision}: not known, or older than those that are kept")
            db.execute("DELETE FROM decision WHERE correct IS NOT NULL AND row <= (SELECT row FROM decision "
                       "WHERE correct IS NOT NULL ORDER BY row DESC LIMIT 1 OFFSET ?)", (KEEP_FEEDBACK,))
            return list(db.execute(f"SELECT {', '.join(_DECISION)} FROM decision WHERE id = ?", (decision,)))
        return _decision(dict(zip(_DECISION, self.file.write(write)[0])))

    def counts(self) -> dict:
        """{decisions, labeled, correct, wrong, unknowns, bytes}: of what is kept of this collection."""
        self.flush()
        (decisions, labeled, correct, wrong), = self.file.read(
            "SELECT count(*), count(label), coalesce(sum(correct), 0), coalesce(sum(1 - correct), 0) FROM decision "
            "WHERE collection = ?", (self.collection,)) or [(0, 0, 0, 0)]
        (unknowns, size), = self.file.read("SELECT count(*), coalesce(sum(bytes), 0) FROM unknown WHERE collection = ? "
                                           "AND expires > ?", (self.collection, time.time())) or [(0, 0)]
        return dict(decisions=decisions, labeled=labeled, correct=correct, wrong=wrong, unknowns=unknowns, bytes=size)

    def replay(self, threshold: float) -> dict:
        """What another threshold would have made of the stored decisions of the active model: exact counts.

        The scores and the runner-up gap are those of then. `threshold` counts as where `Registry.set_threshold` is given it:
        for all types but those with one of their own. -> {threshold, decisions, since (time of the oldest), labeled (as
        decided), labeled_then (with the other threshold), gained, lost (labels), unclear (decisions without a second type,
        of which the gap cannot be told), of those with feedback: right_lost, wrong_lost (labels that were said to be right,
        or wrong, and would not be given), wrong_rejections_gained (rejections that were said to be wrong and would get a
        label), examples: {gained: [decision ids], lost: [...]}, the newest}.
        """
        self.flush()
        (number, digest), = self.store.read("SELECT id, hash FROM model WHERE collection = ? AND state = 'active'",
                                            (self.collection,))
        own = dict(self.store.read("SELECT type, value FROM threshold WHERE model = ? AND type IS NOT NULL "
                                   "AND removed IS NULL", (number,)))
        rows = self.file.read(
            "SELECT id, created, best, score, second_score, reason, margin, correct FROM decision "
            "WHERE collection = ? AND model = ? AND best IS NOT NULL ORDER BY row DESC", (self.collection, digest[:16]))
        counts = dict.fromkeys(("labeled", "labeled_then", "gained", "lost", "unclear", "right_lost", "wrong_lost",
                                "wrong_rejections_gained"), 0)
        examples = {"gained": [], "lost": []}
        for decision, _, best, score, second, reason, margin, correct in rows:
            before = reason == "accepted"
            close = reason == "runner-up-gap" if second is None else score - second < margin
            then = best > 0 and score >= own.get(best, threshold) and not close
            counts["labeled"] += before
            counts["labeled_then"] += then
            if before == then:
                continue
            change = "gained" if then else "lost"
            counts[change] += 1
            counts["unclear"] += then and second is None and margin > 0
            counts["right_lost"] += change == "lost" and correct == 1
            counts["wrong_lost"] += change == "lost" and correct == 0
            counts["wrong_rejections_gained"] += change == "gained" and correct == 0
            if len(examples[change]) < EXAMPLES:
                examples[change].append(decision)
        return dict(threshold=threshold, decisions=len(rows), since=rows[-1][1] if rows else None, **counts,
                    examples=examples)


_DECISION = ("id", "created", "model", "event", "best", "score", "second", "second_score", "label", "reason", "threshold",
             "margin", "correct", "right")


def _decision(row):
    top = [dict(type=found if found > 0 else None, kind="type" if found > 0 else "unknown", score=score)
           | ({} if found > 0 else {"reference": -found})
           for found, score in ((row["best"], row["score"]), (row["second"], row["second_score"])) if found is not None]
    return dict(decision=row["id"], when=row["created"], label=row["label"], score=row["score"], reason=row["reason"],
                top=top, threshold=row["threshold"], margin=row["margin"], model=row["model"], event=row["event"],
                correct=None if row["correct"] is None else bool(row["correct"]), right=row["right"])


def _entry(top, place):
    """(type, score); a known unknown is minus its reference, as in the index."""
    if len(top) <= place:
        return None, None
    entry = top[place]
    return (-entry["reference"] if entry["type"] is None else entry["type"]), entry["score"]


def _listed(quad):
    return [[float(x), float(y)] for x, y in quad]


_files, _files_lock = weakref.WeakValueDictionary(), threading.Lock()


def _file_of(folder):
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
            self.tell("pictures of unknowns were not deleted", error)
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
