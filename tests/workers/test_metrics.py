"""Metrics of background jobs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import MakeServer
from tests.support.jobs import Job
from tests.support.redis import RedisServer
from tests.support.tus import Tus
from tests.support.waiting import wait_until
from tusd_py.jobs.status import JobsReport, QueueStatus
from tusd_py.redis import RedisClient
from tusd_py.redis.due_index import DueIndex
from tusd_py.telemetry.jobs import JobsMetrics
from tusd_py.telemetry.prometheus import Metrics


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


def samples(text: str) -> dict[str, float]:
    """Every sample by its name with its labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def test_what_is_reported_is_told_until_it_is_too_old(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_client = RedisClient(redis.url, timeout=30.0)
    await redis_client.start()
    metrics = Metrics()
    metrics.jobs = JobsMetrics(redis_client, None, speaks=True)

    def scraped() -> dict[str, float]:
        return samples(metrics.render(None)[0].decode())

    assert scraped()["tusd_redis_up"] == 1
    assert "tusd_workers" not in scraped()
    registry = DueIndex(redis_client)
    await registry.update({"a": 1.0, "b": time.time() + 1000})
    queue = QueueStatus("expiry", waiting=3, running=1, failed=2, oldest=7.5)
    report = JobsReport(time.time(), [queue], workers=2, busy=1, schedule={"sweep-due": 42.0})
    redis.command("SET", redis_client.keys.jobs, report.to_json())
    redis.command("SET", redis_client.keys.scheduler, time.time())
    await metrics.jobs.read()
    found = scraped()
    assert (
        found.items()
        >= {
            "tusd_registry_uploads": 2,
            "tusd_registry_due_uploads": 1,
            "tusd_registry_whole": 0,
            "tusd_scheduler_up": 1,
            "tusd_workers": 2,
            "tusd_workers_busy": 1,
            "tusd_queue_jobs{queue=expiry,state=waiting}": 3,
            "tusd_queue_jobs{queue=expiry,state=failed}": 2,
            "tusd_queue_oldest_seconds{queue=expiry}": 7.5,
            "tusd_schedule_next_timestamp_seconds{schedule=sweep-due}": 42,
        }.items()
    )
    # A scheduler of another version is none.
    redis.command("SET", redis_client.keys.jobs, '{"queues": [{"age": 1}]}')
    await metrics.jobs.read()
    assert "tusd_workers" not in scraped()
    now = time.monotonic() + 61
    monkeypatch.setattr("tusd_py.telemetry.jobs.time.monotonic", lambda: now)
    assert "tusd_registry_uploads" not in scraped()
    assert scraped()["tusd_redis_up"] == 1
    await redis_client.stop()


async def test_uploads_by_state(make_server: MakeServer, redis: RedisServer) -> None:
    env = {"TUSD_REDIS_URL": redis.url}
    server = make_server("--admin", "127.0.0.1:0", env=env)
    tus = Tus(server)
    client = RedisClient(redis.url, timeout=30.0)
    await client.start()
    metrics = Metrics()
    metrics.jobs = JobsMetrics(client, None, speaks=True)

    async def told(unfinished: int, part: int, finished: int | None = None) -> None:
        """Wait for these numbers. finished: None not to wait for the list of uploads."""
        wanted = {"unfinished": unfinished, "part": part}
        if finished is not None:
            wanted["finished"] = finished
        async with asyncio.timeout(30):
            while True:
                await cast(JobsMetrics, metrics.jobs).read()
                found = samples(metrics.render(None)[0].decode())
                if all(found.get(f"tusd_uploads{{state={key}}}") == wanted[key] for key in wanted):
                    return
                await asyncio.sleep(0.1)

    await told(0, 0, 0)
    tus.finished(b"whole")
    part = tus.finished(b"part", {"Upload-Concat": "partial"})
    begun = tus.new(10, body=b"begun")
    other = tus.new(10)
    await told(2, 1, 1)
    assert tus.delete(other).status == 204
    assert tus.patch(begun, 5, b"ended").status == 204
    tus.new(10)
    await told(1, 1, 2)
    # A Redis that was emptied is told by the sweep at the start, which reads the storage.
    server.kill9()
    redis.command("FLUSHALL")
    server.restart()
    await told(1, 1)
    assert tus.delete(part).status == 204
    await told(1, 0)
    await client.stop()


@pytest.fixture
def started() -> Iterator[list[Job]]:
    jobs: list[Job] = []
    yield jobs
    for job in jobs:
        job.close()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_server_tells_of_worker_and_scheduler(
    make_server: MakeServer,
    redis: RedisServer,
    processes: str,
    started: list[Job],
    tmp_path: Path,
) -> None:
    env = {"TUSD_REDIS_URL": redis.url}
    uploads = tmp_path / "uploads"
    started += [
        Job(name, "--upload-dir", str(uploads), env=env) for name in ("worker", "scheduler")
    ]

    def is_reported() -> bool:
        report = redis.command("GET", "tusd:{registry}:jobs")
        return isinstance(report, bytes) and b'"workers": 1' in report

    # The server looks when it starts, and then only every quarter of a minute.
    wait_until(is_reported, "a report", timeout=60)
    server = make_server("--workers", processes, env=env, upload_dir=uploads)
    tus = Tus(server)

    # Of one process, not the sum of both.
    status = os.statvfs(uploads)
    size = status.f_blocks * status.f_frsize

    def is_told() -> bool:
        # Whichever process answers.
        found = [samples(tus.request("GET", "/metrics").text) for _ in range(6)]
        return all(
            each.get("tusd_workers") == 1
            and each.get("tusd_scheduler_up") == 1
            and each.get("tusd_redis_up") == 1
            and each.get("tusd_queue_jobs{queue=expiry,state=failed}") == 0
            and each.get("tusd_disk_size_bytes") == size
            for each in found
        )

    wait_until(is_told, "the metrics", timeout=60)
    server.terminate()
