"""A stand-in for the server around the hook: existing uploads, and the events of their lives."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from tests.support.redis import RedisServer
from tusd_hooks.duplicates import Duplicates
from tusd_py.events.model import (
    Event,
    EventType,
    HookContext,
    Progress,
    Reject,
    RequestView,
    UploadView,
)
from tusd_py.redis import RedisClient
from tusd_py.settings.model import Settings
from tusd_py.storage.base import StorageError
from tusd_py.telemetry.counters import Counters

STUDY: Mapping[str, bytes] = {"study": b"17", "filename": b"a.dcm"}
LENGTH = 100

_numbers = itertools.count(1)


@dataclass
class House:
    """A hook, and the storage that it asks: bytes that an upload has, and whether it is finished, by id."""

    hook: Duplicates
    redis_client: RedisClient | None
    settings: Settings
    there: dict[str, tuple[int, bool]] = field(default_factory=dict)
    views: dict[str, UploadView] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    idle: dict[str, float] = field(default_factory=dict)
    """Seconds since the last byte arrived, by id; 0 by default."""
    held_elsewhere: set[str] = field(default_factory=set)
    lengths: dict[str, int] = field(default_factory=dict)
    """Lengths that were declared after the creation, by id."""
    counters: Counters = field(default_factory=Counters)

    async def start(self) -> None:
        await self.hook.start(
            HookContext(self.settings, self.redis_client, self.progress_of, self.counters)
        )

    async def progress_of(self, upload_id: str) -> Progress | None:
        self.asked.append(upload_id)
        if upload_id in self.unreadable:
            raise StorageError("its record is broken")
        found = self.there.get(upload_id)
        if found is None:
            return None
        view = self.views.get(upload_id)
        length = self.lengths.get(upload_id, view.length if view is not None else None)
        changed_at = time.time() - self.idle.get(upload_id, 0.0)
        return Progress(*found, changed_at, length, upload_id in self.held_elsewhere)

    async def ask(
        self,
        metadata: Mapping[str, bytes] = STUDY,
        *,
        length: int | None = LENGTH,
        owner: str = "",
        upload_id: str = "",
        header: str | None = None,
        is_partial: bool = False,
        is_final: bool = False,
    ) -> Event:
        """pre-create: the event, if the hook let it pass. Raises Reject."""
        view = UploadView(
            id=upload_id or f"upload-{next(_numbers)}",
            length=length,
            offset=0,
            metadata=metadata,
            owner=owner,
            is_partial=is_partial,
            is_final=is_final,
        )
        headers = {} if header is None else {"upload-force": header}
        request = RequestView("POST", "/files/", "10.0.0.1:1", headers, "https://host/files/")
        event = Event(EventType.PRE_CREATE, view, request)
        await self.hook.pre_create(event)
        return event

    async def create(
        self,
        metadata: Mapping[str, bytes] = STUDY,
        *,
        length: int | None = LENGTH,
        owner: str = "",
        upload_id: str = "",
        header: str | None = None,
        is_final: bool = False,
    ) -> str:
        """A new upload's id. Raises Reject."""
        event = await self.ask(
            metadata,
            length=length,
            owner=owner,
            upload_id=upload_id,
            header=header,
            is_final=is_final,
        )
        self.there[event.upload.id] = (0, False)
        self.views[event.upload.id] = event.upload
        return event.upload.id

    async def finish(self, upload_id: str, *, length: int = LENGTH) -> Event:
        """All bytes are there, and post-finish is told; the event, for telling it again."""
        self.has_finished(upload_id, length=length)
        event = self.event(EventType.POST_FINISH, upload_id)
        await self.hook.post_finish(event)
        return event

    def has_finished(self, upload_id: str, *, length: int = LENGTH) -> None:
        """All bytes are there, and post-finish has not been called."""
        self.there[upload_id] = (length, True)
        self.views[upload_id] = replace(
            self.views[upload_id], length=length, offset=length, finished_at=time.time()
        )

    async def terminate(self, upload_id: str) -> None:
        await self.hook.pre_terminate(self.event(EventType.PRE_TERMINATE, upload_id))
        del self.there[upload_id]
        await self.hook.post_terminate(self.event(EventType.POST_TERMINATE, upload_id))

    async def expire(self, upload_id: str) -> None:
        del self.there[upload_id]
        await self.hook.post_expire(self.event(EventType.POST_EXPIRE, upload_id))

    def event(self, event_type: EventType, upload_id: str) -> Event:
        return Event(event_type, self.views[upload_id], RequestView())


def problem(refusal: Reject) -> dict[str, object]:
    """The problem details of a refusal."""
    assert refusal.headers["Content-Type"] == "application/problem+json"
    value = json.loads(refusal.body)
    assert value["status"] == refusal.status
    return cast("dict[str, object]", value)


def backdate(redis: RedisServer, seconds: float) -> None:
    """Everything that is remembered was reserved so much earlier."""
    for key in cast("list[bytes]", redis.command("KEYS", "tusd:duplicate:*")):
        records = json.loads(cast(bytes, redis.command("GET", key)))
        for record in records:
            record["created"] -= int(seconds * 1000)
        redis.command("SET", key, json.dumps(records), "KEEPTTL")


def remembered(redis: RedisServer) -> list[tuple[str, str]]:
    """Upload and state of everything that is remembered."""
    found = []
    for key in cast("list[bytes]", redis.command("KEYS", "tusd:duplicate:*")):
        records = json.loads(cast(bytes, redis.command("GET", key)))
        found += [(record["upload"], record["state"]) for record in records]
    return found


async def eventually(condition: Callable[[], bool], what: str, timeout: float = 60.0) -> None:
    """Returns as soon as a condition holds that nobody announces; fails with `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        is_late = time.monotonic() > deadline
        if condition():
            return
        assert not is_late, f"waited {timeout} s for {what}"
        await asyncio.sleep(0.005)
