"""Create final uploads (tus 1.0.0, "Concatenation"), so that a request can be repeated whose response was lost.

An equal request, with the same parts in order, owner and metadata, gets the final that the first one created. Not for: joining
(`concatenation.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import suppress

from tusd_py.auth.principal import Action
from tusd_py.batches import batched
from tusd_py.events.model import Event, EventType, RequestView, UploadView
from tusd_py.locks.base import Fence, LockTimeout
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.tus import Creation
from tusd_py.storage.base import (
    BytesMissing,
    Upload,
    UploadDamaged,
    UploadGone,
    UploadInfo,
    UploadNotFound,
)
from tusd_py.uploads.concatenation import Concatenation
from tusd_py.uploads.create import Creator, FinalKey
from tusd_py.uploads.failures import translated
from tusd_py.uploads.model import Result
from tusd_py.uploads.operation import Collaborators, Operation
from tusd_py.uploads.quotas import size_of
from tusd_py.uploads.receive import Body, BodyReceiver

_ASKED_TOGETHER = 32
"""Parts about which the hooks are asked at the same time."""
_KEY_LOCK = ".final/"
"""Prefix of the name that is locked while a final is created; no upload has such an id."""


def final_key(info: UploadInfo) -> str:
    """Digest of what identifies a final: its parts in order, its owner, its metadata. Equal creations have equal keys."""
    digest = hashlib.sha256()
    pairs = [part for key in sorted(info.metadata) for part in (key.encode(), info.metadata[key])]
    owner = info.owner.encode("utf-8", "surrogatepass")
    for group in ([part.encode() for part in info.parts], [owner], pairs):
        digest.update(b"%d:" % len(group))
        for each in group:
            digest.update(b"%d:" % len(each) + each)
    return digest.hexdigest()


class FinalCreator(Operation):
    """Creates the finals of one store."""

    def __init__(
        self,
        collaborators: Collaborators,
        receiver: BodyReceiver,
        creator: Creator,
        concatenation: Concatenation,
    ) -> None:
        super().__init__(collaborators)
        self._receiver = receiver
        self._creator = creator
        self._concatenation = concatenation

    async def create(
        self, command: Creation, parts: Sequence[str], body: Body, request: RequestView
    ) -> Result:
        """Create a final, or return the one that an earlier, equal request created (POST). Raises ProtocolError.

        parts: their ids.
        """
        await self._guard.admit_creation()
        with translated:
            info = self._creator.new_record(command, parts, request)
            key = final_key(info)
            try:
                async with await self._guard.acquire(
                    f"{_KEY_LOCK}{key}", request_release=False
                ) as lease:
                    found = await self._same_final(key, info)
                    if found is None:
                        return await self._create(info, key, body, request, lease.fence)
            except LockTimeout:
                # Another request is joining it.
                found = await self._same_final(key, info)
                if found is None:
                    raise errors.locked() from None
            await self._check_repeat(found, info, request)
            return Result(found)

    async def _create(
        self, info: UploadInfo, key: str, body: Body, request: RequestView, fence: Fence
    ) -> Result:
        sources = await self._concatenation.parts(
            info.parts, lambda part: self._access.check(part, request, Action.JOIN)
        )
        info = info._replace(
            length=self._concatenation.length_of(info.parts, sources),
            max_size=_least(info.max_size, *(part.info.max_size for part in sources.values())),
            # Without an access token, which says itself what is in force now.
            quota=None
            if request.principal.owner
            else _least(*(part.info.quota for part in sources.values())),
        )
        self._creator.check_size(info, None)
        self._concatenation.check_repeats(info.parts, sources)
        await self._receiver.check_space(info.length or 0)
        for some in batched(sources.values(), _ASKED_TOGETHER):
            await asyncio.gather(*(self._access.ask_hooks(each, request) for each in some))
        # At least that much, while parts are unfinished.
        known = sum(size_of(sources[part]) for part in info.parts)
        return await self._creator.carry_out(
            info, None, body, request, key=FinalKey(key, fence), reserved=known
        )

    async def _same_final(self, key: str, info: UploadInfo) -> Upload | None:
        """The existing final with the same parts, owner and metadata as `info`; None if there is none."""
        if self._joiner is None or (final_id := await self._joiner.recall_final(key)) is None:
            return None
        try:
            found = await self._access.load(final_id)
        except (UploadNotFound, UploadGone):
            return None
        # The id may belong to another upload now.
        is_same = (found.info.parts, found.info.owner) == (info.parts, info.owner)
        return found if is_same and not await self._expiry.is_over(found) else None

    async def _check_repeat(self, found: Upload, info: UploadInfo, request: RequestView) -> None:
        """Raise the refusal of a repeated creation, if there is one other than that the final exists."""
        if request.principal.owner:
            self._access.check(found.info, request, Action.INSPECT)
        if not self._hooks.wants(EventType.PRE_CREATE):
            return
        event = Event(EventType.PRE_CREATE, UploadView.of(info, 0), request)
        try:
            creation = await self._hooks.before_creation(event)
        except ProtocolError as problem:
            if problem.code != errors.DUPLICATE_UPLOAD:
                raise
        else:
            # Nothing is created: the hooks undo their reservations.
            await creation.failed()

    async def find_part(self, ids: Sequence[str], request: RequestView) -> str:
        """The first of `ids`, the candidates for one URL, of an upload that the client may join. Raises a 404.

        A single candidate is not loaded here, as `create` loads every part.
        """
        if len(ids) == 1:
            return ids[0]
        for part_id in ids:
            with translated, suppress(UploadNotFound, UploadGone):
                part = await self._record_of(part_id)
                try:
                    self._access.check(part, request, Action.JOIN)
                except ProtocolError as problem:
                    if problem.status == 404:
                        continue
                    raise
                return part_id
        raise errors.not_found()

    async def _record_of(self, upload_id: str) -> UploadInfo:
        """The record of an upload, even if its bytes are missing or wrong. Raises StorageError."""
        try:
            return (await self._store.load(upload_id)).info
        except (UploadDamaged, BytesMissing) as problem:
            return problem.upload.info


def _least(*limits: int | None) -> int | None:
    """The smallest of several limits; None if there is none."""
    return min((limit for limit in limits if limit is not None), default=None)
