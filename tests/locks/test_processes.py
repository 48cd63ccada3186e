"""Locks between real processes: two never write at the same time, and dead holders are not waited for."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.locks.conftest import MakeLocks
from tests.locks.holding import queued, until
from tests.support.redis import RedisServer
from tusd_py.locks.base import LockTimeout

ROOT = Path(__file__).parents[2]


class Holder:
    """A `tests.locks.holder`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def hears(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            return (await self.process.stdout.readline()).decode().strip()

    async def order(self, what: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n".encode())
        # It may be asked for the lock again at any time.
        while (answer := await self.hears()) == "asked":
            pass
        return answer

    def kill(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def is_stopped(self) -> None:
        await asyncio.to_thread(os.waitid, os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)


StartHolder = Callable[..., Awaitable[Holder]]


@pytest.fixture
async def start_holder(redis_server: RedisServer) -> AsyncIterator[StartHolder]:
    """``await start_holder("study", lease=…, journal=…)``: a process that holds the lock or waits for it."""
    async with AsyncExitStack() as stack:

        async def start(upload_id: str, *, lease: float = 10.0, journal: Path | str = "") -> Holder:
            command = ("-m", "tests.locks.holder", redis_server.url, upload_id, str(lease))
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                str(journal),
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )

            async def end() -> None:
                if process.returncode is None:
                    process.kill()
                await process.communicate()

            stack.push_async_callback(end)
            return Holder(process)

        yield start


async def test_processes_never_hold_the_same_lock(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    file = tmp_path / "number"
    file.write_text("0")
    command = (sys.executable, "-m", "tests.locks.contender", redis_server.url, str(file), "100")
    processes = [await asyncio.create_subprocess_exec(*command, cwd=ROOT) for _ in range(3)]
    async with asyncio.timeout(100):
        assert [await process.wait() for process in processes] == [0, 0, 0]
    assert file.read_text() == "300"


@pytest.mark.usefixtures("by_messages_alone")
async def test_T38_a_resuming_client_in_another_process_goes_on_at_once(
    make_locks: MakeLocks, start_holder: StartHolder
) -> None:
    holder = await start_holder("study", lease=60)
    assert await holder.hears() == "held"
    locks = await make_locks()
    began = time.monotonic()
    newcomer = asyncio.create_task(locks.acquire("study", timeout=50))
    assert await holder.hears() == "asked"
    assert await holder.order("release") == "released"
    lease = await newcomer
    assert time.monotonic() - began < 30
    await lease.release()


async def test_a_holder_killed_on_this_machine_is_not_waited_for(
    make_locks: MakeLocks, start_holder: StartHolder
) -> None:
    holder = await start_holder("study", lease=60)
    assert await holder.hears() == "held"
    locks = await make_locks(lease=60)
    holder.kill(signal.SIGKILL)
    began = time.monotonic()
    lease = await locks.acquire("study", timeout=50)
    assert time.monotonic() - began < 30
    await lease.release()


async def test_a_holder_killed_while_it_is_waited_for_is_not_waited_for(
    make_locks: MakeLocks, start_holder: StartHolder
) -> None:
    holder = await start_holder("study", lease=60)
    assert await holder.hears() == "held"
    locks = await make_locks(lease=60)
    newcomer = asyncio.create_task(locks.acquire("study", timeout=50))
    assert await holder.hears() == "asked"
    holder.kill(signal.SIGKILL)
    began = time.monotonic()
    lease = await newcomer
    assert time.monotonic() - began < 30
    await lease.release()


async def test_somebody_killed_while_waiting_does_not_hold_the_others_up(
    make_locks: MakeLocks, start_holder: StartHolder
) -> None:
    locks = await make_locks(lease=60)
    lease = await locks.acquire("study", timeout=50)
    asked = asyncio.Event()
    lease.on_requested(asked.set)
    waiting = await start_holder("study", lease=60)
    await asked.wait()
    patient = asyncio.create_task((await make_locks(lease=60)).acquire("study", timeout=50))
    await queued(patient)
    waiting.kill(signal.SIGKILL)
    await waiting.process.wait()
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await lease.release()
    await (await patient).release()
    assert time.monotonic() - began < 30


async def test_a_process_that_stood_still_does_not_write_again(
    make_locks: MakeLocks, start_holder: StartHolder, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    holder = await start_holder("study", lease=1.5, journal=journal)
    assert await holder.hears() == "held"
    await until(lambda: journal.exists() and journal.stat().st_size > 0, "the writer")
    locks = await make_locks(lease=60)
    holder.kill(signal.SIGSTOP)
    await holder.is_stopped()
    lease = await locks.acquire("study", timeout=50)
    written = journal.stat().st_size
    holder.kill(signal.SIGCONT)
    assert await holder.hears() == "asked"
    assert await holder.order("held?") == "False"
    await asyncio.sleep(0.05)
    # But for the line that it was about to write when it was stopped.
    assert journal.stat().st_size <= written + len(f"{holder.process.pid}\n")
    assert lease.is_held()
    # Nor does it let go of what is somebody else's.
    assert await holder.order("release") == "released"
    assert lease.is_held()
    with pytest.raises(LockTimeout):
        await locks.acquire("study", timeout=0, request_release=False)
    await lease.release()
