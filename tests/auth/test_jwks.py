"""A key set that is kept up to date: fetched, renewed when keys change, and used while its source is away."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt
import pytest

from tests.auth.people import bearer, claims
from tests.auth.test_verify import KEYS, jwk_of
from tests.conftest import MakeServer
from tests.support.tus import Tus
from tusd_py.auth.keys import KeysUnavailable, jwks
from tusd_py.auth.keys.jwks import Jwks


class Issuer:
    """An issuer's key set at a URL. requests: how often it was asked for."""

    def __init__(self) -> None:
        self.keys: list[dict[str, object]] = []
        self.status = 200
        self.body: bytes | None = None
        self.requests = 0
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests += 1
                self.send_response(issuer.status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(issuer.body or json.dumps({"keys": issuer.keys}).encode())

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/jwks.json"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    found = Issuer()
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


async def test_a_new_key_is_found_at_once(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "_PAUSE", 0.0)
    issuer.keys = [jwk_of("RS256", "k1")]
    keys = Jwks(issuer.url, ["RS256"])
    await keys.start()
    assert len(await keys.candidates("k1", "RS256")) == 1
    assert issuer.requests == 1
    issuer.keys.append(jwk_of("RS256", "k2"))
    assert len(await keys.candidates("k2", "RS256")) == 1
    assert issuer.requests == 2


async def test_tokens_with_invented_kids_do_not_flood_the_issuer(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "_PAUSE", 3600.0)
    issuer.keys = [jwk_of("RS256", "k1")]
    keys = Jwks(issuer.url, ["RS256"])
    await keys.start()
    for number in range(50):
        assert not await keys.candidates(f"invented-{number}", "RS256")
    assert issuer.requests == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, None), (302, None), (200, b"{"), (200, b"[]"), (200, b"{}"), (200, b"x" * 600_000)],
    ids=["500", "302", "no JSON", "no object", "no keys", "too large"],
)
async def test_a_source_that_fails_leaves_what_is_known(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes | None
) -> None:
    monkeypatch.setattr(jwks, "_PAUSE", 0.0)
    issuer.keys = [jwk_of("RS256", "k1")]
    keys = Jwks(issuer.url, ["RS256"])
    await keys.start()
    issuer.status, issuer.body = status, body
    assert not await keys.candidates("k2", "RS256")
    assert issuer.requests == 2
    assert len(await keys.candidates("k1", "RS256")) == 1


async def test_what_is_known_is_not_good_for_ever(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.keys = [jwk_of("RS256", "k1")]
    keys = Jwks(issuer.url, ["RS256"])
    await keys.start()
    issuer.status = 500
    monkeypatch.setattr(jwks, "_GOOD", 0.0)
    with pytest.raises(KeysUnavailable):
        await keys.candidates("k1", "RS256")


def test_a_server_lives_without_its_issuer(issuer: Issuer, make_server: MakeServer) -> None:
    issuer.status = 503
    flags = ("--auth", "jwt", "--jwt-jwks", issuer.url, "--jwt-algorithms", "ES256")
    server = make_server(*flags)
    tus = Tus(server)
    token = bearer(jwt.encode(claims(), KEYS["ES256"][0], "ES256", headers={"kid": "k1"}))
    assert tus.create(5, headers=token).status == 503
    issuer.keys = [jwk_of("ES256", "k1")]
    issuer.status = 200
    status = 503
    while status == 503:
        status = tus.create(5, headers=token).status
    assert status == 201
    issuer.status = 503
    created = tus.create(5, headers=token)
    assert created.status == 201
    key = server.upload_dir / ".tusd-py" / "upload-token.key"
    assert key.stat().st_mode & 0o777 == 0o600
    # The key of upload tokens outlives the server.
    server.terminate()
    server.restart()
    path = created["Location"].removeprefix(server.url.removesuffix("/files/"))
    assert tus.head(path, bearer(created["Upload-Token"])).status == 200


async def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [jwk_of("EdDSA")]}))
    keys = Jwks(str(file), ["EdDSA"])
    assert len(await keys.candidates(None, "EdDSA")) == 1
