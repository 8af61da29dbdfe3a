"""The OpenAPI document is true: what schemathesis makes of it finds no defect, and real answers are as it says.

Which requests are made is the same each time. The whole file takes some 20 s on two cores.
"""
import json
import re
from urllib.parse import urlsplit

import hypothesis
import jsonschema_rs
import pytest
import schemathesis
from schemathesis import checks
from schemathesis.specs.openapi import checks as of_openapi

from inference import client as client_module
from inference.client import Client
from inference.registry import Store
from inference.registry.keys import Keys
from tests.helpers.models import write_model
from tests.helpers.serving import document, make_store, request, serving

EXAMPLES = 12  # of each of some 45 operations
CHECKS = (checks.not_a_server_error, of_openapi.status_code_conformance, of_openapi.content_type_conformance,
          of_openapi.response_schema_conformance, of_openapi.response_headers_conformance)
schemathesis.serializer.alias(["application/zip", "image/jpeg", "image/png"], "application/octet-stream")


@pytest.fixture
def server(tmp_path):
    """(address, key), of a store with types, decisions and unknowns."""
    store = make_store(tmp_path)
    with Store(store) as opened, Keys(opened) as keys:
        key = keys.add("owner")["key"]
    with serving(store, keep_unknown=3600.0) as url:
        with Client(url, key) as client:
            for seed in range(3):
                client.add(document(seed), f"type {seed}", force=True)
            client.add(document(9), kind="unknown", force=True)
            client.classify([document(seed) for seed in (0, 1, 2, 9, 50, 51)])
        yield url, key


def test_no_request_finds_a_defect(server):
    url, key = server
    operations = [found.ok() for found in schemathesis.openapi.from_url(url + "/openapi.json").get_all_operations()]
    assert len(operations) > 40
    seen = set()
    for operation in operations:
        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
                             suppress_health_check=list(hypothesis.HealthCheck))
        def check(case):
            given = case.path_parameters
            if "collection" in given and len(given["collection"]) % 4:
                given["collection"] = "default"  # of others there is nothing to see
            if "id" in given:  # numbers that there may be; key 1 is the one that is used here
                given["id"] = given["id"] % 5 + (2 if operation.path.startswith("/v1/keys") else 1)
            response = case.call_and_validate(headers={"Authorization": f"Bearer {key}"}, checks=CHECKS)
            seen.add((operation.label, response.status_code))
        check()
    assert request(url, "GET", "/v1/me", key=key).status == 200
    assert len({label for label, status in seen if status < 300}) > len(operations) / 2


def test_requests_that_are_wrong_are_rejected(server):
    """What contradicts the document must not be taken for anything else."""
    url, key = server
    for found in schemathesis.openapi.from_url(url + "/openapi.json").get_all_operations():
        operation = found.ok()
        if operation.method == "get" and operation.path in ("/v1/me", "/v1/collections", "/v1/keys"):
            continue  # there is nothing in them that could be wrong

        @hypothesis.given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
        @hypothesis.settings(max_examples=EXAMPLES // 3, deadline=None, derandomize=True, database=None,
                             suppress_health_check=list(hypothesis.HealthCheck))
        def check(case):
            case.call_and_validate(headers={"Authorization": f"Bearer {key}"},
                                   checks=(*CHECKS, of_openapi.negative_data_rejection))
        check()


def test_answers_are_as_documented(server, tmp_path, monkeypatch):
    """A walk through all that a client can do: each answer is validated, and no operation is missed."""
    url, key = server
    openapi = request(url, "GET", "/openapi.json").json
    paths = sorted(openapi["paths"], key=lambda path: "{id}" in path or "{hash}" in path)  # those of fixed words come first
    templates = [(re.compile(re.sub(r"{\w+}", "[^/]+", path)), path) for path in paths]
    visited = set()
    send = client_module._Server._send

    def recorded(self, method, target, *arguments):
        status, headers, content = send(self, method, target, *arguments)
        at = urlsplit(target).path
        path = next(path for pattern, path in templates if pattern.fullmatch(at))
        described = openapi["paths"][path][method.lower()]["responses"][str(status)]
        if headers.get_content_type().endswith("json"):
            schema = described["content"][headers.get_content_type()]["schema"]
            jsonschema_rs.validate({**schema, "components": openapi["components"]}, json.loads(content))
        if status < 300:
            visited.add(f"{method.lower()} {path}")
        return status, headers, content
    monkeypatch.setattr(client_module._Server, "_send", recorded)

    with Client(url, key) as client:
        _walk(client, tmp_path)
    everything = {f"{method} {path}" for path, methods in openapi["paths"].items() for method in methods}
    assert everything - visited == {"post /v1/collections/{collection}/types/{id}/merge"}


def _walk(client, folder):
    image = document(0)
    client.me(), client.collections(), client.settings, client.set_settings(margin=0.0), client.warnings
    client.create("second", find="never").add(image, "x")
    client.keys.revoke(client.keys.add("k", ["read"], ["second"])["id"])
    client.keys.list()
    client.types(), client.type(1), client.type("type 1"), client.references(), client.reference(1), client.picture(1)
    client.inspect(image, "type 0"), client.search(image), client.classify([image, b"none", document(77)], 3), client(image)
    decision = client.traffic.decisions(newest=True)[0]["decision"]
    client.traffic.feedback(decision, False), client.traffic.replay(0.5), client.traffic.decisions()
    client.unknowns.list(), client.unknowns.picture(client.unknowns.list()[0]["id"])
    client.unknowns.remove(client.unknowns.list()[0]["id"])
    cluster = client.unknowns.clusters()[0]
    client.unknowns.resolve(cluster["ids"], "named", force=True)
    client.threshold, client.set_threshold(0.8), client.set_threshold(0.7, label=1), client.suggest_threshold()
    client.rename(1, "new"), client.rename("new", "newer"), client.move(2, "newer"), client.merge("newer", 3)
    client.undo(), client.remove("newer"), client.undo(), client.remove(type=3), client.remove(reference=4)
    client.events(), client.events(newest=True), client.models()
    digest = client.upgrade.add(write_model(folder / "other.onnx", mean=0.45))
    client.upgrade.build(digest), client.upgrade.report(digest), client.upgrade.activate(digest)
    client.upgrade.activate(client.models()[0]["hash"]), client.upgrade.remove(digest)
    client.export(folder / "all.zip"), client.import_(folder / "all.zip")
