"""The processes of the server: one that listens, starts and restarts, and workers that each run uvicorn on the same socket.

Worker processes are spawned, never forked: ONNX Runtime's threads and SQLite's locks do not survive a fork. Each loads the
store, then takes connections from the one socket; each sees what the others register (`Registry.snapshot`). The work of a
request is done in the threads of its worker (work.py): the event loop stays free to answer /healthz and to refuse.
"""
import dataclasses
import errno
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from multiprocessing.connection import wait

from ..errors import UserError, printable
from .problems import say
from .settings import Settings

SPAWN = multiprocessing.get_context("spawn")
NO_WORKER = 1 << 30      # in place of a count of connections
BACKLOG = 2048
SPARE_FILES = 512        # open files of a process beside its connections
QUICK_DEATH = 10.0       # seconds; a worker that dies sooner after its start is started again later each time
LONGEST_PAUSE = 30.0
HUNG = 120.0             # seconds; a worker whose event loop stands still for so long is killed, and started again
# One thread for each search: there are as many worker processes as cores, and OpenBLAS's threads spin while they wait.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
METRICS = "PROMETHEUS_MULTIPROC_DIR"  # where the workers write their figures


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; running requests are answered before it returns. Prints one line with the address when
    all workers are ready. Raises UserError where it cannot start."""
    with listen(settings.host, settings.port) as listener, tempfile.TemporaryDirectory(prefix="docmetric-") as folder:
        settings = _within_file_limit(settings)
        theirs = {name: os.environ.get(name) for name in (*ENVIRONMENT, METRICS)}
        os.environ |= ENVIRONMENT | {name: value for name, value in theirs.items() if value} | {METRICS: folder}
        try:
            _Supervisor(settings, listener, folder).run()
        finally:
            for name, value in theirs.items():  # the folder is gone
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, and listens when the first worker does. Raises UserError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise UserError(f"host {printable(host)}: no such address; use 127.0.0.1, or 0.0.0.0 for every network") from None
    family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)  # of localhost's two
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        # Two servers may bind one port as long as none listens; only the first that listens gets it.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        way = {errno.EADDRINUSE: "is in use; stop what uses it, or choose another --port",
               errno.EACCES: "needs rights that this user does not have; choose a --port from 1024",
               errno.EADDRNOTAVAIL: "is no address of this machine; use 127.0.0.1, or 0.0.0.0 for every network"}
        raise UserError(f"{address_of(host, port)} {way.get(error.errno, f'cannot be used ({error.strerror})')}") from None
    return listener


def address_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _within_file_limit(settings):
    """Raise the limit of open files; where that is not allowed so far, there are fewer connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.connections_each + SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    most = soft - SPARE_FILES if soft > 2 * SPARE_FILES else soft // 2
    if soft == resource.RLIM_INFINITY or most >= settings.connections_each:
        return settings
    say(f"{settings.processes * most:,} connections instead of {settings.connections:,}: a process may open {soft:,} files; "
        "raise that limit (ulimit -n, LimitNOFILE)")
    return dataclasses.replace(settings, connections=settings.processes * most)


def _work(settings, listener, pipe, counts, beats, place):
    try:
        from .worker import work  # the parent process does without ONNX Runtime and FastAPI
    except ModuleNotFoundError as error:
        return pipe.send(f'the server needs {error.name}: pip install "docmetric[server]"')
    work(settings, listener, pipe, counts, beats, place)


class _Worker:
    """A process, and the pipe on which it says that it is ready, or in one line why it cannot start."""

    def __init__(self, settings, listener, counts, beats, place):
        self.pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_work, args=(settings, listener, theirs, counts, beats, place))
        self.process.start()
        theirs.close()
        self.began, self.ready, self.reason = time.monotonic(), False, None
        self.beat, self.silent = None, 0.0  # its last beat, and for how long there has been no other

    def listen(self):
        """Read what it says."""
        try:
            while self.pipe.poll():
                self.reason = self.pipe.recv()
                self.ready = self.reason is None
        except (EOFError, OSError):
            pass

    def stop(self, number=signal.SIGTERM):
        if self.process.is_alive():
            os.kill(self.process.pid, number)


class _Supervisor:
    def __init__(self, settings, listener, folder):
        self.settings, self.listener, self.folder = settings, listener, folder
        self.workers: list[_Worker | None] = [None] * settings.processes
        self.starts = [0.0] * settings.processes  # when each may be started
        self.pauses = [0.0] * settings.processes
        self.counts = SPAWN.RawArray("i", [NO_WORKER] * settings.processes)  # of connections
        self.beats = SPAWN.RawArray("L", settings.processes)  # each worker counts up while its event loop runs
        self.looked = time.monotonic()
        self.announced = self.stopping = self.hurry = False

    def run(self):
        former = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not self.stopping:
                self._start()
                self._listen()
                self._kill_hung()
                self._bury()
        finally:
            self._end()
            for number, handler in former.items():
                signal.signal(number, handler)

    def _stop(self, number, frame):
        self.hurry, self.stopping = self.stopping, True  # asked twice: without waiting

    def _start(self):
        for place, worker in enumerate(self.workers):
            if worker is None and time.monotonic() >= self.starts[place]:
                self.workers[place] = _Worker(self.settings, self.listener, self.counts, self.beats, place)

    def _listen(self):
        living = [worker for worker in self.workers if worker]
        wait([worker.process.sentinel for worker in living] + [worker.pipe for worker in living if not worker.ready], .2)
        for worker in living:
            if not worker.ready:
                worker.listen()
        if not self.announced and len(living) == len(self.workers) and all(worker.ready for worker in living):
            self.announced = True
            say(f"serving {printable(self.settings.store)} on "
                f"{address_of(self.settings.host, self.listener.getsockname()[1])}", sys.stdout)

    def _kill_hung(self):
        """Only time in which this process runs counts: after Ctrl+Z, or a pause of the whole machine, all workers go on."""
        now = time.monotonic()
        passed, self.looked = min(now - self.looked, 1.0), now
        for place, worker in enumerate(self.workers):
            if worker and worker.ready:
                beat = self.beats[place]
                worker.beat, worker.silent = beat, worker.silent + passed if beat == worker.beat else 0.0
                if worker.silent > HUNG:
                    worker.reason = f"it did nothing for {HUNG:g} s"
                    worker.stop(signal.SIGKILL)

    def _bury(self):
        """Take note of the dead, and say when they are started again."""
        for place, worker in enumerate(self.workers):
            if worker is None or worker.process.is_alive():
                continue
            worker.listen()
            reason = worker.reason or f"it ended with status {worker.process.exitcode}"
            if not self.announced:  # what stops one at the start stops all
                raise UserError(worker.reason or f"a worker process could not start: {reason}")
            self._forget(worker)
            self.counts[place] = NO_WORKER
            if time.monotonic() - worker.began > QUICK_DEATH:
                self.pauses[place] = 0.0
            self.workers[place], self.starts[place] = None, time.monotonic() + self.pauses[place]
            say(f"a worker process is gone: {printable(reason)}; it is started again"
                + (f" in {self.pauses[place]:g} s" if self.pauses[place] else ""))
            self.pauses[place] = min(max(2 * self.pauses[place], .5), LONGEST_PAUSE)

    def _forget(self, worker):
        from prometheus_client.multiprocess import mark_process_dead
        mark_process_dead(worker.process.pid, self.folder)
        worker.pipe.close()

    def _end(self):
        """Stop all workers; those that have not ended in time are killed."""
        self.listener.close()
        living = [worker for worker in self.workers if worker]
        for worker in living:
            worker.stop()
        latest = time.monotonic() + self.settings.drain_timeout + 5
        for worker in living:
            while worker.process.is_alive() and time.monotonic() < latest and not self.hurry:
                worker.process.join(.1)
            worker.stop(signal.SIGKILL)
            worker.process.join()
