"""The registry's index at 1 M x 256: a search beside the matmul alone and faiss Flat, after changes, an add, the start.

    python benchmarks/bench_index.py [--quick] [--json] [--rows N] [--approximate]

The rows are types of two references each. Targets: 25 ms for one query, 3.5 ms for each of 64, 50 us against 100 rows.
`--approximate` adds the default faiss structure, which takes minutes to build: its speed, and its recall of the best two
types. The peer needs `pip install faiss-cpu` and stays empty without it.
"""
import time

import numpy as np
from side_by_side import Report, medians, peak_memory, run_cli

from inference.registry.approximate import BUILD, FaissIndex
from inference.registry.index import MemoryIndex, Rows, captures_of

DEPTH, BEST, CHANGES, HIDDEN = 256, 5, 1000, 48
COLUMNS = 32_768  # references of a matmul, as many as the search takes at 64 queries
NONE = np.zeros(0, np.int64)


def embeddings(types: int, each: int = 2, seed: int = 0) -> np.ndarray:
    """float32 `[types * each, DEPTH]`, of length 1: a fixed nonlinear map of HIDDEN random values, so that types have near
    neighbors, as a network's embeddings do. Independent directions would all be equally far, which no graph can follow."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed + 1)
    into, out = (fixed.standard_normal(shape, np.float32) for shape in ((HIDDEN, 512), (512, DEPTH)))
    rows = np.empty((types * each, DEPTH), np.float32)
    for first in range(0, types, 1 << 15):
        center = rng.standard_normal((min(1 << 15, types - first), HIDDEN), np.float32)
        hidden = np.repeat(center, each, axis=0)
        hidden += .2 * rng.standard_normal(hidden.shape, np.float32)
        part = (np.maximum(hidden @ into, 0) - .4 * np.sqrt(HIDDEN)) @ out  # .4: the mean of the positive part
        rows[first * each:first * each + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def matmuls(queries, references):
    scores = np.empty((len(queries), min(COLUMNS, len(references))), np.float32)
    for first in range(0, len(references), COLUMNS):
        rows = references[first:first + COLUMNS]
        np.matmul(queries, rows.T, out=scores[:, :len(rows)])


def flat(references):
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatIP(DEPTH)
    index.add(references)
    return index


def searches(report, title, index, queries, rounds, references=None, peer=None):
    """Rows for all queries together and for one: milliseconds a query."""
    for count in (len(queries), 1):
        probes = queries[:count]
        functions = {"ours": lambda: index.search(probes, BEST)}
        if references is not None:
            functions["limit"] = lambda: matmuls(probes, references)
        if peer is not None:
            functions["peer"] = lambda: peer.search(probes, BEST)
        times = {name: seconds * 1e3 / count for name, seconds in medians(functions, rounds).items()}
        report.add(f"{title}, {count} at once: each", times["ours"], times.get("peer"), times.get("limit"))


def small(report, rounds):
    """What a search costs where there is next to nothing to multiply."""
    rows = embeddings(50)
    queries = captures_of(rows, np.random.default_rng(0))[:1]
    index, changed = MemoryIndex(DEPTH), MemoryIndex(DEPTH)
    for one in (index, changed):
        one.apply(1, Rows(np.arange(100), np.arange(100) // 2, rows), NONE)
    changed.apply(2, Rows(np.arange(100, 110), np.arange(100, 110), rows[:10]), np.arange(5))
    times = medians({"ours": lambda: index.search(queries, BEST), "changed": lambda: changed.search(queries, BEST),
                     "limit": lambda: queries @ rows.T}, 100 * rounds, warm_up=20)
    report.add("100 rows, one query; the matmul", times["ours"] * 1e6, limit=times["limit"] * 1e6, unit="us")
    report.add("  after 10 adds and 5 removes", times["changed"] * 1e6, unit="us")


def large(report, total, rounds, approximate):
    references = embeddings(total // 2)
    ids, types = 8 * np.arange(total), 1 + np.arange(total) // 2
    rows = Rows(ids, types, references)
    rng = np.random.default_rng(0)
    queries = captures_of(references[rng.integers(0, total, 64)], rng)
    index = MemoryIndex(DEPTH)
    began = time.perf_counter()
    taken = peak_memory(lambda: index.apply(1, rows, NONE))
    report.add(f"start with {total:,} x {DEPTH} (vectors at hand)", (time.perf_counter() - began) * 1e3)
    report.add("  its memory; the vectors alone", taken / 2**20, limit=references.nbytes / 2**20, unit="MiB")
    began = time.perf_counter()
    taken = peak_memory(index.compact)
    report.add("  making its codes (in the background)", (time.perf_counter() - began) * 1e3)
    report.add("  their memory; the codes alone", taken / 2**20, limit=references.size / 2**20, unit="MiB")
    peer = flat(references)
    searches(report, f"{total:,} rows; faiss Flat; matmul", index, queries, rounds, references, peer)

    new = embeddings(CHANGES // 2, seed=1)
    added, began = [], time.perf_counter()
    for number in range(CHANGES):
        before = time.perf_counter()
        row = Rows(np.array([8 * (total + number)]), np.array([total + number // 2]), new[number:number + 1])
        index.apply(2 + number, row, ids[number * (total // CHANGES):][:1])
        added.append(time.perf_counter() - before)
    index.compact()
    report.add(f"an add and a remove at {total:,} rows, {CHANGES:,} of each: median", float(np.median(added)) * 1e3)
    report.add("  the longest", max(added) * 1e3)
    searches(report, f"  after them, {len(index.view().parts)} segments", index, queries, rounds)
    index.close()
    if approximate and peer is not None:
        faiss(report, rows, queries, rounds)


def faiss(report, rows, queries, rounds):
    index = FaissIndex(DEPTH, build=min(BUILD, len(rows.ids)))
    began = time.perf_counter()
    index.apply(1, rows, NONE)
    index.compact()
    report.add(f"faiss's default: built with {len(index):,} rows", time.perf_counter() - began, unit="s")
    report.add("  recall of the best two types, as it says", index.recall, limit=1.0, unit="")
    searches(report, "  its search", index, queries, rounds)
    exact = MemoryIndex(DEPTH)
    exact.apply(1, rows, NONE)
    searches(report, "  exact", exact, queries, rounds)
    index.close()


def main():
    report = Report(__doc__, ("--rows", {"type": int, "help": "references (default: 1,000,000; with --quick 4,000)"}),
                    ("--approximate", {"action": "store_true", "help": "faiss's default structure too"}))
    rounds = 3 if report.quick else 9
    small(report, rounds)
    large(report, report.args.rows or (4_000 if report.quick else 1_000_000), rounds,
          report.args.approximate or report.quick)
    report.end()


if __name__ == "__main__":
    run_cli(main)
