"""What the classification of images and of texts share: which samples are learned from, their labels and teacher, the terms
of the loss, and what an evaluation says."""
import hashlib
import json
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from adverts.split import Split, read_split
from engine.distributed import global_mean
from engine.keys import Key
from engine.optimizer import decay_groups
from engine.predictions import Predictions, read_predictions
from inference.errors import UserError, printable
from losses import soft_target_kl
from tasks.base import Evaluation

MAX_CLASSES = 100_000  # beyond, class centers are better sharded: task=registration
ROLES = {"none": (), "unlabeled": ("unlabeled",), "test": ("unlabeled", "test")}

KEYS = {
    "split": Key("", "CSV of `python -m adverts split`: the label, role and fold of each sample of data"),
    "fold": Key(-1, "of split: it is held out and evaluated on, and the last network is published, not the best; -1: every "
                    "labeled sample is learned from, and none is evaluated on", least=-1),
    "unlabeled": Key("none", "samples of split without a label, which a teacher knows and which are learned from too: of "
                              "role unlabeled, or of role test as well", choices=tuple(ROLES)),
    "label_smoothing": Key(0.1, "share of the label that is spread over all classes", least=0, below=1),
    "label_weight": Key(1.0, "of the cross entropy in the loss", least=0),
    "dropout": Key(0.0, "of the embedding before the last layer", least=0, below=1),
    "lr_rule": Key("sqrt", "how lr follows the batch size: sqrt, stated for 512; fixed: it is the rate itself",
                   choices=("sqrt", "fixed")),
    "classifier_lr": Key(1.0, "rate of the last layer, as a multiple of lr", above=0),
    "teacher": Key("", "file of predictions for the training samples (engine/predictions.py): embeddings or logits"),
    "teacher_weight": Key(1.0, "of the teacher's term in the loss", least=0),
    "teacher_labels": Key("soft", "what a teacher's logits say: the probabilities; hard: its best class; accident: as hard, "
                                  "and the labeled samples are dropped, which the system of the contest did",
                          choices=("soft", "hard", "accident")),
    "teacher_on": Key("all", "samples that a teacher of logits speaks of: all; agrees: those without a label, and those "
                             "whose label is its best class; unlabeled: those without a label",
                      choices=("all", "agrees", "unlabeled")),
    "teacher_confidence": Key(0.0, "least probability of the teacher's best class, at which it speaks of a sample", least=0,
                              most=1),
    "temperature": Key(2.0, "of the softmax over a teacher's logits", above=0),
    "projector_lr": Key(1e-3, "AdamW, the projection onto a teacher's embeddings; whatever the batch", least=0),
}


def check_config(cfg) -> None:
    """Raises UserError for keys that do not fit together."""
    taught = bool(cfg.teacher and cfg.teacher_weight)
    if not cfg.label_weight and not taught:
        raise UserError("label_weight=0: nothing is learned without a teacher; set teacher=FILE, or another weight")
    for key, given in ((f"fold={cfg.fold}", cfg.fold >= 0), (f"unlabeled={cfg.unlabeled}", cfg.unlabeled != "none")):
        if given and not cfg.split:
            raise UserError(f"{key}: needs split=FILE, which says what is in it")
    if cfg.unlabeled != "none" and not taught:
        raise UserError(f"unlabeled={cfg.unlabeled}: without a teacher nothing is learned from them; set teacher=FILE")
    if cfg.teacher_labels == "accident" and cfg.unlabeled == "none":
        raise UserError("teacher_labels=accident: drops the labeled samples, so it needs unlabeled=unlabeled or test")


class Teacher:
    """A cached teacher, matched with the classes of a run.

    It was made beforehand by another model, larger or of another kind, and is joined by sample id and class name. What it
    says of a labeled sample should come from a model that had not seen its label (`Predictions.folds`); and a run that
    holds a fold out should have a teacher that knows none of that fold's labels, or its evaluation is too good.
    """

    def __init__(self, cfg, classes: list[str]):
        self.cfg, self.told = cfg, read_predictions(cfg.teacher)
        self.columns = slice(None)
        if self.told.kind == "logits":
            column = {name: number for number, name in enumerate(self.told.classes)}
            if missing := [name for name in classes if name not in column]:
                raise UserError(printable(f"teacher={cfg.teacher}: has no class {missing[0]!r}, and data has "
                                          f"({len(missing)} of {len(classes)} are missing)"))
            self.columns = torch.tensor([column[name] for name in classes])
        elif cfg.unlabeled != "none" or cfg.teacher_labels != "soft" or cfg.teacher_on != "all" or cfg.teacher_confidence:
            raise UserError(f"teacher={cfg.teacher}: holds embeddings, and unlabeled, teacher_labels, teacher_on and "
                            "teacher_confidence are for logits")

    @property
    def embeds(self) -> bool:
        return self.told.kind == "embedding"

    def says(self, ids: list[str], label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits float32 `[B,C]` or embeddings `[B,K]`, bool `[B]`: whether it speaks of the sample). label: int64 `[B]`,
        -1 where there is none; all on the host."""
        said, known = self.told.join(ids)
        said = said[:, self.columns]
        if not self.embeds:
            best, guess = said.softmax(1).max(1)
            known &= best >= self.cfg.teacher_confidence
            if self.cfg.teacher_on != "all":
                known &= (label < 0) | (guess == label) & (self.cfg.teacher_on == "agrees")
        return said, known


@dataclass(frozen=True)
class Chosen:
    """The samples of a split that a run takes. learned: {sample id: class name, "" without a label}; evaluated: {sample id:
    class name} of the fold that is held out, None where none is."""
    split: Split
    classes: list[str]
    learned: dict[str, str]
    evaluated: dict[str, str] | None


def choose(cfg) -> Chosen | None:
    """What the config's keys `split`, `fold` and `unlabeled` choose; None without a split. Raises UserError."""
    if not cfg.split:
        return None
    split = read_split(cfg.split)
    if cfg.fold >= split.folds:
        raise UserError(f"fold={cfg.fold}: {cfg.split} has the folds 0 to {split.folds - 1}; -1 holds none out")
    labeled = {row.file: row.label for row in split.part("train", other_than=cfg.fold)}
    held_out = {row.file: row.label for row in split.part("train", cfg.fold)}
    learned = {} if cfg.teacher_labels == "accident" else labeled
    others = [row.file for row in split.rows if row.role in ROLES[cfg.unlabeled]]
    if others:
        known = Teacher(cfg, split.classes).says(others, torch.full((len(others),), -1))[1].tolist()
        learned |= {name: "" for name, is_known in zip(others, known) if is_known}
    if cfg.unlabeled != "none" and "" not in learned.values():
        raise UserError(f"unlabeled={cfg.unlabeled}: the teacher speaks of none of the {len(others)} such samples in "
                        f"{cfg.split} (teacher_confidence={cfg.teacher_confidence:g})")
    return Chosen(split, split.classes, learned, held_out if cfg.fold >= 0 else None)


@dataclass
class Targets:
    """What the samples of a run are to be classified as: their labels, in the batch, and a teacher."""
    cfg: object
    classes: list[str]
    teacher: Teacher | None = field(init=False)

    def __post_init__(self):
        if not 1 < len(self.classes) <= MAX_CLASSES:
            raise UserError(f"data: {len(self.classes):,} classes; classification takes 2 to {MAX_CLASSES:,}, "
                            "task=registration more")
        self.teacher = Teacher(self.cfg, self.classes) if self.cfg.teacher else None

    @property
    def projection(self) -> int:
        """Width of the embeddings that the network's are to be projected to; 0: there is nothing to project."""
        return self.teacher.told.values.shape[1] if self.teacher and self.teacher.embeds else 0

    def note(self, ids: list[str]) -> list[str]:
        """Lines for the log. Raises UserError where the teacher knows none of the training samples."""
        if not self.teacher:
            return []
        told: Predictions = self.teacher.told
        known = int(told.join(ids)[1].sum())
        if not known:
            raise UserError(printable(f"teacher={self.cfg.teacher}: knows none of the training samples; its ids are such as "
                                      f"{told.ids[0]!r}, theirs such as {ids[0]!r} (identity=content: by content)"))
        doubt = [f"the evaluation is too good if the teacher knows labels of fold {self.cfg.fold}"] * (self.cfg.fold >= 0)
        return [f"teacher: {told.kind} [{told.values.shape[1]}], known for {known:,} of {len(ids):,} samples", *doubt]

    def digests(self) -> dict:
        """For `compatibility_keys`."""
        names = hashlib.blake2b(json.dumps(self.classes).encode(), digest_size=8).hexdigest()
        return {"classes": names, "teacher": self.teacher.told.digest() if self.teacher else None}

    def terms(self, outputs: tuple[torch.Tensor, ...], parts: list[tuple]) -> dict[str, torch.Tensor]:
        """The terms of the loss, each the mean over the samples of all ranks that it is of (of less than one, the sum).

        outputs: logits `[B,C]` and, with `projection`, the projected embeddings `[B,K]`. parts: what the B samples are made
        of, each part (ids, labels int64 `[B]`, its share of each sample float `[B]` or None, the whole): one of a plain
        batch, two where samples are mixed. A share counts as that much of a sample in every mean, so that of a mixture of
        a labeled sample and an unlabeled one the labeled share alone counts.
        """
        cfg = self.cfg
        logits, *projected = (out.to(torch.promote_types(out.dtype, torch.float32)) for out in outputs)
        sums = {name: [] for name in ("cross_entropy", *(["teacher"] if self.teacher else []))}
        for ids, label, share in parts:
            share = logits.new_ones(len(ids)) if share is None else share.to(logits)                      # [B]
            known = (label >= 0).to(logits)                                                               # [B]
            wrong = F.cross_entropy(logits, label.clamp_min(0).to(logits.device, non_blocking=True), reduction="none",
                                    label_smoothing=cfg.label_smoothing)
            sums["cross_entropy"].append((wrong * share * known, share * known))
            if self.teacher:
                said, known = self.teacher.says(ids, label)
                said, known = said.to(logits), known.to(logits.device, non_blocking=True)
                if projected:
                    apart = (1 - F.cosine_similarity(projected[0], said)).where(known, 0)                 # [B]
                elif cfg.teacher_labels == "soft":
                    apart = soft_target_kl(logits, said, cfg.temperature, known)                          # [B]
                else:
                    apart = F.cross_entropy(logits, said.argmax(1), reduction="none",
                                            label_smoothing=cfg.label_smoothing).where(known, 0)          # [B]
                sums["teacher"].append((apart * share, share * known))
        weights = {"cross_entropy": cfg.label_weight, "teacher": cfg.teacher_weight}
        return {name: weights[name] * global_mean(*(torch.cat(column) for column in zip(*found)))
                for name, found in sums.items()}


def evaluation(logits: torch.Tensor, label: torch.Tensor, document: dict, fold: int) -> Evaluation:
    """Accuracy and mean cross entropy (of the plain labels). logits `[N,C]`, label int64 `[N]`; document: what eval.json
    says besides. Accuracy decides, except on a fold held out: its predictions are for fusions, and must not be chosen."""
    logits = logits.double()
    if not logits.isfinite().all():
        raise UserError("the network's outputs are not finite")
    found = {"accuracy": (logits.argmax(1) == label).double().mean().item(),
             "cross_entropy": F.cross_entropy(logits, label).item()}
    return Evaluation(found, decides="accuracy" if fold < 0 else None, document={**found, "images": len(label), **document})


def class_names(info: dict) -> list[str]:
    """The classes in a run's `run.json`. Others may have made it."""
    names = info.get("classes")
    if (not isinstance(names, list) or not all(isinstance(name, str) for name in names)
            or not 1 < len(set(names)) == len(names) <= MAX_CLASSES):
        raise UserError("run.json: does not name the run's classes; give the whole output folder of the run")
    return names


class Classifier(nn.Module):
    """What `encoder` takes, such as images float `[B,3,S,S]` in [0,1], RGB -> logits `[B,classes]`. width: of the encoder's
    embeddings."""

    def __init__(self, encoder: nn.Module, width: int, classes: int, dropout: float):
        super().__init__()
        self.encoder, self.classify = encoder, nn.Sequential(nn.Dropout(dropout), nn.Linear(width, classes))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.classify(self.encoder(*inputs))


class Student(nn.Module):
    """A classifier in training: -> (logits `[B,C]`,), and with a projector, (logits, projected embedding `[B,K]`)."""

    def __init__(self, network: Classifier, projector: nn.Module | None):
        super().__init__()
        self.network, self.projector = network, projector

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        embedding = self.network.encoder(*inputs)                                                         # [B,D]
        logits = self.network.classify(embedding)
        return (logits,) if self.projector is None else (logits, self.projector(embedding))


def param_groups(cfg, model: Student, encoder: list[dict] | None = None) -> list[dict]:
    """Of a classifier in training: of its encoder (or those given), its last layer and its projector, each with its rate.
    Always in this order, so that a resumed run finds the optimizer's state, whatever the rates."""
    def groups(module, lr, rule, name=""):
        return decay_groups(module.named_parameters(), lr, rule, cfg.weight_decay, name)
    network = model.network
    found = encoder or groups(network.encoder, cfg.lr, cfg.lr_rule)
    own = "" if cfg.classifier_lr == 1 else "classifier"
    found += groups(network.classify, cfg.lr * cfg.classifier_lr, cfg.lr_rule, own)
    return found + (groups(model.projector, cfg.projector_lr, "fixed", "projector") if model.projector is not None else [])


class Probabilities(nn.Module):
    """A classifier with the outputs of an export: logits, which a fusion needs, and probabilities, `[B,C]` each."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.network(*inputs)
        return logits, logits.softmax(1)
