"""The HTTP API as an ASGI application: routes, errors, security headers, documentation, and the page.

    app = create_app(Settings("STORE"))        # what a worker process serves, see serve.py
"""
import contextlib
import json
import logging
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Match, Mount, Route
from starlette.staticfiles import StaticFiles

from ..errors import UserError, first_line
from ..registry.core import Store
from ..registry.errors import StoreFull
from ..registry.keys import Keys
from . import metrics
from .admission import Admission
from .auth import Door
from .problems import MEDIA_TYPE, NO_STORE, SECURITY, Problem, of_error, problem
from .routes import ROUTES, shapes
from .routes.transfer import sweep
from .settings import Settings
from .work import Work

PAGE = Path(__file__).resolve().parent / "page"
VERSION = "1"
log = logging.getLogger("docmetric")


DESCRIPTION = """Register one image of a document type; recognize it from then on; reject what was never registered.

Every change is an event that can be undone. With an `Idempotency-Key`, on the routes that list this header, a change can be
repeated safely; other routes ignore it. Errors are `application/problem+json`; 503 says with `Retry-After` when to come
again. Keys are given as `Authorization: Bearer dm_...`; `x-scope` is the scope that a request needs.
"""
DOCS = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>DocMetric: HTTP API</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body><div id="docs"></div>
<script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script></body></html>
"""
START = """SwaggerUIBundle({url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null,
                         persistAuthorization: false});
"""
SWAGGER = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}


def create_app(settings: Settings):
    """The ASGI application of one process. Opens the store: raises UserError where that is none."""
    store = Store(settings.store, threads=settings.threads, backend=settings.backend, index=settings.index)
    app = FastAPI(title="DocMetric registry", version=VERSION, description=DESCRIPTION, docs_url=None, redoc_url=None,
                  openapi_url=None, redirect_slashes=False, lifespan=_lifespan)
    app.state.settings, app.state.store, app.state.keys = settings, store, Keys(store)
    app.state.door, app.state.work = Door(app.state.keys, settings), Work(settings)
    app.state.registries, app.state.builds = {}, {}
    for routes in ROUTES:
        app.router.routes.extend(routes.router.routes)
    app.router.routes.extend(_pages())
    app.openapi = lambda: _openapi(app)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientDisconnect, _gone)
    for kind in (Problem, UserError, OSError, Exception):
        app.add_exception_handler(kind, _failed)
    return Admission(Headers(app), settings)


@contextlib.asynccontextmanager
async def _lifespan(app):
    store = app.state.store
    sweep(store)
    for collection in store.collections():
        store.collection(collection["name"]).traffic  # deletes pictures of unknowns on time, though nobody asks anything
    try:
        yield
    finally:
        app.state.work.close()
        app.state.keys.close()
        store.close()


class Headers:
    """ASGI middleware: the security headers of every answer."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def sending(message):
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), *SECURITY]
                cached = any(name == b"cache-control" for name, _ in headers)
                message["headers"] = headers if cached else [*headers, NO_STORE]
            await send(message)

        await self.app(scope, receive, sending)


# ---- errors ----

async def _failed(request, error):
    if isinstance(error, OSError) and error.errno in (28, 122):  # no room, quota
        error = StoreFull("no room on the disk; nothing was changed")
    found = of_error(error, request.app.state.store.path, request.app.state.store.path.resolve())
    if found.status >= 500 and found.status not in (503, 507):
        log.error("%s %s: %s", request.method, _template(request), first_line(error))
    return _answer(found)


async def _invalid(request, error):
    """A parameter or a JSON body that is not as documented. What was sent is not repeated: it may be anything."""
    found = [{"where": ".".join(map(str, one["loc"])), "message": one["msg"]} for one in error.errors()][:20]
    text = "; ".join(f"{one['where']}: {one['message']}" for one in found)
    return _answer(Problem(422, "invalid-value", first_line(text), errors=found))


async def _gone(request, error):
    return Response(status_code=400)  # nobody reads it


async def _no_route(request, error):
    detail = {404: "there is nothing at this address; see /docs", 405: "this address does not have this method"}
    code = {404: "no-such-address", 405: "no-such-method"}
    headers = error.headers
    if error.status_code == 405:  # its own is that of one route, and each method is one
        routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
        methods = {method for route in routes for method in getattr(route, "methods", None) or ()}
        headers = {"Allow": ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))}
    return _answer(Problem(error.status_code, code.get(error.status_code, "invalid-request"),
                           detail.get(error.status_code, first_line(error.detail)), headers))


def _answer(found: Problem) -> Response:
    return Response(problem(found.status, found.code, found.detail, **found.more), found.status, found.headers, MEDIA_TYPE)


def _template(request):
    return getattr(request.scope.get("route"), "path", "")


# ---- documentation and page ----

def _openapi(app) -> dict:
    """The OpenAPI document, made once."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for model in (shapes.Problem, shapes.Refused):
            document["components"]["schemas"][model.__name__] = model.model_json_schema(
                ref_template="#/components/schemas/{model}")
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "bearerFormat": "dm_..."}}
        for path in document["paths"].values():
            for operation in path.values():
                operation["security"] = [{"key": []}, {}]  # an open server needs none
        app.openapi_schema = document
    return app.openapi_schema


def _pages():
    encoded = []  # once: that takes 20 ms, in which nobody else is answered

    async def openapi(request):
        encoded[:] = encoded or [json.dumps(request.app.openapi())]
        return Response(encoded[0], media_type="application/json", headers={"Cache-Control": "no-cache"})

    async def docs(request):
        return HTMLResponse(DOCS)

    async def docs_file(request):
        name = request.path_params["name"]
        if name == "start.js":
            return Response(START, media_type="text/javascript")
        if name not in SWAGGER:
            raise HTTPException(404)
        return FileResponse(_swagger() / name, media_type=SWAGGER[name], headers={"Cache-Control": "no-cache"})

    async def index(request):
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    return [Route("/openapi.json", openapi), Route("/docs", docs), Route("/docs/{name}", docs_file), Route("/", index),
            *metrics.routes(), Mount("/page", _Page(directory=PAGE, check_dir=False))]


def _swagger() -> Path:
    try:
        import fastapi_offline
    except ImportError:
        raise Problem(404, "not-installed", "the pages of /docs are missing: pip install fastapi-offline; /openapi.json has "
                      "the same") from None
    return Path(fastapi_offline.__file__).parent / "static"


class _Page(StaticFiles):
    def file_response(self, *arguments, **options):
        response = super().file_response(*arguments, **options)
        response.headers["Cache-Control"] = "no-cache"  # asks each time, and mostly hears that nothing has changed
        return response
