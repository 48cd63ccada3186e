"""A disk that hangs for a while: requests that need it wait, all others are answered."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.durability.volume import Volume, require_mounts
from tests.support.tus import Tus, checksum, metadata
from tests.support.wire import Response

LARGE = 3_000_000


class House:
    """A server on a disk that can be made to hang. finished, begun: paths of uploads; begun has 5 of LARGE bytes."""

    def __init__(self, tus: Tus, root: Path) -> None:
        self.tus = tus
        self._root = root
        self.finished = tus.finished(b"hello")
        self.begun = tus.new(LARGE)
        assert tus.patch(self.begun, 0, b"12345").status == 204
        self.other = tus.new(10)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Freeze the file system during the block; changes wait."""
        subprocess.run(["fsfreeze", "-f", str(self._root)], check=True, timeout=60)
        try:
            yield
        finally:
            subprocess.run(["fsfreeze", "-u", str(self._root)], check=True, timeout=60)

    def get(self, path: str) -> int:
        return self.tus.request("GET", path).status


@pytest.fixture
def house(tmp_path: Path, make_server: MakeServer) -> Iterator[House]:
    require_mounts(tmp_path)
    volume = Volume(tmp_path)
    with volume.mounted():
        server = make_server(upload_dir=volume.root / "uploads")
        yield House(Tus(server), volume.root)
        server.close()


def create(house: House) -> Response:
    return house.tus.create(5, headers={"Upload-Metadata": metadata(name="x" * 1000)})


def create_with_body(house: House) -> Response:
    return house.tus.create(5, body=b"hello")


def append_little(house: House) -> Response:
    return house.tus.patch(house.begun, 5, b"6789")


def append_much(house: House) -> Response:
    return house.tus.patch(house.begun, 5, bytes(LARGE - 5))


def append_verified(house: House) -> Response:
    return house.tus.patch(house.begun, 5, b"6789", {"Upload-Checksum": checksum(b"6789")})


def append_much_verified(house: House) -> Response:
    data = bytes(LARGE - 5)
    return house.tus.patch(house.begun, 5, data, {"Upload-Checksum": checksum(data)})


def declare_length(house: House) -> Response:
    path = house.tus.new(None)
    return house.tus.patch(path, 0, b"123", {"Upload-Length": "10"})


def delete(house: House) -> Response:
    return house.tus.delete(house.begun)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (create, 201),
        (create_with_body, 201),
        (append_little, 204),
        (append_much, 204),
        (append_verified, 204),
        (append_much_verified, 204),
        (declare_length, 204),
        (delete, 204),
    ],
)
def test_others_are_answered_while_the_disk_stands_still(
    house: House, change: Callable[[House], Response], status: int
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with house.standing_still():
            waiting: Future[Response] = pool.submit(change, house)
            for _ in range(3):
                assert house.get("/healthz") == 200
                assert house.tus.request("OPTIONS", house.tus.collection).status == 204
                assert house.tus.head(house.finished).status == 200
                assert house.tus.head(house.other).status == 200
                assert house.get("/readyz") == 503
            assert not waiting.done()
        assert waiting.result(60).status == status
    assert house.get("/readyz") == 200


def test_many_that_wait_for_the_disk_keep_nobody_else(house: House) -> None:
    """More requests than there are threads."""
    with ThreadPoolExecutor(40) as pool:
        with house.standing_still():
            waiting = [pool.submit(create, house) for _ in range(40)]
            for _ in range(3):
                assert house.get("/healthz") == 200
                assert house.tus.head(house.finished).status == 200
                assert house.tus.head(house.other).status == 200
            assert not any(each.done() for each in waiting)
        assert [each.result(60).status for each in waiting] == [201] * 40
