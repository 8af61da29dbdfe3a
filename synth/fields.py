"""The fields of a document, whose content differs from copy to copy. Each has a box of its own.

The type fixes the box, kind and font of a Field; `draw_field` fills it for one copy. It draws into a view of the box, so it
cannot draw outside.
"""
from dataclasses import dataclass, replace

import cv2
import numpy as np

from synth import art, words
from synth.draw import (
    ALIGN,
    box,
    ellipse,
    fit,
    hsv,
    ink,
    large_text,
    lines,
    mix,
    pick,
    polygon,
    rounded,
    text,
    text_mask,
    tight_mask,
)
from synth.fonts import SANS

INKS = ((140, 40, 20), (60, 30, 30), (150, 60, 60), (40, 40, 40))  # ballpoint, BGR


@dataclass(frozen=True)
class Field:
    """kind: a key of TEXT or of DRAWINGS. pattern: for numbers, `9` is any digit, `A` any letter, other characters stay;
    for dates, `d`, `m` and `y` in some order; for amounts, the currency; for handwriting and large text, the kind of text,
    as kind or kind:pattern. person: fields of one copy with the same `person` use the same random numbers (such as two
    portraits of the holder on a card). fill: the least share of the rows of a list that are used."""
    kind: str
    x: int
    y: int
    w: int
    h: int
    size: int = 12
    face: str = SANS[1]
    color: tuple = (30, 30, 30)
    align: str = "left"
    pattern: str = ""
    language: int = 0
    person: str = ""
    fill: float = .45


def filled(r, pattern):
    """`pattern` with every 9 and A replaced by a random digit or letter."""
    return "".join(str(r.integers(10)) if c == "9" else pick(r, "ABCDEFGHJKLMNPRSTUVWXYZ") if c == "A" else c
                   for c in pattern)


def _date(r, f):
    values = {"d": f"{r.integers(1, 29):02}", "m": f"{r.integers(1, 13):02}", "y": str(r.integers(1950, 2040))}
    return "".join(values.get(c, c) for c in f.pattern or "d.m.y")


def _address(r, f):
    return f"{words.name(r, f.language)} {r.integers(1, 200)}, {r.integers(1000, 99999)} {words.name(r, f.language)}"


def _machine_readable(r, f):
    known = "".join(pick(r, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") for _ in range(int(r.integers(14, 30))))
    return (known[:5] + "<" + known[5:12] + "<<" + known[12:] + "<" * 60)[:int(f.pattern or 36)]


def _content(r, f):
    """The text of a field whose pattern is kind or kind:pattern."""
    kind, _, pattern = f.pattern.partition(":")
    return TEXT[kind](r, replace(f, pattern=pattern))


TEXT = {
    "name": lambda r, f: words.name(r, f.language) + " " + words.name(r, f.language),
    "word": lambda r, f: words.name(r, f.language),
    "capitals": lambda r, f: (words.name(r, f.language) + " " + words.name(r, f.language)).upper(),
    "number": lambda r, f: filled(r, f.pattern or "99999999"),
    "date": _date,
    "address": _address,
    "time": lambda r, f: f"{r.integers(24):02}:{r.integers(60):02}",
    "price": lambda r, f: f"{f.pattern}{r.integers(1, 10 ** int(r.integers(1, 4)))}.{r.integers(100):02}",
    "words": lambda r, f: words.phrase(r, f.language, int(f.pattern or r.integers(1, 5))),
    "remarks": lambda r, f: words.sentence(r, f.language, int(r.integers(2, 6))),
    "letter": lambda r, f: pick(r, "MFX"),
    "amount": lambda r, f: f"{f.pattern}{r.integers(1, 9999)}.{r.integers(100):02}",
    "mrz": _machine_readable,
}


def _portrait(view, f, r):
    """Head and shoulders. Skin, hair, clothes and light vary; the background color belongs to the type."""
    h, w = view.shape[:2]
    skin = hsv(r.uniform(.03, .09), r.uniform(.25, .6), r.uniform(.4, .95))
    hair = hsv(r.uniform(.02, .12), r.uniform(.1, .6), r.uniform(.08, .6))
    cloth = hsv(r.uniform(), r.uniform(.1, .7), r.uniform(.15, .8))
    view[:] = mix(f.color, (255, 255, 255), r.uniform(0, .3))
    x, y, a, b = w * r.uniform(.46, .54), h * r.uniform(.4, .46), w * r.uniform(.19, .24), h * r.uniform(.2, .25)
    long_hair = r.uniform() < .45
    if long_hair:
        ellipse(view, x, y + b * .35, a * 1.45, b * 1.6, hair)
    ellipse(view, x, h * 1.08, w * r.uniform(.4, .5), h * .36, cloth)
    box(view, x - a * .45, y + b * .6, a * .9, h * .2, mix(skin, (0, 0, 0), .15))
    polygon(view, [(x - a * .7, h * .76), (x + a * .7, h * .76), (x, h * .92)], mix(cloth, (255, 255, 255), .6))
    if not long_hair or r.uniform() < .5:
        ellipse(view, x, y - b * .25, a * 1.1, b * .95, hair)
    ellipse(view, x, y, a, b, skin)
    ellipse(view, x, y - b * .3, a * 1.02, b * .8, hair, start=190, end=350)
    dark = mix(skin, (20, 20, 30), .75)
    for side in (-1, 1):
        ellipse(view, x + side * a * .42, y, a * .13, b * .08, dark)
        lines(view, [np.array([(x + side * a * .2, y - b * .2), (x + side * a * .62, y - b * .22)])], hair)
    lines(view, [np.array([(x, y), (x - a * .12, y + b * .3), (x + a * .08, y + b * .32)])], mix(skin, dark, .5))
    ellipse(view, x, y + b * .55, a * .32, b * .07, mix(skin, (60, 40, 160), .5))
    light = np.linspace(1 - r.uniform(0, .3), 1, w, dtype=np.float32)[::pick(r, (-1, 1))]
    view[:] = view * light[None, :, None]
    if f.pattern == "gray":
        view[:] = cv2.cvtColor(view, cv2.COLOR_BGR2GRAY)[..., None]


def _avatar(view, f, r):
    """A portrait in a disc."""
    face, mask, (h, w) = view.copy(), np.zeros(view.shape[:2], np.uint8), view.shape[:2]
    _portrait(face, f, r)
    ellipse(mask, w / 2, h / 2, w / 2 - 1, h / 2 - 1, 255)
    view[mask > 127] = face[mask > 127]


def _ghost(view, f, r):
    """The portrait once more, small, faint and in one color."""
    face = np.empty_like(view)
    _portrait(face, f, r)
    ink(view, 255 - cv2.cvtColor(face, cv2.COLOR_BGR2GRAY), mix(f.color, (60, 60, 60), .5), alpha=.5)


def _signature(view, f, r):
    h, w = view.shape[:2]
    n = int(r.integers(5, 11))
    knots = np.stack([np.linspace(.08, .8, n) + r.normal(0, .05, n), .5 + r.uniform(-.42, .42, n)], 1)
    t = np.linspace(0, n - 1, 90)
    curve = np.stack([np.interp(t, np.arange(n), knots[:, i]) for i in (0, 1)], 1)
    curve = cv2.blur(curve, (1, 9), borderType=cv2.BORDER_REPLICATE)  # rounds the corners
    curve[:, 0] += .035 * np.sin(t * r.uniform(2, 4))
    curves = [curve * (w, h)]
    if r.uniform() < .5:
        curves.append(np.array([(.1, r.uniform(.7, .9)), (.95, r.uniform(.5, .9))]) * (w, h))
    lines(view, curves, pick(r, INKS), 1 + (h > 34))


def _handwriting(view, f, r):
    """A line of italic text, slanted, on a wavy baseline."""
    string = _content(r, f)
    mask = text_mask(string, f.face, fit(string, f.face, f.size, view.shape[1] * .85))
    mask = np.pad(mask, ((4, 4), (2, 8)))
    h, w = mask.shape
    x, y = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))
    lean, wave, slope = r.uniform(-.1, .3), r.uniform(.5, 1.8), r.uniform(-.02, .02)
    y += wave * np.sin(x / r.uniform(5, 14) + r.uniform(0, 6)) + slope * (x - w / 2)
    x += lean * (y - h / 2) + np.sin(x / 5 + r.uniform(0, 6))
    mask = cv2.remap(mask, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)
    ink(view, mask, pick(r, INKS), r.uniform(0, 4), (view.shape[0] - h) / 2)


def _barcode(view, f, r):
    h, w = view.shape[:2]
    view[:] = 255
    edges = 4 + np.cumsum(r.integers(1, 4, w))
    for start, end in zip(edges[::2], edges[1::2]):
        if end < w - 4:
            view[2:h - 2 if h < 28 else h - 11, start:end] = 20
    if h >= 28:
        text(view, w / 2, h - 12, filled(r, "9 999999 999999"), SANS[0], 9, (20, 20, 20), "center", w - 8)


def _matrix(view, f, r):
    """A QR-like block: random modules and three finder squares."""
    n = int(f.pattern or 25)
    code = (r.random((n, n)) < .5).astype(np.uint8) * 235 + 20
    for rows, columns in ((slice(0, 8), slice(0, 8)), (slice(0, 8), slice(n - 8, n)), (slice(n - 8, n), slice(0, 8))):
        code[rows, columns] = 255
    finder = np.full((7, 7), 20, np.uint8)
    finder[1:-1, 1:-1], finder[2:-2, 2:-2] = 255, 20
    code[:7, :7] = code[:7, -7:] = code[-7:, :7] = finder
    side = min(view.shape[:2]) - 4
    view[:] = 255
    view[2:2 + side, 2:2 + side] = cv2.resize(code, (side, side), interpolation=cv2.INTER_NEAREST)[..., None]


def _items(view, f, r):
    """The rows of a receipt, an invoice or a menu, each with an item and a price. The number of rows is random where there
    is room. pattern: how a row is written."""
    h, w = view.shape[:2]
    step = f.size + 4
    rows = max(1, int(h / step * r.uniform(f.fill, 1)))
    most = int(r.integers(1, 4))

    def row(i, string, align="left"):
        text(view, 0 if align == "left" else w - 1, i * step, string, f.face, f.size, f.color, align)

    i = 0
    while i < rows:
        item, price = words.phrase(r, f.language, int(r.integers(1, 3))), f"{r.integers(1, 10 ** most)}.{r.integers(100):02}"
        if f.pattern == "two" and i + 1 < rows and r.uniform() < .8:  # the item above, its count and price below
            row(i, item)
            row(i + 1, f"  {r.integers(1, 9)} x {price}")
            i += 1
        elif f.pattern == "code":
            row(i, f"{r.integers(10 ** 5, 10 ** 6)} {item}")
            price += pick(r, " AB")
        elif f.pattern == "dots":
            row(i, (item + " " + ". " * 60)[:int(w / f.size * 1.25)])
        elif f.pattern == "capitals":
            row(i, item.upper())
        else:
            row(i, f"{r.integers(1, 9)} {item}" if not f.pattern else item)
        row(i, price, "right")
        i += 1


def _prose(view, f, r):
    """Paragraphs of running text that fill a random part of the box. pattern: "1." numbers them, "-" lists them."""
    h, w = view.shape[:2]
    step, wide, y, number = f.size + 2, w / f.size, 0, 1
    end = h * r.uniform(.55, 1)
    while y + step <= end:
        lead = {"1.": f"{number}. ", "-": "- "}.get(f.pattern, "")
        number, left = number + 1, int(r.integers(12, 60))
        for line in words.lines(r, f.language, left, wide, lead):
            if y + step > end:
                break
            text(view, 0, y, line, f.face, f.size, f.color)
            y += step
        y += step // 2


def _cells(view, f, r):
    """A table of times or numbers in a monospaced font. pattern: COLUMNS:time:STEP or COLUMNS:number:STEP, with the
    distance of rows in pixels."""
    columns, kind, step = f.pattern.split(":")
    h, w = view.shape[:2]
    step, chars, minute = int(step), int(w / (f.size * .602)), np.sort(r.integers(300, 1430, (int(columns), 40)), axis=1)
    each = chars / int(columns)
    for i in range(min(h // step, 40)):
        line = ""
        for j in range(int(columns)):
            value = f"{minute[j, i] // 60:02}:{minute[j, i] % 60:02}" if kind == "time" else f"{r.integers(1, 10 ** 4)}"
            line = line.ljust(round(j * each)) + (value if r.uniform() < .9 else "-")
        text(view, 0, i * step, line, f.face, f.size, f.color)


def _stops(view, f, r):
    """A column of words, beside a table. pattern: the distance of rows in pixels."""
    step = int(f.pattern)
    for i in range(f.h // step):
        text(view, 0, i * step, words.name(r, f.language), f.face, f.size, f.color)


def _large(view, f, r):
    """Text as large as the box."""
    large_text(view, 0, 0, f.w, f.h, _content(r, f), f.face, f.color, f.align, 1.3)


def _price(view, f, r):
    """A large price with small raised cents, before or after the currency."""
    whole, cents = str(r.integers(1, 10 ** int(r.integers(1, 4)))), f"{r.integers(100):02}"
    big = tight_mask(whole, f.face, f.w * .66, f.h, 1.5)
    small = tight_mask(cents, f.face, f.w * .22, f.h * .5)
    sign = tight_mask(f.pattern or "€", f.face, f.w * .1, f.h * .3)
    x = ALIGN[f.align] * (f.w - big.shape[1] - small.shape[1] - sign.shape[1] - f.w * .02)
    top = (f.h - big.shape[0]) / 2
    ink(view, sign, f.color, x, top)
    ink(view, big, f.color, x + sign.shape[1] + f.w * .01, top)
    ink(view, small, f.color, x + sign.shape[1] + big.shape[1] + f.w * .02, top)


def _photo(view, f, r):
    """An illustration in any colors."""
    art.illustration(r, view, 0, 0, f.w, f.h, art.palette(r, r.uniform()))


def _chart(view, f, r):
    """Bars or a line over a base line, for random values."""
    h, w = view.shape[:2]
    n = int(r.integers(5, 14))
    values = np.clip(np.cumsum(r.normal(0, .18, n)) + r.uniform(.3, .7), .04, .96) if f.pattern else r.uniform(.05, .95, n)
    x, y = (np.arange(n) + .5) * w / n, h - 3 - values * (h - 6)
    if f.pattern:
        lines(view, [np.stack([x, y], 1)], f.color, 2)
    else:
        for a, b in zip(x, y):
            box(view, a - w / n * .35, b, w / n * .7, h - 2 - b, f.color)
    box(view, 0, h - 2, w, 1, mix(f.color, (30, 30, 30), .5))


def _price_sticker(view, f, r):
    """A price on a small sticker at a random place in the box, or none."""
    if r.uniform() < .4:
        return
    w, h = min(f.w, r.uniform(44, 62)), min(f.h, r.uniform(18, 30))
    x, y = r.uniform(0, f.w - w), r.uniform(0, f.h - h)
    rounded(view, x, y, w, h, r.uniform(0, 8), pick(r, ((255, 255, 255), (90, 220, 250), (70, 150, 250), (120, 240, 160))))
    large_text(view, x + 4, y + 4, w - 8, h - 8, f"{r.integers(1, 60)}.{r.integers(100):02}", SANS[1], (30, 30, 30))


def _check(view, f, r):
    """A check box, crossed or not."""
    if r.uniform() < .5:
        h, w = view.shape[:2]
        cross = np.array([[(.1, .2), (.9, .85)], [(.85, .1), (.15, .9)]])
        lines(view, cross * (w, h), pick(r, INKS))


def _postmark(view, f, r):
    """A round stamp with a date, at a random place in the box and a random angle."""
    h, w = view.shape[:2]
    mask, c = np.zeros((h, w), np.uint8), (w * r.uniform(.42, .58), h * r.uniform(.42, .58))
    radius = min(h, w) * .38
    for scale in (1, .72):
        ellipse(mask, *c, radius * scale, radius * scale, 255, 1)
    text(mask[..., None], c[0], c[1] - 6, _date(r, f), SANS[1], 10, (255,), "center", radius * 1.4)
    mask = cv2.warpAffine(mask, cv2.getRotationMatrix2D(c, r.uniform(-40, 40), 1), (w, h))
    ink(view, mask, f.color, alpha=r.uniform(.5, .85))


DRAWINGS = {"portrait": _portrait, "ghost": _ghost, "signature": _signature, "handwriting": _handwriting,
            "barcode": _barcode, "matrix": _matrix, "items": _items, "check": _check, "postmark": _postmark,
            "avatar": _avatar, "prose": _prose, "cells": _cells, "stops": _stops, "large": _large, "cost": _price,
            "photo": _photo, "chart": _chart, "price_sticker": _price_sticker}


def draw_field(canvas, field, r):
    """Fills one field of the canvas, uint8 BGR [H,W,3], in place, with random numbers from the Generator `r`."""
    view = canvas[field.y:field.y + field.h, field.x:field.x + field.w]
    if field.kind in DRAWINGS:
        DRAWINGS[field.kind](view, field, r)
    else:
        string = TEXT[field.kind](r, field)
        text(view, ALIGN[field.align] * field.w, 0, string, field.face, field.size, field.color, field.align, field.w)
