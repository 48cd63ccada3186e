"""The output for a scrape, as Prometheus' own parsers read it."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable
from typing import cast

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tusd_py import __version__, background
from tusd_py.storage import skipped
from tusd_py.telemetry.object_store import ObjectStoreCounters
from tusd_py.telemetry.prometheus import Metrics

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"

Sample = tuple[str, tuple[tuple[str, str], ...]]


def exercised() -> Metrics:
    metrics = Metrics()
    counters = metrics.counters
    for method, seconds in (("POST", 0.002), ("PATCH", 40.0), ("PATCH", 4000.0), ("BREW", 0.0)):
        counters.request(method, seconds)
    counters.errors[404, "ERR_UPLOAD_NOT_FOUND"] += 2
    counters.errors[409, "ERR_MISMATCHED_OFFSET"] += 1
    counters.bytes_received["complete"] += 2**40 + 2
    counters.bytes_received["disconnected"] += 7
    counters.lock_waits.observe(0.0)
    counters.lock_waits.observe(0.3)
    counters.lock_timeouts += 1
    counters.hook_calls["pre-create"] += 2
    counters.hook_errors["pre-create"] += 1
    counters.uploads_created, counters.uploads_finished = 5, 4
    counters.uploads_terminated, counters.uploads_expired = 3, 2
    counters.uploads_active, counters.connections_open = 11, 12
    return metrics


def test_requests_to_an_object_store_and_what_waits_for_it() -> None:
    metrics = exercised()
    assert not any(name.startswith("tusd_s3") for name in families(metrics))
    metrics.counters.object_store = counted = ObjectStoreCounters(lambda: 77, 1000)
    for _ in range(3):
        counted.began("UploadPart")
    counted.ended("UploadPart", "ok", 0.3)
    counted.ended("UploadPart", "unavailable", 7.0)
    counted.repeated("UploadPart")
    got = samples(metrics)
    part = ("operation", "UploadPart")
    assert got["tusd_s3_requests_total", (part, ("outcome", "ok"))] == 1
    assert got["tusd_s3_requests_total", (part, ("outcome", "unavailable"))] == 1
    assert got["tusd_s3_retries_total", (part,)] == 1
    assert got["tusd_s3_requests_in_flight", (part,)] == 1
    assert got["tusd_s3_request_duration_seconds_bucket", (("le", "0.5"), part)] == 1
    assert got["tusd_s3_request_duration_seconds_count", (part,)] == 2
    assert got["tusd_s3_request_duration_seconds_sum", (part,)] == 7.3
    assert got["tusd_s3_spool_bytes", ()] == 77
    assert got["tusd_s3_spool_limit_bytes", ()] == 1000


def families(metrics: Metrics) -> dict[str, Metric]:
    body, content_type = metrics.render(None)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    return {family.name: family for family in parse_text(body.decode())}


def samples(metrics: Metrics) -> dict[Sample, float]:
    # The parser adds `_total` to the names of counters that have none; what was sent is looked up.
    sent = {re.split(r"[ {]", line)[0] for line in metrics.render(None)[0].decode().splitlines()}
    return {
        (
            sample.name if sample.name in sent else sample.name.removesuffix("_total"),
            tuple(sorted(sample.labels.items())),
        ): sample.value
        for family in families(metrics).values()
        for sample in family.samples
    }


def test_every_number_under_its_exact_name() -> None:
    got = samples(exercised())
    expected: dict[Sample, float] = {
        ("tusd_requests_total", (("method", "POST"),)): 1,
        ("tusd_requests_total", (("method", "PATCH"),)): 2,
        ("tusd_requests_total", (("method", "OTHER"),)): 1,
        ("tusd_requests_total", (("method", "HEAD"),)): 0,
        ("tusd_errors_total", (("code", "ERR_UPLOAD_NOT_FOUND"), ("status", "404"))): 2,
        ("tusd_errors_total", (("code", "ERR_MISMATCHED_OFFSET"), ("status", "409"))): 1,
        ("tusd_bytes_received", ()): 2**40 + 9,
        ("tusd_received_bytes_by_outcome_total", (("outcome", "complete"),)): 2**40 + 2,
        ("tusd_received_bytes_by_outcome_total", (("outcome", "disconnected"),)): 7,
        ("tusd_received_bytes_by_outcome_total", (("outcome", "timed_out"),)): 0,
        ("tusd_received_bytes_by_outcome_total", (("outcome", "interrupted"),)): 0,
        ("tusd_received_bytes_by_outcome_total", (("outcome", "shutdown"),)): 0,
        ("tusd_received_bytes_by_outcome_total", (("outcome", "discarded"),)): 0,
        ("tusd_received_bytes_by_outcome_total", (("outcome", "failed"),)): 0,
        ("tusd_uploads_created", ()): 5,
        ("tusd_uploads_finished", ()): 4,
        ("tusd_uploads_terminated", ()): 3,
        ("tusd_uploads_expired", ()): 2,
        ("tusd_uploads_active", ()): 11,
        ("tusd_connections_open", ()): 12,
        ("tusd_hook_invocations_total", (("hooktype", "pre-create"),)): 2,
        ("tusd_hook_errors_total", (("hooktype", "pre-create"),)): 1,
        ("tusd_lock_timeouts_total", ()): 1,
        ("tusd_lock_wait_seconds_count", ()): 2,
        ("tusd_lock_wait_seconds_sum", ()): 0.3,
        ("tusd_build_info", (("version", __version__),)): 1,
    }
    assert {key: got.get(key) for key in expected} == expected


def test_latencies_are_cumulative_histograms() -> None:
    got = samples(exercised())

    def patches(bound: str) -> float:
        labels = (("le", bound), ("method", "PATCH"))
        return got[("tusd_request_duration_seconds_bucket", labels)]

    assert (patches("30.0"), patches("60.0"), patches("3600.0"), patches("+Inf")) == (0, 1, 1, 2)
    assert got[("tusd_request_duration_seconds_sum", (("method", "PATCH"),))] == 4040
    assert got[("tusd_request_duration_seconds_count", (("method", "PATCH"),))] == 2
    assert got[("tusd_lock_wait_seconds_bucket", (("le", "0.0001"),))] == 1
    assert got[("tusd_lock_wait_seconds_bucket", (("le", "0.5"),))] == 2


def test_a_bound_belongs_to_its_bucket() -> None:
    metrics = Metrics()
    metrics.counters.request("GET", 0.01)
    labels = (("le", "0.01"), ("method", "GET"))
    assert samples(metrics)[("tusd_request_duration_seconds_bucket", labels)] == 1


def test_types_and_help() -> None:
    kinds = {name: family.type for name, family in families(exercised()).items()}
    # The parser takes `_total` off the names of counters.
    for name in (
        "tusd_requests",
        "tusd_errors",
        "tusd_bytes_received",
        "tusd_received_bytes_by_outcome",
        "tusd_uploads_created",
        "tusd_uploads_finished",
        "tusd_uploads_terminated",
        "tusd_uploads_expired",
        "tusd_hook_invocations",
        "tusd_hook_errors",
        "tusd_lock_timeouts",
        "process_cpu_seconds",
    ):
        assert kinds[name] == "counter", name
    for name in ("tusd_uploads_active", "tusd_connections_open", "tusd_build_info"):
        assert kinds[name] == "gauge", name
    for name in ("tusd_request_duration_seconds", "tusd_lock_wait_seconds"):
        assert kinds[name] == "histogram", name
    assert all(family.documentation for family in families(exercised()).values())


def test_every_family_has_one_help_and_one_type_before_its_samples() -> None:
    lines = exercised().render(None)[0].decode().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("# HELP "):
            name = line.split()[2]
            assert lines[number + 1].startswith(f"# TYPE {name} ")
            assert sum(other.startswith(f"# TYPE {name} ") for other in lines) == 1
    assert "# TYPE tusd_bytes_received counter" in lines


def test_openmetrics_for_those_who_ask_for_it() -> None:
    body, content_type = exercised().render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    read = cast("Iterable[Metric]", parse_open(body.decode()))  # type: ignore[no-untyped-call]
    names = {sample.name for family in read for sample in family.samples}
    assert names >= {
        "tusd_requests_total",
        "tusd_bytes_received",
        "tusd_uploads_created",
        "tusd_uploads_finished",
        "tusd_uploads_terminated",
        "tusd_uploads_expired",
        "tusd_build_info",
    }


def test_an_untouched_server_is_all_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    # These count for the whole process, other tests' failures too.
    monkeypatch.setattr(background, "failures", Counter())
    monkeypatch.setattr(skipped, "counts", Counter())
    got = samples(Metrics())
    ours = {key: value for key, value in got.items() if key[0].startswith("tusd_")}
    assert ours.pop(("tusd_build_info", (("version", __version__),))) == 1
    assert not any(ours.values())


def test_the_process_is_measured_too() -> None:
    names = {name for name, _ in samples(Metrics())}
    assert names >= {
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_cpu_seconds_total",
    }


def test_servers_do_not_share_numbers() -> None:
    one, other = Metrics(), Metrics()
    one.counters.request("GET", 1)
    assert samples(one)[("tusd_requests_total", (("method", "GET"),))] == 1
    assert samples(other)[("tusd_requests_total", (("method", "GET"),))] == 0


def test_strangers_cannot_add_names() -> None:
    metrics = Metrics()
    for number in range(1000):
        metrics.counters.request(f"M{number}", 0.1)
    metrics.counters.request("get", 0.1)
    got = samples(metrics)
    assert got[("tusd_requests_total", (("method", "OTHER"),))] == 1001
    assert sum(name == "tusd_requests_total" for name, _ in got) == 8


def test_counting_is_cheap() -> None:
    metrics = Metrics()
    began = time.thread_time()
    for _ in range(20_000):
        metrics.counters.request("PATCH", 0.02)
        metrics.counters.bytes_received["complete"] += 16384
        metrics.counters.lock_waits.observe(0.0)
    assert time.thread_time() - began < 1, "20,000 requests take some 20 ms"
