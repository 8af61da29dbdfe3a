"""The write-ahead log of a store: a flipped bit in it is one line and never an answer, whoever reads it, and is mended if it
can be."""
import contextlib
import fcntl
import os
import shutil
import struct
import threading
from pathlib import Path

import apsw
import pytest

from inference.registry import Registry, Store, layer
from inference.registry.check import check
from inference.registry.errors import Busy, Damaged
from inference.registry.schema import VERSION, open_database, transaction
from inference.registry.wal import FRAME, HEAD, replay, wal_damage
from tests.helpers.stores import Worker, content, last_event, make_store, opened, picture

PAGE = 4096
STEP = FRAME + PAGE


def flip(path, at, bit=1):
    """In place, as a disk would."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0] ^ bit
        file.seek(at)
        file.write(bytes([byte]))


def frames(log) -> list[tuple[int, int]]:
    """(number of the page, pages of the database or 0) of each frame."""
    data = Path(log).read_bytes()
    return [struct.unpack_from(">2I", data, start) for start in range(HEAD, len(data) - STEP + 1, STEP)]


def own_checksum(page: bytes) -> bytes:
    """What the last 8 bytes of a page of a database must be, as https://sqlite.org/cksumvfs.html sums it up."""
    words, one, two = struct.unpack(f"<{len(page) // 4}I", page), 0, 0
    for first, second in zip(words[:-2:2], words[1:-2:2]):
        one = one + first + two & 0xFFFFFFFF
        two = two + second + one & 0xFFFFFFFF
    return struct.pack("<2I", one, two)


def last_frames(log) -> dict[int, int]:
    """{page: its last frame}"""
    return {page: number for number, (page, _) in enumerate(frames(log))}


def page_at(frame, offset=0):
    return HEAD + frame * STEP + FRAME + offset


def place_of(store, table: str, text: bytes) -> int:
    """The place in the log of a text in the newest page with rows of `table`."""
    pages = {page for page, in store.read("SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf'", (table,))}
    start = page_at(max(frame for page, frame in last_frames(f"{store.database}-wal").items() if page in pages))
    return start + Path(f"{store.database}-wal").read_bytes()[start:start + PAGE].index(text)


@pytest.fixture
def store(tmp_path):
    """A `Store` in use, with eight types in its log; it knows no page of them by heart."""
    make_store(tmp_path).close()
    with opened(tmp_path / "store") as registry:
        for number in range(8):
            registry.add(picture(number), f"label{number}", force=True)
        registry.store._reader.execute("PRAGMA shrink_memory")
        registry.store._writer.execute("PRAGMA shrink_memory")
        yield registry.store


@pytest.fixture
def log(store):
    return Path(f"{store.database}-wal")


# ---------------------------------------------------------------- reading
def test_each_page_of_a_log_in_use_is_verified_when_it_is_read(store, log):
    whole, last = log.read_bytes(), set(last_frames(log).values())
    assert len(last) >= 10 and len(frames(log)) > len(last)
    for frame in range(len(frames(log))):
        for offset, bit in ((0, 1), (1777, 64), (PAGE - 9, 128)):
            log.write_bytes(whole)  # the same file: SQLite has it open
            flip(log, page_at(frame, offset), bit)
            with Store(store.path) as beside:
                if frame not in last:  # nobody reads it any more
                    assert beside.read("PRAGMA integrity_check") == [("ok",)]
                    continue
                with pytest.raises(Damaged, match="its write-ahead log is damaged; docmetric check STORE says more"):
                    assert beside.read("PRAGMA integrity_check") == [("ok",)]
    log.write_bytes(whole)


def test_labels_are_right_or_there_is_one_line(store, log):
    """SQLite alone would answer labex3."""
    flip(log, place_of(store, "type", b"label3") + 4, 4)
    with pytest.raises(Damaged, match="log is damaged"), opened(store.path) as beside:
        assert beside.labels == [f"label{number}" for number in range(8)]
    assert not check(store.path)["ok"] and "its write-ahead log is damaged" in check(store.path)["problems"][0]


def test_a_writer_gives_no_new_checksum_to_what_is_damaged(store, log):
    flip(log, place_of(store, "type", b"label3") + 4, 4)
    before = last_event(store.collection())
    with pytest.raises(Damaged), opened(store.path) as beside:
        beside.add(picture("new"), "new", force=True)
    assert last_event(store.collection()) == before


def test_a_checkpoint_copies_nothing_that_is_damaged(store, log):
    wanted = content(store.collection())
    flip(log, place_of(store, "type", b"label3") + 4, 4)
    store.clear_log()
    store.close()
    for _ in range(2):
        with pytest.raises(Damaged):
            Store(store.path)
    report = check(store.path, rebuild=True)
    assert report["ok"] and any("1 flipped bits" in line for line in report["repaired"])
    with Registry.open(store.path) as rebuilt:
        assert content(rebuilt) == wanted and check(store.path)["ok"]


def test_damage_in_the_last_commit_is_not_forgotten(store, log):
    """No other follows, so that it could be what a power cut left; but it was whole when somebody had committed it."""
    commits = [number for number, (_, pages) in enumerate(frames(log)) if pages]
    frame = max(commits)
    assert frame - commits[-2] > 1
    with open(log, "r+b") as file:
        file.seek(page_at(frame - 1))
        file.write(bytes(PAGE // 2))
    assert wal_damage(log) is None
    with Store(store.path) as beside, pytest.raises(Damaged):
        beside.read("PRAGMA integrity_check")
    store.close()
    with pytest.raises(Damaged, match="log is damaged"):
        Store(store.path)
    report = check(store.path, rebuild=True)
    assert report["repaired"] and "1 pages of its log are damaged" in report["problems"][0] and check(store.path)["ok"]


def test_a_flipped_bit_in_the_last_commit_is_no_power_cut(store, log):
    whole, all_frames = log.read_bytes(), frames(log)
    commits = [number for number, (_, pages) in enumerate(all_frames) if pages]
    store.close()
    for frame in range(commits[-2] + 1, commits[-1] + 1):
        for offset in (*range(-FRAME, 0), 0, 77, 1003, PAGE - 1):
            for bit in (1, 128):
                log.write_bytes(whole)
                flip(log, page_at(frame, offset), bit)
                assert wal_damage(log), (frame, offset, bit)
    log.write_bytes(whole[:HEAD + STEP * commits[-1]])  # it never came to its commit
    flip(log, page_at(commits[-2] + 1, 77))
    assert wal_damage(log) is None
    log.unlink()


def test_damage_that_a_later_commit_wrote_anew_does_no_harm(store, log):
    first = frames(log)[0][0]
    assert last_frames(log)[first] > 0
    flip(log, page_at(0, 100))
    assert wal_damage(log)  # after a crash nothing behind it could be read
    store.clear_log()  # but none has crashed: the newer pages are in the database now
    assert wal_damage(log) is None and check(store.path)["ok"]
    with opened(store.path) as beside:
        assert len(beside.labels) == 8


def _added_then_killed(say, folder):
    registry = opened(folder / "store")
    for number in range(2):
        registry.add(picture("more", number), "more", force=True)
    say(str(registry.store.database))


def test_what_a_killed_process_left_is_verified_by_whoever_recovers_it(tmp_path):
    make_store(tmp_path, 3).close()
    process = Worker(_added_then_killed, tmp_path)
    database = process.hear()
    whole = Path(f"{database}-wal").read_bytes()
    process.kill()
    Path(f"{database}-wal").write_bytes(whole)
    flip(f"{database}-wal", page_at(0, 100))
    for _ in range(2):
        with pytest.raises(Damaged, match="log is damaged, and commits in it cannot be read"):
            opened(tmp_path / "store")


def test_a_damaged_log_in_use_is_not_rebuilt(store, log):
    with store.write() as db:
        db.pragma("user_version", VERSION)  # in the first page, which is read when a database is opened
    flip(log, page_at(last_frames(log)[1], 777))
    with pytest.raises(Damaged):
        Store(store.path)
    whole = log.read_bytes()
    with pytest.raises(Busy, match="is in use"):
        check(store.path, rebuild=True)
    assert log.read_bytes() == whole and not list(store.path.glob("registry.sqlite.damaged-*"))


# ---------------------------------------------------------------- other threads
def test_while_the_disk_writes_other_threads_run(store, log, monkeypatch):
    """apsw itself would hold Python's lock all the time that a commit takes."""
    ours = {log.stat().st_ino: "log", store.database.stat().st_ino: "database"}
    written, write = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: written.append(ours.get(os.fstat(descriptor).st_ino))
                        or write(descriptor))
    with store.write() as db:
        db.execute("UPDATE collection SET margin = 0.1")
    store.clear_log()
    assert [name for name in written if name] == ["log", "log", "database"]


def _is_locked(say, database):
    with open(database, "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)  # what each connection to a log has a share of
            say(False)
        except BlockingIOError:
            say(True)


def test_who_closes_a_connection_ends_no_lock_of_another_one(store):
    """Whoever finds the store unlocked takes it for closed, and deletes the log."""
    opened(store.path).close()
    assert Worker(_is_locked, store.database).end() == [True]
    status = os.stat(store.database)
    store.close()
    assert Worker(_is_locked, store.database).end() == [False]
    assert (status.st_dev, status.st_ino) not in layer._Database._shared


def test_while_another_process_writes_other_threads_run(store, monkeypatch):
    asleep, done = threading.Event(), threading.Event()

    def sleep(seconds):
        assert 0 < seconds < 1
        asleep.set()
        done.wait(60)

    def write():
        with store.write() as db:
            db.execute("UPDATE collection SET margin = 0.1")

    with opened(store.path) as other, other.store.write():
        monkeypatch.setattr(layer.time, "sleep", sleep)
        writer = threading.Thread(target=write)
        writer.start()
        assert asleep.wait(20)
    done.set()
    writer.join(60)
    assert store.read("SELECT margin FROM collection") == [(0.1,)]


# ---------------------------------------------------------------- large transactions
@pytest.fixture
def spilled(tmp_path):
    """A database with a transaction under way that has written some pages twice into the log: (connection, log)."""
    tables = "CREATE TABLE some(id INTEGER PRIMARY KEY, text TEXT)"
    with contextlib.closing(open_database(tmp_path / "some.sqlite", create=tables)) as db, db:
        db.executemany("INSERT INTO some(text) VALUES (?)", [("x" * 100,) for _ in range(1000)])
    db = open_database(tmp_path / "some.sqlite")
    db.pragma("cache_size", 10)
    db.execute("BEGIN IMMEDIATE")
    for _ in range(3):
        db.executemany("UPDATE some SET text = text || 'y' WHERE id = ?", [(number,) for number in range(1, 1001)])
    log = tmp_path / "some.sqlite-wal"
    assert len(frames(log)) < 3 * 40, "no page was written twice"
    yield db, log
    db.close()


def test_a_large_transaction_reads_what_it_has_written_twice(spilled):
    db, log = spilled
    wanted = [(1000, 103_000)]
    assert list(db.execute("SELECT count(*), sum(length(text)) FROM some")) == wanted
    db.execute("SAVEPOINT inner")
    db.execute("UPDATE some SET text = ''")
    db.execute("ROLLBACK TO inner")
    assert list(db.execute("SELECT count(*), sum(length(text)) FROM some")) == wanted
    db.execute("COMMIT")
    db.execute("INSERT INTO some(text) VALUES ('')")
    with contextlib.closing(open_database(log.with_name("some.sqlite"))) as beside:
        assert list(beside.execute("SELECT count(*), sum(length(text)) FROM some")) == [(1001, 103_000)]
        assert beside.pragma("integrity_check") == "ok" and wal_damage(log) is None


def test_a_large_transaction_commits_nothing_that_is_damaged(spilled):
    db, log = spilled
    flip(log, log.read_bytes().rindex(b"xyyy") + 2)
    with pytest.raises(apsw.IOError, match="log is damaged"):
        db.execute("COMMIT")
    if db.in_transaction:
        db.execute("ROLLBACK")
    assert list(db.execute("SELECT count(*), sum(length(text)) FROM some")) == [(1000, 100_000)]


def test_who_writes_after_a_large_transaction_was_given_up_is_not_taken_for_damage(spilled):
    db, log = spilled
    db.execute("ROLLBACK")
    with contextlib.closing(open_database(log.with_name("some.sqlite"))) as beside, transaction(beside):
        beside.execute("UPDATE some SET text = text || 'z'")
    assert list(db.execute("SELECT count(*), sum(length(text)) FROM some")) == [(1000, 101_000)]
    assert wal_damage(log) is None


# ---------------------------------------------------------------- replay
@pytest.fixture
def copies(store, log, tmp_path):
    """(log, database, the database as a checkpoint leaves it)"""
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{store.database}{suffix}", tmp_path / f"copy{suffix}")
        shutil.copyfile(f"{store.database}{suffix}", tmp_path / f"other{suffix}")
    open_database(tmp_path / "other").close()
    assert not (tmp_path / "other-wal").exists()
    return tmp_path / "copy-wal", tmp_path / "copy", (tmp_path / "other").read_bytes()


def test_a_whole_log_is_replayed_as_by_a_checkpoint(copies):
    log, database, wanted = copies
    assert replay(log, database) == (0, 0) and database.read_bytes() == wanted


@pytest.mark.parametrize("bit", [1, 16])
@pytest.mark.parametrize("at", [0, 9, 13, 17, 25, 31, HEAD, HEAD + 2, HEAD + 5, HEAD + 9, HEAD + 17, HEAD + 23,
                                page_at(0, 1777), page_at(3, 4), page_at(5, 4001), page_at(4) - 6, page_at(7) - 1])
def test_a_flipped_bit_of_a_log_is_flipped_back(copies, at, bit):
    """Of the head, of what stands before a page, of a page: in the lower 23 bits of a word, or in a checksum."""
    log, database, wanted = copies
    flip(log, at, bit)
    assert wal_damage(log)
    mended, damaged = replay(log, database)
    assert damaged == 0 and mended <= 1 and database.read_bytes() == wanted


def test_a_page_that_stays_damaged_has_a_wrong_checksum(copies):
    log, database, wanted = copies
    frame = max(last_frames(log).values())
    page = frames(log)[frame][0]
    flip(log, page_at(frame, 1003), 128)  # the highest bit of a word
    assert replay(log, database) == (0, 1)
    found = database.read_bytes()
    assert len(found) == len(wanted)
    different = {at // PAGE + 1 for at in range(0, len(found), PAGE) if found[at:at + PAGE] != wanted[at:at + PAGE]}
    assert different == {page}
    start = (page - 1) * PAGE
    assert own_checksum(wanted[start:start + PAGE]) == wanted[start + PAGE - 8:start + PAGE]
    assert own_checksum(found[start:start + PAGE]) != found[start + PAGE - 8:start + PAGE]


def test_rows_of_a_damaged_page_are_told(store, log):
    at = place_of(store, "type", b"label2")
    flip(log, at + 3 - (at - HEAD - FRAME) % STEP % 4, 128)  # the highest bit of its word
    store.close()
    report = check(store.path, rebuild=True)
    assert not report["ok"] and any("1 pages of its log are damaged" in line for line in report["problems"])
    assert any("rows of type come from damaged pages" in line for line in report["problems"])
    assert report["references"] == 8
