"""Read lines of printed text, or pages of it.

    python inference/read.py LINE.png                           # an image of one line; prints its text
    python inference/read.py FOLDER --model M.onnx              # all images below a folder, a line of output for each
    python inference/read.py --page SCAN.png                    # finds the lines of a page first
    python inference/read.py --coco LINES/coco.json --json      # the images that a COCO file lists; one JSON list
    python inference/read.py FOLDER --dictionary WORDS.txt --coco-out FOUND.json
    python inference/read.py FOLDER --localizer L.onnx --recognizer R.onnx --index I.npz    # in two stages, as EffOCR

    from inference import LineReader
    for reading in LineReader("M.onnx").read(["line.png"]): print(reading.text)

Needs numpy, OpenCV and ONNX Runtime; no torch.
"""
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

if __name__ == "__main__" and not __package__:  # run as a script: makes its folder the package, for the relative imports
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    __package__ = Path(__file__).resolve().parent.name
    __import__(__package__)

from .cli import Parser, run_cli  # noqa: E402
from .errors import UserError, first_line, printable  # noqa: E402
from .files import replacing  # noqa: E402
from .image import ImageError, images_at, load_gray, map_ahead, resize  # noqa: E402
from .lines import CATEGORIES  # noqa: E402
from .page import find_lines, read_found  # noqa: E402
from .reader import LineReader, Reading  # noqa: E402
from .show import BLACK, GREEN, RED, TEXT, show_folder, write_drawing, write_text  # noqa: E402
from .two_stage import TwoStageReader  # noqa: E402

DEFAULT_MODEL = Path(__file__).resolve().parent / "models" / "reader.onnx"
SHOWN = 1600  # pixels: the longer side of a drawing at most
SURE = 0.9  # the confidence of characters that are drawn in green
PAGES_AHEAD = 2  # whose lines are found while another one is read


def read_images(reader: LineReader, images: list[str], pages: bool = False) -> Iterator[dict]:
    """Read image files -> for each, in order, {image, text, confidence, characters: [{text, confidence, box, alternatives:
    [{text, probability}]}], error or null, size: [width, height]}; box [x0, y0, x1, y1] in pixels of the image.

    pages: an image is a page; its text has a line for each, its confidence is their mean, and `lines` are [{text,
    confidence, box, characters}]. An image that cannot be used has no text, and an `error`; the others are still read.
    """
    if not pages:
        for image, reading in zip(images, reader.stream(images)):
            yield _result(image, reading)
        return

    def lines_of(image):
        try:
            page = load_gray(image)
        except ImageError as error:
            return None, str(error)
        return page.shape[::-1], find_lines(page, reader.vertical)

    for image, (size, found) in zip(images, map_ahead(lines_of, images, PAGES_AHEAD, threads=1)):
        if size is None:
            yield {**_result(image, Reading("", 0.0, [], error=found)), "lines": []}
            continue
        read = read_found(reader, found)
        characters = [character for _, reading in read for character in reading.characters]
        sure = float(np.mean([reading.confidence for _, reading in read])) if read else 0.0
        whole = Reading("\n".join(reading.text for _, reading in read), sure, characters, size)
        yield {**_result(image, whole), "lines": [
            {"text": reading.text, "confidence": reading.confidence, "box": _rounded(line.box),
             "characters": _characters(reading)} for line, reading in read]}


def _result(image, reading):
    return {"image": str(image), "text": reading.text, "confidence": reading.confidence, "characters": _characters(reading),
            "error": reading.error, "size": reading.size}


def _characters(reading):
    return [{"text": one.text, "confidence": one.confidence, "box": _rounded(one.box), "alternatives": [
        {"text": text, "probability": chance} for text, chance in one.alternatives]} for one in reading.characters]


def _rounded(box):
    return [round(float(side), 2) for side in box]


def listed_images(path) -> dict[str, dict]:
    """The images of a COCO file: {path of the image: its entry}; the path is below `images/` beside the file, or below its
    folder. Raises UserError for another file."""
    how = "a COCO file is JSON with images: [{id, file_name}]"
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)["images"]
        named = [(entry["file_name"], {**entry, "id": int(entry["id"])}) for entry in entries]
        folder, found = os.path.dirname(path), {}
        for name, entry in named:
            if b"\0" in os.fsencode(name):
                raise ValueError("a zero byte in a file name")
            inside = os.path.join(folder, "images", name)
            found[inside if os.path.exists(inside) else os.path.join(folder, name)] = entry
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {how}") from None
    except (LookupError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: not a COCO file ({type(error).__name__}: {first_line(error)}); {how}") from None
    if len(found) < len(named):
        raise UserError(f"{path}: lists an image twice; remove one of the two")
    if len({entry["id"] for entry in found.values()}) < len(found):
        raise UserError(f"{path}: two images have the same id; number them anew")
    if not found:
        raise UserError(f"{path}: no images in it; {how}")
    return found


def to_coco(results: list[dict], listed: dict[str, dict], folder, vertical: bool = False) -> dict:
    """Results as COCO: images {id, file_name, width, height, text, vertical}, and annotations {id, image_id, category_id,
    bbox [x, y, w, h], area, iscrowd, text, score} of the categories char and word.

    listed: the entries of those images that a COCO file lists, by path; the others are named as seen from `folder`, and get
    new ids. Of an image with an error, which has no size, there is the listed entry as it was, or nothing.
    """
    images, annotations = [], []
    free = max((entry["id"] for entry in listed.values()), default=0) + 1
    for number, result in enumerate(results):
        entry = listed.get(result["image"])
        if result["error"] is not None:
            images += [entry] if entry else []
            continue
        if entry is None:
            entry = {"id": free + number, "file_name": Path(os.path.relpath(result["image"], folder)).as_posix()}
        width, height = result["size"]
        entry = {**entry, "text": result["text"], "vertical": vertical, "width": width, "height": height}
        images.append(entry)
        lines = result.get("lines", [result])
        for category, parts in ((0, [one for line in lines for one in line["characters"]]),
                                (1, [word for line in lines for word in _words(line)])):
            for part in parts:
                x0, y0, x1, y1 = part["box"]
                box = [round(side, 2) for side in (x0, y0, x1 - x0, y1 - y0)]
                annotations.append({"id": len(annotations) + 1, "image_id": entry["id"], "category_id": category,
                                    "bbox": box, "area": round(box[2] * box[3], 2), "iscrowd": 0, "text": part["text"],
                                    "score": part["confidence"]})
    return {"images": images, "categories": CATEGORIES, "annotations": annotations}


def _words(line):
    """The words of a line: their text, the box around their characters, the least of their confidences."""
    words, at, length, characters = [], 0, 0, line["characters"]
    ends = np.cumsum([len(one["text"]) for one in characters])
    for text in line["text"].split():
        length += len(text)
        part = characters[at:max(at, int(np.searchsorted(ends, length))) + 1]
        part = part or characters[-1:]  # of several letters, some of them in the word before, or joined in the text alone
        boxes = np.array([one["box"] for one in part])
        words.append({"text": text, "box": [*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist()],
                      "confidence": min(one["confidence"] for one in part)})
        at += len(part)
    return words


def draw(result: dict) -> np.ndarray:
    """A result for a path -> uint8 BGR: the image with the boxes of its characters, red for those that are not SURE, and for
    a line its text below. Raises ImageError."""
    image = cv2.cvtColor(load_gray(result["image"]), cv2.COLOR_GRAY2BGR)
    scale = min(1.0, SHOWN / max(image.shape))
    image = resize(image, *(max(1, round(side * scale)) for side in image.shape[1::-1]))
    for one in result["characters"]:
        x0, y0, x1, y1 = (round(side * scale) for side in one["box"])
        cv2.rectangle(image, (x0, y0), (x1, y1), GREEN if one["confidence"] >= SURE else RED, 1)
    if "lines" in result:
        return image
    image = cv2.copyMakeBorder(image, 0, 2 * TEXT, 0, 0, cv2.BORDER_CONSTANT, value=(255,) * 3)
    write_text(image, result["text"], (0, image.shape[0] - TEXT // 2), 20, BLACK)
    return image


def main(arguments=None) -> int:
    """The command line; returns the exit status."""
    parser = Parser(description=__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image of a line to read, or a folder with such images")
    parser.add_argument("--coco", metavar="FILE", help="read the images that this COCO file lists")
    parser.add_argument("--model", metavar="M.onnx", help="reader that onnx_export.py wrote (default: the shipped one)")
    parser.add_argument("--page", action="store_true", help="the images are pages: find their lines first")
    parser.add_argument("--vertical", action="store_true", help="lines run from top to bottom (default: as the model says)")
    parser.add_argument("--dictionary", metavar="FILE", help="correct words by this file: a word a line, and maybe its "
                                                             "frequency behind a space")
    parser.add_argument("--without", default="", metavar="CHARS", help="characters that do not occur in the text")
    parser.add_argument("--characters", metavar="FILE.npz", help="characters that python -m ocr register has added")
    parser.add_argument("--localizer", metavar="L.onnx", help="read in two stages: the model that finds the characters")
    parser.add_argument("--recognizer", metavar="R.onnx", help="for --localizer: the model that names them")
    parser.add_argument("--index", metavar="I.npz", help="for --recognizer: its references (not for a classifier)")
    parser.add_argument("--words", metavar="I.npz", help="for --recognizer: references of whole words, read first")
    parser.add_argument("--no-tidy", action="store_true", help="leave the spaces at punctuation as they were read")
    parser.add_argument("--top-k", type=int, default=3, metavar="K", help="alternatives of each character, for --json")
    parser.add_argument("--coco-out", metavar="FILE", help="write the boxes of characters and words there, as COCO")
    parser.add_argument("--show", metavar="DIR", help="write a drawing of each result there: the image with the boxes")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads for many lines; 0 is one per core")
    parser.add_argument("--json", action="store_true", help="print one JSON list and nothing else (default: the text, with "
                                                            "the name of its image in front if there are several)")
    args = parser.parse_args(arguments)
    if args.top_k < 1:
        raise UserError(f"--top-k {args.top_k}: must be at least 1")
    if bool(args.images) == bool(args.coco):
        parser.error("IMAGE: give images to read, or --coco FILE that lists them")
    listed = listed_images(args.coco) if args.coco else {}
    images = list(listed) or [path for image in args.images for path in images_at(image)]
    if args.coco_out:
        check_output(args.coco_out, filter(None, [args.coco, args.model, args.dictionary, args.characters, *images]))
    show = args.show and show_folder(args.show, images)
    reader = make_reader(args)
    for warning in reader.warnings:
        print(printable(f"warning: {warning}"), file=sys.stderr)
    results, usable = [], False
    for number, result in enumerate(read_images(reader, images, args.page)):
        if show:
            write_drawing(show, number, result, draw)
        if args.coco_out:
            results.append(result)
        if args.json:
            print("," if number else "[", json.dumps(result))
        else:
            for line in _lines(result, len(images) > 1):
                print(printable(line))
        usable |= result["error"] is None
    if args.json:
        print("]")
    if args.coco_out:
        coco = to_coco(results, listed, os.path.dirname(args.coco_out) or ".", reader.vertical)
        with replacing(args.coco_out) as partial:
            partial.write_text(json.dumps(coco), encoding="utf-8")
    return 0 if usable else 2


def check_output(path: str, read: Iterable[str]) -> None:
    """Raises UserError where the file `path` could not be written, or is one of those that are `read`: told before the
    reading, which may take hours."""
    if os.path.realpath(path) in map(os.path.realpath, read):
        raise UserError(f"--coco-out {path}: is the file that is read; name another one, so that it stays as it is")
    if os.path.isdir(path) or not os.path.isdir(os.path.dirname(path) or os.curdir):
        raise UserError(f"--coco-out {path}: is a folder, or its folder is missing; name a file in a folder that exists")


def make_reader(args) -> LineReader | TwoStageReader:
    """The reader that the options ask for. Raises UserError."""
    common = dict(tidy=not args.no_tidy, top_k=args.top_k, threads=args.threads)
    if args.localizer or args.recognizer or args.index or args.words:
        if not (args.localizer and args.recognizer):
            raise UserError("--localizer, --recognizer: reading in two stages needs both")
        for option in ("model", "dictionary", "without", "characters"):
            if getattr(args, option):
                raise UserError(f"--{option}: is not for reading in two stages; leave it, or leave --localizer")
        return TwoStageReader(args.localizer, args.recognizer, args.index, args.words, vertical=args.vertical, **common)
    model = args.model
    if model is None:
        model = DEFAULT_MODEL
        if not model.exists():
            raise UserError(f"{model}: the shipped reader is missing; give another one with --model, or train one: python "
                            "train_v2.py configs/read")
        print(printable(f"using the shipped reader: {model}"), file=sys.stderr)
    return LineReader(model, characters=args.characters, dictionary=args.dictionary, without=args.without,
                      vertical=args.vertical or None, progress=not args.page and (args.json or not sys.stdout.isatty()),
                      **common)


def _lines(result, named):
    if result["error"]:
        return [f"{result['image']}: cannot be used: {result['error']}"]
    return [f"{result['image']}: {line}" if named else line for line in result["text"].split("\n")]


if __name__ == "__main__":
    run_cli(main)
