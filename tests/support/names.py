"""A name server of the tests, and processes that ask nobody else."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PORT = 53
_HEADER = struct.Struct("!6H")
_ANSWER = struct.Struct("!HHHIH4s")
_APART = ("unshare", "--mount", "--propagation", "private", "sh", "-ec")
_WITH_RESOLVER = 'mount --bind "$0" /etc/resolv.conf; exec "$@"'


class NameServer:
    """Answers that every name is 127.0.0.1, unless it is `silent`.

    asked: set when a question was not answered. Only root may listen on its port.
    """

    def __init__(self, directory: Path) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # Tests run side by side, and the port is fixed.
        address = f"127.53.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
        self._socket.bind((address, _PORT))
        self._configuration = directory / "resolv.conf"
        # A question that is not answered is not asked again: one lookup takes half a minute.
        self._configuration.write_text(f"nameserver {address}\noptions timeout:30 attempts:1\n")
        self.silent = False
        self.asked = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def before(self, *command: str) -> tuple[str, ...]:
        """A command, for a process that looks names up here."""
        return (*_APART, _WITH_RESOLVER, str(self._configuration), *command)

    def close(self) -> None:
        # An empty question ends it.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            question, sender = self._socket.recvfrom(4096)
            if not question:
                return
            if self.silent:
                self.asked.set()
            else:
                self._socket.sendto(_answer(question), sender)


@contextmanager
def name_server(directory: Path) -> Iterator[NameServer]:
    server = NameServer(directory)
    try:
        yield server
    finally:
        server.close()


def _answer(question: bytes) -> bytes:
    number = _HEADER.unpack_from(question)[0]
    end = question.index(b"\0", _HEADER.size) + 5
    asked = question[_HEADER.size : end]
    is_ipv4 = asked[-4:-2] == b"\0\x01"
    found = _ANSWER.pack(0xC00C, 1, 1, 0, 4, socket.inet_aton("127.0.0.1")) if is_ipv4 else b""
    return _HEADER.pack(number, 0x8180, 1, int(is_ipv4), 0, 0) + asked + found
