"""The cache of records: it avoids reads, and its memory is bounded whatever clients send."""

from __future__ import annotations

import errno
import gc
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.tus import Tus, id_of, path_of
from tusd_py.locks.base import UNFENCED
from tusd_py.protocol import metadata
from tusd_py.storage.base import StorageError, Upload, UploadInfo
from tusd_py.storage.file import record_cache as known
from tusd_py.storage.file.store import FileStore

MOST = 4
MIB = 1024 * 1024
AGES = 2**63
"""Nanoseconds since the epoch, long after any file was written: what was read then need not be looked at again."""


def long_value(number: int) -> str:
    """60 KB of metadata in one value."""
    return f"name{number} " + "QUFB" * 15_000


def many_keys(number: int) -> str:
    """60 KB of metadata in 6,000 keys, which take far more memory than their length; earlier versions took so many."""
    return ",".join(f"{number % 1000:03}{key:04}" for key in range(7_500))


def as_many_keys_as_are_taken(number: int) -> str:
    """60 KB of metadata in 256 keys."""
    return ",".join(f"{number % 1000:03}{key:0235}" for key in range(256))


def beyond_latin(number: int) -> UploadInfo:
    """Text that takes four bytes a character, as hooks may give an upload."""
    return UploadInfo(id=f"{number}", length=1, metadata_header="\U0001f600" * 15_000)


def many_parts(number: int) -> UploadInfo:
    """A final of 700 parts."""
    ids = tuple(f"{number:016}{part:016}" for part in range(700))
    return UploadInfo(id=f"{number}", length=1, parts=ids, concat_header=" ".join(ids))


def of_metadata(header: Callable[[int], str]) -> Callable[[int], UploadInfo]:
    def make(number: int) -> UploadInfo:
        text = header(number)
        pairs = metadata.parse(text, strict=False)
        return UploadInfo(id=f"{number}", length=1, metadata=pairs, metadata_header=text)

    return make


RECORD = UploadInfo(id="00", length=1, metadata={})
"""What is read of those that the tests make."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileStore]:
    """A store with a small cache that has written no upload itself."""
    monkeypatch.setattr(known, "_MAX_BYTES", MOST * known.size_of(RECORD))
    store = FileStore(tmp_path)
    store.open("shared")
    yield store
    store.close()


@pytest.fixture
async def ids(tmp_path: Path) -> list[str]:
    """More uploads than the cache holds, created by another process."""
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
    """A coarse file system clock may not advance during a whole upload; then the file's times do not change."""
    monkeypatch.setattr(known, "_signature", lambda status: (status.st_ino, status.st_size, 0, 0))
    other = FileStore(tmp_path)
    other.open("none")
    upload = await other.create(UploadInfo(id="a", length=0, created_at=1_700_000_000.0))
    assert not (await store.load("a")).finished
    await other.finish(
        upload.with_info(finished_at=1_732_690_123.5).info, sync=False, fence=UNFENCED
    )
    assert (await store.load("a")).info.finished_at == 1_732_690_123.5
    other.close()


async def test_a_process_that_has_the_directory_to_itself_knows_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the file's times do not change: a record that was read before a finish does not replace the finished one."""
    monkeypatch.setattr(known, "_signature", lambda status: (status.st_ino, status.st_size, 0, 0))
    monkeypatch.setattr(known, "_ending_of", lambda path, size: pytest.fail("it was read again"))
    store = FileStore(tmp_path)
    store.open()
    upload = await store.create(UploadInfo(id="a", length=0, created_at=1_700_000_000.0))
    assert not (await store.load("a")).finished
    finished = upload.with_info(finished_at=1_732_690_123.5).info
    await store.finish(finished, sync=False, fence=UNFENCED)
    assert (await store.load("a")).finished
    # A reader in another thread that is late.
    store._known.remember(upload.info, (tmp_path / "a.info").stat(), read_at=time.time_ns())
    assert (await store.load("a")).finished

    async def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "lost")

    upload = await store.create(UploadInfo(id="b", length=0, created_at=1_700_000_000.0))
    monkeypatch.setattr(store._syncs, "sync", fail)
    monkeypatch.setattr(store, "_sync_data", _nothing)
    with pytest.raises(StorageError):
        await store.finish(
            upload.with_info(finished_at=1_732_690_123.5).info, sync=True, fence=UNFENCED
        )
    assert not (await store.load("b")).finished
    store.close()


async def _nothing(*_: object, **__: object) -> None:
    """Succeed."""


async def test_one_that_was_left_alone_is_not(
    store: FileStore, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "_COARSEST_CLOCK_NS", 0)
    first = await store.load(ids[0])
    monkeypatch.setattr(known, "_ending_of", lambda path, size: pytest.fail("it was read again"))
    assert (await store.load(ids[0])).info is first.info


@pytest.mark.parametrize(
    "make",
    [of_metadata(long_value), of_metadata(many_keys), beyond_latin, many_parts],
    ids=["long value", "many keys", "beyond latin", "many parts"],
)
def test_what_a_record_takes_is_estimated_by_its_real_size(
    make: Callable[[int], UploadInfo],
) -> None:
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        made = [make(number) for number in range(20)]
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    estimate = sum(map(known.size_of, made))
    assert 0.9 * taken < estimate < 1.5 * taken


@pytest.mark.parametrize("make", [of_metadata(long_value), of_metadata(many_keys), many_parts])
def test_records_are_known_up_to_so_many_bytes(
    tmp_path: Path, make: Callable[[int], UploadInfo]
) -> None:
    status = os.stat(tmp_path)
    records = known.RecordCache()
    count = 2 * known._MAX_BYTES // known.size_of(make(0))
    for number in range(count):
        records.remember(make(number), status, read_at=AGES)
        # The same one again takes no more.
        records.remember(make(number), status, read_at=AGES)
    assert 0.9 * known._MAX_BYTES < records.bytes <= known._MAX_BYTES
    assert records.recall("0", "", status) is None
    assert records.recall(str(count - 1), "", status) is not None


def test_the_record_of_the_longest_final_is_known(tmp_path: Path) -> None:
    """It takes milliseconds to parse, for each request."""
    ids = tuple(f"{number:032}" for number in range(10_000))
    urls = " ".join(f"https://{'a' * 50}/files/{each}" for each in ids)
    final = UploadInfo(id="final", length=1, parts=ids, concat_header=f"final;{urls}")
    records = known.RecordCache()
    records.remember(final, os.stat(tmp_path), read_at=AGES)
    assert records.recall("final", "", os.stat(tmp_path)) is final


def test_a_huge_record_pushes_no_other_out(tmp_path: Path) -> None:
    status = os.stat(tmp_path)
    records = known.RecordCache()
    small = UploadInfo(id="small", length=1)
    records.remember(small, status, read_at=AGES)
    huge = UploadInfo(id="huge", length=1, metadata={"k": bytes(known._MAX_RECORD_BYTES)})
    records.remember(UploadInfo(id="huge", length=1), status, read_at=AGES)
    records.remember(huge, status, read_at=AGES)
    assert records.recall("huge", "", status) is None
    assert records.recall("small", "", status) is small
    assert records.bytes == known.size_of(small)


@pytest.mark.parametrize(
    ("header", "enough", "more"),
    [(long_value, 500, 1000), (as_many_keys_as_are_taken, 300, 800)],
)
def test_metadata_of_many_uploads_does_not_stay_in_memory(
    make_server: MakeServer, header: Callable[[int], str], enough: int, more: int
) -> None:
    """enough: uploads that fill the cache. more: uploads whose records would take 100 MiB."""
    tus = Tus(make_server("--max-header-size", str(100 * 1024)))
    with tus.connect() as connection:

        def create(number: int) -> str:
            headers = {"Upload-Metadata": header(number)}
            return path_of(tus.create(10, headers=headers, on=connection)["Location"])

        for number in range(enough):
            create(number)
        before = tus.server.memory()
        paths = [create(number) for number in range(enough, enough + more)]
        for path in paths[::20]:
            assert tus.head(path).status == 200
        assert tus.server.memory() - before < 32 * MIB
    assert tus.server.info_file(id_of(paths[0])).stat().st_size > 60_000
