"""Markers: a number for an upload, such as how many of its bytes count until the chunk behind them is verified.

A marker is a symbolic link to its number, `verifying/<upload>` -> `4194304`. Its target is part of the directory's metadata, so
there is never a marker without its number, and file systems that keep the order of metadata write the marker to the disk before
the data file grows there: after a power cut no byte behind it counts. Where that order is not guaranteed, the directory is
synced before the first byte is written; without symbolic links, the marker is a synced file, as those of earlier versions in
`chunks/` were. A marker without a valid number was left by a power cut in an earlier version: it does not tell which bytes were
verified, so none of them counts.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress

from tusd_py.storage.file.files import link_or_content, write_new
from tusd_py.storage.file.fsync import sync_path
from tusd_py.storage.file.layout import Layout
from tusd_py.storage.file.mounts import keeps_order

logger = logging.getLogger(__name__)

NO_LINKS = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""Errors of file systems that have no symbolic links."""
_MAX_DIGITS = 20


class ChunkMarkers:
    """The markers in one directory. Their names are those of `flat_name`.

    new_path: returns an unused path in the same file system. former: the directory of earlier versions' markers, which are
    read as well.
    """

    def __init__(
        self, directory: str, new_path: Callable[[str], str], *, former: str | None = None
    ) -> None:
        self.directory = directory
        self._new_path = new_path
        self.is_slow = True
        # The directories that may contain markers.
        self._places = [directory] if former is None else [directory, former]

    def open(self, *, is_shared: bool) -> None:
        """Find out whether a marker needs a sync (`is_slow`). Raises OSError.

        is_shared: whether other processes may make markers. Otherwise directories that are empty now are not searched, as each
        upload would pay for that.
        """
        self.is_slow = not keeps_order(self.directory)
        if not is_shared:
            self._places = [each for each in self._places if _may_have_entries(each)]

    def path(self, name: str) -> str:
        return f"{self.directory}/{name}"

    def make(self, name: str, number: int) -> str:
        """Create or replace a marker and return its path. Raises OSError.

        One of a chunk that is being verified survives a power cut if any byte behind `number` does.
        """
        path = self.path(name)
        if self.directory not in self._places:
            self._places.append(self.directory)
        try:
            self._link(name, number)
        except OSError as problem:
            if problem.errno not in NO_LINKS:
                raise
            tmp = self._new_path(name)
            write_new(tmp, b"%d" % number, sync=True)
            os.rename(tmp, path)
        if self.is_slow:
            sync_path(self.directory)
        return path

    def _link(self, name: str, number: int) -> None:
        path = self.path(name)
        try:
            os.symlink(str(number), path)
        except FileExistsError:
            tmp = self._new_path(name)
            os.symlink(str(number), tmp)
            os.rename(tmp, path)

    def remove(self, name: str) -> None:
        """Remove an upload's marker, if any. Raises OSError."""
        for place in self._places:
            with suppress(FileNotFoundError):
                os.unlink(f"{place}/{name}")

    def read(self, name: str) -> int | None:
        """Return the number, the least one if an earlier version left another; None without a marker. Raises OSError."""
        if not self._places:
            return None
        numbers = [self._read(f"{place}/{name}") for place in self._places]
        return min((number for number in numbers if number is not None), default=None)

    @staticmethod
    def _read(path: str) -> int | None:
        try:
            content = link_or_content(path, _MAX_DIGITS + 1)
        except FileNotFoundError:
            return None
        if content.isdigit() and len(content) <= _MAX_DIGITS:
            return int(content)
        logger.warning(
            "the marker %s does not tell which bytes were verified, probably after a power cut: none of them counts, "
            "the client sends them again",
            path,
        )
        return 0


class UploadMarks:
    """All markers of the uploads of one directory; `store.py` says what each kind records.

    directories: all that may have markers, those of earlier versions included.
    """

    def __init__(self, layout: Layout) -> None:
        former = f"{layout.state}/chunks"
        self.verifying = ChunkMarkers(f"{layout.state}/verifying", layout.new_path, former=former)
        self.sound = ChunkMarkers(f"{layout.state}/sound", layout.new_path)
        self.since_loss = ChunkMarkers(f"{layout.state}/since-loss", layout.new_path)
        self.in_session = ChunkMarkers(f"{layout.state}/in-session", layout.new_path)
        self.kinds = (self.verifying, self.sound, self.since_loss, self.in_session)
        self.directories = (former, *(kind.directory for kind in self.kinds))


def _may_have_entries(directory: str) -> bool:
    try:
        return bool(os.listdir(directory))
    except OSError:
        return True
