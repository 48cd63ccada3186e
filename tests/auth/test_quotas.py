"""Quotas of owners: bytes of all their uploads, and the number of unfinished ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.auth.conftest import FLAGS
from tests.auth.people import SECRET, access, bearer
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.tus import OCTETS, Tus, id_of, metadata, path_of
from tests.support.waiting import wait_until
from tests.support.wire import chunk, last_chunk
from tests.workers.commands import command, documents, of
from tusd_py.auth.byte_quota import ByteQuotas
from tusd_py.redis import Part, RedisClient

QUOTA = 1000
HOOK = """
from tusd_py import Changes

def pre_create(event):
    quota = event.upload.metadata.get("quota")
    chosen = event.upload.metadata.get("id")
    return Changes(quota_bytes=int(quota) if quota else None, id=chosen.decode() if chosen else None)
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("guarded")
    (directory / "hook.py").write_text(HOOK)
    with ServerProcess(
        directory / "uploads",
        *(*FLAGS, "--quota-bytes", str(QUOTA), "--hook", str(directory / "hook.py")),
        env={"TUSD_JWT_SECRET": SECRET},
    ) as process:
        yield process


SHORT = """
from tusd_py import Changes

def pre_create(event):
    return Changes(expire_after=0.5) if "brief" in event.upload.metadata else None
"""


def test_a_refusal_says_what_is_left_and_removals_give_back(tus: Tus) -> None:
    alice = bearer(access("alice"))
    first = tus.new(600, headers=alice)
    refused = tus.create(401, headers=alice)
    assert (refused.status, refused.code) == (413, "ERR_QUOTA_EXCEEDED")
    assert "400 bytes are left" in refused.text
    # Another owner has a quota of its own.
    assert tus.create(1000, headers=bearer(access("bob"))).status == 201
    second = path_of(tus.create(400, body=bytes(400), headers=alice)["Location"])
    assert tus.create(1, headers=alice).status == 413
    for path, size in ((second, 400), (first, 600)):
        assert tus.delete(path, alice).status == 204
        assert tus.create(size + 1, headers=alice).status == 413
        assert tus.create(size, headers=alice).status == 201


def test_creations_that_fail_take_nothing(tus: Tus) -> None:
    carol = bearer(access("carol"))
    for _ in range(3):
        assert tus.create(600, headers={**carol, "Upload-Metadata": "a a a"}).status == 400
        assert tus.create(600, body=bytes(601), headers=carol).status == 413
        assert tus.create(1001, headers=carol).code == "ERR_QUOTA_EXCEEDED"
    assert tus.create(1000, headers=carol).status == 201


def test_an_upload_of_unknown_length_takes_what_it_gets(tus: Tus) -> None:
    dave = bearer(access("dave"))
    path = tus.new(None, headers=dave)
    assert tus.patch(path, 0, bytes(600), dave).status == 204
    assert tus.create(401, headers=dave).status == 413
    refused = tus.patch(path, 600, bytes(401), dave)
    assert (refused.status, refused.code) == (413, "ERR_QUOTA_EXCEEDED")
    assert tus.head(path, dave)["Upload-Offset"] == "600"
    # The declared length counts from then on.
    assert tus.patch(path, 600, b"", {**dave, "Upload-Length": "1001"}).status == 413
    assert tus.patch(path, 600, b"", {**dave, "Upload-Length": "900"}).status == 204
    assert tus.create(101, headers=dave).status == 413
    assert tus.create(100, headers=dave).status == 201


def test_a_body_of_unknown_size_ends_where_the_quota_does(tus: Tus) -> None:
    judy = bearer(access("judy"))
    path = tus.new(None, headers=judy)
    with tus.begin_patch(path, 0, None, bytes(600), judy) as patch:
        patch.wait_stored()
        # What is running has taken all that was left.
        assert tus.create(1, headers=judy).code == "ERR_QUOTA_EXCEEDED"
        patch.send(bytes(401))
        refused = patch.response()
    assert (refused.status, refused.code) == (413, "ERR_QUOTA_EXCEEDED")
    assert "400 bytes are left" in refused.text
    # What arrived before stays, and the rest is free again.
    assert tus.head(path, judy)["Upload-Offset"] == "600"
    assert tus.create(401, headers=judy).status == 413
    other = path_of(tus.create(300, headers=judy)["Location"])
    with tus.begin_patch(path, 600, None, bytes(100), judy) as patch:
        patch.connection.send(last_chunk())
        assert patch.response().status == 204
    with tus.begin_patch(path, 700, None, b"x", judy) as patch:
        assert patch.response().code == "ERR_QUOTA_EXCEEDED"
    assert tus.delete(other, judy).status == 204
    with tus.begin_patch(path, 700, None, b"x", judy) as patch:
        patch.connection.send(last_chunk())
        assert patch.response().status == 204


def test_a_creation_with_a_body_of_unknown_size_ends_there_too(tus: Tus) -> None:
    kate = bearer(access("kate"))
    head = {**kate, "Tus-Resumable": "1.0.0", "Upload-Defer-Length": "1", "Content-Type": OCTETS}
    with tus.connect() as connection:
        connection.send_head("POST", "/files/", {**head, "Transfer-Encoding": "chunked"})
        connection.send(chunk(bytes(900)))
        connection.send(chunk(bytes(101)))
        refused = connection.read_response("POST")
    assert (refused.status, refused.code) == (413, "ERR_QUOTA_EXCEEDED")
    path = path_of(refused["Location"])
    offset = int(tus.head(path, kate)["Upload-Offset"])
    assert offset <= 900
    assert tus.create(1001 - offset, headers=kate).status == 413
    assert tus.create(1000 - offset, headers=kate).status == 201


def test_bytes_count_however_their_request_ends(tus: Tus) -> None:
    leo = bearer(access("leo"))
    path = tus.new(None, headers=leo)
    for offset, size in ((0, 600), (300, None)):
        with tus.begin_patch(path, offset, size, bytes(300), leo) as patch:
            patch.wait_stored()
    # Its bytes count once the server has seen the end of the connection.
    wait_until(lambda: tus.head(path, leo)["Upload-Offset"] == "600", "both bodies to end")
    assert tus.create(401, headers=leo).status == 413
    assert tus.create(400, headers=leo).status == 201


def test_a_comparison_leaves_what_is_being_received_reserved(tus: Tus) -> None:
    mia = bearer(access("mia"))
    path = tus.new(None, headers=mia)
    with tus.begin_patch(path, 0, 900, bytes(10), mia) as patch:
        patch.wait_stored()
        # Each has the reservations compared with the storage, in which there are 10 bytes.
        assert tus.create(900, headers=mia).code == "ERR_QUOTA_EXCEEDED"
        assert tus.create(900, headers=mia).code == "ERR_QUOTA_EXCEEDED"
        patch.send(bytes(890))
        assert patch.response().status == 204
    assert tus.create(101, headers=mia).status == 413


def test_finals_of_parts_whose_length_comes_late_are_joined_within_the_quota(tus: Tus) -> None:
    noah = bearer(access("noah"))
    part = tus.new(None, headers={**noah, "Upload-Concat": "partial"})
    finals = [
        path_of(
            tus.create(
                headers={
                    **noah,
                    "Upload-Concat": f"final;{part}",
                    "Upload-Metadata": metadata(name=f"{number}"),
                }
            )["Location"]
        )
        for number in range(4)
    ]
    assert tus.patch(part, 0, bytes(400), {**noah, "Upload-Length": "400"}).status == 204

    def joined() -> int:
        found = [tus.head(path, noah) for path in finals]
        # Once the part is removed, those that wait for it are gone.
        assert {each.status for each in found} <= {200, 410}
        return sum(each.get("Upload-Offset") == "400" for each in found)

    wait_until(lambda: joined() == 1, "one of them to be joined")
    assert tus.create(201, headers=noah).status == 413
    assert tus.delete(part, noah).status == 204
    assert joined() == 1


def test_a_final_by_upload_tokens_alone_has_the_quota_of_its_parts(tus: Tus) -> None:
    def join(size: int, owner: str, quota: int) -> list[int]:
        token = {**bearer(access(owner, quota_bytes=quota)), "Upload-Concat": "partial"}
        created = tus.create(size, body=bytes(size), headers=token)
        path = path_of(created["Location"])
        own = {**bearer(created["Upload-Token"]), "Upload-Concat": f"final;{path}"}
        return [
            tus.create(headers={**own, "Upload-Metadata": metadata(n=f"{number}")}).status
            for number in range(2)
        ]

    assert join(40, "olga", 100) == [201, 413]
    assert join(700, "peter", 1500) == [201, 413]


def test_an_id_that_is_taken_takes_nothing_from_the_upload_that_has_it(tus: Tus) -> None:
    quinn = bearer(access("quinn"))
    named = {**quinn, "Upload-Metadata": metadata(id="of-quinn")}
    path = path_of(tus.create(900, headers=named)["Location"])
    stranger = {**bearer(access("rita")), "Upload-Metadata": metadata(id="of-quinn")}
    with tus.begin_patch(path, 0, 900, bytes(100), quinn) as patch:
        patch.wait_stored()
        for headers in (named, stranger):
            taken = tus.create(900, headers=headers)
            assert (taken.status, taken.code) == (409, "ERR_UPLOAD_EXISTS")
        patch.send(bytes(800))
        assert patch.response().status == 204
    assert tus.create(101, headers=quinn).status == 413
    assert tus.create(1000, headers=bearer(access("rita"))).status == 201


def test_a_file_that_is_missing_locks_nobody_out(tus: Tus) -> None:
    sue = bearer(access("sue", quota_uploads=2))
    for number in range(2):
        path = path_of(tus.create(1, body=b"x", headers=sue)["Location"])
        if number:
            tus.server.data_file(id_of(path)).unlink()
        else:
            tus.server.data_file(id_of(path)).write_bytes(b"more than it had")
    assert tus.create(1, body=b"x", headers=sue).status == 201


def test_refusals_do_not_keep_the_storage_busy(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as redis:
        env = {"TUSD_REDIS_URL": redis.url}
        with ServerProcess(tmp_path / "uploads", "--quota-bytes", str(QUOTA), env=env) as server:
            tus = Tus(server)
            tus.new(900)
            redis.reset_counts()
            assert tus.create(QUOTA + 1).status == 413
            assert redis.counts().get("hscan", 0) == 0
            began = time.monotonic()
            assert [tus.create(200).status for _ in range(20)] == [413] * 20
            # One in five seconds.
            assert 1 <= redis.counts()["hscan"] <= 1 + (time.monotonic() - began) // 5


def test_a_body_of_unknown_size_takes_what_becomes_free(tmp_path: Path) -> None:
    piece = bytes(1024 * 1024)
    with ServerProcess(tmp_path / "uploads", "--quota-bytes", "40MB") as server:
        tus = Tus(server)
        first, second = tus.new(None), tus.new(None)
        with (
            tus.begin_patch(first, 0, None, piece) as one,
            tus.begin_patch(second, 0, None, piece) as two,
        ):
            one.wait_stored()
            two.wait_stored()
            # Of what the first has reserved and does not need, the second has use.
            one.connection.send(last_chunk())
            assert one.response().status == 204
            for _ in range(36):
                two.send(piece)
            two.send(bytes(100))
            two.wait_stored()
            two.send(piece)
            assert two.response().code == "ERR_QUOTA_EXCEEDED"
        # What of the last piece still had room may have been read before the rest of it.
        offset = int(tus.head(second)["Upload-Offset"])
        assert 37 * len(piece) + 100 <= offset <= 40_000_000 - len(piece)


def test_a_running_body_goes_on_without_redis_as_far_as_was_reserved(tmp_path: Path) -> None:
    piece = bytes(1024 * 1024)
    with RedisServer(tmp_path / "redis") as redis:
        env = {"TUSD_REDIS_URL": redis.url}
        with ServerProcess(tmp_path / "uploads", "--quota-bytes", "1GB", env=env) as server:
            tus = Tus(server)
            path = tus.new(None)
            with tus.begin_patch(path, 0, None, piece) as patch:
                patch.wait_stored()
                redis.stop()
                for _ in range(20):
                    patch.send(piece)
                patch.connection.send(last_chunk())
                assert patch.response().status == 204
            with tus.begin_patch(path, 21 * len(piece), None, piece) as patch:
                assert patch.response().status == 503


def test_finals_take_what_their_parts_will_have(tus: Tus) -> None:
    erin = bearer(access("erin"))
    partial_ = {**erin, "Upload-Concat": "partial"}
    part = tus.new(400, headers=partial_)
    final = {**erin, "Upload-Concat": f"final;{part} {part}"}
    assert tus.create(headers=final).code == "ERR_QUOTA_EXCEEDED"
    final["Upload-Concat"] = f"final;{part}"
    assert tus.create(headers=final).status == 201
    assert tus.create(201, headers=erin).status == 413
    assert tus.patch(part, 0, bytes(400), erin).status == 204
    assert tus.create(201, headers=erin).status == 413


def test_a_token_or_a_hook_says_more_than_the_settings(tus: Tus) -> None:
    small = bearer(access("frank", quota_bytes=50))
    assert tus.create(51, headers=small).status == 413
    more = {**small, "Upload-Metadata": metadata(quota="2000")}
    assert tus.create(1500, headers=more).status == 201
    assert tus.create(501, headers=more).status == 413
    # An upload token, which has no claims of the issuer, changes nothing.
    grace = bearer(access("grace", quota_bytes=50))
    created = tus.create(headers={**grace, "Upload-Defer-Length": "1"})
    token = {"Upload-Token": created["Upload-Token"]}
    path = path_of(created["Location"])
    assert tus.patch(path, 0, bytes(51), token).code == "ERR_QUOTA_EXCEEDED"
    assert tus.patch(path, 0, bytes(50), token).status == 204
    two = bearer(access("heidi", quota_uploads=2))
    assert [tus.create(1, headers=two).status for _ in range(3)] == [201, 201, 429]


@pytest.mark.parametrize(
    ("claims", "size", "status"), [({}, QUOTA // 10, 413), ({"quota_uploads": 10}, 1, 429)]
)
def test_of_fifty_at_once_ten_come_in(
    tus: Tus, claims: dict[str, int], size: int, status: int
) -> None:
    headers = bearer(access(f"ivan-{size}", **claims))

    def create(_: int) -> int:
        return tus.create(size, headers=headers).status

    with ThreadPoolExecutor(50) as threads:
        found = sorted(threads.map(create, range(50)))
    assert found == [201] * 10 + [status] * 40


def is_gone(tus: Tus, path: str) -> bool:
    return tus.head(path).status == 410


def test_an_emptied_redis_is_filled_from_the_storage(tmp_path: Path) -> None:
    hook = tmp_path / "hook.py"
    hook.write_text(SHORT)
    with RedisServer(tmp_path / "redis") as redis:
        env = {"TUSD_REDIS_URL": redis.url}
        quota = ("--quota-bytes", str(QUOTA))
        flags = (*quota, "--hook", str(hook), "--sweep-interval", "200ms")
        with ServerProcess(tmp_path / "uploads", *flags, env=env) as server:
            tus = Tus(server)
            tus.new(300)
            tus.finished(bytes(600))
            redis.command("FLUSHALL")
            key = "tusd:{quotas}:wanted"
            wait_until(lambda: redis.command("GET", key) == b"whole", "the storage to be read")
            assert tus.create(101).status == 413
            row = {"owner": "", "uploads": 2, "bytes": 900, "quota": QUOTA}
            assert documents("quotas", *quota, *of(server), env=env) == [row]
            text = command("quotas", *quota, *of(server), env=env).stdout.splitlines()
            assert text[0].split() == ["OWNER", "UPLOADS", "BYTES", "QUOTA", "USED"]
            assert text[1].split() == ["-", "2", "900", "B", "1.00", "kB", "90%"]
            # What expires gives back.
            brief = tus.new(100, headers={"Upload-Metadata": metadata(brief="1")})
            wait_until(partial(is_gone, tus, brief), "the expiry")
            wait_until(lambda: tus.create(100).status == 201, "the bytes to be given back")
            server.terminate()


async def test_a_redis_that_is_emptied_while_it_is_asked_ends_no_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RedisServer(tmp_path / "redis") as redis:
        client = RedisClient(redis.url, timeout=20)
        await client.start()
        ask = client.command

        async def emptied_before_get(*parts: Part) -> object:
            if parts[0] == "GET":
                redis.command("FLUSHALL")
            return await ask(*parts)

        for quotas in (ByteQuotas(client, limit=QUOTA), ByteQuotas(client, limit=0)):
            # As a token says.
            quotas.limit_of(QUOTA)
            with monkeypatch.context() as patched:
                patched.setattr(client, "command", emptied_before_get)
                await quotas.want()
            assert quotas.is_on
            assert not await quotas.want()
            assert not await quotas.is_whole()
        await client.stop()
