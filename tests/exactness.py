"""How exact the sharded head and the training on several ranks are: relative errors, measured.

    python -m tests.exactness

The head: loss and both gradients against the plain formula in float64, for every margin, full and sampled, even and
uneven shards, a rank without positives, target cosines .3 to .95; and how much of the float32 bounds of helpers/head.py
they take. Training: 50 steps in float64 on 1, 2 and 3 ranks. The cases are those of the tests.
"""
import tempfile
from pathlib import Path

import numpy as np
import torch

from engine.distributed import Ranks
from inference.cli import Parser, run_cli
from tests.helpers.head import bounds, cases_for, errors, everything
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import CPU, centers, losses_of, make_images, settings
from train_v2 import train


def in_double(rank, world, folder):
    torch.set_default_dtype(torch.float64)
    train(settings(folder / "data", folder / str(world), "max_steps=50"), Ranks(rank, world, CPU))


def main(arguments=None):
    Parser(prog="python -m tests.exactness", description=__doc__).parse_args(arguments)
    head = [f"{'ranks':>5} {'dtype':>8} {'cases':>6} {'loss':>9} {'dX':>9} {'dW':>9}"]
    for world in (1, 2, 3):
        cases = cases_for(world)
        results = list(zip(*run_ranks(world, everything, cases)))
        for dtype in (torch.float32, torch.float64):
            found = np.array([errors(case, ranks) for case, ranks in zip(cases, results) if case[-1] == dtype])
            worst = " ".join(f"{value:9.1e}" for value in found.max(0))
            head.append(f"{world:5} {str(dtype)[6:]:>8} {len(found):6} {worst}")
            if dtype == torch.float32:
                allowed = np.array([bounds(case) for case in cases if case[-1] == dtype])[:, [0, 1, 1]]
                share = " ".join(f"{value:8.0%} " for value in (found / allowed).max(0))
                head.append(f"{'of what rounding may do':>21} {share}")
    runs = [f"{'ranks':>5} {'losses':>9} {'centers':>9}"]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_images(folder / "data")
        for world in (1, 2, 3):
            run_ranks(world, in_double, folder)
            losses, weights = np.array(losses_of(folder / str(world))), centers(folder / str(world))
            if world == 1:
                alone, weights_alone = losses, weights
            else:
                runs.append(f"{world:5} {np.abs(losses / alone - 1).max():9.1e} "
                            f"{(weights - weights_alone).norm() / weights_alone.norm():9.1e}")
    print("PartialFC against the plain float64 formula, largest relative error over the cases", *head, sep="\n")
    print("\n50 training steps in float64 against those of one rank, largest relative difference", *runs, sep="\n")


if __name__ == "__main__":
    run_cli(main)
