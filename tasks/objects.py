"""What the tasks share that learn where things are: a COCO file joined with the images, and heatmaps of things' centers."""
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from engine.keys import Key
from eval.coco import Boxes, read_coco
from inference.errors import UserError
from inference.image import ImageError, fit_square, list_images, load_image, map_ahead
from tasks import images

SHARPNESS = 6  # the Gaussian of an object has 1/6 of its side as deviation: three of them reach from its center to its edge
AT_ONCE = 64  # images that go through the network together, and objects that are drawn together
CHECKED = 32  # images whose size is compared with what the COCO file says

KEYS = {
    **images.KEYS,
    "boxes": Key("", "COCO file: what the images of data show, and where; its file_name is an image's id"),
    "expansion": Key(1, "samples made of an image: 8 is quarter turns x flip, 24 also x whole, top half, bottom half",
                     choices=(1, 8, 24)),
    "width": Key(64, "channels of the neck and the head", choices=(32, 48, 64, 96, 128, 192, 256)),
    "eval_data": Key("", "folder of images to evaluate on"),
    "eval_boxes": Key("", "COCO file: what the images of eval_data show, and where"),
}


class Objects(NamedTuple):
    """N objects in a batch: the number of their image, of their class, int64 `[N]`, and their boxes (x0, y0, x1, y1) in
    pixels of the network's input, float64 `[N,4]`. On the host, so that only the losses wait for the device."""
    image: torch.Tensor
    kind: torch.Tensor
    box: torch.Tensor


class ObjectTask(images.ImageTask):
    """A task that learns from images and the COCO file `boxes`. A subclass's `__init__` calls this one, then `read_boxes()`
    in place of `read_images()`. `held_out`: {path below `eval_data`: what it shows}."""
    names: list[str]  # of the classes

    @classmethod
    def check_config(cls, cfg) -> None:
        super().check_config(cfg)
        if bool(cfg.eval_data) != bool(cfg.eval_boxes):
            raise UserError("eval_data, eval_boxes: give both or neither")

    def __init__(self, cfg, ranks):
        super().__init__(cfg, ranks)
        if not cfg.boxes:
            raise UserError("boxes: no file given; write boxes=FILE, a COCO file of the images of data")
        self.names, self._listed = read_coco(cfg.boxes)
        self.held_out = self._held_out() if cfg.eval_data else {}

    def read_boxes(self) -> dict[str, Boxes]:
        """Read the images; {id of each: what it shows}, in pixels of the resized image."""
        cfg, listed = self.cfg, self._listed
        self.read_images()
        known, side = self.images.unique_ids(), self.images.side
        _check_listed(cfg.boxes, listed, list(known), "data")
        if len(known) < len(listed):
            self.notes.append(f"boxes: {len(listed) - len(known)} of {len(listed)} images of {cfg.boxes} are not used")
        spread = {name: known[name] for name in list(known)[::-(-len(known) // CHECKED)]}
        for _ in map_ahead(lambda name: _load(Path(self.images.paths[spread[name]]), listed[name], cfg.boxes), spread):
            pass
        return {name: listed[name].resized(side, cfg.fit) for name in known}

    def evaluated(self) -> Iterator[tuple[Boxes, list[np.ndarray]]]:
        """What each image of `eval_data` shows, and the network's outputs for it."""
        names = list(self.held_out)
        for start in range(0, len(names), AT_ONCE):
            part = names[start:start + AT_ONCE]
            outputs = self.outputs(np.stack(list(map_ahead(self._prepare, part))))
            if not all(np.isfinite(out).all() for out in outputs):
                raise UserError("the network's outputs are not finite")
            for name, *of_image in zip(part, *outputs):
                yield self.held_out[name], of_image

    def _prepare(self, name: str) -> np.ndarray:
        """An image of `eval_data` as the network takes it."""
        image = _load(Path(self.cfg.eval_data, name), self.held_out[name], self.cfg.eval_boxes)
        return fit_square(image, self.cfg.image_size, self.cfg.fit)[:, :, ::-1]

    def _held_out(self) -> dict[str, Boxes]:
        cfg = self.cfg
        listed, names = read_coco(cfg.eval_boxes, self.names)[1], list_images(cfg.eval_data)
        _check_listed(cfg.eval_boxes, listed, names, "eval_data")
        return {name: listed[name] for name in names}


def threshold_of(evaluation) -> float | None:
    """The score that a run's eval.json names as the limit; None where it names none, or there is no such file (None). Raises
    UserError."""
    threshold = evaluation.get("threshold") if isinstance(evaluation, dict) else None
    if evaluation is not None and not (threshold is None or isinstance(threshold, float) and 0 <= threshold <= 1):
        raise UserError("eval.json: not what train_v2.py wrote; remove it")
    return threshold


def _check_listed(file: str, listed: dict[str, Boxes], names: list[str], key: str) -> None:
    """Raises UserError unless `file` lists every image of `key`: one that it does not list may show anything."""
    missing = [name for name in names if name not in listed]
    if missing and len(missing) == len(names):
        raise UserError(f"{file}: none of its images is in {key}: it lists {next(iter(listed), 'none')}, {key} has "
                        f"{missing[0]}; file_name must be the image's path below its folder")
    if missing:
        raise UserError(f"{file}: does not list {missing[0]}, nor {len(missing) - 1} other images of {key}; list them too, "
                        "without annotations where they show no object")


def _load(path: Path, truth: Boxes, file: str) -> np.ndarray:
    """The image at `path`, which must be as large as `file` says. Raises UserError."""
    try:
        image = load_image(path)
    except ImageError as error:
        raise UserError(f"{path}: {error}") from None
    height, width = image.shape[:2]
    if (width, height) != (truth.width, truth.height):
        raise UserError(f"{file}: says that {path} has {truth.width} x {truth.height} pixels, and it has {width} x {height} "
                        "(upright, as EXIF says); boxes must be in the image's own pixels")
    return image


# ---------------------------------------------------------------- what the network should say
def cells(box: torch.Tensor, stride: int, height: int, width: int) -> torch.Tensor:
    """(column, row) of the cells that hold the centers of boxes `[N,4]`, int64 `[N,2]`."""
    center = (box[:, :2] + box[:, 2:]) / 2 / stride
    return center.long().clamp(torch.zeros(2).long(), torch.tensor([width - 1, height - 1]))


def heatmaps(objects: Objects, stride: int, like: torch.Tensor) -> torch.Tensor:
    """What the heatmaps `like`, `[B,C,h,w]`, should be: 1 in the cell of an object's center, around it a Gaussian as wide
    and high as the object; the largest, where there are several of a class."""
    height, width = like.shape[2:]
    target = torch.zeros(like.shape, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    planes = target.view(-1, height, width)                                                   # [BC,h,w]
    plane, cell, deviation = (value.to(like.device, non_blocking=True) for value in (
        objects.image * like.shape[1] + objects.kind, cells(objects.box, stride, height, width),
        (objects.box[:, 2:] - objects.box[:, :2]) / stride / SHARPNESS))                      # [N], [N,2], [N,2] in cells
    for start in range(0, len(plane), AT_ONCE):  # what this takes does not grow with the number of objects
        at = slice(start, start + AT_ONCE)
        across, down = (torch.exp(-((torch.arange(count, device=like.device) - cell[at, axis, None])
                                    / deviation[at, axis, None]).square() / 2).to(target.dtype)
                        for axis, count in ((0, width), (1, height)))                         # [n,w], [n,h]
        drawn = down[:, :, None] * across[:, None]                                            # [n,h,w]
        planes.scatter_reduce_(0, plane[at, None, None].expand_as(drawn), drawn, "amax")
    return target
