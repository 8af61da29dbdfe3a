"""Columns to characters, likelihoods and alignment, against all paths of CTC's definition and against torch."""
import itertools

import numpy as np
import pytest
import torch

from inference.decode import OVERLAP, Runs, align, best_path, log_likelihood, path_of, suppress


def log_softmax(logits):
    logits = logits - logits.max(1, keepdims=True)
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)


def random_columns(count, classes, seed, spread=3.0):
    return log_softmax(np.random.default_rng(seed).normal(0, spread, (count, classes)))


def spelled(path):
    """What a path says: its runs, joined, without blanks."""
    return tuple(c for c, _ in itertools.groupby(path) if c)


def all_texts(log_probs):
    """{text: (log probability, its most probable path)}, by adding up all paths."""
    found = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        chance = sum(float(log_probs[column, c]) for column, c in enumerate(path))
        total, best, way = found.get(spelled(path), (-np.inf, -np.inf, None))
        found[spelled(path)] = np.logaddexp(total, chance), *((chance, path) if chance > best else (best, way))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_likelihood_is_the_sum_over_all_paths(seed):
    log_probs = random_columns(5, 4, seed)
    texts = all_texts(log_probs)
    assert np.allclose(log_likelihood(log_probs, list(texts)), [total for total, _, _ in texts.values()], atol=1e-5)
    assert log_likelihood(log_probs, [(1, 1, 1, 1), (1,) * 6]).tolist() == [-np.inf] * 2  # more than five columns
    assert log_likelihood(log_probs, []).shape == (0,)


def test_the_likelihood_is_that_of_torch():
    rng = np.random.default_rng(0)
    log_probs = random_columns(300, 40, 7)
    texts = [rng.integers(1, 40, length).tolist() for length in (1, 5, 60, 100)] + [[3, 3, 3, 3]]
    ours = log_likelihood(log_probs, texts)
    for text, found in zip(texts, ours):
        loss = torch.nn.functional.ctc_loss(torch.from_numpy(log_probs).double()[:, None], torch.tensor([text]), [300],
                                            [len(text)], reduction="sum")
        assert found == pytest.approx(-float(loss), rel=1e-9)
    assert np.allclose(ours, [log_likelihood(log_probs, [text])[0] for text in texts], rtol=1e-12)  # alone or side by side


@pytest.mark.parametrize("seed", range(4))
def test_the_alignment_is_the_most_probable_path(seed):
    log_probs = random_columns(5, 4, 10 + seed)
    for text, (_, _, path) in all_texts(log_probs).items():
        runs, at = [], 0
        for c, members in itertools.groupby(path):
            length = len(list(members))
            runs += [[at, at + length - 1]] if c else []
            at += length
        assert align(log_probs, text).tolist() == runs


def test_too_few_columns_for_a_text():
    log_probs = random_columns(3, 4, 0)
    assert align(log_probs, [1, 2, 3]).tolist() == [[0, 0], [1, 1], [2, 2]]
    with pytest.raises(ValueError, match="need 4"):
        align(log_probs, [1, 1, 2])  # a blank must stand between the two
    assert align(log_probs[:0], []).shape == (0, 2)


def test_the_best_path():
    best = [0, 3, 3, 0, 3, 1, 1, 2, 2, 2, 0]
    sure = [.9, .6, .8, .9, .7, .6, .6, .5, .9, .9, .9]
    probs = np.full((11, 4), 0.02)
    probs[np.arange(11), best] = sure
    runs = best_path(np.log(probs))
    assert [tuple(part.tolist()) for part in runs] == [(3, 3, 1, 2), (1, 4, 5, 7), (2, 4, 6, 9), (2, 4, 5, 8)]
    assert path_of(runs, 11).tolist() == best and path_of(runs.take([1]), 11).tolist() == [0, 0, 0, 0, 3] + [0] * 6
    log_probs = random_columns(200, 5, 3)
    assert tuple(best_path(log_probs).ids) == spelled(log_probs.argmax(1))
    for empty in (np.zeros((0, 4), np.float32), np.log(np.float32([[.9, .1]] * 3))):
        assert all(len(part) == 0 for part in best_path(empty))


def lines_of(*found):
    """(runs, log probs, spans) of characters (class, begin, end, columns): each so many columns at probability .9."""
    rows, spans, runs = [], [], []
    for c, begin, end, count in found:
        runs.append((c, len(rows), len(rows) + count - 1, len(rows)))
        rows += [np.log(np.where(np.arange(6) == c, .9, .02))] * count
        spans += [(begin, end)] * count
    return Runs(*np.array(runs).T), np.array(rows), np.float32(spans)


def kept(*found, **options):
    return suppress(*lines_of(*found), **options).ids.tolist()


def test_of_two_characters_in_one_place_the_less_probable_is_removed():
    assert kept((2, 0, 10, 3), (3, 4, 10, 1), (4, 12, 20, 2)) == [2, 4]        # 3 lies within 2
    assert kept((2, 0, 10, 1), (3, 4, 14, 3)) == [3]                           # .6 of either
    assert kept((2, 0, 10, 1), (3, 5, 15, 3)) == [2, 3]                        # half
    assert kept((2, 0, 10, 1), (3, 5, 15, 3), overlap=0.4) == [3]
    assert kept((2, 0, 10, 1), (3, 0, 10, 3), overlap=1.0) == [2, 3]           # off
    assert kept((2, 0, 10, 3), (1, 2, 8, 1), (3, 12, 20, 1)) == [2, 1, 3]      # a space has no box that counts
    assert kept((2, 0, 10, 2), (3, 5, 16, 1), (4, 11, 20, 2)) == [2, 4]        # and 3 removes neither
    assert kept((2, 0, 10, 3), (3, 3, 10, 2), (4, 9, 14, 1)) == [2, 4]         # what is removed removes nothing
    assert OVERLAP == 0.5


def test_letters_of_a_ligature_may_share_their_box():
    joined = (2, 0, 12, 3), (3, 4, 12, 1)                                      # all but .1 of the second
    assert kept(*joined) == [2]
    assert kept((2, 0, 12, 3), (3, 5, 13, 1), ligatures={(2, 3)}) == [2, 3]
    assert kept((2, 0, 12, 3), (3, 5, 13, 1), ligatures={(3, 2)}) == [2]       # in this order alone
    assert kept((2, 0, 12, 3), (3, 0, 12, 1), ligatures={(2, 3)}) == [2]       # but not all of it
