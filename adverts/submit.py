"""The submission: the class of each test image, in the order of the split, and a report.

    python -m adverts submit tfidf.safetensors ads_small.safetensors --split split.csv --fusion fusion.json \\
        --out submission.csv --report DIR --data IMAGES --texts texts.jsonl

submission.csv: UTF-8, header `image_id,category_id`, one row for each image of role test. image_id is the file's name, as in
the contest, or, where two test images share a name, the path of each below the data folder; category_id is the class.

--report writes DIR/report.html, a single file: the scores, what is confused, the images that are wrong with most confidence.
"""
import csv
import io
from pathlib import PurePosixPath

import numpy as np

from adverts.fusion import apply, read_models
from adverts.report import write_report
from adverts.split import Split, read_split
from adverts.texts import read_texts
from inference.cli import Parser
from inference.errors import UserError, printable
from inference.files import replacing
from inference.fusion import read_fusion


def write_submission(path, split: Split, log_p: np.ndarray) -> list[str]:
    """Write the most likely class of each test image; log_p: `[N,C]`, of all rows of the split and of its classes. Returns
    what the user should know. Raises UserError where no image is of role test."""
    tests = [(row.file, values) for row, values in zip(split.rows, log_p) if row.role == "test"]
    if not tests:
        raise UserError("the split has no images of role test, so there is nothing to submit; give some to "
                        "`python -m adverts split`, or --report without --out")
    names = [PurePosixPath(file).name for file, _ in tests]
    unique = len(set(names)) == len(names)
    ids = names if unique else [file for file, _ in tests]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [("image_id", "category_id"), *((name, split.classes[values.argmax()]) for name, (_, values) in zip(ids, tests))])
    with replacing(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8", newline="")
    notes = [f"{path}: {len(tests):,} images" + ("" if unique else "; image_id is the path, since names come twice")]
    if guessed := [file for file, values in tests if np.ptp(values) == 0]:
        notes.append(f"warning: no model has a prediction of {len(guessed):,} of them, such as {guessed[0]}; their class is "
                     "a guess")
    return notes


def main(arguments=None):
    parser = Parser(prog="python -m adverts submit", description=__doc__)
    parser.add_argument("predictions", nargs="+", metavar="P.safetensors", help="the files that the fusion was tuned on")
    parser.add_argument("--split", required=True, metavar="split.csv")
    parser.add_argument("--fusion", required=True, metavar="fusion.json", help="what `python -m adverts tune` wrote")
    parser.add_argument("--out", metavar="submission.csv", help="where the submission is written")
    parser.add_argument("--report", metavar="DIR", help="write report.html and metrics.json there")
    parser.add_argument("--data", metavar="DIR", help="folder of the images, to show them in the report")
    parser.add_argument("--texts", metavar="texts.jsonl", help="texts of the images, to show them in the report")
    args = parser.parse_args(arguments)
    if not args.out and not args.report:
        raise UserError("give --out, --report, or both")
    if (args.data or args.texts) and not args.report:
        raise UserError("--data and --texts are for the report; give --report DIR too")
    split, fusion = read_split(args.split), read_fusion(args.fusion)
    texts = read_texts(args.texts) if args.texts else {}
    models = read_models(args.predictions, split)
    log_p = apply(fusion, models, split)
    notes = write_submission(args.out, split, log_p) if args.out else []
    if args.report:
        notes.append(f"{write_report(fusion, models, split, log_p, args.report, args.data, texts)}: the report")
    print(*map(printable, notes), sep="\n")
