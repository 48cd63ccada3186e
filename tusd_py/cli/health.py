"""`tusd-py health`: whether one process of an instance does its work, for the health checks of containers.

A Redis that is away is nobody else's illness: workers and schedulers wait for it, and are well meanwhile. What is wrong with an
instance as a whole is told by `tusd-py status`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import ssl
import sys
import time

from tusd_py.settings.commandline import Parser, UsageError, suggestion
from tusd_py.settings.load import add_flags, load_arguments
from tusd_py.settings.model import Settings

USAGE = "[serve | worker | scheduler] [options of serve]"
ABOUT = """\
Find out whether the server, a worker or a scheduler on this machine or in this container does its work; the exit code is 1 if \
it does not. Give it the same options.

serve asks the server for /healthz. worker looks for a worker of this host in Redis, scheduler for one that looked lately; \
while Redis is away both are well.
"""

_KINDS = ("serve", "worker", "scheduler")
_TIMEOUT = 5.0
"""Seconds."""
_REDIS_TIMEOUT = 1.0
"""Seconds; it is tried four times."""
_UNHEARD = 90.0
"""Seconds after which a worker without a job that said nothing is taken for dead: it says something every half a minute."""


def add_arguments(parser: Parser) -> None:
    """Whose health, and all settings."""
    parser.add_argument("kind", nargs="?", default="serve")
    add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Look; returns the exit code."""
    kind = str(arguments.kind)
    if kind not in _KINDS:
        known = "serve, worker or scheduler"
        raise UsageError(f"{json.dumps(kind)}: give {known}{suggestion(kind, _KINDS)}")
    settings = load_arguments(arguments, os.environ).settings
    problem = _server(settings) if kind == "serve" else _job(kind, settings)
    if problem is not None:
        sys.stderr.write(f"tusd-py health: {problem}\n")
    return 0 if problem is None else 1


def _server(settings: Settings) -> str | None:
    """What is wrong with it, None if nothing is."""
    connection = _connection(settings)
    try:
        connection.request("GET", "/healthz", headers={"Host": "localhost"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as problem:
        return f"the server does not answer: {problem}"
    finally:
        connection.close()
    return None if status == 200 else f"the server answers {status}"


def _connection(settings: Settings) -> http.client.HTTPConnection:
    if settings.unix_sock is not None:
        return _UnixConnection(str(settings.unix_sock))
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    if settings.tls_certificate is None:
        return http.client.HTTPConnection(host, settings.port, timeout=_TIMEOUT)
    # It is this machine, under a name that no certificate has.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, settings.port, timeout=_TIMEOUT, context=context)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(self._path)


def _job(kind: str, settings: Settings) -> str | None:
    """What is wrong with it, None if nothing is, or if that cannot be found out now."""
    # rq: not needed for the server.
    from redis.exceptions import RedisError  # noqa: PLC0415

    from tusd_py.cli.state import NoState, redis_of  # noqa: PLC0415
    from tusd_py.redis.embedded.server import EmbeddedRedisError  # noqa: PLC0415

    try:
        with redis_of(settings) as url:
            return _worker(settings, url) if kind == "worker" else _scheduler(settings, url)
    except (NoState, EmbeddedRedisError) as problem:
        return str(problem)
    except RedisError as problem:
        sys.stderr.write(f"tusd-py health: Redis is away ({type(problem).__name__})\n")
        return None


def _worker(settings: Settings, url: str) -> str | None:
    from tusd_py.jobs import inspection as jobs  # noqa: PLC0415
    from tusd_py.jobs.connection import connect  # noqa: PLC0415

    here = socket.gethostname()
    with connect(url, timeout=_REDIS_TIMEOUT) as connection:
        for worker in jobs.workers(connection, settings.redis_prefix):
            # One that does a job says nothing until it has done it.
            if worker.host == here and (worker.job is not None or worker.heard < _UNHEARD):
                return None
    return f"no worker of {here} is known"


def _scheduler(settings: Settings, url: str) -> str | None:
    from tusd_py.jobs.connection import connect  # noqa: PLC0415
    from tusd_py.redis.keys import Keys  # noqa: PLC0415

    with connect(url, timeout=_REDIS_TIMEOUT) as connection:
        looked = connection.get(Keys(settings.redis_prefix).scheduler())
    if isinstance(looked, bytes) and time.time() - float(looked) < _UNHEARD:
        return None
    return "no scheduler runs"
