"""Approximate search in memory with faiss, for millions of rows: `pip install "docmetric[ann]"`.

    index = open_index("faiss", depth, name)                       # the default: HNSW over 8-bit codes, tuned when built
    index = open_index("faiss:hnsw,M=32,ef=128", depth, name)      # ef as it is given
    index = open_index("faiss:ivf,nlist=4096,nprobe=64", depth, name)

It is the exact index in memory (index.py), but segments of many rows are searched through a faiss structure that never
changes, so nothing is ever removed from one: removed rows are passed over, new ones are in small exact segments, and both
are built in anew in the background. faiss proposes rows; their cosines are exact. A row that it misses may be the runner-up
that a refusal hangs on, so the share that it finds is measured whenever one is built, and every answer says so.

Why this default: on 100,000 x 256 of 48 latent dimensions and 2 cores, recall of the best two types and time of one query,
HNSW32 over 8-bit codes .996 in .06 ms (ef 32) and 1.000 in .25 ms (ef 128), built in 9 s; over float32 the same in .10 and
.34 ms, 13 s; IVF1024 over 8-bit codes .989 in .27 ms and 1.000 in 1.0 ms, 4 s. Exact: 3 ms. Of independent directions, where
nothing is near anything, HNSW finds .944 in 1.1 ms and IVF .928 in 1.0 ms. Hundreds of equal rows are an island in an HNSW
graph, and what lies behind it is found late. HNSW: Malkov and Yashunin, https://arxiv.org/abs/1603.09320.
"""
import numpy as np

from ..errors import UserError
from ..image import available_cores
from ..search import is_among, top_rows
from .index import CHUNK, NONE, TAIL, MemoryIndex, Part, Segment, best_of, captures_of, no_hits, ordered, share_found

BUILD = 1 << 15  # rows that are worth a structure: searching them exactly takes .5 ms
TARGET = 0.999  # recall of the best two types that the default is tuned to
QUERIES = 4000  # two standard errors of a share of .999 are .001: 2 sqrt(.999 x .001 / 4000)
SPARE = 14  # candidates beyond k: 16 for the best and the runner-up
KINDS = {"hnsw": {"M": 32, "construction": 100, "ef": None}, "ivf": {"nlist": None, "nprobe": None}}


def open_faiss(spec: str, depth: int) -> "FaissIndex":
    """`spec` as above. Raises UserError for one that cannot be read, and where faiss is missing."""
    kind, *options = (spec.partition(":")[2] or "hnsw").split(",")
    if kind not in KINDS:
        raise UserError(f"index {spec}: {kind} is unknown; use faiss, faiss:hnsw or faiss:ivf")
    settings = dict(KINDS[kind])
    for option in options:
        key, _, value = option.partition("=")
        if key not in settings or not value.isdecimal() or not 1 <= int(value) <= 1 << 20:
            raise UserError(f"index {spec}: {option} cannot be used; {kind} takes {', '.join(settings)} = a whole number")
        settings[key] = int(value)
    return FaissIndex(depth, kind, **settings)


class FaissIndex(MemoryIndex):
    """An approximate `Index`. While there are few rows, and until the first structure is built, it is exact and says so.

    Memory: the vectors, about 512 bytes a row for the default structure, and both twice while the largest is built.

    kind: "hnsw", with M neighbors a row, `construction` candidates when building and `ef` when searching; or "ivf", with
    `nlist` cells, `nprobe` of them searched. ef, nprobe None: the least power of two whose recall reaches TARGET. build: the
    rows from which a segment gets a structure.
    """

    def __init__(self, depth: int, kind: str = "hnsw", build: int = BUILD, tail: int = TAIL, **settings):
        try:
            import faiss
        except ImportError:
            raise UserError('index faiss: faiss is not installed; pip install "docmetric[ann]"') from None
        super().__init__(depth, tail, segment=1 << 31)
        self._faiss, self._kind, self._settings, self._build = faiss, kind, {**KINDS[kind], **settings}, build

    def _due(self, parts: tuple[Part, ...]) -> list[Part]:
        return super()._due(parts) or [part for part in parts if part.segment.exact and len(part) >= self._build][:1]

    def _plain(self, parts: tuple[Part, ...]) -> list[Part]:
        return []  # a structure is faster yet

    def _merged(self, sources: list[Part]) -> Segment:
        alone = len(sources) == 1 and not len(sources[0].dead)
        segment = sources[0].segment if alone else super()._merged(sources)
        return self._structured(segment) if len(segment) >= self._build else segment

    def _structured(self, segment: Segment) -> Segment:
        """`segment` with a structure, tuned and measured; as it was if the index is closed meanwhile."""
        faiss = self._faiss
        faiss.omp_set_num_threads(max(1, available_cores() // 2))  # of this thread alone; searches go on beside it
        rng, settings, count = np.random.default_rng(0), self._settings, len(segment)
        if self._kind == "hnsw":
            structure = faiss.IndexHNSWSQ(self.depth, faiss.ScalarQuantizer.QT_8bit, settings["M"],
                                          faiss.METRIC_INNER_PRODUCT)
            structure.hnsw.efConstruction = settings["construction"]
            sample, effort, most = CHUNK, settings["ef"], max(64, count // 16)
        else:
            cells = min(settings["nlist"] or 2 ** round(np.log2(4 * np.sqrt(count))), count)
            structure = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(self.depth), self.depth, cells,
                                                      faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
            sample, effort, most = max(CHUNK, 64 * cells), settings["nprobe"], cells
        structure.train(segment.vectors[np.sort(rng.permutation(count)[:sample])])
        for first in range(0, count, CHUNK):
            if self._closed:
                return segment
            structure.add(segment.vectors[first:first + CHUNK])

        tuning, measuring = noisy(segment, rng), noisy(segment, rng)
        built = ApproximateSegment(segment, structure, self._parameters(effort or 16))
        if effort is None:
            effort = 16
            while effort < most and built.measured(*tuning) < TARGET and not self._closed:
                effort *= 2
                built.parameters = self._parameters(effort)
        built.recall = built.measured(*measuring)
        return built

    def _parameters(self, effort):
        return (self._faiss.SearchParametersHNSW(efSearch=effort) if self._kind == "hnsw" else
                self._faiss.SearchParametersIVF(nprobe=effort))


def noisy(segment: Segment, rng: np.random.Generator, count: int = QUERIES) -> tuple[np.ndarray, np.ndarray]:
    """Queries near rows of the segment, float32 `[count, D]`, and the exact cosines of their best types, best first, at most
    two: `[count, 2]`."""
    queries = captures_of(segment.vectors[rng.integers(0, len(segment), count)], rng)
    return queries, top_rows(queries, segment.vectors, 2, segment.starts)[0]


class ApproximateSegment(Segment):
    """A segment that is searched through a faiss structure over its rows. `recall`: see `measured`."""
    exact = False

    def __init__(self, segment: Segment, structure, parameters):
        vars(self).update(vars(segment))
        self.structure, self.parameters, self.recall = structure, parameters, 0.0

    def measured(self, queries: np.ndarray, best: np.ndarray) -> float:
        """The share of the places in `best` (`noisy`) that a search fills with types as good."""
        return share_found(self.search(queries, best.shape[1], NONE).cosines, best)

    def _search(self, queries, k, dead, starts):
        """Ever more candidates for the queries that have not k hits yet, in the end all rows."""
        k = min(k, len(self) if starts is None else len(self.labels))
        hits = best_of([no_hits(len(queries))], k, True)
        missing = np.arange(len(queries))
        for wanted in ((k + SPARE) * many for many in (1, 8, 64)):
            if wanted >= len(self) or not len(missing):
                break
            _, rows = self.structure.search(queries[missing], wanted, params=self.parameters)
            valid = rows >= 0
            if len(dead):
                valid &= ~is_among(rows, dead)
            cosines = np.einsum("nd,nkd->nk", queries[missing].astype(np.float64), self.vectors[rows].astype(np.float64))
            cosines = np.where(valid, cosines, -np.inf).astype(np.float32)
            best = ordered(self.hits(cosines, rows), k, starts is not None)
            for values, part in zip(hits, best):
                values[missing] = part
            missing = missing[best.cosines[:, -1] == -np.inf]
        if len(missing):
            exact = super()._search(queries[missing], k, dead, starts)
            for values, part in zip(hits, exact):
                values[missing] = part
        return hits
