"""Resumable Uploads for HTTP, statement by statement, over a real socket, in every interop version."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.bucket import LIMIT
from tests.support.ietf import PARTIAL, PROBLEMS, VERSIONS, Ietf, announced, wait_told
from tests.support.server import ServerProcess
from tests.support.tus import OCTETS, Tus, id_of, path_of
from tests.support.wire import ConnectionEnded, Response, head_bytes

SPOKEN = VERSIONS[:-1]
LARGE = 300_000
"""Bytes of a body that goes past the HTTP parser."""


@pytest.fixture(params=VERSIONS, ids=str)
def ietf(request: pytest.FixtureRequest, server: ServerProcess) -> Ietf:
    """A client of each version."""
    version: int | None = request.param
    return Ietf(server, version)


@pytest.fixture(params=SPOKEN, ids=str)
def spoken(request: pytest.FixtureRequest, server: ServerProcess) -> Ietf:
    """A client of each version that is named in requests."""
    version: int = request.param
    return Ietf(server, version)


@pytest.fixture
def newest(server: ServerProcess) -> Ietf:
    return Ietf(server, 9)


def problem(response: Response) -> dict[str, object]:
    assert response["Content-Type"] == "application/problem+json"
    document = json.loads(response.body)
    assert isinstance(document, dict)
    assert document["status"] == response.status
    return document


# Completeness, offset, length


def test_R1_offset_at_the_length_alone_is_not_complete(ietf: Ietf) -> None:
    path = ietf.new(5)
    response = ietf.append(path, 0, b"hello")
    assert not ietf.is_complete(response)
    status = ietf.head(path)
    assert status["Upload-Offset"] == "5"
    assert not ietf.is_complete(status)
    done = ietf.append(path, 5, b"", complete=True)
    assert 200 <= done.status < 300
    assert ietf.is_complete(done)
    assert ietf.is_complete(ietf.head(path))
    assert ietf.stored(path) == b"hello"


def test_R2_the_offset_stays_when_appends_are_refused(ietf: Ietf) -> None:
    path = ietf.new(100, b"a" * 30)
    for offset in (0, 29, 31):
        assert ietf.append(path, offset, b"x" * 10).status == 409
        assert ietf.offset(path) == 30


def test_R2_a_killed_server_keeps_what_it_acknowledged(make_server: MakeServer) -> None:
    server = make_server()
    ietf = Ietf(server, 9)
    with ietf.begin_creation(10 * LARGE, b"a" * (2 * LARGE)) as connection:
        path = path_of(announced(connection)["Location"])
        told = int(connection.read_any()["Upload-Offset"])
        server.kill9()
    server.restart()
    assert ietf.offset(path) >= told > 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Upload-Complete": "?1", "Upload-Length": "7"},
        {"Upload-Complete": "?0", "Upload-Length": "3"},
    ],
    ids=["complete", "too many"],
)
def test_R3_a_creation_with_two_lengths(newest: Ietf, headers: dict[str, str]) -> None:
    response = newest.request("POST", newest.collection, headers, b"hello")
    assert response.status == 400
    assert problem(response)["type"] == PROBLEMS + "inconsistent-upload-length"
    assert response["Upload-Complete"] == "?0"
    assert not response.interim


def test_R3_an_append_that_contradicts_the_length(newest: Ietf) -> None:
    path = newest.new(10, b"abc")
    for fields, complete, body in (
        ({"Upload-Length": "11"}, False, b"d"),
        ({}, True, b"d"),
        ({"Upload-Length": "4"}, True, b"d"),
    ):
        response = newest.append(path, 3, body, complete=complete, headers=fields)
        assert response.status == 400
        assert problem(response)["type"] == PROBLEMS + "inconsistent-upload-length"
    assert newest.offset(path) == 3
    assert newest.append(path, 3, b"defghij", complete=True).status == 201


def test_R3_an_upload_that_ends_before_its_length(newest: Ietf) -> None:
    """Its body has no Content-Length, so the server notices only at its end."""
    path = newest.new(10)
    with newest.connect() as connection:
        fields = newest.append_headers(0, True, {"Transfer-Encoding": "chunked"})
        connection.send_head("PATCH", path, fields)
        connection.send_chunk(b"hello")
        connection.send_last_chunk()
        response = connection.read_response("PATCH")
    assert response.status == 400
    assert problem(response)["type"] == PROBLEMS + "inconsistent-upload-length"
    assert newest.offset(path) == 5
    assert newest.append(path, 5, b"world", complete=True).status == 201


def test_R3_the_length_may_come_last(newest: Ietf) -> None:
    path = newest.new(None, b"hello ")
    assert "Upload-Length" not in newest.head(path)
    assert newest.append(path, 6, b"world", complete=True).status == 201
    assert newest.head(path)["Upload-Length"] == "11"


def test_R3_a_body_without_length_ends_the_upload_of_unknown_length(newest: Ietf) -> None:
    with newest.connect() as connection:
        fields = {**newest.marks(), "Upload-Complete": "?1", "Transfer-Encoding": "chunked"}
        connection.send_head("POST", newest.collection, fields)
        connection.send_chunk(b"hello")
        connection.send_last_chunk()
        response = connection.read_response("POST")
    assert (response.status, response["Upload-Complete"]) == (201, "?1")
    status = newest.head(path_of(response["Location"]))
    assert (status["Upload-Length"], status["Upload-Complete"]) == ("5", "?1")


# Limits


@pytest.fixture(scope="module")
def limited(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[int | None], Ietf]]:
    directory = tmp_path_factory.mktemp("limited") / "uploads"
    with ServerProcess(directory, "--max-size", "1000", "--expire-after", "1h") as server:
        yield lambda version: Ietf(server, version)


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_R4_limits_are_in_every_refusal_because_of_one(
    limited: Callable[[int | None], Ietf], version: int | None
) -> None:
    ietf = limited(version)
    path = ietf.new()
    refused = [
        ietf.create(b"x" * 1001),
        ietf.create(b"", complete=False, headers={"Upload-Length": "1001"}),
        ietf.append(path, 0, b"x" * 1001),
        ietf.append(path, 0, b"", headers={"Upload-Length": "1001"}),
    ]
    for response in refused:
        assert response.status == 413
        assert not response.interim
        assert not ietf.is_complete(response)
        if version in (3, 4, 5):
            assert "Upload-Limit" not in response
        else:
            key = "expires" if version == 6 else "max-age"
            limits = response["Upload-Limit"].split(", ")
            assert limits[0] == "max-size=1000"
            name, _, seconds = limits[1].partition("=")
            assert name == key
            assert 3590 <= int(seconds) <= 3600
    assert ietf.offset(path) == 0


def test_R4_R13_the_time_that_is_left(limited: Callable[[int | None], Ietf]) -> None:
    ietf = limited(9)
    path = ietf.new(10, b"abc")
    before = time.time()
    limits = dict(each.split("=") for each in ietf.head(path)["Upload-Limit"].split(", "))
    expires = parsedate_to_datetime(Tus(ietf.server).head(path)["Upload-Expires"]).timestamp()
    assert expires - time.time() - 1 <= int(limits["max-age"]) <= expires - before + 1


def test_R4_refusals_do_not_tell_the_time_of_a_new_upload(
    limited: Callable[[int | None], Ietf],
) -> None:
    ietf = limited(9)
    path = ietf.new(10, b"abc")
    time.sleep(3)
    moved = ietf.append(path, 0, b"x")
    limits = dict(each.split("=") for each in moved["Upload-Limit"].split(", "))
    assert (moved.status, limits["max-size"]) == (409, "1000")
    assert 3000 < int(limits["max-age"]) < 3599
    for refused in (
        ietf.append(path, 3, b"x", headers={"Content-Type": "text/plain"}),
        ietf.append(path, 3, b"x", headers={"Upload-Complete": None}),
        ietf.append(f"{path}0", 3, b"x"),
    ):
        assert refused.status in (400, 404, 415)
        assert refused["Upload-Limit"] == "max-size=1000"


def test_R5_options_tell_the_limits(
    limited: Callable[[int | None], Ietf], server: ServerProcess
) -> None:
    ietf = limited(None)
    response = ietf.request("OPTIONS", ietf.collection)
    assert response["Upload-Limit"] == "max-size=1000, max-age=3600"
    assert response["Accept-Patch"] == PARTIAL
    assert response["Tus-Version"] == "1.0.0"


def test_R5_without_any_limit(make_server: MakeServer) -> None:
    ietf = Ietf(make_server("--expire-after", "0"), None)
    limit = f"max-size={LIMIT}" if LIMIT else "min-size=0"
    assert ietf.request("OPTIONS", ietf.collection)["Upload-Limit"] == limit


# Creation


def test_R6_R12_the_url_comes_before_the_body_is_read(spoken: Ietf) -> None:
    with spoken.begin_creation(LARGE) as connection:
        interim = announced(connection)
        assert interim["Upload-Draft-Interop-Version"] == str(spoken.version)
        assert ("Upload-Limit" in interim) is (spoken.version not in (3, 4, 5))
        assert "Upload-Offset" not in interim
        connection.send(b"x" * LARGE)
        response = connection.read_response("POST")
    assert response.status == 201
    assert response["Location"] == interim["Location"]
    assert spoken.is_complete(response)
    assert response["Upload-Offset"] == str(LARGE)


def test_R6_the_url_of_a_small_upload_does_not_wait_for_a_slow_finish(
    make_server: MakeServer, tmp_path: Path
) -> None:
    """Its body came with its head, so that both responses could go out together."""
    gate, hook = tmp_path / "gate", tmp_path / "hook.py"
    hook.write_text(
        f"""
import asyncio, os
async def pre_finish(event):
    while not os.path.exists({str(gate)!r}): await asyncio.sleep(0.01)
"""
    )
    ietf = Ietf(make_server("--hook", str(hook)), 9)
    with ietf.connect() as connection:
        fields = {**ietf.marks(), **ietf.complete(True), "Content-Length": "5"}
        connection.send(head_bytes("POST", ietf.collection, fields, connection.host) + b"hello")
        interim = announced(connection)
        gate.touch()
        response = connection.read_response("POST")
    assert (response.status, response["Location"]) == (201, interim["Location"])
    assert response.interim == ()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "PROPPATCH"])
def test_R6_every_method_with_content_creates(newest: Ietf, method: str) -> None:
    response = newest.create(b"hello", method=method)
    assert response.status == 201
    assert [each.status for each in response.interim] == [104]
    assert newest.stored(path_of(response["Location"])) == b"hello"


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_R6_methods_without_content_do_not(newest: Ietf, method: str) -> None:
    response = newest.request(method, newest.collection, {"Upload-Complete": "?1"})
    assert response.status == 405


@pytest.mark.parametrize(
    ("version", "way"), [(4, "direct"), (5, "direct"), (9, "direct"), (9, "parsed"), (9, "append")]
)
def test_R6_R14_offsets_while_the_body_comes_in(
    server: ServerProcess, version: int, way: str
) -> None:
    """Half of the body is there when they come; what they acknowledge is stored."""
    ietf, half = Ietf(server, version), b"x" * 1_000_000
    if way == "append":
        path = ietf.new(2 * len(half))
        connection = ietf.begin_append(path, 0, 2 * len(half), half, complete=True)
    else:
        connection = ietf.connect()
        framing = (
            {"Transfer-Encoding": "chunked"}
            if way == "parsed"
            else {"Content-Length": str(2 * len(half))}
        )
        fields = {**ietf.marks(), **ietf.complete(True), **framing}
        connection.send_head("POST", ietf.collection, fields)
        path = path_of(announced(connection)["Location"])
    with connection:
        send = connection.send_chunk if way == "parsed" else connection.send
        if way != "append":
            send(half)
        if version == 4:
            assert connection.silent_for(0.7)
        else:
            interim = connection.read_any()
            assert interim.status == 104
            assert int(interim["Upload-Offset"]) <= len(ietf.stored(path)) <= len(half)
            assert interim["Upload-Draft-Interop-Version"] == str(version)
            assert "Location" not in interim
        send(half)
        if way == "parsed":
            connection.send_last_chunk()
        response = connection.read_response("PATCH")
    assert response.status == 201
    assert ietf.is_complete(response)
    assert len(response.interim) <= 3


def test_R2_what_was_told_stays_when_the_body_proves_too_long(make_server: MakeServer) -> None:
    ietf = Ietf(make_server("--max-size", "1500000"), 9)
    path = path_of(ietf.create(b"hello", complete=False)["Location"])
    with ietf.connect() as connection:
        fields = ietf.append_headers(5, True, {"Transfer-Encoding": "chunked"})
        connection.send_head("PATCH", path, fields)
        connection.send_chunk(b"x" * 1_000_000)
        wait_told(connection, 1_000_005)
        connection.send_chunk(b"x" * 1_000_000)
        response = connection.read_response("PATCH")
    assert response.status == 413
    assert int(ietf.head(path)["Upload-Offset"]) >= 1_000_005


def test_R2_nothing_counts_of_a_body_that_proves_too_long_at_once(make_server: MakeServer) -> None:
    ietf = Ietf(make_server("--max-size", "1500000"), 4)
    path = path_of(ietf.create(b"hello", complete=False)["Location"])
    with ietf.connect() as connection:
        fields = ietf.append_headers(5, True, {"Transfer-Encoding": "chunked"})
        connection.send_head("PATCH", path, fields)
        connection.send_chunk(b"x" * 2_000_000)
        response = connection.read_response("PATCH")
    assert (response.status, response.interim) == (413, ())
    assert ietf.head(path)["Upload-Offset"] == "5"


def test_R7_responses_to_creations(ietf: Ietf) -> None:
    whole = ietf.create(b"hello")
    assert whole.status == 201
    assert ietf.is_complete(whole)
    part = ietf.create(b"hello", complete=False)
    assert part.status == 201
    assert not ietf.is_complete(part)
    for response in (whole, part):
        assert response["Upload-Offset"] == "5"
        assert ("Upload-Limit" in response) is (ietf.version not in (3, 4, 5))
        locations = {each["Location"] for each in response.interim} | {response["Location"]}
        assert len(locations) == 1
        assert response.get("Upload-Draft-Interop-Version") == (
            None if ietf.version is None else str(ietf.version)
        )


def test_R8_creations_without_content(ietf: Ietf) -> None:
    empty = ietf.create(b"")
    assert (empty.status, empty["Upload-Offset"]) == (201, "0")
    assert ietf.is_complete(empty)
    status = ietf.head(path_of(empty["Location"]))
    assert ietf.is_complete(status)
    assert status["Upload-Length"] == "0"
    careful = ietf.create(b"", complete=False)
    assert careful.status == 201
    assert not ietf.is_complete(careful)
    assert not ietf.is_complete(ietf.head(path_of(careful["Location"])))


def test_R8_a_creation_without_any_length_of_its_body_has_none(newest: Ietf) -> None:
    response = newest.request("POST", newest.collection, {"Upload-Complete": "?1"})
    assert (response.status, response["Upload-Complete"]) == (201, "?1")
    assert newest.head(path_of(response["Location"]))["Upload-Length"] == "0"


@pytest.mark.parametrize("length", [LARGE, 1000], ids=["past the parser", "parsed"])
def test_R9_a_cut_creation_keeps_what_arrived(spoken: Ietf, length: int) -> None:
    data = os.urandom(length)
    with spoken.begin_creation(length, data[: length // 3]) as connection:
        path = path_of(announced(connection)["Location"])
        spoken.wait_stored(path, length // 3)
    status = spoken.head(path)
    assert status["Upload-Offset"] == str(length // 3)
    assert status["Upload-Length"] == str(length)
    assert not spoken.is_complete(status)
    done = spoken.append(path, length // 3, data[length // 3 :], complete=True)
    assert spoken.is_complete(done)
    assert spoken.stored(path) == data


def test_R10_name_and_type_become_metadata(newest: Ietf) -> None:
    fields = {
        "Content-Disposition": "inline; filename=\"x\"; filename*=UTF-8''na%C3%AFve.txt",
        "Content-Type": "text/plain",
    }
    path = path_of(newest.create(b"hello", headers=fields)["Location"])
    info = newest.server.record(id_of(path))
    assert info["MetaData"] == {"filename": "naïve.txt", "filetype": "text/plain"}
    served = newest.request("GET", path)
    assert served.body == b"hello"
    assert "na%C3%AFve.txt" in served["Content-Disposition"]


def test_R10_a_put_is_named_by_its_url(newest: Ietf) -> None:
    response = newest.create(b"hello", method="PUT", path=f"{newest.collection}a/na%C3%AFve.txt")
    path = path_of(response["Location"])
    assert len(id_of(path)) == 32
    info = newest.server.record(id_of(path))
    assert info["MetaData"] == {"filename": "naïve.txt"}


def test_R11_a_client_that_waits_gets_both(spoken: Ietf) -> None:
    with spoken.begin_creation(LARGE, headers={"Expect": "100-continue"}) as connection:
        announced(connection)
        assert connection.read_any().status == 100
        connection.send(b"x" * LARGE)
        assert connection.read_response("POST").status == 201


def test_R11_a_refusal_comes_without_any(limited: Callable[[int | None], Ietf]) -> None:
    ietf = limited(9)
    with ietf.begin_creation(LARGE, headers={"Expect": "100-continue"}) as connection:
        response = connection.read_response("POST")
    assert (response.status, response.interim) == (413, ())


@pytest.mark.parametrize("version", ["2", "10", "x", "9.0", "-9", ""])
def test_R12_no_interim_response_to_a_version_that_is_not_spoken(
    server: ServerProcess, version: str
) -> None:
    ietf = Ietf(server, None)
    marks = {"Upload-Draft-Interop-Version": version}
    response = ietf.create(b"hello", headers=marks)
    assert response.status == 201
    assert response.interim == ()
    assert "Upload-Draft-Interop-Version" not in response


def test_R12_none_to_requests_without_version_or_of_tus_or_of_http_1_0(
    server: ServerProcess, tus: Tus
) -> None:
    assert Ietf(server, None).create(b"hello").interim == ()
    assert tus.create(5, body=b"hello").interim == ()
    with tus.connect() as connection:
        connection.send(
            b"POST /files/ HTTP/1.0\r\nUpload-Complete: ?1\r\nUpload-Draft-Interop-Version: 9\r\n"
            b"Content-Length: 5\r\n\r\nhello"
        )
        raw = connection.read_to_end()
    assert raw.startswith(b"HTTP/1.1 201 ")


# The offset


def test_R13_requests_for_the_offset(ietf: Ietf) -> None:
    path = ietf.new(10, b"abc")
    head = ietf.head(path)
    assert head.status == (200 if ietf.version is None else 204)
    get = ietf.request("GET", path)
    assert (get.status, get.body) == (204, b"")
    for response in (head, get):
        assert response["Upload-Offset"] == "3"
        assert response["Upload-Length"] == "10"
        assert response["Cache-Control"] == "no-store"
        assert not ietf.is_complete(response)
        assert ("Upload-Limit" in response) is (ietf.version not in (3, 4, 5))


def test_R13_an_unmarked_head_is_answered_with_the_fields_of_both(
    server: ServerProcess, tus: Tus
) -> None:
    path = tus.new(10)
    tus.patch(path, 0, b"abc")
    response = Ietf(server, None).head(path)
    assert response.status == 200
    assert response["Upload-Offset"] == "3"
    assert response["Upload-Complete"] == "?0"
    assert response["Upload-Length"] == "10"
    assert response["Tus-Resumable"] == "1.0.0"
    assert "Upload-Limit" in response
    assert "Upload-Complete" not in tus.head(path)


@pytest.mark.parametrize("name", ["Upload-Offset", "Upload-Complete"])
def test_R13_a_request_for_the_offset_with_fields_of_an_upload(newest: Ietf, name: str) -> None:
    path = newest.new(10)
    value = "5" if name == "Upload-Offset" else "?0"
    assert newest.head(path, {name: value}).status == 400
    assert Ietf(newest.server, None).head(path, {name: value}).status == 400


# Appends


def test_R14_an_append_at_another_offset(ietf: Ietf) -> None:
    path = ietf.new(100, b"a" * 12)
    response = ietf.append(path, 25, b"xyz")
    assert response.status == 409
    assert response["Upload-Offset"] == "12"
    assert not ietf.is_complete(response)
    document = problem(response)
    assert document["type"] == PROBLEMS + "mismatching-upload-offset"
    assert (document["expected-offset"], document["provided-offset"]) == (12, 25)
    assert ietf.stored(path) == b"a" * 12


def test_R14_what_an_append_needs(ietf: Ietf) -> None:
    path = ietf.new(100)
    name = "Upload-Incomplete" if ietf.version == 3 else "Upload-Complete"
    kind = {"Content-Type": PARTIAL}
    assert ietf.append(path, 0, b"abc", headers={"Upload-Offset": None, **kind}).status == 400
    assert ietf.append(path, 0, b"abc", headers={"Upload-Offset": "-1", **kind}).status == 400
    other = ietf.append(path, 0, b"abc", headers={"Content-Type": "text/plain"})
    assert other.status == (201 if ietf.version in (3, 4, 5) else 415)
    offset = 3 if other.status == 201 else 0
    if ietf.version != 3:
        response = ietf.append(path, offset, b"abc", headers={name: None, **kind})
        assert response.status == 400
        assert problem(response)["code"] == "ERR_INVALID_UPLOAD_COMPLETE"
    assert ietf.offset(path) == offset


def test_R15_R22_responses_to_appends(ietf: Ietf) -> None:
    path = ietf.new(10)
    part = ietf.append(path, 0, b"hello")
    assert part.status == (201 if ietf.version in (3, 4, 5, 6) else 204)
    assert not ietf.is_complete(part)
    assert part["Upload-Offset"] == "5"
    assert "Location" not in part
    done = ietf.append(path, 5, b"world", complete=True)
    assert done.status == 201
    assert ietf.is_complete(done)
    assert done["Upload-Offset"] == "10"
    assert path_of(done["Location"]) == path


def test_R16_bytes_past_the_length_end_the_upload(ietf: Ietf) -> None:
    path = ietf.new(5, b"abc")
    response = ietf.append(path, 3, b"x" * 100)
    assert response.status == 400
    assert not ietf.is_complete(response)
    assert problem(response)["type"] == PROBLEMS + "inconsistent-upload-length"
    assert ietf.head(path).status == 410
    assert ietf.append(path, 3, b"de", complete=True).status == 410
    assert id_of(path) not in ietf.server.uploads()


def test_R16_bytes_past_the_length_that_no_field_declared(newest: Ietf) -> None:
    path = newest.new(5)
    with newest.connect() as connection:
        fields = newest.append_headers(0, False, {"Transfer-Encoding": "chunked"})
        connection.send_head("PATCH", path, fields)
        connection.send_chunk(b"x" * 6)
        connection.send_last_chunk()
        response = connection.read_response("PATCH")
    assert response.status == 400
    assert newest.head(path).status == 410


def test_R16_nothing_ends_a_complete_upload(ietf: Ietf) -> None:
    path = path_of(ietf.create(b"hello")["Location"])
    response = ietf.append(path, 5, b"x")
    assert response.status == 400
    assert not ietf.is_complete(response)
    assert ietf.append(path, 5, b"x", complete=True).status == 400
    assert ietf.is_complete(ietf.head(path))
    assert ietf.stored(path) == b"hello"


def test_R17_the_append_that_completed_can_be_repeated(ietf: Ietf) -> None:
    path = ietf.new(5, b"hello")
    first = ietf.append(path, 5, b"", complete=True)
    again = ietf.append(path, 5, b"", complete=True)
    assert first.status == again.status == 201
    assert ietf.is_complete(again)
    assert again["Location"] == first["Location"]


def test_R18_delete(ietf: Ietf) -> None:
    for path in (ietf.new(5, b"abc"), path_of(ietf.create(b"hello")["Location"])):
        assert ietf.request("DELETE", path).status == 204
        assert ietf.head(path).status == 410
        assert ietf.append(path, 0, b"abc").status == 410
        assert id_of(path) not in ietf.server.uploads()


def test_R18_an_unmarked_delete_of_an_upload_of_tus_needs_the_version(
    server: ServerProcess, tus: Tus
) -> None:
    path = tus.new(5)
    assert Ietf(server, None).request("DELETE", path).status == 412
    assert tus.head(path).status == 200


@pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE"])
def test_R19_a_new_request_ends_an_earlier_append(spoken: Ietf, method: str) -> None:
    """The earlier connection is closed without a response: its client has given it up."""
    path = spoken.new(LARGE)
    with spoken.begin_append(path, 0, LARGE, b"x" * 1000) as earlier:
        spoken.wait_stored(path, 1000)
        if method == "HEAD":
            assert spoken.offset(path) == 1000
        elif method == "PATCH":
            assert spoken.append(path, 1000, b"y").status in (201, 204)
        else:
            assert spoken.request("DELETE", path).status == 204
        with pytest.raises(ConnectionEnded):
            earlier.read_response("PATCH")


def test_R19_a_creation_is_ended_too(newest: Ietf) -> None:
    with newest.begin_creation(LARGE, b"x" * 1000) as earlier:
        path = path_of(announced(earlier)["Location"])
        newest.wait_stored(path, 1000)
        assert newest.offset(path) == 1000
        with pytest.raises(ConnectionEnded):
            earlier.read_response("POST")


def test_R20_refusals_are_problem_details(ietf: Ietf) -> None:
    unknown = f"{ietf.collection}{'0' * 32}"
    response = ietf.append(unknown, 0, b"abc")
    assert response.status == 404
    document = problem(response)
    assert (document["type"], document["code"]) == ("about:blank", "ERR_UPLOAD_NOT_FOUND")
    assert not ietf.is_complete(response)


# Both protocols


def test_R23_begun_by_one_and_completed_by_the_other(ietf: Ietf, tus: Tus) -> None:
    path = tus.new(10)
    assert tus.patch(path, 0, b"hello").status == 204
    assert ietf.offset(path) == 5
    assert ietf.is_complete(ietf.append(path, 5, b"world", complete=True))
    assert tus.offset(path) == 10
    path = ietf.new(10, b"hello")
    assert tus.offset(path) == 5
    assert tus.patch(path, 5, b"world").status == 204
    assert ietf.is_complete(ietf.head(path))
    assert ietf.stored(path) == b"helloworld"


def test_R23_an_upload_of_tus_that_must_not_be_complete_yet(ietf: Ietf, tus: Tus) -> None:
    path = tus.new(5)
    assert not ietf.is_complete(ietf.append(path, 0, b"hello"))
    assert not ietf.is_complete(ietf.head(path))
    assert ietf.is_complete(ietf.append(path, 5, b"", complete=True))


def test_R23_a_client_of_tus_takes_an_upload_at_its_length_for_complete(
    newest: Ietf, tus: Tus
) -> None:
    """So its HEAD completes it, as nothing else will come."""
    path = newest.new(5, b"hello")
    assert Ietf(newest.server, None).head(path)["Upload-Complete"] == "?0"
    assert tus.offset(path) == 5
    assert newest.head(path)["Upload-Complete"] == "?1"


def test_R23_requests_that_name_no_protocol(server: ServerProcess, tus: Tus) -> None:
    plain = Ietf(server, None)
    path = tus.new(5)
    assert (
        plain.request("PATCH", path, {"Content-Type": OCTETS, "Upload-Offset": "0"}, b"a").status
        == 412
    )
    assert plain.request("POST", plain.collection, {}, b"hello").status == 412
    assert plain.request("PUT", plain.collection, {}, b"hello").status == 405
    fields = {"Content-Type": PARTIAL, "Upload-Offset": "0", "Upload-Complete": "?1"}
    assert plain.request("PATCH", path, fields, b"hello").status == 201
