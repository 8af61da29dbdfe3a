"""The text in an image, segment by segment, read by rapidocr (https://github.com/RapidAI/RapidOCR, Apache-2.0), and the file
that keeps it. Of rapidocr, which is imported on demand, only what its wheel holds is used: nothing is downloaded.

    read = make_reader()
    for segment in read(image):                        # image: uint8 BGR [H,W,3]
        print(segment.text, segment.score, segment.box)

texts.jsonl: UTF-8, one JSON object a line: {"id": ..., "segments": [{"text": ..., "score": ..., "box": [[x,y]*4]}, ...]}, in
reading order; an image that could not be read has no segments, and "error" tells the reason.
"""
import json
import math
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from .errors import UserError, first_line
from .image import resize

DEFAULT_SIDE = 480      # pixels: on small covers it reads what is worth 5 points of accuracy, in twice the time of 0
MAX_SIDE = 2000         # pixels: longer sides are shrunk to it
MAX_PIXELS = 8_000_000  # of an enlarged image: one as large takes 1.5 GB and some 6 s
# Everything that decides what is read, and is not the library's own default in every version. No turning of segments: on
# adverts it costs a tenth of the time and gains nothing. A crop of a segment may be small, but not an image.
OPTIONS = {"Global.text_score": 0.5, "Global.use_cls": False, "Global.max_side_len": MAX_SIDE, "Global.min_side_len": 30,
           "Det.thresh": 0.3, "Det.box_thresh": 0.5, "Det.unclip_ratio": 1.6}
MODELS = {"Det.model_path": "*_det_*.onnx", "Rec.model_path": "*_rec_*.onnx"}  # below the library's folder models/
JSON_ERRORS = ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError  # of other JSON
MAX_SEGMENTS, MAX_TEXT = 10_000, 10_000  # of an image, characters of a segment: no image holds as many
MAX_LINE = 16 << 20  # bytes of a line of texts.jsonl: a hundred times what a page full of text takes


class Segment(NamedTuple):
    """A piece of text on one line. score: 0 to 1, the mean of its characters'. box: its corners [x,y] in pixels of the
    image, clockwise from the upper left of the text."""
    text: str
    score: float
    box: list[list[int]]


def settings(side: int = DEFAULT_SIDE) -> str:
    """What decides the text of an image, beside the image: two readers with the same settings read the same. One line."""
    models = [path.name for path in _models().values()]
    return json.dumps({"rapidocr": _library()[1], "models": models, "side": side, **OPTIONS})


def make_reader(side: int = DEFAULT_SIDE, threads: int = 1) -> Callable[[np.ndarray], list[Segment]]:
    """A function from an image, uint8 BGR `[H,W,3]`, to its segments in reading order, [] where there is no text.

    side: 0 reads the image as it is, larger ones at MAX_SIDE pixels; else its shorter side is enlarged to so many pixels
    (736, rapidocr's own default, takes about four times as long on small images and finds more of the small print), but
    the whole to no more than MAX_PIXELS.
    threads: of ONNX Runtime. Raises UserError where rapidocr is not installed, or without its models.
    """
    models = {option: str(path) for option, path in _models().items()}
    from rapidocr import RapidOCR
    engine = RapidOCR(params={
        **OPTIONS, **models, "Global.log_level": "critical",
        "EngineConfig.onnxruntime.intra_op_num_threads": threads, "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        "Det.limit_type": "min" if side else "max", "Det.limit_side_len": side or MAX_SIDE})

    def read(image: np.ndarray) -> list[Segment]:
        image, scale = _bounded(image, side)
        found = engine(image)
        texts = getattr(found, "txts", None)  # None: no text; without the attribute: segments whose text was not found
        if texts is None:
            return []
        return [Segment(text, round(float(score), 4), np.rint(box / scale).astype(int).tolist())
                for text, score, box in zip(texts, found.scores, found.boxes)]

    return read


def _bounded(image, side):
    """(the image for rapidocr, how many times as large it is): as it is, but for one so narrow that its shorter side cannot
    be enlarged within MAX_PIXELS. Black is put beside that one, so that its shorter side is longer: rapidocr would enlarge
    8 x 2,000 pixels to 480 x 112,000, which takes 10 GB."""
    sides = image.shape[1::-1]  # width, height
    least = max(sides) * max(side, DEFAULT_SIDE) ** 2 / MAX_PIXELS
    if min(sides) >= least:
        return image, 1.0
    scale = min(1.0, MAX_SIDE / max(sides))
    image = resize(image, *(max(1, round(length * scale)) for length in sides))
    right, below = (max(0, math.ceil(least * scale) - length) for length in image.shape[1::-1])
    return cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT), scale


def _library():
    """(folder of rapidocr, its version)."""
    try:
        import rapidocr
        return Path(rapidocr.__file__).parent, version("rapidocr")
    except ModuleNotFoundError:
        raise UserError("text in images is read by the package rapidocr, which is missing; pip install rapidocr") from None


def _models() -> dict[str, Path]:
    """The models in the library's wheel. Given by path, since the library would download one that it does not find."""
    folder, number = _library()
    found = {}
    for option, pattern in MODELS.items():
        files = sorted(folder.glob(f"models/{pattern}"))
        if len(files) != 1:
            raise UserError(f"{folder}/models: {len(files)} files {pattern} where rapidocr {number} should have one; "
                            "pip install --force-reinstall rapidocr==3.10.0")
        found[option] = files[0]
    return found


def read_segments(path, keep: Callable[[list[Segment]], Any] = list) -> dict[str, Any]:
    """{image id: what `keep` returns for its segments (default: themselves)} of a file texts.jsonl, which may come from
    anyone. Raises UserError, one line, for another content and for an id that comes twice."""
    found, number = {}, 0
    try:
        with open(path, "rb") as file:
            lines = iter(lambda: file.readline(MAX_LINE), b"")  # a part of a longer one is no JSON
            for number, line in enumerate(lines, 1):
                row = json.loads(line.decode())
                name, segments = row["id"], segments_of(row["segments"])
                if not isinstance(name, str):
                    raise TypeError("its id is not a text")
                if name in found:
                    raise ValueError(f"the id {name!r} comes twice")
                found[name] = keep(segments)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); python -m adverts ocr writes such a file") from None
    except JSON_ERRORS as error:
        where = "not UTF-8" if isinstance(error, UnicodeError) else f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{path}: line {number} is not the text of an image ({where}); write it again by python -m adverts "
                        "ocr") from None
    return found


def segments_of(entries: list[dict]) -> list[Segment]:
    """The segments in JSON. Raises one of JSON_ERRORS for another content."""
    return [_segment(entry) for entry in entries[:MAX_SEGMENTS]]


def _segment(entry):
    text, score, box = entry["text"], float(entry["score"]), [[int(value) for value in point] for point in entry["box"]]
    if not isinstance(text, str) or len(box) != 4 or any(len(point) != 2 for point in box) or not math.isfinite(score):
        raise ValueError("a segment has a text, a score and a box of four corners")
    return Segment(text[:MAX_TEXT], score, box)
