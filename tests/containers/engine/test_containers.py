"""The image and the services of docker-compose.yml in real containers: built, killed, scaled, upgraded and stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import pytest

from tests.containers.engine import image
from tests.containers.engine.fleet import Fleet
from tests.containers.engine.podman import EngineFailed, Podman
from tests.support.load import Uploaders
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of
from tests.support.waiting import wait_until
from tests.support.wire import ConnectionEnded

pytestmark = pytest.mark.timeout(900)

SIZE = 200 * 1000 * 1000
ORDER = ("proxy", "server", "worker", "scheduler", "redis")
"""The services, each before those that it depends on."""
MOST_BYTES = 500 * 1000 * 1000
"""More would mean that something of the build was left in the image, on the largest base in use."""


def test_the_image_runs_read_only_with_a_volume_as_a_user_without_rights(
    podman: Podman, our_image: str, record_property: Callable[[str, object], None]
) -> None:
    size = podman.image_bytes(image.NAME)
    record_property("size of the image", f"{size / 1e6:.0f} MB with Debian's Python")
    assert size < MOST_BYTES
    options = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--volume", "alone:/data"]
    podman.run("run", "--detach", "--name", "alone", *options, image.NAME)
    try:
        wait_until(lambda: _is_well(podman, "alone"), "it to be well", 90)
        for kind in ("worker", "scheduler"):
            wait_until(lambda at=kind: _runs(podman, "alone", "tusd-py", "health", at), kind, 90)  # type: ignore[misc]
        assert podman.run("exec", "alone", "id", "-u") == "10001"
        assert not _runs(podman, "alone", "touch", "/opt/tusd-py/written")
        assert _runs(podman, "alone", "touch", "/data/.tusd-py/written")
        podman.run("stop", "--time", "30", "alone")
        [state] = json.loads(podman.run("container", "inspect", "alone"))
        assert state["State"]["ExitCode"] == 0
    finally:
        podman.run("rm", "--force", "--volumes", "alone")
        podman.run("volume", "rm", "alone")


def test_an_upload_of_200_MB_goes_on_at_the_other_server_when_its_own_is_killed(
    fleet: Fleet,
) -> None:
    tus = Tus(cast(ServerProcess, fleet))
    content = os.urandom(SIZE)
    created = tus.create(SIZE)
    assert created["Location"].startswith(f"http://127.0.0.1:{fleet.address[1]}/files/")
    path = "/files/" + id_of(created["Location"])
    with tus.begin_patch(path, 0, SIZE, content[: SIZE // 2]) as patch:
        patch.wait_stored(120)
        killed = fleet.receiving()
        fleet.podman.run("kill", "--signal", "KILL", killed)
        with suppress(ConnectionEnded, ConnectionResetError):
            assert patch.response().status == 502
    offset = tus.offset(path)
    assert offset == SIZE // 2
    assert tus.patch(path, offset, content[offset:]).status == 204
    downloaded = tus.get(path).body
    assert hashlib.sha256(downloaded).digest() == hashlib.sha256(content).digest()
    assert fleet.data_file(id_of(path)).stat().st_uid == 10001
    assert tus.get("/metrics").status == 404
    with suppress(EngineFailed):
        fleet.podman.run("start", killed)
    wait_until(lambda: fleet.is_well(killed), "the server to be back", 90)


def test_workers_are_scaled(fleet: Fleet) -> None:
    fleet.up("--scale", "worker=3", "worker")
    workers = fleet.containers("worker")
    assert len(workers) == 3
    # Two processes each, as the file says.
    wait_until(lambda: _count_of_workers(fleet, workers[0]) == 6, "all of them to work", 90)


def test_the_upgrade_fails_no_upload_and_needs_no_reload_of_the_proxy(
    fleet: Fleet, podman: Podman, our_image: str
) -> None:
    [proxy] = fleet.containers("proxy")
    started = fleet.started_at(proxy)
    old = fleet.containers("server")
    newer = image.build(podman, label="newer")
    assert newer != our_image
    with Uploaders(lambda: fleet.address) as load:
        load.wait_for_more(4)
        fleet.up("--no-deps", "--scale", "server=4", "server")
        added = sorted(set(fleet.containers("server")) - set(old))
        assert len(added) == 2
        load.wait_for_more(4)
        for name in old:
            assert fleet.stop(name) == 0
            load.wait_for_more(4)
    load.check()
    assert fleet.containers("server") == added
    assert {fleet.image_of(name) for name in added} == {newer}
    assert fleet.started_at(proxy) == started


def test_all_services_end_by_themselves_when_they_are_stopped(fleet: Fleet) -> None:
    names = [name for service in ORDER for name in fleet.containers(service)]
    for name in names:
        assert fleet.stop(name) == 0, fleet.logs([name])
    logs = fleet.logs(names)
    assert "Traceback" not in logs
    assert "Read-only file system" not in logs


def _is_well(podman: Podman, name: str) -> bool:
    try:
        podman.run("healthcheck", "run", name)
    except EngineFailed:
        return False
    return True


def _count_of_workers(fleet: Fleet, name: str) -> int:
    status = "tusd-py status --json; true"
    return len(json.loads(fleet.podman.run("exec", name, "sh", "-c", status))["workers"])


def _runs(podman: Podman, name: str, *command: str) -> bool:
    try:
        podman.run("exec", name, *command)
    except EngineFailed:
        return False
    return True
