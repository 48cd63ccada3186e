"""Clients that upload at the same time while their server is killed under them, again and again.

Each client is a thread with a choice of everything that tus offers; after every broken connection
it asks for the offset, holds the answer against what it knows, and goes on. What it knows: an
offset that was told never decreases, never exceeds what was sent, and a chunk that has a checksum
counts whole or not at all. Starting, killing and looking at the disk are the test's business.
"""

from __future__ import annotations

import hashlib
import random
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.support.server import ServerProcess
from tests.support.tus import OCTETS, checksum, id_of, path_of
from tests.support.wire import Connection, ConnectionEnded, Response, chunk, last_chunk

KIB = 1 << 10
MIB = 1 << 20
SLICE = 64 * KIB
"""Bytes that a client sends at a time."""

PAUSE = 0.012
"""Seconds between two slices: without it a body is over before anybody can be killed in it."""

POISON = bytes.fromhex("bad0bad1bad2bad3bad4bad5bad6bad7")
"""Stands in every corrupt chunk, and in nothing else: found on disk, it was stored unverified."""

ALGORITHMS = ("sha1", "sha256", "sha512", "md5", "crc32")

_NOISE = random.Random(8).randbytes(16 * MIB)


class Broken(Exception):
    """The connection ended before a whole response was there: nobody knows what was done."""


@dataclass
class Upload:
    """One upload as its client knows it.

    `acked`: the highest offset that the server has told. `sent`: the end of all that was ever sent.
    `partials`: of a final.
    """

    path: str
    content: memoryview
    acked: int = 0
    sent: int = 0
    partials: list[Upload] = field(default_factory=list)

    @property
    def id(self) -> str:
        return id_of(self.path)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass
class Tally:
    """Counts of what the fleet has done."""

    kinds: dict[str, int] = field(default_factory=dict)
    patches: int = 0
    broken: int = 0
    corrupt: int = 0
    created_unseen: int = 0
    bytes_verified: int = 0

    @property
    def uploads(self) -> int:
        return sum(self.kinds.values())


class Fleet:
    """The clients, what they have uploaded, and the gate at which they wait for the server.

    After :meth:`finish`: `kept` are the uploads that shall be on the server, `deleted` the ids that
    shall not.
    """

    def __init__(self, server: ServerProcess, seed: int, size: int) -> None:
        """`size`: number of clients. `seed`: of all that they choose."""
        self.server = server
        self.kept: list[Upload] = []
        self.deleted: list[str] = []
        self.tally = Tally()
        self.failed = threading.Event()
        self.failures: list[str] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._up = threading.Event()
        self._seed = seed
        self._pool = ThreadPoolExecutor(size)
        self._size = size
        self._clients: list[Future[None]] = []
        self._given_up = False

    def __enter__(self) -> Self:
        """Starts the clients."""
        for number in range(self._size):
            running = self._pool.submit(self._run, number)
            running.add_done_callback(self._note_failure)
            self._clients.append(running)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Gives up whatever clients are still at it: their next broken connection is their last."""
        self._stopping.set()
        self._given_up = True
        self._up.set()
        self._pool.shutdown(wait=False)

    def server_is_up(self) -> None:
        """Lets the clients go on."""
        self._up.set()

    def server_is_down(self) -> None:
        """Makes clients whose connection breaks wait for the next server."""
        self._up.clear()

    def finish(self, timeout: float) -> None:
        """Lets every client finish the upload that it is at; in `timeout` seconds at most."""
        self._stopping.set()
        _, hanging = wait(self._clients, timeout)
        if hanging:
            self._fail(f"{len(hanging)} clients do not come to an end")

    # -- for the clients -----------------------------------------------------------------------

    def wait_until_up(self) -> None:
        """Returns when there is a server to talk to."""
        assert self._up.wait(120), "the server was away for 120 s"
        assert not self._given_up, "given up"

    def done(self, kind: str, upload: Upload, *, deleted: bool) -> None:
        """An upload was verified, and then deleted or left on the server."""
        with self._lock:
            self.tally.kinds[kind] = self.tally.kinds.get(kind, 0) + 1
            self.tally.bytes_verified += len(upload.content)
            for one in (upload, *upload.partials):
                if deleted:
                    self.deleted.append(one.id)
                else:
                    self.kept.append(one)

    @contextmanager
    def counting(self) -> Iterator[Tally]:
        """The tally, for changing it."""
        with self._lock:
            yield self.tally

    def _run(self, number: int) -> None:
        client = self.client(random.Random(f"{self._seed}/{number}"))
        try:
            while not self._stopping.is_set():
                client.upload_something()
        finally:
            client.hang_up()

    def client(self, dice: random.Random) -> Client:
        """A new client. dice: for all that it chooses."""
        return Client(self, dice)

    def _note_failure(self, client: Future[None]) -> None:
        if error := client.exception():
            self._fail("".join(traceback.format_exception(error)))

    def _fail(self, what: str) -> None:
        with self._lock:
            self.failures.append(what)
        self.failed.set()


class Client:
    """One client: the connection of a thread, its random numbers, and ways to upload."""

    def __init__(self, fleet: Fleet, dice: random.Random) -> None:
        self.fleet = fleet
        self.dice = dice
        self._connection: Connection | None = None
        self._pause = threading.Event()

    def upload_something(self) -> None:
        """Upload in a random way: to the end, verified, perhaps deleted."""
        ways: dict[str, Callable[[], Upload]] = {
            "plain": self._plain,
            "creation-with-upload": self._creation_with_upload,
            "deferred length": self._deferred,
            "final": self._final,
            "final of unfinished": self._final_of_unfinished,
        }
        kind = self.dice.choice([*ways])
        upload = ways[kind]()
        self._verify(upload)
        deleted = self.dice.random() < 0.6
        if deleted:
            self._delete(upload)
        self.fleet.done(kind, upload, deleted=deleted)

    def hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # -- ways to upload ------------------------------------------------------------------------

    def _plain(self) -> Upload:
        content = self._content()
        upload = Upload(self._create({"Upload-Length": str(len(content))}), content)
        self._send_rest(upload)
        return upload

    def _creation_with_upload(self) -> Upload:
        content = self._content(at_most=2 * MIB)
        first = content[: self.dice.randint(1, len(content))]
        headers = {"Upload-Length": str(len(content)), "Content-Type": OCTETS}
        claimed = None
        if self.dice.random() < 0.5:
            claimed = checksum(bytes(first), self.dice.choice(ALGORITHMS))
        while True:
            try:
                response = self._send("POST", self._collection, headers, first, claimed)
            except Broken:
                self._unseen()
                continue
            assert response.status == 201, response
            upload = Upload(path_of(response["Location"]), content, sent=len(first))
            upload.acked = int(response["Upload-Offset"])
            assert upload.acked == len(first), response
            self._send_rest(upload)
            return upload

    def _deferred(self) -> Upload:
        content = self._content()
        upload = Upload(self._create({"Upload-Defer-Length": "1"}), content)
        self._send_rest(upload, told_at=self.dice.choice(["any", "last"]))
        return upload

    def _final(self) -> Upload:
        partials = self._partials()
        for partial in partials:
            self._send_rest(partial)
        return self._join(partials)

    def _final_of_unfinished(self) -> Upload:
        partials = self._partials()
        begun = self.dice.randrange(len(partials) + 1)
        for partial in partials[:begun]:
            self._send_rest(partial)
        final = self._join(partials)
        for partial in partials[begun:]:
            self._send_rest(partial)
        return final

    def _partials(self) -> list[Upload]:
        partials = []
        for _ in range(self.dice.randint(1, 3)):
            content = self._content(at_most=MIB)
            headers = {"Upload-Length": str(len(content)), "Upload-Concat": "partial"}
            partials.append(Upload(self._create(headers), content))
        return partials

    def _join(self, partials: list[Upload]) -> Upload:
        listed = [*partials]
        if self.dice.random() < 0.3:
            listed.append(self.dice.choice(partials))
        urls = " ".join(partial.path for partial in listed)
        path = self._create({"Upload-Concat": f"final;{urls}"})
        content = memoryview(b"".join(partial.content for partial in listed))
        return Upload(path, content, partials=partials)

    def _content(self, at_most: int = 5 * MIB) -> memoryview:
        size = self.dice.choice(
            [
                self.dice.randint(1, 20 * KIB),
                self.dice.randint(64 * KIB, MIB),
                self.dice.randint(MIB, max(MIB, at_most)),
            ]
        )
        start = self.dice.randrange(len(_NOISE) - size)
        return memoryview(_NOISE)[start : start + size]

    # -- the steps of an upload ----------------------------------------------------------------

    @property
    def _collection(self) -> str:
        return self.fleet.server.base_path

    def _create(self, headers: dict[str, str]) -> str:
        """The path of a new upload. A creation whose answer was lost stays behind unfinished."""
        while True:
            try:
                response = self._send("POST", self._collection, {"Content-Length": "0", **headers})
            except Broken:
                self._unseen()
                continue
            assert response.status == 201, response
            return path_of(response["Location"])

    def _send_rest(self, upload: Upload, told_at: str | None = None) -> None:
        """PATCHes until all is there. `told_at`: which of them tells a deferred length."""
        total = len(upload.content)
        chunk_size = self.dice.choice([total, total, MIB, 256 * KIB, max(1, total // 3)])
        told = told_at is None
        while upload.acked < total or not told:
            rest = upload.content[upload.acked : upload.acked + chunk_size]
            last = upload.acked + len(rest) == total
            headers = {}
            if not told and (last or (told_at == "any" and self.dice.random() < 0.3)):
                headers["Upload-Length"] = str(total)
            if self._patch(upload, rest, headers) and headers:
                told = True
            elif headers:
                told = "Upload-Defer-Length" not in self._head(upload)

    def _patch(self, upload: Upload, data: memoryview, headers: dict[str, str]) -> bool:
        """Send one PATCH in a random way; True if it succeeds."""
        verified = self.dice.random() < 0.5
        corrupt = verified and self.dice.random() < 0.2 and len(data) >= len(POISON)
        claimed = checksum(bytes(data), self.dice.choice(ALGORITHMS)) if verified else None
        start = upload.acked
        end = start + len(data)
        upload.sent = max(upload.sent, start if corrupt else end)
        with self.fleet.counting() as tally:
            tally.patches += 1
            tally.corrupt += corrupt
        request = {**headers, "Content-Type": OCTETS, "Upload-Offset": str(start)}
        try:
            response = self._send(
                "PATCH", upload.path, request, poisoned(data) if corrupt else data, claimed
            )
        except Broken:
            offset = self._offset(upload)
            if verified:
                allowed = {start} if corrupt else {start, end}
                assert self._is_expected(offset, allowed), (offset, start, len(data), corrupt)
            return False
        if corrupt:
            assert response.status == 460, response
            assert self._is_expected(self._offset(upload), {start})
            return False
        assert response.status == 204, (response, start, end, verified)
        assert response["Upload-Offset"] == str(end)
        upload.acked = end
        return True

    def _is_expected(self, offset: int, expected: set[int]) -> bool:
        """Whether a server may tell this offset where one of these is expected."""
        return offset in expected

    def _head(self, upload: Upload) -> Response:
        while True:
            try:
                response = self._send("HEAD", upload.path, {})
            except Broken:
                continue
            assert response.status == 200, response
            return response

    def _offset(self, upload: Upload) -> int:
        """Ask for the offset, compare it with what is known, and remember it."""
        offset = int(self._head(upload)["Upload-Offset"])
        assert upload.acked <= offset <= upload.sent, (offset, upload.acked, upload.sent)
        upload.acked = offset
        return offset

    def _verify(self, upload: Upload) -> None:
        """The upload is complete, and GET gives its bytes."""
        total = str(len(upload.content))
        for _ in range(4000):
            head = self._head(upload)
            assert head["Upload-Length"] == total, head
            if head.get("Upload-Offset") == total:
                break
            # Only a final whose parts are being joined may be late, and by as often as it is cut short in that.
            assert upload.partials, head
            self._pause.wait(0.05)
        else:
            raise AssertionError(f"{upload.path} was never joined")
        while True:
            try:
                response = self._send("GET", upload.path, {})
            except Broken:
                continue
            assert response.status == 200, response
            assert hashlib.sha256(response.body).hexdigest() == upload.sha256
            return

    def _delete(self, upload: Upload) -> None:
        """DELETE; the partials of a final first, which must not harm it."""
        for partial in upload.partials:
            self._delete_one(partial)
        if upload.partials:
            self._verify(upload)
        self._delete_one(upload)

    def _delete_one(self, upload: Upload) -> None:
        repeated = False
        while True:
            try:
                response = self._send("DELETE", upload.path, {})
            except Broken:
                repeated = True
                continue
            assert response.status == 204 or (repeated and response.status == 410), response
            return

    # -- the line ------------------------------------------------------------------------------

    def _send(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: memoryview | None = None,
        claimed: str | None = None,
    ) -> Response:
        """Send one request, over the open connection or a new one.

        The body goes out slowly, plain or chunked, its checksum ahead of it or (chunked) as a
        trailer. Raises Broken when there is no whole response, after a server is there again; now
        and then it is the client itself that breaks off.
        """
        chunked = body is not None and self.dice.random() < 0.3
        trailing = chunked and claimed is not None and self.dice.random() < 0.5
        request = {"Tus-Resumable": "1.0.0", **headers}
        if claimed is not None and not trailing:
            request["Upload-Checksum"] = claimed
        if trailing:
            request["Trailer"] = "Upload-Checksum"
        if chunked:
            request["Transfer-Encoding"] = "chunked"
        elif body is not None:
            request["Content-Length"] = str(len(body))
        trailers = {"Upload-Checksum": claimed} if trailing and claimed is not None else {}
        try:
            connection = self._connected()
            connection.send_head(method, path, request)
            if body is not None:
                with suppress(BrokenPipeError, ConnectionResetError):
                    # Perhaps it was refused before it was whole: then an answer is there.
                    self._send_body(connection, body, chunked=chunked, trailers=trailers)
            response = connection.read_response(method)
        except ConnectionError as error:
            self.hang_up()
            with self.fleet.counting() as tally:
                tally.broken += 1
            self.fleet.wait_until_up()
            raise Broken from error
        if (response.get("Connection") or "").lower() == "close" or self.dice.random() < 0.2:
            self.hang_up()
        return response

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = Connection(self._address(), timeout=60)
        return self._connection

    def _address(self) -> tuple[str, int]:
        return self.fleet.server.address

    def _send_body(
        self, connection: Connection, body: memoryview, *, chunked: bool, trailers: dict[str, str]
    ) -> None:
        give_up_at = self.dice.randrange(len(body)) if self.dice.random() < 0.05 else None
        for start in range(0, len(body), SLICE):
            piece = bytes(body[start : start + SLICE])
            connection.send(chunk(piece) if chunked else piece)
            if give_up_at is not None and start >= give_up_at:
                self._break_off(connection)
            if start + SLICE < len(body):
                self._pause.wait(PAUSE)
        if chunked:
            connection.send(last_chunk(trailers))

    def _break_off(self, connection: Connection) -> None:
        if self.dice.random() < 0.5:
            connection.reset()
        raise ConnectionEnded("by ourselves")

    def _unseen(self) -> None:
        with self.fleet.counting() as tally:
            tally.created_unseen += 1


def poisoned(data: memoryview) -> memoryview:
    """The same number of bytes, corrupt at the start, at the end and in between."""
    damaged = bytearray(data)
    for start in range(0, len(data) - len(POISON) + 1, max(1, len(data) // 7)):
        damaged[start : start + len(POISON)] = POISON
    return memoryview(damaged)
