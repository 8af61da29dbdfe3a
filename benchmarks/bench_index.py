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
MOST_FLAT = 2_000_000  # rows that are there twice, for the peer
COLUMNS = 32_768  # references of a matmul: their scores for 64 queries stay in the cache
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


def filled(index, total: int, part: int = 1 << 20):
    """`index` with so many rows, of which two are of a type; they are held once, however many there are."""
    for first in range(0, total, part):
        count = min(part, total - first)
        numbers = np.arange(first, first + count)
        last = first + count == total
        index.apply(1 if last else 0, Rows(8 * numbers, 1 + numbers // 2, embeddings(count // 2, seed=first)), NONE)
    return index


def matmuls(queries, blocks):
    scores = np.empty((len(queries), COLUMNS), np.float32)
    for block in blocks:
        for first in range(0, len(block), COLUMNS):
            rows = block[first:first + COLUMNS]
            np.matmul(queries, rows.T, out=scores[:, :len(rows)])


def flat(blocks):
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatIP(DEPTH)
    for block in blocks:
        index.add(block)
    return index


def searches(report, title, index, queries, rounds, blocks=None, peer=None):
    """Rows for all queries together and for one: milliseconds a query."""
    for count in (len(queries), 1):
        probes = queries[:count]
        functions = {"ours": lambda: index.search(probes, BEST)}
        if blocks is not None:
            functions["limit"] = lambda: matmuls(probes, blocks)
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
    rng = np.random.default_rng(0)
    index = MemoryIndex(DEPTH)
    began = time.perf_counter()
    taken = peak_memory(lambda: filled(index, total))
    report.add(f"{total:,} x {DEPTH}: making them up, and the index", time.perf_counter() - began, unit="s")
    report.add("  its memory at most; the vectors alone", taken / 2**20, limit=4 * total * DEPTH / 2**20, unit="MiB")
    began = time.perf_counter()
    taken = peak_memory(index.compact)
    report.add("  making codes (in the background)", (time.perf_counter() - began) * 1e3)
    report.add("  their memory at most; the codes alone", taken / 2**20, limit=total * DEPTH / 2**20, unit="MiB")
    blocks = [part.segment.vectors for part in index.view().parts]
    queries = captures_of(blocks[0][rng.integers(0, len(blocks[0]), 64)], rng)
    peer = flat(blocks) if total <= MOST_FLAT else None
    searches(report, f"{total:,} rows; faiss Flat; matmul", index, queries, rounds, blocks, peer)

    new = embeddings(CHANGES // 2, seed=1)
    added, began = [], time.perf_counter()
    for number in range(CHANGES):
        before = time.perf_counter()
        row = Rows(np.array([8 * (total + number)]), np.array([total + number // 2]), new[number:number + 1])
        index.apply(2 + number, row, np.array([8 * (number * (total // CHANGES))]))
        added.append(time.perf_counter() - before)
    index.compact()
    report.add(f"an add and a remove at {total:,} rows, {CHANGES:,} of each: median", float(np.median(added)) * 1e3)
    report.add("  the longest", max(added) * 1e3)
    searches(report, f"  after them, {len(index.view().parts)} segments", index, queries, rounds)
    index.close()
    if approximate and peer is not None:
        faiss(report, total, queries, rounds)


def faiss(report, total, queries, rounds):
    index = FaissIndex(DEPTH, build=min(BUILD, total))
    filled(index, total)
    began = time.perf_counter()
    index.compact()
    report.add(f"faiss's default: built with {len(index):,} rows", time.perf_counter() - began, unit="s")
    report.add("  recall of the best two types, as it says", index.recall, limit=1.0, unit="")
    searches(report, "  its search", index, queries, rounds)
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
