"""Events: every change, and undoing it."""
from typing import Annotated

from fastapi import Query
from starlette.requests import Request

from . import shapes
from .common import COLLECTION, After, Collection, Idempotency, Limit, Routes, answer, call, changing, page, registry_of

router = Routes("Events", COLLECTION)

OF_ADMIN = {"threshold", "collection"}  # tables that only this scope may change


@router.add("GET", "/events", "read", shapes.Events)
async def list_events(request: Request, collection: Collection, after: After = 0, limit: Limit = 100,
                      newest: Annotated[bool, Query(description="The newest first; the next page begins before `after`"
                                                    )] = False):
    """Who changed what, and when."""
    registry = await registry_of(request, collection)
    return answer(page(await call(request, registry.events, after, limit + 1, newest), limit, "event"))


@router.add("POST", "/undo", "write", shapes.Undone, errors=(404, 409))
async def undo(request: Request, collection: Collection, body: shapes.Undo | None = None, key: Idempotency = None):
    """Undo an event, or the last one. An undo is an event too, and can be undone. 409 where later ones stand against it.
    Whoever undoes a change of a threshold or of the settings needs the scope `admin`, as for making it."""
    def allowed(tables):
        if tables & OF_ADMIN:
            request.state.caller.require("admin", collection)

    registry = await registry_of(request, collection)
    return answer(await call(request, registry.undo, body.event if body else None, check=allowed, **changing(request, key)))
