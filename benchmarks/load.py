"""A load generator that costs little: raw sockets, requests built beforehand, one thread. The standard library only.

    python benchmarks/load.py < JSON        # the arguments of `requests_of` and `run`; prints what `run` returns, as JSON

It is a process of its own, so that the processor time it takes can be measured and taken off. bench_server.py starts it.
"""
import collections
import json
import re
import select
import socket
import sys
import time

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
BOUNDARY = "a-boundary-that-no-picture-holds"


def requests_of(path: str, files: list[str], form: str | None = None, together: int = 1) -> list[bytes]:
    """POST requests with the content of one file each (of `together` files, from each one on): as the body itself, or as the
    parts `form` of a multipart form."""
    contents = [open(file, "rb").read() for file in files]
    made = []
    for first in range(len(files)):
        chosen, kind = [contents[(first + step) % len(files)] for step in range(together)], "image/jpeg"
        body = chosen[0]
        if form:
            head = (f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{form}"; filename="image.jpg"\r\n'
                    "Content-Type: image/jpeg\r\n\r\n").encode()
            body = b"".join(head + content + b"\r\n" for content in chosen) + f"--{BOUNDARY}--\r\n".encode()
            kind = f"multipart/form-data; boundary={BOUNDARY}"
        made.append(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
                    .encode() + body)
    return made


class Connection:
    """One request at a time. `began`: when it was due; `left`: what of it is not sent yet."""

    def __init__(self, port: int):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began, self.left, self.answer = 0.0, memoryview(b""), b""

    def begin(self, request: bytes, began: float) -> None:
        self.began, self.left, self.answer = began, memoryview(request), b""
        self.send()

    def send(self) -> None:
        try:
            self.left = self.left[self.socket.send(self.left):]
        except BlockingIOError:
            pass

    def receive(self) -> bytes | None:
        """The status line, headers and body, once all of it is there."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("the server closed a connection")
        self.answer += data
        end = self.answer.find(b"\r\n\r\n")
        if end < 0:
            return None
        length = LENGTH.search(self.answer, 0, end + 2)
        return self.answer if len(self.answer) >= end + 4 + int(length[1]) else None

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """(status, body), waiting for it."""
        self.socket.sendall(request)
        return self.hear()

    def hear(self) -> tuple[int, bytes]:
        self.answer = b""
        while (answer := self.receive()) is None:
            pass
        return int(answer[9:12]), answer.partition(b"\r\n\r\n")[2]

    def close(self) -> None:
        self.socket.close()


def run(requests: list[bytes], ports: list[int], connections: int, seconds: float, rate: float | None = None) -> dict:
    """Send requests over connections that stay, evenly to all ports -> {answers, failed (no 2xx), seconds (from the first
    request to the last answer), cpu (seconds that this process computed), latencies (seconds, ascending)}.

    rate None: each connection sends its next request when it has its answer, for `seconds`. Else so many requests a second
    come due at fixed times, whatever the answers do; a latency counts from then, also where no connection was idle: a
    server that stops for a while is charged with all that came due meanwhile.
    """
    opened = [Connection(ports[number % len(ports)]) for number in range(connections)]
    poll, by_file = select.epoll(), {}
    for connection in opened:
        connection.socket.setblocking(False)
        by_file[connection.socket.fileno()] = connection
        poll.register(connection.socket, select.EPOLLIN)
    idle, latencies, failed, sent, busy = collections.deque(opened), [], 0, 0, 0
    cpu, start = time.process_time(), time.perf_counter()
    end = start + seconds
    most = None if rate is None else max(1, round(rate * seconds))
    while True:
        now = time.perf_counter()
        while idle and (sent < most and start + sent / rate <= now if most else now < end):
            connection = idle.popleft()
            connection.begin(requests[sent % len(requests)], start + sent / rate if most else now)
            if connection.left:
                poll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)
            sent, busy = sent + 1, busy + 1
        if not busy and (sent >= most if most else now >= end):
            break
        # epoll itself rounds its time limit up to milliseconds.
        waits = max(0, start + sent / rate - now) if most and sent < most and idle else 60
        if not select.select([poll], [], [], waits)[0]:
            if waits == 60:
                raise TimeoutError("the server has not answered for a minute")
            continue
        for file, event in poll.poll(0):
            connection = by_file[file]
            if event & select.EPOLLOUT:
                connection.send()
                if not connection.left:
                    poll.modify(connection.socket, select.EPOLLIN)
            if event & ~select.EPOLLOUT and (answer := connection.receive()):
                latencies.append(time.perf_counter() - connection.began)
                failed += answer[9:10] != b"2"
                busy -= 1
                idle.append(connection)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    for connection in opened:
        connection.close()
    return dict(answers=len(latencies), failed=failed, seconds=wall, cpu=cpu, latencies=sorted(latencies))


def main():
    given = json.load(sys.stdin)
    print(json.dumps(run(requests_of(**given["requests"]), **given["run"])))


if __name__ == "__main__":
    main()
