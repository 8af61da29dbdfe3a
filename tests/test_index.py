"""The exact index in memory, and rows that do not count in the search below it, against brute force in float64."""
import threading

import numpy as np
import pytest

from inference import codes, search
from inference.errors import UserError
from inference.registry import index as module
from inference.registry.engines import open_index
from inference.registry.index import NONE, MemoryIndex, Rows
from inference.search import top_rows
from tests.helpers.indexes import DEPTH, brute_force, change, check, nothing, rehearse, rows_of, vectors


# ---------------------------------------------------------------- the search below it
@pytest.mark.parametrize("whole", [True, False])
def test_skipped_rows_do_not_count(whole, monkeypatch):
    for seed in range(150):
        monkeypatch.setattr(search, "FIRST", (1, 30, 4096)[seed % 3])
        rng = np.random.default_rng(seed)
        total, k = int(rng.integers(1, 700)), int(rng.integers(1, 40))
        references, queries = vectors(rng, total, whole), vectors(rng, int(rng.integers(1, 9)), whole)
        skip = np.flatnonzero(rng.random(total) < rng.choice([0, .1, .9, 1]))
        starts = None
        if seed % 2:
            starts = np.unique(np.append(0, rng.integers(0, total, rng.integers(1, total + 1) if seed % 4 == 1 else 3)))
        each = (queries.astype(np.float64) @ references.astype(np.float64).T).astype(np.float32)
        each[:, skip] = -np.inf
        scores = each if starts is None else np.maximum.reduceat(each, starts, axis=1)
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        for block_bytes in (1, 5_000, 8 << 20):
            found, indices, rows = top_rows(queries, references, k, starts, block_bytes, skip)
            best = np.take_along_axis(scores, expected, axis=1)
            there = best > -np.inf
            assert np.array_equal(found > -np.inf, there) and np.abs(found[there] - best[there]).max(initial=0) < 1e-6
            assert not np.isin(rows[there], skip).any()
            assert np.abs(np.take_along_axis(each, rows, axis=1)[there] - best[there]).max(initial=0) < 1e-6
            assert not whole or np.array_equal(indices[there], expected[there])


# ---------------------------------------------------------------- the index
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("tail, segment, direct, coded", [(1024, 1 << 20, 512, 1 << 14), (4, 20, 0, 1 << 14),
                                                          (4, 1000, 40, 1 << 14), (0, 7, 512, 1 << 14), (4, 300, 0, 10)])
def test_it_is_brute_force(whole, tail, segment, direct, coded, monkeypatch):
    """Small tails and segments: merges, rewritten segments and codes after nearly every event, when asked or in the
    background."""
    monkeypatch.setattr(module, "DIRECT", direct)
    monkeypatch.setattr(module, "CODED", coded)
    monkeypatch.setattr(codes, "BLOCK", 64)
    for seed in range(12):
        index = MemoryIndex(DEPTH, tail, segment)
        rehearse(index, seed, whole, between=MemoryIndex.compact if seed % 2 else lambda index: None)
        index.close()


def test_equal_rows_have_equal_cosines_wherever_they_are():
    """In a large segment, in a small one, in the tail: the lower type first, a known unknown before all types."""
    rng = np.random.default_rng(0)
    same = vectors(rng, 1, False, 256)
    index = MemoryIndex(256, tail=20)
    for event, (count, kind) in enumerate(((5000, 7), (300, 3), (30, -5), (5, 2)), 1):
        values = vectors(rng, count, False, 256)
        values[count // 2] = same
        types = rng.integers(100, 200, count)
        types[count // 2] = kind
        index.apply(event, rows_of(10_000 * event + np.arange(count), types, values), np.zeros(0))
    assert len(index.view().parts) >= 3
    for count in (1, 2, 17, 64):
        hits = index.search(np.repeat(same, count, axis=0), 5)
        assert hits.types[:, :4].tolist() == [[-5, 2, 3, 7]] * count
        assert (hits.cosines[:, :4] == hits.cosines[0, 0]).all() and (hits.cosines[:, 4] < hits.cosines[0, 0]).all()
        assert index.search_rows(np.repeat(same, count, axis=0), 4).types.tolist() == [[-5, 2, 3, 7]] * count
    index.close()


@pytest.mark.parametrize("coded", [1 << 14, 30])
def test_a_view_stays_while_the_index_changes(coded, monkeypatch):
    """Four readers compare every view that they see with brute force over what the event in it left, and look again at their
    first one, while events and merges go on, and codes are made."""
    monkeypatch.setattr(module, "CODED", coded)
    monkeypatch.setattr(codes, "BLOCK", 64)
    rng, queries = np.random.default_rng(0), vectors(np.random.default_rng(1), 3, True)
    index, state, states, wrong, done = MemoryIndex(DEPTH, 8, 200), {}, {0: {}}, [], threading.Event()

    def read():
        first, seen = index.view(), 0
        try:
            while not done.is_set() or seen < 5:
                view, seen = index.view(), seen + 1
                check(view, states[view.event], queries, 4, True)
                check(first, states[first.event], queries, 4, True)
        except Exception as error:
            wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for event in range(1, 150):
        added, removed = change(rng, state, True, 25)
        states[event] = dict(state)
        index.apply(event, added, removed)
    done.set()
    for reader in readers:
        reader.join()
    index.close()
    assert not wrong, wrong[0]
    assert len(index.view().parts) > 1


def test_what_changes_while_segments_are_merged_is_not_lost(monkeypatch):
    """Rows are removed, replaced and added again between the copy and its publication; whole segments go, too."""
    for seed in range(20):
        rng, state = np.random.default_rng(seed), {}
        monkeypatch.setattr(MemoryIndex, "_due", lambda self, parts: [])
        index = MemoryIndex(DEPTH, 5, 10_000)
        for event in range(1, 5):
            index.apply(event, *change(rng, state, True, 40))
        merged, due = MemoryIndex._merged, iter([list(index._parts), []])

        def interrupted(self, sources):
            segment = merged(self, sources)
            for event in range(5, 8):
                self.apply(event, *change(rng, state, True, 40))
            if seed % 4 == 0:
                gone = sources[0].segment.ids
                for number in gone.tolist():
                    state.pop(number, None)
                self.apply(8, nothing(), gone)
            return segment

        monkeypatch.setattr(MemoryIndex, "_due", lambda self, parts: next(due) if self._compacting.locked() and not
                            self._writing.locked() else [])
        monkeypatch.setattr(MemoryIndex, "_merged", interrupted)
        index.compact()
        monkeypatch.setattr(MemoryIndex, "_merged", merged)
        check(index, state, vectors(rng, 3, True), 9, True)


def test_sizes_stay_bounded():
    """One row at a time: few segments, no removed row is kept for long, and a bulk is one segment."""
    index, rng = MemoryIndex(DEPTH, tail=16, segment=2000), np.random.default_rng(0)
    values = vectors(rng, 3000, False)
    for number in range(3000):
        index.apply(number + 1, rows_of([number], [number % 50], values[number:number + 1]), np.array([number - 500]))
        assert len(index) == min(number + 1, 500)
    index.compact()
    parts = index.view().parts
    assert len(parts) <= 7  # 500 / 16, in steps of 4, and the tail
    assert sum(len(part.dead) for part in parts) <= module.DEAD * sum(len(part.segment) for part in parts)
    index.apply(5000, rows_of(10_000 + np.arange(1999), np.arange(1999), vectors(rng, 1999, False)), np.zeros(0))
    assert len(index.view().parts) == len(parts) + 1
    index.apply(5001, rows_of(20_000 + np.arange(4001), np.arange(4001), vectors(rng, 4001, False)), np.zeros(0))
    assert max(len(part.segment) for part in index.view().parts) <= 2000
    index.close()


def test_large_segments_are_searched_by_their_codes(monkeypatch):
    monkeypatch.setattr(module, "CODED", 50)
    index, values = MemoryIndex(DEPTH, tail=16), vectors(np.random.default_rng(0), 100, False)
    index.apply(1, Rows(np.arange(100), np.arange(100), values), NONE)
    expected = index.search(values, 3)
    index.compact()
    asked = []
    monkeypatch.setattr(codes.CodedRows, "top_rows", lambda *args, whole=codes.CodedRows.top_rows, **options:
                        asked.append(1) or whole(*args, **options))
    assert all(map(np.array_equal, index.search(values, 3), expected)) and asked
    wrong = np.where(np.arange(100)[:, None] == 7, np.inf, values)  # has no codes, and is searched without
    index.apply(2, Rows(np.arange(100), np.arange(100), wrong), NONE)
    index.compact()
    assert not any(part.segment.plain for part in index.view().parts)
    asked.clear()
    assert index.search(values[:1], 1).ids[0] in (0, 7) and not asked
    index.close()


def test_what_comes_while_codes_are_made_is_merged_after_them(monkeypatch):
    """Making codes takes a second for a large segment, and no other event may follow."""
    monkeypatch.setattr(module, "CODED", 50)
    index, values = MemoryIndex(DEPTH, tail=4), vectors(np.random.default_rng(0), 100, False)
    index._thread = threading.current_thread()  # in the background's place

    def add(event, *numbers):
        index.apply(event, Rows(np.arange(*numbers), np.arange(*numbers), values[slice(*numbers)]), NONE)

    def interrupted(segment, encode=module.Segment.encode):
        if segment is first:
            for event, number in enumerate(range(60, 100, 10), 2):
                add(event, number, number + 10)
        encode(segment)

    add(1, 0, 60)
    first = index.view().parts[0].segment
    monkeypatch.setattr(module.Segment, "encode", interrupted)
    index.compact()
    assert [len(part) for part in index.view().parts] == [100] and not index.view().parts[0].segment.plain


def test_a_segment_with_many_removed_rows_is_written_anew():
    index, rng = MemoryIndex(DEPTH, tail=16), np.random.default_rng(0)
    index.apply(1, rows_of(np.arange(1000), np.arange(1000), vectors(rng, 1000, False)), np.zeros(0))
    segment = index.view().parts[0].segment
    index.apply(2, nothing(), np.arange(125))  # an eighth: passed over
    index.compact()
    assert index.view().parts[0].segment is segment and len(index) == 875
    index.apply(3, nothing(), np.array([125]))
    index.compact()
    assert [(len(part.segment), len(part.dead)) for part in index.view().parts] == [(874, 0)]
    index.close()


def test_beside_the_vectors_there_is_little():
    """At most 32 bytes a row: 10 million rows of 256 values are 10.2 GB, and at most .3 GB beside."""
    rng = np.random.default_rng(0)
    for types in (np.arange(50_000), np.arange(50_000) // 2, np.maximum(np.arange(50_000), 1)):
        index = MemoryIndex(DEPTH)
        index.apply(1, Rows(np.arange(50_000), types, vectors(rng, 50_000, False)), np.zeros(0))
        segment = index.view().parts[0].segment
        arrays = [segment.ids, segment.labels, segment.starts, segment._by_id, segment._precise]
        assert sum(values.nbytes for values in arrays if values is not None) <= 32 * 50_000
        assert segment.vectors.nbytes == 4 * DEPTH * 50_000


def test_the_callers_arrays_are_copied():
    index, values, ids = MemoryIndex(DEPTH), vectors(np.random.default_rng(0), 4, True), np.arange(4)
    state = {number: (1 + number, values[number].copy()) for number in range(4)}
    index.apply(1, Rows(ids, ids + 1, values), np.zeros(0))
    values[:], ids[:] = 0, 9
    check(index, state, vectors(np.random.default_rng(1), 2, True), 3, True)


def test_the_last_of_the_same_id_counts():
    index, values = MemoryIndex(DEPTH), vectors(np.random.default_rng(0), 3, True)
    index.apply(1, rows_of([8, 16, 8], [1, 2, 3], values), np.zeros(0))
    check(index, {8: (3, values[2]), 16: (2, values[1])}, values, 3, True)


def test_parts_of_a_load_may_come_with_event_0():
    index, values = MemoryIndex(DEPTH), vectors(np.random.default_rng(0), 3, True)
    for number, event in enumerate((0, 0, 7)):
        index.apply(event, rows_of([number], [number], values[number:number + 1]), np.zeros(0))
        assert index.event == event
    assert len(index) == 3


def test_a_query_that_is_no_number_costs_no_other_anything():
    for count in (10, 2000):
        rng = np.random.default_rng(0)
        state = {number: (number // 2, vector) for number, vector in enumerate(vectors(rng, count, True))}
        index = MemoryIndex(DEPTH)
        index.apply(1, rows_of(list(state), [kind for kind, _ in state.values()], [row for _, row in state.values()]),
                    np.zeros(0))
        queries = vectors(rng, 3, True)
        alone = index.search(queries[[0, 2]], 3)
        queries[1] = np.nan
        for mine, theirs in zip(index.search(queries, 3), alone):
            assert np.array_equal(mine[[0, 2]], theirs)
        assert brute_force(state, queries[[0, 2]])[2].max() == alone.cosines.max()


def test_no_query_has_no_hits():
    for count in (0, 10, 2000):
        index = MemoryIndex(DEPTH)
        index.apply(1, rows_of(np.arange(count), np.arange(count), np.ones((count, DEPTH))), np.zeros(0))
        for found in (index.search(np.zeros((0, DEPTH), np.float32), 3), index.search_rows(np.zeros((0, DEPTH)), 3)):
            assert [values.shape for values in found] == [(0, 3)] * 3


def test_wrong_arguments():
    index = open_index("memory", DEPTH, "any")
    with pytest.raises(ValueError, match="expected"):
        index.apply(1, Rows(np.arange(2), np.arange(3), np.zeros((2, DEPTH))), np.zeros(0))
    with pytest.raises(ValueError, match="expected"):
        index.apply(1, Rows(np.arange(2), np.arange(2), np.zeros((2, DEPTH + 1))), np.zeros(0))
    with pytest.raises(ValueError, match="expected"):
        index.search(np.zeros((1, DEPTH - 1), np.float32), 1)
    with pytest.raises(ValueError, match="at least 1"):
        index.search(np.zeros((1, DEPTH), np.float32), 0)
    assert index.event == 0 and len(index) == 0
    with pytest.raises(UserError, match="^index redis://here: unknown; use memory, faiss, postgresql://"):
        open_index("redis://here", DEPTH, "any")
