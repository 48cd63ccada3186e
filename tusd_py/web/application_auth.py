"""Ask the application that mounts the uploads who sends a request: `TusApp(authenticate=...)`.

Not for: the rules about who may do what (`auth/policy.py`), which are those of `--auth jwt`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Scope

from tusd_py.auth.identity import Identity
from tusd_py.auth.principal import Principal
from tusd_py.events.model import HookRefusal, Reject
from tusd_py.protocol import errors

logger = logging.getLogger(__name__)

Authenticate = Callable[[Request], Awaitable[Identity | None] | Identity | None]
"""Returns who sends a request, or None for nobody. Called before the body is read, and not able to read it."""


class ApplicationSource:
    """Authenticates requests by a function of the application; see `Source`. timeout: seconds for a call."""

    def __init__(self, authenticate: Authenticate, *, timeout: float) -> None:
        self._authenticate = authenticate
        self._is_async = inspect.iscoroutinefunction(authenticate) or inspect.iscoroutinefunction(
            getattr(authenticate, "__call__", None)  # noqa: B004 - its kind is asked, not whether it is there
        )
        self._timeout = timeout

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Nothing to stop."""

    async def identify(self, _authorization: str | None, scope: Scope | None) -> Principal | None:
        """The client of a request, None for nobody. Raises ProtocolError."""
        if scope is None:
            return None
        # Without `receive`, as the body is the upload's.
        request = Request(scope)
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                identity = await self._ask(request)
        except HTTPException as refusal:
            raise _refusal_of(
                refusal.status_code, str(refusal.detail), refusal.headers or {}
            ) from None
        except Reject as refusal:
            raise _refusal_of(refusal.status, refusal.body, refusal.headers) from None
        except TimeoutError:
            if not limit.expired():
                raise
            logger.error("authenticate took longer than %g s (--hooks-timeout)", self._timeout)
            raise errors.unavailable() from None
        if identity is None:
            return None
        if not isinstance(identity, Identity):
            raise TypeError(
                f"authenticate must return a tusd_py.Identity or None, not {type(identity).__name__}"
            )
        return identity.principal(time.time())

    async def _ask(self, request: Request) -> object:
        answer: object = (
            self._authenticate(request)
            if self._is_async
            else await run_in_threadpool(self._authenticate, request)
        )
        return await answer if inspect.isawaitable(answer) else answer


def _refusal_of(status: int, text: str, headers: Mapping[str, str]) -> HookRefusal:
    """The response to a refusal by the application; a redirection, as to a log-in page, is no use to clients of uploads."""
    if status < 400:
        status, text, headers = 401, "authentication is needed", {}
    checked = Reject(status, text, headers)
    return HookRefusal(checked.status, "ERR_REFUSED", checked.body, checked.headers)
