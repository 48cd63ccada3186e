"""Create final uploads (tus 1.0.0, "Concatenation"), so that a request can be repeated whose response was lost.

An equal request, with the same parts in order, owner and metadata, gets the final that the first one created. Not for: joining
(`concatenation.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress

from tusd_py.auth.principal import Action
from tusd_py.events.model import Event, EventType, RequestView, UploadView
from tusd_py.locks.base import Fence, LockTimeout
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.tus import Creation
from tusd_py.redis.batches import batched
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
from tusd_py.uploads.receive import Body

_ASKED_TOGETHER = 32
"""Parts about which the hooks are asked at the same time."""
_YIELD_EVERY = 50
"""URLs or look-ups after which other requests are served."""
_FAILED_LOOK_UPS = 100
"""Look-ups of candidates that may fail besides one for each URL."""
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
        self, collaborators: Collaborators, creator: Creator, concatenation: Concatenation
    ) -> None:
        super().__init__(collaborators)
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
        await self._concatenation.check_waiting(info.parts, sources)
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

    async def find_parts(
        self, candidates: Iterable[Sequence[str]], request: RequestView
    ) -> list[str]:
        """For each URL of a list the first of its candidate ids that is an upload which the client may join.

        A single candidate is not loaded here, as `create` loads every part. One part can be spelled in thousands of ways, so
        each id is looked up once, other requests are served in between, and the look-ups that fail are bounded: a prefix in
        which the base path occurs costs one for each URL.

        Raises:
            ProtocolError: 404 for a URL without such a candidate, 400 after too many look-ups that failed.
        """
        found: list[str] = []
        known: dict[str, bool] = {}
        failed = 0
        for position, ids in enumerate(candidates, start=1):
            part_id = ids[0] if len(ids) == 1 else None
            for each in ids if part_id is None else ():
                if each not in known:
                    known[each] = await self._may_join(each, request)
                    failed += not known[each]
                    if len(known) % _YIELD_EVERY == 0:
                        await asyncio.sleep(0)
                if known[each]:
                    part_id = each
                    break
                if failed > position + _FAILED_LOOK_UPS:
                    raise errors.invalid_concat("its URLs can be read in too many ways")
            if part_id is None:
                raise errors.not_found()
            found.append(part_id)
            if position % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
        return found

    async def _may_join(self, upload_id: str, request: RequestView) -> bool:
        """Whether there is such an upload, and the client may join it. Raises a refusal other than that it is unknown."""
        with translated, suppress(UploadNotFound, UploadGone):
            try:
                part = (await self._store.load(upload_id)).info
            except (UploadDamaged, BytesMissing) as problem:
                part = problem.upload.info
            try:
                self._access.check(part, request, Action.JOIN)
            except ProtocolError as problem:
                if problem.status == 404:
                    return False
                raise
            return True
        return False


def _least(*limits: int | None) -> int | None:
    """The smallest of several limits; None if there is none."""
    return min((limit for limit in limits if limit is not None), default=None)
