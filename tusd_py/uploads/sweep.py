"""The sweep: remove uploads that have expired, finish uploads that a crash interrupted, remove what crashes left behind.

It checks every upload of the store, or those that are due by the index. Whether an upload is due is decided in `expiry.py`,
under the upload's lock. Any number of sweeps may run at a time.

Uploads are loaded, locked and removed in batches, since a call costs mostly the round trip to a thread or to Redis.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

from tusd_py.locks.base import LocksClosed, LocksUnavailable
from tusd_py.protocol.errors import ProtocolError
from tusd_py.redis import RedisUnavailable
from tusd_py.redis.due_index import DueIndex, OpenState, SweepKind, SweepRecord
from tusd_py.storage import skipped
from tusd_py.storage.base import (
    BytesMissing,
    StorageError,
    Upload,
    UploadDamaged,
    UploadGone,
    UploadNotFound,
    VolumeMissing,
    batched_ids,
)
from tusd_py.storage.skipped import skip_entry
from tusd_py.uploads.due_marks import open_state
from tusd_py.uploads.model import lacks_only_finish
from tusd_py.uploads.service import Uploads
from tusd_py.uploads.sweep_guard import Clock

logger = logging.getLogger(__name__)

_BATCH = 512
"""Uploads that are checked between two updates of the index."""
_LOCK_BATCH = 64
"""Uploads that are loaded, locked and removed together. A client that resumes one of them waits for all."""
_RETRY_SECONDS = 60.0
"""Time after which an upload is checked again that could not be swept, for instance because it is locked."""
_MAX_WARNINGS = 20
"""Failures per sweep that are logged as warnings; further ones are logged at DEBUG."""


@dataclass(slots=True)
class SweepReport:
    """What a sweep did, as counts of uploads. A dry run counts what would have been removed.

    finished: uploads that a crash had interrupted. remains: leftovers of crashes; a dry run counts only those of uploads.
    failed: uploads that could not be swept. skipped: directory entries that could not be read. held: uploads that are due but
    not removed yet, because of held_because; after a dry run that alone tells why a sweep would be held.
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
        """The record of this sweep, ending now."""
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
    """The sweep stopped because locks are unavailable; the text says why."""


PauseFactor = Callable[[], float]
"""Called after each batch: seconds to pause per second of work, to leave capacity to clients."""


@dataclass(frozen=True, slots=True)
class Expired:
    """An upload that a sweep removes. bytes: its size; since: when it expired, in seconds since the epoch."""

    upload: str
    bytes: int
    since: float


Tell = Callable[[Expired], Awaitable[None]]
"""Awaited with each upload that is due, before it is removed."""


class Sweep:
    """One sweep. May run beside requests and other sweeps.

    Args:
        uploads: The uploads.
        due_index: Updated on the way; None for none.
        dry_run: Change nothing, count only.
        removes: False for a sweep that finishes what a crash interrupted and updates the index, but removes nothing.
        tell: See `Tell`.
        pause_factor: See `PauseFactor`.
        quiet: Neither log nor count what cannot be read: for a count before a sweep, which does both.
        now: The clock that decides what is due; by default that of the uploads.
    """

    def __init__(
        self,
        uploads: Uploads,
        due_index: DueIndex | None = None,
        *,
        dry_run: bool = False,
        removes: bool = True,
        tell: Tell | None = None,
        pause_factor: PauseFactor | None = None,
        quiet: bool = False,
        now: Clock | None = None,
    ) -> None:
        self._uploads = uploads
        self._due_index = due_index
        self._dry_run = dry_run
        self._removes = removes and not dry_run
        self._tell = tell
        self._pause_factor = pause_factor
        self._quiet = quiet
        self._now = now or uploads.expiry.now
        self._report = SweepReport()
        self._is_index_complete = True
        self._stopped = ""
        self._next: dict[str, float | None] = {}
        """When each upload is to be checked again; None for never."""
        self._states: dict[str, OpenState | None] = {}
        self._expired_ids: list[str] = []
        self._refused: set[str] = set()

    async def check_all(self) -> SweepReport:
        """Check every upload once, and remove the leftovers of crashes.

        Raises:
            StorageError: The store as a whole failed.
            SweepStopped: Locks are unavailable.
        """
        data_mark = await self._data_mark()
        async for batch in batched_ids(self._uploads.store.ids(self._skip), _BATCH):
            if self._uploads.closing:
                return self._report
            await self._check(batch)
        if self._removes:
            await self._tidy()
        await self._end(data_mark)
        return self._report

    async def check_due(self) -> SweepReport:
        """Check the uploads that are due by the index; all uploads if there is none, or it may be incomplete.

        Raises RedisUnavailable, StorageError, SweepStopped.
        """
        if self._due_index is None or not await self._due_index.is_whole():
            return await self.check_all()
        async for batch in _due_batches(self._due_index, self._now()):
            if self._uploads.closing:
                break
            await self._check(batch)
            if self._dry_run:
                # Nothing is removed, so the same batch would come again.
                break
        return self._report

    async def _check(self, batch: list[str]) -> None:
        """Check some uploads, then update the index. Raises SweepStopped."""
        expired_ids, self._expired_ids = self._expired_ids, []
        began = time.monotonic()
        # One batch at a time: several threads would contend for the interpreter more than they use the disk.
        for at in range(0, len(batch), _LOCK_BATCH):
            if self._uploads.closing or self._stopped:
                break
            await self._check_batch(batch[at : at + _LOCK_BATCH])
        await self._update_index()
        if self._pause_factor is not None:
            await asyncio.sleep(self._pause_factor() * (time.monotonic() - began))
        self._raise_if_stopped()
        # Else events would pile up if hooks are slower than removals.
        await self._uploads.hooks.wait_for(expired_ids)

    async def _tidy(self) -> None:
        """Remove the leftovers of crashes. Raises SweepStopped, StorageError."""
        try:
            self._report.remains += await self._uploads.tidy()
        except LocksClosed:
            return
        except LocksUnavailable as problem:
            self._stopped = str(problem)
            self._raise_if_stopped()

    def _raise_if_stopped(self) -> None:
        if self._stopped:
            raise SweepStopped(
                f"the uploads' locks are unavailable: {self._stopped} "
                f"({self._report.seen} seen, {self._report.expired} removed until then)"
            )

    async def _data_mark(self) -> bytes:
        """Return the mark of what is in Redis before the sweep; empty if the sweep cannot complete the index."""
        if self._due_index is not None and not self._dry_run:
            with suppress(RedisUnavailable):
                return await self._due_index.data_mark()
        return b""

    async def _end(self, data_mark: bytes) -> None:
        """Mark the index as complete, unless an update of it failed, or Redis was emptied during the sweep."""
        is_complete = bool(data_mark) and self._is_index_complete and not self._uploads.closing
        if self._due_index is not None and is_complete:
            try:
                await self._due_index.mark_whole(data_mark)
            except RedisUnavailable as problem:
                logger.debug("the index could not be marked as complete: %s", problem)

    async def _check_batch(self, upload_ids: list[str]) -> None:
        uploads = self._uploads
        self._report.seen += len(upload_ids)
        expired: list[str] = []
        for upload_id, found in zip(upload_ids, await uploads.load_each(upload_ids), strict=True):
            try:
                upload = found.upload if isinstance(found, UploadDamaged) else found
                if isinstance(upload, Upload) and upload.id != upload_id:
                    # Another server's record may be named otherwise.
                    self._next[upload_id] = None
                    upload_id = upload.id  # noqa: PLW2901
                is_due = isinstance(upload, Upload) and uploads.expiry.is_due(upload, self._now())
                if is_due and isinstance(found, Upload) and await self._is_kept(found):
                    self._next[upload_id] = self._now() + _RETRY_SECONDS
                elif is_due and isinstance(upload, Upload):
                    expired.append(upload_id)
                    if not self._removes:
                        self._next[upload_id] = uploads.expiry.check_at(upload)
                    if self._tell is not None:
                        since = uploads.expiry.due_at(upload) or upload.changed_at
                        await self._tell(Expired(upload.id, upload.offset, since))
                else:
                    self._next[upload_id] = await self._check_one(upload_id, found)
            except (LocksClosed, LocksUnavailable, VolumeMissing):
                raise
            except Exception as problem:  # noqa: BLE001 - the edge of one upload, which must not cost the others their sweep
                self._record_failure(upload_id, problem)
            if self._stopped:
                return
        if self._removes:
            await self._expire(expired)
        else:
            self._report.expired += len(expired)

    async def _is_kept(self, upload: Upload) -> bool:
        """Finish an upload that is due and has all its bytes. Returns whether it stays: unless that is refused (4xx).

        Raises the ProtocolError of any other failure: the next sweep tries again.
        """
        if not lacks_only_finish(upload):
            return False
        if not self._dry_run:
            try:
                self._report.finished += await self._uploads.recover_interrupted(upload.id)
            except ProtocolError as problem:
                if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise
                self._refused.add(upload.id)
                return False
        return True

    async def _check_one(self, upload_id: str, found: Upload | StorageError) -> float | None:
        """Finish or clean up an upload that is not due. Returns when to check it again; None for never."""
        uploads, report = self._uploads, self._report
        match found:
            case UploadGone():
                return None
            case UploadNotFound():
                if self._removes:
                    report.remains += await uploads.discard_fragment(upload_id)
                return None
            case BytesMissing() if await self._is_missing_too_long(found.upload):
                report.expired += 1
                return None if self._removes else self._now() + _RETRY_SECONDS
            case StorageError():
                raise found
        self._states[upload_id] = open_state(found)
        if self._dry_run or found.finished or (found.joined and not found.complete):
            return uploads.expiry.check_at(found)
        report.finished += await uploads.recover_interrupted(upload_id)
        return self._now() + _RETRY_SECONDS

    async def _is_missing_too_long(self, upload: Upload) -> bool:
        """Whether an upload whose bytes are missing was removed for that, or would be."""
        if not self._removes:
            return await self._uploads.is_missing_too_long(upload, marks=False, now=self._now)
        return await self._uploads.expire_missing(upload.id, now=self._now)

    async def _expire(self, upload_ids: list[str]) -> None:
        if not upload_ids:
            return
        try:
            outcomes = await self._uploads.expire_each(
                upload_ids, refused=self._refused, now=self._now
            )
        except LocksClosed:
            return
        except LocksUnavailable as problem:
            self._stopped = str(problem)
            return
        for upload_id, outcome in outcomes.items():
            if outcome is True:
                self._report.expired += 1
                self._expired_ids.append(upload_id)
                self._next[upload_id] = None
            elif outcome is False:
                self._next[upload_id] = self._now() + _RETRY_SECONDS
            elif isinstance(outcome, VolumeMissing):
                raise outcome
            elif isinstance(outcome, UploadGone):
                self._next[upload_id] = None
            else:
                self._record_failure(upload_id, outcome)

    def _record_failure(self, upload_id: str, problem: Exception) -> None:
        if isinstance(problem, ProtocolError) and problem.code == "ERR_UNAVAILABLE":
            self._stopped = str(problem)
            return
        self._report.failed += 1
        if not self._quiet:
            skipped.counts["upload"] += 1
            # While a store is unavailable every upload fails.
            level = logging.WARNING if self._report.failed <= _MAX_WARNINGS else logging.DEBUG
            logger.log(level, "the sweep skipped %s: %s", upload_id, problem)
        self._next[upload_id] = self._now() + _RETRY_SECONDS

    def _skip(self, path: str, problem: Exception) -> None:
        """Count and log a directory entry that cannot be read."""
        self._report.skipped += 1
        if not self._quiet:
            skip_entry(path, problem)

    async def _update_index(self) -> None:
        checks, self._next = self._next, {}
        states, self._states = self._states, {}
        if self._due_index is None or self._dry_run:
            return
        due = {upload_id: at for upload_id, at in checks.items() if at is not None}
        try:
            await self._due_index.update(due, checks.keys() - due.keys(), states)
        except RedisUnavailable as problem:
            self._is_index_complete = False
            logger.debug("the index was not updated for %d uploads: %s", len(due), problem)


async def _due_batches(due_index: DueIndex, until: float) -> AsyncIterator[list[str]]:
    """Batches of uploads that are due, until there is nothing new. The caller updates the index for each batch."""
    before: set[str] = set()
    while not before.issuperset(batch := await due_index.due(until, _BATCH)):
        before = set(batch)
        yield batch
