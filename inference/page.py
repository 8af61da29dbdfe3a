"""The lines of a scanned page of text, in reading order: connected components, columns by their white gaps, rows.

    for line, reading in read_page(reader, load_gray("page.png")): ...        # `python inference/read.py --page` does that

It takes dark text on a light ground, or light on dark, in straight lines that are less than 5 degrees from level, all in one
direction; several columns, headings of other sizes, and pictures beside the text. It cannot do: curved lines (the inner
margin of a thick book), tables and forms (cells of a row are one line), text over pictures, handwriting whose lines run into
each other, pages with text of several directions, more than one page in an image. Drop capitals go to the line beside their
top. numpy and OpenCV.

The steps are those of G. Nagy and S. Seth, "Hierarchical representation of optically scanned documents", 1984 (white gaps,
columns and rows in turn), on components instead of pixels, and of H. Baird, "The skew angle of printed documents", 1987 (the
angle at which the feet of the letters fall together most).
"""
from typing import NamedTuple

import cv2
import numpy as np

from .reader import LineReader, Reading

SIDE = 1800  # pixels: a larger page is searched at this size, where the letters of print are 10 to 20 pixels high
WINDOW, CONTRAST = 51, 15  # ink is darker by CONTRAST levels than the mean of the WINDOW x WINDOW pixels around it
SKEW, STEP = 5.0, 0.05  # degrees: the largest skew that is found, and how finely
# In letters: multiples of the height of most components.
SPECK, BODY, TALL, LARGE, LONG = 0.15, 0.65, 2.5, 8, 40  # below: dirt; comma; letter; capital of a heading; picture or rule
GUTTER, COLUMN = 1.5, 8  # the least width of a gap between columns, and of a column
ROWS = 3  # that a column has at least: wide gaps between words may stand below each other by chance
CORE = 0.3  # of a letter's height: cut off at both ends, it keeps to the rows where all letters are
FAINT = 0.25  # of the contrast of the blackest tenth of the ink: below it, a picture or the back of the page
DENSE = 0.2  # ink in the box of a large component: a picture with it, the frame of a page below
ROW = 3.5  # times the height of its larger letters, a row is no more: rows that run into each other, or a picture
NOBODY, PICTURE = -1, -2  # owners of ink that is no row's


class PageLine(NamedTuple):
    """A line of a page: its `image`, gray uint8 `[h,w]`, level, with the ink of other lines painted over; `to_page`, float64
    `[2,3]`, leads from its points (x, y, 1) to those of the page, whose (width, height) is `size`."""
    image: np.ndarray
    to_page: np.ndarray
    size: tuple[int, int]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) around it on the page."""
        return self.on_page((0, 0, *self.image.shape[::-1]))

    def on_page(self, box) -> tuple[float, float, float, float]:
        """The box, level with the page and within it, around a box of the line's image."""
        x0, y0, x1, y1 = box
        points = np.array([(x0, y0, 1), (x1, y0, 1), (x1, y1, 1), (x0, y1, 1)]) @ self.to_page.T
        points = np.clip(points, 0, self.size)
        return *points.min(0).tolist(), *points.max(0).tolist()


def read_page(reader: LineReader, page: np.ndarray) -> list[tuple[PageLine, Reading]]:
    """The lines of a page, gray uint8 `[H,W]`, and what they say, with the boxes of their characters on the page; lines
    without text are skipped. With a vertical reader the lines run from top to bottom, the first one on the right."""
    return read_found(reader, find_lines(page, reader.vertical))


def read_found(reader: LineReader, lines: list[PageLine]) -> list[tuple[PageLine, Reading]]:
    """`read_page` for lines that are found."""
    found = []
    for line, reading in zip(lines, reader.stream([line.image for line in lines])):
        if reading.text:
            characters = [one._replace(box=line.on_page(one.box)) for one in reading.characters]
            found.append((line, reading._replace(characters=characters)))
    return found


def find_lines(page: np.ndarray, vertical: bool = False) -> list[PageLine]:
    """The lines of a page, gray uint8 `[H,W]`, in reading order; none on a page without text.

    vertical: the lines run from top to bottom; their images too.
    """
    size, to_page = page.shape[::-1], np.eye(3)  # from the points (x, y, 1) of what is searched to those of the page
    if vertical:
        to_page = np.array([[0, -1, page.shape[1]], [1, 0, 0], [0, 0, 1.0]])
        page = np.ascontiguousarray(np.rot90(page))
    if np.median(page[::4, ::4]) < min(128, page[::4, ::4].mean()):
        page = 255 - page
    found = _Components(page)
    angle = _skew(found.boxes[found.letters], found.letter)
    if angle:
        page, back = _turned(page, angle)
        to_page, found = to_page @ back, _Components(page)
    rows = _rows(found)
    owner = np.full(len(found.boxes) + 1, NOBODY)  # of the ink with each label: the number of its row
    owner[1:][found.pictures] = PICTURE
    for number, row in enumerate(rows):
        owner[row + 1] = number
    return [PageLine(*_cut(page, found, owner, number, row, to_page, vertical), size) for number, row in enumerate(rows)]


class _Components:
    """The connected ink of a page: `boxes` int64 `[n,4]` in pixels of the searched size, which is `scale` times that of the
    page; `labels` `[h,w]` of it, 0 for no ink, i + 1 for component i. `letter`: the height of most. `letters`, `marks` and
    `talls` are the numbers of components by size (BODY ...), `pictures` bool `[n]` those of what is no text."""

    def __init__(self, page):
        self.scale = min(1.0, SIDE / max(page.shape))
        size = [max(1, round(side * self.scale)) for side in page.shape[::-1]]
        small = cv2.resize(page, size, interpolation=cv2.INTER_AREA)
        ink = cv2.adaptiveThreshold(small, 255, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY_INV, WINDOW, CONTRAST)
        _, self.labels, stats, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
        x, y, wide, high, area = stats[1:].T.astype(np.int64)
        self.boxes = np.stack([x, y, x + wide, y + high], 1)
        usual = (high >= 4) & (high <= max(small.shape) / 10)
        self.letter = letter = int(_weighted(high[usual], area[usual], 0.5, default=4))
        darker = cv2.blur(small, (WINDOW, WINDOW)).astype(np.float32) - small  # than the mean around each pixel
        contrast = np.bincount(self.labels.ravel(), darker.ravel(), len(stats))[1:] / area
        size = np.maximum(wide, high)
        self.pictures = (high > LARGE * letter) | (wide > LONG * letter)
        for number in np.flatnonzero(self.pictures & (area > DENSE * wide * high)):  # and what lies in it
            x0, y0, x1, y1 = self.boxes[number]
            self.pictures |= (self.boxes[:, :2] >= (x0, y0)).all(1) & (self.boxes[:, 2:] <= (x1, y1)).all(1)
        faint = contrast < FAINT * _weighted(contrast[usual], area[usual], 0.9, default=0)
        text = ~self.pictures & ~faint & (size >= max(2, SPECK * letter))
        self.letters = np.flatnonzero(text & (high >= BODY * letter) & (high <= TALL * letter))
        self.talls = np.flatnonzero(text & (high > TALL * letter))
        self.marks = np.flatnonzero(text & (high < BODY * letter))


def _weighted(values, weights, share, default):
    """The value that `share` of the weight does not exceed; `default` without any."""
    if not len(values):
        return default
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return values[order][np.searchsorted(total, share * total[-1])]


def _skew(boxes, letter):
    """The angle of the lines in degrees, counterclockwise positive; 0 where it moves their ends by less than 1/4 letter."""
    if len(boxes) < 8:
        return 0.0
    foot = np.stack([boxes[:, ::2].mean(1), boxes[:, 3]], 1)
    foot -= foot.mean(0)

    def sharpness(degrees):
        place = foot[:, 1] + foot[:, 0] * np.tan(np.radians(degrees))  # where the foot is once the page is level
        bins = np.bincount(np.floor((place - place.min()) / max(1, letter / 8)).astype(int))
        return float((bins ** 2).sum())

    def best(angles):
        return float(max(angles, key=lambda degrees: (sharpness(degrees), -abs(degrees))))

    angle = best(best(np.arange(-SKEW, SKEW + STEP, 5 * STEP)) + STEP * np.arange(-5, 6))
    return angle if abs(np.tan(np.radians(angle))) * np.ptp(foot[:, 0]) > letter / 4 else 0.0


def _turned(page, angle):
    """(the page turned clockwise by `angle` degrees, with all of it on white, the matrix [3,3] of points back)."""
    height, width = page.shape
    turn = np.radians(angle)
    cos, sin = np.cos(turn), np.sin(turn)
    wide, high = (int(np.ceil(abs(cos) * a + abs(sin) * b)) for a, b in ((width, height), (height, width)))
    matrix = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    matrix[:2, 2] = np.array([wide, high]) / 2 - matrix[:2, :2] @ (width / 2, height / 2)
    # OpenCV's points are at the middles of pixels, ours at their edges.
    half = np.array([[1, 0, .5], [0, 1, .5], [0, 0, 1]])
    pixels = np.linalg.inv(half) @ matrix @ half
    white = float(np.percentile(page[::4, ::4], 90))
    turned = cv2.warpAffine(page, pixels[:2], (wide, high), flags=cv2.INTER_LINEAR, borderValue=white)
    return turned, np.linalg.inv(matrix)


# ---------------------------------------------------------------- rows
def _rows(found):
    """The numbers of the components of each row, in reading order."""
    boxes, letter = found.boxes, found.letter
    bodies = found.letters
    alone = [tall for tall in found.talls if not _beside(boxes[tall], boxes[bodies], letter)]
    bodies = np.concatenate([bodies, alone]).astype(np.int64)
    rows = _with_raised([row for row in _ordered(bodies, boxes, letter) if _is_text(boxes[row])], boxes)
    if not rows:
        return []
    # From where most of a row's letters begin to where they stand: the dot of an i is beside the tails of the row above.
    around = np.array([[boxes[row, 0].min(), np.median(boxes[row, 1]), boxes[row, 2].max(), np.median(boxes[row, 3])]
                       for row in rows])
    joined = [list(row) for row in rows]
    for number in [*found.marks, *np.setdiff1d(found.talls, alone)]:
        x0, y0, x1, y1 = boxes[number]
        # A tall one is beside the row at its top; a mark is nearest to its own.
        middle = y0 + letter / 2 if y1 - y0 > TALL * letter else (y0 + y1) / 2
        away = np.maximum(np.maximum(around[:, 1] - middle, middle - around[:, 3]), 0)
        away += np.maximum(np.maximum(around[:, 0] - x1, x0 - around[:, 2]), 0) / 3
        nearest = int(away.argmin())
        if away[nearest] <= letter:
            joined[nearest].append(number)
    return [np.array(row) for row in joined]


def _beside(tall, letters, letter):
    """Whether a tall component stands beside smaller letters, as the capital of a word or a bracket does."""
    x0, y0, x1, y1 = tall
    return bool(((letters[:, 1] < y1) & (letters[:, 3] > y0) & (letters[:, 0] < x1 + 3 * letter)
                 & (letters[:, 2] > x0 - 3 * letter)).any())


def _with_raised(rows, boxes):
    """The rows; one of up to three components that lies half within the box of a longer one, such as the mark of a footnote,
    is part of that."""
    around = np.array([[*boxes[row, :2].min(0), *boxes[row, 2:].max(0)] for row in rows]).reshape(-1, 4)
    joined = dict(enumerate(rows))
    for number, (x0, y0, x1, y1) in enumerate(around):
        if len(rows[number]) <= 3:
            shared = np.minimum(around[:, 3], y1) - np.maximum(around[:, 1], y0)
            shared[(around[:, 0] > x0) | (around[:, 2] < x1) | ([len(row) <= 3 for row in rows])] = 0
            if shared.max() >= (y1 - y0) / 2:
                owner = int(shared.argmax())
                joined[owner] = np.concatenate([joined[owner], joined.pop(number)])
    return list(joined.values())


def _ordered(numbers, boxes, letter):
    """The components `numbers` as rows in reading order: the page is cut at its white gaps into stripes; stripes that share
    a gutter are columns, and each of them is cut anew."""
    if not len(numbers):
        return []
    stripes = _stripes(numbers, boxes)
    rows, at = [], 0
    while at < len(stripes):
        best, members = None, np.zeros(0, np.int64)
        for end in range(at, len(stripes)):
            members = np.concatenate([members, stripes[end]])
            around = boxes[members]
            cut = _gutter(around, letter)
            if cut is not None:
                left = around[:, 0] < cut
                if min(len(_stripes(members[side], boxes)) for side in (left, ~left)) >= ROWS:
                    best = end, members[left], members[~left]
            elif end >= at + ROWS:  # less may be rows of one column alone
                break
        if best is None:
            rows.append(stripes[at])
            at += 1
        else:
            at = best[0] + 1
            rows += _ordered(best[1], boxes, letter) + _ordered(best[2], boxes, letter)
    return rows


def _stripes(numbers, boxes):
    """`numbers` from top to bottom, in groups with a white gap between; each from left to right."""
    y0, y1 = boxes[numbers, 1], boxes[numbers, 3]
    cut = CORE * (y1 - y0)
    top, bottom = y0 + cut, y1 - cut
    order = np.argsort(top, kind="stable")
    reach = np.maximum.accumulate(bottom[order])
    begins = np.flatnonzero(top[order][1:] > reach[:-1]) + 1
    return [group[np.argsort(boxes[group, 0], kind="stable")] for group in np.split(numbers[order], begins)]


def _gutter(boxes, letter):
    """Where a white gap parts columns: the middle of the first one with enough text on both sides; None without any."""
    order = np.argsort(boxes[:, 0])
    left, reach = boxes[order, 0], np.maximum.accumulate(boxes[order, 2])
    gap = left[1:] - reach[:-1]
    fits = (gap >= GUTTER * letter) & (reach[:-1] - left[0] >= COLUMN * letter) & (reach[-1] - left[1:] >= COLUMN * letter)
    first = np.flatnonzero(fits)
    return (left[first[0] + 1] + reach[first[0]]) / 2 if len(first) else None


def _is_text(boxes):
    """Whether a row is as high as its letters let expect."""
    return np.ptp(boxes[:, 1::2]) <= ROW * np.percentile(boxes[:, 3] - boxes[:, 1], 85)


def _cut(page, found, owner, number, row, to_page, vertical):
    """The image of row `number`, of these components, and its `to_page`. It is cut close, as the lines are that
    readers are trained on."""
    x0, y0 = found.boxes[row, :2].min(0) - 1
    x1, y1 = found.boxes[row, 2:].max(0) + 1
    height, width = found.labels.shape
    x0, y0, x1, y1 = max(0, x0), max(0, y0), min(width, x1), min(height, y1)
    seen = owner[found.labels[y0:y1, x0:x1]]
    foreign = cv2.dilate(((seen != number) & (seen != NOBODY)).astype(np.uint8), np.ones((3, 3), np.uint8))
    foreign[seen == number] = 0
    left, top, right, bottom = (round(side / found.scale) for side in (x0, y0, x1, y1))
    image = page[top:bottom, left:right].copy()
    foreign = cv2.resize(foreign, image.shape[::-1], interpolation=cv2.INTER_NEAREST)
    image[foreign > 0] = np.percentile(image, 90)
    matrix = to_page @ np.array([[1, 0, left], [0, 1, top], [0, 0, 1.0]])
    if vertical:
        image = np.ascontiguousarray(np.rot90(image, -1))
        matrix = matrix @ np.array([[0, 1, 0], [-1, 0, image.shape[1]], [0, 0, 1.0]])
    return image, matrix[:2]
