"""Supervises several processes that serve one port: starts them, restarts those that die, and stops all together.

They are forked before anything runs, so they share the loaded code and the listening sockets. The parent serves nothing and has
no state that could be lost.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

from tusd_py import logs

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_MIN_UPTIME_SECONDS = 1.0
"""A process that exits earlier has not served; after several of these in a row the supervisor gives up."""
_MAX_FAILURES = 5
_RESTART_PAUSE_SECONDS = 0.2


class Supervisor:
    """Runs `serve(index)`, which returns an exit code, in each of `count` processes.

    shutdown_timeout: seconds in which each ends by itself. One that does not is killed a second later.
    """

    def __init__(self, count: int, serve: Callable[[int], int], *, shutdown_timeout: float) -> None:
        self._count = count
        self._serve = serve
        self._shutdown_timeout = shutdown_timeout
        self._running: dict[int, tuple[int, float]] = {}
        self._stopping = False
        self._failures = 0
        # Only the parent has the other end, so its processes notice its end, however it comes about.
        self.parent, self._ours = socket.socketpair()

    def run(self) -> int:
        """Wait until all processes have exited. Return 0 after SIGTERM or SIGINT, 1 if they did not stay up."""
        wake, notice = socket.socketpair()
        wake.setblocking(False)
        notice.setblocking(False)
        previous = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        signal.set_wakeup_fd(notice.fileno(), warn_on_full_buffer=False)
        try:
            for index in range(self._count):
                self._start(index)
            self._supervise(wake)
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in previous.items():
                signal.signal(number, handler)
            wake.close()
            notice.close()
        return 0 if self._failures < _MAX_FAILURES else 1

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._stopping = True

    def _start(self, index: int) -> None:
        # Or one that comes right after the fork would run this process's handler in the child, which goes on.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid:
            self._running[pid] = (index, time.monotonic())
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            return
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._ours.close()
            code = self._serve(index)
        finally:
            logging.shutdown()
            os._exit(code)

    def _supervise(self, wake: socket.socket) -> None:
        deadline: float | None = None
        while self._running:
            if self._stopping and deadline is None:
                deadline = time.monotonic() + self._shutdown_timeout + 1.0
                self._signal_all(signal.SIGTERM)
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            if select.select([wake], [], [], wait)[0]:
                wake.recv(4096)
            elif deadline is not None:
                self._signal_all(signal.SIGKILL)
                deadline = time.monotonic() + self._shutdown_timeout
            self._reap()

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self._running:
            os.kill(pid, number)

    def _reap(self) -> None:
        for pid, (index, started) in list(self._running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            del self._running[pid]
            if self._stopping:
                continue
            code = os.waitstatus_to_exitcode(status)
            logs.event(logger, logging.ERROR, "worker-ended", worker=index, pid=pid, code=code)
            early = time.monotonic() - started < _MIN_UPTIME_SECONDS
            # A process killed by a signal does not count: that says nothing about the next one.
            self._failures = self._failures + 1 if early and code > 0 else 0
            if self._failures >= _MAX_FAILURES:
                logs.event(
                    logger, logging.ERROR, "giving-up", message="Workers end at once; giving up"
                )
                self._stopping = True
            else:
                time.sleep(_RESTART_PAUSE_SECONDS if early else 0)
                self._start(index)
