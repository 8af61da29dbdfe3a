"""The layouts: one function per family of documents, from a Generator to a Template. templates.py assigns types to families.

Types of a family share formats, palettes and conventions, so color and aspect ratio alone do not separate them. Emblem,
words, layout and line work do.
"""
import numpy as np

from synth import art, words
from synth.draw import ITALIC, MONO, OBLIQUE, SANS, SERIF, SLANTED, TIMES, box, ellipse, fit, hsv, lines, mix, pick
from synth.page import VALUES, Page

FORM_END = 326  # y below which are date, signature and stamp


def _holder(p, x, y, w, h, keys):
    """Entries about the holder, one or two per row, as many rows as fit."""
    size, i, bottom = pick(p.r, (11, 12)), 0, y + h
    while i < len(keys) and y + 26 <= bottom:
        pair = len(keys) > i + 1 and not {"address", "name"} & set(keys[i:i + 2]) and p.r.uniform() < .55
        for j, key in enumerate(keys[i:i + 1 + pair]):
            p.entry(key, x + j * w * .54, y, w * (.46 if pair else 1), size)
        i, y = i + 1 + pair, y + 27


def _shuffled(r, first, rest, n):
    """n keys: `first`, then some of `rest` in random order."""
    return list(first) + [rest[i] for i in r.permutation(len(rest))[:n - len(first)]]


def id_card(r):
    p = Page(r, "id_card", 384, 242, layers=3, strength=.24)
    organization, title = p.heading(pick(r, ("state", "office")))
    band, right = pick(r, (0, 0, 1, 1, 2)), bool(r.integers(2))  # header band; portrait on the right
    if band:
        box(p.canvas, 0, 0, p.w, 42, p.dark)
        if band == 2:
            box(p.canvas, 0, 42, p.w, 4, p.other)
    head = art.WHITE if band else p.dark
    logo_right, flagged = bool(r.integers(2)), r.uniform() < .4
    p.emblem(p.w - 24 if logo_right else 24, 21, 15, disc=band > 0)
    if flagged:
        art.flag(r, p.canvas, 10 if logo_right else p.w - 46, 9, 36, 24, p.hues)
    left, end = (52 if not logo_right or flagged else 14), p.w - (52 if logo_right or flagged else 14)
    align = pick(r, ("left", "center"))
    at = left if align == "left" else (left + end) / 2
    p.text(at, 3, organization.upper() if r.uniform() < .5 else organization, 15, end - left, head, align)
    p.text(at, 23, title.upper() if r.uniform() < .5 else title, 12, end - left, head, align, bold=r.uniform() < .5)

    pw, ph = pick(r, ((86, 110), (80, 100), (92, 116)))
    px, py = (p.w - pw - 14 if right else 14), 54
    p.field("portrait", px, py, pw, ph, person="holder", pattern=pick(r, ("", "", "gray")),
            color=hsv(p.hues[0], .12, .88))
    x, w = (14 if right else pw + 28), p.w - pw - 42
    low = pick(r, ("signature", "mrz", "barcode", "chip"))
    if low == "mrz":
        for y in (205, 221):
            p.field("mrz", 12, y, p.w - 24, 16, size=14, face=MONO[0], pattern="42")
    else:
        p.entry("signature", px, py + ph + 4, pw, 34)
    if low == "barcode":
        p.field("barcode", x, 204, w * .7, 30)
    if low == "chip":
        art.chip(r, p.canvas, x + w - 46, 196, 44, 36)
    bottom = {"signature": 234, "chip": 192}.get(low, 202)
    if r.uniform() < .5:
        p.field("ghost", x + w - 46, 124, 44, 56, person="holder", color=p.dark)
        w -= 52
    keys = _shuffled(r, pick(r, (("surname", "given"), ("given", "surname"), ("name",), ("number", "name"))),
                     ("birth", "sex", "place", "number", "issued", "expires", "height", "address"),
                     int(r.integers(5, 9)))
    _holder(p, x, 52, w, bottom - 52, list(dict.fromkeys(keys)))
    return p.done()


def passport(r):
    p = Page(r, "passport", 384, 270, layers=3, strength=.26)
    organization, title = p.heading("state")
    p.text(14, 8, title.upper(), 17, 130, p.dark)
    p.text(p.w - 14, 8, organization, 14, p.w - 175, p.dark, "right")
    if r.uniform() < .6:
        lines(p.canvas, [np.array([(14, 33), (p.w - 14, 33)])], p.dark)
    pw, ph = pick(r, ((96, 124), (90, 116), (104, 132)))
    right = r.uniform() < .3
    px, x = (p.w - pw - 16, 16) if right else (16, pw + 30)
    w = p.w - pw - 46
    p.field("portrait", px, 44, pw, ph, person="holder", color=hsv(p.hues[1], .1, .9))
    art.watermark(r, p.canvas, x + w * r.uniform(.35, .8), 120, 62, p.dark, r.uniform(.2, .35))
    if r.uniform() < .5:
        p.field("ghost", x + w - 50, 128, 48, 62, person="holder", color=p.other)
        w -= 58
    keys = _shuffled(r, ("number", "surname", "given"), ("birth", "sex", "place", "issued", "expires", "height"), 7)
    _holder(p, x, 42, w * .9, 138, keys)
    p.entry("signature", px, 44 + ph + 4, pw, 30)
    if r.uniform() < .6:
        art.seal(r, p.canvas, x + w * r.uniform(.5, .75), 184, 32, pick(r, (p.dark, p.other)), organization)
    box(p.canvas, 0, 222, p.w, 48, mix(hsv(p.hues[0], .05, .97), art.WHITE, .4))
    for y in (226, 246):
        p.field("mrz", 12, y, p.w - 20, 20, size=15, face=MONO[0], pattern="40")
    return p.done()


def bank_card(r):
    p = Page(r, "bank_card", 384, 242, layers=0)
    hue, second = p.hues
    bright = pick(r, (.35, .55, .85))
    p.canvas = art.background(r, p.w, p.h, (hsv(hue, .7, bright), hsv(second, .65, bright * .75)),
                              (hsv(hue, .35, .95), hsv(second, .8, bright * .6), art.WHITE), pick(r, (1, 2)), .4)
    p.dark = p.other = p.ink = art.WHITE
    art.watermark(r, p.canvas, p.w * r.uniform(.3, .9), p.h * r.uniform(.3, .7), r.uniform(60, 130), art.WHITE,
                  r.uniform(.12, .3))
    organization, title = p.heading("bank")
    logo_right = bool(r.integers(2))
    art.emblem(r, p.canvas, p.w - 38 if logo_right else 38, 36, 24, (art.WHITE,), organization[0])
    p.text(14 if logo_right else 72, 24, organization, 21, 240)
    p.text(p.w - 16, 205 if r.uniform() < .5 else 66, title, 14, 110, align="right", bold=False)
    y = pick(r, (84, 92, 100))
    art.chip(r, p.canvas, pick(r, (26, 40)), y, 48, 38)
    if r.uniform() < .6:  # the symbol of contactless payment
        for i in range(4):
            ellipse(p.canvas, 104, y + 19, 5 * i + 4, 5 * i + 4, art.WHITE, 2, -40, 40)
    size = pick(r, (20, 22))
    p.field("number", 26, 142, p.w - 52, size + 6, size=size, face=MONO[1],
            pattern=pick(r, ("9999 9999 9999 9999", "9999 999999 99999")))
    p.field("capitals", 26, 206, 190, 18, size=14, face=MONO[0])
    p.entry("expires", pick(r, (160, 60)), 174, 70, 13, kind="number", pattern="09/29")
    return p.done()


def _entries(p, y, columns, rows, keys, written, boxed):
    """Ruled or boxed entries, typed or handwritten. Like the other parts of a form, it returns the y of the next part."""
    w = (p.w - 28) / columns
    for i in range(min(rows, (FORM_END - y) // 27) * columns):
        x, top = 14 + w * (i % columns), y + 27 * (i // columns)
        if boxed:
            box(p.canvas, x, top, w + 1, 28, p.dark, 1)
        else:
            lines(p.canvas, [np.array([(x, top + 26), (x + w - 8, top + 26)])], p.ink)
        key = pick(p.r, keys)
        by_hand = {"kind": "handwriting", "pattern": VALUES[key], "face": pick(p.r, (SLANTED, OBLIQUE))[0]}
        p.entry(key, x + 4, top + 2, w - 12, 11, **by_hand if written else {})
    return y + 27 * rows + 6


def _table(p, y, rows, columns):
    rows, edges = min(rows, (FORM_END - y) // 14), np.cumsum([0, *p.r.uniform(.5, 1.5, columns)])
    edges = 14 + edges / edges[-1] * (p.w - 28)
    box(p.canvas, 14, y, p.w - 28, 14, mix(p.dark, art.WHITE, .7))
    lines(p.canvas, [np.array([(x, y), (x, y + 14 * rows)]) for x in edges], p.dark)
    lines(p.canvas, [np.array([(14, y + 14 * i), (p.w - 14, y + 14 * i)]) for i in range(rows + 1)], p.dark)
    for j, (a, b) in enumerate(zip(edges, edges[1:])):
        p.text(a + 3, y + 2, words.name(p.r, p.language), 8, b - a - 5, bold=False)
        for i in range(1, rows):
            p.field("amount" if j else "word", a + 3, y + 14 * i + 2, b - a - 5, 11, size=8, face=SANS[0])
    return y + 14 * rows + 7


def _checks(p, y, n):
    for i in range(n):
        x, top = 14 + 124 * (i % 2), y + 15 * (i // 2)
        box(p.canvas, x, top, 11, 11, p.dark, 1)
        p.field("check", x, top, 11, 11)
        p.text(x + 16, top, words.sentence(p.r, p.language, 2), 9, 100, bold=False)
    return y + 15 * -(-n // 2) + 5


def _prose(p, y, n):
    for i in range(n):
        p.text(14, y + 11 * i, words.sentence(p.r, p.language, 6), 9, p.w - 28, bold=False)
    return y + 11 * n + 7


def form(r):
    p = Page(r, "form", 276, 390, pale=.02, layers=pick(r, (0, 0, 1)), strength=.15)
    organization, title = p.heading(pick(r, ("office", "shop", "state")))
    if r.uniform() < .4:
        box(p.canvas, 0, 0, p.w, 58, mix(p.dark, art.WHITE, pick(r, (.65, .8))))
    centered, logo_right = r.uniform() < .35, bool(r.integers(2))
    if centered:
        p.emblem(p.w / 2, 24, 16)
        p.text(p.w / 2, 42, organization, 12, 240, p.dark, "center")
        p.text(p.w / 2, 64, title, 18, 240, align="center")
    else:
        p.emblem(p.w - 32 if logo_right else 32, 30, 18)
        p.text(14 if logo_right else 60, 14, organization, 13, 196, p.dark)
        p.text(14 if logo_right else 60, 32, words.name(r, p.language), 9, 190, bold=False)
        p.text(14, 64, title, 18, 170)
        p.entry("number", 196, 64, 66, 10)
    y, written = 94, r.uniform() < .5
    keys = ("surname", "given", "name", "birth", "place", "number", "issued", "address", "remarks")
    while y < FORM_END - 46:
        if r.uniform() < .5:
            box(p.canvas, 14, y, p.w - 28, 13, p.dark)
            p.text(18, y, words.sentence(r, p.language, 3), 9, 200, art.WHITE)
            y += 17
        part = pick(r, (_entries, _entries, _table, _checks, _prose))
        if part is _entries:
            y = _entries(p, y, pick(r, (1, 2)), int(r.integers(1, 4)), keys, written, boxed=r.uniform() < .5)
        elif part is _table:
            y = _table(p, y, int(r.integers(3, 6)), int(r.integers(2, 5)))
        elif part is _checks:
            y = _checks(p, y, int(r.integers(3, 5)))
        else:
            y = _prose(p, y, 2)
        y += int(r.integers(0, 14))
    p.entry("date", 14, 340, 70, 11)
    p.entry("signature", 100, 340, 92, 30)
    lines(p.canvas, [np.array([(100, 384), (192, 384)])], p.ink)
    if r.uniform() < .5:
        p.field("matrix", 208, 332, 52, 52, pattern="25")
    else:
        p.field("postmark", 198, 328, 76, 60, color=pick(r, ((40, 40, 160), (140, 60, 40))))
    return p.done()


def invoice(r):
    p = Page(r, "invoice", 276, 390, pale=pick(r, (.01, .01, .05)), layers=pick(r, (0, 0, 1)), strength=.12)
    organization, title = p.heading("shop")
    head, logo_right = pick(r, ("plain", "band", "side", "ruled")), bool(r.integers(2))
    left, right = (34 if head == "side" else 14), p.w - 14
    if head == "side":
        box(p.canvas, 0, 0, 22, p.h, p.dark)
    if head == "band":
        box(p.canvas, 0, 0, p.w, 50, p.dark)
    if head == "ruled":
        box(p.canvas, left, 52, right - left, 3, p.other)
    color = art.WHITE if head == "band" else p.dark
    p.emblem(right - 20 if logo_right else left + 20, 26, 18, disc=head == "band")
    edge, align = (left, "left") if logo_right else (right, "right")
    p.text(edge, 8, organization, 15, right - left - 50, color, align)
    for i in range(2):  # the address of the sender is part of the type
        p.text(edge, 28 + 10 * i, words.sentence(r, p.language, 3), 8, 150, color, align, bold=False)

    title_left, y = bool(r.integers(2)), 64
    for i in range(3):  # the address of the receiver is a field
        p.field("name" if i == 0 else "address", left if not title_left else right - 118, y + 13 * i, 118, 13, size=10)
    p.text(left if title_left else right, y, title.upper() if r.uniform() < .5 else title, 19, 110,
           pick(r, (p.dark, p.ink)), "left" if title_left else "right")
    keys, wide = ("number", "date", "expires", "amount")[:int(r.integers(2, 5))], right - left
    for i, key in enumerate(keys):
        p.entry(key, left + wide / len(keys) * i, 112, wide / len(keys) - 4, 9)

    low, columns = pick(r, (282, 300)), np.cumsum([0, *r.uniform(.7, 1.2, int(r.integers(1, 4)))])
    inverse, step = r.uniform() < .6, pick(r, (13, 15))
    box(p.canvas, left, 144, wide, 15, p.dark if inverse else mix(p.dark, art.WHITE, .8))
    for i in range(164 + step, low, 2 * step) if r.uniform() < .5 else ():
        box(p.canvas, left, i, wide, step, mix(p.other, art.WHITE, .88))
    columns = left + columns / columns[-1] * wide if len(columns) > 2 else np.array([left, right])
    for a, b in zip(columns, columns[1:]):
        p.text(a + 3, 145, words.name(r, p.language), 9, b - a - 5, art.WHITE if inverse else p.dark)
    if r.uniform() < .5:
        lines(p.canvas, [np.array([(x, 144), (x, low)]) for x in columns], p.dark)
    p.field("items", left + 3, 163, wide - 6, low - 167, size=step - 4, face=SANS[0])

    total = pick(r, ("inverse", "pale", "framed"))
    box(p.canvas, right - 124, low + 4, 124, 24, p.dark if total == "inverse" else mix(p.dark, art.WHITE, .75),
        1 if total == "framed" else -1)
    p.field("amount", right - 66, low + 8, 62, 16, size=12, pattern=pick(r, ("", "€", "$", "£")), align="right",
            color=art.WHITE if total == "inverse" else p.ink)
    p.text(left, low + 10, words.LABELS["total"][p.language], 12, wide - 130)
    if r.uniform() < .5:
        p.field("matrix", left, 334, 44, 44, pattern="21")
        left += 52
    for i in range(2):
        p.text(left, 338 + 11 * i, words.sentence(r, p.language, 4), 8, right - left - 90, bold=False)
    p.text(left, 364, words.PHRASES[p.language][3], 9, right - left - 90, p.dark)
    if r.uniform() < .6:
        p.entry("signature", right - 84, 336, 80, 30)
    else:
        p.field("postmark", right - 80, 328, 76, 56, color=pick(r, ((40, 40, 160), (140, 60, 40))))
    return p.done()


def receipt(r):
    w, h = pick(r, (188, 200)), pick(r, (356, 384))
    p = Page(r, "receipt", w, h, pale=.01, layers=0)
    p.ink = p.dark = p.other = (50, 45, 45)
    p.canvas = art.gradient(r, w, h, (244, 246, 247), (232, 236, 238))
    organization, title = p.heading("shop")
    face, y = pick(r, (MONO, MONO, SANS)), 10
    if r.uniform() < .75:
        p.emblem(w / 2, 30, 20)
        y = 54
    p.text(w / 2, y, organization.upper() if r.uniform() < .5 else organization, 17, w - 20, align="center")
    y += 22
    for _ in range(int(r.integers(1, 4))):
        p.text(w / 2, y, words.sentence(r, p.language, 2), 9, w - 24, align="center", face=face, bold=False)
        y += 11
    rule = pick(r, ("-", "=", "*", ". ", "~"))
    draw_rule = lambda at: p.text(w / 2, at, (rule * 60)[:28], 10, w - 16, align="center", face=MONO, bold=False)
    draw_rule(y)
    y += 13
    p.text(10, y, title, 11, 80, face=face)
    p.field("date", w - 80, y, 70, 14, size=10, face=face[0], align="right")
    y += 17
    p.field("items", 10, y, w - 20, h - 118 - y, size=pick(r, (9, 10)), face=face[0])
    y = h - 114
    draw_rule(y)
    p.text(10, y + 12, words.LABELS["total"][p.language], 15, 80, face=face)
    p.field("amount", 84, y + 12, w - 94, 20, size=15, face=face[1], align="right",
            pattern=pick(r, ("", "€", "$", "£")))
    draw_rule(y + 32)
    p.text(w / 2, y + 44, words.PHRASES[p.language][3], 10, w - 20, align="center", face=face, bold=False)
    if r.uniform() < .65:
        p.field("barcode", 20, h - 52, w - 40, 42)
    else:
        p.field("matrix", w / 2 - 25, h - 56, 50, 50, pattern="21")
    return p.done()


def ticket(r):
    p = Page(r, "ticket", 392, pick(r, (168, 180)), pale=pick(r, (.1, .3)), layers=2, strength=.25)
    organization, title = p.heading("shop")
    stub_left, stub = r.uniform() < .3, pick(r, (96, 108))
    cut = stub if stub_left else p.w - stub
    x, w = (cut + 12, p.w - stub - 24) if stub_left else (12, p.w - stub - 24)
    side = 8 if stub_left else cut + 8
    band = r.uniform() < .6
    if band:
        box(p.canvas, x - 12, 0, w + 24, 40, p.dark)
    head = art.WHITE if band else p.dark
    p.emblem(x + 12, 20, 14, disc=band)
    p.text(x + 36, 2, organization, 18, w - 38, head)
    p.text(x + 36, 23, title.upper(), 11, w - 38, head, bold=False)
    for y in range(0, p.h, 8):
        box(p.canvas, cut, y, 2, 4, mix(p.ink, art.WHITE, .3))
    if r.uniform() < .5:
        art.watermark(r, p.canvas, x + w * r.uniform(.5, .9), p.h * .6, 50, p.dark, .3)
    keys = _shuffled(r, (), ("date", "time", "seat", "gate", "from", "to", "amount"), int(r.integers(5, 7)))
    p.entry("name", x, 46, w, 14, kind="capitals")
    for i, key in enumerate(keys):
        p.entry(key, x + w / 3 * (i % 3), 76 + 31 * (i // 3), w / 3 - 8, 13)
    if p.h > 170:
        p.text(x, p.h - 16, words.PHRASES[p.language][pick(r, (0, 2, 3))], 8, w, bold=False)
    if r.uniform() < .5:
        p.field("matrix", side + 8, 12, 72, 72, pattern="25")
        p.text(side, 90, title, 12, stub - 16, p.dark)
    else:
        p.text(side, 10, title, 12, stub - 16, p.dark)
        p.field("barcode", side, 32, stub - 16, 50)
    p.entry("seat", side, 112, stub - 18, 18)
    p.entry("date", side, p.h - 28, stub - 18, 11)
    return p.done()


def label(r):
    w, h = pick(r, ((320, 320), (276, 360), (360, 276)))
    p = Page(r, "label", w, h, pale=pick(r, (.03, .25)), layers=pick(r, (0, 1)), strength=.3)
    organization, title = p.heading("shop")
    art.border(r, p.canvas, 4, p.dark)
    if r.uniform() < .4:
        p.emblem(w / 2, 46, 26)
        p.text(w / 2, 74, organization, 17, w - 50, p.dark, "center")
        y = 98
    else:
        p.emblem(50, 46, 26)
        p.text(80, 34, organization, 17, w - 110, p.dark)
        y = 80
    inverse = r.uniform() < .6
    if inverse:
        box(p.canvas, 18, y, w - 36, 40, pick(r, (p.dark, p.other, p.ink)))
    size = fit(title.upper(), p.face[1], 27, w - 60)
    p.text(w / 2, y + 20 - size * .62, title.upper(), size, w - 60, art.WHITE if inverse else p.dark, "center")
    y += 48
    rows, signs = (h - 70 - y) // 29, min(int(r.integers(0, 4)), (h - 70 - y) // 38)
    for i in range(signs):  # handling signs
        box(p.canvas, w - 50, y + 38 * i, 32, 32, p.ink, 1)
        art.emblem(r, p.canvas, w - 34, y + 16 + 38 * i, 12, (p.ink,))
    wide = w - 36 - (44 if signs else 0)
    keys = _shuffled(r, (), ("lot", "weight", "expires", "number", "from", "to", "address", "remarks"), rows)
    for i, key in enumerate(keys):
        p.entry(key, 20, y + 29 * i, wide, 12)
        if i:
            lines(p.canvas, [np.array([(18, y + 29 * i - 2), (18 + wide, y + 29 * i - 2)])], mix(p.ink, art.WHITE, .5))
    if r.uniform() < .6:
        p.field("barcode", 22, h - 64, w - 44, 46)
    else:
        p.field("matrix", 22, h - 66, 50, 50, pattern="21")
        p.text(84, h - 52, words.PHRASES[p.language][1], 9, w - 110, bold=False)
    return p.done()


def certificate(r):
    w, h = pick(r, ((384, 280), (384, 280), (280, 384)))
    p = Page(r, "certificate", w, h, pale=.06, layers=pick(r, (1, 2)), strength=.22)
    organization, title = p.heading("office")
    art.border(r, p.canvas, 7, p.dark)
    art.watermark(r, p.canvas, w / 2, h * .55, h * .27, p.other, .16)
    tall, y = h > w, 24
    if r.uniform() < .7:
        p.emblem(w / 2, 44, 22)
        y = 68
    elif r.uniform() < .5:
        p.emblem(46, 46, 20)
        p.emblem(w - 46, 46, 20)
    p.text(w / 2, y, organization, 14, w - 130 if y < 60 else w - 60, align="center")
    p.text(w / 2, y + 20, title.upper() if r.uniform() < .4 else title, 30, w - 110, p.dark, "center",
           face=pick(r, (p.face, TIMES, ITALIC, SERIF)))
    y += 62 + 20 * tall
    p.text(w / 2, y, words.sentence(r, p.language, 5), 10, w - 70, align="center", bold=False)
    if r.uniform() < .5:
        p.field("name", 44, y + 15, w - 88, 28, size=20, face=pick(r, (ITALIC, SLANTED, TIMES))[1], align="center")
    else:
        p.field("handwriting", 60, y + 13, w - 120, 30, size=18, face=SLANTED[0], pattern="name")
    lines(p.canvas, [np.array([(50, y + 43), (w - 50, y + 43)])], p.ink)
    for i in range(2 + 4 * tall):
        p.text(w / 2, y + 48 + 13 * i, words.sentence(r, p.language, int(r.integers(5, 8))), 10, w - 64,
               align="center", bold=False)
    seal_x, date_x, signature_x = np.array(pick(r, ((.5, .2, .8), (.22, .5, .8), (.78, .2, .5)))) * w
    low = h - 62
    if r.uniform() < .5:
        art.seal(r, p.canvas, seal_x, low + 18, 27, pick(r, (p.dark, p.other)), organization)
    else:
        p.emblem(seal_x, low + 18, 24)
    p.entry("date", date_x - 38, low, 76, 12)
    p.entry("signature", signature_x - 38, low, 76, 26)
    return p.done()


FAMILIES = (id_card, passport, bank_card, form, receipt, ticket, label, certificate, invoice)
