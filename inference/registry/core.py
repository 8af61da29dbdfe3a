"""A registry: the types of one collection of a store, changed and asked at any time, by any number of threads and processes.

    registry = Registry.open("STORE", create=True)
    registry.add("passport.jpg", "passport")
    label, score = registry("photo.jpg")           # label None: not registered

Every mutation is one transaction and one event, which can be undone. Vectors are derived from the pictures and lie in the
store for each model; they are searched in memory. Before each answer the registry looks whether anyone has committed
something (3 us) and reads the rows that have changed since: every process sees every committed change.
"""
import contextlib
import hashlib
import itertools
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import apsw
import numpy as np

from ..errors import UserError, printable
from ..image import ImageError, decode_reduced, map_ahead
from ..model import DEFAULT_MODEL, TURNS, Model
from ..rectify import as_quad
from ..thresholds import choose_threshold
from ..views import FINDS, Views, find_in_references
from .errors import Conflict, Invalid, NotFound, Outdated, Refused
from .gate import Finding, findings, inspect
from .inputs import checked_quad, clean_label, clean_text, corners_of, digest_of, name_of, opened, picture_of
from .listing import Listing
from .state import PARTS, State
from .store import DEFAULT_COLLECTION, Change, StoreFiles, check_settings

NEAR_DUPLICATE = 0.995  # score of two references of a type of which one tells nothing new
NAMED = "a word of letters, digits, '-' and '_', at most 64"
GATE_SIZE = 512  # pixels: the gate looks at images no smaller than twice that


class Look(NamedTuple):
    """What the network made of an image: features float32 `[V, D]`, a row for each view; the names of the views; the
    document's corners (None: none was looked for, or found), the finder's score; the model's hash; the image itself."""
    features: np.ndarray
    views: tuple[str, ...]
    quad: np.ndarray | None
    found: float | None
    model: str
    image: Any


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


class Registry(Listing):
    """One collection of a store; see the module's docstring. `Registry.open` and `Store.collection` make it.

    `store` is its store, `name` its name. Its methods may be called from several threads. `who` is the name of who changes
    something; `key` makes a mutation safe to repeat: the same call with the same key gives the first call's answer, another
    call with that key is a Conflict. Labels are any printable text. Raises UserError; see registry/errors.py.
    """

    def __init__(self, store: "Store", number: int, name: str):
        self.store, self.id, self.name = store, number, name
        self.state = State(store, number)
        self.snapshot = self.state.snapshot  # () -> `state.Snapshot`
        self._own_store, self._views, self._viewing = False, {}, threading.Lock()

    @classmethod
    def open(cls, path, collection: str = DEFAULT_COLLECTION, *, create: bool = False, model=None, find: str = "auto",
             orientation: str = "upright", threads: int = 0, backend: str = "cpu", index: str | None = None) -> "Registry":
        """The registry in the folder `path`.

        create: make the store and the collection where they are missing (also where several processes come at the same
        time, or one was killed while it made them), with `model` (the path of an exported model; None: the shipped one),
        `find` and `orientation` (`settings`). index: what searches, see `engines.open_index`; None: memory, exact. threads:
        work on many images (0: one per core). backend: "cpu" or "cuda", for the network.
        """
        store = Store(path, create, threads, backend, index)
        try:
            if create and not store.read("SELECT id FROM collection WHERE name = ?", (collection,)):
                with contextlib.suppress(Conflict):  # another process was faster
                    store.create(collection, model, find, orientation)
            registry = store.collection(collection)
        except BaseException:
            store.close()
            raise
        registry._own_store = True
        return registry

    def close(self) -> None:
        if self._own_store:
            self.store.close()

    def _release(self):
        for name in ("traffic", "upgrade"):
            if name in self.__dict__ and hasattr(self.__dict__[name], "close"):
                self.__dict__[name].close()
        self.state.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @cached_property
    def traffic(self):
        """Decisions, feedback and unknowns of this collection (`traffic.Traffic`)."""
        from .traffic import Traffic
        return Traffic(self.store, self.name)

    @cached_property
    def unknowns(self):
        """The unknowns that were kept (`unknowns.Unknowns`)."""
        from .unknowns import Unknowns
        return Unknowns(self)

    @cached_property
    def upgrade(self):
        """A change of the model (`upgrade.Upgrade`)."""
        from .upgrade import Upgrade
        return Upgrade(self)

    def suggest_threshold(self, **options) -> dict:
        """A threshold from what the collection has seen (`threshold.suggest`)."""
        from .threshold import suggest
        return suggest(self, **options)

    def export(self, target, **options) -> dict:
        """Write the collection as one ZIP file (`transfer.export`)."""
        from .transfer import export
        return export(self, target, **options)

    def import_(self, source, on_conflict: str = "skip", who=None, **options) -> dict:
        """Register what a ZIP file of `export`, or a folder of images, holds (`transfer.import_`)."""
        from .transfer import import_
        return import_(self, source, on_conflict, who, **options)

    # ---- state ----

    @property
    def settings(self) -> dict:
        """`find`: "never": images are compared as they are; "always": the document that is found in them; "auto": both, and
        the better score decides. `orientation`: "upright", or "any": documents may lie any of four ways up. `margin`: the
        runner-up gap (None: the model's own)."""
        row = self.store.read("SELECT find, orientation, margin FROM collection WHERE id = ?", (self.id,))
        return dict(zip(("find", "orientation", "margin"), row[0]))

    @property
    def model(self) -> Model:
        """The active model."""
        return self.store.model(self.snapshot().model_hash)

    @property
    def threshold(self) -> float:
        """The lowest score at which a label is given. Types that look alike, or have their own, may have another one."""
        return self.snapshot().threshold

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines about the threshold."""
        return self.snapshot().warnings

    # ---- looking ----

    def views_of(self, digest, find, reference=False) -> Views:
        key = digest, find, reference
        with self._viewing:  # the finder is loaded once, by whichever thread comes first
            if key not in self._views:
                choice = FINDS[find]
                finder = next((views.finder for views in self._views.values() if views.finder), None)
                self._views[key] = Views(self.store.model(digest), find_in_references(choice) if reference else choice,
                                         finder, self.store.backend)
            return self._views[key]

    def look(self, image, quad=None, snapshot=None) -> Look:
        """An image (a path, a file's content as bytes, or an array as `cv2.imread` returns it) as the network sees it:
        decoded, the document looked for as `settings` say, embedded. quad: its corners where they are known, [x, y] in
        pixels of the upright image, clockwise from the document's top left. snapshot: the state that is meant, where it was
        asked for already; None: that of now. Raises ImageError."""
        snapshot = snapshot or self.snapshot()
        squares, seen = self.views_of(snapshot.model_hash, snapshot.find)(opened(image), checked_quad(quad))
        features = self.store.model(snapshot.model_hash).embed(np.stack(squares))
        return Look(features, seen.views, seen.quad, seen.score, snapshot.model_hash, image)

    def decide(self, looks: list[Look], top_k: int = 1, snapshot=None) -> list[dict]:
        """For each look {image, label or None, score, top_k: [{label, type, kind, score, reference}], error, reason,
        threshold, margin, search, recall, quad, found, view, orientation, model, event}; all are searched at once.

        `reason`: "accepted"; "below-threshold" of the best type; "runner-up-gap": the second type scores nearly the same;
        "known-unknown": the nearest reference is a picture that was registered as unknown; "empty": nothing is registered.
        `search`: "exact", or "approximate" with `recall`, the share of right answers that the index measured. `orientation`:
        by so many degrees clockwise the document is turned (None unless the collection's is "any"). snapshot: as for `look`.
        """
        if top_k < 1:
            raise Invalid(f"top_k {top_k}: must be at least 1")
        if not looks:
            return []
        snapshot = snapshot or self.snapshot()
        looks = [look if look.model == snapshot.model_hash else self.look(
            look.image, look.quad if look.found is None else None, snapshot) for look in looks]
        index = snapshot.index
        shared = dict(error=None, search="exact" if index.exact else "approximate", recall=index.recall,
                      model=snapshot.model_hash[:16], event=snapshot.event, margin=snapshot.margin)
        if not len(index):
            return [self._empty(look, snapshot, shared) for look in looks]
        queries = looks[0].features if len(looks) == 1 else np.concatenate([look.features for look in looks])
        hits = index.search(queries, max(top_k, 2))
        scores = np.clip((hits.cosines + 1) / 2, 0, 1).tolist()  # -inf, where there are fewer types, becomes 0
        types, ids, results, first = hits.types.tolist(), hits.ids.tolist(), [], 0
        self._learn(snapshot, itertools.chain.from_iterable(types))
        for look in looks:
            views = range(first, first + len(look.views))
            first += len(look.views)
            results.append(self._result(look, [list(zip(scores[row], types[row], ids[row])) for row in views], snapshot,
                                        top_k, shared))
        return results

    def _result(self, look, rows, snapshot, top_k, shared):
        """rows: for each view [(score, type, row id)], best first, places that are not filled with row id 0."""
        if len(rows) == 1:
            ranked, view = [hit for hit in rows[0] if hit[2]], look.views[0]
        else:
            best = {}
            for row, name in zip(rows, look.views):
                for score, kind, number in row:
                    if number and (kind not in best or score > best[kind][0]):
                        best[kind] = score, kind, number, name
            ranked = sorted(best.values(), key=lambda hit: (-hit[0], hit[1]))
            view = ranked[0][3] if ranked else None
        if not ranked:  # an engine that is shared has lost its last row just now
            return self._empty(look, snapshot, shared)
        score, kind, number = ranked[0][:3]
        threshold = snapshot.thresholds.get(kind, snapshot.threshold)
        if score < threshold:
            reason = "below-threshold"
        elif kind < 0:
            reason = "known-unknown"
        elif len(ranked) > 1 and score - ranked[1][0] < snapshot.margin:
            reason = "runner-up-gap"
        else:
            reason = "accepted"
        return dict(
            image=name_of(look.image), label=snapshot.types[kind] if reason == "accepted" else None, score=score,
            top_k=[dict(label=snapshot.types[hit[1]] if hit[1] > 0 else None, type=hit[1] if hit[1] > 0 else None,
                        kind="type" if hit[1] > 0 else "unknown", score=hit[0], reference=hit[2] // PARTS)
                   for hit in ranked[:top_k]],
            reason=reason, threshold=threshold, quad=corners_of(look.quad), found=look.found, view=view,
            orientation=number % PARTS % TURNS * 90 if snapshot.orientation == "any" else None, **shared)

    @staticmethod
    def _empty(look, snapshot, shared):
        return dict(image=name_of(look.image), label=None, score=None, top_k=[], reason="empty",
                    threshold=snapshot.threshold, quad=corners_of(look.quad), found=look.found, view=None, orientation=None,
                    **shared)

    def _learn(self, snapshot, types):
        """An engine that several processes share may have types that this one has not read yet: all snapshots share `types`,
        so that reading what was committed adds them."""
        if not all(kind <= 0 or kind in snapshot.types for kind in types):
            self.snapshot()

    def __call__(self, image, quad=None) -> tuple[str | None, float | None]:
        """(label, score) of one image; score None where nothing is registered. Raises ImageError."""
        result = self.decide([self.look(image, quad)])[0]
        return result["label"], result["score"]

    def classify(self, images: Iterable, top_k: int = 1) -> list[dict]:
        """The results of `decide` for many images. One that cannot be used has an `error`, and `reason` "unusable"."""
        return list(self.stream(images, top_k))

    def stream(self, images: Iterable, top_k: int = 1) -> Iterator[dict]:
        """The results of `classify`, in order, each as soon as it is known, in bounded memory."""
        snapshot = self.snapshot()
        views, images = self.views_of(snapshot.model_hash, snapshot.find), list(images)
        for part in self.store.model(snapshot.model_hash).stream(images, lambda image: views(opened(image))):
            rows, looks = {}, []
            for row, position in enumerate(part.positions):
                rows.setdefault(position, []).append(row)
            for position, of_image in rows.items():
                seen = part.notes[position]
                looks.append(Look(part.features[of_image], seen.views, seen.quad, seen.score, snapshot.model_hash,
                                  images[position]))
            results = dict(zip(rows, self.decide(looks, top_k)))
            for position, reason in part.reasons.items():
                results[position] = self.unusable(images[position], reason)
            yield from (results[position] for position in sorted(results))

    def unusable(self, image, reason: str) -> dict:
        """The result for an image that cannot be used."""
        snapshot = self.snapshot()
        return dict(image=name_of(image), label=None, score=None, top_k=[], error=reason, reason="unusable",
                    threshold=snapshot.threshold, margin=snapshot.margin, search="exact" if snapshot.index.exact else
                    "approximate", recall=snapshot.index.recall, quad=None, found=None, view=None, orientation=None,
                    model=snapshot.model_hash[:16], event=snapshot.event)

    def search(self, image, k: int = 10) -> list[dict]:
        """The k nearest references: [{reference, label, kind, score}], best first. image: as for `look`, or a `Look`."""
        if k < 1:
            raise Invalid(f"k {k}: must be at least 1")
        look = image if isinstance(image, Look) else self.look(image)
        return self._nearest(self.snapshot(), look.features, k)

    def _nearest(self, snapshot, features, k):
        if not len(snapshot.index):
            return []
        hits, best = snapshot.index.search_rows(features, k * PARTS), {}
        self._learn(snapshot, hits.types.ravel().tolist())
        for score, kind, number in zip(*(column.ravel().tolist() for column in hits)):
            if number:
                best[number // PARTS] = max(best.get(number // PARTS, (-1, 0)), (min(max((score + 1) / 2, 0), 1), kind))
        ranked = sorted(best.items(), key=lambda item: (-item[1][0], item[0]))[:k]
        return [dict(reference=number, label=snapshot.types[kind] if kind > 0 else None,
                     kind="type" if kind > 0 else "unknown", score=score) for number, (score, kind) in ranked]

    # ---- registering ----

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
                                 f"picture (score {twin['score']:.4f}): it would tell nothing new", twin))
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
            return f"registered a picture of {what}", dict(
                reference=reference, type=number, label=label, kind=kind, event=change.event, new_type=new, sha256=sha256,
                quad=seen["quad"], findings=[finding._asdict() for finding in seen["findings"]])

        while True:
            with contextlib.suppress(Outdated):
                prepared = self.prepare(data, quad, orientation)
                seen, alike = self._inspected(prepared, label, kind)
                if seen["findings"] and not force:
                    raise Refused("; ".join(finding.message for finding in seen["findings"])
                                  + "; register it all the same with force", seen["findings"])
                sha256 = self.store.blobs.put(data)
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
            return (prepared._replace(data=b""), self.store.blobs.put(prepared.data), label, kind,
                    clean_text(more.get("source"), "source") or source)

        for done in map_ahead(ready, enumerate(items), ahead=64, threads=self.store.threads):
            rows.append(done)
            if progress:
                progress(len(rows))
        if not rows:
            return []

        def body(change):
            results = []
            for prepared, sha256, label, kind, of_image in rows:
                number, new = self.type_named(change, label) if label is not None else (None, False)
                reference = self.insert(change, prepared, sha256, number, kind, of_image, who, ())
                results.append(dict(reference=reference, type=number, label=label, kind=kind, event=change.event,
                                    new_type=new, sha256=sha256))
            return f"registered {len(rows):,} pictures", dict(references=results)

        return self.mutate("add", body, who)["references"]

    def type_named(self, change, label):
        """(id of the type of this name, whether it is new)"""
        row = next(change.db.execute("SELECT id FROM type WHERE collection = ? AND name = ? AND removed IS NULL",
                                     (self.id, label)), None)
        return (row[0], False) if row else (change.insert("type", collection=self.id, name=label), True)

    def insert(self, change, prepared, sha256, kind_of, kind, source, who, alike):
        db = change.db
        models = {number: state for number, state in db.execute(
            "SELECT id, state FROM model WHERE collection = ? AND state != 'retired'", (self.id,))}
        settings = next(db.execute("SELECT find, orientation FROM collection WHERE id = ?", (self.id,)))
        if models.keys() - prepared.vectors.keys() or settings != prepared.settings or not self.store.blobs.has(sha256):
            raise Outdated("a model or a setting was changed, or pictures were deleted for good, while the images were "
                           "embedded: nothing was registered; try again")
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

    # ---- changing ----

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
            text = f"removed {name} with {len(removed)} pictures" if reference is None else (
                f"removed a picture of {name or 'a known unknown'}")
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
            return (f"moved a picture of {row['label'] or 'a known unknown'} to {label}",
                    dict(event=change.event, reference=reference, type=number, label=label))

        return self.mutate("move", body, who, key, request)

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
        if value == "suggestion":
            if label is not None:
                raise Invalid("threshold: a suggestion is for all types; leave the label away, or give a value")
            value, source = self.suggest_threshold()["threshold"], "suggestion"
        automatic = value is None and fpr is None
        if not automatic:
            try:
                value = choose_threshold(self.store.model(snapshot.model_hash), value if value is None else float(value),
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

    def purge(self, before: float, who: str | None = None) -> dict:
        """Delete for good what was removed before a time (seconds since 1970): rows, vectors, pictures that nothing else
        has, and what events and decisions say of them. It cannot be undone. Answers {event, references, pictures}."""
        unused, names = [], set()

        def body(change):
            db = change.db
            gone = dict(db.execute("SELECT id, picture FROM reference WHERE collection = ? AND removed < ?",
                                   (self.id, before)))
            for number in gone:
                for rows in ("feature WHERE reference", "look_alike WHERE reference", "look_alike WHERE other",
                             "reference WHERE id"):
                    db.execute(f"DELETE FROM {rows} = ?", (number,))
            types = dict(db.execute("SELECT id, name FROM type t WHERE collection = ? AND removed < ? AND NOT EXISTS "
                                    "(SELECT 1 FROM reference WHERE type = t.id)", (self.id, before)))
            for number in types:
                db.execute("DELETE FROM threshold WHERE type = ?", (number,))
                db.execute("DELETE FROM type WHERE id = ?", (number,))
            unused.extend(name for name in set(gone.values())
                          if not list(db.execute("SELECT 1 FROM reference WHERE picture = ? LIMIT 1", (name,))))
            db.executemany("DELETE FROM picture WHERE sha256 = ?", [(name,) for name in unused])
            names.update(name for name in types.values() if not list(db.execute(
                "SELECT 1 FROM type WHERE collection = ? AND name = ? LIMIT 1", (self.id, name))))
            if gone or types:
                self._forget(change, gone.keys(), types.keys())
            return (f"deleted {len(gone)} removed pictures for good",
                    dict(event=change.event, deleted=list(gone), types=list(types)))

        result = self.mutate("purge", body, who)
        with self.store.write() as db:  # who registers one of them now, looks whether it is there after this
            for name in unused:
                if not list(db.execute("SELECT 1 FROM picture WHERE sha256 = ?", (name,))):
                    self.store.blobs.delete(name)
        self.store.clear_log()
        self.traffic.forget([*result["types"], *(-number for number in result["deleted"])], sorted(names))
        return dict(event=result["event"], references=len(result["deleted"]), pictures=len(unused))

    def _forget(self, change, references, types):
        """What events say of references and types that were deleted for good: they cannot be undone any longer."""
        forgotten, shorter = [], []
        for event, changes, result in change.db.execute("SELECT id, changes, result FROM event WHERE collection = ? AND "
                                                        "id < ? AND what != 'purge'", (self.id, change.event)):
            changes, result = json.loads(changes), json.loads(result)
            listed = result.get("references")
            if (any(row in (references if table == "reference" else types if table == "type" else ())
                    or not types.isdisjoint(columns.get("type", ())) for table, row, columns in changes)
                    or any(isinstance(one, dict) and one.get("type") in types
                           for one in (result, *(listed if isinstance(listed, list) else ())))):
                forgotten.append((event,))
            elif any(found["details"].get("reference") in references for found in result.get("findings", ())):
                shorter.append((json.dumps(result | {"findings": []}), event))
        change.db.executemany("UPDATE event SET text = 'deleted for good', changes = '[]', result = '{}' WHERE id = ?",
                              forgotten)
        change.db.executemany("UPDATE event SET result = ? WHERE id = ?", shorter)


class Store(StoreFiles):
    """A store with its collections; see `StoreFiles`."""

    def __init__(self, path, create: bool = False, threads: int = 0, backend: str = "cpu", index: str | None = None):
        super().__init__(path, create, threads, backend, index)
        self._registries: dict[str, Registry] = {}

    def close(self) -> None:
        """Further use is an error."""
        if self.is_ours():
            for registry in self._registries.values():
                registry._release()
            self._registries.clear()
        super().close()

    def collections(self) -> list[dict]:
        """[{name, find, orientation, created, types, references, model}], by name."""
        rows = self.read("""
            SELECT c.name, c.find, c.orientation, c.created,
                (SELECT count(*) FROM type t WHERE t.collection = c.id AND t.removed IS NULL),
                (SELECT count(*) FROM reference r WHERE r.collection = c.id AND r.removed IS NULL),
                (SELECT hash FROM model m WHERE m.collection = c.id AND m.state = 'active')
            FROM collection c ORDER BY c.name""")
        names = ("name", "find", "orientation", "created", "types", "references", "model")
        return [dict(zip(names, row)) for row in rows]

    def create(self, name: str = DEFAULT_COLLECTION, model=None, find: str = "auto", orientation: str = "upright"):
        """A new, empty collection as a `Registry`. model: the path of an exported one (None: the shipped one), which is
        copied into the store; find, orientation: see `Registry.settings`. Raises Conflict where one has this name."""
        check_settings(find, orientation)
        if not (isinstance(name, str) and 0 < len(name) <= 64 and name.isascii()
                and name.replace("-", "").replace("_", "").isalnum()):
            raise Invalid(f"collection {printable(name)[:80]}: its name must be {NAMED}")
        digest, title = self.keep_model(DEFAULT_MODEL if model is None else model)
        now = time.time()
        with self.write() as db:
            try:
                db.execute("INSERT INTO collection(name, find, orientation, created) VALUES (?, ?, ?, ?)",
                           (name, find, orientation, now))
            except apsw.ConstraintError:
                raise Conflict(f"collection {name}: is there already; choose another name") from None
            db.execute("INSERT INTO model(collection, hash, name, state, created) VALUES (?, ?, ?, 'active', ?)",
                       (db.last_insert_rowid(), digest, title, now))
        return self.collection(name)

    def collection(self, name: str = DEFAULT_COLLECTION):
        """The `Registry` of a collection; the same object each time. Raises NotFound."""
        registry = self._registries.get(name) if isinstance(name, str) else None
        if registry is None:
            # Not under the lock: who reads holds another lock, and may wait for this one to get a model.
            found = self.read("SELECT id FROM collection WHERE name = ?", (name,)) if isinstance(name, str) else ()
            if not found:
                there = ", ".join(row[0] for row in self.read("SELECT name FROM collection ORDER BY name LIMIT 20"))
                raise NotFound(f"collection {printable(name)[:80]}: there is none of this name"
                               + (f"; there are {there}" if there else ""))
            with self._loading:
                registry = self._registries.setdefault(name, Registry(self, found[0][0], name))
        return registry
