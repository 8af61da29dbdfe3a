"""How images become references: inspected by the gate, embedded by each model of the collection, inserted as one event."""
import contextlib
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ..errors import plural, printable
from ..image import ImageError, decode_reduced, map_ahead
from ..model import TURNS
from ..rectify import as_quad
from .errors import Invalid, Outdated, Refused
from .gate import Finding, findings, inspect
from .inputs import checked_quad, clean_label, clean_text, corners_of, digest_of, name_of, picture_of

NEAR_DUPLICATE = 0.995  # score of two references of a type of which one tells nothing new
GATE_SIZE = 512  # pixels: the gate looks at images no smaller than twice that


class Prepared(NamedTuple):
    """An image that is ready to be registered: `vectors` are float32 `[n, D]` for each model, by the model's id; `settings`
    are the collection's `find` and `orientation` that they were made with."""
    data: bytes
    width: int
    height: int
    quad: np.ndarray | None
    found: float | None
    orientation: int
    quality: Any
    vectors: dict[int, np.ndarray]
    settings: tuple[str, str]


class Registering:
    """How a `core.Registry` registers; it has `store`, `id` and `snapshot`, looks as `asking.Asking` does, and changes by
    `changing.Changing.mutate`."""

    # ---- what would be registered ----

    def inspect(self, image, label=None, quad=None, orientation: int = 0) -> dict:
        """What `add` would say, without registering anything: {quad, found, width, height, quality, findings, nearest,
        vectors (of the active model)}."""
        data, label = picture_of(image), clean_label(label) if label else None
        while True:
            with contextlib.suppress(Outdated):
                return self._inspected(self.prepare(data, quad, orientation), label, "type")[0]

    def _inspected(self, prepared, label, kind):
        """(what `inspect` answers, look-alikes [(reference, score)] of other types)"""
        snapshot = self.snapshot()
        vectors = prepared.vectors.get(snapshot.model_id)
        if vectors is None:
            raise Outdated("another model was activated while the image was embedded: try again")
        nearest = self._nearest(snapshot, vectors, 10)
        found, alike = list(findings(prepared.quality)), {}
        digest = hashlib.sha256(prepared.data).hexdigest()
        same = self.store.read("SELECT r.id, t.name FROM reference r LEFT JOIN type t ON t.id = r.type WHERE r.picture = ? "
                               "AND r.collection = ? AND r.removed IS NULL ORDER BY r.id LIMIT 10", (digest, self.id))
        known = {entry["reference"] for entry in nearest}
        near = [dict(reference=number, label=name, kind="unknown" if name is None else "type", score=1.0)
                for number, name in same if number not in known] + nearest
        twin = next((entry for entry in near if kind == entry["kind"] and entry["label"] == label
                     and entry["score"] >= NEAR_DUPLICATE), None)
        if twin:
            found.append(Finding("near-duplicate", f"reference {twin['reference']} of the same type is nearly the same "
                                 f"image (score {twin['score']:.4f}): it would tell nothing new", twin))
        for entry in near:
            if (entry["label"], entry["kind"]) != (label, kind) and entry["score"] >= snapshot.threshold:
                alike.setdefault(entry["label"], entry)
        if label or kind == "unknown":
            for entry in list(alike.values())[:3]:
                other = f"type {entry['label']}" if entry["kind"] == "type" else "a known unknown"
                found.append(Finding("look-alike", f"it looks like {other} (reference {entry['reference']}, score "
                                     f"{entry['score']:.4f}): is it the right type?", entry))
        seen = dict(quad=corners_of(prepared.quad), found=prepared.found, width=prepared.width, height=prepared.height,
                    quality=prepared.quality._asdict(), findings=found, nearest=nearest, vectors=vectors)
        return seen, list(alike.values())

    def prepare(self, image, quad=None, orientation: int = 0, only: Iterable[int] | None = None) -> Prepared:
        """An image as `look` takes it, embedded by each model of the collection that is not retired (or by those whose ids
        are in `only`). orientation: by so many degrees, 0, 90, 180 or 270, the document is turned clockwise in it."""
        if orientation not in (0, 90, 180, 270):
            raise Invalid(f"orientation {orientation}: must be 0, 90, 180 or 270 degrees")
        data = picture_of(image)
        pixels, divisor = decode_reduced(data, GATE_SIZE)
        height, width = pixels.shape[0] * divisor, pixels.shape[1] * divisor
        given = None if quad is None else as_quad(checked_quad(quad), width, height)
        snapshot = self.snapshot()
        models = self.store.read("SELECT id, hash FROM model WHERE collection = ? AND state != 'retired'", (self.id,))
        vectors, seen = {}, None
        for number, digest in models:
            if only is None or number in only:
                vectors[number], seen = self._embedded(digest, snapshot.find, snapshot.orientation, data, given, orientation)
        quad = given if seen is None else seen.quad
        quality = inspect(pixels, None if quad is None else quad / divisor, divisor)
        return Prepared(data, width, height, quad, None if seen is None else seen.score, orientation, quality, vectors,
                        (snapshot.find, snapshot.orientation))

    def _embedded(self, digest, find, orientation, data, quad, turned):
        """(float32 `[views x turns, D]` of a reference, `Seen`). orientation: the collection's; turned: of the document."""
        squares, seen = self.views_of(digest, find, reference=True)(data, quad)
        turns = TURNS if orientation == "any" else 1
        return self.store.model(digest).embed(np.stack(
            [np.rot90(square, turned // 90 - turn) for square in squares for turn in range(turns)])), seen

    def features_of(self, reference: int, model_id: int) -> np.ndarray:
        """float32 `[n, D]`: what a model of the collection makes of a registered picture, embedded now."""
        row = self.reference(reference)
        given = row["quad"] if row["found"] is None else None  # corners that were found are found again
        return self.prepare(self.picture(reference), given, row["orientation"], only=(model_id,)).vectors[model_id]

    # ---- registering ----

    def add(self, image, label: str | None = None, *, kind: str = "type", quad=None, orientation: int = 0,
            source: str | None = None, who: str | None = None, force: bool = False, key: str | None = None) -> dict:
        """Register an image of a type, a new or a known one; or, with kind "unknown" and no label, as an unknown: what is
        nearest to it is rejected.

        image, quad: as for `look`; the picture is kept as it is. Answers {reference, type, label, kind, event, new_type,
        sha256, quad, findings}. Raises Refused where the gate finds something (blur, glare, a near duplicate, a look-alike
        of another type; `force` registers all the same), ImageError. When it returns, all is on the disk.
        """
        if kind not in ("type", "unknown"):
            raise Invalid(f"kind {printable(kind)[:40]}: must be type or unknown")
        if (label is None) != (kind == "unknown"):
            raise Invalid("a type needs a label" if kind == "type" else "a known unknown has no label")
        label = clean_label(label) if kind == "type" else None
        source, who = clean_text(source, "source"), clean_text(who, "who")
        data = picture_of(image)
        request = digest_of("add", label, kind, hashlib.sha256(data).hexdigest(), checked_quad(quad), orientation, source)
        if (done := self._repeated(key, request)) is not None:
            return done

        def body(change):
            number, new = self.type_named(change, label) if label is not None else (None, False)
            reference = self.insert(change, prepared, sha256, number, kind, source, who, alike)
            what = label if label is not None else "a known unknown"
            return f"registered an image of {what}", dict(
                reference=reference, type=number, label=label, kind=kind, event=change.event, new_type=new, sha256=sha256,
                quad=seen["quad"], findings=[finding._asdict() for finding in seen["findings"]])

        with self.store.pictures() as put:
            while True:
                with contextlib.suppress(Outdated):
                    prepared = self.prepare(data, quad, orientation)
                    seen, alike = self._inspected(prepared, label, kind)
                    if seen["findings"] and not force:
                        raise Refused("; ".join(finding.message for finding in seen["findings"])
                                      + "; register it all the same with force", seen["findings"])
                    sha256 = put(data)
                    return self.mutate("add", body, who, key, request)

    def add_many(self, items: Iterable[tuple], who: str | None = None, source: str | None = None,
                 progress: Callable[[int], None] | None = None) -> list[dict]:
        """Register [(image, label)] or [(image, label, {quad, orientation, kind, source})] without the gate, as one event.
        Answers for each {reference, type, label, kind, event, new_type, sha256}. progress: called with the number of images
        done. An image that cannot be used raises ImageError that names its position, and nothing is registered."""
        who, source = clean_text(who, "who"), clean_text(source, "source")
        rows = []

        def ready(numbered):
            position, (image, label, *more) = numbered
            more = more[0] if more else {}
            kind = more.get("kind", "type")
            label = clean_label(label) if kind == "type" else None
            try:
                prepared = self.prepare(image, more.get("quad"), more.get("orientation", 0))
            except ImageError as error:
                raise ImageError(f"{name_of(image) or f'image {position}'}: {error}") from None
            return (prepared._replace(data=b""), put(prepared.data), label, kind,
                    clean_text(more.get("source"), "source") or source)

        def body(change):
            results = []
            for prepared, sha256, label, kind, of_image in rows:
                number, new = self.type_named(change, label) if label is not None else (None, False)
                reference = self.insert(change, prepared, sha256, number, kind, of_image, who, ())
                results.append(dict(reference=reference, type=number, label=label, kind=kind, event=change.event,
                                    new_type=new, sha256=sha256))
            return f"registered {plural(len(rows), 'image')}", dict(references=results)

        with self.store.pictures() as put:
            for done in map_ahead(ready, enumerate(items), ahead=64, threads=self.store.threads):
                rows.append(done)
                if progress:
                    progress(len(rows))
            return self.mutate("add", body, who)["references"] if rows else []

    def type_named(self, change, label):
        """(id of the type of this name, whether it is new)"""
        row = next(change.db.execute("SELECT id FROM type WHERE collection = ? AND name = ? AND removed IS NULL",
                                     (self.id, label)), None)
        return (row[0], False) if row else (change.insert("type", collection=self.id, name=label), True)

    def insert(self, change, prepared, sha256, kind_of, kind, source, who, alike):
        """The id of a new reference. sha256: its picture, from `StoreFiles.pictures`. Raises Outdated."""
        db = change.db
        models = {number: state for number, state in db.execute(
            "SELECT id, state FROM model WHERE collection = ? AND state != 'retired'", (self.id,))}
        settings = next(db.execute("SELECT find, orientation FROM collection WHERE id = ?", (self.id,)))
        if models.keys() - prepared.vectors.keys() or settings != prepared.settings or not self.store.blobs.has(sha256):
            raise Outdated("a model or a setting was changed, or an image was deleted, while the images were embedded: "
                           "nothing was registered; try again")
        db.execute("INSERT OR IGNORE INTO picture VALUES (?, ?, ?, ?)",
                   (sha256, self.store.blobs.path(sha256).stat().st_size, prepared.width, prepared.height))
        reference = change.insert(
            "reference", collection=self.id, type=kind_of, kind=kind, picture=sha256,
            quad=None if prepared.quad is None else json.dumps(corners_of(prepared.quad)), found=prepared.found,
            orientation=prepared.orientation, quality=json.dumps(prepared.quality._asdict()), source=source, who=who)
        for number, vectors in prepared.vectors.items():
            if number in models:
                self.write_feature(db, reference, number, vectors)
        active = next(number for number, state in models.items() if state == "active")
        for entry in alike:
            db.execute("INSERT INTO look_alike(model, reference, other, score) SELECT ?, ?, id, ? FROM reference "
                       "WHERE id = ?", (active, reference, entry["score"], entry["reference"]))
        return reference

    @staticmethod
    def write_feature(db, reference: int, model_id: int, vectors: np.ndarray) -> None:
        """Within a transaction: the vectors of a reference, in place of those it had."""
        data = np.ascontiguousarray(vectors, "<f4").tobytes()
        db.execute("INSERT OR REPLACE INTO feature(reference, model, parts, vectors, crc32) VALUES (?, ?, ?, ?, ?)",
                   (reference, model_id, len(vectors), data, zlib.crc32(data)))
