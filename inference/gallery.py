"""The registered types: the features of a folder of reference images, and the search among them."""
import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import PurePosixPath

import numpy as np

from .cli import counted
from .codes import CODED, CodedRows
from .errors import UserError
from .image import default_threads, list_images, type_label
from .model import TURNS, Model
from .search import top_rows

COMPARED = 20_000  # most references that are compared with each other: seconds on 2 cores; 1 M would take an hour


class Gallery:
    """Every readable image below `root` is a reference of the type that `type_label` gives it.

    `labels` are the T types, sorted; `bank` maps each to the features of its references, float32 `[R, D]`; `warnings` are
    lines about skipped files, labels that collide, and images that are registered twice. `gallery` is the device that
    searches the references: "cpu", or "cuda", see `search_cuda`. `progress`: show the progress on a terminal. `views` says
    what of an image is registered (`views.Views`; None: the image as it is); an image with two views has two references.
    `any_way_up`: each reference is registered four times, turned by 0, 90, 180 and 270 degrees; `bank` has the first.
    Raises UserError when there is nothing to register.
    """

    def __init__(self, root, model: Model, gallery: str = "cpu", progress: bool = False, views: Callable | None = None,
                 any_way_up: bool = False):
        files = list_images(root)
        turns = TURNS if any_way_up else 1
        features, digests, self.warnings = {}, {}, _label_collisions(files)  # features: of a file, (turns, D) for each view
        parts = model.stream([os.path.join(root, file) for file in files],
                             _turned(views or (lambda image: ([model.prepare(image)], None))) if any_way_up else views)
        for part in counted(parts, len(files), "registering", progress):
            for row in range(0, len(part.positions), turns):
                file, image = files[part.positions[row]], part.images[row]
                features.setdefault(file, []).append(part.features[row:row + turns])
                digests.setdefault(hashlib.sha256(image).digest(), {})[file] = None  # once, whatever its views
            self.warnings += [f"{files[position]}: {reason}; skipped" for position, reason in part.reasons.items()]
        if not features:
            why = f"none of its {len(files)} images can be read ({self.warnings[-1]})" if files else "no image in it"
            raise UserError(f"{root}: {why}; put an image of each type there")
        self.warnings += _same_images(digests.values())

        references = {}  # label: features
        for file, of_file in features.items():
            references.setdefault(type_label(file), []).extend(of_file)
        self._hold(references, turns, gallery)

    @classmethod
    def of(cls, references: dict[str, np.ndarray], turns: int = 1, gallery: str = "cpu") -> "Gallery":
        """Of features that are there already: {label: float32 `[R, turns, D]`}, R >= 1."""
        self = cls.__new__(cls)
        self.warnings = []
        self._hold(references, turns, gallery)
        return self

    def _hold(self, references, turns, gallery):
        self.labels = sorted(references)
        # (M, turns, D), the references of a type side by side, and (T,), the first reference of each type
        stacked = np.concatenate([references[label] for label in self.labels])
        self._starts = starts = np.cumsum([0] + [len(references[label]) for label in self.labels[:-1]])
        self._upright, self._turns = stacked[:, 0], turns
        self.bank = dict(zip(self.labels, np.split(self._upright, starts[1:])))
        rows = stacked.reshape(-1, stacked.shape[-1])
        self._search = searcher(rows, None if len(starts) == len(rows) else starts * turns, gallery)

    def top(self, features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores, types) of `search`."""
        return self.search(features, k)[:2]

    def search(self, features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """float32 `[N, D]` -> the best K = min(k, T) types, best first: scores (cos + 1) / 2, float32 `[N, K]`, indices in
        `labels`, int64 `[N, K]`, and by how many quarter turns clockwise their best reference was turned, int64 `[N, K]`.
        The score of a type is that of its best reference. Ties go to the first label.
        """
        cosines, types, rows = self._search(features, k)
        return np.clip((cosines + 1) / 2, 0, 1), types, rows % self._turns

    def look_alikes(self, threshold: float) -> list[tuple[str, str, float]] | None:
        """Pairs of types whose references could be mistaken for each other: (label, label, score), highest score first.

        Each reference, upright, is searched among all M references, in all their turns. Where the best one of another type
        scores `threshold` or more, the two types are a pair. Exact and in bounded memory, but M^2 D multiplications for each
        turn: None for more than COMPARED.
        """
        count = len(self._upright)
        if count > COMPARED:
            return None
        scores, types = self.top(self._upright, 2)  # (M, 2): the reference's own type, usually first, and another
        own = np.searchsorted(self._starts, np.arange(count), "right") - 1
        alike = {}
        for row, column in zip(*np.nonzero((types != own[:, None]) & (scores >= threshold))):
            pair = tuple(sorted((own[row], types[row, column])))
            alike[pair] = max(alike.get(pair, 0.0), float(scores[row, column]))
        return [(self.labels[first], self.labels[second], score)
                for (first, second), score in sorted(alike.items(), key=lambda item: (-item[1], item[0]))]


def _turned(views):
    """`views`, each of them turned by 0, 90, 180 and 270 degrees clockwise. Turning the resized image is resizing the turned
    image (`fitted_sides`)."""
    def four_of_each(image):
        squares, note = views(image)
        return [np.rot90(square, -turn) for square in squares for turn in range(TURNS)], note

    return four_of_each


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
    """A function (queries, k) -> `top_rows` of them among `references`. `gallery` "cpu" searches the array, with codes if it
    is large; "cuda" holds it on the GPU in bf16, which needs torch. Raises UserError for "cuda" where that, or a GPU, is
    missing.
    """
    if gallery == "cpu":
        if len(references) >= CODED:
            with contextlib.suppress(ValueError):  # numbers that have no codes
                return CodedRows(references, starts, default_threads()).top_rows
        return lambda queries, k: top_rows(queries, references, k, starts)
    if gallery != "cuda":
        raise UserError(f"gallery {gallery}: unknown; use cpu or cuda")
    try:
        from .search_cuda import CudaGallery
    except ImportError as error:
        raise UserError(f"gallery cuda: needs torch ({error}); install it, or use gallery cpu") from None
    return CudaGallery(references, starts).top_rows
