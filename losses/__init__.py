"""Margins of the softmax: one per file. A margin maps the target's cosine to its new cosine, elementwise.

That is all the class-sharded, class-tiled head needs to know: only the owner of a class applies it.
"""
from inference.errors import UserError

from .arcface import ArcFace
from .combined import CombinedMargin
from .cosface import CosFace
from .margin import Margin
from .softmax import Softmax

__all__ = ["ArcFace", "CombinedMargin", "CosFace", "Margin", "Softmax", "get_margin"]


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
