"""The text of synthetic lines: running text cut at random places, random words, random characters, numbers and headings.

The running text comes from the user's files, or from the prose of Python's own manual, which is on every machine.
"""
import functools
import logging
import re
import string
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inference.errors import UserError
from inference.text import normalize

CHARSET = string.ascii_letters + string.digits + ".,;:!?'\"()-&*/[]+=$%§£°éèêëàâäôöùûüïîçñæœÆŒÉ"
SHARES = {"running": .75, "words": .1, "characters": .1, "headings": .05}
RARE = ("ff", "ffi", "ffl", "fi", "fl", '"', "“", "”", "'", "’", "?", "!", ";", ":", "(", ")", "-", "—", "j", "q", "z", "x")
MONTHS = "January February March April May June July August September October November December".split()
log = logging.getLogger(__name__)


class TextLine(NamedTuple):
    text: str
    heading: bool


@functools.lru_cache(4096)
def fold(character: str) -> str:
    """The form in which a reader is trained on a character; "" for one that is invisible."""
    return normalize(character)


def read_charset(path) -> str:
    """The characters of a file, each once, in the file's order: lines `codepoint<TAB>character`, or any text, whose white
    space does not count, nor do control characters.

    Each is in the form that `inference.text.normalize` gives it (`"` for a curly quote); those that become several
    characters, such as a fraction, are not used. Raises UserError for a file that cannot be read, that has no characters,
    whose code points and characters differ, or of whose lines most have a code point and others not.
    """
    text = _read(path)
    rows = [line for line in text.split("\n") if line.strip()]
    pairs = [pair for row in rows if (pair := re.fullmatch(r" *([0-9]{1,7}) *\t(.*)", row))]
    if len(pairs) * 2 > len(rows):
        if len(pairs) < len(rows):
            wrong = next(row for row in rows if row not in {pair[0] for pair in pairs})
            raise UserError(f"{path}: the line {wrong!r} is not code point, tab, character, as the others are; repair or "
                            "remove it")
        characters = []
        for pair in pairs:
            code, character = int(pair[1]), pair[2]
            if code > 0x10ffff or 0xd800 <= code < 0xe000 or character not in ("", chr(code)):
                codes = " and ".join(str(ord(c)) for c in character)
                raise UserError(f"{path}: {code} is not the code point of "
                                + (f"{character!r}; write {codes}" if character else "a character; remove the line"))
            characters.append(chr(code))
    else:
        characters = list(text)
    folded = dict.fromkeys(fold(c) for c in characters if unicodedata.category(c) != "Cc" and fold(c))
    several = [character for character in folded if len(character) > 1]
    if several:
        log.warning("%s: not used, since readers write them as several characters: %s", path, " ".join(several))
    charset = "".join(character for character in folded if len(character) == 1)
    if not charset:
        raise UserError(f"{path}: no characters; write one line per character, its code point, a tab, and the character")
    return charset


def _read(path):
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from None


def _manual():
    """The prose of Python's manual: paragraphs that look like sentences."""
    from pydoc_data.topics import topics
    paragraphs = (" ".join(part.split()) for topic in topics.values() for part in topic.split("\n\n"))
    return " ".join(part for part in paragraphs
                    if re.fullmatch(r"[A-Z].{60,}[.!?]", part) and not re.search(r"[<>=_*|\\{}]|::|\[\d", part))


class Texts:
    """Draws lines of text in the characters of `charset` (as `normalize` gives them) and the space.

    files: plain text in UTF-8. Raises UserError for one that cannot be read or has fewer than 100 words.
    """

    def __init__(self, charset: str = CHARSET, files=()):
        self.charset = charset
        self.allowed = set(charset) | {" "}
        sources = [self._clean(_read(file)) for file in files] or [self._clean(_manual())]
        for file, source in zip(files, sources):
            if len(source) < 400:
                raise UserError(f"{file}: too short to cut lines from; give a text of at least 100 words")
        self.sources = sources
        sizes = np.sqrt([len(source) for source in sources])  # a large file shall not hide the small ones
        self.shares = np.cumsum(sizes / sizes.sum())
        # Each word once: rare words are as likely as frequent ones.
        words = {word for source in sources for word in re.findall(r"[^\W\d_]{2,}", source[:20_000_000])}
        self.words = sorted(word for word in words if set(word) <= self.allowed) or list(charset)
        letters = [c for c in charset if c.isalpha()]
        self.wide = sum(unicodedata.east_asian_width(c) in "WF" for c in charset) > len(charset) / 2
        self.latin = sum(c in self.allowed for c in string.ascii_lowercase) > 20
        self.accented = {}  # base letter: its accented forms in the charset
        for c in letters:
            base = unicodedata.normalize("NFD", c)[0]
            if base != c:
                self.accented.setdefault(base, []).append(c)

    @staticmethod
    def _clean(text):
        text = re.sub(r"[_\u200b\ufeff]|\[\w*\]", "", text)  # Gutenberg's italics and notes
        text = re.sub(r" ?(?:--+|—) ?", "—", text.replace("''", '"').replace("``", '"').replace("…", "..."))
        return " ".join(text.split())

    def line(self, r: np.random.Generator) -> TextLine:
        """A line of 1 to about 95 characters. Its boxes are those of its characters without spaces, and `normalize` keeps
        their number."""
        kind = r.choice(list(SHARES), p=list(SHARES.values()))
        if not self.latin and kind == "headings":
            kind = "running"
        text = self._kept(getattr(self, "_" + kind)(r))
        text = text or self._kept(self._characters(r)) or self.charset[int(r.integers(len(self.charset)))]
        return TextLine(text, kind == "headings")

    def _kept(self, text):
        text = " ".join("".join(c for c in text if fold(c) in self.allowed or c == " ").split())
        folded = normalize(text)
        # Two dashes or quotes in a row would be one character for the reader.
        return text if len(folded) == len(text) else folded

    def _length(self, r):
        """Most lines are full, some are the last of a paragraph, a few are one word or one letter."""
        low, high = ((35, 90), (8, 40), (2, 12), (1, 2))[int(np.searchsorted((.74, .94, .985), r.random()))]
        length = int(r.integers(low, high))
        return max(1, length // 3) if self.wide else length

    def _running(self, r):
        source = self.sources[min(int(np.searchsorted(self.shares, r.random())), len(self.sources) - 1)]
        length = self._length(r)
        start = int(r.integers(max(1, len(source) - 2 * length - 40)))
        if r.random() < .2:  # a place with something rare in it
            found = source.find(RARE[int(r.integers(len(RARE)))], start + length)
            start = max(0, found - int(r.integers(length))) if found >= 0 else start
        if not self.wide and r.random() < .92:  # else the line begins within a word, as after a hyphen
            start = source.find(" ", start) + 1
        text = source[start:start + length + 30]
        if sum(fold(c) in self.allowed for c in text) < .5 * len(text):
            return self._characters(r)
        if self.wide:
            return text[:length]
        end = text.rfind(" ", 0, length + 1)
        text, cut = (text[:end], text[end + 1:length]) if end > 0 else (text[:length], "")
        if len(cut) > 1 and r.random() < .3 and cut.isalpha() and self.latin:
            text = f"{text} {cut}-"
        return self._varied(r, text) if self.latin else text

    def _varied(self, r, text):
        """Some of what is rare in running text, so that readers see it often enough."""
        words = text.split(" ")
        at = int(r.integers(len(words)))
        way = r.random()
        if way < .05:
            words[at] = self._number(r)
        elif way < .08:
            words[at] = re.sub(r"^(\W*)(\w.*\w)(\W*)$", r'\1"\2"\3' if r.random() < .7 else r"\1(\2)\3", words[at])
        elif way < .12:
            words[at] = re.sub(r"[.,;:!?]*$", "".join(r.choice(list(";:!?"), 1)), words[at])
        elif way < .14:
            words[at] = self._accent(r, words[at])
        elif way < .17:
            words[at] += r.choice([".'", ",'", '."', ',"', '?"', '!"', ';"', "'s", ".)", "),", ");"])
        elif way < .21:
            return text.upper()
        elif way < .23:
            words[at] = words[at].upper()
        elif way < .24 and at + 1 < len(words):
            words[at:at + 2] = [words[at] + "—" + words[at + 1]]
        elif way < .26:
            words[at] = r.choice(list('"\'')) + words[at]
        return " ".join(words)

    def _accent(self, r, word):
        places = [i for i, c in enumerate(word) if c in self.accented]
        if not places:
            return word
        i = int(r.choice(places))
        return word[:i] + str(r.choice(self.accented[word[i]])) + word[i + 1:]

    def _words(self, r):
        """Random words in any order, so that a reader cannot guess the next letter."""
        words, length = [], self._length(r)
        while sum(map(len, words)) + len(words) < length:
            word = self.words[int(r.integers(len(self.words)))]
            way = r.random()
            if way < .15:
                word = word.capitalize()
            elif way < .22:
                word = word.upper()
            elif way < .30:
                word = self._accent(r, word)
            elif way < .35:
                word += "-" + self.words[int(r.integers(len(self.words)))]
            elif way < .38 and self.latin:
                word += "'s"
            end = r.random()
            if end < .3:
                word += str(r.choice([",", ".", ";", ":", "!", "?", ".\"", ",\"", ")", "]"]))
            elif end < .4:
                word = str(r.choice(['"', "'", "(", "[", "*", "&"])) + word
            words.append(word)
        return ("" if self.wide else " ").join(words)[:length]

    def _characters(self, r):
        """Random characters: the rare ones are as frequent as the others."""
        length, words = max(20, self._length(r)), []
        if r.random() < .1:  # a line of one character
            return self.charset[int(r.integers(len(self.charset)))]
        while sum(map(len, words)) < length:
            count = int(r.integers(1, 9))
            words.append("".join(self.charset[i] for i in r.integers(len(self.charset), size=count)))
        return ("" if self.wide else " ").join(words)

    def _number(self, r):
        n, pick = int(10 ** r.uniform(0, 4.3)), lambda *options: str(r.choice(options))
        form = int(r.integers(14))
        if form < 4:
            return str(int(r.integers(1400, 1960))) + pick("", "", ",", ".", ";", "-")
        if form < 7:
            return str(n) + pick("", "", ".", ",", "th", "d", "%", "°")
        return (f"{n:,}", f"({n})", f"£{n}", f"${n:,}.{r.integers(100):02d}", roman(int(r.integers(1, 120))) + pick("", "."),
                f"{r.integers(1, 20)}s. {r.integers(1, 12)}d.", f"{r.choice(MONTHS)} {r.integers(1, 32)},")[form - 7]

    def _headings(self, r):
        def words(low, high):
            return " ".join(self.words[i] for i in r.integers(len(self.words), size=int(r.integers(low, high))))
        form, page, number = int(r.integers(12)), str(int(r.integers(1, 800))), roman(int(r.integers(1, 60)))
        return (page, f"[{page}]", f"- {page} -", number, f"CHAPTER {number}.", f"{page} {words(2, 6).upper()}.",
                f"{words(2, 6).upper()} {page}", words(1, 6).upper() + ".", words(2, 6).title(),
                f"{r.choice(MONTHS)} {r.integers(1, 32)}, {r.integers(1500, 1960)}.",
                f"Vol. {number}., p. {page}.", " ".join(self._number(r) for _ in range(int(r.integers(2, 7)))))[form]


def roman(number: int) -> str:
    """A roman numeral in capitals."""
    text = ""
    for value, letters in ((100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"),
                           (1, "I")):
        text += letters * (number // value)
        number %= value
    return text
