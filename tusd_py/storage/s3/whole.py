"""Uploads whose bytes are all there, in memory, and wait for the finish, so that one request stores both.

Their requests were not answered yet: a process that is killed now has promised nothing. What becomes something else than
finished is stored before the answer (`Store.settle`).
"""

from __future__ import annotations

from tusd_py.storage.s3.live import Live
from tusd_py.storage.s3.spool import Spool


class WholeUploads:
    """The uploads by id. spool: counts their bytes until they are released."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._waiting: dict[str, tuple[Live, bytes]] = {}

    def hold(self, live: Live, data: bytes) -> None:
        """Keep all bytes of an upload, which the spool counts already."""
        self._waiting[live.record.info.id] = live, data

    def live(self, upload_id: str) -> Live | None:
        """The upload; None if it does not wait."""
        found = self._waiting.get(upload_id)
        return None if found is None else found[0]

    def data(self, live: Live) -> bytes | None:
        """The bytes of an upload; None if it does not wait."""
        found = self._waiting.get(live.record.info.id)
        return found[1] if found is not None and found[0] is live else None

    def release(self, upload_id: str) -> None:
        """Let go of the bytes of an upload, if it waits."""
        found = self._waiting.pop(upload_id, None)
        if found is not None:
            self._spool.give_back(len(found[1]))
