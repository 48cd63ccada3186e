"""Locks of several processes and machines, in Redis.

A lock is held for the time of a lease, which is renewed as long as its holder lives. A holder counts that time from before it
asked Redis, and leaves a part of it for safety: so what it knows itself is enough to say whether it may write, and it stops
before anybody else can begin. While Redis is away what is held stays held until its lease is over, and nothing is granted.

Within a process, requests for one upload hand its lock over without asking Redis, as long as nobody elsewhere waits for it.
Who waits elsewhere is told when it is its turn; a message that gets lost costs a second. Not for: keeping a process that
stands still in the middle of a write from finishing it later, and Redis that lost its data from granting a lock twice. Only the
storage can do that (`shared.py`), so these locks are used by themselves only where its file system has no locks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from itertools import count

from redis.asyncio.client import PubSub
from redis.exceptions import NoScriptError, RedisError

from tusd_py import logs
from tusd_py.background import keep_running, spawn
from tusd_py.locks.base import HeldFence, LocksClosed, LocksUnavailable, LockTimeout
from tusd_py.locks.lua import ACQUIRE, RELEASE, RENEW
from tusd_py.locks.process_id import ProcessName
from tusd_py.redis import Part, RedisClient, RedisUnavailable, Script

logger = logging.getLogger(__name__)

DEFAULT_LEASE = 10.0
"""Seconds."""
_SAFETY = 0.1
"""The part of a lease in which it does not count any more: for clocks that differ in speed, and for the write that was begun
when it was asked whether the lock is held."""
_RENEWALS = 4
"""How often a lease is renewed before it would run out."""
_BATCH = 32
"""Leases got, renewed or let go of in one go; the event loop gets its turn between two of them."""

_POLL = 1.0
"""Seconds after which who waits asks Redis again: what a lost message costs at most."""
_SOON = 0.05
"""Seconds after which what is about to be settled is looked at again at first; then twice as long, up to _POLL."""
_GLANCE = 0.1
"""Seconds after which it is looked whether the process that is waited for is still there; nobody else is asked about it."""
DEFAULT_PATIENCE = 3.0
"""Seconds: an embedded Redis is back sooner. Clients that are refused when they ask for the offset may begin from the start."""
_SILENCE = 5.0
"""Seconds without a message after which it is asked whether the subscription still works."""
_STOP = 2.0
"""Seconds that `stop` waits for locks to be let go of."""

# Unlike the monotonic clock this one goes on while the machine sleeps.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _now() -> float:
    return time.clock_gettime(_CLOCK)


class RedisLocks:
    """See `Locks`. What goes on in the background begins with the first lock that is asked for, and ends with `stop`.

    lease: seconds; the same in all processes. It is how long uploads outlast a Redis that is away, and how long a lock stays
    when its holder's machine died. A holder that died on this machine is found out at once. patience: seconds for which a
    Redis that does not answer is waited for.
    """

    def __init__(
        self,
        redis: RedisClient,
        *,
        lease: float = DEFAULT_LEASE,
        patience: float = DEFAULT_PATIENCE,
    ) -> None:
        self.on_silence: Callable[[], None] | None = None
        """Called when Redis does not answer while leases are to be renewed, before they run out."""
        self.duration = lease
        """Seconds of a lease."""
        self._redis = redis
        self._lease = lease
        self._patience = patience
        self._closed = False
        self._stopped = False
        self._process = ""
        self._numbers = count(1)
        # Claims that are being made or held, by number.
        self._claims: dict[int, _Claim] = {}
        # The claim that further requests of this process for the same upload may join.
        self._joinable: dict[str, _Claim] = {}
        # Claims that are over, which Redis may not know yet, and when it will know by itself (by _now).
        self._leftovers: dict[_Claim, float] = {}
        self._work = asyncio.Event()
        self._hurry = asyncio.Event()
        self._listened = False
        self._subscribed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._chores: set[asyncio.Task[None]] = set()

    # The contract

    async def acquire(
        self, upload_id: str, *, timeout: float, request_release: bool = True
    ) -> RedisLease:
        if self._closed:
            raise LocksClosed
        deadline = asyncio.get_running_loop().time() + timeout
        claim = self._joinable.get(upload_id)
        # While nobody could have told us that they wait elsewhere, their turn is not skipped; but where Redis is away
        # nobody waits there.
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

    @asynccontextmanager
    async def try_acquire_many(
        self, upload_ids: Sequence[str]
    ) -> AsyncIterator[dict[str, RedisLease]]:
        if self._closed:
            raise LocksClosed
        claims = [self._begin(each) for each in upload_ids if each not in self._joinable]
        leases = {claim: claim.lease for claim in claims}
        try:
            for batch in _batches(claims):
                await self._obtain_free(batch)
            yield {claim.upload_id: lease for claim, lease in leases.items() if claim.valid_until}
        finally:
            await self._end_all([claim for claim, lease in leases.items() if claim.let_go(lease)])

    async def tidy(self, is_gone: Callable[[str], Awaitable[bool]]) -> int:
        """Nothing is kept here that does not run out by itself."""
        return 0

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
            # asyncio.wait_for, which redis-py uses, may swallow a cancellation before Python 3.12; then the loop ends.
            self._hurry.set()
            self._work.set()
            done, _ = await asyncio.wait(self._tasks, timeout=_SOON)
            self._tasks = [task for task in self._tasks if task not in done]
            for task in self._tasks:
                task.cancel()
        if self._chores:
            await asyncio.wait(self._chores, timeout=_STOP)

    # Getting a lock, and letting it go

    def _begin(self, upload_id: str) -> _Claim:
        self._start()
        number = next(self._numbers)
        claim = _Claim(self, upload_id, number, f"{self._process}:{number:x}")
        self._claims[number] = claim
        self.joinable(claim)
        return claim

    def joinable(self, claim: _Claim) -> None:
        """Requests of this process may have the lock after this one, without asking Redis."""
        self._joinable.setdefault(claim.upload_id, claim)

    def unjoinable(self, claim: _Claim) -> None:
        """From now on requests of this process queue up in Redis, as others wait there."""
        if self._joinable.get(claim.upload_id) is claim:
            del self._joinable[claim.upload_id]

    async def _obtain(
        self, claim: _Claim, deadline: float, request_release: bool, *, wait: bool
    ) -> None:
        """Waits in Redis' queue; `wait` False is one attempt that leaves no trace there."""
        loop = asyncio.get_running_loop()
        soon, dead = _SOON, ""
        give_up: float | None = None
        while True:
            claim.woken.clear()
            if self._closed:
                raise LocksClosed
            try:
                answer = await self._ask_for(claim, wait, request_release, dead)
            except RedisUnavailable as problem:
                if give_up is None:
                    give_up = min(deadline, loop.time() + self._patience)
                if loop.time() >= give_up:
                    raise LocksUnavailable(str(problem)) from None
                await claim.sleep(min(soon, give_up - loop.time()))
                soon = min(soon * 2, _POLL)
                continue
            if answer is None:
                return
            give_up = None
            # Requests of this process that came after this one have their turn after it, and that is known in Redis.
            claim.disband()
            holder, left, heard = answer
            gone = self._is_gone(holder)
            if gone and heard == 0 and dead != holder:
                dead = holder
                continue
            if loop.time() >= deadline:
                raise LockTimeout
            # Where the holder, or this process, is not listening yet, what one says to the other is lost.
            unsure = gone or heard == 0 or not self._subscribed
            pause = min(soon if unsure else _POLL, left, deadline - loop.time())
            soon = min(soon * 2, _POLL) if unsure else _SOON
            await self._watch(holder, claim, pause, was_gone=gone)

    async def _ask_for(
        self, claim: _Claim, wait: bool, request_release: bool, dead: str
    ) -> tuple[str, float, int] | None:
        """None if the lock is ours now; else who has it, for how long (seconds), and how many heard that it is wanted."""
        sent = _now()
        claim.recorded = True
        answer = await self._redis.run(
            ACQUIRE,
            self._keys(claim),
            (*self._arguments(claim), int(wait), int(request_release), dead),
        )
        match answer:
            case [1, int(demand)]:
                claim.confirm(sent + self._lease * (1 - _SAFETY), demand)
                self._work.set()
                return None
            case [0, bytes(holder), int(left), int(heard)]:
                # A claim of ours that is over is known to be so; nobody need be asked.
                ours = holder.startswith(f"{self._process}:".encode())
                claim.recorded = wait
                return holder.decode("ascii", "replace"), left / 1000 + 0.001, 0 if ours else heard
        raise RedisUnavailable(f"{ACQUIRE.name}: {answer!r} makes no sense")

    async def _watch(self, holder: str, claim: _Claim, seconds: float, *, was_gone: bool) -> None:
        """Until it is our turn, or the holder is gone that was not, at most so long."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0:
            if await claim.sleep(min(left, _GLANCE)) or (not was_gone and self._is_gone(holder)):
                return

    async def _obtain_free(self, claims: Sequence[_Claim]) -> None:
        """Gets the locks that are free, in one go; the other claims are over. Raises LocksUnavailable, LocksClosed."""
        for claim in claims:
            claim.recorded = True
        sent, answers = await self._ask_for_free(claims)
        for claim, answer in zip(claims, answers, strict=True):
            match answer:
                case [1, int(demand)]:
                    claim.confirm(sent + self._lease * (1 - _SAFETY), demand)
                case _:
                    claim.recorded = False
                    self._forget(claim)
        self._work.set()

    async def _ask_for_free(self, claims: Sequence[_Claim]) -> tuple[float, list[object]]:
        """What Redis says, and when it was asked."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + DEFAULT_PATIENCE
        while not self._closed:
            sent = _now()
            try:
                return sent, await self._redis.run_each(ACQUIRE, self._calls(claims, 0, 0, ""))
            except RedisUnavailable as problem:
                if loop.time() >= give_up:
                    raise LocksUnavailable(str(problem)) from None
            await asyncio.sleep(_SOON)
        raise LocksClosed

    async def _end_all(self, claims: Sequence[_Claim]) -> None:
        """Claims are over: whoever is next goes on."""
        for claim in claims:
            self._forget(claim)
        recorded = [claim for claim in claims if claim.recorded]
        try:
            with suppress(RedisUnavailable):
                for batch in _batches(recorded):
                    await self._redis.run_each(RELEASE, self._calls(batch))
                    for claim in batch:
                        claim.recorded = False
        finally:
            self._settle_later(claim for claim in recorded if claim.recorded)

    def _is_gone(self, holder: str) -> bool:
        """Whether it is certain that the holder does nothing with its lock any more."""
        process, _, number = holder.rpartition(":")
        if process == self._process:
            return int(number, 16) not in self._claims
        name = ProcessName.parse(process)
        return name is not None and name.is_gone()

    async def end(self, claim: _Claim) -> None:
        """A claim is over: held or not, whoever is next goes on."""
        self._forget(claim)
        if not claim.recorded:
            return
        try:
            with suppress(RedisUnavailable):
                await self._redis.run(RELEASE, self._keys(claim), self._arguments(claim))
                claim.recorded = False
        finally:
            if claim.recorded:
                self._settle_later([claim])

    def _forget(self, claim: _Claim) -> None:
        self._claims.pop(claim.number, None)
        claim.disband()

    def _settle_later(self, claims: Iterable[_Claim]) -> None:
        """Redis could not be told that they are over: tried again as long as it matters."""
        for claim in claims:
            self._leftovers[claim] = _now() + self._lease
            self._work.set()

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Does what nobody waits for."""
        spawn(work, "locks", self._chores)

    def _keys(self, claim: _Claim) -> tuple[str, str]:
        names = self._redis.keys
        return names.lock(claim.upload_id), names.lock_queue(claim.upload_id)

    def _calls(
        self, claims: Sequence[_Claim], *more: Part
    ) -> list[tuple[Sequence[str], Sequence[Part]]]:
        return [(self._keys(claim), (*self._arguments(claim), *more)) for claim in claims]

    def _arguments(self, claim: _Claim) -> tuple[Part, ...]:
        return claim.owner, round(self._lease * 1000), self._redis.keys.lock_channel("")

    # In the background

    def _start(self) -> None:
        if self._process:
            return
        # Not earlier: a name must not be shared with the process that we may have been forked from.
        self._process = str(ProcessName.of_this())
        self._tasks = [
            keep_running(self._keep, "lock leases"),
            keep_running(self._listen, "lock requests"),
        ]

    async def _keep(self) -> None:
        """Renews what is held."""
        interval = self._lease / _RENEWALS
        pause = interval
        while not self._stopped:
            if not self._claims and not self._leftovers:
                self._work.clear()
                await self._work.wait()
            hurry = await _is_set_within(self._hurry, pause)
            self._hurry.clear()
            self._drop_overdue()
            fresh = _now() + self._lease * (1 - _SAFETY) - interval / 2
            due = [claim for claim in self._claims.values() if claim.valid_until]
            done = await self._renew([claim for claim in due if hurry or claim.valid_until < fresh])
            done = await self._settle_leftovers() and done
            if not done and self.on_silence is not None:
                self.on_silence()
            self._drop_overdue()
            pause = interval if done else min(interval, _POLL) / 4

    def _drop_overdue(self) -> None:
        """Gives up what could not be renewed in time."""
        now = _now()
        for claim in list(self._claims.values()):
            if 0 < claim.valid_until <= now:
                self._lose(claim, "it was not renewed in time")
        for claim, until in list(self._leftovers.items()):
            if until <= now:
                del self._leftovers[claim]

    async def _renew(self, claims: Sequence[_Claim]) -> bool:
        """Whether Redis answered."""
        for batch in _batches(claims):
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
                claim.confirm(sent + self._lease * (1 - _SAFETY), demand)
            case [2, int(demand)] if _now() < claim.valid_until:
                # Redis has lost its data. Nobody else had the lock in the time for which we could be sure of it, nor since.
                claim.confirm(sent + self._lease * (1 - _SAFETY), demand)
            case [2, _]:
                self._lose(claim, "it was not renewed in time")
            case _:
                claim.recorded = False
                self._lose(claim, "somebody else has it", taken=True)

    def _lose(self, claim: _Claim, reason: str, *, taken: bool = False) -> None:
        logs.event(logger, logging.WARNING, "lock lost", upload=claim.upload_id, reason=reason)
        claim.lose(taken=taken)

    async def _settle_leftovers(self) -> bool:
        for batch in _batches(list(self._leftovers)):
            if await self._run_all(RELEASE, batch) is None:
                return False
            for claim in batch:
                self._leftovers.pop(claim, None)
        return True

    async def _run_all(self, script: Script, claims: Sequence[_Claim]) -> list[object] | None:
        """Runs a script for each, in one go; None if Redis did not answer."""
        try:
            async with asyncio.timeout(min(self._redis.timeout, self._lease / _RENEWALS)):
                answers = await self._send(script, claims)
                if any(isinstance(answer, NoScriptError) for answer in answers):
                    await self._redis.client.script_load(script.source)
                    answers = await self._send(script, claims)
        except (RedisError, OSError):
            answers = None
        if answers is None or any(isinstance(answer, RedisError) for answer in answers):
            # Whoever asks will find out what is wrong, and says so.
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
        """Hears what others tell this process, on one connection."""
        pause = _SOON
        while not self._stopped:
            with suppress(RedisError, OSError):
                async with self._redis.client.pubsub() as subscription:
                    async with asyncio.timeout(self._redis.timeout):
                        await subscription.subscribe(self._redis.keys.lock_channel(self._process))
                    await self._hear_all(subscription)
            pause = _SOON if self._subscribed else min(pause * 2, _POLL)
            self._subscribed = False
            await asyncio.sleep(pause)

    async def _hear_all(self, subscription: PubSub) -> None:
        """Returns, or raises, when the connection is of no use any more."""
        asked = False
        while not self._stopped:
            # It may connect again meanwhile, which has no deadline of its own.
            async with asyncio.timeout(_SILENCE + self._redis.timeout):
                message = await subscription.get_message(timeout=_SILENCE)
            if message is None:
                if asked:
                    return
                await subscription.ping()
            asked = message is None
            match message:
                case {"type": "subscribe"}:
                    self._hear_again()
                case {"type": "message", "data": bytes(data)}:
                    self._hear(data)

    def _hear_again(self) -> None:
        """Nobody could reach this process before, and Redis may have been restarted: find out what was missed."""
        if self._listened:
            self._hurry.set()
        self._listened = self._subscribed = True
        for claim in self._claims.values():
            claim.woken.set()

    def _hear(self, data: bytes) -> None:
        what, _, number = data.partition(b":")
        with suppress(ValueError):
            claim = self._claims.get(int(number, 16))
            if claim is None:
                return
            if what == b"offer":
                claim.woken.set()
            else:
                claim.demanded(2 if what == b"ask" else 1)


class _Claim:
    """This process' claim to an upload's lock: being made, held, or over. Its requests hold it one after the other."""

    __slots__ = (
        "_asked",
        "_locks",
        "_waiters",
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
        """Until when the lock is certainly ours, by _now; 0 while it is not held."""
        self.recorded = False
        """Whether Redis may have something about it."""
        self.woken = asyncio.Event()
        self._asked = False
        self._locks = locks
        self._waiters: list[tuple[asyncio.Future[RedisLease | None], bool]] = []

    def confirm(self, valid_until: float, demand: int) -> None:
        """The lock is ours. demand: 0 if nobody waits elsewhere, 1 if somebody does, 2 if somebody asks for it."""
        self.valid_until = valid_until
        if demand:
            self.demanded(demand)
        else:
            self._locks.joinable(self)

    def demanded(self, demand: int) -> None:
        """Somebody elsewhere waits for the lock. What came before in this process goes first, what comes now does not."""
        self._locks.unjoinable(self)
        if demand == 2:
            self._asked = True
            self.lease.request()

    def lose(self, *, taken: bool) -> None:
        """The lock is not ours any more; the one who thought so is told. taken: whether somebody else has it."""
        self.valid_until = 0.0
        self.lease.taken = taken
        self.disband()
        self.lease.request()

    def disband(self) -> None:
        """Those who joined have to get the lock for themselves."""
        self._locks.unjoinable(self)
        waiters, self._waiters = self._waiters, []
        for waiter, _ in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter, _ in waiters:
            if not waiter.done():
                waiter.set_exception(LocksClosed())
        self.woken.set()

    async def sleep(self, seconds: float) -> bool:
        """Until woken, at most so long; whether it was woken."""
        return await _is_set_within(self.woken, seconds)

    async def join(self, deadline: float, request_release: bool) -> RedisLease | None:
        """Waits for those in this process who came before; None if the lock has to be got from Redis."""
        waiter: asyncio.Future[RedisLease | None] = asyncio.get_running_loop().create_future()
        entry = (waiter, request_release)
        self._waiters.append(entry)
        if request_release:
            self.lease.request()
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except (TimeoutError, asyncio.CancelledError) as problem:
            if not waiter.cancelled() and waiter.done() and waiter.exception() is None:
                lease = waiter.result()
                if lease is not None:
                    # Granted at the very moment in which we gave up: nobody else would ever let it go.
                    self._locks.spawn(lease.release())
            elif entry in self._waiters:
                self._waiters.remove(entry)
            if isinstance(problem, TimeoutError):
                raise LockTimeout from None
            raise

    async def release(self, lease: RedisLease) -> None:
        if self.let_go(lease):
            await self._locks.end(self)

    def let_go(self, lease: RedisLease) -> bool:
        """Whether the claim is over now: it was held by this lease, and nobody in this process goes on with it."""
        if lease is not self.lease or self._hand_over():
            return False
        self.valid_until = 0.0
        self.lease = RedisLease(self)
        return True

    def _hand_over(self) -> bool:
        """Gives the lock to whoever waits longest in this process."""
        while self._waiters and _now() < self.valid_until:
            waiter, _ = self._waiters.pop(0)
            if not waiter.done():
                self.lease = RedisLease(self)
                if self._asked or any(requested for _, requested in self._waiters):
                    self.lease.request()
                waiter.set_result(self.lease)
                return True
        return False


class RedisLease:
    """See `Lease`. taken: whether the lock was lost to somebody else; otherwise it ran out, and nobody may have it."""

    __slots__ = ("_callback", "_claim", "_requested", "taken")

    def __init__(self, claim: _Claim) -> None:
        self._claim = claim
        self.taken = False
        self._requested = False
        self._callback: Callable[[], None] | None = None

    def request(self) -> None:
        """Its holder shall end."""
        self._requested = True
        if self._callback is not None:
            self._callback()

    def on_requested(self, callback: Callable[[], None] | None) -> None:
        self._callback = callback
        if callback is not None and self._requested:
            callback()

    def is_held(self) -> bool:
        return self._claim.lease is self and _now() < self._claim.valid_until

    def fence(self) -> HeldFence:
        return HeldFence(self.is_held)

    async def release(self) -> None:
        await self._claim.release(self)


def _batches(claims: Sequence[_Claim]) -> Iterator[Sequence[_Claim]]:
    return (claims[start : start + _BATCH] for start in range(0, len(claims), _BATCH))


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Waits for an event, at most so long; whether it came."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
