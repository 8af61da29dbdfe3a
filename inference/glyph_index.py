"""The index of EffOCR's reading: reference glyphs as features, each with its text. numpy only.

    index = read_index("index.npz")          # what `python -m eval --references RENDERS --report DIR` writes
    texts, scores = index.nearest(features, 5)
"""
from collections.abc import Callable

import numpy as np

from .arrays import read_arrays
from .errors import UserError
from .files import replacing
from .search import top_rows

WRITE = "write one with python -m eval --model RECOGNIZER.onnx --references RENDERS --data CROPS --report DIR"
KIND = "an index of glyphs"
MAX_BYTES = 2 << 30  # of the arrays of a file: 2,000,000 references of 256 numbers
SAME = 0.999  # cosine of two embeddings of the probe by one model, at any precision


class GlyphIndex:
    """M references: `texts`, a str each, a character or a word, and `features` float32 `[M,D]`, of length 1; `probe`: which
    model they come from."""

    def __init__(self, texts: list[str], features: np.ndarray, probe: np.ndarray):
        order = sorted(range(len(texts)), key=texts.__getitem__)      # the references of a class side by side
        self.texts, self.features, self.probe = [texts[i] for i in order], features[order], probe
        self._starts = np.array([i for i in range(len(order)) if i == 0 or self.texts[i] != self.texts[i - 1]])
        self.classes = [self.texts[i] for i in self._starts]

    def nearest(self, features: np.ndarray, k: int) -> tuple[list[list[str]], np.ndarray]:
        """float32 `[N,D]` of length 1 -> the K = min(k, classes) best classes of each, best first: their texts, and the
        cosines of their best references `[N,K]`."""
        cosines, classes, _ = top_rows(features, self.features, k, self._starts)
        return [[self.classes[c] for c in row] for row in classes], cosines

    def save(self, file) -> None:
        """Raises UserError where it cannot be written."""
        codes = np.zeros((len(self.texts), max(map(len, self.texts))), np.int32)      # code points, then zeros
        for row, text in zip(codes, self.texts):
            row[:len(text)] = list(map(ord, text))
        with replacing(file) as partial, open(partial, "wb") as opened:
            np.savez(opened, text=codes, features=np.float32(self.features), probe=np.float32(self.probe))


def read_index(file, probe: np.ndarray | None = None) -> GlyphIndex:
    """The index in `file`. probe: of the model whose features will be searched (None: not known). Raises UserError for a
    file that is no index, and for one that was made with another model."""
    codes, features, theirs = read_arrays(file, ("text", "features", "probe"), MAX_BYTES, KIND, WRITE)
    try:
        texts = _texts(codes) if codes.ndim == 2 and codes.size and codes.dtype == np.int32 else []
    except ValueError:  # numbers that are no characters, or halves of one
        texts = []
    if not (texts and all(texts) and features.dtype == theirs.dtype == np.float32 and features.ndim == 2
            and len(texts) == len(features) and theirs.shape == features.shape[1:] and np.isfinite(features).all()):
        raise UserError(f"{file}: not {KIND} (texts, features, probe); {WRITE}")
    if probe is not None and (len(theirs) != len(probe) or not float(theirs @ probe) >= SAME):
        raise UserError(f"{file}: was made with another model; {WRITE}")
    return GlyphIndex(texts, features, theirs)


def _texts(codes):
    """int32 `[M,L]`, code points, then zeros -> M texts. Raises ValueError."""
    points, long = codes.astype("<i4").tobytes().decode("utf-32-le"), codes.shape[1]
    return [points[start:start + long].rstrip("\0") for start in range(0, len(points), long)]


def probe_of(embed: Callable, size: int) -> np.ndarray:
    """float32 `[D]`, of length 1: how a model embeds one image that is always the same, by which an index knows it."""
    ramp = np.linspace(0, 1, size)
    waves = np.stack([np.sin(20 * frequency * np.outer(ramp, ramp)) for frequency in (1, 2, 3)], 2)
    image = np.uint8(np.rint(127.5 + 127.5 * waves))                                  # [size,size,3]
    feature = np.asarray(embed(image[None]), np.float32)[0]
    return feature / max(float(np.linalg.norm(feature)), 1e-12)
