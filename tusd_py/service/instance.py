"""Build one set of uploads from settings: store, locks, Redis, authentication, hooks, outbox, due index.

Servers, workers and commands all start from here, so that they follow the same rules. Not for: HTTP, processes, periodic tasks
of a server.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from tusd_py import logs
from tusd_py.auth.byte_quota import ByteQuotas
from tusd_py.auth.quota import OpenUploads
from tusd_py.background import cancel, keep_running
from tusd_py.events import loading as configured_hooks
from tusd_py.events.model import HookContext
from tusd_py.events.publisher import EventPublisher
from tusd_py.locks.memory import MemoryLocks
from tusd_py.maintenance.local import LocalMaintenance
from tusd_py.redis import RedisClient
from tusd_py.redis.due_index import DueIndex, DueIndexWriter
from tusd_py.redis.live import LiveBoard
from tusd_py.redis.upload_list import UploadList
from tusd_py.service import removal_settings
from tusd_py.service.backends import Backends, create_store
from tusd_py.service.index_keepers import ListKeeper, QuotaKeeper
from tusd_py.service.known_directories import KnownDirectories
from tusd_py.service.presence import Presence
from tusd_py.service.siblings import Sharing
from tusd_py.service.state_lock import StateLock, directory_id
from tusd_py.settings.model import Settings
from tusd_py.storage.base import Outbox, Store
from tusd_py.telemetry.counters import Counters
from tusd_py.uploads.due_marks import DueMarks
from tusd_py.uploads.policy import UploadPolicy
from tusd_py.uploads.service import Uploads

if TYPE_CHECKING:
    from tusd_py.auth.authenticator import Authenticator, Source

logger = logging.getLogger(__name__)


class Instance:
    """The uploads of one set of settings. `uploads`, `due_index`, `authenticator` and `maintenance` are set by `open`, as are
    `upload_list`, `live_board` and `presence`, for operators, where there is a Redis.

    counters: for the metrics. hooks: objects that are called as hooks, before those of the settings. sharing: which other
    processes serve the same uploads. is_server: False for a command or a job, which needs no authentication. runs_jobs: whether
    a worker and a scheduler run beside it, if the settings ask for them. authentication: of the application, if not by tokens.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        counters: Counters | None = None,
        hooks: Iterable[object] = (),
        sharing: Sharing = Sharing.ALONE,
        is_server: bool = True,
        runs_jobs: bool = False,
        authentication: Source | None = None,
    ) -> None:
        """Raises HookError for a hook that cannot be loaded, ValueError for contradictory settings of tokens."""
        self.settings = settings
        self.counters = counters or Counters()
        self.store = create_store(settings, self.counters)
        self._known_directories = KnownDirectories(settings)
        self._state_lock = StateLock(settings)
        self._is_server = is_server
        self._is_child = sharing is Sharing.CHILD
        self._authentication = _authentication(settings, authentication) if is_server else None
        self._backends = Backends(settings, sharing=sharing, on_failure=self.counters.redis_failure)
        if self._authentication is not None:
            self._backends.require_redis()
        self.outbox_delivered_by_workers = configured_hooks.are_delivered(
            settings,
            runs_jobs=runs_jobs or not is_server,
            has_redis=self._backends.has_redis,
        )
        self._hooks = configured_hooks.in_server(
            settings, self.counters, given=hooks, delivered=self.outbox_delivered_by_workers
        )
        self.publisher = EventPublisher(
            self._hooks,
            self.outbox,
            durable=settings.durability != "none",
            path_of=self.store.path_of,
        )
        self.authenticator: Authenticator | None = None
        self.due_index: DueIndex | None = None
        self.upload_list: UploadList | None = None
        self.live_board: LiveBoard | None = None
        self.presence: Presence | None = None
        self.quotas: ByteQuotas | None = None
        self._due_marks: DueIndexWriter | None = None
        self._uploads: Uploads | None = None
        self._background: list[asyncio.Task[None]] = []
        self._has_operators = is_server and bool(settings.admin)

    @property
    def outbox(self) -> Outbox | None:
        """The events that workers deliver; None if the server calls all hooks itself."""
        return self.store.outbox if self.outbox_delivered_by_workers else None

    @property
    def redis(self) -> RedisClient | None:
        """The Redis client; None if nothing needs a Redis."""
        return self._backends.redis

    @property
    def redis_url(self) -> str | None:
        """Where the Redis is; None if nothing needs one. For clients of other kinds."""
        return self._backends.url

    def serve_operators(self) -> None:
        """Keep for operators what they look at, in a Redis. Call it before `open`."""
        self._has_operators = True
        self._backends.require_redis()

    @property
    def uploads(self) -> Uploads:
        """The uploads; set by `open`."""
        if self._uploads is None:
            raise RuntimeError("the instance is not open yet")
        return self._uploads

    @property
    def maintenance(self) -> LocalMaintenance:
        """Sweeps and removals in this process; only after `open`."""
        return LocalMaintenance(self.uploads, self.due_index, directory=directory_id(self.settings))

    def lock_directory(self) -> None:
        """Lock the upload directory, unless its volume is missing: in `open`, or for child processes of which each opens it.

        Raises StorageError.
        """
        guard = self._backends.guard
        # For the volume, or for another server to end.
        wait = self.settings.wait_for_directory if self._is_server else 0.0
        volume = None if guard == "none" else self.store.volume
        if volume is not None:
            self._known_directories.check(wait=wait, begins=self._is_server)
        self.store.open(guard, wait=wait)
        if guard != "none":
            # Otherwise the parent has it.
            self._state_lock.acquire()
            if self._is_server:
                removal_settings.remember(self.settings)
        if volume is not None:
            self._known_directories.remember(volume)

    def open(self) -> None:
        """Lock the upload directory, start the embedded Redis if needed, build the uploads; blocking.

        Raises StorageError, EmbeddedRedisError, ValueError.
        """
        if self._uploads is not None:
            return
        self.lock_directory()
        self._backends.open()
        redis = self._backends.redis
        if redis is not None:
            self.due_index = DueIndex(redis)
            self.upload_list = self.due_index.uploads
            self._due_marks = DueIndexWriter(self.due_index)
            self.quotas = ByteQuotas(redis, limit=self.settings.quota_bytes)
        if self._authentication is not None:
            if redis is None:
                raise RuntimeError("authentication needs a Redis for revocations")
            from tusd_py.auth import build  # noqa: PLC0415

            self.authenticator = build.authenticator(
                self.settings, self._authentication, redis, on_revocation=self._recheck_access
            )
        self._uploads = Uploads(
            self.store,
            self._backends.locks,
            policy=_policy(self.settings),
            hooks=self._hooks,
            publisher=self.publisher,
            counters=self.counters,
            due_marks=DueMarks(self._due_marks, names=self.settings.admin_show_metadata),
            access_policy=None if self.authenticator is None else self.authenticator.access_policy,
            open_uploads=None if redis is None else OpenUploads(redis),
            quotas=self.quotas,
        )
        if redis is None or self._due_marks is None:
            return
        # Servers on other machines may have operators, too.
        may_have_operators = self._has_operators or self.settings.redis_url is not None
        # Also in workers, which remove uploads. Until it is known whether the list is wanted, all changes are recorded.
        self._due_marks.lists = may_have_operators
        if self._is_server and may_have_operators:
            self.live_board = LiveBoard(redis)
            self.presence = Presence(
                self.uploads,
                self.counters,
                self.live_board,
                self._due_marks,
                names=self.settings.admin_show_metadata,
            )

    def list_keeper(self) -> ListKeeper | None:
        """What keeps the list of uploads complete, for one process of a server; None without operators. After `open`."""
        if not self._has_operators or self.upload_list is None:
            return None
        names = self.settings.admin_show_metadata
        return ListKeeper(self.uploads, self.upload_list, self.counters, names=names)

    def _recheck_access(self) -> None:
        self.uploads.recheck_access()

    async def start(self) -> None:
        """Open, connect, and start the hooks. Raises StorageError, EmbeddedRedisError, HookError."""
        if self._uploads is None:
            await asyncio.to_thread(self.open)
        await self._backends.start()
        if self.authenticator is not None:
            await self.authenticator.start()
        await self._hooks.start(
            HookContext(
                settings=self.settings,
                state=self._backends.redis,
                progress_of=self.uploads.progress_of,
                counters=self.counters,
            )
        )
        await self._start_relay()
        if self._due_marks is not None:
            self._background.append(keep_running(self._due_marks.run, "due index"))
        if self.quotas is not None:
            keeper = QuotaKeeper(self.uploads, self.quotas, reads=self._is_server)
            self._background.append(keep_running(keeper.run, "quotas"))
        if self.presence is not None:
            self._background.append(keep_running(self.presence.run, "presence"))
        redis, volume = self.redis, self.store.volume
        if (
            self._is_server
            and self.settings.redis_url is not None
            and redis is not None
            and volume is not None
        ):
            keep = partial(self._known_directories.keep_in_redis, redis, volume)
            self._background.append(keep_running(keep, "upload directory"))

    async def _start_relay(self) -> None:
        """Connect the outbox to the queue of the workers, where hooks are called by workers."""
        url = self._backends.url
        if self._is_server and not self._is_child and not self.outbox_delivered_by_workers:
            await self._warn_of_leftovers()
        if not self.outbox_delivered_by_workers or url is None or not self._hooks.delivers:
            return
        # Not for servers that have no events to deliver: it loads rq.
        queue = await asyncio.to_thread(importlib.import_module, "tusd_py.jobs.relay")
        relay = self.publisher.relay = queue.Relay(self.settings, url)
        await relay.start()

    async def _warn_of_leftovers(self) -> None:
        """Warn of undelivered events from before a change of settings, which no worker delivers now."""
        counts = await self.store.outbox.counts()
        if counts.waiting:
            logs.event(
                logger,
                logging.WARNING,
                "events left over",
                message=f"{counts.waiting} events wait for workers, but this server runs none (--hooks-delivery): "
                "tusd-py worker delivers them",
                events=counts.waiting,
            )

    async def drain(self) -> None:
        """Cancel the periodic tasks, and wait for other work in the background."""
        await cancel(*self._background)
        await self.uploads.drain()
        if self.quotas is not None:
            await self.quotas.settled()

    async def stop(self) -> None:
        """End the bodies in flight, wait for running operations, and release the upload directory."""
        self.uploads.begin_shutdown()
        await self.drain()
        await self._hooks.stop()
        if self.publisher.relay is not None:
            await self.publisher.relay.stop()
        if self._due_marks is not None:
            await self._due_marks.flush()
        if self.authenticator is not None:
            await self.authenticator.stop()
        await self._backends.stop()
        self._state_lock.release()
        await self.store.stop()


def reader(settings: Settings, store: Store) -> Uploads:
    """The uploads of a store for reading only: without locks, also while a server runs on it."""
    return Uploads(store, MemoryLocks(), policy=_policy(settings))


def _policy(settings: Settings) -> UploadPolicy:
    return UploadPolicy(
        max_size=settings.max_size,
        disk_reserve=settings.disk_reserve,
        durability=settings.durability,
        expire_after=settings.expire_after,
        retain_finished=settings.retain_finished,
        tombstone_ttl=settings.tombstone_ttl,
        acquire_lock_timeout=settings.acquire_lock_timeout,
        progress_interval=settings.progress_hooks_interval,
        termination=not settings.disable_termination,
        concatenation=not settings.disable_concatenation,
        max_concat_repeats=settings.max_concat_repeats,
        remove_parts_when_joined=settings.remove_parts_when_joined,
        downloads=not settings.disable_download,
        quota_uploads=settings.quota_uploads,
    )


def _authentication(settings: Settings, application: Source | None) -> Source | None:
    """What knows who sends a request. What it needs (PyJWT, cryptography) is loaded only where there is authentication."""
    keys = (settings.jwt_secret, settings.jwt_secret_file, settings.jwt_jwks)
    if settings.auth == "none" and keys == (None, None, None):
        return application
    from tusd_py.auth import build  # noqa: PLC0415

    if settings.auth != "none" and application is not None:
        raise ValueError("authenticate= and auth='jwt' exclude each other; leave one out")
    return build.access_tokens(settings)
