"""The basic drawing operations: random numbers by key, fonts, text, blending, polygons.

A canvas is a uint8 BGR array [H,W,3], changed in place. A mask is uint8 [h,w]. A color is a BGR tuple of ints.
"""
import colorsys
import functools
import hashlib
import math
import os

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SANS = ("DejaVuSans", "DejaVuSans-Bold")  # every font is (regular, bold)
SERIF = ("DejaVuSerif", "DejaVuSerif-Bold")
MONO = ("DejaVuSansMono", "DejaVuSansMono-Bold")
TIMES = ("STIXGeneral", "STIXGeneralBol")
ITALIC = ("STIXGeneralItalic", "STIXGeneralBolIta")
OBLIQUE = ("DejaVuSans-Oblique", "DejaVuSans-BoldOblique")
SLANTED = ("DejaVuSerif-Italic", "DejaVuSerif-BoldItalic")
SUBPIXEL = 4  # fractional bits of the coordinates given to OpenCV


def rng(*key):
    """A numpy Generator that is a pure function of `key` (strings and integers)."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def pick(r, options):
    """One random element of a sequence, unchanged (Generator.choice would turn it into an array)."""
    return options[int(r.integers(len(options)))]


def hsv(hue, saturation, value):
    """A color from hue (any float, 1 is a full turn), saturation and value (clipped to [0,1])."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return round(255 * blue), round(255 * green), round(255 * red)


def mix(a, b, t):
    """The color between `a` (t = 0) and `b` (t = 1)."""
    return tuple(round(x + (y - x) * t) for x, y in zip(a, b))


@functools.lru_cache(maxsize=256)
def font(face, size):
    """A Pillow font from the TrueType files that come with matplotlib."""
    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", face + ".ttf")
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)  # raqm is not installed everywhere


def text_width(string, face, size):
    return math.ceil(font(face, size).getlength(string))


def fit(string, face, size, width, smallest=7):
    """The largest font size, at most `size`, at which the string fits into `width`; but at least `smallest`."""
    return max(smallest, min(size, int(size * width / max(text_width(string, face, size), 1))))


def text_mask(string, face, size):
    """Mask [ascent + descent, width] of one line of text; all lines in the same font have the same baseline."""
    f = font(face, size)
    image = Image.new("L", (text_width(string, face, size) + 2, sum(f.getmetrics())))
    ImageDraw.Draw(image).text((0, 0), string, fill=255, font=f)
    return np.asarray(image)


def ink(canvas, mask, color, x=0, y=0, alpha=1.0):
    """Paints `color` through a mask whose top left corner is at (x, y). Parts outside the canvas are clipped."""
    x, y = round(x), round(y)
    left, top = max(-x, 0), max(-y, 0)
    mask = mask[top:max(canvas.shape[0] - y, 0), left:max(canvas.shape[1] - x, 0)]
    if mask.size:
        view = canvas[y + top:y + top + mask.shape[0], x + left:x + left + mask.shape[1]]
        weight = mask[..., None].astype(np.float32) * np.float32(alpha / 255)
        view[:] = view + (np.float32(color) - view) * weight + np.float32(.5)


def text(canvas, x, y, string, face, size, color, align="left", width=None, alpha=1.0):
    """Draws one line of text with its top at y; x is the left end, center or right end, according to `align` ("left",
    "center", "right"). With `width`, the font size is reduced until the text fits."""
    if width is not None:
        size = fit(string, face, size, width)
    mask = text_mask(string, face, size)
    ink(canvas, mask, color, x - {"left": 0, "center": mask.shape[1] / 2, "right": mask.shape[1]}[align], y, alpha)


def fixed(points):
    """Float points [..., 2] -> the fixed-point integers that OpenCV takes with shift=SUBPIXEL."""
    return np.round(np.asarray(points, np.float64) * 2 ** SUBPIXEL).astype(np.int32)


def lines(canvas, curves, color, thickness=1, closed=False):
    """Draws antialiased polylines; curves is a list of float arrays [n,2]."""
    cv2.polylines(canvas, [fixed(c) for c in curves], closed, color, thickness, cv2.LINE_AA, SUBPIXEL)


def polygon(canvas, points, color):
    """Draws an antialiased filled polygon of float points [n,2]; it may be concave."""
    cv2.fillPoly(canvas, [fixed(points)], color, cv2.LINE_AA, SUBPIXEL)


def ellipse(canvas, x, y, a, b, color, thickness=-1, start=0, end=360):
    """Draws an antialiased ellipse with half axes a and b, or its arc from `start` to `end` in degrees."""
    cv2.ellipse(canvas, tuple(map(int, fixed((x, y)))), tuple(map(int, fixed((a, b)))), 0, start, end, color,
                thickness, cv2.LINE_AA, SUBPIXEL)


def box(canvas, x, y, w, h, color, thickness=-1):
    """Draws a rectangle of w x h pixels, filled or outlined."""
    cv2.rectangle(canvas, (round(x), round(y)), (round(x + w) - 1, round(y + h) - 1), color, thickness)
