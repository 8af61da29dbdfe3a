"""The threshold: what is in use, another one, what it would change."""
from typing import Annotated

from fastapi import Query
from starlette.requests import Request

from ...registry.errors import Invalid
from ...thresholds import UNKNOWN_LABELED
from . import shapes
from .common import COLLECTION, Collection, Idempotency, Routes, answer, call, call_long, changing, registry_of

router = Routes("Threshold", COLLECTION)

Target = Annotated[float, Query(ge=1e-6, lt=1, description="The share of images of unknown types that may get a label")]


@router.add("GET", "/threshold", "read", shapes.Threshold)
async def get_threshold(request: Request, collection: Collection):
    """The lowest score at which a label is given."""
    return answer(await call(request, _threshold, await registry_of(request, collection)))


@router.add("PUT", "/threshold", "admin", shapes.ThresholdSet, errors=(409,))
async def set_threshold(request: Request, collection: Collection, body: shapes.SetThreshold, key: Idempotency = None):
    """Set it to a value, or to that of a false positive rate, or, with neither, to automatic: from the model's table and the
    number of types."""
    if body.threshold is not None and body.fpr is not None:
        raise Invalid("give a threshold or an fpr, not both")
    if body.type is not None and body.label is not None:
        raise Invalid("give a type or a label, not both")
    registry = await registry_of(request, collection)
    whose = body.label if body.type is None else body.type
    return answer(await call(request, registry.set_threshold, body.threshold, fpr=body.fpr, label=whose,
                             **changing(request, key)))


@router.add("GET", "/threshold/suggestion", "read", shapes.Suggestion)
async def suggest_threshold(request: Request, collection: Collection, target: Target = UNKNOWN_LABELED):
    """A threshold from the references and the decisions with feedback. Nothing is changed."""
    registry = await registry_of(request, collection)
    return answer(await call_long(request, registry.suggest_threshold, target=target))


@router.add("GET", "/threshold/replay", "read", shapes.Replay)
async def replay(request: Request, collection: Collection, threshold: Annotated[float, Query(ge=0, le=1)]):
    """What another threshold would have made of the stored decisions."""
    return answer(await call(request, (await registry_of(request, collection)).traffic.replay, threshold))


def _threshold(registry):
    snapshot = registry.snapshot()
    own = [dict(type=number, label=snapshot.types[number], threshold=value)
           for number, value in sorted(snapshot.thresholds.items()) if number > 0 and value != snapshot.threshold]
    return dict(threshold=snapshot.threshold, automatic=snapshot.automatic, margin=snapshot.margin, types=own,
                warnings=list(snapshot.warnings))
