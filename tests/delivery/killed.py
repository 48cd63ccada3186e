"""Runs `tusd-py`, and kills or stops it at the instant that its first argument names. See `INSTANTS`."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from tusd_py.cli import main
from tusd_py.events.model import EventType
from tusd_py.events.publisher import EventPublisher
from tusd_py.storage.file.store import FileStore


def _die_in(
    where: type[object], name: str, when: Callable[..., bool], by: int = signal.SIGKILL
) -> None:
    """Kills this process instead of a call of a method, when its arguments are those; or stops it before that, by SIGSTOP."""
    method: Callable[..., Any] = getattr(where, name)

    def called(*args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs):
            # To this thread: it would go on for a moment if another one were the first to hear of it.
            signal.pthread_kill(threading.get_ident(), by)
        return method(*args, **kwargs)

    setattr(where, name, called)


def _is_finish(_self: object, event_type: EventType, *_args: object, **_: object) -> bool:
    return event_type is EventType.POST_FINISH


INSTANTS: dict[str, Callable[[], None]] = {
    "before the outbox": lambda: _die_in(EventPublisher, "record", _is_finish),
    "before the record": lambda: _die_in(FileStore, "finish", lambda *_, **__: True),
    "before the queue": lambda: _die_in(EventPublisher, "publish", _is_finish),
    "before the removal": lambda: _die_in(FileStore, "remove", lambda *_, **__: True),
    "stops before the record": lambda: _die_in(
        FileStore, "finish", lambda *_, **__: True, signal.SIGSTOP
    ),
    "stops before the removal": lambda: _die_in(
        FileStore, "remove", lambda *_, **__: True, signal.SIGSTOP
    ),
}

if __name__ == "__main__":
    INSTANTS[sys.argv[1]]()
    # What follows is how it would have been run otherwise: python -m tusd_py serve ...
    sys.exit(main(sys.argv[5:]))
