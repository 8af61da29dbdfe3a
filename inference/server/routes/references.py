"""References: the registered images of types, and of known unknowns."""
import zlib
from typing import Annotated, Literal

from fastapi import Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from ...registry.errors import Invalid
from ...registry.formats import content_type, thumbnail
from . import shapes
from .common import (
    COLLECTION,
    LARGEST,
    After,
    Collection,
    Id,
    Idempotency,
    Label,
    Limit,
    Quad,
    Routes,
    Strict,
    answer,
    call,
    changing,
    image_body,
    merged,
    page,
    quad_of,
    read_images,
    registry_of,
    work,
)

router = Routes("References", COLLECTION)

PICTURE = {"image/*": {"schema": {"type": "string", "format": "binary"}}}
SIZES = (16, 2048)  # pixels: of a thumbnail's longer side


Turned = Annotated[int, Field(ge=0, le=270, multiple_of=90,
                              description="By so many degrees the document is turned clockwise in the image")]


class Register(Strict):
    """What can stand in the query, or in a form beside the image."""
    label: Label | None = Field(None, description="The type, a new or a known one")
    kind: Literal["type", "unknown"] = Field("type", description="unknown, and no label: what is nearest to it is rejected")
    force: bool = Field(False, description="Register although the gate finds something")
    quad: Quad | None = None
    orientation: Turned = 0
    source: str | None = Field(None, max_length=500, description="Where it comes from, in your own words")


class Inspect(Strict):
    label: Label | None = None
    quad: Quad | None = None
    orientation: Turned = 0


@router.add("POST", "/references", "write", shapes.Added, status=201, errors=(409, 415),
            body=image_body(fields={name: {"type": "string"} for name in Register.model_fields}))
async def add_reference(request: Request, collection: Collection, query: Annotated[Register, Query()],
                        key: Idempotency = None):
    """Register an image. The gate looks at it first: 409 `refused` says what it found (`findings`: blur, glare, small,
    blank, near-duplicate, look-alike), and `force=true` registers it all the same."""
    registry = await registry_of(request, collection)
    images, fields = await read_images(request)
    given = merged(query, fields)
    quad = quad_of(given.quad)
    added = await call(request, registry.add, images[0], given.label, kind=given.kind, quad=quad,
                       orientation=given.orientation, source=given.source, force=given.force, **changing(request, key))
    return answer(added, 201, {"Location": f"{request.scope['path']}/{added['reference']}"})


@router.add("GET", "/references", "read", shapes.References)
async def list_references(request: Request, collection: Collection,
                          label: Annotated[str | None, Query(max_length=200)] = None,
                          type: Annotated[int | None, Query(ge=1, le=LARGEST)] = None,
                          kind: Literal["type", "unknown"] | None = None, after: After = 0, limit: Limit = 100,
                          removed: bool = False):
    """References by id: of a type, by its label or its id; of a kind; those that were removed."""
    if label is not None and type is not None:
        raise Invalid("give a label or a type, not both")
    registry = await registry_of(request, collection)
    found = await call(request, registry.references, label if type is None else type, kind, after, limit + 1, removed)
    return answer(page(found, limit, "reference"))


@router.add("GET", "/references/{id}", "read", shapes.Reference)
async def get_reference(request: Request, collection: Collection, id: Id):
    """A reference; a removed one too."""
    return answer(await call(request, (await registry_of(request, collection)).reference, id))


@router.add("PATCH", "/references/{id}", "write", shapes.Moved, errors=(409,))
async def move_reference(request: Request, collection: Collection, id: Id, body: shapes.Move, key: Idempotency = None):
    """Make it one of another type, a new or a known one."""
    registry = await registry_of(request, collection)
    return answer(await call(request, registry.move, id, body.label, **changing(request, key)))


@router.add("DELETE", "/references/{id}", "write", shapes.Removed, errors=(409,))
async def remove_reference(request: Request, collection: Collection, id: Id, key: Idempotency = None):
    """Remove a reference; `undo` brings it back."""
    registry = await registry_of(request, collection)
    return answer(await call(request, registry.remove, reference=id, **changing(request, key)))


@router.add("GET", "/references/{id}/image", "read", content=PICTURE, errors=(500,))
async def get_picture(request: Request, collection: Collection, id: Id,
                      size: Annotated[int | None, Query(ge=SIZES[0], le=SIZES[1], description="Pixels of the longer side at "
                                                        "most, as JPEG; without it the image as it was given.")] = None):
    """The registered image."""
    registry = await registry_of(request, collection)
    return await send_picture(request, await call(request, registry.picture, id), size)


async def send_picture(request: Request, data: bytes, size: int | None) -> Response:
    """A stored image, or its thumbnail. It never changes, so a browser that has it is told so."""
    headers = {"ETag": f'"{zlib.crc32(data):08x}-{len(data)}-{size or 0}"', "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    if size is None:
        return Response(data, headers=headers, media_type=content_type(data))
    return Response(await work(request).run(thumbnail, data, size), headers=headers, media_type="image/jpeg")


@router.add("POST", "/inspect", "write", shapes.Inspected, errors=(415,),
            body=image_body(fields={name: {"type": "string"} for name in Inspect.model_fields}))
async def inspect(request: Request, collection: Collection, query: Annotated[Inspect, Query()]):
    """What registering this image would say, without doing it: its corners, its quality, what looks like it, and how many
    stored unknowns it would explain."""
    registry = await registry_of(request, collection)
    images, fields = await read_images(request)
    given = merged(query, fields)
    return answer(await work(request).run(_inspect, registry, images[0], given.label, quad_of(given.quad),
                                          given.orientation))


def _inspect(registry, image, label, quad, orientation):
    seen = registry.inspect(image, label, quad, orientation)
    resolves = len(registry.unknowns.would_resolve(seen.pop("vectors"), label))
    return seen | dict(findings=[finding._asdict() for finding in seen["findings"]], resolves=resolves)
