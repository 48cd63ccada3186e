"""Upload tokens: valid for one upload and a limited time, signed with a key of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.auth.people import GRACE, SECRET, TTL, access, forged, upload_token, upload_tokens
from tusd_py.auth.keys import secrets
from tusd_py.auth.upload_tokens import TYPE, BadToken, UploadTokens


def test_a_token_is_for_the_upload_that_it_was_issued_for() -> None:
    upload_id, grant = upload_tokens().verify(upload_token("u1", "alice"))
    assert (upload_id, grant.owner) == ("u1", "alice")


@pytest.mark.parametrize(
    ("age", "counts", "counts_in_grace"),
    [(0, True, True), (TTL - 2, True, True), (TTL, False, True), (TTL + GRACE, False, False)],
)
def test_it_runs_out_and_can_be_renewed_for_a_while(
    age: float, counts: bool, counts_in_grace: bool
) -> None:
    now = 1_800_000_000.0
    token = upload_tokens(age, now).issue("u1", "alice").token
    for grace, expected in ((False, counts), (True, counts_in_grace)):
        if expected:
            upload_tokens(now=now).verify(token, grace=grace)
        else:
            with pytest.raises(BadToken, match="expired"):
                upload_tokens(now=now).verify(token, grace=grace)


def test_an_access_token_is_no_upload_token() -> None:
    """This includes one with the claims of an upload token, signed with the integrator's secret."""
    [key] = secrets.derived(secrets.parse(SECRET, "test"))
    claims = {"aud": "tusd-py:upload", "sub": "a", "upload": "u1", "iat": 1, "exp": 2**40}
    for token in (
        access(),
        forged({"alg": "HS256", "typ": TYPE, "kid": key.kid}, claims, SECRET.encode()),
        forged({"alg": "none", "typ": TYPE, "kid": key.kid}, claims),
        forged({"alg": "HS256", "typ": "JWT", "kid": key.kid}, claims, key.value),
        forged({"alg": "HS256", "typ": TYPE, "kid": "x"}, claims, key.value),
        forged({"alg": "HS256", "typ": TYPE, "kid": key.kid}, {**claims, "aud": "x"}, key.value),
        forged({"alg": "HS256", "typ": TYPE, "kid": key.kid}, {"upload": "u1"}, key.value),
        *(
            forged({"alg": "HS256", "typ": TYPE, "kid": key.kid}, {**claims, **wrong}, key.value)
            for wrong in ({"exp": 10**400}, {"iat": -(10**400)}, {"auth_time": float("nan")})
        ),
    ):
        with pytest.raises(BadToken):
            upload_tokens().verify(token)
    good = forged({"alg": "HS256", "typ": TYPE, "kid": key.kid}, claims, key.value)
    assert upload_tokens().verify(good)[0] == "u1"


def test_keys_can_be_changed_without_a_break() -> None:
    old, both, new = (
        UploadTokens(secrets.derived(secrets.parse(text, "test")), ttl=60, grace=60)
        for text in (f"a {SECRET}", f"b {'n' * 40}\na {SECRET}", f"b {'n' * 40}")
    )
    assert both.verify(old.issue("u1", "alice").token)[0] == "u1"
    assert new.verify(both.issue("u1", "alice").token)[0] == "u1"
    with pytest.raises(BadToken):
        new.verify(old.issue("u1", "alice").token)


def test_a_kept_key_is_made_once_and_read_by_nobody_else(tmp_path: Path) -> None:
    file = tmp_path / "state" / "upload-token.key"
    first, second = secrets.kept(file), secrets.kept(file)
    assert first == second
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(file.parent.iterdir()) == [file]
