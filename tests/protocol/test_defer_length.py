"""tus 1.0.0, creation-defer-length: T22 and T23."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.events import Recorder
from tests.support.tus import Tus, id_of, path_of
from tests.support.wire import chunk

# -- T22 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0", "2", "true", "", "-1", "01", "1, 1"])
def test_T22_other_values_than_1_make_nothing(tus: Tus, value: str) -> None:
    before = tus.data_files()
    assert tus.create(headers={"Upload-Defer-Length": value}).status == 400
    assert tus.data_files() == before


@pytest.mark.parametrize("value", ["0", "2", "true"])
def test_T22_other_values_than_1_beside_a_length_make_nothing(tus: Tus, value: str) -> None:
    before = tus.data_files()
    assert tus.create(5, headers={"Upload-Defer-Length": value}).status == 400
    assert tus.data_files() == before


def test_T22_head_tells_that_the_length_is_unknown_until_it_is_known(tus: Tus) -> None:
    path = tus.new(None)
    for offset in (0, 3):
        head = tus.head(path)
        assert (head["Upload-Defer-Length"], head["Upload-Offset"]) == ("1", str(offset))
        assert "Upload-Length" not in head
        if offset == 0:
            tus.patch(path, 0, b"abc")
    tus.patch(path, 3, b"de", {"Upload-Length": "10"})
    head = tus.head(path)
    assert (head["Upload-Length"], head["Upload-Offset"]) == ("10", "5")
    assert "Upload-Defer-Length" not in head


# -- T23 ---------------------------------------------------------------------------------------


def test_T23_a_patch_sets_the_length_and_the_upload_completes(
    make_server: MakeServer, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path)
    tus = Tus(make_server(*recorder.flags, env=recorder.env))
    path = tus.new(None)
    assert tus.patch(path, 0, b"hello").status == 204
    assert tus.get(path).status == 404
    response = tus.patch(path, 5, b" world", {"Upload-Length": "11"})
    assert (response.status, response["Upload-Offset"]) == (204, "11")
    assert tus.get(path).body == b"hello world"
    recorder.wait_for("post-finish", id_of(path))


def test_T23_an_empty_patch_may_set_the_length_of_what_is_there(
    make_server: MakeServer, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path)
    tus = Tus(make_server(*recorder.flags, env=recorder.env))
    path = tus.new(None)
    tus.patch(path, 0, b"hello")
    assert tus.patch(path, 5, b"", {"Upload-Length": "5"}).status == 204
    assert tus.get(path).body == b"hello"
    recorder.wait_for("post-finish", id_of(path))


def test_T23_the_same_length_may_be_said_again(tus: Tus) -> None:
    path = tus.new(None)
    for offset in (0, 2, 4):
        response = tus.patch(path, offset, b"xx", {"Upload-Length": "6"})
        assert response.status == 204
    assert tus.get(path).body == b"xxxxxx"


@pytest.mark.parametrize("deferred", [True, False])
@pytest.mark.parametrize("other", ["9", "11"])
def test_T23_another_length_later_is_refused(tus: Tus, other: str, deferred: bool) -> None:
    path = tus.new(None if deferred else 10)
    tus.patch(path, 0, b"xx", {"Upload-Length": "10"})
    assert tus.patch(path, 2, b"yy", {"Upload-Length": other}).status == 400
    assert tus.stored(path) == b"xx"
    assert tus.head(path)["Upload-Length"] == "10"


def test_T23_a_length_less_than_the_offset_is_refused(tus: Tus) -> None:
    path = tus.new(None)
    tus.patch(path, 0, b"hello")
    assert tus.patch(path, 5, b"", {"Upload-Length": "4"}).status == 400
    assert tus.head(path)["Upload-Defer-Length"] == "1"


def test_T23_a_body_that_goes_over_the_length_it_sets_is_refused(tus: Tus) -> None:
    path = tus.new(None)
    assert tus.patch(path, 0, b"hello", {"Upload-Length": "4"}).status == 413
    assert tus.stored(path) == b""


def test_T23_a_refused_patch_sets_no_length(tus: Tus) -> None:
    path = tus.new(None)
    assert tus.patch(path, 3, b"", {"Upload-Length": "10"}).status == 409
    assert tus.patch(path, 0, b"x", {"Upload-Length": "10", "Content-Type": "a/b"}).status == 415
    assert tus.head(path)["Upload-Defer-Length"] == "1"


def test_T23_a_length_over_the_maximum_is_refused(make_server: MakeServer) -> None:
    tus = Tus(make_server("--max-size", "10"))
    path = tus.new(None)
    assert tus.patch(path, 0, b"x", {"Upload-Length": "11"}).status == 413
    assert tus.stored(path) == b""
    assert tus.head(path)["Upload-Defer-Length"] == "1"
    assert tus.patch(path, 0, b"x" * 10, {"Upload-Length": "10"}).status == 204


def test_T23_the_maximum_holds_while_the_length_is_unknown(make_server: MakeServer) -> None:
    tus = Tus(make_server("--max-size", "10"))
    path = tus.new(None)
    assert tus.patch(path, 0, b"x" * 8).status == 204
    assert tus.patch(path, 8, b"x" * 3).status == 413
    assert tus.offset(path) == 8
    with tus.begin_patch(path, 8, None, b"xx") as patch:
        patch.connection.send(chunk(b"y") + b"0\r\n\r\n")
        assert patch.response().status == 413
    assert tus.offset(path) == 8
    assert tus.patch(path, 8, b"xx").status == 204
    assert tus.patch(path, 10, b"x").status == 413
    assert tus.stored(path) == b"x" * 10


def test_T23_the_maximum_holds_for_a_creation_with_upload(make_server: MakeServer) -> None:
    tus = Tus(make_server("--max-size", "10"))
    deferred = {"Upload-Defer-Length": "1"}
    assert tus.create(body=b"x" * 11, headers=deferred).status == 413
    assert tus.data_files() == []
    response = tus.create(body=b"x" * 10, headers=deferred)
    assert response.status == 201
    assert tus.offset(path_of(response["Location"])) == 10


def test_T23_the_length_outlives_the_server(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(None)
    tus.patch(path, 0, b"hello", {"Upload-Length": "10"})
    server.kill9()
    server.restart()
    head = tus.head(path)
    assert (head["Upload-Offset"], head["Upload-Length"]) == ("5", "10")
