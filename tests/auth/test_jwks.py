"""A key set: fetched, refreshed when keys change, and used while its source is unavailable."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt
import pytest

from tests.auth.people import bearer, claims
from tests.auth.test_verify import KEYS, jwk_of
from tests.conftest import MakeServer
from tests.support.certificate import make_certificate
from tests.support.tus import Tus
from tests.support.waiting import wait_until
from tusd_py import __version__
from tusd_py.auth.keys import KeysUnavailable, jwks
from tusd_py.auth.keys.jwks import Jwks


class Issuer:
    """An issuer's key set at a URL. requests: how often it was asked for."""

    def __init__(self) -> None:
        self.keys: list[dict[str, object]] = []
        self.status = 200
        self.body: bytes | None = None
        self.requests = 0
        self.location: str | None = "/elsewhere"
        self.redirects = 1_000
        self.paths: list[str] = []
        self.fields: list[Message] = []
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests += 1
                issuer.paths.append(self.path)
                issuer.fields.append(self.headers)
                redirects = 300 <= issuer.status < 400 and issuer.requests <= issuer.redirects
                self.send_response(issuer.status if redirects or issuer.status >= 400 else 200)
                if redirects and issuer.location is not None:
                    self.send_header("Location", issuer.location)
                self.end_headers()
                self.wfile.write(issuer.body or json.dumps({"keys": issuer.keys}).encode())

            def do_CONNECT(self) -> None:
                issuer.paths.append(self.path)
                issuer.fields.append(self.headers)
                self.send_error(502)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/jwks.json"


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    return " ".join(str(vars(record)["fields"]["message"]) for record in caplog.records)


@contextmanager
def serving(issuer: Issuer) -> Iterator[None]:
    thread = threading.Thread(target=issuer.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield
    issuer.server.shutdown()
    issuer.server.server_close()
    thread.join()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    found = Issuer()
    with serving(found):
        yield found


async def test_a_new_key_is_found_at_once(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "_PAUSE_SECONDS", 0.0)
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
    monkeypatch.setattr(jwks, "_PAUSE_SECONDS", 3600.0)
    issuer.keys = [jwk_of("RS256", "k1")]
    keys = Jwks(issuer.url, ["RS256"])
    await keys.start()
    for number in range(50):
        assert not await keys.candidates(f"invented-{number}", "RS256")
    assert issuer.requests == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, None), (200, b"{"), (200, b"[]"), (200, b"{}"), (200, b"x" * 600_000)],
    ids=["500", "no JSON", "no object", "no keys", "too large"],
)
async def test_a_source_that_fails_leaves_what_is_known(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes | None
) -> None:
    monkeypatch.setattr(jwks, "_PAUSE_SECONDS", 0.0)
    issuer.keys = [jwk_of("RS256", "k1")]
    keys = Jwks(issuer.url, ["RS256"])
    await keys.start()
    issuer.status, issuer.body = status, body
    assert not await keys.candidates("k2", "RS256")
    assert issuer.requests == 2
    assert len(await keys.candidates("k1", "RS256")) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed(issuer: Issuer, status: int) -> None:
    issuer.status, issuer.redirects = status, 2
    issuer.keys = [jwk_of("RS256", "k1")]
    keys = Jwks(issuer.url, ["RS256"])
    await keys.start()
    assert len(await keys.candidates("k1", "RS256")) == 1
    assert issuer.paths == ["/jwks.json", "/elsewhere", "/elsewhere"]


@pytest.mark.parametrize(
    ("location", "requests"),
    [
        ("/round", 6),
        (None, 1),
        ("file:///etc/passwd", 1),
        ("ftp://issuer.example/keys", 1),
        ("data:application/json,{}", 1),
        ("http://me:secret@127.0.0.1/", 1),
        ("http://[", 1),
    ],
)
async def test_a_redirect_to_nothing_good_is_not(
    issuer: Issuer, location: str | None, requests: int, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.status, issuer.location = 302, location
    keys = Jwks(issuer.url, ["RS256"])
    await keys.start()
    with pytest.raises(KeysUnavailable):
        await keys.candidates("k1", "RS256")
    assert issuer.requests == requests
    said = warnings_of(caplog)
    assert "cannot be read" in said
    assert "secret" not in said


def test_https_stays_https(issuer: Issuer, make_server: MakeServer, tmp_path: Path) -> None:
    """An issuer with a certificate that redirects to one without is not followed."""
    made = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*made)
    plain = issuer.url
    secure = Issuer()
    secure.server.socket = context.wrap_socket(secure.server.socket, server_side=True)
    secure.status, secure.location, secure.redirects = 302, plain, 1
    issuer.keys = secure.keys = [jwk_of("ES256", "k1")]
    with serving(secure):
        url = secure.url.replace("http://", "https://")
        flags = ("--auth", "jwt", "--jwt-jwks", url, "--jwt-algorithms", "ES256")
        tus = Tus(make_server(*flags, env={"SSL_CERT_FILE": str(made[0])}))
        tus.server.wait_for_line("redirected from HTTPS to HTTP")
        assert issuer.requests == 0
        token = bearer(jwt.encode(claims(), KEYS["ES256"][0], "ES256", headers={"kid": "k1"}))
        # The second time it answers itself.
        wait_until(lambda: tus.create(5, headers=token).status == 201, "the keys are there")
        assert issuer.requests == 0


async def test_it_is_asked_in_our_name(issuer: Issuer) -> None:
    issuer.keys = [jwk_of("RS256", "k1")]
    await Jwks(issuer.url, ["RS256"]).start()
    (fields,) = issuer.fields
    assert fields["User-Agent"] == f"tusd-py/{__version__}"
    assert "application/jwk-set+json" in fields["Accept"]


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_by_the_proxy_of_the_environment(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """The issuer stands for the proxy here."""
    issuer.keys = [jwk_of("RS256", "k1")]
    proxy = issuer.url.removesuffix("/jwks.json").replace("://", "://me:p%40ss@")
    monkeypatch.setenv(f"{scheme}_proxy", proxy)
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", proxy)
    url = f"{scheme}://issuer.invalid/jwks.json"
    await Jwks(url, ["RS256"]).start()
    assert issuer.paths == [url if scheme == "http" else "issuer.invalid:443"]
    assert issuer.fields[0]["Proxy-Authorization"] == "Basic bWU6cEBzcw=="
    monkeypatch.setenv("no_proxy", ".invalid")
    monkeypatch.setenv("NO_PROXY", ".invalid")
    await Jwks(url, ["RS256"]).start()
    assert len(issuer.paths) == 1


async def test_what_is_slow_is_given_up(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The time is that of all redirects together."""
    silent = socket.create_server(("127.0.0.1", 0))
    try:
        monkeypatch.setattr(jwks, "_TIMEOUT_SECONDS", 0.2)
        issuer.status, issuer.redirects = 302, 1
        issuer.location = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        await Jwks(issuer.url, ["RS256"]).start()
    finally:
        silent.close()
    assert "TimeoutError" in warnings_of(caplog)


async def test_what_is_known_is_not_good_for_ever(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.keys = [jwk_of("RS256", "k1")]
    keys = Jwks(issuer.url, ["RS256"])
    await keys.start()
    issuer.status = 500
    monkeypatch.setattr(jwks, "_MAX_AGE_SECONDS", 0.0)
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
