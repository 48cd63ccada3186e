"""A hook file for tests: records every event, and can be held in pre-finish.

Given to the server as ``--hook …/recording_hooks.py``; runs inside the server, so it is steered by
the environment: ``RECORD_EVENTS`` names the file that gets one JSON line an event; where there is
a FIFO named as ``HOLD_PRE_FINISH`` says, pre-finish returns only when it has been written to.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tusd_py.events.model import Event


def _record(name: str, event: Event) -> None:
    line = {
        "type": name,
        "upload": event.upload.id,
        "offset": event.upload.offset,
        "length": event.upload.length,
        "metadata": {key: value.decode("latin-1") for key, value in event.upload.metadata.items()},
    }
    with Path(os.environ["RECORD_EVENTS"]).open("a") as file:
        file.write(json.dumps(line) + "\n")


def pre_create(event: Event) -> None:
    _record("pre-create", event)


def post_create(event: Event) -> None:
    _record("post-create", event)


async def pre_finish(event: Event) -> None:
    _record("pre-finish", event)
    hold = Path(os.environ["HOLD_PRE_FINISH"])
    if hold.exists():
        await _written(hold)


async def _written(fifo: Path) -> None:
    """Wait for a writer, in a way that can be cancelled."""
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def post_finish(event: Event) -> None:
    _record("post-finish", event)


def pre_terminate(event: Event) -> None:
    _record("pre-terminate", event)


def post_terminate(event: Event) -> None:
    _record("post-terminate", event)
