"""References against each other and against other pictures: what a model says of each when it is not itself registered."""
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from .index import NONE, Hits, Rows, Segment, best_of
from .state import PARTS

BLOCK = 4096  # references that are read at once: other readers of the store wait for milliseconds


class Pictures(NamedTuple):
    """N pictures as queries: `vectors` float32 `[R, D]`, one or more rows for each, side by side, `starts` int64 `[N]`, its
    first row; `references` and `types` int64 `[N]`: what each is registered as (0: not)."""
    vectors: np.ndarray
    starts: np.ndarray
    references: np.ndarray
    types: np.ndarray


def pictures_of(registry, model_id: int, depth: int, turns: int, references: list[int]) -> Pictures:
    """References as if somebody asked about them: their vectors that are not turned. One without vectors is skipped."""
    found = []
    for first in range(0, len(references), 500):
        some = references[first:first + 500]
        block = registry.store.read(f"""
            SELECT r.id, r.type, f.parts, f.vectors, f.crc32 FROM reference r JOIN feature f ON f.reference = r.id
            WHERE f.model = ? AND r.id IN ({','.join('?' * len(some))}) ORDER BY r.id""", (model_id, *some))
        if block:
            found.append(registry.state.as_rows(block, depth))
    if not found:
        return Pictures(np.zeros((0, depth), np.float32), *np.zeros((3, 0), np.int64))
    rows = Rows(*map(np.concatenate, zip(*found)))
    upright = rows.ids % PARTS % turns == 0
    ids, types = rows.ids[upright] // PARTS, rows.types[upright]
    starts = np.flatnonzero(np.concatenate(([True], ids[1:] != ids[:-1])))
    return Pictures(rows.vectors[upright], starts, ids[starts], types[starts])


def pictures(features: list[np.ndarray]) -> Pictures:
    """Pictures that are not registered; float32 `[views, D]` of each, at least one picture."""
    starts = np.cumsum([0] + [len(one) for one in features[:-1]])
    return Pictures(np.concatenate(features), starts, *np.zeros((2, len(features)), np.int64))


def registered(registry, model_id: int, depth: int) -> Iterator[Rows]:
    """The live references of a collection as a model embedded them, in small steps: classification goes on meanwhile."""
    last = 0
    while block := registry.store.read("""
            SELECT r.id, r.type, f.parts, f.vectors, f.crc32 FROM reference r JOIN feature f ON f.reference = r.id
            WHERE f.model = ? AND r.collection = ? AND r.removed IS NULL AND r.id > ? ORDER BY r.id LIMIT ?""",
                                       (model_id, registry.id, last, BLOCK)):
        last = block[-1][0]
        yield registry.state.as_rows(block, depth)


def rank(blocks: Iterable[Rows], asked: Pictures, k: int, without: str) -> Hits:
    """The k best types of each picture, as a search gives them, with scores (cos + 1) / 2 in place of cosines and references
    in place of ids, among all references without its own: without "reference": itself; "type": all of its type.

    Exact, as `search.top_rows`. `[N, k]`; places that are not filled: -inf, 0, 0.
    """
    count = len(asked.starts)
    views = np.diff(np.append(asked.starts, len(asked.vectors)))
    best = own = Hits(*(np.zeros((count, 0), dtype) for dtype in (np.float32, np.int64, np.int64)))
    for rows in blocks if count else ():
        order = np.lexsort((rows.ids, rows.types))
        segment = Segment(rows.ids[order] // PARTS, rows.types[order], rows.vectors[order])
        found = []
        for view in range(views.max()):  # the better view counts
            there = np.flatnonzero(views > view)
            hits = segment.search(asked.vectors[asked.starts[there] + view], k + 1, NONE)
            found.append(_spread(hits, there, count))
        best = best_of([best, *found], k + 1, distinct=True)
        if without == "reference":
            own = best_of([own, _others_of_type(rows, asked)], 1, distinct=True)
    # One of the k + 1 types may be the picture's own.
    mine = best.types == asked.types[:, None]
    best = Hits(np.where(mine, -np.inf, best.cosines).astype(np.float32), *(np.where(mine, 0, value) for value in best[1:]))
    best = best_of([best, own], k, distinct=True)
    scores = np.where(best.types == 0, -np.inf, np.clip((best.cosines + 1) / 2, 0, 1))
    return Hits(scores.astype(np.float32), best.types, best.ids)


def _spread(hits, there, count):
    """The hits of some of `count` pictures, as those of all."""
    wide = [np.full((count, hits.types.shape[1]), empty, value.dtype) for value, empty in zip(hits, (-np.inf, 0, 0))]
    for all_of_them, value in zip(wide, hits):
        all_of_them[there] = value
    return Hits(*wide)


def _others_of_type(rows, asked):
    """Of each picture the best other reference of its own type in a block, `[N, 1]`."""
    count = len(asked.starts)
    cosines, ids = np.full((count, 1), -np.inf, np.float32), np.zeros((count, 1), np.int64)
    ends = np.append(asked.starts[1:], len(asked.vectors))
    rows_of = np.split(order := np.argsort(rows.types, kind="stable"), np.flatnonzero(np.diff(rows.types[order])) + 1)
    of_type = {int(rows.types[some[0]]): some for some in rows_of}
    for place, kind in enumerate(asked.types.tolist()):
        some = of_type.get(kind, NONE) if kind else NONE
        some = some[rows.ids[some] // PARTS != asked.references[place]]
        if len(some):
            queries = asked.vectors[asked.starts[place]:ends[place]].astype(np.float64)
            scores = (rows.vectors[some] @ queries.T).max(axis=1)
            cosines[place, 0], ids[place, 0] = scores.max(), rows.ids[some[scores.argmax()]] // PARTS
    return Hits(cosines, np.where(ids, asked.types[:, None], 0), ids)


def decided(hits: Hits, threshold: float, thresholds: dict[int, float], margin: float) -> np.ndarray:
    """The type that each picture gets, int64 `[N]`, 0: it is rejected; as `Registry.decide`. hits: of `rank`, k >= 2."""
    best, score, second = hits.types[:, 0], *hits.cosines[:, :2].T.astype(np.float64)
    least = np.array([thresholds.get(int(kind), threshold) for kind in best])
    close = score - np.where(second == -np.inf, -1, second) < margin  # a runner-up gap is at most 1
    return np.where((best > 0) & (score >= least) & ~close, best, 0)
