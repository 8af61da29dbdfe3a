"""Words of a line that no dictionary has, replaced by ones that it has, where the network's columns allow it. numpy only."""
import math
import os
import re
from collections.abc import Iterable

import numpy as np

from .decode import SPACE, Runs, align, log_likelihood
from .errors import UserError
from .text import normalize

MAX_BYTES = 64 << 20
MAX_FREQUENCY = 1e300  # of a word: so that even the sum of those of MAX_BYTES is finite
LONGEST = 40  # letters: what is longer is no word
SHORTEST = 3
WEIGHT = 0.5  # of a word's log frequency beside the log likelihood of its columns, which are not independent of each other
UNKNOWN = -16.0  # log frequency of a word that the dictionary lacks: a name, another language
WITHOUT_FREQUENCY = -12.0  # log frequency of a word that has none: one of 160,000 as frequent ones
COST = 1.0  # by which a replacement must be better
# What looks alike in print, in both directions. Single letters for each other are single edits, and need no mention.
ALIKE = [(a, b) for pair in (("rn", "m"), ("cl", "d"), ("li", "h")) for a, b in (pair, pair[::-1])]
ALIKE_MIXED = [(a, b) for pair in (("1", "l"), ("1", "I"), ("1", "i"), ("l", "I"), ("0", "o"), ("0", "O"))
               for a, b in (pair, pair[::-1])]
_PART = re.compile(r"[^\W_]+(?:'[^\W_]+)*")  # letters and digits, with apostrophes between


class Dictionary:
    """words: the path of a UTF-8 file of a word a line, and maybe its frequency, any number above 0, behind a space; or the
    words themselves. Case is ignored. Raises UserError for a file of another form.

    A word is changed where it is not in the dictionary, has at least three letters, and a word at a distance of one edit, or
    of one of the confusions ALIKE, explains its columns: log p(columns | word) + WEIGHT * log frequency must rise by COST.
    Numbers, and the last word of a line that ends in a hyphen, stay as they are, and so does each word that is known, with
    or without a final 's. The parts of a hyphenated word are words. Capitals stay where they were: in WORDS, Words, words;
    a word of other forms (`welI`, `we1l`) is changed by ALIKE_MIXED alone.
    """

    def __init__(self, words: str | os.PathLike | Iterable[str]):
        counts = _read(words) if isinstance(words, (str, os.PathLike)) else dict.fromkeys(words)
        total = sum(count for count in counts.values() if count)
        self.log_frequency: dict[str, float] = {}
        for word, count in counts.items():
            word = (word if word.isascii() else normalize(word)).lower()
            self.log_frequency[word] = max(math.log(count) - math.log(total) if count else WITHOUT_FREQUENCY,
                                           self.log_frequency.get(word, -math.inf))
        self._letters = sorted(set("".join(self.log_frequency)))

    def __contains__(self, word: str) -> bool:
        word = word.lower()
        return word in self.log_frequency or word.removesuffix("'s") in self.log_frequency

    def near(self, word: str) -> list[str]:
        """The words of the dictionary that may have been read as `word`, in its letters' cases."""
        stem = word.removesuffix("'s").removesuffix("'S")
        if stem.islower() and stem.isalpha():
            change = str
        elif stem.isupper() and stem.isalpha():
            change = str.upper
        elif stem[0].isupper() and stem[1:].islower() and stem.isalpha():
            change = str.capitalize
        else:
            found = {other for other in _replaced(stem, ALIKE_MIXED) if other.lower() in self.log_frequency
                     and (other.islower() or other.isupper() or other[1:].islower())}
            return sorted(other + word[len(stem):] for other in found)
        lower = stem.lower()
        cuts = [(lower[:i], lower[i:]) for i in range(len(lower) + 1)]
        edits = {a + b[1:] for a, b in cuts if b}
        edits.update(a + letter + rest for a, b in cuts for rest in {b, b[1:]} for letter in self._letters)
        edits.update(_replaced(lower, ALIKE))
        return sorted(change(other) + word[len(stem):] for other in edits & self.log_frequency.keys() - {lower})

    def correct(self, runs: Runs, log_probs: np.ndarray, classes: list[str]) -> Runs:
        """The runs of a line with the words changed, and the columns of their characters anew."""
        number = {text: i for i, text in enumerate(classes)}
        spaces = np.flatnonzero(runs.ids == SPACE)
        parts, begin = [], 0
        for end in [*spaces.tolist(), len(runs.ids)]:
            word = runs.take(slice(begin, end))
            first = int(runs.last[begin - 1]) + 1 if begin else 0
            last = int(runs.first[end]) if end < len(runs.ids) else len(log_probs)
            seen = [classes[i] for i in word.ids]
            if len("".join(seen)) == len(seen) >= SHORTEST:
                text = self._corrected("".join(seen), log_probs[first:last], number, end == len(runs.ids))
                if text != "".join(seen):
                    word = _runs([number[one] for one in text], log_probs, first, last)
            parts += [word, runs.take(slice(end, end + 1))]
            begin = end + 1
        return Runs(*map(np.concatenate, zip(*parts)))

    def _corrected(self, text, log_probs, number, is_last):
        for part in reversed(list(_PART.finditer(text))):  # from the end, so that the places of those before stay
            word = part[0]
            broken = is_last and part.end() == len(text) - 1 and text[-1] == "-"
            if not SHORTEST <= len(word) <= LONGEST or word.isdigit() or broken or word in self:
                continue
            near = [(other, text[:part.start()] + other + text[part.end():]) for other in self.near(word)]
            near = [(other, changed) for other, changed in near if set(changed) <= number.keys()]
            if not near:
                continue
            spelled = [[number[one] for one in changed] for changed in (text, *(changed for _, changed in near))]
            score = log_likelihood(log_probs, spelled)
            score += WEIGHT * np.array([UNKNOWN, *(self._prior(other) for other, _ in near)])
            best = int(score.argmax())
            if score[best] > score[0] + COST > -np.inf:
                text = near[best - 1][1]
        return text

    def _prior(self, word):
        word = word.lower()
        return self.log_frequency.get(word, self.log_frequency.get(word.removesuffix("'s")))


def _replaced(word, pairs):
    """All words that one replacement of a pair makes of `word`."""
    return {word[:at] + b + word[at + len(a):] for a, b in pairs for at in range(len(word)) if word.startswith(a, at)}


def _runs(ids, log_probs, first, last):
    """The runs of characters that the columns from `first` to before `last` spell."""
    spans = align(log_probs[first:last], ids) + first
    peak = [begin + int(log_probs[begin:end + 1, i].argmax()) for i, (begin, end) in zip(ids, spans.tolist())]
    return Runs(np.array(ids), spans[:, 0], spans[:, 1], np.array(peak))


def _read(path):
    """{word: frequency, None where it has none} of a file."""
    how = "a dictionary has a word a line, and maybe its frequency behind a space"
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)  # a pipe or a device does not tell its size
        if len(content) > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES >> 20} MiB; {how}")
        rows = [line.split() for line in content.decode("utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'}); {how}") from None
    counts = {}
    for line, row in enumerate(rows, 1):
        try:
            count = float(row[1]) if len(row) == 2 else None
        except ValueError:
            count = math.nan
        if len(row) > 2 or count is not None and not 0 < count <= MAX_FREQUENCY:
            raise UserError(f"{path}: line {line} has more than a word and a number above 0; {how}")
        if row:
            counts[row[0]] = count
    if not counts:
        raise UserError(f"{path}: no words in it; {how}")
    return counts
