"""The maximum of each group of references for each query, as one Triton kernel: the scores never reach memory.

`search_cuda.group_maxima` is the same function in plain torch. Per reference the kernel reads D bf16 numbers and writes
4 / GROUP bytes a query, so at 64 queries it is bound by reading the references once: 5.1 GB for 10 M x 256.
"""
import torch
import triton
import triton.language as tl

QUERIES = 64  # a program's queries: the least the tensor cores take at full speed
TILE = 256  # a program's references
DEPTH = 64  # of the D numbers at a time


@triton.jit
def _group_maxima(high, low, references, maxima, N, M, D, groups, GROUP: tl.constexpr, QUERIES: tl.constexpr,
                  TILE: tl.constexpr, DEPTH: tl.constexpr, UPCAST: tl.constexpr):
    tile = tl.program_id(0).to(tl.int64)  # M * D is beyond 32 bits
    query = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    reference = tile * TILE + tl.arange(0, TILE)
    scores = tl.zeros((QUERIES, TILE), tl.float32)
    for start in range(0, D, DEPTH):
        column = start + tl.arange(0, DEPTH)
        r = tl.load(references + reference[None, :] * D + column[:, None],  # (DEPTH, TILE)
                    mask=(reference[None, :] < M) & (column[:, None] < D), other=0.0)
        offsets = query[:, None] * D + column[None, :]
        inside = (query[:, None] < N) & (column[None, :] < D)
        h = tl.load(high + offsets, mask=inside, other=0.0)  # (QUERIES, DEPTH)
        l = tl.load(low + offsets, mask=inside, other=0.0)  # noqa: E741
        if UPCAST:
            r, h, l = r.to(tl.float32), h.to(tl.float32), l.to(tl.float32)  # noqa: E741
        scores = tl.dot(l, r, scores)
        scores = tl.dot(h, r, scores)
    scores = tl.where(reference[None, :] < M, scores, -float("inf"))
    best = tl.max(tl.reshape(scores, (QUERIES, TILE // GROUP, GROUP)), axis=2)  # (QUERIES, TILE / GROUP)
    group = tile * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
    tl.store(maxima + query[:, None].to(tl.int64) * groups + group[None, :], best,
             mask=(query[:, None] < N) & (group[None, :] < groups))


def group_maxima(high: torch.Tensor, low: torch.Tensor, references: torch.Tensor, group: int) -> torch.Tensor:
    """bf16 `[N, D]` twice, their sum the queries, and bf16 `[M, D]` -> the maximum inner product of each `group`
    references side by side, accumulated in fp32: float32 `[N, ceil(M / group)]`. All contiguous and on one GPU.
    """
    (count, depth), total = high.shape, len(references)
    groups = triton.cdiv(total, group)
    maxima = torch.empty(count, groups, dtype=torch.float32, device=references.device)
    # A stage is 48 KB of shared memory. Hopper and the A100 have room for three, others for two.
    stages = 2 if not references.is_cuda or torch.cuda.get_device_properties(
        references.device).shared_memory_per_block_optin < 3 * 48 * 1024 else 3
    # Triton's interpreter, which the tests use without a GPU, multiplies the bits of bf16 numbers: it gets fp32 ones.
    with torch.cuda.device_of(references):  # Triton launches on the current device
        _group_maxima[triton.cdiv(total, TILE), triton.cdiv(count, QUERIES)](
            high, low, references, maxima, count, total, depth, groups, GROUP=group, QUERIES=QUERIES, TILE=TILE,
            DEPTH=DEPTH, UPCAST=not references.is_cuda, num_warps=8, num_stages=stages)
    return maxima
