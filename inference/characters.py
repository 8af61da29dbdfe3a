"""Registered characters: centers that a reader gets without training, in a file beside its model.

An .npz file for one model: `text` (str `[n]`), `centers` (float32 `[n,D]`, of unit length), `offset` (float32 `[n]`: the
cosine by which a column must be nearer to this center than to others), and `model`, a hash of the model's centers.
"""
import hashlib
import io
import unicodedata
from typing import NamedTuple

import numpy as np

from .arrays import read_arrays
from .errors import UserError
from .files import replacing

MAX_BYTES = 256 << 20  # of the arrays of a file: 500,000 characters of 128 numbers
KIND = "a file of characters"
HOW = "make it with python -m ocr register"


class Characters(NamedTuple):
    """`text` of each of n characters, none empty or with white space; several may share one. `centers` float32 `[n,D]`,
    `offset` float32 `[n]`."""
    text: list[str]
    centers: np.ndarray
    offset: np.ndarray


def centers_hash(centers: np.ndarray) -> str:
    """What tells a model's centers, float32 `[C,D]`, from those of others: registered characters are of use with them alone.
    """
    return hashlib.sha256(np.ascontiguousarray(centers, np.float32).tobytes()).hexdigest()


def is_character(text) -> bool:
    """Whether it can be the text of a class: of 1 to 16 code points, none of them white space, a control character or a
    half of a surrogate pair, which no file can hold as UTF-8."""
    return isinstance(text, str) and 1 <= len(text) <= 16 and not any(
        one.isspace() or unicodedata.category(one) in ("Cc", "Cs") for one in text)


def save_characters(path, characters: Characters, model_centers: np.ndarray) -> None:
    """Write `path`, for the model with these centers. Raises UserError where it cannot be written."""
    content = io.BytesIO()
    np.savez(content, text=np.array(characters.text, dtype=np.str_), centers=np.float32(characters.centers),
             offset=np.float32(characters.offset), model=np.array(centers_hash(model_centers)))
    with replacing(path) as partial:
        partial.write_bytes(content.getvalue())


def load_characters(path, model_centers: np.ndarray) -> Characters:
    """What `save_characters` wrote. Raises UserError for another file, or one for another model."""
    text, centers, offset, model = read_arrays(path, ("text", "centers", "offset", "model"), MAX_BYTES, KIND, HOW)
    if model.shape or str(model) != centers_hash(model_centers):
        raise UserError(f"{path}: its characters were registered for another model; register them again with this one: "
                        "python -m ocr register")
    names = text.tolist() if text.ndim == 1 and text.dtype.kind == "U" else []
    shapes = centers.shape == (len(names), model_centers.shape[1]) and offset.shape == (len(names),)
    if not (names and shapes and all(map(is_character, names)) and centers.dtype == offset.dtype == np.float32
            and np.abs(np.linalg.norm(centers, axis=1) - 1).max() < 1e-3 and np.abs(offset).max() <= 2):
        raise UserError(f"{path}: not {KIND} (texts, centers of unit length, offsets); {HOW}")
    return Characters(names, centers, offset)
