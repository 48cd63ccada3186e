"""The hooks that are called in this process: in which order, how long they may take, and what their failures mean.

The `pre-` hooks are awaited in the order of configuration. The `post-` hooks run in the background after the response was
decided, in order within one upload; those that workers deliver (`DELIVERED`) are not called here, but by
`tusd_workers.delivery`.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from tusd_py.background import spawn
from tusd_py.events.model import (
    DELIVERED,
    Changes,
    Event,
    EventType,
    HookContext,
    HookCrashed,
    HookError,
    HookFailed,
    HookFunction,
    HookRefusal,
    HookResponse,
    RefusedByHook,
    Reject,
    RequestView,
    Stop,
    UploadView,
)
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.telemetry.counters import Counters

logger = logging.getLogger(__name__)

_POST_TIMEOUT_SECONDS = 3600.0
"""Least time-out of a `post-` hook: only the next event of its upload waits for it, and copying a large file takes long."""

SLOW_CREATION_SECONDS = 10.0
"""Time of a creation from which on the hooks that accepted it confirm that."""
_THREADS = 32
"""Threads for hooks that are no coroutines: for those that a request depends on, and as many for those in the background."""
_MOST_WAITING_BYTES = 32 * 1024**2
"""Memory that events may take whose hooks have not run yet, in one process, before requests that would add to them wait."""
_EVENT_BYTES, _ITEM_BYTES = 2048, 160
"""Memory that an event takes besides the texts in it, and each of its header fields and pairs of metadata."""
_ROOM_SECONDS = 5.0
"""How long a request waits for hooks to catch up before it is refused."""
_REPEAT_WARNING_SECONDS = 60.0


class Creation:
    """The hooks that have accepted one creation, to call them again if it fails. See `Hooks.before_creation`."""

    def __init__(self, hooks: Hooks, event: Event) -> None:
        self._hooks = hooks
        self._passed: list[tuple[object, Event]] = []
        self.event = event
        self.changes = Changes()
        self._began = time.monotonic()

    def passed(self, hook: object, changes: Changes | None) -> None:
        """Record that `hook` accepted, perhaps with changes; later hooks see them."""
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

    async def confirm(self) -> None:
        """After a creation that took long, call `confirm_create` of the hooks that accepted it and have such a function.

        Their reservations may have expired meanwhile. Called once the upload exists. Raises the ProtocolError of a refusal.
        """
        if time.monotonic() - self._began < SLOW_CREATION_SECONDS:
            return
        for hook, event in self._passed:
            await self._hooks.call(hook, event, "confirm_create")

    async def failed(self) -> None:
        """Send `create-failed` to the hooks that accepted, the last one first, so that they undo their reservations."""
        for hook, event in reversed(self._passed):
            with suppress(ProtocolError):
                await self._hooks.call(hook, replace(event, type=EventType.CREATE_FAILED))


class Hooks:
    """The configured hooks. timeout: seconds that one hook may take for one event.

    delivered: by name, the hooks that workers call for the events in `DELIVERED`.
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
        self._find_listeners()
        self._queues: dict[str, asyncio.Task[None]] = {}
        self._last_progress: dict[str, Event] = {}
        self._waiting_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._warned_at = -_REPEAT_WARNING_SECONDS
        # Hooks in the background may take an hour each: those that requests wait for have threads of their own.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tusd-hooks")
        self._background_threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tusd-posts")

    async def start(self, context: HookContext) -> None:
        """Call `start` of every hook. Raises HookError if one fails."""
        for hook in self._hooks:
            begin = getattr(hook, "start", None)
            if not callable(begin):
                continue
            try:
                await _awaited(begin(context))
            except Exception as problem:
                raise HookError(f"hook {_name(hook)} cannot start: {problem}") from problem
        # The events of a hook may depend on its settings.
        self._find_listeners()

    def _find_listeners(self) -> None:
        delivered = {id(hook) for hook in self._delivered.values()}
        for event_type in EventType:
            self._listeners[event_type] = [
                hook
                for hook in self._hooks
                if listens(hook, event_type)
                and not (event_type in DELIVERED and id(hook) in delivered)
            ]

    async def stop(self) -> None:
        """Wait for pending notifications, then call `stop` of every hook."""
        await self.drain()
        for hook in self._hooks:
            end = getattr(hook, "stop", None)
            if callable(end):
                try:
                    await _awaited(end())
                except Exception:
                    logger.exception("hook %s failed to stop", _name(hook))
        for threads in (self._threads, self._background_threads):
            threads.shutdown(wait=False)

    @property
    def longest_seconds(self) -> float:
        """What a hook may take for an event in the background, in seconds."""
        return max(self._timeout, _POST_TIMEOUT_SECONDS)

    def wants(self, event_type: EventType) -> bool:
        """Whether any hook listens to `event_type` in this process."""
        return bool(self._listeners[event_type])

    @property
    def delivers(self) -> bool:
        """Whether workers deliver events to any hook."""
        return any(listens(hook, each) for hook in self._delivered.values() for each in DELIVERED)

    def delivered_to(self, event_type: EventType) -> tuple[str, ...]:
        """The names of the hooks to which workers deliver events of this type."""
        if event_type not in DELIVERED:
            return ()
        return tuple(
            name
            for name, hook in self._delivered.items()
            if listens(hook, event_type) and _wants_now(hook, event_type)
        )

    async def deliver(self, name: str, event: Event) -> None:
        """Call one of the hooks in `delivered`, by name. Raises HookFailed."""
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
        """Call the `pre-create` hooks in order; each sees the changes of those before it.

        Raises the ProtocolError of the first that refuses, after sending `create-failed` to those before it.
        """
        creation = Creation(self, event)
        for hook in self._listeners[EventType.PRE_CREATE]:
            try:
                creation.passed(hook, await self.call(hook, creation.event))
            except BaseException:
                await creation.failed()
                raise
        return creation

    async def decide(self, event: Event) -> HookResponse | None:
        """Call the hooks of a `pre-` event in order. Returns the response that the last of them wants, if any does.

        Raises the ProtocolError of the first that refuses, or a 500 if one fails or times out.
        """
        response = None
        for hook in self._listeners[event.type]:
            changes = await self.call(hook, event)
            if changes is not None and changes.response is not None:
                response = changes.response
        return response

    def notify_progress(self, event: Event, stop: Callable[[ProtocolError], None]) -> None:
        """Call the `post-receive` hooks in the background; skipped while an earlier event of the upload is pending.

        stop: called with the response if a hook raises Stop.
        """
        if event.upload.id not in self._queues:
            self.notify(event, stop)

    def notify_progress_end(self, event: Event) -> None:
        """Call the `post-receive` hooks for the last event of a request, after earlier events of the upload.

        Replaces the last event of an earlier request that is still waiting.
        """
        upload_id = event.upload.id
        earlier = self._last_progress.get(upload_id)
        if earlier is None:
            before = self._queues.get(upload_id)
            self._queue(upload_id, self._run_last_progress(upload_id, before))
        else:
            self._release(earlier)
        self._hold(event)
        self._last_progress[upload_id] = event

    async def _run_last_progress(self, upload_id: str, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        event = self._last_progress.pop(upload_id)
        try:
            await self._run(event, None, None)
        finally:
            self._release(event)

    def notify(self, event: Event, stop: Callable[[ProtocolError], None] | None = None) -> None:
        """Call the hooks of a `post-` event in the background, after those of earlier events of the same upload."""
        before = self._queues.get(event.upload.id)
        task = self._queue(event.upload.id, self._run(event, before, stop))
        self._hold(event)
        task.add_done_callback(lambda _done: self._release(event))

    @property
    def has_room(self) -> bool:
        """Whether the events that wait for hooks take little enough memory for more to come."""
        return self._waiting_bytes < _MOST_WAITING_BYTES

    async def wait_for_room(self) -> bool:
        """Wait a moment for hooks to catch up; return whether they have."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_ROOM_SECONDS):
                await self._room.wait()
        return self.has_room

    def _hold(self, event: Event) -> None:
        self._waiting_bytes += _size_of(event)
        if self._waiting_bytes < _MOST_WAITING_BYTES:
            return
        self._room.clear()
        now = time.monotonic()
        if now - self._warned_at >= _REPEAT_WARNING_SECONDS:
            self._warned_at = now
            logger.warning(
                "%d uploads wait for their post- hooks, which are too slow: new requests have to wait",
                len(self._queues),
            )

    def _release(self, event: Event) -> None:
        self._waiting_bytes -= _size_of(event)
        if self._waiting_bytes < _MOST_WAITING_BYTES:
            self._room.set()

    def _queue(self, upload_id: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = spawn(work, "hooks")
        self._queues[upload_id] = task
        task.add_done_callback(lambda done: self._forget(upload_id, done))
        return task

    def _forget(self, upload_id: str, done: asyncio.Task[None]) -> None:
        if self._queues.get(upload_id) is done:
            del self._queues[upload_id]

    async def _run(
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
            except Stop as stopped:
                if stop is not None:
                    stop(_response_to(stopped, "ERR_UPLOAD_STOPPED"))
                    return
            except ProtocolError as refusal:
                logger.debug("a %s hook failed: %s", event.type, refusal)

    async def wait_for(self, upload_ids: Iterable[str]) -> None:
        """Wait for the pending notifications of these uploads."""
        tasks = [task for each in upload_ids if (task := self._queues.get(each)) is not None]
        if tasks:
            await asyncio.wait(tasks)

    async def drain(self) -> None:
        """Wait for all pending notifications."""
        while self._queues:
            await asyncio.wait(list(self._queues.values()))

    async def call(self, hook: object, event: Event, function: str = "") -> Changes | None:
        """Call one hook's function for the event, or the one of another name, if it has one.

        Raises the ProtocolError for its refusal or failure, and Stop.
        """
        try:
            return await self._invoke(hook, event, function)
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
            raise errors.hook_failed() from None

    async def _invoke(self, hook: object, event: Event, name: str = "") -> Changes | None:
        """Call one hook's function for the event, if it has one. Raises Reject, Stop, HookFailed."""
        function: HookFunction | None = getattr(hook, name or event.type.function, None)
        if function is None:
            return None
        self._counters.hook_calls[event.type.value] += 1
        in_background = event.type.startswith("post-")
        seconds = self.longest_seconds if in_background else self._timeout
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                if inspect.iscoroutinefunction(function):
                    answer = await function(event)
                else:
                    threads = self._background_threads if in_background else self._threads
                    answer = await _awaited(await _call_in(threads, function, event))
        except (Reject, Stop):
            raise
        except Exception as problem:
            self._counters.hook_errors[event.type.value] += 1
            if limit.expired():
                raise HookFailed(f"it took longer than {seconds:g} s") from None
            if isinstance(problem, HookFailed):
                raise
            raise HookCrashed(repr(problem)) from problem
        return answer if isinstance(answer, Changes) else None


NO_CREATION_HOOKS = Creation(
    Hooks(), Event(EventType.PRE_CREATE, UploadView("", None, 0, {}), RequestView(), id="")
)
"""A creation without pre-create hooks."""


def _response_to(refusal: Reject | Stop, code: str) -> ProtocolError:
    is_whole = any(name.lower() == "content-type" for name in refusal.headers)
    kind = RefusedByHook if is_whole else HookRefusal
    return kind(refusal.status, code, refusal.body, refusal.headers)


def _call_in(
    threads: ThreadPoolExecutor, function: HookFunction, event: Event
) -> asyncio.Future[Awaitable[Changes | None] | Changes | None]:
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    return loop.run_in_executor(threads, lambda: context.run(function, event))


def _size_of(event: Event) -> int:
    """Bytes of memory that an event takes, roughly."""
    headers, pairs = event.request.headers, event.upload.metadata
    texts = sum(map(len, headers)) + sum(map(len, headers.values()))
    texts += sum(map(len, pairs)) + sum(map(len, pairs.values()))
    return _EVENT_BYTES + texts + _ITEM_BYTES * (len(headers) + len(pairs))


async def _awaited(answer: object) -> object:
    return await answer if inspect.isawaitable(answer) else answer


def listens(hook: object, event_type: EventType) -> bool:
    """Whether a hook has a function for events of this type."""
    return callable(getattr(hook, event_type.function, None))


def _wants_now(hook: object, event_type: EventType) -> bool:
    """The answer of the hook's optional `wants_event`, for hooks with functions for more events than they need."""
    wants = getattr(hook, "wants_event", None)
    return not callable(wants) or bool(wants(event_type))


def _name(hook: object) -> str:
    return getattr(hook, "__name__", type(hook).__qualname__)
