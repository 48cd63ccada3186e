"""Revocations reach every server within a second, and end running requests."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from tests.auth.conftest import FLAGS
from tests.auth.people import SECRET, access, bearer, upload_token
from tests.conftest import MakeServer
from tests.support.redis import RedisServer
from tests.support.tus import OCTETS, Tus, id_of, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Connection

REFRESH, REVOKE = "/auth/refresh-upload-token", "/auth/revoke"
ALICE = bearer(access())
ADMIN = bearer(access("root", "uploads:admin"))


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def pair(tmp_path: Path, redis: RedisServer, make_server: MakeServer) -> tuple[Tus, Tus]:
    """Two servers that share uploads."""
    flags = (*FLAGS, "--redis-url", redis.url)
    env = {"TUSD_JWT_SECRET": SECRET}
    servers = [make_server(*flags, env=env, upload_dir=tmp_path / "uploads") for _ in range(2)]
    return Tus(servers[0]), Tus(servers[1])


def revoke(tus: Tus, **what: str) -> None:
    response = tus.request("POST", REVOKE, ADMIN, json.dumps(what).encode())
    assert response.status == 204, response


def test_a_running_patch_ends_on_every_server(pair: tuple[Tus, Tus]) -> None:
    here, there = pair
    path = here.new(100, headers=ALICE)
    token = bearer(upload_token(id_of(path)))
    with there.begin_patch(path, 0, 100, b"0123456789", token) as patch:
        patch.wait_stored()
        revoke(here, upload_id=id_of(path))
        response = patch.response()
    assert response.status == 401
    assert 'error="invalid_token"' in response["WWW-Authenticate"]
    # What arrived is kept, and nobody but an admin goes on.
    assert here.head(path, ADMIN)["Upload-Offset"] == "10"
    assert there.patch(path, 10, b"x", token).status == 401
    assert there.patch(path, 10, b"x", ALICE).status == 403
    assert there.request("POST", REFRESH, token).status == 401
    body = json.dumps({"upload_id": id_of(path)}).encode()
    assert there.request("POST", REFRESH, ALICE, body).status == 403
    assert there.head(path, ALICE).status == 200
    assert there.patch(path, 10, b"x", ADMIN).status == 204
    assert there.delete(path, ALICE).status == 204


def test_it_is_in_effect_on_every_server_within_a_second(pair: tuple[Tus, Tus]) -> None:
    here, there = pair

    def seconds() -> float:
        """The time from the revocation of an upload to the end of its request on another server."""
        path = here.new(100, headers=ALICE)
        with there.begin_patch(path, 0, 100, b"0123456789", ALICE) as patch:
            patch.wait_stored()
            began = time.monotonic()
            revoke(here, upload_id=id_of(path))
            assert patch.response().status == 403
            return time.monotonic() - began

    # The machine may stand still at some of them.
    assert statistics.median(seconds() for _ in range(9)) < 1.0


def test_all_that_an_owner_had_is_void_and_others_go_on(pair: tuple[Tus, Tus]) -> None:
    here, there = pair
    mine = here.new(100, headers=ALICE)
    bobs = here.new(100, headers=bearer(access("bob")))
    token, bob = bearer(upload_token(id_of(mine))), bearer(upload_token(id_of(bobs), "bob"))
    with (
        there.begin_patch(mine, 0, 100, b"0123456789", token) as patch,
        there.begin_patch(bobs, 0, 20, b"0123456789", bob) as bystander,
    ):
        patch.wait_stored()
        bystander.wait_stored()
        revoke(here, owner="alice")
        assert patch.response().status == 401
        bystander.send(b"0123456789")
        assert bystander.response().status == 204
    assert there.head(mine, ALICE).status == 401
    assert there.head(mine, token).status == 401
    # A token that is issued afterwards counts.
    later = bearer(access(iat=int(time.time()) + 2))
    assert there.head(mine, later).status == 200
    body = json.dumps({"upload_id": id_of(mine)}).encode()
    response = there.request("POST", REFRESH, later, body)
    assert response.status == 200
    fresh = bearer(json.loads(response.body)["upload_token"])
    assert there.patch(mine, 10, b"0", fresh).status == 204


def test_the_token_of_a_creation_that_was_revoked_is_void(tus: Tus) -> None:
    """The response may come after the revocation, and has a token all the same."""
    ada = bearer(access("ada"))
    head = {**ada, "Tus-Resumable": "1.0.0", "Upload-Length": "100", "Content-Type": OCTETS}
    with tus.connect() as connection:
        connection.send_head("POST", "/files/", {**head, "Content-Length": "100"})
        connection.send(b"0123456789")
        tus.server.wait_for_line(r"upload created.*owner=ada")
        revoke(tus, owner="ada")
        refused = connection.read_response("POST")
    assert (refused.status, refused.code) == (401, "ERR_INVALID_TOKEN")
    token = bearer(refused["Upload-Token"])
    path = path_of(refused["Location"])
    assert tus.head(path, token).status == 401
    assert tus.patch(path, 10, b"x", token).status == 401
    assert tus.request("POST", REFRESH, token).status == 401


def test_tokens_are_as_old_as_what_they_derive_from(tus: Tus) -> None:
    hour_ago = bearer(access("eve", iat=int(time.time()) - 3600))
    created = tus.create(10, headers=hour_ago)
    renewed = tus.request("POST", REFRESH, bearer(created["Upload-Token"]))
    tokens = [created["Upload-Token"], json.loads(renewed.body)["upload_token"]]
    parsed = [jwt.decode(each, options={"verify_signature": False}) for each in tokens]
    assert {int(time.time()) - int(each["auth_time"]) >= 3600 for each in parsed} == {True}
    assert {int(time.time()) - int(each["iat"]) < 60 for each in parsed} == {True}
    # The owner's own word, or an administrator's, is a new one.
    body = json.dumps({"upload_id": id_of(path_of(created["Location"]))}).encode()
    for headers in (bearer(access("eve")), ADMIN):
        answer = json.loads(tus.request("POST", REFRESH, headers, body).body)
        claims = jwt.decode(answer["upload_token"], options={"verify_signature": False})
        assert int(time.time()) - int(claims["auth_time"]) < 60


def test_a_running_download_ends(tus: Tus) -> None:
    ivy = bearer(access("ivy"))
    content = os.urandom(50_000_000)
    created = tus.create(len(content), body=content, headers=ivy)
    path = path_of(created["Location"])
    bystander = bearer(access("root", "uploads:admin"))
    with (
        Connection(tus.server.address, receive_buffer=65_536) as connection,
        Connection(tus.server.address, receive_buffer=65_536) as other,
    ):
        connection.send_head("GET", path, {**ivy, "Connection": "close"})
        other.send_head("GET", path, {**bystander, "Connection": "close"})
        assert not connection.silent_for(30)
        assert not other.silent_for(30)
        revoke(tus, owner="ivy")
        tus.server.wait_for_line(r"the download ended early: its client may not read it any more")
        assert len(connection.read_to_end()) < len(content)
        assert len(other.read_to_end()) > len(content)


def test_who_revokes_is_asked_again_once_the_body_is_there(tus: Tus) -> None:
    body = json.dumps({"owner": "jim"}).encode()
    with tus.connect() as connection:
        fields = {**bearer(access("jim")), "Content-Length": str(len(body))}
        connection.send_head("POST", REVOKE, fields)
        connection.send(body[:5])
        revoke(tus, owner="jim")
        connection.send(body[5:])
        assert connection.read_response("POST").status == 401


def test_a_body_that_does_not_come_ends_a_revocation(tus: Tus) -> None:
    """However many bytes come now and then: a credential is not good for days."""
    with tus.connect() as connection:
        connection.send_head("POST", REVOKE, {**ADMIN, "Content-Length": "100"})
        began = time.monotonic()
        while connection.silent_for(0.5):
            connection.send(b" ")
        refused = connection.read_response("POST")
    assert (refused.status, "did not arrive within" in refused.text) == (400, True)
    assert time.monotonic() - began > 5


def test_a_token_of_the_same_instant_is_void(tus: Tus) -> None:
    """Of fifty that were issued within the same millisecond as the revocation, or just before it, none counts."""
    for number in range(50):
        owner = bearer(access(f"owner-{number}"))
        answer = tus.create(10, headers=owner)
        token = bearer(answer["Upload-Token"])
        revoke(tus, owner=f"owner-{number}")
        assert tus.head(path_of(answer["Location"]), token).status == 401


def test_a_revocation_outlives_servers_and_an_emptied_redis(
    pair: tuple[Tus, Tus], redis: RedisServer
) -> None:
    here, there = pair
    path = here.new(10, headers=ALICE)
    token = bearer(upload_token(id_of(path)))
    revoke(here, upload_id=id_of(path))
    wait_until(lambda: there.head(path, token).status == 401, "the other server to know")
    redis.command("FLUSHALL")
    wait_until(lambda: redis.command("EXISTS", "tusd:{revoked}:all") == 1, "it to be told again")
    for tus in pair:
        tus.server.terminate()
        tus.server.restart()
        assert tus.head(path, token).status == 401


def test_without_redis_what_is_known_counts_and_nothing_is_revoked(
    pair: tuple[Tus, Tus], redis: RedisServer
) -> None:
    here, _ = pair
    path, other = (here.new(10, headers=ALICE) for _ in range(2))
    revoke(here, upload_id=id_of(path))
    redis.kill9()
    assert here.head(path, bearer(upload_token(id_of(path)))).status == 401
    body = json.dumps({"upload_id": id_of(other)}).encode()
    assert here.request("POST", REVOKE, ADMIN, body).status == 503
    response = here.request("POST", REFRESH, ALICE, body)
    assert response.status == 200
    # A server that never learnt what was revoked lets nobody in.
    here.server.terminate()
    here.server.restart()
    assert here.create(5, headers=ALICE).status == 503
    redis.start()
    wait_until(lambda: here.create(5, headers=ALICE).status == 201, "it to come back")


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (ALICE, b'{"owner": "alice"}', 204),
        (bearer(access("carol", "uploads:create")), b'{"owner": "carol"}', 403),
        (bearer(access("bob")), b'{"owner": "alice"}', 403),
        (ADMIN, b'{"owner": "nobody"}', 204),
        (ADMIN, b'{"owner": "a", "upload_id": "b"}', 400),
        (ADMIN, b"{}", 400),
        (ADMIN, b"[]", 400),
        (ADMIN, b'{"owner": 5}', 400),
        (ADMIN, b"{" * 3000, 400),
        (ADMIN, b"{" * 5000, 400),
        (ADMIN, b'{"upload_id": "../../etc/passwd"}', 404),
    ],
)
def test_who_may_revoke_what(tus: Tus, headers: dict[str, str], body: bytes, status: int) -> None:
    assert tus.request("POST", REVOKE, headers, body).status == status


def test_only_post_does_anything(tus: Tus) -> None:
    for path in (REFRESH, REVOKE):
        for method in ("GET", "PUT", "DELETE"):
            response = tus.request(method, path, ADMIN)
            assert (response.status, response["Allow"]) == (405, "POST, OPTIONS")
