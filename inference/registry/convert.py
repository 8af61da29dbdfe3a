"""A HEIC image or a page of a PDF file as pixels, in a process of its own: `formats.py` runs this file.

    python convert.py heic|pdf PAGE MAX_PIXELS MAX_BYTES < FILE > PIXELS

The parsers of these formats are large C libraries, and a file can make them take any memory and time, or crash: here that
ends a process that has nothing to lose. Output: a line of JSON, {"width", "height", "channels"} and then the rows, gray or
BGR or BGRA; or {"error": reason}. This file imports the standard library, pillow_heif and pypdfium2, nothing of the project.
"""
import json
import sys

DPI = 150
LEAST, MOST = 1000, 2500  # pixels of the longer side of a page: from a visiting card to a poster
SECONDS = 60


class Unusable(Exception):
    pass


def heic(data, page, max_pixels):
    import io

    import pillow_heif

    pillow_heif.options.DECODE_THREADS = 1
    try:
        image = pillow_heif.open_heif(io.BytesIO(data), bgr_mode=True)  # reads the header; decoded upright
        width, height = image.size
        if width * height > max_pixels:
            raise Unusable(f"{width}x{height} pixels: larger than the limit of {max_pixels}")
        rows, mode = image.data, image.mode
    except (ValueError, RuntimeError, SyntaxError, EOFError, OSError, IndexError) as error:
        raise Unusable("truncated HEIC" if "EOF" in str(error) or "end of file" in str(error).lower()
                       else "damaged or unsupported HEIC") from None
    channels = {"BGR": 3, "BGRA": 4, "L": 1}.get(mode)
    if channels is None:
        raise Unusable(f"HEIC of mode {mode[:16]}: unsupported")
    return image.size, channels, image.stride, memoryview(rows).cast("B")


def pdf(data, page, max_pixels):
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        # FPDF_ERR_PASSWORD and FPDF_ERR_SECURITY
        raise Unusable("encrypted PDF: save it without a password" if error.err_code in (4, 5) else "damaged PDF") from None
    pages = len(document)
    if not 1 <= page <= pages:
        raise Unusable(f"page {page}: the PDF has {pages} page{'s' * (pages != 1)}")
    try:
        if document.get_formtype():
            document.init_forms()  # what was filled in; the library is built without JavaScript
        sheet = document[page - 1]
        width, height = sheet.get_size()  # points, 1/72 inch
        longer = max(width, height)
        if not 1 <= longer < 1e7 or min(width, height) * 50 < longer:
            raise Unusable(f"page {page}: its size of {width:.0f} x {height:.0f} points is not that of a document")
        scale = min(max(DPI / 72, LEAST / longer), MOST / longer)
        bitmap = sheet.render(scale=scale)  # on white
    except pypdfium2.PdfiumError:
        raise Unusable(f"damaged PDF: page {page} cannot be drawn") from None
    return (bitmap.width, bitmap.height), bitmap.n_channels, bitmap.stride, memoryview(bitmap.buffer).cast("B")


def main(kind, page, max_pixels, max_bytes):
    try:
        import resource
    except ImportError:  # not on Windows
        pass
    else:
        resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = sys.stdout.buffer
    try:
        (width, height), channels, stride, rows = {"heic": heic, "pdf": pdf}[kind](sys.stdin.buffer.read(), page, max_pixels)
    except Unusable as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": f"takes more memory than {max_bytes >> 20} MiB to read"}
    else:
        answer = {"width": width, "height": height, "channels": channels}
    out.write(json.dumps(answer).encode() + b"\n")
    if "error" not in answer:
        for top in range(height):
            out.write(rows[top * stride:top * stride + width * channels])
    out.flush()


if __name__ == "__main__":
    sys.path.pop(0)  # this file's own folder, whose names are not those of packages
    main(sys.argv[1], *map(int, sys.argv[2:]))
