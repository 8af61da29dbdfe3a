"""HEIC and PDF as images: what they become, and what untrusted files of these kinds can do."""
import io
import json
import os
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from inference.image import ImageError, decode
from inference.registry import formats
from inference.registry.formats import content_type, thumbnail, usable
from tests.helpers.models import blocks

pillow_heif = pytest.importorskip("pillow_heif")
pypdfium2 = pytest.importorskip("pypdfium2")


def heic(image, **options):
    file = pillow_heif.from_bytes("BGR", image.shape[1::-1], image.tobytes())
    buffer = io.BytesIO()
    file.save(buffer, quality=95, **options)
    return buffer.getvalue()


def pdf(*pages, body="", extra=""):
    """A PDF file with a page for each (width, height) in points; `body` draws on each, `extra` stands in its dictionary."""
    kids = " ".join(f"{3 + 2 * number} 0 R" for number in range(len(pages)))
    objects = ["<</Type/Catalog/Pages 2 0 R>>", f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>"]
    for number, (width, height) in enumerate(pages):
        objects.append(f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 {width} {height}]/Contents {4 + 2 * number} 0 R{extra}>>")
        objects.append(f"<</Length {len(body)}>>stream\n{body}\nendstream")
    out, places = b"%PDF-1.7\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj{one}endobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    return out + (f"xref\n0 {len(places) + 1}\n0000000000 65535 f \n{table}trailer<</Size {len(places) + 1}/Root 1 0 R>>\n"
                  f"startxref\n{len(out)}\n%%EOF").encode()


def refused(data, match, **options):
    with pytest.raises(ImageError, match=match) as caught:
        usable(data, **options)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@pytest.mark.parametrize(("suffix", "kind"), [(".jpg", "image/jpeg"), (".png", "image/png"), (".webp", "image/webp"),
                                              (".bmp", "image/bmp"), (".tiff", "image/tiff")])
def test_what_the_decoder_takes_stays_as_it_is(suffix, kind):
    data = cv2.imencode(suffix, blocks(1))[1].tobytes()
    assert usable(data) is data and content_type(data) == kind
    assert content_type(data[:len(data) // 2]) == kind


@pytest.mark.parametrize("data", [b"", b"x", b"no image at all", bytes(1000), b"GIF89a"])
def test_what_is_no_image_is_left_to_the_decoder(data):
    assert usable(data) is data and content_type(data) == "application/octet-stream"


def test_heic_becomes_a_jpeg_of_the_same_image():
    image = cv2.GaussianBlur(blocks(2, 320), (0, 0), 5)[:240]
    data = heic(image)
    assert content_type(data) == "image/heic" and content_type(usable(data)) == "image/jpeg"
    assert np.abs(decode(usable(data)).astype(int) - image).mean() < 3


def test_heic_is_upright_as_its_transformation_says():
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, :64] = 255
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6
    found = decode(usable(heic(image, exif=exif)))
    assert found.shape in ((64, 128, 3), (128, 64, 3))
    if found.shape[0] == 128:  # written as a rotation by 90 degrees clockwise: left comes to the top
        assert found[:60].mean() > 240 and found[68:].mean() < 15


def test_a_page_of_a_pdf_becomes_a_png():
    data = pdf((595, 842), (144, 72), (10_000, 8_000), body="1 0 0 rg 0 0 72 36 re f")
    first, second, third = (decode(usable(data, page)) for page in (1, 2, 3))
    assert content_type(data) == "application/pdf" and content_type(usable(data)) == "image/png"
    assert first.shape == pytest.approx((842 * 150 / 72, 595 * 150 / 72, 3), abs=1)  # 150 dots per inch
    assert second.shape == (500, 1000, 3) and third.shape == (2000, 2500, 3)
    assert second[499, 0].tolist() == [0, 0, 255] and second[0, 999].tolist() == [255, 255, 255]
    assert second[400, 400].tolist() == [0, 0, 255] and second[100, 100].tolist() == [255, 255, 255]


def test_what_stands_before_a_pdf_does_not_matter():
    assert content_type(b"\xef\xbb\xbf\n" + pdf((100, 100))) == "application/pdf"


def test_pages_that_are_not_there_are_named():
    refused(pdf((100, 100), (100, 100)), "page 3: the PDF has 2 pages", page=3)
    refused(pdf((100, 100)), "page 0: the PDF has 1 page$", page=0)
    refused(pdf(), "page 1: the PDF has 0 pages|damaged PDF")


@pytest.mark.parametrize("size", [(1, 14_400), (1e9, 1e9), (100, 100_000)])
def test_pages_of_no_documents_size(size):
    try:
        image = decode(usable(pdf(size)))
    except ImageError as error:
        assert "is not that of a document" in str(error)
    else:  # PDFium takes a letter's size for one that it does not believe
        assert max(image.shape) <= 2500


def test_an_encrypted_pdf_is_named(monkeypatch):
    from inference.registry import convert

    class Encrypted:
        PdfiumError = pypdfium2.PdfiumError

        @staticmethod
        def PdfDocument(data):
            raise pypdfium2.PdfiumError("Failed to load document", err_code=4)

    monkeypatch.setitem(sys.modules, "pypdfium2", Encrypted)
    with pytest.raises(convert.Unusable, match="encrypted PDF: save it without a password"):
        convert.pdf(b"", 1, 1)


def test_damaged_files_are_one_line_or_an_image():
    rng = np.random.default_rng(0)
    for name, data in (("HEIC", heic(blocks(3, 128))), ("PDF", pdf((200, 100), body="0 0 50 50 re f"))):
        cut = [data[:size] for size in (14, 60, len(data) // 2, len(data) - 40)]
        for _ in range(8):
            changed = bytearray(data)
            for place in rng.integers(12, len(data), 6):
                changed[place] = rng.integers(256)
            cut.append(bytes(changed))
        for broken in cut:
            try:
                decode(usable(broken))
            except ImageError as error:
                assert str(error).isprintable() and len(str(error)) < 200 and (name in str(error) or "page" in str(error))


def test_a_heic_that_says_it_is_huge_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(formats, "MAX_PIXELS", 128 * 128 - 1)
    refused(heic(blocks(3, 128)), "128x128 pixels: larger than the limit of 16383")


def test_an_image_in_a_pdf_that_unpacks_to_gigabytes_ends_its_process_alone(monkeypatch):
    """40,000 x 40,000 pixels of a PDF of some kilobytes."""
    import zlib
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1500)) + packer.flush()
    image = (b"<</Type/XObject/Subtype/Image/Width 40000/Height 40000/ColorSpace/DeviceGray/BitsPerComponent 8"
             b"/Filter/FlateDecode/Length %d>>stream\n" % len(rows)) + rows + b"\nendstream"
    data = pdf((200, 200), body="q 200 0 0 200 0 0 cm /I Do Q", extra="/Resources<</XObject<</I 9 0 R>>>>")
    data = data.replace(b"xref\n", b"9 0 obj" + image + b"endobj\nxref\n", 1)
    monkeypatch.setattr(formats, "MAX_MEMORY", 512 << 20)
    began = time.monotonic()
    try:
        assert max(decode(usable(data)).shape) <= 2500  # without the image
    except ImageError as error:
        assert str(error).isprintable()
    assert time.monotonic() - began < 60


def test_a_process_that_takes_too_long_is_ended(monkeypatch, tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(formats, "CONVERT", slow)
    monkeypatch.setattr(formats, "MAX_SECONDS", 1)
    refused(pdf((100, 100)), "PDF that takes more than 1 s to read")


@pytest.mark.parametrize("program", ["import os; os.abort()", "print('no json')",
                                     "print('{\"width\": 9, \"height\": 9, \"channels\": 3}')"])
def test_a_process_that_crashes_is_one_line(monkeypatch, tmp_path, program):
    broken = tmp_path / "broken.py"
    broken.write_text(program)
    monkeypatch.setattr(formats, "CONVERT", broken)
    refused(heic(blocks(3)), "damaged or too complex HEIC")


@pytest.mark.parametrize(("package", "extra"), [("pillow_heif", "heif"), ("pypdfium2", "pdf")])
def test_a_missing_package_is_named(monkeypatch, package, extra):
    data = heic(blocks(3)) if extra == "heif" else pdf((100, 100))
    find = formats.importlib.util.find_spec
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None if name == package else find(name))
    refused(data, rf'a {extra.upper() if extra == "pdf" else "HEIC"} file: to read it, pip install "docmetric\[{extra}\]"')


def test_the_process_needs_nothing_of_the_project(tmp_path):
    """And takes no module of the folder that it is in, or that it is started in, for a package."""
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    done = subprocess.run([sys.executable, formats.CONVERT, "pdf", "1", "1000000", str(2 << 30)], input=pdf((72, 72)),
                          capture_output=True, cwd=tmp_path, env={"PATH": os.environ["PATH"]})
    head, _, rows = done.stdout.partition(b"\n")
    about = json.loads(head)
    assert done.returncode == 0 and len(rows) == about["width"] * about["height"] * about["channels"]


def test_thumbnails():
    data = cv2.imencode(".jpg", cv2.resize(blocks(4, 64), (1600, 800)))[1].tobytes()
    for size, shape in ((256, (128, 256, 3)), (31, (16, 31, 3)), (5000, (800, 1600, 3))):
        small = thumbnail(data, size)
        assert content_type(small) == "image/jpeg" and decode(small).shape == shape
    with pytest.raises(ImageError):
        thumbnail(b"no image", 64)
