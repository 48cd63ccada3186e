"""A server, and several, whose uploads are in a bucket."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.s3.contents import Contents
from tests.s3.proxies import Answer, Exchange, Fault, FaultProxy, HttpProxy
from tests.s3.servers import BUCKET, ENVIRONMENT, SECRET_KEY, S3Server
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, checksum, id_of, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Connection

BODY = random.Random(3).randbytes(11 * 1024 * 1024)
PART = 5 * 1024 * 1024


@pytest.fixture
def proxy(seaweedfs: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(seaweedfs.address) as proxy:
        yield proxy


class Servers:
    """Starts servers on one prefix of the bucket."""

    def __init__(self, make: MakeServer, endpoint: str, prefix: str) -> None:
        self._make = make
        self.flags = (
            *("--s3-bucket", BUCKET, "--s3-endpoint", endpoint, "--s3-part-size", "5MiB"),
            *("--s3-object-prefix", prefix, "--s3-info-prefix", prefix),
        )

    def __call__(self, *flags: str, launch: bool = False, **env: str) -> ServerProcess:
        return self._make(*self.flags, *flags, env={**ENVIRONMENT, **env}, launch=launch)


@pytest.fixture
def servers(make_server: MakeServer, proxy: FaultProxy, prefix: str) -> Servers:
    return Servers(make_server, proxy.endpoint, prefix)


def test_an_upload_goes_to_the_bucket_and_back(servers: Servers) -> None:
    server = servers()
    tus = Tus(server)
    path = tus.new(len(BODY))
    assert tus.patch(path, 0, BODY[:7_000_000]).status == 204
    assert tus.offset(path) == 7_000_000
    headers = {"Upload-Checksum": checksum(BODY[7_000_000:])}
    assert tus.patch(path, 7_000_000, BODY[7_000_000:], headers).status == 204
    assert tus.get(path).body == BODY
    ranged = tus.get(path, {"Range": "bytes=5242879-5242880"})
    assert (ranged.status, ranged.body) == (206, BODY[5242879:5242881])
    again = tus.get(path, {"If-None-Match": ranged["ETag"]})
    assert again.status == 304
    assert tus.delete(path).status == 204
    assert tus.head(path).status == 410
    # The directory has only what this machine needs.
    assert {entry.name for entry in server.upload_dir.iterdir()} == {".tusd-py"}


def test_a_killed_server_is_replaced_by_one_with_an_empty_disk(servers: Servers) -> None:
    first = servers("--s3-flush-interval", "50ms")
    tus = Tus(first)
    path = tus.new(len(BODY))
    with tus.begin_patch(path, 0, len(BODY), BODY[:6_000_000]):
        second = Tus(servers())
        # Nobody holds its lock there: each server has locks of its own, as the first is about to be killed.
        first.kill9()
    offset = second.offset(path)
    assert offset <= 6_000_000
    assert second.patch(path, offset, BODY[offset:]).status == 204
    assert second.get(path).body == BODY


def test_a_slow_client_gets_a_download_to_its_end(servers: Servers) -> None:
    """For longer than the network time-out the system announces no room for more bytes."""
    server = servers("--network-timeout", "3s")
    data = BODY + BODY
    path = Tus(server).finished(data)
    with Connection(server.address, receive_buffer=65_536) as slow:
        slow.send_head("GET", path, [("Connection", "close")])
        received = slow.read_as_a_slow_link(15_000_000, 17_500_000, lambda: None)
    assert received.partition(b"\r\n\r\n")[2] == data


SMALL = BODY[: 16 * 1024]


@pytest.mark.parametrize("way", ["at once", "post and patch", "with checksum", "empty"])
def test_a_small_upload_takes_two_requests(servers: Servers, proxy: FaultProxy, way: str) -> None:
    tus = Tus(servers())
    proxy.wait_for_first_sweep()
    data = b"" if way == "empty" else SMALL
    if way == "at once":
        created = tus.create(len(data), body=data)
        assert created["Upload-Offset"] == str(len(data))
        path = path_of(created["Location"])
    else:
        path = tus.new(len(data))
    if way in {"post and patch", "with checksum"}:
        headers = {"Upload-Checksum": checksum(data)} if way == "with checksum" else {}
        assert tus.patch(path, 0, data, headers).status == 204
    assert proxy.requests_about(id_of(path)) == {"PutObject": 2}
    second = Tus(servers())
    assert second.offset(path) == len(data)
    assert second.get(path).body == data


@pytest.mark.parametrize("fault", ["lost", "slow-down"])
def test_a_server_killed_while_it_stores_a_small_upload_leaves_all_of_it_or_nothing(
    servers: Servers, proxy: FaultProxy, fault: Fault
) -> None:
    server = servers()
    tus = Tus(server)
    path = tus.new(len(SMALL))
    proxy.inject(seed=1, rate=1.0, kinds=[fault], operation="PutObject")
    with tus.begin_patch(path, 0, len(SMALL), SMALL):
        # The record, and two attempts for the object, of which the first has ended.
        wait_until(lambda: proxy.requests_about(id_of(path))["PutObject"] >= 3, "the object")
        server.kill9()
    proxy.inject(seed=1, rate=0.0)
    second = Tus(servers())
    offset = second.offset(path)
    assert offset == (len(SMALL) if fault == "lost" else 0)
    if offset == 0:
        assert second.patch(path, 0, SMALL).status == 204
    assert second.get(path).body == SMALL


@pytest.mark.parametrize("shared", [False, True])
def test_chunks_take_two_requests_each_and_one_where_no_other_server_can_have_come(
    servers: Servers, proxy: FaultProxy, tmp_path: Path, shared: bool
) -> None:
    with ExitStack() as stack:
        flags = []
        if shared:
            flags = ["--redis-url", stack.enter_context(RedisServer(tmp_path / "redis")).url]
        tus = Tus(servers(*flags))
        proxy.wait_for_first_sweep()
        path = tus.new(len(BODY))
        chunk = 1024 * 1024
        for at in range(0, 4 * chunk, chunk):
            assert tus.patch(path, at, BODY[at : at + chunk]).status == 204
        # The record, and four times the tail.
        assert proxy.requests_about(id_of(path))["PutObject"] == 5
        # With a Redis the record is read by each request, and by sweeps. No tail is.
        assert bool(proxy.requests_about(f"{id_of(path)}.info")["GetObject"]) == shared
        assert proxy.requests_about(f"{id_of(path)}.part") == {"PutObject": 4}
        assert tus.patch(path, 4 * chunk, BODY[4 * chunk :]).status == 204
        assert tus.get(path).body == BODY


def test_servers_that_share_a_redis_hand_uploads_over(
    servers: Servers, proxy: FaultProxy, tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "redis") as redis:
        a, b = (Tus(servers("--redis-url", redis.url)) for _ in range(2))
        path = a.new(len(BODY))
        with a.begin_patch(path, 0, len(BODY), BODY[:6_000_000]) as patch:
            # A HEAD elsewhere ends the request, and what had arrived counts.
            offset = b.offset(path)
            patch.response()
        assert 0 <= offset <= 6_000_000
        assert b.patch(path, offset, BODY[offset : offset + 1000]).status == 204
        offset += 1000
        assert a.offset(path) == offset
        assert a.patch(path, offset, BODY[offset:]).status == 204
        assert b.get(path).body == BODY
        assert a.delete(path).status == 204
        assert b.get(path).status == 404


@pytest.mark.parametrize("is_shared", [False, True])
def test_an_upload_whose_parts_a_rule_of_the_bucket_removed_begins_again(
    servers: Servers, seaweedfs: S3Server, prefix: str, tmp_path: Path, is_shared: bool
) -> None:
    """At the server that stored them."""
    with ExitStack() as stack:
        flags = []
        if is_shared:
            flags = ["--redis-url", stack.enter_context(RedisServer(tmp_path / "redis")).url]
        tus = Tus(servers(*flags))
        path = tus.new(len(BODY))
        assert tus.patch(path, 0, BODY[:6_000_000]).status == 204
        Contents(seaweedfs, prefix).abort(id_of(path))
        assert tus.patch(path, 6_000_000, BODY[6_000_000:]).status == 500
        assert tus.offset(path) == 0
        assert tus.patch(path, 0, BODY[:6_000_000]).status == 204
        assert tus.patch(path, 6_000_000, BODY[6_000_000:]).status == 204
        assert tus.get(path).body == BODY


def test_bytes_of_a_body_that_turns_out_to_be_too_long_do_not_count(
    servers: Servers, seaweedfs: S3Server, prefix: str
) -> None:
    """Some were stored while it came in slowly."""
    tus = Tus(servers("--s3-flush-interval", "50ms"))
    path = tus.new(100)
    contents = Contents(seaweedfs, prefix)
    with tus.begin_patch(path, 0, None, b"x" * 60) as patch:
        wait_until(lambda: f"{id_of(path)}.part" in contents.keys(), "a tail")  # noqa: SIM118
        patch.send(b"x" * 60)
        assert patch.response().status == 413
    second = Tus(servers())
    assert (tus.offset(path), second.offset(path)) == (0, 0)
    assert second.patch(path, 0, BODY[:100]).status == 204
    assert second.get(path).body == BODY[:100]


@pytest.mark.parametrize("key", [r"\.info$", r"\.part$"])
@pytest.mark.parametrize("after", [False, True])
def test_a_server_killed_while_it_takes_such_a_body_back_loses_nothing_before_it(
    servers: Servers, proxy: FaultProxy, key: str, after: bool
) -> None:
    length = PART + 1000
    tus = Tus(servers("--s3-flush-interval", "50ms"))
    path = tus.new(length)
    assert tus.patch(path, 0, BODY[:10]).status == 204

    def tails() -> int:
        return proxy.requests_about(f"{id_of(path)}.part")["PutObject"]

    with tus.begin_patch(path, 10, None, BODY[10:PART]) as patch:
        wait_until(lambda: proxy.requests_about(id_of(path))["UploadPart"] == 1, "a part")
        before = tails()
        patch.send(BODY[PART : PART + 100])
        wait_until(lambda: tails() > before, "the tail behind it")
        with proxy.hold("PutObject", f"{id_of(path)}{key}", after=after) as hold:
            patch.send(BODY[:2000])
            hold.wait()
            tus.server.kill9()
    second = Tus(servers())
    offset = second.offset(path)
    assert offset >= 10
    assert second.patch(path, offset, BODY[offset:length]).status == 204
    assert second.get(path).body == BODY[:length]


def test_concatenation_in_a_bucket(servers: Servers) -> None:
    tus = Tus(servers())
    parts = [
        tus.finished(data, {"Upload-Concat": "partial"}) for data in (BODY, b"small", BODY[:PART])
    ]
    final = tus.create(headers={"Upload-Concat": "final;" + " ".join(parts)})
    assert final.status == 201
    assert tus.get(path_of(final["Location"])).body == BODY + b"small" + BODY[:PART]


def test_a_store_that_is_away_is_a_503_and_loses_nothing(
    servers: Servers, proxy: FaultProxy
) -> None:
    tus = Tus(servers("--s3-retry-time", "100ms"))
    path = tus.new(10)
    assert tus.patch(path, 0, b"hello").status == 204
    proxy.inject(seed=1, rate=1.0, kinds=["slow-down"])
    response = tus.patch(path, 5, b"world")
    assert (response.status, response.code) == (503, "ERR_UNAVAILABLE")
    # Clients that try again after few codes try again after this one.
    assert tus.head(path).status == 423
    assert tus.create(5).status == 503
    proxy.inject(seed=1, rate=0.0)
    assert tus.patch(path, tus.offset(path), b"world").status == 204
    assert tus.get(path).body == b"helloworld"


@pytest.mark.parametrize(
    ("flags", "env", "said"),
    [
        (("--s3-bucket", "no-such-bucket"), {}, "there is no such bucket"),
        ((), {"AWS_SECRET_ACCESS_KEY": "wrong"}, "the secret key does not belong"),
        ((), {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "[Cc]redentials"),
        (("--s3-endpoint", "http://127.0.0.1:9", "--s3-retry-time", "0"), {}, "connect"),
    ],
)
def test_a_server_that_cannot_use_its_bucket_does_not_start(
    servers: Servers, flags: tuple[str, ...], env: dict[str, str], said: str
) -> None:
    server = servers(*flags, launch=True, **env)
    assert server.wait() == 2
    [line] = [line for line in server.log().splitlines() if line]
    assert re.search(said, line), line
    assert SECRET_KEY not in line


class _Bodies(HttpProxy):
    """Notes the requests that store bytes."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(target)
        self.noted: list[Exchange] = []

    async def handle(self, exchange: Exchange) -> Answer:
        if exchange.operation in {"UploadPart", "PutObject"}:
            self.noted.append(exchange)
        return await super().handle(exchange)


@pytest.mark.parametrize("is_signed", [True, False])
def test_bytes_are_signed_without_tls_unless_the_operator_says_otherwise(
    make_server: MakeServer, seaweedfs: S3Server, prefix: str, is_signed: bool
) -> None:
    flags = () if is_signed else ("--s3-disable-content-hashes",)
    with _Bodies(seaweedfs.address) as proxy:
        tus = Tus(Servers(make_server, proxy.endpoint, prefix)(*flags))
        assert tus.get(tus.finished(BODY)).body == BODY
        assert tus.get(tus.finished(SMALL)).body == SMALL
    assert {each.operation for each in proxy.noted} == {"UploadPart", "PutObject"}
    for each in proxy.noted:
        signed = hashlib.sha256(each.body).hexdigest() if is_signed else "UNSIGNED-PAYLOAD"
        assert each.headers["x-amz-content-sha256"] == signed


def test_only_large_bodies_wait_until_the_store_asks_for_them(
    make_server: MakeServer, seaweedfs: S3Server, prefix: str
) -> None:
    with _Bodies(seaweedfs.address) as proxy:
        tus = Tus(Servers(make_server, proxy.endpoint, prefix)())
        assert tus.get(tus.finished(BODY)).body == BODY
        assert tus.get(tus.finished(SMALL)).body == SMALL
    asked = {len(each.body) > 256 * 1024: each.expect for each in proxy.noted}
    assert asked == {False: "", True: "100-continue"}
    for each in proxy.noted:
        assert each.headers["User-Agent"].startswith("tusd-py/")
