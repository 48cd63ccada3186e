"""Several processes that serve one port: they are started, started again when they die, and ended together.

The processes are forked before anything runs, so they share what was loaded and the listening sockets. The parent serves
nothing and holds no state that could be lost.
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
_TOO_SOON = 1.0
"""Seconds. A process that ends earlier has not served; after several of them in a row it is not tried any more."""
_MOST_FAILURES = 5
_PAUSE = 0.2


class Supervisor:
    """Runs `serve(index)` in `count` processes; it returns the process's exit code. shutdown_timeout in seconds."""

    def __init__(self, count: int, serve: Callable[[int], int], *, shutdown_timeout: float) -> None:
        self._count = count
        self._serve = serve
        self._shutdown_timeout = shutdown_timeout
        self._running: dict[int, tuple[int, float]] = {}
        self._stopping = False
        self._failures = 0
        # The other end is the parent's alone: however it ends, its processes see the end of this.
        self.parent, self._ours = socket.socketpair()

    def run(self) -> int:
        """Returns when all processes have ended: 0 after SIGTERM or SIGINT, 1 if they would not stay up."""
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
        return 0 if self._failures < _MOST_FAILURES else 1

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._stopping = True

    def _start(self, index: int) -> None:
        pid = os.fork()
        if pid:
            self._running[pid] = (index, time.monotonic())
            return
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
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
            early = time.monotonic() - started < _TOO_SOON
            # A process that a signal has ended was not given a chance: that says nothing against the next one.
            self._failures = self._failures + 1 if early and code > 0 else 0
            if self._failures >= _MOST_FAILURES:
                logs.event(
                    logger, logging.ERROR, "giving-up", message="Workers end at once; giving up"
                )
                self._stopping = True
            else:
                time.sleep(_PAUSE if early else 0)
                self._start(index)
