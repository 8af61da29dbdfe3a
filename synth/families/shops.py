"""What comes from a shop: till receipts and box fronts."""
from synth import art, words
from synth.draw import hsv, mix, pick, readable
from synth.fonts import MONO, NARROW, RUBIK, SANS, WIDE
from synth.page import Page

RULES = ("-", "=", "*", ". ", "~", "_", "- ", "+-")


def receipt(chance):
    """Till receipts. The shop shows in a small logo, its address, the rules, the order and the fonts; the rest varies, the
    number of items and so the length too."""
    r = chance.layout
    w, h = pick(r, (150, 170, 190, 200, 220)), pick(r, (360, 380, 396))
    p = Page(chance, w, h, (.6, .0, .33, .1), pale=.0, layers=0)
    paper = chance.choose("color", ((240, 242, 243), (238, 246, 252), (248, 244, 238), (230, 242, 250), (242, 238, 250)))
    p.canvas = art.gradient(chance.art, w, h, paper, mix(paper, (200, 205, 210), .25))
    p.ink = chance.choose("color", ((50, 45, 45), (30, 30, 30), (70, 66, 64), (95, 65, 60), (45, 50, 55)))
    logo = p.dark if chance.choose("color", (0, 0, 1)) else p.ink  # most rolls are printed in one color
    p.dark = p.other = p.ink
    shop, title = p.heading("shop")
    face = pick(r, (MONO, MONO, SANS, NARROW, RUBIK, MONO))
    size, center = pick(r, (8, 9, 9, 10)), r.uniform() < .7
    at, align = (w / 2, "center") if center else (10, "left")
    y, head = 10, chance.choose("layout", ("emblem", "wordmark", "both", "plain", "beside", "inverse"))
    if head in ("emblem", "both"):
        radius = pick(r, (14, 18, 24))
        p.emblem(at if center else 10 + radius, y + radius, radius, colors=(logo,))
        y += 2 * radius + 6
    if head in ("wordmark", "both"):
        p.wordmark(14, y, w - 28, pick(r, (20, 26, 34)), shop, (logo,), align)
        y += 38
    elif head == "inverse":
        p.box(0, 6, w, 34, logo)
        p.large_text(14, 12, w - 28, 22, shop, pick(r, (SANS[1], WIDE[1])), art.WHITE)
        y = 46
    elif head == "beside":
        p.emblem(26, 26, 16, colors=(logo,))
        p.text(48, 12, shop, 16, w - 56, logo)
        y = 34
        at, align = 48, "left"
    elif head != "both":
        p.text(at, y, shop.upper() if r.uniform() < .5 else shop, 16, w - 20, align=align, face=face)
        y += 21
    for _ in range(int(r.integers(1, 4))):
        p.text(at, y, p.sentence(int(chance.name.integers(2, 4))).rstrip("."), size,
               w - at - 8 if align == "left" else w - 20, align=align, face=face, bold=False)
        y += size + 2
    y += 3
    rule = pick(r, RULES)

    def draw_rule(y):
        p.text(w / 2, y, (rule * 60)[:28], 10, w - 16, align="center", face=MONO, bold=False)

    if r.uniform() < .8:
        draw_rule(y)
    y += 12
    if r.uniform() < .6:
        p.text(10, y, title, size + 2, w * .4, face=face)
    p.field("date", w * .5, y, w * .5 - 10, 14, size=size, face=face[0], align="right")
    y += 14
    if r.uniform() < .6:
        p.field("number", 10, y, w * .5, 13, size=size, face=face[0],
                pattern=pick(r, ("#9999 99", "POS 99/999", "T9 9999 999")))
        p.field("time", w * .6, y, w * .4 - 10, 13, size=size, face=face[0], align="right")
        y += 14
    if r.uniform() < .4:
        draw_rule(y - 2)
        y += 10
    foot = chance.choose("layout", ("barcode", "matrix", "thanks", "tax", "card", "taxbar"))
    low = h - {"barcode": 104, "matrix": 118, "thanks": 76, "tax": 104, "card": 112, "taxbar": 132}[foot]
    p.field("items", 10, y, w - 20, low - 4 - y, fill=.8, size=size, face=face[0],
            pattern=pick(r, ("", "two", "code", "plain", "capitals")))
    p.cut = y + 30, low - 4
    y = low
    total, large = words.label("total", p.language), pick(r, (11, 14, 17))
    currency = pick(chance.name, ("", "€", "$", "£", "¥"))
    if r.uniform() < .7:
        draw_rule(y)
    y += 10
    inverse = r.uniform() < .2
    if inverse:
        p.box(6, y, w - 12, large + 6, p.ink)
    color = art.WHITE if inverse else p.ink
    p.text(10, y + 1, total, large, w * .4, color, face=face)
    p.field("amount", w * .44, y + 1, w * .56 - 10, large + 5, size=large, face=face[1], align="right", pattern=currency,
            color=color)
    y += large + 8
    small = {"size": size, "face": face[0]}
    if foot in ("tax", "taxbar"):
        for i in range(2):
            p.text(10, y, f"{p.initials()} {(7, 19, 5, 20)[i + 2 * (currency == '£')]}%", size, w * .3, face=face,
                   bold=False)
            p.field("amount", w * .4, y, w * .28, 13, **small)
            p.field("amount", w * .7, y, w * .3 - 10, 13, align="right", **small)
            y += 13
    elif foot == "card":
        for pattern in ("XXXX XXXX XXXX 9999", "AID A9999999", "AUTH 999999"):
            p.field("number", 10, y, w - 20, 13, pattern=pattern, **small)
            y += 13
    if r.uniform() < .6:
        draw_rule(y)
    y += 11
    p.text(w / 2, y, words.notice(words.THANKS, p.language), size + 1, w - 20, align="center", face=face, bold=False)
    y += size + 5
    if foot in ("barcode", "taxbar"):
        p.field("barcode", 16, y, w - 32, h - y - 8)
    elif foot == "matrix":
        side = min(50, h - y - 4)
        p.field("matrix", pick(r, (w / 2 - side / 2, 10)), y, side, side, pattern="21")
    elif foot == "thanks":
        p.text(w / 2, y, p.sentence(3), size, w - 20, align="center", face=face, bold=False)
    return p.done()


def package(chance):
    """Box fronts: brand, goods, claims and illustration belong to the type; lot, price sticker and printed dates do not."""
    r = chance.layout
    w, h = pick(r, ((280, 390), (260, 380), (384, 270), (320, 320), (200, 390)))
    p = Page(chance, w, h, (.02, .14, .33, .6, .8, .45), layers=0)
    hue, second = p.hues
    strong, bright = hsv(hue, .8, chance.color.uniform(.5, .95)), hsv(second, .75, chance.color.uniform(.75, 1))
    colors = art.palette(chance.color, hue)
    p.canvas = art.gradient(chance.art, w, h, strong, mix(strong, bright, chance.art.uniform(0, .6)))
    brand, goods = p.heading("shop")
    brand = brand.split()[-1] if chance.name.uniform() < .6 else brand
    kind = chance.choose("layout", ("window", "full", "lower", "upper", "half", "disc"))
    radius = min(w, h) * .32
    drawn, named, claim = {  # boxes of illustration and brand, top of the name of the goods, in parts of w and h
        "full": ((0, 0, 1, 1), (.1, pick(r, (.06, .66)), .8, .2), .86),
        "window": ((.11, .36, .78, .42), (.08, .08, .84, .2), .84),
        "lower": ((0, .5, 1, .5), (.06, .08, .88, .24), .37),
        "upper": ((0, 0, 1, .52), (.06, .56, .88, .22), .83),
        "half": ((.52, 0, .48, 1), (.04, .12, .44, .24), .5),
        "disc": ((.5 - .7 * radius / w, .58 - .7 * radius / h, 1.4 * radius / w, 1.4 * radius / h), (.08, .08, .84, .17),
                 .85),
    }[kind]
    if kind == "window":
        p.rounded(w * .08, h * .34, w * .84, h * .46, 14, art.WHITE)
    if kind == "disc":
        p.ellipse(w / 2, h * .58, radius * 1.1, radius * 1.1, art.WHITE)
    p.illustration(drawn[0] * w, drawn[1] * h, drawn[2] * w, drawn[3] * h, colors)
    p.wordmark(named[0] * w, named[1] * h, named[2] * w, named[3] * h, brand, (art.WHITE, art.BLACK))
    wide = .46 if kind == "half" else .9
    band = r.uniform() < .5
    if band:
        p.box(0, h * claim, w * (wide + .1 if kind != "half" else .52), h * .11, bright)
    p.text(w * .05, h * claim + 3, goods.upper() if r.uniform() < .5 else goods, 24, w * wide * .7,
           readable(bright if band else strong))
    for _ in range(int(r.integers(0, 3))):  # claims
        x, y, radius = w * pick(r, (.14, .86)), h * r.uniform(.4, .8), min(w, h) * r.uniform(.09, .13)
        p.polygon(pick(chance.art, art.PLATES) * radius * 1.15 + (x, y), bright)
        p.large_text(x - radius * .8, y - radius * .4, radius * 1.6, radius * .8,
                   pick(chance.name, ("100%", "NEW", "BIO", "XXL", "+20%", "2x", "0%", "3+")), SANS[1], readable(bright))
    p.text(w * .05, h - 18, f"{pick(chance.name, (100, 125, 200, 250, 500, 750))} {pick(chance.name, ('g', 'ml', 'x'))}",
           13, 60, art.WHITE)
    p.field("number", w - 76, h - 18, 72, 14, size=10, pattern="L9999 99/9999", color=art.WHITE, align="right")
    p.field("price_sticker", w * .3, 6, w * .68, h * .4)
    return p.done()
