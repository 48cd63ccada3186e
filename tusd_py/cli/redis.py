"""Opens the Redis of an instance for commands; the instance need not be running."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tusd_py.cli.output import CommandFailed
from tusd_py.redis.embedded.server import EmbeddedRedis
from tusd_py.settings.model import Settings


class NoRedis(CommandFailed):
    """The instance has no Redis."""


@contextmanager
def instance_redis(settings: Settings) -> Iterator[str]:
    """Yield the URL of the instance's Redis; an embedded one runs at least until the end of the block.

    Raises NoRedis, EmbeddedRedisError.
    """
    if settings.redis_url is not None:
        yield settings.redis_url.get_secret_value()
        return
    embedded = EmbeddedRedis(settings.state_dir)
    # A mistyped path must not become an instance.
    if not embedded.directory.is_dir():
        raise NoRedis(
            f"there is no Redis in {settings.state_dir} (--upload-dir, --state-dir), and no --redis-url was given"
        )
    try:
        yield embedded.start()
    finally:
        embedded.stop()
