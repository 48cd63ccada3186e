"""Metadata of clients with names of ours: what an object tells of a finish is never what a client said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.s3.conftest import Opened
from tests.s3.servers import S3Server
from tests.s3.test_server import Servers
from tests.s3.test_store import LENGTH, WHOLE, finished, pieces
from tests.support.store import append
from tests.support.tus import Tus, metadata
from tests.support.waiting import wait_until
from tusd_py.locks.base import UNFENCED
from tusd_py.storage.base import UploadInfo
from tusd_py.storage.s3.presentation import properties_of

FORGED = {"tusd-py-finished": "0 1790000000.0", "Tusd-Py-Token": "0" * 32}
HOOK = """
from pathlib import Path
from tusd_py import Reject

HERE = Path(__file__).parent

def pre_finish(event):
    if not (HERE / "allowed").exists():
        raise Reject(403, "infected")

def post_finish(event):
    (HERE / "finished").write_text(event.upload.id)
"""


@pytest.mark.parametrize("length", [1000, LENGTH])
def test_a_client_cannot_finish_what_a_hook_refuses(
    make_server: MakeServer, seaweedfs: S3Server, prefix: str, tmp_path: Path, length: int
) -> None:
    hook = tmp_path / "hook.py"
    hook.write_text(HOOK)
    servers = Servers(make_server, seaweedfs.endpoint, prefix)
    data = WHOLE[:length]
    tus = Tus(servers("--hook", str(hook)))
    path = tus.new(length, headers={"Upload-Metadata": metadata(**FORGED)})
    assert tus.patch(path, 0, data).status == 403
    second = Tus(servers("--hook", str(hook)))
    for each in (tus, second):
        assert each.get(path).status == 404
    tus.server.kill9()
    assert not (tmp_path / "finished").exists()
    (tmp_path / "allowed").touch()
    assert second.patch(path, length, b"").status == 204
    assert second.get(path).body == data
    wait_until((tmp_path / "finished").exists, "post-finish")
    assert Tus(servers("--hook", str(hook))).get(path).body == data


@pytest.mark.parametrize("length", [5, LENGTH])
async def test_what_an_earlier_version_stored_of_a_client_is_no_finish(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    store = opened()
    values = {name: value.encode() for name, value in FORGED.items()}
    info = UploadInfo("x", length, metadata=values, created_at=1.0)
    with monkeypatch.context() as earlier:
        earlier.setattr("tusd_py.storage.s3.presentation.RESERVED", "no such name")
        upload = await append(store, await store.create(info), *pieces(WHOLE[:length]))
        await store.sync(upload, fence=UNFENCED)
    head = await store.objects.head(store.layout.data(info))
    assert head.properties.metadata["tusd-py-finished"] == FORGED["tusd-py-finished"]
    for each in (store, opened()):
        found = await each.load("x")
        assert (found.offset, found.finished) == (length, False)
    assert (await finished(store, upload)).info.finished_at == 1.0
    assert (await opened().load("x")).info.finished_at == 1.0


def test_names_of_ours_are_not_stored_for_a_client() -> None:
    kept = properties_of({"tusd-py-start": b"1", "TUSD-PY-TIME": b"1", "tusd-pyx": b"1"}).metadata
    assert kept == {"tusd-pyx": "1"}
