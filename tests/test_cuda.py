"""The same code on a GPU against the CPU; skipped without one."""
import pytest
import torch

from augment import PRESETS, Augment
from losses import ArcFace, CosFace
from partial_fc import PartialFC
from runtime import Ranks, hash64, normal
from tests.test_partial_fc import D, plain, problem, relative
from tests.test_train import folder, losses_of, settings  # noqa: F401
from train_v2 import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_random_numbers_are_the_cpus():
    ids = torch.arange(10_000)
    assert torch.equal(hash64(3, "x", ids.cuda(), 5).cpu(), hash64(3, "x", ids, 5))
    assert torch.allclose(normal(3, "x", ids.cuda()).cpu(), normal(3, "x", ids), atol=1e-5)


@pytest.mark.parametrize("margin", [CosFace(), ArcFace(), CosFace(interclass=0.5)])
@pytest.mark.parametrize("cosine", [None, 0.3, 0.7, 0.95])
def test_partial_fc(margin, cosine):
    torch.set_float32_matmul_precision("highest")
    x, w, labels = problem(1000, 64, cosine)
    x, w = x.float(), w.float()
    head = PartialFC(margin, D, 1000, device="cuda")
    head.weight.data.copy_(w)
    mine = x.cuda().requires_grad_()
    loss = head(mine, labels.cuda())
    loss.backward()
    expected, dx, dw = plain(x, w, labels, margin)
    assert abs(loss.item() - expected) <= 1e-5 * expected
    assert relative(mine.grad.cpu(), dx) <= 1e-5 and relative(head.weight.grad.cpu(), dw) <= 1e-5
    before = head.weight.detach().clone()
    head.finish_step(skip=torch.tensor(True, device="cuda"))
    assert torch.equal(head.weight, before)


@pytest.mark.parametrize("preset", PRESETS)
def test_augmentation(preset):
    image, position = torch.randint(0, 256, (16, 3, 64, 64), dtype=torch.uint8), torch.arange(16)
    here, there = Augment(preset, 0)(image, position), Augment(preset, 0).cuda()(image.cuda(), position).cpu()
    assert (here - there).abs().median() < 1e-3 and (here - there).abs().mean() < 1e-2  # JPEG's rounding may tip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training(folder, tmp_path, precision):  # noqa: F811
    train(settings(folder, tmp_path / "cpu"), Ranks(0, 1, torch.device("cpu")))
    train(settings(folder, tmp_path / "gpu", f"precision={precision}"), Ranks(0, 1, torch.device("cuda", 0)))
    for cpu, gpu in zip(losses_of(tmp_path / "cpu"), losses_of(tmp_path / "gpu")):
        assert gpu == pytest.approx(cpu, rel=0.02 if precision == "fp32" else 0.1)
