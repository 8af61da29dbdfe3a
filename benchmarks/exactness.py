"""How exact the sharded head and the training on several ranks are: relative errors, measured.

    python benchmarks/exactness.py

The head: loss and both gradients against the plain formula in float64, for every margin, full and sampled, even and
uneven shards, a rank without positives, target cosines .3 to .95: the cases of the tests. Training: 50 steps in float64
on 1, 2 and 3 ranks.
"""
import csv
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from configs import load_config  # noqa: E402
from engine.distributed import Ranks  # noqa: E402
from tests.helpers.head import cases_for, errors, everything  # noqa: E402
from tests.helpers.ranks import run_ranks  # noqa: E402
from train_v2 import train  # noqa: E402


def trained_in_double(rank: int, world: int, folder: Path) -> None:
    torch.set_default_dtype(torch.float64)
    train(load_config("lcnet_strong", [
        f"data={folder}/data", f"output={folder}/{world}", "network=test_convnext", "norm=ln", "head=flatten",
        "image_size=32", "embedding_size=16", "expansion=8", "batch_size=13", "max_steps=50", "num_workers=0",
        "log_every=1", "device=cpu",
    ]), Ranks(rank, world, torch.device("cpu")))


def outcome(output: Path) -> tuple[np.ndarray, torch.Tensor]:
    """(losses `[steps]`, class centers `[C,D]`) of a run."""
    with open(output / "results.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    shards = sorted((output / "checkpoints" / "last").glob("centres-*"), key=lambda path: int(path.stem.split("-")[1]))
    return np.array(losses), torch.cat([load_file(path)["weight"] for path in shards])


def main():
    print("PartialFC against the plain float64 formula, largest relative error over the cases")
    print(f"{'ranks':>5} {'dtype':>8} {'cases':>6} {'loss':>9} {'dX':>9} {'dW':>9}")
    for world in (1, 2, 3):
        cases = cases_for(world)
        results = list(zip(*run_ranks(world, everything, cases)))
        for dtype in (torch.float32, torch.float64):
            found = np.array([errors(case, ranks) for case, ranks in zip(cases, results) if case[-1] == dtype])
            worst = " ".join(f"{value:9.1e}" for value in found.max(0))
            print(f"{world:5} {str(dtype)[6:]:>8} {len(found):6} {worst}", flush=True)

    print("\n50 training steps in float64 against those of one rank, largest relative difference")
    print(f"{'ranks':>5} {'losses':>9} {'centers':>9}")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "data").mkdir()
        for i in range(7):
            cv2.imwrite(str(folder / "data" / f"{i}.png"), np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8))
        for world in (1, 2, 3):
            run_ranks(world, trained_in_double, folder)
            losses, weights = outcome(folder / str(world))
            if world == 1:
                alone, weights_alone = losses, weights
            else:
                print(f"{world:5} {np.abs(losses / alone - 1).max():9.1e} "
                      f"{(weights - weights_alone).norm() / weights_alone.norm():9.1e}", flush=True)


if __name__ == "__main__":
    main()
