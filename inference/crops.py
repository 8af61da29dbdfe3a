"""Crops of characters and words, as a recognizer takes them, and the names of their classes' folders. numpy and OpenCV only.

    crop(image, box, "line", 64)          # uint8 [64,64,3], in training and in reading alike
    class_folder("A"), class_text("65")   # "65", "A"

Boxes are (x0, y0, x1, y1) in pixels, from edge to edge: pixel i of a row reaches from i to i + 1.
"""
import numpy as np

from .image import resize

KINDS = ("tight", "line")
PAD = 0.05
LONGEST = 255  # bytes of a file's name


def crop(image: np.ndarray, box, kind: str = "tight", size: int = 64, pad: float = PAD,
         vertical: bool = False) -> np.ndarray:
    """What lies in `box` of a line's image, uint8 `[H,W]` or `[H,W,3]`, as a square `[size,size]` or `[size,size,3]`.

    kind "tight": the box alone, as EffOCR cuts. "line": the line's whole height, or with `vertical` its whole width, so that
    the size and the place of the character on the line stay visible: c and C, a comma and an apostrophe.
    The box grows by `pad` of its longer side, at least by a pixel, as far as the image goes. The rest of the square has the
    color of the crop's border, its median. size: 0 leaves the square as large as the crop.
    Raises ValueError for another kind, and for a box without a pixel in the image: such a crop would show nothing.
    """
    if kind not in KINDS:
        raise ValueError(f"crop {kind!r}: choose one of {', '.join(KINDS)}")
    height, width = image.shape[:2]
    x0, y0, x1, y1 = np.asarray(box, float)
    if not (min(x1, width) > max(x0, 0) and min(y1, height) > max(y0, 0)):  # NaN too
        raise ValueError(f"no pixel of the {width} x {height} image is in the box {x0:g}, {y0:g}, {x1:g}, {y1:g}")
    grow = max(1.0, pad * max(x1 - x0, y1 - y0))
    low = np.floor(np.maximum([x0 - grow, y0 - grow], 0)).astype(int)
    high = np.ceil(np.minimum([x1 + grow, y1 + grow], [width, height])).astype(int)
    if kind == "line":
        low[1 - vertical], high[1 - vertical] = 0, (height, width)[vertical]
    part = image[low[1]:high[1], low[0]:high[0]]
    tall, wide = part.shape[:2]
    border = np.concatenate([part[0], part[-1], part[:, 0], part[:, -1]])
    side = max(tall, wide)
    square = np.full((side, side, *part.shape[2:]), np.rint(np.median(border, 0)), image.dtype)
    top, left = (side - tall) // 2, (side - wide) // 2
    square[top:top + tall, left:left + wide] = part
    return resize(square, size) if size else square


def class_folder(text: str) -> str:
    """The name of the folder of a class: the decimal code point of a character; those of a word, joined by "-". Safe for any
    text, and never the name of another one. Raises ValueError for a name that is too long for a file system."""
    name = "-".join(str(ord(character)) for character in text)
    if not 0 < len(name) <= LONGEST:
        raise ValueError(f"a class of {len(text)} characters: its folder's name has no room for them")
    return name


def class_text(folder: str) -> str:
    """The text of the class whose folder is so named. Raises ValueError for any other name."""
    text = "".join(chr(int(number)) for number in folder.split("-") if number.isdecimal() and int(number) <= 0x10FFFF)
    if not text or class_folder(text) != folder:
        raise ValueError(f"{folder!r} is not a class: a folder is named by decimal code points, such as 65, or 97-110 for a "
                         "word")
    return text
