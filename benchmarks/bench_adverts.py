"""Image and text classification on labelled images: nested folds, what fusion is worth, and what a teacher is worth.

    python benchmarks/bench_adverts.py --data DIR --csv FILE.csv [--work DIR] [--parts fusion students] [--quick] [--json]

FILE.csv has the columns file, label and group. Each of five outer folds, whole groups, is the test once; nothing of it is
seen before its score. The commands are those of the documentation (python -m adverts ..., train_v2.py).

fusion: on the other four folds, image networks (configs/ads_small), texts (TF-IDF, configs/ads_text_small) and a thumbnail
are trained with inner folds; weights are tuned on their out-of-fold predictions; every test image is then scored once.
students: half of the other four folds is labeled, the other half only images. The labeled half, in two inner folds, trains
the models of a fusion, which is the teacher; the students are image networks on hard labels alone, with the teacher on the
unlabeled half, and as the contest's system did it by accident: the teacher's best classes alone, the labeled half dropped;
at 128 pixels, all for as many steps.

`ours` is the accuracy in percent, over all outer folds; `peer` what it is to be compared with. p: exact McNemar test over
all test images. The runs lie in --work; what is there already is not made again. --quick: two classes, two outer folds, four
steps.
"""
import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from side_by_side import Report, UserError, run_cli
from sklearn.model_selection import StratifiedGroupKFold

from adverts.fusion import compare, right
from adverts.split import Row, Split, read_split, write_split
from engine.predictions import read_predictions
from inference.fusion import log_softmax

ROOT = Path(__file__).resolve().parent.parent
OUTER, INNER = 5, 4
INNER_OF_STUDENTS = 2
STUDENTS = {  # all take as many steps: where half of the images is learned from, it is seen twice as often
    "student, hard labels": ["epochs=16"],
    "student, teacher + unlabeled": ["unlabeled=unlabeled", "teacher_on=unlabeled"],
    "student, the contest's accident": ["unlabeled=unlabeled", "teacher_labels=accident", "epochs=16"],
}


class Work:
    """Runs the project's commands, each once: what its `--out` or `output=` names is not made again."""

    def __init__(self, args, quick: bool):
        self.args, self.data, self.quick = args, Path(args.data).resolve(), quick
        self.folder = args.work.resolve()

    def run(self, out: Path, *command) -> Path:
        if not out.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=sys.stderr)
            if done.returncode:
                raise UserError(f"{' '.join(map(str, command[:4]))} ended with {done.returncode}; its error is above")
        return out

    def texts(self, split: Path) -> Path:
        out = split.with_name("texts.jsonl")
        return self.run(out, "-m", "adverts", "ocr", "--data", self.data, "--split", split, "--cache",
                        self.folder / "ocr.sqlite", "--out", out)

    def train(self, output: Path, config: str, split: Path, *keys) -> Path:
        quick = ["max_steps=4", *(["image_size=32", "network=test_efficientnet", "pretrained=false", "freeze=0"]
                                  if config == "ads_small" else [])] if self.quick else []
        own = [f"texts={split.with_name('texts.jsonl')}"] if "text" in config else []
        done = output / "done"              # a run that was stopped has a model.pt, too
        self.run(done, "train_v2.py", f"configs/{config}", f"data={self.data}", f"split={split}", f"output={output}",
                 "resume=auto", *own, *quick, *keys)
        done.touch()
        return output

    def predict(self, split: Path, name: str, *source) -> Path:
        out = split.parent / f"{name}.safetensors"
        return self.run(out, "-m", "adverts", "predict", "--data", self.data, "--split", split, "--texts",
                        split.with_name("texts.jsonl"), "--out", out, *source)

    def models(self, split: Path) -> list[Path]:
        """Predictions of all models of a split, out of fold."""
        self.texts(split)
        folds = range(read_split(split).folds)
        made = [self.predict(split, name, "--model", name) for name in ("thumbnail", "tfidf")]
        for config, name in (("ads_small", "image"), ("ads_text_small", "text")):
            runs = [self.train(split.parent / f"{name}_{k}", config, split, f"fold={k}") for k in folds]
            made.append(self.predict(split, name, *runs))
        return made

    def fused(self, split: Path, files: list[Path], form: str) -> Path:
        out = split.parent / f"fused_{form}.safetensors"
        return self.run(out, "-m", "adverts", "tune", *files, "--split", split, "--out", split.parent / f"{form}.json",
                        "--form", form, "--fused", out)


def outer_splits(args, quick: bool, unlabeled: bool) -> list[Split]:
    """Each group of images is the test once. unlabeled: half of the rest is, else it is all in folds."""
    with open(args.csv, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if quick:
        few = sorted({row["label"] for row in rows})[:2]
        rows = [row for row in rows if row["label"] in few]
    label, group = (np.array([row[key] for row in rows]) for key in ("label", "group"))

    def parts(count, at):
        """Places, in `count` parts of whole groups."""
        order = StratifiedGroupKFold(count, shuffle=True, random_state=0).split(at, label[at], group[at])
        return [at[held] for _, held in order]
    splits, everything, inner = [], np.arange(len(rows)), INNER_OF_STUDENTS if unlabeled else INNER
    for test in parts(2 if quick else OUTER, everything):
        rest = np.setdiff1d(everything, test)
        blank = parts(2, rest)[0] if unlabeled else rest[:0]
        role = {place: ("test", -1) for place in test} | {place: ("unlabeled", -1) for place in blank}
        for fold, held in enumerate(parts(2 if quick else inner, np.setdiff1d(rest, blank))):
            role |= {place: ("train", fold) for place in held}
        splits.append(Split([Row(row["file"], "" if role[i][0] == "unlabeled" else row["label"], row["group"], *role[i])
                             for i, row in enumerate(rows)]))
    return splits


class Scores:
    """For each name whether the test images are right, over all outer folds."""

    def __init__(self):
        self.hits, self.groups, self.folds = {}, [], Counter()

    def add(self, split: Split, log_p: dict[str, np.ndarray]) -> None:
        """log_p: {name: log probabilities of the test images `[N,C]`}; NaN where there is none."""
        test = split.part("test")
        label = np.array([split.classes.index(row.label) for row in test])
        self.groups += [row.group for row in test]
        for name, rows in log_p.items():
            self.hits.setdefault(name, []).append(right(np.nan_to_num(rows), label))

    def tell(self, report: Report, name: str, against: str) -> None:
        hit, other = (np.concatenate(self.hits[key]) for key in (name, against))
        found, folds = compare(hit, other, self.groups), [100 * part.mean() for part in self.hits[name]]
        report.record(f"{name}: accuracy", 100 * hit.mean(), 100 * other.mean(), None, "%", higher_is_better=True)
        report.say(f"{name:36} {100 * hit.mean():5.1f}   folds {min(folds):.1f} to {max(folds):.1f}" + ("" if name == against
                   else f"   {100 * found['difference']:+5.1f} over {against} (gained {found['gained']}, lost "
                        f"{found['lost']}, p {found['p']:.1g})"))


def test_rows(split: Split, file: Path) -> np.ndarray:
    """Log probabilities of the test images by one file of predictions, `[N,C]`; zeros, of no class, where it has none."""
    told = read_predictions(file)
    values, known = told.join([row.file for row in split.part("test")])
    columns = [told.classes.index(name) for name in split.classes]
    return log_softmax(values.double().numpy()[:, columns]) * known.numpy()[:, None]


def fusion(report: Report, work: Work) -> None:
    scores, chosen = Scores(), Counter()
    for number, split in enumerate(outer_splits(work.args, work.quick, unlabeled=False)):
        path = work.folder / f"fusion_{number}/split.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_split(path, split)
        files = work.models(path)
        # The contest's system had networks alone; its .6 and .4 are halved between the models of a kind.
        fused = {form: work.fused(path, [file for file in files if form != "fixed" or file.stem in ("image", "tfidf")], form)
                 for form in ("fixed", "mean", "product")}
        best = json.loads((path.parent / "product.json").read_text())["best"]
        chosen[best] += 1
        found = {file.stem: test_rows(split, file) for file in files}
        found |= {"best single": found[best], **{form: test_rows(split, file) for form, file in fused.items()}}
        scores.add(split, found)
    report.say(f"\nfusion, {len(scores.groups)} test images, each once; best single model, chosen out of fold: "
               + ", ".join(f"{name} ({count} of {chosen.total()} outer folds)" for name, count in chosen.items()))
    for name in scores.hits:
        scores.tell(report, name, "thumbnail" if name == "image" else "best single")


def students(report: Report, work: Work) -> None:
    scores = Scores()
    for number, split in enumerate(outer_splits(work.args, work.quick, unlabeled=True)):
        path = work.folder / f"students_{number}/split.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_split(path, split)
        teacher = work.fused(path, work.models(path), "product")
        found = {"teacher": test_rows(split, teacher)}
        for name, keys in STUDENTS.items():
            output = path.parent / name.replace(" ", "_").replace(",", "").replace("'", "")
            taught = [f"teacher={teacher}"] if "unlabeled=unlabeled" in keys else []
            work.train(output, "ads_small", path, f"seed={number}", "image_size=128", *keys, *taught)
            found[name] = test_rows(split, work.predict(path, output.name, output))
        scores.add(split, found)
    report.say(f"\nstudents, {len(scores.groups)} test images; half of the other images is labelled")
    for name in scores.hits:
        scores.tell(report, name, "student, hard labels")


def main():
    report = Report(
        __doc__, ("--data", {"required": True, "metavar": "DIR", "help": "folder of the images"}),
        ("--csv", {"required": True, "metavar": "FILE.csv", "help": "file, label and group of each"}),
        ("--work", {"type": Path, "default": Path("work_dirs/adverts"), "metavar": "DIR", "help": "for the runs"}),
        ("--parts", {"nargs": "*", "choices": ["fusion", "students"], "default": ["fusion", "students"]}), head=False)
    work = Work(report.args, report.quick)
    for part in report.args.parts:
        {"fusion": fusion, "students": students}[part](report, work)
    report.end()


if __name__ == "__main__":
    run_cli(main)
