"""A hook file that stops its server (SIGSTOP) at a chosen point, once each time that the point is armed.

A file with the point's name in the directory `STOP_AT` arms it; the server removes the file and stops. The points lie before
changes of the store, when the lock is not lost yet, and within them, while the change is in progress.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tusd_py import Event
from tusd_py.storage.file import data_file as datafile
from tusd_py.storage.file import markers, outbox, record_writer, removal
from tusd_py.storage.file import store as file
from tusd_py.storage.file import writers as verified

ARMED = Path(os.environ["STOP_AT"])


def stop_at(point: str) -> None:
    """Stop if this point is armed."""
    try:
        os.unlink(ARMED / point)
    except FileNotFoundError:
        return
    # To this thread: it would go on for a moment if another one were the first to hear of it.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def _stops(owner: type, name: str, point: str) -> None:
    """Put a point in front of a method."""
    method: Callable[..., Any] = getattr(owner, name)

    def stopping(*args: object, **kwargs: object) -> object:
        stop_at(point)
        return method(*args, **kwargs)

    setattr(owner, name, stopping)


_stops(datafile.DataFile, "write", "write")
_stops(datafile.DataFile, "cut_back", "cut")
_stops(verified.VerifiedFileWriter, "discard", "discard")
_stops(verified.VerifiedFileWriter, "_remove_marker", "marker")
_stops(markers.ChunkMarkers, "make", "within-mark")
_stops(outbox.FileOutbox, "keep", "keep")
_stops(file.FileStore, "finish", "finish")
_stops(record_writer.RecordWriter, "mark_finished", "within-finish")
_stops(file.FileStore, "recover", "recover")
_stops(file.FileStore, "remove", "remove")
_stops(removal.Removal, "_free", "within-remove")


async def pre_finish(_event: Event) -> None:
    stop_at("hook")


async def pre_terminate(_event: Event) -> None:
    stop_at("terminate-hook")


def post_finish(_event: Event) -> None:
    """Make the server record finishes in the outbox."""


def post_terminate(_event: Event) -> None:
    """Likewise."""
