"""Writing of records: as temporary files that are renamed into place, or an ending written in place.

Blocking calls, without a sync unless they say so.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from tusd_py.locks.base import Fence, LeaseLost
from tusd_py.storage.base import UploadInfo, UploadNotFound
from tusd_py.storage.file import records
from tusd_py.storage.file.files import create_file, write_all
from tusd_py.storage.file.layout import Layout
from tusd_py.storage.file.record_cache import RecordCache


class RecordWriter:
    """Writes the records of one directory, and other small files that are renamed into place."""

    def __init__(self, layout: Layout, *, cache: RecordCache, file_perms: int) -> None:
        self._layout = layout
        self._cache = cache
        self._file_perms = file_perms

    def write_record(self, info: UploadInfo) -> str:
        """A record to be renamed into its place."""
        tmp = self._layout.new_path(info.id)
        self._cache.remember(
            info, self._write_new(tmp, records.serialize(info, root=self._layout.root))
        )
        return tmp

    def write_tmp(self, upload_id: str, content: bytes, *, sync: bool = False) -> str:
        """A file with `content`, to be renamed into its place."""
        tmp = self._layout.new_path(upload_id)
        self._write_new(tmp, content, sync=sync)
        return tmp

    def _write_new(self, path: str, content: bytes, *, sync: bool = False) -> os.stat_result:
        """A new file; without all of its content, nothing is left. Raises FileExistsError."""
        descriptor = create_file(path, self._file_perms)
        try:
            write_all(descriptor, content)
            if sync:
                os.fsync(descriptor)
            return os.fstat(descriptor)
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)

    def replace(self, info: UploadInfo, tmp: str, fence: Fence) -> None:
        """Renames `tmp` over the record, or removes it. Raises UploadNotFound where there is no record: what was removed stays
        removed."""
        path = self._layout.info_path(info.id)
        try:
            with fence():
                # Nothing can remove it between these two, as that takes the lock.
                if not os.access(path, os.F_OK):
                    raise UploadNotFound(f"{info.id}: its record is gone")
                os.rename(tmp, path)
        except BaseException:
            os.unlink(tmp)
            raise

    def mark_finished(self, info: UploadInfo, path: str, fence: Fence) -> bool:
        """Writes into the record where it lies that the upload is finished; False where it is not written as ours are."""
        with fence():
            return self._write_ending(info, path)

    def _write_ending(self, info: UploadInfo, path: str) -> bool:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise UploadNotFound(f"{info.id}: its record is gone") from None
        try:
            at = max(0, os.fstat(descriptor).st_size - len(records.UNFINISHED))
            if os.pread(descriptor, len(records.UNFINISHED) + 1, at) != records.UNFINISHED:
                return False
            ending = records.ending(info.finished_at)
            if os.pwrite(descriptor, ending, at) != len(ending):
                raise OSError(errno.ENOSPC, "the record was written in part")
            self._cache.remember(info, os.fstat(descriptor))
        finally:
            os.close(descriptor)
        return True

    def mark_unfinished(self, info: UploadInfo, path: str, fence: Fence) -> None:
        """Takes `mark_finished` back, as far as the disk lets that be done."""
        marked = records.ending(info.finished_at)
        with suppress(OSError, LeaseLost), fence():
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                at = max(0, os.fstat(descriptor).st_size - len(marked))
                if os.pread(descriptor, len(marked), at) == marked:
                    os.pwrite(descriptor, records.UNFINISHED, at)
            finally:
                os.close(descriptor)
