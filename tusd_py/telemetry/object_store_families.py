"""Prometheus' metric families of an object store."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from tusd_py.telemetry.buckets import buckets
from tusd_py.telemetry.object_store import ObjectStoreCounters


def collect(counters: ObjectStoreCounters) -> Iterator[Metric]:
    """The metric families."""
    requests = CounterMetricFamily(
        "tusd_s3_requests_total",
        "Requests to the object store that ended, each attempt by itself.",
        labels=["operation", "outcome"],
    )
    for (operation, outcome), count in counters.requests.items():
        requests.add_metric([operation, outcome], count)
    yield requests
    repeats = CounterMetricFamily(
        "tusd_s3_retries_total",
        "Requests to the object store that repeat one that failed.",
        labels=["operation"],
    )
    for operation, count in counters.repeats.items():
        repeats.add_metric([operation], count)
    yield repeats
    durations = HistogramMetricFamily(
        "tusd_s3_request_duration_seconds",
        "Time from a request to the object store to the head of its response.",
        labels=["operation"],
    )
    for operation, seen in counters.durations.items():
        durations.add_metric([operation], buckets(seen), seen.sum)
    yield durations
    in_flight = GaugeMetricFamily(
        "tusd_s3_requests_in_flight",
        "Requests to the object store that wait for a response; UploadPart: parts that are being sent.",
        labels=["operation"],
    )
    for operation, count in counters.in_flight.items():
        in_flight.add_metric([operation], count)
    yield in_flight
    yield GaugeMetricFamily(
        "tusd_s3_spool_bytes", "Bytes of uploads in memory for the store.", counters.spool_bytes()
    )
    yield GaugeMetricFamily(
        "tusd_s3_spool_limit_bytes", "Most bytes that wait in memory.", counters.spool_limit
    )
