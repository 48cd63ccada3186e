"""The CORS fields of responses, with plain values."""

from __future__ import annotations

import time

import pytest

from tusd_py.web.cors import CORS


def cors(
    allow_origin: str = ".*",
    *,
    allow_credentials: bool = False,
    allow_methods: str = "",
    allow_headers: str = "",
    expose_headers: str = "",
    max_age: str = "86400",
) -> CORS:
    return CORS(
        allow_origin=allow_origin,
        allow_credentials=allow_credentials,
        allow_methods=allow_methods,
        allow_headers=allow_headers,
        expose_headers=expose_headers,
        max_age=max_age,
    )


def fields(policy: CORS, origin: bytes | None, *, preflight: bool = False) -> dict[str, str]:
    raw = policy.headers_for(origin, preflight=preflight)
    names = [name for name, _ in raw]
    assert len(names) == len(set(names)), "a field came twice"
    assert all(name == name.lower() for name in names)
    return {name.decode(): value.decode() for name, value in raw}


def listed(value: str) -> set[str]:
    return {name.strip().lower() for name in value.split(",")}


def test_a_request_without_origin_gets_nothing() -> None:
    assert fields(cors(), None) == {}
    assert fields(cors(), None, preflight=True) == {}


def test_the_origin_is_named_and_caches_are_told() -> None:
    got = fields(cors(), b"https://example.com")
    assert got["access-control-allow-origin"] == "https://example.com"
    assert got["vary"] == "Origin"
    assert "access-control-allow-credentials" not in got
    assert "access-control-allow-methods" not in got


def test_with_credentials_the_origin_is_never_a_star() -> None:
    policy = cors(allow_credentials=True)
    for preflight in (False, True):
        got = fields(policy, b"https://example.com", preflight=preflight)
        assert got["access-control-allow-origin"] == "https://example.com"
        assert got["access-control-allow-credentials"] == "true"
        assert got["vary"] == "Origin"


def test_a_preflight_tells_methods_headers_and_age() -> None:
    got = fields(cors(), b"https://example.com", preflight=True)
    assert got["access-control-allow-methods"] == "POST, PUT, HEAD, PATCH, OPTIONS, GET, DELETE"
    assert got["access-control-max-age"] == "86400"
    assert listed(got["access-control-allow-headers"]) >= {
        "authorization",
        "x-requested-with",
        "x-request-id",
        "x-http-method-override",
        "origin",
        "content-type",
        "content-length",
        "upload-length",
        "upload-offset",
        "tus-resumable",
        "upload-metadata",
        "upload-defer-length",
        "upload-concat",
        "upload-checksum",
        "upload-incomplete",
        "upload-complete",
        "upload-draft-interop-version",
        "upload-force",
        "range",
        "if-range",
    }


def test_everything_that_a_client_needs_to_resume_is_exposed() -> None:
    got = fields(cors(), b"https://example.com")
    assert listed(got["access-control-expose-headers"]) >= {
        "upload-offset",
        "location",
        "upload-length",
        "tus-version",
        "tus-resumable",
        "tus-max-size",
        "tus-extension",
        "tus-checksum-algorithm",
        "upload-metadata",
        "upload-defer-length",
        "upload-concat",
        "upload-expires",
        "upload-complete",
        "upload-incomplete",
        "upload-limit",
        "upload-draft-interop-version",
        "upload-token",
        "upload-token-expires",
        "retry-after",
        "content-disposition",
        "content-range",
        "accept-ranges",
        "etag",
        "x-request-id",
    }


def test_names_are_added_to_the_usual_ones_once() -> None:
    policy = cors(
        allow_methods="QUERY, post",
        allow_headers="X-Study, content-type,, X-Study",
        expose_headers="X-Seen",
        max_age="5",
    )
    preflight = fields(policy, b"https://a.example", preflight=True)
    assert preflight["access-control-allow-methods"].endswith(", DELETE, QUERY")
    assert preflight["access-control-allow-headers"].endswith(", X-Study")
    assert preflight["access-control-allow-headers"].count("X-Study") == 1
    assert preflight["access-control-max-age"] == "5"
    exposed = fields(policy, b"https://a.example")["access-control-expose-headers"]
    assert exposed.endswith(", X-Seen")


@pytest.mark.parametrize(
    "origin",
    [
        b"https://evil-example.com",
        b"https://example.com.evil.net",
        b"https://exampleXcom",
        b"http://example.com",
        b"https://example.com:8443",
        b"https://example.com\n",
        b"",
        b"null",
    ],
)
def test_an_expression_must_match_the_whole_origin(origin: bytes) -> None:
    policy = cors(r"https://example\.com")
    assert fields(policy, b"https://example.com")
    assert fields(policy, origin) == {}
    assert fields(policy, origin, preflight=True) == {}


def test_alternatives_are_held_to_the_whole_origin_too() -> None:
    policy = cors(r"https://a\.example|https://b\.example")
    assert fields(policy, b"https://a.example")
    assert fields(policy, b"https://b.example")
    assert fields(policy, b"https://a.example.evil.net") == {}


@pytest.mark.parametrize(
    "origin", [b"https://a\r\nset-cookie: x", b"https://\xff", b"a b", b"h" * 513]
)
def test_what_no_browser_sends_is_not_echoed(origin: bytes) -> None:
    assert fields(cors(), origin) == {}


def test_lists_given_out_are_not_shared() -> None:
    policy = cors()
    policy.headers_for(b"https://a.example", preflight=False).clear()
    assert fields(policy, b"https://a.example")


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"'\(' is not a regular expression"):
        cors("(")
    with pytest.raises(ValueError, match="'1 day' is not a number of seconds"):
        cors(max_age="1 day")
    with pytest.raises(ValueError, match="'X Y' is not the name"):
        cors(allow_headers="X Y")
    with pytest.raises(ValueError, match="is not the name"):
        cors(expose_headers="X\r\nSet-Cookie")


def test_a_request_costs_little() -> None:
    policy = cors(r"https://([a-z]+\.)?example\.com")
    began = time.thread_time()
    for _ in range(10_000):
        policy.headers_for(b"https://www.example.com", preflight=False)
    assert time.thread_time() - began < 1, "10,000 requests take some 20 ms"
