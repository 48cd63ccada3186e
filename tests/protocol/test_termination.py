"""tus 1.0.0, termination: T29 and T30."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.events import Recorder
from tests.support.files import files_below
from tests.support.tus import Tus, id_of
from tests.support.waiting import wait_until
from tests.support.wire import ConnectionEnded

BODY = b"0123456789" * 200_000  # 2 MB


def traces(tus: Tus, path: str) -> list[str]:
    """The files in the upload directory that still hold something of an upload."""
    directory = tus.server.upload_dir
    return [file.name for file in directory.iterdir() if file.name.startswith(id_of(path))]


@pytest.mark.parametrize("sent", [0, 5, 10])
def test_T29_delete_frees_what_the_upload_took(tus: Tus, sent: int) -> None:
    path = tus.new(10)
    if sent:
        tus.patch(path, 0, b"x" * sent)
    response = tus.delete(path)
    assert (response.status, response.body) == (204, b"")
    assert traces(tus, path) == []


def test_T29_delete_of_an_unknown_upload_is_404(tus: Tus) -> None:
    assert tus.delete(tus.collection + "0" * 32).status == 404


def test_T29_delete_of_the_collection_is_refused(tus: Tus) -> None:
    assert tus.delete(tus.collection).status in {404, 405}


@pytest.mark.parametrize("sent", [5, 1_000_000])
def test_T29_a_running_patch_is_ended_first(tus: Tus, sent: int) -> None:
    path = tus.new(len(BODY))
    with tus.begin_patch(path, 0, len(BODY), BODY[:sent]) as patch:
        patch.wait_stored()
        assert tus.delete(path).status == 204
        with suppress(ConnectionEnded, ConnectionResetError):
            assert patch.response().status >= 400
    assert tus.head(path).status == 410
    assert traces(tus, path) == []


def test_T29_termination_hooks_run(make_server: MakeServer, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    tus = Tus(make_server(*recorder.flags, env=recorder.env))
    path = tus.new(10)
    assert tus.delete(path).status == 204
    recorder.wait_for("post-terminate", id_of(path))
    assert "pre-terminate" in recorder.types(id_of(path))


def test_T30_a_terminated_upload_is_gone(tus: Tus) -> None:
    path = tus.finished(b"hello")
    tus.delete(path)
    assert tus.head(path).status == 410
    assert tus.patch(path, 5, b"").status == 410
    assert tus.delete(path).status == 410
    assert tus.get(path).status == 404
    assert "Upload-Offset" not in tus.head(path)


def test_T30_it_is_remembered_after_a_restart(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(5)
    tus.delete(path)
    server.kill9()
    server.restart()
    assert tus.head(path).status == 410


def test_T30_it_is_forgotten_in_the_end(make_server: MakeServer) -> None:
    server = make_server("--tombstone-ttl", "1s", "--sweep-interval", "100ms")
    tus = Tus(server)
    path = tus.new(5)
    tus.delete(path)
    wait_until(lambda: tus.head(path).status == 404, "forgetting")
    assert tus.delete(path).status == 404
    name = id_of(path)
    wait_until(
        lambda: not [file for file in files_below(server.upload_dir) if name in file.name],
        "the tombstone's removal",
    )
