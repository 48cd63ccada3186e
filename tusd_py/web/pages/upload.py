"""What `/` answers: the upload page to browsers, one line of text to everybody else."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from tusd_py import __version__
from tusd_py.settings.model import Settings
from tusd_py.settings.types import is_loopback
from tusd_py.web.pages.built import (
    HOW_TO_BUILD,
    BuiltPages,
    File,
    content_security_policy,
    load,
)
from tusd_py.web.pages.sending import assets, prefers_html, respond

logger = logging.getLogger(__name__)

_VARY = {"Vary": "Accept, Accept-Encoding"}


def routes(settings: Settings) -> list[Route]:
    """Return the routes of `/` and, if there are pages, of their scripts and styles."""
    built = load() if is_on(settings) else None
    if is_on(settings) and built is None:
        logger.warning("%s", HOW_TO_BUILD)
    found = [Route("/", _index(settings, built), methods=["GET"])]
    if built is not None:
        found.append(assets(built.assets))
    return found


def is_on(settings: Settings) -> bool:
    """Return whether the settings want pages: by default only where no other machine can connect."""
    if settings.pages == "auto":
        return settings.unix_sock is not None or is_loopback(settings.host)
    return settings.pages == "on"


def is_visit(scope: Scope) -> bool:
    """Return whether a request is a browser's that opens a page."""
    return scope["method"] in ("GET", "HEAD") and prefers_html(
        ", ".join(Headers(scope=scope).getlist("accept"))
    )


def _index(
    settings: Settings, built: BuiltPages | None
) -> Callable[[Request], Awaitable[Response]]:
    text = (
        f"tusd-py {__version__}: a resumable upload server. "
        f"Uploads are created by POST to {settings.base_path}\n"
    )
    page = None if built is None else _page(settings, built)
    for_browsers = f"{text}\n{HOW_TO_BUILD}\n" if is_on(settings) else text

    async def index(request: Request) -> Response:
        wants_html = prefers_html(", ".join(request.headers.getlist("accept")))
        if wants_html and page is not None:
            return respond(request, page)
        return PlainTextResponse(for_browsers if wants_html else text, headers=_VARY)

    return index


def _page(settings: Settings, built: BuiltPages) -> File:
    token_url = settings.pages_token_url
    elsewhere = urlsplit(token_url)
    connect = (f"{elsewhere.scheme}://{elsewhere.netloc}",) if elsewhere.netloc else ()
    # Relative, as a proxy may serve all of it under a prefix.
    return built.page(
        "upload",
        {
            "version": __version__,
            "endpoint": settings.base_path.lstrip("/") or "./",
            "refreshUrl": "auth/refresh-upload-token",
            "auth": settings.auth,
            "tokenUrl": token_url,
            "maxSize": settings.max_size,
        },
        policy=content_security_policy(connect=connect),
    )
