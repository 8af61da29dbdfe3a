"""What a registry says of an image: looked at, compared with the references, decided.

An image becomes a `Look` (decoded, its document found, embedded), and looks become results (searched together, thresholds
applied). All of a result is of one state of the collection, a `state.Snapshot`.
"""
import itertools
import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..model import TURNS
from ..views import FINDS, Views, find_in_references
from .errors import Invalid
from .inputs import checked_quad, corners_of, name_of, opened
from .state import PARTS


class Look(NamedTuple):
    """What the network made of an image: features float32 `[V, D]`, a row for each view; the names of the views; the
    document's corners (None: none was looked for, or found), the finder's score; the model's hash; the image itself."""
    features: np.ndarray
    views: tuple[str, ...]
    quad: np.ndarray | None
    found: float | None
    model: str
    image: Any


class Asking:
    """What a `core.Registry` answers about images; it has `store` and `snapshot`."""

    def __init__(self):
        self._views, self._viewing = {}, threading.Lock()

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

    # ---- deciding ----

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
