"""The benchmarks run, and say what they found in the common form; their figures are not looked at.

Excluded: bench_train_step.py compiles the network for an allocator, a minute even with --quick, and
bench_precision.py makes seven models, half a minute.
"""
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["checkpoint", "head", "inference", "loader", "photo", "search", "zero_shot"])
def test_quick_rows(name):
    done = subprocess.run([sys.executable, f"benchmarks/bench_{name}.py", "--quick", "--json"], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) >= 4
    for row in rows:
        assert set(row) == {"name", "ours", "peer", "limit", "ratio", "unit"}
        assert math.isfinite(row["ours"]) and row["ours"] >= 0
        assert (row["ratio"] is None) == (not row["ours"] or not row["peer"])
