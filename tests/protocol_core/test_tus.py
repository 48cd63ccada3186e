"""Commands from header fields, for all header fields: parsed, or refused with a 4xx; never else."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol_core.attempts import attempt
from tusd_py.protocol import tus
from tusd_py.protocol.concat import Final
from tusd_py.protocol.errors import ProtocolError

FIELDS = [
    "tus-resumable",
    "upload-length",
    "upload-defer-length",
    "upload-offset",
    "upload-metadata",
    "upload-concat",
    "upload-checksum",
    "content-type",
    "content-length",
    "transfer-encoding",
    "trailer",
    "x-http-method-override",
]
PLAUSIBLE = [
    "",
    "0",
    "1",
    "5",
    "-1",
    "1.0.0",
    "0.2.2",
    "partial",
    "final;/files/a /files/b",
    "final;",
    "a YQ==",
    "a,a",
    "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00=",
    "sha1 AAAA",
    "md4 AAAA",
    tus.MEDIA_TYPE,
    f"{tus.MEDIA_TYPE}; charset=utf-8",
    "chunked",
    "Upload-Checksum",
    "PATCH",
    "patch",
    "TRACE",
    "5, 5",
]
latin = st.text(alphabet=[chr(code) for code in range(1, 256)], max_size=20)
fields = st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(PLAUSIBLE) | latin)


@given(fields)
def test_a_creation_is_parsed_or_refused(headers: dict[str, str]) -> None:
    creation = attempt(tus.parse_creation, headers, max_parts=10)
    if isinstance(creation, ProtocolError):
        assert creation.status in {400, 415}
        assert creation.message.isprintable()
    elif isinstance(creation.concat, Final):
        assert creation.length is None
        assert "upload-length" not in headers
    elif creation.length is None:
        assert headers["upload-defer-length"] == "1"
        assert "upload-length" not in headers
    else:
        assert int(headers["upload-length"]) == creation.length
        assert "upload-defer-length" not in headers


@given(fields)
def test_an_append_is_parsed_or_refused(headers: dict[str, str]) -> None:
    append = attempt(tus.parse_append, headers)
    if isinstance(append, ProtocolError):
        assert append.status in {400, 415}
        assert append.message.isprintable()
        return
    assert headers["content-type"].lower().startswith(tus.MEDIA_TYPE)
    assert int(headers["upload-offset"]) == append.offset
    assert (append.length is None) == ("upload-length" not in headers)
    assert append.content.verified or "upload-checksum" not in headers


@given(st.sampled_from(["POST", "PATCH", "DELETE", "HEAD", "GET", "OPTIONS", "PUT"]), fields)
def test_T2_only_the_version_that_is_spoken_passes(method: str, headers: dict[str, str]) -> None:
    given_version = headers.get("tus-resumable")
    needs_it = method in {"POST", "PATCH", "DELETE"}
    refusal = attempt(tus.check_version, method, headers)
    if refusal is not None:
        assert refusal.status == 412
        assert refusal.headers["Tus-Version"] == "1.0.0"
        assert given_version != "1.0.0"
        assert method != "OPTIONS"
    else:
        assert given_version == "1.0.0" or not needs_it


@given(st.sampled_from(["POST", "PATCH", "DELETE", "HEAD", "GET", "OPTIONS"]), fields)
def test_T5_only_a_post_can_stand_for_another_method(method: str, headers: dict[str, str]) -> None:
    override = headers.get("x-http-method-override")
    effective = attempt(tus.effective_method, method, headers)
    if isinstance(effective, ProtocolError):
        assert (effective.status, method) == (400, "POST")
    elif method != "POST" or override is None:
        assert effective == method
    else:
        assert effective == override.upper()


@given(st.dictionaries(st.just("upload-checksum"), st.sampled_from(PLAUSIBLE) | latin))
def test_T28_a_trailing_checksum_is_parsed_or_refused(trailers: dict[str, str]) -> None:
    checksum = attempt(tus.trailing_checksum, trailers)
    if isinstance(checksum, ProtocolError):
        assert checksum.status == 400
    else:
        assert checksum.digest


@given(st.integers(0, 4_000_000_000))
def test_T24_the_expiry_is_an_imf_fixdate(moment: int) -> None:
    value = tus.expires_header(float(moment))["Upload-Expires"]
    assert parsedate_to_datetime(value) == datetime.fromtimestamp(moment, UTC)
    assert len(value) == len("Sun, 06 Nov 1994 08:49:37 GMT")
    assert value.endswith(" GMT")


def test_T24_what_does_not_expire_has_no_such_field() -> None:
    assert tus.expires_header(None) == {}


@pytest.mark.parametrize("max_size", [0, 5])
def test_T3_options(max_size: int) -> None:
    headers = tus.options_headers(["creation", "checksum"], max_size=max_size)
    assert headers["Tus-Extension"] == "creation,checksum"
    assert headers["Tus-Version"] == "1.0.0"
    assert headers.get("Tus-Max-Size") == ("5" if max_size else None)
    assert "sha1" in headers["Tus-Checksum-Algorithm"].split(",")
    assert "Tus-Checksum-Algorithm" not in tus.options_headers(["creation"], max_size=0)
