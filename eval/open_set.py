"""Open set: half of the types are registered, the other half are strangers, and the classifier itself decides."""
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from eval.gallery import registered
from inference.errors import UserError, printable


@dataclass(frozen=True)
class OpenSet:
    """Shares of images, at a score of `threshold` and a lead of `margin`; `known` and `strangers` count them."""
    threshold: float
    margin: float
    accepted: float     # of the images of registered types: named at all
    right: float        # of the same: named, and rightly
    refused: float      # of the images of types that were not registered: not named
    known: int
    strangers: int

    def as_dict(self):
        return asdict(self)

    def note(self):
        return (f"Open set, every other type registered and then the others (threshold {self.threshold:.4f}, margin "
                f"{self.margin:.4f}): of {self.known:,} images of registered types {self.accepted:.1%} are named, "
                f"{self.right:.1%} rightly; of {self.strangers:,} images of types never registered {self.refused:.1%} are "
                f"refused.")


def open_set(model, result, fpr: float | None = None) -> OpenSet:
    """How `DocClassifier` does on a folder where half of the types are not registered.

    model: the path of an ONNX file, or a `Model`. result: an `Evaluation` of the folder: its readable images are taken.
    fpr: as in classify; None: its default. Every other type, in sorted order, is registered with its references (without
    any: its first image); its other images, and all images of the other types, are classified. Then the halves change
    places, so all images count. Raises UserError when all are references, or for an `fpr` that has no threshold.
    """
    from inference.classify import DocClassifier  # here: training evaluates as well, and needs no ONNX Runtime

    kept = registered(result.labels, [item.is_reference for item in result.items])
    if kept.all():
        raise UserError(f"{result.folder}: all images are references, so there is none to recognise; add others of "
                        "their types")
    known, strangers = [], []   # the type named, -1 for none, and the type in truth
    for half in (0, 1):
        is_known = result.labels % 2 == half
        with tempfile.TemporaryDirectory() as root:
            for row in np.flatnonzero(kept & is_known):     # a folder named by the type's number for each
                path = os.path.abspath(result.items[row].path)
                link = Path(root, str(result.labels[row]), f"{row}{Path(path).suffix}")
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(path)
            classifier = DocClassifier(model=model, register_root=root, fpr=fpr, progress=True)
            model = classifier.model
            if half == 0:
                for warning in classifier.warnings:
                    print(printable(f"warning: {warning}"), file=sys.stderr)
        asked = np.flatnonzero(~(kept & is_known))
        for row, found in zip(asked, classifier.stream([str(result.items[row].path) for row in asked])):
            named = -1 if found["label"] is None else int(found["label"])
            (known if is_known[row] else strangers).append((named, result.labels[row]))
    (named, truth), (stranger, _) = np.transpose(known), np.transpose(strangers)
    return OpenSet(classifier.threshold, classifier.margin, accepted=float((named >= 0).mean()),
                   right=float((named == truth).mean()), refused=float((stranger < 0).mean()),
                   known=len(known), strangers=len(strangers))
