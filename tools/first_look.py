"""A first look: classify some captures and draw each beside the registered image that it was matched with.

    python -m tools.first_look                                       # the shipped model, registry and captures
    python -m tools.first_look --model M.onnx --register types photos --out look.png

Prints one line for each capture and writes one contact sheet: capture left, best matching reference right, framed green
where the type is recognized and red where the capture is refused. Needs numpy, OpenCV and ONNX Runtime; no torch.
"""
import os
from pathlib import Path

import cv2
import numpy as np

from inference.classify import DEFAULT_MODEL, DEFAULT_REGISTRY, DocClassifier
from inference.cli import Parser, run_cli
from inference.errors import UserError, printable
from inference.files import replacing
from inference.image import ImageError, list_images, load_image, type_label

SIDE, GAP, TEXT = 168, 8, 20  # pixels: the field of an image, the space around it, the height of a line of text
GREEN, RED, BLACK, WHITE = (70, 150, 30), (50, 50, 210), (20, 20, 20), 255  # BGR
MOST = 100  # captures on one sheet


def main(arguments=None) -> None:
    parser = Parser(prog="python -m tools.first_look", description=__doc__)
    parser.add_argument("captures", nargs="?", metavar="DIR", default=str(DEFAULT_MODEL.with_name("photos")),
                        help=f"folder of images to classify, the first {MOST} are taken (default: the shipped ones)")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="what onnx_export.py wrote (default: the shipped one)")
    parser.add_argument("--register", metavar="DIR", default=DEFAULT_REGISTRY,
                        help="folder of reference images (default: the shipped one)")
    parser.add_argument("--out", metavar="FILE", default="first_look.png", help="image to write (default first_look.png)")
    parser.add_argument("--columns", type=int, default=3, metavar="N", help="captures side by side (default 3)")
    args = parser.parse_args(arguments)
    if args.columns < 1:
        raise UserError(f"--columns {args.columns}: must be at least 1")
    captures = [os.path.join(args.captures, file) for file in list_images(args.captures)[:MOST]]
    if not captures:
        raise UserError(f"{args.captures}: no image in it; give a folder of images")

    classifier = DocClassifier(model=args.model, register_root=args.register)
    references = {}  # label: the path of the first reference of the type
    for file in list_images(args.register):
        references.setdefault(type_label(file), os.path.join(args.register, file))
    results = classifier.classify(captures)
    width = max(len(os.path.basename(path)) for path in captures)
    for result in results:
        print(printable(f"{os.path.basename(result['image']):{width}}  {answer(result)}"))
    write_image(args.out, draw(results, references, args.columns))
    print(printable(f"contact sheet: {args.out}"))


def answer(result: dict) -> str:
    """One line of text about one result of `DocClassifier.classify`."""
    if result["error"]:
        return f"cannot be used: {result['error']}"
    if result["label"] is None:
        return f"not registered ({result['score']:.2f})"
    return f"{result['label']} ({result['score']:.2f})"


def draw(results: list[dict], references: dict[str, str], columns: int) -> np.ndarray:
    """The results as a sheet, uint8 BGR `[H, W, 3]`; references `{label: path}`."""
    cells = [draw_cell(result, references) for result in results]
    cells += [np.full_like(cells[0], WHITE)] * (-len(cells) % columns)
    return np.vstack([np.hstack(cells[at:at + columns]) for at in range(0, len(cells), columns)])


def draw_cell(result: dict, references: dict[str, str]) -> np.ndarray:
    """The capture and the reference that scores best, side by side, over two lines of text."""
    cell = np.full((SIDE + 2 * GAP + 2 * TEXT + GAP, 2 * SIDE + 4 * GAP, 3), WHITE, np.uint8)
    color = GREEN if result["label"] else RED
    best = result["top_k"][0]["label"] if result["top_k"] else None
    for path, left in ((result["image"], GAP), (references.get(best), SIDE + 2 * GAP)):
        if path is not None:
            place(cell, path, left, GAP)
    cv2.rectangle(cell, (GAP // 2, GAP // 2), (2 * SIDE + 2 * GAP + GAP // 2, SIDE + GAP + GAP // 2), color, 2)
    nearest = f" nearest: {best}" if best and not result["label"] else ""
    for number, (line, of) in enumerate([(Path(result["image"]).stem, BLACK), (answer(result) + nearest, color)], 1):
        text = printable(line).encode("ascii", "replace").decode()  # OpenCV draws no other letters
        cv2.putText(cell, text[:52], (GAP, SIDE + 2 * GAP + number * TEXT - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.42, of, 1,
                    cv2.LINE_AA)
    return cell


def place(cell: np.ndarray, path: str, left: int, top: int) -> None:
    """Draw an image file into the field of SIDE x SIDE pixels at (left, top), its aspect kept; nothing if it is damaged."""
    try:
        image = load_image(path)
    except ImageError:
        return
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    small = cv2.resize(image, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)
    height, width = small.shape[:2]
    y, x = top + (SIDE - height) // 2, left + (SIDE - width) // 2
    cell[y:y + height, x:x + width] = small


def write_image(path, image: np.ndarray) -> None:
    """Write a PNG or JPEG file, with the folders above it. Raises UserError."""
    path = Path(path)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"{path}: must end in .png or .jpg")
    _, data = cv2.imencode(path.suffix, image)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be made ({error.strerror})") from None
    with replacing(path) as partial:
        partial.write_bytes(data.tobytes())


if __name__ == "__main__":
    run_cli(main)
