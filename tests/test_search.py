"""Exact search against brute force in float64: numpy's, and that of a GPU, on CPU tensors where there is none."""
import sys

import numpy as np
import pytest
import torch

from inference import search_cuda
from inference.errors import UserError
from inference.gallery import searcher
from inference.search import top_k, top_rows
from inference.search_cuda import CudaGallery


def problem(seed, whole, most=700):
    """Queries, references and perhaps types; whole numbers have exact sums and many ties, the others some duplicates."""
    rng = np.random.default_rng(seed)
    count, total, depth = rng.integers(0, 80 if seed % 5 == 0 else 9), rng.integers(1, most), rng.integers(1, 40)
    if whole:
        queries, references = (rng.integers(-2, 3, (rows, depth)).astype(np.float32) for rows in (count, total))
    else:
        queries, references = (rng.standard_normal((rows, depth), np.float32) for rows in (count, total))
        references[rng.integers(0, total, 5)] = references[rng.integers(0, total)]
    starts = None
    if seed % 2:
        types = rng.integers(1, total + 1) if seed % 4 == 1 else 3  # many of few references, or few of many
        starts = np.unique(np.append(0, rng.integers(0, total, types)))
    return queries, references, int(rng.integers(1, 40)), starts


def brute_force(queries, references, k, starts):
    """float64: scores of every reference, of every type `[N, T]`, and the k best indices, the lower first of equals."""
    each = scores = queries.astype(np.float64) @ references.astype(np.float64).T
    if starts is not None:
        scores = np.maximum.reduceat(scores, starts, axis=1)
    return each, scores, np.argsort(-scores, axis=1, kind="stable")[:, :k]


def check(found, problem, whole):
    queries, references, k, starts = problem
    scores, indices, rows = found
    each, every, expected = brute_force(queries, references, k, starts)
    assert scores.dtype == np.float32 and indices.dtype == np.int64 and indices.shape == scores.shape == expected.shape
    if whole:
        assert np.array_equal(indices, expected)
    assert all(len(set(row)) == len(row) for row in indices)
    assert np.abs(scores - np.take_along_axis(every, expected, axis=1)).max(initial=0) < 1e-5
    assert np.abs(scores - np.take_along_axis(every, indices, axis=1)).max(initial=0) < 1e-5
    # A row is of its type, and no other of that type is better.
    assert np.array_equal(rows if starts is None else np.searchsorted(starts, rows, "right") - 1, indices)
    assert np.abs(scores - np.take_along_axis(each, rows, axis=1)).max(initial=0) < 1e-5
    if scores.size:  # equal scores: the lower index first
        assert (np.diff(indices, axis=1)[np.diff(scores, axis=1) == 0] > 0).all()


@pytest.mark.parametrize("whole", [True, False])
def test_search_is_brute_force(whole):
    for seed in range(200):
        case = problem(seed, whole)
        for block_bytes in (1, 5_000, 8 << 20):  # many blocks, some, one
            found = top_rows(*case, block_bytes=block_bytes)
            check(found, case, whole)
            assert all(map(np.array_equal, top_k(*case, block_bytes=block_bytes), found))


def test_duplicates_across_blocks_keep_their_order_and_score():
    rng = np.random.default_rng(0)
    references = rng.standard_normal((1000, 64), np.float32)
    places = np.sort(rng.permutation(1000)[:7])
    references[places] = references[places[0]]
    for count in (1, 2, 17, 64):  # other sizes take other ways through BLAS
        scores, indices = top_k(np.repeat(references[places[:1]], count, axis=0), references, 8, block_bytes=20_000)
        assert (indices[:, :7] == places).all() and (scores[:, :7] == scores[0, 0]).all()
        assert (scores[:, 7] < scores[:, 6]).all()


def test_what_is_searched_together_changes_nothing():
    queries, references = (np.random.default_rng(seed).standard_normal((rows, 256), np.float32)
                           for seed, rows in enumerate((150, 3000)))
    scores, indices = top_k(queries, references, 5)
    for row in (0, 64, 149):
        alone = top_k(queries[row:row + 1], references, 5, block_bytes=50_000)
        assert np.array_equal(alone[0][0], scores[row]) and np.array_equal(alone[1][0], indices[row])


def test_memory_does_not_grow_with_the_references():
    """Traced allocations of numpy: a budget of 1 MB for 64 x 200,000 scores, which are 51 MB."""
    import tracemalloc
    queries, references = np.zeros((64, 4), np.float32), np.zeros((200_000, 4), np.float32)
    queries[:, 0], references[:, 0] = 1, np.random.default_rng(0).random(200_000)
    tracemalloc.start()
    top_k(queries, references, 3, block_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_what_is_no_number_costs_no_other_query_anything():
    queries, references = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)
    queries[1] = np.nan
    _, indices = top_k(queries, references, 2)
    assert indices[0, 0] == 0 and indices[2, 0] == 2 and set(indices[1]) == {0, 1}


def test_wrong_arguments():
    ones = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="expected"):
        top_k(ones, ones[:, :2], 1)
    with pytest.raises(ValueError, match="at least 1"):
        top_k(ones, ones, 0)
    with pytest.raises(UserError, match="use cpu or cuda"):
        searcher(ones, gallery="tpu")


# ---------------------------------------------------------------- as on a GPU
@pytest.mark.parametrize("whole", [True, False])
def test_gallery_in_bf16_is_brute_force_of_the_rounded_references(whole, monkeypatch):
    for seed in range(60):
        monkeypatch.setattr(search_cuda, "ROWS", (100, 3000, 1 << 18)[seed % 3])  # many blocks, some, one
        queries, references, k, starts = problem(seed, whole, most=7000)
        rounded = torch.from_numpy(references).bfloat16().float().numpy()
        found = CudaGallery(references, starts, device="cpu").top_rows(queries, k)
        check(found, (queries, rounded, k, starts), whole)


def test_gallery_keeps_the_lower_index_of_equals_and_counts_a_type_once(monkeypatch):
    """Thousands of equal references: any of them would do for `topk`."""
    monkeypatch.setattr(search_cuda, "ROWS", 1000)
    rng = np.random.default_rng(0)
    references, queries = rng.standard_normal((20_000, 32), np.float32), rng.standard_normal((64, 32), np.float32)
    references[::4] = queries[0]
    _, indices = CudaGallery(references, device="cpu").top_k(queries[:1], 20)
    assert indices[0].tolist() == list(range(0, 80, 4))
    # The first type is larger than a block, and its equal references would fill every place.
    gallery = CudaGallery(references, np.array([0, 19_998, 19_999]), device="cpu")
    assert sorted(gallery.top_k(queries[:1], 3)[1][0]) == [0, 1, 2] and gallery.top_k(queries[:1], 1)[1] == 0


def test_gallery_orders_zeros_and_negative_scores_and_survives_nan():
    references = np.array([[-0.0], [0.0], [-2.0], [-1.0], [3.0]], np.float32)
    queries = np.array([[1.0], [-1.0], [np.nan]], np.float32)
    scores, indices = CudaGallery(references, device="cpu").top_k(queries, 5)
    assert indices[:2].tolist() == [[4, 0, 1, 3, 2], [2, 3, 0, 1, 4]]
    assert scores[:2].tolist() == [[3, 0, 0, -1, -2], [2, 1, 0, 0, -3]] and sorted(indices[2]) == [0, 1, 2, 3, 4]


def test_without_a_gpu_or_torch_it_is_one_line(monkeypatch):
    ones = np.ones((2, 3), np.float32)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="^gallery cuda: torch finds no CUDA device"):
            searcher(ones, gallery="cuda")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "inference.search_cuda")
    with pytest.raises(UserError, match="^gallery cuda: needs torch"):
        searcher(ones, gallery="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    for seed in range(20):
        queries, references, k, starts = problem(seed, False, most=7000)
        rounded = torch.from_numpy(references).bfloat16().float().numpy()
        check(CudaGallery(references, starts).top_rows(queries, k), (queries, rounded, k, starts), False)
