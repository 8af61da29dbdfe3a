"""A threshold from what a collection has seen, as far as that can tell.

What an unknown document would score is asked of the references themselves: each type in turn counts as not registered,
and its pictures are compared with all other types. So does each known unknown, and each decision whose feedback says that
the image was of no registered type. What the right documents score is asked of types with several references, each compared
with all but itself, and of decisions with feedback. Rates are told with their 95 % confidence intervals; where the pictures
are too few for the rate that is wanted, the threshold is that of the model's own table, and the answer says so.
"""
import math
import random
from typing import NamedTuple

import numpy as np

from ..model import TURNS
from ..thresholds import UNKNOWN_LABELED, choose_threshold, raised
from .compare import pictures_of, rank, registered
from .errors import Invalid

SAMPLED = 2_000  # references that are compared with all others, at most: seconds for 100,000 of them
CONFIDENCE = 0.95
LEAST_TARGET = 1e-6  # to tell so low a share takes millions of pictures
SHOWN = 100  # types that look alike
NEVER = -1.0  # the score of a picture that gets no label at any threshold: a known unknown is nearest, or the gap is small


class Seen(NamedTuple):
    """Scores from which pictures get a label, float64. `unknown`: of pictures of no registered type, one for each type or
    picture; `right`: of pictures of registered types, NEVER where the label would be another one. `alike`: {type: the
    highest score of its references with another type}. `counts`: what they come from."""
    unknown: np.ndarray
    right: np.ndarray
    alike: dict[int, float]
    counts: dict


def suggest(registry, target: float = UNKNOWN_LABELED, digest: str | None = None) -> dict:
    """A threshold at which at most the share `target` of the pictures of unknown types gets a label, with confidence.

    -> {threshold, source: "references" (what the collection has seen) or "model" (its own table), target,
    unknown_labeled and right_rejected: {rate, low, high (of the 95 % interval), count, of} at this threshold, None without
    any picture; now: the same two and `threshold`, for the one in use; based_on: {types, references, pairs, known_unknowns,
    feedback_unknown, feedback_right, sampled (whether not all references were compared)}; needed: so many unknown pictures,
    types included, are needed for this target; types: [{type, label, threshold}] that look like another one and so
    have a higher threshold; message: one line}. digest: of another model of the collection. Nothing is changed.
    """
    if not LEAST_TARGET <= target < 1:
        raise Invalid(f"target {target}: must be between {LEAST_TARGET:g} and 1, the share of unknown images that may "
                      "get a label")
    snapshot, model = registry.snapshot(), registry.model
    number, margin = snapshot.model_id, snapshot.margin
    if digest is not None:
        (number,), = registry.store.read("SELECT id FROM model WHERE collection = ? AND hash = ?", (registry.id, digest))
        model = registry.model_of(number)
        given = registry.settings["margin"]
        margin = model.margin if given is None else given
    seen = observe(registry, number, model, margin)
    needed = fewest(target)
    value = lowest(seen.unknown, target)
    if value is not None:
        source = "references"
        message = (f"of {len(seen.unknown):,} unknown images at most {target:.1%} would get a label, with a confidence of "
                   f"{CONFIDENCE:.0%}")
    else:
        compared = max(1, len(registry.labels)) * (2 if snapshot.find == "auto" else 1)
        value = choose_threshold(model, None, None, snapshot.orientation, compared * UNKNOWN_LABELED / target)[0]
        source = "model"
        why = (f"{len(seen.unknown):,} are known and {needed:,} are needed" if len(seen.unknown) < needed else
               "too many of those that are known score as high as registered ones")
        message = (f"too few unknown images to tell for {target:.1%} ({why}; each registered type counts as one): this is "
                   "the threshold of the model's own table")
    rates = lambda at: dict(unknown_labeled=interval(int((seen.unknown >= at).sum()), len(seen.unknown)),
                            right_rejected=interval(int((seen.right < at).sum()), len(seen.right)))
    labels = registry.snapshot().types  # some may have come since
    types = sorted(((kind, raised(value, score)) for kind, score in seen.alike.items() if score >= value),
                   key=lambda item: (-item[1], item[0]))
    return dict(threshold=value, source=source, target=target, **rates(value),
                now=dict(threshold=snapshot.threshold, **rates(snapshot.threshold)), based_on=seen.counts, needed=needed,
                types=[dict(type=kind, label=labels[kind], threshold=own) for kind, own in types[:SHOWN]],
                message=message)


def observe(registry, model_id: int, model, margin: float) -> Seen:
    """What a model makes of the collection's own pictures; a random sample of the types where there are many, always the
    same one."""
    rows = registry.store.read("SELECT id, type FROM reference WHERE collection = ? AND removed IS NULL ORDER BY id",
                               (registry.id,))
    of_type = {}
    for reference, kind in rows:
        of_type.setdefault(-reference if kind is None else kind, []).append(reference)
    kinds, chosen = sorted(of_type), []
    random.Random(0).shuffle(kinds)
    for kind in kinds:
        if len(chosen) + len(of_type[kind]) > SAMPLED:
            break
        chosen += of_type[kind]
    turns, depth = TURNS if registry.settings["orientation"] == "any" else 1, model.embedding_size
    asked = pictures_of(registry, model_id, depth, turns, sorted(chosen))
    others = rank(registered(registry, model_id, depth), asked, 3, without="type")
    labeled = _labeled(others, margin)
    unknown, alike = {}, {}
    for kind, score, other, highest in zip(asked.types.tolist(), labeled.tolist(), others.types[:, 0].tolist(),
                                           others.cosines[:, 0].tolist()):
        # Of a type the worst picture alone, since those of one type are not independent.
        unknown[kind] = max(unknown.get(kind, NEVER), score)
        if kind > 0 and other > 0:
            alike[kind] = max(alike.get(kind, NEVER), highest)
    several = np.array([kind > 0 and len(of_type[kind]) > 1 for kind in asked.types.tolist()], bool)
    without_itself = rank(registered(registry, model_id, depth), asked, 3, without="reference") if several.any() else others
    right = np.where(without_itself.types[:, 0] == asked.types, _labeled(without_itself, margin), NEVER)[several]
    told_unknown, told_right = _told(registry, registry.store.read("SELECT hash FROM model WHERE id = ?", (model_id,))[0][0])
    types = sum(kind > 0 for kind in of_type)
    counts = dict(types=types, references=len(rows), pairs=_pairs(len(asked.types), len(rows), asked.types, of_type),
                  known_unknowns=len(of_type) - types, feedback_unknown=len(told_unknown), feedback_right=len(told_right),
                  sampled=len(chosen) < len(rows))
    # A collection of one type says nothing about unknown pictures: there is no other type that it could be taken for.
    scores = [score for kind, score in unknown.items() if types - (kind > 0) > 0]
    return Seen(np.array(scores + told_unknown, np.float64), np.concatenate((right, told_right)).astype(np.float64), alike,
                counts)


def _pairs(asked, total, kinds, of_type):
    """Of references of different types that were compared, each asked one with all others."""
    return asked * total - sum(len(of_type[kind]) for kind in kinds.tolist())


def _labeled(hits, margin):
    """From which threshold down each picture gets the label of its best type; NEVER where the gap or a known unknown forbids
    it."""
    best, first, second = hits.types[:, 0], *hits.cosines[:, :2].T.astype(np.float64)
    close = first - np.where(second == -np.inf, -1, second) < margin
    return np.where((best > 0) & ~close, first, NEVER)


def _told(registry, digest):
    """(scores of pictures that feedback says are of no registered type, of those whose type it says)"""
    unknown, right = [], []
    for decision in registry.traffic.decisions(newest=True, limit=SAMPLED, feedback=True):
        if decision["model"] != digest[:16] or not decision["top"]:
            continue
        labeled, score = decision["label"] is not None, decision["score"]
        if decision["reason"] in ("runner-up-gap", "known-unknown"):
            score = NEVER  # no threshold would have given it a label
        if labeled and decision["correct"]:
            right.append(score)
        elif decision["right"] is None and labeled != decision["correct"]:
            unknown.append(score)  # a label that was wrong, or a rejection that was right, and no other type
        elif not labeled and decision["right"] is not None:
            named = registry.snapshot().types.get(decision["top"][0]["type"])
            right.append(score if named == decision["right"] else NEVER)
    return unknown, right


def lowest(scores: np.ndarray, target: float) -> float | None:
    """The lowest threshold, a multiple of 1e-4, at which the upper end of the confidence interval of the share of `scores`
    that reach it is at most `target`; None where that is beyond 1 or there are too few."""
    ordered, total = np.sort(scores)[::-1], len(scores)
    if total < fewest(target):
        return None
    low, high = 0, total  # the most that may reach it: at `low` the interval is within the target, at `high` it is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if interval(middle, total)["high"] <= target else (low, middle)
    value = max(0.0, (math.floor(ordered[low] * 1e4) + 1) / 1e4)
    return value if value <= 1 else None


def fewest(target: float) -> int:
    """So many pictures, none of which gets a label, show that at most the share `target` does."""
    return math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log1p(-target))


def interval(count: int, total: int) -> dict | None:
    """A share with its confidence interval of 95 % by Clopper and Pearson (https://doi.org/10.1093/biomet/26.4.404), which
    holds for any number: {rate, low, high, count, of}; None of nothing."""
    if not total:
        return None
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if count == 0 else _share(lambda share: _at_most(count - 1, total, share) > 1 - tail)
    high = 1.0 if count == total else _share(lambda share: _at_most(count, total, share) > tail)
    return dict(rate=count / total, low=low, high=high, count=count, of=total)


def _share(below):
    """The share between 0 and 1 up to which `below` holds."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return high


def _at_most(count, total, share):
    """The probability of at most `count` of `total`, each with the probability `share`."""
    hits = np.arange(count + 1)
    factorials = np.cumsum(np.log(np.maximum(1, np.arange(total + 1))))
    logs = (factorials[total] - factorials[hits] - factorials[total - hits] + hits * math.log(share)
            + (total - hits) * math.log1p(-share))
    return math.fsum(np.exp(logs))
