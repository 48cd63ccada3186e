"""The sweep: what has expired is removed, what a crash left undone is made up for, what it left behind goes.

It looks at every upload of the store, or at those that the registry knows to be due, and decides nothing itself: whether an
upload is due, and how it ends, is told by `uploads.py` under the upload's lock. Any number of sweeps may run at a time.

Uploads are read, locked and removed some dozens at a time, as most of what one alone would cost is the way into a thread, or
to Redis, and back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from tusd_py.locks.base import LocksClosed, LocksUnavailable
from tusd_py.protocol.errors import ProtocolError
from tusd_py.redis import RedisUnavailable
from tusd_py.redis.due_index import DueIndex, SweepKind, SweepRecord
from tusd_py.storage import skipped
from tusd_py.storage.base import (
    BytesMissing,
    RemovesUploads,
    StorageError,
    Upload,
    UploadDamaged,
    UploadGone,
    UploadNotFound,
)
from tusd_py.storage.skipped import skip_entry
from tusd_py.uploads.service import Uploads

logger = logging.getLogger(__name__)

_BATCH = 512
"""Uploads that are looked at before the registry is told what was found."""
_TOGETHER = 64
"""Uploads that are read, locked and removed together. A client that comes back then waits until all of them are done."""
_LATER = 60.0
"""Seconds after which an upload is looked at again that could not be dealt with, for instance because it is in use."""
_MOST_LOGGED = 20
"""Uploads that one sweep passes over with a warning each."""


@dataclass(slots=True)
class SweepReport:
    """What a sweep did: counts of uploads, and of remains of crashes. failed: uploads that it had to pass over.

    skipped: directories and names that it could not read. held: that it would have removed, but waits, and why. With a dry
    run, expired and remains are what would have gone. remains of the store as a whole are then not looked for.
    """

    seen: int = 0
    expired: int = 0
    finished: int = 0
    remains: int = 0
    failed: int = 0
    skipped: int = 0
    held: int = 0
    held_because: str = ""

    def record(self, kind: SweepKind, began: float) -> SweepRecord:
        """It as it is remembered; it ends now."""
        return SweepRecord(
            kind=kind,
            began=began,
            ended=time.time(),
            seen=self.seen,
            expired=self.expired,
            finished=self.finished,
            remains=self.remains,
            failed=self.failed,
        )


class SweepStopped(Exception):
    """The sweep could not go on, as nobody can tell who holds the locks; the text says why."""


Rest = Callable[[], float]
"""Asked after some uploads: for how many times as long as they took the sweep is to pause, for others' sake."""

Found = Callable[[Upload], Awaitable[None]]
"""Awaited with each upload that has expired, before it is removed."""


async def sweep(
    uploads: Uploads,
    *,
    registry: DueIndex | None = None,
    dry_run: bool = False,
    found: Found | None = None,
    rest: Rest | None = None,
) -> SweepReport:
    """Looks at every upload once, and tidies the store. Raises StorageError where the store as a whole fails, SweepStopped.

    registry: built anew on the way. May run at any time, beside requests and beside other sweeps.
    """
    looking = _Sweep(uploads, registry, dry_run=dry_run, found=found, rest=rest)
    store = uploads.store
    if not isinstance(store, RemovesUploads):
        return looking.report
    batch: list[str] = []
    async for upload_id in store.ids(looking.skip):
        if uploads.closing:
            return looking.report
        batch.append(upload_id)
        if len(batch) == _BATCH:
            await looking.at(store, batch)
            batch.clear()
    await looking.at(store, batch)
    if not dry_run:
        looking.report.remains += await uploads.tidy()
        await looking.end()
    return looking.report


async def sweep_due(
    uploads: Uploads,
    registry: DueIndex,
    *,
    dry_run: bool = False,
    found: Found | None = None,
    rest: Rest | None = None,
) -> SweepReport:
    """Looks at the uploads that the registry knows to be due; at all of them if it may lack some.

    Raises RedisUnavailable when Redis cannot be asked, StorageError, SweepStopped.
    """
    if not await registry.is_whole():
        return await sweep(uploads, registry=registry, dry_run=dry_run, found=found, rest=rest)
    looking = _Sweep(uploads, registry, dry_run=dry_run, found=found, rest=rest)
    store = uploads.store
    if not isinstance(store, RemovesUploads):
        return looking.report
    async for batch in _due_batches(registry, uploads.now()):
        if uploads.closing:
            break
        await looking.at(store, batch)
        if dry_run:
            # Nothing is removed, so the first batch would come for ever.
            break
    return looking.report


async def _due_batches(registry: DueIndex, until: float) -> AsyncIterator[list[str]]:
    """What is due at that time. Whoever looks at a batch tells the registry, so that the next one is another."""
    while batch := await registry.due(until, _BATCH):
        yield batch


class _Sweep:
    """One sweep on its way."""

    def __init__(
        self,
        uploads: Uploads,
        registry: DueIndex | None,
        *,
        dry_run: bool,
        found: Found | None,
        rest: Rest | None,
    ) -> None:
        self._rest = rest
        self.report = SweepReport()
        self._uploads = uploads
        self._registry = registry
        self._dry_run = dry_run
        self._found = found
        self._told = True
        self._stopped = ""
        self._due: dict[str, float] = {}
        self._gone: list[str] = []
        self._announced: list[str] = []

    async def at(self, store: RemovesUploads, batch: list[str]) -> None:
        """Looks at some uploads, then tells the registry. Raises SweepStopped."""
        announced, self._announced = self._announced, []
        began = time.monotonic()
        # Not several at a time: threads would spend more time on taking turns than on the disk.
        for at in range(0, len(batch), _TOGETHER):
            if self._uploads.closing or self._stopped:
                break
            await self._at_some(store, batch[at : at + _TOGETHER])
        await self._tell()
        if self._rest is not None:
            await asyncio.sleep(self._rest() * (time.monotonic() - began))
        if self._stopped:
            raise SweepStopped(
                f"nobody can tell who holds the uploads' locks: {self._stopped} "
                f"({self.report.seen} seen, {self.report.expired} removed until then)"
            )
        # Hooks that are slower than the removal would pile up.
        await self._uploads.hooks.wait_for(announced)

    async def end(self) -> None:
        """All uploads were looked at: the registry knows them all, if it could be told."""
        if self._registry is not None and self._told and not self._uploads.closing:
            try:
                await self._registry.mark_whole(whole=True)
            except RedisUnavailable as problem:
                logger.debug("the registry is not known to be whole: %s", problem)

    async def _at_some(self, store: RemovesUploads, upload_ids: list[str]) -> None:
        uploads = self._uploads
        self.report.seen += len(upload_ids)
        expired: list[str] = []
        for upload_id, found in zip(upload_ids, await uploads.load_each(upload_ids), strict=True):
            try:
                upload = found.upload if isinstance(found, UploadDamaged) else found
                if isinstance(upload, Upload) and uploads.is_due(upload):
                    expired.append(upload_id)
                    if self._found is not None:
                        await self._found(upload)
                else:
                    self._note(upload_id, await self._look_at(store, upload_id, found))
            except (LocksClosed, LocksUnavailable):
                raise
            except Exception as problem:  # noqa: BLE001 - the edge of one upload, which must not cost the others their sweep
                self._pass_over(upload_id, problem)
            if self._stopped:
                return
        if self._dry_run:
            self.report.expired += len(expired)
        else:
            await self._expire(expired)

    async def _look_at(
        self, store: RemovesUploads, upload_id: str, found: Upload | StorageError
    ) -> float | None:
        """Does what is to be done to one that is not due; when it is to be looked at again, None for never."""
        uploads, report = self._uploads, self.report
        match found:
            case UploadGone():
                return None
            case UploadNotFound():
                if not self._dry_run:
                    report.remains += await uploads.discard_fragment(upload_id)
                return None
            case BytesMissing() if not self._dry_run and await uploads.expire_missing(upload_id):
                report.expired += 1
                return None
            case StorageError():
                raise found
        if self._dry_run or found.finished or (found.joined and not found.complete):
            return uploads.due_at(found)
        report.finished += await uploads.recover_interrupted(upload_id)
        return uploads.now() + _LATER

    async def _expire(self, upload_ids: list[str]) -> None:
        if not upload_ids:
            return
        try:
            outcomes = await self._uploads.expire_each(upload_ids)
        except LocksClosed:
            return
        except LocksUnavailable as problem:
            self._stopped = str(problem)
            return
        for upload_id, outcome in outcomes.items():
            if outcome is True:
                self.report.expired += 1
                self._announced.append(upload_id)
                self._note(upload_id, None)
            elif outcome is False:
                self._note(upload_id, self._uploads.now() + _LATER)
            elif isinstance(outcome, UploadGone):
                self._note(upload_id, None)
            else:
                self._pass_over(upload_id, outcome)

    def _pass_over(self, upload_id: str, problem: Exception) -> None:
        if isinstance(problem, ProtocolError) and problem.code == "ERR_UNAVAILABLE":
            self._stopped = str(problem)
            return
        self.report.failed += 1
        skipped.counts["upload"] += 1
        # With a store that is away there would be one for each.
        level = logging.WARNING if self.report.failed <= _MOST_LOGGED else logging.DEBUG
        logger.log(level, "the sweep passed %s over: %s", upload_id, problem)
        self._note(upload_id, self._uploads.now() + _LATER)

    def skip(self, path: str, problem: Exception) -> None:
        """Passes a directory over, or a name that nobody could be told."""
        self.report.skipped += 1
        skip_entry(path, problem)

    def _note(self, upload_id: str, due: float | None) -> None:
        """When an upload is to be looked at again; None for never."""
        if due is None:
            self._gone.append(upload_id)
        else:
            self._due[upload_id] = due

    async def _tell(self) -> None:
        due, self._due = self._due, {}
        gone, self._gone = self._gone, []
        if self._registry is None or self._dry_run:
            return
        try:
            await self._registry.update(due, gone)
        except RedisUnavailable as problem:
            self._told = False
            logger.debug("the registry was not told of %d uploads: %s", len(due), problem)
