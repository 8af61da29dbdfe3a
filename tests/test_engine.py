import math

import pytest
import torch

from engine.distributed import shard_range
from engine.random import hash64, normal, permute, uniform
from engine.schedules import lr_factor, margin_factor

MASK = (1 << 64) - 1


def splitmix(state):
    """SplitMix64's finaliser on Python integers."""
    state ^= state >> 30
    state = state * 0xBF58476D1CE4E5B9 & MASK
    state ^= state >> 27
    state = state * 0x94D049BB133111EB & MASK
    return state ^ state >> 31


def test_hash_is_splitmix64():
    start = hash64(3, "x").item() & MASK
    for first in (0, 1, 12345678901):
        for second in (0, 7):
            one = splitmix((start + (first + 1) * 0x9E3779B97F4A7C15) & MASK)
            two = splitmix((one + (second + 1) * 0x9E3779B97F4A7C15) & MASK)
            assert hash64(3, "x", first, torch.tensor([second])).item() & MASK == two
            assert hash64(3, "x", torch.tensor([first]), second).item() & MASK == two
    assert hash64(3, "y") != hash64(3, "x") != hash64(4, "x")


def test_uniform_and_normal_have_their_moments():
    u = uniform(0, "u", torch.arange(200_000))
    assert 0 <= u.min() and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.003 and abs(u.var() - 1 / 12) < 0.001
    z = normal(0, "z", torch.arange(100_000)[:, None], torch.arange(2))
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01 and z.isfinite().all()
    assert abs((z ** 4).mean() - 3) < 0.1
    assert abs(torch.corrcoef(z.T)[0, 1]) < 0.01


@pytest.mark.parametrize("n", [1, 2, 3, 24, 97, 1000, 4097])
def test_permute_visits_every_entry_once_and_differs_by_epoch(n):
    first, second = (permute(torch.arange(n), n, 0, "order", epoch) for epoch in (0, 1))
    assert sorted(first.tolist()) == list(range(n)) == sorted(second.tolist())
    if n > 20:
        assert (first == second).float().mean() < 0.2
        assert abs(torch.corrcoef(torch.stack([first, torch.arange(n)]).double())[0, 1]) < 5 / math.sqrt(n)
    both = permute(torch.arange(n).repeat(2), n, 0, "order", torch.arange(2).repeat_interleave(n))
    assert torch.equal(both, torch.cat([first, second]))  # any position can be asked for alone


def test_shares_are_contiguous_and_even():
    for total in (0, 1, 7, 24):
        for parts in (1, 2, 3, 5):
            shares = [shard_range(total, part, parts) for part in range(parts)]
            assert [i for share in shares for i in share] == list(range(total))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_schedules():
    assert lr_factor(0, 100, "polynomial", 0.1) == pytest.approx(1 / 11)  # the first step is not at the full rate
    assert lr_factor(10, 100, "polynomial", 0.1) == 1
    assert lr_factor(55, 100, "polynomial", 0.1) == pytest.approx(0.5)
    assert lr_factor(55, 100, "cosine", 0.1) == pytest.approx(0.5)
    assert lr_factor(99, 100, "cosine", 0.1) == pytest.approx((1 + math.cos(math.pi * 89 / 90)) / 2)
    assert lr_factor(99, 100, "constant", 0.1) == 1
    assert lr_factor(0, 1, "cosine", 0.0) == 1
    assert [margin_factor(step, 100, 0.4) for step in (0, 10, 40, 99)] == [0, 0.25, 1, 1]
    assert margin_factor(0, 100, 0.0) == 1
