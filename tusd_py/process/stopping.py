"""Ends a process whose work is done although some of its threads still wait: for a host name to be looked up, or for a disk.

Python joins such threads when it exits, and no signal handler runs while the main thread looks a name up. A resolver that does
not answer keeps it for half a minute, longer than service managers wait before they kill.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_SECONDS = 1.0
"""Time that threads have to end once all else has ended."""
_BUSY_INTERVAL = 1.0
"""Seconds between two looks whether a job still runs."""


def exit_after(seconds: float, code: int, log: Callable[[], None] | None = None) -> threading.Timer:
    """End this process with this exit code once so many seconds have passed, unless it has ended or the timer is cancelled.

    log: called first.
    """
    timer = threading.Timer(seconds, _exit, (code, log))
    timer.daemon = True
    timer.start()
    return timer


@contextmanager
def end_after_signal(
    seconds: float, *, is_busy: Callable[[], bool], log: Callable[[], None]
) -> Iterator[None]:
    """End this process with 0 if the block has not ended so many seconds after SIGTERM or SIGINT.

    For the main thread of a process that has handlers for both. is_busy: the time begins once this returns False. log: called
    before the process ends.
    """
    left = threading.Event()
    wake, notice = os.pipe()
    os.set_blocking(notice, False)
    # Written to at once, also where Python's own handler has to wait.
    signal.set_wakeup_fd(notice, warn_on_full_buffer=False)

    def watch() -> None:
        try:
            while number := os.read(wake, 1):
                if number[0] in (signal.SIGTERM, signal.SIGINT):
                    break
        finally:
            os.close(wake)
        while is_busy() and not left.wait(_BUSY_INTERVAL):
            pass
        if not left.wait(seconds):
            _exit(0, log)

    threading.Thread(target=watch, name="stopping", daemon=True).start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(-1)
        os.close(notice)


def _exit(code: int, log: Callable[[], None] | None) -> None:
    if log is not None:
        log()
    logging.shutdown()
    os._exit(code)
