"""What every drawing here is made of: random numbers by name, fonts, text, blending, polygons.

A canvas is a uint8 BGR array [H,W,3], changed in place; a mask is uint8 [h,w]; a colour is a BGR tuple of ints.
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

SANS = ("DejaVuSans", "DejaVuSans-Bold")  # every face as (regular, bold)
SERIF = ("DejaVuSerif", "DejaVuSerif-Bold")
MONO = ("DejaVuSansMono", "DejaVuSansMono-Bold")
TIMES = ("STIXGeneral", "STIXGeneralBol")
ITALIC = ("STIXGeneralItalic", "STIXGeneralBolIta")
OBLIQUE = ("DejaVuSans-Oblique", "DejaVuSans-BoldOblique")
SLANTED = ("DejaVuSerif-Italic", "DejaVuSerif-BoldItalic")
SUBPIXEL = 4  # fractional bits of the coordinates given to OpenCV


def rng(*key):
    """A numpy Generator that depends on nothing but `key` (strings and integers): no order, no process, no state."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def pick(r, options):
    """One of a sequence, as it is (Generator.choice would turn it into an array)."""
    return options[int(r.integers(len(options)))]


def hsv(hue, saturation, value):
    """A colour from hue (any float, 1 is a full turn), saturation and value (clipped to [0,1])."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return round(255 * blue), round(255 * green), round(255 * red)


def mix(a, b, t):
    """Colour `a` moved towards `b` by t in [0,1]."""
    return tuple(round(x + (y - x) * t) for x, y in zip(a, b))


@functools.lru_cache(maxsize=256)
def font(face, size):
    """A Pillow font from the TrueType files that come with matplotlib."""
    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", face + ".ttf")
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)  # raqm is not everywhere


def text_width(string, face, size):
    return math.ceil(font(face, size).getlength(string))


def fit(string, face, size, width, smallest=7):
    """The largest size up to `size` at which the string is at most `width` wide, but never under `smallest`."""
    return max(smallest, min(size, int(size * width / max(text_width(string, face, size), 1))))


def text_mask(string, face, size):
    """Mask [ascent + descent, width] of one line, so that lines of the same font share their baseline."""
    f = font(face, size)
    image = Image.new("L", (text_width(string, face, size) + 2, sum(f.getmetrics())))
    ImageDraw.Draw(image).text((0, 0), string, fill=255, font=f)
    return np.asarray(image)


def ink(canvas, mask, colour, x=0, y=0, alpha=1.0):
    """Paints `colour` through a mask whose top left corner lies at (x, y); what falls outside is cut off."""
    x, y = round(x), round(y)
    left, top = max(-x, 0), max(-y, 0)
    mask = mask[top:max(canvas.shape[0] - y, 0), left:max(canvas.shape[1] - x, 0)]
    if mask.size:
        view = canvas[y + top:y + top + mask.shape[0], x + left:x + left + mask.shape[1]]
        weight = mask[..., None].astype(np.float32) * np.float32(alpha / 255)
        view[:] = view + (np.float32(colour) - view) * weight + np.float32(.5)


def text(canvas, x, y, string, face, size, colour, align="left", width=None, alpha=1.0):
    """One line with its top at y; x is its left end, middle or right end by `align`; shrunk to `width` if given."""
    if width is not None:
        size = fit(string, face, size, width)
    mask = text_mask(string, face, size)
    ink(canvas, mask, colour, x - {"left": 0, "centre": mask.shape[1] / 2, "right": mask.shape[1]}[align], y, alpha)


def fixed(points):
    """Float points [..., 2] as the fixed-point integers that OpenCV draws with shift=SUBPIXEL."""
    return np.round(np.asarray(points, np.float64) * 2 ** SUBPIXEL).astype(np.int32)


def lines(canvas, curves, colour, thickness=1, closed=False):
    """Antialiased polylines; curves is a list of float arrays [n,2]."""
    cv2.polylines(canvas, [fixed(c) for c in curves], closed, colour, thickness, cv2.LINE_AA, SUBPIXEL)


def polygon(canvas, points, colour):
    """An antialiased filled polygon of float points [n,2]; may be concave."""
    cv2.fillPoly(canvas, [fixed(points)], colour, cv2.LINE_AA, SUBPIXEL)


def ellipse(canvas, x, y, a, b, colour, thickness=-1, start=0, end=360):
    """An antialiased ellipse (or its arc, in degrees) with half axes a, b."""
    cv2.ellipse(canvas, tuple(map(int, fixed((x, y)))), tuple(map(int, fixed((a, b)))), 0, start, end, colour,
                thickness, cv2.LINE_AA, SUBPIXEL)


def box(canvas, x, y, w, h, colour, thickness=-1):
    """A rectangle of w x h pixels, filled or outlined."""
    cv2.rectangle(canvas, (round(x), round(y)), (round(x + w) - 1, round(y + h) - 1), colour, thickness)
