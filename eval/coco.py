"""Boxes and quads in images, out of a COCO file (https://cocodataset.org/#format-data)."""
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inference import boxes as on_boxes
from inference import quads as on_quads
from inference.errors import UserError, first_line
from inference.image import MAX_PIXELS

SLACK = 1.0  # pixels by which a box may lie beyond its image: tools round


class Boxes(NamedTuple):
    """The objects of an image of `width` x `height` pixels, upright: `boxes` float64 `[n,4]` (x0, y0, x1, y1) in pixels,
    from edge to edge, their `classes`, int64 `[n]`, and `quads`, float64 `[n,4,2]` as `inference.quads` has them, NaN for an
    object whose four corners the file does not say."""
    width: int
    height: int
    boxes: np.ndarray
    classes: np.ndarray
    quads: np.ndarray = np.zeros((0, 4, 2))

    def resized(self, size: int, fit: str) -> "Boxes":
        """The same objects in the resized image, `[size, size]`."""
        place = self.width, self.height, size, fit
        return Boxes(size, size, on_boxes.to_square(self.boxes, *place), self.classes,
                     on_quads.to_square(self.quads, *place))


def read_coco(file, names: list[str] | None = None) -> tuple[list[str], dict[str, Boxes]]:
    """(names of the classes, {file_name: its `Boxes`}) of a COCO file. An image without annotations shows no object.

    It needs `images` (id, file_name, width, height), `categories` (id, name) and `annotations` (image_id, category_id,
    bbox: left, top, width, height in pixels). An annotation whose `segmentation` is one convex polygon of four points has a
    quad; its corners may lie outside of the image. Crowds (iscrowd) are skipped. Classes are numbered in the order of the
    categories' ids; or as `names`, those of a network, has them. Raises UserError with the file, and what is wrong there.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({getattr(error, 'strerror', None) or first_line(error)}); "
                        "give a COCO file") from None
    images, categories = ({entry["id"]: entry for entry in _entries(file, content, kind, keys)} for kind, keys in (
        ("images", {"id": int, "file_name": str, "width": int, "height": int}), ("categories", {"id": int, "name": str})))
    labels = [categories[number]["name"] for number in sorted(categories)]
    if not labels or len(set(labels)) < len(labels):
        raise UserError(f"{file}: categories: " + ("one name twice; each must have its own" if labels else "there are none"))
    unknown = sorted(set(labels) - set(labels if names is None else names))
    if unknown:
        raise UserError(f"{file}: categories: {unknown[0]!r} is none of the network's classes ({', '.join(names)}); "
                        "rename it or take it out")
    labels = names or labels
    number = {category: labels.index(entry["name"]) for category, entry in categories.items()}

    found = {image: ([], [], []) for image in images}
    for at, entry in enumerate(_entries(file, content, "annotations", {"image_id": int, "category_id": int, "bbox": list})):
        where = f"{file}: annotations[{at}]"
        if entry["image_id"] not in images or entry["category_id"] not in number:
            key = "image_id" if entry["image_id"] not in images else "category_id"
            raise UserError(f"{where}: {key} {entry[key]} is not in the file; was it cut out of a larger one?")
        if entry.get("iscrowd"):
            continue
        boxes, classes, quads = found[entry["image_id"]]
        boxes.append(_box(where, entry["bbox"], images[entry["image_id"]]))
        classes.append(number[entry["category_id"]])
        quads.append(_quad(entry.get("segmentation")))
    boxes = {}
    for image, entry in images.items():
        if not 0 < entry["width"] * entry["height"] <= MAX_PIXELS or entry["width"] < 0:
            raise UserError(f"{file}: images: {entry['file_name']} cannot be {entry['width']} x {entry['height']} pixels")
        if entry["file_name"] in boxes:
            raise UserError(f"{file}: images: {entry['file_name']} twice; put its boxes under one id")
        boxes[entry["file_name"]] = Boxes(entry["width"], entry["height"], np.array(found[image][0], float).reshape(-1, 4),
                                          np.array(found[image][1], np.int64),
                                          np.array(found[image][2], float).reshape(-1, 4, 2))
    return labels, boxes


def _entries(file, content, kind: str, keys: dict[str, type]) -> list[dict]:
    """The list `kind`, each of whose entries has `keys` of their types."""
    entries = content.get(kind) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"{file}: has no list {kind}; give a COCO file")
    for at, entry in enumerate(entries):
        for key, kind_of in keys.items():
            if not isinstance(entry, dict) or type(entry.get(key)) is not kind_of:
                raise UserError(f"{file}: {kind}[{at}] has no {key}, or not as {kind_of.__name__}; give a COCO file")
    if "id" in keys and len({entry["id"] for entry in entries}) < len(entries):
        raise UserError(f"{file}: {kind}: one id twice; each must have its own")
    return entries


def _box(where: str, bbox: list, image: dict) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1), clipped to its image."""
    width, height = image["width"], image["height"]
    if len(bbox) != 4 or not all(type(number) in (int, float) for number in bbox):
        raise UserError(f"{where}: bbox {bbox} is not four numbers: left, top, width, height")
    left, top, wide, high = bbox
    if not (wide > 0 and high > 0):
        raise UserError(f"{where}: bbox {bbox} has no area; take it out")
    if not (left >= -SLACK and top >= -SLACK and left + wide <= width + SLACK and top + high <= height + SLACK):
        raise UserError(f"{where}: bbox {bbox} lies outside its image {image['file_name']} of {width} x {height} pixels; "
                        "boxes are left, top, width, height in pixels of the upright image")
    return max(left, 0), max(top, 0), min(left + wide, width), min(top + high, height)


def _quad(polygons) -> np.ndarray:
    """The corners `[4,2]` of an annotation's `segmentation`; NaN where it is anything but one convex polygon of four."""
    try:
        quad = on_quads.ordered(np.array(polygons, float).reshape(4, 2))
    except (ValueError, TypeError):  # run-length encoding, several polygons, other things than numbers
        quad = np.full((4, 2), np.nan)
    return quad if on_quads.is_quad(quad) else np.full((4, 2), np.nan)
