"""Sheets of text lines with the boxes of characters and words, to train the localizer of two-stage reading on.

    python -m ocr windows LINES --out SHEETS              # a folder of lines with coco.json
    python train_v2.py configs/lines_localizer data=SHEETS/images boxes=SHEETS/coco.json

Lines are wide and networks are trained on squares: each line, resized to --height, is cut between words into pieces at most
--side wide, and pieces of different lines are stacked into square sheets. A word is the characters between two spaces.
SHEETS has images/ and coco.json, whose file names are below images/.
"""
from pathlib import Path

import cv2
import numpy as np

from inference.cli import Parser
from inference.errors import UserError
from inference.image import MAX_INPUT, ImageError
from inference.lines import CATEGORIES, load_line, resize_line, turned
from ocr.coco import write_new
from ocr.folder import COCO, IMAGES, Line, add_selection, new_folder, read_lines, shuffled


def main(arguments=None):
    parser = Parser(prog="python -m ocr windows", description=__doc__)
    parser.add_argument("lines", metavar="LINES", help="folder of lines with coco.json")
    parser.add_argument("--out", required=True, metavar="SHEETS", help="new folder")
    parser.add_argument("--height", type=int, default=64, help="of a line, pixels")
    parser.add_argument("--side", type=int, default=256, help="of a sheet, pixels; a multiple of the height")
    add_selection(parser)
    parser.add_argument("--vertical", action="store_true", help="the lines run from top to bottom")
    args = parser.parse_args(arguments)
    if not 8 <= args.height <= args.side <= MAX_INPUT or args.side % args.height:
        raise UserError(f"--side {args.side}: must be a multiple of --height {args.height}, which is at least 8, and at "
                        f"most {MAX_INPUT}")
    lines = read_lines(args.lines, args.where, args.count, args.seed)
    pieces, unused = [], 0
    for line in lines:
        found = cut(line, args.height, args.side, args.vertical) if line.boxes is not None else []
        pieces += found
        unused += not found
    if not pieces:
        raise UserError(f"{args.lines}: none of its {len(lines)} lines has boxes that match its text; give a folder that "
                        "python -m ocr lines or align has written")
    sheets = write_sheets(args.out, pieces, args.height, args.side, args.seed)
    print(f"{args.out}: {sheets} sheets of {len(pieces)} pieces of {len(lines) - unused} lines"
          + (f"; {unused} lines have no boxes, or cannot be used" if unused else ""))


def cut(line: Line, height: int, side: int, vertical: bool = False) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pieces of a line at most `side` wide, of whole words: (gray uint8 `[height,w]`, characters `[n,4]`, words `[m,4]`),
    both in pixels of the piece. A longer word is skipped; so is a line whose image cannot be read."""
    try:
        image, boxes = load_line(line.path, vertical), line.boxes.astype(np.float64)
    except ImageError:
        return []
    if vertical:
        boxes = turned(boxes, image.shape[0])
        boxes = boxes[np.argsort(boxes[:, ::2].sum(1), kind="stable")]  # the COCO file need not say so
    image, scale = resize_line(image, height)
    limits = [image.shape[1], height] * 2
    boxes = np.clip(boxes * scale, 0, limits)
    ends = np.cumsum([len(word) for word in line.text.split()])
    members = np.split(np.arange(len(boxes)), ends[:-1])                              # of each word
    words = np.array([[*boxes[of, :2].min(0), *boxes[of, 2:].max(0)] for of in members])
    middles = np.rint((words[1:, 0] + words[:-1, 2]) / 2)                             # of the gaps
    edges = np.maximum.accumulate(np.clip([0, *middles, image.shape[1]], 0, image.shape[1])).astype(int)
    pieces, first = [], 0
    while first < len(words):
        last = first                                                                  # the last word of the piece
        while last + 1 < len(words) and edges[last + 2] - edges[first] <= side:
            last += 1
        left, right = edges[first], edges[last + 1]
        if 0 < right - left <= side:
            of = np.concatenate(members[first:last + 1])
            inside = [np.clip(part - [left, 0, left, 0], 0, [right - left, height] * 2) for part in
                      (boxes[of], words[first:last + 1])]
            pieces.append((image[:, left:right], *(part[((part[:, 2:] - part[:, :2]) > 1).all(1)] for part in inside)))
        first = last + 1
    return pieces


def write_sheets(folder, pieces, height: int, side: int, seed: int) -> int:
    """Write the pieces as sheets with coco.json, in an order of their own; returns the number of sheets. Raises UserError
    for a folder that has something in it."""
    order, rows = shuffled(len(pieces), seed), side // height
    content = {"images": [], "categories": CATEGORIES, "annotations": []}
    with new_folder(folder) as new:
        Path(new, IMAGES).mkdir()
        for number, start in enumerate(range(0, len(pieces), rows)):
            sheet, name = np.full((side, side), 255, np.uint8), f"{number:06}.png"
            for row, i in enumerate(order[start:start + rows]):
                piece, *boxes = pieces[i]
                sheet[row * height:(row + 1) * height, :piece.shape[1]] = piece
                for category, part in enumerate(boxes):                               # CATEGORIES: characters, words
                    for x0, y0, x1, y1 in part + [0, row * height] * 2:
                        content["annotations"].append({"id": len(content["annotations"]), "image_id": number,
                                                       "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0]})
            Path(new, IMAGES, name).write_bytes(cv2.imencode(".png", sheet)[1])
            content["images"].append({"id": number, "file_name": name, "width": side, "height": side})
        write_new(Path(new, COCO), content)
    return len(content["images"])
