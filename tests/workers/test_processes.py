"""Workers and schedulers as processes: started by `tusd-py serve`, or by hand with an own Redis; killed and stopped."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.exceptions import ResponseError
from rq import SimpleWorker
from rq.worker import WorkerStatus

from tests.conftest import MakeServer
from tests.support.application import Application
from tests.support.jobs import Job
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of
from tests.support.waiting import wait_until
from tests.workers.commands import command, of
from tests.workers.test_sweep_command import abandon, swept_server
from tusd_py.jobs.connection import OutageLog
from tusd_py.jobs.queues import QUEUES
from tusd_py.settings.model import Settings
from tusd_workers import worker

QUICK = ("--sweep-interval", "1s")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    started: list[Job] = []
    yield started
    for job in started:
        job.close()


def children(server: ServerProcess) -> dict[str, int]:
    """The process ids of the worker and the scheduler of a server."""
    found: dict[str, int] = {}
    for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            # It has ended since its parent was asked.
            continue
        if b"tusd_py" in words:
            found[words[words.index(b"tusd_py") + 1].decode()] = int(pid)
    return found


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_gone(server: ServerProcess, upload_id: str) -> None:
    wait_until(lambda: not server.data_file(upload_id).exists(), "the sweep", timeout=60)


def test_serve_alone_sweeps_by_its_worker_which_is_replaced_when_killed(
    make_server: MakeServer,
) -> None:
    server = make_server(*QUICK, env={"TUSD_JOBS": "auto", "TUSD_DUPLICATES": ""})
    tus = Tus(server)
    server.wait_for_line("working", timeout=60)
    # One that was just forked has no command line of its own yet.
    wait_until(lambda: set(children(server)) == {"worker", "scheduler"}, "both", timeout=60)
    before = children(server)
    gone_id = abandon(server, tus.new(10))
    command("sweep", *of(server))
    # What a sweep of the worker is just about to remove is left to that.
    wait_until_gone(server, gone_id)
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: (
            set(children(server)) == set(before)
            and not set(children(server).values()) & set(before.values())
        ),
        "new ones",
        timeout=60,
    )
    since = len(server.lines)
    server.wait_for_line(r"sweep  kind=due", timeout=60, since=since)

    def all_is_well() -> bool:
        return command("status", *QUICK, *of(server)).returncode == 0

    wait_until(all_is_well, "status", timeout=60)
    status = json.loads(command("status", "--json", *QUICK, *of(server)).stdout)
    assert status["registry"]["is_whole"]
    assert {record["kind"] for record in status["sweeps"]} == {"all", "due"}
    assert "sweep-all" in status["schedule"]
    after = children(server)
    assert server.terminate() == 0
    assert all(is_gone(pid) for pid in after.values())


def test_a_server_that_is_killed_leaves_none_behind(make_server: MakeServer) -> None:
    server = make_server(*QUICK, env={"TUSD_JOBS": "on"})
    server.wait_for_line("working", timeout=60)
    server.wait_for_line("scheduling", timeout=60)
    pids = children(server).values()
    assert len(pids) == 2
    server.kill9()
    wait_until(lambda: all(map(is_gone, pids)), "their end", timeout=60)


def test_none_with_a_redis_of_the_operator(make_server: MakeServer, redis: RedisServer) -> None:
    server = make_server(env={"TUSD_REDIS_URL": redis.url, "TUSD_JOBS": "auto"})
    Tus(server).new(10)
    assert children(server) == {}
    server.terminate()


def test_apart_from_the_server_through_an_outage_and_a_flush(
    make_server: MakeServer, redis: RedisServer, jobs: list[Job]
) -> None:
    env = {"TUSD_REDIS_URL": redis.url, "TUSD_REDIS_TIMEOUT": "10s"}
    # The server's own sweep does not come, so that what goes is gone by the worker.
    server = make_server("--sweep-interval", "1h", env=env)
    wait_for_first_sweep(redis)
    tus = Tus(server)
    for name in ("worker", "scheduler"):
        extra = ("--concurrency", "2") if name == "worker" else ()
        jobs.append(Job(name, *extra, *QUICK, *of(server), env=env))
    gone_id = abandon(server, tus.new(10))

    def is_swept() -> bool:
        make_due(redis, gone_id)
        return not server.data_file(gone_id).exists()

    wait_until(is_swept, "the sweep", timeout=60)
    # Before it is emptied, as what a sweep sees that is only half abandoned is not looked at for days.
    gone_id = abandon(server, tus.new(10))
    redis.restart()
    redis.command("FLUSHALL")
    wait_until_gone(server, gone_id)
    kept = tus.new(10)
    assert tus.offset(kept) == 0
    for job in jobs:
        code, said = job.end()
        assert (code, "Traceback" in said) == (0, False), said
    server.terminate()


def wait_for_first_sweep(redis: RedisServer) -> None:
    """The server's own at its start would take what is meant for the worker."""
    key = "tusd:{registry}:sweeps"
    wait_until(lambda: redis.command("HEXISTS", key, "all") == 1, "the server's sweep", timeout=60)


def make_due(redis: RedisServer, upload_id: str) -> None:
    """Makes the registry say that an upload is due, as it would by itself after a week.

    To be repeated: the server may still have to tell what it thought when the upload was created.
    """
    redis.command("ZADD", "tusd:{registry}:due", 1, upload_id)


class Pause(threading.Event):
    """Is set by SIGTERM, which comes in the pause between two attempts."""

    def wait(self, timeout: float | None = None) -> bool:
        signal.raise_signal(signal.SIGTERM)
        return self.is_set()


@pytest.mark.parametrize("state", [WorkerStatus.IDLE, WorkerStatus.BUSY])
def test_sigterm_ends_a_worker_that_pauses_after_an_error(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: WorkerStatus
) -> None:
    settings = Settings(upload_dir=tmp_path / "uploads")
    outage = OutageLog(redis.url, logging.getLogger(__name__))
    stop, attempts = Pause(), 0

    def fail(each: SimpleWorker, *_arguments: object) -> None:
        each.set_state(state)
        raise ResponseError("not now")

    def make() -> worker._Worker:
        nonlocal attempts
        attempts += 1
        assert attempts == 1, "it goes on"
        made = worker._make_worker(settings, redis.url, QUEUES, outage)
        made.stop_event, made.performing = stop, threading.Event()
        return made

    monkeypatch.setattr(worker._Worker, "dequeue_job_and_maintain_ttl", fail)
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        worker._run_until_stopped(make, stop, outage)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert stop.is_set()


def test_sigterm_lets_the_job_in_hand_finish(
    make_server: MakeServer, redis: RedisServer, jobs: list[Job], tmp_path: Path
) -> None:
    hook = tmp_path / "slow.py"
    hook.write_text(
        f"""
import asyncio, pathlib
here = pathlib.Path({str(tmp_path)!r})
async def post_expire(event):
    (here / "begun").touch()
    while not (here / "go").exists():
        await asyncio.sleep(0.05)
    (here / "done").touch()
"""
    )
    env = {"TUSD_REDIS_URL": redis.url}
    server = make_server("--sweep-interval", "1h", env=env)
    wait_for_first_sweep(redis)
    upload_id = abandon(server, Tus(server).new(10))
    worker = Job("worker", "--hook", str(hook), *QUICK, *of(server), env=env)
    jobs += [worker, Job("scheduler", *QUICK, *of(server), env=env)]

    def has_begun() -> bool:
        make_due(redis, upload_id)
        return (tmp_path / "begun").exists()

    wait_until(has_begun, "the job", timeout=60)
    worker.process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.process.wait(1.0)
    (tmp_path / "go").touch()
    assert worker.process.wait(60) == 0
    assert (tmp_path / "done").exists()
    assert not server.data_file(upload_id).exists()
    server.terminate()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ("worker", "--queue", "expiri"),
            '--queue "expiri": there are expiry and delivery; did you mean',
        ),
        (("worker", "--concurrency", "0"), '--concurrency "0": give a whole number'),
        (("scheduler", "--time-zone", "Mars/Base"), "no such time zone is known here"),
    ],
)
def test_mistakes(words: tuple[str, ...], problem: str) -> None:
    done = command(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr


def test_a_directory_of_tuspyserver_that_is_not_there_is_reported(
    redis: RedisServer, tmp_path: Path, jobs: list[Job]
) -> None:
    missing = tmp_path / "missing"
    where = ("--tuspyserver-dirs", f"{tmp_path},{missing}", "--upload-dir", str(tmp_path / "up"))
    scheduler = Job("scheduler", *where, env={"TUSD_REDIS_URL": redis.url})
    jobs.append(scheduler)
    scheduler.wait_for_lines(f"{missing} is no directory (--tuspyserver-dirs)")
    code, said = scheduler.end()
    assert (code, said.count("is no directory")) == (0, 1)


@pytest.mark.parametrize("name", ["worker", "scheduler"])
def test_jobs_say_why_redis_is_away(
    redis: RedisServer, tmp_path: Path, jobs: list[Job], name: str
) -> None:
    job = Job(name, "--upload-dir", str(tmp_path / "up"), env={"TUSD_REDIS_URL": redis.url})
    jobs.append(job)
    job.wait_for_lines({"worker": "working", "scheduler": "scheduling"}[name])
    redis.stop()
    # A sentence, which the log has in quotes, not only the name of an exception.
    job.wait_for_lines('redis away  reason="')


def test_status_says_what_is_wrong(make_server: MakeServer, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "own") as redis:
        env = {"TUSD_REDIS_URL": redis.url, "TUSD_JOBS": "auto"}
        server = swept_server(make_server, tmp_path / "uploads", env=env)
        done = command("status", *of(server), env=env)
        server.terminate()
    assert done.returncode == 1
    assert "PROBLEM    no worker runs" in done.stdout
    assert "PROBLEM    no scheduler runs" in done.stdout
    none = command("status", "--upload-dir", str(tmp_path / "none"))
    assert (none.returncode, none.stdout) == (1, "")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("events", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_no_worker_is_no_problem_where_servers_need_none(
    make_server: MakeServer, tmp_path: Path, events: bool, shared: bool
) -> None:
    """With --jobs off, unless events are left to workers."""
    hook = tmp_path / "hook.py"
    hook.write_text("def post_finish(event):\n    pass\n")
    with RedisServer(tmp_path / "redis") as redis:
        env = {"TUSD_DUPLICATES": "on", "TUSD_REDIS_URL": redis.url if shared else ""}
        flags = ("--hook", str(hook), "--hooks-delivery", "workers") if events else ()
        server = swept_server(make_server, tmp_path / "uploads", *flags, env=env)
        # Whatever the command is told of jobs.
        done = command("status", *of(server), *flags, env={**env, "TUSD_JOBS": "auto"})
        server.terminate()
    assert (done.returncode, "no worker runs" in done.stdout) == (events, events), done.stdout


def test_no_worker_is_no_problem_of_an_application(tmp_path: Path) -> None:
    code = """
from tusd_py import Settings, TusApp

app = TusApp(Settings(upload_dir="./uploads", base_path="/files/"))
"""
    auto = {"TUSD_JOBS": "auto", "TUSD_DUPLICATES": "on"}
    with Application(tmp_path, code, env=auto) as server:

        def status() -> subprocess.CompletedProcess[str]:
            return command("status", *of(server), env=auto)

        wait_until(lambda: "sweep      all" in status().stdout, "its first sweep")
        assert (done := status()).returncode == 0, done.stdout


def put_sweep_of_future(redis: RedisServer, kind: str) -> None:
    """Pretend that a sweep ended in a year, by a clock that was set back since."""
    at = time.time() + 365 * 86_400.0
    counts = dict.fromkeys(("seen", "expired", "finished", "remains", "failed"), 0)
    record = {"kind": kind, "began": at, "ended": at, **counts}
    redis.command("HSET", "tusd:{registry}:sweeps", kind, json.dumps(record))


@pytest.mark.parametrize("kind", ["due", "all"])
def test_a_sweep_of_the_future_does_not_keep_servers_from_sweeping(
    make_server: MakeServer, redis: RedisServer, kind: str
) -> None:
    env = {"TUSD_REDIS_URL": redis.url}
    # Its own sweeps would replace the record at once.
    server = make_server("--sweep-interval", "2s", "--expire-after", "1s", env=env)
    swept = "tusd:{registry}:sweeps"
    wait_until(lambda: redis.command("HEXISTS", swept, "all") == 1, "its first sweep")
    put_sweep_of_future(redis, kind)
    wait_until_gone(server, id_of(Tus(server).new(10)))


def test_a_sweep_of_the_future_does_not_hide_that_nothing_is_swept(
    make_server: MakeServer, redis: RedisServer
) -> None:
    env = {"TUSD_REDIS_URL": redis.url}
    server = make_server("--sweep-interval", "1h", env=env)
    wait_until(lambda: redis.command("HLEN", "tusd:{registry}:sweeps") == 1, "its first sweep")
    problem = "nothing has been swept for too long"
    assert problem not in command("status", *of(server), env=env).stdout
    put_sweep_of_future(redis, "all")
    assert problem in command("status", *of(server), env=env).stdout
