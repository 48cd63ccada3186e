"""A client for Resumable Uploads for HTTP, in a chosen interop version.

Nothing of the server's own reading of the protocol is used: what a version's requests look like is written down here again.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.server import ServerProcess
from tests.support.tus import Extra, id_of, merged, path_of, wait_for_size
from tests.support.wire import TIMEOUT, Connection, Response

PARTIAL = "application/partial-upload"
PROBLEMS = "https://iana.org/assignments/http-problem-types#"
VERSIONS: tuple[int | None, ...] = (3, 4, 5, 6, 7, 8, 9, None)
"""None: requests without a version, as the finished standard will have them."""


@dataclass
class Ietf:
    """A client of one server that speaks one interop version. Paths in and out are absolute paths (``/files/<id>``)."""

    server: ServerProcess
    version: int | None = 9

    @property
    def collection(self) -> str:
        return self.server.base_path

    def connect(self, timeout: float = TIMEOUT) -> Connection:
        return Connection(self.server.address, timeout=timeout)

    # -- the fields of requests and responses --------------------------------------------------

    def marks(self) -> dict[str, str]:
        """The header fields of every request in this version."""
        return {} if self.version is None else {"Upload-Draft-Interop-Version": str(self.version)}

    def complete(self, value: bool) -> dict[str, str]:
        if self.version == 3:
            return {"Upload-Incomplete": "?0" if value else "?1"}
        return {"Upload-Complete": "?1" if value else "?0"}

    def append_headers(
        self, offset: int, complete: bool, extra: Extra | None = None
    ) -> dict[str, str]:
        base = {**self.marks(), **self.complete(complete), "Upload-Offset": str(offset)}
        if self.version is None or self.version >= 6:
            base["Content-Type"] = PARTIAL
        return merged(base, extra)

    def is_complete(self, response: Response) -> bool:
        """The completeness that a response states; fails unless it uses the field of this version."""
        if self.version == 3:
            assert "Upload-Complete" not in response
            return {"?0": True, "?1": False}[response["Upload-Incomplete"]]
        assert "Upload-Incomplete" not in response
        return {"?1": True, "?0": False}[response["Upload-Complete"]]

    # -- requests ------------------------------------------------------------------------------

    def request(
        self, method: str, path: str, headers: Extra | None = None, body: bytes | None = None
    ) -> Response:
        """Any request, on a connection of its own; ``marks`` are added."""
        with self.connect() as connection:
            return connection.request(method, path, merged(self.marks(), headers), body)

    def create(
        self,
        body: bytes,
        *,
        complete: bool = True,
        headers: Extra | None = None,
        method: str = "POST",
        path: str | None = None,
    ) -> Response:
        return self.request(
            method, path or self.collection, merged(self.complete(complete), headers), body
        )

    def new(
        self, length: int | None = None, body: bytes = b"", headers: Extra | None = None
    ) -> str:
        """The path of a new upload that is not complete."""
        extra = dict(headers or {})
        if length is not None:
            extra.setdefault("Upload-Length", str(length))
        response = self.create(body, complete=False, headers=extra)
        assert response.status == 201, response
        return path_of(response["Location"])

    def append(
        self,
        path: str,
        offset: int,
        body: bytes,
        *,
        complete: bool = False,
        headers: Extra | None = None,
    ) -> Response:
        with self.connect() as connection:
            fields = self.append_headers(offset, complete, headers)
            return connection.request("PATCH", path, fields, body)

    def head(self, path: str, headers: Extra | None = None) -> Response:
        return self.request("HEAD", path, headers)

    def offset(self, path: str) -> int:
        response = self.head(path)
        assert response.status in (200, 204), response
        return int(response["Upload-Offset"])

    # -- bodies that are not all there yet -----------------------------------------------------

    def begin_creation(
        self, length: int, sent: bytes = b"", *, complete: bool = True, headers: Extra | None = None
    ) -> Connection:
        """A creation whose head was sent, with some of its body."""
        connection = self.connect()
        fields = {**self.marks(), **self.complete(complete), "Content-Length": str(length)}
        connection.send_head("POST", self.collection, merged(fields, headers))
        if sent:
            connection.send(sent)
        return connection

    def begin_append(
        self, path: str, offset: int, length: int, sent: bytes = b"", *, complete: bool = False
    ) -> Connection:
        connection = self.connect()
        fields = self.append_headers(offset, complete, {"Content-Length": str(length)})
        connection.send_head("PATCH", path, fields)
        if sent:
            connection.send(sent)
        return connection

    # -- what tests need around them -----------------------------------------------------------

    def stored(self, path: str) -> bytes:
        return self.server.stored(id_of(path))

    def wait_stored(self, path: str, size: int) -> None:
        wait_for_size(self.server, path, size)


def announced(connection: Connection) -> Response:
    """The next interim response, which has the upload's URL."""
    interim = connection.read_any()
    assert interim.status == 104, interim
    assert "Location" in interim
    return interim


def wait_told(connection: Connection, offset: int) -> None:
    """Read interim responses until one tells this offset."""
    while True:
        interim = connection.read_any()
        assert interim.status == 104, interim
        if interim["Upload-Offset"] == str(offset):
            return
