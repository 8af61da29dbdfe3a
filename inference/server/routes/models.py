"""Another model: embed all references beside the one in use, compare, switch, and go back."""
import logging
import os
import threading
from typing import Annotated

from fastapi import Path, Query
from starlette.requests import Request
from starlette.responses import Response

from ...errors import UserError, printable
from ...registry.errors import NotFound
from . import shapes
from .common import COLLECTION, Collection, Routes, answer, call, registry_of, who
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
    path = await received(request, registry.store, ".onnx")
    try:
        digest = await call(request, registry.upgrade.add, path, printable(name))
    finally:
        os.unlink(path)
    return answer({"hash": digest}, 201, {"Location": f"{request.url.path}/{digest}"})


@router.add("POST", "/models/{hash}/build", "admin", shapes.Building, status=202, errors=(409,))
async def build_model(request: Request, collection: Collection, hash: Hash):
    """Embed all references with it, in the background; `GET .../models` says how far it is. Ask again to resume."""
    registry = await registry_of(request, collection)
    if hash not in [model["hash"] for model in await call(request, registry.models)]:
        raise NotFound(f"model {hash}: there is none of this hash")
    builds = request.app.state.builds
    if not (hash in builds and builds[hash].is_alive()):
        builds[hash] = threading.Thread(target=_build, args=(registry, hash), name="build", daemon=True)
        builds[hash].start()
    return answer({"hash": hash}, 202)


def _build(registry, hash):
    # A thread of its own: it may take hours, and it can be cut off at any time, since asking again resumes it.
    try:
        registry.upgrade.build(hash)
    except Exception as error:
        log.error("model %s was not built: %s", hash, error if isinstance(error, UserError) else repr(error))


@router.add("GET", "/models/{hash}/report", "read", shapes.Report, errors=(409,))
async def report(request: Request, collection: Collection, hash: Hash):
    """What would change with it: stored unknowns and references decided by both models."""
    return answer(await call(request, (await registry_of(request, collection)).upgrade.report, hash))


@router.add("POST", "/models/{hash}/activate", "admin", shapes.Activated, errors=(409,))
async def activate(request: Request, collection: Collection, hash: Hash):
    """Use it from now on, in one step; activate the former one to go back."""
    registry = await registry_of(request, collection)
    return answer(await call(request, registry.upgrade.activate, hash, who=who(request)))


@router.add("DELETE", "/models/{hash}", "admin", status=204, errors=(409,), description="It is gone")
async def remove_model(request: Request, collection: Collection, hash: Hash):
    """Delete a model that is not in use, with its vectors."""
    await call(request, (await registry_of(request, collection)).upgrade.remove, hash)
    return Response(status_code=204)
