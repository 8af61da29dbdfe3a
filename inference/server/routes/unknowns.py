"""What was asked: decisions and feedback, and the rejected images that wait for a name."""
from typing import Annotated

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from . import shapes
from .common import COLLECTION, After, Collection, Id, Limit, Routes, answer, call, call_long, page, registry_of, who
from .references import PICTURE, SIZES, send_picture

router = Routes("Review", COLLECTION)


@router.add("GET", "/decisions", "read", shapes.Decisions)
async def list_decisions(request: Request, collection: Collection, after: After = 0, limit: Limit = 100,
                         newest: Annotated[bool, Query(description="The newest first")] = False):
    """What images were answered: numbers alone, no image."""
    registry = await registry_of(request, collection)
    return answer(page(await call(request, registry.traffic.decisions, after, limit + 1, newest), limit, "decision"))


@router.add("POST", "/feedback", "write", shapes.Decision, errors=(404,))
async def give_feedback(request: Request, collection: Collection, body: shapes.Feedback):
    """Say whether a decision was right."""
    registry = await registry_of(request, collection)
    return answer(await call(request, registry.traffic.feedback, body.decision, body.correct, body.label))


@router.add("GET", "/unknowns", "read", shapes.Unknowns)
async def list_unknowns(request: Request, collection: Collection, after: After = 0, limit: Limit = 100):
    """Rejected images. They are kept only where the server was started with --keep-unknown."""
    registry = await registry_of(request, collection)
    return answer(page(await call(request, registry.unknowns.list, after, limit + 1), limit, "id"))


@router.add("GET", "/unknowns/clusters", "read", shapes.Clusters)
async def list_clusters(request: Request, collection: Collection,
                        threshold: Annotated[float | None, Query(ge=0, le=1, description="The least score of any two in a "
                                                                 "cluster; without it the one in use")] = None):
    """Rejected images that look alike."""
    registry = await registry_of(request, collection)
    return answer({"clusters": await call_long(request, registry.unknowns.clusters, threshold)})


@router.add("GET", "/unknowns/{id}/image", "read", content=PICTURE)
async def get_unknown(request: Request, collection: Collection, id: Id,
                      size: Annotated[int | None, Query(ge=SIZES[0], le=SIZES[1])] = None):
    """A rejected image."""
    registry = await registry_of(request, collection)
    data = await call(request, registry.unknowns.picture, id)
    return await send_picture(request, data, size)


@router.add("DELETE", "/unknowns/{id}", "write", status=204, description="It is gone")
async def remove_unknown(request: Request, collection: Collection, id: Id):
    """Delete a rejected image for good."""
    registry = await registry_of(request, collection)
    await call(request, registry.unknowns.remove, id)
    return Response(status_code=204)


@router.add("POST", "/unknowns/resolve", "write", shapes.Resolved, errors=(404, 409))
async def resolve(request: Request, collection: Collection, body: shapes.Resolve):
    """Name rejected images, or register them as known unknowns: the most central ones become references, and all that
    these explain are resolved."""
    registry = await registry_of(request, collection)
    return answer(await call_long(request, registry.unknowns.resolve, body.ids, who=who(request),
                             **body.model_dump(exclude={"ids"})))
