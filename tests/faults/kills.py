"""Runs whose ranks are killed at random moments, which go on with another number of ranks: is anything lost, done twice or
left out?

    python -m tests.faults.kills --rounds 50 [--seed N]

A round starts a run with 1, 2 or 3 ranks, or lets it go on, and ends it by kill -9 of a rank, or of all, at a random moment,
be it in the middle of a checkpoint; before some rounds the newest checkpoint is cut off or gets a wrong bit. What is left of
the ranks must end by itself, with one line. Runs that get to their end are held against one that was never killed.
"""
import itertools
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.checkpoint import checkpoint_steps, damage
from inference.cli import Parser, run_cli
from inference.errors import UserError
from tasks import registration as tasks
from tests.helpers.ranks import FRESH, join
from tests.helpers.runs import losses_of, make_images, rows, settings
from train_v2 import train

STEPS, BATCH = 48, 13  # of settings()
PATIENCE = 60          # seconds in which the survivors must have ended


def rank_of_a_run(rank, world, folder, output, attempt, double, more):
    """One process of the run: its words in the file `said-...`, the samples of each step that it began in `taken-...`."""
    os.dup2(os.open(f"{output}/said-{attempt}-{rank}", os.O_CREAT | os.O_WRONLY), sys.stderr.fileno())
    torch.set_num_threads(1)
    if double:
        torch.set_default_dtype(torch.float64)
    taken = os.open(f"{output}/taken-{attempt}-{rank}", os.O_CREAT | os.O_WRONLY)
    losses = tasks.RegistrationTask.losses

    def noted(self, batch):
        os.write(taken, " ".join(map(str, [self.partial_fc.step, *batch["position"].tolist()])).encode() + b"\n")
        return losses(self, batch)
    tasks.RegistrationTask.losses = noted

    def main():
        ranks = join(rank, world, f"{output}/rendezvous-{attempt}")
        train(settings(folder, f"{output}/run", f"max_steps={STEPS}", "save_every=3", "keep_checkpoints=3", "log_every=2",
                       "resume=auto", *more), ranks)
    run_cli(main)


class Run:
    """One run in `output`, in as many attempts as it takes."""

    def __init__(self, folder: Path, output: Path, double: bool, more: tuple[str, ...]):
        self.folder, self.output, self.double, self.more = folder, output, double, more
        self.worlds: list[int] = []  # of the attempts
        self.starts: list[int] = []  # steps that each must go on from
        output.mkdir(parents=True)

    def attempt(self, world: int, kill_after: float | None = None, victims=()) -> bool:
        """Run on until the end, or until `victims` are killed; whether it is at its end. Raises AssertionError when a rank
        hangs or does not say in a line why it ended."""
        number, context = len(self.worlds), multiprocessing.get_context(FRESH)
        self.worlds.append(world)
        checkpoints = self.output / "run/checkpoints"
        self.starts.append(max((step for step in checkpoint_steps(checkpoints)
                                if damage(checkpoints / f"step-{step}") is None), default=0))
        ranks = [context.Process(target=rank_of_a_run, args=(rank, world, self.folder, self.output, number, self.double,
                                                             self.more)) for rank in range(world)]
        for process in ranks:
            process.start()
        if kill_after is not None:
            ranks[0].join(kill_after)
            for rank in victims:
                ranks[rank].kill()
        deadline = time.monotonic() + PATIENCE
        for process in ranks:
            process.join(max(0, deadline - time.monotonic()) if kill_after is not None else None)
        hanging = [process.kill() or rank for rank, process in enumerate(ranks) if process.is_alive()]
        assert not hanging, f"attempt {number}: ranks {hanging} hang"
        for rank, process in enumerate(ranks):
            said = (self.output / f"said-{number}-{rank}").read_text() if process.exitcode != -signal.SIGKILL else ""
            assert "Traceback" not in said and said.count("error:") == (process.exitcode == 2), said
            assert process.exitcode in (0, 2) or process.exitcode == -signal.SIGKILL and rank in victims, process.exitcode
        return all(process.exitcode == 0 for process in ranks)

    def spoil_newest(self, draw: random.Random) -> bool:
        """Cut off a file of the newest checkpoint, or turn one of its bits, if there is one before it."""
        steps = checkpoint_steps(self.output / "run/checkpoints")
        if len(steps) < 2:
            return False
        file = draw.choice(sorted((self.output / f"run/checkpoints/step-{steps[-1]}").iterdir()))
        data = bytearray(file.read_bytes())
        at = draw.randrange(len(data))
        if draw.random() < 0.5:
            data = data[:at]
        else:
            data[at] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
        return True

    def samples(self) -> list[Counter]:
        """Of each step how often which position was taken, in the attempt whose work the later ones went on from."""
        effective: dict[int, Counter] = {}
        for number, world in enumerate(self.worlds):
            steps: dict[int, list] = {}
            for rank in range(world):
                file = self.output / f"taken-{number}-{rank}"
                for line in file.read_text().splitlines() if file.exists() else ():
                    step, *positions = map(int, line.split())
                    steps.setdefault(step, []).extend(positions)
            if steps:
                assert min(steps) == self.starts[number], f"attempt {number} begins with step {min(steps)}"
                effective = {step: positions for step, positions in effective.items() if step < min(steps)}
                effective.update((step, Counter(positions)) for step, positions in steps.items())
        return [effective[step] for step in sorted(effective)]

    def check(self, whole: "Run") -> float:
        """Hold the finished run against one that was never killed; the largest relative difference."""
        assert self.samples() == [Counter(range(step * BATCH, (step + 1) * BATCH)) for step in range(STEPS)], "samples"
        expected = list(range(2, STEPS + 1, 2))
        assert rows(self.output / "run", "step") == board_steps(self.output / "run") == expected, "steps"
        mine, theirs = (np.asarray(losses_of(run.output / "run")) for run in (self, whole))
        difference = [float(np.abs(mine / theirs - 1).max())]
        mine, theirs = (state_of(run.output / "run/checkpoints/last") for run in (self, whole))
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            difference.append(float((mine[name].double() - value.double()).norm() / value.double().norm().clamp_min(1e-30)))
        return max(difference)


def state_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, the centres' rows together."""
    state = {name: value for file in ("network", "optimizer")
             for name, value in load_file(checkpoint / f"{file}.safetensors").items()}
    parts = [load_file(file) for file in sorted(checkpoint.glob("centres-*"), key=lambda f: int(f.stem.split("-")[1]))]
    return {**state, **{name: torch.cat([part[name] for part in parts]) for name in parts[0]}}


def board_steps(output: Path) -> list[int]:
    """The steps of the loss that TensorBoard shows of a run."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of the steps that it leaves out
    board = EventAccumulator(str(output / "tensorboard"), {"scalars": 0})
    board.Reload()
    return [event.step for event in board.Scalars("loss")]


def kill_rounds(rounds: int, seed: int, place: Path, show: bool = False) -> dict:
    """So many rounds and then the end of the last run; what they came to. Raises AssertionError where anything is wrong."""
    draw, made = random.Random(seed), Counter()
    folder = make_images(place / "data")
    # Float32 on one number of ranks must end bit for bit the same; on changing ones float64 within 1e-9.
    kinds = {"1": ([1], False), "2": ([2], False), "3": ([3], False), "changing": ([1, 2, 3], True)}
    wholes, seconds, differences, began = {}, {}, {name: 0.0 for name in kinds}, time.monotonic()
    done = 0
    for number in itertools.count():
        kind = draw.choice(["changing", "changing", *kinds])
        worlds, double = kinds[kind]
        more = (f"seed={seed}", *(["sample_rate=0.5"] if number % 2 else []))
        if (kind, number % 2) not in wholes:
            whole = wholes[kind, number % 2] = Run(folder, place / f"whole-{kind}-{number % 2}", double, more)
            start = time.monotonic()
            assert whole.attempt(worlds[0])
            seconds[kind] = time.monotonic() - start
        run, ended = Run(folder, place / f"run-{number}", double, more), False
        while not ended:
            world = draw.choice(worlds)
            if done < rounds:
                victims = range(world) if draw.random() < 0.3 else [draw.randrange(world)]
                ended = run.attempt(world, draw.uniform(0.2, 1.0) * seconds[kind], victims)
                done += not ended
                made["kills"] += not ended
                if not ended and draw.random() < 0.25:
                    made["spoilt checkpoints"] += run.spoil_newest(draw)
            else:
                ended = run.attempt(world)
            if show:
                print(f"\rround {done}/{rounds}, run {number}, {world} ranks, {time.monotonic() - began:.0f} s ", end="",
                      file=sys.stderr, flush=True)
        made["runs"] += 1
        made["changes of ranks"] += sum(a != b for a, b in itertools.pairwise(run.worlds))
        differences[kind] = max(differences[kind], run.check(wholes[kind, number % 2]))
        assert differences[kind] <= (1e-9 if double else 0), f"{kind}: {differences[kind]}"
        if done >= rounds:
            break
    if show:
        print(file=sys.stderr)
    return {"rounds": done, **made, **{f"difference, {kind} ranks": value for kind, value in differences.items()
                                       if any(key[0] == kind for key in wholes)}, "seconds": round(time.monotonic() - began)}


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        try:
            made = kill_rounds(options.rounds, options.seed, Path(place), show=True)
        except AssertionError as error:
            raise UserError(f"seed {options.seed}: {error}") from error
    print("no run lost, no sample left out or taken twice, no step twice in results.csv or TensorBoard, no survivor hung")
    for name, value in made.items():
        print(f"{name:30} {value}")


if __name__ == "__main__":
    run_cli(main)
