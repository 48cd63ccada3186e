"""Watching an upload: a GET of its progress interrupts nothing, unlike a HEAD."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, path_of
from tests.support.waiting import wait_until
from tusd_py.web.progress import MEDIA_TYPE

WATCHING = {"Accept": MEDIA_TYPE}
PIECE = b"x" * 100_000


def progress(tus: Tus, path: str) -> dict[str, object]:
    response = tus.get(path, WATCHING)
    assert response.status == 200, response
    assert response["Content-Type"] == MEDIA_TYPE
    assert response["Cache-Control"] == "no-store"
    assert response["Vary"] == "Accept"
    found = json.loads(response.body)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("flags", [(), ("--workers", "2")], ids=str)
def test_whoever_is_writing_goes_on(make_server: MakeServer, flags: tuple[str, ...]) -> None:
    tus = Tus(make_server(*flags))
    path = tus.new(10 * len(PIECE))
    offsets: list[int] = []
    with tus.begin_patch(path, 0, 10 * len(PIECE)) as patch:
        for _ in range(10):
            patch.send(PIECE)
            patch.wait_stored()
            offsets += [int(str(progress(tus, path)["offset"])) for _ in range(5)]
        assert patch.response().status == 204
    assert offsets == sorted(offsets)
    assert offsets[-1] == 10 * len(PIECE)
    assert progress(tus, path)["finished"] is True
    assert tus.get(path).body == 10 * PIECE


def test_a_head_ends_it(tus: Tus) -> None:
    """The reason for watching."""
    path = tus.new(2 * len(PIECE))
    with tus.begin_patch(path, 0, 2 * len(PIECE), PIECE) as patch:
        patch.wait_stored()
        assert tus.offset(path) == len(PIECE)
        assert patch.response().status == 409


def test_it_tells_what_a_head_tells(tus: Tus) -> None:
    path = tus.new(10, body=b"hello")
    expires = parsedate_to_datetime(tus.head(path)["Upload-Expires"])
    assert progress(tus, path) == {
        "id": id_of(path),
        "offset": 5,
        "length": 10,
        "finished": False,
        "is_partial": False,
        "is_final": False,
        "expires_at": expires.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    assert datetime.now(UTC) < expires


def test_of_a_deferred_length_and_of_a_final_that_waits(tus: Tus) -> None:
    assert progress(tus, tus.new(None))["length"] is None
    part = tus.new(5, headers={"Upload-Concat": "partial"})
    assert progress(tus, part)["is_partial"] is True
    final = path_of(tus.create(headers={"Upload-Concat": f"final;{part}"})["Location"])
    told = progress(tus, final)
    assert (told["offset"], told["length"], told["is_final"]) == (None, 5, True)
    tus.patch(part, 0, b"hello")
    # It is joined after the answer to its last part.
    wait_until(lambda: progress(tus, final)["finished"] is True, "the final is joined")
    assert progress(tus, final)["offset"] == 5
    assert progress(tus, final)["expires_at"] is None


def test_bytes_of_a_chunk_that_is_not_verified_do_not_count(tus: Tus) -> None:
    path = tus.new(2_000_000)
    headers = {"Upload-Checksum": "sha1 " + "A" * 27 + "="}
    with tus.begin_patch(path, 0, 2_000_000, b"x" * 1_900_000, headers) as patch:
        patch.wait_stored_in_part()
        assert progress(tus, path)["offset"] == 0


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "application/json, text/plain, */*", "", "text/html"]
)
def test_who_does_not_ask_for_it_downloads(tus: Tus, accept: str) -> None:
    path = tus.finished(b"hello")
    assert tus.get(path, {"Accept": accept}).body == b"hello"


@pytest.mark.parametrize("accept", [MEDIA_TYPE.upper(), f"text/html, {MEDIA_TYPE};q=0.5, */*"])
def test_it_may_be_one_of_several(tus: Tus, accept: str) -> None:
    path = tus.finished(b"hello")
    assert json.loads(tus.get(path, {"Accept": accept}).body)["offset"] == 5


def test_what_there_is_not(tus: Tus) -> None:
    assert tus.get(tus.collection + "0" * 32, WATCHING).status == 404
    removed = tus.new(5)
    tus.delete(removed)
    assert tus.get(removed, WATCHING).status == 410
    assert tus.get(tus.collection, WATCHING).status == 405


def test_without_downloads(make_server: MakeServer) -> None:
    tus = Tus(make_server("--disable-download"))
    path = tus.finished(b"hello")
    assert tus.get(path).status == 405
    assert progress(tus, path)["finished"] is True


def test_hooks_have_their_say(make_server: MakeServer, tmp_path: Path) -> None:
    hook = tmp_path / "say.py"
    hook.write_text(
        "from tusd_py.events.model import Reject\n"
        "async def pre_access(event):\n"
        "    if event.request.method == 'GET':\n"
        "        raise Reject(403, 'not you')\n"
    )
    tus = Tus(make_server("--hook", str(hook)))
    path = tus.new(5)
    refused = tus.get(path, WATCHING)
    assert (refused.status, refused.code) == (403, "ERR_UPLOAD_REJECTED")
    assert tus.head(path).status == 200


def test_pages_of_other_origins_may_watch(tus: Tus, server: ServerProcess) -> None:
    answer = tus.get(tus.new(5), {**WATCHING, "Origin": "https://page.example"})
    assert answer["Access-Control-Allow-Origin"] == "https://page.example"
