"""The fonts: Latin, Greek and Cyrillic letters from matplotlib's files and from OpenCV; other scripts from what is there.

Chinese, Japanese and Korean come from the font inside OpenCV 5, Arabic from matplotlib's DejaVu Sans, Devanagari from a
font of the system. Arabic and Devanagari need shaping, so Pillow must have raqm. A script without a font is not used:
`available()` tells which are, and words.py then takes another language. No file is downloaded.
"""
import functools
import glob
import math
import os
import re
import sysconfig
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

SANS = ("DejaVuSans", "DejaVuSans-Bold")  # every font is (regular, bold)
SERIF = ("DejaVuSerif", "DejaVuSerif-Bold")
MONO = ("DejaVuSansMono", "DejaVuSansMono-Bold")
TIMES = ("STIXGeneral", "STIXGeneralBol")
ITALIC = ("STIXGeneralItalic", "STIXGeneralBolIta")
OBLIQUE = ("DejaVuSans-Oblique", "DejaVuSans-BoldOblique")
SLANTED = ("DejaVuSerif-Italic", "DejaVuSerif-BoldItalic")
RUBIK = ("opencv:sans:400", "opencv:sans:700")  # in OpenCV 5; before it, DejaVu Sans
HEAVY = ("opencv:sans:600", "opencv:sans:900")
LEANING = ("opencv:italic:400", "opencv:italic:800")
NARROW = ("DejaVuSans@72", "DejaVuSans-Bold@72")  # 72 % of the width
WIDE = ("opencv:sans:400@135", "opencv:sans:800@135")

SCRIPTS = {"cjk": "\u3000-\u30ff\u3400-\u9fff\uac00-\ud7a3", "arabic": "\u0600-\u06ff", "devanagari": "\u0900-\u097f"}
_PATTERNS = {script: re.compile(f"[{letters}]") for script, letters in SCRIPTS.items()}
_FOLDERS = (sysconfig.get_path("purelib") + "/fontpkg_*",  # fonts from PyPI
            "/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/Library/Fonts",
            "/System/Library/Fonts", "C:/Windows/Fonts")
_FILES = {"cjk": ("NotoSansCJK*Regular*", "NotoSansCJK*Bold*", "wqy-*.tt?", "DroidSansFallback*.ttf", "msyh.tt?"),
          "devanagari": ("NotoSansDevanagari*Regular*", "NotoSansDevanagari*", "Lohit-Devanagari.ttf",
                         "mangal.ttf", "*Devanagari*.tt?")}  # the first that is found


class _File:
    """A font file, drawn by Pillow."""

    def __init__(self, path, shaped=False):
        self.path, self.layout = str(path), ImageFont.Layout.RAQM if shaped else ImageFont.Layout.BASIC

    @functools.lru_cache(maxsize=64)
    def _at(self, size):
        return ImageFont.truetype(self.path, size, layout_engine=self.layout)

    def width(self, string, size):
        return self._at(size).getlength(string)

    def mask(self, string, size):
        f = self._at(size)
        image = Image.new("L", (math.ceil(f.getlength(string)) + 2, sum(f.getmetrics())))
        ImageDraw.Draw(image).text((0, 0), string, fill=255, font=f)
        return np.asarray(image)


class _BuiltIn:
    """A font inside OpenCV 5."""

    def __init__(self, name, weight):
        self.face, self.weight = cv2.FontFace(name), weight

    def width(self, string, size):
        x, _, w, _ = cv2.getTextSize((0, 0), string, (0, 0), self.face, size, self.weight)
        return x + w

    def mask(self, string, size):
        canvas = np.zeros((math.ceil(1.3 * size), math.ceil(self.width(string, size)) + 2, 3), np.uint8)
        cv2.putText(canvas, string, (0, size), (255, 255, 255), self.face, size, self.weight)
        return canvas[..., 0]


def script_of(string):
    """The key of SCRIPTS to which a letter of the string belongs, or None for Latin, Greek and Cyrillic."""
    if string.isascii():
        return None
    return next((script for script, pattern in _PATTERNS.items() if pattern.search(string)), None)


@functools.cache
def available():
    """{script: name of its font}, for the scripts of SCRIPTS that can be drawn on this machine."""
    found, shaping = {}, features.check("raqm") and features.check("fribidi")
    if _has_unicode_font():
        found["cjk"] = "opencv:uni"
    if shaping:
        found["arabic"] = "DejaVuSans"
    wanted = {script: files for script, files in _FILES.items() if script not in found and (script == "cjk" or shaping)}
    folders = [match for folder in _FOLDERS for match in sorted(glob.glob(os.path.expanduser(folder)))] if wanted else []
    files = [path for folder in folders for path in sorted(Path(folder).rglob("*.[to]t?"))]
    for script, patterns in wanted.items():
        path = next((path for pattern in patterns for path in files if path.match(pattern)), None)
        if path:
            found[script] = str(path)
    return found


def _has_unicode_font():
    """Whether OpenCV draws Chinese letters: it has FontFace since 5.0, and the Unicode font if it was built with it."""
    if not hasattr(cv2, "FontFace"):
        return False
    drawn = [_BuiltIn("uni", 400).mask(letter, 24) for letter in "口日?"]
    return len({mask.tobytes() for mask in drawn}) == 3  # a missing letter is drawn as a question mark


@functools.lru_cache(maxsize=256)
def find(face, script=None):
    """(font, stretch) of a face for a script. A face is a file name of matplotlib's, or "opencv:name:weight"; "@72" at the
    end makes the letters that percentage of their width."""
    name, _, stretch = face.partition("@")
    stretch = int(stretch or 100) / 100
    if script:
        name, bold = available()[script], "Bold" in name or name[-3:] in ("700", "800", "900")
        if name == "DejaVuSans" and bold:
            name = "DejaVuSans-Bold"
        if name == "opencv:uni":
            return _BuiltIn("uni", 400), stretch
    if os.path.isabs(name):
        return _File(name, shaped=script != "cjk"), stretch
    if name.startswith("opencv:"):
        _, name, weight = name.split(":")
        if hasattr(cv2, "FontFace"):
            return _BuiltIn(name, int(weight)), stretch
        name = SANS[int(weight) > 600] if name == "sans" else OBLIQUE[int(weight) > 600]
    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", name + ".ttf")
    return _File(path, shaped=script is not None), stretch
