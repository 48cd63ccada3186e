"""The metrics of a server as an ASGI application, to be one of its routes or to be mounted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

if TYPE_CHECKING:
    from tusd_py.telemetry.prometheus import Metrics


class MetricsApp:
    """Renders the metrics at every scrape. metrics: returns them; loads Prometheus' library at the first one."""

    def __init__(self, metrics: Callable[[], Metrics]) -> None:
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a scrape, whatever its path."""
        body, content_type = self._metrics().render(Request(scope).headers.get("accept"))
        headers = {"Content-Type": content_type, "Cache-Control": "no-store"}
        await Response(body, headers=headers)(scope, receive, send)
