"""Characters or words as EffOCR recognizes them: crops embedded, and compared with reference glyphs.

    python train_v2.py configs/glyphs data=RENDERS:1:labelled,CROPS:1:labelled references=ONE_FONT eval_data=CROPS_OF_OTHERS

Classes are folders, named by code points (`inference.crops.class_folder`): renders of fonts (`python -m ocr renders`), crops
of real lines (`python -m ocr crops`), or both; a class under several roots is one. The loss is registration's margin softmax
over class centers (PartialFC), or SupCon, EffOCR's. A run that evaluates writes OUTPUT/look_alikes.txt, with which the next
run has its hard negatives: `sampler=hard_negatives look_alikes=FILE`.
"""
from pathlib import Path

import torch
from torch import nn

from engine.distributed import rank_and_world
from engine.keys import Key
from eval.glyphs import evaluate_glyphs, write_look_alikes
from inference.crops import KINDS
from inference.errors import UserError
from kernels.sharded_softmax import gather_batch
from losses import Margin, supcon
from tasks.base import Evaluation, Export
from tasks.registration import RegistrationTask


class GlyphsTask(RegistrationTask):
    """An embedding network of crops."""

    defaults = {
        **RegistrationTask.defaults,
        "expansion": Key(1, "classes made of a class: 8 is quarter turns x flip, 24 also x whole, top half, bottom half",
                         choices=(1, 8, 24)),
        "fit": Key("pad", "how an image becomes a square: squash ignores its aspect, pad keeps it",
                   choices=("pad", "squash")),
        "loss": Key("margin", "margin: softmax over class centers; supcon: the pairs of a batch, https://arxiv.org/abs/"
                              "2004.11362", choices=("margin", "supcon")),
        "temperature": Key(0.1, "of loss=supcon", above=0),
        "crop": Key("line", "how the crops were cut, which a reader of lines must know", choices=KINDS),
        "references": Key("", "folder of reference glyphs, CLASS/*.png, such as one font's renders, that the crops of "
                              "eval_data are compared with"),
        "eval_data": Key("", "folder of crops to evaluate on, CLASS/*.png"),
    }

    @classmethod
    def check_config(cls, cfg) -> None:
        super().check_config(cfg)
        if bool(cfg.references) != bool(cfg.eval_data):
            raise UserError("references, eval_data: give both or neither")
        if cfg.loss == "supcon" and cfg.teacher:
            raise UserError(f"teacher={cfg.teacher}: goes with loss=margin alone")
        if cfg.loss == "supcon" and (cfg.sampler == "permutation" or cfg.samples_per_class < 2):
            raise UserError(f"loss=supcon: compares samples of one class in a batch; use sampler=per_class or "
                            f"hard_negatives with samples_per_class=2 or more, not {cfg.sampler} with "
                            f"{cfg.samples_per_class}")

    @classmethod
    def export(cls, cfg, info: dict, network: nn.Module, evaluation: dict | None = None) -> Export:
        """As registration's: for inference both are networks that embed images."""
        item = super().export(cfg, info, network)
        return Export(item.module, item.size, item.outputs, {**item.metadata, "task": "registration", "crop": cfg["crop"]})

    def make_head(self, margin: Margin, classes: int) -> None:
        if self.cfg.loss == "margin":
            super().make_head(margin, classes)

    def compatibility_keys(self) -> dict:
        return {**super().compatibility_keys(), "loss": self.cfg.loss}

    def begin_step(self, step: int, factor: float) -> dict[str, float]:
        return super().begin_step(step, factor) if self.cfg.loss == "margin" else {}

    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        if self.cfg.loss == "margin":
            return super().losses(batch)
        rank, world = rank_and_world()
        embeddings, labels = gather_batch(self.embeddings(batch).float(), batch["label"], self.cfg.embedding_size,
                                          self.images.num_classes, rank, world)        # [B,D], [B] of all ranks
        wrong, counts = supcon(embeddings, labels.to(embeddings.device, non_blocking=True), self.cfg.temperature)
        mean = wrong.sum() / counts.sum().clamp_min(1)
        # Each rank has the loss of the whole batch. The gathering adds up the gradients of all ranks, times their number.
        return {"supcon": mean.detach() + (mean - mean.detach()) / world}

    def evaluate(self) -> Evaluation | None:
        """Zero-shot recognition of `eval_data`: the share of crops whose nearest reference is of their class decides."""
        if not self.evaluates:
            return None
        cfg = self.cfg
        found = evaluate_glyphs(self.outputs, cfg.references, cfg.eval_data, cfg.image_size, cfg.fit)
        write_look_alikes(Path(cfg.output) / "look_alikes.txt", found, self.images.labels)
        return Evaluation({"top1": found.top1, "coverage": found.coverage}, decides="top1", document=found.as_dict())
