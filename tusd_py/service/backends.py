"""Create the store, the locks and the Redis client from settings; the only place that does.

Locks are in memory if one process serves an upload directory, and in Redis if several do. Without `redis_url`, an embedded
Redis is started.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from tusd_py import logs
from tusd_py.locks.base import Locks
from tusd_py.locks.epochs import Epochs
from tusd_py.locks.fallback import FallbackLocks
from tusd_py.locks.memory import MemoryLocks
from tusd_py.locks.ofd import OfdLocks
from tusd_py.locks.redis import RedisLocks
from tusd_py.redis import RedisClient
from tusd_py.redis.embedded.server import EmbeddedRedis
from tusd_py.redis.embedded.sockets import EmbeddedRedisError
from tusd_py.service.siblings import Sharing
from tusd_py.settings.model import Settings
from tusd_py.settings.name_template import split_template
from tusd_py.storage.base import Guard, Store
from tusd_py.storage.errors import takes_nothing
from tusd_py.storage.file.finished import FinishedFiles
from tusd_py.storage.file.layout import STATE_DIRECTORY
from tusd_py.storage.file.mounts import is_local
from tusd_py.storage.file.store import FileStore
from tusd_py.telemetry.counters import Counters

logger = logging.getLogger(__name__)

_STOP_SHARE = 0.25
"""Share of the time of a shutdown in which the embedded Redis has to end. Worker and scheduler have half of it before."""


def create_store(settings: Settings, counters: Counters | None = None) -> Store:
    """The store of an instance, not opened; reading and the outbox work without that. Raises ValueError.

    counters: get those of an object store.
    """
    if settings.s3_bucket:
        try:
            # Needs an extra, and loads a large library.
            from tusd_py.service.bucket import s3_store  # noqa: PLC0415
        except ModuleNotFoundError as problem:
            raise ValueError(
                f"--s3-bucket needs the Python package {problem.name}: pip install 'tusd-py[s3]'"
            ) from problem
        return s3_store(settings, counters)
    return FileStore(
        settings.upload_dir,
        dir_perms=settings.dir_perms,
        file_perms=settings.file_perms,
        writes_behind=settings.durability != "none",
        syncs_chunks=settings.durability == "chunk",
        finished=_finished_files(settings),
    )


def _finished_files(settings: Settings) -> FinishedFiles | None:
    """Where finished files get names; None without `--finished-dir`."""
    if not settings.finished_dir:
        return None
    return FinishedFiles(
        str(settings.finished_base),
        split_template(settings.finished_dir)[1],
        removes=settings.finished_files == "remove",
        dir_perms=settings.dir_perms,
    )


@asynccontextmanager
async def store_to_read(settings: Settings) -> AsyncIterator[Store]:
    """Yield the store of an instance, for reading it and for its outbox, and close its connections. Raises ValueError."""
    store = create_store(settings)
    try:
        yield store
    finally:
        await store.stop()


def redis_client(settings: Settings, url: str) -> RedisClient:
    """A client of the Redis at `url`, not started."""
    return RedisClient(url, prefix=settings.redis_prefix, timeout=settings.redis_timeout)


@asynccontextmanager
async def connected_redis(settings: Settings, url: str) -> AsyncIterator[RedisClient]:
    """Yield a client of the Redis at `url`, started, and stop it."""
    redis = redis_client(settings, url)
    await redis.start()
    try:
        yield redis
    finally:
        await redis.stop()


def _started(embedded: EmbeddedRedis) -> str:
    """Start the embedded Redis and return its URL. Raises EmbeddedRedisError.

    On a full disk, return the URL without starting it: uploads work as while a Redis is unavailable, and it is started once
    there is space. A server that refused to start could not free any.
    """
    try:
        return embedded.start()
    except EmbeddedRedisError as problem:
        full = embedded.write_problem()
        if full is None or not takes_nothing(full):
            raise
        logs.event(
            logger,
            logging.WARNING,
            "embedded redis not started",
            message=f"The embedded Redis is not started, as nothing can be stored in {embedded.directory} ({full.strerror}); "
            "it will be once there is space",
            reason=str(problem),
        )
        return embedded.url


class Backends:
    """The backends of one process. `locks`, `redis` (the client) and its `url` are set by `open`; without need of a Redis, the
    last two are None.

    sharing: which other processes serve the same uploads.
    """

    def __init__(
        self, settings: Settings, *, sharing: Sharing, on_failure: Callable[[], None]
    ) -> None:
        self.redis: RedisClient | None = None
        self.url: str | None = None
        self.locks: Locks = MemoryLocks()
        self._settings = settings
        self._sharing = sharing
        self._on_failure = on_failure
        self._embedded: EmbeddedRedis | None = None
        self._is_required = False

    @property
    def guard(self) -> Guard:
        """How this process has to lock the upload directory."""
        if self._sharing is Sharing.CHILD:
            return "none"
        return "shared" if self._locks_are_shared else "exclusive"

    @property
    def _locks_are_shared(self) -> bool:
        return self._sharing is not Sharing.ALONE or self._settings.redis_url is not None

    def require_redis(self) -> None:
        """Have a Redis whatever the settings say. Call it before `open`."""
        self._is_required = True

    @property
    def has_redis(self) -> bool:
        """Whether there is a Redis after `open`."""
        settings = self._settings
        return (
            self._locks_are_shared
            or self._is_required
            or bool(settings.admin)
            or settings.duplicates != "off"
            or settings.auth != "none"
            or bool(settings.quota_bytes or settings.quota_uploads)
            or settings.jobs == "on"
            or settings.hooks_delivery == "workers"
        )

    def open(self) -> None:
        """Start the embedded Redis, or connect to a running one; blocking. Raises EmbeddedRedisError, ValueError."""
        settings = self._settings
        if not self.has_redis:
            return
        if settings.redis_url is None:
            self._embedded = EmbeddedRedis(settings.state_dir)
            url = _started(self._embedded)
        else:
            url = settings.redis_url.get_secret_value()
        self.url = url
        with suppress(OSError):
            # The directory is optional: on a full disk its files are not written either.
            settings.state_dir.mkdir(mode=settings.dir_perms, parents=True, exist_ok=True)
        self.redis = RedisClient(
            url,
            prefix=settings.redis_prefix,
            timeout=settings.redis_timeout,
            on_failure=self._on_failure,
            memory=settings.state_dir / "redis-seen",
        )
        if self._locks_are_shared:
            self.locks = self._open_locks(self.redis)

    def _open_locks(self, redis: RedisClient) -> Locks:
        """Locks in Redis; if the file system supports locks, with a fallback to those while Redis is unavailable."""
        settings = self._settings
        if settings.s3_bucket:
            # Other machines do not share its directory.
            return RedisLocks(redis, lease=settings.lock_lease, outlives_redis=True)
        directory = settings.upload_dir / STATE_DIRECTORY
        try:
            epochs = directory / "epochs"
            epochs.mkdir(mode=settings.dir_perms, parents=True, exist_ok=True)
            ranges = OfdLocks(str(directory / "locks"), perms=settings.file_perms)
        except OSError as problem:
            logs.event(
                logger,
                logging.WARNING,
                "uploads will stand still while Redis is away",
                message="the upload directory has no locks of its own: uploads will stand still while Redis is away, and a "
                "server that stands still for longer than --lock-lease may write over what came meanwhile, as may two "
                "servers that a Redis without its data granted one lock",
                reason=str(problem),
            )
            return RedisLocks(redis, lease=settings.lock_lease)
        return FallbackLocks(
            RedisLocks(redis, lease=settings.lock_lease, retry_seconds=0),
            ranges,
            Epochs(str(epochs), is_local=is_local(str(epochs)), perms=settings.file_perms),
            redis,
        )

    async def start(self) -> None:
        """Connect, and start to watch the embedded Redis."""
        if self.redis is not None:
            await self.redis.start()
        if self._embedded is not None:
            self._embedded.begin_watch()

    async def stop(self) -> None:
        """Release everything; the embedded Redis ends with the last process that uses it."""
        await self.locks.stop()
        if self.redis is not None:
            await self.redis.stop()
        if self._embedded is not None:
            # What is killed at the end of its time has written all but the changes of a second.
            await self._embedded.end(_STOP_SHARE * self._settings.shutdown_timeout)
