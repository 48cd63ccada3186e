"""What a terminal shows while a command waits. A module of its own, as most commands do without an event loop."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tusd_py.background import spawn
from tusd_py.cli.output import clear_line

_TICK_SECONDS = 0.5


@asynccontextmanager
async def waiting(doing: str) -> AsyncIterator[None]:
    """Tell on standard error, if that is a terminal, what takes so long, and for how long it does."""
    began = time.monotonic()

    async def draw() -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            sys.stderr.write(f"\r{doing}, {time.monotonic() - began:.0f} s\x1b[K")
            sys.stderr.flush()

    drawing = spawn(draw(), "elapsed time") if sys.stderr.isatty() else None
    try:
        yield
    finally:
        if drawing is not None:
            drawing.cancel()
            clear_line()
