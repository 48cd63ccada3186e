"""Delivery by real servers, workers, schedulers and a real Redis, while endpoints fail and processes die."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from rq.utils import as_text, now, utcparse

from tests.conftest import MakeServer
from tests.delivery.conftest import House
from tests.hooks.endpoint import Call, Endpoint, Reply
from tests.support.files import files_below
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, metadata
from tests.support.waiting import wait_until
from tests.support.wire import ConnectionEnded
from tests.workers.commands import command, documents, of
from tests.workers.test_sweep_command import abandon
from tusd_py.jobs.connection import connect
from tusd_py.jobs.queues import DELIVERY, EXPIRY, QueueKeys
from tusd_py.jobs.rq_classes import queue_class
from tusd_py.jobs.table import SWEEP_DUE

SLOW = 60.0
"""Seconds that something may take that begins a process, on a machine that is busy."""


def calls_for(endpoint: Endpoint, path: str) -> list[Call]:
    return [call for call in endpoint.calls if call.upload["ID"] == id_of(path)]


def types(endpoint: Endpoint, path: str) -> list[str]:
    return [call.type for call in calls_for(endpoint, path)]


def wait_for_type(endpoint: Endpoint, path: str, event_type: str) -> list[Call]:
    """The calls for an upload, as soon as there is one of that type."""
    wait_until(lambda: event_type in types(endpoint, path), f"{event_type} of {path}", SLOW)
    return calls_for(endpoint, path)


def wait_for_calls(endpoint: Endpoint, event_type: str, count: int) -> list[Call]:
    """The calls for events of a type, as soon as there are so many."""
    wait_until(lambda: len(endpoint.of(event_type)) >= count, f"{count} {event_type}", SLOW)
    return endpoint.of(event_type)


def wait_until_empty(house: House, server: ServerProcess) -> None:
    wait_until(lambda: house.outbox(server) == [], "an empty outbox", SLOW)


def finish(tus: Tus, headers: Mapping[str, str] | None = None) -> str:
    """A finished upload in one request; its path."""
    created = tus.create(5, body=b"hello", headers=headers)
    assert created.status == 201
    return f"{tus.collection}{created['Location'].rpartition('/')[2]}"


# Where nothing is configured


def test_with_nothing_configured_a_worker_of_the_server_delivers(
    make_server: MakeServer, tmp_path: Path
) -> None:
    hook = tmp_path / "hook.py"
    hook.write_text(
        """
import os
# In one piece, as server and worker say something at the same time.
def say(line): print(line, end="", flush=True)
def start(context): say(f"start {os.getpid()} {context.state is not None}\\n")
def pre_create(event): say(f"pre {os.getpid()}\\n")
def post_create(event): say(f"create {os.getpid()}\\n")
async def post_finish(event): say(f"finish {os.getpid()} {event.attempt}\\n")
def stop(): say(f"stop {os.getpid()}\\n")
"""
    )
    server = make_server("--hook", str(hook), env={"TUSD_JOBS": "", "TUSD_DUPLICATES": ""})
    finish(Tus(server))

    def said(word: str) -> list[list[str]]:
        return [line.split() for line in server.output if line.startswith(word)]

    wait_until(lambda: len(said("finish")) == 1, "post-finish", SLOW)
    [[_, asked]] = said("pre")
    [[_, worker]] = said("create")
    assert said("finish") == [["finish", worker, "1"]]
    assert (asked, worker != asked) == (str(server.pid), True)
    assert server.terminate() == 0
    assert sorted(said("start")) == sorted([["start", asked, "True"], ["start", worker, "True"]])
    assert sorted(said("stop")) == sorted([["stop", asked], ["stop", worker]])


def test_with_nothing_configured_a_kill_in_the_middle_costs_nothing(
    make_server: MakeServer, endpoint: Endpoint
) -> None:
    endpoint.script("post-finish", Reply(cut=True), Reply())
    env = {"TUSD_JOBS": "", "TUSD_DUPLICATES": "", "TUSD_HOOKS_HTTP_RETRY": "1"}
    backoff = ("--hooks-delivery-backoff", "3s")
    server = make_server("--hooks-http", endpoint.url, *backoff, env=env)
    path = finish(Tus(server))
    wait_for_type(endpoint, path, "post-finish")
    # Its worker, its scheduler and its Redis go with it.
    server.kill9()
    server.restart()
    calls = wait_for_calls(endpoint, "post-finish", 2)
    assert [call.headers["hook-event-attempt"] for call in calls] == ["1", "2"]
    wait_until(lambda: not files_below(server.upload_dir / ".tusd-py" / "outbox"), "its end", SLOW)


@pytest.mark.parametrize("flags", [(), ("--hooks-delivery", "server")])
def test_the_server_delivers_where_there_are_no_workers_or_it_is_told_to(
    make_server: MakeServer, endpoint: Endpoint, flags: tuple[str, ...]
) -> None:
    env = {"TUSD_DUPLICATES": "", "TUSD_JOBS": ""} if flags else {}
    server = make_server("--hooks-http", endpoint.url, *flags, env=env)
    finish(Tus(server))
    [call] = wait_for_calls(endpoint, "post-finish", 1)
    assert call.headers["hook-event-attempt"] == "1"
    server.terminate()
    assert not (server.upload_dir / ".tusd-py" / "outbox").exists()


def test_without_hooks_nothing_is_kept(house: House) -> None:
    del house.env["TUSD_HOOKS_HTTP"]
    server = house.serve()
    tus = Tus(server)
    tus.delete(finish(tus))
    server.terminate()
    assert not (server.upload_dir / ".tusd-py" / "outbox").exists()
    assert house.redis.command("KEYS", "tusd:rq:*delivery*") == []


def test_what_was_left_for_workers_is_not_forgotten(house: House) -> None:
    server = house.serve()
    path = finish(Tus(server))
    server.terminate()
    server.flags = (*server.flags, "--hooks-delivery", "server")
    server.restart()
    server.wait_for_line("2 events wait for workers, but this server runs none", SLOW)
    house.work(server)
    wait_for_type(house.endpoint, path, "post-finish")


# What is told


def test_a_life_is_told_in_order_by_workers_elsewhere(house: House) -> None:
    server = house.serve()
    house.work(server, "--concurrency", "2")
    tus = Tus(server)
    paths = [finish(tus) for _ in range(10)]
    for path in paths:
        assert tus.delete(path).status == 204
    gone = tus.new(10)
    abandon(server, gone)
    assert command("sweep", *of(server), env=house.env).returncode == 0
    wait_for_type(house.endpoint, gone, "post-expire")
    for path in paths:
        wait_for_type(house.endpoint, path, "post-terminate")
        assert types(house.endpoint, path) == ["post-create", "post-finish", "post-terminate"]
    assert types(house.endpoint, gone) == ["post-create", "post-expire"]
    wait_until_empty(house, server)
    ids = [call.headers["hook-event-id"] for call in house.endpoint.calls]
    assert len(set(ids)) == len(ids) == 32


def test_an_endpoint_that_fails_is_called_again_in_order(house: House) -> None:
    server = house.serve()
    house.work(server)
    house.endpoint.script("post-finish", Reply(500), Reply(404), Reply(cut=True), Reply())
    tus = Tus(server)
    path = finish(tus)
    tus.delete(path)
    calls = wait_for_type(house.endpoint, path, "post-terminate")
    assert [call.type for call in calls] == [
        "post-create",
        *["post-finish"] * 4,
        "post-terminate",
    ]
    assert [call.headers["hook-event-attempt"] for call in calls] == list("112341")
    assert len({call.headers["hook-event-id"] for call in calls[1:5]}) == 1
    wait_until_empty(house, server)


def test_executables_are_run_by_workers_until_they_succeed(house: House, tmp_path: Path) -> None:
    directory = tmp_path / "hooks"
    directory.mkdir()
    told = tmp_path / "told"
    script = directory / "post-finish"
    script.write_text(
        f"#!/bin/sh\n"
        f'echo "$TUS_ID $TUS_EVENT_ID $TUS_EVENT_ATTEMPT" >> {told}\n'
        f'[ "$TUS_EVENT_ATTEMPT" -ge 3 ]\n'
    )
    script.chmod(0o755)
    del house.env["TUSD_HOOKS_HTTP"]
    house.env["TUSD_HOOKS_DIR"] = str(directory)
    server = house.serve()
    path = finish(Tus(server))
    # No executable is named after the creation: nothing is written down of that.
    [kept] = house.outbox(server)
    house.work(server)
    wait_until_empty(house, server)
    event_id = kept.name.rpartition("-")[2]
    assert told.read_text() == "".join(f"{id_of(path)} {event_id} {n}\n" for n in (1, 2, 3))


def test_what_is_given_up_is_seen_and_replayed(house: House) -> None:
    house.env["TUSD_HOOKS_DELIVERY_ATTEMPTS"] = "2"
    server = house.serve()
    house.work(server)
    house.endpoint.script("post-finish", Reply(503, "not today"))
    tus = Tus(server)
    path = finish(tus)
    tus.delete(path)
    wait_for_type(house.endpoint, path, "post-terminate")
    wait_until_empty(house, server)
    assert types(house.endpoint, path).count("post-finish") == 2
    [failed] = documents("events", "failed", *of(server), env=house.env)
    assert (failed["type"], failed["upload"], failed["attempts"]) == (
        "post-finish",
        id_of(path),
        2,
    )
    assert "answered 503: 'not today'" in str(failed["problem"])
    assert documents("events", "list", *of(server), env=house.env) == []
    table = command("events", "failed", *of(server), env=house.env).stdout
    assert str(failed["id"]) in table

    def is_counted() -> bool:
        # When all is told.
        said = command("status", *of(server), env=house.env).stdout
        assert "PROBLEM    1 event failed after all attempts (tusd-py events failed)" in said
        return (
            "events     0 waiting, 1 failed; until now 2 delivered, 2 attempts failed, 1 given up"
            in said
        )

    wait_until(is_counted, "the counts", SLOW)
    house.endpoint.script("post-finish", Reply())
    done = command("events", "replay", str(failed["id"]), *of(server), env=house.env)
    assert (done.returncode, done.stdout) == (0, "1 event to be delivered again\n")
    last = wait_for_calls(house.endpoint, "post-finish", 3)[-1]
    assert last.headers["hook-event-id"] == failed["id"]
    assert last.headers["hook-event-attempt"] == "1"
    wait_until_empty(house, server)
    assert documents("events", "failed", *of(server), env=house.env) == []
    again = command("events", "replay", id_of(path), *of(server), env=house.env)
    assert (again.returncode, again.stdout) == (1, "0 events to be delivered again\n")
    assert "no failed event or upload has the id" in again.stderr


def test_what_is_given_up_can_be_dropped(house: House) -> None:
    house.env["TUSD_HOOKS_DELIVERY_ATTEMPTS"] = "1"
    server = house.serve()
    house.work(server)
    house.endpoint.script("post-create", Reply(400))
    path = finish(Tus(server))
    wait_for_type(house.endpoint, path, "post-finish")
    assert len(house.outbox(server, "outbox-failed")) == 1
    done = command("events", "drop", "--all", *of(server), env=house.env)
    assert (done.returncode, done.stdout) == (0, "1 event dropped\n")
    assert house.outbox(server, "outbox-failed") == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "no action was given; give list, failed, replay or drop"),
        (("fail",), '"fail" is no action; give list, failed, replay or drop; did you mean failed?'),
        (("list", "x"), 'unexpected argument "x"'),
        (("replay",), "give ids of events or uploads to replay, or --all"),
        (("drop", "x", "--all"), "give ids of events or uploads to drop, or --all"),
    ],
)
def test_mistakes(words: tuple[str, ...], problem: str) -> None:
    done = command("events", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr


def test_secrets_of_requests_are_not_written_down(house: House) -> None:
    house.env["TUSD_HOOKS_HTTP_FORWARD_HEADERS"] = "Cookie, X-Project"
    server = house.serve()
    server.wait_for_line("--hooks-http-forward-headers: Cookie is left out", SLOW)
    secret = ("Authorization", "Cookie", "X-Api-Key", "Upload-Token")
    headers = {**dict.fromkeys(secret, "hush-hush"), "X-Project": "7"}
    tus = Tus(server)
    path = finish(tus, headers)
    tus.request("DELETE", f"{path}?token=hush-hush", {"Tus-Resumable": "1.0.0", **headers})
    files = house.outbox(server)
    assert len(files) == 3
    for file in files:
        assert "hush-hush" not in file.read_text()
        assert json.loads(file.read_text())["request"]["headers"]["x-project"] == "7"
    house.work(server)
    for call in wait_for_type(house.endpoint, path, "post-terminate"):
        assert "hush-hush" not in repr(call)
        assert call.headers["x-project"] == "7"
        assert "cookie" not in call.headers


# When something is away


def test_redis_is_away_at_the_finish(house: House) -> None:
    server = house.serve()
    house.work(server)
    tus = Tus(server)
    path = tus.new(5)
    wait_for_type(house.endpoint, path, "post-create")
    wait_until_empty(house, server)
    house.redis.stop()
    assert tus.patch(path, 0, b"hello").status == 204
    assert len(house.outbox(server)) == 1
    house.redis.start()
    wait_for_type(house.endpoint, path, "post-finish")
    wait_until_empty(house, server)


def test_redis_is_emptied_before_the_delivery(house: House) -> None:
    server = house.serve()
    path = finish(Tus(server))
    queue = "tusd:rq:queue:delivery"
    wait_until(lambda: house.redis.command("LLEN", queue) != 0, "the job", SLOW)
    house.redis.command("FLUSHALL")
    house.work(server)
    wait_for_type(house.endpoint, path, "post-finish")


def test_redis_is_emptied_between_two_attempts(house: House) -> None:
    server = house.serve()
    house.endpoint.script("post-create", Reply(500), Reply())
    house.work(server)
    path = finish(Tus(server))
    wait_for_type(house.endpoint, path, "post-create")
    house.redis.command("FLUSHALL")
    calls = wait_for_type(house.endpoint, path, "post-finish")
    assert [call.headers["hook-event-attempt"] for call in calls] == list("121")


def test_a_worker_without_a_scheduler_tries_again_with_the_next_start(house: House) -> None:
    # Longer than it takes until post-finish has a job, with which it would try again at once.
    house.env["TUSD_HOOKS_DELIVERY_BACKOFF"] = "5s"
    server = house.serve()
    house.endpoint.script("post-create", Reply(500), Reply())
    first = house.work(server, scheduler=False)
    path = finish(Tus(server))
    wait_for_type(house.endpoint, path, "post-create")
    assert first.end()[0] == 0
    [waiting, _] = documents("events", "list", *of(server), env=house.env)
    assert (waiting["attempts"], waiting["next"] is not None) == (1, True)
    house.redis.command("FLUSHALL")
    house.work(server)
    wait_for_type(house.endpoint, path, "post-finish")


# When a server is killed


def die(server: ServerProcess, tus: Tus) -> str:
    """Finishes an upload, in which the server dies; its path."""
    path = tus.new(5)
    with pytest.raises((ConnectionEnded, ConnectionError)):
        tus.patch(path, 0, b"hello")
    server.wait()
    return path


@pytest.mark.parametrize(
    ("instant", "kept"),
    [("before the outbox", 1), ("before the record", 2), ("before the queue", 2)],
)
def test_a_server_is_killed_while_it_finishes(house: House, instant: str, kept: int) -> None:
    house.lose_patience()
    server = house.serve(dies=instant)
    path = die(server, Tus(server))
    before = house.outbox(server)
    assert len(before) == kept
    house.redis.command("FLUSHALL")
    house.work(server)
    wait_for_type(house.endpoint, path, "post-create")
    if instant == "before the queue":
        # It is finished: nobody needs the server for this.
        wait_for_type(house.endpoint, path, "post-finish")
    server.prefix = ()
    server.restart()
    calls = wait_for_type(house.endpoint, path, "post-finish")
    wait_until_empty(house, server)
    # Before it was finished nothing was told.
    assert [call.type for call in calls] == ["post-create", "post-finish"]
    names = {file.name.rpartition("-")[2] for file in before}
    assert {call.headers["hook-event-id"] for call in calls} >= names
    assert Tus(server).offset(path) == 5


def test_what_was_not_finished_is_not_told(house: House) -> None:
    house.lose_patience()
    server = house.serve(dies="before the record")
    path = die(server, Tus(server))
    # A sweep would finish it, as all its bytes are there.
    house.work(server, "--queue", "delivery", scheduler=False)
    wait_for_type(house.endpoint, path, "post-create")

    def is_removed() -> bool:
        # As soon as the lock of the server that was killed has run out.
        return command("uploads", "rm", id_of(path), *of(server), env=house.env).returncode == 0

    wait_until(is_removed, "its removal", SLOW)
    wait_for_type(house.endpoint, path, "post-terminate")
    assert types(house.endpoint, path) == ["post-create", "post-terminate"]
    wait_until_empty(house, server)


def test_a_server_is_killed_while_it_removes(house: House) -> None:
    house.lose_patience()
    server = house.serve(dies="before the removal")
    tus = Tus(server)
    path = finish(tus)
    with pytest.raises((ConnectionEnded, ConnectionError)):
        tus.delete(path)
    server.wait()
    house.work(server)
    wait_for_type(house.endpoint, path, "post-finish")
    server.prefix = ()
    server.restart()
    assert types(house.endpoint, path) == ["post-create", "post-finish"]
    assert tus.delete(path).status == 204
    wait_for_type(house.endpoint, path, "post-terminate")
    assert types(house.endpoint, path) == ["post-create", "post-finish", "post-terminate"]
    wait_until_empty(house, server)


@pytest.mark.parametrize("event_type", ["post-finish", "post-terminate"])
def test_a_server_stands_still_for_an_hour_between_the_event_and_what_it_tells_of(
    house: House, event_type: str
) -> None:
    """It holds the lock of the file system all the time, so that what it does then counts."""
    house.lose_patience()
    is_finish = event_type == "post-finish"
    server = house.serve(dies=f"stops before the {'record' if is_finish else 'removal'}")
    tus = Tus(server)
    path = tus.new(5)

    def end_upload() -> int:
        return (tus.patch(path, 0, b"hello") if is_finish else tus.delete(path)).status

    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(end_upload)
        try:
            wait_until(lambda: is_stopped(server.pid), "the server to stand still", SLOW)
            kept = house.outbox(server)
            assert len(kept) == 2
            for file in kept:
                long_ago = file.stat().st_mtime - 7200
                os.utime(file, (long_ago, long_ago))
            house.work(server)
            wait_for_type(house.endpoint, path, "post-create")
            wait_until(lambda: len(house.outbox(server)) < 2, "the end of the first event", SLOW)
            # Without the lock of the server, which has run out in Redis.
            wait_until(lambda: not lock_in_redis(house, path), "the end of the lease", SLOW)
            assert command("sweep", *of(server), env=house.env).returncode == 0
        finally:
            server.signal(signal.SIGCONT)
        assert ending.result() == 204
    calls = wait_for_type(house.endpoint, path, event_type)
    assert [call.type for call in calls] == ["post-create", event_type]
    wait_until_empty(house, server)


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def lock_in_redis(house: House, path: str) -> bool:
    """Whether Redis knows a holder of the lock of an upload."""
    found = house.redis.command("KEYS", f"tusd:lock:*{id_of(path)}*")
    return bool(found)


def test_what_was_abandoned_goes_with_a_sweep_of_the_whole_storage(house: House) -> None:
    house.lose_patience()
    server = house.serve(dies="before the removal")
    tus = Tus(server)
    path = tus.new(5)
    with pytest.raises((ConnectionEnded, ConnectionError)):
        tus.delete(path)
    server.wait()
    for file in house.outbox(server):
        long_ago = file.stat().st_mtime - 7200
        os.utime(file, (long_ago, long_ago))
    house.work(server)
    wait_for_type(house.endpoint, path, "post-create")

    def is_dropped() -> bool:
        # Not before the lock of the server has expired.
        assert command("sweep", *of(server), env=house.env).returncode == 0
        return not house.outbox(server)

    wait_until(is_dropped, "the event to be dropped", SLOW)
    assert types(house.endpoint, path) == ["post-create"]


def test_a_worker_is_killed_while_it_tells(house: House) -> None:
    house.lose_patience()
    server = house.serve()
    told = threading.Event()
    house.endpoint.script("post-finish", Reply(hold=told), Reply())
    worker = house.work(server)
    path = finish(Tus(server))
    wait_for_type(house.endpoint, path, "post-finish")
    worker.process.kill()
    worker.process.wait()
    house.work(server, scheduler=False)
    calls = wait_for_calls(house.endpoint, "post-finish", 2)
    told.set()
    assert [call.headers["hook-event-attempt"] for call in calls] == ["1", "2"]
    assert len({call.headers["hook-event-id"] for call in calls}) == 1
    wait_until_empty(house, server)


BLOCKING = """
import time
from tusd_py.events import hooks
from tusd_workers import delivery_runner
hooks._POST_TIMEOUT_SECONDS = {limit}
delivery_runner._STOP_SECONDS = 0.5
async def post_finish(event):
    with open({log!r}, "a") as file: file.write(event.upload.id + " " + str(event.attempt) + "\\n")
    if event.attempt == 1 and "stubborn" in event.upload.metadata: time.sleep(3600)
"""
"""A hook file that blocks the event loop of its worker, and how long hooks may take there, and to stop."""
STUBBORN = {"Upload-Metadata": metadata(stubborn="1")}


def blocking_hook(tmp_path: Path, limit: float) -> tuple[tuple[str, ...], Path]:
    """The flags of a worker and a server with such a hook, and the file that has the events it was called for."""
    hook, log = tmp_path / "blocking.py", tmp_path / "log"
    hook.write_text(BLOCKING.format(limit=limit, log=str(log)))
    return ("--hook", str(hook), "--hooks-timeout", "1s"), log


def test_a_worker_whose_hook_blocks_its_event_loop_ends_and_the_next_one_goes_on(
    house: House, tmp_path: Path
) -> None:
    house.lose_patience()
    del house.env["TUSD_HOOKS_HTTP"]
    flags, log = blocking_hook(tmp_path, 5.0)
    server = house.serve(*flags)
    worker = house.work(server, *flags)
    path = finish(Tus(server), STUBBORN)
    code, said = worker.wait()
    assert code == 1
    [line] = [line for line in said.splitlines() if "worker ends" in line]
    assert "hook=blocking.py" in line
    assert f"at={tmp_path}/blocking.py:" in line
    other = finish(Tus(server))
    house.work(server, *flags, scheduler=False)
    wait_until_empty(house, server)
    attempts = log.read_text().splitlines()
    assert attempts[0] == f"{id_of(path)} 1"
    assert sorted(attempts[1:]) == sorted([f"{id_of(path)} 2", f"{id_of(other)} 1"])


def test_a_worker_whose_hook_blocks_its_event_loop_can_be_ended(
    house: House, tmp_path: Path
) -> None:
    del house.env["TUSD_HOOKS_HTTP"]
    flags, log = blocking_hook(tmp_path, 3600.0)
    server = house.serve(*flags)
    worker = house.work(server, *flags, scheduler=False)
    finish(Tus(server), STUBBORN)
    wait_until(log.exists, "the hook", SLOW)
    worker.process.terminate()

    def is_past_repeats() -> bool:
        # rq ignores a second signal in the second after it handled the first.
        [key] = house.redis.client.keys("tusd:rq:worker:*")
        handled = house.redis.client.hget(key, "shutdown_requested_date")
        return handled is not None and now() - utcparse(as_text(handled)) > timedelta(seconds=1)

    wait_until(is_past_repeats, "the end of that second", SLOW)
    code, said = worker.end()
    assert code == 1
    assert "a hook blocked its event loop for" in said


def test_a_worker_whose_hook_cannot_be_had_says_so(house: House, tmp_path: Path) -> None:
    server = house.serve()
    hook = tmp_path / "broken.py"
    hook.write_text("def start(context): raise OSError('no database')\ndef post_finish(event): ...")
    worker = house.work(server, "--hook", str(hook), scheduler=False)
    code, said = worker.wait()
    assert code == 2
    assert "cannot start: no database" in said
    assert "Traceback" not in said


# One worker, and sweeps that take long


def test_long_sweeps_leave_a_worker_time_for_deliveries(house: House, tmp_path: Path) -> None:
    log = tmp_path / "log"
    hook = tmp_path / "hook.py"
    hook.write_text(
        f"""
import asyncio
def note(word):
    with open({str(log)!r}, "a") as file: file.write(word)
async def start(context):
    note("s")
    await asyncio.sleep(1)
def post_finish(event): note("e")
"""
    )
    uploads = 20
    server = house.serve("--hook", str(hook))
    for _ in range(uploads):
        finish(Tus(server))
    with connect(house.redis.url) as connection:
        wait_until(lambda: connection.llen(QueueKeys("tusd:").queue(DELIVERY)) >= uploads, "jobs")
        sweeps = queue_class("tusd:")(EXPIRY, connection=connection)
        for number in range(5):
            sweeps.enqueue(SWEEP_DUE, job_id=f"sweep-{number}")
    log.unlink()
    house.work(server, "--hook", str(hook), scheduler=False)
    wait_until(lambda: log.exists() and log.read_text().count("e") == uploads, "all events", SLOW)
    # The worker starts its hooks, and each sweep its own; sweeps come first.
    began, first_sweep, *rest = log.read_text().split("s")[1:]
    assert (began, first_sweep[:2]) == ("", "ee"), rest
