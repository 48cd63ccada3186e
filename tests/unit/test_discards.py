"""Bytes to be discarded on a disk that has become read-only: none of them count, and no file stays open."""

from __future__ import annotations

import asyncio
import base64
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.delivery.test_uploads import REQUEST, NoBody
from tusd_py.locks.memory import MemoryLocks
from tusd_py.protocol.checksum import parse
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.tus import Append, Content
from tusd_py.storage.base import UploadInfo
from tusd_py.storage.file.data_file import DataFile
from tusd_py.storage.file.store import FileStore
from tusd_py.uploads.service import Uploads

MIB = 1024 * 1024
WRONG = base64.b64encode(bytes(20)).decode()


class Pieces(NoBody):
    """A body that comes in pieces of a MiB."""

    def __init__(self, count: int) -> None:
        self._left = count

    async def read(self) -> bytes:
        self._left -= 1
        return b"x" * MIB if self._left >= 0 else b""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FileStore]:
    store = FileStore(tmp_path / "uploads")
    store.open()
    yield store
    await asyncio.to_thread(store.close)


def open_files(store: FileStore) -> list[str]:
    """The data files that this process has open."""
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return [path for path in map(_target, links) if path == f"{store.root}/x"]


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""


def read_only(*_args: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


async def test_a_chunk_that_cannot_be_taken_back_leaves_nothing_open_and_does_not_count(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create(UploadInfo("x", 64 * MIB, created_at=1.0))
    uploads = Uploads(store, MemoryLocks())
    content = Content(length=None, checksum=parse(f"sha1 {WRONG}"), checksum_in_trailer=False)
    with monkeypatch.context() as patch:
        patch.setattr(DataFile, "cut_back", read_only)
        for _ in range(3):
            with pytest.raises(ProtocolError) as refused:
                await uploads.append("x", Append(0, None, content), Pieces(4), REQUEST)
            assert refused.value.status == 500
    assert open_files(store) == []
    # The disk takes changes again, and the lock was released.
    assert (await uploads.inspect("x", REQUEST)).offset == 0
    assert os.path.getsize(f"{store.root}/x") == 0
