"""Localization: boxes of objects of some classes, from heatmaps of their centers at several strides."""
from collections.abc import Iterator

import torch
from torch import nn
from torchvision.ops import generalized_box_iou_loss

from augment.geometry import move_boxes
from backbones.localizer import get_localizer
from engine.distributed import global_mean
from engine.keys import Key
from eval.detection import detection_report
from inference.boxes import decode, to_image
from inference.errors import UserError
from losses.heatmap import heatmap_focal
from tasks.base import Evaluation, Export
from tasks.objects import KEYS, Objects, ObjectTask, cells, heatmaps, threshold_of

LARGEST = 8  # objects of sqrt(area) up to 8 cells of a stride belong to it, larger ones to the next: FCOS's limits
MIN_VISIBLE = 0.4  # share of an object that augmentation must leave in the image; one of which less is left is none
MIN_SCORE = 0.05  # what scores less counts neither for nor against the detector
MAX_CLASSES = 10_000  # more is a slip, or meant to fill the memory of whoever opens an untrusted run


class LocalizerTask(ObjectTask):
    """A heatmap detector (`backbones.localizer.Localizer`), trained with two terms, each over the number of objects in the
    global batch: penalty-reduced focal loss of the heatmaps (CenterNet, https://arxiv.org/abs/1904.07850) and generalized
    IoU loss of the boxes (https://arxiv.org/abs/1902.09630)."""

    defaults = {
        **KEYS,
        "strides": Key([8, 16], "of the heatmaps, pixels; the sides of objects should not be shorter than the first"),
        "box_weight": Key(1.0, "of the boxes' loss beside the heatmaps'", least=0),
        "line_height": Key(0, "the images are sheets of text lines, so many pixels high each (python -m ocr windows); the "
                              "exported network takes one line of any width. 0: they are not", least=0),
        "overlap": Key(0.5, "where two boxes of a class have a larger IoU, one is a duplicate", least=0, most=1),
    }

    @classmethod
    def check_config(cls, cfg) -> None:
        super().check_config(cfg)
        whole = all(type(stride) is int and stride > 0 for stride in cfg.strides)
        if not cfg.strides or not whole or cfg.strides != sorted(set(cfg.strides)):
            raise UserError(f"strides={cfg.strides}: must be whole numbers that grow, such as [8, 16]")
        if cfg.line_height % 32:
            raise UserError(f"line_height={cfg.line_height}: must be a multiple of 32, the coarsest cell of most networks")

    def __init__(self, cfg, ranks):
        super().__init__(cfg, ranks)
        self.model = self.published = get_localizer(cfg, len(self.names), None if ranks.rank == 0 else False)
        self.check_batch(self.model)
        listed, side = self.read_boxes(), self.images.side
        self.boxes = {name: (torch.from_numpy(truth.boxes) * 2 / side - 1, torch.from_numpy(truth.classes))
                      for name, truth in listed.items()}  # {id: (boxes, classes)}, as in `batches`
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
        threshold = threshold_of(evaluation)
        outputs = tuple(f"{kind}_{stride}" for stride in network.strides for kind in ("heat", "sides"))
        about = {"classes": info["classes"], "strides": network.strides, "overlap": cfg["overlap"], "threshold": threshold}
        if not cfg["line_height"]:
            return Export(network, cfg["image_size"], outputs, about)
        step = max(network.features.feature_info.reduction())
        return Export(network, cfg["line_height"], outputs, {**about, "width_step": step}, variable_width=True,
                      width_step=step)

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
        cfg, found = self.cfg, []
        for truth, outputs in self.evaluated():
            one = decode(outputs, cfg.strides, MIN_SCORE, cfg.overlap)
            found.append(one._replace(boxes=to_image(one.boxes, truth.width, truth.height, cfg.image_size, cfg.fit)))
        report = detection_report(found, list(self.held_out.values()), self.names)
        return Evaluation({key: report[key] for key in ("f1", "precision", "recall")}, decides="f1", document=report)


# ---------------------------------------------------------------- what the network should say
def levels(box: torch.Tensor, strides: list[int]) -> torch.Tensor:
    """The stride that boxes `[N,4]` in pixels belong to, by its place in `strides`, int64 `[N]`: the finest that takes so
    large a box, or the last."""
    size = (box[:, 2:] - box[:, :2]).prod(1).sqrt()
    return torch.bucketize(size, size.new_tensor([LARGEST * stride for stride in strides[:-1]]))


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
