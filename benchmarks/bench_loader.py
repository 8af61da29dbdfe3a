"""The data path: cached batches against a DataLoader over PIL and torchvision; what a training loop waits; memory; building.

    python benchmarks/bench_loader.py [--quick] [--json] [--data DIR]

The peer decodes with PIL, `Resize` and `PILToTensor` in one worker process for each core; the limit is a copy of the same
bytes (of building: decoding alone; of waiting: what we allow). Without `--data` the images are synthetic documents (`synth`)
in a temporary folder.
"""
import contextlib
import ctypes
import gc
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import torch
from PIL import Image
from side_by_side import Report, UserError, medians, run_cli, synchronize
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import Compose, PILToTensor, Resize

from augment import Augment
from configs import load_config
from dataset import Batches, ImageFolders, list_roots, load_batches
from engine.distributed import Ranks
from engine.optimizer import make_optimizer, set_rates
from engine.parallel import prepare
from inference.image import available_cores, load_image, map_ahead
from tasks import build_task

BATCH, QUICK_BATCH, SIZE, SIDE = 256, 32, 128, 160
BATCHES = 4  # in one timing
WORKERS = available_cores()
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
    report = Report(__doc__, ("--data", {"help": "folder of images; default: synthetic documents"}))
    with tempfile.TemporaryDirectory() as temporary:
        data = report.args.data or make(Path(temporary) / "data", 30 if report.quick else 600)
        listed = list_roots([data], 1)
        speeds(report, listed, f"{temporary}/cache")
        stall(report, data, temporary)
        memory(report, listed, f"{temporary}/cache")
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


def ours(images: ImageFolders, batch: int) -> Iterator[torch.Tensor]:
    return (item["image"] for item in load_batches(Batches(images, batch, 1, 0, 0, 1), 0, 10**6, WORKERS, pin=False))


def peers(paths: list[str], batch: int) -> Iterator[torch.Tensor]:
    """Without an end: workers that start anew for each of some short epochs would be slower."""
    data = PilFolder(paths)
    return iter(DataLoader(data, batch, sampler=RandomSampler(data, True, 10**9), num_workers=WORKERS))


def speeds(report, listed, cache):
    """(a) One at a time, each for itself: loaders that fill their queues beside each other would slow each other down."""
    cached, on_the_fly = ImageFolders(listed, SIZE, cache), ImageFolders(listed, SIZE)
    batch = QUICK_BATCH if report.quick else BATCH
    source = torch.randint(0, 256, (batch, 3, SIDE, SIDE), dtype=torch.uint8)
    out = torch.empty_like(source)
    found = {name: [] for name in ("cached", "on the fly", "peer", "copy")}
    steady = 2 if report.quick else 8
    for _ in range(1 if report.quick else 5):
        for name, make_loader in (("cached", lambda: ours(cached, batch)), ("on the fly", lambda: ours(on_the_fly, batch)),
                                  ("peer", lambda: peers(cached.paths, batch)),
                                  ("copy", lambda: iter(lambda: out.copy_(source), None))):
            with contextlib.closing(started(make_loader())) as loader:
                many = steady * 20 if name in ("cached", "copy") else steady
                began = time.perf_counter()
                count = sum(len(images) for images in itertools.islice(loader, many))
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


def stall(report, data, temporary):
    """(b) The share of a training loop of lcnet_050 that passes in waiting for the next batch; of the host's time, so on a
    GPU, which computes meanwhile, this is an upper bound."""
    size, steps, warm_up = (16, 6, 2) if report.quick else (BATCH, 320 if DEVICE.type == "cuda" else 20, 4)
    cfg = load_config("configs/lcnet_cos", [f"data={data}", f"cache={temporary}/cache", "pretrained=false",
                                            f"batch_size={size}", f"max_steps={steps}"])
    ranks = Ranks(0, 1, DEVICE)
    task = build_task(cfg, ranks)
    task.forward, _ = prepare(task.model, task.example, ranks, cfg.compile, cfg.precision)
    optimizer = make_optimizer(task.param_groups(), cfg.batch_size)
    skip = torch.zeros((), dtype=torch.bool, device=DEVICE)
    with contextlib.closing(task.batches(0)) as batches:
        for step in range(steps):
            if step == warm_up:
                synchronize()
                began, waited = time.perf_counter(), 0.0
            set_rates(optimizer, 1.0)
            task.begin_step(step, 1.0)
            asked = time.perf_counter()
            batch = next(batches)
            waited = waited + time.perf_counter() - asked if step >= warm_up else 0.0
            sum(task.losses(batch).values()).backward()
            optimizer.step()
            optimizer.zero_grad()
            task.finish_step(skip)
        synchronize()
        share = waited / (time.perf_counter() - began)
    report.add(f"loader stall: a training loop's wait for cached batches, on {DEVICE.type}", 100 * share, None, 5.0, "%")


def memory(report, listed, cache):
    """(c) What loading takes at its peak, by this process and its workers together."""
    if not os.path.exists("/proc/self/smaps_rollup"):
        report.say("memory of the loaders: not measured, since this system does not report it (/proc/PID/smaps_rollup)")
        return
    images, batch = ImageFolders(listed, SIZE, cache), QUICK_BATCH if report.quick else BATCH
    peak = {}
    few = 4 if report.quick else 24
    for name, make_loader, batches in (("peer", lambda: peers(images.paths, batch), few),
                                       ("ours", lambda: ours(images, batch), 20 * few)):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed is returned, so that taking it again is measured
        found, done = [before := held()], threading.Event()

        def watch():
            while not done.wait(0.005):
                found.append(held())
        watcher = threading.Thread(target=watch)
        watcher.start()
        with contextlib.closing(started(make_loader())) as loader:
            for _ in itertools.islice(loader, batches):
                pass
            done.set()
            watcher.join()
        peak[name] = (max(found) - before) / 2**20
    report.add("memory of loading, cached, with workers, without mapped files", peak["ours"], peak["peer"], unit="MiB")


def held() -> int:
    """Bytes of this process and its workers, each page that they share counted once. Pages of mapped files do not count: the
    system takes them back whenever it needs them, as it does those of files that are read."""
    workers = " ".join(children.read_text() for children in Path("/proc/self/task").glob("*/children")).split()
    total = 0
    for process in ("self", *workers):
        with contextlib.suppress(OSError), open(f"/proc/{process}/smaps_rollup") as fields:  # a worker may end meanwhile
            total += sum(int(line.split()[1]) for line in fields if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return 1024 * total


def sizes(report, temporary):
    """(d) Rows of a cache that fits into memory, read in the order of training. One small image under many names (hard
    links, as one file is refused twice, and symbolic ones would be that) is a row for each of them."""
    smallest = 100 if report.quick else 3600
    image = temporary / "small.png"
    cv2.imwrite(str(image), torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8).numpy())
    loaders, roots, rows = {}, [], 0
    for wanted in (smallest, 4 * smallest, 16 * smallest):
        roots.append(temporary / f"to{wanted}")
        roots[-1].mkdir()
        for rows in range(rows, wanted):
            os.link(image, roots[-1] / f"{rows:06}.png")
        rows = wanted
        images = ImageFolders(list_roots([str(root) for root in roots], 1), SIZE, f"{temporary}/rows")
        if not images.cached:
            report.say(f"cached batches out of {rows:,} rows: not measured, {images.storage}")
            break
        for part in torch.arange(rows).split(BATCH):  # every page mapped
            images.pixels(part)
        loaders[rows] = ours(images, BATCH)
    for rows, speed in per_second(loaders, report, 40).items():
        report.add(f"cached batches out of {rows:,} rows", speed, unit="img/s")


def views(report, listed, temporary):
    """(e) View, change of size and augmentation on the batch's device."""
    for side, views in ((160, 8), (256, 24)):
        image = torch.randint(0, 256, (BATCH, 3, side, side), dtype=torch.uint8, device=DEVICE)
        position, view = torch.arange(BATCH), torch.arange(BATCH) % views
        augment = {preset: Augment(preset, 0).to(DEVICE) for preset in ("none", "reference", "strong")}
        took = medians({preset: lambda module=module: module(image, position, view, SIZE)
                        for preset, module in augment.items()}, 2 if report.quick else 9)
        for preset, seconds in took.items():
            report.add(f"view, augmentation {preset}, {side} -> {SIZE} px, on {DEVICE.type}", BATCH / seconds, unit="img/s")


def building(report, listed, temporary):
    """(f) A new cache, against decoding and throwing away; then a start that finds it."""
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
