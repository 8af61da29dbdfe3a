"""What an image file says about itself, read before any pixel is decoded (standard library only).

Decoders believe whatever they are given: a few bytes may ask for gigabytes of pixels, half a JPEG becomes a
half-grey picture, and `IMREAD_UNCHANGED` forgets the EXIF orientation. The header tells all three beforehand.
"""
import re
import struct
import zlib
from typing import NamedTuple


class Header(NamedTuple):
    """`width` and `height` in pixels, as stored (before rotation). `orientation` is EXIF's 1..8: how the decoded
    pixels still have to be turned. `premultiplied`: the colours arrive already multiplied by their alpha.
    `problem` is "truncated" or "damaged" when the file cannot be used; the other fields then mean nothing.
    """
    format: str
    width: int = 0
    height: int = 0
    orientation: int = 1
    premultiplied: bool = False
    problem: str = ""


def read_header(data: bytes) -> Header | None:
    """The header of a JPEG, PNG, WebP, BMP or TIFF file; None for anything else."""
    for name, magic, read in _FORMATS:
        if magic.match(data):
            try:
                return Header(name, *read(data))
            except (EOFError, struct.error):  # struct.error: a field beyond the end
                return Header(name, problem="truncated")
            except ValueError:
                return Header(name, problem="damaged")
    return None


# After the scan begins, FF 00 is a stuffed byte and FF D0..D7 a restart; neither starts a segment.
_JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]", re.DOTALL)
_JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _read_jpeg(data):
    width, height, orientation, position = 0, 0, 1, 2
    while match := _JPEG_MARKER.search(data, position):
        marker, position = data[match.end() - 1], match.end()
        if marker == 0xD9:  # end of image; thumbnails are inside segments and pictures appended later are not ours
            return width, height, orientation
        length, = struct.unpack_from(">H", data, position)
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 3)
        elif marker == 0xE1 and data.startswith(b"Exif\0\0", position + 2):
            orientation = _exif_orientation(data[position + 8:position + length])
        position += length
    raise EOFError


def _read_png(data):
    width, height = struct.unpack_from(">II", data, 16)
    orientation, position = 1, 8
    while True:
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length  # length, kind, content, checksum
        if end > len(data):
            raise EOFError
        if zlib.crc32(data[position + 4:end - 4]) != int.from_bytes(data[end - 4:end], "big"):
            raise ValueError  # libpng would say so on stderr
        if kind == b"IEND":
            return width, height, orientation
        if kind == b"eXIf":
            orientation = _exif_orientation(data[position + 8:end - 4])
        position = end


def _read_webp(data):
    width, height, orientation, position = 0, 0, 1, 12
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    if end > len(data):
        raise EOFError
    while position + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, position)
        position += 8
        if kind == b"VP8 ":
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, position + 6))
        elif kind == b"VP8L":
            bits, = struct.unpack_from("<I", data, position + 1)
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        elif kind == b"EXIF":
            orientation = _exif_orientation(data[position:position + length].removeprefix(b"Exif\0\0"))
        position += length + length % 2
    return width, height, orientation


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
    # OpenCV's TIFF decoder, unlike the others, turns the picture itself, and multiplies 8-bit colours by their alpha
    # wherever the file declares an alpha channel (extra sample 1 or 2).
    return tags.get(256, 0), tags.get(257, 0), 1, tags.get(338) in (1, 2)


def _exif_orientation(exif):
    """A damaged EXIF block must not cost the picture: its orientation is then the usual one."""
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
            tags[tag], = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, entry + 8)
    return tags


_FORMATS = [(name, re.compile(magic, re.DOTALL), read) for name, magic, read in (
    ("JPEG", rb"\xff\xd8\xff", _read_jpeg),
    ("PNG", rb"\x89PNG\r\n\x1a\n", _read_png),
    ("WebP", rb"RIFF....WEBP", _read_webp),
    ("BMP", rb"BM", _read_bmp),
    ("TIFF", rb"II\*\0|MM\0\*", _read_tiff),
)]
