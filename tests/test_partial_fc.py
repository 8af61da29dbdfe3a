"""The sharded head against the plain formula in float64, on 1, 2 and 3 real ranks, values and gradients."""
import pytest
import torch

from engine.distributed import shard_range
from engine.random import bernoulli, normal, uniform
from kernels import margin_softmax
from losses import ArcFace, CosFace
from partial_fc import PartialFC, margin_softmax_reference
from tests.helpers.head import (
    MARGINS,
    D,
    bounds,
    bytes_sent,
    cases_for,
    errors,
    everything,
    plain,
    problem,
    relative,
    sampled_rows,
)
from tests.helpers.ranks import run_ranks


@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("margin", MARGINS)
def test_the_reference_is_the_plain_formula(margin, rate):
    x, w, labels = problem(101, 13, 0.7)
    rows = None if rate == 1 else sampled_rows(101, rate, labels)
    expected, dx, dw = plain(x, w, labels, margin, rows)
    x.requires_grad_(), w.requires_grad_()
    loss = margin_softmax_reference(x, w, labels, margin, rows)
    loss.backward()
    assert abs(loss - expected) <= 1e-12 * expected
    assert relative(x.grad, dx) <= 1e-12 and relative(w.grad, dw) <= 1e-12


@pytest.mark.parametrize("world", [1, 2, 3])
def test_loss_and_gradients_are_those_of_the_plain_formula(world):
    cases = cases_for(world)
    for case, ranks in zip(cases, zip(*run_ranks(world, everything, cases))):
        of_loss, of_gradients = bounds(case) if case[-1] == torch.float32 else (1e-12, 1e-12)
        loss, dx, dw = errors(case, ranks)
        assert loss <= of_loss and max(dx, dw) <= of_gradients, case
        assert all(got["loss"] == ranks[0]["loss"] for got in ranks)  # the same number everywhere
        # Only the sampled rows move, though weight decay is on.
        _, classes, rate, parts, cosine, _ = case
        rows = sampled_rows(classes, rate, problem(classes, sum(parts), cosine)[2])
        assert torch.equal(torch.cat([got["moved"] for got in ranks]), rows)


def shards(rank, world):
    """This rank's first rows `[num_local,D]`, and which of them moved in each of three steps `[3,num_local]`."""
    head, chosen = PartialFC(CosFace(), D, 40, 0.5), []
    start = head.weight.detach().clone()
    for step in range(3):
        head.begin_step(step)
        before = head.weight.detach().clone()
        head(torch.ones(2, D), torch.tensor([0, 39])).backward()
        head.finish_step()
        chosen.append((head.weight != before).any(1))
    return {"start": start, "chosen": torch.stack(chosen)}


def test_rows_start_and_are_sampled_by_class_id():
    """The reference seeds every rank alike: shards start the same and sample the same local indices."""
    alone = shards(0, 1)
    assert alone["start"].std() == pytest.approx(0.01, rel=0.1)
    assert not torch.equal(alone["chosen"][0], alone["chosen"][1])
    for world in (2, 3):
        parts = run_ranks(world, shards)
        assert [len(p["start"]) for p in parts] == [40 // world + (r < 40 % world) for r in range(world)]
        assert torch.equal(torch.cat([p["start"] for p in parts]), alone["start"])
        assert torch.equal(torch.cat([p["chosen"] for p in parts], 1), alone["chosen"])
        assert not torch.equal(parts[0]["start"][:13], parts[1]["start"][:13])


def test_sampled_classes_are_those_of_the_uniform_numbers():
    ids = range(1000, 100_000)  # several parts, the last of them short
    expected = uniform(5, "sample", 9, torch.arange(ids.start, ids.stop)) < 0.3
    assert torch.equal(bernoulli(0.3, 5, "sample", 9, ids), expected)


def refused(rank, world):
    """What each rank raises when rank 0 alone has a wrong label, and when it has labels that do not fit."""
    head, said = PartialFC(CosFace(), D, 10), []
    for bad in (torch.tensor([10]), torch.tensor([-1]), torch.tensor([1, 2])):
        labels = bad if rank == 0 else torch.tensor([3])
        with pytest.raises(ValueError) as error:
            head(torch.ones(1, D), labels)
        said.append(str(error.value))
    return said


@pytest.mark.parametrize("world", [1, 2])
def test_wrong_labels_are_refused_on_every_rank(world):
    for said in run_ranks(world, refused):
        assert "label 10 is outside [0, 10)" in said[0] and "label -1" in said[1] and "[B]" in said[2]


def test_refusals_at_construction():
    with pytest.raises(ValueError, match="sample_rate"):
        PartialFC(CosFace(), D, 10, 0.0)
    with pytest.raises(ValueError, match="cannot be shared"):
        PartialFC(CosFace(), D, 0)
    with pytest.raises(ValueError, match="set operands"):
        PartialFC(CosFace(), D, 10, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="with adamw use update=dense"):
        PartialFC(CosFace(), D, 10, optimizer="adamw", update="fused")
    with pytest.raises(ValueError, match="must be dense or fused"):
        PartialFC(CosFace(), D, 10, update=None)


def test_loss_does_not_saturate():
    """The reference clamps the probability at 1e-30, so no sample's loss can pass 69.08."""
    head = PartialFC(CosFace(s=64.0), 2, 2)
    head.weight.data.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    loss = head(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert loss.item() == pytest.approx(64 * 2.4, rel=1e-5)


@pytest.mark.parametrize("s", [64.0, 256.0, 1024.0])
def test_large_scales_neither_underflow_nor_overflow(s):
    x, w, labels = problem(50, 9, -0.4)
    head = PartialFC(CosFace(s=s), D, 50).double()
    head.weight.data.copy_(w)
    x.requires_grad_()
    loss = head(x, labels)
    loss.backward()
    expected, dx, dw = plain(x.detach(), w, labels, CosFace(s=s))
    assert abs(loss - expected) <= 1e-12 * expected
    assert relative(x.grad, dx) < 1e-12 and relative(head.weight.grad, dw) < 1e-12


def test_a_row_without_negatives_has_no_loss():
    head = PartialFC(CosFace(interclass=0.1), 2, 2)
    head.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.9, 0.1]]))
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = head(x, torch.tensor([0]))
    loss.backward()
    assert loss == 0 and x.grad.abs().sum() == 0 and head.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("optimizer, update", [("sgd", "fused"), ("sgd", "dense"), ("adamw", "dense")])
def test_the_update_is_that_of_torch_optim_whatever_the_number_of_calls(optimizer, update):
    x, w, labels = problem(30, 12)
    options = dict(optimizer=optimizer, update=update, lr=0.05, momentum=0.9, weight_decay=0.01)
    whole, split = (PartialFC(CosFace(), D, 30, **options).double() for _ in range(2))
    theirs = torch.nn.Parameter(whole.weight.detach().clone())
    reference = (torch.optim.SGD([theirs], lr=0.05, momentum=0.9, weight_decay=0.01) if optimizer == "sgd"
                 else torch.optim.AdamW([theirs], lr=0.05, weight_decay=0.01))
    for step in range(5):
        whole.begin_step(step, calls=1)
        whole(x, labels).backward()
        whole.finish_step()
        split.begin_step(step, calls=2)
        (split(x[:5], labels[:5]) * 5 / 12).backward()
        (split(x[5:], labels[5:]) * 7 / 12).backward()
        split.finish_step()
        theirs.grad = plain(x, theirs.detach(), labels, CosFace())[2]
        reference.step()
        assert torch.allclose(whole.weight, theirs, rtol=1e-9, atol=1e-12)
        assert torch.allclose(split.weight, whole.weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer, update", [("sgd", "fused"), ("sgd", "dense"), ("adamw", "dense")])
def test_a_skipped_step_changes_nothing(optimizer, update):
    x, _, labels = problem(30, 12)
    head = PartialFC(CosFace(), D, 30, 0.5, optimizer=optimizer, update=update, weight_decay=0.1).double()
    head(x, labels).backward()
    head.finish_step()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    head(x * torch.nan, labels).backward()
    head.finish_step(skip=torch.tensor(True))
    for name, value in head.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("optimizer, update", [("sgd", "fused"), ("sgd", "dense"), ("adamw", "dense")])
def test_a_head_that_resumes_goes_on_as_the_one_that_was_saved(optimizer, update):
    """The step decides the sample, the number of updates AdamW's bias correction."""
    x, _, labels = problem(60, 12)

    def steps(head, count):
        for _ in range(count):
            head(x.float(), labels).backward()
            head.finish_step(torch.tensor(head.step == 1))

    saved, resumed = (PartialFC(CosFace(), D, 60, 0.3, optimizer=optimizer, update=update, lr=0.01) for _ in range(2))
    steps(saved, 3)
    for name, rows in resumed.row_state().items():
        rows.copy_(saved.row_state()[name])
    resumed.resumed(saved.step, int(saved.updates))
    for head in (saved, resumed):
        steps(head, 3)
    assert resumed.step == saved.step == 6 and resumed.updates == saved.updates == (6 if update == "fused" else 5)
    for name, rows in resumed.row_state().items():
        assert torch.equal(rows, saved.row_state()[name]), name


def test_adamw_leaves_the_rows_that_were_not_sampled():
    """The reference's AdamW moves 240 of 240 rows with 72 sampled."""
    x, _, labels = problem(240, 12)
    head = PartialFC(CosFace(), D, 240, 0.3, optimizer="adamw", lr=0.01, weight_decay=0.1)
    for step in range(3):
        rows = uniform(0, "sample", step, torch.arange(240)) < 0.3
        rows[labels] = True
        before = {name: value.clone() for name, value in head.row_state().items()}
        head.begin_step(step)
        head(x.float(), labels).backward()
        head.finish_step()
        for name, value in head.row_state().items():
            assert torch.equal((value != before[name]).any(1), rows), name


# ---------------------------------------------------------------- the fused update
def three_steps(rank, world, rate, calls, update):
    """Weight and momentum of this rank's rows after three steps of `calls` uneven calls, and whether a gradient was kept."""
    margin_softmax.TILE = 64 * D  # the 101 classes are several tiles
    head = PartialFC(ArcFace(s=16.0, interclass=0.6), D, 101, rate, lr=0.5, momentum=0.8, weight_decay=0.1,
                     update=update, dtype=torch.float64)
    kept = []
    for step in range(3):
        head.begin_step(step, 0.5 / (step + 1), calls)
        for call in range(calls):
            x, _, labels = problem(101, 12 + call)
            here = shard_range(len(x), rank, world)
            x, labels = x[here.start:here.stop] + step, labels[here.start:here.stop]
            (head(x.to(head.weight.dtype), labels) / calls).backward()
        kept.append(head.weight.grad is not None)
        head.finish_step()
    return {**head.row_state(), "kept": torch.tensor(kept), "updates": head.updates}


CALLS = [(rate, calls) for rate in (1.0, 0.3) for calls in (1, 3)]


def all_three_steps(rank, world):
    return [[three_steps(rank, world, *case, update) for update in ("fused", "dense")] for case in CALLS]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_fused_update_is_the_dense_one(world):
    ranks, alone = run_ranks(world, all_three_steps), all_three_steps(0, 1)
    for i, case in enumerate(CALLS):
        for name in ("weight", "momentum_buffer"):
            ours, dense = (torch.cat([part[i][kind][name] for part in ranks]) for kind in (0, 1))
            assert torch.allclose(ours, dense, rtol=1e-10, atol=1e-13), (case, name)
            assert torch.allclose(ours, alone[i][1][name], rtol=1e-9, atol=1e-12), (case, name)
        assert not any(part[i][0]["kept"].any() for part in ranks) and all(part[i][1]["kept"].all() for part in ranks)
        assert all(kind["updates"] == 3 for part in ranks for kind in part[i])


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_bfloat16_operands_keep_two_digits(rate):
    """Logits, sums and what is not a matmul stay float32."""
    w, labels = normal(1, "w", torch.arange(2000)[:, None], torch.arange(256)), torch.arange(32) * 60
    # Target's cosine .96, .7, .05. A logit is off by about .006; what is left once the target has won hangs on few of them.
    for aside, bound in (0.3, 3e-2), (1.0, 1e-2), (20.0, 1e-2):
        x = w[labels] + aside * normal(1, "x", torch.arange(32)[:, None], torch.arange(256))
        x.requires_grad_()
        head = PartialFC(CosFace(), 256, 2000, rate, operands=torch.bfloat16)
        head.weight.data.copy_(w)
        head.begin_step(7)
        loss = head(x, labels)
        loss.backward()
        expected, dx, dw = plain(x.detach(), w, labels, CosFace(), sampled_rows(2000, rate, labels))
        assert abs(loss - expected) <= 2e-2 * expected
        assert 1e-5 < relative(x.grad, dx) <= bound and 1e-5 < relative(head.weight.grad, dw) <= bound


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_the_fused_update_skips_a_loss_that_is_not_finite(calls, rate):
    x, _, labels = problem(30, 12)
    head = PartialFC(CosFace(), D, 30, rate, update="fused", weight_decay=0.1).double()
    before = head.weight.detach().clone()
    head.begin_step(0, calls=calls)
    for call in range(calls):
        head(x * (torch.nan if call == 0 else 1), labels).backward()
    head.finish_step()
    assert torch.equal(head.weight, before) and head.updates == 0
    if calls == 1:
        assert (head.momentum_buffer == 0).all()
    head.begin_step(0, calls=1)  # and the next step is as if nothing had been
    head(x, labels).backward()
    head.finish_step()
    assert not torch.equal(head.weight, before) and head.updates == 1


def test_a_skipped_call_does_not_keep_momentum_from_decaying():
    x, _, labels = problem(30, 12)
    momenta = []
    for bad in (0, 1, None):
        head = PartialFC(CosFace(), D, 30, update="fused", momentum=0.9).double()
        head.momentum_buffer.fill_(1.0)
        head.begin_step(0, calls=2)
        for call in (0, 1):
            (head(x * (torch.nan if call == bad else 1), labels) * (0.0 if bad is None and call else 1.0)).backward()
        momenta.append(head.momentum_buffer)
    assert torch.allclose(momenta[0], momenta[1]) and torch.allclose(momenta[1], momenta[2])


def test_the_fused_update_skips_a_gradient_that_is_not_finite():
    x, _, labels = problem(30, 12)
    head = PartialFC(CosFace(), D, 30, update="fused").double()
    before = head.weight.detach().clone()
    head.begin_step(0, calls=1)
    (head(x, labels) * torch.nan).backward()
    head.finish_step()
    assert torch.equal(head.weight, before) and (head.momentum_buffer == 0).all() and head.updates == 0


def test_a_second_backward_is_refused():
    x, _, labels = problem(30, 12)
    head = PartialFC(CosFace(), D, 30).double()
    loss = head(x, labels)
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="second backward"):
        loss.backward()


class ExcludeOdd(CosFace):
    def excluded(self, cosine):
        return (torch.arange(cosine.shape[1]) % 2 == 1).expand_as(cosine)


def test_a_margin_may_exclude_by_a_rule_of_its_own():
    x, w, labels = problem(20, 6)
    labels = labels // 2 * 2
    head, half = PartialFC(ExcludeOdd(), D, 20).double(), PartialFC(CosFace(), D, 10).double()
    head.weight.data.copy_(w)
    half.weight.data.copy_(w[::2])
    assert head(x, labels).item() == pytest.approx(half(x, labels // 2).item(), rel=1e-12)


def test_what_crosses_the_ranks_is_the_embeddings_twice_and_little_else():
    for sent in run_ranks(2, bytes_sent):
        assert 2 * 1024 * 256 * 4 < sent <= 2.2e6
