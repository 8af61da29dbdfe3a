"""Synthetic captures: a document as a phone photographs it, cropped and roughly rectified.

The steps follow the order of a real photo: the sheet lies on a surface, something covers a part of it, light falls on it;
then come the lens, the sensor and the file format.
"""
import functools
import math

import cv2
import numpy as np

from synth.draw import ellipse, hsv, lines, mix, pick, polygon, rng, turn

COARSE = 8  # light, shadow and glare are smooth, so they are computed at 1/8 of the size and enlarged


def surface(r, w, h):
    """A table: plain, with a grain like wood, woven, or with another printed sheet on it. uint8 [h,w,3]."""
    color = hsv(r.uniform(.02, .14), r.uniform(.05, .6), r.uniform(.1, .85)) if r.uniform() < .7 else \
        hsv(r.uniform(), r.uniform(0, .5), r.uniform(.05, .9))
    kind = int(r.integers(4))
    cells = {0: (4, 4), 1: (3, h // 3), 2: (w // 3, h // 3), 3: (6, 6)}[kind]
    if kind == 1 and r.uniform() < .5:
        cells = (w // 3, 3)
    grain = cv2.resize(r.normal(0, 1, cells[::-1]).astype(np.float32), (w, h), interpolation=cv2.INTER_LINEAR)
    surface = cv2.merge([np.clip(value * (1 + .1 * grain), 0, 255).astype(np.uint8) for value in color])
    if kind == 3:  # another sheet, with lines of text
        x, y = w * r.uniform(-.2, .8), h * r.uniform(-.2, .8)
        polygon(surface, np.array([(0, 0), (w, h * r.uniform(-.2, .2)), (w * .9, h), (0, h)]) + (x, y), (225, 230, 230))
        for i in range(14):
            lines(surface, [np.array([(x + 8, y + 10 + 8 * i), (x + 8 + w * r.uniform(.2, .5), y + 10 + 8 * i)])],
                  (90, 90, 90))
    return surface


def _corners(r, w, h, severity):
    """The corners of the document, clockwise from the top left, in a frame of w x h: float32 [4,2].

    Each side shows some background or is cropped; then come a small rotation and a small perspective. One in eight photos
    is cropped badly: by up to 8 %, or turned by up to 15 degrees."""
    tight, badly = r.uniform() < .5, r.uniform() < .125 * severity
    least, most, turned = (-.08, .14, 6) if badly else (-.025, .04 if tight else .1, 1.8)
    left, top, right, bottom = r.uniform(least, most, 4) * min(severity, 2)
    corners = np.array([(left, top), (1 - right, top), (1 - right, 1 - bottom), (left, 1 - bottom)]) * (w, h)
    angle = math.radians(np.clip(r.normal(0, turned), -2.5 * turned, 2.5 * turned) * severity)
    corners = (corners - (w / 2, h / 2)) @ turn(angle) + (w / 2, h / 2)
    return np.float32(corners + r.normal(0, .01 * severity, (4, 2)) * (w, h))


def _place(r, image, severity):
    """The image on a surface, seen slightly from the side. The frame has the size of the image."""
    h, w = image.shape[:2]
    corners = _corners(r, w, h, severity)
    scene = surface(r, w, h)
    shade = np.zeros((h // 2, w // 2), np.uint8)
    polygon(shade, (corners + r.normal(0, 3, 2)) / 2, 150)
    shade = cv2.resize(cv2.blur(shade, (7, 7)), (w, h))  # the shadow of the sheet on the surface
    scene = cv2.multiply(scene, cv2.merge([255 - shade] * 3), scale=1 / 255)
    source = np.float32([(0, 0), (w, 0), (w, h), (0, h)])
    cv2.warpPerspective(image, cv2.getPerspectiveTransform(source, corners), (w, h), scene, cv2.INTER_LINEAR,
                        cv2.BORDER_TRANSPARENT)
    return scene


def _fold(r, image, severity):
    """A sheet that was folded: at a crease, the angle between paper and light changes a little. The size stays."""
    h, w = image.shape[:2]
    x, y = np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)[:, None]
    light = np.ones((h, w), np.float32)
    for _ in range(int(r.integers(1, 3))):
        angle = pick(r, (0, math.pi / 2)) + r.normal(0, .03)
        away = (x - w * r.uniform(.2, .8)) * math.cos(angle) + (y - h * r.uniform(.2, .8)) * math.sin(angle)
        reach = max(h, w) * r.uniform(.05, .4)
        light += np.float32(r.normal(0, .12) * severity) * np.sign(away) * np.exp(-np.abs(away) / reach)
        light += np.float32(r.uniform(-.35, .25) * severity) * np.exp(-(away / r.uniform(.7, 1.6)) ** 2)  # the crease itself
    return cv2.multiply(image, cv2.merge([light] * 3), dtype=cv2.CV_8U)


def _bend(r, image, severity):
    """A sheet that does not lie flat, such as a receipt that was rolled: lines bend, and light changes along the wave."""
    h, w = image.shape[:2]
    across = r.uniform() < .5  # the wave goes from left to right, or from top to bottom
    length, other = (w, h) if across else (h, w)
    phase = np.linspace(0, r.uniform(2, 7), length, dtype=np.float32) + np.float32(r.uniform(0, 6))
    shift, light = np.float32(r.uniform(.004, .02) * severity * other) * np.sin(phase), np.cos(phase)
    if not across:
        shift, light = shift[:, None], light[:, None]
    x, y = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))
    x, y = (x, y + shift) if across else (x + shift, y)
    bent = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    light = np.broadcast_to(1 + np.float32(r.uniform(.02, .12) * severity) * light, (h, w))
    return cv2.multiply(bent, cv2.merge([light] * 3), dtype=cv2.CV_8U)


def _moire(r, light, severity):
    """Moire: bands from the grid of the sensor over the grid of a print or a screen, with a small shift between the color
    channels. float32 [h,w,3], in place."""
    h, w = light.shape[:2]
    x, y = np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)[:, None]
    angle, period, bend = r.uniform(0, math.pi), r.uniform(4, 22), r.uniform(0, 6)
    phase = (x * math.cos(angle) + y * math.sin(angle) + np.float32(bend) * np.sin((x + y) / r.uniform(60, 160))) / period
    strength = np.float32(r.uniform(.02, .09) * severity)
    for channel, shift in enumerate(r.uniform(0, .3, 3)):
        light[..., channel] *= 1 + strength * np.sin(2 * math.pi * (phase + np.float32(shift)))


def _light(r, w, h, severity):
    """Illumination: a gradient, a falloff to the corners, sometimes the shadow of a hand or phone. float32 [h,w]."""
    gw, gh = max(w // COARSE, 2), max(h // COARSE, 2)
    x, y = np.linspace(-1, 1, gw, dtype=np.float32), np.linspace(-1, 1, gh, dtype=np.float32)[:, None]
    angle = r.uniform(0, 2 * math.pi)
    light = 1 + np.float32(.22 * severity * r.uniform()) * (x * math.cos(angle) + y * math.sin(angle))
    light -= np.float32(.15 * severity * r.uniform()) * (x * x + y * y)
    if r.uniform() < .4 * severity:
        edge, angle, soft = r.uniform(-.7, .9), r.uniform(0, 2 * math.pi), r.uniform(.03, .3)
        distance = x * math.cos(angle) + y * math.sin(angle) + .2 * np.sin(3 * y * r.uniform(.3, 1)) - edge
        light = light * (1 - np.float32(r.uniform(.2, .5)) / (1 + np.exp(np.clip(-distance / soft, -30, 30))))
    return cv2.resize(light.astype(np.float32), (w, h), interpolation=cv2.INTER_LINEAR)


def _glare(r, w, h, severity):
    """Reflections of a lamp or a window, to be added: float32 [h,w]. Some are strong enough to make a large spot white."""
    gw, gh = max(w // COARSE, 2), max(h // COARSE, 2)
    spots = np.zeros((gh, gw), np.float32)
    for _ in range(int(r.integers(1, 4))):
        a, b = sorted(r.uniform(.02, .13, 2) * max(gw, gh))
        cv2.ellipse(spots, (int(r.integers(gw)), int(r.integers(gh))), (int(b) + 1, int(a) + 1), r.uniform(0, 180),
                    0, 360, float(r.uniform(40, 260) * severity), -1)
    spots = cv2.GaussianBlur(spots, (0, 0), r.uniform(.8, 2.5))
    return cv2.resize(spots, (w, h), interpolation=cv2.INTER_LINEAR)


def skin(r):
    """A color of skin."""
    return hsv(r.uniform(.02, .08), r.uniform(.3, .65), r.uniform(.35, .9))


def finger(scene, start, tip, thick, color):
    """Draws a finger from `start` to `tip`, in place: a thick line with a round tip and a nail."""
    inward = (tip - start) / np.linalg.norm(tip - start)
    ends = [tuple(map(int, p)) for p in (start, tip)]
    for shade, part in ((.35, 1.), (.1, .86), (0, .55)):
        cv2.line(scene, *ends, mix(color, (10, 10, 40), shade), max(1, int(thick * part)), cv2.LINE_AA)
    ellipse(scene, *(tip + inward * thick * .22), thick * .2, thick * .2, mix(color, (235, 225, 255), .35))


def _occlude(r, scene):
    """Covers a part at one edge with a finger, a pen or the corner of another sheet, in place."""
    h, w = scene.shape[:2]
    side, along = int(r.integers(4)), r.uniform(.1, .9)
    start = np.array([(w * along, -5), (w * along, h + 5), (-5, h * along), (w + 5, h * along)][side], float)
    inward = np.array([(0, 1), (0, -1), (1, 0), (-1, 0)][side], float)
    kind = r.uniform()
    if kind < .65:
        inward += inward[::-1] * r.uniform(-.6, .6)
        color, reach, thick = skin(r), r.uniform(.06, .17), r.uniform(.07, .12)
        finger(scene, start - inward * 30, start + inward * reach * max(h, w), max(h, w) * thick, color)
    elif kind < .8:
        reach = (inward + inward[::-1] * r.uniform(-1, 1)) * r.uniform(.15, .35) * max(h, w)
        lines(scene, [np.array([start, start + reach])], pick(r, ((40, 40, 40), (150, 60, 20), (40, 40, 180))),
              max(1, int(max(h, w) * .022)))
    else:
        wide, deep = r.uniform(.1, .35) * w, r.uniform(.04, .12) * max(h, w)
        across, deep = np.abs(inward[::-1]) * wide, inward * deep
        polygon(scene, [start - across, start + across, start + across * .8 + deep,
                        start - across + deep * r.uniform(.2, 1.4)], hsv(r.uniform(), r.uniform(0, .5), .9))


def _blur(r, scene, severity):
    """Out of focus, motion blur, low resolution, or sharp."""
    kind = r.uniform()
    if kind < .4:
        return cv2.GaussianBlur(scene, (0, 0), .3 + 1.4 * severity * r.uniform())
    if kind < .6:
        n = 3 + 2 * int(r.uniform(0, 3.4) * severity)
        kernel, angle = np.zeros((n, n), np.float32), r.uniform(0, math.pi)
        reach = np.array((math.cos(angle), math.sin(angle))) * (n // 2)
        cv2.line(kernel, *[tuple(map(int, np.round(n // 2 + s * reach))) for s in (-1, 1)], 1.0, 1)
        return cv2.filter2D(scene, -1, kernel / kernel.sum())
    if kind < .75:
        h, w = scene.shape[:2]
        part = 1 - .6 * min(severity, 1.4) * r.uniform()
        small = cv2.resize(scene, (max(int(w * part), 8), max(int(h * part), 8)), interpolation=cv2.INTER_AREA)
        return cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR)
    return scene


@functools.lru_cache(maxsize=1)
def _grain():
    """Sensor noise, float32 [640,640,3]. Every capture takes a random part of it; drawing new noise would cost 3 ms each."""
    noise = rng("grain").normal(0, 1, (640, 640, 3)).astype(np.float32)
    return .7 * noise + .5 * cv2.blur(noise, (3, 3)) * 3  # partly smooth, as after the denoising of a phone


def _sensor(r, light, severity):
    """Exposure, white balance, gamma and noise: float32 [h,w,3] in 0..255 to uint8. One photo in ten has the color of a
    lamp, one in ten is taken in the dark."""
    h, w = light.shape[:2]
    lamp, dark = r.uniform(size=2) < .1 * severity
    spread = .2 if lamp else .07
    warm, tint = r.normal(0, (spread * severity, .03 * severity))  # light varies mostly from blue to orange, less in green
    gain = np.exp(r.normal(-.04 - .5 * dark, .15) * severity + np.array((-warm, tint, warm)))
    image = cv2.multiply(light, (*gain.tolist(), 0))
    y, x = r.integers(0, 640 - min(h, 640) + 1), r.integers(0, 640 - min(w, 640) + 1)
    noise = _grain()[y:y + h, x:x + w]
    if noise.shape != image.shape:
        noise = cv2.resize(noise, (w, h))
    image += noise * np.float32(severity * r.uniform(.5, 7) * (1 + dark))
    table = np.linspace(0, 1, 256) ** math.exp(r.normal(0, .15 * severity))
    table = .5 + (table - .5) * (1 + severity * r.uniform(-.3, .12))  # less contrast by stray light, or more by the camera
    return cv2.LUT(np.clip(image, 0, 255).astype(np.uint8), np.clip(table * 255 + .5, 0, 255).astype(np.uint8))


def capture(image, seed, *key, severity=1.0):
    """A synthetic phone photo of a document: upright, never mirrored, of the same size as the image.

    image: uint8 BGR [H,W,3], not changed. The result, uint8 BGR [H,W,3], is a pure function of the image, `seed`, `key`
    (integers or strings, such as type and capture number) and `severity`: 0 is nearly the image itself, 1 a usual hand-held
    photo, 2 a poor one."""
    r = rng("capture", seed, *key)
    h, w = image.shape[:2]
    sheet = _fold(r, image, severity) if r.uniform() < .15 * severity else image
    if r.uniform() < .12 * severity:
        sheet = _bend(r, sheet, severity)
    scene = _place(r, sheet, severity)
    if r.uniform() < .25 * severity:
        _occlude(r, scene)
    return optics(r, scene, severity)


def optics(r, scene, severity):
    """What comes between a scene and the file of its photo: light, lens, sensor, JPEG. uint8 BGR [H,W,3], not changed."""
    h, w = scene.shape[:2]
    light = cv2.multiply(scene, cv2.merge([_light(r, w, h, severity)] * 3), dtype=cv2.CV_32F)
    if r.uniform() < .3 * severity:
        light += cv2.merge([_glare(r, w, h, severity)] * 3)
    if r.uniform() < .12 * severity:
        _moire(r, light, severity)
    photo = _sensor(r, _blur(r, light, severity), severity)
    quality = int(r.uniform(92 - 55 * min(severity, 1.5), 95))
    return cv2.imdecode(cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
