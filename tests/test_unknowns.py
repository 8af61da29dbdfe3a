"""Rejected pictures in groups, and what one name for some of them explains."""
import sys
import time

import cv2
import numpy as np
import pytest

from inference.errors import UserError
from inference.registry.errors import Invalid, NotFound, Refused
from inference.registry.unknowns import central, group
from tests.helpers.registries import make_registry, model_file, noisy, png, turned


@pytest.fixture
def registry(tmp_path):
    with make_registry(tmp_path, types=3) as registry:
        registry.traffic.keep_unknown = 60
        yield registry


def ask(registry, *images):
    """Ids of the unknowns that came of these pictures."""
    before = {one["id"] for one in registry.unknowns.list(limit=10_000)}
    for image in images:
        look = registry.look(image)
        registry.traffic.record(registry.decide([look], 2)[0], look, image)
    return sorted({one["id"] for one in registry.unknowns.list(limit=10_000)} - before)


def sibling(kind, number, share=.25, noise=8):
    """The file of a picture of a type that looks like `kind`: every fourth or so of its blocks is another color."""
    colors, rng = np.random.default_rng(kind).integers(0, 256, (4, 4, 3)), np.random.default_rng([kind, 999])
    blocks = rng.permutation(16)[:round(16 * share)]
    colors.reshape(16, 3)[blocks] = rng.integers(0, 256, (len(blocks), 3))
    colors = np.clip(colors + np.random.default_rng([kind, 7, number]).normal(0, noise, colors.shape), 0, 255)
    return png(colors.astype(np.uint8).repeat(16, 0).repeat(16, 1))


# ---------------------------------------------------------------- groups
@pytest.mark.parametrize("seed", range(6))
def test_every_two_of_a_group_are_within_the_threshold(seed):
    """No mega-clusters: random scores, as wild as they come; and every row is in one group."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((60, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = ((vectors @ vectors.T + 1) / 2).astype(np.float32)
    for threshold in (.5, .8, .95):
        groups = group(scores, threshold)
        assert sorted(row for one in groups for row in one) == list(range(60))
        assert all(scores[np.ix_(one, one)].min() >= threshold for one in groups)
        assert [len(one) for one in groups] == sorted(map(len, groups), reverse=True)


def test_a_chain_of_pictures_is_not_one_group():
    """Each is like the next one, the first and the last are not alike: single linkage would join all."""
    angles = np.radians(np.arange(0, 90, 5))
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    scores = ((vectors @ vectors.T + 1) / 2).astype(np.float32)
    groups = group(scores, .99)
    assert len(groups) > 1 and all(scores[np.ix_(one, one)].min() >= .99 for one in groups)


def test_a_score_equal_to_the_threshold_is_within():
    scores = np.float32([[1, .75, .2], [.75, 1, .2], [.2, .2, 1]])
    assert group(scores, .75) == [[0, 1], [2]] and group(scores, np.nextafter(.75, 1)) == [[0], [1], [2]]
    assert group(np.zeros((0, 0), np.float32), .5) == [] and group(np.ones((1, 1), np.float32), .5) == [[0]]
    assert group(np.ones((5, 5), np.float32), 1.0) == [[0, 1, 2, 3, 4]]


def test_central_pictures_cover_the_others():
    points = np.array([0., 1, 2, 10, 11])
    scores = 1 - np.abs(points[:, None] - points) / 20
    assert central(scores, 1) == [2] and set(central(scores, 2)) == {2, 4} and len(central(scores, 9)) == 5


def test_pictures_that_look_alike_are_a_cluster(registry):
    first = ask(registry, *(noisy(7, number) for number in range(1, 6)))
    second = ask(registry, *(noisy(8, number) for number in range(1, 4)))
    alone = ask(registry, noisy(9, 1))
    clusters = registry.unknowns.clusters()
    assert [one["ids"] for one in clusters] == [first, second, alone] and [one["size"] for one in clusters] == [5, 3, 1]
    for one, images in zip(clusters, ([noisy(7, n) for n in range(1, 6)], [noisy(8, n) for n in range(1, 4)])):
        looks = np.concatenate([registry.look(image).features for image in images])
        scores = (looks @ looks.T + 1) / 2
        assert one["score"] == pytest.approx(scores.min(), abs=1e-6)
        assert one["cover"] == one["ids"][scores.mean(axis=1).argmax()]
        nearest = registry.decide([registry.look(images[one["ids"].index(one["cover"])])], 1)[0]["top_k"][0]
        assert one["suggestion"] == pytest.approx(dict(type=nearest["type"], label=nearest["label"], score=nearest["score"]))
    assert clusters[2]["score"] is None
    assert len(registry.unknowns.clusters(.999)) == 9 and len(registry.unknowns.clusters(0)) < 3
    with pytest.raises(Invalid):
        registry.unknowns.clusters(1.5)


def test_types_that_look_alike_stay_apart(registry):
    """All pictures of the two are within the threshold of each other."""
    one = ask(registry, *(noisy(7, number, noise=8) for number in range(1, 6)))
    other = ask(registry, *(sibling(7, number) for number in range(1, 6)))
    looks = np.concatenate([registry.look(registry.unknowns.picture(unknown)).features for unknown in one + other])
    assert ((looks @ looks.T + 1) / 2).min() >= registry.threshold
    assert sorted(cluster["ids"] for cluster in registry.unknowns.clusters()) == [one, other]
    answer = registry.unknowns.resolve(one, "seven", force=True)
    assert answer["resolved"] == one and answer["left"] == []
    cluster, = registry.unknowns.clusters()
    assert cluster["ids"] == other and cluster["suggestion"]["label"] == "seven"
    assert registry.unknowns.resolve(other, "seven b", force=True)["resolved"] == other
    assert registry(sibling(7, 50))[0] == "seven b" and registry(noisy(7, 50, noise=8))[0] == "seven"


def test_documents_that_lie_any_way_up_are_one_cluster(tmp_path):
    with make_registry(tmp_path, types=3, orientation="any") as registry:
        registry.traffic.keep_unknown = 60
        ids = ask(registry, *(turned(noisy(7, number), number) for number in range(1, 5)))
        cluster, = registry.unknowns.clusters()
        assert cluster["ids"] == ids and cluster["score"] > .9
        assert registry.unknowns.resolve(ids[:1], "seven", force=True)["resolved"] == ids


def test_without_pictures_there_is_nothing(registry):
    assert registry.unknowns.list() == registry.unknowns.clusters() == []
    assert registry.unknowns.would_resolve(registry.look(noisy(7, 1)).features) == []
    with pytest.raises(NotFound):
        registry.unknowns.resolve([1], "seven")
    assert not (registry.store.path / "traffic.sqlite").exists()


def test_an_empty_registry_has_unknowns_too(tmp_path):
    with make_registry(tmp_path) as registry:
        registry.traffic.keep_unknown = 60
        ids = ask(registry, noisy(7, 1), noisy(7, 2))
        cluster, = registry.unknowns.clusters()
        assert cluster["ids"] == ids and cluster["suggestion"] is None
        assert registry.unknowns.list()[0]["score"] is None
        registry.unknowns.resolve(ids, "seven", force=True)
        assert registry(noisy(7, 3))[0] == "seven"


def test_without_scikit_learn_the_way_out_is_told(registry, monkeypatch):
    ask(registry, noisy(7, 1), noisy(7, 2))
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match="pip install"):
        registry.unknowns.clusters()
    assert registry.unknowns.would_resolve(registry.look(noisy(7, 3)).features) == []
    assert len(registry.unknowns.list()) == 2 and registry.unknowns.picture(1) == noisy(7, 1)


def test_only_the_newest_are_compared(registry, monkeypatch):
    monkeypatch.setattr("inference.registry.unknowns.MOST", 3)
    ids = ask(registry, *(noisy(7, number) for number in range(1, 6)))
    assert registry.unknowns.clusters()[0]["ids"] == ids[2:]


def test_clusters_are_computed_again_only_where_something_changed(registry, monkeypatch):
    ids = ask(registry, *(noisy(7, number) for number in range(1, 4)))
    calls = []
    monkeypatch.setattr("inference.registry.unknowns.group", lambda *given: calls.append(given) or group(*given))
    for _ in range(3):
        assert registry.unknowns.clusters()[0]["ids"] == ids
    assert len(calls) == 1
    more = ask(registry, noisy(7, 9))
    assert registry.unknowns.clusters()[0]["ids"] == ids + more and len(calls) == 2
    registry.unknowns.remove(ids[0])
    assert registry.unknowns.clusters()[0]["ids"] == ids[1:] + more and len(calls) == 3


# ---------------------------------------------------------------- resolving
def test_naming_one_resolves_all_that_it_explains(registry):
    ids = ask(registry, *(noisy(7, number) for number in range(1, 15)))
    others = ask(registry, *(noisy(8, number) for number in range(1, 4)))
    said = registry.unknowns.resolve(ids[:1], "seven", dry_run=True)
    assert (said["references"], said["pictures"], said["resolved"], said["left"]) == ([], ids[:1], ids, [])
    assert "seven" not in registry.labels and len(registry.unknowns.list()) == 17
    features = registry.inspect(registry.unknowns.picture(ids[0]))["vectors"]
    assert registry.unknowns.would_resolve(features) == registry.unknowns.would_resolve(features, "type 0") == ids
    answer = registry.unknowns.resolve(ids[:1], "seven", who="Ana", force=True)
    assert answer["resolved"] == ids and len(answer["references"]) == len(answer["events"]) == 1
    reference = registry.reference(answer["references"][0])
    assert (reference["label"], reference["who"], reference["source"]) == ("seven", "Ana", "unknown")
    assert registry.picture(reference["reference"]) == noisy(7, 1)
    assert [one["id"] for one in registry.unknowns.list()] == others
    kept = [path for path in registry.traffic.file.pictures.folder.rglob("*") if path.is_file()]
    assert len(kept) == len(others)  # the pictures are gone with their names
    assert all(registry(noisy(7, number))[0] == "seven" for number in range(1, 30))


def test_the_most_central_picture_is_registered(registry):
    images = [noisy(7, 1, noise=60), noisy(7, 0), noisy(7, 2, noise=60)]
    ids = ask(registry, *images)
    answer = registry.unknowns.resolve(ids, "seven", force=True)
    assert answer["pictures"] == [ids[1]] and registry.picture(answer["references"][0]) == images[1]


def test_several_references_are_those_that_differ_most(registry):
    near = [noisy(7, number, noise=5) for number in range(1, 5)]
    far = sibling(7, 1, noise=0)
    ids = ask(registry, *near, far)
    answer = registry.unknowns.resolve(ids, "seven", references=2, force=True)
    assert len(answer["references"]) == 2 and ids[-1] in answer["pictures"] and answer["resolved"] == ids
    assert registry.type("seven")["references"] == 2


def test_what_the_references_do_not_explain_stays(registry):
    ids = ask(registry, *(noisy(7, number) for number in range(1, 4)), noisy(8, 1))
    answer = registry.unknowns.resolve(ids, "seven", force=True)
    assert answer["resolved"] == ids[:3] and answer["left"] == ids[3:]
    assert [one["id"] for one in registry.unknowns.list()] == ids[3:]
    with pytest.raises(NotFound):
        registry.unknowns.resolve(ids[:3], "seven")


def test_a_reference_that_is_registered_elsewhere_resolves_too(registry):
    ids = ask(registry, *(noisy(7, number) for number in range(1, 4)))
    other = ask(registry, noisy(8, 1))
    assert len(registry.unknowns.clusters()) == 2
    registry.add(noisy(7, 0), "seven", force=True)
    assert [cluster["ids"] for cluster in registry.unknowns.clusters()] == [other]
    assert [one["id"] for one in registry.unknowns.list()] == other and ids
    event = registry.add(noisy(8, 0), "eight", force=True)["event"]
    registry.undo(event)  # before anybody looked
    assert [cluster["ids"] for cluster in registry.unknowns.clusters()] == [other]


def test_known_unknowns_resolve_and_reject_from_then_on(registry):
    ids = ask(registry, *(noisy(7, number) for number in range(1, 4)))
    answer = registry.unknowns.resolve(ids, kind="unknown", force=True)
    assert answer["resolved"] == ids and registry.reference(answer["references"][0])["kind"] == "unknown"
    assert ask(registry, noisy(7, 8)) == []  # rejected, and nobody is asked again
    for wrong in (dict(label="seven", kind="unknown"), dict(label=None), dict(label="seven", references=0)):
        with pytest.raises(Invalid):
            registry.unknowns.resolve([1], **wrong)


def test_what_was_removed_does_not_return(registry):
    ids = ask(registry, noisy(7, 1), noisy(7, 2))
    registry.unknowns.remove(ids[0])
    with pytest.raises(NotFound):
        registry.unknowns.remove(ids[0])
    assert ask(registry, noisy(7, 1)) == [] and [one["id"] for one in registry.unknowns.list()] == ids[1:]
    # As long as such pictures are kept; then the hash of it is deleted too.
    registry.traffic.file.sweep(time.time() + 120)
    assert len(ask(registry, noisy(7, 1))) == 1


def test_the_gate_is_asked_once_and_can_be_forced(registry):
    blurred = cv2.GaussianBlur(cv2.imdecode(np.frombuffer(noisy(7, 1), np.uint8), cv2.IMREAD_COLOR), (0, 0), 12)
    ids = ask(registry, png(blurred))
    with pytest.raises(Refused) as caught:
        registry.unknowns.resolve(ids, "seven")
    assert caught.value.findings and [one["id"] for one in registry.unknowns.list()] == ids
    assert registry.unknowns.resolve(ids, "seven", force=True)["resolved"] == ids


def test_a_type_with_a_threshold_of_its_own_explains_less(registry):
    ids = ask(registry, *(noisy(7, number) for number in range(1, 6)))
    registry.add(noisy(12, 0), "strict", force=True)
    registry.set_threshold(.999, label="strict")
    assert registry.unknowns.resolve(ids, "strict", dry_run=True)["resolved"] == [
        registry.unknowns.resolve(ids, "strict", dry_run=True)["pictures"][0]]
    assert registry.unknowns.resolve(ids, "other", dry_run=True)["resolved"] == ids


def test_after_a_change_of_the_model_they_are_embedded_again(registry, tmp_path):
    ids = ask(registry, *(noisy(7, number) for number in range(1, 4)))
    before = registry.unknowns.clusters()[0]["score"]
    digest = registry.upgrade.add(model_file(tmp_path / "other.onnx", mean=.6))
    registry.upgrade.build(digest)
    registry.upgrade.activate(digest)
    cluster, = registry.unknowns.clusters()
    looks = np.concatenate([registry.look(noisy(7, number)).features for number in range(1, 4)])
    assert cluster["ids"] == ids and cluster["score"] == pytest.approx(((looks @ looks.T + 1) / 2).min(), abs=1e-6) != before


def test_corners_given_by_hand_go_along(registry):
    canvas = np.zeros((200, 200, 3), np.uint8)
    canvas[50:150, 60:160] = cv2.resize(cv2.imdecode(np.frombuffer(noisy(7, 1), np.uint8), cv2.IMREAD_COLOR), (100, 100),
                                        interpolation=cv2.INTER_NEAREST)
    quad, image = [[60, 50], [160, 50], [160, 150], [60, 150]], png(canvas)
    look = registry.look(image, quad)
    registry.traffic.record(registry.decide([look], 2)[0], look, image)
    answer = registry.unknowns.resolve([registry.unknowns.list()[0]["id"]], "seven", force=True)
    assert registry.reference(answer["references"][0])["quad"] == quad and registry(noisy(7, 2))[0] == "seven"
