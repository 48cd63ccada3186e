"""One upload served by several processes: the bytes are right, whichever process a connection reaches."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import time
from pathlib import Path

from tests.processes.conftest import MakeWorkers, Workers, is_server
from tests.support.metrics import published
from tests.support.server import ServerProcess
from tests.support.tus import Tus
from tests.support.waiting import wait_until

PATIENCE = 30.0
"""Seconds that a client may have to wait for a lock at most, whatever happened to its holder."""


def content(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def requests_by(workers: Workers) -> int:
    """The number of processes that have accepted a connection after several were opened."""
    before = {pid: _sockets(pid) for pid in workers.pids()}
    connections = [workers.tus.connect() for _ in range(60)]
    for connection in connections:
        connection.request("OPTIONS", workers.tus.collection)
    count = sum(_sockets(pid) > before[pid] for pid in workers.pids())
    for connection in connections:
        connection.close()
    return count


def _sockets(pid: int) -> int:
    count = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += os.readlink(descriptor).startswith("socket:")
        except FileNotFoundError:
            continue
    return count


def test_three_processes_share_one_port(make_workers: MakeWorkers) -> None:
    workers = make_workers()
    lines = workers.server.lines
    wait_until(
        lambda: sum("Uploads at" in line for line in lines) == 3, "three processes to listen"
    )
    assert requests_by(workers) >= 2


def test_chunks_cuts_parts_and_a_final_over_all_processes(make_workers: MakeWorkers) -> None:
    workers = make_workers()
    tus = workers.tus
    parts = [content(300_000, seed) for seed in range(4)]
    paths = []
    for data in parts:
        path = tus.new(len(data), headers={"Upload-Concat": "partial"})
        paths.append(path)
        cut = tus.begin_patch(path, 0, len(data), data[:100_000])
        cut.wait_stored()
        cut.close()
        offset = tus.offset(path)
        while offset < len(data):
            response = tus.patch(path, offset, data[offset : offset + 50_000])
            assert response.status == 204, response
            offset = int(response["Upload-Offset"])
    final = tus.create(headers={"Upload-Concat": "final;" + " ".join(paths)})
    assert final.status == 201, final
    joined = tus.get(final["Location"].removeprefix(workers.server.url.removesuffix("/files/")))
    assert hashlib.sha256(joined.body).digest() == hashlib.sha256(b"".join(parts)).digest()


def test_T38_a_newcomer_at_another_process_takes_over_at_once(make_workers: MakeWorkers) -> None:
    tus = make_workers().tus
    data = content(200_000, 5)
    path = tus.new(len(data))
    took = []
    for _ in range(12):
        stale = tus.begin_patch(path, tus.offset(path), 100_000, data[:10])
        stale.wait_stored()
        began = time.monotonic()
        assert tus.head(path).status == 200
        took.append(time.monotonic() - began)
        assert stale.response().code == "ERR_UPLOAD_INTERRUPTED"
        stale.close()
    # The machine may be busy with something else for a while; a message that gets lost costs a second.
    assert sorted(took)[6] < 1.0, took


def test_kill_9_of_the_process_that_holds_the_lock(make_workers: MakeWorkers) -> None:
    workers = make_workers()
    tus = workers.tus
    data = content(3_000_000, 6)
    path = tus.new(len(data))
    offset = 0
    for _ in range(5):
        victim_request = tus.begin_patch(
            path, offset, len(data) - offset, data[offset : offset + 200_000]
        )
        victim_request.wait_stored()
        victim = workers.holder_of(path)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda pid=victim: not is_server(pid), "its end")  # type: ignore[misc]
        began = time.monotonic()
        offset = tus.offset(path)
        assert time.monotonic() - began < PATIENCE
        assert offset >= victim_request.received_to
        victim_request.close()
    response = tus.patch(path, offset, data[offset:])
    assert response.status == 204, response
    assert hashlib.sha256(tus.stored(path)).digest() == hashlib.sha256(data).digest()
    wait_until(lambda: len(workers.pids()) == 3, "the killed processes to be replaced")


def test_when_the_parent_is_killed_its_processes_end_and_another_server_can_start(
    make_workers: MakeWorkers,
) -> None:
    workers = make_workers()
    path = workers.tus.finished(b"kept")
    wait_until(lambda: len(workers.pids()) == 3, "three processes")
    pids = workers.pids()
    workers.server.kill9()
    wait_until(lambda: not any(map(is_server, pids)), "their end")
    server = ServerProcess(workers.server.upload_dir).start()
    try:
        assert Tus(server).get(path).body == b"kept"
    finally:
        server.terminate()


def test_SIGTERM_ends_all_processes_and_keeps_what_arrived(make_workers: MakeWorkers) -> None:
    workers = make_workers("--shutdown-timeout", "100s")
    tus = workers.tus
    open_patches = []
    for _ in range(6):
        patch = tus.begin_patch(tus.new(100_000), 0, 100_000, b"x" * 5_000)
        patch.wait_stored()
        open_patches.append(patch)
    # They are not waited for until the time for running requests is over.
    assert workers.server.terminate() == 0
    for patch in open_patches:
        assert patch.response().code == "ERR_SERVER_SHUTDOWN"
        assert len(tus.stored(patch.path)) == 5_000
        patch.close()


def test_whichever_process_is_asked_tells_the_metrics_of_all(make_workers: MakeWorkers) -> None:
    workers = make_workers()
    tus = workers.tus
    for _ in range(30):
        tus.finished(b"counted")

    def counted() -> set[int]:
        pages = [tus.request("GET", "/metrics").text for _ in range(10)]
        return {
            int(float(n))
            for page in pages
            for n in re.findall(r"^tusd_uploads_finished (\S+)", page, re.MULTILINE)
        }

    # A kill loses what was counted since a process wrote its file last.
    directory = workers.server.upload_dir
    wait_until(lambda: published(directory, "tusd_uploads_finished") == 30, "the files")
    wait_until(lambda: counted() == {30}, "every process to tell the sum")
    # One that starts again goes on from what its predecessor had counted.
    before = workers.pids()
    os.kill(before[1], signal.SIGKILL)
    wait_until(
        lambda: len(workers.pids()) == 3 and before[1] not in workers.pids(),
        "the killed process to be replaced",
    )
    wait_until(lambda: counted() == {30}, "the sum to be the same")
