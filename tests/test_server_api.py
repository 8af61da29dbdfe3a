"""The HTTP API: what each route does, what it says to bad requests, and how its answers look. Over real sockets."""
import io
import json
import os
import re
import socket
import struct
import threading
import time
import zipfile
import zlib

import cv2
import numpy as np
import pytest

from inference.registry import Registry
from inference.server import app as application
from inference.server.problems import of_error, scrub
from tests.helpers.models import blocks, write_model
from tests.helpers.servers import until
from tests.helpers.serving import document, make_store, request, serving

HERE = "/v1/collections/default"
CONTRACT = {  # the routes that the page, the client and programs of others rely on
    "/v1/collections": "GET POST", "...": "GET PATCH",
    ".../references": "GET POST", ".../references/{id}": "GET PATCH DELETE",
    ".../references/{id}/image": "GET", ".../inspect": "POST", ".../types": "GET", ".../types/{id}": "GET PATCH DELETE",
    ".../types/{id}/merge": "POST", ".../classify": "POST", ".../search": "POST", ".../unknowns": "GET",
    ".../unknowns/{id}/image": "GET", ".../unknowns/{id}": "DELETE", ".../unknowns/clusters": "GET",
    ".../unknowns/resolve": "POST", ".../decisions": "GET", ".../feedback": "POST", ".../threshold": "GET PUT",
    ".../threshold/suggestion": "GET", ".../threshold/replay": "GET", ".../events": "GET", ".../undo": "POST",
    ".../models": "GET POST", ".../models/{hash}/build": "POST", ".../models/{hash}/report": "GET",
    ".../models/{hash}/activate": "POST", ".../models/{hash}": "DELETE", ".../export": "GET", ".../import": "POST",
    "/v1/keys": "GET POST", "/v1/keys/{id}": "DELETE", "/v1/me": "GET"}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server with nothing registered."""
    with serving(make_store(tmp_path_factory.mktemp("empty"))) as url:
        yield url


@pytest.fixture
def new(tmp_path):
    """A server with three types of one reference each."""
    store = make_store(tmp_path)
    with serving(store, keep_unknown=3600.0) as url:
        for seed, label in enumerate(("passport", "invoice", "永久居留證")):
            assert request(url, "POST", HERE + "/references", document(seed), label=label, force="true").status == 201
        yield url


def form(*images, **fields):
    """(body, headers) of multipart/form-data"""
    head = '--b\r\nContent-Disposition: form-data; name="%s"'
    parts = [f"{head % name}\r\n\r\n{value}\r\n".encode() for name, value in fields.items()]
    parts += [f'{head % "image"}; filename="x"\r\n\r\n'.encode() + image + b"\r\n" for image in images]
    return b"".join(parts) + b"--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}


def is_problem(answer, status, code=None):
    assert answer.status == status, (answer.status, answer.content[:300])
    assert answer.headers["Content-Type"] == "application/problem+json"
    about = answer.json
    assert about["status"] == status and about["title"] and about["detail"] and about["type"] == "about:blank"
    assert code is None or about["code"] == code, about
    return about


# ---- references and types ----

def test_a_registered_picture_is_recognized_and_another_is_not(new):
    result = request(new, "POST", HERE + "/classify", document(0), top_k=2).json["results"]
    assert [one["label"] for one in result] == ["passport"] and result[0]["reason"] == "accepted"
    assert len(result[0]["top_k"]) == 2 and result[0]["decision"] > 0
    result = request(new, "POST", HERE + "/classify", document(77)).json["results"][0]
    assert result["label"] is None and result["reason"] == "below-threshold"


def test_a_reference_has_an_address_and_a_picture(new):
    added = request(new, "POST", HERE + "/references", document(9), label="card", force="true", source="desk 4")
    assert added.status == 201 and added.headers["Location"] == f"{HERE}/references/{added.json['reference']}"
    at = added.headers["Location"]
    reference = request(new, "GET", at).json
    assert (reference["label"], reference["source"], reference["who"]) == ("card", "desk 4", None)
    picture = request(new, "GET", at + "/image")
    assert picture.content == document(9) and picture.headers["Content-Type"] == "image/png"
    assert request(new, "GET", at + "/image", headers={"If-None-Match": picture.headers["ETag"]}).status == 304
    small = request(new, "GET", at + "/image", size=64)
    assert small.headers["Content-Type"] == "image/jpeg" and small.headers["ETag"] != picture.headers["ETag"]
    assert max(cv2.imdecode(np.frombuffer(small.content, np.uint8), 1).shape[:2]) == 64


def test_raw_body_and_form_are_the_same(new):
    quad = [[10, 10], [400, 12], [402, 399], [8, 401]]
    more = dict(force="true", quad=json.dumps(quad), source="s")
    raw = request(new, "POST", HERE + "/references", document(20), label="a", **more)
    body, headers = form(document(21), label="b", **more)
    formed = request(new, "POST", HERE + "/references", body, headers=headers)
    assert raw.status == formed.status == 201
    for answer in (raw, formed):
        assert answer.json["quad"] == quad and answer.json["new_type"]
    # As curl --data-binary sends it.
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    typed = request(new, "POST", HERE + "/classify", document(20), headers=headers)
    assert typed.json["results"][0]["reason"] == "accepted"


def test_the_gate_refuses_and_force_does_not(new):
    about = is_problem(request(new, "POST", HERE + "/references", document(0), label="passport"), 409, "refused")
    finding, = (one for one in about["findings"] if one["code"] == "near-duplicate")
    assert finding["details"]["reference"] == 1 and finding["message"] in about["detail"]
    assert request(new, "POST", HERE + "/references", document(0), label="passport", force="true").status == 201
    about = is_problem(request(new, "POST", HERE + "/references", document(1), label="new"), 409, "refused")
    assert "look-alike" in [one["code"] for one in about["findings"]]


def test_a_known_unknown_rejects_what_is_nearest_to_it(new):
    assert request(new, "POST", HERE + "/references", document(50), kind="unknown", force="true").json["type"] is None
    result = request(new, "POST", HERE + "/classify", document(50)).json["results"][0]
    assert result["label"] is None and result["reason"] == "known-unknown"


def test_inspect_says_what_add_would_and_registers_nothing(new):
    before = request(new, "GET", HERE).json["event"]
    seen = request(new, "POST", HERE + "/inspect", document(1), label="invoice").json
    assert (seen["width"], seen["height"]) == (480, 480) and seen["resolves"] == 0
    assert [one["code"] for one in seen["findings"]] == ["near-duplicate"]
    assert seen["nearest"][0]["label"] == "invoice" and "vectors" not in seen
    assert request(new, "GET", HERE).json["event"] == before


def test_types_are_renamed_merged_removed_and_brought_back(new):
    labels = lambda: [one["label"] for one in request(new, "GET", HERE + "/types").json["items"]]
    assert request(new, "PATCH", HERE + "/types/1", {"label": "pass"}).json["label"] == "pass"
    about = is_problem(request(new, "PATCH", HERE + "/types/1", {"label": "invoice"}), 409, "conflict")
    assert about["type"] == "about:blank" and labels() == ["pass", "invoice", "永久居留證"]
    merged = request(new, "POST", HERE + "/types/1/merge", {"into": 2}).json
    assert merged["label"] == "invoice" and labels() == ["invoice", "永久居留證"]
    assert request(new, "GET", HERE + "/references", type=2).json["items"][0]["reference"] == 1
    assert request(new, "POST", HERE + "/undo", {}).json["undone"] == merged["event"]
    assert labels() == ["pass", "invoice", "永久居留證"]
    assert request(new, "DELETE", HERE + "/types/3").json["label"] == "永久居留證"
    assert request(new, "POST", HERE + "/undo").status == 200  # a body is not needed
    assert request(new, "GET", HERE + "/types/3").json["label"] == "永久居留證"


def test_types_by_their_labels(new):
    assert request(new, "GET", HERE + "/types", label="永久居留證").json["items"][0]["type"] == 3
    is_problem(request(new, "GET", HERE + "/types", label="none"), 404, "not-found")
    assert request(new, "PATCH", HERE + "/types", {"label": "x/y ? #"}, label="永久居留證").json["type"] == 3
    assert request(new, "POST", HERE + "/types/merge", {"source": "x/y ? #", "into": 1}).json["label"] == "passport"
    assert request(new, "DELETE", HERE + "/types", label="passport").json["references"] == [1, 3]
    is_problem(request(new, "DELETE", HERE + "/types"), 422)  # never all of them


def test_one_reference_is_moved_and_removed(new):
    assert request(new, "PATCH", HERE + "/references/1", {"label": "other"}).json["label"] == "other"
    assert request(new, "DELETE", HERE + "/references/1").json["references"] == [1]
    is_problem(request(new, "DELETE", HERE + "/references/1"), 404)
    assert request(new, "GET", HERE + "/references", removed="true").json["items"][0]["reference"] == 1
    assert request(new, "GET", HERE + "/references", label="invoice").json["items"][0]["reference"] == 2


def test_the_same_key_does_a_change_once(new):
    def add(image, key):
        headers = {"Idempotency-Key": key}
        return request(new, "POST", HERE + "/references", image, label="once", force="true", headers=headers)
    first, again = add(document(30), "k1"), add(document(30), "k1")
    assert first.status == again.status == 201 and first.json == again.json
    is_problem(add(document(31), "k1"), 409, "conflict")
    assert len(request(new, "GET", HERE + "/references", label="once").json["items"]) == 1
    headers = {"Idempotency-Key": "k2"}
    undone = [request(new, "POST", HERE + "/undo", {}, headers=headers).json for _ in range(3)]
    assert undone[0] == undone[1] == undone[2]
    is_problem(request(new, "POST", HERE + "/undo", {}, headers={"Idempotency-Key": "x" * 201}), 422)


@pytest.mark.parametrize("what, identity", [("types", "type"), ("references", "reference"), ("events", "event")])
def test_pages_follow_each_other(new, what, identity):
    everything = request(new, "GET", f"{HERE}/{what}").json
    assert len(everything["items"]) == 3 and everything["next"] is None
    found, after = [], 0
    while after is not None:
        page = request(new, "GET", f"{HERE}/{what}", limit=1, after=after).json
        assert len(page["items"]) == 1
        found, after = found + page["items"], page["next"]
    assert found == everything["items"]
    assert request(new, "GET", f"{HERE}/{what}", after=3).json == {"items": [], "next": None}


def test_pages_go_on_behind_what_was_removed(new):
    """Nothing is told twice, and nothing that is still there is missed."""
    for what, identity in (("types", "type"), ("references", "reference")):
        first = request(new, "GET", f"{HERE}/{what}", limit=1).json
        assert [one[identity] for one in first["items"]] == [1] and first["next"] == 1
        for number in (1, 2):
            assert request(new, "DELETE", f"{HERE}/{what}/{number}").status == 200
        rest = request(new, "GET", f"{HERE}/{what}", limit=1, after=first["next"]).json
        assert [one[identity] for one in rest["items"]] == [3] and rest["next"] is None
        for _ in range(2):
            assert request(new, "POST", HERE + "/undo").status == 200


def test_the_newest_events_page_backwards(new):
    first = request(new, "GET", HERE + "/events", newest="true", limit=2).json
    assert [one["event"] for one in first["items"]] == [3, 2]
    second = request(new, "GET", HERE + "/events", newest="true", after=first["next"]).json
    assert [one["event"] for one in second["items"]] == [1] and second["next"] is None


# ---- classify ----

def test_several_images_in_a_form(new):
    body, headers = form(document(0), b"nothing", document(2), b"", top_k=1)
    results = request(new, "POST", HERE + "/classify", body, headers=headers).json["results"]
    assert [one["label"] for one in results] == ["passport", None, "永久居留證", None]
    assert "not an image" in results[1]["error"] and results[1]["decision"] is None and results[3]["error"] == "empty file"
    assert results[1]["reason"] == "unusable" and results[1].keys() == results[0].keys()


@pytest.mark.parametrize("path", ["classify", "search", "inspect", "references"])
def test_what_is_no_image_is_415_and_a_broken_one_422(new, path):
    query = {"label": "x"} if path == "references" else {}
    is_problem(request(new, "POST", f"{HERE}/{path}", b"GIF89a not at all", **query), 415, "not-an-image")
    is_problem(request(new, "POST", f"{HERE}/{path}", b"", **query), 415, "not-an-image")
    is_problem(request(new, "POST", f"{HERE}/{path}", document(0)[:500], **query), 422, "unusable-image")


def test_a_decompression_bomb_is_refused(new):
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    bomb = (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(bytes(10 ** 6))) + chunk(b"IEND", b""))
    is_problem(request(new, "POST", HERE + "/classify", bomb), 422, "unusable-image")


@pytest.mark.parametrize("quad", ["", "x", "[]", "[[0,0],[1,0],[1,1]]", "[" * 900, "null", *(
    f"[[0,0],[1,0],[1,1],{last}]" for last in ("[0]", '["0",1]', "[0,NaN]", "[0,1e999]", "[0,true]", "[0,1],[2,2]",
                                               "[1e7,0]"))])
def test_a_quad_that_is_none(url, quad):
    is_problem(request(url, "POST", HERE + "/classify", document(0), quad=quad), 422, "invalid-value")


def test_corners_that_enclose_nothing(new):
    for quad in ([[5, 5]] * 4, [[0, 0], [10, 10], [10, 0], [0, 10]]):
        assert request(new, "POST", HERE + "/classify", document(0), quad=json.dumps(quad)).status in (400, 422)


def test_a_quad_is_of_one_image(new):
    body, headers = form(document(0), document(1), quad="[[0,0],[9,0],[9,9],[0,9]]")
    is_problem(request(new, "POST", HERE + "/classify", body, headers=headers), 422, "invalid-value")


@pytest.mark.parametrize("body, boundary", [
    (b"", "b"), (b"--b--\r\n", "b"), (b"nothing", "b"), (b"--b\r\n\r\n", "b"),
    (b"--b\r\nContent-Disposition: form-data\r\n\r\nx", "b"),
    (form(b"x", b"y")[0].replace(b'name="image"', b'name="other"'), "b"), (form(document(0))[0][:-200], "c"),
    (b"--b\r\n" + b"X-A: b\r\n" * 5000 + b"\r\n\r\n--b--", "b"), (form(*[b"x"] * 65)[0], "b"),
    (form(b"x", **{f"field{i}": 1 for i in range(17)})[0], "b"), (form(b"x", source="y" * 70_000)[0], "b")])
def test_malformed_forms(url, body, boundary):
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    is_problem(request(url, "POST", HERE + "/classify", body, headers=headers), 400, "invalid-form")


def test_a_form_without_a_boundary(url):
    is_problem(request(url, "POST", HERE + "/classify", b"--b--", headers={"Content-Type": "multipart/form-data"}), 400)


def test_search_names_references(new):
    found = request(new, "POST", HERE + "/search", document(2), k=2).json["neighbors"]
    assert len(found) == 2 and found[0]["label"] == "永久居留證" and found[0]["score"] > found[1]["score"]


# ---- decisions, unknowns, thresholds ----

def test_decisions_and_feedback(new):
    decision = request(new, "POST", HERE + "/classify", document(0)).json["results"][0]["decision"]
    said = request(new, "POST", HERE + "/feedback", {"decision": decision, "correct": False, "label": "invoice"}).json
    assert said["correct"] is False and said["right"] == "invoice"
    listed = request(new, "GET", HERE + "/decisions").json
    assert [one["decision"] for one in listed["items"]] == [decision] and listed["next"] is None
    is_problem(request(new, "POST", HERE + "/feedback", {"decision": 1, "correct": True}), 404)
    counts = request(new, "GET", HERE + "/threshold/replay", threshold=1).json
    assert counts["decisions"] == 1 and counts["labeled"] == 1


def test_a_decision_remembers_the_second_type_whatever_was_asked_for(new):
    """Without it nobody could tell what another threshold would have made of it."""
    images, headers = form(document(0), document(1))
    for body, more in ((document(0), {}), (images, headers)):
        for result in request(new, "POST", HERE + "/classify", body, headers=more, top_k=1).json["results"]:
            assert len(result["top_k"]) == 1
    listed = request(new, "GET", HERE + "/decisions").json["items"]
    assert [len(one["top"]) for one in listed] == [2, 2, 2]
    request(new, "PUT", HERE + "/threshold", {"threshold": 1})
    request(new, "POST", HERE + "/classify", document(9))
    assert request(new, "GET", HERE + "/threshold/replay", threshold=0).json["unclear"] == 0


def test_unknowns_whose_time_is_over_are_deleted_though_nobody_asks(tmp_path):
    store = make_store(tmp_path)
    with Registry.open(store) as registry:
        registry.traffic.keep_unknown = .01
        registry.add(document(0), "passport", force=True)
        registry.traffic.record(registry.classify([document(5)])[0], registry.look(document(5)), document(5))
        registry.traffic.flush()
    kept = lambda: [path for path in (store / "unknown").rglob("*") if path.is_file()]
    assert kept()
    with serving(store):
        assert until(lambda: not kept())


def test_unknowns_are_named_and_gone(new):
    for number in range(3):
        image = cv2.imencode(".png", np.clip(blocks(88, 480).astype(int) + number, 0, 255).astype(np.uint8))[1].tobytes()
        assert request(new, "POST", HERE + "/classify", image).json["results"][0]["label"] is None
    listed = request(new, "GET", HERE + "/unknowns", limit=2).json
    assert len(listed["items"]) == 2 and listed["next"] == listed["items"][1]["id"]
    cluster, = request(new, "GET", HERE + "/unknowns/clusters").json["clusters"]
    assert cluster["size"] == 3
    picture = request(new, "GET", f"{HERE}/unknowns/{cluster['cover']}/image")
    assert picture.headers["Content-Type"] == "image/png"
    would = request(new, "POST", HERE + "/inspect", picture.content).json
    assert would["resolves"] == 3
    assert request(new, "DELETE", f"{HERE}/unknowns/{cluster['ids'][0]}").status == 204
    is_problem(request(new, "DELETE", f"{HERE}/unknowns/{cluster['ids'][0]}"), 404)
    body = {"ids": cluster["ids"], "label": "permit", "force": True}
    assert request(new, "POST", HERE + "/unknowns/resolve", body | {"dry_run": True}).json["references"] == []
    done = request(new, "POST", HERE + "/unknowns/resolve", body).json
    assert len(done["references"]) == 1 and len(done["resolved"]) == 2
    assert request(new, "GET", HERE + "/unknowns").json["items"] == []
    is_problem(request(new, "POST", HERE + "/unknowns/resolve", body), 404)


def test_nothing_of_a_picture_is_kept_unless_asked(tmp_path):
    store = make_store(tmp_path)
    with serving(store) as url:
        request(url, "POST", HERE + "/references", document(0), label="passport", force="true")
        request(url, "POST", HERE + "/classify", document(5))
        assert request(url, "GET", HERE + "/unknowns").json["items"] == []
        assert len(request(url, "GET", HERE + "/decisions").json["items"]) == 1
    held = [path for path in store.rglob("*") if path.is_file() and document(5) in path.read_bytes()]
    assert held == []


def test_the_threshold_is_set_and_automatic_again(new):
    at = HERE + "/threshold"
    before = request(new, "GET", at).json
    assert before["automatic"]
    assert request(new, "PUT", at, {"threshold": 0.93}).json["threshold"] == 0.93
    assert request(new, "PUT", at, {"threshold": 0.5, "type": 2}).json["type"] == 2
    assert request(new, "PUT", at, {"threshold": 0.6, "label": "passport"}).json["type"] == 1
    now = request(new, "GET", at).json
    assert now["threshold"] == 0.93 and not now["automatic"]
    assert [(one["label"], one["threshold"]) for one in now["types"]] == [("passport", 0.6), ("invoice", 0.5)]
    for type in (None, 1, 2):
        request(new, "PUT", at, {"type": type})
    assert request(new, "GET", at).json == before
    for wrong in ({"threshold": 2}, {"threshold": .5, "fpr": .1}, {"fpr": 0}, {"treshold": .5}, {"threshold": "high"},
                  {"type": 1, "label": "x"}):
        is_problem(request(new, "PUT", at, wrong), 422, "invalid-value")
    suggested = request(new, "GET", at + "/suggestion").json
    assert suggested["source"] == "model"
    assert request(new, "PUT", at, {"threshold": "suggestion"}).json["threshold"] == suggested["threshold"]
    assert request(new, "GET", at).json | {"warnings": []} == before | {
        "automatic": False, "threshold": suggested["threshold"], "warnings": []}


# ---- collections, models, transfer ----

def test_collections_are_separate(new):
    assert request(new, "POST", "/v1/collections", {"name": "second", "find": "never"}).status == 201
    is_problem(request(new, "POST", "/v1/collections", {"name": "second"}), 409)
    for name in ("", "a/b", "../x", "x" * 65, "ü"):
        is_problem(request(new, "POST", "/v1/collections", {"name": name}), 422)
    assert request(new, "GET", "/v1/collections/second/types").json["items"] == []
    about = request(new, "PATCH", "/v1/collections/second", {"margin": 0.02}).json
    assert about["margin"] == 0.02 and about["orientation"] == "upright"
    is_problem(request(new, "GET", "/v1/collections/none/types"), 404, "not-found")


def test_a_model_is_added_built_used_and_taken_away(new, tmp_path):
    model = write_model(tmp_path / "other.onnx", mean=0.45).read_bytes()
    old = request(new, "GET", HERE + "/models").json["items"][0]["hash"]
    added = request(new, "POST", HERE + "/models", model, name="other.onnx")
    assert added.status == 201
    digest = added.json["hash"]
    is_problem(request(new, "POST", f"{HERE}/models/{digest}/activate", {}), 409)
    while request(new, "POST", f"{HERE}/models/{digest}/build").json["state"] == "building":
        pass
    report = request(new, "GET", f"{HERE}/models/{digest}/report").json
    assert report["hash"] == digest and report["active"] == old
    assert request(new, "POST", f"{HERE}/models/{digest}/activate").json["former"] == old
    assert request(new, "POST", HERE + "/classify", document(0)).json["results"][0]["model"] == digest[:16]
    is_problem(request(new, "DELETE", f"{HERE}/models/{digest}"), 409)
    assert request(new, "DELETE", f"{HERE}/models/{old}").status == 200
    is_problem(request(new, "POST", HERE + "/models", b"no model"), 400)
    is_problem(request(new, "POST", f"{HERE}/models/{'0' * 64}/build"), 404)
    is_problem(request(new, "GET", f"{HERE}/models/..%2F..%2Fx/report"), 404)


def test_what_takes_minutes_does_not_hold_up_what_takes_a_second(new, monkeypatch):
    """Nor /readyz, after which a server is taken out of use."""
    go, began = threading.Event(), threading.Semaphore(0)

    def export(self, path):
        began.release()
        go.wait(60)
        return {}

    monkeypatch.setattr(Registry, "export", export)
    threads = [threading.Thread(target=request, args=(new, "GET", HERE + "/export")) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        assert all(began.acquire(timeout=30) for _ in range(4))
        assert request(new, "GET", "/readyz").status == 200
        assert request(new, "GET", HERE + "/types").status == 200
        assert request(new, "POST", HERE + "/references", document(7), label="x", force="true").status == 201
    finally:
        go.set()
        for thread in threads:
            thread.join()


def test_export_and_import(new):
    archive = request(new, "GET", HERE + "/export")
    assert archive.headers["Content-Type"] == "application/zip" and 'filename="default.zip"' in archive.headers[
        "Content-Disposition"]
    assert zipfile.ZipFile(io.BytesIO(archive.content)).testzip() is None
    request(new, "POST", "/v1/collections", {"name": "copy", "find": "never"})
    assert request(new, "POST", "/v1/collections/copy/import", archive.content).status == 200
    labels = [one["label"] for one in request(new, "GET", "/v1/collections/copy/types").json["items"]]
    assert sorted(labels) == ["invoice", "passport", "永久居留證"]
    is_problem(request(new, "POST", "/v1/collections/copy/import", b"PK no archive"), 400)
    is_problem(request(new, "POST", "/v1/collections/copy/import", archive.content, on_conflict="maybe"), 422)


@pytest.mark.parametrize("given", ["x", "bytes=99999999-", "bytes=0-3", "bytes=0-3,5-9"])
def test_nothing_of_an_export_stays_on_the_disk(new, tmp_path, given):
    archive = request(new, "GET", HERE + "/export", headers={"Range": given})
    assert archive.status == 200 and zipfile.ZipFile(io.BytesIO(archive.content)).testzip() is None
    assert list((tmp_path / "store" / "incoming").iterdir()) == []


def test_what_killed_requests_left_is_swept(new, tmp_path):
    folder = tmp_path / "store" / "incoming"
    folder.mkdir()
    for name, age in (("old", 25 * 3600), ("young", 3600)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (time.time() - age,) * 2)
    assert request(new, "GET", HERE + "/export").status == 200
    assert [path.name for path in folder.iterdir()] == ["young"]


def test_numbers_of_one_collection_are_nothing_in_another(new, tmp_path):
    """References, types, unknowns, decisions, events and models count through the whole store."""
    second = "/v1/collections/second"
    decision = request(new, "POST", HERE + "/classify", document(5)).json["results"][0]["decision"]
    assert request(new, "POST", "/v1/collections", {"name": "second", "find": "never"}).status == 201
    unknown = request(new, "GET", HERE + "/unknowns").json["items"][0]["id"]
    archive = write_model(tmp_path / "other.onnx", mean=0.3).read_bytes()
    other = request(new, "POST", HERE + "/models", archive).json["hash"]
    before = {path: request(new, "GET", HERE + path).json for path in ("/types", "/references", "/unknowns", "/decisions",
                                                                       "/events", "/threshold", "/models")}
    for method, path, body in (
            ("GET", "/references/1", None), ("PATCH", "/references/1", {"label": "x"}), ("DELETE", "/references/1", None),
            ("GET", "/references/1/image", None), ("GET", "/references?type=1", None), ("GET", "/types/1", None),
            ("PATCH", "/types/1", {"label": "x"}), ("DELETE", "/types/1", None), ("POST", "/types/1/merge", {"into": 2}),
            ("POST", "/types/merge", {"source": 1, "into": 2}), ("GET", f"/unknowns/{unknown}/image", None),
            ("DELETE", f"/unknowns/{unknown}", None), ("POST", "/unknowns/resolve", {"ids": [unknown], "label": "x"}),
            ("POST", "/feedback", {"decision": decision, "correct": True}), ("POST", "/undo", {"event": 1}),
            ("PUT", "/threshold", {"threshold": .5, "type": 1}), ("POST", f"/models/{other}/build", None),
            ("POST", f"/models/{other}/activate", None), ("GET", f"/models/{other}/report", None),
            ("DELETE", f"/models/{other}", None)):
        is_problem(request(new, method, second + path, body), 404, "not-found")
    assert {path: request(new, "GET", HERE + path).json for path in before} == before


# ---- errors ----

@pytest.mark.parametrize("method, path, status, code", [
    ("GET", "/v1/collections/default/nothing", 404, "no-such-address"), ("GET", "/v2", 404, "no-such-address"),
    ("DELETE", "/v1/collections", 405, "no-such-method"), ("GET", "/v1/collections/default/types/0", 422, "invalid-value"),
    ("GET", "/v1/collections/default/types/x", 422, "invalid-value"), ("GET", HERE + "/types/99", 404, "not-found"),
    ("GET", HERE + "/references/99/image", 404, "not-found"), ("GET", HERE + "/types?limit=0", 422, "invalid-value"),
    ("GET", HERE + "/types?limit=1001", 422, "invalid-value"), ("GET", HERE + "/types?after=-1", 422, "invalid-value"),
    ("GET", HERE + "/types/99999999999999999999999", 422, "invalid-value"),
    ("POST", HERE + "/undo", 404, "not-found"), ("GET", HERE + "/references?kind=none", 422, "invalid-value"),
    ("GET", "/v1/collections/a%2Fb", 404, "no-such-address"), ("GET", "/v1/collections/default%00", 422, "invalid-value"),
    ("POST", HERE + "/classify?top_k=0", 422, "invalid-value"), ("POST", HERE + "/classify?topk=3", 422, "invalid-value")])
def test_errors_are_problems(url, method, path, status, code):
    about = is_problem(request(url, method, path, b"" if method == "POST" else None), status, code)
    assert len(about["detail"]) < 500


@pytest.mark.parametrize("method, path, allowed", [
    ("OPTIONS", HERE + "/types/1", "DELETE, GET, HEAD, PATCH"), ("PUT", "/v1/collections", "GET, HEAD, POST"),
    ("GET", HERE + "/classify", "POST"), ("POST", "/healthz", "GET, HEAD"), ("TRACE", HERE + "/types/1/merge", "POST")])
def test_a_method_that_an_address_does_not_have(url, method, path, allowed):
    answer = request(url, method, path)
    is_problem(answer, 405, "no-such-method")
    assert answer.headers["Allow"] == allowed


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"label": 7}', b'{"label": ""}',
                                  b'{"a": 1}', b'{"label": "\\ud800"}', b'{"label": "a\\nb"}',
                                  b'{"label": "%s"}' % (b"x" * 201), b'{"label": "a", "label2": "b"}', b'{"label": NaN}',
                                  b'{"label": 1e999}', b"[" * 100_000])
def test_json_bodies_that_are_none(new, body):
    answer = request(new, "PATCH", HERE + "/types/1", body, headers={"Content-Type": "application/json"})
    is_problem(answer, 422 if len(body) < 1000 else 400)
    assert request(new, "GET", HERE + "/types/1").json["label"] == "passport"


def test_a_json_body_is_small(url):
    """Thirty million brackets are a gigabyte in memory, and seconds in which nobody else is answered."""
    body = b'{"ids": [' + b"[]," * (2 << 20) + b"[]]}"
    is_problem(request(url, "POST", HERE + "/unknowns/resolve", body), 413, "too-large")


@pytest.mark.parametrize("charset", ["undefined", "punycode", "none", "hex", "idna"])
def test_a_form_in_a_strange_charset_is_no_defect(url, charset):
    body, headers = form(label="é")
    headers["Content-Type"] += f"; charset={charset}"
    is_problem(request(url, "POST", HERE + "/classify", body, headers=headers), 400, "invalid-form")


def test_no_message_tells_where_the_server_keeps_its_files(tmp_path):
    store = make_store(tmp_path)
    with serving(store) as url:
        request(url, "POST", HERE + "/references", document(0), label="x", force="true")
        for path in (store / "blobs").rglob("*"):
            if path.is_file():
                path.write_bytes(b"x" + path.read_bytes()[1:])  # a bit that flipped
        broken = request(url, "GET", HERE + "/references/1/image")
        is_problem(broken, 500, "damaged-store")
        model = request(url, "POST", HERE + "/models", b"no model")
        archive = request(url, "POST", HERE + "/import", b"no archive")
        for answer in (broken, model, archive):
            assert tmp_path.name not in answer.content.decode() and "incoming" not in answer.content.decode()


def test_scrubbing_a_message():
    assert scrub("/srv/my store/registry.sqlite: damaged; see /v1/keys", "/srv/my store") == (
        "registry.sqlite: damaged; see /v1/keys")
    assert scrub("cannot open /usr/lib/python3/x.py (no room)") == "cannot open x.py (no room)"
    assert scrub(r"C:\Users\me\store: damaged") == "store: damaged"
    assert scrub("and/or 3/4 http://host/a/b") == "and/or 3/4 http://host/a/b"
    assert scrub("one\ntwo \x1b[31m") == "one"


def test_a_defect_of_the_server_says_nothing_of_itself():
    found = of_error(ZeroDivisionError("secret /etc/x"))
    assert (found.status, found.code) == (500, "internal-error") and "secret" not in found.detail


def test_a_full_disk_is_507_and_reading_goes_on(new, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("inference.registry.blobs.os.fsync", full)
    is_problem(request(new, "POST", HERE + "/references", document(60), label="x", force="true"), 507, "disk-full")
    assert request(new, "POST", HERE + "/classify", document(0)).json["results"][0]["label"] == "passport"


def test_a_defect_is_500_without_a_traceback(new, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a secret of /etc/passwd")
    monkeypatch.setattr("inference.registry.core.Registry.events", broken)
    about = is_problem(request(new, "GET", HERE + "/events"), 500, "internal-error")
    assert "secret" not in json.dumps(about) and "Traceback" not in json.dumps(about)


def test_who_asks_whether_it_is_ready_fills_no_queue(new, monkeypatch):
    """Nobody needs a key for it."""
    go, loads = threading.Event(), []

    def load(store):
        loads.append(store)
        assert go.wait(30)

    monkeypatch.setattr("inference.server.metrics.load", load)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(request(new, "GET", "/readyz").status)) for _ in range(20)]
    for thread in threads:
        thread.start()
    try:
        assert until(lambda: loads)
        assert request(new, "GET", HERE + "/types").status == 200
    finally:
        go.set()
        for thread in threads:
            thread.join()
    assert answers == [200] * 20 and len(loads) < 5  # one; another for those that came when it had ended
    assert request(new, "GET", "/readyz").status == 200


# ---- headers, page, documentation ----

@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/healthz", "/v1/me", HERE, HERE + "/types",
                                  HERE + "/references/1/image", HERE + "/types/99", HERE + "/classify"])
def test_a_head_is_that_of_the_answer(new, path):
    whole, head = (request(new, method, path) for method in ("GET", "HEAD"))
    assert head.status == whole.status and head.content == b""
    assert {name: value for name, value in head.headers.items() if name != "date"} == {
        name: value for name, value in whole.headers.items() if name != "date"}


def test_every_answer_has_the_security_headers(url):
    for path in ("/", "/docs", "/openapi.json", "/v1/me", "/nothing", "/healthz", "/page/none.js", HERE + "/types/99"):
        answer = request(url, "GET", path)
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'; "), path
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff" and answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"]
    assert request(url, "GET", "/v1/me").headers["Cache-Control"] == "no-store"


def test_the_page_is_served_with_etags(url):
    page = request(url, "GET", "/")
    assert page.status == 200 and page.headers["Content-Type"].startswith("text/html")
    files = re.findall(r'(?:src|href)="(?!data:|#)([^"]+)"', page.content.decode())
    assert files
    for name in files:
        answer = request(url, "GET", "/" + name.lstrip("/"))
        assert answer.status == 200, name
        again = request(url, "GET", "/" + name.lstrip("/"), headers={"If-None-Match": answer.headers["ETag"]})
        assert again.status == 304 and again.content == b""


@pytest.mark.parametrize("path", ["/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page/%2e%2e%2fapp.py",
                                  "/page/....//app.py", "/page//etc/passwd", "/page/%00", "/page/..%5capp.py", "/page/",
                                  "/page/%252e%252e/app.py", "/docs/../app.py", "/docs/..%2f__init__.py",
                                  "/docs/__init__.py",
                                  "/page/../../../../../../etc/passwd", "/page/locales/../../app.py", "//etc/passwd"])
def test_no_path_leads_out_of_the_page(url, path):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:  # http clients tidy paths up
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while block := connection.recv(65536):
            answer += block
    assert answer.split(b" ")[1] in (b"404", b"400", b"405"), answer[:200]
    assert b"create_app" not in answer and b"root:" not in answer


def test_the_documentation_works_offline_and_without_inline_scripts(url):
    page = request(url, "GET", "/docs").content.decode()
    assert "http" not in page.replace("DocMetric: HTTP", "") and not re.search(r"<script>|style=|onload=", page)
    for name in re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page):
        answer = request(url, "GET", "/" + name)
        assert answer.status == 200 and len(answer.content) > 50, name
    assert len(request(url, "GET", "/docs/swagger-ui-bundle.js").content) > 500_000


def test_openapi_is_complete(url):
    document = request(url, "GET", "/openapi.json").json
    assert document["openapi"].startswith("3.1")
    scopes = set()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            scopes.add(operation["x-scope"])
            assert operation["description"] and operation["tags"] and operation["security"], where
            responses = operation["responses"]
            assert any(status.startswith("2") for status in responses), where
            assert {"400", "401", "403", "422", "503"} <= set(responses), where
            for status, response in responses.items():
                if status.startswith("2"):
                    assert "content" in response or status == "204", where
                else:
                    assert list(response["content"]) == ["application/problem+json"], where
            if "{" in path:
                assert "404" in responses, where
    assert scopes == {"", "classify", "read", "write", "admin"}
    text = json.dumps(document)
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in document["components"]["schemas"], name
    image = document["paths"]["/v1/collections/{collection}/classify"]["post"]["requestBody"]["content"]
    assert image["image/jpeg"]["schema"] == {"type": "string", "format": "binary"} and "multipart/form-data" in image


def test_every_list_that_a_request_may_have_is_bounded(url):
    """A megabyte of entries that are all wrong is half a million errors, and seconds in which nobody else is answered."""
    document = request(url, "GET", "/openapi.json").json
    schemas, lists = document["components"]["schemas"], 0
    bodies = [operation["requestBody"]["content"] for methods in document["paths"].values() for operation in methods.values()
              if "requestBody" in operation]
    names = set(re.findall(r"#/components/schemas/(\w+)", json.dumps([one.get("application/json") for one in bodies])))
    for name in names:
        for member in schemas[name]["properties"].values():
            for one in (member, *member.get("anyOf", ())):
                if one.get("type") == "array":
                    lists += 1
                    assert one["maxItems"] <= 10_000, (name, member)
    assert lists == 3


def test_the_routes_that_take_an_idempotency_key_are_those_that_are_said_to(url):
    """docs/http_api.md names them; others must not list a header that they ignore."""
    paths = request(url, "GET", "/openapi.json").json["paths"]
    found = {f"{method} {path.rpartition('{collection}')[2]}" for path, methods in paths.items()
             for method, operation in methods.items()
             if any(one["name"] == "Idempotency-Key" for one in operation.get("parameters", ()))}
    assert found == {"post /references", "patch /references/{id}", "delete /references/{id}",
                     "patch /types", "delete /types",
                     "patch /types/{id}", "delete /types/{id}", "post /types/merge", "post /types/{id}/merge",
                     "put /threshold", "post /undo"}


def test_the_routes_of_the_contract_are_there(url):
    paths = request(url, "GET", "/openapi.json").json["paths"]
    at = "/v1/collections/{collection}"
    found = {f"{method.upper()} {path.replace(at, '...')}" for path in paths for method in paths[path]}
    assert found >= {f"{method} {path}" for path, methods in CONTRACT.items() for method in methods.split()}


def test_a_store_that_is_none_ends_in_one_line(tmp_path):
    from inference.errors import UserError
    with pytest.raises(UserError, match="no store there"):
        application.create_app(application.Settings(str(tmp_path / "none")))
