"""tus 1.0.0, core: T1 to T14."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.bucket import LIMIT
from tests.support.events import Recorder
from tests.support.tus import Tus, id_of, merged, path_of
from tests.support.wire import Response, chunk, head_bytes

UNKNOWN_ID = "0123456789abcdef0123456789abcdef"

EXTENSIONS = {
    "creation",
    "creation-with-upload",
    "creation-defer-length",
    "expiration",
    "checksum",
    "checksum-trailer",
    "termination",
    "concatenation",
    "concatenation-unfinished",
}

MALFORMED_NUMBERS = {
    "negative": "-1",
    "plus sign": "+1",
    "space inside": "1 0",
    "underscore": "1_0",
    "hexadecimal": "0x10",
    "fraction": "1.0",
    "exponent": "1e3",
    "empty": "",
    "word": "five",
    "superscript": "\u00b2",
    "fullwidth digits": "\uff11\uff12".encode().decode("latin-1"),
    "arabic digits": "\u0663".encode().decode("latin-1"),
    "list": "0, 0",
    "endless": "1" * 400,
    "tab inside": "0\t0",
}

malformed = pytest.mark.parametrize(
    "value", MALFORMED_NUMBERS.values(), ids=MALFORMED_NUMBERS.keys()
)


# -- T1 ----------------------------------------------------------------------------------------


def test_T1_successful_responses_carry_the_version(tus: Tus) -> None:
    created = tus.create(5)
    path = path_of(created["Location"])
    responses = [
        created,
        tus.head(path),
        tus.patch(path, 0, b"hello"),
        tus.get(path),
        tus.delete(path),
    ]
    assert [response.status for response in responses] == [201, 200, 204, 200, 204]
    assert [response["Tus-Resumable"] for response in responses] == ["1.0.0"] * 5


def test_T1_error_responses_carry_the_version(tus: Tus) -> None:
    path = tus.new(5)
    unknown = f"{tus.collection}{UNKNOWN_ID}"
    gone = tus.new(5)
    tus.delete(gone)
    expected: list[tuple[int, Response]] = [
        (400, tus.create()),
        (400, tus.patch(path, "x", b"")),
        (404, tus.head(unknown)),
        (404, tus.patch(unknown, 0, b"x")),
        (404, tus.delete(unknown)),
        (404, tus.get(path)),
        (405, tus.request("PUT", path)),
        (409, tus.patch(path, 3, b"x")),
        (410, tus.head(gone)),
        (412, tus.create(5, headers={"Tus-Resumable": "0.2.2"})),
        (413, tus.patch(path, 0, b"too long")),
        (415, tus.patch(path, 0, b"x", {"Content-Type": "text/plain"})),
        (460, tus.patch(path, 0, b"x", {"Upload-Checksum": "sha1 AAAAAAAAAAAAAAAAAAAAAAAAAAA="})),
    ]
    assert [response.status for _, response in expected] == [status for status, _ in expected]
    for response in (response for _, response in expected):
        assert response["Tus-Resumable"] == "1.0.0", response


def test_T1_answers_from_before_the_request_was_parsed_carry_the_version(tus: Tus) -> None:
    too_long = tus.head(tus.collection + "x" * 100_000)
    assert (too_long.status, too_long["Tus-Resumable"]) == (414, "1.0.0")
    too_large = tus.head(tus.collection + UNKNOWN_ID, {"X-Padding": "x" * 200_000})
    assert (too_large.status, too_large["Tus-Resumable"]) == (431, "1.0.0")


# -- T2 ----------------------------------------------------------------------------------------

versions = pytest.mark.parametrize("version", [None, "0.2.2", "1.0.1", "2.0.0", "", "1.0.0, 1.0.0"])


@versions
def test_T2_post_with_another_version_makes_nothing(tus: Tus, version: str | None) -> None:
    before = tus.data_files()
    response = tus.create(5, body=b"hello", headers={"Tus-Resumable": version})
    assert response.status == 412
    assert response.items("Tus-Version") == ["1.0.0"]
    assert tus.data_files() == before


@versions
def test_T2_patch_with_another_version_stores_nothing(tus: Tus, version: str | None) -> None:
    path = tus.new(5)
    response = tus.patch(path, 0, b"hello", {"Tus-Resumable": version})
    assert response.status == 412
    assert response.items("Tus-Version") == ["1.0.0"]
    assert tus.stored(path) == b""
    assert tus.offset(path) == 0


@versions
def test_T2_delete_with_another_version_keeps_the_upload(tus: Tus, version: str | None) -> None:
    path = tus.new(5)
    response = tus.delete(path, {"Tus-Resumable": version})
    assert response.status == 412
    assert response.items("Tus-Version") == ["1.0.0"]
    assert tus.offset(path) == 0


def test_T2_head_and_get_need_no_version(tus: Tus) -> None:
    path = tus.finished(b"hello")
    assert tus.head(path, {"Tus-Resumable": None}).status == 200
    assert tus.get(path).body == b"hello"


# -- T3 ----------------------------------------------------------------------------------------


def test_T3_options_tells_what_the_server_can_do(tus: Tus) -> None:
    response = tus.options()
    assert response.items("Tus-Version") == ["1.0.0"]
    assert set(response.items("Tus-Extension")) == EXTENSIONS
    assert len(response.items("Tus-Extension")) == len(EXTENSIONS)
    algorithms = response.items("Tus-Checksum-Algorithm")
    assert {"sha1", "sha256", "sha512", "md5", "crc32", "crc32c"} <= set(algorithms)
    assert response.get("Tus-Max-Size") == (str(LIMIT) if LIMIT else None)


def test_T3_options_tells_the_maximum(make_server: MakeServer) -> None:
    response = Tus(make_server("--max-size", "10MB")).options()
    assert response["Tus-Max-Size"] in {"10000000", "10485760"}


def test_T3_options_does_not_tell_what_was_switched_off(make_server: MakeServer) -> None:
    tus = Tus(make_server("--disable-termination", "--disable-concatenation"))
    off = {"termination", "concatenation", "concatenation-unfinished"}
    assert set(tus.options().items("Tus-Extension")) == EXTENSIONS - off
    path = tus.new(5)
    assert 400 <= tus.delete(path).status < 500
    assert tus.offset(path) == 0
    before = tus.data_files()
    assert 400 <= tus.create(5, headers={"Upload-Concat": "partial"}).status < 500
    assert tus.data_files() == before


# -- T4 ----------------------------------------------------------------------------------------


@malformed
def test_T4_a_malformed_length_makes_nothing(tus: Tus, value: str) -> None:
    before = tus.data_files()
    assert tus.create(value).status == 400
    assert tus.data_files() == before


@malformed
def test_T4_a_malformed_offset_stores_nothing(tus: Tus, value: str) -> None:
    path = tus.new(5)
    assert tus.patch(path, value, b"hello").status == 400
    assert tus.stored(path) == b""


@malformed
def test_T4_a_malformed_length_on_patch_stores_nothing(tus: Tus, value: str) -> None:
    path = tus.new(None)
    assert tus.patch(path, 0, b"hello", {"Upload-Length": value}).status == 400
    assert tus.stored(path) == b""
    assert tus.head(path)["Upload-Defer-Length"] == "1"


def test_T4_a_missing_offset_stores_nothing(tus: Tus) -> None:
    path = tus.new(5)
    assert tus.patch(path, 0, b"hello", {"Upload-Offset": None}).status == 400
    assert tus.stored(path) == b""


def test_T4_leading_zeros_and_large_numbers_are_numbers(tus: Tus) -> None:
    path = tus.new(5)
    assert tus.patch(path, "000", b"he").status == 204
    assert tus.patch(path, 2**63 - 1, b"x").status == 409


# -- T5 ----------------------------------------------------------------------------------------


def test_T5_post_can_stand_for_patch(tus: Tus) -> None:
    path = tus.new(5)
    headers = merged(tus.patch_headers(0), {"X-HTTP-Method-Override": "PATCH"})
    response = tus.request("POST", path, headers, b"hello")
    assert (response.status, response["Upload-Offset"]) == (204, "5")
    assert tus.stored(path) == b"hello"


def test_T5_post_can_stand_for_head(tus: Tus) -> None:
    path = tus.finished(b"hello")
    headers = {"Tus-Resumable": "1.0.0", "X-HTTP-Method-Override": "HEAD", "Content-Length": "0"}
    response = tus.request("POST", path, headers)
    assert (response.status, response["Upload-Offset"], response.body) == (200, "5", b"")


def test_T5_post_can_stand_for_delete(tus: Tus) -> None:
    path = tus.new(5)
    headers = {"Tus-Resumable": "1.0.0", "X-HTTP-Method-Override": "DELETE", "Content-Length": "0"}
    assert tus.request("POST", path, headers).status == 204
    assert tus.head(path).status == 410


def test_T5_an_overridden_method_keeps_its_rules(tus: Tus) -> None:
    path = tus.new(5)
    headers = {"X-HTTP-Method-Override": "DELETE", "Content-Length": "0"}
    assert tus.request("POST", path, headers).status == 412
    assert tus.offset(path) == 0


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_T5_other_methods_stand_for_themselves(tus: Tus, method: str) -> None:
    path = tus.finished(b"hello")
    headers = {"Tus-Resumable": "1.0.0", "X-HTTP-Method-Override": "DELETE"}
    response = tus.request(method, path, headers)
    assert response.status == (204 if method == "OPTIONS" else 200)
    assert tus.get(path).body == b"hello"


# -- T6 ----------------------------------------------------------------------------------------


def test_T6_head_tells_the_offset_at_every_stage(tus: Tus) -> None:
    path = tus.new(10_000)
    for offset in (0, 4_000, 10_000):
        response = tus.head(path)
        assert response.status == 200
        assert response["Upload-Offset"] == str(offset)
        assert response["Upload-Length"] == "10000"
        assert response["Cache-Control"] == "no-store"
        assert response.get("Content-Length") in {None, "0"}
        if offset < 10_000:
            tus.patch(path, offset, b"x" * (4_000 if offset == 0 else 6_000))


def test_T6_head_of_a_deferred_length_has_none(tus: Tus) -> None:
    response = tus.head(tus.new(None))
    assert response["Upload-Offset"] == "0"
    assert "Upload-Length" not in response


def test_T6_head_does_not_end_the_connection(tus: Tus) -> None:
    path = tus.finished(b"hello")
    with tus.connect() as connection:
        for _ in range(3):
            response = connection.request("HEAD", path, {"Tus-Resumable": "1.0.0"})
            assert response["Upload-Offset"] == "5"


# -- T7 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        UNKNOWN_ID,
        "x",
        "..",
        ".",
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        ".tusd-py",
        ".tusd-py/",
        "%00",
        "a/b",
        UNKNOWN_ID + ".info",
        "%c3%a9",
        "%ff",
        "x" * 300,
    ],
)
def test_T7_head_of_an_unknown_upload_is_404(tus: Tus, name: str) -> None:
    response = tus.head(tus.collection + name)
    assert response.status == 404
    assert "Upload-Offset" not in response


def test_T7_an_uploads_info_is_no_upload(tus: Tus) -> None:
    path = tus.finished(b"hello")
    assert tus.head(path + ".info").status == 404
    assert tus.get(path + ".info").status == 404
    assert tus.delete(path + ".info").status == 404
    assert tus.info(path)["Size"] == 5


def test_T7_head_of_a_terminated_upload_is_410(tus: Tus) -> None:
    path = tus.new(5)
    tus.delete(path)
    response = tus.head(path)
    assert response.status == 410
    assert "Upload-Offset" not in response


# -- T8 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "application/octet-stream", "application/offset+octet-streamer", "x"],
)
def test_T8_patch_of_another_content_type_stores_nothing(
    tus: Tus, content_type: str | None
) -> None:
    path = tus.new(5)
    assert tus.patch(path, 0, b"hello", {"Content-Type": content_type}).status == 415
    assert tus.stored(path) == b""
    assert tus.offset(path) == 0


# -- T9 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 2, 4, 5, 6, 1 << 62])
def test_T9_patch_at_another_offset_stores_nothing(tus: Tus, offset: int) -> None:
    path = tus.new(5)
    tus.patch(path, 0, b"hel")
    response = tus.patch(path, offset, b"lo")
    assert response.status == 409
    assert response["Upload-Offset"] == "3"
    assert tus.stored(path) == b"hel"


def test_T9_a_large_patch_at_another_offset_is_refused_without_reading_it(tus: Tus) -> None:
    path = tus.new(10_000_000)
    with tus.connect() as connection:
        headers = tus.patch_headers(5, {"Content-Length": "9000000"})
        connection.send_head("PATCH", path, headers)
        response = connection.read_response("PATCH")
    assert (response.status, response["Upload-Offset"]) == (409, "0")


# -- T10 ---------------------------------------------------------------------------------------

BODY = bytes(range(256)) * 12_000  # 3 MB


def test_T10_patch_answers_with_the_new_offset(tus: Tus) -> None:
    path = tus.new(11)
    first = tus.patch(path, 0, b"hello ")
    assert (first.status, first["Upload-Offset"], first.body) == (204, "6", b"")
    second = tus.patch(path, 6, b"world")
    assert (second.status, second["Upload-Offset"]) == (204, "11")
    assert tus.stored(path) == b"hello world"


@pytest.mark.parametrize("size", [1, 100, 65_535, 65_536, 65_537, 262_144, 1_048_577, len(BODY)])
def test_T10_bodies_of_every_size_arrive(tus: Tus, size: int) -> None:
    path = tus.new(size)
    response = tus.patch(path, 0, BODY[:size])
    assert (response.status, response["Upload-Offset"]) == (204, str(size))
    assert tus.stored(path) == BODY[:size]


@pytest.mark.parametrize("piece", [7, 1_000, 65_536, 1_000_000])
def test_T10_chunked_bodies_arrive(tus: Tus, piece: int) -> None:
    data = BODY[: min(len(BODY), piece * 50)]
    path = tus.new(len(data))
    with tus.begin_patch(path, 0, None) as patch:
        for start in range(0, len(data), piece):
            patch.send(data[start : start + piece])
        patch.connection.send_last_chunk()
        response = patch.response()
    assert (response.status, response["Upload-Offset"]) == (204, str(len(data)))
    assert tus.stored(path) == data


def test_T10_headers_and_body_in_any_pieces(tus: Tus) -> None:
    path = tus.new(10)
    headers = tus.patch_headers(0, {"Content-Length": "10"})
    request = head_bytes("PATCH", path, headers, "localhost") + b"0123456789"
    with tus.connect() as connection:
        for start in range(0, len(request), 13):
            connection.send(request[start : start + 13])
        assert connection.read_response("PATCH").status == 204
    assert tus.stored(path) == b"0123456789"


def test_T10_one_connection_serves_many_requests(tus: Tus) -> None:
    path = tus.new(2 * len(BODY) + 10)
    with tus.connect() as connection:
        for offset, body in ((0, BODY), (len(BODY), b"0123456789"), (len(BODY) + 10, BODY)):
            response = tus.patch(path, offset, body, on=connection)
            assert (response.status, response["Upload-Offset"]) == (204, str(offset + len(body)))
            head = connection.request("HEAD", path)
            assert head["Upload-Offset"] == str(offset + len(body))
    assert tus.stored(path) == BODY + b"0123456789" + BODY


@pytest.mark.parametrize("size", [10, 100_000, len(BODY)])
def test_T10_the_next_request_on_the_connection_is_not_part_of_the_body(
    tus: Tus, size: int
) -> None:
    path = tus.new(size)
    other = tus.finished(b"other")
    headers = tus.patch_headers(0, {"Content-Length": str(size)})
    with tus.connect() as connection:
        pipelined = head_bytes("PATCH", path, headers, "localhost") + BODY[:size]
        pipelined += head_bytes("GET", other, {}, "localhost")
        connection.send(pipelined)
        assert connection.read_response("PATCH")["Upload-Offset"] == str(size)
        assert connection.read_response("GET").body == b"other"
    assert tus.stored(path) == BODY[:size]


def test_T10_an_empty_patch_moves_nothing(tus: Tus) -> None:
    path = tus.new(5)
    response = tus.patch(path, 0, b"")
    assert (response.status, response["Upload-Offset"]) == (204, "0")


# -- T11 ---------------------------------------------------------------------------------------

cut_sizes = pytest.mark.parametrize("sent", [1, 10_000, 1_500_000])


@cut_sizes
def test_T11_bytes_before_a_fin_are_kept(tus: Tus, sent: int) -> None:
    path = tus.new(len(BODY))
    with tus.begin_patch(path, 0, len(BODY), BODY[:sent]) as patch:
        patch.connection.half_close()
        patch.connection.read_to_end()
    assert tus.offset(path) == sent
    assert tus.stored(path) == BODY[:sent]
    assert tus.patch(path, sent, BODY[sent:]).status == 204
    assert tus.stored(path) == BODY


@cut_sizes
def test_T11_bytes_before_a_reset_are_kept(tus: Tus, sent: int) -> None:
    path = tus.new(len(BODY))
    with tus.begin_patch(path, 0, len(BODY), BODY[:sent]) as patch:
        patch.wait_stored()
        patch.connection.reset()
    assert tus.offset(path) == sent
    assert tus.patch(path, sent, BODY[sent:]).status == 204
    assert tus.stored(path) == BODY


@cut_sizes
def test_T11_bytes_of_a_chunked_body_before_a_cut_are_kept(tus: Tus, sent: int) -> None:
    path = tus.new(len(BODY))
    with tus.begin_patch(path, 0, None) as patch:
        # In the middle of a chunk that was announced as larger.
        patch.connection.send(f"{len(BODY):x}\r\n".encode() + BODY[:sent])
        patch.connection.half_close()
        patch.connection.read_to_end()
    assert tus.offset(path) == sent
    assert tus.patch(path, sent, BODY[sent:]).status == 204
    assert tus.stored(path) == BODY


def test_T11_an_upload_survives_many_cuts(tus: Tus) -> None:
    path = tus.new(len(BODY))
    offset = 0
    while offset < len(BODY):
        with tus.begin_patch(path, offset, len(BODY) - offset) as patch:
            patch.send(BODY[offset : offset + 400_001])
            patch.connection.half_close()
            patch.connection.read_to_end()
        offset = tus.offset(path)
        assert offset == min(len(BODY), patch.received_to)
    assert tus.stored(path) == BODY


# -- T12 ---------------------------------------------------------------------------------------


def test_T12_an_empty_patch_at_the_end_may_be_repeated(tus: Tus) -> None:
    path = tus.finished(b"hello")
    for _ in range(2):
        response = tus.patch(path, 5, b"")
        assert (response.status, response["Upload-Offset"]) == (204, "5")


def test_T12_more_bytes_are_refused(tus: Tus) -> None:
    path = tus.finished(b"hello")
    assert tus.patch(path, 5, b"x").status == 413
    assert tus.patch(path, 0, b"hello").status == 409
    assert tus.stored(path) == b"hello"


def test_T12_more_bytes_in_a_chunked_body_are_refused(tus: Tus) -> None:
    path = tus.finished(b"hello")
    with tus.begin_patch(path, 5, None, b"x") as patch:
        patch.connection.send_last_chunk()
        assert patch.response().status == 413
    assert tus.stored(path) == b"hello"


def test_T12_finish_hooks_do_not_run_again(make_server: MakeServer, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    tus = Tus(make_server(*recorder.flags, env=recorder.env))
    path = tus.finished(b"hello")
    recorder.wait_for("post-finish", id_of(path))
    assert tus.patch(path, 5, b"").status == 204
    later = tus.finished(b"later")
    recorder.wait_for("post-finish", id_of(later))
    finishes = [kind for kind in recorder.types(id_of(path)) if kind.endswith("finish")]
    assert finishes == ["pre-finish", "post-finish"]


# -- T13 ---------------------------------------------------------------------------------------


def test_T13_a_body_that_says_it_is_too_long_is_refused_before_it_is_sent(tus: Tus) -> None:
    path = tus.new(10)
    tus.patch(path, 0, b"01234")
    with tus.begin_patch(path, 5, 6) as patch:
        assert patch.response().status == 413
    assert tus.stored(path) == b"01234"


def test_T13_a_body_that_says_it_is_too_long_is_not_stored_up_to_the_length(tus: Tus) -> None:
    path = tus.new(10)
    assert tus.patch(path, 0, b"0123456789A").status == 413
    assert tus.stored(path) == b""
    assert tus.offset(path) == 0


@pytest.mark.parametrize("length", [10, 1_000_000])
def test_T13_a_chunked_body_that_becomes_too_long_is_refused(tus: Tus, length: int) -> None:
    path = tus.new(length)
    tus.patch(path, 0, b"01234")
    with tus.begin_patch(path, 5, None, BODY[: length - 5]) as patch:
        patch.connection.send(chunk(b"more") + b"0\r\n\r\n")
        assert patch.response().status == 413
    assert tus.offset(path) == 5
    assert tus.stored(path) == b"01234"


# -- T14 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/files/", "/files/unknown"])
def test_T1_answers_to_options_carry_the_version(tus: Tus, path: str) -> None:
    page = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "POST"}
    for headers in ({}, {"Tus-Resumable": "9"}, page):
        assert tus.options(path, headers)["Tus-Resumable"] == "1.0.0"


@pytest.mark.parametrize("version", [None, "1.0.0", "0.0.1", "nonsense"])
@pytest.mark.parametrize("where", ["collection", "upload", "without the slash"])
def test_T14_options_is_answered_whatever_the_version(
    tus: Tus, where: str, version: str | None
) -> None:
    path = {
        "collection": tus.collection,
        "upload": tus.new(5),
        "without the slash": tus.collection.rstrip("/"),
    }[where]
    response = tus.options(path, {"Tus-Resumable": version})
    assert (response.status, response.body) == (204, b"")
    assert response.items("Tus-Version") == ["1.0.0"]
    assert set(response.items("Tus-Extension")) == EXTENSIONS
    assert "sha1" in response.items("Tus-Checksum-Algorithm")
