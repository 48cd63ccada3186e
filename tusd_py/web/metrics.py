"""What the server counts for Prometheus, under tusd's names where tusd has one.

Requests only add to plain numbers here; metric families are made of them when somebody scrapes. The
numbers are this process's and begin at zero with it. All methods are for the event loop's thread.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
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
from prometheus_client.utils import floatToGoString

from tusd_py import __version__, background, skipped
from tusd_py.web.jobs import JobsMetrics
from tusd_py.web.pooling import Pool

OTHER_METHOD = "OTHER"

# Others are counted under one name: whoever sends requests could otherwise fill Prometheus with
# names of methods.
_METHODS = ("POST", "HEAD", "PATCH", "OPTIONS", "GET", "DELETE")
_OUTCOMES = (
    "complete",
    "disconnected",
    "timed_out",
    "interrupted",
    "shutdown",
    "discarded",
    "failed",
)
# Seconds. Requests with large bodies take as long as their clients' links, hence the long tail.
_REQUEST_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600,
)  # fmt: skip
_LOCK_BUCKETS = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 20, 60)

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
    """The numbers of one server.

    Attributes that their owners set or add to: uploads_created, uploads_finished,
    uploads_terminated, uploads_expired (since the start), uploads_active (requests that receive a
    body now), connections_open; jobs, where there is a Redis.
    """

    def __init__(self) -> None:
        self.uploads_created = 0
        self.uploads_finished = 0
        self.uploads_terminated = 0
        self.uploads_expired = 0
        self.uploads_active = 0
        self.connections_open = 0
        self._durations = {
            method: _Histogram(_REQUEST_BUCKETS) for method in (*_METHODS, OTHER_METHOD)
        }
        self._errors: dict[tuple[int, str], int] = {}
        self._bytes = dict.fromkeys(_OUTCOMES, 0)
        self._lock_waits = _Histogram(_LOCK_BUCKETS)
        self._lock_timeouts = 0
        self._hooks: dict[str, int] = {}
        self._hook_errors: dict[str, int] = {}
        self._ways = {"direct": 0, "stream": 0}
        self._duplicates: dict[str, int] = {}
        self._state_failures = 0
        self.jobs: JobsMetrics | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def pool(self, directory: Path, index: int) -> Pool:
        """From now on tells the sum of what several processes count; see `pooling`."""
        pool = Pool(directory, index, self)
        # What single processes use, memory and descriptors, would not be told apart.
        self._registry = CollectorRegistry()
        self._registry.register(pool)
        return pool

    def request(self, method: str, seconds: float) -> None:
        """A request was answered, `seconds` after its head had come in."""
        durations = self._durations
        (durations.get(method) or durations[OTHER_METHOD]).observe(seconds)

    def requests(self) -> int:
        """How many requests were answered so far."""
        return sum(seen.count for seen in self._durations.values())

    def error(self, status: int, code: str) -> None:
        """A request was refused or failed; `code` is one of the server's own `ERR_…`."""
        key = (status, code)
        self._errors[key] = self._errors.get(key, 0) + 1

    def received(self, count: int, outcome: str, /) -> None:
        """A body ended: `count` bytes of it came in; outcome tells how it ended, "complete" or one
        of the others.
        """
        self._bytes[outcome] = self._bytes.get(outcome, 0) + count

    def lock_wait(self, seconds: float, /) -> None:
        """An upload was locked after `seconds` of waiting for it."""
        self._lock_waits.observe(seconds)

    def lock_timeout(self) -> None:
        """An upload could not be locked in time."""
        self._lock_timeouts += 1

    def hook(self, hooktype: str) -> None:
        """A hook was called."""
        self._hooks[hooktype] = self._hooks.get(hooktype, 0) + 1

    def hook_error(self, hooktype: str) -> None:
        """A hook failed; refusing is no failure."""
        self._hook_errors[hooktype] = self._hook_errors.get(hooktype, 0) + 1

    def body(self, way: str) -> None:
        """A body came in, straight from the socket ("direct") or through the HTTP parser ("stream")."""
        self._ways[way] = self._ways.get(way, 0) + 1

    def duplicate(self, outcome: str) -> None:
        """A creation was looked up among those before it."""
        self._duplicates[outcome] = self._duplicates.get(outcome, 0) + 1

    def state_failure(self) -> None:
        """A command to Redis failed."""
        self._state_failures += 1

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
            (((method,), seen.count) for method, seen in self._durations.items()),
        )
        yield _counter(
            "tusd_errors_total",
            "Requests that were refused or failed, by status and code.",
            ["status", "code"],
            (((str(status), code), count) for (status, code), count in self._errors.items()),
        )
        yield from self._collect_uploads()
        yield from self._collect_latencies()
        for name, text, counts in (
            ("tusd_hook_invocations_total", "Calls of hooks, by type.", self._hooks),
            ("tusd_hook_errors_total", "Hooks that failed, by type.", self._hook_errors),
        ):
            yield _counter(name, text, ["hooktype"], _single(counts))
        yield _counter(
            "tusd_bodies_total",
            "Bodies of requests that came in, by the way they took: direct, past the HTTP parser, or stream.",
            ["way"],
            _single(self._ways),
        )
        yield CounterMetricFamily(
            "tusd_state_failures", "Commands to Redis that failed.", self._state_failures
        )
        yield _counter(
            "tusd_duplicates_total",
            "Creations that were looked up among those before them, by what was found.",
            ["outcome"],
            _single(self._duplicates),
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
        if self.jobs is not None:
            yield from self.jobs.collect()
        yield InfoMetricFamily("tusd_build", "The server's version.", {"version": __version__})

    def _collect_uploads(self) -> Iterator[Metric]:
        yield UntypedMetricFamily(
            "tusd_bytes_received", "Bytes of uploads that came in.", sum(self._bytes.values())
        )
        yield _counter(
            "tusd_received_bytes_by_outcome_total",
            "Bytes of uploads that came in, by how the body that carried them ended.",
            ["outcome"],
            _single(self._bytes),
        )
        yield UntypedMetricFamily(
            "tusd_uploads_created", "Uploads that were created.", self.uploads_created
        )
        yield UntypedMetricFamily(
            "tusd_uploads_finished", "Uploads that became complete.", self.uploads_finished
        )
        yield UntypedMetricFamily(
            "tusd_uploads_terminated", "Uploads that clients removed.", self.uploads_terminated
        )
        yield UntypedMetricFamily(
            "tusd_uploads_expired",
            "Uploads that had expired and were removed.",
            self.uploads_expired,
        )
        yield GaugeMetricFamily(
            "tusd_uploads_active", "Requests that receive a body now.", self.uploads_active
        )
        yield GaugeMetricFamily(
            "tusd_connections_open", "Connections of clients.", self.connections_open
        )

    def _collect_latencies(self) -> Iterator[Metric]:
        durations = HistogramMetricFamily(
            "tusd_request_duration_seconds",
            "Time from a request's head to the end of its response, bodies included.",
            labels=["method"],
        )
        for method, seen in self._durations.items():
            durations.add_metric([method], seen.buckets(), seen.sum)
        yield durations
        waits = HistogramMetricFamily(
            "tusd_lock_wait_seconds", "Time that requests waited for an upload's lock."
        )
        waits.add_metric([], self._lock_waits.buckets(), self._lock_waits.sum)
        yield waits
        yield CounterMetricFamily(
            "tusd_lock_timeouts_total",
            "Requests that did not get an upload's lock in time.",
            self._lock_timeouts,
        )


class _Histogram:
    """Numbers of observations up to each bound (inclusive), and their sum; one list step an
    observation.
    """

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        return sum(self._counts)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus has them."""
        # As the library writes its own: "+Inf", and "5.0" for 5.
        bounds = (*self._bounds, math.inf)
        names = [floatToGoString(bound) for bound in bounds]  # type: ignore[no-untyped-call]
        return list(zip(names, accumulate(self._counts), strict=True))


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
