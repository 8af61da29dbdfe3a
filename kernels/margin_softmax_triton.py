"""The two passes of margin_softmax.py as CUDA kernels: bfloat16 operands, float32 sums and logits.

    row_sums   kernel: a block of rows against a run of class tiles: matmul, exp, sum; nothing but the sums is written
    gradients  chunk by chunk of classes: kernel: logits again, into the bfloat16 gradient of the cosines `[B,chunk]`;
               two library matmuls, for x and for the centers; kernel: through the normalization, and the SGD step at once
Both work on a bfloat16 copy of the unit centers, made in each pass: the blocks of rows that read it again would have to
read float32 instead. It takes a quarter of what centers and momentum together do.

TRITON_INTERPRET=1 runs the kernels on a CPU, slowly, which is how the tests hold them against the plain form. There
the operands are float32 numbers rounded to bfloat16, the interpreter having no bfloat16 product.
"""
import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.margin_softmax import Shard
from kernels.row_optimizers import DenseGradient, Sgd

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
OPERAND = tl.float32 if INTERPRETED else tl.bfloat16
LOG2_E = tl.constexpr(1.4426950408889634)
WARPS = 8
LARGE_SHARED = 160 * 1024  # bytes: A100, H100, H200, B200 have more, GeForce and L cards 99 KiB
MOST_DIMS = 1024
CHUNK_BYTES = 1 << 28  # of the gradient of the cosines: 131,072 classes at a batch of 1024


def runs_on(device: torch.device, dims: int) -> bool:
    """Whether the kernels fit a GPU: matmuls of bfloat16, from Ampere on, and room for blocks of all dimensions."""
    return torch.cuda.get_device_capability(device) >= (8, 0) and dims <= MOST_DIMS


def row_sums(shard: Shard) -> tuple[torch.Tensor, torch.Tensor]:
    """As margin_softmax.row_sums."""
    x, unit, _, taking_part = _operands(shard)
    (batch, dims), device = x.shape, x.device
    blocks = Blocks.of(batch, dims, _shared_memory(device))
    row_blocks = triton.cdiv(batch, blocks.rows)
    runs = min(triton.cdiv(len(unit), blocks.sum_classes), max(1, 2 * _processors(device) // row_blocks))
    peaks = x.new_full((runs, batch), -torch.inf, dtype=torch.float32)
    totals = x.new_zeros((runs, batch), dtype=torch.float32)
    _row_sums[(row_blocks, runs)](
        x, unit, _column(shard), taking_part, peaks, totals, batch, len(unit), shard.margin.s, _limit(shard),
        D=dims, SHIFTED=not shard.unshifted, OPERAND=OPERAND, BLOCK_B=blocks.rows, BLOCK_C=blocks.sum_classes,
        BLOCK_D=blocks.dims, num_warps=WARPS, num_stages=blocks.stages)
    if shard.unshifted:
        return torch.zeros_like(totals[0]), totals.sum(0)
    peak = peaks.amax(0)
    return peak, (totals * (peaks - peak.masked_fill(peak == -torch.inf, 0)).exp()).sum(0)


def gradients(shard: Shard, peak: torch.Tensor, coefficient: torch.Tensor, target: torch.Tensor, update) -> torch.Tensor:
    """As margin_softmax.gradients; `update` is a DenseGradient or an Sgd, whose step is part of the kernel."""
    x, unit, inverse_length, taking_part = _operands(shard)
    (batch, dims), count = x.shape, len(unit)
    blocks = Blocks.of(batch, dims, _shared_memory(x.device))
    chunk = min(count, max(1, CHUNK_BYTES // (2 * batch * blocks.gradient_classes)) * blocks.gradient_classes)
    cosine_gradient = x.new_empty(batch * chunk)
    gradient_x = torch.zeros_like(shard.x)
    column = _column(shard)
    for start in range(0, count, chunk):
        here = unit[start:start + chunk]
        width = len(here)
        g = cosine_gradient[:batch * width].view(batch, width)
        _cosine_gradients[(triton.cdiv(batch, blocks.rows), triton.cdiv(width, blocks.gradient_classes))](
            x, here, column, taking_part, peak, coefficient, target, g, batch, width, start, shard.margin.s,
            _limit(shard), D=dims, OPERAND=OPERAND, BLOCK_B=blocks.rows, BLOCK_C=blocks.gradient_classes,
            BLOCK_D=blocks.dims, num_warps=WARPS, num_stages=2)
        gradient_x += _product(g, here)
        _step_rows(shard, _product(g.T, x), inverse_length[start:start + chunk], start, taking_part, update)
    return gradient_x


def _operands(shard: Shard):
    """x and the centers that take part, of length 1, in bfloat16 `[B,D]`, `[n,D]`; the centers' inverse lengths `[n]`; how
    many really take part, int64 scalar on the device: what follows in `shard.rows` is padding."""
    n, dims = shard.count, shard.x.shape[1]
    dtype = torch.float32 if INTERPRETED else torch.bfloat16
    unit, inverse_length = shard.x.new_empty((n, dims), dtype=dtype), shard.x.new_empty(n, dtype=torch.float32)
    taking_part = (torch.full((), n, device=shard.x.device) if shard.rows is None
                   else (shard.rows < len(shard.centers)).sum())
    block_d = triton.next_power_of_2(dims)
    block = max(1, 4096 // block_d)
    _normalize_rows[(triton.cdiv(n, block),)](
        shard.centers, shard.rows if shard.rows is not None else shard.centers, taking_part, unit, inverse_length, n,
        GATHERED=shard.rows is not None, D=dims, BLOCK_N=block, BLOCK_D=block_d)
    if INTERPRETED:
        unit = unit.bfloat16().to(dtype)
    return shard.x.bfloat16().to(dtype).contiguous(), unit, inverse_length, taking_part


def _step_rows(shard: Shard, gradient: torch.Tensor, inverse_length: torch.Tensor, start: int, taking_part: torch.Tensor,
               update: DenseGradient | Sgd):
    """Give the gradient of some unit centers `[n,D]`, those from `start` on, to `update`."""
    n, dims = gradient.shape
    block_d = triton.next_power_of_2(dims)
    block = max(1, 2048 // block_d)
    if isinstance(update, Sgd):
        state, rates, seen, skip = (update.momentum_buffer, (update.lr, update.momentum, update.weight_decay),
                                    update.seen, update.skip)
    else:
        state, rates, seen, skip = update.out, (0.0, 0.0, 0.0), None, None

    def given(tensor):  # what is not looked at still needs a pointer
        return gradient if tensor is None else tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor

    _step[(triton.cdiv(n, block),)](
        gradient, shard.centers, given(shard.rows), inverse_length, taking_part, state, *rates, given(seen), given(skip),
        n, start, GATHERED=shard.rows is not None, STEP=isinstance(update, Sgd), SEEN=seen is not None,
        SKIP=skip is not None, MOVE=isinstance(update, Sgd) and update.move, D=dims, BLOCK_N=block, BLOCK_D=block_d)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if INTERPRETED:
        return a.bfloat16().float() @ b
    return torch.mm(a, b, out_dtype=torch.float32)


def _column(shard: Shard) -> torch.Tensor:
    return shard.column.to(shard.x.device, torch.int32, non_blocking=True)


def _limit(shard: Shard) -> float:
    return 2.0 if shard.margin.interclass is None else shard.margin.interclass  # no cosine is above 2


class Blocks(NamedTuple):
    """What one program works on at a time, by the shared memory of a processor: rows of x, classes in `row_sums`, which
    loads `stages` tiles of them ahead, classes in `gradients`, which has one tile; and all dimensions."""
    rows: int
    sum_classes: int
    stages: int
    gradient_classes: int
    dims: int

    @classmethod
    def of(cls, batch: int, dims: int, shared: int) -> "Blocks":
        block_d = max(16, triton.next_power_of_2(dims))
        rows = max(16, triton.next_power_of_2(batch))

        def side(most, numbers):  # a block of at most so many numbers
            return min(most, max(16, numbers // block_d))
        if shared >= LARGE_SHARED:
            return cls(min(rows, side(128, 32768)), side(128, 16384), 3, side(256, 65536), block_d)
        return cls(min(rows, side(64, 16384)), side(64, 8192), 2, side(64, 16384), block_d)


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _shared_memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin if device.type == "cuda" else LARGE_SHARED


@triton.jit
def _normalize_rows(centers, rows, taking_part, unit, inverse_length, n,
                    GATHERED: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    real = at < tl.load(taking_part)
    row = tl.load(rows + at, mask=real, other=0) if GATHERED else at
    w = tl.load(centers + row[:, None] * D + d[None, :], mask=real[:, None] & (d < D)[None, :], other=0.0)
    inverse = 1 / tl.maximum(tl.sqrt(tl.sum(w * w, 1)), 1e-12)
    tl.store(inverse_length + at, inverse, mask=at < n)
    tl.store(unit + at[:, None] * D + d[None, :], (w * inverse[:, None]).to(unit.dtype.element_ty),
             mask=(at < n)[:, None] & (d < D)[None, :])


@triton.jit
def _row_sums(x, unit, column, taking_part, peaks, totals, batch, n, s, limit,
              D: tl.constexpr, SHIFTED: tl.constexpr, OPERAND: tl.constexpr,
              BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr):
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    d = tl.arange(0, BLOCK_D)
    count = tl.load(taking_part).to(tl.int32)
    rows = tl.load(x + b[:, None] * D + d[None, :], mask=(b < batch)[:, None] & (d < D)[None, :], other=0.0).to(OPERAND)
    own = tl.load(column + b, mask=b < batch, other=-1)
    peak = tl.full([BLOCK_B], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_B], tl.float32)
    for start in tl.range(tl.program_id(1) * BLOCK_C, n, tl.num_programs(1) * BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        tile = tl.load(unit + c[:, None].to(tl.int64) * D + d[None, :], mask=(c < n)[:, None] & (d < D)[None, :], other=0.0)
        cosine = tl.dot(rows, tl.trans(tile.to(OPERAND)), input_precision="ieee")
        counts = (c < count)[None, :] & ~(cosine > limit) & (c[None, :] != own[:, None])  # ~: a NaN counts, and shows
        logit = tl.where(counts, cosine * s, float("-inf"))
        if SHIFTED:
            higher = tl.maximum(peak, tl.max(logit, 1))
            settled = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp2((peak - settled) * LOG2_E)
            logit -= settled[:, None]
            peak = higher
        total += tl.sum(tl.exp2(logit * LOG2_E), 1)
    tl.store(peaks + tl.program_id(1) * batch + b, peak, mask=b < batch)
    tl.store(totals + tl.program_id(1) * batch + b, total, mask=b < batch)


@triton.jit
def _cosine_gradients(x, unit, column, taking_part, peak, coefficient, target, out, batch, n, first, s, limit,
                      D: tl.constexpr, OPERAND: tl.constexpr,
                      BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr):
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    d = tl.arange(0, BLOCK_D)
    count = tl.load(taking_part).to(tl.int32)
    rows = tl.load(x + b[:, None] * D + d[None, :], mask=(b < batch)[:, None] & (d < D)[None, :], other=0.0)
    tile = tl.load(unit + c[:, None].to(tl.int64) * D + d[None, :], mask=(c < n)[:, None] & (d < D)[None, :], other=0.0)
    cosine = tl.dot(rows.to(OPERAND), tl.trans(tile.to(OPERAND)), input_precision="ieee")
    own = tl.load(column + b, mask=b < batch, other=-1) - first
    shift = tl.load(peak + b, mask=b < batch, other=0.0)
    factor = tl.load(coefficient + b, mask=b < batch, other=0.0)
    counts = (c < count - first)[None, :] & ~(cosine > limit)
    logit = tl.where(counts, cosine * s - shift[:, None], float("-inf"))
    gradient = tl.exp2(logit * LOG2_E) * factor[:, None]
    gradient = tl.where(c[None, :] == own[:, None], tl.load(target + b, mask=b < batch, other=0.0)[:, None], gradient)
    tl.store(out + b[:, None].to(tl.int64) * n + c[None, :], gradient.to(out.dtype.element_ty),
             mask=(b < batch)[:, None] & (c < n)[None, :])


@triton.jit
def _step(gradient, centers, rows, inverse_length, taking_part, state, lr, momentum, weight_decay, seen, skip, n, first,
          GATHERED: tl.constexpr, STEP: tl.constexpr, SEEN: tl.constexpr, MOVE: tl.constexpr, SKIP: tl.constexpr,
          D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """state: the momentum buffer (STEP), or the dense gradient."""
    i = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    real = (i < n) & (i + first < tl.load(taking_part))
    row = tl.load(rows + first + i, mask=real, other=0) if GATHERED else i + first
    mask = real[:, None] & (d < D)[None, :]
    at = row[:, None] * D + d[None, :]
    w = tl.load(centers + at, mask=mask, other=0.0)
    g = tl.load(gradient + i[:, None] * D + d[None, :], mask=mask, other=0.0)
    inverse = tl.load(inverse_length + i, mask=real, other=0.0)[:, None]
    # through the normalization: nothing along the center, and the rest over its length
    unit = w * inverse
    g = (g - unit * tl.sum(g * unit, 1)[:, None]) * inverse
    if STEP:
        v = tl.load(state + at, mask=mask, other=0.0)
        if SEEN:  # what has decayed in this step does not decay again
            fresh = 1.0 - tl.load(seen + row, mask=real, other=0).to(tl.float32)[:, None]
            new = v * (1 - fresh * (1 - momentum)) + g + weight_decay * fresh * w
        else:
            new = v * momentum + g + weight_decay * w
        if SKIP:
            mask = mask & (tl.load(skip + 0 * d) == 0)[None, :]  # a block of it: the interpreter takes no single mask
        tl.store(state + at, new, mask=mask)
        if MOVE:
            tl.store(centers + at, w - lr * new, mask=mask)
    else:
        tl.store(state + at, g, mask=mask)
