"""The client: the same calls and answers as a registry, and what it does when the network or the server fails."""
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest

from inference.client import Client
from inference.errors import ImageError, UserError
from inference.registry import Registry, Store
from inference.registry.errors import Busy, Conflict, Invalid, NotFound, Refused, RegistryError
from inference.registry.keys import Keys
from tests.helpers.models import blocks, write_model
from tests.helpers.serving import document, make_store, serving


@contextlib.contextmanager
def registry_or_client(kind, folder, keep_unknown=3600.0):
    store = make_store(folder)
    if kind == "registry":
        with Registry.open(store) as registry:
            registry.traffic.keep_unknown = keep_unknown
            yield registry
    else:
        with serving(store, keep_unknown=keep_unknown) as url, Client(url) as client:
            yield client


@pytest.fixture(params=["registry", "client"])
def either(request, tmp_path):
    with registry_or_client(request.param, tmp_path) as registry:
        yield registry


def filled(registry):
    for seed, label in enumerate(("passport", "invoice", "永久居留證 a/b?c#d")):
        registry.add(document(seed), label, force=True)
    return registry


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path)


@pytest.fixture
def client(store):
    with serving(store) as url, Client(url) as client:
        yield client


# ---- one body over both: what holds for a Registry holds for a Client ----

def timeless(value):
    """Without what differs from run to run: times, numbers of decisions."""
    if isinstance(value, dict):
        return {name: timeless(one) for name, one in value.items() if name not in ("created", "when", "expires", "decision")}
    if isinstance(value, (list, tuple)):
        return [timeless(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def everything(registry, folder):
    """The answers of all methods, in an order that changes and undoes much."""
    picture, path = document(0), folder / "a picture.png"
    path.write_bytes(picture)
    array = cv2.imdecode(np.frombuffer(document(1), np.uint8), 1)
    yield "empty", registry(picture), registry.labels, registry.types(), registry.search(picture)
    yield "add bytes", registry.add(picture, "passport")
    yield "add array", registry.add(array, "invoice", source="desk", force=True)
    yield "add path", registry.add(path, "card", force=True, quad=[[5, 5], [470, 5], [470, 470], [5, 470]])
    yield "add unknown", registry.add(document(3), kind="unknown", force=True, orientation=90)
    yield "once", registry.add(document(4), "x", force=True, key="k"), registry.add(document(4), "x", force=True, key="k")
    yield "call", registry(path), registry(array), registry(document(50)), registry(picture, quad=[[0, 0], [99, 0], [99, 99],
                                                                                                    [0, 99]])
    images = [path, document(1), array, b"none", folder / "missing.png", folder, document(3), document(60)]
    yield "classify", registry.classify(images, top_k=3), list(registry.stream(images))
    yield "search", registry.search(picture, k=2)
    yield "inspect", {name: value for name, value in registry.inspect(picture, "passport").items()
                      if name not in ("vectors", "resolves")}
    yield "lists", registry.labels, registry.types(), registry.types(after=1, limit=1), registry.types(text="a")
    yield "one", registry.type("invoice"), registry.type(2), registry.reference(1), registry.picture(2)
    yield "references", (registry.references(), registry.references("invoice"), registry.references(2),
                         registry.references(kind="unknown"), registry.references(after=2, limit=1))
    yield "rename", registry.rename("invoice", "rechnung"), registry.rename(2, "永久居留證 a/b?c#d")
    yield "move", registry.move(1, "moved")
    yield "merge", registry.merge("moved", "card"), registry.merge(2, "card")
    yield "undo", registry.undo(), registry.undo(), registry.undo(5)
    yield "remove", registry.remove("card"), registry.remove(reference=2), registry.references(removed=True)
    yield "undone", registry.undo(), registry.undo(), registry.types()
    yield "threshold", registry.threshold, registry.set_threshold(0.9), registry.threshold, registry.set_threshold(
        0.95, label=registry.labels[0]), registry.set_threshold(), registry.threshold
    yield "settings", registry.settings, registry.set_settings(margin=0.01)["margin"], registry.settings, registry.warnings
    yield "suggestion", registry.suggest_threshold(), registry.suggest_threshold(target=0.5)
    yield "events", registry.events(), registry.events(after=3, limit=2), registry.events(newest=True, limit=2)
    yield "models", registry.models()
    digest = registry.upgrade.add(write_model(folder / "other.onnx", mean=0.45))
    yield "upgrade", digest, registry.upgrade.build(digest)["state"], registry.upgrade.report(digest)
    yield "activate", registry.upgrade.activate(digest), registry.models()
    yield "back", registry.upgrade.activate(registry.models()[0]["hash"]), registry.upgrade.remove(digest), registry.models()
    yield "export", registry.export(folder / "all.zip")["references"]
    yield "import", registry.import_(folder / "all.zip"), registry.import_(folder / "all.zip", on_conflict="merge")


def test_a_client_answers_as_a_registry_does(tmp_path):
    answers = []
    for kind in ("registry", "client"):
        (tmp_path / kind).mkdir()
        with registry_or_client(kind, tmp_path / kind, keep_unknown=0.0) as registry:
            answers.append([timeless(one) for one in everything(registry, tmp_path / kind)])
    for ours, theirs in zip(*answers, strict=True):
        text = lambda value: json.dumps(value, default=repr).replace(str(tmp_path / "registry"), "").replace(
            str(tmp_path / "client"), "")
        assert text(ours) == text(theirs), ours[0]


ERRORS = {
    "an image that is none": (ImageError, lambda r: r(b"x")),
    "an image that is not there": (ImageError, lambda r: r("/none/x.png")),
    "no label": (Invalid, lambda r: r.add(document(9))),
    "an empty label": (Invalid, lambda r: r.add(document(9), "")),
    "a long label": (Invalid, lambda r: r.add(document(9), "x" * 300)),
    "an unprintable label": (Invalid, lambda r: r.add(document(9), "a\nb", force=True)),
    "a surrogate": (Invalid, lambda r: r.rename("passport", "a\udcffb")),
    "a near duplicate": (Refused, lambda r: r.add(document(0), "passport")),
    "a known name": (Conflict, lambda r: r.rename("passport", "invoice")),
    "itself": (Conflict, lambda r: r.merge("passport", "passport")),
    "no such label": (NotFound, lambda r: r.remove("none")),
    "no such type": (NotFound, lambda r: r.type(99)),
    "no such reference": (NotFound, lambda r: r.reference(99)),
    "reference 0": (NotFound, lambda r: r.picture(0)),
    "no such event": (NotFound, lambda r: r.undo(99)),
    "two things to remove": (Invalid, lambda r: r.remove("passport", reference=1)),
    "another use of a key": (Conflict, lambda r: (r.undo(key="a"), r.rename("passport", "x", key="a"))),
    "a quad of three": (Invalid, lambda r: r.add(document(9), "x", quad=[[0, 0], [1, 1], [2, 2]])),
    "a turn by 45 degrees": (Invalid, lambda r: r.add(document(9), "x", orientation=45)),
    "a threshold of 2": (Invalid, lambda r: r.set_threshold(2)),
    "a threshold and an fpr": (Invalid, lambda r: r.set_threshold(.5, fpr=.1)),
    "find sometimes": (Invalid, lambda r: r.set_settings(find="sometimes")),
    "top_k 0": (Invalid, lambda r: r.classify([document(0)], top_k=0)),
    "k 0": (Invalid, lambda r: r.search(document(0), k=0)),
    "no unknowns": (Invalid, lambda r: r.unknowns.resolve([], "x")),
    "an unknown that is gone": (NotFound, lambda r: r.unknowns.picture(99)),
    "a decision that is gone": (NotFound, lambda r: r.traffic.feedback(99, True)),
    "no such model": (NotFound, lambda r: r.upgrade.report("0" * 64)),
}


@pytest.fixture(scope="module", params=["registry", "client"])
def shared(request, tmp_path_factory):
    with registry_or_client(request.param, tmp_path_factory.mktemp(request.param)) as registry:
        yield filled(registry)


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_of_the_same_class(shared, case):
    kind, act = ERRORS[case]
    with pytest.raises(UserError) as error:
        act(shared)
    assert type(error.value) is kind, repr(error.value)


def test_a_refusal_has_its_findings(shared):
    with pytest.raises(Refused) as error:
        shared.add(document(0), "passport")
    finding, = (one for one in error.value.findings if one.code == "near-duplicate")
    assert finding.details["reference"] == 1 and finding.message in str(error.value)
    assert error.value.details["findings"][0]["code"] and error.value.status == 409


def test_a_conflict_tells_the_other_type(shared):
    with pytest.raises(Conflict) as error:
        shared.rename("passport", "invoice")
    assert error.value.details["type"] == shared.type("invoice")["type"]


def test_unknowns_are_named(either):
    filled(either)
    for number in range(3):
        image = cv2.imencode(".png", np.clip(blocks(88, 480).astype(int) + number, 0, 255).astype(np.uint8))[1].tobytes()
        assert either.classify([image])[0]["label"] is None
        if isinstance(either, Registry):  # what is asked of a server is recorded by itself
            look = either.look(image)
            either.traffic.record(either.decide([look])[0], look, image)
    assert len(either.unknowns.list()) == 3 and len(either.unknowns.list(limit=2)) == 2
    cluster, = either.unknowns.clusters()
    assert cluster["size"] == 3 and either.unknowns.picture(cluster["cover"]).startswith(b"\x89PNG")
    assert len(either.unknowns.resolve(cluster["ids"], "permit", dry_run=True, force=True)["resolved"]) == 3
    either.unknowns.remove(cluster["ids"][0])
    done = either.unknowns.resolve(cluster["ids"], "permit", force=True)
    assert len(done["resolved"]) == 2 and either.type("permit")["references"] == 1
    assert either.traffic.decisions() and either.traffic.replay(.5)["threshold"] == .5


def test_listings_reach_beyond_a_page(client, monkeypatch):
    filled(client)
    monkeypatch.setattr("inference.client.PAGE", 1)
    assert len(client.types()) == 3 and len(client.labels) == 3
    assert [one["event"] for one in client.events(newest=True, limit=2)] == [3, 2]


def test_many_images_come_back_in_order(client, monkeypatch):
    filled(client)
    monkeypatch.setattr("inference.client.IMAGES", 3)
    seeds = [0, 1, 2, 50] * 10
    labels = ["passport", "invoice", "永久居留證 a/b?c#d", None] * 10
    assert [one["label"] for one in client.stream(document(seed) for seed in seeds)] == labels
    running = client.stream(document(seed) for seed in seeds)
    assert next(running)["label"] == "passport"
    running.close()  # nobody waits for the rest


def test_threads_share_a_client(client):
    filled(client)
    answers, threads = [], []
    for seed in range(24):
        threads.append(threading.Thread(target=lambda seed=seed: answers.append((seed % 3, client(document(seed % 3))[0]))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    labels = ("passport", "invoice", "永久居留證 a/b?c#d")
    assert len(answers) == 24 and all(labels[seed] == label for seed, label in answers)


def test_collections_and_keys(store):
    with Store(store) as opened, Keys(opened) as keys:
        key = keys.add("owner")["key"]
    with serving(store) as url:
        with Client(url, key) as client:
            assert client.me()["name"] == "owner"
            other = client.create("other", find="never")
            other.add(document(0), "x")
            assert (other.labels, client.labels) == (["x"], [])
            assert other.references()[0]["who"] == "owner"
            assert [one["name"] for one in client.collections()] == ["default", "other"]
            made = client.keys.add("small", ["read"], ["other"])
            assert client.keys.list()[1]["name"] == "small"
            with Client(url, made["key"], "other") as small:
                assert small.labels == ["x"]
                with pytest.raises(RegistryError) as error:
                    small.add(document(1), "y")
                assert (error.value.status, error.value.details["scope"]) == (403, "write")
                with pytest.raises(RegistryError):
                    small.collection("default").labels
                client.keys.revoke(made["id"])
                with pytest.raises(RegistryError) as error:
                    small.labels
                assert error.value.status == 401
        with pytest.raises(RegistryError, match="give a key"), Client(url) as nobody:
            nobody.labels


def test_the_standard_library_is_enough():
    code = ("import sys; sys.path.insert(0, '.'); import inference.client; "
            "bad = [m for m in ('numpy', 'cv2', 'onnxruntime', 'apsw', 'fastapi') if m in sys.modules]; assert not bad, bad")
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- the network fails ----

class Relay:
    """A server in between, which does to each connection what the next of `acts` says: pass on, and then "ok", or "lose" the
    answer, or "cut" it in the middle; "late" and then ok; or "refuse" before anything is read; or `bytes`: answer that."""

    def __init__(self, url, acts):
        self.address = tuple(url.removeprefix("http://").split(":"))
        self.acts, self.seen = list(acts), 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()

    def _run(self):
        with contextlib.suppress(OSError):
            while True:
                theirs, _ = self.listener.accept()
                act = self.acts[self.seen] if self.seen < len(self.acts) else "ok"
                self.seen += 1
                threading.Thread(target=self._serve, args=(theirs, act), daemon=True).start()

    def _serve(self, theirs, act):
        with theirs:
            if act == "refuse":
                return
            request = self._request(theirs)
            if isinstance(act, bytes):
                theirs.sendall(act)
                return
            if act == "silence":
                time.sleep(5)
                return
            if act == "late":
                time.sleep(.6)
            with socket.create_connection(self.address) as ours:
                ours.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
                answer = b""
                while block := ours.recv(1 << 16):
                    answer += block
            if act != "lose":
                theirs.sendall(answer[:len(answer) - 20] if act == "cut" else answer)

    @staticmethod
    def _request(theirs):
        data = b""
        while b"\r\n\r\n" not in data:
            data += theirs.recv(1 << 16)
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        while lengths and len(body) < lengths[0]:
            body += theirs.recv(1 << 16)
        return head + b"\r\n\r\n" + body


@pytest.fixture
def relayed(store, monkeypatch):
    """Makes a client behind a `Relay` that does `acts`."""
    monkeypatch.setattr("inference.client.PAUSES", (.01,) * 5)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(serving(store))

        def make(*acts, timeout=30.0):
            relay = stack.enter_context(Relay(url, acts))
            return stack.enter_context(Client(relay.url, timeout=timeout)), relay
        yield make


@pytest.mark.parametrize("acts", [["lose"], ["cut"], ["refuse"], ["refuse", "lose", "cut", "lose"], ["lose"] * 5])
def test_an_add_whose_answer_is_lost_is_made_once(relayed, acts):
    client, relay = relayed(*acts)
    added = client.add(document(0), "passport")
    assert added["reference"] == 1 and relay.seen == len(acts) + 1
    assert len(client.references()) == 1 and len(client.events()) == 1


def test_every_change_is_made_once(relayed):
    client, _ = relayed(*["lose", "ok"] * 20)
    for seed in range(3):
        client.add(document(seed), f"type {seed}", force=True)
    client.rename("type 0", "new")
    client.move(2, "moved")
    client.merge("new", "moved")
    client.remove(reference=3)
    client.undo()
    client.set_threshold(.9)
    assert [one["what"] for one in client.events()] == [
        "add", "add", "add", "rename", "move", "merge", "remove", "undo", "threshold"]


def test_what_cannot_be_repeated_is_not(relayed):
    client, relay = relayed("ok", "lose")
    client.labels
    with pytest.raises(UserError, match="the connection was lost"):
        client.keys.add("a key", ["read"])
    assert relay.seen == 2


def test_a_connection_that_is_lost_for_good_ends_in_one_line(relayed):
    client, relay = relayed(*["lose"] * 20)
    with pytest.raises(UserError, match="the connection was lost") as error:
        client.add(document(0), "x")
    assert relay.seen == 6 and "\n" not in str(error.value)


def test_a_busy_server_is_asked_again(relayed):
    body = b'{"code": "overloaded", "detail": "too much", "status": 503}'
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    client, relay = relayed(busy, busy)
    assert client.add(document(0), "x")["reference"] == 1 and relay.seen == 3
    client, relay = relayed(*[busy] * 20)
    with pytest.raises(RegistryError, match="too much") as error:
        client.labels
    assert relay.seen == 6 and error.value.status == 503 and error.value.code == "overloaded"
    client, _ = relayed(*[busy.replace(b'"overloaded"', b'"busy"      ')] * 20)
    with pytest.raises(Busy):
        client.labels


@pytest.mark.parametrize("content, tries", [
    (b'{"code": "overloaded", "detail": "too much"}', 2), (b'{"code": "busy", "detail": "locked"}', 1), (b"<html>", 1)])
def test_what_may_have_begun_is_not_repeated(relayed, content, tries):
    """A store that was locked in the midst of it says 503, and a proxy of a server that was killed at it."""
    busy = b"HTTP/1.1 503 No\r\nRetry-After: 0\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    client, relay = relayed(busy)
    if tries == 1:
        with pytest.raises(UserError):
            client.keys.add("a key", ["read"])
    else:
        assert client.keys.add("a key", ["read"])["id"] == 1
    assert relay.seen == tries


@pytest.mark.parametrize("answer", [
    b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 404 No\r\n\r\n<html>",
    b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n", b"\0" * 100_000,
    b"HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\n[]", b"HTTP/1.1 400 X\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000 + b"\r\n", b"HTTP/1.1 409 X\r\nContent-Length: 34\r\n\r\n"
    b'{"code": "refused", "detail": "a"}'])
def test_what_is_no_registry_is_told_in_one_line(relayed, answer):
    client, _ = relayed(*[answer] * 20)
    with pytest.raises(UserError) as error:
        client.labels
    assert client._server.url in str(error.value) and "\n" not in str(error.value)


def test_an_error_of_another_program_is_one_line_whatever_it_holds(relayed):
    content = b'{"code": "down", "detail": "no upstream", "message": "x", "self": 1, "details": 2}'
    client, _ = relayed(b"HTTP/1.1 502 No\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
    with pytest.raises(RegistryError, match="no upstream") as error:
        client.labels
    assert error.value.status == 502 and error.value.details["message"] == "x"


def test_silence_ends_after_the_timeout(relayed):
    client, relay = relayed("silence", timeout=.3)
    began = time.monotonic()
    with pytest.raises(UserError, match="no answer within 0.3 s"):
        client.labels
    assert time.monotonic() - began < 3 and relay.seen == 1


def test_what_looks_at_all_of_a_collection_may_take_longer(relayed, tmp_path):
    client, relay = relayed("ok", "late", "late", "ok", "silence", timeout=.3)
    client.add(document(0), "x")
    assert client.export(tmp_path / "all.zip")["references"] == 1
    assert client.import_(tmp_path / "all.zip")["event"] is None
    assert client.labels == ["x"]
    with pytest.raises(UserError, match="no answer within 0.3 s"):
        client.labels
    assert relay.seen == 5


def test_an_early_answer_is_read_though_the_body_could_not_be_sent(store):
    """A server that looks at the headers alone answers, and closes, while the client still sends."""
    with Store(store) as opened, Keys(opened) as keys:
        keys.add("x")
    with serving(store) as url, Client(url) as client, pytest.raises(RegistryError) as error:
        client.add(b"x" * (24 << 20), "x")
    assert error.value.status == 401


def test_a_server_that_was_started_anew_is_found_again(store):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(UserError, match="cannot be reached.*is docmetric serve running"):
            client.labels
        with serving(store, port=port) as url, Client(url) as first:
            first.add(document(0), "x")
            threads = [threading.Thread(target=lambda: first.labels) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            idle = first._server._idle
            assert idle
            for connection in idle:
                connection.sock.shutdown(socket.SHUT_RDWR)  # as a server that ends does
            assert first.labels == ["x"]


def test_idle_connections_are_bounded(client):
    """What is sent once takes a connection of its own, and leaves it behind."""
    for number in range(40):
        client.keys.list() if number % 2 else client.unknowns.list()
        with pytest.raises(NotFound):
            client.unknowns.remove(7)
    assert 1 < len(client._server._idle) < 20


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://host", "http://", "http://a:b", "http://host:99999", "file:///x",
                                 "http://user:secret@host", "http://host?x", "http://[::1", "http://host/\n"])
def test_an_address_that_is_none(url):
    with pytest.raises(UserError) as error, Client(url) as client:
        client.labels
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_a_key_with_a_line_break_is_not_sent():
    with pytest.raises(UserError, match="API key"):
        Client("http://localhost", "dm_1_x\r\nX-Evil: y")


@pytest.mark.parametrize("key", ["", "a b", "a\nb", "é", "x" * 201])
def test_an_idempotency_key_that_cannot_be_sent(client, key):
    with pytest.raises(Invalid, match="idempotency key"):
        client.undo(key=key)


def test_text_that_cannot_be_sent(client):
    for call in (client.type, client.remove, lambda text: client.add(document(1), text)):
        with pytest.raises(Invalid, match="UTF-8"):
            call("\udcff")
    with pytest.raises(UserError):
        client.collection("\udcff").labels


def test_a_closed_client_says_so(client):
    client.close()
    with pytest.raises(UserError, match="was closed"):
        client.labels


def test_a_file_that_is_not_there_is_not_sent(client, tmp_path):
    for act in (lambda: client.import_(tmp_path / "none.zip"), lambda: client.upgrade.add(tmp_path)):
        with pytest.raises(UserError, match="no such file"):
            act()


def test_an_export_is_complete_or_absent(relayed, tmp_path):
    client, _ = relayed("ok", "cut", "cut")
    client.add(document(0), "x")
    assert client.export(tmp_path / "all.zip")["references"] == 1
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".zip"] == ["all.zip"]
    client, _ = relayed(*["cut"] * 20)
    with pytest.raises(UserError):
        client.export(tmp_path / "second.zip")
    assert not list(tmp_path.glob("*second*"))
