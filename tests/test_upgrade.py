"""Another model for a collection: embedded beside, compared, switched to at once, and back; killed at any time."""
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from eval.calibrate import _replace_metadata
from inference.errors import UserError
from inference.model import Model, load_model
from inference.registry import Registry
from inference.registry import upgrade as module
from inference.registry.errors import Conflict, Damaged, Invalid, NotFound
from inference.registry.graph import graph_hash
from tests.helpers.models import METADATA, write_model
from tests.helpers.registries import make_registry, model_file, noisy, png, turned

SHIPPED = Path("inference/models/docmetric.onnx")


@pytest.fixture
def registry(tmp_path):
    with make_registry(tmp_path, types=6, references=2) as registry:
        yield registry


@pytest.fixture
def other(tmp_path):
    return model_file(tmp_path / "other.onnx", threshold=.7, mean=.6)


def features(registry, digest):
    """{reference: float32 [n, D]} of a model, as stored."""
    depth = registry.store.model(digest).embedding_size
    return {reference: np.frombuffer(vectors, "<f4").reshape(-1, depth) for reference, vectors in registry.store.read(
        "SELECT reference, vectors FROM feature JOIN model ON model.id = model WHERE hash = ?", (digest,))}


def state_of(registry, digest):
    return next(one["state"] for one in registry.models() if one["hash"] == digest)


def embedded_images(monkeypatch):
    """A list that grows by the number of images of each run of a network."""
    runs, run = [], Model._run
    monkeypatch.setattr(Model, "_run", lambda self, images: runs.append(len(images)) or run(self, images))
    return runs


# ---------------------------------------------------------------- add and build
def test_a_model_is_embedded_beside_and_changes_nothing(registry, other):
    before, look = registry.snapshot(), registry.look(noisy(2, 5))
    active, answer = registry.model, registry.decide([look], 3)
    digest = registry.upgrade.add(other, who="Ana")
    assert digest == graph_hash(other) and state_of(registry, digest) == "building"
    done = []
    built = registry.upgrade.build(digest, lambda *numbers: done.append(numbers))
    assert built == dict(hash=digest, state="ready", embedded=12) and done[-1] == (12, 12)
    assert registry.model is active and registry.snapshot().model_hash == before.model_hash
    changed = dict(registry.decide([look], 3)[0], event=answer[0]["event"])
    assert changed == answer[0]
    expected = load_model(other)
    for reference, vectors in features(registry, digest).items():
        prepared = expected.prepare(decoded(registry.picture(reference)))
        assert np.array_equal(vectors, expected.embed(prepared[None]))
    assert registry.upgrade.build(digest)["embedded"] == 0
    assert registry.events(newest=True)[0]["who"] == "Ana"


def decoded(data):
    import cv2
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def test_what_is_added_meanwhile_is_embedded_by_both(registry, other):
    digest = registry.upgrade.add(other)
    before = registry.add(noisy(10, 0), "ten", force=True)["reference"]
    registry.upgrade.build(digest)
    after = registry.add(noisy(11, 0), "eleven", force=True)["reference"]
    assert {before, after} <= features(registry, digest).keys() == features(registry, registry.snapshot().model_hash).keys()
    registry.upgrade.activate(digest)
    assert registry(noisy(10, 3))[0] == "ten" and registry(noisy(11, 3))[0] == "eleven"


def test_a_model_of_another_size_and_way_up(tmp_path):
    with make_registry(tmp_path, types=3, orientation="any") as registry:
        digest = registry.upgrade.add(SHIPPED)
        registry.upgrade.build(digest)
        assert {vectors.shape for vectors in features(registry, digest).values()} == {(4, 256)}
        assert registry.upgrade.report(digest)["threshold"]["new"] == load_model(SHIPPED).threshold_at(1e-3, "any")
        registry.upgrade.activate(digest)
        result, = registry.decide([registry.look(turned(noisy(1, 0), 3))])
        assert result["label"] == "type 1" and result["orientation"] == 90 and result["model"] == digest[:16]


@pytest.mark.parametrize("content", [b"no model", b""])
def test_what_is_no_model_is_refused(registry, tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match="bad.onnx"):
        registry.upgrade.add(path)
    assert len(registry.models()) == 1
    for call in (registry.upgrade.build, registry.upgrade.report, registry.upgrade.activate, registry.upgrade.remove):
        with pytest.raises(NotFound):
            call("0" * 64)


def test_a_damaged_picture_is_named_and_the_others_are_embedded(registry, other):
    digest = registry.upgrade.add(other)
    harmed = registry.references()[3]
    path = registry.store.blobs.path(harmed["sha256"])
    path.write_bytes(b"no image")
    with pytest.raises(Damaged) as caught:
        registry.upgrade.build(digest)
    assert caught.value.details["references"] == [harmed["reference"]] and state_of(registry, digest) == "building"
    assert len(features(registry, digest)) == 11
    with pytest.raises(Conflict, match="build it first"):
        registry.upgrade.activate(digest)
    with pytest.raises(Conflict, match="build it first"):
        registry.upgrade.report(digest)
    registry.remove(reference=harmed["reference"])
    assert registry.upgrade.build(digest)["state"] == "ready"
    registry.upgrade.activate(digest)


def test_an_undo_after_the_switch_brings_references_back(registry, other):
    event = registry.remove("type 2")["event"]
    digest = registry.upgrade.add(other)
    registry.upgrade.build(digest)
    registry.upgrade.activate(digest)
    assert registry(noisy(2, 5))[0] is None
    registry.undo(event)
    assert registry(noisy(2, 5))[0] == "type 2"


BUILD = textwrap.dedent("""
    import sys, time
    from inference.registry import Registry, upgrade
    upgrade.BATCH = 2
    with Registry.open(sys.argv[1], threads=1) as registry:
        registry.upgrade.build(sys.argv[2], lambda done, of: print(done, flush=True) or time.sleep(float(sys.argv[3])))
""")


def building(registry, digest, pause):
    return subprocess.Popen([sys.executable, "-c", BUILD, registry.store.path, digest, str(pause)], text=True,
                            stdout=subprocess.PIPE)


def test_a_build_that_is_killed_goes_on_where_it_was(registry, other, monkeypatch):
    digest = registry.upgrade.add(other)
    process = building(registry, digest, .2)
    while int(process.stdout.readline()) < 4:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    done = len(features(registry, digest))
    assert 4 <= done < 12 and state_of(registry, digest) == "building"
    runs = embedded_images(monkeypatch)
    assert registry.upgrade.build(digest)["embedded"] == 12 - done == sum(runs)
    assert state_of(registry, digest) == "ready"


def test_others_add_and_ask_while_it_is_built(registry, other):
    """By another process; two builds at the same time do no harm."""
    digest = registry.upgrade.add(other)
    processes = [building(registry, digest, .05) for _ in range(2)]
    added, kind = [], 20
    while any(process.poll() is None for process in processes):
        added.append(registry.add(noisy(kind, 0), f"type {kind}", force=True)["reference"])
        assert registry(noisy(kind, 2))[0] == f"type {kind}"
        kind += 1
    assert [process.wait() for process in processes] == [0, 0] and added
    assert state_of(registry, digest) == "ready"
    assert features(registry, digest).keys() == {one["reference"] for one in registry.references(limit=10_000)}


# ---------------------------------------------------------------- the switch, and back
def test_the_switch_and_the_way_back_embed_nothing_again(registry, other, monkeypatch):
    first = registry.snapshot().model_hash
    registry.set_threshold(.9)
    digest = registry.upgrade.add(other)
    registry.upgrade.build(digest)
    runs = embedded_images(monkeypatch)
    answer = registry.upgrade.activate(digest, who="Ana")
    assert (answer["hash"], answer["former"], answer["threshold"], answer["embedded"]) == (digest, first, None, 0)
    assert registry.threshold == .7 and registry.snapshot().automatic  # its own table: nobody has set one for it
    assert state_of(registry, first) == "retired" and registry.models()[1]["state"] == "active"
    back = registry.upgrade.activate(first)
    assert back["former"] == digest and registry.threshold == .9 and not runs
    assert registry(noisy(1, 4))[0] == "type 1" and sum(runs) == 1
    assert registry.upgrade.activate(first)["event"] is None  # is active already
    assert [event["what"] for event in registry.events(newest=True)[:2]] == ["activate", "activate"]


def test_the_way_back_embeds_what_came_since_alone(registry, other, monkeypatch):
    first = registry.snapshot().model_hash
    digest = registry.upgrade.add(other)
    registry.upgrade.build(digest)
    registry.upgrade.activate(digest)
    reference = registry.add(noisy(10, 0), "ten", force=True)["reference"]
    assert reference not in features(registry, first)
    runs = embedded_images(monkeypatch)
    assert registry.upgrade.activate(first)["embedded"] == 1 == sum(runs)
    assert registry(noisy(10, 3))[0] == "ten" and registry(noisy(0, 3))[0] == "type 0"


def test_other_processes_see_the_switch_at_once(registry, other):
    with Registry.open(registry.store.path, threads=1) as beside:
        assert beside(noisy(1, 4))[0] == "type 1"
        look = beside.look(noisy(1, 4))
        digest = registry.upgrade.add(other)
        registry.upgrade.build(digest)
        registry.upgrade.activate(digest)
        result, = beside.decide([look])  # embedded by the former model, before the switch
        assert result["model"] == digest[:16] and result["label"] == "type 1"


def test_every_answer_is_one_model_s(registry, other):
    """Two threads ask while the model is switched to and fro: no query meets vectors of the other model."""
    first = registry.snapshot().model_hash
    digest = registry.upgrade.add(other)
    registry.upgrade.build(digest)
    expected, wrong, end = {}, [], threading.Event()
    for one in (digest, first):
        registry.upgrade.activate(one)
        expected[one[:16]] = registry.decide([registry.look(noisy(1, 4))])[0]["score"]

    def ask():
        while not end.is_set():
            result, = registry.decide([registry.look(noisy(1, 4))])
            if result["label"] != "type 1" or abs(result["score"] - expected[result["model"]]) > 1e-6:
                wrong.append(result)
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        for one in (digest, first):
            registry.upgrade.activate(one)
            time.sleep(.01)
    end.set()
    for thread in threads:
        thread.join()
    assert not wrong and len(set(expected.values())) == 2


def test_a_reference_that_came_behind_its_back_is_embedded_before_the_switch(registry, other):
    """Of a process that knew no second model when it registered it."""
    digest = registry.upgrade.add(other)
    registry.upgrade.build(digest)
    with registry.store.write() as db:
        db.execute("DELETE FROM feature WHERE reference = 3 AND model = (SELECT id FROM model WHERE hash = ?)", (digest,))
    assert registry.upgrade.report(digest)["references"]["asked"] == 11
    assert registry.upgrade.activate(digest)["embedded"] == 1 and len(features(registry, digest)) == 12


def test_thresholds_of_the_new_model(registry, other, tmp_path):
    first = registry.snapshot().model_hash
    digest = registry.upgrade.add(other)
    registry.upgrade.build(digest)
    for wrong in (1.5, -.1, "often"):
        with pytest.raises(Invalid):
            registry.upgrade.activate(digest, threshold=wrong)
    assert registry.upgrade.activate(digest, threshold=.83)["threshold"] == .83 == registry.threshold
    registry.upgrade.activate(first)
    registry.add(noisy(2, 7), "twin", force=True)
    answer = registry.upgrade.activate(digest, threshold="suggestion")
    assert answer["threshold"] == registry.threshold == registry.suggest_threshold()["threshold"]
    snapshot = registry.snapshot()
    twins = {number for number, label in snapshot.types.items() if label in ("type 2", "twin")}
    assert snapshot.thresholds.keys() == twins and min(snapshot.thresholds.values()) > registry.threshold


def test_look_alikes_are_those_of_the_new_model(registry, other):
    registry.add(noisy(2, 7), "twin", force=True)
    digest = registry.upgrade.add(other)
    registry.upgrade.build(digest)
    alike = registry.upgrade.report(digest)["look_alikes"]
    assert [{one["label"], one["other"]} for one in alike["new"]] == [{"type 2", "twin"}]
    registry.upgrade.activate(digest)
    snapshot = registry.snapshot()
    (first, second, score), = snapshot.look_alikes
    assert {snapshot.types[first], snapshot.types[second]} == {"type 2", "twin"}
    assert score == pytest.approx(alike["new"][0]["score"], abs=1e-6) and snapshot.thresholds[first] > registry.threshold


# ---------------------------------------------------------------- calibration, removal
def test_newly_calibrated_thresholds_embed_nothing(registry, tmp_path, monkeypatch):
    """`python -m eval --calibrate` rewrites the file: the graph is the same."""
    first, path = registry.snapshot().model_hash, tmp_path / "tiny.onnx"
    table = {rate: {"threshold": .91, "tpr": .9} for rate in ("1e-2", "1e-6")}
    _replace_metadata(path, load_model(path).metadata | {"thresholds": table, "margin": .01})
    registry.upgrade.add(path)
    assert [one["hash"] for one in registry.models()] == [first] and state_of(registry, first) == "active"
    assert registry.threshold == .91 and registry.snapshot().margin == .01 and len(features(registry, first)) == 12
    runs = embedded_images(monkeypatch)  # after the file was read again, which looks whether it runs
    assert registry.upgrade.build(first)["embedded"] == 0 and not runs


def test_removing_a_model(registry, other):
    first = registry.snapshot().model_hash
    digest = registry.upgrade.add(other)
    registry.upgrade.build(digest)
    with pytest.raises(Conflict, match="in use"):
        registry.upgrade.remove(first)
    registry.upgrade.remove(digest)
    assert [one["hash"] for one in registry.models()] == [first] and not registry.store.model_path(digest).exists()
    assert registry.store.read("SELECT count(*) FROM feature") == [(12,)]
    registry.upgrade.build(registry.upgrade.add(other))
    registry.upgrade.activate(digest, threshold=.8)
    registry.upgrade.remove(first)
    assert registry(noisy(1, 4))[0] == "type 1"


def test_a_model_that_is_removed_while_it_is_built_or_switched_to(registry, other, monkeypatch):
    monkeypatch.setattr("inference.registry.upgrade.BATCH", 2)
    digest = registry.upgrade.add(other)
    with pytest.raises(NotFound, match="removed"):
        registry.upgrade.build(digest, lambda done, of: registry.upgrade.remove(digest) if done == 4 else None)
    assert registry.store.read("SELECT count(*) FROM feature") == [(12,)]
    registry.upgrade.build(registry.upgrade.add(other))
    look_alikes = module.look_alikes
    monkeypatch.setattr(module, "look_alikes",
                        lambda *given: (look_alikes(*given), registry.upgrade.remove(digest))[0])
    with pytest.raises(NotFound):
        registry.upgrade.activate(digest)
    assert registry(noisy(1, 4))[0] == "type 1"


def test_a_model_of_two_collections_stays_for_the_other(registry, other):
    second = registry.store.create("second", other, find="never")
    digest = registry.upgrade.add(other)
    registry.upgrade.remove(digest)
    assert registry.store.model_path(digest).exists() and second.model.embedding_size == 48


# ---------------------------------------------------------------- the report
def brute_force(registry, asked):
    """{reference: label} where each is asked about while it is not registered."""
    said = {}
    for reference in asked:
        event = registry.remove(reference=reference)["event"]
        said[reference] = registry(registry.picture(reference))[0]
        registry.undo(event)
    return said


def test_the_report_equals_asking_both_models(tmp_path):
    """Noisy pictures, some of which either model rejects or takes for another type; the answers are those of a registry in
    which each picture is removed, asked about, and put back."""
    new = model_file(tmp_path / "new.onnx", threshold=.62, mean=0.0)
    with make_registry(tmp_path, threshold=.9) as registry:
        items = [(noisy(kind, number + 1, noise=130), f"type {kind}") for kind in range(8) for number in range(3)]
        registry.add_many([*items, (noisy(50, 0), "single")])
        registry.traffic.keep_unknown = 60
        unknowns = [noisy(kind, 1, noise=100) for kind in (1, 60, 61, 62)]
        for image in unknowns:
            look = registry.look(image)
            registry.traffic.record(registry.decide([look], 2)[0], look, image)
        digest = registry.upgrade.add(new)
        registry.upgrade.build(digest)
        report = registry.upgrade.report(digest)
        labels = {one["reference"]: one["label"] for one in registry.references()}
        asked = [reference for reference, label in labels.items() if label != "single"]
        kept = {one["id"]: registry.unknowns.picture(one["id"]) for one in registry.unknowns.list()}
        said = {"active": brute_force(registry, asked)}
        said_unknown = {"active": {number: registry(image)[0] for number, image in kept.items()}}
        registry.upgrade.activate(digest)
        said["new"] = brute_force(registry, asked)
        said_unknown["new"] = {number: registry(image)[0] for number, image in kept.items()}

    references = report["references"]
    assert (references["asked"], references["of"]) == (24, 25)
    assert report["threshold"] == {"active": .9, "new": .62}
    for side in ("active", "new"):
        assert references[side] == dict(
            right=sum(said[side][one] == labels[one] for one in asked),
            wrong=sum(said[side][one] not in (None, labels[one]) for one in asked),
            rejected=sum(said[side][one] is None for one in asked))
        assert report["unknowns"][side]["labeled"] == sum(label is not None for label in said_unknown[side].values())
    changed = {one for one in asked if said["active"][one] != said["new"][one]}
    assert {one["reference"] for one in references["changed"]} == changed and references["agree"] == 24 - len(changed) < 24
    for one in references["changed"]:
        assert one["label"] == labels[one["reference"]]
        assert [one[side]["label"] for side in ("active", "new")] == [said[side][one["reference"]] for side in
                                                                      ("active", "new")]
    assert report["unknowns"]["asked"] == len(kept) > 0
    assert {one["id"] for one in report["unknowns"]["changed"]} == {
        one for one in kept if said_unknown["active"][one] != said_unknown["new"][one]}


def test_a_report_without_anything_to_compare(tmp_path, other):
    with make_registry(tmp_path) as registry:
        digest = registry.upgrade.add(other)
        registry.upgrade.build(digest)
        report = registry.upgrade.report(digest)
        assert report["references"]["asked"] == report["unknowns"]["asked"] == 0
        assert registry.upgrade.activate(digest)["embedded"] == 0
        registry.add(noisy(1, 0), "one", force=True)
        assert registry(noisy(1, 2))[0] == "one"


def test_a_report_of_the_model_in_use_agrees_with_itself(registry):
    report = registry.upgrade.report(registry.snapshot().model_hash)
    assert report["references"]["agree"] == report["references"]["asked"] == 12 and not report["references"]["changed"]


def test_many_references_are_sampled(registry, other, monkeypatch):
    monkeypatch.setattr("inference.registry.report.SAMPLED", 5)
    digest = registry.upgrade.add(other)
    registry.upgrade.build(digest)
    report = registry.upgrade.report(digest)
    assert (report["references"]["asked"], report["references"]["of"]) == (5, 12)
    assert registry.upgrade.report(digest) == report
    monkeypatch.setattr("inference.registry.report.COMPARED", 5)
    assert any("not searched for" in line for line in registry.upgrade.report(digest)["warnings"])


def test_documents_that_are_looked_for(tmp_path):
    """`find` "auto": a reference may have two vectors; from the shipped model to a tiny one and back."""
    rng = np.random.default_rng(0)
    photos = []
    for kind in range(3):
        canvas = rng.integers(0, 40, (300, 400, 3), np.uint8)
        canvas[60:240, 80:320] = np.kron(np.random.default_rng(kind).integers(120, 256, (9, 12, 3)), np.ones((20, 20, 1)))
        photos.append(png(canvas))
    with Registry.open(tmp_path / "store", create=True, find="auto", threads=1) as registry:
        registry.add_many([(photo, f"type {kind}") for kind, photo in enumerate(photos)])
        first = registry.snapshot().model_hash
        digest = registry.upgrade.add(write_model(tmp_path / "tiny.onnx", METADATA))
        registry.upgrade.build(digest)
        assert {number: len(vectors) for number, vectors in features(registry, digest).items()} == {
            number: len(vectors) for number, vectors in features(registry, first).items()}
        registry.upgrade.report(digest)
        for one in (digest, first):
            registry.upgrade.activate(one)
            assert [registry(photo)[0] for photo in photos] == ["type 0", "type 1", "type 2"]
        assert registry.model.embedding_size == 256 and os.path.getsize(registry.store.model_path(first)) > 1 << 20
