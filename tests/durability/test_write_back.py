"""A disk that loses accepted bytes: no upload finishes with missing bytes, whichever sync reports the loss."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.durability.volume import FailingVolume, require_mounts
from tests.support.tus import Tus, checksum, id_of
from tests.support.waiting import wait_until

MIB = 1024 * 1024
DATA = random.Random(6).randbytes(12 * MIB)
SENT = 10 * MIB


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[FailingVolume]:
    require_mounts(tmp_path)
    volume = FailingVolume(tmp_path)
    with volume.mounted():
        yield volume


@pytest.fixture
def tus(make_server: MakeServer, volume: FailingVolume) -> Iterator[Tus]:
    tus = Tus(make_server(upload_dir=volume.root / "uploads"))
    # Directories and inodes have their blocks.
    for number in range(20):
        tus.finished(b"%d" % number)
    yield tus
    tus.server.close()


def finish_until_told(tus: Tus, paths: list[str]) -> None:
    """Finish small uploads at the same moment, and others, until some were synced as a group: such a sync reports the loss."""
    batch = paths

    def is_told() -> bool:
        nonlocal batch
        with ThreadPoolExecutor(16) as pool:
            answers = pool.map(lambda path: tus.patch(path, 0, b"x" * 4096).status, batch)
        # Nothing of theirs was lost: they came later.
        assert set(answers) == {204}
        batch = [tus.new(4096) for _ in range(20)]
        return any("the disk lost bytes" in line for line in tus.server.lines)

    wait_until(is_told, "the loss to be reported")


def forget_caches() -> None:
    """Make the kernel forget which files lost bytes, as it does when it needs the memory."""
    Path("/proc/sys/vm/drop_caches").write_text("3")


def send_to_its_end(tus: Tus, volume: FailingVolume, path: str) -> None:
    """Resume as a client does until the upload is finished, and check its bytes on the disk."""
    answers = []
    while (offset := tus.offset(path)) < len(DATA):
        answers.append(tus.patch(path, offset, DATA[offset:]).status)
        assert len(answers) < 4, answers
    assert tus.get(path).body == DATA
    file = tus.server.data_file(id_of(path))
    assert volume.on_disk(file) == DATA
    tus.server.kill9()


@pytest.mark.parametrize("verified", [False, True])
def test_an_error_that_another_group_was_told_of_is_not_missed(
    tus: Tus, volume: FailingVolume, verified: bool
) -> None:
    path, small = tus.new(len(DATA)), [tus.new(4096) for _ in range(60)]
    headers = {"Upload-Checksum": checksum(DATA[:SENT])} if verified else None
    with volume.losing():
        assert tus.patch(path, 0, DATA[:SENT], headers).status == 204
    finish_until_told(tus, small)
    assert tus.offset(path) == 0
    send_to_its_end(tus, volume, path)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("forgotten", [True, False])
def test_a_restart_does_not_hide_it(
    tus: Tus, volume: FailingVolume, told: bool, forgotten: bool
) -> None:
    """told: another upload's sync reported it before. forgotten: only the file system as a whole still has the error."""
    path, small = tus.new(len(DATA)), [tus.new(4096) for _ in range(20)]
    with volume.losing():
        assert tus.patch(path, 0, DATA[:SENT]).status == 204
    if told:
        finish_until_told(tus, small)
    tus.server.kill9()
    if forgotten:
        forget_caches()
    tus.server.restart()
    assert tus.offset(path) == (0 if told else SENT)
    send_to_its_end(tus, volume, path)


def test_one_that_is_finished_alone_is_told_though_the_system_forgot_its_file(
    tus: Tus, volume: FailingVolume
) -> None:
    path = tus.new(len(DATA))
    with volume.losing():
        assert tus.patch(path, 0, DATA[:SENT]).status == 204
    forget_caches()
    answer = tus.patch(path, SENT, DATA[SENT:])
    assert (answer.status, answer.code) == (500, "ERR_BYTES_LOST")
    assert b"kept" not in answer.body
    send_to_its_end(tus, volume, path)


def test_an_upload_that_is_being_sent_meanwhile_is_cut_back(
    tus: Tus, volume: FailingVolume
) -> None:
    path, small = tus.new(len(DATA)), [tus.new(4096) for _ in range(20)]
    with volume.losing():
        patch = tus.begin_patch(path, 0, len(DATA), DATA[:SENT])
        patch.wait_stored()
    with patch:
        finish_until_told(tus, small)
        # Whatever the server has of it by the time at which the connection ends.
        patch.send(DATA[SENT : SENT + MIB])
    send_to_its_end(tus, volume, path)


def test_what_came_in_one_request_and_is_on_the_disk_stays(tus: Tus, volume: FailingVolume) -> None:
    """Losses of other files affect neither sound uploads nor finished ones."""
    before = tus.finished(DATA)
    lost, sound = tus.new(len(DATA)), [tus.new(4096) for _ in range(20)]
    with volume.losing():
        assert tus.patch(lost, 0, DATA[:SENT]).status == 204
    finish_until_told(tus, sound)
    assert tus.get(before).body == DATA
    assert {len(tus.get(path).body) for path in sound} == {4096}
    assert tus.offset(lost) == 0
