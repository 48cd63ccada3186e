"""Finish an upload whose bytes are all there: join, sync, ask the pre-finish hooks, name it, record the finish, publish it.

Each step can be repeated: a finish that a crash or a lost lock interrupted is completed by the next HEAD, PATCH or sweep.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from tusd_py.background import spawn
from tusd_py.events.model import Event, EventType, HookResponse, RequestView, UploadView
from tusd_py.locks.base import Fence, Lease, LeaseLost, LocksClosed, LocksUnavailable
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.redis.batches import batched
from tusd_py.storage.base import (
    TIME_DIGITS,
    StorageError,
    Upload,
    UploadGone,
)
from tusd_py.uploads import completion
from tusd_py.uploads.abandoned_events import OUTDATED_SECONDS
from tusd_py.uploads.concatenation import Concatenation
from tusd_py.uploads.digest import verify_digest
from tusd_py.uploads.expiring import Expirer
from tusd_py.uploads.failures import translated
from tusd_py.uploads.model import Result
from tusd_py.uploads.operation import Collaborators, Operation

logger = logging.getLogger(__name__)

_REMOVAL_BATCH = 64
"""Parts that are removed together."""


class Finisher(Operation):
    """Finishes the uploads of one store.

    Attributes:
        concatenation: Joins the parts of finals.
    """

    def __init__(self, collaborators: Collaborators, expirer: Expirer) -> None:
        super().__init__(collaborators)
        self._expirer = expirer
        self._background: set[asyncio.Task[None]] = set()
        self.concatenation = Concatenation(collaborators, finish_part=self.recover_interrupted)

    async def complete(
        self, upload: Upload, completes: bool | None, request: RequestView, fence: Fence
    ) -> Result:
        """Finish an upload if the body that was received in full completes it; see `completion`. Raises as `finish`."""
        received = completion.after_body(upload, completes)
        if received.length != upload.length:
            await self._store.save(received.info, fence=fence)
        return await self.finish(received, request, fence, by_length=completes is not False)

    async def finish(
        self, upload: Upload, request: RequestView, fence: Fence, *, by_length: bool = False
    ) -> Result:
        """Finish an upload if all bytes are there: once, under its lock. Raises StorageError, LeaseLost, ProtocolError.

        The lock may be lost at every await, so everything is recorded within the fence. by_length: an upload that has its
        length is complete, although only a request that says so completes it.
        """
        is_complete = upload.fills_length if by_length else upload.complete
        if upload.finished or not is_complete:
            return Result(upload)
        # If anything fails from here on, or the server is killed, the sweep tries again soon.
        self._mark_due_soon(upload.id)
        told = await verify_digest(self._store, upload, fence)
        response = None
        if not upload.info.is_partial and self._hooks.wants(EventType.PRE_FINISH):
            response = await self._ask_hooks(upload, request, fence)
        named = await self._store.name(upload, sync=self._is_durable, fence=fence)
        finished = upload._replace(
            info=named._replace(finished_at=round(self._expiry.now(), TIME_DIGITS))
        )
        await self._record(upload, finished, request, fence)
        self._quotas.finished(finished)
        # Cleared first: a later time than the one marked above would be ignored.
        self._due_marks.mark(upload.id, None)
        self._due_marks.keep(finished, self._expiry.check_at(finished))
        if upload.info.is_partial:
            await self._wake_finals(upload.id, request)
        else:
            self._counters.uploads_finished += 1
            self._publisher.publish(EventType.POST_FINISH, finished, request)
            if finished.info.is_final and self._policy.remove_parts_when_joined:
                spawn(self._remove_parts(finished), "removal of parts", self._background)
        return Result(finished, response=response, repr_digest=told)

    @property
    def _is_durable(self) -> bool:
        return self._policy.durability != "none"

    async def _ask_hooks(
        self, upload: Upload, request: RequestView, fence: Fence
    ) -> HookResponse | None:
        """Call the pre-finish hooks, once the bytes count and are durable. Raises their refusal."""
        await self._store.settle(upload.id, fence=fence)
        if self._is_durable:
            await self._store.sync(upload, fence=fence)
            # Not if another holder has the upload by now.
            with fence():
                pass
        view = UploadView.of(upload.info, upload.offset, self._store.path_of(upload.info))
        return await self._hooks.decide(Event(EventType.PRE_FINISH, view, request))

    async def _record(
        self, upload: Upload, finished: Upload, request: RequestView, fence: Fence
    ) -> None:
        """Record the event and the finish; if that fails, restore the unfinished record and withdraw the event.

        If another holder has the upload by then, it does both when it finishes or removes the upload.
        """
        began = self._expiry.now()
        if not upload.info.is_partial:
            await self._publisher.record(EventType.POST_FINISH, finished, request, fence)
        try:
            await self._store.finish(finished.info, sync=self._is_durable, fence=fence)
        except (StorageError, LeaseLost):
            with suppress(StorageError, LeaseLost):
                # Before the record forgets the name.
                await self._store.take_name(finished.info, fence=fence)
                await self._store.save(upload.info, fence=fence)
                await self._publisher.withdraw(EventType.POST_FINISH, upload, fence)
            raise
        if not upload.info.is_partial and self._expiry.now() - began > OUTDATED_SECONDS:
            await self._publisher.record_again(EventType.POST_FINISH, finished, request)

    # Uploads whose finish was interrupted

    async def settle(
        self, upload: Upload, request: RequestView, lease: Lease, *, by_length: bool = False
    ) -> Upload:
        """Bring an upload whose lock is held to the state that its bytes imply: recovered, joined, finished.

        by_length: see `finish`. Raises StorageError, LeaseLost, ProtocolError.
        """
        fence = lease.fence
        upload = await self._store.recover(upload, fence=fence)
        if upload.info.is_final and not upload.joined:
            try:
                upload = await self.concatenation.try_join(upload, fence)
            except ProtocolError as problem:
                if problem.code != errors.quota_exceeded.code:
                    raise
                # It waits until there is room, or it expires.
                return upload
        return (await self.finish(upload, request, fence, by_length=by_length)).upload

    async def recover_interrupted(self, upload_id: str) -> bool:
        """Join and finish an upload that was complete when a server died, unless it is locked; whether it is finished."""
        async with self._guard.if_free(upload_id) as lease:
            if lease is not None:
                upload = await self._access.load(upload_id)
                if await self._expiry.is_over(upload):
                    # Such as a part whose final was joined since the sweep looked: it expires by its own age.
                    return False
                try:
                    upload = await self.concatenation.try_join(upload, lease.fence)
                except UploadGone:
                    # A part was removed: the final stays until it expires.
                    return False
                except ProtocolError as problem:
                    if problem.code != errors.quota_exceeded.code or self._expiry.is_due(upload):
                        raise
                    return False
                return (await self.finish(upload, RequestView(), lease.fence)).upload.finished
        return False

    # Finals and their parts

    async def _wake_finals(self, part_id: str, request: RequestView) -> None:
        """Try to join the finals that wait for a finished part, in the background."""
        if self._joiner is None:
            return
        for final_id in await self._joiner.finals_awaiting(part_id):
            spawn(self._complete_final(final_id, request), "join", self._background)

    async def _complete_final(self, final_id: str, request: RequestView) -> None:
        """Join a final if it is ready. Checks no access: the client of the part may have none to the final."""
        try:
            self._guard.admit()
            with translated:
                async with await self._guard.acquire(final_id) as lease:
                    final = await self._access.current(final_id)
                    if not final.finished:
                        await self.settle(final, request, lease)
        except ProtocolError as problem:
            # The next HEAD of the final, or the sweep, tries again.
            logger.warning("final upload %s was not joined yet: %s", final_id, problem)

    async def _remove_parts(self, final: Upload) -> None:
        """Remove the parts of a finished final that no other final waits for. The sweep retries what fails."""
        part_ids = list(dict.fromkeys(final.info.parts))
        for part_id in part_ids:
            self._mark_due_soon(part_id)
        try:
            for some in batched(part_ids, _REMOVAL_BATCH):
                await self._expirer.expire_each(some)
        except (LocksUnavailable, LocksClosed, StorageError) as problem:
            logger.warning("parts of %s were not removed yet: %s", final.id, problem)

    async def drain(self) -> None:
        """Wait for the work in the background."""
        while self._background:
            await asyncio.wait(list(self._background))
