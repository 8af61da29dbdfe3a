"""Search through 8-bit codes: the answers of the float32 search to the last bit, and bounds that hold."""
import numpy as np
import onnx
import pytest

from inference import codes
from inference.codes import CodedRows, product_model
from inference.search import top_rows


@pytest.fixture(params=[(16, 4, 1), (64, 8, .4), (256, 64, 0)], ids=["blocks", "few-groups", "float32"])
def small(request, monkeypatch):
    """Many blocks; few or no groups of candidates, so that blocks are searched in float32."""
    for name, value in zip(("BLOCK", "GROUP", "MOST"), request.param):
        monkeypatch.setattr(codes, name, value)


def problem(seed):
    rng = np.random.default_rng(seed)
    count, total, depth = rng.integers(1, 80 if seed % 7 == 0 else 9), rng.integers(1, 700), rng.integers(1, 70)
    kind = seed % 4
    if kind == 0:  # whole numbers: exact sums and many ties
        queries, references = (rng.integers(-2, 3, (rows, depth)).astype(np.float32) for rows in (count, total))
    else:  # near neighbors, duplicates, other lengths
        references = rng.standard_normal((total, depth), np.float32)
        queries = references[rng.integers(0, total, count)] + .3 * rng.standard_normal((count, depth), np.float32)
        references[rng.integers(0, total, 20)] = references[rng.integers(0, total)]
        if kind == 1:
            references *= np.float32(10) ** rng.integers(-9, 9, (total, 1))
        elif kind == 2:
            references[:, rng.integers(0, depth)] *= 1000  # what is left of the others are a few levels
            queries[0] = 0
    starts = None
    if seed % 3:
        starts = np.unique(np.append(0, rng.integers(0, total, rng.integers(1, total + 1) if seed % 3 == 1 else 3)))
    skip = np.unique(rng.integers(0, total, rng.integers(0, total))) if seed % 5 else None
    return queries, references, int(rng.integers(1, 30)), starts, skip


@pytest.mark.parametrize("threads", [1, 3])
def test_answers_are_those_of_the_float32_search(small, threads):
    for seed in range(150):
        queries, references, k, starts, skip = problem(seed)
        coded = CodedRows(references, starts, threads)
        for each in (False, True):
            scores, types, rows = coded.top_rows(queries, k, skip, each)
            expected = top_rows(queries, references, k, None if each else starts, skip=skip)
            assert np.array_equal(scores, expected[0])
            there = scores > -np.inf
            truth = queries.astype(np.float64) @ references.astype(np.float64).T
            near = np.abs(np.take_along_axis(truth, rows, axis=1) - scores)[there]
            assert (near <= 1e-6 * (1 + np.abs(scores[there]))).all()
            of = rows if each or starts is None else np.searchsorted(starts, rows, "right") - 1
            assert np.array_equal(of[there], types[there])
            assert all(len(set(row[ok])) == ok.sum() for row, ok in zip(types, there))
            assert (np.diff(types, axis=1)[(scores[:, 1:] == scores[:, :-1]) & there[:, 1:]] > 0).all()  # the lower first


def test_at_full_size_of_a_block():
    rng = np.random.default_rng(0)
    references = rng.standard_normal((codes.BLOCK + 5000, 48), np.float32)
    references /= np.linalg.norm(references, axis=1, keepdims=True)
    queries = references[rng.integers(0, len(references), 70)] + .1 * rng.standard_normal((70, 48), np.float32)
    for starts in (None, np.arange(0, len(references), 3)):
        for found, expected in zip(CodedRows(references, starts, 2).top_rows(queries, 4),
                                   top_rows(queries, references, 4, starts)):
            assert np.array_equal(found, expected)


def test_many_equal_references_of_one_type():
    rng = np.random.default_rng(0)
    references = rng.standard_normal((3000, 32), np.float32)
    references[500:2500] = references[500]
    starts = np.concatenate((np.arange(500), np.arange(2500, 3000)))
    starts = np.sort(np.append(starts, 500))
    queries = references[[500, 3]] + np.float32(.01)
    for found, expected in zip(CodedRows(references, starts).top_rows(queries, 3), top_rows(queries, references, 3, starts)):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e-22, 1e-19, 1e-10, 1e15, 1e30])
@pytest.mark.parametrize("other", [1e-38, 1e-25, 1, 1e5])
def test_values_of_any_size_have_bounds_that_hold(scale, other):
    """Where squares and products are too small or too large for float32, and where scores are rounded most."""
    rng = np.random.default_rng(0)
    references = (rng.standard_normal((300, 30)) * scale).astype(np.float32)
    references[0], references[1], references[2] = references.max(), 0, np.eye(30)[4] * references.max()
    queries = np.concatenate((rng.standard_normal((5, 30)), np.ones((1, 30)), np.eye(30)[:2])) * other
    queries = queries.astype(np.float32)
    block, probes = codes._Block(references, 0, 1), codes._Probes(queries)
    products, step, slack = block.products(probes)
    scores = (queries.astype(np.float64) @ references.astype(np.float64).T).astype(np.float32)
    assert (np.abs(products[:, :300] * step[:, None] - scores) <= slack[:, None]).all()
    found, _, rows = CodedRows(references).top_rows(queries, 5)
    assert np.array_equal(found, -np.sort(-scores)[:, :5])
    assert np.array_equal(found, np.take_along_axis(scores, rows, axis=1))


@pytest.mark.parametrize("seed", range(20))
def test_products_are_within_their_bound(seed):
    """Also where every product has the same sign and the largest size, which 16 bits must hold."""
    rng = np.random.default_rng(seed)
    references, queries = (rng.standard_normal((rows, 200), np.float32) ** (1 + 2 * (seed % 2)) for rows in (300, 7))
    references[:3], queries[:2] = np.sign(references[0]), np.sign(references[0])
    references[1] *= -1
    block, probes = codes._Block(references, 0, 1), codes._Probes(queries)
    products, step, slack = block.products(probes)
    away = np.abs(products[:, :300] * step[:, None] - queries.astype(np.float64) @ references.astype(np.float64).T)
    assert (away <= slack[:, None]).all()
    assert (slack < .15 * np.linalg.norm(queries, axis=1) * np.linalg.norm(references, axis=1).max()).all()
    columns = np.rint(references / np.float32(block.step)).astype(np.int64)
    assert np.array_equal(products[:, :300], (probes.codes.astype(np.int64) - 64) @ columns.T)


def test_numbers_without_codes():
    ones = np.ones((5, 4), np.float32)
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="finite"):
            CodedRows(np.where(np.eye(5, 4, dtype=bool), np.float32(value), ones))
    coded = CodedRows(ones)
    queries = ones[:2].copy()
    queries[1, 0] = np.nan
    assert np.array_equal(coded.top_rows(queries, 2)[1][0], [0, 1])  # the other query has its answer
    with pytest.raises(ValueError, match="at least 1"):
        coded.top_rows(ones, 0)
    with pytest.raises(ValueError, match=r"\[N, 4\]"):
        coded.top_rows(ones[:, :2], 1)


def test_the_model_is_onnx():
    columns = np.random.default_rng(0).integers(-127, 128, (5, 300)).astype(np.int8)
    model = onnx.load_from_string(product_model(columns))
    onnx.checker.check_model(model, full_check=True)
    constant = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    assert np.array_equal(constant["columns"], columns) and constant["zero"] == 64
