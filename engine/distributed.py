"""The process group: who this process is, and what ranks say to each other."""
import contextlib
import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from inference.errors import UserError, first_line
from inference.image import available_cores


@dataclass(frozen=True)
class Ranks:
    """Who this process is: `rank` of `world` processes, computing on `device`; `store`: where they leave words for each
    other, None for one process alone."""
    rank: int
    world: int
    device: torch.device
    store: dist.Store | None = None


@contextlib.contextmanager
def process_group(device: str = "auto"):
    """Yield this process's `Ranks`; joins the group that torchrun describes, if there is one, and leaves it at the end.

    `device` is "auto" (CUDA where there is any), "cpu" or "cuda". NCCL between GPUs, gloo between CPUs.
    A single process makes no group at all, so that plain `python` needs no port.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={device}: not known; choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: this machine shows no CUDA device; use device=auto or device=cpu")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, local_world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    use_cuda = device != "cpu" and torch.cuda.is_available()
    if use_cuda:
        if local_rank >= torch.cuda.device_count():
            raise UserError(f"rank {rank} wants GPU {local_rank} of {torch.cuda.device_count()}: "
                            f"start torchrun with --nproc_per_node={torch.cuda.device_count()}")
        torch.cuda.set_device(local_rank)
        where = torch.device("cuda", local_rank)
    else:
        where = torch.device("cpu")
        # torchrun sets one thread per process; the ranks of a CPU run share the cores instead.
        torch.set_num_threads(max(1, available_cores() // local_world))
    store = None
    if world > 1:
        try:
            store, *_ = next(rendezvous("env://", rank, world, timeout=datetime.timedelta(hours=1)))
            if local_world == world:
                # When torchrun has restarted the processes, its store may still hold where those before them listened. (On
                # several nodes the counts need not agree; there `--rdzv_backend=c10d` gives each start a store of its own.)
                store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo", store=store, rank=rank, world_size=world,
                                    timeout=datetime.timedelta(days=7))  # watchdog.py is what looks for stalls
        except Exception as error:
            raise UserError(f"cannot join the process group at {os.environ.get('MASTER_ADDR')}:"
                            f"{os.environ.get('MASTER_PORT')} ({first_line(error)}); "
                            "choose another port with torchrun --master_port") from None
    try:
        yield Ranks(rank, world, where, store)
    finally:
        if world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """(rank, number of ranks) of the process group; (0, 1) without one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take: on its GPU, or its share of the host's, swap and a container's limit counted;
    a very large number where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = 1 << 62
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = sum(int(lines[name].split()[0]) << 10 for name in ("MemAvailable", "SwapFree"))
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def shard_range(total: int, part: int, parts: int) -> range:
    """The contiguous share of `range(total)` that belongs to `part` of `parts`; the first shares take the remainder."""
    size, rest = divmod(total, parts)
    start = part * size + min(part, rest)
    return range(start, start + size + (part < rest))


def all_reduce_max(value: int) -> int:
    """The largest `value` of all ranks, the same on each. Between hosts alone: no GPU is waited for."""
    return begin_all_reduce_max(value)()


def begin_all_reduce_max(value: int) -> Callable[[], int]:
    """`all_reduce_max` under way: the function returned waits for it, and gives the largest value."""
    if not dist.is_initialized():
        return lambda: value
    largest = torch.tensor(value)
    work = dist.all_reduce(largest, dist.ReduceOp.MAX, async_op=True)

    def wait() -> int:
        work.wait()
        return int(largest)
    return wait


def global_mean(values: torch.Tensor, count: torch.Tensor | int | None = None) -> torch.Tensor:
    """The sum of `values` over all ranks, divided by that of `count` (None: how many values there are): with one value for
    each sample `[B_local]` the mean over the global batch, however unevenly it is shared; with the sums and counts of what
    a loss is normalized by, such as objects, their ratio.

    Every rank gets the same number, so a loss that is not finite is skipped by all or by none. The gradient of `values` is
    the plain one times the number of ranks: DistributedDataParallel takes the mean over the ranks.
    """
    total = values.sum()
    if isinstance(count, torch.Tensor):
        count = count.to(total.device, total.dtype, non_blocking=True).sum()
    else:  # filled on the device: a tensor made of a number would be copied there, and waited for
        count = total.new_full((), len(values) if count is None else count)
    world = rank_and_world()[1]
    sums = torch.stack([total.detach(), count])
    if world > 1:
        dist.all_reduce(sums)
    mean, scaled = sums[0] / sums[1].clamp_min(1), total * (world / sums[1].clamp_min(1))
    return mean + (scaled - scaled.detach())  # the value is exactly the mean, the gradient that of `scaled`
