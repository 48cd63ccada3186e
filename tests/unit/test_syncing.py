"""Who is synced with whom, with a disk that is ready when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from tusd_py.storage import syncing
from tusd_py.storage.syncing import GroupSync

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
    """What the system was asked for: files by their names, and `*` for everything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        monkeypatch.setattr(syncing, "_syncs_whole", lambda path: True)
        monkeypatch.setattr(syncing, "_syncfs", self._whole)
        monkeypatch.setattr(syncing, "sync_path", self._one)

    def _whole(self, descriptor: int) -> int:
        self.made.append("*")
        return 0

    def _one(self, path: str, *, data_only: bool = False) -> None:
        self.made.append(path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def group(tmp_path: Path, disk: Disk, calls: Calls) -> AsyncIterator[GroupSync]:
    group = GroupSync(str(tmp_path), disk)
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
