"""Which network an ONNX file holds, whatever else stands in it.

`python -m eval --calibrate` writes new thresholds into a model's file and leaves its network alone: the features stay the
same, so nothing needs to be embedded again. A model is therefore known by its network. The few fields that count are read
from protobuf's wire format (https://protobuf.dev/programming-guides/encoding), since the package onnx is not needed
elsewhere.
"""
import hashlib
import io
import json

from ..errors import UserError
from ..model import MAX_BYTES, MAX_METADATA, METADATA_KEY, not_ours

SEAL = b"docmetric_sha256"
GRAPH, OPSETS, METADATA, FUNCTIONS = 7, 8, 14, 25  # fields of ModelProto, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
MAX_FIELDS = 10_000  # of a file; real ones have some 10
BLOCK = 1 << 20
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # types of a field on the wire


def graph_hash(model) -> str:
    """SHA-256, 64 hex digits, of all in an ONNX file that its features depend on: the graph with its weights, the operator
    sets and functions that it uses, and `fit` of the project's metadata, which says how an image becomes a square.

    model: a path, or the content of a file. Bounded memory. Raises UserError where this is no ONNX file of the project.
    """
    if isinstance(model, (bytes, bytearray, memoryview)):
        return _hash("model", io.BytesIO(model))
    try:
        with open(model, "rb") as file:
            return _hash(model, file)
    except OSError as error:
        raise UserError(f"{model}: cannot be read ({error.strerror}); give the path of an exported model") from None


def sealed(content: bytes) -> bytes:
    """An ONNX file's content with one more entry of its metadata, at its end: the SHA-256 of all before it. It is an ONNX
    file as before. What has a seal gets no second one."""
    return content if is_sealed(content) else content + _seal(content)


def is_sealed(content: bytes) -> bool:
    """Whether a file has a seal that is right: not a bit of it, its thresholds included, is another than it was."""
    body = content[:-len(_seal(b""))]
    return len(body) < len(content) and content[len(body):] == _seal(body)


def _seal(body):
    digest = hashlib.sha256(body).hexdigest().encode()
    entry = b"".join((number << 3 | BYTES).to_bytes(1, "big") + len(text).to_bytes(1, "big") + text
                     for number, text in ((1, SEAL), (2, digest)))
    return (METADATA << 3 | BYTES).to_bytes(1, "big") + len(entry).to_bytes(1, "big") + entry


def _hash(name, file):
    digests, fit = {GRAPH: [], OPSETS: [], FUNCTIONS: []}, None
    try:
        for number, size in _fields(file, _end(file)):
            if number in digests:
                digests[number].append(_digest(file, size))
            elif number == METADATA:
                if size > MAX_METADATA:
                    raise ValueError(f"metadata of {size:,} bytes")
                key, value = _entry(file.read(size))
                if key == METADATA_KEY.encode():
                    fit = json.loads(value).get("fit", "squash")
        if not digests[GRAPH] or not isinstance(fit, str):
            raise ValueError("no graph, or no metadata of the project")
        fit = fit.encode()
    except (EOFError, ValueError, AttributeError, RecursionError):  # of bytes, and of JSON, of any other form
        raise not_ours(name) from None
    # By kind, so that the order of the fields in the file does not count; each kind with its number, so that none runs over.
    whole = hashlib.sha256(b"docmetric graph 1")
    for kind in (GRAPH, OPSETS, FUNCTIONS):
        whole.update(len(digests[kind]).to_bytes(8, "big") + b"".join(digests[kind]))
    whole.update(fit)
    return whole.hexdigest()


def _end(file):
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size > MAX_BYTES:
        raise ValueError(f"{size:,} bytes")
    return size


def _fields(file, end):
    """(number, size) of each field that is bytes, the file standing at its first byte; the others are skipped."""
    for _ in range(MAX_FIELDS):
        if file.tell() == end:
            return
        number, kind = divmod(_varint(file), 8)
        size = {VARINT: 0, EIGHT_BYTES: 8, FOUR_BYTES: 4}.get(kind)
        if kind == VARINT:
            _varint(file)
        elif kind == BYTES:
            size = _varint(file)
        if size is None or number < 1 or file.tell() + size > end:
            raise ValueError("not protobuf, or truncated")
        following = file.tell() + size
        if kind == BYTES:
            yield number, size
        file.seek(following)
    raise ValueError(f"more than {MAX_FIELDS:,} fields")


def _varint(file):
    """Seven bits a byte, the lowest first; the last byte has its highest bit clear."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("a number of more than 10 bytes")


def _digest(file, size):
    digest = hashlib.sha256()
    while size:
        block = file.read(min(size, BLOCK))
        if not block:  # the file became shorter while it was read
            raise EOFError
        digest.update(block)
        size -= len(block)
    return digest.digest()


def _entry(content):
    """(key, value), bytes, of a StringStringEntryProto."""
    file, found = io.BytesIO(content), {1: b"", 2: b""}
    for number, size in _fields(file, len(content)):
        if number in found:
            found[number] = file.read(size)
    return found[1], found[2]
