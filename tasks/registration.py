"""What a run learns: the modules, their data, their losses and how they are judged. The loop in train_v2.py knows only this.

A further task is a further class with the members of `RegistrationTask`, chosen in `build_task`.
"""
import contextlib
import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from augment import Augment
from augment.image_cache import size_text
from backbones import get_model
from dataset import Batches, ImageFolders, list_roots, load_batches
from engine.distributed import Ranks, free_memory
from engine.ema import Average
from engine.schedules import ema_decay, margin_factor, scaled_lr
from eval import evaluate_folder
from eval.folder import find_images
from inference.errors import UserError, first_line
from losses import get_margin
from partial_fc import PartialFC, memory_needed

ON_GPU = 0.4  # share of the free GPU memory that the images may take: below it they stay there, above it batches are sent


def build_task(cfg, ranks: Ranks) -> "RegistrationTask":
    """The task of a config."""
    return RegistrationTask(cfg, ranks)


class RegistrationTask:
    """Registration learning: every image, or every view of it, is a class; margin softmax over all of them."""

    columns = ("margin", "centres_lr", "auroc", "tpr_at_fpr_1e-4", "top1")  # its part of results.csv

    def __init__(self, cfg, ranks: Ranks):
        self.cfg, self.ranks = cfg, ranks
        # What can be wrong is told before the images are read, which may take long.
        listed = list_roots(cfg.data, cfg.expansion)
        if cfg.eval_data:
            find_images(cfg.eval_data)
        # DistributedDataParallel hands rank 0's weights to all, so only rank 0 needs to find the pretrained ones.
        torch.manual_seed(cfg.seed)
        self.network = get_model(cfg, None if ranks.rank == 0 else False)
        self._check_batch()

        self.images = ImageFolders(listed, cfg.image_size, cfg.cache)
        self.num_classes = self.images.num_classes
        if self.num_classes < ranks.world:
            raise UserError(f"data: {self.num_classes} classes cannot be shared by {ranks.world} processes; "
                            "use fewer (--nproc_per_node), more images, or a larger expansion")
        self.total_steps = cfg.max_steps or -(-cfg.epochs * len(self.images) // cfg.batch_size)

        self.network.to(ranks.device, memory_format=torch.channels_last)  # 1.4 times NCHW's speed on a CPU
        self.trained, cannot = self._compiled() if cfg.compile else (self.network, None)
        if ranks.world > 1:  # the network alone: each rank's centres are different classes and must not be averaged
            self.trained = DistributedDataParallel(self.trained, [ranks.device] if ranks.device.type == "cuda" else None)
            # Its first backward pass decides where in its buckets each gradient lies, and so how sums over three ranks are
            # rounded. Were that a step's, a run that goes on would differ by a bit from one that never stopped.
            self._rehearse(self.trained)
        self._averaging = Average(self.network) if cfg.ema else None
        self.average = self._averaging.network if cfg.ema else None  # what is evaluated and published in place of `network`
        self._check_memory()
        self.partial_fc = PartialFC(get_margin(cfg), cfg.embedding_size, self.num_classes, cfg.sample_rate,
                                    optimizer=cfg.centres_optimizer, momentum=cfg.centres_momentum,
                                    weight_decay=cfg.centres_weight_decay, seed=cfg.seed, device=ranks.device)
        self.augment = Augment(cfg.augment, cfg.seed).to(ranks.device)
        if ranks.device.type == "cuda":  # what is left is for activations
            self.images.cache_on_device(ranks.device, int(ON_GPU * torch.cuda.mem_get_info(ranks.device)[0]))
        self.notes = [self.images.storage, self.centres_storage,
                      *(f"left out: {path}: {why}" for path, why in self.images.left_out.items())]
        if cannot:
            self.notes.insert(0, f"compile=true: not possible here ({cannot}); going on without")

    def describe(self) -> dict:
        """What `run.json` records of the data and the run's length."""
        return {"num_classes": self.num_classes, "images": len(self.images.paths), "samples": len(self.images),
                "left_out": len(self.images.left_out), "steps": self.total_steps}

    def compatibility_keys(self) -> dict:
        """What a checkpoint must share with this run to be gone on with."""
        keys = ("network", "head", "norm", "embedding_size", "image_size", "batch_size", "centres_optimizer", "seed")
        return {**{key: self.cfg[key] for key in keys}, "num_classes": self.num_classes, "samples": len(self.images)}

    def batches(self, first_step: int) -> Iterator[dict]:
        """This rank's micro-batches from `first_step` to the end of the run: `image` on its device, the rest on the host."""
        cfg = self.cfg
        batches = Batches(self.images, cfg.batch_size, cfg.accumulate, cfg.seed, self.ranks.rank, self.ranks.world)
        cuda = self.ranks.device.type == "cuda"
        with contextlib.closing(load_batches(batches, first_step * cfg.accumulate, self.total_steps * cfg.accumulate,
                                             cfg.num_workers, pin=cuda)) as loaded:
            for batch in loaded:
                yield {**batch, "image": batch["image"].to(self.ranks.device, non_blocking=True)}

    def begin_step(self, step: int, lr_factor: float) -> dict[str, float]:
        """Set what depends on the step; returns what the log shows of it."""
        cfg, margin = self.cfg, self.partial_fc.margin
        margin.strength = margin_factor(step, self.total_steps, cfg.margin_warmup)
        lr = scaled_lr(cfg.centres_lr, cfg.batch_size, cfg.centres_optimizer) * lr_factor
        self.partial_fc.begin_step(step, lr, cfg.accumulate)
        self._decay = ema_decay(step, cfg.ema)
        return {"margin": margin.strength, "centres_lr": lr}

    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        """{name: term} of one micro-batch; the loss is their sum."""
        image = self.augment(batch["image"], batch["position"], batch["view"], self.cfg.image_size)
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.cfg.precision == "bf16"):
            embeddings = self.trained(image)
        return {self.cfg.margin: self.partial_fc(embeddings, batch["label"])}

    def finish_step(self, skip: torch.Tensor) -> None:
        """The update of what has no torch optimiser: the centres, and the average of the network as the step left it."""
        self.partial_fc.finish_step(skip)
        if self._averaging:
            self._averaging.update(self._decay, skip)

    def evaluate(self) -> dict:
        """Zero-shot metrics of the network, or of its average, on `eval_data`: what `python -m eval --json` prints."""
        return evaluate_folder(self.embed, self.cfg.eval_data, self.cfg.image_size).as_dict()

    def summary(self, metrics: dict) -> dict[str, float]:
        """The numbers of an evaluation for the log and `results.csv`; the first decides which checkpoint is the best."""
        return {"auroc": metrics["auroc"], "tpr_at_fpr_1e-4": metrics["tpr_at_fpr"]["1e-4"], "top1": metrics["top1"]}

    @torch.no_grad()
    def embed(self, images: np.ndarray) -> np.ndarray:
        """uint8 RGB `[N,S,S,3]` -> float32 `[N,D]`."""
        network = self.average or self.network
        was_training = network.training
        network.eval()
        x = torch.from_numpy(np.ascontiguousarray(images)).to(self.ranks.device).permute(0, 3, 1, 2)
        out = network(x.to(network.mean.dtype) / 255).float().cpu().numpy()
        network.train(was_training)
        return out

    def _compiled(self) -> tuple[nn.Module, str | None]:
        """The network compiled, or as it is with the reason why that cannot be: a system without a compiler, say.

        Compiling is put off until the first call, so it is tried here.
        """
        try:
            compiled = torch.compile(self.network)
            self._rehearse(compiled)
        except Exception as error:  # of any part of the compiler, or of what it calls
            return self.network, first_line(error)
        return compiled, None

    def _rehearse(self, network: nn.Module) -> None:
        """One forward and backward pass of `network`, a form of `self.network`, which stays as it was."""
        cfg, device = self.cfg, self.ranks.device
        before = copy.deepcopy(self.network.state_dict())
        image = torch.zeros(self._smallest_part, 3, cfg.image_size, cfg.image_size, device=device)
        try:
            with torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
                network(image).sum().backward()
        finally:
            self.network.load_state_dict(before)  # BatchNorm's statistics
            self.network.zero_grad()

    @property
    def _smallest_part(self) -> int:
        """Images in the smallest part of a micro-batch that a rank gets."""
        return self.cfg.batch_size // self.cfg.accumulate // self.ranks.world

    def _check_memory(self) -> None:
        """Told beforehand: a system whose memory is used up ends a process without a word."""
        cfg, ranks, host = self.cfg, self.ranks, torch.device("cpu")
        centres = memory_needed(self.num_classes, cfg.embedding_size, cfg.centres_optimizer, ranks.world)
        needs = {ranks.device: centres}
        needs[host] = needs.get(host, 0) + centres  # checkpoints copy them
        for device, needed in needs.items():
            free = free_memory(device)
            if needed > free:
                raise UserError(f"{self.num_classes:,} classes x embedding_size={cfg.embedding_size} over {ranks.world} "
                                f"processes: centres, momentum and their copy for checkpoints take {size_text(needed)} of "
                                f"{device.type} memory in each, {size_text(max(0, free))} are free; use more processes or "
                                "machines, a smaller expansion or embedding_size, or fewer images")
        self.centres_storage = f"centres: {size_text(centres)} on each process, with momentum"

    def _check_batch(self) -> None:
        smallest = self._smallest_part
        needs = 2 if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.network.modules()) else 1
        if smallest < needs:
            raise UserError(f"batch_size={self.cfg.batch_size}: {self.ranks.world} processes x accumulate="
                            f"{self.cfg.accumulate} leave {smallest} images in a part, and this network needs {needs}")
