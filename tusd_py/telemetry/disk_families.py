"""Prometheus' metric families of the disk."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from tusd_py.telemetry.disk import DiskMetrics


def collect(disk: DiskMetrics) -> Iterator[Metric]:
    """The metric families; without samples while the space is unknown, for instance where uploads are in a bucket."""
    seen = disk.seen
    free, size, files = (None, None, None) if seen is None else seen
    reserve = None if seen is None else disk.reserve
    for name, text, value in (
        ("free_bytes", "Bytes that uploads may still take on their file system.", free),
        ("size_bytes", "Size of the file system that uploads are on.", size),
        ("reserve_bytes", "Bytes that are kept free (--disk-reserve).", reserve),
        ("free_files", "Files that can still be created; an upload takes two.", files),
    ):
        yield GaugeMetricFamily(f"tusd_disk_{name}", text, value)
