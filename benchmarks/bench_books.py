"""Readers on books that they have never seen: one book after the other is held out, and the others' lines are learned.

    python benchmarks/bench_books.py LINES --base RUN [--synthetic DIR] [--work DIR] [--counts 50 200 1000] [--self]
                                     [--dictionary FILE] [--quick] [--json]

LINES is a folder of transcribed lines whose lines.tsv has a column `book`. RUN is the folder of a reader trained on
synthetic lines alone (configs/read). For each book and each count, RUN is tuned by `configs/read_tune` with so many lines of
the other books, and is measured on all lines of the book. With --self RUN is also tuned with the book's own images, whose
text it reads itself (`python -m ocr label`; no transcription is looked at). --synthetic: lines with boxes to mix in;
--dictionary: words, for further columns and for the labels of --self. The runs lie in --work; what is there already with the
same settings is not trained again, so that a stopped benchmark can be resumed. --quick: 20 lines a book, 4 steps a run.

`ours` is the character error rate of the reader in percent, `peer` Tesseract's on the same lines where it is installed,
`limit` none. The table shows one line a book; * marks a reader that is better than Tesseract.
"""
import json
import subprocess
import sys
from pathlib import Path

from side_by_side import Report, UserError, run_cli

from eval.reading import compare, evaluate_lines, read_texts
from eval.tesseract import read_with_tesseract, tesseract_path
from inference.errors import first_line
from inference.reader import LineReader
from ocr.folder import read_lines

ROOT = Path(__file__).resolve().parent.parent


def run(*command) -> None:
    """One of the project's programs, whose log goes to stderr."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=sys.stderr)
    if done.returncode:
        raise UserError(f"{' '.join(map(str, command[:3]))} ended with {done.returncode}; its error is above")


def begin(folder: Path, *settings) -> None:
    """Make the folder of a run, or see that what lies there was made with these settings. Raises UserError."""
    note, text = folder / "settings.txt", "\n".join(map(str, settings))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if note.exists() and note.read_text() != text:
            raise UserError(f"{folder}: was made with other settings; remove it, or name another folder with --work")
        note.write_text(text)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another folder with --work") from None


def tuned(output: Path, base: Path, *settings: str) -> Path:
    """The folder of a run of `configs/read_tune` from `base`, trained and exported where it is not there yet."""
    settings = (f"pretrained={base / 'model.pt'}", *settings)
    begin(output, *settings)
    if not (output / "model.onnx").is_file():
        run("train_v2.py", "configs/read_tune", f"output={output}", "resume=auto", *settings)
        run("onnx_export.py", output)
    return output


def labeled(folder: Path, model: Path, images: Path, where: str, dictionary: str | None) -> Path:
    """A folder of lines that the reader is sure of."""
    settings = [images, "--model", model / "model.onnx", "--where", where,
                *(["--dictionary", Path(dictionary).resolve(), "--confidence", 0.6] if dictionary else [])]
    begin(folder, *settings)
    if not (folder / "lines.tsv").is_file():
        run("-m", "ocr", "label", *settings, "--out", folder)
    return folder


def main():
    report = Report(
        __doc__, ("lines", {"metavar": "LINES"}),
        ("--base", {"required": True, "type": Path, "metavar": "RUN", "help": "a reader of synthetic lines, exported"}),
        ("--synthetic", {"metavar": "DIR", "help": "lines with boxes to mix in"}),
        ("--work", {"type": Path, "default": Path("work_dirs/books"), "metavar": "DIR", "help": "for the runs"}),
        ("--counts", {"nargs": "*", "type": int, "default": [50, 200, 1000], "help": "lines of other books"}),
        ("--books", {"nargs": "*", "help": "books to hold out (default: all)"}),
        ("--self", {"action": "store_true", "help": "also tune with the book's own images"}),
        ("--dictionary", {"metavar": "FILE", "help": "words, one a line"}),
        ("--settings", {"nargs": "*", "default": [], "metavar": "KEY=VALUE", "help": "for every tuning run"}), head=False)
    args = report.args
    folder, work, base = Path(args.lines).resolve(), args.work.resolve(), args.base.resolve()
    every = read_lines(folder, with_boxes=False)
    if "book" not in every[0].fields:
        raise UserError(f"{folder / 'lines.tsv'}: no column book, by which lines are held out")
    books = args.books or sorted({line.fields["book"] for line in every})
    settings = [f"lines={folder}", *([f"data={Path(args.synthetic).resolve()}"] if args.synthetic else []), *args.settings,
                *(["max_steps=4"] if args.quick else [])]
    results: dict[str, dict[str, dict]] = {}
    for book in books:
        lines = [line for line in every if line.fields["book"] == book][:20 if args.quick else None]
        if not lines:
            raise UserError(f"{folder / 'lines.tsv'}: no line of the book {book}")
        row = results[book] = {}
        peer = None
        if tesseract_path():
            row["Tesseract"] = compare(lines, _tesseract(work / f"tesseract-{book}.json", lines))
            peer = 100 * row["Tesseract"]["cer"]
        runs = {"synthetic": base}
        for count in args.counts:
            runs[str(count)] = tuned(work / f"{book}-{count}", base, *settings, f"lines_where=book!={book}",
                                     f"lines_count={count}")
        if args.self:
            own = labeled(work / f"{book}-own", base, folder, f"book={book}", args.dictionary)
            runs["self"] = tuned(work / f"{book}-self", base, *settings[1:], f"lines={own}")
        for name, output in runs.items():
            row[name] = evaluate_lines(LineReader(output / "model.onnx"), lines)
            report.record(f"book {book}, {name}: character error rate", 100 * row[name]["cer"], peer, None, "%")
            if args.dictionary:
                reader = LineReader(output / "model.onnx", dictionary=args.dictionary)
                row[f"{name} + words"] = compare(lines, read_texts(reader, lines)[0])
        report.say(f"book {book}, {len(lines)} lines: " + ", ".join(_cell(name, found, peer) for name, found in row.items()))
    if len(books) > 1:
        report.say("mean of the books: " + ", ".join(
            f"{name} {100 * sum(row[name]['cer'] for row in results.values()) / len(books):.2f}"
            for name in next(iter(results.values())) if all(name in row for row in results.values())))
    report.end()


def _cell(name, found, peer):
    cer = 100 * found["cer"]
    better = "*" if peer is not None and name != "Tesseract" and cer < peer else ""
    return f"{name} {cer:.2f}{better} (right number {100 * found['right_count']:.0f}, exact {100 * found['exact']:.0f})"


def _tesseract(kept: Path, lines) -> list[str]:
    """What it reads, kept in a file: it takes a minute for a thousand lines."""
    try:
        texts = json.loads(kept.read_text())
        return [texts[line.file] for line in lines]
    except (OSError, ValueError, KeyError):
        texts = read_with_tesseract([line.path for line in lines])
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(dict(zip([line.file for line in lines], texts))))
    except OSError as error:
        raise UserError(f"{kept}: cannot be written ({first_line(error)}); name another folder with --work") from None
    return texts


if __name__ == "__main__":
    run_cli(main)
