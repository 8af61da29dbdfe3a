"""PartialFC: class centers sharded over ranks, the margin softmax over all of them, and the centers' own update.

An et al. 2022, https://arxiv.org/abs/2203.15565. Rank r of W holds a contiguous range of the C class centers.
    X: [B,D] embeddings of the global batch      W: [C,D] class centers      cosine = normalize(X) @ normalize(W).T
    loss = mean over B of  log(1 + sum over j != y of exp(s * cosine_j) / exp(s * margin(cosine_y)))
`margin_softmax_reference` is that formula; `PartialFC` computes the same without ever holding [B,C] numbers.
Where to read on: what the ranks exchange, kernels/sharded_softmax.py; one shard, a tile of classes at a time,
kernels/margin_softmax.py, and the same as CUDA kernels, margin_softmax_triton.py; updates, kernels/row_optimizers.py.
"""
import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

from engine.distributed import rank_and_world, shard_range
from engine.random import bernoulli, normal
from kernels.margin_softmax import Shard
from kernels.row_optimizers import AdamW, DenseGradient, Sgd, rows_of, skip_flag
from kernels.sharded_softmax import ShardedMarginSoftmax, gather_batch
from losses import Margin

LEANEST_UPDATE = {"sgd": "fused", "adamw": "dense"}  # by optimizer, the update that takes the least memory
DEVIATION = 0.01  # of the numbers in a class center at the start
ROWS_AT_ONCE = 1 << 14  # where something is done to all class centers outside the tiles


def margin_softmax_reference(x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, margin: Margin,
                             rows: torch.Tensor | None = None) -> torch.Tensor:
    """The loss on one process, all logits at once, differentiable by autograd: what the tests hold PartialFC against.

    x `[B,D]` and weight `[C,D]` of any length and dtype, labels int64 `[B]`; rows: bool `[C]`, the classes that take part
    (a sample, which must contain the labels), None for all. Returns a scalar.
    """
    cosine = F.normalize(x) @ F.normalize(weight).T                            # [B,C]
    target = margin.s * margin(cosine.gather(1, labels[:, None]).squeeze(1))   # [B]
    logits = (margin.s * cosine).scatter(1, labels[:, None], -torch.inf)       # [B,C] of the negatives alone
    excluded = margin.excluded(cosine)
    if excluded is not None:
        logits = logits.masked_fill(excluded, -torch.inf)
    if rows is not None:
        logits = logits.masked_fill(~rows, -torch.inf)
    excess = logits.logsumexp(1) - target                                      # [B] log of the odds against the target
    return torch.logaddexp(excess, torch.zeros_like(excess)).mean()            # softplus: log(1 + odds)


class PartialFC(nn.Module):
    """The sharded head: `loss = head(embeddings, labels)`; `loss.backward()`; `head.finish_step()`.

    Every rank calls it with its own part of the global batch, of any size, and gets the same number: the mean margin
    cross entropy over the global batch. The gradient of `embeddings` is the plain one times the number of ranks, so
    that the mean which DistributedDataParallel takes over the ranks gives the plain gradient of the network.

    One update per optimizer step, whatever the number of calls:
        begin_step(step, lr, calls)     # the step the sample is drawn for, the learning rate, how many calls will come
        calls x (forward, backward)     # gradients add up; weigh each loss by its share of the global batch
        finish_step(skip)               # ends the step; a true flag on the device skips what is still to be done
    update: how the class centers get theirs.
        "dense"   (default) `weight.grad` `[num_local,D]` holds the plain gradient for this rank's classes (zero rows where
                  a class was not sampled), and `finish_step` makes the update. For both optimizers.
        "fused"   backward steps each tile of centers as soon as its gradient is made, and no [C,D] gradient ever exists:
                  a third less memory. For "sgd". With one call backward is the whole update; with several,
                  momentum decays at the first and the centers move in `finish_step`. A call whose loss, or its gradient,
                  is not finite skips the step by itself, before anything moves (with several calls, momentum keeps what
                  the finite ones gave); a `skip` that only shows later is too late for what has been stepped.

    margin_loss: a `losses.Margin`. sample_rate: with r < 1 a step uses the positives and those classes whose
    hash(seed, step, class id) falls below r; the other rows neither take part nor move, momentum and decay alike.
    Rows start as N(0, 0.01), a function of (seed, class id), until `imprint` turns them. optimizer: "sgd" (momentum)
    or "adamw".
    operands: dtype that the matmuls' operands are rounded to, torch.float32 or torch.bfloat16; None: bfloat16 on CUDA,
    else the weight's. Logits and all sums are float32 in any case; bfloat16 leaves some 3e-3 of error in the gradients.

    Labels are best given on the host, where they are checked: on a GPU they must be read back, which waits for it.
    """

    def __init__(self, margin_loss: Margin, embedding_size: int, num_classes: int, sample_rate: float = 1.0, *,
                 optimizer: str = "sgd", update: str = "dense", lr: float = 0.1, momentum: float = 0.9,
                 weight_decay: float = 0.0, operands: torch.dtype | None = None, seed: int = 0, device=None, dtype=None):
        super().__init__()
        self.rank, self.world = rank_and_world()
        if num_classes < self.world:
            raise ValueError(f"{num_classes} classes cannot be shared by {self.world} ranks")
        if not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate={sample_rate}: must be above 0 and at most 1")
        if optimizer not in ("sgd", "adamw"):
            raise ValueError(f"optimizer={optimizer}: must be sgd or adamw")
        if update not in ("dense", "fused"):
            raise ValueError(f"update={update}: must be dense or fused")
        if (optimizer, update) == ("adamw", "fused"):
            raise ValueError("update=fused: only for optimizer=sgd; with adamw use update=dense")
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"dtype={dtype}: must be torch.float32 or torch.float64; for bfloat16 matmuls set operands")
        if operands not in (None, torch.float32, torch.bfloat16):
            raise ValueError(f"operands={operands}: must be torch.float32, torch.bfloat16 or None")
        self.margin, self.num_classes, self.sample_rate, self.seed = margin_loss, num_classes, sample_rate, seed
        self.classes = shard_range(num_classes, self.rank, self.world)  # ids of this rank's rows
        self.optimizer, self.update, self.lr = optimizer, update, lr
        self.momentum, self.weight_decay, self.operands = momentum, weight_decay, operands

        weight = torch.empty(len(self.classes), embedding_size, device=device, dtype=dtype)
        dims = torch.arange(embedding_size, device=device)
        for part in weight.split(ROWS_AT_ONCE):  # the hashes take 8 bytes each
            first = self.classes.start + part.storage_offset() // embedding_size
            ids = torch.arange(first, first + len(part), device=device)
            part.copy_(DEVIATION * normal(seed, "centres", ids[:, None], dims))
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
            x, labels = gather_batch(embeddings.to(self.weight.dtype), labels, self.weight.shape[1], self.num_classes,
                                     self.rank, self.world)                            # [B,D]; [B] on the host
            x, local = F.normalize(x), labels - self.classes.start
            own = ((local >= 0) & (local < len(self.classes))).nonzero().squeeze(1)    # [k] rows whose class is here
            own, local = (part.to(x.device, non_blocking=True) for part in (own, local[own]))
            sampled, rows, column = self._sample(len(x), own, local)
            operands = self.operands or (torch.bfloat16 if x.is_cuda else x.dtype)
            shard = Shard(x.detach(), self.weight.detach(), rows, column, self.margin,
                          x.dtype if x.dtype == torch.float64 else operands)
            return ShardedMarginSoftmax.apply(x, self.weight, shard, own, local, self.world,
                                              functools.partial(self._gradients_to, sampled))

    def begin_step(self, step: int, lr: float | None = None, calls: int = 1) -> None:
        """Set the optimizer step, from which the sample is drawn, its learning rate, and how many calls it will have (which
        the dense update need not know)."""
        self.step, self._calls, self._expected_calls = step, 0, calls
        self.lr = self.lr if lr is None else lr
        self._skip = torch.zeros((), dtype=torch.bool, device=self.weight.device)  # a loss of this step was not finite

    @torch.no_grad()
    def imprint(self, classes: torch.Tensor, embeddings: torch.Tensor) -> None:
        """Turn the centers of `classes`, int64 `[n]`, all of this rank, to `embeddings` `[n,D]`; before the first step. They
        get the length that random ones have, since a longer center turns more slowly (https://arxiv.org/abs/1712.07136)."""
        length = DEVIATION * math.sqrt(self.weight.shape[1])
        rows = (classes - self.classes.start).to(self.weight.device)
        self.weight[rows] = length * F.normalize(embeddings.to(self.weight))

    @torch.no_grad()
    def finish_step(self, skip: torch.Tensor | None = None) -> None:
        """End the step: what backward has not yet updated is, and the step's gradient is cleared.

        `skip`: a boolean scalar on the device; where true nothing more changes (a non-finite loss). Nothing is read back
        but, with a sample, how many rows are still to be updated (a dense update, or several calls).
        """
        skip = self._skip if skip is None else self._skip | skip
        if self.update == "dense":
            known_skip = skip_flag(skip)
            update = (AdamW(self.weight, self.momentum_buffer, self.second_moment, self.updates, self.lr,
                            self.weight_decay, known_skip) if self.optimizer == "adamw" else
                      Sgd(self.weight, self.momentum_buffer, self.lr, self.momentum, self.weight_decay, skip=known_skip))
            for rows in self._active_rows():
                update.take(rows, rows_of(self.weight, rows), rows_of(self.weight.grad, rows))
        else:
            assert self._calls == self._expected_calls, f"{self._calls} calls in place of {self._expected_calls}"
            if self._calls == 1:
                skip = self._skip  # the centers have moved in backward, whatever else was found since
            else:
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

    def resumed(self, step: int, updates: int) -> None:
        """Resume from a checkpoint, after `row_state` was filled from it: the next step, and how many updates were made."""
        self.updates.fill_(updates)
        self.begin_step(step)

    def _sample(self, batch: int, own: torch.Tensor, local: torch.Tensor
                ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
        """The class centers that take part: (mask `[num_local]`, their rows ascending `[n]`), (None, None) for all; and
        each label's place among them `[batch]`, -1 where its class is elsewhere."""
        column = torch.full((batch,), -1, device=local.device)
        if self.sample_rate == 1:
            column[own] = local
            return None, None, column
        sampled = bernoulli(self.sample_rate, self.seed, "sample", self.step, self.classes, local.device)
        sampled.index_fill_(0, local, True)
        if sampled.is_cuda:  # a fixed number of rows, eight deviations above the mean: the count need not be read back
            mean = self.sample_rate * len(sampled)
            most = min(len(sampled), math.ceil(mean + 8 * math.sqrt(mean * (1 - self.sample_rate))) + batch)
            rows = torch.nonzero_static(sampled, size=most, fill_value=len(sampled)).squeeze(1)
        else:
            rows = sampled.nonzero().squeeze(1)
        column[own] = torch.searchsorted(rows, local)
        return sampled, rows, column

    def _gradients_to(self, sampled: torch.Tensor | None, finite: torch.Tensor) -> Sgd | DenseGradient:
        """Where backward's gradients of the class centers go; `finite`: whether this call's loss and gradient are."""
        before = self._active
        self._active = before | (finite if sampled is None else finite & sampled)
        self._skip |= ~finite
        if self.update == "dense":
            return DenseGradient(torch.zeros_like(self.weight))
        one = self._expected_calls == 1
        return Sgd(self.weight.detach(), self.momentum_buffer, self.lr, self.momentum, self.weight_decay,
                   seen=None if one else before, move=one, skip=skip_flag(~finite))

    def _active_rows(self) -> list[slice] | tuple[torch.Tensor, ...]:
        """The rows of this step's calls, as slices or indices, some at a time."""
        if self.sample_rate == 1:
            return [slice(at, at + ROWS_AT_ONCE) for at in range(0, len(self.classes), ROWS_AT_ONCE)]
        return self._active.nonzero().squeeze(1).split(ROWS_AT_ONCE)


def memory_needed(num_classes: int, embedding_size: int, optimizer: str = "sgd", world: int = 1) -> int:
    """Bytes that the largest of `world` shards takes on its device: class centers and what their optimizer keeps, in
    float32, with the update of LEANEST_UPDATE. What a step takes beside that hardly grows with the classes."""
    tensors = {"sgd": 2, "adamw": 4}[optimizer]
    row = 4 * embedding_size * tensors + 1  # and whether it is part of the step
    return len(shard_range(num_classes, 0, world)) * row
