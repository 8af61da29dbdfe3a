"""Folders of images -> classes by expansion -> samples in an order -> batches, by (seed, position in the run) alone.

A batch is a dict: image uint8 [B,3,c,c] RGB, whole images, resized; label int64 [B]; id, a list of B str, by which other
data can be joined; view (which part of the image, which way up) and position (place in the run's stream of samples), int64
[B] each. The view is taken on the image's device, in one resampling with the augmentation.
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
from engine.random import hash64, permute
from inference.cli import Parser, run_cli
from inference.errors import UserError, first_line
from inference.image import ImageError, fit_square, list_images, load_image, map_ahead, type_label

EXPANSIONS = (1, 8, 24)
AHEAD = 3  # micro-batches that lie ready
TOGETHER = 4096  # samples whose place in the order is computed at once: ten times as fast as by 256
MAX_ASPECT = 50  # a longer strip, resized to a square, shows nothing that would make it a class of its own

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


def resized_side(size: int, roots: list[Root]) -> int:
    """Side of the resized images that a network's input of `size` is drawn from: twice `size` where halves are classes,
    which then keep all their rows; else 1.25 times, so that turning and scaling do not blur; in steps of 8."""
    wanted = 2 * size if any(root.expansion == 24 for root in roots) else 1.25 * size
    return math.ceil(wanted / 8) * 8


def load_resized(path, side: int, fit: str = "squash") -> np.ndarray:
    """The whole image as a square (fit: see `fit_square`): RGB uint8 `[3,side,side]`. Raises ImageError with the reason."""
    pixels = load_image(path, side)
    height, width = pixels.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ImageError(f"{width}x{height} pixels: longer than {MAX_ASPECT} times its width")
    return np.stack(cv2.split(fit_square(pixels, side, fit))[::-1])


class ImageFolders:
    """The images under several roots, their classes and their samples.

    Every image is a local class of its own; under a labelled root every folder is one, the same one under each labelled root
    that has a folder of that name. A local class has as many views as the largest expansion of its roots; class id = its
    offset (the views of the local classes before it) + view, unique by construction. A sample is (image, view).
    Files that cannot be used are listed, with the reason, in `skipped`: {path: reason}.

    listed: what `list_roots` gives. size: the network's input, pixels. cache: True or a folder: decode each file once, into
    that folder (`augment/image_cache.py`); False: whenever it is wanted. The pixels are the same; `storage` says which it
    came to. fit: how an image is resized to a square (`inference.image.fit_square`).
    identity: what `ids` are: "path", of each image relative to its root and '/'-joined, or "content", the digest of the
    file's bytes that `b2sum -l 128` prints: the same under any name, but every file is read once more at each start.
    The ranks of a process group see the same files and skip the same ones.
    Resized images have `side` x `side` pixels and show the whole image; the view is taken from them where they are
    augmented (`Augment`, which states how near that is to `view_of`).
    `labels` holds the label of each local class: its folder's, or the image's path relative to its root.
    """

    def __init__(self, listed: list[tuple[Root, list[str]]], size: int, cache: bool | str = False, progress: bool = True,
                 fit: str = "squash", identity: str = "path"):
        self.roots = [root for root, _ in listed]
        self.side, self.fit, self.identity = resized_side(size, self.roots), fit, identity
        if fit == "pad" and any(root.expansion == 24 for root in self.roots):
            raise UserError("fit=pad: halves of a padded image are not halves of the image, so an expansion of 24 is not "
                            "possible; use expansion=8 or 1, or fit=squash")
        files = [os.path.join(os.path.abspath(root.folder), name) for root, names in listed for name in names]
        again = {path for path, count in Counter(map(_real_path, files)).items() if count > 1}
        if again:
            raise UserError(f"data: {min(again)} lies under several of the roots, so it would be several classes; "
                            "name each folder once")
        decode = functools.partial(load_resized, side=self.side, fit=fit)
        self._cache, rows, skipped, self.storage = _cached(files, self.side, fit, decode, cache, progress)
        if self._cache is None:
            skipped = _check(files, decode, progress)
        self.skipped = _merge(files, skipped)
        self._number(listed)
        if identity == "content":
            self.ids = _content_ids(self.paths)
        self._row = torch.tensor([rows[path] for path in self.paths]) if self.cached else None
        self._on_device = None

    def _number(self, listed: list[tuple[Root, list[str]]]) -> None:
        """Number the images, classes and samples that are left."""
        self.paths, self.ids, self.labels = [], [], []
        number, views, classes, shared, first_sample, first_image = {}, [], [], set(), [0], [0]
        for place, (root, names) in enumerate(listed):
            folder = os.path.abspath(root.folder)
            names = [name for name in names if os.path.join(folder, name) not in self.skipped]
            if not names:
                path, reason = next(iter(self.skipped.items()))
                raise UserError(f"data={root.folder}: none of its images can be used; the first: {path}: {reason}")
            known = len(views)  # local classes of the roots before
            for name in names:
                label = type_label(name) if root.labelled else name
                local = number.setdefault(label if root.labelled else (place, name), len(views))
                if local == len(views):
                    views.append(root.expansion)
                    self.labels.append(label)
                elif local < known:
                    shared.add(local)
                views[local] = max(views[local], root.expansion)
                classes.append(local)
            self.paths += [os.path.join(folder, name) for name in names]
            self.ids += names
            first_image.append(len(self.paths))
            first_sample.append(first_sample[-1] + len(names) * root.expansion)
        if shared:
            log.info(f"data: labels under several roots, each of them one class: {len(shared)}, such as "
                     f"{self.labels[min(shared)]}")
        views = torch.tensor(views)
        self.num_classes = int(views.sum())
        self._first_class = (views.cumsum(0) - views)[torch.tensor(classes)]  # of each image
        self._first_sample, self._first_image, self._expansion = map(
            torch.tensor, (first_sample, first_image, [root.expansion for root in self.roots]))

    @property
    def cached(self) -> bool:
        """Whether an image costs no more than a copy."""
        return self._cache is not None

    def __len__(self) -> int:
        """Samples: the sum over the roots of images x expansion."""
        return self._first_sample[-1].item()

    def locate(self, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(image index, view, class id), int64 `[n]` each, of samples `[n]` in 0 .. len - 1."""
        root = torch.searchsorted(self._first_sample, sample, right=True) - 1
        expansion, place = self._expansion[root], sample - self._first_sample[root]
        image, view = place // expansion + self._first_image[root], place % expansion
        return image, view, self._first_class[image] + view

    def sample_classes(self) -> torch.Tensor:
        """The class id of every sample, int64 `[len]`: the samplers by class need it."""
        return self.locate(torch.arange(len(self)))[2]

    def unique_ids(self) -> dict[str, int]:
        """{id: image index}, for joining data by `ids`; of files with the same content the first. Raises UserError where two
        images that may differ have the same id."""
        found = {}
        for index, name in enumerate(self.ids):
            first = found.setdefault(name, index)
            if first != index and self.identity == "path":
                raise UserError(f"data: {self.paths[first]} and {self.paths[index]} have the same id {name}, so nothing can "
                                "be joined by it; use identity=content, or one root above both")
        return found

    def pixels(self, image: torch.Tensor, pin: bool = False) -> torch.Tensor:
        """The images `image` int64 `[n]`: RGB uint8 `[n,3,side,side]`; on the host (in pinned memory) unless
        `cache_on_device` has put them elsewhere. Raises UserError naming a file that can no longer be used."""
        if self._on_device is not None:
            return self._on_device.index_select(0, image.to(self._on_device.device, non_blocking=True))
        out = torch.empty(len(image), 3, self.side, self.side, dtype=torch.uint8, pin_memory=pin)
        if self.cached:  # numpy's copy takes one thread and lets go of Python's lock; "clip", as "raise" would copy twice
            np.take(self._cache, self._row[image].numpy(), 0, out.numpy(), "clip")
        else:
            for resized, i in zip(out.numpy(), image.tolist()):
                resized[:] = self.load(i)
        return out

    def load(self, image: int) -> np.ndarray:
        """One image, decoded now: uint8 `[3,side,side]`. Raises UserError naming the file."""
        try:
            return load_resized(self.paths[image], self.side, self.fit)
        except ImageError as error:
            raise UserError(f"{self.paths[image]}: {error}; it was readable when the run began") from None

    def cache_on_device(self, device: torch.device, room: int) -> bool:
        """Put all images on `device`, where batches are then made, if they are cached and take at most `room` bytes."""
        if not self.cached or len(self.paths) * 3 * self.side ** 2 > room:
            return False
        whole = torch.empty(len(self.paths), 3, self.side, self.side, dtype=torch.uint8, device=device)
        for part in torch.arange(len(whole)).split(1024):
            whole[part[0]:part[-1] + 1] = self.pixels(part)
        self._on_device = whole
        self.storage += f"; all of it on {device}"
        return True


# A sampler says which sample stands at each position of a run: `samples(position)` is a pure function of (seed, position),
# int64 [n] -> [n]; an epoch is `len(sampler)` positions; `block` samples that follow each other belong together.
class Permutation:
    """Each of n samples once in an epoch, in an order of its own."""
    block = 1

    def __init__(self, n: int, seed: int):
        self.n, self.seed = n, seed

    def __len__(self) -> int:
        return self.n

    def samples(self, position: torch.Tensor) -> torch.Tensor:
        return permute(position % self.n, self.n, self.seed, "order", position // self.n)


class PerClass:
    """m samples of a class side by side, each class once in an epoch, in an order of its own.

    classes: the class of each sample, int64 `[n]` (`ImageFolders.sample_classes`). From epoch to epoch a class shows further
    samples of its own, each at most once before a new order begins; one with fewer than m shows all of them in turn.
    """

    def __init__(self, classes: torch.Tensor, m: int, seed: int):
        self.m, self.seed, self.block = m, seed, m
        _, dense, self._count = classes.unique(return_inverse=True, return_counts=True)  # [n], [C]
        self._sample = dense.argsort(stable=True)                                         # class after class
        self._first = self._count.cumsum(0) - self._count

    def __len__(self) -> int:
        return len(self._count) * self.block

    def samples(self, position: torch.Tensor) -> torch.Tensor:
        epoch, place = position // len(self), position % len(self)
        group = permute(place // self.block, len(self._count), self.seed, "order of classes", epoch)
        return self._draw(group, epoch, place % self.m)

    def _draw(self, group: torch.Tensor, visit: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """The sample at `place` (0 .. m - 1) of those that class `group` shows when it is met for the `visit`-th time."""
        count = self._count[group]
        visits = (count // self.m).clamp_min(1)  # before a new order begins: the rest is not enough for another
        order = hash64(self.seed, "order within a class", group, visit // visits)
        place = (visit * self.m + place) % count
        for n in count.unique().tolist():
            same = count == n
            place[same] = permute(place[same], n, self.seed, "place within a class", order[same])
        return self._sample[self._first[group] + place]


class HardNegatives(PerClass):
    """Blocks of k classes that look alike x m samples: in an epoch one block for each class, with its nearest look-alikes.

    file: a line for each class: its label, then those of its look-alikes, the nearest first, with tabs between (UTF-8).
    labels: of the classes 0 .. C - 1 (`ImageFolders.labels`, with expansion=1). A class without a line, or with fewer than
    k - 1 look-alikes, is joined by others, drawn once for the run. Raises UserError, with file and line.
    """

    def __init__(self, file, labels: list[str], classes: torch.Tensor, k: int, m: int, seed: int):
        super().__init__(classes, m, seed)
        self.block = k * m
        if len(labels) != len(self._count):
            raise UserError(f"{file}: names classes by their labels, so every label must be one class; use expansion=1")
        if k > len(labels):
            raise UserError(f"{file}: blocks of {k} classes need as many, and the data has {len(labels)}")
        alike = _read_look_alikes(file, labels)
        each = torch.arange(len(labels))
        others = permute(torch.arange(k).repeat(len(labels)), len(labels), seed, "beside a class", each.repeat_interleave(k))
        self._beside = torch.tensor([list(dict.fromkeys([c, *alike.get(c, ()), *drawn]))[:k]          # [C,k], itself first
                                     for c, drawn in enumerate(others.view(-1, k).tolist())])

    def samples(self, position: torch.Tensor) -> torch.Tensor:
        epoch, place = position // len(self), position % len(self)
        anchor = permute(place // self.block, len(self._count), self.seed, "order of classes", epoch)
        group = self._beside[anchor, place % self.block // self.m]
        return self._draw(group, epoch * len(self._count) + anchor, place % self.m)


def _read_look_alikes(file, labels: list[str]) -> dict[int, list[int]]:
    """{class: its look-alikes} of a file as `HardNegatives` describes it. Labels may be any text without tab and newline."""
    number = {}
    for c, label in enumerate(labels):
        if number.setdefault(label, c) != c:
            raise UserError(f"{file}: cannot be used, since two classes of the data have the label {label!r}")
    try:
        lines = Path(file).read_bytes().decode().split("\n")  # not splitlines: a label may be any of its other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)})") from None
    alike = {}
    for at, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            c, *others = (number[label] for label in line.removesuffix("\r").split("\t"))
        except KeyError as error:
            raise UserError(f"{file}:{at}: the data has no class {error}; was the file written for other data?") from None
        if c in alike:
            raise UserError(f"{file}:{at}: a second line for the class {labels[c]!r}; keep one of them")
        alike[c] = others
    return alike


class Batches(Dataset):
    """Item k is this rank's part of the run's k-th micro-batch, by position alone, whatever was asked for before.

    Positions count the samples of the whole run; `sampler` says which stands where (None: all of them, a permutation an
    epoch). Step t takes positions [t * batch_size, (t + 1) * batch_size), split into `accumulate` micro-batches and each
    of those over the ranks, unevenly where it does not go into equal parts. Raises UserError where a micro-batch would
    tear one of the sampler's blocks. seed: of the permutation.
    """

    def __init__(self, images: ImageFolders, batch_size: int, accumulate: int, seed: int, rank: int, world: int,
                 sampler: Permutation | PerClass | None = None):
        self.images, self.batch_size, self.accumulate = images, batch_size, accumulate
        self.rank, self.world = rank, world
        self.sampler = Permutation(len(images), seed) if sampler is None else sampler
        block = self.sampler.block
        if block > 1 and batch_size % (accumulate * block):
            raise UserError(f"batch_size={batch_size}: must be a multiple of {accumulate * block}: {block} samples belong "
                            f"together, x accumulate={accumulate}")
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
            image = self.images.pixels(index, pin)
        except UserError as error:
            return {"error": str(error)}  # an exception would cross a worker's pipe as a page of traceback
        ids = [self.images.ids[i] for i in index.tolist()]
        return {"image": image, "label": label, "id": ids, "view": view, "position": position}

    def _samples(self, k: int) -> tuple[torch.Tensor, ...]:
        """(position, index, view, label) of item k. Of a whole group at once, which costs little more than of one."""
        ready, samples = self._ready  # read once: threads may ask for other groups meanwhile
        if ready != k // self.group:
            ready = k // self.group
            parts = [self.positions(ready * self.group + i) for i in range(self.group)]
            position = torch.cat([torch.arange(part.start, part.stop) for part in parts])
            index, view, label = self.images.locate(self.sampler.samples(position))
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


def _cached(files: list[str], side: int, fit: str, decode, cache: bool | str,
            progress: bool) -> tuple[np.ndarray | None, dict, dict, str]:
    """(images, {path: row}, {path: why it is skipped}, where they are); None for the images where there is no cache."""
    if not cache:
        return None, {}, {}, "images: decoded whenever they are wanted"
    try:
        folder = default_folder() if cache is True else Path(cache).expanduser()
        store = ImageCache(folder, side, decode, "" if fit == "squash" else fit)
        images, found = store.open(files, progress)
    except CacheUnavailable as error:
        log.warning(f"image cache: {error}; decoding images whenever they are wanted instead (cache=FOLDER: elsewhere)")
        return None, {}, {}, "images: decoded whenever they are wanted, since the cache cannot be used"
    skipped = {path: row for path, row in found.items() if isinstance(row, str)}
    size = size_text((len(found) - len(skipped)) * 3 * side * side)
    return images, found, skipped, f"images: {size} in the cache {store.folder}"


def _check(files: list[str], decode, progress: bool) -> dict[str, str]:
    """Decode every file of this rank's share once: {path: why it is skipped}."""
    rank, world = rank_and_world()
    mine = [files[i] for i in shard_range(len(files), rank, world)]

    def look(path):
        try:
            decode(path)
        except ImageError as error:
            return str(error)

    looked = tqdm(map_ahead(look, mine), "reading images", len(mine), unit="img",
                  disable=None if progress and rank == 0 else True)
    return {path: reason for path, reason in zip(mine, looked) if reason}


def _merge(files: list[str], skipped: dict[str, str]) -> dict[str, str]:
    """What any rank skips, after a check that all have the same files."""
    rank, world = rank_and_world()
    listing = hashlib.blake2b("\0".join(files).encode("utf-8", "surrogateescape")).hexdigest()
    parts = _gather((listing, len(files), skipped))
    for other, (digest, count, _) in enumerate(parts):
        if digest != listing:  # class ids would mean different images on different ranks
            raise UserError(f"data: rank {rank} finds {len(files)} images and rank {other} finds {count}, or others; "
                            "every machine must see the same files under the same paths")
    together = {path: reason for *_, part in parts for path, reason in part.items()}
    return {path: together[path] for path in files if path in together}


def _content_ids(paths: list[str]) -> list[str]:
    """The digest of each file's bytes, computed by the ranks together."""
    def digest(path):
        try:
            return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); it was readable when the run began") from None
    rank, world = rank_and_world()
    mine = [paths[i] for i in shard_range(len(paths), rank, world)]
    return [name for part in _gather(list(map_ahead(digest, mine))) for name in part]


def _gather(value) -> list:
    """The `value` of each rank."""
    parts = [value] * rank_and_world()[1]
    if len(parts) > 1:
        dist.all_gather_object(parts, value)
    return parts


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = Parser(prog="python -m dataset", usage="%(prog)s doctor DIR...", description="""\
Look at images before a long run: unusable files, duplicates, classes, and what the run would cost.

    python -m dataset doctor scans photos:1 --eval held_out --report REPORT
    python -m dataset doctor --help""")
    parser.add_argument("command", metavar="doctor", choices=["doctor"], help="its options: python -m dataset doctor --help")
    parser.parse_args(arguments[:1])  # the rest is the doctor's
    from tools.doctor import main as doctor
    doctor(arguments[1:])


if __name__ == "__main__":
    run_cli(main)
