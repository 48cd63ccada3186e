"""Remove uploads that are due, and what crashes left behind: one step of a sweep (`sweep.py`), under the uploads' locks.

Uploads that are locked are in use and stay. Not for: when uploads are due (`expiry.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tusd_py.events.model import EventType, RequestView
from tusd_py.events.outbox_record import id_of
from tusd_py.locks.base import Lease, LeaseLost
from tusd_py.storage.base import (
    BytesMissing,
    StorageError,
    Upload,
    UploadDamaged,
    UploadNotFound,
    is_valid_id,
)
from tusd_py.uploads.model import lacks_only_finish
from tusd_py.uploads.operation import Collaborators, Operation
from tusd_py.uploads.removal import Remover
from tusd_py.uploads.sweep_guard import Clock


class Expirer(Operation):
    """Removes due uploads of one store."""

    def __init__(self, collaborators: Collaborators, remover: Remover) -> None:
        super().__init__(collaborators)
        self._remover = remover

    async def expire_each(
        self,
        upload_ids: Sequence[str],
        *,
        refused: Collection[str] = (),
        now: Clock | None = None,
    ) -> dict[str, bool | StorageError]:
        """Remove the uploads that are due and not locked, except those that have all their bytes.

        Args:
            upload_ids: The uploads.
            refused: Those of them whose finish was refused: they are removed although they have all their bytes.
            now: The clock of a sweep.

        Returns, by id, whether each was removed, or the error. Raises LocksUnavailable, LocksClosed.
        """
        outcomes: dict[str, bool | StorageError] = dict.fromkeys(upload_ids, False)
        async with self._locks.try_acquire_many(upload_ids) as leases:
            due, failed = await self._due(leases, refused, now)
            outcomes |= failed
            fences = {upload_id: lease.fence for upload_id, lease in leases.items()}
            began = self._expiry.now()
            unpublished = await self._publisher.record_removals(
                EventType.POST_EXPIRE, due, RequestView(), fences
            )
            ids = {each.id: id_of(EventType.POST_EXPIRE, each.info) for each in due}
            done = await self._store.remove_each(
                due, fences=fences, event_ids=ids, unpublished=unpublished
            )
            removed = [each for each, outcome in zip(due, done, strict=True) if outcome is True]
            await self._remover.record_late(
                EventType.POST_EXPIRE, removed, unpublished, RequestView(), since=began
            )
        outcomes |= {upload.id: outcome for upload, outcome in zip(due, done, strict=True)}
        for upload in removed:
            self._due_marks.forget(upload.id)
            self._counters.uploads_expired += 1
            self._quotas.removed(upload.info)
            self._publisher.publish(EventType.POST_EXPIRE, upload, RequestView())
        return outcomes

    async def _due(
        self, leases: Mapping[str, Lease], refused: Collection[str], now: Clock | None
    ) -> tuple[list[Upload], dict[str, StorageError]]:
        """Of the uploads whose locks are held, those that are due, without stale events, and the errors of those that stay."""
        due: list[Upload] = []
        failed: dict[str, StorageError] = {}
        held = list(leases)
        self._pending.refresh(held)
        for upload_id, found in zip(held, await self._access.load_each(held), strict=True):
            upload = found.upload if isinstance(found, UploadDamaged) else found
            if isinstance(upload, Upload) and self._expiry.is_due(upload, now and now()):
                if upload is found and lacks_only_finish(upload) and upload_id not in refused:
                    # It may have got its last byte since the sweep looked.
                    continue
                try:
                    await self._publisher.withdraw_stale(upload, leases[upload_id].fence)
                    due.append(upload)
                except LeaseLost:
                    pass
                except StorageError as problem:
                    failed[upload_id] = problem
            elif isinstance(found, StorageError):
                failed[upload_id] = found
        return due, failed

    # Uploads without bytes, fragments, leftovers

    async def expire_missing(self, upload_id: str, *, now: Clock | None = None) -> bool:
        """Remove an unfinished upload whose bytes have been missing for its `expire_after`; return whether it was removed.

        now: the clock of a sweep.
        """
        async with self._guard.if_free(upload_id) as lease:
            if lease is not None:
                try:
                    await self._access.load(upload_id)
                except BytesMissing as problem:
                    upload = problem.upload
                    if await self.is_missing_too_long(upload, now=now):
                        await self._remover.remove(
                            upload, EventType.POST_EXPIRE, RequestView(), lease
                        )
                        self._counters.uploads_expired += 1
                        return True
        return False

    async def is_missing_too_long(
        self, upload: Upload, *, marks: bool = True, now: Clock | None = None
    ) -> bool:
        """Return whether the bytes of an unfinished upload have been missing for its `expire_after`.

        Finished uploads stay: no further bytes are expected, so their age is no reason to remove them.
        marks: record that the bytes are missing since now, if nothing is recorded. now: the clock of a sweep.
        """
        after = self._expiry.expire_after(upload.info)
        if upload.finished or not after:
            return False
        since = await self._store.missing_since(upload.id, marks=marks)
        return since + after <= (now or self._expiry.now)()

    async def discard_fragment(self, upload_id: str) -> bool:
        """Remove what a crash left of a creation, unless it is locked; return whether it did. Raises StorageError."""
        async with self._guard.if_free(upload_id) as lease:
            if lease is not None:
                return await self._store.discard_fragment(upload_id, fence=lease.fence)
        return False

    async def tidy(self) -> int:
        """Remove the leftovers of crashes and old tombstones; return how many."""
        removed = await self._store.tidy(
            tombstone_ttl=self._policy.tombstone_ttl, locks=self._locks
        )
        return removed + await self._locks.tidy(self._is_gone)

    async def _is_gone(self, upload_id: str) -> bool:
        """Whether there is neither an upload nor a tombstone."""
        if not is_valid_id(upload_id):
            # Names that no lock can have.
            return False
        try:
            await self._store.load(upload_id)
        except UploadNotFound:
            return True
        except StorageError:
            return False
        return False
