"""Lines of text, from image files to text: lines per second, and Tesseract on the same files where it is installed.

    python benchmarks/bench_read.py [--model READER.onnx] [--lines LINES] [--quick] [--json]

LINES is a folder of images and lines.tsv; without it, synthetic lines are made. Ours decodes each file, resizes it, runs the
network and finds the characters; the limit is the network alone, on the same lines in batches as full as they can be. The
peer, Tesseract (`--psm 7`, its own threads off), reads all lines in one process on 1 thread, and half of them in each of two
on 2. Then the parts that are not the network's, and the errors of both. --quick takes 8 lines.
"""
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
from side_by_side import Report, medians, run_cli

from eval.reading import compare
from eval.tesseract import read_with_tesseract, tesseract_path
from inference.lines import load_line, resize_line
from inference.read import DEFAULT_MODEL
from inference.reader import BATCH, PAD, LineReader, ReaderModel
from ocr.folder import Line, read_lines
from ocr.lines import write_lines

LINES, QUICK = 600, 8
LARGEST = 3.0   # MB of the model's file
FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")


def batches_of(lines: list[Line], about: dict) -> list[np.ndarray]:
    """The lines as the network takes them, float32 `[B,1,H,W]`, with those of one padded width together."""
    by_width = {}
    for line in lines:
        pixels, _ = resize_line(load_line(line.path, about["vertical"]), about["height"])
        wide = -(-pixels.shape[1] // PAD) * PAD
        padded = np.pad(pixels, ((0, 0), (0, wide - pixels.shape[1])), constant_values=255)
        by_width.setdefault(wide, []).append(padded[None] / np.float32(255))
    return [np.stack(group[at:at + BATCH]) for group in by_width.values() for at in range(0, len(group), BATCH)]


def shared_out(function, items, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(function, items))


def measure(report: Report, path: str | Path, lines: list[Line]) -> None:
    files, model = [line.path for line in lines], ReaderModel(path, 1)
    batches = batches_of(lines, model.about)

    def tesseract(threads):
        halves = [files[part::threads] for part in range(threads)]
        return lambda: shared_out(read_with_tesseract, halves, threads)

    for threads in (1, 2):
        reader = LineReader(path, threads=threads)
        functions = {"ours": lambda reader=reader: reader.read(files),
                     "limit": lambda threads=threads: shared_out(model.run, batches, threads)}
        if tesseract_path():
            functions["peer"] = tesseract(threads)
        speed = {name: len(files) / seconds for name, seconds in medians(functions, 1 if report.quick else 3).items()}
        report.add(f"file to text, {threads} thread{'s' * (threads > 1)}; Tesseract; the network alone", speed["ours"],
                   speed.get("peer"), speed["limit"], "lines/s", higher_is_better=True)
        if threads == 1:
            report.add("  all but the network, of a line", 1e3 * (1 / speed["ours"] - 1 / speed["limit"]))
    report.add("size of the model; the target", os.path.getsize(path) / 1e6, limit=LARGEST, unit="MB")
    texts = {"ours": [reading.text for reading in reader.read(files)]}
    if tesseract_path():
        texts["peer"] = read_with_tesseract(files)
    errors = {name: 100 * compare(lines, text)["cer"] for name, text in texts.items()}
    report.add("character error rate", errors["ours"], errors.get("peer"), unit="%")


def main():
    report = Report(__doc__, ("--model", {"metavar": "READER.onnx", "help": "model (default: the shipped one)"}),
                    ("--lines", {"metavar": "LINES", "help": "folder of images and lines.tsv (default: synthetic ones)"}))
    count = QUICK if report.quick else LINES
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if not report.args.lines:
            write_lines(folder / "lines", count, fonts=[FONTS], workers=1)
        lines = read_lines(report.args.lines or folder / "lines", count=count, with_boxes=False)
        measure(report, report.args.model or DEFAULT_MODEL, lines)
    report.end()


if __name__ == "__main__":
    run_cli(main)
