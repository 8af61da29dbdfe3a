import torch

from .margin import Margin


class CosFace(Margin):
    """cos(theta) - m. Wang et al. 2018, https://arxiv.org/abs/1801.09414"""

    def __init__(self, s: float = 64.0, m: float = 0.4, interclass: float | None = None):
        super().__init__(s, interclass)
        self.m = m

    def forward(self, cosine: torch.Tensor) -> torch.Tensor:  # [B] -> [B]
        return cosine - self.strength * self.m
