"""When uploads are due: at their expiry, or at the end of their retention.

Usually an upload's own age decides. The parts of a final (tus 1.0.0, "Concatenation") live as long as it does, and a final that
waits for its parts is as young as the youngest. Not for: removing what is due (`expiring.py`, `sweep.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from tusd_py.storage.base import (
    BytesMissing,
    RecordUnreadable,
    Store,
    Upload,
    UploadDamaged,
    UploadInfo,
    UploadUnreachable,
)
from tusd_py.uploads.model import lacks_only_finish
from tusd_py.uploads.pending_finals import PendingFinals
from tusd_py.uploads.policy import UploadPolicy
from tusd_py.uploads.sweep_guard import Clock, is_far

_LAST_DATE = 253_402_300_799.0
"""The end of the year 9999."""
_NEVER = float("inf")
_DEPENDENT_SECONDS = 3_600.0
"""Time after which a sweep looks again at an upload that others keep."""


class Expiry:
    """The expiry of the uploads of one store. All times are in seconds since the epoch.

    pending: the finals that wait for parts. clock: returns the time.
    """

    def __init__(
        self,
        store: Store,
        policy: UploadPolicy,
        pending: PendingFinals,
        clock: Clock,
    ) -> None:
        self._store = store
        self._joiner = store.joiner
        self._policy = policy
        self._pending = pending
        self.now = clock

    def expire_after(self, info: UploadInfo) -> float:
        """Seconds without a byte after which an unfinished upload expires; 0 for never."""
        return self._policy.expire_after if info.expire_after is None else info.expire_after

    def expires_at(self, upload: Upload) -> float | None:
        """When an upload expires if no byte comes; None for never, and for a time that no date can express.

        Parts expire even when they are finished, as they are useless by themselves.
        """
        if upload.expires_at is not None:
            return None if upload.expires_at == _NEVER else upload.expires_at
        after = self.expire_after(upload.info)
        if not after or (upload.finished and not upload.info.is_partial):
            return None
        at = upload.changed_at + after
        return at if at < _LAST_DATE else None

    def due_at(self, upload: Upload) -> float | None:
        """When an upload is to be removed: at its expiry, or at the end of its retention; None for never."""
        finished_at = upload.info.finished_at
        if finished_at is None or upload.info.is_partial:
            return self.expires_at(upload)
        retain = upload.info.retain
        if retain is None:
            retain = self._policy.retain_finished
        return finished_at + retain if retain else None

    def check_at(self, upload: Upload) -> float | None:
        """When a sweep has to look at an upload: when it is due, or whether others still keep it; None for never."""
        if upload.expires_at == _NEVER:
            return self.now() + _DEPENDENT_SECONDS
        return self.due_at(upload)

    def is_due(self, upload: Upload, at: float | None = None) -> bool:
        """Whether the expiry or the retention of an upload is over, now or at that time."""
        due = self.due_at(upload)
        return due is not None and due <= (self.now() if at is None else at)

    async def is_over(self, upload: Upload) -> bool:
        """Whether clients are told that an upload is gone: it is due, and the clock that says so can be right.

        While the clock is far from the last sweep's nothing is removed, and a client that was told so would start anew.
        """
        if lacks_only_finish(upload):
            return False
        # Read once: the clock may be set while the marks are read.
        now = self.now()
        if not self.is_due(upload, now):
            return False
        times = await self._store.sweep_marks.read()
        return not is_far(times.ended_at, now)

    # Uploads whose expiry depends on others

    async def with_expiry(self, upload: Upload) -> Upload:
        """The upload with its expiry, as far as that depends on other uploads. Raises StorageError.

        If parts are removed when joined, they live no longer than their finals wait for them. While one of the others cannot be
        read, the upload does not expire.
        """
        try:
            return await self._with_others(upload)
        except (UploadDamaged, BytesMissing, RecordUnreadable, UploadUnreachable):
            # Not passed on: a caller would take it for an error of the upload that it asked for.
            return upload._replace(expires_at=_NEVER)

    async def _with_others(self, upload: Upload) -> Upload:
        info = upload.info
        if not upload.joined:
            return await self._with_parts(upload)
        if not info.is_partial or info.foreign or self._joiner is None:
            return upload
        final_ids = await self._joiner.finals_awaiting(upload.id)
        if not final_ids:
            return upload
        finals = await self._finals(final_ids, upload.id)
        living = [final for final in finals if not final.finished]
        if any(map(lacks_only_finish, living)):
            return upload._replace(expires_at=_NEVER)
        if living:
            times = [self.expires_at(each) for each in (upload, *living)]
            known = [time for time in times if time is not None]
            latest = max(known) if len(known) == len(times) else _NEVER
            return upload._replace(expires_at=latest)
        if finals and self._policy.remove_parts_when_joined:
            return upload._replace(expires_at=0.0)
        return upload

    async def _finals(self, final_ids: Sequence[str], part_id: str) -> list[Upload]:
        """Load the finals that exist and list the part, each with the age of its parts."""
        found: list[Upload] = []
        for final_id in final_ids:
            final = await self._pending.final_of(part_id, final_id)
            if final is not None:
                found.append(final if final.joined else await self._with_parts(final))
        return found

    async def _with_parts(self, final: Upload) -> Upload:
        """A final that waits for its parts, with their age; if it is due, also whether it has them all."""
        final = final._replace(changed_at=await self._pending.changed_at(final))
        if self.is_due(final):
            final = final._replace(has_parts=await self._pending.all_complete(final))
        return final

    async def record_growth(self, part: Upload) -> None:
        """Update the age of the finals that list a part which got bytes. Raises StorageError."""
        if part.info.is_partial and self._joiner is not None:
            self._pending.touch(await self._joiner.finals_awaiting(part.id), part.changed_at)
