"""All-pairs metrics against scikit-learn and brute force. They depend on the set of images alone."""
import itertools
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from eval.gallery import identify
from eval.pairs import BINS, FPRS, GRID, Pair, PairCounts, count_pairs, fixed_point, measure


def clusters(n, types, dim=16, noise=1.5, seed=0):
    """Embeddings float32 [n, dim] of any length around `types` centers, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, types, n)
    points = rng.standard_normal((types, dim))[labels] + noise * rng.standard_normal((n, dim))
    return (points * rng.uniform(.1, 10, (n, 1))).astype(np.float32), labels


def brute_force(embeddings, labels):
    """Every pair i < j: score in float64, and whether both images are of one type."""
    unit = embeddings.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    i, j = np.triu_indices(len(unit), 1)
    return (np.einsum("nd,nd->n", unit[i], unit[j]) + 1) / 2, labels[i] == labels[j]


def tied(n=60, seed=0):
    """Few distinct directions, so that most pairs tie with others, across types too."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((5, 8))[rng.integers(0, 5, n)], rng.integers(0, 4, n)


def test_dot_products_are_exact():
    points = fixed_point(clusters(9, 3, dim=300)[0])
    exact = [[sum(Fraction(a) * Fraction(b) for a, b in zip(x, y)) for y in points.tolist()] for x in points.tolist()]
    product = points @ points.T
    assert all(Fraction(product[i, j]) == exact[i][j] for i, j in itertools.product(range(9), repeat=2))


def test_fixed_point_is_the_unit_vector_and_leaves_zero_alone():
    embeddings = np.array([[3, 4], [0, 0], [3e-30, -4e-30], [-3e30, 4e30]])
    assert np.abs(fixed_point(embeddings) - [[.6, .8], [0, 0], [.6, -.8], [-.6, .8]]).max() <= 2 ** -26


def test_auroc_and_tpr_are_those_of_scikit_learn():
    embeddings, labels = clusters(500, 6)
    scores, same = brute_force(embeddings, labels)
    found = measure(count_pairs(fixed_point(embeddings), labels))
    assert (found.positive, found.negative) == (same.sum(), (~same).sum())
    assert found.auroc == pytest.approx(roc_auc_score(same, scores), abs=1e-7)      # float scores against the grid
    on_grid = np.rint(scores * GRID) / GRID
    assert found.auroc == pytest.approx(roc_auc_score(same, on_grid), abs=1e-8)
    fpr, tpr, thresholds = roc_curve(same, scores, drop_intermediate=False)
    for name, one_in in FPRS.items():
        allowed = fpr <= 1 / one_in
        assert found.tpr_at_fpr[name] == pytest.approx(tpr[allowed].max(), abs=1e-12)
        # ours is between the last threshold that scikit-learn may use and the first one that accepts too many
        assert thresholds[~allowed].max() - 2 / GRID <= found.thresholds[name] <= thresholds[allowed].min() + 2 / GRID


def test_histograms_of_tied_scores_are_those_of_brute_force():
    embeddings, labels = tied()
    scores, same = brute_force(embeddings, labels)
    counts = count_pairs(fixed_point(embeddings), labels)
    for histogram, wanted in ((counts.positive, same), (counts.negative, ~same)):
        bins = np.flatnonzero(histogram)
        values, number = np.unique(np.round(scores[wanted], 6), return_counts=True)
        assert np.allclose(bins / GRID, values, atol=1e-6) and (histogram[bins] == number).all()
    assert measure(counts).auroc == pytest.approx(roc_auc_score(same, np.round(scores, 6)), abs=1e-12)


@pytest.mark.parametrize("data", [clusters(137, 5), tied()], ids=["continuous", "tied"])
def test_order_and_block_size_change_no_count(data):
    embeddings, labels = data
    counts = count_pairs(fixed_point(embeddings), labels)
    order = np.random.default_rng(1).permutation(len(labels))
    for rows, block in [(np.arange(len(labels)), 7), (order, 1024), (order, 50), (order, 1)]:
        other = count_pairs(fixed_point(embeddings[rows]), labels[rows], block=block)
        assert (other.positive == counts.positive).all() and (other.negative == counts.negative).all()
    shuffled = measure(other).as_dict()
    assert shuffled == measure(counts).as_dict()


@pytest.mark.parametrize("data", [clusters(200, 4, noise=.5), clusters(200, 40, noise=3), tied(), tied(seed=3)],
                         ids=["easy", "hard", "tied", "tied-2"])
def test_thresholds_never_exceed_the_requested_fpr_and_are_the_smallest(data):
    embeddings, labels = data
    counts = count_pairs(fixed_point(embeddings), labels)
    found = measure(counts)
    bins = np.arange(BINS)
    for name, one_in in FPRS.items():
        def accepted(histogram, threshold):
            return int(histogram[bins / GRID >= threshold].sum())
        threshold = found.thresholds[name]
        assert accepted(counts.negative, threshold) * one_in <= found.negative
        assert accepted(counts.negative, threshold - 1 / GRID) * one_in > found.negative
        assert found.tpr_at_fpr[name] == accepted(counts.positive, threshold) / found.positive


def test_float32_scores_respect_the_thresholds():
    embeddings, labels = clusters(600, 5)
    found = measure(count_pairs(fixed_point(embeddings), labels))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    i, j = np.triu_indices(len(unit), 1)
    scores = ((unit @ unit.T + 1) / 2)[i, j][labels[i] != labels[j]]
    for name, one_in in FPRS.items():       # float32 sums have errors of some 2^-24, so a few grid steps are enough
        assert (scores >= found.thresholds[name] + 4 / GRID).sum() * one_in <= found.negative


def test_an_image_in_two_types_leaves_nothing_to_accept():
    found = measure(count_pairs(fixed_point(np.ones((4, 3))), np.array([0, 0, 1, 1])))
    assert found.auroc == .5
    assert set(found.thresholds.values()) == {1 + 1 / GRID} and set(found.tpr_at_fpr.values()) == {0}


def test_too_few_negatives_are_reported():
    embeddings, labels = np.eye(50, dtype=np.float32) + 1, np.arange(50) // 2
    found = measure(count_pairs(fixed_point(embeddings), labels))       # 25 * 24 / 2 * 4 = 1,200 negative pairs
    assert found.negative == 1200 and found.too_few_negatives == ["5e-4", "2e-4", "1e-4", "5e-5", "2e-5", "1e-5"]


def test_any_number_of_pairs_fits():
    positive, negative = np.zeros((2, BINS), np.int64)
    positive[[10, 20]], negative[[5, 20]] = 3 * 10 ** 12, 10 ** 12
    # of 4 equally frequent combinations: 10 > 5, 10 < 20, 20 > 5, 20 = 20
    assert measure(PairCounts(positive, negative, [], [])).auroc == pytest.approx(2.5 / 4, abs=1e-12)


@pytest.mark.parametrize("data", [clusters(90, 6), tied()], ids=["continuous", "tied"])
@pytest.mark.parametrize("block", [8, 1024])
def test_worst_pairs_are_those_of_brute_force(data, block):
    embeddings, labels = data
    points = fixed_point(embeddings)
    bins = np.rint((points @ points.T + 1) / 2 * GRID).clip(0, GRID).astype(int)
    pairs = [(int(bins[i, j]), i, j) for i, j in itertools.combinations(range(len(labels)), 2)]
    lowest = sorted(p for p in pairs if labels[p[1]] == labels[p[2]])[:20]
    highest = sorted((p for p in pairs if labels[p[1]] != labels[p[2]]), key=lambda p: (-p[0], *p[1:]))[:20]
    counts = count_pairs(points, labels, worst=20, block=block)
    assert counts.missed_matches == [Pair(i, j, b / GRID) for b, i, j in lowest]
    assert counts.false_matches == [Pair(i, j, b / GRID) for b, i, j in highest]


def test_memory_does_not_grow_with_the_number_of_pairs():
    embeddings, labels = clusters(9_000, 7, dim=32)     # the matrix of cosines alone would take 618 MiB
    points = fixed_point(embeddings)
    tracemalloc.start()
    counts = count_pairs(points, labels, worst=20)
    counting = tracemalloc.get_traced_memory()[1]
    found = measure(counts)
    measuring = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.positive + found.negative == 9_000 * 8_999 // 2
    assert counting < 400 * 2 ** 20 and measuring < 800 * 2 ** 20


@pytest.mark.parametrize("with_references", [True, False])
def test_top1_is_that_of_brute_force(with_references):
    embeddings, labels = clusters(150, 30, noise=.8)
    is_reference = with_references & (np.arange(150) < 60)          # several references for some types, none for some
    points = fixed_point(embeddings)
    gallery = np.flatnonzero(is_reference) if with_references else np.arange(150)
    right = asked = 0
    for query in np.flatnonzero(~is_reference):
        others = [g for g in gallery if g != query]
        if labels[query] in labels[others]:
            asked += 1
            right += labels[max(others, key=lambda g: points[query] @ points[g])] == labels[query]
    found = identify(points, labels, is_reference, block=16)
    assert found == identify(points, labels, is_reference)
    assert 0 < right < asked
    assert (found.top1, found.queries, found.gallery) == (right / asked, asked, len(gallery))
    assert found.protocol == ("references" if with_references else "leave-one-out")
    assert found.queries + found.excluded == (~is_reference).sum()


def test_top1_takes_the_best_reference_and_counts_a_tie_as_wrong():
    east, north, west = [1, 0], [0, 1], [-1, 0]
    points = fixed_point([west, east, north, [1, .1]])
    assert identify(points, [0, 0, 1, 0], [True, True, True, False]).top1 == 1      # not its first reference
    tie = fixed_point([east, east, east])
    assert identify(tie, [0, 1, 0], [True, True, False]).top1 == 0


def test_top1_without_queries_leaves_one_out():
    points = fixed_point([[1, 0], [1, .1], [0, 1]])
    found = identify(points, [0, 0, 1], [True, True, True])
    assert (found.protocol, found.top1, found.queries, found.excluded) == ("leave-one-out", 1, 2, 1)


# ---------------------------------------------------------------- several views of an image
def views_of(n=40, views=6, types=8, seed=0):
    """float64 [views, n, 8], labels, and which images are references (one of each type)."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % types)
    vectors = rng.standard_normal((types, 8))[labels] + rng.standard_normal((views, n, 8))
    is_reference = np.zeros(n, bool)
    is_reference[np.unique(labels, return_index=True)[1]] = True
    return fixed_point(vectors), labels, is_reference


@pytest.mark.parametrize("upright", [1, 2, 6, None])
@pytest.mark.parametrize("block", [7, 1024])
def test_a_pair_has_the_score_of_its_best_views(upright, block):
    points, labels, _ = views_of()
    allowed = upright or len(points)
    expected = np.zeros((2, BINS), np.int64)
    for i, j in itertools.combinations(range(len(labels)), 2):
        best = max(points[v, i] @ points[w, j] for v in range(6) for w in range(6) if v < allowed or w < allowed)
        expected[int(labels[i] == labels[j]), int(np.rint((best + 1) / 2 * GRID))] += 1
    counts = count_pairs(points, labels, block=block, upright=upright)
    assert (counts.negative == expected[0]).all() and (counts.positive == expected[1]).all()


def test_the_order_of_images_does_not_matter_where_they_are_turned():
    points, labels, _ = views_of()
    back = count_pairs(points[:, ::-1], labels[::-1], upright=2)
    counts = count_pairs(points, labels, upright=2)
    assert (back.positive == counts.positive).all() and (back.negative == counts.negative).all()


@pytest.mark.parametrize("upright", [1, 2, 6])
def test_top1_turns_references_alone(upright):
    points, labels, is_reference = views_of(seed=1)
    right = 0
    for query in np.flatnonzero(~is_reference):
        scores = {labels[one]: max(points[v, query] @ points[w, one] for v in range(upright) for w in range(6))
                  for one in np.flatnonzero(is_reference)}
        right += max(scores, key=scores.get) == labels[query]
    found = identify(points, labels, is_reference, block=3, upright=upright)
    assert found.top1 == right / (~is_reference).sum() and 0 < right < found.queries
