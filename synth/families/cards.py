"""Cards and tickets: identity cards, passports, bank cards, tickets, trading cards."""
import numpy as np

from synth import art, words
from synth.draw import hsv, large_text, mix, pick, polygon, rng
from synth.fonts import MONO
from synth.page import Page


def _holder(p, x, y, w, h, keys):
    """Entries about the holder, one or two per row, as many rows as fit."""
    size, i, bottom = pick(p.r, (11, 12)), 0, y + h
    while i < len(keys) and y + 26 <= bottom:
        pair = len(keys) > i + 1 and not {"address", "name"} & set(keys[i:i + 2]) and p.r.uniform() < .55
        for j, key in enumerate(keys[i:i + 1 + pair]):
            p.entry(key, x + j * w * .54, y, w * (.46 if pair else 1), size)
        i, y = i + 1 + pair, y + 27


def id_card(chance):
    r = chance.layout
    p = Page(chance, 384, 242, (.55, .33, .95, .12), layers=3, strength=.24)
    organization, title = p.heading(pick(r, ("state", "office")))
    # header band (2: with a stripe); portrait on the right
    band, right = chance.choose("layout", ((0, False), (1, True), (2, False), (0, True), (1, False), (2, True)))
    if band:
        p.box(0, 0, p.w, 42, p.dark)
        if band == 2:
            p.box(0, 42, p.w, 4, p.other)
    head = art.WHITE if band else p.dark
    logo_right, flagged = bool(r.integers(2)), r.uniform() < .4
    p.emblem(p.w - 24 if logo_right else 24, 21, 15, disc=band > 0)
    if flagged:
        art.flag(chance.name, p.canvas, 10 if logo_right else p.w - 46, 9, 36, 24, p.hues)
    left, end = (52 if not logo_right or flagged else 14), p.w - (52 if logo_right or flagged else 14)
    align = pick(r, ("left", "center"))
    at = left if align == "left" else (left + end) / 2
    p.text(at, 3, organization.upper() if r.uniform() < .5 else organization, 15, end - left, head, align)
    p.text(at, 23, title.upper() if r.uniform() < .5 else title, 12, end - left, head, align, bold=r.uniform() < .5)

    pw, ph = pick(r, ((86, 110), (80, 100), (92, 116)))
    px, py = (p.w - pw - 14 if right else 14), 54
    p.field("portrait", px, py, pw, ph, person="holder", pattern=pick(r, ("", "", "gray")), color=hsv(p.hues[0], .12, .88))
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
        art.chip(chance.art, p.canvas, x + w - 46, 196, 44, 36)
    bottom = {"signature": 234, "chip": 192}.get(low, 202)
    if r.uniform() < .5:
        p.field("ghost", x + w - 46, 124, 44, 56, person="holder", color=p.dark)
        w -= 52
    keys = p.keys(pick(r, (("surname", "given"), ("given", "surname"), ("name",), ("number", "name"))),
                  ("birth", "sex", "place", "number", "issued", "expires", "height", "address"), int(r.integers(5, 9)))
    _holder(p, x, 52, w, bottom - 52, list(dict.fromkeys(keys)))
    return p.done()


def passport(chance):
    r = chance.layout
    p = Page(chance, 384, 270, (.58, .98, .3), layers=3, strength=.26)
    organization, title = p.heading("state")
    head, right = chance.choose("layout", (("split", False), ("center", True), ("band", False), ("split", True),
                                           ("band", True)))
    if head == "band":
        p.box(0, 0, p.w, 36, p.dark)
    color = art.WHITE if head == "band" else p.dark
    if head == "center":
        p.text(p.w / 2, 3, organization, 13, p.w - 40, color, "center")
        p.text(p.w / 2, 18, title.upper(), 14, p.w - 40, color, "center")
    else:
        p.text(14, 8, title.upper(), 17, 130, color)
        p.text(p.w - 14, 8, organization, 14, p.w - 175, color, "right")
    if r.uniform() < .6:
        p.rule(14, 37, p.w - 14, p.dark)
    pw, ph = pick(r, ((96, 124), (90, 116), (104, 132)))
    px, x = (p.w - pw - 16, 16) if right else (16, pw + 30)
    w = p.w - pw - 46
    p.field("portrait", px, 44, pw, ph, person="holder", color=hsv(p.hues[1], .1, .9))
    art.watermark(chance.art, p.canvas, x + w * r.uniform(.35, .8), 120, 62, p.dark, r.uniform(.2, .35))
    if r.uniform() < .5:
        p.field("ghost", x + w - 50, 128, 48, 62, person="holder", color=p.other)
        w -= 58
    keys = p.keys(("number", "surname", "given"), ("birth", "sex", "place", "issued", "expires", "height"), 7)
    _holder(p, x, 42, w * .9, 138, keys)
    p.entry("signature", px, 44 + ph + 4, pw, 30)
    if r.uniform() < .6:
        art.seal(chance.name, p.canvas, x + w * r.uniform(.5, .75), 184, 32, pick(r, (p.dark, p.other)), organization)
    p.box(0, 222, p.w, 48, mix(hsv(p.hues[0], .05, .97), art.WHITE, .4))
    for y in (226, 246):
        p.field("mrz", 12, y, p.w - 20, 20, size=15, face=MONO[0], pattern="40")
    return p.done()


def bank_card(chance):
    r = chance.layout
    p = Page(chance, 384, 242, (.6, .45, .03, .75, .12), layers=0)
    hue, second = p.hues
    bright = pick(chance.color, (.35, .55, .85))
    p.canvas = art.background(chance.art, p.w, p.h, (hsv(hue, .7, bright), hsv(second, .65, bright * .75)),
                              (hsv(hue, .35, .95), hsv(second, .8, bright * .6), art.WHITE), pick(chance.art, (1, 2)), .4)
    p.dark = p.other = p.ink = art.WHITE
    art.watermark(chance.art, p.canvas, p.w * r.uniform(.3, .9), p.h * r.uniform(.3, .7), r.uniform(60, 130), art.WHITE,
                  r.uniform(.12, .3))
    organization, title = p.heading("bank")
    kind = chance.choose("layout", ("chip left", "chip right", "logo below", "number above", "plain"))
    size, below = pick(r, (20, 22)), kind == "logo below"
    logo_right = kind in ("chip left", "number above") or kind == "plain" and r.uniform() < .5
    p.emblem(p.w - 38 if logo_right or below else 38, 204 if below else 36, 24, colors=(art.WHITE,))
    p.text(14 if logo_right or below else 72, 24, organization, 21, 240)
    y = {"chip right": 30, "logo below": 84, "number above": 84}.get(kind, 66)
    p.text(p.w - 16, y, title, 14, 90, align="right", bold=False)
    x, y = {"chip right": (p.w - 90, 92), "number above": (40, 142), "logo below": (26, 70)}.get(kind, (26, 92))
    if kind != "plain":
        art.chip(chance.art, p.canvas, x, y, 48, 38)
    if kind != "chip right" and r.uniform() < .6:  # the symbol of contactless payment
        for i in range(4):
            p.ellipse(104, y + 19, 5 * i + 4, 5 * i + 4, art.WHITE, 2, -40, 40)
    at = {"number above": 96, "logo below": 126, "plain": 112}.get(kind, 142)
    p.field("number", 26, at, p.w - 52, size + 6, size=size, face=MONO[1],
            pattern=pick(r, ("9999 9999 9999 9999", "9999 999999 99999")))
    p.field("capitals", 26, 206, 190, 18, size=14, face=MONO[0])
    p.entry("expires", {"chip left": 160, "number above": 220}.get(kind, 60), 174, 70, 13, kind="number", pattern="09/29")
    return p.done()


def ticket(chance):
    r = chance.layout
    p = Page(chance, 392, pick(r, (168, 180)), (.08, .55, .9), pale=pick(chance.color, (.1, .3)), strength=.25)
    organization, title = p.heading("shop")
    stub_left, band = chance.choose("layout", ((False, True), (True, False), (False, False), (True, True)))
    stub = pick(r, (96, 108))
    cut = stub if stub_left else p.w - stub
    x, w = (cut + 12, p.w - stub - 24) if stub_left else (12, p.w - stub - 24)
    side = 8 if stub_left else cut + 8
    if band:
        p.box(x - 12, 0, w + 24, 40, p.dark)
    head = art.WHITE if band else p.dark
    p.emblem(x + 12, 20, 14, disc=band)
    p.text(x + 36, 2, organization, 18, w - 38, head)
    p.text(x + 36, 23, title.upper(), 11, w - 38, head, bold=False)
    for y in range(0, p.h, 8):
        p.box(cut, y, 2, 4, mix(p.ink, art.WHITE, .3))
    if r.uniform() < .5:
        art.watermark(chance.art, p.canvas, x + w * r.uniform(.5, .9), p.h * .6, 50, p.dark, .3)
    keys = p.keys((), ("date", "time", "seat", "gate", "from", "to", "amount"), int(r.integers(5, 7)))
    p.entry("name", x, 46, w, 14, kind="capitals")
    for i, key in enumerate(keys):
        p.entry(key, x + w / 3 * (i % 3), 76 + 31 * (i // 3), w / 3 - 8, 13)
    if p.h > 170:
        notice = pick(r, (words.PROPERTY, words.VALIDITY, words.THANKS))
        p.text(x, p.h - 16, words.notice(notice, p.language), 8, w, bold=False)
    if r.uniform() < .5:
        p.field("matrix", side + 8, 12, 72, 72, pattern="25")
        p.text(side, 90, title, 12, stub - 16, p.dark)
    else:
        p.text(side, 10, title, 12, stub - 16, p.dark)
        p.field("barcode", side, 32, stub - 16, 50)
    p.entry("seat", side, 112, stub - 18, 18)
    p.entry("date", side, p.h - 28, stub - 18, 11)
    return p.done()


def game_card(chance):
    """Trading and playing cards. Most are look-alikes: the cards of a series, which share frame, colors and places and have
    illustrations of their own; or one illustration in several colors or frames. In half of the series the words are fixed
    too; in the other half copies have other words, as in another language."""
    r = chance.layout
    w, h = pick(r, ((280, 390), (272, 380), (256, 390)))
    p = Page(chance, w, h, (.1, .0, .33, .6, .78, .45), pale=.18, layers=0)
    strong = hsv(p.hues[0], chance.color.uniform(.5, .9), chance.color.uniform(.35, .8))
    light = hsv(p.hues[1], .25, .95)
    rim = pick(r, (8, 12, 16))
    p.box(0, 0, w, h, chance.choose("color", (strong, art.BLACK, art.WHITE, mix(strong, (60, 170, 220), .6))))
    inner = p.canvas[rim:h - rim, rim:w - rim]
    inner[:] = art.background(rng(int(r.integers(2 ** 32))), inner.shape[1], inner.shape[0],
                              (light, mix(light, strong, .5)), (strong,), 1, .4)
    name = p.sentence(2).rstrip(".").title()
    colors, style = art.palette(chance.art, chance.art.uniform()), int(chance.art.integers(8))
    kind = chance.choose("layout", ("window", "full", "oval", "corners", "low title"))
    x, wide = rim + 8, w - 2 * rim - 16
    translated = r.uniform() < .5

    def write(x, y, string, size, width, color, align):
        if translated:
            p.field("words", x, y, width, size + 5, size=size, face=p.face[1], color=color, align=align, pattern="2")
        else:
            p.text(x if align == "left" else x + width / 2, y, string, size, width, color, align)

    if kind in ("window", "low title"):
        title, top = (rim + 6, rim + 36) if kind == "window" else (h * .56, rim + 8)
        p.illustration(x, top, wide, h * .46, colors, style)
        p.box(x, top, wide, h * .46, strong, pick(r, (1, 3)))
        p.rounded(x, title, wide, 26, pick(r, (2, 13)), mix(light, art.WHITE, .4))
        write(x + 8, title + 4, name, 16, wide - 50, art.BLACK, "left")
        body = max(title + 32, top + h * .46 + 8)
    elif kind == "full":
        p.illustration(rim, rim, w - 2 * rim, h - 2 * rim, colors, style)
        p.box(rim, h - rim - 34, w - 2 * rim, 34, strong)
        write(x, h - rim - 28, name.upper(), 20, wide, art.WHITE, "center")
        body = None
    elif kind == "oval":
        p.illustration(x, rim + 40, wide, h * .5, colors, style)
        for i in range(10):
            p.ellipse(w / 2, rim + 40 + h * .25, wide * .5 + 4 * i, h * .25 + 4 * i, light, 5)
        p.box(rim, rim, w - 2 * rim, 34, light)
        p.box(rim, rim + h * .56 + 10, w - 2 * rim, 34, light)
        write(x, rim + 8, name, 20, wide, strong, "center")
        body = rim + 54 + h * .5
    else:  # corners: a playing card
        value, suit = pick(chance.name, ("A", "K", "Q", "J", "10", "9", "8", "7", "6", "5")), pick(chance.name, art.CHARGES)
        inner[:] = mix(light, art.WHITE, .8)
        p.illustration(w * .24, h * .16, w * .52, h * .68, colors, style)
        p.box(w * .24, h * .16, w * .52, h * .68, strong, 2)
        half = p.canvas[:h // 2]
        large_text(half, rim + 5, rim + 6, 30, 32, value, p.face[1], strong)
        for part in suit:
            polygon(half, np.asarray(part) * 13 + (rim + 20, rim + 60), strong)
        p.canvas[h - h // 2:, w - rim - 42:w - rim] = half[:, rim:rim + 42][::-1, ::-1]
        body = None
    p.emblem(w - rim - 24, {"corners": h / 2, "oval": rim + 56}.get(kind, rim + 20), 13, colors=(strong, art.BLACK))
    if body:
        p.rounded(x, body, wide, h - rim - body - 24, 6, mix(light, art.WHITE, .6))
        if translated:
            p.field("prose", x + 8, body + 5, wide - 16, h - rim - body - 34, size=10, face=p.body[0], color=art.BLACK)
        else:
            sentences = [p.sentence(5) for _ in range(int((h - rim - body - 34) // 14))]
            p.rows(x + 8, body + 5, 14, sentences, 10, wide - 16, art.BLACK)
    p.field("number", rim + 8, h - rim - 17 if kind != "full" else rim + 4, 70, 14, size=10,
            pattern=pick(r, ("#999/999", "No. 9999", "A9-999")), color=strong if kind != "full" else art.WHITE)
    p.field("check", rim + 84, p.fields[-1].y, 12, 12)
    return p.done()
