"""Text of an image as hashed character n-grams, which any script has and which survive letters that were read wrongly.
numpy and the standard library only.

    rows, weights = Ngrams().batch([document(["SUPER  SALE", "50% off"]), ""])    # int64 [2,L], float32 [2,L]
"""
import unicodedata
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

MAX_CHARACTERS = 4096  # of a text; what follows is cut off, so that a text of any length takes bounded time and memory
MAX_HIGH = 16          # characters in an n-gram
MAX_BUCKETS = 1 << 24
_DROPPED = {"Cc", "Cf", "Cs"}  # control and format characters, halves of surrogate pairs; those of no category yet stay


def clean(text: str) -> str:
    """`text` on one line: NFKC, control characters out, white space as one blank, none at the ends. Every script is kept.

    Of a text longer than MAX_CHARACTERS that many characters are used. `clean(clean(text))` is `clean(text)`.
    """
    text = text[:MAX_CHARACTERS]
    kept = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in _DROPPED)
    return " ".join(unicodedata.normalize("NFKC", kept).split())[:MAX_CHARACTERS].rstrip()


def document(segments: Iterable[str]) -> str:
    """The cleaned segments, a line each, without empty ones; "" where nothing is left. At most MAX_CHARACTERS."""
    lines, free = [], MAX_CHARACTERS
    for line in map(clean, segments):
        line = line[:free].rstrip()
        if line:
            lines.append(line)
            free -= len(line) + 1
        if free <= 0:
            break
    return "\n".join(lines)


class Ngrams(NamedTuple):
    """The n-grams of `low` to `high` characters in each word, a blank before and after it, in `buckets` by their crc32."""
    low: int = 1
    high: int = 5
    buckets: int = 1 << 16

    def rows(self, text: str) -> np.ndarray:
        """int64 `[n]`: the bucket of each n-gram of `text` in lower case, as often as it occurs; `[0]` for no text. n is at
        most 3/2 (MAX_CHARACTERS + 1) for each size of n-grams.

        A line's n-grams do not depend on the lines beside it: those of a document are those of its lines, one after another.
        """
        words = [f" {word} " for word in text.lower()[:MAX_CHARACTERS].split()]
        return np.array([zlib.crc32(word[start:start + size].encode(errors="replace")) % self.buckets
                         for word in words for size in range(self.low, self.high + 1)
                         for start in range(len(word) - size + 1)], np.int64)

    def batch(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Inputs of a network: `pad_rows` of the n-grams of B texts."""
        return pad_rows([self.rows(text) for text in texts])


def pad_rows(found: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(rows int64 `[B,L]`, weights float32 `[B,L]`) of the n-grams int64 `[n]` of B texts: each bucket once, in order, and
    its share of the n; padded by weights of 0. Without n-grams all weights are 0. L is 1 at least."""
    counted = [np.unique(rows, return_counts=True) for rows in found]
    length = max([1, *(len(rows) for rows, _ in counted)])
    rows, weights = np.zeros((len(found), length), np.int64), np.zeros((len(found), length), np.float32)
    for i, (bucket, count) in enumerate(counted):
        rows[i, :len(bucket)], weights[i, :len(bucket)] = bucket, count / max(1, count.sum())
    return rows, weights
