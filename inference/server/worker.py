"""One worker process: the application in uvicorn, and limits on what connections may do."""
import asyncio
import gc
import logging
import math
import os
import signal
import socket
import threading
import time
from http import HTTPStatus

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..errors import UserError
from . import metrics
from .admission import CONNECTION, UNCOUNTED
from .app import create_app
from .problems import MEDIA_TYPE, REFUSAL, RETRY_AFTER, problem
from .settings import Settings

NEVER = 1 << 30       # seconds
MOST_HEAD = 64 << 10  # bytes of a request's headers; also of a body's framing and trailers, between two bytes of it
PIPELINED = 16        # requests that may wait behind one on a connection
LINGER = 5.0          # seconds that the rest of a refused body is read: a client that still sends does not see the answer
ANOTHER = .001        # seconds after which a process that has more connections than another looks whether that took one
LATE = 20             # times that it looks, and takes it itself
SWEEP = 5             # ticks of uvicorn, of .1 s, between two looks at all connections


def work(settings: Settings, listener: socket.socket, pipe, counts, beats, place: int) -> None:
    """Take connections from `listener` until SIGTERM, or until the process at the other end of `pipe` is gone. `pipe` gets
    None when the process is ready, or the line that says why it cannot be. `counts`, shared by all workers, holds how many
    connections each has; this one's is at `place`. So is its count in `beats`, which rises while it runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches all processes; the parent tells this one what to do
    try:
        app = create_app(settings)
        if not (settings.loopback or settings.no_auth or app.state.keys.exist()):
            raise UserError(f"host {settings.host}: others than this machine can connect, and the store has no key; make "
                            "one with docmetric key add, or give --no-auth")
        metrics.load(app.state.store)
    except UserError as error:
        pipe.send(str(error))
        return
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each form that it cannot read
    threading.Thread(target=_outlive_nobody, args=(pipe,), daemon=True).start()
    gc.collect()
    gc.freeze()  # what is loaded stays: no collection need look at it
    # Errors alone are logged, to stderr; limit_concurrency would count idle connections, so it is not used. Idle connections
    # are ended by `_Server`: uvicorn's timer would run while an answer is still being read.
    config = uvicorn.Config(app, http=Connection, ws="none", interface="asgi3", lifespan="on",
                            log_config=None, log_level="error", access_log=False, proxy_headers=False, server_header=False,
                            timeout_keep_alive=NEVER,
                            timeout_graceful_shutdown=math.ceil(settings.drain_timeout))
    _Server(config, app, settings, pipe, _Acceptor(listener, counts, place), beats).run()


def _outlive_nobody(pipe):
    try:
        pipe.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)


class _Acceptor:
    """Takes connections, each where there are fewest. Whichever process is quickest would otherwise take nearly all: sixteen
    connections were seen on one of two processes, with the other idle."""

    def __init__(self, listener, counts, place):
        self.listener, self.counts, self.place, self.late = listener, counts, place, 0
        listener.setblocking(False)

    def begin(self, connect, connections):
        """connect(socket): a coroutine. connections: all that are open."""
        self.loop, self.connect, self.connections = asyncio.get_running_loop(), connect, connections
        self.tasks = set()
        self.loop.add_reader(self.listener, self._accept)
        self.count()

    def count(self):
        self.counts[self.place] = len(self.connections) + len(self.tasks)

    def _accept(self):
        self.count()
        if self.counts[self.place] > min(self.counts) and self.late < LATE:
            self.late += 1
            return self._pause(ANOTHER)
        self.late = 0
        try:
            connection, _ = self.listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # another process took it, or the client left
            return
        except OSError:  # too many open files, or no memory: some connection must end first
            return self._pause(1.0)
        connection.setblocking(False)
        task = self.loop.create_task(self.connect(connection))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        self.count()

    def _pause(self, seconds):
        self.loop.remove_reader(self.listener)
        self.loop.call_later(seconds, self._resume)

    def _resume(self):
        if self.listener.fileno() >= 0:
            self.loop.add_reader(self.listener, self._accept)

    def end(self):
        self.loop.remove_reader(self.listener)
        self.listener.close()


class _Server(uvicorn.Server):
    def __init__(self, config, app, settings, pipe, acceptor, beats):
        super().__init__(config)
        self.app, self.settings, self.pipe, self.acceptor, self.beats = app, settings, pipe, acceptor, beats

    async def startup(self, sockets=None):
        await super().startup([])
        self.acceptor.begin(self._connect, self.server_state.connections)
        self.pipe.send(None)

    async def _connect(self, connection):
        def protocol():
            return Connection(self.settings, self.acceptor.count, config=self.config, server_state=self.server_state,
                              app_state=self.lifespan.state)

        try:
            await asyncio.get_running_loop().connect_accepted_socket(protocol, connection)
        except OSError:  # the client is gone
            connection.close()

    async def shutdown(self, sockets=None):
        self.acceptor.end()
        await super().shutdown(sockets)

    async def on_tick(self, counter):
        if counter % SWEEP == 0:
            self._sweep()
        return await super().on_tick(counter)

    def _sweep(self):
        self.beats[self.acceptor.place] += 1
        for refusal in self.app.sweep():
            task = asyncio.ensure_future(refusal)
            self.server_state.tasks.add(task)
            task.add_done_callback(self.server_state.tasks.discard)
        self.app.state.work.sweep()
        now = time.monotonic()
        for connection in list(self.server_state.connections):
            if connection.deadline < now and not connection.watched:
                connection.expire()
        metrics.CONNECTIONS.set(len(self.server_state.connections))


class Connection(HttpToolsProtocol):
    """uvicorn's connection with bounds: on their number, the time and size of headers, the requests sent ahead. The time and
    size of a body and of an answer are those of a request, see admission.py. `deadline`: when the server has waited long
    enough for the client to send. ended: called when the connection is closed."""

    def __init__(self, settings, ended, **options):
        super().__init__(**options)
        self.settings, self.ended = settings, ended
        self.deadline, self.mistake = math.inf, "this is no HTTP/1.1 request"
        self.watched = 0  # coroutines that wait until an answer is read, and see to it that this ends
        self.in_head, self.idle_bytes = False, 0  # idle_bytes: that have come since the parser last got anywhere

    def connection_made(self, transport):
        super().connection_made(transport)
        transport.set_write_buffer_limits(UNCOUNTED)
        self.deadline = time.monotonic() + self.settings.header_timeout
        if len(self.connections) > self.settings.connections_each:
            metrics.REFUSED.inc()
            self.refuse(503, "overloaded", "all connections are taken; try again")

    def connection_lost(self, error):
        super().connection_lost(error)
        self.ended()

    def data_received(self, data):
        self.idle_bytes += len(data)
        super().data_received(data)
        if self.idle_bytes > MOST_HEAD and not self.transport.is_closing():
            self.refuse(431, "too-large", f"the headers are larger than {MOST_HEAD >> 10} KiB")

    def on_message_begin(self):
        super().on_message_begin()
        self.in_head, self.deadline = True, time.monotonic() + self.settings.header_timeout

    def on_headers_complete(self):
        # Where this raises, the parser gives up, and 400 is sent.
        if len(self.pipeline) >= PIPELINED:
            raise ValueError("too many requests ahead of their answers")
        if self.parser.should_upgrade() and {b"content-length", b"transfer-encoding"} & {name for name, _ in self.headers}:
            # httptools takes such a body for the next request, which a proxy in between has not looked at.
            self.mistake = "a request that asks for another protocol may not have a body; ask for HTTP/1.1 alone"
            raise ValueError(self.mistake)
        self.in_head, self.deadline, self.idle_bytes = False, math.inf, 0
        self.scope[CONNECTION] = self
        super().on_headers_complete()

    def on_body(self, body):
        self.idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self):
        self.idle_bytes = 0
        super().on_message_complete()
        if self.cycle.response_complete:
            self.deadline = time.monotonic() + self.settings.idle_timeout

    def on_response_complete(self):
        self._expect_another()
        super().on_response_complete()

    def resume_writing(self):
        if self.cycle and self.cycle.response_complete:
            self._expect_another()
        super().resume_writing()

    def _expect_another(self):
        if not self.pipeline and not self.in_head:
            self.deadline = time.monotonic() + (LINGER if self.cycle.more_body else self.settings.idle_timeout)

    # ---- what admission.py asks of it ----

    @property
    def paused(self) -> bool:
        """Whether more than UNCOUNTED bytes wait to be read."""
        return self.flow.write_paused

    @property
    def unsent(self) -> int:
        """Bytes that the system has not taken yet."""
        return self.transport.get_write_buffer_size()

    @property
    def gone(self) -> bool:
        return self.transport.is_closing()

    async def drain(self):
        """Returns when the connection is not `paused` any more, or gone."""
        self.watched += 1
        try:
            await self.flow.drain()
        finally:
            self.watched -= 1

    def abort(self):
        self.transport.abort()

    def expire(self):
        """The client has taken too long."""
        if self.transport.is_closing():
            self.transport.abort()  # it does not even read
        elif self.in_head:
            self.refuse(408, "too-slow", "the headers came too slowly")
        else:
            self.transport.close()
        self.deadline = time.monotonic() + LINGER

    def send_400_response(self, msg):
        """What came is no HTTP."""
        cycle = self.cycle
        if cycle and not cycle.response_complete and not cycle.more_body and not self.pipeline:
            cycle.keep_alive = False  # garbage behind a request: its answer comes first, and is the last one
            self.flow.pause_reading()
        else:
            self.refuse(400, "invalid-request", self.mistake)

    def refuse(self, status, code, detail):
        body = problem(status, code, detail)
        more = b"".join(b"%s: %s\r\n" % header for header in REFUSAL).decode()
        if status == 503:
            more += f"retry-after: {RETRY_AFTER}\r\n"
        self.transport.write(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {MEDIA_TYPE}\r\n{more}"
                             f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        self.transport.close()
