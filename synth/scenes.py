"""Scenes: documents as a phone photographs them from anywhere, and where their corners are. To train and evaluate a finder.

    image, quads = scene(seed, number, Sources(documents, backgrounds))    # one scene
    write_scenes(folder, 20_000, 0, Sources(documents, backgrounds))       # folder/*.jpg and folder/corners.json

Documents are synthetic ones and the user's own images; backgrounds are drawn, and the user's own photos. What a finder has
never seen it does not find, so rare and hard things are drawn more often here than life has them.
"""
import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from inference.errors import UserError
from inference.image import ImageError, list_images, load_image
from inference.quads import ordered
from synth.capture import finger, optics, skin, surface
from synth.draw import hsv, lines, mix, pick, polygon, rng, turn
from synth.folders import files_digest, write_jobs
from synth.templates import render

SIDE = 320  # longest side of a scene, pixels
FRAMES = (320, 240), (320, 240), (240, 320), (240, 320), (320, 180), (180, 320), (256, 256)
LISTED = 0.6  # share of a document that must be seen, or it is not said to be there
TYPES, SHARED = 8, 64  # so many synthetic types serve so many scenes in a row: a type costs more than a copy of it
AT_ONCE = 100  # scenes that a process writes before it takes the next ones
COCO = "corners.json"


class Sources(NamedTuple):
    """What scenes are made of: image files of documents and of backgrounds, and the number of the first synthetic type."""
    documents: list[str] = []
    backgrounds: list[str] = []
    first_type: int = 0


def scene(seed: int, number: int, sources: Sources) -> tuple[np.ndarray, np.ndarray]:
    """(image uint8 BGR `[H,W,3]`; the quads of the documents that can be seen in it, float64 `[n,4,2]`, as `inference.quads`
    has them). A pure function of its arguments and the files."""
    r = rng("scene", seed, number)
    if r.uniform() < .08:
        return _filled(r, _sheet(r, seed, number, sources))
    w, h = pick(r, FRAMES)
    image, quads = _background(r, w, h, seed, number, sources), []
    if r.uniform() < .3:
        _clutter(r, image)
    if r.uniform() < .83:
        for _ in range(int(r.choice(3, p=(.72, .2, .08)))):  # other documents lie below
            sheet = _sheet(r, seed, number, sources)
            quads.append(_put(r, image, sheet, _place(r, sheet, w, h, r.uniform(.2, .7))))
        sheet = _sheet(r, seed, number, sources)
        quad = _place(r, sheet, w, h, math.exp(r.uniform(math.log(.28), math.log(1.1))))
        if r.uniform() < .12:
            _stack(r, image, quad)
        quads.append(_put(r, image, sheet, quad))
        if r.uniform() < .2:
            _hold(r, image, quads[-1])
    elif r.uniform() < .3:  # a hand alone is no document
        _hold(r, image, _place(r, np.empty((3, 4)), w, h, .5))
    quads = [ordered(quad) for i, quad in enumerate(quads) if _seen(quad, w, h, quads[i + 1:]) >= LISTED]
    return optics(r, image, r.uniform(.2, 1.3)), np.array(quads).reshape(-1, 4, 2)


def _filled(r, sheet):
    """An image that is the document and little else, as a scanner gives it or a person cuts it out."""
    if r.uniform() < .5:
        sheet = np.ascontiguousarray(np.rot90(sheet, int(r.integers(4))))
    h, w = sheet.shape[:2]
    quad = np.array([(0, 0), (w, 0), (w, h), (0, h)], float)
    if r.uniform() < .5:
        quad += r.uniform(-.03, .05) * max(w, h) * np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) \
            + r.normal(0, .012, (4, 2)) * max(w, h)
        image = surface(r, w, h)
        _paste(image, sheet, quad)
        sheet = image
    return optics(r, sheet, r.uniform(.1, 1)), ordered(quad)[None]


# ---------------------------------------------------------------- what there is beside documents
def _background(r, w, h, seed, number, sources):
    """uint8 BGR [h,w,3]: a photo, a table, both, a page of print, or a color that runs into another."""
    kind = r.uniform()
    if kind < .45 and sources.backgrounds:
        return _photo(r, w, h, sources)
    if kind < .75:
        image = surface(r, w, h)
        if kind > .65 and sources.backgrounds:  # the room behind the table
            edge = int(h * r.uniform(.15, .5))
            image[:edge] = _photo(r, w, h, sources)[:edge]
        return image
    if kind < .85:  # a page, a poster, a screen that fills the view is a background too
        image = surface(r, w, h)
        sheet = _sheet(r, seed, number, sources)
        _paste(image, sheet, _pose(r, sheet, w, h, r.uniform(1.6, 3)) + (w * r.uniform(.3, .7), h * r.uniform(.3, .7)))
        return image
    ends = hsv(r.uniform(), r.uniform(0, .4), r.uniform(.1, 1)), hsv(r.uniform(), r.uniform(0, .4), r.uniform(.1, 1))
    if r.uniform() < .5:  # nearly white on white
        ends = [hsv(r.uniform(0, .2), r.uniform(0, .1), r.uniform(.8, 1)) for _ in range(2)]
    corners = np.float32([[mix(*ends, r.uniform()) for _ in range(2)] for _ in range(2)])
    grain = r.normal(0, r.uniform(0, 6), (h, w, 1)).astype(np.float32)
    return np.clip(cv2.resize(corners, (w, h), interpolation=cv2.INTER_LINEAR) + grain, 0, 255).astype(np.uint8)


def _photo(r, w, h, sources):
    """A part of a background photo, at times far enlarged, as the wall behind a near thing is."""
    image = _loaded(r, sources.backgrounds)
    high, wide = image.shape[:2]
    part = r.uniform(.25, 1) * min(wide / w, high / h)
    cw, ch = max(2, int(w * part)), max(2, int(h * part))
    x, y = int(r.integers(wide - cw + 1)), int(r.integers(high - ch + 1))
    image = cv2.resize(image[y:y + ch, x:x + cw], (w, h), interpolation=cv2.INTER_LINEAR)
    if r.uniform() < .5:
        image = image[:, ::-1].copy()
    return cv2.GaussianBlur(image, (0, 0), r.uniform(.5, 4)) if r.uniform() < .4 else image


def _clutter(r, image):
    """Things with straight edges that are no documents: boxes, phones, cables, pens. In place."""
    h, w = image.shape[:2]
    for _ in range(int(r.integers(1, 4))):
        color = hsv(r.uniform(), r.uniform(0, .6), r.uniform(.05, .6))
        middle = r.uniform(-.1, 1.1, 2) * (w, h)
        if r.uniform() < .35:
            curve = middle + np.cumsum(r.normal(0, .08 * w, (8, 2)), 0)
            lines(image, [curve], color, int(r.integers(1, 6)))
        else:
            quad = _pose(r, np.empty((3, max(3, int(3 * r.uniform(1, 4))))), w, h, r.uniform(.1, .5)) + middle
            _shadow(r, image, quad)
            polygon(image, quad, color)
            if r.uniform() < .5:
                polygon(image, quad.mean(0) + r.uniform(.6, .95) * (quad - quad.mean(0)), mix(color, (0, 0, 0), .4))


def _stack(r, image, quad):
    """Below a document lie others like it, of which the edges alone are seen. In place."""
    for _ in range(int(r.integers(1, 5))):
        turned = quad.mean(0) + (quad - quad.mean(0)) @ turn(r.normal(0, .12)) * r.uniform(.9, 1.12)
        turned += r.normal(0, .06, 2) * np.ptp(quad, 0)
        color = hsv(r.uniform(), r.uniform(0, .3), pick(r, (r.uniform(0, .25), r.uniform(.6, 1))))
        polygon(image, turned, color)
        lines(image, [turned], mix(color, (128, 128, 128), .5), 1, closed=True)


def _hold(r, image, quad):
    """Fingers over an edge of the quad, or a thumb on a corner, and the hand that they belong to. In place."""
    side, along, color = int(r.integers(4)), r.uniform(0, 1), skin(r)
    one, other = quad[side], quad[(side + 1) % 4]
    outward = np.array([(other - one)[1], -(other - one)[0]]) / np.linalg.norm(other - one)
    long = math.sqrt(_area(quad))
    direction = outward @ turn(r.normal(0, .4))
    thick, start = long * r.uniform(.08, .16), one + (other - one) * along
    count = int(r.choice((1, 3, 4), p=(.6, .2, .2)))
    if count > 1 or r.uniform() < .6:
        palm = start + direction * thick * r.uniform(2.5, 5)
        cv2.ellipse(image, tuple(map(int, palm)), (int(thick * 3), int(thick * r.uniform(1.5, 3))),
                    math.degrees(math.atan2(*direction[::-1])), 0, 360, mix(color, (0, 0, 0), .15), -1, cv2.LINE_AA)
    for i in range(count):
        beside = start + (other - one) / np.linalg.norm(other - one) * thick * 1.05 * i
        finger(image, beside + direction * thick * r.uniform(2, 9), beside - direction * long * r.uniform(.01, .2), thick,
               color)


# ---------------------------------------------------------------- sheets and where they lie
def _sheet(r, seed, number, sources):
    """A document from the front, uint8 BGR, longest side at most SIDE plus a margin."""
    if sources.documents and r.uniform() < .7:
        sheet = _loaded(r, sources.documents)
    else:
        kind = sources.first_type + number // SHARED * TYPES + int(r.integers(TYPES))
        sheet = _reduced(render(seed, kind, int(r.integers(1000))), SIDE)
    if r.uniform() < .15:  # a margin of paper belongs to the document
        margins = [int(part * max(sheet.shape[:2])) for part in r.uniform(0, .15, 4)]
        paper = hsv(r.uniform(.02, .2), r.uniform(0, .15), r.uniform(.75, 1))
        sheet = cv2.copyMakeBorder(sheet, *margins, cv2.BORDER_CONSTANT, value=paper)
    if r.uniform() < .3:  # ink fades, paper darkens
        sheet = cv2.convertScaleAbs(sheet, alpha=r.uniform(.55, 1.05), beta=r.uniform(0, 25))
    return sheet


def _pose(r, sheet, w, h, size):
    """The corners of a sheet around (0, 0), clockwise from its own top left one, float64 [4,2]. size: the square root of its
    share of a frame of w x h. It is turned in any direction, more often nearly upright, and tilted by up to 60 degrees from
    the camera's axis; the camera's field of view is 35 to 65 degrees."""
    angle = r.integers(4) * math.pi / 2 + r.normal(0, .12) if r.uniform() < .5 else r.uniform(0, 2 * math.pi)
    tilt, axis, focal = min(abs(r.normal(0, .4)), 1.05), r.uniform(0, 2 * math.pi), r.uniform(.8, 1.6)
    wide = math.sqrt(sheet.shape[1] / sheet.shape[0]) / 2
    flat = np.array([(-wide, -.25 / wide), (wide, -.25 / wide), (wide, .25 / wide), (-wide, .25 / wide)])  # of area 1
    x, y = (flat @ turn(angle)).T
    side = size * math.sqrt(w * h)
    near = 1 + y * math.sin(tilt) * min(side / (focal * max(w, h)), .9)
    quad = np.stack([x / near, y * math.cos(tilt) / near], 1) @ turn(axis)
    return quad * side / math.sqrt(_area(quad))


def _place(r, sheet, w, h, size):
    """The corners [4,2] of a sheet somewhere in a frame of w x h: most often all inside, else LISTED of it at least."""
    quad, at = _pose(r, sheet, w, h, size), r.uniform(0, 1, 2)
    if r.uniform() < .75:
        quad *= min(1, r.uniform(.8, .99) / (np.ptp(quad, 0) / (w, h)).max())
        return quad - quad.min(0) + at * ((w, h) - np.ptp(quad, 0))
    quad = quad - quad.mean(0) + at * (w, h)
    while _seen(quad, w, h) < LISTED + .05:
        middle = quad.mean(0)
        quad = .96 * (quad - middle) + .85 * middle + .15 * np.array([w / 2, h / 2])
    return quad


def _put(r, image, sheet, quad):
    """Draws a document at `quad`, in place, with its shadow, its edge and the case it may be in. Returns its corners."""
    h, w = image.shape[:2]
    kind = r.uniform()
    if r.uniform() < .7:
        _shadow(r, image, quad)
    if kind < .15:  # in a case, a frame, a sleeve: its corners are not the document's
        case = _framed(quad, sheet, r.uniform(0, .09, 4) + r.uniform(0, .03))
        color = hsv(r.uniform(), r.uniform(0, .4), pick(r, (r.uniform(0, .25), r.uniform(0, .25), r.uniform(.3, 1))))
        _shadow(r, image, case)
        polygon(image, case, color)
        lines(image, [case], mix(color, (160, 160, 160), r.uniform(0, .6)), 1, closed=True)
    elif kind < .3:  # a thick one: a box, a book, a block of paper
        below = quad + r.normal(0, .03, 2) * math.sqrt(_area(quad))
        hull = cv2.convexHull(np.float32([*quad, *below]))[:, 0]
        polygon(image, hull, hsv(r.uniform(), r.uniform(0, .5), r.uniform(.05, .9)))
    rounded = r.uniform(.02, .09) if r.uniform() < .2 else 0
    bend = _bend(r, quad, w, h) if r.uniform() < .2 else None
    return _paste(image, sheet, quad, rounded, bend)


def _paste(image, sheet, quad, rounded=0.0, bend=None):
    """Draws the sheet with its corners at `quad`, antialiased, in place. rounded: radius of its corners as a share of its
    longest side. bend: how far from each pixel lies what it shows of the flat sheet, float32 [h,w,2] pixels. Returns where
    the corners are: at `quad`, but for the bend."""
    h, w = image.shape[:2]
    sheet = _reduced(sheet, 1.3 * max(np.linalg.norm(quad - np.roll(quad, 1, 0), axis=1)))
    high, wide = sheet.shape[:2]
    mask = np.full((high, wide), 255, np.uint8)
    if rounded:
        radius = max(1, int(rounded * max(high, wide)))
        mask[:] = 0
        cv2.rectangle(mask, (radius, 0), (wide - 1 - radius, high - 1), 255, -1)
        cv2.rectangle(mask, (0, radius), (wide - 1, high - 1 - radius), 255, -1)
        for x, y in ((radius, radius), (wide - 1 - radius, radius), (radius, high - 1 - radius),
                     (wide - 1 - radius, high - 1 - radius)):
            cv2.circle(mask, (x, y), radius, 255, -1, cv2.LINE_AA)
    whole = np.float32([(0, 0), (wide, 0), (wide, high), (0, high)])
    matrix = cv2.getPerspectiveTransform(whole - .5, np.float32(quad) - .5)  # OpenCV counts from the centers of pixels
    layer = cv2.warpPerspective(sheet, matrix, (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    mask = cv2.warpPerspective(mask, matrix, (w, h), flags=cv2.INTER_LINEAR)
    if bend is not None:
        y, x = np.indices((h, w), np.float32)
        x, y = x + bend[..., 0], y + bend[..., 1]
        layer = cv2.remap(layer, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        mask = cv2.remap(mask, x, y, cv2.INTER_LINEAR)
        slope = cv2.Sobel(bend.sum(2), cv2.CV_32F, 1, 0) + cv2.Sobel(bend.sum(2), cv2.CV_32F, 0, 1)
        layer = cv2.convertScaleAbs(layer * (1 + np.clip(.6 * slope, -.4, .3))[..., None])
    weight = mask.astype(np.float32) / 255
    image[:] = cv2.blendLinear(layer, image, weight, 1 - weight)
    if bend is None:
        return quad
    x, y = np.clip(quad, 0, (w - 1, h - 1)).astype(int).T
    return quad - bend[y, x]


def _bend(r, quad, w, h):
    """A sheet that does not lie flat: waves across it, which move its pixels a few percent of it. float32 [h,w,2] pixels."""
    y, x = np.indices((max(2, h // 8), max(2, w // 8)), np.float32) * 8
    long, angle = math.sqrt(_area(quad)), r.uniform(0, 2 * math.pi)
    along = (x * math.cos(angle) + y * math.sin(angle)) / long
    wave = sum(r.uniform(.1, 1) * np.sin(2 * math.pi * (along * r.uniform(.3, 1.2) + r.uniform())) for _ in range(2))
    away = (np.array([-math.sin(angle), math.cos(angle)]) + r.normal(0, .3, 2)) * long * r.uniform(.005, .02)
    return cv2.resize(np.float32(wave[..., None] * away), (w, h), interpolation=cv2.INTER_CUBIC)


def _shadow(r, image, quad):
    """Darkens what lies around a thing at `quad`, more on one side, in place."""
    h, w = image.shape[:2]
    shade = np.zeros((h // 4 + 1, w // 4 + 1), np.uint8)
    polygon(shade, (quad + r.normal(0, .025, 2) * math.sqrt(_area(quad))) / 4, int(r.uniform(40, 200)))
    shade = cv2.resize(cv2.blur(shade, (int(r.integers(2, 7)),) * 2), (w, h))
    image[:] = cv2.multiply(image, cv2.merge([255 - shade] * 3), scale=1 / 255)


# ---------------------------------------------------------------- geometry and files
def _framed(quad, sheet, margins):
    """The corners of a frame around a sheet at `quad`; margins: left, top, right, bottom, as shares of its longer side."""
    h, w = sheet.shape[:2]
    left, top, right, bottom = margins * max(w, h)
    matrix = cv2.getPerspectiveTransform(np.float32([(0, 0), (w, 0), (w, h), (0, h)]), np.float32(quad))
    outer = np.float32([[(-left, -top), (w + right, -top), (w + right, h + bottom), (-left, h + bottom)]])
    return cv2.perspectiveTransform(outer, matrix)[0].astype(float)


def _area(quad):
    return cv2.contourArea(np.float32(quad))


def _seen(quad, w, h, covers=()):
    """Share of a quad that is inside a frame of w x h and not below one of the quads `covers` (as if these did not meet)."""
    quad = np.float32(quad)
    inside, shown = cv2.intersectConvexConvex(quad, np.float32([(0, 0), (w, 0), (w, h), (0, h)]))
    if inside and len(covers):
        inside -= sum(cv2.intersectConvexConvex(shown, np.float32(cover))[0] for cover in covers)
    return inside / _area(quad)


def _reduced(image, side):
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    return cv2.resize(image, [max(2, round(n * scale)) for n in image.shape[1::-1]], interpolation=cv2.INTER_AREA)


def _loaded(r, files):
    """One of the files, longest side at most SIDE. The next one where it cannot be used."""
    first = int(r.integers(len(files)))
    for path in (*files[first:], *files[:first]):
        try:
            image = load_image(path, SIDE)
        except ImageError:
            continue
        if max(image.shape[:2]) <= 20 * min(image.shape[:2]):
            return _reduced(image, SIDE)
    raise UserError("none of the images given for scenes can be read")


def files_below(folders) -> list[str]:
    """The paths of all images below the folders, in a fixed order. Raises UserError."""
    return [os.path.join(folder, name) for folder in folders for name in list_images(folder)]


def write_scenes(folder, count: int, seed: int, sources: Sources, workers: int | None = None) -> int:
    """Writes the scenes 0..count-1 as `folder/N.jpg`, and `folder/corners.json`: a COCO file with the quads as polygons
    (`segmentation`), the box of what can be seen of each, and the images without a document. Returns the number of scenes.
    The written bytes do not depend on `workers`. Raises UserError."""
    if count < 1:
        raise UserError(f"a number of scenes must be at least 1, not {count}")
    starts = range(0, count, AT_ONCE)
    parts = [(f"{start:06d}", seed, range(start, min(start + AT_ONCE, count)), sources) for start in starts]
    documents, backgrounds = (files_digest(dict(zip(files, files))) for files in sources[:2])
    manifest = {"scenes": count, "seed": seed, "documents": documents, "backgrounds": backgrounds,
                "first_type": sources.first_type}
    return write_jobs(folder, _write_part, parts, count, manifest, workers, _join)


def _write_part(job):
    """Writes some scenes into a folder of their own, and beside it what they show. Returns their number."""
    folder, seed, numbers, sources = job
    folder.mkdir()
    shown = []
    for number in numbers:
        image, quads = scene(seed, number, sources)
        (folder / f"{number:06d}.jpg").write_bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1])
        shown.append((number, f"{folder.name}/{number:06d}.jpg", image.shape[1], image.shape[0], quads.round(2).tolist()))
    folder.with_suffix(".json").write_text(json.dumps(shown))
    return len(shown)


def _join(folder: Path):
    """The COCO file of a whole folder, instead of what `_write_part` left beside each part."""
    images, annotations = [], []
    for part in sorted(folder.glob("*.json")):
        for number, name, width, height, quads in json.loads(part.read_text()):
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            for quad in quads:
                low, high = (np.clip(edge, 0, (width, height)) for edge in (np.min(quad, 0), np.max(quad, 0)))
                annotations.append({"id": len(annotations), "image_id": number, "category_id": 1, "iscrowd": 0,
                                    "bbox": [*low.tolist(), *(high - low).tolist()],
                                    "segmentation": [[x for point in quad for x in point]]})
        part.unlink()
    categories = [{"id": 1, "name": "document"}]
    (folder / COCO).write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
