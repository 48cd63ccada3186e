"""Receive the body of a request into the store.

The bytes that arrived count, however the request ends. Exceptions: a chunk with a checksum counts whole or not at all, and of a
request with more bytes than the upload may have none count. The caller holds the upload's lock and has checked what can be
checked before the first byte.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from tusd_py.events.hooks import Hooks
from tusd_py.events.model import Event, EventType, RequestView, UploadView
from tusd_py.locks.base import Lease, LeaseLost
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.tus import Content
from tusd_py.storage.base import (
    StorageError,
    StorageFull,
    Store,
    Upload,
    UploadInfo,
    Writer,
)
from tusd_py.telemetry.counters import Counters
from tusd_py.uploads.failures import response_to
from tusd_py.uploads.policy import UploadPolicy
from tusd_py.uploads.quotas import Allowance

logger = logging.getLogger(__name__)

_SPACE_CHECK_INTERVAL_BYTES = 16 * 1024 * 1024


class BodyEnd(Enum):
    """How the body of a request ended."""

    COMPLETE = "complete"
    DISCONNECTED = "disconnected"
    TIMED_OUT = "timed_out"
    INTERRUPTED = "interrupted"
    SHUTDOWN = "shutdown"


ERROR_OF_END: Mapping[BodyEnd, Callable[[], ProtocolError]] = {
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
    "ERR_INVALID_DIGEST",
    "ERR_DIGEST_MISMATCH",
    "ERR_UNSUPPORTED_CHECKSUM_ALGORITHM",
}
"""Codes of errors after which no byte of the request counts."""

_UNFORESEEN = errors.internal()
"""The result assumed until the end of a body is known, for instance when the request is cancelled; never raised."""

WriteView = Callable[[memoryview], "Awaitable[None] | None"]
"""Write the next bytes of a body; the view is valid during the call only. The caller awaits the result, if any, before the next
call. An exception ends the body."""

GetBuffer = Callable[[], "memoryview | None"]
"""Return a buffer for the next bytes; None for no preference. Called before every read, also before those that read nothing."""


class Watcher(Protocol):
    """Told of a request's progress while it is carried out, for interim responses."""

    def created(self, upload: Upload) -> None:
        """The upload exists; its body is received next."""

    def receiving(self, kept: Callable[[], int]) -> None:
        """Bytes are being received; `kept` returns how many of the upload count whatever happens next."""

    def received(self) -> None:
        """No more bytes are received."""


class Body(Protocol):
    """The body of a request. However it ends, `read` reports the end of the body; `end` has the reason.

    watcher: told of the progress, if anybody wants to know.
    """

    end: BodyEnd | None
    watcher: Watcher | None = None

    async def read(self) -> bytes:
        """Return the next bytes; empty at the end, for whatever reason."""

    async def stream_to(self, write: WriteView, get_buffer: GetBuffer) -> bool:
        """Pass the whole body to `write` without going through `read`.

        Args:
            write: Called with each piece.
            get_buffer: Where to receive the pieces, except those that have arrived already.

        Returns:
            False if that is not possible; nothing was read then.

        Raises:
            Exception: What `write` and `get_buffer` raise.
        """

    def stop(self, end: BodyEnd) -> None:
        """End the body early: a waiting `read` returns at once."""

    def trailers(self) -> Mapping[str, str]:
        """The trailer fields, names in lower case; empty before the end, and if the HTTP server does not pass them on."""


class RunningBody(NamedTuple):
    """A body that is being received. offset: of its upload by now. client: `address:port`. key: the same while it runs."""

    upload: Upload
    offset: int
    client: str
    key: int


class _Ended(Exception):
    """The rest of the body is refused."""

    def __init__(self, problem: ProtocolError) -> None:
        super().__init__(problem)
        self.problem = problem


@dataclass(slots=True)
class _Transfer:
    """The body of one request while it is received.

    limit: maximum size of the upload in bytes. over_limit: makes the error for more bytes. finishing, allowance: see `receive`.
    next_check: offset at which to check the free space again. reported: the offset that hooks know. stopped: the response if
    the body was ended from outside. is_told: the client was told that bytes of this body count.
    """

    upload: Upload
    content: Content
    body: Body
    writer: Writer
    lease: Lease
    request: RequestView
    limit: int | None
    over_limit: Callable[[], ProtocolError]
    finishing: bool
    allowance: Allowance | None
    next_check: int = field(init=False)
    reported: int = field(init=False)
    stopped: ProtocolError | None = None
    is_told: bool = False
    progress_timer: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self.next_check = self.writer.offset + _SPACE_CHECK_INTERVAL_BYTES
        self.reported = self.upload.offset

    def tell(self) -> int:
        """The offset that counts whatever follows, to be told to the client."""
        kept = self.writer.kept
        self.is_told = self.is_told or kept > self.upload.offset
        return kept

    def counts(self, problem: ProtocolError | None) -> bool:
        """Whether the bytes that arrived count although the request ends with this error."""
        if problem is None:
            return True
        if self.content.verified:
            return False
        # A body without a length that proves too long: its client may rely on what it was told (R2).
        return problem.code not in NOTHING_COUNTS or (
            self.is_told and problem.code == "ERR_MAX_SIZE_EXCEEDED"
        )

    def stop(self, problem: ProtocolError) -> None:
        """End the body from outside; `problem` is the response."""
        self.stopped = problem
        self.body.stop(BodyEnd.INTERRUPTED)


@dataclass(slots=True, eq=False, repr=False)
class BodyReceiver:
    """Receives bodies for the uploads of one store.

    access_error: the error if a request that is adding bytes has lost its permission; None if it may continue.
    """

    store: Store
    policy: UploadPolicy
    hooks: Hooks
    counters: Counters
    clock: Callable[[], float]
    access_error: Callable[[UploadInfo, RequestView], ProtocolError | None]
    _transfers: dict[Body, _Transfer] = field(default_factory=dict)
    _closing: bool = False

    def close(self) -> None:
        """End all bodies, those in flight and those to come, because the server shuts down."""
        self._closing = True
        for body in list(self._transfers):
            body.stop(BodyEnd.SHUTDOWN)

    def recheck_access(self) -> None:
        """End the bodies of requests that have lost their permission; the bytes that arrived are kept."""
        for transfer in list(self._transfers.values()):
            self._stop_if_refused(transfer)

    def running(self) -> Iterator[RunningBody]:
        """The bodies that are being received."""
        for transfer in self._transfers.values():
            yield RunningBody(
                transfer.upload, transfer.writer.offset, transfer.request.client, id(transfer)
            )

    def _stop_if_refused(self, transfer: _Transfer) -> None:
        problem = self.access_error(transfer.upload.info, transfer.request)
        if problem is not None:
            transfer.stop(problem)

    # Before the first byte

    def check(self, upload: Upload, content: Content) -> None:
        """Raise a 413 for a body whose declared length is too large, a 400 for a checksum that the store cannot verify."""
        limit, problem = self._limit(upload)
        if (
            limit is not None
            and content.length is not None
            and upload.offset + content.length > limit
        ):
            raise problem()
        if content.verified and not self.store.verifies_chunks:
            raise errors.invalid_checksum("this server's store does not verify checksums")

    def _limit(self, upload: Upload) -> tuple[int | None, Callable[[], ProtocolError]]:
        if upload.length is not None:
            return upload.length, errors.upload_size_exceeded
        return self.policy.limit_of(upload)

    async def check_space(self, needed: int) -> None:
        """Raise a 507 unless the store has space for `needed` bytes besides the reserve."""
        free = await self.store.free_space()
        if free is not None and free < self.policy.disk_reserve + needed:
            logger.warning(
                "refused %d bytes: %d are free, %d are reserved",
                needed,
                free,
                self.policy.disk_reserve,
            )
            raise errors.insufficient_storage()

    # The bytes

    async def receive(
        self,
        upload: Upload,
        content: Content,
        body: Body,
        lease: Lease,
        request: RequestView,
        *,
        finishing: bool,
        allowance: Allowance | None = None,
    ) -> Upload:
        """Write a body to the store.

        Args:
            upload: The upload, with its lock held.
            content: The length and the checksum that the request declares.
            body: The body.
            lease: The upload's lock; a request to release it ends the body.
            request: For the hooks.
            finishing: The caller finishes the upload if the body completes it, and calls `Store.settle` in any case.
            allowance: How large the upload may become; None for no limit but its own.

        Returns:
            The upload with its new offset.

        Raises:
            ProtocolError: The body ended early or was refused; the bytes that arrived count all the same, unless the code is in
                `NOTHING_COUNTS` or the chunk has a checksum.
            StorageError: The store failed.
        """
        writer = await self.store.open_writer(upload, content, fence=lease.fence)
        limits = self._limit(upload)
        transfer = _Transfer(
            upload, content, body, writer, lease, request, *limits, finishing, allowance
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
            try:
                raise problem
            finally:
                # Its traceback refers to this frame: a reference cycle would keep all of it until the garbage collector runs.
                del problem
        return Upload(upload.info, writer.offset, self.clock(), upload.joined)

    def _begin(self, transfer: _Transfer) -> None:
        """Start tracking the transfer: let others end it, and report its progress to hooks."""
        body = transfer.body
        self._transfers[body] = transfer
        self.counters.uploads_active += 1
        transfer.lease.on_requested(lambda: body.stop(BodyEnd.INTERRUPTED))
        if self._closing:
            body.stop(BodyEnd.SHUTDOWN)
        # A revocation since the check of the request did not reach this transfer, which was not tracked yet.
        self._stop_if_refused(transfer)
        if self.hooks.wants(EventType.POST_RECEIVE):
            self._report_progress(transfer)
        if body.watcher is not None:
            body.watcher.receiving(transfer.tell)

    def _end(self, transfer: _Transfer) -> None:
        """Stop tracking the transfer: detach the lease callback, cancel the progress timer."""
        transfer.lease.on_requested(None)
        if transfer.progress_timer is not None:
            transfer.progress_timer.cancel()
        if transfer.body.watcher is not None:
            transfer.body.watcher.received()
        if self._transfers.pop(transfer.body, None) is not None:
            self.counters.uploads_active -= 1

    async def _settle(
        self, transfer: _Transfer, problem: ProtocolError | None
    ) -> ProtocolError | None:
        """Commit the bytes that arrived, or discard them. If the lock was lost do neither: another holder has the upload.

        Returns the error of the request: `problem`, or a new one if verified bytes could not be committed.
        """
        writer, began = transfer.writer, transfer.upload.offset
        counts = transfer.counts(problem)
        outcome = _outcome(problem, transfer.body, counts)
        self.counters.bytes_received[outcome] += writer.offset - began
        if not counts:
            await self._discard(writer)
        try:
            await writer.close(
                sync=self.policy.durability == "chunk" and writer.offset > began,
                finishing=transfer.finishing and problem is None,
            )
        except LeaseLost:
            return problem or errors.interrupted()
        if counts:
            self._report_last_progress(transfer)
        return problem

    @staticmethod
    async def _discard(writer: Writer) -> None:
        """Take back what was written, unless another holder has the upload. Raises StorageError, with the writer closed."""
        try:
            await writer.discard()
        except LeaseLost:
            writer.abandon()
        except BaseException:
            # What could not be taken back must not count either: the marker stays for the next request to cut back to.
            writer.abandon()
            with suppress(StorageError, LeaseLost):
                await writer.close(sync=False)
            raise

    async def _pump(self, transfer: _Transfer) -> ProtocolError | None:
        """Write bytes until the body ends; return the error if it ended early."""
        body = transfer.body
        try:
            # More of a quota is reserved before bytes are written. Those straight from the socket cannot wait for that.
            if transfer.allowance is not None or not await body.stream_to(
                lambda view: self._write(transfer, view), transfer.writer.get_buffer
            ):
                await self._stream(transfer)
        except _Ended as ended:
            return ended.problem
        except (LeaseLost, StorageFull) as problem:
            return response_to(problem)
        if body.end is None or body.end is BodyEnd.COMPLETE:
            return None
        return transfer.stopped or ERROR_OF_END[body.end]()

    async def _stream(self, transfer: _Transfer) -> None:
        """Receive the body piece by piece, from any ASGI server."""
        allowance = transfer.allowance
        while data := await transfer.body.read():
            if allowance is not None:
                needed = transfer.writer.offset + len(data)
                if needed > allowance.size:
                    await allowance.extend(needed)
            rest = self._write(transfer, memoryview(data))
            # Free it before waiting for the next bytes: thousands of requests wait at any time.
            del data
            if rest is not None:
                await rest

    def _write(self, transfer: _Transfer, view: memoryview) -> Awaitable[None] | None:
        """Write bytes that lie in the writer's buffer already, or elsewhere; returns what to await before the next ones."""
        writer, allowance = transfer.writer, transfer.allowance
        end = writer.offset + len(view)
        if transfer.limit is not None and end > transfer.limit:
            raise _Ended(transfer.over_limit())
        if allowance is not None and end > allowance.size:
            raise _Ended(allowance.refusal(writer.offset))
        if not transfer.lease.is_held():
            raise _Ended(errors.interrupted())
        rest = writer.write(view)
        if writer.offset >= transfer.next_check:
            return self._check_reserve(transfer, rest)
        return rest

    async def _check_reserve(self, transfer: _Transfer, rest: Awaitable[None] | None) -> None:
        """Refuse the rest of the body if the free space is below the reserve. rest: a write to await first."""
        transfer.next_check = transfer.writer.offset + _SPACE_CHECK_INTERVAL_BYTES
        if rest is not None:
            await rest
        if not self.policy.disk_reserve:
            return
        free = await self.store.free_space()
        if free is not None and free < self.policy.disk_reserve:
            raise _Ended(errors.insufficient_storage())

    def _report_progress(self, transfer: _Transfer) -> None:
        """Report the offset to hooks if it has changed, and schedule the next report."""
        if transfer.writer.offset != transfer.reported:
            self.hooks.notify_progress(self._progress_event(transfer), transfer.stop)
        transfer.progress_timer = asyncio.get_running_loop().call_later(
            self.policy.progress_interval, self._report_progress, transfer
        )

    def _report_last_progress(self, transfer: _Transfer) -> None:
        """Report the last offset of the request to hooks, however short the request was, as tusd does."""
        wanted = self.hooks.wants(EventType.POST_RECEIVE)
        if wanted and transfer.writer.offset != transfer.reported and transfer.lease.is_held():
            self.hooks.notify_progress_end(self._progress_event(transfer))

    def _progress_event(self, transfer: _Transfer) -> Event:
        transfer.reported = transfer.writer.offset
        info = transfer.upload.info
        view = UploadView.of(info, transfer.reported, self.store.path_of(info))
        return Event(EventType.POST_RECEIVE, view, transfer.request)

    async def _verify(self, transfer: _Transfer) -> ProtocolError | None:
        """The error of a body that arrived whole: wrong checksum, missing trailer, lost lock. None if there is none."""
        if not transfer.lease.is_held():
            return errors.interrupted()
        if not transfer.content.verified:
            return None
        checksum = transfer.content.checksum
        if checksum is None:
            try:
                checksum = transfer.content.read_trailer(transfer.body.trailers())
            except ProtocolError as problem:
                return problem
        try:
            is_right = await transfer.writer.verify(checksum)
        except LeaseLost:
            return errors.interrupted()
        return None if is_right else errors.checksum_mismatch()


def _outcome(problem: ProtocolError | None, body: Body, counts: bool) -> str:
    if not counts:
        return "discarded"
    if body.end is None or body.end is BodyEnd.COMPLETE:
        return "complete" if problem is None else "failed"
    return str(body.end.value)
