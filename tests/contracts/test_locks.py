"""The contract of every kind of lock. `here` and `there` are two processes, if the kind supports several."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from tests.locks.holding import asked, queued, until
from tusd_py.locks.base import Lease, Locks, LocksClosed, LockTimeout

MANY = [f"u{number}" for number in range(100)]
NOW = 30.0
"""Seconds in which something happens that need not wait for a lease to run out, nor until it is looked again by the clock."""


async def settled(locks: Locks) -> None:
    """Return once all who wait through `locks` have their place in the queue: what is asked later is answered later."""
    await asyncio.sleep(0)
    async with locks.try_acquire_many(["another"]):
        pass


def waiting(
    locks: Locks, *, request_release: bool = True, timeout: float = 100
) -> asyncio.Task[Lease]:
    return asyncio.create_task(
        locks.acquire("study", timeout=timeout, request_release=request_release)
    )


async def test_a_free_lock_is_granted(here: Locks) -> None:
    lease = await here.acquire("study", timeout=10)
    assert lease.is_held()
    event = asked(lease)
    await lease.release()
    assert not lease.is_held()
    assert not event.is_set()


async def test_locks_of_different_uploads_have_nothing_to_do_with_each_other(
    here: Locks, there: Locks
) -> None:
    one = await here.acquire("study", timeout=0)
    other = await there.acquire("a/study", timeout=0)
    third = await there.acquire("{study}", timeout=0)
    assert one.is_held()
    for lease in (one, other, third):
        await lease.release()


async def test_T38_the_holder_is_asked_and_the_newcomer_goes_on(here: Locks, there: Locks) -> None:
    holder = await here.acquire("study", timeout=10)
    event = asked(holder)
    began = time.monotonic()
    newcomer = waiting(there)
    async with asyncio.timeout(NOW):
        await event.wait()
    await queued(newcomer)
    assert holder.is_held()
    await holder.release()
    lease = await newcomer
    assert time.monotonic() - began < NOW
    assert lease.is_held()
    assert not holder.is_held()
    assert not asked(lease).is_set()
    await lease.release()


async def test_T38_a_holder_that_begins_to_listen_late_is_told(here: Locks, there: Locks) -> None:
    holder = await here.acquire("study", timeout=10)
    newcomer = waiting(there)
    # Each of these begins to listen anew.
    await until(lambda: asked(holder).is_set(), "who listens late to be told")
    assert not newcomer.done()
    await holder.release()
    await (await newcomer).release()


async def test_whether_another_process_holds_a_lock_is_told_without_asking_for_it(
    here: Locks, there: Locks
) -> None:
    assert not await there.is_held_elsewhere("study")
    lease = await here.acquire("study", timeout=10)
    event = asked(lease)
    assert not await here.is_held_elsewhere("study")
    assert await there.is_held_elsewhere("study") == (here is not there)
    assert not await there.is_held_elsewhere("another")
    await asyncio.sleep(0)
    assert not event.is_set()
    await lease.release()
    assert not await there.is_held_elsewhere("study")
    async with there.try_acquire_many(["study"]) as leases:
        assert list(leases) == ["study"]


async def test_a_holder_may_stop_listening(here: Locks, there: Locks) -> None:
    holder = await here.acquire("study", timeout=10)
    event = asked(holder)
    holder.on_requested(None)
    newcomer = waiting(there)
    await queued(newcomer)
    assert not event.is_set()
    await holder.release()
    await (await newcomer).release()


async def test_who_does_not_ask_only_waits(here: Locks, there: Locks) -> None:
    holder = await here.acquire("study", timeout=10)
    event = asked(holder)
    patient = waiting(there, request_release=False)
    await queued(patient)
    assert not event.is_set()
    await holder.release()
    async with asyncio.timeout(NOW):
        await (await patient).release()


async def test_T39_who_is_not_let_in_is_told_in_time(here: Locks, there: Locks) -> None:
    holder = await here.acquire("study", timeout=10)
    began = time.monotonic()
    with pytest.raises(LockTimeout):
        await there.acquire("study", timeout=0.2)
    assert 0.15 < time.monotonic() - began < 0.2 + NOW
    assert holder.is_held()
    await holder.release()
    await (await there.acquire("study", timeout=10)).release()


async def test_without_a_timeout_there_is_one_attempt(here: Locks, there: Locks) -> None:
    holder = await here.acquire("study", timeout=0, request_release=False)
    event = asked(holder)
    began = time.monotonic()
    for locks in (here, there):
        with pytest.raises(LockTimeout):
            await locks.acquire("study", timeout=0, request_release=False)
    assert time.monotonic() - began < NOW
    assert not event.is_set()
    await holder.release()
    await (await there.acquire("study", timeout=0, request_release=False)).release()


@pytest.mark.parametrize("order", ["HHHH", "HHTT", "THTTH", "HHTHTTH"])
async def test_those_who_wait_get_it_in_order(here: Locks, there: Locks, order: str) -> None:
    """Requests wait here (H) and there (T), while the lock is held here."""
    holder = await here.acquire("study", timeout=10)
    requests = 0
    got: list[int] = []

    def count() -> None:
        nonlocal requests
        requests += 1

    async def come(number: int, locks: Locks) -> None:
        lease = await locks.acquire("study", timeout=100)
        got.append(number)
        await lease.release()

    holder.on_requested(count)
    comers = []
    for number, letter in enumerate(order):
        locks, before = (here if letter == "H" else there), requests
        comers.append(asyncio.create_task(come(number, locks)))
        await settled(locks)
        if letter == "T":
            # Until its process knows, the holder hands the lock to those who come here.
            await until(lambda before=before: requests > before, "the request to come")  # type: ignore[misc]
    await holder.release()
    async with asyncio.timeout(NOW):
        await asyncio.gather(*comers)
    assert got == sorted(got)


async def test_who_gets_it_while_others_wait_is_asked_at_once(here: Locks, there: Locks) -> None:
    holder = await here.acquire("study", timeout=10)
    second = waiting(here)
    await settled(here)
    third = waiting(there)
    await settled(there)
    await holder.release()
    lease = await second
    async with asyncio.timeout(NOW):
        await asked(lease).wait()
    await lease.release()
    last = await third
    assert not asked(last).is_set()
    await last.release()


async def test_of_many_attempts_the_last_one_wins(here: Locks, there: Locks) -> None:
    interrupted: list[int] = []
    came = [asyncio.Event() for _ in range(10)]

    async def attempt(number: int, locks: Locks) -> None:
        lease = await locks.acquire("study", timeout=100)
        ending = asked(lease)
        came[number].set()
        if number == 9:
            await queued_for_nothing(ending)
        else:
            await ending.wait()
            interrupted.append(number)
        await lease.release()

    async def queued_for_nothing(ending: asyncio.Event) -> None:
        await asyncio.sleep(0.1)
        assert not ending.is_set()

    attempts = []
    for number in range(10):
        attempts.append(asyncio.create_task(attempt(number, (here, there)[number % 2])))
        async with asyncio.timeout(NOW):
            await came[number].wait()
    async with asyncio.timeout(NOW):
        await asyncio.gather(*attempts)
    assert interrupted == list(range(9))


async def test_who_gives_up_leaves_the_queue(here: Locks, there: Locks) -> None:
    holder = await here.acquire("study", timeout=10)
    impatient = [
        waiting(here),
        waiting(there),
        waiting(here, timeout=0.1),
        waiting(there, timeout=0.1),
    ]
    await queued(impatient[0])
    last = waiting(there)
    await queued(last)
    for task in impatient[:2]:
        task.cancel()
    results = await asyncio.gather(*impatient, return_exceptions=True)
    assert [type(result) for result in results] == [
        asyncio.CancelledError,
        asyncio.CancelledError,
        LockTimeout,
        LockTimeout,
    ]
    await holder.release()
    async with asyncio.timeout(NOW):
        await (await last).release()


@pytest.mark.parametrize("steps", range(6))
async def test_a_lock_granted_to_one_who_just_gave_up_is_not_lost(
    here: Locks, there: Locks, steps: int
) -> None:
    for locks in (here, there):
        holder = await here.acquire("study", timeout=10)
        unlucky = waiting(locks)
        await queued(unlucky, 0.01)
        releasing = asyncio.create_task(holder.release())
        for _ in range(steps):
            await asyncio.sleep(0)
        unlucky.cancel()
        await releasing
        result = (await asyncio.gather(unlucky, return_exceptions=True))[0]
        if not isinstance(result, BaseException):
            await result.release()
        async with asyncio.timeout(NOW):
            await (await there.acquire("study", timeout=100)).release()


async def test_letting_go_twice_does_no_harm(here: Locks, there: Locks) -> None:
    for locks in (here, there):
        holder = await here.acquire("study", timeout=10)
        newcomer = waiting(locks)
        await queued(newcomer)
        await holder.release()
        lease = await newcomer
        await holder.release()
        assert lease.is_held()
        with pytest.raises(LockTimeout):
            await here.acquire("study", timeout=0, request_release=False)
        await lease.release()


async def test_closing_refuses_and_keeps_what_is_held(here: Locks, there: Locks) -> None:
    holder = await here.acquire("study", timeout=10)
    waiters = [waiting(here), waiting(there)]
    for task in waiters:
        await queued(task)
    here.close()
    there.close()
    for task in waiters:
        with pytest.raises(LocksClosed):
            async with asyncio.timeout(NOW):
                await task
    with pytest.raises(LocksClosed):
        await there.acquire("other", timeout=10)
    assert holder.is_held()
    await holder.release()
    here.close()


async def test_there_is_never_more_than_one_holder(here: Locks, there: Locks) -> None:
    dice = random.Random(1)
    holders = dict.fromkeys(("a", "b", "c"), 0)
    granted = given_up = 0

    async def hold(name: str, lease: Lease) -> None:
        nonlocal granted
        assert holders[name] == 0
        holders[name] += 1
        granted += 1
        for _ in range(dice.randrange(3)):
            await asyncio.sleep(dice.random() * 0.002)
        assert lease.is_held()
        holders[name] -= 1
        await lease.release()

    async def come() -> None:
        nonlocal given_up
        locks, name = dice.choice((here, there)), dice.choice(list(holders))
        timeout = dice.choice((0, 0.01, 100))
        acquiring = asyncio.create_task(
            locks.acquire(name, timeout=timeout, request_release=dice.random() < 0.8)
        )
        if dice.random() < 0.1:
            await asyncio.wait([acquiring], timeout=dice.random() * 0.003)
            acquiring.cancel()
        try:
            lease = await acquiring
        except (LockTimeout, asyncio.CancelledError):
            given_up += 1
        else:
            await hold(name, lease)

    async def come_often() -> None:
        for _ in range(25):
            await come()

    async with asyncio.timeout(100):
        await asyncio.gather(*(come_often() for _ in range(12)))
    assert granted > 50
    assert given_up > 0
    for name in holders:
        await (await there.acquire(name, timeout=100)).release()


# -- at once, and many at a time -----------------------------------------------------------------


async def test_a_lock_that_is_acquired_at_once_is_held(here: Locks, there: Locks) -> None:
    lease = here.try_acquire("study")
    if lease is None:
        # Locks outside of this process.
        lease = await here.acquire("study", timeout=10)
    assert lease.is_held()
    event = asked(lease)
    for locks in (here, there):
        assert locks.try_acquire("study") is None
    assert not event.is_set()
    await lease.release()
    here.close()
    assert here.try_acquire("study") is None


async def test_free_locks_are_acquired_and_released(here: Locks, there: Locks) -> None:
    mine, theirs = (
        await here.acquire("u1", timeout=10),
        await there.acquire("u2", timeout=10),
    )
    events = asked(mine), asked(theirs)
    async with here.try_acquire_many(MANY) as leases:
        assert set(leases) == set(MANY) - {"u1", "u2"}
        assert all(lease.is_held() for lease in leases.values())
        with pytest.raises(LockTimeout):
            await there.acquire("u3", timeout=0, request_release=False)
        async with there.try_acquire_many(MANY) as others:
            assert others == {}
    # Nobody was asked to let go.
    assert not any(event.is_set() for event in events)
    assert not leases["u3"].is_held()
    await mine.release()
    await theirs.release()
    async with there.try_acquire_many(MANY) as leases:
        assert set(leases) == set(MANY)


async def test_who_comes_meanwhile_goes_on_afterwards(here: Locks, there: Locks) -> None:
    async with here.try_acquire_many(MANY):
        same = asyncio.create_task(here.acquire("u1", timeout=60))
        other = asyncio.create_task(there.acquire("u2", timeout=60))
        done, _ = await asyncio.wait([same, other], timeout=0.2)
        assert not done
    async with asyncio.timeout(60):
        for task in (same, other):
            assert (await task).is_held()
            await (await task).release()


async def test_one_of_them_may_be_released_early(here: Locks, there: Locks) -> None:
    async with here.try_acquire_many(["a", "b"]) as leases:
        await leases["a"].release()
        lease = await there.acquire("a", timeout=10)
        assert leases["b"].is_held()
    assert lease.is_held()
    await lease.release()


async def test_an_error_in_the_block_releases_them(here: Locks, there: Locks) -> None:
    with pytest.raises(ZeroDivisionError):
        async with here.try_acquire_many(MANY):
            raise ZeroDivisionError
    async with there.try_acquire_many(MANY) as leases:
        assert set(leases) == set(MANY)


async def test_none_when_closed(here: Locks) -> None:
    here.close()
    with pytest.raises(LocksClosed):
        async with here.try_acquire_many(MANY):
            raise AssertionError
