import torch
import torch.nn.functional as F


def relational_kl(student: torch.Tensor, teacher: torch.Tensor, pairs: torch.Tensor, student_temperature: float = 0.1,
                  teacher_temperature: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """How differently student and teacher see the others of a batch: (KL of each sample `[B]`, in nats, whether it has
    anything to be compared with, bool `[B]`).

    SEED, Fang et al. 2021, https://arxiv.org/abs/2101.04731, with the batch in place of a queue; CompRess, Koohpayegani et
    al. 2020, https://arxiv.org/abs/2010.14713. With P(i) the samples that i is compared with,
        p_i = softmax over j in P(i) of cos(teacher_i, teacher_j) / teacher_temperature        q_i the same of the student
        KL(p_i || q_i) = sum over j of p_ij log(p_ij / q_ij)
    There is no projector: the gradient goes to the very cosines that recognition compares.
    student `[B,D]`, teacher `[B,E]`, of any length, to which no gradient goes: the GLOBAL batch. pairs: bool `[B,B]`, its
    row i is P(i); the diagonal must be false, and so must pairs that the labels call different though they show one image.
    A sample that is compared with none has loss and gradient 0; the caller takes the mean over the others.
    """
    if min(student_temperature, teacher_temperature) <= 0:
        raise ValueError(f"temperatures {student_temperature} and {teacher_temperature}: must be positive")
    compared = pairs.any(1)                                                               # [B]
    closed = ~pairs & compared[:, None]                 # a row of minus infinity alone would have no softmax

    def log_softmax(x: torch.Tensor, temperature: float) -> torch.Tensor:
        x = F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)
        return (x @ x.T / temperature).masked_fill(closed, -torch.inf).log_softmax(1)     # [B,B]

    log_q, log_p = log_softmax(student, student_temperature), log_softmax(teacher.detach(), teacher_temperature)
    return (log_p.exp() * (log_p - log_q)).where(pairs, 0).sum(1), compared
