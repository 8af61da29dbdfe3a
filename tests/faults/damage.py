"""Images of every kind, and ways to damage them. Image N of a seed is always the same."""
import functools
import io
import random
import re
import struct
import zlib

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

NUMBERS = (0, 1, 2, 3, 4, 7, 8, 16, 127, 128, 255, 256, 1000, 13_000, 32_767, 32_768, 65_535, 65_536, 1 << 24, (1 << 31) - 1,
           1 << 31, (1 << 32) - 1)


# ---------------------------------------------------------------- intact images
@functools.cache
def originals() -> dict[str, bytes]:
    """{name: file}, one image of every format and kind that can be read."""
    made = {}

    def save(name, image, kind, **options):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        made[f"{kind} {name}"] = buffer.getvalue()

    y, x = np.mgrid[0:1:67j, 0:1:101j]
    noise = np.random.default_rng(0).integers(-20, 20, (67, 101, 3))
    rgb = Image.fromarray((np.stack([255 * x, 255 * y, 200 * x * y], 2) + noise).clip(0, 255).astype(np.uint8))
    gray, palette, bits = rgb.convert("L"), rgb.quantize(200), rgb.convert("1")
    alpha = rgb.copy()
    alpha.putalpha(gray)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"

    for name, image, options in (
            ("444", rgb, dict(subsampling=0)), ("420", rgb.resize((320, 272)), dict(subsampling=2, optimize=True)),
            ("gray", gray, {}), ("progressive", rgb, dict(progressive=True)), ("CMYK", rgb.convert("CMYK"), {}),
            ("progressive CMYK", rgb.convert("CMYK"), dict(progressive=True)),
            ("restarts", rgb, dict(restart_marker_rows=1)),
            ("EXIF", rgb, dict(exif=exif, icc_profile=bytes(3000), comment=b"a comment")),
            ("progressive gray", gray.resize((512, 256)), dict(progressive=True, exif=exif))):
        save(name, image, "JPEG", **options)

    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a text " * 99, zip=True)
    text.add_itxt("Title", "a title", "en", "title", zip=True)
    for name, image, options in (
            ("RGB", rgb, {}), ("gray", gray, {}), ("palette", palette, {}), ("one bit", bits, {}), ("RGBA", alpha, {}),
            ("gray with alpha", alpha.convert("LA"), {}), ("transparent palette", palette, dict(transparency=3)),
            ("four bits", rgb.quantize(12), dict(bits=4)),
            ("metadata", rgb, dict(exif=exif, icc_profile=bytes(3000), pnginfo=text, transparency=(1, 2, 3))),
            ("animated", rgb, dict(save_all=True, append_images=[rgb.rotate(90), alpha], duration=9, default_image=True))):
        save(name, image, "PNG", **options)
    deep = np.asarray(alpha).astype(np.uint16) * 257
    for channels in (1, 3, 4):
        made[f"PNG 16 bit, {channels}"] = cv2.imencode(".png", deep[:, :, :channels])[1].tobytes()
        made[f"TIFF 16 bit, {channels}"] = cv2.imencode(".tif", deep[:, :, :channels])[1].tobytes()
    made["PNG interlaced"] = _interlaced(np.asarray(rgb), 8)
    made["PNG interlaced, 16 bit"] = _interlaced(deep.byteswap().view(np.uint8).reshape(67, 101, 8), 16)

    for name, image, options in (
            ("lossy", rgb, {}), ("lossless", rgb, dict(lossless=True)), ("alpha", alpha, {}),
            ("lossless alpha", alpha, dict(lossless=True)), ("EXIF", rgb, dict(exif=exif, icc_profile=bytes(300))),
            ("animated", alpha, dict(save_all=True, append_images=[alpha.rotate(90), rgb], duration=9))):
        save(name, image, "WEBP", **options)

    for name, image in (("RGB", rgb), ("RGBA", alpha), ("palette", palette), ("one bit", bits)):
        save(name, image, "BMP")
    made["BMP RLE8"] = _bmp(64, 40, 8, 1, bytes(range(256)) * 4 + (b"\x20\x07\x20\x09\0\0" * 40 + b"\0\1"))
    made["BMP RLE4"] = _bmp(64, 40, 4, 2, bytes(range(64)) + (b"\x20\x17\x20\x49\0\0" * 40 + b"\0\1"))
    made["BMP 16 bit"] = _bmp(64, 40, 16, 0, bytes(range(256)) * 20)
    made["BMP masks"] = _bmp(64, 40, 32, 3, struct.pack("<4I", 0xFF, 0xFF00, 0xFF0000, 0xFF000000) + bytes(range(256)) * 40)
    made["BMP OS/2"] = b"BM" + struct.pack("<IIIIHHHH", 0, 0, 26, 12, 20, 10, 1, 24) + bytes(range(200)) * 3

    for name, image, options in (
            ("raw", rgb, {}), ("LZW", rgb, dict(compression="tiff_lzw")),
            ("deflate", alpha, dict(compression="tiff_deflate")), ("packbits", gray, dict(compression="packbits")),
            ("JPEG", rgb, dict(compression="jpeg")), ("fax 3", bits, dict(compression="group3")),
            ("fax 4", bits, dict(compression="group4")), ("palette", palette, {}),
            ("CMYK", rgb.convert("CMYK"), dict(compression="tiff_lzw")),
            ("float", Image.fromarray(np.float32(x)), {}), ("EXIF", rgb, dict(exif=exif)),
            ("pages", rgb, dict(save_all=True, append_images=[gray]))):
        save(name, image, "TIFF", **options)
    made["TIFF tiles"] = _tiled(np.asarray(gray)[:64, :96], "<")
    made["TIFF tiles, big-endian"] = _tiled(np.asarray(gray)[:64, :96], ">")
    return made


def _interlaced(pixels, depth):
    """A PNG with Adam7 interlacing, which PIL and OpenCV cannot write, from uint8 `[H, W, bytes of a pixel]`."""
    raw = b""
    for y, x, down, right in ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
                              (1, 0, 2, 1)):
        raw += b"".join(b"\0" + row.tobytes() for row in pixels[y::down, x::right])
    height, width, size = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, depth, {3: 2, 4: 6}[size * 8 // depth], 0, 0, 1)
    return _joined("PNG", [b"\x89PNG\r\n\x1a\n"] + [bytes(4) + chunk + bytes(4) for chunk in (
        b"IHDR" + header, b"IDAT" + zlib.compress(raw), b"IEND")])


def _bmp(width, height, bits, compression, rest):
    return (b"BM" + struct.pack("<III", 0, 0, 54 + {8: 1024, 4: 64, 32: 16}.get(bits, 0))
            + struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0) + rest)


def _tiled(pixels, order, side=32):
    """A tiled TIFF from uint8 gray `[H, W]`, both multiples of `side`. `order`: byte order, "<" or ">"."""
    height, width = pixels.shape
    tiles = [pixels[y:y + side, x:x + side].tobytes() for y in range(0, height, side) for x in range(0, width, side)]
    count, at = len(tiles), 200
    entries = [(256, 1, width), (257, 1, height), (258, 1, 8), (259, 1, 1), (262, 1, 1), (277, 1, 1), (322, 1, side),
               (323, 1, side), (324, count, at), (325, count, at + 4 * count)]
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HIH", 42, 8, len(entries))
    head += b"".join(struct.pack(order + "HHII", tag, 4, *rest) for tag, *rest in entries)
    offsets = [at + 8 * count + i * side * side for i in range(count)]
    return head.ljust(at, b"\0") + struct.pack(f"{order}{2 * count}I", *offsets, *[side * side] * count) + b"".join(tiles)


# ---------------------------------------------------------------- damage
def mutated(seed: int, number: int) -> tuple[str, bytes]:
    """(name of the original and of what was done to it, the file), for image `number` of `seed`."""
    rng = random.Random(f"{seed} {number}")
    name, data = rng.choice(list(originals().items()))
    steps = rng.choices(list(MUTATIONS), MUTATIONS.values(), k=rng.choices(range(5), (3, 50, 25, 12, 10))[0])
    for step in steps:
        data = step(rng, data) if data else data
    if steps and data and rng.random() < 0.7:  # otherwise most would fail at the checksum of a PNG or the length of the file
        data = _joined(*_split(data))
    return ": ".join([name, *(step.__name__ for step in steps)]), data


def _range(rng, data):
    first = rng.randrange(len(data))
    return first, min(len(data), first + rng.choice((1, 2, 4, 16, 100, 1000)))


def flip_bits(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 50))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def set_bytes(rng, data):
    first, stop = _range(rng, data)
    return data[:first] + rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * (stop - first) + data[stop:]


def cut_end(rng, data):
    return data[:rng.randrange(len(data))]


def insert(rng, data):
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 100))) + data[at:]


def delete(rng, data):
    first, stop = _range(rng, data)
    return data[:first] + data[stop:]


def repeat(rng, data):
    first, stop = _range(rng, data)
    return data[:stop] + data[first:stop] * rng.choice((1, 1, 2, 50)) + data[stop:]


def splice(rng, data):
    """The beginning of this file and the end of another one, of any format."""
    other = rng.choice(list(originals().values()))
    return data[:rng.randrange(len(data))] + other[rng.randrange(len(other)):]


def set_field(rng, data):
    """Changes a number near the beginning of a segment, chunk or directory entry, where sizes, depths and offsets are."""
    kind, parts = _split(data)
    which, width = rng.randrange(len(parts)), rng.choice((1, 1, 2, 4))
    part, order = bytearray(parts[which]), "big" if kind in ("JPEG", "PNG") or data[:2] == b"MM" else "little"
    if len(part) < width:
        return data
    at = rng.randrange(min(len(part) - width + 1, 48))
    old = int.from_bytes(part[at:at + width], order)
    new = rng.choice((*rng.choices(NUMBERS, k=2), old + rng.choice((-8, -1, 1, 8)), old * 2, rng.getrandbits(32)))
    part[at:at + width] = (new % (1 << 8 * width)).to_bytes(width, order)
    return _joined(kind, [*parts[:which], bytes(part), *parts[which + 1:]])


def _after_first(rng, parts):
    """A random part other than the first, without which the format is unknown."""
    return rng.randrange(1, len(parts)) if len(parts) > 1 else 0


def drop_part(rng, data):
    kind, parts = _split(data)
    del parts[_after_first(rng, parts)]
    return _joined(kind, parts)


def repeat_part(rng, data):
    kind, parts = _split(data)
    parts.insert(_after_first(rng, parts), rng.choice(parts))
    return _joined(kind, parts)


def swap_parts(rng, data):
    kind, parts = _split(data)
    a, b = _after_first(rng, parts), _after_first(rng, parts)
    parts[a], parts[b] = parts[b], parts[a]
    return _joined(kind, parts)


def foreign_part(rng, data):
    """Replaces a part by a part of another file of this format, or inserts it."""
    kind, parts = _split(data)
    others = [other for other in map(_split, originals().values()) if other[0] == kind]
    at = _after_first(rng, parts)
    parts[at:at + rng.randrange(2)] = [rng.choice(rng.choice(others or [(kind, parts)])[1])]
    return _joined(kind, parts)


def damage_inside(rng, data):
    """Damages the pixels of a PNG before their compression; other formats as `flip_bits`."""
    kind, parts = _split(data)
    chosen = [i for i, part in enumerate(parts) if kind == "PNG" and part[4:8] == b"IDAT"]
    try:
        raw = zlib.decompress(b"".join(parts[i][8:-4] for i in chosen))
    except zlib.error:
        raw = b""
    if not raw:
        return flip_bits(rng, data)
    raw = rng.choice((flip_bits, flip_bits, set_bytes, cut_end, repeat, delete))(rng, raw)
    parts[chosen[0]:chosen[-1] + 1] = [bytes(4) + b"IDAT" + zlib.compress(raw, 1) + bytes(4)]
    return _joined(kind, parts)


MUTATIONS = {flip_bits: 4, set_bytes: 3, cut_end: 1, insert: 2, delete: 2, repeat: 2, splice: 2, set_field: 14, drop_part: 2,
             repeat_part: 2, swap_parts: 2, foreign_part: 3, damage_inside: 3}  # and their frequencies


def _split(data):
    """(format, the parts of a file; joined, they are the file). Where the structure is broken, the rest is one part."""
    if data[:2] == b"\xff\xd8":
        kind, ends = "JPEG", [2]
        while (at := ends[-1]) + 4 <= len(data) and data[at] == 0xFF:
            stop = at + 2 + int.from_bytes(data[at + 2:at + 4], "big")
            if data[at + 1] == 0xDA:  # with the scan that follows it
                marker = re.compile(rb"\xff[^\0\xd0-\xd7]", re.DOTALL).search(data, stop)
                stop = marker.start() if marker else len(data)
            ends.append(stop)
    elif data[:4] == b"\x89PNG":
        kind, ends = "PNG", [8]
        while (at := ends[-1]) + 12 <= len(data):
            ends.append(at + 12 + int.from_bytes(data[at:at + 4], "big"))
    elif data[:4] == b"RIFF":
        kind, ends = "WebP", [12]
        while (at := ends[-1]) + 8 <= len(data):
            length = int.from_bytes(data[at + 4:at + 8], "little")
            ends.append(at + 8 + length + length % 2)
    elif data[:2] in (b"II", b"MM"):
        order = "little" if data[:2] == b"II" else "big"
        at = int.from_bytes(data[4:8], order)
        kind, ends = "TIFF", [8, *range(at, at + 2 + 12 * min(50, int.from_bytes(data[at:at + 2], order)), 12)]
    else:
        kind, ends = "BMP", [14, 54, 54 + 64, 54 + 1024]
    ends = [0, *sorted({end for end in ends if 0 < end < len(data)}), len(data)]
    return kind, [data[first:stop] for first, stop in zip(ends, ends[1:])]


def _joined(kind, parts):
    """A file from its parts, with correct lengths and checksums, since readers stop at the first wrong one."""
    if kind == "JPEG":
        parts = [part[:2] + struct.pack(">H", (len(part) - 2) % 65536) + part[4:]
                 if len(part) >= 4 and part[1] not in (0xD8, 0xDA) else part for part in parts]
    elif kind == "PNG":
        parts = [struct.pack(">I", len(part) - 12) + part[4:-4] + struct.pack(">I", zlib.crc32(part[4:-4]))
                 if len(part) >= 12 else part for part in parts]
    elif kind == "WebP":
        parts = [part[:4] + struct.pack("<I", len(part) - 8) + part[8:] if len(part) > 12 else part for part in parts]
        if parts and len(parts[0]) == 12:
            parts[0] = b"RIFF" + struct.pack("<I", sum(map(len, parts)) - 8) + parts[0][8:]
    return b"".join(parts)
