"""The finish of an upload in its record: the last bytes, written in place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.tus import Tus, id_of, metadata
from tusd_py.locks.base import UNFENCED
from tusd_py.storage.base import StorageError, UploadInfo
from tusd_py.storage.file import records
from tusd_py.storage.file.store import FileStore

CREATED = 1_700_000_000.25
FINISHED = 1_732_690_123.654321


def record(upload_id: str = "a") -> UploadInfo:
    return UploadInfo(id=upload_id, length=0, created_at=CREATED, metadata={"name": b"x"})


def finished(info: UploadInfo, at: float = FINISHED) -> UploadInfo:
    return UploadInfo(
        id=info.id,
        length=info.length,
        created_at=info.created_at,
        metadata=info.metadata,
        finished_at=at,
    )


def read(content: bytes) -> UploadInfo:
    return records.parse(content, upload_id="a", root="/srv", changed_at=0.0)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    store = FileStore(tmp_path)
    store.open("shared")
    return store


def test_a_finish_is_written_into_the_record_and_makes_no_file(tus: Tus) -> None:
    path = tus.new(5, headers={"Upload-Metadata": metadata(filename="a.txt")})
    file = tus.server.info_file(id_of(path))
    before, said = file.stat(), json.loads(file.read_bytes())
    assert said["TusdPy"]["FinishedAt"] == 0
    assert tus.patch(path, 0, b"hello").status == 204
    after, says = file.stat(), json.loads(file.read_bytes())
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert says["TusdPy"].pop("FinishedAt") >= said["TusdPy"]["CreatedAt"]
    del said["TusdPy"]["FinishedAt"]
    assert says == said


def test_a_record_that_somebody_has_written_anew_is_replaced(tus: Tus) -> None:
    path = tus.new(5)
    file = tus.server.info_file(id_of(path))
    document = json.loads(file.read_bytes())
    document["TusdPy"]["FinishedAt"] = None
    file.write_text(json.dumps(document, indent=2))
    assert tus.patch(path, 0, b"hello").status == 204
    assert json.loads(file.read_bytes())["TusdPy"]["FinishedAt"] > 0
    assert tus.get(path).body == b"hello"


async def test_the_time_is_read_as_it_was_written(store: FileStore) -> None:
    info = record()
    await store.create(info)
    await store.finish(finished(info), sync=True, fence=UNFENCED)
    assert (await store.load("a")).info == finished(info)
    store.close()
    again = FileStore(store.root)
    again.open()
    assert (await again.load("a")).info.finished_at == FINISHED
    again.close()


async def test_others_see_it_though_the_file_is_as_old_as_before(store: FileStore) -> None:
    """A coarse file system clock may not advance during a whole upload."""
    other = FileStore(store.root)
    other.open("shared")
    info = record()
    await store.create(info)
    path = f"{store.root}/a.info"
    os.utime(path, (CREATED, CREATED))
    assert not (await other.load("a")).finished
    await store.finish(finished(info), sync=False, fence=UNFENCED)
    os.utime(path, (CREATED, CREATED))
    assert (await other.load("a")).finished
    other.close()
    store.close()


# Seconds with six, three and no decimals, the last of them zero or not.
TIMES = (FINISHED, 1_732_690_123.5, 1_732_690_120.0, 1_732_690_123.000001, 1_999_999_999.999999)


def old_ending(at: float) -> bytes:
    """Return the ending that earlier versions wrote."""
    return b',"FinishedAt":%b}}\n' % f"{at:.6f}".ljust(17, "0").encode()


@pytest.mark.parametrize("at", TIMES)
def test_a_record_is_as_long_before_the_finish_as_after_it(at: float) -> None:
    whole = records.serialize(finished(record(), at), root="/srv")
    assert len(whole) == len(records.serialize(record(), root="/srv"))
    assert read(whole).finished_at == at
    assert json.loads(whole)["TusdPy"]["FinishedAt"] == at


@pytest.mark.parametrize("at", TIMES)
def test_a_torn_write_is_a_record_of_what_is_not_finished(at: float) -> None:
    """Covers every state that a power cut can leave, or a concurrent reader see, during the write."""
    old = records.serialize(record(), root="/srv")
    whole = records.serialize(finished(record(), at), root="/srv")
    for boundary in range(len(old) + 1):
        for torn in (whole[:boundary] + old[boundary:], old[:boundary] + whole[boundary:]):
            found = read(torn)
            assert found.id == "a"
            if torn == whole:
                assert found.finished_at == at
            else:
                assert found.finished_at is None


@pytest.mark.parametrize("at", TIMES)
def test_a_torn_write_of_the_version_before_is_too(at: float) -> None:
    old = records.serialize(record(), root="/srv")
    head = old[: -len(records.UNFINISHED)]
    whole = head + old_ending(at)
    assert read(whole).finished_at == at
    for boundary in range(len(old)):
        for torn in (
            whole[:boundary] + old[boundary:],
            whole[:boundary] + old[boundary:] + b"\0",
            old[:boundary] + whole[boundary:],
        ):
            found = read(torn)
            assert found.id == "a"
            assert found.finished_at in (None, at)
    assert read(old + b"\0").finished_at is None


def test_sectors_that_were_written_in_any_order_are_too() -> None:
    """The record spans many sectors, its time starting anywhere in one; each sector is old or new."""
    for filler in range(460, 540):
        info = UploadInfo(id="a", length=0, created_at=CREATED, metadata={"name": b"x" * filler})
        old = records.serialize(info, root="/srv")
        whole = records.serialize(finished(info), root="/srv")
        first = next(at for at in range(len(old)) if whole[at] != old[at])
        for boundary in range(0, len(old), 512):
            for torn in (whole[:boundary] + old[boundary:], old[:boundary] + whole[boundary:]):
                assert read(torn).finished_at in (None, FINISHED), (filler, boundary, first)


@pytest.mark.parametrize("nuls", [1, 7, 512, 4096])
def test_what_a_power_cut_left_behind_the_last_brace_is_cut_off(tus: Tus, nuls: int) -> None:
    """An interrupted finish of earlier versions: the new size was on the disk, the content was not."""
    paths = [tus.new(10) for _ in range(4)]
    for path in paths:
        assert tus.patch(path, 0, b"hello").status == 204
        file = tus.server.info_file(id_of(path))
        file.write_bytes(file.read_bytes() + b"\0" * nuls)
    goes_on, is_removed, is_complete, waits = paths
    assert [tus.offset(path) for path in paths] == [5] * 4
    assert tus.get(goes_on).status == 404
    assert tus.patch(goes_on, 5, b"world").status == 204
    assert tus.get(goes_on).body == b"helloworld"
    assert b"\0" not in tus.server.info_file(id_of(goes_on)).read_bytes()
    assert tus.delete(is_removed).status == 204
    assert tus.head(is_removed).status == 410
    # All bytes were there when the power was cut: whoever asks next finishes it.
    with tus.server.data_file(id_of(is_complete)).open("ab") as data:
        data.write(b"world")
    assert tus.offset(is_complete) == 10
    assert tus.get(is_complete).body == b"helloworld"
    assert tus.offset(waits) == 5


def test_a_record_of_nuls_alone_is_one_that_was_never_written(tus: Tus) -> None:
    path = tus.new(10)
    file = tus.server.info_file(id_of(path))
    file.write_bytes(b"\0" * file.stat().st_size)
    assert tus.head(path).status == 404
    assert tus.patch(path, 0, b"x").status == 404
    assert tus.delete(path).status == 404
    assert tus.get(path).status == 404
    assert file.exists()


def test_a_finished_record_of_the_version_before_is_one(tus: Tus) -> None:
    path = tus.new(5)
    assert tus.patch(path, 0, b"hello").status == 204
    file = tus.server.info_file(id_of(path))
    content = file.read_bytes()[: -len(records.UNFINISHED)] + old_ending(1_795_000_000.5)
    file.write_bytes(content)
    assert tus.get(path).body == b"hello"
    assert tus.offset(path) == 5
    assert file.read_bytes() == content


async def test_a_finish_is_taken_back_if_its_record_cannot_be_synced(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = record()
    await store.create(info)

    async def fail_for_the_record(data: str | None, *_files: str, **_options: object) -> None:
        if data is None:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(store._syncs, "sync", fail_for_the_record)
    with pytest.raises(StorageError):
        await store.finish(finished(info), sync=True, fence=UNFENCED)
    assert not (await store.load("a")).finished
    again = FileStore(store.root)
    again.open("shared")
    assert not (await again.load("a")).finished
    again.close()
    store.close()


@pytest.mark.parametrize(("written", "expected"), [("null", None), ("1732690123.5", 1732690123.5)])
def test_records_of_earlier_versions_are_read(written: str, expected: float | None) -> None:
    document = json.loads(records.serialize(record(), root="/srv"))
    document["TusdPy"]["FinishedAt"] = json.loads(written)
    assert read(json.dumps(document).encode()).finished_at == expected
