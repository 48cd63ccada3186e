"""tuspyserver's router on this server's engine: `from tusd_py.compat.tuspyserver import create_tus_router`.

It has the parameters of tuspyserver's, resolves dependencies in the same order and calls hooks with the same arguments at the
same moments; `TusApp` does the rest. docs/from-tuspyserver.md lists the differences. Needs FastAPI (`tusd-py[fastapi]`).
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of the functions in `_add_routes`, whose dependencies
# are local to it.

import asyncio
import inspect
import logging
import multiprocessing
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, cast
from urllib.parse import unquote
from weakref import WeakSet

try:
    from fastapi import APIRouter, Depends, HTTPException, Request, Response
    from fastapi.routing import APIRoute
except ImportError as problem:
    raise ImportError("the router needs FastAPI: pip install 'tusd-py[fastapi]'") from problem
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from tusd_py.compat.engines import lifespan, open_engines
from tusd_py.events.model import Changes, Event
from tusd_py.protocol import errors, tus
from tusd_py.protocol.concat import Final
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.headers import Headers, parse_digits
from tusd_py.service.connect import open_maintenance
from tusd_py.settings.load import load
from tusd_py.settings.model import Settings
from tusd_py.storage.base import StorageError, Upload, is_valid_id
from tusd_py.storage.file.layout import Layout
from tusd_py.web.app import TusApp

logger = logging.getLogger(__name__)

DEFAULT_MAX_SIZE = 128_849_018_880
"""Bytes."""
_DEFAULTS = {
    "TUSD_DUPLICATES": "off",
    "TUSD_JOBS": "off",
    "TUSD_HOOKS_DELIVERY": "server",
    "TUSD_BEHIND_PROXY": "private",
}
"""Defaults that differ from those of our server, as tuspyserver works so. The environment takes precedence."""
_HOOKS_TIMEOUT = "1h"
"""As tuspyserver does not limit the time of hooks."""
_YIELD_EVERY = 50
_ANSWERED = "tusd_py.answered"

Metadata = dict[str, str]
"""Metadata of an upload: `Upload-Metadata` with decoded values."""
OnComplete = Callable[[str, Metadata], object]
"""Called with the path of the data file and the metadata when an upload is complete."""
PreCreate = Callable[[Metadata, dict[str, object]], object]
"""Called with the metadata, and with `size` (bytes or None), `defer_length` and `expires`, before an upload is created."""


async def noop() -> None:
    """Allow every request; a dependency that returns nothing."""


@dataclass(slots=True)
class _Call:
    """One request on its way through the engine. uid: the id that a new upload is to have. upload_id: the one it has.

    front: of its router. completes: whether the hook of a completion is called by the request itself.
    """

    front: "_Front"
    completes: bool = True
    uid: str | None = None
    upload_id: str | None = None


_current: ContextVar[_Call | None] = ContextVar("tusd_py_tuspyserver_call", default=None)


class _Bridge:
    """The engine's hook: sets the ids of new uploads, and reports uploads that finish outside of their own requests.

    An upload whose last bytes came before a crash is finished by the next request that looks at it. front: of the router that
    opened the directory.
    """

    def __init__(self, front: "_Front", directory: str) -> None:
        self._front = front
        self._directory = directory

    async def pre_create(self, event: Event) -> Changes | None:
        """Set the id before an upload is created."""
        call = _current.get()
        if call is None:
            return None
        call.upload_id = call.uid or event.upload.id
        return Changes(id=call.uid, expire_after=call.front.expire_after)

    async def post_finish(self, event: Event) -> None:
        """Record that an upload finished."""
        call = _current.get()
        if call is not None and call.completes and call.upload_id == event.upload.id:
            return
        on_complete = (self._front if call is None else call.front).on_complete
        if on_complete is None:
            if self._front.has_dependency:
                logger.warning(
                    "upload %s was finished without a request that could tell upload_complete_dep",
                    event.upload.id,
                )
            return
        path = os.path.join(self._directory, event.upload.location or event.upload.id)
        await _called(on_complete, path, _texts(event.upload.metadata))


class TusRouter(APIRouter):
    """What `create_tus_router` returns."""

    front: "_Front"

    def remove_expired_files(self, *, force: bool = False) -> None:
        """Remove expired uploads now, in every directory in use. The server does so by itself every ten minutes.

        For schedulers that run beside the event loop; inside of it, await `sweep`. force: also if that is most of what there
        is, or if the clock is far from that of the last sweep; otherwise only a warning is logged. Raises MaintenanceError.
        """
        asyncio.run(self.sweep(force=force))

    async def sweep(self, *, force: bool = False) -> None:
        """Remove expired uploads now, in every directory in use; see `remove_expired_files`. Raises MaintenanceError."""
        for directory in sorted(self.front.directories):
            settings = self.front.settings_of(directory)
            async with open_maintenance(settings, may_open=True) as maintenance:
                await maintenance.sweep("all", dry_run=False, tell=None, force=force)


class _TusRoute(APIRoute):
    """A route that heeds `X-HTTP-Method-Override`, and whose refusals close the connection instead of waiting for the body."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(_with_effective_method(scope))

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope = _with_effective_method(scope)

        async def send_closing(message: Message) -> None:
            if (
                message["type"] == "http.response.start"
                and message["status"] >= 400
                and _ANSWERED not in scope
                and Headers(scope["headers"]).get("content-length", "0") != "0"
            ):
                MutableHeaders(scope=message).setdefault("connection", "close")
            await send(message)

        await super().handle(scope, receive, send_closing)


def create_tus_router(  # noqa: PLR0917 - theirs
    prefix: str = "files",
    files_dir: str | os.PathLike[str] = "/tmp/files",  # noqa: S108 - theirs
    max_size: int = DEFAULT_MAX_SIZE,
    auth: Callable[..., object] | None = noop,
    days_to_keep: float = 5,
    on_upload_complete: OnComplete | None = None,
    upload_complete_dep: Callable[..., object] | None = None,
    pre_create_hook: PreCreate | None = None,
    pre_create_dep: Callable[..., object] | None = None,
    file_dep: Callable[..., object] | None = None,
    tags: Sequence[str] | None = None,
    strict_offset_validation: bool = False,
    storage: object = None,
    *,
    settings: Mapping[str, object] | None = None,
) -> TusRouter:
    """A FastAPI router that takes uploads under `prefix` and keeps them in `files_dir`; for `app.include_router`.

    max_size: bytes. auth: a dependency that raises an HTTPException to refuse a request. days_to_keep: days without a byte,
    after which an unfinished upload expires. The other dependencies return the function that is called like the hook of that
    name. strict_offset_validation: offsets are validated strictly with either value. storage: only its directory is used.
    settings: further settings of this server by name, such as {"duplicates": "on"}; the environment may have them, too
    (TUSD_DUPLICATES).

    Raises ValueError for an invalid setting, and TypeError for a storage that is not on a file system.
    """
    prefix = prefix.strip("/")
    router = TusRouter(
        prefix=f"/{prefix}" if prefix else "",
        route_class=_TusRoute,
        tags=list(tags or ["Tus"]),
        lifespan=lifespan,
    )
    router.front = _Front(
        directory=_absolute(files_dir if storage is None else _directory_of(storage)),
        max_size=max_size,
        expire_after=days_to_keep * 86_400.0,
        on_complete=on_upload_complete,
        has_dependency=upload_complete_dep is not None,
        further=dict(settings or {}),
    )

    async def completion() -> OnComplete | None:
        return on_upload_complete

    async def creation() -> PreCreate | None:
        return pre_create_hook

    _add_routes(
        router,
        auth=auth or noop,
        completion=upload_complete_dep or completion,
        creation=pre_create_dep or creation,
        placement=file_dep or noop,
    )
    return router


def _add_routes(
    router: TusRouter,
    *,
    auth: Callable[..., object],
    completion: Callable[..., object],
    creation: Callable[..., object],
    placement: Callable[..., object],
) -> None:
    front = router.front
    Completion = Annotated[object, Depends(completion)]
    Creation = Annotated[object, Depends(creation)]
    Placement = Annotated[object, Depends(placement)]

    async def create(
        request: Request,
        response: Response,
        on_complete: Completion,
        pre_create: Creation,
        place_of: Placement,
    ) -> Response:
        """Create an upload."""
        return await front.create(request, response, on_complete, pre_create, place_of)

    async def append(
        request: Request,
        response: Response,
        upload_id: str,
        on_complete: Completion,
        place_of: Placement,
    ) -> Response:
        """Add bytes to an upload."""
        return await front.append(request, response, upload_id, on_complete, place_of)

    async def inspect_upload(
        request: Request, response: Response, upload_id: str, place_of: Placement
    ) -> Response:
        """Tell how far an upload has come."""
        return await front.carry_out(request, response, upload_id, place_of)

    async def terminate(
        request: Request, response: Response, upload_id: str, place_of: Placement
    ) -> Response:
        """Remove an upload."""
        return await front.carry_out(request, response, upload_id, place_of)

    def add(path: str, endpoint: Callable[..., object], method: str, status: int) -> None:
        router.add_api_route(
            path,
            endpoint,
            methods=[method],
            # Refuses a request before any other dependency is called, and before a byte is read.
            dependencies=[Depends(auth)],
            status_code=status,
            response_model=None,
            include_in_schema=path != "",
            openapi_extra={
                "parameters": [
                    {"name": name, "in": "header", "required": required, "schema": {"type": kind}}
                    for name, kind, required in _FIELDS[method]
                ]
            },
        )

    for path in ("", "/") if router.prefix else ("/",):
        add(path, create, "POST", 201)
        add(path, front.capabilities, "OPTIONS", 204)
    add("/{upload_id}", append, "PATCH", 204)
    add("/{upload_id}", inspect_upload, "HEAD", 200)
    add("/{upload_id}", terminate, "DELETE", 204)


@dataclass(slots=True)
class _Answer:
    """A response of the engine."""

    status: int = 500
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    async def send(self, message: Message) -> None:
        """Takes the engine's messages; its answers to these requests are short."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = list(message["headers"])
        else:
            self.body += message.get("body", b"")

    def into(self, response: Response) -> Response:
        """The response that dependencies may have put header fields into, with all of this."""
        response.status_code = self.status
        response.body = self.body
        ours = {name for name, _ in self.headers}
        response.raw_headers = [
            *((name, value) for name, value in response.raw_headers if name.lower() not in ours),
            *self.headers,
        ]
        return response


@dataclass(eq=False, repr=False)
class _Front:
    """From requests whose dependencies are resolved to the engine, and from its answers to hooks and responses.

    max_size: bytes. expire_after: seconds without a byte after which an upload is given up. has_dependency: whether a
    dependency of requests returns a completion hook, which is then known to requests alone. further: settings of this server.
    """

    directory: str
    max_size: int
    expire_after: float
    on_complete: OnComplete | None
    has_dependency: bool
    further: Mapping[str, object]

    def __post_init__(self) -> None:
        if self.max_size <= 0 or self.expire_after <= 0:
            raise ValueError("max_size and days_to_keep have to be more than 0")
        # Invalid settings are reported where the router is created.
        self._max_parts = self.settings_of(self.directory).max_concat_parts
        self.directories = {self.directory}
        _fronts.add(self)

    def settings_of(self, directory: str) -> Settings:
        given = {
            **self.further,
            "upload_dir": directory,
            "base_path": "/",
            # Routers of one application may share a directory, and hold their clients to limits of their own.
            "max_size": max(front.max_size for front in _fronts | {self}),
            "expire_after": self.expire_after,
            "hooks_timeout": self.further.get("hooks_timeout", _HOOKS_TIMEOUT),
            "disable_cors": True,
            "disable_download": True,
        }
        return load({**_DEFAULTS, **os.environ}, arguments=given).settings

    def _engine(self, directory: str) -> TusApp:
        settings = self.settings_of(directory)
        shares = settings.workers > 1 or _has_siblings()
        return TusApp(settings, hooks=[_Bridge(self, directory)], shared=shares or None)

    @asynccontextmanager
    async def _using(self, directory: str) -> AsyncIterator[TusApp]:
        self.directories.add(directory)
        engines = await open_engines.get()
        async with engines.using(directory, lambda: self._engine(directory)) as engine:
            yield engine

    # Requests

    async def create(
        self,
        request: Request,
        response: Response,
        on_complete: object,
        pre_create: object,
        place_of: object,
    ) -> Response:
        """Handle POST. The hook is called after the request was validated and before anything is stored."""
        headers = Headers(request.scope["headers"])
        try:
            tus.check_version("POST", headers)
            command = tus.parse_creation(headers, max_parts=self._max_parts)
            if command.length is not None and command.length > self.max_size:
                raise errors.max_size_exceeded(self.max_size)
        except ProtocolError as refusal:
            raise _as_http(refusal) from None
        metadata = _texts(command.metadata)
        if pre_create is not None:
            await _called(pre_create, metadata, self._upload_info(command, headers))
        directory, uid = await self._place(place_of, metadata)
        if uid is not None and not (is_valid_id(uid) and "/" not in uid):
            raise HTTPException(400, "Invalid upload ID")
        call = _Call(self, uid=uid)
        async with self._using(directory) as engine:
            if isinstance(command.concat, Final):
                await _check_parts(engine, command.concat)
            answer = await self._ask(request, engine, call)
            if answer.status == 201 and call.upload_id is not None and on_complete is not None:
                await _tell_if_complete(engine, call.upload_id, on_complete)
        return answer.into(response)

    def _upload_info(self, command: tus.Creation, headers: Mapping[str, str]) -> dict[str, object]:
        expires = datetime.now() + timedelta(seconds=self.expire_after)  # noqa: DTZ005 - as theirs
        return {
            "size": command.length,
            "defer_length": "upload-defer-length" in headers,
            "expires": expires.isoformat(),
        }

    async def append(
        self,
        request: Request,
        response: Response,
        upload_id: str,
        on_complete: object,
        place_of: object,
    ) -> Response:
        """Handle PATCH. The response to the last byte is sent after the hook returned."""
        directory, _ = await self._place(place_of, {})
        declared = request.headers.get("upload-length", "")
        # The engine refuses what is not a number.
        with suppress(ValueError):
            if parse_digits(declared) > self.max_size:
                raise _as_http(errors.max_size_exceeded(self.max_size))
        # If there are two, tuspyserver calls the plain one here.
        hook = self.on_complete or on_complete
        async with self._using(directory) as engine:
            answer = await self._ask(request, engine, _Call(self, upload_id=upload_id))
            if answer.status == 204 and hook is not None:
                await _tell_if_complete(engine, upload_id, hook)
        return answer.into(response)

    async def carry_out(
        self, request: Request, response: Response, upload_id: str, place_of: object
    ) -> Response:
        """Handle HEAD and DELETE."""
        directory, _ = await self._place(place_of, {})
        async with self._using(directory) as engine:
            call = _Call(self, completes=False, upload_id=upload_id)
            answer = await self._ask(request, engine, call)
        return answer.into(response)

    async def capabilities(self, request: Request, response: Response) -> Response:
        """Tell what this server can do."""
        async with self._using(self.directory) as engine:
            answer = await self._ask(request, engine, _Call(self, completes=False))
        # A final that waits for its parts would finish outside of its request, whose hook could not be called.
        answer.headers = [
            (name, value.replace(b",concatenation-unfinished", b""))
            for name, value in answer.headers
            if name != b"tus-max-size"
        ]
        answer.headers.append((b"tus-max-size", b"%d" % self.max_size))
        return answer.into(response)

    async def _place(self, place_of: object, metadata: Metadata) -> tuple[str, str | None]:
        """Return the directory of an upload, and the id of a new one."""
        place = None if place_of is None else await _called(place_of, metadata)
        if not isinstance(place, dict):
            return self.directory, None
        directory, uid = place.get("files_dir"), place.get("uid")
        return (
            self.directory if directory is None else _absolute(directory),
            None if uid is None else str(uid),
        )

    async def _ask(self, request: Request, engine: TusApp, call: _Call) -> _Answer:
        """Return the engine's response to a request, with this router as its mount point."""
        scope = request.scope
        path, root = scope["path"], scope.get("root_path", "")
        if root and path.startswith(f"{root}/"):
            path = path.removeprefix(root)
        collection = path if "upload_id" not in scope["path_params"] else path.rpartition("/")[0]
        inner = {**scope, "path": root + path, "root_path": root + collection.rstrip("/")}
        answer = _Answer()
        token = _current.set(call)
        try:
            await engine(inner, request.receive, answer.send)
        finally:
            _current.reset(token)
        if answer.status == 410 and await _is_removed(engine, call.upload_id or ""):
            # tuspyserver does not remember removed uploads.
            raise _as_http(errors.not_found())
        scope[_ANSWERED] = True
        return answer


_fronts: WeakSet[_Front] = WeakSet()
"""Those of this process."""


async def _is_removed(engine: TusApp, upload_id: str) -> bool:
    """Return whether an upload was removed, not only due."""
    try:
        await engine.uploads.load(upload_id)
    except StorageError:
        return True
    return False


async def _check_parts(engine: TusApp, final: Final) -> None:
    """Raise for a part that is not complete, as the hook is called when the final is created."""
    part_ids = dict.fromkeys(unquote(url.rstrip("/").rpartition("/")[2]) for url in final.parts)
    for position, part_id in enumerate(part_ids, start=1):
        if position % _YIELD_EVERY == 0:
            # The list may have 10,000 parts.
            await asyncio.sleep(0)
        try:
            part = await engine.uploads.load(part_id)
        except StorageError:
            # The engine responds with what is wrong.
            return
        if part.info.is_partial and not part.complete:
            raise HTTPException(400, f"Partial upload {part_id} is not complete")


async def _tell_if_complete(engine: TusApp, upload_id: str, hook: object) -> None:
    """Call the completion hook if the upload is complete. Raises what the hook raises."""
    upload: Upload = await engine.uploads.load(upload_id)
    if upload.finished:
        path = Layout(engine.instance.settings.upload_dir).data_path(upload.info)
        await _called(hook, path, _texts(upload.info.metadata))


async def _called(function: object, *arguments: object) -> object:
    """Call an application's function and return its result; one that is not async runs in a thread."""
    call = cast("Callable[..., object]", function)
    if inspect.iscoroutinefunction(call):
        result: object = call(*arguments)
    else:
        result = await run_in_threadpool(call, *arguments)
    return await cast("Awaitable[object]", result) if inspect.isawaitable(result) else result


def _texts(metadata: Mapping[str, bytes]) -> Metadata:
    """Decode metadata as tuspyserver does: values that are not text are left out."""
    found: Metadata = {}
    for key, value in metadata.items():
        try:
            found[key] = value.decode("utf-8")
        except UnicodeDecodeError:
            continue
    return found


def _as_http(refusal: ProtocolError) -> HTTPException:
    headers = {"Tus-Resumable": tus.VERSION, **refusal.headers}
    return HTTPException(refusal.status, f"{refusal.code}: {refusal.message}", headers)


def _with_effective_method(scope: Scope) -> Scope:
    """The request with the method of `X-HTTP-Method-Override`, which tuspyserver accepts for any method."""
    if scope["type"] != "http":
        return scope
    method = Headers(scope["headers"]).get("x-http-method-override", str(scope["method"])).upper()
    return scope if method == scope["method"] else {**scope, "method": method}


def _directory_of(storage: object) -> str:
    """Return the directory of a tuspyserver storage. Raises TypeError if it has none."""
    directory = getattr(storage, "files_dir", None)
    if not isinstance(directory, str | os.PathLike):
        raise TypeError(
            f"storage={type(storage).__name__} is not taken: this router keeps uploads in a directory. Leave storage out and "
            "give files_dir, or give a LocalFileStorage, whose directory is taken"
        )
    path: str = os.fspath(directory)
    return path


def _absolute(directory: str | os.PathLike[str]) -> str:
    return os.path.abspath(os.path.expanduser(directory))


def _has_siblings() -> bool:
    """Return whether this process may be one of several that serve the application, as uvicorn and others start them."""
    concurrency = os.environ.get("WEB_CONCURRENCY", "1")
    return multiprocessing.parent_process() is not None or concurrency not in ("", "0", "1")


_RESUMABLE = ("Tus-Resumable", "string", True)
_FIELDS: Mapping[str, Sequence[tuple[str, str, bool]]] = {
    "POST": (
        _RESUMABLE,
        ("Upload-Length", "integer", False),
        ("Upload-Defer-Length", "integer", False),
        ("Upload-Metadata", "string", False),
        ("Upload-Concat", "string", False),
    ),
    "PATCH": (
        _RESUMABLE,
        ("Upload-Offset", "integer", True),
        ("Upload-Length", "integer", False),
        ("Upload-Checksum", "string", False),
    ),
    "HEAD": (_RESUMABLE,),
    "DELETE": (_RESUMABLE,),
    "OPTIONS": (),
}
"""The header fields of each method (tus 1.0.0) for OpenAPI: name, type, whether it is required."""
