"""Render the counters of a server in Prometheus' text format, with tusd's names where tusd has the same metric.

Metric families are built at a scrape. The numbers are those of this process since its start.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    InfoMetricFamily,
    Metric,
    UntypedMetricFamily,
)
from prometheus_client.registry import Collector

from tusd_py import __version__, background
from tusd_py.protocol import errors
from tusd_py.storage import skipped
from tusd_py.telemetry import families
from tusd_py.telemetry.counters import Counters
from tusd_py.telemetry.disk import DiskMetrics
from tusd_py.telemetry.families import counter, gauge, histogram
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
        seen = self.counters
        # fmt: off
        yield counter("tusd_requests_total", "Requests by method.",
            ["method"], {method: each.count for method, each in seen.request_durations.items()})
        yield counter("tusd_requests_by_protocol_total",
            "Requests by protocol: tus, ietf with its interop version, or unmarked.", ["protocol"], seen.protocols)
        # From zero on, as Prometheus does not see the first increase of what appears with it.
        yield counter("tusd_errors_total", "Requests that were refused or failed, by status and code.",
            ["status", "code"], {**_NO_ERRORS, **seen.errors})
        received = seen.bytes_received
        yield UntypedMetricFamily("tusd_bytes_received", "Bytes of uploads that came in.", sum(received.values()))
        yield counter("tusd_received_bytes_by_outcome_total",
            "Bytes of uploads that came in, by how the body that carried them ended.", ["outcome"], received)
        for name, text, count in (
            ("created", "Uploads that were created.", seen.uploads_created),
            ("finished", "Uploads that became complete.", seen.uploads_finished),
            ("terminated", "Uploads that clients removed.", seen.uploads_terminated),
            ("expired", "Uploads that had expired and were removed.", seen.uploads_expired),
        ):
            yield UntypedMetricFamily(f"tusd_uploads_{name}", text, count)
        yield gauge("tusd_uploads_active", "Requests that receive a body now.", seen.uploads_active)
        yield gauge("tusd_connections_open", "Connections of clients.", seen.connections_open)
        yield histogram("tusd_request_duration_seconds",
            "Time from a request's head to the end of its response, bodies included.", ["method"], seen.request_durations)
        yield histogram("tusd_lock_wait_seconds", "Time that requests waited for an upload's lock.",
            [], {(): seen.lock_waits})
        yield CounterMetricFamily("tusd_lock_timeouts_total", "Requests that did not get an upload's lock in time.",
            seen.lock_timeouts)
        yield counter("tusd_hook_invocations_total", "Calls of hooks, by type.", ["hooktype"], seen.hook_calls)
        yield counter("tusd_hook_errors_total", "Hooks that failed, by type.",
            ["hooktype"], {**dict.fromkeys(seen.hook_calls, 0), **seen.hook_errors})
        yield counter("tusd_bodies_total",
            "Bodies of requests that came in, by the way they took: direct, past the HTTP parser, or stream.",
            ["way"], seen.bodies)
        yield CounterMetricFamily("tusd_state_failures", "Commands to Redis that failed.", seen.redis_failures)
        yield counter("tusd_duplicates_total",
            "Creations that were looked up among those before them, by what was found.", ["outcome"], seen.duplicates)
        yield counter("tusd_background_failures_total",
            "Tasks in the background that failed (the log says why), by task.", ["task"], background.failures)
        yield counter("tusd_passed_over_total",
            "Uploads, entries of directories and events that could not be read and were passed over, by kind.",
            ["kind"], skipped.counts)
        # fmt: on
        if seen.object_store is not None:
            yield from families.of_object_store(seen.object_store)
        if self.disk is not None:
            yield from families.of_disk(self.disk)
        if self.jobs is not None:
            yield from families.of_jobs(self.jobs)
        yield InfoMetricFamily("tusd_build", "The server's version.", {"version": __version__})
