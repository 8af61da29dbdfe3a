"""What a run would cost: disk, memory, steps, and time, as a few real steps on this machine take it."""
import shutil
import time
from pathlib import Path

import torch

from augment.image_cache import CacheUnavailable, default_folder
from dataset import resized_side
from partial_fc import LEANEST_UPDATE, PartialFC, memory_needed

WORLDS = 1, 2, 4, 8
MOST_CLASSES = 1 << 15  # that the head is timed with; its time is that of its matmuls, so more take in proportion
MOST_IMAGES = 512       # of a step that is timed; a few would not do, as what a large one needs of memory takes its time
ENOUGH = 3.0            # seconds for each of the two


def cost(cfg, roots, images: int, classes: int, samples: int, network: torch.nn.Module) -> dict:
    """Sizes in bytes, and steps, of the run that `cfg` describes over so many usable images."""
    side = resized_side(cfg.image_size, roots)
    parameters = sum(p.numel() for p in network.parameters())
    rows = classes * cfg.embedding_size * 4 * (2 if cfg.centres_optimizer == "sgd" else 3)  # class centers and their moments
    try:
        folder = default_folder() if cfg.cache is True else Path(cfg.cache).expanduser() if cfg.cache else None
    except CacheUnavailable:
        folder = None
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir()) if folder else None
    return {
        "cache": {"bytes": images * 3 * side * side, "side": side, "folder": str(folder) if folder else None,
                  "free": shutil.disk_usage(existing).free if existing else None},
        "centres_per_process": {str(world): memory_needed(classes, cfg.embedding_size, optimizer=cfg.centres_optimizer,
                                                          world=world) for world in WORLDS if world <= classes},
        "checkpoint": rows + parameters * 4 * 3,  # AdamW keeps two moments of the network's weights
        "checkpoints_kept": cfg.keep_checkpoints + bool(cfg.eval_data),
        "parameters": parameters,
        "batch_size": cfg.batch_size,
        "steps": cfg.max_steps or -(-cfg.epochs * samples // cfg.batch_size),
    }


def measure(cfg, classes: int, views: int, side: int, network: torch.nn.Module, device: torch.device, of=min) -> dict:
    """{"images_per_second", "network_ms", "head_ms"} of training in one process, the last two for each image.

    Augmentation, forward, backward and update of the config's network on random images, and the head over at most
    `MOST_CLASSES`, scaled to `classes`. views: classes made of an image; side: of the resized images they are drawn from.
    of: which of a step's times counts; the fastest, as whatever else the machine does may be over when the run begins.
    """
    network_seconds = _network_seconds(cfg, views, side, network, device, of)
    head_seconds = _head_seconds(cfg, min(classes, MOST_CLASSES), device, of) * max(1, classes / MOST_CLASSES)
    return {"images_per_second": 1 / (network_seconds + head_seconds), "network_ms": 1e3 * network_seconds,
            "head_ms": 1e3 * head_seconds, "device": device.type}


def _network_seconds(cfg, views, side, network, device, of):
    from augment import Augment
    from engine.optimizer import decay_groups, make_optimizer
    count = max(2, min(MOST_IMAGES, cfg.batch_size // cfg.accumulate))  # 2: BatchNorm needs as many
    network = network.to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(decay_groups(network.named_parameters(), 1e-3, "fixed", cfg.weight_decay), cfg.batch_size)
    augment = Augment(cfg.augment, cfg.seed).to(device)
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, device=device)
    position = torch.arange(count)
    gradient = torch.randn(count, cfg.embedding_size, device=device) * 1e-3

    def step():
        image = augment(images, position, position % views, cfg.image_size)
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
            embeddings = network(image)
        embeddings.backward(gradient.to(embeddings.dtype))
        torch.nn.utils.clip_grad_norm_(network.parameters(), cfg.clip or torch.inf)
        optimizer.step()
        optimizer.zero_grad()
    return _seconds(step, device, of) / count


def _head_seconds(cfg, classes, device, of):
    from losses import get_margin
    count = min(MOST_IMAGES, cfg.batch_size // cfg.accumulate)
    head = PartialFC(get_margin(cfg), cfg.embedding_size, classes, cfg.sample_rate, optimizer=cfg.centres_optimizer,
                     update=LEANEST_UPDATE[cfg.centres_optimizer], momentum=cfg.centres_momentum,
                     weight_decay=cfg.centres_weight_decay, seed=cfg.seed, device=device)
    embeddings = torch.randn(count, cfg.embedding_size, device=device, requires_grad=True)
    labels = torch.arange(count) % classes

    def step():
        head.begin_step(0, 1e-3, 1)
        head(embeddings, labels).backward()
        head.finish_step()
    return _seconds(step, device, of) / count


def _seconds(step, device, of):
    """`of` the times of some steps but the first, which takes memory that later ones have."""
    took, began = [], time.perf_counter()
    while len(took) < 3 or (len(took) < 20 and time.perf_counter() - began < ENOUGH):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - start)
    return of(took[1:])
