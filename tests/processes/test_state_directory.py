"""A state directory is that of one upload directory: servers and commands of another one are refused."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.commands import run
from tests.support.redis import RedisServer
from tests.support.tus import Tus, id_of


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_of_another_upload_directory_does_not_start(
    make_server: MakeServer, tmp_path: Path, workers: str
) -> None:
    state = str(tmp_path / "state")
    first = make_server("--state-dir", state, "--workers", workers)
    second = make_server("--state-dir", state, launch=True)
    assert second.wait() == 2
    [line] = second.lines
    assert line.startswith(f"tusd-py serve: {state} is the state directory of a server of ")
    assert str(first.upload_dir) in line
    # The first one still answers commands.
    upload_id = id_of(Tus(first).new(10))
    flags = "--upload-dir", str(first.upload_dir), "--state-dir", state
    assert run("uploads", "rm", upload_id, *flags).returncode == 0
    first.terminate()
    second.start()
    second.terminate()


def test_a_state_directory_inside_of_another_upload_directory(make_server: MakeServer) -> None:
    first = make_server()
    second = make_server("--state-dir", str(first.upload_dir / ".tusd-py"), launch=True)
    assert second.wait() == 2
    assert "is the state directory of a server of" in second.log()


def test_commands_do_not_act_on_the_uploads_of_another_directory(
    make_server: MakeServer, tmp_path: Path
) -> None:
    state = str(tmp_path / "state")
    other = make_server("--state-dir", state)
    other.terminate()
    serving = make_server("--state-dir", state)
    upload_id = id_of(Tus(serving).new(10))
    for directory in (other.upload_dir, tmp_path / "mistyped"):
        flags = "--upload-dir", str(directory), "--state-dir", state
        for words in (("sweep", "--force"), ("sweep", "--dry-run"), ("uploads", "rm", upload_id)):
            done = run(*words, *flags)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
            assert "serves another upload directory" in done.stderr
    assert serving.data_file(upload_id).exists()


def test_servers_of_one_upload_directory_share_a_state_directory(
    make_server: MakeServer, tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "redis") as redis:
        flags = "--state-dir", str(tmp_path / "state"), "--redis-url", redis.url
        first = make_server(*flags, upload_dir=tmp_path / "uploads")
        second = make_server(*flags, upload_dir=tmp_path / "uploads")
        first.terminate()
        third = make_server(*flags, upload_dir=tmp_path / "uploads")
        stranger = make_server(*flags, launch=True)
        assert stranger.wait() == 2
        for each in (second, third):
            each.terminate()


def test_the_socket_of_a_server_that_stands_still_is_not_replaced(
    make_server: MakeServer, tmp_path: Path
) -> None:
    """As by a server on another machine's or an older version's directory, which no lock keeps out."""
    first = make_server("--state-dir", str(tmp_path / "state"))
    path = tmp_path / "state" / "control" / "server.sock"
    inode = path.stat().st_ino
    first.signal(signal.SIGSTOP)
    # Another one that does not see the lock.
    os.unlink(tmp_path / "state" / "state.lock")
    second = make_server("--state-dir", str(tmp_path / "state"))
    second.wait_for_line("another server listens there")
    second.terminate()
    assert path.stat().st_ino == inode
    first.signal(signal.SIGCONT)
    first.terminate()
    assert not path.exists()
