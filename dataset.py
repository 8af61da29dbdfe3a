"""Folders of images -> classes by expansion -> batches, each a pure function of (seed, position in the run).

A batch is a dict of tensors: image uint8 [B,3,S,S] RGB, label int64 [B], and for joining and drawing random numbers
index (which image), view and position (place in the run's stream of samples), int64 [B] each.
"""
import hashlib
import os
import re
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

from inference.image import ImageError, list_images, load_image, map_ahead, resize, type_label
from runtime import UserError, first_line, permute, rank_and_world, share_of

EXPANSIONS = (1, 8, 24)
MAX_ASPECT = 50  # a longer strip, squashed to a square, shows nothing that would make it a class of its own


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


class ImageFolders:
    """The images under several roots, their classes and their samples.

    Every image is a local class of its own; under a labelled root every folder is one. Class id =
    offset[root] + local class * expansion + view, unique by construction; a sample is (image, view).
    Files that cannot be used are left out and listed, with the reason, in `left_out`: {path: reason}.

    data: list of FOLDER[:EXPANSION][:labelled]. cache: hold the decoded images in memory, their longest side brought
    down to 3 x `size`: a half's cut then moves by at most half a pixel of the smaller image (tests: under 3 of 255 levels
    in the mean for a picture of strong contrast).
    Ranks of a process group check a share of the files each and agree on the outcome.
    """

    def __init__(self, data: list[str], expansion: int, size: int, cache: bool = False, progress: bool = True):
        listed = list_roots(data, expansion)
        self.size, self.roots = size, [root for root, _ in listed]
        files = [root.folder / name for root, names in listed for name in names]
        again = {path for path, count in Counter(map(os.path.realpath, files)).items() if count > 1}
        if again:
            raise UserError(f"data: {min(again)} lies under several of the roots, so it would be several classes; "
                            "name each folder once")
        self.cache, self.left_out = _check(files, size, cache, progress)

        self.paths, self._class, self._first_sample, self._offset = [], [], [0], [0]
        self._first_image = [0]
        for root, names in listed:
            names = [name for name in names if root.folder / name not in self.left_out]
            if not names:
                path, reason = next(iter(self.left_out.items()))
                raise UserError(f"data={root.folder}: none of its images can be used; the first: {path}: {reason}")
            labels = [type_label(name) for name in names] if root.labelled else names
            number = {label: i for i, label in enumerate(dict.fromkeys(labels))}
            self.paths += [root.folder / name for name in names]
            self._class += [number[label] for label in labels]
            self._first_image.append(len(self.paths))
            self._first_sample.append(self._first_sample[-1] + len(names) * root.expansion)
            self._offset.append(self._offset[-1] + len(number) * root.expansion)
        if cache:
            self.cache = [self.cache[path] for path in self.paths]

    @property
    def num_classes(self) -> int:
        return self._offset[-1]

    def __len__(self) -> int:
        """Samples: the sum over the roots of images x expansion."""
        return self._first_sample[-1]

    def locate(self, sample: int) -> tuple[int, int, int]:
        """(image index, view, class id) of sample 0 .. len - 1."""
        root = int(np.searchsorted(self._first_sample, sample, "right")) - 1
        expansion = self.roots[root].expansion
        image, view = divmod(sample - self._first_sample[root], expansion)
        image += self._first_image[root]
        return image, view, self._offset[root] + self._class[image] * expansion + view

    def load(self, image: int, view: int) -> np.ndarray:
        """A view at the network's input size: uint8 RGB `[S,S,3]`. Raises UserError naming the file."""
        try:
            pixels = self.cache[image] if self.cache else load_image(self.paths[image])
        except ImageError as error:
            raise UserError(f"{self.paths[image]}: {error}; it was readable when the run began") from None
        return resize(np.ascontiguousarray(view_of(pixels, view)), self.size)[:, :, ::-1]


class Batches(Dataset):
    """Item k is this rank's part of the run's k-th micro-batch, by position alone: nothing is drawn, nothing is kept.

    Positions count the samples of the whole run. Epoch e is positions [e * N, (e + 1) * N), each sample once, in an
    order of its own. Step t takes positions [t * batch_size, (t + 1) * batch_size), split into `accumulate`
    micro-batches and each of those over the ranks, unevenly where it does not go into equal parts.
    """

    def __init__(self, images: ImageFolders, batch_size: int, accumulate: int, seed: int, rank: int, world: int):
        self.images, self.batch_size, self.accumulate = images, batch_size, accumulate
        self.seed, self.rank, self.world = seed, rank, world

    def positions(self, k: int) -> range:
        step, micro = divmod(k, self.accumulate)
        whole = share_of(self.batch_size, micro, self.accumulate)
        part = share_of(len(whole), self.rank, self.world)
        start = step * self.batch_size + whole.start
        return range(start + part.start, start + part.stop)

    def __getitem__(self, k: int) -> dict:
        position = torch.tensor(self.positions(k), dtype=torch.int64)
        epoch, place = position // len(self.images), position % len(self.images)
        sample = permute(place, len(self.images), self.seed, "order", epoch)
        index, view, label = (torch.tensor(part) for part in zip(*map(self.images.locate, sample.tolist())))
        try:
            pixels = np.stack([self.images.load(i, v) for i, v in zip(index.tolist(), view.tolist())])
        except UserError as error:
            return {"error": str(error)}  # an exception would cross the worker's pipe as a page of traceback
        return {"image": torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), "label": label,
                "index": index, "view": view, "position": position}


def load_batches(batches: Batches, first: int, stop: int, workers: int, pin: bool) -> Iterator[dict]:
    """Micro-batches first .. stop - 1, in order, loaded ahead by `workers` processes (0: in this one)."""
    loader = DataLoader(batches, sampler=range(first, stop), batch_size=None, num_workers=workers, pin_memory=pin,
                        prefetch_factor=4 if workers else None, worker_init_fn=_one_thread)
    try:
        for batch in loader:
            if "error" in batch:
                raise UserError(batch["error"])
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(f"the loader stopped: {first_line(error)}; try num_workers=0 to see why") from None


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _check(files: list[Path], size: int, cache: bool, progress: bool) -> tuple[dict, dict]:
    """Decode every file once: ({path: pixels} when `cache`, {path: why it is left out})."""
    rank, world = rank_and_world()
    mine = files if cache else [files[i] for i in share_of(len(files), rank, world)]

    def look(path):
        try:
            pixels = load_image(path)
        except ImageError as error:
            return path, None, str(error)
        height, width = pixels.shape[:2]
        if max(height, width) > MAX_ASPECT * min(height, width):
            return path, None, f"{width}x{height} pixels: longer than {MAX_ASPECT} times its width"
        return path, _shrink(pixels, 3 * size) if cache else None, None

    pixels, left_out = {}, {}
    for path, image, reason in tqdm(map_ahead(look, mine), "reading images", len(mine), unit="img",
                                    disable=None if progress and rank == 0 else True):
        if reason:
            left_out[path] = reason
        elif cache:
            pixels[path] = image
    if world > 1:
        listing = hashlib.blake2b("\0".join(map(str, files)).encode("utf-8", "surrogateescape")).hexdigest()
        parts = [None] * world
        dist.all_gather_object(parts, (listing, len(files), left_out))
        for other, (digest, count, _) in enumerate(parts):
            if digest != listing:  # class ids would mean different images on different ranks
                raise UserError(f"data: rank {rank} finds {len(files)} images and rank {other} finds {count}, or others; "
                                "every machine must see the same files under the same paths")
        left_out = {path: reason for *_, part in parts for path, reason in part.items()}
    return pixels, left_out


def _shrink(image: np.ndarray, longest: int) -> np.ndarray:
    factor = longest / max(image.shape[:2])
    return image if factor >= 1 else cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
