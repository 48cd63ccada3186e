"""What operators do to one upload besides removing it (`removal.py`): end its request, keep it longer."""

from __future__ import annotations

from tusd_py.storage.base import LONGEST_SECONDS, Upload
from tusd_py.uploads.operation import Operation


class Operators(Operation):
    """Operations on the uploads of one store, for operators. Each checks no access."""

    async def interrupt(self, upload_id: str) -> None:
        """End the request that is writing to an upload, in whichever server; its client may resume.

        Raises ProtocolError: a 423 if the request does not end, a 503 if locks are unavailable.
        """
        async with await self._guard.acquire(upload_id):
            pass

    async def extend(self, upload_id: str, seconds: float) -> Upload | None:
        """Keep an upload for at least so many seconds from now; return it, or None if its lock is held or lost.

        An unfinished one expires so long after now, unless bytes arrive; a finished one is removed so long after now, if
        finished ones are removed at all. An upload that is kept for longer already stays as it is. Raises StorageError.
        """
        async with self._guard.if_free(upload_id) as lease:
            if lease is None:
                return None
            upload = await self._access.load(upload_id)
            due, until = self._expiry.due_at(upload), self._expiry.now() + seconds
            if due is None or due >= until:
                return upload
            finished_at = upload.info.finished_at
            if finished_at is None or upload.info.is_partial:
                kept = min(until - upload.changed_at, LONGEST_SECONDS)
                extended = upload.with_info(expire_after=kept)
            else:
                extended = upload.with_info(retain=min(until - finished_at, LONGEST_SECONDS))
            await self._store.save(extended.info, fence=lease.fence)
            # Cleared first: a later time than the one marked before would be ignored.
            self._due_marks.mark(upload_id, None)
            self._due_marks.keep(extended, self._expiry.due_at(extended))
            return extended
