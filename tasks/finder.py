"""Finding documents: the four corners of each in a photo, and a score for "there is one"."""
import math
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import nn

from augment.geometry import move_points
from backbones.localizer import get_finder
from engine.distributed import global_mean
from engine.keys import Key
from eval.corners import corners_report
from inference.errors import UserError
from inference.quads import decode, inside, is_quad, to_image
from losses.heatmap import heatmap_focal
from losses.quad import quad_distance
from tasks.base import Evaluation, Export
from tasks.objects import KEYS, Objects, ObjectTask, cells, heatmaps, threshold_of

MIN_VISIBLE = 0.5  # share of a document that augmentation must leave in the image; one of which less is left is none
MIN_SCORE = 0.02  # what scores less counts as nothing found
BLOB = 4  # side of a corner's box in cells: by `tasks.objects.SHARPNESS` a deviation of 2/3 cell
LIMIT = 0.02  # calibration stays this far from scores of 0 and 1


class FinderTask(ObjectTask):
    """`backbones.localizer.Finder`, trained with four terms: penalty-reduced focal loss of the heatmaps of documents'
    middles and of corners, over their number in the global batch; error of the corners said from the middle, as a share of
    the document's diagonal, whichever of them is said first; and error of single corners said from near them, in cells.

    A document's middle is the mean of its corners, or the nearest cell to it in the image. `boxes` and `eval_boxes` list
    documents with their corners: each annotation's `segmentation` is one polygon of four points, and the categories do not
    matter. Images without annotations show no document.
    """

    defaults = {
        **KEYS,
        "strides": Key([8, 16], "two, pixels: of the corners' maps and of the documents'"),
        "quad_weight": Key(10.0, "of the loss of four corners together, beside the heatmaps'", least=0),
        "shift_weight": Key(1.0, "of the loss of single corners, beside the heatmaps'", least=0),
    }

    @classmethod
    def check_config(cls, cfg) -> None:
        super().check_config(cfg)
        whole = all(type(stride) is int and stride > 0 for stride in cfg.strides)
        if len(cfg.strides) != 2 or not whole or cfg.strides[0] >= cfg.strides[1]:
            raise UserError(f"strides={cfg.strides}: must be two whole numbers that grow, such as [8, 16]")

    def __init__(self, cfg, ranks):
        super().__init__(cfg, ranks)
        self.model = self.published = get_finder(cfg, None if ranks.rank == 0 else False)
        self.check_batch(self.model)
        listed, side = self.read_boxes(), self.images.side
        for file, part in ((cfg.boxes, listed), (cfg.eval_boxes, self.held_out)):
            wrong = [name for name, truth in part.items() if np.isnan(truth.quads).any()]
            if wrong:
                raise UserError(f"{file}: annotations of {wrong[0]}, and of {len(wrong) - 1} other images, do not say a "
                                "document's four corners; their segmentation must be one convex polygon of four points")
        self.quads = {name: torch.from_numpy(truth.quads) * 2 / side - 1 for name, truth in listed.items()}
        self.cache_images()

    @classmethod
    def restore(cls, cfg, info: dict) -> nn.Module:
        return get_finder(cfg, pretrained=False)

    @classmethod
    def export(cls, cfg, info: dict, network: nn.Module, evaluation: dict | None = None) -> Export:
        """Outputs that `inference.quads.decode` reads. The threshold that the evaluation found becomes a score of 0.5."""
        threshold = threshold_of(evaluation)
        if threshold is not None:
            threshold = min(max(threshold, LIMIT), 1 - LIMIT)
            with torch.no_grad():
                network.heat.bias -= math.log(threshold / (1 - threshold))
        return Export(network, cfg["image_size"], ("heat", "corners", "corner_heat", "corner_shift"))

    def describe(self) -> dict:
        return {**super().describe(), "objects": sum(map(len, self.quads.values()))}

    def compatibility_keys(self) -> dict:
        return {**super().compatibility_keys(), "strides": self.cfg.strides, "width": self.cfg.width}

    def batches(self, first_step: int) -> Iterator[dict]:
        """With `quads`, for each image float64 `[K,4,2]`, -1 to 1 over the resized image as `augment.geometry` has it. On
        the host."""
        for batch in super().batches(first_step):
            yield {**batch, "quads": [self.quads[name] for name in batch["id"]]}

    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        cfg, (number, quads) = self.cfg, self.documents(batch)
        image = self.augment(batch["image"], batch["position"], batch["view"], cfg.image_size)
        with self.autocast():
            heat, corners, corner_heat, corner_shift = self.forward(image)
        area = torch.tensor([cv2.contourArea(quad) for quad in quads.float().numpy()], dtype=torch.float64)
        documents = _squares(number, quads.mean(1), area.sqrt())
        points = quads.flatten(0, 1)                                                          # [4N,2]
        inside = ((points >= 0) & (points < cfg.image_size)).all(1)
        single = _squares(number.repeat_interleave(4)[inside], points[inside], BLOB * cfg.strides[0])
        fine, coarse = cfg.strides
        return {
            "heat": global_mean(*heatmap_focal(heat, heatmaps(documents, coarse, heat))),
            "corner": global_mean(*heatmap_focal(corner_heat, heatmaps(single, fine, corner_heat))),
            "quad": cfg.quad_weight * global_mean(quad_distance(*around(documents, coarse, corners), quads)),
            "shift": cfg.shift_weight / fine * global_mean(
                quad_distance(*around(single, fine, corner_shift), points[inside][:, None], relative=False))}

    def documents(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """The documents in a batch, where augmentation leaves them, but for those of which it leaves too little: the number
        of their image, int64 `[N]`, and their corners in pixels of the network's input, clockwise, float64 `[N,4,2]`."""
        size, matrix = self.cfg.image_size, self.augment.geometry(batch["position"], batch["view"]).matrix
        counts = torch.tensor([len(quads) for quads in batch["quads"]])
        number = torch.arange(len(counts)).repeat_interleave(counts)                          # [N]
        quads = (move_points(torch.cat(batch["quads"]), matrix[number]) + 1) * size / 2       # [N,4,2]
        flipped = (batch["view"][number] // 4 % 2).bool()
        quads = torch.where(flipped[:, None, None], quads.flip(1), quads)
        kept = torch.tensor([is_quad(quad) and _visible(np.float32(quad), size) >= MIN_VISIBLE for quad in quads.numpy()],
                            dtype=bool)
        return number[kept], quads[kept]

    def evaluate(self) -> Evaluation | None:
        """The largest document in each image of `eval_data`; the share of those found with an IoU of .9 decides."""
        if not self.evaluates:
            return None
        cfg, found = self.cfg, []
        for truth, outputs in self.evaluated():
            quads, scores = decode(outputs, cfg.image_size, MIN_SCORE)
            found.append((to_image(quads, truth.width, truth.height, cfg.image_size, cfg.fit), scores))
        report = corners_report(found, list(self.held_out.values()))
        shown = {key: report[key] for key in ("iou_90", "error", "auroc") if report[key] is not None}
        return Evaluation(shown, decides="iou_90", document=report)


def _visible(quad: np.ndarray, size: int) -> float:
    """Share of a quad that is inside the resized image."""
    return inside(quad, size, size) / cv2.contourArea(quad)


def _squares(number: torch.Tensor, center: torch.Tensor, side) -> Objects:
    """Squares around points `[N,2]`, as objects of one class."""
    half = torch.as_tensor(side, dtype=torch.float64).expand(len(center))[:, None] / 2
    return Objects(number, torch.zeros_like(number), torch.cat([center - half, center + half], 1))


def around(objects: Objects, stride: int, said: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(points `[M,P,2]` in pixels, the object `[M]` that each P of them are said of): what the map `said`, `[B,2P,h,w]`,
    says in the cell of each object's center and in those around it, since any of them may become the peak."""
    step = torch.arange(-1, 2)
    cell = cells(objects.box, stride, *said.shape[2:])[:, None] + torch.cartesian_prod(step, step)      # [N,9,2]
    n, at = ((cell >= 0) & (cell < torch.tensor(said.shape[:1:-1]))).all(2).nonzero(as_tuple=True)      # [M]
    of, image, cell = (value.to(said.device, non_blocking=True) for value in (n, objects.image[n], cell[n, at]))
    points = said[image, :, cell[:, 1], cell[:, 0]]                                                     # [M,2P]
    points = points.to(torch.promote_types(points.dtype, torch.float32)).unflatten(1, (-1, 2))
    return points + ((cell + 0.5) * stride)[:, None].to(points), of
