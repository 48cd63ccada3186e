"""A server with `--wait-for-directory` waits for the one that it replaces on the same directory."""

from __future__ import annotations

import pytest

from tests.conftest import MakeServer
from tests.support.tus import Tus

WAITS = ("--wait-for-directory", "60s")


def test_without_it_the_second_gives_up_at_once(make_server: MakeServer) -> None:
    first = make_server()
    second = make_server(upload_dir=first.upload_dir, launch=True)
    assert second.wait() == 2
    assert f"pid {first.pid}" in second.log()
    assert "--wait-for-directory" in second.log()


@pytest.mark.parametrize("kind", [(), ("--duplicates", "on"), ("--workers", "2")], ids=str)
@pytest.mark.parametrize("end", ["terminated", "killed"])
def test_it_serves_once_the_first_has_ended(
    make_server: MakeServer, kind: tuple[str, ...], end: str
) -> None:
    first = make_server(*kind)
    tus = Tus(first)
    path = tus.new(10)
    second = make_server(*kind, *WAITS, upload_dir=first.upload_dir, launch=True)
    second.wait_for_line("Waiting up to 60 s")
    # The first one is not disturbed by it.
    assert tus.patch(path, 0, b"hello").status == 204
    if end == "terminated":
        first.terminate()
    else:
        first.kill9()
    second.url = second.wait_for_line(r"Uploads at (\S+)")[1]
    second.port = int(second.url.rsplit(":", 1)[1].split("/")[0])
    tus = Tus(second)
    assert tus.patch(path, 5, b"world").status == 204
    assert tus.get(path).body == b"helloworld"


def test_it_gives_up_when_the_time_is_over(make_server: MakeServer) -> None:
    first = make_server()
    second = make_server("--wait-for-directory", "300ms", upload_dir=first.upload_dir, launch=True)
    assert second.wait() == 2
    assert f"pid {first.pid}" in second.log()
    assert Tus(first).new(1)


def test_it_can_be_stopped_while_it_waits(make_server: MakeServer) -> None:
    first = make_server()
    second = make_server(*WAITS, upload_dir=first.upload_dir, launch=True)
    second.wait_for_line("Waiting up to 60 s")
    assert second.terminate() != 1
    assert "Traceback" not in second.log()
    assert Tus(first).new(1)
