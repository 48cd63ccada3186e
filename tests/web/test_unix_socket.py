"""The server's Unix socket: permissions and ownership."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.wire import Connection


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def answers(path: Path) -> bool:
    with Connection(str(path)) as connection:
        return connection.request("OPTIONS", "/files/").status == 204


@pytest.mark.parametrize(("flags", "perms"), [((), 0o660), (("--unix-sock-perms", "0606"), 0o606)])
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_its_permissions_are_those_of_the_setting(
    make_server: MakeServer, tmp_path: Path, flags: tuple[str, ...], perms: int, umask: int
) -> None:
    path = tmp_path / "s"
    # A server that is forked has the umask of the process that it is forked from.
    prefix = ("sh", "-c", f'umask {umask:03o}; exec "$@"', "sh")
    make_server("--unix-sock", str(path), *flags, prefix=prefix)
    assert permissions(path) == perms
    assert answers(path)


def test_one_that_was_left_behind_is_replaced(make_server: MakeServer, tmp_path: Path) -> None:
    """With its permissions, which are the setting's again."""
    path = tmp_path / "s"
    make_server("--unix-sock", str(path)).kill9()
    path.chmod(0o666)
    make_server("--unix-sock", str(path))
    assert permissions(path) == 0o660
    assert answers(path)


def test_one_that_another_server_listens_on_is_left_alone(
    make_server: MakeServer, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    make_server("--unix-sock", str(path))
    second = make_server("--unix-sock", str(path), launch=True)
    assert second.wait() == 2
    assert "another server does (--unix-sock)" in second.log()
    assert answers(path)


def test_what_is_no_socket_is_left_alone(make_server: MakeServer, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    server = make_server("--unix-sock", str(path), launch=True)
    assert server.wait() == 2
    assert "it is not a socket (--unix-sock)" in server.log()
    assert path.read_text() == "precious"


def test_several_processes_serve_one(make_server: MakeServer, tmp_path: Path) -> None:
    path = tmp_path / "s"
    make_server("--unix-sock", str(path), "--workers", "2")
    assert permissions(path) == 0o660
    assert all(answers(path) for _ in range(10))


def test_a_socket_that_nobody_accepts_from_is_not_taken_either(
    make_server: MakeServer, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy:
        busy.bind(str(path))
        busy.listen(0)
        server = make_server("--unix-sock", str(path), launch=True)
        assert server.wait() == 2
