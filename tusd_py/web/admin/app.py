"""The operators' API and page as an ASGI application, to be served on an address of its own or mounted (`TusApp.admin`)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from http import HTTPStatus
from typing import TypeVar, cast

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from tusd_py import __version__, logs
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.redis import RedisUnavailable
from tusd_py.service.instance import Instance
from tusd_py.storage.base import Reader
from tusd_py.uploads.failures import translated
from tusd_py.web.admin import cursors, models, openapi, page
from tusd_py.web.admin.access import COOKIE, SESSION_SECONDS, Access, Operator
from tusd_py.web.admin.actions import Actions
from tusd_py.web.admin.links import Links
from tusd_py.web.admin.openapi import Operation, Parameter
from tusd_py.web.admin.place import AdminPlace
from tusd_py.web.admin.state import StateQueries
from tusd_py.web.admin.stream import EventStream, Stream
from tusd_py.web.admin.uploads import UploadQueries
from tusd_py.web.download import attachment
from tusd_py.web.messages import PROBLEM_JSON, problem_details
from tusd_py.web.proxy_headers import Proxies

logger = logging.getLogger(__name__)

API = "/admin/api/v1"
_MAX_BODY_BYTES = 256 * 1024
_BODY_SECONDS = 10.0
"""Within which a body has to be complete, as strangers can send them, too, and connections are few."""
_MAX_PAGE = 500
_PAGE = 50
_LONGEST_TEXT = 1024

_SAFE = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}
"""Fields of every response of the API."""

_Model = TypeVar("_Model", bound=BaseModel)
_Handler = Callable[[Request, Operator], Awaitable[BaseModel | Response]]
"""Answers with a document, or with a response."""

_LIMIT = Parameter(
    "limit", "Most entries of the page.", {"type": "integer", "minimum": 1, "maximum": _MAX_PAGE}
)
_AFTER = Parameter("after", "`next` of the page before.", {"type": "string"})
_SEARCH = Parameter("q", "What to look for.", {"type": "string", "maxLength": _LONGEST_TEXT})
_ID = Parameter("id", "Id of the upload.", {"type": "string"}, place="path")


def _choice(name: str, about: str, values: Sequence[str]) -> Parameter:
    return Parameter(name, about, {"enum": list(values), "default": values[0]})


_STATE = _choice("state", "Which uploads.", ("all", "unfinished", "finished", "part", "expired"))
_ORDER = _choice(
    "order", "By creation; with state finished or part by finish.", ("newest", "oldest")
)
_BOX = _choice("box", "Events that failed, or that wait.", ("failed", "waiting"))
_OWNER = Parameter("owner", "Only uploads of this owner.", {"type": "string"})


class AdminApp:
    """The application.

    Args:
        instance: What operators look at and change.
        proxies: Whose header fields count.
        check: Returns what keeps uploads from being stored, or None.
        place: Where it is served; None if it is part of another application.
    """

    def __init__(
        self,
        instance: Instance,
        proxies: Proxies,
        check: Callable[[], Awaitable[str | None]],
        place: AdminPlace | None,
    ) -> None:
        self._instance = instance
        self._settings = instance.settings
        self._access = Access(instance.settings, proxies, is_mounted=place is None)
        self._uploads = UploadQueries(instance)
        self._state = StateQueries(instance, check, {} if place is None else place.origins)
        self._actions = Actions(instance, self._uploads)
        self._stream = Stream(self._state.snapshot)
        self._proxies = proxies
        self._uploads_url = "" if place is None else place.uploads_url
        self._operations = self._table()
        self._openapi = json.dumps(openapi.document((each for each, _ in self._operations), API))
        self._app = Starlette(
            routes=[
                *self._api_routes(),
                *page.routes(takes_tokens=instance.settings.auth != "none"),
            ],
            exception_handlers={
                ProtocolError: _refused,
                RedisUnavailable: _not_listed,
                HTTPException: _not_routed,
                Exception: _failed,
            },
        )

    def start(self, links: Links | None) -> None:
        """Begin to admit operators, once the instance is open. links: accepts one-time links."""
        self._access.links = links
        authenticator = self._instance.authenticator
        if authenticator is not None and authenticator.reads_tokens:
            self._access.authenticator = authenticator
        logs.remember_elsewhere()

    async def stop(self) -> None:
        """End the streams."""
        await self._stream.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"operators come by HTTP, not as {scope['type']!r}")
        try:
            self._access.check_host(Request(scope))
        except ProtocolError as problem:
            await _problem(problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    # Routes

    def _table(self) -> list[tuple[Operation, _Handler]]:
        """Each operation with what carries it out."""
        get = "GET"
        found: list[tuple[Operation, _Handler]] = [
            (Operation(get, "/session", "Who asks, and what there is.", models.Session), self._session),
            (Operation(get, "/overview", "The state of the instance.", models.Overview), self._of(self._state.overview)),
            (Operation(get, "/live", "What is being received.", models.Live), self._of(self._state.live)),
            (Operation(get, "/hour", "The last hour.", models.Hour), self._of(self._state.hour)),
            (
                Operation(
                    get, "/stream", "A `Snapshot` a second, as the data of server-sent events.", None,
                    media_type="text/event-stream",
                ),
                self._streamed,
            ),
            (
                Operation(
                    get, "/uploads", "A page of uploads. With q: ids, file names (also from their second word on) and "
                    "owners that begin so.", models.UploadPage, parameters=(_STATE, _ORDER, _SEARCH, _OWNER, _AFTER, _LIMIT),
                ),
                self._upload_page,
            ),
            (Operation(get, "/uploads/{id}", "One upload.", models.UploadDetail, parameters=(_ID,)), self._upload),
            (
                Operation(
                    get, "/content/{id}", "The bytes of a finished upload.", None, parameters=(_ID,),
                    media_type="application/octet-stream",
                ),
                self._content,
            ),
            (Operation(get, "/events", "Events of a box.", models.EventPage, parameters=(_BOX, _LIMIT)), self._events),
            (Operation(get, "/jobs", "Queues, workers, sweeps.", models.Jobs), self._of(self._state.jobs)),
            (
                Operation(
                    get, "/duplicates", "Fingerprints; with q: one, or those of an upload.", models.FingerprintPage,
                    parameters=(_SEARCH, _AFTER, _LIMIT),
                ),
                self._duplicates,
            ),
            (Operation(get, "/owners", "Owners by their bytes.", models.OwnerPage, parameters=(_AFTER, _LIMIT)), self._owners),
            (Operation(get, "/settings", "All settings.", models.Settings), self._of(self._state.settings)),
            (Operation(get, "/log", "The last warnings and errors.", models.Log), self._of(self._state.log)),
            (Operation(get, "/actions", "The last actions of operators.", models.Actions), self._of(self._actions.last)),
        ]  # fmt: skip
        for name, kind in self._actions.kinds.items():
            operation = Operation("POST", f"/actions/{name}", kind.about, models.Done, kind.takes)
            found.append((operation, self._action(name, kind.takes)))
        return found

    def _api_routes(self) -> list[BaseRoute]:
        routes: list[BaseRoute] = [
            Route(
                API + operation.path.replace("{id}", "{id:path}"),
                self._admitted(handler),
                methods=[operation.method],
            )
            for operation, handler in self._operations
        ]
        return [
            *routes,
            Route(f"{API}/session", self._sign_in, methods=["POST"]),
            Route(f"{API}/session", self._sign_out, methods=["DELETE"]),
            Route(f"{API}/openapi.json", self._admitted(self._described), methods=["GET"]),
        ]

    def _admitted(self, handler: _Handler) -> Callable[[Request], Awaitable[Response]]:
        """A handler for operators only."""

        async def handle(request: Request) -> Response:
            self._access.check_origin(request)
            answer = await handler(request, await self._access.operator(request))
            return answer if isinstance(answer, Response) else _json(answer)

        return handle

    # Sessions

    async def _session(self, _request: Request, operator: Operator) -> models.Session:
        settings, instance = self._settings, self._instance
        return models.Session(
            operator=operator.name,
            via=operator.via,
            version=__version__,
            shows_metadata=settings.admin_show_metadata,
            revokes=instance.authenticator is not None,
            downloads=settings.admin_show_metadata,
            delivers_events=instance.outbox is not None,
            finds_duplicates=settings.duplicates != "off",
            uploads_url=self._uploads_url,
        )

    async def _sign_in(self, request: Request) -> Response:
        """Make a session of a link's code, or of a token."""
        self._access.check_origin(request)
        code = None
        if "authorization" not in request.headers:
            code = (await _body(request, models.Code)).code
        operator, cookie = await self._access.open_session(request, code)
        logs.event(logger, logging.INFO, "operator signed in", by=operator.name, via=operator.via)
        response = _json(await self._session(request, operator))
        response.set_cookie(
            COOKIE,
            cookie,
            max_age=int(SESSION_SECONDS),
            path=request.scope.get("root_path", "") or "/",
            secure=self._proxies.external(request.scope).scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return response

    async def _sign_out(self, request: Request) -> Response:
        self._access.check_origin(request)
        self._access.close_session(request)
        response = Response(status_code=204, headers=_SAFE)
        response.delete_cookie(COOKIE, path=request.scope.get("root_path", "") or "/")
        return response

    # Reading

    @staticmethod
    def _of(query: Callable[[], Awaitable[BaseModel]]) -> _Handler:
        return lambda _request, _operator: query()

    async def _streamed(self, request: Request, _operator: Operator) -> Response:
        headers = {**_SAFE, "X-Accel-Buffering": "no"}
        if request.method == "HEAD":
            return Response(media_type="text/event-stream", headers=headers)
        return EventStream(self._stream, lambda: self._access.operator(request), headers)

    async def _upload_page(self, request: Request, _operator: Operator) -> BaseModel:
        return await self._uploads.page(
            state=cast(models.Filter, _word(request, _STATE)),
            order=cast(models.Order, _word(request, _ORDER)),
            search=_text(request, "q"),
            owner=request.query_params.get("owner"),
            after=request.query_params.get("after"),
            limit=_limit(request),
        )

    async def _upload(self, request: Request, _operator: Operator) -> BaseModel:
        return await self._uploads.detail(request.path_params["id"])

    async def _content(self, request: Request, operator: Operator) -> Response:
        """The bytes of an upload, never as a page of this origin."""
        if not self._settings.admin_show_metadata:
            raise errors.not_shown()
        upload = await self._uploads.load(request.path_params["id"])
        if not upload.finished:
            raise errors.not_served()
        with translated:
            reader = await self._instance.store.open_reader(upload)
        name = upload.info.file_name or upload.id
        headers = {
            **_SAFE,
            "Content-Length": str(upload.offset),
            "Content-Disposition": attachment(name.encode()),
        }
        media_type = "application/octet-stream"
        if request.method == "HEAD":
            reader.close()
            return Response(media_type=media_type, headers=headers)
        self._actions.log_download(upload.id, operator)
        content = _bytes_of(reader, upload.offset)
        return StreamingResponse(content, media_type=media_type, headers=headers)

    async def _events(self, request: Request, _operator: Operator) -> BaseModel:
        box = cast(models.Box, _word(request, _BOX))
        return await self._state.events(box, _limit(request))

    async def _duplicates(self, request: Request, _operator: Operator) -> BaseModel:
        search, after = _text(request, "q"), request.query_params.get("after") or "0"
        return await self._state.duplicates(search, after, _limit(request))

    async def _owners(self, request: Request, _operator: Operator) -> BaseModel:
        after = request.query_params.get("after") or "0"
        return await self._state.owners(after, _limit(request))

    async def _described(self, _request: Request, _operator: Operator) -> Response:
        return Response(self._openapi, media_type="application/json", headers=_SAFE)

    # Acting

    def _action(self, name: str, takes: type[BaseModel]) -> _Handler:
        async def handle(request: Request, operator: Operator) -> BaseModel:
            order = await _body(request, takes)
            return await self._actions.carry_out(name, order, operator)

        return handle


def _json(document: BaseModel) -> Response:
    return Response(document.model_dump_json(), media_type="application/json", headers=_SAFE)


async def _body(request: Request, model: type[_Model]) -> _Model:
    """The JSON document of a request. Raises a 400, a 408, a 413, a 415."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ProtocolError(
            415, "ERR_INVALID_CONTENT_TYPE", "Content-Type must be application/json"
        )
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            content = await _content_of(request)
    except TimeoutError:
        text, headers = "the request did not arrive in time", {"Connection": "close"}
        raise ProtocolError(408, "ERR_READ_TIMEOUT", text, headers) from None
    except ClientDisconnect:
        raise errors.connection_reset() from None
    try:
        return model.model_validate_json(content or b"{}")
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the body"
        raise errors.bad_request(f"{place}: {first['msg']}") from None


async def _content_of(request: Request) -> bytes:
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > _MAX_BODY_BYTES:
            raise errors.max_size_exceeded(_MAX_BODY_BYTES)
    return bytes(content)


def _word(request: Request, parameter: Parameter) -> str:
    """One of the words of a parameter. Raises a 400."""
    words = cast("list[str]", parameter.schema["enum"])
    word = request.query_params.get(parameter.name, words[0])
    if word not in words:
        raise errors.bad_request(f"{parameter.name} must be one of {', '.join(words)}")
    return word


def _text(request: Request, name: str) -> str:
    text = request.query_params.get(name, "").strip()
    if len(text) > _LONGEST_TEXT:
        raise errors.bad_request(f"{name} is too long")
    return text


def _limit(request: Request) -> int:
    limit = cursors.whole_number(request.query_params.get("limit", str(_PAGE)), _MAX_PAGE)
    if not limit:
        raise errors.bad_request(f"limit must be a whole number from 1 to {_MAX_PAGE}")
    return limit


async def _bytes_of(reader: Reader, count: int) -> AsyncIterator[bytes]:
    try:
        async with aclosing(reader.stream(0, count)) as pieces:
            async for piece in pieces:
                yield piece
    finally:
        reader.close()


def _problem(problem: ProtocolError) -> Response:
    return Response(
        problem_details(problem),
        problem.status,
        media_type=PROBLEM_JSON,
        headers={**_SAFE, **problem.headers},
    )


async def _refused(_request: Request, problem: Exception) -> Response:
    return _problem(cast(ProtocolError, problem))


async def _not_listed(_request: Request, _problem_of_redis: Exception) -> Response:
    return _problem(errors.index_unavailable())


async def _not_routed(_request: Request, problem: Exception) -> Response:
    failure = cast(HTTPException, problem)
    code = "ERR_METHOD_NOT_ALLOWED" if failure.status_code == 405 else "ERR_NOT_FOUND"
    text = HTTPStatus(failure.status_code).phrase.lower()
    return _problem(ProtocolError(failure.status_code, code, text, failure.headers))


async def _failed(_request: Request, problem: Exception) -> Response:
    logger.error("a request of an operator failed", exc_info=problem)
    return _problem(errors.internal())
