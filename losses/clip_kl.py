import torch
import torch.nn.functional as F


def clip_kl(projected: torch.Tensor, teacher: torch.Tensor, has_teacher: torch.Tensor | None = None) -> torch.Tensor:
    """The DocClassifier reference's term for a CLIP teacher, of each sample, `[B]`, in nats; here for comparison, since it
    teaches nothing.

    KL(softmax(t) || softmax(z)) with z and t the projected student and the teacher brought to length 1, and no temperature.
    Their E numbers are so small that both softmaxes are almost flat: to second order the KL is (1 - cos) / E, about .002
    for unrelated vectors of 512 numbers, beside a margin loss of order 10. Arguments as `cosine_distance` has them.
    """
    if projected.shape != teacher.shape:
        raise ValueError(f"projected {list(projected.shape)} and teacher {list(teacher.shape)} must be of the same shape")
    if has_teacher is not None:
        teacher = teacher.where(has_teacher[:, None], 0)                      # a NaN there times 0 would be NaN
    log_q = F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=1).log_softmax(1)   # [B,E]
    log_p = F.normalize(teacher.detach().to(log_q.dtype), dim=1).log_softmax(1)
    kl = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)     # [B]
    return kl if has_teacher is None else kl.where(has_teacher, 0)
