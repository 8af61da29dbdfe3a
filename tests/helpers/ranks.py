"""Real process groups for the tests: gloo over a file, so no port can be taken."""
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from engine.distributed import Ranks

# Where no GPU can be open, processes are forked from one that has only imported what takes them all seconds to import.
FRESH = "spawn" if torch.cuda.is_available() else "forkserver"
mp.get_context("forkserver").set_forkserver_preload(["train_v2"])


def join(rank: int, world: int, file: str | Path) -> Ranks:
    """Make this process one of `world` on a CPU, which meet at `file`; of one alone no group is made."""
    store = dist.FileStore(str(file), world) if world > 1 else None
    if store:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    return Ranks(rank, world, torch.device("cpu"), store)


def _entry(rank, world, folder, fn, args):
    torch.set_num_threads(1)
    join(rank, world, f"{folder}/rendezvous")
    torch.save(fn(rank, world, *args), f"{folder}/{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def run_ranks(world: int, fn, *args) -> list:
    """`fn(rank, world, *args)` in `world` fresh processes that form one group; their results in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_entry, (world, folder, fn, args), nprocs=world, start_method=FRESH)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]
