"""Characters that a reader was never trained on, registered without training: how many are read, and how many wrongly.

    python -m ocr register --model READER.onnx --out characters.npz 'qQJ8zé'
    python benchmarks/bench_new_characters.py --model READER.onnx --characters characters.npz --lines LINES

`recall`: the share of a character's places in the truth where it is read. `wrong`: how often it is read where it is not, in
10,000 characters of the truth. The peer of the error rate is the same reader without the characters. --quick takes 60 lines.
"""
from collections import Counter

from side_by_side import Report, UserError, run_cli

from eval.reading import compare, differences, read_texts
from inference.reader import LineReader
from inference.text import normalize
from ocr.folder import read_lines


def count(truths, texts, characters) -> tuple[Counter, Counter, Counter]:
    """(places in the truths, those read rightly, those read elsewhere) of each of `characters`; all texts normalized."""
    there, right, wrong = Counter(), Counter(), Counter()
    for truth, text in zip(truths, texts, strict=True):
        there.update(c for c in truth if c in characters)
        for a, b in differences(truth, text):
            (right if a == b else wrong).update(c for c in b if c in characters)
    return there, right, wrong


def main():
    report = Report(__doc__, ("--model", {"metavar": "READER.onnx", "required": True, "help": "reader"}),
                    ("--characters", {"metavar": "FILE.npz", "required": True, "help": "of python -m ocr register"}),
                    ("--lines", {"metavar": "LINES", "required": True, "help": "folder of images and lines.tsv"}),
                    ("--where", {"metavar": "COLUMN=V", "default": "", "help": "only these lines of lines.tsv"}))
    lines = read_lines(report.args.lines, report.args.where, 60 if report.quick else 0,
                       with_boxes=False)
    plain, added = (LineReader(report.args.model, characters=file) for file in (None, report.args.characters))
    truths, characters = [normalize(line.text) for line in lines], set(added.registered)
    if not any(characters & set(truth) for truth in truths):
        raise UserError(f"{report.args.lines}: no line has one of the characters of {report.args.characters}")
    before, after = ([normalize(text) for text in read_texts(reader, lines)[0]] for reader in (plain, added))
    there, right, wrong = count(truths, after, characters)
    total = sum(map(len, truths))
    for c in sorted(there):
        report.add(f"recall of {c}, {there[c]:,} places", right[c] / there[c], limit=1.0, unit="", higher_is_better=True)
        report.add(f"  wrong, in 10,000 characters ({wrong[c]:,})", 1e4 * wrong[c] / total, unit="")
    report.add(f"recall of all, {there.total():,} places", right.total() / there.total(), limit=1.0, unit="")
    report.add(f"  wrong, in 10,000 characters ({wrong.total():,})", 1e4 * wrong.total() / total, unit="")
    report.add(f"CER of {len(lines):,} lines; without the characters", 100 * compare(lines, after)["cer"],
               100 * compare(lines, before)["cer"], unit="%")
    report.end()


if __name__ == "__main__":
    run_cli(main)
