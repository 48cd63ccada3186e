"""A failed sync is reported to the client, and bytes that it may have lost do not count."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.tus import Tus, metadata, path_of

FAULTS = """
import errno, os, time
from collections import Counter
from pathlib import Path
from tusd_py.storage.file import fsync as syncing

HERE = Path(__file__).parent
real, real_whole = syncing.sync_data, syncing._syncfs

synced = Counter()

def fails(descriptor):
    name = os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2]
    until = time.monotonic() + 30
    while (HERE / "whole").exists() and not (HERE / "groups").exists() and time.monotonic() < until:
        time.sleep(0.001)  # a slow disk: others come in the meantime
    after = HERE / "after"
    fails_now = after.exists() and synced[name] >= int(after.read_text())
    if fails_now or (HERE / "all").exists() or (HERE / name).exists():
        raise OSError(errno.EIO, "Input/output error")
    real(descriptor)
    synced[name] += 1

def whole_fails(descriptor):
    with (HERE / "groups").open("a") as groups:
        groups.write("x")
    return -1 if (HERE / "whole").exists() else real_whole(descriptor)

real_fsync = os.fsync

def others_fail(descriptor):
    if (HERE / "others").exists():
        raise OSError(errno.EIO, "Input/output error")
    real_fsync(descriptor)

syncing.sync_data, syncing._syncfs, os.fsync = fails, whole_fails, others_fail

def post_finish(event):
    with (HERE / "finished").open("a") as finished:
        finished.write(f"{event.upload.id}\\n")
"""


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    directory = tmp_path / "faults"
    directory.mkdir()
    (directory / "faults.py").write_text(FAULTS)
    return directory


def finished(faults: Path) -> list[str]:
    told = faults / "finished"
    return told.read_text().split() if told.exists() else []


def test_the_client_is_told_and_sends_again(make_server: MakeServer, faults: Path) -> None:
    tus = Tus(make_server("--hook", str(faults / "faults.py")))
    path = tus.new(100_000)
    (faults / "all").touch()
    assert tus.patch(path, 0, b"x" * 100_000).status == 500
    (faults / "all").unlink()
    # The system says only once that it has thrown bytes away: that the next sync would find nothing wrong proves nothing.
    assert tus.offset(path) == 0
    assert tus.get(path).status == 404
    assert tus.patch(path, 0, b"y" * 100_000).status == 204
    assert tus.get(path).body == b"y" * 100_000
    tus.server.terminate()
    assert len(finished(faults)) == 1


def test_what_one_sync_made_durable_stays_if_the_next_fails(
    make_server: MakeServer, faults: Path
) -> None:
    tus = Tus(make_server("--hook", str(faults / "faults.py"), "--durability", "chunk"))
    path = tus.new(300_000)
    assert tus.patch(path, 0, b"x" * 100_000).status == 204
    (faults / "all").touch()
    assert tus.patch(path, 100_000, b"x" * 100_000).status == 500
    (faults / "all").unlink()
    assert tus.offset(path) == 100_000
    assert tus.patch(path, 100_000, b"y" * 200_000).status == 204
    assert tus.get(path).body == b"x" * 100_000 + b"y" * 200_000


def test_where_a_group_fails_only_those_do_whose_bytes_were_lost(
    make_server: MakeServer, faults: Path
) -> None:
    tus = Tus(make_server("--hook", str(faults / "faults.py")))
    paths = [tus.new(50_000) for _ in range(30)]
    (faults / "whole").touch()
    lost = paths[::10]
    for path in lost:
        (faults / path.rpartition("/")[2]).touch()
    with ThreadPoolExecutor(15) as pool:
        statuses = list(pool.map(lambda path: tus.patch(path, 0, b"x" * 50_000).status, paths))
    assert (faults / "groups").exists(), "nothing was synced as a group"
    assert statuses == [500 if path in lost else 204 for path in paths]
    for path in lost:
        assert tus.offset(path) == 0
    tus.server.terminate()
    assert len(finished(faults)) == 27


def test_bytes_that_are_durable_stay_if_the_record_is_not(
    make_server: MakeServer, faults: Path
) -> None:
    tus = Tus(make_server("--hook", str(faults / "faults.py")))
    path = tus.new(100_000)
    (faults / "others").touch()
    assert tus.patch(path, 0, b"x" * 100_000).status == 500
    (faults / "others").unlink()
    # Nothing was lost: whoever asks next finishes it.
    assert tus.offset(path) == 100_000
    assert tus.get(path).body == b"x" * 100_000


def test_what_every_request_made_durable_stays_if_the_last_sync_fails(
    make_server: MakeServer, faults: Path
) -> None:
    tus = Tus(make_server("--hook", str(faults / "faults.py"), "--durability", "chunk"))
    path = tus.new(100_000)
    # Of the data file: by its creation, and by the request.
    (faults / "after").write_text("2")
    assert tus.patch(path, 0, b"x" * 100_000).status == 500
    (faults / "after").unlink()
    assert tus.offset(path) == 100_000
    assert tus.get(path).body == b"x" * 100_000


def test_a_final_whose_bytes_are_lost_loses_its_name(
    make_server: MakeServer, faults: Path, tmp_path: Path
) -> None:
    names = tmp_path / "finished"
    options = ("--finished-dir", f"{names}/{{filename}}", "--hook", str(faults / "faults.py"))
    tus = Tus(make_server(*options))
    partial = {"Upload-Concat": "partial"}
    parts = [tus.finished(each * 1000, headers=partial) for each in (b"a", b"b")]
    (faults / "after").write_text("1")
    headers = {"Upload-Metadata": metadata(filename="scan.dcm")}
    final = tus.create(headers={"Upload-Concat": f"final;{' '.join(parts)}", **headers})
    assert (final.status, final.code) == (500, "ERR_BYTES_LOST")
    assert list(names.iterdir()) == []
    (faults / "after").unlink()
    # Joined anew by whoever asks next.
    path = path_of(final["Location"])
    assert tus.offset(path) == 2000
    assert tus.get(path).body == b"a" * 1000 + b"b" * 1000
    assert [each.name for each in names.iterdir()] == ["scan.dcm"]
