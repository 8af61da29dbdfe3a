"""Search among references that come and go: what every engine promises, and the exact one in memory.

    index = open_index(None, depth=256, name="default")
    index.apply(event, Rows(ids, types, vectors), removed)
    cosines, types, ids = index.search(queries, 5)

A row is one vector of a reference, with an id of its own; a type is what its rows stand for. Known unknowns have negative
types, one each.
"""
import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from ..codes import CODED, CodedRows
from ..image import default_threads
from ..search import best_hits, is_among, top_rows

TAIL = 1024  # rows that an added row may move (1 MB at 256 values: .2 ms)
SEGMENT = 1 << 18  # rows that are copied at once (256 MB at 256 values), and a thread searches alone
ALONE = 1 << 17  # rows that one thread searches as fast as several: handing over costs .1 ms
GROWTH = 4  # segments of sizes within this factor are merged: each row is copied a few times, some segments for each decade
DEAD = 1 / 8  # share of removed rows from which a segment is written anew: a removed row costs as much as another
DIRECT = 512  # rows x queries up to which plain sums in float64 are faster than a matmul and its selection
CHUNK = 1 << 16  # rows copied at a time
NOISE = 0.6  # length of the noise on a vector of length 1


class Rows(NamedTuple):
    """`vectors`: float32 `[n, D]`, of length 1; `ids` and `types`: int64 `[n]`."""
    ids: np.ndarray
    types: np.ndarray
    vectors: np.ndarray


class Hits(NamedTuple):
    """Best first. `cosines`: float32 `[N, K]`; `types` and `ids`: int64 `[N, K]`. Places that are not filled: -inf, 0, 0."""
    cosines: np.ndarray
    types: np.ndarray
    ids: np.ndarray


class Index(Protocol):
    """Rows that can be searched while they change. Every method may be called from any thread.

    `exact`: the answers are those of brute force; else `recall` is the share of the best two types that was found when the
    index was measured. `event`: the last event that is in it; 0: nothing.

    Equal cosines: the lower type first. Cosines are sums in float64, rounded, so equal rows have equal cosines.
    """
    exact: bool
    recall: float | None
    event: int

    def apply(self, event: int, added: Rows, removed: np.ndarray) -> None:
        """Remove the rows whose ids are `removed`, then add rows, in one step; of an id that is there the row is replaced.

        An `event` before `self.event` is ignored: another process was faster, and has put in what this one brings. The same
        event may come in several parts, or again. Who loads many rows in parts gives 0 with all but the last, so that an
        interrupted load is not taken for a whole one."""

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """float32 `[N, D]` -> the k best types of each; the best row of a type counts, and its id is given."""

    def search_rows(self, queries: np.ndarray, k: int) -> Hits:
        """float32 `[N, D]` -> the k best rows of each; types may repeat."""

    def view(self):
        """What can be searched as above. In memory: a state that does not change while `apply` goes on."""

    def __len__(self) -> int: ...

    def close(self) -> None: ...


def checked(depth: int, added: Rows, removed) -> tuple[Rows, np.ndarray]:
    """The arguments of `apply` with their dtypes; of rows with the same id the last alone. Raises ValueError."""
    rows = Rows(np.asarray(added.ids, np.int64), np.asarray(added.types, np.int64), np.asarray(added.vectors, np.float32))
    count = len(rows.ids)
    if rows.ids.shape != (count,) or rows.types.shape != (count,) or rows.vectors.shape != (count, depth):
        raise ValueError(f"rows {', '.join(str(values.shape) for values in rows)}: expected [n], [n] and [n, {depth}]")
    if count > 1:
        _, last = np.unique(rows.ids[::-1], return_index=True)
        if len(last) < count:
            last = np.sort(count - 1 - last)
            rows = Rows(*(values[last] for values in rows))
    return rows, np.asarray(removed, np.int64).ravel()


def best_of(found: list[Hits], k: int, distinct: bool) -> Hits:
    """The k best of several searches' hits, each `[N, any]`; with `distinct`, the best hit alone of each type."""
    best = found[0] if len(found) == 1 else ordered(Hits(*(np.concatenate(values, axis=1) for values in zip(*found))),
                                                    k, distinct)
    if (short := k - best.ids.shape[1]) <= 0:
        return Hits(*(values[:, :k] for values in best))
    return Hits(*(np.pad(values, ((0, 0), (0, short)), constant_values=empty)
                  for values, empty in zip(best, (-np.inf, 0, 0))))


def no_hits(count: int) -> Hits:
    """For `count` queries, no place: `[count, 0]`."""
    return Hits(*(np.zeros((count, 0), dtype) for dtype in (np.float32, np.int64, np.int64)))


def ordered(hits: Hits, k: int, distinct: bool) -> Hits:
    """As `search.best_hits`; places that are not filled at the end."""
    cosines, types, ids = best_hits(*hits, k, distinct)
    empty = cosines == -np.inf
    types[empty] = ids[empty] = 0
    return Hits(cosines, types, ids)


def scored(query: np.ndarray, rows: Rows, k: int, distinct: bool) -> Hits:
    """The k best of rows that an engine proposes for one query, `[1, k]`, by cosines from float64 sums."""
    cosines = np.einsum("d,kd->k", query.astype(np.float64), rows.vectors.astype(np.float64)).astype(np.float32)
    return best_of([ordered(Hits(cosines[None], rows.types[None], rows.ids[None]), k, distinct)], k, distinct)


def captures_of(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Queries to measure the recall with: the vectors and noise, cosine .86, as captures of registered types are."""
    noise = rng.standard_normal(vectors.shape, np.float32)
    queries = vectors + NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return queries / np.linalg.norm(queries, axis=1, keepdims=True)


def share_found(found: np.ndarray, best: np.ndarray) -> float:
    """The share of the places of `best`, cosines `[N, k]` of the best types, that `found` fills with as good ones. -inf: no
    place."""
    filled = best > -np.inf
    least = np.where(filled, best, np.inf).min(axis=1, initial=np.inf)[:, None]
    return float((found >= least)[filled].mean()) if filled.any() else 1.0


class Segment:
    """M rows that never change, sorted by type and id: `vectors` float32 `[M, D]`, `ids` int64 `[M]`; `labels`, the T types,
    and `starts`, where they begin (None: one row each). Beside the vectors at most 32 bytes a row, and D for codes."""
    exact, recall = True, None

    def __init__(self, ids: np.ndarray, types: np.ndarray, vectors: np.ndarray):
        """All sorted by type, then id."""
        self.ids, self.vectors = ids, vectors
        first = np.flatnonzero(np.concatenate(([True], types[1:] != types[:-1])))
        self.labels, self.starts = types[first], None if len(first) == len(types) else first
        self._by_id = np.argsort(ids)
        self._precise = vectors.astype(np.float64)[None] if len(ids) <= DIRECT else None
        self._codes, self.plain = None, len(ids) >= CODED  # plain: codes would make its searches faster

    def __len__(self):
        return len(self.ids)

    def encode(self) -> None:
        """Make its codes: the answers stay the same. Searches may go on meanwhile."""
        with contextlib.suppress(ValueError):  # of numbers that have none
            self._codes = CodedRows(self.vectors, self.starts)
        self.plain = False

    def types(self) -> np.ndarray:
        """int64 `[M]`, the type of each row."""
        return self.labels if self.starts is None else np.repeat(self.labels, np.diff(self.starts, append=len(self)))

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Ascending numbers of the rows that have one of the ids."""
        at = self._by_id[np.minimum(np.searchsorted(self.ids, ids, sorter=self._by_id), len(self) - 1)]
        return np.unique(at[self.ids[at] == ids])

    def search(self, queries: np.ndarray, k: int, dead: np.ndarray) -> Hits:
        """The best types, as `Index.search`, at most k places. dead: ascending numbers of rows that do not count."""
        return self._search(queries, k, dead, self.starts)

    def search_rows(self, queries: np.ndarray, k: int, dead: np.ndarray) -> Hits:
        return self._search(queries, k, dead, None)

    def _search(self, queries, k, dead, starts):
        if self._precise is not None and len(self) * len(queries) <= DIRECT:
            cosines, rows = self._few(queries, k, dead, starts)
        elif self._codes:
            cosines, _, rows = self._codes.top_rows(queries, k, dead if len(dead) else None, each=starts is None)
        else:
            cosines, _, rows = top_rows(queries, self.vectors, k, starts, skip=dead if len(dead) else None)
        return self.hits(cosines, rows)

    def hits(self, cosines: np.ndarray, rows: np.ndarray) -> Hits:
        """`[N, any]`, row numbers with their cosines; -inf: not filled."""
        types = self.labels[rows if self.starts is None else np.searchsorted(self.starts, rows, "right") - 1]
        ids, empty = self.ids[rows], cosines == -np.inf
        types[empty] = ids[empty] = 0
        return Hits(cosines, types, ids)

    def _few(self, queries, k, dead, starts):
        """(cosines, rows) of `top_rows` without a selection: the sums of every pair, added up as there, and a sort."""
        cosines = np.einsum("nd,nkd->nk", queries.astype(np.float64), self._precise).astype(np.float32)
        if len(dead):
            cosines[:, dead] = -np.inf
        if starts is None:
            order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
            return np.take_along_axis(cosines, order, axis=1), order
        best = np.maximum.reduceat(cosines, starts, axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        # The first row of each type that is not behind its best one; the others have a number that is too large.
        behind = cosines < np.repeat(best, np.diff(starts, append=len(self)), axis=1)
        rows = np.minimum.reduceat(np.where(behind, len(self), np.arange(len(self))), starts, axis=1)
        return np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)


NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Part:
    """A segment, and the ascending numbers of its rows that are removed. `len` is that of the others."""
    segment: Segment
    dead: np.ndarray

    def __len__(self):
        return len(self.segment) - len(self.dead)

    def without(self, ids: np.ndarray) -> "Part":
        rows = self.segment.rows_of(ids)
        rows = rows[~is_among(rows, self.dead)]
        return Part(self.segment, np.sort(np.concatenate((self.dead, rows)), kind="stable")) if len(rows) else self

    def rows(self) -> np.ndarray:
        """Ascending numbers of the rows that count."""
        counts = np.ones(len(self.segment), bool)
        counts[self.dead] = False
        return np.flatnonzero(counts)


@dataclass(frozen=True, slots=True)
class View:
    """A state that never changes, and its search. Every id is in one part alone; a type may be in several."""
    depth: int
    event: int
    parts: tuple[Part, ...]

    @property
    def exact(self) -> bool:
        return all(part.segment.exact for part in self.parts)

    @property
    def recall(self) -> float | None:
        return min((part.segment.recall for part in self.parts if not part.segment.exact), default=None)

    def view(self):
        return self

    def __len__(self):
        return sum(map(len, self.parts))

    def search(self, queries: np.ndarray, k: int) -> Hits:
        # A type that is among the k best is among the k best of the part that holds its best row.
        return self._found("search", queries, k, distinct=True)

    def search_rows(self, queries: np.ndarray, k: int) -> Hits:
        return self._found("search_rows", queries, k, distinct=False)

    def _found(self, method, queries, k, distinct):
        if queries.ndim != 2 or queries.shape[1] != self.depth or k < 1:
            raise ValueError(f"queries {queries.shape} and k {k}: expected [N, {self.depth}] and at least 1")
        queries = np.ascontiguousarray(queries, np.float32)

        def search(part):
            return getattr(part.segment, method)(queries, k, part.dead)

        # Reading the vectors from memory takes most of the time, and one core cannot read as fast as the memory gives. Not
        # where numpy's matmul has threads of its own, as long as there are no codes: both together are slower than either.
        several = len(self) > ALONE and (_numpy_has_one_thread() or not any(part.segment.plain for part in self.parts))
        found = _threads().map(search, self.parts) if several else map(search, self.parts)
        return best_of(list(found) or [no_hits(len(queries))], k, distinct)


@functools.cache
def _numpy_has_one_thread() -> bool:
    return (os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS")) == "1"


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(default_threads(), "search")


class MemoryIndex:
    """An exact `Index` of immutable segments and a small tail.

    `apply` publishes a new `View` with one assignment, so a search needs no lock and sees a change whole or not at all. An
    added row moves the rows of the tail alone; a tail that has grown becomes a segment. Segments of similar sizes are
    merged in the background, and those with many removed rows are written anew: about one copy of `segment` rows of memory
    while it lasts, and the rows of a view that is still in use.

    tail, segment: the most rows of each.
    """

    def __init__(self, depth: int, tail: int = TAIL, segment: int = SEGMENT):
        self.depth, self._most_tail, self._most = depth, tail, segment
        self._writing, self._compacting = threading.Lock(), threading.Lock()
        self._parts, self._tail = (), None
        self._view, self._thread, self._closed = View(depth, 0, ()), None, False

    event = property(lambda self: self._view.event)
    exact = property(lambda self: self._view.exact)
    recall = property(lambda self: self._view.recall)

    def __len__(self):
        return len(self._view)

    def view(self) -> View:
        return self._view

    def search(self, queries: np.ndarray, k: int) -> Hits:
        return self._view.search(queries, k)

    def search_rows(self, queries: np.ndarray, k: int) -> Hits:
        return self._view.search_rows(queries, k)

    def apply(self, event: int, added: Rows, removed: np.ndarray) -> None:
        added, removed = checked(self.depth, added, removed)
        with self._writing:
            if event < self.event:
                return
            gone = np.concatenate((removed, added.ids))
            parts, tail = self._parts, self._tail
            if len(gone):
                parts = tuple(left for part in parts if len(left := part.without(gone)))
                if len(added.ids) > self._most_tail:
                    parts, added = (*parts, *self._segments(added)), Rows(*(values[:0] for values in added))
                tail = _stacked(tail, added, gone)
                if tail and len(tail) > self._most_tail:
                    parts, tail = (*parts, tail), None
            self._publish(parts, tail, event)
            work = self._due(parts) or self._plain(parts)
            if work and not (self._thread and self._thread.is_alive()) and not self._closed:
                self._thread = threading.Thread(target=self.compact, name="index", daemon=True)
                self._thread.start()

    def compact(self) -> None:
        """Merge and rewrite what is due and make codes, now; `apply` and searches go on. As the background thread does."""
        with self._compacting:
            while not self._closed:
                if sources := self._due(self._parts):
                    self._replace(sources)
                elif plain := self._plain(self._parts):
                    plain[0].segment.encode()
                else:
                    break

    def close(self) -> None:
        self._closed = True
        if self._thread:
            self._thread.join()

    def _replace(self, sources: list[Part]) -> None:
        """Put one new segment in the place of `sources`."""
        merged = self._merged(sources)
        with self._writing:
            now, gone = {id(part.segment): part for part in self._parts}, []
            for source in sources:  # what was removed in the meantime; a part that is no longer there: all its rows
                rows, late = source.rows(), now.pop(id(source.segment), None)
                gone.append(source.segment.ids[rows if late is None else rows[is_among(rows, late.dead)]])
            part = Part(merged, NONE).without(np.concatenate(gone))
            self._publish((*now.values(), *([part] if len(part) else [])), self._tail, self.event)

    def _publish(self, parts, tail, event):
        self._parts, self._tail = parts, tail
        self._view = View(self.depth, event, (*parts, tail) if tail else parts)

    def _segments(self, rows: Rows) -> Iterator[Part]:
        """Many rows as segments of at most `segment` rows; a type may be cut."""
        order = np.lexsort((rows.ids, rows.types))
        for chosen in np.array_split(order, -(-len(order) // self._most)):
            yield Part(Segment(rows.ids[chosen], rows.types[chosen], rows.vectors[chosen]), NONE)

    def _due(self, parts: tuple[Part, ...]) -> list[Part]:
        """The parts that should be one new segment next; [] if all is well."""
        parts = sorted(parts, key=len)
        for part in parts:
            if len(part.dead) > DEAD * len(part.segment):
                return [part]
        for first, part in enumerate(parts):
            chosen, total = [part], len(part)
            for larger in parts[first + 1:]:
                if len(larger) >= GROWTH * total or total + len(larger) > self._most:
                    break
                chosen.append(larger)
                total += len(larger)
            if len(chosen) > 1:
                return chosen
        return []

    def _plain(self, parts: tuple[Part, ...]) -> list[Part]:
        """The parts that need codes."""
        return [part for part in parts if part.segment.plain]

    def _merged(self, sources: list[Part]) -> Segment:
        """The rows of `sources` that count, as one segment."""
        kept = [part.rows() for part in sources]
        ids = np.concatenate([part.segment.ids[rows] for part, rows in zip(sources, kept)])
        types = np.concatenate([part.segment.types()[rows] for part, rows in zip(sources, kept)])
        order = np.lexsort((ids, types))
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        vectors, begin = np.empty((len(order), self.depth), np.float32), 0
        for part, rows in zip(sources, kept):
            for chunk in np.split(rows, range(CHUNK, len(rows), CHUNK)):
                vectors[place[begin:begin + len(chunk)]] = part.segment.vectors[chunk]
                begin += len(chunk)
        return Segment(ids[order], types[order], vectors)


def _stacked(tail: Part | None, added: Rows, gone: np.ndarray) -> Part | None:
    """The tail without the rows that are gone, and a few more rows, as one segment; None if that is nothing."""
    if tail:
        tail = tail.without(gone)
        if not len(tail.dead) and not len(added.ids):
            return tail
        rows, segment = tail.rows(), tail.segment
        old = Rows(segment.ids[rows], segment.types()[rows], segment.vectors[rows])
        added = Rows(*map(np.concatenate, zip(old, added)))
    order = np.lexsort((added.ids, added.types))
    return Part(Segment(added.ids[order], added.types[order], added.vectors[order]), NONE) if len(order) else None
