"""The terms that a teacher of embeddings adds, each against its formula written another way, number by number in float64."""
import math

import pytest
import torch
import torch.nn.functional as F

from engine.random import normal
from losses import clip_kl, cosine_distance, relational_kl, rkd_distance

STUDENT, TEACHER = (normal(5, name, torch.arange(6)[:, None], torch.arange(width)).double()
                    for name, width in (("student", 3), ("teacher", 4)))
# Of six samples 0 and 3 show one image, and 5 is known to no teacher.
PAIRS = ~torch.eye(6, dtype=torch.bool)
PAIRS[0, 3] = PAIRS[3, 0] = False
PAIRS[5], PAIRS[:, 5] = False, False


def cosine(x, i, j):
    a, b = x[i].tolist(), x[j].tolist()
    return sum(u * v for u, v in zip(a, b)) / math.hypot(*a) / math.hypot(*b)


def others(i):
    return [j for j in range(6) if PAIRS[i, j]]


def test_relational_kl_is_its_formula():
    found, compared = relational_kl(STUDENT, TEACHER, PAIRS, 0.2, 0.1)
    assert compared.tolist() == [True] * 5 + [False] and found[5] == 0
    for i in range(5):
        odds = {j: (math.exp(cosine(TEACHER, i, j) / 0.1), math.exp(cosine(STUDENT, i, j) / 0.2)) for j in others(i)}
        p, q = ([pair[who] / sum(both[who] for both in odds.values()) for pair in odds.values()] for who in (0, 1))
        assert found[i].item() == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q)), rel=1e-10)


def test_rkd_distance_is_its_formula():
    found, counts = rkd_distance(STUDENT, TEACHER, PAIRS)
    assert counts.tolist() == [len(others(i)) for i in range(6)] == [3, 4, 4, 3, 4, 0]
    apart = [{(i, j): math.sqrt(2 - 2 * cosine(x, i, j)) for i in range(6) for j in others(i)} for x in (STUDENT, TEACHER)]
    means = [sum(d.values()) / len(d) for d in apart]
    expected = [0.0] * 6
    for pair in apart[0]:
        error = abs(apart[0][pair] / means[0] - apart[1][pair] / means[1])
        expected[pair[0]] += 0.5 * error ** 2 if error < 1 else error - 0.5
    assert found.tolist() == pytest.approx(expected, rel=1e-10)


def test_terms_of_one_sample_are_their_formulas():
    projected, teacher = STUDENT, TEACHER[:, :3]
    known = torch.tensor([True, True, False, True, True, True])
    matched, kl = cosine_distance(projected, teacher, known), clip_kl(projected, teacher, known)
    for i in range(6):
        z, t = ([v / math.hypot(*x[i].tolist()) for v in x[i].tolist()] for x in (projected, teacher))
        q, p = ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (z, t))
        assert matched[i].item() == pytest.approx(known[i].item() * (1 - sum(a * b for a, b in zip(z, t))), rel=1e-10)
        assert kl[i].item() == pytest.approx(known[i].item() * sum(a * math.log(a / b) for a, b in zip(p, q)), rel=1e-10)


@pytest.mark.parametrize("term", [
    lambda s, t: relational_kl(s, t, PAIRS)[0].sum(), lambda s, t: rkd_distance(s, t, PAIRS)[0].sum(),
    lambda s, t: cosine_distance(s, t[:, :3]).sum(), lambda s, t: clip_kl(s, t[:, :3]).sum(),
], ids=["relational", "rkd", "match", "clip_kl"])
def test_gradients(term):
    """Against differences; the teacher gets none."""
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: term(s, TEACHER), student)
    term(student, teacher).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert torch.allclose((student.grad * student).sum(1), torch.zeros(6).double(), atol=1e-12)  # lengths do not matter


@pytest.mark.parametrize("term", [relational_kl, rkd_distance])
def test_masked_pairs_change_nothing(term):
    """Neither value nor gradient, however near or strange the masked samples are; with no pair at all both are 0."""
    def of(student, teacher, pairs=PAIRS):
        student = student.clone().requires_grad_()
        values, counts = term(student, teacher, pairs)
        mean = values.sum() / counts.sum().clamp_min(1)
        mean.backward()
        return mean.detach(), student.grad
    value, gradient = of(STUDENT, TEACHER)
    student, teacher = STUDENT.clone(), TEACHER.clone()
    student[5], teacher[5] = STUDENT[0], 0                                    # what `Predictions.join` gives for no row
    changed, other = of(student, teacher)
    assert torch.allclose(changed, value, rtol=1e-12) and torch.allclose(other, gradient, rtol=1e-9, atol=1e-14)
    assert (gradient[5] == 0).all() and (gradient[:5].abs().sum(1) > 0).all()
    for nobody in of(STUDENT, TEACHER, torch.zeros_like(PAIRS)):
        assert (nobody == 0).all()
    unmasked, _ = of(STUDENT, TEACHER, PAIRS | (torch.arange(6)[:, None] * torch.arange(6) == 0) & ~torch.eye(6).bool())
    assert not torch.allclose(unmasked, value)


def test_a_student_that_sees_as_its_teacher_does_has_nothing_to_learn():
    turned = torch.linalg.qr(normal(1, "turn", torch.arange(4)[:, None], torch.arange(4)).double())[0]
    student = (3 * TEACHER @ turned).requires_grad_()                         # another space, the same cosines
    values = relational_kl(student, TEACHER, PAIRS, 0.1, 0.1)[0], rkd_distance(student, TEACHER, PAIRS)[0]
    for value in values:
        assert value.abs().max() < 1e-12
    gradient, = torch.autograd.grad(sum(value.sum() for value in values), student)
    assert gradient.abs().max() < 1e-10


def test_equal_embeddings_have_a_finite_gradient():
    student = torch.ones(4, 3, requires_grad=True)
    pairs = ~torch.eye(4, dtype=torch.bool)
    sum(term(student, torch.eye(4), pairs)[0].sum() for term in (relational_kl, rkd_distance)).backward()
    assert student.grad.isfinite().all()


def test_half_precision_is_computed_in_single():
    student, teacher, pairs = torch.eye(4).bfloat16(), torch.eye(4), ~torch.eye(4, dtype=torch.bool)
    for found in (relational_kl(student, teacher, pairs)[0], rkd_distance(student, teacher, pairs)[0],
                  cosine_distance(student, teacher), clip_kl(student, teacher)):
        assert found.dtype == torch.float32


def test_what_does_not_fit_is_refused():
    for term in (cosine_distance, clip_kl):
        with pytest.raises(ValueError, match="same shape"):
            term(STUDENT, TEACHER)
    with pytest.raises(ValueError, match="must be positive"):
        relational_kl(STUDENT, TEACHER, PAIRS, 0.1, 0.0)


def test_the_references_clip_term_is_two_thousandths():
    """To second order it is (1 - cos) / E: for unrelated vectors of CLIP's 512 numbers 1 / 512 = .00195. Its gradient is as
    small: 1 / 512 of that of 1 - cos. The third order is an entry's size, .04 to .06, of it, and averages out in part."""
    z, t = (normal(9, name, torch.arange(400)[:, None], torch.arange(512)).double() for name in "zt")
    assert clip_kl(z, t).mean().item() == pytest.approx(0.00195, rel=0.01)
    for mix in (-0.4, 0.0, 0.3, 1.0):                                         # away from the teacher, and nearer to it
        near = F.normalize(z) + mix * F.normalize(t)
        assert torch.allclose(clip_kl(near, t), (1 - F.cosine_similarity(near, t)) / 512, rtol=0.06)
    unit = F.normalize(z).requires_grad_()
    small, = torch.autograd.grad(clip_kl(unit, t).sum(), unit)
    plain, = torch.autograd.grad(cosine_distance(unit, t).sum(), unit)
    assert (small.norm() / plain.norm()).item() == pytest.approx(1 / 512, rel=0.02)
