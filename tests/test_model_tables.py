"""The tables of thresholds that calibration writes into a model's file: of one collection each, the network is of all."""
import contextlib
import os
import time

import numpy as np
import pytest

from inference.classify import DocClassifier
from inference.errors import UserError
from inference.model import load_model
from inference.registry import Registry, Store
from inference.registry.check import ORPHAN, check
from inference.registry.errors import Conflict, Damaged, NotFound, Outdated, StoreFull
from inference.registry.files import DATABASE
from inference.registry.keys import SCOPES, Keys
from inference.registry.schema import open_database
from inference.registry.store import Change
from inference.registry.tables import NO_TABLES, tables_of, with_tables
from tests.helpers.models import METADATA, write_model
from tests.helpers.registries import make_registry, model_file, noisy
from tests.helpers.serving import request, serving


@pytest.fixture
def two(tmp_path):
    """Two collections with the same network, and the thresholds of one file: .8, without a gap."""
    with make_registry(tmp_path, types=4, references=2) as first:
        second = first.store.create("second", tmp_path / "tiny.onnx", find="never")
        second.add_many([(noisy(kind, 0), f"type {kind}") for kind in range(3)])
        yield first, second


@pytest.fixture
def calibrated(tmp_path):
    """The same network with other thresholds: .91, and a gap of .02."""
    return model_file(tmp_path / "calibrated.onnx", threshold=.91, margin=.02)


def said(registry):
    """All that follows from the tables of the active model."""
    snapshot = registry.snapshot()
    digest = snapshot.model_hash
    fpr = registry.set_threshold(fpr=1e-4)["threshold"]
    registry.undo()
    return (registry.threshold, snapshot.margin, snapshot.warnings, registry.model.threshold_at(1e-3), registry.model.margin,
            registry.model_of(snapshot.model_id).threshold_at(1e-2), fpr, registry.suggest_threshold()["threshold"],
            registry.suggest_threshold(digest=digest)["threshold"], registry.upgrade.report(digest)["threshold"]["new"],
            registry.decide([registry.look(noisy(2, 3))])[0]["threshold"])


@pytest.mark.parametrize("who", [0, 1])
def test_thresholds_calibrated_for_one_collection_are_its_own(two, calibrated, who):
    changed, other = two[who], two[1 - who]
    before, file = said(other), changed.store.model_path(changed.snapshot().model_hash)
    kept = file.read_bytes()
    with Registry.open(other.store.path, other.name) as elsewhere:
        assert changed.upgrade.add(calibrated) == other.snapshot().model_hash == changed.snapshot().model_hash
        assert said(changed) == (.91, .02, (), .91, .02, .91, .91, .91, .91, .91, .91)
        assert said(other) == before == said(elsewhere) == (.8, 0, (), .8, 0, .8, .8, .8, .8, .8, .8)
    assert file.read_bytes() == kept  # whatever is in it, the network is the same
    for opened, threshold in ((changed, .91), (other, .8)):
        with Registry.open(opened.store.path, opened.name) as again:
            assert again.threshold == threshold


def test_a_collection_takes_the_thresholds_of_the_file_that_it_was_made_with(two, calibrated):
    first, second = two
    third = first.store.create("third", calibrated, find="never")
    assert [one.threshold for one in (first, second, third)] == [.8, .8, .91]
    assert len(list((first.store.path / "models").iterdir())) == 1


def test_what_was_calibrated_goes_back_and_forth(two, calibrated, tmp_path):
    first = two[0]
    never = write_model(tmp_path / "never.onnx")  # the same network, which nobody has calibrated
    for path, threshold in ((calibrated, .91), (tmp_path / "tiny.onnx", .8), (never, .75), (calibrated, .91)):
        first.upgrade.add(path)
        assert first.threshold == threshold and len(first.models()) == 1
        assert first.models()[0]["name"] == path.name


def test_a_model_beside_has_tables_of_each_collection(two, tmp_path):
    for registry, threshold in zip(two, (.61, .66)):
        digest = registry.upgrade.add(model_file(tmp_path / "other.onnx", threshold, mean=.6))
        registry.upgrade.build(digest)
    for registry, threshold in zip(two, (.61, .66)):
        assert registry.upgrade.report(digest)["threshold"] == {"active": .8, "new": threshold}
        registry.upgrade.activate(digest)
        assert registry.threshold == threshold == registry.model.threshold_at(1e-3)
    two[0].upgrade.add(model_file(tmp_path / "other.onnx", .7, mean=.6))
    assert [registry.threshold for registry in two] == [.7, .66]


def test_the_network_is_loaded_once(two, calibrated):
    two[0].upgrade.add(calibrated)
    assert two[0].model is not two[1].model and two[0].model.session is two[1].model.session
    assert two[0].model is two[0].model


def test_a_store_as_a_classifier_has_the_thresholds_of_its_collection(two, calibrated):
    first, second = two
    second.upgrade.add(calibrated)
    for registry, threshold, margin in ((second, .8, 0), (first, .91, .02)):  # the default collection is the first one
        classifier = DocClassifier(register_root=first.store.path)
        assert classifier.threshold == threshold and classifier.margin == margin
        assert DocClassifier(register_root=first.store.path, fpr=1e-3).threshold == threshold
        first.upgrade.add(calibrated)


def test_the_admin_of_one_collection_changes_no_other_over_http(two, calibrated):
    store = two[0].store
    with Keys(store) as keys:
        own = {name: keys.add(f"admin of {name}", SCOPES, [name])["key"] for name in ("default", "second")}
    with serving(store.path) as url:
        def threshold(name):
            answer = request(url, "GET", f"/v1/collections/{name}/threshold", key=own[name]).json
            return answer["threshold"], answer["margin"]

        for name, other, file, expected in (
                ("second", "default", calibrated, {"second": (.91, .02), "default": (.8, 0)}),
                ("default", "second", calibrated, {"second": (.91, .02), "default": (.91, .02)}),
                ("default", "second", store.path.parent / "tiny.onnx", {"second": (.91, .02), "default": (.8, 0)})):
            assert request(url, "POST", f"/v1/collections/{other}/models", file.read_bytes(), key=own[name]).status == 403
            assert request(url, "POST", f"/v1/collections/{name}/models", file.read_bytes(), key=own[name]).status == 201
            assert {one: threshold(one) for one in own} == expected


# ---- files and rows ----

def test_a_damaged_file_is_mended_by_adding_the_model_again(two, calibrated):
    first, second = two
    file = first.store.model_path(first.snapshot().model_hash)
    file.write_bytes(file.read_bytes()[:-1])
    for registry in two:
        with pytest.raises(Damaged, match="export it again"):
            registry(noisy(1, 1))
    second.upgrade.add(calibrated)
    assert first(noisy(1, 1))[0] == "type 1" == second(noisy(1, 1))[0]
    assert (first.threshold, second.threshold) == (.8, .91)


def test_a_model_that_another_process_removes_while_it_is_added(two, tmp_path, monkeypatch):
    first, second = two
    path = model_file(tmp_path / "other.onnx", mean=.6)
    digest, write = first.upgrade.add(path), Store.write

    @contextlib.contextmanager
    def late(store):
        if registry := removing.pop() if removing else None:
            registry.upgrade.remove(digest)
        with write(store) as db:
            yield db

    monkeypatch.setattr(Store, "write", late)
    removing = [first]
    with pytest.raises(Outdated, match="try again"):
        second.upgrade.add(path)
    assert len(second.models()) == 1 and not first.store.model_path(digest).exists()
    second.upgrade.add(path)
    removing = [second]
    with pytest.raises(Outdated, match="try again"):
        first.store.create("third", path)
    with pytest.raises(NotFound):
        first.store.collection("third")


def test_a_model_that_is_not_registered_is_deleted(two, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise StoreFull("no room")

    store, other = two[0].store, model_file(tmp_path / "other.onnx", mean=.6)
    for path in (other, tmp_path / "tiny.onnx"):
        with pytest.raises(Conflict, match="is there already"):
            store.create("second", path)
        with monkeypatch.context() as patch, pytest.raises(StoreFull):
            patch.setattr(store, "insert_model", refuse)
            patch.setattr(Change, "set", refuse)
            two[0].upgrade.add(path)
        assert [file.stem for file in (store.path / "models").iterdir()] == [two[0].snapshot().model_hash]


def test_a_model_that_a_killed_process_left_is_deleted_after_an_hour(two, tmp_path):
    store = two[0].store
    with store.kept_model(model_file(tmp_path / "other.onnx", mean=.6)) as (digest, *_):
        pass
    used, left = store.model_path(two[0].snapshot().model_hash), store.model_path(digest)
    assert check(store)["swept"] == [] and left.exists()
    for path in (used, left):
        os.utime(path, (time.time() - 2 * ORPHAN,) * 2)
    assert check(store)["swept"] == [left.name] and used.exists() and check(store)["ok"]


def test_tables_are_what_the_file_says(tmp_path):
    shipped = load_model("inference/models/docmetric.onnx")
    network = with_tables(shipped, NO_TABLES)
    assert network.lowest_rate() is None and network.margin == 0 and network.session is shipped.session
    again = with_tables(network, tables_of(shipped))
    for rate in (1, 1e-1, 3e-2, 1e-3, 1e-4, 1e-5, 1e-9):
        for orientation in ("upright", "any"):
            assert again.threshold_at(rate, orientation) == shipped.threshold_at(rate, orientation)
    assert again.margin == shipped.margin
    assert tables_of(load_model(write_model(tmp_path / "never.onnx"))) == NO_TABLES
    image = np.full((1, shipped.image_size, shipped.image_size, 3), 90, np.uint8)
    assert np.array_equal(again.embed(image), shipped.embed(image))


def test_tables_without_end_are_refused(two, tmp_path):
    rates = {f"{number}e-5": {"threshold": .5} for number in range(1, 5000)}
    path = write_model(tmp_path / "long.onnx", METADATA | {"thresholds": rates})
    with pytest.raises(UserError, match="more than the limit") as error:
        two[0].upgrade.add(path)
    assert "\n" not in str(error.value) and two[0].threshold == .8


@pytest.mark.parametrize("tables", ["", "{", "[]", "5", '{"thresholds": 5}', '{"thresholds": {"x": 1}}', '{"margin": "x"}'])
def test_damaged_tables_are_one_line(two, tables):
    store = two[0].store
    with store.write() as db:
        db.execute("UPDATE model SET tables = ? WHERE collection = ?", (tables, two[0].id))
    with pytest.raises(Damaged, match="docmetric model add") as error:
        two[0].threshold
    assert "\n" not in str(error.value)
    assert two[1].threshold == .8
    report = check(store)
    assert not report["ok"] and any("thresholds" in line for line in report["problems"])
    two[0].upgrade.add(store.path.parent / "tiny.onnx")
    assert two[0].threshold == .8 and check(store)["ok"]


def test_a_database_that_lost_the_row_of_a_model_takes_the_thresholds_of_its_file(two):
    path = two[0].store.path
    two[0].store.close()
    with contextlib.closing(open_database(path / DATABASE)) as db:
        db.pragma("foreign_keys", False)
        db.execute("DELETE FROM model WHERE collection = ?", (two[0].id,))
    assert not check(path)["ok"]
    assert f"the model of collection {two[0].id}: its row was lost" in check(path, rebuild=True)["problems"]
    with Registry.open(path) as registry:
        assert registry.threshold == .8 and registry(noisy(1, 1))[0] == "type 1"
