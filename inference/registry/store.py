"""A store: a folder with the database of registered types, their pictures, and the models that embed them.

    STORE/registry.sqlite    the truth: collections, models, types, references, features, thresholds, events, keys
    STORE/blobs/             the registered pictures, by their SHA-256
    STORE/models/            a copy of each model that is in use
    STORE/traffic.sqlite, STORE/unknown/    decisions and unknown pictures: bounded, and may vanish without harm
"""
import contextlib
import json
import os
import threading
import time
from pathlib import Path

import apsw

from ..errors import UserError, printable
from ..model import TABLES, Model, load_model
from ..views import FINDS
from .blobs import Blobs, write_durably
from .errors import Conflict, Damaged, Invalid, Outdated
from .files import DATABASE, is_store
from .graph import graph_hash, is_sealed, sealed
from .schema import TABLES as SQL
from .schema import WAITS, check_local, open_database, transaction, translated
from .tables import NO_TABLES, tables_of, with_tables

DEFAULT_COLLECTION = "default"
AGAIN = "restore it from a backup, or export it again and give it to docmetric model add"


class StoreFiles:
    """The store in the folder `path`. create: makes the folder and an empty store where there is none.

    Any number of threads and processes on one machine may use it at the same time. `path` is the folder, `blobs` holds the
    registered pictures; `threads` is how many work on many images. Raises UserError where there is no store, or it is on
    a network disk, of another version, or damaged.
    """

    def __init__(self, path, create: bool = False, threads: int = 0, backend: str = "cpu", index: str | None = None):
        self.path, self.threads, self.backend, self.index = Path(path), threads, backend, index
        if create:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{path}: a store cannot be made there ({error.strerror}); give a new folder") from None
        elif not is_store(path):
            raise UserError(f"{path}: no store there; make one with docmetric init {printable(path)}")
        check_local(self.path)
        self.database = self.path / DATABASE
        self._check_there()
        self.blobs = Blobs(self.path / "blobs")
        # Two connections: what others, and our own writer, commit is seen by the reader's data_version.
        self._writer = open_database(self.database, create=SQL if create else "")
        self._reader = open_database(self.database)
        self._writing, self._reading = threading.RLock(), threading.RLock()
        self._process = os.getpid()
        self._models: dict[str, tuple[tuple, dict[str, Model]]] = {}  # {hash: (stamp of the file, {tables: model})}
        self._loading = threading.RLock()

    def _check_there(self):
        """A store whose making was interrupted has an empty database, or none, and nothing else."""
        if not (self.database.is_file() and self.database.stat().st_size):
            for name in (f"{DATABASE}-wal", "models", "blobs"):
                if (place := self.path / name).is_dir() or place.is_file() and place.stat().st_size:
                    raise Damaged(f"{self.database}: empty or gone, but {name} is there; restore it from a backup")

    def is_ours(self) -> bool:
        """Whether this process opened it: neither SQLite's locks nor its view of the file survive a fork."""
        return os.getpid() == self._process

    def _check_process(self):
        if not self.is_ours():
            raise UserError(f"{self.path}: was opened before this process was forked; open it again here")

    def close(self) -> None:
        """Further use is an error."""
        if not self.is_ours():  # but the parent's
            return
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # ---- rows ----

    def read(self, sql: str, bindings=()) -> list[tuple]:
        """The rows of a query, as last committed."""
        self._check_process()
        with self._reading, translated(self.database):
            return self._reader.execute(sql, bindings).fetchall()

    @contextlib.contextmanager
    def reading(self):
        """`with store.reading() as db`: queries that all see the same state."""
        self._check_process()
        with self._reading, translated(self.database):
            self._reader.execute("BEGIN")
            try:
                yield self._reader
            finally:
                if self._reader.in_transaction:
                    self._reader.execute("COMMIT")

    @contextlib.contextmanager
    def write(self):
        """`with store.write() as db`: a transaction, on the disk when the block ends; nothing of it where the block raises.
        Raises Busy, StoreFull, Damaged."""
        self._check_process()
        with self._writing, translated(self.database), transaction(self._writer):
            yield self._writer

    @contextlib.contextmanager
    def _hurrying(self):
        """What the block writes may be left undone: it waits for no other process longer than 2 s."""
        with self._writing:
            self._writer.set_busy_timeout(2000)
            try:
                yield
            finally:
                self._writer.set_busy_timeout(WAITS)

    def clear_log(self) -> None:
        """Take what was deleted out of the log of the database too, unless somebody reads for seconds."""
        with contextlib.suppress(apsw.Error), self._hurrying():
            self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def version(self) -> int:
        """Another number after each commit of anyone: 3 us."""
        self._check_process()
        with self._reading, translated(self.database):
            return self._reader.pragma("data_version")

    # ---- pictures ----

    @contextlib.contextmanager
    def pictures(self):
        """`with store.pictures() as put`: pictures for rows that the block inserts; put(content) -> name, see `Blobs.put`.
        When the block ends, in whatever way, those that no row has are deleted; after a kill, `check` deletes them.

        Other processes may put, register and delete the same picture at any moment. A file is deleted under the lock of
        writers alone, by who sees there that no row has it (`delete_pictures`); and a row is inserted by who sees, under the
        same lock, that the file is there (`Registering.insert`). So no row is ever without its file: whoever comes second
        finds the row, and keeps the file; or finds no file, is Outdated, and puts it again.
        """
        names = set()

        def put(data):
            names.add(name := self.blobs.put(data))
            return name

        try:
            yield put
        except Damaged:  # after an error of the disk nobody knows whether the log will turn out to have the rows
            names.clear()
            raise
        finally:
            with contextlib.suppress(UserError, OSError):
                unused = [name for name in names if not self._has_row(self.read, name)]
                if unused:  # rarely, so that who has registered waits for no lock again
                    with self._hurrying():
                        self.delete_pictures(unused)

    def delete_pictures(self, names: list[str]) -> None:
        """Delete those that no row has; others write meanwhile."""
        for first in range(0, len(names), 1000):
            with self.write() as db:
                for name in names[first:first + 1000]:
                    if not self._has_row(db.execute, name):
                        self.blobs.delete(name)

    @staticmethod
    def _has_row(query, name):
        return bool(list(query("SELECT 1 FROM picture WHERE sha256 = ?", (name,))))

    # ---- models ----

    @contextlib.contextmanager
    def kept_model(self, path):
        """`with store.kept_model(path) as (digest, name, tables)`: an exported model, copied into the store unless its
        network is there, for a row that the block inserts (`insert_model`): the hash of its graph, its file's name, the
        tables of thresholds in it. Where the block fails, the copy is deleted as in `pictures`. Raises UserError."""
        tables = tables_of(load_model(path, self.backend, self.threads))
        with open(path, "rb") as file:
            data = file.read()
        digest = graph_hash(data)
        if not self._is_whole(digest):
            write_durably(self.model_path(digest), sealed(data), "a model")
        try:
            yield digest, os.path.basename(os.fspath(path)), tables
        except Damaged:
            raise
        except BaseException:
            with contextlib.suppress(UserError, OSError), self._hurrying():
                self.delete_model(digest)
            raise

    def _is_whole(self, digest):
        try:
            data = self.model_path(digest).read_bytes()
            return is_sealed(data) and graph_hash(data) == digest
        except (OSError, UserError):
            return False

    def model_path(self, digest: str) -> Path:
        return self.path / "models" / f"{digest}.onnx"

    def insert_model(self, db, collection: int, digest: str, name: str, tables: str, state: str, event: int = 0) -> None:
        """Within a transaction: the row of a model that was kept. Raises Outdated where its file was deleted since, with the
        last row that another process knew of."""
        if not self.model_path(digest).is_file():
            raise Outdated(f"model {digest[:16]}: was removed by another process just now; try again")
        db.execute("INSERT INTO model(collection, hash, name, state, tables, created, changed) VALUES (?, ?, ?, ?, ?, ?, ?)",
                   (collection, digest, name, state, tables, time.time(), event))

    def delete_model(self, digest: str) -> None:
        """Delete a model's file, unless a row has it. Both this and `insert_model` look under the lock of writers, so no row
        lacks its file."""
        with self.write() as db:
            if not list(db.execute("SELECT 1 FROM model WHERE hash = ? LIMIT 1", (digest,))):
                self.model_path(digest).unlink(missing_ok=True)

    def model(self, digest: str, tables: str = NO_TABLES) -> Model:
        """The model of this hash, with the tables of thresholds of a collection (`tables_of`) where they are wanted: the
        network is the same one for all. Loaded again where its file was replaced. Raises UserError."""
        path = self.model_path(digest)
        try:
            status = path.stat()
            stamp = status.st_mtime_ns, status.st_size, status.st_ino
            loaded, models = self._models.get(digest, (None, {}))
            if loaded == stamp and tables in models:
                return models[tables]
            with self._loading:
                loaded, models = self._models.get(digest, (None, {}))
                if loaded != stamp:
                    data = path.read_bytes()
                    if not is_sealed(data) or graph_hash(data) != digest:
                        raise Damaged(f"{path}: damaged, or not the model that its name says; {AGAIN}")
                    models = {NO_TABLES: with_tables(load_model(path, self.backend, self.threads), NO_TABLES)}
                    self._models[digest] = stamp, models
                if tables not in models:
                    models[tables] = with_tables(models[NO_TABLES], tables)
                return models[tables]
        except OSError as error:
            raise Damaged(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from None


class Change:
    """What one mutation changes, row by row, so that it can be undone: `event` is its id."""

    def __init__(self, db, collection: int, what: str, who, key, request):
        self.db, self.collection, self.now, self.rows = db, collection, time.time(), []
        db.execute("INSERT INTO event(collection, created, who, what, text, changes, result, key, request) "
                   "VALUES (?, ?, ?, ?, '', '', '', ?, ?)", (collection, self.now, who, what, key, request))
        self.event: int = db.last_insert_rowid()

    def insert(self, table: str, **columns) -> int:
        """The id of a new row. Undone, it counts as removed."""
        columns |= dict(created=self.now, changed=self.event)
        self.db.execute(f"INSERT INTO {table}({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
                        tuple(columns.values()))
        row = self.db.last_insert_rowid()
        self.rows.append([table, row, {"removed": [self.now, None]}])
        return row

    def set(self, table: str, row: int, **columns) -> None:
        old, = self.db.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE id = ?", (row,))
        changed = {name: [before, after] for (name, after), before in zip(columns.items(), old) if before != after}
        if changed:
            self._update(table, row, {name: after for name, (_, after) in changed.items()})
            self.rows.append([table, row, changed])

    def revert(self, rows) -> None:
        """Set what an event changed back, the last change first. Raises Conflict where it was changed again since."""
        for table, row, columns in reversed(rows):
            now = next(self.db.execute(f"SELECT {', '.join(columns)}, changed FROM {table} WHERE id = ?", (row,)), None)
            if now is None:
                raise Conflict(f"the {table} was deleted for good since; this cannot be undone")
            if any(value != after for value, (_, after) in zip(now, columns.values())):
                raise Conflict(f"event {now[-1]} has changed the same {table} since; undo that one first", event=now[-1])
            self.set(table, row, **{name: before for name, (before, _) in columns.items()})

    def _update(self, table, row, columns):
        self.db.execute(f"UPDATE {table} SET {', '.join(f'{name} = ?' for name in columns)}, changed = ? WHERE id = ?",
                        (*columns.values(), self.event, row))

    def finish(self, text: str, result: dict) -> None:
        self.db.execute("UPDATE event SET text = ?, changes = ?, result = ? WHERE id = ?",
                        (text, json.dumps(self.rows), json.dumps(result), self.event))


def check_settings(find: str, orientation: str) -> None:
    if find not in FINDS:
        raise Invalid(f"find {printable(find)[:40]}: unknown; use {', '.join(FINDS)}")
    if orientation not in TABLES:
        raise Invalid(f"orientation {printable(orientation)[:40]}: unknown; use {' or '.join(TABLES)}")
