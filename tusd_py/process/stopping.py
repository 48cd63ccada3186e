"""Ends a process whose work is done although some of its threads still wait: for a host name to be looked up, or for a disk.

Python joins such threads when it exits, and no signal handler runs while the main thread looks a name up. A resolver that does
not answer keeps it for half a minute, longer than service managers wait before they kill.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_SECONDS = 1.0
"""Time that threads have to end once all else has ended."""
_INTERVAL = 0.5
"""Seconds between two looks whether a job runs."""
_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}


def exit_after(seconds: float, code: int, log: Callable[[], None] | None = None) -> threading.Timer:
    """End this process with this exit code once so many seconds have passed, unless it has ended or the timer is cancelled.

    log: called first.
    """
    timer = threading.Timer(seconds, _exit, (code, log))
    timer.daemon = True
    timer.start()
    return timer


def set_on_signal(stop: threading.Event) -> None:
    """Set an event at SIGTERM and SIGINT."""
    for number in _STOP_SIGNALS:
        signal.signal(number, lambda _number, _frame: stop.set())


@contextmanager
def end_after_signal(
    seconds: float, *, is_busy: Callable[[], bool], log: Callable[[], None]
) -> Iterator[None]:
    """End this process with 0 if it was idle for so many seconds after SIGTERM or SIGINT, and the block has not ended.

    For the main thread of a process that has handlers for both. is_busy: whether a job runs. log: called before the process
    ends.
    """
    wake, notice = os.pipe()
    os.set_blocking(notice, False)
    # Written to at once, also where Python's own handler has to wait.
    signal.set_wakeup_fd(notice, warn_on_full_buffer=False)

    def watch() -> None:
        try:
            if _ends_after_signal(wake, seconds, is_busy):
                _exit(0, log)
        finally:
            os.close(wake)

    threading.Thread(target=watch, name="stopping", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        os.close(notice)


def _ends_after_signal(wake: int, seconds: float, is_busy: Callable[[], bool]) -> bool:
    """Wait for a signal and then for so many seconds without a job (True), or for the end of the file (False)."""
    idle_since: float | None = None
    while True:
        wait = None if idle_since is None else _INTERVAL
        if select.select([wake], [], [], wait)[0]:
            # Also after the first: a later signal would be written to a pipe without a reader.
            numbers = os.read(wake, 64)
            if not numbers:
                return False
            if idle_since is None and not _STOP_SIGNALS.isdisjoint(numbers):
                idle_since = time.monotonic()
        if idle_since is not None:
            if is_busy():
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since >= seconds:
                return True


def _exit(code: int, log: Callable[[], None] | None) -> None:
    if log is not None:
        log()
    logging.shutdown()
    os._exit(code)
