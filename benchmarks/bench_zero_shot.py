"""How well networks tell apart types that they were never trained on: several test sets, several models, one table.

    python benchmarks/bench_zero_shot.py [--model M.onnx|OUTPUT_DIR]... [SET]... [--quick] [--json]
    python benchmarks/bench_zero_shot.py SET... --find auto --orientation any      # as `python -m eval` takes them
    python benchmarks/bench_zero_shot.py SCENES --corners SCENES/corners.csv      # the upper bound of a finder

A SET is a folder SET/<type>/*.jpg, evaluated as `python -m eval` does; without one, synthetic types are made. A SET with a
corners.csv is a folder of photos as a camera took them: the references of its types are in --references.

errors: how many times fewer pairs the model orders wrongly than the thumbnail: the ratio of both (1 - AUROC); none: it
orders none wrongly.
mean: TPR at FPR 1e-4 of the mean of the model's and the thumbnail's cosine. Where it is much higher than the model's own,
the model has not learned what a thumbnail shows.
In the JSON document `ours` is the model, `peer` the thumbnail (for the mean: the model by itself), `limit` a perfect model.
"""
import contextlib
import tempfile
from pathlib import Path

import numpy as np
from side_by_side import Report, run_cli

from eval import evaluate_folder
from eval.__main__ import add_photo_options, load_embed, photo_options, seen
from eval.pairs import count_pairs, fixed_point, measure
from eval.scenes import CORNERS, link_scenes
from inference.classify import DEFAULT_MODEL
from synth import NEVER_TRAINED, write_eval

RATE = "1e-4"


def both(result) -> np.ndarray:
    """float64 [V, N, D + 768]: vectors whose cosine is the mean of the model's cosine and the thumbnail's."""
    return fixed_point(np.concatenate([fixed_point(result.views), fixed_point(result.thumbnails)], axis=2))


def rows(report, name, model, result):
    """The table's line of a model on a set, and its rows of the JSON document."""
    own, (thumb, thumb_found) = result.verification, result.baseline
    tpr = own.tpr_at_fpr[RATE]
    mean = measure(count_pairs(both(result), result.labels, upright=result.upright)).tpr_at_fpr[RATE]
    name = f"{name}, {model}"
    ratio = report.record(f"{name}: wrong order of pairs, 1 - AUROC", 1 - own.auroc, 1 - thumb.auroc, 0.0, "share")
    report.record(f"{name}: TPR at FPR {RATE}", tpr, thumb.tpr_at_fpr[RATE], 1.0, "share", True)
    report.record(f"{name}: top-1", result.identification.top1, thumb_found.top1, 1.0, "share", True)
    report.record(f"{name}: TPR at FPR {RATE} of the mean with the thumbnail", mean, tpr, 1.0, "share", True)
    line(report, model, own, result.identification, f"{ratio:,.1f}x" if ratio else "none",
         f"{mean:.4f} {mean - tpr:+.4f}")


def line(report, name, verification, identification, *more):
    few = "*" if RATE in verification.too_few_negatives else " "
    cells = f"{verification.auroc:.4f}", f"{verification.tpr_at_fpr[RATE]:.4f}{few}", f"{identification.top1:.4f}", *more
    report.say(f"  {name:<40}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, (9, 12, 9, 9, 17))))


def names_of(models):
    """{path: a short name}: the last part of the path where that is enough."""
    last = [Path(model).name for model in models]
    return {model: name if last.count(name) == 1 else str(model) for model, name in zip(models, last)}


def main():
    options = []
    add_photo_options(lambda flag, **settings: options.append((flag, settings)))
    report = Report(
        __doc__, ("sets", {"nargs": "*", "metavar": "SET", "help": "folder of images (default: synthetic types)"}),
        ("--model", {"action": "append", "metavar": "M.onnx|OUTPUT_DIR", "help": "model; may be given several times "
                                                                              "(default: the shipped one)"}),
        ("--references", {"metavar": "DIR", "help": f"DIR/<type>/reference.jpg for sets with a {CORNERS} "
                                                    "(default: covers, beside the set)"}),
        *options, head=False)
    photos = photo_options(report.args)
    models = {model: load_embed(model) for model in report.args.model or [str(DEFAULT_MODEL)]}
    names, few = names_of(list(models)), False
    with contextlib.ExitStack() as stack:
        sets = [(Path(folder).name, folder) for folder in report.args.sets]
        if not sets:
            made = stack.enter_context(tempfile.TemporaryDirectory())
            write_eval(f"{made}/types", 12 if report.quick else 100, 4, seed=0, first_type=2 * NEVER_TRAINED)
            sets = [("synthetic types", f"{made}/types")]
        report.say(f"  {'':<40}{'AUROC':>9}{f'TPR@{RATE}':>11} {'top-1':>9}{'errors':>9}{'mean':>17}")
        for name, folder in sets:
            if Path(folder, CORNERS).is_file():
                references = report.args.references or Path(folder).resolve().parent / "covers"
                folder = link_scenes(folder, references, stack.enter_context(tempfile.TemporaryDirectory()))
            for model, (embed, size, fit) in models.items():
                result = evaluate_folder(embed, folder, size, fit=fit, progress=not report.args.json,
                                         load=seen(size, fit, **photos), orientation=report.args.orientation)
                if model == next(iter(models)):
                    found = result.verification
                    report.say(f"{name}: {len(result.items):,} images of {len(result.types):,} types, {found.positive:,} "
                               f"pairs of one type, {found.negative:,} of two")
                    line(report, "16x16 thumbnail", *result.baseline)
                rows(report, name, names[model], result)
                few |= RATE in found.too_few_negatives
        if few:
            report.say(f"* fewer than {10 ** 4:,} pairs of two types: TPR where none of them passes")
    report.end()


if __name__ == "__main__":
    run_cli(main)
