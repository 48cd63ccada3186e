"""Locks that survive an outage of Redis: held and granted meanwhile, and never held twice when it goes or comes back."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.locks.conftest import MakeShared
from tests.locks.holding import asked, queued, until
from tests.support.redis import RedisServer
from tusd_py.locks.base import Lease, LeaseLost, LocksUnavailable, LockTimeout
from tusd_py.locks.epochs import Epochs
from tusd_py.locks.fallback import FallbackLease, FallbackLocks
from tusd_py.locks.ofd import OfdLocks


async def test_without_redis_locks_are_granted_and_kept(
    redis_server: RedisServer, make_shared: MakeShared
) -> None:
    here, there = await make_shared(), await make_shared()
    redis_server.kill9()
    lease = await here.acquire("study", timeout=60)
    assert lease.is_held()
    for locks in (here, there):
        with pytest.raises(LockTimeout):
            await locks.acquire("study", timeout=0, request_release=False)
    await (await there.acquire("other", timeout=0)).release()
    await lease.release()
    assert not lease.is_held()
    await (await there.acquire("study", timeout=0)).release()


@pytest.mark.parametrize("same", [True, False], ids=["same process", "another process"])
async def test_T38_without_redis_a_newcomer_is_heard(
    redis_server: RedisServer, make_shared: MakeShared, same: bool
) -> None:
    here, there = await make_shared(), await make_shared()
    redis_server.kill9()
    holder = await here.acquire("study", timeout=60)
    wanted = asked(holder)
    newcomer = asyncio.create_task((here if same else there).acquire("study", timeout=60))
    async with asyncio.timeout(30):
        await wanted.wait()
    await queued(newcomer)
    await holder.release()
    async with asyncio.timeout(30):
        lease = await newcomer
    assert lease.is_held()
    assert not asked(lease).is_set()
    await lease.release()


async def test_an_epoch_that_cannot_be_read_keeps_nobody_else_out(
    redis_server: RedisServer, make_shared: MakeShared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This happens if a process runs out of descriptors between locking the byte and reading the epoch again."""
    here, there = await make_shared(), await make_shared()
    redis_server.kill9()
    read, looks = Epochs.read, iter(range(2))

    def read_once(epochs: Epochs, upload_id: str) -> str:
        if next(looks):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return read(epochs, upload_id)

    with monkeypatch.context() as patch:
        patch.setattr(Epochs, "read", read_once)
        with pytest.raises(LocksUnavailable):
            await here.acquire("study", timeout=0)
    await (await there.acquire("study", timeout=0, request_release=False)).release()


async def test_who_does_not_ask_only_waits(
    redis_server: RedisServer, make_shared: MakeShared
) -> None:
    here, there = await make_shared(), await make_shared()
    redis_server.kill9()
    holder = await here.acquire("study", timeout=60)
    wanted = asked(holder)
    patient = asyncio.create_task(there.acquire("study", timeout=60, request_release=False))
    await queued(patient, 0.6)
    assert not wanted.is_set()
    await holder.release()
    async with asyncio.timeout(30):
        await (await patient).release()


@pytest.mark.usefixtures("often")
async def test_what_redis_granted_outlasts_its_lease_while_redis_is_away(
    redis_server: RedisServer, make_shared: MakeShared
) -> None:
    here, there = await make_shared(lease=6.0), await make_shared(lease=6.0)
    holder = await here.acquire("study", timeout=60)
    wanted = asked(holder)
    redis_server.kill9()
    with pytest.raises(LockTimeout):
        await there.acquire("study", timeout=3, request_release=False)
    assert holder.granted is not None
    # What Redis granted is over by now.
    await until(lambda: not holder.granted.is_held(), "the lease to run out")  # type: ignore[union-attr]
    assert holder.is_held()
    assert not wanted.is_set()
    await holder.release()
    await (await there.acquire("study", timeout=60)).release()


async def test_a_holder_has_the_byte_alone_though_redis_granted_the_lock(
    make_shared: MakeShared, tmp_path: Path
) -> None:
    here = await make_shared()
    holder = await here.acquire("study", timeout=60)
    assert holder.granted is not None
    other = OfdLocks(str(tmp_path / "locks"))
    assert not other.acquire("study", exclusive=False)
    await holder.release()
    assert other.acquire("study", exclusive=True)
    other.close()


async def forget(locks: FallbackLocks) -> None:
    """Make Redis forget who holds the lock, and say that another one had it since: otherwise a renewal could bring it back."""
    redis_client = locks._redis_client
    await redis_client.command("SET", redis_client.keys.lock("study"), "free:somebody-else")


@pytest.mark.usefixtures("often")
async def test_whom_redis_grants_a_lock_that_it_forgot_waits_for_its_holder(
    redis_server: RedisServer, make_shared: MakeShared
) -> None:
    """At its renewal the holder learns of it; it is asked to release, and may make changes until then."""
    here, there = await make_shared(), await make_shared()
    holder = await here.acquire("study", timeout=60)
    wanted = asked(holder)
    await forget(there)
    newcomer = asyncio.create_task(there.acquire("study", timeout=60))
    async with asyncio.timeout(30):
        await wanted.wait()
    assert holder.is_held()
    with holder.fence():
        pass
    await queued(newcomer)
    await holder.release()
    async with asyncio.timeout(30):
        lease = await newcomer
    assert lease._byte == "study"
    await lease.release()


async def lost(here: FallbackLocks, there: FallbackLocks) -> tuple[FallbackLease, FallbackLease]:
    """A holder that does not release, and the one that took over."""
    holder = await here.acquire("study", timeout=60)
    await forget(there)
    async with asyncio.timeout(60):
        return holder, await there.acquire("study", timeout=50)


async def test_a_holder_that_does_not_release_is_given_up_and_changes_nothing_from_then_on(
    make_shared: MakeShared,
) -> None:
    here, there = await make_shared(lease=2.0), await make_shared(lease=2.0)
    holder, newcomer = await lost(here, there)
    with newcomer.fence():
        pass
    # Nothing has told the holder yet but the fence.
    assert holder.is_held()
    with pytest.raises(LeaseLost), holder.fence():
        pytest.fail("a change was made by a holder that was given up")
    assert not holder.is_held()
    async with asyncio.timeout(30):
        await asked(holder).wait()
    await holder.release()
    with newcomer.fence():
        pass
    await newcomer.release()
    # All go by the new epoch from now on.
    lease = await here.acquire("study", timeout=0)
    with pytest.raises(LockTimeout):
        await there.acquire("study", timeout=0, request_release=False)
    await lease.release()


async def test_a_holder_is_not_given_up_in_the_middle_of_a_change(make_shared: MakeShared) -> None:
    here, there = await make_shared(lease=2.0), await make_shared(lease=2.0)
    holder = await here.acquire("study", timeout=60)
    await forget(there)
    with holder.fence():
        with pytest.raises(LockTimeout):
            await there.acquire("study", timeout=3)
        # Another thread of the same request comes and goes meanwhile.
        await asyncio.to_thread(lambda: holder.fence().__enter__())
        holder.fence().__exit__(None, None, None)
        with pytest.raises(LockTimeout):
            await there.acquire("study", timeout=0.5)
    async with asyncio.timeout(60):
        newcomer = await there.acquire("study", timeout=50)
    assert newcomer.is_held()
    with pytest.raises(LeaseLost), holder.fence():
        pytest.fail("a change was made by a holder that was given up")
    await newcomer.release()
    await holder.release()


async def test_nobody_is_given_up_without_redis_nor_by_those_who_do_not_ask(
    redis_server: RedisServer, make_shared: MakeShared
) -> None:
    here, there = await make_shared(lease=0.5), await make_shared(lease=0.5)
    holder = await here.acquire("study", timeout=60)
    await forget(there)
    with pytest.raises(LockTimeout):
        await there.acquire("study", timeout=1.0, request_release=False)
    redis_server.kill9()
    with pytest.raises(LockTimeout):
        await there.acquire("study", timeout=1.0)
    with holder.fence():
        pass
    await holder.release()


async def test_of_two_that_take_over_one_gets_the_upload(make_shared: MakeShared) -> None:
    """Redis loses its data twice, so that both were granted the lock."""
    here, there, elsewhere = [await make_shared(lease=4.0) for _ in range(3)]
    holder = await here.acquire("study", timeout=60)
    leases: list[FallbackLease] = []

    async def come(locks: FallbackLocks) -> None:
        leases.append(await locks.acquire("study", timeout=50))

    comers = []
    for locks in (there, elsewhere):
        await forget(there)
        comers.append(asyncio.create_task(come(locks)))
        await queued(comers[-1], 0.5)  # type: ignore[arg-type]
    await until(lambda: bool(leases), "the first")
    for lease in leases[:-1]:
        with pytest.raises(LeaseLost):
            lease.fence().__enter__()
    with leases[-1].fence():
        pass
    with pytest.raises(LeaseLost):
        holder.fence().__enter__()
    await leases[0].release()
    async with asyncio.timeout(60):
        await asyncio.gather(*comers)
    with leases[-1].fence():
        pass
    await leases[-1].release()
    await holder.release()


@pytest.mark.parametrize("same", [True, False], ids=["same process", "another process"])
async def test_when_redis_is_back_who_held_without_it_is_waited_for(
    redis_server: RedisServer, make_shared: MakeShared, same: bool
) -> None:
    here, there = await make_shared(), await make_shared()
    redis_server.kill9()
    holder = await here.acquire("study", timeout=60)
    wanted = asked(holder)
    redis_server.start()
    newcomers = here if same else there
    lease: Lease = await newcomers.acquire("other", timeout=60)
    await lease.release()
    for redis_client in (here._redis_client, there._redis_client):
        await until(lambda redis_client=redis_client: redis_client.available, "Redis to be back")  # type: ignore[misc]
    with pytest.raises(LockTimeout):
        await newcomers.acquire("study", timeout=0, request_release=False)
    newcomer = asyncio.create_task(newcomers.acquire("study", timeout=60))
    async with asyncio.timeout(30):
        await wanted.wait()
    await queued(newcomer)
    await holder.release()
    async with asyncio.timeout(30):
        lease = await newcomer
    assert lease.is_held()
    await lease.release()


_HOLDER = """
import sys
from tusd_py.locks.ofd import OfdLocks
ranges = OfdLocks(sys.argv[1])
print(ranges.acquire("study", exclusive=sys.argv[2] == "alone"), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_the_byte_of_a_process_goes_with_it(tmp_path: Path, number: signal.Signals) -> None:
    path = str(tmp_path / "locks")
    mine = OfdLocks(path)
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, path, "alone"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"True\n"
        assert not mine.acquire("study", exclusive=False)
        assert mine.acquire("another", exclusive=True)
        os.kill(process.pid, number)
        process.wait()
    assert mine.acquire("study", exclusive=True)
    mine.close()


async def test_bytes_are_had_by_many_or_by_one_alone(tmp_path: Path) -> None:
    one, two = (OfdLocks(str(tmp_path / "locks")) for _ in range(2))
    assert one.acquire("study", exclusive=False)
    assert two.acquire("study", exclusive=False)
    assert not two.acquire("study", exclusive=True)
    one.release("study")
    assert two.acquire("study", exclusive=True)
    assert not one.acquire("study", exclusive=False)
    one.set_requested("study", on=True)
    assert two.is_requested("study")
    assert not one.is_requested("study")
    one.set_requested("study", on=False)
    assert not two.is_requested("study")
    one.close()
    two.close()


@pytest.mark.usefixtures("often")
async def test_there_is_never_more_than_one_holder_however_redis_comes_and_goes(
    redis_server: RedisServer, make_shared: MakeShared
) -> None:
    dice = random.Random(7)
    processes = [await make_shared(lease=10.0, timeout=0.3) for _ in range(3)]
    holders: dict[str, Lease | None] = dict.fromkeys(("a", "b"))
    granted = without_redis = 0

    async def come() -> None:
        nonlocal granted, without_redis
        name = dice.choice(list(holders))
        try:
            lease = await dice.choice(processes).acquire(
                name, timeout=dice.choice((0, 0.05, 5)), request_release=dice.random() < 0.8
            )
        except LockTimeout:
            await asyncio.sleep(0.005)
            return
        if (earlier := holders[name]) is not None:
            # It was too slow on a busy machine, and was given up: it can change nothing any more.
            with pytest.raises(LeaseLost), earlier.fence():
                pass
        holders[name] = lease
        granted += 1
        without_redis += lease.granted is None
        with suppress(TimeoutError):
            async with asyncio.timeout(dice.random() * 0.02):
                await asked(lease).wait()
        if holders[name] is lease:
            holders[name] = None
        await lease.release()

    stop = asyncio.Event()

    async def come_often() -> None:
        while not stop.is_set():
            await come()

    comers = [asyncio.create_task(come_often()) for _ in range(10)]
    for _ in range(3):
        before = granted
        await until(lambda before=before: granted > before + 50, "locks with Redis")  # type: ignore[misc]
        await asyncio.to_thread(redis_server.kill9)
        before = without_redis
        await until(lambda before=before: without_redis > before + 50, "locks without it")  # type: ignore[misc]
        await asyncio.to_thread(redis_server.start)
        for locks in processes:
            await until(lambda locks=locks: locks._redis_client.available, "Redis to be back")  # type: ignore[misc]
    stop.set()
    await asyncio.gather(*comers)


async def test_an_epoch_is_forgotten_once_its_upload_is_gone_and_nobody_was_given_up_in_it(
    make_shared: MakeShared, tmp_path: Path
) -> None:
    async def gone(_upload_id: str) -> bool:
        return True

    async def there_still(_upload_id: str) -> bool:
        return False

    here, there = await make_shared(lease=2.0), await make_shared(lease=2.0)
    holder, newcomer = await lost(here, there)
    file = tmp_path / "epochs" / "study"
    assert file.exists()
    # It is held, in the current epoch and by the one that was given up.
    assert await there.tidy(gone) == 0
    await newcomer.release()
    assert await there.tidy(gone) == 0
    await holder.release()
    assert await there.tidy(there_still) == 0
    assert file.exists()
    assert await there.tidy(gone) == 1
    assert not file.exists()
    lease = await here.acquire("study", timeout=0)
    with lease.fence():
        pass
    await lease.release()
