import math

import torch

from .margin import Margin


def add_angle(cosine: torch.Tensor, angle: float) -> torch.Tensor:
    """cos(theta + angle) of cos(theta), elementwise, with its true gradient; falls with theta everywhere.

    Where theta + angle would pass pi the cosine rises again and the margin would reward the wrong direction; from
    there on it continues as a straight line, continuous, of slope 1 in cos(theta). At cos = 1 the true slope is
    infinite; above cos = 1 - 1e-6 the sine is held, which leaves the slope cos(angle).
    """
    held = cosine.clamp(-1 + 1e-6, 1 - 1e-6)
    turned = cosine * math.cos(angle) - (1 - held * held).sqrt() * math.sin(angle)
    turning_point = -math.cos(angle)  # cos(pi - angle)
    return torch.where(cosine > turning_point, turned, cosine - turning_point - 1)


class ArcFace(Margin):
    """cos(theta + m). Deng et al. 2019, https://arxiv.org/abs/1801.07698"""

    def __init__(self, s: float = 64.0, m: float = 0.4, interclass: float | None = None):
        super().__init__(s, interclass)
        if not 0 <= m < math.pi / 2:
            raise ValueError(f"m={m}: the angle must lie in [0, pi/2)")
        self.m = m

    def forward(self, cosine: torch.Tensor) -> torch.Tensor:  # [B] -> [B]
        return add_angle(cosine, self.strength * self.m)
