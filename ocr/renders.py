"""Draw each character of a charset in each font: one folder per character, to train a recognizer or to look up crops in.

    python -m ocr renders --out DIR
    python -m ocr renders --out DIR --charset FILE --fonts FONTS... --crop line --size 64

A character's folder is named by its decimal code point (A: 65); an image in it by its font. What a font lacks is not drawn:
neither what its table of characters does not list, nor what it draws as the box for missing characters. The images are clean
and cut as `python -m ocr crops` cuts: `--crop tight` the glyph alone, `--crop line` all of the line's height, so that c and
C, a comma and an apostrophe differ.
"""
import re
import sys
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from inference.cli import Parser, run_cli
from inference.crops import KINDS, class_folder, crop
from inference.errors import UserError, printable
from ocr.folder import new_folder
from ocr.fonts import EM, Face, Glyph, find_faces
from ocr.text import CHARSET, read_charset

LETTERS = "bdhklfgjpqyHÉ("  # their highest and lowest ink is what a line of text is as high as


def line_extent(face: Face, charset: str) -> tuple[int, int]:
    """(highest, lowest) row of a line of the face, from the baseline, in pixels at EM."""
    glyphs = [face.glyph(c) for c in [*LETTERS, *[c for c in charset if c in face.cmap][:200]] if c in face.cmap]
    rows = [(glyph.top, glyph.top + len(glyph.mask)) for glyph in glyphs if glyph]
    return min(top for top, _ in rows), max(bottom for _, bottom in rows)


def render(glyph: Glyph, extent: tuple[int, int], kind: str, size: int) -> np.ndarray:
    """A glyph, black on white, as a square uint8 [size,size]. extent: of its face's lines, see `line_extent`."""
    high, low = min(extent[0], glyph.top), max(extent[1], glyph.top + len(glyph.mask))
    h, w = glyph.mask.shape
    room = EM // 4  # on both sides, white
    line = np.full((low - high + (2 * room if kind == "tight" else 0), w + 2 * room), 255, np.uint8)
    x, y = room, glyph.top - high + (room if kind == "tight" else 0)
    line[y:y + h, x:x + w] = 255 - glyph.mask
    return crop(line, (x, y, x + w, y + h), kind, size)


def write_renders(out, fonts=(), charset=None, kind: str = "tight", size: int = 64) -> tuple[int, int]:
    """Writes the renders into the new folder `out` and returns (images, characters). fonts: folders or files; charset: file.
    Raises UserError for a folder that has something in it, and for fonts and charsets that cannot be used."""
    if not 8 <= size <= 1024:
        raise UserError(f"--size {size}: give 8 to 1024")
    characters = read_charset(charset) if charset else CHARSET
    faces = find_faces(fonts, characters)
    drawn, seen = dict.fromkeys(characters, 0), set()
    with new_folder(out) as part:
        for face in tqdm(faces, "renders", unit="face", disable=None):
            name = name_of(face, seen)
            extent = line_extent(face, characters)
            for character in characters:
                if character not in face.cmap or (glyph := face.glyph(character)) is None:
                    continue
                path = part / class_folder(character) / f"{name}.png"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(cv2.imencode(".png", render(glyph, extent, kind, size))[1])
                drawn[character] += 1
    missing = [character for character, count in drawn.items() if not count]
    if missing:
        print(printable(f"in no font: {' '.join(missing)}"), file=sys.stderr)
    return sum(drawn.values()), len(drawn) - len(missing)


def name_of(face: Face, seen: set) -> str:
    """A file name for a face that no other in `seen` has: its font's, and a number where that has more than one cut."""
    stem = re.sub(r"[^\w.-]+", "_", Path(face.path).stem) or "font"
    name, number = stem, 1
    while name in seen:
        number += 1
        name = f"{stem}_{number}"
    seen.add(name)
    return name


def main(argv=None):
    parser = Parser(prog="python -m ocr renders", description=__doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; it must be new or empty")
    parser.add_argument("--fonts", nargs="+", default=[], metavar="FOLDER", help="folders with .ttf, .otf or .woff files "
                        "(default: matplotlib's, fontpkg packages', the system's)")
    parser.add_argument("--charset", metavar="FILE", help="lines CODEPOINT<TAB>CHARACTER, or any text with the characters "
                                                          "(default: the letters, figures and marks of English books)")
    parser.add_argument("--crop", choices=KINDS, default="tight", help="the glyph alone, or all of the line's height")
    parser.add_argument("--size", type=int, default=64, metavar="S", help="side of the images in pixels")
    args = parser.parse_args(argv)
    images, characters = write_renders(args.out, args.fonts, args.charset, args.crop, args.size)
    print(f"{args.out}: {images:,} renders of {characters:,} characters", file=sys.stderr)


if __name__ == "__main__":
    run_cli(main)
