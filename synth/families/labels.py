"""Labels: parcels, number plates, stickers, prices. Most of the image is large text, which varies."""
from synth import art, words
from synth.draw import fit, hsv, mix, pick, readable, visible
from synth.fonts import HEAVY, ITALIC, MONO, NARROW, RUBIK, SANS, SERIF, SLANTED, WIDE
from synth.page import Page


def label(chance):
    r = chance.layout
    w, h, centered = chance.choose("layout", ((320, 320, True), (276, 360, False), (360, 276, True), (320, 320, False),
                                              (276, 360, True), (360, 276, False)))
    p = Page(chance, w, h, (.13, .33, .6), pale=pick(chance.color, (.03, .25)),
             layers=pick(chance.art, (0, 1)), strength=.3)
    organization, title = p.heading("shop")
    art.border(chance.art, p.canvas, 4, p.dark)
    if centered:
        p.emblem(w / 2, 46, 26)
        p.text(w / 2, 74, organization, 17, w - 50, p.dark, "center")
        y = 98
    else:
        p.emblem(50, 46, 26)
        p.text(80, 34, organization, 17, w - 110, p.dark)
        y = 80
    inverse = r.uniform() < .6
    if inverse:
        p.box(18, y, w - 36, 40, pick(r, (p.dark, p.other, p.ink)))
    size = fit(title.upper(), p.face[1], 27, w - 60)
    p.text(w / 2, y + 20 - size * .62, title.upper(), size, w - 60, art.WHITE if inverse else p.dark, "center")
    y += 48
    rows, signs = (h - 70 - y) // 29, min(int(r.integers(0, 4)), (h - 70 - y) // 38)
    for i in range(signs):  # handling signs
        p.box(w - 50, y + 38 * i, 32, 32, p.ink, 1)
        p.icon(w - 34, y + 16 + 38 * i, 12, p.ink)
    wide = w - 36 - (44 if signs else 0)
    keys = p.keys((), ("lot", "weight", "expires", "number", "from", "to", "address", "remarks"), rows)
    for i, key in enumerate(keys):
        p.entry(key, 20, y + 29 * i, wide, 12)
        if i:
            p.rule(18, y + 29 * i - 2, 18 + wide, mix(p.ink, art.WHITE, .5))
    if r.uniform() < .6:
        p.field("barcode", 22, h - 64, w - 44, 46)
    else:
        p.field("matrix", 22, h - 66, 50, 50, pattern="21")
        p.text(84, h - 52, words.notice(words.CARE, p.language), 9, w - 110, bold=False)
    return p.done()


DARK = ((40, 30, 20), (120, 40, 10), (30, 30, 160), (40, 110, 20), (110, 20, 100), (20, 20, 20))  # dark, BGR
LIGHT = ((255, 255, 255), (80, 210, 250), (200, 240, 255), (230, 245, 215), (250, 235, 205), (220, 215, 255))  # light, BGR
PLATE_NUMBERS = ("AA-999-AA", "AAA 999", "999 AAA", "A 999 AA", "99 AA 99", "AAA-9999", "9AAA999", "AA99 AAA", "99-99",
                 "AA 9999", "A-99999", "999-99", "A 9 999", "99 A 9999", "AA 99 AA 9999")
LETTERS = (SANS[1], NARROW[1], RUBIK[1], RUBIK[0], WIDE[1], MONO[1], HEAVY[1], SANS[0], SERIF[1], NARROW[0])


def _colors(chance):
    """(paper, ink) of a label with few colors; sometimes light on dark. All pairs of a color group are distinct."""
    light, dark = chance.choose("color", LIGHT), chance.choose("color", DARK)
    return (dark, art.WHITE) if chance.choose("color", (0, 0, 1, 0)) else (light, dark)


def plate(chance):
    """Number plates. Of the type: format, colors, border, the place for the country or region, emblem, slogan, pattern."""
    r = chance.layout
    kind = chance.choose("layout", ("band", "state", "two lines", "small above", "emblem", "plain", "corner"))
    high = r.uniform()
    w, h = {"band": (392, 84 + 12 * high), "state": (384, 192), "two lines": (330, 240), "small above": (384, 200),
            "emblem": (392, 88 + 22 * high), "plain": (392, 100 + 30 * high), "corner": (384, 120 + 60 * high)}[kind]
    h = round(h)
    p = Page(chance, w, h, (.6, .0, .15, .4), layers=0)
    paper, color = _colors(chance)
    p.canvas[:] = paper
    if kind == "state" and chance.art.uniform() < .7:
        colors = [mix(c, paper, .55) for c in art.palette(chance.art, p.hues[0])]
        p.illustration(0, 0, w, h, colors, pick(chance.art, (0, 0, 3, 4, 7)))
    region, title = p.heading("state")
    face, edge = pick(r, LETTERS), int(r.integers(3, 8))

    def write(x, y, wide, high, *patterns):
        p.field("large", x, y, wide, high, pattern="number:" + pick(r, patterns), face=face, color=color)

    if kind == "band":
        left, wide = r.uniform() < .75, pick(r, (34, 42))
        x = 0 if left else w - wide
        p.box(x, 0, wide, h, hsv(p.hues[1], .8, .6))
        p.emblem(x + wide / 2, h * .3, wide * .32, colors=(pick(chance.name, ((60, 220, 250), art.WHITE)),))
        p.large_text(x + 5, h * .58, wide - 10, h * .28, p.initials(), SANS[1], art.WHITE)
        write((wide if left else 0) + 14, h * .13, w - wide - 28, h * .74, *PLATE_NUMBERS)
    elif kind == "state":
        p.wordmark(w * .16, 8, w * .68, 36, region, (color, p.dark))
        p.text(w / 2, h - 27, p.sentence(3).rstrip("."), 15, w * .6, color, "center")
        if r.uniform() < .5:
            write(18, 52, w - 36, 104, *PLATE_NUMBERS)
        else:
            p.emblem(w / 2, 104, 20, colors=(p.dark, p.other))
            write(18, 52, w / 2 - 44, 104, "AAA", "999", "AA9")
            write(w / 2 + 26, 52, w / 2 - 44, 104, "999", "9999", "9AA")
    elif kind == "two lines":
        p.text(16, 12, region, 18, w - 60, color)
        p.emblem(w - 34, 40, 20, colors=(color, p.dark))
        write(24, 40, w - 96, 76, "AA", "99 A", "AA 9", "A-9")
        write(20, 128, w - 40, 96, "9999", "99-99", "999", "99 99")
    elif kind == "small above":
        write(w * .2, 14, w * .6, 46, "AA 999", "999", "AA 99", "A 99")
        write(58, 72, w - 88, 108, "99-99", "9999", "9-999")
        p.large_text(14, 96, 38, 54, p.initial, SANS[1], color)
        p.emblem(34, 38, 20, colors=(color, p.dark))
    elif kind == "emblem":
        write(14, h * .14, w * .28, h * .72, "AA", "A", "99", "AAA")
        p.emblem(w * .39, h / 2, h * .27, colors=(color, p.dark, p.other))
        write(w * .47, h * .14, w * .49, h * .72, "9999", "99 999", "999 AA")
    elif kind == "corner":
        side = int(r.integers(2))
        x = w - 88 if side else 12
        art.flag(chance.name, p.canvas, x + 12, h * .14, 52, 34, p.hues)
        p.large_text(x, h * .56, 76, h * .3, p.initials(), face, color)
        write(16 if side else 100, h * .14, w - 120, h * .72, *PLATE_NUMBERS)
    else:
        above, inverse = r.uniform() < .4, r.uniform() < .5  # a strip with words
        y = 0 if above else h - 26
        if inverse:
            p.box(0, y, w, 26, color)
        on = paper if inverse else color
        p.emblem(26 if r.uniform() < .5 else w - 26, y + 13, 9, colors=(on,))
        p.text(w / 2, y + 4, (region if r.uniform() < .5 else title).upper(), 16, w * .7, on, "center")
        write(18, 32 if above else h * .1, w - 36, h * .9 - 34, *PLATE_NUMBERS)
    p.rounded(1, 1, w - 2, h - 2, pick(r, (6, 14)), color, pick(r, (1, edge)))
    if r.uniform() < .4:  # screws
        for x in (w * .25, w * .75) if h > 150 else (7, w - 8):
            p.ellipse(x, 9 if h > 150 else h / 2, 4, 4, mix(color, (150, 150, 150), .6))
    return p.done()


def badge(chance):
    """Name badges and stickers: a colored frame or header with fixed words, and a large name, printed or written."""
    r = chance.layout
    w, h = pick(r, ((384, 256), (384, 230), (330, 330), (280, 384)))
    p = Page(chance, w, h, (.6, .0, .33, .1, .8), pale=pick(chance.color, (.01, .01, .15)),
             layers=pick(chance.art, (0, 0, 1)), strength=.2)
    organization, title = p.heading(pick(chance.name, ("office", "shop")))
    kind = chance.choose("layout", ("header", "frame", "side", "footer", "plain"))
    strong = hsv(p.hues[0], chance.color.uniform(.6, .95), chance.color.uniform(.45, .85))
    top, left, bottom = 16, 16, h - 16
    if kind == "header":
        top = round(h * r.uniform(.28, .4))
        p.box(0, 0, w, top, strong)
        p.large_text(w * .1, top * .15, w * .8, top * .5, title.upper(), p.face[1], art.WHITE)
        p.text(w / 2, top * .7, organization, 15, w * .8, art.WHITE, "center")
        top += 12
    elif kind == "frame":
        p.box(0, 0, w, h, strong)
        p.rounded(16, h * .3, w - 32, h * .58, 12, art.WHITE)
        p.wordmark(24, h * .06, w - 48, h * .19, title, (art.WHITE,))
        top, bottom, left = h * .33, h * .85, 30
    elif kind == "side":
        wide = round(w * r.uniform(.2, .32))
        p.illustration(0, 0, wide, h, art.palette(chance.art, p.hues[0]))
        p.wordmark(wide + 14, 12, w - wide - 28, 44, organization)
        top, left = 66, wide + 16
    elif kind == "footer":
        bottom = h - 58
        p.box(0, bottom + 8, w, 58, strong)
        p.emblem(34, h - 26, 19, disc=True)
        p.text(66, h - 42, organization, 20, w - 84, art.WHITE)
        p.text(w / 2, 12, title, 22, w - 40, strong, "center")
        top = 46
    else:
        p.emblem(42, 42, 26)
        p.wordmark(78, 18, w - 96, 46, organization)
        p.box(0, h - 12, w, 12, strong)
        top, bottom = 82, h - 24
    wide, high = w - left - 16, bottom - top
    if kind in ("footer", "plain") and r.uniform() < .5 and wide > 200:
        p.field("portrait", left, top, high * .75, high, color=hsv(p.hues[1], .1, .9))
        left, wide = left + high * .75 + 12, wide - high * .75 - 12
    name = {"pattern": pick(r, ("word", "name", "word")), "face": pick(r, (p.face[1], ITALIC[1], RUBIK[1])),
            "align": pick(r, ("left", "center"))}
    if kind == "header" and r.uniform() < .6:
        p.field("handwriting", left, top, wide, high * .68, size=int(high * .5), face=SLANTED[0], pattern="word")
    else:
        p.field("large", left, top + high * .05, wide, high * .55, **name)
    p.field("words", left, bottom - high * .28, wide, 20, size=16, pattern="2", align=name["align"])
    return p.done()


def price(chance):
    """Price labels and shelf tags: a large price, the goods, their code; header, colors and places belong to the type."""
    r = chance.layout
    w, h = pick(r, ((392, 160), (384, 210), (384, 240), (320, 320), (270, 384)))
    p = Page(chance, w, h, (.14, .0, .58, .35), layers=0)
    paper, color = _colors(chance)
    strong = visible(hsv(p.hues[0], .85, chance.color.uniform(.55, .9)), paper)
    p.canvas[:] = paper
    shop, title = p.heading("shop")
    kind = chance.choose("layout", ("band", "side", "disc", "plain", "frame"))
    x, y, wide, high = 12, 10, w - 24, h - 20
    if kind == "band":
        band = round(h * r.uniform(.2, .3))
        at = 0 if r.uniform() < .7 else h - band
        p.box(0, at, w, band, strong)
        p.wordmark(12, at + band * .14, w * .5, band * .72, shop, (readable(strong),), "left")
        p.text(w - 12, at + band * .3, title.upper(), int(band * .4), w * .4, readable(strong), "right")
        y, high = (band + 6, h - band - 14) if at == 0 else (8, h - band - 14)
    elif kind == "side":
        wide = round(w * .24)
        p.box(0, 0, wide, h, strong)
        p.emblem(wide / 2, h * .3, wide * .3, disc=True)
        p.large_text(8, h * .62, wide - 16, h * .2, title.upper(), p.face[1], readable(strong))
        x, wide = wide + 12, w - wide - 22
    elif kind == "disc":
        radius = min(w, h) * .27
        p.ellipse(w - radius * .9, radius * .9, radius, radius, strong)
        p.large_text(w - radius * 1.65, radius * .5, radius * 1.5, radius * .8, title.upper(), p.face[1],
                   readable(strong))
        p.text(x, y, shop, 17, w - 2.1 * radius, strong)
        y, high = y + 24, high - 24
    elif kind == "frame":
        p.rounded(3, 3, w - 6, h - 6, 12, strong, 6)
        p.wordmark(w * .2, 14, w * .6, h * .14, shop, (strong, color))
        x, y, wide, high = 18, h * .14 + 20, w - 36, h * .86 - 34
    else:
        p.wordmark(w * .5, h - 32, w * .5 - 12, 24, shop, (strong,), "right")
        part = pick(r, ("top", "left", "corner", "foot"))
        if part == "corner":
            p.polygon([(w, 0), (w, h * .3), (w - h * .4, 0)], strong)
        else:
            p.box(*{"top": (0, 0, w, 8), "left": (0, 0, 9, h), "foot": (0, h - 36, w * .48, 36)}[part], strong)
        p.box(x, h * .5, wide * .4, 2, strong)
    tall, end = high > wide * .8, kind == "disc" and not high > wide * .8
    p.field("words", x, y, wide * (.6 if end else 1), 22, size=17, face=p.body[1], color=color, pattern="2")
    p.field("number", x, y + 23, wide * .5, 14, size=10, color=color,
            pattern=pick(r, ("9.99 / kg", "99.9 / 100 g", "Nr. 999999", "999 ml")))
    cost = {"pattern": chance.choose("name", ("€", "$", "£", "¥")), "face": pick(r, LETTERS),
            "color": pick(r, (color, strong))}
    if tall:
        p.field("cost", x, y + 42, wide, high * .45, **cost)
        p.field("barcode", x, y + high - 46, wide * (.5 if kind == "plain" else .9), 44)
    else:
        p.field("cost", x + wide * .36, y + 40, wide * .64, high - (62 if kind == "plain" else 42), **cost)
        p.field(pick(r, ("barcode", "matrix")), x, y + high * .5 + 2, wide * .32, high * .48)
    return p.done()


def parcel(chance):
    """Parcel and asset labels: a carrier's logo, ruled boxes with addresses, a large sorting code, a large barcode."""
    r = chance.layout
    w, h = pick(r, ((276, 390), (276, 390), (300, 384), (390, 276)))
    p = Page(chance, w, h, (.02, .6, .14, .33, .78), pale=0., layers=0)
    strong = hsv(p.hues[0], .85, chance.color.uniform(.5, .9))
    p.canvas[:] = chance.choose("color", (art.WHITE, art.WHITE, (205, 235, 255), (200, 250, 255)))
    p.ink = (25, 25, 25)
    carrier, _ = p.heading("shop")
    rule = lambda y: p.box(6, y, w - 12, 2, p.ink)
    y = 8
    parts = [("logo", 48), ("address", 76), ("code", 62), ("bars", 82), ("small", 42)]
    order = chance.choose("layout", ((0, 1, 2, 3, 4), (0, 3, 1, 2, 4), (2, 0, 1, 3, 4), (0, 1, 4, 3, 2), (1, 2, 3, 0, 4),
                                     (0, 2, 1, 4, 3)))
    spare = h - 16 - sum(parts[i][1] for i in order)
    if spare < 0:
        order = [i for i in order if i != 4 and i != 1][:3]
        spare = h - 16 - sum(parts[i][1] for i in order)
    band = r.uniform() < .5
    for i in order:
        part, high = parts[i]
        high += spare // len(order)
        if part == "logo":
            if band:
                p.box(0, y - 2, w, high - 2, strong)
            p.wordmark(12, y + 2, w * .62, high - 10, carrier, (art.WHITE,) if band else (strong,), "left")
            p.text(w - 12, y + high * .3, p.title("label"), 13, w * .28, art.WHITE if band else p.ink, "right")
        elif part == "address":
            for j, (key, wide) in enumerate((("from", .4), ("to", .6))):
                x = 10 + j * (w - 20) * .4
                p.entry(key, x, y + 2, (w - 20) * wide - 6, 10 + 3 * j, kind="name")
                for row in range(2):
                    p.field("address", x, y + 32 + 14 * row, (w - 20) * wide - 6, 14, size=9 + 2 * j)
        elif part == "code":
            inverse = chance.choose("layout", (0, 1))
            if inverse:
                p.box(8, y + 2, w * .4, high - 8, p.ink)
            p.field("large", 14, y + 8, w * .4 - 12, high - 20, pattern="number:" + pick(r, ("A9", "99", "AA", "9A")),
                    face=SANS[1], color=art.WHITE if inverse else p.ink)
            p.field("large", w * .46, y + 8, w * .5, high - 20,
                    pattern="number:" + pick(r, ("999-99", "99999", "AAA 99")), face=p.body[1])
        elif part == "bars":
            p.field("barcode", 16, y + 4, w - 32, high - 10)
        else:
            p.field("matrix", 10, y + 2, high - 6, high - 6, pattern="21")
            p.entry("weight", high + 14, y + 2, 70, 12)
            p.entry("date", high + 90, y + 2, w - high - 100, 12)
        y += high
        rule(y - 4)
    p.box(3, 3, w - 6, h - 6, strong, pick(r, (3, 5)))
    return p.done()
