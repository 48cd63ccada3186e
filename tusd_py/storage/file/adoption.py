"""Taking over uploads that another server recorded, and giving them back. Blocking calls; durable when they return."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tusd_py.locks.base import UNFENCED, Fence
from tusd_py.storage.base import StorageError, Upload, UploadInfo
from tusd_py.storage.file import foreign, records
from tusd_py.storage.file.fsync import sync_path
from tusd_py.storage.file.layout import Layout
from tusd_py.storage.file.loading import UploadLoader
from tusd_py.storage.file.record_writer import RecordWriter


@dataclass(frozen=True, slots=True)
class Adoption:
    """Takes over uploads of one directory."""

    layout: Layout
    loader: UploadLoader
    records: RecordWriter

    def adopt(self, upload: Upload, fence: Fence) -> Upload:
        """See `FileStore.adopt`. Raises StorageError if the other server still uses the upload."""
        try:
            with fence():
                return self._adopt_locked(upload)
        except BlockingIOError:
            raise StorageError(f"{upload.id}: tuspyserver is still using it") from None

    def _adopt_locked(self, upload: Upload) -> Upload:
        with foreign.locked(*os.path.split(self.layout.data_path(upload.info))):
            if self.loader.read(upload.id) != upload:
                raise StorageError(f"{upload.id}: the server that recorded it is still running")
            adopted = upload.with_info(foreign=False, counted=None)
            if upload.joined:
                foreign.cut(upload, self.layout.data_path(upload.info))
            self._save(adopted.info, sync=upload.joined)
        return adopted

    def give_back(self, info: UploadInfo, content: bytes) -> None:
        """See `FileStore.give_back`."""
        self._save(info, sync=True, content=content)

    def _save(self, info: UploadInfo, *, sync: bool, content: bytes | None = None) -> None:
        """Replace the record. content: the new one, where it is not in our format."""
        if sync:
            sync_path(self.layout.data_path(info), data_only=True)
        content = records.serialize(info, root=self.layout.root) if content is None else content
        self.records.replace(info, self.records.write_tmp(info.id, content, sync=True), UNFENCED)
        if sync:
            for directory in self.layout.directories(info):
                sync_path(directory)
