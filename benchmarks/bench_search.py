"""Exact search of 1 M x 256 references, 10 best of 64 queries and of one: ours, faiss's IndexFlatIP, the matmul alone.

    python benchmarks/bench_search.py [--quick] [--json]

The peer needs `pip install faiss-cpu` and stays empty without it. On a machine with a GPU also 10 M x 256 there, in bf16.
"""
import numpy as np
from side_by_side import Report, medians, peak_memory, run_cli

from inference.codes import CodedRows
from inference.image import default_threads
from inference.search import QUERIES, top_k

DEPTH, BEST = 256, 10
COLUMNS = 32_768  # references of a matmul, as many as the search takes at 64 queries


def unit_vectors(total: int, seed: int = 0) -> np.ndarray:
    """float32 `[total, DEPTH]` of length 1."""
    rows = np.random.default_rng(seed).standard_normal((total, DEPTH), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def queries_like(references: np.ndarray, count: int) -> np.ndarray:
    """Noisy copies of references, as captures of registered types are: cosine about .85."""
    chosen = np.random.default_rng(1).integers(0, len(references), count)
    queries = references[chosen] + 0.6 * unit_vectors(count, seed=2)
    return queries / np.linalg.norm(queries, axis=1, keepdims=True)


def matmuls(queries, references):
    scores = np.empty((len(queries), min(COLUMNS, len(references))), np.float32)
    for first in range(0, len(references), COLUMNS):
        rows = references[first:first + COLUMNS]
        np.matmul(queries, rows.T, out=scores[:, :len(rows)])


def agreement(ours, theirs) -> str:
    """faiss orders by float32 sums, ours by float64 ones rounded: the order of nearly equal scores may differ."""
    differ = ours[1] != theirs[1]
    apart = np.abs(ours[0] - theirs[0])[differ].max(initial=0)
    return (f"{differ.size - differ.sum()} of {differ.size} ids are faiss's"
            + (f"; the others' scores differ by at most {apart:.1e}" if differ.any() else ""))


def against_faiss(report, total, rounds):
    references = unit_vectors(total)
    queries = queries_like(references, QUERIES)
    try:
        import faiss
        index = faiss.IndexFlatIP(DEPTH)
        index.add(references)
    except ImportError:
        index = None
        report.say("faiss is not there to compare with: pip install faiss-cpu")
    # First of all: later the allocator has memory of earlier runs at hand, and nothing would seem to be taken.
    ours = peak_memory(lambda: top_k(queries, references, BEST)) / 2**20
    peer = None if index is None else peak_memory(lambda: index.search(queries, BEST)) / 2**20
    report.add(f"search {total:,} x {DEPTH}, {QUERIES} queries: memory beyond the references", ours, peer, unit="MiB")
    for count in (QUERIES, 1):
        probes = queries[:count]
        functions = {"ours": lambda: top_k(probes, references, BEST), "limit": lambda: matmuls(probes, references)}
        if index is not None:
            functions["peer"] = lambda: index.search(probes, BEST)
        times = medians(functions, rounds)
        report.add(f"search {total:,} x {DEPTH}, queries {count}; faiss Flat; matmul", times["ours"] * 1e3,
                   times["peer"] * 1e3 if index is not None else None, times["limit"] * 1e3)
        if index is not None:
            report.say("  " + agreement(top_k(probes, references, BEST), index.search(probes, BEST)))


def through_codes(report, total, rounds):
    """As a registry of many references searches."""
    references = unit_vectors(total)
    queries = queries_like(references, QUERIES)
    coded = CodedRows(references, threads=default_threads())
    for count in (QUERIES, 1):
        probes = queries[:count]
        times = medians({"ours": lambda: coded.top_rows(probes, BEST), "plain": lambda: top_k(probes, references, BEST),
                         "limit": lambda: matmuls(probes, references)}, rounds)
        report.add(f"  through codes, queries {count}; without; matmul", times["ours"] * 1e3, times["plain"] * 1e3,
                   times["limit"] * 1e3)


def types(report, total, rounds):
    """The search that a registry does: the best types, by their best reference."""
    references = unit_vectors(total)
    queries = queries_like(references, QUERIES)
    functions = {str(each): (lambda starts=np.arange(0, total, each): top_k(queries, references, BEST, starts))
                 for each in (5, total // 20)}
    functions["one"] = lambda: top_k(queries, references, BEST)
    times = medians(functions, rounds)
    for each in (5, total // 20):
        report.add(f"  the same by types of {each:,} references; of one each", times[str(each)] * 1e3, times["one"] * 1e3)


def growth(report, sizes, rounds):
    references = unit_vectors(sizes[-1])
    queries = queries_like(references[:sizes[0]], QUERIES)
    times = medians({str(size): (lambda part=references[:size]: top_k(queries, part, BEST)) for size in sizes}, rounds)
    seconds = np.array([times[str(size)] for size in sizes])
    slope, offset = np.polyfit(sizes, seconds, 1, w=1 / seconds)
    off = np.abs((slope * np.array(sizes) + offset) / seconds - 1).max()
    report.add(f"  growth, {sizes[0]:,} to {sizes[-1]:,} references: each further million", slope * 1e9)
    report.say(f"  {offset * 1e3:.2f} ms + {slope * 1e9:.1f} ms a million; the line is off by at most {off:.0%}: "
               + ", ".join(f"{size:,}: {time * 1e3:.1f} ms" for size, time in zip(sizes, seconds)))


def on_gpu(report, total, rounds):
    import torch
    if not torch.cuda.is_available():
        report.say("no GPU: the search there is not measured")
        return
    from inference.search_cuda import CudaGallery
    part = unit_vectors(min(total, 1_000_000))
    # A million random rows, turned by one place for each further million: other references of the same kind, without
    # minutes of random numbers.
    references = np.concatenate([np.roll(part, shift, axis=1) for shift in range(-(-total // len(part)))])[:total]
    queries = queries_like(part, QUERIES)
    gallery = CudaGallery(references)
    rounded = torch.from_numpy(queries).to(gallery.references)
    times = medians({"ours": lambda: gallery.top_k(queries, BEST),
                     "peer": lambda: [(rounded @ rows.T).topk(BEST) for rows in gallery.references.split(1 << 20)],
                     "limit": lambda: torch.sum(gallery.references, dim=0)}, rounds)
    report.add(f"search {total:,} x {DEPTH} in bf16, {QUERIES} queries; bf16 throughout, inexact; reading all",
               times["ours"] * 1e3, times["peer"] * 1e3, times["limit"] * 1e3)
    report.add("  memory beyond the references", peak_memory(lambda: gallery.top_k(queries, BEST)) / 2**20, unit="MiB")


def main():
    report = Report(__doc__)
    rounds = 3 if report.quick else 9
    against_faiss(report, 4_000 if report.quick else 1_000_000, rounds)
    through_codes(report, 4_000 if report.quick else 1_000_000, rounds)
    types(report, 4_000 if report.quick else 1_000_000, rounds)
    growth(report, [2_000, 4_000] if report.quick else [62_500, 250_000, 1_000_000, 2_000_000], rounds)
    on_gpu(report, 100_000 if report.quick else 10_000_000, rounds)
    report.end()


if __name__ == "__main__":
    run_cli(main)
