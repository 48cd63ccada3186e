"""Load uploads, and check which client may do what to them.

A client without access to an upload gets a 404, as if it did not exist. The rules are in `auth/policy.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tusd_py.auth.policy import AccessPolicy
from tusd_py.auth.principal import Action
from tusd_py.events.hooks import Hooks
from tusd_py.events.model import Event, EventType, RequestView, UploadView
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.storage.base import (
    BytesMissing,
    StorageError,
    Store,
    Upload,
    UploadDamaged,
    UploadGone,
    UploadInfo,
)
from tusd_py.uploads.expiry import Expiry


class Access:
    """Access to the uploads of one store."""

    def __init__(self, store: Store, policy: AccessPolicy, hooks: Hooks, expiry: Expiry) -> None:
        self._store = store
        self._policy = policy
        self._hooks = hooks
        self._expiry = expiry

    # For the server itself

    async def load(self, upload_id: str) -> Upload:
        """Load an upload, with its expiry if that depends on other uploads. Raises StorageError."""
        upload = await self._store.load(upload_id)
        if upload.joined and not upload.info.is_partial:
            return upload
        return await self._expiry.with_expiry(upload)

    async def current(self, upload_id: str) -> Upload:
        """Load an upload. Raises a 410 for one that is due, as the sweep may remove it at any moment, and StorageError."""
        upload = await self.load(upload_id)
        if await self._expiry.is_over(upload):
            raise errors.gone()
        return upload

    async def load_each(self, upload_ids: Sequence[str]) -> list[Upload | StorageError]:
        """`load` for many at a time: in the same order, what it returns or raises for each."""
        return [
            await self._with_expiry_or_error(found) if isinstance(found, Upload) else found
            for found in await self._store.load_each(upload_ids)
        ]

    async def _with_expiry_or_error(self, upload: Upload) -> Upload | StorageError:
        try:
            return await self._expiry.with_expiry(upload)
        except StorageError as problem:
            return problem

    # For a client

    async def load_checked(self, upload_id: str, request: RequestView, action: Action) -> Upload:
        """Load an upload if the client may do `action`. Others get a 404, also for one that is gone. Raises StorageError."""
        try:
            upload = await self.load(upload_id)
        except UploadGone:
            if not self._policy.knows_of(request.principal, upload_id):
                raise errors.not_found() from None
            raise
        except (UploadDamaged, BytesMissing) as problem:
            self.check(problem.upload.info, request, action)
            if action is not Action.DELETE or isinstance(problem, BytesMissing):
                raise
            # Its owner may delete it.
            upload = problem.upload
        self.check(upload.info, request, action)
        if await self._expiry.is_over(upload):
            raise errors.gone()
        return upload

    def creator(self, request: RequestView, parts: Sequence[str]) -> str:
        """The owner of a new upload; parts: of a final, by id. Raises a 403 if the client may not create one."""
        return self._policy.creator(request.principal, parts)

    def check(self, info: UploadInfo, request: RequestView, action: Action) -> None:
        """Raise the refusal if the client may not do `action`."""
        self._policy.check(request.principal, info.id, info.owner, action)

    def append_error(self, info: UploadInfo, request: RequestView) -> ProtocolError | None:
        """The error if a request that is adding bytes has lost its permission; None if it may continue."""
        try:
            self.check(info, request, Action.APPEND)
        except ProtocolError as problem:
            return problem
        return None

    async def check_early(self, upload_id: str, request: RequestView, action: Action) -> None:
        """Check access before the upload is locked, so that a client without access does not interrupt the holder.

        Loads nothing if there are neither restrictions nor hooks. Raises StorageError.
        """
        if self._hooks.wants(EventType.PRE_ACCESS) or not request.principal.unrestricted:
            await self.ask_hooks(await self.load_checked(upload_id, request, action), request)

    async def ask_hooks(self, upload: Upload, request: RequestView) -> None:
        """Call the pre-access hooks. Raises their refusal."""
        if self._hooks.wants(EventType.PRE_ACCESS):
            view = UploadView.of(upload.info, upload.offset, self._store.path_of(upload.info))
            await self._hooks.decide(Event(EventType.PRE_ACCESS, view, request))

    def is_open_to(self, request: RequestView) -> bool:
        """Whether the client may do everything to every upload, and no hook is asked."""
        return request.principal.unrestricted and not self._hooks.wants(EventType.PRE_ACCESS)
