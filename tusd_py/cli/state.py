"""The Redis of an instance, for commands that look into it; the instance may run or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tusd_py.redis.embedded.server import EmbeddedRedis
from tusd_py.settings.model import Settings


class NoState(Exception):
    """There is no Redis to look into; the text says why."""


@contextmanager
def redis_of(settings: Settings) -> Iterator[str]:
    """Where the Redis of the instance is; the embedded one runs at least until the end.

    Raises NoState, EmbeddedStateError.
    """
    if settings.redis_url is not None:
        yield settings.redis_url.get_secret_value()
        return
    embedded = EmbeddedRedis(settings.state_dir)
    # A path that was mistyped shall not become an instance.
    if not embedded.directory.is_dir():
        raise NoState(
            f"nothing is remembered in {settings.state_dir} (--upload-dir, --state-dir), and no --redis-url was given"
        )
    try:
        yield embedded.start()
    finally:
        embedded.stop()
