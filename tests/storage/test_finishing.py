"""How a record says that its upload is finished: in its last bytes, written where they lie."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.tus import Tus, id_of, metadata
from tusd_py.storage import info as records
from tusd_py.storage.base import UploadInfo
from tusd_py.storage.file import FileStore

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
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size + 1)
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
    await store.finish(finished(info), sync=True)
    assert (await store.load("a")).info == finished(info)
    store.close()
    again = FileStore(store.root)
    again.open()
    assert (await again.load("a")).info.finished_at == FINISHED
    again.close()


async def test_others_see_it_though_the_file_is_as_old_as_before(store: FileStore) -> None:
    """The clock of a file system may stand still for longer than an upload takes."""
    other = FileStore(store.root)
    other.open("shared")
    info = record()
    await store.create(info)
    path = f"{store.root}/a.info"
    os.utime(path, (CREATED, CREATED))
    assert not (await other.load("a")).finished
    await store.finish(finished(info), sync=False)
    os.utime(path, (CREATED, CREATED))
    assert (await other.load("a")).finished
    other.close()
    store.close()


def test_half_of_the_write_is_a_record_of_what_is_not_finished() -> None:
    """Of all that a reader could find while it is being written, or after a power cut in the middle of a sector."""
    whole = records.serialize(finished(record()), root="/srv")
    old = records.serialize(record(), root="/srv")
    assert len(whole) == len(old) + 1
    first = next(at for at in range(len(old)) if whole[at] != old[at])
    for at in range(first, len(old)):
        found = read(whole[:at] + old[at:])
        assert found.id == "a"
        # One digit alone is a time long before there were uploads.
        assert (
            found.finished_at is None
            or found.finished_at < 10
            or abs(FINISHED - found.finished_at) < 1
        )


@pytest.mark.parametrize(("written", "expected"), [("null", None), ("1732690123.5", 1732690123.5)])
def test_records_of_earlier_versions_are_read(written: str, expected: float | None) -> None:
    document = json.loads(records.serialize(record(), root="/srv"))
    document["TusdPy"]["FinishedAt"] = json.loads(written)
    assert read(json.dumps(document).encode()).finished_at == expected
