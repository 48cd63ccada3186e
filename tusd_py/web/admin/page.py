"""The operators' page: files that were built from `frontend/pages/admin`. They contain nothing of any upload."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tusd_py import __version__
from tusd_py.web.pages.built import ASSETS, HOW_TO_BUILD, File, content_security_policy, load
from tusd_py.web.pages.sending import respond

logger = logging.getLogger(__name__)


def routes(*, takes_tokens: bool) -> list[Route]:
    """Return the routes of the page, of its scripts and styles. takes_tokens: whether operators may sign in by a token."""
    built = load()
    if built is None or "admin" not in built.names:
        logger.warning("%s", HOW_TO_BUILD)
        return [Route("/", _text(HOW_TO_BUILD), methods=["GET"])]
    settings = {"version": __version__, "takesTokens": takes_tokens}
    page = built.page("admin", settings, policy=content_security_policy())
    assets = {name: file for name, file in built.assets.items() if name.startswith("admin-")}
    return [
        Route("/", _file(page), methods=["GET"]),
        Route(ASSETS + "{name}", _assets(assets), methods=["GET"]),
    ]


def _text(text: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_request: Request) -> Response:
        return PlainTextResponse(f"{text}\n", headers={"X-Content-Type-Options": "nosniff"})

    return answer


def _file(file: File) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return respond(request, file)

    return answer


def _assets(assets: dict[str, File]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        file = assets.get(request.path_params["name"])
        if file is None:
            return PlainTextResponse(
                "Not Found", 404, headers={"X-Content-Type-Options": "nosniff"}
            )
        return respond(request, file)

    return answer
