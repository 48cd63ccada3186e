"""Cleanup of what crashes left behind, of old tombstones, and the marks of uploads whose bytes are missing.

Blocking calls: they run in threads.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass, field

from tusd_py.locks.base import Fence
from tusd_py.storage.base import BytesMissing, StorageError
from tusd_py.storage.file import records
from tusd_py.storage.file.files import create_file, exists, is_surely_absent, unlink_if_exists
from tusd_py.storage.file.finals import FinalRecords
from tusd_py.storage.file.layout import Layout, flat_name, id_of
from tusd_py.storage.file.listing import entries_of, files_in
from tusd_py.storage.file.loading import UploadLoader
from tusd_py.storage.file.markers import UploadMarks
from tusd_py.storage.file.records import read_record
from tusd_py.storage.file.removal import Removal

_ABANDONED_SECONDS = 3600.0
"""Age at which a temporary file or a record without data is taken for the remains of a crash."""


@dataclass(slots=True)
class Cleanup:
    """Cleans up one upload directory."""

    layout: Layout
    marks: UploadMarks
    removal: Removal
    finals: FinalRecords
    loader: UploadLoader
    _alone_since: float = field(default=0.0, init=False)
    _leftovers: frozenset[str] = field(default=frozenset(), init=False)

    def begin_alone(self, since: float) -> None:
        """Take everything incomplete for the remains of a crash, as this process has locked the directory for itself.

        since: the time by the file system's clock, in seconds since the epoch.
        """
        self._alone_since = since
        # Not told by their times, as the clock may be set back, nor by a process id in the name: servers in containers may all
        # have the same one.
        self._leftovers = frozenset(entry.name for entry in entries_of(self.layout.new))

    def _is_abandoned(self, changed_at: float) -> bool:
        """Return whether an incomplete file is too old to be in use, or as old as the last crash."""
        now = time.time()
        return changed_at < self._alone_since <= now or now - changed_at > _ABANDONED_SECONDS

    def tidy(self, tombstone_ttl: float) -> int:
        """See `Store.tidy`."""
        removed = 0
        now = time.time()
        # A file may be removed or renamed during the scan; then there is nothing to clean up.
        for entry in entries_of(self.layout.new):
            with suppress(OSError):
                age = now - entry.stat(follow_symlinks=False).st_mtime
                if entry.name in self._leftovers or age > _ABANDONED_SECONDS:
                    removed += unlink_if_exists(entry.path)
        for entry in files_in(self.layout.tombstones):
            # One that cannot be removed does not stop the others; the next sweep tries again.
            with suppress(OSError):
                status = entry.stat()
                if status.st_size:
                    self.removal.complete(id_of(entry.name), entry.path)
                    removed += 1
                elif now - status.st_mtime > tombstone_ttl:
                    removed += unlink_if_exists(entry.path)
        for entry in [each for path in self.marks.directories for each in entries_of(path)]:
            with suppress(OSError):
                if is_surely_absent(self.layout.root, f"{id_of(entry.name)}.info"):
                    removed += unlink_if_exists(entry.path)
        return removed + self.finals.tidy(self._is_finished) + self._tidy_missing()

    def _is_finished(self, upload_id: str) -> bool:
        try:
            return self.loader.load(upload_id, remember=False).finished
        except StorageError:
            return False

    def discard_fragment(self, upload_id: str, fence: Fence) -> bool:
        """See `Store.discard_fragment`."""
        path = self.layout.info_path(upload_id)
        try:
            content, status = read_record(path)
        except FileNotFoundError:
            return False
        if not records.strip_nuls(content):
            with fence():
                return self._discard_empty(upload_id, path, status.st_mtime)
        return False

    def _discard_empty(self, upload_id: str, path: str, changed_at: float) -> bool:
        """Remove an empty record and its empty data file. A record with bytes beside it was not left by a creation."""
        if not self._is_abandoned(changed_at):
            return False
        data = f"{self.layout.root}/{upload_id}"
        with suppress(FileNotFoundError):
            status = os.lstat(data)
            if not stat.S_ISREG(status.st_mode) or status.st_size:
                return False
        removed = unlink_if_exists(path)
        unlink_if_exists(data)
        return bool(removed)

    def missing_since(self, upload_id: str, *, marks: bool) -> float:
        """See `Store.missing_since`."""
        mark = f"{self.layout.missing}/{flat_name(upload_id)}"
        if not marks and not exists(mark):
            return time.time()
        with suppress(FileExistsError):
            os.makedirs(self.layout.missing, mode=self.layout.dir_perms, exist_ok=True)
            os.close(create_file(mark, self.layout.file_perms))
        return os.stat(mark).st_mtime

    def _tidy_missing(self) -> int:
        """Remove the marks of uploads whose bytes are back, or that are gone; returns how many."""
        removed = 0
        for entry in files_in(self.layout.missing):
            try:
                self.loader.load(id_of(entry.name), remember=False)
            except BytesMissing:
                continue
            except StorageError:
                pass
            removed += unlink_if_exists(entry.path)
        return removed
