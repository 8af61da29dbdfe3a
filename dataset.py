"""Folders of images -> classes by expansion -> batches, each a pure function of (seed, position in the run).

A batch is a dict of tensors: image uint8 [B,3,c,c] RGB, the whole picture squashed to a square; label int64 [B]; and for
joining and drawing random numbers index (which image), view (which part of it, which way up) and position (place in the
run's stream of samples), int64 [B] each. The view is taken on the image's device, in one resampling with the augmentation.
"""
import contextlib
import functools
import hashlib
import logging
import math
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from augment.image_cache import CacheUnavailable, ImageCache, default_folder, size_text
from engine.distributed import rank_and_world, shard_range
from engine.random import permute
from inference.cli import run_cli
from inference.errors import UserError, first_line
from inference.image import ImageError, list_images, load_image, map_ahead, resize, type_label

EXPANSIONS = (1, 8, 24)
AHEAD = 3  # micro-batches that lie ready
TOGETHER = 4096  # samples whose place in the order is worked out at once: ten times as fast as by 256
MAX_ASPECT = 50  # a longer strip, squashed to a square, shows nothing that would make it a class of its own

log = logging.getLogger("docmetric")


def view_of(image: np.ndarray, view: int) -> np.ndarray:
    """View 0..23 of an image `[H,W,3]`: rotation (0..3) + 4 * flip + 8 * crop, as crop(flip(rotate(image))).

    Exact quarter turns (counter-clockwise), then the vertical flip, then the top `[:h//2]` (1) or bottom `[h//2:]` (2)
    half of the result's height: in the image's own geometry, so halves are halves for every aspect. 4 rotations x 2
    flips are all 8 orientations there are; a horizontal flip would repeat them under other names.
    """
    image = np.rot90(image, view % 4)
    if view // 4 % 2:
        image = image[::-1]
    half = image.shape[0] // 2
    return (image, image[:half], image[half:])[view // 8]


class Root(NamedTuple):
    """One entry of the config's `data`: FOLDER[:EXPANSION][:labelled]."""
    folder: Path
    expansion: int
    labelled: bool


def parse_root(text: str, expansion: int) -> Root:
    """Read FOLDER[:EXPANSION][:labelled]; a folder that exists under the whole text is taken as it is."""
    if Path(text).is_dir():
        return Root(Path(text), expansion, False)
    folder, number, labelled = re.fullmatch(r"(.*?)(?::(\d+))?(:labelled)?", text, re.S).groups()
    if number and int(number) not in EXPANSIONS:
        raise UserError(f"data={text}: expansion {number} is not known; choose 1, 8 or 24")
    return Root(Path(folder), int(number or expansion), bool(labelled))


def list_roots(data: list[str], expansion: int) -> list[tuple[Root, list[str]]]:
    """Each root of `data` with the names of its image files. Raises UserError for a folder that cannot be used."""
    if not data:
        raise UserError("data: no folder given; write data=FOLDER, or several as data=FOLDER,FOLDER:8")
    listed = [(root, list_images(root.folder)) for root in (parse_root(text, expansion) for text in data)]
    for root, names in listed:
        if not names:
            raise UserError(f"data={root.folder}: no images below this folder (jpg, png, webp, bmp, tif)")
    return listed


def square_side(size: int, roots: list[Root]) -> int:
    """Side of the squares that images of `size` are drawn from: twice `size` where halves are classes, which then keep all
    their rows; else 1.25 times, so that turning and scaling do not blur; in steps of 8."""
    wanted = 2 * size if any(root.expansion == 24 for root in roots) else 1.25 * size
    return math.ceil(wanted / 8) * 8


def load_square(path, side: int) -> np.ndarray:
    """The whole picture as RGB, squashed: uint8 `[3,side,side]`. Raises ImageError with the reason alone."""
    pixels = load_image(path, side)
    height, width = pixels.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ImageError(f"{width}x{height} pixels: longer than {MAX_ASPECT} times its width")
    return np.stack(cv2.split(resize(pixels, side))[::-1])


class ImageFolders:
    """The images under several roots, their classes and their samples.

    Every image is a local class of its own; under a labelled root every folder is one. Class id =
    offset[root] + local class * expansion + view, unique by construction; a sample is (image, view).
    Files that cannot be used are left out and listed, with the reason, in `left_out`: {path: reason}.

    listed: what `list_roots` gives. size: the network's input, pixels. cache: True or a folder: decode each file once, into
    that folder (`image_cache.py`); False: whenever it is wanted. The pixels are the same; `storage` says which it came to.
    The ranks of a process group see the same files and leave out the same ones.
    Images are squares of `side` pixels that show the whole picture; the view is taken from them where they are
    augmented (`Augment`, which states how near that is to `view_of`).
    """

    def __init__(self, listed: list[tuple[Root, list[str]]], size: int, cache: bool | str = False, progress: bool = True):
        self.roots = [root for root, _ in listed]
        self.side = square_side(size, self.roots)
        files = [os.path.join(os.path.abspath(root.folder), name) for root, names in listed for name in names]
        again = {path for path, count in Counter(map(_real_path, files)).items() if count > 1}
        if again:
            raise UserError(f"data: {min(again)} lies under several of the roots, so it would be several classes; "
                            "name each folder once")
        self._cache, rows, self.left_out, self.storage = _cached(files, self.side, cache, progress)
        if self._cache is None:
            self.left_out = _check(files, self.side, progress)
        self.left_out = _agree(files, self.left_out)

        self.paths, classes, first_sample, offset, first_image = [], [], [0], [0], [0]
        for root, names in listed:
            folder = os.path.abspath(root.folder)
            names = [name for name in names if os.path.join(folder, name) not in self.left_out]
            if not names:
                path, reason = next(iter(self.left_out.items()))
                raise UserError(f"data={root.folder}: none of its images can be used; the first: {path}: {reason}")
            labels = [type_label(name) for name in names] if root.labelled else names
            number = {label: i for i, label in enumerate(dict.fromkeys(labels))}
            self.paths += [os.path.join(folder, name) for name in names]
            classes += [number[label] for label in labels]
            first_image.append(len(self.paths))
            first_sample.append(first_sample[-1] + len(names) * root.expansion)
            offset.append(offset[-1] + len(number) * root.expansion)
        self._class, self._first_sample, self._offset, self._first_image, self._expansion = map(
            torch.tensor, (classes, first_sample, offset, first_image, [root.expansion for root in self.roots]))
        self._row = torch.tensor([rows[path] for path in self.paths]) if self.cached else None
        self._on_device = None

    @property
    def num_classes(self) -> int:
        return self._offset[-1].item()

    @property
    def cached(self) -> bool:
        """Whether a square costs no more than a copy."""
        return self._cache is not None

    def __len__(self) -> int:
        """Samples: the sum over the roots of images x expansion."""
        return self._first_sample[-1].item()

    def locate(self, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(image index, view, class id), int64 `[n]` each, of samples `[n]` in 0 .. len - 1."""
        root = torch.searchsorted(self._first_sample, sample, right=True) - 1
        expansion, place = self._expansion[root], sample - self._first_sample[root]
        image, view = place // expansion + self._first_image[root], place % expansion
        return image, view, self._offset[root] + self._class[image] * expansion + view

    def squares(self, image: torch.Tensor, pin: bool = False) -> torch.Tensor:
        """The pictures of `image` int64 `[n]`: RGB uint8 `[n,3,side,side]`; on the host (in pinned memory) unless
        `cache_on_device` has put them elsewhere. Raises UserError naming a file that can no longer be used."""
        if self._on_device is not None:
            return self._on_device.index_select(0, image.to(self._on_device.device, non_blocking=True))
        out = torch.empty(len(image), 3, self.side, self.side, dtype=torch.uint8, pin_memory=pin)
        if self.cached:  # numpy's copy takes one thread and lets go of Python's lock; "clip", as "raise" would copy twice
            np.take(self._cache, self._row[image].numpy(), 0, out.numpy(), "clip")
        else:
            for square, i in zip(out.numpy(), image.tolist()):
                square[:] = self.load(i)
        return out

    def load(self, image: int) -> np.ndarray:
        """The square of one image, decoded now: uint8 `[3,side,side]`. Raises UserError naming the file."""
        try:
            return load_square(self.paths[image], self.side)
        except ImageError as error:
            raise UserError(f"{self.paths[image]}: {error}; it was readable when the run began") from None

    def cache_on_device(self, device: torch.device, room: int) -> bool:
        """Put all squares on `device`, where batches are then made, if they are cached and take at most `room` bytes."""
        if not self.cached or len(self.paths) * 3 * self.side ** 2 > room:
            return False
        whole = torch.empty(len(self.paths), 3, self.side, self.side, dtype=torch.uint8, device=device)
        for part in torch.arange(len(whole)).split(1024):
            whole[part[0]:part[-1] + 1] = self.squares(part)
        self._on_device = whole
        self.storage += f"; all of it on {device}"
        return True


class Batches(Dataset):
    """Item k is this rank's part of the run's k-th micro-batch, by position alone, whatever was asked for before.

    Positions count the samples of the whole run. Epoch e is positions [e * N, (e + 1) * N), each sample once, in an
    order of its own. Step t takes positions [t * batch_size, (t + 1) * batch_size), split into `accumulate`
    micro-batches and each of those over the ranks, unevenly where it does not go into equal parts.
    """

    def __init__(self, images: ImageFolders, batch_size: int, accumulate: int, seed: int, rank: int, world: int):
        self.images, self.batch_size, self.accumulate = images, batch_size, accumulate
        self.seed, self.rank, self.world = seed, rank, world
        self.group = max(1, TOGETHER * world * accumulate // batch_size)  # micro-batches
        self._ready = -1, []

    def positions(self, k: int) -> range:
        step, micro = divmod(k, self.accumulate)
        whole = shard_range(self.batch_size, micro, self.accumulate)
        part = shard_range(len(whole), self.rank, self.world)
        start = step * self.batch_size + whole.start
        return range(start + part.start, start + part.stop)

    def __getitem__(self, k: int) -> dict:
        return self.item(k)

    def item(self, k: int, pin: bool = False) -> dict:
        """As `batches[k]`, its image in pinned memory if `pin`; {"error": what to tell} when a file cannot be used."""
        position, index, view, label = self._samples(k)
        try:
            image = self.images.squares(index, pin)
        except UserError as error:
            return {"error": str(error)}  # an exception would cross a worker's pipe as a page of traceback
        return {"image": image, "label": label, "index": index, "view": view, "position": position}

    def _samples(self, k: int) -> tuple[torch.Tensor, ...]:
        """(position, index, view, label) of item k. Of a whole group at once, which costs little more than of one."""
        ready, samples = self._ready  # read once: threads may ask for other groups meanwhile
        if ready != k // self.group:
            ready = k // self.group
            parts = [self.positions(ready * self.group + i) for i in range(self.group)]
            position = torch.cat([torch.arange(part.start, part.stop) for part in parts])
            epoch, place = position // len(self.images), position % len(self.images)
            index, view, label = self.images.locate(permute(place, len(self.images), self.seed, "order", epoch))
            samples = list(zip(*(values.split([len(part) for part in parts]) for values in (position, index, view, label))))
            self._ready = ready, samples
        return tuple(values.clone() for values in samples[k % self.group])


def load_batches(batches: Batches, first: int, stop: int, workers: int, pin: bool) -> Iterator[dict]:
    """Micro-batches first .. stop - 1, in order: copied a few ahead by threads where the images are cached, else decoded
    ahead by `workers` processes (0: by this one when asked for)."""
    numbers = range(first, stop)
    if batches.images.cached:
        loaded = map_ahead(lambda k: batches.item(k, pin), numbers, AHEAD)
    elif workers:
        loaded = _from_processes(batches, numbers, workers, pin)
    else:
        loaded = (batches.item(k, pin) for k in numbers)
    with contextlib.closing(loaded):
        for batch in loaded:
            if "error" in batch:
                raise UserError(batch["error"])
            yield batch


def _from_processes(batches: Batches, numbers: range, workers: int, pin: bool) -> Iterator[dict]:
    loader = iter(DataLoader(batches, sampler=numbers, batch_size=None, num_workers=workers, pin_memory=pin,
                             prefetch_factor=4, worker_init_fn=_worker))
    try:
        yield from loader
    except RuntimeError as error:
        raise UserError(f"the loader stopped: {first_line(error)}; try num_workers=0 to see why") from None
    finally:  # left to the end of Python, they would be sent SIGTERM, which they ignore, and waited for
        loader._shutdown_workers()
        for worker in loader._workers:
            worker.kill()  # one that has not ended yet: its disk may not answer


def _worker(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C goes to all processes; the run ends this one when it stops
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _real_path(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.realpath(path) if os.path.islink(path) else os.path.join(_real_folder(folder), name)


@functools.lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)  # asks the disk about every part of the path: too slow to do for every file


def _cached(files: list[str], side: int, cache: bool | str, progress: bool) -> tuple[np.ndarray | None, dict, dict, str]:
    """(squares, {path: row}, {path: why it is left out}, where they are); None for the squares where there is no cache."""
    if not cache:
        return None, {}, {}, "images: decoded whenever they are wanted"
    try:
        folder = default_folder() if cache is True else Path(cache).expanduser()
        store = ImageCache(folder, side, lambda path: load_square(path, side))
        squares, found = store.open(files, progress)
    except CacheUnavailable as error:
        log.warning(f"image cache: {error}; decoding images whenever they are wanted instead (cache=FOLDER: elsewhere)")
        return None, {}, {}, "images: decoded whenever they are wanted, since the cache cannot be used"
    left_out = {path: row for path, row in found.items() if isinstance(row, str)}
    size = size_text((len(found) - len(left_out)) * 3 * side * side)
    return squares, found, left_out, f"images: {size} in the cache {store.folder}"


def _check(files: list[str], side: int, progress: bool) -> dict[str, str]:
    """Decode every file of this rank's share once: {path: why it is left out}."""
    rank, world = rank_and_world()
    mine = [files[i] for i in shard_range(len(files), rank, world)]

    def look(path):
        try:
            load_square(path, side)
        except ImageError as error:
            return str(error)

    looked = tqdm(map_ahead(look, mine), "reading images", len(mine), unit="img",
                  disable=None if progress and rank == 0 else True)
    return {path: reason for path, reason in zip(mine, looked) if reason}


def _agree(files: list[str], left_out: dict[str, str]) -> dict[str, str]:
    """What any rank leaves out, after a check that all have the same files."""
    rank, world = rank_and_world()
    if world == 1:
        return left_out
    listing = hashlib.blake2b("\0".join(files).encode("utf-8", "surrogateescape")).hexdigest()
    parts = [None] * world
    dist.all_gather_object(parts, (listing, len(files), left_out))
    for other, (digest, count, _) in enumerate(parts):
        if digest != listing:  # class ids would mean different images on different ranks
            raise UserError(f"data: rank {rank} finds {len(files)} images and rank {other} finds {count}, or others; "
                            "every machine must see the same files under the same paths")
    together = {path: reason for *_, part in parts for path, reason in part.items()}
    return {path: together[path] for path in files if path in together}


def main():
    if sys.argv[1:2] != ["doctor"]:
        raise UserError("usage: python -m dataset doctor DIR...; doctor looks at images before a run (--help: how)")
    from tools.doctor import main as doctor
    doctor(sys.argv[2:])


if __name__ == "__main__":
    run_cli(main)
