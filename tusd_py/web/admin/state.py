"""The state of an instance as operators see it: overview, what is received, the last hour, jobs, events, duplicates, owners."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

from redis.exceptions import RedisError

from tusd_py import logs
from tusd_py.jobs.queues import QueueKeys
from tusd_py.protocol import errors
from tusd_py.redis import RedisClient, RedisUnavailable
from tusd_py.redis.duplicate_index import DuplicateIndex, Record
from tusd_py.redis.live import SLOT_SECONDS, BodyDocument, LiveBoard, ServerDocument
from tusd_py.service.instance import Instance
from tusd_py.settings.reference import catalogue
from tusd_py.storage.base import OutboxCounts, StorageError
from tusd_py.telemetry import jobs as jobs_metrics
from tusd_py.uploads.failures import translated
from tusd_py.web.admin import cursors, models
from tusd_py.web.admin.uploads import event_of, needed

logger = logging.getLogger(__name__)

_SLOW_SECONDS = 10.0
"""Age at which readiness, space, jobs and problems are read again."""
_OVERDUE_INTERVALS = 3
"""Sweep intervals without a sweep that count as a problem."""
_MOST_SCANS = 20
"""SCAN commands for one page of fingerprints."""
_LARGEST_SCAN = 2**64 - 1
"""Cursors of SCAN are unsigned, of 64 bits."""
_MOST_OWNERS = 10**12
_NO_COUNTS: Mapping[str, int] = dict.fromkeys(models.Period.model_fields, 0)


class StateQueries:
    """Reads the state of one instance. origins: where each setting comes from, if that is known."""

    def __init__(
        self,
        instance: Instance,
        check: Callable[[], Awaitable[str | None]],
        origins: Mapping[str, str],
    ) -> None:
        self._instance = instance
        self._settings = instance.settings
        self._check = check
        self._origins = origins
        self._slow: _Slow | None = None
        self._slow_at = float("-inf")

    @property
    def _redis(self) -> RedisClient:
        return needed(self._instance.redis)

    @property
    def _board(self) -> LiveBoard:
        return needed(self._instance.live_board)

    # What changes every second

    async def snapshot(self) -> models.Snapshot:
        """Return overview and live together, as the stream sends them."""
        servers = await self._servers()
        latest = _NO_COUNTS
        with suppress(RedisUnavailable):
            [latest] = await self._board.hour(time.time(), slots=1)
        return models.Snapshot(
            overview=await self._overview(servers),
            live=self._live(servers),
            period=models.Period(**latest),
        )

    async def overview(self) -> models.Overview:
        """Return the state of the whole instance."""
        return await self._overview(await self._servers())

    async def live(self) -> models.Live:
        """Return what all servers receive now."""
        return self._live(await self._servers())

    async def _servers(self) -> list[ServerDocument]:
        """What each process receives, this one first. Has the others go on writing it for some seconds."""
        mine = needed(self._instance.presence).now()
        try:
            await self._board.watch()
            return [mine, *await self._board.read(but=mine["server"])]
        except RedisUnavailable:
            return [mine]

    def _live(self, servers: list[ServerDocument]) -> models.Live:
        return models.Live(
            at=time.time(),
            total=sum(server["receiving"] for server in servers),
            rate=sum(server["rate"] for server in servers),
            bodies=[self._body(body) for server in servers for body in server["bodies"]],
        )

    def _body(self, body: BodyDocument) -> models.Body:
        shown = self._settings.admin_show_metadata
        return models.Body(
            id=body["id"],
            name=(body["name"] or None) if shown else None,
            owner=body["owner"],
            client=body["client"],
            server=body["server"],
            offset=body["offset"],
            size=body["size"],
            rate=body["rate"],
            left=_left(body["size"], body["offset"], body["rate"]),
            silent=body["silent"],
        )

    async def _overview(self, servers: list[ServerDocument]) -> models.Overview:
        slow = await self._slowly()
        counts = due = None
        with suppress(RedisUnavailable):
            counts = await needed(self._instance.upload_list).counts(time.time())
            due = (await needed(self._instance.due_index).counts(time.time())).due
        return models.Overview(
            at=time.time(),
            ready=slow.ready,
            receiving=sum(server["receiving"] for server in servers),
            connections=sum(server["connections"] for server in servers),
            rate=sum(server["rate"] for server in servers),
            known=None if counts is None else counts.known,
            unfinished=None if counts is None else counts.unfinished,
            due=due,
            finished_hour=None if counts is None else counts.finished_hour,
            finished_day=None if counts is None else counts.finished_day,
            list_is_whole=counts is not None and counts.is_whole,
            free=slow.free,
            reserve=self._settings.disk_reserve,
            spool=self._settings.s3_spool_size if self._settings.s3_bucket else None,
            workers=slow.workers,
            scheduler=slow.scheduler,
            redis="ok" if self._redis.available else "away",
            problems=slow.problems,
        )

    # What changes slowly

    async def _slowly(self) -> _Slow:
        if self._slow is None or time.monotonic() - self._slow_at > _SLOW_SECONDS:
            self._slow = await self._look()
            self._slow_at = time.monotonic()
        return self._slow

    async def _look(self) -> _Slow:
        slow = _Slow()
        if await self._check() is not None:
            slow.ready = False
            slow.add("store", "uploads cannot be stored now; the log has the reason")
        try:
            slow.free = await self._instance.store.free_space()
        except StorageError as problem:
            logger.warning("the free space is unknown: %s", problem)
        if slow.free is not None and slow.free < self._settings.disk_reserve:
            slow.add("space", "the free space is below the reserve, so uploads are refused")
        try:
            await self._look_at_jobs(slow)
        except RedisUnavailable:
            slow.add("redis", "Redis is away")
        return slow

    async def _look_at_jobs(self, slow: _Slow) -> None:
        found = await jobs_metrics.read(self._redis, self._instance.outbox)
        if found.looked is not None:
            slow.scheduler = max(0.0, time.time() - found.looked)
        slow.workers = await self._count_workers()
        if self._instance.outbox_delivered_by_workers:
            if slow.scheduler is None:
                slow.add("no-scheduler", "no scheduler runs")
            elif slow.workers == 0:
                slow.add("no-worker", "no worker runs")
        for queue in found.jobs.queues if found.jobs else ():
            if queue.failed and queue.name == "expiry":
                slow.add("failed-jobs", "sweeps failed", queue.failed)
        self._add_events(slow, found.events)
        now = time.time()
        # One that ended in the future does not tell how long ago it was: the clock was set back since.
        last = max((each.ended for each in found.sweeps if each.ended < now + 60), default=0.0)
        if found.sweeps and now - last > self._overdue():
            slow.add("no-sweep", "nothing has been swept for too long")

    async def _count_workers(self) -> int:
        """Count the workers that are alive now; the report of the scheduler is up to a minute old."""
        command = self._redis.command
        known = await command("SMEMBERS", QueueKeys(self._redis.prefix).workers)
        keys = known if isinstance(known, list) else []
        alive = await asyncio.gather(*(command("EXISTS", key) for key in keys))
        return sum(1 for each in alive if each)

    def _add_events(self, slow: _Slow, events: OutboxCounts | None) -> None:
        if events is None:
            return
        if events.failed:
            slow.add("failed-events", "events failed after all attempts", events.failed)
        if events.oldest is not None and time.time() - events.oldest > self._overdue():
            slow.add("late-events", "an event has been waiting for too long")

    def _overdue(self) -> float:
        return _OVERDUE_INTERVALS * self._settings.sweep_interval + 60

    # The last hour

    async def hour(self) -> models.Hour:
        """Return the counts of the last hour and of today. Raises RedisUnavailable."""
        now = time.time()
        periods, today = await asyncio.gather(self._board.hour(now), self._board.day(now))
        return models.Hour(
            seconds=SLOT_SECONDS,
            periods=[models.Period(**each) for each in periods],
            today=models.Period(**today),
        )

    # Events

    async def events(self, box: models.Box, limit: int) -> models.EventPage:
        """Return the first events of a box. Raises ProtocolError."""
        outbox = self._instance.outbox
        if outbox is None:
            return models.EventPage(events=[], waiting=0, failed=0, oldest=None, delivered={})
        found: list[models.Event] = []
        with translated:
            counts = await outbox.counts()
            async for kept in outbox.every(box):
                found.append(event_of(kept, box))
                if len(found) == limit:
                    break
        delivered: dict[str, int] = {}
        with suppress(RedisUnavailable):
            delivered = await jobs_metrics.deliveries(self._redis)
        return models.EventPage(
            events=found,
            waiting=counts.waiting,
            failed=counts.failed,
            oldest=counts.oldest,
            delivered=delivered,
        )

    # Jobs

    async def jobs(self) -> models.Jobs:
        """Return queues, workers, the schedule and the last sweeps. Raises RedisUnavailable, ProtocolError."""
        found = await jobs_metrics.read(self._redis, None)
        url = needed(self._instance.redis_url)
        try:
            queues, workers = await asyncio.to_thread(_inspect, url, self._settings.redis_prefix)
        except RedisError as problem:
            logger.debug("jobs cannot be shown: %s", problem)
            raise errors.index_unavailable() from None
        return models.Jobs(
            queues=queues,
            workers=workers,
            scheduler=None if found.looked is None else max(0.0, time.time() - found.looked),
            schedule={} if found.jobs is None else found.jobs.schedule,
            sweeps=[
                models.Sweep.model_validate(each, from_attributes=True) for each in found.sweeps
            ],
        )

    # Duplicates and owners

    async def duplicates(self, search: str, after: str, limit: int) -> models.FingerprintPage:
        """Return fingerprints; search: one, or the id of an upload. Raises ProtocolError, RedisUnavailable."""
        if cursors.whole_number(after, _LARGEST_SCAN) is None:
            raise cursors.unknown()
        index = DuplicateIndex(self._redis)
        found: list[models.Fingerprint] = []
        today = await self._board.day(time.time())
        cursor = after
        if len(search) == 64:
            found = [_fingerprint(search, record) for record in await index.records(search)]
            cursor = "0"
        else:
            for _ in range(_MOST_SCANS):
                cursor, some = await index.scan_some(cursor)
                found += [
                    _fingerprint(fingerprint, record)
                    for fingerprint, records in some
                    for record in records
                    if search in ("", record.claim.upload)
                ]
                if cursor == "0" or len(found) >= limit:
                    break
        return models.FingerprintPage(
            fingerprints=found,
            next=None if cursor == "0" else cursor,
            refused=today["duplicates"],
        )

    async def owners(self, after: str, limit: int) -> models.OwnerPage:
        """Return owners, those with the most bytes first. Raises ProtocolError, RedisUnavailable."""
        begin = cursors.whole_number(after, _MOST_OWNERS)
        if begin is None:
            raise cursors.unknown()
        uploads, quotas = needed(self._instance.upload_list), self._instance.quotas
        found, total = await uploads.owners(begin, limit), await uploads.owners_total()
        counted: Sequence[int | None] = [None] * len(found)
        is_counting = False
        if quotas is not None and quotas.is_on:
            counted = await quotas.counted([each.owner for each in found])
            is_counting = not await quotas.is_whole()
        authenticator = self._instance.authenticator
        revoked = None if authenticator is None else authenticator.revocations.owner_since
        following = begin + len(found)
        return models.OwnerPage(
            owners=[
                models.Owner(
                    owner=each.owner,
                    uploads=each.uploads,
                    open=each.open,
                    bytes=each.bytes,
                    counted=taken,
                    revoked=revoked(each.owner) if revoked and each.owner else None,
                )
                for each, taken in zip(found, counted, strict=True)
            ],
            next=str(following) if following < total else None,
            total=total,
            max_size=self._settings.max_size or None,
            quota_bytes=self._settings.quota_bytes or None,
            quota_uploads=self._settings.quota_uploads or None,
            is_counting=is_counting,
        )

    # Settings and log

    async def settings(self) -> models.Settings:
        """Return all settings; secrets are hidden."""
        return models.Settings(
            settings=[
                models.Setting(
                    name=each.name,
                    group=each.group,
                    value=each.as_json(getattr(self._settings, each.name)),
                    origin=self._origins.get(each.name),
                    description=each.description,
                )
                for each in catalogue(type(self._settings))
            ]
        )

    @staticmethod
    async def log() -> models.Log:
        """Return the last warnings and errors, the latest first."""
        lines = [
            models.LogLine.model_validate({"at": at, "level": level, "text": text})
            for at, level, text in reversed(logs.recent)
        ]
        return models.Log(lines=lines)


class _Slow:
    """Readiness, space, jobs and problems, as they were read last."""

    def __init__(self) -> None:
        self.ready = True
        self.free: int | None = None
        self.workers: int | None = None
        self.scheduler: float | None = None
        self.problems: list[models.Trouble] = []

    def add(self, code: str, detail: str, count: int | None = None) -> None:
        """Add a problem."""
        self.problems.append(models.Trouble(code=code, detail=detail, count=count))


def _left(size: int | None, offset: int, rate: float) -> float | None:
    if size is None or rate <= 0:
        return None
    return round((size - offset) / rate, 1)


def _fingerprint(fingerprint: str, record: Record) -> models.Fingerprint:
    return models.Fingerprint(
        fingerprint=fingerprint,
        upload=record.claim.upload,
        owner=record.claim.owner,
        state=record.state,
        created=record.created,
        completed=record.completed,
        expires=record.expires,
    )


def _inspect(url: str, prefix: str) -> tuple[list[models.Queue], list[models.Worker]]:
    """Read queues and workers; blocking. rq is loaded only when jobs are shown."""
    from tusd_py.jobs import inspection  # noqa: PLC0415
    from tusd_py.jobs.connection import connect  # noqa: PLC0415

    with connect(url) as connection:
        queues = inspection.queues(connection, prefix)
        workers = inspection.workers(connection, prefix)
    return (
        [models.Queue.model_validate(each, from_attributes=True) for each in queues],
        [models.Worker.model_validate(each, from_attributes=True) for each in workers],
    )
