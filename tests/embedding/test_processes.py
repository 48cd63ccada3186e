"""An application in several processes, as `uvicorn --workers` and gunicorn run it, without a Redis of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.application import GUNICORN, UVICORN, Application
from tests.support.metrics import published
from tests.support.server import PROGRAM, environment
from tests.support.tus import Tus, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Connection
from tusd_py.maintenance.remote import find_server

CODE = """
import os
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from tusd_py import Settings, TusApp

uploads = TusApp(Settings(upload_dir="uploads", base_path="/"))


def pid(request):
    return PlainTextResponse(str(os.getpid()))


app = Starlette(
    routes=[
        Route("/pid", pid),
        Route("/metrics", uploads.metrics),
        Mount("/health", app=uploads.health),
        Mount("/files", app=uploads),
    ],
    lifespan=uploads.lifespan,
)
"""
CONTENT = bytes(range(256)) * 8192
PROGRAMS = {
    "uvicorn": (UVICORN, ("--workers", "2", "--timeout-keep-alive", "600")),
    # Also without --preload, which only adds that all is put together before the fork.
    "gunicorn --preload": (GUNICORN, ("--workers", "2", "--preload", "--keep-alive", "600")),
}


class Fleet:
    """An application in two processes, and connections to each of them."""

    def __init__(self, server: Application) -> None:
        self.server = server
        self.tus = Tus(server)

    def connections(self) -> dict[int, Connection]:
        """A connection to each process, by its id."""
        found: dict[int, Connection] = {}

        def both() -> bool:
            connection = self.tus.connect()
            pid = int(connection.request("GET", "/pid", {}).text)
            if pid in found:
                connection.close()
            else:
                found[pid] = connection
            return len(found) == 2

        wait_until(both, "both processes to be met")
        return found


@pytest.fixture(scope="module", params=PROGRAMS)
def fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    program, flags = PROGRAMS[request.param]
    directory = tmp_path_factory.mktemp("fleet")
    with Application(directory, CODE, *flags, program=program, processes=2) as server:
        yield Fleet(server)


def test_the_requests_of_an_upload_go_to_both_processes(fleet: Fleet) -> None:
    tus, middle = fleet.tus, len(CONTENT) // 2
    first, second = fleet.connections().values()
    with closing(first), closing(second):
        path = path_of(tus.create(len(CONTENT), on=first)["Location"])
        assert tus.patch(path, 0, CONTENT[:middle], on=second).status == 204
        # The first process learns of what the second one has stored, also once it knows the upload.
        assert tus.request("HEAD", path, {"Tus-Resumable": "1.0.0"}, on=first)[
            "Upload-Offset"
        ] == str(middle)
        assert tus.patch(path, middle, CONTENT[middle:], on=first).status == 204
        assert tus.request("GET", path, {}, on=second).body == CONTENT


def test_a_request_at_one_process_takes_over_from_one_at_the_other(fleet: Fleet) -> None:
    tus, middle = fleet.tus, len(CONTENT) // 2
    stale, fresh = fleet.connections().values()
    with closing(stale), closing(fresh):
        path = path_of(tus.create(len(CONTENT), on=fresh)["Location"])
        _send_half(fleet, path, stale)
        head = tus.request("HEAD", path, {"Tus-Resumable": "1.0.0"}, on=fresh)
        assert head["Upload-Offset"] == str(middle)
        assert tus.patch(path, middle, CONTENT[middle:], on=fresh).status == 204
    assert tus.get(path).body == CONTENT


def test_an_upload_survives_the_process_that_receives_it(fleet: Fleet) -> None:
    """Whichever of them it is; what one process does for all (sweeps, commands) is then done by another one."""
    _kill_in_the_middle(fleet, min)
    _kill_in_the_middle(fleet, max)


def _kill_in_the_middle(fleet: Fleet, choose: Callable[[Iterable[int]], int]) -> None:
    tus, middle = fleet.tus, len(CONTENT) // 2
    connections = fleet.connections()
    killed = choose(connections)
    victim = connections.pop(killed)
    (other,) = connections.values()
    with closing(victim), closing(other):
        path = path_of(tus.create(len(CONTENT), on=other)["Location"])
        _send_half(fleet, path, victim)
        os.kill(killed, signal.SIGKILL)
        head = tus.request("HEAD", path, {"Tus-Resumable": "1.0.0"}, on=other)
        assert head["Upload-Offset"] == str(middle)
        assert tus.patch(path, middle, CONTENT[middle:], on=other).status == 204
        assert tus.request("GET", path, {}, on=other).body == CONTENT
    state = fleet.server.upload_dir / ".tusd-py"
    wait_until(lambda: find_server(state) is not None, "a process to lead")


def _send_half(fleet: Fleet, path: str, connection: Connection) -> None:
    """Begin to send all of the content, and wait until half of it is stored."""
    middle = len(CONTENT) // 2
    headers = {**fleet.tus.patch_headers(0), "Content-Length": str(len(CONTENT))}
    connection.send_head("PATCH", path, headers)
    connection.send(CONTENT[:middle])
    file = fleet.server.data_file(path.rpartition("/")[2])
    wait_until(lambda: file.stat().st_size == middle, "the first half to arrive")


def test_metrics_are_those_of_both_processes(fleet: Fleet) -> None:
    first, second = fleet.connections().values()
    with closing(first), closing(second):
        # One of them has just begun, and may not know of the other one's counts yet; each may lack as much as the other.
        before = 0.0

        def both_know() -> bool:
            nonlocal before
            before = published(fleet.server.upload_dir, "tusd_uploads_created")
            return before == _created(first) == _created(second)

        wait_until(both_know, "both to know of both")
        for connection in (first, second):
            assert fleet.tus.create(5, on=connection).status == 201
        wait_until(lambda: _created(first) == _created(second) == before + 2, "the sum")


def test_health_of_a_process_can_be_asked_for(fleet: Fleet) -> None:
    assert fleet.tus.request("GET", "/health/healthz").status == 200
    assert b'"ready":true' in fleet.tus.request("GET", "/health/readyz").body


def test_the_log_of_the_server_has_the_lines_of_the_uploads(fleet: Fleet) -> None:
    path = path_of(fleet.tus.create(3, body=b"abc")["Location"])
    fleet.server.wait_for_line(rf"upload finished.*{path.rpartition('/')[2]}")
    log = fleet.server.log()
    assert re.search(r"its own Redis \(unix:.*no worker and no scheduler", log)
    assert "Traceback" not in log


def test_another_server_is_kept_out(fleet: Fleet, tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "serve", "--port", "0", "--upload-dir", str(fleet.server.upload_dir)],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "is being served by another process" in done.stderr


def _created(connection: Connection) -> float:
    text = connection.request("GET", "/metrics", {}).text
    return float(re.findall(r"^tusd_uploads_created (\S+)$", text, re.MULTILINE)[0])
