"""Keeps servers of different upload directories out of one state directory.

The control socket, the embedded Redis and other files in it are those of one upload directory: a command could act on the
uploads of another one. All processes that use a state directory share a lock of a file, which names what they serve; servers of
the same upload directory may share it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass

from tusd_py.settings.model import Settings
from tusd_py.storage.base import StorageError
from tusd_py.storage.file.volume import read_id

logger = logging.getLogger(__name__)

_LOCK = "state.lock"
_MOST_BYTES = 16_384
_WAIT_SECONDS = 1.0
"""Time for others to release the lock that only look what it is held for."""
_POLL_SECONDS = 0.02


def directory_id(settings: Settings) -> str:
    """The id of the upload directory of these settings, or the place in a bucket; empty without one. Raises OSError."""
    if settings.s3_bucket:
        return f"{settings.s3_endpoint or ''} {settings.s3_bucket}/{settings.s3_object_prefix}"
    return read_id(settings.upload_dir) or ""


@dataclass(frozen=True, slots=True)
class _Served:
    """What the holders of a lock serve. directory: for people."""

    id: str
    directory: str


class StateLock:
    """The share of this process in the state directory of its settings. Blocking, but for moments."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._held: int | None = None

    def acquire(self) -> None:
        """Take a share, unless processes of another upload directory have it. Raises StorageError.

        Where the file system takes no file, or has no locks, nothing is checked.
        """
        if self._held is not None:
            return
        settings = self._settings
        directory = settings.s3_bucket or str(settings.upload_dir)
        with ExitStack() as opened:
            try:
                ours = _Served(directory_id(settings) or directory, directory)
                settings.state_dir.mkdir(mode=settings.dir_perms, parents=True, exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                descriptor = os.open(settings.state_dir / _LOCK, flags, settings.file_perms)
                opened.callback(os.close, descriptor)
                served = _share(descriptor, ours)
            except OSError as problem:
                logger.debug("the state directory is not locked: %r", problem)
                return
            if served is not None and served.id != ours.id:
                raise StorageError(
                    f"{settings.state_dir} is the state directory of a server of {served.directory}, which runs: give each "
                    "upload directory its own (--state-dir)"
                )
            opened.pop_all()
            self._held = descriptor

    def release(self) -> None:
        """Give the share back."""
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _share(descriptor: int, ours: _Served) -> _Served | None:
    """Share the lock of a file, naming what we serve if nobody has it; return what it names. Raises OSError."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write(descriptor, ours)
        # Another process may have written before this one has its share.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        served = _read(descriptor)
        if served is None or served.id == ours.id or time.monotonic() > deadline:
            return served
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        time.sleep(_POLL_SECONDS)


def _write(descriptor: int, served: _Served) -> None:
    content = json.dumps(asdict(served)).encode()
    os.ftruncate(descriptor, 0)
    # On a full disk it stays empty, and nothing is checked.
    with suppress(OSError):
        os.pwrite(descriptor, content, 0)


def _read(descriptor: int) -> _Served | None:
    try:
        found = json.loads(os.pread(descriptor, _MOST_BYTES, 0))
        return _Served(str(found["id"]), str(found["directory"]))
    except (ValueError, KeyError, TypeError):
        return None
