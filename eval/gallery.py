"""1:N identification: is the best match of an image of the same type?"""
from dataclasses import dataclass

import numpy as np

from eval.pairs import best_cosines


@dataclass(frozen=True)
class Identification:
    """`top1` is the share of queries whose best match is of their own type. A tie with another type counts as wrong."""
    top1: float
    protocol: str       # "references": queries against the references; "leave-one-out": each image against all others
    queries: int
    gallery: int        # images searched
    excluded: int       # images that cannot be a query, since the gallery has no other image of their type

    def as_dict(self):
        return {"top1": self.top1, "top1_protocol": self.protocol, "top1_queries": self.queries,
                "top1_gallery": self.gallery, "top1_left_out": self.excluded}


def identify(points, labels, is_reference, block=1024, upright=None):
    """Top-1 as `Identification`: queries against references, or leave-one-out where that is not possible.

    points: float64 [N, D] from `pairs.fixed_point`, which makes the scores exact, or the views [V, N, D], of which the first
    `upright` are not turned, as in `pairs.count_pairs`: only references are turned. labels: int [N]; is_reference: bool [N].
    The best reference of a type counts. At least one type must have two images.
    """
    views = points[None] if points.ndim == 2 else points
    upright = upright or len(views)
    labels, is_reference = np.asarray(labels), np.asarray(is_reference, bool)
    candidates = np.flatnonzero(~is_reference)
    queries = candidates[np.isin(labels[candidates], labels[is_reference])]
    gallery, protocol = np.flatnonzero(is_reference), "references"
    if not len(queries):
        candidates = gallery = np.arange(len(labels))
        _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        queries, protocol = np.flatnonzero(sizes[inverse] > 1), "leave-one-out"
    right = sum(_count_right(views, upright, labels, queries[i:i + block], gallery, block)
                for i in range(0, len(queries), block))
    return Identification(right / len(queries), protocol, len(queries), len(gallery), len(candidates) - len(queries))


def registered(labels, is_reference):
    """bool [N]: the images that a user would register: the references of each type or, without any, its first image.

    labels: int [N]; is_reference: bool [N].
    """
    labels, chosen = np.asarray(labels), np.array(is_reference, bool)
    types, first = np.unique(labels, return_index=True)
    chosen[first[~np.isin(types, labels[chosen])]] = True
    return chosen


def _count_right(views, upright, labels, queries, gallery, block):
    probes = views[:upright, queries]
    best_own = np.full(len(queries), -np.inf)
    best_other = np.full(len(queries), -np.inf)
    for i in range(0, len(gallery), block):
        against = gallery[i:i + block]
        cosines = best_cosines(probes, views[:, against], upright)        # [queries, gallery]
        cosines[queries[:, None] == against[None]] = -np.inf        # an image does not match itself
        own = labels[queries, None] == labels[None, against]
        best_own = np.maximum(best_own, np.where(own, cosines, -np.inf).max(axis=1))
        best_other = np.maximum(best_other, np.where(own, -np.inf, cosines).max(axis=1))
    return int((best_own > best_other).sum())
