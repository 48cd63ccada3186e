"""The classic attacks on token verification, against real servers: 401, and nothing is stored, disclosed or fetched."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.auth.people import SECRET, access, bearer, claims, forged, upload_tokens
from tests.auth.test_verify import RSA, jwk_of
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, path_of

REFRESH, REVOKE = "/auth/refresh-upload-token", "/auth/revoke"
PUBLIC = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
FOREIGN = rsa.generate_private_key(65537, 2048)
AUDIENCE = "uploads.example"


class Trap:
    """A key set of the attacker's at a URL. requests: what was asked of it, which must be nothing."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        trap = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                trap.requests.append(self.path)
                theirs = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(FOREIGN.public_key()))
                body = json.dumps({"keys": [{**theirs, "kid": "theirs"}]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/jwks.json"


@pytest.fixture(scope="module")
def trap() -> Iterator[Trap]:
    found = Trap()
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


@dataclass(frozen=True)
class Victim:
    """A server, and Alice's unfinished upload on it."""

    tus: Tus
    path: str
    good: Callable[[], str]


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """A server that verifies tokens with a shared secret."""
    directory = tmp_path_factory.mktemp("secret") / "uploads"
    flags = ("--auth", "jwt", "--jwt-audience", AUDIENCE)
    with ServerProcess(directory, *flags, env={"TUSD_JWT_SECRET": SECRET}) as server:
        yield _victim(server, lambda: access(aud=AUDIENCE))


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """A server that verifies tokens with a key set."""
    directory = tmp_path_factory.mktemp("public")
    keys = directory / "jwks.json"
    keys.write_text(json.dumps({"keys": [jwk_of("RS256", "k1")]}))
    flags = ("--auth", "jwt", "--jwt-jwks", str(keys), "--jwt-audience", AUDIENCE)
    with ServerProcess(directory / "uploads", *flags) as server:
        yield _victim(server, lambda: _signed("k1"))


def _victim(server: ServerProcess, good: Callable[[], str]) -> Victim:
    tus = Tus(server)
    return Victim(tus, tus.new(10, headers=bearer(good())), good)


def _signed(kid: str, key: rsa.RSAPrivateKey = RSA, **header: object) -> str:
    more = {"kid": kid, **header}
    return jwt.encode(claims(aud=AUDIENCE), key, "RS256", headers=more)


def mine(**more: object) -> dict[str, object]:
    """Claims that would be good, by anyone who may sign them."""
    return claims(aud=AUDIENCE, **more)


ATTACKS: dict[str, Callable[[Trap], str]] = {
    "alg none": lambda _: forged({"alg": "none", "typ": "JWT"}, mine()),
    "alg none with a kid": lambda _: forged({"alg": "None", "kid": "k1"}, mine()),
    "HS256 with the public key": lambda _: forged({"alg": "HS256", "kid": "k1"}, mine(), PUBLIC),
    "HS256 with the published key": lambda _: forged(
        {"alg": "HS256", "kid": "k1"}, mine(), json.dumps(jwk_of("RS256", "k1")).encode()
    ),
    "kid as a path to something empty": lambda _: forged(
        {"alg": "HS256", "kid": "../../../../dev/null"}, mine(), b"\0"
    ),
    "kid as a path": lambda _: _signed("/etc/passwd"),
    "kid as a URL": lambda trap: _signed(trap.url, FOREIGN),
    "jku": lambda trap: _signed("theirs", FOREIGN, jku=trap.url),
    "jku with our kid": lambda trap: _signed("k1", FOREIGN, jku=trap.url),
    "x5u": lambda trap: _signed("k1", FOREIGN, x5u=trap.url),
    "a key of its own": lambda _: _signed(
        "k1", FOREIGN, jwk=json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(FOREIGN.public_key()))
    ),
}


def assert_refused(victim: Victim, token: str) -> None:
    """Nothing can be done with it, whatever is asked, and nothing changes."""
    tus, path, headers = victim.tus, victim.path, bearer(token)
    before = sorted(file.name for file in tus.server.upload_dir.iterdir())
    document = json.dumps({"upload_id": id_of(path)}).encode()
    tus_headers = {"Tus-Resumable": "1.0.0", **headers}
    answers = [
        tus.create(5, body=b"12345", headers=headers),
        tus.head(path, headers),
        tus.patch(path, 0, b"12345", headers),
        tus.request("GET", path, tus_headers),
        tus.delete(path, headers),
        tus.request("POST", REFRESH, headers, document),
        tus.request("POST", REVOKE, headers, document),
    ]
    for answer in answers:
        assert answer.status == 401, answer
        assert 'error="invalid_token"' in answer["WWW-Authenticate"]
        assert "Upload-Offset" not in answer
    assert sorted(file.name for file in tus.server.upload_dir.iterdir()) == before
    assert tus.head(path, bearer(victim.good()))["Upload-Offset"] == "0"


@pytest.mark.parametrize("attack", ATTACKS)
def test_on_a_server_with_a_key_set(public: Victim, trap: Trap, attack: str) -> None:
    assert_refused(public, ATTACKS[attack](trap))
    assert trap.requests == []


@pytest.mark.parametrize("attack", ATTACKS)
def test_on_a_server_with_a_secret(secret: Victim, trap: Trap, attack: str) -> None:
    assert_refused(secret, ATTACKS[attack](trap))
    assert trap.requests == []


@pytest.mark.parametrize("audience", ["another.example", None, ["a", "b"]])
def test_a_token_for_another_audience(secret: Victim, audience: object) -> None:
    assert_refused(secret, access(aud=audience))


@pytest.mark.parametrize("issued_at", [-(10**400), True, -1], ids=["huge", "bool", "negative"])
def test_a_time_of_issue_that_is_none(secret: Victim, issued_at: int) -> None:
    """A float cannot hold the first, which was a 500."""
    token = forged({"alg": "HS256"}, mine(iat=issued_at), SECRET.encode())
    assert_refused(secret, token)


def test_an_upload_token_is_no_access_token(secret: Victim) -> None:
    """It cannot create or revoke, and is invalid if it pretends to be an access token."""
    tus = secret.tus
    answer = tus.create(5, headers=bearer(secret.good()))
    token, path = answer["Upload-Token"], path_of(answer["Location"])
    assert tus.create(5, headers=bearer(token)).status == 403
    body = json.dumps({"owner": "alice"}).encode()
    assert tus.request("POST", REVOKE, bearer(token), body).status == 403
    assert tus.head(secret.path, bearer(token)).status == 404
    # The same claims and signature under a header without its type; and with the audience of access tokens.
    header, payload, signature = token.split(".")
    plain = forged({"alg": "HS256", "typ": "JWT"}, {}).split(".")[0]
    assert_refused(secret, f"{plain}.{payload}.{signature}")
    assert_refused(secret, f"{header}.{payload}.{signature[:-4]}AAAA")
    assert tus.head(path, bearer(token)).status == 200


def test_an_access_token_is_no_upload_token(secret: Victim) -> None:
    """Whoever has the integrator's secret signs access tokens with it, not upload tokens."""
    upload_id = id_of(secret.path)
    real = jwt.get_unverified_header(upload_tokens().issue(upload_id, "alice").token)
    now = time.time()
    theirs = {
        "aud": "tusd-py:upload",
        "sub": "alice",
        "upload": upload_id,
        "iat": now,
        "exp": now + 60,
    }
    assert_refused(secret, forged(real, theirs, SECRET.encode()))
    for token in (access(aud=AUDIENCE), forged(real, theirs, SECRET.encode())):
        answer = secret.tus.head(secret.path, {"Upload-Token": token})
        assert answer.status == 401


def test_replay_after_revocation(secret: Victim) -> None:
    """Every token that an owner ever had, also those that were renewed, and by the field for parts."""
    tus = secret.tus
    owner = access("mallory", aud=AUDIENCE)
    answer = tus.create(10, headers=bearer(owner))
    path, first = path_of(answer["Location"]), answer["Upload-Token"]
    renewed = json.loads(tus.request("POST", REFRESH, bearer(first)).body)["upload_token"]
    body = json.dumps({"owner": "mallory"}).encode()
    assert tus.request("POST", REVOKE, bearer(owner), body).status == 204
    for token in (owner, first, renewed):
        assert tus.head(path, bearer(token)).status == 401
        assert tus.patch(path, 0, b"12345", bearer(token)).status == 401
        assert tus.create(5, headers=bearer(token)).status == 401
    for token in (first, renewed):
        assert tus.head(path, {"Upload-Token": token}).status == 401
        assert tus.request("POST", REFRESH, bearer(token)).status == 401
    admin = bearer(access("root", "uploads:admin", aud=AUDIENCE))
    assert tus.head(path, admin)["Upload-Offset"] == "0"


@pytest.mark.parametrize("form", ["{path}", "https://other.example/app{path}", "/files{path}"])
def test_a_part_of_somebody_else_is_not_joined_by_whatever_url(secret: Victim, form: str) -> None:
    tus = secret.tus
    fields = {**bearer(secret.good()), "Upload-Concat": "partial"}
    part = path_of(tus.create(3, headers=fields, body=b"abc")["Location"])
    final = {"Upload-Concat": f"final;{form.format(path=part)}"}
    theirs = access("eve", aud=AUDIENCE)
    assert tus.create(headers={**bearer(theirs), **final}).status == 404
    assert tus.create(headers={**bearer(secret.good()), **final}).status == 201
