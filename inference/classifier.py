"""Classify images by what they show and by the text in them: exported networks of both, and weights that fuse them.

    classifier = AdvertClassifier("OUT/classifier")                     # or one ONNX file of either task
    label, probability = classifier("advert.jpg")
    for result in classifier.stream(paths, top_k=3): ...                # many: on all cores, in order, in bounded memory

    python inference/classify.py --classifier OUT/classifier IMAGE...   # the command

The folder is one of `python -m adverts classifier`: FUSION, and beside it the networks that it weighs, of each kind in its
order: image.onnx, image_2.onnx, ...; text.onnx, text_2.onnx, ... numpy, OpenCV, ONNX Runtime; no torch. To read the text
takes the package rapidocr, an encoder of Hugging Face the package tokenizers.
"""
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import cv2
import numpy as np

from .cli import counted
from .errors import UserError, first_line, printable
from .fusion import combine, log_softmax, read_fusion
from .image import ImageError, default_threads, fit_square, load_image, map_ahead, resize
from .model import AGAIN, not_ours, open_session, read_metadata, task_of
from .ngrams import MAX_BUCKETS, MAX_HIGH, Ngrams, document
from .segments import DEFAULT_SIDE, MAX_SIDE, Segment, make_reader
from .show import BLACK, GAP, GREEN, RED, TEXT, write_text

FUSION = "fusion.json"
ANEW = "write the folder again with python -m adverts classifier"
MAX_CLASSES = 100_000
MAX_TOKENS = 1 << 14
LEAST, SHOWN = 400, 900  # pixels: the sides of a drawing, at least (where the class must fit below) and at most


class _Network:
    """An exported classifier: `classes`, names in the order of its logits. Raises UserError for a file of another kind, and
    where the network does not run. It may be called from several threads."""
    task: str

    def __init__(self, path, session):
        self.path, self._session = path, session
        self.about: dict = read_metadata(path, session, self.task)
        self.classes: list[str] = self.about.get("classes")
        if not _are_classes(self.classes):
            raise not_ours(path)
        if ("logits", "tensor(float)") not in [(port.name, port.type) for port in session.get_outputs()]:
            raise UserError(f"{path}: has no output logits, which fusion needs; {AGAIN}")

    def _run(self, encode, given):  # encode(given): the inputs for one image -> float64 (C,)
        try:
            logits, = self._session.run(["logits"], encode(given))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # ONNX Runtime's have no public base class, and a panic of tokenizers is no Exception
            raise UserError(f"{self.path}: the model does not run ({first_line(error)}); {AGAIN}") from None
        if logits.shape != (1, len(self.classes)) or not np.isfinite(logits).all():
            raise UserError(f"{self.path}: its logits are not a finite number for each of its {len(self.classes)} classes; "
                            f"{AGAIN}")
        return logits[0].astype(np.float64)


def _are_classes(names):
    return (isinstance(names, list) and 1 < len(names) <= MAX_CLASSES
            and all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names))


class ImageNetwork(_Network):
    """A run of task=classification. `image_size` S; `fit`, see `image.fit_square`."""
    task = "classification"

    def __init__(self, path, session):
        super().__init__(path, session)
        self.image_size, self.fit = self.about["image_size"], self.about.get("fit", "squash")
        self.logits(np.full((64, 64, 3), 128, np.uint8))

    def logits(self, image, text=None) -> np.ndarray:
        """A path, or an array as `cv2.imread` returns it -> float64 `[C]`. Raises ImageError."""
        # Decoded as in training, where a large JPEG comes at a fraction of its size.
        return self._run(_pixels, fit_square(load_image(image, self.image_size), self.image_size, self.fit))


def _pixels(square):
    batch = square[None, :, :, ::-1].transpose(0, 3, 1, 2)  # (1,3,S,S)
    return {"img": np.divide(batch, np.float32(255), dtype=np.float32, order="C")}


class TextNetwork(_Network):
    """A run of task=text_classification: over character n-grams, or an encoder of Hugging Face with its tokenizer."""
    task = "text_classification"

    def __init__(self, path, session):
        super().__init__(path, session)
        inputs = [(port.name, port.type) for port in session.get_inputs()]
        encoder = {"rows": _ngrams, "input_ids": _tokenizer}.get(inputs[0][0] if inputs else None)
        if encoder is None:
            raise not_ours(path)
        self._encode = encoder(path, self.about, inputs)
        self.logits(None, "a")

    def logits(self, image, text: str | None) -> np.ndarray | None:
        """The text of an image as `ngrams.document` gives it -> float64 `[C]`; None without text."""
        return self._run(self._encode, text) if text else None


def _ngrams(path, about, inputs):
    """text -> inputs of a network over n-grams."""
    try:
        ngrams = Ngrams(**{name: about["ngrams"][name] for name in Ngrams._fields})
        ours = (inputs == [("rows", "tensor(int64)"), ("weights", "tensor(float)")]
                and all(type(number) is int for number in ngrams)
                and 1 <= ngrams.low <= ngrams.high <= MAX_HIGH and 1 <= ngrams.buckets <= MAX_BUCKETS)
    except (LookupError, TypeError):
        ours = False
    if not ours:
        raise not_ours(path)

    def encode(text):
        rows, weights = ngrams.batch([text])
        return {"rows": rows, "weights": weights}
    return encode


def _tokenizer(path, about, inputs):
    """text -> inputs of an encoder of Hugging Face."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(f"{path}: reads words as a tokenizer of Hugging Face splits them: pip install tokenizers") from None
    names, most = [name for name, _ in inputs], about.get("max_tokens")
    if (not {"input_ids", "attention_mask"} <= set(names) <= {"input_ids", "attention_mask", "token_type_ids"}
            or type(most) is not int or not 4 <= most <= MAX_TOKENS):
        raise not_ours(path)
    try:
        tokenizer = Tokenizer.from_str(about["tokenizer"])
        tokenizer.no_padding()
        tokenizer.enable_truncation(most)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of its Rust is no Exception
        raise UserError(f"{path}: its tokenizer cannot be used ({first_line(error)}); {AGAIN}") from None

    def encode(text):
        words = tokenizer.encode(text)
        rows = {"input_ids": words.ids, "attention_mask": words.attention_mask, "token_type_ids": words.type_ids}
        return {name: np.array([rows[name] or [0]], np.int64) for name in names}  # without any word: as in training
    return encode


NETWORKS = {"image": ImageNetwork, "text": TextNetwork}  # by the kind of a model in a fusion


def load_network(path) -> ImageNetwork | TextNetwork:
    """An ONNX file that `onnx_export.py` wrote of a run of either task. Raises UserError."""
    session = open_session(path)
    text = task_of(session) == TextNetwork.task
    return (TextNetwork if text else ImageNetwork)(path, session)


def file_names(kinds: Sequence[str]) -> list[str]:
    """The names, without suffix, of the networks of a fusion in its folder. kinds: "image" or "text" of each.

    The names depend on nothing else that a file says, so that no file of another folder is opened.
    """
    return [kind if (number := kinds[:place].count(kind) + 1) == 1 else f"{kind}_{number}"
            for place, kind in enumerate(kinds)]


def load_folder(folder) -> tuple[dict[str, ImageNetwork | TextNetwork], dict]:
    """({name of the file: network}, in the order of the fusion's models; the fusion) of a folder. Raises UserError."""
    path = Path(folder) / FUSION
    if not path.is_file():
        raise UserError(f"{folder}: has no {FUSION}; give a folder of python -m adverts classifier, or one ONNX file")
    fusion, networks = read_fusion(path), {}
    side = fusion.get("side", DEFAULT_SIDE)
    if type(side) is not int or not 0 <= side <= MAX_SIDE or not any(model["weight"] for model in fusion["models"]):
        raise UserError(f"{path}: its side is no number of pixels, or all its weights are 0; {ANEW}")
    for name, model in zip(file_names([model["kind"] for model in fusion["models"]]), fusion["models"]):
        file = path.with_name(f"{name}.onnx")
        if not file.is_file():
            raise UserError(f"{folder}: has {FUSION} and no {file.name}; give a folder of python -m adverts classifier")
        network = networks[name] = load_network(file)
        if not isinstance(network, NETWORKS[model["kind"]]):
            raise UserError(f"{file}: a model of task={network.task}, where {path} has one of kind {model['kind']}; {ANEW}")
        if other := set(network.classes).symmetric_difference(fusion["classes"]):
            raise UserError(f"{file}: {first_line(min(other))!r} is a class of this file or of {path}, and not of the "
                            f"other; {ANEW}")
    return networks, fusion


class AdvertClassifier:
    """Says of which class an image is, by what it shows and by the text in it.

    model: a folder of `python -m adverts classifier`, or an ONNX file of task=classification or task=text_classification.
    texts: {sample id: segments} of `segments.read_segments`; None: they are read here, by rapidocr, where there is a network
    for text. A text belongs to the image whose path ends with its id. without_text: no text is used, and networks for images
    alone classify. threads: of many images at once, 0: one for each core, at most 16; each image is classified by itself, so
    that its result depends neither on those beside it nor on the threads. progress: show the progress on stderr if that is a
    terminal.

    `classes` are the names of the classes, in the order of the fusion. Raises UserError for mistakes of the user.
    """

    def __init__(self, model, *, texts: Mapping[str, list[Segment]] | None = None, without_text: bool = False,
                 threads: int = 0, progress: bool = False):
        if threads < 0:
            raise UserError(f"threads {threads}: must be at least 1, or 0 for one each core")
        self.threads, self.progress = threads or default_threads(), progress
        if os.path.isdir(model):
            networks, self._fusion = load_folder(model)
        else:
            network = load_network(model)
            kind = "image" if isinstance(network, ImageNetwork) else "text"
            networks = {kind: network}
            self._fusion = {"form": "product", "classes": network.classes, "fallback": {},
                            "models": [{"name": kind, "kind": kind, "weight": 1.0, "temperature": 1.0}]}
        self.classes: list[str] = self._fusion["classes"]
        self._parts = []
        for (name, network), entry in zip(networks.items(), self._fusion["models"]):
            place = {one: c for c, one in enumerate(network.classes)}
            self._parts.append(_Part(name, network, [place[one] for one in self.classes], entry))
        kinds = {model["kind"] for model in self._fusion["models"]}
        self._looks = "image" in kinds
        if without_text and not self._looks:
            raise UserError(f"{model}: classifies by text alone, so --without-text leaves nothing to classify by")
        self._texts, self._readers = None if without_text else texts, []
        self._reads = "text" in kinds and texts is None and not without_text
        if self._reads:
            try:
                self._readers.append(make_reader(self._fusion.get("side", DEFAULT_SIDE)))
            except UserError as error:  # of a package that is missing
                way_out = ", or use --without-text" if self._looks else ""
                raise UserError(f"{error}; or give the texts with --texts{way_out}") from None

    def __call__(self, image, segments: list[Segment] | None = None) -> tuple[str | None, float]:
        """A path, or an array as `cv2.imread` returns it -> (label, its probability); segments: its text, where it is known,
        as the reader gives it. The label is None where nothing speaks for any class: no text, and no network for images.
        Raises ImageError.
        """
        try:
            result = self._result(image, self._known([image])[0] if segments is None else segments, 1)
        except ImageError as error:
            raise ImageError(f"{_name(image) or 'image'}: {error}") from None
        return result["label"], result["probability"]

    def classify(self, images: Sequence, top_k: int = 1) -> list[dict]:
        """A list of paths or arrays -> for each {image, label, probability, top_k: [{label, probability}], text, segments:
        [{text, score, box}], models: {name: probability}, error or None}.

        `image` is the path (None for an array). `text` is what was read, a line for each of the `segments`, whose boxes are
        four corners in pixels of the upright image; "" where there is no text, None where none was looked for or is known.
        `models` has the probability that each network alone gives to the label, None where it has nothing to go by. The
        label is None where the probabilities are all the same, as without any text for networks of text alone. An image that
        cannot be used has an `error`, no label and no probability; the others are still classified.
        """
        return list(self.stream(images, top_k))

    def stream(self, images: Sequence, top_k: int = 1) -> Iterator[dict]:
        """The results of `classify`, in order, each as soon as it is known, in bounded memory."""
        if top_k < 1:
            raise UserError(f"top-k {top_k}: must be at least 1")
        known = self._known(images)
        if self._texts is not None and images and all(segments is None for segments in known):
            raise UserError(printable(f"texts: none of the {len(images):,} images is in them; an id (the first one is "
                                      f"{next(iter(self._texts), '')[:160]!r}) must be the end of an image's path"))

        def work(position):
            image = images[position]
            try:
                return _Done([position], {}, self._result(image, known[position], top_k))
            except ImageError as error:
                return _Done([], {position: str(error)}, dict(image=_name(image), label=None, probability=None, top_k=[],
                                                              text=None, segments=[], models={}, error=str(error)))

        done = map_ahead(work, range(len(images)), 2 * self.threads, self.threads)
        for one in counted(done, len(images), "classifying", self.progress):
            yield one.result

    def _known(self, images) -> list[list[Segment] | None]:
        """The segments of each image in `texts`; None where it is not in them. Raises UserError where two share an id."""
        if self._texts is None:
            return [None] * len(images)
        found, owner = [], {}
        for image in images:
            parts = () if isinstance(image, np.ndarray) else PurePath(os.path.abspath(image)).parts
            ends = ("/".join(parts[start:]) for start in range(1, len(parts)))  # the longest first
            name = next((end for end in ends if end in self._texts), None)
            found.append(None if name is None else self._texts[name])
            if name is not None and owner.setdefault(name, parts) != parts:
                raise UserError(printable(f"texts: the id {name!r} is the end of two paths, {'/'.join(owner[name][1:])} and "
                                          f"{'/'.join(parts[1:])}; classify the images of one folder at a time"))
        return found

    def _result(self, image, segments, top_k):
        """segments: None where they are not known."""
        if segments is None and self._reads:
            segments = self._read(load_image(image))
        elif not self._looks:
            load_image(image)  # not looked at, but told where it is none
        text = None if segments is None else document([segment.text for segment in segments])
        logits, alone = {}, {}
        for name, network, columns, model in self._parts:
            found = network.logits(image, text)
            row = logits[model["name"]] = np.full((1, len(columns)), np.nan) if found is None else found[None, columns]
            alone[name] = None if found is None else log_softmax(row[0] / model["temperature"])
        fused = np.exp(combine(logits, self._fusion)[0])                          # [C]
        best = np.argsort(-fused, kind="stable")[:top_k].tolist()
        known = fused.max() > fused.min()
        return dict(image=_name(image), label=self.classes[best[0]] if known else None, probability=float(fused[best[0]]),
                    top_k=[dict(label=self.classes[c], probability=float(fused[c])) for c in best], text=text,
                    segments=[segment._asdict() for segment in segments or ()],
                    models={name: None if row is None else float(np.exp(row[best[0]])) for name, row in alone.items()},
                    error=None)

    def _read(self, image):
        try:
            reader = self._readers.pop()
        except IndexError:  # as many as work at the same time: no two threads may call one at once
            reader = make_reader(self._fusion.get("side", DEFAULT_SIDE))
        try:
            segments = reader(image)
        except Exception as error:  # of a library that has met an image unlike all others
            raise ImageError(f"its text cannot be read ({first_line(error)})") from None
        self._readers.append(reader)
        return segments


class _Part(NamedTuple):
    """A network by its file's `name`, the place among its classes of each class of the fusion, and its `model` there."""
    name: str
    network: ImageNetwork | TextNetwork
    columns: list[int]
    model: dict


class _Done(NamedTuple):
    """The result of an image, and what `cli.counted` counts."""
    positions: list[int]
    reasons: dict[int, str]
    result: dict


def _name(image):
    return None if isinstance(image, np.ndarray) else str(image)


def line(result: dict, top_k: int) -> str:
    """A result as the command prints it."""
    if result["error"]:
        return f"{result['image']}: cannot be used: {result['error']}"
    said = f"{result['image']}: {_class_and_probability(result)}"
    if top_k > 1 and result["label"] is not None:
        said += " (" + ", ".join(f"{entry['label']} {entry['probability']:.4f}" for entry in result["top_k"]) + ")"
    if result["text"]:
        said += " text: " + result["text"].replace("\n", " | ")
    return said + (" no text" if result["text"] == "" else "")


def _class_and_probability(result):
    if result["label"] is None:
        return "no class (nothing to classify by)"
    return f"{result['label']} {result['probability']:.4f}"


def draw(result: dict) -> np.ndarray:
    """A result for a path -> uint8 BGR: the image with its lines of text framed, and the class below. Raises ImageError."""
    image = load_image(result["image"])
    height, width = image.shape[:2]
    scale = min(1.0, SHOWN / max(height, width))
    image = resize(image, *(max(1, round(side * scale)) for side in (width, height))).copy()
    for segment in result["segments"]:
        inside = [(min(max(0, x), width), min(max(0, y), height)) for x, y in segment["box"]]  # wherever a file puts it
        corners = np.rint((np.array(inside) * scale - 0.5) * 16).astype(np.int32)  # in sixteenths of a pixel
        cv2.polylines(image, [corners], True, GREEN, 2, cv2.LINE_AA, shift=4)
    right = max(0, LEAST - image.shape[1])
    image = cv2.copyMakeBorder(image, 0, 2 * TEXT, 0, right, cv2.BORDER_CONSTANT, value=(255,) * 3)
    color = BLACK if result["label"] else RED
    write_text(image, _class_and_probability(result), (GAP, image.shape[0] - TEXT // 2), 20, color)
    return image
