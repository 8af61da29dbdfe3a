"""Train an embedding network over sharded class centres.

    python train_v2.py configs/demo                                                    # one process, CPU or GPU
    torchrun --nproc_per_node=8 train_v2.py configs/lcnet_cos data=DIR output=DIR      # 8 GPUs
    torchrun --nnodes=2 --node_rank=0 --master_addr=HOST --nproc_per_node=8 train_v2.py configs/lcnet_cos data=DIR
    torchrun --nnodes=2 --node_rank=1 --master_addr=HOST --nproc_per_node=8 train_v2.py configs/lcnet_cos data=DIR

Any key of configs/base.py can follow as key=value. Everything the run makes lies in its `output` folder.
"""
import contextlib
import itertools
import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from configs import load_config, save_config
from engine.checkpoint import Checkpoints, checkpoint_steps, resume, save_weights
from engine.distributed import Ranks, all_reduce_max, process_group, shard_range
from engine.log import get_logger
from engine.metrics import Results
from engine.schedules import lr_factor, scaled_lr
from engine.signals import StopSignals
from engine.watchdog import Watchdog
from inference.cli import run_cli
from inference.errors import UserError
from tasks.registration import build_task

OF_A_RUN = ("config.json", "run.json", "results.csv", "training.log", "tensorboard", "checkpoints", "model.pt",
            "model.onnx", "eval.json")


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise UserError("usage: train_v2.py CONFIG [key=value ...]; configs/ holds the configs")
    cfg = load_config(sys.argv[1], sys.argv[2:])
    with process_group(cfg.device) as ranks:
        train(cfg, ranks)


def train(cfg, ranks: Ranks) -> dict:
    """The run of `cfg` from its start, or from a checkpoint, to its end or until SIGTERM or SIGINT asks any rank to stop:
    then all of them save after the step and return. Returns the evaluation of the last step, {} without one."""
    # torchrun sends SIGTERM to the ranks that are left when one dies: they must not end before they have said what happened.
    with contextlib.ExitStack() as to_the_end, Watchdog(ranks, cfg.stall_minutes) as watchdog:
        return loop(cfg, ranks, watchdog, to_the_end)


def loop(cfg, ranks: Ranks, watchdog: Watchdog, to_the_end: contextlib.ExitStack) -> dict:
    """What `train` does, under the eyes of `watchdog`."""
    output = Path(cfg.output)
    log = get_logger(ranks.rank)
    torch.set_float32_matmul_precision(cfg.float32_matmul_precision)

    task = build_task(cfg, ranks)
    optimizer = make_optimizer(task.network, cfg.weight_decay)
    base_lr = scaled_lr(cfg.lr, cfg.batch_size, "adamw")
    earlier = resume(cfg.resume, output / "checkpoints", task.compatibility_keys(), task.network, optimizer, task.partial_fc,
                     task.average)
    start = earlier.get("step", 0)
    total = task.total_steps
    info = {**task.describe(), "world": ranks.world, "device": str(ranks.device), "torch": torch.__version__}
    results = begin_output(output, cfg, info, start, task.columns) if ranks.rank == 0 else None
    log.info("run: " + ", ".join(f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}"
                                 for key, value in info.items()))
    for line in task.notes:
        log.info(line)
    bar = tqdm(total=total, initial=start, unit="step", disable=ranks.rank > 0 or not sys.stderr.isatty())

    metrics: dict = {}
    # BatchNorm's statistics change in the forward pass, before anyone knows whether the step counts.
    statistics = [buffer for buffer in task.network.buffers() if buffer.is_floating_point()]
    sizes = [buffer.numel() for buffer in statistics]
    # Sum of the losses and number of the steps since the last log; steps left out for a loss that was not finite, since the
    # start and in a row. They go into the checkpoint, so that the log goes on as if there had been no stop.
    running = torch.tensor(earlier.get("running", [0.0, 0.0]), device=ranks.device)
    skipped, in_a_row = (torch.tensor(earlier.get(name, 0.0), device=ranks.device) for name in ("skipped", "in_a_row"))
    best = earlier.get("best"), earlier.get("best_step")
    clock, done = Clock(), start
    signals = to_the_end.enter_context(StopSignals())
    with (contextlib.closing(task.batches(start)) as batches,
          Checkpoints(output / "checkpoints", cfg.keep_checkpoints) as checkpoints):
        for step in range(start, total):
            factor = lr_factor(step, total, cfg.schedule, cfg.warmup)
            for group in optimizer.param_groups:
                group["lr"] = base_lr * factor
            shown = task.begin_step(step, factor)
            before = flat(statistics)

            loss = torch.zeros((), device=ranks.device)
            for micro in range(cfg.accumulate):
                # A micro-batch counts by its share of the batch; gradients cross ranks at the last one alone.
                share = len(shard_range(cfg.batch_size, micro, cfg.accumulate)) / cfg.batch_size
                last = micro == cfg.accumulate - 1
                watchdog.at(step + 1, "loading images")
                batch = next(batches)
                watchdog.at(step + 1, "computing")
                with contextlib.nullcontext() if last or ranks.world == 1 else task.trained.no_sync():
                    term = share * sum(task.losses(batch).values())
                    term.backward()
                loss += term.detach()
            norm = nn.utils.clip_grad_norm_(task.network.parameters(), cfg.clip or math.inf)
            skip = ~(loss.isfinite() & norm.isfinite())
            optimizer.found_inf = skip.float()             # fused optimisers leave the step out by this flag on the device
            optimizer.step()
            optimizer.zero_grad()
            kept = torch.where(skip, before, flat(statistics)).split(sizes)
            torch._foreach_copy_(statistics, [part.view_as(buffer) for part, buffer in zip(kept, statistics)])
            task.finish_step(skip)                         # after the statistics, which are averaged with the weights
            running += torch.stack([loss.where(~skip, 0), (~skip).to(loss.dtype)])
            skipped += skip
            in_a_row = (in_a_row + 1) * skip
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
                if 0 < cfg.max_skipped <= in_a_row.item():
                    raise UserError(f"the loss or its gradient was not finite {int(in_a_row)} times in a row, up to step "
                                    f"{done}: lower lr, centres_lr or s, or raise warmup (max_skipped sets this limit)")

            evaluating = bool(cfg.eval_data) and (done == total or cfg.eval_every > 0 and done % cfg.eval_every == 0)
            # What any rank wants, 1: a checkpoint, 2: to stop after one. A signal may reach one alone, and clocks differ.
            wish = all_reduce_max(2 if signals.seen else int(checkpoints.due(cfg.save_minutes)))
            if evaluating or done == total or wish or cfg.save_every and done % cfg.save_every == 0:
                with clock.paused():
                    if evaluating:
                        watchdog.at(done, "evaluating")
                    metrics = evaluate(task, done, ranks, log) if evaluating else {}
                    if results and metrics:
                        results.write({"step": done, "samples": done * cfg.batch_size, **task.summary(metrics)})
                    watchdog.at(done, "saving")
                    counters = {"running": running, "skipped": skipped, "in_a_row": in_a_row}
                    best = save(checkpoints, output, task, optimizer, done, counters, best, metrics)
            if wish == 2:
                break
    bar.close()
    if results:
        results.close()
    log.info(f"done: {output}" if done == total else f"stopped after step {done}/{total} by "
             f"{signals.seen or 'a signal to another rank'}; resume=auto goes on from there")
    return metrics


def begin_output(output: Path, cfg, info: dict, start: int, columns: tuple[str, ...]) -> Results:
    """Make the run's folder, with its resolved config, its log, and its table of results, which is returned. A run that
    starts anew moves what an earlier one left there aside; one that goes on from `start` the checkpoints of later steps,
    damaged ones or of steps that it is now to take anew."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        later = [f"checkpoints/step-{step}" for step in checkpoint_steps(output / "checkpoints") if step > start]
        earlier = [output / name for name in (later if start else OF_A_RUN) if (output / name).exists()]
        if earlier:
            aside = next(folder for n in itertools.count(1) if not (folder := output / f"earlier-{n}").exists())
            for path in earlier:
                (aside / path.relative_to(output)).parent.mkdir(parents=True, exist_ok=True)
                path.rename(aside / path.relative_to(output))
        save_config(cfg, output)
        (output / "run.json").write_text(json.dumps(info, indent=2) + "\n")
        get_logger(0, output)
        return Results(output, columns, start)
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


def save(checkpoints: Checkpoints, output: Path, task, optimizer, step: int, counters: dict,
         best: tuple[float | None, int | None], metrics: dict) -> tuple[float | None, int | None]:
    """Begin to write the checkpoint of this step; returns the best score so far and its step.

    The first of `metrics` is the score. `model.pt` and `eval.json` belong together: the best network, or the last one in a
    run that is never evaluated.
    """
    score = next(iter(task.summary(metrics).values())) if metrics else None
    better = score is not None and (best[0] is None or score > best[0])
    best = (score, step) if better else best

    def publish(network):
        save_weights(network, output / "model.pt")
        (output / "eval.json").unlink(missing_ok=True)
        if better:
            (output / "eval.json").write_text(json.dumps(metrics, indent=2) + "\n")
    checkpoints.save(step, task.network.state_dict(), optimizer, task.partial_fc, counters,
                     {"best": best[0], "best_step": best[1], **task.compatibility_keys()},
                     publish if better or best[0] is None else None, task.average and task.average.state_dict())
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


if __name__ == "__main__":
    run_cli(main)
