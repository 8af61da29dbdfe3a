"""Collections: each has its own types, model, threshold and settings."""
from starlette.requests import Request

from . import shapes
from .common import COLLECTION, Collection, Routes, answer, call, call_long, registry_of, who

router = Routes("Collections")


@router.add("GET", "/v1/collections", "read", shapes.Collections)
async def list_collections(request: Request):
    """The collections that the key is good for."""
    allowed = request.state.caller.collections
    found = await call(request, request.app.state.store.collections)
    return answer({"items": [one for one in found if allowed is None or one["name"] in allowed]})


@router.add("POST", "/v1/collections", "admin", shapes.Collection, status=201, errors=(409,))
async def create_collection(request: Request, body: shapes.NewCollection):
    """A new, empty collection with the shipped model."""
    store = request.app.state.store

    def create():  # all in one: between two calls the server may find that it has too much to do
        store.create(body.name, find=body.find, orientation=body.orientation)
        return _row(store, body.name)

    return answer(await call(request, create), 201, {"Location": f"/v1/collections/{body.name}"})


@router.add("GET", COLLECTION, "read", shapes.CollectionInUse)
async def get_collection(request: Request, collection: Collection):
    """A collection, with what is in use: threshold, runner-up gap."""
    return answer(await call(request, _in_use, await registry_of(request, collection)))


@router.add("PATCH", COLLECTION, "admin", shapes.CollectionInUse, errors=(409,))
async def change_collection(request: Request, collection: Collection, body: shapes.CollectionChange):
    """Change the settings."""
    registry = await registry_of(request, collection)

    def change():
        if given := body.model_dump(exclude_none=True):
            registry.set_settings(**given, who=who(request))
        return _in_use(registry)

    return answer(await call_long(request, change))


def _row(store, name):
    return next(one for one in store.collections() if one["name"] == name)


def _in_use(registry):
    snapshot = registry.snapshot()
    return _row(registry.store, registry.name) | dict(margin=registry.settings["margin"], threshold=snapshot.threshold,
                                                      event=snapshot.event, warnings=list(snapshot.warnings))
