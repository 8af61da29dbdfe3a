"""Lines that a reader is sure of, with the reader's own text, as lines to train it on (self-training).

    python -m ocr label --model READER.onnx IMAGES --out FOLDER [--confidence .9] [--dictionary WORDS]
    python train_v2.py configs/read_tune lines=FOLDER

IMAGES: a folder of images, one line of text each, or a folder with lines.tsv, whose column `text` is not used. A line is
kept when the least certain tenth of its characters is certain, when the reader gives the same text for slightly changed
images of it, and, with --dictionary, when all its words in small letters are listed. The other lines would teach the reader
its own mistakes.
"""
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from inference.cli import Parser
from inference.dictionary import Dictionary
from inference.errors import UserError, printable
from inference.files import replacing
from inference.image import ImageError, list_images, load_gray, map_ahead
from inference.reader import LineReader, Reading
from ocr.folder import LINES, read_lines

CHUNK = 256     # lines in memory at a time
STRETCH = 0.04  # of a line's length; and of its height, as ground added around it
SHIFT = 1 / 40  # of a line's height: a pixel as the reader sees it
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


class Unlabeled(NamedTuple):
    """An image of a line whose text is not known."""
    path: Path
    fields: dict[str, str]  # further columns of lines.tsv, such as book


class Labeled(NamedTuple):
    """What became of a line: the reader's text, how sure it is of it, and why it is not kept ("" when it is)."""
    line: Unlabeled
    text: str
    confidence: float
    reason: str


def find_lines(folder, where: str = "") -> list[Unlabeled]:
    """The lines of a folder with lines.tsv, without their texts; of another folder, each image is a line."""
    if Path(folder, LINES).exists():
        return [Unlabeled(line.path, line.fields) for line in read_lines(folder, where, with_boxes=False)]
    if where:
        raise UserError(f"--where {where}: needs a {LINES} with such a column in {folder}")
    images = [Unlabeled(Path(folder, name), {}) for name in list_images(folder)]
    if not images:
        raise UserError(f"{folder}: no images; give a folder with one image for each line of text")
    return images


def label_lines(reader, lines: list[Unlabeled], confidence: float = 0.9, words=None, progress: bool = False
                ) -> Iterator[Labeled]:
    """Each line with the text that `reader` gives it, in order; see `Labeled`.

    reader: has `read(images) -> readings` and `vertical`, as `LineReader`. confidence: the least mean probability of the
    tenth of the characters with the lowest one. words: a container of words in lower case; None: any word will do.
    """
    with tqdm(total=len(lines), desc="read", unit="line", disable=None if progress else True) as bar:
        for start in range(0, len(lines), CHUNK):
            part = lines[start:start + CHUNK]
            images = list(map_ahead(_load, part))
            usable = [image for image in images if not isinstance(image, ImageError)]
            readings = iter(reader.read(usable))
            # Only those of which the reader is sure are read again.
            found = [_first_look(line, image, readings, confidence, words) for line, image in zip(part, images)]
            sure = [row for row, one in enumerate(found) if not one.reason]
            versions = [changed(images[row], vertical=reader.vertical) for row in sure]
            again = iter(reader.read([image for images in versions for image in images]))
            for row, images in zip(sure, versions):
                if {next(again).text for _ in images} != {found[row].text}:
                    found[row] = found[row]._replace(reason="read otherwise when the image changes a little")
            yield from found
            bar.update(len(part))


def _first_look(line, image, readings, confidence, words):
    if isinstance(image, ImageError):
        return Labeled(line, "", 0.0, f"the image cannot be used ({image})")
    reading = next(readings)
    certainty, reason = sureness(reading), ""
    if not reading.text:
        reason = "nothing is read"
    elif certainty < confidence:
        reason = "not sure enough"
    elif words is not None and any(word.islower() and word not in words for word in WORD.findall(reading.text)):
        reason = "a word is not listed"
    return Labeled(line, reading.text, certainty, reason)


def sureness(reading: Reading) -> float:
    """The mean probability of the tenth of the characters with the lowest one, at least of one character; 0 without any."""
    lowest = sorted(character.confidence for character in reading.characters if character.text != " ")
    lowest = lowest[:max(1, len(lowest) // 10)]
    return sum(lowest) / max(1, len(lowest))


def changed(image: np.ndarray, vertical: bool = False) -> list[np.ndarray]:
    """Five images uint8 like `image`, which shall be read alike: of a longer line, a shorter one, with more ground around
    the line, moved across it to both sides by a fortieth of its height. vertical: it runs from top to bottom."""
    if vertical:
        return [np.rot90(version, -1) for version in changed(np.rot90(image))]
    high, wide = image.shape[:2]
    pad, more, shift = (max(1, round(length)) for length in (STRETCH * high, STRETCH * wide, SHIFT * high))
    edge = cv2.BORDER_REPLICATE
    return [cv2.resize(image, (wide + more, high), interpolation=cv2.INTER_LINEAR),
            cv2.resize(image, (max(1, wide - more), high), interpolation=cv2.INTER_AREA),
            cv2.copyMakeBorder(image, pad, pad, pad, pad, edge),
            cv2.copyMakeBorder(image, shift, 0, 0, 0, edge)[:high], cv2.copyMakeBorder(image, 0, shift, 0, 0, edge)[shift:]]


def _load(line):
    try:
        return load_gray(line.path)
    except ImageError as error:
        return error


def write_lines(kept: list[Labeled], out) -> None:
    """Write `out`/lines.tsv: file (absolute), text, confidence, and the further columns of the source."""
    columns = list(dict.fromkeys(column for one in kept for column in one.line.fields if column != "confidence"))
    rows = [["file", "text", "confidence", *columns]]
    for one in kept:
        rows.append([str(one.line.path.resolve()), one.text, f"{one.confidence:.4f}",
                     *(one.line.fields.get(column, "") for column in columns)])
    Path(out).mkdir(parents=True, exist_ok=True)
    with replacing(Path(out, LINES)) as partial:
        partial.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


def main(arguments=None):
    parser = Parser(prog="python -m ocr label", description=__doc__)
    parser.add_argument("images", metavar="IMAGES", help="folder of images, one line each, or of images and lines.tsv")
    parser.add_argument("--model", required=True, metavar="READER.onnx", help="exported reader")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where lines.tsv is written")
    parser.add_argument("--confidence", type=float, default=0.9, metavar="P", help="least certainty of a line, 0 to 1")
    parser.add_argument("--dictionary", metavar="WORDS", help="a word a line; a line with another word is not kept")
    parser.add_argument("--where", default="", metavar="COLUMN=V", help="only these lines of lines.tsv")
    parser.add_argument("--vertical", action="store_true", help="lines run from top to bottom (default: as the model says)")
    args = parser.parse_args(arguments)
    if not 0 <= args.confidence <= 1:
        raise UserError(f"--confidence {args.confidence:g}: a probability, 0 to 1")
    if Path(args.out, LINES).exists():
        raise UserError(f"{Path(args.out, LINES)}: exists; give --out another folder, or remove it")
    lines = find_lines(args.images, args.where)
    if unwritable := [line for line in lines if re.search(r"[\t\n\r\ud800-\udfff]", str(line.path.resolve()))]:
        raise UserError(f"{unwritable[0].path}: a tab, a new line, or no UTF-8 in the name; rename it, since {LINES} cannot "
                        "hold it")
    words = Dictionary(args.dictionary) if args.dictionary else None
    reader = LineReader(args.model, dictionary=words, vertical=args.vertical or None)
    labeled = list(label_lines(reader, lines, args.confidence, words, progress=True))
    kept = [one for one in labeled if not one.reason]
    reasons = Counter(one.reason.split(" (")[0] for one in labeled if one.reason)
    said = "".join(f"; {count:,} {reason}" for reason, count in reasons.most_common())
    print(printable(f"{len(kept):,} of {len(lines):,} lines are kept{said}"), file=sys.stderr)
    if not kept:
        raise UserError(f"{args.images}: no line passes; lower --confidence {args.confidence:g}, or train the reader on "
                        "transcribed lines first")
    write_lines(kept, args.out)
    print(printable(f"{args.out}: train with python train_v2.py configs/read_tune lines={args.out}"))
