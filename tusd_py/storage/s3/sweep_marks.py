"""The times of sweeps, as two objects whose content is the time."""

from __future__ import annotations

from contextlib import suppress

from tusd_py.storage.base import SweepTimes
from tusd_py.storage.s3.layout import Layout
from tusd_py.storage.s3.object_store import TEXT, ObjectStoreError
from tusd_py.storage.s3.requests import ObjectStore


class S3SweepMarks:
    """See `SweepMarks`."""

    def __init__(self, objects: ObjectStore, layout: Layout) -> None:
        self._objects = objects
        self._ended = layout.state("swept")
        self._held = layout.state("sweep-held")

    async def read(self) -> SweepTimes:
        return SweepTimes(await self._time(self._ended), await self._time(self._held))

    async def _time(self, key: str) -> float | None:
        try:
            return float((await self._objects.read(key))[1])
        except (ObjectStoreError, ValueError):
            return None

    async def record_end(self, now: float) -> None:
        await self._record(self._ended, now)
        with suppress(ObjectStoreError):
            await self._objects.delete(self._held)

    async def record_hold(self, now: float) -> None:
        await self._record(self._held, now)

    async def _record(self, key: str, now: float) -> None:
        with suppress(ObjectStoreError):
            await self._objects.put(key, repr(now).encode(), TEXT)
