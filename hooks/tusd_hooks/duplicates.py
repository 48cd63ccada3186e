"""Refuses the creation of an upload that is there already, and says what the client may do instead.

Two uploads are the same if they have the same fingerprint (see `fingerprint.py`). It is reserved before the creation, complete
when the upload is finished, and given back when the upload goes. Redis is asked by one script at each of these, and by none
while bytes come in. It only remembers: whether an unfinished upload still exists is asked of the storage, so that a record
that a crash left behind stands in nobody's way.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

from tusd_hooks.fingerprint import Identity
from tusd_py import logs
from tusd_py.background import keep_running
from tusd_py.events.model import Event, HookContext, Reject, UploadView
from tusd_py.protocol.errors import DUPLICATE_UPLOAD
from tusd_py.protocol.metadata import FORCE_KEY
from tusd_py.redis import RedisUnavailable
from tusd_py.redis.duplicate_index import Claim, DuplicateIndex, Holder
from tusd_py.storage.base import StorageError

logger = logging.getLogger(__name__)

FORCE_HEADER = "upload-force"

_HOW_TO_FORCE = "header Upload-Force: true, or metadata force_upload with the value true"
_WORDS: Mapping[str, bool] = {"true": True, "false": False}
_RETRY_AFTER = 5
_EXPIRY_MARGIN = 86_400.0
"""Seconds that a pending record outlives its upload's expiry: the sweep comes late at times."""
_CREATION_GRACE = 15.0
"""Seconds after which a reservation whose upload is not there is no creation that is under way, but one that a crash ended."""
_PAUSES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
"""Seconds to wait for a creation under way: for its upload to appear, or its reservation to go."""

_MOST_TOGETHER = 64
"""Fingerprints that are given back in one go."""
_MOST_OWED = 10_000
"""Changes that are kept while Redis is away. Beyond them the oldest are lost: a few uploads too many are taken for duplicates,
or too few."""

Change = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Taken:
    """An upload that stands in the way of another. offset: bytes that it has, if it is unfinished and can be looked at."""

    claim: Claim
    state: Literal["pending", "complete"]
    offset: int | None = None


class Duplicates:
    """The hook. One a server process; it takes its settings in `start`."""

    retry_interval = 5.0
    """Seconds between attempts to tell Redis what it could not be told."""

    _context: HookContext
    _identity: Identity
    _outage: _Outage
    _later: _Later
    _together: _Together

    async def start(self, context: HookContext) -> None:
        """Takes the settings. Redis need not be there."""
        settings = context.settings
        self._context = context
        self._identity = Identity(
            keys=frozenset(settings.duplicate_keys) or None,
            fingerprint_key=settings.duplicate_fingerprint_key,
            per_owner=settings.duplicate_scope == "owner",
        )
        self._outage = _Outage()
        self._later = _Later(self.retry_interval)
        self._together = _Together(self._release_each)

    async def stop(self) -> None:
        """Tries once more to tell Redis what it could not be told."""
        await self._later.stop()

    # Before an upload is there

    async def pre_create(self, event: Event) -> None:
        """Reserves the upload's fingerprint. Raises Reject: 409 for a duplicate, 400 for a force that is neither true nor
        false, 503 where nothing can be found out and the operator wants no upload that was not checked."""
        force = _is_forced(event)
        fingerprint = self._fingerprint(event.upload)
        if fingerprint is None:
            return
        may_arrive = self._context.state is not None and self._context.state.available
        try:
            taken = await self._reserve(fingerprint, event, force=force)
        except RedisUnavailable as problem:
            self._outage.begin(problem)
            if self._allows_unchecked():
                return
            if may_arrive:
                # A Redis that is only slow may yet carry the reservation out.
                self._later.add(event.id, self._giving_back(fingerprint, event))
            raise _unavailable() from None
        self._recover()
        self._count(taken.state if taken is not None else "forced" if force else "new")
        if taken is not None:
            raise _refusal(fingerprint, event, taken)

    async def create_failed(self, event: Event) -> None:
        """Gives back what `pre_create` reserved for this event, and nothing else."""
        if fingerprint := self._fingerprint(event.upload):
            await self._tell(event, self._giving_back(fingerprint, event))

    async def _reserve(self, fingerprint: str, event: Event, *, force: bool) -> Taken | None:
        """None when the fingerprint is the upload's, else who has it."""
        index, claim = self._index(), _claim(event)
        pauses = iter(_PAUSES)
        gone: set[str] = set()
        passed: set[str] = set()
        while holder := await index.reserve(
            fingerprint, claim, lasts=self._patience(), force=force, gone=gone, passed=passed
        ):
            found = holder.record.claim
            if holder.record.state == "complete":
                return Taken(found, "complete")
            try:
                truth = await self._context.offset_of(found.upload)
            except StorageError as problem:
                # Its client may insist; but what cannot be read shall not be overwritten without a word.
                logger.warning("upload %s cannot be looked at: %s", found.upload, problem)
                return Taken(found, "pending")
            if truth is None:
                if not _is_on_its_way(holder):
                    gone.add(found.token)
                elif (pause := next(pauses, None)) is not None:
                    await asyncio.sleep(pause)
                else:
                    return Taken(found, "pending")
                continue
            offset, finished = truth
            if finished:
                with suppress(RedisUnavailable):
                    await index.complete(fingerprint, found, lasts=self._window())
                return Taken(found, "complete")
            if self._context.settings.duplicates != "finished":
                return Taken(found, "pending", offset)
            passed.add(found.token)
        return None

    def _allows_unchecked(self) -> bool:
        """Whether the operator wants uploads that could not be checked."""
        allows = self._context.settings.duplicates_when_unavailable == "allow"
        self._outage.unchecked += allows
        self._count("unchecked" if allows else "unavailable")
        return allows

    # After it

    async def post_finish(self, event: Event) -> None:
        """The fingerprint is the upload's for the whole window from now on."""
        if fingerprint := self._fingerprint(event.upload):
            claim, lasts = _claim(event), self._window()

            async def complete() -> None:
                await self._index().complete(fingerprint, claim, lasts=lasts)

            async def complete_late() -> None:
                # An upload that is gone by now shall not take what was given back.
                if await self._is_there(event.upload.id):
                    await complete()

            change = complete if event.attempt == 1 else complete_late
            await self._tell(event, change, later=complete_late)

    async def _is_there(self, upload_id: str) -> bool:
        try:
            return await self._context.offset_of(upload_id) is not None
        except StorageError as problem:
            logger.warning("upload %s cannot be looked at: %s", upload_id, problem)
            return True

    async def pre_terminate(self, event: Event) -> None:
        """From now on the fingerprint is free as soon as the upload is gone, even if Redis is not there to be told."""
        if fingerprint := self._fingerprint(event.upload):
            await self._tell(event, lambda: self._index().end(fingerprint, event.upload.id))

    async def post_terminate(self, event: Event) -> None:
        """Gives the upload's fingerprint back."""
        if fingerprint := self._fingerprint(event.upload):
            await self._tell(event, lambda: self._index().release(fingerprint, event.upload.id))

    async def post_expire(self, event: Event) -> None:
        """Gives the upload's fingerprint back. A sweep tells of dozens at a time, which go to Redis together.

        Not that of one that was finished and has been kept long enough: it was here, and is not to come again.
        """
        if event.upload.offset == event.upload.length:
            return
        if fingerprint := self._fingerprint(event.upload):
            upload_id = event.upload.id
            await self._tell(event, lambda: self._together.add(fingerprint, upload_id))

    def _giving_back(self, fingerprint: str, event: Event) -> Change:
        return lambda: self._index().release(fingerprint, event.upload.id, token=event.id)

    async def _tell(self, event: Event, change: Change, *, later: Change | None = None) -> None:
        """Tells Redis what happened to an upload; later, and in order, if that cannot be now. Never fails the upload.

        later: what is to be told then, if that is something else.
        """
        if self._later:
            self._later.add(event.id, later or change)
            return
        try:
            await change()
        except RedisUnavailable as problem:
            self._outage.begin(problem)
            self._later.add(event.id, later or change)
        else:
            self._recover()

    async def _release_each(self, uploads: Sequence[tuple[str, str]]) -> None:
        await self._index().release_each(uploads)

    # Helpers

    def _index(self) -> DuplicateIndex:
        redis = self._context.state
        if redis is None:
            raise RedisUnavailable("this server has no Redis")
        return DuplicateIndex(redis)

    def _recover(self) -> None:
        """Redis has answered."""
        if self._outage.end():
            self._later.hurry()

    def _fingerprint(self, upload: UploadView) -> str | None:
        """None for an upload that is not checked: a part, one of unknown length, one without metadata that counts."""
        if upload.is_partial:
            return None
        return self._identity.fingerprint(upload.metadata, length=upload.length, owner=upload.owner)

    def _window(self) -> float:
        """Seconds for which a finished upload is remembered."""
        return self._context.settings.duplicate_window

    def _patience(self) -> float:
        """Seconds for which a reservation is remembered whose upload is never finished, and whose removal nobody tells."""
        return max(self._window(), self._context.settings.expire_after + _EXPIRY_MARGIN)

    def _count(self, outcome: str) -> None:
        self._context.counters.duplicate(outcome)


class _Outage:
    """Whether Redis is away, said once when it goes and once when it is back. unchecked: creations let pass in between."""

    def __init__(self) -> None:
        self.unchecked = 0
        self._began = False

    def begin(self, problem: RedisUnavailable) -> None:
        """It did not answer."""
        if not self._began:
            self._began = True
            logs.event(
                logger,
                logging.WARNING,
                "duplicates unknown",
                message=f"Uploads cannot be checked for duplicates until Redis is back: {problem}",
            )

    def end(self) -> bool:
        """It did. True if it had not before."""
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


class _Together:
    """Collects what comes at the same moment, and does it in one go. work: raises RedisUnavailable."""

    def __init__(self, work: Callable[[Sequence[tuple[str, str]]], Awaitable[None]]) -> None:
        self._work = work
        self._waiting: list[tuple[str, str]] = []
        self._next: asyncio.Task[None] | None = None

    async def add(self, fingerprint: str, upload_id: str) -> None:
        """Returns when it was done with all that came along."""
        self._waiting.append((fingerprint, upload_id))
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._run())
        await asyncio.shield(self._next)

    async def _run(self) -> None:
        # Whoever comes in the same turn of the event loop comes along.
        await asyncio.sleep(0)
        self._next = None
        batch, self._waiting = self._waiting, []
        for at in range(0, len(batch), _MOST_TOGETHER):
            await self._work(batch[at : at + _MOST_TOGETHER])


class _Later:
    """What Redis could not be told, in its order, for when it is back. interval: seconds between attempts."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._owed: dict[str, Change] = {}
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __bool__(self) -> bool:
        return bool(self._owed)

    def add(self, key: str, change: Change) -> None:
        """Keeps a change; one with the same key takes the place of an earlier one."""
        if len(self._owed) >= _MOST_OWED:
            del self._owed[next(iter(self._owed))]
        self._owed[key] = change
        if self._task is None:
            self._task = keep_running(self._run, "duplicates")

    def hurry(self) -> None:
        """Redis is back: tries at once."""
        self._hurry.set()

    async def stop(self) -> None:
        """Tries once more, and says what remains."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._work()
        if self._owed:
            logger.warning(
                "Redis was not told of %d changes: some uploads will be taken for duplicates, or not, wrongly",
                len(self._owed),
            )

    async def _run(self) -> None:
        while self._owed:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._hurry.wait()
            self._hurry.clear()
            await self._work()
        self._task = None

    async def _work(self) -> None:
        with suppress(RedisUnavailable):
            while self._owed:
                key, change = next(iter(self._owed.items()))
                await change()
                if self._owed.get(key) is change:
                    del self._owed[key]


def _is_forced(event: Event) -> bool:
    """Whether the client insists. Raises Reject: 400 for anything but true and false."""
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
            raise _problem(
                400, "invalid-force", "ERR_INVALID_FORCE", f"{place} must be true or false"
            )
        forced = forced or _WORDS[word]
    return forced


def _claim(event: Event) -> Claim:
    upload = event.upload
    return Claim(upload.id, upload.owner, upload.is_final, event.id)


def _is_on_its_way(holder: Holder) -> bool:
    """Whether an upload that is not there may be one that is being created at this moment."""
    return holder.record.state == "pending" and holder.age < _CREATION_GRACE


def _unavailable() -> Reject:
    """The 503 while nothing can be found out."""
    return _problem(
        503,
        "duplicates-unavailable",
        "ERR_DUPLICATES_UNAVAILABLE",
        "whether this was uploaded before cannot be found out now; try again later",
        headers={"Retry-After": str(_RETRY_AFTER)},
    )


def _refusal(fingerprint: str, event: Event, taken: Taken) -> Reject:
    """The 409. It offers to resume where the client may, and can."""
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
    if taken.state == "complete":
        detail = "this has been uploaded before"
    elif taken.offset is None or not _may_be_told(event, taken.claim):
        detail = "an upload of this was begun before and is not finished"
    else:
        detail = "an upload of this was begun before; resume it at Location, from Upload-Offset"
        url = event.request.url_of(taken.claim.upload)
        headers = {"Location": url, "Upload-Offset": str(taken.offset)}
        members |= {"location": url, "offset": taken.offset}
    return _problem(
        409, "duplicate-upload", DUPLICATE_UPLOAD, detail, headers=headers, members=members
    )


def _may_be_told(event: Event, claim: Claim) -> bool:
    """Whether the client may know the URL of the upload that stands in its way, and can use it.

    Where nobody is authenticated a URL is all that it takes to write to an upload. A final takes no bytes.
    """
    is_own = bool(event.upload.owner) and event.upload.owner == claim.owner
    return is_own and not claim.is_final


def _problem(
    status: int,
    name: str,
    code: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, object] | None = None,
) -> Reject:
    """A refusal in problem details (RFC 9457)."""
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
