"""Finals that wait for their parts: how far these are, without a look at every part each time.

A finished part never changes any more and a length that is known stays, so only what is still missing is looked at again; as
long as one part is missing, that one alone. A part that has all its bytes and is not finished may still lose them. Everything
here can be found out anew from the store. Not for: joining.
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
"""Parts of all finals together of which something is kept. Each takes some hundred bytes."""
_YIELD_EVERY = 50
"""Parts that are looked at before others get a turn."""
_REST = 1000.0
_LONGEST_REST_SECONDS = 60.0
"""How much longer than a look at all parts takes none of them is looked at for their age alone; seconds at most."""
_PART_OF_EXPIRY = 20


@dataclass(slots=True)
class _Pending:
    """One final. missing, unmeasured: parts that were not seen finished or whose length was not known, the next one last."""

    created_at: float
    count: int
    missing: list[str]
    unmeasured: list[str]
    changed_at: float
    lengths: dict[str, int] = field(default_factory=dict)
    length: int | None = None
    look_again: float = 0.0


class PendingFinals:
    """Looks at the parts of finals. load: an upload as the store has it. expire_after: seconds, 0 for never, as a rule."""

    def __init__(self, load: Callable[[str], Awaitable[Upload]], *, expire_after: float) -> None:
        self._load = load
        self._expire_after = expire_after
        self._known: OrderedDict[str, _Pending] = OrderedDict()
        self._parts = 0

    async def missing(self, final: Upload) -> str | None:
        """A part that is not finished; None if all are. Raises UploadGone, UploadNotFound for one that is not there."""
        known = self._recall(final)
        looked_at = 0
        while known.missing:
            part_id = known.missing[-1]
            part = await self._load(part_id)
            if not part.finished:
                return part_id
            known.changed_at = max(known.changed_at, part.changed_at)
            if known.missing and known.missing[-1] == part_id:
                known.missing.pop()
            looked_at = await _yield_at_times(looked_at)
        return None

    async def length(self, final: Upload) -> int | None:
        """The sum of the parts' lengths, in bytes; None while one is unknown. Raises UploadGone, UploadNotFound."""
        known = self._recall(final)
        looked_at = 0
        while known.length is None:
            if not known.unmeasured:
                known.length = sum(known.lengths[part_id] for part_id in final.info.parts)
                known.lengths.clear()
                break
            part_id = known.unmeasured[-1]
            length = (await self._load(part_id)).length
            if length is None:
                return None
            known.lengths[part_id] = length
            if known.unmeasured and known.unmeasured[-1] == part_id:
                known.unmeasured.pop()
            looked_at = await _yield_at_times(looked_at)
        return known.length

    async def changed_at(self, final: Upload) -> float:
        """When the youngest of the parts got its last byte, in seconds since the epoch.

        It may be late about parts that other processes write to, the longer the more parts there are.
        """
        known = self._recall(final)
        began = time.monotonic()
        if began >= known.look_again:
            await self._look_at_ages(known)
            spent = time.monotonic() - began
            own = final.info.expire_after
            expire_after = (self._expire_after if own is None else own) or float("inf")
            rest = min(_REST * spent, _LONGEST_REST_SECONDS, expire_after / _PART_OF_EXPIRY)
            known.look_again = time.monotonic() + rest
        return max(final.changed_at, known.changed_at)

    async def _look_at_ages(self, known: _Pending) -> None:
        missing: list[str] = []
        looked_at = 0
        for part_id in list(known.missing):
            with suppress(UploadNotFound, UploadGone):
                part = await self._load(part_id)
                known.changed_at = max(known.changed_at, part.changed_at)
                if part.finished:
                    continue
            missing.append(part_id)
            looked_at = await _yield_at_times(looked_at)
        known.missing = missing

    def touch(self, final_ids: Sequence[str], changed_at: float) -> None:
        """A part of these finals has grown."""
        for final_id in final_ids:
            if known := self._known.get(final_id):
                known.changed_at = max(known.changed_at, changed_at)

    def forget(self, final_id: str) -> None:
        """The final is joined, or gone."""
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


async def _yield_at_times(looked_at: int) -> int:
    if (looked_at + 1) % _YIELD_EVERY == 0:
        await asyncio.sleep(0)
    return looked_at + 1
