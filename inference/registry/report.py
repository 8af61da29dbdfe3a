"""What another model would change: what both say of the same pictures, and which types look alike to each."""
import json
import random

import numpy as np

from ..image import ImageError, map_ahead
from ..model import TURNS
from ..thresholds import choose_threshold, raised
from .compare import decided, pictures, pictures_of, rank, registered
from .errors import Damaged
from .formats import usable as opened

SAMPLED = 2_000    # references, and unknowns, that a report compares
COMPARED = 20_000  # most references that are compared with each other for look-alikes, as in `gallery.Gallery`
LISTED = 100       # pictures, and look-alikes, that a report names


def report(registry, number: int, digest: str, snapshot) -> dict:
    """What `Upgrade.report` answers of the model with the id `number`."""
    rows = registry.store.read("SELECT id, type FROM reference WHERE collection = ? AND removed IS NULL "
                               "AND type IS NOT NULL ORDER BY id", (registry.id,))
    of_type = {}
    for reference, kind in rows:
        of_type.setdefault(kind, []).append(reference)
    several = [reference for reference, kind in rows if len(of_type[kind]) > 1]
    asked = several if len(several) <= SAMPLED else sorted(random.Random(0).sample(several, SAMPLED))
    sides = {"active": _side(registry, snapshot.model_id, snapshot.model_hash, snapshot),
             "new": _side(registry, number, digest, snapshot)}
    unknowns = _unknown_pictures(registry)
    answers = {name: _references(registry, side, asked, snapshot) for name, side in sides.items()}
    kinds = dict(rows)
    found = {name: _unknowns(registry, side, unknowns, snapshot) for name, side in sides.items()}
    registry.snapshot()  # all snapshots share `types`: some may have come since
    return dict(
        hash=digest, active=snapshot.model_hash, threshold={name: side["threshold"] for name, side in sides.items()},
        references=_compared(answers, "reference", snapshot.types, kinds) | {"of": len(rows)},
        unknowns=_compared(found, "id", snapshot.types, None),
        look_alikes={name: [dict(label=snapshot.types[first], other=snapshot.types[second], score=score)
                            for first, second, score in _pairs(side["alike"])[:LISTED]] for name, side in sides.items()},
        warnings=[f"{name}: {line}" for name, side in sides.items() for line in side["warnings"]])


def _side(registry, number, digest, snapshot):
    """What a model needs to decide: as it is in use, or as it would be."""
    model = registry.model_of(number)
    if number == snapshot.model_id:
        alike, note = look_alikes(registry, number, model, snapshot.threshold, snapshot)
        return dict(number=number, model=model, hash=digest, threshold=snapshot.threshold,
                    thresholds=snapshot.thresholds, alike=alike, margin=snapshot.margin,
                    warnings=list(snapshot.warnings) + note)
    rows = registry.store.read("SELECT type, value, source FROM threshold WHERE model = ? AND removed IS NULL", (number,))
    own = {kind: value for kind, value, _ in rows}
    threshold, warnings = own.pop(None, None), []
    given = any(kind is None and source != "suggestion" for kind, _, source in rows)
    if threshold is None:
        compared = max(1, len(registry.labels)) * (2 if snapshot.find == "auto" else 1)
        threshold, warnings = choose_threshold(model, None, None, snapshot.orientation, compared)
    alike, note = look_alikes(registry, number, model, threshold, snapshot)
    thresholds = {}
    for _, _, first, second, score in () if given else alike:
        for kind in (first, second):
            thresholds[kind] = max(thresholds.get(kind, threshold), raised(threshold, score))
    margin = registry.settings["margin"]
    return dict(number=number, model=model, hash=digest, threshold=threshold, thresholds=thresholds | own, alike=alike,
                margin=model.margin if margin is None else margin, warnings=warnings + note)


def look_alikes(registry, number, model, threshold, snapshot):
    """([(reference, other, type, type of the other, score)], warnings): of each reference the nearest one of another
    type, where it scores `threshold` or more."""
    references = [row for row, in registry.store.read("SELECT id FROM reference WHERE collection = ? AND removed IS NULL "
                                                      "AND type IS NOT NULL ORDER BY id", (registry.id,))]
    if len(references) > COMPARED:
        return [], [f"more than {COMPARED:,} references: types that look alike were not searched for"]
    depth, found = model.embedding_size, []
    for first in range(0, len(references), SAMPLED):
        asked = pictures_of(registry, number, depth, _turns(snapshot), references[first:first + SAMPLED])
        hits = rank(_only_types(registered(registry, number, depth)), asked, 1, without="type")
        for reference, kind, other, of_other, score in zip(asked.references.tolist(), asked.types.tolist(),
                                                           hits.ids[:, 0].tolist(), hits.types[:, 0].tolist(),
                                                           hits.cosines[:, 0].tolist()):
            if of_other > 0 and score >= threshold:
                found.append((reference, other, kind, of_other, score))
    return found, []


def _references(registry, side, asked, snapshot):
    """{reference: (type or 0, score)}"""
    depth = side["model"].embedding_size
    queries = pictures_of(registry, side["number"], depth, _turns(snapshot), asked)
    hits = rank(registered(registry, side["number"], depth), queries, 3, without="reference")
    return _answers(queries.references.tolist(), hits, side)


def _unknown_pictures(registry):
    """{id: (picture, quad)} of the newest; empty where none are kept."""
    rows = registry.unknowns.newest(SAMPLED)
    return {number: (picture, json.loads(quad) if quad else None) for number, picture, quad in rows}


def _unknowns(registry, side, unknowns, snapshot):
    """{unknown: (type or 0, score)}; those whose picture is gone are not in it."""
    views = registry.views_of(side["hash"], snapshot.find)

    def look(item):
        number, (name, quad) = item
        try:
            squares, _ = views(opened(registry.traffic.file.pictures.get(name)), quad)
        except (Damaged, ImageError):
            return number, None
        return number, side["model"].embed(np.stack(squares))

    looked = [(number, features) for number, features in map_ahead(look, unknowns.items(), threads=registry.store.threads)
              if features is not None]
    if not looked:
        return {}
    depth = side["model"].embedding_size
    hits = rank(registered(registry, side["number"], depth), pictures([features for _, features in looked]), 3,
                without="reference")
    return _answers([number for number, _ in looked], hits, side)


def _turns(snapshot):
    return TURNS if snapshot.orientation == "any" else 1


def _only_types(blocks):
    """Without known unknowns."""
    for rows in blocks:
        types = rows.types > 0
        if types.any():
            yield type(rows)(*(values[types] for values in rows))


def _answers(names, hits, side):
    found = decided(hits, side["threshold"], side["thresholds"], side["margin"])
    return {name: (int(kind), max(0.0, float(score))) for name, kind, score in zip(names, found, hits.cosines[:, 0])}


def _pairs(alike):
    """[(type, type, score)], each pair once, the most alike first."""
    best = {}
    for _, _, *kinds, score in alike:
        pair = tuple(sorted(kinds))
        best[pair] = max(best.get(pair, 0.0), score)
    return sorted(((*pair, score) for pair, score in best.items()), key=lambda entry: (-entry[2], entry))


def _compared(answers, name, labels, kinds):
    """What two models say of the pictures that both have embedded. kinds: {picture: its type}, None where it is not
    registered."""
    asked = sorted(answers["active"].keys() & answers["new"].keys())
    said = lambda answer: dict(label=labels[answer[0]] if answer[0] else None, score=answer[1])
    counts, changed, agree = {}, [], 0
    for side, of_side in answers.items():
        labeled = sum(of_side[one][0] > 0 for one in asked)
        right = sum(of_side[one][0] == kinds[one] for one in asked) if kinds else 0
        counts[side] = dict(right=right, wrong=labeled - right) if kinds else dict(labeled=labeled)
        counts[side]["rejected"] = len(asked) - labeled
    for one in asked:
        active, new = answers["active"][one], answers["new"][one]
        if active[0] == new[0]:
            agree += 1
        elif len(changed) < LISTED:
            changed.append({name: one} | ({"label": labels[kinds[one]]} if kinds else {})
                           | dict(active=said(active), new=said(new)))
    return dict(asked=len(asked), agree=agree, **counts, changed=changed)
