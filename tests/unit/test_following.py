"""A running checksum beside a writer, with threads that wait for a sign: what no client can time from outside."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from tusd_py.storage import following
from tusd_py.storage.following import Follower

MIB = 1024 * 1024
SHARED = 16 * MIB
"""Bytes that all the blocks hold."""
WAIT = 60.0

P = ParamSpec("P")
T = TypeVar("T")


@pytest.fixture(autouse=True)
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine that has but one."""
    monkeypatch.setattr(following, "_processors", lambda: 2)


class Held:
    """A thread that begins with what it is given once it may."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.executor = ThreadPoolExecutor(1)
        self.executor.submit(self.may.wait, WAIT)

    def close(self) -> None:
        self.may.set()
        self.executor.shutdown()


@pytest.fixture
def held() -> Iterator[Held]:
    thread = Held()
    yield thread
    thread.close()


@pytest.fixture
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


class NoThreads(Executor):
    """Where everything has to be done at once."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        raise AssertionError("a thread was asked for")


class File:
    """A data file, and the follower of what is added to it. stored: whether the bytes really go there."""

    def __init__(
        self,
        directory: Path,
        threads: Executor,
        *,
        start: int = 0,
        beside: bool = True,
        stored: bool = True,
    ) -> None:
        self.descriptor = os.open(directory / f"data-{start}", os.O_RDWR | os.O_CREAT)
        self.stored = stored
        self.end = start
        self.expected = hashlib.sha256()
        self.hasher = Slow(hashlib.sha256())
        self.follower = Follower(self.hasher, self.descriptor, start, threads, beside=beside)

    def add(self, data: bytes) -> None:
        if self.stored:
            os.pwrite(self.descriptor, data, self.end)
        self.end += len(data)
        self.expected.update(data)
        # As the receive buffer is: overwritten by what comes next.
        view = bytearray(data)
        self.follower.wrote(memoryview(view), self.end)
        view[:] = bytes(len(view))

    def fill(self, mib: int) -> None:
        """Adds so many MiB, one at a time."""
        for _ in range(mib):
            self.add(content(MIB))

    def is_far_behind(self) -> bool:
        return self.follower.is_far_behind

    async def is_right(self) -> bool:
        await self.follower.finish(self.end)
        return self.hasher.digest() == self.expected.digest()

    async def close(self) -> None:
        await self.follower.stop()
        os.close(self.descriptor)


class Slow:
    """A checksum that takes as long as it is told to."""

    def __init__(self, hasher: hashlib._Hash) -> None:
        self._hasher = hasher
        self.begun = threading.Event()
        self.may = threading.Event()
        self.may.set()
        self.updates = 0

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        self.updates += 1
        self.begun.set()
        assert self.may.wait(WAIT)
        self._hasher.update(data)

    def digest(self) -> bytes:
        return self._hasher.digest()


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("start", [0, 777_777])
@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [0],
        [1],
        [127 * 1024, 128 * 1024, 129 * 1024],
        [256 * 1024] * 9,
        [3 * MIB + 1, 5, 256 * 1024 + 1, 64 * 1024, 9 * MIB],
        [MIB] * 40,
        [7_000] * 500,
        [*[MIB, 100] * 10, 1, 20 * MIB],
    ],
    ids=lambda pieces: f"{len(pieces)}x{max(pieces, default=0)}",
)
async def test_T25_pieces_of_any_size_make_the_checksum_of_all(
    tmp_path: Path, threads: Executor, pieces: list[int], start: int
) -> None:
    file = File(tmp_path, threads, start=start)
    for size in pieces:
        file.add(content(size))
        # Lets the threads in between, now before and now behind what comes next.
        await asyncio.sleep(0)
    assert await file.is_right()
    await file.close()


async def test_what_was_copied_is_hashed_without_the_file(tmp_path: Path, held: Held) -> None:
    file = File(tmp_path, held.executor, stored=False)
    file.fill(SHARED // MIB)
    held.may.set()
    assert await file.is_right()
    await file.close()


async def test_what_has_found_no_memory_is_read_back(tmp_path: Path, held: Held) -> None:
    file = File(tmp_path, held.executor)
    file.fill(20)
    file.add(content(50))
    held.may.set()
    assert await file.is_right()
    await file.close()


async def test_copies_and_what_is_read_back_alternate(tmp_path: Path, held: Held) -> None:
    """Blocks that come back are used by the next bytes, while earlier ones without are still to be read."""
    file = File(tmp_path, held.executor)
    file.fill(20)
    file.add(content(50))
    file.hasher.may.clear()
    held.may.set()
    await asyncio.to_thread(file.hasher.begun.wait, WAIT)
    for _ in range(5):
        file.hasher.begun.clear()
        file.hasher.may.set()
        file.add(content(MIB))
        await asyncio.to_thread(file.hasher.begun.wait, WAIT)
    assert await file.is_right()
    await file.close()


async def test_a_file_that_lacks_what_was_written_is_an_error_and_no_checksum(
    tmp_path: Path, held: Held
) -> None:
    file = File(tmp_path, held.executor, stored=False)
    file.fill(20)
    held.may.set()
    with pytest.raises(OSError, match="shorter than what was written"):
        await file.follower.finish(file.end)
    await file.close()


async def test_such_an_error_is_told_to_whoever_writes_on(tmp_path: Path, held: Held) -> None:
    file = File(tmp_path, held.executor, stored=False)
    file.fill(70)
    held.may.set()
    with pytest.raises(OSError, match="shorter than what was written"):
        await file.follower.keep_up()
    await file.close()


async def test_memory_comes_back_from_a_body_that_was_cut(tmp_path: Path, held: Held) -> None:
    cut = File(tmp_path, held.executor)
    cut.fill(30)
    await cut.close()
    held.may.set()
    another = Held()
    file = File(tmp_path, another.executor, stored=False, start=1)
    file.fill(SHARED // MIB)
    another.may.set()
    assert await file.is_right()
    await file.close()
    another.close()


async def test_stopped_it_reads_the_file_no_more(tmp_path: Path, threads: Executor) -> None:
    file = File(tmp_path, threads)
    file.hasher.may.clear()
    file.fill(4)
    await asyncio.to_thread(file.hasher.begun.wait, WAIT)
    stopped = asyncio.create_task(file.follower.stop())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not stopped.done(), "the descriptor would be closed under the thread's hands"
    file.hasher.may.set()
    await stopped
    assert file.hasher.updates == 1
    os.close(file.descriptor)


async def test_who_is_far_behind_is_waited_for(tmp_path: Path, held: Held) -> None:
    file = File(tmp_path, held.executor)
    file.fill(64)
    assert not file.is_far_behind()
    file.add(content(MIB))
    assert file.is_far_behind()
    kept_up = asyncio.create_task(file.follower.keep_up())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not kept_up.done()
    held.may.set()
    await kept_up
    assert not file.is_far_behind()
    assert await file.is_right()
    await file.close()


async def test_who_gives_up_waiting_leaves_nothing_behind(tmp_path: Path, held: Held) -> None:
    file = File(tmp_path, held.executor)
    file.fill(65)
    waiting = asyncio.create_task(file.follower.keep_up())
    await asyncio.sleep(0)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    held.may.set()
    assert await file.is_right()
    await file.close()


async def test_small_pieces_need_no_thread(tmp_path: Path) -> None:
    file = File(tmp_path, NoThreads(), stored=False)
    for _ in range(100):
        file.add(content(64 * 1024))
    assert await file.is_right()
    await file.close()


@pytest.mark.parametrize("processors", [1, 2])
async def test_it_hashes_at_once_where_that_is_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processors: int
) -> None:
    """On one processor, and where whoever writes says so, as for a checksum that costs nothing."""
    monkeypatch.setattr(following, "_processors", lambda: processors)
    file = File(tmp_path, NoThreads(), stored=False, beside=processors == 1)
    file.fill(10)
    assert await file.is_right()
    await file.close()


async def test_T27_bytes_that_were_not_followed_are_read_back(
    tmp_path: Path, threads: Executor
) -> None:
    """As for a checksum that comes behind the body."""
    file = File(tmp_path, threads)
    data = content(30 * MIB)
    os.pwrite(file.descriptor, data, 0)
    file.expected.update(data)
    file.end = len(data)
    assert await file.is_right()
    await file.close()
