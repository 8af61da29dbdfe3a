"""What every run shares: random numbers, schedules and rates, what ranks agree on, keys of a config, tables of results."""
import csv
import math
from types import SimpleNamespace

import pytest
import torch
from easydict import EasyDict
from torch import nn

from engine.distributed import shard_range
from engine.due import Due
from engine.keys import Key
from engine.metrics import Results
from engine.optimizer import decay_groups, load_optimizer_state, make_optimizer, optimizer_state, set_rates
from engine.random import hash64, normal, permute, seed_step, uniform
from engine.schedules import lr_factor, margin_factor, scaled_lr
from engine.signals import StopSignals
from inference.errors import UserError
from tasks import Evaluation
from tests.helpers.ranks import run_ranks

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


@pytest.mark.parametrize("total, warmup", [(100, 0.3), (37, 0.1), (10, 0.25)])
def test_onecycle_is_torchs(total, warmup):
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), 1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=total, pct_start=warmup)
    for step in range(total):
        assert lr_factor(step, total, "onecycle", warmup) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        if step < total - 1:
            scheduler.step()


@pytest.mark.parametrize("total, warmup", [(1, 0.0), (1, 1.0), (2, 0.0), (5, 1.0), (3, 0.01)])
def test_onecycle_of_short_runs_stays_between_0_and_1(total, warmup):
    assert all(0 < lr_factor(step, total, "onecycle", warmup) <= 1 for step in range(total))


def test_rates_follow_their_stated_rule():
    """A text encoder's 2e-5 at batch 32 stays 2e-5, whatever the other groups do."""
    encoder, network = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [*decay_groups(network.named_parameters(), 1e-3, "sqrt", 0.1),
              *decay_groups(encoder.named_parameters(), 2e-5, "fixed", 0.0, "encoder")]
    for batch, expected in ((32, 1e-3 / 4), (512, 1e-3), (2048, 2e-3)):
        optimizer = make_optimizer(groups, batch)
        assert set_rates(optimizer, 1.0) == pytest.approx({"lr": expected, "lr/encoder": 2e-5})
        assert set_rates(optimizer, 0.5) == pytest.approx({"lr": expected / 2, "lr/encoder": 1e-5})
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected / 2] * 2 + [1e-5] * 2)
    assert scaled_lr(0.1, 64, "linear") == pytest.approx(0.1 / 8)


def test_the_optimizers_state_goes_through_plain_tensors():
    one, other = (nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last) for _ in range(2))
    optimizers = [make_optimizer(decay_groups(net.named_parameters(), 1e-3, "sqrt", 0.1), 512) for net in (one, other)]
    for _ in range(3):
        one(torch.rand(2, 3, 8, 8)).square().sum().backward()
        optimizers[0].step()
    tensors = {key: value.clone() for key, value in optimizer_state(optimizers[0]).items()}
    assert {key.split(".")[1] for key in tensors} == {"step", "exp_avg", "exp_avg_sq"}
    load_optimizer_state(optimizers[1], tensors)
    other.load_state_dict(one.state_dict())
    for net, optimizer in zip((one, other), optimizers):
        optimizer.zero_grad()
        net(torch.ones(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


def test_torchs_own_numbers_are_a_function_of_step_part_and_rank():
    def drawn(*of):
        seed_step(*of)
        return nn.functional.dropout(torch.ones(64))
    first = drawn(0, 5, 0, 0)
    torch.rand(7)  # what was drawn before counts for nothing
    assert torch.equal(drawn(0, 5, 0, 0), first)
    assert not any(torch.equal(drawn(*of), first) for of in ((1, 5, 0, 0), (0, 6, 0, 0), (0, 5, 1, 0), (0, 5, 0, 1)))


def wishes(rank, world):
    """What is due after each of four steps, where the last rank alone gets a signal in the middle of the third."""
    signals = StopSignals()
    cfg = EasyDict(eval_every=2, save_every=3, save_minutes=0.0)
    checkpoints = SimpleNamespace(due=lambda minutes: False)
    due, seen = Due(cfg, 6, True, signals, checkpoints), []
    for step in range(4):
        if step == 2 and rank == world - 1:
            signals.seen = "SIGTERM"
        due.ask()
        seen.append(tuple(due.after(step + 1)))
    return seen


@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_ranks_do_the_same_whoever_was_asked(world):
    expected = [(False, False, False), (True, True, False), (False, True, True), (True, True, True)]
    assert run_ranks(world, wishes) == [expected] * world


def test_a_key_states_its_limits():
    rate = Key(0.5, "a rate", above=0, most=1)
    assert rate.checked("rate", rate.parse("rate", ".25")) == 0.25 and rate.checked("rate", 1) == 1.0
    for value, says in ((0.0, "rate=0.0: must be above 0 and at most 1"), (math.nan, "must be float"), ("x", "must be"),
                        (True, "must be float")):
        with pytest.raises(UserError, match=says):
            rate.checked("rate", value)
    assert Key(1, "", least=1).limits == "at least 1" and Key(32, "", least=32, most=4096).limits == "from 32 to 4096"
    assert Key(0, "", least=0, below=1).limits == "0 or more and below 1" and Key("", "").limits == ""
    with pytest.raises(UserError, match="did you mean cosine"):
        Key("cosine", "", choices=("cosine", "constant")).checked("schedule", "cosin")


def test_what_is_not_a_number_is_never_the_best():
    for higher in (True, False):
        nan, one = (Evaluation({"score": score}, "score", higher) for score in (math.nan, 1.0))
        assert not nan.better_than(None) and not nan.better_than(1.0) and one.better_than(None)
    newest = Evaluation({"score": 0.5}, None)
    assert newest.score is None and newest.better_than(None)


def test_a_column_that_comes_up_late_and_a_row_that_was_cut_off(tmp_path):
    results = Results(tmp_path, 0)
    results.write({"step": 1, "loss": 2.0})
    results.write({"step": 2, "loss": 1.0, "top1": 0.5})
    results.write({"step": 3, "loss": 0.5})
    results.close()
    with open(tmp_path / "results.csv", "a") as file:
        file.write("3,1,2,3,4,5,6,7,8,9,10,11,12\n4,104,0.2")  # damage, and a kill
    Results(tmp_path, 2).close()
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["loss"], row["top1"]) for row in rows] == [("1", "2.0", ""), ("2", "1.0", "0.5")]
