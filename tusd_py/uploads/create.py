"""Create uploads (tus 1.0.0, "Creation" and "Creation With Upload"): hooks, record, event, then the bytes of the body.

What fails before the record is there leaves nothing. Not for: which final an equal request created before (`finals.py`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from tusd_py.events.hooks import NO_CREATION_HOOKS
from tusd_py.events.hooks import Creation as CreationHooks
from tusd_py.events.model import (
    Changes,
    Event,
    EventType,
    HookResponse,
    Placement,
    RequestView,
    UploadView,
)
from tusd_py.locks.base import Fence, Lease, LeaseLost, UncontestedLease
from tusd_py.protocol import errors, metadata
from tusd_py.protocol.concat import Partial
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.tus import Content, Creation
from tusd_py.storage.base import (
    LONGEST_SECONDS,
    BytesMissing,
    LocationRefused,
    StorageError,
    Upload,
    UploadDamaged,
    UploadExists,
    UploadGone,
    UploadInfo,
    UploadNotFound,
    is_valid_id,
)
from tusd_py.uploads.failures import response_to, translated
from tusd_py.uploads.finish import Finisher
from tusd_py.uploads.model import Result
from tusd_py.uploads.operation import Collaborators, Operation
from tusd_py.uploads.receive import NOTHING_COUNTS, Body
from tusd_py.uploads.removal import Remover

logger = logging.getLogger(__name__)

_ID_BYTES = 16
"""Random bytes of an id: without authentication, it is the only secret that protects an upload."""
_NO_CHANGES = Changes()
_NO_RESPONSE = {"ERR_CONNECTION_RESET", "ERR_READ_TIMEOUT", "ERR_UPLOAD_INTERRUPTED"}
"""Codes of early ends of a creation's body after which the client gets no response, and asks for the offset."""


@dataclass(frozen=True, slots=True)
class FinalKey:
    """The digest under which a final is remembered, and the fence of the lock on it."""

    digest: str
    fence: Fence


class Creator(Operation):
    """Creates uploads in one store."""

    def __init__(self, collaborators: Collaborators, finisher: Finisher, remover: Remover) -> None:
        super().__init__(collaborators)
        self._finisher = finisher
        self._remover = remover

    async def create(self, command: Creation, body: Body, request: RequestView) -> Result:
        """Create an upload, with the bytes of the body if the request has any (POST). Raises ProtocolError."""
        await self._guard.admit_creation()
        with translated:
            info = self.new_record(command, (), request)
            content = command.content
            self.check_size(info, content)
            known = info.length or (content.length if content else None)
            await self._receiver.check_space(known or 0)
            return await self.carry_out(info, content, body, request, completes=command.completes)

    def new_record(
        self, command: Creation, parts: Sequence[str], request: RequestView
    ) -> UploadInfo:
        """The record of a new upload with a random id. Raises a 403 or 400 if the client may not create it."""
        owner = self._access.creator(request, parts)
        if command.concat is not None and not self._policy.concatenation:
            raise errors.invalid_concat("concatenation is disabled on this server")
        return UploadInfo(
            id=os.urandom(_ID_BYTES).hex(),
            length=command.length,
            metadata=command.metadata,
            metadata_header=command.metadata_header,
            concat_header=command.concat_header,
            is_partial=isinstance(command.concat, Partial),
            is_final=bool(parts),
            parts=tuple(parts),
            created_at=self._expiry.now(),
            owner=owner,
            max_size=request.principal.limits.max_upload_size,
            awaits_completion=command.completes is not None,
            repr_digest=command.repr_digest,
            wanted_digest=command.wanted_digest,
        )

    def check_size(self, info: UploadInfo, content: Content | None) -> None:
        """Raise a 413 for a length or a body above the maximum, a 400 for a checksum that the store cannot verify."""
        upload = Upload(info, 0, info.created_at)
        self._policy.check_length(upload, info.length)
        if content is not None:
            self._receiver.check(upload, content)

    async def carry_out(
        self,
        info: UploadInfo,
        content: Content | None,
        body: Body,
        request: RequestView,
        *,
        key: FinalKey | None = None,
        completes: bool | None = None,
        reserved: int | None = None,
    ) -> Result:
        """Call the pre-create hooks, create the upload, add the bytes of the body. Raises ProtocolError, StorageError.

        key: of a final, which makes its creation idempotent. completes: see `Creation`.
        reserved: bytes that it takes of a quota, if those are not its length.
        """
        admitted = created = False
        creation = NO_CREATION_HOOKS
        if self._hooks.wants(EventType.PRE_CREATE):
            event = Event(EventType.PRE_CREATE, UploadView.of(info, 0), request)
            creation = await self._hooks.before_creation(event)
        own = request.principal.limits
        if own.quota_bytes is None and info.quota is not None:
            own = replace(own, quota_bytes=info.quota)
        limits = self._quotas.limits(own, creation.changes)
        is_chosen = creation.changes.id is not None
        try:
            info = self._placed(_with_changes(info, creation.changes), creation.changes.placement)
            info = self._quotas.recorded(info, limits)
            size = info.length if reserved is None else reserved
            if size is None:
                size = content.length or 0 if content else 0
            if is_chosen:
                # Before the lock, for which a request of the upload that has the id would be ended.
                await self._check_free(info.id)
            async with await self._lease(info, content, is_chosen=is_chosen) as lease:
                if is_chosen:
                    await self._check_free(info.id)
                await self._quotas.admit(info, size, limits)
                admitted = True
                upload = await self._record(info, key, request, lease.fence, creation)
                created = True
                if body.watcher is not None and content is not None:
                    body.watcher.created(upload)
                result = await self._fill(
                    upload, content, body, request, lease, completes=completes
                )
                if info.length is None and content is not None and lease.is_held():
                    await self._quotas.record_size(info.id)
        except BaseException as problem:
            # Undone before the response, so that a reservation does not block the next attempt.
            if not created or isinstance(problem, ProtocolError | StorageError):
                await creation.failed()
            if admitted and (not created or isinstance(problem, ProtocolError)):
                await self._quotas.take_back(info, limits)
            raise
        if result.problem is not None and result.problem.code not in _NO_RESPONSE:
            await creation.failed()
        return _with_response(result, creation.changes.response)

    def _placed(self, info: UploadInfo, wanted: Placement | None) -> UploadInfo:
        """The record with the place that a hook chose. Raises a 500 for one that is not allowed."""
        if wanted is None:
            return info
        try:
            location = self._store.locate(
                info.id, bucket=wanted.bucket, prefix=wanted.prefix, key=wanted.key
            )
        except LocationRefused as problem:
            logger.error("a pre-create hook chose a place that cannot be used: %s", problem)
            raise errors.internal() from None
        return info._replace(location=None if location == info.id else location)

    async def _check_free(self, upload_id: str) -> None:
        """Raise UploadExists if an upload has the id that a hook chose for another one."""
        try:
            await self._store.load(upload_id)
        except (UploadNotFound, UploadGone):
            return
        except (UploadDamaged, BytesMissing):
            pass
        raise UploadExists(f"{upload_id} is the id of another upload")

    async def _lease(self, info: UploadInfo, content: Content | None, *, is_chosen: bool) -> Lease:
        """The lock of an upload that is being created; none for a fresh random id, which no other request can know.

        If the creation has a body, hooks may pass the id on while it is received: then the lock is taken, but a creation is not
        refused because locks are unavailable.
        """
        known = info.is_final or is_chosen
        # The creation of an empty upload finishes it: hooks may pass the id on while pre-finish hooks run.
        if known or content is not None or info.length == 0:
            try:
                return await self._guard.acquire(info.id)
            except ProtocolError as problem:
                if known or problem.code != "ERR_UNAVAILABLE":
                    raise
        return UncontestedLease()

    async def _record(
        self,
        info: UploadInfo,
        key: FinalKey | None,
        request: RequestView,
        fence: Fence,
        creation: CreationHooks,
    ) -> Upload:
        """Create the upload in the store; join a final if its parts are finished. All or nothing."""
        if key is not None and self._joiner is not None:
            # First: without its key, a repeated request would create, join and publish the final twice.
            await self._joiner.remember_final(key.digest, info.id, fence=key.fence)
        upload = await self._store.create(info, fence=fence)
        try:
            await creation.confirm()
            if info.is_final:
                upload = await self._finisher.concatenation.begin(upload, fence)
            elif self._policy.durability == "chunk":
                await self._store.sync(upload, fence=fence)
            await self._publisher.record(EventType.POST_CREATE, upload, request, fence)
        except BaseException:
            with suppress(LeaseLost):
                await self._remover.take_back(upload, fence)
            if key is not None and self._joiner is not None:
                with suppress(StorageError, LeaseLost):
                    await self._joiner.forget_final(key.digest, info.id, fence=key.fence)
            raise
        self._counters.uploads_created += 1
        self._due_marks.keep(upload, self._expiry.due_at(upload))
        self._publisher.publish(EventType.POST_CREATE, upload, request)
        return upload

    async def _fill(
        self,
        upload: Upload,
        content: Content | None,
        body: Body,
        request: RequestView,
        lease: Lease,
        *,
        completes: bool | None,
    ) -> Result:
        """Add the bytes that came with the creation, and finish the upload if it is complete."""
        try:
            if content is None:
                return await self._finisher.complete(upload, completes, request, lease.fence)
            try:
                allowance = None
                if upload.length is None and content.length is None:
                    allowance = await self._quotas.allowance(upload)
                filled = await self._receiver.receive(
                    upload,
                    content,
                    body,
                    lease,
                    request,
                    finishing=completes is not False,
                    allowance=allowance,
                )
                return await self._finisher.complete(filled, completes, request, lease.fence)
            finally:
                await self._store.settle(upload.id, fence=lease.fence)
        except ProtocolError as problem:
            if problem.code in NOTHING_COUNTS:
                # No byte counts and the client does not know its URL, so the upload is useless. Creation hooks know it.
                with suppress(StorageError):
                    await self._remover.remove(
                        upload, EventType.POST_TERMINATE, request, lease, keep_tombstone=False
                    )
                raise
            return Result(await self._reload(upload), problem)
        except (StorageError, LeaseLost) as problem:
            return Result(await self._reload(upload), response_to(problem))

    async def _reload(self, upload: Upload) -> Upload:
        """Load an upload again. Raises UploadNotFound if its id belongs to another one by now, as after a lost lease."""
        found = await self._store.load(upload.id)
        if (found.info.created_at, found.info.owner) != (upload.info.created_at, upload.info.owner):
            raise UploadNotFound(f"{upload.id} was replaced by another upload meanwhile")
        return found


def _with_changes(info: UploadInfo, changes: Changes) -> UploadInfo:
    """The record of a new upload with the changes of the hooks. Raises a 500 for values that cannot be used."""
    if changes is NO_CREATION_HOOKS.changes or changes == _NO_CHANGES:
        return info
    for path in (changes.id, changes.storage_path):
        if path is not None and not is_valid_id(path):
            logger.error("a pre-create hook chose %r, which cannot name an upload", path)
            raise errors.internal()
    if changes.metadata is not None:
        pairs = dict(changes.metadata)
        info = info._replace(metadata=pairs, metadata_header=metadata.serialize(pairs))
    return info._replace(
        id=info.id if changes.id is None else changes.id,
        location=changes.storage_path,
        expire_after=_recordable(changes.expire_after),
        retain=_recordable(changes.retain),
    )


def _with_response(result: Result, wanted: HookResponse | None) -> Result:
    """The result of a creation with the response that its hooks want; those of the finish have the last word."""
    if wanted is None:
        return result
    finish = result.response
    return result._replace(response=wanted if finish is None else wanted.then(finish))


def _recordable(seconds: float | None) -> float | None:
    """A time that a hook chose, as a number that a record can have. Raises a 500 for anything else."""
    if seconds is None:
        return None
    # Comparisons with a NaN are false.
    if not 0 <= seconds <= LONGEST_SECONDS:
        logger.error("a pre-create hook chose to keep an upload for %r seconds", seconds)
        raise errors.internal()
    return float(seconds)
