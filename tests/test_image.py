"""The decoder: formats, orientation, depth, transparency, damage and limits; the resize; folder listing and labels."""
import io
import os
import struct
import subprocess
import threading
import time
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

import inference.image
from inference.errors import UserError
from inference.header import read_header
from inference.image import (
    MAX_PIXELS,
    MAX_SCANS,
    MIN_SIDE,
    ImageError,
    as_bgr,
    decode,
    fit_square,
    fitted_sides,
    list_images,
    load_image,
    resize,
    type_label,
)

FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "TIFF"]
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}}


def gradient(width=60, height=40, mode="RGB"):
    """Smooth and asymmetric, so that JPEG keeps it and every orientation shows."""
    y, x = np.mgrid[0:1:height * 1j, 0:1:width * 1j]
    return Image.fromarray(np.uint8(np.stack([255 * x, 255 * y, 200 * x * y], axis=2))).convert(mode)


def encode(image, name, **options):
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def rgb(image):
    return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decodes_to_bgr(name, mode):
    image = gradient(mode=mode)
    decoded = decode(encode(image, name))
    assert decoded.dtype == np.uint8 and decoded.shape == (40, 60, 3) and decoded.flags.c_contiguous
    assert np.abs(decoded[:, :, ::-1] - rgb(image)).max() <= (12 if name in ("JPEG", "WEBP") else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_is_upright(name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(gradient(), name, exif=exif, **LOSSLESS.get(name, {"quality": 98, "subsampling": 0}))
    unturned = gradient()
    unturned.getexif()[0x0112] = orientation
    expected = rgb(ImageOps.exif_transpose(unturned))
    decoded = decode(data)[:, :, ::-1]
    assert decoded.shape == expected.shape
    assert np.abs(decoded - expected).max() <= (6 if name == "JPEG" else 0)


def test_a_damaged_exif_block_does_not_cost_the_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(gradient(), "JPEG", exif=exif)
    start = data.index(b"Exif\0\0") + 6
    damaged = data[:start + 4] + b"\xff\xff\xff\xff" + data[start + 8:]  # its directory lies beyond the end
    assert decode(damaged).shape == (40, 60, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6])
@pytest.mark.parametrize("size, divisor", [(20, 8), (40, 4), (80, 2), (100, 1)])
def test_a_large_jpeg_is_decoded_small(mode, orientation, size, divisor):
    """A scene with detail at every scale; what `resize` makes of the small image is what it makes of the whole one."""
    rng = np.random.default_rng(0)
    scene = 128 + sum(cv2.resize(rng.uniform(-1, 1, (side, side, 3)) * strength, (504, 328))
                      for side, strength in ((3, 60), (9, 40), (27, 25), (81, 12), (200, 6)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(scene.clip(0, 255).astype(np.uint8)).convert(mode), "JPEG", exif=exif, quality=95)
    whole, small = decode(data), decode(data, size)
    assert small.shape[:2] == tuple(-(-side // divisor) for side in whole.shape[:2])
    assert min(small.shape[:2]) >= 2 * size or divisor == 1
    difference = np.abs(resize(small, size).astype(int) - resize(whole, size))
    assert difference.mean() < 1 and difference.max() <= (0 if divisor == 1 else 12)


def test_only_jpeg_is_decoded_small():
    data = encode(gradient(600, 400), "PNG")
    assert np.array_equal(decode(data, 32), decode(data))


def test_a_jpeg_whose_sides_do_not_divide_is_less_reduced():
    """At 1/8 the last column would be mostly padding, 5 of 336: the image would shift by a third of a pixel."""
    assert decode(encode(gradient(331, 503), "JPEG"), 20).shape == (126, 83, 3)


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_not_cut(name, channels):
    values = np.linspace(0, 65535, 40 * 60).reshape(40, 60, 1).repeat(channels, 2).astype(np.uint16)
    data = cv2.imencode({"PNG": ".png", "TIFF": ".tif"}[name], values)[1].tobytes()
    assert np.array_equal(decode(data), np.rint(values / 257).astype(np.uint8).repeat(3 // channels, 2))


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_put_on_white(name):
    image = gradient()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    # WebP drops the color of wholly transparent pixels, and 8-bit TIFF arrives multiplied by its alpha.
    decoded = decode(encode(image, name, **LOSSLESS[name]))[:, :, ::-1]
    assert np.abs(decoded - rgb(white)).max() <= 1


def test_16_bit_transparency_and_gray_with_alpha():
    deep = np.full((20, 30, 4), (50, 100, 200, 128), np.uint16) * 257
    expected = [round((value * 128 + 255 * 127) / 255) for value in (50, 100, 200)]
    for extension in (".png", ".tif"):
        assert np.abs(decode(cv2.imencode(extension, deep)[1].tobytes())[3, 4] - np.array(expected)).max() <= 1
    gray = Image.fromarray(np.full((20, 30, 2), (200, 128), np.uint8), "LA")
    assert np.abs(decode(encode(gray, "PNG"))[3, 4].astype(int) - 227).max() <= 1


@pytest.mark.parametrize("name", ["PNG", "BMP", "TIFF"])
def test_palette_and_one_bit(name):
    palette = gradient().quantize(16)
    assert np.array_equal(decode(encode(palette, name))[:, :, ::-1], rgb(palette))
    bits = gradient(mode="1")
    assert np.array_equal(decode(encode(bits, name))[:, :, ::-1], rgb(bits))


def test_transparent_palette():
    image = Image.new("P", (20, 20))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.paste(1, (0, 0, 10, 20))
    decoded = decode(encode(image, "PNG", transparency=0))
    assert decoded[5, 5].tolist() == [0, 0, 200] and decoded[5, 15].tolist() == [255, 255, 255]


def test_cmyk_jpeg():
    decoded = decode(encode(gradient().convert("CMYK"), "JPEG", quality=95))
    assert np.abs(decoded[:, :, ::-1] - rgb(gradient())).max() <= 12


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.98])
def test_truncated_files_are_refused(name, kept, capfd):
    data = encode(gradient(300, 200), name, **({"progressive": True} if kept == 0.7 and name == "JPEG" else {}))
    with pytest.raises(ImageError, match="truncated|damaged"):
        decode(data[:int(len(data) * kept)])
    assert capfd.readouterr().err == ""


def test_a_truncated_jpeg_is_called_so():
    data = encode(gradient(300, 200), "JPEG")
    thumbnail = b"\xff\xe2" + struct.pack(">H", 2 + len(data)) + data  # a whole JPEG inside a segment
    whole = data[:2] + thumbnail + data[2:]
    assert decode(whole).shape == (200, 300, 3)
    assert decode(data + b"appended \xff\xda").shape == (200, 300, 3)  # phones append things
    for cut in (1, 2, 100):
        with pytest.raises(ImageError, match="^truncated JPEG$"):
            decode(whole[:-cut])


def test_damaged_png(capfd):
    data = bytearray(encode(gradient(), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ImageError, match="^damaged PNG$"):
        decode(bytes(data))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("data, reason", [
    (b"", "^empty file$"),
    (b"Dear Sir or Madam", "^not an image"),
    (b"BM is how this text begins, and it goes on", "BMP"),
    (b"II*\0 not quite a TIFF", "TIFF"),
    (b"\xff\xd8\xff", "^truncated JPEG$"),
    (encode(gradient(), "GIF"), "^not an image"),
    (encode(gradient(1, 1), "PNG"), f"^1x1 pixels: smaller than {MIN_SIDE}$"),
    (encode(gradient(300, MIN_SIDE - 1), "PNG"), f"^300x{MIN_SIDE - 1} pixels: smaller"),
])
def test_what_is_not_an_image(data, reason):
    with pytest.raises(ImageError, match=reason):
        decode(data)


def test_a_very_long_image_is_fine():
    assert decode(encode(gradient(20_000, 20), "JPEG")).shape == (20, 20_000, 3)
    assert resize(decode(encode(gradient(20_000, 20), "PNG")), 64).shape == (64, 64, 3)


@pytest.mark.parametrize("width, height", [(60, 40), (40, 60), (33, 47), (500, 8), (8, 5000), (50, 50)])
@pytest.mark.parametrize("size", [15, 64, 100])
def test_a_padded_image_keeps_its_aspect(width, height, size):
    """It stands in the middle, as wide and high as its aspect asks for, to a pixel, since what is added is the same on both
    sides; and all around it is the color of its border."""
    image = rgb(gradient(width, height)).astype(np.uint8)
    image[:3], image[-3:], image[:, :3], image[:, -3:] = ((250, 200, 150),) * 4       # a border of one color
    square = fit_square(image, size, "pad")
    wide, high = fitted_sides(width, height, size, "pad")
    assert square.shape == (size, size, 3) and square.dtype == np.uint8 and max(wide, high) == size
    longest = max(width, height)
    for side, original in ((wide, width), (high, height)):
        assert abs(side - size * original / longest) <= 1 or side == 2 - size % 2     # the least that there can be
    left, top = (size - wide) // 2, (size - high) // 2
    assert (2 * left + wide, 2 * top + high) == (size, size)                          # the same on both sides
    inside = square[top:top + high, left:left + wide]
    assert np.array_equal(inside, resize(image, wide, high))
    if longest <= 3 * size and min(wide, high) > 2:  # else less than the border's three pixels is one of the result's
        rest = np.ones((size, size), bool)
        rest[top:top + high, left:left + wide] = False
        assert (square[rest] == (250, 200, 150)).all()


def test_padding_takes_the_color_that_most_of_the_border_has():
    image = np.full((20, 60, 3), (10, 20, 30), np.uint8)
    image[:6, :20] = 255  # a corner of another color
    assert (fit_square(image, 60, "pad")[[0, 19, 40, 59]] == (10, 20, 30)).all()


@pytest.mark.parametrize("width, height, size", [(60, 40, 60), (41, 60, 60), (60, 33, 60)])
def test_the_color_of_the_padding_is_the_median_of_the_border(width, height, size):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    inner = resize(image, *fitted_sides(width, height, size, "pad"))
    color = np.rint(np.median(np.concatenate([inner[0], inner[-1], inner[:, 0], inner[:, -1]]), 0))
    padded = fit_square(image, size, "pad")
    assert (padded[:2, :2] == color).all() and (padded[-2:, -2:] == color).all()


def test_squashing_is_resizing_and_nothing_else_is_known():
    image = rgb(gradient()).astype(np.uint8)
    assert np.array_equal(fit_square(image, 32), resize(image, 32)) and fitted_sides(60, 40, 32, "squash") == (32, 32)
    square = rgb(gradient(40, 40)).astype(np.uint8)
    assert np.array_equal(fit_square(square, 32, "pad"), resize(square, 32))
    with pytest.raises(ValueError, match="'crop'.*squash, pad"):
        fit_square(image, 32, "crop")


def png(width, height, *chunks, first=b"IHDR"):
    chunks = [(first, struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks)


def tiff(*entries):
    """Of (tag, kind, value); what its pixels would be is not there."""
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries) + bytes(4)


def bmp(width, height):
    """Of run lengths, so that its size says nothing about its content's."""
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, width, height, 1, 8, 1, 0, 0, 0, 0, 0)


def two_frames():
    """The first says 32000x32000, which is what the decoder would take; the second, behind the scan, 60x40."""
    data = encode(gradient(), "JPEG")
    frame = data.index(b"\xff\xc0")
    stop = frame + 2 + int.from_bytes(data[frame + 2:frame + 4], "big")
    return data[:frame + 5] + struct.pack(">HH", 32000, 32000) + data[frame + 9:-2] + data[frame:stop] + b"\xff\xd9"


def large_canvas():
    """An animation of 60x40 in a corner of 16384x16384."""
    data = bytearray(encode(gradient(), "WEBP", save_all=True, append_images=[gradient(mode="L")]))
    canvas = data.index(b"VP8X") + 12
    data[canvas:canvas + 6] = (16383).to_bytes(3, "little") * 2
    return bytes(data)


def many_scans():
    """A refinement of all coefficients, over and over: each takes 50 ms for a large image, and 200 bytes."""
    data = encode(gradient(), "JPEG", progressive=True)
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 63, 16) + bytes(100)
    return data[:-2] + scan * MAX_SCANS + b"\xff\xd9"


@pytest.mark.parametrize("data, reason", [
    (png(MAX_PIXELS // 8, 16), "^22369621x16 pixels: larger than the limit"),
    (png(60_000, 60_000, (b"IDAT", zlib.compress(b""))), "^60000x60000 pixels: larger"),
    (png(60, 40, first=b"tEXt"), "^damaged PNG$"),
    (png(60, 40, *[(b"tEXt", b"")] * 12_000), "^damaged PNG$"),
    (encode(gradient(), "JPEG").replace(struct.pack(">HH", 40, 60), b"\xff\xdc\xff\xdc"), "^65500x65500 pixels: larger"),
    (two_frames(), "^damaged JPEG$"),
    (many_scans(), "scans: more than the limit of 100$"),
    (b"\xff\xd8" + b"\xff\xe0\0\2" * 12_000 + encode(gradient(), "JPEG")[2:], "^damaged JPEG$"),
    (large_canvas(), "^16384x16384 pixels: larger"),
    (b"RIFF" + struct.pack("<I", 96_004) + b"WEBP" + b"JUNK\0\0\0\0" * 12_000, "^damaged WebP$"),
    (bmp(60_000, 60_000), "^60000x60000 pixels: larger"),
    (bmp(-60_000, 60_000), "^damaged BMP$"),
    (bmp(60_000, -2 ** 31), "^60000x2147483648 pixels: larger"),
    (tiff((256, 4, 60_000), (257, 4, 60_000)), "^60000x60000 pixels: larger"),
    (tiff((256, 4, 60_000), (256, 4, 60), (257, 4, 60_000), (257, 4, 40)), "^60000x60000 pixels: larger"),
    (tiff((256, 1, 60), (257, 4, 40)), "^damaged TIFF$"),  # a width in a form that decoders read and the header's reader not
    (tiff((257, 4, 40)), "^damaged TIFF$"),
])
def test_bombs_are_refused_before_they_are_decoded(monkeypatch, data, reason):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    assert len(data) < 150_000
    with pytest.raises(ImageError, match=reason):
        decode(data)


def test_of_a_png_only_what_pixels_are_made_of_is_decoded(capfd):
    """Not texts that unpack to 100 MB, nor what comes behind the first image of an animation: OpenCV 5 crashes there."""
    data, bomb = encode(gradient(), "PNG"), zlib.compress(bytes(100 << 20))
    extra = png(1, 1, (b"acTL", struct.pack(">II", 9, 0)), (b"fcTL", bytes(26)), (b"zTXt", b"a\0\0" + bomb),
                (b"iCCP", b"a\0\0" + bomb))[33:-12]
    behind = png(1, 1, (b"fdAT", bytes(9)), (b"f\xffAT", b"\xff"))[33:-12]
    whole = data[:33] + extra + data[33:-12] + behind + data[-12:]
    assert read_header(whole).problem == "" and np.array_equal(decode(whole), decode(data))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("channels, dtype", [(4, np.uint8), (4, np.uint16), (1, np.uint16), (3, np.float32)])
def test_conversion_takes_little_more_memory_than_its_result(channels, dtype):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1500, 1000, channels), np.uint8)
    values = {np.uint8: image, np.uint16: image.astype(np.uint16) * 257, np.float32: image / np.float32(255)}[dtype]
    tracemalloc.start()
    found = as_bgr(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * found.nbytes
    expected = image[:, :, :3].astype(float)
    if channels == 4:
        opaque = image[:, :, 3:] / 255
        expected = expected * opaque + 255 * (1 - opaque)
    assert np.abs(found - expected).max() <= 1


def test_opencv_makes_no_threads_of_its_own():
    """For what those leave behind whenever one of ours ends; see where it is set."""
    assert cv2.getNumThreads() == 1


def test_threads_together_decode_so_many_pixels(monkeypatch):
    """Not one more, and all of them get their turn."""
    monkeypatch.setattr(inference.image, "_room", inference.image._Room(10_000))
    data, at_once, most, lock = encode(gradient(), "PNG"), [0], [0], threading.Lock()
    imdecode = cv2.imdecode

    def slow(*arguments):
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.01)
        with lock:
            at_once[0] -= 1
        return imdecode(*arguments)

    monkeypatch.setattr(cv2, "imdecode", slow)
    decoded = list(inference.image.map_ahead(decode, [data] * 40, threads=16))
    assert len(decoded) == 40 and most[0] == 10_000 // (60 * 40)
    damaged = data[:-30] + png(1, 1)[-12:]
    for _ in range(5):  # one that cannot be used gives back what it took
        with pytest.raises(ImageError):
            decode(damaged)
    assert inference.image._room.left == 10_000


def test_load_image_names_what_is_wrong(tmp_path):
    good = tmp_path / "straße 書類.png"
    good.write_bytes(encode(gradient(), "PNG"))
    assert np.array_equal(load_image(good)[:, :, ::-1], rgb(gradient()))
    assert np.array_equal(load_image(str(good)), load_image(good))
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    for name, reason in [("missing.jpg", "^file not found$"), ("folder.jpg", "is a folder"),
                         ("pipe.jpg", "not a regular file"), ("endless.jpg", "not a regular file"),
                         ("loop.jpg", "cannot be read"), ("zero\0byte", "cannot be read"), ("x" * 300, "cannot be read")]:
        with pytest.raises(ImageError, match=reason):
            load_image(f"{tmp_path}/{name}")


@pytest.mark.skipif(not os.path.exists("/proc/self/pagemap"), reason="not on Linux")
def test_a_regular_file_without_an_end():
    with pytest.raises(ImageError, match="^empty file$"):
        load_image("/proc/self/pagemap")


def test_a_file_beyond_the_limit_of_bytes_is_not_read(tmp_path):
    with open(tmp_path / "large.jpg", "wb") as file:
        file.truncate(600 << 20)  # a hole: it takes no room on the disk
    with pytest.raises(ImageError, match="^629145600 bytes: larger than the limit of 536870912$"):
        load_image(tmp_path / "large.jpg")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_no_permission(tmp_path):
    path = tmp_path / "locked.png"
    path.write_bytes(encode(gradient(), "PNG"))
    path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        load_image(path)


def test_as_bgr_takes_what_imread_returns():
    gray = np.arange(200, dtype=np.uint8).reshape(10, 20)
    assert np.array_equal(as_bgr(gray), cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR))
    assert np.array_equal(as_bgr(gray[:, :, None]), as_bgr(gray))
    assert np.array_equal(as_bgr(gray.astype(np.uint16) * 257), as_bgr(gray))
    assert np.array_equal(as_bgr(gray / 255), as_bgr(gray))
    clear = np.zeros((10, 20, 4), np.uint8)
    assert as_bgr(clear).min() == 255
    assert as_bgr(np.zeros((10, 20, 3), np.uint8)).shape == (10, 20, 3)


@pytest.mark.parametrize("array, reason", [
    (None, "imread returns None"),
    ([[0]], "not list"),
    (np.zeros((10, 20, 2), np.uint8), "shape"),
    (np.zeros((1, 10, 20, 3), np.uint8), "shape"),
    (np.zeros((0, 0, 3), np.uint8), "0x0 pixels"),
    (np.zeros((10, 20), np.int32), "int32"),
    (np.full((10, 20), 200.0), "outside 0..1"),
    (np.full((10, 20), np.nan), "outside 0..1"),
])
def test_as_bgr_refuses_the_rest(array, reason):
    with pytest.raises(ImageError, match=reason):
        as_bgr(array)


def test_resize_averages_along_shrinking_axes_and_interpolates_along_growing_ones():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    means = noise.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(resize(noise, 16) - means).max() <= 0.5
    assert np.array_equal(resize(noise, 64), noise)
    assert np.array_equal(resize(noise, 100), cv2.resize(noise, (100, 100), interpolation=cv2.INTER_LINEAR))
    columns = np.repeat(noise[:1], 4, axis=0)  # (4, 64): one axis grows, the other shrinks
    expected = columns[0].reshape(16, 4, 3).mean(axis=1)
    assert np.abs(resize(columns, 16) - expected[None]).max() <= 0.5


def test_list_images(tmp_path):
    for name in ["b.JPG", "a/2.png", "a/10.jpeg", "a/c/x.TIFF", "a/._b.jpg", ".cache/y.png", "a/notes.txt", "z.webp",
                 "z.bmp", "z.tif"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    assert list_images(tmp_path) == ["a/10.jpeg", "a/2.png", "a/c/x.TIFF", "b.JPG", "z.bmp", "z.tif", "z.webp"]
    assert list_images(str(tmp_path) + "/") == list_images(tmp_path)
    assert list_images(tmp_path / "folder.jpg") == []


def test_list_images_follows_links_but_no_loops(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").touch()
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a" / "self")
    assert list_images(root) == ["a/linked/x.png"]


def test_links_that_multiply_are_refused(tmp_path):
    """Ten folders that lead to each other have ten million paths, though none of them goes in a circle."""
    for here in range(10):
        (tmp_path / str(here)).mkdir()
        for there in set(range(10)) - {here}:
            (tmp_path / str(here) / f"to {there}").symlink_to(tmp_path / str(there))
    with pytest.raises(UserError, match="links lead to it in more than 100 ways") as caught:
        list_images(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_list_images_goes_as_deep_as_there_are_folders(tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):  # more than Python's functions may call each other
        os.mkdir("d", dir_fd=folder)
        folder, above = os.open("d", os.O_RDONLY, dir_fd=folder), folder
        os.close(above)
    os.close(os.open("x.png", os.O_CREAT, dir_fd=folder))
    os.close(folder)
    try:
        assert list_images(tmp_path) == ["d/" * 1500 + "x.png"]
    finally:  # which is also more than Python can remove
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)


def test_list_images_refuses_in_one_line(tmp_path):
    (tmp_path / "file.png").touch()
    for name, reason in [("missing", "no such folder"), ("file.png", "not a folder")]:
        with pytest.raises(UserError, match=f"{name}: {reason}") as caught:
            list_images(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_type_label():
    assert type_label("A.jpg") == "A"
    assert type_label("A/B.jpg") == "A"
    assert type_label("A/B/c.d.png") == "A/B"
    assert type_label("archive.v2.png") == "archive.v2"
