"""Requests of Resumable Uploads for HTTP: to the same operations as those of tus, and to the responses of their version.

Not for: which protocol a request speaks, and what is the same in both (`endpoint.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from tusd_py.auth.principal import Action
from tusd_py.events.model import HookRefusal, RefusedByHook, RequestView
from tusd_py.protocol import digests, errors, ietf
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.ietf import Limits, Version
from tusd_py.protocol.tus import Content, Creation
from tusd_py.storage.base import Upload
from tusd_py.uploads.model import Result
from tusd_py.uploads.receive import BodyEnd
from tusd_py.uploads.service import Uploads
from tusd_py.web.interim import Interim
from tusd_py.web.messages import PROBLEM_JSON, Request, Response, uncached, without_framing

if TYPE_CHECKING:
    from tusd_py.auth.authenticator import Authenticator


class IetfRequests:
    """Carries out the requests of one endpoint.

    view: the request as hooks see it. authenticator: issues upload tokens; None without tokens.
    """

    def __init__(
        self,
        uploads: Uploads,
        *,
        view: Callable[[Request], RequestView],
        authenticator: Authenticator | None,
    ) -> None:
        self._uploads = uploads
        self._view = view
        self._authenticator = authenticator

    async def create(self, request: Request, version: Version, *, name: str = "") -> Response:
        """Create an upload ("Upload Creation"). name: of the file, if no header field has one. Raises ProtocolError."""
        command = ietf.parse_creation(request.headers, version, name=name)
        _check_trailer(request, command.content)
        view = self._view(request)

        def announcement(upload: Upload) -> dict[str, str]:
            tokens = self.tokens_for(upload, view)
            limits = self._limits_of(upload)
            return {**ietf.announcement(version, view.url_of(upload.id), limits), **tokens}

        interim = request.body.watcher = Interim(request, version, announcement)
        try:
            created = await self._uploads.create(command, (), request.body, view)
        except ProtocolError as problem:
            if _offers_to_resume(problem) and _resumes_by_itself(request, version, command):
                url = problem.headers["Location"]
                offered = ietf.announcement(version, url, self._limits_for(request))
                if interim.send(offered):
                    return Response(problem.status, code=problem.code, closes=True)
            raise
        upload = created.upload
        request.upload_id = upload.id
        headers = interim.announced or announcement(upload)
        if created.problem is not None:
            response = self.refusal(request, version, created.problem)
            response.headers = {
                **response.headers,
                **headers,
                "Upload-Offset": str(upload.offset),
            }
            return response
        headers = {**headers, **_digest_header(created)}
        return self._response(201, version, upload, command.completes, headers).shaped_by(
            created.response
        )

    async def append(self, request: Request, version: Version) -> Response:
        """Append to an upload ("Upload Append"). Raises ProtocolError."""
        command = ietf.parse_append(request.headers, version)
        _check_trailer(request, command.content)
        view = self._view(request)
        request.body.watcher = Interim(request, version)
        try:
            result = await self._uploads.append(request.upload_id, command, request.body, view)
        except ProtocolError as problem:
            if problem.status in (409, 413):
                with suppress(ProtocolError):
                    upload = await self._uploads.look_up(request.upload_id, view, Action.APPEND)
                    problem.headers |= ietf.limit_header(version, self._limits_of(upload))
            raise
        upload = result.upload
        if not (command.completes and upload.finished):
            return self._response(version.appended, version, upload, False, {})
        # The response that the creation would have had.
        headers = {"Location": view.url_of(upload.id), **_digest_header(result)}
        return self._response(201, version, upload, True, headers).shaped_by(result.response)

    async def retrieve_offset(self, request: Request, version: Version) -> Response:
        """Tell the offset of an upload ("Offset Retrieval"). Raises ProtocolError."""
        ietf.check_retrieval(request.headers)
        upload = await self._uploads.inspect(request.upload_id, self._view(request))
        headers = ietf.status_headers(version, self._status(upload))
        return Response(204, {**headers, **ietf.version_header(version)})

    def fields_of(self, upload: Upload) -> dict[str, str]:
        """What a HEAD of either protocol is answered besides the fields of tus."""
        return ietf.status_headers(ietf.UNVERSIONED, self._status(upload))

    def options_headers(self) -> dict[str, str]:
        """The fields of the response to OPTIONS."""
        return ietf.options_headers(self._limits(self._uploads.policy.most_bytes(None)))

    def refusal(self, request: Request, version: Version, problem: ProtocolError) -> Response:
        """The response to a request that was refused, or that failed: problem details (RFC 9457), unless a hook words it.

        A refusal by a hook is the answer of the resource that the upload was meant for, and final; any other is one of the
        machinery ("Completeness").
        """
        document = ietf.problem_of(problem, request.headers)
        is_final = isinstance(problem, HookRefusal) and not _offers_to_resume(problem)
        if isinstance(problem, RefusedByHook):
            body, kind = problem.message.encode(), {}
        else:
            body, kind = json.dumps(document.members).encode(), uncached(PROBLEM_JSON)
        limits = self._limits_for(request)
        if request.method == "PATCH" or not ietf.creates(request.method):
            # What is left to the upload is known only where it was looked up, and is less than to a new one.
            limits = limits._replace(max_age=None)
        headers = {
            **kind,
            **ietf.completeness_header(version, complete=is_final),
            **ietf.limit_header(version, limits),
            **ietf.version_header(version),
            **without_framing(problem.headers),
        }
        closes = _closes(request, version, problem)
        return Response(document.status, headers, body, code=problem.code, closes=closes)

    def _response(
        self,
        status: int,
        version: Version,
        upload: Upload,
        completes: bool | None,
        headers: Mapping[str, str],
    ) -> Response:
        fields = ietf.result_headers(
            version,
            offset=upload.offset,
            complete=bool(completes),
            limits=self._limits_of(upload),
        )
        return Response(status, {**headers, **fields})

    def _status(self, upload: Upload) -> ietf.Status:
        offset = upload.offset if upload.joined else None
        return ietf.Status(offset, upload.length, upload.finished, self._limits_of(upload))

    def tokens_for(self, upload: Upload, view: RequestView) -> dict[str, str]:
        """An upload token, as header fields for the response to a creation; none without tokens."""
        if self._authenticator is None:
            return {}
        return self._authenticator.headers_for(upload.id, upload.info.owner, view.principal)

    def _limits_of(self, upload: Upload) -> Limits:
        """The limits of an upload, with the time that is left to it."""
        expiry = self._uploads.expiry
        expires_at = expiry.expires_at(upload)
        left = None if expires_at is None else max(0, int(expires_at - expiry.now()))
        return Limits(self._uploads.policy.limit_of(upload)[0], left)

    def _limits_for(self, request: Request) -> Limits:
        """The limits of a new upload of this client."""
        own = request.principal.limits.max_upload_size
        return self._limits(self._uploads.policy.most_bytes(own))

    def _limits(self, max_size: int | None) -> Limits:
        return Limits(max_size, int(self._uploads.policy.expire_after) or None)


def _check_trailer(request: Request, content: Content | None) -> None:
    """Raise a 400 for a digest in a trailer field, where the server does not hand these over."""
    if content is not None and content.checksum_in_trailer and request.exchange is None:
        raise errors.invalid_digest(digests.CONTENT)


def _digest_header(result: Result) -> dict[str, str]:
    return {digests.REPRESENTATION: result.repr_digest} if result.repr_digest else {}


def _offers_to_resume(problem: ProtocolError) -> bool:
    """Whether the refusal of a duplicate says where the unfinished upload is."""
    return problem.code == errors.DUPLICATE_UPLOAD and {"Location", "Upload-Offset"} <= set(
        problem.headers
    )


def _resumes_by_itself(request: Request, version: Version, command: Creation) -> bool:
    """Whether the client is one that resumes below the application, which would only see the refusal.

    It sends the whole file at once; pages cannot read interim responses, and who asks for problem details reads them.
    """
    return (
        version.number is not None
        and command.content is not None
        and bool(command.completes)
        and "origin" not in request.headers
        and not request.wants_problem_details
    )


def _closes(request: Request, version: Version, problem: ProtocolError) -> bool:
    """Whether the connection is closed in place of the response.

    Clients that resume by themselves do so when a connection is lost, but take a final response for the end, even one that says
    to try again later. A client that was overtaken by another request of its own has given this one up.
    """
    if version.number is None or isinstance(problem, HookRefusal):
        return False
    if problem.code == errors.shutting_down.code:
        return True
    in_body = request.body.received > 0 or request.body.end not in (None, BodyEnd.COMPLETE)
    return in_body and (problem.status >= 500 or problem.code == errors.interrupted.code)
