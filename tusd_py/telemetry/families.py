"""Metric families of Prometheus' client library, and those of an object store, the disk, and the work beside the server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from tusd_py.telemetry.disk import DiskMetrics
from tusd_py.telemetry.histogram import Histogram
from tusd_py.telemetry.jobs import JobsMetrics
from tusd_py.telemetry.object_store import ObjectStoreCounters

Key = TypeVar("Key", bound=str | tuple[str | int, ...])
"""The value of a label, or the values of several."""
_Family = TypeVar("_Family", CounterMetricFamily, GaugeMetricFamily)


def counter(
    name: str, text: str, labels: Sequence[str], counts: Mapping[Key, int]
) -> CounterMetricFamily:
    """A counter with labels."""
    return _filled(CounterMetricFamily(name, text, labels=labels), counts)


def gauges(
    name: str, text: str, labels: Sequence[str], values: Mapping[Key, float]
) -> GaugeMetricFamily:
    """A gauge with labels."""
    return _filled(GaugeMetricFamily(name, text, labels=labels), values)


def gauge(name: str, text: str, value: float | None) -> GaugeMetricFamily:
    """A gauge without labels; without a sample for None."""
    return GaugeMetricFamily(name, text, None if value is None else float(value))


def histogram(
    name: str, text: str, labels: Sequence[str], seen: Mapping[Key, Histogram]
) -> HistogramMetricFamily:
    """A histogram; without labels its key is an empty tuple."""
    family = HistogramMetricFamily(name, text, labels=labels)
    for key, each in seen.items():
        # The library writes bounds as "+Inf", and "5.0" for 5.
        buckets = [
            (floatToGoString(bound), count)  # type: ignore[no-untyped-call]
            for bound, count in each.cumulative()
        ]
        family.add_metric(_labels(key), buckets, each.sum)
    return family


def _filled(family: _Family, values: Mapping[Key, float]) -> _Family:
    for key, value in values.items():
        family.add_metric(_labels(key), value)
    return family


def _labels(key: str | tuple[str | int, ...]) -> list[str]:
    return [key] if isinstance(key, str) else [str(each) for each in key]


# fmt: off


def of_object_store(counted: ObjectStoreCounters) -> Iterator[Metric]:
    """The families of an object store."""
    yield counter("tusd_s3_requests_total", "Requests to the object store that ended, each attempt by itself.",
        ["operation", "outcome"], counted.requests)
    yield counter("tusd_s3_retries_total", "Requests to the object store that repeat one that failed.",
        ["operation"], counted.repeats)
    yield histogram("tusd_s3_request_duration_seconds", "Time from a request to the object store to the head of its response.",
        ["operation"], counted.durations)
    yield gauges("tusd_s3_requests_in_flight",
        "Requests to the object store that wait for a response; UploadPart: parts that are being sent.",
        ["operation"], counted.in_flight)
    yield gauge("tusd_s3_spool_bytes", "Bytes of uploads in memory for the store.", counted.spool_bytes())
    yield gauge("tusd_s3_spool_limit_bytes", "Most bytes that wait in memory.", counted.spool_limit)


def of_disk(disk: DiskMetrics) -> Iterator[Metric]:
    """The families of the disk; without samples while the space is unknown, for instance where uploads are in a bucket."""
    seen = disk.seen
    free, size, files = seen or (None, None, None)
    yield gauge("tusd_disk_free_bytes", "Bytes that uploads may still take on their file system.", free)
    yield gauge("tusd_disk_size_bytes", "Size of the file system that uploads are on.", size)
    yield gauge("tusd_disk_reserve_bytes", "Bytes that are kept free (--disk-reserve).", disk.reserve if seen else None)
    yield gauge("tusd_disk_free_files", "Files that can still be created; an upload takes two.", files)


def of_jobs(jobs: JobsMetrics) -> Iterator[Metric]:
    """The families of due index, sweeps, queues and events, without samples for unknown values."""
    seen = jobs.samples
    index, sweeps = (seen.registry, seen.sweeps) if seen else (None, [])
    yield gauge("tusd_redis_up", "Whether Redis works.", jobs.redis_up)
    yield gauge("tusd_registry_uploads", "Uploads whose end is known.", index.known if index else None)
    yield gauge("tusd_registry_due_uploads", "Uploads that are due to be swept.", index.due if index else None)
    yield gauge("tusd_registry_whole", "Whether all uploads are known.", index.is_whole if index else None)
    states: dict[str, int] = {}
    # Without samples while the index may lack uploads.
    if seen is not None and seen.registry.is_whole:
        states = dict(seen.registry.open.items())
        if seen.finished is not None:
            states["finished"] = seen.finished
    yield gauges("tusd_uploads",
        "Uploads by state: unfinished, part (finished, to be joined), and finished while operators list uploads.",
        ["state"], states)
    yield gauges("tusd_sweep_last_end_timestamp_seconds", "When the last sweep ended.",
        ["kind"], {each.kind: each.ended for each in sweeps})
    yield gauges("tusd_sweep_last_duration_seconds", "How long the last sweep took.",
        ["kind"], {each.kind: each.ended - each.began for each in sweeps})
    yield gauges("tusd_sweep_last_uploads", "What the last sweep did.", ["kind", "outcome"], {
        (each.kind, outcome): count
        for each in sweeps
        for outcome, count in (("seen", each.seen), ("removed", each.expired), ("finished", each.finished),
            ("remains", each.remains), ("failed", each.failed))
    })
    yield gauge("tusd_scheduler_up", "Whether a scheduler runs.", seen.looked is not None if seen else None)
    report = seen.jobs if seen else None
    queues, schedule = (report.queues, report.schedule) if report else ([], {})
    yield gauge("tusd_workers", "Workers that live.", report.workers if report else None)
    yield gauge("tusd_workers_busy", "Workers that do a job.", report.busy if report else None)
    yield gauges("tusd_queue_jobs", "Jobs in the queues of workers.", ["queue", "state"], {
        (each.name, state): count
        for each in queues
        for state, count in (("waiting", each.waiting), ("running", each.running), ("failed", each.failed))
    })
    yield gauges("tusd_queue_oldest_seconds", "How long the first job that waits has been waiting.",
        ["queue"], {each.name: each.oldest or 0.0 for each in queues})
    yield gauges("tusd_schedule_next_timestamp_seconds", "When a job is due next.", ["schedule"], schedule)
    events = seen.events if seen else None
    age = None
    if events is not None:
        age = 0.0 if events.oldest is None else max(0.0, time.time() - events.oldest)
    yield gauge("tusd_events_waiting", "Events that are still to be delivered.", events.waiting if events else None)
    yield gauge("tusd_events_failed", "Events that were given up.", events.failed if events else None)
    yield gauge("tusd_events_oldest_seconds", "How long the first event has been waiting.", age)
    yield counter("tusd_events_total", "What became of deliveries of events.",
        ["outcome"], seen.deliveries if seen else {})
