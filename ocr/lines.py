"""Write synthetic lines of old print: images, text, and the box of each character and word. Nothing is downloaded.

    python -m ocr lines --out DIR --count 20000
    python -m ocr lines --out DIR --count 20000 --fonts FONTS... --text BOOK.txt... --height 40
    python -m ocr lines --out DIR --count 5000 --charset greek.txt --text greek_book.txt
    python -m ocr lines --out DIR --count 5000 --charset kana.txt --vertical
    python -m ocr lines --sheet sheet.png

DIR gets images/, lines.tsv, coco.json, and synth.json with the arguments. Line N is a function of the seed and N alone
(given the fonts, the text and the charset), whatever the number of workers. A stopped command goes on where it was when it
is given again.
"""
import functools
import hashlib
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from engine.processes import map_processes
from inference.cli import Parser, run_cli
from inference.errors import UserError
from inference.files import replacing
from inference.lines import CATEGORIES
from ocr.folder import COCO, IMAGES, LINES
from ocr.fonts import EM, LIGATURES, SHAPING, Face, Faces, Glyph, find_faces, font_files, wide
from ocr.ink import age
from ocr.text import CHARSET, Texts, fold, read_charset

HEIGHT = 48
CHUNK = 100  # lines of one job, and what a stopped command loses at most
MANIFEST, PARTS = "synth.json", "parts"


class Sample(NamedTuple):
    image: np.ndarray  # uint8 [h,w], dark on light; a vertical line is taller than wide
    text: str  # as typed
    boxes: np.ndarray  # float32 [n,4], x0 y0 x1 y1 in pixels, of the n characters that are not spaces
    words: np.ndarray  # float32 [m,4], of the words


class Style(NamedTuple):
    """How a line is set; lengths in pixels at EM."""
    space: float  # between words, in the whole line: so lines are justified
    sentence: float  # the same after the end of a sentence
    uneven: float  # by which share of it each space may differ, as where a compositor has put in thin ones by hand
    tracking: float  # between letters
    before: float  # before ; : ? !
    inside: float  # inside quotes
    dash: float  # on both sides of a long dash
    curly: bool
    two_quotes: float  # a double quote is two single ones, so far apart; 0: the face's own
    ligatures: bool
    figures: str  # "lining", "old" (the font's own) or "drawn" (lining ones scaled and shifted)
    slant: float  # shear, as of a worn or tilted form: x per y
    jitter: float  # of the letters' height on the line
    slope: float  # of the baseline, y per x
    bend: float  # of the baseline, as a half wave over the line


class Piece(NamedTuple):
    """What is drawn at once: a glyph, and the letters of the text that it stands for."""
    glyph: Glyph
    letters: str
    drawn: str
    face: Face
    tracking: float
    begins: bool  # a word begins before it
    full: bool  # a sentence has ended before it


class LineMaker:
    """Makes line `number` as a `Sample`; a pure function of the arguments and the number.

    faces: of `ocr.fonts.find_faces`. texts: draws the text. height: of the image in pixels (of a vertical line, its width),
    0 for the resolution of the drawn scan. vertical: lines that run from top to bottom.
    """

    def __init__(self, faces: list[Face], texts: Texts, height: int = HEIGHT, vertical: bool = False, seed: int = 0):
        self.faces, self.texts, self.height, self.vertical, self.seed = Faces(faces), texts, height, vertical, seed

    def __call__(self, number: int) -> Sample:
        r = np.random.default_rng((self.seed, number))
        text, heading = self.texts.line(r)
        face, text = self._face_for(text, r)
        style = _style(r, heading or text.isupper())
        if self.vertical:
            style = style._replace(ligatures=False)
        pieces = self._pieces(text, face, style, r)
        canvas, boxes = (_stack if self.vertical else _set)(pieces, style, r)
        canvas, boxes = _surround(canvas, boxes, self.vertical, r)
        ink, boxes, em = _scan(canvas, boxes, r)
        image = age(ink, boxes, em, r)
        if self.height:
            image, boxes = _to_height(image, boxes, self.height, self.vertical)
        text = "".join(" " * piece.begins + piece.letters for piece in pieces)
        ends = np.cumsum([len(word) for word in text.split(" ")])
        words = [(*part[:, :2].min(0), *part[:, 2:].max(0)) for part in np.split(boxes, ends[:-1])]
        return Sample(image, text, boxes.astype(np.float32), np.array(words, np.float32))

    def _face_for(self, text, r):
        """A face that has the text, and the text without what the face lacks."""
        for _ in range(6):
            face = self.faces.draw(r)
            missing = {c for c in set(text) if c != " " and not face.has(_plain(c)) and not face.has(c)}
            if not missing:
                return face, text
        kept = " ".join("".join(c for c in text if c not in missing).split())
        return face, kept or next(c for c in self.texts.charset if face.has(c))

    def _pieces(self, text, face, style, r):
        """The pieces of a text in order, with the styles of its words: italics, small capitals, letter-spacing."""
        pieces = []
        italic = self.faces.italics.get(face.family) if not face.italic else None
        words = text.split(" ")
        changed, sort = set(), ""
        if italic is not None and r.random() < .12:
            first = int(r.integers(len(words)))
            changed, sort = set(range(first, first + int(r.integers(1, 4)))), "italic"
        elif r.random() < .06:
            first = int(r.integers(len(words)))
            changed, sort = set(range(first, first + int(r.integers(1, 5)))), "spaced"
        elif r.random() < .06:
            first = 0 if r.random() < .6 else int(r.integers(len(words)))
            changed = set(range(first, len(words) if r.random() < .4 else first + int(r.integers(1, 4))))
            sort = "small capitals"
        tracking = r.uniform(.06, .25) * EM
        ended = False
        for i, word in enumerate(words):
            if i in changed and sort == "italic" and italic.has(word.translate(_PLAIN)):
                new = _spell(word, italic, style, ligatures=style.ligatures)
            elif i in changed and sort == "spaced":
                new = _spell(word, face, style, ligatures=False, tracking=tracking)
            elif (i in changed and sort == "small capitals" and len(word.upper()) == len(word)  # not so with a German ß
                  and face.has(word.upper().translate(_PLAIN))):
                new = _small_capitals(word, face, style, whole=len(changed & set(range(len(words)))) == len(words))
            else:
                new = _spell(word, face, style, ligatures=style.ligatures)
            if new:
                new[0] = new[0]._replace(begins=bool(pieces), full=ended)
                pieces += new
                ended = word.rstrip("\"')”’")[-1:] in (".", "?", "!")
        return pieces


_PLAIN = {ord(c): fold(c) for c in "‘’“”–—"}


def _plain(character):
    """The form of a quote or dash that each face has."""
    return character.translate(_PLAIN)


def _style(r, heading):
    space = float(np.clip(.3 * math.exp(r.normal(.25, .34)), .167, .83)) * EM
    spaced = heading and r.random() < .35 or r.random() < .02
    return Style(
        space=space,
        sentence=space * (r.uniform(1.3, 2.6) if r.random() < .45 else 1),
        uneven=r.uniform(0, .35) if r.random() < .5 else 0,
        tracking=r.uniform(.06, .25) * EM if spaced else r.normal(0, .012) * EM,
        before=r.uniform(.2, .9) * space if r.random() < .5 else 0,
        inside=r.uniform(.1, .6) * space if r.random() < .3 else 0,
        dash=r.uniform(0, .2) * EM if r.random() < .5 else 0,
        curly=r.random() < .85,
        two_quotes=r.uniform(.02, .12) * EM if r.random() < .25 else 0,
        ligatures=not spaced and r.random() < .75,
        figures=str(r.choice(["lining", "old", "drawn"], p=(.6, .25, .15))),
        slant=r.normal(0, .02) if r.random() < .25 else 0,
        jitter=abs(r.normal(0, .006)) * EM,
        slope=r.normal(0, .0025) if r.random() < .35 else 0,
        bend=r.normal(0, .025) * EM if r.random() < .2 else 0)


def _spell(word, face, style, ligatures, tracking=None):
    """The pieces of a word. tracking: its own, in place of the line's."""
    pieces, i = [], 0
    tracking = style.tracking if tracking is None else tracking
    while i < len(word):
        letters = next((k for k in LIGATURES if ligatures and word.startswith(k, i)), word[i])
        glyph = drawn = None
        if len(letters) > 1:
            drawn = LIGATURES[letters] if face.has(LIGATURES[letters]) else letters
            if len(drawn) == 1 or "liga" in face.tags and SHAPING:
                glyph = face.glyph(drawn)
            if glyph is None:
                letters = word[i]
        if glyph is None:
            letters = drawn = _shape_of(word, i, face, style)
            if drawn in "“”" and style.two_quotes and face.has("‘’"):
                glyph = _doubled(face.glyph("‘’"["“”".index(drawn)]), round(style.two_quotes))
            elif drawn.isdigit() and drawn.isascii():
                glyph = _figure(face, drawn, style)
            else:
                glyph = face.glyph(drawn)
        if glyph is not None:
            if style.slant:
                glyph = _slanted(glyph, style.slant)
            pieces.append(Piece(glyph, letters, drawn, face, tracking, False, False))
            i += len(letters)
        else:
            i += 1
    return pieces


def _shape_of(word, i, face, style):
    """The character that is drawn, and written in the text, for word[i]: curly quotes, a dash that the face has."""
    c = word[i]
    if c == '"' and style.curly:
        shape = "“" if i == 0 or word[i - 1] in "([—-'‘" else "”"
    elif c == "'" and style.curly:
        shape = "‘" if i == 0 or word[i - 1] in "([—-\"“" else "’"
    else:
        shape = c if style.curly or c in "–—" else _plain(c)
    return shape if face.has(shape) else _plain(c)


def _figure(face, digit, style):
    """A digit; as an old-style figure where the style asks for it."""
    if style.figures == "old" and "onum" in face.tags and SHAPING:
        return face.glyph(digit, ("onum",))
    glyph = face.glyph(digit)
    if style.figures == "lining" or glyph is None or -glyph.top < 1.2 * face.x_height:
        return glyph
    if digit in "012":  # of the height of an x; the 1 often as a small capital I
        i = face.glyph("I")
        source = i if digit == "1" and i is not None and style.figures == "old" else glyph
        return _scaled(source, .95, face.x_height / -source.top)
    if digit in "34579":  # below the line
        return glyph._replace(top=glyph.top + (-glyph.top - face.x_height))
    return glyph


def _small_capitals(word, face, style, whole):
    """A word in small capitals: small letters drawn as capitals of little more than the height of an x. Transcriptions keep
    the case of single words, "a Tiger"; a whole line is a heading, which they write in capitals."""
    scale = min(1.0, 1.08 * face.x_height / face.cap_height)
    pieces = []
    capitals = _spell(word.upper(), face, style, ligatures=False, tracking=style.tracking + .03 * EM)
    for piece, letter in zip(capitals, word):
        if letter.islower():
            small = _scaled(piece.glyph, 1.06 * scale, scale)
            piece = piece._replace(glyph=small, letters=piece.letters if whole else letter)
        pieces.append(piece)
    return pieces


def _doubled(glyph, gap):
    """A glyph twice, as double quotes are set that are two single ones."""
    room = np.zeros((len(glyph.mask), gap), np.uint8)
    return glyph._replace(mask=np.hstack([glyph.mask, room, glyph.mask]), advance=glyph.advance + gap + glyph.mask.shape[1])


def _scaled(glyph, sx, sy):
    h, w = glyph.mask.shape
    mask = cv2.resize(glyph.mask, (max(1, round(w * sx)), max(1, round(h * sy))), interpolation=cv2.INTER_AREA)
    return Glyph(mask, round(glyph.left * sx), round(glyph.top * sy), glyph.advance * sx)


def _slanted(glyph, slant):
    h, w = glyph.mask.shape
    reach = math.ceil(abs(slant) * h) + 1
    # The foot of the glyph stays where it is; its rows move by slant pixels for each pixel above the baseline.
    move = np.float32([[1, -slant, reach - slant * glyph.top], [0, 1, 0]])
    mask = cv2.warpAffine(glyph.mask, move, (w + 2 * reach, h))
    columns = np.flatnonzero(mask.max(0) > 96)
    if not len(columns):
        return glyph
    return Glyph(mask[:, columns[0]:columns[-1] + 1], glyph.left - reach + int(columns[0]), glyph.top, glyph.advance)


def _set(pieces, style, r):
    """Sets a horizontal line: its ink uint8 [h,w] at EM, cropped to the ink, and the boxes float64 [n,4] of its letters."""
    x, previous, pens = 0.0, None, []
    for piece in pieces:
        if piece.begins:  # wider than the room between letter-spaced letters
            space = (style.sentence if piece.full else style.space) * (1 + style.uneven * r.uniform(-1, 1))
            x += space + .75 * max(0, previous.tracking + piece.tracking)
        elif previous is not None:
            x += _gap(previous, piece, style)
        pens.append(x)
        x += piece.glyph.advance
        previous = piece
    width = max(x, 1)
    lifts = r.normal(0, 1, len(pieces)) * style.jitter
    places = [(round(pen) + p.glyph.left, round(p.glyph.top + lift + style.slope * (pen - width / 2)
                                                + style.bend * math.sin(math.pi * pen / width)))
              for pen, p, lift in zip(pens, pieces, lifts)]
    return _draw(pieces, places, vertical=False)


def _gap(previous, piece, style):
    """What lies between two pieces of a word, beside their own room."""
    gap = (previous.tracking + piece.tracking) / 2
    if previous.face is piece.face and len(previous.drawn) == len(piece.drawn) == 1:
        gap += piece.face.kerning(previous.drawn, piece.drawn)
    if piece.drawn in ";:?!":
        gap += style.before
    if previous.drawn in "“‘" or piece.drawn in "”":
        gap += style.inside
    if "—" in (previous.drawn, piece.drawn):
        gap += style.dash
    return gap


def _stack(pieces, style, r):
    """Sets a vertical line: the letters upright, below each other, centered on the line."""
    y, places = 0.0, []
    room = style.tracking + EM * r.uniform(.05, .2)
    for piece in pieces:
        h, w = piece.glyph.mask.shape
        if piece.begins:
            y += style.space
        if wide(piece.drawn[0]):  # a square each; a full stop stands in its upper right corner
            corner = piece.drawn in "、。，．"
            places.append((EM // 4 if corner else round(piece.glyph.left - piece.glyph.advance / 2),
                           round(y + EM * .88 + piece.glyph.top - (.55 * EM if corner else 0))))
            y += EM + style.tracking
        else:
            places.append((-w // 2, round(y)))
            y += h + room
    return _draw(pieces, places, vertical=True)


def _draw(pieces, places, vertical):
    """The ink of placed masks, cropped to it, and the boxes of the letters: a ligature's is divided among its own in the
    proportion of their advances."""
    corners = np.array([(x, y, x + p.glyph.mask.shape[1], y + p.glyph.mask.shape[0]) for (x, y), p in zip(places, pieces)])
    left, top = corners[:, :2].min(0)
    right, bottom = corners[:, 2:].max(0)
    canvas = np.zeros((bottom - top, right - left), np.uint8)
    boxes = []
    for (x0, y0, x1, y1), piece in zip(corners - [left, top, left, top], pieces):
        part = canvas[y0:y1, x0:x1]
        np.maximum(part, piece.glyph.mask, out=part)
        shares = [0]
        if len(piece.letters) > 1:
            shares = np.cumsum([0, *(glyph.advance if (glyph := piece.face.glyph(c)) else EM / 3 for c in piece.letters)])
            shares = shares[:-1] / shares[-1]
        edges = [*(x0 + (x1 - x0) * share for share in shares), x1]
        boxes += [(a, y0, b, y1) for a, b in zip(edges, edges[1:])]
    return canvas, np.array(boxes, np.float64)


def _surround(canvas, boxes, vertical, r):
    """Crops as line finders do: half of them tight, others with margins or bits of the lines beside, a few too tight."""
    kind = r.choice(4, p=(.52, .30, .12, .06))
    if kind == 3:
        cut = r.integers(0, 4, 4)
        h, w = canvas.shape
        x0, y0, x1, y1 = cut[0], cut[1], w - cut[2], h - cut[3]
        if x1 - x0 < 16 or y1 - y0 < 16:
            return canvas, boxes
        boxes = np.clip(boxes - [x0, y0, x0, y0], 0, [x1 - x0, y1 - y0] * 2)
        return canvas[y0:y1, x0:x1], boxes
    margins = r.integers(0, 3, 4)  # left, top, right, bottom
    if kind:
        margins = np.int64(r.uniform(0, .3, 4) * EM)
        margins[[0, 2] if not vertical else [1, 3]] *= 1 if r.random() < .7 else 5
    left, top, right, bottom = margins
    padded = cv2.copyMakeBorder(canvas, top, bottom, left, right, cv2.BORDER_CONSTANT, value=0)
    if kind == 2:  # the line itself stands for its neighbors: their feet above, their heads below
        neighbor = np.roll(padded, int(r.integers(max(padded.shape))), 0 if vertical else 1)
        across = neighbor.T if vertical else neighbor
        target = padded.T if vertical else padded
        before, after = (left, right) if vertical else (top, bottom)
        size = len(target) - before - after
        if before > 3 and r.random() < .8:
            bit = int(r.integers(1, max(2, before * 3 // 4)))
            target[:bit] = np.maximum(target[:bit], across[before + size - bit:before + size])
        if after > 3 and r.random() < .8:
            bit = int(r.integers(1, max(2, after * 3 // 4)))
            target[-bit:] = np.maximum(target[-bit:], across[before:before + bit])
    return padded, boxes + [left, top, left, top]


def _scan(canvas, boxes, r):
    """The drawing at the resolution of a scan, float32 in [0,1], its boxes, and its pixels per em."""
    low, high = ((36, 64), (25, 36), (14, 25))[r.choice(3, p=(.77, .15, .08))]
    em, stretch = r.uniform(low, high), r.uniform(.93, 1.07)
    h, w = canvas.shape
    size = max(4, round(w * em / EM * stretch)), max(4, round(h * em / EM))
    ink = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return ink, boxes * np.tile([size[0] / w, size[1] / h], 2), em


def _to_height(image, boxes, height, vertical):
    """As a reader resizes a line: INTER_AREA to a lower one, INTER_LINEAR to a higher one."""
    h, w = image.shape
    scale = height / (w if vertical else h)
    size = (height, max(1, round(h * scale))) if vertical else (max(1, round(w * scale)), height)
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return image, boxes * np.tile([size[0] / w, size[1] / h], 2)


# The folder.

def write_lines(out, count: int, seed: int = 0, fonts=(), texts=(), charset=None, height: int = HEIGHT,
                vertical: bool = False, workers: int = 2) -> int:
    """Writes `count` lines as a folder of lines (see ocr/folder.py) and returns their number.

    fonts: folders; texts: files; charset: file. A folder that the same arguments have begun is completed, and one that they
    have completed is left as it is. Raises UserError for a folder with other content, or that cannot be written, for numbers
    out of range, and for fonts, texts and charsets that cannot be used.
    """
    _check(count, seed, height, workers)
    out = Path(out)
    characters = read_charset(charset) if charset else CHARSET
    manifest = {"count": count, "seed": seed, "height": height, "vertical": vertical, "charset": characters,
                "fonts": _fonts(fonts), "texts": [_digest(file) for file in texts], "code": _code()}
    try:
        if _is_complete(out, manifest):
            return count
        faces = find_faces(fonts, characters)
        print(f"{len(faces)} faces of {len({face.family for face in faces})} families", file=sys.stderr)
        _complete(out, manifest, (faces, characters, tuple(map(str, texts)), height, vertical, seed), workers)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); its folder must be writable and have room") from None
    return count


def _check(count, seed, height, workers):
    if count < 1 or workers < 1 or seed < 0 or (height and not 12 <= height <= 512):
        raise UserError(f"--count {count}, --workers {workers}, --seed {seed}, --height {height}: give at least 1, 1 and 0, "
                        "and 12 to 512 or 0")


def _complete(out, manifest, options, workers):
    """Writes the chunks that are not there, and joins all."""
    count = manifest["count"]
    maker = _maker(*options)  # here too, so that what cannot be used is told once and before any work
    for folder in (out / IMAGES, out / PARTS):
        folder.mkdir(parents=True, exist_ok=True)
    _write_json(out / MANIFEST, manifest)
    jobs = [(str(out), start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)
            if not (out / PARTS / f"{start:06}.json").exists()]
    with tqdm(total=count, initial=max(0, count - CHUNK * len(jobs)), desc="lines", unit="line", disable=None) as bar:
        if workers == 1 or len(jobs) == 1:
            for job in jobs:
                bar.update(_write_chunk(maker, *job))
        else:
            for _, done in map_processes(functools.partial(_writer, options), jobs, workers, "what is written is kept; give "
                                         "the command again, with fewer --workers"):
                bar.update(done)
    _join(out, manifest)
    shutil.rmtree(out / PARTS)


def _maker(faces, charset, texts, height, vertical, seed):
    return LineMaker(faces, Texts(charset, texts), height, vertical, seed)


def _writer(options):
    """What writes chunks in a process of its own."""
    maker = _maker(*options)
    return lambda job: _write_chunk(maker, *job)


def _write_chunk(maker, out, start, stop):
    rows, out = [], Path(out)
    for number in range(start, stop):
        image, text, boxes, words = maker(number)
        name = f"{number:06}.png"
        (out / IMAGES / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
        corners = [[[round(float(x), 1) for x in (a, b, c - a, d - b)] for a, b, c, d in part] for part in (boxes, words)]
        rows.append((name, image.shape[1], image.shape[0], text, *corners))
    _write_json(out / PARTS / f"{start:06}.json", rows)
    return stop - start


def _join(out, manifest):
    """The chunks as lines.tsv and coco.json; coco.json first, since a folder with lines.tsv is complete."""
    rows = [row for start in range(0, manifest["count"], CHUNK)
            for row in json.loads((out / PARTS / f"{start:06}.json").read_text(encoding="utf-8"))]
    with replacing(out / COCO) as partial, partial.open("w", encoding="utf-8") as file:
        images = [{"id": i, "file_name": name, "width": w, "height": h, "text": text, "vertical": manifest["vertical"]}
                  for i, (name, w, h, text, *_) in enumerate(rows)]
        file.write(f'{{"images": {json.dumps(images, ensure_ascii=False)},\n"categories": {json.dumps(CATEGORIES)},\n'
                   '"annotations": [')
        number = 0
        for i, row in enumerate(rows):
            for category, boxes in enumerate(row[4:]):
                for box in boxes:
                    file.write(f'{"," if number else ""}\n{{"id":{number},"image_id":{i},"category_id":{category},"bbox":'
                               f'{json.dumps(box)}}}')
                    number += 1
        file.write("]}\n")
    with replacing(out / LINES) as partial:
        partial.write_text("file\ttext\n" + "".join(f"{row[0]}\t{row[3]}\n" for row in rows), encoding="utf-8")


def _write_json(path, value):
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _is_complete(out, manifest):
    """Whether the folder is the result of these arguments; False where it is to be written or completed."""
    if not out.exists() or out.is_dir() and not any(out.iterdir()):
        return False
    try:
        same = json.loads((out / MANIFEST).read_text(encoding="utf-8")) == manifest
    except (OSError, ValueError):
        same = False
    if not same:
        raise UserError(f"{out}: has files of another origin, or of other arguments, fonts or version of this program; give "
                        "another folder")
    return (out / LINES).exists()


def _digest(file):
    try:
        return hashlib.blake2b(Path(file).read_bytes(), digest_size=8).hexdigest()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None


def _fonts(folders):
    """A digest of the names and sizes of the font files: folders may be named in several ways, and files come and go."""
    seen = sorted((os.path.basename(file), os.path.getsize(file)) for file in font_files(folders))
    return hashlib.blake2b(repr(seen).encode(errors="surrogateescape"), digest_size=8).hexdigest()


@functools.cache
def _code():
    """A digest of this package's generator, since other code draws other lines."""
    sources = [Path(__file__).with_name(name + ".py") for name in ("fonts", "ink", "lines", "text")]
    return hashlib.blake2b(b"".join(source.read_bytes() for source in sources), digest_size=8).hexdigest()


def contact_sheet(path, maker, lines: int = 40, width: int = 1500):
    """Writes an image of the first lines; every second one with its boxes."""
    rows = []
    for number in range(lines):
        image, _, boxes, _ = maker(number)
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        image = np.rot90(image) if maker.vertical else image
        image = np.ascontiguousarray(image[:, :width])
        if number % 2 and not maker.vertical:
            for x0, y0, x1, y1 in np.rint(boxes).astype(int):
                cv2.rectangle(image, (int(x0), int(y0)), (int(x1) - 1, int(y1) - 1), (0, 0, 255), 1)
        image = cv2.copyMakeBorder(image, 0, 8, 0, width - image.shape[1], cv2.BORDER_CONSTANT, value=(200, 200, 200))
        rows.append(image)
    ok, data = cv2.imencode(".png", np.vstack(rows))
    with replacing(path) as partial:
        partial.write_bytes(data.tobytes())


def main(argv=None):
    parser = Parser(prog="python -m ocr lines", description=__doc__)
    parser.add_argument("--out", metavar="DIR", help="folder to write: new, empty, or begun by the same command")
    parser.add_argument("--count", type=int, default=20_000, metavar="N", help="number of lines")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--fonts", nargs="+", default=[], metavar="FOLDER", help="folders with .ttf, .otf or .woff files "
                        "(default: matplotlib's, fontpkg packages', the system's)")
    parser.add_argument("--text", nargs="+", default=[], metavar="FILE", help="plain text to cut lines from "
                        "(default: Python's manual)")
    parser.add_argument("--charset", metavar="FILE", help="lines CODEPOINT<TAB>CHARACTER, or any text with the characters "
                                                          "(default: the letters, figures and marks of English books)")
    parser.add_argument("--height", type=int, default=HEIGHT, help="pixels; 0: as scanned, 14 to 70")
    parser.add_argument("--vertical", action="store_true", help="lines that run from top to bottom")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--sheet", metavar="FILE", help="write an image of some lines, to look at")
    args = parser.parse_args(argv)
    if not args.out and not args.sheet:
        parser.error("give --out DIR, the folder to write, or --sheet FILE")
    _check(args.count, args.seed, args.height, args.workers)
    if args.sheet:
        characters = read_charset(args.charset) if args.charset else CHARSET
        faces = find_faces(args.fonts, characters)
        contact_sheet(args.sheet, _maker(faces, characters, args.text, args.height, args.vertical, args.seed))
    if args.out:
        began = time.perf_counter()
        write_lines(args.out, args.count, args.seed, args.fonts, args.text, args.charset, args.height, args.vertical,
                    args.workers)
        print(f"{args.out}: {args.count:,} lines in {time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    run_cli(main)
