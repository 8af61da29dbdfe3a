"""What a process knows of a collection: the index that it searches, labels, thresholds; up to date before each answer."""
import hashlib
import itertools
import json
import threading
import zlib
from typing import NamedTuple

import numpy as np

from ..model import Model
from ..thresholds import choose_threshold, raised
from .engines import open_index
from .errors import Damaged
from .index import Index, Rows
from .store import StoreFiles

PARTS = 8  # vectors that a reference has at most: two views, four turns of each
LOADED = 20_000  # references that are read from the database at once
PART = 500_000  # vectors that are added to an index at once


class Snapshot(NamedTuple):
    """A state of a collection. `event` is the last event that it knows of; `index` is what is searched; `types` maps ids to
    labels; `tables` are the collection's own of the model (`tables.tables_of`); `thresholds` holds those of types that have
    one of their own, by id; `look_alikes` are pairs of types, (id, id, score); `automatic`: nobody has set the threshold;
    `warnings` are lines about it."""
    event: int
    index: Index
    types: dict[int, str]
    model_id: int
    model_hash: str
    tables: str
    threshold: float
    automatic: bool
    thresholds: dict[int, float]
    look_alikes: tuple[tuple[int, int, float], ...]
    warnings: tuple[str, ...]
    margin: float
    find: str
    orientation: str


class State:
    """Of the collection with the id `number`; `snapshot` is what is asked. Several threads may ask."""

    def __init__(self, store: StoreFiles, number: int):
        self.store, self.id = store, number
        self._lock = threading.RLock()
        self._version, self._snapshot = None, None
        self._index: Index | None = None
        self._types: dict[int, str] = {}  # shared by all snapshots: a type's id never means another type
        self._live: set[int] = set()  # ids of the types that there are
        self._alike = _Alike()

    def close(self) -> None:
        if self._index is not None:
            self._index.close()

    def snapshot(self) -> Snapshot:
        """The state that everyone's commits until now have led to."""
        version = self.store.version()
        if version != self._version:
            with self._lock:
                if version != self._version:
                    self._refresh()
                    self._version = version  # read before the rows: a commit between the two is looked for again
        return self._snapshot

    def _refresh(self):
        with self.store.reading() as db:
            event, = next(db.execute("SELECT coalesce(max(id), 0) FROM event"))
            find, orientation, margin = next(db.execute(
                "SELECT find, orientation, margin FROM collection WHERE id = ?", (self.id,)))
            model_id, digest, tables = next(db.execute(
                "SELECT id, hash, tables FROM model WHERE collection = ? AND state = 'active'", (self.id,)))
            model, last = self.store.model(digest, tables), self._snapshot
            seen = 0 if last is None else last.event
            if last is None or (last.model_hash, last.find, last.orientation) != (digest, find, orientation):
                # Another model, or another way to look: all vectors are others.
                self.close()
                # Its name is unique for this store, wherever it is moved to; a backup, and what is restored, is another one.
                store, = next(db.execute("SELECT id FROM store"))
                name = hashlib.sha256(f"{store} {self.id} {digest} {find} {orientation}".encode()).hexdigest()[:24]
                self._index = open_index(self.store.index, model.embedding_size, name)
                self._alike.stale = True
            for number, name, removed in db.execute(
                    "SELECT id, name, removed FROM type WHERE collection = ? AND changed > ?", (self.id, seen)):
                self._types[number] = name
                (self._live.add if removed is None else self._live.discard)(number)
            if event > self._index.event:
                self._load(db, model_id, model.embedding_size, event)
            chosen = self._thresholds(db, model_id, model, find, orientation)
        self._snapshot = Snapshot(event, self._index.view(), self._types, model_id, digest, tables, *chosen,
                                  model.margin if margin is None else margin, find, orientation)

    def _load(self, db, model_id, depth, event):
        """Bring the index to `event`: what is in it of references that changed since goes, what they are now comes."""
        seen, none = self._index.event, np.empty(0, np.int64)
        parts = self._parts(db, model_id, depth, seen)
        if not seen:
            last = next(parts)
            for part in parts:
                self._index.apply(0, last, none)  # with the last part alone the index is up to date
                last = part
            self._index.apply(event, last, none)
            return
        added = joined(list(parts))
        changed = [number for number, in db.execute(
            "SELECT id FROM reference WHERE collection = ? AND changed > ?", (self.id, seen))]
        for deleted, in db.execute("SELECT result FROM event WHERE collection = ? AND id > ? AND what = 'purge'",
                                   (self.id, seen)):
            deleted = json.loads(deleted)
            changed += deleted["deleted"]
            self._live.difference_update(deleted["types"])
        self._alike.stale |= not self._alike.references.isdisjoint(changed)
        # A reference that was embedded again may have fewer vectors than before: all that it can have go first.
        gone = (np.array(changed, np.int64)[:, None] * PARTS + np.arange(PARTS)).ravel()
        self._index.apply(event, added, np.setdiff1d(gone, added.ids))

    def rows(self, db, model_id: int, depth: int) -> Rows:
        """The vectors of a model, of all references that are not removed."""
        return joined(list(self._parts(db, model_id, depth, 0)))

    def _parts(self, db, model_id, depth, since):
        """Yield the vectors of a model, of references that are not removed and changed after the event `since`: at least one
        `Rows`, each of about PART at most, so that loading millions takes little more than they do."""
        # CROSS JOIN keeps the order: through all vectors as they lie in the file, or from the few references that changed.
        tables, condition = (("reference r CROSS JOIN feature f", "AND r.changed > ?") if since else
                             ("feature f CROSS JOIN reference r", "AND ? = 0"))
        rows = db.execute(f"""
            SELECT r.id, r.type, f.parts, f.vectors, f.crc32 FROM {tables} ON r.id = f.reference
            WHERE f.model = ? AND r.collection = ? AND r.removed IS NULL {condition}""", (model_id, self.id, since))
        blocks, count = [Rows(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, depth), np.float32))], 0
        while block := list(itertools.islice(rows, LOADED)):
            blocks.append(self.as_rows(block, depth))
            count += len(blocks[-1].ids)
            if count >= PART:
                yield joined(blocks)
                blocks, count = blocks[:1], 0
        yield joined(blocks)

    def as_rows(self, block, depth):
        """Rows of the database, [(reference, type or None, parts, vectors, crc32)], as those of the index."""
        for number, _, parts, vectors, crc in block:
            if zlib.crc32(vectors) != crc or len(vectors) != parts * depth * 4:
                raise Damaged(f"{self.store.database}: the vectors of reference {number} are damaged; docmetric check "
                              f"{self.store.path} --rebuild makes them again from the image")
        counts = np.array([row[2] for row in block])
        references = np.repeat(np.array([row[0] for row in block], np.int64), counts)
        types = np.repeat(np.array([-row[0] if row[1] is None else row[1] for row in block], np.int64), counts)
        part = np.concatenate([np.arange(count) for count in counts]) if counts.max() > 1 else 0
        vectors = np.frombuffer(b"".join(row[3] for row in block), "<f4").reshape(-1, depth)
        return Rows(references * PARTS + part, types, vectors)

    def _thresholds(self, db, model_id, model: Model, find, orientation):
        """(threshold, whether it is automatic, {type: threshold of its own}, pairs of types that look alike, warnings)"""
        own, given, source = {}, None, None
        for number, *row in db.execute("SELECT type, value, source FROM threshold WHERE model = ? AND removed IS NULL",
                                       (model_id,)):
            if number is None:
                given, source = row
            else:
                own[number] = row[0]
        compared = max(1, len(self._live)) * (2 if find == "auto" else 1)
        threshold, warnings = choose_threshold(model, given, None, orientation, compared)
        pairs = self._alike.pairs(db, model_id, threshold)
        raises = {}
        if source in (None, "suggestion"):  # a given one holds for all types alike
            for first, second, score in pairs:
                for number in (first, second):
                    raises[number] = max(raises.get(number, threshold), raised(threshold, score))
        return threshold, source is None, raises | own, pairs, tuple(warnings)


def joined(parts: list[Rows]) -> Rows:
    full = [part for part in parts if len(part.ids)]
    return full[0] if len(full) == 1 else Rows(*(np.concatenate(columns) for columns in zip(*parts)))


class _Alike:
    """The pairs of types that look alike. What was added since is read; all of it again only where one of their references
    changed, or the model or the threshold did."""

    def __init__(self):
        self.stale, self.references = True, set()
        self._key, self._last, self._best, self._pairs = None, 0, {}, ()

    def pairs(self, db, model_id, threshold) -> tuple[tuple[int, int, float], ...]:
        """(type, type, score), the highest score first: types with references that score `threshold` with each other."""
        if self.stale or (model_id, threshold) != self._key:
            self._last, self._best, self._pairs, self.references = 0, {}, (), set()
            self.stale, self._key = False, (model_id, threshold)
        last, = next(db.execute("SELECT coalesce(max(id), 0) FROM look_alike"))
        if last > self._last:
            # `+` keeps SQLite from the index of models: few rows are behind the last.
            added, before = "WHERE l.id > ? AND +l.model = ?", self._last
            for pair in db.execute(f"SELECT reference, other FROM look_alike l {added}", (before, model_id)):
                self.references.update(pair)
            for one, two, score in db.execute(f"""
                    SELECT min(a.type, b.type), max(a.type, b.type), l.score FROM look_alike l
                    JOIN reference a ON a.id = l.reference JOIN reference b ON b.id = l.other {added}
                    AND l.score >= ? AND a.removed IS NULL AND b.removed IS NULL AND a.type != b.type""",
                                              (before, model_id, threshold)):
                self._best[one, two] = max(self._best.get((one, two), 0), score)
            self._last = last
            self._pairs = tuple((*pair, score) for pair, score in sorted(self._best.items(), key=lambda item: -item[1]))
        return self._pairs
