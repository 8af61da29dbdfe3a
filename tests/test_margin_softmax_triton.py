"""The CUDA kernels against the plain form, on the CPU by Triton's interpreter (tests/conftest.py switches it on)."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from engine.random import normal, uniform
from kernels import margin_softmax
from kernels.margin_softmax import Shard
from kernels.row_optimizers import DenseGradient, Sgd
from losses import CosFace

margin_softmax_triton = pytest.importorskip("kernels.margin_softmax_triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# batch, classes, dims, s, interclass, share of the rows that take part, padding after them
CASES = [(5, 37, 16, 64.0, None, 1, 0), (33, 300, 40, 64.0, 0.2, 1, 0), (140, 530, 24, 16.0, None, 1, 0),
         (7, 90, 20, 64.0, None, 0.4, 0), (20, 211, 48, 32.0, 0.3, 0.3, 9), (9, 150, 16, 300.0, None, 1, 0),
         (6, 130, 32, 1024.0, 0.4, 0.5, 5), (1, 1, 8, 64.0, None, 1, 0), (3, 40, 600, 64.0, None, 1, 0)]


def shard_of(batch, classes, dims, s, interclass, rate, padding):
    x = F.normalize(normal(1, "x", torch.arange(batch)[:, None], torch.arange(dims)))
    centers = 0.01 * normal(1, "w", torch.arange(classes)[:, None], torch.arange(dims))
    labels = (uniform(1, "y", torch.arange(batch)) * (classes + 3)).long()  # the last three are another rank's
    rows, column = None, labels.where(labels < classes, -1)
    if rate < 1:
        chosen = uniform(1, "rows", torch.arange(classes)) < rate
        chosen[labels[labels < classes]] = True
        rows = chosen.nonzero().squeeze(1)
        column = torch.searchsorted(rows, labels).where(labels < classes, -1)
        rows = torch.cat([rows, rows.new_full((padding,), classes)])
    to = dict(device=DEVICE)
    return Shard(x.to(**to), centers.to(**to), None if rows is None else rows.to(**to), column.to(**to),
                 CosFace(s=s, interclass=interclass), torch.bfloat16)


def drawn(name, count):
    return uniform(2, name, torch.arange(count)).float().to(DEVICE)


def relative(a, b):
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("shared", [100_000, 232_448], ids=["small blocks", "large blocks"])
def test_sums(case, shared, monkeypatch):
    monkeypatch.setattr(margin_softmax_triton, "_shared_memory", lambda device: shared)
    shard = shard_of(*case)
    for ours, plain in zip(margin_softmax_triton.row_sums(shard), margin_softmax.row_sums(shard)):
        assert torch.allclose(ours, plain, rtol=2e-3, atol=1e-30)
    # and both against all logits at once, in float64
    peak, total = margin_softmax_triton.row_sums(shard)
    rows = slice(None) if shard.rows is None else shard.rows[shard.rows < len(shard.centers)]
    cosine = shard.x.bfloat16().double() @ F.normalize(shard.centers[rows]).bfloat16().double().T
    excluded = torch.zeros_like(cosine, dtype=torch.bool) if case[4] is None else cosine > case[4]
    here = shard.column >= 0
    excluded[here.nonzero().squeeze(1), shard.column[here]] = True
    expected = (case[3] * cosine).masked_fill(excluded, -torch.inf).logsumexp(1)
    assert torch.allclose(total.double().log() + peak, expected, rtol=1e-4, atol=1e-3)


def test_embeddings_that_are_not_contiguous():
    shard = shard_of(*CASES[0])
    expected = margin_softmax.row_sums(shard)[1]
    shard.x = shard.x.T.contiguous().T
    assert torch.allclose(margin_softmax_triton.row_sums(shard)[1], expected, rtol=2e-3)


def test_a_center_that_is_not_a_number_shows():
    shard = shard_of(*CASES[0])
    shard.centers[3, 2] = torch.nan
    for module in margin_softmax, margin_softmax_triton:
        assert module.row_sums(shard)[1].isnan()[shard.column != 3].all()


def test_the_kernels_compile_and_fit_on_gpus_of_all_kinds():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, root / "tests/compile_kernels.py"], env=environment | {"PYTHONPATH": str(root)},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 22 and all(line.startswith("fits") for line in lines), done.stdout


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("chunk", [1 << 10, 1 << 28], ids=["chunks", "one chunk"])
def test_gradients(case, chunk, monkeypatch):
    monkeypatch.setattr(margin_softmax_triton, "CHUNK_BYTES", chunk)
    shard = shard_of(*case)
    peak, total = margin_softmax.row_sums(shard)
    peak = peak.masked_fill(peak == -torch.inf, 0)
    coefficient = (drawn("coefficient", case[0]) + 0.1) / total.clamp_min(1e-37)
    target = -drawn("target", case[0])
    results = []
    for module in margin_softmax_triton, margin_softmax:
        dense = DenseGradient(torch.zeros_like(shard.centers))
        results.append((module.gradients(shard, peak, coefficient, target, dense), dense.out))
    if shard.rows is not None:
        absent = torch.ones(case[1], dtype=torch.bool)
        absent[shard.rows[shard.rows < case[1]]] = False
        assert all((centers[absent] == 0).all() for _, centers in results)
    for ours, plain in zip(*results):
        assert relative(ours, plain) < 6e-3  # both round the gradient of the cosines to bfloat16, the one before its factor


@pytest.mark.parametrize("rate, padding", [(1, 0), (0.4, 6)])
@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize("skip", [None, False, True])
def test_the_step_in_the_kernel_is_that_of_sgd(rate, padding, seen, move, skip):
    shard = shard_of(6, 70, 24, 64.0, None, rate, padding)
    total = margin_softmax.row_sums(shard)[1]
    arguments = torch.zeros_like(total), 1 / total, -drawn("target", 6)
    dense = DenseGradient(torch.zeros_like(shard.centers))
    margin_softmax_triton.gradients(shard, *arguments, dense)
    momentum = normal(3, "v", torch.arange(70)[:, None], torch.arange(24)).to(DEVICE)
    seen = (drawn("seen", 70) < 0.5) if seen else None
    skip = None if skip is None else torch.tensor(skip, device=DEVICE)
    options = dict(lr=0.3, momentum=0.8, weight_decay=0.2, seen=seen, move=move, skip=skip)

    plain = Sgd(shard.centers.clone(), momentum.clone(), **options)
    rows = slice(None) if shard.rows is None else shard.rows[shard.rows < 70]
    plain.take(rows, plain.centers[rows], dense.out[rows].clone())
    fused = Sgd(shard.centers, momentum.clone(), **options)
    margin_softmax_triton.gradients(shard, *arguments, fused)
    assert torch.allclose(fused.momentum_buffer, plain.momentum_buffer, rtol=1e-5, atol=1e-6)
    assert torch.allclose(fused.centers, plain.centers, rtol=1e-5, atol=1e-6)
