import torch

from .margin import Margin


class Softmax(Margin):
    """No margin: the normalized softmax with scale s. NormFace, Wang et al. 2017, https://arxiv.org/abs/1704.06369"""

    def __init__(self, s: float = 64.0, interclass: float | None = None):
        super().__init__(s, interclass)

    def forward(self, cosine: torch.Tensor) -> torch.Tensor:  # [B] -> [B]
        return cosine
