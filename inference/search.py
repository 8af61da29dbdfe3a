"""Exact search by inner product: the k best of M references for each of N queries. numpy only.

One matmul per block of references; the `[N, M]` scores never exist whole. Sorting or partitioning every column would cost
many times the matmul, so of each block only the maximum of every group of references is taken (one pass over scores
that lie in the cache). Only the few groups whose maximum reaches a query's k-th best score so far are searched.
"""
import numpy as np

GROUP = 64  # references that share a maximum
BLOCK_BYTES = 8 << 20  # scores held at once: small enough for the cache, large enough for few and long matmuls
QUERIES = 64  # queries at once: enough for the matmul to be bound by arithmetic
FIRST = 4096  # references whose best scores bound those that are worth a look
SPARE = 8  # candidates kept beyond k for the re-scoring


def top_k(queries: np.ndarray, references: np.ndarray, k: int, starts: np.ndarray | None = None,
          block_bytes: int = BLOCK_BYTES) -> tuple[np.ndarray, np.ndarray]:
    """(scores, indices) of `top_rows`."""
    return top_rows(queries, references, k, starts, block_bytes)[:2]


def top_rows(queries: np.ndarray, references: np.ndarray, k: int, starts: np.ndarray | None = None,
             block_bytes: int = BLOCK_BYTES, skip: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float32 `[N, D]` and `[M, D]` -> (inner products float32 `[N, K]`, indices and rows int64 `[N, K]`), best first.

    With `starts`, ascending int `[T]`, `starts[0] == 0`, the references are T types: type t is rows
    `starts[t]:starts[t + 1]`, at least one. Its best reference counts: the indices are those of distinct types, the rows
    those of their best references (of references within 1e-7 of each other: any). Without, both are the same. K is k, or the
    number of references (types) where there are fewer.

    `skip`: ascending row numbers that do not count, int `[S]`. A type with no other rows, and a row of `skip`, has the score
    -inf, behind all others; its index and row mean nothing.

    Equal scores: the lower index first. Blocks are searched in float32, whose last bits depend on a block's shape;
    the best k + 8 are scored again in float64 and rounded to float32, so results do not depend on what is searched
    together, and equal references have equal scores. (More than 8 further candidates within 1e-7 of the k-th: which
    of those take the last place is left to rounding.) Memory: about twice `block_bytes`, whatever M.
    """
    if queries.ndim != 2 or references.ndim != 2 or queries.shape[1] != references.shape[1]:
        raise ValueError(f"queries {queries.shape} and references {references.shape}: expected [N, D] and [M, D]")
    if k < 1:
        raise ValueError(f"k {k}: must be at least 1")
    k = min(k, len(references) if starts is None else len(starts))
    scores, (indices, rows) = np.empty((len(queries), k), np.float32), np.empty((2, len(queries), k), np.int64)
    for first in range(0, len(queries), QUERIES):
        part = slice(first, first + QUERIES)
        scores[part], indices[part], rows[part] = _search(np.ascontiguousarray(queries[part], np.float32), references, k,
                                                          starts, block_bytes, skip)
    return scores, indices, rows


def _search(queries, references, k, starts, block_bytes, skip):
    """`top_rows` for as many queries as one matmul takes."""
    count, total = len(queries), len(references)
    types = total if starts is None else len(starts)
    kept = min(k + SPARE, types)
    width = max(GROUP, min(block_bytes // (4 * count), total + GROUP - 1) // GROUP * GROUP)
    block = np.empty((count, width), np.float32)
    best = Best(count, kept, starts)
    for first in range(0, total, width):
        rows = references[first:first + width]
        np.matmul(queries, rows.T, out=block[:, :len(rows)])
        block[:, len(rows):] = -np.inf
        if skip is not None:
            block[:, skip[slice(*np.searchsorted(skip, (first, first + len(rows))))] - first] = -np.inf
        best.add(*_hits(block, len(rows), first, best))

    exact = scores_of(queries, references[best.reference])
    if skip is not None:  # a type's first row stands for it until a better one is found
        exact[is_among(best.reference, skip)] = -np.inf
    order = np.lexsort((best.type, -exact), axis=1)[:, :k]
    return tuple(np.take_along_axis(values, order, axis=1) for values in (exact, best.type, best.reference))


def scores_of(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """float32 `[N, D]` and `[N, K, D]` -> `[N, K]`, sums in float64, rounded: the same for the same pair, whatever stands
    beside it."""
    return np.einsum("nd,nkd->nk", queries.astype(np.float64), references.astype(np.float64)).astype(np.float32)


def best_hits(scores: np.ndarray, types: np.ndarray, rows: np.ndarray, k: int, distinct: bool) -> tuple:
    """Hits in any order, `[N, any]` each -> the k best; equal ones by type, then row. distinct: of the hits of a type all
    but the best get the score -inf."""
    if distinct:
        order = np.lexsort((rows, -scores, types), axis=1)
        scores, types, rows = (np.take_along_axis(values, order, axis=1) for values in (scores, types, rows))
        scores[:, 1:][types[:, 1:] == types[:, :-1]] = -np.inf
    order = np.lexsort((rows, types, -scores), axis=1)[:, :k]
    return tuple(np.take_along_axis(values, order, axis=1) for values in (scores, types, rows))


def is_among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """bool, in the shape of `values`: which of them are in the sorted 1-D array. (`np.isin` sorts both, each time.)"""
    if not len(ascending):
        return np.zeros(values.shape, bool)
    return ascending[np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)] == values


def _hits(block, size, first, best):
    """block: `[N, width]`, scores of the references `first` to `first + size`, then -inf -> those that may enter `best`,
    three 1-D arrays: query, reference, score.
    """
    count, width = block.shape
    begins = None if best.starts is None else starts_within(best.starts, first, size)
    if begins is not None and len(begins) <= width // GROUP:
        # Types of many references: only the best of each is worth a look, though thousands may be above the floor.
        scores = block[:, :size]
        maxima = np.maximum.reduceat(scores, begins, axis=1)  # (N, types in the block)
        maxima[~((maxima >= best.floor[:, None]) & (maxima > -np.inf))] = np.nan  # -inf: all its rows are skipped
        query, column = np.nonzero(scores == np.repeat(maxima, np.diff(np.append(begins, size)), axis=1))
        return query, first + column, scores[query, column]

    for sample in (max(size // 8, FIRST), size):  # the first block; a part of it will do, unless that has too few types
        if (best.floor == -np.inf).any():
            scores = block[:, :min(sample, size)]
            best.raise_floor(scores if begins is None else np.maximum.reduceat(scores, begins[begins < sample], axis=1))
    groups = block.reshape(count, GROUP, width // GROUP)  # a group: columns g, g + width / GROUP, ...
    query, group = np.nonzero(groups.max(axis=1) >= best.floor[:, None])
    inside = groups[query, :, group]  # (hits, GROUP)
    hit, member = np.nonzero((inside >= best.floor[query, None]) & (inside > -np.inf))
    return query[hit], first + member * (width // GROUP) + group[hit], inside[hit, member]


def starts_within(starts: np.ndarray, first: int, size: int) -> np.ndarray:
    """Where the types begin among the references `first` to `first + size`, counted from `first`, 0 included."""
    later = starts[np.searchsorted(starts, first, "right"):np.searchsorted(starts, first + size)]
    return np.concatenate(([0], later - first))


class Best:
    """The best types of each query so far: `score`, `type` and `reference` (its best row), `[N, kept]`, unsorted;
    `floor`, `[N]`, is the lowest score that can still enter. It begins with the first types at -inf, so each query
    always has `kept` distinct ones, even if its scores are not numbers.
    """

    def __init__(self, count, kept, starts):
        self.starts = starts
        self.type = np.tile(np.arange(kept), (count, 1))
        self.reference = self.type if starts is None else starts[self.type].astype(np.int64)
        self.score = np.full((count, kept), -np.inf, np.float32)
        self.floor = np.full(count, -np.inf, np.float32)

    def raise_floor(self, maxima):
        """maxima: `[N, t]` over t distinct types. The kept-th largest of them is reached `kept` times."""
        kept = self.type.shape[1]
        if maxima.shape[1] >= kept:
            self.floor = np.maximum(self.floor, np.partition(maxima, -kept, axis=1)[:, -kept])

    def add(self, query, reference, score):
        """1-D, all of one block of references, behind every block before it."""
        if not len(query):
            return
        count, kept = self.type.shape
        if self.starts is None:
            kind = reference
        else:
            query, reference, score, kind = _best_of_each_type(query, reference, score, self.starts)
        query = np.concatenate((np.repeat(np.arange(count), kept), query))
        reference = np.concatenate((self.reference.ravel(), reference))
        score = np.concatenate((self.score.ravel(), score))
        kind = np.concatenate((self.type.ravel(), kind))

        # Only a type at a block's edge, or one that was there from the beginning, can be there twice: the better stays.
        order = np.lexsort((reference, -score, kind, query))
        twice = (np.diff(query[order]) == 0) & (np.diff(kind[order]) == 0)
        order = order[np.concatenate(([True], ~twice))]
        order = order[np.lexsort((kind[order], -score[order], query[order]))]
        begins = np.searchsorted(query[order], np.arange(count))  # each query has at least `kept` left
        chosen = order[begins[:, None] + np.arange(kept)]
        self.type, self.reference, self.score = kind[chosen], reference[chosen], score[chosen]
        # What comes later has a higher index, so an equal score is not enough for it.
        self.floor = np.maximum(self.floor, np.nextafter(self.score[:, -1], np.float32(np.inf)))


def _best_of_each_type(query, reference, score, starts):
    """The hits of each query and type -> the best one alone, the first of equals, and its type.

    A type's rows lie side by side, so this is one pass, however many references of one type are hit.
    """
    order = np.lexsort((reference, query))
    query, reference, score = query[order], reference[order], score[order]
    kind = np.searchsorted(starts, reference, "right") - 1
    first = np.flatnonzero(np.concatenate(([True], (np.diff(query) != 0) | (np.diff(kind) != 0))))
    sizes = np.diff(np.append(first, len(query)))
    best = np.flatnonzero(score == np.repeat(np.maximum.reduceat(score, first), sizes))
    best = best[np.searchsorted(best, first)]
    return query[best], reference[best], score[best], kind[best]
