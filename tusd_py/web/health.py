"""Probes of liveness (`/healthz`) and readiness (`/readyz`). Reasons of failures go to the log, only their names to clients."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

logger = logging.getLogger(__name__)

Check = Callable[[], Awaitable[str | None]]

_NO_STORE = {"Cache-Control": "no-store"}


class Health:
    """The two probes, as handlers of Starlette routes.

    checks: by name, functions that return what is wrong, or None. timeout: seconds after which a check counts as failed.
    A check that hangs, as on a dead network disk, is not started again before it has ended: each probe would cost a thread.
    """

    def __init__(self, checks: Mapping[str, Check], *, timeout: float = 5.0) -> None:
        self._checks = dict(checks)
        self._timeout = timeout
        self._running: dict[str, asyncio.Task[str | None]] = {}
        self._known: dict[str, str | None] = dict.fromkeys(self._checks)

    def routes(self) -> list[Route]:
        """Both, at their paths."""
        return [
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
        ]

    async def healthz(self, _request: Request) -> Response:
        """Always 200."""
        return PlainTextResponse("ok\n", headers=_NO_STORE)

    async def readyz(self, _request: Request) -> Response:
        """200 if no check fails, else 503."""
        problems = await asyncio.gather(*(self._problem(name) for name in self._checks))
        results = dict(zip(self._checks, problems, strict=True))
        ready = not any(results.values())
        body = {
            "ready": ready,
            "checks": {name: "failed" if problem else "ok" for name, problem in results.items()},
        }
        return JSONResponse(body, 200 if ready else 503, headers=_NO_STORE)

    async def _problem(self, name: str) -> str | None:
        task = self._running.get(name)
        if task is None:
            task = self._running[name] = asyncio.ensure_future(self._run(name))
        done, _ = await asyncio.wait([task], timeout=self._timeout)
        problem = task.result() if done else f"no answer for {self._timeout:g} seconds"
        self._log_change(name, problem)
        return problem

    async def _run(self, name: str) -> str | None:
        try:
            return await self._checks[name]()
        except Exception as error:  # noqa: BLE001 - the edge of a job: a check that fails in an unforeseen way has failed
            return f"{type(error).__name__}: {error}"
        finally:
            del self._running[name]

    def _log_change(self, name: str, problem: str | None) -> None:
        # Probes come every few seconds; the log gets what is new.
        known = self._known[name]
        if problem == known:
            return
        self._known[name] = problem
        if problem:
            logger.error("not ready: the check %r failed: %s", name, problem)
        else:
            logger.info("ready again: the check %r is well", name)
