"""From a clean drawing of a line to what a scan of old print looks like.

Type prints its ink unevenly: the drawing is blurred and cut at a level that varies over the line, in noise of three scales
(the edge of a stroke, a letter, some words), so that hairlines break and counters fill. The drawing is that of the paper;
a scanner then gives two levels or gray.
"""
import cv2
import numpy as np


def noise(r, shape, scale):
    """A smooth random field float32 [h,w] of mean 0 and deviation about 1; `scale`: pixels from one hill to a valley."""
    step = max(1.0, scale / 2)
    h, w = int(shape[0] / step) + 3, int(shape[1] / step) + 3
    field = r.standard_normal((h, w), np.float32)
    field = cv2.GaussianBlur(field, (0, 0), max(.6, min(scale, 2) / 2)) * 2 * max(.6, min(scale, 2) / 2) * 1.77
    if step > 1:
        field = cv2.resize(field, (int(w * step), int(h * step)), interpolation=cv2.INTER_CUBIC)
    return field[:shape[0], :shape[1]]


def level_for(blurred, share, r):
    """The level above which so many times the drawing's ink lies: the same loss or spread for hairlines and for bold."""
    sample = blurred[:, int(r.integers(3))::3]
    histogram = np.bincount((sample * 63.999).astype(np.uint8).ravel(), minlength=64)
    above = np.cumsum(histogram[::-1])
    wanted = share * float(sample.sum())
    return min(max(1 - (int(np.searchsorted(above, wanted)) + 1) / 64, .08), .85)


def hairline_strength(blurred, ink):
    """How dark the thin strokes of a blurred drawing are in their middle, in [0,1]: what a tenth of all the strokes' middles
    do not reach."""
    rows, columns = blurred[1:-1, 1:-1] >= blurred[:-2, 1:-1], blurred[1:-1, 1:-1] >= blurred[1:-1, :-2]
    rows &= blurred[1:-1, 1:-1] >= blurred[2:, 1:-1]
    columns &= blurred[1:-1, 1:-1] >= blurred[1:-1, 2:]
    middles = blurred[1:-1, 1:-1][(rows | columns) & (ink[1:-1, 1:-1] > .3)]
    return float(np.partition(middles, len(middles) // 10)[len(middles) // 10]) if len(middles) else .5


def age(ink, boxes, em, r):
    """A scan uint8 [h,w], dark on light, of a drawing float32 [h,w] in [0,1], 1 is ink.

    boxes: float [n,4], x0 y0 x1 y1 of the characters; one whose ink would vanish is printed well. em: pixels per em.
    """
    h, w = ink.shape
    spread = r.uniform(*((.005, .016) if r.random() < .75 else (.016, .034))) * em
    blurred = cv2.GaussianBlur(ink, (0, 0), max(.35, spread))
    # How the line was printed: well, worn, or with much ink.
    kind = r.choice(4, p=(.35, .3, .25, .1))
    share = r.uniform(*((.84, 1.02), (.62, .92), (1.0, 1.4), (.7, 1.2))[kind])
    edge, letter, word = r.uniform((0, 0, 0), ((.06, .05, .03), (.09, .11, .07), (.1, .1, .07), (.12, .17, .12))[kind])
    field = (edge * noise(r, (h, w), r.uniform(1, 2.2)) + letter * noise(r, (h, w), r.uniform(.1, .35) * em)
             + word * noise(r, (h, w), r.uniform(1, 4) * em))
    # Of how many hairlines break, the faces themselves must not decide: those of a Didone would all be gone in a worn line.
    hairline = hairline_strength(blurred, ink) * r.uniform(*((.6, .95), (.7, 1.1), (.5, .9), (.6, 1.0))[kind])
    level = np.clip(min(level_for(blurred, share, r), hairline) + field, .05, .95)
    _print_the_vanished(blurred, level, ink, boxes)
    if r.random() < .75:
        page = _two_levels(blurred > level, em, r)
    else:
        page = _gray(blurred, level, em, r)
    return page


def _print_the_vanished(blurred, level, ink, boxes):
    """Lowers the level, in place, where a character would keep less than a third of its ink: nobody could read it."""
    before = cv2.integral((ink > .5).astype(np.uint8))
    after = cv2.integral((blurred > level).astype(np.uint8))
    x0, y0, x1, y1 = np.clip(np.rint(boxes).astype(int).T, 0, [[ink.shape[1]], [ink.shape[0]]] * 2)
    def inside(table):
        return table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]
    for i in np.flatnonzero(inside(after) * 3 < inside(before)):
        part = np.s_[y0[i]:y1[i], x0[i]:x1[i]]
        level[part] = np.minimum(level[part], .45 * blurred[part].max(initial=.1))


def _two_levels(printed, em, r):
    page = np.where(printed, np.uint8(0), np.uint8(255))
    h, w = page.shape
    dirt = r.choice(4, p=(.45, .35, .15, .05))
    for _ in range(r.poisson((0, 1.5, 6, 25)[dirt] * w / (20 * em))):  # specks, and a few holes in the ink
        place = int(r.integers(w)), int(r.integers(h))
        size = r.uniform(.3, 1.0, 2) * (.02 + .05 * r.random() ** 3) * em
        color = 255 if r.random() < .25 else 0
        cv2.ellipse(page, place, (int(size[0]), int(size[1])), r.uniform(0, 180), 0, 360, color, -1)
    if r.random() < .06:  # a rule at an edge
        _rule(page, 0, em, r)
    if r.random() < .04:  # smudge: what is light becomes speckled
        field = noise(r, (h, w), .3 * em)
        page[(field > 2.2) & (noise(r, (h, w), 1.5) > .6)] = 0
    return page


def _rule(page, color, em, r):
    h, w = page.shape
    thick = max(1, int(r.uniform(.01, .05) * em))
    if r.random() < .6:  # across
        y = int(r.choice([r.uniform(0, .04), r.uniform(.96, 1)]) * h)
        x0, x1 = sorted(r.integers(0, w, 2))
        cv2.line(page, (int(x0), y), (int(x1), y), color, thick)
    else:  # beside
        x = int(r.choice([0, w - 1]))
        cv2.line(page, (x, 0), (x, h), color, thick)


def _gray(blurred, level, em, r):
    """Paper with texture, ink of varying darkness, the other side of the leaf, light from one side, JPEG."""
    h, w = blurred.shape
    soft = 1 / (1 + np.exp(np.clip((level - blurred) * r.uniform(7, 25), -20, 20)))
    paper = r.uniform(150, 250) + r.uniform(0, 7) * noise(r, (h, w), r.uniform(1, 3)) \
        + r.uniform(0, 9) * noise(r, (h, w), r.uniform(.3, 3) * em)
    if r.random() < .4:
        paper = paper * np.linspace(*r.uniform(.75, 1, 2), w, dtype=np.float32)
    if r.random() < .35:
        other_side = np.roll(blurred[:, ::-1], (int(r.integers(h)), int(r.integers(w))), (0, 1))
        through = cv2.GaussianBlur(other_side, (0, 0), .05 * em)
        soft = np.maximum(soft, through * r.uniform(.05, .3))
    page = paper * (1 - soft * r.uniform(.5, .97))
    if r.random() < .3:
        page = cv2.GaussianBlur(page, (0, 0), r.uniform(.3, 1.2))
    page = np.clip(page, 0, 255).astype(np.uint8)
    if r.random() < .06:
        _rule(page, int(page.min()), em, r)
    if r.random() < .5:
        page = cv2.imdecode(cv2.imencode(".jpg", page, [cv2.IMWRITE_JPEG_QUALITY, int(r.integers(35, 92))])[1], 0)
    return page
