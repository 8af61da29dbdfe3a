"""Pictures that were put for rows that never came: deleted at once, whatever others do with the same picture."""
import multiprocessing
import os
import random
import resource
import time

import pytest

from inference.errors import UserError
from inference.image import ImageError
from inference.registry import blobs as module
from inference.registry.errors import Busy, Conflict, Damaged, Outdated, Refused, StoreFull
from tests.helpers.disks import fill, small_disk
from tests.helpers.ranks import FRESH
from tests.helpers.stores import Worker, check_whole, content, make_store, opened, picture

NEW = [(picture(number), "more") for number in range(10, 14)]
CALLS = {  # and how many pictures each registers
    "add": (lambda registry: registry.add(NEW[0][0], "more", force=True), 1),
    "add unknown": (lambda registry: registry.add(NEW[0][0], kind="unknown", force=True), 1),
    "add many": (lambda registry: registry.add_many(NEW), 4),
    "import": (lambda registry: registry.import_(registry.store.path.parent / "more.zip"), 4)}


@pytest.fixture
def registry(tmp_path):
    with make_store(tmp_path, 3) as registry:
        yield registry


@pytest.fixture
def exported(tmp_path):
    with make_store(tmp_path / "other") as other:
        other.add_many(NEW)
        other.export(tmp_path / "more.zip")


def files(registry) -> list[str]:
    return sorted(path.name for path in registry.store.blobs.folder.rglob("*") if path.is_file())


def raising(error, when=lambda: None):
    def broken(*_, **__):
        when()
        raise error
    return broken


# ---------------------------------------------------------------- of one process
@pytest.mark.parametrize("error", [Conflict("x"), Busy("x"), StoreFull("x"), UserError("x"), RuntimeError("x"),
                                   KeyboardInterrupt()], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("name", CALLS)
def test_a_transaction_that_fails_leaves_no_picture(registry, exported, monkeypatch, name, error):
    call, pictures = CALLS[name]
    before, there, seen = content(registry), files(registry), []
    with monkeypatch.context() as patch:
        patch.setattr(registry, "insert", raising(error, lambda: seen.append(len(files(registry)))))
        with pytest.raises(type(error)):
            call(registry)
    assert seen == [3 + pictures] and files(registry) == there and content(registry) == before
    call(registry)
    assert check_whole(registry) == 0 and len(files(registry)) == 3 + pictures


def test_what_is_refused_at_the_second_look_leaves_no_picture(registry, monkeypatch):
    """Its twin is registered by another process while it is embedded."""
    insert = registry.insert

    def outdated(*given):
        monkeypatch.setattr(registry, "insert", insert)
        raise Outdated("a model was added")

    monkeypatch.setattr(registry, "insert", outdated)
    monkeypatch.setattr(registry, "_inspected", lambda *given, inspected=registry._inspected: inspected(*given)
                        if registry.insert is outdated else raising(Refused("a twin", []))())
    with pytest.raises(Refused):
        registry.add(NEW[0][0], "more", force=True)
    assert len(files(registry)) == 3


def test_an_image_that_cannot_be_used_takes_those_before_it_along(registry):
    with pytest.raises(ImageError, match="image 4"):
        registry.add_many([*NEW, (b"no image", "x")])
    assert len(files(registry)) == 3
    with pytest.raises(RuntimeError, match="stopped"):
        registry.add_many(NEW, progress=raising(RuntimeError("stopped")))
    assert len(files(registry)) == 3 and check_whole(registry) == 0


def test_a_damaged_file_among_those_imported(registry, tmp_path):
    for number, (data, _) in enumerate(NEW):
        (tmp_path / f"folder/{number}").mkdir(parents=True)
        (tmp_path / f"folder/{number}/a.png").write_bytes(data if number != 3 else data[:-20])
    with pytest.raises(ImageError):
        registry.import_(tmp_path / "folder")
    assert len(files(registry)) == 3


def test_what_another_process_registers_while_it_is_imported(registry, exported, monkeypatch):
    """Their types are there when the transaction begins: they are skipped, and it is no failure."""
    mutate = registry.mutate

    def late(*given):
        monkeypatch.setattr(registry, "mutate", mutate)
        registry.add(picture(77), "more", force=True)
        return registry.mutate(*given)

    monkeypatch.setattr(registry, "mutate", late)
    answer = registry.import_(registry.store.path.parent / "more.zip")
    assert answer == dict(event=None, types=0, references=0, skipped=4)
    assert check_whole(registry) == 0 and len(files(registry)) == 4


def test_a_picture_that_has_a_row_stays(registry, monkeypatch):
    registry.remove("t1")  # removed rows, too: an undo brings them back
    with monkeypatch.context() as patch:
        patch.setattr(registry, "insert", raising(Conflict("x")))
        for number in range(3):
            with pytest.raises(Conflict):
                registry.add(picture(number), "more", force=True)
    assert len(files(registry)) == 3
    registry.undo()
    assert check_whole(registry) == 0


def test_after_damage_nothing_is_deleted(registry, monkeypatch):
    """A commit that failed on the disk may turn out to have come through."""
    monkeypatch.setattr(registry, "insert", raising(Damaged("x")))
    with pytest.raises(Damaged):
        registry.add(NEW[0][0], "more", force=True)
    assert len(files(registry)) == 4


def test_a_failure_waits_for_no_long_transaction(registry, tmp_path, monkeypatch):
    with opened(tmp_path / "store") as other, other.store.write():
        monkeypatch.setattr(registry, "mutate", raising(Busy("another process has been writing for 30 s")))
        began = time.monotonic()
        with pytest.raises(Busy):
            registry.add(NEW[0][0], "more", force=True)
        assert 1 < time.monotonic() - began < 15
    assert len(files(registry)) == 4  # that is for `check`
    with registry.store.write():
        pass  # and the next one waits as long as ever
    assert registry.store._writer.pragma("busy_timeout") == 30_000


def test_who_finds_a_picture_sees_its_name_to_the_disk(registry, monkeypatch):
    """Who put it there may not have got so far."""
    seen = []
    monkeypatch.setattr(module, "_sync", lambda folder, sync=module._sync: seen.append(folder) or sync(folder))
    name = registry.store.blobs.put(picture(1))
    assert seen == [registry.store.blobs.path(name).parent]


# ---------------------------------------------------------------- full disk
def test_a_full_disk_is_not_filled_further(tmp_path):
    with small_disk(tmp_path / "disk", 3) as disk, make_store(disk, 3) as registry:
        fill(disk)
        os.truncate(disk / "filler", os.path.getsize(disk / "filler") - 100_000)
        for number in range(20, 400):
            try:
                registry.add(picture(number), "more", force=True)
            except StoreFull:
                break
        else:
            pytest.fail("the disk was not full")
        assert check_whole(registry) == 0


def _with_little_room(say, folder):
    with opened(folder / "store") as registry:
        size = os.path.getsize(f"{registry.store.database}-wal")
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5000, resource.RLIM_INFINITY))
        failed = 0
        for number in range(20, 40):
            try:
                registry.add(picture(number), "more", force=True)
            except StoreFull:
                failed += 1
        say(failed)
        say(check_whole(registry))


def test_a_log_that_may_not_grow_leaves_no_pictures(registry, tmp_path):
    registry.close()
    failed, orphans = Worker(_with_little_room, tmp_path).end()
    assert failed > 10 and orphans == 0


# ---------------------------------------------------------------- of several processes
ROUNDS = 60


def _registers(say, folder, meet):
    """Adds a picture each round; all are acknowledged, however often others delete the file of it."""
    with opened(folder / "store") as registry:
        put, draw, puts = registry.store.blobs.put, random.Random(1), []

        def slow(data):
            puts.append(put(data))
            time.sleep(draw.random() / 100)
            return puts[-1]

        registry.store.blobs.put = slow
        for number in range(ROUNDS):
            meet.wait(60)
            registry.add(picture("race", number), f"race {number}", force=True)
        say(len(puts))


def _registers_many(say, folder, meet):
    """The same pictures in one transaction each; Outdated where one was deleted meanwhile."""
    with opened(folder / "store") as registry:
        outdated = 0
        for number in range(ROUNDS):
            meet.wait(60)
            try:
                registry.add_many([(picture("race", number), f"race {number}"), (picture("many", number), "many")])
            except Outdated:
                outdated += 1
        say(outdated)


def _fails(say, folder, meet, seed):
    """Adds the same pictures, and fails each time when it has the lock; deletes slowly."""
    with opened(folder / "store") as registry:
        registry.insert = raising(Conflict("x"))
        delete, draw, deleted = registry.store.blobs.delete, random.Random(seed), []

        def slow(name):
            time.sleep(draw.random() / 200)
            deleted.append(name)
            delete(name)

        registry.store.blobs.delete = slow
        for number in range(ROUNDS):
            meet.wait(60)
            time.sleep(draw.random() / 100)
            with pytest.raises(Conflict):
                registry.add(picture("race", number), "never", force=True)
        say(len(deleted))


def test_failures_of_others_cost_no_registered_picture(registry, tmp_path):
    meet = multiprocessing.get_context(FRESH).Barrier(4)
    registers, many, *failing = [Worker(work, tmp_path, meet, *more) for work, *more in (
        (_registers,), (_registers_many,), (_fails, 2), (_fails, 3))]
    (puts,), (outdated,), *deleted = [worker.end() for worker in (registers, many, *failing)]
    assert puts > ROUNDS and min(one for one, in deleted) > 0  # they did meet
    names = registry.labels
    assert [f"race {number}" for number in range(ROUNDS) if f"race {number}" not in names] == [] and "never" not in names
    references = {one["reference"] for one in registry.references(limit=1000)}
    assert len(references) == 3 + ROUNDS + 2 * (ROUNDS - outdated)
    assert check_whole(registry, searched=20) == 0
