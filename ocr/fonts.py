"""The faces that synthetic lines and renders are set in: which files can be used, and their glyphs as masks.

A face is a font file at one place of its variation axes. What kind of face it is, is read from its tables and from the shape
of its letters, not from its name.
"""
import functools
import logging
import os
import re
import sysconfig
import unicodedata
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
from fontTools import agl
from fontTools.ttLib import TTFont
from matplotlib.font_manager import findSystemFonts
from PIL import Image, ImageDraw, ImageFont, features

from inference.errors import UserError
from ocr.text import fold
from synth.fonts import SCRIPTS, available, find

EM = 96  # pixels per em at which all glyphs are drawn: large enough that hinting hardly changes their shape
QUOTES_AND_DASHES = "‘’“”–—"  # drawn for ' " -, which are what a charset has
LIGATURES = {"ffi": "\ufb03", "ffl": "\ufb04", "fi": "\ufb01", "fl": "\ufb02", "ff": "\ufb00"}
OPENCV = "opencv:uni:400"  # stands for a path: the font inside OpenCV 5, which has Chinese, Japanese and Korean
SUFFIXES = (".ttf", ".otf", ".woff")
log = logging.getLogger(__name__)


class Glyph(NamedTuple):
    mask: np.ndarray  # uint8 [h,w], 255 is ink, cropped to the ink
    left: int  # of the ink, from the pen
    top: int  # of the ink, from the baseline, negative above it
    advance: float  # of the pen


class Face:
    """path: of the font file. axes: the places on its variation axes, () for a fixed font. tags: its OpenType features.
    cmap: the characters that it says it has. serif: whether its letters have serifs, as far as they show it."""

    def __init__(self, path: str, axes: tuple, family: str, italic: bool, bold: bool, tags: frozenset, cmap: frozenset):
        self.path, self.axes, self.family, self.italic, self.bold = path, axes, family, italic, bold
        self.tags, self.cmap, self.serif = tags, cmap, True

    def has(self, text: str) -> bool:
        """Whether all characters are in the font and not drawn as its box for missing ones."""
        return all(c in self.cmap and (c == " " or _glyph(self, c, ()) is not None) for c in text)

    def glyph(self, text: str, tags: tuple = ()) -> Glyph | None:
        """The glyph of a character, or of a ligature's letters, at EM pixels per em; None where the font has none."""
        return _glyph(self, text, tags)

    def kerning(self, left: str, right: str) -> float:
        """By how much the pen moves between two characters, in pixels at EM."""
        return _kerning(self, left, right)

    @functools.cached_property
    def x_height(self) -> int:
        """Pixels at EM."""
        glyph = self.glyph("x")
        return -glyph.top if glyph else EM // 2

    @functools.cached_property
    def cap_height(self) -> int:
        glyph = self.glyph("H")
        return -glyph.top if glyph else EM * 7 // 10


SHAPING = features.check("raqm")  # Pillow's OpenType layout: pair kerning by GPOS, old-style figures


@functools.lru_cache(maxsize=512)
def _font(path, axes, shaped):
    layout = ImageFont.Layout.RAQM if shaped and SHAPING else ImageFont.Layout.BASIC
    font = ImageFont.truetype(path, EM, layout_engine=layout)
    if axes:
        font.set_variation_by_axes(list(axes))
    return font


@functools.lru_cache(maxsize=40_000)  # about 3 kB each
def _glyph(face, text, tags):
    if face.path == OPENCV:
        return _opencv_glyph(text)
    font = _font(face.path, face.axes, len(text) > 1 or bool(tags))
    options = {"features": list(tags)} if tags and SHAPING else {}
    try:
        left, top, right, bottom = font.getbbox(text, anchor="ls", **options)
        if not 0 < right - left < 8 * EM or not 0 < bottom - top < 8 * EM:
            return None
        image = Image.new("L", (right - left + 2, bottom - top + 2))
        ImageDraw.Draw(image).text((1 - left, 1 - top), text, fill=255, font=font, anchor="ls", **options)
        advance = font.getlength(text, **options)
    except (OSError, ValueError):  # a broken glyph
        return None
    glyph = _cropped(np.asarray(image), left - 1, top - 1, advance)
    # "Tofu": U+FFFF is never a character, so it draws what stands for a missing one.
    missing = _glyph(face, "\uffff", ()) if text != "\uffff" else None
    return None if glyph and missing and _same(glyph, missing) else glyph


def _same(one, other):
    """Whether two glyphs are drawn alike, apart from hinting, which may depend on the character."""
    if np.abs(np.subtract(one.mask.shape, other.mask.shape)).max() > 1 or abs(one.top - other.top) > 1:
        return False
    h, w = np.minimum(one.mask.shape, other.mask.shape)
    # Hinting moves edges by less than a pixel: no more differs than one row of pixels along the edges.
    return cv2.absdiff(one.mask[:h, :w], other.mask[:h, :w]).sum() < 255 * (h + w) / 4


def _cropped(mask, left, top, advance):
    """A drawn mask whose corner is at (left, top) as a Glyph; None without ink."""
    rows, columns = np.flatnonzero(mask.max(1) > 96), np.flatnonzero(mask.max(0) > 96)
    if not len(rows):
        return None
    part = np.ascontiguousarray(mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1])
    return Glyph(part, left + int(columns[0]), top + int(rows[0]), advance)


def _opencv_glyph(text):
    """A glyph of the font inside OpenCV; it draws a question mark for what it lacks."""
    font, _ = find(OPENCV)
    mask = font.mask(text, EM)
    if text not in ("?", "？") and np.array_equal(mask, font.mask("?", EM)):
        return None
    return _cropped(mask, 0, -EM, font.width(text, EM))


@functools.lru_cache(maxsize=200_000)
def _kerning(face, left, right):
    if face.path == OPENCV:
        return 0.0
    font = _font(face.path, face.axes, True)
    options = {"features": ["-liga", "-clig", "-dlig", "-calt"]} if SHAPING else {}
    both, one, other = (font.getlength(text, **options) for text in (left + right, left, right))
    moved = both - one - other
    return moved if abs(moved) < EM / 4 else 0.0


def font_files(folders=()) -> list[str]:
    """The font files below `folders` (default: matplotlib's, fontpkg packages', the system's), sorted by path. Raises
    UserError for a missing folder."""
    for folder in folders:
        if not os.path.exists(folder):
            raise UserError(f"{folder}: no such folder of fonts")
    roots = folders or [Path(matplotlib.get_data_path(), "fonts", "ttf"),
                        *Path(sysconfig.get_path("purelib")).glob("fontpkg_*"), *findSystemFonts()]
    return sorted({str(path) for root in roots for path in ([Path(root)] if os.path.isfile(root) else Path(root).rglob("*"))
                   if path.suffix.lower() in SUFFIXES and path.is_file()})


def find_faces(folders=(), charset: str = "") -> list[Face]:
    """The faces of `font_files(folders)`, in that order.

    Excluded: symbol, script, decorative and fixed-pitch faces, those of extreme weight, those whose small letters are
    capitals, and those that have less than half of the letters of `charset`. Raises UserError for a missing folder, or
    where no face remains.
    """
    files = font_files(folders)
    faces = [face for file in files for face in _faces_of(file, charset)]
    if not folders and available().get("cjk") == "opencv:uni" and any(re.match(f"[{SCRIPTS['cjk']}]", c) for c in charset):
        face = Face(OPENCV, (), "OpenCV", False, False, frozenset(), frozenset(charset) | {" "})
        faces += [face] if _is_text_face(face, charset) else []
    if not faces:
        raise UserError(f"{', '.join(map(str, folders)) or 'this machine'}: no font among {len(files)} files can be used; "
                        "give a folder with text faces (.ttf, .otf, .woff) that have the letters of the charset")
    return faces


def _faces_of(file, charset):
    """The faces of a file that can be used: one, two of a variable font, or none."""
    try:
        with TTFont(file, lazy=True) as font:
            cmap = font.getBestCmap() or {}
            letters = [c for c in charset if c.isalpha()] or list(charset)
            # Counted by glyph: a font of last resort has one for all characters of a script.
            if len({cmap[ord(c)] for c in letters if ord(c) in cmap}) * 2 < len(letters) or not letters:
                return []
            os2, post = font["OS/2"], font["post"]
            panose = os2.panose
            # PANOSE's family: 0 any, 1 no fit, 2 text, 3 script, 4 decorative, 5 symbol; proportion 9 of text: fixed pitch.
            if panose.bFamilyType > 2 or panose.bFamilyType == 2 and panose.bProportion == 9 or post.isFixedPitch:
                return []
            if "fvar" not in font and not 300 <= os2.usWeightClass <= 800:
                return []
            names = font["name"]
            family = names.getDebugName(16) or names.getDebugName(1) or os.path.basename(file)
            italic = bool(os2.fsSelection & 1 or post.italicAngle)
            bold = bool(os2.fsSelection & 32 or os2.usWeightClass >= 600)
            tags = frozenset(record.FeatureTag for record in font["GSUB"].table.FeatureList.FeatureRecord) \
                if "GSUB" in font and font["GSUB"].table.FeatureList else frozenset()
            wanted = set(charset) | set(QUOTES_AND_DASHES) | set(LIGATURES.values()) | {" "}
            has = frozenset(c for c in wanted if ord(c) in cmap and _named(c, cmap[ord(c)]))
            places = _places(font)
        faces = [Face(file, place, family, italic, bold, tags, has) for place in places]
        return [face for face in faces if _is_text_face(face, charset)]
    except Exception as error:  # fontTools and FreeType raise errors of many types for a broken file
        log.info("%s: not used (%s)", file, error)
        return []


def _named(character, name):
    """Whether a glyph's name does not tell another character: TeX's old fonts have other ones at some code points."""
    told = agl.toUnicode(name)
    return not told or fold(told) == fold(character)


def _places(font):
    """The places on the axes of a variable font: its text weight, and a darker cut for larger sizes."""
    if "fvar" not in font:
        return [()]
    def place(weight, size):
        axes = []
        for axis in font["fvar"].axes:
            value = {"wght": weight, "opsz": axis.defaultValue * size}.get(axis.axisTag, axis.defaultValue)
            axes.append(min(max(value, axis.minValue), axis.maxValue))
        return tuple(axes)
    return [place(400, 1), place(500, 2.5)]


def _is_text_face(face, charset):
    """Looks at the drawn letters: whether most are there, i and l are narrow, as those of dingbats and typewriters are not,
    and small letters are no capitals; sets `serif`."""
    letters = [c for c in charset if c.isalpha()] or list(charset)
    sample = letters[::max(1, len(letters) // 12)]
    if sum(face.has(c) for c in sample) * 2 < len(sample):
        return False
    if face.has("ilm"):
        narrow, narrow_too, wide_one = (face.glyph(c).mask.shape[1] for c in "ilm")
        if max(narrow, narrow_too) > .7 * wide_one:
            return False
    if face.has("aegrAEGR"):
        alike = [_overlap(face.glyph(c).mask, face.glyph(c.upper()).mask) for c in "aegr"]
        if np.mean(alike) > .62:  # small capitals in the place of small letters
            return False
    if face.has("H"):  # serifs make its stems wider at the top
        widths = (face.glyph("H").mask > 127).sum(1)
        face.serif = bool(widths[:len(widths) // 8].max() > 1.5 * np.median(widths[len(widths) // 4:len(widths) * 2 // 5]))
    return True


def _overlap(a, b):
    """Intersection over union of two masks, stretched to one shape."""
    a, b = (cv2.resize(mask, (24, 32), interpolation=cv2.INTER_AREA) > 127 for mask in (a, b))
    return (a & b).sum() / max(1, (a | b).sum())


class Faces:
    """Draws faces: upright text faces with serifs most often, and each family as often as the others of its kind."""

    STYLES = ((False, False, .78), (True, False, .12), (False, True, .08), (True, True, .02))  # italic, bold, share
    SANS = .15  # share of a family without serifs, where one with serifs is 1

    def __init__(self, faces: list[Face]):
        self.styles = []
        for italic, bold, share in self.STYLES:
            families = {}
            for face in faces:
                if (face.italic, face.bold) == (italic, bold):
                    families.setdefault(face.family, []).append(face)
            if families:
                weights = np.cumsum([1 if any(face.serif for face in family) else self.SANS for family in families.values()])
                self.styles.append((share, list(families.values()), weights / weights[-1]))
        total = np.cumsum([share for share, *_ in self.styles])
        self.shares = total / total[-1]
        self.italics = {face.family: face for face in faces if face.italic and not face.bold}

    def draw(self, r: np.random.Generator) -> Face:
        _, families, weights = self.styles[int(np.searchsorted(self.shares, r.random()))]
        family = families[int(np.searchsorted(weights, r.random()))]
        return family[int(r.integers(len(family)))]


def wide(character: str) -> bool:
    """Whether a character fills a square, as Chinese ones do."""
    return unicodedata.east_asian_width(character) in "WF"
