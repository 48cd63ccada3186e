"""Upload directories that only a Redis remembers, while it does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from redis.exceptions import TimeoutError as RedisTimeoutError

from tusd_py.redis import RedisClient, RedisUnavailable
from tusd_py.service import known_directories
from tusd_py.service.known_directories import KnownDirectories
from tusd_py.settings.model import Settings
from tusd_py.storage.base import VolumeMissing


class SlowRedis:
    """A Redis that does not answer the first requests. Stands in for the blocking client, too.

    silent: how many. ids: what it remembers.
    """

    def __init__(self, *, silent: int, ids: set[bytes]) -> None:
        self.silent = silent
        self.ids = ids
        self.asked = 0

    def __call__(self, _url: str, *, timeout: float) -> SlowRedis:
        self.asked += 1
        if self.asked <= self.silent:
            raise RedisTimeoutError
        return self

    def smembers(self, _key: str) -> set[bytes]:
        return self.ids

    def close(self) -> None:
        """Nothing is open."""


MakeKnown = Callable[[SlowRedis], KnownDirectories]


@pytest.fixture
def make_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeKnown:
    """`make_known(redis)`: what is known of `uploads`, which is empty."""
    directory = tmp_path / "uploads"
    directory.mkdir()
    settings = Settings(upload_dir=directory, redis_url="redis://redis.example")

    def make(redis: SlowRedis) -> KnownDirectories:
        monkeypatch.setattr(known_directories, "connect", redis)
        return KnownDirectories(settings)

    return make


def test_a_directory_is_not_new_because_redis_answers_late(make_known: MakeKnown) -> None:
    known = make_known(SlowRedis(silent=2, ids={b"an-id"}))
    with pytest.raises(VolumeMissing, match="was served there before"):
        known.check(wait=0, begins=True)


def test_a_new_directory_is_begun_without_a_redis_after_a_few_seconds(
    make_known: MakeKnown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_directories, "_PATIENCE_SECONDS", 0.3)
    redis = SlowRedis(silent=1000, ids=set())
    make_known(redis).check(wait=0, begins=True)
    assert redis.asked > 1


def test_a_directory_that_has_an_id_does_not_wait_for_redis(
    make_known: MakeKnown, tmp_path: Path
) -> None:
    file = tmp_path / "uploads" / ".tusd-py" / "id"
    file.parent.mkdir()
    file.write_text("a" * 32)
    redis = SlowRedis(silent=1000, ids=set())
    make_known(redis).check(wait=0, begins=True)
    assert redis.asked == 1


class AwayThenBack:
    """Stands in for the client of a Redis that goes away with the first command, for a moment."""

    def __init__(self) -> None:
        self.available = True
        self.commands: list[tuple[object, ...]] = []
        self.told = asyncio.Event()

    async def command(self, *parts: object) -> object:
        self.commands.append(parts)
        if len(self.commands) == 1:
            self.available = False
            asyncio.get_running_loop().call_later(0.05, setattr, self, "available", True)
            raise RedisUnavailable
        self.told.set()
        return 1


class SomeVolume:
    id = "an-id"

    def sync_id(self) -> None:
        """It is durable."""


async def test_a_redis_that_was_away_at_the_start_is_told_soon(
    make_known: MakeKnown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_directories, "_RETRY_SECONDS", 0.01)
    known, redis, volume = (
        make_known(SlowRedis(silent=1000, ids=set())),
        AwayThenBack(),
        SomeVolume(),
    )
    known.remember(volume)
    keeping = asyncio.create_task(known.keep_in_redis(cast(RedisClient, redis), volume))
    async with asyncio.timeout(60):
        await redis.told.wait()
    keeping.cancel()
    assert [(name, value) for name, _, value in redis.commands] == [("SADD", "an-id")] * 2
