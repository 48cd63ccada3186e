"""Prometheus' metric families of the work beside the server; `jobs` reads their samples."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from tusd_py.jobs.status import JobsReport
from tusd_py.redis.due_index import SweepRecord
from tusd_py.storage.base import OutboxCounts
from tusd_py.telemetry.jobs import JobsMetrics, JobsSamples


def collect(jobs: JobsMetrics) -> Iterator[Metric]:
    """The metric families, without samples for unknown values."""
    yield _gauge("tusd_redis_up", "Whether Redis works.", jobs.redis_up)
    seen = jobs.samples
    counts = None if seen is None else seen.registry
    for name, text, value in (
        ("uploads", "Uploads whose end is known.", counts.known if counts else None),
        ("due_uploads", "Uploads that are due to be swept.", counts.due if counts else None),
        ("whole", "Whether all uploads are known.", counts.is_whole if counts else None),
    ):
        yield _gauge(f"tusd_registry_{name}", text, value)
    yield _uploads(seen)
    yield from _sweeps(seen.sweeps if seen else ())
    looked = None if seen is None else seen.looked is not None
    yield _gauge("tusd_scheduler_up", "Whether a scheduler runs.", looked)
    yield from _jobs(seen.jobs if seen else None)
    yield from _events(seen.events if seen else None, seen.deliveries if seen else {})


def _uploads(seen: JobsSamples | None) -> Metric:
    """Without samples while the index may lack uploads."""
    family = GaugeMetricFamily(
        "tusd_uploads",
        "Uploads by state: unfinished, part (finished, to be joined), and finished while operators list uploads.",
        labels=["state"],
    )
    if seen is not None and seen.registry.is_whole:
        for state, count in seen.registry.open.items():
            family.add_metric([state], count)
        if seen.finished is not None:
            family.add_metric(["finished"], seen.finished)
    return family


def _sweeps(records: Iterable[SweepRecord]) -> Iterator[Metric]:
    ended = GaugeMetricFamily(
        "tusd_sweep_last_end_timestamp_seconds", "When the last sweep ended.", labels=["kind"]
    )
    lasted = GaugeMetricFamily(
        "tusd_sweep_last_duration_seconds", "How long the last sweep took.", labels=["kind"]
    )
    uploads = GaugeMetricFamily(
        "tusd_sweep_last_uploads", "What the last sweep did.", labels=["kind", "outcome"]
    )
    for record in records:
        ended.add_metric([record.kind], record.ended)
        lasted.add_metric([record.kind], record.ended - record.began)
        for outcome, count in (
            ("seen", record.seen),
            ("removed", record.expired),
            ("finished", record.finished),
            ("remains", record.remains),
            ("failed", record.failed),
        ):
            uploads.add_metric([record.kind, outcome], count)
    yield from (ended, lasted, uploads)


def _jobs(report: JobsReport | None) -> Iterator[Metric]:
    yield _gauge("tusd_workers", "Workers that live.", report.workers if report else None)
    yield _gauge("tusd_workers_busy", "Workers that do a job.", report.busy if report else None)
    jobs = GaugeMetricFamily(
        "tusd_queue_jobs", "Jobs in the queues of workers.", labels=["queue", "state"]
    )
    oldest = GaugeMetricFamily(
        "tusd_queue_oldest_seconds",
        "How long the first job that waits has been waiting.",
        labels=["queue"],
    )
    following = GaugeMetricFamily(
        "tusd_schedule_next_timestamp_seconds", "When a job is due next.", labels=["schedule"]
    )
    for queue in report.queues if report else ():
        for state, count in (
            ("waiting", queue.waiting),
            ("running", queue.running),
            ("failed", queue.failed),
        ):
            jobs.add_metric([queue.name, state], count)
        oldest.add_metric([queue.name], queue.oldest or 0.0)
    for name, when in report.schedule.items() if report else ():
        following.add_metric([name], when)
    yield from (jobs, oldest, following)


def _events(counts: OutboxCounts | None, deliveries: dict[str, int]) -> Iterator[Metric]:
    waiting = failed = age = None
    if counts is not None:
        waiting, failed = counts.waiting, counts.failed
        age = 0.0 if counts.oldest is None else max(0.0, time.time() - counts.oldest)
    yield _gauge("tusd_events_waiting", "Events that are still to be delivered.", waiting)
    yield _gauge("tusd_events_failed", "Events that were given up.", failed)
    yield _gauge("tusd_events_oldest_seconds", "How long the first event has been waiting.", age)
    total = CounterMetricFamily(
        "tusd_events_total", "What became of deliveries of events.", labels=["outcome"]
    )
    for outcome, count in deliveries.items():
        total.add_metric([outcome], count)
    yield total


def _gauge(name: str, text: str, value: float | None) -> GaugeMetricFamily:
    """A gauge; without a sample for None."""
    return GaugeMetricFamily(name, text, None if value is None else float(value))
