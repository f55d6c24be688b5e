"""Metrics for Prometheus: ``fusefs_<service>_<name>``, the unit last (``_bytes``, ``_seconds``, ``_total``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)


class Metrics:
    """The metrics of one process, in a registry of their own."""

    def __init__(self, service: str) -> None:
        self._prefix = f"fusefs_{service}"
        self.registry = CollectorRegistry()

    def counter(self, name: str, help: str, labels: Iterable[str] = ()) -> Counter:
        """Something that only grows."""
        return Counter(f"{self._prefix}_{name}", help, tuple(labels), registry=self.registry)

    def gauge(self, name: str, help: str, labels: Iterable[str] = ()) -> Gauge:
        """Something that goes up and down."""
        return Gauge(f"{self._prefix}_{name}", help, tuple(labels), registry=self.registry)

    def histogram(
        self, name: str, help: str, labels: Iterable[str] = (), buckets: Sequence[float] = LATENCY_BUCKETS_S
    ) -> Histogram:
        """A distribution, of seconds unless other buckets are given."""
        return Histogram(f"{self._prefix}_{name}", help, tuple(labels), buckets=tuple(buckets), registry=self.registry)

    def collect_from(self, prefix: str, statistics: Callable[[], Mapping[str, float]]) -> None:
        """Show what a ``statistics()`` returns, read when somebody asks: it costs nothing in between."""
        self.registry.register(_Statistics(f"{self._prefix}_{prefix}", statistics))

    def render(self) -> bytes:
        """The text that a scrape gets."""
        return generate_latest(self.registry)


class _Statistics(Collector):
    def __init__(self, prefix: str, statistics: Callable[[], Mapping[str, float]]) -> None:
        self._prefix = prefix
        self._statistics = statistics

    def describe(self) -> Iterable[Metric]:
        return ()  # or the registry would ask for the values at registration

    def collect(self) -> Iterator[Metric]:
        for name, value in self._statistics().items():
            family = GaugeMetricFamily(f"{self._prefix}_{name}", name.replace("_", " "))
            family.add_metric((), value)
            yield family
