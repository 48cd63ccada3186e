"""The Unix socket that a server listens on: it has its permissions from the first moment, and no server takes another's."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path


def bind(path: Path, perms: int) -> socket.socket:
    """A socket at `path` that listens to nobody yet; one that a server left behind is replaced.

    Raises ValueError that says what is wrong.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        # Not changed afterwards: whoever connected meanwhile would stay connected.
        mask = os.umask(0o777 & ~perms)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
    except OSError as problem:
        listener.close()
        reason = problem.strerror or str(problem)
        raise ValueError(f"cannot listen on {path}: {reason} (--unix-sock)") from problem
    except ValueError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise ValueError(f"cannot listen on {path}: it is no socket (--unix-sock)")
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
    raise ValueError(f"cannot listen on {path}: another server does (--unix-sock)")
