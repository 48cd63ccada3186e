"""The Redis of an instance as rq wants it: a blocking client whose answers are bytes.

It is the operator's, or the embedded one, which is started unless it runs and lives as long as somebody uses it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import NoPermissionError, RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel

from tusd_py import logs
from tusd_py.settings import redis_url as addresses
from tusd_py.settings.model import Settings
from tusd_py.state.embedded import EmbeddedState

logger = logging.getLogger(__name__)

_TIMEOUT = 5.0
"""Seconds."""
_HEALTH_CHECK = 30
"""Seconds without a command after which a connection is asked whether it still works: firewalls forget without telling."""
_LONGEST_REASON = 200
"""Characters of a refusal that are logged: those of a pipeline repeat the whole command."""


@contextmanager
def redis_url(settings: Settings) -> Iterator[str]:
    """Where it is; the embedded one runs at least until the end of the block. Raises EmbeddedStateError."""
    if settings.redis_url is not None:
        yield settings.redis_url.get_secret_value()
        return
    embedded = EmbeddedState(settings.state_dir)
    try:
        yield embedded.start()
    finally:
        embedded.stop()


class Client(Redis):
    """redis-py's, whose refusals name the command."""

    def execute_command(self, *args: object, **options: object) -> object:
        """Send one command. Raises RedisError."""
        try:
            answer: object = super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except NoPermissionError as problem:
            raise NoPermissionError(f"{args[0]}: {problem}") from None
        return answer


def connect(url: str, *, timeout: float = _TIMEOUT) -> Redis:
    """A client; it connects with its first command. A command is tried again for about a second, then raises RedisError.

    url: as in the settings. timeout: seconds to wait for a connection, and for an answer; rq's workers wait longer for jobs.
    """
    retry = Retry(ExponentialBackoff(cap=0.5, base=0.1), 3)
    address = addresses.parse(url)
    if not address.sentinels:
        return Client.from_url(
            url,
            socket_connect_timeout=timeout,
            # Or commands would wait for ever where the network swallows everything.
            socket_timeout=timeout,
            health_check_interval=_HEALTH_CHECK,
            retry=retry,
        )
    tls = address.tls_options()
    sentinel = Sentinel(
        address.sentinels,
        sentinel_kwargs={
            "username": address.sentinel_username,
            "password": address.sentinel_password,
            "socket_connect_timeout": timeout,
            "socket_timeout": timeout,
            **tls,
        },
    )
    return cast(
        Redis,
        sentinel.master_for(
            address.service,
            redis_class=Client,
            db=address.db,
            username=address.username,
            password=address.password,
            socket_connect_timeout=timeout,
            socket_timeout=timeout,
            health_check_interval=_HEALTH_CHECK,
            retry=retry,
            **tls,
        ),
    )


class Refusals:
    """Logs once for each command that the Redis user may not run it, until it may."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def report(self, problem: object) -> bool:
        """Log a refusal that was not logged before. Returns False if `problem` is none."""
        if not isinstance(problem, NoPermissionError):
            return False
        reason = str(problem)[:_LONGEST_REASON]
        # The name of the command, or its place in a pipeline and its name.
        command = reason.partition(":")[0].partition(") of pipeline")[0]
        command = command.rpartition("(")[2].split(" ")[0] or "a command"
        if command not in self._told:
            self._told.add(command)
            logs.event(
                logger,
                logging.ERROR,
                "redis refused",
                command=command,
                reason=f"NOPERM {reason}",
                message="The Redis user may not run this command on the keys of this instance "
                "(docs/state.md lists what it needs)",
            )
        return True

    def report_cause(self, problem: RedisError) -> str:
        """A word for what is wrong: the class of the error, or NOPERM."""
        return "NOPERM" if self.report(problem) else type(problem).__name__

    def clear(self) -> None:
        """Commands are carried out again."""
        self._told.clear()
