"""Connects to the Redis of an instance for rq, with a blocking client whose replies are bytes."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from redis import ConnectionPool, Redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import NoPermissionError, RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from tusd_py import logs
from tusd_py.redis import Keys, permissions
from tusd_py.redis.client import connection_options, sentinel_options
from tusd_py.redis.embedded.server import EmbeddedRedis
from tusd_py.settings import redis_url as addresses
from tusd_py.settings.model import Settings

_TIMEOUT = 5.0
"""Seconds."""
_HEALTH_CHECK = 30
"""Seconds without a command after which a connection is asked whether it still works: firewalls forget without telling."""
_LONGEST_REASON = 200
"""Characters of a refusal that are logged: those of a pipeline repeat the whole command."""


@contextmanager
def redis_url(settings: Settings) -> Iterator[str]:
    """Yield the URL of the instance's Redis; an embedded one runs at least until the block ends. Raises EmbeddedRedisError."""
    if settings.redis_url is not None:
        yield settings.redis_url.get_secret_value()
        return
    embedded = EmbeddedRedis(settings.state_dir)
    try:
        yield embedded.start()
    finally:
        embedded.stop()


class Client(Redis):
    """redis-py's client, with the name of the command in permission errors."""

    def execute_command(self, *args: object, **options: object) -> object:
        """Send one command. Raises RedisError."""
        try:
            answer: object = super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except NoPermissionError as problem:
            raise NoPermissionError(f"NOPERM {args[0]}: {problem}") from None
        return answer


class _AsksSentinels(SentinelManagedConnection):
    """Asks the Sentinels for the primary each time that it connects.

    redis-py's own asks them only where the pool connects it. For a command that is tried again it goes to the same server: to a
    primary that stands still, whose system takes connections as before, again and again.
    """

    def connect_check_health(
        self, check_health: bool = True, retry_socket_connect: bool = True
    ) -> None:
        """Connect, unless it is connected. Raises RedisError."""
        if not self._sock:
            self.host, self.port = self.connection_pool.get_master_address()
        super().connect_check_health(check_health, retry_socket_connect)


class _AsksSentinelsByTls(_AsksSentinels, SentinelManagedSSLConnection):
    """The same with TLS."""


def connect(url: str, *, timeout: float = _TIMEOUT) -> Redis:
    """A client; it connects with its first command. A command is tried again for about a second, then raises RedisError.

    url: as in the settings. timeout: seconds to wait for a connection, and for an answer; rq's workers wait longer for jobs.
    """
    address = addresses.parse(url)
    options = connection_options(address, timeout) | {
        # Or commands would wait for ever where the network swallows everything.
        "socket_timeout": timeout,
        "health_check_interval": _HEALTH_CHECK,
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.1), 3),
    }
    if not address.sentinels:
        return Client.from_pool(ConnectionPool.from_url(url, **options))
    sentinel = Sentinel(
        address.sentinels,
        # Without a retry: the next Sentinel is asked instead.
        sentinel_kwargs=sentinel_options(address, timeout) | {"retry": Retry(NoBackoff(), 0)},
    )
    return Client.from_pool(
        SentinelConnectionPool(
            address.service,
            sentinel,
            connection_class=_AsksSentinelsByTls if address.tls else _AsksSentinels,
            **options,
            **address.tls_options(),
        )
    )


def refused_commands(connection: Redis, prefix: str) -> list[tuple[str, str]]:
    """Return the commands that the Redis user may not run on keys of this prefix, and the errors. Raises RedisError."""
    asked = permissions.questions(Keys(prefix))
    sent = [("MULTI",), *asked, ("DISCARD",)]
    # Not with a pipeline of redis-py, which takes "QUEUED" for the reply of each command.
    raw = connection.connection_pool.get_connection()
    answers: list[object] = []
    try:
        raw.send_packed_command(raw.pack_commands(sent))
        for _ in sent:
            try:
                answers.append(raw.read_response())
            except ResponseError as problem:
                answers.append(problem)
    finally:
        connection.connection_pool.release(raw)
    return permissions.refused(sent[:-1], answers[:-1])


class Refusals:
    """Logs each command that the Redis user may not run, once."""

    def __init__(self, url: str) -> None:
        self._server = str(addresses.parse(url))

    def report(self, problem: object) -> bool:
        """Log a permission error, unless it was logged before. Return False for any other error."""
        if not isinstance(problem, NoPermissionError):
            return False
        reason = str(problem)[:_LONGEST_REASON]
        # In a pipeline, its position comes before the name.
        found = re.match(r"(?:NOPERM |Command # \d+ \()([A-Za-z]+)", reason)
        command = found[1] if found else "a command"
        permissions.report(self._server, command, reason.removeprefix("NOPERM "))
        return True

    def check(self, connection: Redis, prefix: str) -> None:
        """Log each required command that is refused on keys of this prefix. Raises RedisError."""
        for command, reason in refused_commands(connection, prefix):
            permissions.report(self._server, command, reason)


class OutageLog:
    """Logs once that Redis became unavailable, and once that it is back. refusals: logs refused commands.

    logger: that of the process.
    """

    def __init__(self, url: str, logger: logging.Logger) -> None:
        self.refusals = Refusals(url)
        self._logger = logger
        self._is_away = False

    def report(self, problem: object) -> bool:
        """Log an error of Redis, unless the outage was logged already. Return False for any other error."""
        if not isinstance(problem, RedisError):
            return False
        if not self.refusals.report(problem) and not self._is_away:
            self._is_away = True
            reason = str(problem) or type(problem).__name__
            logs.event(self._logger, logging.WARNING, "redis away", reason=reason)
        return True

    def end(self) -> None:
        """Log the end of an outage."""
        if self._is_away:
            logs.event(self._logger, logging.WARNING, "redis back")
        self._is_away = False
