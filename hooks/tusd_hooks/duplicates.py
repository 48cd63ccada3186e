"""Refuses the creation of a duplicate upload, and tells the client how to resume the first one or force another.

Duplicates have the same fingerprint (see `fingerprint`). It is reserved before the creation, marked complete when the upload
finishes, and released when the upload is removed. Each of these runs one script in Redis; receiving bytes runs none. The
storage decides whether an unfinished upload still exists, so that a record left by a crash blocks no upload.

Where the operator says which metadata identify a file, an upload also has a fingerprint without its length, with a script of
its own: in a cluster the two keys may be in different slots. Uploads of deferred length are refused by any of its holders,
others only by holders of deferred length. Of two that race for it one is refused, whatever else they hold.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Literal, NamedTuple

from tusd_hooks.fingerprint import Identity
from tusd_py import logs
from tusd_py.background import cancel, keep_running
from tusd_py.events.model import Event, HookContext, Progress, Reject, UploadView
from tusd_py.protocol.errors import DUPLICATE_UPLOAD
from tusd_py.protocol.metadata import FORCE_KEY
from tusd_py.redis import RedisUnavailable
from tusd_py.redis.duplicate_index import Claim, DuplicateIndex, Holder, Record
from tusd_py.storage.base import StorageError

logger = logging.getLogger(__name__)

FORCE_HEADER = "upload-force"

_HOW_TO_FORCE = "header Upload-Force: true, or metadata force_upload with the value true"
_WORDS: Mapping[str, bool] = {"true": True, "false": False}
_RETRY_AFTER_SECONDS = 5
_EXPIRY_MARGIN_SECONDS = 86_400.0
"""How long a pending record outlives its upload's expiry, as the sweep may be late."""
_CREATION_GRACE = 15.0
"""Seconds after which a reservation without an upload is taken for the leftover of a crash, not for a creation in progress. One
that takes longer confirms its reservation: longer than `SLOW_CREATION_SECONDS` of `tusd_py.events.hooks`."""
_PAUSES_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
"""Waits for a creation in progress: for its upload to exist, or its reservation to be released."""

_MAX_PENDING = 10_000
"""Changes kept while Redis is unavailable. Beyond them the oldest are dropped: the index then lacks a few uploads, or has a few
too many."""

Change = Callable[[], Awaitable[object]]


class _Fingerprint(NamedTuple):
    """A fingerprint, what is compared by it in words for clients, and whether it leaves out the length."""

    value: str
    compared: str
    any_length: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """The upload of which another is a duplicate.

    wanted: the fingerprint that both have. offset: its size so far in bytes, if the client may resume it. retry_after: seconds
    until it may be replaced or resumed, if bytes of it arrived a moment ago; 0 otherwise. completed: when it was finished, in
    seconds since the epoch; None if that is not known.
    """

    wanted: _Fingerprint
    claim: Claim
    state: Literal["pending", "complete"]
    offset: int | None = None
    retry_after: float = 0.0
    completed: float | None = None


class Duplicates:
    """The hook. One per server process, configured by `start`."""

    retry_interval = 5.0
    """Seconds between attempts to apply changes that failed."""

    _context: HookContext
    _identity: Identity
    _outage: _Outage
    _retries: _RetryQueue

    async def start(self, context: HookContext) -> None:
        """Read the settings. Redis need not be available."""
        self._context = context
        self._identity = Identity.of(context.settings)
        self._outage = _Outage()
        self._retries = _RetryQueue(self.retry_interval)

    async def stop(self) -> None:
        """Try a last time to apply changes that failed."""
        await self._retries.stop()

    # Before the creation

    async def pre_create(self, event: Event) -> None:
        """Reserve the upload's fingerprints.

        Raises Reject: 409 for a duplicate, 400 for a force that is neither true nor false, 503 if Redis is unavailable and the
        settings refuse unchecked uploads.
        """
        force = _is_forced(event)
        fingerprints = self._fingerprints(event.upload)
        if not fingerprints:
            return
        may_arrive = self._context.state is not None and self._context.state.available
        try:
            taken = await self._reserve(fingerprints, event, force=force)
        except RedisUnavailable as problem:
            self._outage.begin(problem)
            if self._allows_unchecked():
                return
            if may_arrive:
                # A Redis that is only slow may still execute the reservation.
                self._retries.add(event.id, self._release(event, token=event.id))
            raise _unavailable() from None
        self._recover()
        self._count(taken.state if taken is not None else "forced" if force else "new")
        if taken is not None:
            raise _refusal(event, taken)

    async def confirm_create(self, event: Event) -> None:
        """Make sure that an upload whose creation took long still has its fingerprints: another may have got them meanwhile.

        Raises Reject as `pre_create`.
        """
        force, claim = _is_forced(event), _claim(event)
        try:
            lost = [
                each
                for each in self._fingerprints(event.upload)
                if not await self._index().confirm(each.value, claim)
            ]
            taken = await self._reserve(lost, event, force=force)
        except RedisUnavailable as problem:
            self._outage.begin(problem)
            if self._context.settings.duplicates_when_unavailable == "allow":
                return
            raise _unavailable() from None
        if taken is not None:
            self._count(taken.state)
            raise _refusal(event, taken)

    async def create_failed(self, event: Event) -> None:
        """Release what `pre_create` reserved for this event, and nothing else."""
        await self._apply(event, self._release(event, token=event.id))

    async def _reserve(
        self, fingerprints: Sequence[_Fingerprint], event: Event, *, force: bool
    ) -> Taken | None:
        """Reserve an upload's fingerprints; return None, or the upload that has one of them.

        In the opposite order to that in which they are marked complete. So an upload of deferred length that finishes meanwhile
        is seen: it is a rival until its other fingerprint is complete.
        """
        reserved: list[str] = []
        for wanted in reversed(fingerprints):
            taken = await self._reserve_one(wanted, event, force=force)
            if taken is not None:
                for fingerprint in reserved:
                    await self._index().release(fingerprint, event.upload.id, token=event.id)
                return taken
            reserved.append(wanted.value)
        return None

    async def _reserve_one(
        self, wanted: _Fingerprint, event: Event, *, force: bool
    ) -> Taken | None:
        """Reserve a fingerprint for an upload; return None, or the upload that has it."""
        index, claim, length = self._index(), _claim(event), event.upload.length
        pauses = iter(_PAUSES_SECONDS)
        gone: list[Record] = []
        passed: set[str] = set()
        while holder := await index.reserve(
            wanted.value,
            claim,
            lasts=self._reservation_ttl(),
            force=force,
            deferred=length is None,
            rivals="deferred" if wanted.any_length and length is not None else "all",
            gone=gone,
            passed=passed,
        ):
            found = holder.record.claim
            if holder.record.state == "complete":
                return Taken(wanted, found, "complete", completed=holder.record.completed)
            try:
                progress = await self._context.progress_of(found.upload)
            except StorageError as problem:
                # The client may force the upload, but one that cannot be read must not be replaced silently.
                logger.warning("upload %s cannot be read: %s", found.upload, problem)
                return Taken(wanted, found, "pending")
            if progress is None:
                if not _may_be_in_progress(holder):
                    gone.append(holder.record)
                elif (pause := next(pauses, None)) is not None:
                    await asyncio.sleep(pause)
                else:
                    return Taken(wanted, found, "pending")
                continue
            if progress.is_finished:
                with suppress(RedisUnavailable):
                    await self._complete_found(event, found, progress)
            if _differ(length, progress.length):
                # Declared since: by its length it is another one.
                passed.add(found.token)
                continue
            if progress.is_finished:
                return Taken(wanted, found, "complete")
            busy = self._busy_for(holder, progress)
            may_resume = _may_resume(event, found, wanted, progress)
            if self._is_in_the_way(found, busy, may_resume=may_resume):
                return Taken(
                    wanted, found, "pending", progress.offset if may_resume else None, busy
                )
            passed.add(found.token)
        return None

    async def _complete_found(self, event: Event, found: Claim, progress: Progress) -> None:
        """Mark an upload as complete that was found finished. It has the metadata of the one that is being created."""
        length = event.upload.length if progress.length is None else progress.length
        for each in self._fingerprints(replace(event.upload, length=length)):
            await self._index().complete(each.value, found, lasts=self._window())

    def _busy_for(self, holder: Holder, progress: Progress) -> float:
        """Return the seconds for which an unfinished upload still counts as being sent; 0 if its client is gone.

        How long ago it was created is known by one clock for all servers, that of Redis.
        """
        grace = self._context.settings.duplicates_pending_grace
        if progress.is_held_elsewhere:
            return grace
        left = progress.changed_at + grace - time.time()
        # A clock that was set back must not keep it busy for as long.
        return max(left if left <= 2 * grace else 0.0, grace - holder.age, 0.0)

    def _is_in_the_way(self, found: Claim, busy: float, *, may_resume: bool) -> bool:
        """Return whether an unfinished upload refuses a duplicate.

        One whose client is gone does so only for those who can be told where to resume it; others could never upload the same
        again before it expires. A final is no use to begin again: it waits for its parts.
        """
        if self._context.settings.duplicates == "finished":
            return False
        return busy > 0 or found.is_final or may_resume

    def _allows_unchecked(self) -> bool:
        """Count an unchecked upload; return whether the settings allow it."""
        allows = self._context.settings.duplicates_when_unavailable == "allow"
        self._outage.unchecked += allows
        self._count("unchecked" if allows else "unavailable")
        return allows

    # After the creation

    async def post_finish(self, event: Event) -> None:
        """Mark the upload as complete; its fingerprint is remembered for the whole window."""
        upload, claim = event.upload, _claim(event)

        async def complete() -> None:
            known = [
                await self._index().complete(each.value, claim, lasts=self._window())
                for each in self._fingerprints(upload)
            ]
            # Hooks that were called before this one may have taken so long that it was removed, and released, meanwhile.
            if not any(known) and not await self._exists(upload.id):
                await self._release(event)()

        async def complete_late() -> None:
            # An upload that was removed meanwhile must not reserve its fingerprint again.
            if await self._exists(upload.id):
                await complete()

        change = complete if event.attempt == 1 else complete_late
        await self._apply(event, change, later=complete_late)

    async def _exists(self, upload_id: str) -> bool:
        try:
            return await self._context.progress_of(upload_id) is not None
        except StorageError as problem:
            logger.warning("upload %s cannot be read: %s", upload_id, problem)
            return True

    async def pre_terminate(self, event: Event) -> None:
        """Mark the record as ending: its fingerprint is free once the upload is gone, even if Redis is unavailable then."""
        upload = event.upload
        end = self._on_each(upload, lambda index, each: index.end(each, upload.id))
        await self._apply(event, end)

    async def post_terminate(self, event: Event) -> None:
        """Release the upload's fingerprint."""
        await self._apply(event, self._release(event))

    async def post_expire(self, event: Event) -> None:
        """Release the upload's fingerprint.

        That of a finished upload, removed after its retention, is kept: it must still not be uploaded again. It is marked
        complete here too, as a crash or an outage at the finish may have left it pending.
        """
        finished_at = event.upload.finished_at
        if finished_at is None:
            await self._apply(event, self._release(event))
            return
        left = finished_at + self._window() - time.time()
        if left > 0:
            claim, lasts = _claim(event), min(left, self._window())
            complete = self._on_each(
                event.upload,
                lambda index, each: index.complete(each, claim, lasts=lasts, if_known=True),
            )
            await self._apply(event, complete)

    def _release(self, event: Event, *, token: str = "") -> Change:
        upload = event.upload
        return self._on_each(
            upload, lambda index, each: index.release(each, upload.id, token=token)
        )

    def _on_each(
        self, upload: UploadView, change: Callable[[DuplicateIndex, str], Awaitable[object]]
    ) -> Change:
        """Return what makes a change to each of an upload's fingerprints in the index."""

        async def apply() -> None:
            for fingerprint in self._fingerprints(upload):
                await change(self._index(), fingerprint.value)

        return apply

    async def _apply(self, event: Event, change: Change, *, later: Change | None = None) -> None:
        """Apply a change to the index now or, while Redis is unavailable, later and in order. Never fails the upload.

        Does nothing for an upload that is not checked. later: the change to apply later, if it differs.
        """
        if not self._fingerprints(event.upload):
            return
        if self._retries:
            self._retries.add(event.id, later or change)
            return
        try:
            await change()
        except RedisUnavailable as problem:
            self._outage.begin(problem)
            self._retries.add(event.id, later or change)
        else:
            self._recover()

    # Helpers

    def _index(self) -> DuplicateIndex:
        redis = self._context.state
        if redis is None:
            raise RedisUnavailable("this server has no Redis")
        return DuplicateIndex(redis)

    def _recover(self) -> None:
        """Log the end of an outage and apply pending changes."""
        if self._outage.end():
            self._retries.flush()

    def _fingerprints(self, upload: UploadView) -> list[_Fingerprint]:
        """Return the fingerprints of an upload; none for one that is not checked."""
        compared = self._identity.compared
        found = []
        if exact := self._identity.of_upload(upload):
            found.append(_Fingerprint(exact, f"{compared} and length", any_length=False))
        if any_length := self._identity.of_any_length(upload):
            found.append(_Fingerprint(any_length, compared, any_length=True))
        return found

    def _window(self) -> float:
        """Return for how many seconds a finished upload is remembered."""
        return self._context.settings.duplicate_window

    def _reservation_ttl(self) -> float:
        """Return after how many seconds a reservation expires whose upload never finishes and is never released."""
        return max(self._window(), self._context.settings.expire_after + _EXPIRY_MARGIN_SECONDS)

    def _count(self, outcome: str) -> None:
        self._context.counters.duplicates[outcome] += 1


class _Outage:
    """Logs the start and the end of an outage of Redis once each. unchecked: creations allowed in between."""

    def __init__(self) -> None:
        self.unchecked = 0
        self._began = False

    def begin(self, problem: RedisUnavailable) -> None:
        """Log the start of an outage."""
        if not self._began:
            self._began = True
            logs.event(
                logger,
                logging.WARNING,
                "duplicates unknown",
                message=f"Uploads cannot be checked for duplicates until Redis is back: {problem}",
            )

    def end(self) -> bool:
        """Log the end of an outage; return False if there was none."""
        if not self._began:
            return False
        logs.event(
            logger,
            logging.WARNING,
            "duplicates known again",
            message=f"Uploads are checked for duplicates again; {self.unchecked} were created unchecked",
            unchecked=self.unchecked,
        )
        self._began, self.unchecked = False, 0
        return True


class _RetryQueue:
    """Changes that failed, in order, to apply when Redis is available again. interval: seconds between attempts."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._pending: dict[str, Change] = {}
        self._flush = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __bool__(self) -> bool:
        return bool(self._pending)

    def add(self, key: str, change: Change) -> None:
        """Queue a change; it replaces an earlier one with the same key."""
        if len(self._pending) >= _MAX_PENDING:
            del self._pending[next(iter(self._pending))]
        self._pending[key] = change
        if self._task is None:
            self._task = keep_running(self._run, "duplicates")

    def flush(self) -> None:
        """Apply the changes now, as Redis is available again."""
        self._flush.set()

    async def stop(self) -> None:
        """Try a last time, and log what remains."""
        await cancel(self._task)
        await self._work()
        if self._pending:
            logger.warning(
                "%d changes of the duplicate index are lost: some duplicates will be missed, some uploads wrongly refused",
                len(self._pending),
            )

    async def _run(self) -> None:
        while self._pending:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._flush.wait()
            self._flush.clear()
            await self._work()
        self._task = None

    async def _work(self) -> None:
        with suppress(RedisUnavailable):
            while self._pending:
                key, change = next(iter(self._pending.items()))
                await change()
                if self._pending.get(key) is change:
                    del self._pending[key]


def _is_forced(event: Event) -> bool:
    """Return whether the client forces the upload. Raises Reject (400) for values other than true and false."""
    given = {
        "the metadata force_upload": event.upload.metadata.get(FORCE_KEY),
        "the header Upload-Force": event.request.headers.get(FORCE_HEADER),
    }
    forced = False
    for place, value in given.items():
        if value is None:
            continue
        word = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if word not in _WORDS:
            raise _problem(400, "ERR_INVALID_FORCE", f"{place} must be true or false")
        forced = forced or _WORDS[word]
    return forced


def _claim(event: Event) -> Claim:
    upload = event.upload
    return Claim(upload.id, upload.owner, upload.is_final, event.id)


def _may_be_in_progress(holder: Holder) -> bool:
    """Return whether a missing upload may be one whose creation is in progress."""
    return holder.record.state == "pending" and holder.age < _CREATION_GRACE


def _unavailable() -> Reject:
    """Build the 503 response while Redis is unavailable."""
    return _problem(
        503,
        "ERR_DUPLICATES_UNAVAILABLE",
        "the check for duplicates is temporarily unavailable; retry later",
        headers={"Retry-After": str(_RETRY_AFTER_SECONDS)},
    )


def _refusal(event: Event, taken: Taken) -> Reject:
    """Build the 409 response, which offers to resume if the client may and can."""
    fingerprint, compared, _ = taken.wanted
    logs.event(
        logger,
        logging.INFO,
        "duplicate refused",
        upload=taken.claim.upload,
        state=taken.state,
        fingerprint=fingerprint,
    )
    members: dict[str, object] = {
        "state": taken.state,
        "force": _HOW_TO_FORCE,
        "fingerprint": fingerprint,
    }
    headers: dict[str, str] = {}
    if taken.retry_after:
        headers["Retry-After"] = str(math.ceil(taken.retry_after))
    if taken.state == "complete":
        detail = f"an upload with the same {compared} was finished {_day_of(taken.completed)}"
    elif taken.offset is None:
        detail = f"an upload with the same {compared} is being sent; retry later"
    else:
        detail = f"an unfinished upload with the same {compared} exists; resume it at Location, from Upload-Offset"
        url = event.request.url_of(taken.claim.upload)
        headers |= {"Location": url, "Upload-Offset": str(taken.offset)}
        members |= {"location": url, "offset": taken.offset}
    return _problem(409, DUPLICATE_UPLOAD, detail, headers=headers, members=members)


def _day_of(when: float | None) -> str:
    return "before" if when is None else f"on {datetime.fromtimestamp(when, UTC).date()}"


def _differ(length: int | None, other: int | None) -> bool:
    return length is not None and other is not None and length != other


def _may_resume(event: Event, claim: Claim, wanted: _Fingerprint, progress: Progress) -> bool:
    """Return whether the client may know the URL of the first upload, and can resume it.

    Without authentication, a URL is sufficient to write to an upload. A final upload accepts no bytes. Clients that know their
    length do not declare it when they resume, so that an upload which lacks it would never finish.
    """
    is_own = bool(event.upload.owner) and event.upload.owner == claim.owner
    lacks_length = wanted.any_length and progress.length is None and event.upload.length is not None
    return is_own and not claim.is_final and not lacks_length


def _problem(
    status: int,
    code: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, object] | None = None,
) -> Reject:
    """Build a response with problem details (RFC 9457)."""
    name = code.removeprefix("ERR_").replace("_", "-").lower()
    document = {
        "type": f"urn:tusd-py:problem:{name}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        **(members or {}),
    }
    return Reject(
        status,
        json.dumps(document),
        {
            "Content-Type": "application/problem+json",
            "Cache-Control": "no-store",
            **(headers or {}),
        },
        code=code,
    )
