"""Open-set evaluation: half of the types are registered, the other half are unknown, and `DocClassifier` decides."""
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.gallery import registered
from inference.errors import UserError, printable


@dataclass(frozen=True)
class OpenSet:
    """Shares of images at a score `threshold` and a runner-up gap `gap`. `known` and `unknown` are the numbers of images."""
    threshold: float
    gap: float
    identified: float               # share of the known images that get a label
    correctly_identified: float     # share of the known images that get the right label
    unknown_rejected: float         # share of the unknown images that get no label
    known: int                      # images of registered types
    unknown: int                    # images of types that are not registered

    def as_dict(self):
        """For JSON. The keys are part of the public interface and older than the names above."""
        return {"threshold": self.threshold, "margin": self.gap, "accepted": self.identified,
                "right": self.correctly_identified, "refused": self.unknown_rejected, "known": self.known,
                "strangers": self.unknown}

    def note(self):
        return (f"Open set, half of the types registered, then the other half (threshold {self.threshold:.4f}, runner-up "
                f"gap {self.gap:.4f}): {self.known:,} images of registered types, identified {self.identified:.1%}, correct "
                f"identification rate {self.correctly_identified:.1%}; {self.unknown:,} images of unknown types, unknown "
                f"rejection rate {self.unknown_rejected:.1%}.")


def open_set(model, result, fpr: float | None = None, **options) -> OpenSet:
    """Evaluate `DocClassifier` on a folder where half of the types are not registered.

    model: the path of an ONNX file, or a `Model`. result: an `Evaluation` of the folder; its readable images are used.
    fpr: as in classify; None takes its default. options: others of `DocClassifier`, such as find and orientation. Every
    other type, in sorted order, is registered with its references (of a type without any, its first image). Its other
    images, and all images of the unregistered types, are classified. Then the halves are swapped, so that all images count.
    Raises UserError when all images are references, or when the model has no threshold for `fpr`.
    """
    from inference.classify import DocClassifier  # here, because training imports `eval` too and needs no ONNX Runtime

    kept = registered(result.labels, [item.is_reference for item in result.items])
    if kept.all():
        raise UserError(f"{result.folder}: all images are references, so there is nothing to recognize; add other images of "
                        "their types")
    known, unknown = [], []   # (predicted label or -1, true label) of each image
    for half in (0, 1):
        is_known = result.labels % 2 == half
        with tempfile.TemporaryDirectory() as root:
            for row in np.flatnonzero(kept & is_known):     # one folder per type, named by the number of the type
                path = os.path.abspath(result.items[row].path)
                link = Path(root, str(result.labels[row]), f"{row}{Path(path).suffix}")
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(path)
            classifier = DocClassifier(model=model, register_root=root, fpr=fpr, progress=True, **options)
            model = classifier.model
            if half == 0:
                for warning in classifier.warnings:
                    print(printable(f"warning: {warning}"), file=sys.stderr)
        queries = np.flatnonzero(~(kept & is_known))
        for row, found in zip(queries, classifier.stream([str(result.items[row].path) for row in queries])):
            predicted = -1 if found["label"] is None else int(found["label"])
            (known if is_known[row] else unknown).append((predicted, result.labels[row]))
    (predicted, truth), (of_unknown, _) = np.transpose(known), np.transpose(unknown)
    return OpenSet(classifier.threshold, classifier.margin, identified=float((predicted >= 0).mean()),
                   correctly_identified=float((predicted == truth).mean()), unknown_rejected=float((of_unknown < 0).mean()),
                   known=len(known), unknown=len(unknown))
