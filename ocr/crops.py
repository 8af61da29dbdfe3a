"""Cut characters or words out of lines whose boxes are known: one folder for each class, to train a recognizer on.

    python -m ocr crops LINES --out DIR                          # a folder of lines with coco.json
    python -m ocr crops LINES --out DIR --where book=a --crop line
    python -m ocr crops --coco F.json --images DIR --out DIR2    # a COCO file whose images have "text"
    python -m ocr crops LINES --out DIR --words                  # a class is a word

A class's folder is named by its decimal code point (A: 65), a word's by those of its characters (an: 97-110). DIR/crops.tsv
has a row for each crop: file, text, source (the line's image) and box (x0 y0 x1 y1 in pixels of that image). To divide crops
for training and evaluation, divide their sources: crops of one line look alike.

The boxes of a line, in order along it, belong to the characters of its text without the spaces, one by one. A line where the
numbers differ is reported and skipped. Crops of a vertical line show its characters upright, as the image has them.
"""
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from inference.cli import Parser
from inference.crops import KINDS, PAD, class_folder, crop
from inference.errors import UserError, printable
from inference.image import MAX_INPUT, ImageError, load_image, map_ahead
from ocr.coco import CHAR, Skipped, is_box, load
from ocr.folder import COCO, add_selection, image_key, new_folder, read_lines

TABLE = "crops.tsv"


class Boxed(NamedTuple):
    """A line with the box of each character: `boxes` float64 `[n,4]`, x0 y0 x1 y1 in pixels, in order along the line."""
    source: str
    path: Path
    text: str
    boxes: np.ndarray
    vertical: bool


# ---------------------------------------------------------------- lines with boxes
def lines_of_coco(file, images, vertical: bool = False) -> tuple[list[Boxed], Skipped]:
    """(lines with one box for each character, those without) of a COCO file, whose images lie below the folder `images`.
    vertical: all of the lines run from top to bottom, and not only those whose image says so. Raises UserError."""
    content = load(file)
    return _boxed(content, [(entry["file_name"], Path(images, entry["file_name"]), entry.get("text"), entry)
                            for entry in content["images"]], vertical)


def lines_of_folder(folder, where: str = "", count: int = 0, seed: int = 0,
                    vertical: bool = False) -> tuple[list[Boxed], Skipped]:
    """The same of a folder of lines, with the texts of its lines.tsv; the options as `read_lines` has them."""
    file = Path(folder, COCO)
    lines = read_lines(folder, where, count, seed, with_boxes=False)
    if not file.exists():
        raise UserError(f"{file}: no such file, so no boxes are known; `python -m ocr align` finds those of transcribed "
                        "lines")
    content = load(file)
    listed = {image_key(entry["file_name"]): entry for entry in content["images"]}
    return _boxed(content, [(line.file, line.path, line.text, listed.get(image_key(line.file))) for line in lines], vertical)


def _boxed(content: dict, lines, vertical: bool):
    """(lines, skipped); `lines`: the source, the path, the text, and the entry among the images of each."""
    chars = {entry["id"] for entry in content["categories"] if entry["name"] == CHAR}
    bboxes = {}
    for entry in content["annotations"]:
        if entry["category_id"] in chars:
            bboxes.setdefault(entry["image_id"], []).append(entry.get("bbox"))
    found, skipped = [], Skipped()
    for source, path, text, entry in lines:
        own = bboxes.get(entry["id"], []) if entry else []
        if not isinstance(text, str) or not text.strip():
            skipped.add("lines without text", source)
        elif not own:
            skipped.add("lines without boxes", source)
        elif not all(map(is_box, own)):
            skipped.add("lines with a box that is not left, top, width and height", source)
        elif len(own) != len("".join(text.split())):
            skipped.add("lines whose numbers of boxes and of characters differ",
                        f"{source}: {len(own)} and {len(''.join(text.split()))}")
        else:
            down = vertical or bool(entry.get("vertical"))
            boxes = np.array(own, float)
            boxes[:, 2:] += boxes[:, :2]
            # By the centers: the left edges of two italic letters may lie in the other order.
            found.append(Boxed(source, path, text, boxes[np.argsort(boxes[:, down::2].sum(1), kind="stable")], down))
    return found, skipped


# ---------------------------------------------------------------- what is cut out of a line
def characters_of(line: Boxed, spaces: bool = False) -> Iterator[tuple[str, np.ndarray]]:
    """(character, box) along the line; with `spaces`, what lies between two words is a character too, " ", unless they
    touch. Its box is the middle half of the gap, so that no ink is near, and as high as the line's characters."""
    low, high = line.boxes[:, :2].min(0), line.boxes[:, 2:].max(0)
    at, along = 0, int(line.vertical)
    for word in line.text.split():
        if spaces and at and line.boxes[at - 1, 2 + along] < line.boxes[at, along]:
            gap = np.concatenate([low, high])
            gap[along::2] = np.array([[.75, .25], [.25, .75]]) @ [line.boxes[at - 1, 2 + along], line.boxes[at, along]]
            yield " ", gap
        yield from zip(word, line.boxes[at:])
        at += len(word)


def words_of(line: Boxed) -> Iterator[tuple[str, np.ndarray]]:
    """(word, box) along the line: the box around those of its characters."""
    at = 0
    for word in line.text.split():
        own = line.boxes[at:at + len(word)]
        yield word, np.concatenate([own[:, :2].min(0), own[:, 2:].max(0)])
        at += len(word)


def write_crops(lines: list[Boxed], out, cut, kind: str = "tight", size: int = 64,
                pad: float = PAD) -> tuple[int, int, Skipped]:
    """Write what `cut` (`characters_of`, `words_of`) finds in the lines into the new folder `out`; kind, size and pad as
    `inference.crops.crop` has them. Returns (crops, classes, what was skipped). Raises UserError: for a folder that has
    something in it, or when there is nothing to cut."""
    skipped, classes, rows = Skipped(), set(), []
    with new_folder(out) as part:
        def write(job):
            number, line = job
            try:
                image = load_image(line.path)
            except ImageError as error:
                return [], [("images that cannot be used", f"{line.source}: {error}")]
            written, lost = [], []
            for place, (text, box) in enumerate(cut(line)):
                try:
                    file = f"{class_folder(text)}/{number:06d}_{place:03d}.png"
                    pixels = crop(image, box, kind, size, pad, line.vertical)
                except ValueError as error:  # no pixel of the image is in the box, or the word is too long for a folder
                    lost.append(("crops that cannot be made", f"{line.source}, {text!r}: {error}"))
                    continue
                Path(part, file).parent.mkdir(exist_ok=True)
                Path(part, file).write_bytes(cv2.imencode(".png", pixels)[1])
                written.append((file, text, printable(line.source), " ".join(f"{edge:g}" for edge in box.round(2))))
            return written, lost

        for written, lost in tqdm(map_ahead(write, enumerate(lines)), "crops", len(lines), unit=" lines", disable=None):
            rows += written
            classes.update(text for _, text, _, _ in written)
            for problem in lost:
                skipped.add(*problem)
        if not rows:
            raise UserError(f"{out}: not written, there is nothing to cut" + "".join(f"; {line}" for line in
                                                                                   str(skipped).splitlines()[:1]))
        table = "".join("\t".join(row) + "\n" for row in [("file", "text", "source", "box"), *rows])
        Path(part, TABLE).write_text(table, encoding="utf-8", errors="backslashreplace")  # JSON may hold half a surrogate
    return len(rows), len(classes), skipped


# ---------------------------------------------------------------- command line
def _arguments(arguments):
    parser = Parser(prog="python -m ocr crops", description=__doc__)
    parser.add_argument("lines", nargs="?", metavar="LINES", help="folder of lines: images, lines.tsv, coco.json")
    parser.add_argument("--coco", metavar="F", help="instead of LINES: a COCO file whose images have the key text")
    parser.add_argument("--images", metavar="DIR", help="folder of the images of F")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; it must be new or empty")
    parser.add_argument("--crop", choices=KINDS, default="tight", help="the box alone, or all of the line's height")
    parser.add_argument("--pad", type=float, default=PAD, help="by what share of its longer side a box grows, on each side")
    parser.add_argument("--size", type=int, default=64, metavar="S", help="side of the crops in pixels; 0: as cut")
    parser.add_argument("--spaces", choices=("keep", "drop"), default="drop", help="whether a space is a class")
    parser.add_argument("--words", action="store_true", help="cut words instead of characters")
    parser.add_argument("--vertical", action="store_true", help="all lines run from top to bottom, and not only those whose "
                                                                "image says so in the COCO file")
    add_selection(parser)
    args = parser.parse_args(arguments)
    if bool(args.lines) == bool(args.coco) or bool(args.coco) != bool(args.images):
        parser.error("give a folder LINES, or --coco F and --images DIR")
    if args.coco and (args.where or args.count):
        parser.error("--where, --count: need a folder LINES; select from a COCO file by `python -m ocr coco subset`")
    if args.words and args.spaces == "keep":
        parser.error("--words, --spaces keep: choose one; there is no space in a word")
    if not 0 <= args.pad <= 1:
        parser.error(f"--pad {args.pad:g}: give a share from 0 to 1")
    if not 0 <= args.size <= MAX_INPUT:
        parser.error(f"--size {args.size}: give a side from 0 to {MAX_INPUT}")
    return args


def main(arguments=None):
    args = _arguments(arguments)
    lines, skipped = (lines_of_coco(args.coco, args.images, args.vertical) if args.coco else
                      lines_of_folder(args.lines, args.where, args.count, args.seed, args.vertical))
    if skipped:
        print(skipped)
    cut = words_of if args.words else lambda line: characters_of(line, args.spaces == "keep")
    crops, classes, skipped = write_crops(lines, args.out, cut, args.crop, args.size, args.pad)
    if skipped:
        print(skipped)
    print(printable(f"{args.out}: {crops:,} crops of {classes:,} classes from {len(lines):,} lines"))
    return 0
