"""Markers of chunks that are being verified: each has a valid length at any time."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tusd_py.locks.base import UNFENCED
from tusd_py.storage.base import UploadInfo
from tusd_py.storage.file import markers, mounts
from tusd_py.storage.file.markers import ChunkMarkers
from tusd_py.storage.file.store import FileStore

OFFSET = 4_194_304


@pytest.fixture
def tmp(tmp_path: Path) -> str:
    return str(tmp_path / "tmp")


@pytest.fixture
def made(tmp_path: Path, tmp: str) -> ChunkMarkers:
    directory = tmp_path / "chunks"
    directory.mkdir()
    return ChunkMarkers(str(directory), lambda _name: tmp)


def no_links(_target: str, _path: str) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("links", [True, False])
def test_a_marker_tells_what_it_was_made_with(
    made: ChunkMarkers, tmp: str, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(os, "symlink", no_links)
    assert made.read("a") is None
    path = made.make("a", OFFSET)
    assert made.read("a") == OFFSET
    assert os.path.islink(path) == links
    made.make("a", 0)
    assert made.read("a") == 0
    os.unlink(path)
    assert made.read("a") is None
    assert not os.path.lexists(tmp)


def test_it_is_there_with_its_number_or_not_at_all(
    made: ChunkMarkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is created in one step, so a power cut cannot separate its name from its number."""
    steps: list[str] = []
    symlink = os.symlink

    def link(target: str, path: str) -> None:
        steps.append(path)
        symlink(target, path)

    monkeypatch.setattr(os, "symlink", link)
    monkeypatch.setattr(os, "rename", lambda *_paths: pytest.fail("it was renamed"))
    monkeypatch.setattr(os, "write", lambda *_: pytest.fail("it was written"))
    path = made.make("a", OFFSET)
    assert steps == [path]


@pytest.mark.parametrize("links", [True, False])
def test_where_the_order_is_not_known_it_is_on_the_disk_before_the_first_byte(
    made: ChunkMarkers, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(markers, "sync_path", synced.append)
    monkeypatch.setattr(mounts, "_kind", lambda _path: "nfs4")
    if not links:
        monkeypatch.setattr(os, "symlink", no_links)
    made.open(is_shared=True)
    assert made.is_slow
    made.make("a", OFFSET)
    assert synced == [made.directory]


@pytest.mark.parametrize("directory", ["verifying", "chunks"])
def test_markers_are_found_again_by_the_process_that_opens_the_store(
    tmp_path: Path, tmp: str, directory: str
) -> None:
    for name in ("verifying", "chunks"):
        (tmp_path / name).mkdir()
    os.symlink("7", tmp_path / directory / "a")
    made = ChunkMarkers(
        str(tmp_path / "verifying"),
        lambda _name: tmp,
        former=str(tmp_path / "chunks"),
    )
    made.open(is_shared=False)
    assert made.read("a") == 7
    made.make("b", OFFSET)
    assert made.read("b") == OFFSET
    made.remove("a")
    assert made.read("a") is None


@pytest.mark.parametrize("is_shared", [True, False])
def test_an_empty_directory_is_searched_only_if_others_make_markers_in_it(
    made: ChunkMarkers, is_shared: bool
) -> None:
    made.open(is_shared=is_shared)
    os.symlink("7", made.path("a"))
    assert made.read("a") == (7 if is_shared else None)


async def test_markers_of_what_has_gone_are_tidied_away(tmp_path: Path) -> None:
    for name in ("verifying", "chunks"):
        (tmp_path / ".tusd-py" / name).mkdir(parents=True)
    kept, gone, older = (
        str(tmp_path / ".tusd-py" / name) for name in ("verifying/a", "verifying/b", "chunks/c")
    )
    os.symlink("0", kept)
    os.symlink("0", gone)
    Path(older).write_bytes(b"0")
    store = FileStore(tmp_path)
    store.open()
    upload = await store.create(UploadInfo(id="a", length=10))
    await store.tidy(tombstone_ttl=60.0)
    assert [os.path.lexists(path) for path in (kept, gone, older)] == [True, False, False]
    await store.remove(upload.id, fence=UNFENCED)
    assert not os.path.lexists(kept)
    store.close()
