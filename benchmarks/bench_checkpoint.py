"""What a checkpoint of 1 M x 256 class centers and their momentum costs the run: ours, and one that the run waits for.

    python benchmarks/bench_checkpoint.py [--quick] [--json] [--folder DIR]

The limit is copying the same bytes within memory (to the host, on a GPU). A step is one of the head with a hundredth of the
class centers; on a CPU it shares the cores with the writing. Takes 6 GB on the disk of DIR (default: the temporary folder)
and three times the class centers and their momentum in memory.
"""
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from side_by_side import Report, UserError, run_cli, synchronize

from engine.checkpoint import Checkpoints, damage, load, read_manifest
from engine.optimizer import optimizer_state
from losses import CosFace
from partial_fc import PartialFC

DEPTH, BATCH = 256, 64


def seconds(function) -> float:
    synchronize()
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def a_step(head: PartialFC, step: int) -> None:
    x = torch.ones(BATCH, DEPTH, device=head.weight.device, requires_grad=True)
    head.begin_step(step, 0.1, 1)
    head(x, torch.arange(BATCH)).backward()
    head.finish_step()
    synchronize()


def main():
    report = Report(__doc__, ("--folder", {"help": "where to write", "metavar": "DIR"}))
    classes, rounds = (2_000, 2) if report.quick else (1_000_000, 5)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = Path(tempfile.mkdtemp(dir=report.args.folder))
    try:
        bytes_needed = 3 * classes * DEPTH * 8
        if shutil.disk_usage(folder).free < bytes_needed:
            raise UserError(f"{folder}: {bytes_needed / 1e9:.1f} GB are needed there; choose another place with --folder")
        measure(report, folder, classes, rounds, device)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report.end()


def measure(report, folder: Path, classes: int, rounds: int, device: str) -> None:
    head = PartialFC(CosFace(64.0, 0.4), DEPTH, classes, sample_rate=0.01, update="fused", device=device)
    network = torch.nn.Linear(DEPTH, DEPTH, device=device)
    optimizer = torch.optim.AdamW(network.parameters())
    sharded = {"centres": (head.classes, head.row_state())}
    rows = list(head.row_state().values())
    name = f"checkpoint of {classes:,} x {DEPTH}, {sum(value.nbytes for value in rows) / 1e9:.2f} GB"
    host = [torch.empty(value.shape, pin_memory=value.is_cuda) for value in rows]
    stall, writing, copying, idle, busy = [], [], [], [], []
    with Checkpoints(folder, keep=1) as checkpoints:
        def save(step):
            replicated = {"network": network.state_dict(), "optimizer": optimizer_state(optimizer)}
            checkpoints.save(step, replicated, sharded, {}, {"best": None, "best_step": None})

        def save_and_wait(step):
            save(step)
            checkpoints.wait()

        first = seconds(lambda: save_and_wait(0))
        a_step(head, 0)
        for step in range(1, 2 * rounds, 2):  # they take turns, so that a noisy disk is noisy for both
            stall.append(seconds(lambda: (save(step), synchronize())))
            while checkpoints.writing or not busy:
                busy.append(seconds(lambda: a_step(head, step)))
            writing.append(seconds(lambda: save_and_wait(step + 1)))
            copying.append(seconds(lambda: [to.copy_(value) for to, value in zip(host, rows)]))
            idle.append(seconds(lambda: a_step(head, step)))
    stall, writing, copying, idle, busy = (statistics.median(times) * 1e3 for times in (stall, writing, copying, idle, busy))
    report.add(f"{name}: the run waits; until it is written; a copy", stall, writing, copying)
    report.add("  a step while it is written; with nothing else to do", busy, None, idle)
    report.add("  the first one, with its buffers to be made, until it is written", first * 1e3)
    last = folder / "last"
    manifest = read_manifest(last, {})
    report.add("  loading it", seconds(lambda: load(last, manifest, sharded)) * 1e3)
    report.add("  and its checksums before", seconds(lambda: damage(last)) * 1e3)


if __name__ == "__main__":
    run_cli(main)
