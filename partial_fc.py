"""Class centres sharded over ranks, the margin softmax over all of them, and the centres' own update.

Partial FC: An et al. 2022, https://arxiv.org/abs/2203.15565. Rank r of W holds a contiguous range of the C class rows.
    X: [B,D] embeddings of the global batch      W: [C,D] centres      cosine = normalize(X) @ normalize(W).T
    loss = mean over B of  log(1 + sum over j != y of exp(s * cosine_j) / exp(s * margin(cosine_y)))
"""
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from losses import Margin
from runtime import normal, rank_and_world, share_of, uniform


class PartialFC(nn.Module):
    """The sharded head: `loss = head(embeddings, labels)`; `loss.backward()`; `head.finish_step()`.

    Every rank calls it with its own part of the global batch, of any size, and gets the same number: the mean margin
    cross entropy over the global batch. After backward, `weight.grad` `[num_local,D]` is the plain gradient of that
    loss for this rank's classes (zero rows where a class was not sampled), and the gradient of `embeddings` is the
    plain one times the number of ranks, so that the mean which DistributedDataParallel takes over the ranks gives the
    plain gradient of the network.

    margin_loss: a `losses.Margin`. sample_rate: with r < 1 a step uses the positives and those classes whose
    hash(seed, step, class id) falls below r; the other rows neither take part nor move, momentum and decay alike.
    Rows start as N(0, 0.01), a function of (seed, class id). optimizer: "sgd" (momentum) or "adamw".

    One update per optimiser step, whatever the number of calls:
        begin_step(step, lr, calls)     # optional; sets the step the sample is drawn for and the learning rate
        calls x (forward, backward)     # gradients add up; weigh each loss by its share of the global batch
        finish_step(skip)               # the update; a true flag on the device leaves everything as it was
    """

    def __init__(self, margin_loss: Margin, embedding_size: int, num_classes: int, sample_rate: float = 1.0, *,
                 optimizer: str = "sgd", lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 0.0,
                 seed: int = 0, device=None, dtype=None):
        super().__init__()
        self.rank, self.world = rank_and_world()
        if num_classes < self.world:
            raise ValueError(f"{num_classes} classes cannot be shared by {self.world} ranks")
        if not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate={sample_rate}: must be above 0 and at most 1")
        if optimizer not in ("sgd", "adamw"):
            raise ValueError(f"optimizer={optimizer}: the centres know sgd and adamw")
        self.margin, self.num_classes, self.sample_rate, self.seed = margin_loss, num_classes, sample_rate, seed
        self.classes = share_of(num_classes, self.rank, self.world)  # ids of this rank's rows
        self.optimizer, self.lr, self.momentum, self.weight_decay = optimizer, lr, momentum, weight_decay

        weight = torch.empty(len(self.classes), embedding_size, device=device, dtype=dtype)
        dims = torch.arange(embedding_size, device=device)
        for ids in self._ids(device).split(1 << 14):  # in parts: the hashes take 8 bytes each
            weight[ids - self.classes.start] = 0.01 * normal(seed, "centres", ids[:, None], dims).to(weight.dtype)
        self.weight = nn.Parameter(weight)                                      # [num_local,D]
        self.register_buffer("momentum_buffer", torch.zeros_like(weight))       # [num_local,D]; AdamW's first moment
        if optimizer == "adamw":
            self.register_buffer("second_moment", torch.zeros_like(weight))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=device))  # steps that were not skipped
        self.step, self._calls, self._expected_calls = 0, 0, None
        self._active = torch.zeros(len(self.classes), dtype=torch.bool, device=device)  # rows that took part

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """embeddings `[B_local,D]`, labels int64 `[B_local]` in [0, num_classes) -> loss, a scalar.

        Raises ValueError on every rank when any rank's labels are out of range or do not fit the embeddings.
        """
        self._calls += 1
        with torch.autocast(embeddings.device.type, enabled=False):  # bfloat16 would round the logits, up to s = 64, to 1/4
            x, labels = self._gather(embeddings.to(self.weight.dtype), labels)         # [B,D], [B]
            local = labels - self.classes.start
            mine = (local >= 0) & (local < len(self.classes))                          # [B]
            weight, column = self._rows(local, mine)                                   # [n,D], [B]
            cosine = F.normalize(x) @ F.normalize(weight).T                            # [B,n]

            own = mine.nonzero().squeeze(1)
            at = (own, column[own])
            target = torch.zeros_like(x[:, 0]).index_put((own,), self.margin(cosine[at]))    # [B], 0 elsewhere
            left_out = self.margin.left_out(cosine.detach())
            left_out = torch.zeros_like(cosine, dtype=torch.bool) if left_out is None else left_out
            negative = (self.margin.s * cosine).masked_fill(left_out.index_put(at, torch.ones_like(own, dtype=torch.bool)),
                                                            -torch.inf)
            return _MarginCrossEntropy.apply(negative, self.margin.s * target, mine, self.world)

    def begin_step(self, step: int, lr: float | None = None, calls: int | None = None) -> None:
        """Set the optimiser step, from which the sample is drawn, its learning rate, and how many calls it will have."""
        self.step, self._calls, self._expected_calls = step, 0, calls
        self.lr = self.lr if lr is None else lr

    @torch.no_grad()
    def finish_step(self, skip: torch.Tensor | None = None) -> None:
        """Update the rows that took part, from the gradient of all calls of this step, and clear it.

        `skip`: a boolean scalar on the device; where true nothing changes (a non-finite loss), and nothing is read back.
        """
        assert self._expected_calls in (None, self._calls), f"{self._calls} calls of {self._expected_calls}"
        rows = slice(None) if self.sample_rate == 1 else self._active.nonzero().squeeze(1)
        w, g, v = self.weight[rows], self.weight.grad[rows], self.momentum_buffer[rows]
        if self.optimizer == "sgd":
            v_new = self.momentum * v + g + self.weight_decay * w
            w_new = w - self.lr * v_new
        else:  # AdamW, https://arxiv.org/abs/1711.05101, betas (0.9, 0.999); t counts all updates, sampled or not
            u, t = self.second_moment[rows], (self.updates + 1).double()
            v_new, u_new = 0.9 * v + 0.1 * g, 0.999 * u + 0.001 * g * g
            step = (v_new / (1 - 0.9 ** t)) / ((u_new / (1 - 0.999 ** t)).sqrt() + 1e-8)
            w_new = w - self.lr * (step + self.weight_decay * w)
            self.second_moment[rows] = u_new if skip is None else torch.where(skip, u, u_new)
        self.weight[rows] = w_new if skip is None else torch.where(skip, w, w_new)
        self.momentum_buffer[rows] = v_new if skip is None else torch.where(skip, v, v_new)
        self.weight.grad = None
        self._active.zero_()
        self.updates += 1 if skip is None else ~skip
        self.step += 1

    def row_state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold: tensors whose first dimension runs over `classes`, this rank's class ids."""
        rows = ("weight", "momentum_buffer", "second_moment")
        return {name: value.detach() for name, value in self.state_dict().items() if name in rows}

    def _ids(self, device) -> torch.Tensor:
        return torch.arange(self.classes.start, self.classes.stop, device=device)

    def _gather(self, x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All ranks' embeddings, with gradient, and labels, in rank order."""
        fits = labels.dim() == 1 and x.dim() == 2 and len(labels) == len(x) and x.shape[1] == self.weight.shape[1]
        sizes = [len(labels) if fits else -1]
        if self.world > 1:
            gathered = x.new_empty(self.world, dtype=torch.int64)
            dist.all_gather_into_tensor(gathered, gathered.new_tensor(sizes))
            sizes = gathered.tolist()
        if min(sizes) < 0 or sum(sizes) == 0:
            raise ValueError(f"embeddings {list(x.shape)} and labels {list(labels.shape)} (this rank) must be [B,"
                             f"{self.weight.shape[1]}] and [B] on every rank, with at least one row in all")
        if self.world > 1:
            labels = _gather_rows(labels, sizes)
            x = _GatherEmbeddings.apply(x, sizes, self.rank)
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(wrong):
            raise ValueError(f"label {wrong[0].item()} is outside [0, {self.num_classes})")
        return x, labels

    def _rows(self, local: torch.Tensor, mine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The centres that take part `[n,D]`, and for each label the column its class has among them (if it is here)."""
        if self.sample_rate == 1:
            return self.weight, local
        chosen = uniform(self.seed, "sample", self.step, self._ids(self.weight.device)) < self.sample_rate
        chosen[local[mine]] = True
        self._active |= chosen
        return self.weight[chosen.nonzero().squeeze(1)], (chosen.cumsum(0) - 1)[local.clamp(0, len(chosen) - 1)]


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


class _MarginCrossEntropy(torch.autograd.Function):
    """Mean over the global batch of softplus(logsumexp(negatives) - target), the negatives spread over the ranks.

    negative `[B,n]`: this rank's logits, -inf at targets and at what is left out; target `[B]`: the target's logit on
    the rank that owns it (`mine`), 0 elsewhere. The target's term is not part of the sum, so nothing is ever subtracted
    from it: loss and gradient keep their digits when the target dominates (p - 1 in float32 would be 0 or noise).
    Crossing ranks for each row: the maximum, the sum of exponentials and the target's logit.
    """

    @staticmethod
    def forward(ctx, negative, target, mine, world):
        highest = negative.max(1).values if negative.shape[1] else torch.full_like(target, -torch.inf)
        if world > 1:
            dist.all_reduce(highest, dist.ReduceOp.MAX)
        highest = highest.masked_fill(highest == -torch.inf, 0)  # a row without any negative
        exps = (negative - highest[:, None]).exp()
        sums = torch.stack([exps.sum(1), target])                # [2,B]
        if world > 1:
            dist.all_reduce(sums)
        total, target = sums
        excess = total.log() + highest - target                  # log of the odds against the target
        wrong = excess.sigmoid()                                 # [B] probability of all that is not the target
        ctx.save_for_backward(exps, wrong / total.clamp_min(torch.finfo(total.dtype).tiny), wrong * mine)
        return torch.logaddexp(excess, torch.zeros_like(excess)).mean()  # softplus

    @staticmethod
    def backward(ctx, grad):
        exps, share, wrong = ctx.saved_tensors
        scale = grad / len(wrong)
        return exps * (share * scale)[:, None], -wrong * scale, None, None
