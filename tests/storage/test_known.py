"""Records that are not read again: those that clients ask for, whoever else goes through the directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tusd_py.storage import known
from tusd_py.storage.base import Upload, UploadInfo
from tusd_py.storage.file import FileStore

MOST = 4


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileStore]:
    """One that remembers few, and has written none of them itself."""
    monkeypatch.setattr(known, "_MOST", MOST)
    store = FileStore(tmp_path)
    store.open()
    yield store
    store.close()


@pytest.fixture
async def ids(tmp_path: Path) -> list[str]:
    """More uploads than are remembered, made by another process."""
    made = [f"{number:02}" for number in range(3 * MOST)]
    other = FileStore(tmp_path)
    other.open("none")
    for upload_id in made:
        await other.create(UploadInfo(id=upload_id, length=1))
    other.close()
    return made


async def test_a_record_is_read_once(store: FileStore, ids: list[str]) -> None:
    first = await store.load(ids[0])
    assert (await store.load(ids[0])).info is first.info


async def test_those_asked_for_last_are_remembered(store: FileStore, ids: list[str]) -> None:
    found = [await store.load(upload_id) for upload_id in ids]
    for upload in found[-MOST:]:
        assert (await store.load(upload.id)).info is upload.info
    again = await store.load(ids[0])
    assert again == found[0]
    assert again.info is not found[0].info


async def test_a_sweep_does_not_push_out_what_clients_ask_for(
    store: FileStore, ids: list[str]
) -> None:
    first = await store.load(ids[0])
    swept = await store.load_each(ids)
    assert [upload.id for upload in swept if isinstance(upload, Upload)] == ids
    assert (await store.load(ids[0])).info is first.info
