"""Rejected pictures that were kept: which of them look alike, and what one name for some of them explains.

    for cluster in registry.unknowns.clusters():
        print(cluster["size"], "look alike")
    registry.unknowns.resolve(cluster["ids"], "passport")

Pictures are kept only where someone asked for it (`Traffic.keep_unknown`), and are deleted on time, when references explain
them, and on request.
"""
import json
import threading
import time
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from ..image import ImageError
from .errors import Damaged, Invalid, NotFound

MOST = 2_000   # unknowns that are clustered, the newest: their scores with each other are 32 MB
BLOCK = 128    # unknowns whose scores with all others are computed at once
# A cluster falls apart where the mean silhouette (Rousseeuw 1987, https://doi.org/10.1016/0377-0427(87)90125-7) of its two
# halves is at least this: each picture is then far nearer to its own half. So two types that look alike stay apart, though
# all their pictures are within the threshold of each other. (398 photos and 100 scans of covers, shipped model, threshold
# .65: 19 in a wrong cluster without this, 9 with it; 115 clusters become 124.)
APART = 0.5
FRESH = 5.0    # seconds for which `would_resolve` takes what was last computed
NEW = 2_000    # references that came since and may explain unknowns: the newest


class State(NamedTuple):
    """Unknowns as they were last looked at: `ids`, `vectors` (float32 `[R, D]`, the views of each side by side; `turned` as
    references have them, where documents may lie any way up), `starts` and `turned_starts` (first row of each), `scores`
    float32 `[N, N]`, of each pair the best two views."""
    ids: list[int]
    vectors: np.ndarray
    starts: np.ndarray
    turned: np.ndarray
    turned_starts: np.ndarray
    scores: np.ndarray


class Groups(NamedTuple):
    """`groups`: places in a State, the largest first; `order`: all of them; `starts`: where each group begins there;
    `least`: the score of its two that are least alike (-inf of one alone)."""
    groups: list[list[int]]
    order: np.ndarray
    starts: np.ndarray
    least: np.ndarray


class Unknowns:
    """The rejected pictures of a `Registry`. Every method may be called from several threads."""

    def __init__(self, registry):
        self.registry = registry
        self._lock = threading.Lock()
        self._state, self._state_key, self._looked = None, None, float("-inf")
        self._clusters: dict[float, Groups] = {}

    @property
    def _file(self):
        return self.registry.traffic.file

    # ---- listing ----

    def picture(self, unknown: int) -> bytes:
        """As it was sent. Raises NotFound."""
        return self._picture(unknown)[0]

    def _picture(self, unknown):
        """(picture, quad or None)"""
        self.registry.traffic.flush()
        rows = self._file.read("SELECT picture, quad FROM unknown WHERE collection = ? AND id = ? AND expires > ?",
                               (self.registry.id, unknown, time.time()))
        if not rows:
            raise _missing(unknown)
        try:
            return self._file.pictures.get(rows[0][0]), json.loads(rows[0][1]) if rows[0][1] else None
        except Damaged:
            raise _missing(unknown) from None

    def newest(self, limit: int) -> list[tuple]:
        """[(id, name of the picture, quad as JSON or None)]"""
        self.registry.traffic.flush()
        return self._file.read("SELECT id, picture, quad FROM unknown WHERE collection = ? AND expires > ? "
                               "ORDER BY id DESC LIMIT ?", (self.registry.id, time.time(), limit))

    def remove(self, unknown: int) -> None:
        """Delete it for good, row and picture; the same picture does not come back while such pictures are kept. Raises
        NotFound."""
        if not self._dismiss([unknown]):
            raise _missing(unknown)

    def _dismiss(self, unknowns):
        """Delete unknowns, and note that their pictures are not to come back. -> those that were there"""
        def write(db):
            there = []
            for unknown in unknowns:
                row = next(db.execute("SELECT picture, expires, created FROM unknown WHERE collection = ? AND id = ?",
                                      (self.registry.id, unknown)), None)
                if row:
                    there.append(unknown)
                    # A hash alone, for as long as it took from the picture to its end, from now on.
                    db.execute("INSERT OR REPLACE INTO dismissed(collection, picture, expires) VALUES (?, ?, ?)",
                               (self.registry.id, row[0], time.time() + row[1] - row[2]))
            self._file.delete(db, there)
            return there
        self.registry.traffic.flush()
        return self._file.write(write)

    # ---- clusters ----

    def clusters(self, threshold: float | None = None) -> list[dict]:
        """Unknowns that look alike, the largest cluster first: [{ids, size, cover (the most central one), score (of the two
        that are least alike; None of one alone), suggestion: {type, label, score} of the nearest type, or None}].

        Every two of a cluster score at least `threshold` (None: the one in use): complete linkage, so that no chain of
        similar pictures joins what is not alike. The newest 2,000 unknowns are compared; those that references which came
        since explain are resolved first. Needs scikit-learn. Raises UserError.
        """
        threshold = self.registry.threshold if threshold is None else float(threshold)
        if not 0 <= threshold <= 1:
            raise Invalid(f"threshold {threshold}: must be between 0 and 1")
        state, (groups, *_) = self._grouped(threshold)
        covers = [group[int(state.scores[np.ix_(group, group)].mean(axis=1).argmax())] for group in groups]
        return [dict(ids=[state.ids[place] for place in group], size=len(group), cover=state.ids[cover],
                     score=_least(state.scores, group), suggestion=suggestion)
                for group, cover, suggestion in zip(groups, covers, self._suggestions(state, covers))]

    def _suggestions(self, state, covers):
        """The nearest type of each, whatever its score."""
        snapshot = self.registry.snapshot()
        if not covers or not len(snapshot.index):
            return [None] * len(covers)
        ends = np.append(state.starts[1:], len(state.vectors))
        found = []
        for cover in covers:
            hits = snapshot.index.search(state.vectors[state.starts[cover]:ends[cover]], 8)
            best = max(((score, kind) for score, kind in zip(hits.cosines.ravel().tolist(), hits.types.ravel().tolist())
                        if kind > 0), default=None)
            found.append(best and dict(type=best[1], label=snapshot.types[best[1]],
                                       score=min(max((best[0] + 1) / 2, 0.0), 1.0)))
        return found

    def _grouped(self, threshold, age=0.0):
        """(State, Groups); at most `age` seconds old."""
        with self._lock:
            if time.monotonic() - self._looked > age or self._state is None:
                if self._current() and self._settle():
                    self._current()
                self._looked = time.monotonic()
            return self._state, self._groups(threshold)

    def _groups(self, threshold):
        if threshold not in self._clusters:
            if len(self._clusters) > 8:  # of a slider that was moved
                self._clusters.clear()
            found = group(self._state.scores, threshold)
            least = [_least(self._state.scores, one) for one in found]
            self._clusters[threshold] = Groups(
                found, np.array([place for one in found for place in one], np.int64),
                np.cumsum([0] + [len(one) for one in found[:-1]]),
                np.array([-np.inf if score is None else score for score in least]))
        return self._clusters[threshold]

    def _current(self):
        """Look at the unknowns as they are now: computed again only where one came or went, or the model changed. -> whether
        there are any"""
        self.registry.traffic.flush()
        snapshot = self.registry.snapshot()
        ids = [row[0] for row in self.newest(MOST)][::-1]
        key = snapshot.model_hash, snapshot.find, snapshot.orientation, ids
        if key != self._state_key:
            looked = [(unknown, *row) for unknown in ids if (row := self._vectors(unknown, snapshot)) is not None]
            self._state = _state(looked, self.registry.model.embedding_size)
            self._state_key, self._clusters = key, {}
        return bool(self._state.ids)

    def _settle(self):
        """Resolve what references explain that were registered since: whoever registered them, one resolves all that look
        like it. -> whether there was anything"""
        registry, snapshot = self.registry, self.registry.snapshot()
        newest, = registry.store.read("SELECT coalesce(max(id), 0) FROM reference WHERE collection = ?", (registry.id,))[0]
        (settled,), = self._file.read("SELECT coalesce(max(reference), 0) FROM settled WHERE collection = ?", (registry.id,))
        if settled >= newest:
            return False
        (oldest,), = self._file.read("SELECT min(created) FROM unknown WHERE collection = ?", (registry.id,))
        of_type, resolved = {}, set()
        for reference, kind, parts, vectors in registry.store.read("""
                SELECT r.id, r.type, f.parts, f.vectors FROM reference r JOIN feature f ON f.reference = r.id
                WHERE r.collection = ? AND f.model = ? AND r.removed IS NULL AND r.id > ? AND r.created > ?
                ORDER BY r.id DESC LIMIT ?""", (registry.id, snapshot.model_id, settled, oldest or 0, NEW)):
            of_type.setdefault(-reference if kind is None else kind, []).append(
                np.frombuffer(vectors, "<f4").reshape(parts, -1))
        groups = self._groups(snapshot.threshold) if of_type else None
        for kind, features in of_type.items():
            resolved.update(self._explained(groups, np.concatenate(features), (), snapshot.thresholds.get(
                kind, snapshot.threshold)))
        self._file.write(lambda db: db.execute("INSERT OR REPLACE INTO settled VALUES (?, ?)", (registry.id, newest)))
        if resolved:
            self._dismiss([self._state.ids[place] for place in resolved])
        return bool(resolved)

    def _vectors(self, unknown, snapshot):
        """(float32 `[V, D]` as asked, float32 `[P, D]` as a reference, turned) of an unknown by the active model; embedded
        again where the stored ones are another model's. None: its picture is gone."""
        row = self._file.read("SELECT model, vectors, parts, turned, picture, quad FROM unknown WHERE id = ?", (unknown,))
        if not row:
            return None
        model, vectors, parts, turned, picture, quad = row[0]
        depth, any_way_up = self.registry.model.embedding_size, snapshot.orientation == "any"
        fits = model == snapshot.model_hash and len(vectors) == 4 * parts * depth
        if not fits or (any_way_up and turned is None):
            try:
                data, given = self._file.pictures.get(picture), json.loads(quad) if quad else None
                if not fits:
                    vectors, turned = self.registry.look(data, given).features, None
                if any_way_up:
                    turned = self.registry.prepare(data, given, only=(snapshot.model_id,)).vectors[snapshot.model_id]
            except (Damaged, ImageError):
                return None
            vectors, turned = (value.astype("<f4").tobytes() if isinstance(value, np.ndarray) else value
                               for value in (vectors, turned))
            parts = len(vectors) // (4 * depth)
            self._file.write(lambda db: db.execute(
                "UPDATE unknown SET model = ?, vectors = ?, parts = ?, turned = ? WHERE id = ?",
                (snapshot.model_hash, vectors, parts, turned, unknown)))
        upright = np.frombuffer(vectors, "<f4").reshape(parts, depth)
        return upright, upright if turned is None else np.frombuffer(turned, "<f4").reshape(-1, depth)

    # ---- resolving ----

    def would_resolve(self, features: np.ndarray, label: str | None = None) -> list[int]:
        """Of the newest 2,000 unknowns those that a reference with these features (float32 `[n, D]`, as `Registry.inspect`
        gives them) would explain, see `resolve`; as they were some seconds ago. label: its type, where that has a threshold
        of its own."""
        snapshot = self.registry.snapshot()
        try:
            state, groups = self._grouped(snapshot.threshold, FRESH)
        except UserError:  # scikit-learn is missing, or the file cannot be read: nothing can be told
            return []
        places = self._explained(groups, np.asarray(features, np.float32), (), self._threshold_of(snapshot, label), state)
        return [state.ids[place] for place in places]

    def _explained(self, groups, features, given, threshold, state=None):
        """Places of the unknowns that references with these features explain. given: places that somebody said are the same.

        From the threshold on, and only where the pictures of their cluster are not all nearer to each other than any of them
        is to the references: else they may be a type of its own that looks alike, and stay in the queue. This does not hold
        for clusters with pictures of `given`.
        """
        state = self._state if state is None else state
        if not state.ids:
            return []
        cosines = np.maximum.reduceat((state.vectors @ features.T).max(axis=1), state.starts)  # (N,)
        scores = np.clip((cosines + 1) / 2, 0, 1)[groups.order]
        given = np.isin(groups.order, np.fromiter(given, np.int64))
        whole = np.maximum.reduceat(scores, groups.starts) >= groups.least
        whole |= np.maximum.reduceat(given, groups.starts)
        sizes = np.diff(np.append(groups.starts, len(groups.order)))
        return sorted(groups.order[np.repeat(whole, sizes) & (scores >= threshold)].tolist())

    def resolve(self, ids: list[int], label: str | None = None, kind: str = "type", references: int = 1,
                who: str | None = None, dry_run: bool = False, force: bool = False) -> dict:
        """Register the most central ones of the unknowns `ids`: under a label, or, with kind "unknown" and no label, as
        known unknowns. All unknowns that these references explain, of `ids` or not, are resolved: their pictures are
        deleted.

        references: so many pictures are registered, each the one that those before it explain least. dry_run: only say what
        would be. -> {references: [ids of references], pictures: [the unknowns that were registered], resolved: [ids of
        unknowns], left: [those of `ids` that the references do not explain: they stay], events}. Raises NotFound where none
        of `ids` is there, Refused where the gate finds something and `force` is not set.
        """
        if not ids or references < 1:
            raise Invalid("resolve: give at least one unknown and one reference")
        if (label is None) != (kind == "unknown"):
            raise Invalid("a type needs a label" if kind == "type" else "a known unknown has no label")
        snapshot = self.registry.snapshot()
        state, groups = self._grouped(snapshot.threshold)
        place_of = {unknown: place for place, unknown in enumerate(state.ids)}
        places = [place_of[unknown] for unknown in dict.fromkeys(ids) if unknown in place_of]
        if not places:
            raise _missing(ids[0])
        chosen = [places[one] for one in central(state.scores[np.ix_(places, places)], references)]
        ends = np.append(state.turned_starts[1:], len(state.turned))
        features = np.concatenate([state.turned[state.turned_starts[place]:ends[place]] for place in chosen])
        resolved = set(chosen) | set(self._explained(groups, features, places, self._threshold_of(snapshot, label), state))
        answer = dict(references=[], pictures=[state.ids[place] for place in chosen],
                      resolved=sorted(state.ids[place] for place in resolved),
                      left=sorted(state.ids[place] for place in set(places) - resolved), events=[])
        if dry_run:
            return answer
        for place in chosen:
            picture, quad = self._picture(state.ids[place])
            # After the first they are all of one type; the gate would find each nearly the same as those before.
            added = self.registry.add(picture, label, kind=kind, quad=quad, source="unknown", who=who,
                                      force=force or bool(answer["references"]))
            answer["references"].append(added["reference"])
            answer["events"].append(added["event"])
        self._dismiss(answer["resolved"])
        return answer

    def _threshold_of(self, snapshot, label):
        """Of the type of this name, where it has one of its own."""
        found = self.registry.store.read("SELECT id FROM type WHERE collection = ? AND name = ? AND removed IS NULL",
                                         (self.registry.id, label))
        return snapshot.thresholds.get(found[0][0], snapshot.threshold) if found else snapshot.threshold

    def list(self, after: int = 0, limit: int = 100) -> list[dict]:  # the last one: its name hides the type
        """[{id, when, expires, score (of the best type, None: there was none), seen (how often exactly this picture came),
        decision, bytes}], by id, from the one behind `after`."""
        self.registry.traffic.flush()
        rows = self._file.read("SELECT id, created, expires, score, seen, decision, bytes FROM unknown "
                               "WHERE collection = ? AND id > ? AND expires > ? ORDER BY id LIMIT ?",
                               (self.registry.id, after, time.time(), limit))
        return [dict(zip(("id", "when", "expires", "score", "seen", "decision", "bytes"), row)) for row in rows]


def _missing(unknown):
    return NotFound(f"unknown {unknown}: there is none of this number; it was resolved, removed, or has expired")


def _least(scores, group):
    """The score of the two of a group that are least alike; None of one alone."""
    return float(scores[np.ix_(group, group)].min()) if len(group) > 1 else None


def _state(looked, depth):
    """looked: [(id, upright vectors, vectors as a reference)]"""
    none = np.zeros((0, depth), np.float32), np.zeros(0, np.int64)
    if not looked:
        return State([], *none, *none, np.zeros((0, 0), np.float32))
    ids, *both = zip(*looked)
    starts, others = (np.cumsum([0] + [len(rows) for rows in vectors[:-1]]) for vectors in both)
    asked, against = map(np.concatenate, both)
    count = len(ids)
    scores, bounds = np.empty((count, count), np.float32), np.append(starts, len(asked))
    for first in range(0, count, BLOCK):
        last = min(first + BLOCK, count)
        block = asked[bounds[first]:bounds[last]] @ against.T
        block = np.maximum.reduceat(block, starts[first:last] - starts[first], axis=0)
        scores[first:last] = np.maximum.reduceat(block, others, axis=1)
    scores = np.clip((np.maximum(scores, scores.T) + 1) / 2, 0, 1)
    np.fill_diagonal(scores, 1)
    return State(list(ids), asked, starts, against, others, scores)


def group(scores: np.ndarray, threshold: float) -> list[list[int]]:
    """float32 `[N, N]`, symmetric -> groups of rows, ascending, the largest first, then the one with the lowest row. Every
    two of a group score `threshold` or more."""
    count = len(scores)
    if count < 2:
        return [[place] for place in range(count)]
    clustering, distances = _sklearn(), 1 - scores.astype(np.float64)
    # A hair beyond the threshold: the limit itself is excluded there.
    labels = clustering(n_clusters=None, metric="precomputed", linkage="complete",
                        distance_threshold=np.nextafter(1 - threshold, 2)).fit_predict(distances)
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    parts = [part for one in groups for part in _split(distances, one)]
    return sorted((sorted(part.tolist()) for part in parts), key=lambda part: (-len(part), part[0]))


def _split(distances, members):
    """A group, or the parts into which it falls, each of two or more."""
    if len(members) < 4:
        return [members]
    from sklearn.metrics import silhouette_score
    within = distances[np.ix_(members, members)]
    np.fill_diagonal(within, 0)
    halves = _sklearn()(n_clusters=2, metric="precomputed", linkage="complete").fit_predict(within)
    if min(np.bincount(halves)) < 2 or silhouette_score(within, halves, metric="precomputed") < APART:
        return [members]
    return [part for half in (0, 1) for part in _split(distances, members[halves == half])]


def _sklearn():
    try:
        from sklearn.cluster import AgglomerativeClustering
    except ImportError:
        raise UserError('clusters: need scikit-learn; pip install "docmetric[server]"') from None
    return AgglomerativeClustering


def central(scores: np.ndarray, count: int) -> list[int]:
    """`[n, n]` -> `count` rows or fewer: first the one with the highest mean score, then each time the one that those before
    it are least like (https://doi.org/10.1016/0304-3975(85)90224-5)."""
    chosen = [int(scores.mean(axis=1).argmax())]
    while len(chosen) < min(count, len(scores)):
        nearest = scores[:, chosen].max(axis=1)
        nearest[chosen] = np.inf
        chosen.append(int(nearest.argmin()))
    return chosen
