"""Types: what a registered image is an image of."""
from typing import Annotated

from fastapi import Query
from starlette.requests import Request

from . import shapes
from .common import COLLECTION, After, Collection, Id, Idempotency, Limit, Routes, answer, call, changing, page, registry_of

router = Routes("Types", COLLECTION)

OfLabel = Annotated[str, Query(min_length=1, max_length=200)]


@router.add("GET", "/types", "read", shapes.Types)
async def list_types(request: Request, collection: Collection, after: After = 0, limit: Limit = 100,
                     text: Annotated[str | None, Query(max_length=200, description="Only labels that contain it")] = None,
                     label: Annotated[str | None, Query(max_length=200, description="Only the type of this label")] = None):
    """Types by id."""
    registry = await registry_of(request, collection)
    if label is not None:
        return answer({"items": [await call(request, registry.type, label)], "next": None})
    return answer(page(await call(request, registry.types, after, limit + 1, text), limit, "type"))


@router.add("PATCH", "/types", "write", shapes.Renamed, errors=(404, 409))
async def rename_labeled_type(request: Request, collection: Collection, label: OfLabel, body: shapes.Rename,
                              key: Idempotency = None):
    """The same as `PATCH .../types/{id}`, for the type that has this label."""
    registry = await registry_of(request, collection)
    return answer(await call(request, registry.rename, label, body.label, **changing(request, key)))


@router.add("DELETE", "/types", "write", shapes.Removed, errors=(404, 409))
async def remove_labeled_type(request: Request, collection: Collection, label: OfLabel, key: Idempotency = None):
    """The same as `DELETE .../types/{id}`, for the type that has this label."""
    registry = await registry_of(request, collection)
    return answer(await call(request, registry.remove, label, **changing(request, key)))


@router.add("GET", "/types/{id}", "read", shapes.Type)
async def get_type(request: Request, collection: Collection, id: Id):
    """A type."""
    return answer(await call(request, (await registry_of(request, collection)).type, id))


@router.add("PATCH", "/types/{id}", "write", shapes.Renamed, errors=(409,))
async def rename_type(request: Request, collection: Collection, id: Id, body: shapes.Rename, key: Idempotency = None):
    """Rename a type. 409 where another one has that name, with its id as `type_id`: merge the two."""
    registry = await registry_of(request, collection)
    return answer(await call(request, registry.rename, id, body.label, **changing(request, key)))


@router.add("DELETE", "/types/{id}", "write", shapes.Removed, errors=(409,))
async def remove_type(request: Request, collection: Collection, id: Id, key: Idempotency = None):
    """Remove a type with all its references; `undo` brings them back."""
    registry = await registry_of(request, collection)
    return answer(await call(request, registry.remove, type=id, **changing(request, key)))


@router.add("POST", "/types/merge", "write", shapes.Merged, errors=(404, 409))
async def merge_types(request: Request, collection: Collection, body: shapes.MergeTypes, key: Idempotency = None):
    """Give all references of the type `source` to the type `into`; each is a label or an id."""
    registry = await registry_of(request, collection)
    return answer(await call(request, registry.merge, body.source, body.into, **changing(request, key)))


@router.add("POST", "/types/{id}/merge", "write", shapes.Merged, errors=(409,))
async def merge_type(request: Request, collection: Collection, id: Id, body: shapes.Merge, key: Idempotency = None):
    """Give all its references to another type."""
    registry = await registry_of(request, collection)
    return answer(await call(request, registry.merge, id, body.into, **changing(request, key)))
