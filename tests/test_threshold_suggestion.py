"""The suggested threshold: against a plain loop over all pairs, and against what the registry then decides."""
import numpy as np
import pytest

from inference.registry.compare import Pictures, decided, pictures, rank
from inference.registry.errors import Invalid
from inference.registry.index import Rows
from inference.registry.state import PARTS
from inference.registry.threshold import NEVER, SAMPLED, fewest, interval, lowest, observe
from inference.thresholds import UNKNOWN_LABELED, choose_threshold, raised
from tests.helpers.registries import make_registry, noisy


# ---------------------------------------------------------------- intervals
@pytest.mark.parametrize("count, total", [(0, 1), (1, 1), (0, 72), (3, 10), (10, 10), (5, 1000), (999, 1000), (40, 5000)])
def test_intervals_are_those_of_scipy(count, total):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(count, total).proportion_ci(.95, "exact")
    found = interval(count, total)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert (found["rate"], found["count"], found["of"]) == (count / total, count, total)


def test_nothing_has_no_interval_and_the_fewest_just_suffice():
    assert interval(0, 0) is None
    for target in (.5, .05, .01):
        assert interval(0, fewest(target))["high"] <= target < interval(0, fewest(target) - 1)["high"]
    assert fewest(.05) == 72


@pytest.mark.parametrize("seed", range(5))
def test_the_lowest_threshold_is_the_lowest(seed):
    rng = np.random.default_rng(seed)
    scores = np.round(rng.beta(8, 4, 400).astype(np.float32), 3)  # many are equal
    for target in (.3, .05, .01):
        value = lowest(scores, target)
        within = lambda at: interval(int((scores >= at).sum()), len(scores))["high"] <= target
        assert within(value) and not within(value - 1.01e-4)
    assert lowest(scores[:71], .05) is None  # too few
    assert lowest(np.ones(400), .05) is None  # no threshold tells them apart


# ---------------------------------------------------------------- ranking
def plain_rank(rows, asked, without):
    """{place: [(score, type), best first]} by a loop over all pairs in float64."""
    ranked = []
    ends = np.append(asked.starts[1:], len(asked.vectors))
    for place, (first, last) in enumerate(zip(asked.starts, ends)):
        best = {}
        for number, kind, vector in zip(rows.ids, rows.types, rows.vectors):
            if (kind if without == "type" else number // PARTS) == (asked.types if without == "type"
                                                                    else asked.references)[place]:
                continue
            for query in asked.vectors[first:last]:
                score = (float(query.astype(np.float64) @ vector.astype(np.float64)) + 1) / 2
                best[kind] = max(best.get(kind, -1), score)
        ranked.append(sorted(((score, kind) for kind, score in best.items()), key=lambda one: (-one[0], one[1])))
    return ranked


@pytest.mark.parametrize("without", ["type", "reference"])
@pytest.mark.parametrize("seed", range(4))
def test_ranks_equal_a_plain_loop(seed, without):
    """Types of several references with several views, known unknowns, in blocks whose borders cut types."""
    rng = np.random.default_rng(seed)
    references = np.repeat(np.arange(1, 61), rng.integers(1, 3, 60))
    types = np.where(references % 7 == 0, -references, references % 11 + 1)
    parts = np.concatenate([np.arange(count) for count in np.unique(references, return_counts=True)[1]])
    vectors = rng.standard_normal((len(references), 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = Rows(references * PARTS + parts, types, vectors)
    starts = np.flatnonzero(np.diff(references, prepend=0))
    asked = Pictures(vectors, starts, references[starts], types[starts])
    order = rng.permutation(len(references))
    blocks = [Rows(*(values[some] for values in rows)) for some in np.array_split(order, 5)]
    hits = rank(blocks, asked, 3, without)
    for place, expected in enumerate(plain_rank(rows, asked, without)):
        assert hits.cosines[place] == pytest.approx([score for score, _ in expected[:3]], abs=1e-6)
        assert hits.types[place].tolist() == [kind for _, kind in expected[:3]]
        for kind, number in zip(hits.types[place], hits.ids[place]):
            assert kind in types[references == number]


def test_ranks_among_few_types_are_filled_up_and_decided():
    rows = Rows(np.array([8, 16]), np.array([1, -2]), np.float32([[1, 0], [0, 1]]))
    hits = rank([rows], pictures([np.float32([[.8, .6]]), np.float32([[0, 1]])]), 3, without="reference")
    assert hits.types.tolist() == [[1, -2, 0], [-2, 1, 0]] and hits.cosines[0, 2] == -np.inf
    assert hits.cosines[0, :2].tolist() == pytest.approx([.9, .8])
    assert decided(hits, .85, {}, 0).tolist() == [1, 0] and decided(hits, .85, {1: .95}, 0).tolist() == [0, 0]
    assert decided(hits, .85, {}, .15).tolist() == [0, 0] and decided(hits, .85, {}, .05).tolist() == [1, 0]
    empty = rank([], pictures([np.float32([[.8, .6]])]), 3, without="type")
    assert empty.types.tolist() == [[0, 0, 0]] and decided(empty, 0.0, {}, 0).tolist() == [0]


# ---------------------------------------------------------------- what a collection has seen
def feature(registry, kind, number):
    return registry.look(noisy(kind, number)).features.astype(np.float64)[0]


@pytest.mark.parametrize("orientation", ["upright", "any"])
def test_unknown_and_right_scores_are_those_of_a_plain_loop(tmp_path, orientation):
    """Each type as if it were not registered; each picture as if it were not."""
    with make_registry(tmp_path, types=6, references=3, orientation=orientation) as registry:
        registry.add(noisy(30, 0), kind="unknown", force=True)
        snapshot = registry.snapshot()
        seen = observe(registry, snapshot.model_id, registry.model, 0.0)
        turns = range(4) if orientation == "any" else range(1)
        bank = {}
        for one in registry.references():
            image = registry.picture(one["reference"])
            bank[one["reference"]] = one["label"], [feature_of(registry, image, turn) for turn in turns]
        unknown, right = {}, []
        for number, (label, mine) in bank.items():
            scores = {}
            for other, (of_other, theirs) in bank.items():
                if other != number:
                    best = max((float(mine[0] @ their) + 1) / 2 for their in theirs)
                    key = of_other or f"unknown {other}"
                    scores[key] = max(scores.get(key, 0), best)
            others = {key: score for key, score in scores.items() if key != label}
            best = max(others, key=others.get)
            score = NEVER if best.startswith("unknown") else others[best]
            unknown[label or number] = max(unknown.get(label or number, NEVER), score)
            if label:
                right.append(scores[label] if max(scores, key=scores.get) == label else NEVER)
        assert sorted(seen.unknown) == pytest.approx(sorted(unknown.values()), abs=1e-6)
        assert sorted(seen.right) == pytest.approx(sorted(right), abs=1e-6)
        assert seen.counts == dict(types=6, references=19, known_unknowns=1, feedback_unknown=0, feedback_right=0,
                                   sampled=False, pairs=18 * 16 + 18)


def feature_of(registry, image, turn):
    from tests.helpers.registries import turned
    return registry.look(turned(image, -turn)).features.astype(np.float64)[0]


def test_too_few_types_say_nothing_and_the_model_s_table_stays(tmp_path):
    with make_registry(tmp_path, types=8, threshold=.77, references=2) as registry:
        found = registry.suggest_threshold()
        assert found["source"] == "model" and found["threshold"] == .77 == registry.threshold
        assert found["threshold"] == choose_threshold(registry.model, None, None, "upright", 8)[0]
        assert "too few" in found["message"] and found["needed"] == 72 and "\n" not in found["message"]
        assert (found["unknown_labeled"]["of"], found["right_rejected"]["of"]) == (8, 16)
        assert found["unknown_labeled"]["high"] > UNKNOWN_LABELED  # nothing is claimed that 8 types cannot tell
        assert registry.events()[-1]["what"] == "add"  # nothing was changed


@pytest.mark.parametrize("types", [0, 1])
def test_with_one_type_or_none_there_is_nothing_to_compare(tmp_path, types):
    with make_registry(tmp_path, types=types) as registry:
        found = registry.suggest_threshold()
        assert found["source"] == "model" and found["unknown_labeled"] is None and found["right_rejected"] is None


def test_with_many_types_the_collection_says_it_and_keeps_it(tmp_path):
    """The suggestion is then checked on types that were never registered: the rate holds."""
    with make_registry(tmp_path, types=150, threshold=.99, references=2) as registry:
        found = registry.suggest_threshold()
        assert found["source"] == "references" and found["threshold"] < .99
        assert found["unknown_labeled"]["high"] <= UNKNOWN_LABELED and found["unknown_labeled"]["of"] == 150
        assert found["now"]["threshold"] == .99 and found["now"]["unknown_labeled"]["count"] == 0
        registry.set_threshold("suggestion")
        assert registry.threshold == found["threshold"]
        asked = [noisy(kind, 1) for kind in range(1000, 1300)]
        results = registry.decide([registry.look(image) for image in asked])
        labeled = sum(result["label"] is not None for result in results)
        # 300 unknown types: at a true rate of 5 % more than 26 are a chance below .5 %.
        assert labeled <= 26
        right = registry.decide([registry.look(noisy(kind, 9)) for kind in range(150)])
        rejected = sum(result["label"] != f"type {kind}" for kind, result in enumerate(right))
        assert rejected / 150 <= found["right_rejected"]["high"]
        assert registry.suggest_threshold(target=.2)["threshold"] < found["threshold"]
        for target in (0, 1, -1):
            with pytest.raises(Invalid):
                registry.suggest_threshold(target=target)


def test_types_that_look_alike_are_named_with_their_raised_threshold(tmp_path):
    with make_registry(tmp_path, types=4, threshold=.8) as registry:
        registry.add(noisy(2, 1), "twin", force=True)
        found = registry.suggest_threshold()
        score = (float(feature(registry, 2, 0) @ feature(registry, 2, 1)) + 1) / 2
        assert {one["label"]: one["threshold"] for one in found["types"]} == pytest.approx(
            dict.fromkeys(("type 2", "twin"), raised(.8, score)), abs=1e-6)


def test_feedback_moves_it(tmp_path):
    """Rejections that were right count as unknown pictures; labels that were wrong too, and they raise the threshold."""
    with make_registry(tmp_path, types=10) as registry:
        def ask(kind, number, correct, label=None):
            look = registry.look(noisy(kind, number))
            result = registry.decide([look], 2)[0]
            registry.traffic.feedback(registry.traffic.record(result), correct, label)
            return result
        for kind in range(100, 170):
            assert ask(kind, 1, True)["label"] is None
        quiet = registry.suggest_threshold()
        assert quiet["source"] == "references" and quiet["based_on"]["feedback_unknown"] == 70
        assert quiet["unknown_labeled"]["of"] == 80
        scores = [ask(kind, 1, False)["score"] for kind in range(10)]  # recognized, and somebody says: these are unknown
        loud = registry.suggest_threshold()
        assert loud["threshold"] > quiet["threshold"] and loud["unknown_labeled"]["of"] == 90
        assert sum(score >= loud["threshold"] for score in scores) < 10
        assert ask(3, 5, True)["label"] == "type 3" and ask(120, 2, False, "type 4")["label"] is None
        assert ask(4, 6, False, "type 5")["label"] == "type 4"  # another registered type: no unknown
        based_on = registry.suggest_threshold()["based_on"]
        assert (based_on["feedback_right"], based_on["feedback_unknown"]) == (2, 80)


def test_feedback_of_another_model_does_not_count(tmp_path):
    from tests.helpers.registries import model_file
    with make_registry(tmp_path, types=3) as registry:
        look = registry.look(noisy(9, 1))
        registry.traffic.feedback(registry.traffic.record(registry.decide([look], 2)[0]), True)
        assert registry.suggest_threshold()["based_on"]["feedback_unknown"] == 1
        digest = registry.upgrade.add(model_file(tmp_path / "other.onnx", mean=.6))
        registry.upgrade.build(digest)
        assert registry.suggest_threshold(digest=digest)["based_on"]["feedback_unknown"] == 0
        registry.upgrade.activate(digest)
        assert registry.suggest_threshold()["based_on"]["feedback_unknown"] == 0


def test_many_references_are_sampled_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("inference.registry.threshold.SAMPLED", 20)
    with make_registry(tmp_path, types=15, references=2) as registry:
        found = registry.suggest_threshold()
        assert found["based_on"]["sampled"] and found["unknown_labeled"]["of"] == 10
        assert registry.suggest_threshold() == found  # the same sample each time
    assert SAMPLED == 2_000
