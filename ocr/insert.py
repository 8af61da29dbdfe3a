"""Synthetic lines that contain a given character: set in fonts that have it, or with images of it pasted in."""
from collections.abc import Sequence

import cv2
import numpy as np

from inference.errors import UserError
from inference.lines import resize_line
from ocr.lines import LineMaker, Sample
from ocr.text import TextLine, Texts, fold

SHARE = 0.3     # of the words of a line get a character


class Mixed:
    """Lines of running text with some of `characters` put in, as `LineMaker` takes its texts: a small letter in place of
    another one, a capital at the start of a word, a digit in a number, anything else beside a word."""

    def __init__(self, texts: Texts, characters: str):
        self.texts, self.characters, self.charset = texts, characters, texts.charset + characters

    def line(self, r: np.random.Generator) -> TextLine:
        text, heading = self.texts.line(r)
        words = text.split(" ")
        for i in np.flatnonzero(r.random(len(words)) < SHARE):
            words[i] = self._with(words[i], self.characters[int(r.integers(len(self.characters)))], r)
        return TextLine(" ".join(words), heading)

    def _with(self, word, character, r):
        small = [i for i, letter in enumerate(word) if letter.islower()]
        if character.isdigit():
            word = "".join(r.choice([*"0123456789"], int(r.integers(1, 4))))
            word = "".join(digit for digit in word if digit in self.texts.charset)
            at, end = (int(r.integers(len(word) + 1)),) * 2
        elif character.isupper() and small:
            at, end = 0, 1
        elif character.isalpha() and small:
            at = small[int(r.integers(len(small)))]
            end = at + 1
        else:
            at = end = len(word) * int(r.integers(2))
        return word[:at] + character + word[end:]


def rendered(character: str, maker: LineMaker, renders: int, first: int = 0) -> list[Sample]:
    """Lines of `maker`, from number `first` on, that have a character in them, at least `renders` of it where it comes often
    enough. Raises UserError where it does not come at all."""
    lines, count = [], 0
    for number in range(first, first + 10 * renders):
        sample = maker(number)
        if here := sum(fold(letter) == character for letter in sample.text):
            lines.append(sample)
            count += here
        if count >= renders:
            return lines
    if not lines:
        raise UserError(f"{character}: does not come in {10 * renders} lines; give --fonts that have it, or --crops")
    return lines


def pasted(character: str, crops: Sequence[np.ndarray], maker: LineMaker, renders: int, first: int = 0) -> list[Sample]:
    """Lines of `maker`, from number `first` on, with an image of a character pasted into each, the images in turn."""
    return [paste(maker(number), character, crops[number % len(crops)], np.random.default_rng((maker.seed, number)),
                  maker.vertical) for number in range(first, first + renders)]


def paste(sample: Sample, character: str, crop: np.ndarray, r: np.random.Generator, vertical: bool = False) -> Sample:
    """A line with an image uint8 `[h,w]` of a character as high as a line put between two of its characters, a little
    stretched and moved. The text of the result has no spaces."""
    image, boxes, letters = sample.image, sample.boxes, list(sample.text.replace(" ", ""))
    if vertical:
        image, boxes, crop = image.T, boxes[:, [1, 0, 3, 2]], crop.T
    height, ground = len(image), int(np.median(image))
    crop, _ = resize_line(crop, height)
    own = np.median(np.concatenate([crop[0], crop[-1], crop[:, 0], crop[:, -1]]))
    x, y = np.exp(r.normal(0, 0.04, 2))
    move = np.float32([[x, 0, 0], [0, y, (1 - y) * height / 2 + r.normal(0, 0.015) * height]])
    size = max(1, round(crop.shape[1] * x)), height
    crop = cv2.warpAffine(crop, move, size, borderMode=cv2.BORDER_CONSTANT, borderValue=own)
    ink = np.abs(crop - own) > 0.4 * max(1, np.abs(crop - own).max())
    columns, rows = np.flatnonzero(ink.any(0)), np.flatnonzero(ink.any(1))
    crop = np.clip(crop[:, columns[0]:columns[-1] + 1] + (ground - own), 0, 255).astype(np.uint8)
    # Between two characters with an upright cut between them, or at an end.
    free = np.maximum.accumulate(boxes[:-1, 2]) <= np.minimum.accumulate(boxes[:0:-1, 0])[::-1]
    at = int(r.choice([0, *(np.flatnonzero(free) + 1), len(boxes)]))
    edges = [0, *(boxes[:-1, 2] + boxes[1:, 0]) / 2, image.shape[1]]
    cut, margins = round(edges[at]), r.integers(1, max(2, height // 10), 2)
    gap = [np.full((height, margin), ground, np.uint8) for margin in margins]
    image = np.concatenate([image[:, :cut], gap[0], crop, gap[1], image[:, cut:]], 1)
    moved = boxes + np.float32([1, 0, 1, 0]) * (crop.shape[1] + margins.sum()) * (np.arange(len(boxes)) >= at)[:, None]
    left = cut + margins[0]
    boxes = np.insert(moved, at, [left, rows[0], left + crop.shape[1], rows[-1] + 1], 0).astype(np.float32)
    letters.insert(at, character)
    if vertical:
        image, boxes = image.T, boxes[:, [1, 0, 3, 2]]
    return Sample(np.ascontiguousarray(image), "".join(letters), boxes, sample.words)
