"""tus 1.0.0, creation: T15 to T19."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import MakeServer
from tests.support.events import Recorder
from tests.support.tus import Tus, id_of, metadata, path_of
from tests.support.wire import Connection, chunk, last_chunk

# -- T15 ---------------------------------------------------------------------------------------


def test_T15_post_makes_an_upload_and_tells_where(tus: Tus) -> None:
    response = tus.create(100)
    assert (response.status, response.body) == (201, b"")
    location = urlsplit(response["Location"])
    assert (location.scheme, location.netloc) == ("http", f"127.0.0.1:{tus.server.port}")
    assert re.fullmatch(re.escape(tus.collection) + "[0-9a-f]{32}", location.path)
    head = tus.head(location.path)
    assert (head["Upload-Offset"], head["Upload-Length"]) == ("0", "100")


def test_T15_the_location_is_on_the_host_that_was_asked(tus: Tus) -> None:
    response = tus.create(100, headers={"Host": "uploads.example:8443"})
    assert response["Location"].startswith("http://uploads.example:8443/files/")


def test_T15_the_collection_may_be_named_without_its_slash(tus: Tus) -> None:
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "5", "Content-Length": "0"}
    response = tus.request("POST", tus.collection.rstrip("/"), headers)
    assert response.status == 201
    assert tus.offset(path_of(response["Location"])) == 0


def test_T15_the_location_is_relative_where_it_is_set_so(make_server: MakeServer) -> None:
    tus = Tus(make_server("--relative-location"))
    location = tus.create(5)["Location"]
    assert re.fullmatch("/files/[0-9a-f]{32}", location)
    assert tus.offset(location) == 0


def test_T15_every_upload_has_its_own_place(tus: Tus) -> None:
    paths = {tus.new(1) for _ in range(20)}
    assert len(paths) == 20


def test_T15_an_upload_of_no_bytes_is_complete_at_once(
    make_server: MakeServer, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path)
    tus = Tus(make_server(*recorder.flags, env=recorder.env))
    path = tus.new(0)
    head = tus.head(path)
    assert (head["Upload-Offset"], head["Upload-Length"]) == ("0", "0")
    served = tus.get(path)
    assert (served.status, served.body) == (200, b"")
    recorder.wait_for("post-finish", id_of(path))
    assert recorder.types(id_of(path)).count("pre-finish") == 1


# -- T16 ---------------------------------------------------------------------------------------


def test_T16_over_the_maximum_is_refused(make_server: MakeServer) -> None:
    tus = Tus(make_server("--max-size", "1000"))
    assert tus.options()["Tus-Max-Size"] == "1000"
    response = tus.create(1001)
    assert (response.status, response.code) == (413, "ERR_MAX_SIZE_EXCEEDED")
    assert tus.data_files() == []
    assert tus.create(1000).status == 201


def test_T16_neither_length_nor_deferred_is_refused(tus: Tus) -> None:
    before = tus.data_files()
    assert tus.create().status == 400
    assert tus.data_files() == before


def test_T16_both_length_and_deferred_are_refused(tus: Tus) -> None:
    before = tus.data_files()
    assert tus.create(5, headers={"Upload-Defer-Length": "1"}).status == 400
    assert tus.data_files() == before


# -- T17 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "a YQ==,",
        ",a YQ==",
        "a YQ==,,b YQ==",
        ",",
        "a b YQ==",
        "a  YQ==",
        "a YQ==,a Yg==",
        "a,a",
        "a YQ==,b YQ==,a",
        "a !!!!",
        "a YQ",
        "a YQ=",
        "a Y",
        "a YQ===",
        "a Y=Q=",
        "a YQ==YQ==",
        "a _-8=",
        "a YQ==\tx",
        "a \u00ff\u00ff",
    ],
)
def test_T17_malformed_metadata_makes_nothing(tus: Tus, value: str) -> None:
    before = tus.data_files()
    assert tus.create(5, headers={"Upload-Metadata": value}).status == 400
    assert tus.data_files() == before


@pytest.mark.parametrize("value", ["key", "key ", "a YQ==,key", "key ,a YQ==", "a YQ==,key ,b"])
def test_T17_a_key_needs_no_value(tus: Tus, value: str) -> None:
    path = tus.new(5, headers={"Upload-Metadata": value})
    # White space at the end of a field is no part of its value (RFC 9110, 5.5).
    assert tus.head(path)["Upload-Metadata"] == value.rstrip()
    stored = tus.info(path)["MetaData"]
    assert isinstance(stored, dict)
    assert stored["key"] == ""


# -- T18 ---------------------------------------------------------------------------------------

AS_SENT = "filename d29ybGRfZG9taW5hdGlvbl9wbGFuLnBkZg==,is_confidential,zz enp6,empty ,aa YWFh"


def test_T18_metadata_comes_back_as_it_was_sent(tus: Tus) -> None:
    path = tus.new(5, headers={"Upload-Metadata": AS_SENT})
    assert tus.head(path)["Upload-Metadata"] == AS_SENT
    tus.patch(path, 0, b"hello")
    assert tus.head(path)["Upload-Metadata"] == AS_SENT


def test_T18_metadata_outlives_the_server(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(5, headers={"Upload-Metadata": AS_SENT})
    server.kill9()
    server.restart()
    assert tus.head(path)["Upload-Metadata"] == AS_SENT


def test_T18_values_may_be_any_bytes(tus: Tus) -> None:
    everything = metadata(name=bytes(range(256)), other="é漢字")
    path = tus.new(5, headers={"Upload-Metadata": everything})
    assert tus.head(path)["Upload-Metadata"] == everything


def test_T17_keys_beyond_ascii_are_taken_and_come_back_as_they_were_sent(
    make_server: MakeServer, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path)
    server = make_server(*recorder.flags, env=recorder.env)
    tus = Tus(server)

    # As bytes on the wire: UTF-8, and a client of before it.
    utf8 = "gr\u00f6\u00dfe NQ==,\u6587\u4ef6\u540d YS50eHQ=".encode().decode("latin-1")
    for sent in (utf8, "gr\xf6\xdfe NQ=="):
        path = tus.new(5, headers={"Upload-Metadata": sent})
        recorder.wait_for("post-create", id_of(path))
        server.kill9()
        calls = [json.loads(line) for line in recorder.file.read_text().splitlines()]
        mine = [call for call in calls if call["upload"] == id_of(path)]
        assert {call["type"] for call in mine} == {"pre-create", "post-create"}
        assert all(call["metadata"]["gr\u00f6\u00dfe"] == "5" for call in mine)
        server.restart()
        assert tus.head(path)["Upload-Metadata"] == sent
        stored = tus.info(path)["MetaData"]
        assert isinstance(stored, dict)
        assert stored["gr\u00f6\u00dfe"] == "5"


# -- bodies of creations that are none -----------------------------------------------------------


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/octet-stream"])
@pytest.mark.parametrize(
    "pieces", [[last_chunk()], [b"0\r", b"\n\r\n"], [b"0;x=y\r\nA: b\r\n\r\n"]]
)
def test_an_empty_chunked_body_is_none(
    tus: Tus, media_type: str | None, pieces: list[bytes]
) -> None:
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "5", "Transfer-Encoding": "chunked"}
    if media_type is not None:
        headers["Content-Type"] = media_type
    with tus.connect() as connection:
        connection.send_head("POST", tus.collection, headers)
        for piece in pieces:
            connection.send(piece)
        created = connection.read_response("POST")
        assert (created.status, created.get("Upload-Offset")) == (201, None)
        path = path_of(created["Location"])
        assert tus.patch(path, 0, b"hello", on=connection).status == 204


@pytest.mark.parametrize("framing", ["chunked", "length"])
@pytest.mark.parametrize("media_type", [None, "text/plain"])
def test_a_body_of_another_media_type_is_refused_and_makes_nothing(
    tus: Tus, media_type: str | None, framing: str
) -> None:
    before = tus.data_files()
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "5"}
    headers |= {"Transfer-Encoding": "chunked"} if framing == "chunked" else {"Content-Length": "5"}
    if media_type is not None:
        headers["Content-Type"] = media_type
    with tus.connect() as connection:
        connection.send_head("POST", tus.collection, headers)
        connection.send(chunk(b"hello") + last_chunk() if framing == "chunked" else b"hello")
        response = connection.read_response("POST")
    assert (response.status, response.code) == (415, "ERR_INVALID_CONTENT_TYPE")
    assert tus.data_files() == before


def test_an_empty_chunked_body_that_never_ends_makes_nothing(make_server: MakeServer) -> None:
    tus = Tus(make_server("--network-timeout", "1s"))
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "5", "Transfer-Encoding": "chunked"}
    with tus.connect() as connection:
        connection.send_head("POST", tus.collection, headers)
        assert connection.read_response("POST").code == "ERR_READ_TIMEOUT"
    with tus.connect() as connection:
        connection.send_head("POST", tus.collection, headers)
        connection.half_close()
        connection.read_to_end()
    assert tus.data_files() == []


def test_T18_without_metadata_there_is_no_header(tus: Tus) -> None:
    assert "Upload-Metadata" not in tus.head(tus.new(5))


# -- T19 ---------------------------------------------------------------------------------------


def metadata_bytes(key: str, value: bytes) -> str:
    return f"{key} {base64.b64encode(value).decode()}"


@pytest.mark.parametrize("key", ["filename", "name", "filetype", "type"])
@pytest.mark.parametrize(
    "value",
    [
        b"a\r\nX-Injected: yes\r\n\r\n<script>",
        b"a\nX-Injected: yes",
        b'a"; X-Injected="yes',
        b"text/plain\r\nX-Injected: yes",
        b"image/png; X-Injected\x00",
        b"\xff\xfe\r\n\x00",
        b"\x1b]0;X-Injected\x07",
    ],
)
def test_T19_metadata_cannot_write_headers(tus: Tus, key: str, value: bytes) -> None:
    sent = metadata_bytes(key, value)
    path = tus.finished(b"hello", {"Upload-Metadata": sent})
    response = tus.get(path)
    assert (response.status, response.body) == (200, b"hello")
    names = {name.lower() for name, _ in response.headers}
    assert "x-injected" not in names
    for name, text in response.headers:
        assert not re.search(r"[\x00-\x1f\x7f]", text), name
    assert tus.head(path)["Upload-Metadata"] == sent


def test_T19_metadata_cannot_choose_a_path(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server()
    tus = Tus(server)
    for name in (b"../../escaped", b"/tmp/escaped", b"..\\escaped", b"escaped\x00"):
        sent = metadata_bytes("filename", name)
        path = tus.finished(b"hello", {"Upload-Metadata": sent})
        assert re.fullmatch("[0-9a-f]{32}", id_of(path))
    assert not [file for file in tmp_path.rglob("*") if "escaped" in file.name]


def test_T19_a_download_cannot_be_named_outside_its_directory(tus: Tus) -> None:
    sent = metadata_bytes("filename", b"../../../etc/passwd")
    path = tus.finished(b"hello", {"Upload-Metadata": sent})
    assert "/" not in tus.get(path)["Content-Disposition"].replace("%2F", "/").replace("%2f", "/")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_T19_metadata_cannot_write_log_lines(make_server: MakeServer, log_format: str) -> None:
    server = make_server("--log-format", log_format, "--log-level", "debug")
    tus = Tus(server)
    for key in ("filename", "filetype"):
        sent = metadata_bytes(key, b"x\n2026-01-01 FORGED line\r\x1b[2J")
        path = tus.finished(b"hello", {"Upload-Metadata": sent})
        tus.get(path)
        tus.delete(path)
    assert server.terminate() == 0
    assert not [
        line for line in server.lines if re.search(r"^2026-01-01 FORGED|[\x00\x1b\r]", line)
    ]


def test_T19_a_path_cannot_write_log_lines(make_server: MakeServer) -> None:
    server = make_server("--log-level", "debug")
    tus = Tus(server)
    tus.head(tus.collection + "%0aFORGED%0d%1b[2J")
    with Connection(server.address) as connection:
        connection.request("HEAD", tus.collection, {"X-Request-ID": "a\x1b[2JFORGED"})
    assert server.terminate() == 0
    assert not [line for line in server.lines if re.search(r"^FORGED|[\x00\x1b\r]", line)]
