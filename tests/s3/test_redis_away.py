"""Two servers with a bucket whose Redis is stopped, killed and emptied in the middle of uploads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from tests.s3.conftest import shared
from tests.s3.contents import Contents
from tests.s3.servers import BUCKET, ENVIRONMENT
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Response

LEASE = 2.0
DATA = bytes(range(256)) * 1000


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One whose data do not survive its end."""
    with RedisServer(tmp_path_factory.mktemp("redis") / "redis") as server:
        yield server


@pytest.fixture(scope="module")
def contents() -> Contents:
    return Contents(shared("seaweedfs"), f"{uuid4().hex}/")


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, redis: RedisServer, contents: Contents
) -> Iterator[tuple[Tus, Tus]]:
    prefix = contents.prefix
    flags = (
        *("--s3-bucket", BUCKET, "--s3-endpoint", shared("seaweedfs").endpoint),
        *("--s3-object-prefix", prefix, "--s3-info-prefix", prefix),
        *("--s3-flush-interval", "50ms"),
        *("--redis-url", redis.url, "--lock-lease", f"{LEASE:.0f}s", "--redis-timeout", "300ms"),
    )
    directory = tmp_path_factory.mktemp("servers")
    with (
        ServerProcess(directory / "a", *flags, env=ENVIRONMENT) as a,
        ServerProcess(directory / "b", *flags, env=ENVIRONMENT) as b,
    ):
        yield Tus(a), Tus(b)


@pytest.fixture(autouse=True)
def back(redis: RedisServer, both: tuple[Tus, Tus]) -> Iterator[None]:
    """Redis runs after each test, and both servers know it and grant locks again."""
    yield
    if not redis.running:
        redis.start()
    redis.resume()
    for tus in both:
        wait_until(lambda tus=tus: tus.create(0).status == 201, "locks to be granted again")  # type: ignore[misc]


def new(tus: Tus, length: int) -> str:
    """Create an upload. Redis, which has only a moment to answer, may seem to be away until then."""
    responses: list[Response] = []

    def is_created() -> bool:
        responses.append(tus.create(length))
        return responses[-1].status == 201

    wait_until(is_created, "an upload to be created")
    return path_of(responses[-1]["Location"])


def refused(response: Response) -> bool:
    return response.status == 503 and "Retry-After" in response


@pytest.mark.parametrize("how", ["killed", "stalled"])
def test_running_uploads_go_on_and_nothing_else_begins(
    both: tuple[Tus, Tus], redis: RedisServer, contents: Contents, how: str
) -> None:
    a, b = both
    path, idle = new(a, len(DATA)), new(a, len(DATA))
    with a.begin_patch(path, 0, 200_000, DATA[:50_000]) as running:
        stored(contents, path)
        if how == "killed":
            redis.kill9()
        else:
            redis.pause()
        # Another server cannot tell whether it runs, so it must not take it over.
        assert refused(b.patch(path, 0, DATA))
        ends = time.monotonic() + 2 * LEASE
        assert refused(a.create(5))
        assert refused(a.patch(idle, 0, DATA))
        head = b.head(path)
        assert (head.status, "Retry-After" in head) == (423, True)
        wait_until(lambda: time.monotonic() > ends, "what would be the end of the lease")
        running.send(DATA[50_000:200_000])
        assert running.response().status == 204
    # The next request of the same upload at the same server, also after a time without any.
    assert a.offset(path) == 200_000
    assert refused(b.patch(path, 200_000, DATA[200_000:]))
    assert a.patch(path, 200_000, DATA[200_000:]).status == 204
    if how == "killed":
        redis.start()
    else:
        redis.resume()
    wait_until(lambda: b.head(path).status == 200, "the lock to be granted elsewhere")
    assert b.get(path).body == DATA
    wait_until(lambda: b.patch(idle, 0, DATA).status == 204, "other locks to be granted")


def test_a_newcomer_elsewhere_takes_over_when_redis_is_back(
    both: tuple[Tus, Tus], redis: RedisServer, contents: Contents
) -> None:
    a, b = both
    path = new(a, len(DATA))
    with a.begin_patch(path, 0, len(DATA), DATA[:50_000]) as running:
        stored(contents, path)
        redis.kill9()
        redis.start()
        wait_until(lambda: b.head(path).status == 200, "the holder to be asked")
        assert running.response().code == "ERR_UPLOAD_INTERRUPTED"
    offset = b.offset(path)
    assert offset <= 50_000
    assert b.patch(path, offset, DATA[offset:]).status == 204
    assert a.get(path).body == DATA


def test_an_emptied_redis_grants_nothing_for_one_lease(
    both: tuple[Tus, Tus], redis: RedisServer, contents: Contents
) -> None:
    a, b = both
    path, free = new(a, len(DATA)), new(a, 5)
    with a.begin_patch(path, 0, len(DATA), DATA[:50_000]) as running:
        stored(contents, path)
        redis.client.flushall()
        began = time.monotonic()
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(b.patch, free, 0, b"hello")
            assert b.head(path).status == 200
            assert time.monotonic() - began > LEASE * 0.9
            assert waiting.result(60).status == 204
            assert time.monotonic() - began > LEASE * 0.9
        # The holder asked first, so it was told of the newcomer and kept what it had.
        assert running.response().code == "ERR_UPLOAD_INTERRUPTED"
    offset = b.offset(path)
    assert b.patch(path, offset, DATA[offset:]).status == 204
    assert a.get(path).body == DATA


def stored(contents: Contents, path: str) -> None:
    """Wait until the first bytes of a request are in the bucket."""
    wait_until(lambda: f"{id_of(path)}.part" in contents.keys(), "bytes in the bucket")  # noqa: SIM118
