"""API keys: made, checked, revoked; and every route of the API with and without the right one."""
import socket
import time

import pytest

from inference.registry import Store
from inference.registry.errors import Conflict, Invalid, NotFound
from inference.registry.keys import SCOPES, Keys
from tests.helpers.serving import document, make_store, request, serving


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def keys(tmp_path):
    with Store(make_store(tmp_path)) as store, Keys(store) as keys:
        yield keys


def test_a_key_opens_what_it_was_made_for(keys):
    assert not keys.exist()
    made = keys.add("scanner", ["read", "classify"], ["default"])
    assert keys.exist()
    key = keys.check(made["key"])
    assert key.name == "scanner" and key.scopes == {"classify", "read"} and key.collections == {"default"}
    assert made["key"].startswith(f"dm_{made['id']}_") and len(made["key"].split("_")[2]) == 64  # 256 bits


def test_the_store_does_not_hold_the_secret(keys):
    secret = keys.add("scanner")["key"].split("_")[2]
    files = [path for path in keys._store.path.rglob("*") if path.is_file()]
    assert {"registry.sqlite", "registry.sqlite-wal"} <= {path.name for path in files}
    for path in files:
        assert secret.encode() not in path.read_bytes() and bytes.fromhex(secret) not in path.read_bytes()
    assert all("key" not in one for one in keys.list())


@pytest.mark.parametrize("change", [
    lambda text: "", lambda text: "x", lambda text: text[:-1], lambda text: text + "0", lambda text: text.upper(),
    lambda text: text.replace("dm_1_", "dm_2_"), lambda text: text.replace("dm_1_", "dm_01x_"), lambda text: "dm_1_",
    lambda text: text.replace("dm_1_", "dm_" + "9" * 90 + "_"), lambda text: text.replace("dm_1_", "dm_²_"),
    lambda text: text.replace("dm_1_", "dm_-1_"), lambda text: "\udcff" + text, lambda text: text[:-1] + "é",
    lambda text: text[:-1] + "\udcff", lambda text: text[:-1] + ("0" if text[-1] != "0" else "1"), lambda text: text * 100])
def test_any_other_text_is_no_key(keys, change):
    text = keys.add("scanner")["key"]
    assert keys.check(text) and keys.check(change(text)) is None


def test_a_revoked_or_expired_key_opens_nothing(keys):
    first, second = keys.add("first"), keys.add("second", expires=time.time() + .3)
    assert keys.check(second["key"])
    assert keys.revoke(first["id"])["revoked"] is not None
    assert keys.check(first["key"]) is None
    time.sleep(.35)
    assert keys.check(second["key"]) is None
    assert keys.exist()  # so the server stays closed


def test_a_revocation_elsewhere_counts_at_once(keys):
    made = keys.add("scanner")
    assert keys.check(made["key"])
    with Store(keys._store.path) as other, Keys(other) as theirs:
        theirs.revoke(made["id"])
        assert keys.check(made["key"]) is None
        again = theirs.add("scanner")
    assert keys.check(again["key"])


def test_a_check_takes_microseconds(keys):
    text, began = keys.add("scanner")["key"], time.perf_counter()
    for _ in range(1000):
        keys.check(text)
    assert time.perf_counter() - began < 0.5  # measured: 5 us each; 500 would cost more than the rest of a request


@pytest.mark.parametrize("arguments, error", [
    (dict(name=""), Invalid), (dict(name=" x"), Invalid), (dict(name="a\nb"), Invalid), (dict(name="x" * 101), Invalid),
    (dict(name=7), Invalid), (dict(name="x", scopes=[]), Invalid), (dict(name="x", scopes=["all"]), Invalid),
    (dict(name="x", collections=[]), Invalid), (dict(name="x", collections=["none"]), NotFound),
    (dict(name="x", expires=1.0), Invalid), (dict(name="x", expires=float("nan")), Invalid),
    (dict(name="x", expires=float("inf")), Invalid), (dict(name="used"), Conflict)])
def test_a_key_that_makes_no_sense_is_refused(keys, arguments, error):
    keys.add("used")
    with pytest.raises(error):
        keys.add(**arguments)
    assert len(keys.list()) == 1


def test_a_name_is_free_again_after_its_key_was_revoked(keys):
    keys.revoke(keys.add("scanner")["id"])
    assert keys.add("scanner")["id"] == 2
    with pytest.raises(NotFound):
        keys.revoke(99)


# ---- the matrix ----

@pytest.fixture(scope="module")
def matrix(store):
    """(address, OpenAPI document, {what a key is: its text})"""
    with Store(store) as opened, Keys(opened) as keys:
        opened.create("other", model=store.parent / "model.onnx", find="never")
        made = {f"only {scope}": keys.add(f"only {scope}", [scope])["key"] for scope in SCOPES}
        made |= {f"not {scope}": keys.add(f"not {scope}", set(SCOPES) - {scope})["key"] for scope in SCOPES}
        made["other"] = keys.add("of another collection", SCOPES, ["other"])["key"]
        revoked, expired = keys.add("revoked"), keys.add("expired", expires=time.time() + .2)
        keys.revoke(revoked["id"])
        made |= {"revoked": revoked["key"], "expired": expired["key"]}
        time.sleep(.25)
    with serving(store) as url:
        document = request(url, "GET", "/openapi.json").json
        yield url, document, made


def operations(document):
    return [(method.upper(), path, operation) for path, methods in document["paths"].items()
            for method, operation in methods.items()]


def test_every_route_needs_its_key(matrix):
    url, document, keys = matrix
    checked = 0
    for method, path, operation in operations(document):
        scope = operation["x-scope"]
        at = path.replace("{collection}", "default").replace("{id}", "999999").replace("{hash}", "0" * 64)
        whole_store = "{collection}" not in path
        cases = {"no key": (None, 401), "wrong key": ("dm_1_" + "0" * 64, 401), "no form of key": ("hello", 401),
                 "revoked key": (keys["revoked"], 401), "expired key": (keys["expired"], 401)}
        if scope:
            cases["narrow key"] = keys[f"not {scope}"], 403
            cases["right key"] = keys[f"only {scope}"], None
        if scope == "admin" or not whole_store:
            cases["other collection"] = keys["other"], 403
        for case, (key, status) in cases.items():
            answer = request(url, method, at, {} if method != "GET" else None, key=key)
            where = f"{method} {path} with {case}: {answer.status} {answer.content[:200]}"
            if status is None:
                assert answer.status not in (401, 403), where
                continue
            assert answer.status == status, where
            assert answer.headers["Content-Type"] == "application/problem+json", where
            assert answer.headers["WWW-Authenticate"].startswith("Bearer "), where
            assert answer.json["status"] == status and answer.json["code"], where
            checked += 1
    assert checked > 200


def test_the_list_of_collections_holds_those_of_the_key_alone(matrix):
    url, _, keys = matrix
    names = lambda key: [one["name"] for one in request(url, "GET", "/v1/collections", key=key).json["items"]]
    assert names(keys["only read"]) == ["default", "other"]
    assert names(keys["other"]) == ["other"]


def test_a_key_for_one_collection_learns_nothing_of_others(matrix):
    url, _, keys = matrix
    answers = [request(url, "GET", f"/v1/collections/{name}", key=keys["other"]) for name in ("default", "is-not-there")]
    assert [answer.status for answer in answers] == [403, 403] and answers[0].content == answers[1].content


def test_figures_of_all_collections_need_a_key_for_all(matrix):
    url, _, keys = matrix
    assert request(url, "GET", "/metrics", key=keys["only read"]).status == 200
    assert request(url, "GET", "/metrics", key=keys["other"]).status == 403
    assert request(url, "GET", "/metrics", key=keys["not read"]).status == 403


def test_what_only_an_admin_may_do_only_an_admin_may_undo(matrix):
    url, _, keys = matrix
    here = "/v1/collections/other"
    for method, path, body in (("PUT", "/threshold", {"threshold": .9}), ("PATCH", "", {"margin": .5})):
        assert request(url, method, here + path, body, key=keys["only admin"]).status == 200
        event = request(url, "GET", here + "/events", key=keys["only read"], newest="true").json["items"][0]["event"]
        for wish in ({}, {"event": event}):
            answer = request(url, "POST", here + "/undo", wish, key=keys["not admin"])
            assert answer.status == 403 and answer.json["scope"] == "admin", answer.content
        undone = request(url, "POST", here + "/undo", {"event": event}, key=keys["other"])
        assert undone.json["undone"] == event
        again = request(url, "POST", here + "/undo", {"event": undone.json["event"]}, key=keys["not admin"])
        assert again.status == 403
    added = request(url, "POST", here + "/references", document(3), key=keys["only write"], label="x", force="true")
    assert added.status == 201
    assert request(url, "POST", here + "/undo", {}, key=keys["only write"]).json["undone"] == added.json["event"]


def test_nothing_of_the_body_is_read_without_the_right_key(matrix):
    """The answer comes though the body never does."""
    url, _, keys = matrix
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /v1/collections/default/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\nabc")
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


def test_a_revocation_ends_a_running_session(matrix, store):
    url, _, _ = matrix
    with Store(store) as opened, Keys(opened) as keys:
        made = keys.add("short", ["read"])
        assert request(url, "GET", "/v1/me", key=made["key"]).json == {
            "name": "short", "scopes": ["read"], "collections": None, "open": False}
        keys.revoke(made["id"])
        assert request(url, "GET", "/v1/me", key=made["key"]).status == 401


def test_keys_over_http(matrix):
    url, _, keys = matrix
    admin = keys["only admin"]
    made = request(url, "POST", "/v1/keys", {"name": "by http", "scopes": ["classify"]}, key=admin)
    assert made.status == 201 and made.headers["Location"] == f"/v1/keys/{made.json['id']}"
    key, number = made.json["key"], made.json["id"]
    image = document(1)
    assert request(url, "POST", "/v1/collections/default/classify", image, key=key).status == 200
    listed = request(url, "GET", "/v1/keys", key=admin)
    assert "by http" in [one["name"] for one in listed.json["items"]]
    assert key not in listed.content.decode() and "hash" not in listed.content.decode()
    assert request(url, "DELETE", f"/v1/keys/{number}", key=admin).json["revoked"] is not None
    assert request(url, "POST", "/v1/collections/default/classify", image, key=key).status == 401
    assert request(url, "DELETE", "/v1/keys/9999", key=admin).status == 404
    assert request(url, "POST", "/v1/keys", {"name": "x", "scopes": ["root"]}, key=admin).status == 422


def test_no_key_gets_into_a_log(matrix, caplog, capfd):
    url, _, keys = matrix
    caplog.set_level(0)
    for key in (keys["only read"], keys["revoked"], "dm_1_" + "a" * 64):
        request(url, "GET", "/v1/collections/default", key=key)
        request(url, "GET", "/v1/collections/none", key=key)
    said = caplog.text + "".join(capfd.readouterr())
    assert all(key.split("_")[2] not in said for key in (keys["only read"], keys["revoked"], "dm_1_" + "a" * 64))


# ---- a server without keys ----

@pytest.fixture(scope="module")
def free(tmp_path_factory):
    with serving(make_store(tmp_path_factory.mktemp("free"))) as url:
        yield url


def test_without_any_key_this_machine_is_let_in(free):
    assert request(free, "GET", "/v1/me").json == {"name": None, "scopes": list(SCOPES), "collections": None, "open": True}
    port = free.rsplit(":", 1)[1]
    for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", "[::1]:80", "127.0.0.2", "x.localhost", "LOCALHOST"):
        assert request(free, "GET", "/v1/me", headers={"Host": host}).status == 200, host


@pytest.mark.parametrize("host", ["example.com", "localhost.example.com", "127.0.0.1.example.com", "10.0.0.1", "", "[::2]",
                                  "localhost@example.com", "127.0.0.1:80@x", "0x7f.1", "localhost/x", "169.254.169.254"])
def test_a_foreign_name_that_leads_here_is_refused(free, host):
    """DNS rebinding: a page of example.com lets its name lead to 127.0.0.1."""
    for method, path in (("GET", "/v1/me"), ("POST", "/v1/collections/default/undo"), ("GET", "/metrics")):
        answer = request(free, method, path, headers={"Host": host})
        assert answer.status == 421 and answer.json["code"] == "foreign-host", answer.content
        assert "--host-name NAME" in answer.json["detail"]
    assert [request(free, "GET", path, headers={"Host": host}).status for path in ("/healthz", "/readyz")] == [200, 200]


@pytest.mark.parametrize("hosts", ["", "Host: localhost\r\nHost: localhost\r\n", "Host: example.com\r\nHost: localhost\r\n"])
def test_exactly_one_name_is_called(free, hosts):
    host, port = free.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"GET /v1/me HTTP/1.1\r\n{hosts}\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 421 ")


@pytest.mark.parametrize("settings, known, foreign", [
    (dict(host_names=("docs.example.com",)), ["docs.example.com", "Docs.Example.com:8443", "docs.example.com.", "localhost"],
     ["example.com", "x.docs.example.com", "10.0.0.1"]),
    (dict(no_auth=True), ["localhost", "127.0.0.1:80"], ["example.com", "10.0.0.1"]),
    (dict(no_auth=True, host="0.0.0.0", host_names=("fd00::7", "docs.example.com")),
     ["localhost", "192.168.1.5:8080", "[fd00::7]", "docs.example.com"], ["example.com", "docs", "[fd00::7", "10.0.0.1.x"]),
    (dict(no_auth=True, host="Scanner.lan"), ["scanner.lan:8080", "10.0.0.1"], ["lan", "scanner.lan.example.com"])])
def test_the_names_of_an_open_server(tmp_path, settings, known, foreign):
    """An address is no name that leads from a page's own server to this one."""
    with serving(make_store(tmp_path), **settings) as url:
        for hosts, status in ((known, 200), (foreign, 421)):
            for host in hosts:
                assert request(url, "GET", "/v1/me", headers={"Host": host}).status == status, host


def test_who_has_a_key_may_use_any_name(matrix):
    """No page has the key of another one's tab, so there is nothing to gain by a name; and a proxy needs no option."""
    url, _, keys = matrix
    assert request(url, "GET", "/v1/me", key=keys["only read"], headers={"Host": "docs.example.com"}).status == 200


@pytest.mark.parametrize("headers, status", [
    ({"Origin": "https://example.com"}, 403), ({"Origin": "null"}, 403), ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-site"}, 403), ({"Origin": "http://localhost:1", "Host": "localhost:2"}, 403),
    ({"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}, 200), ({"Sec-Fetch-Site": "none"}, 200),
    ({"Origin": "http://localhost:5", "Host": "localhost:5"}, 200), ({}, 200),
    ({"Origin": "https://localhost", "Host": "localhost"}, 200), ({"Origin": "https://localhost.example.com"}, 403),
    ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403)])
def test_another_web_page_changes_nothing(free, headers, status):
    """Cross-site request forgery: a body of type text/plain, or a form, needs no leave of the browser."""
    answer = request(free, "PUT", "/v1/collections/default/threshold", b'{"threshold": 0.5}',
                     headers={"Content-Type": "application/json"} | headers)
    assert answer.status == status, answer.content
    form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n' + document(0) + b"\r\n--b--\r\n"
    answer = request(free, "POST", "/v1/collections/default/classify", form,
                     headers={"Content-Type": "multipart/form-data; boundary=b"} | headers)
    assert answer.status == status, answer.content


@pytest.mark.parametrize("headers, status", [
    ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403), ({"Origin": "https://example.com"}, 403),
    ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403), ({"Sec-Fetch-Site": "same-origin"}, 200),
    ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200)])
def test_another_web_page_makes_no_work(free, headers, status):
    """It could not read the answer; a link that somebody follows is another thing."""
    assert request(free, "GET", "/v1/collections/default/export", headers=headers).status == status


def test_a_proxy_is_not_this_machine(free):
    for name in ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"):
        assert request(free, "GET", "/v1/me", headers={name: "10.0.0.1"}).status == 401


def test_a_key_that_is_shown_to_an_open_server_must_be_right(free):
    assert request(free, "GET", "/v1/me", key="dm_1_" + "0" * 64).status == 401
    assert request(free, "GET", "/v1/me", headers={"Authorization": "Basic YTpi"}).status == 401


def test_the_first_key_closes_the_server(tmp_path):
    store = make_store(tmp_path)
    with serving(store) as url:
        assert request(url, "GET", "/v1/me").status == 200
        with Store(store) as opened, Keys(opened) as keys:
            made = keys.add("first")
            assert request(url, "GET", "/v1/me").status == 401
            keys.revoke(made["id"])
        assert request(url, "GET", "/v1/me").status == 401  # it does not open again


def test_no_auth_opens_to_all_and_still_not_to_other_pages(tmp_path):
    name = "docmetric.example.com"
    with serving(make_store(tmp_path), no_auth=True, host="0.0.0.0", host_names=(name,)) as url:
        proxied = {"Host": name, "Via": "1.1 proxy"}
        assert request(url, "GET", "/v1/me", headers=proxied).status == 200
        at = "/v1/collections/default/threshold"
        assert request(url, "PUT", at, {"threshold": .5}, headers=proxied | {"Origin": f"https://{name}"}).status == 200
        for origin in ("https://example.com", f"https://{name}:444", f"ftp://{name}"):
            assert request(url, "PUT", at, {"threshold": .5}, headers=proxied | {"Origin": origin}).status == 403, origin


def test_beyond_this_machine_a_key_is_needed(tmp_path):
    with serving(make_store(tmp_path), host="0.0.0.0") as url:
        assert request(url, "GET", "/v1/me").status == 401
