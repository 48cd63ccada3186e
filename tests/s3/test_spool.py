"""Buffers of parts that are used again: only once nothing reads from them."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from tusd_py.protocol.checksum import Checksum
from tusd_py.storage.s3 import spool as spool_module
from tusd_py.storage.s3 import verified
from tusd_py.storage.s3.request_body import RequestBody
from tusd_py.storage.s3.spool import Spool
from tusd_py.storage.s3.verified import VerifiedS3Writer
from tusd_py.storage.s3.writer import S3Writer

SIZE = 1024


class Writer:
    idle_bytes = part_bytes = 0
    needs_disk = False

    async def relieve(self) -> None:
        raise AssertionError

    async def close(self, *, sync: bool, finishing: bool) -> None:
        pass

    def note_arrival(self) -> None:
        pass


class Target(Writer):
    """What gets the bytes once they are verified."""

    offset = kept = 0

    def __init__(self) -> None:
        self.body = b""

    def write(self, data: memoryview) -> Awaitable[None] | None:
        self.body += data
        return None

    async def discard(self) -> None:
        pass

    def abandon(self) -> None:
        pass

    async def close(self, *, sync: bool, finishing: bool = False) -> None:
        pass


def test_a_buffer_is_used_again_for_a_part_of_the_same_size() -> None:
    spool = Spool(10 * SIZE)
    buffer = spool.buffer(SIZE)
    spool.reuse(buffer)
    assert len(spool.buffer(2 * SIZE)) == 2 * SIZE
    spool.reuse(buffer)
    assert spool.buffer(SIZE) is buffer
    assert len(buffer) == SIZE
    assert spool.buffer(SIZE) is not buffer


def test_what_a_request_reads_from_is_not_written_over() -> None:
    spool = Spool(10 * SIZE)
    buffer = spool.buffer(SIZE)
    body = RequestBody(buffer)
    sent = body.read(10)
    del body
    spool.reuse(buffer)
    assert spool.buffer(SIZE) is not buffer
    del sent
    spool.reuse(buffer)
    assert spool.buffer(SIZE) is buffer


def test_buffers_go_with_the_last_writer() -> None:
    spool, first, second = Spool(10 * SIZE), Writer(), Writer()
    spool.enter(first)
    spool.enter(second)
    buffer = spool.buffer(SIZE)
    spool.reuse(buffer)
    spool.leave(first)
    assert spool.buffer(SIZE) is buffer
    spool.reuse(buffer)
    spool.leave(second)
    assert spool.buffer(SIZE) is not buffer


def test_a_body_is_read_as_a_file_is() -> None:
    body = RequestBody(bytearray(b"0123456789"))
    assert (bytes(body.read(3)), body.tell()) == (b"012", 3)
    assert (body.seek(0, 2), body.seek(-4, 1), bytes(body.read())) == (10, 6, b"6789")
    assert bytes(body.read(5)) == b""
    assert (body.seek(0), bytes(body.read(100)), len(body.getbuffer())) == (0, b"0123456789", 10)


async def test_a_chunk_stays_in_memory_if_no_file_takes_it(tmp_path: Path) -> None:
    spool, none = Spool(SIZE), cast(S3Writer, Writer())
    staying = VerifiedS3Writer(none, spool, SIZE, str(tmp_path / "missing"))
    moving = VerifiedS3Writer(none, spool, SIZE, str(tmp_path))
    for writer in (staying, moving):
        writer.write(memoryview(b"x" * 100))
        await writer.relieve()
    assert (spool.used, staying.idle_bytes, moving.idle_bytes) == (100, 0, 0)
    await moving.close(sync=False)


# -- disks that stand still, and what is counted ---------------------------------------------------


class StalledDisk:
    """A write stands still until the event loop has gone on. went_on: whether it did, write by write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.went_on: list[bool] = []
        self._is_stalled = False
        self._is_reached, self._may_go_on = threading.Event(), threading.Event()
        write = verified._write_all

        def stalled(*arguments: object) -> None:
            if self._is_stalled:
                self._is_stalled = False
                self._is_reached.set()
                self.went_on.append(self._may_go_on.wait(10))
            write(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(verified, "_write_all", stalled)

    async def while_stalled(
        self,
        doing: Callable[[], Awaitable[None] | None],
        do: Callable[[], Awaitable[None] | None],
    ) -> None:
        """Do something in the event loop while a write of `doing` stands still."""

        async def go_on() -> None:
            while not self._is_reached.is_set():  # noqa: ASYNC110 - set by another thread
                await asyncio.sleep(0.001)
            done = do()
            if done is not None:
                await done
            self._may_go_on.set()

        self._is_stalled = True
        loop = asyncio.create_task(go_on())
        await asyncio.sleep(0)
        rest = doing()
        if rest is not None:
            await rest
        await loop


def right(body: bytes) -> Checksum:
    return Checksum("sha256", hashlib.sha256(body).digest())


async def test_a_stalled_disk_holds_only_the_chunk_that_moves_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, disk, target = Spool(SIZE), StalledDisk(monkeypatch), Target()
    writer = VerifiedS3Writer(cast(S3Writer, target), spool, SIZE, str(tmp_path))
    writer.write(memoryview(b"x" * 100))
    rests: list[Awaitable[None] | None] = []

    def add() -> None:
        # They are in memory until they are in the file, and no other relief begins.
        assert (spool.used, writer.idle_bytes) == (100, 0)
        rests.append(writer.write(memoryview(b"y" * 10)))

    await disk.while_stalled(writer.relieve, add)
    for rest in rests:
        assert rest is not None
        await rest
    assert disk.went_on[0]
    assert (spool.used, writer.offset) == (10, 110)
    assert await writer.verify(right(b"x" * 100 + b"y" * 10))
    await writer.close(sync=False)
    assert target.body == b"x" * 100 + b"y" * 10


async def test_a_stalled_disk_holds_only_the_request_with_a_long_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, disk, target = Spool(10 * SIZE), StalledDisk(monkeypatch), Target()
    writer = VerifiedS3Writer(cast(S3Writer, target), spool, SIZE, str(tmp_path))
    writer.write(memoryview(b"x" * SIZE))
    await disk.while_stalled(lambda: writer.write(memoryview(b"y")), lambda: None)
    assert all(disk.went_on)
    assert await writer.verify(right(b"x" * SIZE + b"y"))
    await writer.close(sync=False)
    assert (target.body, spool.used) == (b"x" * SIZE + b"y", 0)


async def test_a_chunk_that_is_given_up_does_not_wait_for_a_stalled_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes count until they are in no memory any more."""
    spool, disk, target = Spool(SIZE), StalledDisk(monkeypatch), Target()
    writer = VerifiedS3Writer(cast(S3Writer, target), spool, SIZE, str(tmp_path))
    writer.write(memoryview(b"x" * 100))

    async def give_up() -> None:
        await writer.discard()
        await writer.close(sync=False)
        assert spool.used == 100

    await disk.while_stalled(writer.relieve, give_up)
    assert spool.used == 0


async def test_a_relief_that_outlives_its_request_writes_into_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file stays open as long as the thread that writes knows its descriptor by number."""
    spool, disk, target = Spool(10 * SIZE), StalledDisk(monkeypatch), Target()
    ending = await with_a_file(spool, tmp_path)
    body = b"y" * 1000
    other = VerifiedS3Writer(cast(S3Writer, target), spool, 0, str(tmp_path))
    verified_as: list[bool] = []

    async def end_and_begin_another() -> None:
        ending.abandon()
        await ending.close(sync=False)
        rest = other.write(memoryview(body))
        assert rest is not None
        await rest
        verified_as.append(await other.verify(right(body)))

    await disk.while_stalled(ending.relieve, end_and_begin_another)
    assert verified_as == [True]
    await other.close(sync=False)
    assert (target.body, spool.used) == (body, 0)


async def test_a_relief_whose_request_ended_before_it_began_does_nothing(tmp_path: Path) -> None:
    """All threads are busy."""
    spool, may_begin = Spool(10 * SIZE), threading.Event()
    writer = await with_a_file(spool, tmp_path)
    for _ in range(16):
        spool.threads.executor.submit(may_begin.wait, 3)
    relief = asyncio.create_task(writer.relieve())
    await asyncio.sleep(0)
    writer.abandon()
    await writer.close(sync=False)
    may_begin.set()
    await relief
    assert spool.used == 0


async def with_a_file(spool: Spool, directory: Path) -> VerifiedS3Writer:
    """A writer that has bytes in its file, and others in memory."""
    writer = VerifiedS3Writer(cast(S3Writer, Target()), spool, SIZE, str(directory))
    writer.write(memoryview(b"x" * 100))
    await writer.relieve()
    writer.write(memoryview(b"x" * 100))
    assert writer.idle_bytes == 100
    return writer


class Plain(Writer):
    """A writer in the middle of a part, whose bytes the bucket takes at once. relieved: how often it let go of them."""

    def __init__(self, spool: Spool, size: int) -> None:
        self.idle_bytes, self.relieved = size, 0
        self._spool = spool
        spool.enter(self)
        spool.take(size)

    async def relieve(self) -> None:
        self.relieved += 1
        self._spool.give_back(self.idle_bytes)
        self.idle_bytes = 0


async def test_a_disk_that_stands_still_holds_no_upload_without_a_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes go to the bucket, although chunks with a checksum have more in memory."""
    monkeypatch.setattr(spool_module, "_SLOW_SECONDS", 0.2)
    spool, disk = Spool(SIZE), StalledDisk(monkeypatch)
    chunks = [
        VerifiedS3Writer(cast(S3Writer, Target()), spool, SIZE, str(tmp_path)) for _ in range(2)
    ]
    for chunk in chunks:
        chunk.write(memoryview(b"x" * 400))
    plain = [Plain(spool, 300), Plain(spool, 200)]
    waiting: list[asyncio.Future[None]] = []

    def wait() -> asyncio.Future[None]:
        waiting.append(asyncio.ensure_future(spool.wait()))
        return waiting[0]

    async def done() -> None:
        await asyncio.wait_for(asyncio.shield(waiting[0]), 5)
        # The other chunk need not wait for the disk.
        assert [each.relieved for each in plain] == [1, 0]
        assert sorted(each.idle_bytes for each in chunks) == [0, 400]

    await disk.while_stalled(wait, done)
    for chunk in chunks:
        await chunk.close(sync=False)


async def test_a_relief_that_fails_is_logged_and_others_follow(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(Plain):
        async def relieve(self) -> None:
            spool.leave(self)
            raise RuntimeError("no threads")

    spool = Spool(SIZE)
    _, plain = Failing(spool, 2000), Plain(spool, 1900)
    waiting = asyncio.ensure_future(spool.wait())
    async with asyncio.timeout(5):
        while not plain.relieved:  # noqa: ASYNC110 - set by a task of the spool
            await asyncio.sleep(0.01)
    waiting.cancel()
    assert "no threads" in caplog.text


async def test_memory_is_bounded_while_a_disk_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request holds a small piece that waits for the disk, once, and its client waits with it."""
    most, count = 1 << 20, 100
    spool, may_go_on, write = Spool(most), threading.Event(), verified._write_all

    def stalled(*arguments: object) -> None:
        may_go_on.wait(10)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(verified, "_write_all", stalled)
    # As the HTTP server has one for all connections.
    received = memoryview(bytearray(1 << 20))
    waiting: list[asyncio.Future[None]] = []
    writers = [
        VerifiedS3Writer(cast(S3Writer, Target()), spool, 5 << 20, str(tmp_path))
        for _ in range(count)
    ]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for writer in writers:
            rest = None
            while rest is None:
                rest = writer.write(writer.get_buffer() or received)
            waiting.append(asyncio.ensure_future(rest))
        await asyncio.sleep(0.1)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
        may_go_on.set()
        await asyncio.wait(waiting)
    assert held < 2 * most + count * (128 << 10)
    for writer in writers:
        writer.abandon()
        await writer.close(sync=False)
    assert spool.used == 0


async def test_memory_goes_with_what_is_passed_on(tmp_path: Path) -> None:
    """Otherwise the bytes would be there twice, and be counted once."""
    spool, size, counted, held = Spool(64 << 20), 8 << 20, [], []

    class Forgetful(Target):
        def write(self, data: memoryview) -> Awaitable[None]:
            async def look() -> None:
                counted.append(spool.used)
                held.append(tracemalloc.get_traced_memory()[0])

            return look()

    tracemalloc.start()
    try:
        body = bytes(1 << 18)
        writer = VerifiedS3Writer(cast(S3Writer, Forgetful()), spool, size, str(tmp_path))
        for _ in range(size // len(body)):
            writer.write(memoryview(body))
        assert await writer.verify(right(bytes(size)))
        await writer.close(sync=False)
    finally:
        tracemalloc.stop()
    assert counted == sorted(counted, reverse=True)
    assert counted[-1] == spool.used == 0
    # But for the buffers of this test, what is there is what is counted.
    assert held[-1] < size // 4


@pytest.mark.parametrize("most", [0, 3 << 20, 16 << 20])
@pytest.mark.parametrize("relieved_at", [0, 1 << 20, 4 << 20])
async def test_the_bytes_are_the_same_wherever_they_waited(
    tmp_path: Path, most: int, relieved_at: int
) -> None:
    """In memory, in the file, or first in the one and then in the other, also while they are passed on."""
    chance = random.Random(most + relieved_at)
    body, spool = chance.randbytes((5 << 20) + 7), Spool(64 << 20)

    class Relieving(Target):
        def write(self, data: memoryview) -> Awaitable[None] | None:
            super().write(data)
            return writer.relieve() if len(self.body) == 2 << 20 else None

    target = Relieving()
    writer = VerifiedS3Writer(cast(S3Writer, target), spool, most, str(tmp_path))
    at = 0
    while at < len(body):
        size = chance.randint(1, 300_000)
        rest = writer.write(memoryview(body)[at : at + size])
        if rest is not None:
            await rest
        if at < relieved_at <= at + size:
            await writer.relieve()
        at += size
    assert await writer.verify(right(body))
    await writer.close(sync=False)
    assert target.body == body
    assert spool.used == 0
