"""The Redis of an instance as rq wants it: a blocking client whose answers are bytes.

It is the operator's, or the embedded one, which is started unless it runs and lives as long as somebody uses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from tusd_py.settings.model import Settings
from tusd_py.state.embedded import EmbeddedState

_TIMEOUT = 5.0
"""Seconds."""
_HEALTH_CHECK = 30
"""Seconds without a command after which a connection is asked whether it still works: firewalls forget without telling."""


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


def connect(url: str, *, timeout: float = _TIMEOUT) -> Redis:
    """A client; it connects with its first command. A command is tried again for about a second, then raises RedisError.

    timeout: seconds to wait for a connection, and for an answer; rq's workers wait longer where they wait for jobs.
    """
    return Redis.from_url(
        url,
        socket_connect_timeout=timeout,
        # Or whoever asks would wait for ever where the network swallows everything.
        socket_timeout=timeout,
        health_check_interval=_HEALTH_CHECK,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.1), 3),
    )
