import torch
import torch.nn.functional as F


def soft_target_kl(logits: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0,
                   has_teacher: torch.Tensor | None = None) -> torch.Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)) of each sample, `[B]`, in nats.

    Hinton et al. 2015, https://arxiv.org/abs/1503.02531. T^2 keeps the size of the gradient, which falls with 1 / T^2, so
    that the weight against a hard-label loss need not follow T. logits `[B,C]`; teacher `[B,C]`: its logits, or log
    probabilities, which come to the same; no gradient goes to it. has_teacher: bool `[B]`; a sample without a teacher has
    loss and gradient 0, whatever its row of `teacher` holds. The caller takes the mean over those that have one.
    """
    if logits.shape != teacher.shape:
        raise ValueError(f"logits {list(logits.shape)} and teacher {list(teacher.shape)} must be of the same shape")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be positive")
    dtype = torch.promote_types(logits.dtype, torch.float32)                  # bfloat16's log is too coarse
    teacher = teacher.detach().to(dtype)
    if has_teacher is not None:
        teacher = teacher.where(has_teacher[:, None], 0)                      # a NaN there times 0 would be NaN
    p = (teacher / temperature).softmax(1)                                    # [B,C]
    log_q = (logits.to(dtype) / temperature).log_softmax(1)                   # [B,C]
    kl = temperature ** 2 * F.kl_div(log_q, p, reduction="none").sum(1)       # [B]; 0 log 0 is 0
    return kl if has_teacher is None else kl.where(has_teacher, 0)
