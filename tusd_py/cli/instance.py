"""What commands need of an instance, which need not be running: its directories and its Redis."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tusd_py.cli.output import CommandFailed
from tusd_py.process.sidecars import SUPERVISED
from tusd_py.service.known_directories import KnownDirectories
from tusd_py.service.owner import check_owner, check_user
from tusd_py.settings.model import Settings


class NoRedis(CommandFailed):
    """The instance has no Redis."""


def check_directories(settings: Settings) -> None:
    """Check that there are uploads and that this user may list them.

    Raises CommandFailed, as a mistyped path must not become an instance; PermissionError, as a directory that may not be read
    must not look like an empty one; and VolumeMissing, as neither must one whose volume is not mounted.
    """
    if settings.s3_bucket:
        return
    if not settings.upload_dir.is_dir():
        raise CommandFailed(f"there are no uploads: {settings.upload_dir} is no directory")
    for directory in (settings.upload_dir, settings.state_dir):
        if directory.is_dir():
            os.listdir(directory)
    KnownDirectories(settings).check(wait=0.0)


def check_worker(settings: Settings) -> None:
    """Check that this user may store files beside those of the server. Raises WrongUser."""
    # A server's own workers have its user, whatever that is.
    if SUPERVISED not in os.environ:
        check_user(settings, may_begin=False)


@contextmanager
def instance_redis(settings: Settings) -> Iterator[str]:
    """Yield the URL of the instance's Redis; an embedded one runs at least until the end of the block.

    Raises NoRedis, EmbeddedRedisError, WrongUser.
    """
    # Other commands do without it.
    from tusd_py.redis.embedded import sockets  # noqa: PLC0415
    from tusd_py.redis.embedded.server import EmbeddedRedis  # noqa: PLC0415

    if settings.redis_url is not None:
        yield settings.redis_url.get_secret_value()
        return
    embedded = EmbeddedRedis(settings.state_dir)
    # A mistyped path must not become an instance.
    if not embedded.directory.is_dir():
        raise NoRedis(
            f"there is no Redis in {settings.state_dir} (--upload-dir, --state-dir), and no --redis-url was given"
        )
    # One that runs stores its files as its own user.
    if not sockets.listens(sockets.path_for(embedded.directory)):
        check_owner(embedded.directory)
    try:
        yield embedded.start()
    finally:
        embedded.stop()
