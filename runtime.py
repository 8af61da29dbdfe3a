"""What every part of a run shares: user errors, the process group, schedules, and counter-based random numbers."""
import contextlib
import datetime
import hashlib
import logging
import math
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from inference.cli import first_line, printable, run_cli  # these live where torch is not needed
from inference.image import UserError, available_cores

__all__ = ["Ranks", "StopSignals", "UserError", "agreed", "bernoulli", "ema_decay", "first_line",
           "free_memory", "get_logger", "hash64", "lr_factor", "margin_factor", "normal", "permute",
           "printable", "process_group", "rank_and_world", "run_cli", "scaled_lr", "share_of", "uniform"]

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


# ---------------------------------------------------------------- messages
def get_logger(rank: int = 0, folder: Path | None = None) -> logging.Logger:
    """Logger `docmetric`: to stderr and to `folder/training.log` on rank 0, warnings alone on the others."""
    logger = logging.getLogger("docmetric")
    for handler in logger.handlers[:]:  # of an earlier run in this process
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = False
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    console = _TqdmHandler()
    console.setFormatter(_Line("%(message)s" if rank == 0 else f"[rank {rank}] %(message)s"))
    logger.addHandler(console)
    if rank == 0 and folder is not None:
        file = _LogFile(folder / "training.log", encoding="utf-8")
        file.setFormatter(_Line("%(asctime)s %(message)s"))
        logger.addHandler(file)
    return logger


class _Line(logging.Formatter):
    def format(self, record):
        return printable(super().format(record))  # messages have names of files in them


class _LogFile(logging.FileHandler):
    """On a full disk lines wait until there is room, or are lost at the end: no reason for a page of traceback at each."""

    def handleError(self, record):
        pass

    def close(self):
        with contextlib.suppress(OSError):
            super().close()


class _TqdmHandler(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record):
        from tqdm import tqdm
        tqdm.write(self.format(record), file=sys.stderr)


# ---------------------------------------------------------------- processes and devices
@dataclass(frozen=True)
class Ranks:
    """Who this process is: `rank` of `world` processes, computing on `device`."""
    rank: int
    world: int
    device: torch.device


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
        yield Ranks(rank, world, where)
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


def share_of(total: int, part: int, parts: int) -> range:
    """The contiguous share of `range(total)` that belongs to `part` of `parts`; the first shares take the remainder."""
    size, rest = divmod(total, parts)
    start = part * size + min(part, rest)
    return range(start, start + size + (part < rest))


def agreed(value: int) -> int:
    """The largest `value` of all ranks, the same on each. Between hosts alone: no GPU is waited for."""
    if not dist.is_initialized():
        return value
    largest = torch.tensor(value)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


class StopSignals:
    """`with StopSignals() as signals:` SIGTERM and SIGINT (Ctrl-C) no longer end the process: `signals.seen` is then the
    name of the one that came, else "". A second Ctrl-C ends it at once; schedulers that send SIGTERM twice do not."""

    def __init__(self):
        self.seen, self._since, self._before = "", 0.0, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {number: signal.signal(number, self._take) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number, frame):
        # Within a second it is the same Ctrl-C, from the terminal and once more from torchrun.
        if self.seen and number == signal.SIGINT and time.monotonic() - self._since > 1:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        if not self.seen:
            self.seen, self._since = signal.Signals(number).name, time.monotonic()


# ---------------------------------------------------------------- schedules: closed forms of the step
REFERENCE_BATCH = 512  # the global batch that the configs' learning rates are stated for


def scaled_lr(lr: float, batch_size: int, optimizer: str) -> float:
    """`lr`, stated for REFERENCE_BATCH, at a global batch of `batch_size`: linear for "sgd"
    (https://arxiv.org/abs/1706.02677), by the square root for "adamw" (https://arxiv.org/abs/2205.10287)."""
    ratio = batch_size / REFERENCE_BATCH
    return lr * (ratio if optimizer == "sgd" else ratio ** 0.5)


def lr_factor(step: int, total: int, schedule: str, warmup: float) -> float:
    """Factor on the base learning rate at `step` of `total`.

    Linear warm-up over the first `warmup` fraction (the first step is never at the full rate), then
    "polynomial" (power 1, to zero), "cosine" (SGDR, https://arxiv.org/abs/1608.03983) or "constant".
    """
    rising = int(round(warmup * total))
    if step < rising:
        return (step + 1) / (rising + 1)
    progress = (step - rising) / max(1, total - rising)
    if schedule == "polynomial":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0


def margin_factor(step: int, total: int, warmup: float) -> float:
    """Factor on the margin at `step`: grows linearly from 0 to 1 over the first `warmup` fraction of the run."""
    rising = warmup * total
    return 1.0 if step >= rising else step / rising


def ema_decay(step: int, decay: float) -> float:
    """Decay of the moving average of the weights at `step`: `decay`, but less at the start, where (1 + step) / (10 + step)
    holds the average to about the last tenth of the run so far, so that the first weights do not weigh on short runs."""
    return min(decay, (1 + step) / (10 + step))


# ---------------------------------------------------------------- counter-based random numbers
# Every random number of a run is a pure function of (seed, purpose, counters), so it does not depend on the
# number of ranks, on workers, or on what was drawn before; nothing needs to be saved to resume.
def _signed(value: int) -> int:
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts int64 arithmetically; a hash needs zeros


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def hash64(seed: int, purpose: str, *counters) -> torch.Tensor:
    """64 random bits as int64 for each combination of `counters` (ints or int64 tensors, broadcast together).

    SplitMix64 (Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195) chained over the counters;
    (seed, purpose) makes the starting key. The same on every device and in every process.
    """
    key = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    state = torch.tensor(_signed(int.from_bytes(key, "little")))
    for counter in counters:
        state = _mix(state + (torch.as_tensor(counter) + 1) * _signed(_GOLDEN))
    return state


def uniform(seed: int, purpose: str, *counters) -> torch.Tensor:
    """Uniform float64 in [0, 1), one for each combination of `counters`; see `hash64`."""
    return _shift_right(hash64(seed, purpose, *counters), 11).double() * 2.0 ** -53


def bernoulli(rate: float, seed: int, purpose: str, counter, ids: range, device=None) -> torch.Tensor:
    """bool `[len(ids)]`: for each id whether `uniform(seed, purpose, counter, id) < rate`, without 64 bits for every id."""
    chosen = torch.empty(len(ids), dtype=torch.bool, device=device)
    below = math.ceil(rate * 2 ** 53)  # on the 53 bits that `uniform` takes
    for part in chosen.split(1 << 15 if chosen.device.type == "cpu" else 1 << 24):  # a part's hashes stay in the cache
        start = ids.start + part.storage_offset()
        bits = hash64(seed, purpose, counter, torch.arange(start, start + len(part), device=device))
        torch.lt(_shift_right(bits, 11), below, out=part)
    return chosen


def normal(seed: int, purpose: str, *counters) -> torch.Tensor:
    """Standard normal float32 by Box and Muller (1958), one for each combination of `counters`; see `hash64`."""
    bits = hash64(seed, purpose, *counters)
    radius = ((_shift_right(bits, 32) + 1).float() * 2.0 ** -32).log_().mul_(-2).sqrt_()
    return radius * ((bits & 0xFFFFFFFF).float() * (2.0 ** -32 * 2 * math.pi)).cos_()


def permute(position: torch.Tensor, n: int, seed: int, purpose: str, epoch) -> torch.Tensor:
    """Entry `position` (int64, in [0, n)) of a random permutation of range(n), one permutation for each `epoch`.

    A Feistel network over the next power of four, walked until it lands inside (Black and Rogaway 2002,
    https://doi.org/10.1007/3-540-45760-7_9): no table, so ten million samples cost no memory and any position
    can be asked for alone.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    epoch = torch.as_tensor(epoch).expand_as(position)
    value = position.clone()
    outside = torch.ones_like(value, dtype=torch.bool)  # every value takes at least one turn
    while outside.any():
        at, of = value[outside], epoch[outside]
        left, right = at >> half, at & low
        for turn in range(4):
            left, right = right, left ^ (hash64(seed, purpose, of, turn, right) & low)
        value[outside] = (left << half) | right
        outside = value >= n
    return value
