"""What a server does with clients that send too slowly, too much, or no HTTP, and with more of them than it can serve.

Over real sockets, against the program with its own worker process.
"""
import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import threading
import time

import cv2
import numpy as np
import pytest

from inference.registry import Registry
from inference.server.settings import Settings
from inference.server.work import Overloaded, Work
from tests.helpers.servers import Server, until
from tests.helpers.serving import document, make_store, request

CLASSIFY = "/v1/collections/default/classify"
MIB = 1 << 20
PLACES = 8


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    store = make_store(tmp_path_factory.mktemp("limits"))
    with Registry.open(store) as registry:
        registry.add(document(0), "passport", force=True)
    with Server(store, "--queue", PLACES, "--queue-bytes", "64MiB", "--header-timeout", 1, "--body-timeout", 3,
                "--body-rate", "16KiB", "--idle-timeout", 2) as server:
        yield server


@pytest.fixture(autouse=True)
def unharmed(server):
    """After each test the same worker answers as before it, and holds nothing any more."""
    worker = server.workers()
    yield
    assert until(lambda: request(server.url, "POST", CLASSIFY, document(0)).json.get("results"))[0]["label"] == "passport"
    assert server.workers() == worker
    assert until(lambda: figure(server, "docmetric_body_bytes") == figure(server, "docmetric_requests_in_work") == 0)


def figure(server, name):
    """The sum of a metric over its labels."""
    lines = request(server.url, "GET", "/metrics").content.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def is_problem(answer, status, code):
    assert answer[0] == status, answer
    assert answer[1]["content-type"] == "application/problem+json"
    about = json.loads(answer[2])
    assert about["status"] == status and about["code"] == code and about["detail"], about


# ---- time ----

def test_headers_that_drip_are_cut(server):
    began = time.monotonic()
    with server.connect() as client:
        client.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        while time.monotonic() < began + .9:  # each byte in time, all of them not
            client.send("X")
            time.sleep(.1)
        is_problem(client.answer(), 408, "too-slow")
        assert client.closed()
    assert 1 <= time.monotonic() - began < 10


def test_a_body_that_drips_is_cut(server):
    began = time.monotonic()
    with server.connect() as client:
        client.head("POST", CLASSIFY, "Content-Length: 100000")
        while time.monotonic() < began + 2.9:
            client.send("x" * 100)  # 1,000 bytes a second
            time.sleep(.1)
        answer = client.answer()
        is_problem(answer, 408, "too-slow")
        assert answer[1]["connection"] == "close" and client.closed()
    assert 3 <= time.monotonic() - began < 20


def test_a_body_that_comes_slowly_but_steadily_is_waited_for(server):
    """Longer than --body-timeout, faster than --body-rate."""
    body = document(0)
    with server.connect() as client:
        client.head("POST", CLASSIFY, "Content-Type: multipart/form-data; boundary=b", "Transfer-Encoding: chunked")
        padding = b"x" * (32 << 10)
        part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n' + body + b"\r\n"
        pieces = [part, *[b'--b\r\nContent-Disposition: form-data; name="pad%d"\r\n\r\n%s\r\n' % (number, padding)
                          for number in range(8)], b"--b--\r\n"]
        began = time.monotonic()
        for piece in pieces:
            client.send(f"{len(piece):x}\r\n", piece, b"\r\n")
            time.sleep(.5)
        client.send("0\r\n\r\n")
        assert time.monotonic() - began > 3
        assert client.answer()[0] == 422  # fields of no meaning: it was read to its end


@pytest.mark.parametrize("first", [b"", b"\r\n\r\n"])
def test_a_connection_that_says_nothing_is_closed(server, first):
    with server.connect() as client:
        client.send(first)
        began = time.monotonic()
        assert client.closed()
        assert .5 < time.monotonic() - began < 10


def test_a_connection_between_two_requests_is_closed(server):
    with server.connect() as client:
        for _ in range(2):
            client.head("GET", "/healthz")
            assert client.answer()[0] == 200
        began = time.monotonic()
        assert client.closed()
        assert 1 < time.monotonic() - began < 10


# ---- size ----

def test_too_large_a_body_is_refused_before_it_comes(server):
    with server.connect() as client:
        client.head("POST", CLASSIFY, f"Content-Length: {50 * MIB}")
        is_problem(client.answer(), 413, "too-large")


def test_who_sends_too_large_a_body_all_the_same_reads_the_answer(server):
    before = server.memory()
    client = server.client()
    client.request("POST", CLASSIFY, b"\xff" * (50 * MIB))
    assert client.getresponse().status == 413
    assert server.memory() - before < 8 * MIB  # nothing of it was kept
    client.close()


def test_who_waits_to_send_is_told_no(server):
    with server.connect() as client:
        client.head("POST", CLASSIFY, f"Content-Length: {50 * MIB}", "Expect: 100-continue")
        is_problem(client.answer(), 413, "too-large")
        assert client.closed()


def test_who_waits_to_send_is_told_to(server):
    body = document(0)
    with server.connect() as client:
        client.head("POST", CLASSIFY, f"Content-Length: {len(body)}", "Expect: 100-continue")
        assert client._file.readline() == b"HTTP/1.1 100 Continue\r\n" and client._file.readline() == b"\r\n"
        client.send(body)
        assert json.loads(client.answer()[2])["results"][0]["label"] == "passport"


def test_chunks_are_cut_at_the_limit(server):
    before = server.memory()
    with server.connect() as client:
        client.head("POST", CLASSIFY, "Transfer-Encoding: chunked")
        peak = 0
        for _ in range(50):
            client.send(b"100000\r\n", b"\xff" * MIB, b"\r\n")
            peak = max(peak, server.memory())
        client.send("0\r\n\r\n")
        is_problem(client.answer(), 413, "too-large")
        assert peak - before < 48 * MIB  # up to 32 that were let in; 50 were sent
        client.head("GET", "/healthz")
        assert client.answer()[0] == 200  # the connection goes on behind it


def test_what_goes_to_a_file_may_be_larger(tmp_path):
    """But not what only has a name like it."""
    with Server(make_store(tmp_path), "--max-body", "1MiB", "--max-import", "4MiB", "--queue-bytes", "2MiB") as other:
        for route in ("import", "models"):
            answer = request(other.url, "POST", f"/v1/collections/default/{route}", b"x" * (3 * MIB))
            assert answer.status in (400, 415, 422), answer.content  # it was read, and is nothing of the kind
            assert request(other.url, "POST", f"/v1/collections/default/{route}", b"x" * (5 * MIB)).status == 413
            assert request(other.url, "PATCH", f"/v1/collections/{route}", b"x" * (3 * MIB)).status == 413
            assert request(other.url, "POST", f"/v1/collections/{route}/references", b"x" * (3 * MIB)).status == 413


def test_headers_without_end_are_cut(server):
    with server.connect() as client:
        client.send("GET / HTTP/1.1\r\n")
        with pytest.raises(ConnectionError):
            for number in range(1000):
                client.send(f"X-{number}: ", "x" * 10_000, "\r\n")


@pytest.mark.parametrize("endless", ["trailer", "extension"])
def test_what_is_no_body_in_a_body_is_cut(server, endless):
    with server.connect() as client:
        client.head("POST", CLASSIFY, "Transfer-Encoding: chunked")
        client.send("1\r\nx\r\n", "0\r\n" if endless == "trailer" else "1;")
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                client.send("X: " if endless == "trailer" else "", "x" * 10_000, "\r\n" if endless == "trailer" else "")


# ---- answers that wait to be read ----

PICTURE = 12 * MIB  # more than the system keeps for a connection, some 4 MiB


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """(store with a type "passport" and a large reference image, the image, its path)"""
    folder = tmp_path_factory.mktemp("large")
    pixels = np.random.default_rng(0).integers(0, 256, (2048, PICTURE // 3 // 2048, 3), np.uint8)
    picture = cv2.imencode(".bmp", pixels)[1].tobytes()
    with Registry.open(make_store(folder)) as registry:
        registry.add(document(0), "passport", force=True)
        reference = registry.add(picture, "noise", force=True)["reference"]
    return folder / "store", picture, f"/v1/collections/default/references/{reference}/image"


def ask(server, path, count):
    """Clients that ask for something and do not read the answer."""
    clients = [server.connect() for _ in range(count)]
    for client in clients:
        client.head("GET", path)
    return clients


def test_who_does_not_read_the_answer_is_cut_off(large):
    store, picture, path = large
    with Server(store, "--answer-timeout", 1) as other:
        assert request(other.url, "GET", path).content == picture
        client, = ask(other, path, 1)
        assert until(lambda: figure(other, "docmetric_unread_bytes") >= PICTURE)
        began = time.monotonic()
        assert until(lambda: figure(other, "docmetric_unread_bytes") == 0)
        assert .4 < time.monotonic() - began < 10
        with client, pytest.raises((ConnectionError, AssertionError)):
            assert client.answer()[2] == picture


def test_who_reads_slowly_but_steadily_is_waited_for(large):
    """Longer than --answer-timeout and --idle-timeout, faster than --answer-rate; and the connection goes on after it."""
    store, picture, path = large
    with Server(store, "--answer-timeout", .5, "--idle-timeout", 2, "--answer-rate", "1MiB") as other:
        client, = ask(other, path, 1)
        began = time.monotonic()
        with client:
            line = client._file.readline()
            headers = list(iter(client._file.readline, b"\r\n"))
            assert line.startswith(b"HTTP/1.1 200") and headers
            content = b""
            while len(content) < len(picture):
                content += client._file.read(min(PICTURE // 50, len(picture) - len(content)))
                time.sleep(.05)  # some 5 MiB a second
            assert content == picture and time.monotonic() - began > 2
            client.head("GET", "/healthz")
            assert client.answer()[0] == 200


def test_who_reads_slowly_takes_no_place(large):
    """With two places, four pictures and four archives, which are read from the disk while they are sent, wait."""
    store, _, path = large
    with Server(store, "--queue", 2) as other, contextlib.ExitStack() as stack:
        for where in (path, "/v1/collections/default/export") * 4:
            client = stack.enter_context(ask(other, where, 1)[0])
            assert client._file.readline().startswith(b"HTTP/1.1 200 ")
        assert until(lambda: figure(other, "docmetric_unread_bytes") > 4 * PICTURE)
        assert figure(other, "docmetric_requests_in_work") == figure(other, "docmetric_body_bytes") == 0
        for _ in range(3):
            assert request(other.url, "POST", CLASSIFY, document(0)).json["results"][0]["label"] == "passport"


def test_answers_that_nobody_reads_do_not_fill_the_memory(large):
    """Room for three: whoever has read least for a second gives way to the next one."""
    store, picture, path = large
    with Server(store, "--answer-bytes", f"{3 * (PICTURE + MIB) >> 20}MiB") as other, contextlib.ExitStack() as stack:
        assert request(other.url, "GET", path).content == picture
        before, peak, told = other.memory(), 0, 0
        for _ in range(30):
            client = stack.enter_context(ask(other, path, 1)[0])
            client.socket.settimeout(.05)
            with contextlib.suppress(TimeoutError):
                told += b" 503 " in client.socket.recv(16)  # all wait for less than a second, and there is no room
            peak = max(peak, other.memory() - before)
        assert told and peak < 10 * PICTURE  # three, and malloc keeps one or two for each thread that reads them
        time.sleep(1.1)
        assert request(other.url, "GET", path).content == picture
        assert request(other.url, "POST", CLASSIFY, document(0)).status == 200


def test_a_request_behind_an_unread_answer_takes_nothing(large):
    """Neither place nor room for its body; it begins when the answer before it is read."""
    store, picture, path = large
    body = document(0)
    with Server(store, "--queue", 1) as other, ask(other, path, 1)[0] as client:
        client.head("POST", CLASSIFY, f"Content-Length: {len(body)}")
        client.send(body)
        assert until(lambda: figure(other, "docmetric_unread_bytes") >= PICTURE)
        time.sleep(.6)  # figures are of up to half a second ago
        assert figure(other, "docmetric_requests_in_work") == figure(other, "docmetric_body_bytes") == 0
        assert request(other.url, "POST", CLASSIFY, body).status == 200
        assert client.answer()[2] == picture
        assert json.loads(client.answer()[2])["results"][0]["label"] == "passport"


# ---- what is no HTTP ----

def test_garbage_is_answered_400(server):
    with server.connect() as client:
        client.send(b"\x16\x03\x01 GET everything\r\n\r\n")
        is_problem(client.answer(), 400, "invalid-request")
        assert client.closed()


def test_garbage_behind_a_request_comes_after_its_answer(server):
    with server.connect() as client:
        client.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\0\xff garbage\r\n\r\n")
        assert client.answer()[0] == 200
        assert client.closed()


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_a_body_is_never_the_next_request(server, protocol):
    """With a wish for another protocol it would be: a proxy in between has let it through as a body."""
    smuggled = b"DELETE /v1/collections/default/types/1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with server.connect() as client:
        client.head("POST", CLASSIFY, f"Content-Length: {len(smuggled)}", "Connection: Upgrade", f"Upgrade: {protocol}")
        client.send(smuggled)
        answer = client.answer()
        is_problem(answer, 400, "invalid-request")
        assert b"HTTP/1.1 alone" in answer[2] and client.closed()
    with server.connect() as client:  # without a body the wish is ignored
        client.head("GET", "/healthz", "Connection: Upgrade", f"Upgrade: {protocol}")
        assert client.answer()[0] == 200
        client.head("GET", "/healthz")
        assert client.answer()[0] == 200


@pytest.mark.parametrize("framing", [
    "Content-Length: 5\r\nTransfer-Encoding: chunked", "Content-Length: 1\r\nContent-Length: 1", "Content-Length: +1",
    "Content-Length: 1, 1", "Content-Length : 1", "Transfer-Encoding: chunked, identity", "Transfer-Encoding: xchunked",
    "Content-Length: 99999999999999999999999", "Content-Length: 1\r\n X: y", "X: a\rContent-Length: 1", "X: \0"])
def test_a_body_of_two_meanings_is_refused(server, framing):
    """Where a proxy in between could take another one."""
    with server.connect() as client:
        client.head("POST", CLASSIFY, framing)
        client.send("0\r\n\r\n")
        is_problem(client.answer(), 400, "invalid-request")
        assert client.closed()


def test_requests_sent_ahead_are_answered_in_turn(server):
    with server.connect() as client:
        client.send(*(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n" for path in ("/healthz", "/nothing", "/readyz")))
        assert [client.answer()[0] for _ in range(3)] == [200, 404, 200]


def test_thousands_of_requests_sent_ahead_are_not_kept(server):
    with server.connect() as client:
        client.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5000)
        answers = []
        with pytest.raises((AssertionError, ConnectionError)):  # the connection ends
            while True:
                answers.append(client.answer()[0])
        assert len(answers) < 100 and set(answers) <= {200, 400}


# ---- more than it can do ----

def test_places_and_bytes_are_bounded_and_health_is_answered_always(server):
    waiting = [server.connect() for _ in range(PLACES)]
    for client in waiting:
        client.head("POST", CLASSIFY, "Content-Length: 1000")
        client.send("x")
    with server.connect() as client:
        assert until(lambda: figure(server, "docmetric_requests_in_work") == PLACES)
        client.head("POST", CLASSIFY, "Content-Length: 5")  # refused before its body has come
        answer = client.answer()
        is_problem(answer, 503, "overloaded")
        assert int(answer[1]["retry-after"]) >= 1
        for path in ("/healthz", "/readyz", "/metrics"):
            assert request(server.url, "GET", path).status == 200
    # With all places taken a body has a second, not --body-timeout.
    assert [client.answer()[0] for client in waiting] == [408] * PLACES
    for client in waiting:
        client.close()
    assert figure(server, "docmetric_rejected_total") > PLACES


def test_bodies_share_the_room(server):
    """64 MiB: two bodies of 30, and 4 of one whose length nobody knows."""
    holding = [server.connect() for _ in range(2)]
    for client in holding:
        client.head("POST", CLASSIFY, f"Content-Length: {30 * MIB}")
    assert until(lambda: figure(server, "docmetric_body_bytes") == 60 * MIB)
    with server.connect() as client:
        client.head("POST", CLASSIFY, f"Content-Length: {30 * MIB}")
        is_problem(client.answer(), 503, "overloaded")
    with server.connect() as client:
        client.head("POST", CLASSIFY, "Transfer-Encoding: chunked")
        for _ in range(8):
            client.send(b"100000\r\n", b"\xff" * MIB, b"\r\n")
        is_problem(client.answer(), 503, "overloaded")
    for client in holding:
        client.close()  # gone: their room is free again, see `unharmed`


def test_many_idle_sockets_do_not_harm_the_others(tmp_path):
    store, connections = make_store(tmp_path), 300
    with Registry.open(store) as registry:
        registry.add(document(0), "passport", force=True)
    with Server(store, "--connections", connections, "--header-timeout", 60) as server, contextlib.ExitStack() as open_ones:
        client = server.client()
        open_ones.callback(client.close)

        def classify():
            began = time.monotonic()
            client.request("POST", CLASSIFY, document(0))
            assert json.loads(client.getresponse().read())["results"][0]["label"] == "passport"
            return time.monotonic() - began

        classify()
        before = server.memory()
        for _ in range(connections - 1):
            open_ones.enter_context(server.connect())
        seconds = [classify() for _ in range(50)]
        assert np.median(seconds) < .1
        assert server.memory() - before < 32 * MIB
        for _ in range(5):
            is_problem(open_ones.enter_context(server.connect()).answer(), 503, "overloaded")
        classify()


def test_who_does_not_know_a_key_sends_nothing(tmp_path):
    """The key is checked before the body is read."""
    from inference.registry import Store
    from inference.registry.keys import Keys
    store = make_store(tmp_path)
    with Store(store) as opened, Keys(opened) as keys:
        keys.add("scanner", ["classify"])
    with Server(store) as other, other.connect() as client:
        client.head("POST", CLASSIFY, f"Content-Length: {10 * MIB}")
        assert client.answer()[0] == 401


# ---- the threads ----

class Slow:
    """A registry with a large index whose first search waits for `go`."""

    def __init__(self):
        self.go, self.began, self.batches = threading.Event(), threading.Event(), []

    def snapshot(self):
        return self

    @property
    def index(self):
        return range(1_000_000)

    def look(self, image, quad=None, snapshot=None):
        return image

    def decide(self, looks, top_k, snapshot=None):
        self.batches.append(list(looks))
        self.began.set()
        assert self.go.wait(30)
        if "bad" in looks:
            raise ValueError("bad")
        return [f"{look} {top_k}" for look in looks]


@pytest.fixture
def work():
    work = Work(Settings("", workers=1, threads=2, queue=70, work_timeout=1.0))
    yield work
    work.close()


def test_what_comes_during_a_search_shares_the_next(work):
    slow = Slow()

    async def all_at_once():
        first = asyncio.ensure_future(work.classify(slow, ["a"], 3))
        await asyncio.to_thread(slow.began.wait)
        rest = [asyncio.ensure_future(work.decide(slow, [f"{number}", "x"], 3)) for number in range(40)]
        await asyncio.sleep(.05)
        slow.go.set()
        return await first, await asyncio.gather(*rest)

    first, rest = asyncio.run(all_at_once())
    assert first == (["a"], ["a 3"])
    assert rest == [[f"{number} 3", "x 3"] for number in range(40)]
    assert [len(batch) for batch in slow.batches] == [1, 64, 16]


def test_an_error_of_a_search_is_that_of_all_in_it_and_of_no_other(work):
    slow = Slow()

    async def all_at_once():
        first = asyncio.ensure_future(work.decide(slow, ["a"]))
        await asyncio.to_thread(slow.began.wait)
        rest = [asyncio.ensure_future(work.decide(slow, [look])) for look in ("b", "bad")]
        await asyncio.sleep(.05)
        slow.go.set()
        done = await asyncio.gather(first, *rest, return_exceptions=True)
        return done, await work.decide(slow, ["c"])

    done, later = asyncio.run(all_at_once())
    assert done[0] == ["a 1"] and [type(error) for error in done[1:]] == [ValueError] * 2 and later == ["c 1"]


def test_jobs_beyond_the_bound_late_ones_and_abandoned_ones_are_not_done(work):
    go, done = threading.Event(), []

    async def all_at_once():
        blocked = [asyncio.ensure_future(work.run(go.wait, 30)) for _ in range(2)]  # both threads
        rest = [asyncio.ensure_future(work.run(done.append, number)) for number in range(68)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as error:
            await work.run(done.append, "too much")
        assert error.value.status == 503
        assert await work.run_slow(len, "of its own") == 10  # other threads
        rest[0].cancel()
        await asyncio.sleep(1.1)
        go.set()
        return await asyncio.gather(*blocked), await asyncio.gather(*rest, return_exceptions=True)

    blocked, rest = asyncio.run(all_at_once())
    assert blocked == [True, True] and done == []
    assert type(rest[0]) is asyncio.CancelledError and {type(error) for error in rest[1:]} == {Overloaded}


def test_bodies_of_many_clients_at_once(server):
    """More at once than there are places: each is answered, rightly or with 503, and none of them is lost."""
    body = document(0)

    def classify(_):
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        client.request("POST", CLASSIFY, body)
        response = client.getresponse()
        told = json.loads(response.read())
        client.close()
        return response.status, told["results"][0]["label"] if response.status == 200 else told["code"]

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = set(pool.map(classify, range(200)))
    assert (200, "passport") in answers and answers <= {(200, "passport"), (503, "overloaded")}
