"""Ends the embedded server some time after the last process that used it was killed.

A process that ends in an orderly way stops the server itself, if no other uses it; one that is killed cannot. The watchdog is
a process of its own, as small as Python can be, and so imports nothing of the package. It begins before the server does, as
the process that starts both may be killed at any moment.

Processes coordinate by locks (flock) on files beside the data, which the system releases when their holder dies: `users.lock`
is shared by every process that uses the server, `start.lock` is held by the one that starts or stops it, `server.lock` by the
server, and `watchdog.lock` by this process.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import time

USERS_LOCK = "users.lock"
START_LOCK = "start.lock"
SERVER_LOCK = "server.lock"
WATCHDOG_LOCK = "watchdog.lock"
SOCKET = "server.sock"

GRACE = 60.0
"""Seconds that the server outlives its last user, so that a process that was killed and restarted finds it again."""
_INTERVAL = 1.0
_FIRST_PAUSE = 0.02
"""Seconds between the first attempts to connect to a server that starts; the pause doubles up to `_INTERVAL`."""
_ANSWER = 10.0
"""Seconds that the server may take to end when it is told to."""


def open_lock(path: str) -> int:
    """Return a descriptor of a lock file, which is created if it is missing. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(descriptor: int, operation: int) -> bool:
    """Try to acquire a lock without waiting; return whether that worked."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_unused(directory: str) -> bool:
    """Return whether no process uses the server of a directory. For the holder of `start.lock`."""
    users = open_lock(os.path.join(directory, USERS_LOCK))
    try:
        return try_lock(users, fcntl.LOCK_EX)
    finally:
        os.close(users)


def main(watchdog: int, users: int, start: int, server: int, grace: float) -> None:
    """Wait until there is no server, or no process has used it for `grace` seconds; then end it.

    The other arguments are descriptors of locks, the first of which is held already: later the directory, which is the working
    directory, may have been removed.
    """
    while (connection := _connect(users, start, server)) is not None:
        with connection:
            if _watch(connection, users, start, grace):
                break
    # First: the next process that gets `start.lock` starts a server and another watchdog.
    os.close(watchdog)


def _connect(users: int, start: int, server: int) -> socket.socket | None:
    """Connect to the server as soon as it listens; None if there is none, and no process is starting one."""
    pause = _FIRST_PAUSE
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            connection.connect(SOCKET)
            return connection
        except OSError:
            connection.close()
        if try_lock(start, fcntl.LOCK_EX):
            if try_lock(server, fcntl.LOCK_EX):
                return None
            if os.fstat(users).st_nlink == 0 and try_lock(users, fcntl.LOCK_EX):
                # Its directory was removed: no process will ever reach it.
                _kill(server)
                return None
            fcntl.flock(start, fcntl.LOCK_UN)
        time.sleep(pause)
        pause = min(2 * pause, _INTERVAL)


def _watch(connection: socket.socket, users: int, start: int, grace: float) -> bool:
    """Return once the server at the other end has ended, True if this process has ended it."""
    unused_since: float | None = None
    while not select.select([connection], [], [], min(_INTERVAL, grace))[0]:
        # With the lock, so that no process that stops takes this one for a user, and none that starts finds an ending server.
        if not try_lock(start, fcntl.LOCK_EX):
            continue
        if try_lock(users, fcntl.LOCK_EX):
            unused_since = unused_since or time.monotonic()
            is_removed = os.fstat(users).st_nlink == 0
            if is_removed or time.monotonic() - unused_since >= grace:
                end(connection)
                return True
            fcntl.flock(users, fcntl.LOCK_UN)
        else:
            unused_since = None
        fcntl.flock(start, fcntl.LOCK_UN)
    return False


def _kill(server: int) -> None:
    """End the server that its lock's file names, if that works in this directory."""
    try:
        pid = int(json.loads(os.pread(server, 1024, 0))["pid"])
        if pid and os.path.samestat(os.stat(f"/proc/{pid}/cwd"), os.stat(".")):
            os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError, KeyError, TypeError):
        return


def end(connection: socket.socket) -> None:
    """End the server at the other end: by a command, otherwise by a signal."""
    connection.settimeout(_ANSWER)
    try:
        connection.sendall(b"SHUTDOWN\r\n")
        if not connection.recv(1024):
            return
    except OSError:
        pass
    # It refuses, or does not answer. At most the changes of the last second are lost.
    if sys.platform == "linux":
        size = struct.calcsize("3i")
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        os.kill(struct.unpack("3i", found)[0], signal.SIGKILL)


if __name__ == "__main__":
    own, used, started, serving = map(int, sys.argv[1:5])
    main(own, used, started, serving, float(sys.argv[5]))
