"""The benchmarks run, and say what they found in the common form; their figures are not looked at.

Excluded: bench_train_step.py compiles the network for an allocator, a minute even with --quick, and
bench_precision.py makes seven models, half a minute.
"""
import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from tests.helpers.reading import draw, write_reader

ROOT = Path(__file__).parent.parent


def bench(name, *options):
    return subprocess.run([sys.executable, f"benchmarks/bench_{name}.py", "--quick", "--json", *map(str, options)], cwd=ROOT,
                          text=True, capture_output=True)


@pytest.fixture
def books(tmp_path):
    """What bench_books.py takes: lines of four books, and a reader to begin with, which is not tuned, as that takes long."""
    (tmp_path / "images").mkdir()
    for book in "abcd":
        cv2.imwrite(str(tmp_path / "images" / f"{book}.png"), draw(f"book {book}"))
    (tmp_path / "lines.tsv").write_text("file\ttext\tbook\n" + "".join(f"{b}.png\tbook {b}\t{b}\n" for b in "abcd"))
    write_reader(tmp_path / "model.onnx")
    return [tmp_path, "--base", tmp_path, "--work", tmp_path / "work", "--counts"]


@pytest.mark.parametrize("name", ["books", "checkpoint", "head", "index", "inference", "loader", "photo", "read", "search",
                                  "server", "zero_shot"])
def test_quick_rows(name, request):
    options = request.getfixturevalue("books") if name in ("books", "read") else []
    done = bench(name, *(["--lines", options[0]] if name == "read" else options))     # making lines takes seconds
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) >= 4
    for row in rows:
        assert set(row) == {"name", "ours", "peer", "limit", "ratio", "unit"}
        assert math.isfinite(row["ours"])
        assert row["ours"] >= 0 or "growth" in row["name"]     # a slope through times of tiny searches may fall
        assert (row["ratio"] is None) == (not row["ours"] or not row["peer"])


def test_a_run_of_other_settings_is_no_result(books, tmp_path):
    """Four steps of --quick must not count as the run of the full size."""
    run = tmp_path / "work" / "a-50"
    run.mkdir(parents=True)
    (run / "settings.txt").write_text("max_steps=400")
    write_reader(run / "model.onnx")
    done = bench("books", *books, 50, "--books", "a")
    assert done.returncode == 2 and "a-50: was made with other settings" in done.stderr
