"""Uploads whose id, location or directory is taken by another upload meanwhile, or missing for a moment: no byte is lost."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.support.store import PLAIN, VERIFIED, write_all
from tusd_py.locks.base import UNFENCED, Fence, HeldFence, LeaseLost
from tusd_py.locks.memory import MemoryLocks
from tusd_py.maintenance.local import LocalMaintenance
from tusd_py.storage.base import (
    RemovalEvent,
    Upload,
    UploadGone,
    UploadInfo,
    UploadNotFound,
    VolumeMissing,
)
from tusd_py.storage.file.store import FileStore
from tusd_py.uploads.service import Uploads

DAY = 86_400.0
BORN = 1_700_000_000.0
DATA = b"somebody else's bytes"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FileStore]:
    store = FileStore(tmp_path / "uploads", syncs_chunks=True)
    store.open()
    yield store
    await asyncio.to_thread(store.close)


async def stored(store: FileStore, info: UploadInfo, data: bytes) -> Upload:
    """A finished upload."""
    upload = await store.create(info)
    writer = await store.open_writer(upload, PLAIN, fence=UNFENCED)
    await write_all(writer, data)
    await writer.close(sync=False)
    await store.finish(info._replace(finished_at=BORN + 1), sync=False, fence=UNFENCED)
    return await store.load(info.id)


def new(upload_id: str, data: bytes = DATA, location: str | None = None) -> UploadInfo:
    return UploadInfo(upload_id, len(data), created_at=BORN, location=location)


def crash(*_args: object) -> None:
    raise OSError(errno.EIO, "the server was killed")


# -- a location that another upload has ----------------------------------------------------------


@pytest.mark.parametrize("upload_id", ["y", "x"])
async def test_a_removal_that_is_completed_later_spares_who_has_the_location_since(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, upload_id: str
) -> None:
    await stored(store, new("x", b"old", "study/scan"), b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "truncate", crash)
        with pytest.raises(Exception, match="killed"):
            await store.remove("x", fence=UNFENCED)
    assert os.path.getsize(f"{store.root}/.tusd-py/gone/x")
    upload = await stored(store, new(upload_id, location="study/scan"), DATA)
    await store.tidy(tombstone_ttl=DAY)
    assert Path(store.data_path(upload.info)).read_bytes() == DATA


async def test_a_removal_that_is_told_later_spares_who_has_the_location_since(
    store: FileStore,
) -> None:
    await stored(store, new("x", b"old", "study/scan"), b"old")
    await store.remove("x", fence=UNFENCED, unpublished=RemovalEvent("e0", 3))
    upload = await stored(store, new("y", location="study/scan"), DATA)
    [told] = await store.unpublished_removals()
    await store.finish_removal(told, fence=UNFENCED)
    assert Path(store.data_path(upload.info)).read_bytes() == DATA


async def test_what_is_left_of_a_removal_goes_later(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stored(store, new("x", location="study/scan"), DATA)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", crash)
        with pytest.raises(Exception, match="killed"):
            await store.remove("x", fence=UNFENCED)
    assert Path(store.root, "study", "scan").exists()
    await store.tidy(tombstone_ttl=DAY)
    assert not Path(store.root, "study").exists()
    with pytest.raises(UploadGone):
        await store.load("x")


# -- an id that another upload has ---------------------------------------------------------------


async def replaced(store: FileStore, upload: Upload) -> None:
    await store.remove(upload.id, fence=UNFENCED)
    await stored(store, new(upload.id, b"a stranger's file"[: upload.offset]), b"a stranger's file")


async def test_a_download_is_not_of_another_upload_that_has_the_id_by_now(store: FileStore) -> None:
    """This happens if a hook runs between loading the upload and opening its file."""
    upload = await stored(store, new("x", b"mine, of that len"), b"mine, of that len")
    (await store.open_reader(upload)).close()
    await replaced(store, upload)
    with pytest.raises(UploadNotFound):
        await store.open_reader(upload)


async def test_a_final_has_no_bytes_of_another_upload_that_has_a_parts_id_by_now(
    store: FileStore,
) -> None:
    data = b"mine, of that len"
    part = await stored(store, new("x", data)._replace(is_partial=True), data)
    await replaced(store, part)
    final = UploadInfo("f", None, is_final=True, parts=("x",), created_at=BORN)
    with pytest.raises(UploadNotFound):
        await store.joiner.join(final, [part], fence=UNFENCED)
    assert not Path(store.root, "f").exists()
    assert os.listdir(f"{store.root}/.tusd-py/new") == []


# -- a directory that is away --------------------------------------------------------------------


def away(directory: Path, aside: Path) -> None:
    """The directory is empty, as one is whose volume is not mounted."""
    directory.rename(aside)
    directory.mkdir()


def led_nowhere(directory: Path, aside: Path) -> None:
    directory.rename(aside)
    directory.symlink_to(aside.with_name("not-there"))


def back(directory: Path, aside: Path) -> None:
    directory.unlink() if directory.is_symlink() else directory.rmdir()
    aside.rename(directory)


async def test_the_space_of_a_directory_that_is_not_there(store: FileStore, tmp_path: Path) -> None:
    Path(store.root).rename(tmp_path / "aside")
    for ask in (store.free_space, store.disk_space):
        with pytest.raises(VolumeMissing):
            await ask()


@pytest.mark.parametrize("go", [away, led_nowhere])
@pytest.mark.parametrize("upload_id", ["volume/x", "volume/deep/x"])
async def test_bytes_that_were_never_verified_do_not_count_after_a_volume_was_away(
    store: FileStore, tmp_path: Path, go: Callable[[Path, Path], None], upload_id: str
) -> None:
    upload = await store.create(new(upload_id, b"?" * 100))
    writer = await store.open_writer(upload, VERIFIED, fence=UNFENCED)
    await write_all(writer, b"never verified")
    writer.abandon()
    await writer.close(sync=False)
    directory = Path(store.root, "volume")
    go(directory, tmp_path / "aside")
    await store.tidy(tombstone_ttl=DAY)
    back(directory, tmp_path / "aside")
    assert (await store.load(upload_id)).offset == 0


async def test_finals_and_parts_are_remembered_while_a_volume_is_away(
    store: FileStore, tmp_path: Path
) -> None:
    await store.create(new("volume/p")._replace(is_partial=True))
    await store.create(UploadInfo("volume/f", None, is_final=True, parts=("volume/p",)))
    await store.joiner.await_parts(["volume/p"], "volume/f")
    await store.joiner.remember_final("key", "volume/f", fence=UNFENCED)
    keys = Path(store.root, ".tusd-py", "finals", "key")
    os.utime(keys, (BORN, BORN), follow_symlinks=False)
    directory = Path(store.root, "volume")
    away(directory, tmp_path / "aside")
    await store.tidy(tombstone_ttl=DAY)
    back(directory, tmp_path / "aside")
    assert await store.joiner.finals_awaiting("volume/p") == ["volume/f"]
    assert await store.joiner.recall_final("key") == "volume/f"


async def test_markers_of_uploads_that_are_gone_go(store: FileStore) -> None:
    for name in ("x", "volume%x"):
        os.symlink("0", f"{store.root}/.tusd-py/verifying/{name}")
    await store.create(new("volume/other"))
    assert await store.tidy(tombstone_ttl=DAY) == 2


async def test_a_clock_far_ahead_does_not_remove_uploads_whose_bytes_are_away(
    store: FileStore,
) -> None:
    now = [0.0]
    uploads = Uploads(store, MemoryLocks(), clock=lambda: now[0])
    maintenance = LocalMaintenance(uploads, None)
    upload = await store.create(new("x", location="volume/x"))
    mark = Path(store.root, "volume", "x")
    mark.rename(mark.with_name("aside"))
    now[0] = await store.missing_since("x")
    assert (await maintenance.sweep("all")).expired == 0
    now[0] += 400 * DAY
    assert (await maintenance.sweep("all", dry_run=True)).expired == 1
    report = await maintenance.sweep("all")
    assert (report.expired, report.held) == (0, 1)
    mark.with_name("aside").rename(mark)
    assert (await store.load("x")).info == upload.info


# -- the key of a final, and a disk that keeps half of it ----------------------------------------


@pytest.mark.parametrize("content", [b"", b"\0" * 32, b"\xff\xfe\0"])
async def test_a_key_that_a_power_cut_tore_is_none(store: FileStore, content: bytes) -> None:
    key = Path(store.root, ".tusd-py", "finals", "key")
    key.write_bytes(content)
    with pytest.raises(UploadNotFound):
        await store.load(await store.joiner.recall_final("key") or "")
    os.utime(key, (BORN, BORN))
    await store.tidy(tombstone_ttl=DAY)
    assert not key.exists()


async def test_a_key_is_never_there_without_its_content(store: FileStore) -> None:
    await store.joiner.remember_final("key", "a/b", fence=UNFENCED)
    await store.joiner.remember_final("key", "a/c", fence=UNFENCED)
    assert os.readlink(f"{store.root}/.tusd-py/finals/key") == "a/c"
    assert await store.joiner.recall_final("key") == "a/c"


async def test_a_key_is_recorded_only_while_its_lock_is_held(store: FileStore) -> None:
    """A server that stood still does not put its final in the place of the one that another has created meanwhile."""

    def lost() -> HeldFence:
        return HeldFence(lambda: False)

    await store.joiner.remember_final("key", "theirs", fence=UNFENCED)
    with pytest.raises(LeaseLost):
        await store.joiner.remember_final("key", "ours", fence=lost)
    with pytest.raises(LeaseLost):
        await store.joiner.forget_final("key", "theirs", fence=lost)
    await store.joiner.forget_final("key", "ours", fence=UNFENCED)
    assert await store.joiner.recall_final("key") == "theirs"
    assert list(Path(store.root, ".tusd-py", "new").iterdir()) == []
    await store.joiner.forget_final("key", "theirs", fence=UNFENCED)
    assert await store.joiner.recall_final("key") is None


async def test_a_file_system_without_links_keeps_keys_in_files(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_args: object) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "symlink", no_links)
    await store.joiner.remember_final("key", "a/b", fence=UNFENCED)
    assert await store.joiner.recall_final("key") == "a/b"


# -- marks of durable zeros ----------------------------------------------------------------------


async def add(store: FileStore, data: bytes, fence: Fence = UNFENCED) -> Upload:
    writer = await store.open_writer(await store.load("x"), PLAIN, fence=fence)
    await write_all(writer, data)
    await writer.close(sync=True)
    return await store.load("x")


async def test_durable_zeros_that_were_taken_back_do_not_count_again(store: FileStore) -> None:
    mark = Path(store.root, ".tusd-py", "sound", "x")
    upload = await store.create(new("x", b"?" * 100_000))
    await add(store, bytes(50_000))
    assert os.readlink(mark) == "50000"
    # As after a sync that failed.
    os.truncate(store.data_path(upload.info), 0)
    await add(store, b"no zero")
    assert not mark.is_symlink()


async def test_zeros_of_a_holder_that_lost_its_lock_are_not_marked(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create(new("x", b"?" * 100))
    held = [True]
    writer = await store.open_writer(
        await store.load("x"), PLAIN, fence=lambda: HeldFence(lambda: held[0])
    )
    await write_all(writer, bytes(50))
    held[0] = False
    with pytest.raises(LeaseLost):
        await writer.close(sync=True)
    assert not Path(store.root, ".tusd-py", "sound", "x").is_symlink()
