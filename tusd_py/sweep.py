"""The sweep: what has expired is removed, what a crash left undone is made up for, what it left behind goes.

It looks at every upload of the store, or at those that the registry knows to be due, and decides nothing itself: whether an
upload is due, and how it ends, is told by `uploads.py` under the upload's lock. Any number of sweeps may run at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from tusd_py.protocol.errors import ProtocolError
from tusd_py.state import StateUnavailable
from tusd_py.state.registry import Registry, SweepKind, SweepRecord
from tusd_py.storage.base import (
    RemovesUploads,
    StorageError,
    Upload,
    UploadGone,
    UploadNotFound,
)
from tusd_py.uploads import Uploads

logger = logging.getLogger(__name__)

_BATCH = 500
"""Uploads that are looked at before the registry is told what was found."""
_AT_ONCE = 8
"""Uploads of a batch at a time: the removal of one goes on in a thread while others are read."""
_LATER = 60.0
"""Seconds after which an upload is looked at again that could not be dealt with, for instance because it is in use."""
_MOST_LOGGED = 20
"""Uploads that one sweep passes over with a warning each."""


@dataclass(slots=True)
class SweepReport:
    """What a sweep did: counts of uploads, and of remains of crashes. failed: uploads that it had to pass over.

    With a dry run, expired and remains are what would have gone. remains of the store as a whole are then not looked for.
    """

    seen: int = 0
    expired: int = 0
    finished: int = 0
    remains: int = 0
    failed: int = 0

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


Found = Callable[[Upload], Awaitable[None]]
"""Awaited with each upload that has expired, before it is removed."""


async def sweep(
    uploads: Uploads,
    *,
    registry: Registry | None = None,
    dry_run: bool = False,
    found: Found | None = None,
) -> SweepReport:
    """Looks at every upload once, and tidies the store. Raises StorageError where the store as a whole fails.

    registry: built anew on the way. May run at any time, beside requests and beside other sweeps.
    """
    looking = _Sweep(uploads, registry, dry_run=dry_run, found=found)
    store = uploads.store
    if not isinstance(store, RemovesUploads):
        return looking.report
    batch: list[str] = []
    async for upload_id in store.ids():
        if uploads.closing:
            return looking.report
        batch.append(upload_id)
        if len(batch) == _BATCH:
            await looking.at(store, batch)
            batch.clear()
    await looking.at(store, batch)
    if not dry_run:
        looking.report.remains += await store.tidy(tombstone_ttl=uploads.rules.tombstone_ttl)
        await looking.end()
    return looking.report


async def sweep_due(
    uploads: Uploads,
    registry: Registry,
    *,
    dry_run: bool = False,
    found: Found | None = None,
) -> SweepReport:
    """Looks at the uploads that the registry knows to be due; at all of them if it may lack some.

    Raises StateUnavailable when Redis cannot be asked, StorageError.
    """
    if not await registry.is_whole():
        return await sweep(uploads, registry=registry, dry_run=dry_run, found=found)
    looking = _Sweep(uploads, registry, dry_run=dry_run, found=found)
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


async def _due_batches(registry: Registry, until: float) -> AsyncIterator[list[str]]:
    """What is due at that time. Whoever looks at a batch tells the registry, so that the next one is another."""
    while batch := await registry.due(until, _BATCH):
        yield batch


class _Sweep:
    """One sweep on its way."""

    def __init__(
        self, uploads: Uploads, registry: Registry | None, *, dry_run: bool, found: Found | None
    ) -> None:
        self.report = SweepReport()
        self._uploads = uploads
        self._registry = registry
        self._dry_run = dry_run
        self._found = found
        self._told = True
        self._due: dict[str, float] = {}
        self._gone: list[str] = []

    async def at(self, store: RemovesUploads, batch: list[str]) -> None:
        """Looks at some uploads, then tells the registry."""
        waiting = iter(batch)

        async def look() -> None:
            for upload_id in waiting:
                if self._uploads.closing:
                    return
                await self._at_one(store, upload_id)

        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(look())
        await self._tell()

    async def end(self) -> None:
        """All uploads were looked at: the registry knows them all, if it could be told."""
        if self._registry is not None and self._told and not self._uploads.closing:
            try:
                await self._registry.mark_whole(whole=True)
            except StateUnavailable as problem:
                logger.debug("the registry is not known to be whole: %s", problem)

    async def _at_one(self, store: RemovesUploads, upload_id: str) -> None:
        self.report.seen += 1
        try:
            due = await self._look_at(store, upload_id)
        except UploadGone:
            due = None
        except (StorageError, ProtocolError) as problem:
            self.report.failed += 1
            # With a store or a Redis that is away there would be one for each.
            level = logging.WARNING if self.report.failed <= _MOST_LOGGED else logging.DEBUG
            logger.log(level, "the sweep passed %s over: %s", upload_id, problem)
            due = self._uploads.now() + _LATER
        if due is None:
            self._gone.append(upload_id)
        else:
            self._due[upload_id] = due
        # Reading is done inline: requests get their turn between two uploads.
        await asyncio.sleep(0)

    async def _look_at(self, store: RemovesUploads, upload_id: str) -> float | None:
        """Does what is to be done; when the upload is to be looked at again, None for never."""
        uploads, report = self._uploads, self.report
        try:
            upload = await uploads.load(upload_id)
        except UploadNotFound:
            if not self._dry_run:
                report.remains += await store.discard_fragment(upload_id)
            return None
        if uploads.is_due(upload):
            if self._found is not None:
                await self._found(upload)
            if self._dry_run:
                report.expired += 1
            elif await uploads.expire(upload_id):
                report.expired += 1
                return None
            return uploads.now() + _LATER
        if self._dry_run or upload.finished or (upload.joined and not upload.complete):
            return uploads.expires_at(upload)
        report.finished += await uploads.make_up(upload_id)
        return uploads.now() + _LATER

    async def _tell(self) -> None:
        due, self._due = self._due, {}
        gone, self._gone = self._gone, []
        if self._registry is None or self._dry_run:
            return
        try:
            await self._registry.update(due, gone)
        except StateUnavailable as problem:
            self._told = False
            logger.debug("the registry was not told of %d uploads: %s", len(due), problem)
