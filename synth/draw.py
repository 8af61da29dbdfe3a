"""The basic drawing operations: random numbers by key, text, blending, polygons.

A canvas is a uint8 BGR array [H,W,3], changed in place. A mask is uint8 [h,w]. A color is a BGR tuple of ints.
"""
import colorsys
import hashlib
import math

import cv2
import numpy as np

from synth.fonts import find, script_of

SUBPIXEL = 4  # fractional bits of the coordinates given to OpenCV
ALIGN = {"left": 0, "center": .5, "right": 1}  # the share of the free or drawn width that lies left of a point


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


def readable(color):
    """Black or white, whichever is readable on the color."""
    return (20, 20, 20) if .11 * color[0] + .59 * color[1] + .3 * color[2] > 140 else (255, 255, 255)


def visible(color, paper):
    """The color, or black or white where it would be hard to see on the paper."""
    return color if sum(abs(a - b) for a, b in zip(color, paper)) > 180 else readable(paper)


def turn(angle):
    """The matrix [2,2] that rotates rows of points, points @ turn(angle), clockwise on the page by radians."""
    return np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])


def text_width(string, face, size):
    font, stretch = find(face, script_of(string))
    return math.ceil(font.width(string, size) * stretch)


def fit(string, face, size, width, smallest=7):
    """The largest font size, at most `size`, at which the string fits into `width`; but at least `smallest`."""
    return max(smallest, min(size, int(size * width / max(text_width(string, face, size), 1))))


def text_mask(string, face, size):
    """Mask [ascent + descent, width] of one line of text; all lines in the same font have the same baseline."""
    font, stretch = find(face, script_of(string))
    mask = font.mask(string, size)
    if stretch != 1 and mask.shape[1] > 1:
        mask = cv2.resize(mask, (max(1, round(mask.shape[1] * stretch)), mask.shape[0]), interpolation=cv2.INTER_AREA)
    return mask


def ink(canvas, mask, color, x=0, y=0, alpha=1.0):
    """Paints `color` through a mask whose top left corner is at (x, y). Parts outside the canvas are clipped."""
    x, y = round(x), round(y)
    left, top = max(-x, 0), max(-y, 0)
    mask = mask[top:max(canvas.shape[0] - y, 0), left:max(canvas.shape[1] - x, 0)]
    if mask.size:
        view = canvas[y + top:y + top + mask.shape[0], x + left:x + left + mask.shape[1]]
        weight = mask * np.float32(alpha / 255)
        for channel, value in enumerate(color):  # one by one: numpy is slow on arrays whose last axis is short
            plane = view[..., channel].astype(np.float32)
            view[..., channel] = plane + (value - plane) * weight + np.float32(.5)


def text(canvas, x, y, string, face, size, color, align="left", width=None, alpha=1.0):
    """Draws one line of text with its top at y; x is the left end, center or right end, according to `align` ("left",
    "center", "right"). With `width`, the font size is reduced until the text fits."""
    if width is not None:
        size = fit(string, face, size, width)
    mask = text_mask(string, face, size)
    ink(canvas, mask, color, x - ALIGN[align] * mask.shape[1], y, alpha)


def tight_mask(string, face, w, h, stretch=1.25):
    """Mask [<= h, <= w] of the string without margins, as large as the box allows. To fill it, letters may become up to
    `stretch` times wider or narrower than in the font."""
    mask = text_mask(string, face, max(8, round(1.25 * h)))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return mask[:1, :1]
    mask = mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    wide, high = w / mask.shape[1], h / mask.shape[0]
    wide, high = min(wide, high * stretch), min(high, wide * stretch)
    size = max(1, int(mask.shape[1] * wide)), max(1, int(mask.shape[0] * high))
    return cv2.resize(mask, size, interpolation=cv2.INTER_AREA if wide < 1 else cv2.INTER_LINEAR)


def large_text(canvas, x, y, w, h, string, face, color, align="center", stretch=1.25):
    """Draws one line of text as large as the box allows, centered in height; see tight_mask."""
    mask = tight_mask(string, face, w, h, stretch)
    ink(canvas, mask, color, x + ALIGN[align] * (w - mask.shape[1]), y + (h - mask.shape[0]) / 2)


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


def rounded(canvas, x, y, w, h, radius, color, thickness=-1):
    """Draws a rectangle of w x h pixels with round corners, filled or outlined."""
    radius = min(radius, w / 2, h / 2)
    t = np.radians(np.arange(0, 91, 15))
    arcs = [np.stack([cx + radius * np.cos(t + first), cy + radius * np.sin(t + first)], 1) for cx, cy, first in (
        (x + w - 1 - radius, y + h - 1 - radius, 0), (x + radius, y + h - 1 - radius, math.pi / 2),
        (x + radius, y + radius, math.pi), (x + w - 1 - radius, y + radius, -math.pi / 2))]
    if thickness < 0:
        polygon(canvas, np.concatenate(arcs), color)
    else:
        lines(canvas, [np.concatenate(arcs)], color, thickness, closed=True)


def box(canvas, x, y, w, h, color, thickness=-1):
    """Draws a rectangle of w x h pixels, filled or outlined."""
    cv2.rectangle(canvas, (round(x), round(y)), (round(x + w) - 1, round(y + h) - 1), color, thickness)
