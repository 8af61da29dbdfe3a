"""The same code on a GPU against the CPU; skipped without one."""
import pytest
import torch

from augment import PRESETS, Augment
from engine.distributed import Ranks
from engine.random import hash64, normal
from losses import ArcFace, CosFace
from partial_fc import PartialFC
from tasks.registration import RegistrationTask
from tests.helpers.head import plain, relative, sampled_rows
from tests.helpers.runs import losses_of, settings
from train_v2 import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_random_numbers_are_the_cpus():
    ids = torch.arange(10_000)
    assert torch.equal(hash64(3, "x", ids.cuda(), 5).cpu(), hash64(3, "x", ids, 5))
    assert torch.allclose(normal(3, "x", ids.cuda()).cpu(), normal(3, "x", ids), atol=1e-5)


@pytest.mark.parametrize("operands, bound", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("margin", [CosFace(), ArcFace(), CosFace(interclass=0.5), CosFace(s=300.0)])
@pytest.mark.parametrize("aside", [0.3, 1.0, 20.0])
@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_partial_fc(operands, bound, margin, aside, rate):
    torch.set_float32_matmul_precision("highest")
    w, labels = normal(1, "w", torch.arange(3000)[:, None], torch.arange(256)), torch.arange(64) * 40
    x = w[labels] + aside * normal(1, "x", torch.arange(64)[:, None], torch.arange(256))
    head = PartialFC(margin, 256, 3000, rate, operands=operands, device="cuda")
    head.weight.data.copy_(w)
    head.begin_step(7)
    mine = x.cuda().requires_grad_()
    loss = head(mine, labels)
    loss.backward()
    expected, dx, dw = plain(x, w, labels, margin, sampled_rows(3000, rate, labels))
    assert abs(loss.item() - expected) <= 3 * bound * expected
    bound *= max(1, margin.s / 64) * (3 if aside < 1 else 1)  # as tests/test_partial_fc.py has it; an error grows with s
    assert relative(mine.grad.cpu(), dx) <= bound and relative(head.weight.grad.cpu(), dw) <= bound
    before = head.weight.detach().clone()
    head.finish_step(skip=torch.tensor(True, device="cuda"))
    assert torch.equal(head.weight, before)


@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("calls", [1, 3])
def test_the_fused_update_is_the_dense_one(rate, calls):
    heads = [PartialFC(CosFace(), 256, 3000, rate, weight_decay=0.1, update=update, device="cuda")
             for update in ("fused", "dense")]
    for step in range(3):
        for head in heads:
            head.begin_step(step, 0.1, calls)
            for call in range(calls):
                x = normal(1, "x", torch.arange(64)[:, None] + call, torch.arange(256)).cuda()
                (head(x, torch.arange(64) * 40 + call) / calls).backward()
            head.finish_step()
    for name in ("weight", "momentum_buffer"):
        assert relative(getattr(heads[0], name).detach(), getattr(heads[1], name).detach().double()) < 1e-4


def test_a_step_of_the_head_does_not_wait_for_the_gpu():
    head = PartialFC(CosFace(), 256, 3000, 0.3, update="fused", device="cuda")
    x, labels = torch.ones(64, 256, device="cuda", requires_grad=True), torch.arange(64)
    for mode in ("warn", "error"):  # the first step compiles the kernels
        torch.cuda.set_sync_debug_mode(mode)
        try:
            head.begin_step(head.step)
            head(x, labels).backward()
            head.finish_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("preset", PRESETS)
def test_augmentation(preset):
    image, position = torch.randint(0, 256, (16, 3, 64, 64), dtype=torch.uint8), torch.arange(16)
    here, there = Augment(preset, 0)(image, position), Augment(preset, 0).cuda()(image.cuda(), position).cpu()
    assert (here - there).abs().median() < 1e-3 and (here - there).abs().mean() < 1e-2  # JPEG's rounding may tip


@pytest.mark.parametrize("preset", PRESETS)
def test_augmentation_does_not_wait_for_the_gpu(preset):
    image, position = torch.randint(0, 256, (512, 3, 80, 80), dtype=torch.uint8, device="cuda"), torch.arange(512)
    augment = Augment(preset, 0).cuda()
    augment(image, position, position % 24, 64)
    torch.cuda.set_sync_debug_mode("error")
    try:
        augment(image, position, position % 24, 64)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_training_does_not_wait_for_the_gpu_between_two_logs(folder, tmp_path, monkeypatch):
    """The second time round, as kernels are compiled in the first steps."""
    begin, finish = RegistrationTask.begin_step, RegistrationTask.finish_step

    def begin_step(self, step, lr_factor):
        if step == 4:
            torch.cuda.set_sync_debug_mode("error")
        return begin(self, step, lr_factor)

    def finish_step(self, skip):
        finish(self, skip)
        if self.partial_fc.step == 8:  # the number of the step after; first comes the log, which reads numbers back
            torch.cuda.set_sync_debug_mode("default")
    monkeypatch.setattr(RegistrationTask, "begin_step", begin_step)
    monkeypatch.setattr(RegistrationTask, "finish_step", finish_step)
    try:
        train(settings(folder, tmp_path, "log_every=4"), Ranks(0, 1, torch.device("cuda", 0)))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training(folder, tmp_path, precision):
    train(settings(folder, tmp_path / "cpu"), Ranks(0, 1, torch.device("cpu")))
    train(settings(folder, tmp_path / "gpu", f"precision={precision}"), Ranks(0, 1, torch.device("cuda", 0)))
    for cpu, gpu in zip(losses_of(tmp_path / "cpu"), losses_of(tmp_path / "gpu")):
        assert gpu == pytest.approx(cpu, rel=0.02 if precision == "fp32" else 0.1)
