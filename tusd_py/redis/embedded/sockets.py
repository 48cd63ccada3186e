"""Unix sockets of the embedded server: a path that is short enough, and single blocking requests for its start and stop."""

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
    """The embedded server is not available. The text says why, and what to do."""


def path_for(directory: Path) -> str:
    """Return a path to the socket in `directory` that is short enough for the system, if need be through a symbolic link.

    Raises EmbeddedRedisError, OSError.
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
    """Return whether a server accepts connections; it may not answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_CONNECT_TIMEOUT)
        try:
            connection.connect(path)
        except OSError:
            return False
    return True


def ask(path: str, command: str, timeout: float) -> bytes | None:
    """Return the beginning of a server's answer; None if there is no server, or if it closes the connection.

    Raises TimeoutError if there is one and it does not answer within `timeout` seconds.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(path)
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(4096) or None
        except BlockingIOError:
            # Its queue of new connections is full.
            raise TimeoutError from None
        except TimeoutError:
            raise
        except OSError:
            return None


def wait(condition: Callable[[], bool], timeout: float) -> bool:
    """Poll a condition; return whether it became true within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True


def _runtime_directory() -> str:
    """Return a directory of this user with a short path. Raises EmbeddedRedisError or OSError."""
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
