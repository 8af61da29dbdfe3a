"""Who calls, and what they may do.

`Authorization: Bearer dm_...` names a key of the store. Without one a request is answered only by a server that is open: it
was started with --no-auth, or no key was ever made and only this machine can connect. An open server is still no server for
the web pages that somebody on this machine looks at: those must not read it under a name of their own that leads here (DNS
rebinding), nor change anything (cross-site request forgery).
"""
import functools
import ipaddress
import re
from typing import NamedTuple

from ..registry.keys import SCOPES, Keys
from .problems import Problem
from .settings import Settings

REALM = 'Bearer realm="docmetric"'
SAFE = ("GET", "HEAD", "OPTIONS")  # methods that change nothing
FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via")  # a proxy in between: others than this machine call
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]/@\s]+)(:\d+)?", re.IGNORECASE)


class Caller(NamedTuple):
    """`name` is that of a key, None on an open server; `collections` None: all."""
    name: str | None
    scopes: frozenset[str]
    collections: frozenset[str] | None

    def require(self, need: str, collection: str | None, whole: bool = False) -> None:
        """need: a scope, or "": any. collection: None where it is about the store; whole: and a key for single collections
        is not enough, as it never is for `admin`. Raises Problem."""
        if need and need not in self.scopes:
            raise _forbidden(f"this key has not the scope {need}", need)
        if self.collections is not None:
            if collection is not None and collection not in self.collections:
                raise _forbidden("this key is not good for this collection", need)
            if collection is None and (whole or need == "admin"):
                raise _forbidden("this key is good for single collections, and this is about the whole store", need)


EVERYBODY = Caller(None, frozenset(SCOPES), None)


class Door:
    """Lets a request in, or not. `keys`: of the store that is served."""

    def __init__(self, keys: Keys, settings: Settings):
        self._keys, self._settings = keys, settings

    def caller(self, scope) -> Caller:
        """Of an ASGI scope. Raises Problem: 401, or 403 for what comes from a foreign web page."""
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if given:
            kind, _, text = given[0].decode("latin-1").partition(" ")
            key = self._keys.check(text.strip()) if kind.lower() == "bearer" and len(given) == 1 else None
            if key is None:
                raise Problem(401, "invalid-key", "this key is unknown, expired or revoked; ask for one that is made with "
                              "docmetric key add", {"WWW-Authenticate": f'{REALM}, error="invalid_token"'})
            return Caller(key.name, key.scopes, key.collections)
        if not self._settings.no_auth:
            if not self._settings.loopback or self._keys.exist():
                raise _unauthorized("give a key: Authorization: Bearer dm_...")
            _from_this_machine(scope)
        _same_origin(scope)
        return EVERYBODY


def _unauthorized(detail):
    return Problem(401, "key-required", detail, {"WWW-Authenticate": REALM})


def _forbidden(detail, need):
    return Problem(403, "not-allowed", detail,
                   {"WWW-Authenticate": f'{REALM}, error="insufficient_scope"' + (f', scope="{need}"' if need else "")},
                   **({"scope": need} if need else {}))


def _from_this_machine(scope):
    host = b""
    for name, value in scope["headers"]:
        if name == b"host":
            host = value
        elif name in FORWARDED:
            raise _unauthorized("a request through a proxy needs a key; make one with docmetric key add")
    if not is_local(host.decode("latin-1")):
        raise Problem(403, "foreign-host", "without keys this server answers as localhost alone; use http://localhost, or "
                      "make a key with docmetric key add")


@functools.lru_cache(64)
def is_local(host: str) -> bool:
    """Whether the text of a Host header is a name that only this machine can have."""
    found = HOST.fullmatch(host)
    if not found:
        return False
    name = found[1].strip("[]").rstrip(".").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _same_origin(scope):
    """A browser says where a request comes from that may change something; other clients say nothing."""
    if scope["method"] in SAFE:
        return
    headers = dict(scope["headers"])
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is None:  # browsers leave it away where the connection is neither encrypted nor to localhost
        ours = (b"http://" + headers.get(b"host", b""), b"https://" + headers.get(b"host", b""))
        foreign = origin is not None and origin not in ours
    else:
        foreign = site not in (b"same-origin", b"none")
    if foreign:
        raise Problem(403, "foreign-origin", "another web page sent this; without a key only this server's own page may "
                      "change something")
