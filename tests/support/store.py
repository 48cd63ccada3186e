"""Helpers to use a store without the uploads around it."""

from __future__ import annotations

import base64
import hashlib

from tusd_py.locks.base import UNFENCED, Fence
from tusd_py.protocol.checksum import Checksum, parse
from tusd_py.protocol.tus import Content
from tusd_py.storage.base import Store, Upload, Writer

PLAIN = Content(None, None, False)
"""Bytes that count as they arrive; their number is not declared."""
VERIFIED = Content(None, None, True)
"""A verified chunk whose length and checksum are not known in advance."""


def sha256(data: bytes) -> Checksum:
    return parse(f"sha256 {base64.b64encode(hashlib.sha256(data).digest()).decode()}")


async def write_all(writer: Writer, *pieces: bytes) -> None:
    """Write each piece, and wait if the writer asks for it."""
    for piece in pieces:
        rest = writer.write(memoryview(piece))
        if rest is not None:
            await rest


async def append(
    store: Store, upload: Upload, *pieces: bytes, content: Content = PLAIN, fence: Fence = UNFENCED
) -> Upload:
    """Append bytes as a request does; return the upload."""
    writer = await store.open_writer(upload, content, fence=fence)
    try:
        await write_all(writer, *pieces)
    finally:
        await writer.close(sync=False)
    return await store.load(upload.id)


async def content_of(store: Store, upload: Upload) -> bytes:
    """Read all bytes of an upload."""
    reader = await store.open_reader(upload)
    try:
        return b"".join([piece async for piece in reader.stream(0, upload.offset)])
    finally:
        reader.close()
