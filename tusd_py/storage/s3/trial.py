"""Try out what a bucket can do, by doing it to objects of its own, which are removed again."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeVar

from tusd_py.storage.s3.layout import Layout
from tusd_py.storage.s3.object_store import (
    MAX_PARTS,
    MIN_PART_BYTES,
    AccessDenied,
    ObjectKind,
    ObjectStoreError,
    PreconditionFailed,
    Properties,
    StoreMisconfigured,
    StoreUnavailable,
)
from tusd_py.storage.s3.requests import ObjectStore

Outcome = Literal["ok", "note", "problem"]

_PLAIN = Properties("text/plain", metadata={"tusd-py-token": "check"})
_OTHER_ETAG = '"d41d8cd98f00b204e9800998ecf8427e"'
"""An etag that no object here has."""
_SKEW_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What was tried, and what follows.

    Attributes:
        subject: What was tried.
        outcome: ok; note for what a setting or the operator has to mind; problem for what uploads cannot do without.
        text: What follows.
    """

    subject: str
    outcome: Outcome
    text: str


_PATIENCE_SECONDS = 10.0
"""How long an interrupt waits for the end of a step, and the cleanup for each of its own."""

T = TypeVar("T")
_Result = tuple[Outcome, str]
"""The outcome of a step, and what follows."""
_Step = Callable[[], Coroutine[None, None, _Result]]


async def _to_its_end(
    step: Callable[[], Coroutine[None, None, T]], *, patience: float = _PATIENCE_SECONDS
) -> T:
    """Run a step to its end, also if it is cancelled: a request that is given up may have its effect after the cleanup.

    patience: seconds to wait for it once it is cancelled.
    """
    task = asyncio.create_task(step())
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=patience)
        task.cancel()
        raise


class Trial:
    """Tries out one bucket. layout: where its own objects lie, below the state prefix and the prefix of uploads."""

    def __init__(self, objects: ObjectStore, layout: Layout) -> None:
        self._objects = objects
        name = os.urandom(16).hex()
        self._record = layout.state("check", name)
        # As an upload would be named, for policies that allow no other keys.
        self._data = layout.object_prefix + name
        self._upload = ""
        self._is_removed = False

    async def run(self) -> AsyncGenerator[Finding, None]:
        """Yield what was found. Raises StoreMisconfigured, StoreUnavailable if nothing can be tried.

        To be closed by a caller that ends early, so that nothing is left in the bucket.
        """
        steps: list[tuple[str, str, _Step]] = [
            ("store an object", "s3:PutObject", self._store),
            ("read an object", "s3:GetObject", self._read),
            ("list objects", "s3:ListBucket", self._list),
            ("what is not there", "s3:ListBucket", self._missing),
            ("conditional writes", "s3:PutObject", self._conditions),
            ("clocks", "s3:GetObject", self._clocks),
            ("multipart uploads", "s3:PutObject", self._multipart),
            ("list parts", "s3:ListMultipartUploadParts", self._parts),
            ("copies into parts", "s3:GetObject", self._copies),
            ("unequal parts", "s3:PutObject", self._unequal),
            ("conditional completion", "s3:PutObject", self._completion),
            ("conditional removal", "s3:DeleteObject", self._conditional_removal),
            ("number of parts", "s3:PutObject", self._numbers),
            ("list multipart uploads", "s3:ListBucketMultipartUploads", self._uploads),
            ("abort a multipart upload", "s3:AbortMultipartUpload", self._abort),
            ("remove an object", "s3:DeleteObject", self._remove),
        ]
        try:
            for subject, permission, step in steps:
                yield await self._found(subject, permission, step)
        finally:
            # An interrupt may come in the moment in which no step is under way, and is heard here then.
            await _to_its_end(self._clean_up, patience=2 * _PATIENCE_SECONDS)

    @staticmethod
    async def _found(subject: str, permission: str, step: _Step) -> Finding:
        try:
            outcome, text = await _to_its_end(step)
        except (StoreMisconfigured, StoreUnavailable):
            raise
        except AccessDenied as problem:
            outcome, text = "problem", f"the permission {permission} is missing: {problem}"
        except ObjectStoreError as problem:
            outcome, text = "problem", str(problem)
        return Finding(subject, outcome, text)

    async def _clean_up(self) -> None:
        """Remove what is left, if the steps that do so were not reached, as far as the bucket lets it."""
        if self._is_removed:
            return
        for step in (self._abort, self._remove):
            # Not once more as long as a store is asked that cannot be reached.
            with suppress(ObjectStoreError, TimeoutError):
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    await step()

    async def _store(self) -> _Result:
        await self._objects.put(self._record, b"check", _PLAIN)
        await self._objects.put(self._data, b"check", _PLAIN, kind=ObjectKind.DATA)
        return "ok", "with the encryption, access control and storage class that are set"

    async def _read(self) -> _Result:
        head, data = await self._objects.read(self._record, limit=100)
        if data != b"check" or head.properties.metadata != dict(_PLAIN.metadata):
            return "problem", "it is not what was stored, or lost its metadata"
        return "ok", "with its metadata, at once"

    async def _list(self) -> _Result:
        async for page in self._objects.list(self._record):
            if [listed.key for listed in page] == [self._record]:
                return "ok", "new objects are listed at once"
        return "note", "lists lag: sweeps and deliveries see new uploads and events later"

    async def _missing(self) -> _Result:
        if await self._objects.head_or_none(self._record + "-none") is None:
            return "ok", "is told apart from what may not be read"
        return "ok", "is there: another program uses this prefix"

    async def _conditions(self) -> _Result:
        for condition in ({"if_absent": True}, {"if_match": _OTHER_ETAG}):
            try:
                await self._objects.put(self._record, b"wrong", _PLAIN, **condition)
            except PreconditionFailed:
                continue
            name = "If-None-Match" if "if_absent" in condition else "If-Match"
            return (
                "problem",
                f"{name} is ignored: a server that stood still could replace what came meanwhile",
            )
        return "ok", "an object is replaced only if it is the one that was read"

    async def _clocks(self) -> _Result:
        before = time.time()
        await self._objects.put(self._record, b"check", _PLAIN)
        skew = (await self._objects.head(self._record)).modified_at - before
        if abs(skew) > _SKEW_SECONDS:
            return "note", f"the store's clock differs by {skew:.0f} seconds"
        return "ok", "agree"

    async def _multipart(self) -> _Result:
        await self._begin()
        self._first = await self._objects.upload_part(
            self._data, self._upload, 1, bytes(MIN_PART_BYTES + 1)
        )
        return "ok", "can be begun, and take parts"

    async def _begin(self) -> None:
        """Begin a multipart upload, unless one is under way."""
        if not self._upload:
            self._upload = (await self._objects.create_multipart(self._data, _PLAIN)).upload_id

    async def _parts(self) -> _Result:
        listed = await self._objects.list_parts(self._data, self._upload)
        if self._first not in listed:
            return "note", "lists lag: after a change of servers clients send some bytes again"
        return "ok", "new parts are listed at once"

    async def _copies(self) -> _Result:
        await self._objects.put(
            self._data + "-source", bytes(MIN_PART_BYTES), _PLAIN, kind=ObjectKind.DATA
        )
        source = await self._objects.head(self._data + "-source")
        self._second = await self._objects.copy_part(
            self._data, self._upload, 2, source, start=0, end=MIN_PART_BYTES
        )
        return "ok", "uploads are joined inside the store"

    async def _unequal(self) -> _Result:
        last = await self._objects.upload_part(self._data, self._upload, 3, b"end")
        try:
            await self._objects.complete(
                self._data, self._upload, [self._first, self._second, last]
            )
        except (StoreMisconfigured, StoreUnavailable, AccessDenied):
            raise
        except ObjectStoreError:
            return "note", "are refused: set --s3-equal-parts"
        size = (await self._objects.head(self._data)).size
        if size != 2 * MIN_PART_BYTES + 4:
            return "problem", f"the object has {size} bytes after completion"
        self._upload = ""
        return "ok", "are taken"

    async def _completion(self) -> _Result:
        # An object is at this key by now.
        await self._begin()
        part = await self._objects.upload_part(self._data, self._upload, 1, b"wrong")
        try:
            await self._objects.complete(self._data, self._upload, [part], if_absent=True)
        except PreconditionFailed:
            return "ok", "replaces no other object"
        self._upload = ""
        return (
            "note",
            "has no effect: an object that is put at a place that a hook chose, while its upload is completed, is replaced",
        )

    async def _conditional_removal(self) -> _Result:
        await self._remove_as(_OTHER_ETAG)
        head = await self._objects.head_or_none(self._record)
        if head is None:
            return (
                "note",
                "has no effect: what is stored at the key of an upload while that is removed may be removed with it",
            )
        await self._remove_as(head.etag)
        if await self._objects.head_or_none(self._record) is None:
            return "ok", "an object is removed only if it is the one that was seen"
        return "problem", "the store says that an object has another ETag than it tells"

    async def _remove_as(self, etag: str) -> None:
        """Remove the record on condition that it has this etag, and then without one if the store refuses conditions."""
        etags = [etag, etag]

        async def look() -> str:
            return etags.pop() if etags else ""

        await self._objects.delete_if(self._record, look)

    async def _numbers(self) -> _Result:
        await self._begin()
        try:
            await self._objects.upload_part(self._data, self._upload, MAX_PARTS, b"x")
        except (StoreMisconfigured, StoreUnavailable, AccessDenied):
            raise
        except ObjectStoreError:
            return "note", "fewer than 10000: set --s3-max-parts 1000"
        return "ok", "10000"

    async def _uploads(self) -> _Result:
        if await self._objects.pending_uploads(self._data):
            return "ok", "what a lost response left behind is found"
        return (
            "note",
            "they are not found: only a lifecycle rule removes what a lost response left behind",
        )

    async def _abort(self) -> _Result:
        if self._upload:
            await self._objects.abort(self._data, self._upload)
        return "ok", "its parts are freed"

    async def _remove(self) -> _Result:
        for key in (self._data, self._data + "-source", self._record):
            await self._objects.delete(key)
        self._is_removed = True
        return "ok", "nothing is left of this check"
