"""What Prometheus is told. The live part adds its own metrics to the same registry."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """All counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = to = CollectorRegistry()
        self.requests = Counter("fewstep_requests", "Requests answered.", ("route", "status"), registry=to)
        self.latency = Histogram("fewstep_request_seconds", "To the answer.", ("route",), buckets=SECONDS, registry=to)
        self.waiting = Gauge("fewstep_waiting", "Requests that wait for the worker.", ("kind",), registry=to)
        call = "One call of a pipeline."
        self.calls = Histogram("fewstep_call_seconds", call, ("model", "kind"), buckets=SECONDS, registry=to)
        self.frames = Counter("fewstep_frames", "Pictures and frames made.", ("model", "kind"), registry=to)
        self.jobs = Counter("fewstep_jobs", "Requests that the worker has done with.", ("kind", "end"), registry=to)
        self.out_of_memory = Counter("fewstep_out_of_memory", "Calls out of memory.", ("model",), registry=to)
        self.stored = Gauge("fewstep_stored_bytes", "Results on the disk.", registry=to)
        ProcessCollector(registry=to)

    def text(self) -> bytes:
        """In Prometheus's own text format."""
        return generate_latest(self.registry)


class Measured:
    """An app whose requests are counted and timed, by route (never by path: that would be a series a video)."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 499  # what is said of a client that did not wait

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception:
            status = 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.requests.labels(route, status).inc()
            self.metrics.latency.labels(route).observe(time.perf_counter() - start)
