"""The seam: what the loop in train_v2.py and the engine know of a task, and all that they know.

A new task is one file in this folder with one subclass of `Task` (of `ImageTask`, in images.py, when it learns from folders
of images), and a config that names it. docs/tasks.md walks through one.
"""
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import nn

from engine.distributed import Ranks
from engine.keys import Key
from engine.optimizer import decay_groups


class Sharded(Protocol):
    """Parameters of which each rank holds some rows, with an update of their own: `partial_fc.PartialFC`."""
    classes: range                                       # ids of this rank's rows

    def row_state(self) -> dict[str, torch.Tensor]: ...  # tensors [len(classes), ...], filled in place on resume
    def begin_step(self, step: int, lr: float, calls: int) -> None: ...
    def finish_step(self, skip: torch.Tensor) -> None: ...
    def resumed(self, step: int, updates: int) -> None: ...


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found. summary: numbers for the log and results.csv; `decides` names the one of them by which the
    best checkpoint is chosen, None: the newest is published, since a choice would make what is said of the same samples
    later too good; document: all of it, as JSON, for OUTPUT/eval.json."""
    summary: dict[str, float]
    decides: str | None
    higher_is_better: bool = True
    document: dict = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        return None if self.decides is None else self.summary[self.decides]

    def better_than(self, score: float | None) -> bool:
        """Whether this one is better than an earlier `score` (None: there is none); one that is not a number never is."""
        if self.score is None:
            return True
        if math.isnan(self.score):
            return False
        return score is None or (self.score > score if self.higher_is_better else self.score < score)


@dataclass(frozen=True)
class Export:
    """How a published network becomes an ONNX file.

    module: float `[B, channels, S, S]` in [0, 1], RGB or gray, as `img` -> a tensor or a tuple of tensors `[B, ...]`, or of
    constants `[...]`, named by `outputs`. size: S. variable_width: the last side of `img` may be any multiple of
    `width_step` pixels. metadata: what inference must know beside what every file says (`onnx_export.describe`).

    inputs: where the module takes no image, and size is 0: (B, generator) -> {name: random array `[B, L, ...]`}, its inputs
    in order, all of one L, another for another B; the file then takes any L.
    """
    module: nn.Module
    size: int
    outputs: tuple[str, ...]
    metadata: dict = field(default_factory=dict)
    channels: int = 3
    variable_width: bool = False
    width_step: int = 8
    inputs: Callable[[int, np.random.Generator], dict[str, np.ndarray]] | None = None

    def example(self, batch: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """Random inputs of `batch` samples."""
        if self.inputs:
            return self.inputs(batch, generator)
        return {"img": generator.integers(0, 256, self.shape(batch)).astype(np.float32) / np.float32(255)}

    def shape(self, batch: int) -> tuple[int, ...]:
        """Of `img`, `batch` images; one of variable width is wider for more images."""
        return batch, self.channels, self.size, (8 + batch) * self.width_step if self.variable_width else self.size


class Task(ABC):
    """One thing to learn, on one rank. `losses` calls `self.forward`, the form of `model` that the engine has prepared
    (compiled, wrapped for several ranks); everything else may use `model` itself.

    Set in `__init__(cfg, ranks)`: `model`, all that is trained by gradient, which the engine moves to the device, compiles,
    wraps (DDP), averages (EMA), clips and saves; `published`, the part of it that model.pt holds and `export` describes;
    `total_steps`; where there are any, `sharded` and `notes` (lines for the log).
    """
    defaults: ClassVar[dict[str, Key]] = {}     # the task's own config keys with their limits
    model: nn.Module
    published: nn.Module
    forward: nn.Module                          # set by the engine before the first step
    total_steps: int
    sharded: dict[str, Sharded]
    notes: list[str]

    def __init__(self, cfg, ranks: Ranks):
        self.cfg, self.ranks, self.sharded, self.notes = cfg, ranks, {}, []

    @classmethod
    def check_config(cls, cfg) -> None:
        """Settle what depends on several keys, in place. Raises UserError naming a key."""

    @classmethod
    @abstractmethod
    def restore(cls, cfg, info: dict) -> nn.Module:
        """The published network of a finished run, its weights not loaded yet. info: what `describe` said of that run."""

    @classmethod
    @abstractmethod
    def export(cls, cfg, info: dict, network: nn.Module, evaluation: dict | None = None) -> Export:
        """How `network`, one that `restore` made, is exported. evaluation: the document in the run's eval.json, if any."""

    def describe(self) -> dict:
        """What `run.json` records of the data and the run's length, and the log says; JSON values."""
        return {"steps": self.total_steps}

    def compatibility_keys(self) -> dict:
        """What a checkpoint must share with this run to be resumed; JSON values."""
        return {"batch_size": self.cfg.batch_size, "seed": self.cfg.seed}

    @abstractmethod
    def example(self) -> tuple[torch.Tensor, ...]:
        """Inputs of `forward` on its device, of the smallest part of a batch that a rank may get: to compile it and to warm
        up DDP."""

    def param_groups(self) -> list[dict]:
        """Groups for AdamW, each {"params", "lr", "rule", "weight_decay"} and, where there are several rates, a "name" for
        the log. rule: how `lr` follows the batch size, see `engine.schedules.scaled_lr`."""
        return decay_groups(self.model.named_parameters(), self.cfg.lr, "sqrt", self.cfg.weight_decay)

    @abstractmethod
    def batches(self, first_step: int) -> Iterator[dict]:
        """This rank's micro-batches from `first_step` to the end of the run, a pure function of the position."""

    def begin_step(self, step: int, factor: float) -> dict[str, float]:
        """Set what depends on the step; factor: the schedule's, of learning rates. Returns what the log shows of it."""
        return {}

    @abstractmethod
    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        """{name: term}, weighted; the loss is their sum. Each is the mean over the GLOBAL micro-batch, the same number on
        every rank (`engine.distributed.global_mean`); its gradient is the plain one times the number of ranks, of which DDP
        takes the mean."""

    def finish_step(self, skip: torch.Tensor) -> None:
        """After the optimizer's step. skip: bool scalar on the device, whether the step did not count."""
        for head in self.sharded.values():
            head.finish_step(skip)

    def evaluate(self) -> Evaluation | None:
        """Metrics of the published network as it now is, on rank 0 alone; None when there is nothing to evaluate on."""
        return None

    @property
    def evaluates(self) -> bool:
        """Whether `evaluate` finds anything, known before the first step."""
        return False
