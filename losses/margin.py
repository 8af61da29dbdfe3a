"""What all margins share: the scale, the growth of the margin, inter-class filtering."""
import torch
from torch import nn


class Margin(nn.Module):
    """Base of the margins.

    `forward(cosine)` gives the target's new cosine, `[B] -> [B]`, with its true gradient.
    `s` scales every cosine into a logit. `strength` in [0, 1] scales the margin itself; the trainer sets it from
    the step (margin warm-up), so it needs no state.
    `interclass` in (0, 1): negatives whose cosine is above it are excluded from the softmax, since they are
    likely the same thing under another label (Partial FC, https://arxiv.org/abs/2203.15565, section 3.3); None: off.
    """

    def __init__(self, s: float = 64.0, interclass: float | None = None):
        super().__init__()
        if s <= 0:
            raise ValueError(f"s={s}: the scale must be positive")
        self.s = float(s)
        self.interclass = interclass
        self.strength = 1.0

    def excluded(self, cosine: torch.Tensor) -> torch.Tensor | None:
        """Mask of the negatives to exclude, same shape as `cosine`, or None when all stay."""
        return None if self.interclass is None else cosine > self.interclass
