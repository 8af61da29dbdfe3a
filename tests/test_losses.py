import math

import pytest
import torch

from configs import load_config
from inference.errors import UserError
from losses import ArcFace, CombinedMargin, CosFace, Softmax, get_margin, heatmap_focal, soft_target_kl

COSINES = torch.linspace(-0.999, 0.999, 401, dtype=torch.float64)


@pytest.mark.parametrize("margin, formula", [
    (CosFace(m=0.4), lambda theta: torch.cos(theta) - 0.4),
    (ArcFace(m=0.5), lambda theta: torch.cos(theta + 0.5)),
    (CombinedMargin(m1=1.3, m2=0.2, m3=0.1), lambda theta: torch.cos(1.3 * theta + 0.2) - 0.1),
    (CombinedMargin(m1=1.0, m2=0.2, m3=0.1), lambda theta: torch.cos(theta + 0.2) - 0.1),
    (Softmax(), torch.cos),
])
def test_margins_are_their_formula_and_have_its_gradient(margin, formula):
    cosine = COSINES.clone().requires_grad_()
    margin(cosine).sum().backward()
    theta = COSINES.acos().requires_grad_()
    expected = formula(theta)
    expected.sum().backward()
    slope = theta.grad / -theta.detach().sin()  # chain rule: d theta / d cos = -1 / sin theta
    inside = expected.detach() > expected.min()  # before the angle passes pi
    inside &= torch.arange(401) > expected.argmin()
    assert inside.sum() > 250
    assert torch.allclose(margin(COSINES)[inside], expected[inside], atol=1e-12)
    assert torch.allclose(cosine.grad[inside], slope[inside], rtol=1e-9)


@pytest.mark.parametrize("margin", [CosFace(), ArcFace(m=1.0), CombinedMargin(m1=1.5, m2=0.5, m3=0.1), Softmax()])
def test_margins_fall_with_the_angle_everywhere(margin):
    """Without a guard beyond pi, ArcFace rewards a target for pointing the wrong way."""
    cosine = torch.linspace(-1, 1, 2001, dtype=torch.float64).requires_grad_()
    value = margin(cosine)
    assert (value.diff() > 0).all()
    assert value.diff().max() < 0.1  # no jump
    value.sum().backward()
    assert cosine.grad.isfinite().all() and (cosine.grad >= 0).all()


def test_strength_grows_the_margin_from_none():
    for margin in (CosFace(), ArcFace(), CombinedMargin(m1=1.2, m2=0.1, m3=0.1)):
        full = margin(COSINES)
        margin.strength = 0.0
        assert torch.allclose(margin(COSINES), COSINES, atol=1e-9)
        margin.strength = 0.5
        half = margin(COSINES)[200:-1]
        assert ((half < COSINES[200:-1]) & (half > full[200:-1])).all()


def test_interclass_filtering_excludes_what_is_too_close():
    assert CosFace().excluded(COSINES) is None
    assert torch.equal(CosFace(interclass=0.5).excluded(COSINES), COSINES > 0.5)


def test_margin_of_a_config():
    kinds = {"cosface": CosFace, "arcface": ArcFace, "softmax": Softmax}
    for name, kind in kinds.items():
        margin = get_margin(load_config("lcnet_cos", [f"margin={name}", "m=0.3", "s=32", "interclass=0.9"]))
        assert type(margin) is kind and margin.s == 32 and margin.interclass == 0.9
    combined = get_margin(load_config("lcnet_cos", ["margin=combined", "m=[1.1, 0.2, 0.3]"]))
    assert (combined.m1, combined.m2, combined.m3) == (1.1, 0.2, 0.3)
    with pytest.raises(UserError, match="angle"):
        get_margin(load_config("lcnet_cos", ["margin=arcface", f"m={math.pi}"]))


def test_heatmap_focal_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    target = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    target[0, 0, 1, 2] = target[0, 2, 3, 4] = 1  # the second image has no object
    sums, positives = heatmap_focal(logits, target)
    expected = [0.0, 0.0]
    for at in torch.cartesian_prod(*map(torch.arange, target.shape)).tolist():
        p, y = 1 / (1 + math.exp(-logits[tuple(at)].item())), target[tuple(at)].item()
        expected[at[0]] -= (1 - p) ** 2 * math.log(p) if y == 1 else (1 - y) ** 4 * p ** 2 * math.log(1 - p)
    assert sums.tolist() == pytest.approx(expected, rel=1e-12) and positives.tolist() == [2, 0]
    assert torch.autograd.gradcheck(lambda z: heatmap_focal(z, target)[0], logits)


def test_heatmap_focal_of_a_confident_network():
    """log(sigmoid) by way of the sigmoid would be log(0) at -200; a right answer costs nothing."""
    logits = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], requires_grad=True)
    sums, _ = heatmap_focal(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    sums.sum().backward()
    assert sums.tolist() == [400, 0] and logits.grad.tolist() == [[-1, 1], [0, 0]]
    assert heatmap_focal(torch.zeros(2, 3).bfloat16(), torch.zeros(2, 3))[0].dtype == torch.float32
    with pytest.raises(ValueError, match="same shape"):
        heatmap_focal(torch.zeros(2, 3), torch.zeros(2, 1, 3))


def test_soft_target_kl_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (3 * torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    logits.requires_grad_()
    for temperature in (1.0, 4.0):
        found = soft_target_kl(logits, teacher, temperature)
        for b in range(4):
            q, p = ([math.exp(z / temperature) for z in row[b].tolist()] for row in (logits, teacher))
            p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
            kl = sum(a * math.log(a / b) for a, b in zip(p, q))
            assert found[b].item() == pytest.approx(temperature ** 2 * kl, rel=1e-12)
        assert torch.allclose(soft_target_kl(logits, teacher.log_softmax(1), temperature), found, rtol=1e-12)
        gradient, = torch.autograd.grad(found.sum(), logits)
        expected = temperature * ((logits / temperature).softmax(1) - (teacher / temperature).softmax(1))
        assert torch.allclose(gradient, expected, rtol=1e-10)


def test_soft_target_kl_of_samples_without_a_teacher_and_of_impossible_classes():
    logits = torch.zeros(3, 2, requires_grad=True)
    teacher = torch.tensor([[0.0, -torch.inf], [torch.nan, 1.0], [0.0, 0.0]], requires_grad=True)
    found = soft_target_kl(logits, teacher, has_teacher=torch.tensor([True, False, True]))
    found.sum().backward()
    assert found.tolist() == pytest.approx([math.log(2), 0, 0]) and teacher.grad is None
    assert logits.grad.tolist() == [[-0.5, 0.5], [0, 0], [0, 0]]
    with pytest.raises(ValueError, match="must be positive"):
        soft_target_kl(logits, teacher, 0.0)
    with pytest.raises(ValueError, match="same shape"):
        soft_target_kl(logits, teacher[:, :1])
