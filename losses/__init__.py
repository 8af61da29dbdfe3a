"""Losses, one per file: margins of the softmax, and losses of ordinary networks.

A margin (cosface, arcface, combined, softmax) maps the target's cosine to its new cosine, elementwise. That is all the
head in partial_fc.py needs to know, whose classes are sharded and tiled: only the owner of a class applies it.
The other losses (heatmap, distillation) are functions that return a value for each sample, `[B]`, never a mean: only the
training loop knows the global batch.
"""
from inference.errors import UserError

from .arcface import ArcFace
from .combined import CombinedMargin
from .cosface import CosFace
from .distillation import soft_target_kl
from .heatmap import heatmap_focal
from .margin import Margin
from .softmax import Softmax

__all__ = ["ArcFace", "CombinedMargin", "CosFace", "Margin", "Softmax", "get_margin", "heatmap_focal", "soft_target_kl"]


def get_margin(cfg) -> Margin:
    """The margin of a config: keys `margin`, `m`, `s`, `interclass`. Raises UserError for values it cannot take."""
    interclass = cfg.interclass or None
    try:
        if cfg.margin == "cosface":
            return CosFace(cfg.s, cfg.m, interclass)
        if cfg.margin == "arcface":
            return ArcFace(cfg.s, cfg.m, interclass)
        if cfg.margin == "combined":
            return CombinedMargin(cfg.s, *cfg.m, interclass)
        return Softmax(cfg.s, interclass)
    except ValueError as error:
        raise UserError(f"margin={cfg.margin}: {error}") from None
