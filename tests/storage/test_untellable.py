"""An unreadable file is not treated as missing: markers, epochs, losses, records, tombstones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.privileges import OBEYING_PERMISSIONS
from tests.support.tus import Tus, checksum, id_of
from tusd_py.locks.base import UNFENCED, LeaseLost
from tusd_py.locks.epochs import FIRST, Epochs
from tusd_py.locks.ofd import ChangeFence, OfdLocks
from tusd_py.storage.base import StorageError, UploadGone, UploadInfo, UploadNotFound
from tusd_py.storage.file.losses import Losses
from tusd_py.storage.file.markers import ChunkMarkers
from tusd_py.storage.file.store import FileStore

MIB = 1 << 20
INFO = UploadInfo("study/a", 10, created_at=1_700_000_000.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    store = FileStore(tmp_path / "uploads")
    store.open()
    yield store
    store.close()


def make_unreadable(directory: Path) -> None:
    """Let every look into a directory fail, for root as well, with an error that is not that of absence."""
    directory.rename(directory.with_name(f"{directory.name}-before"))
    directory.symlink_to(directory.name)


def make_readable(directory: Path) -> None:
    directory.unlink()
    directory.with_name(f"{directory.name}-before").rename(directory)


def test_bytes_do_not_count_while_the_marker_before_them_cannot_be_read(
    make_server: MakeServer,
) -> None:
    server = make_server(prefix=OBEYING_PERMISSIONS)
    tus = Tus(server)
    data = bytes(4 * MIB)
    path = tus.new(len(data))
    headers = {"Upload-Checksum": checksum(b"another")}
    with tus.begin_patch(path, 0, len(data), data[: 3 * MIB], headers) as patch:
        patch.wait_stored_in_part()
        server.kill9()
    server.restart()
    markers = server.upload_dir / ".tusd-py" / "verifying"
    size = server.data_file(id_of(path)).stat().st_size
    markers.chmod(0)
    try:
        assert tus.head(path).status == 423
        assert tus.patch(path, size, data[size:]).status == 500
        assert server.data_file(id_of(path)).stat().st_size == size
    finally:
        markers.chmod(0o750)
    assert tus.offset(path) == 0


def test_an_epoch_that_cannot_be_read_is_not_the_first(tmp_path: Path) -> None:
    directory = tmp_path / "epochs"
    directory.mkdir()
    ranges = OfdLocks(str(tmp_path / "locks"))
    epochs = Epochs(str(directory), is_local=True)
    reasons: list[str] = []
    fence = ChangeFence(ranges.change_byte("a"), epochs.is_current("a", FIRST), reasons.append)
    with fence:
        pass
    epochs.write("a", Epochs.new())
    make_unreadable(directory)
    with pytest.raises(OSError, match="symbolic links"):
        epochs.read("a")
    with pytest.raises(LeaseLost), fence:
        pytest.fail("a change was made in an epoch that may be over")
    assert len(reasons) == 1
    ranges.close()


def test_losses_that_cannot_be_read_are_not_none(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    losses = Losses(str(directory / "lost"), ChunkMarkers(str(directory), str), 0o640)
    assert losses.last() is None
    make_unreadable(directory)
    with pytest.raises(OSError, match="symbolic links"):
        losses.last()


async def test_a_record_that_cannot_be_reached_is_not_gone(store: FileStore) -> None:
    await store.create(INFO)
    directory = Path(store.root, "study")
    make_unreadable(directory)
    with pytest.raises(StorageError) as refused:
        await store.save(INFO, fence=UNFENCED)
    assert not isinstance(refused.value, UploadNotFound)
    make_readable(directory)
    await store.save(INFO, fence=UNFENCED)
    assert os.listdir(f"{store.root}/.tusd-py/new") == []


async def test_a_tombstone_that_cannot_be_read_is_not_absent(store: FileStore) -> None:
    await store.create(INFO)
    await store.remove(INFO.id, fence=UNFENCED)
    directory = Path(store.root, ".tusd-py", "gone")
    make_unreadable(directory)
    with pytest.raises(StorageError) as refused:
        await store.load(INFO.id)
    assert not isinstance(refused.value, UploadNotFound)
    make_readable(directory)
    with pytest.raises(UploadGone):
        await store.load(INFO.id)
