"""Pages: forms, invoices, certificates, letters, menus, timetables."""
import numpy as np

from synth import art, words
from synth.draw import hsv, lines, mix, pick
from synth.fonts import ITALIC, MONO, OBLIQUE, RUBIK, SANS, SERIF, SLANTED, TIMES
from synth.page import VALUES, Page

FORM_END = 326  # y below which are date, signature and stamp of a form
FORM_KEYS = "surname", "given", "name", "birth", "place", "number", "issued", "address", "remarks"


def _entries(p, y, written):
    """Ruled or boxed entries, typed or handwritten. Like the other parts of a form, it returns the y of the next part."""
    columns, rows, boxed = pick(p.r, (1, 2)), int(p.r.integers(1, 4)), p.r.uniform() < .5
    w = (p.w - 28) / columns
    for i in range(min(rows, (FORM_END - y) // 27) * columns):
        x, top = 14 + w * (i % columns), y + 27 * (i // columns)
        if boxed:
            p.box(x, top, w + 1, 28, p.dark, 1)
        else:
            p.rule(x, top + 26, x + w - 8)
        key = pick(p.r, FORM_KEYS)
        by_hand = {"kind": "handwriting", "pattern": VALUES[key], "face": pick(p.r, (SLANTED, OBLIQUE))[0]}
        p.entry(key, x + 4, top + 2, w - 12, 11, **by_hand if written else {})
    return y + 27 * rows + 6


def _table(p, y, _):
    rows = min(int(p.r.integers(3, 6)), (FORM_END - y) // 14)
    edges = np.cumsum([0, *p.r.uniform(.5, 1.5, int(p.r.integers(2, 5)))])
    edges = 14 + edges / edges[-1] * (p.w - 28)
    p.box(14, y, p.w - 28, 14, mix(p.dark, art.WHITE, .7))
    lines(p.canvas, [np.array([(x, y), (x, y + 14 * rows)]) for x in edges], p.dark)
    lines(p.canvas, [np.array([(14, y + 14 * i), (p.w - 14, y + 14 * i)]) for i in range(rows + 1)], p.dark)
    for j, (a, b) in enumerate(zip(edges, edges[1:])):
        p.text(a + 3, y + 2, p.word(), 8, b - a - 5, bold=False)
        for i in range(1, rows):
            p.field("amount" if j else "word", a + 3, y + 14 * i + 2, b - a - 5, 11, size=8, face=SANS[0])
    return y + 14 * rows + 7


def _checks(p, y, _):
    n = int(p.r.integers(3, 5))
    for i in range(n):
        x, top = 14 + 124 * (i % 2), y + 15 * (i // 2)
        p.box(x, top, 11, 11, p.dark, 1)
        p.field("check", x, top, 11, 11)
        p.text(x + 16, top, p.sentence(2), 9, 100, bold=False)
    return y + 15 * -(-n // 2) + 5


def _prose(p, y, _):
    p.rows(14, y, 11, [p.sentence(6), p.sentence(6)], 9, p.w - 28)
    return y + 29


def form(chance):
    r = chance.layout
    p = Page(chance, 276, 390, (.6, .35, 0.), pale=.02, layers=pick(chance.art, (0, 0, 1)), strength=.15)
    organization, title = p.heading(pick(r, ("office", "shop", "state")))
    if r.uniform() < .4:
        p.box(0, 0, p.w, 58, mix(p.dark, art.WHITE, pick(r, (.65, .8))))
    centered, logo_right = r.uniform() < .35, bool(r.integers(2))
    if centered:
        p.emblem(p.w / 2, 24, 16)
        p.text(p.w / 2, 42, organization, 12, 240, p.dark, "center")
        p.text(p.w / 2, 64, title, 18, 240, align="center")
    else:
        p.emblem(p.w - 32 if logo_right else 32, 30, 18)
        p.text(14 if logo_right else 60, 14, organization, 13, 196, p.dark)
        p.text(14 if logo_right else 60, 32, p.word(), 9, 190, bold=False)
        p.text(14, 64, title, 18, 170)
        p.entry("number", 196, 64, 66, 10)
    y, written = 94, r.uniform() < .5
    while y < FORM_END - 46:
        if r.uniform() < .5:
            p.box(14, y, p.w - 28, 13, p.dark)
            p.text(18, y, p.sentence(3), 9, 200, art.WHITE)
            y += 17
        y = pick(r, (_entries, _entries, _table, _checks, _prose))(p, y, written)
        y += int(r.integers(0, 14))
    p.entry("date", 14, 340, 70, 11)
    p.entry("signature", 100, 340, 92, 30)
    p.rule(100, 384, 192)
    if r.uniform() < .5:
        p.field("matrix", 208, 332, 52, 52, pattern="25")
    else:
        p.field("postmark", 198, 328, 76, 60, color=pick(r, ((40, 40, 160), (140, 60, 40))))
    return p.done()


def invoice(chance):
    r = chance.layout
    p = Page(chance, 276, 390, (.6, .0, .35, .08), pale=pick(chance.color, (.01, .01, .05)),
             layers=pick(chance.art, (0, 0, 1)), strength=.12)
    organization, title = p.heading("shop")
    head, logo_right = pick(r, ("plain", "band", "side", "ruled")), bool(r.integers(2))
    left, right = (34 if head == "side" else 14), p.w - 14
    if head == "side":
        p.box(0, 0, 22, p.h, p.dark)
    if head == "band":
        p.box(0, 0, p.w, 50, p.dark)
    if head == "ruled":
        p.box(left, 52, right - left, 3, p.other)
    color = art.WHITE if head == "band" else p.dark
    p.emblem(right - 20 if logo_right else left + 20, 26, 18, disc=head == "band")
    edge, align = (left, "left") if logo_right else (right, "right")
    p.text(edge, 8, organization, 15, right - left - 50, color, align)
    p.rows(edge, 28, 10, [p.sentence(3), p.sentence(3)], 8, 150, color, align)  # the sender's address belongs to the type

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
    p.box(left, 144, wide, 15, p.dark if inverse else mix(p.dark, art.WHITE, .8))
    for i in range(164 + step, low, 2 * step) if r.uniform() < .5 else ():
        p.box(left, i, wide, step, mix(p.other, art.WHITE, .88))
    columns = left + columns / columns[-1] * wide if len(columns) > 2 else np.array([left, right])
    for a, b in zip(columns, columns[1:]):
        p.text(a + 3, 145, p.word(), 9, b - a - 5, art.WHITE if inverse else p.dark)
    if r.uniform() < .5:
        lines(p.canvas, [np.array([(x, 144), (x, low)]) for x in columns], p.dark)
    p.field("items", left + 3, 163, wide - 6, low - 167, size=step - 4, face=SANS[0])

    total = pick(r, ("inverse", "pale", "framed"))
    p.box(right - 124, low + 4, 124, 24, p.dark if total == "inverse" else mix(p.dark, art.WHITE, .75),
        1 if total == "framed" else -1)
    p.field("amount", right - 66, low + 8, 62, 16, size=12, pattern=pick(r, ("", "€", "$", "£")), align="right",
            color=art.WHITE if total == "inverse" else p.ink)
    p.text(left, low + 10, words.label("total", p.language), 12, wide - 130)
    if r.uniform() < .5:
        p.field("matrix", left, 334, 44, 44, pattern="21")
        left += 52
    p.rows(left, 338, 11, [p.sentence(4), p.sentence(4)], 8, right - left - 90)
    p.text(left, 364, words.notice(words.THANKS, p.language), 9, right - left - 90, p.dark)
    if r.uniform() < .6:
        p.entry("signature", right - 84, 336, 80, 30)
    else:
        p.field("postmark", right - 80, 328, 76, 56, color=pick(r, ((40, 40, 160), (140, 60, 40))))
    return p.done()


def certificate(chance):
    r = chance.layout
    (w, h), head = chance.choose("layout", (((384, 280), "center"), ((280, 384), "center"), ((384, 280), "pair"),
                                            ((280, 384), "pair"), ((384, 280), "plain")))
    p = Page(chance, w, h, (.1, .55, .3), pale=.06, layers=pick(chance.art, (1, 2)), strength=.22)
    organization, title = p.heading("office")
    art.border(chance.art, p.canvas, 7, p.dark)
    art.watermark(chance.art, p.canvas, w / 2, h * .55, h * .27, p.other, .16)
    tall, y = h > w, 24
    if head == "center":
        p.emblem(w / 2, 44, 22)
        y = 68
    elif head == "pair":
        p.emblem(46, 46, 20)
        p.emblem(w - 46, 46, 20)
    p.text(w / 2, y, organization, 14, w - 130 if y < 60 else w - 60, align="center")
    p.text(w / 2, y + 20, title.upper() if r.uniform() < .4 else title, 30, w - 110, p.dark, "center",
           face=pick(r, (p.face, TIMES, ITALIC, SERIF)))
    y += 62 + 20 * tall
    p.text(w / 2, y, p.sentence(5), 10, w - 70, align="center", bold=False)
    if r.uniform() < .5:
        p.field("name", 44, y + 15, w - 88, 28, size=20, face=pick(r, (ITALIC, SLANTED, TIMES))[1], align="center")
    else:
        p.field("handwriting", 60, y + 13, w - 120, 30, size=18, face=SLANTED[0], pattern="name")
    p.rule(50, y + 43, w - 50)
    sentences = [p.sentence(int(r.integers(5, 8))) for _ in range(2 + 4 * tall)]
    p.rows(w / 2, y + 48, 13, sentences, 10, w - 64, align="center")
    seal_x, date_x, signature_x = np.array(pick(r, ((.5, .2, .8), (.22, .5, .8), (.78, .2, .5)))) * w
    low = h - 62
    if r.uniform() < .5:
        art.seal(chance.name, p.canvas, seal_x, low + 18, 27, pick(r, (p.dark, p.other)), organization)
    else:
        p.emblem(seal_x, low + 18, 24)
    p.entry("date", date_x - 38, low, 76, 12)
    p.entry("signature", signature_x - 38, low, 76, 26)
    return p.done()


def _letterhead(p, kind, organization, left, right):
    """The head of a letter: emblem or wordmark, name and address of the sender. Returns the y of the next part."""
    wide, strong = right - left, p.dark
    address = [p.sentence(3).rstrip(".") for _ in range(2)]
    if kind == "centered":
        p.emblem((left + right) / 2, 30, 20)
        p.text((left + right) / 2, 54, organization, 15, wide, strong, "center")
        p.text((left + right) / 2, 74, " · ".join(address), 8, wide, align="center", bold=False)
        p.rule(left, 88, right, strong)
        return 98
    if kind == "band":
        p.box(0, 0, p.w, 46, strong)
        p.wordmark(left, 8, wide * .6, 30, organization, (art.WHITE,), "left")
        p.rows(right, 10, 12, address, 8, wide * .36, art.WHITE, "right")
        return 60
    if kind == "wordmark":
        p.wordmark(left, 12, wide * .55, 34, organization, align="left")
        p.rows(right, 14, 12, address, 8, wide * .4, strong, "right")
        p.box(left, 54, wide, 2, p.other)
        return 66
    if kind == "right":
        p.emblem(right - 22, 32, 22)
        p.text(right, 58, organization, 11, wide, strong, "right")
        p.rows(right, 72, 10, address, 8, wide * .5, align="right")
        return 88
    if kind == "foot":
        p.text(left, 12, organization.upper(), 12, wide, strong)
        p.box(0, p.h - 34, p.w, 34, mix(strong, art.WHITE, .75))
        p.emblem(left + 14, p.h - 17, 13)
        p.text(left + 36, p.h - 24, " · ".join(address), 8, wide - 40, strong, bold=False)
        return 34
    p.box(0, 0, left - 8, p.h, mix(strong, art.WHITE, .1))  # side
    p.emblem((left - 8) / 2, 32, (left - 8) * .32, disc=True)
    p.text(left, 14, organization, 16, wide, strong)
    p.text(left, 34, address[0], 8, wide, bold=False)
    return 54


def letter(chance):
    """Letters, contracts, reports: the letterhead, places and the fonts belong to the type, the text varies."""
    r = chance.layout
    p = Page(chance, 276, 390, (.6, .0, .35, .08), pale=chance.choose("color", (.0, .01, .0, .05)),
             layers=pick(chance.art, (0, 0, 0, 1)), strength=.1)
    organization, title = p.heading(pick(chance.name, ("office", "shop", "bank", "state")))
    head = chance.choose("layout", ("centered", "band", "wordmark", "right", "foot", "side"))
    accent = chance.choose("layout", ("top", "bottom", "edge", "corner"))
    if accent == "corner":
        p.polygon([(p.w, p.h), (p.w - 90, p.h), (p.w, p.h - 60)], p.dark)
    elif head not in ("band", "side"):
        p.box(*{"top": (0, 0, p.w, 6), "bottom": (0, p.h - 5, p.w, 6), "edge": (0, 0, 7, p.h)}[accent], p.dark)
    left, right = (52 if head == "side" else pick(r, (20, 26))), p.w - pick(r, (18, 24))
    y, wide = _letterhead(p, head, organization, left, right), right - left
    end = p.h - (44 if head == "foot" else 22)
    face, size = pick(r, (SANS, SERIF, TIMES, TIMES, MONO, RUBIK))[0], pick(r, (8, 9))
    prose = {"size": size, "face": face}
    body = chance.choose("layout", ("letter", "contract", "columns", "report"))
    if body == "letter":
        for i in range(3):
            p.field("name" if i == 0 else "address", left, y + 8 + 12 * i, wide * .5, 12, size=9, face=face)
        p.field("date", right - 70, y + 50, 70, 13, size=9, align="right", face=face)
        p.field("words", left, y + 70, wide, 15, size=11, pattern="4")
        p.field("prose", left, y + 90, wide, end - 44 - y - 90, **prose)
        p.field("signature", pick(r, (left, right - 90)), end - 40, 88, 38)
    else:
        at, align = ((left + right) / 2, "center") if body == "contract" else (left, "left")
        p.text(at, y + 6, title.upper() if r.uniform() < .5 else title, 20, wide, p.dark, align)
        p.field("words", left, y + 34, wide * .7, 14, size=10, pattern="3")
        p.field("date", right - 60, y + 34, 60, 14, size=9, align="right")
        y += 54
        if body == "contract":
            p.field("prose", left, y, wide, end - y - 44, pattern="1.", **prose)
            for x in (left, right - 80):
                p.field("signature", x, end - 40, 80, 34)
                p.rule(x, end - 4, x + 80)
        else:
            gap = wide / 2 + 5
            if body == "report":
                p.field(pick(r, ("chart", "photo", "chart")), left, y, wide, 84, color=p.dark)
                y += 94
            for x in (left, left + gap):
                p.field("prose", x, y, wide / 2 - 5, end - y - 8, **prose)
    if head != "foot":
        p.text((left + right) / 2, p.h - 15, p.sentence(2).rstrip("."), 8, wide, align="center", bold=False)
    return p.done()


def menu(chance):
    """Menus and price lists: name, headings, ornaments and places belong to the type, dishes and prices do not."""
    r = chance.layout
    w, h = pick(r, ((276, 390), (276, 390), (384, 280), (220, 390)))
    p = Page(chance, w, h, (.08, .0, .35, .6), pale=pick(chance.color, (.02, .12, .2)),
             layers=pick(chance.art, (0, 0, 1)), strength=.14)
    name, _ = p.heading("shop")
    if chance.choose("color", (0, 0, 1)):  # chalk on a board
        p.canvas[:] = mix(p.dark, (25, 25, 25), .6)
        p.ink, p.dark, p.other = (235, 240, 240), hsv(p.hues[0], .3, .95), hsv(p.hues[1], .45, .95)
    head = chance.choose("layout", ("frame", "band", "side", "center"))
    y, left, right, end = 14, 22, w - 22, h - 22
    if head == "frame":
        art.border(chance.art, p.canvas, 5, p.dark)
        p.wordmark(w * .18, 24, w * .64, 40, name)
        y = 76
    elif head == "band":
        deep = pick(r, (60, 84))
        p.illustration(0, 0, w, deep, art.palette(chance.art, p.hues[0]))
        p.rounded(w * .2, deep * .2, w * .6, deep * .6, 6, p.dark)
        p.wordmark(w * .23, deep * .27, w * .54, deep * .46, name, (art.WHITE,) if sum(p.dark) < 400 else (art.BLACK,))
        y = deep + 10
    elif head == "side":
        left = round(w * .3)
        p.illustration(0, 0, left - 12, h, art.palette(chance.art, p.hues[0]))
        p.wordmark(left, 14, right - left, 34, name, align="left")
        y = 58
    else:
        p.emblem(w / 2, 34, 24)
        p.wordmark(w * .2, 62, w * .6, 28, name)
        y = 100
    columns, n = (2, 2) if w > 300 and head != "side" else (1, pick(r, (2, 3, 3)))
    face, size = pick(r, (SERIF, TIMES, SANS, RUBIK, ITALIC)), pick(r, (9, 10))
    style, align = pick(r, ("dots", "plain", "", "capitals")), pick(r, ("left", "center"))
    wide, high = (right - left - 14 * (columns - 1)) / columns, (end - y) / (n if columns == 1 else 1)
    for i in range(n):
        x, top = left + (wide + 14) * (i % columns) * (columns > 1), y + high * i * (columns == 1)
        p.text(x if align == "left" else x + wide / 2, top, p.title("menu", i), 16, wide, p.dark, align)
        if style in ("plain", ""):
            p.box(x, top + 20, wide, 1, p.other)
        p.field("items", x, top + 24, wide, high - 30, size=size, face=face[0], pattern=style, fill=pick(r, (.5, .9)))
    p.text(w / 2, h - 17, words.notice(words.THANKS, p.language), 8, w * .7, p.dark, "center", bold=False)
    return p.done()


def timetable(chance):
    """Timetables and tables of figures: head, line number, column heads and stripes belong to the type, not the values."""
    r = chance.layout
    w, h = pick(r, ((276, 390), (384, 276), (240, 390), (384, 240)))
    p = Page(chance, w, h, (.6, .02, .14, .35), pale=pick(chance.color, (0., .02, .1)), layers=0)
    operator, title = p.heading("shop")
    strong, inverse = hsv(p.hues[0], .85, chance.color.uniform(.45, .85)), chance.choose("layout", (0, 1, 2, 3))
    head = pick(r, (52, 64))
    if inverse in (0, 2):
        p.box(0, 0, w, head, strong)
    if inverse == 2:
        p.box(0, head, w, 5, p.other)
    color, side = art.WHITE if inverse in (0, 2) else strong, inverse % 2
    number = "".join((p.initials()[0], str(chance.name.integers(1, 99))))[:int(chance.name.integers(1, 4))]
    plate_x = w - 60 if side else 12
    p.rounded(plate_x, 10, 48, 36, chance.choose("layout", (2, 10, 18)), p.other)
    p.large_text(plate_x + 6, 15, 36, 26, number, SANS[1], art.WHITE)
    p.text(12 if side else 70, 6, title, 22, w - 84, color)
    p.text(12 if side else 70, 34, operator, 13, w - 84, color, bold=False)
    y = head + 10
    p.field("words", 12, y, w * .55, 16, size=12, pattern="3")
    p.field("date", w - 90, y, 78, 16, size=11, align="right")
    y += 22
    first, step = pick(r, (0, 76, 92)), pick(r, (14, 15, 16))
    columns = min(int(r.integers(3, 6)), (w - first) // 48)
    size = step - 5
    p.box(8, y, w - 16, step + 2, mix(strong, art.WHITE, .1 if inverse == 1 else .65))
    left = 12 + first
    for j in range(columns):
        p.text(left + (w - left - 12) / columns * j, y + 2, p.word(), 9, (w - left - 12) / columns - 4,
               art.WHITE if inverse == 1 else p.ink)
    y += step + 4
    rows = int((h - 26 - y) // step)
    stripes = pick(r, ("stripes", "rules", "grid", "none"))
    for i in range(rows):
        if stripes == "stripes" and i % 2:
            p.box(8, y + i * step - 2, w - 16, step, mix(strong, art.WHITE, .88))
        elif stripes in ("rules", "grid"):
            p.box(8, y + i * step - 3, w - 16, 1, mix(strong, art.WHITE, .5))
    if stripes == "grid":
        for j in range(columns + 1):
            p.box(left - 4 + (w - left - 8) / columns * j, y - 3, 1, rows * step, mix(strong, art.WHITE, .5))
    if first:
        p.field("stops", 12, y, first - 6, rows * step, size=size, face=p.body[0], pattern=str(step))
    p.field("cells", left, y, w - left - 12, rows * step, size=size, face=MONO[0],
            pattern=f"{columns}:{pick(r, ('time', 'time', 'number'))}:{step}")
    p.text(12, h - 17, words.notice(words.CARE, p.language), 8, w - 24, bold=False)
    return p.done()
