import torch
import torch.nn.functional as F


def cosine_distance(projected: torch.Tensor, teacher: torch.Tensor, has_teacher: torch.Tensor | None = None) -> torch.Tensor:
    """1 - cos(projected, teacher) of each sample, `[B]`: matching a teacher's features.

    What CLIP-KD, Yang et al. 2023, https://arxiv.org/abs/2307.12732, found to work best among many terms, since for vectors
    of length 1 it is half of their squared distance. projected: `[B,E]`, the student's embedding in the teacher's space;
    teacher `[B,E]`, of any length; no gradient goes to it. has_teacher: bool `[B]`; a sample without one has loss and
    gradient 0, whatever its row of `teacher` holds. The caller takes the mean over those that have one.
    """
    if projected.shape != teacher.shape:
        raise ValueError(f"projected {list(projected.shape)} and teacher {list(teacher.shape)} must be of the same shape")
    if has_teacher is not None:
        teacher = teacher.where(has_teacher[:, None], 0)                      # a NaN there times 0 would be NaN
    distance = 1 - F.cosine_similarity(projected.to(torch.promote_types(projected.dtype, torch.float32)), teacher.detach())
    return distance if has_teacher is None else distance.where(has_teacher, 0)
