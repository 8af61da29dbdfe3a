"""Errors as an answer: application/problem+json (RFC 9457), and nothing in it that is the server's own business.

    {"type": "about:blank", "title": "Not Found", "status": 404, "code": "not-found", "detail": "type 7: ..."}

`code` is a word that programs can compare; what else an error says, `RegistryError.details`, stands next to it.
"""
import contextlib
import json
import re
import sys
from http import HTTPStatus

from ..errors import UserError, printable
from ..image import ImageError
from ..registry.errors import RegistryError

MEDIA_TYPE = "application/problem+json"
# An absolute path of at least two parts; not the path of a URL.
PATH = re.compile(r"(?<![\w:/.<>~%-])(?:[A-Za-z]:)?[/\\](?:[^\s/\\:'\",;()]+[/\\])+([^\s/\\:'\",;()]*)")
OURS = ("/v1/", "/page/", "/docs")  # paths of this API, which a message may name
NO_IMAGE = ("not an image", "empty file")  # how ImageError's reasons begin where the content is of another kind
RETRY_AFTER = 1  # seconds, for 503
LONGEST = 2000  # characters of a message

# Headers of every answer, errors too. Scripts, styles and data come from this server alone; pictures also from the page
# itself, which draws some.
SECURITY = [(b"content-security-policy", b"default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
             b"object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"),
            (b"x-content-type-options", b"nosniff"), (b"x-frame-options", b"DENY"), (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"), (b"cross-origin-opener-policy", b"same-origin"),
            (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()")]
NO_STORE = (b"cache-control", b"no-store")  # answers hold what is registered; no cache between keeps it
REFUSAL = [*SECURITY, NO_STORE]  # of answers that the application does not make


class Problem(Exception):
    """Ends a request with an error: a status, a word for it, a sentence for a human."""

    def __init__(self, status: int, code: str, detail: str, headers: dict | None = None, **more):
        super().__init__(detail)
        self.status, self.code, self.detail, self.headers, self.more = status, code, detail, headers or {}, more


def problem(status: int, code: str, detail: str, **more) -> bytes:
    """The body of an answer of MEDIA_TYPE. `more`: JSON values beside the members that all errors have."""
    about = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "code": code, "detail": detail}
    return json.dumps({**more, **about}).encode()


def say(line: str, file=None) -> None:
    """A line on stderr. Where that cannot be written, a file on a full disk say, the server goes on without it."""
    with contextlib.suppress(OSError):
        print(line, file=file or sys.stderr, flush=True)


def of_error(error: Exception, *secret) -> Problem:
    """The Problem that stands for an exception. secret: folders, whose names a client must not learn.

    Of an exception that is no UserError, a defect of the server, nothing is said but that there was one.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, RegistryError):
        headers = {"Retry-After": str(RETRY_AFTER)} if error.status == 503 else {}
        details = scrubbed(error.details, *secret)
        if "type" in details:  # of a problem that is a word
            details["type_id"] = details.pop("type")
        return Problem(error.status, error.code, scrub(error, *secret), headers, **details)
    if isinstance(error, ImageError):
        found = scrub(error, *secret)
        if found.startswith(NO_IMAGE):
            return Problem(415, "not-an-image", found)
        return Problem(422, "unusable-image", found)
    if isinstance(error, UserError):
        return Problem(400, "invalid-request", scrub(error, *secret))
    return Problem(500, "internal-error", "the server failed at this request; its log says why")


def scrub(text, *secret) -> str:
    """The first line of a message, without the folders of this machine: of a path, its last part alone is left."""
    line = printable((str(text).strip().splitlines() or ["unknown error"])[0][:LONGEST])
    return PATH.sub(lambda found: found[0] if found[0].startswith(OURS) else found[1] or "a folder", without(line, *secret))


def without(text: str, *secret) -> str:
    """`text` without the folders `secret`."""
    for folder in sorted((str(folder).rstrip("/") for folder in secret), key=len, reverse=True):
        if len(folder) > 1:
            text = text.replace(folder + "/", "").replace(folder, "the store")
    return text


def scrubbed(details, *secret):
    """`without` for each text in JSON values; labels and file names that a client gave stay as they are."""
    if isinstance(details, dict):
        return {key: scrubbed(value, *secret) for key, value in details.items()}
    if isinstance(details, (list, tuple)):
        return [scrubbed(value, *secret) for value in details]
    return without(details, *secret) if isinstance(details, str) else details
