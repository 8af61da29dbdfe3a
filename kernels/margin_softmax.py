"""Margin softmax over the classes of one shard, a tile of classes at a time: the [B,n] logits never exist whole.

Two passes, each over all tiles. `row_sums` makes a tile's logits and adds up their exponentials; `gradients` makes them
again (a matmul costs less than keeping them), and from them the tile's gradient, which is handed on at once.
Cosines end at 1, so up to s = 64 the exponentials fit float32 as they are, e^64 * 10 M < 1e35 and e^-64 > 1e-28: no
maximum is sought, nothing underflows. Beyond, each row's largest logit so far is carried along. The target's own term is
left out of its tile: with the target dominant, a sum that it was subtracted from would have no digits left.

This is the plain PyTorch form, for every device; margin_softmax_triton.py has the same two functions as CUDA kernels.
"""
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from kernels.row_optimizers import rows_of
from losses import Margin

TILE = 1 << 20            # numbers in a tile of logits: small enough for a cache, large enough to be worth two threads
TILE_CUDA = 1 << 26       # large enough to fill a GPU
LARGEST_UNSHIFTED = 64.0  # scales up to this one need no shift


@dataclass
class Shard:
    """What both passes work on.

    x: `[B,D]`, rows of length 1. centres: `[num_local,D]`, of any length. rows: None, all take part; or int64 `[n]`,
    ascending, those that do, where entries of num_local or more at its end are padding. column: int64 `[B]`, the place of
    a label's class among the rows that take part, -1 where that class is not here. margin: gives s and what is left out.
    operands: dtype of the matmuls' operands; sums and logits are float32 (float64 for float64).
    """
    x: torch.Tensor
    centres: torch.Tensor
    rows: torch.Tensor | None
    column: torch.Tensor
    margin: Margin
    operands: torch.dtype

    @property
    def count(self) -> int:
        return len(self.centres if self.rows is None else self.rows)

    @property
    def unshifted(self) -> bool:
        return self.margin.s <= LARGEST_UNSHIFTED

    @property
    def filtered_otherwise(self) -> bool:
        """Whether the margin leaves negatives out by a rule of its own, not by the threshold `interclass`."""
        return type(self.margin).left_out is not Margin.left_out


def implementation(shard: Shard):
    """The module whose `row_sums` and `gradients` suit: the CUDA kernels, or this one."""
    bfloat16 = shard.operands == torch.bfloat16 and shard.centres.dtype == torch.float32
    if shard.x.is_cuda and bfloat16 and not shard.filtered_otherwise:
        try:
            from kernels import margin_softmax_triton
        except ImportError:  # no Triton on this system
            return sys.modules[__name__]
        if margin_softmax_triton.runs_on(shard.x.device, shard.x.shape[1]):
            return margin_softmax_triton
    return sys.modules[__name__]


def row_sums(shard: Shard) -> tuple[torch.Tensor, torch.Tensor]:
    """(peak `[B]`, total `[B]`): total is the sum over the negatives here of exp(s * cosine - peak); peak is 0 up to s = 64,
    else the row's largest logit here (-inf without any)."""
    x, total = _scaled(shard), shard.x.new_zeros(len(shard.x))
    peak = torch.zeros_like(total) if shard.unshifted else torch.full_like(total, -torch.inf)
    for tile in _tiles(shard):
        logits = tile.logits(x, shard)
        if not shard.unshifted:
            higher = torch.maximum(peak, logits.amax(1))
            settled = higher.masked_fill(higher == -torch.inf, 0)  # a row without negatives so far
            total *= (peak - settled).exp_()
            logits -= settled[:, None]
            peak = higher
        total += logits.exp_().sum(1)
    return peak, total


def gradients(shard: Shard, peak: torch.Tensor, coefficient: torch.Tensor, target: torch.Tensor, update) -> torch.Tensor:
    """Gradient of `x`, `[B,D]`; that of the centres goes to `update.take`, tile by tile.

    The gradient of the cosine of row b and class j is coefficient_b * exp(s * cosine - peak_b), or target_b, `[B]` each,
    for the label's own class.
    """
    x = _scaled(shard)
    negative, positive = shard.x * coefficient[:, None], shard.x * target[:, None]
    right_operand, gradient_x = _operand(negative, shard), torch.zeros_like(shard.x)
    own = torch.zeros_like(shard.x)
    for tile in _tiles(shard):
        exps = tile.logits(x, shard)
        if not shard.unshifted:
            exps -= peak[:, None]
        exps = _operand(exps.exp_(), shard)
        # coefficient is a factor of the rows, so it goes onto the small matrices, [B,D], before and after the sum.
        _add_product(gradient_x, exps, tile.unit)
        gradient = _product(exps.T, right_operand, out=tile.spare)          # [n,D], of the centre brought to length 1
        gradient.index_put_((tile.own_column,), positive[tile.own_row], accumulate=True)
        unit = tile.unit.to(gradient.dtype)
        own[tile.own_row] = unit[tile.own_column] * target[tile.own_row, None]
        # through the normalisation: nothing along the centre, and the rest over its length
        gradient.addcmul_(unit, torch.linalg.vecdot(gradient, unit)[:, None], value=-1).mul_(tile.inverse_length)
        update.take(tile.rows, tile.centres, gradient)
    return gradient_x * coefficient[:, None] + own


@dataclass
class _Tile:
    rows: slice | torch.Tensor       # of the shard
    centres: torch.Tensor            # [n,D]
    inverse_length: torch.Tensor     # [n,1]
    unit: torch.Tensor               # [n,D], of length 1, as an operand
    own_row: torch.Tensor            # [k] rows of the batch whose class is in this tile
    own_column: torch.Tensor         # [k] and where
    room: torch.Tensor               # [B,n]
    spare: torch.Tensor              # [n,D]

    def logits(self, x: torch.Tensor, shard: Shard) -> torch.Tensor:
        """s * cosine `[B,n]`, -inf where a class is left out of the sum; x: `_scaled(shard)`."""
        logits = _product(x, self.unit.T, out=self.room)
        if x.dtype == torch.bfloat16:
            logits *= shard.margin.s
        if shard.margin.interclass is not None or shard.filtered_otherwise:
            left_out = shard.margin.left_out(logits / shard.margin.s)
            if left_out is not None:
                logits.masked_fill_(left_out, -torch.inf)
        logits[self.own_row, self.own_column] = -torch.inf
        return logits


def _tiles(shard: Shard) -> Iterator[_Tile]:
    """The shard's tiles in order. Their memory is used again: one must be done with before the next is asked for."""
    (batch, dims), device = shard.x.shape, shard.x.device
    rows = shard.rows if shard.rows is None else shard.rows[:int(torch.searchsorted(shard.rows, len(shard.centres)))]
    count = shard.count if rows is None else len(rows)
    width = max(64, (TILE_CUDA if device.type == "cuda" else TILE) // max(batch, dims))
    width = min(width, max(1, count))
    room, unit, spare = (shard.x.new_empty(size * width) for size in (batch, dims, dims))

    column, order = shard.column.cpu().sort()  # the targets of a tile are neighbours in this order
    bounds = torch.searchsorted(column, torch.arange(0, count + width, width)).tolist()
    column, order = column.to(device), order.to(device)
    for i, start in enumerate(range(0, count, width)):
        stop = min(start + width, count)
        n = stop - start
        at = slice(start, stop) if rows is None else rows[start:stop]
        centres = rows_of(shard.centres, at)
        inverse_length = torch.linalg.vector_norm(centres, dim=1, keepdim=True).clamp_min_(1e-12).reciprocal_()
        here = slice(bounds[i], bounds[i + 1])
        yield _Tile(at, centres, inverse_length,
                    _operand(torch.mul(centres, inverse_length, out=unit[:n * dims].view(n, dims)), shard),
                    order[here], column[here] - start, room[:batch * n].view(batch, n), spare[:n * dims].view(n, dims))


# bfloat16 products are summed in float32. A CPU has no such matmul, so there the operands are rounded and
# multiplied in float32, which is the same: a product of two bfloat16 numbers is exact in float32.
def _operand(x: torch.Tensor, shard: Shard) -> torch.Tensor:
    if shard.operands != torch.bfloat16:
        return x
    return x.bfloat16() if x.is_cuda else x.bfloat16().to(x.dtype)


def _scaled(shard: Shard) -> torch.Tensor:
    """x as an operand, times s where that does not round it again."""
    x = _operand(shard.x, shard)
    return x if x.dtype == torch.bfloat16 else x * shard.margin.s


def _product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return torch.mm(a, b, out_dtype=torch.float32, out=out) if a.dtype == torch.bfloat16 else torch.mm(a, b, out=out)


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    if a.dtype == torch.bfloat16:
        total += torch.mm(a, b, out_dtype=torch.float32)
    else:
        total.addmm_(a, b)
