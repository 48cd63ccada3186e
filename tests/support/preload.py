"""The process from which `preloaded` forks: `python -m tests.support.preload SOCKET MODULE...`."""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import socket
import sys
import time
from contextlib import suppress

from tests.support.preloaded import STATUS

_MOST_BYTES = 1024 * 1024


def main() -> int:
    """Fork a process for each message, until the socket ends. In such a process: run `tusd-py` with its arguments."""
    orders = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2:]:
        importlib.import_module(module)
    # Not to be written to, so that the memory stays common.
    gc.collect()
    gc.freeze()
    forked = _fork_for(orders)
    # Its number will be another file's.
    orders.detach()
    return 0 if forked is None else _run(*forked)


def _fork_for(orders: socket.socket) -> tuple[bytes, list[int]] | None:
    """Fork a process for each message. Returns the message and its files in such a process, and None in this one at the end."""
    with selectors.DefaultSelector() as selector:
        selector.register(orders, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not orders:
                    selector.unregister(key.fileobj)
                    os.close(key.fd)
                    _tell_end(*key.data)
                    continue
                message, given, _, _ = socket.recv_fds(orders, _MOST_BYTES, 3)
                if not message:
                    return None
                pid = os.fork()
                if not pid:
                    return message, given
                out, err, status = given
                os.write(status, STATUS.pack(pid))
                os.close(out)
                os.close(err)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))


def _tell_end(pid: int, status: int) -> None:
    _, code = os.waitpid(pid, 0)
    # Whoever asked for it may have ended.
    with suppress(BrokenPipeError):
        os.write(status, STATUS.pack(os.waitstatus_to_exitcode(code)))
    os.close(status)


def _run(message: bytes, given: list[int]) -> int:
    arguments, env, cwd = json.loads(message)
    os.dup2(given[0], 1)
    os.dup2(given[1], 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    os.chdir(cwd)
    sys.argv = ["tusd-py", *arguments]
    # As `python -m` has it.
    sys.path[0] = cwd
    from tusd_py.cli import main

    return main()


if __name__ == "__main__":
    raise SystemExit(main())
