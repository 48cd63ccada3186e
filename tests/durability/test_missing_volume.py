"""The volume of the uploads is not mounted at startup, or disappears later: no upload becomes unknown."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.durability.volume import require_mounts, run_tool
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of
from tests.support.wire import Response
from tests.workers.commands import command, of

METADATA = {"Upload-Metadata": "filename YQ=="}


class Unmountable:
    """A file system that is mounted and unmounted at will. root: its mount point."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "volume"
        self.root.mkdir()
        self._image = directory / "image"
        with self._image.open("wb") as image:
            image.truncate(64 * 1024 * 1024)
        run_tool("mkfs.ext4", "-q", "-F", str(self._image))

    def mount(self) -> None:
        run_tool("mount", "-o", "loop", str(self._image), str(self.root))

    def unmount(self) -> None:
        # Also while it is in use.
        run_tool("umount", "-l", str(self.root))

    def close(self) -> None:
        while self.root.is_mount():
            self.unmount()


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Unmountable]:
    require_mounts(tmp_path)
    volume = Unmountable(tmp_path)
    volume.mount()
    yield volume
    volume.close()


@pytest.fixture(params=["state-dir", "redis"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """Flags of a server that keeps something outside of its volume."""
    if request.param == "state-dir":
        yield "--state-dir", str(tmp_path / "state")
        return
    with RedisServer(tmp_path / "redis") as redis:
        yield "--redis-url", redis.url


def serve_then_unmount(
    make_server: MakeServer, volume: Unmountable, *flags: str, below: str = ""
) -> tuple[ServerProcess, str, str]:
    """A server that has ended, and an unfinished and a finished upload of it, on a volume that is not mounted any more."""
    server = make_server(*flags, upload_dir=volume.root / below)
    tus = Tus(server)
    path = tus.new(10, headers=METADATA)
    assert tus.patch(path, 0, b"hello").status == 204
    finished = tus.finished(b"finished")
    server.terminate()
    volume.unmount()
    return server, path, finished


def check_goes_on(server: ServerProcess, path: str, finished: str) -> None:
    tus = Tus(server)
    assert tus.offset(path) == 5
    assert tus.patch(path, 5, b"world").status == 204
    assert tus.get(path).body == b"helloworld"
    assert tus.get(finished).body == b"finished"


@pytest.mark.parametrize("below", ["", "uploads"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_does_not_start_in_the_place_of_its_volume(
    make_server: MakeServer,
    volume: Unmountable,
    memory: tuple[str, ...],
    workers: str,
    below: str,
) -> None:
    flags = (*memory, "--workers", workers)
    server, path, finished = serve_then_unmount(make_server, volume, *flags, below=below)
    server.launch()
    assert server.wait() == 2
    assert f"{server.upload_dir} is not the upload directory that was served" in server.log()
    assert "--new-upload-dir accept" in server.log()
    assert list(volume.root.iterdir()) == []
    volume.mount()
    server.restart()
    # Its fingerprint was not given away meanwhile.
    assert Tus(server).create(10, headers=METADATA).status in (201, 409)
    check_goes_on(server, path, finished)


def test_commands_do_not_begin_either(make_server: MakeServer, volume: Unmountable) -> None:
    with RedisServer(volume.root.parent / "redis") as redis:
        env = {"TUSD_REDIS_URL": redis.url}
        server, path, finished = serve_then_unmount(make_server, volume, "--redis-url", redis.url)
        for words in ("sweep", "uploads list", f"uploads show {id_of(path)}", "events list"):
            refused = command(*words.split(), *of(server), env=env)
            assert (refused.returncode, refused.stdout) == (2, "")
            assert "was served there before" in refused.stderr
        told = command("status", *of(server), env=env)
        assert told.returncode == 1
        assert f"PROBLEM    {volume.root} is not the upload directory" in told.stdout
        assert list(volume.root.iterdir()) == []
        volume.mount()
        assert command("sweep", *of(server), env=env).returncode == 0
        check_goes_on(server.restart(), path, finished)


def test_a_server_waits_for_its_volume(
    make_server: MakeServer, volume: Unmountable, memory: tuple[str, ...]
) -> None:
    flags = (*memory, "--wait-for-directory", "60s")
    server, path, finished = serve_then_unmount(make_server, volume, *flags)
    since = len(server.lines)
    server.launch()
    server.wait_for_line("Waiting up to 60 s", since=since)
    volume.mount()
    server.wait_for_line("Uploads at", since=since)
    check_goes_on(server, path, finished)


def test_another_volume_is_served_once_it_is_accepted(
    make_server: MakeServer, volume: Unmountable, tmp_path: Path, memory: tuple[str, ...]
) -> None:
    server, path, _ = serve_then_unmount(make_server, volume, *memory)
    # One that another instance has served.
    other = make_server(upload_dir=tmp_path / "other")
    other.terminate()
    shutil.copytree(other.upload_dir / ".tusd-py", volume.root / ".tusd-py", symlinks=True)
    server.launch()
    assert server.wait() == 2
    assert "another one" in server.log()
    accepting = make_server(*memory, "--new-upload-dir", "accept", upload_dir=volume.root)
    assert Tus(accepting).head(path).status == 404
    accepting.terminate()
    # From now on it is known, and the first one is as well.
    server.restart().terminate()
    volume.mount()
    server.restart()
    assert Tus(server).offset(path) == 5


def test_an_operator_can_rule_out_new_directories(
    make_server: MakeServer, volume: Unmountable
) -> None:
    """For servers that keep nothing outside of their volumes."""
    server = make_server(upload_dir=volume.root)
    server.terminate()
    careful = make_server("--new-upload-dir", "refuse", upload_dir=volume.root)
    careful.terminate()
    volume.unmount()
    careful.launch()
    assert careful.wait() == 2
    assert "was never served" in careful.log()
    assert list(volume.root.iterdir()) == []


def test_a_directory_of_an_earlier_version_is_adopted(
    make_server: MakeServer, tmp_path: Path, memory: tuple[str, ...]
) -> None:
    server = make_server(upload_dir=tmp_path / "uploads")
    finished = Tus(server).finished(b"hello")
    server.terminate()
    (server.upload_dir / ".tusd-py" / "id").unlink()
    later = make_server(*memory, upload_dir=server.upload_dir)
    assert Tus(later).get(finished).body == b"hello"
    assert len((server.upload_dir / ".tusd-py" / "id").read_text().strip()) == 32


def test_servers_of_different_directories_share_a_redis(
    make_server: MakeServer, tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "redis") as redis:
        first, second = (make_server("--redis-url", redis.url) for _ in range(2))
        assert first.upload_dir != second.upload_dir
        assert Tus(first).create(10, headers=METADATA).status == 201
        # Duplicates are found across them, as ever.
        assert Tus(second).create(10, headers=METADATA).status in (201, 409)
        for server in (first, second):
            server.terminate()
            server.restart()


def test_a_server_that_was_given_an_emptied_redis_starts(
    make_server: MakeServer, volume: Unmountable
) -> None:
    with RedisServer(volume.root.parent / "redis") as redis:
        server = make_server("--redis-url", redis.url, upload_dir=volume.root)
        finished = Tus(server).finished(b"hello")
        server.terminate()
        redis.client.flushall()
        assert Tus(server.restart()).get(finished).body == b"hello"


def out_of_reach(tus: Tus, path: str, finished: str) -> list[Response]:
    """The responses to requests of every kind."""
    return [
        tus.patch(path, 5, b"world"),
        tus.delete(path),
        tus.get(finished),
        tus.create(10),
        tus.create(5, body=b"hello"),
        tus.create(0),
    ]


@pytest.mark.parametrize("shares", [False, True], ids=["alone", "shares"])
def test_a_volume_that_goes_away_while_it_is_served(
    make_server: MakeServer, volume: Unmountable, tmp_path: Path, shares: bool
) -> None:
    redis = RedisServer(tmp_path / "redis")
    flags = ("--state-dir", str(tmp_path / "state"), "--sweep-interval", "1h")
    env = {"TUSD_REDIS_URL": redis.start().url} if shares else {}
    try:
        server = make_server(*flags, upload_dir=volume.root, env=env)
        tus = Tus(server)
        path = tus.new(10, headers=METADATA)
        assert tus.patch(path, 0, b"hello").status == 204
        finished = tus.finished(b"finished")
        gone = tus.new(10)
        assert tus.delete(gone).status == 204
        volume.unmount()
        for known in (path, finished, gone):
            head = tus.head(known)
            assert (head.status, "Retry-After" in head) == (423, True), head
        for answer in out_of_reach(tus, path, finished):
            assert answer.status == 503, answer
            assert "Retry-After" in answer
        assert tus.get("/readyz").status == 503
        assert tus.get("/healthz").status == 200
        swept = command("sweep", *of(server), *flags[:2], env=env)
        assert swept.returncode != 0
        assert list(volume.root.iterdir()) == []
        server.wait_for_line("No upload is served")
        assert sum("No upload is served" in line for line in server.lines) == 1
        volume.mount()
        assert tus.get("/readyz").status == 200
        assert tus.head(gone).status == 410
        check_goes_on(server, path, finished)
        assert command("sweep", *of(server), *flags[:2], env=env).returncode == 0
        assert tus.get(finished).body == b"finished"
    finally:
        redis.stop()


def test_a_body_is_not_refused_as_unknown_when_its_volume_goes_away(
    make_server: MakeServer, volume: Unmountable
) -> None:
    server = make_server(upload_dir=volume.root)
    tus = Tus(server)
    path = tus.new(10)
    with tus.begin_patch(path, 0, 10, b"hello") as patch:
        patch.wait_stored()
        volume.unmount()
        patch.send(b"world")
        assert patch.response().status >= 500
    assert tus.head(path).status == 423
    volume.mount()
    # What arrived has been kept, as the file was open.
    assert tus.offset(path) == 10
    assert tus.get(path).body == b"helloworld"


def test_a_directory_in_the_place_of_the_uploads(make_server: MakeServer, tmp_path: Path) -> None:
    """Without mounts: moved away and back, as by a restore."""
    server = make_server(upload_dir=tmp_path / "uploads")
    tus = Tus(server)
    path = tus.new(10)
    assert tus.patch(path, 0, b"hello").status == 204
    server.upload_dir.rename(tmp_path / "away")
    assert tus.head(path).status == 423
    for answer in out_of_reach(tus, path, path):
        assert answer.status == 503, answer
    server.upload_dir.mkdir()
    assert tus.head(path).status == 423
    assert tus.create(1).status == 503
    assert list(server.upload_dir.iterdir()) == []
    server.upload_dir.rmdir()
    (tmp_path / "away").rename(server.upload_dir)
    assert tus.offset(path) == 5
    assert tus.patch(path, 5, b"world").status == 204


def test_a_copy_in_the_place_of_the_directory_is_not_served_by_the_server_of_the_first(
    make_server: MakeServer, tmp_path: Path
) -> None:
    root = tmp_path / "uploads"
    tus = Tus(make_server("--duplicates", "off", upload_dir=root))
    path = tus.new(10)
    root.rename(tmp_path / "before")
    shutil.copytree(
        tmp_path / "before", root, symlinks=True, ignore=shutil.ignore_patterns("*.sock")
    )
    # It holds no lock there: another one may serve it.
    other = Tus(make_server("--duplicates", "off", upload_dir=root))
    assert tus.head(path).status == 423
    assert tus.patch(path, 0, b"a").status == 503
    tus.server.wait_for_line("was replaced by another directory")
    assert other.patch(path, 0, b"b" * 10).status == 204
    assert other.get(path).body == b"b" * 10
