"""`python -m inference.server` with its worker processes, and clients that misbehave."""
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers.programs import ROOT, workers_of


class Server:
    """A server of its own processes on a free port. `said()` is what it has written to stderr, or to `errors`, another file.
    files: that a process may have open. program: what Python runs."""

    def __init__(self, store, *options, workers=1, errors=None, files=None, program=("-m", "inference.server")):
        self.store, self.folder = store, Path(store).parent
        self._errors = open(errors or self.folder / f"stderr-{time.monotonic_ns()}", "w")
        limited = ["prlimit", f"--nofile={files}:{files}"] if files else []
        self.process = subprocess.Popen(
            [*limited, sys.executable, *program, str(store), "--port", "0", "--workers", str(workers), *map(str, options)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=self._errors, text=True, start_new_session=True)
        self.line = self.process.stdout.readline()
        assert " on http://" in self.line, self.said()
        self.port = int(self.line.rpartition(":")[2])
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        self.process.stdout.close()
        self._errors.close()

    def said(self) -> str:
        return Path(self._errors.name).read_text()

    def end(self, number=signal.SIGTERM) -> int:
        """Its status after a signal."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def workers(self) -> list[int]:
        """The ids of the worker processes."""
        return workers_of(self.process.pid)

    def memory(self) -> int:
        """Bytes that the workers have in memory."""
        return sum(int(Path(f"/proc/{worker}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                   for worker in self.workers())

    def connect(self) -> "Raw":
        return Raw(self.port)

    def client(self) -> http.client.HTTPConnection:
        """A connection that stays."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        client.connect()
        return client


class Raw:
    """A socket that sends what it is told, HTTP or not."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._file.close()
        self.socket.close()

    def send(self, *parts):
        self.socket.sendall(b"".join(part if isinstance(part, bytes) else part.encode() for part in parts))

    def head(self, method, path, *headers):
        """Send a request as far as its headers go."""
        self.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n", *(header + "\r\n" for header in headers), "\r\n")

    def answer(self) -> tuple[int, dict, bytes]:
        """(status, headers, body) of the next answer."""
        line = self._file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers = dict(line.decode().rstrip().lower().split(": ", 1) for line in iter(self._file.readline, b"\r\n"))
        return int(line.split()[1]), headers, self._file.read(int(headers["content-length"]))

    def closed(self) -> bool:
        """Whether the server closes the connection without a further word."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True


def until(condition, seconds=30):
    """Wait for it; what it gave at last."""
    latest = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < latest:
        time.sleep(.02)
    return found
