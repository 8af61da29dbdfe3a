"""Decisions, feedback and kept pictures: what is written, what is not, what is deleted, and that nothing of it is needed."""
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time

import apsw
import numpy as np
import pytest

from inference.registry import Registry, traffic
from inference.registry import traffic_file as module
from inference.registry.errors import Busy, NotFound, StoreFull
from inference.registry.traffic_file import TrafficFile
from tests.helpers.registries import make_registry, noisy


@pytest.fixture
def registry(tmp_path):
    with make_registry(tmp_path, types=4) as registry:
        yield registry


def asked(registry, data, top_k=2, kept=True):
    """The result for a picture, noted; -> (decision, result)"""
    look = registry.look(data)
    result = registry.decide([look], top_k)[0]
    return registry.traffic.record(result, look, data if kept else None), result


def pictures(registry):
    return sorted(path.name for path in registry.traffic.file.pictures.folder.rglob("*") if path.is_file())


def raw(registry):
    """All bytes of the file, its log included."""
    return b"".join(path.read_bytes() for path in registry.store.path.glob("traffic.sqlite*"))


# ---------------------------------------------------------------- decisions
def test_a_decision_is_noted_with_its_numbers_alone(registry):
    began = time.time()
    decision, result = asked(registry, noisy(2, 5))
    entry, = registry.traffic.decisions()
    assert began <= entry.pop("when") <= time.time()
    assert entry == dict(
        decision=decision, label="type 2", score=result["score"], reason="accepted", threshold=result["threshold"],
        margin=result["margin"], model=result["model"], event=result["event"], correct=None, right=None,
        top=[dict(type=one["type"], kind="type", score=one["score"]) for one in result["top_k"]])
    rejected, _ = asked(registry, noisy(9, 1))
    assert [one["label"] for one in registry.traffic.decisions()] == ["type 2", None]
    assert 0 <= decision < 1 << 53 and rejected != decision


def test_by_default_nothing_of_an_image_is_kept(registry, tmp_path):
    data = noisy(9, 1)
    path = tmp_path / "secret name.png"
    path.write_bytes(data)
    look = registry.look(path)
    registry.traffic.record(registry.decide([look])[0], look, data)
    registry.traffic.flush()
    assert registry.unknowns.list() == [] and not registry.traffic.file.pictures.folder.exists()
    content = raw(registry)
    assert content and b"secret" not in content and look.features[0].tobytes()[:16] not in content


def test_pages_of_decisions_forward_and_backward(registry):
    ids = [asked(registry, noisy(kind, 1))[0] for kind in (0, 1, 2, 3, 9)]
    listed = [one["decision"] for one in registry.traffic.decisions()]
    assert listed == ids
    assert [one["decision"] for one in registry.traffic.decisions(after=ids[1], limit=2)] == ids[2:4]
    assert [one["decision"] for one in registry.traffic.decisions(newest=True, limit=2)] == ids[:2:-1]
    assert [one["decision"] for one in registry.traffic.decisions(after=ids[3], newest=True)] == ids[2::-1]


def test_collections_of_a_store_do_not_see_each_other(registry):
    other = registry.store.create("other", registry.store.model_path(registry.snapshot().model_hash), find="never")
    decision, _ = asked(registry, noisy(0, 1))
    assert other.traffic.decisions() == [] and len(registry.traffic.decisions()) == 1
    with pytest.raises(NotFound):
        other.traffic.feedback(decision, True)
    assert other.traffic.file is registry.traffic.file


def test_the_oldest_decisions_go_first_and_feedback_stays(registry):
    registry.traffic.keep_decisions = 10
    look = registry.look(noisy(0, 1))
    result = registry.decide([look], 2)[0]
    ids = [registry.traffic.record(result) for _ in range(12)]
    assert [one["decision"] for one in registry.traffic.decisions()] == ids[2:]
    registry.traffic.feedback(ids[2], True)
    ids += [registry.traffic.record(result) for _ in range(20)]
    assert [one["decision"] for one in registry.traffic.decisions()] == [ids[2], *ids[-10:]]
    assert [one["decision"] for one in registry.traffic.decisions(feedback=True)] == [ids[2]]
    # Who pages through, and stands at one that is gone, goes on with what is there.
    assert registry.traffic.decisions(after=ids[5], limit=1)[0]["decision"] == ids[2]


def test_feedback_has_a_bound_too(registry, monkeypatch):
    monkeypatch.setattr(traffic, "KEEP_FEEDBACK", 3)
    registry.traffic.keep_decisions = 0
    result = registry.decide([registry.look(noisy(0, 1))], 2)[0]
    registry.traffic.keep_decisions = 10
    ids = [registry.traffic.record(result) for _ in range(6)]
    for decision in ids:
        registry.traffic.feedback(decision, False, "other")
    assert [one["decision"] for one in registry.traffic.decisions(feedback=True)] == ids[3:]


def test_feedback_is_the_last_word(registry):
    decision, _ = asked(registry, noisy(0, 1))
    assert registry.traffic.feedback(decision, False, "type 1")["right"] == "type 1"
    entry = registry.traffic.feedback(decision, True)
    assert (entry["correct"], entry["right"]) == (True, None) and entry["decision"] == decision
    with pytest.raises(NotFound, match="not known, or older"):
        registry.traffic.feedback(decision + 1, True)
    counts = registry.traffic.counts()
    assert (counts["decisions"], counts["labeled"], counts["correct"], counts["wrong"]) == (1, 1, 1, 0)


def test_recording_costs_the_caller_microseconds(registry):
    """20 us in the median, though the file is in use for all that time: a caller never waits for it."""
    look = registry.look(noisy(9, 1))
    result, data = registry.decide([look], 2)[0], noisy(9, 1)
    registry.traffic.keep_unknown = 60
    times = []
    with registry.traffic.file._lock:  # somebody writes, and does not end
        for _ in range(2000):
            began = time.perf_counter()
            registry.traffic.record(result, look, data)
            times.append(time.perf_counter() - began)
    assert np.median(times) < 20e-6


def test_it_is_written_by_itself_within_a_second(registry):
    decision, _ = asked(registry, noisy(0, 1))
    end = time.monotonic() + 30
    while not registry.traffic.file.path.exists() or not registry.traffic.file.read("SELECT id FROM decision"):
        assert time.monotonic() < end
        time.sleep(.02)
    assert registry.traffic.file.read("SELECT id FROM decision") == [(decision,)]


def test_the_thread_ends_when_there_is_nothing_to_do_and_comes_back(registry, monkeypatch):
    monkeypatch.setattr(module, "EVERY", .01)
    monkeypatch.setattr(module, "IDLE", .05)
    asked(registry, noisy(0, 1))
    thread = registry.traffic.file._thread
    thread.join(30)
    assert not thread.is_alive() and len(registry.traffic.file.read("SELECT id FROM decision")) == 1
    asked(registry, noisy(0, 2))
    assert registry.traffic.file._thread is not thread


def test_what_waits_is_bounded(registry, monkeypatch):
    monkeypatch.setattr(module, "WAITING_BYTES", 2500)
    registry.traffic.keep_unknown = 60
    with registry.traffic.file._lock:
        for number in range(5):
            asked(registry, noisy(9, number + 1))  # 1 KB each
        assert sum(picture is not None for _, picture in registry.traffic.file._waiting) == 2
        assert registry.traffic.file._waiting.maxlen == module.WAITING
    assert len(registry.traffic.decisions()) == 5 and len(registry.unknowns.list()) == 2


# ---------------------------------------------------------------- pictures of unknowns
def test_rejected_pictures_are_kept_where_asked_each_once(registry):
    registry.traffic.keep_unknown = 60
    asked(registry, noisy(0, 1))  # recognized
    first, result = asked(registry, noisy(9, 1))
    asked(registry, noisy(9, 1))
    asked(registry, noisy(9, 2), kept=False)
    entry, = registry.unknowns.list()
    assert (entry["seen"], entry["decision"], entry["score"], entry["bytes"]) == (2, first, result["score"],
                                                                                  len(noisy(9, 1)))
    assert 50 < entry["expires"] - time.time() <= 60
    assert registry.unknowns.picture(entry["id"]) == noisy(9, 1) and len(pictures(registry)) == 1


def test_a_known_unknown_is_not_kept_again(registry):
    registry.traffic.keep_unknown = 60
    registry.add(noisy(9, 0), kind="unknown", force=True)
    decision, result = asked(registry, noisy(9, 1))
    assert result["reason"] == "known-unknown" and registry.unknowns.list() == []
    best = registry.traffic.decisions()[0]["top"][0]
    assert best == dict(type=None, kind="unknown", reference=result["top_k"][0]["reference"], score=result["score"])


def test_they_are_deleted_on_time_row_and_picture(registry):
    registry.traffic.keep_unknown = .2
    asked(registry, noisy(9, 1))
    registry.traffic.keep_unknown = 60
    asked(registry, noisy(8, 1))
    old, new = registry.unknowns.list()
    vectors = registry.look(noisy(9, 1)).features.tobytes()
    assert vectors in raw(registry)
    time.sleep(.25)
    assert [one["id"] for one in registry.unknowns.list()] == [new["id"]]  # though nobody has swept yet
    with pytest.raises(NotFound):
        registry.unknowns.picture(old["id"])
    assert registry.traffic.file.sweep(time.time())
    assert len(pictures(registry)) == 1 and vectors not in raw(registry)
    assert not registry.traffic.file.sweep(time.time() + 61) and pictures(registry) == []


def test_a_process_that_only_opens_the_store_deletes_what_has_expired(registry, tmp_path):
    registry.traffic.keep_unknown = .01
    asked(registry, noisy(9, 1))
    registry.traffic.flush()
    assert len(pictures(registry)) == 1
    registry.close()
    with Registry.open(tmp_path / "store") as again:
        assert again.traffic.decisions()  # anything that looks at the traffic
        end = time.monotonic() + 30
        while pictures(again):
            assert time.monotonic() < end
            time.sleep(.02)


def test_the_oldest_pictures_go_when_there_are_too_many(registry, monkeypatch):
    registry.traffic.keep_unknown = 60
    for number in range(1, 6):
        asked(registry, noisy(9, number))
    registry.traffic.flush()
    registry.traffic.file.keep_bytes = sum(len(noisy(9, number)) for number in (4, 5))
    registry.traffic.file.sweep(time.time())
    assert [one["id"] for one in registry.unknowns.list()] == [4, 5] and len(pictures(registry)) == 2
    monkeypatch.setattr(module, "KEEP_PICTURES", 1)
    registry.traffic.file.sweep(time.time())
    assert [one["id"] for one in registry.unknowns.list()] == [5]


def test_pictures_without_a_row_do_not_stay(registry):
    """After a kill between the two, or where the file was lost."""
    registry.traffic.keep_unknown = 60
    asked(registry, noisy(9, 1))
    registry.traffic.flush()
    for path in registry.store.path.glob("traffic.sqlite*"):
        path.unlink()
    hour_ago = time.time() - 3600
    for path in registry.traffic.file.pictures.folder.rglob("*"):
        os.utime(path, (hour_ago, hour_ago))
    registry.traffic.file.sweep(time.time())
    assert pictures(registry) == []


def test_a_picture_of_two_collections_stays_until_both_are_done(registry):
    other = registry.store.create("other", registry.store.model_path(registry.snapshot().model_hash), find="never")
    for one in (registry, other):
        one.traffic.keep_unknown = 60
        asked(one, noisy(9, 1))
    first, = registry.unknowns.list()
    second, = other.unknowns.list()
    with pytest.raises(NotFound):
        other.unknowns.remove(first["id"])
    registry.unknowns.remove(first["id"])
    assert other.unknowns.picture(second["id"]) == noisy(9, 1)
    other.unknowns.remove(second["id"])
    assert pictures(registry) == []


# ---------------------------------------------------------------- faults: classification goes on
def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:5000])


def damage_garbage(path):
    path.write_bytes(b"not a database" * 1000)


def damage_pages(path):
    content = bytearray(path.read_bytes())
    for position in range(4096, len(content), 97):
        content[position] ^= 255
    path.write_bytes(content)


def damage_other_program(path):
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs(x)")


def damage_newer_version(path):
    content = bytearray(path.read_bytes())
    content[60:64] = (99).to_bytes(4, "big")
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [damage_truncate, damage_garbage, damage_pages, damage_other_program, damage_newer_version])
def test_a_damaged_file_is_moved_aside_and_made_anew(registry, tmp_path, harm, caplog):
    for number in range(60):
        asked(registry, noisy(0, number))
    path = registry.traffic.file.path
    registry.close()
    assert not path.with_name("traffic.sqlite-wal").exists()
    harm(path)
    with Registry.open(tmp_path / "store") as again:
        decision, result = asked(again, noisy(0, 1))
        assert result["label"] == "type 0"
        listed = again.traffic.decisions()
        assert [one["decision"] for one in listed] == [decision] and len(again.traffic.decisions(newest=True)) == 1
        assert path.with_name("traffic.sqlite.damaged").exists() and len(again.references()) == 4
    lines = [entry.getMessage() for entry in caplog.records]
    assert len(lines) == 1 and "traffic.sqlite.damaged" in lines[0] and "\n" not in lines[0]


def test_each_commit_is_on_the_disk_before_the_next_one(registry):
    """Or else what a power cut leaves of the log would look like damage, and all decisions be lost with it."""
    asked(registry, noisy(0, 1))
    registry.traffic.flush()
    assert registry.traffic.file._open().pragma("synchronous") == 2  # FULL, https://sqlite.org/pragma.html


def test_a_file_that_vanishes_is_made_anew(registry):
    asked(registry, noisy(0, 1))
    registry.traffic.flush()
    for path in registry.store.path.glob("traffic.sqlite*"):
        path.unlink()
    decision, _ = asked(registry, noisy(0, 2))
    assert [one["decision"] for one in registry.traffic.decisions()] == [decision]
    assert registry.traffic.file.path.exists()


def test_a_full_disk_stops_nothing(registry, monkeypatch, caplog):
    registry.traffic.keep_unknown = 60
    asked(registry, noisy(0, 1))
    registry.traffic.flush()
    limit = registry.traffic.file.read("PRAGMA page_count")[0][0]
    registry.traffic.file.read(f"PRAGMA max_page_count = {limit}")  # SQLite says the same as on a full disk
    result = registry.decide([registry.look(noisy(0, 2))], 2)[0]
    for _ in range(3):
        for _ in range(3000):
            registry.traffic.record(result)
        registry.traffic.flush()
    assert len([entry for entry in caplog.records if "not noted" in entry.getMessage()]) == 1
    assert registry(noisy(0, 3))[0] == "type 0"
    assert not registry.traffic.file.path.with_name("traffic.sqlite.damaged").exists()

    def full(self, data):
        raise StoreFull("no room")
    monkeypatch.setattr(module.Blobs, "put", full)
    asked(registry, noisy(9, 1))
    assert registry.unknowns.list() == []


def test_a_locked_file_stops_nothing(registry, monkeypatch):
    asked(registry, noisy(0, 1))
    registry.traffic.flush()
    monkeypatch.setattr(module, "WAITS", 50)
    registry.traffic.file._db.set_busy_timeout(50)
    other = apsw.Connection(str(registry.traffic.file.path))
    other.execute("BEGIN IMMEDIATE")
    try:
        _, result = asked(registry, noisy(0, 2))
        registry.traffic.flush()
        assert result["label"] == "type 0"
        with pytest.raises(Busy):
            registry.traffic.feedback(registry.traffic.decisions()[0]["decision"], True)
        assert not registry.traffic.file.path.with_name("traffic.sqlite.damaged").exists()
    finally:
        other.execute("ROLLBACK")
        other.close()
    decision, _ = asked(registry, noisy(0, 3))
    assert registry.traffic.decisions(newest=True)[0]["decision"] == decision


def test_many_threads_lose_nothing(registry):
    result = registry.decide([registry.look(noisy(0, 1))], 2)[0]
    ids = [[] for _ in range(8)]

    def work(mine):
        for _ in range(500):
            mine.append(registry.traffic.record(result))
    threads = [threading.Thread(target=work, args=(mine,)) for mine in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {one for mine in ids for one in mine}
    assert len(expected) == 4000
    assert {one["decision"] for one in registry.traffic.decisions(limit=5000)} == expected


PROCESS = textwrap.dedent("""
    import sys, time
    from inference.registry import Registry
    with Registry.open(sys.argv[1]) as registry:
        result = registry.decide([registry.look(sys.argv[2])], 2)[0]
        for _ in range(int(sys.argv[3])):
            registry.traffic.record(result)
        if sys.argv[4] == "wait":
            registry.traffic.flush()
            print("written", flush=True)
            time.sleep(60)
""")


def start(registry, tmp_path, count, how):
    (tmp_path / "image.png").write_bytes(noisy(0, 1))
    return subprocess.Popen([sys.executable, "-c", PROCESS, registry.store.path, tmp_path / "image.png", str(count), how],
                            stdout=subprocess.PIPE, text=True)


def test_several_processes_write_the_same_file(registry, tmp_path):
    processes = [start(registry, tmp_path, 300, "leave") for _ in range(3)]
    decision, _ = asked(registry, noisy(0, 1))
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    listed = [one["decision"] for one in registry.traffic.decisions(limit=1000)]
    assert len(set(listed)) == 901 and decision in listed


def test_what_was_flushed_outlives_a_kill(registry, tmp_path):
    process = start(registry, tmp_path, 50, "wait")
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert len(registry.traffic.decisions()) == 50


# ---------------------------------------------------------------- replay
def test_replay_equals_deciding_again(tmp_path):
    """Scores, margins and thresholds of every kind: the counts are those of the registry with that threshold set."""
    with make_registry(tmp_path, types=6, threshold=.6, margin=.02) as registry:
        registry.add(noisy(20, 0), kind="unknown", force=True)
        registry.set_threshold(.9, label="type 1")
        looks = [registry.look(noisy(kind, number, noise=noise)) for kind in (0, 1, 2, 3, 20, 30, 31, 32)
                 for number, noise in enumerate((20, 60, 90, 120), 1)]
        results = registry.decide(looks, 2)
        ids = [registry.traffic.record(result) for result in results]
        registry.set_threshold(.6)
        assert {result["reason"] for result in registry.decide(looks, 2)} >= {"accepted", "below-threshold"}
        before = [result["label"] for result in results]
        for threshold in (.5, .55, .6, .7, .8, .93, .97, 1.0):
            registry.set_threshold(threshold)
            then = [result["label"] for result in registry.decide(looks, 2)]
            gained = [one for one, old, new in zip(ids, before, then) if old is None and new is not None]
            lost = [one for one, old, new in zip(ids, before, then) if old is not None and new is None]
            replayed = registry.traffic.replay(threshold)
            assert replayed["decisions"] == len(looks) and replayed["unclear"] == 0
            assert replayed["labeled"] == sum(label is not None for label in before)
            assert replayed["labeled_then"] == sum(label is not None for label in then)
            assert (replayed["gained"], replayed["lost"]) == (len(gained), len(lost))
            assert replayed["examples"] == {"gained": gained[::-1][:20], "lost": lost[::-1][:20]}
        assert any(registry.traffic.replay(threshold)["lost"] for threshold in (.8, .97))


def test_replay_counts_feedback(registry):
    right, _ = asked(registry, noisy(0, 1))
    wrong, _ = asked(registry, noisy(1, 1))
    missed, _ = asked(registry, noisy(9, 1))
    registry.traffic.feedback(right, True)
    registry.traffic.feedback(wrong, False)
    registry.traffic.feedback(missed, False, "type 3")
    counts = registry.traffic.replay(1.0)
    assert (counts["lost"], counts["right_lost"], counts["wrong_lost"]) == (2, 1, 1)
    counts = registry.traffic.replay(0.0)
    assert (counts["gained"], counts["wrong_rejections_gained"], counts["lost"]) == (1, 1, 0)


def test_replay_says_where_the_gap_is_not_known(tmp_path):
    with make_registry(tmp_path, types=3, margin=.01) as registry:
        asked(registry, noisy(9, 1), top_k=1)
        assert registry.traffic.replay(0.0)["unclear"] == 1
    assert TrafficFile(tmp_path / "elsewhere").read("SELECT 1") == []
