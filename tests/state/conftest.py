"""Fixtures: a real server of each kind, connected clients, and the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.redis import KINDS, Kind, RedisServer
from tusd_py.redis import RedisClient

TIMEOUT = 20.0
"""Seconds that a command may take, until the server is stopped in its tracks: then a test gives less."""
PATIENCE = 60.0
"""Seconds for what takes a moment, on a machine that is busy."""


@pytest.fixture(params=KINDS)
def redis_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, of each kind."""
    kind: Kind = request.param
    with RedisServer(tmp_path / "redis", kind=kind) as server:
        yield server


class Connections:
    """States that end with the test."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def __call__(
        self,
        url: str,
        *,
        timeout: float = TIMEOUT,
        on_failure: Callable[[], None] | None = None,
        memory: Path | None = None,
    ) -> RedisClient:
        redis_client = RedisClient(url, timeout=timeout, on_failure=on_failure, memory=memory)
        await redis_client.start()
        self._stack.push_async_callback(redis_client.stop)
        return redis_client


@pytest.fixture
async def connect() -> AsyncIterator[Connections]:
    """``await connect(url, …)``: a started RedisClient."""
    async with AsyncExitStack() as stack:
        yield Connections(stack)


async def until(condition: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
    """Return as soon as ``condition()`` holds; fail with ``what`` after ``timeout`` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        # Asked once more after the deadline: it may be over because this process stood still.
        is_late = loop.time() > deadline
        if condition():
            return
        assert not is_late, f"waited {timeout} s for {what}"
        await asyncio.sleep(0.002)


class Log:
    """The logged events by name."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "tusd_py")
        self._caplog = caplog

    def names(self, *, least: int = logging.INFO) -> list[str]:
        return [record.msg for record in self._records() if record.levelno >= least]

    def fields(self, name: str) -> dict[str, object]:
        """The fields of the only event of that name."""
        [record] = [record for record in self._records() if record.msg == name]
        fields: dict[str, object] = record.__dict__["fields"]
        return fields

    def text(self) -> str:
        """Everything that was logged, by anybody."""
        return "\n".join(
            f"{record.getMessage()} {record.__dict__.get('fields', '')}"
            for record in self._caplog.records
        )

    def _records(self) -> list[logging.LogRecord]:
        return [each for each in self._caplog.records if each.name.startswith("tusd_py.redis")]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    return Log(caplog)
