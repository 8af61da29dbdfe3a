"""Tune how much each model counts, on out-of-fold predictions alone, and say what the fusion is worth.

    python -m adverts tune tfidf.safetensors ads_small.safetensors --split split.csv --out fusion.json
    python -m adverts tune *.safetensors --split split.csv --out fusion.json --fused teacher.safetensors

The files are what `python -m adverts predict` writes; a model is named after its file. Forms: product, log p = sum of w
log p; mean, p = sum of w p; fixed, the mean with .6 for images and .4 for texts, as in the contest's system. Each score on
training images is cross-fitted: an image takes part neither in what its models learned nor in the weights. The form is used
unless the best single model is right more often; then that model is kept, and the fusion says so.

--fused writes the fused log probabilities of all images, as a teacher for students.
"""
import json

import torch

from adverts.fusion import FORMS, apply, fit, read_models
from adverts.split import read_split
from engine.predictions import write_predictions
from inference.cli import Parser
from inference.errors import printable
from inference.files import replacing


def table(fusion: dict) -> str:
    """The scores as text: a line for each model and form, then one for each form's gain over the best single model."""
    scores = fusion["scores"]
    train, test = (next(iter(scores.values()))[key] for key in ("images", "test"))
    titles = [f"out of fold, {train:,} images", *([f"test, {test['images']:,} images (for scores alone)"] if test else [])]
    rows = [("", titles), ("", ["accuracy  95 % interval    NLL"] * len(titles))]
    rows += [(name, [_score(part) for part in (one, one["test"]) if part]) for name, one in scores.items()]
    if forms := [name for name in FORMS if name in scores]:
        rows += [("", []), (f"gain over {fusion['best']}", ["points    95 % interval     gained lost p"] * len(titles))]
        rows += [(name, [_gain(part["against_best"]) for part in (scores[name], scores[name]["test"]) if part])
                 for name in forms]
    wide = max(len(name) for name, _ in rows)
    return "\n".join("  ".join([f"{name:{wide}}", *(f"{cell:42}" for cell in cells)]).rstrip() for name, cells in rows)


def _score(one):
    low, high = one["interval"]
    return f"{one['accuracy']:8.3f}  {low:.3f} to {high:.3f}  {one['nll']:5.3f}"


def _gain(one):
    low, high = (100 * end for end in one["interval"])
    return (f"{100 * one['difference']:+6.1f}    {low:+5.1f} to {high:+5.1f}    {one['gained']:6} {one['lost']:4} "
            f"{one['p']:.2g}")


def used(fusion: dict) -> list[str]:
    """What is used, in a line, and one for each kind of model where only such models have a prediction."""
    weights = {"": {model["name"]: model["weight"] for model in fusion["models"]},
               **{f"where only {kind} models have a prediction: ": given for kind, given in fusion["fallback"].items()}}
    lines = [what + ", ".join(f"{name} {weight:.2f}" for name, weight in given.items()) for what, given in weights.items()]
    choice, best = fusion["choice"], fusion["best"]
    kept = choice == best and len(fusion["models"]) > 1
    lines[0] = f"used: {best} alone; no fusion, which is right less often" if kept else f"used: {choice}, weights {lines[0]}"
    return lines


def main(arguments=None):
    parser = Parser(prog="python -m adverts tune", description=__doc__)
    parser.add_argument("predictions", nargs="+", metavar="P.safetensors", help="predictions of the models, one file each")
    parser.add_argument("--split", required=True, metavar="split.csv")
    parser.add_argument("--out", required=True, metavar="fusion.json")
    parser.add_argument("--form", choices=FORMS, default="product", help="how predictions are put together")
    parser.add_argument("--fused", metavar="F.safetensors", help="where the fused predictions of all images are written")
    args = parser.parse_args(arguments)
    split = read_split(args.split)
    models = read_models(args.predictions, split)
    fusion = fit(models, split, args.form)
    if args.fused:
        log_p = torch.from_numpy(apply(fusion, models, split))
        write_predictions(args.fused, {row.file: values for row, values in zip(split.rows, log_p)}, "logits", split.classes,
                          {row.file: row.fold for row in split.rows},
                          {"model": "fusion", "choice": fusion["choice"], "split": split.digest(),
                           "models": {model["name"]: model["predictions"] for model in fusion["models"]}})
    with replacing(args.out) as partial:
        partial.write_text(json.dumps(fusion, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(fusion))
    print("", *map(printable, used(fusion)), sep="\n")
