"""Time and peak memory of the exact evaluation of 25,000 random embeddings: 7 types, D = 256, 312 million pairs.

    python benchmarks/many_pairs.py
"""
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.gallery import identify  # noqa: E402
from eval.pairs import count_pairs, fixed_point, measure  # noqa: E402


def main():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 25_000)
    points = fixed_point(rng.normal(size=(7, 256))[labels] + 2 * rng.normal(size=(25_000, 256)))
    began = time.perf_counter()
    verification = measure(count_pairs(points, labels, worst=20))
    counted = time.perf_counter()
    found = identify(points, labels, np.zeros(len(labels), bool))
    done = time.perf_counter()
    print(f"pairs {verification.positive + verification.negative:,}: {counted - began:.1f} s; "
          f"leave-one-out top-1: {done - counted:.1f} s; "
          f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB; "
          f"AUROC {verification.auroc:.6f}, top-1 {found.top1:.4f}")


if __name__ == "__main__":
    main()
