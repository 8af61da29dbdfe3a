"""Reads the header of an image file before any pixel is decoded. The standard library only.

Decoders trust their input: a few bytes can request gigabytes of pixels, half of a JPEG file becomes a half-gray image, and
`IMREAD_UNCHANGED` ignores the EXIF orientation. The header shows all three before decoding. The size that it gives is never
smaller than the size that the decoder will produce.
"""
import math
import re
import struct
import zlib
from typing import NamedTuple


class Header(NamedTuple):
    """`width` and `height` are in pixels, as stored, before rotation. `orientation` is that of EXIF, 1..8: the rotation and
    flip that the decoded pixels still need. `premultiplied`: the decoder multiplies the colors by their alpha. `scans`: the
    number of passes of a JPEG decoder over the whole image; with more than one, it keeps the image at full size in memory.
    `problem` is "truncated" or "damaged" when the file cannot be used; the other fields then have no meaning.
    """
    format: str
    width: int = 0
    height: int = 0
    orientation: int = 1
    premultiplied: bool = False
    scans: int = 1
    problem: str = ""


def read_header(data: bytes) -> Header | None:
    """The header of a JPEG, PNG, WebP, BMP or TIFF file; None for anything else."""
    for name, magic, read in _FORMATS:
        if magic.match(data):
            try:
                header = Header(name, *read(data))
                if min(header.width, header.height) < 1:
                    raise ValueError
                return header
            except (EOFError, struct.error):  # struct.error: a field is beyond the end of the file
                return Header(name, problem="truncated")
            except ValueError:
                return Header(name, problem="damaged")
    return None


def _parts(data):
    """Limits the number of segments or chunks. Real ones have kilobytes; millions of empty ones would take minutes."""
    yield from range(10_000 + len(data) // 256)
    raise ValueError


def png_pixels(data: bytes) -> bytes:
    """A PNG file without the chunks that pixels do not need; its header must have no `problem`. Decoders fail on the others:
    OpenCV crashes on a damaged animation (https://github.com/opencv/opencv/issues/27744), libpng unpacks texts of any size.
    """
    view = memoryview(data)
    return b"".join([view[:8], *(view[start:end] for kind, start, end in _png_chunks(data) if kind in _PNG_PIXELS)])


# Inside a scan, FF 00 is an escaped FF and FF D0..D7 is a restart marker; neither starts a segment.
_JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]", re.DOTALL)
_JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _read_jpeg(data):
    width, height, orientation, scans, position = 0, 0, 1, 0, 2
    for _ in _parts(data):
        match = _JPEG_MARKER.search(data, position)
        if not match:
            raise EOFError
        marker, position = data[match.end() - 1], match.end()
        if marker == 0xD9:  # end of image; thumbnails are inside segments, and appended images do not count
            return width, height, orientation, False, scans
        length, = struct.unpack_from(">H", data, position)
        if marker in _JPEG_FRAMES:
            if width:
                raise ValueError
            height, width = struct.unpack_from(">HH", data, position + 3)
        elif marker == 0xDA:
            scans += 1
        elif marker == 0xE1 and data.startswith(b"Exif\0\0", position + 2):
            orientation = _exif_orientation(data[position + 8:position + length])
        position += length


def _read_png(data):
    if data[8:16] != b"\0\0\0\x0dIHDR":
        raise ValueError
    width, height = struct.unpack_from(">II", data, 16)
    orientation = 1
    for kind, start, end in _png_chunks(data):
        if zlib.crc32(data[start + 4:end - 4]) != int.from_bytes(data[end - 4:end], "big"):
            raise ValueError  # found here, since libpng would print it on stderr
        if kind == b"eXIf":
            orientation = _exif_orientation(data[start + 8:end - 4])
    return width, height, orientation


_PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}


def _png_chunks(data):
    """(kind, start, end) of each chunk, which consists of length, kind, content and checksum."""
    position = 8
    for _ in _parts(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise EOFError
        yield kind, position, end
        if kind == b"IEND":
            return
        position = end


def _read_webp(data):
    sizes, orientation, position = [(0, 0)], 1, 12
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    if end > len(data):
        raise EOFError
    for _ in _parts(data):
        if position + 8 > end:
            return *max(sizes, key=math.prod), orientation
        kind, length = struct.unpack_from("<4sI", data, position)
        position += 8
        if kind == b"VP8X":  # the canvas of an animation; its images are in nested chunks and may be smaller
            sizes.append(tuple(1 + int.from_bytes(data[at:at + 3], "little") for at in (position + 4, position + 7)))
        elif kind == b"VP8 ":
            sizes.append(tuple(side & 0x3FFF for side in struct.unpack_from("<HH", data, position + 6)))
        elif kind == b"VP8L":
            bits, = struct.unpack_from("<I", data, position + 1)
            sizes.append(((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1))
        elif kind == b"EXIF":
            orientation = _exif_orientation(data[position:position + length].removeprefix(b"Exif\0\0"))
        position += length + length % 2


def _read_bmp(data):
    offset, header_size = struct.unpack_from("<II", data, 10)
    width, height, _, bits = struct.unpack_from("<HHHH" if header_size == 12 else "<iiHH", data, 18)
    height = abs(height)  # negative: stored top row first
    compressed = header_size > 12 and struct.unpack_from("<I", data, 30)[0] in (1, 2)  # run lengths
    if not compressed and offset + (width * bits + 31) // 32 * 4 * height > len(data):
        raise EOFError
    return width, height, 1


def _read_tiff(data):
    tags = _tiff_tags(data)
    # Unlike the others, OpenCV's TIFF decoder applies the orientation itself, and multiplies 8-bit colors by their alpha
    # if the file declares an alpha channel (extra sample 1 or 2).
    return tags.get(256, 0), tags.get(257, 0), 1, tags.get(338) in (1, 2)


def _exif_orientation(exif):
    """EXIF orientation. A damaged EXIF block counts as orientation 1, so that the image can still be used."""
    try:
        orientation = _tiff_tags(exif).get(274, 1)
    except struct.error:
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _tiff_tags(data):
    """{tag: value} of the single SHORT and LONG values in the first directory of a TIFF file or EXIF block."""
    order = "<" if data.startswith(b"II") else ">"
    start, = struct.unpack_from(order + "I", data, 4)
    count, = struct.unpack_from(order + "H", data, start)
    tags = {}
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, values = struct.unpack_from(order + "HHI", data, entry)
        if kind in (3, 4) and values == 1:
            value, = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, entry + 8)
            tags.setdefault(tag, value)  # decoders use the first entry of a tag, too
    return tags


_FORMATS = [(name, re.compile(magic, re.DOTALL), read) for name, magic, read in (
    ("JPEG", rb"\xff\xd8\xff", _read_jpeg),
    ("PNG", rb"\x89PNG\r\n\x1a\n", _read_png),
    ("WebP", rb"RIFF....WEBP", _read_webp),
    ("BMP", rb"BM", _read_bmp),
    ("TIFF", rb"II\*\0|MM\0\*", _read_tiff),
)]
