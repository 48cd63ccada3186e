"""Verification of access tokens: valid ones, their claims, and the classic attacks by a token's header."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.auth.people import ALL, SECRET, access, claims, forged, upload_token
from tusd_py.auth.access_tokens import AccessTokens
from tusd_py.auth.build import scope_names
from tusd_py.auth.keys import Keys
from tusd_py.auth.keys.jwks import Jwks
from tusd_py.auth.keys.secrets import Secret, SharedSecrets, parse, read
from tusd_py.auth.principal import Limits, Right
from tusd_py.auth.upload_tokens import BadToken
from tusd_py.settings.model import Settings

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
RSA = rsa.generate_private_key(65537, 2048)
KEYS: dict[str, tuple[PrivateKey, Callable[..., str | dict[str, object]]]] = {
    "RS256": (RSA, jwt.algorithms.RSAAlgorithm.to_jwk),
    "PS256": (RSA, jwt.algorithms.RSAAlgorithm.to_jwk),
    "ES256": (ec.generate_private_key(ec.SECP256R1()), jwt.algorithms.ECAlgorithm.to_jwk),
    "EdDSA": (ed25519.Ed25519PrivateKey.generate(), jwt.algorithms.OKPAlgorithm.to_jwk),
}


def jwk_of(algorithm: str, kid: object = None, **more: object) -> dict[str, object]:
    key, to_jwk = KEYS[algorithm]
    text = to_jwk(key.public_key())
    assert isinstance(text, str)
    document: dict[str, object] = {**json.loads(text), **more}
    document.pop("key_ops", None)
    return document if kid is None else {**document, "kid": kid}


def key_set(tmp_path: Path, *keys: Mapping[str, object]) -> str:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": keys}))
    return str(file)


def with_secret(**settings: object) -> AccessTokens:
    return verifier(SharedSecrets([Secret(None, SECRET.encode())]), **settings)


def with_keys(source: str, *algorithms: str) -> AccessTokens:
    return verifier(Jwks(source, algorithms), *algorithms)


def verifier(keys: Keys, *algorithms: str, **given: object) -> AccessTokens:
    settings = Settings(**given)  # type: ignore[arg-type]
    rights = {name: right for right, name in scope_names(settings).items()}
    return AccessTokens(keys, settings, algorithms=algorithms or ("HS256",), rights=rights)


async def test_a_good_token_says_who_it_is() -> None:
    principal = await with_secret().verify(
        access("alice", "uploads:create profile uploads:read", max_upload_size=5)
    )
    assert principal.owner == "alice"
    assert principal.rights == {Right.CREATE, Right.READ}
    assert principal.limits == Limits(max_upload_size=5)
    assert principal.issued_at == pytest.approx(time.time(), abs=60)


async def test_scopes_may_be_a_list_under_another_name_with_other_names() -> None:
    tokens = with_secret(jwt_scope_claim="scp", scope_create="write")
    principal = await tokens.verify(access(scp=["write", "uploads:create", 5]))
    assert principal.rights == {Right.CREATE}


async def test_owners_of_two_tenants_are_never_the_same() -> None:
    tokens = with_secret(jwt_owner_claims=("tenant", "sub"))
    owners = {
        (await tokens.verify(access(sub, tenant=tenant))).owner
        for tenant, sub in (("a", "b/c"), ("a/b", "c"), ("a%2Fb", "c"), ("a", "b%2Fc"))
    }
    assert len(owners) == 4


@pytest.mark.parametrize(
    "more",
    [
        {"exp": int(time.time()) - 60},
        {"exp": None},
        # They are made long before the test runs.
        {"nbf": int(time.time()) + 86_400},
        {"iat": int(time.time()) + 86_400},
        {"iat": -(10**400)},
        {"iat": -1},
        {"iat": True},
        {"iat": float("nan")},
        {"iat": float("-inf")},
        {"exp": float("inf")},
        {"exp": -(10**400)},
        {"nbf": 10**400},
        {"sub": None},
        {"sub": ""},
        {"sub": True},
        {"sub": 5.0},
        {"sub": 10**50},
        {"sub": ["alice"]},
        {"sub": {"id": 5}},
        {"sub": "a\nb"},
        {"sub": "\ud800"},
        {"sub": "a" * 300},
        {"max_upload_size": -1},
        {"max_upload_size": "5"},
        {"max_open_uploads": True},
        {"max_upload_size": 10**400},
        {"quota_bytes": float("inf")},
        {"aud": "somebody else"},
    ],
    ids=lambda more: next(iter(more)),
)
async def test_a_token_is_refused_that_has_run_out_or_cannot_be_understood(
    more: dict[str, object],
) -> None:
    with pytest.raises(BadToken):
        await with_secret().verify(access(**more))


@pytest.mark.parametrize(
    ("sub", "owner"),
    [(5, "5"), (0, "0"), (-7, "-7"), (2**64, "18446744073709551616"), ("5", "5")],
)
async def test_a_number_is_an_owner_as_its_digits(sub: object, owner: str) -> None:
    assert (await with_secret().verify(access(sub))).owner == owner
    both = with_secret(jwt_owner_claims=("tenant", "sub"))
    assert (await both.verify(access(sub, tenant=12))).owner == f"12/{owner}"


@pytest.mark.parametrize("sub", [5.0, True, [5], {}])
async def test_an_owner_that_is_no_text_is_refused_with_the_claims_name(sub: object) -> None:
    token = forged({"alg": "HS256"}, {**claims(), "sub": sub}, SECRET.encode())
    with pytest.raises(BadToken, match="sub"):
        await with_secret().verify(token)


async def test_a_number_may_name_a_token() -> None:
    assert (await with_secret().verify(access(jti=17))).owner == "alice"


@pytest.mark.parametrize(
    ("expected", "good", "bad"),
    [
        ({"jwt_issuer": "https://id"}, {"iss": "https://id"}, [{}, {"iss": "https://id/"}]),
        ({"jwt_audience": ("us",)}, {"aud": ["x", "us"]}, [{}, {"aud": "them"}, {"aud": "USA"}]),
        ({"jwt_required_claims": ("jti",)}, {"jti": "1"}, [{}]),
    ],
    ids=["issuer", "audience", "required"],
)
async def test_issuer_audience_and_required_claims(
    expected: dict[str, object], good: dict[str, object], bad: list[dict[str, object]]
) -> None:
    tokens = with_secret(**expected)
    assert (await tokens.verify(access(**good))).owner == "alice"
    for more in bad:
        with pytest.raises(BadToken):
            await tokens.verify(access(**more))


async def test_the_leeway_is_for_clocks_that_differ() -> None:
    late = access(exp=int(time.time()) - 5)
    assert (await with_secret(jwt_leeway=30.0).verify(late)).owner == "alice"
    with pytest.raises(BadToken, match="expired"):
        await with_secret(jwt_leeway=0.0).verify(late)


# Secrets


async def test_of_several_secrets_the_kid_tells_which() -> None:
    other = "o" * 40
    keys = SharedSecrets(parse(f"# both count\nold {SECRET}\n\nnew {other}\n", "file"))
    tokens = verifier(keys)
    for kid, secret in (("old", SECRET), ("new", other)):
        token = forged({"alg": "HS256", "kid": kid}, claims(), secret.encode())
        assert (await tokens.verify(token)).owner == "alice"
        wrong = forged({"alg": "HS256", "kid": kid}, claims(), b"w" * 40)
        with pytest.raises(BadToken):
            await tokens.verify(wrong)
    with pytest.raises(BadToken):
        await tokens.verify(forged({"alg": "HS256", "kid": "third"}, claims(), SECRET.encode()))


@pytest.mark.parametrize("text", ["", "# none", "short", "a b c", f"a {SECRET}\na {SECRET}"])
def test_a_weak_or_unclear_secret_is_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=r"^the file") as raised:
        parse(text, "the file")
    assert SECRET not in str(raised.value)
    assert "short" not in str(raised.value)


@pytest.mark.parametrize("text", ["{secret}", "{secret}\r\n", "old {secret}\r\nnew {secret}2\r\n"])
def test_a_byte_order_mark_is_no_part_of_a_secret(text: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"\xef\xbb\xbf" + text.format(secret=SECRET).encode())
    plain = tmp_path / "plain"
    plain.write_text(text.format(secret=SECRET), encoding="utf-8")
    found = read(file, "the file")
    assert found == read(plain, "the file")
    assert found[0].value == SECRET.encode()
    assert found[0].kid in (None, "old")


# Public keys


@pytest.mark.parametrize("algorithm", KEYS)
async def test_public_keys_of_every_kind(algorithm: str, tmp_path: Path) -> None:
    tokens = with_keys(key_set(tmp_path, jwk_of(algorithm, "k1")), algorithm)
    token = jwt.encode(claims(), KEYS[algorithm][0], algorithm, headers={"kid": "k1"})
    assert (await tokens.verify(token)).owner == "alice"
    # Neither with another name nor by another algorithm that this kind of key could have.
    with pytest.raises(BadToken):
        await tokens.verify(jwt.encode(claims(), KEYS[algorithm][0], algorithm, {"kid": "k2"}))


async def test_only_the_algorithm_of_the_settings_counts(tmp_path: Path) -> None:
    tokens = with_keys(key_set(tmp_path, jwk_of("RS256")), "RS256")
    with pytest.raises(BadToken, match="algorithm"):
        await tokens.verify(jwt.encode(claims(), RSA, "PS256"))


@pytest.mark.parametrize(
    "more", [{"use": "enc"}, {"alg": "RS512"}, {"kty": "oct", "k": "AAAA"}, {"n": "AQAB"}], ids=str
)
async def test_keys_for_something_else_are_not_used(
    more: dict[str, object], tmp_path: Path
) -> None:
    good = jwk_of("ES256", "other")
    tokens = with_keys(key_set(tmp_path, jwk_of("RS256", **more), good), "RS256", "ES256")
    with pytest.raises(BadToken):
        await tokens.verify(jwt.encode(claims(), RSA, "RS256"))


# The classic attacks


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", None, 5, ["HS256"]])
async def test_alg_none(algorithm: object) -> None:
    for key in (b"", SECRET.encode()):
        with pytest.raises(BadToken):
            await with_secret().verify(forged({"alg": algorithm}, claims(), key))


async def test_hs256_with_the_public_key(tmp_path: Path) -> None:
    source = key_set(tmp_path, jwk_of("RS256", "k1"))
    public = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for key in (public, public.strip(), json.dumps(jwk_of("RS256", "k1")).encode()):
        for kid in ({}, {"kid": "k1"}):
            with pytest.raises(BadToken):
                await with_keys(source, "RS256").verify(
                    forged({"alg": "HS256", **kid}, claims(), key)
                )


@pytest.mark.parametrize(
    "kid", ["../../dev/null", "/dev/null", "http://127.0.0.1:1/k", "' OR 1=1", ""]
)
async def test_kid_as_a_path_or_a_url_is_only_a_name(kid: str, tmp_path: Path) -> None:
    named = SharedSecrets([Secret("k1", SECRET.encode())])
    for key in (b"", b"\0", SECRET.encode()):
        token = forged({"alg": "HS256", "kid": kid}, claims(), key)
        with pytest.raises(BadToken):
            await verifier(named).verify(token)
    token = jwt.encode(claims(), RSA, "RS256", headers={"kid": kid})
    with pytest.raises(BadToken):
        await with_keys(key_set(tmp_path, jwk_of("RS256", "k1")), "RS256").verify(token)


@pytest.mark.parametrize("field", ["jku", "x5u", "jwk", "x5c"])
async def test_a_key_that_the_token_brings_is_not_looked_at(field: str, tmp_path: Path) -> None:
    evil = rsa.generate_private_key(65537, 2048)
    theirs: object = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(evil.public_key()))
    value = {"jwk": theirs, "x5c": ["AAAA"]}.get(field, "http://127.0.0.1:1/jwks.json")
    token = jwt.encode(claims(), evil, "RS256", headers={field: value, "kid": "k1"})
    with pytest.raises(BadToken, match="signature"):
        await with_keys(key_set(tmp_path, jwk_of("RS256", "k1")), "RS256").verify(token)


async def test_an_upload_token_is_no_access_token() -> None:
    with pytest.raises(BadToken, match="upload token"):
        await with_secret(jwt_audience=("tusd-py:upload",)).verify(upload_token("u1"))
    # Nor is one that hides its type: it is signed with another key.
    body = upload_token("u1").split(".")
    disguised = forged({"alg": "HS256"}, claims(), b"k" * 32).split(".")[0]
    with pytest.raises(BadToken):
        await with_secret().verify(f"{disguised}.{body[1]}.{body[2]}")


@pytest.mark.parametrize(
    "token", ["", "a", "a.b", "a.b.c", "....", "e30.e30.", "a" * 9000, "é.é.é"]
)
async def test_what_is_no_token(token: str) -> None:
    with pytest.raises(BadToken):
        await with_secret().verify(token)


async def test_a_critical_extension_is_not_ignored() -> None:
    header = {"alg": "HS256", "crit": ["b64"], "b64": False}
    with pytest.raises(BadToken):
        await with_secret().verify(forged(header, claims(scope=ALL), SECRET.encode()))
