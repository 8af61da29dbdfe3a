"""Localization: boxes of objects of some classes, from heatmaps of their centers at several strides."""
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torchvision.ops import generalized_box_iou_loss

from augment.geometry import move_boxes
from backbones.localizer import get_localizer
from engine.distributed import global_mean
from engine.keys import Key
from eval.coco import Boxes, read_coco
from eval.detection import detection_report
from inference.boxes import decode, to_image, to_square
from inference.errors import UserError
from inference.image import ImageError, fit_square, list_images, load_image, map_ahead
from losses.heatmap import heatmap_focal
from tasks import images
from tasks.base import Evaluation, Export

LARGEST = 8  # objects of sqrt(area) up to 8 cells of a stride belong to it, larger ones to the next: FCOS's limits
SHARPNESS = 6  # the Gaussian of an object has 1/6 of its side as deviation: three of them reach from its center to its edge
MIN_VISIBLE = 0.4  # share of an object that augmentation must leave in the image; one of which less is left is none
MIN_SCORE = 0.05  # what scores less counts neither for nor against the detector
AT_ONCE = 64  # images that go through the network together, and objects that are drawn together
MAX_CLASSES = 10_000  # more is a slip, or meant to fill the memory of whoever opens an untrusted run
CHECKED = 32  # images whose size is compared with what the COCO file says


class Objects(NamedTuple):
    """N objects in a batch: the number of their image, of their class, int64 `[N]`, and their boxes (x0, y0, x1, y1) in
    pixels of the network's input, float64 `[N,4]`. On the host, so that only torchvision's loss waits for the device, once
    for each stride."""
    image: torch.Tensor
    kind: torch.Tensor
    box: torch.Tensor


class LocalizerTask(images.ImageTask):
    """A heatmap detector (`backbones.localizer.Localizer`), trained with two terms, each over the number of objects in the
    global batch: penalty-reduced focal loss of the heatmaps (CenterNet, https://arxiv.org/abs/1904.07850) and generalized
    IoU loss of the boxes (https://arxiv.org/abs/1902.09630)."""

    defaults = {
        **images.KEYS,
        "boxes": Key("", "COCO file: the boxes in the images of data; its file_name is an image's id"),
        "expansion": Key(1, "samples made of an image: 8 is quarter turns x flip, 24 also x whole, top half, bottom half",
                         choices=(1, 8, 24)),
        "strides": Key([8, 16], "of the heatmaps, pixels; the sides of objects should not be shorter than the first"),
        "width": Key(64, "channels of the neck and the head", choices=(32, 48, 64, 96, 128, 192, 256)),
        "box_weight": Key(1.0, "of the boxes' loss beside the heatmaps'", least=0),
        "eval_data": Key("", "folder of images to evaluate on"),
        "eval_boxes": Key("", "COCO file: the boxes in the images of eval_data"),
        "overlap": Key(0.5, "where two boxes of a class have a larger IoU, one is a duplicate", least=0, most=1),
    }

    @classmethod
    def check_config(cls, cfg) -> None:
        super().check_config(cfg)
        whole = all(type(stride) is int and stride > 0 for stride in cfg.strides)
        if not cfg.strides or not whole or cfg.strides != sorted(set(cfg.strides)):
            raise UserError(f"strides={cfg.strides}: must be whole numbers that grow, such as [8, 16]")
        if bool(cfg.eval_data) != bool(cfg.eval_boxes):
            raise UserError("eval_data, eval_boxes: give both or neither")

    def __init__(self, cfg, ranks):
        super().__init__(cfg, ranks)
        if not cfg.boxes:
            raise UserError("boxes: no file given; write boxes=FILE, a COCO file with the boxes in the images of data")
        self.names, listed = read_coco(cfg.boxes)
        self.model = self.published = get_localizer(cfg, len(self.names), None if ranks.rank == 0 else False)
        self.check_batch(self.model)
        self.held_out = self._held_out() if cfg.eval_data else {}
        self.read_images()
        self.boxes = self._boxes(listed)
        self.cache_images()

    @classmethod
    def restore(cls, cfg, info: dict) -> nn.Module:
        names = info.get("classes")
        if not isinstance(names, list) or not 0 < len(names) <= MAX_CLASSES or not all(isinstance(n, str) for n in names):
            raise UserError("run.json: does not name the run's classes; give the folder as train_v2.py left it")
        return get_localizer(cfg, len(names), pretrained=False)

    @classmethod
    def export(cls, cfg, info: dict, network: nn.Module, evaluation: dict | None = None) -> Export:
        """Outputs heat_S and sides_S for each stride S, which `inference.boxes.decode` reads."""
        threshold = evaluation.get("threshold") if isinstance(evaluation, dict) else None
        if evaluation is not None and not (threshold is None or isinstance(threshold, float) and 0 <= threshold <= 1):
            raise UserError("eval.json: not what train_v2.py wrote; remove it")
        outputs = tuple(f"{kind}_{stride}" for stride in network.strides for kind in ("heat", "sides"))
        return Export(network, cfg["image_size"], outputs, {
            "classes": info["classes"], "strides": network.strides, "overlap": cfg["overlap"],
            "threshold": threshold})

    def describe(self) -> dict:
        return {**super().describe(), "num_classes": len(self.names), "classes": self.names,
                "objects": sum(len(classes) for _, classes in self.boxes.values())}

    def compatibility_keys(self) -> dict:
        return {**super().compatibility_keys(), "num_classes": len(self.names), "classes": self.names,
                "strides": self.cfg.strides, "width": self.cfg.width}

    def batches(self, first_step: int) -> Iterator[dict]:
        """With `boxes` float64 `[B,K,4]` (x0, y0, x1, y1), -1 to 1 over the square image as `augment.geometry` has it, and
        `box_class` int64 `[B,K]`, -1 where there is no box: the images show up to K objects. On the host."""
        for batch in super().batches(first_step):
            boxes, classes = zip(*(self.boxes[name] for name in batch["id"]))
            yield {**batch, "boxes": nn.utils.rnn.pad_sequence(boxes, batch_first=True),
                   "box_class": nn.utils.rnn.pad_sequence(classes, batch_first=True, padding_value=-1)}

    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        strides, objects = self.cfg.strides, self.objects(batch)
        image = self.augment(batch["image"], batch["position"], batch["view"], self.cfg.image_size)
        with self.autocast():
            outputs = self.forward(image)
        level = levels(objects.box, strides)
        sums, counts, wrong = 0, 0, []
        for i, (stride, heat, sides) in enumerate(zip(strides, outputs[::2], outputs[1::2])):
            here = Objects(*(value[level == i] for value in objects))
            of_level, positive = heatmap_focal(heat, heatmaps(here, stride, heat))
            sums, counts = sums + of_level, counts + positive
            wrong.append(box_loss(here, stride, sides))
        return {"heat": global_mean(sums, counts), "box": self.cfg.box_weight * global_mean(torch.cat(wrong))}

    def objects(self, batch: dict) -> Objects:
        """The objects in a batch, where augmentation leaves them, but for those of which it leaves too little."""
        boxes, visible = move_boxes(batch["boxes"], *self.augment.geometry(batch["position"], batch["view"]))
        image, place = ((batch["box_class"] >= 0) & (visible >= MIN_VISIBLE)).nonzero(as_tuple=True)
        return Objects(image, batch["box_class"][image, place], (boxes[image, place] + 1) * self.cfg.image_size / 2)

    def evaluate(self) -> Evaluation | None:
        """Objects of `eval_data` found with an IoU of .5; the highest F1 over all scores decides."""
        if not self.evaluates:
            return None
        cfg, found, names = self.cfg, [], list(self.held_out)
        for start in range(0, len(names), AT_ONCE):
            part = names[start:start + AT_ONCE]
            outputs = self.outputs(np.stack(list(map_ahead(self._prepare, part))))
            if not all(np.isfinite(out).all() for out in outputs):
                raise UserError("the network's outputs are not finite")
            for name, *of_image in zip(part, *outputs):
                truth, one = self.held_out[name], decode(of_image, cfg.strides, MIN_SCORE, cfg.overlap)
                found.append(one._replace(boxes=to_image(one.boxes, truth.width, truth.height, cfg.image_size, cfg.fit)))
        report = detection_report(found, list(self.held_out.values()), self.names)
        return Evaluation({key: report[key] for key in ("f1", "precision", "recall")}, decides="f1", document=report)

    def _prepare(self, name: str) -> np.ndarray:
        """An image of `eval_data` as the network takes it."""
        image = _load(Path(self.cfg.eval_data, name), self.held_out[name], self.cfg.eval_boxes)
        return fit_square(image, self.cfg.image_size, self.cfg.fit)[:, :, ::-1]

    def _held_out(self) -> dict[str, Boxes]:
        """{path below `eval_data`: its boxes}."""
        cfg = self.cfg
        listed, names = read_coco(cfg.eval_boxes, self.names)[1], list_images(cfg.eval_data)
        _check_listed(cfg.eval_boxes, listed, names, "eval_data")
        return {name: listed[name] for name in names}

    def _boxes(self, listed: dict[str, Boxes]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """{id of an image: (boxes, classes)}, as in `batches`."""
        cfg, known, side = self.cfg, self.images.unique_ids(), self.images.side
        _check_listed(cfg.boxes, listed, list(known), "data")
        if len(known) < len(listed):
            self.notes.append(f"boxes: {len(listed) - len(known)} of {len(listed)} images of {cfg.boxes} are not used")
        spread = {name: known[name] for name in list(known)[::-(-len(known) // CHECKED)]}
        for _ in map_ahead(lambda name: _load(Path(self.images.paths[spread[name]]), listed[name], cfg.boxes), spread):
            pass
        return {name: (torch.from_numpy(to_square(truth.boxes, truth.width, truth.height, side, cfg.fit)) * 2 / side - 1,
                       torch.from_numpy(truth.classes))
                for name, truth in ((name, listed[name]) for name in known)}


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
def levels(box: torch.Tensor, strides: list[int]) -> torch.Tensor:
    """The stride that boxes `[N,4]` in pixels belong to, by its place in `strides`, int64 `[N]`: the finest that takes so
    large a box, or the last."""
    size = (box[:, 2:] - box[:, :2]).prod(1).sqrt()
    return torch.bucketize(size, size.new_tensor([LARGEST * stride for stride in strides[:-1]]))


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


def box_loss(objects: Objects, stride: int, sides: torch.Tensor) -> torch.Tensor:
    """Generalized IoU loss of each object, `[N]`: the mean over the cell of its center and those beside it whose centers lie
    in its box (FCOS's center sampling), since any of them may become the peak. sides `[B,C,4,h,w]` in pixels."""
    step = torch.arange(-1, 2)
    around = torch.cartesian_prod(step, step)                                                 # [9,2]
    cell = cells(objects.box, stride, *sides.shape[3:])[:, None] + around                     # [N,9,2]
    center, (low, high) = (cell + 0.5) * stride, objects.box[:, None].split(2, 2)
    used = ((center > low) & (center < high)).all(2) | (around == 0).all(1)                   # [N,9]
    n, at = used.nonzero(as_tuple=True)                                                       # [M]: M cells of all objects
    n, share, image, kind, cell, center, box = (value.to(sides.device, non_blocking=True) for value in (
        n, 1 / used.sum(1)[n], objects.image[n], objects.kind[n], cell[n, at], center[n, at], objects.box[n]))
    said = sides[image, kind, :, cell[:, 1], cell[:, 0]]                                      # [M,4]
    said = said.to(torch.promote_types(said.dtype, torch.float32))
    center, box = center.to(said), box.to(said)
    loss = generalized_box_iou_loss(torch.cat([center - said[:, :2], center + said[:, 2:]], 1), box)    # [M]
    return loss.new_zeros(len(used)).index_add(0, n, share.to(loss) * loss)
