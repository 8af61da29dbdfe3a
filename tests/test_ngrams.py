"""Text as hashed character n-grams: every script is kept, any text takes bounded time, and batches do not change a text."""
import sys
import time
import unicodedata
import zlib
from collections import Counter

import numpy as np
import pytest

from inference.ngrams import MAX_CHARACTERS, Ngrams, clean, document, pad_rows

SCRIPTS = {
    "Latin": "Größe Ångström", "Cyrillic": "Распродажа", "Greek": "έκπτωση", "Chinese": "限时特价 新品上市",
    "Japanese": "ゲーム機 セール", "Korean": "할인 행사", "Arabic": "تخفيضات كبيرة", "Hebrew": "מבצע ענק",
    "Devanagari": "भारी छूट", "Thai": "ลดราคา", "Tamil": "தள்ளுபடி", "Armenian": "զեղչ", "Georgian": "ფასდაკლება",
    "Amharic": "ቅናሽ", "Khmer": "បញ្ចុះតម្លៃ", "digits": "50 % 1.99",
}


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_a_text_of_any_script_is_kept(text):
    assert clean(text) == unicodedata.normalize("NFKC", text) and len(Ngrams().rows(clean(text))) >= len(text)


def test_no_letter_mark_number_or_symbol_of_unicode_is_lost():
    """All of them, and those that this Python does not know yet: what NFKC makes of a character is all there."""
    for code in range(sys.maxunicode + 1):
        c = chr(code)
        if unicodedata.category(c) not in ("Cc", "Cf", "Cs"):
            assert clean(c) == " ".join(unicodedata.normalize("NFKC", c).split()), hex(code)
        elif not c.isspace():
            assert clean(f"a{c}b") == "ab", hex(code)


def test_cleaning_twice_is_cleaning_once():
    generator = np.random.default_rng(0)
    codes = [*range(0x250), *range(0x300, 0x340), 0x200d, 0x1100, 0x1161, 0xac00, 0xfb01, 0xfdfa, 0xff21, 0x1f600, 0xd800]
    for _ in range(300):
        text = "".join(map(chr, generator.choice(codes, 30)))
        assert clean(clean(text)) == clean(text)


def test_what_is_one_line():
    assert clean(" ＳＵＰＥＲ\t ﬁne\n\u200b\x07\u00a0Sale ") == "SUPER fine Sale"
    assert clean("e\u200d\u0301") == "é"                                      # joined by what is dropped between them
    assert document([" a  b", "", "\x00 \n", "Ｃ"]) == "a b\nC" and document([]) == document([" "]) == ""


def plain(text, low, high, buckets):
    found = Counter()
    for word in text.split():
        padded = [" ", *word.lower(), " "]
        for start in range(len(padded)):
            for size in range(low, high + 1):
                if start + size <= len(padded):
                    found[zlib.crc32("".join(padded[start:start + size]).encode()) % buckets] += 1
    return found


@pytest.mark.parametrize("ngrams", [Ngrams(), Ngrams(2, 3, 101), Ngrams(4, 4, 1 << 20)])
def test_the_rows_are_those_of_plain_loops(ngrams):
    for text in (*SCRIPTS.values(), "a", "Super SALE\nsuper"):
        assert Counter(ngrams.rows(text).tolist()) == plain(text, *ngrams), text


def test_the_buckets_are_what_they_have_always_been():
    """Published networks were trained with them."""
    parts = [b" ", b"a", b"b", b" ", b" a", b"ab", b"b "]
    assert Ngrams(1, 2).rows("Ab").tolist() == [zlib.crc32(part) % 65536 for part in parts]
    assert Ngrams(1, 1, 1 << 24).rows("a").tolist() == [7130949, 12041795, 7130949]


def test_the_lines_of_a_document_do_not_see_each_other():
    lines = list(SCRIPTS.values())
    together = Ngrams().rows(document(lines))
    assert together.tolist() == np.concatenate([Ngrams().rows(clean(line)) for line in lines]).tolist()


def test_a_batch_holds_each_text_as_if_it_were_alone():
    ngrams, texts = Ngrams(), ["banana banana", "", "é", SCRIPTS["Chinese"]]
    rows, weights = ngrams.batch(texts)
    assert (rows.dtype, weights.dtype, rows.shape) == (np.int64, np.float32, weights.shape)
    for text, row, weight in zip(texts, rows, weights):
        counts = plain(text, *ngrams)
        kept = weight > 0
        assert dict(zip(row[kept].tolist(), weight[kept].tolist())) == pytest.approx(
            {bucket: count / counts.total() for bucket, count in counts.items()})
        alone, shares = ngrams.batch([text])
        assert alone.shape[1] == max(1, kept.sum())
        assert np.array_equal(shares[0], weight[:len(shares[0])]) and np.array_equal(alone[0][shares[0] > 0], row[kept])
    assert not weights[1].any()


def test_without_text_there_is_a_batch_of_zeros():
    for texts in ([""], ["", " \n"]):
        rows, weights = Ngrams().batch(texts)
        assert rows.shape == weights.shape == (len(texts), 1) and not weights.any()
    assert Ngrams().rows("").dtype == np.int64 and Ngrams().rows("").shape == (0,)
    assert [part.shape for part in pad_rows([])] == [(0, 1)] * 2


@pytest.mark.parametrize("text", ["a b " * 250_000, "\ufdfa" * 1_000_000, "word" * 250_000, "İ" * 1_000_000])
def test_a_text_of_a_megabyte_takes_bounded_time_and_rows(text):
    began = time.process_time()
    kept = document([text, text])
    rows, weights = Ngrams().batch([kept, text])
    assert time.process_time() - began < 2                                    # some 30 ms; without the limit 10 s
    assert 0 < len(kept) <= MAX_CHARACTERS and len(Ngrams().rows(text)) <= 5 * 1.5 * (MAX_CHARACTERS + 1)
    assert rows.shape[1] <= 5 * 1.5 * (MAX_CHARACTERS + 1) and np.allclose(weights.sum(1), 1, atol=1e-4)


def test_halves_of_surrogate_pairs_in_a_file_name_do_no_harm():
    assert clean("a\udcffb") == "ab" and len(Ngrams().rows("a\udcffb"))
