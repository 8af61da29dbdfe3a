"""Evaluate a model on a folder, and the thumbnail baseline on the same images."""
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from eval.folder import Item, find_images, read_images
from eval.gallery import Identification, identify
from eval.open_set import OpenSet
from eval.pairs import FPRS, Pair, Verification, count_pairs, fixed_point, measure
from eval.thumbnail import thumbnail, turned
from inference.errors import UserError, printable
from inference.image import fit_square, load_image

WORST = 20      # false matches, and missed matches, kept for the report


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate_folder`. `as_dict()` is for JSON, `table()` for reading."""
    folder: str
    items: list[Item]                       # the images used, sorted by name
    labels: np.ndarray                      # int64 [N]: index into `types`
    types: list[str]
    unreadable: list[tuple[str, str]]       # (path below the folder, reason)
    views: np.ndarray                       # float32 [V, N, D]: the embeddings of the views of each image, see `pairs`
    upright: int                            # the first so many views are not turned
    verification: Verification
    identification: Identification
    false_matches: list[Pair]               # the highest-scoring pairs of two types, worst first
    missed_matches: list[Pair]              # the lowest-scoring pairs of one type, worst first
    baseline: tuple[Verification, Identification] | None
    thumbnails: np.ndarray | None           # float32 [V, N, 768], what the baseline compares
    load: Callable[[Item], list] | None     # the argument of `evaluate_folder`
    open_set: OpenSet | None = None         # where it was measured

    @property
    def embeddings(self):
        """float32 [N, D]: the last view that is not turned of each image: the document, where one was found in a photo."""
        return self.views[self.upright - 1]

    def as_dict(self):
        """For JSON: auroc, tpr_at_fpr, thresholds, pairs, too_few_negatives, top1 (a share) and its protocol, images, types,
        references, unreadable, `baseline` with the same metrics (null when it was not measured), and `open_set` where it was
        measured, see `OpenSet.as_dict`."""
        baseline = self.baseline and {**self.baseline[0].as_dict(), **self.baseline[1].as_dict()}
        return {**self.verification.as_dict(), **self.identification.as_dict(),
                "images": len(self.items), "types": len(self.types),
                "references": sum(item.is_reference for item in self.items),
                "unreadable": [{"file": name, "reason": reason} for name, reason in self.unreadable],
                "data": self.folder, "baseline": baseline,
                **({"open_set": self.open_set.as_dict()} if self.open_set else {})}

    def rows(self):
        """The table as strings: (metric, model, model's threshold, baseline, baseline's threshold)."""
        def column(verification, identification):
            yield f"{verification.auroc:.4f}", ""
            for name in FPRS:
                yield f"{verification.tpr_at_fpr[name]:.4f}", f"{verification.thresholds[name]:.4f}"
            yield f"{identification.top1:.4f}", ""

        names = ["AUROC", *(f"TPR at FPR {name}" for name in FPRS), "top-1"]
        model = column(self.verification, self.identification)
        baseline = column(*self.baseline) if self.baseline else [("", "")] * len(names)
        return [(name, *m, *b) for name, m, b in zip(names, model, baseline)]

    def notes(self):
        """What a reader of the table must know, one string per line."""
        v, one_to_n = self.verification, self.identification
        notes = [f"{len(self.items):,} images of {len(self.types):,} types; all {v.positive:,} pairs of one type and all "
                 f"{v.negative:,} pairs of two types. Score = (cos + 1) / 2."]
        how = {"references": f"against {one_to_n.gallery:,} references", "leave-one-out": "leave-one-out"}
        notes.append(f"top-1: {one_to_n.queries:,} queries {how[one_to_n.protocol]}"
                     + (f"; {one_to_n.excluded:,} images are excluded, since no other image of their type can be found."
                        if one_to_n.excluded else "."))
        if self.load:
            notes.append("Compared are the documents found in the images, or both (then the better score counts).")
        if self.upright < len(self.views):
            notes.append("A pair's score is the best of the four turns of one of its images.")
        if few := [name for name in v.too_few_negatives if name in FPRS]:
            notes.append(f"Too few negative pairs for FPR {', '.join(few)}: there the threshold is just "
                         "above the highest negative score.")
        if self.open_set:
            notes.append(self.open_set.note())
        if self.unreadable:
            notes.append(f"{len(self.unreadable):,} unreadable files skipped: "
                         + "; ".join(printable(f"{name} ({reason})") for name, reason in self.unreadable[:10])
                         + ("; ..." if len(self.unreadable) > 10 else ""))
        return notes

    def table(self):
        """The notes and the numbers as plain text."""
        head = ("", "model", "threshold") + (("thumbnail", "threshold") if self.baseline else ())
        lines = [f"{row[0]:<16}" + "".join(f"{cell:>12}" for cell in row[1:len(head)])
                 for row in [head, *self.rows()]]
        return "\n".join([printable(self.folder), *self.notes(), "", *lines])


def evaluate_folder(embed, folder, image_size, batch_size=64, progress=True, baseline=True, fit="squash", load=None,
                    orientation="upright"):
    """Evaluate `embed` on DIR/<type>/*.jpg: verification over all pairs, and 1:N identification; see `Evaluation`.

    embed: uint8 RGB [B, S, S, 3], S = image_size, C-contiguous -> float [B, D], of any length (only cosines are used).
    baseline: also measure the thumbnail, on the same decoded images (large JPEGs at twice S or more, see `decode`).
    progress: a progress bar on stderr if that is a terminal. fit: how an image is resized, see `inference.image.fit_square`.
    load: an `Item` -> list of one or more BGR images, of which the best counts in a comparison, see `eval.find`; None: the
    image file. orientation: "any" also compares the four turns of one image of a pair, and those of each reference.
    Raises UserError when the folder cannot be evaluated (missing, empty, only one type, no two images of one type) or when
    an embedding is not finite. Unreadable files are skipped and listed with the reason.
    """
    items = find_images(folder)
    turns = {"upright": 1, "any": 4}[orientation]

    def prepare(images):
        squares = [fit_square(image, image_size, fit)[..., ::-1] for image in images]
        thumbnails = [thumbnail(image) for image in images] if baseline else []
        return ([np.ascontiguousarray(np.rot90(square, turn)) for turn in range(turns) for square in squares],
                [turned(flat, turn) for turn in range(turns) for flat in thumbnails])

    used, unreadable, counts, embeddings, thumbnails, batch = [], [], [], [], [], []

    def flush(most=0):
        while len(batch) > most:
            embeddings.append(np.asarray(embed(np.stack(batch[:batch_size])), dtype=np.float32))
            del batch[:batch_size]

    images = read_images(items, prepare, ahead=2 * batch_size,  # decoded as in `classify`, for the same scores
                         load=load or (lambda item: [load_image(item.path, image_size)]))
    for item, views, reason in tqdm(images, "embed", len(items), unit="img", disable=None if progress else True):
        if reason is not None:
            unreadable.append((item.name, reason))
            continue
        used.append(item)
        batch += views[0]
        counts.append(len(views[0]))
        thumbnails += views[1]
        flush(batch_size - 1)
    flush()

    types, labels = _labels(folder, used, unreadable)
    embeddings = _by_view(np.concatenate(embeddings), counts, turns)
    _check_finite(embeddings, used)
    is_reference = np.array([item.is_reference for item in used])
    thumbnails = _by_view(np.stack(thumbnails), counts, turns) if baseline else None
    upright = len(embeddings) // turns
    verification, identification, worst = _metrics(embeddings, labels, is_reference, upright, WORST)
    return Evaluation(
        folder=str(folder), items=used, labels=labels, types=types, unreadable=unreadable, views=embeddings, upright=upright,
        verification=verification, identification=identification,
        false_matches=worst[0], missed_matches=worst[1],
        baseline=_metrics(thumbnails, labels, is_reference, upright)[:2] if baseline else None, thumbnails=thumbnails,
        load=load)


def _by_view(vectors, counts, turns):
    """[sum(counts), D], the views of an image side by side, first by turn -> [V, N, D]; V is turns times the most views.

    An image with fewer views than others has its first one twice.
    """
    first = np.cumsum([0, *counts[:-1]])
    each = np.array(counts) // turns                     # [N]
    rows = [first + turn * each + np.where(view < each, view, 0) for turn in range(turns) for view in range(each.max())]
    return vectors[np.stack(rows)]


def _metrics(views, labels, is_reference, upright, worst=0):
    """Verification, Identification, and the two lists of worst pairs. The large histograms are freed on return."""
    points = fixed_point(views)
    counts = count_pairs(points, labels, worst, upright=upright)
    return (measure(counts), identify(points, labels, is_reference, upright=upright),
            (counts.false_matches, counts.missed_matches))


def _labels(folder, items, unreadable):
    """Sorted type names and the int64 label of each item; UserError when there is nothing to compare."""
    skipped = f" ({len(unreadable)} unreadable, e.g. {': '.join(unreadable[0])})" if unreadable else ""
    if len(items) < 2:
        raise UserError(f"{folder}: {len(items)} readable images{skipped}; give at least two types with two images each")
    types, labels = np.unique([item.type for item in items], return_inverse=True)
    if len(types) == 1:
        raise UserError(f"{folder}: all images are of one type, {str(types[0])!r}{skipped}, so there is no negative pair; "
                        "give the folder above it, with one folder per type")
    if len(types) == len(items):
        raise UserError(f"{folder}: no two images of one type{skipped}, so there is no positive pair; put the images "
                        f"of one type into one folder, {Path(folder).as_posix()}/<type>/*.jpg")
    return types.tolist(), labels


def _check_finite(embeddings, items):
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=(0, 2)))
    if len(bad):
        raise UserError(f"{items[bad[0]].path}: the model's embedding is not finite (nor for {len(bad) - 1} other images); "
                        "use an earlier checkpoint, or train with a lower learning rate")
