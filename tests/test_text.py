"""The form of texts, their distance, and words corrected by a dictionary."""
import math
import os

import numpy as np
import pytest

import inference.dictionary
from inference.decode import best_path
from inference.dictionary import Dictionary
from inference.errors import UserError
from inference.text import edit_distance, normalize, tidy


def plain_distance(a, b):
    """By the definition: the whole table (R. Wagner and M. Fischer 1974)."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        now = [i]
        for j, y in enumerate(b, 1):
            now.append(min(before[j] + 1, now[-1] + 1, before[j - 1] + (x != y)))
        before = now
    return before[-1]


def test_the_distance_is_that_of_the_whole_table():
    rng = np.random.default_rng(0)
    for size in (3, 9, 70, 200):  # ints of one machine word, and longer ones
        for _ in range(200 if size < 70 else 20):
            a, b = ("".join(rng.choice(list("abc"), rng.integers(size))) for _ in range(2))
            assert edit_distance(a, b) == plain_distance(a, b) == edit_distance(b, a)
    assert edit_distance("", "") == 0 and edit_distance("abc", "") == 3 and edit_distance("kitten", "sitting") == 3


@pytest.mark.parametrize("typed, normal", [
    ("\u201cIt\u2019s\u201d", '"It\'s"'), ("''It''", '"It"'), ("5\u2032 6\u2033", "5' 6\""), ("\u00b4t", "'t"),
    ("a\u2014b \u2013 c\u2010", "a-b - c-"), ("--", "-"), ("\ufb01\ufb02 \uff21", "fifl A"), ("e\u0301", "\u00e9"),
    ("  a\t b\u00a0c\n", "a b c"), ("\ufeffa\u200bb", "ab"), ("\u00abici\u00bb", "\u00abici\u00bb"), ("", "")])
def test_one_form(typed, normal):
    assert normalize(typed) == normal == normalize(normal)


def test_the_form_of_a_form_is_itself():
    rng = np.random.default_rng(1)
    some = [chr(code) for code in range(0x20, 0x3100)] + list("'\"-\u2032\u2033 \u2014\u00b4") * 200
    for _ in range(300):
        once = normalize("".join(rng.choice(some, 30)))
        assert normalize(once) == once


@pytest.mark.parametrize("read, printed", [
    ("Oh , no ; he ( she ) said : why ? so !", "Oh, no; he (she) said: why? so!"),
    ("' ' Yes , ' ' he said", '"Yes," he said'), ("'  'Yes", '"Yes'), ('the " old " man', 'the "old" man'),
    ("a .5 inch rod , and 1 .", "a .5 inch rod, and 1."),
    ('him," said he. " Will he', 'him," said he. "Will he'),                 # the line begins within a quotation
    ('him," said he', 'him," said he'), ('so "', 'so "'), ("", ""), ("the boys' hats", "the boys' hats")])
def test_spaces_as_in_print(read, printed):
    assert tidy(read) == printed == tidy(printed)


# ---------------------------------------------------------------- the dictionary
LETTERS = ["", " ", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'-.,"]
WORDS = ["modern", "clear", "the", "hat", "hit", "well", "known", "dear"]


def columns(text, doubtful=()):
    """Log probabilities of columns that say `text`, blank between its characters; at the places in `doubtful`, {place:
    text}, the other text is nearly as probable. Another text of two characters has two columns."""
    doubtful, rows = dict(doubtful), []
    for place, one in enumerate(text or [""]):
        other = doubtful.get(place, "")
        for part in range(max(1, len(other))):
            rows.append({one: 0.5, other[part]: 0.4} if other else {one: 0.9})
        rows.append({"": 1.0})
    probs = np.array([[row.get(letter, 1e-6) for letter in LETTERS] for row in rows])
    return np.log(probs / probs.sum(1, keepdims=True)).astype(np.float32)


def corrected(text, doubtful=(), words=WORDS):
    log_probs = columns(text, doubtful)
    before = best_path(log_probs)
    runs = (words if isinstance(words, Dictionary) else Dictionary(words)).correct(before, log_probs, LETTERS)
    assert "".join(LETTERS[number] for number in before.ids) == text
    assert (runs.first <= runs.peak).all() and (runs.peak <= runs.last).all() and (runs.last[:-1] < runs.first[1:]).all()
    return "".join(LETTERS[number] for number in runs.ids)


@pytest.mark.parametrize("read, doubtful, right", [
    ("the clcar hat", {6: "e"}, "the clear hat"),
    ("clcar", {2: "e"}, "clear"), ("Clcar", {2: "e"}, "Clear"), ("CLCAR", {2: "E"}, "CLEAR"),
    ("clcar's,", {2: "e"}, "clear's,"),
    ("well-knowm.", {9: "n"}, "well-known."), ("weil-knowm", {2: "l", 9: "n"}, "well-known"),
    ("modem", {4: "rn"}, "modern"),                                                     # one letter for two
    ("we1l", {2: "l"}, "well"), ("weIl", {2: "l"}, "well"), ("We1l", {2: "l"}, "Well")])
def test_a_word_is_changed_where_its_columns_allow_it(read, doubtful, right):
    assert corrected(read, doubtful) == right


@pytest.mark.parametrize("read, doubtful", [
    ("the clcar", {}),                                                                  # the columns are sure of the c
    ("the hit", {5: "a"}), ("HIT", {1: "A"}), ("Hit's", {1: "a"}),                      # a word of the dictionary
    ("1852", {0: "l"}), ("ha", {1: "i"}), ("we ell", {3: "w"}),                         # a number; short; nothing near
    ("the clcar-", {6: "e"}),                                                           # goes on in the next line
    ("", {})])
def test_a_word_stays(read, doubtful):
    assert corrected(read, doubtful) == read


def test_words_that_the_reader_cannot_spell_are_no_candidates():
    assert corrected("caf", words=["caf\u00e9", "\u0436"]) == "caf"


def test_frequencies_decide_between_equals(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("\ufeffhat 1000000\nhut 1\nthe 10\n\n", encoding="utf-8")
    words = Dictionary(file)
    assert words.log_frequency["hat"] == pytest.approx(math.log(1e6 / (1e6 + 11)))
    assert "The" in words and "hat's" in words and "hit" not in words
    assert corrected("hzt", {1: "a"}, words) == "hat"
    assert words.near("hzt") == ["hat", "hut"]
    assert corrected("hzt", {1: "u"}, words) == "hzt"  # (16 - 13.8) / 2 - log(.5 / .4) is less than COST
    file.write_text("hat\n")
    assert Dictionary(file).near("Hzt") == ["Hat"]


def test_frequencies_of_any_size_have_a_logarithm(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("hat 1e300\nhit 1e300\nhut 1e-300\n")
    found = Dictionary(file).log_frequency
    assert found["hat"] == found["hit"] == pytest.approx(-math.log(2))
    assert found["hut"] == pytest.approx(-600 * math.log(10) - math.log(2))


def test_a_dictionary_is_read_as_far_as_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(inference.dictionary, "MAX_BYTES", 8)
    file = tmp_path / "words.txt"
    file.write_text("hat\nhit\n")
    assert "hit" in Dictionary(file)
    file.write_text("hat\nhits\n")
    with pytest.raises(UserError, match="larger than"):
        Dictionary(file)
    if os.path.exists("/dev/zero"):  # says that it has no bytes
        with pytest.raises(UserError, match="larger than"):
            Dictionary("/dev/zero")


@pytest.mark.parametrize("content, said", [
    (b"", "no words in it"), (b"hat 3 4\n", "line 1"), (b"hat\nhit many\n", "line 2"), (b"hat 0\n", "line 1"),
    (b"hat -1\n", "line 1"), (b"hat nan\n", "line 1"), (b"hat 1e301\n", "line 1"),
    (b"\xff\xfe\n", "not UTF-8"), (None, "No such file")])
def test_a_file_that_is_no_dictionary(tmp_path, content, said):
    file = tmp_path / "words.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        Dictionary(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
