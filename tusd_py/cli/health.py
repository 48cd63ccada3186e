"""`tusd-py health`: checks one process of an instance, for health checks of containers.

Workers and schedulers wait for a Redis that is unavailable, so they count as healthy meanwhile. `tusd-py status` reports the
problems of the instance as a whole.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time

import click

from tusd_py.cli.options import INSTANCE, Value, read_settings, subcommand
from tusd_py.cli.output import write_problem
from tusd_py.cli.unix_http import UnixConnection
from tusd_py.settings.model import Settings
from tusd_py.settings.suggestion import one_of, suggestion

ABOUT = """\
Check whether the server, a worker or a scheduler on this machine or in this container works. The exit code is 1 if it does
not. Give it the same options.

serve requests /healthz from the server. worker looks in Redis for a live worker on this host, scheduler for a scheduler that
was active lately; while Redis is unavailable, both count as healthy.
"""

_KINDS = ("serve", "worker", "scheduler")
_ADDRESS = ("host", "port", "unix_sock", "tls_certificate")
"""Settings by which the server is found."""
_TIMEOUT_SECONDS = 5.0
_REDIS_TIMEOUT_SECONDS = 1.0
"""For each of four attempts."""
_DEAD_AFTER_SECONDS = 90.0
"""Age of the last heartbeat at which an idle worker counts as dead; it sends one every 30 seconds."""


def _kind(text: str) -> str:
    if text not in _KINDS:
        raise ValueError(f"{json.dumps(text)}: give {one_of(_KINDS)}{suggestion(text, _KINDS)}")
    return text


@subcommand(
    "[serve | worker | scheduler] [options of serve]", ABOUT, settings=(*INSTANCE, *_ADDRESS)
)
@click.argument("kind", type=Value("|".join(_KINDS), _kind), default="serve")
def command(kind: str) -> int:
    """Check the process and return the exit code."""
    settings = read_settings().settings
    problem = _server(settings) if kind == "serve" else _job(kind, settings)
    if problem is not None:
        write_problem(problem)
    return 0 if problem is None else 1


def _server(settings: Settings) -> str | None:
    """Return what is wrong with the server, or None."""
    connection = _connection(settings)
    try:
        connection.request("GET", "/healthz", headers={"Host": "localhost"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as problem:
        return f"the server does not answer at {_place(settings)}: {problem}"
    finally:
        connection.close()
    return None if status == 200 else f"the server answers {status}"


def _place(settings: Settings) -> str:
    if settings.unix_sock is not None:
        return str(settings.unix_sock)
    scheme = "http" if settings.tls_certificate is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{scheme}://{host}:{settings.port}"


def _connection(settings: Settings) -> http.client.HTTPConnection:
    if settings.unix_sock is not None:
        return UnixConnection(str(settings.unix_sock), timeout=_TIMEOUT_SECONDS)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    if settings.tls_certificate is None:
        return http.client.HTTPConnection(host, settings.port, timeout=_TIMEOUT_SECONDS)
    # The certificate is not issued for the loopback address.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(
        host, settings.port, timeout=_TIMEOUT_SECONDS, context=context
    )


def _job(kind: str, settings: Settings) -> str | None:
    """Return what is wrong with the worker or scheduler, or None; also None while Redis is unavailable."""
    # rq is not needed for the server.
    from redis.exceptions import RedisError  # noqa: PLC0415

    from tusd_py.cli.instance import NoRedis, instance_redis  # noqa: PLC0415
    from tusd_py.redis.embedded.server import EmbeddedRedisError  # noqa: PLC0415

    try:
        with instance_redis(settings) as url:
            return _worker(settings, url) if kind == "worker" else _scheduler(settings, url)
    except (NoRedis, EmbeddedRedisError) as problem:
        return str(problem)
    except RedisError as problem:
        write_problem(f"Redis is unavailable ({type(problem).__name__})")
        return None


def _worker(settings: Settings, url: str) -> str | None:
    from tusd_py.jobs import inspection as jobs  # noqa: PLC0415
    from tusd_py.jobs.connection import connect  # noqa: PLC0415

    here = socket.gethostname()
    with connect(url, timeout=_REDIS_TIMEOUT_SECONDS) as connection:
        for worker in jobs.workers(connection, settings.redis_prefix):
            # A worker sends no heartbeats during a job.
            if worker.host == here and (
                worker.job is not None or worker.heard < _DEAD_AFTER_SECONDS
            ):
                return None
    return f"no worker of {here} is known"


def _scheduler(settings: Settings, url: str) -> str | None:
    from tusd_py.jobs.connection import connect  # noqa: PLC0415
    from tusd_py.redis.keys import Keys  # noqa: PLC0415

    with connect(url, timeout=_REDIS_TIMEOUT_SECONDS) as connection:
        looked = connection.get(Keys(settings.redis_prefix).scheduler)
    if isinstance(looked, bytes) and time.time() - float(looked) < _DEAD_AFTER_SECONDS:
        return None
    return "no scheduler runs"
