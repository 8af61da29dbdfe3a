"""Verification over ALL pairs of images: exact, and independent of the order of the files.

The score of two images is (cos + 1) / 2. A cosine summed in floating point depends on the order of the sum, and so on the
size of the blocks. Therefore each embedding is first rounded to multiples of 2^-26. Then every product is a multiple of
2^-52, and every partial sum is below 2 (Cauchy-Schwarz); float64 holds both exactly. The blocked matmul has no rounding
error at all, for any block size, file order or BLAS library.

Scores are then counted on a grid of 2^-24, the resolution of float32 for scores in [0.5, 1]. Two histograms (pairs of one
type, pairs of two types) describe any number of pairs completely. AUROC, TPR and thresholds follow from integer sums.

An image may have several views: the document found in a photo and the whole photo, each of them also turned. The score of
two images is then the best of two views. Only one of the two may be a turned one, since one image is enough to turn.
"""
import itertools
from dataclasses import dataclass

import numpy as np

GRID = 1 << 24          # score = bin / GRID
BINS = GRID + 1         # bins 0..GRID, both ends included
# Name -> 1 / FPR, of what is measured. A registry of N types asks for a rate near 1 / N, so decades would be too far apart.
RATES = {f"{digit}e-{power}": 10 ** power // digit for power in range(1, 6) for digit in (5, 2, 1)[2 * (power == 1):]}
FPRS = {name: one_in for name, one_in in RATES.items() if name[0] == "1"}           # of what is shown


@dataclass(frozen=True)
class Pair:
    """Two images as row numbers, `first < second`, and their score."""
    first: int
    second: int
    score: float


@dataclass(frozen=True)
class PairCounts:
    """Histograms of all pairs, int64 `[BINS]` each, and the pairs that a person should inspect."""
    positive: np.ndarray            # pairs of one type
    negative: np.ndarray            # pairs of two types
    false_matches: list[Pair]       # the highest-scoring negatives, worst first
    missed_matches: list[Pair]      # the lowest-scoring positives, worst first


@dataclass(frozen=True)
class Verification:
    """Metrics of all pairs. Scores and thresholds are (cos + 1) / 2; a pair is accepted when score >= threshold."""
    auroc: float                    # a tie between a positive and a negative pair counts half
    tpr_at_fpr: dict[str, float]    # at RATES, as thresholds
    thresholds: dict[str, float]
    too_few_negatives: list[str]    # rates below 1 / (number of negative pairs): even one accepted pair is above them
    positive: int
    negative: int
    roc: np.ndarray                 # float64 [points, 2]: FPR, TPR; spaced for a logarithmic FPR axis
    histogram: np.ndarray           # int64 [2, 128]: positive, negative pairs per score interval of 1/128

    def as_dict(self):
        """For JSON: plain numbers, no curves."""
        return {"auroc": self.auroc, "tpr_at_fpr": self.tpr_at_fpr, "thresholds": self.thresholds,
                "pairs": {"positive": self.positive, "negative": self.negative},
                "too_few_negatives": self.too_few_negatives}


def fixed_point(embeddings):
    """Vectors `[..., D]` scaled to length 1 and rounded to multiples of 2^-26, as float64; a zero vector stays zero.

    Dot products of the result are exact in float64, in any order of summation.
    """
    points = np.array(embeddings, dtype=np.float64)
    points /= np.abs(points).max(axis=-1, keepdims=True, initial=1e-300)    # so that no square overflows or underflows
    points /= np.maximum(np.sqrt((points * points).sum(axis=-1, keepdims=True)), 1e-300)
    points *= 1 << 26
    np.rint(points, out=points)
    points /= 1 << 26
    return points


def count_pairs(points, labels, worst=0, block=1024, upright=None):
    """Count every pair i < j once, in blocks of the upper triangle.

    points: float64 [N, D] from `fixed_point`, or [V, N, D], V views of each image, of which the first `upright` are not
    turned (None: all); labels: int [N]; worst: how many false and how many missed matches to keep.
    Memory: 256 MiB of histograms and about 30 * block^2 bytes. Time: N^2 D flops for two views, and one scattered count per
    pair of images.
    """
    views = points[None] if points.ndim == 2 else points
    upright, n = upright or len(views), views.shape[1]
    labels = np.asarray(labels)
    histogram = np.zeros((2, BINS), np.int64)       # row 0: two types, row 1: one type
    flat = histogram.reshape(-1)
    high, low = _Worst(worst, n), _Worst(worst, n)
    for i in range(0, n, block):
        for j in range(i, n, block):
            bins = _to_bins(best_cosines(views[:, i:i + block], views[:, j:j + block], upright))
            same = labels[i:i + block, None] == labels[None, j:j + block]
            rows, cols = np.indices(bins.shape, sparse=True)
            if i == j:
                rows, cols = np.triu_indices(len(bins), 1)      # on the diagonal: each pair once, none with itself
                bins, same = bins[rows, cols], same[rows, cols]
            if worst:
                position = (rows + i) * n + (cols + j)
                high.add(GRID - bins, ~same, position)
                low.add(bins, same, position)
            np.add.at(flat, (bins + same * np.int64(BINS)).reshape(-1), 1)
    return PairCounts(histogram[1], histogram[0], high.pairs(lambda rank: GRID - rank), low.pairs(lambda rank: rank))


def measure(counts):
    """AUROC, TPR and thresholds of `PairCounts`, as `Verification`. Needs a positive and a negative pair.

    The threshold at an FPR is the smallest grid score that accepts no more than that share of the negatives. So the true FPR
    is never above the requested one, even with ties. The threshold may be 1 + 2^-24, which accepts nothing: then some
    negative pair consists of two identical images.
    """
    # element b of each: pairs accepted when the b highest bins are accepted
    positives, negatives = _accepted(counts.positive), _accepted(counts.negative)
    n_positive, n_negative = int(positives[-1]), int(negatives[-1])

    def operating_point(allowed):
        """(FPR, TPR, threshold) of the lowest threshold that accepts at most `allowed` negatives."""
        bins = int(np.searchsorted(negatives, allowed, side="right")) - 1
        return negatives[bins] / n_negative, positives[bins] / n_positive, (BINS - bins) / GRID

    points = {name: operating_point(n_negative // one_in) for name, one_in in RATES.items()}
    allowed = np.unique(np.geomspace(1, n_negative, 600).astype(np.int64))
    return Verification(
        auroc=_auroc(counts.positive, negatives, n_positive, n_negative),
        tpr_at_fpr={name: float(tpr) for name, (_, tpr, _) in points.items()},
        thresholds={name: threshold for name, (_, _, threshold) in points.items()},
        too_few_negatives=[name for name, one_in in RATES.items() if n_negative < one_in],
        positive=n_positive, negative=n_negative,
        roc=np.array([operating_point(a)[:2] for a in allowed]),
        histogram=np.stack([_coarse(counts.positive), _coarse(counts.negative)]))


def best_cosines(queries, references, upright):
    """float64 [V, Q, D] and [W, R, D] -> float64 [Q, R]: the best cosine of a view of each.

    The first `upright` views of an image are not turned; a turned view is not compared with a turned one.
    """
    best = None
    for v, w in itertools.product(range(len(queries)), range(len(references))):
        if min(v, w) < upright:
            cosines = queries[v] @ references[w].T
            best = cosines if best is None else np.maximum(best, cosines, out=best)
    return best


class _Worst:
    """The `keep` pairs of lowest rank so far. Ties are ordered by position, so the order of the blocks does not matter."""

    def __init__(self, keep, n):
        self.keep, self.n = keep, n
        self.keys = np.empty(0, np.int64)       # rank * n^2 + row * n + column: fits 63 bits up to 741,000 images
        self.limit = BINS

    def add(self, ranks, wanted, positions):
        candidates = wanted & (ranks <= self.limit)
        if not candidates.any():
            return
        keys = ranks[candidates] * self.n ** 2 + np.broadcast_to(positions, ranks.shape)[candidates]
        keys = np.concatenate([self.keys, keys])
        if len(keys) > self.keep:
            keys = np.partition(keys, self.keep - 1)[:self.keep]
            self.limit = keys.max() // self.n ** 2
        self.keys = keys

    def pairs(self, to_bin):
        found = []
        for key in np.sort(self.keys).tolist():
            rank, position = divmod(key, self.n ** 2)
            found.append(Pair(*divmod(position, self.n), score=to_bin(rank) / GRID))
        return found


def _to_bins(cosines):
    cosines *= GRID // 2
    cosines += GRID // 2
    np.rint(cosines, out=cosines)
    np.clip(cosines, 0, GRID, out=cosines)      # the length of a rounded vector is not exactly 1
    return cosines.astype(np.int64)


def _accepted(histogram):
    """int64 [BINS + 1]: element b is the number of pairs in the b highest bins."""
    accepted = np.zeros(BINS + 1, np.int64)
    np.cumsum(histogram[::-1], out=accepted[1:])
    return accepted


def _auroc(positive_histogram, negatives, n_positive, n_negative):
    """P(positive > negative) + P(tie) / 2. In float64: accurate to 1e-15, and no number of pairs overflows."""
    twice_won = 0.0
    for start in range(0, BINS, 1 << 20):       # in chunks: temporary arrays of full length would take 128 MiB each
        bins = np.arange(start, min(start + (1 << 20), BINS))
        at_least, above = negatives[BINS - bins], negatives[BINS - bins - 1]
        twice_won += float((positive_histogram[bins] * (2.0 * n_negative - at_least - above)).sum())
    return twice_won / (2.0 * n_positive * n_negative)


def _coarse(histogram):
    """int64 [128]: pairs per score interval of 1/128. A score of exactly 1 is in the last one."""
    coarse = histogram[:-1].reshape(128, -1).sum(axis=1)
    coarse[-1] += histogram[-1]
    return coarse
