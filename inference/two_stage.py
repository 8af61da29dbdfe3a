"""Reading lines as EffOCR does, in two stages: a localizer finds characters and words, a recognizer names each crop by its
nearest reference glyph (Bryan, Carlson, Arora and Dell 2023, https://arxiv.org/abs/2310.10050).

    reader = TwoStageReader("localizer.onnx", "recognizer.onnx", "index.npz")
    text = reader.read(["line.png"])[0].text

A new character or word needs a reference in the index, and no training. localizer: a run of configs/lines_localizer;
recognizer: of configs/glyphs, or configs/glyphs_classifier, which needs no index; index: what `python -m eval --references`
writes. The same `Reading` as `reader.LineReader` gives. numpy, OpenCV and ONNX Runtime.
"""
import json
import os
from collections.abc import Iterator, Sequence

import numpy as np

from .boxes import decode
from .crops import KINDS, class_text, crop
from .errors import UserError, first_line
from .glyph_index import WRITE, probe_of, read_index
from .image import ImageError, default_threads, load_image, map_ahead, resize
from .lines import gray_line, turned_back
from .model import AGAIN, METADATA_KEY, Model, load_model, not_ours, open_session, read_metadata
from .reader import Character, Reading, with_double_quotes
from .text import normalize
from .text import tidy as tidied

CHAR, WORD = "char", "word"  # classes of the localizer
THRESHOLD = 0.35   # EffOCR's, of the localizer's score
WORD_COSINE = 0.83  # EffOCR's: a word is named as a whole from this cosine with a reference on
SCALE = 24.0       # of cosines, as logits: what probabilities of alternatives are made of
RIVALS = 5         # classes beyond those that are told, that a probability is measured against
MAX_STEPS = 512    # widths of a line in steps of the localizer; a longer one is squeezed


class Localizer:
    """`find(line)`: the characters and words in a line. path: an exported localizer of variable width, whose classes are
    `char` and, maybe, `word`. threshold: of scores; None: the model's own, or THRESHOLD. Raises UserError."""

    def __init__(self, path, threshold: float | None = None):
        self.path, self.session = path, open_session(path)
        try:
            about = json.loads(self.session.get_modelmeta().custom_metadata_map[METADATA_KEY])
            self.height, self.step, self.classes = about["image_size"], about["width_step"], about["classes"]
            self.strides, self.overlap = about["strides"], about["overlap"]
            (port,), numbers = self.session.get_inputs(), (self.height, self.step, *self.strides)
            ours = (about["task"] == "localizer" and CHAR in self.classes and 0 <= self.overlap <= 1
                    and all(type(number) is int and 1 <= number <= 4096 for number in numbers)
                    and (port.name, port.type, port.shape[1:3]) == ("img", "tensor(float)", [3, self.height])
                    and len(self.session.get_outputs()) == 2 * len(self.strides))
            self.threshold = THRESHOLD if threshold is None else threshold
        except (LookupError, ValueError, TypeError, AttributeError, RecursionError):  # of JSON of any other form
            ours = False
        if not ours:
            raise UserError(f"{path}: not a localizer of lines; train one: python train_v2.py configs/lines_localizer")

    def find(self, line: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """gray uint8 `[h,w]`, from left to right -> characters float64 `[n,4]`, their scores `[n]`, and words `[m,4]`, in
        pixels of the line, each from left to right."""
        height, width = line.shape
        shown = resize(line, min(max(1, round(width * self.height / height)), MAX_STEPS * self.step), self.height)
        padded = np.full((self.height, max(2, -(-shown.shape[1] // self.step)) * self.step), 255, np.uint8)
        padded[:, :shown.shape[1]] = shown
        image = np.broadcast_to(padded.astype(np.float32) / 255, (1, 3, *padded.shape))
        try:
            outputs = self.session.run(None, {"img": np.ascontiguousarray(image)})
            found = decode([out[0] for out in outputs], self.strides, self.threshold, self.overlap)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class; decode's tell of wrong shapes
            raise UserError(f"{self.path}: the localizer does not run ({first_line(error)}); {AGAIN}") from None
        scale = np.array([shown.shape[1] / width, self.height / height] * 2)
        boxes = np.clip(found.boxes / scale, 0, [width, height] * 2)
        usable = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
        order = np.argsort(boxes[:, 0] + boxes[:, 2], kind="stable")
        kind = [order[usable[order] & (found.classes[order] == number)] for number in
                (self.classes.index(CHAR), self.classes.index(WORD) if WORD in self.classes else -1)]
        return boxes[kind[0]], found.scores[kind[0]], boxes[kind[1]]


class Nearest:
    """A recognizer of crops `[N,size,size,3]` BGR: an embedding network, and the references in an index."""

    def __init__(self, model: Model, index):
        self.size, self.crop, self._model = model.image_size, model.metadata.get("crop", "tight"), model
        self._index = read_index(index, probe_of(model.embed, self.size))
        self.classes = self._index.classes

    def name(self, crops: np.ndarray, k: int) -> tuple[list[list[str]], np.ndarray]:
        """The K = min(k, classes) best texts of each crop, best first, and their cosines `[N,K]`."""
        return self._index.nearest(self._model.embed(np.ascontiguousarray(crops[..., ::-1])), k)


class Classifier:
    """A recognizer of crops that knows its classes by itself: a run of task=classification over folders of glyphs. Its
    scores are log probabilities over SCALE, so that what holds for cosines holds for them."""

    def __init__(self, path, session):
        metadata = read_metadata(path, session, "classification")
        self.path, self.size, self.crop, self._session = path, metadata["image_size"], metadata.get("crop", "line"), session
        try:
            self.classes = [class_text(name) for name in metadata["classes"]]
        except (LookupError, ValueError, TypeError, AttributeError):
            raise UserError(f"{path}: its classes are not glyphs; train it on folders that are named by code points "
                            "(python -m ocr crops)") from None

    def name(self, crops: np.ndarray, k: int) -> tuple[list[list[str]], np.ndarray]:
        """As `Nearest.name`."""
        image = np.divide(crops[..., ::-1].transpose(0, 3, 1, 2), np.float32(255), dtype=np.float32, order="C")
        try:
            found, = self._session.run(["probabilities"], {"img": image})
        except Exception as error:
            raise UserError(f"{self.path}: the model does not run ({first_line(error)}); {AGAIN}") from None
        if found.shape != (len(crops), len(self.classes)):
            raise not_ours(self.path)
        best = np.argsort(-found, axis=1, kind="stable")[:, :k]
        scores = np.log(np.maximum(np.take_along_axis(found, best, 1), 1e-12)) / SCALE
        return [[self.classes[c] for c in row] for row in best], scores


def load_recognizer(path, index=None) -> Nearest | Classifier:
    """What is in an exported model: an embedding network, which needs an index, or a classifier. Raises UserError."""
    session = open_session(path)
    try:
        classifies = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])["task"] == "classification"
    except (LookupError, ValueError, TypeError, RecursionError):
        classifies = False
    if classifies:
        return Classifier(path, session)
    if index is None:
        raise UserError(f"{path}: names a glyph by the nearest one in an index; give --index INDEX.npz ({WRITE})")
    return Nearest(load_model(path, threads=1), index)


class TwoStageReader:
    """`read(images)` is the text of lines.

    localizer, recognizer: paths of exported models, or objects with `find`, and with `size`, `crop`, `classes`, `name`.
    index: the references (`glyph_index`). words: an index of whole words, by which a word is read first (WORD_COSINE), or a
    recognizer with `name`; characters where no word is near enough. threshold: of the localizer's scores. crop: how crops
    are cut (`crops.KINDS`); None: as the recognizer says. vertical: lines run from top to bottom. tidy: spaces as print has
    them. top_k: number of `alternatives` of a character; their probabilities are a softmax of SCALE times the cosines of the
    best few. A character's confidence is that times the localizer's score, a line's the product over its characters.
    threads: of many lines at once, 0: one for each core, at most 16. `classes` are the characters that it knows, as
    `text.normalize` has them. Raises UserError.
    """

    def __init__(self, localizer, recognizer, index=None, words=None, *, threshold: float | None = None,
                 crop: str | None = None, vertical: bool = False, tidy: bool = True, top_k: int = 3, threads: int = 0):
        if top_k < 1:
            raise UserError(f"top-k {top_k}: must be at least 1")
        if threads < 0:
            raise UserError(f"threads {threads}: must be at least 1, or 0 for one each core")
        self._localizer = Localizer(localizer, threshold) if _is_path(localizer) else localizer
        self._recognizer = load_recognizer(recognizer, index) if _is_path(recognizer) else recognizer
        self._words = load_recognizer(recognizer, words) if _is_path(words) else words
        self._kind = crop or self._recognizer.crop
        if self._kind not in KINDS:
            raise UserError(f"crop {self._kind}: choose one of {', '.join(KINDS)}")
        self.vertical, self.tidy, self.top_k = vertical, tidy, top_k
        self._threads, self.warnings = threads or default_threads(), []
        self.classes = sorted({" ", *"".join(map(normalize, self._recognizer.classes))})

    def read(self, images: Sequence) -> list[Reading]:
        """Paths, or arrays gray or as `cv2.imread` gives them -> their text. Each line is read by itself, so that its text
        depends neither on the others nor on the threads. One in which nothing is found has the text ""; one that cannot be
        used has an `error`."""
        return list(self.stream(images))

    def stream(self, images: Sequence) -> Iterator[Reading]:
        """What `read` returns, in order, each as soon as it is known."""
        return map_ahead(self._read, images, 2 * self._threads, self._threads)

    def _read(self, image) -> Reading:
        try:
            image = load_image(image)
        except ImageError as error:
            return Reading("", 0.0, [], error=str(error))
        height, width = image.shape[:2]
        boxes, found, words = self._localizer.find(gray_line(image, self.vertical))
        if not len(boxes):
            return Reading("", 0.0, [], (width, height))
        in_image, words_in_image = boxes, words
        if self.vertical:
            in_image, words_in_image = (turned_back(part, width) for part in (boxes, words))
        texts, cosines = self._recognizer.name(self._crops(image, in_image, self._recognizer.size), self.top_k + RIVALS)
        weights = np.exp(SCALE * (cosines - cosines[:, :1]))                      # [n,K]
        shares = weights / weights.sum(1, keepdims=True)
        column = boxes[:, ::2].mean(1)
        characters = [Character(names[0], float(share[0] * score), tuple(box.tolist()), int(x),
                                list(zip(names, share.tolist()))[:self.top_k])
                      for names, share, score, box, x in zip(texts, shares, found, in_image, column)]
        owner = _owners(column, words)
        for at, name, cosine in self._whole_words(image, words_in_image, owner):
            members = [i for i, word in enumerate(owner) if word == at]
            if len(name) == len(members):
                for letter, i in zip(name, members):
                    characters[i] = characters[i]._replace(text=letter, confidence=max(characters[i].confidence, cosine))
            else:  # the localizer has found more or fewer letters than there are: the word stands as one
                characters[members[0]] = Character(name, cosine, tuple(words_in_image[at].tolist()),
                                                   int(words[at, ::2].mean()), [(name, cosine)])
                for i in members[1:]:
                    characters[i] = characters[i]._replace(text="")
        text = _with_spaces([character.text for character in characters], column, words)
        characters = [character for character in characters if character.text]
        confidence = float(np.prod([character.confidence for character in characters]))
        if self.tidy:
            text, characters = tidied(text), with_double_quotes(characters)
        return Reading(text, confidence, characters, (width, height))

    def _crops(self, image, boxes, size) -> np.ndarray:
        return np.stack([crop(image, box, self._kind, size, vertical=self.vertical) for box in boxes])

    def _whole_words(self, image, words, owner):
        """(place in `words`, text, cosine) of the words that are read as a whole."""
        present = [at for at in range(len(words)) if at in owner]
        if self._words is None or not present:
            return []
        texts, cosines = self._words.name(self._crops(image, words[present], self._words.size), 1)
        return [(at, names[0], min(1.0, float(cosine[0]))) for at, names, cosine in zip(present, texts, cosines)
                if cosine[0] >= WORD_COSINE]


def _is_path(given) -> bool:
    return isinstance(given, (str, os.PathLike))


def _owners(column: np.ndarray, words: np.ndarray) -> list[int]:
    """The place in `words` of the word that each character's middle lies in, -1 for none; of several words the one whose
    middle is nearest."""
    owners = []
    for x in column:
        around = np.flatnonzero((words[:, 0] <= x) & (x < words[:, 2]))
        owners.append(int(around[np.abs(words[around, ::2].mean(1) - x).argmin()]) if len(around) else -1)
    return owners


def _with_spaces(texts: list[str], column: np.ndarray, words: np.ndarray) -> str:
    """The text: a space stands before the first character whose middle is beyond a word's left edge; without any word there
    are no spaces. column: the middles, ascending."""
    begins = set(np.searchsorted(column, words[:, 0]).tolist())
    return "".join(" " * (i in begins) + text for i, text in enumerate(texts)).strip()
