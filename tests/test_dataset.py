"""Views, classes, order and batches of the data; what is left out; what ends a run."""
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from augment import Augment
from dataset import Batches, ImageFolders, list_roots, load_batches, load_square, parse_root, view_of
from inference.errors import UserError


def picture(height, width, seed=0):
    """A smooth random picture, so that resizing keeps it recognisable: uint8 BGR."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def write(folder, count, suffix=".png", shape=(41, 60), first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        assert cv2.imwrite(str(folder / f"{i:03}{suffix}"), picture(*shape, seed=first + i))
    return folder


def folders(data, expansion, size=32, cache=False):
    return ImageFolders(list_roots([str(text) for text in data], expansion), size, cache, progress=False)


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
    images = folders([a, f"{b}:8", f"{tmp_path / 'c'}:24:labelled"], 1)
    assert images.num_classes == 3 * 1 + 2 * 8 + 2 * 24
    assert len(images) == 3 * 1 + 2 * 8 + 5 * 24
    located = [tuple(values) for values in torch.stack(images.locate(torch.arange(len(images))), 1).tolist()]
    assert sorted({label for *_, label in located}) == list(range(images.num_classes))
    assert len({(image, view) for image, view, _ in located}) == len(images)
    owners = {}
    for image, view, label in located:
        path = Path(images.paths[image])
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
    images = folders([write(tmp_path / "a", 5)], 8)
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
        ranks = [Batches(images, batch_size, accumulate, 3, rank, world) for rank in range(world)]
        for k, whole in enumerate(one):
            parts = [batches[k] for batches in ranks if len(batches.positions(k))]
            for key in whole:
                assert torch.equal(torch.cat([part[key] for part in parts]), whole[key])


@pytest.mark.parametrize("cache, workers", [(False, 0), (False, 2), (True, 0), (True, 2)])
def test_workers_and_starting_late_change_nothing(tmp_path, cache, workers):
    images = folders([write(tmp_path / "a", 5)], 24, cache=cache and str(tmp_path / "cache"))
    batches = Batches(images, 16, 2, 0, 0, 1)
    for first, stop in ((3, 9), (700, 703)):
        loaded = list(load_batches(batches, first, stop, workers, pin=False))
        assert len(loaded) == stop - first
        for k, batch in enumerate(loaded, first):
            assert batch["image"].dtype == torch.uint8 and batch["image"].shape == (8, 3, 64, 64)
            alone = Batches(images, 16, 2, 0, 0, 1)[k]
            assert all(torch.equal(batch[key], value) for key, value in alone.items())


def test_batches_hold_whole_rgb_pictures(tmp_path):
    images = folders([write(tmp_path / "a", 2, shape=(100, 80))], 24)
    batch = Batches(images, 48, 1, 0, 0, 1)[0]
    for pixels, index, view, label in zip(*(batch[key] for key in ("image", "index", "view", "label"))):
        expected = cv2.resize(picture(100, 80, int(index)), (64, 64), interpolation=cv2.INTER_AREA)
        assert np.array_equal(pixels.permute(1, 2, 0).numpy()[:, :, ::-1], expected)
        assert label == index * 24 + view


@pytest.mark.parametrize("size, expansions, side", [(128, [24], 256), (128, [1], 160), (96, [8, 1], 120), (32, [1, 24], 64)])
def test_halves_keep_all_their_rows(tmp_path, size, expansions, side):
    data = [f"{write(tmp_path / str(i), 1)}:{expansion}" for i, expansion in enumerate(expansions)]
    images = folders(data, 24, size)
    assert images.side == side and Batches(images, 1, 1, 0, 0, 1)[0]["image"].shape[2:] == (side, side)


def overlap(count, size):
    """Share `[size,count]` of each of `count` pixels in each of `size` equal parts of the line they fill."""
    edges, pixel = np.linspace(0, count, size + 1), np.arange(count)
    return np.clip(np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel), 0, None) * size / count


def seen(image, view, size):
    """The definition, by area in float64: RGB `[size,size,3]`."""
    viewed = view_of(image, view).astype(np.float64)
    high, wide = overlap(viewed.shape[0], size), overlap(viewed.shape[1], size)
    return np.einsum("yh,hwc,xw->yxc", high, viewed, wide, optimize=True)[:, :, ::-1]


def bits(height, width):
    """Black and white at random: nothing has more contrast from pixel to pixel."""
    return np.random.default_rng(0).integers(0, 2, (height, width, 3), np.uint8) * 255


@pytest.mark.parametrize("make, height, width, expansion, whole, half", [
    (picture, 256, 512, 24, (0.3, 0.7), (0.3, 0.7)),    # cuts fall between rows: what is left is rounding
    (picture, 401, 703, 24, (0.3, 0.7), (0.5, 3)),
    (bits, 401, 703, 24, (0.3, 0.7), (2, 15)),
    (picture, 127, 255, 24, (0.3, 0.7), (1.2, 8)),
    (picture, 63, 41, 24, (0.8, 6), (5, 40)),           # smaller than the square, and cut half a pixel off
    (picture, 401, 703, 8, (0.6, 6), None),
    (bits, 401, 703, 8, (5, 30), None),
    (picture, 63, 41, 8, (1, 7), None),
])
def test_views_from_the_square_keep_their_tolerance(tmp_path, make, height, width, expansion, whole, half):
    """(mean, largest) difference, of 255 levels, from the exact view of the picture itself at 32 pixels, for whole pictures
    and for halves; and every view is nearest to its own definition."""
    cv2.imwrite(str(tmp_path / "a.png"), make(height, width))
    square = torch.from_numpy(load_square(tmp_path / "a.png", 64 if expansion == 24 else 40))
    view = torch.arange(expansion)
    out = Augment("none", 0)(square.expand(expansion, -1, -1, -1), torch.zeros_like(view), view, 32)
    out = out.permute(0, 2, 3, 1).double().numpy() * 255
    exact = np.stack([seen(make(height, width), v, 32) for v in range(expansion)])
    difference = np.abs(out[:, None] - exact)                                        # [views,views,32,32,3]
    assert (difference.mean((2, 3, 4)).argmin(1) == np.arange(expansion)).all()
    own = difference[range(expansion), range(expansion)]
    for part, limits in ((own[:8], whole), (own[8:], half)):
        if limits:
            assert part.mean((1, 2, 3)).max() < limits[0] and part.max() < limits[1]


@pytest.mark.parametrize("preset", ["none", "reference", "strong"])
def test_a_half_never_shows_the_other(preset):
    """The other half is white: not a trace of it, at whatever place the augmentation looks."""
    augment = Augment(preset, 0)
    augment.stages = []
    image = torch.zeros(200, 3, 64, 64, dtype=torch.uint8)
    for rotation in range(4):
        image[:] = torch.from_numpy(np.rot90(np.repeat([[0], [255]], 32, 0).repeat(64, 1), -rotation).copy())
        for flip in (0, 1):
            shown = torch.full((200,), rotation + 4 * flip + (16 if flip else 8))
            out = augment(image, torch.arange(200), shown, 32)
            filled = out.flatten(2).var(2).sum(1) > 0      # the drawn colour beyond the edge
            assert (out[~filled] == 0).all() and (preset == "none") == (not filled.any())
            assert augment(image, torch.arange(200), shown - 8 if flip else shown + 8, 32)[~filled].min() > 0.9999


def test_turns_and_flips_of_whole_pictures_are_exact():
    image = torch.randint(0, 256, (8, 3, 33, 33), dtype=torch.uint8)
    out = Augment("none", 0)(image, torch.arange(8), torch.arange(8))
    for v in range(8):
        assert np.array_equal(out[v].permute(1, 2, 0), view_of(image[v].permute(1, 2, 0).numpy(), v) / np.float32(255))


def test_all_kinds_of_files_and_folders(tmp_path):
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    for suffix in ("jpg", "JPEG", "png", "webp", "bmp", "tif"):
        assert cv2.imwrite(str(folder / f"a.{suffix}"), picture(30, 40))
    (folder / "notes.txt").write_text("not an image")
    cv2.imwrite(str(tmp_path / "grey.png"), picture(30, 40)[:, :, 0])
    cv2.imwrite(str(tmp_path / "deep16.png"), picture(30, 40).astype(np.uint16) * 257)
    images = folders([tmp_path], 1)
    assert images.num_classes == 8 and not images.left_out
    assert images.squares(torch.arange(8)).shape == (8, 3, 40, 40)


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
    (spoiled / "lost.png").symlink_to("nowhere")
    images = folders([spoiled], 24, cache=cache)
    assert [Path(path).name for path in images.paths] == ["000.png", "001.png"] and images.num_classes == 48
    said = {Path(path).name: reason for path, reason in images.left_out.items()}
    assert list(images.left_out) == sorted(images.left_out) and said.pop("lost.png") == "file not found"
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
            folders(data, 24)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_later_ends_the_run_with_its_name(tmp_path, workers):
    images = folders([write(tmp_path / "a", 3)], 1)
    (tmp_path / "a" / "001.png").write_bytes(b"")
    with pytest.raises(UserError, match="001.png: empty file") as error:
        list(load_batches(Batches(images, 3, 1, 0, 0, 1), 0, 2, workers, pin=False))
    assert "\n" not in str(error.value)


class Killed(Batches):
    def __getitem__(self, k):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_ends_the_run_with_a_line(tmp_path):
    images = folders([write(tmp_path / "a", 3)], 1)
    with pytest.raises(UserError, match="the loader stopped.*num_workers=0") as error:
        list(load_batches(Killed(images, 3, 1, 0, 0, 1), 0, 2, workers=1, pin=False))
    assert "\n" not in str(error.value)


def test_a_failed_loader_leaves_no_process(tmp_path):
    """Its worker ignores SIGTERM, by which Python would end it and then wait for it, for ever; the error is still held."""
    images = folders([write(tmp_path / "a", 3)], 1)
    (tmp_path / "a" / "001.png").write_bytes(b"")
    with pytest.raises(UserError) as error:
        list(load_batches(Batches(images, 3, 1, 0, 0, 1), 0, 100, 2, pin=False))
    assert "001.png" in str(error.value) and not multiprocessing.active_children()


def test_a_worker_that_does_not_answer_is_ended(tmp_path, monkeypatch):
    images = folders([write(tmp_path / "a", 3)], 1)
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)  # what it is given to end by itself
    loaded = load_batches(Stuck(images, 3, 1, 0, 0, 1), 0, 100, 1, pin=False)
    next(loaded)
    loaded.close()
    time.sleep(0.1)
    assert not multiprocessing.active_children()


class Stuck(Batches):
    def __getitem__(self, k):
        if k:
            time.sleep(1000)
        return super().__getitem__(k)


class Fails(Batches):
    def item(self, k, pin=False):
        if k == 5:
            raise UserError("a.png: gone")
        return super().item(k, pin)


def test_an_error_in_the_thread_ends_the_run_in_its_place(tmp_path):
    images = folders([write(tmp_path / "a", 3)], 1, cache=str(tmp_path / "cache"))
    got = []
    with pytest.raises(UserError, match="a.png: gone"):
        for batch in load_batches(Fails(images, 3, 1, 0, 0, 1), 0, 9, 2, pin=False):
            got.append(batch)
    assert len(got) == 5


def test_stopping_early_leaves_no_thread(tmp_path):
    images = folders([write(tmp_path / "a", 3)], 1, cache=str(tmp_path / "cache"))
    before = threading.active_count()
    loaded = load_batches(Batches(images, 3, 1, 0, 0, 1), 0, 1_000_000, 2, pin=False)
    next(loaded)
    assert threading.active_count() > before
    loaded.close()
    assert threading.active_count() == before


def test_images_that_stay_on_the_device(tmp_path):
    images = folders([write(tmp_path / "a", 5)], 24, cache=str(tmp_path / "cache"))
    batches, needed = Batches(images, 16, 1, 0, 0, 1), 5 * 3 * 64 * 64
    before = [batches[k] for k in range(4)]
    assert not images.cache_on_device(torch.device("cpu"), needed - 1) and "on cpu" not in images.storage
    assert images.cache_on_device(torch.device("cpu"), needed) and "on cpu" in images.storage
    images._cache = None  # from here on the pixels come from the copy alone
    for k, batch in enumerate(before):
        assert all(torch.equal(batches[k][key], value) for key, value in batch.items())
    assert not folders([tmp_path / "a"], 24).cache_on_device(torch.device("cpu"), needed)  # nothing is cached
