"""Reading lines of text: at each column of a line an embedding, compared with one center for each character.

    reader = LineReader("reader.onnx")
    for reading in reader.read(["line.png", ...]):              # or arrays, gray or as cv2.imread gives them
        print(reading.text, reading.confidence)

    python inference/read.py IMAGE...                           # the command

numpy, OpenCV, ONNX Runtime; no torch.
"""
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .characters import is_character, load_characters
from .cli import counted
from .decode import BLANK, OVERLAP, SPACE, best_path, path_of, suppress
from .dictionary import Dictionary
from .errors import UserError, first_line
from .image import ImageError, default_threads, load_gray, map_ahead
from .lines import gray_line, resize_line, turned_back
from .model import AGAIN, not_ours, open_session, read_metadata
from .text import tidy as tidied

PAD = 64  # pixels: each line is padded to its own multiple of it, so that its text does not depend on those beside it
BATCH = 8  # lines of one width that are run together, as long as they are not wider than BATCH_WIDTH
BATCH_WIDTH = 2048  # pixels: of wider ones fewer, so that a run takes no more memory
PART = 32  # lines that a thread takes at a time
ALONE = 1 << 18  # multiplications that OpenBLAS does in one thread
MAX_WIDTH = 16_384  # pixels of a line at the network's height
MAX_HEIGHT, MAX_STRIDE = 512, 64  # pixels: no network of ours is near them
MAX_CLASSES = 200_000
LIGATURES = ("fi", "fl", "ff")  # letters that print joins, so that their boxes overlap
OUTPUTS = ["embeddings", "boxes", "centers"]


class Character(NamedTuple):
    """A character of a line: its `text`; `confidence`, the highest probability that one of its columns gives it; `box`
    (x0, y0, x1, y1) in pixels of the image; `column`, the network's, where that probability is; and `alternatives`, the most
    probable texts with the mean of their probabilities over its columns, blank excluded and the rest scaled to sum to 1.
    """
    text: str
    confidence: float
    box: tuple[float, float, float, float]
    column: int
    alternatives: list[tuple[str, float]]


class Reading(NamedTuple):
    """What was read in an image. `characters` are those of `text` without its spaces, in order. `confidence`, 0..1, is that
    of the whole line: the probability of the path that spells its text, a product over its columns. `size` is the image's
    (width, height). `error` says why an image cannot be used; its text is empty.
    """
    text: str
    confidence: float
    characters: list[Character]
    size: tuple[int, int] = (0, 0)
    error: str | None = None


class Columns(NamedTuple):
    """A line as the network sees it: `log_probs` float32 `[T,C]` over the reader's `classes`, `embeddings` float32 `[T,D]`,
    `boxes` float32 `[T,4]` (x0, y0, x1, y1) in pixels of the image, and `scale`, the columns to a pixel of the image along
    the line: the pixel at x is in column int(x * scale), in a vertical line the pixel at y."""
    log_probs: np.ndarray
    embeddings: np.ndarray
    boxes: np.ndarray
    scale: float


class ReaderModel:
    """An exported reader: `about`, its metadata, `centers` float32 `[C,D]`, and `run`. `threads` work on many lines at once,
    0: one for each core, at most 16. Raises UserError for a file that is no such model.
    """

    def __init__(self, path, threads: int = 0):
        if threads < 0:
            raise UserError(f"threads {threads}: must be at least 1, or 0 for one each core")
        self.path, self.threads = path, threads or default_threads()
        self.session = open_session(path)
        self.about = read_metadata(path, self.session, "reading")
        outputs = [(port.name, port.type) for port in self.session.get_outputs()]
        if outputs != [(name, "tensor(float)") for name in OUTPUTS] or not _is_complete(self.about):
            raise not_ours(path)
        blank = np.ones((1, 1, self.about["height"], PAD), np.float32)
        embeddings, _, self.centers = self._outputs(OUTPUTS, blank)
        if (embeddings.ndim != 3 or self.centers.shape != (len(self.about["classes"]), embeddings.shape[2])
                or not _are_units(self.centers)):
            raise UserError(f"{path}: its centers are not one unit vector for each of its {len(self.about['classes'])} "
                            f"classes; {AGAIN}")
        self.run(blank)

    def run(self, lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 `[B,1,H,W]` in [0,1], W a multiple of PAD -> embeddings float32 `[B,T,D]` of unit length, boxes float32
        `[B,T,4]` (x0, y0, x1, y1) in pixels of the line; T = W / stride. Raises UserError where the network does not run."""
        embeddings, boxes = self._outputs(OUTPUTS[:2], lines)
        shape = len(lines), lines.shape[3] // self.about["stride"]
        if (embeddings.shape != (*shape, self.centers.shape[1]) or boxes.shape != (*shape, 4) or not _are_units(embeddings)
                or not np.isfinite(boxes).all()):
            raise UserError(f"{self.path}: its outputs are not a unit vector and a box for each column; {AGAIN}")
        return embeddings, boxes

    def _outputs(self, names, lines):
        try:
            return self.session.run(names, {"img": lines})
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise UserError(f"{self.path}: the model does not run ({first_line(error)}); {AGAIN}") from None


def _is_complete(about):
    """Whether metadata says all that reading needs of it, in bounds."""
    classes = about.get("classes")
    return (about.get("height") == about["image_size"] and 8 <= about["image_size"] <= MAX_HEIGHT
            and type(about.get("stride")) is int and 1 <= about["stride"] <= MAX_STRIDE and PAD % about["stride"] == 0
            and type(about.get("scale")) in (int, float) and 0 < about["scale"] <= 1000
            and type(about.get("vertical")) is bool
            and isinstance(classes, list) and 2 < len(classes) <= MAX_CLASSES and classes[:2] == ["", " "]
            and all(map(is_character, classes[2:])) and len(set(classes)) == len(classes))


def _are_units(vectors):
    """Whether all vectors `[..., D]` have unit length; false for what is not finite."""
    return bool(np.abs(np.einsum("...d,...d->...", vectors, vectors) - 1).max() < 2e-3)


class LineReader:
    """Reads lines of text.

    model: the path of an exported reader, or anything with its `about`, `centers` and `run`, and maybe `threads` (1: it is
    never called from two threads at once).
    characters: a file of registered characters (`characters.py`), read beside the model's own.
    dictionary: a `Dictionary`, or the path of one: words that are not in it may be replaced by one that is.
    without: characters that do not occur: their classes are removed, and their probability goes to the others.
    vertical: the lines run from top to bottom; None: as the model was trained.
    tidy: spaces as in English print, and two ' as one " (`text.tidy`).
    top_k: number of `alternatives` of a character. overlap: see `decode.suppress`; 1 or more removes nothing.
    threads: as for `ReaderModel`. progress: show the progress on stderr if that is a terminal.

    `classes` are the texts that it knows, the first two blank and the space; `registered` those of `characters`; `warnings`
    are lines about what has no effect. Raises UserError for mistakes of the user.
    """

    def __init__(self, model, *, characters=None, dictionary=None, without: str = "", vertical: bool | None = None,
                 tidy: bool = True, top_k: int = 3, overlap: float = OVERLAP, threads: int = 0, progress: bool = False):
        if top_k < 1:
            raise UserError(f"top-k {top_k}: must be at least 1")
        self.model = ReaderModel(model, threads) if isinstance(model, (str, os.PathLike)) else model
        self.about = self.model.about
        self.vertical: bool = self.about["vertical"] if vertical is None else vertical
        self.tidy, self.top_k, self.overlap, self.progress = tidy, top_k, overlap, progress
        texts, centers = list(self.about["classes"]), self.model.centers
        offset = np.zeros(len(texts), np.float32)
        self.registered: list[str] = []
        if characters is not None:
            self.registered, more, offsets = load_characters(characters, self.model.centers)
            texts, centers, offset = texts + self.registered, np.concatenate([centers, more]), np.append(offset, offsets)
        offset[[row for row, text in enumerate(texts) if set(text) & set(without)]] = np.inf
        first: dict[str, int] = {}  # text: its first center; several may share a text
        for row, text in enumerate(texts):
            first.setdefault(text, row)
        missing = "".join(sorted(set(without) - first.keys()))
        self.warnings: list[str] = [f"without {missing}: the model has no such characters"] if missing else []
        self.classes: list[str] = list(first)
        self._number = {text: number for number, text in enumerate(self.classes)}
        self._first = list(first.values())
        self._more = [(row, first[text]) for row, text in enumerate(texts) if first[text] < row]
        self._centers = np.ascontiguousarray(centers.T) * np.float32(self.about["scale"])                # [D,C]
        self._offset = offset * np.float32(self.about["scale"])
        self._ligatures = {(self._number[a], self._number[b]) for a, b in LIGATURES if {a, b} <= first.keys()}
        self.dictionary = Dictionary(dictionary) if isinstance(dictionary, (str, os.PathLike)) else dictionary

    def ids(self, text: str) -> list[int] | None:
        """The classes of the characters of `text`; None where one of them is not among `classes`."""
        return [self._number[one] for one in text] if set(text) <= set(self._number) else None

    def read(self, images: Sequence) -> list[Reading]:
        """Paths, or arrays gray or as `cv2.imread` gives them -> their text. One that cannot be used has an `error`."""
        return list(self.stream(images))

    def stream(self, images: Sequence) -> Iterator[Reading]:
        """What `read` returns, in order, each as soon as it is known, in bounded memory."""
        return self._each(images, self._reading, lambda error: Reading("", 0.0, [], error=str(error)))

    def columns(self, images: Sequence) -> Iterator[Columns]:
        """The same images as the network sees them. Raises ImageError for one that cannot be used."""
        for image, columns in zip(images, self._each(images, lambda columns, size: columns, lambda error: error)):
            if isinstance(columns, ImageError):
                name = "image" if isinstance(image, np.ndarray) else image
                raise ImageError(f"{name}: {columns}")
            yield columns

    def _each(self, images, use, refuse):
        """`use(columns, size)` or `refuse(error)` of each image, in order. A thread does all of a part by itself, from the
        files to the text, so that there is nothing to hand over and nothing to wait for."""
        def work(start):
            lines, results = {}, {}  # position: line; position: result
            for position in range(start, min(start + part, len(images))):
                try:
                    lines[position] = self._prepared(images[position])
                except ImageError as error:
                    results[position] = refuse(error)
            failed = dict.fromkeys(results, "")
            for group in _grouped({position: line.pixels.shape[1] for position, line in lines.items()}):
                for position, columns in zip(group, self._run([lines[position] for position in group])):
                    results[position] = use(columns, lines[position].size)
            return _Part(sorted(lines), failed, [results[position] for position in sorted(results)])

        threads = getattr(self.model, "threads", 1)
        part = max(1, min(PART, -(-len(images) // threads)))  # a few images are shared out as well
        parts = map_ahead(work, range(0, len(images), part), ahead=2 * threads, threads=threads)
        for done in counted(parts, len(images), "reading", self.progress):
            yield from done.results

    def _prepared(self, image):
        image = load_gray(image)
        line = gray_line(image, self.vertical)
        if line.shape[1] * self.about["height"] > MAX_WIDTH * line.shape[0]:
            raise ImageError(f"{image.shape[1]}x{image.shape[0]} pixels: more than {MAX_WIDTH // self.about['height']} "
                             "times as long as high, which is no line of text")
        pixels, _ = resize_line(line, self.about["height"])
        sample = pixels[::2, ::4]
        ground = np.median(sample)  # more of a line is ground than ink
        if ground < 128 and ground <= sample.mean():  # dark, and darker than the letters; on dark paper they are darker
            pixels = 255 - pixels
        return _Line(pixels, line.shape, image.shape[::-1])

    def _run(self, lines):
        """The columns of lines whose padded width is the same."""
        stride, height = self.about["stride"], self.about["height"]
        batch = np.ones((len(lines), 1, height, _padded(lines[0].pixels.shape[1])), np.float32)
        for row, line in zip(batch, lines):
            np.divide(line.pixels, np.float32(255), out=row[0, :, :line.pixels.shape[1]])
        for line, embeddings, boxes in zip(lines, *self.model.run(batch)):
            width = line.pixels.shape[1]
            count = -(-width // stride)                                           # T: those of the padding are dropped
            (high, wide), embeddings = line.shape, embeddings[:count]
            boxes = boxes[:count] * np.float32([wide / width, high / height] * 2)
            boxes = np.clip(boxes, 0, np.float32([wide, high] * 2))
            if self.vertical:
                boxes = turned_back(boxes, high)
            yield Columns(self._log_probs(embeddings), embeddings, boxes, width / wide / stride)

    def _log_probs(self, embeddings):
        logits = _product(embeddings, self._centers)                              # [T,C]
        logits -= self._offset
        logits -= logits.max(1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        for row, first in self._more:
            logits[:, first] = np.logaddexp(logits[:, first], logits[:, row])
        return logits[:, self._first] if self._more else logits

    def _reading(self, columns, size):
        log_probs, boxes = columns.log_probs, columns.boxes
        runs = suppress(best_path(log_probs), log_probs, boxes[:, 1::2] if self.vertical else boxes[:, ::2], self._ligatures,
                        self.overlap)
        if self.dictionary is not None:
            runs = self.dictionary.correct(runs, log_probs, self.classes)
        confidence = float(np.exp(log_probs[np.arange(len(log_probs)), path_of(runs, len(log_probs))].sum()))
        text = " ".join("".join([self.classes[number] for number in runs.ids]).split())
        characters = self._characters(runs.take(np.flatnonzero(runs.ids != SPACE)), columns)
        if self.tidy:
            text, characters = tidied(text), with_double_quotes(characters)
        return Reading(text, confidence, characters, size)

    def _characters(self, runs, columns):
        if not len(runs.ids):
            return []
        log_probs = columns.log_probs
        length = runs.last - runs.first + 1
        start = np.cumsum(length) - length
        own = np.arange(length.sum()) + np.repeat(runs.first - start, length)     # the columns of all runs
        likely = np.add.reduceat(np.exp(log_probs[own]), start)                   # [n,C]
        likely[:, BLANK] = 0
        likely /= np.maximum(likely.sum(1, keepdims=True), np.float32(1e-30))
        k = min(self.top_k, likely.shape[1] - 1)
        top = np.argpartition(likely, -k)[:, -k:]
        top = np.take_along_axis(top, np.argsort(-np.take_along_axis(likely, top, 1), 1, kind="stable"), 1)
        chances = np.take_along_axis(likely, top, 1)
        confidence = np.exp(log_probs[runs.peak, runs.ids])
        fields = (runs.ids, confidence, columns.boxes[runs.peak], runs.peak, top, chances)
        return [Character(self.classes[number], sure, tuple(box), column,
                          [(self.classes[other], chance) for other, chance in zip(others, chances)])
                for number, sure, box, column, others, chances in zip(*(field.tolist() for field in fields))]


class _Line(NamedTuple):
    """A line for the network, gray uint8 `[height,W]`; the `shape` it had before it was resized; `size` of its image."""
    pixels: np.ndarray
    shape: tuple[int, int]
    size: tuple[int, int]


class _Part(NamedTuple):
    """Of a part of the images those that were read, those that were not, as `cli.counted` takes them, and all results."""
    positions: list[int]
    reasons: dict[int, str]
    results: list


def _product(rows, matrix):
    """rows `[T,D]` @ matrix `[D,C]`, by so few rows at a time that OpenBLAS does it without threads of its own: ours keep
    the cores busy, and on two busy cores its threads, which wait for each other, take 3 ms for what takes 0.1 ms alone."""
    few = max(1, ALONE // matrix.size)
    whole = len(rows) // few * few
    result = np.empty((len(rows), matrix.shape[1]), np.float32)
    np.matmul(rows[:whole].reshape(-1, few, rows.shape[1]), matrix, out=result[:whole].reshape(-1, few, matrix.shape[1]))
    np.matmul(rows[whole:], matrix, out=result[whole:])
    return result


def _padded(width):
    return -(-width // PAD) * PAD


def _grouped(widths):
    """Groups of positions whose padded widths are the same, of at most BATCH. widths: {position: width}"""
    by_width = {}
    for position, width in widths.items():
        by_width.setdefault(_padded(width), []).append(position)
    groups = []
    for width, group in by_width.items():
        most = max(1, min(BATCH, BATCH * BATCH_WIDTH // width))
        groups += [group[at:at + most] for at in range(0, len(group), most)]
    return groups


def with_double_quotes(characters: list[Character]) -> list[Character]:
    """Two ' side by side as one ", as `text.tidy` has it."""
    joined = []
    for one in characters:
        if one.text == "'" and joined and joined[-1].text == "'":
            other = joined.pop()
            (x0, y0, x1, y1), (u0, v0, u1, v1) = other.box, one.box
            sure = min(one.confidence, other.confidence)
            one = Character('"', sure, (min(x0, u0), min(y0, v0), max(x1, u1), max(y1, v1)), other.column, [('"', sure)])
        joined.append(one)
    return joined
