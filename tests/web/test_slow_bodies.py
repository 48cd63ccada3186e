"""Bodies in small pieces accumulate in their sockets, and no received byte is lost there."""

from __future__ import annotations

import hashlib
import random
import ssl
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.certificate import make_certificate
from tests.support.server import WITHOUT_DIRECT_BODIES
from tests.support.tus import OpenPatch, Tus, wait_for_size
from tests.support.waiting import wait_until
from tests.support.wire import Connection

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="SO_RCVLOWAT is asked of Linux"),
    pytest.mark.skipif(WITHOUT_DIRECT_BODIES, reason="this run takes the other way"),
]

PATIENT = (sys.executable, str(Path(__file__).with_name("patient.py")))
LENGTH = 1_000_000
PIECE = 1_000
DATA = random.Random(7).randbytes(LENGTH)
FLAGS = ("--acquire-lock-timeout", "30s")


@pytest.fixture
def patient(make_server: MakeServer) -> Tus:
    """A server that takes what has gathered only where it has a reason."""
    return Tus(make_server(*FLAGS, prefix=PATIENT))


class SlowPatch(OpenPatch):
    """A PATCH that sends a piece at a time."""

    def __init__(self, tus: Tus, path: str, length: int = LENGTH) -> None:
        super().__init__(tus, path, 0, body_length=length, sent=b"", headers=None)

    def send_piece(self, size: int = PIECE) -> None:
        self.send(DATA[self.received_to : self.received_to + size])

    def gathering(self, pieces: int = 3) -> SlowPatch:
        """Until the server has seen that it is slow, and some more pieces lie in the server's socket."""
        for _ in range(4):
            self.send_piece()
            self.wait_stored()
        while self.connection.unread() < pieces * PIECE:
            self.send_piece()
            wait_until(self.has_arrived, "a piece in the file or the socket")
        return self

    def has_arrived(self) -> bool:
        return self.stored() + self.connection.unread() == self.received_to

    def stored(self) -> int:
        return len(self.tus.stored(self.path))


def slow_patch(tus: Tus) -> SlowPatch:
    return SlowPatch(tus, tus.new(LENGTH)).gathering()


def test_small_pieces_gather_until_there_are_many(patient: Tus) -> None:
    with slow_patch(patient) as slow:
        taken = slow.stored()
        while slow.stored() == taken:
            slow.send_piece()
            wait_until(slow.has_arrived, "a piece in the file or the socket")
        assert slow.stored() - taken >= 32 * 1024
        assert slow.stored() == slow.received_to


def test_they_are_taken_after_some_seconds_however_few(make_server: MakeServer) -> None:
    with slow_patch(Tus(make_server())) as slow:
        slow.wait_stored()


def test_T38_a_newcomer_is_told_of_what_has_gathered(patient: Tus) -> None:
    with slow_patch(patient) as slow:
        assert patient.offset(slow.path) == slow.received_to
        assert slow.response().code == "ERR_UPLOAD_INTERRUPTED"
    assert patient.stored(slow.path) == DATA[: slow.received_to]


@pytest.mark.parametrize("end", ["half_close", "close", "reset"])
def test_T11_a_cut_keeps_what_has_gathered(patient: Tus, end: str) -> None:
    with slow_patch(patient) as slow:
        getattr(slow.connection, end)()
        # Not by asking: a newcomer would have it taken.
        slow.wait_stored()
        assert patient.offset(slow.path) == slow.received_to


def test_a_shutdown_keeps_what_has_gathered(patient: Tus) -> None:
    with slow_patch(patient) as slow:
        assert patient.server.terminate() == 0
        assert slow.stored() == slow.received_to


def test_the_last_byte_waits_for_no_others(patient: Tus) -> None:
    length = 100_000
    path = patient.new(length)
    with SlowPatch(patient, path, length).gathering() as slow:
        while slow.received_to < length:
            slow.send_piece(min(PIECE, length - slow.received_to))
        assert slow.response().status == 204
        # Nor does a request that is shorter than what would have been waited for.
        assert slow.connection.request("HEAD", path)["Upload-Offset"] == str(length)
    assert patient.stored(path) == DATA[:length]


def test_a_body_that_becomes_quick_is_taken_as_it_comes(patient: Tus) -> None:
    with slow_patch(patient) as slow:
        slow.send_piece(LENGTH - slow.received_to - 10)
        slow.wait_stored()
        slow.send_piece(10)
        assert slow.response().status == 204
    assert hashlib.sha256(patient.stored(slow.path)).digest() == hashlib.sha256(DATA).digest()


def test_what_trickles_in_is_not_idle(make_server: MakeServer) -> None:
    """For longer than nothing may come; and then nothing comes."""
    tus = Tus(make_server("--network-timeout", "2s", *FLAGS, prefix=PATIENT))
    with slow_patch(tus) as slow:
        for _ in range(3):
            before = slow.received_to
            slow.send_piece(1)
            # Taken when it would otherwise have been taken for idle.
            wait_for_size(tus.server, slow.path, before)
        assert slow.response().code == "ERR_READ_TIMEOUT"
        assert slow.stored() == slow.received_to


def test_over_tls_small_pieces_come_in_as_ever(make_server: MakeServer, tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    server = make_server("--tls-certificate", str(cert), "--tls-key", str(key), prefix=PATIENT)
    context = ssl.create_default_context(cafile=str(cert))
    with Connection(server.address, tls=context) as connection:
        common = {"Tus-Resumable": "1.0.0"}
        created = connection.request("POST", "/files/", {**common, "Upload-Length": str(LENGTH)})
        path = "/files/" + created["Location"].rpartition("/")[2]
        fields = {
            **common,
            "Upload-Offset": "0",
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(LENGTH),
        }
        connection.send_head("PATCH", path, list(fields.items()))
        for at in range(0, 10 * PIECE, PIECE):
            connection.send(DATA[at : at + PIECE])
            wait_for_size(server, path, at + PIECE)
        connection.send(DATA[10 * PIECE :])
        assert connection.read_response("PATCH").status == 204
