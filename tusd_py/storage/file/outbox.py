"""The outbox: events to be delivered, as files beside the uploads, written before the change is recorded.

    outbox/<shard>/<upload>.<sequence>-<event>          waiting events, in order for each upload
    outbox-failed/<shard>/<upload>.<sequence>-<event>   events that failed for good, until an operator replays them

There are 65,536 shards, by a digest of the upload's id; empty ones do not exist. An upload shares its shard with hardly any
other, so operations on its events cost the same however many others wait. The previous version had 256 shards, with shorter
names; their events are moved when they are found. One that is new keeps its old name as well for a while: during an upgrade a
server of that version may be about to sync it.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tusd_py.locks.base import UNFENCED, Fence
from tusd_py.storage.base import (
    Box,
    KeptEvent,
    OutboxCounts,
    StorageError,
    is_valid_id,
    next_sequence,
)
from tusd_py.storage.errors import is_exhausted, takes_nothing, translated
from tusd_py.storage.file.disk import Disk
from tusd_py.storage.file.files import opened
from tusd_py.storage.file.fsync import GroupSync, sync_path
from tusd_py.storage.file.layout import Layout, flat_name, id_of
from tusd_py.storage.file.listing import entries_of, files_in
from tusd_py.storage.file.record_writer import RecordWriter
from tusd_py.storage.file.records import read_record
from tusd_py.storage.file.threads import Threads
from tusd_py.storage.skipped import skip

_DIRECTORIES: dict[Box, str] = {"waiting": "outbox", "failed": "outbox-failed"}
_is_shard = re.compile(r"[0-9a-f]{4}").fullmatch
_is_old_shard = re.compile(r"[0-9a-f]{2}").fullmatch
_NAME = re.compile(r"(?P<upload>.+)\.(?P<sequence>[0-9]{6})-(?P<event>[0-9a-f]{1,40})")
_OLD_NAME_SECONDS = 60.0
"""Age of an event of the previous version from which on it loses its old name."""
_COUNTED_AT_ONCE = 4_096
"""Shards that one count reads, in some 50 ms. If there are more, the next count continues where it stopped."""

_SYNCED_ONE_BY_ONE = 2
"""Uploads whose events are synced file by file."""
_READ_AT_ONCE = 1_024
"""Shards that one call in a thread reads."""


@dataclass(frozen=True, slots=True)
class _ShardCounts:
    """The number of events in a shard, and the time of the oldest in seconds since the epoch."""

    count: int
    oldest: float | None


@dataclass(eq=False)
class FileOutbox:
    """The outbox of one directory; see `Outbox`. records: writes temporary files."""

    layout: Layout
    records: RecordWriter
    threads: Threads
    disk: Disk
    syncs: GroupSync
    _counters: dict[Box, _Counter] = field(
        default_factory=lambda: {"waiting": _Counter(), "failed": _Counter()}, init=False
    )

    async def keep(
        self, upload_id: str, event_id: str, content: bytes, *, sync: bool = False, fence: Fence
    ) -> None:
        with translated(f"keeping an event of {upload_id}"):
            path = await self.disk.change(self._keep, upload_id, event_id, content, fence)
            if sync:
                # Content and name in one sync: if a power cut leaves the file empty, the change was not recorded either.
                await self.syncs.sync(path, directories=self._ancestors(path))

    def _keep(self, upload_id: str, event_id: str, content: bytes, fence: Fence) -> str:
        with fence():
            return self._add(upload_id, event_id, content)

    def _add(self, upload_id: str, event_id: str, content: bytes) -> str:
        others = self._names("waiting", upload_id)
        sequence = next_sequence(others)
        tmp = self.records.write_tmp(upload_id, content, sync=False)
        event = KeptEvent(upload_id, event_id, sequence, b"", 0.0)
        self._place(tmp, "waiting", event)
        for kept in others:
            # From an earlier attempt. The new name differs, as a deliverer may be about to remove the old file.
            if kept.event_id == event_id:
                self._unlink("waiting", kept)
        return self._path("waiting", event)

    async def sync(self, upload_ids: Sequence[str]) -> None:
        with translated("syncing events"):
            files, directories = await self.disk.change(self._to_sync, upload_ids)
            # Many at a time cost less as one sync of the file system.
            whole = len(upload_ids) > _SYNCED_ONE_BY_ONE
            await self.syncs.sync(None, *files, directories=directories, whole=whole)

    def _to_sync(self, upload_ids: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the paths of the uploads' waiting events, and of the directories above them."""
        files: list[str] = []
        directories: dict[str, None] = {}
        for upload_id in upload_ids:
            found = [self._path("waiting", kept) for kept in self._names("waiting", upload_id)]
            files += found
            for path in found[:1]:
                directories |= dict.fromkeys(self._ancestors(path))
        return files, list(directories)

    async def of(self, upload_id: str, box: Box = "waiting") -> list[KeptEvent]:
        with translated(f"reading the events of {upload_id}"):
            return await self.disk.change(self._of, upload_id, box)

    def _of(self, upload_id: str, box: Box) -> list[KeptEvent]:
        names = self._names(box, upload_id)
        return [kept for name in names if (kept := self._read(box, name)) is not None]

    async def forget(
        self, event: KeptEvent, box: Box = "waiting", *, fence: Fence = UNFENCED
    ) -> None:
        with translated(f"forgetting an event of {event.upload_id}"):
            await self.disk.change(self._forget, event, box, fence)

    def _forget(self, event: KeptEvent, box: Box, fence: Fence) -> None:
        with fence():
            self._unlink(box, event)
            with suppress(OSError):
                # If it was the last one.
                os.rmdir(os.path.dirname(self._path(box, event)))
            _remove_old_shard(os.path.dirname(self._old_path(box, event)))

    async def replace(self, event: KeptEvent, content: bytes) -> None:
        with translated(f"changing an event of {event.upload_id}"):
            await self.disk.change(self._replace, event, content)

    def _replace(self, event: KeptEvent, content: bytes) -> None:
        try:
            tmp = self.records.write_tmp(event.upload_id, content, sync=False)
        except OSError as problem:
            if not takes_nothing(problem) or not self._overwrite(event, content):
                raise
            return
        # The mtime is when the event was put there.
        os.utime(tmp, (event.kept_at, event.kept_at))
        self._place(tmp, "waiting", event)

    def _overwrite(self, event: KeptEvent, content: bytes) -> bool:
        """Overwrite an event in place, on a disk without space for another file; returns False if it does not fit.

        By one write within the blocks that the file has, and never shorter: blanks behind JSON are ignored.
        """
        with opened(self._path("waiting", event), os.O_RDWR | os.O_NOFOLLOW) as descriptor:
            status = os.fstat(descriptor)
            if len(content) > status.st_blocks * 512:
                return False
            content = content.ljust(status.st_size)
            written = os.pwrite(descriptor, content, 0)
            os.utime(descriptor, (event.kept_at, event.kept_at))
            return written == len(content)

    async def mark_failed(self, event: KeptEvent, content: bytes) -> None:
        with translated(f"moving an event of {event.upload_id} to the failed ones"):
            await self.threads.run(self._mark_failed, event, content)

    def _mark_failed(self, event: KeptEvent, content: bytes) -> None:
        try:
            tmp = self.records.write_tmp(event.upload_id, content, sync=True)
        except OSError as problem:
            if not takes_nothing(problem):
                raise
            # With its old content: there is no space for the result of the last attempt.
            target = self._path("failed", event)
            os.makedirs(os.path.dirname(target), mode=self.layout.dir_perms, exist_ok=True)
            os.rename(self._path("waiting", event), target)
            self._unlink("waiting", event)
            return
        os.utime(tmp, (event.kept_at, event.kept_at))
        self._place(tmp, "failed", event)
        for directory in self._ancestors(self._path("failed", event)):
            sync_path(directory)
        self._forget(event, "waiting", UNFENCED)

    async def replay(self, event: KeptEvent, content: bytes) -> None:
        # A failed event is final: no holder of the lock can void it.
        await self.keep(event.upload_id, event.event_id, content, sync=True, fence=UNFENCED)
        await self.forget(event, "failed")

    async def uploads(self) -> AsyncIterator[list[str]]:
        async for some in self._events("waiting"):
            yield sorted({kept.upload_id for kept in some})

    async def every(self, box: Box) -> AsyncIterator[KeptEvent]:
        async for some in self._events(box):
            for name in sorted(some, key=lambda kept: (kept.upload_id, kept.sequence)):
                with translated("reading the outbox"):
                    kept = await self.disk.read(self._read, box, name)
                if kept is not None:
                    yield kept

    async def _events(self, box: Box) -> AsyncIterator[list[KeptEvent]]:
        """Yield all events without their content, in batches of shards."""
        with translated("reading the outbox"):
            shards = await self.threads.run(self._shards, box)
        for start in range(0, len(shards), _READ_AT_ONCE):
            with translated("reading the outbox"):
                found = await self.threads.run(
                    self._in_shards, box, shards[start : start + _READ_AT_ONCE]
                )
            if found:
                yield found

    async def counts(self, *, exact: bool = False) -> OutboxCounts:
        with translated("reading the outbox"):
            return await self.threads.run(self._counts, exact=exact)

    def _counts(self, *, exact: bool) -> OutboxCounts:
        most = sys.maxsize if exact else _COUNTED_AT_ONCE
        waiting, oldest = self._count("waiting", most)
        failed, _ = self._count("failed", most)
        return OutboxCounts(waiting, failed, oldest)

    def _count(self, box: Box, most: int) -> tuple[int, float | None]:
        """Count events and find the oldest, reading at most so many shards."""
        return self._counters[box].count(
            self._shards(box), lambda shard: self._counts_in(box, shard), most
        )

    def _counts_in(self, box: Box, shard: str) -> _ShardCounts:
        found = list(self._in_shard(box, shard))
        oldest: float | None = None
        for kept in found:
            with suppress(FileNotFoundError):
                kept_at = os.stat(self._path(box, kept)).st_mtime
                oldest = kept_at if oldest is None else min(oldest, kept_at)
        return _ShardCounts(len(found), oldest)

    # Files

    def _directory(self, box: Box, shard: str) -> str:
        return f"{self.layout.state}/{_DIRECTORIES[box]}/{shard}"

    def _path(self, box: Box, event: KeptEvent) -> str:
        directory = self._directory(box, _shard(event.upload_id))
        return f"{directory}/{flat_name(event.upload_id)}.{event.sequence:06d}-{event.event_id}"

    def _old_path(self, box: Box, event: KeptEvent) -> str:
        """Return where the previous version keeps an event."""
        name = os.path.basename(self._path(box, event))
        return f"{self._directory(box, _shard(event.upload_id)[:2])}/{name}"

    def _unlink(self, box: Box, event: KeptEvent) -> None:
        """Remove an event. By its old name first, or it would be found again."""
        for path in (self._old_path(box, event), self._path(box, event)):
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _ancestors(self, path: str) -> list[str]:
        """Return the directories above a file, up to the root. Another process may have created any of them without a sync."""
        found: list[str] = []
        while path != self.layout.state:
            path = os.path.dirname(path)
            found.append(path)
        return found

    def _place(self, tmp: str, box: Box, event: KeptEvent) -> None:
        """Rename a temporary file into place."""
        target = self._path(box, event)
        try:
            while True:
                with suppress(FileNotFoundError):
                    os.rename(tmp, target)
                    return
                # The directory may be removed together with its last event before this one arrives.
                os.makedirs(os.path.dirname(target), mode=self.layout.dir_perms, exist_ok=True)
                os.stat(tmp)
        except OSError:
            with suppress(FileNotFoundError):
                os.unlink(tmp)
            raise

    def _names(self, box: Box, upload_id: str) -> list[KeptEvent]:
        """Return an upload's events in order, without their content."""
        shard = _shard(upload_id)
        self._move_old(box, shard[:2])
        found = [kept for kept in self._in_shard(box, shard) if kept.upload_id == upload_id]
        return sorted(found, key=lambda kept: (kept.sequence, kept.event_id))

    def _shards(self, box: Box) -> list[str]:
        """Return the existing shards. Events in those of the previous version are moved first."""
        parent = f"{self.layout.state}/{_DIRECTORIES[box]}"
        for entry in list(entries_of(parent)):
            if _is_old_shard(entry.name):
                self._move_old(box, entry.name)
        return sorted(entry.name for entry in entries_of(parent) if _is_shard(entry.name))

    def _in_shards(self, box: Box, shards: Sequence[str]) -> list[KeptEvent]:
        return [kept for shard in shards for kept in self._in_shard(box, shard)]

    def _in_shard(self, box: Box, shard: str) -> Iterator[KeptEvent]:
        for entry in files_in(self._directory(box, shard)):
            if match := _NAME.fullmatch(entry.name):
                upload_id = id_of(match["upload"])
                # Other names are not ours, and might not even be encodable.
                if is_valid_id(upload_id):
                    yield KeptEvent(upload_id, match["event"], int(match["sequence"]), b"", 0.0)

    def _move_old(self, box: Box, shard: str) -> None:
        """Move the events out of a shard of the previous version. Several processes may do so at once."""
        directory = self._directory(box, shard)
        for kept in list(self._in_shard(box, shard)):
            old, target = self._old_path(box, kept), self._path(box, kept)
            os.makedirs(os.path.dirname(target), mode=self.layout.dir_perms, exist_ok=True)
            with suppress(FileNotFoundError):
                if time.time() - os.stat(old).st_mtime < _OLD_NAME_SECONDS:
                    # It may have been linked before. Where there are no links, it waits until it is old enough.
                    with suppress(OSError):
                        os.link(old, target)
                    continue
                os.rename(old, target)
                # Where both are names of one file, renaming does nothing.
                os.unlink(old)
        _remove_old_shard(directory)

    def _read(self, box: Box, name: KeptEvent) -> KeptEvent | None:
        """Return the event with its content; None if it is gone or cannot be read."""
        path = self._path(box, name)
        try:
            content, status = read_record(path)
        except FileNotFoundError:
            return None
        except (OSError, StorageError) as problem:
            if isinstance(problem, OSError) and is_exhausted(problem):
                raise
            skip("event", path, problem)
            return None
        return KeptEvent(name.upload_id, name.event_id, name.sequence, content, status.st_mtime)


def _remove_old_shard(directory: str) -> None:
    """Remove a shard of the previous version, if it is empty.

    Not one that has just been changed: a server of that version may have made it for an event that it puts there next, and does
    not make it again.
    """
    with suppress(OSError):
        if time.time() - os.stat(directory).st_mtime >= _OLD_NAME_SECONDS:
            os.rmdir(directory)


class _Counter:
    """Counts the events in many shards, reading only some of them each time."""

    def __init__(self) -> None:
        self._known: dict[str, _ShardCounts] = {}
        self._last = ""

    def count(
        self, shards: Sequence[str], read: Callable[[str], _ShardCounts], most: int
    ) -> tuple[int, float | None]:
        """Return the number of events, estimated for shards never read, and the time of the oldest. shards: sorted."""
        start = bisect_right(shards, self._last)
        batch = [*shards[start:], *shards[:start]][:most]
        known = {shard: self._known[shard] for shard in shards if shard in self._known}
        known |= {shard: read(shard) for shard in batch}
        self._known = known
        self._last = batch[-1] if batch else ""
        total = sum(each.count for each in known.values())
        times = [each.oldest for each in known.values() if each.oldest is not None]
        return round(total * len(shards) / max(1, len(known))), min(times, default=None)


def _shard(upload_id: str) -> str:
    return hashlib.sha256(upload_id.encode()).hexdigest()[:4]
