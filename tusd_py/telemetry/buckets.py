"""Histograms as Prometheus' client library writes them."""

from __future__ import annotations

from prometheus_client.utils import floatToGoString

from tusd_py.telemetry.histogram import Histogram


def buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Cumulative buckets with their bounds as the client library writes them: "+Inf", and "5.0" for 5."""
    return [
        (floatToGoString(bound), count)  # type: ignore[no-untyped-call]
        for bound, count in histogram.cumulative()
    ]
