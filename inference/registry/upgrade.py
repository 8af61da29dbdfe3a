"""Another model for a collection: embedded beside the one in use, compared with it, switched to in one transaction.

    digest = registry.upgrade.add("new.onnx")
    registry.upgrade.build(digest)                  # hours for millions; after a kill it goes on where it was
    print(registry.upgrade.report(digest))          # what would change
    registry.upgrade.activate(digest)               # the former model: activate it again, and nothing is embedded again

While a model is built, and until another one is active, every new reference is embedded by both. Nothing is registered
again: the pictures are in the store.
"""
import contextlib

from ..errors import first_line
from ..image import ImageError, map_ahead
from ..thresholds import choose_threshold
from .errors import Busy, Conflict, Damaged, Invalid, NotFound
from .report import look_alikes, report
from .threshold import suggest

BATCH = 64  # references in a transaction: what a kill loses at most


class Upgrade:
    """Models of a `Registry`. Several processes may call it at the same time."""

    def __init__(self, registry):
        self.registry, self.store = registry, registry.store

    def add(self, path, name: str | None = None, who: str | None = None) -> str:
        """Keep a copy of an exported model in the store, to be built; returns its hash (`graph.graph_hash`).

        A file with the graph of a model that the collection has already, such as a newly calibrated one, brings new
        thresholds and no new vectors. Thresholds are this collection's alone (tables.py). Raises UserError for what is no
        such model.
        """
        def body(change):
            row, title = self._row(digest, change.db), file if name is None else name
            if row:
                change.set("model", row[0], name=title, tables=tables)
                change.rows.clear()  # the way back is to add the former file
                return f"updated the thresholds of the model {title}", dict(event=change.event, hash=digest, new=False)
            self.store.insert_model(change.db, self.registry.id, digest, title, tables, "building", change.event)
            return f"added the model {title}", dict(event=change.event, hash=digest, new=True)

        with self.store.kept_model(path) as (digest, file, tables):
            self.registry.mutate("model", body, who)
        return digest

    def build(self, digest: str, progress=None) -> dict:
        """Embed all references that the model has not embedded yet; then it is ready. After a kill, call it again.

        progress: called with (references done, of so many). -> {hash, state, embedded: so many now}. Raises Damaged where
        the picture of a reference cannot be read: all others are embedded, and the model stays as it was.
        """
        model, state = self._found(digest)
        if state == "retired":  # so that from now on new references are embedded by it, too
            with self.store.write() as db:
                db.execute("UPDATE model SET state = 'building' WHERE id = ? AND state = 'retired'", (model,))
        embedded, failed, last = 0, {}, 0
        total = len(self._missing(model, limit=-1))
        while True:
            batch = self._missing(model, last, BATCH)
            if not batch:
                if last == 0 or failed or self._ready(model):
                    break
                last = 0  # one came that another process embedded by the models of before
                continue
            last = batch[-1]
            embedded += self._embed(model, batch, failed)
            if progress:
                progress(embedded, max(total, embedded))
        if failed:
            reference, reason = next(iter(failed.items()))
            raise Damaged(f"{len(failed)} references cannot be embedded, such as {reference} ({reason}); restore their "
                          "images from a backup, or remove them, then build again", references=list(failed))
        if not self._ready(model):
            return self.build(digest, progress)
        return dict(hash=digest, state=self._found(digest)[1], embedded=embedded)

    def _missing(self, model, after=0, limit=BATCH):
        """References without vectors of a model. Removed ones too, since an undo brings them back."""
        return [number for number, in self.store.read("""
            SELECT r.id FROM reference r WHERE r.collection = ? AND r.id > ? AND NOT EXISTS
            (SELECT 1 FROM feature f WHERE f.model = ? AND f.reference = r.id) ORDER BY r.id LIMIT ?""",
                                                      (self.registry.id, after, model, limit))]

    def _embed(self, model, batch, failed):
        """Vectors of some references, in one transaction; -> how many. failed: {reference: reason}, added to."""
        settings = self.registry.settings

        def work(reference):
            try:
                return reference, self.registry.features_of(reference, model), None
            except (NotFound, KeyError):  # the reference, or the model, was deleted for good meanwhile
                return reference, None, None
            except (Damaged, ImageError) as error:
                return reference, None, first_line(error)

        made = list(map_ahead(work, batch, threads=self.store.threads))
        with self.store.write() as db:
            if not list(db.execute("SELECT 1 FROM model WHERE id = ?", (model,))):
                raise NotFound("the model was removed while it was built")
            now = next(db.execute("SELECT find, orientation FROM collection WHERE id = ?", (self.registry.id,)))
            if now != (settings["find"], settings["orientation"]):
                return 0  # they were looked at in another way than what counts now
            for reference, vectors, reason in made:
                row = next(db.execute("SELECT removed FROM reference WHERE id = ?", (reference,)), None)
                there = row and not list(db.execute("SELECT 1 FROM feature WHERE model = ? AND reference = ?",
                                                    (model, reference)))
                if vectors is not None and there:
                    self.registry.write_feature(db, reference, model, vectors)
                elif reason and row and row[0] is None:
                    failed[reference] = reason
        return sum(vectors is not None for _, vectors, _ in made)

    def _ready(self, model):
        """Mark a model as ready, where it has embedded all references; -> whether it has."""
        with self.store.write() as db:
            if self._lacks(db, model):
                return False
            db.execute("UPDATE model SET state = 'ready' WHERE id = ? AND state = 'building'", (model,))
        return True

    def _lacks(self, db, model):
        return next(db.execute("""
            SELECT count(*) FROM reference r WHERE r.collection = ? AND r.removed IS NULL AND NOT EXISTS
            (SELECT 1 FROM feature f WHERE f.model = ? AND f.reference = r.id)""", (self.registry.id, model)))[0]

    # ---- the report ----

    def report(self, digest: str) -> dict:
        """What would change, decided by both models, exactly, on a random sample where there is much (always the same one).

        References: each picture of a type with several is asked about as if it were not registered itself. Unknowns: the
        newest that were kept. -> {hash, active (the hash of the one in use), threshold: {active, new}, references: {asked,
        of (live references of types), agree, active: {right, wrong, rejected}, new: the same, changed: [{reference, label,
        active: {label, score}, new: {label, score}}]}, unknowns: {asked, agree, active: {labeled, rejected}, new, changed:
        [{id, ...}]}, look_alikes: {active, new: [{label, other, score}]} (types whose references the threshold does not
        tell apart), warnings}. Raises Conflict where the model is not built yet.
        """
        number, state = self._found(digest)
        snapshot = self.registry.snapshot()
        if number != snapshot.model_id and state in ("building", "retired") and self._lacks_now(number):
            raise Conflict(f"model {digest[:16]}: has not embedded all references yet; build it first")
        return report(self.registry, number, digest, snapshot)

    def _lacks_now(self, model):
        with self.store.reading() as db:
            return self._lacks(db, model)

    # ---- the switch ----

    def activate(self, digest: str, who: str | None = None, threshold: float | str | None = None) -> dict:
        """Use the model from now on. One transaction: every answer is one model's. Its thresholds are its own: those that
        were set for it, else automatic ones from its table; threshold: another one, or "suggestion" (`threshold.suggest`).

        A model that was in use before has the references that came since to embed, and no other. -> {hash, event, former,
        threshold (None: automatic), embedded}. Raises Conflict where the model was never built.
        """
        number, state = self._found(digest)
        if state == "active":
            return dict(hash=digest, event=None, former=None, threshold=None, embedded=0)
        if state == "building" and self._lacks_now(number):
            raise Conflict(f"model {digest[:16]}: has not embedded all references yet; build it first")
        embedded = self.build(digest)["embedded"]
        snapshot = self.registry.snapshot()
        if threshold == "suggestion":
            value, source = suggest(self.registry, digest=digest)["threshold"], "suggestion"
        elif threshold is None or isinstance(threshold, (int, float)) and 0 <= threshold <= 1:
            value, source = threshold, "given"
        else:
            raise Invalid(f"threshold {threshold}: must be between 0 and 1, or \"suggestion\"")
        model = self.registry.model_of(number)
        least = choose_threshold(model, None, None, snapshot.orientation, 1)[0]
        alike, _ = look_alikes(self.registry, number, model, min(least, 1 if value is None else value), snapshot)

        def body(change):
            db = change.db
            self._found(digest, db)  # it may have been removed meanwhile
            if self._lacks(db, number):
                raise _CameMeanwhile
            former = next(db.execute("SELECT id, hash FROM model WHERE collection = ? AND state = 'active'",
                                     (self.registry.id,)))
            for row, now in ((former[0], "retired"), (number, "active")):
                db.execute("UPDATE model SET state = ?, changed = ? WHERE id = ?", (now, change.event, row))
            db.execute("DELETE FROM look_alike WHERE model = ?", (number,))
            db.executemany("INSERT INTO look_alike(model, reference, other, score) VALUES (?, ?, ?, ?)",
                           [(number, reference, other, score) for reference, other, _, _, score in alike])
            if value is not None:
                db.execute("UPDATE threshold SET removed = ?, changed = ? WHERE model = ? AND removed IS NULL",
                           (change.now, change.event, number))
                change.insert("threshold", collection=self.registry.id, model=number, type=None, value=value, source=source)
                change.rows.clear()  # the way back is to activate the former model
            return f"switched to the model {self._name(db, number)}", dict(
                hash=digest, event=change.event, former=former[1], threshold=value, embedded=embedded)

        while True:
            try:
                return self.registry.mutate("activate", body, who)
            except _CameMeanwhile:  # a reference, of a process that knew no second model
                embedded += self.build(digest)["embedded"]

    def remove(self, digest: str, who: str | None = None) -> dict:
        """Delete a model that is not in use, with its vectors and thresholds. -> {event, hash}. Raises Conflict for the one
        in use."""
        def body(change):
            number, state = self._found(digest, change.db)
            if state == "active":
                raise Conflict(f"model {digest[:16]}: is in use; activate another one first")
            name = self._name(change.db, number)
            for table in ("feature", "look_alike", "threshold"):
                change.db.execute(f"DELETE FROM {table} WHERE model = ?", (number,))
            change.db.execute("DELETE FROM model WHERE id = ?", (number,))
            return f"removed the model {name}", dict(event=change.event, hash=digest)

        answer = self.registry.mutate("model", body, who)
        with contextlib.suppress(Busy):  # the file stays
            self.store.delete_model(digest)
        return answer

    # ---- rows ----

    def _row(self, digest, db=None):
        query = "SELECT id, state FROM model WHERE collection = ? AND hash = ?", (self.registry.id, digest)
        rows = self.store.read(*query) if db is None else list(db.execute(*query))
        return rows[0] if rows else None

    def _found(self, digest, db=None):
        row = self._row(digest, db) if isinstance(digest, str) else None
        if row is None:
            raise NotFound(f"model {str(digest)[:64]}: there is none of this hash")
        return row

    @staticmethod
    def _name(db, number):
        return next(db.execute("SELECT name FROM model WHERE id = ?", (number,)))[0]


class _CameMeanwhile(Exception):
    """A reference without vectors of the model that is to be active."""
