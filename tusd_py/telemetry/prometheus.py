"""Render the counters of a server in Prometheus' text format, with tusd's names where tusd has the same metric.

Metric families are built at a scrape. The numbers are those of this process since its start.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    UntypedMetricFamily,
)
from prometheus_client.registry import Collector

from tusd_py import __version__, background
from tusd_py.protocol import errors
from tusd_py.storage import skipped
from tusd_py.telemetry import disk_families, job_families, object_store_families
from tusd_py.telemetry.buckets import buckets
from tusd_py.telemetry.counters import Counters
from tusd_py.telemetry.disk import DiskMetrics
from tusd_py.telemetry.jobs import JobsMetrics
from tusd_py.telemetry.multiprocess import Pool

_NO_ERRORS = dict.fromkeys(errors.rows(), 0)
# tusd calls these counters by names without `_total`, which the client library only knows as
# untyped.
_BARE_COUNTERS = (
    "tusd_bytes_received",
    "tusd_uploads_created",
    "tusd_uploads_finished",
    "tusd_uploads_terminated",
    "tusd_uploads_expired",
)
_BARE_COUNTER_TYPE = re.compile(
    rf"^(# TYPE (?:{'|'.join(_BARE_COUNTERS)})) untyped$".encode(), re.MULTILINE
)


class Metrics(Collector):
    """Renders the counters of one server.

    jobs: metrics of queues and workers; None without a Redis. disk: None before a start.
    """

    def __init__(self, counters: Counters | None = None) -> None:
        self.counters = counters or Counters()
        self.jobs: JobsMetrics | None = None
        self.disk: DiskMetrics | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def pool(self, directory: Path, index: int) -> Pool:
        """Render the sum over several processes from now on; see `multiprocess.py`."""
        pool = Pool(directory, index, self)
        # Without ProcessCollector, as sums of memory and descriptors are useless.
        self._registry = CollectorRegistry()
        self._registry.register(pool)
        return pool

    def render(self, accept: str | None) -> tuple[bytes, str]:
        """The body and the content type of a scrape, in the format that its `Accept` prefers."""
        encode, content_type = choose_encoder(accept or "")
        return _BARE_COUNTER_TYPE.sub(rb"\1 counter", encode(self._registry)), content_type

    def collect(self) -> Iterator[Metric]:
        """The metric families; called by the registry."""
        yield _counter(
            "tusd_requests_total",
            "Requests by method.",
            ["method"],
            (((method,), seen.count) for method, seen in self.counters.request_durations.items()),
        )
        yield _counter(
            "tusd_requests_by_protocol_total",
            "Requests by protocol: tus, ietf with its interop version, or unmarked.",
            ["protocol"],
            _single(self.counters.protocols),
        )
        yield _counter(
            "tusd_errors_total",
            "Requests that were refused or failed, by status and code.",
            ["status", "code"],
            (
                ((str(status), code), count)
                # From zero on, as Prometheus does not see the first increase of what appears with it.
                for (status, code), count in {**_NO_ERRORS, **self.counters.errors}.items()
            ),
        )
        yield from self._collect_uploads()
        yield from self._collect_latencies()
        for name, text, counts in (
            ("tusd_hook_invocations_total", "Calls of hooks, by type.", self.counters.hook_calls),
            (
                "tusd_hook_errors_total",
                "Hooks that failed, by type.",
                {**dict.fromkeys(self.counters.hook_calls, 0), **self.counters.hook_errors},
            ),
        ):
            yield _counter(name, text, ["hooktype"], _single(counts))
        yield _counter(
            "tusd_bodies_total",
            "Bodies of requests that came in, by the way they took: direct, past the HTTP parser, or stream.",
            ["way"],
            _single(self.counters.bodies),
        )
        yield CounterMetricFamily(
            "tusd_state_failures", "Commands to Redis that failed.", self.counters.redis_failures
        )
        yield _counter(
            "tusd_duplicates_total",
            "Creations that were looked up among those before them, by what was found.",
            ["outcome"],
            _single(self.counters.duplicates),
        )
        yield _counter(
            "tusd_background_failures_total",
            "Tasks in the background that failed (the log says why), by task.",
            ["task"],
            _single(background.failures),
        )
        yield _counter(
            "tusd_passed_over_total",
            "Uploads, entries of directories and events that could not be read and were passed over, by kind.",
            ["kind"],
            _single(skipped.counts),
        )
        if self.counters.object_store is not None:
            yield from object_store_families.collect(self.counters.object_store)
        if self.disk is not None:
            yield from disk_families.collect(self.disk)
        if self.jobs is not None:
            yield from job_families.collect(self.jobs)
        yield InfoMetricFamily("tusd_build", "The server's version.", {"version": __version__})

    def _collect_uploads(self) -> Iterator[Metric]:
        yield UntypedMetricFamily(
            "tusd_bytes_received",
            "Bytes of uploads that came in.",
            sum(self.counters.bytes_received.values()),
        )
        yield _counter(
            "tusd_received_bytes_by_outcome_total",
            "Bytes of uploads that came in, by how the body that carried them ended.",
            ["outcome"],
            _single(self.counters.bytes_received),
        )
        yield UntypedMetricFamily(
            "tusd_uploads_created", "Uploads that were created.", self.counters.uploads_created
        )
        yield UntypedMetricFamily(
            "tusd_uploads_finished", "Uploads that became complete.", self.counters.uploads_finished
        )
        yield UntypedMetricFamily(
            "tusd_uploads_terminated",
            "Uploads that clients removed.",
            self.counters.uploads_terminated,
        )
        yield UntypedMetricFamily(
            "tusd_uploads_expired",
            "Uploads that had expired and were removed.",
            self.counters.uploads_expired,
        )
        yield GaugeMetricFamily(
            "tusd_uploads_active", "Requests that receive a body now.", self.counters.uploads_active
        )
        yield GaugeMetricFamily(
            "tusd_connections_open", "Connections of clients.", self.counters.connections_open
        )

    def _collect_latencies(self) -> Iterator[Metric]:
        durations = HistogramMetricFamily(
            "tusd_request_duration_seconds",
            "Time from a request's head to the end of its response, bodies included.",
            labels=["method"],
        )
        for method, seen in self.counters.request_durations.items():
            durations.add_metric([method], buckets(seen), seen.sum)
        yield durations
        waits = HistogramMetricFamily(
            "tusd_lock_wait_seconds", "Time that requests waited for an upload's lock."
        )
        waits.add_metric([], buckets(self.counters.lock_waits), self.counters.lock_waits.sum)
        yield waits
        yield CounterMetricFamily(
            "tusd_lock_timeouts_total",
            "Requests that did not get an upload's lock in time.",
            self.counters.lock_timeouts,
        )


def _counter(
    name: str,
    documentation: str,
    labels: Sequence[str],
    values: Iterable[tuple[Sequence[str], int]],
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, documentation, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def _single(counts: Mapping[str, int]) -> Iterable[tuple[Sequence[str], int]]:
    return (((label,), count) for label, count in counts.items())
