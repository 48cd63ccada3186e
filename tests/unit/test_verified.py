"""Bytes that count once they are verified, with threads and disks that wait for a signal of the test."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from tusd_py.locks.base import HeldFence, LeaseLost
from tusd_py.protocol.checksum import Checksum, parse
from tusd_py.storage.base import StorageError, StorageFull
from tusd_py.storage.file import buffers, writers
from tusd_py.storage.file.buffers import BufferPool
from tusd_py.storage.file.data_file import DataFile
from tusd_py.storage.file.disk import Disk
from tusd_py.storage.file.threads import Threads
from tusd_py.storage.file.writers import VerifiedFileWriter

MIB = 1024 * 1024
WAIT = 60.0
LONG_AGO = -1e9

P = ParamSpec("P")
T = TypeVar("T")


class Held(Threads):
    """A thread that begins with what it is given once it may."""

    def __init__(self) -> None:
        super().__init__("held", 1)
        self.may = threading.Event()
        self.executor.submit(self.may.wait, WAIT)

    def close(self) -> None:
        self.may.set()
        super().close()


class NoThreads(Threads):
    """Threads whose use fails the test."""

    def __init__(self) -> None:
        self.executor = _NoExecutor()


class _NoExecutor(ThreadPoolExecutor):
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        raise AssertionError("a thread was asked for")


class SteadyDisk(Disk):
    """A disk that counts as quick until the test calls it slow, however busy the machine is."""

    def __init__(self, threads: Threads | None = None) -> None:
        super().__init__(NoThreads())
        self.slow = False
        self._slow_threads = threads or NoThreads()

    def write(
        self, function: Callable[[memoryview], None], data: memoryview
    ) -> Awaitable[None] | None:
        if self.slow:
            return self._slow_threads.run(function, memoryview(bytes(data)))
        function(data)
        return None

    async def change(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added counts as quick until the test sets `since`, however busy the machine is."""
    for module in (buffers, writers):
        monkeypatch.setattr(module, "SLOW_FILL_SECONDS", 3600.0)


@pytest.fixture
def held() -> Iterator[Held]:
    thread = Held()
    yield thread
    thread.close()


@pytest.fixture
def threads() -> Iterator[Threads]:
    found = Threads("test", 2)
    yield found
    found.close()


class BadDisk(DataFile):
    """A data file on a disk that has become full."""

    __slots__ = ("is_full",)

    def write(self, data: memoryview) -> None:
        assert not hasattr(self, "is_full"), "there would be a hole in front of these bytes"
        self.is_full = True
        super().write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "no space left")


class Added:
    """A writer of an upload that had some bytes before, and what is added by it."""

    def __init__(
        self,
        directory: Path,
        threads: Threads,
        *,
        blocks: BufferPool | None = None,
        start: int = 0,
        length: int | None = None,
        announced: Checksum | None = None,
        kind: type[DataFile] = DataFile,
        marks_slowly: bool = False,
        disk: Disk | None = None,
    ) -> None:
        number = sum(1 for _ in directory.iterdir())
        self.path = directory / f"data-{number}"
        self.marker = directory / f"marker-{number}"
        self.before = content(start)
        self.path.write_bytes(self.before)
        self.added = b""
        self.is_ours = True
        self._threads = threads
        self._kind = kind
        self.writer = VerifiedFileWriter(
            self._open,
            start,
            threads,
            blocks or BufferPool(),
            disk or SteadyDisk(),
            mark=self._mark,
            marks_slowly=marks_slowly,
            checksum=announced,
            length=length,
            fence=self._fence,
        )

    def _open(self) -> DataFile:
        return self._kind(
            str(self.path), len(self.before), self._threads, writes_behind=False, fence=self._fence
        )

    def _fence(self) -> HeldFence:
        return HeldFence(lambda: self.is_ours)

    def _mark(self) -> str:
        self.marked_in = threading.current_thread()
        with self._fence():
            self.marker.touch()
        return str(self.marker)

    def offer(self, data: bytes, *, in_place: bool = False) -> asyncio.Future[None] | None:
        """Adds it, in the writer's own memory where it has some; what it returns is to be awaited."""
        room = self.writer.get_buffer() if in_place else None
        if room is None or len(room) < len(data):
            # As the receive buffer is: overwritten by what comes next.
            buffer = bytearray(data)
            view = memoryview(buffer)
        else:
            view = room[: len(data)]
            view[:] = data
        rest = self.writer.write(view)
        if room is None:
            view[:] = bytes(len(view))
        self.added += data
        return None if rest is None else asyncio.ensure_future(rest)

    async def add(self, data: bytes, *, in_place: bool = False) -> None:
        rest = self.offer(data, in_place=in_place)
        if rest is not None:
            await rest

    async def add_all(self, pieces: list[bytes]) -> bool:
        """Adds them, in place; returns whether they are right."""
        for piece in pieces:
            await self.add(piece, in_place=True)
        return await self.is_right()

    async def is_right(self) -> bool:
        return await self.writer.verify(sha256(self.added))

    def stored(self) -> bytes:
        return self.path.read_bytes()

    async def close(self) -> None:
        await self.writer.close(sync=False)
        assert not self.marker.exists()


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def sha256(data: bytes) -> Checksum:
    return parse(f"sha256 {base64.b64encode(hashlib.sha256(data).digest()).decode()}")


async def a_few_turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("start", [0, 777_777])
@pytest.mark.parametrize("is_right", [False, True], ids=["wrong", "right"])
@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [0],
        [1],
        [100_000, 30_000, 900_000],
        [MIB],
        [MIB // 2] * 2,
        [MIB + 1],
        [127 * 1024, 128 * 1024, 129 * 1024],
        [256 * 1024] * 9,
        [3 * MIB + 1, 5, 256 * 1024 + 1, 64 * 1024, 9 * MIB],
        [MIB] * 40,
        [7_000] * 500,
        [*[MIB, 100] * 10, 1, 20 * MIB],
    ],
    ids=lambda pieces: f"{len(pieces)}x{max(pieces, default=0)}",
)
async def test_T25_T26_pieces_of_any_size(
    tmp_path: Path, pieces: list[int], *, is_right: bool, start: int, in_place: bool
) -> None:
    data = [content(size) for size in pieces]
    threads = Threads("test", 2)
    for known in (True, False):
        added = Added(
            tmp_path,
            threads,
            start=start,
            length=sum(pieces) if known else None,
            announced=sha256(b"".join(data)) if known else None,
        )
        for piece in data:
            await added.add(piece, in_place=in_place)
        assert added.writer.offset == start + sum(pieces)
        if is_right:
            assert await added.is_right()
        else:
            assert not await added.writer.verify(sha256(b"something else"))
            await added.writer.discard()
            assert added.writer.offset == start
        await added.close()
        assert added.stored() == added.before + (added.added if is_right else b"")
    threads.close()


async def test_what_fits_into_a_block_is_written_when_it_was_found_right(
    tmp_path: Path, threads: Threads
) -> None:
    added = Added(tmp_path, threads, length=MIB)
    for _ in range(4):
        await added.add(content(MIB // 4), in_place=True)
    assert added.stored() == b""
    assert not added.marker.exists()
    assert await added.is_right()
    assert added.stored() == added.added
    # It does not count yet: a kill might have come in the middle of the write.
    assert added.marker.exists()
    await added.close()


async def test_a_marker_stands_before_the_first_byte_of_a_longer_one(
    tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = Added(tmp_path, threads, length=3 * MIB)
    write, marked = DataFile.write, []

    def note(file: DataFile, data: memoryview) -> None:
        marked.append(added.marker.exists())
        write(file, data)

    monkeypatch.setattr(DataFile, "write", note)
    await added.add(content(MIB))
    assert await added.is_right()
    assert marked == [True]
    # It does not count yet.
    assert added.marker.exists()
    await added.close()


async def test_small_ones_need_no_thread(tmp_path: Path) -> None:
    for length in (100 * 1024, None):
        added = Added(tmp_path, NoThreads(), length=length, announced=sha256(content(50_000) * 2))
        for _ in range(2):
            await added.add(content(50_000))
        assert await added.is_right()
        await added.close()
        assert added.stored() == added.added


@pytest.mark.parametrize("length", [50_000, 100 * 1024, MIB, 2 * MIB, None])
async def test_a_marker_that_has_to_be_synced_is_made_in_a_thread(
    tmp_path: Path, threads: Threads, length: int | None
) -> None:
    """This holds for small and large chunks, with and without a checksum in the header."""
    for announced in (None, sha256(content(length or 70_000))):
        added = Added(tmp_path, threads, length=length, announced=announced, marks_slowly=True)
        await added.add(content(length or 70_000))
        assert await added.is_right()
        assert added.marked_in is not threading.main_thread()
        await added.close()
        assert added.stored() == added.added


async def test_one_upload_is_only_so_far_ahead(tmp_path: Path, held: Held) -> None:
    added = Added(tmp_path, held, length=64 * MIB)
    waits = None
    while waits is None:
        waits = added.offer(content(MIB), in_place=True)
    assert len(added.added) == 5 * MIB
    await a_few_turns()
    assert not waits.done()
    held.may.set()
    await waits
    assert await added.is_right()
    await added.close()


async def test_who_gives_up_waiting_leaves_nothing_behind(tmp_path: Path, held: Held) -> None:
    blocks = BufferPool(6)
    added = Added(tmp_path, held, blocks=blocks, length=64 * MIB)
    waits = None
    while waits is None:
        waits = added.offer(content(MIB), in_place=True)
    waits.cancel()
    closed = asyncio.ensure_future(added.writer.discard())
    await a_few_turns()
    assert not closed.done(), "the file would be cut back under the thread's hands"
    held.may.set()
    await closed
    await added.close()
    assert added.stored() == b""
    assert [blocks.acquire(added.writer) is not None for _ in range(7)] == [True] * 6 + [False]


async def test_closed_it_has_no_thread_at_the_file_any_more(tmp_path: Path, held: Held) -> None:
    added = Added(tmp_path, held, length=64 * MIB)
    await added.add(content(MIB), in_place=True)
    closed = asyncio.ensure_future(added.close())
    await a_few_turns()
    assert not closed.done()
    held.may.set()
    await closed


async def test_memory_comes_back_from_a_body_that_was_cut(tmp_path: Path, threads: Threads) -> None:
    blocks = BufferPool(1)
    for length in (1000, MIB):
        added = Added(tmp_path, threads, blocks=blocks, length=length)
        await added.add(content(500), in_place=True)
        assert blocks.acquire(added.writer) is None
        await added.writer.discard()
        await added.close()
        block = blocks.acquire(added.writer)
        assert block is not None
        blocks.release(block)


async def test_what_is_being_verified_is_left_in_its_block(tmp_path: Path, held: Held) -> None:
    blocks = BufferPool(1)
    added = Added(tmp_path, held, blocks=blocks, length=MIB)
    await added.add(content(MIB), in_place=True)
    added.writer.since = LONG_AGO
    right = asyncio.ensure_future(added.is_right())
    await a_few_turns()
    other = Added(tmp_path, held, blocks=blocks, length=MIB)
    assert other.writer.get_buffer() is None
    assert not right.done()
    assert not added.marker.exists()
    held.may.set()
    assert await right
    assert added.stored() == added.added
    await added.close()


async def test_without_a_block_everything_is_done_at_once(tmp_path: Path) -> None:
    data = content(700_000), content(300_000)
    announced = sha256(b"".join(data))
    added = Added(tmp_path, NoThreads(), blocks=BufferPool(0), length=MIB, announced=announced)
    for piece in data:
        await added.add(piece, in_place=True)
    assert await added.is_right()
    await added.close()
    assert added.stored() == added.added


async def test_who_stands_still_gives_up_its_block(tmp_path: Path, threads: Threads) -> None:
    blocks = BufferPool(1)
    data = content(700_000)
    first = Added(tmp_path, threads, blocks=blocks, length=MIB, announced=sha256(data + b"end"))
    await first.add(data, in_place=True)
    others = Added(tmp_path, threads, blocks=blocks, length=MIB)
    assert others.writer.get_buffer() is None, "it is not for long that the first has it"
    first.writer.since = LONG_AGO
    assert others.writer.get_buffer() is None
    # A thread has it now, which gives it back.
    threads.executor.submit(int).result(WAIT)
    threads.close()
    assert others.writer.get_buffer() is not None
    await others.close()
    assert first.writer.get_buffer() is None
    await first.add(b"end")
    assert await first.is_right()
    await first.close()
    assert first.stored() == data + b"end"


async def test_what_comes_in_slowly_goes_without_a_block(tmp_path: Path, threads: Threads) -> None:
    blocks = BufferPool(1)
    data = [content(size) for size in (1000, 2000, 3000, 200_000)]
    added = Added(
        tmp_path,
        threads,
        blocks=blocks,
        length=sum(map(len, data)),
        announced=sha256(b"".join(data)),
    )
    await added.add(data[0], in_place=True)
    added.writer.since = LONG_AGO
    await added.add(data[1], in_place=True)
    assert added.writer.get_buffer() is None
    await added.add(data[2], in_place=True)
    assert added.stored() == b"".join(data[:3]), "behind what the thread had to do"
    # Until it shows that it is fast again.
    await added.add(data[3], in_place=True)
    assert added.writer.get_buffer() is not None
    assert await added.is_right()
    await added.close()
    assert added.stored() == added.added


async def test_what_comes_in_slowly_waits_for_what_a_thread_has(tmp_path: Path, held: Held) -> None:
    added = Added(tmp_path, held, length=3000, announced=sha256(content(1000) * 3))
    await added.add(content(1000), in_place=True)
    added.writer.since = LONG_AGO
    await added.add(content(1000), in_place=True)
    waits = added.offer(content(1000), in_place=True)
    assert waits is not None
    await a_few_turns()
    assert not waits.done()
    held.may.set()
    await waits
    assert await added.is_right()
    await added.close()
    assert added.stored() == added.added


async def test_a_slow_disk_is_written_to_by_a_thread(tmp_path: Path, held: Held) -> None:
    disk = SteadyDisk(held)
    added = Added(tmp_path, held, announced=sha256(b"onetwothree"), disk=disk)
    assert added.offer(b"one") is None
    disk.slow = True
    waits = added.offer(b"two")
    assert waits is not None
    await a_few_turns()
    assert not waits.done()
    held.may.set()
    await waits
    await added.add(b"three")
    assert await added.is_right()
    await added.close()
    assert added.stored() == b"onetwothree"


@pytest.mark.parametrize("length", [100_000, MIB, 8 * MIB])
async def test_a_disk_that_becomes_full_costs_no_byte(
    tmp_path: Path, threads: Threads, length: int
) -> None:
    added = Added(tmp_path, threads, start=5, length=length, kind=BadDisk)
    with pytest.raises(StorageFull):
        await added.add_all([content(length // 8)] * 8)
    assert len(added.stored()) > 5
    await added.writer.discard()
    await added.close()
    assert added.stored() == added.before


async def test_it_is_told_to_whoever_goes_on(tmp_path: Path, threads: Threads) -> None:
    added = Added(tmp_path, threads, length=64 * MIB, kind=BadDisk)
    with pytest.raises(StorageFull):
        await added.add_all([content(MIB)] * 64)
    assert len(added.added) < 8 * MIB
    await added.writer.discard()
    await added.close()


async def test_behind_a_disk_that_became_full_nothing_is_written(
    tmp_path: Path, held: Held
) -> None:
    added = Added(tmp_path, held, length=64 * MIB, kind=BadDisk)
    for _ in range(3):
        await added.add(content(MIB), in_place=True)
    held.may.set()
    with pytest.raises(StorageFull):
        await added.is_right()
    with pytest.raises(StorageFull):
        added.offer(content(MIB))
    with pytest.raises(StorageFull):
        await added.is_right()
    await added.writer.discard()
    await added.close()


async def test_a_marker_that_cannot_be_made_is_told_to_whoever_goes_on(
    tmp_path: Path, threads: Threads
) -> None:
    blocks = BufferPool(1)
    added = Added(tmp_path, threads, blocks=blocks, length=MIB)
    await added.add(content(1000), in_place=True)
    added.marker.mkdir()
    added.path.unlink()
    added.writer.since = LONG_AGO
    assert blocks.acquire(added.writer) is None
    with pytest.raises(StorageError):
        await added.add(content(1000), in_place=True)
    added.marker.rmdir()
    await added.close()
    assert blocks.acquire(added.writer) is not None


@pytest.mark.parametrize("length", [1000, MIB, 8 * MIB])
async def test_without_the_lock_nothing_is_written_and_nothing_is_right(
    tmp_path: Path, threads: Threads, length: int
) -> None:
    data = content(length)
    added = Added(tmp_path, threads, start=5, length=length, announced=sha256(data))
    added.is_ours = False
    with pytest.raises(LeaseLost):
        await _send(added, data)
    assert added.stored() == added.before
    added.writer.abandon()
    await added.writer.close(sync=False)
    assert not added.marker.exists()


async def _send(added: Added, data: bytes) -> None:
    await added.add(data)
    await added.is_right()


async def test_what_was_written_with_the_lock_is_neither_cut_nor_counted_without_it(
    tmp_path: Path, threads: Threads
) -> None:
    data = content(8 * MIB)
    added = Added(tmp_path, threads, start=5, length=len(data), announced=sha256(data))
    await added.add(data)
    assert await added.is_right()
    added.is_ours = False
    with pytest.raises(LeaseLost):
        await added.writer.discard()
    with pytest.raises(LeaseLost):
        await added.writer.close(sync=True)
    # The marker tells whoever has the lock now what does not count.
    assert added.marker.exists()
    assert added.stored() == added.before + data


@pytest.mark.parametrize("size", [5, 200_000, 3 * MIB + 7])
async def test_T28_a_checksum_that_was_not_announced_is_computed_of_what_lies_there(
    tmp_path: Path, threads: Threads, size: int
) -> None:
    added = Added(tmp_path, threads, start=11)
    await added.add(content(size))
    assert await added.is_right()
    await added.close()
    assert added.stored() == added.before + added.added


async def test_T28_bytes_that_are_not_there_are_an_error_and_no_checksum(
    tmp_path: Path, threads: Threads
) -> None:
    added = Added(tmp_path, threads)
    await added.add(content(50_000))
    added.path.write_bytes(b"")
    with pytest.raises(StorageError, match="shorter than what was written"):
        await added.is_right()
    await added.writer.discard()
    await added.close()


async def test_closed_it_is_not_closed_again(tmp_path: Path, threads: Threads) -> None:
    added = Added(tmp_path, threads, length=10)
    await added.add(content(10))
    assert await added.is_right()
    await added.close()
    await added.close()
