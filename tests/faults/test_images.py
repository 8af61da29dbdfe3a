"""The short form of `python -m tests.faults.images`, and a proof that it finds each kind of error."""
import os
import signal
import sys
import time

import pytest

import inference.image
from inference.image import ImageError, decode
from tests.faults import images
from tests.faults.damage import mutated, originals
from tests.faults.images import run, run_headers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the size of a process from /proc")


def test_damaged_images_are_classified_or_refused():
    report = run(1500)
    assert report.images == 1500 and not report.wrong, report.table(0)
    assert 300 < report.classified < 1200 and sum(report.refused.values()) == 1500 - report.classified
    assert report.slowest[0] < images.LIMIT and report.largest[0] < 4000, report.table(0)
    assert report.memory[-1][1] - report.memory[0][1] < 64, report.table(0)


def test_headers_of_damaged_images_are_read():
    report = run_headers(4000)
    assert report.images == 4000 and not report.wrong, report.table(0)


def test_an_image_is_a_function_of_its_number():
    before = [mutated(3, number) for number in (0, 7, 7, 8)]
    originals.cache_clear()
    assert [mutated(3, number) for number in (0, 7, 7, 8)] == before
    assert before[1] == before[2] != before[3] and mutated(4, 7) != before[1]
    assert {name.split(":")[0] for name, _ in (mutated(0, number) for number in range(2000))} == set(originals())
    for image in originals().values():
        decode(image)


def bad_decoder():
    """Run in the reading process. Image 1 raises, 2 crashes, 4 hangs, 5 gives a reason of two lines, 6 is refused although
    it is not damaged."""
    decode = inference.image.decode_reduced

    def bad(data, for_size=None):
        match data:
            case b"1":
                raise ZeroDivisionError("number 1")
            case b"2":
                os.kill(os.getpid(), signal.SIGSEGV)
            case b"4":
                time.sleep(1000)
            case b"5":
                raise ImageError("two\nlines")
        return decode(data, for_size)

    inference.image.decode_reduced = bad
    images.mutated = lambda seed, number: ("it" if number == 6 else "it: damaged",
                                           b"%d" % number if number else originals()["PNG RGB"])


def test_every_kind_of_error_is_found(monkeypatch):
    monkeypatch.setattr(images, "LIMIT", 2)
    report = run(7, first="from tests.faults.test_images import bad_decoder; bad_decoder()")
    assert report.wrong == {1: "ZeroDivisionError: number 1", 2: "crash: SIGSEGV", 4: "hang", 5: "reason: 'two\\nlines'",
                            6: "untouched: it is refused, not an image (JPEG, PNG, WebP, BMP or TIFF)"}
    assert (report.images, report.classified, sum(report.refused.values())) == (7, 1, 1)
    table = report.table(0)
    assert "        1 crash\n        1 hang\n" in table and "image 2: crash: SIGSEGV" in table
