"""The bytes of a request on their way into the store.

What arrived counts, however the request ends, except for a chunk with a checksum, which counts whole or not at all, and for a
request that brings more than the upload has room for. The caller holds the upload's lock and has checked all that can be
checked before the first byte.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Protocol, cast

from tusd_py.events.hooks import Hooks
from tusd_py.events.model import Event, EventType, RequestView, UploadView
from tusd_py.locks.base import Lease, LeaseLost
from tusd_py.metrics.counters import Counters
from tusd_py.protocol import errors, tus
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.tus import Content
from tusd_py.storage.base import (
    ReceivesInPlace,
    StorageFull,
    Store,
    Upload,
    UploadInfo,
    VerifiedWriter,
    VerifiesChunks,
    Writer,
)
from tusd_py.uploads.policy import UploadPolicy

logger = logging.getLogger(__name__)

_SPACE_CHECK_INTERVAL = 16 * 1024 * 1024


class BodyEnd(Enum):
    """How the body of a request ended."""

    COMPLETE = "complete"
    DISCONNECTED = "disconnected"
    TIMED_OUT = "timed_out"
    INTERRUPTED = "interrupted"
    SHUTDOWN = "shutdown"


_PROBLEM_OF_END: Mapping[BodyEnd, Callable[[], ProtocolError]] = {
    BodyEnd.DISCONNECTED: errors.connection_reset,
    BodyEnd.TIMED_OUT: errors.read_timeout,
    BodyEnd.INTERRUPTED: errors.interrupted,
    BodyEnd.SHUTDOWN: errors.shutting_down,
}

NOTHING_COUNTS = {
    "ERR_UPLOAD_SIZE_EXCEEDED",
    "ERR_MAX_SIZE_EXCEEDED",
    "ERR_CHECKSUM_MISMATCH",
    "ERR_INVALID_CHECKSUM",
    "ERR_UNSUPPORTED_CHECKSUM_ALGORITHM",
}
"""Codes of problems after which no byte of a request counts."""

_UNFORESEEN = errors.internal()
"""What is assumed of a body's end until it is known; never raised."""


Take = Callable[[memoryview], "Awaitable[None] | None"]
"""Takes the next bytes of a body, which are only there during the call. What it returns, if anything, is awaited before there
are more. What it raises ends the body."""

Room = Callable[[], "memoryview | None"]
"""Where the next bytes are wanted; None where that is no matter. Asked before every read, but not every read finds some."""


class Body(Protocol):
    """The body of a request: every way in which it can end looks like its end, and `end` keeps the reason."""

    end: BodyEnd | None

    async def read(self) -> bytes:
        """The next bytes; empty at the end, whatever ended it."""

    async def pour(self, take: Take, room: Room | None = None) -> bool:
        """Hands the whole body to `take`, on the shortest way there is; False where there is none, and nothing was taken.

        room: where its pieces shall lie, as far as they did not come in before. Raises what the two raise.
        """

    def stop(self, end: BodyEnd) -> None:
        """Ends it from outside: `read` returns at once, and reads no more."""

    def trailers(self) -> Mapping[str, str]:
        """Trailer fields, names in lower case; empty before the end and where the server does not hand them over."""


class _Ended(Exception):
    """The body is not taken any further."""

    def __init__(self, problem: ProtocolError) -> None:
        super().__init__(problem)
        self.problem = problem


@dataclass(slots=True)
class _Transfer:
    """One request's bytes. limit: bytes that the upload may have; over_limit: what is said to more of them.

    verified: the writer, if what it writes counts only once it was found right. next_check: the offset at which to look at the
    free space. told: the offset that hooks know of. stopped: what is said where somebody wanted an end.
    """

    upload: Upload
    content: Content
    body: Body
    writer: Writer
    verified: VerifiedWriter | None
    lease: Lease
    request: RequestView
    limit: int | None
    over_limit: Callable[[], ProtocolError]
    next_check: int = field(init=False)
    told: int = field(init=False)
    stopped: ProtocolError | None = None
    progress_timer: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self.next_check = self.writer.offset + _SPACE_CHECK_INTERVAL
        self.told = self.upload.offset

    def stop(self, problem: ProtocolError) -> None:
        """Ends the body because somebody else wants it; `problem` is the response."""
        self.stopped = problem
        self.body.stop(BodyEnd.INTERRUPTED)


class BodyReceiver:
    """Takes bodies in for the uploads of one store. access_error: what there is to be said against a request's going on."""

    def __init__(
        self,
        store: Store,
        policy: UploadPolicy,
        hooks: Hooks,
        counters: Counters,
        clock: Callable[[], float],
        *,
        access_error: Callable[[UploadInfo, RequestView], ProtocolError | None],
    ) -> None:
        self._store = store
        self._policy = policy
        self._hooks = hooks
        self._counters = counters
        self._clock = clock
        self._access_error = access_error
        self._transfers: dict[Body, _Transfer] = {}
        self._closing = False

    def close(self) -> None:
        """Ends the bodies in flight, and every one to come, as a shutdown does."""
        self._closing = True
        for body in list(self._transfers):
            body.stop(BodyEnd.SHUTDOWN)

    def recheck_access(self) -> None:
        """Looks again at who may go on, because somebody may not any more: their bodies end, what arrived is kept."""
        for transfer in list(self._transfers.values()):
            self._stop_if_refused(transfer)

    def _stop_if_refused(self, transfer: _Transfer) -> None:
        problem = self._access_error(transfer.upload.info, transfer.request)
        if problem is not None:
            transfer.stop(problem)

    # Before the first byte

    def check(self, upload: Upload, content: Content) -> None:
        """Raises a 413 for a body that says that it is too long, a 400 for a checksum that cannot be verified here."""
        limit, problem = self._limit(upload)
        if (
            limit is not None
            and content.length is not None
            and upload.offset + content.length > limit
        ):
            raise problem()
        if content.verified and not isinstance(self._store, VerifiesChunks):
            raise errors.invalid_checksum("this server's store does not verify checksums")

    def _limit(self, upload: Upload) -> tuple[int | None, Callable[[], ProtocolError]]:
        if upload.length is not None:
            return upload.length, errors.upload_size_exceeded
        return self._policy.most_bytes(upload.info.max_size), errors.max_size_exceeded

    async def check_space(self, needed: int) -> None:
        """Raises a 507 unless the store has room for `needed` bytes beside the reserve."""
        free = await self._store.free_space()
        if free is not None and free < self._policy.disk_reserve + needed:
            logger.warning(
                "refused %d bytes: %d are free, %d are reserved",
                needed,
                free,
                self._policy.disk_reserve,
            )
            raise errors.insufficient_storage()

    # The bytes

    async def receive(
        self, upload: Upload, content: Content, body: Body, lease: Lease, request: RequestView
    ) -> Upload:
        """Brings a body into the store. What arrived counts, however it ends; of a verified chunk all or nothing."""
        limit, over_limit = self._limit(upload)
        verified = None
        if content.verified and isinstance(self._store, VerifiesChunks):
            verified = await self._store.open_verified_writer(
                upload, content.checksum, length=content.length, fence=lease.fence
            )
        writer = verified or await self._store.open_writer(upload, fence=lease.fence)
        transfer = _Transfer(
            upload=upload,
            content=content,
            body=body,
            writer=writer,
            verified=verified,
            lease=lease,
            request=request,
            limit=limit,
            over_limit=over_limit,
        )
        problem: ProtocolError | None = _UNFORESEEN
        try:
            try:
                self._begin(transfer)
                problem = await self._pump(transfer) or await self._verify(transfer)
            finally:
                self._end(transfer)
        finally:
            problem = await self._settle(transfer, problem)
        if problem is not None:
            raise problem
        return Upload(upload.info, writer.offset, self._clock(), upload.joined)

    def _begin(self, transfer: _Transfer) -> None:
        """From now on whoever wants the body's end can have it, and hooks hear of its progress."""
        body = transfer.body
        self._transfers[body] = transfer
        self._counters.uploads_active += 1
        transfer.lease.on_requested(lambda: body.stop(BodyEnd.INTERRUPTED))
        if self._closing:
            body.stop(BodyEnd.SHUTDOWN)
        # What happened since it was allowed was not told to this transfer, which was not there yet.
        self._stop_if_refused(transfer)
        if self._hooks.wants(EventType.POST_RECEIVE):
            self._tell_progress(transfer)

    def _end(self, transfer: _Transfer) -> None:
        """Not any more."""
        transfer.lease.on_requested(None)
        if transfer.progress_timer is not None:
            transfer.progress_timer.cancel()
        if self._transfers.pop(transfer.body, None) is not None:
            self._counters.uploads_active -= 1

    async def _settle(
        self, transfer: _Transfer, problem: ProtocolError | None
    ) -> ProtocolError | None:
        """Lets what arrived count, or takes it back. Without the lock neither: the upload belongs to another holder by now.

        Returns what is to be said then: `problem`, or that a chunk that was found right does not count all the same.
        """
        writer, began = transfer.writer, transfer.upload.offset
        counts = problem is None or not (
            transfer.content.verified or problem.code in NOTHING_COUNTS
        )
        outcome = _outcome(problem, transfer.body, counts)
        self._counters.received(writer.offset - began, outcome)
        if not counts:
            try:
                await writer.discard()
            except LeaseLost:
                writer.abandon()
        try:
            await writer.close(sync=self._policy.durability == "chunk" and writer.offset > began)
        except LeaseLost:
            return problem or errors.interrupted()
        if counts:
            self._tell_last_progress(transfer)
        return problem

    async def _pump(self, transfer: _Transfer) -> ProtocolError | None:
        """Moves bytes until the body ends; returns what is wrong with that end, if anything is."""
        body = transfer.body
        try:
            if not await self._pour(transfer):
                await self._stream(transfer)
        except _Ended as ended:
            return ended.problem
        except LeaseLost:
            return errors.interrupted()
        except StorageFull as problem:
            logger.warning("the store is full: %s", problem)
            return errors.insufficient_storage()
        if body.end is None or body.end is BodyEnd.COMPLETE:
            return None
        return transfer.stopped or _PROBLEM_OF_END[body.end]()

    async def _pour(self, transfer: _Transfer) -> bool:
        """The body on the shortest way; False where there is none, and nothing was taken."""
        writer = transfer.writer
        if _is(ReceivesInPlace, type(writer)):
            place = cast(ReceivesInPlace, writer)
            return await transfer.body.pour(
                lambda view: self._take_in_place(transfer, place, view), place.get_buffer
            )
        return False

    async def _stream(self, transfer: _Transfer) -> None:
        """The body piece by piece, as any ASGI server hands it over."""
        while data := await transfer.body.read():
            self._check_piece(transfer, len(data))
            await transfer.writer.write(data)
            # Not held while the next bytes are waited for, as thousands of requests do at any time.
            del data
            if transfer.writer.offset >= transfer.next_check:
                await self._check_reserve(transfer)

    def _take_in_place(
        self, transfer: _Transfer, writer: ReceivesInPlace, view: memoryview
    ) -> Awaitable[None] | None:
        """The next bytes straight from the socket, at their place already or to be taken elsewhere."""
        self._check_piece(transfer, len(view))
        rest = writer.write_view(view)
        if transfer.writer.offset >= transfer.next_check:
            return self._check_reserve(transfer, rest)
        return rest

    @staticmethod
    def _check_piece(transfer: _Transfer, size: int) -> None:
        if transfer.limit is not None and transfer.writer.offset + size > transfer.limit:
            raise _Ended(transfer.over_limit())
        if not transfer.lease.is_held():
            raise _Ended(errors.interrupted())

    async def _check_reserve(
        self, transfer: _Transfer, rest: Awaitable[None] | None = None
    ) -> None:
        """rest: what else is awaited before there is more."""
        transfer.next_check = transfer.writer.offset + _SPACE_CHECK_INTERVAL
        if rest is not None:
            await rest
        if not self._policy.disk_reserve:
            return
        free = await self._store.free_space()
        if free is not None and free < self._policy.disk_reserve:
            raise _Ended(errors.insufficient_storage())

    def _tell_progress(self, transfer: _Transfer) -> None:
        """Tells hooks how far the upload has come, if it has come further than they know, and again after the interval."""
        if transfer.writer.offset != transfer.told:
            self._hooks.notify_progress(self._progress_event(transfer), transfer.stop)
        transfer.progress_timer = asyncio.get_running_loop().call_later(
            self._policy.progress_interval, self._tell_progress, transfer
        )

    def _tell_last_progress(self, transfer: _Transfer) -> None:
        """Tells hooks how far the request has brought the upload, however short it was, as tusd does."""
        wanted = self._hooks.wants(EventType.POST_RECEIVE)
        if wanted and transfer.writer.offset != transfer.told and transfer.lease.is_held():
            self._hooks.notify_progress_end(self._progress_event(transfer))

    @staticmethod
    def _progress_event(transfer: _Transfer) -> Event:
        transfer.told = transfer.writer.offset
        view = UploadView.of(transfer.upload.info, transfer.told)
        return Event(EventType.POST_RECEIVE, view, transfer.request)

    async def _verify(self, transfer: _Transfer) -> ProtocolError | None:
        """What is wrong with a whole body: another checksum than announced, a trailer that did not come, a lost lock."""
        if not transfer.lease.is_held():
            return errors.interrupted()
        if transfer.verified is None:
            return None
        checksum = transfer.content.checksum
        if checksum is None:
            try:
                checksum = tus.trailing_checksum(transfer.body.trailers())
            except ProtocolError as problem:
                return problem
        try:
            is_right = await transfer.verified.verify(checksum)
        except LeaseLost:
            return errors.interrupted()
        return None if is_right else errors.checksum_mismatch()


@cache
def _is(what: type, kind: type[Writer]) -> bool:
    # For a protocol, isinstance looks at every one of its attributes each time.
    return issubclass(kind, what)


def _outcome(problem: ProtocolError | None, body: Body, counts: bool) -> str:
    if not counts:
        return "discarded"
    if body.end is None or body.end is BodyEnd.COMPLETE:
        return "complete" if problem is None else "failed"
    return str(body.end.value)
