import torch
import torch.nn.functional as F


def supcon(embeddings: torch.Tensor, labels: torch.Tensor, temperature: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Supervised contrastive loss of each sample of a batch: (loss `[B]`, whether it has a positive, bool `[B]`).

    Khosla et al. 2020, https://arxiv.org/abs/2004.11362, equation 2 (L_out): with z of length 1 and P(i) the other samples
    of i's class,
        - 1/|P(i)| sum over p in P(i) of log( exp(z_i z_p / T) / sum over a != i of exp(z_i z_a / T) )
    embeddings `[B,D]` of any length, labels int64 `[B]`: the GLOBAL batch, since every sample is a negative of all others.
    A sample that is alone in its class has no positive and loss 0; the caller takes the mean over the others.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be positive")
    z = F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)   # [B,D]
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)                              # [B,B]
    positive = (labels[:, None] == labels) & ~itself                                              # [B,B]
    log_p = logits - logits.logsumexp(1, keepdim=True)
    count = positive.sum(1)                                                                       # [B]
    return -log_p.where(positive, 0).sum(1) / count.clamp_min(1), count > 0
