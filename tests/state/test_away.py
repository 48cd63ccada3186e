"""Outages of Redis: callers get errors within the deadline, the log has one line, and recovery needs no action."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.state.conftest import TIMEOUT, Connections, Log, until
from tests.state.fake import FakeRedis, bulk
from tests.support import ports
from tests.support.redis import RedisServer
from tusd_py.redis import RedisClient, RedisUnavailable, Script

WRITE = Script("write", "return redis.call('INCR', KEYS[1])")
READ = Script("read", "return redis.call('GET', KEYS[1])")


async def write(redis_client: RedisClient) -> object:
    return await redis_client.run(WRITE, ["tusd:n"])


class Failures:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


# It is not there


async def test_a_killed_server_is_used_again_once_it_is_back(
    redis_server: RedisServer, connect: Connections, log: Log
) -> None:
    failures = Failures()
    redis_client = await connect(redis_server.url, on_failure=failures)
    assert await write(redis_client) == 1
    redis_server.kill9()
    for _ in range(3):
        with pytest.raises(RedisUnavailable):
            await write(redis_client)
    await until(lambda: log.names() == ["redis away"], "the log to say so")
    assert not redis_client.available
    assert failures.count == 3
    redis_server.start()
    await until(lambda: redis_client.available, "Redis to be back")
    # Its scripts are gone with it, and so is what was counted.
    assert await write(redis_client) == 1
    assert failures.count == 3
    assert log.names() == ["redis away", "redis emptied", "redis back"]


async def test_a_server_that_starts_after_us_is_found(
    tmp_path: Path, connect: Connections, log: Log
) -> None:
    server = RedisServer(tmp_path / "redis")
    redis_client = await connect(server.url)
    assert not redis_client.available
    assert log.names() == ["redis away"]
    with pytest.raises(RedisUnavailable, match="Redis is away: "):
        await write(redis_client)
    with server:
        await until(lambda: redis_client.available, "Redis to be found")
        assert await write(redis_client) == 1
    assert log.names() == ["redis away", "redis back"]


@pytest.mark.parametrize(
    "address", ["localhost:{port}", "redis.invalid", "[::1]:{port}", "127.0.0.1:{port}"]
)
async def test_nobody_at_the_address(address: str, connect: Connections, log: Log) -> None:
    with closing(ports.reserve()) as nobody:
        url = f"redis://me:s3cret@{address.format(port=nobody.getsockname()[1])}"
        # Whoever resolves names may take longer.
        redis_client = await connect(url, timeout=1)
        with pytest.raises(RedisUnavailable) as caught:
            await write(redis_client)
    assert not redis_client.available
    assert urlsplit(url).hostname or "" in str(caught.value)
    assert "s3cret" not in f"{caught.value} {caught.value!r} {log.text()}"


# It does not answer


async def test_a_server_that_is_stopped_costs_the_deadline_and_then_nothing(
    redis_server: RedisServer, connect: Connections, log: Log
) -> None:
    redis_client = await connect(redis_server.url)
    assert await write(redis_client) == 1
    redis_client.timeout = 0.5
    redis_server.pause()
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(RedisUnavailable, match=r"no answer .* within 0\.5 s"):
        await write(redis_client)
    assert 0.4 < loop.time() - began < 30
    results = await asyncio.gather(
        *(write(redis_client) for _ in range(3000)), return_exceptions=True
    )
    # None of these has asked.
    assert all("Redis is away: " in str(result) for result in results)
    assert {type(result) for result in results} == {RedisUnavailable}
    await until(lambda: log.names() == ["redis away"], "the log to say so")
    pid = redis_server.pid
    redis_client.timeout = TIMEOUT
    redis_server.resume()
    await until(lambda: redis_client.available, "Redis to be back")
    assert await write(redis_client) == 2 or await write(redis_client)
    assert redis_server.pid == pid
    await until(lambda: log.names() == ["redis away", "redis back"], "the log to say so")


async def test_thousands_at_the_moment_at_which_it_stops_wait_for_the_deadline_together(
    redis_server: RedisServer, connect: Connections
) -> None:
    redis_client = await connect(redis_server.url, timeout=0.5)
    redis_server.pause()
    loop = asyncio.get_running_loop()
    began = loop.time()
    results = await asyncio.gather(
        *(write(redis_client) for _ in range(3000)), return_exceptions=True
    )
    assert {type(result) for result in results} == {RedisUnavailable}
    # One after the other, on so few connections, they would take 47 s.
    assert loop.time() - began < 30
    redis_server.resume()


async def test_once_it_is_away_nobody_waits_for_those_who_still_do(
    redis_server: RedisServer, connect: Connections
) -> None:
    redis_client = await connect(redis_server.url)
    redis_client.timeout = 0.5
    redis_server.pause()
    first = asyncio.create_task(write(redis_client))
    await asyncio.sleep(0)
    redis_client.timeout = 100
    # More than there are connections.
    others = [asyncio.create_task(write(redis_client)) for _ in range(100)]
    await asyncio.wait([first])
    assert not all(other.done() for other in others)
    began = asyncio.get_running_loop().time()
    with pytest.raises(RedisUnavailable, match="Redis is away"):
        await write(redis_client)
    assert asyncio.get_running_loop().time() - began < 30
    assert not all(other.done() for other in others)
    redis_server.resume()
    await asyncio.gather(*others, first, return_exceptions=True)


async def test_connections_that_lead_nowhere_cost_one_failure_and_not_one_each(
    tmp_path: Path, connect: Connections, log: Log
) -> None:
    failures = Failures()
    async with FakeRedis(tmp_path) as server:
        redis_client = await connect(server.url, on_failure=failures)
        await asyncio.gather(*(write(redis_client) for _ in range(10)))
        server.forget_connections()
        redis_client.timeout = 0.3
        with pytest.raises(RedisUnavailable, match="no answer"):
            await write(redis_client)
        redis_client.timeout = TIMEOUT
        await until(lambda: redis_client.available, "the server to be found well")
        await asyncio.gather(*(write(redis_client) for _ in range(10)))
        assert failures.count == 1
        assert log.names() == ["redis failed once"]
        await redis_client.stop()


async def test_the_event_loop_is_never_blocked(
    redis_server: RedisServer, connect: Connections
) -> None:
    redis_client = await connect(redis_server.url, timeout=0.5)
    redis_server.pause()
    # What is measured is time in which this process ran, so that a busy machine does not count.
    slowest, waiting = 0.0, asyncio.create_task(write(redis_client))
    gc.disable()
    while not waiting.done():
        before = time.thread_time()
        await asyncio.sleep(0)
        slowest = max(slowest, time.thread_time() - before)
    gc.enable()
    assert slowest < 0.1
    assert isinstance(waiting.exception(), RedisUnavailable)
    redis_server.resume()


async def test_one_late_answer_is_no_reason_to_call_it_away(
    redis_server: RedisServer, connect: Connections, log: Log
) -> None:
    redis_client = await connect(redis_server.url, timeout=0.3)
    redis_server.pause()
    with pytest.raises(RedisUnavailable):
        # It is told to go on in the same turn of the loop in which the deadline is over.
        await write(redis_client)
    redis_server.resume()
    await until(lambda: redis_client.available, "Redis to be found well")
    assert log.names() in (["redis failed once"], ["redis away", "redis back"])


async def test_a_server_that_is_stopped_when_we_start(
    redis_server: RedisServer, connect: Connections
) -> None:
    redis_server.pause()
    redis_client = await connect(redis_server.url, timeout=0.3)
    assert not redis_client.available
    redis_client.timeout = TIMEOUT
    redis_server.resume()
    await until(lambda: redis_client.available, "Redis to be back")
    assert await write(redis_client) == 1


# It answers that it will not


async def test_a_replica_is_read_and_not_written(
    redis_server: RedisServer, connect: Connections, log: Log
) -> None:
    redis_client = await connect(redis_server.url)
    await write(redis_client)
    # Where nobody listens.
    redis_server.command("REPLICAOF", "127.0.0.1", 1)
    with pytest.raises(RedisUnavailable, match="READONLY"):
        await write(redis_client)
    await until(lambda: log.names() == ["redis takes no writes"], "the log to say so")
    assert not redis_client.available
    assert await redis_client.command("GET", "tusd:n") == b"1"
    for _ in range(3):
        with pytest.raises(RedisUnavailable, match="READONLY"):
            await write(redis_client)
    redis_server.command("REPLICAOF", "NO", "ONE")
    await until(lambda: redis_client.available, "Redis to take writes")
    assert await write(redis_client) == 2
    assert log.names() == ["redis takes no writes", "redis back"]


async def test_out_of_memory(redis_server: RedisServer, connect: Connections, log: Log) -> None:
    redis_client = await connect(redis_server.url)
    await write(redis_client)
    redis_server.configure("maxmemory", 1)
    with pytest.raises(RedisUnavailable, match=r"maxmemory|OOM"):
        await write(redis_client)
    await until(lambda: log.names() == ["redis takes no writes"], "the log to say so")
    # What needs no memory still works: a lock can be given back.
    assert await redis_client.command("DEL", "tusd:n") == 1
    redis_server.configure("maxmemory", 0)
    await until(lambda: redis_client.available, "Redis to take writes")
    assert await write(redis_client) == 1


async def test_a_password_that_is_missing_or_wrong(
    tmp_path: Path, connect: Connections, log: Log
) -> None:
    with RedisServer(tmp_path / "redis", password="right") as server:
        missing = await connect(f"unix://{server.socket}")
        wrong = await connect(f"unix://:wr0ng@{server.socket}")
        for redis_client, told in (
            (missing, "uthentication required"),
            (wrong, "WRONGPASS|invalid"),
        ):
            assert not redis_client.available
            with pytest.raises(RedisUnavailable, match=told):
                await write(redis_client)
        assert "wr0ng" not in log.text()
        server.configure("requirepass", "")
        await until(lambda: missing.available, "Redis to let us in")
        assert await write(missing) == 1


async def test_a_password_is_not_repeated_whoever_says_it(
    tmp_path: Path, connect: Connections, log: Log
) -> None:
    async with FakeRedis(tmp_path) as server:
        server.replies[b"AUTH"] = b"-ERR nobody has the password s3cret\r\n"
        redis_client = await connect(f"unix://:s3cret@{server.path}")
        with pytest.raises(RedisUnavailable, match="nobody has the password") as caught:
            await write(redis_client)
        assert "s3cret" not in f"{caught.value} {redis_client.trouble} {log.text()}"
        await redis_client.stop()


async def test_a_server_that_reads_its_data_is_away_until_it_has(
    redis_server: RedisServer, connect: Connections, log: Log
) -> None:
    redis_server.stop()
    redis_server.persistent = True
    redis_server.start()
    redis_client = await connect(redis_server.url)
    await write(redis_client)
    # It looks up after every 1024 commands: sixteen times in as many seconds, unless it is told to hurry.
    with redis_server.client.pipeline(transaction=False) as commands:
        for number in range(16384):
            commands.set(f"key-{number}", 1)
        commands.execute()
    redis_server.options += ["--key-load-delay", "1000"]
    redis_server.restart()
    with pytest.raises(RedisUnavailable):
        await write(redis_client)
    await until(lambda: "redis away" in log.names(), "the log to say so")
    await until(lambda: "loading" in str(redis_client.trouble), "Redis to say what it does")
    with pytest.raises(RedisUnavailable, match=r"Redis is away: .* loading"):
        await write(redis_client)
    await asyncio.to_thread(redis_server.configure, "key-load-delay", 0)
    await until(lambda: redis_client.available, "Redis to have read its data")
    assert await write(redis_client) == 2


# Answers that only a strange server gives


@pytest.mark.parametrize(
    "reply",
    [
        b"-ERR Error running script (call to f_0): @user_script:1: -READONLY You can't write\r\n",
        b"-ERR Error running script (call to f_0): @user_script:1: -OOM command not allowed\r\n",
        b"-MISCONF Errors writing to the AOF file: No space left on device\r\n",
        b"-NOREPLICAS Not enough good replicas to write.\r\n",
        b"-BUSY Redis is busy running a script.\r\n",
    ],
)
async def test_refusals_of_writes_however_they_are_worded(
    reply: bytes, tmp_path: Path, connect: Connections, log: Log
) -> None:
    async with FakeRedis(tmp_path) as server:
        redis_client = await connect(server.url)
        well = dict(server.replies)
        server.replies |= {b"EVALSHA": reply, b"EVAL": reply}
        with pytest.raises(RedisUnavailable):
            await write(redis_client)
        await until(lambda: log.names() == ["redis takes no writes"], "the log to say so")
        assert await redis_client.command("PING") == b"PONG"
        server.replies |= well
        await until(lambda: redis_client.available, "the server to take writes")
        assert await write(redis_client) == b"OK"
        await redis_client.stop()


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (b"-MASTERDOWN Link with MASTER is down\r\n", "Link with MASTER is down"),
        (b"-CLUSTERDOWN The cluster is down\r\n", "The cluster is down"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "H"),
        (b"", "closed"),
    ],
)
async def test_answers_of_what_is_no_use(
    reply: bytes, told: str, tmp_path: Path, connect: Connections, log: Log
) -> None:
    async with FakeRedis(tmp_path) as server:
        redis_client = await connect(server.url)
        well = dict(server.replies)
        server.replies = dict.fromkeys(server.replies, reply)
        with pytest.raises(RedisUnavailable, match=told):
            await write(redis_client)
        await until(lambda: log.names() == ["redis away"], "the log to say so")
        with pytest.raises(RedisUnavailable, match="Redis is away"):
            await write(redis_client)
        server.replies |= well
        await until(lambda: redis_client.available, "the server to answer well")
        assert await write(redis_client) == b"OK"
        await redis_client.stop()


async def test_a_version_that_is_too_old_is_not_used(
    tmp_path: Path, connect: Connections, log: Log
) -> None:
    async with FakeRedis(tmp_path) as server:
        server.replies[b"INFO"] = bulk(b"# Server\r\nredis_version:6.0.16\r\nredis_mode:standalone")
        redis_client = await connect(server.url)
        with pytest.raises(RedisUnavailable, match=r"Redis 6\.0\.16; at least 6\.2 is needed"):
            await write(redis_client)
        server.replies[b"INFO"] = bulk(b"# Server\r\nredis_version:6.2.0\r\n")
        await until(lambda: redis_client.available, "the server to be new enough")
        await redis_client.stop()


@pytest.mark.parametrize("info", [b"-NOPERM this user has no permissions\r\n", bulk(b"other:1")])
async def test_a_version_that_is_not_told_does(
    info: bytes, tmp_path: Path, connect: Connections
) -> None:
    async with FakeRedis(tmp_path) as server:
        server.replies[b"INFO"] = info
        redis_client = await connect(server.url)
        assert redis_client.available
        await redis_client.stop()


async def test_what_is_not_allowed_is_told_and_does_not_stand_for_the_rest(
    redis_server: RedisServer, connect: Connections, log: Log
) -> None:
    redis_server.command("ACL", "SETUSER", "default", "-incr")
    redis_client = await connect(redis_server.url)
    for _ in range(2):
        with pytest.raises(RedisUnavailable, match=r"permission|acl|ACL"):
            await redis_client.command("INCR", "tusd:n")
    assert redis_client.available
    assert log.names() == ["redis error"]


async def test_whatever_asking_ends_with_it_is_asked_again(
    redis_server: RedisServer,
    connect: Connections,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    redis_client = await connect(redis_server.url)

    async def fail() -> None:
        raise KeyError("a mistake")

    with monkeypatch.context() as broken:
        broken.setattr(redis_client, "_probe_unbounded", fail)
        redis_server.kill9()
        with pytest.raises(RedisUnavailable):
            await write(redis_client)
        await until(lambda: "redis probe failed" in log.names(), "the log to say so")
    redis_server.start()
    await until(lambda: redis_client.available, "Redis to be back")


# Health


async def test_asking_whether_it_works(redis_server: RedisServer, connect: Connections) -> None:
    redis_client = await connect(redis_server.url)
    assert await redis_client.check() is None
    redis_server.kill9()
    assert await redis_client.check()
    assert not redis_client.available
    assert await redis_client.check() == redis_client.trouble
    redis_server.start()
    await until(lambda: redis_client.available, "Redis to be back")
    assert await redis_client.check() is None


# Everything at once


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_happens_to_it_callers_hear_in_time_and_get_their_own_answers(
    redis_server: RedisServer, connect: Connections, seed: int
) -> None:
    chance = random.Random(seed)
    redis_client = await connect(redis_server.url, timeout=0.3)
    echo = Script("echo", "return ARGV[1]")
    ended = False

    async def use(number: int) -> None:
        while not ended:
            try:
                async with asyncio.timeout(chance.choice([10, 10, 0.003])):
                    answer = await redis_client.run(echo, ["tusd:a"], [number])
                assert answer == b"%d" % number
            except RedisUnavailable:
                await asyncio.sleep(0.005)
            except TimeoutError:
                pass

    users = [asyncio.create_task(use(number)) for number in range(50)]
    for _ in range(8):
        await asyncio.sleep(chance.random() * 0.2)
        match chance.choice(["kill", "pause", "flush", "memory"]):
            case "kill":
                redis_server.kill9()
                await asyncio.sleep(chance.random() * 0.2)
                await asyncio.to_thread(redis_server.start)
            case "pause":
                redis_server.pause()
                await asyncio.sleep(chance.random() * 0.6)
                redis_server.resume()
            case "flush":
                await asyncio.to_thread(redis_server.command, "SCRIPT", "FLUSH")
            case _:
                await asyncio.to_thread(redis_server.configure, "maxmemory", 1)
                await asyncio.to_thread(redis_server.configure, "maxmemory", 0)
    redis_client.timeout = TIMEOUT
    await until(lambda: redis_client.available, "Redis to be back")
    ended = True
    await asyncio.gather(*users)
    # The last commands had the short time-out, and may have failed only now.
    await until(lambda: redis_client.available, "Redis to be back")
    assert await write(redis_client)
