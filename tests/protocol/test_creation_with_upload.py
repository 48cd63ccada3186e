"""tus 1.0.0, creation-with-upload: T20 and T21."""

from __future__ import annotations

import pytest

from tests.conftest import MakeServer
from tests.support.tus import OCTETS, Tus, checksum, merged, path_of
from tests.support.waiting import wait_until
from tests.support.wire import chunk

BODY = bytes(range(256)) * 8_000  # 2 MB


def create_headers(length: int, **extra: str) -> dict[str, str]:
    base = {"Tus-Resumable": "1.0.0", "Upload-Length": str(length), "Content-Type": OCTETS}
    return merged(base, {name.replace("_", "-"): value for name, value in extra.items()})


# -- T20 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 100, 65_537, len(BODY)])
def test_T20_the_whole_upload_in_one_request(tus: Tus, size: int) -> None:
    response = tus.create(size, body=BODY[:size])
    assert (response.status, response["Upload-Offset"]) == (201, str(size))
    path = path_of(response["Location"])
    assert tus.offset(path) == size
    assert tus.get(path).body == BODY[:size]


@pytest.mark.parametrize("first", [0, 3, 1_000_000])
def test_T20_the_beginning_of_an_upload(tus: Tus, first: int) -> None:
    response = tus.create(len(BODY), body=BODY[:first])
    assert (response.status, response["Upload-Offset"]) == (201, str(first))
    path = path_of(response["Location"])
    assert tus.offset(path) == first
    assert tus.patch(path, first, BODY[first:]).status == 204
    assert tus.stored(path) == BODY


def test_T20_with_a_deferred_length(tus: Tus) -> None:
    response = tus.create(body=b"hello", headers={"Upload-Defer-Length": "1"})
    assert (response.status, response["Upload-Offset"]) == (201, "5")
    path = path_of(response["Location"])
    assert tus.head(path)["Upload-Defer-Length"] == "1"


def test_T20_with_a_chunked_body(tus: Tus) -> None:
    headers = create_headers(len(BODY), Transfer_Encoding="chunked")
    with tus.connect() as connection:
        connection.send_head("POST", tus.collection, headers)
        connection.send(chunk(BODY[:10]) + chunk(BODY[10:]))
        connection.send_last_chunk()
        response = connection.read_response("POST")
    assert (response.status, response["Upload-Offset"]) == (201, str(len(BODY)))
    assert tus.stored(path_of(response["Location"])) == BODY


def test_T20_a_body_longer_than_the_upload_makes_nothing(tus: Tus) -> None:
    before = tus.data_files()
    assert tus.create(4, body=b"hello").status == 413
    assert tus.data_files() == before


def test_T20_a_chunked_body_longer_than_the_upload_stores_nothing(make_server: MakeServer) -> None:
    tus = Tus(make_server())
    with tus.connect() as connection:
        headers = create_headers(4, Transfer_Encoding="chunked")
        connection.send_head("POST", tus.collection, headers)
        connection.send(chunk(b"hello") + b"0\r\n\r\n")
        assert connection.read_response("POST").status == 413
    assert all(tus.server.data_file(name).stat().st_size == 0 for name in tus.data_files())


def test_T20_a_checksum_that_holds(tus: Tus) -> None:
    response = tus.create(5, body=b"hello", headers={"Upload-Checksum": checksum(b"hello")})
    assert (response.status, response["Upload-Offset"]) == (201, "5")


@pytest.mark.parametrize(
    ("value", "status"), [(checksum(b"other"), 460), ("md4 AAAA", 400), ("sha1", 400)]
)
def test_T20_a_checksum_that_does_not_hold_stores_nothing(
    make_server: MakeServer, value: str, status: int
) -> None:
    tus = Tus(make_server())
    assert tus.create(5, body=b"hello", headers={"Upload-Checksum": value}).status == status
    assert all(tus.server.data_file(name).stat().st_size == 0 for name in tus.data_files())


@pytest.mark.parametrize("sent", [5, 1_000_000])
def test_T20_bytes_before_a_cut_are_kept(make_server: MakeServer, sent: int) -> None:
    tus = Tus(make_server())
    with tus.connect() as connection:
        headers = create_headers(len(BODY), Content_Length=str(len(BODY)))
        connection.send_head("POST", tus.collection, headers)
        connection.send(BODY[:sent])
        connection.half_close()
        connection.read_to_end()
    (name,) = tus.data_files()
    path = tus.collection + name
    assert tus.offset(path) == sent
    assert tus.patch(path, sent, BODY[sent:]).status == 204
    assert tus.stored(path) == BODY


def test_T20_a_cut_before_the_checksum_could_be_checked_keeps_nothing(
    make_server: MakeServer,
) -> None:
    tus = Tus(make_server())
    with tus.connect() as connection:
        extra = {"Content-Length": str(len(BODY)), "Upload-Checksum": checksum(BODY)}
        connection.send_head("POST", tus.collection, merged(create_headers(len(BODY)), extra))
        connection.send(BODY[:1_000_000])
        connection.half_close()
        connection.read_to_end()
    assert [tus.offset(tus.collection + name) for name in tus.data_files()] in ([], [0])


# -- T21 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, len(BODY)])
def test_T21_an_accepted_patch_is_told_to_continue(tus: Tus, size: int) -> None:
    path = tus.new(size)
    extra = {"Content-Length": str(size), "Expect": "100-continue"}
    with tus.connect() as connection:
        connection.send_head("PATCH", path, tus.patch_headers(0, extra))
        assert connection.read_any("PATCH").status == 100
        connection.send(BODY[:size])
        response = connection.read_response("PATCH")
    assert (response.status, response.interim) == (204, ())
    assert tus.stored(path) == BODY[:size]


@pytest.mark.parametrize("size", [5, len(BODY)])
def test_T21_an_accepted_creation_is_told_to_continue(tus: Tus, size: int) -> None:
    extra = {"Content-Length": str(size), "Expect": "100-continue"}
    with tus.connect() as connection:
        connection.send_head("POST", tus.collection, merged(create_headers(size), extra))
        assert connection.read_any("POST").status == 100
        connection.send(BODY[:size])
        response = connection.read_response("POST")
    assert (response.status, response["Upload-Offset"]) == (201, str(size))


def test_T21_a_chunked_patch_is_told_to_continue(tus: Tus) -> None:
    path = tus.new(5)
    extra = {"Transfer-Encoding": "chunked", "Expect": "100-continue"}
    with tus.connect() as connection:
        connection.send_head("PATCH", path, tus.patch_headers(0, extra))
        assert connection.read_any("PATCH").status == 100
        connection.send(chunk(b"hello"))
        connection.send_last_chunk()
        assert connection.read_response("PATCH").status == 204
    assert tus.stored(path) == b"hello"


@pytest.mark.parametrize(
    ("extra", "status"),
    [
        ({"Upload-Offset": "3"}, 409),
        ({"Upload-Offset": "-3"}, 400),
        ({"Tus-Resumable": "0.1"}, 412),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Length": str(len(BODY) + 1)}, 413),
        ({"Upload-Checksum": "md4 AAAA"}, 400),
    ],
)
def test_T21_a_refused_patch_is_not_told_to_continue(
    tus: Tus, extra: dict[str, str], status: int
) -> None:
    path = tus.new(len(BODY))
    base = {"Content-Length": str(len(BODY)), "Expect": "100-continue"}
    with tus.connect() as connection:
        connection.send_head("PATCH", path, tus.patch_headers(0, {**base, **extra}))
        assert connection.read_any("PATCH").status == status
    assert tus.stored(path) == b""


def test_T21_a_patch_of_an_unknown_upload_is_not_told_to_continue(tus: Tus) -> None:
    path = tus.collection + "0" * 32
    extra = {"Content-Length": "100000", "Expect": "100-continue"}
    with tus.connect() as connection:
        connection.send_head("PATCH", path, tus.patch_headers(0, extra))
        assert connection.read_any("PATCH").status == 404


@pytest.mark.parametrize(
    ("extra", "status"),
    [
        ({"Upload-Length": "x"}, 400),
        ({"Upload-Length": "10"}, 413),
        ({"Upload-Metadata": "a b c"}, 400),
        ({"Tus-Resumable": "0.1"}, 412),
    ],
)
def test_T21_a_refused_creation_is_not_told_to_continue(
    tus: Tus, extra: dict[str, str], status: int
) -> None:
    before = tus.data_files()
    base = {"Content-Length": str(len(BODY)), "Expect": "100-continue"}
    headers = merged(create_headers(len(BODY)), {**base, **extra})
    with tus.connect() as connection:
        connection.send_head("POST", tus.collection, headers)
        assert connection.read_any("POST").status == status
    assert tus.data_files() == before


def test_T21_nothing_but_100_is_sent_before_the_body(tus: Tus) -> None:
    path = tus.new(5)
    extra = {"Content-Length": "5", "Expect": "100-continue"}
    with tus.connect() as connection:
        connection.send_head("PATCH", path, tus.patch_headers(0, extra))
        assert connection.read_any("PATCH").status == 100
        connection.send(b"hel")
        wait_until(lambda: tus.stored(path) == b"hel", "the first bytes")
        assert connection.silent_for(0.05)
        connection.send(b"lo")
        assert connection.read_any("PATCH").status == 204
