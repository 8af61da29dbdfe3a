"""Export and import of a collection as one ZIP file."""
import contextlib
import json
import os
import tempfile
from typing import Literal

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse

from ...errors import UserError
from . import shapes
from .common import COLLECTION, INCOMING, Collection, Routes, answer, call, registry_of, who

router = Routes("Transfer", COLLECTION)

ZIP = "application/zip"
COUNTS = "Docmetric-Result"  # a header: what is in the file
_ARCHIVE = {"content": {ZIP: {"schema": {"type": "string", "format": "binary"}}}}


@router.add("GET", "/export", "admin", content=_ARCHIVE["content"], errors=(507,))
async def export(request: Request, collection: Collection):
    """The collection with its pictures, for `import`."""
    registry = await registry_of(request, collection)
    path = await call(request, _temporary, registry.store)
    try:
        counts = await call(request, registry.export, path)
    except BaseException:
        os.unlink(path)
        raise
    return FileResponse(path, media_type=ZIP, filename=f"{collection}.zip", headers={COUNTS: json.dumps(counts)},
                        background=BackgroundTask(os.unlink, path))


@router.add("POST", "/import", "admin", shapes.Imported, errors=(409, 415), body={"required": True, **_ARCHIVE})
async def import_(request: Request, collection: Collection, on_conflict: Literal["skip", "merge"] = "skip"):
    """Register what an export holds. on_conflict: what happens to a type that is there already."""
    registry = await registry_of(request, collection)
    async with received(request, registry.store, "archive") as path:
        return answer(await call(request, registry.import_, path, on_conflict, who=who(request)))


def _temporary(store):
    """On the disk of the store, which is meant to hold that much; a memory file system is not."""
    folder = store.path / INCOMING
    folder.mkdir(exist_ok=True)
    descriptor, path = tempfile.mkstemp(dir=folder)
    os.close(descriptor)
    return path


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
