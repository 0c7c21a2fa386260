"""What Prometheus may ask of a gateway.

Two kinds of numbers: those of this process, counted as things happen (add them up over gateways), and those of the
database, read when asked (the same from every gateway: take the maximum).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.jobs import POOLS, Claimed, Job
from gateway.store import Store

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
AWAY = 60.0  # seconds without a heartbeat after which a worker is not reported
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "QUERY"})  # a client may make up others
QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)  # seconds, of answers
LONG = (0.05, 0.25, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 600.0, 1800.0, 7200.0)  # seconds, of jobs

log = logging.getLogger("gateway.jobs")

REGISTRY = CollectorRegistry()
REQUESTS = Counter("gateway_http_requests", "Answers", ("method", "route", "status"), registry=REGISTRY)
LATENCY = Histogram(
    "gateway_http_seconds", "Until the answer's first byte", ("method", "route"), buckets=QUICK, registry=REGISTRY
)
CLAIMS = Counter(
    "gateway_claims",
    "Jobs taken by workers: warm, the worker holds their weights; cold, it has to load them; plain, they name none",
    ("pool", "weights"),
    registry=REGISTRY,
)
STAGES = Histogram(
    "gateway_job_seconds",
    "Jobs that ended: queue, until a worker took it; predict, the model's work; total",
    ("pool", "status", "stage"),
    buckets=LONG,
    registry=REGISTRY,
)
LOST = Counter("gateway_jobs_lost", "Jobs queued again since their worker was lost", ("pool",), registry=REGISTRY)
DELIVERIES = Counter("gateway_webhooks", "Tries to call a webhook", ("event", "outcome"), registry=REGISTRY)


def claimed(what: Claimed, warm: frozenset[str]) -> None:
    """A worker that holds `warm` ("pool:weights_key") took a job."""
    pool, key = POOLS[what.job.kind], what.job.weights_key
    weights = "plain" if not key else "warm" if f"{pool}:{key}" in warm else "cold"
    CLAIMS.labels(pool, weights).inc()
    facts = {"job": what.job.id, "worker": what.job.worker, "attempt": what.job.attempt, "weights": weights}
    log.info("taken by a worker", extra=facts)


def ended(job: Job) -> None:
    """A job came to its end through this gateway."""
    stages = {
        "queue": (job.started_at or job.completed_at or job.created_at) - job.created_at,
        "predict": job.metrics.get("predict_time"),
        "total": None if job.completed_at is None else job.completed_at - job.created_at,
    }
    for stage, seconds in stages.items():
        if isinstance(seconds, int | float):
            STAGES.labels(POOLS[job.kind], job.status, stage).observe(seconds)
    log.info("%s", job.status, extra={"job": job.id, "worker": job.worker, "total": stages["total"]})


def swept(jobs: Iterable[Job]) -> None:
    """Deadlines passed, or workers were lost."""
    for job in jobs:
        if job.ended:
            ended(job)
        else:
            LOST.labels(POOLS[job.kind]).inc()
            log.warning("its worker was lost; queued again", extra={"job": job.id, "attempt": job.attempt})


@dataclass(frozen=True)
class Kept(Collector):
    """The numbers of the database."""

    store: Store

    def collect(self) -> Iterator[Metric]:
        """One look at the store."""
        counts, workers = self.store.counts(), self.store.workers(time.time() - AWAY)
        jobs = GaugeMetricFamily(
            "gateway_jobs", "Jobs that have not ended; queued ones wait for a worker", labels=("pool", "state")
        )
        age = GaugeMetricFamily("gateway_queue_oldest_seconds", "Age of the oldest queued job", labels=("pool",))
        for pool in POOLS.values():
            for state in ("queued", "starting", "processing"):
                jobs.add_metric((pool, state), counts["jobs"].get(pool, {}).get(state, 0))
            age.add_metric((pool,), counts["oldest"].get(pool, 0.0))
        yield jobs
        yield age
        yield GaugeMetricFamily("gateway_webhooks_waiting", "Calls of webhooks to be made", value=counts["deliveries"])
        yield GaugeMetricFamily("gateway_workers", "Workers heard of within a minute", value=len(workers))
        starts = GaugeMetricFamily(
            "gateway_worker_starts", "How often a worker has started its model", labels=("worker", "pool")
        )
        for worker in workers:
            told = worker.get("starts")
            for pool, number in told.items() if isinstance(told, dict) else ():
                if pool in POOLS.values() and isinstance(number, int):
                    starts.add_metric((worker["worker"], pool), number)
        yield starts


def text(store: Store) -> bytes:
    """All of it in Prometheus' text format; blocks for the database."""
    own = CollectorRegistry()
    own.register(Kept(store))
    return generate_latest(REGISTRY) + generate_latest(own)


class Measured:
    """Counts and times the application's answers under the route's pattern, so that no id becomes a label."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began = time.perf_counter()

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in METHODS else "other"
                LATENCY.labels(method, route).observe(time.perf_counter() - began)
                REQUESTS.labels(method, route, str(message["status"])).inc()
            await send(message)

        return await self.app(scope, receive, counting)
