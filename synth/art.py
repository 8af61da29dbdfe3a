"""The fixed art of a document type: security-print backgrounds, borders, emblems, flags, chips, seals.

Every function takes the Generator `r` that decides the appearance. One generator per (seed, type) draws all the art of a
type. Sizes are in pixels of the canvas.
"""
import math

import cv2
import numpy as np

from synth.draw import (
    box,
    ellipse,
    hsv,
    ink,
    lines,
    mix,
    pick,
    polygon,
    readable,
    rounded,
    text,
    text_mask,
    text_width,
    tight_mask,
    turn,
)
from synth.fonts import HEAVY, ITALIC, LEANING, MONO, NARROW, RUBIK, SANS, SERIF, TIMES, WIDE

WHITE, BLACK = (255, 255, 255), (20, 20, 20)


# -- backgrounds: masks of line work, uint8 [h,w], which are painted over a gradient ----------------------------------

def gradient(r, w, h, a, b):
    """A canvas with a gradient from color a to color b in a random direction."""
    angle = r.uniform(0, 2 * math.pi)
    x, y = np.linspace(-.5, .5, w, dtype=np.float32), np.linspace(-.5, .5, h, dtype=np.float32)[:, None]
    t = np.clip(.5 + (x * math.cos(angle) + y * math.sin(angle)) / 1.2, 0, 1)
    return cv2.merge([(start + (end - start) * t + .5).astype(np.uint8) for start, end in zip(a, b)])


def _plot(w, h, curves, closed=False):
    mask = np.zeros((h, w), np.uint8)
    lines(mask, curves, 255, 1, closed)
    return mask


def guilloche(r, w, h):
    """A bundle of sine curves with shifted phases, like the ribbon on a banknote."""
    x = np.linspace(-5, w + 5, 60)
    n, middle, spread = int(r.integers(12, 26)), h * r.uniform(.2, .8), h * r.uniform(.15, .5)
    a, b, drift = r.uniform(1, 3), r.uniform(2, 6), r.uniform(.05, .3)
    phase, slope = r.uniform(0, 6, 2), r.uniform(-.3, .3)
    curves = []
    for shift in drift * np.arange(n):
        envelope = .35 + .65 * np.cos(2 * np.pi * b * x / w + phase[1] - shift / 2) ** 2
        y = middle + slope * (x - w / 2) + spread * envelope * np.sin(2 * np.pi * a * x / w + phase[0] + shift)
        curves.append(np.stack([x, y], 1))
    return _plot(w, h, curves)


def rosette(r, w, h):
    """Rotated copies of a wavy ring around one point."""
    t = np.linspace(0, 2 * np.pi, 150)
    cx, cy, radius = w * r.uniform(.1, .9), h * r.uniform(.2, .8), h * r.uniform(.25, .6)
    petals, depth, n = int(r.integers(3, 14)), r.uniform(.12, .6), int(r.integers(5, 12))
    rings = [radius * (1 + depth * np.sin(petals * t + 2 * np.pi * i / n)) / (1 + depth) for i in range(n)]
    return _plot(w, h, [np.stack([cx + ring * np.cos(t), cy + ring * np.sin(t)], 1) for ring in rings], closed=True)


def waves(r, w, h):
    """Parallel wavy lines across the page."""
    x = np.linspace(-1, 1, 50) * (w + h) / 2
    angle, step, a = r.uniform(0, np.pi), r.uniform(4, 9), r.uniform(0, 9)
    y = a * np.sin(2 * np.pi * x / r.uniform(40, 160))
    c, s = math.cos(angle), math.sin(angle)
    n = int((w + h) / 2 / step)
    return _plot(w, h, [np.stack([w / 2 + c * x - s * (y + i * step), h / 2 + s * x + c * (y + i * step)], 1)
                        for i in range(-n, n + 1)])


def rays(r, w, h):
    """Straight lines from one point on or near the page."""
    cx, cy, far = w * r.uniform(-.1, 1.1), h * r.uniform(-.2, 1.2), 2 * w
    angles = np.linspace(0, 2 * np.pi, int(r.integers(60, 150)), endpoint=False)
    return _plot(w, h, [np.array([[cx, cy], [cx + far * math.cos(a), cy + far * math.sin(a)]]) for a in angles])


def contours(r, w, h):
    """Contour lines of a smooth landscape, as on a map."""
    x, y = np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)[:, None]
    height = np.zeros((h, w), np.float32)
    for _ in range(3):
        u, v, phase = r.uniform(-.03, .03, 3)
        height += np.sin(x * np.float32(u) + y * np.float32(v) + np.float32(phase * 200))
    distance = np.abs((height * np.float32(r.uniform(2.5, 6))) % 1 - .5)
    return np.clip(255 - distance * 1500, 0, 255).astype(np.uint8)


def motifs(r, w, h):
    """A lattice of small symbols."""
    step, size = r.uniform(11, 26), r.uniform(2, 4.5)
    sign = pick(r, (_star(4), _star(5), _star(6, .3), _ngon(4), _ngon(3), _ngon(12), _CROSS)) * size
    odd, mask = r.uniform() < .6, np.zeros((h, w), np.uint8)
    for j in range(int(h / step) + 2):
        for i in range(int(w / step) + 2):
            polygon(mask, sign + (step * (i + .5 * (odd and j % 2)), step * j), 255)
    return mask


def microprint(r, w, h):
    """Lines of one small word, repeated."""
    word = pick(r, ("SPECIMEN ", "VALID ", "SECURE ", "ORIGINAL ", "COPIA ", "§ ", "+ ", "0 1 "))
    row = text_mask(word * (w // max(text_width(word, "DejaVuSans", 7), 1) + 3), "DejaVuSans", 7)
    step, mask = int(r.integers(9, 15)), np.zeros((h, w), np.uint8)
    for j, y in enumerate(range(0, h - row.shape[0], step)):
        mask[y:y + row.shape[0]] |= np.roll(row, 7 * j, 1)[:, :w]
    return mask


def shapes(r, w, h):
    """A few large flat areas: a diagonal band, discs, a wavy area or a star."""
    mask, kind = np.zeros((h, w), np.uint8), int(r.integers(4))
    if kind == 0:
        x, slant, wide = w * r.uniform(0, .7), h * r.uniform(-1, 1), w * r.uniform(.08, .4)
        polygon(mask, [(x, 0), (x + wide, 0), (x + wide + slant, h), (x + slant, h)], 255)
    elif kind == 1:
        for _ in range(int(r.integers(1, 4))):
            ellipse(mask, w * r.uniform(), h * r.uniform(), *[h * r.uniform(.2, .7)] * 2, 255)
    elif kind == 2:
        x = np.linspace(0, w, 40)
        y = h * (r.uniform(.3, .8) + r.uniform(.05, .2) * np.sin(x / w * r.uniform(3, 12) + r.uniform(0, 6)))
        polygon(mask, [*zip(x, y), (w, h), (0, h)], 255)
    else:
        polygon(mask, _star(int(r.integers(3, 9)), r.uniform(.3, .9)) * h * r.uniform(.4, .9)
                + (w * r.uniform(.2, .9), h * r.uniform(.2, .8)), 255)
    return mask


LINE_WORK = (guilloche, guilloche, rosette, rosette, waves, rays, contours, motifs, microprint)


def background(r, w, h, papers, tints, layers=2, strength=.4):
    """A canvas [h,w,3]: a gradient between the two colors `papers`, often a flat shape, then `layers` of line work in colors
    of `tints`."""
    canvas = gradient(r, w, h, *papers)
    if r.uniform() < .6:
        ink(canvas, shapes(r, w, h), pick(r, tints), alpha=strength * r.uniform(.3, .8))
    for _ in range(layers):
        ink(canvas, pick(r, LINE_WORK)(r, w, h), pick(r, tints), alpha=strength * r.uniform(.6, 1.2))
    return canvas


# -- emblems: polygons in the unit circle; y points down --------------------------------------------------------------

def _ngon(n, first=0.):
    t = np.arange(n) * 2 * np.pi / n - np.pi / 2 + first
    return np.stack([np.cos(t), np.sin(t)], 1)


def _star(n, inner=.42):
    return _ngon(2 * n) * np.where(np.arange(2 * n) % 2, inner, 1)[:, None]


def _around(cx, cy, a, b, start, end, n=16):
    t = np.radians(np.linspace(start, end, n))
    return np.stack([cx + a * np.cos(t), cy + b * np.sin(t)], 1)


_CROSS = np.array([(-.3, -1), (.3, -1), (.3, -.3), (1, -.3), (1, .3), (.3, .3), (.3, 1), (-.3, 1), (-.3, .3), (-1, .3),
                   (-1, -.3), (-.3, -.3)])
_SHIELD = np.concatenate([[(-.85, -1), (.85, -1)], _around(0, -.1, .85, 1.1, 0, 180)])
_LEAF = np.concatenate([_around(-.6, 0, .85, 1, -50, 50), _around(.6, 0, .85, 1, 130, 230)])
_CROWN = np.array([(-1, .7), (-1, -.4), (-.5, .1), (0, -.7), (.5, .1), (1, -.4), (1, .7)])

PLATES = (_ngon(48), _SHIELD, _ngon(6), _ngon(4), _ngon(8, np.pi / 8), _star(16, .88), _star(8, .8),
          _ngon(4, np.pi / 4) * 1.25, _ngon(48) * (.78, 1.05), _ngon(3) * 1.2)

CHARGES = (  # each a list of polygons
    [_star(5)], [_star(6, .55)], [_star(8, .4)], [_star(12, .6)], [_star(4, .3)], [_CROSS * .85],
    [_CROSS @ turn(np.pi / 4) * .8],
    [np.array([(-1, .3), (0, -.6), (1, .3), (1, .8), (0, -.1), (-1, .8)])],                              # chevron
    [np.array([(x, -.8), (x + .3, -.8), (x + .3, .8), (x, .8)]) for x in (-.75, -.15, .45)],             # pales
    [np.array([(-.9, y), (-.3, y - .3), (.3, y), (.9, y - .3), (.9, y), (.3, y + .3), (-.3, y), (-.9, y + .3)])
     for y in (-.45, .2, .85)],                                                                          # water
    [np.concatenate([_around(0, 0, .9, .9, 50, 310, 24), _around(.35, 0, .68, .68, 300, 60, 24)])],      # crescent
    [np.array([(-.7, .9), (-.7, -.8), (-.4, -.8), (-.4, -.5), (-.15, -.5), (-.15, -.8), (.15, -.8), (.15, -.5),
               (.4, -.5), (.4, -.8), (.7, -.8), (.7, .9), (.2, .9), (.2, .4), (-.2, .4), (-.2, .9)])],   # tower
    [np.array([(0, y - .5), (.7, y + .25), (-.7, y + .25)]) for y in (-.4, .1, .6)],                     # fir
    [np.array([(-1, .7), (-.3, -.5), (0, 0), (.35, -.8), (1, .7)])],                                     # mountains
    [np.array([(-1, -.5), (-.2, -.15), (0, -.6), (.2, -.15), (1, -.5), (.35, .35), (.2, .9), (-.2, .9),
               (-.35, .35)])],                                                                           # bird
    [_LEAF * .95],
    [_LEAF @ turn(a) * .55 + np.array((math.sin(a), -math.cos(a))) * .5 for a in (-2.1, 0, 2.1)],
    [np.array([(.12, -1), (-.6, .15), (-.1, .15), (-.2, 1), (.6, -.2), (.1, -.2)])],                     # bolt
    [_CROWN * .8], [_ngon(24) * .3 + (x, y) for x, y in ((0, -.5), (-.5, .35), (.5, .35))],
    [_around(0, 0, .95, .95, a, a + 32, 6).tolist() + [(0, 0)] for a in range(0, 360, 60)],              # wheel
    [np.array([(-.8, -.6), (-.1, -.35), (-.1, .8), (-.8, .55)]) * (side, 1) for side in (-1, 1)],        # book
)


def emblem(r, canvas, x, y, radius, colors, letter=None):
    """A coat of arms or company logo centered on (x, y): a plate, its rim, one charge (symbol) or a letter, sometimes a
    wreath or a crown.

    Only the colors in `colors` and white are used (black on a white plate when there is no other), so that emblems differ by
    their shape."""
    plate, first = pick(r, PLATES), pick(r, colors)
    second = pick(r, [c for c in (*colors, WHITE) if c != first] or [BLACK])
    style, at = r.uniform(), np.array((x, y))
    if r.uniform() < .3:  # a wreath
        for a in np.radians(np.linspace(20, 160, 8)):
            for side in (-1, 1):
                leaf = _LEAF * (.13, .24) @ turn(a) + (.98 * math.sin(a), -.98 * math.cos(a))
                polygon(canvas, leaf * (side, 1) * radius + at, first)
        radius = radius * .78
    if r.uniform() < .2:
        polygon(canvas, _CROWN * radius * (.5, .3) + at - (0, radius * .95), first)
        radius, at = radius * .8, at + (0, radius * .25)
    if style < .65:
        polygon(canvas, plate * radius + at, first)
        if r.uniform() < .6:
            lines(canvas, [plate * radius * .84 + at], WHITE, 1, closed=True)
    elif style < .85:
        lines(canvas, [plate * radius + at], first, max(1, round(radius / 9)), closed=True)
    inside = second if style < .65 else first
    scale = radius * (.58 if style < .85 else .95)
    if letter and r.uniform() < .25:
        size = max(8, round(scale * 1.7))
        text(canvas, at[0], at[1] - size * .62, letter, "DejaVuSerif-Bold", size, inside, "center")
    else:
        for part in pick(r, CHARGES):
            polygon(canvas, np.asarray(part) * scale + at, inside)


DISPLAY = (HEAVY[1], HEAVY[1], RUBIK[1], LEANING[1], SERIF[1], TIMES[1], NARROW[1], WIDE[1], ITALIC[1], SANS[0], MONO[1])


def wordmark(r, canvas, x, y, w, h, string, colors, align="center"):
    """The name of a company as its logo, as large as the box (x, y, w, h) allows: in a display font, perhaps slanted, on a
    plate, in an outline, in two colors or underlined."""
    face, style, first = pick(r, DISPLAY), int(r.integers(8)), pick(r, colors)
    second = pick(r, [c for c in (*colors, WHITE) if c != first] or [BLACK])
    string = pick(r, (str, str.upper, str.upper, str.lower))(string)
    margin = h * .16 if style in (0, 1, 2) else h * .1 if style == 3 else 0
    mask = np.pad(tight_mask(string, face, w - 3 * margin, h - 2 * margin, 1.5), 1)
    lean = pick(r, (0, 0, 0, .2))
    if lean:
        wide = mask.shape[1] + math.ceil(lean * mask.shape[0])
        mask = cv2.warpAffine(mask, np.float32([(1, -lean, lean * mask.shape[0]), (0, 1, 0)]), (wide, mask.shape[0]))
    left = x + {"left": margin * 1.5, "center": (w - mask.shape[1]) / 2, "right": w - mask.shape[1] - margin * 1.5}[align]
    top = y + (h - mask.shape[0]) / 2
    plate = left - margin * 1.5, top - margin, mask.shape[1] + 3 * margin, mask.shape[0] + 2 * margin
    if style < 3:
        if style == 2:
            ellipse(canvas, plate[0] + plate[2] / 2, plate[1] + plate[3] / 2, plate[2] * .56, plate[3] * .62, first)
        else:
            rounded(canvas, *plate, pick(r, (1, h * .15, h)), first)
        ink(canvas, mask, readable(first), left, top)
    elif style == 3:
        rounded(canvas, *plate, pick(r, (1, h * .3)), first, max(1, round(h / 20)))
        ink(canvas, mask, first, left, top)
    elif style == 4:
        outline = cv2.dilate(np.pad(mask, 3), np.ones((3, 3), np.uint8), iterations=1 + (h > 40))
        ink(canvas, outline, second if second != WHITE else BLACK, left - 3, top - 3)
        ink(canvas, mask, first, left, top)
    elif style == 5:
        cut = int(mask.shape[1] * r.uniform(.25, .7))
        ink(canvas, mask[:, :cut], first, left, top)
        ink(canvas, mask[:, cut:], second if second != WHITE else BLACK, left + cut, top)
    else:
        ink(canvas, mask, first, left, top)
        if style == 6:
            box(canvas, left, top + mask.shape[0] + 1, mask.shape[1], max(1, h // 14), second if second != WHITE else first)


# -- illustrations: drawings without text, uint8 [h,w,3] --------------------------------------------------------------

def palette(r, hue, n=5):
    """n colors around a hue and its opposite, from dark to light."""
    values = np.sort(r.uniform(.15, 1, n))
    return [hsv(hue + pick(r, (0, 0, .08, .5)) + r.normal(0, .03), r.uniform(.15, .95), v) for v in values]


def _landscape(r, view, colors):
    """Sky, sun, ranges of hills."""
    h, w = view.shape[:2]
    view[:] = gradient(r, w, h, colors[-1], colors[-2])
    ellipse(view, w * r.uniform(.15, .85), h * r.uniform(.15, .45), *[min(w, h) * r.uniform(.07, .18)] * 2, colors[1])
    x = np.linspace(0, w, 40)
    for i, color in enumerate(colors[-2::-1][:int(r.integers(2, 5))]):
        y = h * (.45 + .14 * i) + h * r.uniform(.04, .16) * np.sin(x / w * r.uniform(3, 14) + r.uniform(0, 6))
        y += h * r.uniform(0, .08) * np.abs((x / w * r.uniform(2, 9)) % 2 - 1)
        polygon(view, [*zip(x, y), (w, h), (0, h)], color)


def _still_life(r, view, colors):
    """Fruits or bowls on a table."""
    h, w = view.shape[:2]
    view[:] = colors[-1]
    box(view, 0, h * r.uniform(.55, .8), w, h, colors[int(r.integers(3))])
    for i in range(int(r.integers(1, 6))):
        x, y, a = w * r.uniform(.15, .85), h * r.uniform(.45, .75), min(w, h) * r.uniform(.12, .32)
        b, color = a * r.uniform(.7, 1.2), colors[i % (len(colors) - 1)]
        ellipse(view, x, y, a, b, color)
        ellipse(view, x - a * .35, y - b * .4, a * .25, b * .2, mix(color, WHITE, .6))
        polygon(view, _LEAF * a * .3 @ turn(r.uniform(-1, 1)) + (x, y - b * 1.1), colors[(i + 2) % len(colors)])


def _figure(r, view, colors):
    """A creature: a mirrored outline with eyes and spots."""
    h, w = view.shape[:2]
    view[:] = gradient(r, w, h, colors[-1], colors[0])
    t = np.linspace(-np.pi / 2, np.pi / 2, 24)
    radius = .75 + sum(r.uniform(-.22, .22) * np.sin(k * t + r.uniform(0, 6)) for k in (2, 3, 5, 7))
    half = np.stack([radius * np.cos(t), radius * np.sin(t) * r.uniform(.9, 1.3)], 1)
    size = min(w, h) * r.uniform(.34, .46)
    body = np.concatenate([half, half[::-1] * (-1, 1)]) * size + (w / 2, h * .54)
    polygon(view, body, colors[int(r.integers(1, 4))])
    apart, eye = size * r.uniform(.15, .4), size * r.uniform(.07, .18)
    for side in (-1, 1):
        ellipse(view, w / 2 + side * apart, h * .45, eye, eye, WHITE)
        ellipse(view, w / 2 + side * apart, h * .45, eye * .5, eye * .6, BLACK)
        polygon(view, pick(r, CHARGES)[0] * np.array((side, 1)) * size * .22 + (w / 2 + side * size * .45, h * .72),
                colors[-2])


def _cubist(r, view, colors):
    """Overlapping flat shapes."""
    h, w = view.shape[:2]
    view[:] = colors[-1]
    for _ in range(int(r.integers(5, 13))):
        shape = pick(r, PLATES) * r.uniform(.1, .5) * min(w, h) * r.uniform(.5, 1.5, 2)
        polygon(view, shape @ turn(r.uniform(0, 6)) + (w * r.uniform(), h * r.uniform()), pick(r, colors))


def _sunburst(r, view, colors):
    """Rays around a large symbol."""
    h, w = view.shape[:2]
    view[:] = colors[-1]
    n, c = int(r.integers(8, 20)), np.array((w * .5, h * r.uniform(.4, .6)))
    for a in np.arange(n) * 2 * np.pi / n:
        ray = np.array([(0, 0), (math.cos(a), math.sin(a)), (math.cos(a + np.pi / n), math.sin(a + np.pi / n))])
        polygon(view, ray * (w + h) + c, colors[-2])
    polygon(view, pick(r, PLATES) * min(w, h) * .36 + c, colors[1])
    for part in pick(r, CHARGES):
        polygon(view, np.asarray(part) * min(w, h) * .26 + c, colors[-1])


def _tiles(r, view, colors):
    """A grid of quarter discs and squares."""
    h, w = view.shape[:2]
    step = max(w, h) / r.integers(3, 9)
    view[:] = colors[0]
    for j in range(math.ceil(h / step)):
        for i in range(math.ceil(w / step)):
            x, y = i * step, j * step
            box(view, x, y, step + 1, step + 1, pick(r, colors))
            right, low, angle = pick(r, ((0, 0, 0), (1, 0, 90), (1, 1, 180), (0, 1, 270)))  # a corner, and the way inward
            ellipse(view, x + right * step, y + low * step, step, step, pick(r, colors), -1, angle, angle + 90)


def _pixels(r, view, colors):
    """A mirrored figure of large pixels."""
    n = int(r.integers(7, 13))
    half = r.integers(0, len(colors) - 1, (n, (n + 1) // 2)) * (r.random((n, (n + 1) // 2)) < .6)
    grid = np.uint8(colors)[np.concatenate([half, half[:, ::-1][:, n % 2:]], 1) - 1]
    view[:] = cv2.resize(grid, view.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def _clouds(r, view, colors):
    """Smooth noise in the colors, like a blurred photo."""
    h, w = view.shape[:2]
    rough = sum(cv2.resize(r.normal(0, 1 / k, (2 * k, 2 * k)).astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC)
                for k in (2, 4, 8))
    level = np.clip(rough * .5 + .5, 0, .999) * (len(colors) - 1)
    low = level.astype(np.uint8)
    table, t = np.float32(colors), (level - low)[..., None]
    view[:] = table[low] * (1 - t) + table[low + 1] * t


ILLUSTRATIONS = (_landscape, _still_life, _figure, _cubist, _sunburst, _tiles, _pixels, _clouds)


def illustration(r, canvas, x, y, w, h, colors, kind=None):
    """Fills the box (x, y, w, h) with an illustration in the colors, a list from dark to light. kind: an index of
    ILLUSTRATIONS, by default a random one."""
    x, y = max(round(x), 0), max(round(y), 0)
    view = canvas[y:y + round(h), x:x + round(w)]
    kind = int(r.integers(len(ILLUSTRATIONS))) if kind is None else kind
    ILLUSTRATIONS[kind](r, view, colors)
    if r.uniform() < .3:
        ink(view, pick(r, LINE_WORK)(r, *view.shape[1::-1]), pick(r, colors), alpha=r.uniform(.1, .4))


def watermark(r, canvas, x, y, radius, color, alpha):
    """A large faint emblem."""
    mask = np.zeros(canvas.shape[:2], np.uint8)
    layer = cv2.cvtColor(mask, cv2.COLOR_GRAY2BGR)
    emblem(r, layer, x, y, radius, ((200, 200, 200), (255, 255, 255)))
    ink(canvas, layer[..., 0], color, alpha=alpha)


def flag(r, canvas, x, y, w, h, hues):
    """Stripes, a cross or a symbol, in colors from `hues` and white."""
    colors = [*[hsv(hue, .75, .75) for hue in hues], WHITE, hsv(pick(r, hues), .8, .35)]
    a, b, c = (colors[i] for i in r.permutation(len(colors))[:3])
    view, kind = canvas[round(y):round(y + h), round(x):round(x + w)], int(r.integers(5))
    h, w = view.shape[:2]
    view[:] = a
    if kind in (0, 1):
        n = int(r.integers(2, 6))
        for i in range(n):
            rest = view[h * i // n:] if kind else view[:, w * i // n:]  # all that is left; the next stripe is drawn over it
            rest[:] = (a, b, c)[i % 3 if n > 2 else i]
    elif kind == 2:
        box(view, w * .3, 0, w * .16, h, b)
        box(view, 0, h * .4, w, h * .22, b)
    elif kind == 3:
        polygon(view, [(0, 0), (w * .5, h / 2), (0, h)], b)
        box(view, w * .4, h * .4, w * .6, h * .22, c)
    else:
        polygon(view, pick(r, (_ngon(24), _star(5), _star(8, .5))) * h * .32 + (w / 2, h / 2), b)
    box(canvas, x, y, w + 1, h + 1, (120, 120, 120), 1)


def chip(r, canvas, x, y, w, h):
    """The contacts of a smart card."""
    gold, line = pick(r, ((110, 190, 225), (190, 195, 200))), (60, 90, 110)
    box(canvas, x, y, w, h, gold)
    box(canvas, x, y, w, h, line, 1)
    for t in (pick(r, (.3, .36)), pick(r, (.64, .7))):
        lines(canvas, [np.array([(x, y + h * t), (x + w * .32, y + h * t)]),
                       np.array([(x + w * .68, y + h * t), (x + w, y + h * t)])], line)
    box(canvas, x + w * .32, y + h * .2, w * .36, h * .6, line, 1)


def seal(r, canvas, x, y, radius, color, string, alpha=.75):
    """An ink stamp at a random angle: rings, a symbol, and the letters of the string around it."""
    size = 2 * math.ceil(radius) + 1
    mask, c = np.zeros((size, size), np.uint8), size / 2
    rim = pick(r, (_ngon(48), _star(20, .93), _star(12, .9), _ngon(8)))
    lines(mask, [rim * radius * .97 + c, _ngon(48) * radius * .62 + c], 255, 1, closed=True)
    start, letters = r.uniform(0, 360), (string + " * ")[:24]
    for i, letter in enumerate(letters):
        glyph = np.zeros_like(mask)
        text(glyph[..., None], c, c - radius * .94, letter, SANS[1], max(7, round(radius * .25)), (255,), "center")
        mask |= cv2.warpAffine(glyph, cv2.getRotationMatrix2D((c, c), start - 360 * i / len(letters), 1), (size, size))
    for part in pick(r, CHARGES):
        polygon(mask, np.asarray(part) * radius * .45 + c, 255)
    ink(canvas, mask, color, x - c, y - c, alpha)


def border(r, canvas, margin, color):
    """A frame: a double line, a guilloche, or a chain of symbols."""
    h, w = canvas.shape[:2]
    kind, m = int(r.integers(5)), margin
    frame = lambda d: np.array([(d, d), (w - 1 - d, d), (w - 1 - d, h - 1 - d), (d, h - 1 - d)], float)
    if kind < 2:
        lines(canvas, [frame(m)], color, 1 + 2 * kind, closed=True)
        lines(canvas, [frame(m + 4 + kind)], color, 1, closed=True)
    elif kind == 2:
        for phase in np.linspace(0, 2 * np.pi, int(r.integers(3, 6)), endpoint=False):
            for a, b in zip(frame(m + 3), np.roll(frame(m + 3), -1, 0)):
                t = np.linspace(0, 1, int(np.hypot(*(b - a)) / 2))[:, None]
                normal = np.array((b - a)[::-1]) * (1, -1) / np.hypot(*(b - a))
                wobble = np.sin(t * np.round(np.hypot(*(b - a)) / r.uniform(14, 26)) * 2 * np.pi + phase)
                lines(canvas, [a + (b - a) * t + normal * 3.5 * wobble], color)
    else:
        sign, step = pick(r, (_ngon(4), _star(5), _ngon(16), _LEAF, _ngon(3), _CROSS)), pick(r, (9, 12, 16))
        lines(canvas, [frame(m)], color, 1, closed=True)
        for a, b in zip(frame(m + 5), np.roll(frame(m + 5), -1, 0)):
            n = round(np.hypot(*(b - a)) / step)
            for i in range(n):
                polygon(canvas, sign * 3.4 + a + (b - a) * i / n, color)
        if kind == 4:
            lines(canvas, [frame(m + 10)], color, 1, closed=True)
