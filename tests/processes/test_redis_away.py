"""Several servers share a Redis, and it goes away in the middle of uploads."""

from __future__ import annotations

from collections.abc import Iterator
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


def test_what_runs_goes_on_what_is_new_is_taken_and_all_recovers(
    make_server: MakeServer, redis: RedisServer, tmp_path: Path
) -> None:
    env = {"TUSD_REDIS_URL": redis.url, "TUSD_DUPLICATES": "on"}
    shared = tmp_path / "shared"
    first, second = (Tus(make_server(env=env, upload_dir=shared)) for _ in range(2))
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
        20,
    )
    assert second.get(path).body == b"a" * 50_000 + b"b" * 50_000 + b"c" * 100_000
    numbers = iter(range(1_000_000))

    def found_again() -> bool:
        study = {"Upload-Metadata": metadata(study=str(next(numbers)))}
        return [server.create(5, headers=study).status for server in (first, second)] == [201, 409]

    wait_until(found_again, "duplicates to be found again", 20)
