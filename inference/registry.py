"""The registered types: the features of a folder of reference images, and the search among them."""
import hashlib
import os
from collections.abc import Callable
from pathlib import PurePosixPath

import numpy as np

from .cli import counted
from .errors import UserError
from .image import list_images, type_label
from .model import Model
from .search import top_k

COMPARED = 20_000  # most references that are compared with each other: seconds on 2 cores; 1 M would take an hour


class Registry:
    """Every readable image below `root` is a reference of the type that `type_label` gives it.

    `labels` are the T types, sorted; `bank` maps each to the features of its references, float32 `[R, D]`; `warnings` are
    lines about skipped files, labels that collide, and images that are registered twice. `gallery` is the device that
    searches the references: "cpu", or "cuda", see `search_cuda`. `progress`: show the progress on a terminal.
    Raises UserError when there is nothing to register.
    """

    def __init__(self, root, model: Model, gallery: str = "cpu", progress: bool = False):
        files = list_images(root)
        features, digests, self.warnings = {}, {}, _label_collisions(files)
        parts = model.stream([os.path.join(root, file) for file in files])
        for part in counted(parts, len(files), "registering", progress):
            for position, image, feature in zip(part.positions, part.images, part.features):
                features[files[position]] = feature
                digests.setdefault(hashlib.sha256(image).digest(), []).append(files[position])
            self.warnings += [f"{files[position]}: {reason}; skipped" for position, reason in part.reasons.items()]
        if not features:
            why = f"none of its {len(files)} images can be read ({self.warnings[-1]})" if files else "no image in it"
            raise UserError(f"{root}: {why}; put an image of each type there")
        self.warnings += _same_images(digests.values())

        references = {}  # label: features
        for file, feature in features.items():
            references.setdefault(type_label(file), []).append(feature)
        self.labels = sorted(references)
        # (M, D), the references of a type side by side, and (T,), the first row of each type
        self._stacked = stacked = np.concatenate([references[label] for label in self.labels])
        self._starts = starts = np.cumsum([0] + [len(references[label]) for label in self.labels[:-1]])
        self.bank = dict(zip(self.labels, np.split(stacked, starts[1:])))
        self._top = searcher(stacked, None if len(starts) == len(stacked) else starts, gallery)

    def top(self, features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """float32 `[N, D]` -> the best K = min(k, T) types, best first: scores (cos + 1) / 2, float32 `[N, K]`, and indices
        in `labels`, int64 `[N, K]`. The score of a type is that of its best reference. Ties go to the first label.
        """
        cosines, types = self._top(features, k)
        return np.clip((cosines + 1) / 2, 0, 1), types

    def look_alikes(self, threshold: float) -> list[tuple[str, str, float]] | None:
        """Pairs of types whose references could be mistaken for each other: (label, label, score), highest score first.

        Each reference is searched among all M references. Where the best one of another type scores `threshold` or more,
        the two types are a pair. Exact and in bounded memory, but M^2 D multiplications: None for more than COMPARED.
        """
        if len(self._stacked) > COMPARED:
            return None
        scores, types = self.top(self._stacked, 2)  # (M, 2): the reference's own type, usually first, and another
        own = np.searchsorted(self._starts, np.arange(len(self._stacked)), "right") - 1
        alike = {}
        for row, column in zip(*np.nonzero((types != own[:, None]) & (scores >= threshold))):
            pair = tuple(sorted((own[row], types[row, column])))
            alike[pair] = max(alike.get(pair, 0.0), float(scores[row, column]))
        return [(self.labels[first], self.labels[second], score)
                for (first, second), score in sorted(alike.items(), key=lambda item: (-item[1], item[0]))]


def _label_collisions(files):
    """Warnings. A folder is a type, and so is a file directly in the root; those with the same label become one type."""
    sources = {}
    for file in files:
        folder = PurePosixPath(file).parent.as_posix()
        sources.setdefault(type_label(file), set()).add(file if folder == "." else folder + "/")
    return [f'{", ".join(sorted(names))}: share the label "{label}" and count as one type; rename them to separate the types'
            for label, names in sources.items() if len(names) > 1]


def _same_images(groups):
    """Warnings. Images are the same when the network gets the same pixels; the file formats may differ."""
    warnings = []
    for files in groups:
        labels = sorted({type_label(file) for file in files})
        if len(labels) > 1:
            warnings.append(f"{', '.join(files)}: the same image, registered as different types; keep one of them")
        elif len(files) > 1:
            warnings.append(f"{', '.join(files)}: the same image, registered more than once")
    return warnings


def searcher(references: np.ndarray, starts: np.ndarray | None = None, gallery: str = "cpu") -> Callable:
    """A function (queries, k) -> `top_k` of them among `references`. `gallery` "cpu" searches the array as it is; "cuda"
    holds it on the GPU in bf16, which needs torch. Raises UserError for "cuda" where that, or a GPU, is missing.
    """
    if gallery == "cpu":
        return lambda queries, k: top_k(queries, references, k, starts)
    if gallery != "cuda":
        raise UserError(f"gallery {gallery}: unknown; use cpu or cuda")
    try:
        from .search_cuda import CudaGallery
    except ImportError as error:
        raise UserError(f"gallery cuda: needs torch ({error}); install it, or use gallery cpu") from None
    return CudaGallery(references, starts).top_k
