"""One client's requests: each goes to any of the servers, and ends with a response or with none."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from tests.support.wire import Connection, Response, chunk, last_chunk

_SLICE = 16 * 1024
_PAUSE_SECONDS = 0.004
_TIMEOUT_SECONDS = 5.0
"""More than a server needs to take an upload over from one that stands still."""

Address = tuple[str, int]


@dataclass(frozen=True)
class Body:
    """What a request sends. checksum: field and value, if it has one."""

    data: memoryview
    checksum: tuple[str, str] | None = None


@dataclass
class Answer:
    """A response, or what came of one. response: None if the connection ended before it was whole.

    interim: the fields of responses that came before the final one, such as the upload's URL.
    """

    response: Response | None
    interim: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        return 0 if self.response is None else self.response.status

    @property
    def code(self) -> str:
        """The `ERR_…` of an error, in whichever format it is; empty otherwise."""
        if self.response is None or self.response.status < 400:
            return ""
        if self.document:
            return str(self.document.get("code", ""))
        return self.response.code if self.response.body else ""

    @property
    def document(self) -> dict[str, object]:
        """The body, if it is a JSON object; empty otherwise."""
        if self.response is None or not self.response.body.startswith(b"{"):
            return {}
        document: dict[str, object] = json.loads(self.response.body)
        return document

    def get(self, name: str) -> str | None:
        """A field of the final response or of an interim one."""
        found = self.response.get(name) if self.response is not None else None
        return found or self.interim.get(name.lower())


class Line:
    """Sends requests. address: where the next connection goes. seen: how often there was which response."""

    def __init__(self, dice: random.Random, address: Callable[[], Address]) -> None:
        self.seen: Counter[str] = Counter()
        self._dice = dice
        self._address = address
        self._connection: Connection | None = None
        self._pause = threading.Event()

    def hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def rest(self, seconds: float) -> None:
        """Wait a moment before the next request."""
        self._pause.wait(seconds)

    def ask(
        self, method: str, path: str, headers: Mapping[str, str], body: Body | None = None
    ) -> Answer:
        """One request, over the open connection or a new one."""
        answer = Answer(None)
        try:
            connection = self._send(method, path, headers, body)
            while (response := connection.read_any(method)).status < 200:
                answer.interim |= {name.lower(): value for name, value in response.headers}
            answer.response = response
        except OSError as problem:
            self.seen[f"{method} {type(problem).__name__}"] += 1
            self.hang_up()
            return answer
        if response.status >= 400:
            self.seen[f"{method} {response.status} {answer.code}".strip()] += 1
        closes = (response.get("Connection") or "").lower() == "close"
        if closes or response.status >= 400 or self._dice.random() < 0.8:
            self.hang_up()
        return answer

    def begin(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        """Send a request without a body on a new connection, to `end` later."""
        self.hang_up()
        with suppress(OSError):
            self._send(method, path, headers, None)

    def end(self, method: str) -> Answer:
        """The response to a request that was begun."""
        try:
            if self._connection is None:
                return Answer(None)
            return Answer(self._connection.read_response(method))
        except OSError:
            return Answer(None)
        finally:
            self.hang_up()

    def _send(
        self, method: str, path: str, headers: Mapping[str, str], body: Body | None
    ) -> Connection:
        fields = dict(headers)
        chunked = body is not None and self._dice.random() < 0.3
        trailers: dict[str, str] = {}
        if body is not None and body.checksum is not None:
            if chunked and self._dice.random() < 0.5:
                trailers = dict([body.checksum])
                fields["Trailer"] = body.checksum[0]
            else:
                fields |= dict([body.checksum])
        if chunked:
            fields["Transfer-Encoding"] = "chunked"
        elif body is not None or method == "POST":
            fields.setdefault("Content-Length", str(len(body.data) if body is not None else 0))
        if self._connection is None:
            self._connection = Connection(self._address(), timeout=_TIMEOUT_SECONDS)
        self._connection.send_head(method, path, fields)
        if body is not None:
            # Refused early, the answer lies in the receive buffer although sending has failed.
            with suppress(BrokenPipeError, ConnectionResetError):
                self._send_body(self._connection, body.data, chunked=chunked, trailers=trailers)
        return self._connection

    def _send_body(
        self, connection: Connection, data: memoryview, *, chunked: bool, trailers: dict[str, str]
    ) -> None:
        slowly = self._dice.random() < 0.4
        for start in range(0, len(data), _SLICE):
            piece = bytes(data[start : start + _SLICE])
            connection.send(chunk(piece) if chunked else piece)
            if slowly and start + _SLICE < len(data):
                self._pause.wait(_PAUSE_SECONDS)
        if chunked:
            connection.send(last_chunk(trailers))
