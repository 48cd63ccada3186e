"""Indexes of finals: which of them list a part, and which one was created from a list of parts.

    awaiting/<part>/<final>   a final that lists the part and is not joined yet
    finals/<key>              the id of the final created for a key

Neither is the truth: a final exists if it has a record, and its record names its parts. A key is a symbolic link to an id: as
part of the directory's metadata it outlasts a power cut if the final's record does, which is written later. Where there are no
links it is a file. Blocking calls on small files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from tusd_py.locks.base import Fence, LeaseLost
from tusd_py.storage.base import MAX_ID_BYTES, is_valid_id
from tusd_py.storage.file.files import is_surely_absent, link_or_content, unlink_if_exists
from tusd_py.storage.file.layout import Layout, flat_name, id_of
from tusd_py.storage.file.markers import NO_LINKS
from tusd_py.storage.file.record_writer import RecordWriter

_KEPT_SECONDS = 7 * 86_400.0
"""Time in which the creation of a final can be repeated: longer than any client tries."""


class FinalRecords:
    """The indexes of one upload directory. records: writes temporary files. directories: must exist."""

    def __init__(self, layout: Layout, records: RecordWriter) -> None:
        self._awaiting = f"{layout.state}/awaiting"
        self._finals = f"{layout.state}/finals"
        self.directories = self._awaiting, self._finals
        self._layout = layout
        self._records = records

    # Which finals list a part

    def await_parts(self, part_ids: Iterable[str], final_id: str) -> None:
        """Record that the final lists these parts. Raises OSError."""
        for part_id in part_ids:
            self._await_part(f"{self._awaiting}/{flat_name(part_id)}", flat_name(final_id))

    def _await_part(self, directory: str, name: str) -> None:
        while True:
            os.makedirs(directory, mode=self._layout.dir_perms, exist_ok=True)
            # A concurrent `tidy` may remove the directory while it is empty.
            with suppress(FileNotFoundError):
                Path(directory, name).touch(mode=self._layout.file_perms)
                return

    def awaiting(self, part_id: str) -> list[str]:
        """Return the finals that list a part. Raises OSError."""
        try:
            names = os.listdir(f"{self._awaiting}/{flat_name(part_id)}")
        except FileNotFoundError:
            return []
        return [id_of(name) for name in names]

    def forget_awaiting(self, part_ids: Iterable[str], final_id: str) -> None:
        """Undo `await_parts`. Raises OSError."""
        for part_id in part_ids:
            directory = f"{self._awaiting}/{flat_name(part_id)}"
            with suppress(FileNotFoundError):
                os.unlink(f"{directory}/{flat_name(final_id)}")
            with suppress(OSError):
                os.rmdir(directory)

    def forget_part(self, part_id: str) -> None:
        """Remove the entries of a removed part. Raises OSError."""
        directory = f"{self._awaiting}/{flat_name(part_id)}"
        with suppress(FileNotFoundError):
            for name in os.listdir(directory):
                with suppress(FileNotFoundError):
                    os.unlink(f"{directory}/{name}")
            os.rmdir(directory)

    # Which final was created for a key

    def remember(self, key: str, final_id: str, fence: Fence) -> None:
        """Record the final of a key. Raises OSError, LeaseLost."""
        tmp = self._layout.new_path(final_id)
        try:
            os.symlink(final_id, tmp)
        except OSError as problem:
            if problem.errno not in NO_LINKS:
                raise
            tmp = self._records.write_tmp(final_id, final_id.encode(), sync=True)
        try:
            with fence():
                os.rename(tmp, f"{self._finals}/{key}")
        except (OSError, LeaseLost):
            os.unlink(tmp)
            raise

    def forget(self, key: str) -> None:
        """Undo `remember`. Raises OSError."""
        unlink_if_exists(f"{self._finals}/{key}")

    def recall(self, key: str) -> str | None:
        """Return the final of a key, if any. Raises OSError."""
        try:
            return _content(f"{self._finals}/{key}")
        except FileNotFoundError:
            return None

    # Tidying

    def tidy(self, is_finished: Callable[[str], bool]) -> int:
        """Remove entries of removed uploads, and old keys of finished finals; returns how many."""
        return self._tidy_awaiting() + self._tidy_keys(is_finished)

    def _tidy_awaiting(self) -> int:
        removed = 0
        for part in _names(self._awaiting):
            directory = f"{self._awaiting}/{part}"
            part_is_there = self._may_have_record(id_of(part))
            for final in _names(directory):
                if not part_is_there or not self._may_have_record(id_of(final)):
                    with suppress(OSError):
                        removed += unlink_if_exists(f"{directory}/{final}")
            with suppress(OSError):
                os.rmdir(directory)
        return removed

    def _tidy_keys(self, is_finished: Callable[[str], bool]) -> int:
        removed = 0
        for key in _names(self._finals):
            path = f"{self._finals}/{key}"
            with suppress(OSError):
                old = time.time() - os.lstat(path).st_mtime > _KEPT_SECONDS
                final_id = _content(path)
                is_there = self._may_have_record(final_id)
                # A creation records its key before its upload.
                if (old and is_finished(final_id)) if is_there else self._is_old(path):
                    removed += unlink_if_exists(path)
        return removed

    def _may_have_record(self, upload_id: str) -> bool:
        """False for an upload that is gone for certain: a volume may be away."""
        if not is_valid_id(upload_id):
            return False
        try:
            return not is_surely_absent(self._layout.root, f"{upload_id}.info")
        except OSError:
            return True

    @staticmethod
    def _is_old(path: str) -> bool:
        return time.time() - os.lstat(path).st_mtime > 60.0


def _content(path: str) -> str:
    """The id that a key leads to; no valid one where a power cut left a file without its content."""
    return link_or_content(path, MAX_ID_BYTES + 1).decode("utf-8", "replace")


def _names(directory: str) -> Sequence[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
