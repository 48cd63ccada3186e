"""The life of an upload: create, append, finish, join, terminate, expire. Every rule about it stands here, once.

Commands come from `protocol/`, already well-formed; here it is decided whether they may happen to the upload that they name,
under its lock, before the first byte of a body is read. What arrived is then kept however the request ends, except for a
chunk with a checksum, which counts whole or not at all. Not for: header fields, sockets, files.
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
    JoinsParts,
    RemovalEvent,
    RemovesUploads,
    ServesFiles,
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
    VerifiesChunks,
    is_valid_id,
)
from tusd_py.uploads.concatenation import Concatenation, final_key
from tusd_py.uploads.due_marks import DueMarks, NoDueMarks
from tusd_py.uploads.model import UploadState, state_of
from tusd_py.uploads.policy import UploadPolicy
from tusd_py.uploads.receive import NOTHING_COUNTS, Body, BodyReceiver

logger = logging.getLogger(__name__)

_ID_BYTES = 16
"""Random bytes of an id: where nobody is authenticated, it is all that keeps strangers away."""
_NO_CHANGES = Changes()
_KEY_LOCK = ".final/"
"""Before the key of a final, what is locked while it is created; no upload has such an id."""
_UNANSWERED = {"ERR_CONNECTION_RESET", "ERR_READ_TIMEOUT", "ERR_UPLOAD_INTERRUPTED"}
"""Codes of ends of a creation's body that its client does not hear of: it finds what arrived by asking again."""
_TOGETHER = 64
"""Parts that are removed together."""
_UNFINISHED_DUE = 60.0
"""Seconds after which the sweep looks at an upload that is complete and whose finish did not come to its end."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a command made of an upload. problem: why the bytes that came with its creation ended early, and what to answer.

    response: what hooks want of the response.
    """

    upload: Upload
    problem: ProtocolError | None = None
    response: HookResponse | None = None


class Uploads:
    """The uploads of one store, and the rules that they live by."""

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
        self.access_policy = access_policy or AccessPolicy()
        self._open_uploads = open_uploads
        self.policy = policy or UploadPolicy()
        self.hooks = hooks or Hooks()
        self._publisher = publisher or EventPublisher(self.hooks)
        self._locks = locks
        self._counters = counters or Counters()
        self._due_marks: DueMarks = due_marks or NoDueMarks()
        self._clock = clock
        self._reception = BodyReceiver(
            store, self.policy, self.hooks, self._counters, clock, access_error=self._access_error
        )
        self._joining = Concatenation(
            store,
            self.policy,
            load=self._current,
            finish_part=self.recover_interrupted,
            check_space=self._reception.check_space,
            on_ready=self._mark_due_soon,
            clock=clock,
        )
        self._background: set[asyncio.Task[None]] = set()
        self._closing = False

    def extensions(self, *, trailers: bool) -> list[str]:
        """The extensions of tus 1.0.0 that hold here, derived from what the store can do and the operator allows.

        trailers: whether the HTTP server in front hands trailer fields over.
        """
        removes = isinstance(self.store, RemovesUploads)
        joins = isinstance(self.store, JoinsParts) and self.policy.concatenation
        verifies = isinstance(self.store, VerifiesChunks)
        offered = {
            "creation": True,
            "creation-with-upload": True,
            "creation-defer-length": True,
            "expiration": removes and self.policy.expire_after > 0,
            "checksum": verifies,
            "checksum-trailer": verifies and trailers,
            "termination": removes and self.policy.termination,
            "concatenation": joins,
            "concatenation-unfinished": joins,
        }
        return [name for name, holds in offered.items() if holds]

    def expires_at(self, upload: Upload) -> float | None:
        """When an upload will be given up if no byte comes, in seconds since the epoch; None if it will not.

        Parts expire even when they are complete: by themselves they are of no use to anybody.
        """
        if upload.expires_at is not None:
            return None if upload.expires_at == float("inf") else upload.expires_at
        after = self.expire_after(upload.info)
        if not after or (upload.finished and not upload.info.is_partial):
            return None
        return upload.changed_at + after

    def expire_after(self, info: UploadInfo) -> float:
        """Seconds without a byte after which an unfinished upload is given up; 0 for never."""
        return self.policy.expire_after if info.expire_after is None else info.expire_after

    def due_at(self, upload: Upload) -> float | None:
        """When an upload is to be removed, in seconds since the epoch: it expires, or its time as a finished one is over."""
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
        """Makes a new upload, with the bytes that its creation carries, or joins `parts` (ids) to a final.

        Raises the ProtocolError of a refusal; then nothing was created.
        """
        self._refuse_when_closing()
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
            await self._reception.check_space(
                info.length or (content.length if content else None) or 0
            )
            return await self._create(info, content, body, request)

    async def _create_final(self, info: UploadInfo, body: Body, request: RequestView) -> Result:
        """Creates a final, or finds the one that an earlier request created from the same: its answer may have been lost."""
        key = final_key(info)
        try:
            async with self._held(f"{_KEY_LOCK}{key}", request_release=False):
                found = await self._same_final(key, info)
                if found is None:
                    return await self._create_new_final(info, key, body, request)
        except LockTimeout:
            # It is being joined.
            found = await self._same_final(key, info)
            if found is None:
                raise errors.locked() from None
        await self._check_repeat(found, info, request)
        return Result(found)

    async def _create_new_final(
        self, info: UploadInfo, key: str, body: Body, request: RequestView
    ) -> Result:
        sources = await self._joining.parts(
            info.parts, lambda part: self._check(part, request, Action.JOIN)
        )
        info = replace(
            info,
            length=self._joining.length_of(info.parts, sources),
            max_size=_least(info, *(part.info for part in sources.values())),
        )
        self._check_creation(info, None)
        self._joining.check_repeats(info.parts, sources)
        await self._reception.check_space(info.length or 0)
        return await self._create(info, None, body, request, key=key)

    async def _same_final(self, key: str, info: UploadInfo) -> Upload | None:
        """The final that was created from what `info` says, if it is there."""
        store = self.store
        if not isinstance(store, JoinsParts) or (final_id := await store.recall_final(key)) is None:
            return None
        try:
            found = await self.load(final_id)
        except (UploadNotFound, UploadGone):
            return None
        # Another upload may have the id by now.
        is_same = (found.info.parts, found.info.owner) == (info.parts, info.owner)
        return found if is_same and not self.is_due(found) else None

    async def _check_repeat(self, found: Upload, info: UploadInfo, request: RequestView) -> None:
        """Raises what whoever repeats a creation is refused with; that the final is there already is no reason."""
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
            # Nothing is created: what they reserved for it goes back.
            await creation.failed()

    async def find_part(self, ids: Sequence[str], request: RequestView) -> str:
        """The first of `ids`, the readings of one URL, that names an upload which the client may join. Raises a 404.

        One that stands alone is not looked up here: `create` looks at every part anyway.
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
            self._reception.check(Upload(info, 0, info.created_at), content)

    async def _create(
        self,
        info: UploadInfo,
        content: Content | None,
        body: Body,
        request: RequestView,
        *,
        key: str = "",
    ) -> Result:
        """Lets the hooks have their say, brings the upload into being and adds the bytes that came with it.

        key: of a final, by which its creation can be repeated.
        """
        created = False
        creation = NO_CREATION_HOOKS
        if self.hooks.wants(EventType.PRE_CREATE):
            event = Event(EventType.PRE_CREATE, UploadView.of(info, 0), request)
            creation = await self.hooks.before_creation(event)
        try:
            info = self._changed(info, creation.changes)
            await self._count(info, request)
            async with _Holding(self._creators_lease(info, content, creation.changes)) as lease:
                upload = await self._record(info, key, request, lease.fence)
                created = True
                result = await self._fill(upload, content, body, request, lease)
        except BaseException as problem:
            # Before the answer: what was reserved must not stand in the way of the next attempt.
            if not created or isinstance(problem, ProtocolError | StorageError):
                await creation.failed()
                await self._count_no_more(info, request)
            raise
        if result.problem is not None and result.problem.code not in _UNANSWERED:
            await creation.failed()
        wanted = creation.changes.response
        return result if wanted is None or result.response else replace(result, response=wanted)

    async def _count(self, info: UploadInfo, request: RequestView) -> None:
        """Raises a 429 if whoever creates this has as many unfinished uploads as they may have."""
        limit = request.principal.limits.max_open_uploads
        if limit is not None and self._open_uploads is not None:
            await self._open_uploads.enter(info.owner, info.id, limit, self._is_open)

    async def _count_no_more(self, info: UploadInfo, request: RequestView) -> None:
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
    def _changed(info: UploadInfo, changes: Changes) -> UploadInfo:
        """The record of a new upload with what the hooks want of it."""
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
        """Brings a new upload into being; a final with the bytes of its parts, if they are there. All or nothing."""
        finals = self.store if key and isinstance(self.store, JoinsParts) else None
        if finals is not None:
            # First: a final that nobody finds by its key could be created, joined and announced twice.
            await finals.remember_final(key, info.id)
        upload = await self.store.create(info, fence=fence)
        try:
            if info.is_final:
                upload = await self._joining.begin(upload, fence)
            elif self.policy.durability == "chunk":
                await self.store.sync(upload, fence=fence)
            await self._publisher.record(EventType.POST_CREATE, upload, request, fence)
        except BaseException:
            with suppress(LeaseLost):
                await self._take_back(upload, fence)
            if finals is not None:
                with suppress(StorageError):
                    await finals.forget_final(key)
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
        """Adds the bytes that came with the creation, and finishes what is complete by then."""
        try:
            if content is not None:
                upload = await self._reception.receive(upload, content, body, lease, request)
            return await self._finish(upload, request, lease.fence)
        except LeaseLost:
            return Result(await self.store.load(upload.id), errors.interrupted())
        except ProtocolError as problem:
            if problem.code in NOTHING_COUNTS:
                # Nothing of it counts and the client was never told where it is: nobody could use it.
                await self._remove_unfilled(upload, request, lease)
                raise
            return Result(await self.store.load(upload.id), problem)
        except StorageError as problem:
            return Result(await self.store.load(upload.id), _meaning(problem))

    async def _remove_unfilled(self, upload: Upload, request: RequestView, lease: Lease) -> None:
        """Takes an upload back of which hooks were told already."""
        kind, fences = EventType.POST_TERMINATE, {upload.id: lease.fence}
        unpublished = await self._publisher.record_removals(kind, [upload], request, fences)
        await self._take_back(upload, lease.fence, unpublished.get(upload.id))
        await self._record_late(unpublished, [upload], request, keep_tombstone=False)
        self._publisher.publish(kind, upload, request)

    async def _take_back(
        self, upload: Upload, fence: Fence, unpublished: RemovalEvent | None = None
    ) -> None:
        """Removes an upload that is of no use to anybody. Raises LeaseLost if another holder has it by now."""
        self._due_marks.mark(upload.id, None)
        if isinstance(self.store, RemovesUploads):
            with suppress(StorageError):
                await self.store.remove(
                    upload.id, fence=fence, keep_tombstone=False, unpublished=unpublished
                )

    # Reading about uploads

    async def inspect(self, upload_id: str, request: RequestView) -> Upload:
        """An upload as it stands (HEAD). Whoever is writing to it is asked to let go, so that the offset holds.

        What a crash left undone between the last byte and the finish is made up for first.
        """
        self._refuse_when_closing()
        with _translated:
            upload = await self._admitted(upload_id, request, Action.INSPECT)
            await self._ask_for_access(upload, request)
            if upload.finished:
                return upload
            async with self._held(upload_id) as lease:
                fence = lease.fence
                upload = await self.store.recover(await self._current(upload_id), fence=fence)
                if upload.info.is_final and not upload.joined:
                    upload = await self._joining.try_join(upload, fence)
                return (await self._finish(upload, request, fence)).upload

    async def open_download(self, upload_id: str, request: RequestView) -> tuple[Upload, int]:
        """A finished upload and a descriptor of its bytes, which the caller closes (GET). Needs no lock.

        Raises a 404 for all that is not served: unknown, removed, unfinished.
        """
        self._refuse_when_closing()
        if not isinstance(self.store, ServesFiles) or not self.policy.downloads:
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
                await self._ask_for_access(upload, request)
                return upload, await self.store.open_file(upload)
            except UploadGone:
                raise errors.not_found() from None

    # Growing

    async def append(
        self, upload_id: str, command: Append, body: Body, request: RequestView
    ) -> Result:
        """Adds the body's bytes at `command.offset` (PATCH). Raises the ProtocolError of a refusal, or of an early end."""
        self._refuse_when_closing()
        with _translated:
            # Before the holder is asked to let go: who may not write may not disturb either.
            await self._ask_before(upload_id, request, Action.APPEND)
            async with self._held(upload_id) as lease:
                upload = await self.store.recover(
                    await self._admitted(upload_id, request, Action.APPEND), fence=lease.fence
                )
                if upload.info.is_final:
                    raise errors.modify_final()
                if command.offset != upload.offset:
                    raise errors.mismatched_offset(upload.offset)
                declared = self._declared(upload, command.length)
                self._reception.check(declared, command.content)
                await self._reception.check_space(command.content.length or 0)
                if declared.info is not upload.info:
                    await self.store.save(declared.info, fence=lease.fence)
                upload = await self._reception.receive(
                    declared, command.content, body, lease, request
                )
                self._due_marks.mark(upload_id, self.due_at(upload))
                await self._joining.grown(upload)
                return await self._finish(upload, request, lease.fence)

    def _declared(self, upload: Upload, length: int | None) -> Upload:
        """The upload with the length that a request declares, if it may ("Creation", Upload-Defer-Length)."""
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
        """If all bytes are there: makes them durable, lets the hooks agree, records it, announces it. Under the lock, once.

        The lock may be lost in every wait: whatever is recorded afterwards is recorded within the fence. Raises LeaseLost.
        """
        if upload.finished or not upload.complete:
            return Result(upload)
        # Whatever goes wrong from here on, and if the server is killed: the sweep tries again soon.
        self._mark_due_soon(upload.id)
        durable = self.policy.durability != "none"
        response: HookResponse | None = None
        if not upload.info.is_partial and self.hooks.wants(EventType.PRE_FINISH):
            if durable:
                await self.store.sync(upload, fence=fence)
                # Hooks are not asked about an upload that belongs to another holder.
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
        # Forgotten first: a later time than the one noted above would be passed by.
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
        """A finish failed: puts the unfinished record back, and takes back what was written down to be announced.

        Another holder that has the upload by now does both by itself, when it finishes or removes the upload.
        """
        with suppress(StorageError, LeaseLost):
            await self.store.save(upload.info, fence=fence)
            await self._publisher.withdraw(EventType.POST_FINISH, upload, fence)

    def _mark_due_soon(self, upload_id: str) -> None:
        """Has the sweep look at an upload soon, should what is being done to it not come to its end."""
        self._due_marks.mark(upload_id, self._clock() + _UNFINISHED_DUE)

    # Joining

    async def _wake_finals(self, part_id: str, request: RequestView) -> None:
        """A part is complete: finals that wait for it are looked at, without holding its client up."""
        if not isinstance(self.store, JoinsParts):
            return
        for final_id in await self.store.finals_awaiting(part_id):
            spawn(self._complete_final(final_id, request), "join", self._background)

    async def _complete_final(self, final_id: str, request: RequestView) -> None:
        try:
            # Whoever completed the part need not be one who may do anything with the final.
            await self.inspect(final_id, replace(request, principal=ANYBODY))
        except ProtocolError as problem:
            # The next HEAD of the final, or the sweep, tries again.
            logger.warning("final upload %s was not joined yet: %s", final_id, problem)

    async def _remove_parts(self, final: Upload) -> None:
        """Removes the parts of a finished final that no other final waits for. What fails is left to the sweep."""
        part_ids = list(dict.fromkeys(final.info.parts))
        for part_id in part_ids:
            self._mark_due_soon(part_id)
        try:
            for at in range(0, len(part_ids), _TOGETHER):
                await self.expire_each(part_ids[at : at + _TOGETHER])
        except (LocksUnavailable, LocksClosed, StorageError) as problem:
            logger.warning("parts of %s were not removed yet: %s", final.id, problem)

    # Ending

    async def terminate(self, upload_id: str, request: RequestView) -> HookResponse | None:
        """Removes an upload, finished or not; a running request on it is ended first (DELETE).

        Returns what hooks want of the response.
        """
        self._refuse_when_closing()
        if not isinstance(self.store, RemovesUploads) or not self.policy.termination:
            raise errors.method_not_allowed("HEAD, PATCH, GET, OPTIONS")
        with _translated:
            await self._ask_before(upload_id, request, Action.DELETE)
            async with self._held(upload_id) as lease:
                upload = await self._admitted(upload_id, request, Action.DELETE)
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
        """An upload as it stands, for whoever may do `action` to it; nothing is done, and nobody is disturbed.

        Raises the ProtocolError of a refusal.
        """
        self._refuse_when_closing()
        with _translated:
            return await self._admitted(upload_id, request, action)

    async def watch(self, upload_id: str, request: RequestView) -> Upload:
        """An upload as it stands, for whoever may ask for its offset. Takes no lock: whoever is writing to it goes on.

        Raises the ProtocolError of a refusal.
        """
        upload = await self.look_up(upload_id, request, Action.INSPECT)
        await self._ask_for_access(upload, request)
        return upload

    def recheck_access(self) -> None:
        """Something was revoked: requests that may not go on any more are ended; what arrived is kept."""
        self._reception.recheck_access()

    # The sweep's part

    @property
    def closing(self) -> bool:
        """Whether the server is shutting down."""
        return self._closing

    def now(self) -> float:
        """Seconds since the epoch, by the clock that decides what is due."""
        return self._clock()

    def is_due(self, upload: Upload) -> bool:
        """Whether an upload has expired, or is finished and was kept long enough."""
        due = self.due_at(upload)
        return due is not None and due <= self._clock()

    def state_of(self, upload: Upload) -> UploadState:
        """The state of an upload that was just loaded."""
        return state_of(upload, due=self.is_due(upload))

    async def load_each(self, upload_ids: Sequence[str]) -> list[Upload | StorageError]:
        """What `load` returns or raises for each, in the same order; for many at a time."""
        if not isinstance(self.store, RemovesUploads):
            return [UploadNotFound(upload_id) for upload_id in upload_ids]
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
        """Removes those that are due, unless somebody holds them or they have moved; whether each went, or what was wrong.

        Raises LocksUnavailable, LocksClosed.
        """
        outcomes: dict[str, bool | StorageError] = dict.fromkeys(upload_ids, False)
        store = self.store
        if not isinstance(store, RemovesUploads):
            return outcomes
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
            done = await store.remove_each(due, fences=fences, unpublished=unpublished)
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
        """Removes what crashes left behind, and what is kept about uploads that are gone; how many things went."""
        if not isinstance(self.store, RemovesUploads):
            return 0
        removed = await self.store.tidy(tombstone_ttl=self.policy.tombstone_ttl)
        return removed + await self._locks.tidy(self._is_gone)

    async def _is_gone(self, upload_id: str) -> bool:
        """Whether nothing is left of an upload, not even its tombstone."""
        try:
            await self.store.load(upload_id)
        except UploadNotFound:
            return True
        except StorageError:
            return False
        return False

    async def discard(self, upload_id: str) -> bool:
        """Removes an upload because the operator wants it, finished or not; returns False if somebody is writing to it.

        One that is damaged, or whose bytes are missing, goes as well. Raises UploadNotFound, UploadGone.
        """
        try:
            async with self._held(upload_id, request_release=False, timeout=0) as lease:
                try:
                    upload = await self.load(upload_id)
                except (UploadDamaged, BytesMissing) as problem:
                    upload = problem.upload
                removed = await self._remove_held(upload, EventType.POST_TERMINATE, lease)
        except (LockTimeout, LeaseLost):
            return False
        self._counters.uploads_terminated += removed
        return removed

    async def expire_missing(self, upload_id: str) -> bool:
        """Removes an upload whose bytes have been missing for as long as one is kept without a byte; whether it went.

        Not one that was finished: nobody was to send anything more, so that no time makes up for what cannot be found.
        """
        try:
            async with self._held(upload_id, request_release=False, timeout=0) as lease:
                try:
                    await self.load(upload_id)
                except BytesMissing as problem:
                    upload = problem.upload
                    after = self.expire_after(upload.info)
                    if upload.finished or not after:
                        return False
                    if await self._missing_since(upload_id) + after > self._clock():
                        return False
                    removed = await self._remove_held(upload, EventType.POST_EXPIRE, lease)
                else:
                    return False
        except (LockTimeout, LeaseLost):
            return False
        self._counters.uploads_expired += removed
        return removed

    async def _missing_since(self, upload_id: str) -> float:
        if not isinstance(self.store, RemovesUploads):
            return self._clock()
        return await self.store.missing_since(upload_id)

    async def _remove_held(self, upload: Upload, event_type: EventType, lease: Lease) -> bool:
        """Removes an upload that is locked, and announces that; whether the store can do so."""
        if not isinstance(self.store, RemovesUploads):
            return False
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
        return True

    async def _record_late(
        self,
        unpublished: Mapping[str, RemovalEvent],
        uploads: Sequence[Upload],
        request: RequestView,
        *,
        keep_tombstone: bool = True,
    ) -> None:
        """Writes down the removals for which there was no room before they made some."""
        for upload in uploads:
            if event := unpublished.get(upload.id):
                # It has happened: the next holder of the lock cannot make it untrue.
                await self._tell_removal(
                    UnpublishedRemoval(upload, event, keep_tombstone), request, UNFENCED
                )

    async def _tell_removal(
        self, removal: UnpublishedRemoval, request: RequestView, fence: Fence
    ) -> None:
        if not isinstance(self.store, RemovesUploads):
            return
        try:
            await self._publisher.record_late(removal, request, fence)
            await self.store.forget_removal(removal, fence=fence)
        except StorageError as problem:
            logger.warning("the removal of %s is told later: %s", removal.upload.id, problem)
        else:
            self._publisher.enqueue(removal.upload.id)

    async def recover_removals(self) -> None:
        """Sees that removals are told for which there was no room, or whose server died. Raises StorageError."""
        store = self.store
        if not isinstance(store, RemovesUploads) or not self._publisher.delivers:
            return
        for removal in await store.unpublished_removals():
            try:
                async with self._held(removal.upload.id, request_release=False, timeout=0) as lease:
                    await store.finish_removal(removal, fence=lease.fence)
                    await self._tell_removal(removal, RequestView(), lease.fence)
            except (LockTimeout, LeaseLost):
                # Whoever holds it sees to it, or the next attempt does.
                continue
            except ProtocolError:
                return

    async def recover_interrupted(self, upload_id: str) -> bool:
        """Joins and finishes what was complete when a server died, unless somebody holds it; returns whether it is finished."""
        try:
            async with self._held(upload_id, request_release=False, timeout=0) as lease:
                upload = await self._current(upload_id)
                try:
                    upload = await self._joining.try_join(upload, lease.fence)
                except UploadGone:
                    # A part of it was removed: it stays until it expires.
                    return False
                return (await self._finish(upload, RequestView(), lease.fence)).upload.finished
        except (LockTimeout, LeaseLost):
            return False

    async def discard_fragment(self, upload_id: str) -> bool:
        """Removes what a crash left of a creation, unless somebody holds it; returns whether it did. Raises StorageError."""
        if not isinstance(self.store, RemovesUploads):
            return False
        try:
            async with self._held(upload_id, request_release=False, timeout=0) as lease:
                return await self.store.discard_fragment(upload_id, fence=lease.fence)
        except (LockTimeout, LeaseLost):
            return False

    # Shutting down

    def begin_shutdown(self) -> None:
        """Ends the bodies in flight, keeping what arrived, and refuses whatever comes or waits from now on."""
        self._closing = True
        self._reception.close()
        self._locks.close()

    async def drain(self) -> None:
        """Returns when nothing goes on in the background any more."""
        while self._background:
            await asyncio.wait(list(self._background))

    # Helpers

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise errors.shutting_down()

    async def _current(self, upload_id: str) -> Upload:
        """The upload as it stands. Raises a 410 for one that is due: its removal is only a matter of time."""
        upload = await self.load(upload_id)
        if self.is_due(upload):
            raise errors.gone()
        return upload

    async def _admitted(self, upload_id: str, request: RequestView, action: Action) -> Upload:
        """The upload as it stands, for whoever may do `action` to it. Strangers learn nothing, not even that it is gone."""
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
            # Its owner may be rid of it.
            upload = problem.upload
        self._check(upload.info, request, action)
        if self.is_due(upload):
            raise errors.gone()
        return upload

    def _check(self, info: UploadInfo, request: RequestView, action: Action) -> None:
        self.access_policy.check(request.principal, info.id, info.owner, action)

    def _access_error(self, info: UploadInfo, request: RequestView) -> ProtocolError | None:
        """What there is to be said against a request that is adding bytes."""
        try:
            self._check(info, request, Action.APPEND)
        except ProtocolError as problem:
            return problem
        return None

    async def _ask_before(self, upload_id: str, request: RequestView, action: Action) -> None:
        """Lets those be asked who have a say, before the upload is locked; where nobody has, it costs nothing."""
        if self.hooks.wants(EventType.PRE_ACCESS) or not request.principal.unrestricted:
            await self._ask_for_access(await self._admitted(upload_id, request, action), request)

    async def load(self, upload_id: str) -> Upload:
        """The upload as the store has it, with its expiry where other uploads have a say in that."""
        return await self._with_expiry(await self.store.load(upload_id))

    async def _with_expiry(self, upload: Upload) -> Upload:
        if upload.joined and not upload.info.is_partial:
            return upload
        return await self._joining.with_expiry(upload, self.expires_at)

    async def _creators_lease(
        self, info: UploadInfo, content: Content | None, changes: Changes
    ) -> Lease:
        """The lock of an upload that is being created. An id that was just drawn is known to nobody, so that it takes none.

        That is unless its bytes come along: others may be told of an upload that was begun. Then the lock is better had, but
        not worth refusing the creation where locks cannot be asked for.
        """
        known = info.is_final or changes.id is not None
        # An upload of no bytes is finished by its creation, which waits for hooks while others are told of it.
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
        """The upload's lock. Raises a 423 or 503; with `ask` False, LockTimeout instead of the 423."""
        began = time.monotonic()
        patience = self.policy.acquire_lock_timeout if timeout is None else timeout
        try:
            lease = await self._locks.acquire(
                upload_id, timeout=patience, request_release=request_release
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

    async def _ask_for_access(self, upload: Upload, request: RequestView) -> None:
        if self.hooks.wants(EventType.PRE_ACCESS):
            view = UploadView.of(upload.info, upload.offset)
            await self.hooks.decide(Event(EventType.PRE_ACCESS, view, request))

    async def offset_of(self, upload_id: str) -> tuple[int, bool] | None:
        """The offset of an upload and whether it is finished; None if it is not there (any more). For hooks."""
        try:
            upload = await self._current(upload_id)
        except (UploadNotFound, UploadGone, ProtocolError):
            return None
        return upload.offset, upload.finished


class _Holding:
    """`async with _Holding(acquiring) as lease:` lets a lease go at the end of the block."""

    __slots__ = ("_acquiring", "_lease")

    def __init__(self, acquiring: Coroutine[None, None, Lease]) -> None:
        self._acquiring = acquiring

    async def __aenter__(self) -> Lease:
        self._lease = await self._acquiring
        return self._lease

    async def __aexit__(self, *_error: object) -> None:
        await self._lease.release()


class _Translation:
    """Turns what a store or a fence raises into the response that it means; the reason stays in the log."""

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
            raise _meaning(problem) from None
        if isinstance(problem, LeaseLost):
            # Logged by the locks, which know more about it.
            raise errors.interrupted() from None


_translated = _Translation()


def _meaning(problem: StorageError) -> ProtocolError:
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
    """The smallest of the limits that several uploads have of their own."""
    return min((info.max_size for info in infos if info.max_size is not None), default=None)
