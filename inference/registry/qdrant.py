"""Search in Qdrant, for references that outgrow one machine: `pip install "docmetric[qdrant]"`.

    index = open_index("qdrant+http://host:6333", depth, name)     # or qdrant+https://...; QDRANT_API_KEY: its key

Qdrant looks at every row (`exact`); the best are scored again here in float64, so that answers and their order are those of
the exact index in memory. It has no transactions: a search that runs while an event is applied may see half of it, and an
event counts only when all of it is in, so one that was cut off is applied again.
"""
import hashlib
import os

import numpy as np

from ..errors import UserError, first_line
from ..search import SPARE
from .errors import Busy
from .index import Hits, Rows, best_of, checked, no_hits, scored

STATE = "docmetric_state"  # a collection with a point for each index: its name, depth and event
MANY = 8  # rows fetched for each type that is asked for: enough where a type has a few references
SENT = 1000  # rows in a request: 3 MB at 256 values
TIMEOUT = 60  # seconds


def open_qdrant(spec: str, depth: int, name: str) -> "QdrantIndex":
    """`spec` as above. Raises UserError where the package is missing, Busy where the server does not answer."""
    try:
        from qdrant_client import QdrantClient
    except ImportError:
        raise UserError('index qdrant: qdrant-client is not installed; pip install "docmetric[qdrant]"') from None
    try:
        client = QdrantClient(url=spec.removeprefix("qdrant+"), api_key=os.environ.get("QDRANT_API_KEY"), timeout=TIMEOUT,
                              check_compatibility=False)
    except ValueError as error:
        raise UserError(f"index {spec}: {first_line(error)}") from None
    return QdrantIndex(client, depth, name)


class QdrantIndex:
    """An exact `Index` in Qdrant. client: a `QdrantClient`; one in local mode is used by one thread at a time."""
    exact, recall = True, None

    def __init__(self, client, depth: int, name: str):
        from qdrant_client import models
        self._models, self._client, self.depth = models, client, depth
        digest = hashlib.sha256(name.encode()).hexdigest()
        self._rows, self._point = "docmetric_" + digest[:24], int(digest[:15], 16)
        for collection, size in ((STATE, 1), (self._rows, depth)):
            if not self._ask("collection_exists", collection):
                try:
                    self._ask("create_collection", collection,
                              vectors_config=models.VectorParams(size=size, distance=models.Distance.DOT))
                except Busy:  # another process was faster
                    if not self._ask("collection_exists", collection):
                        raise
        self._ask("create_payload_index", self._rows, field_name="type", field_schema=models.PayloadSchemaType.INTEGER)
        state = self._state()
        if state is None:
            self._set_event(0, name)
        elif state["depth"] != depth:
            raise UserError(f"index qdrant: {name} holds vectors of {state['depth']} values, the model makes {depth}; it "
                            "belongs to another model")
        self._name = name

    @property
    def event(self) -> int:
        return self._state()["event"]

    def __len__(self) -> int:
        return self._ask("count", self._rows, exact=True).count

    def view(self) -> "QdrantIndex":
        return self

    def apply(self, event: int, added: Rows, removed: np.ndarray) -> None:
        added, removed = checked(self.depth, added, removed)
        if event < self.event:
            return
        gone = np.setdiff1d(removed, added.ids).tolist()
        for first in range(0, len(gone), SENT):
            self._ask("delete", self._rows, points_selector=gone[first:first + SENT], wait=True)
        for first in range(0, len(added.ids), SENT):
            ids, types, vectors = (values[first:first + SENT].tolist() for values in added)
            self._ask("upsert", self._rows, wait=True, points=self._models.Batch(
                ids=ids, vectors=vectors, payloads=[{"type": kind} for kind in types]))
        self._set_event(event, self._name)

    def search(self, queries: np.ndarray, k: int) -> Hits:
        return self._search(queries, k, by_type=True)

    def search_rows(self, queries: np.ndarray, k: int) -> Hits:
        return self._search(queries, k, by_type=False)

    def close(self) -> None:
        self._client.close()

    def _search(self, queries, k, by_type):
        if queries.ndim != 2 or queries.shape[1] != self.depth or k < 1:
            raise ValueError(f"queries {queries.shape} and k {k}: expected [N, {self.depth}] and at least 1")
        models, hits = self._models, best_of([no_hits(len(queries))], k, by_type)
        if not len(queries):
            return hits
        wanted, exact = k + SPARE, models.SearchParams(exact=True)
        limit = wanted * MANY if by_type else wanted
        answers = self._ask("query_batch_points", self._rows, requests=[
            models.QueryRequest(query=query.tolist(), limit=limit, params=exact, with_payload=True, with_vector=True)
            for query in np.float32(queries)])
        for row, (query, answer) in enumerate(zip(queries, answers)):
            points = answer.points
            if by_type and len(points) == limit and len({point.payload["type"] for point in points}) < wanted:
                groups = self._ask("query_points_groups", self._rows, group_by="type", query=np.float32(query).tolist(),
                                   limit=wanted, group_size=1, search_params=exact, with_payload=True, with_vectors=True)
                points = [group.hits[0] for group in groups.groups]
            if points:
                rows = Rows(np.array([point.id for point in points], np.int64),
                            np.array([point.payload["type"] for point in points], np.int64),
                            np.array([point.vector for point in points], np.float32))
                for values, best in zip(hits, scored(query, rows, k, by_type)):
                    values[row] = best[0]
        return hits

    def _state(self):
        found = self._ask("retrieve", STATE, ids=[self._point], with_payload=True)
        return found[0].payload if found else None

    def _set_event(self, event, name):
        point = self._models.PointStruct(id=self._point, vector=[1.0],
                                         payload={"event": event, "depth": self.depth, "name": name})
        self._ask("upsert", STATE, points=[point], wait=True)

    def _ask(self, method, *arguments, **options):
        from qdrant_client.http.exceptions import ApiException
        try:
            return getattr(self._client, method)(*arguments, **options)
        except ApiException as error:
            raise Busy(f"index qdrant: {first_line(error)}") from None
