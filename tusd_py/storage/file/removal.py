"""Removal of uploads: first the record becomes a tombstone, then everything else is freed.

A tombstone starts as the upload's record and is emptied once everything else is freed, so a removal that a crash interrupted is
recognized and completed. The event of a removal that could not be put into the outbox, as on a full disk, is kept in the name
of a file, since renaming the record takes no space:

    untold/<upload>.<offset>-<kept>-<event>     the record; kept: 1 if a tombstone is to remain

No event is delivered from there: a sweep puts it into the outbox and then forgets the removal. Blocking calls: they run in
threads.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tusd_py.locks.base import Fence, LeaseLost
from tusd_py.storage.base import (
    RemovalEvent,
    StorageError,
    UnpublishedRemoval,
    Upload,
    UploadInfo,
)
from tusd_py.storage.errors import translated
from tusd_py.storage.file import records
from tusd_py.storage.file.files import exists
from tusd_py.storage.file.finals import FinalRecords
from tusd_py.storage.file.finished import FinishedFiles
from tusd_py.storage.file.layout import Layout, flat_name, id_of
from tusd_py.storage.file.markers import UploadMarks
from tusd_py.storage.file.records import read_record

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<upload>.+)\.(?P<offset>[0-9]+)-(?P<kept>[01])-(?P<event>[0-9a-f]{1,40})")


class UnpublishedRemovals:
    """The unpublished removals of one upload directory, `root`. state: where their directory is."""

    def __init__(self, state: str, *, root: str) -> None:
        self.directory = f"{state}/untold"
        self._root = root

    def path(self, upload_id: str, event: RemovalEvent, *, keep_tombstone: bool) -> str:
        """Return where the record of a removed upload is kept."""
        name = f"{flat_name(upload_id)}.{event.offset}-{int(keep_tombstone)}-{event.event_id}"
        return f"{self.directory}/{name}"

    def has(self, upload_id: str) -> bool:
        """Return whether a removed upload is here and is to leave a tombstone. Raises OSError."""
        flat = flat_name(upload_id)
        return any(match["upload"] == flat and match["kept"] == "1" for match in self._names())

    def all(self) -> list[UnpublishedRemoval]:
        """Return all removals that can be read. Raises OSError."""
        return [found for match in self._names() if (found := self._read(match)) is not None]

    def _names(self) -> Iterator[re.Match[str]]:
        for name in os.listdir(self.directory):
            if match := _NAME.fullmatch(name):
                yield match

    def _read(self, match: re.Match[str]) -> UnpublishedRemoval | None:
        upload_id, offset = id_of(match["upload"]), int(match["offset"])
        path = f"{self.directory}/{match.string}"
        try:
            content, status = read_record(path)
            info = records.parse(
                content, upload_id=upload_id, root=self._root, changed_at=status.st_mtime
            )
        except FileNotFoundError:
            return None
        except (OSError, StorageError) as problem:
            logger.error(
                "the event of the removal of %s cannot be published: %s", upload_id, problem
            )
            return None
        event = RemovalEvent(match["event"], offset)
        return UnpublishedRemoval(
            Upload(info, offset, info.created_at), event, match["kept"] == "1"
        )


@dataclass(frozen=True, slots=True)
class Removal:
    """Removes the uploads of one directory."""

    layout: Layout
    marks: UploadMarks
    finals: FinalRecords
    unpublished: UnpublishedRemovals
    finished: FinishedFiles | None

    def remove_each(
        self,
        uploads: Sequence[Upload],
        fences: Mapping[str, Fence],
        unpublished: Mapping[str, RemovalEvent],
    ) -> list[bool | StorageError]:
        """See `Store.remove_each`."""
        outcomes: list[bool | StorageError] = []
        for upload in uploads:
            try:
                with translated(f"removing {upload.id}"):
                    self.remove(
                        upload.id,
                        fences[upload.id],
                        upload.info,
                        unpublished=unpublished.get(upload.id),
                    )
                outcomes.append(True)
            except StorageError as problem:
                outcomes.append(problem)
            except LeaseLost:
                outcomes.append(False)
        return outcomes

    def remove(
        self,
        upload_id: str,
        fence: Fence,
        info: UploadInfo | None = None,
        *,
        keep_tombstone: bool = True,
        unpublished: RemovalEvent | None = None,
    ) -> None:
        """Remove an upload; does nothing if it is gone. Raises OSError, LeaseLost.

        info: its record, if the caller has just read it. For the others see `Store.remove`.
        """
        if unpublished is None:
            kept = self.layout.tombstone(upload_id)
        else:
            kept = self.unpublished.path(upload_id, unpublished, keep_tombstone=keep_tombstone)
        with fence():
            try:
                os.rename(self.layout.info_path(upload_id), kept)
            except FileNotFoundError:
                return
            if unpublished is None:
                os.utime(kept)
        # The upload is removed now. If the lock is lost before the rest is freed, the next sweep does that.
        with suppress(LeaseLost), fence():
            self._free(upload_id, info or self._parsed(kept, upload_id))
            if unpublished is not None:
                return
            if keep_tombstone and stat.S_ISREG(os.lstat(kept).st_mode):
                os.truncate(kept, 0)
            else:
                # Also a link or a pipe in the place of a record.
                os.unlink(kept)

    def finish(self, removal: UnpublishedRemoval, fence: Fence) -> bool:
        """See `Store.finish_removal`. Raises OSError, LeaseLost."""
        info = removal.upload.info
        kept = self.unpublished.path(info.id, removal.event, keep_tombstone=removal.keep_tombstone)
        with fence(), suppress(FileNotFoundError):
            self._free_later(info.id, info, kept)
            return True
        return False

    def forget(self, removal: UnpublishedRemoval) -> None:
        """The event of a removal is in the outbox: leave its tombstone, if it has one. Raises OSError."""
        upload_id, keep_tombstone = removal.upload.id, removal.keep_tombstone
        kept = self.unpublished.path(upload_id, removal.event, keep_tombstone=keep_tombstone)
        tombstone = self.layout.tombstone(upload_id)
        exists_again = exists(self.layout.info_path(upload_id))
        with suppress(FileNotFoundError):
            if exists_again or not keep_tombstone:
                os.unlink(kept)
                return
            # If a crash keeps it from being emptied, it counts as an interrupted removal, which is completed.
            os.rename(kept, tombstone)
            os.truncate(tombstone, 0)

    def complete(self, upload_id: str, tombstone: str) -> None:
        """Free what a crash left of a removed upload, then empty its tombstone. Raises OSError."""
        self._free_later(upload_id, self._parsed(tombstone, upload_id), tombstone)
        os.truncate(tombstone, 0)

    def _free_later(self, upload_id: str, info: UploadInfo | None, kept: str) -> None:
        """Free what is left of an upload some time after its removal, which renamed its record to `kept`. Raises OSError.

        Another upload may have the id by now, or another id and the same location: its bytes came after the removal.
        """
        removed_at = os.stat(kept).st_ctime_ns
        if not exists(self.layout.info_path(upload_id)):
            self._free(upload_id, info, removed_at)

    def _parsed(self, path: str, upload_id: str) -> UploadInfo | None:
        with suppress(StorageError):
            content, _ = read_record(path)
            return records.parse(
                content, upload_id=upload_id, root=self.layout.root, changed_at=0.0
            )
        return None

    def _free(self, upload_id: str, info: UploadInfo | None, removed_at: int | None = None) -> None:
        """Free everything of a removed upload but its record.

        removed_at: nanoseconds since the epoch; a data file that changed later is another upload's, and stays.
        """
        path = f"{self.layout.root}/{upload_id}" if info is None else self.layout.data_path(info)
        with suppress(FileNotFoundError):
            if removed_at is None or os.lstat(path).st_mtime_ns <= removed_at:
                if self.finished is not None and info is not None:
                    # First, as only the same bytes tell that it is this upload's.
                    self.finished.remove(info, path)
                os.unlink(path)
        for kind in self.marks.kinds:
            kind.remove(flat_name(upload_id))
        self.finals.forget_awaiting(set(info.parts) if info else (), upload_id)
        self.finals.forget_part(upload_id)
        self.remove_empty_parents(upload_id, info.location if info else None)

    def remove_empty_parents(self, *paths: str | None) -> None:
        """Remove the directories that are part of ids and locations, as far as they are empty."""
        for path in paths:
            directory = os.path.dirname(path or "")
            while directory:
                try:
                    os.rmdir(f"{self.layout.root}/{directory}")
                except FileNotFoundError:
                    pass
                except OSError:
                    break
                directory = os.path.dirname(directory)

    def forget_tombstone(self, upload_id: str) -> None:
        """Remove the tombstone of an id that is about to be used again, completing its removal first. Raises OSError."""
        tombstone = self.layout.tombstone(upload_id)
        if exists(tombstone):
            if os.path.getsize(tombstone):
                self.complete(upload_id, tombstone)
            os.unlink(tombstone)
