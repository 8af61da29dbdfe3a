"""API keys of a store: who may do what through a server.

    keys = Keys(store)
    text = keys.add("scanner", ["classify"], collections=["invoices"])["key"]     # the only time that it can be read
    keys.check(text)                                                              # Key, or None

A key is `dm_<id>_<secret>`. The secret has 256 random bits, so its plain SHA-256, which is all that the store keeps, tells
nothing about it, and no slow hash is needed.
"""
import functools
import hashlib
import hmac
import json
import math
import secrets
import threading
import time
from collections.abc import Iterable
from typing import NamedTuple

from ..errors import printable
from .errors import Conflict, Invalid, NotFound
from .schema import open_database, translated

SCOPES = ("classify", "read", "write", "admin")
PREFIX = "dm"
SECRET_BYTES = 32
LONGEST_NAME = 100
LONGEST_KEY = 128  # characters; longer ones are not looked at
ROW = "id, name, scopes, collections, created, expires, revoked"


class Key(NamedTuple):
    """`collections` None: all of them. `expires`, `revoked`: seconds since 1970, or None."""
    id: int
    name: str
    scopes: frozenset[str]
    collections: frozenset[str] | None
    created: float
    expires: float | None
    revoked: float | None

    def as_json(self) -> dict:
        return self._asdict() | dict(scopes=sorted(self.scopes, key=SCOPES.index),
                                     collections=self.collections and sorted(self.collections))


class Keys:
    """The keys of a `Store`. Several threads and processes may use it; each check sees what anyone has committed before."""

    def __init__(self, store):
        self._store = store
        # A connection of its own: a check never waits for another thread's query.
        self._reader, self._reading = open_database(store.database), threading.Lock()

    def close(self) -> None:
        with self._reading:
            self._reader.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _rows(self, sql, bindings=()):
        with self._reading, translated(self._store.database):
            return self._reader.execute(sql, bindings).fetchall()

    def exist(self) -> bool:
        """Whether any key was ever made: from then on none is let in without one, though all may be revoked or expired."""
        return bool(self._rows("SELECT 1 FROM api_key LIMIT 1"))

    def check(self, text: str) -> Key | None:
        """The key that `text` is, unless it is expired or revoked. About 10 us: there is no cache that could be stale."""
        prefix, _, rest = text[:LONGEST_KEY + 1].partition("_")
        number, _, secret = rest.partition("_")
        if prefix != PREFIX or not secret or len(text) > LONGEST_KEY or not (number.isascii() and number.isdigit()):
            return None
        rows = self._rows(f"SELECT hash, {ROW} FROM api_key WHERE id = ?", (min(int(number), 1 << 62),))
        if not rows or not hmac.compare_digest(rows[0][0], _hash(secret)):
            return None
        key = _key(rows[0][1:])
        return None if key.revoked is not None or (key.expires is not None and key.expires <= time.time()) else key

    def list(self) -> list[dict]:
        """All keys, by id: {id, name, scopes, collections, created, expires, revoked}. No secret."""
        return [_key(row).as_json() for row in self._rows(f"SELECT {ROW} FROM api_key ORDER BY id")]

    def add(self, name: str, scopes: Iterable[str] = SCOPES, collections: Iterable[str] | None = None,
            expires: float | None = None) -> dict:
        """A new key as in `list`, and `key`, its text, which is nowhere kept. collections: that it is good for; None: all.
        expires: seconds since 1970. Raises Invalid; Conflict where a key of this name is in use; NotFound for a collection.
        """
        if not (isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name == printable(name).strip()):
            raise Invalid(f"key {printable(name)[:80]!r}: its name must have 1 to {LONGEST_NAME} printable characters")
        scopes, now = set(scopes), time.time()
        if not scopes or not scopes <= set(SCOPES):
            raise Invalid(f"key {name}: its scopes must be some of {', '.join(SCOPES)}")
        if expires is not None and not (math.isfinite(expires) and now < expires < 1e12):
            raise Invalid(f"key {name}: expires must be a time to come, in seconds since 1970")
        if collections is not None:
            collections = set(collections)
            if not collections:
                raise Invalid(f"key {name}: name a collection that it is good for, or leave collections away for all")
            if unknown := collections - {one["name"] for one in self._store.collections()}:
                raise NotFound(f"collection {printable(min(unknown))[:80]}: there is none of this name")
        secret = secrets.token_hex(SECRET_BYTES)
        with self._store.write() as db:
            used = db.execute("SELECT id FROM api_key WHERE name = ? AND revoked IS NULL AND ifnull(expires, ?) >= ?",
                              (name, now, now)).fetchone()
            if used:
                raise Conflict(f"key {name}: is there already, and changes are known by this name; choose another one")
            db.execute("INSERT INTO api_key(name, hash, scopes, collections, created, expires) VALUES (?, ?, ?, ?, ?, ?)",
                       (name, _hash(secret), json.dumps(sorted(scopes)), collections and json.dumps(sorted(collections)),
                        now, expires))
            number = db.last_insert_rowid()
        row, = self._rows(f"SELECT {ROW} FROM api_key WHERE id = ?", (number,))
        return _key(row).as_json() | {"key": f"{PREFIX}_{number}_{secret}"}

    def revoke(self, number: int) -> dict:
        """The key, which opens nothing from now on, in any process. Raises NotFound; a revoked one stays as it is."""
        with self._store.write() as db:
            db.execute("UPDATE api_key SET revoked = ? WHERE id = ? AND revoked IS NULL", (time.time(), number))
        rows = self._rows(f"SELECT {ROW} FROM api_key WHERE id = ?", (number,))
        if not rows:
            raise NotFound(f"key {number}: there is none of this number")
        return _key(rows[0]).as_json()


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


@functools.lru_cache(1024)
def _key(row) -> Key:
    number, name, scopes, collections, *times = row
    return Key(number, name, frozenset(json.loads(scopes)),
               None if collections is None else frozenset(json.loads(collections)), *times)
