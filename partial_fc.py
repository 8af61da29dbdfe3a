"""Class centres sharded over ranks, the margin softmax over all of them, and the centres' own update.

Partial FC: An et al. 2022, https://arxiv.org/abs/2203.15565. Rank r of W holds a contiguous range of the C class rows.
    X: [B,D] embeddings of the global batch      W: [C,D] centres      cosine = normalize(X) @ normalize(W).T
    loss = mean over B of  log(1 + sum over j != y of exp(s * cosine_j) / exp(s * margin(cosine_y)))
Across ranks go, per step, the embeddings and their gradient, and for each row one sum and the target's logit (beyond
s = 64 also a maximum). The work of a rank is done a tile of classes at a time: margin_softmax.py, and as CUDA kernels
margin_softmax_triton.py.
"""
import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from engine.distributed import rank_and_world, shard_range
from engine.random import bernoulli, normal
from kernels.margin_softmax import Shard, implementation
from kernels.row_optimizers import AdamW, DenseGradient, Sgd, rows_of
from losses import Margin

ROWS_AT_ONCE = 1 << 14  # where something is done to all centres outside the tiles


def memory_needed(num_classes: int, embedding_size: int, optimizer: str = "sgd", world: int = 1) -> int:
    """Bytes that the largest of `world` shards takes on its device: centres and what their optimizer keeps, in float32, and
    for "adamw" a dense gradient. What a step takes beside that hardly grows with the classes."""
    tensors = {"sgd": 2, "adamw": 4}[optimizer]
    return len(shard_range(num_classes, 0, world)) * (4 * embedding_size * tensors + 1)  # 1: whether a row is part of the step


class PartialFC(nn.Module):
    """The sharded head: `loss = head(embeddings, labels)`; `loss.backward()`; `head.finish_step()`.

    Every rank calls it with its own part of the global batch, of any size, and gets the same number: the mean margin
    cross entropy over the global batch. The gradient of `embeddings` is the plain one times the number of ranks, so
    that the mean which DistributedDataParallel takes over the ranks gives the plain gradient of the network.

    One update per optimiser step, whatever the number of calls:
        begin_step(step, lr, calls)     # the step the sample is drawn for, the learning rate, how many calls will come
        calls x (forward, backward)     # gradients add up; weigh each loss by its share of the global batch
        finish_step(skip)               # ends the step; a true flag on the device leaves out what is still to be done
    Where `calls` was told and the optimizer is "sgd", backward steps each tile of centres as soon as its gradient is
    made, and no [C,D] gradient ever exists: with one call it is the update, with several momentum decays at the first
    and weights move at the end. A call whose loss, or its gradient, is not finite then skips the step by itself, before
    anything moves (with several calls, momentum keeps what the finite ones gave); a `skip` that only shows later is too
    late for what has been stepped. Otherwise, or with `dense_gradient`, `weight.grad` `[num_local,D]` holds the plain
    gradient for this rank's classes (zero rows where a class was not sampled), and `finish_step` makes the update.

    margin_loss: a `losses.Margin`. sample_rate: with r < 1 a step uses the positives and those classes whose
    hash(seed, step, class id) falls below r; the other rows neither take part nor move, momentum and decay alike.
    Rows start as N(0, 0.01), a function of (seed, class id). optimizer: "sgd" (momentum) or "adamw".
    operands: dtype that the matmuls' operands are rounded to, torch.float32 or torch.bfloat16; None: bfloat16 on CUDA,
    else the weight's. Logits and all sums are float32 in any case; bfloat16 leaves some 3e-3 of error in the gradients.

    Labels are best given on the host, where they are checked: on a GPU they must be read back, which waits for it.
    """

    def __init__(self, margin_loss: Margin, embedding_size: int, num_classes: int, sample_rate: float = 1.0, *,
                 optimizer: str = "sgd", lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 0.0,
                 dense_gradient: bool = False, operands: torch.dtype | None = None, seed: int = 0, device=None, dtype=None):
        super().__init__()
        self.rank, self.world = rank_and_world()
        if num_classes < self.world:
            raise ValueError(f"{num_classes} classes cannot be shared by {self.world} ranks")
        if not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate={sample_rate}: must be above 0 and at most 1")
        if optimizer not in ("sgd", "adamw"):
            raise ValueError(f"optimizer={optimizer}: the centres know sgd and adamw")
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"dtype={dtype}: centres are torch.float32 or torch.float64; for bfloat16 matmuls set operands")
        if operands not in (None, torch.float32, torch.bfloat16):
            raise ValueError(f"operands={operands}: must be torch.float32, torch.bfloat16 or None")
        self.margin, self.num_classes, self.sample_rate, self.seed = margin_loss, num_classes, sample_rate, seed
        self.classes = shard_range(num_classes, self.rank, self.world)  # ids of this rank's rows
        self.optimizer, self.lr, self.momentum, self.weight_decay = optimizer, lr, momentum, weight_decay
        self.dense_gradient, self.operands = dense_gradient, operands

        weight = torch.empty(len(self.classes), embedding_size, device=device, dtype=dtype)
        dims = torch.arange(embedding_size, device=device)
        for part in weight.split(ROWS_AT_ONCE):  # the hashes take 8 bytes each
            first = self.classes.start + part.storage_offset() // embedding_size
            ids = torch.arange(first, first + len(part), device=device)
            part.copy_(0.01 * normal(seed, "centres", ids[:, None], dims))
        self.weight = nn.Parameter(weight)                                      # [num_local,D]
        self.register_buffer("momentum_buffer", torch.zeros_like(weight))       # [num_local,D]; AdamW's first moment
        if optimizer == "adamw":
            self.register_buffer("second_moment", torch.zeros_like(weight))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=device))  # steps that were not skipped
        self._active = torch.zeros(len(self.classes), dtype=torch.bool, device=device)  # rows of this step's calls so far
        self.begin_step(0)

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """embeddings `[B_local,D]`, labels int64 `[B_local]` in [0, num_classes) -> loss, a scalar.

        Raises ValueError on every rank when any rank's labels are out of range or do not fit the embeddings.
        """
        self._calls += 1
        with torch.autocast(embeddings.device.type, enabled=False):  # bfloat16 would round the logits, up to s = 64, to 1/4
            x, labels = self._gather(embeddings.to(self.weight.dtype), labels)         # [B,D]; [B] on the host
            local = labels - self.classes.start
            own = ((local >= 0) & (local < len(self.classes))).nonzero().squeeze(1)    # [k] rows whose class is here
            return _MarginSoftmax.apply(F.normalize(x), self.weight, self, own, local[own])

    def begin_step(self, step: int, lr: float | None = None, calls: int | None = None) -> None:
        """Set the optimiser step, from which the sample is drawn, its learning rate, and how many calls it will have."""
        self.step, self._calls, self._expected_calls = step, 0, calls
        self.lr = self.lr if lr is None else lr
        self._skip = torch.zeros((), dtype=torch.bool, device=self.weight.device)  # a loss of this step was not finite

    @torch.no_grad()
    def finish_step(self, skip: torch.Tensor | None = None) -> None:
        """End the step: what backward has not yet updated is, and the step's gradient is cleared.

        `skip`: a boolean scalar on the device; where true nothing more changes (a non-finite loss). Nothing is read back
        but, with a sample, how many rows are still to be updated (AdamW, a dense gradient, several calls).
        """
        assert self._expected_calls in (None, self._calls), f"{self._calls} calls of {self._expected_calls}"
        if self._in_backward and self._calls == 1:
            skip = self._skip  # what backward went by
        else:
            skip = self._skip if skip is None else self._skip | skip
        if not self._in_backward:
            known_skip = _known(skip)
            update = (AdamW(self.weight, self.momentum_buffer, self.second_moment, self.updates, self.lr,
                            self.weight_decay, known_skip) if self.optimizer == "adamw" else
                      Sgd(self.weight, self.momentum_buffer, self.lr, self.momentum, self.weight_decay, skip=known_skip))
            for rows in self._active_rows():
                update.take(rows, rows_of(self.weight, rows), rows_of(self.weight.grad, rows))
        elif self._calls > 1:
            rate = self.lr * (~skip).to(self.weight.dtype)
            for rows in self._active_rows():
                self.weight[rows] -= rate * self.momentum_buffer[rows]
        self.weight.grad = None
        self._active.zero_()
        self.updates += ~skip
        self.begin_step(self.step + 1)

    def row_state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold: tensors whose first dimension runs over `classes`, this rank's class ids."""
        rows = ("weight", "momentum_buffer", "second_moment")
        return {name: value.detach() for name, value in self.state_dict().items() if name in rows}

    @property
    def _in_backward(self) -> bool:
        """Whether the centres are stepped in backward, tile by tile."""
        return self._expected_calls is not None and self.optimizer == "sgd" and not self.dense_gradient

    def _update_for(self, loss_is_finite: torch.Tensor) -> Sgd | DenseGradient:
        """Where backward's gradients of the centres go."""
        if not self._in_backward:
            return DenseGradient(torch.zeros_like(self.weight))
        one = self._expected_calls == 1
        return Sgd(self.weight.detach(), self.momentum_buffer, self.lr, self.momentum, self.weight_decay,
                   seen=None if one else self._active, move=one, skip=_known(~loss_is_finite))

    def _active_rows(self):
        """The rows of this step's calls, as slices or indices, some at a time."""
        if self.sample_rate == 1:
            return [slice(at, at + ROWS_AT_ONCE) for at in range(0, len(self.classes), ROWS_AT_ONCE)]
        return self._active.nonzero().squeeze(1).split(ROWS_AT_ONCE)

    def _gather(self, x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All ranks' embeddings, with gradient, and labels, on the host, in rank order."""
        fits = labels.dim() == 1 and x.dim() == 2 and len(labels) == len(x) and x.shape[1] == self.weight.shape[1]
        sizes = [len(labels) if fits else -1]
        if self.world > 1:
            gathered = labels.new_empty(self.world)
            dist.all_gather_into_tensor(gathered, gathered.new_tensor(sizes))
            sizes = gathered.tolist()
        if min(sizes) < 0 or sum(sizes) == 0:
            raise ValueError(f"embeddings {list(x.shape)} and labels {list(labels.shape)} (this rank) must be [B,"
                             f"{self.weight.shape[1]}] and [B] on every rank, with at least one row in all")
        if self.world > 1:
            labels = _gather_rows(labels, sizes)
            x = _GatherEmbeddings.apply(x, sizes, self.rank)
        labels = labels.cpu()
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(wrong):
            raise ValueError(f"label {wrong[0].item()} is outside [0, {self.num_classes})")
        return x, labels

    def _participants(self, batch: int, own: torch.Tensor, local: torch.Tensor
                      ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
        """The centres that take part: (mask `[num_local]`, their rows ascending `[n]`), (None, None) for all; and each
        label's place among them `[batch]`, -1 where its class is elsewhere."""
        column = torch.full((batch,), -1, device=local.device)
        if self.sample_rate == 1:
            column[own] = local
            return None, None, column
        chosen = bernoulli(self.sample_rate, self.seed, "sample", self.step, self.classes, local.device)
        chosen.index_fill_(0, local, True)
        if chosen.is_cuda:  # a fixed number of rows, eight deviations above the mean: the count need not be read back
            mean, spread = self.sample_rate * len(chosen), math.sqrt(len(chosen) * self.sample_rate * (1 - self.sample_rate))
            most = min(len(chosen), math.ceil(mean + 8 * spread) + batch)
            rows = torch.nonzero_static(chosen, size=most, fill_value=len(chosen)).squeeze(1)
        else:
            rows = chosen.nonzero().squeeze(1)
        column[own] = torch.searchsorted(rows, local)
        return chosen, rows, column


class _MarginSoftmax(torch.autograd.Function):
    """Mean over the global batch of softplus(logsumexp(negatives) - target), the classes spread over tiles and ranks.

    x `[B,D]`, of length 1; own `[k]`: rows whose class this rank holds, local `[k]`: that class's row in `weight`.
    The target's term is not part of any sum, so nothing is ever subtracted from it: loss and gradient keep their digits
    when the target dominates (p - 1 in float32 would be 0 or noise).
    """

    @staticmethod
    def forward(ctx, x, weight, head, own, local):
        own, local = own.to(x.device, non_blocking=True), local.to(x.device, non_blocking=True)
        chosen, rows, column = head._participants(len(x), own, local)
        operands = head.operands or (torch.bfloat16 if x.is_cuda else x.dtype)
        shard = Shard(x.detach(), weight.detach(), rows, column, head.margin,
                      x.dtype if x.dtype == torch.float64 else operands)
        tiles = implementation(shard)
        with torch.cuda.device_of(x):  # Triton launches on the current device
            peak, total = tiles.row_sums(shard)                              # [B], [B]

        with torch.enable_grad():
            cosine = (shard.x[own] * F.normalize(shard.centres[local])).sum(1).requires_grad_()
            margin = head.margin(cosine)                                     # [k]
            slope, = torch.autograd.grad(margin.sum(), cosine)               # [k]
        target = torch.zeros_like(total).index_put((own,), head.margin.s * margin.detach())
        if head.world > 1 and not shard.unshifted:
            highest = peak.clone()
            dist.all_reduce(highest, dist.ReduceOp.MAX)
            total, peak = total * (peak - highest.masked_fill(highest == -torch.inf, 0)).exp(), highest
        peak = peak.masked_fill(peak == -torch.inf, 0)                       # a row without any negative
        if head.world > 1:
            sums = torch.stack([total, target])                              # [2,B]
            dist.all_reduce(sums)
            total, target = sums
        excess = total.log() + peak - target                                 # log of the odds against the target
        loss = torch.logaddexp(excess, torch.zeros_like(excess)).mean()      # softplus
        ctx.head, ctx.tiles, ctx.shard, ctx.chosen = head, tiles, shard, chosen
        ctx.save_for_backward(peak, total, excess, own, slope, loss)
        return loss

    @staticmethod
    def backward(ctx, grad):
        peak, total, excess, own, slope, loss = ctx.saved_tensors
        head, shard = ctx.head, ctx.shard
        assert shard is not None, "a second backward of the same loss: its centres have moved"
        ctx.shard = None
        scale = grad * head.margin.s / len(excess)
        wrong = excess.sigmoid()                                             # [B] probability of all but the target
        coefficient = scale * wrong / total.clamp_min(torch.finfo(total.dtype).tiny)
        target = torch.zeros_like(wrong).index_put((own,), -scale * wrong[own] * slope)
        finite = (grad * loss).isfinite()  # this loss, and what was made of it
        head._skip |= ~finite
        update = head._update_for(finite)
        with torch.cuda.device_of(peak):
            gradient_x = ctx.tiles.gradients(shard, peak, coefficient, target, update)  # [B,D]
        head._active |= finite if ctx.chosen is None else finite & ctx.chosen
        return gradient_x, update.out if isinstance(update, DenseGradient) else None, None, None, None


def _known(flag: torch.Tensor) -> torch.Tensor | None:
    """A flag to skip by; None when it is known to be false, as on a CPU, where reading costs nothing."""
    return flag if flag.is_cuda or flag else None


def _gather_rows(x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Rows of all ranks, `sizes[r]` from rank r; parts are padded to the largest, since collectives want equal shapes."""
    most = max(sizes)
    padded = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
    out = x.new_empty(len(sizes) * most, *x.shape[1:])
    dist.all_gather_into_tensor(out, padded)
    return torch.cat([part[:size] for part, size in zip(out.split(most), sizes)])


class _GatherEmbeddings(torch.autograd.Function):
    """`_gather_rows` with gradient: each rank gets the sum over the shards of its rows' gradient, times the ranks."""

    @staticmethod
    def forward(ctx, x, sizes, rank):
        ctx.sizes, ctx.rank = sizes, rank
        return _gather_rows(x, sizes)

    @staticmethod
    def backward(ctx, grad):
        sizes, most = ctx.sizes, max(ctx.sizes)
        padded = torch.cat([F.pad(part, (0, 0, 0, most - len(part))) for part in grad.split(sizes)])
        out = grad.new_empty(most, grad.shape[1])
        dist.reduce_scatter_tensor(out, padded)
        return out[:sizes[ctx.rank]] * len(sizes), None, None  # times W: DDP will take the mean over ranks
