"""Binds the Unix socket of a server with its permissions, without replacing that of a running server."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path


def bind(path: Path, perms: int, *, flag: str = "--unix-sock") -> socket.socket:
    """Bind a socket at `path`, not listening yet. A stale one, left by a server that ended, is replaced.

    Raises ValueError with a message for the operator, which names the flag.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        # Set by umask rather than chmod afterwards, which would leave a moment for others to connect.
        mask = os.umask(0o777 & ~perms)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
    except OSError as problem:
        listener.close()
        reason = problem.strerror or str(problem)
        raise ValueError(f"cannot listen on {path}: {reason} ({flag})") from problem
    return listener


def _remove_stale(path: Path) -> None:
    """Raises OSError, also for what is no socket or that of a running server."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise OSError("it is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as visitor:
        visitor.setblocking(False)
        try:
            visitor.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass
    raise OSError("another server does")
