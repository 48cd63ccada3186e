"""The services of each compose file, run without containers: commands, environments, health checks, the proxy."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import pytest

from tests.containers import described
from tests.containers.by_hand import Stack, has_mounts_of_its_own, the_image
from tests.support.ports import reserve
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of
from tests.support.waiting import wait_until
from tests.support.wire import Connection, ConnectionEnded

SIZE = 8 * 1024 * 1024


class Front:
    """The proxy, as a client of the tests sees it."""

    base_path = "/files/"
    bucket = None

    def __init__(self, stack: Stack) -> None:
        self.address = ("127.0.0.1", stack.proxy_port)
        self.upload_dir = stack.uploads

    def data_file(self, upload_id: str) -> Path:
        return self.upload_dir / upload_id


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory where nobody may pass, unlike below those that pytest makes."""
    made = Path(tempfile.mkdtemp(prefix="tusd-py-", dir="/var/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@contextmanager
def running(stack: Stack) -> Iterator[Stack]:
    try:
        stack.start()
        for name in stack.containers:
            wait_until(lambda at=name: stack.is_well(at), f"{name} to be well", timeout=90)  # type: ignore[misc]
        yield stack
    except BaseException:
        for name, container in stack.containers.items():
            print(f"--- {name}\n{container.said()[-4000:]}")
        raise
    finally:
        stack.close()


@pytest.fixture
def stack(root: Path) -> Iterator[Stack]:
    with running(Stack(root)) as made:
        yield made


def receiving(stack: Stack) -> int | None:
    """Which of the servers receives a body now."""
    for index, port in enumerate(stack.ports):
        if stack.servers[index].process is None:
            continue
        with Connection(("127.0.0.1", port)) as connection:
            text = connection.request("GET", "/metrics").text
        if re.search(r"^tusd_uploads_active 1\.0$", text, re.MULTILINE):
            return index
    return None


@pytest.mark.timeout(300)
def test_an_upload_goes_on_at_the_other_server_when_its_own_is_killed(
    stack: Stack, record_property: Callable[[str, object], None]
) -> None:
    is_root = os.getuid() == 0
    record_property("containers by hand: as nobody", is_root)
    record_property("containers by hand: read-only", is_root and has_mounts_of_its_own())
    tus = Tus(cast(ServerProcess, Front(stack)))
    content = os.urandom(SIZE)
    created = tus.create(SIZE)
    assert created.status == 201
    assert created["Location"].startswith(f"http://127.0.0.1:{stack.proxy_port}/files/")
    path = "/files/" + id_of(created["Location"])
    with tus.begin_patch(path, 0, SIZE, content[: SIZE // 2]) as patch:
        # Although the body is not all there: the proxy does not wait for the rest.
        patch.wait_stored(60)
        killed = receiving(stack)
        assert killed is not None
        assert stack.servers[killed].end(signal.SIGKILL) == -signal.SIGKILL
        with suppress(ConnectionEnded, ConnectionResetError):
            assert patch.response().status == 502
    assert not stack.is_well(f"server-{stack.ports[killed]}")
    offset = tus.offset(path)
    assert offset == SIZE // 2
    assert tus.patch(path, offset, content[offset:]).status == 204
    assert tus.get(path).body == content
    for private in ("/metrics", "/healthz", "/readyz", "/"):
        assert tus.get(private).status == 404
    if is_root:
        assert tus.server.data_file(id_of(path)).stat().st_uid != 0
    stack.servers[killed].start()
    wait_until(lambda: stack.is_well(f"server-{stack.ports[killed]}"), "it to be back", timeout=60)
    for name, container in reversed(stack.containers.items()):
        assert container.end(signal.SIGTERM) == 0, (name, container.said())
    logs = "".join(each.said() for each in stack.containers.values())
    assert "Traceback" not in logs
    assert "Read-only file system" not in logs


@pytest.mark.timeout(300)
def test_with_a_bucket_an_upload_goes_on_at_the_other_server(root: Path) -> None:
    with running(Stack(root, described.COMPOSE_S3)) as stack:
        tus = Tus(cast(ServerProcess, Front(stack)))
        content = os.urandom(2 * SIZE)
        path = "/files/" + id_of(tus.create(len(content))["Location"])
        acknowledged = 1_000_000
        assert tus.patch(path, 0, content[:acknowledged]).status == 204
        with tus.begin_patch(
            path, acknowledged, len(content) - acknowledged, content[acknowledged:-SIZE]
        ) as patch:
            wait_until(lambda: receiving(stack) is not None, "a server to receive", timeout=60)
            killed = receiving(stack)
            assert killed is not None
            assert stack.servers[killed].end(signal.SIGKILL) == -signal.SIGKILL
            with suppress(ConnectionEnded, ConnectionResetError):
                assert patch.response().status == 502

        def goes_on() -> bool:
            # What the killed server has sent to the bucket may be stored there after this was asked.
            offset = tus.offset(path)
            assert acknowledged <= offset <= len(content) - SIZE
            response = tus.patch(path, offset, content[offset:])
            assert response.status == 204 or response.code == "ERR_MISMATCHED_OFFSET"
            return response.status == 204

        wait_until(goes_on, "the upload to go on")
        assert tus.get(path).body == content
        # Commands in a container find it in the bucket.
        done = stack.worker.run([sys.executable, "-m", "tusd_py", "uploads", "list", "--json"])
        [listed] = [json.loads(line) for line in done.stdout.splitlines()]
        assert (listed["upload"], listed["offset"]) == (id_of(path), len(content))


@pytest.mark.timeout(300)
def test_the_image_alone_is_a_server_with_all_that_it_needs(root: Path) -> None:
    holder = reserve()
    port = holder.getsockname()[1]
    alone = the_image(root, port)
    try:
        alone.start()
        [health] = [rest for word, rest in described.last_stage() if word == "HEALTHCHECK"]
        _, _, test = health.partition("CMD ")
        assert json.loads(test) == ["tusd-py", "health"]
        check = [sys.executable, "-m", "tusd_py", "health"]
        wait_until(lambda: alone.run(check).returncode == 0, "it to be well", timeout=60)
        for kind in ("worker", "scheduler"):
            wait_until(
                lambda at=kind: alone.run([*check, at]).returncode == 0,  # type: ignore[misc]
                f"its {kind}",
                timeout=60,
            )
        with Connection(("127.0.0.1", port)) as connection:
            headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "5"}
            assert connection.request("POST", "/files/", headers).status == 201
        assert alone.end(signal.SIGTERM) == 0
    finally:
        alone.close()
        holder.close()
    assert "Traceback" not in alone.said()
    assert "Read-only file system" not in alone.said()
