"""The bytes of a request on their way into the store.

What arrived counts, however the request ends, except for a chunk with a checksum, which counts whole or not at all, and for a
request that brings more than the upload has room for. The caller holds the upload's lock and has checked all that can be
checked before the first byte.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

from tusd_py.events import Event, EventType, Hooks, RequestView, UploadView
from tusd_py.locks.base import Lease
from tusd_py.observer import Observer
from tusd_py.protocol import errors, tus
from tusd_py.protocol.checksum import Hasher
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.tus import Content
from tusd_py.rules import Rules
from tusd_py.storage.base import StorageFull, Store, Upload, UploadInfo, VerifiesChunks, Writer

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


class Body(Protocol):
    """The body of a request: every way in which it can end looks like its end, and `end` keeps the reason."""

    end: BodyEnd | None

    async def read(self) -> bytes:
        """The next bytes; empty at the end, whatever ended it."""

    def stop(self, end: BodyEnd) -> None:
        """Ends it from outside: `read` returns at once, and reads no more."""

    def trailers(self) -> Mapping[str, str]:
        """Trailer fields, names in lower case; empty before the end and where the server does not hand them over."""


@dataclass(slots=True)
class _Transfer:
    """One request's bytes. limit: bytes that the upload may have; over_limit: what is said to more of them."""

    content: Content
    body: Body
    limit: int | None
    over_limit: Callable[[], ProtocolError]
    hasher: Hasher | None = field(init=False)

    def __post_init__(self) -> None:
        self.hasher = self.content.checksum.hasher() if self.content.checksum else None


class Reception:
    """Takes bodies in for the uploads of one store."""

    def __init__(
        self,
        store: Store,
        rules: Rules,
        hooks: Hooks,
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._rules = rules
        self._hooks = hooks
        self._observer = observer
        self._clock = clock
        self._bodies: set[Body] = set()
        self._closing = False

    def close(self) -> None:
        """Ends the bodies in flight, and every one to come, as a shutdown does."""
        self._closing = True
        for body in list(self._bodies):
            body.stop(BodyEnd.SHUTDOWN)

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
        return self._rules.max_size or None, errors.max_size_exceeded

    async def check_space(self, needed: int) -> None:
        """Raises a 507 unless the store has room for `needed` bytes beside the reserve."""
        free = await self._store.free_space()
        if free is not None and free < self._rules.disk_reserve + needed:
            logger.warning(
                "refused %d bytes: %d are free, %d are reserved",
                needed,
                free,
                self._rules.disk_reserve,
            )
            raise errors.insufficient_storage()

    # The bytes

    async def receive(
        self, upload: Upload, content: Content, body: Body, lease: Lease, request: RequestView
    ) -> Upload:
        """Brings a body into the store. What arrived counts, however it ends; of a verified chunk all or nothing."""
        limit, over_limit = self._limit(upload)
        transfer = _Transfer(content, body, limit, over_limit)
        if content.verified and isinstance(self._store, VerifiesChunks):
            writer = await self._store.open_verified_writer(upload)
        else:
            writer = await self._store.open_writer(upload)
        problem: ProtocolError | None = errors.internal()
        counts = not content.verified
        began = writer.offset
        self._bodies.add(body)
        self._observer.uploads_active += 1
        try:
            lease.on_requested(lambda: body.stop(BodyEnd.INTERRUPTED))
            if self._closing:
                body.stop(BodyEnd.SHUTDOWN)
            problem = await self._pump(writer, transfer, upload, request)
            if problem is None and content.verified:
                await self._verify(writer, transfer)
                counts = True
            if problem is not None and problem.code in NOTHING_COUNTS:
                counts = False
        except ProtocolError as refusal:
            problem, counts = refusal, False
        finally:
            lease.on_requested(None)
            self._bodies.discard(body)
            self._observer.uploads_active -= 1
            self._observer.received(writer.offset - began, _outcome(problem, body, counts))
            if not counts or not lease.is_held():
                await writer.discard()
            await writer.close(sync=self._rules.durability == "chunk" and writer.offset > began)
        if problem is not None:
            raise problem
        return replace(upload, offset=writer.offset, changed_at=self._clock())

    async def _pump(
        self, writer: Writer, transfer: _Transfer, upload: Upload, request: RequestView
    ) -> ProtocolError | None:
        """Moves bytes until the body ends; returns what is wrong with that end, if anything is."""
        body, limit, hasher = transfer.body, transfer.limit, transfer.hasher
        wants_progress = self._hooks.wants(EventType.POST_RECEIVE)
        next_progress = time.monotonic() + self._rules.progress_interval
        next_check = writer.offset + _SPACE_CHECK_INTERVAL
        while data := await body.read():
            if limit is not None and writer.offset + len(data) > limit:
                return transfer.over_limit()
            try:
                await writer.write(data)
            except StorageFull as problem:
                logger.warning("the store is full: %s", problem)
                return errors.insufficient_storage()
            if hasher is not None:
                hasher.update(data)
            # Not held while the next bytes are waited for, as thousands of requests do at any time.
            del data
            if writer.offset >= next_check:
                next_check = writer.offset + _SPACE_CHECK_INTERVAL
                if not await self._has_reserve():
                    return errors.insufficient_storage()
            if wants_progress and time.monotonic() >= next_progress:
                view = view_of(upload.info, writer.offset)
                stop = await self._hooks.progress(Event(EventType.POST_RECEIVE, view, request))
                if stop is not None:
                    return stop
                next_progress = time.monotonic() + self._rules.progress_interval
        if body.end is None or body.end is BodyEnd.COMPLETE:
            return None
        return _PROBLEM_OF_END[body.end]()

    async def _has_reserve(self) -> bool:
        if not self._rules.disk_reserve:
            return True
        free = await self._store.free_space()
        return free is None or free >= self._rules.disk_reserve

    async def _verify(self, writer: Writer, transfer: _Transfer) -> None:
        """Raises a 460, or a 400 for a trailer that did not come, unless the bytes have the announced checksum."""
        expected, hasher = transfer.content.checksum, transfer.hasher
        if expected is None or hasher is None:
            expected = tus.trailing_checksum(transfer.body.trailers())
            hasher = expected.hasher()
            await writer.feed(hasher)
        if not expected.matches(hasher):
            raise errors.checksum_mismatch()


def view_of(info: UploadInfo, offset: int) -> UploadView:
    """An upload as hooks see it."""
    return UploadView(
        id=info.id,
        length=info.length,
        offset=offset,
        metadata=info.metadata,
        is_partial=info.is_partial,
        is_final=info.is_final,
        parts=info.parts,
        owner=info.owner,
        location=info.location,
    )


def _outcome(problem: ProtocolError | None, body: Body, counts: bool) -> str:
    if not counts:
        return "discarded"
    if body.end is None or body.end is BodyEnd.COMPLETE:
        return "complete" if problem is None else "failed"
    return str(body.end.value)
