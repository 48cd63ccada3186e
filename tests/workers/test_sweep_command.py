"""`tusd-py sweep`: removed and spared uploads, with the server running and stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of
from tests.support.waiting import wait_until
from tests.workers.commands import command, documents, of
from tusd_py.maintenance import remote
from tusd_py.maintenance.local import LocalMaintenance, MaintenanceError
from tusd_py.redis.due_index import SweepKind
from tusd_py.uploads.sweep import SweepReport, Tell


def abandon(server: ServerProcess, path: str, days: float = 8) -> str:
    """Lets an upload have had its last byte so many days ago; its id."""
    upload_id = id_of(path)
    then = time.time() - days * 86_400
    info = server.info_file(upload_id)
    document = json.loads(info.read_text())
    document["TusdPy"]["CreatedAt"] = then
    # At once, as somebody who sweeps may be reading it.
    beside = server.upload_dir.with_name(f"{upload_id}.info")
    beside.write_text(json.dumps(document))
    beside.replace(info)
    os.utime(server.data_file(upload_id), (then, then))
    return upload_id


def swept_server(
    make_server: MakeServer, directory: Path, *flags: str, env: Mapping[str, str] | None = None
) -> ServerProcess:
    """A server that has done the sweep of its start, which would take what is meant for another one."""
    left = directory / ".tusd-py" / "new" / "left-by-a-crash"
    left.parent.mkdir(parents=True)
    left.touch()
    os.utime(left, (1.0, 1.0))
    server = make_server(*flags, env=env, upload_dir=directory)
    # What crashes have left goes last.
    wait_until(lambda: not left.exists(), "the sweep of its start", timeout=60)
    # It is recorded by then.
    server.wait_for_line(r"INFO  sweep  seen=0")
    return server


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("running", [True, False])
def test_what_is_abandoned_goes(
    make_server: MakeServer, tmp_path: Path, running: bool, workers: str
) -> None:
    server = swept_server(make_server, tmp_path / "uploads", "--workers", workers)
    tus = Tus(server)
    kept, finished = tus.new(10), tus.finished(b"hello")
    gone = tus.new(10)
    tus.patch(gone, 0, b"abc")
    gone_id = abandon(server, gone)
    abandon(server, finished)
    if not running:
        server.terminate()
    listed, summary = documents("sweep", "--dry-run", *of(server))
    assert (listed["upload"], listed["bytes"]) == (gone_id, 3)
    assert (summary["dry_run"], summary["seen"], summary["expired"]) == (True, 3, 1)
    assert server.data_file(gone_id).exists()
    done = command("sweep", *of(server))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("3 uploads seen: 1 removed")
    assert not server.data_file(gone_id).exists()
    if not running:
        server.restart()
    assert tus.head(gone).status == 410
    assert tus.offset(kept) == 0
    assert tus.get(finished).body == b"hello"


def test_beside_servers_whose_locks_are_in_redis(make_server: MakeServer, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as redis:
        env = {"TUSD_REDIS_URL": redis.url}
        server = swept_server(make_server, tmp_path / "uploads", env=env)
        tus = Tus(server)
        gone, busy = tus.new(10), tus.new(10)
        with tus.begin_patch(busy, 0, 10, b"abc") as patch:
            patch.wait_stored()
            abandon(server, gone)
            busy_id = abandon(server, busy)
            [summary] = documents("sweep", *of(server), env=env)
        assert (summary["seen"], summary["expired"]) == (2, 1)
        assert tus.head(gone).status == 410
        assert server.data_file(busy_id).exists()
        server.terminate()


@pytest.mark.parametrize("running", [True, False])
def test_a_sweep_is_recorded_as_the_regular_ones_are(
    make_server: MakeServer, tmp_path: Path, running: bool
) -> None:
    env = {"TUSD_DUPLICATES": "", "TUSD_SWEEP_INTERVAL": "1h"}
    server = swept_server(make_server, tmp_path / "uploads", env=env)
    if not running:
        server.terminate()
    before = time.time()
    documents("sweep", "--dry-run", *of(server), env=env)
    assert max(swept_at(server, env), default=0.0) < before
    documents("sweep", *of(server), env=env)
    assert max(swept_at(server, env)) > before


def swept_at(server: ServerProcess, env: Mapping[str, str]) -> list[float]:
    """When the sweeps ended that the status knows."""
    status = json.loads(command("status", "--json", *of(server), env=env).stdout)
    return [record["ended"] for record in status["sweeps"]]


def test_after_redis_was_emptied_a_sweep_puts_the_status_right(
    make_server: MakeServer, tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "redis") as redis:
        env = {"TUSD_REDIS_URL": redis.url}
        server = swept_server(make_server, tmp_path / "uploads", env=env)
        Tus(server).new(10)
        redis.command("FLUSHALL")
        said = command("status", *of(server), env=env).stdout
        assert "some may be missing" in said
        assert "nothing has been swept for too long" in said
        documents("sweep", *of(server), env=env)
        said = command("status", *of(server), env=env).stdout
        assert "1 unfinished, 0 due\n" in said
        assert "nothing has been swept" not in said
        server.terminate()


def test_a_server_that_cannot_be_asked_keeps_its_uploads(
    make_server: MakeServer, tmp_path: Path
) -> None:
    server = swept_server(make_server, tmp_path / "uploads")
    tus = Tus(server)
    gone_id = abandon(server, tus.new(10))
    (server.upload_dir / ".tusd-py" / "control" / "server.sock").unlink()
    done = command("sweep", *of(server))
    assert done.returncode == 1
    assert "is being served by another process" in done.stderr
    assert server.data_file(gone_id).exists()


def test_a_killed_server_is_not_in_the_way(make_server: MakeServer, tmp_path: Path) -> None:
    server = swept_server(make_server, tmp_path / "uploads")
    tus = Tus(server)
    gone_id = abandon(server, tus.new(10))
    server.kill9()
    [summary] = documents("sweep", *of(server))
    assert summary["expired"] == 1
    assert not server.data_file(gone_id).exists()
    server.restart()
    assert tus.new(10)


@dataclass(frozen=True)
class Outcome:
    """Of a sweep whose pre-finish hook runs `hook`."""

    hook: str
    finished: int = 0
    expired: int = 0
    code: int = 0
    status: int = 404


FAILS = Outcome("raise Reject(503, 'the archive is away')", code=1)


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize(
    "outcome",
    [
        Outcome("pass", finished=1, status=200),
        Outcome("raise Reject(422, 'no study')", expired=1),
        FAILS,
    ],
    ids=["allowed", "refused", "failed"],
)
def test_what_has_all_its_bytes_is_finished_and_expires_only_if_that_is_refused(
    outcome: Outcome, running: bool, make_server: MakeServer, tmp_path: Path
) -> None:
    does, hook = tmp_path / "does.py", tmp_path / "hook.py"
    does.write_text(FAILS.hook)
    hook.write_text(
        "from pathlib import Path\nfrom tusd_py import Reject\n"
        f"def pre_finish(event):\n    exec(Path({str(does)!r}).read_text())\n"
    )
    server = swept_server(make_server, tmp_path / "uploads", "--hook", str(hook))
    tus = Tus(server)
    path = tus.new(5)
    # As a crash would leave it.
    assert tus.patch(path, 0, b"hello").status == 503
    upload_id = abandon(server, path)
    if not running:
        server.terminate()
    flags = (*of(server), "--hook", str(hook))
    [summary] = documents("sweep", "--dry-run", *flags)
    assert summary["expired"] == 0
    does.write_text(outcome.hook)
    done = command("sweep", "--json", *flags)
    assert done.returncode == outcome.code
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["finished"], summary["expired"]) == (outcome.finished, outcome.expired)
    assert server.data_file(upload_id).exists() == (not outcome.expired)
    does.write_text(FAILS.hook)
    if not running:
        server.restart()
    assert tus.get(path).status == outcome.status
    if outcome is FAILS:
        does.write_text("pass")
        # A request finishes it, too.
        assert tus.offset(path) == 5
        assert tus.get(path).body == b"hello"


# A server that is asked to sweep


class SlowMaintenance(LocalMaintenance):
    """Takes its time to sweep."""

    def __init__(self) -> None:
        pass

    async def sweep(
        self,
        kind: SweepKind,
        *,
        dry_run: bool = False,
        tell: Tell | None = None,
        force: bool = False,
    ) -> SweepReport:
        await asyncio.sleep(1.0)
        return SweepReport(seen=7)


async def test_a_sweep_by_the_server_may_take_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PROBE_SECONDS", 0.05)
    server = remote.ControlServer(SlowMaintenance(), tmp_path)
    await server.start()
    maintenance = remote.find_server(tmp_path)
    assert maintenance is not None
    assert (await maintenance.sweep("all")).seen == 7
    await server.stop()


async def test_a_server_that_stands_still_is_not_waited_for(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server()
    maintenance = remote.find_server(server.upload_dir / ".tusd-py")
    assert maintenance is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with monkeypatch.context() as impatient:
            impatient.setattr(remote, "_PROBE_SECONDS", 0.1)
            impatient.setattr(remote, "_PROBE_TIMEOUT_SECONDS", 0.5)
            async with asyncio.timeout(30):
                with pytest.raises(MaintenanceError, match="does not answer"):
                    await maintenance.sweep("all")
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert (await maintenance.sweep("all")).failed == 0


@pytest.mark.parametrize("words", [("sweep", "--dry-run"), ("uploads", "rm", "x")], ids=" ".join)
def test_what_only_looks_or_removes_makes_no_upload_directory(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    flags = "--upload-dir", str(tmp_path)
    (tmp_path / "somebody's.txt").write_text("")
    done = command(*words, *flags)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"tusd-py {words[0]}: there are no uploads in {tmp_path}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["somebody's.txt"]
    # As before the first start of a server, by cron.
    assert command("sweep", *flags).returncode == 0
    assert command("sweep", "--dry-run", *flags).returncode == 0


def test_a_dry_run_in_the_directory_of_tusd(tmp_path: Path) -> None:
    (tmp_path / "a.info").write_text('{"ID": "a", "Size": 5, "MetaData": {}}')
    (tmp_path / "a").write_bytes(b"abc")
    [summary] = documents("sweep", "--dry-run", "--upload-dir", str(tmp_path))
    assert summary["seen"] == 1


def test_entries_that_are_none_of_ours_do_not_end_a_sweep(
    make_server: MakeServer, tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "redis") as redis:
        env = {"TUSD_REDIS_URL": redis.url}
        server = make_server(env=env)
        Tus(server).new(10)
        server.terminate()
        state = server.upload_dir / ".tusd-py"
        for name in ("epochs", "finals"):
            (state / name / os.fsdecode(b"\xff\xfe")).touch()
            (state / name / "%").touch()
            os.mkfifo(state / name / "pipe")
            (state / name / "directory").mkdir()
        # Of an upload that is gone: the others are not in its way.
        left = state / "epochs" / "zzz"
        left.write_text("00")
        done = command("sweep", *of(server), env=env)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("1 upload seen")
        assert not left.exists()


def test_a_sweep_does_not_go_by_defaults_where_the_server_does_not(make_server: MakeServer) -> None:
    server = make_server("--expire-after", "30d")
    upload_id = abandon(server, Tus(server).new(10))
    server.terminate()
    for words in (("sweep",), ("sweep", "--dry-run")):
        done = command(*words, *of(server))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "the server goes by --expire-after 30d, and this command by 7d" in done.stderr
    assert server.data_file(upload_id).exists()
    # Removing one by its id is not a matter of time.
    assert command("uploads", "rm", "x", *of(server)).returncode == 1
    assert command("sweep", "--expire-after", "30d", *of(server)).returncode == 0
    assert server.data_file(upload_id).exists()
    # What is given counts.
    env = {"TUSD_EXPIRE_AFTER": "7d"}
    assert command("sweep", *of(server), env=env).returncode == 0
    assert not server.data_file(upload_id).exists()
    # As does the last start of a server.
    make_server(upload_dir=server.upload_dir).terminate()
    assert command("sweep", *of(server)).returncode == 0
