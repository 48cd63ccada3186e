"""Short ways to use a store without the uploads around it."""

from __future__ import annotations

from tusd_py.protocol.tus import Content
from tusd_py.storage.base import Writer

PLAIN = Content(None, None, False)
"""Bytes that count as they arrive; their number is not declared."""
VERIFIED = Content(None, None, True)
"""A verified chunk whose length and checksum are not known in advance."""


async def write_all(writer: Writer, *pieces: bytes) -> None:
    """Write each piece, waiting where the writer wants that."""
    for piece in pieces:
        rest = writer.write(memoryview(piece))
        if rest is not None:
            await rest
