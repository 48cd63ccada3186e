"""Unfinished uploads after a power cut: zeros in place of unwritten bytes do not count."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.containers.by_hand import has_mounts_of_its_own
from tests.support.tus import Tus, id_of
from tusd_py.storage.file import mounts
from tusd_py.storage.file import power_cuts as powercuts
from tusd_py.storage.file.power_cuts import Session, sound_length

BLOCK = 4096
SHOWN = Path("/sys/fs")


@pytest.fixture
def another_boot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    boot_id = tmp_path_factory.mktemp("boot") / "boot_id"
    boot_id.write_text("another\n")
    return boot_id


def cut_power(tus: Tus) -> None:
    """Simulate a restart of the machine after everything so far."""
    tus.server.kill9()
    session = tus.server.upload_dir / ".tusd-py" / "session"
    session.unlink()
    session.symlink_to("of-another-boot 1 - marks")
    for mark in (session.parent / "in-session").iterdir():
        mark.unlink()
        mark.symlink_to("4711")


@pytest.mark.parametrize(
    ("data", "sound"),
    [
        (b"", 0),
        (b"x", 1),
        (b"x" * 1500 + bytes(1500), 1500),
        (b"x" * 1500 + bytes(BLOCK - 1500), 1500),
        (b"x" * BLOCK + bytes(10), BLOCK),
        (b"x" * 1500 + bytes(10) + b"x", 1511),
        (bytes(BLOCK) + b"x", BLOCK + 1),
        (bytes(10), 0),
    ],
)
def test_zeros_at_the_end_of_the_last_block_do_not_count(
    tmp_path: Path, data: bytes, sound: int
) -> None:
    file = tmp_path / "file"
    file.write_bytes(data)
    assert sound_length(str(file)) == sound


def test_nothing_counts_behind_a_hole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(b"x" * BLOCK)
        file.seek(1024 * 1024)
        file.write(b"x")
        os.fsync(file.fileno())
    assert sound_length(str(path)) == BLOCK


def test_a_session_lasts_until_the_machine_or_the_file_system_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, another_boot: Path
) -> None:
    path = tmp_path / "session"
    first, second, third = (Session(str(path), lambda _: str(tmp_path / "new")) for _ in range(3))
    first.open()
    second.open()
    assert second.number == first.number
    monkeypatch.setattr(powercuts, "_BOOT_ID", another_boot)
    third.open()
    assert third.number != first.number


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_a_session_is_the_same_where_the_kernel_shows_no_mounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[bool, bool]
) -> None:
    numbers = set()
    for is_shown in (*order, *order):
        monkeypatch.setattr(mounts, "_SHOWN", SHOWN if is_shown else tmp_path)
        session = Session(str(tmp_path / "session"), lambda _: str(tmp_path / "new"))
        session.open()
        numbers.add(session.number)
    assert len(numbers) == 1


@pytest.fixture
def tus(make_server: MakeServer) -> Tus:
    return Tus(make_server())


def test_what_is_killed_loses_no_zeros(tus: Tus) -> None:
    path = tus.new(5000)
    assert tus.patch(path, 0, b"x" * 1000 + bytes(1000)).status == 204
    tus.server.kill9()
    tus.server.restart()
    assert tus.offset(path) == 2000


def test_an_upload_goes_on_where_its_bytes_end_after_a_power_cut(tus: Tus) -> None:
    path, finished = tus.new(5000), tus.finished(b"x" * 10 + bytes(10))
    assert tus.patch(path, 0, b"x" * 1000).status == 204
    with tus.server.data_file(id_of(path)).open("ab") as file:
        file.write(bytes(500))
    cut_power(tus)
    # Also if it is not looked at before the next restart.
    tus.server.restart()
    tus.server.kill9()
    tus.server.restart()
    assert tus.offset(path) == 1000
    assert tus.patch(path, 1000, b"y" * 4000).status == 204
    assert tus.get(path).body == b"x" * 1000 + b"y" * 4000
    assert tus.get(finished).body == b"x" * 10 + bytes(10)


def test_zeros_that_were_acknowledged_as_durable_count(make_server: MakeServer) -> None:
    tus = Tus(make_server("--durability", "chunk"))
    path = tus.new(5000)
    assert tus.patch(path, 0, b"x" * 1000 + bytes(1000)).status == 204
    with tus.server.data_file(id_of(path)).open("ab") as file:
        file.write(bytes(500))
    cut_power(tus)
    tus.server.restart()
    assert tus.offset(path) == 2000
    assert tus.delete(path).status == 204
    assert list((tus.server.upload_dir / ".tusd-py" / "sound").iterdir()) == []


BIND = 'mount --bind "$0" "$0"; exec "$@"'


@pytest.mark.skipif(not has_mounts_of_its_own(), reason="needs root and mounts: sudo make test")
@pytest.mark.parametrize("way", ["another mount namespace", "another mount of the same disk"])
def test_other_mounts_of_the_file_system_are_no_power_cut(
    make_server: MakeServer, tmp_path: Path, way: str
) -> None:
    tus = Tus(make_server())
    path = tus.new(5000)
    assert tus.patch(path, 0, b"x" * 1000 + bytes(1000)).status == 204
    tus.server.kill9()
    prefix = ("unshare", "--mount", "--propagation", "private")
    bound = ("sh", "-ec", BIND, str(tmp_path)) if "disk" in way else ()
    tus.server.prefix = (*prefix, *bound)
    tus.server.restart()
    assert tus.offset(path) == 2000


@pytest.mark.parametrize(("age", "counts"), [(0.0, 2000), (10 * 365 * 86_400.0, 1000)])
def test_what_version_0_1_0_has_written_since_the_machine_started_counts(
    tus: Tus, age: float, counts: int
) -> None:
    """It knew nothing of sessions."""
    path = tus.new(5000)
    assert tus.patch(path, 0, b"x" * 1000 + bytes(1000)).status == 204
    tus.server.kill9()
    state = tus.server.upload_dir / ".tusd-py"
    (state / "session").unlink()
    (state / "in-session" / id_of(path)).unlink()
    at = time.time() - age
    os.utime(tus.server.data_file(id_of(path)), (at, at))
    tus.server.restart()
    assert tus.offset(path) == counts


def set_clock(tus: Tus, path: str, *, seconds: float) -> None:
    """Makes everything look as if it had been written by another clock."""
    data = tus.server.data_file(id_of(path))
    at = time.time() + seconds
    os.utime(data, (at, at))
    os.utime(tus.server.upload_dir / ".tusd-py" / "session", (at, at), follow_symlinks=False)


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_the_clock_does_not_matter(tus: Tus, seconds: int) -> None:
    path = tus.new(5000)
    assert tus.patch(path, 0, b"x" * 1000 + bytes(1000)).status == 204
    for _ in range(2):
        set_clock(tus, path, seconds=seconds)
        assert tus.offset(path) == 2000
        tus.server.kill9()
        tus.server.restart()
    assert tus.offset(path) == 2000
    assert tus.patch(path, 2000, bytes(3000)).status == 204
    assert tus.get(path).body == b"x" * 1000 + bytes(4000)


def test_no_mark_is_left_of_finished_uploads(tus: Tus) -> None:
    marks = tus.server.upload_dir / ".tusd-py" / "in-session"
    path = tus.new(5000)
    assert tus.patch(path, 0, bytes(1000)).status == 204
    assert len(list(marks.iterdir())) == 1
    tus.server.kill9()
    tus.server.restart()
    # All at once, and not ending in a zero: this process has made no mark.
    assert tus.patch(path, 1000, b"x" * 4000).status == 204
    ends_in_zero = tus.finished(bytes(10))
    assert tus.finished(b"x" * 10) != ends_in_zero
    gone = tus.new(10)
    assert tus.patch(gone, 0, b"x").status == 204
    assert tus.delete(gone).status == 204
    assert list(marks.iterdir()) == []


def test_zeros_do_not_count_although_the_clock_was_ahead_before_the_power_cut(tus: Tus) -> None:
    path = tus.new(5000)
    assert tus.patch(path, 0, b"x" * 1000).status == 204
    data = tus.server.data_file(id_of(path))
    with data.open("ab") as file:
        file.write(bytes(500))
    set_clock(tus, path, seconds=3600)
    cut_power(tus)
    tus.server.restart()
    assert tus.offset(path) == 1000


def hook_for_ids(tmp_path: Path) -> str:
    hook = tmp_path / "ids.py"
    hook.write_text(
        "from tusd_py import Changes\ndef pre_create(event):\n    return Changes(id='chosen')\n"
    )
    return str(hook)


def test_the_upload_that_has_an_id_next_is_marked_as_well(
    make_server: MakeServer, tmp_path: Path
) -> None:
    tus = Tus(make_server("--hook", hook_for_ids(tmp_path), "--tombstone-ttl", "0s"))
    first = tus.new(5000)
    assert tus.patch(first, 0, b"x" * 1000 + bytes(1000)).status == 204
    assert tus.delete(first).status == 204
    path = tus.new(5000)
    assert path == first
    assert tus.patch(path, 0, b"x" * 1000 + bytes(1000)).status == 204
    tus.server.kill9()
    tus.server.restart()
    assert tus.offset(path) == 2000


def test_what_another_server_has_told_counts_once_its_upload_is_taken_over(tus: Tus) -> None:
    path = tus.new(5000)
    upload_id = id_of(path)
    assert tus.patch(path, 0, b"x" * 10).status == 204
    tus.server.kill9()
    record = tus.server.upload_dir / f"{upload_id}.info"
    kept = json.loads(record.read_bytes())
    record.write_text(json.dumps({name: kept[name] for name in kept if name != "TusdPy"}))
    tus.server.data_file(upload_id).write_bytes(b"x" * 1000 + bytes(1000))
    (tus.server.upload_dir / ".tusd-py" / "in-session" / upload_id).unlink()
    tus.server.restart()
    assert tus.offset(path) == 2000
    # Taken over, without a byte.
    assert tus.patch(path, 2000, b"").status == 204
    for _ in range(2):
        assert tus.offset(path) == 2000
        tus.server.kill9()
        tus.server.restart()


def test_where_no_session_can_be_told_times_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(powercuts, "_BOOT_ID", tmp_path / "missing")
    session = Session(str(tmp_path / "session"), lambda _: str(tmp_path / "new"))
    before = tmp_path / "before"
    before.touch()
    session.open()
    after = tmp_path / "after"
    after.touch()
    # The file system's clock is coarser.
    later = time.time() + 1
    os.utime(after, (later, later))
    assert session.is_older(before.stat())
    assert not session.is_older(after.stat())
