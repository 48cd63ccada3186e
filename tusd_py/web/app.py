"""The server's parts put together from settings: as a component for any ASGI application, and as a site of its own."""

from __future__ import annotations

import asyncio
import importlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from tusd_py import __version__, configured_hooks, events, logs
from tusd_py.announcing import Announcer, Courier
from tusd_py.auth import build
from tusd_py.auth.gate import Gate
from tusd_py.auth.quota import OpenUploads
from tusd_py.background import keep_running, record_failure
from tusd_py.control import ControlServer
from tusd_py.rules import Rules
from tusd_py.settings.model import Settings
from tusd_py.state import StateUnavailable
from tusd_py.state.registry import Registry, RegistryWriter, SweepKind
from tusd_py.state.sockets import EmbeddedStateError
from tusd_py.storage.base import StorageError
from tusd_py.storage.file import FileStore
from tusd_py.sweep import SweepReport
from tusd_py.upkeep import OwnUpkeep, UpkeepFailed, sweep_alone
from tusd_py.uploads import Uploads
from tusd_py.web.children import Children
from tusd_py.web.cors import CORS
from tusd_py.web.endpoint import EndpointOptions, TusEndpoint
from tusd_py.web.forwarded import Proxies
from tusd_py.web.health import Health
from tusd_py.web.jobs import JobsMetrics
from tusd_py.web.metrics import Metrics
from tusd_py.web.shared import Shared
from tusd_py.web.tokens import TokenDesk

logger = logging.getLogger(__name__)

_REST = 3.0
"""How much longer than it works a sweep rests while clients are served: a quarter of a processor is enough for it."""
_OVERDUE = 1.5
"""Times the sweep's interval, after which nobody else is believed to sweep any more."""
_FULL_SWEEP_OVERDUE = 25 * 3600.0
"""Seconds after which somebody should have walked through the whole storage again."""


class TusApp:
    """A collection of uploads as an ASGI component, to be served alone or mounted.

    Uploads live under `settings.base_path`, below the place where the component is mounted: mounted at `/files`, the base path
    is usually `/`. It starts with its `lifespan`, or else with the first request, and must be stopped by `stop`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        child: int | None = None,
        is_server: bool = True,
        runs_jobs: bool = False,
        hooks: Iterable[object] = (),
    ) -> None:
        """Raises events.HookError for a hook that cannot be loaded, ValueError for CORS, proxies or tokens that make no sense.

        child: the number of this process, where a parent runs several that serve the same uploads. is_server: False for a
        command or a job that works on the uploads for a while; it does nothing by itself. runs_jobs: whether a worker and a
        scheduler are run beside it, if the settings want that. hooks: objects that are called as hooks, before those of the
        settings.
        """
        self.settings = settings
        self.metrics = Metrics()
        self.store = FileStore(
            settings.upload_dir,
            dir_perms=settings.dir_perms,
            file_perms=settings.file_perms,
            writes_behind=settings.durability != "none",
        )
        self._child = child
        self._is_server = is_server
        self._runs_jobs = runs_jobs and not child
        self._children: Children | None = None
        # What only works on the uploads meets nobody whom it could ask.
        self._verifier = build.access_tokens(settings) if is_server else None
        self._gate: Gate | None = None
        self._proxies = Proxies(settings.behind_proxy)
        self._cors = _cors(settings)
        self._shared = Shared(
            settings, child=child is not None, on_failure=self.metrics.state_failure
        )
        self._delivered = configured_hooks.are_delivered(
            settings, runs_jobs=runs_jobs or not is_server, has_state=self._shared.has_state
        )
        self._hooks = configured_hooks.in_server(
            settings, self.metrics, given=hooks, delivered=self._delivered
        )
        self._announcer = self._make_announcer()
        self._uploads: Uploads | None = None
        self._registry: Registry | None = None
        self._writer: RegistryWriter | None = None
        self._control: ControlServer | None = None
        self._swept_at = 0.0
        self._served = 0
        self._endpoint: TusEndpoint | None = None
        self._background: list[asyncio.Task[None]] = []
        self._starting = asyncio.Lock()
        self._started = False

    def open(self) -> None:
        """Takes the upload directory, and starts the embedded state where that is needed; blocking.

        Raises StorageError and EmbeddedStateError where they cannot be had.
        """
        if self._endpoint is not None:
            return
        settings = self.settings
        self.store.open(self._shared.guard)
        self._shared.open()
        if self._shared.state is not None:
            self._registry = Registry(self._shared.state)
            self._writer = RegistryWriter(self._registry)
        self._gate = self._make_gate()
        self._uploads = Uploads(
            self.store,
            self._shared.locks,
            rules=_rules(settings),
            hooks=self._hooks,
            announcer=self._announcer,
            observer=self.metrics,
            timetable=self._writer,
            authority=None if self._gate is None else self._gate.authority,
            open_uploads=None if self._shared.state is None else OpenUploads(self._shared.state),
        )
        self._endpoint = TusEndpoint(
            self._uploads,
            options=EndpointOptions(
                base_path=settings.base_path,
                relative_location=settings.relative_location,
                network_timeout=settings.network_timeout,
                max_concat_parts=settings.max_concat_parts,
                direct_bodies=not settings.disable_direct_bodies,
            ),
            proxies=self._proxies,
            cors=self._cors,
            metrics=self.metrics,
            desk=self._make_desk(self._uploads),
        )

    def _make_announcer(self) -> Announcer:
        outbox = self.store.outbox if self._delivered else None
        return Announcer(self._hooks, outbox, durable=self.settings.durability != "none")

    def _make_gate(self) -> Gate | None:
        state = self._shared.state
        if self._verifier is None or state is None:
            return None
        return build.gate(self.settings, self._verifier, state, on_revocation=self._review)

    def _review(self) -> None:
        self.uploads.review()

    def _make_desk(self, uploads: Uploads) -> TokenDesk | None:
        state = self._shared.state
        if self._gate is None or state is None:
            if self._verifier is not None:
                raise RuntimeError(
                    "tokens are asked for, but there is no Redis for what is revoked"
                )
            return None
        return TokenDesk(self._gate, uploads, state, refreshes=self.settings.upload_token_refreshes)

    @property
    def uploads(self) -> Uploads:
        """The uploads; there after `open`."""
        if self._uploads is None:
            raise RuntimeError("the uploads are not open yet")
        return self._uploads

    @property
    def registry(self) -> Registry | None:
        """When uploads are due, where there is a Redis to remember it; there after `open`."""
        return self._registry

    @property
    def upkeep(self) -> OwnUpkeep:
        """What operators and workers may want of the uploads; there after `open`."""
        return OwnUpkeep(self.uploads, self._registry)

    async def start(self) -> None:
        """Opens, lets the hooks get ready and begins to look for what has expired.

        Raises StorageError, EmbeddedStateError, HookError.
        """
        async with self._starting:
            if self._started:
                return
            if self._endpoint is None:
                await asyncio.to_thread(self.open)
            await self._shared.start()
            if self._gate is not None:
                await self._gate.start()
            await self._hooks.start(
                events.HookContext(
                    settings=self.settings,
                    state=self._shared.state,
                    offset_of=self.uploads.offset_of,
                    observer=self.metrics,
                )
            )
            await self._start_courier()
            if self._writer is not None:
                self._begin(self._writer.run, "due index")
            if self._is_server and not self._child:
                # Of several processes the first one sweeps.
                await self._listen_for_operators()
                self._begin(self._sweep_regularly, "sweep")
                self._start_children()
            if self._is_server:
                self._watch_jobs()
            if self._child is not None:
                pool = self.metrics.pool(metrics_directory(self.settings), self._child)
                self._begin(pool.publish_regularly, "metrics")
            self._started = True

    def _begin(self, start: Callable[[], Coroutine[None, None, None]], name: str) -> None:
        self._background.append(keep_running(start, name))

    async def stop(self) -> None:
        """Ends the bodies in flight, waits for what was begun, and lets the directory go."""
        self.uploads.begin_shutdown()
        if self._children is not None:
            # Before the Redis goes that they need.
            await self._children.stop(self.settings.shutdown_timeout / 2)
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.uploads.drain()
        if self._control is not None:
            await self._control.stop()
        await self._hooks.stop()
        await self._announcer.courier.stop()
        if self._writer is not None:
            await self._writer.flush()
        if self._gate is not None:
            await self._gate.stop()
        await self._shared.stop()
        await asyncio.to_thread(self.store.close)

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """A lifespan for the application that this is mounted in: `Starlette(lifespan=tus.lifespan)`."""
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"uploads come by HTTP, not as {scope['type']!r}")
        if not self._started:
            await self.start()
        await self.handle(scope, receive, send)

    def handle(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[None, None, None]:
        """Answers a request for uploads, as a call does; for whoever has started it."""
        return cast(TusEndpoint, self._endpoint)(scope, receive, send)

    async def check(self) -> str | None:
        """None if uploads can be stored now, else what is wrong, for the log."""
        try:
            await self.store.check()
        except StorageError as problem:
            return str(problem)
        return None

    def _start_children(self) -> None:
        settings = self.settings
        wanted = configured_hooks.runs_workers(settings)
        if self._runs_jobs and wanted and self._shared.state is not None:
            self._children = Children(settings)
            self._children.start()

    def _watch_jobs(self) -> None:
        state = self._shared.state
        if state is None or not self.settings.expose_metrics:
            return
        outbox = self.store.outbox if self._delivered else None
        self.metrics.jobs = JobsMetrics(state, outbox, speaks=not self._child)
        if not self._child:
            # Of several processes the first one looks, and the others add its numbers to theirs.
            self._begin(self.metrics.jobs.run, "metrics of jobs")

    async def _start_courier(self) -> None:
        """Where workers have events to tell, somebody has to tell the workers."""
        url = self._shared.url
        if self._is_server and not self._child and not self._delivered:
            await self._warn_of_leftovers()
        if not self._delivered or url is None or not self._hooks.delivers:
            return
        # Not for servers that have nothing to tell: it brings rq with it.
        queue = await asyncio.to_thread(importlib.import_module, "tusd_hooks.queue")
        self._announcer.courier = cast(Courier, queue.Courier(self.settings, url))
        await self._announcer.courier.start()

    async def _warn_of_leftovers(self) -> None:
        """What workers were to deliver before the settings changed is nobody's business now."""
        counts = await self.store.outbox.counts()
        if counts.waiting:
            logs.event(
                logger,
                logging.WARNING,
                "events left over",
                message=f"{counts.waiting} events wait for workers, but this server runs none (--hooks-delivery): "
                "tusd-py worker delivers them",
                events=counts.waiting,
            )

    async def _listen_for_operators(self) -> None:
        """Where locks are in this process' memory, commands and workers have to ask it."""
        if self.settings.redis_url is not None:
            return
        self._control = ControlServer(self.upkeep, self.settings.state_dir)
        try:
            await self._control.start()
        except (OSError, EmbeddedStateError) as problem:
            logger.warning("commands and workers cannot reach this server: %s", problem)
            self._control = None

    async def _sweep_regularly(self) -> None:
        """Sweeps at the start, and then as long as no worker does."""
        kind: SweepKind | None = "all"
        while True:
            try:
                if kind is not None:
                    _say(await self._sweep(kind))
                await asyncio.sleep(self.settings.sweep_interval)
                kind = await self._missing_sweep()
            except (UpkeepFailed, StateUnavailable) as problem:
                logger.warning("the sweep failed and will be tried again: %s", problem)
                await asyncio.sleep(self.settings.sweep_interval)
                kind = "all"
            except Exception as problem:  # noqa: BLE001 - the edge of a task; not begun again at once, as it may be long
                record_failure("sweep", problem, "the sweep failed and will be tried again")
                await asyncio.sleep(self.settings.sweep_interval)
                kind = "all"

    async def _sweep(self, kind: SweepKind) -> SweepReport | None:
        registry = self._registry
        upkeep = OwnUpkeep(self.uploads, registry, rest=self._rest)
        if registry is not None and self.settings.redis_url is not None:
            report = await sweep_alone(upkeep, registry, kind)
        else:
            # Nobody else can be at it, and what a crash left is made up for at once.
            began = time.time()
            report = await upkeep.sweep(kind)
            if registry is not None:
                await registry.record_sweep(report.record(kind, began))
        self._swept_at = time.time()
        await self._announcer.look()
        return report

    def _rest(self) -> float:
        """How long the server's own sweep pauses: only while somebody is served beside it."""
        served, self._served = self._served, self.metrics.requests()
        return _REST if served != self._served or self.metrics.uploads_active else 0.0

    async def _missing_sweep(self) -> SweepKind | None:
        """The sweep that somebody should have run by now; None if workers or other servers see to it."""
        if self._registry is None:
            return "all"
        now, overdue = time.time(), _OVERDUE * self.settings.sweep_interval
        ended = {record.kind: record.ended for record in await self._registry.sweeps()}
        if now - ended.get("all", 0.0) > _FULL_SWEEP_OVERDUE:
            return "all"
        last = max(ended.values())
        return None if last > self._swept_at and now - last < overdue else "due"


def _say(report: SweepReport | None) -> None:
    """Logs what a sweep did, if it did anything."""
    if report is not None and (report.expired or report.finished or report.remains):
        logs.event(
            logger,
            logging.INFO,
            "sweep",
            seen=report.seen,
            expired=report.expired,
            finished=report.finished,
            remains=report.remains,
        )


class Site:
    """The whole server as an ASGI application: uploads, and the pages beside them.

    failure: why it could not start, for the operator; None while it could.
    """

    def __init__(self, tus: TusApp) -> None:
        settings = tus.settings
        self._tus = tus
        self._base = settings.base_path
        self._desk_paths = TokenDesk.routes if settings.auth != "none" else frozenset()
        health = Health({"store": tus.check})
        routes = [
            Route("/", _index(settings.base_path), methods=["GET"]),
            Route("/healthz", health.healthz, methods=["GET"]),
            Route("/readyz", health.readyz, methods=["GET"]),
        ]
        if settings.expose_metrics:
            routes.append(Route(settings.metrics_path, _metrics(tus.metrics), methods=["GET"]))
        self._pages = Starlette(routes=routes)
        self._page_paths = {route.path for route in routes}
        self.failure: str | None = None

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[None, None, None]:
        # Not a coroutine itself: thousands of slow uploads would each hold one more.
        if scope["type"] == "http" and self._is_upload(scope["path"]):
            return self._tus.handle(scope, receive, send)
        return self._beside_uploads(scope, receive, send)

    async def _beside_uploads(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http" and _has_body(scope):
            await self._pages(scope, receive, _closing(send))
        else:
            await self._pages(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """ASGI "Lifespan"; what is wrong at the start is a sentence, not a traceback."""
        await receive()
        try:
            await self._tus.start()
        except (StorageError, EmbeddedStateError, events.HookError) as problem:
            self.failure = str(problem)
            await send({"type": "lifespan.startup.failed", "message": ""})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._tus.stop()
        await send({"type": "lifespan.shutdown.complete"})

    def _is_upload(self, path: str) -> bool:
        if path in self._desk_paths:
            return True
        if path in self._page_paths:
            # Only where uploads live under "/" do the two meet; creating there is a POST, which the page would refuse.
            return path == self._base
        return path.startswith(self._base) or path == self._base[:-1]


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


def _rules(settings: Settings) -> Rules:
    return Rules(
        max_size=settings.max_size,
        disk_reserve=settings.disk_reserve,
        durability=settings.durability,
        expire_after=settings.expire_after,
        retain_finished=settings.retain_finished,
        tombstone_ttl=settings.tombstone_ttl,
        acquire_lock_timeout=settings.acquire_lock_timeout,
        progress_interval=settings.progress_hooks_interval,
        termination=not settings.disable_termination,
        concatenation=not settings.disable_concatenation,
        max_concat_repeats=settings.max_concat_repeats,
        remove_parts_when_joined=settings.remove_parts_when_joined,
        downloads=not settings.disable_download,
    )


def _cors(settings: Settings) -> CORS | None:
    if settings.disable_cors:
        return None
    return CORS(
        allow_origin=settings.cors_allow_origin,
        allow_credentials=settings.cors_allow_credentials,
        allow_methods=settings.cors_allow_methods,
        allow_headers=settings.cors_allow_headers,
        expose_headers=settings.cors_expose_headers,
        max_age=settings.cors_max_age,
    )


def _index(base_path: str) -> Callable[[Request], Awaitable[Response]]:
    text = f"tusd-py {__version__}: a resumable upload server. Uploads are created by POST to {base_path}\n"

    async def index(_request: Request) -> Response:
        return PlainTextResponse(text)

    return index


def _metrics(metrics: Metrics) -> Callable[[Request], Awaitable[Response]]:
    async def render(request: Request) -> Response:
        body, content_type = metrics.render(request.headers.get("accept"))
        return Response(body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})

    return render
