"""What every search engine of the registry must do, against brute force in float64 over a plain dict."""
import numpy as np

from inference.registry.index import Rows

DEPTH = 12


def vectors(rng, count, whole, depth=DEPTH):
    """Whole numbers have exact sums and many ties; the others have length 1 and some duplicates."""
    if whole:
        return rng.integers(-1, 2, (count, depth)).astype(np.float32)
    made = rng.standard_normal((count, depth), np.float32)
    if count > 3:
        made[rng.integers(0, count, 2)] = made[rng.integers(0, count)]
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def nothing(depth=DEPTH):
    return Rows(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, depth), np.float32))


def rows_of(ids, types, values):
    return Rows(np.array(ids, np.int64), np.array(types, np.int64), np.asarray(values, np.float32))


def change(rng, state, whole, most):
    """A random event on `state`, {id: (type, vector)}: rows that are added, replaced (perhaps by another type), removed,
    removed and added again at once, and ids that are not there. Returns (added, removed) and changes `state`."""
    known = np.array(sorted(state), np.int64)
    removed = np.unique(np.concatenate((rng.choice(known, min(len(known), rng.integers(0, most // 2 + 1)), replace=False)
                                        if len(known) else known, rng.integers(1, 5000, 2) * 8 + 7)))
    count = rng.integers(0, most + 1)
    ids = rng.choice(3 * most + 50, count, replace=False) + 8
    if count and len(removed) and rng.random() < .5:
        ids[0] = removed[0]
    ids = np.unique(ids)
    types = rng.integers(1, 2 + rng.integers(1, 3 * most), len(ids))
    unknown = rng.random(len(ids)) < .2
    types[unknown] = -(ids[unknown] // 8)  # known unknowns
    order = rng.permutation(len(ids))
    added = rows_of(ids[order], types[order], vectors(rng, len(ids), whole))
    for number in removed.tolist():
        state.pop(number, None)
    for number, kind, vector in zip(added.ids.tolist(), added.types.tolist(), added.vectors):
        state[number] = kind, vector
    return added, removed


def brute_force(state, queries):
    """(ids [M], types [M], cosines float32 [N, M]), the last from float64 sums."""
    ids = np.array(sorted(state), np.int64)
    types = np.array([state[number][0] for number in ids.tolist()], np.int64)
    matrix = np.array([state[number][1] for number in ids.tolist()], np.float64).reshape(len(ids), queries.shape[1])
    return ids, types, (queries.astype(np.float64) @ matrix.T).astype(np.float32)


def check(index, state, queries, k, whole):
    """`search` and `search_rows` of `index` are brute force over `state`; to the last bit where sums are whole numbers."""
    ids, types, cosines = brute_force(state, queries)
    assert len(index) == len(ids)
    labels = np.unique(types)
    best = np.array([cosines[:, types == label].max(axis=1) for label in labels], np.float32).reshape(-1, len(queries)).T
    for found, scores, names in ((index.search(queries, k), best, labels), (index.search_rows(queries, k), cosines, ids)):
        by_type = names is labels
        assert [values.dtype for values in found] == [np.float32, np.int64, np.int64]
        assert all(values.shape == (len(queries), k) for values in found)
        filled = min(k, len(names))
        assert (found.cosines[:, filled:] == -np.inf).all() and not found.types[:, filled:].any()
        assert not found.ids[:, filled:].any()
        for row in range(len(queries)):
            hits = [values[row, :filled] for values in found]
            # A row that is given is there, is of its type, and has its cosine.
            at = np.searchsorted(ids, hits[2])
            assert (ids[at] == hits[2]).all() and (types[at] == hits[1]).all()
            assert np.abs(cosines[row, at] - hits[0]).max(initial=0) < 1e-6
            assert len(set((hits[1] if by_type else hits[2]).tolist())) == filled
            tie = names if by_type else types
            order = np.lexsort((names, tie, -scores[row]))[:filled]
            assert np.abs(scores[row, order] - hits[0]).max(initial=0) < 1e-6
            if whole:
                assert np.array_equal(hits[0], scores[row, order])
                assert np.array_equal(hits[1], tie[order])
                assert by_type or np.array_equal(hits[2], names[order])


def rehearse(index, seed, whole, events=12, most=30, between=lambda index: None):
    """Random events, each checked. between: what is done to the index after each event."""
    rng, state = np.random.default_rng(seed), {}
    check(index, state, vectors(rng, 2, whole), 3, whole)  # empty
    for event in range(1, events + 1):
        if event == events // 2:  # everything goes
            added, removed = nothing(), np.array(sorted(state), np.int64)
            state.clear()
        else:
            added, removed = change(rng, state, whole, most)
        for _ in range(1 + event % 2):  # the same event again changes nothing
            index.apply(event, added, removed)
        assert index.event == event
        index.apply(event - 1, rows_of([9], [1], np.ones((1, DEPTH))), np.array(sorted(state), np.int64))  # late: ignored
        assert index.event == event
        between(index)
        queries = vectors(rng, int(rng.integers(1, 6)), whole)
        queries[:1] = next(iter(state.values()))[1] if state else 1
        check(index, state, queries, int(rng.integers(1, 9)), whole)
    check(index, state, vectors(rng, 2, whole), len(state) + 5, whole)  # more than there are
    return state
