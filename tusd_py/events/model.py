"""What happens to uploads, told to the operator's own code, and what that code may decide.

A hook is a module, a class or an object with any of the functions that are named for events (`pre_create`, `post_finish`, …);
each takes one `Event`, and may be async. The `pre_` ones are awaited in the order of configuration and may refuse by raising
`Reject`; some may return `Changes`. The `post_` ones run after the response was decided, in order within one upload; those
of them that workers deliver (`DELIVERED`) are not called here, but by `tusd_workers.delivery`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING
from urllib.parse import quote

from tusd_py.auth.principal import ANYBODY, Principal
from tusd_py.background import spawn
from tusd_py.metrics.counters import Counters
from tusd_py.protocol.errors import ProtocolError

if TYPE_CHECKING:
    from tusd_py.redis import RedisClient
    from tusd_py.settings.model import Settings
    from tusd_py.storage.base import UploadInfo

logger = logging.getLogger(__name__)

_POST_TIMEOUT = 3600.0
_PATH_CHARACTERS = "/~!$&'()*+,;=:@"


class EventType(StrEnum):
    """The moments of an upload's life. Named as in tusd, except the last three, which are ours."""

    PRE_CREATE = "pre-create"
    POST_CREATE = "post-create"
    POST_RECEIVE = "post-receive"
    PRE_FINISH = "pre-finish"
    POST_FINISH = "post-finish"
    PRE_TERMINATE = "pre-terminate"
    POST_TERMINATE = "post-terminate"
    PRE_ACCESS = "pre-access"
    POST_EXPIRE = "post-expire"
    CREATE_FAILED = "create-failed"

    @property
    def function(self) -> str:
        """The name of the function that a hook has for it."""
        return self.value.replace("-", "_")


DELIVERED = frozenset(
    (
        EventType.POST_CREATE,
        EventType.POST_FINISH,
        EventType.POST_TERMINATE,
        EventType.POST_EXPIRE,
    )
)
"""Events that workers tell the operator's hooks of, at least once, where delivery is their business."""


@dataclass(frozen=True, slots=True)
class UploadView:
    """An upload as hooks see it. length and offset in bytes; length is None while unknown.

    location: where its bytes lie, relative to the upload directory, if that is not its id.
    """

    id: str
    length: int | None
    offset: int
    metadata: Mapping[str, bytes]
    is_partial: bool = False
    is_final: bool = False
    parts: tuple[str, ...] = ()
    owner: str = ""
    location: str | None = None

    @classmethod
    def of(cls, info: UploadInfo, offset: int) -> UploadView:
        """The view of an upload with this record and this offset, in bytes."""
        return cls(
            id=info.id,
            length=info.length,
            offset=offset,
            metadata=info.metadata,
            is_partial=info.is_partial,
            is_final=info.is_final,
            parts=info.parts,
            owner=info.owner,
            location=info.location,
        )


@dataclass(frozen=True, slots=True)
class RequestView:
    """The request that led to an event; empty for what the server did by itself.

    path: with the query. client: `address:port`. headers: names in lower case. collection_url: where uploads are created, as
    the client sees it, with a slash at the end. principal: who sent it, as far as that is asked.
    """

    method: str = ""
    path: str = ""
    client: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    collection_url: str = ""
    principal: Principal = ANYBODY

    def url_of(self, upload_id: str) -> str:
        """The URL of an upload as this client sees it."""
        return self.collection_url + quote(upload_id, safe=_PATH_CHARACTERS)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens to an upload. id is unique to the event, however often it is told.

    attempt: which attempt to tell it this is, from 1; more only where workers deliver it.
    """

    type: EventType
    upload: UploadView
    request: RequestView
    id: str = field(default_factory=lambda: os.urandom(16).hex())
    attempt: int = 1


FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
FIELD_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
"""What a header field of a response may be (RFC 9110, sections 5.1 and 5.5)."""


def _check_response(status: int | None, fields: Iterable[tuple[object, object]]) -> None:
    """Raises ValueError for what no response can have (RFC 9110, sections 5.1, 5.5 and 15)."""
    if status is not None and not 200 <= status <= 599:
        raise ValueError(f"{status!r} is not the status of a response (200 to 599)")
    for name, value in fields:
        if not isinstance(name, str) or FIELD_NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is not the name of a header field")
        if not isinstance(value, str) or FIELD_VALUE.fullmatch(value) is None:
            raise ValueError(f"the header field {name} cannot have the value {value!r}")


@dataclass(frozen=True, slots=True)
class HookResponse:
    """What a hook makes of the response to a success: another status, further header fields, a body.

    Raises ValueError for a status and for header fields that no response can have.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""

    def __post_init__(self) -> None:
        _check_response(self.status, self.headers.items())


@dataclass(frozen=True, slots=True)
class Changes:
    """What a `pre_create` hook may change; None leaves it as it is. `pre_finish` and `pre_terminate` may set the response.

    storage_path: where the bytes are to lie, relative to the upload directory. expire_after: seconds without a byte, for this
    upload; 0 for never. retain: seconds for which it is kept once it is finished; 0 for ever.
    """

    id: str | None = None
    metadata: Mapping[str, bytes] | None = None
    storage_path: str | None = None
    expire_after: float | None = None
    retain: float | None = None
    response: HookResponse | None = None

    def then(self, later: Changes) -> Changes:
        """These changes with those of a later hook on top."""
        return Changes(
            id=self.id if later.id is None else later.id,
            metadata=self.metadata if later.metadata is None else later.metadata,
            storage_path=self.storage_path if later.storage_path is None else later.storage_path,
            expire_after=self.expire_after if later.expire_after is None else later.expire_after,
            retain=self.retain if later.retain is None else later.retain,
            response=self.response if later.response is None else later.response,
        )


class Reject(Exception):
    """Raised by a `pre_` hook: the request is refused with this response. code: for logs and metrics.

    Raises ValueError for a status and for header fields that no response can have.
    """

    def __init__(
        self,
        status: int = 400,
        body: str = "refused by the server",
        headers: Mapping[str, str] | None = None,
        *,
        code: str = "ERR_UPLOAD_REJECTED",
    ) -> None:
        super().__init__(body)
        self.status = status
        self.body = body
        self.code = code
        self.headers = dict(headers or {})
        _check_response(status, self.headers.items())


class Stop(Exception):
    """Raised by a `post_receive` hook: the running request is ended with this response; what arrived is kept.

    Raises ValueError for a status and for header fields that no response can have.
    """

    def __init__(
        self,
        status: int = 400,
        body: str = "the upload was stopped by the server",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(body)
        self.status = status
        self.body = body
        self.headers = dict(headers or {})
        _check_response(status, self.headers.items())


class HookFailed(Exception):
    """Raised by a hook that could not do its work. The text says why, for the log; no traceback is added to it."""


class HookCrashed(HookFailed):
    """A hook raised what is not for the server to understand; the cause has the traceback."""


class HookError(Exception):
    """A hook cannot be loaded; the text says which and why."""


HookFunction = Callable[[Event], "Awaitable[Changes | None] | Changes | None"]


@dataclass(frozen=True, slots=True)
class HookContext:
    """What a hook may want to know of the server that it runs in; given to its `start`.

    offset_of: the offset of an upload, and whether it is finished; None if it is not there (any more).
    """

    settings: Settings
    state: RedisClient | None
    offset_of: Callable[[str], Awaitable[tuple[int, bool] | None]]
    counters: Counters


class Creation:
    """The hooks that let one creation pass, so that they can take it back. See `Hooks.before_creation`."""

    def __init__(self, hooks: Hooks, event: Event) -> None:
        self._hooks = hooks
        self._passed: list[tuple[object, Event]] = []
        self.event = event
        self.changes = Changes()

    def passed(self, hook: object, changes: Changes | None) -> None:
        """`hook` agreed, perhaps with changes; later hooks see them."""
        self._passed.append((hook, self.event))
        if changes is None:
            return
        self.changes = self.changes.then(changes)
        upload = self.event.upload
        self.event = replace(
            self.event,
            upload=replace(
                upload,
                id=upload.id if changes.id is None else changes.id,
                metadata=upload.metadata if changes.metadata is None else changes.metadata,
                location=upload.location if changes.storage_path is None else changes.storage_path,
            ),
        )

    async def failed(self) -> None:
        """The creation did not come about: the hooks that agreed give back what they reserved, last first."""
        for hook, event in reversed(self._passed):
            with suppress(ProtocolError):
                await self._hooks.call(hook, replace(event, type=EventType.CREATE_FAILED))


class Hooks:
    """The configured hooks. timeout: seconds that one hook may take for one event.

    delivered: those of them, by name, that workers tell of the events in `DELIVERED`.
    """

    def __init__(
        self,
        hooks: Iterable[object] = (),
        *,
        timeout: float = 30.0,
        counters: Counters | None = None,
        delivered: Mapping[str, object] | None = None,
    ) -> None:
        self._timeout = timeout
        self._counters = counters or Counters()
        self._hooks = list(hooks)
        self._delivered = dict(delivered or {})
        self._listeners: dict[EventType, list[object]] = {}
        self._look_at_listeners()
        self._queues: dict[str, asyncio.Task[None]] = {}
        self._last_progress: dict[str, Event] = {}

    async def start(self, context: HookContext) -> None:
        """Lets every hook get ready. Raises HookError for one that cannot."""
        for hook in self._hooks:
            begin = getattr(hook, "start", None)
            if not callable(begin):
                continue
            try:
                await _awaited(begin(context))
            except Exception as problem:
                raise HookError(f"hook {_name(hook)} cannot start: {problem}") from problem
        # What a hook listens to may depend on its settings.
        self._look_at_listeners()

    def _look_at_listeners(self) -> None:
        elsewhere = {id(hook) for hook in self._delivered.values()}
        for event_type in EventType:
            self._listeners[event_type] = [
                hook
                for hook in self._hooks
                if listens(hook, event_type)
                and not (event_type in DELIVERED and id(hook) in elsewhere)
            ]

    async def stop(self) -> None:
        """Tells what is still to be told, and lets every hook end."""
        await self.drain()
        for hook in self._hooks:
            end = getattr(hook, "stop", None)
            if callable(end):
                try:
                    await _awaited(end())
                except Exception:
                    logger.exception("hook %s failed to end", _name(hook))

    def wants(self, event_type: EventType) -> bool:
        """Whether any hook listens to `event_type` here."""
        return bool(self._listeners[event_type])

    @property
    def delivers(self) -> bool:
        """Whether there are hooks that workers tell of events."""
        return any(listens(hook, each) for hook in self._delivered.values() for each in DELIVERED)

    def delivered_to(self, event_type: EventType) -> tuple[str, ...]:
        """The names of the hooks that workers have to tell of an event of this type."""
        if event_type not in DELIVERED:
            return ()
        return tuple(
            name
            for name, hook in self._delivered.items()
            if listens(hook, event_type) and _wants_now(hook, event_type)
        )

    async def deliver(self, name: str, event: Event) -> None:
        """Tells one of the hooks of `delivered`. Raises HookFailed, whose text is for the log."""
        hook = self._delivered.get(name)
        if hook is None or not listens(hook, event.type):
            raise HookFailed(
                f"there is no hook {name} for it here: workers need the same options as servers"
            )
        try:
            await self._invoke(hook, event)
        except (Reject, Stop) as refusal:
            raise HookFailed(f"it refused with {refusal.status}: {refusal.body}") from None

    async def before_creation(self, event: Event) -> Creation:
        """Lets the `pre-create` hooks decide, in order; each sees the changes of those before it.

        Raises the ProtocolError of the first that refuses, after what the others reserved was given back.
        """
        creation = Creation(self, event)
        for hook in self._listeners[EventType.PRE_CREATE]:
            try:
                creation.passed(hook, await self.call(hook, creation.event))
            except BaseException:
                await creation.failed()
                raise
        return creation

    async def ask(self, event: Event) -> Changes:
        """Lets the hooks of a `pre-` event decide, in order. Raises the ProtocolError of the first that refuses, and a 500
        for a hook that fails or takes too long."""
        changes = Changes()
        for hook in self._listeners[event.type]:
            changes = changes.then(await self.call(hook, event) or Changes())
        return changes

    def progress(self, event: Event, stop: Callable[[ProtocolError], None]) -> None:
        """Announces a `post-receive` event like `tell`, so that no bytes wait for its hooks; it is left out while an earlier
        event of the upload is still being told. stop: called with the response if one of them wants the request ended."""
        if event.upload.id not in self._queues:
            self._enqueue(event, stop)

    def progress_end(self, event: Event) -> None:
        """Announces the last `post-receive` event of a request, behind earlier events of the upload. While that of an earlier
        request still waits for its turn, this one takes its place."""
        upload_id = event.upload.id
        if upload_id not in self._last_progress:
            before = self._queues.get(upload_id)
            self._queue(upload_id, self._announce_last_progress(upload_id, before))
        self._last_progress[upload_id] = event

    async def _announce_last_progress(
        self, upload_id: str, before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        await self._announce(self._last_progress.pop(upload_id), None, None)

    def tell(self, event: Event) -> None:
        """Announces a `post-` event: its hooks run in the background, after those of earlier events of the same upload."""
        if self._listeners[event.type]:
            self._enqueue(event, None)

    def _enqueue(self, event: Event, stop: Callable[[ProtocolError], None] | None) -> None:
        before = self._queues.get(event.upload.id)
        self._queue(event.upload.id, self._announce(event, before, stop))

    def _queue(self, upload_id: str, announcement: Coroutine[None, None, None]) -> None:
        task = spawn(announcement, "hooks")
        self._queues[upload_id] = task
        task.add_done_callback(lambda done: self._forget(upload_id, done))

    def _forget(self, upload_id: str, done: asyncio.Task[None]) -> None:
        if self._queues.get(upload_id) is done:
            del self._queues[upload_id]

    async def _announce(
        self,
        event: Event,
        before: asyncio.Task[None] | None,
        stop: Callable[[ProtocolError], None] | None,
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        for hook in self._listeners[event.type]:
            try:
                await self.call(hook, event)
            except Stop as wish:
                if stop is not None:
                    stop(_response_to(wish, "ERR_UPLOAD_STOPPED"))
                    return
            except ProtocolError as refusal:
                logger.debug("a %s hook failed: %s", event.type, refusal)

    async def settle(self, upload_ids: Iterable[str]) -> None:
        """Returns when what was announced of these uploads has been told."""
        tasks = [task for each in upload_ids if (task := self._queues.get(each)) is not None]
        if tasks:
            await asyncio.wait(tasks)

    async def drain(self) -> None:
        """Returns when all that was announced has been told."""
        while self._queues:
            await asyncio.wait(list(self._queues.values()))

    async def call(self, hook: object, event: Event) -> Changes | None:
        """Calls one hook's function for the event, if it has one. Raises the ProtocolError that its refusal or failure means,
        and Stop."""
        try:
            return await self._invoke(hook, event)
        except Reject as refusal:
            raise _response_to(refusal, refusal.code) from None
        except HookFailed as problem:
            logger.error(
                "the %s hook %s failed for upload %r: %s",
                event.type,
                _name(hook),
                event.upload.id,
                problem,
                exc_info=problem.__cause__ if isinstance(problem, HookCrashed) else None,
            )
            raise ProtocolError(
                500,
                "ERR_INTERNAL_SERVER_ERROR",
                "a hook of the server failed; the operator's log has the reason",
            ) from None

    async def _invoke(self, hook: object, event: Event) -> Changes | None:
        """Calls one hook's function for the event, if it has one. Raises Reject, Stop, HookFailed."""
        function: HookFunction | None = getattr(hook, event.type.function, None)
        if function is None:
            return None
        self._counters.hook(event.type.value)
        # Nobody waits for a post- hook but the next event of its upload: copying a large file away may take its time.
        patient = event.type.startswith("post-")
        seconds = max(self._timeout, _POST_TIMEOUT) if patient else self._timeout
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                if inspect.iscoroutinefunction(function):
                    answer = await function(event)
                else:
                    answer = await _awaited(await asyncio.to_thread(function, event))
        except (Reject, Stop):
            raise
        except Exception as problem:
            self._counters.hook_error(event.type.value)
            if limit.expired():
                raise HookFailed(f"it took longer than {seconds:g} s") from None
            if isinstance(problem, HookFailed):
                raise
            raise HookCrashed(repr(problem)) from problem
        return answer if isinstance(answer, Changes) else None


UNASKED = Creation(
    Hooks(), Event(EventType.PRE_CREATE, UploadView("", None, 0, {}), RequestView(), id="")
)
"""Of a creation that no hook was asked about."""


def _response_to(wish: Reject | Stop, code: str) -> ProtocolError:
    is_whole = any(name.lower() == "content-type" for name in wish.headers)
    kind = RefusedByHook if is_whole else ProtocolError
    return kind(wish.status, code, wish.body, wish.headers)


class RefusedByHook(ProtocolError):
    """A refusal whose message is the body as it is to be sent; its media type is among the headers."""


async def _awaited(answer: object) -> object:
    return await answer if inspect.isawaitable(answer) else answer


def listens(hook: object, event_type: EventType) -> bool:
    """Whether a hook has a function for events of this type."""
    return callable(getattr(hook, event_type.function, None))


def _wants_now(hook: object, event_type: EventType) -> bool:
    """What a hook answers that knows better than its functions tell what it has use for."""
    wants = getattr(hook, "wants_event", None)
    return not callable(wants) or bool(wants(event_type))


def _name(hook: object) -> str:
    return getattr(hook, "__name__", type(hook).__qualname__)
