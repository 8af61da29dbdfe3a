"""The head's computation across ranks, with its gradients: embeddings gathered, and a margin softmax over all shards.

Per step, the ranks exchange the embeddings and their gradient, and for each row of the batch one sum and the target's
logit (beyond s = 64 also a maximum).
"""
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F

from kernels import margin_softmax
from kernels.margin_softmax import Shard
from kernels.row_optimizers import DenseGradient, Sgd


class ShardedMarginSoftmax(torch.autograd.Function):
    """Mean over the global batch of softplus(logsumexp(negatives) - target), the classes spread over tiles and ranks.

    x `[B,D]`, of length 1; weight: what `shard.centers` are, for autograd; own `[k]`: rows of x whose class this rank
    holds, local `[k]`: that class's row in `weight`. gradients_to(finite): called in backward with a flag on the device,
    whether loss and gradient are finite; returns where the gradients of the class centers go, tile by tile.
    The target's term is not part of any sum, so nothing is ever subtracted from it: loss and gradient keep their digits
    when the target dominates (p - 1 in float32 would be 0 or noise).
    """

    @staticmethod
    def forward(ctx, x, weight, shard: Shard, own, local, world: int,
                gradients_to: Callable[[torch.Tensor], Sgd | DenseGradient]):
        tiles = _implementation(shard)
        with torch.cuda.device_of(x):  # Triton launches on the current device
            peak, total = tiles.row_sums(shard)                              # [B], [B]: sum of exp(s * cosine - peak)

        with torch.enable_grad():  # only the owner of a class applies the margin
            cosine = (shard.x[own] * F.normalize(shard.centers[local])).sum(1).requires_grad_()
            moved = shard.margin(cosine)                                     # [k]
            slope, = torch.autograd.grad(moved.sum(), cosine)                # [k]
        target = torch.zeros_like(total).index_put((own,), shard.margin.s * moved.detach())
        if world > 1 and not shard.unshifted:
            highest = peak.clone()
            dist.all_reduce(highest, dist.ReduceOp.MAX)
            total, peak = total * (peak - highest.masked_fill(highest == -torch.inf, 0)).exp(), highest
        peak = peak.masked_fill(peak == -torch.inf, 0)                       # a row without any negative
        if world > 1:
            sums = torch.stack([total, target])                              # [2,B]
            dist.all_reduce(sums)
            total, target = sums
        excess = total.log() + peak - target                                 # log of the odds against the target
        loss = torch.logaddexp(excess, torch.zeros_like(excess)).mean()      # softplus
        ctx.tiles, ctx.shard, ctx.gradients_to = tiles, shard, gradients_to
        ctx.save_for_backward(peak, total, excess, own, slope, loss)
        return loss

    @staticmethod
    def backward(ctx, grad):
        peak, total, excess, own, slope, loss = ctx.saved_tensors
        shard, ctx.shard = ctx.shard, None
        assert shard is not None, "a second backward of the same loss: its class centers have moved"
        scale = grad * shard.margin.s / len(excess)
        wrong = excess.sigmoid()                                             # [B] probability of all but the target
        coefficient = scale * wrong / total.clamp_min(torch.finfo(total.dtype).tiny)
        target = torch.zeros_like(wrong).index_put((own,), -scale * wrong[own] * slope)
        update = ctx.gradients_to((grad * loss).isfinite())
        with torch.cuda.device_of(peak):
            gradient_x = ctx.tiles.gradients(shard, peak, coefficient, target, update)  # [B,D]
        dense = update.out if isinstance(update, DenseGradient) else None    # [num_local,D]
        return gradient_x, dense, None, None, None, None, None


def _implementation(shard: Shard):
    """The module whose `row_sums` and `gradients` suit: the CUDA kernels, or the plain form."""
    bfloat16 = shard.operands == torch.bfloat16 and shard.centers.dtype == torch.float32
    if shard.x.is_cuda and bfloat16 and not shard.has_its_own_rule:
        try:
            from kernels import margin_softmax_triton
        except ImportError:  # no Triton on this system
            return margin_softmax
        if margin_softmax_triton.runs_on(shard.x.device, shard.x.shape[1]):
            return margin_softmax_triton
    return margin_softmax


def gather_batch(x: torch.Tensor, labels: torch.Tensor, dims: int, num_classes: int, rank: int, world: int
                 ) -> tuple[torch.Tensor, torch.Tensor]:
    """All ranks' embeddings `[B,dims]`, with gradient, and labels `[B]`, on the host, in rank order.

    Raises ValueError on every rank when any rank's labels do not fit its embeddings, or one is outside [0, num_classes).
    """
    fits = labels.dim() == 1 and x.dim() == 2 and len(labels) == len(x) and x.shape[1] == dims
    sizes = [len(labels) if fits else -1]
    if world > 1:
        gathered = labels.new_empty(world)
        dist.all_gather_into_tensor(gathered, gathered.new_tensor(sizes))
        sizes = gathered.tolist()
    if min(sizes) < 0 or sum(sizes) == 0:
        raise ValueError(f"embeddings {list(x.shape)} and labels {list(labels.shape)} (this rank) must be [B,{dims}] and "
                         "[B] on every rank, with at least one row in all")
    if world > 1:
        labels = _gather_rows(labels, sizes)
        x = _GatherEmbeddings.apply(x, sizes, rank)
    labels = labels.cpu()
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(f"label {wrong[0].item()} is outside [0, {num_classes})")
    return x, labels


class _GatherEmbeddings(torch.autograd.Function):
    """`_gather_rows` with gradient: each rank gets the sum over the shards of its rows' gradient, times the ranks."""

    @staticmethod
    def forward(ctx, x, sizes: list[int], rank: int):
        ctx.sizes, ctx.rank = sizes, rank
        return _gather_rows(x, sizes)

    @staticmethod
    def backward(ctx, grad):
        sizes, most = ctx.sizes, max(ctx.sizes)
        padded = torch.cat([F.pad(part, (0, 0, 0, most - len(part))) for part in grad.split(sizes)])
        out = grad.new_empty(most, grad.shape[1])
        dist.reduce_scatter_tensor(out, padded)
        return out[:sizes[ctx.rank]] * len(sizes), None, None  # times W: DDP will take the mean over ranks


def _gather_rows(x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Rows of all ranks, `sizes[r]` from rank r; parts are padded to the largest, since collectives want equal shapes."""
    most = max(sizes)
    padded = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
    out = x.new_empty(len(sizes) * most, *x.shape[1:])
    dist.all_gather_into_tensor(out, padded)
    return torch.cat([part[:size] for part, size in zip(out.split(most), sizes)])
