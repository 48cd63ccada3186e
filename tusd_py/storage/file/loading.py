"""Loading of uploads: what their records say, and how many of their bytes count. Blocking calls that change nothing.

Each data file is compared with its record. A finished upload has exactly as many bytes as its record says, an unfinished one no
more. Anything else has an external cause (a repaired disk, a partly restored backup, a file cut by hand), and must not be taken
for what the client sent.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass

from tusd_py.storage.base import (
    BytesMissing,
    Upload,
    UploadDamaged,
    UploadGone,
    UploadInfo,
    UploadNotFound,
    UploadUnreachable,
    is_valid_id,
)
from tusd_py.storage.errors import translated
from tusd_py.storage.file import foreign, records
from tusd_py.storage.file.files import exists, is_surely_absent, opened
from tusd_py.storage.file.layout import Layout, flat_name
from tusd_py.storage.file.losses import Losses, WrittenUploads
from tusd_py.storage.file.markers import UploadMarks
from tusd_py.storage.file.power_cuts import Session, sound_length
from tusd_py.storage.file.record_cache import RecordCache
from tusd_py.storage.file.records import read_record
from tusd_py.storage.file.removal import UnpublishedRemovals
from tusd_py.storage.file.volume import UploadVolume


@dataclass(frozen=True, slots=True)
class UploadLoader:
    """Loads the uploads of one directory. syncs_chunks: every writer is closed with a sync."""

    layout: Layout
    volume: UploadVolume
    cache: RecordCache
    marks: UploadMarks
    session: Session
    losses: Losses
    written: WrittenUploads
    unpublished: UnpublishedRemovals
    syncs_chunks: bool

    def load(self, upload_id: str, *, remember: bool = True) -> Upload:
        """See `Store.load`. remember: keep the record in the cache."""
        if not is_valid_id(upload_id):
            raise UploadNotFound(upload_id)
        with translated(f"reading {upload_id}"):
            return self.read(upload_id, remember=remember)

    def read(self, upload_id: str, *, remember: bool = True) -> Upload:
        """Load an upload whose id is valid. Raises StorageError, OSError."""
        info = self._record_of(upload_id, remember=remember)
        try:
            data = self._status(self.layout.data_path(info))
        except (FileNotFoundError, NotADirectoryError):
            return self.without_bytes(info)
        offset = data.st_size
        is_cut = False
        if info.finished_at is None:
            flat = flat_name(upload_id)
            verified = self.marks.verifying.read(flat)
            is_cut = verified is not None
            if verified is not None:
                offset = min(offset, verified)
            if info.foreign:
                upload = foreign.upload_of(info, size=offset, changed_at=data.st_mtime)
                return upload._replace(is_cut=is_cut)
            if info.is_final:
                # A final's data file appears complete; a crash may have kept its length out of the record.
                info = info._replace(length=offset)
            elif offset and not self.syncs_chunks and self.losses.concerns(flat, data.st_mtime_ns):
                offset, is_cut = 0, True
            elif offset and self.layout.is_local and self._may_be_cut(flat, upload_id, data):
                known_sound = self.marks.sound.read(flat) or 0
                sound = max(sound_length(self.layout.data_path(info)), known_sound)
                is_cut = is_cut or sound < offset
                offset = min(offset, sound)
        upload = Upload(info, offset, max(data.st_mtime, info.created_at), is_cut=is_cut)
        check_bytes(upload, data)
        return upload

    def _may_be_cut(self, flat: str, upload_id: str, data: os.stat_result) -> bool:
        """Return whether a power cut may have replaced the last bytes of an unfinished upload. Raises OSError."""
        return (
            self.session.is_older(data)
            and self.written.of(upload_id) is None
            and self.marks.in_session.read(flat) != self.session.number
        )

    def without_bytes(self, info: UploadInfo) -> Upload:
        """Return a final that waits for its parts. Raises BytesMissing for others, UploadGone for one just removed."""
        if info.is_final and info.finished_at is None:
            return Upload(info, 0, info.created_at, joined=False)
        if not exists(self.layout.info_path(info.id)):
            self._record_of(info.id, remember=False)
        raise BytesMissing(f"the bytes of {info.id} are not at {self.layout.data_path(info)}", info)

    def _record_of(self, upload_id: str, *, remember: bool) -> UploadInfo:
        """Return the upload's record, from the cache if it is still valid."""
        self.volume.check()
        path = self.layout.info_path(upload_id)
        read_at = time.time_ns()
        try:
            if self.layout.is_local:
                known = self.cache.recall(upload_id, path, os.stat(path, follow_symlinks=False))
                if known is not None:
                    return known
            content, status = read_record(path)
        except (FileNotFoundError, NotADirectoryError):
            # It may have gone away meanwhile.
            self.volume.check()
            is_gone = exists(self.layout.tombstone(upload_id))
            if is_gone or self.unpublished.has(upload_id):
                raise UploadGone(upload_id) from None
            if "/" in upload_id and not is_surely_absent(self.layout.root, f"{upload_id}.info"):
                raise UploadUnreachable(
                    f"the directory of {upload_id} is empty: a volume may not be mounted there"
                ) from None
            raise UploadNotFound(upload_id) from None
        if not records.strip_nuls(content):
            raise UploadNotFound(f"{upload_id}: its creation was interrupted")
        info = records.parse(
            content, upload_id=upload_id, root=self.layout.root, changed_at=status.st_mtime
        )
        if remember and not info.foreign:
            self.cache.remember(info, status, read_at=read_at)
        return info

    def _status(self, path: str) -> os.stat_result:
        """Return a file's current status. On a network file system only opening the file revalidates it."""
        if self.layout.is_local:
            return os.stat(path, follow_symlinks=False)
        try:
            with opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as descriptor:
                return os.fstat(descriptor)
        except OSError as problem:
            if problem.errno != errno.ELOOP:
                raise
            return os.stat(path, follow_symlinks=False)


def check_bytes(upload: Upload, data: os.stat_result) -> None:
    """Raise UploadDamaged if the data file with the status `data` contradicts the record of `upload`."""
    length, size = upload.length, data.st_size
    problem = ""
    if not stat.S_ISREG(data.st_mode):
        problem = "its data is not a regular file"
    elif upload.finished and length is not None and size != length:
        problem = f"it is finished with {length} bytes, but there are {size}"
    elif length is not None and size > length and not upload.is_cut:
        problem = f"its length is {length} bytes, but there are {size}"
    if problem:
        raise UploadDamaged(f"{upload.id} is damaged: {problem}", upload)


def check_same(upload: Upload, data: os.stat_result) -> None:
    """Raise UploadNotFound if the open data file with the status `data` is not the one that `upload` was loaded from.

    Between the two the upload may have been removed, and another one been created with its id, perhaps of another owner.
    """
    if max(data.st_mtime, upload.info.created_at) != upload.changed_at:
        raise UploadNotFound(f"{upload.id} was replaced by another upload meanwhile")
