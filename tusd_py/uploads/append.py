"""Append the body of a request to an upload (PATCH): check the offset and the length, receive, finish if it is complete."""

from __future__ import annotations

from tusd_py.auth.principal import Action
from tusd_py.events.model import EventType, RequestView
from tusd_py.locks.base import Lease
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.tus import Append
from tusd_py.storage.base import Upload
from tusd_py.uploads import completion
from tusd_py.uploads.finish import Finisher
from tusd_py.uploads.model import Result
from tusd_py.uploads.operation import Collaborators, Operation
from tusd_py.uploads.receive import Body
from tusd_py.uploads.removal import Remover


class Appender(Operation):
    """Appends to the uploads of one store."""

    def __init__(self, collaborators: Collaborators, finisher: Finisher, remover: Remover) -> None:
        super().__init__(collaborators)
        self._finisher = finisher
        self._remover = remover

    async def append(
        self, upload_id: str, command: Append, body: Body, request: RequestView
    ) -> Result:
        """Append the body at `command.offset`.

        Raises:
            ProtocolError: The request is refused, or its body ended early; the bytes that arrived are kept then.
        """
        await self._guard.admit_change()
        async with self._guard.exclusive(upload_id, request, Action.APPEND) as held:
            upload = await self._store.recover(held.upload, fence=held.fence)
            if upload.info.is_final:
                raise errors.modify_final()
            if command.offset != upload.offset:
                raise errors.mismatched_offset(upload.offset)
            completion.check_open(upload, command)
            try:
                upload = await self._receive(upload, command, body, request, held.lease)
                self._due_marks.keep(upload, self._expiry.check_at(upload))
                await self._expiry.record_growth(upload)
                return await self._finisher.complete(upload, command.completes, request, held.fence)
            except ProtocolError as problem:
                if completion.ends_upload(upload, command, problem):
                    await self._remover.remove(
                        upload, EventType.POST_TERMINATE, request, held.lease
                    )
                raise
            finally:
                await self._store.settle(upload_id, fence=held.fence)
                if held.upload.length is None and held.lease.is_held():
                    await self._quotas.record_size(upload_id)

    async def _receive(
        self, upload: Upload, command: Append, body: Body, request: RequestView, lease: Lease
    ) -> Upload:
        """Check the declared length, record it, and receive the body. Raises ProtocolError, StorageError, LeaseLost."""
        declared = self._declared(upload, command.length)
        self._receiver.check(declared, command.content)
        await self._receiver.check_space(command.content.length or 0)
        allowance = None
        if declared.length is None and command.content.length is None:
            allowance = await self._quotas.allowance(upload)
        elif upload.length is None:
            size = declared.length or upload.offset + (command.content.length or 0)
            await self._quotas.admit_growth(upload, size)
        declared = completion.before_body(declared, command)
        if declared.info is not upload.info:
            await self._store.save(declared.info, fence=lease.fence)
        return await self._receiver.receive(
            declared,
            command.content,
            body,
            lease,
            request,
            finishing=command.completes is not False,
            allowance=allowance,
        )

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
        self._policy.check_length(upload, length)
        return upload.with_info(length=length)
