"""Admit uploads within the quotas of their owners: the number of unfinished ones, and the bytes of all.

What is in force is said by a pre-create hook, or else by the token, or else by the settings. Not for: how it is counted
(`auth/quota.py`, `auth/byte_quota.py`).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from tusd_py.auth.byte_quota import ByteQuotas, LookUp
from tusd_py.auth.principal import Limits
from tusd_py.auth.quota import OpenUploads
from tusd_py.events.model import Changes
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
    UploadNotFound,
)
from tusd_py.uploads.access import Access
from tusd_py.uploads.guard import Guard
from tusd_py.uploads.policy import UploadPolicy

_AHEAD_BYTES = 32 * 1024 * 1024
"""Bytes that are reserved before they arrive, for a body whose size is not known."""


@dataclass(slots=True, eq=False, repr=False)
class Allowance:
    """How large an upload of unknown length may become by a body of unknown size: reserved step by step while it arrives.

    most: the maximum size of the upload for other reasons than the quota, in bytes; None for no limit. size: bytes that the
    upload may have. problem: why more could not be reserved, if not for the quota.
    """

    quotas: ByteQuotas
    info: UploadInfo
    look_up: LookUp
    most: int | None
    size: int = 0
    problem: ProtocolError | None = None

    async def extend(self, needed: int) -> None:
        """Reserve `needed` bytes for the upload, and some more, as far as there is room.

        If Redis cannot be reached, raises a 503 while nothing is reserved; later `size` stays, and `refusal` is the 503.
        """
        info, wanted = self.info, needed + _AHEAD_BYTES
        try:
            self.size = await self.quotas.reserve(
                info.owner,
                info.id,
                wanted if self.most is None else max(needed, min(wanted, self.most)),
                self.quotas.limit_of(info.quota),
                self.look_up,
                some=True,
            )
        except ProtocolError as problem:
            if not self.size:
                raise
            self.problem = problem
        else:
            self.problem = None

    def refusal(self, offset: int) -> ProtocolError:
        """The error for more bytes than `size`, for an upload that has `offset` bytes."""
        return self.problem or errors.quota_exceeded(max(0, self.size - offset))


@dataclass(slots=True, eq=False, repr=False)
class Quotas:
    """The quotas of the uploads of one store. open_uploads: limits their number; byte_quotas: their bytes; None: no limit."""

    store: Store
    policy: UploadPolicy
    access: Access
    guard: Guard
    open_uploads: OpenUploads | None
    byte_quotas: ByteQuotas | None

    def limits(self, own: Limits, changes: Changes) -> Limits:
        """What is in force for a creation. own: of the token."""
        uploads, most = changes.quota_uploads, changes.quota_bytes
        if uploads is None:
            uploads = own.max_open_uploads
        return Limits(
            max_open_uploads=self.policy.quota_uploads or None if uploads is None else uploads,
            quota_bytes=own.quota_bytes if most is None else most,
        )

    def recorded(self, info: UploadInfo, limits: Limits) -> UploadInfo:
        """A new record with the quota that is asked again later, perhaps for a request with another token.

        That is when the length is declared, and when parts are joined.
        """
        is_asked_again = info.length is None or info.is_partial or info.is_final
        return info._replace(quota=limits.quota_bytes) if is_asked_again else info

    async def admit(self, info: UploadInfo, size: int, limits: Limits) -> None:
        """Count a new upload that takes so many bytes. Raises a 429 or 413 if its owner has no room for it."""
        open_uploads, quotas = self.open_uploads, self.byte_quotas
        if limits.max_open_uploads is not None and open_uploads is not None:
            await open_uploads.enter(info.owner, info.id, limits.max_open_uploads, self._is_open)
        if quotas is not None:
            most = quotas.limit_of(limits.quota_bytes)
            try:
                await quotas.reserve(info.owner, info.id, size, most, self._size_of)
            except ProtocolError:
                await self._leave(info, limits)
                raise

    async def take_back(self, info: UploadInfo, limits: Limits) -> None:
        """Stop counting an upload whose creation failed."""
        await self._leave(info, limits)
        self.removed(info)

    async def _leave(self, info: UploadInfo, limits: Limits) -> None:
        if limits.max_open_uploads is not None and self.open_uploads is not None:
            await self.open_uploads.leave(info.owner, info.id)

    async def admit_growth(self, upload: Upload, size: int) -> None:
        """Count an upload with the bytes that it is about to take, which were unknown at its creation. Raises a 413."""
        if self.byte_quotas is not None:
            info = upload.info
            most = self.byte_quotas.limit_of(info.quota)
            await self.byte_quotas.reserve(info.owner, info.id, size, most, self._size_of)

    async def allowance(self, upload: Upload) -> Allowance | None:
        """How large an upload of unknown length may become; None for any size. Raises a 503 without Redis."""
        quotas = self.byte_quotas
        if quotas is None or quotas.limit_of(upload.info.quota) is None:
            return None
        most, _ = self.policy.limit_of(upload)
        allowance = Allowance(quotas, upload.info, self._size_of, most)
        await allowance.extend(upload.offset)
        return allowance

    async def record_size(self, upload_id: str) -> None:
        """Count an upload with the bytes that it takes now, however the request that added some ended."""
        if self.byte_quotas is None or not self.byte_quotas.is_on:
            return
        with suppress(StorageError):
            upload = await self.store.load(upload_id)
            self.byte_quotas.grew(upload.info.owner, upload_id, size_of(upload))

    def finished(self, upload: Upload) -> None:
        """Count the bytes that a finished upload has."""
        if self.byte_quotas is not None:
            self.byte_quotas.grew(upload.info.owner, upload.id, upload.offset)

    def removed(self, info: UploadInfo) -> None:
        """Stop counting the bytes of an upload that was removed."""
        if self.byte_quotas is not None:
            self.byte_quotas.removed(info.owner, info.id)

    async def _is_open(self, upload_id: str) -> bool | None:
        try:
            return not (await self.access.current(upload_id)).finished
        except UploadNotFound:
            return None
        except (UploadGone, ProtocolError):
            return False
        except (UploadDamaged, BytesMissing) as problem:
            return not problem.upload.finished
        except StorageError:
            # As nobody can tell, no other upload takes its place.
            return True

    async def _size_of(self, upload_id: str) -> int | None:
        """See `byte_quota.LookUp`."""
        try:
            upload = await self.access.load(upload_id)
        except UploadGone:
            return -1
        except (UploadDamaged, BytesMissing) as problem:
            upload = problem.upload
        except UploadNotFound:
            return None
        if upload.length is None:
            if not upload.joined:
                raise StorageError("its parts are not finished, so its length is unknown")
            async with self.guard.if_free(upload_id) as lease:
                if lease is None:
                    raise StorageError("it is receiving bytes, which are reserved")
                # It may have received some since.
                return size_of(await self.access.load(upload_id))
        return size_of(upload)


def size_of(upload: Upload) -> int:
    """The bytes that an upload takes of a quota: those that it is to have, or has."""
    return upload.offset if upload.length is None else upload.length
