"""A sweep that would remove most uploads, or whose clock differs far from the last one's, is held."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, path_of
from tests.support.waiting import wait_until
from tests.workers.commands import command, documents, of
from tests.workers.test_sweep_command import abandon
from tusd_py.locks.memory import MemoryLocks
from tusd_py.maintenance.local import LocalMaintenance
from tusd_py.storage.base import SweepTimes, UploadInfo
from tusd_py.storage.file.store import FileStore
from tusd_py.uploads.policy import UploadPolicy
from tusd_py.uploads.service import Uploads
from tusd_py.uploads.sweep_guard import begins_hold, hold_reason

DAY = 86_400.0


def put_last_sweep(server: ServerProcess, days_ago: float) -> None:
    """Pretend that the last sweep ended at that time by its clock."""
    then = time.time() - days_ago * DAY
    os.utime(server.upload_dir / ".tusd-py" / "swept", (then, then))


@pytest.mark.parametrize("days_ago", [400, -400, 3])
@pytest.mark.parametrize("by", ["server", "command", "running"])
def test_a_clock_that_is_far_from_the_last_sweeps_removes_nothing(
    make_server: MakeServer, days_ago: int, by: str
) -> None:
    server = make_server()
    server.wait_for_first_sweep()
    tus = Tus(server)
    path = tus.new(10)
    documents("sweep", *of(server))
    if by != "running":
        server.terminate()
    abandon(server, path)
    put_last_sweep(server, days_ago)
    if by == "server":
        server.restart()
        server.wait_for_line("The sweep removes nothing now: the clock is")
    else:
        done = command("sweep", *of(server))
        assert done.returncode == 1
        assert "1 upload seen, nothing removed now: the clock is" in done.stdout
    assert server.data_file(id_of(path)).exists()
    done = command("sweep", "--force", *of(server))
    assert done.stdout.startswith("1 upload seen: 1 removed"), done.stderr
    assert not server.data_file(id_of(path)).exists()


def test_while_the_clock_is_far_from_the_last_sweeps_uploads_go_on(
    make_server: MakeServer,
) -> None:
    """A client that is told of 410 would send its whole file again once the clock is right."""
    server = make_server("--retain-finished", "30d")
    server.wait_for_first_sweep()
    tus = Tus(server)
    finished, whole, path = tus.finished(b"hello"), tus.new(10), tus.new(10)
    documents("sweep", *of(server))
    abandon(server, path)
    abandon(server, whole)
    record = json.loads(server.info_file(id_of(finished)).read_text())
    record["TusdPy"]["FinishedAt"] = time.time() - 31 * DAY
    server.info_file(id_of(finished)).write_text(json.dumps(record))
    assert (tus.head(path).status, tus.get(finished).status) == (410, 404)
    put_last_sweep(server, 400)
    assert tus.offset(path) == 0
    assert tus.patch(path, 0, b"0123456789").status == 204
    assert tus.get(path).body == b"0123456789"
    assert tus.get(finished).body == b"hello"
    put_last_sweep(server, 0)
    assert (tus.head(whole).status, tus.get(finished).status) == (410, 404)


def test_most_of_what_there_is_waits(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    paths = [tus.finished(b"hello") for _ in range(25)]
    server.terminate()
    retain = ("--retain-finished", "1ms")
    tried = command("sweep", "--dry-run", *retain, *of(server))
    assert "25 would be removed; the sweep would be held, as it would remove 25" in tried.stdout
    tried = command("sweep", "--dry-run", "--force", *retain, *of(server))
    assert "would be held" not in tried.stdout
    done = command("sweep", *retain, *of(server))
    said = "25 uploads seen, nothing removed now: it would remove 25 of 25 uploads (25 expired)"
    assert said in done.stdout
    assert all(server.data_file(id_of(path)).exists() for path in paths)
    [*_, summary] = documents("sweep", "--force", "--retain-finished", "1ms", *of(server))
    assert (summary["seen"], summary["expired"]) == (25, 25)


def is_finished(server: ServerProcess, path: str) -> bool:
    record = server.record(id_of(path))["TusdPy"]
    assert isinstance(record, dict)
    return bool(record["FinishedAt"])


@pytest.mark.parametrize("by", ["server", "command"])
def test_meanwhile_what_a_crash_interrupted_is_finished(make_server: MakeServer, by: str) -> None:
    server = make_server("--sweep-interval", "1h")
    tus = Tus(server)
    paths = [tus.finished(b"hello") for _ in range(25)]
    whole, part = tus.new(5), tus.finished(b"hel", headers={"Upload-Concat": "partial"})
    last = tus.new(2, headers={"Upload-Concat": "partial"})
    final = path_of(tus.create(headers={"Upload-Concat": f"final;{part} {last}"})["Location"])
    server.terminate()
    interrupted = whole, last, final
    server.data_file(id_of(whole)).write_bytes(b"hello")
    server.data_file(id_of(last)).write_bytes(b"lo")
    assert not any(is_finished(server, each) for each in interrupted)
    left = server.upload_dir / ".tusd-py" / "new" / "left-by-a-crash"
    left.parent.mkdir(exist_ok=True)
    left.touch()
    os.utime(left, (1.0, 1.0))
    flags = ("--retain-finished", "1ms")
    if by == "server":
        server.flags = (*server.flags, *flags)
        server.restart()
        server.wait_for_line("The sweep removes nothing now: it would remove 25 of 29 uploads")
        wait_until(lambda: all(is_finished(server, each) for each in interrupted), "all")
    else:
        # A part is finished first, and then its final.
        for _ in range(2):
            done = command("sweep", *flags, *of(server))
            assert "uploads seen, nothing removed now: it would remove 2" in done.stdout
    assert all(is_finished(server, each) for each in interrupted)
    assert server.data_file(id_of(final)).read_bytes() == b"hello"
    assert all(server.data_file(id_of(path)).exists() for path in paths)
    assert left.exists()


def test_it_goes_on_after_a_day_unless_both_are_wrong() -> None:
    held_since: float | None = None

    def is_held(*, seen: int, due: int, now: float) -> bool:
        nonlocal held_since
        times = SweepTimes(0.0, held_since)
        reason = hold_reason(times, seen=seen, due=due, now=now)
        if reason is not None and begins_hold(times, now):
            held_since = now
        return reason is not None

    assert not is_held(seen=19, due=19, now=10.0)
    assert not is_held(seen=50, due=25, now=10.0)
    assert not is_held(seen=50, due=0, now=400 * DAY)
    assert is_held(seen=50, due=26, now=10.0)
    assert is_held(seen=50, due=26, now=DAY)
    assert not is_held(seen=50, due=26, now=DAY + 11.0)
    # A clock that jumps while a sweep is held does not count as a day.
    assert is_held(seen=50, due=1, now=400 * DAY)
    assert not is_held(seen=50, due=1, now=401 * DAY)
    assert is_held(seen=50, due=30, now=401 * DAY)


class SetClock:
    """A clock that is set ahead while a sweep runs, once it was found to be right."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.days = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead

    def pause(self) -> float:
        """What a sweep asks after each batch: the first one is only counted."""
        self.ahead = self.days * DAY
        return 0.0


@pytest.mark.parametrize("days", [9.0, -3.0])
async def test_a_clock_that_is_set_during_a_sweep_removes_nothing(
    tmp_path: Path, days: float
) -> None:
    clock = SetClock()
    store = FileStore(tmp_path / "uploads")
    store.open()
    uploads = Uploads(store, MemoryLocks(), clock=clock, policy=UploadPolicy(expire_after=7 * DAY))
    names = [f"upload-{number}" for number in range(3)]
    for name in names:
        await store.create(UploadInfo(id=name, length=10, created_at=clock()))
    maintenance = LocalMaintenance(uploads, None, pause_factor=clock.pause)
    assert (await maintenance.sweep("all")).expired == 0
    clock.days, clock.ahead = days, 0.0
    assert (await maintenance.sweep("all")).expired == 0
    # Nor does the next sweep take that clock for one that was right before.
    clock.days, clock.ahead = days, days * DAY
    report = await maintenance.sweep("all")
    assert (report.expired, report.held) == (0, len(names) if days > 0 else 0)
    clock.days, clock.ahead = 0.0, 0.0
    assert [(await store.load(name)).id for name in names] == names
    store.close()


async def test_a_clock_that_is_set_back_while_a_client_asks_expires_nothing(tmp_path: Path) -> None:
    """Whether an upload is due, and whether the clock that says so can be right, is asked of the same time."""
    times = iter([9 * DAY, 0.0])
    store = FileStore(tmp_path / "uploads")
    store.open()
    await store.sweep_marks.record_end(time.time())
    policy = UploadPolicy(expire_after=7 * DAY)
    uploads = Uploads(store, MemoryLocks(), clock=lambda: time.time() + next(times), policy=policy)
    upload = await store.create(UploadInfo(id="upload", length=10, created_at=time.time()))
    assert not await uploads.expiry.is_over(upload)
    store.close()
