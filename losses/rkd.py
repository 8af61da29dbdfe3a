import torch
import torch.nn.functional as F


def rkd_distance(student: torch.Tensor, teacher: torch.Tensor, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How differently student and teacher space a batch: (sum over the pairs of each sample `[B]`, their number `[B]`).

    Relational knowledge distillation, Park et al. 2019, https://arxiv.org/abs/1904.05068, equation 4: with d_ij the distance
    of two embeddings of length 1 over the mean distance of all pairs, the Huber loss of d_ij(student) - d_ij(teacher).
    student `[B,D]`, teacher `[B,E]`, of any length, to which no gradient goes: the GLOBAL batch. pairs: bool `[B,B]`,
    symmetric, with a diagonal of false: which pairs count. The loss is the sum of the first over that of the second.
    """
    def distances(x: torch.Tensor) -> torch.Tensor:
        x = F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)
        # Not by way of the cosine: near 0 the root of 2 - 2 cos has no digits left, and no gradient that is finite.
        d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").where(pairs, 0)   # [B,B]
        mean = d.sum() / pairs.sum().clamp_min(1)
        return d / mean.clamp_min(torch.finfo(d.dtype).eps)

    apart = F.smooth_l1_loss(distances(student), distances(teacher.detach()), reduction="none")
    return apart.where(pairs, 0).sum(1), pairs.sum(1)
