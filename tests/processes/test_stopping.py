"""Servers stop in time and with exit code 0, whatever is connected to them or does not answer."""

from __future__ import annotations

import array
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

from tests.conftest import MakeServer
from tests.support.server import ServerProcess, environment
from tests.support.tus import Tus
from tests.support.waiting import wait_until
from tusd_py.redis.embedded import sockets

SHUTDOWN_TIMEOUT = 30.0
"""Far more than a stop takes."""
SECONDS = 8.0
"""More than a stop takes on a busy machine."""
MANY = 1500
"""Uploads whose lines do not fit into what the system keeps for a client that does not read."""


def stop(server: ServerProcess) -> None:
    """Stop a server, which must not wait for anybody."""
    began = time.monotonic()
    assert server.terminate() == 0, server.log()
    assert time.monotonic() - began < SECONDS


def connect(server: ServerProcess) -> socket.socket:
    """Connect to a server as commands do."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(sockets.path_for(server.upload_dir / ".tusd-py" / "control"))
    return connection


def send(connection: socket.socket, **request: object) -> None:
    connection.sendall(json.dumps(request).encode() + b"\n")


def unread(connection: socket.socket) -> int:
    """Bytes that a connection has received and nobody has read."""
    count = array.array("i", [0])
    fcntl.ioctl(connection, termios.FIONREAD, count)
    return count[0]


def expire_many(server: ServerProcess) -> None:
    """Make a stopped server's only upload many expired ones."""
    upload_id, *_ = server.uploads()
    then = time.time() - 30 * 86_400
    record = server.record(upload_id)
    ours = record["TusdPy"]
    assert isinstance(ours, dict)
    ours["CreatedAt"] = then
    text = json.dumps(record)
    for _ in range(MANY):
        name = secrets.token_hex(16)
        server.info_file(name).write_text(text.replace(upload_id, name))
        server.data_file(name).write_bytes(b"01234")
        os.utime(server.data_file(name), (then, then))


def test_a_client_that_does_not_read_what_a_dry_run_lists(make_server: MakeServer) -> None:
    """As `tusd-py sweep --dry-run | less`."""
    server = make_server("--shutdown-timeout", f"{SHUTDOWN_TIMEOUT:g}s")
    Tus(server).new(10)
    server.terminate()
    expire_many(server)
    server.restart()
    with connect(server) as connection:
        send(connection, do="sweep", kind="all", dry_run=True, tell=True)
        seen = [0, 0]

        def is_full() -> bool:
            seen[:] = seen[1], unread(connection)
            return 0 < seen[0] == seen[1]

        wait_until(is_full, "a full connection", interval=1.0)
        stop(server)


def test_a_client_that_asks_nothing(make_server: MakeServer) -> None:
    server = make_server("--shutdown-timeout", f"{SHUTDOWN_TIMEOUT:g}s")
    with connect(server), connect(server) as second:
        # The first one was accepted before.
        send(second, do="answer")
        assert json.loads(second.recv(4096)) == {"done": {}}
        stop(server)


def test_an_embedded_redis_and_children_that_stand_still(make_server: MakeServer) -> None:
    """They are killed within the time of the shutdown, in all."""
    server = make_server("--shutdown-timeout", "20s", "--jobs", "on")
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    # The Redis, its watchdog, the worker and the scheduler.
    wait_until(lambda: len(children.read_text().split()) == 4, "its children")
    pids = [int(each) for each in children.read_text().split()]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        assert server.terminate() == 0, server.log()
        assert "The shutdown time-out is over" not in server.log()
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


SUPERVISOR = """
import os, signal, sys, time
from tusd_py.process import supervisor

fork = os.fork

def slow_fork():
    pid = fork()
    if pid:
        # The child is not scheduled yet.
        os.kill(os.getpid(), signal.SIGTERM)
        os.killpg(0, signal.SIGTERM)
    else:
        time.sleep(0.3)
    return pid

def serve(index):
    time.sleep(60)
    return 0

os.setpgrp()
supervisor.os.fork = slow_fork
sys.exit(supervisor.Supervisor(2, serve, shutdown_timeout=30.0).run())
"""


def test_a_signal_right_after_a_process_was_forked() -> None:
    """As from a service manager, which sends it to all processes, before the new one has its own handlers."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SUPERVISOR], env=environment(), timeout=90, check=False
    )
    assert done.returncode == 0
    assert time.monotonic() - began < SHUTDOWN_TIMEOUT
