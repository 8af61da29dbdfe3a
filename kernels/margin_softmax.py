"""Margin softmax over the classes of one shard, a tile of classes at a time: the [B,n] logits never exist whole.

Two passes, each over all tiles. `row_sums` computes a tile's logits and adds up their exponentials; `gradients` computes
them again (a matmul costs less than keeping them), and from them the tile's gradient, which is passed on at once.
Cosines end at 1, so up to s = 64 the exponentials fit float32 as they are, e^64 * 10 M < 1e35 and e^-64 > 1e-28: no
maximum is needed, nothing underflows. Beyond, each row's largest logit so far is carried along. The target's own term is
excluded from its tile: with the target dominant, a sum that it was subtracted from would have no digits left.

This is the plain PyTorch form, for every device; margin_softmax_triton.py has the same two functions as CUDA kernels.
sharded_softmax.py chooses between them, and is where the margin itself is applied, to the target alone.
"""
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

    x: `[B,D]`, rows of length 1. centers: `[num_local,D]`, of any length. rows: None, all take part; or int64 `[n]`,
    ascending, those that do, where entries of num_local or more at its end are padding. column: int64 `[B]`, the place of
    a label's class among the rows that take part, -1 where that class is not here. margin: gives s and which
    negatives are excluded. operands: dtype of the matmuls' operands; sums and logits are float32 (float64 for float64).
    """
    x: torch.Tensor
    centers: torch.Tensor
    rows: torch.Tensor | None
    column: torch.Tensor
    margin: Margin
    operands: torch.dtype

    @property
    def count(self) -> int:
        return len(self.centers if self.rows is None else self.rows)

    @property
    def unshifted(self) -> bool:
        return self.margin.s <= LARGEST_UNSHIFTED

    @property
    def has_its_own_rule(self) -> bool:
        """Whether the margin excludes negatives by a rule of its own, not by the threshold `interclass`."""
        return type(self.margin).excluded is not Margin.excluded


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
    """Gradient of `x`, `[B,D]`; that of the centers goes to `update.take`, tile by tile.

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
        gradient = _product(exps.T, right_operand, out=tile.gradient_buffer)  # [n,D], of the unit center
        gradient.index_put_((tile.own_column,), positive[tile.own_row], accumulate=True)
        unit = tile.unit.to(gradient.dtype)
        own[tile.own_row] = unit[tile.own_column] * target[tile.own_row, None]
        # through the normalization: nothing along the center, and the rest over its length
        gradient.addcmul_(unit, torch.linalg.vecdot(gradient, unit)[:, None], value=-1).mul_(tile.inverse_length)
        update.take(tile.rows, tile.centers, gradient)
    return gradient_x * coefficient[:, None] + own


@dataclass
class _Tile:
    rows: slice | torch.Tensor       # of the shard
    centers: torch.Tensor            # [n,D]
    inverse_length: torch.Tensor     # [n,1]
    unit: torch.Tensor               # [n,D], of length 1, as an operand
    own_row: torch.Tensor            # [k] rows of the batch whose class is in this tile
    own_column: torch.Tensor         # [k] and where
    logits_buffer: torch.Tensor      # [B,n]
    gradient_buffer: torch.Tensor    # [n,D]

    def logits(self, x: torch.Tensor, shard: Shard) -> torch.Tensor:
        """s * cosine `[B,n]`, -inf where a class is excluded from the sum; x: `_scaled(shard)`."""
        logits = _product(x, self.unit.T, out=self.logits_buffer)
        if x.dtype == torch.bfloat16:
            logits *= shard.margin.s
        if shard.margin.interclass is not None or shard.has_its_own_rule:
            excluded = shard.margin.excluded(logits / shard.margin.s)
            if excluded is not None:
                logits.masked_fill_(excluded, -torch.inf)
        logits[self.own_row, self.own_column] = -torch.inf
        return logits


def _tiles(shard: Shard) -> Iterator[_Tile]:
    """The shard's tiles in order. They share their memory: use one to the end before taking the next."""
    (batch, dims), device = shard.x.shape, shard.x.device
    rows = shard.rows if shard.rows is None else shard.rows[:int(torch.searchsorted(shard.rows, len(shard.centers)))]
    count = shard.count if rows is None else len(rows)
    width = max(64, (TILE_CUDA if device.type == "cuda" else TILE) // max(batch, dims))
    width = min(width, max(1, count))
    logits, unit, gradient = (shard.x.new_empty(size * width) for size in (batch, dims, dims))

    column, order = shard.column.cpu().sort()  # the targets of a tile are neighbors in this order
    bounds = torch.searchsorted(column, torch.arange(0, count + width, width)).tolist()
    column, order = column.to(device), order.to(device)
    for i, start in enumerate(range(0, count, width)):
        stop = min(start + width, count)
        n = stop - start
        at = slice(start, stop) if rows is None else rows[start:stop]
        centers = rows_of(shard.centers, at)
        inverse_length = torch.linalg.vector_norm(centers, dim=1, keepdim=True).clamp_min_(1e-12).reciprocal_()
        here = slice(bounds[i], bounds[i + 1])
        yield _Tile(at, centers, inverse_length,
                    _operand(torch.mul(centers, inverse_length, out=unit[:n * dims].view(n, dims)), shard),
                    order[here], column[here] - start, logits[:batch * n].view(batch, n), gradient[:n * dims].view(n, dims))


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
