import math

import pytest
import torch

from configs import load_config
from inference.errors import UserError
from losses import ArcFace, CombinedMargin, CosFace, Softmax, get_margin

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


def test_interclass_filtering_leaves_out_what_is_too_close():
    assert CosFace().left_out(COSINES) is None
    assert torch.equal(CosFace(interclass=0.5).left_out(COSINES), COSINES > 0.5)


def test_margin_of_a_config():
    kinds = {"cosface": CosFace, "arcface": ArcFace, "softmax": Softmax}
    for name, kind in kinds.items():
        margin = get_margin(load_config("lcnet_cos", [f"margin={name}", "m=0.3", "s=32", "interclass=0.9"]))
        assert type(margin) is kind and margin.s == 32 and margin.interclass == 0.9
    combined = get_margin(load_config("lcnet_cos", ["margin=combined", "m=[1.1, 0.2, 0.3]"]))
    assert (combined.m1, combined.m2, combined.m3) == (1.1, 0.2, 0.3)
    with pytest.raises(UserError, match="angle"):
        get_margin(load_config("lcnet_cos", ["margin=arcface", f"m={math.pi}"]))
