"""A disk that is full or read-only at the start: the server starts, logs it, and can free space itself."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from tests.conftest import MakeServer
from tests.durability.small_disk import SmallDisk
from tests.durability.volume import require_mounts
from tests.support.changes import stop_between_changes
from tests.support.files import files_below
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of
from tests.support.waiting import wait_until
from tests.workers.commands import command, of
from tests.workers.test_sweep_command import abandon


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    require_mounts(tmp_path)
    small = SmallDisk(tmp_path, request.param)
    with small.mounted():
        yield small


def full_server(make_server: MakeServer, disk: SmallDisk, *flags: str) -> tuple[ServerProcess, str]:
    """A server that was killed on a disk that is full now, and the path of its one finished upload."""
    server = make_server(*flags, upload_dir=disk.root / "uploads")
    finished = Tus(server).finished(b"hello")
    server.kill9()
    disk.fill()
    return server, finished


@pytest.mark.parametrize("jobs", ["off", "on"])
@pytest.mark.parametrize("how", ["delete", "rm", "sweep"])
def test_room_is_made_by_our_own_means(
    make_server: MakeServer, disk: SmallDisk, how: str, jobs: str
) -> None:
    server = make_server(
        upload_dir=disk.root / "uploads",
        env={"TUSD_JOBS": jobs, "TUSD_DUPLICATES": "on" if jobs == "on" else "off"},
    )
    tus = Tus(server)
    finished, large = tus.finished(b"hello"), tus.new(10 << 20)
    assert tus.patch(large, 0, b"x" * (4 << 20)).status == 204
    server.kill9()
    if how == "sweep":
        abandon(server, large)
    disk.fill()
    server.restart()
    assert any("Nothing can be stored" in line for line in server.lines)
    assert tus.get("/healthz").status == 200
    assert tus.get(finished).body == b"hello"
    if how != "sweep":
        # Else there is room again already.
        assert tus.get("/readyz").status == 503
        assert tus.offset(large) == 4 << 20
        assert tus.create(5, body=b"hello").status == 507
    if how == "delete":
        assert tus.delete(large).status == 204
    elif how == "rm":
        done = command("uploads", "rm", id_of(large), *of(server), env=server.env)
        assert done.returncode == 0, done.stderr
    wait_until(lambda: not server.data_file(id_of(large)).exists(), "the removal")
    assert tus.head(large).status == 410
    assert tus.get("/readyz").status == 200
    assert tus.get(tus.finished(b"again")).body == b"again"


@pytest.mark.parametrize("how", ["rm", "sweep"])
def test_commands_make_room_while_no_server_runs(
    make_server: MakeServer, disk: SmallDisk, how: str
) -> None:
    server = make_server(upload_dir=disk.root / "uploads")
    tus = Tus(server)
    large = tus.new(10 << 20)
    assert tus.patch(large, 0, b"x" * (4 << 20)).status == 204
    abandon(server, large)
    server.kill9()
    disk.fill()
    words = ("uploads", "rm", id_of(large)) if how == "rm" else ("sweep",)
    done = command(*words, *of(server))
    assert done.returncode == 0, done.stderr
    assert not server.data_file(id_of(large)).exists()


def test_a_read_only_disk_is_served(make_server: MakeServer, disk: SmallDisk) -> None:
    server, finished = full_server(make_server, disk)
    disk.empty()
    disk.make_read_only()
    server.restart()
    tus = Tus(server)
    assert any("Nothing can be stored" in line for line in server.lines)
    assert tus.get("/readyz").status == 503
    assert tus.get("/healthz").status == 200
    assert tus.get(finished).body == b"hello"
    assert tus.head(finished).status == 200
    assert command("uploads", "list", *of(server)).returncode == 0


def test_an_upload_is_taken_over_on_a_full_disk(
    make_server: MakeServer, disk: SmallDisk, tmp_path: Path
) -> None:
    """From a server that stands still, and with a Redis that has forgotten its lock."""
    with RedisServer(tmp_path / "redis") as redis:
        flags = ("--redis-url", redis.url, "--lock-lease", "800ms", "--acquire-lock-timeout", "2s")
        first, second = (
            Tus(make_server(*flags, upload_dir=disk.root / "uploads")) for _ in range(2)
        )
        path = first.new(200_000)
        with first.begin_patch(path, 0, 200_000, b"x" * 100_000) as patch:
            patch.wait_stored()
            # The bytes are in the file before that change is complete.
            stop_between_changes(first.server, path)
            disk.fill()
            redis.client.flushall()
            wait_until(lambda: second.head(path).status == 200, "the upload")
            assert second.offset(path) == 100_000
            first.server.signal(signal.SIGCONT)
            patch.send(b"y" * 100_000)
            assert patch.response().status == 409
        assert second.stored(path) == b"x" * 100_000
        assert second.delete(path).status == 204


class _Endpoint(BaseHTTPRequestHandler):
    """An endpoint that refuses a given number of requests, and records all."""

    told: ClassVar[list[int]] = []
    failures = 2

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.told.append(int(self.headers.get("Hook-Attempt", 0)) or len(self.told) + 1)
        assert body
        self.send_response(500 if len(self.told) <= self.failures else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None: ...


def test_events_are_delivered_from_a_full_disk(
    make_server: MakeServer, disk: SmallDisk, tmp_path: Path
) -> None:
    endpoint = HTTPServer(("127.0.0.1", 0), _Endpoint)
    _Endpoint.told = []
    Thread(target=endpoint.serve_forever, daemon=True).start()
    try:
        server = make_server(
            *("--hooks-http", f"http://127.0.0.1:{endpoint.server_port}/"),
            *("--hooks-enabled-events", "post-finish", "--hooks-http-retry", "1"),
            *("--hooks-delivery", "workers", "--hooks-delivery-backoff", "1s"),
            *("--state-dir", str(tmp_path / "state")),
            upload_dir=disk.root / "uploads",
        )
        Tus(server).finished(b"hello")
        outbox = server.upload_dir / ".tusd-py" / "outbox"
        assert files_below(outbox)
        server.kill9()
        disk.fill()
        server.env["TUSD_JOBS"] = "on"
        server.restart()
        wait_until(lambda: len(_Endpoint.told) > _Endpoint.failures, "the event")
        wait_until(lambda: not files_below(outbox), "that it is forgotten")
    finally:
        endpoint.shutdown()
        endpoint.server_close()
    assert not files_below(server.upload_dir / ".tusd-py" / "outbox-failed")
