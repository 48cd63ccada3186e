"""kill -9 at each step of what a server does in a bucket: another server goes on, and nothing is lost or left.

A step is a request to the bucket, at which the server stands still before or after its effect and is killed. Every step is
hit once, by name.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import uuid4

import pytest

from tests.s3.conftest import shared
from tests.s3.contents import Contents
from tests.s3.proxies import FaultProxy, Hold
from tests.s3.servers import BUCKET, ENVIRONMENT
from tests.support.events import HOOK_FILE
from tests.support.forked import ForkedCommand, ForkedServer
from tests.support.redis import RedisServer
from tests.support.tus import Tus, checksum, id_of, path_of
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.timeout(300)]

MIB = 1 << 20
PART = 5 * MIB
WHOLE = random.Random(5).randbytes(2 * PART + 1000)
BEGUN = PART + 2000
SMALL = WHOLE[:2000]

STAYS = (
    ".tusd-py/outbox/",
    ".tusd-py/gone/",
    ".tusd-py/finals/",
    ".tusd-py/swept",
    ".tusd-py/probe/",
)
"""Keys of what is kept for some time: events that no worker takes here, tombstones, marks, what killed servers tried out."""

Doing = Literal[
    "create", "begin", "finish", "small", "verified", "join", "join small", "remove", "expire"
]

RECORD, TAIL, EVENT = r"\.info$", r"\.part$", r"\.tusd-py/outbox/"
# Not what a server that starts tries out.
DATA = r"(?<!/probe)/[0-9a-f]{32}$"


@dataclass(frozen=True)
class Step:
    """A request at which a server is killed. done: what the server was doing. nth: which of such requests, from 1."""

    doing: Doing
    operation: str
    key: str
    when: Literal["before", "after"]
    nth: int = 1

    def __str__(self) -> str:
        name = "data" if self.key == DATA else self.key.strip("\\/$")
        return f"{self.doing}-{self.when}-{self.operation}-{name}-{self.nth}".replace(" ", "-")


def both(doing: Doing, operation: str, key: str, nth: int = 1) -> list[Step]:
    return [
        Step(doing, operation, key, "before", nth),
        Step(doing, operation, key, "after", nth),
    ]


STEPS = [
    *both("create", "PutObject", RECORD),
    *both("create", "PutObject", EVENT),
    # The record names the multipart upload only after that exists.
    *both("begin", "CreateMultipartUpload", DATA),
    *both("begin", "PutObject", RECORD),
    *both("begin", "UploadPart", DATA),
    *both("begin", "PutObject", TAIL),
    *both("finish", "PutObject", TAIL),
    *both("finish", "UploadPart", DATA),
    *both("finish", "UploadPart", DATA, 2),
    *both("finish", "PutObject", EVENT),
    *both("finish", "CompleteMultipartUpload", DATA),
    *both("finish", "PutObject", RECORD),
    *both("finish", "DeleteObject", TAIL),
    *both("small", "PutObject", DATA),
    *both("small", "PutObject", EVENT, 2),
    *both("small", "PutObject", RECORD, 2),
    *both("verified", "PutObject", DATA),
    *both("verified", "PutObject", RECORD, 2),
    *both("join", "PutObject", r"\.tusd-py/finals/"),
    *both("join", "PutObject", RECORD),
    *both("join", "PutObject", r"\.tusd-py/awaiting/"),
    *both("join", "PutObject", RECORD, 2),
    *both("join", "CreateMultipartUpload", DATA),
    *both("join", "PutObject", RECORD, 3),
    *both("join", "UploadPartCopy", DATA),
    *both("join", "UploadPart", DATA),
    *both("join", "CompleteMultipartUpload", DATA),
    *both("join", "DeleteObject", r"\.tusd-py/awaiting/"),
    *both("join", "PutObject", EVENT, 2),
    *both("join", "PutObject", RECORD, 4),
    *both("join small", "PutObject", DATA),
    *both("remove", "PutObject", EVENT),
    *both("remove", "PutObject", r"\.tusd-py/freeing/"),
    *both("remove", "PutObject", r"\.tusd-py/gone/"),
    *both("remove", "DeleteObject", RECORD),
    *both("remove", "AbortMultipartUpload", DATA),
    # An unfinished upload has no object, which is looked for.
    *both("remove", "HeadObject", DATA),
    *both("remove", "DeleteObject", TAIL),
]


EXPIRY_STEPS = [
    Step("expire", "PutObject", EVENT, "after"),
    Step("expire", "PutObject", r"\.tusd-py/freeing/", "after"),
    Step("expire", "PutObject", r"\.tusd-py/gone/", "after"),
    Step("expire", "DeleteObject", RECORD, "after"),
    Step("expire", "AbortMultipartUpload", DATA, "after"),
    Step("expire", "HeadObject", DATA, "after"),
    Step("expire", "DeleteObject", TAIL, "after"),
]
"""A sweep sends one of these requests after the other: before one is after the one above it."""


class Place:
    """A bucket's prefix with a server that goes on, and others that are killed, all by way of one proxy."""

    def __init__(self, directory: Path, redis: RedisServer, proxy: FaultProxy) -> None:
        self.proxy = proxy
        prefix = f"{uuid4().hex}/"
        self.contents = Contents(shared("seaweedfs"), prefix)
        self._directory = directory
        expired = directory / "expired.py"
        expired.write_text("def post_expire(event):\n    pass\n")
        self._flags = (
            *("--s3-bucket", BUCKET, "--s3-endpoint", proxy.endpoint, "--s3-part-size", "5MiB"),
            *("--s3-object-prefix", prefix, "--s3-info-prefix", prefix),
            *("--redis-url", redis.url, "--lock-lease", "5s"),
            *("--hook", str(HOOK_FILE), "--hook", str(expired)),
        )
        self._env = {
            **ENVIRONMENT,
            "RECORD_EVENTS": str(directory / "events.jsonl"),
            "HOLD_PRE_FINISH": str(directory / "no-hold"),
        }
        self._number = 0
        self._next = self._started()
        self._other = self.victim()
        self.other = self._other.client()

    def victim(self) -> ForkedServer:
        """A server to be killed; the one after it starts meanwhile."""
        server, self._next = self._next, self._started()
        server.wait_until_up()
        return server

    def _started(self) -> ForkedServer:
        return ForkedServer(self._new_directory(), *self._flags, env=self._env)

    def sweep(self) -> ForkedCommand:
        """A sweep of another process, to which everything unfinished has expired."""
        flags = ("--force", "--expire-after", "1ms", *self._flags)
        return ForkedCommand(self._new_directory(), "sweep", *flags, env=self._env)

    def _new_directory(self) -> Path:
        self._number += 1
        return self._directory / f"process-{self._number}"

    def close(self) -> None:
        self._other.kill9()
        self._next.kill9()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("kills")
    with (
        RedisServer(directory / "redis") as redis,
        FaultProxy(shared("seaweedfs").address) as proxy,
    ):
        place = Place(directory, redis, proxy)
        try:
            yield place
        finally:
            place.close()


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_server_is_killed_at(step: Step, place: Place) -> None:
    before = place.contents.keys()
    case = CASES[step.doing](place)
    server = place.victim()
    with holds(place.proxy, step) as hold:
        request = threading.Thread(target=quietly, args=(lambda: case.attempt(server.client()),))
        request.start()
        hold.wait()
        server.kill9()
    request.join(60)
    assert not request.is_alive()
    case.go_on(place.other)
    case.check(place.other, place.contents)
    place.contents.tidy()
    left = {key for key in place.contents.keys() - before if not key.startswith(STAYS)}
    # A part's mark stays as long as its final: joined ones that lost the time to remove it.
    left -= {key for key in left if key.endswith(f"/{id_of(case.path)}") and "awaiting" in key}
    assert left == case.stays()
    assert place.contents.pending() <= {name for name in left if f"{name}.info" in left}
    case.clean(place.other)


@pytest.mark.parametrize("step", EXPIRY_STEPS, ids=str)
def test_a_sweep_is_killed_at(step: Step, place: Place) -> None:
    before = place.contents.keys()
    path = Remove(place).path
    with holds(place.proxy, step) as hold:
        sweep_up_to(hold, place).kill9()
    assert_expired(place, path)
    place.contents.tidy()
    left = {key for key in place.contents.keys() - before if not key.startswith(STAYS)}
    assert left == set()
    assert place.contents.pending() == set()


def test_a_sweep_completes_a_finish_whose_event_was_recorded(place: Place) -> None:
    """Its server was killed between the two, and no client asks for the upload again."""
    case = Small(place)
    server = place.victim()
    case.path = server.client().new(len(SMALL))
    sweeps: list[ForkedCommand] = []
    with place.proxy.hold("PutObject", EVENT + id_of(case.path), after=True) as hold:
        request = threading.Thread(
            target=quietly, args=(lambda: server.client().patch(case.path, 0, SMALL),)
        )
        request.start()
        hold.wait()
        server.kill9()
    request.join(60)

    def is_finished() -> bool:
        sweeps.append(place.sweep())
        sweeps[-1].wait()
        status = place.other.get(case.path).status
        # Shown if it fails.
        print(status, sweeps[-1].log())
        # Incomplete ones expire.
        assert status != 410
        return status == 200

    wait_until(is_finished, "a sweep to finish it")
    case.check(place.other, place.contents)
    case.clean(place.other)


def sweep_up_to(hold: Hold, place: Place) -> ForkedCommand:
    """A sweep that stands still. Those before it may have got no lock, as for some time in a new Redis."""
    sweep = place.sweep()
    wait_until(lambda: hold.is_reached or sweep.has_ended, "a sweep")
    return sweep if hold.is_reached else sweep_up_to(hold, place)


def assert_expired(place: Place, path: str) -> None:
    """The next sweeps remove an upload, whoever began that, and tell of it once."""

    def is_gone() -> bool:
        place.sweep().wait()
        return place.other.head(path).status == 410

    # A killed process may still hold a lock.
    wait_until(is_gone, "the upload to expire")
    assert place.contents.events(id_of(path)) == ["post-create", "post-expire"]


def test_nothing_is_left_in_the_end(place: Place) -> None:
    place.contents.tidy()
    found = place.contents.keys()
    assert {key for key in found if not key.startswith(STAYS)} == set()
    assert place.contents.pending() == set()


class holds:
    """`with holds(proxy, step) as hold:` the step's request stands still; those like it before it do not."""

    def __init__(self, proxy: FaultProxy, step: Step) -> None:
        self._proxy, self._step = proxy, step

    def __enter__(self) -> Hold:
        step = self._step
        self._holding = self._proxy.hold(
            step.operation, step.key, after=step.when == "after", skip=step.nth - 1
        )
        return self._holding.__enter__()

    def __exit__(self, *error: object) -> None:
        self._holding.__exit__(None, None, None)


def quietly(request: Callable[[], object]) -> None:
    """The server is killed in it, so that there is no response."""
    with suppress(ConnectionError):
        request()


# -- what a server does when it is killed, and what its client does then --------------------------------------------


class Case:
    """One upload and its client. data: what it shall have in the end."""

    data: bytes = WHOLE

    def __init__(self, place: Place) -> None:
        self.path = ""

    def attempt(self, tus: Tus) -> None:
        """The request in which the server is killed."""
        raise NotImplementedError

    def go_on(self, tus: Tus) -> None:
        """What the client does at the other server."""
        offset = tus.offset(self.path)
        if offset < len(self.data):
            assert tus.patch(self.path, offset, self.data[offset:]).status == 204

    def check(self, tus: Tus, contents: Contents) -> None:
        assert tus.get(self.path).body == self.data
        events = contents.events(id_of(self.path))
        assert events.count("post-finish") == 1, events

    def stays(self) -> set[str]:
        """The keys that stay."""
        return {id_of(self.path), f"{id_of(self.path)}.info"}

    def clean(self, tus: Tus) -> None:
        if self.path:
            assert tus.delete(self.path).status in {204, 410}


class Create(Case):
    """A creation without a response: its client knows no URL, and repeats it."""

    def attempt(self, tus: Tus) -> None:
        tus.create(len(WHOLE))

    def go_on(self, tus: Tus) -> None:
        self.path = tus.new(len(WHOLE))
        super().go_on(tus)

    def check(self, tus: Tus, contents: Contents) -> None:
        super().check(tus, contents)
        # Of the first attempt, which is an upload without bytes that expires, or nothing.
        found = contents.keys()
        self._first = {key for key in found if key.endswith(".info") and not self._is_ours(key)}
        for key in self._first:
            name = key.removesuffix(".info")
            assert tus.offset(f"{tus.collection}{name}") == 0
            assert "post-finish" not in contents.events(name)
            assert tus.delete(f"{tus.collection}{name}").status == 204

    def _is_ours(self, key: str) -> bool:
        return key == f"{id_of(self.path)}.info"


class Begin(Case):
    """The first bytes of an upload."""

    def __init__(self, place: Place) -> None:
        self.path = place.other.new(len(WHOLE))

    def attempt(self, tus: Tus) -> None:
        tus.patch(self.path, 0, WHOLE[:BEGUN])


class Finish(Begin):
    """The last bytes of an upload, of which there are a part and a tail."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        assert place.other.patch(self.path, 0, WHOLE[:BEGUN]).status == 204

    def attempt(self, tus: Tus) -> None:
        half = BEGUN + 1000
        assert tus.patch(self.path, BEGUN, WHOLE[BEGUN:half]).status == 204
        tus.patch(self.path, half, WHOLE[half:])

    def go_on(self, tus: Tus) -> None:
        assert tus.offset(self.path) >= BEGUN
        super().go_on(tus)


class Small(Case):
    """An upload of less than a part."""

    data = SMALL

    def attempt(self, tus: Tus) -> None:
        self.path = tus.new(len(SMALL))
        tus.patch(self.path, 0, SMALL)


class Verified(Small):
    """One whose bytes have a checksum."""

    def attempt(self, tus: Tus) -> None:
        self.path = tus.new(len(SMALL))
        tus.patch(self.path, 0, SMALL, {"Upload-Checksum": checksum(SMALL)})

    def go_on(self, tus: Tus) -> None:
        assert tus.offset(self.path) in {0, len(SMALL)}
        super().go_on(tus)


class Join(Case):
    """A final, whose creation is repeated."""

    sizes = (PART + 1000, PART)

    def __init__(self, place: Place) -> None:
        self.parts: list[str] = []
        self.data = b""
        for size in self.sizes:
            piece = WHOLE[:size]
            self.parts.append(place.other.finished(piece, {"Upload-Concat": "partial"}))
            self.data += piece
        self._created = {"Upload-Concat": "final;" + " ".join(self.parts)}

    def attempt(self, tus: Tus) -> None:
        tus.create(headers=self._created)

    def go_on(self, tus: Tus) -> None:
        response = tus.create(headers=self._created)
        assert response.status == 201
        self.path = path_of(response["Location"])
        assert tus.offset(self.path) == len(self.data)

    def stays(self) -> set[str]:
        parts = {id_of(part) for part in self.parts}
        return {*super().stays(), *parts, *(f"{part}.info" for part in parts)}

    def clean(self, tus: Tus) -> None:
        for path in (self.path, *self.parts):
            assert tus.delete(path).status == 204


class JoinSmall(Join):
    """One that is not larger than a part."""

    sizes = (1000, 2000)


class Remove(Begin):
    """A removal of an upload with a part and a tail."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        assert place.other.patch(self.path, 0, WHOLE[:BEGUN]).status == 204

    def attempt(self, tus: Tus) -> None:
        tus.delete(self.path)

    def go_on(self, tus: Tus) -> None:
        assert tus.delete(self.path).status in {204, 410}

    def check(self, tus: Tus, contents: Contents) -> None:
        assert tus.head(self.path).status == 410
        events = contents.events(id_of(self.path))
        assert events.count("post-terminate") == 1, events
        assert "post-finish" not in events

    def stays(self) -> set[str]:
        return set()


CASES: dict[Doing, type[Case]] = {
    "create": Create,
    "begin": Begin,
    "finish": Finish,
    "small": Small,
    "verified": Verified,
    "join": Join,
    "join small": JoinSmall,
    "remove": Remove,
}
