"""Small splits, and predictions of models that are right as often as they are told to."""
import numpy as np
import torch

from adverts.split import Row, Split
from engine.predictions import write_predictions

CLASSES = ["ash", "birch", "cedar", "dogwood"]


def make_split(per_fold=15, folds=3, unlabeled=8, tests=16, classes=CLASSES) -> Split:
    """`per_fold` training images a fold, two to a group, then unlabeled ones and tests, whose labels are known."""
    rows = []
    for fold in range(folds):
        for i in range(per_fold):
            rows.append(Row(f"train/{fold}{i:02}.jpg", classes[i % len(classes)], f"g{fold}{i // 2}", "train", fold))
    rows += [Row(f"more/{i:02}.jpg", "", f"u{i}", "unlabeled", -1) for i in range(unlabeled)]
    rows += [Row(f"test/{i:02}.jpg", classes[i % len(classes)], f"t{i}", "test", -1) for i in range(tests)]
    return Split(rows)


def opinions(split, strength, seed, kinds=None) -> dict[str, np.ndarray]:
    """{file: logits [C]}: noise, plus `strength` for the true class. kinds: the classes that the model can tell from others;
    of the rest it knows nothing. An unlabeled image is of the class that its number gives."""
    rng, found = np.random.default_rng(seed), {}
    for row in split.rows:
        label = row.label or split.classes[int(row.file[-6:-4]) % len(split.classes)]
        z = rng.normal(size=len(split.classes))
        z[split.classes.index(label)] += strength if kinds is None or label in kinds else 0
        found[row.file] = z.astype(np.float32)
    return found


def write(path, split, logits, kind="image", classes=None, folds=None, about=()):
    """A file of predictions as `python -m adverts predict` writes them. Returns its path."""
    fold_of = folds or {row.file: row.fold for row in split.rows}
    write_predictions(path, {name: torch.tensor(z) for name, z in logits.items()}, "logits", classes or split.classes,
                      {name: fold_of[name] for name in logits}, {"input": kind, "split": split.digest(), **dict(about)})
    return path
