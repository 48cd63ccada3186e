"""Commands and scripts while Redis works: responses, counts, the pool, TLS, detection of lost data."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from pathlib import Path

import pytest

from tests.state.conftest import TIMEOUT, Connections, Log, until
from tests.support.redis import RedisServer
from tusd_py.redis import Part, RedisClient, RedisUnavailable, Script

ECHO = Script("echo", "return {KEYS[1], ARGV[1]}")
BROKEN = Script("broken", "return redis.call('LPUSH', KEYS[1], 1)")
LONG = Script("long", "local n = 0 for i = 1, 1e5 do n = n + 1 end return n")


async def test_answers_are_what_redis_says(redis_server: RedisServer, connect: Connections) -> None:
    redis_client = await connect(redis_server.url)
    assert redis_client.available
    assert await redis_client.command("SET", "tusd:a", b"\xff\x00") == b"OK"
    assert await redis_client.command("GET", "tusd:a") == b"\xff\x00"
    assert await redis_client.command("GET", "tusd:none") is None
    assert await redis_client.command("EXISTS", "tusd:a") == 1
    assert await redis_client.run(ECHO, ["tusd:ä"], [1.5]) == ["tusd:ä".encode(), b"1.5"]


async def test_a_script_that_redis_does_not_know_is_loaded_once(
    redis_server: RedisServer, connect: Connections
) -> None:
    redis_client = await connect(redis_server.url)
    redis_server.command("SCRIPT", "FLUSH")
    redis_server.reset_counts()
    for _ in range(3):
        await redis_client.run(ECHO, ["tusd:a"], ["b"])
    counts = redis_server.counts()
    assert counts["eval"] == 1
    assert counts["evalsha"] == 3


async def test_a_script_runs_for_many_in_one_go(
    redis_server: RedisServer, connect: Connections
) -> None:
    redis_client = await connect(redis_server.url)
    redis_server.command("SCRIPT", "FLUSH")
    calls: list[tuple[list[str], list[Part]]] = [
        ([f"tusd:{number}"], [number]) for number in range(50)
    ]
    expected = [[f"tusd:{number}".encode(), b"%d" % number] for number in range(50)]
    # Whether Redis knows the script or not.
    for _ in range(2):
        assert await redis_client.run_each(ECHO, calls) == expected
    assert await redis_client.run_each(ECHO, []) == []


async def test_one_of_many_that_fails_is_told_and_the_connection_goes_on(
    redis_server: RedisServer, connect: Connections
) -> None:
    redis_client = await connect(redis_server.url)
    redis_server.command("SET", "tusd:text", "x")
    for _ in range(2):
        with pytest.raises(RedisUnavailable, match="WRONGTYPE"):
            await redis_client.run_each(
                BROKEN, [(["tusd:a"], []), (["tusd:text"], []), (["tusd:b"], [])]
            )
        assert await redis_client.command("GET", "tusd:text") == b"x"
    assert redis_client.available
    redis_client.timeout = 0.5
    redis_server.pause()
    with pytest.raises(RedisUnavailable):
        await redis_client.run_each(ECHO, [(["tusd:a"], ["a"])] * 3)
    redis_client.timeout = TIMEOUT
    redis_server.resume()
    await until(lambda: redis_client.available, "Redis to be back")
    assert await redis_client.run_each(ECHO, [(["tusd:a"], ["b"])]) == [[b"tusd:a", b"b"]]


async def test_running_a_script_is_one_command(
    redis_server: RedisServer, connect: Connections
) -> None:
    redis_client = await connect(redis_server.url)
    await redis_client.run(ECHO, ["tusd:a"], ["b"])
    with redis_server.monitor() as seen:
        await redis_client.run(ECHO, ["tusd:a"], ["b"])
    assert seen == [f"EVALSHA {ECHO.sha} 1 tusd:a b"]


async def test_many_at_a_time_share_a_few_connections(
    redis_server: RedisServer, connect: Connections
) -> None:
    redis_client = await connect(redis_server.url, timeout=100)
    answers = await asyncio.gather(
        *(redis_client.run(ECHO, ["tusd:a"], [number]) for number in range(2000))
    )
    assert answers == [[b"tusd:a", b"%d" % number] for number in range(2000)]
    assert len(redis_server.client.client_list()) <= 34


async def test_what_is_asked_at_the_same_moment_goes_together(
    redis_server: RedisServer, connect: Connections
) -> None:
    redis_client = await connect(redis_server.url)
    before = len(redis_server.client.client_list())
    answers = await asyncio.gather(*(redis_client.command("INCR", "tusd:a") for _ in range(60)))
    assert answers == list(range(1, 61))
    assert len(redis_server.client.client_list()) == before
    assert (
        await asyncio.gather(*(redis_client.command("GET", "tusd:a") for _ in range(65)))
        == [b"60"] * 65
    )
    assert len(redis_server.client.client_list()) <= before + 1


async def test_of_what_went_together_each_has_its_own_answer(
    redis_server: RedisServer, connect: Connections
) -> None:
    redis_client = await connect(redis_server.url)
    await redis_client.command("SET", "tusd:text", "x")
    redis_server.command("SCRIPT", "FLUSH")
    given_up = asyncio.create_task(redis_client.command("INCR", "tusd:a"))
    together = asyncio.gather(
        redis_client.run(ECHO, ["tusd:b"], ["c"]),
        redis_client.run(BROKEN, ["tusd:text"]),
        redis_client.command("GET", "tusd:text"),
        redis_client.command("NONSENSE"),
        redis_client.command("SET", "tusd:d", [1]),  # type: ignore[arg-type]
        return_exceptions=True,
    )
    await asyncio.sleep(0)
    given_up.cancel()
    echoed, wrong, text, unknown, unfit = await together
    assert (echoed, text) == ([b"tusd:b", b"c"], b"x")
    assert isinstance(wrong, RedisUnavailable)
    assert "WRONGTYPE" in str(wrong)
    assert isinstance(unknown, RedisUnavailable)
    assert "unknown command" in str(unknown)
    assert isinstance(unfit, Exception)
    assert given_up.cancelled()
    assert redis_client.available


async def test_an_answer_goes_to_who_asked_whoever_gives_up(
    redis_server: RedisServer, connect: Connections
) -> None:
    redis_client = await connect(redis_server.url, timeout=100)

    async def ask(number: int) -> None:
        for _ in range(20):
            assert await redis_client.run(ECHO, ["tusd:a"], [number]) == [b"tusd:a", b"%d" % number]

    tasks = [asyncio.create_task(ask(number)) for number in range(100)]
    for number, task in enumerate(tasks):
        if number % 3 == 0:
            await asyncio.sleep(0)
            task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {type(None), asyncio.CancelledError}
    assert redis_client.available


async def test_a_mistake_of_ours_is_told_and_redis_goes_on_being_used(
    redis_server: RedisServer, connect: Connections, log: Log
) -> None:
    redis_client = await connect(redis_server.url)
    await redis_client.command("SET", "tusd:a", "text")
    for _ in range(3):
        with pytest.raises(RedisUnavailable, match=r"broken: .*WRONGTYPE"):
            await redis_client.run(BROKEN, ["tusd:a"])
    assert redis_client.available
    assert log.names() == ["redis error"]
    assert log.fields("redis error")["command"] == "broken"
    assert await redis_client.command("GET", "tusd:a") == b"text"


async def test_nothing_is_left_open(redis_server: RedisServer) -> None:
    redis_client = RedisClient(redis_server.url, timeout=TIMEOUT)
    await redis_client.start()
    await asyncio.gather(*(redis_client.command("PING") for _ in range(10)))
    await redis_client.stop()
    assert not redis_client.available
    with pytest.raises(RedisUnavailable):
        await redis_client.command("PING")
    await until(lambda: len(redis_server.client.client_list()) == 1, "the connections to close")


async def test_commands_that_run_while_it_stops_end(redis_server: RedisServer) -> None:
    redis_client = RedisClient(redis_server.url, timeout=TIMEOUT)
    await redis_client.start()
    running = [asyncio.create_task(redis_client.run(LONG, ["tusd:a"])) for _ in range(40)]
    await asyncio.sleep(0)
    await redis_client.stop()
    for result in await asyncio.gather(*running, return_exceptions=True):
        assert isinstance(result, int | RedisUnavailable)
    await until(lambda: len(redis_server.client.client_list()) == 1, "the connections to close")


async def test_a_connection_that_was_closed_while_idle_is_not_noticed_by_callers(
    redis_server: RedisServer, connect: Connections, log: Log
) -> None:
    redis_client = await connect(redis_server.url)
    await asyncio.gather(*(redis_client.command("PING") for _ in range(5)))
    redis_server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await until(lambda: len(redis_server.client.client_list()) == 1, "the connections to close")
    # The loop has its turn.
    await asyncio.sleep(0.05)
    for _ in range(5):
        assert await redis_client.command("PING") == b"PONG"
    assert log.names() == []


async def test_a_password_over_tcp_and_a_database(tmp_path: Path, connect: Connections) -> None:
    with RedisServer(tmp_path / "redis", tcp=True, password="p@ss:w/rd?#") as server:
        redis_client = await connect(server.url.removesuffix("/0") + "/3")
        await redis_client.command("SET", "tusd:a", 1)
        assert server.command("GET", "tusd:a") is None
        server.command("SELECT", 3)
        assert server.command("GET", "tusd:a") == b"1"


# TLS


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost", "-out", str(certificate)),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


async def test_tls(
    tmp_path: Path, certificate: tuple[Path, Path], connect: Connections, log: Log
) -> None:
    server = RedisServer(tmp_path / "redis", tcp=True)
    plain, server.port = server.port, 0
    server.options = [
        *("--tls-port", str(plain), "--tls-auth-clients", "no"),
        *("--tls-cert-file", str(certificate[0]), "--tls-key-file", str(certificate[1])),
    ]
    server.port = plain
    server.options += ["--port", "0"]
    with server:
        url = f"rediss://127.0.0.1:{plain}"
        redis_client = await connect(f"{url}?ssl_ca_certs={certificate[0]}")
        assert redis_client.available
        assert await redis_client.run(ECHO, ["tusd:a"], ["b"]) == [b"tusd:a", b"b"]
        unchecked = await connect(f"{url}?ssl_cert_reqs=none")
        assert unchecked.available
        assert log.names() == []
        # A certificate that nobody vouches for.
        unknown = await connect(url)
        assert not unknown.available
        assert "CERTIFICATE_VERIFY_FAILED" in str(log.fields("redis away")["reason"])


# What Redis knew before


async def test_a_redis_that_was_emptied_is_noticed(
    redis_server: RedisServer, connect: Connections, log: Log, tmp_path: Path
) -> None:
    memory = tmp_path / "known"
    redis_client = await connect(redis_server.url, memory=memory)
    await redis_client.stop()
    again = await connect(redis_server.url, memory=memory)
    await again.stop()
    assert log.names() == []
    redis_server.command("FLUSHALL")
    emptied = await connect(redis_server.url, memory=memory)
    assert emptied.available
    assert log.names(least=logging.WARNING) == ["redis emptied"]


async def test_a_restart_that_loses_the_data_is_noticed(
    redis_server: RedisServer, connect: Connections, log: Log
) -> None:
    redis_client = await connect(redis_server.url)
    redis_server.kill9()
    with pytest.raises(RedisUnavailable):
        await redis_client.command("PING")
    redis_server.start()
    await until(lambda: redis_client.available, "Redis to be back")
    assert "redis emptied" in log.names()


async def test_a_memory_that_cannot_be_written_is_no_reason_to_fail(
    redis_server: RedisServer, connect: Connections, log: Log, tmp_path: Path
) -> None:
    redis_client = await connect(redis_server.url, memory=tmp_path / "missing" / "known")
    assert redis_client.available
    assert log.names() == ["cannot remember"]
