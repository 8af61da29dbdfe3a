"""Classification: every folder of images is a class; cross entropy, and a cached teacher where there is one.

    python train_v2.py configs/classification_small data=DIR:1:labelled eval_data=DIR teacher=FILE

The teacher is what another model, larger or of another kind, said of the training images beforehand: a file of
`engine.predictions`, joined by sample id. Its embeddings are met by a projection that is not published, its logits (of
the same classes, joined by name) by the network's own.
"""
import hashlib
import itertools
import json
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from augment import Augment
from backbones import get_model
from engine.distributed import global_mean
from engine.keys import Key
from engine.optimizer import decay_groups
from engine.predictions import read_predictions
from eval.folder import find_images, read_images
from inference.errors import UserError, printable
from inference.image import fit_square
from losses import soft_target_kl
from tasks import images
from tasks.base import Evaluation, Export

MAX_CLASSES = 100_000  # beyond, class centers are better sharded: task=registration
AT_ONCE = 64           # images of an evaluation


class ClassificationTask(images.ImageTask):
    """A classifier over labelled folders."""

    defaults = {
        **images.KEYS,
        "expansion": Key(1, "a folder is a class", choices=(1,)),
        "eval_data": Key("", "folder to evaluate on: CLASS/*.jpg, classes as in data"),
        "head": Key("gap", "of the network", choices=("flatten", "gap", "squeeze")),
        "norm": Key("ln", "in the head; lbn: LayerNorm, then BatchNorm", choices=("ln", "bn", "lbn")),
        "embedding_size": Key(256, "numbers before the last layer", least=1, most=images.MAX_EMBEDDING),
        "dropout": Key(0.0, "of the embedding before the last layer", least=0, below=1),
        "label_smoothing": Key(0.1, "share of the label that is spread over all classes", least=0, below=1),
        "label_weight": Key(1.0, "of the cross entropy in the loss", least=0),
        "teacher": Key("", "file of predictions for the training images (engine/predictions.py): embeddings or logits"),
        "teacher_weight": Key(1.0, "of the teacher's term in the loss", least=0),
        "temperature": Key(2.0, "of the softmax over a teacher's logits", above=0),
        "projector_lr": Key(1e-3, "AdamW, the projection onto a teacher's embeddings; whatever the batch", least=0),
    }

    @classmethod
    def check_config(cls, cfg) -> None:
        super().check_config(cfg)
        if not cfg.label_weight and not (cfg.teacher and cfg.teacher_weight):
            raise UserError("label_weight=0: nothing is learned without a teacher; set teacher=FILE, or another weight")

    def __init__(self, cfg, ranks):
        super().__init__(cfg, ranks)
        for root, _ in self.roots:
            if not root.labelled or root.expansion != 1:
                raise UserError(f"data={root.folder}: each folder in it is a class here; write {root.folder}:1:labelled")
        self.teacher = read_predictions(cfg.teacher) if cfg.teacher else None
        encoder = get_model(cfg, None if ranks.rank == 0 else False)  # rank 0 alone fetches weights
        self.check_batch(encoder)
        self.read_images()
        self.classes = self.images.labels
        if not 1 < len(self.classes) <= MAX_CLASSES:
            raise UserError(f"data: {len(self.classes):,} classes; classification takes 2 to {MAX_CLASSES:,}, "
                            "task=registration more")
        self.eval_items = _items(cfg.eval_data, self.classes) if cfg.eval_data else []
        if self.teacher:
            self._check_teacher()
        embeds = self.teacher is not None and self.teacher.kind == "embedding"
        self.published = Classifier(encoder, cfg.embedding_size, len(self.classes), cfg.dropout)
        self.model = Student(self.published, nn.Linear(cfg.embedding_size, self.teacher.values.shape[1]) if embeds else None)
        self.cache_images()

    def _check_teacher(self) -> None:
        """Match the teacher with the data: its ids with the images', its classes (`self.columns`) with theirs."""
        teacher, ids = self.teacher, self.images.unique_ids()
        known = int(teacher.join(list(ids))[1].sum())
        if not known:
            raise UserError(printable(f"teacher={self.cfg.teacher}: knows none of the images in data; its ids are such as "
                                      f"{teacher.ids[0]!r}, theirs such as {self.images.ids[0]!r} (identity=content: by "
                                      "content)"))
        self.columns = slice(None)
        if teacher.kind == "logits":
            column = {name: number for number, name in enumerate(teacher.classes)}
            if missing := [name for name in self.classes if name not in column]:
                raise UserError(printable(f"teacher={self.cfg.teacher}: has no class {missing[0]!r}, and data has "
                                          f"({len(missing)} of {len(self.classes)} are missing)"))
            self.columns = torch.tensor([column[name] for name in self.classes])
        self.notes.append(f"teacher: {teacher.kind} [{teacher.values.shape[1]}], known for {known:,} of {len(ids):,} images")

    @classmethod
    def restore(cls, cfg, info: dict) -> nn.Module:
        return Classifier(get_model(cfg, pretrained=False), cfg.embedding_size, len(_class_names(info)), cfg.dropout)

    @classmethod
    def export(cls, cfg, info: dict, network: nn.Module, evaluation: dict | None = None) -> Export:
        return Export(nn.Sequential(network, nn.Softmax(1)), cfg["image_size"], ("probabilities",),
                      {"classes": _class_names(info)})

    def describe(self) -> dict:
        return {**super().describe(), "classes": self.classes}

    def compatibility_keys(self) -> dict:
        keys = ("head", "norm", "embedding_size")
        names = hashlib.blake2b(json.dumps(self.classes).encode(), digest_size=8).hexdigest()
        return {**super().compatibility_keys(), **{key: self.cfg[key] for key in keys}, "classes": names,
                "teacher": self.teacher.digest() if self.teacher else None}

    def param_groups(self) -> list[dict]:
        cfg, projector = self.cfg, self.model.projector
        groups = decay_groups(self.published.named_parameters(), cfg.lr, "sqrt", cfg.weight_decay)
        if projector is not None:
            groups += decay_groups(projector.named_parameters(), cfg.projector_lr, "fixed", cfg.weight_decay, "projector")
        return groups

    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        """The teacher's term is the mean over the samples that it knows, of all ranks; 0 where it knows none. With
        `accumulate` that is of each micro-batch."""
        cfg, device = self.cfg, self.ranks.device
        image = self.augment(batch["image"], batch["position"], batch["view"], cfg.image_size)
        with self.autocast():
            outputs = self.forward(image)
        logits, *projected = (out.to(torch.promote_types(out.dtype, torch.float32)) for out in outputs)   # [B,C], [B,K]
        label = batch["label"].to(device, non_blocking=True)                                              # [B]
        wrong = F.cross_entropy(logits, label, reduction="none", label_smoothing=cfg.label_smoothing)
        terms = {"cross_entropy": cfg.label_weight * global_mean(wrong)}                                  # [B] -> scalar
        if self.teacher:
            said, known = self.teacher.join(batch["id"])
            said = said[:, self.columns].to(device, logits.dtype, non_blocking=True)                      # [B,K]
            known = known.to(device, non_blocking=True)                                                   # [B]
            if projected:
                apart = (1 - F.cosine_similarity(projected[0], said)).where(known, 0)                     # [B]
            else:
                apart = soft_target_kl(logits, said, cfg.temperature, known)                              # [B]
            terms["teacher"] = cfg.teacher_weight * global_mean(apart, known)
        return terms

    @torch.no_grad()
    def predict(self, batches: Iterable[dict]) -> dict[str, torch.Tensor]:
        """{sample id: logits float32 `[C]`} of the published network, without augmentation and dropout: a teacher's file
        is `write_predictions(path, task.predict(batches), "logits", task.classes)`."""
        was_training, plain, found = self.published.training, Augment("none", self.cfg.seed), {}
        self.published.eval()
        for batch in batches:
            image = plain(batch["image"], batch["position"], batch["view"], self.cfg.image_size)
            found.update(zip(batch["id"], self.published(image).float().cpu()))
        self.published.train(was_training)
        return found

    def evaluate(self) -> Evaluation | None:
        """Accuracy, which decides, and mean cross entropy (of the plain labels) on `eval_data`."""
        if not self.evaluates:
            return None
        logits, labels, skipped = [], [], {}
        number = {name: c for c, name in enumerate(self.classes)}
        decoded = read_images(self.eval_items, self._prepare, self.cfg.image_size)
        while part := list(itertools.islice(decoded, AT_ONCE)):
            skipped |= {item.name: reason for item, _, reason in part if reason is not None}
            used = [(item, pixels) for item, pixels, reason in part if reason is None]
            if used:
                logits.append(torch.from_numpy(self.outputs(np.stack([pixels for _, pixels in used]))))
                labels += [number[item.type] for item, _ in used]
        if not labels:
            raise UserError(f"eval_data={self.cfg.eval_data}: none of its images can be used")
        logits, labels = torch.cat(logits).double(), torch.tensor(labels)                                 # [N,C], [N]
        if not logits.isfinite().all():
            raise UserError("the network's outputs are not finite")
        found = {"accuracy": (logits.argmax(1) == labels).double().mean().item(),
                 "cross_entropy": F.cross_entropy(logits, labels).item()}
        return Evaluation(found, decides="accuracy", document={**found, "images": len(labels), "skipped": skipped,
                                                               "data": self.cfg.eval_data})

    def _prepare(self, image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(fit_square(image, self.cfg.image_size, self.cfg.fit)[..., ::-1])


class Classifier(nn.Module):
    """Images float `[B,3,S,S]` in [0,1], RGB -> logits `[B,classes]`."""

    def __init__(self, encoder: nn.Module, width: int, classes: int, dropout: float):
        super().__init__()
        self.encoder, self.classify = encoder, nn.Sequential(nn.Dropout(dropout), nn.Linear(width, classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classify(self.encoder(image))


class Student(nn.Module):
    """A classifier in training: images -> (logits `[B,C]`,), and with a projector, (logits, projected embedding `[B,K]`)."""

    def __init__(self, network: Classifier, projector: nn.Module | None):
        super().__init__()
        self.network, self.projector = network, projector

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        embedding = self.network.encoder(image)                                                           # [B,D]
        logits = self.network.classify(embedding)
        return (logits,) if self.projector is None else (logits, self.projector(embedding))


def _items(folder: str, classes: list[str]) -> list:
    """The images to evaluate on. Raises UserError for one of a class that is not learned."""
    items = find_images(folder)
    if unknown := sorted({item.type for item in items}.difference(classes)):
        raise UserError(printable(f"eval_data={folder}: has images of the class {unknown[0]!r}, which data has not"))
    return items


def _class_names(info: dict) -> list[str]:
    """The classes in a run's `run.json`. Others may have made it."""
    names = info.get("classes")
    if (not isinstance(names, list) or not all(isinstance(name, str) for name in names)
            or not 1 < len(set(names)) == len(names) <= MAX_CLASSES):
        raise UserError("run.json: does not name the run's classes; give the whole output folder of the run")
    return names
