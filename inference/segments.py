"""The text in an image, segment by segment, read by rapidocr (https://github.com/RapidAI/RapidOCR, Apache-2.0), and the file
that keeps it. numpy; rapidocr is imported on demand, and only what its wheel holds is used: nothing is downloaded.

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
from typing import NamedTuple

import numpy as np

from .errors import UserError, first_line

# Everything that decides what is read, and is not the library's own default in every version. No turning of segments: on
# adverts it costs a tenth of the time and gains nothing. A crop of a segment may be small, but not an image.
OPTIONS = {"Global.text_score": 0.5, "Global.use_cls": False, "Global.max_side_len": 2000, "Global.min_side_len": 30,
           "Det.thresh": 0.3, "Det.box_thresh": 0.5, "Det.unclip_ratio": 1.6}
MODELS = {"Det.model_path": "*_det_*.onnx", "Rec.model_path": "*_rec_*.onnx"}  # below the library's folder models/
DEFAULT_SIDE = 480  # pixels: on small covers it reads what is worth 5 points of accuracy, in twice the time of 0
MAX_SIDE = 4000   # pixels, larger than Global.max_side_len: the detector sees the image as it is
JSON_ERRORS = ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError  # of other JSON
MAX_SEGMENTS, MAX_TEXT = 10_000, 10_000  # of an image, characters of a segment: no image holds as many


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

    side: 0 reads the image as it is, larger ones at 2,000 pixels; else its shorter side is enlarged to so many pixels
    (736, rapidocr's own default, takes about four times as long on small images and finds more of the small print).
    threads: of ONNX Runtime. Raises UserError where rapidocr is not installed, or without its models.
    """
    models = {option: str(path) for option, path in _models().items()}
    from rapidocr import RapidOCR
    engine = RapidOCR(params={
        **OPTIONS, **models, "Global.log_level": "critical",
        "EngineConfig.onnxruntime.intra_op_num_threads": threads, "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        "Det.limit_type": "min" if side else "max", "Det.limit_side_len": side or MAX_SIDE})

    def read(image: np.ndarray) -> list[Segment]:
        found = engine(image)
        texts = getattr(found, "txts", None)  # None: no text; without the attribute: segments whose text was not found
        if texts is None:
            return []
        return [Segment(text, round(float(score), 4), np.rint(box).astype(int).tolist())
                for text, score, box in zip(texts, found.scores, found.boxes)]

    return read


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


def read_segments(path) -> dict[str, list[Segment]]:
    """{image id: its segments} of a file texts.jsonl, which may come from anyone. Raises UserError, one line, for another
    content and for an id that comes twice."""
    found, number = {}, 0
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line.decode())
                name, segments = row["id"], segments_of(row["segments"])
                if not isinstance(name, str):
                    raise TypeError("its id is not a text")
                if name in found:
                    raise ValueError(f"the id {name!r} comes twice")
                found[name] = segments
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
