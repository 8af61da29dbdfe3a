"""Views, classes, order and batches of the data; what is skipped; what ends a run."""
import hashlib
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

import dataset
from augment import Augment
from dataset import Batches, HardNegatives, PerClass, Permutation, load_batches, load_resized, parse_root, view_of
from inference.errors import UserError
from inference.image import fit_square, load_image
from tests.helpers.folders import folders, joined, same, smooth, write


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


def labelled(folder, counts):
    """Folders `label` with so many images each; returns the entry of `data`."""
    for i, (label, count) in enumerate(counts.items()):
        write(folder / label, count, shape=(9, 9), first=100 * i)
    return folder


@pytest.mark.parametrize("seed", range(6))
def test_a_label_is_one_class_under_all_labelled_roots(tmp_path, seed):
    """Random roots. Every (label, view) has one id, every id one (label, view), and classes stand in the order in which they
    are first met, each with as many views as its largest expansion."""
    rng = np.random.default_rng(seed)
    data, views, samples = [], {}, []  # views: of a class, known by its label or its file
    for root, expansion in enumerate(rng.permutation([1, 8, 24, 8]).tolist()):
        by_label = root < 3
        folder = tmp_path / str(root)
        names = sorted(rng.choice(["a", "b", "c", "d", "e/f"], 3, replace=False).tolist())
        labelled(folder, {name: int(rng.integers(1, 3)) for name in names})
        data.append(f"{folder}:{expansion}" + ":labelled" * by_label)
        for path in sorted(folder.rglob("*.png")):
            owner = path.parent.relative_to(folder).as_posix() if by_label else path
            views[owner] = max(views.get(owner, 0), expansion)
            samples += [(str(path), owner, view) for view in range(expansion)]
    images = folders(data, 1)
    first = dict(zip(views, np.cumsum([0, *views.values()]).tolist()))
    found = list(zip(*(part.tolist() for part in images.locate(torch.arange(len(images))))))
    assert [(images.paths[image], view, label) for image, view, label in found] == [
        (path, view, first[owner] + view) for path, owner, view in samples]
    assert images.num_classes == sum(views.values()) and {label for *_, label in found} == set(range(images.num_classes))
    assert torch.equal(images.sample_classes(), torch.tensor([label for *_, label in found]))
    assert images.labels == [owner if isinstance(owner, str) else owner.relative_to(tmp_path / "3").as_posix()
                             for owner in views]


def test_shared_labels_are_said(tmp_path, caplog):
    a, b = labelled(tmp_path / "a", {"p": 1, "x": 1, "y": 2}), labelled(tmp_path / "b", {"x": 1, "y": 1, "z": 1})
    with caplog.at_level("INFO", "docmetric"):
        folders([f"{a}:labelled", b], 1)  # a folder of a root without labels is no class
        assert caplog.messages == []
        folders([f"{a}:labelled", f"{b}:labelled"], 1)
    assert caplog.messages == ["data: labels under several roots, each of them one class: 2, such as x"]


def test_the_doctor_has_its_own_help(capsys):
    with pytest.raises(SystemExit) as end:
        dataset.main(["doctor", "--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and said.startswith("usage: python -m dataset doctor") and "--eval DIR" in said


@pytest.mark.parametrize("expansions", [(1, 8, 24), (24, 24, 1)])
def test_class_ids_of_data_without_shared_labels(tmp_path, expansions):
    """offset[root] + local class * expansion + view: those of runs that were begun before labels were shared."""
    roots = [labelled(tmp_path / name, {f"{name}{i}": 2 for i in range(3)}) for name in "pqr"]
    images = folders([f"{root}:{expansion}:labelled" for root, expansion in zip(roots, expansions)], 1)
    image, view, label = images.locate(torch.arange(len(images)))
    root = image // 6
    offset, expansion = torch.tensor([0, *expansions]).cumsum(0)[root] * 3, torch.tensor(expansions)[root]
    assert torch.equal(label, offset + image % 6 // 2 * expansion + view)


def test_ids_of_images(tmp_path):
    a, b = labelled(tmp_path / "a", {"x": 2, "y/z": 1}), tmp_path / "b"
    images = folders([f"{a}:labelled"], 8)
    assert images.ids == ["x/000.png", "x/001.png", "y/z/000.png"]
    assert images.unique_ids() == {"x/000.png": 0, "x/001.png": 1, "y/z/000.png": 2}
    batch = Batches(images, 24, 1, 0, 0, 1)[0]
    assert sorted(batch["id"]) == sorted(images.ids * 8)
    for name, label in zip(batch["id"], batch["label"].tolist()):
        assert images.labels[label // 8] == name.rpartition("/")[0]

    (b / "x").mkdir(parents=True)
    (b / "x" / "000.png").write_bytes((a / "x" / "001.png").read_bytes())
    both = [f"{a}:labelled", f"{b}:labelled"]
    with pytest.raises(UserError, match="a/x/0.*png and .*b/x/0.*png have the same id x/0.*identity=content") as error:
        folders(both, 1).unique_ids()
    assert "\n" not in str(error.value)
    by_content = folders(both, 1, identity="content")
    b2sum = [hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest() for path in by_content.paths]
    assert by_content.ids == b2sum and b2sum[1] == b2sum[3] and len(set(b2sum)) == 3
    assert by_content.unique_ids() == {b2sum[0]: 0, b2sum[1]: 1, b2sum[2]: 2}
    (a / "x" / "000.png").rename(a / "x" / "0.png")
    assert folders(both, 1, identity="content").ids == by_content.ids


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
            assert same(joined(parts), whole)


def counted(counts, seed=0):
    """The class of each sample, for classes of so many samples, in any order."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[torch.randperm(sum(counts))]


COUNTS = [1, 2, 3, 4, 5, 8, 9, 30, 4, 7]


def samplers(folder):
    """(sampler, class of each sample) of each kind, on the classes of `COUNTS`."""
    torch.manual_seed(0)
    classes, labels = counted(COUNTS), list("abcdefghij")
    (folder / "alike.txt").write_text("a\tb\tc\nd\te\tf\ta\n\nj\n")
    return [(Permutation(len(classes), 3), classes), (PerClass(classes, 4, 3), classes),
            (HardNegatives(folder / "alike.txt", labels, classes, 3, 4, 3), classes)]


def test_samplers_are_functions_of_position(tmp_path):
    for sampler, classes in samplers(tmp_path):
        whole = sampler.samples(torch.arange(3 * len(sampler)))
        assert whole.dtype == torch.int64 and whole.min() >= 0 and whole.max() < len(classes)
        order = torch.randperm(len(whole))
        assert torch.equal(sampler.samples(order), whole[order])
        assert all(sampler.samples(torch.tensor([p])).item() == whole[p] for p in (0, 1, len(whole) - 1))
        assert not torch.equal(whole[:len(sampler)], whole[len(sampler):2 * len(sampler)])
    again = samplers(tmp_path)[-1][0]
    assert torch.equal(again.samples(torch.arange(len(whole))), whole)


def test_a_permutation_is_the_order_of_runs_begun_before(tmp_path):
    """Every sample once in an epoch; and the very numbers that runs were begun with that are to be resumed."""
    epochs = Permutation(40, 3).samples(torch.arange(120)).view(3, 40)
    assert all(epoch.sort().values.tolist() == list(range(40)) for epoch in epochs)
    assert epochs[0, :8].tolist() == [0, 32, 4, 37, 28, 38, 15, 7] and epochs[1, :4].tolist() == [5, 4, 0, 6]


def test_m_samples_of_each_class(tmp_path):
    sampler, classes = samplers(tmp_path)[1]
    assert len(sampler) == 4 * len(COUNTS) and sampler.block == 4
    epochs = sampler.samples(torch.arange(60 * len(sampler))).view(60, len(COUNTS), 4)
    assert (classes[epochs] == classes[epochs[:, :, :1]]).all()                     # a class a block
    order = classes[epochs[:, :, 0]]
    assert (order.sort(1).values == torch.arange(len(COUNTS))).all()                # each class once in an epoch
    assert len({tuple(row) for row in order.tolist()}) > 50                         # in an order of its own
    for c, count in enumerate(COUNTS):
        blocks = epochs[order == c]                                                 # [60,4], epoch after epoch
        assert {i for block in blocks.tolist() for i in block} == set((classes == c).nonzero().flatten().tolist())
        distinct = torch.tensor([len(set(block)) for block in blocks.tolist()])
        assert (distinct == min(count, 4)).all()                                    # no sample twice where there are enough
        visits = max(1, count // 4)
        for turn in blocks[:60 // visits * visits].reshape(-1, visits * 4).tolist():  # nor before all were met
            assert len(set(turn)) == min(count, visits * 4)


def test_look_alikes_stand_together(tmp_path):
    sampler, classes = samplers(tmp_path)[2]
    count, k, m = len(COUNTS), 3, 4
    assert len(sampler) == count * k * m and sampler.block == k * m
    epochs = classes[sampler.samples(torch.arange(20 * len(sampler)))].view(20, count, k, m)
    assert (epochs == epochs[..., :1]).all()                                        # m of a class side by side
    groups = epochs[..., 0]                                                         # [epochs,C,k]
    assert (groups[:, :, 0].sort(1).values == torch.arange(count)).all()            # a block for each class in an epoch
    assert all(len(set(group)) == k for group in groups.flatten(0, 1).tolist())
    beside = {c: groups[groups[:, :, 0] == c].unique(dim=0).tolist() for c in range(count)}
    assert beside[0] == [[0, 1, 2]] and beside[3] == [[3, 4, 5]]                    # the nearest of those in the file
    assert all(len(groups) == 1 for groups in beside.values())
    drawn = sampler.samples(torch.arange(20 * len(sampler))).view(-1, m)
    assert all(len(set(block)) == min(m, COUNTS[classes[block[0]]]) for block in drawn.tolist())


def test_labels_with_spaces_and_strange_line_ends(tmp_path):
    labels = ["two words", " ", "\u2028", "\x85", "x"]
    (tmp_path / "alike.txt").write_bytes(" \t\u2028\ttwo words\r\n\x85\tx\t ".encode())
    sampler = HardNegatives(tmp_path / "alike.txt", labels, torch.arange(5), 3, 1, 0)
    blocks = sampler.samples(torch.arange(15)).view(5, 3).tolist()
    assert [1, 2, 0] in blocks and [3, 4, 1] in blocks


@pytest.mark.parametrize("content, labels, k, says", [
    ("a\tb\n\nb\tq\n", "abc", 2, "alike.txt:3: the data has no class 'q'"),
    ("a\tb\na\tc", "abc", 2, "alike.txt:2: a second line for the class 'a'"),
    ("a\tb", "aba", 2, "two classes of the data have the label 'a'"),
    ("a\tb", "abcd", 2, "use expansion=1"),
    ("a\tb", "abc", 4, "blocks of 4 classes.*the data has 3"),
    (b"\xff", "abc", 2, "cannot be read"),
    (None, "abc", 2, "cannot be read"),
])
def test_look_alikes_that_do_not_fit_are_refused(tmp_path, content, labels, k, says):
    if content is not None:
        (tmp_path / "alike.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=says) as error:
        HardNegatives(tmp_path / "alike.txt", list(labels), torch.arange(3), k, 2, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_of_a_sampler(tmp_path, monkeypatch, accumulate):
    """The global batch is the same on any number of ranks, and holds whole blocks."""
    monkeypatch.setattr(dataset, "TOGETHER", 64)  # worked out at once; more would take the time of a run's
    images = folders([f"{labelled(tmp_path / 'data', dict(zip('abcde', (1, 2, 3, 5, 8))))}:labelled"], 1)
    (tmp_path / "alike.txt").write_text("c\td\te\n")
    classes = images.sample_classes()
    for sampler in (PerClass(classes, 4, 0), HardNegatives(tmp_path / "alike.txt", images.labels, classes, 2, 2, 0)):
        alone = Batches(images, 8 * accumulate, accumulate, 0, 0, 1, sampler)
        for k in range(0, 6, 2):
            assert alone[k]["label"].view(-1, sampler.m).unique(dim=1).shape == (8 // sampler.m, 1)
            index, *_ = images.locate(sampler.samples(alone[k]["position"]))
            assert alone[k]["id"] == [images.ids[i] for i in index.tolist()]
            for world in (2, 3):
                ranks = [Batches(images, 8 * accumulate, accumulate, 0, rank, world, sampler) for rank in range(world)]
                assert same(joined([batches[k] for batches in ranks]), alone[k])
        with pytest.raises(UserError, match=f"batch_size=10: must be a multiple of {4 * accumulate}"):
            Batches(images, 10, accumulate, 0, 0, 1, sampler)


@pytest.mark.parametrize("shape", [(100, 47), (50, 100), (64, 64)])
@pytest.mark.parametrize("cache", [False, True])
def test_padded_images(tmp_path, shape, cache):
    """The pixels are those of `fit_square`; the cache keeps them apart from squashed ones; views are those of the image."""
    cache = cache and str(tmp_path / "cache")
    data = [write(tmp_path / "a", 2, shape=shape)]
    squashed, padded = folders(data, 8, cache=cache), folders(data, 8, cache=cache, fit="pad")
    for fit, images in (("squash", squashed), ("pad", padded), ("squash", folders(data, 8, cache=cache))):
        expected = fit_square(load_image(images.paths[1]), 40, fit)[:, :, ::-1]
        assert np.array_equal(images.pixels(torch.tensor([1]))[0].permute(1, 2, 0), expected)
    image, view = padded.pixels(torch.ones(8, dtype=torch.int64)), torch.arange(8)
    shown = Augment("none", 0)(image, torch.zeros(8, dtype=torch.int64), view) * 255
    for v in range(8):
        exact = fit_square(np.ascontiguousarray(view_of(load_image(padded.paths[1]), v)), 40, "pad")[:, :, ::-1]
        assert np.abs(shown[v].permute(1, 2, 0).numpy() - exact).max() <= 1  # OpenCV rounds by the axis it takes first


def test_halves_of_padded_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="fit=pad.*expansion=8 or 1, or fit=squash") as error:
        folders([f"{write(tmp_path, 1)}:1", f"{write(tmp_path / 'b', 1)}:24"], 1, fit="pad")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cache, workers", [(False, 0), (False, 2), (True, 0), (True, 2)])
def test_workers_and_starting_late_change_nothing(tmp_path, cache, workers):
    images = folders([write(tmp_path / "a", 5)], 24, cache=cache and str(tmp_path / "cache"))
    batches = Batches(images, 16, 2, 0, 0, 1)
    for first, stop in ((3, 9), (700, 703)):
        loaded = list(load_batches(batches, first, stop, workers, pin=False))
        assert len(loaded) == stop - first
        for k, batch in enumerate(loaded, first):
            assert batch["image"].dtype == torch.uint8 and batch["image"].shape == (8, 3, 64, 64)
            assert same(batch, Batches(images, 16, 2, 0, 0, 1)[k])


def test_batches_hold_whole_rgb_images(tmp_path):
    images = folders([write(tmp_path / "a", 2, shape=(100, 80))], 24)
    batch = Batches(images, 48, 1, 0, 0, 1)[0]
    for pixels, name, view, label in zip(*(batch[key] for key in ("image", "id", "view", "label"))):
        index = int(name.removesuffix(".png"))
        expected = cv2.resize(smooth(100, 80, index), (64, 64), interpolation=cv2.INTER_AREA)
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
    (smooth, 256, 512, 24, (0.3, 0.7), (0.3, 0.7)),    # cuts fall between rows: what is left is rounding
    (smooth, 401, 703, 24, (0.3, 0.7), (0.5, 3)),
    (bits, 401, 703, 24, (0.3, 0.7), (2, 15)),
    (smooth, 127, 255, 24, (0.3, 0.7), (1.2, 8)),
    (smooth, 63, 41, 24, (0.8, 6), (5, 40)),           # smaller than the resized image, and cut half a pixel off
    (smooth, 401, 703, 8, (0.6, 6), None),
    (bits, 401, 703, 8, (5, 30), None),
    (smooth, 63, 41, 8, (1, 7), None),
])
def test_views_from_the_resized_image_keep_their_tolerance(tmp_path, make, height, width, expansion, whole, half):
    """(mean, largest) difference, of 255 levels, from the exact view of the image itself at 32 pixels, for whole images
    and for halves; and every view is nearest to its own definition."""
    cv2.imwrite(str(tmp_path / "a.png"), make(height, width))
    resized = torch.from_numpy(load_resized(tmp_path / "a.png", 64 if expansion == 24 else 40))
    view = torch.arange(expansion)
    out = Augment("none", 0)(resized.expand(expansion, -1, -1, -1), torch.zeros_like(view), view, 32)
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
            filled = out.flatten(2).var(2).sum(1) > 0      # the drawn color beyond the edge
            assert (out[~filled] == 0).all() and (preset == "none") == (not filled.any())
            assert augment(image, torch.arange(200), shown - 8 if flip else shown + 8, 32)[~filled].min() > 0.9999


def test_turns_and_flips_of_whole_images_are_exact():
    image = torch.randint(0, 256, (8, 3, 33, 33), dtype=torch.uint8)
    out = Augment("none", 0)(image, torch.arange(8), torch.arange(8))
    for v in range(8):
        assert np.array_equal(out[v].permute(1, 2, 0), view_of(image[v].permute(1, 2, 0).numpy(), v) / np.float32(255))


def test_all_kinds_of_files_and_folders(tmp_path):
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    for suffix in ("jpg", "JPEG", "png", "webp", "bmp", "tif"):
        assert cv2.imwrite(str(folder / f"a.{suffix}"), smooth(30, 40))
    (folder / "notes.txt").write_text("not an image")
    cv2.imwrite(str(tmp_path / "gray.png"), smooth(30, 40)[:, :, 0])
    cv2.imwrite(str(tmp_path / "deep16.png"), smooth(30, 40).astype(np.uint16) * 257)
    images = folders([tmp_path], 1)
    assert images.num_classes == 8 and not images.skipped
    assert images.pixels(torch.arange(8)).shape == (8, 3, 40, 40)


@pytest.fixture
def spoiled(tmp_path):
    """Two good images among all kinds of bad ones."""
    folder = write(tmp_path / "data", 2)
    cv2.imwrite(str(folder / "whole.jpg"), smooth(200, 300))
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:2000])
    (folder / "whole.jpg").unlink()
    (folder / "text.jpg").write_text("this is not an image")
    (folder / "empty.jpg").write_bytes(b"")
    cv2.imwrite(str(folder / "dot.png"), smooth(8, 8)[:1, :1])
    cv2.imwrite(str(folder / "strip.png"), np.zeros((20, 20_000, 3), np.uint8))
    return folder


@pytest.mark.parametrize("cache", [False, True])
def test_unusable_files_are_skipped_with_the_reason(spoiled, cache):
    (spoiled / "lost.png").symlink_to("nowhere")
    images = folders([spoiled], 24, cache=cache)
    assert [Path(path).name for path in images.paths] == ["000.png", "001.png"] and images.num_classes == 48
    said = {Path(path).name: reason for path, reason in images.skipped.items()}
    assert list(images.skipped) == sorted(images.skipped) and said.pop("lost.png") == "file not found"
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
        assert same(batches[k], batch)
    assert not folders([tmp_path / "a"], 24).cache_on_device(torch.device("cpu"), needed)  # nothing is cached
