"""The server as a program: it starts or says in one line why not, ends without losing a request, survives its workers."""
import collections
import contextlib
import fcntl
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from inference.registry import Registry, Store
from inference.registry.keys import Keys
from inference.server import serve
from inference.server import settings as settings_module
from inference.server.app import create_app
from inference.server.problems import SECURITY
from inference.server.settings import Settings, cores, parse, quota
from tests.helpers.models import write_model
from tests.helpers.programs import ROOT
from tests.helpers.servers import Server, until
from tests.helpers.serving import document, make_store, request

HERE = "/v1/collections/default"


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A server of two worker processes."""
    with Server(make_store(tmp_path_factory.mktemp("several")), workers=2) as server:
        yield server


def send(client, method, path, body=None):
    """(status, JSON) over a connection that stays."""
    client.request(method, path, body)
    response = client.getresponse()
    return response.status, json.loads(response.read())


def count(server, name, **labels):
    """A metric, as any of the workers tells it."""
    told = request(server.url, "GET", "/metrics").content.decode()
    wanted = [line for line in told.splitlines() if line.partition("{")[0].partition(" ")[0] == name
              and all(f'{key}="{value}"' in line for key, value in labels.items())]
    return sum(float(line.rpartition(" ")[2]) for line in wanted)


def sockets(process):
    """How many sockets a process has open."""
    links = [os.readlink(path) for path in Path(f"/proc/{process}/fd").iterdir() if path.is_symlink()]
    return sum(link.startswith("socket:") for link in links)


# ---- several processes ----

def test_workers_share_the_connections_evenly(several):
    """Whichever is quickest would take nearly all of them."""
    before = {worker: sockets(worker) for worker in several.workers()}
    clients = [several.client() for _ in range(40)]
    for client in clients:  # it answers on each
        client.request("GET", "/healthz")
        assert client.getresponse().read() == b"ok\n"
    more = [sockets(worker) - before[worker] for worker in several.workers()]
    assert len(more) == 2 and sum(more) == 40 and min(more) >= 15, more
    for client in clients:
        client.close()


def test_every_worker_sees_every_change_at_once(several):
    """Two connections are on two workers; what was registered over one is known to the other by the time of the answer."""
    clients = [several.client(), several.client()]
    for seed in range(12):
        writer, reader = clients[seed % 2], clients[1 - seed % 2]
        status, added = send(writer, "POST", f"{HERE}/references?label=type-{seed}&force=true", document(100 + seed))
        assert status == 201
        status, told = send(reader, "POST", HERE + "/classify", document(100 + seed))
        assert told["results"][0]["label"] == f"type-{seed}" and told["results"][0]["event"] >= added["event"]
        assert send(writer, "POST", HERE + "/undo")[0] == 200
        status, told = send(reader, "POST", HERE + "/classify", document(100 + seed))
        assert told["results"][0]["label"] is None
    for client in clients:
        client.close()


def test_figures_are_those_of_all_workers(several):
    route = {"route": HERE.replace("default", "{collection}") + "/search"}
    clients = [several.client() for _ in range(6)]
    for client in clients:
        for _ in range(5):
            assert send(client, "POST", HERE + "/search", document(0))[0] == 200
    assert until(lambda: count(several, "docmetric_requests_total", **route) == 30)  # one is counted when it is answered
    assert [count(several, "docmetric_requests_total", **route) for _ in range(6)] == [30] * 6
    assert count(several, "docmetric_request_seconds_count", **route) == 30
    assert until(lambda: count(several, "docmetric_connections") >= 6)
    for client in clients:
        client.close()


def test_figures_have_no_series_of_a_clients_making(several):
    def names():
        return {line.rpartition(" ")[0] for line in request(several.url, "GET", "/metrics").content.decode().splitlines()
                if 'route="' in line}

    for path in ("/nothing", HERE + "/types/1"):
        request(several.url, "GET", path)
    before = names()
    for number in range(20):
        request(several.url, "GET", f"/{number}/secret")
        request(several.url, "GET", f"{HERE}/types/{number + 1000}?text=secret")
        request(several.url, "GET", f"/v1/collections/c{number}/types/7")
    assert names() - before == set() and "secret" not in str(names())


def test_a_killed_worker_comes_back_and_the_others_go_on(store):
    with Registry.open(store) as registry:
        registry.add(document(0), "passport", force=True)
    with Server(store, workers=2) as server:
        for _ in range(10):
            assert request(server.url, "POST", HERE + "/classify", document(0)).status == 200
        assert until(lambda: count(server, "docmetric_requests_total", method="POST") == 10)
        former = server.workers()
        os.kill(former[0], signal.SIGKILL)
        for _ in range(50):  # of those that are not connected to it none is lost
            assert request(server.url, "POST", HERE + "/classify", document(0)).json["results"][0]["label"] == "passport"
        assert until(lambda: len(set(server.workers()) - {former[0]}) == 2)
        assert former[1] in server.workers()
        assert until(lambda: count(server, "docmetric_requests_total", method="POST") == 60)
        assert re.fullmatch(r"a worker process is gone: it ended with status -9; it is started again\n", server.said())
        fresh, = set(server.workers()) - set(former)

        def takes_connections():
            before, clients = sockets(fresh), [server.client() for _ in range(8)]
            time.sleep(.1)
            taken = sockets(fresh) - before
            for client in clients:
                client.close()
            return taken >= 2

        assert until(takes_connections)


def test_a_worker_that_hangs_is_replaced(store):
    code = "from inference.server import __main__, serve; serve.HUNG = 2.0; __main__.main()"
    with Server(store, workers=2, program=("-c", code)) as server:
        hung = server.workers()[0]
        os.kill(hung, signal.SIGSTOP)
        assert until(lambda: len(set(server.workers()) - {hung}) == 2)
        assert "a worker process is gone: it did nothing for 2 s; it is started again\n" in server.said()
        assert request(server.url, "GET", HERE).status == 200


def test_a_pause_of_the_whole_program_is_no_hang(monkeypatch):
    """Ctrl+Z, or a machine that sleeps. The clock goes on, and the workers' beats could not."""
    killed, now = [], 0.0
    monkeypatch.setattr(serve.time, "monotonic", lambda: now)
    supervisor = serve._Supervisor(Settings("s", workers=1), None, None)
    supervisor.workers = [SimpleNamespace(ready=True, beat=None, silent=0.0, stop=killed.append)]
    for _ in range(3):
        now += 10 * serve.HUNG
        supervisor._kill_hung()
    assert killed == []
    for _ in range(int(2 * serve.HUNG)):  # it beats once in a while
        now += 1
        supervisor.beats[0] += int(now) % 10 == 0
        supervisor._kill_hung()
    assert killed == []
    for _ in range(int(serve.HUNG) + 1):
        now += 1
        supervisor._kill_hung()
    assert killed == [signal.SIGKILL]


def test_workers_do_not_outlive_the_program(store):
    with Server(store, workers=2) as server:
        workers = server.workers()
        assert len(workers) == 2
        server.process.kill()
        assert until(lambda: not any(Path(f"/proc/{worker}/fd").exists() and Path(f"/proc/{worker}/cmdline").read_bytes()
                                     for worker in workers))


def test_several_workers_that_are_asked_to_build_a_model_build_it_once(tmp_path):
    with Registry.open(make_store(tmp_path)) as registry:
        registry.add_many([(document(0), f"type {number}") for number in range(300)])
    with Server(tmp_path / "store", workers=2) as server:
        clients = [server.client(), server.client()]
        onnx = write_model(tmp_path / "other.onnx", mean=.3).read_bytes()
        digest = send(clients[0], "POST", HERE + "/models", onnx)[1]["hash"]
        with open(tmp_path / "store" / "models" / f"{digest}.onnx", "rb") as file:  # as a third worker that builds it
            fcntl.flock(file, fcntl.LOCK_EX)
            for client in clients * 3:
                assert send(client, "POST", f"{HERE}/models/{digest}/build")[1]["state"] == "building"
            time.sleep(.5)
            model = send(clients[0], "GET", HERE + "/models")[1]["items"][1]
            assert model["state"] == "building" and model["references"] == 0
        assert until(lambda: send(clients[0], "POST", f"{HERE}/models/{digest}/build")[1]["state"] == "ready")
        for client in clients:
            client.close()


@pytest.mark.parametrize("request_, status", [
    (b"garbage\r\n\r\n", 400), (b"POST " + HERE.encode() + b"/search HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413)])
def test_refusals_have_the_security_headers_too(several, request_, status):
    with several.connect() as client:
        client.send(request_)
        got, headers, _ = client.answer()
    assert got == status
    for name, value in SECURITY:
        assert headers[name.decode()] == value.decode().lower()
    assert headers["cache-control"] == "no-store"


# ---- start and end ----

def test_it_says_one_line_when_it_is_ready(store):
    with Server(store, workers=2) as server:
        assert server.line == f"serving {store} on {server.url}\n"
        assert request(server.url, "GET", "/readyz").content == b"ready\n"
        form = {"Content-Type": "multipart/form-data; boundary=b"}
        assert request(server.url, "POST", HERE + "/classify", b"no form", headers=form).status == 400
        assert server.end() == 0
        assert server.process.stdout.read() == "" and server.said() == ""  # clients do not fill its log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_has_begun_is_answered_before_it_ends(store, number):
    with Registry.open(store) as registry:
        registry.add(document(0), "passport", force=True)
    body = document(0)
    with Server(store) as server, server.connect() as client, server.connect() as idle:
        client.head("POST", HERE + "/classify", f"Content-Length: {len(body)}")
        client.send(body[:100])
        idle.head("GET", "/healthz")
        assert idle.answer()[0] == 200
        assert until(lambda: count(server, "docmetric_requests_in_work") == 1)
        os.killpg(server.process.pid, number)  # as Ctrl+C in a terminal: all its processes
        assert idle.closed()
        assert server.process.poll() is None
        with pytest.raises(ConnectionRefusedError):
            until(lambda: server.connect().close())  # nobody is let in any more
        client.send(body[100:])
        status, headers, answer = client.answer()
        assert status == 200 and json.loads(answer)["results"][0]["label"] == "passport"
        assert headers["connection"] == "close" and client.closed()
        assert server.process.wait(20) == 0


def test_who_does_not_end_is_not_waited_for_for_ever(store):
    noise = np.random.default_rng(0).integers(0, 256, (2048, 2048, 3), np.uint8)  # 12 MB, more than the system keeps
    with Registry.open(store) as registry:
        reference = registry.add(noise, "noise", force=True)["reference"]
    with Server(store, "--drain-timeout", 1) as server, server.connect() as client, server.connect() as other:
        client.head("POST", HERE + "/classify", "Content-Length: 100000")
        client.send(b"x")
        other.head("GET", f"{HERE}/references/{reference}/image")  # and does not read it
        assert until(lambda: count(server, "docmetric_requests_in_work") == 1 and count(server, "docmetric_unread_bytes"))
        began = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - began < 10
        status, headers, answer = client.answer()
        assert status == 503 and json.loads(answer)["code"] == "stopping" and headers["retry-after"]
        assert "Traceback" not in server.said()


def refused(*words):
    """The line with which the server ends."""
    done = subprocess.run([sys.executable, "-m", "inference.server", *map(str, words)], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == "", (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_port_in_use_is_named(store):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"http://127.0.0.1:{port} is in use" in refused(store, "--port", port)


@pytest.mark.parametrize("host, told", [("192.0.2.1", "is no address of this machine"), ("no.such.host.invalid", "no such")])
def test_a_host_that_is_not_there_is_named(store, host, told):
    assert told in refused(store, "--host", host, "--no-auth")


@pytest.mark.skipif(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text() != "1024\n",
                    reason="everyone may use port 80 here")
def test_a_port_that_takes_rights_is_named():
    code = """
import encodings.idna, os, traceback  # what a user without rights may not be able to read
from inference.server.serve import listen
if os.getuid() == 0:
    os.setuid(65534)
listen("127.0.0.1", 80)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "UserError: http://127.0.0.1:80 needs rights" in done.stderr and "--port from 1024" in done.stderr


def test_no_store_is_one_line(tmp_path):
    assert "no store there; make one with docmetric init" in refused(tmp_path / "nothing", "--port", 0)
    (tmp_path / "registry.sqlite").write_bytes(b"no database" * 1000)
    assert str(tmp_path) in refused(tmp_path, "--port", 0)


def test_a_model_that_is_gone_is_one_line(store):
    for path in (store / "models").iterdir():
        path.unlink()
        assert str(path) in refused(store, "--port", 0)


def test_the_index_and_the_backend_are_chosen(store):
    with Registry.open(store) as registry:
        registry.add(document(0), "passport", force=True)
    with Server(store, "--index", "faiss", "--backend", "cpu") as server:
        assert request(server.url, "POST", HERE + "/classify", document(0)).json["results"][0]["label"] == "passport"
    chosen = parse("", [str(store), "--index", "faiss", "--backend", "cuda"])
    state = create_app(chosen).state
    assert (state.store.index, state.store.backend) == ("faiss", "cuda")
    state.work.close()
    state.keys.close()
    state.store.close()


@pytest.mark.parametrize("words, told", [
    (["--index", "sqlite"], "index sqlite: unknown; use memory, faiss"), (["--backend", "tpu"], "--backend"),
    (["--index", "postgresql://127.0.0.1:1/none"], "")])
def test_an_index_that_is_none_is_one_line(store, words, told):
    assert told in refused(store, "--port", 0, *words)


@pytest.mark.parametrize("files, least", [
    ({"": "max 100000"}, math.inf), ({}, math.inf), ({"": "150000 100000"}, 1.5), ({"": "nonsense"}, math.inf),
    ({"": "200000 100000", "/a": "max 100000", "/a/b": "50000 100000"}, .5),
    ({"/a": "300000 100000", "/a/b": "max 100000"}, 3)])
def test_a_quota_of_the_container_counts_as_cores(tmp_path, files, least):
    for place, text in files.items():
        folder = tmp_path / "fs" / place.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(text + "\n")
    (tmp_path / "own").write_text("4:memory:/x\n0::/a/b\n")
    assert quota(tmp_path / "own", tmp_path / "fs") == least
    assert quota(tmp_path / "none", tmp_path / "fs") == math.inf


def test_as_many_workers_as_the_quota_allows(monkeypatch):
    cores.cache_clear()
    for most, expected in ((.5, 1), (1.5, 2), (2, 2), (math.inf, 64)):
        monkeypatch.setattr(settings_module, "quota", lambda: most)
        monkeypatch.setattr(settings_module, "available_cores", lambda: 64)
        assert Settings("s").processes == expected and Settings("s", workers=5).processes == 5
        cores.cache_clear()


def test_fewer_open_files_are_fewer_connections(store):
    """And not a server that can open no file of its store."""
    with Server(store, files=200) as server, contextlib.ExitStack() as stack:
        assert "100 connections instead of 10,000: a process may open 200 files" in server.said()
        client = server.client()
        stack.callback(client.close)
        assert send(client, "GET", HERE)[0] == 200
        for _ in range(99):
            stack.enter_context(server.connect())
        assert stack.enter_context(server.connect()).answer()[0] == 503
        assert send(client, "POST", HERE + "/references?label=x&force=true", document(1))[0] == 201


def test_a_log_that_cannot_be_written_stops_nothing(store):
    with Server(store, "--log-requests", errors="/dev/full") as server:
        client = server.client()
        for _ in range(3):
            assert send(client, "GET", HERE)[0] == 200  # over one connection
        client.close()
        former = server.workers()
        os.kill(former[0], signal.SIGKILL)
        assert until(lambda: server.workers() not in ([], former))
        assert until(lambda: request(server.url, "GET", "/healthz").status == 200)
        assert server.end() == 0


def test_others_may_connect_only_where_there_is_a_key(store):
    assert "the store has no key" in refused(store, "--port", 0, "--host", "0.0.0.0")
    with Server(store, "--host", "0.0.0.0", "--no-auth") as server:
        assert request(server.url, "GET", HERE).status == 200
    with Store(store) as opened, Keys(opened) as keys:
        key = keys.add("scanner", ["classify", "read"])["key"]
    with Server(store, "--host", "0.0.0.0") as server:
        assert request(server.url, "GET", HERE).status == 401
        assert request(server.url, "GET", HERE, key=key).status == 200
        assert [request(server.url, "GET", path).status for path in ("/healthz", "/readyz", "/metrics")] == [200, 200, 401]
        assert request(server.url, "GET", "/metrics", key=key).status == 200


def test_it_is_not_ready_when_the_store_cannot_be_read(store):
    with Server(store) as server:
        (store / "registry.sqlite").rename(store / "elsewhere")
        with open(store / "elsewhere", "r+b") as file:  # the same file, which is open
            file.truncate(0)
        told = until(lambda: (told := request(server.url, "GET", "/readyz")).status == 503 and told)
        assert told and told.json["code"] == "not-ready" and str(store) not in told.content.decode()
        assert request(server.url, "GET", "/healthz").status == 200


@pytest.mark.parametrize("words, told", [
    (["--port", "70000"], "no number from 0 to 65,535"), (["--queue", "0"], "no number"),
    (["--max-body", "32MB"], "no size"), (["--keep-unknown", "30 days"], "no duration"), (["--threads", "-1"], "--threads"),
    (["--host-name", "https://docs.example.com"], "without https:// and a port"),
    (["--host-name", "docs:443"], "no name of"), (["--answer-rate", "0"], "no size"), (["--nonsense"], "unrecognized")])
def test_mistakes_on_the_command_line_are_named(words, told):
    assert told in refused("store", *words)


def test_the_command_line_says_what_the_settings_hold():
    settings = parse("", ["s", "--keep-unknown", "30d", "--max-body", "1MiB", "--queue-bytes", "1GiB", "--workers", "4",
                          "--queue", "10", "--body-timeout", "1.5"])
    assert (settings.keep_unknown, settings.max_body, settings.body_timeout) == (30 * 86400, 1 << 20, 1.5)
    assert (settings.processes, settings.queue_each, settings.bytes_each) == (4, 3, 1 << 28)
    assert parse("", ["s"]).host_names == () and settings.answer_bytes_each == (512 << 20) // 4
    names = ["Docs.example.com", "[FD00::7]", "10.0.0.1"]
    given = parse("", ["s", *(word for name in names for word in ("--host-name", name))])
    assert given.host_names == ("docs.example.com", "fd00::7", "10.0.0.1")
    hosts = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "192.168.1.5", "example.com")
    assert [parse("", ["s", "--host", host]).loopback for host in hosts] == [True] * 3 + [False] * 4


def test_a_log_of_requests_says_nothing_about_who_or_what(store):
    with Server(store, "--log-requests") as server:
        request(server.url, "POST", HERE + "/references", document(0), label="secret-label", force="true")
        request(server.url, "GET", HERE + "/types", text="secret-text")
        request(server.url, "GET", "/secret-path")
        assert server.end() == 0
        lines = [line.split() for line in server.said().splitlines()]
    route = "/v1/collections/{collection}/"
    assert collections.Counter(tuple(line[:3]) for line in lines) == {
        ("POST", route + "references", "201"): 1, ("GET", route + "types", "200"): 1, ("GET", "none", "404"): 1}
    assert "secret" not in str(lines) and "127.0.0.1" not in str(lines)
