"""What the tasks share that learn from folders of images: their keys, the network's first checks, and the batches."""
import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from augment import PRESETS, Augment
from dataset import Batches, HardNegatives, ImageFolders, PerClass, Permutation, list_roots, load_batches
from engine.distributed import Ranks
from engine.keys import Key
from eval.folder import find_images
from inference.errors import UserError
from inference.image import MAX_INPUT
from tasks.base import Task

MAX_EMBEDDING = 8192  # more is a slip, or meant to fill the memory of whoever opens an untrusted run
ON_GPU = 0.4  # share of the free GPU memory that the images may take: below it they stay there, above it batches are sent

KEYS = {
    "data": Key([], "folders of images, FOLDER[:EXPANSION][:labelled]: each image is a class, or each folder",
                also=(str,), items="folders"),
    "expansion": Key(24, "classes made of an image: 8 is quarter turns x flip, 24 also x whole, top half, bottom half",
                     choices=(1, 8, 24)),
    "image_size": Key(128, "input of the network, pixels", least=32, most=MAX_INPUT),
    "fit": Key("squash", "how an image becomes a square: squash ignores its aspect, pad keeps it",
               choices=("squash", "pad")),
    "identity": Key("path", "what the id of an image is, by which other data are joined: its path below its root, or the "
                            "digest of its content", choices=("path", "content")),
    "sampler": Key("permutation", "order of the samples: each once in an epoch; or m of a class side by side; or blocks of "
                                  "k classes that look alike, m of each",
                   choices=("permutation", "per_class", "hard_negatives")),
    "samples_per_class": Key(4, "m of the last two samplers", least=1),
    "look_alikes": Key("", "for sampler=hard_negatives: a file with a line for each class, its label and then those of its "
                           "look-alikes, the nearest first, with tabs between"),
    "look_alike_classes": Key(8, "k of sampler=hard_negatives", least=2),
    "augment": Key("reference", "preset of augmentation", choices=tuple(PRESETS)),
    "cache": Key(True, "decode once, into ~/.cache/docmetric (${XDG_CACHE_HOME}); or a folder; or false: each time. A new "
                       "cache takes at most half of what is free on the disk", also=(str,)),
    "num_workers": Key(2, "decoding processes for each rank, where there is no cache", least=0),
    "network": Key("lcnet_050", "any timm model with features_only"),
    "pretrained": Key(True, "true: timm's weights from the hub; a file; or false", also=(str,)),
    "eval_data": Key("", "folder of types to evaluate on: TYPE/*.jpg (reference* is the gallery image)"),
}


def make_sampler(cfg, images: ImageFolders):
    """The sampler that the config names."""
    if cfg.sampler == "per_class":
        return PerClass(images.sample_classes(), cfg.samples_per_class, cfg.seed)
    if cfg.sampler == "hard_negatives":
        if not cfg.look_alikes:
            raise UserError("sampler=hard_negatives: needs the classes that look alike; give look_alikes=FILE")
        return HardNegatives(cfg.look_alikes, images.labels, images.sample_classes(), cfg.look_alike_classes,
                             cfg.samples_per_class, cfg.seed)
    return Permutation(len(images), cfg.seed)


class ImageTask(Task):
    """A task that learns from `images`, in the order of `sampler`, augmented on the device. A subclass's `__init__` calls
    this one, which tells what can be told before the images are read; then `read_images()`, `check_batch(model)` as soon as
    there is a model, and `cache_images()` last."""
    images: ImageFolders

    def __init__(self, cfg, ranks: Ranks):
        super().__init__(cfg, ranks)
        self.roots = list_roots(cfg.data, cfg.expansion)
        if cfg.eval_data:
            if not self.evaluates:
                raise UserError(f"eval_data={cfg.eval_data}: the task {cfg.task} has no evaluation; leave eval_data empty")
            find_images(cfg.eval_data)
        torch.manual_seed(cfg.seed)  # of the model's first weights; DDP hands rank 0's to all

    @classmethod
    def check_config(cls, cfg) -> None:
        if isinstance(cfg.data, str):
            whole = Path(cfg.data)
            cfg.data = [cfg.data] if whole.exists() else [part for part in cfg.data.split(",") if part]

    @property
    def smallest_part(self) -> int:
        """Images in the smallest part of a micro-batch that a rank gets."""
        return self.cfg.batch_size // self.cfg.accumulate // self.ranks.world

    def check_batch(self, model: nn.Module) -> None:
        """Raises UserError when a rank's part of the batch is too small for the network."""
        needs = 2 if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()) else 1
        if self.smallest_part < needs:
            raise UserError(f"batch_size={self.cfg.batch_size}: {self.ranks.world} processes x accumulate="
                            f"{self.cfg.accumulate} leave {self.smallest_part} images in a part, and this network needs "
                            f"{needs}")

    def read_images(self) -> None:
        """Read the images, or find them in the cache: sets `images`, `sampler`, `augment` and `total_steps`."""
        cfg = self.cfg
        self.images = ImageFolders(self.roots, cfg.image_size, cfg.cache, fit=cfg.fit, identity=cfg.identity)
        self.sampler = make_sampler(cfg, self.images)
        self._batches = Batches(self.images, cfg.batch_size, cfg.accumulate, cfg.seed, self.ranks.rank, self.ranks.world,
                                self.sampler)
        self.augment = Augment(cfg.augment, cfg.seed).to(self.ranks.device)
        self.total_steps = cfg.max_steps or -(-cfg.epochs * len(self.sampler) // cfg.batch_size)
        self.notes += [f"skipped: {path}: {why}" for path, why in self.images.skipped.items()]

    def cache_images(self) -> None:
        """Put the images on the GPU where they fit; what is left there is for activations. To be called last."""
        if self.ranks.device.type == "cuda":
            self.images.cache_on_device(self.ranks.device, int(ON_GPU * torch.cuda.mem_get_info(self.ranks.device)[0]))
        self.notes.insert(0, self.images.storage)

    def describe(self) -> dict:
        return {"num_classes": self.images.num_classes, "images": len(self.images.paths), "samples": len(self.images),
                "skipped": len(self.images.skipped), "steps": self.total_steps}

    def compatibility_keys(self) -> dict:
        keys = ["network", "image_size", "fit", "batch_size", "seed", "sampler"]
        if self.cfg.sampler != "permutation":
            keys += ["samples_per_class", "look_alikes", "look_alike_classes"]
        return {**{key: self.cfg[key] for key in keys}, "num_classes": self.images.num_classes, "samples": len(self.images)}

    def example(self) -> tuple[torch.Tensor, ...]:
        size = self.cfg.image_size
        return torch.zeros(self.smallest_part, 3, size, size, device=self.ranks.device),

    def batches(self, first_step: int) -> Iterator[dict]:
        """`image` on the rank's device, the rest on the host; see dataset.py."""
        cfg, cuda = self.cfg, self.ranks.device.type == "cuda"
        with contextlib.closing(load_batches(self._batches, first_step * cfg.accumulate, self.total_steps * cfg.accumulate,
                                             cfg.num_workers, pin=cuda)) as loaded:
            for batch in loaded:
                yield {**batch, "image": batch["image"].to(self.ranks.device, non_blocking=True)}

    def autocast(self) -> torch.autocast:
        """The config's precision, for the calls of `forward`."""
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.cfg.precision == "bf16")

    @property
    def evaluates(self) -> bool:
        return bool(self.cfg.eval_data) and type(self).evaluate is not Task.evaluate

    def outputs(self, images: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        """`network_outputs` of `published`."""
        return network_outputs(self.published, images)


@torch.no_grad()
def network_outputs(network: nn.Module, images: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
    """What `network` says of uint8 RGB `[N,S,S,3]`, in eval mode, on its device: float32 `[N,...]`, or a tuple of them."""
    was_training, weight = network.training, next(network.parameters())
    network.eval()
    x = torch.from_numpy(np.ascontiguousarray(images)).to(weight.device).permute(0, 3, 1, 2)
    out = network(x.to(weight.dtype) / 255)
    network.train(was_training)
    return tuple(map(_to_numpy, out)) if isinstance(out, tuple) else _to_numpy(out)


def _to_numpy(out: torch.Tensor) -> np.ndarray:
    return out.float().cpu().numpy()
