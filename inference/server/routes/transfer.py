"""Export and import of a collection as one ZIP file."""
import os
import tempfile
from typing import Literal

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse

from . import shapes
from .common import COLLECTION, INCOMING, Collection, Routes, answer, call, registry_of, who

router = Routes("Transfer", COLLECTION)

ZIP = "application/zip"
_ARCHIVE = {"content": {ZIP: {"schema": {"type": "string", "format": "binary"}}}}


@router.add("GET", "/export", "admin", content=_ARCHIVE["content"], errors=(507,))
async def export(request: Request, collection: Collection):
    """The collection with its pictures, for `import`."""
    registry = await registry_of(request, collection)
    path = await call(request, _temporary, registry.store, ".zip")
    try:
        await call(request, registry.export, path)
    except BaseException:
        os.unlink(path)
        raise
    return FileResponse(path, media_type=ZIP, filename=f"{collection}.zip", background=BackgroundTask(os.unlink, path))


@router.add("POST", "/import", "admin", shapes.Imported, errors=(409, 415), body={"required": True, **_ARCHIVE})
async def import_(request: Request, collection: Collection, on_conflict: Literal["skip", "merge"] = "skip"):
    """Register what an export holds. on_conflict: what happens to a type that is there already."""
    registry = await registry_of(request, collection)
    path = await received(request, registry.store, ".zip")
    try:
        return answer(await call(request, registry.import_, path, on_conflict, who=who(request)))
    finally:
        os.unlink(path)


def _temporary(store, suffix):
    """On the disk of the store, which is meant to hold that much; a memory file system is not."""
    folder = store.path / INCOMING
    folder.mkdir(exist_ok=True)
    descriptor, path = tempfile.mkstemp(suffix, dir=folder)
    os.close(descriptor)
    return path


async def received(request: Request, store, suffix: str) -> str:
    """The body in a temporary file, which the caller deletes."""
    path = await call(request, _temporary, store, suffix)
    try:
        with open(path, "wb") as file:
            async for block in request.stream():
                await call(request, file.write, block)
    except BaseException:
        os.unlink(path)
        raise
    return path
