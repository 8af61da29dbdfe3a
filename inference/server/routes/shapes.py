"""How answers and JSON bodies look: OpenAPI is made of these, and bodies are checked with them. Answers are not: they would
cost more than the network, and the tests compare them with the documentation."""
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from ...registry.keys import SCOPES
from .common import LARGEST, Label, Strict

Kind = Literal["type", "unknown"]
Score = Annotated[float, Field(description="(cosine + 1) / 2")]
Time = Annotated[float, Field(description="Seconds since 1970")]
Number = Annotated[int, Field(ge=1, le=LARGEST)]
Corners = Annotated[list[list[float]] | None, Field(description="Four corners, [x, y] in pixels of the upright image")]
Next = Annotated[int | None, Field(description="`after` of the next page; null: this is the last one")]
Scope = Literal[SCOPES]


def in_order(scopes) -> list[str]:
    return sorted(scopes, key=SCOPES.index)


class Problem(BaseModel):
    """An error (RFC 9457). `code` is a word for programs; what more there is to say stands beside it."""
    type: str
    title: str
    status: int
    code: str
    detail: str


# ---- collections ----

class Collection(BaseModel):
    name: str
    find: Literal["never", "auto", "always"]
    orientation: Literal["upright", "any"]
    created: Time
    types: int
    references: int
    model: str | None = Field(description="The hash of the active model")


class CollectionInUse(Collection):
    margin: float | None = Field(description="The runner-up gap; null: the model's own")
    threshold: Score
    event: int = Field(description="The last event")
    warnings: list[str]


class Collections(BaseModel):
    items: list[Collection]


class NewCollection(Strict):
    name: str = Field(min_length=1, max_length=64, pattern="^[A-Za-z0-9_-]+$", examples=["invoices"])
    find: Literal["never", "auto", "always"] = "auto"
    orientation: Literal["upright", "any"] = "upright"


class CollectionChange(Strict):
    """Another `find` or `orientation` embeds all references again."""
    find: Literal["never", "auto", "always"] | None = None
    orientation: Literal["upright", "any"] | None = None
    margin: float | None = Field(None, ge=-1, le=1, description="0..1, or -1: the model's own", examples=[0.01])


class Changed(BaseModel):
    event: int


# ---- references and types ----

class Neighbor(BaseModel):
    reference: int
    label: str | None
    kind: Kind
    score: Score


class Finding(BaseModel):
    code: str = Field(examples=["blur"])
    message: str
    details: dict[str, Any]


class Added(BaseModel):
    reference: int
    type: int | None
    label: str | None
    kind: Kind
    event: int
    new_type: bool
    sha256: str
    quad: Corners
    findings: list[Finding]


class Refused(Problem):
    findings: list[Finding] = Field([], description="What the registration gate found; force=true registers all the same")


class Reference(BaseModel):
    reference: int
    type: int | None
    label: str | None
    kind: Kind
    sha256: str
    quad: Corners
    found: float | None
    orientation: int
    quality: dict[str, Any] | None
    source: str | None
    who: str | None
    created: Time
    removed: float | None


class References(BaseModel):
    items: list[Reference]
    next: Next


class Move(Strict):
    label: Label


class Moved(Changed):
    reference: int
    type: int
    label: str


class Removed(Changed):
    references: list[int]
    type: int | None
    label: str | None


class Inspected(BaseModel):
    quad: Corners
    found: float | None
    width: int
    height: int
    quality: dict[str, Any]
    findings: list[Finding]
    nearest: list[Neighbor]
    resolves: int = Field(description="So many stored unknowns would this reference explain")


class LookAlike(BaseModel):
    label: str
    score: Score


class Type(BaseModel):
    type: int
    label: str
    references: int
    cover: int | None = Field(description="The id of its first reference")
    created: Time
    threshold: Score
    look_alikes: list[LookAlike]


class Types(BaseModel):
    items: list[Type]
    next: Next


class Rename(Strict):
    label: Label


class Renamed(Changed):
    type: int
    label: str


class Merge(Strict):
    into: Number = Field(description="The id of the type that all references go to")


class MergeTypes(Strict):
    source: Number | Label
    into: Number | Label


class Merged(Changed):
    type: int
    label: str
    references: list[int]


# ---- classify and search ----

class Hit(BaseModel):
    label: str | None
    type: int | None
    kind: Kind
    score: Score
    reference: int


class Result(BaseModel):
    image: str | None
    label: str | None = Field(description="null: rejected")
    score: float | None
    top_k: list[Hit]
    error: str | None
    reason: Literal["accepted", "below-threshold", "runner-up-gap", "known-unknown", "empty", "unusable"]
    threshold: Score
    margin: float
    search: Literal["exact", "approximate"]
    recall: float | None
    quad: Corners
    found: float | None
    view: str | None
    orientation: int | None
    model: str
    event: int
    decision: int | None = Field(description="For feedback; null for an image that cannot be used")


class Results(BaseModel):
    results: list[Result]


class Neighbors(BaseModel):
    neighbors: list[Neighbor]


# ---- decisions, feedback, unknowns ----

class Best(BaseModel):
    type: int | None
    kind: Kind
    score: Score
    reference: int | None = Field(None, description="Of a known unknown alone")


class Decision(BaseModel):
    decision: int
    when: Time
    label: str | None
    score: float | None
    reason: str
    top: list[Best] = Field(description="The best two types")
    threshold: Score
    margin: float
    model: str
    event: int
    correct: bool | None = Field(description="What feedback said; null: nothing")
    right: str | None = Field(description="The right label, where it was told")


class Decisions(BaseModel):
    items: list[Decision]
    next: Next


class Feedback(Strict):
    decision: int = Field(ge=0, le=LARGEST)
    correct: bool
    label: Label | None = Field(None, description="The right one, where it is known")


class Unknown(BaseModel):
    id: int
    when: Time
    expires: Time
    score: float | None = Field(description="Of the best type; null: there was none")
    seen: int = Field(description="So often exactly this image came")
    decision: int
    bytes: int


class Unknowns(BaseModel):
    items: list[Unknown]
    next: Next


class NearestType(BaseModel):
    type: int
    label: str
    score: Score


class Cluster(BaseModel):
    ids: list[int]
    size: int
    cover: int = Field(description="The most central one")
    score: float | None = Field(description="Of the two that are least alike; null: there is one")
    suggestion: NearestType | None


class Clusters(BaseModel):
    clusters: list[Cluster]


class Resolve(Strict):
    ids: list[Number] = Field(min_length=1, max_length=10_000)
    label: Label | None = None
    kind: Kind = "type"
    references: int = Field(1, ge=1, le=100, description="So many images are registered, the most central ones")
    dry_run: bool = Field(False, description="Say only what would be resolved")
    force: bool = Field(False, description="Register although the gate finds something")


class Resolved(BaseModel):
    references: list[int] = Field(description="The new ones")
    pictures: list[int] = Field(description="The unknowns that became references")
    resolved: list[int] = Field(description="The unknowns that are explained and gone")
    left: list[int] = Field(description="Those of `ids` that the references do not explain")
    events: list[int]


# ---- thresholds ----

class TypeThreshold(BaseModel):
    type: int
    label: str
    threshold: Score


class Threshold(BaseModel):
    threshold: Score
    automatic: bool
    margin: float
    types: list[TypeThreshold] = Field(description="Types with another threshold")
    warnings: list[str]


class SetThreshold(Strict):
    """One of `threshold` and `fpr`; neither: automatic. Types that look alike have a higher threshold than an automatic or a
    suggested one; one that is given holds for all."""
    threshold: Annotated[float, Field(ge=0, le=1)] | Literal["suggestion"] | None = None
    fpr: float | None = Field(None, gt=0, le=1, description="The false positive rate of pairs, from the model's table")
    type: Number | None = Field(None, description="The id of the type that it is for; null: all others")
    label: Label | None = Field(None, description="Its label instead")


class ThresholdSet(Changed):
    threshold: float | None
    type: int | None


class Rate(BaseModel):
    rate: float
    low: float
    high: float
    count: int
    of: int


class Suggestion(BaseModel):
    threshold: float
    source: Literal["references", "model"]
    target: float
    unknown_labeled: Rate | None
    right_rejected: Rate | None
    now: dict[str, Any] = Field(description="The same for the threshold in use")
    based_on: dict[str, Any]
    needed: int = Field(description="So many unknown images at least are needed for this target")
    types: list[TypeThreshold] = Field(description="Types that look like another one")
    message: str


class Examples(BaseModel):
    gained: list[int]
    lost: list[int]


class Replay(BaseModel):
    threshold: Score
    decisions: int
    since: float | None
    labeled: int = Field(description="With a label, as it was decided")
    labeled_then: int = Field(description="With a label, had the threshold been this one")
    gained: int
    lost: int
    unclear: int = Field(description="Gained ones of which the second type is not known, and so not whether it was too near")
    right_lost: int
    wrong_lost: int
    wrong_rejections_gained: int
    examples: Examples = Field(description="The newest decisions that change")


# ---- events ----

class Event(BaseModel):
    event: int
    when: Time
    who: str | None
    what: str
    text: str
    undoes: int | None
    undone_by: int | None


class Events(BaseModel):
    items: list[Event]
    next: Next


class Undo(Strict):
    event: Number | None = Field(None, description="null: the last one that is not undone")


class Undone(Changed):
    undone: int


# ---- models ----

class Model(BaseModel):
    hash: str
    name: str
    state: Literal["building", "ready", "active", "retired"]
    created: Time
    references: int = Field(description="So many are embedded by it")
    threshold: float | None


class Models(BaseModel):
    items: list[Model]


class ModelAdded(BaseModel):
    hash: str


class Report(BaseModel):
    """Both models on the same images: the one in use (`active`), and the `new` one."""
    hash: str
    active: str
    threshold: dict[str, float]
    references: dict[str, Any] = Field(description="Each asked about as if it were not registered itself")
    unknowns: dict[str, Any]
    look_alikes: dict[str, Any]
    warnings: list[str]


class Activate(Strict):
    threshold: Annotated[float, Field(ge=0, le=1)] | Literal["suggestion"] | None = Field(
        None, description="null: the one that was set for this model, else automatic")


class Activated(BaseModel):
    hash: str
    event: int | None = Field(description="null: it was in use already")
    former: str | None
    threshold: float | None = Field(description="null: not changed")
    embedded: int


class ModelRemoved(Changed):
    hash: str


class Imported(BaseModel):
    event: int | None = Field(description="null: there was nothing to do")
    types: int = Field(description="New ones")
    references: int = Field(description="New ones")
    skipped: int


# ---- keys ----

class NewKey(Strict):
    name: str = Field(min_length=1, max_length=100, examples=["scanner"])
    scopes: list[Scope] = Field(min_length=1, max_length=100, examples=[["classify", "read"]])
    collections: list[str] | None = Field(None, min_length=1, max_length=10_000, description="null: all",
                                          examples=[["default"]])
    expires: Time | None = None


class Key(BaseModel):
    id: int
    name: str
    scopes: list[Scope]
    collections: list[str] | None
    created: Time
    expires: float | None
    revoked: float | None


class KeyMade(Key):
    key: str = Field(description="The key itself. It is shown this once.")


class ApiKeys(BaseModel):
    items: list[Key]


class Me(BaseModel):
    name: str | None
    scopes: list[Scope]
    collections: list[str] | None
    open: bool = Field(description="The server needs no key")
