"""The differences listed in docs/from-tusd.md exist."""

from __future__ import annotations

import re

import pytest

from tests.conftest import MakeServer
from tests.support.server import ROOT
from tests.support.settings import load
from tests.support.tus import Tus
from tests.support.wire import Connection
from tusd_py.cli.tusd_flags import IN_PLACE_OF
from tusd_py.settings.load import SettingsError
from tusd_py.settings.model import Settings
from tusd_py.settings.reference import catalogue

PAGE = (ROOT / "docs" / "from-tusd.md").read_text(encoding="utf-8")
FLAG = re.compile(r"`(--[a-z0-9-]+[a-z0-9])`")
PREFIXES = ("--gcs-object-prefix", "--azure-storage", "--hooks-grpc-retry")
"""Of the flags that the page tells by how they begin, one each."""


def paragraph(beginning: str) -> str:
    start = PAGE.index(beginning)
    return PAGE[start : PAGE.index("\n\n", start)]


def test_flags_that_mean_the_same_exist() -> None:
    told = FLAG.findall(paragraph("These mean the same:"))
    assert len(told) > 30
    assert set(told) <= {each.flag for each in catalogue(Settings)}


def test_flags_that_do_not_exist_are_refused() -> None:
    told = set(FLAG.findall(paragraph("These do not exist here")))
    assert told >= {*IN_PLACE_OF}
    assert len(told) > 10
    for flag in (*IN_PLACE_OF, *PREFIXES):
        for written in (flag, flag[1:]):
            with pytest.raises(SettingsError, match=f"{written} is a flag of tusd that does not"):
                load([written, "1"], {})


def raw(tus: Tus, request: bytes) -> bytes:
    with Connection(tus.server.address) as connection:
        connection.send(request)
        return connection.read_to_end().split(b"\r\n")[0]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"OPTIONS /files/ HTTP/1.1\nHost: a\n\n",
        b"OPTIONS /files/ HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
        (
            b"POST /files/ HTTP/1.1\r\nHost: a\r\nTus-Resumable: 1.0.0\r\nUpload-Length: 5\r\n"
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
    ],
    ids=["bare LF", "bare LF in a field", "two lengths"],
)
def test_framing_that_two_could_read_differently(tus: Tus, request_bytes: bytes) -> None:
    assert raw(tus, request_bytes) == b"HTTP/1.1 400 Bad Request"


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "PATCH"])
def test_methods_are_overridden_on_post_alone(tus: Tus, method: str) -> None:
    path = tus.new(5)
    tus.request(method, path, {"X-HTTP-Method-Override": "DELETE", "Tus-Resumable": "1.0.0"})
    assert tus.offset(path) == 0
    overridden = {"X-HTTP-Method-Override": "DELETE", "Tus-Resumable": "1.0.0"}
    assert tus.request("POST", path, overridden).status == 204


@pytest.mark.parametrize("field", ["a YQ==,", ",a YQ==", "a YQ==,,b YQ==", "a YQ==,a Yg==", "a YQ"])
def test_metadata_is_strict(tus: Tus, field: str) -> None:
    refused = tus.create(5, headers={"Upload-Metadata": field})
    assert (refused.status, refused.code) == (400, "ERR_INVALID_METADATA")


def test_a_final_with_a_body(tus: Tus) -> None:
    part = tus.finished(b"x", {"Upload-Concat": "partial"})
    refused = tus.create(body=b"x", headers={"Upload-Concat": f"final;{part}"})
    assert (refused.status, refused.code) == (400, "ERR_INVALID_CONCAT")


def test_a_chunked_body_that_is_too_long(tus: Tus) -> None:
    path = tus.new(5)
    with tus.begin_patch(path, 0, None, b"helloworld") as patch:
        patch.connection.send_last_chunk()
        refused = patch.response()
    assert (refused.status, refused.code) == (413, "ERR_UPLOAD_SIZE_EXCEEDED")
    assert tus.offset(path) == 0


def test_an_upload_that_is_taken_over(tus: Tus) -> None:
    path = tus.new(200_000)
    with tus.begin_patch(path, 0, 200_000, b"x" * 100_000) as patch:
        patch.wait_stored()
        assert tus.offset(path) == 100_000
        interrupted = patch.response()
    assert (interrupted.status, interrupted.code) == (409, "ERR_UPLOAD_INTERRUPTED")


def test_another_media_type(tus: Tus) -> None:
    path = tus.new(5)
    refused = tus.patch(path, 0, b"hello", {"Content-Type": "text/plain"})
    assert (refused.status, refused.code) == (415, "ERR_INVALID_CONTENT_TYPE")


def test_a_final_of_parts_that_are_not_complete(tus: Tus) -> None:
    part = tus.new(5, headers={"Upload-Concat": "partial"})
    assert tus.create(headers={"Upload-Concat": f"final;{part}"}).status == 201


def test_two_lengths(tus: Tus) -> None:
    refused = tus.create(5, headers={"Upload-Defer-Length": "1"})
    assert (refused.status, refused.code) == (400, "ERR_INVALID_UPLOAD_LENGTH_DEFER")


def test_options_and_pages_that_are_not_allowed(make_server: MakeServer) -> None:
    tus = Tus(make_server("--cors-allow-origin", "https://app.example"))
    for origin in ("https://app.example", "https://evil.example"):
        assert tus.options(headers={"Origin": origin}).status == 204
    created = tus.create(5, headers={"Origin": "https://evil.example"})
    assert created.status == 201
    assert "Access-Control-Allow-Origin" not in created


def test_what_is_not_served_and_what_is_gone(tus: Tus) -> None:
    path = tus.new(5)
    assert tus.get(path).status == 404
    tus.delete(path)
    assert tus.head(path).status == 410
