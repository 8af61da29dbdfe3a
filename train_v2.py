"""Train an embedding network over sharded class centres.

    python train_v2.py configs/demo                                                    # one process, CPU or GPU
    torchrun --nproc_per_node=8 train_v2.py configs/lcnet_cos data=DIR output=DIR      # 8 GPUs
    torchrun --nnodes=2 --node_rank=0 --master_addr=HOST --nproc_per_node=8 train_v2.py configs/lcnet_cos data=DIR
    torchrun --nnodes=2 --node_rank=1 --master_addr=HOST --nproc_per_node=8 train_v2.py configs/lcnet_cos data=DIR

Any key of configs/base.py can follow as key=value. Everything the run makes lies in its `output` folder.
"""
import contextlib
import csv
import itertools
import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from checkpoint import load_checkpoint, newest_checkpoint, read_manifest, save_checkpoint, save_weights
from configs import load_config, save_config
from runtime import Ranks, UserError, get_logger, lr_factor, process_group, run_cli, scaled_lr, share_of
from task import build_task

COLUMNS = ("step", "samples", "loss", "lr", "images_per_second", "skipped")
OF_A_RUN = ("config.json", "run.json", "results.csv", "training.log", "tensorboard", "checkpoints", "model.pt",
            "model.onnx", "eval.json")


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise UserError("usage: train_v2.py CONFIG [key=value ...]; configs/ holds the configs")
    cfg = load_config(sys.argv[1], sys.argv[2:])
    with process_group(cfg.device) as ranks:
        train(cfg, ranks)


def train(cfg, ranks: Ranks) -> dict:
    """The run of `cfg` from its start, or from a checkpoint, to its end. Returns the last evaluation, {} without one."""
    output = Path(cfg.output)
    log = get_logger(ranks.rank)
    torch.set_float32_matmul_precision(cfg.float32_matmul_precision)

    task = build_task(cfg, ranks)
    optimizer = make_optimizer(task.network, cfg.weight_decay)
    base_lr = scaled_lr(cfg.lr, cfg.batch_size, "adamw")
    start, best = resume(cfg, output, task, optimizer)
    total = task.total_steps
    info = {**task.describe(), "world": ranks.world, "device": str(ranks.device), "torch": torch.__version__}
    if ranks.rank == 0:
        begin_output(output, cfg, info, start)
        log = get_logger(ranks.rank, output)
    results = Results(output, task.columns, start) if ranks.rank == 0 else None
    log.info("run: " + ", ".join(f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}"
                                 for key, value in info.items()))
    for line in task.notes:
        log.info(line)
    bar = tqdm(total=total, initial=start, unit="step", disable=ranks.rank > 0 or not sys.stderr.isatty())

    batches = task.batches(start)
    metrics: dict = {}
    # BatchNorm's statistics change in the forward pass, before anyone knows whether the step counts.
    statistics = [buffer for buffer in task.network.buffers() if buffer.is_floating_point()]
    sizes = [buffer.numel() for buffer in statistics]
    running = torch.zeros(2, device=ranks.device)      # sum of the losses and number of the steps since the last log
    skipped = torch.zeros((), device=ranks.device)     # steps left out since the start for a loss that was not finite
    clock = Clock()
    for step in range(start, total):
        factor = lr_factor(step, total, cfg.schedule, cfg.warmup)
        for group in optimizer.param_groups:
            group["lr"] = base_lr * factor
        shown = task.begin_step(step, factor)
        before = flat(statistics)

        loss = torch.zeros((), device=ranks.device)
        for micro in range(cfg.accumulate):
            # A micro-batch counts by its share of the batch; gradients cross ranks at the last one alone.
            share = len(share_of(cfg.batch_size, micro, cfg.accumulate)) / cfg.batch_size
            last = micro == cfg.accumulate - 1
            with contextlib.nullcontext() if last or ranks.world == 1 else task.trained.no_sync():
                term = share * sum(task.losses(next(batches)).values())
                term.backward()
            loss += term.detach()
        norm = nn.utils.clip_grad_norm_(task.network.parameters(), cfg.clip or math.inf)
        skip = ~(loss.isfinite() & norm.isfinite())
        optimizer.found_inf = skip.float()             # fused optimisers leave the step out by this flag on the device
        optimizer.step()
        optimizer.zero_grad()
        task.finish_step(skip)
        kept = torch.where(skip, before, flat(statistics)).split(sizes)
        torch._foreach_copy_(statistics, [part.view_as(buffer) for part, buffer in zip(kept, statistics)])
        running += torch.stack([loss.where(~skip, 0), (~skip).to(loss.dtype)])
        skipped += skip
        clock.steps += 1
        bar.update()

        done = step + 1
        if done % cfg.log_every == 0 or done == total:
            summed, counted = running.tolist()
            speed, eta = clock.read(cfg.batch_size, total - done)
            row = {"step": done, "samples": done * cfg.batch_size, "loss": summed / counted if counted else math.nan,
                   "lr": base_lr * factor, **shown, "images_per_second": speed, "skipped": int(skipped.item())}
            log.info(f"step {done}/{total} loss {row['loss']:.4f} lr {row['lr']:.2e} "
                     + "".join(f"{name} {value:.3g} " for name, value in shown.items())
                     + f"{speed:.0f} img/s ETA {eta / 60:.1f} min"
                     + (f" skipped {row['skipped']} steps of non-finite loss" if row["skipped"] else ""))
            bar.set_postfix_str(f"loss {row['loss']:.3f}, {speed:.0f} img/s")
            if results:
                results.write(row)
            running.zero_()

        evaluating = bool(cfg.eval_data) and (done == total or cfg.eval_every > 0 and done % cfg.eval_every == 0)
        if evaluating or done == total or cfg.save_every and done % cfg.save_every == 0:
            with clock.paused():
                metrics = evaluate(task, done, ranks, log) if evaluating else {}
                if results and metrics:
                    results.write({"step": done, "samples": done * cfg.batch_size, **task.summary(metrics)})
                best = save(output, task, optimizer, done, best, metrics, ranks)
    bar.close()
    if results:
        results.close()
    log.info(f"done: {output}")
    return metrics


def begin_output(output: Path, cfg, info: dict, start: int) -> None:
    """The run's folder, with its resolved config. A run that starts anew moves what an earlier one left there aside."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        earlier = [output / name for name in OF_A_RUN if (output / name).exists()]
        if start == 0 and earlier:
            aside = next(folder for n in itertools.count(1) if not (folder := output / f"earlier-{n}").exists())
            aside.mkdir()
            for path in earlier:
                path.rename(aside / path.name)
        save_config(cfg, output)
        (output / "run.json").write_text(json.dumps(info, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"output={output}: cannot be written ({error.strerror})") from None


def make_optimizer(network: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, https://arxiv.org/abs/1711.05101; norms and biases, the parameters of one dimension, do not decay."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
              {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, fused=True)


def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    """All numbers of some tensors in a row: a handful of kernels then does what would be one for each of them."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def resume(cfg, output: Path, task, optimizer) -> tuple[int, float | None]:
    """(step to go on from, best score so far): from the checkpoint that `resume` asks for, or (0, None)."""
    if cfg.resume == "false":
        return 0, None
    folder = newest_checkpoint(output / "checkpoints" / "last") if cfg.resume == "auto" else Path(cfg.resume)
    if folder is None:
        return 0, None
    manifest = read_manifest(folder, task.must_agree())
    load_checkpoint(folder, manifest, task.network, optimizer, task.partial_fc)
    return manifest["step"], manifest["best"]


def evaluate(task, step: int, ranks: Ranks, log) -> dict:
    """The task's metrics, found by rank 0 and told to all; {} when they could not be (a diverged network), so that
    the run goes on and its checkpoint is still written."""
    said = [{}]
    if ranks.rank == 0:
        try:
            said = [task.evaluate()]
            log.info(f"eval {step}/{task.total_steps} "
                     + " ".join(f"{name} {value:.4f}" for name, value in task.summary(said[0]).items()))
        except UserError as error:
            log.warning(f"eval {step}/{task.total_steps} not possible: {error}")
    if ranks.world > 1:
        torch.distributed.broadcast_object_list(said, src=0)
    return said[0]


def save(output: Path, task, optimizer, step: int, best: float | None, metrics: dict, ranks: Ranks) -> float | None:
    """Write checkpoints/last, and checkpoints/best when this step's first metric is the best; returns the best so far.

    `model.pt` and `eval.json` belong together: the best network, or the last one in a run that is never evaluated.
    """
    score = next(iter(task.summary(metrics).values())) if metrics else None
    better = score is not None and (best is None or score > best)
    best = score if better else best
    network = task.network.state_dict()
    for name in ("last", "best") if better else ("last",):
        save_checkpoint(output / "checkpoints" / name, network, optimizer, task.partial_fc,
                        {"step": step, "best": best, **task.must_agree()})
    if ranks.rank == 0 and (better or best is None):
        save_weights(network, output / "model.pt")
        (output / "eval.json").unlink(missing_ok=True)
        if better:
            (output / "eval.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return best


class Clock:
    """Speed and remaining time from the steps alone: `with clock.paused()` keeps evaluations and saves out."""

    def __init__(self):
        self.steps, self.total_steps, self.total_time = 0, 0, 0.0
        self.since = time.perf_counter()

    def read(self, batch_size: int, left: int) -> tuple[float, float]:
        """(images per second since the last call, seconds that `left` steps will take)."""
        now = time.perf_counter()
        speed = self.steps * batch_size / (now - self.since)
        self.total_steps, self.total_time = self.total_steps + self.steps, self.total_time + now - self.since
        self.steps, self.since = 0, now
        return speed, left * self.total_time / self.total_steps

    @contextlib.contextmanager
    def paused(self):
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began


class Results:
    """`results.csv` and TensorBoard. A run that goes on from step `start` first drops the rows after it."""

    def __init__(self, output: Path, columns: tuple[str, ...], start: int):
        file = output / "results.csv"
        kept = []
        if start and file.exists():
            with open(file, newline="") as old:
                kept = [row for row in csv.DictReader(old) if (row["step"] or "").isdigit() and int(row["step"]) <= start]
        self.file = open(file, "w", newline="")
        self.writer = csv.DictWriter(self.file, COLUMNS + columns, extrasaction="ignore")
        self.writer.writeheader()
        self.writer.writerows(kept)
        self.board = SummaryWriter(str(output / "tensorboard"), purge_step=start + 1 if start else None)

    def write(self, row: dict) -> None:
        self.writer.writerow(row)
        self.file.flush()
        for name, value in row.items():
            if name != "step":
                self.board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self.file.close()
        self.board.close()


if __name__ == "__main__":
    run_cli(main)
