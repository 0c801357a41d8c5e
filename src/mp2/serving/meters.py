"""What the server counts, in Prometheus' form. No label holds a task or a text: there may be thousands."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Meters:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("mp2_requests", "Requests.", ("route", "status"), registry=r)
        self.seconds = Histogram(
            "mp2_request_seconds", "Seconds per request.", ("route",), registry=r, buckets=SECONDS
        )
        self.refused = Counter("mp2_refused", "Requests refused with 429.", ("reason",), registry=r)
        self.late = Counter("mp2_late", "Requests that were accepted and missed their deadline.", registry=r)
        self.batch_rows = Histogram("mp2_batch_rows", "Rows per batch.", buckets=ROWS, registry=r)
        self.batch_seconds = Histogram("mp2_batch_seconds", "Seconds per batch.", buckets=SECONDS, registry=r)

    def gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        """A number that is looked up when the metrics are read."""
        Gauge(name, about, registry=self.registry).set_function(value)

    def batch(self, rows: int, seconds: float) -> None:
        """Count one batch."""
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
