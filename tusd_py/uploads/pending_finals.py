"""Cache the progress of the parts of final uploads, so that not every part is loaded each time.

A finished part never changes and a known length stays, so only the other parts are loaded again, and only the first of them if
it is still unfinished. A part that is complete but not finished may still lose bytes. All of this can be recomputed from the
store. Not for: joining.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tusd_py.storage.base import Upload, UploadGone, UploadNotFound

_MOST_PARTS = 100_000
"""Parts of all cached finals together; each takes some hundred bytes."""
_YIELD_EVERY = 50
"""Parts that are loaded between two yields to the event loop."""
_PAUSE_FACTOR = 1000.0
_LONGEST_PAUSE_SECONDS = 60.0
_PAUSES_PER_EXPIRY = 20
"""What was seen of the parts is cached for the smallest of: this multiple of the time that loading them took, these seconds,
and this fraction of their expiry."""


@dataclass(slots=True)
class _Pending:
    """One final. missing, unmeasured: parts not known to be finished, or without a known length; the next to load is last."""

    created_at: float
    count: int
    missing: list[str]
    unmeasured: list[str]
    changed_at: float
    lengths: dict[str, int] = field(default_factory=dict)
    length: int | None = None
    update_at: float = 0.0
    is_complete: bool = False
    check_at: float = 0.0


class PendingFinals:
    """Progress of the parts of finals. load: loads an upload. expire_after: the default in seconds, 0 for never."""

    def __init__(self, load: Callable[[str], Awaitable[Upload]], *, expire_after: float) -> None:
        self._load = load
        self._expire_after = expire_after
        self._known: OrderedDict[str, _Pending] = OrderedDict()
        self._parts = 0
        self._loads = 0

    async def load(self, part_id: str) -> Upload:
        """Load a part. Other requests are served after some of them."""
        self._loads += 1
        if self._loads % _YIELD_EVERY == 0:
            await asyncio.sleep(0)
        return await self._load(part_id)

    async def final_of(self, part_id: str, final_id: str) -> Upload | None:
        """Load a final that was recorded as one that lists a part; None if it is gone, or does not. Raises StorageError."""
        # The record of a final may have a megabyte.
        await asyncio.sleep(0)
        try:
            final = await self._load(final_id)
        except (UploadNotFound, UploadGone):
            return None
        # The id may belong to another upload now.
        return final if part_id in final.info.parts else None

    async def missing(self, final: Upload) -> str | None:
        """The id of a part that is not finished; None if all are. Raises UploadGone, UploadNotFound for a missing part."""
        known = self._recall(final)
        while known.missing:
            part_id = known.missing[-1]
            part = await self.load(part_id)
            if not part.finished:
                return part_id
            known.changed_at = max(known.changed_at, part.changed_at)
            if known.missing and known.missing[-1] == part_id:
                known.missing.pop()
        return None

    async def all_complete(self, final: Upload) -> bool:
        """Whether every part exists and has all its bytes, finished or not; cached like `changed_at`. Raises StorageError."""
        known = self._recall(final)
        began = time.monotonic()
        if began >= known.check_at:
            known.is_complete = await self._has_all(final, known)
            known.check_at = time.monotonic() + self._pause(final, time.monotonic() - began)
        return known.is_complete

    async def _has_all(self, final: Upload, known: _Pending) -> bool:
        # Finished ones may have been removed since. Unfinished ones come first, as one that is incomplete answers the question.
        for part_id in dict.fromkeys([*reversed(known.missing), *final.info.parts]):
            try:
                if not (await self.load(part_id)).complete:
                    return False
            except (UploadNotFound, UploadGone):
                return False
        return True

    async def length(self, final: Upload) -> int | None:
        """The sum of the parts' lengths in bytes; None while one is unknown. Raises UploadGone, UploadNotFound."""
        known = self._recall(final)
        while known.length is None:
            if not known.unmeasured:
                known.length = sum(known.lengths[part_id] for part_id in final.info.parts)
                known.lengths.clear()
                break
            part_id = known.unmeasured[-1]
            length = (await self.load(part_id)).length
            if length is None:
                return None
            known.lengths[part_id] = length
            if known.unmeasured and known.unmeasured[-1] == part_id:
                known.unmeasured.pop()
        return known.length

    async def changed_at(self, final: Upload) -> float:
        """When a part last got a byte, in seconds since the epoch; cached, so it may miss recent writes of other processes."""
        known = self._recall(final)
        began = time.monotonic()
        if began >= known.update_at:
            await self._update_ages(known)
            known.update_at = time.monotonic() + self._pause(final, time.monotonic() - began)
        return max(final.changed_at, known.changed_at)

    def _pause(self, final: Upload, spent: float) -> float:
        """Seconds for which what loading the parts has shown in `spent` seconds is cached."""
        own = final.info.expire_after
        expire_after = (self._expire_after if own is None else own) or float("inf")
        return min(_PAUSE_FACTOR * spent, _LONGEST_PAUSE_SECONDS, expire_after / _PAUSES_PER_EXPIRY)

    async def _update_ages(self, known: _Pending) -> None:
        missing: list[str] = []
        for part_id in list(known.missing):
            with suppress(UploadNotFound, UploadGone):
                part = await self.load(part_id)
                known.changed_at = max(known.changed_at, part.changed_at)
                if part.finished:
                    continue
            missing.append(part_id)
        known.missing = missing

    def touch(self, final_ids: Sequence[str], changed_at: float) -> None:
        """Record that a part of these finals got bytes at `changed_at`."""
        for final_id in final_ids:
            if known := self._known.get(final_id):
                known.changed_at = max(known.changed_at, changed_at)

    def refresh(self, final_ids: Sequence[str]) -> None:
        """Look at the parts of these finals anew, though what was seen of them is still cached."""
        for final_id in final_ids:
            if known := self._known.get(final_id):
                known.update_at = known.check_at = 0.0

    def forget(self, final_id: str) -> None:
        """Drop a final that is joined or removed."""
        known = self._known.pop(final_id, None)
        if known is not None:
            self._parts -= known.count

    def _recall(self, final: Upload) -> _Pending:
        known = self._known.get(final.id)
        if known is not None and known.created_at == final.info.created_at:
            self._known.move_to_end(final.id)
            return known
        parts = list(dict.fromkeys(final.info.parts))
        parts.reverse()
        self.forget(final.id)
        known = _Pending(
            final.info.created_at, len(parts), parts, parts.copy(), final.info.created_at
        )
        self._known[final.id] = known
        self._parts += len(parts)
        while self._parts > _MOST_PARTS and len(self._known) > 1:
            self.forget(next(iter(self._known)))
        return known
