"""Small anchor-free detectors: timm features, a top-down neck, and heads for boxes or for quads."""
import math

import torch
import torch.nn.functional as F
from torch import nn

from inference.errors import UserError, first_line

from .network import load_weights, mean_and_std, timm_features

PRIOR = 0.1  # the score of an untrained network, as CenterNet starts


class Pyramid(nn.Module):
    """Images float `[B,3,S,S]` in [0,1], RGB -> by `maps`, features `[B,width,h,w]` at each of `strides`, the finest first.

    features: timm's, of all strides. What is deep is carried down to the finer strides (FPN,
    https://arxiv.org/abs/1612.03144), also from strides coarser than those that are used. Outside of `features` there are
    no batch statistics.
    """

    def __init__(self, features: nn.Module, strides: list[int], width: int, mean, std):
        super().__init__()
        reductions = features.feature_info.reduction()
        self.features, self.strides, self.first = features, strides, reductions.index(strides[0])
        self.used = [reductions.index(stride) - self.first for stride in strides]
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1)
                                     for channels in features.feature_info.channels()[self.first:])
        self.smooth = nn.ModuleList(block(width) for _ in strides)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        maps = self.features((image - self.mean) / self.std)[self.first:]
        maps = [lateral(x) for lateral, x in zip(self.lateral, maps)]             # [B,width,h,w] each, the finest first
        for finer in reversed(range(len(maps) - 1)):
            maps[finer] = maps[finer] + F.interpolate(maps[finer + 1], size=maps[finer].shape[2:])
        return [smooth(maps[level]) for level, smooth in zip(self.used, self.smooth)]


class Localizer(Pyramid):
    """Images float `[B,3,S,S]` in [0,1], RGB -> for each stride s, the finest first, two maps of S/s x S/s cells:

    heat `[B,C,h,w]`: before the sigmoid, the score that an object of a class has its center in a cell (CenterNet,
    https://arxiv.org/abs/1904.07850); sides `[B,C,4,h,w]`: how far its left, top, right and bottom side are from the
    cell's center, in pixels (FCOS, https://arxiv.org/abs/1904.01355). A box for each class: a character and its word may
    have the same center. One head for all strides.
    """

    def __init__(self, features: nn.Module, strides: list[int], classes: int, width: int, mean, std):
        super().__init__(features, strides, width, mean, std)
        self.head = nn.Sequential(block(width), block(width))
        self.heat, self.sides = score(width, classes), nn.Conv2d(width, 4 * classes, 1)
        nn.init.constant_(self.sides.bias, 1)  # softplus: 1.3 cells to each side

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = []
        for x, stride in zip(self.maps(image), self.strides):
            x = self.head(x)
            outputs += [self.heat(x), stride * self.sides(x).exp().unflatten(1, (-1, 4))]
        return tuple(outputs)


class Finder(Pyramid):
    """Images float `[B,3,S,S]` in [0,1], RGB -> the documents in them, as four maps that `inference.quads.decode` reads.

    At the coarser of two strides heat `[B,1,h,w]`, before the sigmoid, the score that the middle of a document lies in a
    cell, and corners `[B,8,h,w]`, x, y of its four corners from the cell's center, in pixels. At the finer one corner_heat
    `[B,1,H,W]`, before the sigmoid, the score that a corner lies in a cell, and corner_shift `[B,2,H,W]`, that corner from
    the cell's center, in pixels.
    """

    def __init__(self, features: nn.Module, strides: list[int], width: int, mean, std):
        super().__init__(features, strides, width, mean, std)
        self.fine, self.coarse = (nn.Sequential(block(width), block(width)) for _ in strides)
        self.heat, self.corners = score(width, 1), nn.Conv2d(width, 8, 1)
        self.corner_heat, self.corner_shift = score(width, 1), nn.Conv2d(width, 2, 1)
        self.corners.bias.data = torch.tensor([-1.0, -1, 1, -1, 1, 1, -1, 1])  # clockwise from the top left

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        fine, coarse = self.maps(image)
        fine, coarse = self.fine(fine), self.coarse(coarse)
        corners = 2 * self.strides[1] * self.corners(coarse)
        return self.heat(coarse), corners, self.corner_heat(fine), self.strides[0] * self.corner_shift(fine)


def block(width: int) -> nn.Sequential:
    """3x3 by channel, then 1x1 over channels; GroupNorm, as in FCOS, since a batch of large images is small."""
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
                         nn.Conv2d(width, width, 1, bias=False), nn.GroupNorm(width // 8, width), nn.Hardswish())


def score(width: int, classes: int) -> nn.Conv2d:
    """Scores before the sigmoid, PRIOR at first."""
    last = nn.Conv2d(width, classes, 1)
    nn.init.constant_(last.bias, -math.log(1 / PRIOR - 1))
    return last


def get_localizer(cfg, classes: int, pretrained=None) -> Localizer:
    """The detector of a config: keys `network, strides, width, image_size, pretrained`. `pretrained` overrides the config's:
    True takes timm's weights from the hub, a path takes those of a file (a `model.pt` of this task for as many classes, or
    any checkpoint timm can read for this network), False takes none. Raises UserError."""
    return _build(cfg, pretrained, lambda features, *rest: Localizer(features, sorted(cfg.strides), classes, *rest))


def get_finder(cfg, pretrained=None) -> Finder:
    """The finder of a config; see `get_localizer`."""
    return _build(cfg, pretrained, lambda features, *rest: Finder(features, sorted(cfg.strides), *rest))


def _build(cfg, pretrained, make):
    pretrained = cfg.pretrained if pretrained is None else pretrained
    features, ours = timm_features(cfg.network, pretrained, "heat.")
    reductions, strides = features.feature_info.reduction(), sorted(cfg.strides)
    if not strides or set(strides) - set(reductions) or cfg.image_size % strides[-1]:
        raise UserError(f"strides={cfg.strides}: choose some of {reductions}, which network={cfg.network} has, that "
                        f"image_size={cfg.image_size} is a multiple of")
    model = make(features, cfg.width, *mean_and_std(cfg.network))
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, cfg.image_size, cfg.image_size))
    except Exception as error:  # each family has its own words for a size it cannot take
        raise UserError(f"network={cfg.network}, image_size={cfg.image_size}: do not fit together ({first_line(error)}); "
                        "choose another size, or a network with feature maps [B,C,h,w]") from None
    if ours:
        load_weights(model, ours, pretrained)
    return model.train()
