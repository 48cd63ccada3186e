"""The operators' page: files that were built from `frontend/pages/admin`. They contain nothing of any upload."""

from __future__ import annotations

import logging

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tusd_py import __version__
from tusd_py.web.pages.built import HOW_TO_BUILD, content_security_policy, load
from tusd_py.web.pages.sending import assets, respond

logger = logging.getLogger(__name__)


def routes(*, takes_tokens: bool) -> list[Route]:
    """Return the routes of the page, of its scripts and styles. takes_tokens: whether operators may sign in by a token."""
    built = load()
    if built is None or "admin" not in built.names:
        logger.warning("%s", HOW_TO_BUILD)
        nosniff = {"X-Content-Type-Options": "nosniff"}
        unbuilt = PlainTextResponse(f"{HOW_TO_BUILD}\n", headers=nosniff)
        return [Route("/", unbuilt, methods=["GET"])]
    settings = {"version": __version__, "takesTokens": takes_tokens}
    page = built.page("admin", settings, policy=content_security_policy())

    async def index(request: Request) -> Response:
        return respond(request, page)

    files = {name: file for name, file in built.assets.items() if name.startswith("admin-")}
    return [Route("/", index, methods=["GET"]), assets(files)]
