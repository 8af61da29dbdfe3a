"""Folders of smooth random images, their classes and batches."""
import cv2
import numpy as np
import torch

from dataset import ImageFolders, list_roots


def smooth(height, width, seed=0):
    """A smooth random image, so that resizing keeps it recognizable: uint8 BGR `[height,width,3]`."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def write(folder, count, suffix=".png", shape=(41, 60), first=0):
    """000.png, 001.png, ... in `folder`, which is returned; image i has the seed first + i."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        assert cv2.imwrite(str(folder / f"{i:03}{suffix}"), smooth(*shape, seed=first + i))
    return folder


def write_drawn(folder, count, seed, draw, write_coco, width=128, height=96):
    """`count` images in a new `folder`, and FOLDER.json beside it, which is returned. draw: (Generator, width, height) ->
    image, what it shows; write_coco: (file, {name: ((width, height), what it shows)}) -> file."""
    folder.mkdir()
    rng, images = np.random.default_rng(seed), {}
    for i in range(count):
        image, shown = draw(rng, width, height)
        cv2.imwrite(str(folder / f"{i:03}.png"), image)
        images[f"{i:03}.png"] = (width, height), shown
    return write_coco(folder.with_suffix(".json"), images)


def folders(data, expansion, size=32, cache=False, **options):
    """The `ImageFolders` of the entries of `data`."""
    return ImageFolders(list_roots([str(text) for text in data], expansion), size, cache, progress=False, **options)


def joined(parts):
    """The batch whose parts some ranks have."""
    return {key: torch.cat([part[key] for part in parts]) if isinstance(value, torch.Tensor)
            else [item for part in parts for item in part[key]] for key, value in parts[0].items()}


def same(one, other):
    """Whether two batches are equal in all they hold."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        for key, value in one.items())
