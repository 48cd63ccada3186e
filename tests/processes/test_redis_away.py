"""Several servers share a Redis that becomes unavailable during uploads."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.redis import KINDS, RedisServer
from tests.support.tus import Tus, metadata
from tests.support.waiting import wait_until


@pytest.fixture(params=KINDS)
def redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis", kind=request.param, persistent=True) as server:
        yield server


def test_uploads_go_on_over_all_servers_and_all_recovers(
    make_server: MakeServer, redis: RedisServer, tmp_path: Path
) -> None:
    env = {"TUSD_REDIS_URL": redis.url, "TUSD_DUPLICATES": "on", "TUSD_LOCK_LEASE": "6s"}
    shared = tmp_path / "shared"
    first, second = (Tus(make_server(env=env, upload_dir=shared)) for _ in range(2))
    path = first.new(250_000)
    with first.begin_patch(path, 0, 150_000, b"a" * 50_000) as running:
        running.wait_stored()
        redis.kill9()
        # Longer than Redis' lock would hold: creations ask Redis, and are taken (--duplicates-when-unavailable allow).
        ends = time.monotonic() + 7
        study = {"Upload-Metadata": metadata(study="4711")}
        others = [second.finished(b"x" * 5, headers=study) for _ in range(20)]
        wait_until(lambda: time.monotonic() > ends, "the end of the lease")
        others.append(second.finished(b"x" * 5, headers=study))
        # Bytes that are on their way ask nobody.
        running.send(b"b" * 100_000)
        assert running.response().status == 204
    # Whichever server a client comes back to: it is told the truth, and may go on.
    assert second.offset(path) == 150_000
    with second.begin_patch(path, 150_000, 100_000, b"c" * 40_000) as stale:
        stale.wait_stored()
        # T38, without Redis: the newcomer is heard by whoever holds the upload, in another process.
        assert first.offset(path) == 190_000
        assert stale.response().code == "ERR_UPLOAD_INTERRUPTED"
    redis.start()
    wait_until(lambda: again_found(first, second), "duplicates to be found again")
    assert first.patch(path, 190_000, b"d" * 60_000).status == 204
    assert second.get(path).body == b"a" * 50_000 + b"b" * 100_000 + b"c" * 40_000 + b"d" * 60_000
    assert {second.get(other).body for other in others} == {b"x" * 5}
    assert first.delete(path).status == 204
    assert second.head(path).status == 410


def test_the_embedded_redis_dies_under_several_processes(make_server: MakeServer) -> None:
    """Nobody waits for it to be started again."""
    server = make_server("--workers", "2", env={"TUSD_DUPLICATES": "on"})
    tus = Tus(server)
    data = [random.Random(number).randbytes(400_000) for number in range(6)]
    paths = [tus.new(len(each)) for each in data]
    embedded = server.upload_dir / ".tusd-py" / "valkey" / "server.lock"
    for offset in range(0, 400_000, 100_000):
        # The one that runs, or one that is gone already; 0 while the next one is started.
        if pid := int(json.loads(embedded.read_bytes())["pid"]):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path, each in zip(paths, data, strict=True):
            assert tus.patch(path, offset, each[offset : offset + 100_000]).status == 204
    assert [tus.get(path).body for path in paths] == data


numbers = count()


def again_found(*servers: Tus) -> bool:
    study = {"Upload-Metadata": metadata(study=str(next(numbers)))}
    return [server.create(5, headers=study).status for server in servers] == [201, 409]


def test_where_files_have_no_locks_clients_are_asked_to_come_again(
    make_server: MakeServer, redis: RedisServer, tmp_path: Path
) -> None:
    env = {"TUSD_REDIS_URL": redis.url, "TUSD_DUPLICATES": "on"}
    shared = tmp_path / "shared"
    # As good as a file system that has none.
    (shared / ".tusd-py" / "locks").mkdir(parents=True)
    first, second = (Tus(make_server(env=env, upload_dir=shared)) for _ in range(2))
    first.server.wait_for_line("uploads will stand still")
    path = first.new(200_000)
    with first.begin_patch(path, 0, 100_000, b"a" * 50_000) as running:
        running.wait_stored()
        redis.kill9()
        # Bytes that are on their way ask nobody.
        running.send(b"b" * 50_000)
        assert running.response().status == 204
    # Whether the study was sent before cannot be told now; it is taken (--duplicates-when-unavailable allow).
    study = {"Upload-Metadata": metadata(study="4711")}
    created = first.create(5, headers=study)
    assert created.status == 201
    # Who may write cannot be told either: clients are asked to come again, and nothing is lost.
    refused = second.patch(path, 100_000, b"c" * 100_000)
    assert (refused.status, refused.code) == (503, "ERR_UNAVAILABLE")
    assert "Retry-After" in refused
    # Asked where it stands, it says 423: to a 503 there are clients that send the whole file anew.
    asked = second.head(path)
    assert (asked.status, "Retry-After" in asked) == (423, True)
    redis.start()
    wait_until(
        lambda: second.patch(path, 100_000, b"c" * 100_000).status == 204,
        "locks to be had again",
    )
    assert second.get(path).body == b"a" * 50_000 + b"b" * 50_000 + b"c" * 100_000
    wait_until(lambda: again_found(first, second), "duplicates to be found again")
