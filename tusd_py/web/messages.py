"""A request, as far as it is parsed, and the response to it before it is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.types import Receive, Scope

from tusd_py.auth.principal import ANYBODY, Principal
from tusd_py.events.model import HookResponse
from tusd_py.protocol import ietf
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.headers import Headers
from tusd_py.storage.base import Reader
from tusd_py.telemetry.tracing import RequestTrace
from tusd_py.web.download import DownloadPlan
from tusd_py.web.http.exchange import Exchange
from tusd_py.web.proxy_headers import External
from tusd_py.web.request_body import RequestBody

PROBLEM_JSON = "application/problem+json"
_FRAMING = frozenset({"content-length", "transfer-encoding"})
"""Fields that say where a response ends, which a hook may not set."""


@dataclass(slots=True)
class Request:
    """One request.

    route: the path below the place where the endpoint is mounted. version: of Resumable Uploads for HTTP; None for a request of
    tus, or of either protocol. trace: its span, where requests are traced.
    """

    scope: Scope
    receive: Receive
    headers: Headers
    method: str
    route: str
    external: External
    body: RequestBody
    exchange: Exchange | None
    request_id: str
    trace: RequestTrace | None = None
    upload_id: str = ""
    principal: Principal = ANYBODY
    version: ietf.Version | None = None

    @property
    def is_unmarked(self) -> bool:
        """Whether nothing in the head tells which protocol the client speaks."""
        return self.version is None and "tus-resumable" not in self.headers

    @property
    def wants_problem_details(self) -> bool:
        """Whether the client asks for errors as JSON."""
        names = media_types(self.headers.get("accept", ""))
        return PROBLEM_JSON in names or "application/json" in names


@dataclass(slots=True)
class Response:
    """A response that is still to be sent.

    download: the bytes of `reader` follow, which their sender closes. during: entered while they are sent. closes: the
    connection is closed in place of the response, where the server can do that.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    download: DownloadPlan | None = None
    reader: Reader | None = None
    during: AbstractAsyncContextManager[None] | None = None
    code: str | None = None
    closes: bool = False

    def shaped_by(self, wanted: HookResponse | None) -> Response:
        """The response with what a hook changes about it, except for what the protocol needs."""
        if wanted is None:
            return self
        # A 204 cannot have a body (RFC 9110, section 15.3.5).
        status = wanted.status or (200 if wanted.body and self.status == 204 else self.status)
        body = b"" if status == 204 else wanted.body.encode()
        ours = {name.lower() for name in self.headers}
        theirs = {
            name: value
            for name, value in without_framing(wanted.headers).items()
            if name.lower() not in ours
        }
        return Response(status, {**theirs, **self.headers}, body)


def without_framing(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Header fields of a hook, without those that it may not set."""
    return {name: value for name, value in headers.items() if name.lower() not in _FRAMING}


def media_types(accept: str) -> set[str]:
    """The media types that an `Accept` field names, in lower case."""
    return {element.partition(";")[0].strip().lower() for element in accept.split(",")}


def uncached(media_type: str) -> dict[str, str]:
    """The header fields of a text or document that is made for this response alone."""
    return {
        "Content-Type": media_type,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }


def problem_details(problem: ProtocolError) -> bytes:
    """A refusal as problem details (RFC 9457)."""
    return json.dumps(
        {
            "type": "about:blank",
            "title": _phrase(problem.status),
            "status": problem.status,
            "detail": problem.message,
            "code": problem.code,
        }
    ).encode()


def _phrase(status: int) -> str:
    """The reason phrase of a status code."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Checksum Mismatch" if status == 460 else "Error"
