"""The identity of an upload directory, by which it is told from the empty one that is left where its volume is not mounted.

Its id is random, made when the directory is opened for the first time, and lies in `.tusd-py/id`. While a server runs, the
directory at its path is compared with the one that was opened: before an upload is looked up or created, and around sweeps. One
process or several lock it; the kernel releases the lock when a process ends. Not for: remembering ids elsewhere
(`service/known_directories.py`).
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

from tusd_py import logs
from tusd_py.storage.base import VolumeMissing
from tusd_py.storage.errors import takes_nothing, translated
from tusd_py.storage.file.files import write_new
from tusd_py.storage.file.fsync import sync_path
from tusd_py.storage.file.layout import Layout

logger = logging.getLogger(__name__)

_ID_BYTES = 16
_is_id = re.compile(rb"[0-9a-f]{32}\n?").fullmatch


def read_id(root: str | os.PathLike[str]) -> str | None:
    """Return the id of the upload directory `root`; None for a directory without one, or none at all. Raises OSError."""
    try:
        content = Path(_id_path(Layout(root).state)).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    # What a power cut left of it is none.
    return content.decode().strip() if _is_id(content) else None


def _id_path(state: str) -> str:
    return f"{state}/id"


class UploadVolume:
    """The upload directory at the root of `layout`. Safe for any thread.

    Attributes:
        id: Its id; empty before `open`, and where none could be stored.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._opened: tuple[int, int] | None = None
        self._logged: str | None = None
        self.id = ""

    def open(self) -> None:
        """Read the id, or make one. Raises OSError."""
        root = self._layout.root
        self.id = read_id(root) or self._make_id()
        self._opened = _place_of(root)

    def sync_id(self) -> None:
        """See `Volume`."""
        state = self._layout.state
        with translated("syncing the id of the upload directory"):
            for path in (_id_path(state), state, self._layout.root) if self.id else ():
                sync_path(path)

    def check(self) -> None:
        """Raise VolumeMissing if the directory at the path is not the one that was opened."""
        if self._opened is None:
            return
        problem = self._problem()
        if problem != self._logged:
            self._logged = problem
            self._log_change(problem)
        if problem is not None:
            raise VolumeMissing(problem)

    def _problem(self) -> str | None:
        root = self._layout.root
        try:
            found = _place_of(root)
            if found == self._opened:
                return None
            is_same = bool(self.id) and read_id(root) == self.id
        except OSError as problem:
            return f"{root} cannot be reached: {problem.strerror}"
        if not is_same:
            return f"{root} is not the directory that was opened: its volume may not be mounted"
        if self._opened is not None and found[0] != self._opened[0]:
            # Locks and syncs hold on to the old device.
            return f"{root} lies on another device than when it was opened: restart the server"
        if self._layout.is_local:
            # Locks are held in the other one, so that a second server could serve this one.
            return f"{root} was replaced by another directory with the same id, such as a copy: restart the server"
        # Some file systems in user space number their files anew.
        self._opened = found
        return None

    def _log_change(self, problem: str | None) -> None:
        if problem is None:
            message = f"{self._layout.root} is back: its uploads are served again"
            logs.event(logger, logging.WARNING, "upload directory back", message=message)
            return
        logs.event(
            logger,
            logging.ERROR,
            "upload directory away",
            message=f"No upload is served, created or removed: {problem}",
        )

    def _make_id(self) -> str:
        """Store a new id, unless another process does at the same moment; return the one that is stored."""
        made = secrets.token_hex(_ID_BYTES)
        tmp, path = self._layout.new_path("id"), _id_path(self._layout.state)
        try:
            write_new(tmp, f"{made}\n".encode(), perms=self._layout.file_perms)
            self._place(tmp, path)
        except OSError as problem:
            if not takes_nothing(problem):
                raise
            return ""
        finally:
            with suppress(OSError):
                os.unlink(tmp)
        return read_id(self._layout.root) or made

    def _place(self, tmp: str, path: str) -> None:
        """Give the file `tmp` its name, unless an id has it. Raises OSError."""
        try:
            os.link(tmp, path)
        except FileExistsError:
            if read_id(self._layout.root) is None:
                os.rename(tmp, path)
        except (PermissionError, NotImplementedError):
            # A file system without hard links.
            os.rename(tmp, path)


def _place_of(path: str) -> tuple[int, int]:
    """Device and inode of a directory. Raises OSError."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


_POLL_SECONDS = 0.1


class DirectoryHeld(Exception):
    """Another process holds the directory. The text is its process id, if known."""


def lock_directory(path: str, *, exclusive: bool, perms: int, wait: float) -> int:
    """Lock the file at `path` and record this process in it; blocking. Returns its descriptor, which holds the lock.

    wait: seconds to wait for another process to release it. Raises DirectoryHeld, OSError.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, perms)
    except OSError as problem:
        if problem.errno != errno.EROFS:
            raise
        # A file from an earlier start can be locked even if it is read-only.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, wait)
        with suppress(OSError):
            # On a full or read-only disk other processes do not learn who holds the lock.
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int, kind: int, wait: float) -> None:
    deadline = time.monotonic() + wait
    told = False
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            left = deadline - time.monotonic()
            if left <= 0:
                raise DirectoryHeld(holder) from None
        else:
            return
        if not told:
            told = True
            logs.event(
                logger,
                logging.INFO,
                "waiting for the directory",
                message=f"Waiting up to {wait:g} s for process {holder} to release the upload directory",
            )
        time.sleep(min(_POLL_SECONDS, left))
