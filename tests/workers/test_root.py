"""Commands of root beside a server of another user: they change nothing, and name that user."""

from __future__ import annotations

import json
import os
import pwd
import shutil
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.redis import RedisServer
from tests.support.tus import Tus, id_of
from tests.workers.commands import command

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")

NOBODY = pwd.getpwnam("nobody").pw_uid


def give(directory: Path) -> None:
    """Make a directory and all that is in it nobody's."""
    for path in (directory, *directory.rglob("*")):
        os.lchown(path, NOBODY, -1)


def roots(directory: Path) -> list[Path]:
    """What is root's in a directory."""
    return [path for path in directory.rglob("*") if path.lstat().st_uid == 0]


def refused(*words: str, env: dict[str, str] | None = None) -> str:
    """The one line of a command that is refused."""
    done = command(*words, env=env)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "sudo -u 'nobody'" in done.stderr
    return done.stderr


def test_root_stores_nothing_beside_the_uploads_of_another_user(
    make_server: MakeServer, tmp_path: Path
) -> None:
    server = make_server("--duplicates", "on", "--jobs", "on")
    upload_id = id_of(Tus(server).new(10))
    server.terminate()
    # The data that another start of the embedded Redis would write to.
    assert (server.upload_dir / ".tusd-py" / "valkey").is_dir()
    give(server.upload_dir)
    flags = "--upload-dir", str(server.upload_dir)
    for words in (
        ("sweep",),
        ("sweep", "--dry-run"),
        ("uploads", "rm", upload_id),
        ("events", "replay", "--all"),
        ("duplicates", "list"),
        ("status",),
        ("worker",),
        ("scheduler",),
    ):
        assert f"{server.upload_dir}/.tusd-py" in refused(*words, *flags)
    refused("adopt", str(server.upload_dir), "--from", "tusd")
    assert roots(server.upload_dir) == []
    assert server.data_file(upload_id).exists()
    # To look at them is no harm.
    done = command("uploads", "list", "--json", *flags)
    assert json.loads(done.stdout)["upload"] == upload_id
    assert command("adopt", str(server.upload_dir), "--from", "tusd", "--dry-run").returncode == 0


def test_root_removes_nothing_beside_servers_with_a_redis(
    make_server: MakeServer, tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "redis") as redis:
        env = {"TUSD_REDIS_URL": redis.url}
        server = make_server(env=env)
        Tus(server).new(10)
        give(server.upload_dir)
        refused("sweep", "--upload-dir", str(server.upload_dir), env=env)
        refused("worker", "--upload-dir", str(server.upload_dir), env=env)
        server.terminate()


def test_root_begins_no_instance_in_the_directory_of_another_user(tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    give(uploads)
    refused("sweep", "--upload-dir", str(uploads))
    assert list(uploads.iterdir()) == []


def test_a_state_directory_elsewhere_counts_too(make_server: MakeServer, tmp_path: Path) -> None:
    state = tmp_path / "state"
    server = make_server("--state-dir", str(state))
    server.terminate()
    give(state)
    flags = "--upload-dir", str(server.upload_dir), "--state-dir", str(state)
    assert str(state) in refused("sweep", *flags)
    assert roots(state) == []


def test_root_asks_the_server_that_runs(make_server: MakeServer) -> None:
    """The server does the work, and the files are its own."""
    server = make_server()
    Tus(server).new(10)
    give(server.upload_dir)
    done = command("sweep", "--upload-dir", str(server.upload_dir))
    assert (done.returncode, done.stderr) == (0, "")


def test_root_may_where_root_serves(make_server: MakeServer) -> None:
    """As in a container whose volume is a directory of the machine, which is another user's."""
    server = make_server()
    Tus(server).new(10)
    server.terminate()
    os.chown(server.upload_dir, NOBODY, -1)
    done = command("sweep", "--upload-dir", str(server.upload_dir))
    assert (done.returncode, done.stderr) == (0, "")
    shutil.rmtree(server.upload_dir)
