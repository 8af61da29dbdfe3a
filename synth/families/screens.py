"""Screens of programs: bars, symbols, tabs and colors belong to the type, all that they show varies."""
from synth import art, words
from synth.draw import hsv, mix, pick
from synth.fonts import RUBIK, SANS, SERIF
from synth.page import Page


def _content(p, kind, x, y, w, h, panel, thumbnail):
    """The varying part of a screen: a list, a chat, cards, charts, an article or a form. panel: colors of areas and lines;
    thumbnail: the kind of field at the left of a list."""
    r = p.r
    small = {"size": 9, "face": p.body[0], "color": p.ink}
    if kind in ("list", "chat"):
        step = pick(r, (36, 44))
        for i in range(int(h // step)):
            top = y + i * step
            if kind == "chat":
                side = int(p.chance.art.integers(2))
                p.rounded(x + side * w * .3, top + 2, w * .7, step - 6, 10, panel[side])
                p.field("words", x + side * w * .3 + 8, top + 8, w * .62, 14, **small)
                continue
            p.field(thumbnail, x + 4, top + 5, step - 10, step - 10, color=p.other)
            p.field("words", x + step + 2, top + 5, w - step - 54, 14, pattern="2", **{**small, "size": 11})
            p.field("words", x + step + 2, top + 20, w - step - 8, 13, pattern="5", **small)
            p.field("time", x + w - 42, top + 5, 38, 12, align="right", **small)
            p.box(x, top + step - 2, w, 1, panel[1])
    elif kind == "cards":
        columns = max(2, int(w // 110))
        wide, high = w / columns, max(80, w / columns * .85)
        for i in range(columns * int(h // high)):
            left, top = x + wide * (i % columns), y + high * (i // columns)
            p.rounded(left + 3, top + 3, wide - 6, high - 6, 6, panel[0])
            p.field("photo", left + 6, top + 6, wide - 12, high - 38)
            p.field("words", left + 8, top + high - 30, wide - 16, 13, pattern="2", **small)
            p.field("price", left + 8, top + high - 18, wide - 16, 13, **{**small, "color": p.dark})
    elif kind == "board":
        for i in range(3):
            p.rounded(x + w / 3 * i + 3, y + 3, w / 3 - 6, 46, 5, panel[0])
            p.field("words", x + w / 3 * i + 8, y + 7, w / 3 - 16, 12, pattern="2", **small)
            p.field("large", x + w / 3 * i + 8, y + 22, w / 3 - 20, 22,
                    pattern="number:" + pick(r, ("999", "9,999", "99 %")), face=p.face[1], color=p.dark)
        p.rounded(x + 3, y + 54, w - 6, h * .42, 5, panel[0])
        p.field("chart", x + 10, y + 60, w - 20, h * .42 - 12, color=p.dark, pattern=pick(r, ("", "line")))
        low = y + 60 + h * .42
        p.field("cells", x + 8, low, w - 16, y + h - low - 2, size=9, face="DejaVuSansMono", color=p.ink,
                pattern="4:number:15")
    elif kind == "article":
        p.field("words", x + 4, y + 2, w - 8, 24, size=17, face=p.face[1], pattern="4")
        p.field("photo", x + 4, y + 30, w - 8, h * .34)
        p.field("prose", x + 4, y + 38 + h * .34, w - 8, h * .66 - 42, **small)
    else:
        keys = "name", "address", "number", "date", "amount", "remarks"
        for i in range(int(h // 40)):
            p.text(x + 4, y + 40 * i, words.label(keys[i % 6], p.language), 9, w)
            p.rounded(x + 3, y + 13 + 40 * i, w - 6, 21, 4, panel[0])
            p.rounded(x + 3, y + 13 + 40 * i, w - 6, 21, 4, panel[1], 1)
            p.field(keys[i % 6], x + 9, y + 16 + 40 * i, w - 18, 15, **{**small, "size": 10})


def screen(chance):
    """Windows, web pages and telephone screens."""
    r = chance.layout
    phone = r.uniform() < .45
    w, h = pick(r, ((200, 392), (212, 384))) if phone else pick(r, ((392, 260), (384, 288), (392, 232)))
    p = Page(chance, w, h, (.6, .55, .75, .4, .0, .1), layers=0)
    p.face, p.body = pick(r, (SANS, RUBIK, SERIF, RUBIK)), pick(r, (SANS, RUBIK))
    thumbnail = pick(r, ("avatar", "avatar", "photo"))
    dark = chance.choose("color", (0, 0, 1, 0))
    strong = hsv(p.hues[0], chance.color.uniform(.6, .9), chance.color.uniform(.45, .9))
    paper = mix(strong, (28, 26, 26), .88) if dark else mix(strong, art.WHITE, chance.color.uniform(.9, 1))
    p.canvas[:] = paper
    p.ink, p.dark = ((225, 225, 225), mix(strong, art.WHITE, .35)) if dark else ((40, 38, 36), strong)
    panel = (mix(paper, (90, 90, 90), .35) if dark else art.WHITE, mix(paper, (130, 130, 130), .5 if dark else .25))
    brand, _ = p.heading("shop")
    top, bottom, left, right = 0, h, 0, w
    bar = chance.choose("layout", ("colored", "plain", "double", "centered"))
    high = pick(r, (30, 36, 44))
    if phone:  # the bar of the telephone
        p.field("time", 8, 2, 40, 12, size=9, color=p.ink, pattern="")
        for i in range(3):
            p.box(w - 16 - 12 * i, 4, 9, 7, p.ink, 1 if i else -1)
        top = 16
    elif r.uniform() < .5:  # the frame of a window
        p.box(0, 0, w, 17, mix(paper, (120, 120, 120), .35))
        for i, color in enumerate(((80, 80, 230), (70, 190, 240), (90, 190, 90))):
            p.ellipse(11 + 13 * i, 8, 4, 4, color)
        p.rounded(60, 3, w * .5, 11, 5, panel[0])
        p.field("words", 66, 2, w * .4, 12, size=8, color=p.ink, pattern="1")
        top = 17
    p.box(0, top, w, high, strong if bar != "plain" else panel[0])
    on = art.WHITE if bar != "plain" else strong
    if bar == "centered":
        p.wordmark(w * .3, top + high * .22, w * .4, high * .56, brand, (on,))
    else:
        p.emblem(18, top + high / 2, high * .32, colors=(on,))
        p.wordmark(34, top + high * .24, w * .34, high * .52, brand, (on,), "left")
    for i in range(int(r.integers(1, 4))):
        p.icon(w - 16 - 24 * i, top + high / 2, 7, on)
    top += high
    if bar == "double":
        p.box(0, top, w, 20, mix(strong, art.BLACK, .25))
        for i in range(4):
            p.text(8 + w / 4 * i, top + 4, p.title("screen", i), 9, w / 4 - 12, art.WHITE)
        top += 20
    place = chance.choose("layout", ("left", "bottom", "right", "none"))
    if place == "bottom" or phone and place != "none":
        bottom = h - 34
        p.box(0, bottom, w, 34, panel[0])
        n = int(r.integers(3, 6))
        for i in range(n):
            p.icon(w / n * (i + .5), bottom + 12, 8, strong if i == 0 else mix(p.ink, paper, .4))
            p.text(w / n * (i + .5), bottom + 22, p.title("screen", i), 8, w / n - 4, align="center", bold=False)
    elif place in ("left", "right") and not phone:
        wide = pick(r, (40, 84, 104))
        x = 0 if place == "left" else w - wide
        p.box(x, top, wide, h, mix(strong, paper, pick(chance.color, (.15, .85))))
        light = sum(p.canvas[top + 1, int(x) + 1].astype(int)) > 380
        color = art.BLACK if light else art.WHITE
        for i in range(int(r.integers(4, 8))):
            y = top + 12 + 24 * i
            p.icon(x + 16, y + 6, 7, color)
            if wide > 50:
                p.text(x + 30, y, p.title("screen", i), 9, wide - 36, color, bold=i == 0)
        left, right = (wide, w) if place == "left" else (0, w - wide)
    if r.uniform() < .4:
        p.rounded(left + 10, top + 7, right - left - 20, 18, 9, panel[1], 1)
        p.text(left + 20, top + 9, words.titles("screen", p.language)[1], 9, 80, mix(p.ink, paper, .4), bold=False)
        top += 28
    kind = chance.choose("layout", ("list", "cards", "board", "article", "form", "chat"))
    _content(p, kind, left + 8, top + 6, right - left - 16, bottom - top - 10, panel, thumbnail)
    return p.done()
