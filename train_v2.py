"""Train what a config says: an embedding network over sharded class centers, or another task of tasks/.

    python train_v2.py configs/demo                                                    # one process, CPU or GPU
    torchrun --nproc_per_node=8 train_v2.py configs/lcnet_cos data=DIR output=DIR      # 8 GPUs
    torchrun --nnodes=2 --node_rank=0 --master_addr=HOST --nproc_per_node=8 train_v2.py configs/lcnet_cos data=DIR
    torchrun --nnodes=2 --node_rank=1 --master_addr=HOST --nproc_per_node=8 train_v2.py configs/lcnet_cos data=DIR

    python train_v2.py CONFIG --help                                                   # all keys of that config's task

Any key can follow the config as key=value. Everything the run makes lies in its `output` folder.
"""
import contextlib
import itertools
import json
import math
import sys
from pathlib import Path

import torch
from torch import nn

from configs import keys_of, load_config, save_config
from engine import checkpoint
from engine.checkpoint import Checkpoints, save_weights
from engine.distributed import Ranks, process_group, shard_range
from engine.due import Due
from engine.ema import Ema
from engine.guard import StepGuard
from engine.log import get_logger
from engine.metrics import MetricLogger, Results
from engine.optimizer import load_optimizer_state, make_optimizer, optimizer_state, set_rates
from engine.parallel import prepare
from engine.progress import checkpoint_steps
from engine.random import seed_step
from engine.schedules import lr_factor
from engine.signals import StopSignals
from engine.watchdog import Watchdog
from inference.cli import run_cli
from inference.errors import UserError
from tasks import Evaluation, Task, build_task

OF_A_RUN = ("config.json", "run.json", "results.csv", "training.log", "tensorboard", "checkpoints", "model.pt",
            "model.onnx", "eval.json")


def main():
    arguments = [word for word in sys.argv[1:] if word not in ("-h", "--help")]
    if len(arguments) < len(sys.argv) - 1:
        print(usage(arguments))
        return
    if not arguments or arguments[0].startswith("-"):
        raise UserError("usage: train_v2.py CONFIG [key=value ...] (see --help); configs/ holds the configs")
    cfg = load_config(arguments[0], arguments[1:])
    with process_group(cfg.device) as ranks:
        train(cfg, ranks)


def train(cfg, ranks: Ranks) -> dict:
    """The run of `cfg` from its start, or from a checkpoint, to its end or until SIGTERM or SIGINT asks any rank to stop:
    then all of them save after the step and return. Returns the evaluation of the last step, {} without one."""
    # torchrun sends SIGTERM to the ranks that are left when one dies: they must not end before they have said what happened.
    with contextlib.ExitStack() as to_the_end, Watchdog(ranks, cfg.stall_minutes) as watchdog:
        return Run(cfg, ranks, watchdog).loop(to_the_end)


class Run:
    """A run on one rank: what is made before the first step, the loop over steps, and what is done between steps."""

    def __init__(self, cfg, ranks: Ranks, watchdog: Watchdog):
        self.cfg, self.ranks, self.watchdog, self.output = cfg, ranks, watchdog, Path(cfg.output)
        self.log = get_logger(ranks.rank)
        torch.set_float32_matmul_precision(cfg.float32_matmul_precision)

        self.task: Task = build_task(cfg, ranks)
        self.task.forward, cannot = prepare(self.task.model, self.task.example, ranks, cfg.compile, cfg.precision)
        self.optimizer = make_optimizer(self.task.param_groups(), cfg.batch_size)
        even_from = round((1 - cfg.swa) * self.task.total_steps) if cfg.swa else None
        self.ema = Ema(self.task.model, cfg.ema, even_from) if cfg.ema or cfg.swa else None
        earlier = self.resume()
        self.start, self.total = earlier.get("step", 0), self.task.total_steps
        self.best = earlier.get("best"), earlier.get("best_step")  # score and step
        info = {**self.task.describe(), "world": ranks.world, "device": str(ranks.device), "torch": torch.__version__}
        self.results = begin_output(self.output, cfg, info, self.start) if ranks.rank == 0 else None
        self.log.info("run: " + ", ".join(f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}"
                                          for key, value in info.items() if not isinstance(value, (list, dict))))
        compiled = [f"compile=true: not possible here ({cannot}); continuing without"] if cannot else []
        for line in compiled + self.task.notes:
            self.log.info(line)

    def loop(self, to_the_end: contextlib.ExitStack) -> dict:
        cfg, task, optimizer, ranks = self.cfg, self.task, self.optimizer, self.ranks
        guard, metrics, watchdog, found, done = self.guard, self.metrics, self.watchdog, None, self.start
        signals = to_the_end.enter_context(StopSignals())
        with (contextlib.closing(task.batches(self.start)) as batches,
              Checkpoints(self.output / "checkpoints", cfg.keep_checkpoints) as checkpoints):
            due = Due(cfg, self.total, task.evaluates, signals, checkpoints)
            for step in range(self.start, self.total):
                factor = lr_factor(step, self.total, cfg.schedule, cfg.warmup)
                rates, shown = set_rates(optimizer, factor), task.begin_step(step, factor)
                guard.begin()
                for micro in range(cfg.accumulate):
                    # A micro-batch counts by its share of the batch; gradients cross ranks at the last one alone.
                    share = len(shard_range(cfg.batch_size, micro, cfg.accumulate)) / cfg.batch_size
                    last = micro == cfg.accumulate - 1
                    watchdog.at(step + 1, "loading images")
                    batch = next(batches)
                    watchdog.at(step + 1, "computing")
                    seed_step(cfg.seed, step, micro, ranks.rank)
                    with contextlib.nullcontext() if last or ranks.world == 1 else task.forward.no_sync():
                        terms = {name: share * term for name, term in task.losses(batch).items()}
                        if last:
                            due.ask()                              # answered while the gradients are computed
                        sum(terms.values()).backward()
                    metrics.add(terms)
                norm = nn.utils.clip_grad_norm_(task.model.parameters(), cfg.clip or math.inf)
                skip = guard.check(metrics.loss, norm)
                optimizer.found_inf = skip.float()                 # a fused optimizer skips by this flag on the device
                optimizer.step()
                optimizer.zero_grad()
                guard.end(skip)
                task.finish_step(skip)
                if self.ema:
                    self.ema.update(step, skip)
                metrics.end_step(skip)

                done = step + 1
                if done % cfg.log_every == 0 or done == self.total:
                    row = metrics.write(done, rates, shown, guard.skipped)
                    if self.results:
                        self.results.write(row)
                    guard.refuse(done)
                actions = due.after(done)
                if actions.save:
                    with metrics.clock.paused():
                        found = self.evaluate(done) if actions.evaluate else None
                        self.save(checkpoints, done, found)
                if actions.stop:
                    break
        metrics.close()
        if self.results:
            self.results.close()
        self.log.info(f"done: {self.output}" if done == self.total else f"stopped after step {done}/{self.total} by "
                      f"{signals.seen or 'a signal to another rank'}; resume=auto continues from there")
        return found.document if found else {}

    def evaluate(self, step: int) -> Evaluation | None:
        """The task's evaluation, with the averaged weights where there are any, made by rank 0 and told to all; None when it
        cannot be made (a diverged network), so that the run continues and its checkpoint is still written."""
        self.watchdog.at(step, "evaluating")
        said = [None]
        if self.ranks.rank == 0:
            try:
                with self.ema.applied() if self.ema else contextlib.nullcontext():
                    found, = said = [self.task.evaluate()]
                if found:
                    self.log.info(f"eval {step}/{self.total} "
                                  + " ".join(f"{name} {value:.4f}" for name, value in found.summary.items()))
                    self.results.write({"step": step, "samples": step * self.cfg.batch_size, **found.summary})
            except UserError as error:
                self.log.warning(f"eval {step}/{self.total} not possible: {error}")
        if self.ranks.world > 1:
            torch.distributed.broadcast_object_list(said, src=0)
        return said[0]

    def save(self, checkpoints: Checkpoints, step: int, found: Evaluation | None) -> None:
        """Begin to write the checkpoint of this step, and with it `model.pt` and `eval.json`, which belong together: of the
        best network, or the last one in a run that is never evaluated."""
        self.watchdog.at(step, "saving")
        better = found is not None and found.better_than(self.best[0])
        if better:
            self.best = found.score, step
        replicated = {"network": self.task.model.state_dict(), "optimizer": optimizer_state(self.optimizer)}
        if self.ema:
            replicated["average"] = self.ema.state_dict()
        prefix = next(name + "." if name else "" for name, module in self.task.model.named_modules()
                      if module is self.task.published)

        def publish(copies):
            weights = copies["average" if self.ema else "network"]
            save_weights({name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)},
                         self.output / "model.pt")
            (self.output / "eval.json").unlink(missing_ok=True)
            if better:
                (self.output / "eval.json").write_text(json.dumps(found.document, indent=2) + "\n")
        checkpoints.save(step, replicated, self.sharded_rows(), {**self.metrics.counters(), **self.guard.counters()},
                         {"best": self.best[0], "best_step": self.best[1], **self.task.compatibility_keys()},
                         publish if better or self.best[0] is None else None)

    def resume(self) -> dict:
        """Load the checkpoint that the config asks for; returns its manifest, {} where there is none to resume from."""
        folder = checkpoint.find(self.cfg.resume, self.output / "checkpoints")
        if folder is None:
            self.count({})
            return {}
        manifest = checkpoint.read_manifest(folder, self.task.compatibility_keys())
        states = checkpoint.load(folder, manifest, self.sharded_rows())
        with checkpoint.damage_named(folder):
            self.task.model.load_state_dict(states["network"])
            load_optimizer_state(self.optimizer, states["optimizer"])
            if self.ema:  # it begins as the network where the run had no average so far
                self.ema.load_state_dict(states.get("average", states["network"]))
            for head in self.task.sharded.values():
                head.resumed(manifest["step"], manifest["step"] - int(manifest["skipped"]))
            self.count(manifest)
        return manifest

    def count(self, earlier: dict) -> None:
        """Begin the counters of the run, where a checkpoint's manifest left them."""
        ranks, cfg, start = self.ranks, self.cfg, earlier.get("step", 0)
        self.guard = StepGuard(self.task.model, ranks.device, cfg.max_skipped, earlier)
        self.metrics = MetricLogger(cfg.batch_size, start, self.task.total_steps, ranks.device, earlier, ranks.rank == 0)

    def sharded_rows(self) -> dict[str, tuple[range, dict[str, torch.Tensor]]]:
        return {name: (head.classes, head.row_state()) for name, head in self.task.sharded.items()}


def begin_output(output: Path, cfg, info: dict, start: int) -> Results:
    """Make the run's folder, with its resolved config, its log, and its table of results, which is returned. A run that
    starts anew moves what an earlier one left there aside; one that resumes from `start` the checkpoints of later steps,
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
        return Results(output, start)
    except OSError as error:
        raise UserError(f"output={output}: cannot be written ({error.strerror})") from None


def usage(arguments: list[str]) -> str:
    """The launch lines, and the keys with what they hold: of a config's task, or of registration."""
    cfg = load_config(arguments[0], arguments[1:]) if arguments else None
    lines = ["usage: train_v2.py CONFIG [key=value ...]\n", __doc__,
             f"keys of {arguments[0] if arguments else 'the task registration'}, with their values:"]
    for name, key in keys_of(cfg.task if cfg else "registration").items():
        limits = ", ".join(map(str, key.choices)) or key.limits
        lines.append(f"  {name}={cfg[name] if cfg else key.default}\n      {key.help}" + (f" ({limits})" if limits else ""))
    return "\n".join(lines)


if __name__ == "__main__":
    run_cli(main)
