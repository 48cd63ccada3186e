"""The uploads of one store: every operation on them, and how the parts of this package are put together.

Which file has what, in the order in which a request meets them:

    guard.py            who changes an upload has checked access, holds its lock, and has loaded it under that lock
    access.py           load an upload, if the client may do what it asks for
    create.py           POST; finals.py for finals
    append.py           PATCH; receive.py for the bytes of a body
    finish.py           what follows the last byte: sync, hooks, record, event; concatenation.py joins the parts of finals
    inspection.py       HEAD, and downloads
    removal.py          DELETE, and removals by the operator; operators.py for what else operators do to an upload
    sweep.py            what is due: expiry.py tells when that is, expiring.py removes it, sweep_guard.py holds a sweep
    abandoned_events.py events that were recorded and have not happened
    failures.py         errors of stores and locks to responses

Commands come from `protocol/`, already well-formed. They are checked against the upload under its lock, before the first byte
of a body is read. The bytes that arrived are kept however the request ends, except for a chunk with a checksum, which counts
whole or not at all. The states of an upload are in `model.py`. Not for: header fields, sockets, files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tusd_py.auth.byte_quota import ByteQuotas
from tusd_py.auth.policy import AccessPolicy
from tusd_py.auth.quota import OpenUploads
from tusd_py.events.hooks import Hooks
from tusd_py.events.model import RequestView
from tusd_py.events.publisher import EventPublisher
from tusd_py.locks.base import Locks
from tusd_py.protocol.tus import Creation
from tusd_py.storage.base import (
    Store,
    Upload,
)
from tusd_py.telemetry.counters import Counters
from tusd_py.uploads.abandoned_events import AbandonedEvents
from tusd_py.uploads.append import Appender
from tusd_py.uploads.create import Creator
from tusd_py.uploads.due_marks import DueMarks
from tusd_py.uploads.expiring import Expirer
from tusd_py.uploads.finals import FinalCreator
from tusd_py.uploads.finish import Finisher
from tusd_py.uploads.inspection import Inspector
from tusd_py.uploads.model import Result, UploadState, state_of
from tusd_py.uploads.operation import Collaborators
from tusd_py.uploads.operators import Operators
from tusd_py.uploads.policy import UploadPolicy
from tusd_py.uploads.receive import Body
from tusd_py.uploads.removal import Remover


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
        quotas: Limits the bytes of an owner; None for no limits.
        clock: Returns seconds since the epoch.

    Attributes:
        access_policy: As above; tells also whose tokens are revoked.
        expiry: When uploads are due.
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
        quotas: ByteQuotas | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.policy = (policy or UploadPolicy()).within(store.most_bytes)
        self.hooks = hooks or Hooks()
        self.access_policy = access_policy or AccessPolicy()
        shared = Collaborators(
            store,
            locks,
            self.policy,
            self.hooks,
            publisher or EventPublisher(self.hooks),
            counters or Counters(),
            due_marks or DueMarks(),
            self.access_policy,
            open_uploads,
            quotas,
            clock,
        )
        self.expiry = shared.expiry
        self._locks = locks
        self._guard = shared.guard
        self._receiver = shared.receiver
        remover = Remover(shared)
        expirer = Expirer(shared, remover)
        finisher = Finisher(shared, expirer)
        self._creator = Creator(shared, finisher, remover)
        self._finals = FinalCreator(shared, self._creator, finisher.concatenation)
        appender = Appender(shared, finisher, remover)
        self._inspector = inspector = Inspector(shared, finisher)
        operators = Operators(shared)

        # Requests; `create` is below.
        self.find_parts = self._finals.find_parts
        self.append = appender.append
        self.inspect = inspector.inspect
        self.look_up = inspector.look_up
        self.watch = inspector.watch
        self.open_download = inspector.open_download
        self.downloading = inspector.downloading
        self.terminate = remover.terminate
        # The server itself
        self.load = shared.access.load
        self.load_each = shared.access.load_each
        self.progress_of = inspector.progress_of
        self.running_bodies = self._receiver.running
        self.drain = finisher.drain
        # Sweeps and operators
        self.expire_each = expirer.expire_each
        self.expire_missing = expirer.expire_missing
        self.is_missing_too_long = expirer.is_missing_too_long
        self.discard_fragment = expirer.discard_fragment
        self.tidy = expirer.tidy
        self.discard = remover.discard
        self.interrupt = operators.interrupt
        self.extend = operators.extend
        self.recover_interrupted = finisher.recover_interrupted
        self.recover_removals = remover.recover_removals
        abandoned = AbandonedEvents(shared)
        self.drop_abandoned_events = abandoned.drop
        self.drop_abandoned_events_at_times = abandoned.drop_at_times

    def extensions(self, *, trailers: bool) -> list[str]:
        """The extensions of tus 1.0.0 on offer, by the capabilities of the store and the policy.

        trailers: whether the HTTP server passes trailer fields on.
        """
        joins = self.store.joiner is not None and self.policy.concatenation
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
        if parts:
            return await self._finals.create(command, parts, body, request)
        return await self._creator.create(command, body, request)

    def recheck_access(self) -> None:
        """End the requests that have lost their permission while they send or receive bytes."""
        self._receiver.recheck_access()
        self._inspector.recheck_downloads()

    def state_of(self, upload: Upload) -> UploadState:
        """The state of an upload that was just loaded."""
        return state_of(upload, due=self.expiry.is_due(upload))

    # Shutting down

    @property
    def closing(self) -> bool:
        """Whether the server is shutting down."""
        return self._guard.closing

    def begin_shutdown(self) -> None:
        """End the bodies in flight, keeping the bytes that arrived, and refuse all further requests."""
        self._guard.closing = True
        self._receiver.close()
        self._locks.close()
