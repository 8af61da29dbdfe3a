"""Figures for Prometheus, and whether the server is ready.

In a server with several worker processes each writes its figures to files of one folder (PROMETHEUS_MULTIPROC_DIR, which
serve.py makes), and whichever process is asked adds up all of them. Requests are counted by the template of their route,
never by their path, so that nobody can make up series.
"""
import asyncio
import os

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.responses import Response
from starlette.routing import Route

from ..errors import UserError, first_line
from .problems import MEDIA_TYPE, RETRY_AFTER, problem, scrub

LOADED = 16  # collections that are loaded before a process takes requests; further ones when they are first asked for
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30)

_own = CollectorRegistry()
REQUESTS = Counter("docmetric_requests", "Requests that were answered", ("method", "route", "status"), registry=_own)
LATENCY = Histogram("docmetric_request_seconds", "From a request's headers to the begin of its answer", ("route",),
                    buckets=SECONDS, registry=_own)
REJECTED = Counter("docmetric_rejected", "Requests that were not let in, by the code of the error", ("code",), registry=_own)
REFUSED = Counter("docmetric_connections_refused", "Connections beyond the limit", registry=_own)
IN_WORK = Gauge("docmetric_requests_in_work", "Requests that were let in and are not answered yet", registry=_own,
                multiprocess_mode="livesum")
BYTES = Gauge("docmetric_body_bytes", "Bytes that the bodies of those requests have or may take", registry=_own,
              multiprocess_mode="livesum")
UNREAD = Gauge("docmetric_unread_bytes", "Bytes of answers that wait to be read", registry=_own, multiprocess_mode="livesum")
JOBS = Gauge("docmetric_jobs", "Jobs that have a thread or wait for one", registry=_own, multiprocess_mode="livesum")
CONNECTIONS = Gauge("docmetric_connections", "Open connections", registry=_own, multiprocess_mode="livesum")
SEARCHES = Histogram("docmetric_search_images", "Images in one search", buckets=(1, 2, 4, 8, 16, 32, 64), registry=_own)

_children = {}  # of the counters: looking one up by its labels takes longer than counting


def answered(method: str, route: str, status: int, seconds: float) -> None:
    key = method, route, status
    if key not in _children:
        _children[key] = REQUESTS.labels(method, route, str(status)), LATENCY.labels(route)
    count, latency = _children[key]
    count.inc()
    latency.observe(seconds)


class _Store:
    """What the store holds, read when it is asked for."""

    def __init__(self, store):
        self.store = store

    def collect(self):
        types = GaugeMetricFamily("docmetric_types", "Registered types", labels=("collection",))
        references = GaugeMetricFamily("docmetric_references", "Reference images", labels=("collection",))
        for collection in self.store.collections():
            types.add_metric((collection["name"],), collection["types"])
            references.add_metric((collection["name"],), collection["references"])
        events = CounterMetricFamily("docmetric_events", "Changes of the store, the undone ones too")
        events.add_metric((), self.store.read("SELECT coalesce(max(id), 0) FROM event")[0][0])
        yield from (types, references, events)


def exposition(store) -> bytes:
    """All figures of all processes, as Prometheus reads them. Raises UserError where the store cannot be read."""
    registry = CollectorRegistry()
    if FOLDER in os.environ:
        MultiProcessCollector(registry)
    else:
        registry = _own
    of_store = CollectorRegistry()
    of_store.register(_Store(store))
    return generate_latest(registry) + generate_latest(of_store)


def load(store) -> None:
    """Load the models and vectors of the first collections, unless they are. Raises UserError."""
    for collection in store.collections()[:LOADED]:
        registry = store.collection(collection["name"])
        registry.snapshot()
        registry.model


def routes() -> list[Route]:
    """/healthz: the process answers. /readyz: it can do its work. /metrics: needs the scope `read` for the whole store, as
    all collections are told; the other two need no key. None of them is bounded by admission.py; whoever asks /readyz while
    it is being looked into shares the answer, so that nobody fills the queue with it."""
    looking = []  # at most one task

    async def healthz(request):
        return Response("ok\n", media_type="text/plain")

    async def readyz(request):
        store = request.app.state.store
        if not looking or looking[0].done():
            looking[:] = [asyncio.ensure_future(request.app.state.work.run_slow(load, store))]
        try:
            await asyncio.shield(looking[0])
        except (UserError, OSError) as error:
            body = problem(503, "not-ready", scrub(first_line(error), store.path, store.path.resolve()))
            return Response(body, 503, {"Retry-After": str(RETRY_AFTER)}, MEDIA_TYPE)
        return Response("ready\n", media_type="text/plain")

    async def metrics(request):
        request.app.state.door.caller(request.scope).require("read", None, whole=True)
        return Response(await request.app.state.work.run_slow(exposition, request.app.state.store),
                        media_type=CONTENT_TYPE_LATEST)

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]
