"""Exact search among references that are held in bf16 on a GPU. Needs torch; nothing else in this folder does.

Not measured yet, for want of a GPU: tested on the CPU and, as for the kernel, in Triton's interpreter.
"""
import numpy as np
import torch

from .errors import UserError

GROUP = 128  # references that share a maximum
QUERIES = 64  # queries at once
SPARE = 8  # groups looked into beyond the k that are needed; more make the proof below succeed more often
ROWS = 1 << 18  # references at a time where they are taken through whole, and when they are copied to the GPU
LOOK_BYTES = 256 << 20  # references that are scored again at once, in fp32


class CudaGallery:
    """References float32 `[M, D]`, optionally of T types (`starts`, as in `search.top_k`), rounded to bf16 on a GPU.

    `top_k` is exact for the rounded references and the queries as they are, scored in fp32. How: the kernel leaves the
    maximum of each group of references; the k + 8 best groups of a query are scored again in fp32. A reference outside
    them scores less than the next group's maximum plus `slack`, which is more than the kernel's and the re-scoring's
    rounding can amount to. Where the k-th best found is more than that, the result is proven; the queries for which it is
    not (more than 8 groups within `slack` of the k-th best, or one type's references filling the groups) go through all
    references in fp32, one by one. `unproven` counts those.

    `device` "cpu" is for the tests, with the plain version of the kernel.
    """

    def __init__(self, references: np.ndarray, starts: np.ndarray | None = None, device: str = "cuda"):
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("gallery cuda: torch finds no CUDA device on this machine; use gallery cpu")
        total, depth = references.shape
        self.references = torch.empty(total, depth, dtype=torch.bfloat16, device=device)  # (M, D)
        norm = 0.0
        for first in range(0, total, ROWS):
            part = self.references[first:first + ROWS]
            part.copy_(torch.from_numpy(references[first:first + ROWS]))
            norm = max(norm, part.float().norm(dim=1).max().item())
        self.starts = None if starts is None else torch.from_numpy(np.ascontiguousarray(starts, np.int64)).to(device)
        self.types = total if starts is None else len(starts)
        # Relative to the lengths: a query as the sum of two bf16 numbers is off by less than 2^-17 of it; a sum of n terms
        # in fp32 by n 2^-23 even if every addition truncates; the kernel adds 2 D terms, the re-scoring D.
        self.slack = (2.0 ** -17 + 3 * depth * 2.0 ** -23) * norm
        self.unproven = 0
        self._group_maxima = _kernel() if device == "cuda" else group_maxima

    def top_k(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `search.top_k`: float32 `[N, D]` -> (scores float32 `[N, K]`, indices int64 `[N, K]`), best first; equal
        scores: the lower index first.
        """
        k = min(k, self.types)
        found = [self._top_k(torch.from_numpy(np.ascontiguousarray(queries[first:first + QUERIES], np.float32)), k)
                 for first in range(0, len(queries), QUERIES)]
        scores, indices = zip(*found) if found else ([np.empty((0, k), np.float32)], [np.empty((0, k), np.int64)])
        return np.concatenate(scores), np.concatenate(indices)

    @torch.inference_mode()
    def _top_k(self, queries, k):
        queries = queries.to(self.references.device)
        high = queries.bfloat16()
        low = (queries - high.float()).bfloat16()
        maxima = self._group_maxima(high, low, self.references, GROUP)  # (N, groups)
        looked = min(k + SPARE, maxima.shape[1])
        best = torch.topk(maxima, min(looked + 1, maxima.shape[1]), dim=1)
        # Groups in ascending order, so that a stable sort by score leaves the lower index first.
        scores, rows = self._look_into(queries, best.indices[:, :looked].sort(dim=1).values)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        indices = rows.gather(1, order)
        if self.starts is None:
            scores, indices = scores[:, :k], indices[:, :k]
            proven = torch.ones_like(queries[:, 0], dtype=torch.bool)
        else:
            scores, indices, proven = _first_of_each(scores, self._type_of(indices), k)
        if looked < maxima.shape[1]:
            proven &= scores[:, -1] > best.values[:, looked] + self.slack * queries.norm(dim=1)
            for query in (~proven).nonzero()[:, 0].tolist():
                self.unproven += 1
                scores[query], indices[query] = self._through_all(queries[query], k)
        return scores.cpu().numpy(), indices.cpu().numpy()

    def _look_into(self, queries, groups):
        """Groups `[N, g]` -> fp32 scores and rows of all references in them, `[N, g * GROUP]`; -inf beyond the last."""
        rows = (groups[:, :, None] * GROUP + torch.arange(GROUP, device=groups.device)).flatten(1)
        scores = torch.empty(rows.shape, device=groups.device)
        step = max(1, LOOK_BYTES // (4 * rows.shape[1] * queries.shape[1]))
        for first in range(0, len(queries), step):
            part = slice(first, first + step)
            candidates = self.references[rows[part].clamp(max=len(self.references) - 1)].float()  # (n, g * GROUP, D)
            scores[part] = _inner(candidates, queries[part, None])
        return scores.masked_fill_(rows >= len(self.references), -torch.inf), rows

    def _through_all(self, query, k):
        """One query `[D]` against every reference: `[k]` scores and indices."""
        scores = torch.cat([_inner(part.float(), query) for part in self.references.split(ROWS)])  # (M,)
        if self.starts is not None:
            kind = self._type_of(torch.arange(len(scores), device=scores.device))
            scores = torch.full((self.types,), -torch.inf, device=scores.device).scatter_reduce_(0, kind, scores, "amax")
        scores, indices = scores.sort(descending=True, stable=True)
        return scores[:k], indices[:k]

    def _type_of(self, rows):
        return rows if self.starts is None else torch.searchsorted(self.starts, rows, right=True) - 1


def group_maxima(high: torch.Tensor, low: torch.Tensor, references: torch.Tensor, group: int) -> torch.Tensor:
    """What `search_triton.group_maxima` computes, in plain torch: `[N, D]` twice and `[M, D]` -> `[N, ceil(M / group)]`."""
    queries, maxima = high.float() + low.float(), []
    for part in references.split(ROWS // group * group):
        scores = queries @ part.float().T
        scores = torch.nn.functional.pad(scores, (0, -len(part) % group), value=-torch.inf)
        maxima.append(scores.unflatten(1, (-1, group)).amax(dim=2))
    return torch.cat(maxima, dim=1)


def _kernel():
    try:
        from .search_triton import group_maxima as kernel
    except ImportError:  # Triton comes with torch on Linux alone
        return group_maxima
    return kernel


def _inner(references, query):
    """`[..., D]` each -> inner products in fp32. No matmul: that may round to TF32, and depends on what stands beside."""
    return (references * query).sum(dim=-1)


def _first_of_each(scores, types, k):
    """Sorted `[N, n]` -> the first k distinct types, scores and types `[N, k]`, and `[N]`: there are so many."""
    order = types.argsort(dim=1, stable=True)
    ordered = types.gather(1, order)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    is_first = torch.zeros_like(first).scatter_(1, order, first) & (scores > -torch.inf)
    # The first ones move to the front, in their order.
    place = (~is_first).int().argsort(dim=1, stable=True)[:, :k]
    return scores.gather(1, place), types.gather(1, place), is_first.sum(dim=1) >= k
