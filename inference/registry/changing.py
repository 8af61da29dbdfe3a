"""How a collection is changed: one transaction and one event for each mutation, and the way back."""
import json
from collections.abc import Callable

import apsw

from ..errors import UserError, plural, printable
from ..image import map_ahead
from ..thresholds import choose_threshold
from .errors import Conflict, Invalid, NotFound, Outdated
from .inputs import clean_label, clean_text, digest_of
from .store import Change, check_settings


class Changing:
    """How a `core.Registry` is changed; it has `store`, `id` and `snapshot`, lists as `listing.Listing` does, and embeds as
    `registering.Registering` does."""

    def mutate(self, what, body, who=None, key=None, request=None) -> dict:
        """body: change -> (a line about what was done, the answer)."""
        with self.store.write() as db:
            if (done := self._repeated(key, request, db)) is not None:
                return done
            change = Change(db, self.id, what, clean_text(who, "who"), key, request)
            try:
                text, result = body(change)
            except apsw.ConstraintError:
                raise Conflict("a type of the same name is there again; rename or remove it first") from None
            change.finish(text, result)
        return result

    def _repeated(self, key, request, db=None):
        """The answer that was given for this idempotency key; None where there is none."""
        if key is None:
            return None
        clean_text(key, "key")
        query = "SELECT request, result FROM event WHERE collection = ? AND key = ?", (self.id, key)
        rows = self.store.read(*query) if db is None else db.execute(*query).fetchall()
        if not rows:
            return None
        if rows[0][0] != request:
            raise Conflict(f"idempotency key {printable(key)[:80]}: was used for another request; take a new one")
        if rows[0][1] == "{}":
            raise Conflict(f"idempotency key {printable(key)[:80]}: what it registered was deleted for good; take a new one")
        return json.loads(rows[0][1])

    @staticmethod
    def _check_there(change, *numbers, table="type"):
        """Raises NotFound where another process has removed one of the types, or references, since it was looked up."""
        for number in numbers:
            if not list(change.db.execute(f"SELECT 1 FROM {table} WHERE id = ? AND removed IS NULL", (number,))):
                raise NotFound(f"{table} {number}: was removed just now")

    # ---- types and references ----

    def remove(self, label: str | None = None, *, reference: int | None = None, type: int | None = None,
               who: str | None = None, key: str | None = None) -> dict:
        """Remove a type, by its label or id, with all its references; or one reference (a type without any stays). Pictures
        stay until `purge`, for `undo`. Answers {event, references: their ids, type, label}."""
        if sum(value is not None for value in (label, reference, type)) != 1:
            raise Invalid("remove: give a label, a type, or a reference")
        request = digest_of("remove", label, reference, type)
        if (done := self._repeated(key, request)) is not None:
            return done
        if reference is not None:
            row = self.reference(reference)
            number, name, ids = row["type"], row["label"], [reference]
            if row["removed"] is not None:
                raise NotFound(f"reference {reference}: was removed already")
        else:
            number, name = self._type_id(label if type is None else type)

        def body(change):
            if reference is None:
                self._check_there(change, number)
            else:
                self._check_there(change, reference, table="reference")
            removed = [row[0] for row in change.db.execute("SELECT id FROM reference WHERE type = ? AND removed IS NULL",
                                                           (number,))] if reference is None else ids
            for one in removed:
                change.set("reference", one, removed=change.now)
            if reference is None:
                change.set("type", number, removed=change.now)
            text = f"removed {name} with {plural(len(removed), 'image')}" if reference is None else (
                f"removed an image of {name or 'a known unknown'}")
            return text, dict(event=change.event, references=removed, type=number, label=name)

        return self.mutate("remove", body, who, key, request)

    def rename(self, label: str | int, new: str, *, who: str | None = None, key: str | None = None) -> dict:
        """Raises Conflict where a type is called `new` already: `merge` makes one of both. Answers {event, type, label}."""
        new, request = clean_label(new), digest_of("rename", label, new)
        if (done := self._repeated(key, request)) is not None:
            return done
        number, name = self._type_id(label)
        other = self.store.read("SELECT id FROM type WHERE collection = ? AND name = ? AND removed IS NULL", (self.id, new))
        if other and other[0][0] != number:
            raise Conflict(f"type {printable(new)[:80]}: is there already; merge the two, or choose another name",
                           type=other[0][0])

        def body(change):
            self._check_there(change, number)
            change.set("type", number, name=new)
            return f"renamed {name} to {new}", dict(event=change.event, type=number, label=new)

        return self.mutate("rename", body, who, key, request)

    def merge(self, source: str | int, into: str | int, *, who: str | None = None, key: str | None = None) -> dict:
        """All references of one type become the other's; the first is removed. Answers {event, type, label, references}."""
        request = digest_of("merge", source, into)
        if (done := self._repeated(key, request)) is not None:
            return done
        (number, name), (target, kept) = self._type_id(source), self._type_id(into)
        if number == target:
            raise Conflict(f"type {printable(name)[:80]}: cannot be merged with itself")

        def body(change):
            self._check_there(change, number, target)
            moved = [row[0] for row in change.db.execute("SELECT id FROM reference WHERE type = ? AND removed IS NULL",
                                                         (number,))]
            for one in moved:
                change.set("reference", one, type=target)
            change.set("type", number, removed=change.now)
            return f"merged {name} into {kept}", dict(event=change.event, type=target, label=kept, references=moved)

        return self.mutate("merge", body, who, key, request)

    def move(self, reference: int, label: str, *, who: str | None = None, key: str | None = None) -> dict:
        """A reference becomes one of another type, a new or a known one. Answers {event, reference, type, label}."""
        label, request = clean_label(label), digest_of("move", reference, label)
        if (done := self._repeated(key, request)) is not None:
            return done
        row = self.reference(reference)
        if row["removed"] is not None:
            raise NotFound(f"reference {reference}: was removed")

        def body(change):
            self._check_there(change, reference, table="reference")
            number, _ = self.type_named(change, label)
            change.set("reference", reference, type=number, kind="type")
            return (f"moved an image of {row['label'] or 'a known unknown'} to {label}",
                    dict(event=change.event, reference=reference, type=number, label=label))

        return self.mutate("move", body, who, key, request)

    # ---- undo ----

    def undo(self, event: int | None = None, *, who: str | None = None, key: str | None = None,
             check: Callable[[set[str]], None] | None = None) -> dict:
        """Undo an event, or the last one that can be undone, is not, and is no undoing itself. An undo can be undone. Raises
        Conflict where later events stand against it, and for what has its own way back (a change of the model: activate
        the former one) or none (what was deleted for good). Undoing a change of `find` or `orientation` embeds all
        references again. check: called with the names of the tables that would change; what it raises, stops it. Answers
        {event, undone}.
        """
        request = digest_of("undo", event)

        def body(change):
            if event is None:
                found = list(change.db.execute(
                    "SELECT id, text, changes, undone_by FROM event WHERE collection = ? AND undone_by IS NULL "
                    "AND undoes IS NULL AND changes != '[]' AND id < ? ORDER BY id DESC LIMIT 1", (self.id, change.event)))
            else:
                found = list(change.db.execute(
                    "SELECT id, text, changes, undone_by FROM event WHERE collection = ? AND id = ? AND id < ?",
                    (self.id, event, change.event)))  # it has a row of its own already
            if not found:
                raise NotFound("there is nothing to undo" if event is None else f"event {event}: there is none")
            number, text, changes, undone_by = found[0]
            if undone_by is not None:
                raise Conflict(f"event {number}: was undone by event {undone_by}; undo that one", event=undone_by)
            if changes == "[]":
                raise Conflict(f"event {number} cannot be undone: {text}")
            changes = json.loads(changes)
            if check:
                check({table for table, _, _ in changes})
            change.revert(changes)
            self._check_types(change)
            if any(table == "collection" and {"find", "orientation"} & columns.keys() for table, _, columns in change.rows):
                self._embed_again(change, None)
            change.db.execute("UPDATE event SET undone_by = ? WHERE id = ?", (change.event, number))
            # What an undo undid is done again: it may be undone once more.
            change.db.execute("UPDATE event SET undone_by = NULL WHERE undone_by = ? AND id < ?", (number, number))
            change.db.execute("UPDATE event SET undoes = ? WHERE id = ?", (number, change.event))
            return f"undone: {text}", dict(event=change.event, undone=number)

        return self.mutate("undo", body, who, key, request)

    @staticmethod
    def _check_types(change):
        """Raises Conflict where what was set back leaves a reference of a removed type."""
        for table, row, _ in change.rows:
            found = next(change.db.execute(f"""
                SELECT t.name, r.id FROM reference r JOIN type t ON t.id = r.type
                WHERE r.removed IS NULL AND t.removed IS NOT NULL AND {table[0]}.id = ? LIMIT 1""", (row,)), None) if (
                    table in ("reference", "type")) else None
            if found:
                raise Conflict(f"type {printable(found[0])[:80]} would be removed, but reference {found[1]} belongs to it: "
                               "undo the later events first", reference=found[1])

    # ---- threshold and settings ----

    def set_threshold(self, value: float | str | None = None, *, fpr: float | None = None, label: str | int | None = None,
                      who: str | None = None, key: str | None = None) -> dict:
        """The lowest score at which a label is given: `value`, 0..1, or that of the model's own table for the false positive
        rate `fpr` of pairs; for one type, where `label` says which. Neither: automatic, from the table and the number of
        types. "suggestion": that of `suggest_threshold`. Types that look alike have a higher one than the automatic or the
        suggested one, and just this one where it was given. It holds for the active model. Answers {event, threshold, type}.
        """
        if value is not None and fpr is not None:
            raise Invalid("threshold: give a value or an fpr, not both")
        request = digest_of("threshold", value, fpr, label)
        if (done := self._repeated(key, request)) is not None:
            return done
        number, name = (None, None) if label is None else self._type_id(label)
        snapshot, source = self.snapshot(), "given" if fpr is None else f"fpr {fpr:g}"
        model = self.store.model(snapshot.model_hash, snapshot.tables)
        if value == "suggestion":
            if label is not None:
                raise Invalid("threshold: a suggestion is for all types; leave the label away, or give a value")
            value, source = self.suggest_threshold()["threshold"], "suggestion"
        automatic = value is None and fpr is None
        if not automatic:
            try:
                value = choose_threshold(model, value if value is None else float(value),
                                         fpr if fpr is None else float(fpr), snapshot.orientation)[0]
            except UserError as error:
                raise Invalid(str(error)) from None
            except (TypeError, ValueError):
                raise Invalid("threshold: must be a number between 0 and 1") from None

        def body(change):
            if not list(change.db.execute("SELECT 1 FROM model WHERE id = ? AND state = 'active'", (snapshot.model_id,))):
                raise Outdated("another model was activated just now; try again")
            self._check_there(change, *(() if number is None else (number,)))
            for row, in list(change.db.execute("SELECT id FROM threshold WHERE model = ? AND type IS ? AND removed IS NULL",
                                               (snapshot.model_id, number))):
                change.set("threshold", row, removed=change.now)
            if not automatic:
                change.insert("threshold", collection=self.id, model=snapshot.model_id, type=number, value=value,
                              source=source)
            whose = f" of {name}" if name else ""
            return (f"set the threshold{whose} to {'automatic' if automatic else f'{value:.4f}'}",
                    dict(event=change.event, threshold=None if automatic else value, type=number))

        return self.mutate("threshold", body, who, key, request)

    def set_settings(self, *, find: str | None = None, orientation: str | None = None, margin: float | None = None,
                     who: str | None = None, progress: Callable[[int], None] | None = None) -> dict:
        """Change `settings`. Another `find` or `orientation` embeds all references again; margin -1: the model's own."""
        now = self.settings
        check_settings(now["find"] if find is None else find, now["orientation"] if orientation is None else orientation)
        if margin is not None and not (margin == -1 or 0 <= margin <= 1):
            raise Invalid(f"margin {margin}: must be between 0 and 1, the difference of two scores, or -1: the model's own")

        def body(change):
            row = next(change.db.execute("SELECT find, orientation, margin FROM collection WHERE id = ?", (self.id,)))
            wanted = dict(find=row[0] if find is None else find, orientation=row[1] if orientation is None else orientation,
                          margin=row[2] if margin is None else None if margin == -1 else float(margin))
            change.set("collection", self.id, **wanted)
            if (wanted["find"], wanted["orientation"]) != row[:2]:
                self._embed_again(change, progress)
            return "changed the settings: " + ", ".join(f"{name} {value}" for name, value in wanted.items()), dict(
                event=change.event, **wanted)

        return self.mutate("settings", body, who)

    def _embed_again(self, change, progress):
        """All vectors of the collection, within the transaction: others may read meanwhile, not write. Those of removed
        references too, which an undo brings back; a retired model makes its own when it is used again."""
        find, orientation = next(change.db.execute("SELECT find, orientation FROM collection WHERE id = ?", (self.id,)))
        references = list(change.db.execute(
            "SELECT id, picture, quad, found, orientation FROM reference WHERE collection = ?", (self.id,)))
        models = list(change.db.execute("SELECT id, hash FROM model WHERE collection = ? AND state != 'retired'",
                                        (self.id,)))
        change.db.execute("DELETE FROM feature WHERE model IN (SELECT id FROM model WHERE collection = ? "
                          "AND state = 'retired')", (self.id,))

        def vectors_of(row):
            number, picture, quad, found, turned = row
            data, given = self.store.blobs.get(picture), json.loads(quad) if quad and found is None else None
            return number, {model_id: self._embedded(digest, find, orientation, data, given, turned)[0]
                            for model_id, digest in models}

        for done, (number, made) in enumerate(map_ahead(vectors_of, references, threads=self.store.threads), 1):
            for model_id, vectors in made.items():
                self.write_feature(change.db, number, model_id, vectors)
            change.db.execute("UPDATE reference SET changed = ? WHERE id = ?", (change.event, number))
            if progress:
                progress(done)
