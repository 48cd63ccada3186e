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


async def test_a_record_that_had_just_changed_is_looked_at_again(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of a file system may stand still for longer than an upload takes: then no time of the file tells."""
    monkeypatch.setattr(known, "_sign", lambda status: (status.st_ino, status.st_size, 0, 0))
    other = FileStore(tmp_path)
    other.open("none")
    upload = await other.create(UploadInfo(id="a", length=0, created_at=1_700_000_000.0))
    assert not (await store.load("a")).finished
    await other.finish(upload.with_info(finished_at=1_732_690_123.5).info, sync=False)
    assert (await store.load("a")).info.finished_at == 1_732_690_123.5
    other.close()


async def test_one_that_was_left_alone_is_not(
    store: FileStore, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "_COARSEST_CLOCK_NS", 0)
    first = await store.load(ids[0])
    monkeypatch.setattr(known, "_ending_of", lambda path, size: pytest.fail("it was read again"))
    assert (await store.load(ids[0])).info is first.info
