"""What models say of the images of a split: a file of predictions, which fusions and students join by sample id.

    python -m adverts predict --data DIR --split split.csv --out P.safetensors RUN_OF_FOLD_0 RUN_OF_FOLD_1 ...
    python -m adverts predict --data DIR --split split.csv --texts texts.jsonl --out P.safetensors RUN...
    python -m adverts predict --data DIR --split split.csv [--texts texts.jsonl] --out P.safetensors --model tfidf|thumbnail

Of an image of role train, the run speaks that held its fold out: nobody speaks of what it has learned. Of all others it is
the mean of the runs' logits. A run with fold=-1 has learned all of role train, and speaks of the others alone. RUN is the
output folder of train_v2.py with split= and fold=; one that has not come to its end is used, with a warning. An image that
cannot be read, or has no text, gets no row.
"""
import sys
from pathlib import Path

import torch

from adverts.simple import tfidf, thumbnail
from adverts.split import Split, read_split
from adverts.texts import read_texts
from configs import load_run, read_info
from engine.predictions import Predictions, write_predictions
from engine.progress import unfinished
from inference.cli import Parser
from inference.errors import UserError, printable
from tasks import get_task
from tasks.labels import class_names


def predict_runs(runs: list, split: Split, data, texts: dict | None) -> tuple[Predictions, dict[str, str]]:
    """(logits of `split.classes` by the runs of all folds, or by one run without, {sample id: why it was skipped}). Raises
    UserError where a run is of another split, or the folds are not each there once."""
    loaded = [_load(run, split) for run in runs]
    folds = [fold for *_, fold in loaded]
    if folds != [-1] and sorted(folds) != list(range(split.folds)):
        raise UserError(f"the runs held out the folds {folds}; give one run for each of 0 to {split.folds - 1}, or one with "
                        "fold=-1")
    for run, (_, cfg, _, fold) in zip(runs, loaded):
        if reached := unfinished(run):
            print(printable(f"warning: {run}: its training has only come to {reached}, and its predictions are of this "
                            "step; give its command again with resume=auto to complete it"), file=sys.stderr)
        if fold >= 0 and cfg.teacher and cfg.teacher_weight:
            print(f"warning: {run}: what it says of fold {fold} may be too good (it had a teacher, and a fusion, say, has "
                  "learned from all folds); so may weights tuned on it", file=sys.stderr)
    kinds = {get_task(cfg.task).sees for _, cfg, *_ in loaded}
    if len(kinds) > 1:
        raise UserError(f"{' '.join(map(str, runs))}: runs of texts and of images; predict each kind by itself")
    rest = [row.file for row in split.rows if row.role != "train"]
    found, held_out, skipped, others = {}, {}, {}, {}
    for run, (network, cfg, columns, fold) in zip(runs, loaded):
        own = [row.file for row in split.part("train", fold)] if fold >= 0 else []
        said, reasons = get_task(cfg.task).predict_split(cfg, network, own + rest, data, texts)
        print(f"{run}: {len(said):,} of {len(own) + len(rest):,} images", file=sys.stderr)
        skipped |= reasons
        for name, logits in said.items():
            others.setdefault(name, []).append(logits[columns])
        found |= {name: others.pop(name)[0] for name in own if name in said}
        held_out |= {name: fold for name in own if name in said}
    found |= {name: torch.stack(rows).mean(0) for name, rows in others.items()}
    if not found:
        raise UserError("none of the images of the split can be used")
    held_out |= {name: -1 for name in others}
    return Predictions(list(found), torch.stack(list(found.values())), "logits", split.classes,
                       torch.tensor([held_out[name] for name in found]),
                       {"model": [str(run) for run in runs], "input": kinds.pop(), "split": split.digest(),
                        "unreadable": sorted(skipped)}), skipped


def _load(run, split: Split) -> tuple:
    """(network, on the GPU where there is one, config, the columns of its logits in the order of the split's classes, fold)
    of a run's folder."""
    network, cfg = load_run(run)
    info = read_info(run)
    if not hasattr(get_task(cfg.task), "predict_split") or not info.get("split"):
        raise UserError(f"{run}: no run of classification on a split; train it with split=FILE and fold=K")
    if info["split"] != split.digest():
        raise UserError(f"{run}: was trained on another split ({info['split']}, not {split.digest()}), whose folds hold out "
                        "other images; train it again")
    classes = class_names(info)
    if sorted(classes) != split.classes:  # of a folder that was changed by hand
        raise UserError(f"{run}/run.json: names other classes than the split that it names; give the run as it was written")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return network.to(device), cfg, torch.tensor([classes.index(name) for name in split.classes]), cfg.fold


def main(arguments=None) -> int:
    parser = Parser(prog="python -m adverts predict", description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="output folder of train_v2.py, one for each fold")
    parser.add_argument("--model", choices=("tfidf", "thumbnail"),
                        help="instead of runs: a model of scikit-learn, fitted here, fold by fold")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder that the files of the split are below")
    parser.add_argument("--split", required=True, metavar="S.csv", help="what `python -m adverts split` wrote")
    parser.add_argument("--texts", metavar="T.jsonl", help="what `python -m adverts ocr` wrote; for models of texts")
    parser.add_argument("--out", required=True, metavar="P.safetensors", help="file of predictions to write")
    args = parser.parse_args(arguments)
    if bool(args.runs) == bool(args.model):
        parser.error("give runs, or --model")
    if not Path(args.out).absolute().parent.is_dir():  # found now, not after hours
        raise UserError(printable(f"--out {args.out}: its folder does not exist; make it, or give another"))
    split, skipped = read_split(args.split), {}
    texts = read_texts(args.texts) if args.texts else None
    if args.model == "tfidf":
        if texts is None:
            parser.error("--model tfidf: give --texts")
        found = tfidf(split, texts)
    elif args.model:
        found = thumbnail(split, args.data)
        skipped = dict.fromkeys(found.about["unreadable"], "cannot be used as an image")
    else:
        found, skipped = predict_runs(args.runs, split, args.data, texts)
    for name, reason in skipped.items():
        print(printable(f"skipped: {name}: {reason}"), file=sys.stderr)
    folds = dict(zip(found.ids, found.folds.tolist()))
    write_predictions(args.out, dict(zip(found.ids, found.values)), found.kind, found.classes, folds, found.about)
    labels = {row.file: row.label for row in split.part("train")}
    right = [found.classes[logits.argmax()] == labels[name] for name, logits in zip(found.ids, found.values)
             if folds[name] >= 0]
    print(f"{args.out}: {len(found.ids):,} images" + (f"; out of fold, {sum(right) / len(right):.3f} of {len(right):,} right"
                                                      if right else ""))
    return 0
