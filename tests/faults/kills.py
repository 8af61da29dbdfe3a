"""Kill ranks of runs at random moments, and resume with another number of ranks: is anything lost, skipped or done twice?

    python -m tests.faults.kills --rounds 50
    python -m tests.faults.kills --rounds 10 --seed 3

A round starts or resumes a run with 1, 2 or 3 ranks, and kills one rank or all of them (kill -9) at a random moment, which
may be in the middle of a checkpoint. After some rounds the newest checkpoint is damaged: cut off, or one bit changed. The
surviving ranks must end by themselves, with one line each. A run is killed up to three times and then continues to its end.
There it is compared with a run that was never killed.
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
from tqdm import tqdm

from engine.checkpoint import damage
from engine.progress import checkpoint_steps
from inference.cli import Parser, run_cli
from inference.errors import UserError
from tasks import registration as tasks
from tests.helpers.ranks import FRESH, join
from tests.helpers.runs import losses_of, make_images, rows, settings
from train_v2 import train

BATCH = 13      # of settings()
PATIENCE = 60   # seconds after which the surviving ranks must have ended
KILLS = 3       # of a run, at most


def rank_of_a_run(rank, world, folder, output, attempt, double, more):
    """One process of a run. Writes its stderr to the file `said-...`, and the samples of each step to `taken-...`."""
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
        Path(f"{output}/joined-{attempt}-{rank}").touch()
        train(settings(folder, f"{output}/run", "save_every=3", "keep_checkpoints=3", "log_every=2", "resume=auto", *more),
              ranks)
    run_cli(main)


class Run:
    """One run of `steps` steps in the folder `output`, in one or more attempts. `double`: in float64."""

    def __init__(self, folder: Path, output: Path, steps: int, double: bool, more: tuple[str, ...]):
        self.folder, self.output, self.steps, self.double = folder, output, steps, double
        self.more = (f"max_steps={steps}", *more)
        self.worlds: list[int] = []  # number of ranks of each attempt
        self.starts: list[int] = []  # step that each attempt must resume from
        output.mkdir(parents=True)

    def attempt(self, world: int, draw: random.Random | None = None, victims=()) -> bool:
        """Run to the end, or, with `draw`, until the ranks `victims` are killed at a random moment. Returns whether the run
        is at its end. Raises AssertionError when a rank hangs, or ends without the one line that says why."""
        number, context = len(self.worlds), multiprocessing.get_context(FRESH)
        self.worlds.append(world)
        checkpoints = self.output / "run/checkpoints"
        self.starts.append(max((step for step in checkpoint_steps(checkpoints)
                                if damage(checkpoints / f"step-{step}") is None), default=0))
        ranks = [context.Process(target=rank_of_a_run, args=(rank, world, self.folder, self.output, number, self.double,
                                                             self.more)) for rank in range(world)]
        for process in ranks:
            process.start()
        if draw:
            # While the ranks build the network and load the checkpoint (step < 0), or during a step. Not before they have
            # joined a group: until then only torchrun notices that a rank is gone.
            step = draw.randrange(-4, max(1, self.steps - self.starts[-1] - 4))
            while all(process.is_alive() for process in ranks) and not (
                    len(list(self.output.glob(f"joined-{number}-*"))) == world and self.steps_begun(number) > step):
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.1 if step >= 0 else 1))
            for rank in victims:
                ranks[rank].kill()
        deadline = time.monotonic() + PATIENCE
        for process in ranks:
            process.join(max(0, deadline - time.monotonic()) if draw else None)
        hanging = [process.kill() or rank for rank, process in enumerate(ranks) if process.is_alive()]
        assert not hanging, f"attempt {number}: ranks {hanging} hang"
        for rank, process in enumerate(ranks):
            said = (self.output / f"said-{number}-{rank}").read_text() if process.exitcode != -signal.SIGKILL else ""
            assert "Traceback" not in said and said.count("error:") == (process.exitcode == 2), said
            assert process.exitcode in (0, 2) or process.exitcode == -signal.SIGKILL and rank in victims, process.exitcode
        return all(process.exitcode == 0 for process in ranks)

    def steps_begun(self, attempt: int) -> int:
        """The number of steps that rank 0 has begun in an attempt."""
        file = self.output / f"taken-{attempt}-0"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def damage_newest(self, draw: random.Random) -> bool:
        """Cut off a file of the newest checkpoint, or change one of its bits; not if it is the only checkpoint."""
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
        """For each step, how often each position was taken, in the attempt from which the later ones resumed."""
        effective: dict[int, Counter] = {}
        for number, world in enumerate(self.worlds):
            steps: dict[int, list] = {}
            for rank in range(world):
                file = self.output / f"taken-{number}-{rank}"
                for line in file.read_text().splitlines() if file.exists() else ():
                    step, *positions = map(int, line.split())
                    steps.setdefault(step, []).extend(positions)
            if steps:
                assert min(steps) == self.starts[number], f"attempt {number} starts at step {min(steps)}"
                effective = {step: positions for step, positions in effective.items() if step < min(steps)}
                effective.update((step, Counter(positions)) for step, positions in steps.items())
        return [effective[step] for step in sorted(effective)]

    def check(self, whole: "Run") -> float:
        """Compare the finished run with one that was never killed. Returns the largest relative difference."""
        assert self.samples() == [Counter(range(step * BATCH, (step + 1) * BATCH)) for step in range(self.steps)], "samples"
        expected = list(range(2, self.steps + 1, 2))
        assert rows(self.output / "run", "step") == board_steps(self.output / "run") == expected, "steps"
        mine, theirs = (np.asarray(losses_of(run.output / "run")) for run in (self, whole))
        difference = [float(np.abs(mine / theirs - 1).max())]
        mine, theirs = (state_of(run.output / "run/checkpoints/last") for run in (self, whole))
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            difference.append(float((mine[name].double() - value.double()).norm() / value.double().norm().clamp_min(1e-30)))
        return max(difference)


def state_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint; the rows of the class centers from all files joined."""
    state = {name: value for file in ("network", "optimizer")
             for name, value in load_file(checkpoint / f"{file}.safetensors").items()}
    parts = [load_file(file) for file in sorted(checkpoint.glob("centres-*"), key=lambda f: int(f.stem.split("-")[1]))]
    return {**state, **{name: torch.cat([part[name] for part in parts]) for name in parts[0]}}


def board_steps(output: Path) -> list[int]:
    """The steps of a run for which TensorBoard shows the loss."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns about steps that it skips
    board = EventAccumulator(str(output / "tensorboard"), {"scalars": 0})
    board.Reload()
    return [event.step for event in board.Scalars("loss")]


def kill_rounds(rounds: int, seed: int, place: Path, steps: int = 48, show: bool = False) -> dict:
    """`rounds` kills of runs of `steps` steps; then the last run continues to its end. Returns what happened, as numbers.
    Every kind of fault happens at least once in 4 rounds. Raises AssertionError where anything is wrong."""
    draw, made = random.Random(seed), Counter()
    folder = make_images(place / "data")
    # In float32, runs on one number of ranks must end equal bit for bit; in float64, on changing numbers, within 1e-9.
    kinds = {"changing": ([1, 2, 3], True), "1": ([1], False), "2": ([2], False), "3": ([3], False)}
    wholes, differences, began = {}, {}, time.monotonic()
    bar = tqdm(total=rounds, unit="kill", disable=None if show else True)
    while made["kills"] < rounds:
        number = made["runs"]
        kind = draw.choice(["changing", *kinds]) if number else "changing"
        worlds, double = kinds[kind]
        more = (f"seed={seed}", *(["sample_rate=0.5"] if number % 2 else []))
        if (kind, number % 2) not in wholes:
            whole = wholes[kind, number % 2] = Run(folder, place / f"whole-{kind}-{number % 2}", steps, double, more)
            assert whole.attempt(worlds[0])
        run, ended = Run(folder, place / f"run-{number}", steps, double, more), False
        while not ended:
            world = draw.choice([world for world in worlds if run.worlds[-1:] != [world]] or worlds)
            if made["kills"] < rounds and len(run.worlds) < KILLS:
                of_all = world > 1 and (not made["kills of all ranks"] or draw.random() < 0.3)
                ended = run.attempt(world, draw, range(world) if of_all else [draw.randrange(world)])
                if not ended:
                    made["kills"] += 1
                    made["kills of all ranks"] += of_all
                    if not made["damaged checkpoints"] or draw.random() < 0.25:
                        made["damaged checkpoints"] += run.damage_newest(draw)
                    bar.update()
            else:
                ended = run.attempt(world)
        made["runs"] += 1
        made["changes of ranks"] += sum(a != b for a, b in itertools.pairwise(run.worlds))
        differences[kind] = max(differences.get(kind, 0.0), run.check(wholes[kind, number % 2]))
        assert differences[kind] <= (1e-9 if double else 0), f"{kind}: {differences[kind]}"
    bar.close()
    measured = {f"difference, {kind} ranks": value for kind, value in differences.items()}
    return {"rounds": rounds, **made, **measured, "seconds": round(time.monotonic() - began)}


def main():
    parser = Parser(prog="python -m tests.faults.kills", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help="number of kills")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all random choices")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        try:
            made = kill_rounds(options.rounds, options.seed, Path(place), show=True)
        except AssertionError as error:
            raise UserError(f"seed {options.seed}: {error}") from error
    print("no run lost, no sample skipped or taken twice, no step twice in results.csv or TensorBoard, no rank hung")
    for name, value in made.items():
        print(f"{name:30} {value}")


if __name__ == "__main__":
    run_cli(main)
