"""The registry of a store: what is registered is recognized, by every process, at once; every change can be undone."""
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
from helpers.models import METADATA, blocks, save, view_of, write_model

from inference import DocClassifier
from inference.errors import UserError
from inference.image import ImageError
from inference.registry import Registry, Store
from inference.registry.errors import Conflict, Damaged, Invalid, NotFound, Refused
from inference.registry.schema import check_local, check_sqlite
from inference.registry.state import PARTS

TABLE = {"1e-2": {"threshold": 0.8}, "1e-3": {"threshold": 0.9}, "1e-4": {"threshold": 0.95}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "m.onnx", METADATA | {"thresholds": TABLE})


@pytest.fixture
def registry(tmp_path, model):
    with Registry.open(tmp_path / "store", create=True, model=model, find="never") as registry:
        yield registry


def add(registry, seed, label, **options):
    return registry.add(blocks(seed), label, force=True, **options)


def test_a_registered_type_is_recognized_and_another_is_not(registry):
    added = registry.add(blocks(1), "passport", who="Ada", source="scan 7")
    assert added | {"event": 0, "findings": []} == dict(
        reference=1, type=1, label="passport", kind="type", event=0, new_type=True, sha256=added["sha256"], quad=None,
        findings=[])
    assert registry(blocks(1)) == ("passport", pytest.approx(1))
    result, other = registry.classify([blocks(1), blocks(2)], top_k=3)
    assert result["reason"] == "accepted" and result["top_k"] == [
        dict(label="passport", type=1, kind="type", score=pytest.approx(1), reference=1)]
    assert other["label"] is None and other["reason"] == "below-threshold" and other["score"] < 0.8
    assert result["search"] == "exact" and result["event"] == added["event"]
    assert registry.references()[0] | {"created": 0, "quality": {}} == dict(
        reference=1, type=1, label="passport", kind="type", sha256=added["sha256"], quad=None, found=None, orientation=0,
        quality={}, source="scan 7", who="Ada", created=0, removed=None)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(registry.picture(1), np.uint8), 1), blocks(1))


def test_an_empty_registry_knows_nothing(registry):
    result, = registry.classify([blocks(1)])
    assert (result["label"], result["score"], result["reason"], result["top_k"]) == (None, None, "empty", [])
    assert registry.search(blocks(1)) == [] and registry.labels == [] and registry.types() == []


def test_images_that_cannot_be_used(registry, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    add(registry, 1, "a")
    results = registry.classify([tmp_path / "text.jpg", blocks(1), tmp_path / "missing.jpg", b""])
    assert [result["reason"] for result in results] == ["unusable", "accepted", "unusable", "unusable"]
    assert results[0]["error"].startswith("not an image") and results[2]["error"] == "file not found"
    for bad in (tmp_path / "text.jpg", b"", np.zeros((3, 3))):
        with pytest.raises(ImageError):
            registry.add(bad, "b")
    with pytest.raises(ImageError, match="image 1: empty file"):
        registry.add_many([(blocks(1), "c"), (b"", "d")])
    assert registry.labels == ["a"]


def test_answers_are_those_of_a_folder(tmp_path, model):
    """The store's search, thresholds and look-alikes against the registry of a folder, which is another implementation."""
    for kind in range(6):
        for number in range(2):
            save(tmp_path / f"types/t{kind}/{number}.png", view_of(kind, number))
    save(tmp_path / "types/twin/0.png", np.clip(view_of(3, 0).astype(int) + 3, 0, 255).astype(np.uint8))
    queries = [view_of(kind, 9) for kind in range(8)] + [view_of(3, 0)]
    for orientation in ("upright", "any"):
        folder = DocClassifier(model=model, register_root=tmp_path / "types", orientation=orientation)
        with Registry.open(tmp_path / orientation, create=True, model=model, find="never", orientation=orientation) as store:
            for path in sorted((tmp_path / "types").rglob("*.png")):  # one after the other: this finds the look-alikes
                store.add(path, path.parent.name, force=True)
            assert store.threshold == folder.threshold
            assert {one["label"]: pytest.approx(one["threshold"], abs=1e-6) for one in store.types()} == folder.thresholds
            alike = [one["label"] for one in store.types() if one["look_alikes"]]
            assert sorted(alike) == ["t3", "twin"]
            stored = DocClassifier(register_root=tmp_path / orientation)
            expected = folder.classify(queries, 4)
            for results in (store.classify(queries, 4), stored.classify(queries, 4)):
                for result, peer in zip(results, expected, strict=True):
                    assert result["label"] == peer["label"]
                    assert [one["label"] for one in result["top_k"]] == [one["label"] for one in peer["top_k"]]
                    np.testing.assert_allclose([one["score"] for one in result["top_k"]],
                                               [one["score"] for one in peer["top_k"]], atol=1e-6)
                    assert result.get("orientation") == peer.get("orientation")


def test_a_known_unknown_rejects_what_is_nearest_to_it(registry, tmp_path):
    add(registry, 1, "form")
    near = np.clip(blocks(1).astype(int) + np.random.default_rng(0).integers(-60, 60, (64, 64, 1)), 0, 255).astype(np.uint8)
    assert registry(near)[0] == "form"
    added = registry.add(near, kind="unknown", force=True)
    assert (added["label"], added["type"], added["kind"]) == (None, None, "unknown")
    result, = registry.classify([near], 2)
    assert (result["label"], result["reason"]) == (None, "known-unknown")
    assert result["top_k"][0] == dict(label=None, type=None, kind="unknown", score=pytest.approx(1), reference=2)
    assert registry(blocks(1))[0] == "form"  # still nearest to the type
    classifier = DocClassifier(register_root=registry.store.path)
    assert classifier(near)[0] is None and classifier(blocks(1))[0] == "form"
    registry.undo()
    assert registry(near)[0] == "form"
    with pytest.raises(Invalid, match="no label"):
        registry.add(near, "form", kind="unknown")
    with pytest.raises(Invalid, match="needs a label"):
        registry.add(near)


def test_the_gate_refuses_and_force_registers(registry):
    registry.add(blocks(1), "a")
    for label, codes in (("a", ["near-duplicate"]), ("b", ["look-alike"])):
        with pytest.raises(Refused) as refused:
            registry.add(blocks(1), label)
        assert [finding.code for finding in refused.value.findings] == codes
        assert refused.value.details["findings"][0]["details"] == dict(
            reference=1, label="a", kind="type", score=pytest.approx(1))
    with pytest.raises(Refused, match="shows nothing"):
        registry.add(np.full((64, 64, 3), 200, np.uint8), "blank")
    assert registry.labels == ["a"] and len(registry.events()) == 1
    assert len(list(registry.store.blobs.names())) == 1
    forced = registry.add(blocks(1), "b", force=True)
    assert [finding["code"] for finding in forced["findings"]] == ["look-alike"]
    inspected = registry.inspect(blocks(1), "a")
    assert {finding.code for finding in inspected["findings"]} == {"near-duplicate", "look-alike"}
    assert inspected["nearest"][0]["score"] == pytest.approx(1)


@pytest.mark.parametrize("label", ["", "  ", "a\nb", "a\0b", "x" * 201, None, 7, "\u202egnp.exe", "\ud800", b"bytes"])
def test_labels_that_are_refused(registry, label):
    with pytest.raises(Invalid):
        registry.add(blocks(1), label)
    assert registry.events() == []


@pytest.mark.parametrize("label", ["../../etc/passwd", "a/b", "C:\\x", "'; DROP TABLE type; --", "身分證", "é", ".", "%s"])
def test_labels_that_are_text_like_any_other(registry, label):
    add(registry, 1, label)
    assert registry(blocks(1))[0] == registry.labels[0] == label
    assert registry.type(label)["label"] == label
    assert sorted(os.listdir(registry.store.path / "blobs")) == [registry.references()[0]["sha256"][:2]]


def test_labels_are_normalized(registry):
    add(registry, 1, " e\u0301 ")
    assert add(registry, 2, "\u00e9")["new_type"] is False
    assert registry.labels == ["\u00e9"]


def test_rename_merge_move_remove(registry):
    for seed, label in enumerate("abcd"):
        add(registry, seed, label)
    registry.rename("a", "z")
    assert registry(blocks(0))[0] == "z"
    with pytest.raises(Conflict, match="merge"):
        registry.rename("z", "b")
    with pytest.raises(NotFound):
        registry.rename("a", "y")
    assert registry.merge("z", "b")["references"] == [1]
    assert registry(blocks(0))[0] == "b" and registry.labels == ["b", "c", "d"]
    assert registry.type("b")["references"] == 2
    with pytest.raises(Conflict, match="itself"):
        registry.merge("b", "b")
    assert registry.move(1, "new")["label"] == "new"
    assert registry(blocks(0))[0] == "new"
    assert registry.remove("c")["references"] == [3]
    assert registry(blocks(2))[0] is None
    with pytest.raises(NotFound):
        registry.remove("c")
    assert registry.remove(reference=4)["label"] == "d"
    assert registry.labels == ["b", "d", "new"] and registry.type("d")["references"] == 0
    with pytest.raises(NotFound, match="removed already"):
        registry.remove(reference=4)
    assert [one["reference"] for one in registry.references(removed=True)] == [3, 4]
    for bad in ({}, dict(label="b", reference=1)):
        with pytest.raises(Invalid):
            registry.remove(**bad)


def state_of(registry):
    return ([(one["type"], one["label"], one["references"], round(one["threshold"], 9)) for one in registry.types()],
            [(one["reference"], one["label"], one["kind"]) for one in registry.references()], round(registry.threshold, 9),
            registry.settings)


def answers_of(registry, queries):
    return [(result["label"], result["score"] and round(result["score"], 5), result["reason"])
            for result in registry.classify(queries)]


@pytest.mark.parametrize("seed", range(4))
def test_undo_brings_every_former_state_back(registry, tmp_path, seed):
    """Random changes, then undone one after the other, newest first: each state, answers included, is the former one again;
    an undone undo is the later one. Another registry, opened anew, says the same at each step."""
    rng, states, queries = random.Random(seed), [], [view_of(kind, 0) for kind in range(5)]
    other = Registry.open(registry.store.path)

    def change():
        labels, ids = registry.labels, [one["reference"] for one in registry.references()]
        choice = rng.choice("add add add unknown rename merge move remove drop threshold margin".split())
        if choice == "add" or not labels:
            registry.add(view_of(rng.randrange(5), rng.randrange(3)), rng.choice("abcde"), force=True)
        elif choice == "unknown":
            registry.add(view_of(rng.randrange(5), rng.randrange(3)), kind="unknown", force=True)
        elif choice == "rename":
            registry.rename(rng.choice(labels), f"n{rng.random()}")
        elif choice == "merge" and len(labels) > 1:
            registry.merge(*rng.sample(labels, 2))
        elif choice == "move" and ids:
            registry.move(rng.choice(ids), rng.choice("abcde"))
        elif choice == "remove":
            registry.remove(rng.choice(labels))
        elif choice == "drop" and ids:
            registry.remove(reference=rng.choice(ids))
        elif choice == "threshold":
            registry.set_threshold(rng.choice([None, 0.5, 0.97]), label=rng.choice([None, *labels]))
        elif choice == "margin":
            registry.set_settings(margin=rng.choice([-1, 0.1, 0.3]))

    def undoable():
        return registry.store.read("SELECT count(*) FROM event WHERE changes != '[]'")

    for _ in range(14):
        before = undoable()
        states.append((state_of(registry), answers_of(registry, queries)))
        change()
        if undoable() == before:  # nothing was there to change, or it was so already
            states.pop()
    last = state_of(registry), answers_of(registry, queries)
    for former in reversed(states):
        registry.undo()
        assert (state_of(registry), answers_of(registry, queries)) == former
        assert answers_of(other, queries) == former[1]
    with pytest.raises(NotFound, match="nothing to undo"):
        registry.undo()
    # The undoings, undone in their turn, newest first, lead to the last state.
    for event in [one["event"] for one in registry.events(limit=1000) if one["what"] == "undo"][::-1]:
        registry.undo(event)
    assert (state_of(registry), answers_of(registry, queries)) == last
    assert answers_of(other, queries) == last[1]
    other.close()


def test_undo_refuses_what_later_events_stand_on(registry):
    first = add(registry, 1, "a")["event"]
    second = add(registry, 3, "a")["event"]
    with pytest.raises(Conflict, match="reference 2 belongs to it"):
        registry.undo(first)
    assert registry.type("a")["references"] == 2
    registry.undo(second)
    renamed = registry.rename("a", "c")["event"]
    again = registry.rename("c", "b")["event"]
    with pytest.raises(Conflict, match=f"event {again} has changed the same type"):
        registry.undo(renamed)
    removed = registry.remove("b")["event"]
    add(registry, 2, "b")
    with pytest.raises(Conflict, match="same name is there again"):
        registry.undo(removed)
    assert registry.labels == ["b"] and registry.references()[0]["reference"] == 3
    with pytest.raises(NotFound):
        registry.undo(99)
    registry.undo()
    registry.undo(removed)
    with pytest.raises(Conflict, match="was undone"):
        registry.undo(removed)
    assert registry.labels == ["b"] and registry.references()[0]["reference"] == 1


def test_a_repeated_request_gives_the_first_answer(registry):
    calls = [lambda key: registry.add(blocks(1), "a", key=key), lambda key: registry.rename("a", "b", key=key),
             lambda key: registry.set_threshold(0.7, key=key), lambda key: registry.move(1, "c", key=key),
             lambda key: registry.merge("b", "c", key=key), lambda key: registry.undo(key=key),
             lambda key: registry.remove(reference=1, key=key)]
    for number, call in enumerate(calls):
        first, events = call(f"key {number}"), len(registry.events())
        assert call(f"key {number}") == json.loads(json.dumps(first)) and len(registry.events()) == events
    with pytest.raises(Conflict, match="another request"):
        registry.add(blocks(2), "a", key="key 0")
    with pytest.raises(Conflict, match="another request"):
        registry.remove("c", key="key 0")


def test_thresholds(registry):
    assert registry.threshold == 0.9  # the table's for 1e-3: few types
    add(registry, 1, "a")
    add(registry, 2, "b")
    registry.set_threshold(0.6)
    assert registry.threshold == 0.6 and registry.type("a")["threshold"] == 0.6
    registry.set_threshold(fpr=1e-2, label="a")
    assert (registry.type("a")["threshold"], registry.type("b")["threshold"]) == (0.8, 0.6)
    registry.set_threshold(label="a")
    registry.set_threshold()
    assert registry.threshold == 0.9 and registry.type("a")["threshold"] == 0.9
    for bad in (dict(value=1.5), dict(value="high"), dict(value=float("nan")), dict(fpr=1e-9), dict(fpr=2),
                dict(value=0.5, fpr=0.1)):
        with pytest.raises(Invalid):
            registry.set_threshold(**bad)
    with pytest.raises(NotFound):
        registry.set_threshold(0.5, label="z")
    # More types than the table's 1e-3 allows for one unknown in twenty: .05 / 60 < 1e-3.
    registry.add_many([(view_of(seed, 0), f"t{seed}") for seed in range(60)])
    assert registry.threshold == 0.95
    registry.undo()
    assert registry.threshold == 0.9


def test_thresholds_that_are_calibrated_anew_reach_every_process(registry, tmp_path, model):
    add(registry, 1, "a")
    with Registry.open(registry.store.path) as other:
        assert registry.threshold == other.threshold == 0.9
        newer = write_model(tmp_path / "m.onnx", METADATA | {"thresholds": {"1e-3": {"threshold": 0.77}}})
        registry.upgrade.add(newer)
        assert registry.threshold == other.threshold == 0.77
    with pytest.raises(Conflict, match="cannot be undone"):
        registry.undo(registry.events(newest=True)[0]["event"])
    assert registry.undo()["undone"] == 1  # the last that can be


def test_settings_embed_again(registry):
    marked = blocks(3)
    add(registry, 3, "a")
    assert registry(np.rot90(marked))[0] is None
    registry.set_settings(orientation="any")
    result, = registry.classify([np.rot90(marked, -1).copy()])
    assert (result["label"], result["orientation"]) == ("a", 90)
    assert len(registry.snapshot().index) == 4
    registry.set_settings(orientation="upright", margin=0.2)
    assert len(registry.snapshot().index) == 1 and registry.snapshot().margin == 0.2
    for bad in (dict(find="sometimes"), dict(orientation="down"), dict(margin=2)):
        with pytest.raises(Invalid):
            registry.set_settings(**bad)
    # Turned references, told by hand.
    registry.add(np.rot90(blocks(5), -1).copy(), "turned", orientation=90, force=True)
    assert registry(blocks(5))[0] == "turned"
    np.testing.assert_allclose(registry.features_of(2, registry.snapshot().model_id), registry.look(blocks(5)).features,
                               atol=1e-6)


def test_corners_by_hand_are_the_document(registry):
    scene = np.full((200, 300, 3), 128, np.uint8)
    scene[40:140, 60:260] = cv2.resize(blocks(7), (200, 100), interpolation=cv2.INTER_NEAREST)
    quad = [[60, 40], [260, 40], [260, 140], [60, 140]]
    added = registry.add(scene, "a", quad=quad)
    assert added["quad"] == quad
    assert registry(blocks(7))[0] == "a"
    assert registry(scene, quad)[0] == "a" and registry(scene)[0] is None
    for bad in ([[0, 0]], "corners", [[0, 0], [1, 0], [1, 1], [0, float("nan")]], quad[::-1]):
        with pytest.raises((Invalid, ImageError)):
            registry.add(scene, "b", quad=bad)


def test_purge_deletes_for_good(registry):
    add(registry, 1, "a")
    add(registry, 2, "a")
    add(registry, 1, "copy")  # the same picture
    registry.remove("a")
    assert registry.purge(time.time() - 60) | {"event": 0} == dict(event=0, references=0, pictures=0)
    assert registry.purge(time.time() + 1) | {"event": 0} == dict(event=0, references=2, pictures=1)
    assert len(list(registry.store.blobs.names())) == 1 and registry(blocks(1))[0] == "copy"
    with pytest.raises(Conflict, match="for good"):
        registry.undo(next(one["event"] for one in registry.events() if one["what"] == "remove"))


def test_paging_and_finding(registry):
    registry.add_many([(view_of(seed, 0), f"Type {seed}") for seed in range(7)])
    first = registry.types(limit=3)
    assert [one["label"] for one in first] == ["Type 0", "Type 1", "Type 2"]
    assert [one["label"] for one in registry.types(after=first[-1]["type"], limit=10)] == [f"Type {n}" for n in range(3, 7)]
    assert [one["label"] for one in registry.types(text="tYPE 5")] == ["Type 5"]
    assert registry.types(text="%") == []
    assert [one["reference"] for one in registry.references(after=2, limit=2)] == [3, 4]
    assert [one["reference"] for one in registry.references("Type 6")] == [7]
    assert [one["what"] for one in registry.events(newest=True)] == ["add"]
    assert [one["score"] for one in registry.search(view_of(2, 0), 3)][0] == pytest.approx(1)
    assert len(registry.search(view_of(2, 0), 100)) == 7


def test_collections_know_nothing_of_each_other(registry, model):
    store = registry.store
    other = store.create("other", model, find="never", orientation="any")
    add(registry, 1, "a")
    assert other(blocks(1)) == (None, None) and other.labels == []
    with pytest.raises(NotFound):
        other.references("a")
    with pytest.raises(NotFound):
        other.reference(1)
    with pytest.raises(NotFound):
        other.undo(1)
    add(other, 1, "b")
    assert other(blocks(1))[0] == "b" and registry(blocks(1))[0] == "a"
    assert [(one["name"], one["types"], one["references"]) for one in store.collections()] == [
        ("default", 1, 1), ("other", 1, 1)]
    assert store.collection("other") is other
    with pytest.raises(Conflict):
        store.create("other", model)
    for name in ("", "a b", "../x", "x" * 65, None, "ü"):
        with pytest.raises(Invalid):
            store.create(name, model)
    with pytest.raises(NotFound, match="default, other"):
        store.collection("third")


def test_a_snapshot_does_not_change(registry):
    add(registry, 1, "a")
    snapshot = registry.snapshot()
    before = snapshot.index.search(registry.look(blocks(1)).features, 5)
    registry.add_many([(view_of(seed, 0), f"t{seed}") for seed in range(50)])
    registry.remove("a")
    after = snapshot.index.search(registry.look(blocks(1)).features, 5)
    for one, two in zip(before, after):
        np.testing.assert_array_equal(one, two)
    assert registry.snapshot().event > snapshot.event


def test_threads_see_whole_states(registry):
    """While one thread adds and removes a type of two pictures as one event, others never see one picture alone."""
    add(registry, 0, "always")
    stop, wrong = threading.Event(), []

    def ask():
        while not stop.is_set():
            first, second = registry.decide([registry.look(view_of(1, 0)), registry.look(view_of(2, 0))])
            if (first["label"], second["label"]) not in ((None, None), ("pair", "pair")):
                wrong.append((first, second))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(25):
        registry.add_many([(view_of(1, 0), "pair"), (view_of(2, 0), "pair")])
        registry.remove("pair")
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_another_process_sees_each_add_at_once(registry, tmp_path):
    """Both ways: what a process has acknowledged is in the other's next answer."""
    code = """
import sys
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/tests"]
from helpers.models import blocks
from inference.registry import Registry
registry = Registry.open(sys.argv[1])
for line in sys.stdin:
    what, seed = line.split()
    print(registry.add(blocks(int(seed)), "t" + seed, force=True)["label"] if what == "add" else
          registry(blocks(int(seed)))[0], flush=True)
"""
    root = str(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    child = subprocess.Popen([sys.executable, "-c", code, str(registry.store.path), root], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)

    def ask(line):
        child.stdin.write(line + "\n")
        child.stdin.flush()
        return child.stdout.readline().strip()

    for seed in range(0, 10, 2):
        assert ask(f"add {seed}") == f"t{seed}" == registry(blocks(seed))[0]
        add(registry, seed + 1, f"t{seed + 1}")
        assert ask(f"classify {seed + 1}") == f"t{seed + 1}"
        registry.remove(f"t{seed}")
        assert ask(f"classify {seed}") == "None"
    child.stdin.close()
    assert child.wait(20) == 0


def test_a_store_moves_and_opens_again(registry, tmp_path):
    add(registry, 1, "a")
    registry.close()
    shutil.move(tmp_path / "store", tmp_path / "moved")
    with Registry.open(tmp_path / "moved") as moved:
        assert moved(blocks(1))[0] == "a" and moved.labels == ["a"]


def test_mistakes_in_one_line(tmp_path, model):
    with pytest.raises(UserError, match="docmetric init"):
        Registry.open(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made there"):
        Registry.open(tmp_path / "file" / "store", create=True, model=model)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "registry.sqlite").write_bytes(b"SQLite format 3\0" + bytes(84))
    with pytest.raises(UserError):
        Registry.open(tmp_path / "other")
    with pytest.raises(UserError):
        Registry.open(tmp_path / "new", create=True, model=tmp_path / "file")
    with Registry.open(tmp_path / "empty", create=True, model=model):
        with pytest.raises(UserError, match="nothing is registered"):
            DocClassifier(register_root=tmp_path / "empty")


def test_docclassifier_refuses_what_a_store_cannot_be_asked(registry, tmp_path):
    add(registry, 1, "a")
    path = registry.store.path
    other = write_model(tmp_path / "other.onnx", METADATA | {"thresholds": TABLE}, mean=0.1)
    for options, reason in ((dict(model=other), "another model"), (dict(orientation="any"), "upright references alone"),
                            (dict(find_references="auto"), "find_references")):
        with pytest.raises(UserError, match=reason):
            DocClassifier(register_root=path, **options)
    assert DocClassifier(register_root=path, threshold=0.99).thresholds == {"a": 0.99}
    registry.set_threshold(0.42)
    assert DocClassifier(register_root=path).threshold == 0.42


def test_damaged_vectors_are_never_searched(registry):
    add(registry, 1, "a")
    with registry.store.write() as db:
        db.execute("UPDATE feature SET crc32 = crc32 + 1")
    with Registry.open(registry.store.path) as again, pytest.raises(Damaged, match="--rebuild"):
        again(blocks(1))


def test_text_that_is_no_utf8_is_damage(registry):
    add(registry, 1, "a")
    with registry.store.write() as db:
        db.execute("UPDATE type SET name = CAST(x'ff41' AS TEXT)")
    with pytest.raises(Damaged, match="no UTF-8"):
        registry.types()


def test_network_disks_and_old_sqlite_are_refused(tmp_path):
    mounts = tmp_path / "mounts"
    for kind, refused in (("nfs4", True), ("cifs", True), ("ext4", False), ("fuse.sshfs", True), ("tmpfs", False)):
        mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nhost:/x {tmp_path} {kind} rw 0 0\n")
        if refused:
            with pytest.raises(UserError, match=f"network disk .{kind}"):
                check_local(tmp_path / "store", str(mounts))
        else:
            check_local(tmp_path / "store", str(mounts))
    for version in ("3.40.1", "3.51.2", "3.7.17"):
        with pytest.raises(UserError, match="apsw 3.51.3"):
            check_sqlite(version)
    for version in ("3.51.3", "3.54.1", "4.0.0"):
        check_sqlite(version)


def test_ids_of_rows_leave_room_for_all_views(registry):
    assert PARTS >= 2 * 4  # two views, four turns


def test_stores_close(tmp_path, model):
    with Store(tmp_path / "store", create=True) as store:
        store.create("default", model)
    with Store(tmp_path / "store") as store:
        assert [one["name"] for one in store.collections()] == ["default"]


def test_nothing_of_what_was_deleted_for_good_is_left(registry, model):
    """Not in rows, not in the free pages of the file or its log, not in events, not in decisions; and no id comes again."""
    with Registry.open(registry.store.path) as other:
        kept = add(registry, 1, "kept")
        secret = add(registry, 2, "Secretlabel", source="Secretsource", key="Secretkey")
        unknown = registry.add(blocks(3), kind="unknown", source="Secretunknown", force=True)
        registry.set_threshold(.6, label="Secretlabel")
        for result in other.classify([blocks(1), blocks(2), blocks(3)]):
            registry.traffic.record(result)
        registry.traffic.feedback(registry.traffic.decisions()[0]["decision"], False, "Secretlabel")
        registry.remove("Secretlabel")
        registry.remove(reference=unknown["reference"])
        assert other.classify([blocks(2)])[0]["label"] is None and len(registry.traffic.decisions()) == 3
        registry.purge(time.time() + 1)
        assert [result["label"] for result in other.classify([blocks(1), blocks(2), blocks(3)])] == ["kept", None, None]
        assert other.snapshot().threshold == registry.snapshot().threshold
    assert registry.store.read("SELECT name FROM type") == [("kept",)] and registry.traffic.decisions() == []
    for file in ("registry.sqlite", "registry.sqlite-wal"):
        content = (registry.store.path / file).read_bytes()
        for word in (b"Secretlabel", b"Secretsource", b"Secretunknown", secret["sha256"].encode()):
            assert word not in content, (file, word)
    for event in registry.events():
        if event["what"] == "add" and event["event"] != kept["event"]:
            assert event["text"] == "deleted for good"
            with pytest.raises(Conflict, match="for good"):
                registry.undo(event["event"])
    with pytest.raises(Conflict, match="deleted for good"):
        add(registry, 2, "Secretlabel", source="Secretsource", key="Secretkey")
    again = add(registry, 4, "new")
    assert again["reference"] > unknown["reference"] and again["type"] > secret["type"]


def test_deleting_for_good_looks_at_no_row_twice(registry):
    """Each row that goes is looked for in the tables that refer to it: by an index, or 1e5 types would take hours."""
    indexed = {"reference": set(), "type": set()}
    tables = [row[0] for row in registry.store.read("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    for table in tables:
        for key in registry.store.read(f"SELECT \"table\", \"from\" FROM pragma_foreign_key_list('{table}')"):
            if key[0] in indexed and table != "threshold":  # of those there are few
                first = registry.store.read(f"SELECT 1 FROM pragma_index_list('{table}') l, pragma_index_info(l.name) i "
                                            "WHERE i.seqno = 0 AND i.name = ? AND NOT l.partial", (key[1],))
                assert first, (table, key)
                indexed[key[0]].add(table)
    assert indexed == {"reference": {"feature", "look_alike"}, "type": {"reference"}}


def test_a_reference_that_another_process_removed_in_the_meantime(registry):
    """Between looking it up and changing it: one line, and it is removed once."""
    look_up = registry.reference
    for change in (lambda number: registry.remove(reference=number), lambda number: registry.move(number, "b")):
        for gone in (lambda number: registry.store.collection("default").remove("a"),
                     lambda number: (registry.remove("a"), registry.purge(time.time() + 1))):
            number = add(registry, 1, "a")["reference"]

            def slow(asked, gone=gone):
                row = look_up(asked)
                registry.reference = look_up
                gone(asked)
                return row

            registry.reference = slow
            with pytest.raises(NotFound, match="removed"):
                change(number)
    assert registry.labels == []


def test_an_image_that_is_embedded_while_another_model_is_activated(registry, tmp_path):
    """The first model was in use before, so that it is active again in a moment, and then has no vector of the image."""
    first = registry.models()[0]["hash"]
    second = registry.upgrade.add(write_model(tmp_path / "second.onnx", METADATA | {"thresholds": TABLE}, mean=0.3))
    registry.upgrade.activate(second)
    prepare, calls = registry.prepare, []

    def slow(*arguments, **options):
        made = prepare(*arguments, **options)
        if not calls:
            calls.append(registry.upgrade.activate(first))
        return made

    registry.prepare = slow
    registry.add(blocks(1), "a")
    assert registry(blocks(1)) == ("a", pytest.approx(1)) and calls[0]["former"] == second
    calls.clear()
    registry.upgrade.activate(second)
    assert registry.inspect(blocks(1), "a")["findings"]
    look = registry.look(blocks(1))
    registry.upgrade.activate(second)
    assert registry.decide([look])[0]["label"] == "a"


def test_a_threshold_is_never_set_for_another_model(registry, tmp_path, monkeypatch):
    second = registry.upgrade.add(write_model(tmp_path / "second.onnx", METADATA | {"thresholds": TABLE}, mean=0.3))
    registry.upgrade.build(second)
    snapshot = registry.snapshot()
    registry.upgrade.activate(second)
    registry.snapshot = lambda: snapshot  # what was so when it was asked
    with pytest.raises(UserError, match="another model"):
        registry.set_threshold(.5)
    assert [one["threshold"] for one in registry.models()] == [None, None]


def test_types_that_look_alike_have_a_higher_threshold_unless_one_is_given(registry):
    for label in "ab":
        add(registry, 1, label)
    add(registry, 2, "c")
    of = lambda: [one["threshold"] for one in registry.types()]
    automatic = registry.threshold
    assert of() == [pytest.approx(automatic + .25 * (1 - automatic))] * 2 + [automatic]
    answer = registry.set_threshold("suggestion")
    now = registry.suggest_threshold()["threshold"]
    assert answer["threshold"] == registry.threshold == now and not registry.snapshot().automatic
    assert of() == [pytest.approx(now + .25 * (1 - now))] * 2 + [now]
    registry.set_threshold(.7)
    assert of() == [.7] * 3
    with pytest.raises(Invalid, match="for all types"):
        registry.set_threshold("suggestion", label="a")
    with pytest.raises(Invalid, match="number between 0 and 1"):
        registry.set_threshold("high")
    for target in (5e-324, 0, 1, float("nan")):
        with pytest.raises(Invalid, match="target"):
            registry.suggest_threshold(target=target)


def test_an_engine_that_is_ahead_of_what_this_process_has_read(registry, monkeypatch):
    """As PostgreSQL, which all processes share: another one has added a type, and then removed all, since."""
    add(registry, 1, "a")
    old = registry.snapshot()
    with Registry.open(registry.store.path) as other:
        add(other, 2, "b")
        ahead = old._replace(index=other.snapshot().index, types=dict(old.types))
        monkeypatch.setattr(registry, "snapshot", lambda: ahead.types.update(other.snapshot().types) or ahead)
        looks = [registry.look(blocks(2))]
        ahead.types.pop(2, None)
        assert registry.decide(looks, snapshot=ahead)[0]["label"] == "b"

        class Emptied:
            exact, recall = True, None
            __len__ = lambda self: 1
            search = lambda self, queries, k: other.snapshot().index.search(queries, k)

        other.remove("a"), other.remove("b")
        assert registry.decide(looks, snapshot=ahead._replace(index=Emptied()))[0]["reason"] == "empty"


def test_look_alikes_that_come_one_by_one_are_those_of_a_fresh_start(registry):
    """Known pairs are kept and new ones added to them; what was removed, undone or purged goes."""
    rng = random.Random(0)

    def expected():
        with Registry.open(registry.store.path) as fresh:
            snapshot = fresh.snapshot()
            return sorted(snapshot.look_alikes), snapshot.thresholds

    for step in range(30):
        near = np.clip(blocks(rng.randrange(3)).astype(int) + rng.randrange(4), 0, 255).astype(np.uint8)
        registry.add(near, f"t{step}", force=True)
        if step % 5 == 2:
            registry.remove(rng.choice(registry.labels))
        if step % 7 == 3:
            registry.undo()
        if step % 10 == 9:
            registry.purge(time.time() + 1)
        snapshot = registry.snapshot()
        assert (sorted(snapshot.look_alikes), snapshot.thresholds) == expected()
        assert [row[2] for row in snapshot.look_alikes] == sorted((row[2] for row in snapshot.look_alikes), reverse=True)
    assert len(snapshot.look_alikes) > 5
