"""Train an embedding network over sharded class centres.

    python train_v2.py configs/demo                                                    # one process, CPU or GPU
    torchrun --nproc_per_node=8 train_v2.py configs/lcnet_cos data=DIR output=DIR      # 8 GPUs
    torchrun --nnodes=2 --node_rank=0 --master_addr=HOST --nproc_per_node=8 train_v2.py configs/lcnet_cos data=DIR
    torchrun --nnodes=2 --node_rank=1 --master_addr=HOST --nproc_per_node=8 train_v2.py configs/lcnet_cos data=DIR

Any key of configs/base.py can follow as key=value. Everything the run makes lies in its `output` folder.
"""
import contextlib
import csv
import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from checkpoint import load_checkpoint, read_manifest, save_checkpoint, save_weights
from configs import load_config, save_config
from runtime import Ranks, UserError, get_logger, lr_factor, process_group, run_cli, share_of
from task import REFERENCE_BATCH, build_task

COLUMNS = ("step", "samples", "loss", "lr", "centres_lr", "margin", "images_per_second", "skipped",
           "auroc", "tpr_at_fpr_1e-4", "top1")


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise UserError("usage: train_v2.py CONFIG [key=value ...]; configs/ holds the configs")
    cfg = load_config(sys.argv[1], sys.argv[2:])
    with process_group(cfg.device) as ranks:
        train(cfg, ranks)


def train(cfg, ranks: Ranks) -> dict:
    """The run of `cfg` from its start, or from a checkpoint, to its end. Returns the last evaluation, {} without one."""
    output = make_output(cfg, ranks)
    log = get_logger(ranks.rank, output)
    torch.set_float32_matmul_precision(cfg.float32_matmul_precision)

    task = build_task(cfg, ranks, log)
    optimizer = make_optimizer(task.network, cfg.weight_decay)
    base_lr = cfg.lr * (cfg.batch_size / REFERENCE_BATCH) ** 0.5
    start, best = resume(cfg, output, task, optimizer)
    total = task.total_steps
    info = {**task.describe(), "world": ranks.world, "device": str(ranks.device), "torch": torch.__version__}
    log.info("run: " + ", ".join(f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}"
                                 for key, value in info.items()))
    if ranks.rank == 0:
        (output / "run.json").write_text(json.dumps(info, indent=2) + "\n")
    results = Results(output, start) if ranks.rank == 0 else None
    bar = tqdm(total=total, initial=start, unit="step", disable=ranks.rank > 0 or not sys.stderr.isatty())

    batches = task.batches(start)
    metrics: dict = {}
    running = torch.zeros((), device=ranks.device)     # sum of the losses since the last log, on the device
    skipped = torch.zeros((), device=ranks.device)     # steps left out since the start for a loss that was not finite
    began, counted, since = time.perf_counter(), 0, time.perf_counter()
    for step in range(start, total):
        factor = lr_factor(step, total, cfg.schedule, cfg.warmup)
        for group in optimizer.param_groups:
            group["lr"] = base_lr * factor
        shown = task.begin_step(step, factor)

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
        running += loss.where(~skip, 0)
        skipped += skip
        counted += 1
        bar.update()

        done = step + 1
        if done % cfg.log_every == 0 or done == total:
            row = {"step": done, "samples": done * cfg.batch_size, "loss": running.item() / counted,
                   "lr": base_lr * factor, **shown, "skipped": int(skipped.item()),
                   "images_per_second": counted * cfg.batch_size / (time.perf_counter() - since)}
            eta = (time.perf_counter() - began) / (done - start) * (total - done)
            log.info(f"step {done}/{total} loss {row['loss']:.4f} lr {row['lr']:.2e} margin {row['margin']:.2f} "
                     f"{row['images_per_second']:.0f} img/s ETA {eta / 60:.1f} min"
                     + (f" skipped {row['skipped']} steps of non-finite loss" if row["skipped"] else ""))
            bar.set_postfix_str(f"loss {row['loss']:.3f}, {row['images_per_second']:.0f} img/s")
            if results:
                results.write(row)
            running.zero_()
            counted, since = 0, time.perf_counter()

        evaluating = bool(cfg.eval_data) and (done == total or cfg.eval_every > 0 and done % cfg.eval_every == 0)
        if evaluating:
            metrics = evaluate(task, done, ranks, log)
            if results and metrics:
                results.write({"step": done, "samples": done * cfg.batch_size, "auroc": metrics["auroc"],
                               "tpr_at_fpr_1e-4": metrics["tpr_at_fpr"]["1e-4"], "top1": metrics["top1"]})
        if evaluating or done == total or cfg.save_every and done % cfg.save_every == 0:
            best = save(output, task, optimizer, done, best, metrics if evaluating else {}, ranks)
            since = time.perf_counter()
    bar.close()
    if results:
        results.close()
    log.info(f"done: {output}")
    return metrics


def make_output(cfg, ranks: Ranks) -> Path:
    """The run's folder, with its resolved config."""
    output = Path(cfg.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        if ranks.rank == 0:
            save_config(cfg, output)
    except OSError as error:
        raise UserError(f"output={output}: cannot be written ({error.strerror})") from None
    return output


def make_optimizer(network: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, https://arxiv.org/abs/1711.05101; norms and biases, the parameters of one dimension, do not decay."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
              {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, fused=True)


def resume(cfg, output: Path, task, optimizer) -> tuple[int, float | None]:
    """(step to go on from, best AUROC so far): from the checkpoint that `resume` asks for, or (0, None)."""
    if cfg.resume == "false":
        return 0, None
    last = output / "checkpoints" / "last"
    if cfg.resume == "auto" and not last.exists():
        return 0, None
    folder = last if cfg.resume == "auto" else Path(cfg.resume)
    manifest = read_manifest(folder, task.must_agree())
    load_checkpoint(folder, manifest, task.network, optimizer, task.head)
    return manifest["step"], manifest["best"]


def evaluate(task, step: int, ranks: Ranks, log) -> dict:
    """The task's metrics, found by rank 0 and told to all; {} when they could not be (a diverged network), so that
    the run goes on and its checkpoint is still written."""
    said = [{}]
    if ranks.rank == 0:
        try:
            said = [task.evaluate()]
            log.info(f"eval {step}/{task.total_steps} auroc {said[0]['auroc']:.4f} "
                     f"tpr@1e-4 {said[0]['tpr_at_fpr']['1e-4']:.4f} top1 {said[0]['top1']:.4f}")
        except UserError as error:
            log.warning(f"eval {step}/{task.total_steps} not possible: {error}")
    if ranks.world > 1:
        torch.distributed.broadcast_object_list(said, src=0)
    return said[0]


def save(output: Path, task, optimizer, step: int, best: float | None, metrics: dict, ranks: Ranks) -> float | None:
    """Write checkpoints/last, and checkpoints/best when this step's AUROC is the best; returns the best so far.

    `model.pt` and `eval.json` belong together: the best network, or the last one in a run that is never evaluated.
    """
    better = bool(metrics) and (best is None or metrics["auroc"] > best)
    best = metrics["auroc"] if better else best
    network = task.network.state_dict()
    for name in ("last", "best") if better else ("last",):
        save_checkpoint(output / "checkpoints" / name, network, optimizer, task.head,
                        {"step": step, "best": best, **task.must_agree()})
    if ranks.rank == 0 and (better or best is None):
        save_weights(network, output / "model.pt")
        (output / "eval.json").unlink(missing_ok=True)
        if better:
            (output / "eval.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return best


class Results:
    """`results.csv` and TensorBoard. A run that goes on from step `start` first drops the rows after it."""

    def __init__(self, output: Path, start: int):
        file = output / "results.csv"
        kept = []
        if start and file.exists():
            with open(file, newline="") as old:
                kept = [row for row in csv.DictReader(old) if int(row["step"]) <= start]
        self.file = open(file, "w", newline="")
        self.writer = csv.DictWriter(self.file, COLUMNS)
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
