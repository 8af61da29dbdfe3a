"""Another model: embed all references beside the one in use, compare, switch, and go back."""
import fcntl
import logging
import threading
from typing import Annotated

from fastapi import Path, Query
from starlette.requests import Request

from ...errors import UserError, printable
from ...registry.errors import NotFound
from . import shapes
from .common import COLLECTION, Collection, Routes, answer, call, call_long, registry_of, who
from .transfer import received

router = Routes("Models", COLLECTION)
log = logging.getLogger("docmetric")

Hash = Annotated[str, Path(pattern="^[0-9a-f]{16,64}$", description="The hash of the model's graph")]
ONNX = {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


@router.add("GET", "/models", "read", shapes.Models)
async def list_models(request: Request, collection: Collection):
    """The models of the collection; `building` ones with how many references they have embedded."""
    return answer({"items": await call(request, (await registry_of(request, collection)).models)})


@router.add("POST", "/models", "admin", shapes.ModelAdded, status=201, errors=(409,), body=ONNX)
async def add_model(request: Request, collection: Collection,
                    name: Annotated[str, Query(min_length=1, max_length=200)] = "model.onnx"):
    """Add an exported model (ONNX). It is not in use until it is built and activated."""
    registry = await registry_of(request, collection)
    async with received(request, registry.store, printable(name)) as path:
        digest = await call_long(request, registry.upgrade.add, path, printable(name), who(request))
    return answer({"hash": digest}, 201, {"Location": f"{request.scope['path']}/{digest}"})


@router.add("POST", "/models/{hash}/build", "admin", shapes.Model, status=202, errors=(409, 500))
async def build_model(request: Request, collection: Collection, hash: Hash):
    """Embed all references with it, in the background, and say how far that is. Ask again until it is `ready`: that does no
    harm, tells why it failed, and resumes it where the server was started anew."""
    registry, builds = await registry_of(request, collection), request.app.state.builds
    build = builds.get((collection, hash))
    if build and not build.is_alive() and build.error:
        del builds[collection, hash]
        raise build.error
    found = next((one for one in await call(request, registry.models) if one["hash"] == hash), None)
    if found is None:
        raise NotFound(f"model {hash}: there is none of this hash")
    if found["state"] in ("building", "retired") and not (build and build.is_alive()):
        builds[collection, hash] = _Build(registry, hash)
        builds[collection, hash].start()
    return answer(found, 202)


class _Build(threading.Thread):
    """It may take hours, and may be cut off at any time, since asking again resumes it. Of several worker processes one
    does it: the one that holds a lock on the model's file."""

    def __init__(self, registry, hash):
        super().__init__(name="build", daemon=True)
        self.registry, self.hash, self.error = registry, hash, None

    def run(self):
        try:
            self.registry.store.model(self.hash)  # says what is wrong with the file
            with open(self.registry.store.model_path(self.hash), "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return
                self.registry.upgrade.build(self.hash)
        except Exception as error:
            self.error = error
            log.error("model %s was not built: %s", self.hash, error if isinstance(error, UserError) else repr(error))


@router.add("GET", "/models/{hash}/report", "read", shapes.Report, errors=(409,))
async def report(request: Request, collection: Collection, hash: Hash):
    """What would change with it: stored unknowns and references decided by both models."""
    return answer(await call_long(request, (await registry_of(request, collection)).upgrade.report, hash))


@router.add("POST", "/models/{hash}/activate", "admin", shapes.Activated, errors=(409,))
async def activate(request: Request, collection: Collection, hash: Hash, body: shapes.Activate | None = None):
    """Use it from now on, in one step; activate the former one to go back. It has thresholds of its own."""
    registry = await registry_of(request, collection)
    return answer(await call_long(request, registry.upgrade.activate, hash, who(request), body.threshold if body else None))


@router.add("DELETE", "/models/{hash}", "admin", shapes.ModelRemoved, errors=(409,))
async def remove_model(request: Request, collection: Collection, hash: Hash):
    """Delete a model that is not in use, with its vectors."""
    registry = await registry_of(request, collection)
    return answer(await call(request, registry.upgrade.remove, hash, who(request)))
