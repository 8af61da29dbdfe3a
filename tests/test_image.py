"""The decoder: formats, orientation, depth, transparency, damage and limits; the resize; folder listing and labels."""
import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from inference.image import (
    MAX_PIXELS,
    MIN_SIDE,
    ImageError,
    UserError,
    as_bgr,
    decode,
    list_images,
    load_image,
    resize,
    type_label,
)

FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "TIFF"]
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}}


def picture(width=60, height=40, mode="RGB"):
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
    image = picture(mode=mode)
    decoded = decode(encode(image, name))
    assert decoded.dtype == np.uint8 and decoded.shape == (40, 60, 3) and decoded.flags.c_contiguous
    assert np.abs(decoded[:, :, ::-1] - rgb(image)).max() <= (12 if name in ("JPEG", "WEBP") else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_is_upright(name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), name, exif=exif, **LOSSLESS.get(name, {"quality": 98, "subsampling": 0}))
    unturned = picture()
    unturned.getexif()[0x0112] = orientation
    expected = rgb(ImageOps.exif_transpose(unturned))
    decoded = decode(data)[:, :, ::-1]
    assert decoded.shape == expected.shape
    assert np.abs(decoded - expected).max() <= (6 if name == "JPEG" else 0)


def test_a_damaged_exif_block_does_not_cost_the_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(picture(), "JPEG", exif=exif)
    start = data.index(b"Exif\0\0") + 6
    damaged = data[:start + 4] + b"\xff\xff\xff\xff" + data[start + 8:]  # its directory lies beyond the end
    assert decode(damaged).shape == (40, 60, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6])
@pytest.mark.parametrize("size, divisor", [(20, 8), (40, 4), (80, 2), (100, 1)])
def test_a_large_jpeg_is_decoded_small(mode, orientation, size, divisor):
    """A scene with detail at every scale; what `resize` makes of the small picture is what it makes of the whole one."""
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
    data = encode(picture(600, 400), "PNG")
    assert np.array_equal(decode(data, 32), decode(data))


def test_a_jpeg_whose_sides_do_not_divide_is_less_reduced():
    """At 1/8 the last column would be mostly padding, 5 of 336: the picture would shift by a third of a pixel."""
    assert decode(encode(picture(331, 503), "JPEG"), 20).shape == (126, 83, 3)


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_not_cut(name, channels):
    values = np.linspace(0, 65535, 40 * 60).reshape(40, 60, 1).repeat(channels, 2).astype(np.uint16)
    data = cv2.imencode({"PNG": ".png", "TIFF": ".tif"}[name], values)[1].tobytes()
    assert np.array_equal(decode(data), np.rint(values / 257).astype(np.uint8).repeat(3 // channels, 2))


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_put_on_white(name):
    image = picture()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    # WebP drops the colour of wholly transparent pixels, and 8-bit TIFF arrives multiplied by its alpha.
    decoded = decode(encode(image, name, **LOSSLESS[name]))[:, :, ::-1]
    assert np.abs(decoded - rgb(white)).max() <= 1


def test_16_bit_transparency_and_grey_with_alpha():
    deep = np.full((20, 30, 4), (50, 100, 200, 128), np.uint16) * 257
    expected = [round((value * 128 + 255 * 127) / 255) for value in (50, 100, 200)]
    for extension in (".png", ".tif"):
        assert np.abs(decode(cv2.imencode(extension, deep)[1].tobytes())[3, 4] - np.array(expected)).max() <= 1
    grey = Image.fromarray(np.full((20, 30, 2), (200, 128), np.uint8), "LA")
    assert np.abs(decode(encode(grey, "PNG"))[3, 4].astype(int) - 227).max() <= 1


@pytest.mark.parametrize("name", ["PNG", "BMP", "TIFF"])
def test_palette_and_one_bit(name):
    palette = picture().quantize(16)
    assert np.array_equal(decode(encode(palette, name))[:, :, ::-1], rgb(palette))
    bits = picture(mode="1")
    assert np.array_equal(decode(encode(bits, name))[:, :, ::-1], rgb(bits))


def test_transparent_palette():
    image = Image.new("P", (20, 20))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.paste(1, (0, 0, 10, 20))
    decoded = decode(encode(image, "PNG", transparency=0))
    assert decoded[5, 5].tolist() == [0, 0, 200] and decoded[5, 15].tolist() == [255, 255, 255]


def test_cmyk_jpeg():
    decoded = decode(encode(picture().convert("CMYK"), "JPEG", quality=95))
    assert np.abs(decoded[:, :, ::-1] - rgb(picture())).max() <= 12


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.98])
def test_truncated_files_are_refused(name, kept, capfd):
    data = encode(picture(300, 200), name, **({"progressive": True} if kept == 0.7 and name == "JPEG" else {}))
    with pytest.raises(ImageError, match="truncated|damaged"):
        decode(data[:int(len(data) * kept)])
    assert capfd.readouterr().err == ""


def test_a_truncated_jpeg_is_called_so():
    data = encode(picture(300, 200), "JPEG")
    thumbnail = b"\xff\xe2" + struct.pack(">H", 2 + len(data)) + data  # a whole JPEG inside a segment
    whole = data[:2] + thumbnail + data[2:]
    assert decode(whole).shape == (200, 300, 3)
    assert decode(data + b"appended \xff\xda").shape == (200, 300, 3)  # phones append things
    for cut in (1, 2, 100):
        with pytest.raises(ImageError, match="^truncated JPEG$"):
            decode(whole[:-cut])


def test_damaged_png(capfd):
    data = bytearray(encode(picture(), "PNG"))
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
    (encode(picture(), "GIF"), "^not an image"),
    (encode(picture(1, 1), "PNG"), f"^1x1 pixels: smaller than {MIN_SIDE}$"),
    (encode(picture(300, MIN_SIDE - 1), "PNG"), f"^300x{MIN_SIDE - 1} pixels: smaller"),
])
def test_what_is_not_a_picture(data, reason):
    with pytest.raises(ImageError, match=reason):
        decode(data)


def test_a_very_long_image_is_fine():
    assert decode(encode(picture(20_000, 20), "JPEG")).shape == (20, 20_000, 3)
    assert resize(decode(encode(picture(20_000, 20), "PNG")), 64).shape == (64, 64, 3)


def test_the_pixel_limit_is_checked_before_decoding():
    header = struct.pack(">IIBBBBB", MAX_PIXELS // 8, 16, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks)
    with pytest.raises(ImageError, match="larger than the limit"):
        decode(data)
    jpeg = bytearray(encode(picture(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5:frame + 9] = b"\xff\xdc\xff\xdc"
    with pytest.raises(ImageError, match="^65500x65500 pixels: larger than the limit"):
        decode(bytes(jpeg))


def test_load_image_names_what_is_wrong(tmp_path):
    good = tmp_path / "straße 書類.png"
    good.write_bytes(encode(picture(), "PNG"))
    assert np.array_equal(load_image(good)[:, :, ::-1], rgb(picture()))
    assert np.array_equal(load_image(str(good)), load_image(good))
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in [("missing.jpg", "^file not found$"), (".", "is a folder"), ("pipe.jpg", "not a regular file"),
                         ("zero\0byte", "cannot be read")]:
        with pytest.raises(ImageError, match=reason):
            load_image(f"{tmp_path}/{name}")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_no_permission(tmp_path):
    path = tmp_path / "locked.png"
    path.write_bytes(encode(picture(), "PNG"))
    path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        load_image(path)


def test_as_bgr_takes_what_imread_returns():
    grey = np.arange(200, dtype=np.uint8).reshape(10, 20)
    assert np.array_equal(as_bgr(grey), cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))
    assert np.array_equal(as_bgr(grey[:, :, None]), as_bgr(grey))
    assert np.array_equal(as_bgr(grey.astype(np.uint16) * 257), as_bgr(grey))
    assert np.array_equal(as_bgr(grey / 255), as_bgr(grey))
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
