"""What `GET /metrics` shows: requests of every gateway of this node, and how each vector space does.

The gateways of a node answer at one port, and the kernel picks which of them gets a connection. So what a gateway
counts is kept in files that all of them share (prometheus_client's multiprocess mode): any of them answers for all.
How the spaces do is asked at each scrape.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.info import SpaceRebuild, SpaceSample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
OTHER = "other"  # the route of what has none: a path that a client made up is no label


class Metrics(Protocol):
    """Counts what a gateway does."""

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""

    def epochs(self, epochs: Mapping[str, int]) -> None:
        """The routing table is this one now: the epoch of each collection."""

    def exposition(self, spaces: Iterable[SpaceSample]) -> bytes:
        """Everything, in Prometheus' text format."""


class NoMetrics:
    """Counts nothing: for an application without a folder to keep counts in."""

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Forget it."""

    def epochs(self, epochs: Mapping[str, int]) -> None:
        """Forget it."""

    def exposition(self, spaces: Iterable[SpaceSample]) -> bytes:
        """Nothing."""
        return b""


class PrometheusMetrics:
    """The metrics of one gateway process, in a folder that the gateways of its node share."""

    def __init__(self, folder: Path, gateway: str) -> None:
        """Begin to count for `gateway`; what dead gateways left as their epoch is removed."""
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[FOLDER_VARIABLE] = str(folder)  # the library reads it when it is imported first
        import prometheus_client as prometheus
        from prometheus_client import multiprocess

        self._prometheus, self._multiprocess = prometheus, multiprocess
        for pid in _dead(folder):
            multiprocess.mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
        self._folder, self._gateway = folder, gateway
        registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Counter(
            "compass_requests", "Requests answered.", ("route", "status"), registry=registry
        )
        self._seconds = prometheus.Histogram(
            "compass_request_seconds", "Time to answer.", ("route",), buckets=SECONDS, registry=registry
        )
        self._epoch = prometheus.Gauge(
            "compass_router_epoch",
            "Epoch of the default space that a gateway routes by.",
            ("gateway", "collection"),
            registry=registry,
            multiprocess_mode="liveall",
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def epochs(self, epochs: Mapping[str, int]) -> None:
        """The routing table is this one now."""
        for collection, epoch in epochs.items():
            self._epoch.labels(self._gateway, collection).set(epoch)

    def exposition(self, spaces: Iterable[SpaceSample]) -> bytes:
        """Everything, in Prometheus' text format."""
        registry = self._prometheus.CollectorRegistry()
        self._multiprocess.MultiProcessCollector(registry, str(self._folder))  # type: ignore[no-untyped-call]
        now = self._prometheus.CollectorRegistry()
        now.register(_Spaces(list(spaces)))
        return self._prometheus.generate_latest(registry) + self._prometheus.generate_latest(now)


# name, what it is, how it is read
_OF_SPACE: tuple[tuple[str, str, Callable[[SpaceRebuild], float]], ...] = (
    ("compass_space_vectors", "Chunks that the space can find.", lambda r: r.status.embedded),
    ("compass_space_chunks", "Live chunks of the collection.", lambda r: r.status.total),
    ("compass_space_lag_chunks", "Live chunks that the space cannot find yet.", lambda r: r.status.lag),
    ("compass_space_quarantined_chunks", "Chunks whose text the endpoint refuses.", lambda r: r.status.failed),
    (
        "compass_rebuild_progress_ratio",
        "Progress of the rebuild; 1 when the space is active.",
        lambda r: r.progress,
    ),
    (
        "compass_rebuild_docs_per_second",
        "Chunks embedded a second, over the last ten.",
        lambda r: r.status.docs_per_s,
    ),
)
_OF_ENDPOINT: tuple[tuple[str, str, Callable[[EndpointStats], float]], ...] = (
    ("compass_rebuild_endpoint_docs", "Texts that an endpoint has embedded in this run.", lambda e: e.docs),
    ("compass_rebuild_endpoint_tokens", "Tokens of them, where the endpoint counts them.", lambda e: e.tokens),
    ("compass_rebuild_endpoint_errors", "Requests to an endpoint that failed in this run.", lambda e: e.errors),
    ("compass_rebuild_endpoint_docs_per_second", "Texts that an endpoint embeds a second.", lambda e: e.docs_per_s),
    ("compass_rebuild_endpoint_in_flight", "Requests that an endpoint has not answered yet.", lambda e: e.in_flight),
)
_FLAGS: tuple[tuple[str, str, Callable[[SpaceSample], bool]], ...] = (
    ("compass_space_default", "Whether unnamed queries go to the space.", lambda s: s.is_default),
    ("compass_space_active", "Whether the space answers queries.", lambda s: s.space.status == "active"),
    ("compass_space_up", "Whether the space's index answers.", lambda s: s.rebuild is not None),
    ("compass_rebuild_running", "Whether a rebuild runs.", lambda s: s.rebuild is not None and _runs(s.rebuild)),
)


class _Spaces:
    """A collector of prometheus_client over samples that were taken for one scrape."""

    def __init__(self, samples: list[SpaceSample]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Any]:
        """The families of metrics; their names begin with compass_space or compass_rebuild."""
        labels = ("collection", "space")
        for name, what, is_set in _FLAGS:
            family = _family(name, what, labels)
            for sample in self._samples:
                family.add_metric((sample.collection, sample.space.name), float(is_set(sample)))
            yield family
        known = [((s.collection, s.space.name), s.rebuild) for s in self._samples if s.rebuild is not None]
        for name, what, of_space in _OF_SPACE:
            family = _family(name, what, labels)
            for where, rebuild in known:
                family.add_metric(where, float(of_space(rebuild)))
            yield family
        endpoints = [(where, one) for where, r in known if _runs(r) for one in r.status.endpoints]
        for name, what, of_endpoint in _OF_ENDPOINT:
            family = _family(name, what, (*labels, "endpoint"))
            for where, endpoint in endpoints:
                family.add_metric((*where, endpoint.url), float(of_endpoint(endpoint)))
            yield family


def _family(name: str, what: str, labels: tuple[str, ...]) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(name, what, labels=labels)


def _runs(rebuild: SpaceRebuild) -> bool:
    return rebuild.status.run.state == "running"


def _dead(folder: Path) -> list[int]:
    """Processes that have left gauges in the folder and are gone."""
    pids = {int(path.stem.rpartition("_")[2]) for path in folder.glob("gauge_live*_*.db")}
    return [pid for pid in pids if not Path(f"/proc/{pid}").exists()] if Path("/proc").exists() else []


def fresh_folder(cache: Path, port: int) -> Path:
    """Where the gateways of this node that share a port keep their counts; emptied with the first of them.

    Counters that begin anew with the service are what Prometheus expects; those of a port that nobody listens on
    are of a service that has ended.
    """
    folder = cache / "metrics" / str(port)
    files = list(folder.glob("*.db"))
    if not any(_alive(path) for path in files):
        for path in files:
            path.unlink(missing_ok=True)
    return folder


def _alive(path: Path) -> bool:
    return Path(f"/proc/{path.stem.rpartition('_')[2]}").exists()
