"""Writing of records: as temporary files that are renamed into place, or an ending written in place.

Blocking calls, without a sync unless they say so.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass

from tusd_py.locks.base import Fence, LeaseLost
from tusd_py.storage.base import UploadInfo, UploadNotFound
from tusd_py.storage.file import records
from tusd_py.storage.file.files import exists, opened, write_new
from tusd_py.storage.file.layout import Layout
from tusd_py.storage.file.record_cache import RecordCache
from tusd_py.storage.file.volume import UploadVolume


@dataclass(frozen=True, slots=True)
class RecordWriter:
    """Writes the records of one directory, and other small files that are renamed into place."""

    layout: Layout
    volume: UploadVolume
    cache: RecordCache

    def write_record(self, info: UploadInfo) -> str:
        """Write a record to a temporary file and return its path."""
        tmp = self.layout.new_path(info.id)
        content = records.serialize(info, root=self.layout.root)
        self.cache.remember(info, write_new(tmp, content, perms=self.layout.file_perms))
        return tmp

    def write_tmp(self, upload_id: str, content: bytes, *, sync: bool = False) -> str:
        """Write `content` to a temporary file and return its path. sync: it is durable then."""
        tmp = self.layout.new_path(upload_id)
        write_new(tmp, content, perms=self.layout.file_perms, sync=sync)
        return tmp

    def replace(self, info: UploadInfo, tmp: str, fence: Fence) -> None:
        """Rename `tmp` over the record; if that fails, `tmp` is removed.

        Raises UploadNotFound if there is no record, so that a removed upload does not come back.
        """
        path = self.layout.info_path(info.id)
        try:
            with fence():
                # The record cannot disappear in between: removing it takes the lock.
                if not exists(path):
                    self.volume.check()
                    raise UploadNotFound(f"{info.id}: its record is gone")
                os.rename(tmp, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(tmp)
            raise

    def mark_finished(self, info: UploadInfo, path: str, fence: Fence) -> bool:
        """Write the time of the finish into the record in place; returns False if the record does not end as ours do."""
        try:
            with fence(), opened(path, os.O_RDWR | os.O_NOFOLLOW) as descriptor:
                at = max(0, os.fstat(descriptor).st_size - len(records.UNFINISHED))
                if os.pread(descriptor, len(records.UNFINISHED) + 1, at) != records.UNFINISHED:
                    return False
                ending = records.ending(info.finished_at)
                if os.pwrite(descriptor, ending, at) != len(ending):
                    raise OSError(errno.ENOSPC, "the record was written in part")
                self.cache.remember(info, os.fstat(descriptor))
        except FileNotFoundError:
            self.volume.check()
            raise UploadNotFound(f"{info.id}: its record is gone") from None
        return True

    def mark_unfinished(self, info: UploadInfo, path: str, fence: Fence) -> None:
        """Undo `mark_finished`. Errors are ignored."""
        marked = records.ending(info.finished_at)
        with (
            suppress(OSError, LeaseLost),
            fence(),
            opened(path, os.O_RDWR | os.O_NOFOLLOW) as descriptor,
        ):
            at = max(0, os.fstat(descriptor).st_size - len(marked))
            if os.pread(descriptor, len(marked), at) == marked:
                os.pwrite(descriptor, records.UNFINISHED, at)
                self.cache.remember(info._replace(finished_at=None), os.fstat(descriptor))
