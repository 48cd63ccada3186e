"""URLs of a Redis: their meaning, and errors for invalid ones."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tusd_py.redis import RedisClient
from tusd_py.settings.redis_url import Address, parse


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://example.org", Address(host="example.org")),
        ("redis://example.org:6380/3", Address(host="example.org", port=6380, db=3)),
        ("redis://example.org?db=4", Address(host="example.org", db=4)),
        ("redis://[::1]:7/", Address(host="::1", port=7)),
        ("redis://:se%3Ac%2Fr%40et@h", Address(host="h", password="se:c/r@et")),
        ("redis://me:s@h", Address(host="h", username="me", password="s")),
        ("redis://h?password=s&username=me", Address(host="h", username="me", password="s")),
        ("rediss://h", Address(host="h", tls=True)),
        ("rediss://h?ssl_ca_certs=/a.pem", Address(host="h", tls=True, ca_file="/a.pem")),
        (
            "rediss://h?ssl_certfile=/c.pem&ssl_keyfile=/k.pem&ssl_cert_reqs=none",
            Address(host="h", tls=True, certificate="/c.pem", key="/k.pem", verify=False),
        ),
        ("unix:///run/redis.sock", Address(path="/run/redis.sock")),
        ("unix:///run/a%20b.sock?db=2", Address(path="/run/a b.sock", db=2)),
        ("unix://:s@/run/redis.sock", Address(path="/run/redis.sock", password="s")),
    ],
)
def test_what_a_url_means(url: str, address: Address) -> None:
    assert parse(url) == address


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "give redis://"),
        ("localhost:6379", "give redis://"),
        ("http://localhost", "give redis://"),
        ("redis://", "the host is missing"),
        ("redis://:s3cret@", "the host is missing"),
        ("redis://h:99999", "the port is wrong"),
        ("redis://h:port", "the port is wrong"),
        ("redis://h/first", "the database is a number"),
        ("redis://h/-1", "the database is a number"),
        ("redis://h/99999999999", "the database is a number"),
        ("redis://u:s3#cret@h", 'a "#" in a password is written %23'),
        ("redis://u:s3/cret@h", 'a "/" in a password is %2F'),
        ("redis://h#s3cret", 'a "#" in a password is written %23'),
        ("redis://[::1", "the port is wrong"),
        ("redis://h?timeout=3", 'there is no option "timeout"'),
        ("redis://h?s3cret@x", "there is no option"),
        ("redis://h?ssl_ca_certs=/x", 'there is no option "ssl_ca_certs"'),
        ("rediss://h?ssl_cert_reqs=optional", "required or none"),
        ("unix://run/redis.sock", "give the whole path"),
        ("unix:", "give the whole path"),
    ],
)
def test_what_is_wrong_is_told_without_the_password(url: str, told: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(url)
    assert told in str(caught.value)
    assert "s3" not in str(caught.value)
    assert "cret" not in str(caught.value)


@given(st.text())
@example("redis://\x00")
def test_any_other_text_is_an_address_or_a_sentence(text: str) -> None:
    for url in (text, f"redis://{text}", f"unix://{text}", f"rediss://h?{text}"):
        with contextlib.suppress(ValueError):
            assert str(parse(url))


def test_an_address_is_shown_without_the_password() -> None:
    for url in ("redis://me:s3cret@h:1/2", "rediss://:s3cret@h", "unix://:s3cret@/run/r?db=1"):
        address = parse(url)
        assert "s3cret" not in f"{address} {address!r}"
        assert parse(str(address)) == Address(
            path=address.path, host=address.host, port=address.port, db=address.db, tls=address.tls
        )


def test_a_state_is_not_made_for_a_wrong_url() -> None:
    with pytest.raises(ValueError, match="the host is missing"):
        RedisClient("redis://")
    RedisClient("redis://127.0.0.1:1")
