"""Random requests against the endpoint: no 5xx, no hang, no byte stored that was refused.

Seeded, so that a failure can be repeated: the seed is the test's parameter, and a failing request
is printed whole.
"""

from __future__ import annotations

import base64
import hashlib
import random
from contextlib import suppress

import pytest

from tests.support.tus import OCTETS, Tus, checksum, id_of
from tests.support.wire import BadResponse, Connection, ConnectionEnded, chunk, last_chunk

ROUNDS = 250
PATIENCE = 40.0
"""Seconds after which an answer that did not come is a hang."""

NUMBERS = [
    "0",
    "1",
    "5",
    "10",
    "-1",
    "+1",
    "1e3",
    "",
    "x",
    "9" * 19,
    "9" * 30,
    "\u00b2",
    "0 0",
    "00",
]
METADATA = ["a YQ==", "a,b ,c Yw==", "a a", ",", "a YQ==,a", "\xff \xff", "filename " + "QUJD" * 50]
TYPES = [OCTETS, OCTETS, OCTETS, "text/plain", "", OCTETS + ";x=y", "application/partial-upload"]
METHODS = [
    "PATCH",
    "PATCH",
    "PATCH",
    "POST",
    "POST",
    "HEAD",
    "GET",
    "DELETE",
    "OPTIONS",
    "PUT",
    "X",
]


class Fuzzer:
    """Makes requests that are well-framed HTTP and nonsense in every other respect."""

    def __init__(self, tus: Tus, seed: int, *, both: bool = False) -> None:
        """both: speak Resumable Uploads for HTTP as well, and mixtures of the two."""
        self.tus = tus
        self.both = both
        self.random = random.Random(seed)
        self.uploads = [tus.new(10), tus.new(None), tus.new(200_000), tus.finished(b"finished")]
        self.uploads.append(tus.finished(b"part", {"Upload-Concat": "partial"}))

    def path(self) -> str:
        odd = ["", "x", "%00", "..%2f", "\u00e9", "a" * 300, "//", "?x=y", "%", "{}", ".tusd-py/x"]
        return self.random.choice(
            [
                *self.uploads,
                *self.uploads,
                self.tus.collection,
                self.tus.collection[:-1],
                self.tus.collection + self.random.choice(odd),
                self.random.choice(self.uploads) + self.random.choice(odd),
                "/",
                "*",
            ]
        )

    def body(self) -> bytes:
        size = self.random.choice([0, 0, 1, 5, 10, 11, 1000, 70_000, 200_000, 300_000])
        return self.random.randbytes(size)

    def headers(self, body: bytes) -> dict[str, str]:
        pick = self.random.choice
        algorithms = ["sha1", "sha256", "md5", "crc32"]
        finals = f"final;{pick(self.uploads)} {self.path()}"
        possible = {
            "Tus-Resumable": pick(["1.0.0"] * 8 + ["0.2.2", "", "x"]),
            "Upload-Offset": pick([*NUMBERS, "0", "0", "0"]),
            "Upload-Length": pick(NUMBERS),
            "Upload-Defer-Length": pick(["1", "1", "0", "x"]),
            "Upload-Metadata": pick(METADATA),
            "Upload-Concat": pick(["partial", "final;", finals, "x"]),
            "Upload-Checksum": pick(
                [checksum(body, pick(algorithms)), "sha1 AAAA", "x y", "md4 YQ=="]
            ),
            "Content-Type": pick(TYPES),
            "X-HTTP-Method-Override": pick(["PATCH", "DELETE", "HEAD", "x", "POST", "OPTIONS"]),
            "Trailer": pick(["Upload-Checksum", "x"]),
            "Expect": pick(["100-continue", "200-ok"]),
            "Origin": pick(["null", "http://a.example", "\xff"]),
            "Range": pick(
                [
                    "bytes=0-1",
                    "bytes=5-",
                    "bytes=-3",
                    "bytes=9-1",
                    "lines=1-2",
                    "bytes=" + "1-," * 90,
                ]
            ),
            "If-Range": pick(['"x"', "x", "Tue, 01 Jan 2030 00:00:00 GMT"]),
            "If-None-Match": pick(["*", '"x"', "W/"]),
            "If-Modified-Since": pick(
                ["x", "Tue, 01 Jan 2030 00:00:00 GMT", "Tue, 99 Foo -1 99:99:99 GMT"]
            ),
            "Accept": pick(["application/problem+json", "*/*", ";;;q=x", "\xff"]),
            "X-Forwarded-Host": pick(["evil.example", "a b", "\xff"]),
            "Forwarded": pick(["for=1.2.3.4;host=x", ";;", 'for="']),
            "Host": pick(["localhost", "", "a b", "\xff", "[::1", "x" * 300]),
            "X-Request-ID": pick(["abc", "\x7f\xff", "x" * 500]),
        }
        likely = {"Tus-Resumable", "Upload-Offset", "Content-Type"}
        if self.both:
            digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
            likely = {
                "Upload-Complete",
                "Upload-Offset",
                "Content-Type",
                "Upload-Draft-Interop-Version",
            }
            possible |= {
                "Upload-Draft-Interop-Version": pick(
                    ["3", "4", "5", "6", "7", "8", "9", "10", "x"]
                ),
                "Upload-Complete": pick(["?0", "?1", "?1;a", "1", "?"]),
                "Upload-Incomplete": pick(["?0", "?1", "true"]),
                "Content-Disposition": pick(
                    [
                        'inline; filename="a"',
                        "x; filename*=utf-8''%ff",
                        '"',
                        "a; filename*0*=x''%; =",
                        "\xff",
                    ]
                ),
                "Content-Digest": pick([f"sha-256=:{digest}:", "sha-256=:AAAA:", "x", "md5=5"]),
                "Repr-Digest": pick([f"sha-256=:{digest}:", "sha-512=:AAAA:", "?1"]),
                "Want-Repr-Digest": pick(
                    ["sha-256=1", "sha-512=10, sha-256=3", "x=99999999999999999"]
                ),
            }
        return {
            name: value
            for name, value in possible.items()
            if self.random.random() < (0.85 if name in likely else 0.12)
        }

    def request(self) -> tuple[str, str, bytes]:
        """A method, a target, and a whole request of them, correctly framed."""
        method, target, body = self.random.choice(METHODS), self.path(), self.body()
        headers = self.headers(body)
        headers.setdefault("Host", "localhost")
        if self.random.random() < 0.3:
            headers["Transfer-Encoding"] = "chunked"
            piece = self.random.choice([1000, 65_536, 1_000_000])
            framed = b"".join(chunk(body[at : at + piece]) for at in range(0, len(body), piece))
            trailers = {"Upload-Checksum": checksum(body)} if self.random.random() < 0.5 else {}
            framed += last_chunk(trailers)
        else:
            headers["Content-Length"] = str(len(body))
            framed = body
        lines = [f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        return method, target, "\r\n".join([*lines, "", ""]).encode("latin-1") + framed

    def sizes(self) -> dict[str, int]:
        """The sizes of all uploads on disk."""
        found = {}
        for name in self.tus.data_files():
            with suppress(FileNotFoundError):
                found[name] = self.tus.server.data_file(name).stat().st_size
        return found

    def damage(self, request: bytes) -> bytes:
        """The request with some of its bytes changed, doubled, left out or moved."""
        data = bytearray(request[: self.random.choice([200, 1000, len(request)])])
        for _ in range(self.random.randint(1, 8)):
            at = self.random.randrange(len(data)) if data else 0
            kind = self.random.randrange(5)
            if kind == 0 and data:
                data[at] = self.random.randrange(256)
            elif kind == 1:
                data[at:at] = self.random.choice(
                    [
                        b"\r\n",
                        b"\r\n\r\n",
                        b"\0",
                        b"\n",
                        b" ",
                        b":",
                        b"Content-Length: 3\r\n",
                        b"0\r\n",
                    ]
                )
            elif kind == 2:
                del data[at : at + self.random.randint(1, 20)]
            elif kind == 3:
                data[at:at] = data[at : at + self.random.randint(1, 40)]
            else:
                data[at : at + 1] = self.random.randbytes(3)
        return bytes(data)


def shown(request: bytes) -> str:
    return f"{request[:1500]!r} ({len(request)} bytes)"


@pytest.mark.parametrize("seed", range(4))
def test_requests_of_nonsense(tus: Tus, seed: int) -> None:
    fuzzer = Fuzzer(tus, seed)
    for _ in range(ROUNDS):
        method, target, request = fuzzer.request()
        before = fuzzer.sizes()
        with Connection(tus.server.address, timeout=PATIENCE) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.send(request)
            try:
                response = connection.read_response(method)
            except (TimeoutError, ConnectionError, BadResponse, AssertionError) as problem:
                raise AssertionError(f"{problem!r} after {shown(request)}") from problem
        assert response.status < 500, f"{response} after {shown(request)}"
        if target.startswith(tus.collection[:-1]) and b"OPTIONS" not in request:
            assert response["Tus-Resumable"] == "1.0.0"
        if response.status >= 400:
            assert fuzzer.sizes() == before, f"stored by {response.status}: {shown(request)}"
    assert_healthy(tus)


@pytest.mark.parametrize("seed", range(2))
def test_requests_of_both_protocols(tus: Tus, seed: int) -> None:
    """Each is taken for one of the protocol that it names; refused bytes are not stored, and may end an upload."""
    fuzzer = Fuzzer(tus, seed + 2000, both=True)
    for _ in range(ROUNDS):
        method, _target, request = fuzzer.request()
        before = fuzzer.sizes()
        with Connection(tus.server.address, timeout=PATIENCE) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.send(request)
            try:
                response = connection.read_response(method)
            except (TimeoutError, ConnectionError, BadResponse, AssertionError) as problem:
                raise AssertionError(f"{problem!r} after {shown(request)}") from problem
        assert response.status < 500, f"{response} after {shown(request)}"
        head = request.partition(b"\r\n\r\n")[0].lower()
        if b"tus-resumable" in head:
            assert "Upload-Complete" not in response, shown(request)
            assert response.interim == () or {each.status for each in response.interim} == {100}
        if response.status >= 400:
            after = fuzzer.sizes()
            assert after.items() <= before.items(), f"stored by {response.status}: {shown(request)}"
    assert_healthy(tus)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_requests(tus: Tus, seed: int) -> None:
    fuzzer = Fuzzer(tus, seed + 1000)
    bystander = tus.new(100)
    tus.patch(bystander, 0, b"bystander")
    for _ in range(ROUNDS):
        request = fuzzer.damage(fuzzer.request()[2])
        with Connection(tus.server.address, timeout=PATIENCE) as connection:
            try:
                connection.send(request)
                connection.half_close()
                answer = connection.read_to_end()
            except (BrokenPipeError, ConnectionResetError, ConnectionEnded):
                continue
            except TimeoutError as problem:
                raise AssertionError(f"a hang after {shown(request)}") from problem
        assert not answer.startswith(b"HTTP/1.1 5"), f"{answer!r} after {shown(request)}"
    assert tus.stored(bystander) == b"bystander"
    assert_healthy(tus)


@pytest.mark.parametrize("seed", range(2))
def test_noise(tus: Tus, seed: int) -> None:
    noise = random.Random(seed)
    for _ in range(200):
        with (
            Connection(tus.server.address, timeout=PATIENCE) as connection,
            suppress(BrokenPipeError, ConnectionResetError),
        ):
            connection.send(noise.randbytes(noise.choice([1, 10, 100, 5000, 100_000])))
            connection.half_close()
            answer = connection.read_to_end()
            assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer
    assert_healthy(tus)


def assert_healthy(tus: Tus) -> None:
    """The server goes on as if nothing had been, and nothing failed that it had not foreseen."""
    path = tus.finished(b"healthy")
    assert tus.get(path).body == b"healthy"
    assert tus.server.info_file(id_of(path)).exists()
    log = tus.server.log()
    assert "Traceback" not in log, log[-5000:]
