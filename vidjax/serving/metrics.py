"""Counts requests and jobs for Prometheus."""

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from vidjax.serving.jobs import CANCELLED, DONE, FAILED, RUNNING, WAITING, Jobs

SECONDS = (0.01, 0.1, 1, 10)


class Metrics:
    """Counts of this process, and of the jobs that are in the database when they are read."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, jobs: Jobs):
        self.jobs, self.registry = jobs, CollectorRegistry()
        more = dict(registry=self.registry)
        self.requests = Counter("vidjax_requests", "Requests answered.", ["method", "route", "status"], **more)
        self.seconds = Histogram("vidjax_request_seconds", "Time to answer.", ["route"], buckets=SECONDS, **more)
        self.registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields the number of jobs in each state."""
        counts, gauge = self.jobs.counts(), GaugeMetricFamily("vidjax_jobs", "Videos by state.", labels=["status"])
        for status in (WAITING, RUNNING, DONE, FAILED, CANCELLED):
            gauge.add_metric([status], counts.get(status, 0))
        yield gauge

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one request."""
        self.requests.labels(method, route, status).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Writes all figures."""
        return generate_latest(self.registry)
