"""The outbox in files: order, repeats, delivery and failure of events, also after interruptions at any point."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tusd_py.locks.base import UNFENCED
from tusd_py.storage.base import KeptEvent, Outbox, StorageError
from tusd_py.storage.file import outbox as outboxes
from tusd_py.storage.file.store import FileStore

IDS = ("0a1b", "2026/11/scan-1.dcm", "a.000001-b", "ä" * 100)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    store = FileStore(tmp_path / "uploads")
    store.open()
    yield store
    store.close()


@pytest.fixture
def outbox(store: FileStore) -> Outbox:
    return store.outbox


def ids(events: list[KeptEvent]) -> list[str]:
    return [event.event_id for event in events]


async def test_what_lies_about_there_is_no_event(store: FileStore, outbox: Outbox) -> None:
    await outbox.keep("x", "a0", b"1", fence=UNFENCED)
    [file] = Path(store.root, ".tusd-py", "outbox").glob("*/*")
    (file.parent / "x.swp").touch()
    (file.parent / "README").touch()
    assert ids(await outbox.of("x")) == ["a0"]
    assert [each async for some in outbox.uploads() for each in some] == ["x"]


async def test_a_disk_that_fails_is_a_failure_of_the_store_and_leaves_nothing(
    store: FileStore, outbox: Outbox
) -> None:
    state = Path(store.root, ".tusd-py")
    (state / "outbox").write_text("in the way")
    with pytest.raises(StorageError):
        await outbox.keep("x", "a0", b"1", fence=UNFENCED)
    assert os.listdir(state / "new") == []


class Entries:
    """A count of directory entries that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        scandir, listdir = os.scandir, os.listdir

        def scan(path: str) -> Iterator[os.DirEntry[str]]:
            found = list(scandir(path))
            self.count += len(found)
            return nullcontext(iter(found))  # type: ignore[return-value]

        def list_(path: str) -> list[str]:
            found = listdir(path)
            self.count += len(found)
            return found

        monkeypatch.setattr(os, "scandir", scan)
        monkeypatch.setattr(os, "listdir", list_)


async def test_what_is_done_to_an_event_costs_the_same_however_many_wait(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = 5_000
    for number in range(waiting):
        await outbox.keep(f"upload-{number}", "a0", b"1", fence=UNFENCED)
    entries = Entries(monkeypatch)
    for number in range(100):
        await outbox.keep(f"other-{number}", "a0", b"1", fence=UNFENCED)
        await outbox.keep(f"other-{number}", "b0", b"1", fence=UNFENCED)
        [first, second] = await outbox.of(f"other-{number}")
        await outbox.forget(first)
        await outbox.forget(second)
    # Its own ones, and of the 5,000 others hardly any.
    assert entries.count < 100 * 6
    entries.count = 0
    assert (await outbox.counts()).waiting == pytest.approx(waiting, rel=0.1)
    assert entries.count < 3 * waiting


async def test_a_count_reads_a_part_of_many_and_comes_around(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(200):
        await outbox.keep(f"upload-{number}", "a0", b"1", fence=UNFENCED)
    monkeypatch.setattr(outboxes, "_COUNTED_AT_ONCE", 50)
    exact = await outbox.counts(exact=True)
    assert exact.waiting == 200
    for number in range(100):
        for kept in await outbox.of(f"upload-{number}"):
            await outbox.forget(kept)
    await outbox.counts()
    counts = await outbox.counts()
    assert counts.waiting == 100
    oldest = [kept.kept_at async for kept in outbox.every("waiting")]
    assert counts.oldest == min(oldest)


@pytest.mark.parametrize("upload_id", IDS)
async def test_what_the_version_before_kept_is_told_in_its_order(
    store: FileStore, outbox: Outbox, upload_id: str
) -> None:
    """The previous version had 256 shards."""
    shard = Path(
        store.root, ".tusd-py", "outbox", hashlib.sha256(upload_id.encode()).hexdigest()[:2]
    )
    shard.mkdir(parents=True)
    flat = upload_id.replace("/", "%")
    for sequence, event_id in ((1, "c0"), (2, "a0")):
        (shard / f"{flat}.{sequence:06d}-{event_id}").write_bytes(event_id.encode())
    assert (await outbox.counts()).waiting == 2
    await outbox.keep(upload_id, "b0", b"b0", fence=UNFENCED)
    found = await outbox.of(upload_id)
    assert [(event.event_id, event.content) for event in found] == [
        ("c0", b"c0"),
        ("a0", b"a0"),
        ("b0", b"b0"),
    ]
    assert [each async for some in outbox.uploads() for each in some] == [upload_id]
    for kept in found:
        await outbox.forget(kept)
    assert list(Path(store.root, ".tusd-py", "outbox").iterdir()) == [shard]
    # A server of that version may have made it a moment ago, for an event that it puts there next.
    assert await outbox.of(upload_id) == []
    assert shard.is_dir()
    old = shard.stat().st_mtime - 2 * outboxes._OLD_NAME_SECONDS
    os.utime(shard, (old, old))
    assert await outbox.of(upload_id) == []
    assert not shard.exists()


async def test_a_new_event_of_the_version_before_keeps_its_name_as_its_server_may_sync_it_yet(
    store: FileStore, outbox: Outbox
) -> None:
    upload_id = "x"
    shard = Path(
        store.root, ".tusd-py", "outbox", hashlib.sha256(upload_id.encode()).hexdigest()[:2]
    )
    shard.mkdir(parents=True)
    aged, fresh = shard / f"{upload_id}.000001-a0", shard / f"{upload_id}.000002-b0"
    for file in (aged, fresh):
        file.write_bytes(b"1")
    old = aged.stat().st_mtime - 2 * outboxes._OLD_NAME_SECONDS
    os.utime(aged, (old, old))
    for _ in range(2):
        assert ids(await outbox.of(upload_id)) == ["a0", "b0"]
        assert not aged.exists()
        assert fresh.exists()
    await outbox.forget((await outbox.of(upload_id))[1])
    assert not fresh.exists()
    assert ids(await outbox.of(upload_id)) == ["a0"]
    # Linked first, and then old enough.
    shard.mkdir(exist_ok=True)
    fresh.write_bytes(b"1")
    await outbox.of(upload_id)
    os.utime(fresh, (old, old))
    assert ids(await outbox.of(upload_id)) == ["a0", "b0"]
    assert not fresh.exists()
