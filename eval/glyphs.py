"""Recognition of single characters or words, zero-shot: crops compared with reference glyphs, such as one font's renders.

    python -m eval --model GLYPHS.onnx --references RENDERS --data CROPS --report DIR

Both folders have a folder for each class, CLASS/*.png. A crop whose class has no reference cannot be recognized and counts
as wrong; `coverage` is the share of the others. The report's folder gets what a reader of lines needs, and what a person
wants to look at: index.npz, references.json, look_alikes.txt, nearest.png and metrics.json.
"""
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from eval.folder import Item, find_images, read_images
from eval.page import make_folder, writing
from inference.crops import class_text
from inference.errors import UserError, printable
from inference.files import replacing
from inference.glyph_index import GlyphIndex, probe_of
from inference.image import fit_square, load_image
from inference.search import top_rows

NEAREST = 8       # look-alikes of a class, and references of a crop in the picture
CONFUSIONS = 30   # of two classes, the most frequent
PICTURED = 40     # crops
CELL = 64         # pixels, of the picture
BATCH = 256


@dataclass(frozen=True)
class GlyphEvaluation:
    """Of N crops and M references, the latter ordered by class; see `as_dict`."""
    data: str
    references: str
    crops: list[Item]
    gallery: list[Item]
    features: np.ndarray       # float32 [M, D] of the references, of length 1
    probe: np.ndarray          # see `inference.glyph_index.probe_of`
    nearest: np.ndarray        # int64 [N, K]: rows of the gallery, the best of each of the K nearest classes
    unreadable: list[tuple[str, str]]

    @property
    def right(self) -> np.ndarray:
        """bool [N]"""
        return np.array([crop.type == self.gallery[row].type for crop, row in zip(self.crops, self.nearest[:, 0])])

    @property
    def top1(self) -> float:
        return float(self.right.mean())

    @property
    def covered(self) -> np.ndarray:
        """bool [N]: which crops have a class with a reference."""
        known = {item.type for item in self.gallery}
        return np.array([crop.type in known for crop in self.crops])

    @property
    def coverage(self) -> float:
        return float(self.covered.mean())

    def as_dict(self) -> dict:
        """For JSON. top1: share of the crops that are recognized, those without a reference counted as wrong; top1_covered:
        of those with one; missing: {class without a reference: crops}; confusions: [class, taken for, crops]."""
        right, covered = self.right, self.covered
        wrong = Counter((crop.type, self.gallery[row].type) for crop, row, is_right
                        in zip(self.crops, self.nearest[:, 0], right) if not is_right)
        missing = Counter(crop.type for crop, known in zip(self.crops, covered) if not known)
        return {"top1": self.top1, "coverage": self.coverage,
                "top1_covered": float(right[covered].mean()) if covered.any() else None,
                "crops": len(self.crops), "references": len(self.gallery),
                "classes": len({item.type for item in self.gallery}), "missing": dict(sorted(missing.items())),
                "confusions": [[*pair, count] for pair, count in wrong.most_common(CONFUSIONS)],
                "unreadable": [{"file": name, "reason": reason} for name, reason in self.unreadable],
                "data": self.data, "references_folder": self.references}

    def table(self) -> str:
        found = self.as_dict()
        lines = [printable(f"{self.data} against {self.references}"),
                 f"{found['crops']:,} crops; {found['references']:,} references of {found['classes']:,} classes",
                 f"top-1     {found['top1']:.4f}", f"coverage  {found['coverage']:.4f}"]
        if found["missing"]:
            lines.append(f"{len(found['missing'])} classes have no reference; their crops count as wrong: "
                         + ", ".join(map(_shown, list(found["missing"])[:20])))
        lines += [f"{_shown(one)} taken for {_shown(other)}: {count}" for one, other, count in found["confusions"][:10]]
        return "\n".join(lines)


def evaluate_glyphs(embed: Callable, references, data, size: int, fit: str = "pad") -> GlyphEvaluation:
    """Recognize each crop below `data` by the nearest of the references below `references`.

    embed: uint8 RGB [B, size, size, 3] -> float [B, D], of any length. Raises UserError for a folder without usable images,
    and for embeddings that are not finite.
    """
    unreadable = []
    gallery, features = _embedded(embed, references, size, fit, unreadable)
    crops, queries = _embedded(embed, data, size, fit, unreadable)
    order = sorted(range(len(gallery)), key=lambda i: gallery[i].type)      # `top_rows` wants the rows of a class together
    gallery, features = [gallery[i] for i in order], features[order]
    starts = [i for i in range(len(gallery)) if i == 0 or gallery[i].type != gallery[i - 1].type]
    rows = top_rows(queries, features, NEAREST, np.array(starts))[2]
    return GlyphEvaluation(str(data), str(references), crops, gallery, features, probe_of(embed, size), rows, unreadable)


def _embedded(embed, folder, size, fit, unreadable):
    """(the usable images below a folder, their features of length 1)."""
    used, pixels, features = [], [], []

    def flush(least):
        while len(pixels) > least:
            features.append(np.asarray(embed(np.stack(pixels[:BATCH])), np.float32))
            del pixels[:BATCH]

    def prepare(image):
        return np.ascontiguousarray(fit_square(image, size, fit)[..., ::-1])

    for item, square, reason in read_images(find_images(folder), prepare, ahead=2 * BATCH, for_size=size):
        if reason is not None:
            unreadable.append((item.name, reason))
            continue
        used.append(item)
        pixels.append(square)
        flush(BATCH - 1)
    flush(0)
    if not used:
        raise UserError(f"{folder}: none of its images can be used ({': '.join(unreadable[-1])})")
    features = np.concatenate(features)
    if not np.isfinite(features).all():
        raise UserError("the model's embeddings are not finite; use an earlier checkpoint, or a lower learning rate")
    return used, features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


# ---------------------------------------------------------------- artifacts
def write_artifacts(folder, found: GlyphEvaluation) -> None:
    """Write the files named above into `folder`. Raises UserError for classes that are not named by code points."""
    folder = Path(folder)
    make_folder(folder)
    try:
        texts = [class_text(item.type) for item in found.gallery]
    except ValueError as error:
        raise UserError(f"{found.references}: {error}") from None
    GlyphIndex(texts, found.features, found.probe).save(folder / "index.npz")
    listed = [{"text": text, "class": item.type, "file": item.name} for text, item in zip(texts, found.gallery)]
    with writing(folder):
        _write(folder / "references.json", json.dumps(listed, indent=0, ensure_ascii=False))
        _write(folder / "metrics.json", json.dumps(found.as_dict(), indent=1))
        with replacing(folder / "nearest.png") as partial:
            partial.write_bytes(cv2.imencode(".png", picture(found))[1].tobytes())
    write_look_alikes(folder / "look_alikes.txt", found)


def write_look_alikes(file, found: GlyphEvaluation, labels: list[str] | None = None) -> None:
    """A line for each class: its label and those of the NEAREST classes that look most like it, the nearest first, with tabs
    between: what `sampler=hard_negatives look_alikes=FILE` reads. Classes are compared by the mean of their references.
    labels: those to write; None: all."""
    types = sorted({item.type for item in found.gallery} & set(labels if labels is not None else (
        item.type for item in found.gallery)))
    number = {name: i for i, name in enumerate(types)}
    sums = np.zeros((len(types), found.features.shape[1]))
    for item, feature in zip(found.gallery, found.features):
        if item.type in number:
            sums[number[item.type]] += feature
    mean = np.float32(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12))
    lines = []
    if types:
        alike = top_rows(mean, mean, NEAREST + 1)[1]
        lines = ["\t".join([name, *[types[other] for other in row if other != i][:NEAREST]])
                 for i, (name, row) in enumerate(zip(types, alike))]
    _write(file, "".join(f"{line}\n" for line in lines))


def picture(found: GlyphEvaluation) -> np.ndarray:
    """uint8 BGR: a row for each of PICTURED crops, the wrong ones first, with the crop and the nearest references of the
    NEAREST classes. A frame is green where the class is the crop's; below is the name of the class's folder. Half of the
    crops are wrong ones, where there are as many of both; each half is spread over the classes."""
    wrong, right = np.flatnonzero(~found.right), np.flatnonzero(found.right)
    count = min(len(wrong), max(PICTURED // 2, PICTURED - len(right)))
    rows = []
    for n in [*_spread(wrong, count), *_spread(right, PICTURED - count)]:
        crop = found.crops[n]
        cells = [_cell(crop, (160, 160, 160))]
        cells += [_cell(item, (60, 160, 60) if item.type == crop.type else (60, 60, 220))
                  for item in (found.gallery[row] for row in found.nearest[n])]
        rows.append(np.concatenate(cells, 1))
    return np.concatenate(rows)


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """`count` of `rows` at even distances, or all."""
    return rows[np.linspace(0, len(rows) - 1, count).astype(int)] if count < len(rows) else rows


def _cell(item: Item, color) -> np.ndarray:
    cell = np.full((CELL + 14, CELL, 3), 255, np.uint8)
    cell[:CELL] = fit_square(load_image(item.path, CELL), CELL, "pad")
    cv2.rectangle(cell, (0, 0), (CELL - 1, CELL - 1), color, 2)
    name = item.type.encode("ascii", "replace").decode()
    cv2.putText(cell, name[:12], (2, CELL + 11), cv2.FONT_HERSHEY_SIMPLEX, 0.33, (60, 60, 60), 1, cv2.LINE_AA)
    return cell


def _write(file, text: str) -> None:
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8")


def _shown(label: str) -> str:
    """A class for a person: its character where the folder's name is its code point."""
    try:
        return printable(repr(class_text(label)))
    except ValueError:
        return printable(label)
