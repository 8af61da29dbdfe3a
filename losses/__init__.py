"""Losses, one per file: margins of the softmax, and losses of ordinary networks.

A margin (cosface, arcface, combined, softmax) maps the target's cosine to its new cosine, elementwise. That is all the
head in partial_fc.py needs to know, whose classes are sharded and tiled: only the owner of a class applies it.
The other losses (heatmap, supcon; for teachers distillation, match, relational, rkd, clip_kl) are functions that return a
value for each sample, `[B]`, never a mean: only the training loop knows the global batch.
"""
from inference.errors import UserError

from .arcface import ArcFace
from .clip_kl import clip_kl
from .combined import CombinedMargin
from .cosface import CosFace
from .distillation import soft_target_kl
from .heatmap import heatmap_focal
from .margin import Margin
from .match import cosine_distance
from .relational import relational_kl
from .rkd import rkd_distance
from .softmax import Softmax
from .supcon import supcon

__all__ = ["MARGINS", "ArcFace", "CombinedMargin", "CosFace", "Margin", "Softmax", "check_margin", "clip_kl",
           "cosine_distance", "get_margin", "heatmap_focal", "relational_kl", "rkd_distance", "soft_target_kl", "supcon"]
# What the key `margin` can name: how each is made of the keys s, m and interclass (None: off).
MARGINS = {
    "cosface": lambda s, m, interclass: CosFace(s, m, interclass),
    "arcface": lambda s, m, interclass: ArcFace(s, m, interclass),
    "combined": lambda s, m, interclass: CombinedMargin(s, *m, interclass),
    "softmax": lambda s, m, interclass: Softmax(s, interclass),
}


def check_margin(cfg) -> None:
    """Raises UserError unless the keys `margin` and `m` of a config fit together."""
    if (cfg.margin == "combined") != isinstance(cfg.m, list) or isinstance(cfg.m, list) and len(cfg.m) != 3:
        raise UserError(f"m={cfg.m}: margin={cfg.margin} takes "
                        + ("a list [m1, m2, m3]" if cfg.margin == "combined" else "one number"))


def get_margin(cfg) -> Margin:
    """The margin of a config: keys `margin`, `m`, `s`, `interclass`. Raises UserError for values it cannot take."""
    try:
        return MARGINS[cfg.margin](cfg.s, cfg.m, cfg.interclass or None)
    except ValueError as error:
        raise UserError(f"margin={cfg.margin}: {error}") from None
