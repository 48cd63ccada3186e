"""What all operations on the uploads of one store have in common: their collaborators."""

from __future__ import annotations

from dataclasses import dataclass, field

from tusd_py.auth.byte_quota import ByteQuotas
from tusd_py.auth.policy import AccessPolicy
from tusd_py.auth.quota import OpenUploads
from tusd_py.events.hooks import Hooks
from tusd_py.events.publisher import EventPublisher
from tusd_py.locks.base import Locks
from tusd_py.storage.base import Store
from tusd_py.telemetry.counters import Counters
from tusd_py.uploads.access import Access
from tusd_py.uploads.due_marks import DueMarks
from tusd_py.uploads.expiry import Expiry
from tusd_py.uploads.guard import Guard
from tusd_py.uploads.pending_finals import PendingFinals
from tusd_py.uploads.policy import UploadPolicy
from tusd_py.uploads.quotas import Quotas
from tusd_py.uploads.receive import BodyReceiver
from tusd_py.uploads.sweep_guard import Clock

_RECOVERY_DELAY_SECONDS = 60.0
"""Time after which the sweep checks an upload whose finish, join or removal was interrupted."""


@dataclass(slots=True)
class Collaborators:
    """See `Uploads` for those that are given (byte_quotas: its `quotas`); the others follow from them."""

    store: Store
    locks: Locks
    policy: UploadPolicy
    hooks: Hooks
    publisher: EventPublisher
    counters: Counters
    due_marks: DueMarks
    access_policy: AccessPolicy
    open_uploads: OpenUploads | None
    byte_quotas: ByteQuotas | None
    clock: Clock
    pending: PendingFinals = field(init=False)
    expiry: Expiry = field(init=False)
    access: Access = field(init=False)
    guard: Guard = field(init=False)
    quotas: Quotas = field(init=False)
    receiver: BodyReceiver = field(init=False)

    def __post_init__(self) -> None:
        self.pending = PendingFinals(self.store.load, expire_after=self.policy.expire_after)
        self.expiry = Expiry(self.store, self.policy, self.pending, self.clock)
        self.access = Access(self.store, self.access_policy, self.hooks, self.expiry)
        self.guard = Guard(
            self.locks,
            self.access,
            self.hooks,
            self.counters,
            self.policy.acquire_lock_timeout,
        )
        self.quotas = Quotas(
            self.store, self.policy, self.access, self.guard, self.open_uploads, self.byte_quotas
        )
        self.receiver = BodyReceiver(
            self.store,
            self.policy,
            self.hooks,
            self.counters,
            self.clock,
            self.access.append_error,
        )


class Operation:
    """Base of the operations: has the collaborators at hand."""

    def __init__(self, collaborators: Collaborators) -> None:
        self._store = collaborators.store
        self._joiner = collaborators.store.joiner
        self._locks = collaborators.locks
        self._policy = collaborators.policy
        self._hooks = collaborators.hooks
        self._publisher = collaborators.publisher
        self._counters = collaborators.counters
        self._due_marks = collaborators.due_marks
        self._pending = collaborators.pending
        self._expiry = collaborators.expiry
        self._access = collaborators.access
        self._guard = collaborators.guard
        self._quotas = collaborators.quotas
        self._receiver = collaborators.receiver

    def _mark_due_soon(self, upload_id: str) -> None:
        """Have the sweep check an upload soon, in case the current operation on it is interrupted."""
        self._due_marks.mark(upload_id, self._expiry.now() + _RECOVERY_DELAY_SECONDS)
