"""Find the box of each character of transcribed lines, by a reader: forced alignment.

    python -m ocr align LINES --model READER.onnx --out boxes.json
    python -m ocr align LINES --model READER.onnx --out LINES/coco.json --where book=a --min-confidence .8

The text is known, so the reader says only where each of its characters is: the most probable path through the columns of the
line that spells the text (Viterbi over CTC's lattice, Graves et al. 2006, https://doi.org/10.1145/1143844.1143891). A box is
the reader's own, at the column of the character's run where it is most probable; that of a small character, such as a
period, is moved to its ink. Spaces have no box, and few transcriptions set them as the page does, so a column of space
counts as one between characters.

The COCO file has the boxes of characters and words, the text and the confidence of each line, and the further columns of
lines.tsv, for `python -m ocr coco split --by COLUMN`. As LINES/coco.json it makes LINES a folder of lines with boxes.
Lines with characters that the reader does not know are skipped, and those where its own reading is far more probable than
the text: there the transcription is wrong, or the reader. How many, and the first ones, is reported.
"""
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from inference.cli import Parser
from inference.decode import BLANK, SPACE, align
from inference.errors import UserError, printable
from inference.image import ImageError, load_gray, map_ahead
from inference.lines import CATEGORIES
from inference.reader import LineReader
from inference.text import normalize
from ocr.coco import Skipped, refuse_existing, write_new
from ocr.folder import Line, add_selection, read_lines

LEAST = 0.5  # confidence of an alignment that is kept
SMALL = 0.5  # of the line's height: boxes no longer and no higher are moved to the ink
OWN, ALL = 0.5, 0.8  # share of a part that must be in a box to belong to it, and of the ink in a box that must belong to it
SMALLEST = 0.08  # of the line's height: a side of a box that is less, about a period's, grows to it
APART = 0.1  # pixels along the line from one box's middle to the next at least, so that sorting keeps their order


class Aligned(NamedTuple):
    """A line of `width` x `height` pixels. `boxes` float64 `[n,4]`, x0 y0 x1 y1, belong to the n characters of `text` that
    are no spaces, and have their middles in the same order along the line. `confidence`, 0..1: see `path_of`."""
    line: Line
    text: str
    width: int
    height: int
    boxes: np.ndarray
    confidence: float


def path_of(log_probs: np.ndarray, ids: Sequence[int]) -> tuple[np.ndarray, float]:
    """(the column of each character, int64 `[n]`; confidence) of the most probable path through the columns that spells the
    classes `ids`, n of them and none a space. log_probs: float `[T,C]`, as a reader gives them.

    The column is that of the character's run where it is most probable. The confidence, 0..1, is how much less probable this
    path is than the best of all paths, as a factor for each character (the geometric mean). Raises ValueError where the
    columns are too few.
    """
    log_probs = log_probs.astype(np.float64)
    log_probs[:, BLANK] = np.logaddexp(log_probs[:, BLANK], log_probs[:, SPACE])
    path, columns = np.full(len(log_probs), BLANK), np.empty(len(ids), np.int64)
    for at, (number, (first, last)) in enumerate(zip(ids, align(log_probs, ids))):
        path[first:last + 1] = number
        columns[at] = first + log_probs[first:last + 1, number].argmax()
    lost = log_probs.max(1).sum() - log_probs[np.arange(len(path)), path].sum()
    return columns, float(np.exp(-lost / len(ids)))


def align_line(reader: LineReader, line: Line) -> Aligned | tuple[str, str]:
    """The line with its boxes; or (why it has none, the line and what is wrong there)."""
    text = " ".join(line.text.split())
    spelled = normalize(line.text).replace(" ", "")
    if len(spelled) != len(text.replace(" ", "")):  # what print shows as one character was typed as two, or the other way
        text = normalize(line.text)
    if not spelled:
        return "lines without text", line.file
    missing = sorted(set(spelled) - set(reader.classes))
    if missing:
        return "lines with characters that the reader does not know", f"{line.file}: {' '.join(missing)}"
    try:
        image = load_gray(line.path)
        columns, = reader.columns([image])
    except ImageError as error:
        return "images that cannot be used", f"{line.file}: {error}"
    try:
        at, confidence = path_of(columns.log_probs, reader.ids(spelled))
    except ValueError as error:
        return "lines whose text is too long for the image", f"{line.file}: {error}"
    height, width = image.shape
    boxes = to_ink(image, columns.boxes[at].astype(float), width if reader.vertical else height)
    return Aligned(line, text, width, height, in_order(boxes, int(reader.vertical)), confidence)


def to_ink(image: np.ndarray, boxes: np.ndarray, line_height: float) -> np.ndarray:
    """The boxes `[n,4]`, those of small characters moved to the ink, in a gray image of dark ink. A box is a pixel or
    two wrong, which is nothing for an M and all of a period: the top of its box may lie below the bottom.

    The ink of a character is the connected parts that lie in its box for the most part. Where that is not nearly all the ink
    in the box, as where letters touch, the box stays, but no side is less than SMALLEST.
    """
    ink = cv2.threshold(image, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)[1]
    count, parts, stats, _ = cv2.connectedComponentsWithStats(ink)
    areas, low, high = stats[:, 4], stats[:, :2], stats[:, :2] + stats[:, 2:4]
    middle, half = (boxes[:, 2:] + boxes[:, :2]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    half = half.clip(SMALLEST * line_height / 2)
    boxes = np.concatenate([middle - half, middle + half], 1).clip(0, image.shape[::-1] * 2)
    for box in boxes:
        if max(box[2] - box[0], box[3] - box[1]) <= SMALL * line_height:
            x0, y0, x1, y1 = (*np.floor((box[:2] - 0.5).clip(0)).astype(int), *np.ceil(box[2:] + 0.5).astype(int))
            inside = np.bincount(parts[y0:y1, x0:x1].ravel(), minlength=count)
            inside[0] = 0  # the ground
            own = np.flatnonzero(inside > OWN * areas)
            if len(own) and inside[own].sum() >= ALL * inside.sum():
                box[:] = *low[own].min(0), *high[own].max(0)
    return boxes


def in_order(boxes: np.ndarray, axis: int) -> np.ndarray:
    """The boxes `[n,4]` with their middles in order along the axis, 0 or 1: one that stands before the last, as a period
    below a quote may, is moved behind it."""
    boxes, middle = boxes.copy(), -np.inf
    for box in boxes:
        own = (box[axis] + box[axis + 2]) / 2
        box[axis::2] += max(0.0, middle + APART - own)
        middle = max(own, middle + APART)
    return boxes


def align_lines(reader: LineReader, lines: list[Line], least: float = LEAST,
                progress: bool = False) -> tuple[list[Aligned], Skipped]:
    """(the lines with their boxes, those that have none or a confidence below `least`)."""
    found, skipped = [], Skipped()
    threads = getattr(reader.model, "threads", 1)
    results = map_ahead(lambda line: align_line(reader, line), lines, threads=threads)
    for result in tqdm(results, "align", len(lines), unit=" lines", disable=None if progress else True):
        if not isinstance(result, Aligned):
            skipped.add(*result)
        elif result.confidence < least:
            skipped.add(f"lines whose text is not what the reader sees, with a confidence below {least:g}",
                        f"{result.line.file}: {result.confidence:.2f}")
        else:
            found.append(result)
    return found, skipped


def to_coco(aligned: list[Aligned], vertical: bool = False) -> dict:
    """The boxes of the characters, and around them those of the words, as a COCO file has them."""
    images, annotations = [], []

    def add(category, box):
        x, y = (round(float(edge), 2) for edge in box[:2])
        w, h = (round(float(edge), 2) for edge in box[2:] - box[:2])
        annotations.append({"id": len(annotations), "image_id": len(images), "category_id": category, "bbox": [x, y, w, h],
                            "area": round(w * h, 2), "iscrowd": 0})

    char, word = (entry["id"] for entry in CATEGORIES)
    for line, text, width, height, boxes, confidence in aligned:
        at = 0
        for characters in map(len, text.split()):
            own = boxes[at:at + characters]
            for box in own:
                add(char, box)
            add(word, np.concatenate([own[:, :2].min(0), own[:, 2:].max(0)]))
            at += characters
        images.append({**line.fields, "id": len(images), "file_name": line.file, "width": width, "height": height,
                       "text": text, "confidence": round(confidence, 4), "vertical": vertical})
    return {"images": images, "categories": CATEGORIES, "annotations": annotations}


# ---------------------------------------------------------------- command line
def _arguments(arguments):
    parser = Parser(prog="python -m ocr align", description=__doc__)
    parser.add_argument("lines", metavar="LINES", help="folder of transcribed lines: images, lines.tsv")
    parser.add_argument("--model", required=True, metavar="M", help="exported reader (.onnx)")
    parser.add_argument("--out", required=True, metavar="FILE", help="COCO file to write; it must not exist")
    parser.add_argument("--characters", metavar="F", help="registered characters of the reader (.npz)")
    parser.add_argument("--min-confidence", type=float, default=LEAST, metavar="P", help="lines below it are skipped, 0..1")
    parser.add_argument("--vertical", action="store_true", default=None, help="the lines run from top to bottom "
                                                                              "(default: as the reader was trained)")
    add_selection(parser)
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: one for each core, at most 16")
    args = parser.parse_args(arguments)
    if not 0 <= args.min_confidence <= 1:
        parser.error(f"--min-confidence {args.min_confidence:g}: give a number from 0 to 1")
    return args


def main(arguments=None):
    args = _arguments(arguments)
    refuse_existing(args.out)
    lines = read_lines(args.lines, args.where, args.count, args.seed, with_boxes=False)
    reader = LineReader(args.model, characters=args.characters, vertical=args.vertical, threads=args.threads)
    found, skipped = align_lines(reader, lines, args.min_confidence, progress=True)
    if skipped:
        print(skipped)
    if not found:
        raise UserError(f"{args.out}: not written, none of the {len(lines):,} lines could be aligned")
    write_new(args.out, to_coco(found, reader.vertical))
    characters = sum(len(one.boxes) for one in found)
    print(printable(f"{args.out}: {len(found):,} of {len(lines):,} lines, {characters:,} characters"))
    return 0
