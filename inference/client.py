"""A registry that a server has: the methods of `Registry`, over HTTP. The standard library only.

    client = Client("http://localhost:8080", key="dm_...")
    client.add("passport.jpg", "passport")
    label, score = client("photo.jpg")

Arguments, answers and errors are those of `Registry` (registry/core.py), whose documentation holds here too. What differs:
`who` is the name of the key, whatever is given; unknowns, traffic and upgrade have the methods below. A change is sent with
an idempotency key, so that it is repeated where its answer was lost, and is made once all the same; one that the server
would make twice is not repeated.
"""
import http.client
import json
import os
import re
import secrets
import shutil
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from .errors import ImageError, UserError, first_line, printable
from .files import replacing
from .registry.errors import Busy, Conflict, Damaged, Invalid, NotFound, Refused, RegistryError, StoreFull

PAUSES = (.05, .2, .5, 1, 2)  # seconds before each further try of a request whose connection was lost
LONGEST_PAUSE = 10            # seconds that a busy server may ask for before each
PAGE = 1000        # entries that one request lists
IMAGES, BYTES = 16, 8 << 20  # of one request that classifies many
AT_ONCE = 4        # of those requests
KEPT = 16          # idle connections
LONG = 3600.0      # seconds for what looks at all of a collection: an import of 100,000 images, or embedding them again
BLOCK = 1 << 20
KEY = re.compile("[!-~]{1,200}")  # an idempotency key
ERRORS = {kind.code: kind for kind in (Invalid, NotFound, Conflict, Busy, StoreFull, Damaged)} | {
    "not-an-image": ImageError, "unusable-image": ImageError, "invalid-request": UserError}
OVERLOADED = "overloaded"  # the code of a request that was not let in, or not begun
STRANGE = "answers as no registry does; is that the address of docmetric serve?"
MEMBERS = ("type", "title", "status", "code", "detail")  # of every problem
LOST = (http.client.RemoteDisconnected, http.client.IncompleteRead, ConnectionError, ssl.SSLEOFError)


class Finding(NamedTuple):
    """As `gate.Finding`."""
    code: str
    message: str
    details: dict


class Client:
    """One collection of the store that the server at `url` has. key: `dm_...`, where the server wants one. timeout: seconds
    for an answer to begin; what looks at all of a collection has an hour. Its methods may be called from several threads;
    each has a connection at a time, which is kept. Raises UserError.
    """

    def __init__(self, url: str, key: str | None = None, collection: str = "default", timeout: float = 60.0):
        self.name, self._server = collection, _Server(url, key, timeout)
        self._path = _path_of(collection)

    @classmethod
    def _of(cls, server, collection):
        client = object.__new__(cls)
        client.name, client._server, client._path = collection, server, _path_of(collection)
        return client

    def close(self) -> None:
        self._server.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _call(self, method, path="", query=None, body=None, **more):
        return self._server.call(method, self._path + path, query, body, **more)

    def _items(self, path, identity, after, limit, query):
        """`limit` entries, by as many requests as it takes."""
        items = []
        while len(items) < limit:
            page = self._call("GET", path, query | dict(after=after, limit=min(PAGE, limit - len(items))))
            items += page["items"]
            if page["next"] is None:
                break
            after = page["next"]
        return items

    # ---- the server ----

    def me(self) -> dict:
        """{name, scopes, collections, open}: what the key may do."""
        return self._server.call("GET", "/v1/me")

    def collections(self) -> list[dict]:
        return self._server.call("GET", "/v1/collections")["items"]

    def create(self, name: str, *, find: str = "auto", orientation: str = "upright") -> "Client":
        """A new collection with the server's model, as a `Client`."""
        self._server.call("POST", "/v1/collections", body=dict(name=name, find=find, orientation=orientation), once=True)
        return self.collection(name)

    def collection(self, name: str) -> "Client":
        """Another collection, over the same connections."""
        return self._of(self._server, name)

    @cached_property
    def keys(self) -> "ClientKeys":
        return ClientKeys(self._server)

    # ---- state ----

    @property
    def settings(self) -> dict:
        about = self._call("GET")
        return {name: about[name] for name in ("find", "orientation", "margin")}

    def set_settings(self, *, find: str | None = None, orientation: str | None = None, margin: float | None = None,
                     who: str | None = None) -> dict:
        about = self._call("PATCH", body=_given(find=find, orientation=orientation, margin=margin), long=True)
        return {name: about[name] for name in ("event", "find", "orientation", "margin")}

    @property
    def threshold(self) -> float:
        return self._call("GET", "/threshold")["threshold"]

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self._call("GET")["warnings"])

    @property
    def labels(self) -> list[str]:
        return sorted(one["label"] for one in self._items("/types", "type", 0, float("inf"), {}))

    def set_threshold(self, value: float | str | None = None, *, fpr: float | None = None, label: str | int | None = None,
                      who: str | None = None, key: str | None = None) -> dict:
        whose = {} if label is None else {"type" if _is_id(label) else "label": label}
        return self._call("PUT", "/threshold", body=_given(threshold=value, fpr=fpr, **whose), key=key)

    def suggest_threshold(self, **options) -> dict:
        return self._call("GET", "/threshold/suggestion", options, long=True)

    def models(self) -> list[dict]:
        return self._call("GET", "/models")["items"]

    # ---- listing ----

    def types(self, after: int = 0, limit: int = 100, text: str | None = None) -> list[dict]:
        return self._items("/types", "type", after, limit, _given(text=text))

    def type(self, label: str | int) -> dict:
        if _is_id(label):
            return self._call("GET", f"/types/{label}")
        return self._call("GET", "/types", dict(label=label))["items"][0]

    def references(self, label: str | int | None = None, kind: str | None = None, after: int = 0, limit: int = 100,
                   removed: bool = False) -> list[dict]:
        whose = _given(**{"type" if _is_id(label) else "label": label}, kind=kind)
        return self._items("/references", "reference", after, limit, whose | dict(removed=removed))

    def reference(self, number: int) -> dict:
        return self._call("GET", f"/references/{_number(number)}")

    def picture(self, reference: int) -> bytes:
        return self._call("GET", f"/references/{_number(reference)}/image", raw=True)

    def events(self, after: int = 0, limit: int = 100, newest: bool = False) -> list[dict]:
        return self._items("/events", "event", after, limit, dict(newest=newest))

    # ---- classify and search ----

    def __call__(self, image, quad=None) -> tuple[str | None, float | None]:
        result = self._call("POST", "/classify", _given(quad=_quad(quad)), _content(image))["results"][0]
        return result["label"], result["score"]

    def classify(self, images: Iterable, top_k: int = 1) -> list[dict]:
        """As `Registry.classify`; each result has its `decision` too, for feedback."""
        return list(self.stream(images, top_k))

    def stream(self, images: Iterable, top_k: int = 1) -> Iterator[dict]:
        """The results of `classify`, in order, each as soon as it is known; some requests at a time, in bounded memory."""
        if top_k < 1:
            raise Invalid(f"top_k {top_k}: must be at least 1")
        with ThreadPoolExecutor(AT_ONCE) as threads:
            running = deque()
            try:
                for part in _parts(images):
                    running.append(threads.submit(self._classify_part, part, top_k))
                    if len(running) > AT_ONCE:
                        yield from running.popleft().result()
                while running:
                    yield from running.popleft().result()
            finally:
                for one in running:
                    one.cancel()

    def _classify_part(self, part, top_k):
        """part: [(name of the image or None, its content, reason why there is none)]"""
        body, kind = _form([content for _, content, _ in part])
        results = self._call("POST", "/classify", dict(top_k=top_k), body, kind=kind)["results"]
        for (name, _, reason), result in zip(part, results):
            result["image"] = name
            if reason:
                result["error"] = reason
        return results

    def search(self, image, k: int = 10) -> list[dict]:
        if k < 1:
            raise Invalid(f"k {k}: must be at least 1")
        return self._call("POST", "/search", dict(k=k), _content(image))["neighbors"]

    # ---- registering and changing ----

    def inspect(self, image, label: str | None = None, quad=None, orientation: int = 0) -> dict:
        """As `Registry.inspect`, without `vectors`; `resolves`: so many stored unknowns would this reference explain."""
        seen = self._call("POST", "/inspect", _given(label=label, quad=_quad(quad)) | dict(orientation=orientation),
                          _content(image))
        return seen | dict(findings=[Finding(**one) for one in seen["findings"]])

    def add(self, image, label: str | None = None, *, kind: str = "type", quad=None, orientation: int = 0,
            source: str | None = None, who: str | None = None, force: bool = False, key: str | None = None) -> dict:
        query = _given(label=label, quad=_quad(quad), source=source) | dict(kind=kind, orientation=orientation, force=force)
        return self._call("POST", "/references", query, _content(image), key=key)

    def remove(self, label: str | None = None, *, reference: int | None = None, type: int | None = None,
               who: str | None = None, key: str | None = None) -> dict:
        if sum(value is not None for value in (label, reference, type)) != 1:
            raise Invalid("remove: give a label, a type, or a reference")
        if reference is not None:
            return self._call("DELETE", f"/references/{_number(reference)}", key=key)
        return self._of_type("DELETE", label if type is None else type, None, key)

    def rename(self, label: str | int, new: str, *, who: str | None = None, key: str | None = None) -> dict:
        return self._of_type("PATCH", label, dict(label=new), key)

    def _of_type(self, method, label, body, key):
        if _is_id(label):
            return self._call(method, f"/types/{label}", body=body, key=key)
        return self._call(method, "/types", dict(label=label), body, key=key)

    def merge(self, source: str | int, into: str | int, *, who: str | None = None, key: str | None = None) -> dict:
        return self._call("POST", "/types/merge", body=dict(source=source, into=into), key=key)

    def move(self, reference: int, label: str, *, who: str | None = None, key: str | None = None) -> dict:
        return self._call("PATCH", f"/references/{_number(reference)}", body=dict(label=label), key=key)

    def undo(self, event: int | None = None, *, who: str | None = None, key: str | None = None) -> dict:
        return self._call("POST", "/undo", body=_given(event=event), key=key)

    def export(self, target) -> dict:
        """target: a path, which is complete or stays as it was."""
        with replacing(target) as partial, open(partial, "wb") as file:
            return json.loads(self._call("GET", "/export", into=file, long=True)["docmetric-result"])

    def import_(self, source, on_conflict: str = "skip", who: str | None = None) -> dict:
        """source: the path of a ZIP file of `export`."""
        return self._call("POST", "/import", dict(on_conflict=on_conflict), _file(source), once=True, long=True)

    @cached_property
    def unknowns(self) -> "ClientUnknowns":
        return ClientUnknowns(self)

    @cached_property
    def traffic(self) -> "ClientTraffic":
        return ClientTraffic(self)

    @cached_property
    def upgrade(self) -> "ClientUpgrade":
        return ClientUpgrade(self)


class ClientUnknowns:
    """`Registry.unknowns`, see registry/unknowns.py."""

    def __init__(self, client):
        self._client = client

    def picture(self, unknown: int) -> bytes:
        return self._client._call("GET", f"/unknowns/{_number(unknown)}/image", raw=True)

    def remove(self, unknown: int) -> None:
        self._client._call("DELETE", f"/unknowns/{_number(unknown)}", once=True)

    def clusters(self, threshold: float | None = None) -> list[dict]:
        return self._client._call("GET", "/unknowns/clusters", _given(threshold=threshold), long=True)["clusters"]

    def resolve(self, ids: list[int], label: str | None = None, kind: str = "type", references: int = 1,
                who: str | None = None, dry_run: bool = False, force: bool = False) -> dict:
        body = _given(label=label) | dict(ids=list(ids), kind=kind, references=references, dry_run=dry_run, force=force)
        return self._client._call("POST", "/unknowns/resolve", body=body, once=not dry_run, long=True)

    def list(self, after: int = 0, limit: int = 100) -> list[dict]:  # the last one: its name hides the type
        return self._client._items("/unknowns", "id", after, limit, {})


class ClientTraffic:
    """`Registry.traffic`, see registry/traffic.py."""

    def __init__(self, client):
        self._client = client

    def decisions(self, after: int = 0, limit: int = 100, newest: bool = False) -> list[dict]:
        return self._client._items("/decisions", "decision", after, limit, dict(newest=newest))

    def feedback(self, decision: int, correct: bool, label: str | None = None) -> dict:
        return self._client._call("POST", "/feedback", body=_given(label=label) | dict(decision=decision, correct=correct))

    def replay(self, threshold: float) -> dict:
        return self._client._call("GET", "/threshold/replay", dict(threshold=threshold))


class ClientUpgrade:
    """`Registry.upgrade`, see registry/upgrade.py."""

    def __init__(self, client):
        self._client = client

    def add(self, path, name: str | None = None, who: str | None = None) -> str:
        name = os.path.basename(os.fspath(path)) if name is None else name
        return self._client._call("POST", "/models", dict(name=name), _file(path), once=True, long=True)["hash"]

    def build(self, hash: str, progress: Callable[[int, int], None] | None = None) -> dict:
        """Returns when all references are embedded: {hash, state}. progress: called with (references done, of so many)."""
        total = next(one["references"] for one in self._client.collections() if one["name"] == self._client.name)
        while True:
            built = self._client._call("POST", f"/models/{_hash(hash)}/build")  # a server that was started anew resumes
            if progress:
                progress(built["references"], max(total, built["references"]))
            if built["state"] != "building":
                return {"hash": hash, "state": built["state"]}
            time.sleep(.5)

    def report(self, hash: str) -> dict:
        return self._client._call("GET", f"/models/{_hash(hash)}/report", long=True)

    def activate(self, hash: str, who: str | None = None, threshold: float | str | None = None) -> dict:
        return self._client._call("POST", f"/models/{_hash(hash)}/activate", body=_given(threshold=threshold), long=True)

    def remove(self, hash: str, who: str | None = None) -> dict:
        return self._client._call("DELETE", f"/models/{_hash(hash)}", once=True)


class ClientKeys:
    """The keys of the store, see registry/keys.py."""

    def __init__(self, server):
        self._server = server

    def add(self, name: str, scopes: Iterable[str], collections: Iterable[str] | None = None,
            expires: float | None = None) -> dict:
        body = dict(name=name, scopes=list(scopes), collections=collections and list(collections), expires=expires)
        return self._server.call("POST", "/v1/keys", body=body, once=True)

    def revoke(self, number: int) -> dict:
        return self._server.call("DELETE", f"/v1/keys/{_number(number)}")

    def list(self) -> list[dict]:
        return self._server.call("GET", "/v1/keys")["items"]


# ---- HTTP ----

class _Server:
    """Requests to one server, over connections that are kept."""

    def __init__(self, url, key, timeout):
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            usable = host and parts.scheme in ("http", "https") and not (parts.query or parts.fragment)
        except ValueError:
            usable = False
        if usable and "@" in parts.netloc:
            raise UserError("the address of a server holds no name and password; give the key beside it")
        if not usable:
            raise UserError(f"{printable(url)[:160]}: not the address of a server; write it like http://localhost:8080")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise UserError("the API key has characters that no key has; give it as it was shown, dm_...")
        self.url, self._prefix, self._timeout = parts.geturl(), parts.path.rstrip("/"), timeout
        if parts.scheme == "https":
            context = ssl.create_default_context()
            self._connect = lambda: http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
        else:
            self._connect = lambda: http.client.HTTPConnection(host, port, timeout=timeout)
        self._headers = {"Accept": "application/json", "User-Agent": "docmetric"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._idle: list[http.client.HTTPConnection] = []
        self._lock, self._closed = threading.Lock(), False

    def close(self):
        self._closed = True
        self._forget()

    def _forget(self):
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def call(self, method, path, query=None, body=None, *, kind=None, key=None, once=False, raw=False, into=None,
             long=False):
        """The answer: JSON, or bytes where `raw`; `into`: a file that its content goes to, then the answer is its headers.

        body: a dict as JSON, bytes, or the `Path` of a file. key: an idempotency key of the caller's. once: a request that
        the server may have carried out, or begun, is not sent again. long: one that may take LONG seconds.
        """
        try:
            target = self._prefix + path + ("?" + urlencode(_texts(query)) if query else "")
        except UnicodeEncodeError:
            raise Invalid(f"{', '.join(query)}: must be text that UTF-8 can hold") from None
        if key is not None and not KEY.fullmatch(str(key)):
            raise Invalid("key: an idempotency key has 1 to 200 characters of ASCII, without spaces")
        headers = dict(self._headers)
        if isinstance(body, dict):
            body, kind = json.dumps(body).encode(), "application/json"
        if body is not None:
            headers["Content-Type"] = kind or "application/octet-stream"
            headers["Content-Length"] = str(os.path.getsize(body) if isinstance(body, Path) else len(body))
        if method != "GET":
            headers["Idempotency-Key"] = secrets.token_hex(16) if key is None else str(key)
        timeout = max(self._timeout, LONG) if long else self._timeout
        for pause in (*PAUSES, None):
            try:
                status, answered, content = self._send(method, target, body, headers, once, into, timeout)
            except _Lost as error:
                if pause is None or (error.sent and once):
                    raise UserError(f"{self.url}: {error}") from None
                time.sleep(pause)
                continue
            if status >= 300:
                error = _error(status, content, self.url)
                # A proxy, too, says 503, of a server that was lost at work.
                begun = once and getattr(error, "code", None) != OVERLOADED
                if status == 503 and pause is not None and not begun:
                    time.sleep(min(_seconds(answered.get("Retry-After")), LONGEST_PAUSE))
                    continue
                raise error
            if into is not None:
                return answered
            if raw or status == 204:
                return content
            try:
                return json.loads(content)
            except ValueError:
                raise UserError(f"{self.url}: {STRANGE}") from None

    def _send(self, method, target, body, headers, fresh, into, timeout):
        """(status, headers, content). Raises _Lost. fresh: not over a connection that may be closed at the other end."""
        connection, sent = self._take(fresh), False
        try:
            try:
                if connection.sock is None:
                    connection.connect()
                connection.sock.settimeout(timeout)
                sent = True  # from here on the server may have got it
                if isinstance(body, Path):
                    with open(body, "rb") as file:
                        connection.request(method, target, file, headers)
                else:
                    connection.request(method, target, body, headers)
            except (BrokenPipeError, ConnectionResetError):
                if not sent:
                    raise
                # It may have answered before it had read all, and closed: a key that is wrong, a body that is too large.
            response = connection.getresponse()
            if into is not None and response.status < 400:
                into.seek(0)
                into.truncate()
                shutil.copyfileobj(response, into, BLOCK)
                if response.length:  # http.client takes the end of the connection for that of the content
                    raise http.client.IncompleteRead(b"", response.length)
                content = b""
            else:
                content = response.read()
        except TimeoutError:
            connection.close()
            raise UserError(f"{self.url}: no answer within {timeout:g} s") from None
        except LOST as error:
            connection.close()
            self._forget()  # the others have the same age
            reason = first_line(getattr(error, "strerror", None) or error)
            raise _Lost(f"the connection was lost ({reason})" if sent else
                        f"cannot be reached ({reason}); is docmetric serve running there?", sent) from None
        except http.client.HTTPException as error:
            connection.close()
            raise UserError(f"{self.url}: answers with something that is no HTTP ({first_line(error)})") from None
        except (OSError, UnicodeError) as error:  # the second: of a name that no host can have
            connection.close()
            reason = first_line(getattr(error, "strerror", None) or error)
            raise UserError(f"{self.url}: cannot be reached ({reason})") from None
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            self._give(connection)
        return response.status, response.headers, content

    def _take(self, fresh):
        with self._lock:
            if self._closed:
                raise UserError(f"{self.url}: this client was closed")
            if self._idle and not fresh:
                return self._idle.pop()
        return self._connect()

    def _give(self, connection):
        with self._lock:
            if not self._closed and len(self._idle) < KEPT:
                self._idle.append(connection)
                return
        connection.close()


class _Lost(Exception):
    """A connection that was lost; `sent`: the server may have got the request."""

    def __init__(self, message, sent):
        super().__init__(message)
        self.sent = sent


def _error(status, content, url):
    """The exception that the server meant."""
    try:
        about = json.loads(content)
        code, detail = str(about["code"]), printable(about["detail"])
        details = {"type" if name == "type_id" else name: value for name, value in about.items() if name not in MEMBERS}
        if code == Refused.code:
            return Refused(detail, [Finding(**one) for one in details["findings"]])
    except (ValueError, LookupError, TypeError, AttributeError):
        return UserError(f"{url}: {STRANGE}" if status < 500 else f"{url}: answers {status}; see the log there")
    kind = ERRORS.get(code, RegistryError)
    if not issubclass(kind, RegistryError):
        return kind(detail)
    error = kind(detail)
    error.status, error.code, error.details = status, code, details
    return error


def _seconds(text):
    try:
        return max(0.0, float(text))
    except (TypeError, ValueError):
        return 1.0


# ---- what is sent ----

def _given(**values) -> dict:
    return {name: value for name, value in values.items() if value is not None}


def _texts(query):
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in query.items()}


def _path_of(collection) -> str:
    return f"/v1/collections/{quote(collection, safe='', errors='replace')}"


def _is_id(label) -> bool:
    return isinstance(label, int) and not isinstance(label, bool)


def _number(value) -> int:
    if not _is_id(value) or value < 1:
        raise NotFound(f"{printable(value)[:40]}: no number of anything there is")
    return value


def _hash(value) -> str:
    return quote(str(value), safe="", errors="replace")


def _quad(quad) -> str | None:
    """Four corners, an array too, as the JSON that the server reads."""
    if quad is None:
        return None
    try:
        return json.dumps([[float(number) for number in point] for point in quad])
    except (TypeError, ValueError):
        raise Invalid("quad: must be four corners, each [x, y] in pixels, clockwise from the document's top left") from None


def _content(image) -> bytes:
    """The bytes of an image: of a path, bytes, or an array as `cv2.imread` returns it (needs OpenCV). Raises ImageError."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if not isinstance(image, (str, os.PathLike)):
        from .registry.inputs import picture_of
        return picture_of(image)
    try:
        return Path(image).read_bytes()
    except FileNotFoundError:
        raise ImageError("file not found") from None
    except IsADirectoryError:
        raise ImageError("is a folder, not an image") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _file(path) -> Path:
    if not os.path.isfile(path):
        raise UserError(f"{printable(path)}: no such file; give one that can be sent")
    return Path(path)


def _parts(images) -> Iterator[list]:
    """[(name or None, content, reason why there is none)] of some images at a time."""
    part, size = [], 0
    for image in images:
        try:
            content, reason = _content(image), None
        except ImageError as error:
            content, reason = b"", str(error)
        if part and (len(part) == IMAGES or size + len(content) > BYTES):
            yield part
            part, size = [], 0
        part.append((str(image) if isinstance(image, (str, os.PathLike)) else None, content, reason))
        size += len(content)
    if part:
        yield part


def _form(contents) -> tuple[bytes, str]:
    """(multipart/form-data with a field `image` for each, its content type)"""
    boundary = secrets.token_hex(16)
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n\r\n'.encode()
    body = b"".join(part for content in contents for part in (head, content, b"\r\n"))
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
