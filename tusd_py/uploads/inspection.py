"""Tell clients about uploads: the offset (HEAD), the progress (GET), the bytes of a finished upload (GET)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tusd_py.auth.principal import Action
from tusd_py.events.model import Progress, RequestView
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.storage.base import (
    BytesMissing,
    Reader,
    StorageError,
    Upload,
    UploadDamaged,
    UploadGone,
    UploadInfo,
    UploadNotFound,
)
from tusd_py.uploads.failures import translated
from tusd_py.uploads.finish import Finisher
from tusd_py.uploads.operation import Collaborators, Operation


class Inspector(Operation):
    """Reads the uploads of one store."""

    def __init__(self, collaborators: Collaborators, finisher: Finisher) -> None:
        super().__init__(collaborators)
        self._finisher = finisher
        self._downloads: dict[asyncio.Timeout, tuple[UploadInfo, RequestView]] = {}

    async def inspect(
        self, upload_id: str, request: RequestView, *, by_length: bool = False
    ) -> Upload:
        """Return an upload (HEAD). A request that is writing to it is asked to release its lock, so that the offset is final.

        First finishes the upload if a crash interrupted that. by_length: the client takes one that has its length for complete,
        as in tus, so that is finished too. Raises ProtocolError.
        """
        self._guard.admit()
        with translated:
            lease = self._guard.try_acquire_local(upload_id, request)
            if lease is None:
                upload = await self._access.load_checked(upload_id, request, Action.INSPECT)
                await self._access.ask_hooks(upload, request)
                if upload.finished:
                    return upload
                lease = await self._guard.acquire(upload_id)
            async with lease:
                # Checked under the lock, perhaps again: the id may belong to another owner's upload by now.
                upload = await self._access.load_checked(upload_id, request, Action.INSPECT)
                if upload.finished:
                    return upload
                return await self._finisher.settle(upload, request, lease, by_length=by_length)

    async def look_up(self, upload_id: str, request: RequestView, action: Action) -> Upload:
        """Return an upload if the client may do `action`. Needs no lock, changes nothing. Raises ProtocolError."""
        self._guard.admit()
        with translated:
            return await self._access.load_checked(upload_id, request, action)

    async def watch(self, upload_id: str, request: RequestView) -> Upload:
        """Return an upload without its lock, so that a request that is writing to it continues. Raises ProtocolError."""
        upload = await self.look_up(upload_id, request, Action.INSPECT)
        await self._access.ask_hooks(upload, request)
        return upload

    async def open_download(self, upload_id: str, request: RequestView) -> tuple[Upload, Reader]:
        """Return a finished upload and a reader of its bytes, which the caller closes (GET). Needs no lock.

        Raises a 404 for uploads that are unknown, removed or unfinished.
        """
        self._guard.admit()
        if not self._policy.downloads:
            raise errors.method_not_allowed("HEAD, PATCH, DELETE, OPTIONS")
        with translated:
            try:
                upload = await self._load_for_download(upload_id, request)
                await self._access.ask_hooks(upload, request)
                return upload, await self._store.open_reader(upload)
            except UploadGone:
                raise errors.not_found() from None

    @asynccontextmanager
    async def downloading(self, upload: Upload, request: RequestView) -> AsyncIterator[None]:
        """`async with`: the block ends with a StorageError once the client may not download the upload any more."""
        if request.principal.unrestricted:
            yield
            return
        end = asyncio.timeout(None)
        self._downloads[end] = upload.info, request
        try:
            async with end:
                # A revocation since the check of the request did not reach this download.
                self._end_if_refused(end)
                yield
        except TimeoutError:
            if not end.expired():
                raise
            raise StorageError("its client may not read it any more") from None
        finally:
            del self._downloads[end]

    def recheck_downloads(self) -> None:
        """End the downloads of clients that have lost their permission."""
        for end in list(self._downloads):
            self._end_if_refused(end)

    def _end_if_refused(self, end: asyncio.Timeout) -> None:
        info, request = self._downloads[end]
        try:
            self._access.check(info, request, Action.DOWNLOAD)
        except ProtocolError:
            with suppress(RuntimeError):
                # It has ended by itself.
                end.reschedule(asyncio.get_running_loop().time())

    async def _load_for_download(self, upload_id: str, request: RequestView) -> Upload:
        try:
            upload = await self._store.load(upload_id)
        except (UploadDamaged, BytesMissing) as problem:
            self._access.check(problem.upload.info, request, Action.DOWNLOAD)
            raise
        self._access.check(upload.info, request, Action.DOWNLOAD)
        if not upload.finished or await self._expiry.is_over(upload):
            raise errors.not_served()
        return upload

    async def progress_of(self, upload_id: str) -> Progress | None:
        """How far an upload is; None if it does not exist. For hooks."""
        try:
            upload = await self._access.current(upload_id)
        except (UploadNotFound, UploadGone, ProtocolError):
            return None
        # Only where the time of the last byte does not tell: a client that vanished holds its lock until it times out.
        is_held = not self._store.has_one_clock and await self._locks.is_held_elsewhere(upload_id)
        return Progress(upload.offset, upload.finished, upload.changed_at, upload.length, is_held)
