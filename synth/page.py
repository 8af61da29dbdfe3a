"""A document type while it is drawn: its canvas, its fields, and the choices that apply to the whole page."""
from dataclasses import dataclass

import numpy as np

from synth import art, words
from synth.draw import MONO, SANS, SERIF, TIMES, ellipse, hsv, mix, pick, text
from synth.fields import Field

HUES = {"id_card": (.55, .33, .95, .12), "passport": (.58, .98, .3), "bank_card": (.6, .45, .03, .75, .12),
        "form": (.6, .35, 0.), "receipt": (0.,), "ticket": (.08, .55, .9), "label": (.13, .33, .6),
        "certificate": (.1, .55, .3), "invoice": (.6, .0, .35, .08)}  # typical hues of a family
NUMBERS = ("AA 999999", "A9999999", "999-999-999", "99 99 999999", "AAA-9999-A", "9999/9999", "99999999 A")
DATES = ("d.m.y", "d/m/y", "y-m-d", "d m y", "m/y")
VALUES = {"surname": "word", "given": "word", "name": "name", "birth": "date", "place": "word", "number": "number",
          "issued": "date", "expires": "date", "sex": "letter", "height": "number:179 cm", "address": "address",
          "signature": "signature", "date": "date", "time": "number:19:39", "seat": "number:99A", "gate": "number:A9",
          "from": "word", "to": "word", "amount": "amount", "lot": "number:A9999", "weight": "number:9.99 kg",
          "remarks": "remarks"}  # the kind of field that goes with a label, or kind:pattern


@dataclass(frozen=True)
class Template:
    """A document type. art: uint8 BGR [H,W,3], read-only; fields: those to fill in, in drawing order."""
    family: str
    art: np.ndarray
    fields: tuple


class Page:
    """A type while it is drawn: the canvas, the fields so far, and the choices that apply to the whole page."""

    def __init__(self, r, family, w, h, pale=.07, layers=2, strength=.4):
        self.r, self.family, self.w, self.h = r, family, w, h
        hue = pick(r, HUES[family]) + r.normal(0, .02)
        second = hue + pick(r, (.06, -.08, .45))
        self.hues = (hue, second)
        self.dark, self.other = hsv(hue, .75, r.uniform(.35, .6)), hsv(second, .65, r.uniform(.4, .7))
        self.ink = mix(self.dark, (15, 15, 15), .75)
        self.language = int(r.integers(len(words.LANGUAGES)))
        self.face, self.body = pick(r, (SANS, SERIF, TIMES, SANS)), pick(r, (SANS, SANS, SERIF, MONO))
        self.number, self.date = pick(r, NUMBERS), pick(r, DATES)
        papers = hsv(hue, pale, .97), hsv(second, pale * 1.6, .94)
        self.canvas = art.background(r, w, h, papers, (self.dark, self.other), layers, strength)
        self.fields = []

    def text(self, x, y, string, size, width, color=None, align="left", face=None, bold=True):
        """Draws fixed text in the font and ink of the page; see draw.text."""
        text(self.canvas, x, y, string, (face or self.face)[bold], size, color or self.ink, align, width)

    def field(self, kind, x, y, w, h, **options):
        """Adds a field. Number and date formats are the same on the whole page."""
        usual = {"color": self.ink, "face": self.body[1], "language": self.language,
                 "pattern": {"number": self.number, "date": self.date}.get(kind, "")}
        self.fields.append(Field(kind, round(x), round(y), round(w), round(h), **{**usual, **options}))

    def entry(self, key, x, y, w, size=12, **options):
        """Adds a field for a value, with a small label above it; both together are size + 14 high."""
        self.text(x, y, words.LABELS[key][self.language], 8, w, mix(self.dark, self.ink, .3), face=SANS, bold=False)
        kind, _, pattern = VALUES[key].partition(":")
        if pattern:
            options.setdefault("pattern", pattern)
        self.field(options.pop("kind", kind), x, y + 10, w, size + 4, size=size, **options)

    def emblem(self, x, y, radius, disc=False):
        """Draws an emblem in the colors of the page; `disc` puts it on a white disc, to be visible on a dark band."""
        if disc:
            ellipse(self.canvas, x, y, radius + 4, radius + 4, art.WHITE)
        art.emblem(self.r, self.canvas, x, y, radius, (self.dark, self.other), words.name(self.r, self.language)[0])

    def heading(self, kind):
        """The name of the organization that issues the document (kind: a key of words.ORGANIZATIONS) and the title."""
        return words.organization(self.r, kind, self.language), words.title(self.r, self.family, self.language)

    def done(self):
        self.canvas.flags.writeable = False
        return Template(self.family, self.canvas, tuple(self.fields))
