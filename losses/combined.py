import math

import torch

from .arcface import add_angle
from .margin import Margin


class CombinedMargin(Margin):
    """cos(m1 * theta + m2) - m3: SphereFace, ArcFace and CosFace in one. Deng et al. 2019, https://arxiv.org/abs/1801.07698

    m1 must be 1 or more; beyond m1 * theta + m2 = pi the curve continues as a straight line, as ArcFace's does.
    """

    def __init__(self, s: float = 64.0, m1: float = 1.0, m2: float = 0.0, m3: float = 0.4,
                 interclass: float | None = None):
        super().__init__(s, interclass)
        if m1 < 1 or not 0 <= m2 < math.pi / 2:
            raise ValueError(f"m1={m1}, m2={m2}: m1 must be at least 1 and m2 in [0, pi/2)")
        self.m1, self.m2, self.m3 = m1, m2, m3

    def forward(self, cosine: torch.Tensor) -> torch.Tensor:  # [B] -> [B]
        m1 = 1 + self.strength * (self.m1 - 1)
        m2, m3 = self.strength * self.m2, self.strength * self.m3
        if m1 == 1:
            return add_angle(cosine, m2) - m3
        theta = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()
        turning_point = math.cos((math.pi - m2) / m1)
        return torch.where(cosine > turning_point, (m1 * theta + m2).cos(), cosine - turning_point - 1) - m3
