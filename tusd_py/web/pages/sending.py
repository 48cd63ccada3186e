"""A page's file as a response: content coding, conditional requests (RFC 9110, sections 8.4 and 13), HEAD."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tusd_py.web.pages.built import ASSETS, File

_WEIGHT = re.compile(r";\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*$", re.IGNORECASE)


def respond(request: Request, file: File) -> Response:
    """Return the response to a GET or HEAD; Starlette's routes and server leave the body out of the latter."""
    coding = _coding(request.headers.get("accept-encoding", ""), file)
    body = file.body if coding is None else file.encodings[coding]
    etag = f'"{file.etag}"' if coding is None else f'"{file.etag}-{coding}"'
    matches = _matches(request.headers.get("if-none-match"), etag)
    response = Response(b"" if matches else body, 304 if matches else 200)
    raw = [
        (name, value)
        for name, value in response.raw_headers
        if not matches or name != b"content-length"
    ]
    raw += file.headers
    raw.append((b"etag", etag.encode()))
    raw.append((b"vary", b"Accept, Accept-Encoding"))
    if not matches:
        raw.append((b"content-type", file.media_type.encode()))
        if coding is not None:
            raw.append((b"content-encoding", coding.encode()))
    response.raw_headers = raw
    return response


def assets(files: Mapping[str, File]) -> Route:
    """Return the route of scripts and styles. files: by their names."""

    async def asset(request: Request) -> Response:
        file = files.get(request.path_params["name"])
        if file is None:
            headers = {"X-Content-Type-Options": "nosniff"}
            return PlainTextResponse("Not Found", 404, headers=headers)
        return respond(request, file)

    return Route(ASSETS + "{name}", asset, methods=["GET"])


def weights(field: str) -> dict[str, float]:
    """Return the members of an Accept or Accept-Encoding field in lower case, with their weights."""
    found: dict[str, float] = {}
    for member in field.split(","):
        weight = _WEIGHT.search(member)
        name = member.split(";")[0].strip().lower()
        if name:
            found[name] = float(weight[1]) if weight else 1.0
    return found


def prefers_html(accept: str) -> bool:
    """Return whether a client asks for HTML by name, as browsers do, and not rather for plain text; `*/*` does not."""
    wanted = weights(accept)
    page = max(wanted.get("text/html", 0.0), wanted.get("application/xhtml+xml", 0.0))
    return page > 0 and page >= wanted.get("text/plain", 0.0)


def _coding(accepted: str, file: File) -> str | None:
    wanted = weights(accepted)
    for coding in file.encodings:
        if wanted.get(coding, 0.0) > 0:
            return coding
    return None


def _matches(condition: str | None, etag: str) -> bool:
    if condition is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in condition.split(",")}
    return "*" in tags or etag in tags
