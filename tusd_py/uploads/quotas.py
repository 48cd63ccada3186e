"""Admit uploads within the quotas of their owners: the number of unfinished ones, and the bytes of all.

What is in force is said by a pre-create hook, or else by the token, or else by the settings. Not for: how it is counted
(`auth/quota.py`, `auth/byte_quota.py`).
"""

from __future__ import annotations

from tusd_py.auth.principal import Limits
from tusd_py.events.model import Changes
from tusd_py.protocol.errors import ProtocolError
from tusd_py.storage.base import (
    BytesMissing,
    StorageError,
    Upload,
    UploadDamaged,
    UploadGone,
    UploadInfo,
    UploadNotFound,
)
from tusd_py.uploads.operation import Operation


class Quotas(Operation):
    """The quotas of the uploads of one store."""

    def limits(self, own: Limits, changes: Changes) -> Limits:
        """What is in force for a creation. own: of the token."""
        uploads, most = changes.quota_uploads, changes.quota_bytes
        if uploads is None:
            uploads = own.max_open_uploads
        return Limits(
            max_open_uploads=self._policy.quota_uploads or None if uploads is None else uploads,
            quota_bytes=own.quota_bytes if most is None else most,
        )

    async def admit(self, info: UploadInfo, size: int, limits: Limits) -> None:
        """Count a new upload that takes so many bytes. Raises a 429 or 413 if its owner has no room for it."""
        open_uploads, quotas = self._open_uploads, self._quotas
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
        if self._quotas is not None:
            self._quotas.removed(info.owner, info.id)

    async def _leave(self, info: UploadInfo, limits: Limits) -> None:
        if limits.max_open_uploads is not None and self._open_uploads is not None:
            await self._open_uploads.leave(info.owner, info.id)

    async def admit_growth(self, upload: Upload, size: int) -> None:
        """Count an upload whose length was unknown with the bytes that it is about to take. Raises a 413."""
        if self._quotas is not None:
            info = upload.info
            most = self._quotas.limit_of(info.quota)
            await self._quotas.reserve(info.owner, info.id, size, most, self._size_of)

    def record_size(self, upload: Upload) -> None:
        """Count an upload with the bytes that it takes now."""
        if self._quotas is not None:
            self._quotas.grew(upload.info.owner, upload.id, size_of(upload))

    async def _is_open(self, upload_id: str) -> bool | None:
        try:
            return not (await self._access.current(upload_id)).finished
        except UploadNotFound:
            return None
        except (UploadGone, ProtocolError):
            return False

    async def _size_of(self, upload_id: str) -> int | None:
        """See `byte_quota.LookUp`."""
        try:
            upload = await self._access.load(upload_id)
        except UploadGone:
            return -1
        except (UploadDamaged, BytesMissing) as problem:
            upload = problem.upload
        except UploadNotFound:
            return None
        if not upload.joined and upload.length is None:
            raise StorageError("its parts are not finished, so it is not known how long it will be")
        return size_of(upload)


def size_of(upload: Upload) -> int:
    """The bytes that an upload takes of a quota: those that it is to have, or has."""
    return upload.offset if upload.length is None else upload.length
