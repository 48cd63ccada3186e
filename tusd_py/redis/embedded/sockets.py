"""Unix sockets of the embedded server: a path that is short enough, and a first word with who
listens there.

Blocking, and for starting and stopping alone; commands go through `connection`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tusd_py.redis.embedded.watchdog import SOCKET

# sun_path has 108 bytes on Linux and 104 on macOS and the BSDs, one of them for the closing NUL.
MAX_PATH = 107 if sys.platform == "linux" else 103

_POLL = 0.005
_CONNECT_TIMEOUT = 1.0


class EmbeddedRedisError(Exception):
    """The embedded server cannot be had. The text says why, and what to do."""


def path_for(directory: Path) -> str:
    """A path to the socket in `directory` that is short enough for the system.

    If need be it leads there by a link: only the path that the system is given must be short, not
    where it ends. Raises EmbeddedRedisError, OSError.
    """
    target = os.path.abspath(directory)
    path = os.path.join(target, SOCKET)
    if len(os.fsencode(path)) <= MAX_PATH:
        return path
    link = os.path.join(_runtime_directory(), _digest(target))
    path = os.path.join(link, SOCKET)
    with suppress(OSError):
        if os.readlink(link) == target:
            return path
    fresh = f"{link}.{secrets.token_hex(4)}"
    os.symlink(target, fresh)
    os.replace(fresh, link)
    return path


def listens(path: str) -> bool:
    """Whether somebody accepts connections; not whether anybody answers."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_CONNECT_TIMEOUT)
        try:
            connection.connect(path)
        except OSError:
            return False
    return True


def ask(path: str, command: str, timeout: float) -> bytes | None:
    """The beginning of a server's answer; None if nobody is there, or if it hangs up.

    Raises TimeoutError if it is there and does not answer within `timeout` seconds.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(path)
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(4096) or None
        except BlockingIOError:
            # So many wait for it that the system takes no more.
            raise TimeoutError from None
        except TimeoutError:
            raise
        except OSError:
            return None


def wait(condition: Callable[[], bool], timeout: float) -> bool:
    """Wait for something that nobody announces. Whether it came true within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True


def _runtime_directory() -> str:
    """A directory of this user's with a short path. Raises EmbeddedRedisError or OSError."""
    parents = (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp")  # noqa: S108
    for parent in parents:
        path = os.path.join(parent, f"tusd-py-{os.geteuid()}")
        longest = os.path.join(path, _digest(""), SOCKET)
        if not os.path.isabs(parent) or not os.access(parent, os.W_OK):
            continue
        if len(os.fsencode(longest)) <= MAX_PATH:
            return _own_directory(path)
    raise EmbeddedRedisError(
        "there is no directory with a short path for the embedded Redis' socket; set --state-dir "
        f"to a path of at most {MAX_PATH - len('/valkey/' + SOCKET)} bytes"
    )


def _own_directory(path: str) -> str:
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    # Anybody may create names in /tmp.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise EmbeddedRedisError(
            f"{path} is not a directory of this user's alone; remove it, or set --state-dir to a "
            "shorter path"
        )
    return path


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]
