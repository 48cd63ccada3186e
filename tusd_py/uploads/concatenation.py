"""Join the parts of a final upload, at once or when the last part is finished (tus 1.0.0, "Concatenation").

The caller holds the final's lock, and passes its fence. Parts need no lock, since a finished part never changes; one that is
only complete may change until its last request ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

from tusd_py.locks.base import Fence
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.storage.base import (
    BytesMissing,
    Joiner,
    StorageError,
    Upload,
    UploadDamaged,
    UploadGone,
    UploadInfo,
    UploadNotFound,
)
from tusd_py.uploads.operation import Collaborators, Operation

logger = logging.getLogger(__name__)

_YIELD_EVERY = 50
_ASKED_TOGETHER = 32
"""Parts whose finals are listed at the same time."""
_MAX_WAITING = 100
"""Finals that may wait for one part."""
_MAX_WAITING_PARTS = 20_000
"""Parts that a final may have, times the finals that may wait for one of them; for a single one there is no limit."""
_MAX_JOINS = 1000
"""Joins that run or wait in one process."""


class Concatenation(Operation):
    """Joins uploads. finish_part: finishes a complete part unless it is locked; returns whether it is finished."""

    def __init__(
        self, collaborators: Collaborators, *, finish_part: Callable[[str], Awaitable[bool]]
    ) -> None:
        super().__init__(collaborators)
        self._finish_part = finish_part
        self._joins = 0
        self._joining_bytes = 0

    async def parts(
        self, ids: Sequence[str], check: Callable[[UploadInfo], None]
    ) -> dict[str, Upload]:
        """Load the parts of a final, by id. Raises a 404 for one that is unknown or gone, a 400 for one that is no part.

        check: raises for a part that the client may not join; called before anything about the part is revealed.
        """
        found: dict[str, Upload] = {}
        for position, part_id in enumerate(dict.fromkeys(ids), start=1):
            try:
                part = await self._access.current(part_id)
            except (UploadGone, ProtocolError):
                raise errors.not_found() from None
            except (UploadDamaged, BytesMissing) as problem:
                check(problem.upload.info)
                raise
            check(part.info)
            if not part.info.is_partial:
                raise errors.invalid_concat("one of the URLs is not that of a partial upload")
            found[part_id] = part
            if position % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
        return found

    @staticmethod
    def length_of(ids: Sequence[str], parts: Mapping[str, Upload]) -> int | None:
        """The length of a final in bytes; None while that of a part is unknown."""
        lengths = [parts[part_id].length for part_id in ids]
        known = [length for length in lengths if length is not None]
        return sum(known) if len(known) == len(lengths) else None

    def check_repeats(self, ids: Sequence[str], parts: Mapping[str, Upload]) -> None:
        """Raise a 413 if the parts that are listed repeatedly add more bytes than the policy allows."""
        most = self._policy.max_concat_repeats
        repeats = Counter(ids)
        added = sum((repeats[each] - 1) * (parts[each].length or 0) for each in parts)
        if most and added > most:
            raise errors.too_many_repeats(most)

    async def check_waiting(self, ids: Sequence[str], parts: Mapping[str, Upload]) -> None:
        """Raise a 400 if a new final would wait for its parts, and enough others wait for one of them.

        Each request for a part loads the finals that wait for it, whose records are as long as their lists of parts: the more
        of these, the fewer may wait. It is no 503, as they may wait for days.
        """
        if self._joiner is None or all(part.finished for part in parts.values()):
            return
        most = min(_MAX_WAITING, _MAX_WAITING_PARTS // len(ids))
        distinct = list(parts)
        for at in range(0, len(distinct), _ASKED_TOGETHER):
            some = distinct[at : at + _ASKED_TOGETHER]
            listed = await asyncio.gather(*map(self._joiner.finals_awaiting, some))
            for part_id, final_ids in zip(some, listed, strict=True):
                if len(final_ids) < max(most, 1):
                    continue
                waiting = await self._still_waiting(final_ids, part_id)
                if waiting >= max(most, 1):
                    raise errors.too_many_waiting(waiting)

    async def _still_waiting(self, final_ids: Sequence[str], part_id: str) -> int:
        """Count the finals that wait for a part: some that are listed may have been removed or joined meanwhile."""
        count = 0
        for final_id in final_ids:
            try:
                final = await self._pending.final_of(part_id, final_id)
            except StorageError:
                # It cannot be told.
                count += 1
            else:
                count += final is not None and not final.joined
        return count

    async def begin(self, final: Upload, fence: Fence) -> Upload:
        """Join the parts of a new final, or register it to be joined when the last part is finished.

        Raises UploadNotFound for a part that was removed meanwhile.
        """
        if self._joiner is None:
            raise errors.invalid_concat("this server's store cannot join uploads")
        await self._joiner.await_parts(list(dict.fromkeys(final.info.parts)), final.id)
        # Checked after registering: a part that finishes meanwhile either sees the final or is seen finished.
        try:
            return await self._try_join(final, self._joiner, fence)
        except UploadGone as problem:
            raise UploadNotFound(str(problem)) from None

    async def try_join(self, final: Upload, fence: Fence) -> Upload:
        """Join a final under its lock if all parts are finished; else return it with its length, as far as known.

        Raises UploadGone if a part was removed, so that the final can never be joined.
        """
        if final.joined or self._joiner is None:
            return final
        try:
            return await self._try_join(final, self._joiner, fence)
        except UploadNotFound:
            # Its bytes may be temporarily unavailable.
            return final

    async def _try_join(self, final: Upload, joiner: Joiner, fence: Fence) -> Upload:
        missing = await self._pending.missing(final)
        while missing is not None and await self._recover_part(missing):
            missing = await self._pending.missing(final)
        length = await self._pending.length(final)
        self._policy.check_length(final, length)
        pending = final.with_info(length=length)
        if missing is not None:
            return pending
        return await self._join(pending, joiner, fence, is_counted=final.length is not None)

    async def _recover_part(self, part_id: str) -> bool:
        """Finish a part that is complete, as after a crash before its finish. Returns whether it is finished."""
        part = await self._store.load(part_id)
        if part.finished or not part.complete:
            return part.finished
        try:
            return await self._finish_part(part_id)
        except (ProtocolError, StorageError) as problem:
            logger.warning("the part %s cannot be finished now: %s", part_id, problem)
            return False

    async def _join(
        self, final: Upload, joiner: Joiner, fence: Fence, *, is_counted: bool
    ) -> Upload:
        """Join parts that were all seen finished. Returns the final unchanged if a part is not finished any more.

        is_counted: its length was known when it was created.
        """
        ids = final.info.parts
        distinct = list(dict.fromkeys(ids))
        parts: dict[str, Upload] = {}
        for part_id in distinct:
            part = parts[part_id] = await self._pending.load(part_id)
            if not part.finished:
                self._pending.forget(final.id)
                return final
        self.check_repeats(ids, parts)
        length = sum(parts[part_id].offset for part_id in ids)
        final = final.with_info(length=length)
        if self._joins >= _MAX_JOINS:
            raise errors.too_many_joins()
        self._mark_due_soon(final.id)
        if not is_counted:
            await self._quotas.admit_growth(final, length)
        await self._receiver.check_space(self._joining_bytes + length)
        self._joins += 1
        self._joining_bytes += length
        try:
            await self._store.save(final.info, fence=fence)
            await joiner.join(final.info, [parts[part_id] for part_id in ids], fence=fence)
        finally:
            self._joins -= 1
            self._joining_bytes -= length
        self._pending.forget(final.id)
        if not self._policy.remove_parts_when_joined:
            await joiner.forget_awaiting(distinct, final.id)
        return final._replace(offset=length, joined=True, changed_at=self._expiry.now())
