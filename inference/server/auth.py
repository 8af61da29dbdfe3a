"""Who calls, and what they may do.

`Authorization: Bearer dm_...` names a key of the store. Without one a request is answered only by a server that is open: it
was started with --no-auth, or no key was ever made and only this machine can connect. An open server is still no server for
the web pages that somebody on this machine looks at: those must not read it under a name of their own that leads here (DNS
rebinding), nor make it do anything (cross-site request forgery). What comes with a key needs neither check: the page keeps
the key in its own tab, and a browser never adds it by itself, as it would add a cookie.
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
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]/@\s]+)(:\d+)?")


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
        self._names = {settings.host.lower(), *settings.host_names}
        self._is_ours = functools.lru_cache(64)(self._is_ours)

    def caller(self, scope) -> Caller:
        """Of an ASGI scope. Raises Problem: 401, or 403 and 421 for what comes from a foreign web page."""
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
            if any(name in FORWARDED for name, _ in scope["headers"]):
                raise _unauthorized("a request through a proxy needs a key; make one with docmetric key add")
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            raise Problem(421, "foreign-host", "without a key this server answers only by names that it knows; if this is "
                          "one, start it with --host-name NAME")
        _same_origin(scope)
        return EVERYBODY

    def _is_ours(self, host):
        """Whether the text of a Host header names this server. A page under a name of its own, which leads here, sends that
        name. An address leads nowhere else, so beyond this machine, where one of several may be called, any will do."""
        found = HOST.fullmatch(host.lower())
        if not found:
            return False
        name = found[1].strip("[]").rstrip(".")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name == "localhost" or name.endswith(".localhost") or name in self._names
        return address.is_loopback or not self._settings.loopback or name in self._names


def _unauthorized(detail):
    return Problem(401, "key-required", detail, {"WWW-Authenticate": REALM})


def _forbidden(detail, need):
    return Problem(403, "not-allowed", detail,
                   {"WWW-Authenticate": f'{REALM}, error="insufficient_scope"' + (f', scope="{need}"' if need else "")},
                   **({"scope": need} if need else {}))


def _same_origin(scope):
    """A browser says where a request comes from; other clients say nothing. Of a foreign page's requests only a link is
    followed: whatever else it asks for is a change, or work for an answer that it could not read."""
    headers = dict(scope["headers"])
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is not None:
        link = scope["method"] in SAFE and headers.get(b"sec-fetch-mode") == b"navigate"
        foreign = site not in (b"same-origin", b"none") and not link
    else:  # browsers leave it away where the connection is neither encrypted nor to localhost
        ours = (b"http://" + headers.get(b"host", b""), b"https://" + headers.get(b"host", b""))
        foreign = origin is not None and origin not in ours
    if foreign:
        raise Problem(403, "foreign-origin", "another web page sent this; without a key only this server's own page may use "
                      "it")
