"""Exact search among references that a GPU holds in bf16. Needs torch; nothing else in this folder does."""
import numpy as np
import torch

from .errors import UserError
from .search import SPARE

QUERIES = 64  # queries at once
ROWS = 1 << 18  # references at once
ROW_BITS = 0xFFFFFFFF


class CudaGallery:
    """References float32 `[M, D]`, optionally of T types (`starts`, as in `search.top_k`), rounded to bf16 on a GPU.

    `top_k` is that of `search`, for the rounded references: candidates by a matmul in fp32, the best k + 8 scored again in
    float64. Cost: every QUERIES queries read all references once; of each block of ROWS references (and what the last type
    begun in it has beyond) they write a copy in fp32, and for each query and reference a score and a key of 8 bytes, which
    `topk` reads. Not yet timed on a GPU. `torch.set_float32_matmul_precision` must stay at its default: TF32 would lose
    candidates. `device` "cpu" is for tests.
    """

    def __init__(self, references: np.ndarray, starts: np.ndarray | None = None, device: str = "cuda"):
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("gallery cuda: torch finds no CUDA device on this machine; use gallery cpu")
        self.references = torch.empty(references.shape, dtype=torch.bfloat16, device=device)  # (M, D)
        for first in range(0, len(references), ROWS):
            self.references[first:first + ROWS] = torch.from_numpy(references[first:first + ROWS])
        one_each = starts is None
        starts = np.arange(len(references)) if one_each else np.asarray(starts, np.int64)
        self.starts = torch.from_numpy(starts).to(device)  # (T,), the first row of each type
        self.row_type = None if one_each else torch.searchsorted(  # (M,)
            self.starts, torch.arange(len(references), device=device), right=True) - 1
        begins = np.unique(starts // ROWS, return_index=True)[1]  # blocks of whole types: the first type of each
        self.edges = [*starts[begins].tolist(), len(references)]

    def top_k(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores, indices) of `top_rows`."""
        return self.top_rows(queries, k)[:2]

    @torch.inference_mode()
    def top_rows(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `search.top_rows`: float32 `[N, D]` -> (scores float32 `[N, K]`, indices and rows int64 `[N, K]`), best first;
        equal scores: the lower index first."""
        queries = torch.from_numpy(np.ascontiguousarray(queries, np.float32)).to(self.references.device)
        found = [self._search(part, min(k, len(self.starts))) for part in queries.split(QUERIES)]
        scores, types, rows = (torch.cat(parts).cpu().numpy() for parts in zip(*found))
        return scores, types, rows

    def _search(self, queries, k):
        kept = min(k + SPARE, len(self.starts))
        best = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        for first, end in zip(self.edges, self.edges[1:]):
            keys = _keys(queries @ self.references[first:end].float().T, first)  # (N, rows)
            if self.row_type is not None:  # the best row of each type; the lowest number stands where there is none yet
                types = self.row_type[first:end] - self.row_type[first]
                lowest = keys.new_full((len(queries), int(types[-1]) + 1), torch.iinfo(torch.int64).min)
                keys = lowest.scatter_reduce(1, types.expand_as(keys), keys, "amax")
            best = torch.cat([best, keys.topk(min(kept, keys.shape[1])).values], dim=1)
            best = best.topk(min(kept, best.shape[1])).values
        rows = (ROW_BITS - (best & ROW_BITS)).sort(dim=1).values  # (N, kept), ascending, so a stable sort keeps that order
        scores = (self.references[rows].double() * queries[:, None].double()).sum(dim=2).float()
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        rows = rows.gather(1, order)[:, :k]
        return scores[:, :k], rows if self.row_type is None else self.row_type[rows], rows


def _keys(scores: torch.Tensor, first: int) -> torch.Tensor:
    """fp32 scores `[N, B]` of the references from `first` on -> int64 `[N, B]` in the same order, all different: of equal
    scores the lower row has the larger key. (`topk` alone takes any of equals.)"""
    bits = (scores + 0.0).view(torch.int32)  # -0 becomes 0
    ordered = bits ^ (bits >> 31 & 0x7FFFFFFF)  # the more negative a float, the larger its bits
    rows = torch.arange(first, first + scores.shape[1], device=scores.device)
    return (ordered.long() << 32) + (ROW_BITS - rows)
