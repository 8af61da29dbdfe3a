"""A document type while it is drawn: its random numbers by aspect, its canvas, its fields, and the choices for the page."""
from dataclasses import dataclass

import numpy as np

from synth import art, draw, words
from synth.draw import hsv, mix, pick, rng
from synth.fields import Field
from synth.fonts import HEAVY, MONO, NARROW, RUBIK, SANS, SERIF, TIMES

ASPECTS = ("color", "layout", "name", "art")
GROUP = 4  # types whose numbers in their family follow each other; in some groups they are look-alikes
NUMBERS = ("AA 999999", "A9999999", "999-999-999", "99 99 999999", "AAA-9999-A", "9999/9999", "99999999 A")
DATES = ("d.m.y", "d/m/y", "y-m-d", "d m y", "m/y")
VALUES = {"surname": "word", "given": "word", "name": "name", "birth": "date", "place": "word", "number": "number",
          "issued": "date", "expires": "date", "sex": "letter", "height": "number:179 cm", "address": "address",
          "signature": "signature", "date": "date", "time": "number:19:39", "seat": "number:99A", "gate": "number:A9",
          "from": "word", "to": "word", "amount": "amount", "lot": "number:A9999", "weight": "number:9.99 kg",
          "remarks": "remarks"}  # the kind of field that goes with a label, or kind:pattern


class Chance:
    """The random numbers of a type, one Generator for each aspect of it:

    color: inks and papers. layout: format, places, fonts. name: emblem, names and other fixed words. art: line work,
    drawings. In a group of look-alikes the types share all of these but those named in `differs`, so that they can only be
    told apart by, say, their colors. Other types share nothing: `differs` has all aspects."""

    def __init__(self, seed, family, number, alike, share):
        """number: of the type in its family; alike: what may differ in a group of look-alikes, each a string of aspects;
        share: the share of groups that are look-alikes."""
        group, self.member = divmod(number, GROUP)
        self.family, key = family, ("type", seed, family, group)
        whole = rng(*key)
        self.look_alike = whole.uniform() < share
        self.differs = tuple(pick(whole, alike).split()) if self.look_alike else ASPECTS
        self._group = {}
        for aspect in ASPECTS:
            setattr(self, aspect, rng(*key, aspect, self.member if aspect in self.differs else "all"))
            self._group[aspect] = rng(*key, aspect, "group", "all" if self.look_alike else self.member)

    def turn(self, aspect):
        """The number of the type in a group of look-alikes that differ in this aspect, else 0."""
        return self.member if self.look_alike and aspect in self.differs else 0

    def choose(self, aspect, options):
        """One of the options. Look-alikes that differ in this aspect have different ones, as long as there are enough."""
        return options[(int(self._group[aspect].integers(len(options))) + self.turn(aspect)) % len(options)]

    def hue(self, usual):
        """One of the usual hues; look-alikes that differ in color are at least .17 apart on the circle of hues."""
        return pick(self._group["color"], usual) + .25 * self.turn("color") + np.clip(self.color.normal(0, .02), -.04, .04)

    def language(self):
        return words.drawn(self._group["name"])


@dataclass(frozen=True)
class Template:
    """A document type. art: uint8 BGR [H,W,3], read-only; fields: those to fill in, in drawing order; cut: rows (first,
    last) of the art of which a copy may lack the lower part, as a till receipt is as long as its items need."""
    art: np.ndarray
    fields: tuple
    cut: tuple = ()


def _on_canvas(function):
    """The method of Page that draws on its canvas with a function of draw.py."""
    return lambda page, *args, **options: function(page.canvas, *args, **options)


class Page:
    """A type while it is drawn: the canvas, the fields so far, and the choices that apply to the whole page."""
    box, rounded, ellipse, polygon, large_text = map(_on_canvas, (draw.box, draw.rounded, draw.ellipse, draw.polygon,
                                                                  draw.large_text))

    def __init__(self, chance, w, h, hues, pale=.07, layers=2, strength=.4):
        self.chance, self.r, self.w, self.h = chance, chance.layout, w, h
        color = chance.color
        hue = chance.hue(hues)
        second = hue + pick(color, (.06, -.08, .45))
        self.hues = (hue, second)
        self.dark, self.other = hsv(hue, .75, color.uniform(.35, .6)), hsv(second, .65, color.uniform(.4, .7))
        self.ink = mix(self.dark, (15, 15, 15), .75)
        self.language = chance.language()
        self._emblem = int(chance.name.integers(2 ** 32))
        self._title = chance.choose("name", range(60))
        self.initial = self.word()[0]
        self.face = pick(self.r, (SANS, SERIF, TIMES, SANS, RUBIK, HEAVY, NARROW))
        self.body = pick(self.r, (SANS, SANS, SERIF, MONO, RUBIK))
        self.number, self.date = pick(self.r, NUMBERS), pick(self.r, DATES)
        papers = hsv(hue, pale, .97), hsv(second, pale * 1.6, .94)
        self.canvas = art.background(chance.art, w, h, papers, (self.dark, self.other), layers, strength)
        self.fields, self.cut = [], ()

    def text(self, x, y, string, size, width, color=None, align="left", face=None, bold=True):
        """Draws fixed text in the font and ink of the page; see draw.text."""
        draw.text(self.canvas, x, y, string, (face or self.face)[bold], size, color or self.ink, align, width)

    def rows(self, x, y, step, strings, size, width, color=None, align="left"):
        """Draws fixed lines of regular text, `step` pixels apart."""
        for i, string in enumerate(strings):
            self.text(x, y + step * i, string, size, width, color, align, bold=False)

    def rule(self, x, y, end, color=None):
        """Draws a thin line from (x, y) to (end, y)."""
        draw.lines(self.canvas, [np.array([(x, y), (end, y)])], color or self.ink)

    def field(self, kind, x, y, w, h, **options):
        """Adds a field. Number and date formats are the same on the whole page."""
        usual = {"color": self.ink, "face": self.body[1], "language": self.language,
                 "pattern": {"number": self.number, "date": self.date}.get(kind, "")}
        self.fields.append(Field(kind, round(x), round(y), round(w), round(h), **{**usual, **options}))

    def entry(self, key, x, y, w, size=12, **options):
        """Adds a field for a value, with a small label above it; both together are size + 14 high."""
        self.text(x, y, words.label(key, self.language), 8, w, mix(self.dark, self.ink, .3), face=SANS, bold=False)
        kind, _, pattern = VALUES[key].partition(":")
        if pattern:
            options.setdefault("pattern", pattern)
        self.field(options.pop("kind", kind), x, y + 10, w, size + 4, size=size, **options)

    def emblem(self, x, y, radius, disc=False, colors=()):
        """Draws the emblem of the page, the same one each time; `disc` puts it on a white disc, to be visible on a dark
        band."""
        if disc:
            self.ellipse(x, y, radius + 4, radius + 4, art.WHITE)
        art.emblem(rng(self._emblem), self.canvas, x, y, radius, colors or (self.dark, self.other), self.initial)

    def icon(self, x, y, radius, color):
        """Draws a small symbol, another one each time; see art.emblem."""
        art.emblem(self.chance.art, self.canvas, x, y, radius, (color,))

    def wordmark(self, x, y, w, h, string, colors=(), align="center"):
        """Draws a name as a logo in a box; see art.wordmark."""
        art.wordmark(rng(self._emblem), self.canvas, x, y, w, h, string, colors or (self.dark, self.other), align)

    def illustration(self, x, y, w, h, colors, kind=None):
        """Fills a box with a drawing; see art.illustration."""
        art.illustration(self.chance.art, self.canvas, x, y, w, h, colors, kind)

    def word(self):
        """A name or word that is fixed for the type."""
        return words.name(self.chance.name, self.language)

    def initials(self):
        """One to three fixed capital letters."""
        return self.word().upper()[:int(self.chance.name.integers(1, 4))]

    def sentence(self, n=9):
        """Fixed text of n words."""
        return words.sentence(self.chance.name, self.language, n)

    def heading(self, kind):
        """The name of the organization that issues the document (kind: a key of Language.organizations) and the title."""
        organization = words.organization(self.chance.name, kind, self.language)
        return organization, self.title() if self.chance.family in words.LANGUAGES[0].titles else organization

    def title(self, family=None, i=0):
        """The i-th fixed word of those that are usual in a family of documents, by default in that of the page."""
        options = words.titles(family or self.chance.family, self.language)
        return options[(self._title + i) % len(options)]

    def keys(self, first, rest, n):
        """n keys: `first`, then some of `rest` in random order."""
        return list(first) + [rest[i] for i in self.r.permutation(len(rest))[:n - len(first)]]

    def done(self):
        self.canvas.flags.writeable = False
        return Template(self.canvas, tuple(self.fields), self.cut)
