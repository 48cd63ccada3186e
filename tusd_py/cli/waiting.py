"""What a terminal shows while a command waits. A module of its own, as most commands do without an event loop."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tusd_py.background import spawn
from tusd_py.cli.output import clear_line, draw

_TICK_SECONDS = 0.5


@asynccontextmanager
async def waiting(doing: str) -> AsyncIterator[None]:
    """Tell on standard error, if that is a terminal, what takes so long, and for how long it does."""
    began = time.monotonic()

    async def tick() -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            draw(f"{doing}, {time.monotonic() - began:.0f} s")

    drawing = spawn(tick(), "elapsed time") if sys.stderr.isatty() else None
    try:
        yield
    finally:
        if drawing is not None:
            drawing.cancel()
            clear_line()
