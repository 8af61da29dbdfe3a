"""Counter-based random numbers: every random number of a run is a pure function of (seed, purpose, counters).

So none depends on the number of ranks, on workers, or on what was drawn before, and there is nothing to save to resume.
"""
import hashlib
import math

import torch

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


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


def seed_step(seed: int, step: int, part: int, rank: int) -> None:
    """Seed torch's own generators, of every device: dropout then depends on (seed, step, micro-batch, rank) alone, so that
    a resumed run draws the same."""
    torch.manual_seed(hash64(seed, "torch", step, part, rank).item() & (_MASK64 >> 1))
