"""The sharded head's cases, their plain formula in float64, and how far float32 may be from it."""
import math

import torch
import torch.distributed as dist
import torch.nn.functional as F

from engine.distributed import shard_range
from engine.random import normal, uniform
from losses import ArcFace, CombinedMargin, CosFace, Softmax
from partial_fc import PartialFC

D = 16


def plain(x, w, labels, margin, rows=None):
    """(loss, dX, dW) of margin cross entropy, one process, float64; `rows`: mask of the classes that take part."""
    x, w = x.double().requires_grad_(), w.double().requires_grad_()
    loss = row_losses(x, w, labels, margin, rows).mean()
    loss.backward()
    return loss.detach(), x.grad, w.grad


def row_losses(x, w, labels, margin, rows=None):
    """Margin cross entropy of each row, float64 `[B]`."""
    rows = torch.ones(len(w), dtype=torch.bool) if rows is None else rows
    cosine = F.normalize(x) @ F.normalize(w).T
    at = (torch.arange(len(x)), labels)
    logits = margin.s * cosine
    if margin.interclass is not None:
        logits = logits.masked_fill(cosine > margin.interclass, -torch.inf)
    logits = logits.masked_fill(~rows, -torch.inf)
    logits = logits.index_put(at, margin.s * margin(cosine[at]))
    # softplus(negatives - target) rather than cross_entropy: p - 1 loses its digits even in float64
    negatives = logits.index_put(at, torch.full((len(x),), -torch.inf, dtype=torch.float64)).logsumexp(1)
    return torch.logaddexp(negatives - logits[at], torch.zeros((), dtype=torch.float64))


def problem(classes, batch, cosine=None):
    """Embeddings `[batch,D]`, class centers `[classes,D]`, labels; targets at `cosine` when given, and every label only in
    the upper half of the classes, so that of several ranks the first has no positive."""
    w = 0.01 * normal(1, "w", torch.arange(classes)[:, None], torch.arange(D)).double()
    first = -(-classes // 2)
    labels = first + (uniform(1, "y", torch.arange(batch)) * (classes - first)).long()
    noise = normal(1, "x", torch.arange(batch)[:, None], torch.arange(D)).double()
    if cosine is None:
        return noise, w, labels
    direction = F.normalize(w[labels])
    aside = F.normalize(noise - (noise * direction).sum(1, keepdim=True) * direction)
    return 3 * (cosine * direction + math.sqrt(1 - cosine ** 2) * aside), w, labels


def sharded(rank, world, margin, classes, rate, parts, cosine, dtype):
    """One forward and backward on this rank: (loss, dX of the batch, dW of the shard, mask of rows that moved)."""
    x, w, labels = problem(classes, sum(parts), cosine)
    head = PartialFC(margin, D, classes, rate, lr=0.5, weight_decay=0.1).to(dtype)
    own = slice(head.classes.start, head.classes.stop)
    head.weight.data.copy_(w[own])
    head.begin_step(7)
    here = slice(sum(parts[:rank]), sum(parts[:rank + 1]))
    mine = x[here].to(dtype).requires_grad_()
    given = labels[here].clone()
    loss = head(mine, given)
    loss.backward()
    assert torch.equal(given, labels[here]), "the caller's labels were changed"
    gradient, before = head.weight.grad.clone(), head.weight.detach().clone()
    head.finish_step()
    return {"loss": loss.detach(), "dx": mine.grad, "dw": gradient, "moved": (head.weight != before).any(1)}


def relative(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


def everything(rank, world, cases):
    return [sharded(rank, world, *case) for case in cases]


MARGINS = [CosFace(), ArcFace(), Softmax(), CombinedMargin(m1=1.2, m2=0.2, m3=0.1), CosFace(interclass=0.5)]
PARTS = {1: [[13]], 2: [[7, 6], [13, 0]], 3: [[5, 4, 4], [1, 12, 0]]}


def cases_for(world):
    return [(margin, 101, rate, parts, cosine, dtype)
            for margin in MARGINS for rate in (1.0, 0.3) for parts in PARTS[world]
            for cosine in (None, 0.3, 0.5, 0.7, 0.95) for dtype in (torch.float32, torch.float64)]


def sampled_rows(classes, rate, labels):
    rows = uniform(0, "sample", 7, torch.arange(classes)) < rate
    rows[labels] = True
    return rows


def errors(case, ranks):
    """Relative errors (loss, dX, dW) of what the ranks found against the plain formula."""
    margin, classes, rate, parts, cosine, dtype = case
    x, w, labels = problem(classes, sum(parts), cosine)
    x, w = x.to(dtype), w.to(dtype)  # the same rounded numbers for both
    loss, dx, dw = plain(x, w, labels, margin, sampled_rows(classes, rate, labels))
    return (max(abs(got["loss"] - loss) / loss for got in ranks).item(),
            relative(torch.cat([got["dx"] for got in ranks]), len(parts) * dx),  # times the ranks: DDP takes the mean
            relative(torch.cat([got["dw"] for got in ranks]), dw))


def bounds(case):
    """What rounding in `dtype` may make of the three `errors`, on any machine and in any order of summation.

    With u = 2^-24 in float32 a cosine is off by (sqrt(D) + 2) u: D rounded products and sums, whose errors add up like a
    random walk (Higham and Mary 2019, https://doi.org/10.1137/18M1226312), and two normalizations. Times s, with one more u
    for what is rounded at the size of a logit (s * cosine, the margin, a log), that makes an error of
        eta = s (sqrt(D) + 3) u                 2.7e-5 in float32, 5.0e-14 in float64 at s = 64, D = 16
    in each negative's logit and k eta in the target's, k being the margin's slope there (ArcFace at cosine .95: 2.1). The
    log odds against the target, z = logsumexp(negatives) - target, are then off by (1 + k) eta, and
        loss = mean softplus(z)     by the mean of sigmoid(z) (1 + k) eta; of a large loss that is a small part
        gradients                   their factor sigmoid(z) by (1 + k) eta, the softmax of the negatives by 2 eta, relative
    All else is some u without the factor s. Sixty sets of data, dimensions in other orders, and kernels from SSE to AVX-512
    were seen to reach 0.35 of these bounds; operands rounded to TF32 pass them in every case, to 16 bits in some.
    """
    margin, classes, rate, parts, cosine, dtype = case
    x, w, labels = problem(classes, sum(parts), cosine)
    unit = torch.finfo(dtype).eps / 2
    eta = margin.s * (math.sqrt(D) + 3) * unit
    target = (F.normalize(x) * F.normalize(w[labels])).sum(1).requires_grad_()                    # [B]
    slope, = torch.autograd.grad(margin(target).sum(), target)                                    # [B]
    loss = row_losses(x, w, labels, margin, sampled_rows(classes, rate, labels))                  # [B]
    wrong = 1 - (-loss).exp()                                                                     # [B] sigmoid(z)
    of_loss = ((wrong * (1 + slope)).sum() / loss.sum()).item() * eta + math.sqrt(len(x)) * unit
    return of_loss, (3 + slope.max().item()) * eta


def bytes_sent(rank, world):
    """Bytes that this rank hands to, or gets from, each collective of one step, whichever is more."""
    counted = []
    for name, first in (("all_gather_into_tensor", 0), ("reduce_scatter_tensor", 1), ("all_reduce", 0)):
        def counting(*args, original=getattr(dist, name), large=first, **kwargs):
            counted.append(args[large].nbytes)
            return original(*args, **kwargs)
        setattr(dist, name, counting)
    head = PartialFC(CosFace(), 256, 64, update="fused")
    head.begin_step(0)
    part = shard_range(1024, rank, world)
    head(torch.ones(len(part), 256, requires_grad=True), torch.zeros(len(part), dtype=torch.int64)).backward()
    head.finish_step()
    return sum(counted)
