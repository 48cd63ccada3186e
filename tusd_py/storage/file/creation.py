"""Creation of an upload's files: its record, then its data file, then the record's content.

So data without a record is never left, and an upload exists once its record has content. Blocking calls.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass

from tusd_py.storage.base import PlaceTaken, UploadExists, UploadInfo
from tusd_py.storage.file import records
from tusd_py.storage.file.files import create_file, write_all
from tusd_py.storage.file.finished import FinishedFiles
from tusd_py.storage.file.layout import Layout
from tusd_py.storage.file.record_cache import RecordCache
from tusd_py.storage.file.removal import Removal
from tusd_py.storage.file.volume import UploadVolume

_MAX_ATTEMPTS = 20
"""Times that a directory is created again after another process removed it because it was empty."""


@dataclass(frozen=True, slots=True)
class Creation:
    """Creates uploads in one directory."""

    layout: Layout
    volume: UploadVolume
    cache: RecordCache
    removal: Removal
    finished: FinishedFiles | None

    def create(self, info: UploadInfo) -> None:
        """Create an upload; fenced by the caller. Raises UploadExists, PlaceTaken, VolumeMissing, OSError."""
        self.volume.check()
        if self.finished is not None and self.finished.holds(self.layout.data_path(info)):
            raise PlaceTaken(f"{info.id}: its path is in the directory of finished files")
        self.removal.forget_tombstone(info.id)
        if "/" not in info.id and not info.location:
            self._create_files(info)
            return
        try:
            self._create_with_parents(info)
        except BaseException:
            self.removal.remove_empty_parents(info.id, info.location)
            raise

    def _create_with_parents(self, info: UploadInfo) -> None:
        """Create an upload whose path has directories. Another process may remove them as long as they are empty."""
        for _ in range(_MAX_ATTEMPTS):
            self._make_parents(info)
            with suppress(FileNotFoundError):
                self._create_files(info)
                return
        raise FileNotFoundError(errno.ENOENT, "its directory keeps being removed")

    def _create_files(self, info: UploadInfo) -> None:
        data_path = self.layout.data_path(info)
        try:
            record = create_file(self.layout.info_path(info.id), self.layout.file_perms)
        except FileExistsError:
            raise UploadExists(info.id) from None
        made = [self.layout.info_path(info.id)]
        content = records.serialize(info, root=self.layout.root)
        try:
            if info.location:
                # The cleanup of an interrupted creation finds the bytes only by the record.
                write_all(record, content)
            if not info.is_final:
                os.close(create_file(data_path, self.layout.file_perms))
                made.append(data_path)
            if not info.location:
                # Only now: a record with content but no data file means missing bytes, not an interrupted creation.
                write_all(record, content)
            self.cache.remember(info, os.fstat(record))
        except OSError as problem:
            for path in made:
                with suppress(FileNotFoundError):
                    os.unlink(path)
            if isinstance(problem, FileExistsError):
                raise PlaceTaken(f"{info.id}: {data_path} is taken") from None
            raise
        finally:
            os.close(record)

    def _make_parents(self, info: UploadInfo) -> None:
        for path in (self.layout.info_path(info.id), self.layout.data_path(info)):
            try:
                os.makedirs(os.path.dirname(path), mode=self.layout.dir_perms, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise PlaceTaken(f"{info.id}: a part of its path is an upload") from None
