"""What is let in, and how long it may take to send and to read: the outermost ASGI middleware, around everything else.

A request takes a place in the queue and room for its body before anything of the body is read; where there is none it gets
503 with Retry-After. A body without a length takes more room as it grows. Too large a body gets 413, too slow a one 408. The
application reads the body when it wants to (it checks the key first), and learns of a refused one as of a client that is
gone. What waits is bounded, so memory is, and so is the time that an admitted request takes.

With the first byte of its answer a request gives back place and room: clients that read slowly keep nobody out. What waits
to be read is counted by itself. Who reads too slowly is cut off; where there is no room for another answer, whoever is the
slowest. A request that was sent ahead begins when the answers before it have been read.
"""
import asyncio
import re
import time

from ..errors import printable
from . import metrics
from .problems import MEDIA_TYPE, REFUSAL, RETRY_AFTER, problem, say
from .settings import Settings

FREE = ("/healthz", "/readyz", "/metrics")  # answered always: whoever watches the server must see what is wrong
STREAMED = re.compile("/v1/collections/[^/]+/(import|models)")  # of these the body goes to a file while it arrives
STREAMED_ROOM = 1 << 20
ROOM = 1 << 20          # what a body without a length takes at a time
HURRY = 1.0             # seconds that a body, or the reader of an answer, has while there is no room for others
UNCOUNTED = 16 << 10    # bytes of an answer that a connection may hold, and nobody counts or waits for
GONE = {"type": "http.disconnect"}
CONNECTION = "docmetric.connection"  # in the scope: the `worker.Connection`; other servers have none, and none is waited for


class Admission:
    """The middleware around `app`. `sweep` must be called every half second or so, see serve.py."""

    def __init__(self, app, settings: Settings):
        self.app, self.settings = app, settings
        self.requests, self.bytes, self.open = 0, 0, set()  # `open`: those whose body is under way
        self.held, self.unread = 0, set()  # bytes of answers; the requests whose clients have not read what was written

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = _Request(self, scope, receive, send)
        try:
            if await request.let_in():
                await request.serve()
        except asyncio.CancelledError:  # the server is being stopped, and `drain_timeout` is over
            if not request.paused:
                await request.refuse(503, "stopping", "the server is being stopped; try again", close=True)
        finally:
            request.leave()
            request.hold(0)
            request.count()

    @property
    def state(self):
        """The application's own, whatever stands between."""
        app = self.app
        while not hasattr(app, "state"):
            app = app.app
        return app.state

    @property
    def full(self) -> bool:
        return self.requests >= self.settings.queue_each

    def make_room(self, size: int) -> bool:
        """For an answer of `size` bytes, by cutting off whoever reads most slowly; False where none is slow enough. One at
        a time may be of any size."""
        limit = self.settings.answer_bytes_each
        if self.held + size > limit:
            now = time.monotonic()
            for request in self.unread:
                request.look(now)
            late = sorted((request for request in self.unread if request.held and request.reading > HURRY),
                          key=lambda request: request.read / request.reading)
            for request in late:
                if self.held + size <= limit * 7 // 8:  # an eighth more: not every answer has to sort them again
                    break
                request.cut()
        return self.held == 0 or self.held + size <= limit

    def sweep(self) -> list:
        """Cut off those who read too slowly; -> coroutines that refuse the requests whose bodies come too slowly. Brings the
        gauges up to date as well."""
        metrics.IN_WORK.set(self.requests)
        metrics.BYTES.set(self.bytes)
        metrics.UNREAD.set(self.held)
        now = time.monotonic()
        for request in list(self.unread):
            request.look(now)
            if request.patience < 0:
                request.cut()
        grace = min(HURRY, self.settings.body_timeout) if self.full else self.settings.body_timeout
        return [request.refuse(408, "too-slow", f"the body came too slowly, {request.arrived} bytes in "
                               f"{request.waited(now):.0f} s; send it faster, or a smaller image", close=True)
                for request in list(self.open)
                if request.arrived < self.settings.body_rate * (request.waited(now) - grace)]


class _Request:
    """One request: `receive` and `send` stand between the server's and the application's."""
    __slots__ = ("admission", "scope", "_receive", "_send", "connection", "began", "status", "refused", "streamed", "most",
                 "place", "taken", "arrived", "_waited", "_since", "_start", "_seconds", "held", "read", "reading",
                 "patience", "_left", "_looked")

    def __init__(self, admission, scope, receive, send):
        self.admission, self.scope, self._receive, self._send = admission, scope, receive, send
        self.connection = scope.get(CONNECTION)
        self.began, self.status, self.refused, self.place = time.monotonic(), None, False, False
        self.streamed = STREAMED.fullmatch(scope["path"]) is not None
        self.most = admission.settings.max_import if self.streamed else admission.settings.max_body
        self.taken = self.arrived = 0     # bytes: room that is taken, body that has arrived
        self._waited, self._since = 0.0, None  # seconds that the application waited for the body, and since when it does
        self._start, self._seconds, self.held = None, None, 0  # how the answer begins, after how long; its counted bytes
        # Bytes that the client has read while it was waited for, seconds that this took, seconds that it may take yet.
        self.read, self.reading, self.patience = 0, 0.0, admission.settings.answer_timeout

    async def let_in(self):
        """Take a place, and room for the body as its headers announce it; False where the request was refused."""
        admission, length, waits, unknown = self.admission, 0, False, False
        if self.paused:
            await self._until_read()
            if self.connection.gone:
                await self.refuse(408, "too-slow", "the answers before this one were not read")
                return False
        if self.scope["path"] in FREE:
            return True
        if admission.full:
            await self.refuse(503, "overloaded", "all places are taken; try again")
            return False
        self.place = True
        admission.requests += 1
        for name, value in self.scope["headers"]:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                unknown = True
            elif name == b"expect":
                waits = True  # the body does not come unless it is asked for, so nothing may follow on this connection
        if length > self.most:
            await self.refuse(413, "too-large", self._too_large(), close=waits)
        elif not self._room(length):
            await self.refuse(503, "overloaded", "there is no room for this body at the moment; try again", close=waits)
        elif length or unknown:
            admission.open.add(self)
        return not self.refused

    def leave(self):
        """Give back place and room."""
        self.admission.open.discard(self)
        self.admission.requests -= self.place
        self.place = False
        self.take(-self.taken)

    def _too_large(self):
        return f"the body is larger than the limit of {self.most:,} bytes; send a smaller image"

    def _room(self, size):
        """Take room for a body of `size` bytes; False where there is none."""
        more = (min(size, STREAMED_ROOM) if self.streamed else size) - self.taken
        if more > 0:
            if self.admission.bytes + more > self.admission.settings.bytes_each:
                return False
            self.take(more)
        return True

    def take(self, more):
        if more:
            self.taken += more
            self.admission.bytes += more

    async def serve(self):
        """Let the application answer."""
        try:
            await self.admission.app(self.scope, self.receive, self.send)
        except Exception:
            # Of a refused request the application may say what it likes; other errors it has logged and answered.
            if not self.refused and self.status is None:
                raise

    def waited(self, now: float) -> float:
        """Seconds that the body has kept the application waiting."""
        return self._waited + (now - self._since if self._since is not None else 0)

    async def receive(self):
        if self.refused:
            return GONE
        self._since = time.monotonic()
        message = await self._receive()
        self._waited, self._since = self.waited(time.monotonic()), None
        if self.refused or message["type"] != "http.request":
            return GONE if self.refused else message
        self.arrived += len(message["body"])
        if not message["more_body"]:
            self.admission.open.discard(self)
        if self.arrived > self.most:
            await self.refuse(413, "too-large", self._too_large())
        elif self.arrived > self.taken and not self._room(min(-(-self.arrived // ROOM) * ROOM, self.most)):
            await self.refuse(503, "overloaded", "there is no room for the rest of this body; try again")
        return GONE if self.refused else message

    async def send(self, message):
        if self.refused:
            return
        if message["type"] == "http.response.start":
            self._start = message  # goes with the first part of the body, which shows how much there is to hold
            return
        if self.status is None:
            size = len(message.get("body", b""))
            if size > UNCOUNTED:
                size += self.taken  # the body is kept as long as the answer is
                # What was changed is answered all the same.
                if not self.admission.make_room(size) and self.scope["method"] == "GET":
                    return await self.refuse(503, "overloaded", "too many answers wait to be read; try again")
                self.hold(size)
            self.status, self._seconds = self._start["status"], time.monotonic() - self.began
            self.leave()
            await self._send(self._start)
        await self._send(message)
        if self.paused:
            await self._until_read()

    # ---- answers that wait ----

    @property
    def paused(self) -> bool:
        """Whether the client must read before more is written."""
        return self.connection is not None and self.connection.paused

    def hold(self, size):
        self.admission.held += size - self.held
        self.held = size

    async def _until_read(self):
        """Returns when the connection is not `paused` any more, or gone."""
        self._left, self._looked = self.connection.unsent, time.monotonic()
        self.admission.unread.add(self)
        try:
            await self.connection.drain()
        finally:
            self.admission.unread.discard(self)
            self.look(time.monotonic())

    def look(self, now):
        """Take note of what was read since the last time. What was read buys patience, up to that of the beginning."""
        left, seconds, settings = self.connection.unsent, now - self._looked, self.admission.settings
        self.patience = min(self.patience - seconds + (self._left - left) / settings.answer_rate, settings.answer_timeout)
        self.read, self.reading = self.read + self._left - left, self.reading + seconds
        self._left, self._looked = left, now

    def cut(self):
        """End the connection; what it holds is free at once."""
        metrics.REJECTED.labels("unread").inc()
        self.admission.unread.discard(self)
        self.hold(0)
        self.connection.abort()

    async def refuse(self, status, code, detail, close=False):
        """Answer in place of the application. What still comes of the body is thrown away, unless `close`: a client that has
        not stopped sending could not read the answer from a connection that is closed."""
        self.admission.open.discard(self)
        if self.refused or self.status is not None:  # the application has answered already
            return
        self.refused, self.status = True, status
        metrics.REJECTED.labels(code).inc()
        body = problem(status, code, detail)
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode()), *REFUSAL]
        if status == 503:
            headers.append((b"retry-after", str(RETRY_AFTER).encode()))
        if close:
            headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    def count(self):
        scope, seconds = self.scope, time.monotonic() - self.began if self._seconds is None else self._seconds
        if "route" in scope:
            route = scope["route"].path
        else:  # of the pages FastAPI tells the function alone
            route = getattr(scope["endpoint"], "__name__", "page") if "endpoint" in scope else "none"
        metrics.answered(scope["method"], route, self.status or 499, seconds)  # 499: the client left
        if self.admission.settings.log_requests:
            # No address, no query and no path: a log is kept longer, and read by more people, than what was sent.
            say(f"{printable(scope['method'])} {route} {self.status or 499} {1000 * seconds:.1f} ms {self.arrived} bytes")
