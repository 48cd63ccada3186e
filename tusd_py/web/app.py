"""Uploads over HTTP as ASGI applications: `TusApp`, a component to mount, and `Site`, the whole server with its pages."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tusd_py import logs
from tusd_py.background import cancel, keep_running
from tusd_py.events import loading as configured_hooks
from tusd_py.events import model as events
from tusd_py.maintenance.remote import ControlServer
from tusd_py.protocol import tus
from tusd_py.protocol.headers import RawHeaders
from tusd_py.redis.embedded.sockets import EmbeddedRedisError
from tusd_py.service.instance import Instance
from tusd_py.service.regular_sweeps import RegularSweeps
from tusd_py.service.siblings import Leadership, Sharing, Slot, found_here
from tusd_py.settings.model import Settings
from tusd_py.storage.base import StorageError
from tusd_py.telemetry import tracing
from tusd_py.telemetry.counters import Counters
from tusd_py.telemetry.disk import DiskMetrics
from tusd_py.telemetry.jobs import JobsMetrics
from tusd_py.uploads.service import Uploads
from tusd_py.web.application_auth import ApplicationSource, Authenticate
from tusd_py.web.cors import CORS
from tusd_py.web.endpoint import TusEndpoint
from tusd_py.web.health import Health
from tusd_py.web.pages import upload as upload_page
from tusd_py.web.pages.built import ASSETS
from tusd_py.web.proxy_headers import Proxies
from tusd_py.web.token_routes import TokenRoutes

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from tusd_py.telemetry.prometheus import Metrics
    from tusd_py.web.admin.app import AdminApp
    from tusd_py.web.admin.listener import AdminListener
    from tusd_py.web.admin.place import AdminPlace

logger = logging.getLogger(__name__)

_RECOVER_REMOVALS_SECONDS = 5.0
"""Interval at which removals are looked for whose events are still to be published."""


class Sidecars(Protocol):
    """Processes beside the server that end with it."""

    def start(self) -> None:
        """Start them; return at once."""

    async def stop(self, timeout: float) -> None:
        """End them within `timeout` seconds."""


class TusApp:
    """A collection of uploads as an ASGI component, to be served alone or mounted.

    Uploads live under `settings.base_path`, below the place where the component is mounted: mounted at `/files`, the base path
    is usually `/`. It starts with its `lifespan`, or else with the first request, and must be stopped by `stop`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        hooks: Iterable[object] = (),
        authenticate: Authenticate | None = None,
        shared: bool | None = None,
        child: int | None = None,
        sidecars: Sidecars | None = None,
    ) -> None:
        """Put the uploads together; nothing is opened or started yet.

        Args:
            settings: Of the server; those of sockets, connections and processes have no effect when mounted.
            hooks: Objects that are called as hooks, before those of the settings.
            authenticate: Called with each request, before its body is read; returns who sends it, None for nobody. May be
                async. Sync functions run in a thread.
            shared: Whether other processes of this machine serve the same uploads. By default that is so under
                `uvicorn --workers`, gunicorn and hypercorn. Without effect where a `redis_url` lets servers share them.
            child: Number of this process, where `tusd-py serve` runs several.
            sidecars: Worker and scheduler that run beside the server, if the settings ask for them.

        Raises:
            events.HookError: A hook cannot be loaded.
            ValueError: CORS, proxies, authentication or tokens make no sense.
        """
        self.settings = settings
        self.counters = Counters()
        self._sharing = _sharing(child, shared)
        self._jobs_metrics: JobsMetrics | None = None
        self._disk_metrics: DiskMetrics | None = None
        self.instance = Instance(
            settings,
            counters=self.counters,
            hooks=hooks,
            sharing=self._sharing,
            runs_jobs=sidecars is not None and not child,
            authentication=authenticate
            and ApplicationSource(authenticate, timeout=settings.hooks_timeout),
        )
        self._child = child
        self._sidecars = None if child else sidecars
        self._running_sidecars: Sidecars | None = None
        self._proxies = Proxies(settings.behind_proxy)
        self._cors = _cors(settings)
        self._control: ControlServer | None = None
        self._leadership: Leadership | None = None
        self._slot: Slot | None = None
        self._metrics_are_mounted = False
        self._endpoint: TusEndpoint | None = None
        self._tracer: Tracer | None = None
        self._background: list[asyncio.Task[None]] = []
        self._admin_place: AdminPlace | None = None
        self._admin: AdminApp | None = None
        self._admin_listener: AdminListener | None = None
        self._starting = asyncio.Lock()
        self._started = False

    @property
    def uploads(self) -> Uploads:
        """The uploads; there after `open`."""
        return self.instance.uploads

    @property
    def admin(self) -> AdminApp:
        """The operators' API and page, to mount in the application that this is mounted in. Ask for it before the start."""
        if self._admin is None:
            if self._endpoint is not None:
                raise RuntimeError("the operators' page must be mounted before the server starts")
            self.instance.serve_operators()
            self._admin = self._admin_app(None)
        return self._admin

    @property
    def metrics(self) -> ASGIApp:
        """Prometheus metrics, to mount in the application that this is mounted in; of all its processes if mounted before the
        start.
        """
        self._metrics_are_mounted = True
        return _MetricsApp(self)

    @cached_property
    def health(self) -> ASGIApp:
        """`/healthz` and `/readyz`, to mount in the application that this is mounted in."""
        return Starlette(routes=Health({"store": self.check}).routes())

    def serve_admin(self, place: AdminPlace) -> None:
        """Serve operators on an address of their own, from the start on."""
        self._admin_place = place
        self._admin = self._admin_app(place)

    def _admin_app(self, place: AdminPlace | None) -> AdminApp:
        # Loaded only where operators are served.
        from tusd_py.web.admin.app import AdminApp  # noqa: PLC0415

        return AdminApp(self.instance, self._proxies, self.check, place)

    def open(self) -> None:
        """Lock the upload directory, and start the embedded Redis where it is needed; blocking.

        Raises StorageError, EmbeddedRedisError, ValueError.
        """
        if self._endpoint is not None:
            return
        settings = self.settings
        logs.join_server(settings.log_level if "log_level" in settings.model_fields_set else None)
        self.instance.open()
        authenticator, redis = self.instance.authenticator, self.instance.redis
        tokens = None
        if authenticator is not None and redis is not None:
            refreshes = settings.upload_token_refreshes
            tokens = TokenRoutes(authenticator, self.uploads, redis, refreshes=refreshes)
        self._endpoint = TusEndpoint(
            self.uploads,
            settings,
            proxies=self._proxies,
            cors=self._cors,
            counters=self.counters,
            tokens=tokens,
        )

    def refusal_headers(self, origin: bytes | None, whole: bool) -> RawHeaders:
        """Fields of responses that are sent before a request reaches this application, or after it has failed.

        origin: the request's `Origin`. whole: whether its head came in whole, so that None means that it has none.
        """
        headers: RawHeaders = [(b"tus-resumable", tus.VERSION.encode())]
        if self._cors is None:
            return headers
        if origin is None and not whole:
            return headers + self._cors.headers_for_unknown()
        return headers + self._cors.headers_for(origin, preflight=False)

    async def start(self) -> None:
        """Open, start the hooks and begin to sweep.

        Raises StorageError, EmbeddedRedisError, HookError.
        """
        async with self._starting:
            if self._started:
                return
            if self._endpoint is None:
                await asyncio.to_thread(self.open)
            await self.instance.start()
            self._tracer = tracing.tracer_of_process()
            if self._sharing is Sharing.SIBLING and self.settings.redis_url is None:
                self._leadership = Leadership(self.settings.state_dir)
            self._create_gauges()
            if not self._child:
                await self._serve_operators()
            if self._leadership is not None and not self._leads(self._leadership):
                self._begin(self._lead_in_turn, "leadership")
            elif not self._child:
                # Of several processes the first one sweeps.
                await self._lead()
            await self._share_metrics()
            self._started = True

    @staticmethod
    def _leads(leadership: Leadership) -> bool:
        try:
            return leadership.try_acquire()
        except OSError:
            # As on a full disk; it is tried again, and logged then.
            return False

    async def _lead_in_turn(self) -> None:
        """Lead once the process that does has ended."""
        if self._leadership is not None:
            await self._leadership.acquire()
            await self._lead()

    async def _lead(self) -> None:
        """Do what one of several processes does for all."""
        await self._listen_for_operators()
        sweeps = RegularSweeps(self.instance, needs_workers=self._needs_workers())
        self._begin(sweeps.run, "sweep")
        self._begin(self._recover_removals, "removals")
        if self._sidecars is not None and self._wants_sidecars():
            self._running_sidecars = self._sidecars
            self._running_sidecars.start()
        keeper = self.instance.list_keeper()
        if keeper is not None:
            self._begin(keeper.run, "list of uploads")
        # The others add its numbers to theirs.
        if self._jobs_metrics is not None:
            self._begin(self._jobs_metrics.run, "metrics of jobs")
        if self._disk_metrics is not None:
            self._begin(self._disk_metrics.run, "metrics of the disk")
        self._log_start()

    def _log_start(self) -> None:
        """Log what runs beside the uploads."""
        if self._sidecars is not None or self._child is not None:
            # `tusd-py serve` has lines of its own.
            return
        beside = "no worker and no scheduler: this process sweeps"
        if self.instance.redis is not None and self.settings.redis_url is None:
            beside = f"its own Redis ({self.instance.redis_url}), {beside}"
        logs.event(
            logger,
            logging.INFO,
            "uploads started",
            message=f"Uploads in {self.settings.s3_bucket or self.settings.upload_dir}; beside them: {beside}",
        )

    async def _share_metrics(self) -> None:
        """Render the metrics of all processes, not of this one alone."""
        if self._child is not None:
            pool = self.prometheus.pool(metrics_directory(self.settings), self._child)
        elif self._sharing is Sharing.SIBLING and self._metrics_are_mounted:
            try:
                self._slot = await asyncio.to_thread(Slot, self.settings.state_dir / "metrics")
            except OSError as problem:
                logger.warning("metrics of this process cannot be shared: %s", problem)
                return
            pool = self.prometheus.pool(self._slot.directory, self._slot.number)
        else:
            return
        self._begin(pool.publish_regularly, "metrics")

    async def _serve_operators(self) -> None:
        """Admit operators, and begin to listen for them if there is an address of their own."""
        if self._admin is None:
            return
        from tusd_py.web.admin import links  # noqa: PLC0415
        from tusd_py.web.admin.listener import AdminListener  # noqa: PLC0415

        place, accepted = self._admin_place, None
        # A link opens a session in one process.
        if self._sharing is not Sharing.SIBLING:
            url = "" if place is None else place.url
            try:
                key = await asyncio.to_thread(links.keep, self.settings.state_dir, url)
                accepted = links.Links(key)
            except OSError as problem:
                logger.warning("tusd-py dashboard will print no links: %s", problem)
        self._admin.start(accepted)
        if place is not None and self._sharing is not Sharing.SIBLING:
            self._admin_listener = AdminListener(self._admin, place, self.settings)
            self._admin_listener.start()

    async def _stop_operators(self) -> None:
        if self._admin is None or self._child:
            return
        from tusd_py.web.admin import links  # noqa: PLC0415

        await self._admin.stop()
        if self._admin_listener is not None:
            await self._admin_listener.stop()
        links.forget(self.settings.state_dir)

    async def _recover_removals(self) -> None:
        """Publish the events of removals that could not be recorded when they happened, as on a full disk."""
        while True:
            try:
                await self.uploads.recover_removals()
            except StorageError as problem:
                logger.warning("removals that are to be told cannot be found: %s", problem)
            await asyncio.sleep(_RECOVER_REMOVALS_SECONDS)

    @cached_property
    def prometheus(self) -> Metrics:
        """The metrics in Prometheus' format, whose library is loaded with the first scrape."""
        from tusd_py.telemetry.prometheus import Metrics  # noqa: PLC0415

        metrics = Metrics(self.counters)
        metrics.jobs, metrics.disk = self._jobs_metrics, self._disk_metrics
        return metrics

    def _begin(self, start: Callable[[], Coroutine[None, None, None]], name: str) -> None:
        self._background.append(keep_running(start, name))

    async def stop(self) -> None:
        """End the bodies in flight, wait for what was begun, and release the upload directory."""
        self.uploads.begin_shutdown()
        await self._stop_operators()
        if self._running_sidecars is not None:
            # Before the Redis stops that they need.
            await self._running_sidecars.stop(self.settings.shutdown_timeout / 2)
        await cancel(*self._background)
        await self.instance.drain()
        if self._control is not None:
            await self._control.stop()
        if self._leadership is not None:
            self._leadership.release()
        if self._slot is not None:
            self._slot.release()
        await self.instance.stop()

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """A lifespan for the application that this is mounted in: `Starlette(lifespan=tus.lifespan)`."""
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    async def live(self, receive: Receive, send: Send, *, says: bool = True) -> str | None:
        """Start and stop as ASGI "Lifespan" says; return what is wrong if it cannot start: a sentence, not a traceback.

        says: False for a caller that reports it in place of the server.
        """
        await receive()
        try:
            await self.start()
        except (StorageError, EmbeddedRedisError, events.HookError) as problem:
            message = str(problem) if says else ""
            await send({"type": "lifespan.startup.failed", "message": message})
            return str(problem)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"uploads come by HTTP, not as {scope['type']!r}")
        if not self._started:
            await self.start()
        await self.handle(scope, receive, send)

    def handle(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[None, None, None]:
        """Answer a request for uploads, as a call does, once the application has started."""
        endpoint = cast(TusEndpoint, self._endpoint)
        if self._tracer is None:
            return endpoint(scope, receive, send)
        return _traced(endpoint, self._tracer, scope, receive, send)

    async def check(self) -> str | None:
        """None if uploads can be stored now, else what is wrong, for the log."""
        try:
            await self.instance.store.check()
        except StorageError as problem:
            return str(problem)
        return None

    def _needs_workers(self) -> bool:
        """Whether workers are meant to run: for events, or in the place of sweeps by the server."""
        settings, instance = self.settings, self.instance
        if self._sidecars is not None and settings.redis_url is not None and settings.jobs != "off":
            return True
        delivers = instance.outbox_delivered_by_workers and instance.uploads.hooks.delivers
        return self._wants_sidecars() or delivers

    def _wants_sidecars(self) -> bool:
        wanted = configured_hooks.runs_workers(self.settings)
        return self._sidecars is not None and wanted and self.instance.redis is not None

    def _create_gauges(self) -> None:
        if not self.settings.expose_metrics:
            return
        redis = self.instance.redis
        if redis is not None:
            self._jobs_metrics = JobsMetrics(redis, self.instance.outbox, speaks=not self._child)
        self._disk_metrics = DiskMetrics(self.instance.store, self.settings.disk_reserve)

    async def _listen_for_operators(self) -> None:
        """Where locks are in this process' memory, commands and workers have to ask it."""
        if self.settings.redis_url is not None:
            return
        self._control = ControlServer(self.instance.maintenance, self.settings.state_dir)
        try:
            await self._control.start()
        except (OSError, EmbeddedRedisError) as problem:
            logger.warning("commands and workers cannot reach this server: %s", problem)
            self._control = None


class Site:
    """The whole server as an ASGI application: uploads, and the pages beside them.

    failure: why it could not start, for the operator; None while it could.
    """

    def __init__(self, tus: TusApp) -> None:
        settings = tus.settings
        self._tus = tus
        self._base = settings.base_path
        self._token_paths = TokenRoutes.routes if settings.auth != "none" else frozenset()
        routes = [*upload_page.routes(settings), *Health({"store": tus.check}).routes()]
        if settings.expose_metrics:
            routes.append(Route(settings.metrics_path, tus.metrics, methods=["GET"]))
        self._pages = Starlette(routes=routes)
        self._page_paths = {route.path for route in routes}
        self._has_pages = upload_page.is_on(settings)
        self.failure: str | None = None

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[None, None, None]:
        # Not a coroutine itself: thousands of slow uploads would each hold one more.
        if scope["type"] == "http" and self._is_upload(scope):
            return self._tus.handle(scope, receive, send)
        return self._beside_uploads(scope, receive, send)

    async def _beside_uploads(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self.failure = await self._tus.live(receive, send, says=False)
        elif scope["type"] == "http" and _has_body(scope):
            await self._pages(scope, receive, _closing(send))
        else:
            await self._pages(scope, receive, send)

    def _is_upload(self, scope: Scope) -> bool:
        path = cast(str, scope["path"])
        if path in self._token_paths:
            return True
        if path in self._page_paths:
            # Only where uploads live under "/" do the two meet; creating there is a POST, which the page would refuse.
            return path == self._base and not (self._has_pages and upload_page.is_visit(scope))
        if self._has_pages and path.startswith(ASSETS):
            return False
        return path.startswith(self._base) or path == self._base[:-1]


class _MetricsApp:
    """Renders the metrics at every scrape, whatever its path, as a route or mounted."""

    def __init__(self, tus: TusApp) -> None:
        self._tus = tus

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        accept = Headers(scope=scope).get("accept")
        body, content_type = self._tus.prometheus.render(accept)
        headers = {"Content-Type": content_type, "Cache-Control": "no-store"}
        await Response(body, headers=headers)(scope, receive, send)


async def _traced(
    endpoint: TusEndpoint, tracer: Tracer, scope: Scope, receive: Receive, send: Send
) -> None:
    with tracing.of_request(tracer, scope) as trace:
        await endpoint({**scope, tracing.SCOPE_KEY: trace}, receive, send)


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


def _closing(send: Send) -> Send:
    """A `send` whose response is the connection's last: pages take no body, and do not swallow one to keep a connection."""

    async def send_last(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)

    return send_last


def metrics_directory(settings: Settings) -> Path:
    """Where the processes of one server tell each other what they have counted."""
    # The state directory may be shared with servers on other machines, and on other ports.
    return settings.state_dir / "metrics" / f"{socket.gethostname()}-{settings.port}"


def _cors(settings: Settings) -> CORS | None:
    if settings.disable_cors:
        return None
    return CORS(
        allow_origin=settings.cors_allow_origin,
        allow_credentials=settings.cors_allow_credentials,
        allow_private_network=settings.cors_allow_private_network,
        allow_methods=", ".join(settings.cors_allow_methods),
        allow_headers=", ".join(settings.cors_allow_headers),
        expose_headers=", ".join(settings.cors_expose_headers),
        max_age=str(settings.cors_max_age),
    )


def _sharing(child: int | None, shared: bool | None) -> Sharing:
    if child is not None:
        return Sharing.CHILD
    if shared is None:
        return found_here()
    return Sharing.SIBLING if shared else Sharing.ALONE
