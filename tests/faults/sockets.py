"""Thousands of sockets that say nothing, and some clients that classify: do the clients notice?

    python -m tests.faults.sockets                     # 10,000 connections, the server's default
    python -m tests.faults.sockets --connections 2000 --workers 1

The server takes as many connections as it is told to. First only the clients are connected, then idle sockets take all other
places, then a tenth more of them come. Every socket beyond the limit must be answered 503, no client may get another answer
than before, the 99th percentile of their times may grow by half and 10 ms, and the server's memory by 32 KiB a socket.
"""
import json
import select
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from inference.cli import Parser, run_cli
from inference.registry import Registry
from tests.helpers.servers import Server, until
from tests.helpers.serving import document, make_store, request

CLASSIFY = "/v1/collections/default/classify"
CLIENTS = 4
A_SOCKET = 32 << 10  # bytes of memory: a connection of uvicorn with its parser, and what the system's allocator adds


def flood(folder: Path, connections: int, workers: int, requests: int) -> dict:
    """The figures, see the module's docstring. requests: of each client, each time."""
    store = make_store(folder)
    with Registry.open(store) as registry:
        registry.add(document(0), "passport", force=True)
    idle = []
    with Server(store, "--connections", connections, "--header-timeout", 3600, "--idle-timeout", 3600,
                workers=workers) as server:
        clients = [server.client() for _ in range(CLIENTS)]
        try:
            _times(clients, requests)  # what is loaded at the first request is there
            before, memory = _times(clients, requests), server.memory()
            idle += [_socket(server) for _ in range(connections - CLIENTS)]
            assert until(lambda: _connected(server) >= .98 * connections)  # the measuring takes a place, too
            beside, more = _times(clients, requests), server.memory() - memory
            began = time.monotonic()
            idle += [_socket(server) for _ in range(connections // 10)]
            refused = until(lambda: len(found := _answered(idle)) >= connections // 10 and found)
            seconds, taken = time.monotonic() - began, len(idle) + CLIENTS - len(refused)
            assert refused and all(one.recv(12) == b"HTTP/1.1 503" for one in refused)
            assert all(request(server.url, "GET", "/healthz").status in (200, 503) for _ in range(3))
            _times(clients, requests)
        finally:
            for one in (*idle, *clients):
                one.close()
        assert until(lambda: _connected(server) < 10), "places are not free again"
        assert request(server.url, "POST", CLASSIFY, document(0)).json["results"][0]["label"] == "passport"
    return dict(connections=taken, refused=len(refused), seconds=seconds, memory=more, before=before, beside=beside)


def _socket(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def _answered(sockets):
    """Those to which the server has said something."""
    poll, by_number = select.poll(), {one.fileno(): one for one in sockets}
    for number in by_number:
        poll.register(number, select.POLLIN)
    return [by_number[number] for number, _ in poll.poll(0)]


def _connected(server):
    """As the server counts; a refused question says that all places are taken."""
    answer = request(server.url, "GET", "/metrics")
    if answer.status == 503:
        return float("inf")
    return sum(float(line.rpartition(" ")[2]) for line in answer.content.decode().splitlines()
               if line.startswith("docmetric_connections{") or line.startswith("docmetric_connections "))


def _times(clients, requests):
    """Seconds of each classification, all clients at once; every one of them must be right."""
    times, wrong, body = [], [], document(0)

    def work(client):
        for _ in range(requests):
            began = time.perf_counter()
            client.request("POST", CLASSIFY, body)
            response = client.getresponse()
            told = response.read()
            times.append(time.perf_counter() - began)
            if response.status != 200 or json.loads(told)["results"][0]["label"] != "passport":
                wrong.append(told[:200])

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(times) == len(clients) * requests, wrong[:3]
    return times


def percentile(times, share):
    return statistics.quantiles(times, n=100)[share - 1]


def verdict(found: dict, connections: int, share: int = 99) -> list[str]:
    """What is not as it must be. share: of the times, so many percent are looked at."""
    slower = percentile(found["beside"], share) > 1.5 * percentile(found["before"], share) + .01
    return [text for wrong, text in (
        (found["connections"] > connections, f"{found['connections']:,} connections were taken, of {connections:,}"),
        (found["memory"] > A_SOCKET * connections, f"{found['memory'] / connections / 1024:.1f} KiB of memory a socket"),
        (slower, "the clients are slower beside idle sockets")) if wrong]


def main(arguments=None) -> int:
    parser = Parser(prog="python -m tests.faults.sockets", description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000, help="that the server takes")
    parser.add_argument("--workers", type=int, default=2, help="its processes")
    parser.add_argument("--requests", type=int, default=500, help="of each of the clients, before and beside the sockets")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = flood(Path(folder), args.connections, args.workers, args.requests)
    for name in ("before", "beside"):
        half, most = percentile(found[name], 50), percentile(found[name], 99)
        print(f"{name}: p50 {1000 * half:.1f} ms, p99 {1000 * most:.1f} ms")
    print(f"{found['connections']:,} connections, {found['refused']:,} refused with 503 within {found['seconds']:.1f} s; "
          f"{found['memory'] / 2 ** 20:.0f} MiB more memory, {found['memory'] / args.connections / 1024:.1f} KiB a socket")
    wrong = verdict(found, args.connections)
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    run_cli(main)
