"""What crashes leave in `.tusd-py/new`, told by its name and not by its time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tusd_py.storage.file.store import FileStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store = FileStore(tmp_path)
    store.open()
    store.close()
    return tmp_path


@pytest.mark.parametrize("kind", ["file", "link"])
@pytest.mark.parametrize("ahead", [0, 1800])
async def test_what_lay_there_when_the_directory_was_locked_goes_and_nothing_else(
    root: Path, kind: str, ahead: int
) -> None:
    new = root / ".tusd-py" / "new"

    def make(name: str) -> Path:
        if kind == "file":
            (new / name).touch()
        else:
            (new / name).symlink_to("nowhere")
        # A clock that is ahead, and set back later.
        at = time.time() + (ahead if name == "left" else -ahead)
        os.utime(new / name, (at, at), follow_symlinks=False)
        return new / name

    left = make("left")
    store = FileStore(root)
    store.open()
    try:
        in_use = make("in use")
        await store.tidy(tombstone_ttl=3600.0)
        assert not left.is_symlink()
        assert not left.exists()
        assert in_use.is_symlink() or in_use.exists()
    finally:
        store.close()


async def test_a_sweep_whose_volume_has_gone_away_leaves_nothing_in_its_place(root: Path) -> None:
    store = FileStore(root)
    store.open()
    try:
        root.rename(root.with_name("elsewhere"))
        root.mkdir()
        await store.sweep_marks.record_end(time.time())
        await store.sweep_marks.record_hold(time.time())
        assert list(root.iterdir()) == []
    finally:
        store.close()
