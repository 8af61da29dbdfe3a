"""Views, classes, order and batches of the data; what is left out; what ends a run."""
import os
import signal

import cv2
import numpy as np
import pytest
import torch

from dataset import Batches, ImageFolders, load_batches, parse_root, view_of
from runtime import UserError


def picture(height, width, seed=0):
    """A smooth random picture, so that resizing keeps it recognisable: uint8 BGR."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def write(folder, count, suffix=".png", shape=(41, 60), first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        assert cv2.imwrite(str(folder / f"{i:03}{suffix}"), picture(*shape, seed=first + i))
    return folder


def by_definition(image, view):
    """View pixel by pixel: out(y, x) of crop(flip(rotate(image)))."""
    rotation, flip, crop = view % 4, view // 4 % 2, view // 8
    height, width = image.shape[:2]
    high, wide = (height, width) if rotation % 2 == 0 else (width, height)
    first = high // 2 if crop == 2 else 0
    last = high // 2 if crop == 1 else high
    out = np.zeros((last - first, wide, 3), np.uint8)
    for y in range(first, last):
        for x in range(wide):
            v = high - 1 - y if flip else y
            # a quarter turn counter-clockwise takes (row, column) to (W - 1 - column, row)
            out[y - first, x] = image[[(v, x), (x, width - 1 - v), (height - 1 - v, width - 1 - x),
                                       (height - 1 - x, v)][rotation]]
    return out


@pytest.mark.parametrize("height, width", [(8, 8), (9, 13), (12, 31), (21, 10)])
def test_views_are_the_definition_and_all_different(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    views = [view_of(image, v) for v in range(24)]
    for v, view in enumerate(views):
        assert np.array_equal(view, by_definition(image, v)), v
    assert len({(view.shape, view.tobytes()) for view in views}) == 24
    for rotation in range(4):  # exact turns: the same pixels, no border; halves partition the turned image
        assert sorted(views[rotation].reshape(-1, 3).tolist()) == sorted(image.reshape(-1, 3).tolist())
        for flip in (0, 4):
            halves = np.concatenate([views[rotation + flip + 8], views[rotation + flip + 16]])
            assert np.array_equal(halves, views[rotation + flip])


def test_class_ids_are_unique_over_mixed_roots(tmp_path):
    """In the reference's listing 15,578 of 390,144 ids collide; its mended one leaves 0 unused and passes the end."""
    a, b = write(tmp_path / "a", 3), write(tmp_path / "b", 2, first=10)
    for name, count in (("x", 2), ("y/z", 3)):
        write(tmp_path / "c" / name, count, first=20)
    images = ImageFolders([str(a), f"{b}:8", f"{tmp_path / 'c'}:24:labelled"], 1, 32, progress=False)
    assert images.num_classes == 3 * 1 + 2 * 8 + 2 * 24
    assert len(images) == 3 * 1 + 2 * 8 + 5 * 24
    located = [images.locate(sample) for sample in range(len(images))]
    assert sorted({label for *_, label in located}) == list(range(images.num_classes))
    assert len({(image, view) for image, view, _ in located}) == len(images)
    owners = {}
    for image, view, label in located:
        path = images.paths[image]
        owner = path.parent if "c" in path.parent.relative_to(tmp_path).parts else path
        assert owners.setdefault(label, (owner, view)) == (owner, view)


def test_roots_are_read_with_their_options(tmp_path):
    assert parse_root("some/where", 24)[1:] == (24, False)
    assert parse_root("some/where:8", 24)[1:] == (8, False)
    assert parse_root("some/where:labelled", 24)[1:] == (24, True)
    assert parse_root("C:\\here:1:labelled", 24)[1:] == (1, True)
    (tmp_path / "odd:8").mkdir()
    assert parse_root(str(tmp_path / "odd:8"), 1) == (tmp_path / "odd:8", 1, False)
    with pytest.raises(UserError, match="expansion 7"):
        parse_root("some/where:7", 24)


@pytest.mark.parametrize("batch_size, accumulate", [(8, 1), (7, 1), (7, 3), (50, 2)])
def test_order_is_a_function_of_position_alone(tmp_path, batch_size, accumulate):
    images = ImageFolders([str(write(tmp_path / "a", 5))], 8, 32, progress=False)
    alone = Batches(images, batch_size, accumulate, 3, 0, 1)
    steps = 40 * 3 // batch_size + 1
    one = [alone[k] for k in range(steps * accumulate)]
    position = torch.cat([batch["position"] for batch in one])
    assert torch.equal(position, torch.arange(steps * batch_size))
    label = torch.cat([batch["label"] for batch in one])
    for epoch in range(3):  # every sample once in every epoch, in another order
        assert sorted(label[epoch * 40:epoch * 40 + 40].tolist()) == list(range(40))
    assert not torch.equal(label[:40], label[40:80])
    for world in (2, 3):
        for k, whole in enumerate(one):
            parts = [Batches(images, batch_size, accumulate, 3, rank, world)[k] for rank in range(world)
                     if len(Batches(images, batch_size, accumulate, 3, rank, world).positions(k))]
            for key in whole:
                assert torch.equal(torch.cat([part[key] for part in parts]), whole[key])


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_starting_late_change_nothing(tmp_path, workers):
    images = ImageFolders([str(write(tmp_path / "a", 5))], 24, 32, progress=False)
    batches = Batches(images, 16, 2, 0, 0, 1)
    loaded = list(load_batches(batches, 3, 9, workers, pin=False))
    assert len(loaded) == 6
    for k, batch in enumerate(loaded, 3):
        assert batch["image"].dtype == torch.uint8 and batch["image"].shape == (8, 3, 32, 32)
        assert all(torch.equal(batch[key], value) for key, value in batches[k].items())


def test_batches_hold_rgb_views(tmp_path):
    images = ImageFolders([str(write(tmp_path / "a", 2, shape=(64, 64)))], 24, 32, progress=False)
    batch = Batches(images, 48, 1, 0, 0, 1)[0]
    for pixels, index, view, label in zip(*(batch[key] for key in ("image", "index", "view", "label"))):
        expected = cv2.resize(view_of(picture(64, 64, int(index)), int(view)), (32, 32), interpolation=cv2.INTER_AREA)
        assert np.abs(pixels.permute(1, 2, 0).numpy()[:, :, ::-1].astype(int) - expected).max() <= 1
        assert label == index * 24 + view


def test_the_cache_keeps_its_tolerance(tmp_path):
    folder = str(write(tmp_path / "a", 2, shape=(401, 703)))
    exact, cached = (ImageFolders([folder], 24, 32, cache=cache, progress=False) for cache in (False, True))
    for view in range(24):
        difference = exact.load(0, view).astype(int) - cached.load(0, view)
        assert np.abs(difference).mean() < 3 and np.abs(difference).max() < 24, view
    small = str(write(tmp_path / "b", 1))
    exact, cached = (ImageFolders([small], 24, 32, cache=cache, progress=False) for cache in (False, True))
    assert all(np.array_equal(exact.load(0, v), cached.load(0, v)) for v in range(24))


def test_all_kinds_of_files_and_folders(tmp_path):
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    for suffix in ("jpg", "JPEG", "png", "webp", "bmp", "tif"):
        assert cv2.imwrite(str(folder / f"a.{suffix}"), picture(30, 40))
    (folder / "notes.txt").write_text("not an image")
    cv2.imwrite(str(tmp_path / "grey.png"), picture(30, 40)[:, :, 0])
    cv2.imwrite(str(tmp_path / "deep16.png"), picture(30, 40).astype(np.uint16) * 257)
    images = ImageFolders([str(tmp_path)], 1, 32, progress=False)
    assert images.num_classes == 8 and not images.left_out
    assert all(images.load(i, 0).shape == (32, 32, 3) for i in range(8))


@pytest.fixture
def spoiled(tmp_path):
    """Two good images among all kinds of bad ones."""
    folder = write(tmp_path / "data", 2)
    cv2.imwrite(str(folder / "whole.jpg"), picture(200, 300))
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:2000])
    (folder / "whole.jpg").unlink()
    (folder / "text.jpg").write_text("this is not a picture")
    (folder / "empty.jpg").write_bytes(b"")
    cv2.imwrite(str(folder / "dot.png"), picture(8, 8)[:1, :1])
    cv2.imwrite(str(folder / "strip.png"), np.zeros((20, 20_000, 3), np.uint8))
    return folder


@pytest.mark.parametrize("cache", [False, True])
def test_unusable_files_are_left_out_with_the_reason(spoiled, cache):
    images = ImageFolders([str(spoiled)], 24, 32, cache=cache, progress=False)
    assert [path.name for path in images.paths] == ["000.png", "001.png"] and images.num_classes == 48
    said = {path.name: reason for path, reason in images.left_out.items()}
    for name, reason in {"truncated.jpg": "truncated", "text.jpg": "not an image", "empty.jpg": "empty",
                         "dot.png": "1x1", "strip.png": "20000x20"}.items():
        assert reason in said[name]


def test_unusable_folders_end_the_run(tmp_path, spoiled):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_text("no")
    for data, says in (
            ([], "no folder given"),
            (["none"], "none: no such folder"),
            ([str(spoiled / "000.png")], "not a folder"),
            ([str(spoiled), str(tmp_path)], "several of the roots"),
            ([str(tmp_path / "nothing")], "no images"),
            ([str(tmp_path / "bad")], "none of its images")):
        with pytest.raises(UserError, match=says) as error:
            ImageFolders(data, 24, 32, progress=False)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_later_ends_the_run_with_its_name(tmp_path, workers):
    images = ImageFolders([str(write(tmp_path / "a", 3))], 1, 32, progress=False)
    (tmp_path / "a" / "001.png").write_bytes(b"")
    with pytest.raises(UserError, match="001.png: empty file") as error:
        list(load_batches(Batches(images, 3, 1, 0, 0, 1), 0, 2, workers, pin=False))
    assert "\n" not in str(error.value)


class Killed(Batches):
    def __getitem__(self, k):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_ends_the_run_with_a_line(tmp_path):
    images = ImageFolders([str(write(tmp_path / "a", 3))], 1, 32, progress=False)
    with pytest.raises(UserError, match="the loader stopped.*num_workers=0") as error:
        list(load_batches(Killed(images, 3, 1, 0, 0, 1), 0, 2, workers=1, pin=False))
    assert "\n" not in str(error.value)
