"""Exact search through 8-bit codes: several times as fast as the float32 products alone, with the same answers.

A search reads every reference once, so that its time is that of reading them. Here it reads codes of a quarter of the size,
and multiplies whole numbers, which processors do at several times the rate. How far such a product can be from the true one
is known (Cauchy and Schwarz): |q v - q' v'| <= |q - q'| |v| + |q'| |v - v'| for a query q, a reference v and what their
codes stand for, q' and v'. Only references that may still be among the best are scored with their float32 values. Two-step
search with rounded vectors: VA-File, Weber et al., VLDB 1998.
"""
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import onnxruntime

from .search import Best, best_hits, scores_of, starts_within, top_rows

CODED = 1 << 14  # references from which codes are worth making: a search without them takes .5 ms
BLOCK = 1 << 15  # references of one product: its whole numbers for 64 queries, 8 MB, stay in the cache
CHUNK = 1 << 12  # references that are made codes at once
GROUP = 64  # references that share a maximum
QUERIES = 64  # queries at once
SCORED = 64  # candidates that are scored at once: in float64 they stay in the cache; all of a block might take 200 MB
MOST = 1 / 2  # share of a block's groups with candidates of a query; beyond it a float32 product of the block costs less
QUERY_LEVELS, LEVELS = 63, 127  # 7 bits times 8: two products fit 16 bits, where processors without VNNI add them first
ROUNDING = 1e-4, 1e-6  # of lengths' float32 sums, up to 3,000 values, relative; of the rest, relative to both lengths
SMALLEST = float(np.finfo(np.float32).smallest_subnormal) / 2  # what rounding a score changes at least
WORST = np.iinfo(np.int32).min


class CodedRows:
    """References float32 `[M, D]` with their codes beside them, D bytes each and about as many while they are made. `starts`
    as in `search.top_rows`. threads: that search at the same time.

    Raises ValueError for values that are not finite.
    """

    def __init__(self, references: np.ndarray, starts: np.ndarray | None = None, threads: int = 1):
        self.references, self.starts, blocks = references, starts, []
        for first in range(0, len(references), BLOCK):
            rows = references[first:first + BLOCK]
            begins = None if starts is None else starts_within(starts, first, len(rows))
            blocks.append(_Block(rows, first, 1 if begins is None else int(np.diff(begins, append=len(rows)).max())))
        threads = min(threads, len(blocks))
        self._runs = [blocks[part[0]:part[-1] + 1] for part in np.array_split(np.arange(len(blocks)), threads)]
        self._threads = ThreadPoolExecutor(threads, "search") if threads > 1 else None

    def top_rows(self, queries: np.ndarray, k: int, skip: np.ndarray | None = None, each: bool = False):
        """As `search.top_rows` of these references. each: the best references, whatever their types."""
        if queries.ndim != 2 or queries.shape[1] != self.references.shape[1] or k < 1:
            raise ValueError(f"queries {queries.shape} and k {k}: expected [N, {self.references.shape[1]}] and at least 1")
        starts = None if each else self.starts
        if not np.isfinite(queries).all():
            return top_rows(queries, self.references, k, starts, skip=skip)
        k = min(k, len(self.references) if starts is None else len(starts))
        scores, (types, rows) = np.empty((len(queries), k), np.float32), np.empty((2, len(queries), k), np.int64)
        for first in range(0, len(queries), QUERIES):
            part = slice(first, first + QUERIES)
            probes = _Probes(np.ascontiguousarray(queries[part], np.float32))
            found = list((self._threads.map if self._threads else map)(
                lambda run: self._search(run, probes, k, skip, starts), self._runs))  # noqa: B023 - it ends in this round
            found = (np.concatenate(values, axis=1) for values in zip(*found))
            # A type may be in two runs.
            scores[part], types[part], rows[part] = best_hits(*found, k, distinct=len(self._runs) > 1)
        return scores, types, rows

    def _search(self, blocks, probes, k, skip, starts):
        """`top_rows` of some blocks, each `[N, k]`, in any order."""
        best = Best(len(probes.queries), k, starts)
        for block in blocks:
            dead = None
            if skip is not None:
                dead = skip[slice(*np.searchsorted(skip, (block.first, block.first + block.size)))] - block.first
            products, step, slack = block.products(probes)
            if dead is not None:
                products[:, dead] = WORST
            groups = products.reshape(len(products), GROUP, -1)  # a group: columns g, g + BLOCK / GROUP, ...
            maxima = groups.max(axis=1)
            if (best.floor == -np.inf).any():
                # So many different groups have rows of at least k types.
                wanted = k * (1 if starts is None else block.most_of_a_type)
                if wanted <= maxima.shape[1]:
                    reached = np.partition(maxima, -wanted, axis=1)[:, -wanted]
                    best.floor = np.maximum(best.floor, np.where(reached == WORST, -np.inf, reached * step - slack))
            least = np.clip(np.ceil((best.floor - slack) / step), WORST + 1, np.iinfo(np.int32).max).astype(np.int32)
            reach = maxima >= least[:, None]
            many = reach.mean(axis=1) > MOST
            if many.any():
                self._add_by_floats(best, probes.queries, block, np.flatnonzero(many), dead)
            query, group = np.nonzero(reach & ~many[:, None])
            hit, member = np.nonzero(groups[query, :, group] >= least[query, None])
            self._add(best, probes.queries, query[hit], block.first + member * groups.shape[2] + group[hit])
        return best.score, best.type, best.reference

    def _add(self, best, queries, query, row):
        """Put references into `best`: of each its number, and a query that it may be among the best of."""
        score = np.empty(len(row), np.float32)
        for begin in range(0, len(row), SCORED):
            part = slice(begin, begin + SCORED)
            score[part] = scores_of(queries[query[part]], self.references[row[part]][:, None])[:, 0]
        best.add(query, row, score)

    def _add_by_floats(self, best, queries, block, some, dead):
        """Put the best references of a block into `best`, for the queries of these numbers, as if there were no codes."""
        begins = None if best.starts is None else starts_within(best.starts, block.first, block.size)
        score, _, row = top_rows(queries[some], self.references[block.first:block.first + block.size], best.score.shape[1],
                                 begins, skip=dead)
        there = score > -np.inf
        best.add(np.repeat(some, there.sum(axis=1)), row[there] + block.first, score[there])


class _Probes:
    """Queries float32 `[N, D]` as codes uint8 `[N, D]`, 64 for 0; `step` `[N]`, what a unit of a code stands for; `error`,
    the length of what the codes leave away; `length`, that of what they stand for."""

    def __init__(self, queries):
        self.queries = queries
        step = np.abs(queries).max(axis=1, initial=0).astype(np.float64) / QUERY_LEVELS
        self.step = np.maximum(step, np.finfo(np.float32).tiny)
        whole = np.rint(queries / self.step[:, None])
        self.codes = (whole + (QUERY_LEVELS + 1)).astype(np.uint8)
        meant = whole * self.step[:, None]
        self.error, self.length = (np.linalg.norm(values, axis=1) for values in (queries - meant, meant))


class _Block:
    """The codes of some references, `first` and after; `size` of them. `error` and `length`: the largest of any."""

    def __init__(self, references, first, most_of_a_type):
        self.first, self.size, self.most_of_a_type = first, len(references), most_of_a_type
        self.width = -(-self.size // GROUP) * GROUP
        peak = max(float(references.max()), -float(references.min()))
        if not np.isfinite(peak):
            raise ValueError("references must be finite")
        self.step = max(peak / LEVELS, float(np.finfo(np.float32).tiny))
        columns, errors, lengths = np.zeros((references.shape[1], self.width), np.int8), [], []
        for begin in range(0, self.size, CHUNK):
            rows = references[begin:begin + CHUNK] / np.float32(self.step)  # in steps: of any size, their squares are finite
            whole = np.rint(rows)
            columns[:, begin:begin + len(rows)] = cv2.transpose(whole.astype(np.int8))
            lengths.append(_longest(rows))
            errors.append(_longest(np.subtract(rows, whole, out=whole)))
        self.error, self.length = max(errors) * self.step, max(lengths) * self.step
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # blocks are searched side by side
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(product_model(columns), options, providers=["CPUExecutionProvider"])
        self._session._model_bytes = None  # kept for a change of the provider, and as large as the codes

    def products(self, probes):
        """(int32 `[N, width]`, valid until this thread asks again; step, slack): a score is a product times step, `[N]`, and
        at most slack, `[N]`, away."""
        out = _scratch(len(probes.codes) * self.width).reshape(len(probes.codes), self.width)
        binding = self._session.io_binding()
        binding.bind_cpu_input("codes", probes.codes)
        binding.bind_output("products", "cpu", 0, np.int32, out.shape, out.ctypes.data)
        self._session.run_with_iobinding(binding)
        out[:, self.size:] = WORST
        relative, absolute = ROUNDING
        slack = ((probes.error * self.length + probes.length * self.error) * (1 + relative)
                 + absolute * (probes.length + probes.error) * self.length + SMALLEST)
        return out, probes.step * self.step, slack


def _longest(vectors):
    return float(np.sqrt(np.einsum("nd,nd->n", vectors, vectors).max()))


_local = threading.local()


def _scratch(count):
    """int32 `[count]` of this thread: fresh memory of this size would cost more than the product."""
    if getattr(_local, "scratch", None) is None or len(_local.scratch) < count:
        _local.scratch = np.empty(count, np.int32)
    return _local.scratch[:count]


def product_model(columns: np.ndarray) -> bytes:
    """An ONNX model, uint8 codes `[N, D]` -> products int32 `[N, M]` with `columns`, int8 `[D, M]`; a code 64 counts as 0.
    (A constant, unlike an input, is arranged for the processor once. The format: onnx.proto, by its field numbers.)"""
    depth, count = columns.shape
    node = _field(1, "codes") + _field(1, "columns") + _field(1, "zero") + _field(2, "products") + _field(4, "MatMulInteger")
    zero = _field(2, UINT8) + _field(8, "zero") + _field(9, bytes([QUERY_LEVELS + 1]))
    # The numbers come last in each message, and are copied once.
    constant = (_field(1, depth) + _field(1, count) + _field(2, INT8) + _field(8, "columns")
                + _begin(9, columns.nbytes))
    graph = (_field(1, node) + _field(2, "products") + _field(5, zero) + _field(11, _array("codes", UINT8, depth))
             + _field(12, _array("products", INT32, count)) + _begin(5, len(constant) + columns.nbytes) + constant)
    model = _field(1, 10) + _field(8, _field(2, 21)) + _begin(7, len(graph) + columns.nbytes) + graph
    return b"".join((model, columns.data))


UINT8, INT8, INT32 = 2, 3, 6


def _array(name, kind, columns):
    """A ValueInfoProto of an array `[N, columns]`."""
    shape = _field(1, _field(2, "N")) + _field(1, _field(1, columns))
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, shape)))


def _field(number, value):
    """A protobuf field: a whole number, a text or bytes."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    value = value.encode() if isinstance(value, str) else value
    return _begin(number, len(value)) + value


def _begin(number, size):
    """The begin of a field of so many bytes."""
    return _varint(number << 3 | 2) + _varint(size)


def _varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])
