"""Runs the server of `tusd-py serve`: sockets, the event loop, signals and shutdown."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import math
import resource
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from tusd_py import logs
from tusd_py.events.model import HookError
from tusd_py.process import stopping, unix_socket
from tusd_py.process.sidecars import Children
from tusd_py.process.supervisor import Supervisor
from tusd_py.redis.embedded.server import EmbeddedRedisError
from tusd_py.settings.model import Settings
from tusd_py.settings.types import is_loopback
from tusd_py.storage.base import StorageError
from tusd_py.telemetry import tracing
from tusd_py.web.admin.place import AdminPlace
from tusd_py.web.app import Site, TusApp, metrics_directory
from tusd_py.web.http import heads
from tusd_py.web.http.admission import served_by
from tusd_py.web.http.connection_config import ConnectionConfig, Limits
from tusd_py.web.http.server import UploadConfig, UploadServer
from tusd_py.web.proxy_headers import Proxies

logger = logging.getLogger(__name__)

EXIT_UNUSABLE = 2
_BACKLOG = 2048
_ENOUGH = 0.9
"""If at least this share of --max-connections can be served, there is nothing to warn of."""
_COLLECT_AFTER = 20_000
"""Surplus of allocations over deallocations that triggers the garbage collector."""
_WATCHDOG_GRACE = 3.0
"""Seconds that all else has to end, once requests were ended at the shutdown time-out."""
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEPT = {_M_TRIM_THRESHOLD: 16 * 1024**2, _M_TOP_PAD: 1024**2, _M_MMAP_THRESHOLD: 4 * 1024**2}
"""Options of mallopt(3), in bytes."""


def run(settings: Settings, origins: Mapping[str, str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Return the exit code: 0, or 2 with a message if the settings cannot be used.

    origins: where each setting comes from, for operators.
    """
    several = settings.workers > 1
    try:
        app = TusApp(settings, sidecars=None if several else Children(settings), shared=False)
        if several:
            # Each process opens its own files; the directory is locked here, for as long as any of them serves.
            app.instance.lock_directory()
            from tusd_py.telemetry import multiprocess  # noqa: PLC0415

            multiprocess.clear(metrics_directory(settings))
        else:
            app.open()
        sockets = (
            [unix_socket.bind(settings.unix_sock, settings.unix_sock_perms)]
            if settings.unix_sock
            else _listen(settings.host, settings.port)
        )
        admin = _admin_place(settings, _url(settings, sockets), origins or {})
    except (StorageError, EmbeddedRedisError, HookError, ValueError, OSError) as problem:
        sys.stderr.write(f"tusd-py serve: {problem}\n")
        return EXIT_UNUSABLE
    _raise_descriptor_limit(settings.max_connections)
    _warn_if_open(settings)
    if not several:
        if admin is not None:
            app.serve_admin(admin)
        return _serve(settings, app, sockets)

    def serve(index: int) -> int:
        app = TusApp(settings, child=index, sidecars=Children(settings))
        if admin is not None and index == 0:
            app.serve_admin(admin)
        return _serve(settings, app, sockets, first=index == 0, parent=supervisor.parent)

    supervisor = Supervisor(
        settings.workers,
        serve,
        shutdown_timeout=_watchdog_seconds(settings) + stopping.EXIT_SECONDS,
    )
    return supervisor.run()


def _serve(
    settings: Settings,
    app: TusApp,
    sockets: list[socket.socket],
    *,
    first: bool = True,
    parent: socket.socket | None = None,
) -> int:
    """Serve in this process.

    first: whether this process logs for all. parent: becomes readable when the supervising process ends.
    """
    site = Site(app)
    proxies = Proxies(settings.behind_proxy)
    connection = ConnectionConfig(
        limits=Limits(
            connections=settings.max_connections,
            head_size=settings.max_header_size,
            concat_size=0
            if settings.disable_concatenation
            else heads.field_size(
                settings.max_concat_parts,
                base_path=settings.base_path,
                head_size=settings.max_header_size,
            ),
            idle_timeout=settings.network_timeout,
        ),
        counters=app.counters,
        refusal_headers=app.refusal_headers,
        is_shared=lambda address: proxies.trusts_peer({"client": (address, 0)}),
    )
    config = UploadConfig(
        site,
        connection,
        backlog=_BACKLOG,
        interface="asgi3",
        lifespan="on",
        log_level="warning",
        timeout_keep_alive=math.ceil(settings.keep_alive_timeout),
        timeout_graceful_shutdown=max(1, math.floor(settings.shutdown_timeout)),
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )

    watchdogs: list[threading.Timer] = []

    def begin() -> None:
        if parent is not None:
            asyncio.get_running_loop().add_reader(parent, end_with_parent, parent)
        url = _url(settings, sockets)
        logs.event(logger, logging.INFO, "listening", message=f"Uploads at {url}", url=url)

    def end_with_parent(parent: socket.socket) -> None:
        server.should_exit = True
        asyncio.get_running_loop().remove_reader(parent)

    def begin_shutdown() -> None:
        if first:
            message = "Stopping: ending requests, keeping what arrived"
            logs.event(logger, logging.INFO, "stopping", message=message)
        app.uploads.begin_shutdown()
        # Also if the shutdown hangs (a disk, a hook): acknowledged bytes are stored, the rest is resumed.
        message = "The shutdown time-out is over; ending at once"
        log = partial(logs.event, logger, logging.ERROR, "stopping", message=message)
        watchdogs.append(stopping.exit_after(_watchdog_seconds(settings), 1, log))

    def end() -> None:
        for watchdog in watchdogs:
            watchdog.cancel()
        if stop_traces is not None:
            stop_traces()
        stopping.exit_after(stopping.EXIT_SECONDS, 0)

    _tune_garbage_collector()
    _tune_allocator()
    stop_traces = tracing.export_by_environment()
    server = UploadServer(config, on_startup=begin, on_shutdown=begin_shutdown, on_end=end)
    try:
        server.run(sockets)
    except SystemExit:
        if site.failure is None:
            raise
        sys.stderr.write(f"tusd-py serve: {site.failure}\n")
        return EXIT_UNUSABLE
    return 0


def _watchdog_seconds(settings: Settings) -> float:
    """Return the seconds after which a process that was told to stop is ended, even if something in it hangs."""
    return max(settings.shutdown_timeout, 1.0) + _WATCHDOG_GRACE


def _tune_garbage_collector() -> None:
    """Exempt current objects from garbage collection and run it rarely, as requests create few reference cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 50)


def _tune_allocator() -> None:
    """Let glibc keep a few megabytes of freed memory, where mallopt(3) exists.

    Otherwise the buffers of bodies, which are larger than all else, are returned to the system and allocated again several
    times per request: a quarter of the processor time of a PATCH of 1 MiB.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        for option, size in _KEPT.items():
            tune(option, size)


def _admin_place(
    settings: Settings, uploads_url: str, origins: Mapping[str, str]
) -> AdminPlace | None:
    """Bind sockets for operators, if they are served. Raises ValueError with a message for the operator."""
    if not settings.admin:
        return None
    if settings.admin.startswith("/"):
        path = Path(settings.admin)
        sockets = [unix_socket.bind(path, settings.unix_sock_perms, flag="--admin")]
        return AdminPlace(sockets, f"unix:{path}", uploads_url, origins)
    address, _, port = settings.admin.rpartition(":")
    host = address.strip("[]")
    sockets = _listen(host, int(port), flags="--admin")
    return AdminPlace(sockets, f"{_server_url(settings, host, sockets)}/", uploads_url, origins)


def _listen(host: str, port: int, flags: str = "--host, --port") -> list[socket.socket]:
    """Bind a socket to every address of `host`, all with the same port. Raises ValueError with a message for the operator.

    flags: those that say the address.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            listener = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken = sockets[0].getsockname()[1] if len(sockets) > 1 else address[1]
            listener.bind((address[0], taken, *address[2:]))
    except OSError as problem:
        for listener in sockets:
            listener.close()
        reason = problem.strerror or str(problem)
        raise ValueError(f"cannot listen on {host} port {port}: {reason} ({flags})") from problem
    return sockets


def _url(settings: Settings, sockets: Sequence[socket.socket]) -> str:
    """Return the URL of the uploads as reached from this machine."""
    if settings.unix_sock:
        return f"unix:{settings.unix_sock}:{settings.base_path}"
    return f"{_server_url(settings, settings.host, sockets)}{settings.base_path}"


def _server_url(settings: Settings, host: str, sockets: Sequence[socket.socket]) -> str:
    scheme = "https" if settings.tls_certificate else "http"
    address = sockets[0].getsockname()
    name = host if any(address[0].strip("0.:")) else "localhost"
    return f"{scheme}://{f'[{name}]' if ':' in name else name}:{address[1]}"


def _warn_if_open(settings: Settings) -> None:
    """Warn if the server can be reached from other machines and requires no token."""
    if settings.auth == "none" and not settings.unix_sock and not is_loopback(settings.host):
        logs.event(
            logger,
            logging.WARNING,
            "open",
            message=f"Every client that reaches {settings.host} can upload here, as no token is required (--auth jwt)",
        )


def _raise_descriptor_limit(connections: int) -> None:
    """A connection needs a descriptor, an upload two, a download three: the file's, and that of the connection twice."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * Limits(connections).most_accepted + 256
    if soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        served = min(connections, served_by(limit))
        if served < connections:
            logs.event(
                logger,
                logging.WARNING if served < _ENOUGH * connections else logging.INFO,
                "descriptors",
                message=f"Only {limit} files may be open at once, so {served} connections are served at a time; "
                f"{connections} (--max-connections) may need {wanted}",
            )
