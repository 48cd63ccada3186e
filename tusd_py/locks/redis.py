"""Locks of several processes and machines, in Redis.

A lock is held for a lease, which is renewed while its holder lives. A holder counts the lease from before it asked Redis, minus
a safety margin: so its own clock tells whether it may write, and it stops before another holder can begin. While Redis is
unavailable, held locks stay held until their leases end, and none is granted.

Within a process, requests for one upload hand its lock over without asking Redis, unless another process waits for it. Waiters
in other processes are notified when it is their turn; a lost message costs a second.

These locks cannot keep a process that hangs in the middle of a write from finishing it later, nor a Redis that lost its data
from granting a lock twice. Only the storage can (`fallback.py`), so files are served with these locks alone only if their file
system has none.

A bucket can as well: it refuses what another holder has replaced since, and what comes late lies where it belongs. There
(`outlives_redis`) a holder whose lease was valid when Redis became silent keeps the lock until Redis says that another one has
it, also from one request of this process to the next. Nobody else gets a lock meanwhile, nor for one lease after Redis came
back without its data, so that the holders are the first to ask again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count

from redis.asyncio.client import PubSub
from redis.exceptions import NoScriptError, RedisError

from tusd_py import logs
from tusd_py.background import is_set_within, keep_running, spawn
from tusd_py.locks.base import (
    AskedLease,
    Locks,
    LocksClosed,
    LocksUnavailable,
    LockTimeout,
    Waiters,
)
from tusd_py.locks.lua import ACQUIRE, HELD, RELEASE, RENEW
from tusd_py.locks.process_id import ProcessName
from tusd_py.redis import Part, RedisClient, RedisUnavailable, Script
from tusd_py.redis.batches import batched

logger = logging.getLogger(__name__)

DEFAULT_LEASE_SECONDS = 10.0
_SAFETY_MARGIN = 0.1
"""Fraction of a lease at its end in which it no longer counts: for clocks of different speed, and for a running write."""
_RENEWALS = 4
"""Renewals in the time of one lease."""
_BATCH_SIZE = 32
"""Leases acquired, renewed or released in one pipeline; the event loop runs between two of them."""

_MAX_POLL_SECONDS = 1.0
"""Interval in which a waiter asks Redis again: the most that a lost message costs."""
_MIN_POLL_SECONDS = 0.05
"""First interval of polling for imminent changes; doubled each time, up to `_MAX_POLL_SECONDS`."""
_PROCESS_POLL_SECONDS = 0.1
"""Interval in which a waiter checks whether the holder's process is alive, on the same machine."""
DEFAULT_RETRY_SECONDS = 3.0
"""An embedded Redis restarts sooner. Clients that are refused the offset may start again from 0."""
_SILENCE_SECONDS = 5.0
"""Time without messages after which the subscription is checked."""
_STOP_SECONDS = 2.0
"""Time that `stop` waits for locks to be released."""

# Unlike the monotonic clock, this one continues while the machine sleeps.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _now() -> float:
    return time.clock_gettime(_CLOCK)


class RedisLocks(Locks):
    """See `Locks`. Background tasks start with the first request for a lock, and end with `stop`.

    Args:
        redis: The client.
        lease: Seconds, the same in all processes. It is how long uploads continue while Redis is unavailable, and how long a
            lock stays when its holder's machine died. The death of a holder on this machine is detected at once.
        retry_seconds: How long to retry while Redis does not answer.
        outlives_redis: Whether the storage makes what an earlier holder does late harmless, so that locks stay held while Redis
            is unavailable.
    """

    def __init__(
        self,
        redis: RedisClient,
        *,
        lease: float = DEFAULT_LEASE_SECONDS,
        retry_seconds: float = DEFAULT_RETRY_SECONDS,
        outlives_redis: bool = False,
    ) -> None:
        self.on_silence: Callable[[], None] | None = None
        """Called when Redis does not answer a renewal, before the leases end."""
        self.duration = lease
        """Length of a lease in seconds."""
        self.valid_seconds = lease * (1 - _SAFETY_MARGIN)
        """For how long the holder counts it, from before it asked."""
        self._redis = redis
        self._retry_seconds = retry_seconds
        self._outlives_redis = outlives_redis
        self._closed = False
        self._stopped = False
        self._process = ""
        self._numbers = count(1)
        # Pending and held claims, by number.
        self._claims: dict[int, _Claim] = {}
        # The claim that other requests of this process for the same upload may join.
        self._joinable: dict[str, _Claim] = {}
        # Claims that have ended but may still be in Redis, and when they expire there (by _now).
        self._unreleased: dict[_Claim, float] = {}
        self._work = asyncio.Event()
        self._renew_now = asyncio.Event()
        self._listened = False
        self._subscribed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[None]] = set()

    # See `Locks`

    async def acquire(
        self, upload_id: str, *, timeout: float, request_release: bool = True
    ) -> RedisLease:
        if self._closed:
            raise LocksClosed
        deadline = asyncio.get_running_loop().time() + timeout
        claim = self._joinable.get(upload_id)
        # Without a subscription, waiters of other processes could not have notified us and must not be skipped; but if
        # Redis is unavailable, nothing can wait there.
        if claim is not None and (self._subscribed or not self._redis.available):
            lease = await claim.join(deadline, request_release)
            if lease is not None:
                return lease
        claim = self._begin(upload_id)
        try:
            await self._obtain(claim, deadline, request_release, wait=timeout > 0)
            if self._closed:
                raise LocksClosed
        except BaseException:
            self.spawn(self.end(claim))
            raise
        return claim.lease

    async def is_held_elsewhere(self, upload_id: str) -> bool:
        try:
            found = await self._redis.command("GET", self._redis.keys.lock(upload_id))
        except RedisUnavailable:
            return False
        value = found.decode("ascii", "replace") if isinstance(found, bytes) else ""
        state, _, holder = value.partition(":")
        is_ours = holder.startswith(f"{self._process}:")
        return state == HELD and not is_ours and not self._is_gone(holder)

    def can_grant(self) -> bool:
        return self._redis.available or not self._outlives_redis

    @asynccontextmanager
    async def try_acquire_many(
        self, upload_ids: Sequence[str]
    ) -> AsyncIterator[dict[str, RedisLease]]:
        if self._closed:
            raise LocksClosed
        claims = [self._begin(each) for each in upload_ids if each not in self._joinable]
        leases = {claim: claim.lease for claim in claims}
        try:
            for batch in batched(claims, _BATCH_SIZE):
                await self._obtain_free(batch)
            yield {claim.upload_id: lease for claim, lease in leases.items() if claim.valid_until}
        finally:
            await self._end_all(
                [claim for claim, lease in leases.items() if claim.release_locally(lease)]
            )

    def close(self) -> None:
        self._closed = True
        for claim in self._claims.values():
            claim.close()

    async def stop(self) -> None:
        self.close()
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            # asyncio.wait_for, used by redis-py, may swallow a cancellation before Python 3.12; `_stopped` ends the loop then.
            self._renew_now.set()
            self._work.set()
            done, _ = await asyncio.wait(self._tasks, timeout=_MIN_POLL_SECONDS)
            self._tasks = [task for task in self._tasks if task not in done]
            for task in self._tasks:
                task.cancel()
        if self._background:
            await asyncio.wait(self._background, timeout=_STOP_SECONDS)

    # Acquiring and releasing

    def _begin(self, upload_id: str) -> _Claim:
        self._start()
        number = next(self._numbers)
        claim = _Claim(self, upload_id, number, f"{self._process}:{number:x}")
        self._claims[number] = claim
        self.joinable(claim)
        return claim

    def joinable(self, claim: _Claim) -> None:
        """Let other requests of this process have the lock after this one, without asking Redis."""
        self._joinable.setdefault(claim.upload_id, claim)

    def unjoinable(self, claim: _Claim) -> None:
        """Make further requests of this process wait in Redis, as other processes wait there."""
        if self._joinable.get(claim.upload_id) is claim:
            del self._joinable[claim.upload_id]

    async def _obtain(
        self, claim: _Claim, deadline: float, request_release: bool, *, wait: bool
    ) -> None:
        """Wait in the queue in Redis; without `wait`, try once and leave no trace there."""
        loop = asyncio.get_running_loop()
        soon, dead = _MIN_POLL_SECONDS, ""
        retry_until: float | None = None
        while True:
            claim.woken.clear()
            if self._closed:
                raise LocksClosed
            try:
                await self._wait_for_holders(claim, deadline)
                answer = await self._ask_for(claim, wait, request_release, dead)
                if answer is None and not await self._is_certain():
                    await self._give_back(claim)
                    continue
            except RedisUnavailable as problem:
                if retry_until is None:
                    retry_until = min(deadline, loop.time() + self._retry_seconds)
                if loop.time() >= retry_until:
                    raise LocksUnavailable(str(problem)) from None
                await claim.sleep(min(soon, retry_until - loop.time()))
                soon = min(soon * 2, _MAX_POLL_SECONDS)
                continue
            if answer is None:
                return
            retry_until = None
            # Later requests of this process have to queue up in Redis behind this one.
            claim.dismiss_waiters()
            holder, left, heard = answer
            gone = self._is_gone(holder)
            if gone and heard == 0 and dead != holder:
                dead = holder
                continue
            if loop.time() >= deadline:
                raise LockTimeout
            # While the holder or this process is not subscribed, messages between them are lost.
            unsure = gone or heard == 0 or not self._subscribed
            pause = min(soon if unsure else _MAX_POLL_SECONDS, left, deadline - loop.time())
            soon = min(soon * 2, _MAX_POLL_SECONDS) if unsure else _MIN_POLL_SECONDS
            await self._watch(holder, claim, pause, was_gone=gone)

    async def _wait_for_holders(self, claim: _Claim, deadline: float) -> None:
        """Wait until the holders had the time to ask again, if Redis lost its data. Raises RedisUnavailable at the deadline."""
        loop = asyncio.get_running_loop()
        while (left := self._quiet_seconds()) > 0:
            pause = min(left, deadline - loop.time())
            if pause <= 0:
                raise RedisUnavailable(
                    "Redis lost its data a moment ago, and who holds a lock is not known yet"
                )
            await asyncio.sleep(pause)
            if self._closed:
                raise LocksClosed

    def _quiet_seconds(self) -> float:
        """For how long nothing is granted, as Redis has lost its data."""
        emptied_at = self._redis.emptied_at
        if not self._outlives_redis or emptied_at is None:
            return 0.0
        return emptied_at + self.duration - time.monotonic()

    async def _is_certain(self) -> bool:
        """Whether a lock that was granted is nobody else's: not if Redis has lost its data without notice."""
        if not self._outlives_redis:
            return True
        # Another request of this process may have noticed it since.
        return not await self._redis.was_emptied() and self._quiet_seconds() <= 0

    async def _give_back(self, claim: _Claim) -> None:
        """Release a lock that must not have been granted, and go on asking for it."""
        claim.valid_until = 0.0
        await self._redis.run(RELEASE, self._keys(claim), self._arguments(claim))
        claim.recorded = False

    async def _ask_for(
        self, claim: _Claim, wait: bool, request_release: bool, dead: str
    ) -> tuple[str, float, int] | None:
        """Ask for the lock: None if granted, else its holder, its remaining seconds, and how many subscribers were notified."""
        sent = _now()
        claim.recorded = True
        answer = await self._redis.run(
            ACQUIRE,
            self._keys(claim),
            (*self._arguments(claim), int(wait), int(request_release), dead),
        )
        match answer:
            case [1, int(demand)]:
                claim.confirm(sent, demand)
                self._work.set()
                return None
            case [0, bytes(holder), int(left), int(heard)]:
                # A holder in this process needs no message.
                ours = holder.startswith(f"{self._process}:".encode())
                claim.recorded = wait
                return holder.decode("ascii", "replace"), left / 1000 + 0.001, 0 if ours else heard
        raise RedisUnavailable(f"{ACQUIRE.name}: {answer!r} is not a valid answer")

    async def _watch(self, holder: str, claim: _Claim, seconds: float, *, was_gone: bool) -> None:
        """Wait until it is our turn or the holder dies, at most so long."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0:
            if await claim.sleep(min(left, _PROCESS_POLL_SECONDS)) or (
                not was_gone and self._is_gone(holder)
            ):
                return

    async def _obtain_free(self, claims: Sequence[_Claim]) -> None:
        """Acquire the free locks in one pipeline, and drop the other claims. Raises LocksUnavailable, LocksClosed."""
        is_certain = self._quiet_seconds() <= 0
        # While Redis does not answer, the next request finds out.
        with suppress(RedisUnavailable):
            is_certain = is_certain and await self._is_certain()
        if not is_certain:
            raise LocksUnavailable("Redis lost its data a moment ago")
        for claim in claims:
            claim.recorded = True
        sent, answers = await self._ask_for_free(claims)
        for claim, answer in zip(claims, answers, strict=True):
            match answer:
                case [1, int(demand)]:
                    claim.confirm(sent, demand)
                case _:
                    claim.recorded = False
                    self._forget(claim)
        self._work.set()

    async def _ask_for_free(self, claims: Sequence[_Claim]) -> tuple[float, list[object]]:
        """Return when Redis was asked, and its answers."""
        loop = asyncio.get_running_loop()
        retry_until = loop.time() + DEFAULT_RETRY_SECONDS
        while not self._closed:
            sent = _now()
            try:
                return sent, await self._redis.run_each(ACQUIRE, self._calls(claims, 0, 0, ""))
            except RedisUnavailable as problem:
                if loop.time() >= retry_until:
                    raise LocksUnavailable(str(problem)) from None
            await asyncio.sleep(_MIN_POLL_SECONDS)
        raise LocksClosed

    async def _end_all(self, claims: Sequence[_Claim]) -> None:
        """End claims, so that the next waiters get the locks."""
        for claim in claims:
            self._forget(claim)
        recorded = [claim for claim in claims if claim.recorded]
        try:
            with suppress(RedisUnavailable):
                for batch in batched(recorded, _BATCH_SIZE):
                    await self._redis.run_each(RELEASE, self._calls(batch))
                    for claim in batch:
                        claim.recorded = False
        finally:
            self._release_later(claim for claim in recorded if claim.recorded)

    def _is_gone(self, holder: str) -> bool:
        """Return whether the holder is certain to have ended."""
        process, _, number = holder.rpartition(":")
        if process == self._process:
            return int(number, 16) not in self._claims
        name = ProcessName.parse(process)
        return name is not None and name.is_gone()

    async def end(self, claim: _Claim) -> None:
        """End a claim, held or not, so that the next waiter gets the lock."""
        self._forget(claim)
        if not claim.recorded:
            return
        try:
            with suppress(RedisUnavailable):
                await self._redis.run(RELEASE, self._keys(claim), self._arguments(claim))
                claim.recorded = False
        finally:
            if claim.recorded:
                self._release_later([claim])

    def _forget(self, claim: _Claim) -> None:
        self._claims.pop(claim.number, None)
        claim.dismiss_waiters()

    def _release_later(self, claims: Iterable[_Claim]) -> None:
        """Retry the release of claims in Redis until they expire there."""
        for claim in claims:
            self._unreleased[claim] = _now() + self.duration
            self._work.set()

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run a coroutine in the background."""
        spawn(work, "locks", self._background)

    def _keys(self, claim: _Claim) -> tuple[str, str]:
        names = self._redis.keys
        return names.lock(claim.upload_id), names.lock_queue(claim.upload_id)

    def _calls(
        self, claims: Sequence[_Claim], *more: Part
    ) -> list[tuple[Sequence[str], Sequence[Part]]]:
        return [(self._keys(claim), (*self._arguments(claim), *more)) for claim in claims]

    def _arguments(self, claim: _Claim) -> tuple[Part, ...]:
        return claim.owner, round(self.duration * 1000), self._redis.keys.lock_channel("")

    # In the background

    def _start(self) -> None:
        if self._process:
            return
        # Not earlier: the name must not be shared with a parent process that forked this one.
        self._process = str(ProcessName.of_this())
        self._tasks = [
            keep_running(self._keep, "lock leases"),
            keep_running(self._listen, "lock requests"),
        ]

    async def _keep(self) -> None:
        """Renew the held leases."""
        interval = self.duration / _RENEWALS
        pause = interval
        while not self._stopped:
            if not self._claims and not self._unreleased:
                self._work.clear()
                await self._work.wait()
            renew_all = await is_set_within(self._renew_now, pause)
            self._renew_now.clear()
            self._drop_overdue()
            fresh = _now() + self.valid_seconds - interval / 2
            due = [claim for claim in self._claims.values() if claim.valid_until]
            done = await self._renew(
                [claim for claim in due if renew_all or claim.valid_until < fresh]
            )
            done = await self._release_remaining() and done
            if not done and self.on_silence is not None:
                self.on_silence()
            if self._outlives_redis:
                # Where nothing was due nothing was asked.
                self._outlive(is_silent=not done or not self._redis.available)
            self._drop_overdue()
            pause = interval if done else min(interval, _MAX_POLL_SECONDS) / 4

    def _outlive(self, *, is_silent: bool) -> None:
        """Keep what is held while Redis is silent; release what is not in use once it answers."""
        now = _now()
        for claim in list(self._claims.values()):
            if is_silent and now < claim.valid_until:
                claim.valid_until = now + self.valid_seconds
            elif not is_silent and claim.is_idle:
                claim.is_idle = False
                self.spawn(self.end(claim))

    def stays(self, claim: _Claim) -> bool:
        """Whether a claim is kept after its request, as it could not be had again while Redis is away."""
        return (
            self._outlives_redis
            and not self._closed
            and not self._redis.available
            and _now() < claim.valid_until
        )

    def _drop_overdue(self) -> None:
        """Drop claims whose leases have ended."""
        now = _now()
        for claim in list(self._claims.values()):
            if 0 < claim.valid_until <= now:
                self._lose(claim, "it was not renewed in time")
        for claim, until in list(self._unreleased.items()):
            if until <= now:
                del self._unreleased[claim]

    async def _renew(self, claims: Sequence[_Claim]) -> bool:
        """Renew leases; returns whether Redis answered."""
        for batch in batched(claims, _BATCH_SIZE):
            sent = _now()
            answers = await self._run_all(RENEW, batch)
            if answers is None:
                return False
            for claim, answer in zip(batch, answers, strict=True):
                self._renewed(claim, sent, answer)
        return True

    def _renewed(self, claim: _Claim, sent: float, answer: object) -> None:
        if not claim.valid_until or claim.number not in self._claims:
            return
        match answer:
            case [1, int(demand)]:
                claim.confirm(sent, demand)
            case [2, int(demand)] if _now() < claim.valid_until:
                # Redis lost its data. No other holder had the lock during our lease, nor since.
                claim.confirm(sent, demand)
            case [2, _]:
                self._lose(claim, "it was not renewed in time")
            case _:
                claim.recorded = False
                self._lose(claim, "another holder has it", taken=True)

    def _lose(self, claim: _Claim, reason: str, *, taken: bool = False) -> None:
        logs.event(logger, logging.WARNING, "lock lost", upload=claim.upload_id, reason=reason)
        claim.lose(taken=taken)

    async def _release_remaining(self) -> bool:
        for batch in batched(list(self._unreleased), _BATCH_SIZE):
            if await self._run_all(RELEASE, batch) is None:
                return False
            for claim in batch:
                self._unreleased.pop(claim, None)
        return True

    async def _run_all(self, script: Script, claims: Sequence[_Claim]) -> list[object] | None:
        """Run a script for each claim in one pipeline; None if Redis did not answer."""
        try:
            async with asyncio.timeout(min(self._redis.timeout, self.duration / _RENEWALS)):
                answers = await self._send(script, claims)
                if any(isinstance(answer, NoScriptError) for answer in answers):
                    await self._redis.client.script_load(script.source)
                    answers = await self._send(script, claims)
        except (RedisError, OSError):
            answers = None
        if answers is None or any(isinstance(answer, RedisError) for answer in answers):
            # Checks the connection, and logs what is wrong.
            await self._redis.check()
            return None
        return answers

    async def _send(self, script: Script, claims: Sequence[_Claim]) -> list[object]:
        async with self._redis.client.pipeline(transaction=False) as pipeline:
            for claim in claims:
                parts = (*self._keys(claim), *self._arguments(claim))
                pipeline.execute_command("EVALSHA", script.sha, 2, *parts)
            return await pipeline.execute(raise_on_error=False)

    async def _listen(self) -> None:
        """Receive this process's messages, on one connection."""
        pause = _MIN_POLL_SECONDS
        while not self._stopped:
            with suppress(RedisError, OSError):
                async with self._redis.client.pubsub() as subscription:
                    async with asyncio.timeout(self._redis.timeout):
                        await subscription.subscribe(self._redis.keys.lock_channel(self._process))
                    await self._handle_messages(subscription)
            pause = _MIN_POLL_SECONDS if self._subscribed else min(pause * 2, _MAX_POLL_SECONDS)
            self._subscribed = False
            await asyncio.sleep(pause)

    async def _handle_messages(self, subscription: PubSub) -> None:
        """Handle messages until the connection fails."""
        asked = False
        while not self._stopped:
            # redis-py may reconnect here, without a deadline of its own.
            async with asyncio.timeout(_SILENCE_SECONDS + self._redis.timeout):
                message = await subscription.get_message(timeout=_SILENCE_SECONDS)
            if message is None:
                if asked:
                    return
                await subscription.ping()
            asked = message is None
            match message:
                case {"type": "subscribe"}:
                    self._resubscribed()
                case {"type": "message", "data": bytes(data)}:
                    self._handle_message(data)

    def _resubscribed(self) -> None:
        """Catch up after a (re)subscription: messages may have been missed, and Redis may have been restarted."""
        if self._listened:
            self._renew_now.set()
        self._listened = self._subscribed = True
        for claim in self._claims.values():
            claim.woken.set()

    def _handle_message(self, data: bytes) -> None:
        what, _, number = data.partition(b":")
        with suppress(ValueError):
            claim = self._claims.get(int(number, 16))
            if claim is None:
                return
            if what == b"offer":
                claim.woken.set()
            else:
                claim.add_demand(2 if what == b"ask" else 1)


class _Claim:
    """This process's claim to an upload's lock: pending, held or ended. Its requests hold it one after the other."""

    __slots__ = (
        "_asked",
        "_locks",
        "_waiters",
        "is_idle",
        "lease",
        "number",
        "owner",
        "recorded",
        "upload_id",
        "valid_until",
        "woken",
    )

    def __init__(self, locks: RedisLocks, upload_id: str, number: int, owner: str) -> None:
        self.upload_id = upload_id
        self.number = number
        self.owner = owner
        self.lease = RedisLease(self)
        self.valid_until = 0.0
        """Until when the lock is certainly held, by _now; 0 while it is not held."""
        self.recorded = False
        """Whether Redis may have an entry of it."""
        self.woken = asyncio.Event()
        self.is_idle = False
        """Whether it is held and no request has it; see `RedisLocks.stays`."""
        self._asked = False
        self._locks = locks
        self._waiters: Waiters[RedisLease | None] = []

    def confirm(self, sent: float, demand: int) -> None:
        """Mark the lock as held since `sent`. demand: of other processes, 0 without waiters, 1 with some, 2 if one asks."""
        self.valid_until = sent + self._locks.valid_seconds
        if demand:
            self.add_demand(demand)
        else:
            self._locks.joinable(self)

    def add_demand(self, demand: int) -> None:
        """Note a waiter in another process: earlier requests of this process go before it, later ones after."""
        self._locks.unjoinable(self)
        if demand == 2:
            self._asked = True
            self.lease.request()

    def lose(self, *, taken: bool) -> None:
        """Mark the lock as lost and notify its holder. taken: whether another process has it."""
        self.valid_until = 0.0
        self.lease.taken = taken
        self.dismiss_waiters()
        self.lease.request()

    def dismiss_waiters(self) -> None:
        """Make the requests that joined this claim acquire the lock themselves."""
        self._locks.unjoinable(self)
        waiters, self._waiters = self._waiters, []
        for waiter, _ in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """Wake all requests, which notice that the locks are closed."""
        self.dismiss_waiters()
        self.woken.set()

    async def sleep(self, seconds: float) -> bool:
        """Sleep until woken, at most so long; returns whether it was woken."""
        return await is_set_within(self.woken, seconds)

    async def join(self, deadline: float, request_release: bool) -> RedisLease | None:
        """Wait for earlier requests of this process; None if the lock has to be acquired in Redis."""
        if self.is_idle and _now() < self.valid_until:
            self.is_idle = False
            return self.lease
        return await self.lease.wait_behind(
            self._waiters, deadline, request_release, self._give_back
        )

    def _give_back(self, lease: RedisLease | None) -> None:
        if lease is not None:
            self._locks.spawn(lease.release())

    async def release(self, lease: RedisLease) -> None:
        if self.release_locally(lease):
            await self._locks.end(self)

    def release_locally(self, lease: RedisLease) -> bool:
        """Release the lock within this process; returns whether the claim has ended, with no request to hand it over to."""
        if lease is not self.lease or self._hand_over():
            return False
        self.lease = RedisLease(self)
        if self._locks.stays(self):
            self.is_idle = True
            return False
        self.valid_until = 0.0
        return True

    def _hand_over(self) -> bool:
        """Hand the lock over to the longest waiting request of this process; returns whether there was one."""
        while self._waiters and _now() < self.valid_until:
            waiter, _ = self._waiters.pop(0)
            if not waiter.done():
                self.lease = RedisLease(self)
                if self._asked or any(requested for _, requested in self._waiters):
                    self.lease.request()
                waiter.set_result(self.lease)
                return True
        return False


class RedisLease(AskedLease):
    """See `Lease`. taken: whether the lock was lost to another holder; otherwise it expired, and may be free."""

    __slots__ = ("_claim", "taken")

    def __init__(self, claim: _Claim) -> None:
        super().__init__()
        self._claim = claim
        self.taken = False

    def is_held(self) -> bool:
        return self._claim.lease is self and _now() < self._claim.valid_until

    async def release(self) -> None:
        await self._claim.release(self)
