"""Events that are still to be told, as files beside the uploads: written before what they tell of is recorded, gone when told.

    outbox/<shard>/<upload>.<sequence>-<event>          what waits, in the order of its upload
    outbox-failed/<shard>/<upload>.<sequence>-<event>   what was given up, until an operator wants it told again

An upload's events lie in one of 256 directories, by a digest of its id, so that those of one upload are found without a look
at all that waits, and a directory is made once and not for every event. Not for: what an event is, and when it is told.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Protocol

from tusd_py.locks.base import UNFENCED, Fence
from tusd_py.skipped import skip
from tusd_py.storage.base import Box, KeptEvent, OutboxCounts, StorageError, is_valid_id
from tusd_py.storage.listing import files_in
from tusd_py.storage.problems import translated
from tusd_py.storage.record_file import read_record
from tusd_py.storage.syncing import sync_path

_DIRECTORIES: dict[Box, str] = {"waiting": "outbox", "failed": "outbox-failed"}
_SHARDS = tuple(f"{number:02x}" for number in range(256))
_NAME = re.compile(r"(?P<upload>.+)\.(?P<sequence>[0-9]{6})-(?P<event>[0-9a-f]{1,40})")


class Write(Protocol):
    """Makes a new file with some content, for an upload, and returns its path; it is to be renamed into its place."""

    def __call__(self, upload_id: str, content: bytes, *, sync: bool) -> str: ...


class Sync(Protocol):
    """Returns when the bytes of a file and other files and directories are durable. Raises OSError."""

    def __call__(self, data: str, *others: str) -> Awaitable[None]: ...


InThread = Callable[[Callable[[], object]], Awaitable[object]]


class FileOutbox:
    """The outbox of one directory. See `Outbox` for what it does, and who may do it when.

    root: where the two directories are made. write, sync: see `Write` and `Sync`. in_thread: runs what blocks. dir_perms: of
    directories.
    """

    def __init__(
        self, root: str, *, write: Write, in_thread: InThread, sync: Sync, dir_perms: int
    ) -> None:
        self._root = root
        self._write = write
        self._in_thread = in_thread
        self._sync = sync
        self._dir_perms = dir_perms

    async def keep(
        self, upload_id: str, event_id: str, content: bytes, *, sync: bool = False, fence: Fence
    ) -> None:
        with translated(f"keeping an event of {upload_id}"):
            with fence():
                path, made = self._keep(upload_id, event_id, content)
            if sync:
                # Content and name at once: what a power cut leaves empty is of something that was not recorded either.
                await self._sync(path, os.path.dirname(path), *made)

    def _keep(self, upload_id: str, event_id: str, content: bytes) -> tuple[str, list[str]]:
        """The file, and the directories that changed because it is the first in its own."""
        others = list(self._names("waiting", upload_id))
        sequence = 1 + max((kept.sequence for kept in others), default=0)
        tmp = self._write(upload_id, content, sync=False)
        event = KeptEvent(upload_id, event_id, sequence, b"", 0.0)
        made = self._place(tmp, "waiting", event)
        for kept in others:
            # It was about to happen before, and did not. Under another name, as whoever looks at that one may forget it now.
            if kept.event_id == event_id:
                with suppress(FileNotFoundError):
                    os.unlink(self._path("waiting", kept))
        return self._path("waiting", event), made

    async def of(self, upload_id: str, box: Box = "waiting") -> list[KeptEvent]:
        with translated(f"reading the events of {upload_id}"):
            names = sorted(
                self._names(box, upload_id), key=lambda kept: (kept.sequence, kept.event_id)
            )
            return [kept for name in names if (kept := self._read(box, name)) is not None]

    async def forget(
        self, event: KeptEvent, box: Box = "waiting", *, fence: Fence = UNFENCED
    ) -> None:
        with (
            translated(f"forgetting an event of {event.upload_id}"),
            suppress(FileNotFoundError),
            fence(),
        ):
            os.unlink(self._path(box, event))

    async def replace(self, event: KeptEvent, content: bytes) -> None:
        with translated(f"changing an event of {event.upload_id}"):
            tmp = self._write(event.upload_id, content, sync=False)
            # The time of a file is when its event was kept.
            os.utime(tmp, (event.kept_at, event.kept_at))
            self._place(tmp, "waiting", event)

    async def give_up(self, event: KeptEvent, content: bytes) -> None:
        with translated(f"giving an event of {event.upload_id} up"):
            await self._in_thread(lambda: self._give_up(event, content))

    def _give_up(self, event: KeptEvent, content: bytes) -> None:
        tmp = self._write(event.upload_id, content, sync=True)
        os.utime(tmp, (event.kept_at, event.kept_at))
        made = self._place(tmp, "failed", event)
        for directory in (os.path.dirname(self._path("failed", event)), *made):
            sync_path(directory)
        with suppress(FileNotFoundError):
            os.unlink(self._path("waiting", event))

    async def replay(self, event: KeptEvent, content: bytes) -> None:
        # What was given up has happened: no holder of the lock can take it back.
        await self.keep(event.upload_id, event.event_id, content, sync=True, fence=UNFENCED)
        await self.forget(event, "failed")

    async def uploads(self) -> AsyncIterator[list[str]]:
        for shard in _SHARDS:
            with translated("reading the outbox"):
                found = {kept.upload_id for kept in self._in_shard("waiting", shard)}
            if found:
                yield sorted(found)

    async def every(self, box: Box) -> AsyncIterator[KeptEvent]:
        for shard in _SHARDS:
            with translated("reading the outbox"):
                names = sorted(
                    self._in_shard(box, shard), key=lambda kept: (kept.upload_id, kept.sequence)
                )
            for name in names:
                with translated("reading the outbox"):
                    kept = self._read(box, name)
                if kept is not None:
                    yield kept

    async def counts(self) -> OutboxCounts:
        with translated("reading the outbox"):
            counts = OutboxCounts(0, 0, None)

            def count() -> None:
                nonlocal counts
                counts = self._counts()

            await self._in_thread(count)
            return counts

    def _counts(self) -> OutboxCounts:
        waiting, failed = 0, 0
        oldest: float | None = None
        for shard in _SHARDS:
            failed += sum(1 for _ in self._in_shard("failed", shard))
            for kept in self._in_shard("waiting", shard):
                with suppress(FileNotFoundError):
                    kept_at = os.stat(self._path("waiting", kept)).st_mtime
                    oldest = kept_at if oldest is None else min(oldest, kept_at)
                waiting += 1
        return OutboxCounts(waiting, failed, oldest)

    # Files

    def _directory(self, box: Box, shard: str) -> str:
        return f"{self._root}/{_DIRECTORIES[box]}/{shard}"

    def _path(self, box: Box, event: KeptEvent) -> str:
        directory = self._directory(box, _shard(event.upload_id))
        return f"{directory}/{_flat(event.upload_id)}.{event.sequence:06d}-{event.event_id}"

    def _place(self, tmp: str, box: Box, event: KeptEvent) -> list[str]:
        """Renames a file into its place; the directories that got new directories by that."""
        target = self._path(box, event)
        directory = os.path.dirname(target)
        try:
            try:
                os.rename(tmp, target)
            except FileNotFoundError:
                os.makedirs(directory, mode=self._dir_perms, exist_ok=True)
                os.rename(tmp, target)
                return [os.path.dirname(directory), self._root]
        except OSError:
            os.unlink(tmp)
            raise
        return []

    def _names(self, box: Box, upload_id: str) -> Iterator[KeptEvent]:
        """An upload's events, without their content."""
        for kept in self._in_shard(box, _shard(upload_id)):
            if kept.upload_id == upload_id:
                yield kept

    def _in_shard(self, box: Box, shard: str) -> Iterator[KeptEvent]:
        for entry in files_in(self._directory(box, shard)):
            if match := _NAME.fullmatch(entry.name):
                upload_id = match["upload"].replace("%", "/")
                # Not a name of ours: it could be encoded for nobody who is told of it.
                if is_valid_id(upload_id):
                    yield KeptEvent(upload_id, match["event"], int(match["sequence"]), b"", 0.0)

    def _read(self, box: Box, name: KeptEvent) -> KeptEvent | None:
        """It with its content; None if it has gone meanwhile, or cannot be read."""
        path = self._path(box, name)
        try:
            content, status = read_record(path)
        except FileNotFoundError:
            return None
        except (OSError, StorageError) as problem:
            skip("event", path, problem)
            return None
        return KeptEvent(name.upload_id, name.event_id, name.sequence, content, status.st_mtime)


def _flat(upload_id: str) -> str:
    """The id as a part of a file's name: `%` cannot stand in an id, so no two of them meet."""
    return upload_id.replace("/", "%")


def _shard(upload_id: str) -> str:
    return hashlib.sha256(upload_id.encode()).hexdigest()[:2]
