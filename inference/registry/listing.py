"""What is in a collection: types, references, events, models; as last committed, a page at a time."""
import json

from ..errors import printable
from .errors import NotFound
from .inputs import clean_label


class Listing:
    """What a `core.Registry` lists of itself; it has `store`, `id` and `snapshot`."""

    @property
    def labels(self) -> list[str]:
        """Of all types, sorted."""
        return sorted(row[0] for row in self.store.read(
            "SELECT name FROM type WHERE collection = ? AND removed IS NULL", (self.id,)))

    def models(self) -> list[dict]:
        """[{hash, name, state, created, references, threshold}]: `references` are those that the model has embedded,
        `threshold` is the one set for it (None: automatic)."""
        rows = self.store.read("""
            SELECT m.hash, m.name, m.state, m.created,
                (SELECT count(*) FROM feature f JOIN reference r ON r.id = f.reference
                 WHERE f.model = m.id AND r.removed IS NULL),
                (SELECT value FROM threshold t WHERE t.model = m.id AND t.type IS NULL AND t.removed IS NULL)
            FROM model m WHERE m.collection = ? ORDER BY m.id""", (self.id,))
        return [dict(zip(("hash", "name", "state", "created", "references", "threshold"), row)) for row in rows]

    def types(self, after: int = 0, limit: int = 100, text: str | None = None) -> list[dict]:
        """[{type, label, references, cover, created, threshold, look_alikes: [{label, score}]}], by id, from the one behind
        `after`. cover: its first reference. text: only labels that contain it."""
        return self._types_where("t.id > ? AND (? IS NULL OR instr(lower(t.name), lower(?)))", (after, text, text), limit)

    def type(self, label: str | int) -> dict:
        """One of `types`, by its label or id. Raises NotFound."""
        return self._types_where("t.id = ?", (self._type_id(label)[0],), 1)[0]

    def _types_where(self, condition, bindings, limit):
        snapshot = self.snapshot()
        rows = self.store.read(f"""
            SELECT t.id, t.name, (SELECT count(*) FROM reference r WHERE r.type = t.id AND r.removed IS NULL),
                (SELECT min(r.id) FROM reference r WHERE r.type = t.id AND r.removed IS NULL), t.created
            FROM type t WHERE t.collection = ? AND t.removed IS NULL AND {condition} ORDER BY t.id LIMIT ?""",
                               (self.id, *bindings, limit))
        types = [dict(zip(("type", "label", "references", "cover", "created"), row)) for row in rows]
        alike = {one["type"]: [] for one in types}
        for first, second, score in snapshot.look_alikes:
            for mine, other in ((first, second), (second, first)):
                if mine in alike:
                    alike[mine].append(dict(label=snapshot.types[other], score=score))
        for one in types:
            one["threshold"] = snapshot.thresholds.get(one["type"], snapshot.threshold)
            one["look_alikes"] = alike[one["type"]]
        return types

    def references(self, label: str | int | None = None, kind: str | None = None, after: int = 0, limit: int = 100,
                   removed: bool = False) -> list[dict]:
        """[{reference, type, label, kind, sha256, quad, found, orientation, quality, source, who, created, removed}], by id,
        from the one behind `after`; of a type (its label or id), of a kind; or those that were removed."""
        number = None if label is None else self._type_id(label)[0]
        return self._references_where(
            f"r.id > ? AND r.removed IS {'NOT ' if removed else ''}NULL AND (? IS NULL OR r.type = ?) "
            "AND (? IS NULL OR r.kind = ?)", (after, number, number, kind, kind), limit)

    def reference(self, number: int) -> dict:
        """One of `references`, a removed one too. Raises NotFound."""
        rows = self._references_where("r.id = ?", (number,), 1) if isinstance(number, int) else ()
        if not rows:
            raise NotFound(f"reference {printable(number)[:40]}: there is none")
        return rows[0]

    def _references_where(self, condition, bindings, limit):
        rows = self.store.read(f"""
            SELECT r.id, r.type, t.name, r.kind, r.picture, r.quad, r.found, r.orientation, r.quality, r.source, r.who,
                r.created, r.removed
            FROM reference r LEFT JOIN type t ON t.id = r.type
            WHERE r.collection = ? AND {condition} ORDER BY r.id LIMIT ?""", (self.id, *bindings, limit))
        names = ("reference", "type", "label", "kind", "sha256", "quad", "found", "orientation", "quality", "source", "who",
                 "created", "removed")
        found = [dict(zip(names, row)) for row in rows]
        for one in found:
            one["quad"] = json.loads(one["quad"]) if one["quad"] else None
            one["quality"] = json.loads(one["quality"]) if one["quality"] else None
        return found

    def picture(self, reference: int) -> bytes:
        """The picture of a reference as it was registered. Raises NotFound, Damaged."""
        return self.store.blobs.get(self.reference(reference)["sha256"])

    def events(self, after: int = 0, limit: int = 100, newest: bool = False) -> list[dict]:
        """[{event, when, who, what, text, undoes, undone_by}], by id, from the one behind `after`; newest: from the last one
        on, before `after` unless it is 0."""
        order = "id DESC" if newest else "id"
        limits = "(? = 0 OR id < ?)" if newest else "(? = 0 OR id > ?)"
        rows = self.store.read(f"""SELECT id, created, who, what, text, undoes, undone_by FROM event
            WHERE collection = ? AND {limits} ORDER BY {order} LIMIT ?""", (self.id, after, after, limit))
        return [dict(zip(("event", "when", "who", "what", "text", "undoes", "undone_by"), row)) for row in rows]

    def _type_id(self, label) -> tuple[int, str]:
        """(id, label) of a type, given by its label or id."""
        by_id = isinstance(label, int) and not isinstance(label, bool)
        label = label if by_id else clean_label(label)
        rows = self.store.read(f"SELECT id, name FROM type WHERE collection = ? AND {'id' if by_id else 'name'} = ? "
                               "AND removed IS NULL", (self.id, label))
        if not rows:
            raise NotFound(f"type {printable(label)[:80]}: there is none of this {'number' if by_id else 'name'}")
        return rows[0]
