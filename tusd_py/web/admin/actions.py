"""What operators can do. Each action is logged with who did it, and kept among the last ones for the page."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from tusd_py import logs
from tusd_py.auth.revocation import Revocations
from tusd_py.background import spawn
from tusd_py.events import failed
from tusd_py.events.outbox_record import MalformedOutboxRecord
from tusd_py.maintenance.local import MaintenanceError, sweep_alone
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.redis import RedisUnavailable
from tusd_py.redis.due_index import DueIndex
from tusd_py.redis.duplicate_index import DuplicateIndex
from tusd_py.service.instance import Instance
from tusd_py.storage.base import KeptEvent, Outbox
from tusd_py.uploads.failures import translated
from tusd_py.uploads.sweep import SweepReport
from tusd_py.web.admin import models
from tusd_py.web.admin.access import Operator
from tusd_py.web.admin.uploads import UploadQueries

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 15.0
"""How long a request waits for a sweep, which may take minutes; then it goes on in the background."""
_KEPT = 200
_REMOVAL_ATTEMPTS = 3
"""A client may resume between the end of its request and the removal."""


@dataclass(frozen=True, slots=True)
class ActionKind:
    """An action: what it takes, what it does, and what it is for, for the OpenAPI document."""

    takes: type[BaseModel]
    act: Callable[[Any], Awaitable[models.Done]]
    about: str


class Actions:
    """The actions on one instance."""

    def __init__(self, instance: Instance, uploads: UploadQueries) -> None:
        self._instance = instance
        self._uploads = uploads
        self._background: set[asyncio.Task[None]] = set()
        self._last: deque[models.Action] = deque(maxlen=_KEPT)
        # fmt: off
        self.kinds = {
            "end-request": ActionKind(models.OneUpload, self._end_request,
                "End the request that is writing to an upload. What arrived is kept; the client may resume."),
            "remove": ActionKind(models.OneUpload, self._remove,
                "Remove an upload and its bytes, finished or not, after ending a request that is writing to it."),
            "extend": ActionKind(models.Extension, self._extend, "Keep an upload for at least so long from now."),
            "revoke-upload": ActionKind(models.OneUpload, self._revoke_upload,
                "Revoke the tokens of an upload for good; its running request ends."),
            "revoke-owner": ActionKind(models.OneOwner, self._revoke_owner,
                "Revoke all tokens of an owner that were issued until now; running requests end."),
            "forget-fingerprint": ActionKind(models.OneFingerprint, self._forget_fingerprint,
                "Forget the fingerprint of an upload, so that the same can be uploaded again."),
            "replay-events": ActionKind(models.SomeEvents, self._replay, "Let workers deliver failed events again."),
            "drop-events": ActionKind(models.SomeEvents, self._drop, "Drop failed events for good."),
            "sweep": ActionKind(models.SweepOrder, self._sweep,
                "Remove expired uploads now, or count them (dry_run): those that are due by the index, or all of the storage."),
        }
        # fmt: on

    async def last(self) -> models.Actions:
        """Return the last actions, the latest first."""
        return models.Actions(actions=list(reversed(self._last)))

    async def carry_out(self, name: str, order: BaseModel, operator: Operator) -> models.Done:
        """Carry out an action and log it. Raises ProtocolError."""
        kind = self.kinds[name]
        fields = order.model_dump(exclude_defaults=True)
        try:
            done = await kind.act(order)
        except ProtocolError as problem:
            self._log(name, operator, fields, f"refused: {problem.message}")
            raise
        except RedisUnavailable:
            self._log(name, operator, fields, "refused: Redis is away")
            raise errors.unavailable() from None
        self._log(name, operator, fields, done.detail)
        return done

    def log_download(self, upload_id: str, operator: Operator) -> None:
        """Log that an operator downloads an upload."""
        self._log("download", operator, {"upload": upload_id}, "begun")

    def _log(self, name: str, operator: Operator, fields: dict[str, object], result: str) -> None:
        what = ", ".join(f"{key} {value}" for key, value in fields.items())
        logs.event(
            logger,
            logging.INFO,
            "operator action",
            action=name,
            by=operator.name,
            via=operator.via,
            what=what,
            result=result,
        )
        detail = f"{what}: {result}"
        self._last.append(
            models.Action(at=time.time(), operator=operator.name, name=name, detail=detail[:1000])
        )

    # Uploads

    async def _end_request(self, order: models.OneUpload) -> models.Done:
        await self._uploads.load(order.upload)
        await self._instance.uploads.interrupt(order.upload)
        return models.Done(count=1, detail="no request is writing to it any more")

    async def _remove(self, order: models.OneUpload) -> models.Done:
        await self._uploads.load(order.upload)
        uploads = self._instance.uploads
        with translated:
            for _ in range(_REMOVAL_ATTEMPTS):
                await uploads.interrupt(order.upload)
                if await uploads.discard(order.upload):
                    return models.Done(count=1, detail="removed")
        raise errors.locked()

    async def _extend(self, order: models.Extension) -> models.Done:
        await self._uploads.load(order.upload)
        with translated:
            upload = await self._instance.uploads.extend(order.upload, order.seconds)
        if upload is None:
            raise errors.not_offered(
                "a client is writing to the upload; with its last byte its time begins anew"
            )
        due = self._instance.uploads.expiry.due_at(upload)
        if due is None:
            return models.Done(count=0, detail="it is never removed")
        return models.Done(count=1, detail=f"kept for {due - time.time():.0f} s from now")

    # Tokens

    def _revocations(self) -> Revocations:
        if self._instance.authenticator is None:
            raise errors.not_offered("this server asks for no tokens, so none can be revoked")
        return self._instance.authenticator.revocations

    async def _revoke_upload(self, order: models.OneUpload) -> models.Done:
        revocations = self._revocations()
        await self._uploads.load(order.upload)
        await revocations.revoke_upload(order.upload)
        return models.Done(count=1, detail="revoked")

    async def _revoke_owner(self, order: models.OneOwner) -> models.Done:
        await self._revocations().revoke_owner(order.owner)
        return models.Done(count=1, detail="revoked")

    # Fingerprints

    async def _forget_fingerprint(self, order: models.OneFingerprint) -> models.Done:
        redis = self._instance.redis
        if redis is None:
            raise errors.unavailable()
        found = await DuplicateIndex(redis).release(order.fingerprint, order.upload)
        return models.Done(count=int(found), detail="forgotten" if found else "it was not known")

    # Events

    def _outbox(self) -> Outbox:
        if self._instance.outbox is None:
            raise errors.not_offered("this server calls all hooks itself, so no events are kept")
        return self._instance.outbox

    async def _failed(self, order: models.SomeEvents) -> list[KeptEvent]:
        """The failed events that an order names. Raises a 400 for one that names none."""
        outbox = self._outbox()
        if [bool(order.events), order.upload is not None, order.every].count(True) != 1:
            raise errors.bad_request("give either events, or upload, or every")
        with translated:
            if order.upload is not None:
                self._uploads.check_id(order.upload)
                return await outbox.of(order.upload, "failed")
            wanted = set(order.events)
            return [
                kept
                async for kept in outbox.every("failed")
                if order.every or kept.event_id in wanted
            ]

    async def _replay(self, order: models.SomeEvents) -> models.Done:
        found, unreadable = await self._failed(order), 0
        for kept in found:
            try:
                with translated:
                    await failed.replay(self._outbox(), kept)
            except MalformedOutboxRecord as problem:
                unreadable += 1
                logger.warning("event %s cannot be delivered again: %s", kept.event_id, problem)
        for upload_id in {kept.upload_id for kept in found}:
            self._instance.publisher.enqueue(upload_id)
        rest = f"; {unreadable} cannot be read" if unreadable else ""
        return models.Done(count=len(found) - unreadable, detail=f"to be delivered again{rest}")

    async def _drop(self, order: models.SomeEvents) -> models.Done:
        found = await self._failed(order)
        with translated:
            for kept in found:
                await failed.drop(self._outbox(), kept)
        return models.Done(count=len(found), detail="dropped")

    # Sweeps

    async def _sweep(self, order: models.SweepOrder) -> models.Done:
        index = self._instance.due_index
        if index is None:
            raise errors.unavailable()
        task = asyncio.ensure_future(self._swept(order, index))
        done, _ = await asyncio.wait([task], timeout=_WAIT_SECONDS)
        if done:
            return task.result()
        spawn(_ended(task), "sweep for an operator", self._background)
        return models.Done(count=0, detail="the sweep goes on", is_running=True)

    async def _swept(self, order: models.SweepOrder, index: DueIndex) -> models.Done:
        maintenance = self._instance.maintenance
        try:
            if order.dry_run:
                report = await maintenance.sweep(order.kind, dry_run=True)
                return models.Done(
                    count=report.expired, detail=_sentence(report, "would be removed")
                )
            found = await sweep_alone(maintenance, index, order.kind)
        except MaintenanceError as problem:
            logger.warning("the sweep of an operator failed: %s", problem)
            raise errors.unavailable() from None
        if found is None:
            raise errors.not_offered("another sweep is running")
        if found.held_because:
            raise errors.not_offered(f"the sweep is held: {found.held_because}")
        return models.Done(count=found.expired, detail=_sentence(found, "removed"))


def _sentence(report: SweepReport, verb: str) -> str:
    return f"{report.expired} of {report.seen} uploads {verb}, {report.failed} could not be swept"


async def _ended(task: asyncio.Future[models.Done]) -> None:
    """Log how a sweep ended that nobody waits for any more."""
    try:
        logger.info("the sweep of an operator ended: %s", (await task).detail)
    except ProtocolError as problem:
        logger.warning("the sweep of an operator ended: %s", problem.message)
