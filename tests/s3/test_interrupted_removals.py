"""kill -9 in the middle of a removal, and the next upload with the id comes before what it left is freed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from tests.s3.conftest import shared
from tests.s3.contents import Contents
from tests.s3.proxies import FaultProxy
from tests.s3.servers import BUCKET, ENVIRONMENT
from tests.s3.test_taken_keys import HOOK
from tests.support.forked import ForkedServer
from tests.support.redis import RedisServer
from tests.support.tus import Tus, metadata, path_of
from tests.support.waiting import wait_until

BODY = b"hello"
FIRST, SECOND = "study/1.dcm", "study/2.dcm"


class Place:
    """A bucket's prefix with a server that is killed in a removal, and another one that goes on."""

    def __init__(self, directory: Path, redis: RedisServer, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.prefix = f"{uuid4().hex}/"
        self.contents = Contents(shared("seaweedfs"), self.prefix)
        hook = directory / "hook.py"
        hook.write_text(HOOK)
        flags = (
            *("--s3-bucket", BUCKET, "--s3-endpoint", proxy.endpoint, "--s3-part-size", "5MiB"),
            *("--s3-object-prefix", self.prefix, "--s3-info-prefix", self.prefix),
            *("--redis-url", redis.url, "--lock-lease", "5s", "--hook", str(hook)),
        )
        self.servers = [
            ForkedServer(directory / name, *flags, env=ENVIRONMENT) for name in ("victim", "other")
        ]
        for server in self.servers:
            server.wait_until_up()
        self.other = self.servers[1].client()

    def new(self, upload_id: str, key: str = "") -> str:
        """An upload of the other server whose id, and whose place, a hook chooses."""
        wanted = {"id": upload_id, **({"key": self.prefix + key} if key else {})}
        made: list[str] = []

        def is_made() -> bool:
            response = self.other.create(len(BODY), headers={"Upload-Metadata": metadata(**wanted)})
            made.extend([path_of(response["Location"])] if response.status == 201 else [])
            # The killed server may still hold the lock.
            assert response.status in {201, 423}, response
            return bool(made)

        wait_until(is_made, f"{upload_id} to be created")
        return made[0]

    def finished(self, upload_id: str, key: str = "") -> str:
        path = self.new(upload_id, key)
        assert self.other.patch(path, 0, BODY).status == 204
        return path

    def kill_in_removal(self, path: str, key: str) -> None:
        """Kill the server that removes an upload before it removes the object with this key."""
        victim = self.servers[0]

        def remove(tus: Tus) -> None:
            with suppress(ConnectionError):
                tus.delete(path)

        with self.proxy.hold("DeleteObject", f"{key}$") as hold:
            request = threading.Thread(target=remove, args=(victim.client(),))
            request.start()
            hold.wait()
            victim.kill9()
        request.join(60)

    def left(self) -> set[str]:
        """All keys but those that are kept for some time."""
        stays = (".tusd-py/gone/", ".tusd-py/swept", ".tusd-py/probe/", ".tusd-py/sweep-held")
        return {key for key in self.contents.keys() if not key.startswith(stays)}  # noqa: SIM118


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with (
        RedisServer(tmp_path / "redis") as redis,
        FaultProxy(shared("seaweedfs").address) as proxy,
    ):
        place = Place(tmp_path, redis, proxy)
        try:
            yield place
        finally:
            for server in place.servers:
                server.kill9()


@pytest.mark.parametrize("is_swept", [True, False], ids=["swept", "not swept"])
def test_an_object_goes_once_the_next_upload_with_the_id_is_gone(
    place: Place, is_swept: bool
) -> None:
    """As long as that has no bytes, a sweep cannot tell whose the object will be next."""
    place.kill_in_removal(place.finished("x"), "/x")
    path = place.new("x")
    if is_swept:
        place.contents.tidy()
        assert place.other.offset(path) == 0
    assert place.other.delete(path).status == 204
    place.contents.tidy()
    assert place.left() == set()


def test_an_object_goes_while_the_next_upload_with_the_id_is_elsewhere(place: Place) -> None:
    place.kill_in_removal(place.finished("x"), "/x")
    path = place.finished("x", SECOND)
    place.contents.tidy()
    assert place.left() == {"x.info", SECOND, ".tusd-py/taken/study%2F2.dcm"}
    assert place.other.get(path).body == BODY


@pytest.mark.parametrize("step", ["/study/1.dcm", "/taken/[^/]*1.dcm"])
def test_a_place_is_free_after_a_sweep_although_the_id_is_another_ones(
    place: Place, step: str
) -> None:
    place.kill_in_removal(place.finished("x", FIRST), step)
    second = place.finished("x", SECOND)
    place.contents.tidy()
    third = place.finished("y", FIRST)
    for path in (second, third):
        assert place.other.get(path).body == BODY


def test_what_the_next_upload_with_the_id_replaces_is_forgotten(place: Place) -> None:
    place.kill_in_removal(place.finished("x"), "/x")
    path = place.finished("x")
    place.contents.tidy()
    assert place.left() == {"x", "x.info"}
    assert place.other.get(path).body == BODY
