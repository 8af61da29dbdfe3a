"""Export and import of a collection as one ZIP file."""
import contextlib
import json
import os
import tempfile
import time
from typing import Literal

from starlette.requests import Request
from starlette.responses import StreamingResponse

from ...errors import UserError
from . import shapes
from .common import COLLECTION, INCOMING, Collection, Routes, answer, call, call_long, registry_of, who

router = Routes("Transfer", COLLECTION)

ZIP = "application/zip"
BLOCK = 256 << 10  # bytes of an export that are read at a time
OLD = 24 * 3600  # seconds without a write after which a file in INCOMING belongs to no running request
COUNTS = "Docmetric-Result"  # a header: what is in the file
_ARCHIVE = {"content": {ZIP: {"schema": {"type": "string", "format": "binary"}}}}


@router.add("GET", "/export", "admin", content=_ARCHIVE["content"], errors=(507,))
async def export(request: Request, collection: Collection):
    """The collection with its images, for `import`."""
    registry = await registry_of(request, collection)
    path = await call(request, _temporary, registry.store)
    try:
        counts = await call_long(request, registry.export, path)
        file = open(path, "rb")
    finally:
        os.unlink(path)  # the open file stays, and nothing of it when the answer ends, however that is
    return StreamingResponse(_blocks(file), media_type=ZIP, headers={
        COUNTS: json.dumps(counts), "Content-Length": str(os.fstat(file.fileno()).st_size),
        "Content-Disposition": f'attachment; filename="{collection}.zip"'})


def _blocks(file):
    with file:
        while block := file.read(BLOCK):
            yield block


@router.add("POST", "/import", "admin", shapes.Imported, errors=(409, 415), body={"required": True, **_ARCHIVE})
async def import_(request: Request, collection: Collection, on_conflict: Literal["skip", "merge"] = "skip"):
    """Register what an export holds. on_conflict: what happens to a type that is there already."""
    registry = await registry_of(request, collection)
    async with received(request, registry.store, "archive") as path:
        return answer(await call_long(request, registry.import_, path, on_conflict, who=who(request)))


def _temporary(store):
    """On the disk of the store, which is meant to hold that much; a memory file system is not."""
    folder = store.path / INCOMING
    folder.mkdir(exist_ok=True)
    sweep(store)
    descriptor, path = tempfile.mkstemp(dir=folder)
    os.close(descriptor)
    return path


def sweep(store):
    """Delete what requests left that were killed."""
    for path in (store.path / INCOMING).glob("*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - OLD:
                path.unlink()


@contextlib.asynccontextmanager
async def received(request: Request, store, name: str):
    """The body in a file, which is gone when the block ends. What is said of the file, is said of `name`."""
    path = await call(request, _temporary, store)
    try:
        with open(path, "wb") as file:
            async for block in request.stream():
                await call(request, file.write, block)
        yield path
    except UserError as error:
        error.args = (str(error).replace(path, name), *error.args[1:])
        raise
    finally:
        os.unlink(path)
