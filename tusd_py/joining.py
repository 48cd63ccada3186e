"""Finals: joining parts, at once or when the last of them is complete (tus 1.0.0, "Concatenation").

Nothing here locks: the caller holds the final's lock, and gives its fence. The parts need none, since a complete part never
changes any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from tusd_py.locks.base import Fence
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.rules import Rules
from tusd_py.storage.base import JoinsParts, Store, Upload, UploadGone, UploadInfo

_YIELD_EVERY = 50


class Joining:
    """Joins the uploads of one store.

    load: an upload as it stands, or an error where it is not there. check_space: raises a 507 where a number of bytes does not
    fit.
    """

    def __init__(
        self,
        store: Store,
        rules: Rules,
        *,
        load: Callable[[str], Awaitable[Upload]],
        check_space: Callable[[int], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._rules = rules
        self._load = load
        self._check_space = check_space
        self._clock = clock

    async def parts(
        self, ids: Sequence[str], check: Callable[[UploadInfo], None] | None = None
    ) -> dict[str, Upload]:
        """The parts of a final by id. Raises a 404 for one that is unknown or gone, a 400 for one that is no part.

        check: raises for a part that may not be joined, before anything is told about it.
        """
        found: dict[str, Upload] = {}
        for position, part_id in enumerate(dict.fromkeys(ids), start=1):
            try:
                part = await self._load(part_id)
            except (UploadGone, ProtocolError):
                raise errors.not_found() from None
            if check is not None:
                check(part.info)
            if not part.info.is_partial:
                raise errors.invalid_concat("one of the URLs is not that of a partial upload")
            found[part_id] = part
            if position % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
        return found

    @staticmethod
    def length_of(ids: Sequence[str], parts: Mapping[str, Upload]) -> int | None:
        """The length of a final, in bytes; None while that of a part is unknown."""
        lengths = [parts[part_id].length for part_id in ids]
        known = [length for length in lengths if length is not None]
        return sum(known) if len(known) == len(lengths) else None

    async def begin(self, final: Upload, parts: Mapping[str, Upload], fence: Fence) -> Upload:
        """Joins the parts of a new final, or sees to it that it happens when the last of them is complete."""
        if not isinstance(self._store, JoinsParts):
            raise errors.invalid_concat("this server's store cannot join uploads")
        waiting = [part_id for part_id, part in parts.items() if not part.complete]
        for part_id in waiting:
            await self._store.await_part(part_id, final.id)
        # Looked at again only now: a part that finished in the meantime either saw the note or is seen complete.
        return await self.try_join(final, fence)

    async def try_join(self, final: Upload, fence: Fence) -> Upload:
        """The final, joined if all its parts are complete; else with the length that is known by now. Under its lock."""
        if final.joined or not isinstance(self._store, JoinsParts):
            return final
        parts = await self.parts(final.info.parts)
        length = self.length_of(final.info.parts, parts)
        maximum = self._rules.most_bytes(final.info.max_size)
        if length is not None and maximum is not None and length > maximum:
            raise errors.max_size_exceeded()
        pending = replace(
            final.with_info(length=length),
            changed_at=max(final.changed_at, *(part.changed_at for part in parts.values())),
        )
        if not all(part.complete for part in parts.values()):
            return pending
        await self._check_space(length or 0)
        await self._store.save(pending.info, fence=fence)
        sources = [parts[part_id] for part_id in final.info.parts]
        await self._store.join(pending.info, sources, fence=fence)
        for part_id in parts:
            await self._store.forget_awaiting(part_id, final.id)
        return replace(pending, offset=length or 0, joined=True, changed_at=self._clock())
