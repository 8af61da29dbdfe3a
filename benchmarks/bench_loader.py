"""The data path: cached batches against a DataLoader over PIL and torchvision; dataset size; views, augmentation; building.

    python benchmarks/bench_loader.py [--quick] [--json] [--data DIR]

The peer decodes with PIL, `Resize` and `PILToTensor` in two worker processes; the limit is a copy of the same bytes (of
building: decoding alone). Without `--data` the images are made documents of `synth`, written to a temporary folder.
"""
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from side_by_side import Report, UserError, medians, run_cli
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, PILToTensor, Resize

from augment import Augment
from dataset import Batches, ImageFolders, list_roots, load_batches
from inference.image import load_image, map_ahead

BATCH, SIZE, SIDE = 256, 128, 160
BATCHES = 4  # in one timing


class PilFolder(Dataset):
    """What one would write: open, to RGB, resize, to uint8."""

    def __init__(self, paths):
        self.paths = paths
        self.transform = Compose([Resize((SIDE, SIDE)), PILToTensor()])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        with Image.open(self.paths[i]) as image:
            return self.transform(image.convert("RGB"))


def main():
    report = Report(__doc__, ("--data", {"help": "folder of images; default: made documents"}))
    with tempfile.TemporaryDirectory() as temporary:
        data = report.args.data or make(Path(temporary) / "data", 30 if report.quick else 600)
        listed = list_roots([data], 1)
        speeds(report, listed, f"{temporary}/cache")
        sizes(report, Path(temporary))
        views(report, listed, temporary)
        building(report, listed, temporary)
    report.end()


def make(folder: Path, types: int) -> str:
    command = [sys.executable, "-m", "synth", folder, "--train-types", str(types), "--copies", "3", "--eval-types", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parent.parent)
    if done.returncode:
        raise UserError(f"synth: {done.stderr.strip().splitlines()[-1]}")
    return str(folder / "train")


def endless(loader_of_epoch) -> Iterator:
    return itertools.chain.from_iterable(loader_of_epoch(epoch) for epoch in itertools.count())


def per_second(loaders: dict[str, Iterator], report: Report, batches: int = BATCHES) -> dict[str, float]:
    """Images per second of endless iterators of batches, in turns. Each is drained first of what it has ready."""
    speeds = {name: [] for name in loaders}
    for _ in range(2 if report.quick else 7):
        for name, loader in loaders.items():
            for _ in range(4):
                next(loader)
            began = time.perf_counter()
            count = sum(len(next(loader)) for _ in range(batches))
            speeds[name].append(count / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in speeds.items()}


def ours(images: ImageFolders, workers: int) -> Iterator[torch.Tensor]:
    return (batch["image"] for batch in load_batches(Batches(images, BATCH, 1, 0, 0, 1), 0, 10**6, workers, pin=False))


def speeds(report, listed, cache):
    """(a) One at a time, each for itself: loaders that fill their queues beside each other would slow each other down."""
    cached, on_the_fly = ImageFolders(listed, SIZE, cache), ImageFolders(listed, SIZE)
    source = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8)
    out = torch.empty_like(source)
    found = {name: [] for name in ("cached", "on the fly", "peer", "copy")}
    steady = 2 if report.quick else 8

    def peers(epoch):
        return DataLoader(PilFolder(cached.paths), BATCH, True, num_workers=2, drop_last=len(cached.paths) > BATCH)
    for _ in range(1 if report.quick else 5):
        for name, make_loader in (("cached", lambda: ours(cached, 2)), ("on the fly", lambda: ours(on_the_fly, 2)),
                                  ("peer", lambda: endless(peers)), ("copy", lambda: iter(lambda: out.copy_(source), None))):
            with contextlib.closing(started(make_loader())) as loader:
                many = steady * 20 if name in ("cached", "copy") else steady
                began = time.perf_counter()
                count = sum(len(batch) for batch in itertools.islice(loader, many))
                found[name].append(count / (time.perf_counter() - began))
    speed = {name: statistics.median(values) for name, values in found.items()}
    for name in ("cached", "on the fly"):
        report.add(f"uint8 batches {SIDE} px, {name}, against PIL + torchvision", speed[name], speed["peer"], speed["copy"],
                   "img/s", higher_is_better=True)


def started(loader):
    """The loader after its first 8 batches: with processes running and queues filled, and emptied again."""
    loader = iter(loader)
    for _ in range(8):
        next(loader)
    yield from loader


def sizes(report, temporary):
    """(b) Rows of a cache that fits into memory, read in the order of training."""
    smallest = 500 if report.quick else 4000
    loaders = {}
    for rows in (smallest, 4 * smallest, 16 * smallest):
        images = ImageFolders.__new__(ImageFolders)  # as many images as rows, without their files
        images.side, images.paths, images._on_device = SIDE, range(rows), None
        images._class, images._row = torch.arange(rows), torch.arange(rows)
        images._first_sample, images._offset = torch.tensor([0, rows]), torch.tensor([0, rows])
        images._first_image, images._expansion = torch.tensor([0, rows]), torch.tensor([1])
        file = temporary / f"rows{rows}"
        with open(file, "wb") as opened:
            block = os.urandom(3 * SIDE * SIDE * 500)
            for _ in range(rows // 500):
                opened.write(block)
        images._cache = np.asarray(np.memmap(file, np.uint8, "r", 0, (rows, 3, SIDE, SIDE)))
        np.add.reduce(images._cache.reshape(-1)[::4096])  # every page mapped
        loaders[rows] = ours(images, 0)
    for rows, speed in per_second(loaders, report, 40).items():
        report.add(f"cached batches out of {rows:,} rows", speed, unit="img/s")


def views(report, listed, temporary):
    """(c) View, change of size and augmentation on the batch's device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for side, views in ((160, 8), (256, 24)):
        image = torch.randint(0, 256, (BATCH, 3, side, side), dtype=torch.uint8, device=device)
        position, view = torch.arange(BATCH), torch.arange(BATCH) % views
        augment = {preset: Augment(preset, 0).to(device) for preset in ("none", "reference", "strong")}
        took = medians({preset: lambda module=module: module(image, position, view, SIZE)
                        for preset, module in augment.items()}, 2 if report.quick else 9)
        for preset, seconds in took.items():
            report.add(f"view, augmentation {preset}, {side} -> {SIZE} px, on {device.type}", BATCH / seconds, unit="img/s")


def building(report, listed, temporary):
    """(d) A new cache, against decoding and throwing away; then a start that finds it."""
    paths = [root.folder / name for root, names in listed for name in names]
    fresh = itertools.count()

    def decode():
        for _ in map_ahead(load_image, paths):
            pass
    took = medians({"build": lambda: ImageFolders(listed, SIZE, f"{temporary}/new{next(fresh)}", progress=False),
                    "decode": decode,
                    "start": lambda: ImageFolders(listed, SIZE, f"{temporary}/cache", progress=False)},
                   1 if report.quick else 5)
    report.add("building the cache", len(paths) / took["build"], None, len(paths) / took["decode"], "img/s")
    report.add(f"start with {len(paths):,} cached images, against decoding them", 1e3 * took["start"], 1e3 * took["decode"])


if __name__ == "__main__":
    run_cli(main)
