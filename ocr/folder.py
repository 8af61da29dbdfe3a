"""A folder of text lines: images, their text in `lines.tsv`, and the boxes of the characters in `coco.json` if there is one.

`lines.tsv`: UTF-8, columns separated by tabs, no quoting, a header with at least `file` and `text`; further columns, such as
`book`, can be selected by. `file` is a path below `images/`, or below the folder, or absolute.

`coco.json`: images {id, file_name, width, height, text}, categories "char" and "word", annotations {id, image_id,
category_id, bbox [x, y, w, h]} in pixels. The char boxes of an image, sorted along the line, belong to the characters of its
text without the spaces, one by one. An image with `"vertical": true` is a line that runs from top to bottom.
"""
import contextlib
import json
import logging
import os
import shutil
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inference.errors import UserError, first_line

LINES, COCO, IMAGES = "lines.tsv", "coco.json", "images"
FARTHEST = 2**31  # pixels: no image is as large
log = logging.getLogger(__name__)


class Line(NamedTuple):
    file: str  # as lines.tsv names it
    path: Path
    text: str  # as typed: not normalized
    boxes: np.ndarray | None  # float32 [n,4], x0 y0 x1 y1 in pixels, of the n characters that are not white space
    fields: dict[str, str]  # the further columns


def read_lines(folder, where: str = "", count: int = 0, seed: int = 0, with_boxes: bool = True) -> list[Line]:
    """The lines of a folder, in the order of its `lines.tsv`.

    where: `COLUMN=V[,V...]` or `COLUMN!=V[,V...]` selects lines by a column. count: if not 0, so many lines at random by
    `seed`; a smaller count selects a part of what a larger one selects. with_boxes: False does not look for boxes. A line
    whose boxes do not match its text, or have no area, has boxes None, and the log tells how many there are. Raises
    UserError for a missing folder, header, column or image, for no lines, for a file that is listed twice, and for JSON that
    is not such a COCO file.
    """
    folder = Path(folder)
    rows = _select(folder, _rows(folder), where)
    if count < 0:
        raise UserError(f"--count {count}: give the number of lines, or 0 for all")
    if count and count < len(rows):
        rows = [rows[i] for i in sorted(shuffled(len(rows), seed)[:count])]
    boxes_of = char_boxes(folder) if with_boxes else {}
    lines, unmatched = [], 0
    for row in rows:
        file, text = row.pop("file"), row.pop("text")
        boxes = boxes_of.get(image_key(file))
        if boxes is not None and (len(boxes) != len("".join(text.split())) or not _have_area(boxes)):
            boxes, unmatched = None, unmatched + 1
        lines.append(Line(file, _path(folder, file), text, boxes, row))
    if unmatched:
        log.warning("%s: %d of %d lines have more or fewer boxes than characters, or a box without area; their boxes are "
                    "not used", folder, unmatched, len(lines))
    return lines


def add_selection(parser) -> None:
    """The options that choose lines of a folder, as `read_lines` takes them."""
    parser.add_argument("--where", default="", metavar="COLUMN=V[,V]", help="only the lines with one of these values in a "
                                                                            "column of lines.tsv; or != for all others")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="so many lines at random (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers from 0 to count - 1 in random order. Raises UserError for a seed below 0."""
    if seed < 0:
        raise UserError(f"--seed {seed}: give a number from 0 on")
    return np.random.default_rng(seed).permutation(count).tolist()


@contextlib.contextmanager
def new_folder(path):
    """`with new_folder(path) as part:` gives a folder to write to, which becomes `path` when the block ends without an
    exception. Raises UserError when there is something at `path`, or the system does not allow it."""
    path = Path(os.path.abspath(path))
    part = path.with_name(f".{path.name}.partial")
    try:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise UserError(f"{path}: exists already and is not overwritten; give another name or remove it")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if path.exists():
            path.rmdir()
        part.rename(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); its folder must be writable and have room") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def char_boxes(folder) -> dict[str, np.ndarray]:
    """{file below images/: boxes float32 [n,4] x0 y0 x1 y1, sorted along the line}, of the images in `coco.json` that have
    char boxes; empty without that file. Raises UserError for another content."""
    path = Path(folder) / COCO
    if not path.exists():
        return {}
    try:
        found = {}  # (image, category): the numbers of its boxes, since a million annotations would be a gigabyte as dicts

        def keep(entry):
            if "bbox" not in entry:
                return entry
            x, y, w, h = map(float, entry["bbox"])
            found.setdefault((entry["image_id"], entry["category_id"]), array("f")).extend((x, y, x + w, y + h))

        coco = json.loads(path.read_text(encoding="utf-8"), object_hook=keep)
        if not isinstance(coco["annotations"], list):
            raise TypeError("annotations is not a list")
        images = {image["id"]: (image_key(image["file_name"]), bool(image.get("vertical"))) for image in coco["images"]}
        if len({file for file, _ in images.values()}) < len(coco["images"]):
            raise ValueError("two images have one id or one file_name")
        chars = {category["id"] for category in coco["categories"] if category["name"] == "char"}
        found = {images[image]: boxes for (image, category), boxes in found.items() if category in chars}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: not a COCO file of lines ({type(error).__name__}: {first_line(error)}); repair or remove "
                        "it") from None
    result = {}
    for (file, vertical), boxes in found.items():
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        # By the centers: the left edges of two italic letters may lie in the other order.
        result[file] = boxes[np.argsort(boxes[:, vertical::2].sum(1), kind="stable")]
    return result


def _rows(folder):
    """The rows of `lines.tsv` as dicts."""
    path = folder / LINES
    try:
        header, *lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(f"{path}: cannot be read ({reason}); a folder of lines has images and {LINES} with the columns file "
                        "and text") from None
    columns = header.rstrip("\r").split("\t")
    for needed in ("file", "text"):
        if needed not in columns:
            raise UserError(f"{path}: no column {needed!r} in its first line; write file and text there, with a tab between")
    rows, seen = [], set()
    for number, line in enumerate(lines, 2):
        line = line.rstrip("\r")
        if not line:
            continue
        values = line.split("\t")
        if len(values) != len(columns):
            raise UserError(f"{path}: line {number} has {len(values)} columns and the header {len(columns)}; "
                            "separate them by single tabs")
        row = dict(zip(columns, values))
        if image_key(row["file"]) in seen:
            raise UserError(f"{path}: line {number} lists {row['file']} again; remove one of the two")
        seen.add(image_key(row["file"]))
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: no lines below its header")
    return rows


def _select(folder, rows, where):
    if not where:
        return rows
    column, separator, values = where.partition("=")
    if not separator:
        raise UserError(f"{where!r}: select lines by COLUMN=VALUE or COLUMN!=VALUE, several values with a comma between")
    column, other = column.removesuffix("!"), column.endswith("!")
    if column not in rows[0]:
        raise UserError(f"{folder / LINES}: no column {column!r}; it has {', '.join(rows[0])}")
    chosen = [row for row in rows if (row[column] in values.split(",")) != other]
    if not chosen:
        known = sorted({row[column] for row in rows})
        raise UserError(f"{folder / LINES}: no line with {where}; {column} is one of {', '.join(known[:8])}"
                        f"{', ...' if len(known) > 8 else ''}")
    return chosen


def _path(folder, file):
    """The path of an image; an absolute `file` replaces the folder."""
    for path in (folder / IMAGES / file, folder / file):
        if os.path.isfile(path):  # unlike Path's, False for a name that no file can have
            return path
    raise UserError(f"{folder / LINES}: the image {file} is neither in {folder / IMAGES} nor in {folder}")


def _have_area(boxes):
    """Whether all boxes can be those of ink: finite, and with a width and a height."""
    return bool((np.abs(boxes) < FARTHEST).all() and (boxes[:, :2] < boxes[:, 2:]).all())


def image_key(file: str) -> str:
    """The name by which `lines.tsv` and `coco.json` agree on an image."""
    return Path(file).as_posix().removeprefix(IMAGES + "/")
