"""Locks in Redis: their cost, and losses of messages, of data and of Redis itself."""

from __future__ import annotations

import asyncio
import resource
import time
from pathlib import Path

import pytest

from tests.contracts.lock_kinds import TIMEOUT
from tests.locks.conftest import MakeLocks
from tests.locks.holding import asked, queued, until
from tests.support.redis import RedisServer
from tusd_py.locks import redis
from tusd_py.locks.base import LocksUnavailable, LockTimeout
from tusd_py.locks.process_id import ProcessName
from tusd_py.locks.redis import RedisLocks
from tusd_py.redis import RedisClient


async def listening(server: RedisServer, count: int) -> None:
    """Wait until so many processes are subscribed."""
    await until(
        lambda: len(server.client.pubsub_channels("tusd:lock-channel:*")) >= count, "subscriptions"
    )


async def test_a_lock_costs_two_commands(make_locks: MakeLocks, redis_server: RedisServer) -> None:
    locks = await make_locks()
    await (await locks.acquire("first", timeout=10)).release()
    await listening(redis_server, 1)
    with redis_server.monitor() as commands:
        for number in range(5):
            await (await locks.acquire(f"study-{number}", timeout=10)).release()
    # A connection that was not used for long is looked at first.
    assert [command.split()[0] for command in commands if command != "PING"] == ["EVALSHA"] * 10


async def test_requests_of_one_process_do_without_redis_among_themselves(
    make_locks: MakeLocks, redis_server: RedisServer
) -> None:
    # Not renewed before the test is over.
    locks = await make_locks(lease=3600)
    lease = await locks.acquire("study", timeout=10)
    await until(lambda: locks._subscribed, "the subscription")
    with redis_server.monitor() as commands:
        for _ in range(5):
            event = asked(lease)
            newcomer = asyncio.create_task(locks.acquire("study", timeout=10))
            await event.wait()
            await lease.release()
            lease = await newcomer
        with pytest.raises(LockTimeout):
            await locks.acquire("study", timeout=0)
    assert [command for command in commands if command != "PING"] == []
    await lease.release()


async def test_nothing_is_left_behind(make_locks: MakeLocks, redis_server: RedisServer) -> None:
    here, there = await make_locks(lease=4), await make_locks(lease=4)
    lease = await here.acquire("study", timeout=10)
    with pytest.raises(LockTimeout):
        await there.acquire("study", timeout=0.1)
    waiting = asyncio.create_task(there.acquire("study", timeout=10))
    await queued(waiting)
    await lease.release()
    await (await waiting).release()
    await until(lambda: not redis_server.client.keys("tusd:lock*"), "keys to go")


@pytest.mark.usefixtures("often")
async def test_a_lease_is_renewed_for_as_long_as_it_is_held(
    make_locks: MakeLocks, redis_server: RedisServer
) -> None:
    here, there = await make_locks(lease=10), await make_locks(lease=10)
    lease = await here.acquire("study", timeout=10)
    event = asked(lease)
    for _ in range(5):
        known, kept = lease._claim.valid_until, ends(redis_server)
        await until(lambda known=known: lease._claim.valid_until > known, "a renewal")  # type: ignore[misc]
        assert ends(redis_server) > kept
        assert lease.is_held()
    with pytest.raises(LockTimeout):
        await there.acquire("study", timeout=0, request_release=False)
    assert not event.is_set()
    await lease.release()


def ends(server: RedisServer) -> int:
    """Return when the lock expires, by the clock of Redis, in milliseconds."""
    script = "local t = redis.call('TIME') return t[1] * 1000 + t[2] / 1000 + redis.call('PTTL', KEYS[1])"
    return int(str(server.command("EVAL", script, 1, "tusd:lock:{study}")))


@pytest.mark.parametrize("again", [False, True], ids=["once", "again and again"])
async def test_a_lost_message_costs_a_second(
    make_locks: MakeLocks, redis_server: RedisServer, again: bool
) -> None:
    here, there = await make_locks(), await make_locks()
    lease = await here.acquire("study", timeout=10)
    await (await there.acquire("other", timeout=10)).release()
    await listening(redis_server, 2)
    event = asked(lease)
    began = time.monotonic()
    redis_server.command("CLIENT", "KILL", "TYPE", "pubsub")
    newcomer = asyncio.create_task(there.acquire("study", timeout=100))
    while not event.is_set():
        await asyncio.sleep(0.01)
        if again and time.monotonic() - began < 0.5:
            redis_server.command("CLIENT", "KILL", "TYPE", "pubsub")
    redis_server.command("CLIENT", "KILL", "TYPE", "pubsub")
    await lease.release()
    await (await newcomer).release()
    # Not only when the lease is over.
    assert time.monotonic() - began < 30


async def test_a_holder_that_cannot_be_reached_learns_of_it_by_renewing(
    make_locks: MakeLocks, redis_server: RedisServer
) -> None:
    here, there = await make_locks(lease=4), await make_locks(lease=4)
    lease = await here.acquire("study", timeout=10)
    await listening(redis_server, 1)
    event = asked(lease)
    # It cannot subscribe again, and hears nothing.
    redis_server.command("ACL", "SETUSER", "default", "resetchannels")
    newcomer = asyncio.create_task(there.acquire("study", timeout=100))
    async with asyncio.timeout(30):
        await event.wait()
    await lease.release()
    await (await newcomer).release()


@pytest.mark.usefixtures("often")
async def test_a_redis_that_lost_its_data_does_not_end_what_is_held(
    make_locks: MakeLocks, redis_server: RedisServer
) -> None:
    here, there = await make_locks(lease=10), await make_locks(lease=10)
    lease = await here.acquire("study", timeout=10)
    event = asked(lease)
    redis_server.command("FLUSHALL")
    await until(lambda: bool(redis_server.client.exists("tusd:lock:{study}")), "the lock")
    assert lease.is_held()
    assert not event.is_set()
    with pytest.raises(LockTimeout):
        await there.acquire("study", timeout=0, request_release=False)
    await lease.release()


@pytest.mark.parametrize("still", [True, False], ids=["holds", "held"])
async def test_a_lock_that_somebody_else_had_meanwhile_is_lost(
    make_locks: MakeLocks, redis_server: RedisServer, still: bool
) -> None:
    # Nothing is renewed by the clock before somebody else has had the lock.
    here, there = await make_locks(lease=3600), await make_locks(lease=3600)
    lease = await here.acquire("study", timeout=10)
    event = asked(lease)
    await until(lambda: here._subscribed, "the subscription")
    redis_server.command("FLUSHALL")
    other = await there.acquire("study", timeout=0)
    if not still:
        await other.release()
    # Who begins to listen again renews what it has.
    redis_server.command("CLIENT", "KILL", "TYPE", "pubsub")
    async with asyncio.timeout(30):
        await event.wait()
    assert not lease.is_held()
    await lease.release()
    assert other.is_held() is still
    await other.release()
    await (await here.acquire("study", timeout=30)).release()


async def test_a_redis_that_restarts_does_not_end_what_is_held(
    make_locks: MakeLocks, redis_server: RedisServer
) -> None:
    here, there = await make_locks(), await make_locks()
    leases = [await here.acquire(f"study-{number}", timeout=10) for number in range(20)]
    await until(lambda: here._subscribed, "the subscription")
    await asyncio.to_thread(redis_server.kill9)
    await asyncio.to_thread(redis_server.start)
    # Known again before the next renewal is due, in 15 s: nobody else has much time to take what is not free.
    began = time.monotonic()
    keys = [f"tusd:lock:{{study-{number}}}" for number in range(20)]
    await until(lambda: redis_server.client.exists(*keys) == 20, "the locks")
    assert time.monotonic() - began < 10
    assert all(lease.is_held() for lease in leases)
    newcomer = asyncio.create_task(there.acquire("study-7", timeout=10))
    event = asked(leases[7])
    async with asyncio.timeout(30):
        await event.wait()
    for lease in leases:
        await lease.release()
    await (await newcomer).release()


async def test_a_short_absence_of_redis_is_waited_for(
    make_locks: MakeLocks, redis_server: RedisServer
) -> None:
    locks = await make_locks()
    await asyncio.to_thread(redis_server.kill9)
    acquiring = asyncio.create_task(locks.acquire("study", timeout=10))
    await asyncio.wait([acquiring], timeout=0.3)
    assert not acquiring.done()
    await asyncio.to_thread(redis_server.start)
    lease = await acquiring
    assert lease.is_held()
    await lease.release()


async def test_requests_of_one_process_hand_over_while_redis_is_away(
    make_locks: MakeLocks, redis_server: RedisServer
) -> None:
    locks = await make_locks()
    lease = await locks.acquire("study", timeout=10)
    await asyncio.to_thread(redis_server.kill9)
    with pytest.raises(LocksUnavailable):
        await locks.acquire("other", timeout=0)
    event = asked(lease)
    newcomer = asyncio.create_task(locks.acquire("study", timeout=10))
    async with asyncio.timeout(30):
        await event.wait()
        await lease.release()
        lease = await newcomer
    assert lease.is_held()
    await lease.release()


@pytest.mark.parametrize("how", ["refuses", "hangs"])
async def test_a_redis_that_stays_away_refuses_in_time(
    make_locks: MakeLocks, redis_server: RedisServer, how: str
) -> None:
    patient = await make_locks(timeout=0.3, retry_seconds=1000)
    locks = await make_locks(timeout=0.3, retry_seconds=0.8)
    if how == "refuses":
        redis_server.stop()
    else:
        redis_server.pause()
    for each, timeout in ((patient, 0), (patient, 0.5), (locks, 1000)):
        async with asyncio.timeout(30):
            with pytest.raises(LocksUnavailable):
                await each.acquire("study", timeout=timeout)


@pytest.mark.usefixtures("often")
async def test_holders_end_before_their_lease_does_when_redis_is_away(
    make_locks: MakeLocks, redis_server: RedisServer
) -> None:
    locks = await make_locks(lease=6)
    lease = await locks.acquire("study", timeout=10)
    waiting = asyncio.create_task(locks.acquire("study", timeout=100, request_release=False))
    event = asked(lease)
    locks._redis.timeout = 0.3
    redis_server.pause()
    began = time.monotonic()
    await until(lambda: not locks._redis.available, "a renewal that fails")
    assert lease.is_held()
    held, now = 0.0, began
    while lease.is_held():
        held = now - began
        await asyncio.sleep(0.001)
        now = time.monotonic()
    async with asyncio.timeout(30):
        await event.wait()
    assert held < 6
    # It goes on by itself when Redis is there again.
    locks._redis.timeout = TIMEOUT
    redis_server.resume()
    await lease.release()
    async with asyncio.timeout(60):
        await (await waiting).release()


async def test_a_release_that_failed_is_retried(
    make_locks: MakeLocks, redis_server: RedisServer
) -> None:
    here, there = await make_locks(lease=30), await make_locks(lease=30)
    lease = await here.acquire("study", timeout=10)
    again = await here.acquire("other", timeout=10)
    here._redis.timeout = 0.3
    redis_server.pause()
    await asyncio.gather(lease.release(), again.release())
    here._redis.timeout = TIMEOUT
    redis_server.resume()
    # Its own process knows better than Redis.
    await (await here.acquire("study", timeout=10)).release()
    # Before the lease is over.
    await (await there.acquire("other", timeout=20)).release()


async def test_a_holder_of_which_nothing_is_known_keeps_its_lease(
    make_locks: MakeLocks, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = await make_locks()
    await (await locks.acquire("first", timeout=10)).release()
    await listening(redis_server, 1)
    elsewhere = ProcessName("1234567890abcdef", 1, 2, "00")
    began = time.monotonic()
    redis_server.client.set("tusd:lock:{study}", f"held:{elsewhere}:1", px=1500)
    # As soon as it runs out, not when it would be looked again.
    with monkeypatch.context() as rarely:
        for name in ("_MIN_POLL_SECONDS", "_MAX_POLL_SECONDS"):
            rarely.setattr(redis, name, 1000.0)
        lease = await locks.acquire("study", timeout=60)
    assert time.monotonic() - began > 1.4
    await lease.release()


@pytest.mark.usefixtures("often")
async def test_a_thousand_leases_are_renewed_on_the_side(
    make_locks: MakeLocks, redis_server: RedisServer
) -> None:
    # Each is renewed about once a second.
    locks = await make_locks(lease=40)
    leases = [await locks.acquire(f"study-{number}", timeout=10) for number in range(1000)]
    redis_server.reset_counts()
    longest = 0.0
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    while time.monotonic() - began < 3:
        # What is measured is time in which this process ran, so that a busy machine does not count.
        moment = time.thread_time()
        await asyncio.sleep(0.001)
        longest = max(longest, time.thread_time() - moment)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert all(lease.is_held() for lease in leases)
    await until(lambda: redis_server.counts().get("evalsha", 0) >= 1000, "all to be renewed")
    renewals, seconds = redis_server.counts()["evalsha"], time.monotonic() - began
    print(
        f"{renewals} renewals, {after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime:.3f}"
        f" CPU s, the event loop was busy for up to {longest * 1000:.1f} ms"
    )
    # None that was renewed in the last half second.
    assert renewals <= 1000 * (seconds / 0.5 + 1)
    assert longest < 0.2
    await asyncio.gather(*(lease.release() for lease in leases))


async def test_its_keys_may_be_in_a_cluster(tmp_path: Path) -> None:
    options = ("--cluster-enabled", "yes")
    with RedisServer(tmp_path / "redis", options=options) as server:
        server.command("CLUSTER", "ADDSLOTS", *range(16384))
        await until(lambda: b"state:ok" in _bytes(server, "CLUSTER", "INFO"), "the cluster")
        redis_client = RedisClient(server.url, timeout=TIMEOUT)
        await redis_client.start()
        locks = RedisLocks(redis_client)
        lease = await locks.acquire("a}{b/study", timeout=10)
        with pytest.raises(LockTimeout):
            await locks.acquire("a}{b/study", timeout=0)
        await lease.release()
        await locks.stop()
        await redis_client.stop()


def _bytes(server: RedisServer, *command: str) -> bytes:
    answer = server.command(*command)
    return answer if isinstance(answer, bytes) else str(answer).encode()
