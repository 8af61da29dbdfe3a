"""The head: a feature map `[B,C,h,w]` to an embedding `[B,e]`."""
import torch
from torch import nn


class LBN(nn.Sequential):
    """LayerNorm followed by BatchNorm."""

    def __init__(self, width: int):
        super().__init__(nn.LayerNorm(width), nn.BatchNorm1d(width))


NORMS = {"ln": nn.LayerNorm, "bn": nn.BatchNorm1d, "lbn": LBN}


class Head(nn.Module):
    """Reduce, then Linear - Norm - Linear - Norm, as in DocClassifier.

    reduce "flatten": C*h*w values, which keeps where a thing stands; "gap": the mean over places, C values;
    "squeeze": a 1x1 convolution C -> C/4, then flatten, a quarter of flatten's parameters.
    `norm` is "ln", "bn" or "lbn". No bias before a norm: the norm has its own.
    layout: the image itself, averaged to layout x layout cells, stands beside the reduced features: 3 * layout ** 2 values
    that keep color and layout, which training for everything else forgets. 0: without.
    """

    def __init__(self, channels: int, height: int, width: int, embedding_size: int, reduce: str, norm: str, layout: int = 0):
        super().__init__()
        if reduce == "gap":
            self.reduce, inputs = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels
        elif reduce == "squeeze":
            squeezed = channels // 4
            self.reduce = nn.Sequential(nn.Conv2d(channels, squeezed, 1, bias=False), nn.Flatten())
            inputs = squeezed * height * width
        else:
            self.reduce, inputs = nn.Flatten(), channels * height * width
        self.layout = nn.Sequential(nn.AdaptiveAvgPool2d(layout), nn.Flatten()) if layout else None
        self.embed = nn.Sequential(
            nn.Linear(inputs + 3 * layout ** 2, embedding_size, bias=False), NORMS[norm](embedding_size),
            nn.Linear(embedding_size, embedding_size, bias=False), NORMS[norm](embedding_size))

    def forward(self, features: torch.Tensor, image: torch.Tensor) -> torch.Tensor:  # [B,C,h,w], [B,3,S,S] -> [B,e]
        reduced = self.reduce(features)
        if self.layout is not None:
            reduced = torch.cat([reduced, self.layout(image).to(reduced.dtype)], 1)
        return self.embed(reduced)
