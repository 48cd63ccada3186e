"""The endpoint: an ASGI application for one collection of uploads.

It reads a request's head, lets `protocol/` make a command of it and `uploads` carry it out, and writes the response. Which
protocol a request speaks is decided once, from its head: tus is spoken here, Resumable Uploads for HTTP in `ietf_requests.py`,
and what is the same in both (authentication, removal, downloads, sending) is here too. It can stand alone, behind our own
server, or be mounted in any ASGI framework. The path from the socket to the store passes no middleware: CORS, proxies, metrics
and the log line are calls from here.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache, lru_cache
from itertools import count
from typing import Any, cast
from urllib.parse import quote

from starlette.types import Receive, Scope, Send

from tusd_py import logs
from tusd_py.auth.principal import Action
from tusd_py.events.model import RefusedByHook, RequestView
from tusd_py.protocol import concat, errors, ietf, tus
from tusd_py.protocol.concat import Final
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.headers import Headers, RawHeaders
from tusd_py.settings.model import Settings
from tusd_py.storage.base import Reader, StorageError, Upload, is_valid_id
from tusd_py.storage.errors import is_exhausted
from tusd_py.telemetry.counters import METHODS, OTHER_METHOD, Counters
from tusd_py.telemetry.tracing import SCOPE_KEY, RequestTrace
from tusd_py.uploads.failures import exhausted, translated
from tusd_py.uploads.receive import ERROR_OF_END, BodyEnd
from tusd_py.uploads.service import Uploads
from tusd_py.web import progress
from tusd_py.web.cors import CORS
from tusd_py.web.download import DownloadPlan, plan_download, presentation, send_file
from tusd_py.web.http.exchange import EXTENSION, Exchange
from tusd_py.web.ietf_requests import IetfRequests
from tusd_py.web.interim import Interim
from tusd_py.web.messages import (
    PROBLEM_JSON,
    Request,
    Response,
    problem_details,
    uncached,
    without_framing,
)
from tusd_py.web.proxy_headers import Proxies
from tusd_py.web.request_body import RequestBody
from tusd_py.web.token_routes import TokenRoutes

logger = logging.getLogger(__name__)


_COLLECTION_METHODS = "POST, OPTIONS"
_UPLOAD_METHODS = "HEAD, PATCH, GET, DELETE, OPTIONS"
_PRESIGNED_SECONDS = 300
_SWALLOWED = 64 * 1024
"""Bytes. An unread body up to this size is read and discarded, so that the connection can be kept."""
_STRANGER_STEP = 0.02
"""Seconds. If tokens are required, a 404 is sent at a multiple of this after the request, so that its timing does not tell an
upload of another owner from one that does not exist."""
_JITTER = 5000
"""Maximum of the random delay added to it, in microseconds, as timers have a resolution of milliseconds."""
_PROXY_FIELDS = frozenset({"forwarded", "via", "x-forwarded-for", "x-forwarded-proto"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_EMPTY: Mapping[str, str] = {}
_numbers = count(1)
_TUS_RESUMABLE = (b"tus-resumable", tus.VERSION.encode())


class TusEndpoint:
    """See the module. cors: None to send no CORS header fields. tokens: their routes; None to require no tokens."""

    def __init__(
        self,
        uploads: Uploads,
        settings: Settings,
        *,
        proxies: Proxies,
        cors: CORS | None,
        counters: Counters,
        tokens: TokenRoutes | None,
    ) -> None:
        self._uploads = uploads
        self._settings = settings
        self._base = settings.base_path
        self._proxies = proxies
        self._cors = cors
        self._counters = counters
        self._tokens = tokens
        self._authenticator = None if tokens is None else tokens.authenticator
        self._ietf = IetfRequests(uploads, view=self._view, authenticator=self._authenticator)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; an ASGI application of type "http"."""
        began = time.perf_counter()
        headers = Headers(scope["headers"])
        exchange = _exchange(scope)
        request = Request(
            scope=scope,
            receive=receive,
            headers=headers,
            method=scope["method"],
            route=_route(scope),
            external=self._proxies.external(scope),
            body=RequestBody(
                receive,
                idle_timeout=self._settings.network_timeout,
                exchange=exchange,
                direct=not self._settings.disable_direct_bodies,
            ),
            exchange=exchange,
            request_id=_request_id(headers),
            trace=scope.get(SCOPE_KEY),
        )
        try:
            response = await self._answer(request)
        except ProtocolError as problem:
            response = self._refusal(request, problem)
            if problem.status == 404 and self._tokens is not None:
                await asyncio.sleep(_pause_of_a_stranger(time.perf_counter() - began))
        except Exception as problem:  # noqa: BLE001 - the edge of a request
            response = self._refusal(request, self._failure(request, problem))
        await self._send(request, response, send)
        self._record(request, response, time.perf_counter() - began)

    @staticmethod
    def _failure(request: Request, problem: Exception) -> ProtocolError:
        """The response to a request that failed unexpectedly, which is logged."""
        if isinstance(problem, MemoryError) or (
            isinstance(problem, OSError) and is_exhausted(problem)
        ):
            return exhausted(problem)
        logger.error("request %s failed", request.request_id, exc_info=problem)
        return errors.internal()

    # From the request to the uploads

    async def _answer(self, request: Request) -> Response:
        request.method = tus.effective_method(request.method, request.headers)
        request.version = ietf.version_of(request.method, request.headers)
        base = self._base
        if self._tokens is not None and request.route in self._tokens.routes:
            return await self._tokens.answer(request, self._view(request))
        if request.route not in (base, base[:-1]) and not request.route.startswith(base):
            raise errors.not_found()
        if request.method == "OPTIONS":
            return self._options_response(request)
        # Which protocol a DELETE without any field speaks, its upload tells.
        if request.version is None and not (request.method == "DELETE" and request.is_unmarked):
            tus.check_version(request.method, request.headers)
        if self._authenticator is not None:
            request.principal = await self._authenticator.authenticate(
                request.headers, request.scope
            )
        request.upload_id = request.route[len(base) :].rstrip("/")
        if request.version is not None:
            return await self._answer_ietf(request, request.version)
        if not request.upload_id:
            if request.method != "POST":
                raise errors.method_not_allowed(_COLLECTION_METHODS)
            return await self._create(request)
        if request.method == "HEAD":
            return await self._inspect(request)
        if request.method == "PATCH":
            return await self._append(request)
        return await self._answer_either(request)

    async def _answer_ietf(self, request: Request, version: ietf.Version) -> Response:
        """A request of Resumable Uploads for HTTP. `PUT` creates an upload below the collection too, named by its URL."""
        path, method = request.upload_id, request.method
        if (not path and ietf.creates(method)) or method == "PUT":
            request.upload_id = ""
            return await self._ietf.create(request, version, name=path.rpartition("/")[2])
        if not path:
            raise errors.method_not_allowed(_COLLECTION_METHODS)
        if method == "HEAD":
            return await self._ietf.retrieve_offset(request, version)
        if method == "PATCH":
            return await self._ietf.append(request, version)
        return await self._answer_either(request)

    async def _answer_either(self, request: Request) -> Response:
        """A request for an upload that is the same in both protocols."""
        if request.method == "DELETE":
            return await self._terminate(request)
        if request.method != "GET":
            raise errors.method_not_allowed(_UPLOAD_METHODS)
        if progress.is_wanted(request.headers.get("accept", "")):
            return await self._progress(request)
        try:
            return await self._download(request)
        except ProtocolError as problem:
            if not await self._asks_for_offset(request, problem):
                raise
            return await self._ietf.retrieve_offset(request, request.version or ietf.UNVERSIONED)

    async def _terminate(self, request: Request) -> Response:
        view = self._view(request)
        if request.is_unmarked:
            upload = await self._uploads.look_up(request.upload_id, view, Action.DELETE)
            if not upload.info.awaits_completion:
                tus.check_version(request.method, request.headers)
        shaped = await self._uploads.terminate(request.upload_id, view)
        return Response(204).shaped_by(shaped)

    async def _asks_for_offset(self, request: Request, problem: ProtocolError) -> bool:
        """Whether a GET that cannot be answered with bytes is one for the offset of an unfinished upload."""
        if request.version is None and problem.code != errors.not_served.code:
            return False
        try:
            upload = await self._uploads.look_up(
                request.upload_id, self._view(request), Action.INSPECT
            )
        except ProtocolError:
            return False
        # An upload of tus is not served before it is finished, unless the request says what it asks for.
        marked = request.version is not None or upload.info.awaits_completion
        return marked and not upload.finished

    def _options_response(self, request: Request) -> Response:
        trailers = request.exchange is not None
        extensions = self._uploads.extensions(trailers=trailers)
        headers = tus.options_headers(extensions, max_size=self._uploads.policy.max_size)
        return Response(204, {**headers, **self._ietf.options_headers()})

    async def _create(self, request: Request) -> Response:
        command = tus.parse_creation(request.headers, max_parts=self._settings.max_concat_parts)
        self._check_trailer(request, command.content)
        if command.unwanted_body is not None:
            await self._expect_no_body(request, command.unwanted_body)
        view = self._view(request)
        parts: list[str] = []
        if isinstance(command.concat, Final):
            parts = await self._part_ids(request, command.concat, view)
        created = await self._uploads.create(command, parts, request.body, view)
        upload = created.upload
        request.upload_id = upload.id
        headers = {
            "Location": view.url_of(upload.id),
            **tus.expires_header(self._uploads.expiry.expires_at(upload)),
            **self._ietf.tokens_for(upload, view),
        }
        if command.content is not None:
            headers["Upload-Offset"] = str(upload.offset)
        if created.problem is not None:
            # The client may never have seen the URL: with it, it can go on from here.
            response = self._problem(request, created.problem)
            response.headers = {**response.headers, **headers}
            return response
        return Response(201, headers).shaped_by(created.response)

    async def _inspect(self, request: Request) -> Response:
        unmarked = request.is_unmarked
        if unmarked and "upload-offset" in request.headers:
            ietf.check_retrieval(request.headers)
        upload = await self._uploads.inspect(
            request.upload_id, self._view(request), by_length=not unmarked
        )
        info = upload.info
        status = tus.Status(
            offset=upload.offset if upload.joined else None,
            length=info.length,
            deferred=info.length is None and not info.is_final,
            metadata_header=info.metadata_header,
            concat_header=info.concat_header,
            expires=self._uploads.expiry.expires_at(upload),
        )
        fields = tus.status_headers(status)
        return Response(200, {**self._ietf.fields_of(upload), **fields} if unmarked else fields)

    async def _append(self, request: Request) -> Response:
        command = tus.parse_append(request.headers)
        self._check_trailer(request, command.content)
        result = await self._uploads.append(
            request.upload_id, command, request.body, self._view(request)
        )
        headers = {
            "Upload-Offset": str(result.upload.offset),
            **tus.expires_header(self._uploads.expiry.expires_at(result.upload)),
        }
        return Response(204, headers).shaped_by(result.response)

    async def _progress(self, request: Request) -> Response:
        upload = await self._uploads.watch(request.upload_id, self._view(request))
        headers = {**uncached(progress.MEDIA_TYPE), "Vary": "Accept"}
        body = progress.document(upload, self._uploads.expiry.expires_at(upload))
        return Response(200, headers, body)

    async def _download(self, request: Request) -> Response:
        view = self._view(request)
        upload, reader = await self._uploads.open_download(request.upload_id, view)
        plan = plan_download(
            request.headers,
            size=upload.offset,
            etag=_etag(upload),
            last_modified=upload.changed_at,
            metadata=upload.info.metadata,
            method=request.method,
        )
        if self._settings.s3_presigned_downloads:
            # The object store judges conditions and ranges: its validators are not ours.
            redirect = await _redirect(upload, reader)
            if redirect is not None:
                return redirect
        if plan.count and request.method == "GET":
            try:
                with translated:
                    await reader.reserve()
            except BaseException:
                reader.close()
                raise
        during = self._uploads.downloading(upload, view)
        return Response(plan.status, download=plan, reader=reader, during=during)

    @staticmethod
    async def _expect_no_body(request: Request, refusal: ProtocolError) -> None:
        """Raise `refusal` for a chunked body that is not empty, as its bytes would silently be dropped.

        A client that waits for permission to send has something to send.
        """
        if "expect" in request.headers or await request.body.read():
            raise refusal
        end = request.body.end
        if end is not None and end is not BodyEnd.COMPLETE:
            error = ERROR_OF_END[end]
            raise error()

    @staticmethod
    def _check_trailer(request: Request, content: tus.Content | None) -> None:
        if content is not None and content.checksum_in_trailer and request.exchange is None:
            raise errors.invalid_checksum(
                "this server does not receive trailers; use a header field"
            )

    # Addresses

    def _collection_url(self, request: Request) -> str:
        path = _quoted(f"{request.scope.get('root_path', '')}{self._base}")
        if self._settings.relative_location:
            return f"{request.external.prefix}{path}"
        return self._proxies.location(request.external, path)

    def _view(self, request: Request) -> RequestView:
        """The request as hooks see it."""
        query = request.scope.get("query_string", b"").decode("latin-1")
        return RequestView(
            method=request.method,
            path=f"{request.scope['path']}?{query}" if query else request.scope["path"],
            client=request.external.client,
            headers=request.headers
            if request.trace is None
            else request.trace.passed_on(request.headers),
            collection_url=self._collection_url(request),
            principal=request.principal,
        )

    async def _part_ids(self, request: Request, final: Final, view: RequestView) -> list[str]:
        """The ids in the URLs of `Upload-Concat`: as the client sees them, or as this server does behind its proxy."""
        base = self._base
        inside = f"{request.scope.get('root_path', '')}{base}"
        # "/" alone stands before every segment: of use only where it is all that there is.
        paths = dict.fromkeys((f"{request.external.prefix}{inside}", inside, base))
        bases = [path for path in paths if path != "/"] or ["/"]
        urls = list(dict.fromkeys(final.parts))
        candidates = (
            [each for each in concat.upload_ids_of(url, bases) if is_valid_id(each)] for url in urls
        )
        ids = dict(zip(urls, await self._uploads.find_parts(candidates, view), strict=True))
        return [ids[url] for url in final.parts]

    # From the uploads to the response

    def _refusal(self, request: Request, problem: ProtocolError) -> Response:
        """The response to a request that failed as a whole."""
        if request.version is not None:
            return self._ietf.refusal(request, request.version, problem)
        if request.method == "HEAD":
            problem = errors.answer_to_head(problem)
        return self._problem(request, problem)

    def _problem(self, request: Request, problem: ProtocolError) -> Response:
        """The response to a refusal: tusd's text, or problem details (RFC 9457) for clients that accept them."""
        wanted = without_framing(problem.headers)
        if isinstance(problem, RefusedByHook):
            return Response(problem.status, wanted, problem.message.encode(), code=problem.code)
        if request.wants_problem_details:
            body, media_type = problem_details(problem), PROBLEM_JSON
        else:
            body = f"{problem.code}: {problem.message}\n".encode()
            media_type = "text/plain; charset=utf-8"
        headers = {**uncached(media_type), **wanted}
        return Response(problem.status, headers, body, code=problem.code)

    async def _send(self, request: Request, response: Response, send: Send) -> None:
        raw: RawHeaders = [
            (_raw_name(name), value.encode("latin-1", "replace"))
            for name, value in response.headers.items()
        ]
        raw.append(_TUS_RESUMABLE)
        raw.append((b"x-request-id", request.request_id.encode()))
        if self._cors is not None:
            origin = request.headers.get("origin")
            raw += self._cors.headers_for(
                None if origin is None else origin.encode("latin-1"),
                preflight=request.method == "OPTIONS",
                private_network="access-control-request-private-network" in request.headers,
            )
        if response.status == 503 or _leaves_body(request) or _confuses_proxies(request):
            raw.append((b"connection", b"close"))
        exchange = request.exchange
        if response.closes and exchange is not None and exchange.close_unanswered():
            return
        if response.download is not None:
            await self._send_download(request, response, raw, send)
            return
        # HEAD has no body; its Content-Length would be taken for the upload's.
        body = b"" if request.method == "HEAD" else response.body
        if response.status != 204 and request.scope["method"] != "HEAD":
            raw.append((b"content-length", str(len(body)).encode()))
        # In one write, unless middleware of an application has to see the response.
        if (
            exchange is not None
            and send == exchange.send
            and exchange.respond(response.status, raw, body)
        ):
            return
        await send({"type": "http.response.start", "status": response.status, "headers": raw})
        await send({"type": "http.response.body", "body": body})

    async def _send_download(
        self, request: Request, response: Response, raw: RawHeaders, send: Send
    ) -> None:
        # The response holds an open reader from here on, whatever happens to the client.
        plan, reader = cast(DownloadPlan, response.download), cast(Reader, response.reader)
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": plan.status,
                    "headers": [*raw, *plan.headers],
                }
            )
            if plan.count:
                async with response.during or nullcontext():
                    await send_file(
                        request.scope,
                        send,
                        reader,
                        plan.start,
                        plan.count,
                        receive=request.receive,
                    )
            else:
                await send({"type": "http.response.body", "body": b""})
        except (OSError, StorageError) as problem:
            # The connection is closed by then, so that nobody takes what was sent for the whole.
            logger.warning("request %s: the download ended early: %s", request.request_id, problem)
            response.code = "ERR_DOWNLOAD_ENDED"
        finally:
            reader.close()

    def _record(self, request: Request, response: Response, seconds: float) -> None:
        self._counters.request(request.method, seconds)
        protocol = _protocol_of(request)
        self._counters.protocols[protocol] += 1
        if request.body.way is not None:
            self._counters.bodies[request.body.way] += 1
        if response.code is not None:
            self._counters.errors[response.status, response.code] += 1
        if request.trace is not None:
            self._end_trace(request.trace, request, response, protocol)
        logs.event(
            logger,
            # A large upload is many of them; the log tells when it was created and finished.
            logging.DEBUG if request.method == "PATCH" and response.status < 300 else logging.INFO,
            "request",
            method=request.method,
            path=request.scope["path"],
            status=response.status,
            protocol=None if request.version is None else protocol,
            bytes=request.body.received or None,
            duration=round(seconds, 4),
            upload=request.upload_id or None,
            code=response.code,
            client=request.external.client,
            request_id=request.request_id,
            trace=None if request.trace is None else request.trace.id,
        )

    def _end_trace(
        self, trace: RequestTrace, request: Request, response: Response, protocol: str
    ) -> None:
        base = self._base
        details: dict[str, str | int] = {
            "tus.protocol": protocol,
            "tus.request.bytes": request.body.received,
            "tusd_py.request_id": request.request_id,
        }
        if request.upload_id:
            details["tus.upload.id"] = request.upload_id
        # A hook may have set the field to anything.
        if (offset := response.headers.get("Upload-Offset", "")).isdecimal():
            details["tus.upload.offset"] = int(offset)
        is_upload = request.route.startswith(base) and request.route != base
        trace.answered(
            route=f"{base}{{id}}" if is_upload else request.route,
            method=request.method if request.method in METHODS else OTHER_METHOD,
            status=response.status,
            code=response.code,
            details=details,
        )


async def _redirect(upload: Upload, reader: Reader) -> Response | None:
    """The redirection of a download to the store; None if it has no URLs. Closes the reader, but for None."""
    shown = presentation(upload.info.metadata)
    try:
        url = await reader.url(
            seconds=_PRESIGNED_SECONDS,
            content_type=shown[0][1].decode("ascii"),
            disposition=shown[1][1].decode("ascii"),
        )
    except BaseException:
        reader.close()
        raise
    if url is None:
        return None
    reader.close()
    # The URL is a secret that ends soon.
    return Response(307, {"Location": url, "Cache-Control": "no-store"})


def _protocol_of(request: Request) -> str:
    """The protocol that a request speaks, for metrics and log."""
    if request.version is None:
        return "tus" if "tus-resumable" in request.headers else "unmarked"
    return "ietf" if request.version.number is None else f"ietf-{request.version.number}"


@lru_cache(maxsize=64)
def _quoted(path: str) -> str:
    return quote(path, safe="/~!$&'()*+,;=:@")


@lru_cache(maxsize=256)
def _raw_name(name: str) -> bytes:
    return name.lower().encode("latin-1")


def _route(scope: Scope) -> str:
    """The path below the mount point: frameworks leave the whole path in `path`, and their part in `root_path`."""
    path, root = cast(str, scope["path"]), cast(str, scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(root) else path


def _pause_of_a_stranger(passed: float) -> float:
    """Seconds to wait before a 404 is sent, `passed` seconds after its request arrived."""
    return -passed % _STRANGER_STEP + secrets.randbelow(_JITTER) / 1e6


def _exchange(scope: Scope) -> Exchange | None:
    exchange: Any = scope.get("extensions", _EMPTY).get(EXTENSION)
    return exchange if isinstance(exchange, Exchange) else None


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    # Unique, not secret.
    return f"{_process()}{next(_numbers):08x}"


@cache
def _process() -> str:
    """A name for this process, found at its first request: processes that are forked must not share it."""
    return secrets.token_hex(4)


def _confuses_proxies(request: Request) -> bool:
    """Whether a proxy may have taken an interim response for the final one, which ends with the connection (nginx 1.22)."""
    interim = request.body.watcher
    return (
        isinstance(interim, Interim)
        and interim.sent
        and not _PROXY_FIELDS.isdisjoint(request.headers)
    )


def _leaves_body(request: Request) -> bool:
    """Whether a body was left unread that is too large to be read for keeping the connection (RFC 9110, section 9.3)."""
    if request.body.end is BodyEnd.COMPLETE or not request.scope.get(
        "http_version", "1.1"
    ).startswith("1"):
        return False
    if request.body.end is not None:
        return True
    headers = request.headers
    if "transfer-encoding" in headers:
        return True
    length = headers.get("content-length", "0")
    if length == "0":
        return False
    return "expect" in headers or len(length) > 5 or int(length) > _SWALLOWED


def _etag(upload: Upload) -> str:
    """A strong validator: a finished upload's bytes never change, and an id that is used again has another time."""
    identity = f"{upload.id}\0{upload.offset}\0{upload.info.finished_at}".encode()
    return f'"{hashlib.blake2b(identity, digest_size=16).hexdigest()}"'
