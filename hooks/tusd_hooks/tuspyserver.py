"""Adds duplicate detection, tokens and expiry to tuspyserver's own router.

`DuplicateCheck` and `TokenCheck` have what its parameters take; `expire` removes expired uploads from its directory, under its
lock files. The router is neither changed nor imported. Not for our router (`tusd_py.compat.tuspyserver`), which has all this.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, cast

try:
    from fastapi import HTTPException, Request, Response
except ImportError as problem:
    raise ImportError(
        "these parts need FastAPI: pip install 'tusd-py[tuspyserver]', which brings the router too"
    ) from problem

from tusd_hooks.duplicates import Duplicates
from tusd_hooks.fingerprint import Identity
from tusd_py.auth import build
from tusd_py.auth.access_tokens import AccessTokens
from tusd_py.auth.keys import KeysUnavailable
from tusd_py.auth.principal import Principal, Right
from tusd_py.auth.upload_tokens import BadToken
from tusd_py.compat.directory import Expired, expire, offset_of, read, records
from tusd_py.compat.engines import PerLoop
from tusd_py.events.model import (
    Event,
    EventType,
    HookContext,
    Progress,
    Reject,
    RequestView,
    UploadView,
)
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.headers import Headers
from tusd_py.redis.embedded.server import EmbeddedRedis
from tusd_py.service.backends import connected_redis
from tusd_py.settings.load import load
from tusd_py.settings.model import Settings
from tusd_py.storage.base import UploadInfo
from tusd_py.telemetry.counters import Counters

__all__ = ["DuplicateCheck", "Expired", "Problem", "TokenCheck", "answer_problem", "expire"]

_DEFAULTS = {"TUSD_REDIS_TIMEOUT": "15s"}
"""The router's file operations block the event loop: a late reply does not mean that Redis is unavailable."""

logger = logging.getLogger(__name__)

Metadata = dict[str, str]
CompletionHook = Callable[[str, Metadata], Awaitable[None]]
CreationHook = Callable[[Metadata, dict[str, object]], Awaitable[None]]
PlaceHook = Callable[[Metadata], dict[str, str]]


class Problem(HTTPException):
    """A response with problem details (RFC 9457), the same as our server's.

    Where the request is known (with any of the dependencies), it is answered as it is; else FastAPI puts it under `detail`.
    """

    def __init__(self, refusal: Reject) -> None:
        super().__init__(refusal.status, json.loads(refusal.body), dict(refusal.headers))
        self.body = refusal.body


async def answer_problem(_request: Request, problem: Exception) -> Response:
    """The exception handler for `Problem`."""
    refusal = cast(Problem, problem)
    return Response(refusal.body, refusal.status_code, refusal.headers)


def _let_problems_be_answered(request: Request) -> None:
    """Register `answer_problem` with the application, unless it has a handler of its own."""
    handlers = request.scope.get("starlette.exception_handlers")
    if handlers is not None:
        handlers[0].setdefault(Problem, answer_problem)


# Duplicates


@dataclass(slots=True)
class _Choice:
    """What was decided in one request. upload_id: for the upload that it creates; fingerprint: what is being looked for."""

    upload_id: str
    fingerprint: str | None


_choice: ContextVar[_Choice | None] = ContextVar("tusd_hooks_tuspyserver_choice", default=None)


class _Shared:
    """An object that is not copied: the router copies its options, with everything that they refer to, for each request."""

    def __deepcopy__(self, _memo: object) -> Self:
        return self


class DuplicateCheck(_Shared):
    """The duplicate check for one directory of the router's.

    Give the router `pre_create_dep`, `upload_complete_dep` and `file_dep` of it; or `pre_create_hook`, `on_upload_complete`
    and `file_dep`. Without `file_dep` ids are not known beforehand, and looking up whether an unfinished upload still exists
    takes a walk through the directory. The owner is what `auth` has put into `request.state.upload_owner`, as `TokenCheck`
    does.

    on_upload_complete: the application's own hook, called behind ours. settings: of our server by name, such as
    {"duplicate_keys": "study", "redis_url": "redis://…"}; without a Redis one is started in the directory. Raises ValueError.
    """

    def __init__(
        self,
        files_dir: str | os.PathLike[str],
        *,
        on_upload_complete: Callable[[str, Metadata], object] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self._directory = os.path.abspath(os.path.expanduser(os.fspath(files_dir)))
        self._then = on_upload_complete
        self._settings = _settings({"upload_dir": self._directory, **(settings or {})})
        self._identity = Identity.of(self._settings)
        self._hook = PerLoop(self._running)

    # What the router takes

    async def pre_create_hook(self, metadata: Metadata, upload_info: dict[str, object]) -> None:
        """Reserves the upload's fingerprint. Raises Problem: 409 for a duplicate, unless it is forced by `force_upload`."""
        await self._reserve(metadata, upload_info, None)

    def pre_create_dep(self, request: Request) -> CreationHook:
        """Reserve it with the authenticated owner, and honour the header Upload-Force."""
        _let_problems_be_answered(request)
        return lambda metadata, upload_info: self._reserve(metadata, upload_info, request)

    async def on_upload_complete(self, file_path: str, metadata: Metadata) -> None:
        """Mark the upload as complete; its fingerprint is remembered for the whole window."""
        await self._complete(file_path, metadata, "")

    def upload_complete_dep(self, request: Request) -> CompletionHook:
        """Mark it as complete with the authenticated owner."""
        return lambda path, metadata: self._complete(path, metadata, _owner_of(request))

    async def file_dep(self, request: Request) -> AsyncIterator[PlaceHook]:
        """Set the ids of new uploads, and release the fingerprint of an upload that its client removes."""
        _let_problems_be_answered(request)
        upload_id = str(request.path_params.get("uuid", ""))
        method = request.headers.get("x-http-method-override", request.method).upper()
        info = self._record(upload_id) if method == "DELETE" and upload_id else None
        yield self._place
        if info is not None and not os.path.exists(self._path(upload_id)):
            event = self._event(EventType.POST_TERMINATE, info, _owner_of(request))
            await (await self._hook.get()).post_terminate(event)

    def _place(self, metadata: Metadata) -> dict[str, str]:
        choice = _choice.get()
        # Without metadata the router asks for an existing upload.
        if not metadata or choice is None:
            return {"files_dir": self._directory}
        return {"files_dir": self._directory, "uid": choice.upload_id}

    # Events of the hook

    async def _reserve(
        self, metadata: Metadata, upload_info: dict[str, object], request: Request | None
    ) -> None:
        length = upload_info.get("size")
        headers = Headers(request.scope["headers"]) if request is not None else {}
        view = UploadView(
            id=secrets.token_hex(16),
            length=length if isinstance(length, int) else None,
            offset=0,
            metadata={key: value.encode() for key, value in metadata.items()},
            is_partial=headers.get("upload-concat", "").strip() == "partial",
            owner=_owner_of(request),
        )
        _choice.set(_Choice(view.id, self._identity.of_upload(view)))
        url = str(request.url.replace(query="")).rstrip("/") + "/" if request is not None else ""
        event = Event(
            EventType.PRE_CREATE,
            view,
            RequestView(method="POST", headers=headers, collection_url=url),
        )
        try:
            await (await self._hook.get()).pre_create(event)
        except Reject as refusal:
            raise Problem(refusal) from None

    async def _complete(self, file_path: str, metadata: Metadata, owner: str) -> None:
        info = self._record(os.path.basename(file_path))
        if info is not None and not info.is_partial:
            event = self._event(EventType.POST_FINISH, info, owner)
            await (await self._hook.get()).post_finish(event)
        if self._then is not None:
            result = self._then(file_path, metadata)
            if isinstance(result, Awaitable):
                await result

    @staticmethod
    def _event(event_type: EventType, info: UploadInfo, owner: str) -> Event:
        view = UploadView.of(info, offset_of(info))
        return Event(event_type, replace(view, owner=owner), RequestView())

    def _path(self, upload_id: str) -> str:
        return f"{self._directory}/{upload_id}"

    def _record(self, upload_id: str) -> UploadInfo | None:
        if os.path.basename(upload_id) != upload_id:
            return None
        return read(self._path(upload_id))

    async def _progress_of(self, upload_id: str) -> Progress | None:
        """Return how far the first upload is."""
        info = self._record(upload_id)
        if info is None or not os.path.exists(self._path(upload_id)):
            choice = _choice.get()
            if choice is None or choice.fingerprint is None:
                return None
            # The router may have chosen the id.
            info = await asyncio.to_thread(self._find, choice.fingerprint)
            if info is None:
                return None
        offset = offset_of(info)
        return Progress(offset, offset == info.length, os.path.getmtime(self._path(info.id)))

    def _find(self, fingerprint: str) -> UploadInfo | None:
        for path in records(self._directory):
            info = read(path)
            if info is None or not os.path.exists(path):
                continue
            if self._identity.of_upload(UploadView.of(info, 0)) == fingerprint:
                return info
        return None

    # Start and stop

    async def _running(self) -> AsyncGenerator[Duplicates, None]:
        """Yield the check, started; stop it when closed."""
        settings = self._settings
        embedded: EmbeddedRedis | None = None
        if settings.redis_url is None:
            Path(settings.state_dir).mkdir(mode=settings.dir_perms, parents=True, exist_ok=True)
            embedded = EmbeddedRedis(settings.state_dir)
            url = await asyncio.to_thread(embedded.start)
            embedded.begin_watch()
        else:
            url = settings.redis_url.get_secret_value()
        try:
            async with connected_redis(settings, url) as redis:
                hook = Duplicates()
                await hook.start(HookContext(settings, redis, self._progress_of, Counters()))
                try:
                    yield hook
                finally:
                    await hook.stop()
        finally:
            if embedded is not None:
                await embedded.end()

    async def stop(self) -> None:
        """Stop the check of the running loop. Optional: the loop does so when it ends."""
        await self._hook.stop()


def _owner_of(request: Request | None) -> str:
    return "" if request is None else str(getattr(request.state, "upload_owner", ""))


# Tokens

_NEEDED: Mapping[str, frozenset[Right]] = {
    "POST": frozenset((Right.CREATE,)),
    "PATCH": frozenset((Right.CREATE,)),
    "HEAD": frozenset((Right.CREATE, Right.READ)),
    "DELETE": frozenset((Right.DELETE,)),
}


class TokenCheck(_Shared):
    """The token check for `auth`: accepts requests with an access token that permits them.

    As the router does not record owners, anyone with the right and the id of an upload can resume it. settings: of our server
    by name, such as {"jwt_secret_file": "…", "jwt_audience": "uploads"}. Raises ValueError.
    """

    def __init__(self, settings: Mapping[str, object] | None = None) -> None:
        self._settings = _settings({"auth": "jwt", **(settings or {})})
        if build.access_tokens(self._settings) is None:
            raise ValueError("nobody is asked for tokens with the setting auth=none")
        self._scopes = build.scope_names(self._settings)
        self._verifier = PerLoop(self._running)

    async def auth(self, request: Request) -> Principal | None:
        """Check a request, as a dependency. Stores the owner in `request.state.upload_owner`.

        Raises HTTPException: 401 without a valid token, 403 without the right, 503 while there are no keys.
        """
        method = request.headers.get("x-http-method-override", request.method).upper()
        if method == "OPTIONS":
            return None
        try:
            principal = await self._principal(request)
            needed = _NEEDED.get(method, frozenset((Right.ADMIN,)))
            if not principal.is_admin and not needed & principal.rights:
                raise errors.insufficient_scope(
                    self._scopes[min(needed, key=lambda right: right.value)]
                )
        except ProtocolError as refusal:
            raise HTTPException(
                refusal.status, f"{refusal.code}: {refusal.message}", refusal.headers
            ) from None
        request.state.upload_owner = principal.owner
        return principal

    async def _principal(self, request: Request) -> Principal:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise errors.unauthenticated()
        try:
            return await (await self._verifier.get()).verify(token.strip())
        except BadToken as problem:
            raise errors.invalid_token(str(problem)) from None
        except KeysUnavailable as problem:
            logger.warning("tokens cannot be verified: %s", problem)
            raise errors.unavailable() from None

    async def _running(self) -> AsyncGenerator[AccessTokens, None]:
        """Yield what verifies tokens, with its keys; stop fetching them when closed."""
        verifier = cast(AccessTokens, build.access_tokens(self._settings))
        await verifier.start()
        try:
            yield verifier
        finally:
            await verifier.stop()


def _settings(given: Mapping[str, object]) -> Settings:
    return load({**_DEFAULTS, **os.environ}, arguments=given).settings
