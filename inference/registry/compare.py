"""References against each other and against other pictures: what a model says of each when it is not itself registered."""
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from .index import Hits, Rows, best_of
from .state import PARTS

BLOCK = 4096  # references at once: with 2,000 pictures 32 MB of scores, and other readers of the store wait for milliseconds


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
            found.append(registry.state._rows(block, depth))
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
        yield registry.state._rows(block, depth)


def rank(blocks: Iterable[Rows], asked: Pictures, k: int, without: str) -> Hits:
    """The k best types of each picture, as a search gives them, with scores (cos + 1) / 2 in place of cosines and references
    in place of ids, among all references without its own: without "reference": itself; "type": all of its type.

    Every pair is compared. `[N, k]`; places that are not filled: -inf, 0, 0.
    """
    count = len(asked.starts)
    best = Hits(*(np.zeros((count, 0), dtype) for dtype in (np.float32, np.int64, np.int64)))
    for rows in blocks if count else ():
        order = np.lexsort((rows.ids, rows.types))
        references, types = rows.ids[order] // PARTS, rows.types[order]
        scores = asked.vectors @ rows.vectors[order].T  # (R, n)
        scores = np.maximum.reduceat(scores, asked.starts, axis=0)  # (N, n): the better view counts
        own, of = (references, asked.references) if without == "reference" else (types, asked.types)
        scores[own == of[:, None]] = -np.inf
        starts = np.flatnonzero(np.concatenate(([True], types[1:] != types[:-1])))
        of_types = np.maximum.reduceat(scores, starts, axis=1)  # (N, t)
        chosen = np.argsort(-of_types, axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(of_types, chosen, axis=1)
        # The reference that the score is of: the first one of the type that has it.
        ends = np.append(starts[1:], len(types))
        rows_of = np.empty_like(chosen)
        for place in range(chosen.shape[1]):
            for n, kind in enumerate(chosen[:, place]):
                rows_of[n, place] = starts[kind] + scores[n, starts[kind]:ends[kind]].argmax()
        empty = found == -np.inf
        block = Hits(found, np.where(empty, 0, types[starts][chosen]), np.where(empty, 0, references[rows_of]))
        best = best_of([best, block], k, distinct=True)
    if best.cosines.shape[1] < k:
        best = best_of([best], k, distinct=True)
    scores = np.where(best.types == 0, -np.inf, np.clip((best.cosines + 1) / 2, 0, 1))
    return Hits(scores.astype(np.float32), best.types, best.ids)


def decided(hits: Hits, threshold: float, thresholds: dict[int, float], margin: float) -> np.ndarray:
    """The type that each picture gets, int64 `[N]`, 0: it is rejected; as `Registry.decide`. hits: of `rank`, k >= 2."""
    best, score, second = hits.types[:, 0], *hits.cosines[:, :2].T.astype(np.float64)
    least = np.array([thresholds.get(int(kind), threshold) for kind in best])
    close = score - np.where(second == -np.inf, -1, second) < margin  # a runner-up gap is at most 1
    return np.where((best > 0) & (score >= least) & ~close, best, 0)
