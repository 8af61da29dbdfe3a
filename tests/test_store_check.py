"""A store that is damaged on the disk: one line, never a wrong answer; what is saved of it; backups while others write."""
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from inference.errors import UserError
from inference.registry import Registry, Store, state
from inference.registry.check import ORPHAN, check
from inference.registry.copies import backup, restore
from inference.registry.errors import Damaged, StoreFull
from inference.registry.index import MemoryIndex
from inference.registry.wal import wal_damage
from tests.helpers.models import blocks, write_model

LABELS = [f"type {number}" for number in range(40)]


def png(seed):
    return cv2.imencode(".png", blocks(seed))[1].tobytes()


def content(registry):
    """What a user sees of it."""
    references = [(row["reference"], row["label"], row["sha256"]) for row in registry.references(limit=10_000)]
    return registry.labels, references, [row["text"] for row in registry.events(limit=10_000)]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """(a store that was closed, the same with its log as a kill leaves it, what is in them)"""
    folder = tmp_path_factory.mktemp("stores")
    model = write_model(folder / "model.onnx")
    registry = Registry.open(folder / "closed", create=True, model=model, find="never", threads=1)
    assert b"CREATE TABLE" in (folder / "closed" / "registry.sqlite").read_bytes()  # none of them in the log alone
    registry.close()
    registry = Registry.open(folder / "closed", threads=1)
    for seed in range(len(LABELS)):
        registry.add(png(seed), LABELS[seed], force=True)
    registry.add_many([(png(seed), LABELS[seed % 40]) for seed in range(40, 240)])
    registry.rename("type 1", "renamed")
    registry.remove("type 2")
    registry.set_threshold(0.8)
    wanted = content(registry)
    shutil.copytree(folder / "closed", folder / "killed")
    registry.close()
    return folder / "closed", folder / "killed", wanted


@pytest.fixture
def copy_of(tmp_path):
    def copy(store):
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        shutil.copytree(store, tmp_path / "store")
        return tmp_path / "store"

    return copy


def flip(path, seed, below=None):
    """Flip one bit of a file, of its first `below` bytes; the same one for the same seed."""
    rng = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    data[rng.integers(min(below or len(data), len(data)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def one_line(error):
    assert str(error).isprintable() and len(str(error)) < 600


# ---------------------------------------------------------------- checking
def test_a_whole_store_is_whole(stores, copy_of):
    for store in stores[:2]:
        report = check(copy_of(store))
        assert report == dict(ok=True, problems=[], repaired=[], swept=[], collections=1, types=39, references=234,
                              pictures=240, features=240, models=1)


def test_check_says_what_it_does_and_refuses_other_folders(stores, copy_of, tmp_path):
    lines = []
    check(copy_of(stores[0]), progress=lines.append)
    assert lines == ["reading the database", "reading vectors", "reading images"]
    with pytest.raises(UserError, match="no store there"):
        check(tmp_path)


def test_a_store_in_use_is_checked(stores, copy_of):
    with Registry.open(copy_of(stores[0]), threads=1) as registry:
        assert check(registry.store)["ok"] and check(registry.store.path)["ok"]
        assert content(registry) == stores[2]


def test_pictures_that_are_damaged_or_missing_are_named(stores, copy_of):
    store = copy_of(stores[0])
    with Registry.open(store, threads=1) as registry:
        first, second = registry.references(limit=2)
        path = registry.store.blobs.path(first["sha256"])
        path.write_bytes(path.read_bytes() + b"x")
        registry.store.blobs.delete(second["sha256"])
        for rebuild in (False, True):  # a picture cannot be made again
            report = check(store, rebuild)
            assert not report["ok"] and len(report["problems"]) == 2
            assert any(f"reference {first['reference']}" in line and "is damaged" in line for line in report["problems"])
            assert any(f"reference {second['reference']}" in line for line in report["problems"])
        with pytest.raises(Damaged):
            registry.picture(first["reference"])
        assert registry(png(0)) == ("type 0", pytest.approx(1))  # its vectors are there


def test_pictures_without_a_row_are_deleted_after_an_hour(stores, copy_of):
    store = copy_of(stores[0])
    blobs = Store(store).blobs
    old, young = blobs.put(png(900)), blobs.put(png(901))
    partial = blobs.path(old).with_name(".x.partial")
    partial.write_bytes(b"")
    (model := store / "models" / ".y.onnx.1.partial").write_bytes(b"")  # of a copy that was killed
    past = time.time() - 2 * ORPHAN
    registered = next(blobs.path(name) for name in blobs.names() if name not in (old, young))
    for path in (blobs.path(old), partial, model, registered):
        os.utime(path, (past, past))
    assert sorted(check(store)["swept"]) == sorted([old, partial.name, model.name])
    assert not blobs.has(old) and blobs.has(young) and check(store)["ok"] and len(list(blobs.names())) == 241


def test_vectors_are_made_again(stores, copy_of, monkeypatch):
    monkeypatch.setattr("inference.registry.check.AT_ONCE", 2)
    store = copy_of(stores[0])
    with Store(store) as opened, opened.write() as db:
        db.execute("UPDATE feature SET vectors = zeroblob(length(vectors)) WHERE reference = 1")
        db.execute("UPDATE feature SET vectors = substr(vectors, 1, 8) WHERE reference = 4")
        db.execute("DELETE FROM feature WHERE reference = 5")
    with pytest.raises(Damaged, match="the vectors of reference"), Registry.open(store, threads=1) as registry:
        registry(png(0))
    report = check(store)
    assert [line.split(";")[0] for line in report["problems"]] == [
        f"reference {number}: its vectors are {why}" for number, why in ((1, "damaged"), (4, "damaged"), (5, "missing"))]
    lines = []
    report = check(store, rebuild=True, progress=lines.append)
    assert report["ok"] and len(report["repaired"]) == 3 and check(store)["problems"] == []
    assert [line for line in lines if "again" in line] == [f"made {count} of 3 vectors again" for count in (2, 3)]
    with Registry.open(store, threads=1) as registry:
        for seed in (0, 3, 4):
            assert registry(png(seed)) == (LABELS[seed], pytest.approx(1))


def test_others_see_the_vectors_that_were_made_again(stores, copy_of):
    store = copy_of(stores[0])
    with Store(store) as opened, opened.write() as db:
        db.execute("DELETE FROM feature WHERE reference = 5")
    with Registry.open(store, threads=1) as registry:
        assert registry.search(png(4), 1)[0]["reference"] != 5
        check(store, rebuild=True)
        assert registry.search(png(4), 1)[0]["reference"] == 5


def test_a_damaged_model_is_named(stores, copy_of):
    size = next((stores[0] / "models").iterdir()).stat().st_size
    for seed, place in enumerate([None] * 12 + [0, 1, 10, size // 2, size - 1]):  # None: flip a bit; or else cut off there
        store = copy_of(stores[0])
        model = next((store / "models").iterdir())
        if place is None:
            flip(model, seed)
        else:
            model.write_bytes(model.read_bytes()[:place])
        try:
            with Registry.open(store, threads=1) as registry:
                assert registry(png(0))[0] == "type 0"  # a bit that nothing reads
        except UserError as error:
            one_line(error)
            report = check(store)
            assert not report["ok"] and "model" in report["problems"][0]


# ---------------------------------------------------------------- the database
def opened_and_asked(store):
    with Registry.open(store, threads=1) as registry:
        answers = [registry(png(seed)) for seed in (0, 1, 3)]
        return content(registry), answers


@pytest.mark.parametrize(("file", "below"), [("registry.sqlite", None), ("registry.sqlite", 100), ("registry.sqlite", 4096),
                                             ("registry.sqlite-wal", None), ("registry.sqlite-wal", 60)])
def test_a_flipped_bit_is_one_line_or_does_no_harm(stores, copy_of, file, below):
    closed, killed, wanted = stores
    base = killed if file.endswith("-wal") else closed
    whole, found = opened_and_asked(copy_of(base)), 0
    for seed in range(12):
        store = copy_of(base)
        flip(store / file, seed, below)
        if file.endswith("-wal") and wal_damage(store / file) is None:
            continue  # behind the last commit
        noticed = not check(store)["ok"]
        found += noticed
        if file.endswith("-wal"):
            assert noticed  # before it is opened: the first to open it ends the log there
            continue
        store = copy_of(base)
        flip(store / file, seed, below)
        try:
            assert opened_and_asked(store) == whole
        except UserError as error:
            one_line(error)
            assert noticed
    assert found >= 6


@pytest.mark.parametrize("share", [0, 1e-4, 0.05, 0.3, 0.7, 0.99])
def test_a_truncated_database_is_one_line(stores, copy_of, share):
    store = copy_of(stores[0])
    path = store / "registry.sqlite"
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * share)])
    with pytest.raises(UserError) as caught:
        opened_and_asked(store)
        assert False, "it was answered"
    one_line(caught.value)
    report = check(store)
    assert not report["ok"]
    for line in report["problems"]:
        one_line(line)


@pytest.mark.parametrize("share", [0, 0.001, 0.2, 0.6, 0.999])
def test_a_truncated_log_is_a_state_that_there_was(stores, copy_of, share):
    """As after a power cut: nothing tells that there was more."""
    store = copy_of(stores[1])
    path = store / "registry.sqlite-wal"
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * share)])
    (labels, references, texts), _ = opened_and_asked(store)
    assert texts == stores[2][2][:len(texts)] and {row[2] for row in references} <= {
        path.name for path in (store / "blobs").rglob("*")}
    assert check(store)["ok"]


def test_what_was_rolled_back_is_no_damage(stores, copy_of):
    """Pages of a large transaction are in the log before it ends."""
    store = copy_of(stores[0])
    with Store(store) as opened:
        with pytest.raises(ZeroDivisionError), opened.write() as db:
            db.execute("PRAGMA cache_size = 10")
            for number in range(300):
                db.execute("INSERT INTO picture VALUES (?, 1, 1, 1)", (f"{number:0999}",))
            raise ZeroDivisionError
        with opened.write() as db:
            db.execute("UPDATE collection SET margin = 0.1")
        assert (store / "registry.sqlite-wal").stat().st_size > 100_000
        assert wal_damage(store / "registry.sqlite-wal") is None


def test_the_log_is_no_damage_while_others_write(stores, copy_of):
    store = copy_of(stores[0])
    path, done = store / "registry.sqlite-wal", threading.Event()

    def write():
        with Store(store) as opened:
            while not done.is_set():
                with opened.write() as db:
                    db.execute("UPDATE collection SET margin = 0.1")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert not any(wal_damage(path) for _ in range(100))
    finally:
        done.set()
        writer.join()


# ---------------------------------------------------------------- rebuilding
@pytest.mark.parametrize(("file", "below", "least"), [("registry.sqlite", None, 0.97), ("registry.sqlite", 4096, 1),
                                                      ("registry.sqlite-wal", None, 0.97), ("registry.sqlite-wal", 32, 1)])
def test_flipped_bits_are_survived(stores, copy_of, file, below, least):
    base, wanted = stores[1] if file.endswith("-wal") else stores[0], stores[2]
    rebuilt = 0
    for seed in range(40):
        store = copy_of(base)
        flip(store / file, seed, below)
        report = check(store, rebuild=True)
        if not report["repaired"]:
            continue
        rebuilt += 1
        with Registry.open(store, threads=1) as registry:
            labels, references, _ = content(registry)
            same = len(set(references) & set(wanted[1])) / len(wanted[1])
            assert same >= least or any("recovered" in label for label in labels) or report["problems"]
            assert same == 1 or report["problems"]  # what is not as it was is told
            assert len(references) >= 0.9 * len(wanted[1])
            assert registry(png(20))[1] == pytest.approx(1)
            registry.add(png(999), "new", force=True)
        assert list(store.glob("registry.sqlite.damaged-*")) and not list(store.glob(".rebuild-*"))
        assert not [line for line in check(store)["problems"] if "registry.sqlite" in line]
        if rebuilt == 4:
            return
    assert rebuilt >= 3


def test_what_a_truncated_database_still_has_is_saved_and_other_pictures_are_kept(stores, copy_of):
    store = copy_of(stores[0])
    path = store / "registry.sqlite"
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    pictures = len(list(Store(stores[0]).blobs.names()))
    report = check(store, rebuild=True)
    assert report["repaired"]
    lost = list((store / "lost").iterdir())
    assert len(lost) + len(list(Store(store).blobs.names())) == pictures
    with Registry.open(store, threads=1) as registry:
        rows = registry.references(limit=1000)
        assert len(lost) + len({row["sha256"] for row in rows}) <= pictures
        for row in rows[:5]:
            assert registry.search(registry.picture(row["reference"]), 1)[0]["score"] == pytest.approx(1)


def test_a_database_of_which_nothing_is_left_is_one_line_and_stays(stores, copy_of):
    store = copy_of(stores[0])
    (store / "registry.sqlite").write_bytes(b"")
    with pytest.raises(Damaged, match="nothing of it can be read; restore a backup") as caught:
        check(store, rebuild=True)
    one_line(caught.value)
    assert (store / "registry.sqlite").read_bytes()[:1] in (b"", b"S") and not list(store.glob(".rebuild-*"))


def test_a_database_of_a_newer_program_is_not_rebuilt(stores, copy_of):
    store = copy_of(stores[0])
    with Store(store) as opened, opened.write() as db:
        db.execute("PRAGMA user_version = 99")
    for rebuild in (False, True):
        with pytest.raises(UserError, match="its format is 99"):
            check(store, rebuild)


def test_a_damaged_database_that_is_in_use_is_not_rebuilt(stores, copy_of):
    store = copy_of(stores[0])
    with Registry.open(store, threads=1) as registry:
        registry(png(0))
        path = store / "registry.sqlite"
        data = bytearray(path.read_bytes())
        data[-5000] ^= 1
        path.write_bytes(data)
        try:
            report = check(store, rebuild=True)
        except UserError as error:
            assert "is in use; stop everything" in str(error)
        else:
            assert report["repaired"] == []


# ---------------------------------------------------------------- copies
def test_a_backup_is_a_store_with_the_same(stores, copy_of, tmp_path):
    store = copy_of(stores[1])
    with Registry.open(store, threads=1) as registry:
        result = backup(registry.store, tmp_path / "backups" / "one")
    assert (result["pictures"], result["linked"], result["copied"]) == (240, 240, 0)
    copied = tmp_path / "backups" / "one"
    assert sorted(path.name for path in copied.iterdir()) == ["blobs", "models", "registry.sqlite"]
    assert opened_and_asked(copied)[0] == stores[2] and check(copied)["ok"]
    shutil.rmtree(store)
    result = restore(copied, tmp_path / "again")
    assert (result["copied"], result["linked"]) == (240, 0)
    assert opened_and_asked(tmp_path / "again")[0] == stores[2] and check(tmp_path / "again")["ok"]
    one = next(path for path in (copied / "blobs").rglob("*") if path.is_file())
    assert one.stat().st_ino != (tmp_path / "again" / one.relative_to(copied)).stat().st_ino


def test_a_damaged_link_is_not_taken(stores, copy_of, tmp_path):
    store = copy_of(stores[0])
    backup(store, tmp_path / "backups" / "one")
    picture = next(path for path in (tmp_path / "backups" / "one" / "blobs").rglob("*") if path.is_file())
    data = picture.read_bytes()
    picture.unlink()
    picture.write_bytes(data[:-1])
    with pytest.raises(Damaged, match="a registered image is damaged"):
        restore(tmp_path / "backups" / "one", tmp_path / "again")
    assert not (tmp_path / "again").exists() and not list(tmp_path.glob(".again*"))
    assert backup(store, tmp_path / "backups" / "two")["pictures"] == 240 and check(tmp_path / "backups" / "two")["ok"]


def test_nothing_is_overwritten(stores, copy_of, tmp_path):
    store = copy_of(stores[0])
    for target in (store, tmp_path / "full", tmp_path / "file"):
        if target != store:
            target.mkdir() if target.name == "full" else target.write_text("x")
            (target / "x").write_text("x") if target.name == "full" else None
        with pytest.raises(UserError, match="is there already"):
            backup(store, target)
        with pytest.raises(UserError, match="is there already"):
            restore(stores[0], target)
    with pytest.raises(UserError, match="no store there"):
        restore(tmp_path / "full", tmp_path / "new")
    (tmp_path / "empty").mkdir()
    assert backup(store, tmp_path / "empty")["pictures"] == 240


@pytest.mark.parametrize("damage", ["registry.sqlite", "registry.sqlite-wal", "models", "blobs"])
def test_no_backup_is_made_of_a_damaged_store(stores, copy_of, tmp_path, damage):
    store = copy_of(stores[1] if damage.endswith("-wal") else stores[0])
    path = store / damage
    if path.is_dir():
        path = next(one for one in path.rglob("*") if one.is_file())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        backup(store, tmp_path / "backup")
    one_line(caught.value)
    assert not (tmp_path / "backup").exists() and not list(tmp_path.glob(".backup*"))


WRITES = """
import sys
from inference.registry import Registry
from tests.helpers.models import blocks
with Registry.open(sys.argv[1], threads=1) as registry:
    for seed in range(10_000, 100_000):
        registry.add(blocks(seed), f"new {seed % 7}", force=True)
        print(seed, flush=True)
"""


def test_backups_while_another_process_adds(stores, copy_of, tmp_path):
    store = copy_of(stores[0])
    writer = subprocess.Popen([sys.executable, "-c", WRITES, store], stdout=subprocess.PIPE, text=True)
    try:
        for number in range(3):
            for _ in range(5):
                written = int(writer.stdout.readline())
            result = backup(store, tmp_path / "backups" / str(number))
            copied = tmp_path / "backups" / str(number)
            report = check(copied)
            assert report["ok"] and report["pictures"] == result["pictures"] == report["features"]
            assert result["pictures"] >= 240 + written - 10_000 + 1  # all that was acknowledged before
            with Registry.open(copied, threads=1) as registry:
                assert registry(blocks(written))[0] == f"new {written % 7}"
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    assert check(store)["ok"]


def test_a_full_disk_leaves_no_half_backup(stores, copy_of, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="no room|cannot be written .No space left"):
        backup(copy_of(stores[0]), tmp_path / "backup")
    assert not (tmp_path / "backup").exists() and not list(tmp_path.glob(".backup*"))
    monkeypatch.undo()
    store = copy_of(stores[0])
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StoreFull, match="no room on the disk"):
        backup(store, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_a_copy_is_another_store(stores, copy_of, tmp_path, monkeypatch):
    """What an engine of its own (PostgreSQL, Qdrant) holds of a store may be newer than a backup of it."""
    def id_of(path):
        with Store(path) as opened:
            return opened.read("SELECT id FROM store")[0][0]

    store = copy_of(stores[0])
    backup(store, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "one")
    restore(tmp_path / "backup", tmp_path / "two")
    found = [id_of(path) for path in (store, tmp_path / "backup", tmp_path / "one", tmp_path / "two")]
    assert len(set(found)) == 4 and id_of(store) == found[0]
    names = []
    monkeypatch.setattr(state, "open_index", lambda spec, depth, name: names.append(name) or MemoryIndex(depth))
    for path in (store, tmp_path / "backup", tmp_path / "one", tmp_path / "moved"):
        if path.name == "moved":
            shutil.move(store, path)
        with Registry.open(path) as registry:
            registry.snapshot()
    assert len(set(names)) == 3 and names[3] == names[0]  # one that was moved is the same


def test_what_a_power_cut_left_unfinished_is_no_damage(stores, copy_of, tmp_path):
    """Of the last transaction of all any frame may be missing; of those before it none."""
    log = tmp_path / "log"
    with Store(copy_of(stores[0])) as opened:
        for number in range(2):
            with opened.write() as db:
                db.execute("CREATE TABLE more(content BLOB)") if not number else None
                db.execute("INSERT INTO more VALUES (randomblob(20000))")
        whole = (opened.path / "registry.sqlite-wal").read_bytes()
        frame = int.from_bytes(whole[8:12], "big") + 24
        starts = range(32, len(whole), frame)
        commits = [place for place, start in enumerate(starts) if any(whole[start + 4:start + 8])]
        first, last = commits[-2] + 1, commits[-1]
        assert last - first >= 3
        for place in range(len(starts)):
            start = starts[place]
            log.write_bytes(whole[:start + 24] + bytes(frame - 24) + whole[start + frame:])
            assert (wal_damage(log) is None) == (place >= first), place
