"""API keys, for keys of the whole store; and who the caller is."""
from starlette.requests import Request

from . import shapes
from .common import Id, Routes, answer, call

router = Routes("Keys")


@router.add("GET", "/v1/me", "", shapes.Me)
async def get_me(request: Request):
    """What this key may do."""
    caller = request.state.caller
    return answer({"name": caller.name, "scopes": shapes.in_order(caller.scopes),
                   "collections": caller.collections and sorted(caller.collections), "open": caller.name is None})


@router.add("GET", "/v1/keys", "admin", shapes.ApiKeys)
async def list_keys(request: Request):
    """All keys that were ever made, without their secrets."""
    return answer({"items": await call(request, request.app.state.keys.list)})


@router.add("POST", "/v1/keys", "admin", shapes.KeyMade, status=201, errors=(404, 409))
async def make_key(request: Request, body: shapes.NewKey):
    """A new key. Its text, `key`, is shown this once. After the first one, nobody is let in without a key."""
    made = await call(request, request.app.state.keys.add, **body.model_dump())
    return answer(made, 201, {"Location": f"/v1/keys/{made['id']}"})


@router.add("DELETE", "/v1/keys/{id}", "admin", shapes.Key)
async def revoke_key(request: Request, id: Id):
    """Revoke a key: it opens nothing from now on. It stays in the list."""
    return answer(await call(request, request.app.state.keys.revoke, id))
