"""The operations on uploads: create, append, finish, join, terminate, expire. The rules about them are all here.

Commands come from `protocol/`, already well-formed. They are checked against the upload under its lock, before the first byte
of a body is read. The bytes that arrived are kept however the request ends, except for a chunk with a checksum, which counts
whole or not at all. The states of an upload are in `model.py`. Not for: header fields, sockets, files.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType

from tusd_py.auth.policy import AccessPolicy
from tusd_py.auth.principal import ANYBODY, Action
from tusd_py.auth.quota import OpenUploads
from tusd_py.background import spawn
from tusd_py.events.hooks import NO_CREATION_HOOKS, Hooks
from tusd_py.events.model import Changes, Event, EventType, HookResponse, RequestView, UploadView
from tusd_py.events.publisher import EventPublisher
from tusd_py.locks.base import (
    UNFENCED,
    Fence,
    Lease,
    LeaseLost,
    Locks,
    LocksClosed,
    LocksUnavailable,
    LockTimeout,
    UncontestedLease,
)
from tusd_py.metrics.counters import Counters
from tusd_py.protocol import errors, metadata
from tusd_py.protocol.concat import Partial
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.tus import Append, Content, Creation
from tusd_py.storage.base import (
    TIME_DIGITS,
    BytesMissing,
    BytesNotKept,
    Reader,
    RemovalEvent,
    StorageError,
    StorageFull,
    Store,
    UnpublishedRemoval,
    Upload,
    UploadDamaged,
    UploadExists,
    UploadGone,
    UploadInfo,
    UploadNotFound,
    UploadUntrusted,
    VolumeMissing,
    is_valid_id,
)
from tusd_py.uploads.concatenation import Concatenation, final_key
from tusd_py.uploads.due_marks import DueMarks, NoDueMarks
from tusd_py.uploads.model import UploadState, state_of
from tusd_py.uploads.policy import UploadPolicy
from tusd_py.uploads.receive import NOTHING_COUNTS, Body, BodyReceiver

logger = logging.getLogger(__name__)

_ID_BYTES = 16
"""Random bytes of an id: without authentication, it is the only secret that protects an upload."""
_NO_CHANGES = Changes()
_KEY_LOCK = ".final/"
"""Prefix of the name that is locked while a final is created; no upload has such an id."""
_NO_RESPONSE = {"ERR_CONNECTION_RESET", "ERR_READ_TIMEOUT", "ERR_UPLOAD_INTERRUPTED"}
"""Codes of early ends of a creation's body after which the client gets no response, and asks for the offset."""
_REMOVAL_BATCH = 64
"""Parts that are removed together."""
_RECOVERY_DELAY_SECONDS = 60.0
"""Time after which the sweep checks an upload whose finish, join or removal was interrupted."""


@dataclass(frozen=True, slots=True)
class Result:
    """The upload after a command. problem: the error if the body of its creation ended early. response: changes by hooks."""

    upload: Upload
    problem: ProtocolError | None = None
    response: HookResponse | None = None


class Uploads:
    """The uploads of one store.

    Args:
        store: Holds the uploads.
        locks: One lock an upload.
        policy: What the operator allows.
        hooks: Called in this process.
        publisher: Publishes events, also to hooks that workers call.
        counters: Counts for the metrics.
        due_marks: Records when uploads are due.
        access_policy: Which principal may do what.
        open_uploads: Limits the unfinished uploads of an owner; None for no limits.
        clock: Returns seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        locks: Locks,
        *,
        policy: UploadPolicy | None = None,
        hooks: Hooks | None = None,
        publisher: EventPublisher | None = None,
        counters: Counters | None = None,
        due_marks: DueMarks | None = None,
        access_policy: AccessPolicy | None = None,
        open_uploads: OpenUploads | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self._joiner = store.joiner
        self.access_policy = access_policy or AccessPolicy()
        self._open_uploads = open_uploads
        self.policy = policy or UploadPolicy()
        self.hooks = hooks or Hooks()
        self._publisher = publisher or EventPublisher(self.hooks)
        self._locks = locks
        self._counters = counters or Counters()
        self._due_marks: DueMarks = due_marks or NoDueMarks()
        self._clock = clock
        self._receiver = BodyReceiver(
            store, self.policy, self.hooks, self._counters, clock, access_error=self._access_error
        )
        self._concatenation = Concatenation(
            store,
            self.policy,
            load=self._current,
            finish_part=self.recover_interrupted,
            check_space=self._receiver.check_space,
            on_ready=self._mark_due_soon,
            clock=clock,
        )
        self._background: set[asyncio.Task[None]] = set()
        self._closing = False

    def extensions(self, *, trailers: bool) -> list[str]:
        """The extensions of tus 1.0.0 on offer, by the capabilities of the store and the policy.

        trailers: whether the HTTP server passes trailer fields on.
        """
        joins = self._joiner is not None and self.policy.concatenation
        verifies = self.store.verifies_chunks
        offered = {
            "creation": True,
            "creation-with-upload": True,
            "creation-defer-length": True,
            "expiration": self.policy.expire_after > 0,
            "checksum": verifies,
            "checksum-trailer": verifies and trailers,
            "termination": self.policy.termination,
            "concatenation": joins,
            "concatenation-unfinished": joins,
        }
        return [name for name, holds in offered.items() if holds]

    def expires_at(self, upload: Upload) -> float | None:
        """When an upload expires if no byte comes, in seconds since the epoch; None for never.

        Parts expire even when they are finished, as they are useless by themselves.
        """
        if upload.expires_at is not None:
            return None if upload.expires_at == float("inf") else upload.expires_at
        after = self.expire_after(upload.info)
        if not after or (upload.finished and not upload.info.is_partial):
            return None
        return upload.changed_at + after

    def expire_after(self, info: UploadInfo) -> float:
        """Seconds without a byte after which an unfinished upload expires; 0 for never."""
        return self.policy.expire_after if info.expire_after is None else info.expire_after

    def due_at(self, upload: Upload) -> float | None:
        """When an upload is to be removed, in seconds since the epoch: at its expiry, or at the end of its retention."""
        finished_at = upload.info.finished_at
        if finished_at is None or upload.info.is_partial:
            return self.expires_at(upload)
        retain = upload.info.retain
        if retain is None:
            retain = self.policy.retain_finished
        return finished_at + retain if retain else None

    # Creation

    async def create(
        self, command: Creation, parts: Sequence[str], body: Body, request: RequestView
    ) -> Result:
        """Create an upload (POST), with the bytes of the body if the request has any ("Creation", "Creation With Upload").

        Args:
            command: The parsed request.
            parts: Ids of the parts if the upload is a final ("Concatenation").
            body: The body.
            request: For access, hooks and events.

        Raises:
            ProtocolError: The request is refused; nothing was created.
        """
        self._refuse_when_closing()
        await self._wait_for_hooks()
        owner = self.access_policy.creator(request.principal, parts)
        with _translated:
            info = UploadInfo(
                id=os.urandom(_ID_BYTES).hex(),
                length=command.length,
                metadata=command.metadata,
                metadata_header=command.metadata_header,
                concat_header=command.concat_header,
                is_partial=isinstance(command.concat, Partial),
                is_final=bool(parts),
                parts=tuple(parts),
                created_at=self._clock(),
                owner=owner,
                max_size=request.principal.limits.max_upload_size,
            )
            if command.concat is not None and not self.policy.concatenation:
                raise errors.invalid_concat("concatenation is disabled on this server")
            if info.is_final:
                return await self._create_final(info, body, request)
            content = command.content
            self._check_creation(info, content)
            await self._receiver.check_space(
                info.length or (content.length if content else None) or 0
            )
            return await self._create(info, content, body, request)

    async def _create_final(self, info: UploadInfo, body: Body, request: RequestView) -> Result:
        """Create a final, or return the one that an earlier, equal request created, as its response may have been lost."""
        key = final_key(info)
        try:
            async with self._held(f"{_KEY_LOCK}{key}", request_release=False):
                found = await self._same_final(key, info)
                if found is None:
                    return await self._create_new_final(info, key, body, request)
        except LockTimeout:
            # Another request is joining it.
            found = await self._same_final(key, info)
            if found is None:
                raise errors.locked() from None
        await self._check_repeat(found, info, request)
        return Result(found)

    async def _create_new_final(
        self, info: UploadInfo, key: str, body: Body, request: RequestView
    ) -> Result:
        sources = await self._concatenation.parts(
            info.parts, lambda part: self._check(part, request, Action.JOIN)
        )
        info = replace(
            info,
            length=self._concatenation.length_of(info.parts, sources),
            max_size=_least(info, *(part.info for part in sources.values())),
        )
        self._check_creation(info, None)
        self._concatenation.check_repeats(info.parts, sources)
        await self._receiver.check_space(info.length or 0)
        return await self._create(info, None, body, request, key=key)

    async def _same_final(self, key: str, info: UploadInfo) -> Upload | None:
        """The existing final with the same parts, owner and metadata as `info`; None if there is none."""
        if self._joiner is None or (final_id := await self._joiner.recall_final(key)) is None:
            return None
        try:
            found = await self.load(final_id)
        except (UploadNotFound, UploadGone):
            return None
        # The id may belong to another upload now.
        is_same = (found.info.parts, found.info.owner) == (info.parts, info.owner)
        return found if is_same and not self.is_due(found) else None

    async def _check_repeat(self, found: Upload, info: UploadInfo, request: RequestView) -> None:
        """Raise the refusal of a repeated creation, if there is one other than that the final exists."""
        if request.principal.owner:
            self._check(found.info, request, Action.INSPECT)
        if not self.hooks.wants(EventType.PRE_CREATE):
            return
        event = Event(EventType.PRE_CREATE, UploadView.of(info, 0), request)
        try:
            creation = await self.hooks.before_creation(event)
        except ProtocolError as problem:
            if problem.code != errors.DUPLICATE_UPLOAD:
                raise
        else:
            # Nothing is created: the hooks undo their reservations.
            await creation.failed()

    async def find_part(self, ids: Sequence[str], request: RequestView) -> str:
        """The first of `ids`, the candidates for one URL, of an upload that the client may join. Raises a 404.

        A single candidate is not loaded here, as `create` loads every part.
        """
        if len(ids) == 1:
            return ids[0]
        for part_id in ids:
            with _translated, suppress(UploadNotFound, UploadGone):
                part = (await self.store.load(part_id)).info
                try:
                    self._check(part, request, Action.JOIN)
                except ProtocolError as problem:
                    if problem.status == 404:
                        continue
                    raise
                return part_id
        raise errors.not_found()

    def _check_creation(self, info: UploadInfo, content: Content | None) -> None:
        maximum = self.policy.most_bytes(info.max_size)
        if maximum is not None and info.length is not None and info.length > maximum:
            raise errors.max_size_exceeded()
        if content is not None:
            self._receiver.check(Upload(info, 0, info.created_at), content)

    async def _create(
        self,
        info: UploadInfo,
        content: Content | None,
        body: Body,
        request: RequestView,
        *,
        key: str = "",
    ) -> Result:
        """Call the pre-create hooks, create the upload and add the bytes of the body.

        key: of a final, which makes its creation idempotent.
        """
        created = False
        creation = NO_CREATION_HOOKS
        if self.hooks.wants(EventType.PRE_CREATE):
            event = Event(EventType.PRE_CREATE, UploadView.of(info, 0), request)
            creation = await self.hooks.before_creation(event)
        try:
            info = self._with_changes(info, creation.changes)
            await self._count(info, request)
            async with _Holding(self._creation_lease(info, content, creation.changes)) as lease:
                upload = await self._record(info, key, request, lease.fence)
                created = True
                result = await self._fill(upload, content, body, request, lease)
        except BaseException as problem:
            # Undone before the response, so that a reservation does not block the next attempt.
            if not created or isinstance(problem, ProtocolError | StorageError):
                await creation.failed()
                await self._uncount(info, request)
            raise
        if result.problem is not None and result.problem.code not in _NO_RESPONSE:
            await creation.failed()
        wanted = creation.changes.response
        return result if wanted is None or result.response else replace(result, response=wanted)

    async def _count(self, info: UploadInfo, request: RequestView) -> None:
        """Count a new upload of its owner. Raises a 429 if the owner has the maximum of unfinished uploads."""
        limit = request.principal.limits.max_open_uploads
        if limit is not None and self._open_uploads is not None:
            await self._open_uploads.enter(info.owner, info.id, limit, self._is_open)

    async def _uncount(self, info: UploadInfo, request: RequestView) -> None:
        if request.principal.limits.max_open_uploads is not None and self._open_uploads is not None:
            await self._open_uploads.leave(info.owner, info.id)

    async def _is_open(self, upload_id: str) -> bool | None:
        try:
            return not (await self._current(upload_id)).finished
        except UploadNotFound:
            return None
        except (UploadGone, ProtocolError):
            return False

    @staticmethod
    def _with_changes(info: UploadInfo, changes: Changes) -> UploadInfo:
        """The record of a new upload with the changes of the hooks."""
        if changes is NO_CREATION_HOOKS.changes or changes == _NO_CHANGES:
            return info
        for path in (changes.id, changes.storage_path):
            if path is not None and not is_valid_id(path):
                logger.error("a pre-create hook chose %r, which cannot name an upload", path)
                raise errors.internal()
        if changes.metadata is not None:
            pairs = dict(changes.metadata)
            info = replace(info, metadata=pairs, metadata_header=metadata.serialize(pairs))
        return replace(
            info,
            id=info.id if changes.id is None else changes.id,
            location=changes.storage_path,
            expire_after=changes.expire_after,
            retain=changes.retain,
        )

    async def _record(
        self, info: UploadInfo, key: str, request: RequestView, fence: Fence
    ) -> Upload:
        """Create the upload in the store; join a final if its parts are finished. All or nothing."""
        joiner = self._joiner if key else None
        if joiner is not None:
            # First: without its key, a repeated request would create, join and publish the final twice.
            await joiner.remember_final(key, info.id)
        upload = await self.store.create(info, fence=fence)
        try:
            if info.is_final:
                upload = await self._concatenation.begin(upload, fence)
            elif self.policy.durability == "chunk":
                await self.store.sync(upload, fence=fence)
            await self._publisher.record(EventType.POST_CREATE, upload, request, fence)
        except BaseException:
            with suppress(LeaseLost):
                await self._remove_failed(upload, fence)
            if joiner is not None:
                with suppress(StorageError):
                    await joiner.forget_final(key)
            raise
        self._counters.uploads_created += 1
        self._due_marks.mark(upload.id, self.due_at(upload))
        self._publisher.publish(EventType.POST_CREATE, upload, request)
        return upload

    async def _fill(
        self,
        upload: Upload,
        content: Content | None,
        body: Body,
        request: RequestView,
        lease: Lease,
    ) -> Result:
        """Add the bytes that came with the creation, and finish the upload if it is complete."""
        try:
            if content is not None:
                upload = await self._receiver.receive(upload, content, body, lease, request)
            return await self._finish(upload, request, lease.fence)
        except LeaseLost:
            return Result(await self._reload(upload), errors.interrupted())
        except ProtocolError as problem:
            if problem.code in NOTHING_COUNTS:
                # No byte counts and the client does not know its URL, so the upload is useless.
                await self._remove_unfilled(upload, request, lease)
                raise
            return Result(await self._reload(upload), problem)
        except StorageError as problem:
            return Result(await self._reload(upload), _response_to(problem))

    async def _reload(self, upload: Upload) -> Upload:
        """Load an upload again. Raises UploadNotFound if its id belongs to another one by now, as after a lost lease."""
        found = await self.store.load(upload.id)
        if (found.info.created_at, found.info.owner) != (upload.info.created_at, upload.info.owner):
            raise UploadNotFound(f"{upload.id} was replaced by another upload meanwhile")
        return found

    async def _remove_unfilled(self, upload: Upload, request: RequestView, lease: Lease) -> None:
        """Remove a new upload whose creation hooks know already."""
        kind, fences = EventType.POST_TERMINATE, {upload.id: lease.fence}
        unpublished = await self._publisher.record_removals(kind, [upload], request, fences)
        await self._remove_failed(upload, lease.fence, unpublished.get(upload.id))
        await self._record_late(unpublished, [upload], request, keep_tombstone=False)
        self._publisher.publish(kind, upload, request)

    async def _remove_failed(
        self, upload: Upload, fence: Fence, unpublished: RemovalEvent | None = None
    ) -> None:
        """Remove an upload whose creation failed. Raises LeaseLost if another holder has it by now."""
        self._due_marks.mark(upload.id, None)
        with suppress(StorageError):
            await self.store.remove(
                upload.id, fence=fence, keep_tombstone=False, unpublished=unpublished
            )

    # Reading about uploads

    async def inspect(self, upload_id: str, request: RequestView) -> Upload:
        """Return an upload (HEAD). A request that is writing to it is asked to release its lock, so that the offset is final.

        First finishes the upload if a crash interrupted that. Raises ProtocolError.
        """
        self._refuse_when_closing()
        with _translated:
            free = self._try_acquire_local(upload_id, request)
            if free is not None:
                # Nobody can change the upload between a look at who may read it and a second one: one load is enough.
                try:
                    upload = await self._load_checked(upload_id, request, Action.INSPECT)
                    return upload if upload.finished else await self._settle(upload, request, free)
                finally:
                    await free.release()
            upload = await self._load_checked(upload_id, request, Action.INSPECT)
            await self._call_access_hooks(upload, request)
            if upload.finished:
                return upload
            async with self._held(upload_id) as lease:
                # Checked again: the id may belong to another owner's upload by now.
                upload = await self._load_checked(upload_id, request, Action.INSPECT)
                return await self._settle(upload, request, lease)

    async def _settle(self, upload: Upload, request: RequestView, lease: Lease) -> Upload:
        """Bring an upload whose lock is held to the state that its bytes imply: recovered, joined, finished."""
        fence = lease.fence
        upload = await self.store.recover(upload, fence=fence)
        if upload.info.is_final and not upload.joined:
            upload = await self._concatenation.try_join(upload, fence)
        return (await self._finish(upload, request, fence)).upload

    def _try_acquire_local(self, upload_id: str, request: RequestView) -> Lease | None:
        """Acquire a free lock that lives in this process, where neither tokens nor hooks decide who may read an upload."""
        if not request.principal.unrestricted or self.hooks.wants(EventType.PRE_ACCESS):
            return None
        lease = self._locks.try_acquire(upload_id)
        if lease is not None:
            self._counters.lock_waits.observe(0.0)
        return lease

    async def open_download(self, upload_id: str, request: RequestView) -> tuple[Upload, Reader]:
        """Return a finished upload and a reader of its bytes, which the caller closes (GET). Needs no lock.

        Raises a 404 for uploads that are unknown, removed or unfinished.
        """
        self._refuse_when_closing()
        if not self.policy.downloads:
            raise errors.method_not_allowed("HEAD, PATCH, DELETE, OPTIONS")
        with _translated:
            try:
                try:
                    upload = await self.store.load(upload_id)
                except (UploadDamaged, BytesMissing) as problem:
                    self._check(problem.upload.info, request, Action.DOWNLOAD)
                    raise
                self._check(upload.info, request, Action.DOWNLOAD)
                if not upload.finished or self.is_due(upload):
                    raise errors.not_served()
                await self._call_access_hooks(upload, request)
                return upload, await self.store.open_reader(upload)
            except UploadGone:
                raise errors.not_found() from None

    # Growing

    async def append(
        self, upload_id: str, command: Append, body: Body, request: RequestView
    ) -> Result:
        """Append the body at `command.offset` (PATCH), and finish the upload if it is complete.

        Raises:
            ProtocolError: The request is refused, or its body ended early; the bytes that arrived are kept then.
        """
        self._refuse_when_closing()
        await self._wait_for_hooks()
        with _translated:
            # Before the lock is requested: a client without access must not interrupt the holder.
            await self._check_access(upload_id, request, Action.APPEND)
            async with self._held(upload_id) as lease:
                upload = await self.store.recover(
                    await self._load_checked(upload_id, request, Action.APPEND), fence=lease.fence
                )
                if upload.info.is_final:
                    raise errors.modify_final()
                if command.offset != upload.offset:
                    raise errors.mismatched_offset(upload.offset)
                declared = self._declared(upload, command.length)
                self._receiver.check(declared, command.content)
                await self._receiver.check_space(command.content.length or 0)
                if declared.info is not upload.info:
                    await self.store.save(declared.info, fence=lease.fence)
                upload = await self._receiver.receive(
                    declared, command.content, body, lease, request
                )
                self._due_marks.mark(upload_id, self.due_at(upload))
                await self._concatenation.record_growth(upload)
                return await self._finish(upload, request, lease.fence)

    def _declared(self, upload: Upload, length: int | None) -> Upload:
        """The upload with the length that the request declares ("Creation", Upload-Defer-Length). Raises a 400 or 413."""
        if length is None or length == upload.length:
            return upload
        if upload.length is not None:
            raise errors.contradictory_length("the upload's length is known and cannot be changed")
        if length < upload.offset:
            raise errors.contradictory_length(
                "Upload-Length is less than what was uploaded already"
            )
        maximum = self.policy.most_bytes(upload.info.max_size)
        if maximum is not None and length > maximum:
            raise errors.max_size_exceeded()
        return upload.with_info(length=length)

    # Finishing

    async def _finish(self, upload: Upload, request: RequestView, fence: Fence) -> Result:
        """If all bytes are there: sync them, call the pre-finish hooks, record the finish and publish it. Under the lock, once.

        The lock may be lost at every await, so everything is recorded within the fence. Raises LeaseLost.
        """
        if upload.finished or not upload.complete:
            return Result(upload)
        # If anything fails from here on, or the server is killed, the sweep tries again soon.
        self._mark_due_soon(upload.id)
        durable = self.policy.durability != "none"
        response: HookResponse | None = None
        if not upload.info.is_partial and self.hooks.wants(EventType.PRE_FINISH):
            if durable:
                await self.store.sync(upload, fence=fence)
                # Not if another holder has the upload by now.
                with fence():
                    pass
            event = Event(EventType.PRE_FINISH, UploadView.of(upload.info, upload.offset), request)
            response = (await self.hooks.decide(event)).response
        finished = upload.with_info(finished_at=round(self._clock(), TIME_DIGITS))
        if not upload.info.is_partial:
            await self._publisher.record(EventType.POST_FINISH, finished, request, fence)
        try:
            await self.store.finish(finished.info, sync=durable, fence=fence)
        except (StorageError, LeaseLost):
            await self._unfinish(upload, fence)
            raise
        # Cleared first: a later time than the one marked above would be ignored.
        self._due_marks.mark(upload.id, None)
        self._due_marks.mark(upload.id, self.due_at(finished))
        if upload.info.is_partial:
            await self._wake_finals(upload.id, request)
        else:
            self._counters.uploads_finished += 1
            self._publisher.publish(EventType.POST_FINISH, finished, request)
            if finished.info.is_final and self.policy.remove_parts_when_joined:
                spawn(self._remove_parts(finished), "removal of parts", self._background)
        return Result(finished, response=response)

    async def _unfinish(self, upload: Upload, fence: Fence) -> None:
        """Undo a finish that failed: restore the unfinished record, and withdraw the event.

        If another holder has the upload by now, it does both when it finishes or removes the upload.
        """
        with suppress(StorageError, LeaseLost):
            await self.store.save(upload.info, fence=fence)
            await self._publisher.withdraw(EventType.POST_FINISH, upload, fence)

    def _mark_due_soon(self, upload_id: str) -> None:
        """Have the sweep check an upload soon, in case the current operation on it is interrupted."""
        self._due_marks.mark(upload_id, self._clock() + _RECOVERY_DELAY_SECONDS)

    # Joining

    async def _wake_finals(self, part_id: str, request: RequestView) -> None:
        """Try to join the finals that wait for a finished part, in the background."""
        if self._joiner is None:
            return
        for final_id in await self._joiner.finals_awaiting(part_id):
            spawn(self._complete_final(final_id, request), "join", self._background)

    async def _complete_final(self, final_id: str, request: RequestView) -> None:
        try:
            # The client of the part may have no access to the final.
            await self.inspect(final_id, replace(request, principal=ANYBODY))
        except ProtocolError as problem:
            # The next HEAD of the final, or the sweep, tries again.
            logger.warning("final upload %s was not joined yet: %s", final_id, problem)

    async def _remove_parts(self, final: Upload) -> None:
        """Remove the parts of a finished final that no other final waits for. The sweep retries what fails."""
        part_ids = list(dict.fromkeys(final.info.parts))
        for part_id in part_ids:
            self._mark_due_soon(part_id)
        try:
            for at in range(0, len(part_ids), _REMOVAL_BATCH):
                await self.expire_each(part_ids[at : at + _REMOVAL_BATCH])
        except (LocksUnavailable, LocksClosed, StorageError) as problem:
            logger.warning("parts of %s were not removed yet: %s", final.id, problem)

    # Ending

    async def terminate(self, upload_id: str, request: RequestView) -> HookResponse | None:
        """Remove an upload, finished or not, after ending a request that is writing to it (DELETE).

        Returns the response that hooks want. Raises ProtocolError.
        """
        self._refuse_when_closing()
        await self._wait_for_hooks()
        if not self.policy.termination:
            raise errors.method_not_allowed("HEAD, PATCH, GET, OPTIONS")
        with _translated:
            await self._check_access(upload_id, request, Action.DELETE)
            async with self._held(upload_id) as lease:
                upload = await self._load_checked(upload_id, request, Action.DELETE)
                view = UploadView.of(upload.info, upload.offset)
                changes = await self.hooks.decide(Event(EventType.PRE_TERMINATE, view, request))
                fences = {upload_id: lease.fence}
                unpublished = await self._publisher.record_removals(
                    EventType.POST_TERMINATE, [upload], request, fences
                )
                await self.store.remove(
                    upload_id, fence=lease.fence, unpublished=unpublished.get(upload_id)
                )
                await self._record_late(unpublished, [upload], request)
                self._due_marks.mark(upload_id, None)
                self._counters.uploads_terminated += 1
                self._publisher.publish(EventType.POST_TERMINATE, upload, request)
                return changes.response

    # Tokens

    async def look_up(self, upload_id: str, request: RequestView, action: Action) -> Upload:
        """Return an upload if the principal may do `action`. Needs no lock, changes nothing. Raises ProtocolError."""
        self._refuse_when_closing()
        with _translated:
            return await self._load_checked(upload_id, request, action)

    async def watch(self, upload_id: str, request: RequestView) -> Upload:
        """Return an upload without its lock, so that a request that is writing to it continues. Raises ProtocolError."""
        upload = await self.look_up(upload_id, request, Action.INSPECT)
        await self._call_access_hooks(upload, request)
        return upload

    def recheck_access(self) -> None:
        """End the requests that have lost their permission by a revocation; the bytes that arrived are kept."""
        self._receiver.recheck_access()

    # For the sweep

    @property
    def closing(self) -> bool:
        """Whether the server is shutting down."""
        return self._closing

    def now(self) -> float:
        """Seconds since the epoch, by the clock that expiry uses."""
        return self._clock()

    def is_due(self, upload: Upload) -> bool:
        """Whether the expiry or the retention of an upload is over."""
        due = self.due_at(upload)
        return due is not None and due <= self._clock()

    def state_of(self, upload: Upload) -> UploadState:
        """The state of an upload that was just loaded."""
        return state_of(upload, due=self.is_due(upload))

    async def load_each(self, upload_ids: Sequence[str]) -> list[Upload | StorageError]:
        """`load` for many at a time: in the same order, what it returns or raises for each."""
        return [
            await self._with_expiry_or_error(found) if isinstance(found, Upload) else found
            for found in await self.store.load_each(upload_ids)
        ]

    async def _with_expiry_or_error(self, upload: Upload) -> Upload | StorageError:
        try:
            return await self._with_expiry(upload)
        except StorageError as problem:
            return problem

    async def expire_each(self, upload_ids: Sequence[str]) -> dict[str, bool | StorageError]:
        """Remove the uploads that are due and not locked.

        Returns, by id, whether each was removed, or the error. Raises LocksUnavailable, LocksClosed.
        """
        outcomes: dict[str, bool | StorageError] = dict.fromkeys(upload_ids, False)
        due: list[Upload] = []
        async with self._locks.try_acquire_many(upload_ids) as leases:
            held = list(leases)
            for upload_id, found in zip(held, await self.load_each(held), strict=True):
                if isinstance(found, UploadDamaged) and self.is_due(found.upload):
                    due.append(found.upload)
                elif isinstance(found, StorageError):
                    outcomes[upload_id] = found
                elif self.is_due(found):
                    due.append(found)
            fences = {upload_id: lease.fence for upload_id, lease in leases.items()}
            unpublished = await self._publisher.record_removals(
                EventType.POST_EXPIRE, due, RequestView(), fences
            )
            done = await self.store.remove_each(due, fences=fences, unpublished=unpublished)
            removed = [each for each, outcome in zip(due, done, strict=True) if outcome is True]
            await self._record_late(unpublished, removed, RequestView())
        for upload, outcome in zip(due, done, strict=True):
            outcomes[upload.id] = outcome
            if outcome is True:
                self._due_marks.mark(upload.id, None)
                self._counters.uploads_expired += 1
                self._publisher.publish(EventType.POST_EXPIRE, upload, RequestView())
        return outcomes

    async def tidy(self) -> int:
        """Remove the leftovers of crashes and old tombstones; return how many."""
        removed = await self.store.tidy(tombstone_ttl=self.policy.tombstone_ttl)
        return removed + await self._locks.tidy(self._is_gone)

    async def _is_gone(self, upload_id: str) -> bool:
        """Whether there is neither an upload nor a tombstone."""
        try:
            await self.store.load(upload_id)
        except UploadNotFound:
            return True
        except StorageError:
            return False
        return False

    async def discard(self, upload_id: str) -> bool:
        """Remove an upload for the operator, finished or not; return False if its lock is held.

        Removes damaged uploads and those without bytes as well. Raises UploadNotFound, UploadGone.
        """
        try:
            async with self._held(upload_id, request_release=False, timeout=0) as lease:
                try:
                    upload = await self.load(upload_id)
                except (UploadDamaged, BytesMissing) as problem:
                    upload = problem.upload
                await self._remove_held(upload, EventType.POST_TERMINATE, lease)
        except (LockTimeout, LeaseLost):
            return False
        self._counters.uploads_terminated += 1
        return True

    async def expire_missing(self, upload_id: str) -> bool:
        """Remove an unfinished upload whose bytes have been missing for its `expire_after`; return whether it was removed."""
        try:
            async with self._held(upload_id, request_release=False, timeout=0) as lease:
                try:
                    await self.load(upload_id)
                except BytesMissing as problem:
                    upload = problem.upload
                    if not await self.is_missing_too_long(upload):
                        return False
                    await self._remove_held(upload, EventType.POST_EXPIRE, lease)
                else:
                    return False
        except (LockTimeout, LeaseLost):
            return False
        self._counters.uploads_expired += 1
        return True

    async def is_missing_too_long(self, upload: Upload, *, marks: bool = True) -> bool:
        """Return whether the bytes of an unfinished upload have been missing for its `expire_after`.

        Finished uploads stay: no further bytes are expected, so their age is no reason to remove them.
        marks: record that the bytes are missing since now, if nothing is recorded.
        """
        after = self.expire_after(upload.info)
        if upload.finished or not after:
            return False
        since = await self.store.missing_since(upload.id, marks=marks)
        return since + after <= self._clock()

    async def _remove_held(self, upload: Upload, event_type: EventType, lease: Lease) -> None:
        """Remove an upload whose lock is held, and publish that."""
        fences = {upload.id: lease.fence}
        unpublished = await self._publisher.record_removals(
            event_type, [upload], RequestView(), fences
        )
        await self.store.remove(
            upload.id, fence=lease.fence, unpublished=unpublished.get(upload.id)
        )
        await self._record_late(unpublished, [upload], RequestView())
        self._due_marks.mark(upload.id, None)
        self._publisher.publish(event_type, upload, RequestView())

    async def _record_late(
        self,
        unpublished: Mapping[str, RemovalEvent],
        uploads: Sequence[Upload],
        request: RequestView,
        *,
        keep_tombstone: bool = True,
    ) -> None:
        """Record the events of removals that could not be recorded before, because the disk was full."""
        for upload in uploads:
            if event := unpublished.get(upload.id):
                # Without a fence: the removal has happened, whoever holds the lock now.
                await self._publish_removal(
                    UnpublishedRemoval(upload, event, keep_tombstone), request, UNFENCED
                )

    async def _publish_removal(
        self, removal: UnpublishedRemoval, request: RequestView, fence: Fence
    ) -> None:
        try:
            await self._publisher.record_late(removal, request, fence)
            await self.store.forget_removal(removal, fence=fence)
        except StorageError as problem:
            logger.warning("the removal of %s is published later: %s", removal.upload.id, problem)
        else:
            self._publisher.enqueue(removal.upload.id)

    async def recover_removals(self) -> None:
        """Publish removals whose events could not be recorded, or whose server died in between. Raises StorageError."""
        store = self.store
        if not self._publisher.delivers:
            return
        for removal in await store.unpublished_removals():
            try:
                async with self._held(removal.upload.id, request_release=False, timeout=0) as lease:
                    await store.finish_removal(removal, fence=lease.fence)
                    await self._publish_removal(removal, RequestView(), lease.fence)
            except (LockTimeout, LeaseLost):
                # The holder does it, or the next attempt.
                continue
            except ProtocolError:
                return

    async def recover_interrupted(self, upload_id: str) -> bool:
        """Join and finish an upload that was complete when a server died, unless it is locked; whether it is finished."""
        try:
            async with self._held(upload_id, request_release=False, timeout=0) as lease:
                upload = await self._current(upload_id)
                try:
                    upload = await self._concatenation.try_join(upload, lease.fence)
                except UploadGone:
                    # A part was removed: the final stays until it expires.
                    return False
                return (await self._finish(upload, RequestView(), lease.fence)).upload.finished
        except (LockTimeout, LeaseLost):
            return False

    async def discard_fragment(self, upload_id: str) -> bool:
        """Remove what a crash left of a creation, unless it is locked; return whether it did. Raises StorageError."""
        try:
            async with self._held(upload_id, request_release=False, timeout=0) as lease:
                return await self.store.discard_fragment(upload_id, fence=lease.fence)
        except (LockTimeout, LeaseLost):
            return False

    # Shutting down

    def begin_shutdown(self) -> None:
        """End the bodies in flight, keeping the bytes that arrived, and refuse all further requests."""
        self._closing = True
        self._receiver.close()
        self._locks.close()

    async def drain(self) -> None:
        """Wait for the work in the background."""
        while self._background:
            await asyncio.wait(list(self._background))

    # Helpers

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise errors.shutting_down()

    async def _wait_for_hooks(self) -> None:
        """Wait for hooks that are far behind: what they are still to be told must not fill the memory. Raises a 503."""
        if not await self.hooks.has_room():
            raise errors.unavailable()

    async def _current(self, upload_id: str) -> Upload:
        """Load an upload. Raises a 410 for one that is due, as the sweep may remove it at any moment."""
        upload = await self.load(upload_id)
        if self.is_due(upload):
            raise errors.gone()
        return upload

    async def _load_checked(self, upload_id: str, request: RequestView, action: Action) -> Upload:
        """Load an upload if the principal may do `action`. Others get a 404, also for one that is gone."""
        try:
            upload = await self.load(upload_id)
        except UploadGone:
            if not self.access_policy.knows_of(request.principal, upload_id):
                raise errors.not_found() from None
            raise
        except (UploadDamaged, BytesMissing) as problem:
            self._check(problem.upload.info, request, action)
            if action is not Action.DELETE or isinstance(problem, BytesMissing):
                raise
            # Its owner may delete it.
            upload = problem.upload
        self._check(upload.info, request, action)
        if self.is_due(upload):
            raise errors.gone()
        return upload

    def _check(self, info: UploadInfo, request: RequestView, action: Action) -> None:
        self.access_policy.check(request.principal, info.id, info.owner, action)

    def _access_error(self, info: UploadInfo, request: RequestView) -> ProtocolError | None:
        """The error if a request that is adding bytes has lost its permission; None if it may continue."""
        try:
            self._check(info, request, Action.APPEND)
        except ProtocolError as problem:
            return problem
        return None

    async def _check_access(self, upload_id: str, request: RequestView, action: Action) -> None:
        """Check access before the upload is locked. Loads nothing if there are neither restrictions nor hooks."""
        if self.hooks.wants(EventType.PRE_ACCESS) or not request.principal.unrestricted:
            await self._call_access_hooks(
                await self._load_checked(upload_id, request, action), request
            )

    async def load(self, upload_id: str) -> Upload:
        """Load an upload, with its expiry if that depends on other uploads. Raises StorageError."""
        return await self._with_expiry(await self.store.load(upload_id))

    async def _with_expiry(self, upload: Upload) -> Upload:
        if upload.joined and not upload.info.is_partial:
            return upload
        return await self._concatenation.with_expiry(upload, self.expires_at)

    async def _creation_lease(
        self, info: UploadInfo, content: Content | None, changes: Changes
    ) -> Lease:
        """The lock of an upload that is being created; none for a fresh random id, which no other request can know.

        If the creation has a body, hooks may pass the id on while it is received: then the lock is taken, but a creation is not
        refused because locks are unavailable.
        """
        known = info.is_final or changes.id is not None
        # The creation of an empty upload finishes it: hooks may pass the id on while pre-finish hooks run.
        if known or content is not None or info.length == 0:
            try:
                return await self._acquire(info.id)
            except ProtocolError as problem:
                if known or problem.code != "ERR_UNAVAILABLE":
                    raise
        return UncontestedLease()

    def _held(
        self, upload_id: str, *, request_release: bool = True, timeout: float | None = None
    ) -> _Holding:
        return _Holding(self._acquire(upload_id, request_release=request_release, timeout=timeout))

    async def _acquire(
        self, upload_id: str, *, request_release: bool = True, timeout: float | None = None
    ) -> Lease:
        """Acquire the upload's lock. Raises a 423 or 503; without `request_release`, LockTimeout instead of the 423."""
        began = time.monotonic()
        limit = self.policy.acquire_lock_timeout if timeout is None else timeout
        try:
            lease = await self._locks.acquire(
                upload_id, timeout=limit, request_release=request_release
            )
        except LockTimeout:
            if not request_release:
                raise
            self._counters.lock_timeouts += 1
            raise errors.locked() from None
        except LocksClosed:
            raise errors.shutting_down() from None
        except LocksUnavailable as problem:
            logger.warning("no lock for %s: %s", upload_id, problem)
            raise errors.unavailable() from None
        self._counters.lock_waits.observe(time.monotonic() - began)
        return lease

    async def _call_access_hooks(self, upload: Upload, request: RequestView) -> None:
        if self.hooks.wants(EventType.PRE_ACCESS):
            view = UploadView.of(upload.info, upload.offset)
            await self.hooks.decide(Event(EventType.PRE_ACCESS, view, request))

    async def offset_of(self, upload_id: str) -> tuple[int, bool] | None:
        """The offset of an upload and whether it is finished; None if it does not exist. For hooks."""
        try:
            upload = await self._current(upload_id)
        except (UploadNotFound, UploadGone, ProtocolError):
            return None
        return upload.offset, upload.finished


class _Holding:
    """`async with _Holding(acquiring) as lease:` releases the lease at the end of the block."""

    __slots__ = ("_acquiring", "_lease")

    def __init__(self, acquiring: Coroutine[None, None, Lease]) -> None:
        self._acquiring = acquiring

    async def __aenter__(self) -> Lease:
        self._lease = await self._acquiring
        return self._lease

    async def __aexit__(self, *_error: object) -> None:
        await self._lease.release()


class _Translation:
    """Translate the errors of a store or a fence to the response; the reason is logged."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        problem: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if isinstance(problem, StorageError):
            raise _response_to(problem) from None
        if isinstance(problem, LeaseLost):
            # The locks have logged it.
            raise errors.interrupted() from None


_translated = _Translation()


def _response_to(problem: StorageError) -> ProtocolError:
    match problem:
        case UploadUntrusted():
            logger.warning("not served: %s", problem)
            return errors.not_found()
        case UploadNotFound():
            return errors.not_found()
        case UploadGone():
            return errors.gone()
        case UploadExists():
            return errors.id_taken()
        case UploadDamaged():
            logger.error("not served: %s", problem)
            return errors.damaged()
        case VolumeMissing():
            # The store has logged it, once.
            return errors.volume_missing()
        case BytesMissing():
            logger.error("not served now: %s", problem)
            return errors.bytes_missing()
        case StorageFull():
            logger.warning("the store is full: %s", problem)
            return errors.insufficient_storage()
        case BytesNotKept():
            logger.error("the store lost bytes: %s", problem)
            return errors.bytes_lost()
    logger.error("the store failed: %s", problem, exc_info=problem)
    return errors.internal()


def _least(*infos: UploadInfo) -> int | None:
    """The smallest `max_size` of several uploads; None if none has one."""
    return min((info.max_size for info in infos if info.max_size is not None), default=None)
