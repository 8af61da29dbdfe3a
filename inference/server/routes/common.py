"""What all routes have in common: who may call them, how images arrive, how answers and errors look and are documented."""
import functools
import json
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...registry.errors import Invalid
from ..problems import MEDIA_TYPE, Problem

COLLECTION = "/v1/collections/{collection}"
LARGEST = 2 ** 53 - 1   # of the integers that JSON carries everywhere
MOST_IMAGES = 64        # in one request
MOST_FIELDS = 16
MOST_JSON = 1 << 20     # bytes
INCOMING = "incoming"   # the folder of a store for bodies that are too large for memory
LONGEST_FIELD = 64 << 10
FORM = "multipart/form-data"
ERRORS = {400: "The request cannot be understood", 401: "No key, or one that is wrong, expired or revoked",
          403: "The key does not allow this", 404: "There is no such thing", 408: "The body came too slowly",
          409: "It stands against what is there", 413: "The body is too large", 415: "This is no image",
          421: "Without a key this server does not answer by this name", 422: "A value cannot be used",
          500: "The server failed", 503: "Too much to do: again after Retry-After seconds",
          507: "The disk is full; nothing was changed"}


class Guarded(APIRoute):
    """A route whose caller is known, and may call it, before any of the body is read. `openapi_extra["x-scope"]` names the
    scope that it needs; "": any key."""

    def __init__(self, path, endpoint, **options):
        extra = options.get("openapi_extra") or {}
        self.scope: str = extra["x-scope"]
        self.query = getattr(endpoint, "query", None)
        super().__init__(path, endpoint, **options)

    async def handle(self, scope, receive, send):
        if scope["method"] == "HEAD" and "GET" in self.methods:
            scope = {**scope, "method": "GET"}  # the same, of which the server sends the headers alone
        if scope["method"] in self.methods:
            caller = scope["app"].state.door.caller(scope)
            caller.require(self.scope, scope["path_params"].get("collection"))
            scope.setdefault("state", {})["caller"] = caller
            if self.body_field:
                receive = _again(await _whole(Request(scope, receive)))
            if self.query:
                request = Request(scope, receive, send)
                query = validated(self.query, dict(request.query_params))
                response = await self.endpoint(request, scope["path_params"]["collection"], query)
                return await response(scope, receive, send)
        await super().handle(scope, receive, send)


async def _whole(request):
    """A JSON body: in memory it takes up to thirty times its size, so less is allowed than of an image."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_JSON:
            raise Problem(413, "too-large", f"the body is larger than the limit of {MOST_JSON:,} bytes for JSON")
        parts.append(part)
    return b"".join(parts)


def _again(body):
    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}
    return receive


def direct(query: type[BaseModel]):
    """A decorator: `endpoint(request, collection, query)` is called without FastAPI's solving of dependencies, which costs
    as much as all the rest of the way through it. It is documented as any other."""
    def mark(endpoint):
        endpoint.query = query
        return endpoint
    return mark


class Routes(APIRouter):
    """A router whose routes name their scope, their answer (a pydantic model, or None) and the errors that they can have."""

    def __init__(self, tag: str, prefix: str = ""):
        super().__init__(prefix=prefix, tags=[tag], route_class=Guarded)

    def add(self, method: str, path: str, scope: str, answer=None, *, status: int = 200, errors=(), body: dict | None = None,
            content: dict | None = None, description: str = "OK"):
        """A decorator. body: the OpenAPI request body of what is no JSON; content: the same for an answer of no JSON."""
        statuses = {400, 401, 403, 421, 422, 503, *errors} | ({404} if "{" in self.prefix + path else set())
        statuses |= {408, 413} if method != "GET" else set()
        statuses |= {507} if method != "GET" and scope != "classify" else set()
        good = {"description": description}
        good |= ({"model": answer} if answer else {}) | ({"content": content} if content else {})
        extra = {"x-scope": scope} | ({"requestBody": body} if body else {})
        return self.api_route(path, methods=[method], status_code=status, openapi_extra=extra, response_model=None,
                              response_class=Response if content else JSONResponse,
                              responses={status: good} | {code: _documented(code) for code in sorted(statuses)})


def _documented(status):
    return {"description": ERRORS[status], "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}


# ---- parameters ----

class Strict(BaseModel):
    """A request's values: an unknown name is an error, so that a misspelled one is not ignored."""
    model_config = ConfigDict(extra="forbid")


Label = Annotated[str, Field(min_length=1, max_length=200, examples=["passport"])]
Quad = Annotated[str, Field(max_length=1000, description="The four corners of the document, [x, y] in pixels of the upright "
                            "image, clockwise from its top left one, as JSON. Without it the document is looked for.",
                            examples=["[[12,8],[890,14],[884,1260],[6,1248]]"])]
Id = Annotated[int, Path(ge=1, le=LARGEST, examples=[7])]
After = Annotated[int, Query(ge=0, le=LARGEST, description="`next` of the page before; 0: the first page.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="At most so many items.")]
Idempotency = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200, pattern="^[!-~]+$",
                                           description="Any text of your own, new for each change. The same request with "
                                           "the same key changes nothing more and gets the same answer, so it can be "
                                           "repeated when its answer was lost.")]
Collection = Annotated[str, Path(min_length=1, max_length=64, pattern="^[A-Za-z0-9_-]+$", examples=["default"])]


def quad_of(text: str | None) -> list | None:
    """The JSON of four corners -> [[x, y]] * 4. Raises Invalid."""
    if text is None:
        return None
    try:
        corners = json.loads(text)
    except (ValueError, RecursionError):
        corners = None
    if not (isinstance(corners, list) and len(corners) == 4 and all(
            isinstance(point, list) and len(point) == 2
            and all(type(number) in (int, float) and abs(number) <= 1e6 for number in point) for point in corners)):
        raise Invalid("quad: must be the JSON of four corners, [[x, y], [x, y], [x, y], [x, y]], in pixels")
    return corners


# ---- bodies ----

def image_body(most: int = 1, fields: dict | None = None) -> dict:
    """The OpenAPI request body of one raw image, or of a form with up to `most` of them and `fields` {name: schema}."""
    binary = {"type": "string", "format": "binary"}
    images = binary if most == 1 else {"type": "array", "items": binary, "minItems": 1, "maxItems": most}
    raw = {"schema": binary}
    form = {"type": "object", "required": ["image"], "properties": {"image": images, **(fields or {})}}
    return {"required": True, "content": {"application/octet-stream": raw, "image/jpeg": raw, "image/png": raw,
                                          FORM: {"schema": form}},
            "description": "An image file: JPEG, PNG, WebP, BMP or TIFF (HEIC and PDF where the server has the packages for "
            "them)."}


def is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith(FORM)


async def read_images(request: Request, most: int = 1) -> tuple[list[bytes], dict[str, str]]:
    """(images, other fields of a form). A body of any type but a form is one image. Raises Problem."""
    if not is_form(request):
        return [await request.body()], {}
    images, fields = [], {}
    try:
        parser = _InMemory(request.headers, request.stream(), max_files=most, max_fields=MOST_FIELDS,
                           max_part_size=LONGEST_FIELD)
        form = await parser.parse()
    except (MultiPartException, LookupError, UnicodeError) as error:  # the last two: of a charset
        reason = error.message if isinstance(error, MultiPartException) else "it is malformed"
        raise Problem(400, "invalid-form", f"this form cannot be read: {reason}") from None
    async with _closing(form):
        for name, value in form.multi_items():
            if isinstance(value, str):
                fields[name] = value
            elif name == "image":
                images.append(await value.read())
            else:
                raise Problem(400, "invalid-form", "a form's files must be named image")
    if not images:
        raise Problem(400, "invalid-form", "this form has no file named image")
    return images, fields


class _InMemory(MultiPartParser):
    spool_max_size = 1 << 40  # pictures never go to a temporary file; the whole body is bounded


class _closing:
    def __init__(self, form):
        self.form = form

    async def __aenter__(self):
        return self.form

    async def __aexit__(self, *_):
        await self.form.close()


def merged(query: BaseModel, fields: dict[str, str]):
    """The query's values, and those that came in a form instead."""
    return validated(type(query), query.model_dump(exclude_unset=True) | fields) if fields else query


def validated(model: type[BaseModel], values: dict):
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


# ---- what a request works with ----

def work(request: Request):
    """The threads of this process, see work.py."""
    return request.app.state.work


async def registry_of(request: Request, name: str):
    """The collection's `Registry`. Raises NotFound. The first time takes as long as to load its model and its vectors."""
    known = request.app.state.registries
    if name not in known:
        known[name] = await call(request, _open, request.app.state.store, name, request.app.state.settings)
    return known[name]


def _open(store, name, settings):
    registry = store.collection(name)
    registry.snapshot()
    registry.traffic.keep_unknown = settings.keep_unknown
    registry.traffic.file.keep_decisions = settings.keep_decisions
    return registry


def who(request: Request) -> str | None:
    return request.state.caller.name


def changing(request: Request, key: str | None) -> dict:
    """The arguments by which a change says who made it, and that it is to be made once."""
    return {"who": who(request), "key": key}


async def call(request: Request, function, *arguments, **named):
    """`function(...)`, which waits for the disk, off the event loop."""
    return await work(request).run_slow(functools.partial(function, *arguments, **named))


async def call_long(request: Request, function, *arguments, **named):
    """The same for what looks at all of a collection, and takes the longer the more there is."""
    return await work(request).run_long(functools.partial(function, *arguments, **named))


# ---- answers ----

def answer(value, status: int = 200, headers: dict | None = None) -> Response:
    return Response(_encode(value), status, headers, "application/json")


# Made once: that takes as long as to encode an answer. NumPy's numbers and arrays have `tolist`.
_encode = json.JSONEncoder(allow_nan=False, default=lambda value: value.tolist()).encode


def page(items: list, limit: int, name: str) -> dict:
    """Of up to `limit` + 1 items the first `limit`, and where the next page begins. name: of an item's id."""
    return {"items": items[:limit], "next": items[limit - 1][name] if len(items) > limit else None}
