"""The kinds of work that the load generator can do, one class each.

A kind prepares (uploads to read from, a warm-up: not measured), runs, and counts units of what it did.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import time
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from bench import payload
from bench.client import Engine, LoadError, Reply, Request, Session
from bench.dialects import DIALECTS
from bench.work import Work

LIMIT = 300.0
"""Seconds after which a piece of work is given up."""

_WARM_UP = 0.3
"""Seconds of small uploads that come before any are measured."""
_TICKS = 50
"""How many times a second slow connections are looked after; each of them has its turn once a second."""
_SLOW_SIZE = 1024
_SLOW_LENGTH = 10 * 1024 * 1024


class Job:
    """One piece of work under way; see the module."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.payload = payload.make()
        self.engine = Engine("127.0.0.1", work.port, self.payload)
        self.units = 0
        self.created: list[bytes] = []
        self.unmeasured_seconds = 0.0
        """Part of the run that does not count, as a beginning that is not yet what is to be measured."""
        self._numbers = itertools.count()
        place = b"127.0.0.1:%d" % work.port
        self._dialect = DIALECTS[work.protocol](place)
        self._host = b"Host: %b\r\nTus-Resumable: 1.0.0\r\n" % place
        self._base = work.base.encode()
        self._digests: dict[int, bytes] = {}

    def prepare(self) -> None:
        """What has to be there before."""

    def run(self) -> None:
        """The work itself."""
        raise NotImplementedError

    # Requests

    def post(self, length: int, size: int = 0) -> Request:
        """Creates an upload, with the first `size` bytes of it. Its metadata differ from any other's, as they do in life."""
        name = b"%08d-%012d.bin" % (os.getpid(), next(self._numbers))
        head, expect = self._dialect.create(self._base, length, size, name)
        return Request(head, "POST", expect, size)

    def patch(self, path: bytes, offset: int, size: int, length: int) -> Request:
        """Appends the first `size` bytes of the payload to an upload of `length` bytes."""
        digest = b""
        if self.work.checksum:
            if size not in self._digests:
                self._digests[size] = payload.sha256(self.payload, size)
            digest = self._digests[size]
        head, expect = self._dialect.append(path, offset, size, length=length, digest=digest)
        return Request(head, "PATCH", expect, size)

    def head(self, path: bytes) -> Request:
        """Asks for the offset."""
        head, expect = self._dialect.ask(path)
        return Request(head, "HEAD", expect, is_head=True)

    def get(self, path: bytes, first: int | None = None, last: int = 0) -> Request:
        """Reads all of an upload, or a range of it."""
        wanted = b"" if first is None else b"Range: bytes=%d-%d\r\n" % (first, last)
        head = b"GET %b HTTP/1.1\r\n%b%b\r\n" % (path, self._host, wanted)
        return Request(head, "GET", 200 if first is None else 206)

    # Pieces of sessions

    def drive(self, sessions: Iterable[Session]) -> None:
        """Runs sessions side by side to their ends."""
        self.engine.run(sessions, limit=LIMIT)

    def upload(self, length: int, chunk: int) -> Session:
        """One whole upload; at the end the server is asked whether it has it all."""
        path = path_of((yield self.post(length)))
        self.created.append(path)
        offset = 0
        while offset < length:
            size = min(chunk, length - offset)
            reply = yield self.patch(path, offset, size, length)
            offset += size
            check_offset(reply, offset)
            self.units += size
        check_offset((yield self.head(path)), length)

    def times(self, count: int, one: Callable[[], Session]) -> Session:
        """`one` again and again."""
        for _ in range(count):
            yield from one()

    def for_seconds(self, seconds: float, one: Callable[[], Session]) -> Session:
        """`one` again and again; it is ended only when it is done."""
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            yield from one()


class Transfer(Job):
    """`connections` uploads of `length` bytes by PATCHes of `chunk` bytes. Units are bytes."""

    def prepare(self) -> None:
        chunk = min(self.work.chunk, payload.PAYLOAD_SIZE)
        self.drive(self.upload(4 * chunk, chunk) for _ in range(self.work.connections))
        if self.work.checksum:
            self.patch(b"", 0, self.work.chunk, self.work.length)
        self.units = 0

    def run(self) -> None:
        work = self.work
        self.drive(self.upload(work.length, work.chunk) for _ in range(work.connections))


class Small(Job):
    """Uploads of `length` bytes for `seconds`, by POST and PATCH. Units are uploads."""

    def prepare(self) -> None:
        self._side_by_side(min(self.work.seconds, _WARM_UP))
        self.units = 0

    def run(self) -> None:
        self._side_by_side(self.work.seconds)

    def _side_by_side(self, seconds: float) -> None:
        self.drive(self.for_seconds(seconds, self.one) for _ in range(self.work.connections))

    def one(self) -> Session:
        """One upload."""
        length = self.work.length
        began = time.perf_counter()
        path = path_of((yield self.post(length)))
        check_offset((yield self.patch(path, 0, length, length)), length)
        self.engine.timings.add("upload", time.perf_counter() - began)
        self.units += 1


class SmallAtOnce(Small):
    """The same, by creation-with-upload."""

    def one(self) -> Session:
        reply = yield self.post(self.work.length, self.work.length)
        path_of(reply)
        check_offset(reply, self.work.length)
        self.units += 1


class Create(Job):
    """Creates `requests` uploads and tells their paths. Units are uploads."""

    def run(self) -> None:
        shares = [self.work.requests // self.work.connections] * self.work.connections
        shares[0] += self.work.requests % self.work.connections
        self.drive(self.times(share, self._one) for share in shares)

    def _one(self) -> Session:
        self.created.append(path_of((yield self.post(self.work.length))))
        self.units += 1


class Heads(Job):
    """HEAD requests for known uploads for `seconds`. Units are requests.

    Before, each upload is asked for once, and then half as long is spent as later: so the server is as warm with few uploads as
    with many.
    """

    def prepare(self) -> None:
        self.paths = [path.encode() for path in self.work.paths]
        self.offsets = dict.fromkeys(self.paths, 0)
        random.shuffle(self.paths)
        self.drive(self._look(share) for share in self._shares())
        self._ask(self.work.seconds / 2)
        self.units = 0

    def run(self) -> None:
        self._ask(self.work.seconds)

    def _ask(self, seconds: float) -> None:
        self.drive(self.for_seconds(seconds, self.one(share)) for share in self._shares())

    def _shares(self) -> list[list[bytes]]:
        """Each connection has uploads of its own, so that none has to wait for another's lock."""
        count = self.work.connections
        return [self.paths[at::count] for at in range(min(count, len(self.paths)))]

    def _look(self, paths: list[bytes]) -> Session:
        for path in paths:
            self.offsets[path] = offset_of((yield self.head(path)))

    def one(self, paths: list[bytes]) -> Callable[[], Session]:
        """Asks for the next of `paths`, round and round."""
        turn = itertools.cycle(paths)

        def ask() -> Session:
            yield self.head(next(turn))
            self.units += 1

        return ask


class Patches(Heads):
    """PATCH requests of `chunk` bytes to known uploads for `seconds`."""

    def one(self, paths: list[bytes]) -> Callable[[], Session]:
        turn = itertools.cycle(paths)

        def append() -> Session:
            path = next(turn)
            reply = yield self.patch(path, self.offsets[path], self.work.chunk, self.work.length)
            self.offsets[path] += self.work.chunk
            check_offset(reply, self.offsets[path])
            self.units += 1

        return append


class Download(Job):
    """An upload of `length` bytes is read `requests` times as a whole. Units are bytes."""

    def prepare(self) -> None:
        self.drive([self.upload(self.work.length, 64 * 1024 * 1024)])
        self.path = self.created[0]
        self.drive([self.read()])
        self.units = 0

    def run(self) -> None:
        self.drive([self.times(self.work.requests, self.read)])

    def read(self) -> Session:
        """Reads it once."""
        reply = yield self.get(self.path)
        if reply.size != self.work.length:
            raise LoadError(f"{reply.size} bytes came of {self.work.length}")
        self.units += reply.size


class DownloadRanges(Download):
    """Ranges of `chunk` bytes, `requests` of them, over `connections`."""

    def run(self) -> None:
        work = self.work
        share = work.requests // work.connections
        self.drive(self.times(share, self.read) for _ in range(work.connections))

    def read(self) -> Session:
        first = random.randrange(self.work.length - self.work.chunk)
        reply = yield self.get(self.path, first, first + self.work.chunk - 1)
        if reply.size != self.work.chunk:
            raise LoadError(f"{reply.size} bytes came of a range of {self.work.chunk}")
        self.units += reply.size


class Slow(Job):
    """`connections` uploads at 1 KiB a second each, for `seconds`, and half of that before it counts.

    Units are connections; they stay open until the end.
    """

    def prepare(self) -> None:
        self.drive([self.upload(_SLOW_SIZE, _SLOW_SIZE)])
        self.units = 0
        self.sockets: list[socket.socket] = []

    def run(self) -> None:
        began = time.perf_counter()
        for _ in range(self.work.connections):
            self.sockets.append(self._begin())
        # Such an upload takes hours: how it begins is not what it costs.
        self._trickle(self.work.seconds / 2)
        self.unmeasured_seconds = time.perf_counter() - began
        self.engine.timings.seconds.clear()
        print("begun", flush=True)
        self._trickle(self.work.seconds)
        for sock in self.sockets:
            self._check(sock)
        self.units = len(self.sockets)

    def _begin(self) -> socket.socket:
        """A connection with a PATCH under way, of which a first piece was sent."""
        sock = socket.create_connection(self.engine.address, timeout=30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(self.post(_SLOW_LENGTH).head)
        received = b""
        while b"\r\n\r\n" not in received:
            data = sock.recv(65536)
            if not data:
                raise LoadError("the connection ended during a POST")
            received += data
        if received[9:12] != b"201":
            raise LoadError(f"a POST was answered with {received[:100]!r}")
        path = path_of(Reply(201, received.partition(b"\r\n\r\n")[0]))
        sock.sendall(
            self.patch(path, 0, _SLOW_LENGTH, _SLOW_LENGTH).head + self.engine.start[:_SLOW_SIZE]
        )
        return sock

    def _trickle(self, seconds: float) -> None:
        turns = [self.sockets[at::_TICKS] for at in range(_TICKS)]
        began = time.perf_counter()
        for tick in range(int(seconds * _TICKS)):
            for sock in turns[tick % _TICKS]:
                sock.sendall(self.engine.start[:_SLOW_SIZE])
            time.sleep(max(0.0, began + (tick + 1) / _TICKS - time.perf_counter()))

    @staticmethod
    def _check(sock: socket.socket) -> None:
        """Nothing may have come back: the upload goes on."""
        sock.setblocking(False)
        try:
            said = sock.recv(200)
        except BlockingIOError:
            return
        raise LoadError(f"a slow upload was ended: {said!r}")


def path_of(reply: Reply) -> bytes:
    """The path of an upload that was created."""
    location = reply.field(b"location")
    path = urlsplit(location).path
    if not path.startswith(b"/"):
        raise LoadError(f"a POST was answered with Location {location!r}")
    return path


def offset_of(reply: Reply) -> int:
    """`Upload-Offset`."""
    return int(reply.field(b"upload-offset") or -1)


def check_offset(reply: Reply, expected: int) -> None:
    """Raises LoadError if the server has another offset."""
    if offset_of(reply) != expected:
        raise LoadError(f"the offset is {offset_of(reply)} where it should be {expected}")


KINDS: dict[str, type[Job]] = {
    "transfer": Transfer,
    "small": Small,
    "small-at-once": SmallAtOnce,
    "create": Create,
    "heads": Heads,
    "patches": Patches,
    "download": Download,
    "download-ranges": DownloadRanges,
    "slow": Slow,
}
