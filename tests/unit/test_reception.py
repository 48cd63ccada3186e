"""Receiving bodies into a store, with losses at moments that no client can choose."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tusd_py.events.hooks import Hooks
from tusd_py.events.model import RequestView
from tusd_py.locks.base import HeldFence, UncontestedLease
from tusd_py.protocol import errors
from tusd_py.protocol.checksum import parse
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.tus import Content
from tusd_py.storage.base import UploadInfo
from tusd_py.storage.file.store import FileStore
from tusd_py.telemetry.counters import Counters
from tusd_py.uploads.policy import UploadPolicy
from tusd_py.uploads.receive import BodyEnd, BodyReceiver, GetBuffer, Watcher, WriteView


class LostLease(UncontestedLease):
    """A lock that is lost once it was asked for so many times."""

    def __init__(self, asked: int) -> None:
        self._left = asked

    def is_held(self) -> bool:
        self._left -= 1
        return self._left >= 0

    def fence(self) -> HeldFence:
        return HeldFence(self.is_held)


class WholeBody:
    """A body that is there at once."""

    def __init__(self, data: bytes) -> None:
        self.end: BodyEnd | None = None
        self.watcher: Watcher | None = None
        self._data = data

    async def read(self) -> bytes:
        data, self._data = self._data, b""
        if not data:
            self.end = BodyEnd.COMPLETE
        return data

    async def stream_to(self, _write: WriteView, _get_buffer: GetBuffer | None = None) -> bool:
        return False

    def stop(self, end: BodyEnd) -> None:
        raise AssertionError(f"nobody wants {end}")

    def trailers(self) -> Mapping[str, str]:
        return {}


@pytest.mark.parametrize("size", [5, 500_000, 3_000_000])
async def test_T26_a_lock_that_is_lost_while_a_checksum_is_computed(
    tmp_path: Path, size: int
) -> None:
    """Nothing is said of the checksum, and nothing counts, however often it was asked whether the lock is held."""
    store = FileStore(tmp_path / "uploads")
    store.open()
    reception = BodyReceiver(
        store, UploadPolicy(), Hooks([]), Counters(), time.time, access_error=lambda *_: None
    )
    data = bytes(size)
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    content = Content(size, parse(f"sha256 {digest}"), False)
    for asked in range(20):
        info = UploadInfo(id=f"u{asked}", length=size, created_at=time.time())
        upload = await store.create(info)
        problem = None
        try:
            await reception.receive(
                upload,
                content,
                WholeBody(data),
                LostLease(asked),
                RequestView(),
                finishing=False,
            )
        except ProtocolError as raised:
            problem = raised
        found = await store.load(info.id)
        if problem is None:
            assert found.offset == size
            assert Path(store.data_path(info)).read_bytes() == data
            break
        assert problem.code == errors.interrupted().code
        assert found.offset in {0, size}
    else:
        raise AssertionError("it was never stored")
    assert asked > 2
    store.close()
