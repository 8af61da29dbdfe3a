"""The store under faults, each for real: killed processes, full disks, many processes, flipped bits, forks, old clocks.

The same with large numbers: `python -m tests.faults.store`.
"""
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw
import cv2
import pytest

from inference import Registry
from inference.errors import UserError
from inference.image import ImageError
from inference.model import PART
from inference.registry import schema
from inference.registry.check import check
from inference.registry.errors import Conflict, Damaged, NotFound, Outdated, StoreFull
from inference.registry.graph import graph_hash, is_sealed, sealed
from tests.faults.store import flip_rounds, kill_rounds, many_processes
from tests.helpers.disks import fill, small_disk
from tests.helpers.models import blocks, write_model
from tests.helpers.stores import Worker, check_whole, content, files_of, last_event, make_store, opened, picture

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def registry(tmp_path):
    """Three types of one picture each."""
    with make_store(tmp_path, 3) as registry:
        yield registry


def add(registry, seed, label="new"):
    return registry.add(picture(seed), label, force=True)


def one_line(error) -> str:
    """The message of pytest's `error`, which is one line."""
    text = str(error.value)
    assert text and "\n" not in text
    return text


# ---------------------------------------------------------------- kills
def test_a_store_of_another_user_is_told_from_none(tmp_path, monkeypatch):
    Registry.open(tmp_path / "store", create=True).close()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may look everywhere
    with pytest.raises(UserError, match="store: the folder may not be read by this user;"):
        Registry.open(tmp_path / "store")


def test_what_was_acknowledged_is_there_after_a_kill(tmp_path):
    """The short form of `python -m tests.faults.store --kills 500`."""
    made = kill_rounds(15, 3, tmp_path)
    assert made["kills"] == 15 and made["stores"] == 1 and made["acknowledged"]
    assert sum(made[became] for became in ("opened", "committed", "not committed")) > 0


def _begin_to_open(say, folder, step):
    """Ends, as by a kill, at a given step of making a store."""
    from inference.registry import blobs
    die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    if step == "the file":
        os.makedirs(folder / "store")
        (folder / "store/registry.sqlite").touch()
        return die()
    if step == "the tables":
        schema.transaction = die
    elif step == "the model":
        blobs.os.replace = die
    opened(folder / "store", folder / "model.onnx")


@pytest.mark.parametrize("step", ["the file", "the tables", "the model"])
def test_making_a_store_goes_on_where_it_was_killed(tmp_path, step):
    write_model(tmp_path / "model.onnx")
    process = Worker(_begin_to_open, tmp_path, step)
    assert process.rest() == []
    process.process.join()
    assert process.process.exitcode == -signal.SIGKILL and (tmp_path / "store/registry.sqlite").exists()
    with opened(tmp_path / "store", tmp_path / "model.onnx") as registry:
        add(registry, 1)
        check_whole(registry)


def test_a_store_that_lost_its_database_is_not_made_anew(registry, tmp_path):
    registry.close()
    database = registry.store.database
    for lose in (lambda: os.truncate(database, 0), database.unlink):
        lose()
        with pytest.raises(Damaged) as error:
            opened(tmp_path / "store", tmp_path / "model.onnx")
        assert "restore it from a backup" in one_line(error)
    assert not database.exists()


# ---------------------------------------------------------------- full disk
@pytest.fixture
def disk(tmp_path):
    """A folder on a separate disk of 3 MB."""
    with small_disk(tmp_path / "disk", 3) as place:
        yield place


@pytest.mark.parametrize("what", ["picture", "log"])
def test_a_full_disk_changes_nothing_and_reading_goes_on(disk, what):
    with make_store(disk, 3) as registry:
        before, events = content(registry), last_event(registry)
        fill(disk)
        with pytest.raises(StoreFull) as error:
            for number in range(2000):  # the log has some room left
                # A picture that is there needs no room of its own.
                registry.add(picture(number if what == "picture" else number % 3), "more", force=True)
                before, events = content(registry), last_event(registry)
        assert "no room" in one_line(error) and error.value.status == 507 and error.value.code == "disk-full"
        assert content(registry) == before and last_event(registry) == events
        assert [result["label"] for result in registry.classify([picture(number) for number in range(3)])] == [
            "t0", "t1", "t2"]
        for change in (lambda: registry.remove("t1"), registry.undo, lambda: registry.set_settings(orientation="any")):
            with pytest.raises(StoreFull):  # perhaps the first ones still find room
                for _ in range(2000):
                    change()
                    registry.set_threshold(.5)
                    registry.undo()
            check_whole(registry)
        (disk / "filler").unlink()
        add(registry, "after", "after")
        assert registry.search(picture("after"), 1)[0]["label"] == "after"
        check_whole(registry)


def test_a_full_disk_at_the_opening_is_one_line(disk):
    make_store(disk, 3).close()
    fill(disk)
    try:
        with opened(disk / "store") as registry:
            assert registry(picture(1))[0] == "t1"
    except UserError as error:
        assert "\n" not in str(error) and "room" in str(error)
    with pytest.raises(UserError) as error:
        opened(disk / "another", disk / "model.onnx")
    assert one_line(error)
    (disk / "filler").unlink()
    with opened(disk / "store") as registry:
        assert registry.labels == ["t0", "t1", "t2"]
        check_whole(registry)


def _with_little_room(say, folder):
    with opened(folder / "store") as registry:
        add(registry, 0)
        size = os.path.getsize(f"{registry.store.database}-wal")
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5000, resource.RLIM_INFINITY))
        before = content(registry)
        try:
            while True:
                add(registry, 0)
                before = content(registry)
        except UserError as error:
            say((type(error).__name__, str(error)))
        assert content(registry) == before and registry(picture(1))[0] == "t1"
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        add(registry, 0)
        check_whole(registry)
        say("done")


def test_a_log_that_may_not_grow_is_a_full_disk(registry, tmp_path):
    """As with a quota: SQLite itself calls it an input/output error."""
    registry.close()
    (kind, message), done = Worker(_with_little_room, tmp_path).end()
    assert kind == "StoreFull" and "no room" in message and done == "done"


# ---------------------------------------------------------------- many at once
def test_many_processes_add_at_the_same_time(tmp_path):
    """The short form of `python -m tests.faults.store --processes 8 --adds 1000`."""
    made = many_processes(4, 25, tmp_path)
    assert made["adds"] == 100 and made["undone"] == 8 and made["answers beside"] and made["opened beside"]


def test_threads_of_one_process(registry):
    def work(thread):
        added = []
        for step in range(10):
            added.append(add(registry, (thread, step), f"{thread}-{step}")["reference"])
            assert registry(picture((thread, step)))[0] == f"{thread}-{step}"
            with pytest.raises(NotFound):  # looks for it in the database, while others load what changed
                registry.store.collection(f"none-{thread}")
        return added

    with ThreadPoolExecutor(3) as pool:
        added = [number for numbers in pool.map(work, range(3), timeout=60) for number in numbers]
    assert sorted(added) == list(range(4, 34))
    check_whole(registry)


def test_asking_for_collections_never_waits_for_who_loads_a_model(registry):
    """Each holds a lock that the other needs, unless they take them one after the other."""
    store, inside = registry.store, threading.Event()

    def load():
        with store.reading():
            inside.set()
            time.sleep(.2)
            store.model(registry.models()[0]["hash"])

    def ask():
        inside.wait()
        with pytest.raises(NotFound):
            store.collection("another")

    threads = [threading.Thread(target=target, daemon=True) for target in (load, ask)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


def _make(say, folder, number):
    with opened(folder / "store", folder / "model.onnx") as registry:
        say(registry.add(picture(number), f"t{number}", force=True)["reference"])


def test_several_processes_make_the_same_store(tmp_path):
    write_model(tmp_path / "model.onnx")
    said = [worker.end() for worker in [Worker(_make, tmp_path, number) for number in range(5)]]
    assert sorted(said) == [[1], [2], [3], [4], [5]]
    with opened(tmp_path / "store") as registry:
        check_whole(registry)
    assert len(list((tmp_path / "store/models").iterdir())) == 1


# ---------------------------------------------------------------- what changes while something else is under way
def test_settings_that_change_while_an_image_is_embedded(registry):
    prepare, other = registry.prepare, []

    def slow(*args, **more):
        prepared = prepare(*args, **more)
        if not other:
            other.append(registry.set_settings(orientation="any"))
        return prepared

    registry.prepare = slow
    made = add(registry, 9)
    rows = registry.store.read("SELECT reference, parts FROM feature")
    assert len(rows) == 4 and {parts for _, parts in rows} == {4} and made["reference"] == 4
    other.clear()
    registry.set_settings(orientation="upright")
    with pytest.raises(Outdated) as error:  # whose images may be gone by now
        registry.add_many([(picture(10), "many")])
    assert "try again" in one_line(error) and error.value.status == 503 and "many" not in registry.labels


def test_an_event_that_is_still_to_come_cannot_be_undone(registry):
    for number in (4, 5):  # the first would be this undoing itself
        with pytest.raises(NotFound):
            registry.undo(number)
    assert last_event(registry) == 3


def test_undone_settings_embed_again(registry):
    add(registry, 1, "t1")
    removed = registry.remove("t2")["event"]
    upright = content(registry)
    changed = registry.set_settings(orientation="any")["event"]
    assert {row[2] for row in content(registry)["features"]} == {4}
    again = registry.undo(removed)["event"]  # its vectors are those of now, too
    assert {row[2] for row in content(registry)["features"]} == {4}
    registry.undo(again)
    registry.undo(changed)
    assert content(registry) == upright
    turned = cv2.imencode(".png", cv2.rotate(blocks(7), cv2.ROTATE_90_CLOCKWISE))[1].tobytes()
    assert registry.search(turned, 1)[0]["score"] < .99


def test_a_picture_registered_again_while_it_is_deleted_for_good(registry):
    registry.remove("t1")
    put, purged = registry.store.blobs.put, []

    def slow(data):
        name = put(data)
        if not purged:
            purged.append(registry.purge(time.time() + 9))
        return name

    registry.store.blobs.put = slow
    made = add(registry, 1, "again")
    assert purged[0]["pictures"] == 1 and registry.picture(made["reference"]) == picture(1)
    del registry.store.blobs.put
    check_whole(registry)


def test_a_type_that_another_process_removes_in_the_meantime(registry, tmp_path):
    with opened(tmp_path / "store") as other:
        look_up, done = registry._type_id, []

        def slow(label):
            found = look_up(label)
            if label == "t1" and not done:
                done.append(other.remove("t1"))
            return found

        registry._type_id = slow
        with pytest.raises(NotFound, match="removed just now"):
            registry.merge("t0", "t1")
        assert registry.labels == ["t0", "t2"] and registry(picture(0))[0] == "t0"
        check_whole(registry)


# ---------------------------------------------------------------- disks and files that are not ours
def test_a_network_disk_is_refused(tmp_path, monkeypatch):
    schema.check_local(tmp_path)  # the true list of this machine
    mounts = tmp_path / "mounts"

    def check_on(folder, *rows):
        mounts.write_text("\n".join(("/dev/vda / ext4 rw 0 0", *rows)) + "\n", encoding="utf-8")
        schema.check_local(folder, mounts)

    for kind in ("nfs4", "cifs", "fuse.sshfs", "9p"):
        with pytest.raises(UserError, match=f"on a network disk .{kind}."):
            check_on("/net/x/store", f"host:/x /net/x {kind} rw 0 0")
    check_on("/net/xy", "host:/x /net/x nfs4 rw 0 0")  # another folder, whose name begins alike
    check_on("/net/x/local/store", "host:/x /net/x nfs4 rw 0 0", "/dev/vdb /net/x/local ext4 rw 0 0")
    with pytest.raises(UserError):  # mounted over a local one
        check_on("/net/x", "/dev/vdb /net/x ext4 rw 0 0", "host:/x /net/x nfs4 rw 0 0")
    for escaped, place in (("/net/a\\040b", "/net/a b"), ("/net/M\u00fcller\\040\u8b49", "/net/M\u00fcller \u8b49"),
                           ("/net/back\\134slash", "/net/back\\slash"), ("/net/M\u00fcller", "/net/M\u00fcller")):
        with pytest.raises(UserError):
            check_on(f"{place}/store", f"host:/x {escaped} nfs rw 0 0")
    schema.check_local(tmp_path, tmp_path / "no such list")


def test_a_link_to_a_network_disk_is_refused(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"host:/x {tmp_path}/far nfs rw 0 0\n")
    with pytest.raises(UserError):
        schema.check_local(tmp_path / "near", mounts)


def test_a_bind_mount_is_what_lies_below_it(tmp_path):
    place = tmp_path / "bound here"
    place.mkdir()
    make_store(tmp_path, 1).close()
    if subprocess.run(["mount", "--bind", tmp_path, place], capture_output=True).returncode:
        pytest.skip("needs the permission to mount")
    try:
        assert "bound\\040here" in Path("/proc/self/mounts").read_text()
        with opened(place / "store") as registry, opened(tmp_path / "store") as other:
            add(registry, 5)
            assert other.labels == ["new", "t0"]
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("statement", ["CREATE TABLE mine(x)", "PRAGMA user_version = 5", "PRAGMA application_id = 77"])
def test_the_database_of_another_program_is_refused_and_unchanged(tmp_path, statement, create):
    store = tmp_path / "store"
    store.mkdir()
    process = Worker(_other_program, store / "registry.sqlite", statement)
    process.hear()
    process.kill()  # its last change is in its log
    before = files_of(store)
    with pytest.raises(UserError) as error:
        opened(store, write_model(tmp_path / "model.onnx") if create else None)
    assert "not a database of this program" in one_line(error)
    after = files_of(store)
    assert {name for name in before if before[name] != after.get(name)} <= {"registry.sqlite-shm"}  # no more than locks
    (store / "registry.sqlite").write_bytes(b"no database at all, but long enough to be one" * 99)
    for end in ("-wal", "-shm"):
        (store / f"registry.sqlite{end}").unlink(missing_ok=True)
    with pytest.raises(Damaged) as error:
        opened(store)
    assert one_line(error)


def _other_program(say, path, statement):
    db = apsw.Connection(os.fspath(path))
    db.pragma("journal_mode", "wal")
    db.execute(statement)
    say("made")
    time.sleep(3600)


def test_other_versions_are_refused(registry, tmp_path, monkeypatch):
    with registry.store.write() as db:
        db.pragma("user_version", schema.VERSION + 1)
    registry.close()
    with pytest.raises(UserError, match=f"its format is {schema.VERSION + 1}, this program reads {schema.VERSION}") as error:
        opened(tmp_path / "store")
    assert one_line(error)
    for version, fits in (("3.51.2", False), ("3.7.0", False), ("3.51.3", True), ("3.54.1", True), ("4.0", True)):
        monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: version)
        with pytest.raises(UserError, match="its format" if fits else "can corrupt a store"):
            opened(tmp_path / "store")


# ---------------------------------------------------------------- damage
def test_damaged_files_give_the_same_answers_or_one_line(tmp_path):
    """The short form of `python -m tests.faults.store --flips 1000`."""
    made = flip_rounds(70, 1, tmp_path)
    for kind in ("registry.sqlite", "-wal", "model", "picture"):
        assert sum(count for name, count in made.items() if name.startswith(kind)), kind
    assert any(name.endswith("line") for name in made) and any(name.endswith("same") for name in made)


def test_a_kept_model_is_sealed(registry, tmp_path):
    """Thresholds in it are no part of its name, but a flipped bit in them shows."""
    data = (tmp_path / "model.onnx").read_bytes()
    digest = registry.models()[0]["hash"]
    kept = registry.store.model_path(digest)
    assert kept.read_bytes() == sealed(data) == sealed(sealed(data)) and is_sealed(kept.read_bytes())
    assert graph_hash(kept) == graph_hash(data) == digest and not is_sealed(data) and not is_sealed(b"")
    registry.close()
    at = sealed(data).index(b"thresholds")
    kept.write_bytes(sealed(data)[:at] + b"u" + sealed(data)[at + 1:])
    assert graph_hash(kept) == digest
    with pytest.raises(Damaged) as error, opened(tmp_path / "store") as damaged:
        damaged(picture(1))
    assert "restore it from a backup" in one_line(error)


def test_a_damaged_picture_is_mended_by_registering_it_again(registry):
    path = registry.store.blobs.path(registry.references()[1]["sha256"])
    path.write_bytes(b"damaged")
    with pytest.raises(Damaged):
        registry.picture(2)
    add(registry, 1, "t1")
    assert registry.picture(2) == picture(1)


def test_pages_that_say_they_have_no_checksums(registry, tmp_path):
    registry.close()
    with open(registry.store.database, "r+b") as file:
        file.seek(20)  # bytes that each page has for its checksum
        file.write(b"\0")
    with pytest.raises(Damaged) as error:
        opened(tmp_path / "store")
    assert one_line(error)


# ---------------------------------------------------------------- clocks, folders, forks
def test_a_clock_that_goes_backwards(registry, monkeypatch):
    clock = iter(range(2_000_000_000, 0, -86_400))
    true = time.time()
    monkeypatch.setattr(time, "time", lambda: next(clock))
    events = [add(registry, number, f"n{number % 2}")["event"] for number in range(4)]
    removed = registry.remove("n0")
    assert events == sorted(events) and registry(picture(0))[0] == "t0" and registry(picture(1))[0] != "n0"
    registry.undo(removed["event"])
    assert registry.type("n0")["references"] == 2
    for _ in range(4):
        registry.undo()
    assert registry.labels == ["t0", "t1", "t2"]
    monkeypatch.undo()
    assert registry.purge(true - 1)["references"] == 0 and registry.purge(3e9)["references"] == 4
    check_whole(registry)


def _as_nobody(say, folder, change):
    schema.checksummed()  # what is imported late may lie where nobody may read
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        with opened(folder) as registry:
            registry(picture(1))
            change and add(registry, 5)
            say("works")
    except UserError as error:
        say(str(error))


def test_a_folder_without_the_permission_to_write():
    """Reading takes locks, which are in files: one line, unless the files may be written."""
    place = Path(tempfile.mkdtemp(prefix="docmetric-"))  # pytest's own folders are not for other users
    try:
        make_store(place, 2).close()
        for mode, works in ((0o555, False), (0o777, True)):
            for path in [place, *place.rglob("*")]:
                path.chmod(mode)
            answer, = Worker(_as_nobody, place / "store", True).end()
            assert (answer == "works") == works and "\n" not in answer and (works or "permissions" in answer), answer
    finally:
        for path in [place, *place.rglob("*")]:
            path.chmod(0o777)
        shutil.rmtree(place)


def test_a_store_that_was_moved(registry, tmp_path):
    before = content(registry)
    registry.close()
    (tmp_path / "deep er").mkdir()
    shutil.move(tmp_path / "store", tmp_path / "deep er/renamed \u8b49\u4ef6")
    with pytest.raises(UserError, match="no store there"):
        opened(tmp_path / "store")
    with opened(tmp_path / "deep er/renamed \u8b49\u4ef6") as moved:
        assert content(moved) == before and moved(picture(2))[0] == "t2"
        check_whole(moved)


def test_a_store_that_is_open_twice_in_one_process(registry, tmp_path):
    """Closing one must not take the other's locks."""
    twin = opened(tmp_path / "store")
    add(twin, 4, "of the twin")
    assert registry(picture(4))[0] == "of the twin"
    assert check(tmp_path / "store")["ok"]
    twin.close()
    with registry.store.write():
        worker = Worker(_make, tmp_path, 5)
        with pytest.raises(AssertionError, match="says nothing"):
            worker.hear(1.5)  # it waits for the lock
    assert worker.end() == [5]
    assert registry(picture(5))[0] == "t5"
    registry.close()
    with pytest.raises(UserError) as error:
        registry(picture(5))
    assert "was closed" in one_line(error)


FORKS = """
import os, sys
from pathlib import Path
from inference.errors import UserError
from tests.helpers.stores import check_whole, content, opened, picture
registry = opened(Path(sys.argv[1]) / "store")
registry(picture(1))
for _ in range(3):
    child = os.fork()
    if not child:
        for use in (lambda: registry(picture(1)), lambda: registry.add(picture(9), "child", force=True), registry.undo,
                    lambda: registry.labels):
            try:
                use()
                os._exit(9)
            except UserError as error:
                assert "before this process was forked" in str(error)
        registry.close()
        with opened(Path(sys.argv[1]) / "store") as own:
            own.add(picture("child", os.getpid()), "child", force=True)
        for db in (registry.store._reader, registry.store._writer):  # as when all objects are taken down
            db.close()
        os._exit(0)  # as children of multiprocessing end; ONNX Runtime would hang
    registry.add(picture("parent", child), "parent", force=True)
    assert os.waitpid(child, 0)[1] == 0
    assert registry.search(picture("child", child), 1)[0]["label"] == "child"
check_whole(registry)
assert len(registry.references("child")) == len(registry.references("parent")) == 3
registry.close()
"""


def test_a_fork_opens_the_store_again(registry, tmp_path):
    registry.close()
    done = subprocess.run([sys.executable, "-c", FORKS, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    with opened(tmp_path / "store") as registry:
        check_whole(registry)


# ---------------------------------------------------------------- memory
def test_a_stream_of_many_files_stays_in_bounded_memory(registry, tmp_path):
    """Two parts a thread are under way, even if all their images lay there decoded; beside them a path for each image."""
    side, count = 400, 3000
    cv2.imwrite(str(tmp_path / "image.bmp"), blocks(1, side))  # cheap to decode
    (tmp_path / "broken.bmp").write_bytes(b"BM")
    paths = [tmp_path / ("broken.bmp" if number % 100 == 99 else "image.bmp") for number in range(count)]
    list(registry.stream(paths[:100]))
    tracemalloc.start()
    try:
        labels = [result["label"] for result in registry.stream(paths)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    limit = 2 * PART["cpu"] * 3 * side * side + 1024 * count
    assert len(labels) == count and peak < limit < 3 * side * side * count / 20, f"{peak:,} bytes, at most {limit:,}"


def test_streams_refuse_single_images_alone(registry):
    results = registry.classify([picture(0), b"no image", "no such file", picture(1)])
    assert [result["label"] for result in results] == ["t0", None, None, "t1"]
    assert [result["reason"] for result in results] == ["accepted", "unusable", "unusable", "accepted"]
    with pytest.raises(ImageError):
        registry(b"no image")
    with pytest.raises(Conflict):
        registry.merge("t0", "t0")
    assert Registry.open(registry.store.path).labels == ["t0", "t1", "t2"]
