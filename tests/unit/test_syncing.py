"""Grouping of syncs, with a disk that completes them when the test says so."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from tusd_py.storage.file import fsync as syncing
from tusd_py.storage.file.fsync import BytesLost, FileLost, GroupSync

IS_BELOW = GroupSync._is_below
P = ParamSpec("P")
T = TypeVar("T")


class Disk(Executor):
    """Threads that end a sync when they are told to."""

    def __init__(self) -> None:
        self.begun: list[Callable[[], None]] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        self.begun.append(lambda: future.set_result(fn(*args, **kwargs)))
        return future

    async def end_first(self) -> None:
        """Carries out what was begun first, and lets everybody hear of it."""
        self.begun.pop(0)()
        for _ in range(5):
            await asyncio.sleep(0)


class Calls:
    """The requested syncs: files by name, and `*` for the whole file system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        monkeypatch.setattr(syncing, "_syncs_whole", lambda path: True)
        monkeypatch.setattr(syncing, "_syncfs", self._whole)
        monkeypatch.setattr(syncing, "sync_path", self._one)
        monkeypatch.setattr(syncing, "_report_loss", self._report)
        monkeypatch.setattr(syncing.GroupSync, "_is_below", lambda _, path: True)
        self.reported: list[str] = []
        self.lost: set[str] = set()

    def _whole(self, descriptor: int) -> int:
        self.made.append("*")
        return -1 if "*" in self.lost else 0

    def _report(self, path: str) -> None:
        self.reported.append(path)
        if path in self.lost:
            raise BytesLost(errno.EIO, "Input/output error")

    def _one(self, path: str, *, data_only: bool = False) -> None:
        self.made.append(path)
        if path in self.lost:
            raise BytesLost(errno.EIO, "Input/output error")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def group(tmp_path: Path, disk: Disk, calls: Calls) -> AsyncIterator[GroupSync]:
    group = GroupSync(str(tmp_path), disk, on_loss=lambda: calls.made.append("!"))
    group.open()
    yield group
    # Whoever still waits would wait for ever, also to be cancelled.
    while disk.begun:
        await disk.end_first()
    group.close()


async def arrive(group: GroupSync, names: str) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(group.sync(name)) for name in names]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_one_that_comes_alone_is_synced_by_itself(
    group: GroupSync, disk: Disk, calls: Calls
) -> None:
    (a,) = await arrive(group, "a")
    await disk.end_first()
    assert a.done()
    assert calls.made == ["a"]


async def test_those_that_come_meanwhile_are_synced_together(
    group: GroupSync, disk: Disk, calls: Calls
) -> None:
    first = await arrive(group, "abcde")
    assert len(disk.begun) == 3
    await disk.end_first()
    await disk.end_first()
    assert [task.done() for task in first] == [True, True, False, False, False]
    await disk.end_first()
    assert all(task.done() for task in first)
    assert calls.made == ["a", "b", "*"]


async def test_those_that_a_group_kept_waiting_are_the_next_group(
    group: GroupSync, disk: Disk, calls: Calls
) -> None:
    """All of them: the disk is asked once for what it would be asked for three times."""
    await arrive(group, "abcde")
    later = await arrive(group, "fghi")
    for _ in range(3):
        await disk.end_first()
    assert len(disk.begun) == 1
    assert not any(task.done() for task in later)
    await disk.end_first()
    assert all(task.done() for task in later)
    assert calls.made == ["a", "b", "*", "*"]


async def test_what_lies_on_another_volume_is_synced_by_itself(
    group: GroupSync, disk: Disk, calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sync of the whole file system does not reach it, nor is a loss there told by it."""
    monkeypatch.setattr(syncing.GroupSync, "_is_below", IS_BELOW)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        (tmp_path / "other").symlink_to(other)
        root, aside = str(tmp_path), f"{tmp_path}/other"
        first = await arrive(group, "ab")
        later = [
            asyncio.create_task(group.sync(f"{root}/c", directories=(root,), own=True)),
            asyncio.create_task(group.sync(f"{aside}/d", own=True)),
            asyncio.create_task(group.sync(None, f"{root}/e", directories=(aside, root))),
        ]
        for _ in range(3):
            await asyncio.sleep(0)
        for _ in range(3):
            await disk.end_first()
    assert all(task.done() for task in (*first, *later))
    assert calls.made == ["a", "b", "*", f"{aside}/d", f"{root}/e", aside, root]


async def test_a_group_never_covers_who_came_after_it_began(
    group: GroupSync, disk: Disk, calls: Calls
) -> None:
    await arrive(group, "abcde")
    (late,) = await arrive(group, "f")
    for _ in range(3):
        await disk.end_first()
    assert calls.made == ["a", "b", "*"]
    assert not late.done()
    await disk.end_first()
    assert late.done()
    assert calls.made == ["a", "b", "*", "f"]


async def outcomes(tasks: list[asyncio.Task[None]]) -> list[bool]:
    """For each call, whether it reported lost bytes."""
    found = await asyncio.gather(*tasks, return_exceptions=True)
    return [isinstance(outcome, BytesLost) for outcome in found]


async def test_each_file_of_a_group_is_asked_for_its_own_error(
    group: GroupSync, disk: Disk, calls: Calls
) -> None:
    """Another group may have been told of it by `syncfs`."""
    tasks = await arrive(group, "abcde")
    calls.lost = {"d"}
    for _ in range(3):
        await disk.end_first()
    assert calls.reported == ["c", "d", "e"]
    assert await outcomes(tasks) == [False, False, False, True, False]
    assert "!" in calls.made


async def test_what_this_process_wrote_is_asked_only_once_there_was_a_loss(
    group: GroupSync, disk: Disk, calls: Calls
) -> None:
    async def arrive_own(names: str) -> list[asyncio.Task[None]]:
        tasks = [
            asyncio.create_task(group.sync(name, f"{name}.info", own=name.islower()))
            for name in names
        ]
        for _ in range(3):
            await asyncio.sleep(0)
        return tasks

    tasks = await arrive_own("abcDe")
    for _ in range(3):
        await disk.end_first()
    assert calls.reported == ["D", "D.info"]
    assert await outcomes(tasks) == [False] * 5
    # One that is synced alone is told; what the next group would be told of the same loss is taken with it.
    [told] = await arrive_own("f")
    calls.lost = {"f"}
    await disk.end_first()
    assert await outcomes([told]) == [True]
    calls.lost, calls.reported = {"j"}, []
    tasks = await arrive_own("ghijk")
    for _ in range(3):
        await disk.end_first()
    assert calls.reported == ["i", "i.info", "j", "k", "k.info"]
    assert await outcomes(tasks) == [False, False, False, True, False]


async def test_a_loss_that_a_group_was_told_of_makes_the_next_ones_ask(
    group: GroupSync, disk: Disk, calls: Calls
) -> None:
    first = await arrive(group, "abcde")
    calls.lost = {"*"}
    for _ in range(3):
        await disk.end_first()
    assert await outcomes(first) == [False] * 5
    calls.lost, calls.reported = set(), []
    later = [asyncio.create_task(group.sync(name, own=True)) for name in "fghij"]
    for _ in range(3):
        await asyncio.sleep(0)
    for _ in range(3):
        await disk.end_first()
    assert calls.reported == ["h", "i", "j"]
    assert await outcomes(later) == [False] * 5


async def test_what_is_to_be_durable_beside_the_bytes_is_asked_too(
    group: GroupSync, disk: Disk, calls: Calls
) -> None:
    """A record or an event whose content another group's write-back lost: the bytes themselves are there."""
    first = await arrive(group, "ab")
    later = [asyncio.create_task(group.sync(name, f"{name}.info")) for name in "cd"]
    later.append(asyncio.create_task(group.sync(None, "e.info")))
    for _ in range(3):
        await asyncio.sleep(0)
    calls.lost = {"d.info", "e.info"}
    for _ in range(3):
        await disk.end_first()
    assert await outcomes(first) == [False, False]
    found = await asyncio.gather(*later, return_exceptions=True)
    assert [type(outcome) for outcome in found] == [type(None), FileLost, FileLost]
    assert "!" in calls.made


async def test_what_cannot_be_asked_lost_nothing(
    group: GroupSync, disk: Disk, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Descriptors are used up: these requests fail, and no other upload starts again."""

    def fail(_path: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(syncing, "_report_loss", fail)
    tasks = await arrive(group, "abcde")
    for _ in range(3):
        await disk.end_first()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(outcome, OSError) for outcome in found] == [False, False, True, True, True]
    assert "!" not in calls.made


async def test_what_a_group_is_told_is_recorded_though_none_of_its_own_files_lost_bytes(
    group: GroupSync, disk: Disk, calls: Calls
) -> None:
    tasks = await arrive(group, "abcde")
    calls.lost = {"*"}
    for _ in range(3):
        await disk.end_first()
    assert await outcomes(tasks) == [False] * 5
    assert calls.made == ["a", "b", "*", "!", "c", "d", "e"]


async def test_one_alone_that_lost_bytes_is_recorded(
    group: GroupSync, disk: Disk, calls: Calls
) -> None:
    """And what the next group would be told of the same is taken now."""
    tasks = await arrive(group, "a")
    calls.lost = {"a"}
    await disk.end_first()
    assert await outcomes(tasks) == [True]
    assert calls.made == ["a", "*", "!"]


async def test_one_whose_bytes_came_with_several_requests_is_synced_with_everything(
    group: GroupSync, disk: Disk, calls: Calls
) -> None:
    task = asyncio.create_task(group.sync("a", whole=True))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await disk.end_first()
    await task
    assert calls.made == ["*"]


def failing_fsync(number: int) -> Callable[[int], None]:
    def fsync(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    return fsync


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_directory_that_cannot_be_synced_is_passed_over_and_said_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    syncing._warn_once.cache_clear()
    monkeypatch.setattr(os, "fsync", failing_fsync(number))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            syncing.sync_path(str(tmp_path))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "directories cannot be synced" in caplog.text


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_an_error_of_a_directory_that_can_be_synced_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing_fsync(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        syncing.sync_path(str(tmp_path))


@pytest.mark.parametrize("data_only", [True, False])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_that_cannot_be_synced_is_an_error_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, data_only: bool
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(os, "fsync", failing_fsync(number))
    monkeypatch.setattr(syncing, "sync_data", failing_fsync(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        syncing.sync_path(str(file), data_only=data_only)
