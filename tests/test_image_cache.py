"""The cache of decoded images: the same pixels, what is decoded again, and what kills, tears, shares or fills it."""
import fcntl
import json
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import dataset
from augment import image_cache
from augment.image_cache import HEADER, CacheUnavailable, ImageCache
from dataset import Batches, ImageFolders, list_roots
from inference.errors import UserError
from inference.image import ImageError
from tests.helpers.folders import folders, same, write
from tests.helpers.ranks import FRESH, run_ranks

SIDE = 8


class Counting(ImageCache):
    """Images made of the file's content, without an image decoder; counts what it decodes."""

    def __init__(self, folder, wait=0.0):
        self.decoded = []
        super().__init__(folder, SIDE, self.resized)
        self.wait = wait

    def resized(self, path):
        time.sleep(self.wait)
        self.decoded.append(path)
        content = Path(path).read_bytes()
        if content.startswith(b"bad"):
            raise ImageError("not an image")
        return image_of(content)


def image_of(content):
    seed = int.from_bytes(content[:4].ljust(4, b"\0"), "little")
    return np.random.default_rng(seed).integers(0, 256, (3, SIDE, SIDE), np.uint8)


def check(folder, paths, decoded=None, cls=Counting):
    """Open, compare every row with its file, and count the decoded ones."""
    cache = cls(folder)
    images, found = cache.open(paths, progress=False)
    assert list(found) == paths and not (len(images) and images.flags.writeable)
    for path, row in found.items():
        if isinstance(row, int):
            assert np.array_equal(images[row], image_of(Path(path).read_bytes())), path
    assert decoded is None or len(cache.decoded) == decoded
    return found


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "data").mkdir()
    files = [tmp_path / "data" / f"{i}.bin" for i in range(20)]
    for i, file in enumerate(files):
        file.write_bytes(b"bad" if i == 7 else f"{i:04} is here".encode())
    return [str(file) for file in files]


@pytest.fixture
def index(tmp_path):
    return tmp_path / "cache" / "8px-v1" / "index"


@pytest.mark.parametrize("expansion", [1, 24])
def test_batches_are_the_same_with_and_without(tmp_path, expansion):
    folder = write(tmp_path / "a", 5)
    kept = str(tmp_path / "c")
    without, built, found = (folders([folder], expansion, cache=cache) for cache in (False, kept, kept))
    assert built.cached and found.cached and not without.cached
    for k in (0, 3):
        batches = [Batches(images, 16, 1, 0, 0, 1)[k] for images in (without, built, found)]
        assert all(same(batch, batches[0]) for batch in batches)


def test_only_what_changed_is_decoded_again(tmp_path, paths):
    cache = tmp_path / "cache"
    first = check(cache, paths, 20)
    assert first[paths[7]] == "not an image" and len(set(first.values())) == 20
    assert check(cache, paths, 0) == first
    status = os.stat(paths[0])
    Path(paths[0]).write_bytes(b"5555 is here")                # the same size
    os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    Path(paths[1]).write_bytes(b"6666 is longer")               # another size, the same time
    os.utime(paths[1], ns=(os.stat(paths[2]).st_atime_ns, os.stat(paths[1]).st_mtime_ns))
    Path(paths[7]).write_bytes(b"7777 is mended")
    check(cache, paths, 3)
    check(cache, paths[5:8], 0)
    Path(paths[3]).unlink()
    assert check(cache, paths, 0)[paths[3]] == "file not found"


def test_any_name_a_file_can_have(tmp_path):
    folder = os.fsencode(tmp_path / "data")
    os.mkdir(folder)
    names = [b"\xff\xfe.bin", "ü\u2028.bin".encode(), b"a\nb.bin", b'"\\.bin', b"[1, 2].bin"]
    for i, name in enumerate(names):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"%04d" % i)
    paths = [os.fsdecode(os.path.join(folder, name)) for name in names]
    check(tmp_path / "cache", paths, 5)
    check(tmp_path / "cache", paths, 0)


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path, paths, monkeypatch):
    def refused(self, path):
        try:
            raise PermissionError(13, "Permission denied")
        except OSError:
            raise ImageError("cannot be read: Permission denied") from None
    with monkeypatch.context() as patch:
        patch.setattr(Counting, "resized", refused)
        assert set(check(tmp_path / "cache", paths[:3]).values()) == {"cannot be read: Permission denied"}
    check(tmp_path / "cache", paths, 20)


def build(go, result, folder, reverse):
    paths = sorted(map(str, (folder / "data").iterdir()), reverse=reverse)
    cache = Counting(folder / "cache", wait=0.002)
    result.put("ready")
    go.wait()
    cache.open(paths, progress=False)
    result.put(len(cache.decoded))


def ready_build(tmp_path, reverse=False):
    """(a process that builds once `go` is set, go, a queue with the number of files that it decoded)"""
    context = multiprocessing.get_context(FRESH)
    go, result = context.Event(), context.SimpleQueue()
    process = context.Process(target=build, args=(go, result, tmp_path, reverse))
    process.start()
    assert result.get() == "ready"
    return process, go, result


def test_a_killed_build_goes_on_where_it_was(tmp_path, index):
    """Killed at several moments of one build; whatever then has a line is whole, and little is done twice."""
    (tmp_path / "data").mkdir()
    for i in range(2000):
        (tmp_path / "data" / f"{i:04}.bin").write_bytes(b"%04d" % i)
    def lines():
        return index.read_bytes().count(b"\n") - 1 if index.exists() else 0
    for delay in np.random.default_rng().uniform(0.1, 0.6, 3):
        process, go, _ = ready_build(tmp_path)
        go.set()
        time.sleep(delay)
        while not lines():  # the first time some must have been written
            time.sleep(0.01)
        process.kill()
        process.join()
    before = lines()
    found = check(tmp_path / "cache", sorted(map(str, (tmp_path / "data").iterdir())), 2000 - before)
    assert before % image_cache.AT_ONCE == 0 and sorted(found.values()) == list(range(2000))


def test_two_builders_at_once(tmp_path):
    """In opposite orders, so that either would overwrite the other's rows; 600 files of 2 ms are no matter of a moment."""
    (tmp_path / "data").mkdir()
    for i in range(600):
        (tmp_path / "data" / f"{i:04}.bin").write_bytes(b"%04d" % i)
    builders = [ready_build(tmp_path, reverse) for reverse in (False, True)]
    for _, go, _ in builders:
        go.set()
    assert sorted(result.get() for *_, result in builders) == [0, 600]
    for process, *_ in builders:
        process.join()
    found = check(tmp_path / "cache", sorted(map(str, (tmp_path / "data").iterdir())), 0)
    assert sorted(found.values()) == list(range(600))


def test_who_waits_says_so_and_who_needs_nothing_does_not_wait(tmp_path, paths, index, caplog):
    check(tmp_path / "cache", paths[:10])
    caplog.set_level(logging.INFO, "docmetric")
    logging.getLogger("docmetric").propagate = True
    with open(index.with_name("lock"), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        check(tmp_path / "cache", paths[:10], 0)
        assert "waiting" not in caplog.text
        threading.Timer(0.3, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        began = time.perf_counter()
        check(tmp_path / "cache", paths, 10)
        assert time.perf_counter() - began > 0.25
        assert f"waiting for another process, which is filling the image cache {index.parent}" in caplog.text


@pytest.mark.parametrize("spoil, decoded", [
    (lambda index, pixels: index.write_bytes(index.read_bytes()[:-9]), 1),                       # torn at the end
    (lambda index, pixels: index.write_bytes(index.read_bytes() + b'["/x", 3'), 0),
    (lambda index, pixels: index.write_bytes(index.read_bytes() + b'["/' + b"x" * 999), 0),
    (lambda index, pixels: index.write_bytes(index.read_bytes().replace(b"3.bin", b"\0\0\0\0\0", 1)), 20),
    (lambda index, pixels: os.truncate(pixels, HEADER + 10 * 3 * SIDE ** 2 + 5), 20),            # rows are gone
    (lambda index, pixels: os.truncate(pixels, 0), 20),
    (lambda index, pixels: pixels.unlink(), 20),
    (lambda index, pixels: index.unlink(), 20),
    (lambda index, pixels: index.write_bytes(b""), 20),
])
def test_a_torn_cache_goes_on_and_a_damaged_one_is_built_anew(tmp_path, paths, index, caplog, spoil, decoded):
    check(tmp_path / "cache", paths)
    spoil(index, index.with_name("pixels"))
    extra = tmp_path / "data" / "new.bin"
    extra.write_bytes(b"9999 is new")
    logging.getLogger("docmetric").propagate = True
    check(tmp_path / "cache", [*paths, str(extra)], decoded + 1)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"image cache {index.parent}: damaged; it is built anew"] * (decoded == 20)
    check(tmp_path / "cache", [*paths, str(extra)], 0)
    assert all(json.loads(line) for line in index.read_bytes().split(b"\n")[:-1])


def test_whoever_maps_a_cache_that_is_built_anew_keeps_the_old_one(tmp_path, paths, index):
    mapped, found = Counting(tmp_path / "cache").open(paths)
    index.write_bytes(b"")
    check(tmp_path / "cache", paths[::-1], 20)  # other rows
    for path, row in found.items():
        assert isinstance(row, str) or np.array_equal(mapped[row], image_of(Path(path).read_bytes()))


def test_what_is_decoded_otherwise_lies_elsewhere(tmp_path, paths, index):
    check(tmp_path / "cache", paths, 20)
    padded = ImageCache(tmp_path / "cache", SIDE, lambda path: np.full((3, SIDE, SIDE), 7, np.uint8), "pad")
    images, _ = padded.open(paths)
    assert (images == 7).all() and padded.folder == index.parent.with_name("8px-pad-v1")
    check(tmp_path / "cache", paths, 0)


@pytest.mark.parametrize("row", ["true", "1.5", "-1", "20", "1e999", "NaN", "null", "{}", "[" * 100_000])
def test_a_row_that_is_none_is_not_taken(tmp_path, paths, index, row):
    check(tmp_path / "cache", paths)
    lines = index.read_bytes().split(b"\n")
    lines[1] = lines[1].rpartition(b", ")[0] + f", {row}]".encode()
    index.write_bytes(b"\n".join(lines))
    check(tmp_path / "cache", paths, 20)


def test_pixels_of_another_cache_are_not_taken(tmp_path, paths, index):
    check(tmp_path / "cache", paths)
    check(tmp_path / "other", paths[::-1])
    (tmp_path / "other/8px-v1/pixels").rename(index.with_name("pixels"))
    check(tmp_path / "cache", paths, 20)


@pytest.mark.parametrize("name", ["index", "pixels"])
def test_files_of_something_else_are_left_alone(tmp_path, paths, index, name):
    index.parent.mkdir(parents=True)
    index.with_name(name).write_text("my diary")
    with pytest.raises(UserError, match=f"{name}: not an image cache.*cache=FOLDER") as error:
        check(tmp_path / "cache", paths)
    assert "\n" not in str(error.value) and index.with_name(name).read_text() == "my diary"


def test_without_room_images_are_decoded_each_time(tmp_path, monkeypatch, caplog):
    folder, needed = write(tmp_path / "a", 3), 3 * 3 * 640 ** 2
    logging.getLogger("docmetric").propagate = True
    usage, room = namedtuple("usage", "total used free"), 2 * needed - 1
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda folder: usage(10**9, 10**9, room))
    images = folders([folder], 24, 320, cache=str(tmp_path / "c"))
    assert not images.cached and "decoded whenever they are wanted" in images.storage
    assert "7 MiB free, of which a cache takes at most half: too little for 4 MiB" in caplog.text
    assert "\n" not in caplog.records[0].message
    assert Batches(images, 4, 1, 0, 0, 1)[0]["image"].shape == (4, 3, 640, 640)
    room += 1  # the cache's half is just enough
    assert folders([folder], 24, 320, cache=str(tmp_path / "c")).cached


def test_without_file_locks_images_are_decoded_each_time(tmp_path, monkeypatch, caplog):
    """As on Windows, where there is no fcntl."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    logging.getLogger("docmetric").propagate = True
    images = folders([write(tmp_path / "a", 1)], 24, cache=str(tmp_path / "c"))
    assert not images.cached and "this system has no file locks" in caplog.text


def test_whoever_builds_shows_its_progress(tmp_path, monkeypatch):
    """Not the first rank alone, since any may be the one that builds."""
    shown = []
    monkeypatch.setattr(dataset, "rank_and_world", lambda: (1, 1))
    monkeypatch.setattr(image_cache, "tqdm",
                        lambda items, says, *rest, disable, **more: shown.append((says, disable)) or items)
    ImageFolders(list_roots([str(write(tmp_path / "a", 1))], 1), 32, str(tmp_path / "c"))
    assert shown == [("image cache, 0 MiB: decoding", None)]


def test_a_place_that_cannot_be_written(tmp_path, paths):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CacheUnavailable, match="file/8px-v1"):
        check(tmp_path / "file", paths)
    assert not folders([write(tmp_path / "a", 1)], 24, cache=str(tmp_path / "file")).cached


def test_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    images = folders([write(tmp_path / "a", 1)], 24, cache=True)
    assert images.cached and (tmp_path / "x/docmetric/64px-v1/pixels").exists() and "x/docmetric" in images.storage
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert image_cache.default_folder() == tmp_path / "home/.cache/docmetric"


def shared(rank, world, folder):
    images = folders([Path(folder) / "a"], 24, cache=f"{folder}/cache", identity="content")
    return images.cached, Batches(images, 16, 1, 0, 0, 1)[0]["image"], sorted(images.skipped.values()), images.ids


def test_ranks_share_one_cache(tmp_path):
    write(tmp_path / "a", 9)
    (tmp_path / "a" / "bad.png").write_text("no image")
    one, two = run_ranks(2, shared, tmp_path)
    assert one[0] and two[0] and torch.equal(one[1], two[1]) and one[2] == two[2] and "not an image" in one[2][0]
    assert one[3] == two[3] == folders([tmp_path / "a"], 24, identity="content").ids  # each rank read its share of the files
    pixels = tmp_path / "cache" / "64px-v1" / "pixels"
    assert pixels.stat().st_size == HEADER + 9 * 3 * 64 * 64
    assert cv2.imread(str(tmp_path / "a" / "000.png")) is not None
