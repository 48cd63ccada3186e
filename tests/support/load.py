"""Clients that upload one file after the other over a slow link, and resume as tus clients do, while servers come and go."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.support.tus import OCTETS, checksum, path_of
from tests.support.waiting import wait_until
from tests.support.wire import BadResponse, Connection, Response

_PIECES = 4
_PIECE_SECONDS = 0.02
_RETRY_SECONDS = 0.1
_PATIENCE_SECONDS = 60.0
"""How long a client tries the same request, and waits for a response."""


@dataclass(frozen=True)
class Finished:
    path: str
    sha256: str


class GaveUp(Exception):
    """An upload failed: its client was refused, or got nowhere for a minute."""


class Uploaders:
    """Clients in threads of their own, until the end of the `with` block. Every second one sends checksums."""

    def __init__(
        self,
        address: Callable[[], tuple[str, int]],
        *,
        count: int = 4,
        size: int = 1024 * 1024,
        chunk: int = 256 * 1024,
    ) -> None:
        """address: the server of the next request."""
        self.finished: list[Finished] = []
        self.failures: list[str] = []
        self.resumed = 0
        """Requests that were cut off or refused for the moment, after which the client went on."""
        self._address = address
        self._size = size
        self._chunk = chunk
        self._ends = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(number % 2 == 1,)) for number in range(count)
        ]

    def wait_for_more(self, count: int) -> None:
        """Wait until `count` further uploads are finished, or one has failed."""
        goal = len(self.finished) + count
        wait_until(lambda: len(self.finished) >= goal or bool(self.failures), f"{count} uploads")
        assert not self.failures, self.failures

    def check(self) -> None:
        """Download every finished upload and compare."""
        assert not self.failures, self.failures
        for upload in self.finished:
            response = self._request("GET", upload.path, {})
            assert response.status == 200, (upload, response)
            assert hashlib.sha256(response.body).hexdigest() == upload.sha256, upload

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(2 * _PATIENCE_SECONDS)

    def _work(self, with_checksums: bool) -> None:
        while not self._ends.is_set():
            try:
                self.finished.append(self._upload(os.urandom(self._size), with_checksums))
            except (GaveUp, AssertionError) as error:
                self.failures.append(repr(error))
                return

    def _upload(self, content: bytes, with_checksums: bool) -> Finished:
        created = self._until({201}, lambda: self._create(len(content)))
        path, offset = path_of(created["Location"]), 0
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while offset < len(content):
            response = self._tried(lambda at=offset: self._patch(path, at, content, with_checksums))  # type: ignore[misc]
            if response is not None and response.status == 204:
                offset = int(response["Upload-Offset"])
                deadline = time.monotonic() + _PATIENCE_SECONDS
                continue
            self._note(response, deadline)
            found = self._until({200}, lambda: self._request("HEAD", path, {}))
            if int(found["Upload-Offset"]) < offset:
                raise GaveUp(
                    f"{path}: {offset} bytes were acknowledged, {found['Upload-Offset']} are left"
                )
            offset = int(found["Upload-Offset"])
        return Finished(path, hashlib.sha256(content).hexdigest())

    def _until(self, statuses: set[int], ask: Callable[[], Response]) -> Response:
        """Repeat a request until it has one of the statuses."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            response = self._tried(ask)
            if response is not None and response.status in statuses:
                return response
            self._note(response, deadline)

    def _note(self, response: Response | None, deadline: float) -> None:
        """Take a failure that clients take, and wait a moment. Raises GaveUp for any other."""
        is_passing = response is None or response.status in (409, 423) or response.status >= 500
        if not is_passing or time.monotonic() > deadline:
            raise GaveUp(repr(response))
        self.resumed += 1
        time.sleep(_RETRY_SECONDS)

    def _tried(self, ask: Callable[[], Response]) -> Response | None:
        try:
            return ask()
        except (OSError, BadResponse):
            return None

    def _create(self, length: int) -> Response:
        return self._request(
            "POST", "/files/", {"Upload-Length": str(length), "Content-Length": "0"}
        )

    def _patch(self, path: str, offset: int, content: bytes, with_checksums: bool) -> Response:
        body = content[offset : offset + self._chunk]
        headers = {"Upload-Offset": str(offset), "Content-Type": OCTETS}
        headers["Content-Length"] = str(len(body))
        if with_checksums:
            headers["Upload-Checksum"] = checksum(body)
        with self._connect() as connection:
            connection.send_head("PATCH", path, {"Tus-Resumable": "1.0.0", **headers})
            step = max(1, len(body) // _PIECES)
            for start in range(0, len(body), step):
                connection.send(body[start : start + step])
                time.sleep(_PIECE_SECONDS)
            return connection.read_response("PATCH")

    def _request(self, method: str, path: str, headers: Mapping[str, str]) -> Response:
        with self._connect() as connection:
            return connection.request(method, path, {"Tus-Resumable": "1.0.0", **headers})

    def _connect(self) -> Connection:
        return Connection(self._address(), timeout=_PATIENCE_SECONDS)
