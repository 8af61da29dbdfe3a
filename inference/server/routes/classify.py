"""Classify and search."""
import asyncio
from typing import Annotated

from fastapi import Query
from pydantic import Field
from starlette.requests import Request

from ...image import ImageError
from ...registry.errors import Invalid
from . import shapes
from .common import (
    COLLECTION,
    MOST_IMAGES,
    Collection,
    Quad,
    Routes,
    Strict,
    answer,
    direct,
    image_body,
    is_form,
    merged,
    quad_of,
    read_images,
    registry_of,
    work,
)

router = Routes("Classify", COLLECTION)


class Classify(Strict):
    top_k: int = Field(1, ge=1, le=100, description="So many of the best types are named")
    quad: Quad | None = None


class Search(Strict):
    k: int = Field(10, ge=1, le=1000)
    quad: Quad | None = None


@router.add("POST", "/classify", "classify", shapes.Results, errors=(415,),
            body=image_body(MOST_IMAGES, {name: {"type": "string"} for name in Classify.model_fields}))
@direct(Classify)
async def classify(request: Request, collection: Collection, query: Annotated[Classify, Query()]):
    """Which registered type does the image show, if any? A form has a result for each of its images, with an `error` where
    one cannot be used; an image that is the body itself and cannot be used is an error of the request."""
    registry = await registry_of(request, collection)
    images, fields = await read_images(request, MOST_IMAGES)
    given = merged(query, fields)
    quad = quad_of(given.quad)
    if quad and len(images) > 1:
        raise Invalid("quad: is of one image; send the images one by one")
    most = max(given.top_k, 2)  # a decision remembers the second type, on which the runner-up gap hangs
    if not is_form(request):
        looks, results = await work(request).classify(registry, images, most, quad)
    else:
        looks, results = await _classify_each(request, registry, images, most, quad)
    for image, look, result in zip(images, looks, results):
        result["decision"] = None if look is None else registry.traffic.record(result, look, image)
        del result["top_k"][given.top_k:]
    return answer({"results": results})


async def _classify_each(request, registry, images, top_k, quad):
    """(looks, results), with None and an error for images that cannot be used."""
    def look(image):
        try:
            return registry.look(image, quad)
        except ImageError as error:
            return error

    seen = await asyncio.gather(*(work(request).run(look, image) for image in images))
    good = [one for one in seen if not isinstance(one, ImageError)]
    results = iter(await work(request).decide(registry, good, top_k)) if good else iter(())
    looks = [None if isinstance(one, ImageError) else one for one in seen]
    return looks, [registry.unusable(None, str(one)) if isinstance(one, ImageError) else next(results) for one in seen]


@router.add("POST", "/search", "classify", shapes.Neighbors, errors=(415,),
            body=image_body(1, {name: {"type": "string"} for name in Search.model_fields}))
async def search(request: Request, collection: Collection, query: Annotated[Search, Query()]):
    """The nearest references of any type."""
    registry = await registry_of(request, collection)
    images, fields = await read_images(request)
    given = merged(query, fields)
    quad = quad_of(given.quad)
    return answer({"neighbors": await work(request).run(lambda: registry.search(registry.look(images[0], quad), given.k))})
