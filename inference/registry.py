"""The registered types: a folder of reference pictures, turned into features to search."""
import hashlib
import os
from pathlib import PurePosixPath

import numpy as np

from inference.image import UserError, list_images, type_label
from inference.model import Model


class Registry:
    """Every readable image below `root` is a reference of the type that `type_label` gives it.

    `labels` are the T types, sorted; `bank` maps each to the features of its references, float32 `[R, D]`;
    `warnings` are lines about files left out, labels that collide, and pictures registered twice.
    Raises UserError when there is nothing to register.
    """

    def __init__(self, root, model: Model):
        files = list_images(root)
        features, digests, self.warnings = {}, {}, _label_collisions(files)
        for positions, images, reasons in model.prepare_chunks([os.path.join(root, file) for file in files]):
            for position, image, feature in zip(positions, images, model.embed(images)):
                features[files[position]] = feature
                digests.setdefault(hashlib.sha256(image).digest(), []).append(files[position])
            self.warnings += [f"{files[position]}: {reason}; left out" for position, reason in reasons.items()]
        if not features:
            why = f"none of its {len(files)} images can be read ({self.warnings[-1]})" if files else "no image in it"
            raise UserError(f"{root}: {why}; a picture of each type must be there")
        self.warnings += _same_pictures(digests.values())

        references = {}  # label: features
        for file, feature in features.items():
            references.setdefault(type_label(file), []).append(feature)
        self.labels = sorted(references)
        self.bank = {label: np.stack(references[label]) for label in self.labels}
        counts = [len(self.bank[label]) for label in self.labels]
        self._features = np.concatenate(list(self.bank.values()))  # (M, D), a type's references side by side
        self._starts = np.cumsum([0] + counts[:-1])  # (T,) where each type begins

    def search(self, features: np.ndarray) -> np.ndarray:
        """`[N, D]` -> scores (cos + 1) / 2 against each type, float32 `[N, T]`: a type's best reference counts."""
        cosines = features @ self._features.T  # (N, M)
        return np.clip((np.maximum.reduceat(cosines, self._starts, axis=1) + 1) / 2, 0, 1)


def _label_collisions(files):
    """A folder is one type and so is a file directly in the root: where these share a label they become one."""
    sources = {}
    for file in files:
        folder = PurePosixPath(file).parent.as_posix()
        sources.setdefault(type_label(file), set()).add(file if folder == "." else folder + "/")
    return [f'{", ".join(sorted(names))}: share the label "{label}" and count as one type; rename to tell them apart'
            for label, names in sources.items() if len(names) > 1]


def _same_pictures(groups):
    """Pictures are the same when the network sees the same pixels, whatever the format of their files."""
    warnings = []
    for files in groups:
        labels = sorted({type_label(file) for file in files})
        if len(labels) > 1:
            warnings.append(f"{', '.join(files)}: the same picture, registered as different types; keep one of them")
        elif len(files) > 1:
            warnings.append(f"{', '.join(files)}: the same picture, registered more than once")
    return warnings
