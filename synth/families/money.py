"""Cheques, and notes like those of a bank: line work, portraits, numerals. None follows the design of a real currency."""
import numpy as np

from synth import art
from synth.draw import ellipse, hsv, ink, mix, pick, rng
from synth.fields import Field, draw_field
from synth.fonts import ITALIC, MONO, SANS, SERIF, SLANTED, TIMES
from synth.page import Page


def cheque(chance):
    """Cheques: bank, line work and ruled places belong to the type; all that is written or printed on it varies."""
    r = chance.layout
    p = Page(chance, 392, pick(r, (168, 180, 192)), (.55, .33, .12, .0, .8),
             pale=pick(chance.color, (.06, .16)), layers=pick(chance.art, (2, 3)), strength=.26)
    w, h = p.w, p.h
    bank, title = p.heading("bank")
    kind = chance.choose("layout", ("left", "right", "band", "center"))
    if kind == "band":
        p.box(0, 0, w, 32, p.dark)
    head = art.WHITE if kind == "band" else p.dark
    x = {"left": 28, "band": 28, "right": w - 28, "center": w / 2 - 80}[kind]
    p.emblem(x, 22 if kind != "band" else 16, 15 if kind != "band" else 11, disc=kind == "band")
    p.text({"right": w - 50}.get(kind, x + 22), 6, bank, 17, 74 if kind == "center" else 150, head,
           "right" if kind == "right" else "left")
    if r.uniform() < .5:
        art.watermark(chance.art, p.canvas, w * r.uniform(.3, .7), h * .5, 56, p.dark, .25)
    number, date = (w - 100, 150) if kind != "right" else (14, 110)
    p.entry("number", number if kind != "center" else w - 96, 4 if kind != "band" else 33, 88, 9, pattern="999999")
    p.entry("date", date if kind == "right" else w - 196, 4 if kind != "band" else 33, 86, 9)
    y = pick(r, (62, 66))
    p.text(14, y + 2, title, 10, 84, bold=False)
    wide = w - 118 - 84
    p.field("handwriting", 84, y - 8, wide + 12, 24, face=SLANTED[0], size=15, pattern="name")
    p.rule(80, y + 15, 100 + wide)
    p.rule(14, y + 41, 100 + wide)
    p.field("handwriting", 18, y + 18, wide + 70, 23, face=SLANTED[0], size=15, pattern="words:4")
    p.box(w - 104, y - 6, 92, 28, art.WHITE)
    p.box(w - 104, y - 6, 92, 28, p.dark, pick(r, (1, 2)))
    p.text(w - 101, y - 2, chance.choose("name", ("€", "$", "£", "¥")), 16, 16, face=SANS)
    kind, pattern = pick(r, (("handwriting", "price"), ("amount", "")))
    p.field(kind, w - 84, y - 2, 70, 22, size=15, pattern=pattern)
    p.entry("signature", w - 130, h - 68, 118, 28)
    p.rule(w - 134, h - 28, w - 12)
    p.text(14, h - 58, bank, 9, 150, bold=False)
    p.text(14, h - 46, p.sentence(3), 8, 150, bold=False)
    p.box(0, h - 24, w, 24, mix(hsv(p.hues[0], .04, .98), art.WHITE, .4))
    p.field("number", 24, h - 22, w - 48, 20, size=14, face=MONO[1], pattern="|:999999999|: 9999 999999|| 9999")
    return p.done()


def banknote(chance):
    """Notes: line work, a portrait or an illustration, numerals in the corners; a serial number varies, and little else."""
    r = chance.layout
    p = Page(chance, 392, pick(r, (164, 176, 190, 204)), (.33, .6, .08, .95, .78, .5),
             pale=pick(chance.color, (.12, .22)), layers=4, strength=.55)
    w, h = p.w, p.h
    bank, _ = p.heading(pick(chance.name, ("bank", "state")))
    value = str(pick(chance.name, (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 5000)))
    kind = chance.choose("layout", ("right", "left", "center", "illustration"))
    if r.uniform() < .5:
        wide = w * r.uniform(.14, .26)
        strip = np.full((h, round(wide)), 255, np.uint8)
        ink(p.canvas, strip, mix(p.dark, art.WHITE, .75), 0 if r.uniform() < .5 else w - wide, 0, .7)
    for _ in range(2):
        ink(p.canvas, art.rosette(chance.art, w, h), p.dark, alpha=.5)
    x = {"right": .74, "left": .26, "center": .5, "illustration": .68}[kind] * w
    tall, wide = h * .74, h * .62
    if kind == "illustration":
        colors = [mix(c, p.dark, .5) for c in art.palette(chance.art, p.hues[0])]
        p.illustration(x - wide, h * .24, wide * 1.8, h * .58, colors, pick(chance.art, (0, 0, 2, 4)))
        p.box(x - wide, h * .24, wide * 1.8, h * .58, p.dark, 1)
    else:  # one color, in an oval
        p.ellipse(x, h * .52, wide * .56, tall * .54, mix(p.dark, art.WHITE, .8))
        face = np.full((round(tall), round(wide), 3), 255, np.uint8)
        draw_field(face, Field("portrait", 0, 0, round(wide), round(tall), color=art.WHITE),
                   rng(int(chance.name.integers(2 ** 32))))
        gray, oval = face.mean(2), np.zeros(face.shape[:2], np.uint8)
        ellipse(oval, wide / 2, tall / 2, wide * .5, tall * .5, 255)
        ink(p.canvas, ((255 - gray) * (oval > 127)).astype(np.uint8), p.dark, x - wide / 2, h * .52 - tall / 2, .95)
        p.ellipse(x, h * .52, wide * .53, tall * .52, p.dark, 2)
    face = pick(r, (SERIF[1], TIMES[1], SANS[1]))
    big = pick(r, (.2, .28, .36)) * h
    away = w * .05 if kind in ("right", "illustration", "center") else w * .62
    p.large_text(away, h * .32, w * .3, big, value, face, p.dark)
    for cx, cy in pick(r, (((.02, .04), (.88, .8)), ((.02, .8), (.88, .04)), ((.02, .04), (.88, .04), (.88, .8)))):
        p.large_text(w * cx, h * cy, w * .1, h * .15, value, face, p.other)
    p.text(w * (.5 if kind != "center" else .76), 6, bank, 17, w * (.5 if kind != "center" else .22), p.dark, "center",
           face=pick(r, (SERIF, TIMES, ITALIC)))
    p.emblem(w * {"right": .46, "left": .54, "center": .84, "illustration": .4}[kind], h * .72, h * .12)
    p.text(away, h * .34 + big, p.sentence(2).rstrip(".").upper(), 11, w * .3, p.dark)
    if r.uniform() < .5:
        art.border(chance.art, p.canvas, 3, p.dark)
    serial = pick(r, ("AA 9999999 A", "A 99999999", "99A9999999"))
    for x, y in pick(r, (((.36, .88), (.14, .18)), ((.14, .88), (.66, .18)), ((.14, .18), (.66, .88)))):
        p.field("number", w * x, h * y, 84, 15, size=11, person="serial", pattern=serial, face=pick(r, (SANS[1], MONO[1])),
                color=pick(r, (p.ink, (40, 40, 170))))
    return p.done()
