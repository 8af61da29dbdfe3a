"""Words in the languages of languages.py: fixed words by key, and names and running text without a meaning.

A language is an index into LANGUAGES.
"""
import functools
import textwrap

from synth.draw import pick, rng
from synth.fonts import available
from synth.languages import LABEL_KEYS, LANGUAGES, LATIN_LIKE

# What a random number stands for: the languages in Latin letters are more frequent.
DRAWN = (0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10)
PROPERTY, CARE, VALIDITY, THANKS = range(4)  # notices


def drawn(r):
    """A random language, of those for which this machine has a font. Without fonts for other scripts, the types that would
    have them take another language; the other types stay as they are."""
    language = pick(r, DRAWN)
    script = LANGUAGES[language].script
    return language if script is None or script in available() else language % LATIN_LIKE


@functools.cache
def label(key, language):
    return LANGUAGES[language].labels.split("|")[LABEL_KEYS.index(key)]


@functools.cache
def titles(family, language):
    """The words that are usual in a family of documents."""
    return tuple(LANGUAGES[language].titles[family].split("|"))


@functools.cache
def notice(kind, language):
    """A sentence as at the foot of a document: PROPERTY, CARE, VALIDITY or THANKS."""
    return LANGUAGES[language].phrases.split("|")[kind]


@functools.cache
def _syllables(language):
    return tuple(LANGUAGES[language].syllables.split())


def name(r, language):
    """A random name of two or three syllables in the script of the language."""
    return "".join(pick(r, _syllables(language)) for _ in range(int(r.integers(2, 4)))).capitalize()


def organization(r, kind, language):
    return pick(r, LANGUAGES[language].organizations[kind].split("|")).format(name(r, language))


@functools.cache
def _pool(language):
    """Words to draw running text from, since a name costs as much as drawing it."""
    r = rng("words", language)
    return [name(r, language).lower() for _ in range(600)]


def phrase(r, language, n):
    """n words without a meaning, the first with a capital letter."""
    pool = _pool(language)
    return LANGUAGES[language].space.join(pool[i] for i in r.integers(len(pool), size=n)).capitalize()


def sentence(r, language, n=9):
    """A phrase with a full stop, for the running text of a document."""
    return phrase(r, language, n) + "."


def lines(r, language, n, wide, lead=""):
    """A paragraph of n words, in lines of at most `wide` times the size of the font; the first begins with `lead`."""
    return textwrap.wrap(lead + sentence(r, language, n), max(4, int(wide / LANGUAGES[language].wide)))
