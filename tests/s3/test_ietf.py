"""Resumable Uploads for HTTP with uploads of several parts in a bucket; `make test-s3` runs `tests/ietf` on a bucket too."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import threading
from collections.abc import Iterator

import pytest

from tests.conftest import MakeServer
from tests.s3.proxies import WAIT, Answer, Exchange, FaultProxy, error
from tests.s3.servers import BUCKET, ENVIRONMENT, S3Server
from tests.s3.test_full_spool import wait_for_memory
from tests.support.ietf import Ietf, announced
from tests.support.server import ServerProcess
from tests.support.tus import Tus, path_of

PART = 5 * 1024 * 1024
DATA = os.urandom(7_000_000)
WANTED = {"Want-Repr-Digest": "sha-256=1"}
_is_data = re.compile(r"[0-9a-f]{32}/[0-9a-f]{32}").fullmatch


def digest(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


class Bucket(FaultProxy):
    """Also withholds the responses to parts, and fails to read the bytes of uploads."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(target)
        self.acknowledges = threading.Event()
        self.acknowledges.set()
        self.is_readable = True

    async def handle(self, exchange: Exchange) -> Answer:
        if exchange.operation == "GetObject" and _is_data(exchange.key) and not self.is_readable:
            return error(500, "InternalError")
        answer = await super().handle(exchange)
        if exchange.operation == "UploadPart":
            await asyncio.to_thread(self.acknowledges.wait, WAIT)
        return answer


@pytest.fixture
def bucket(seaweedfs: S3Server) -> Iterator[Bucket]:
    with Bucket(seaweedfs.address) as proxy:
        yield proxy
        proxy.acknowledges.set()


@pytest.fixture
def server(make_server: MakeServer, bucket: Bucket, prefix: str) -> ServerProcess:
    flags = ("--s3-bucket", BUCKET, "--s3-endpoint", bucket.endpoint, "--s3-part-size", "5MiB")
    prefixes = ("--s3-object-prefix", prefix, "--s3-info-prefix", prefix)
    return make_server(*flags, *prefixes, "--s3-retry-time", "300ms", env=ENVIRONMENT)


@pytest.fixture
def ietf(server: ServerProcess) -> Ietf:
    return Ietf(server, 9)


def test_R1_R13_complete_when_a_request_says_so(ietf: Ietf) -> None:
    path = ietf.new(len(DATA), DATA[:6_000_000])
    assert ietf.append(path, 6_000_000, DATA[6_000_000:]).status == 204
    status = ietf.head(path)
    assert (status["Upload-Offset"], status["Upload-Complete"]) == (str(len(DATA)), "?0")
    assert ietf.append(path, len(DATA), b"", complete=True).status == 201
    assert ietf.head(path)["Upload-Complete"] == "?1"
    assert ietf.request("GET", path).body == DATA


def test_R2_R9_a_cut_creation_is_resumed(ietf: Ietf, server: ServerProcess) -> None:
    """Bytes that are only in memory are not acknowledged."""
    with ietf.begin_creation(len(DATA), DATA[:1_000_000]) as connection:
        path = path_of(announced(connection)["Location"])
        assert connection.silent_for(0.7)
        # A HEAD ends the request, and what has come counts.
        wait_for_memory(Tus(server), 1_000_000)
        assert ietf.offset(path) == 1_000_000
    assert ietf.append(path, 1_000_000, DATA[1_000_000:], complete=True).status == 201
    assert ietf.request("GET", path).body == DATA


def test_R2_R6_only_what_the_bucket_has_acknowledged_is_told(
    ietf: Ietf, server: ServerProcess, bucket: Bucket
) -> None:
    """A part that was sent is not yet stored, and what lies behind it is in memory: a killed server takes that with it."""
    bucket.acknowledges.clear()
    with ietf.begin_creation(len(DATA), DATA[:6_000_000]) as connection:
        path = path_of(announced(connection)["Location"])
        assert connection.silent_for(1.2)
        bucket.acknowledges.set()
        interim = connection.read_any()
        assert (interim.status, interim["Upload-Offset"]) == (104, str(PART))
        server.kill9()
    server.restart()
    assert ietf.offset(path) == PART
    assert ietf.append(path, PART, DATA[PART:], complete=True).status == 201
    assert ietf.request("GET", path).body == DATA


def test_R21_the_digest_of_an_upload_in_parts(ietf: Ietf, server: ServerProcess) -> None:
    """It is that of the object, whichever process received the bytes."""
    headers = {"Repr-Digest": digest(DATA), **WANTED}
    path = ietf.new(len(DATA), DATA[:6_000_000], headers)
    wrong = ietf.new(len(DATA), DATA[:6_000_000], {"Repr-Digest": digest(b"")})
    server.kill9()
    server.restart()
    done = ietf.append(path, 6_000_000, DATA[6_000_000:], complete=True)
    assert (done.status, done["Repr-Digest"]) == (201, digest(DATA))
    assert ietf.request("GET", path).body == DATA
    failed = ietf.append(wrong, 6_000_000, DATA[6_000_000:], complete=True)
    assert (failed.status, "digest-mismatched-values" in failed.text) == (400, True)
    assert ietf.head(wrong).status == 410


def test_R21_an_upload_whose_digest_could_not_be_read_is_not_complete(
    server: ServerProcess, bucket: Bucket
) -> None:
    ietf = Ietf(server, None)
    bucket.is_readable = False
    path = path_of(ietf.create(DATA, complete=False, headers=WANTED)["Location"])
    assert ietf.append(path, len(DATA), b"", complete=True).status == 503
    status = ietf.head(path)
    assert (status["Upload-Offset"], status["Upload-Complete"]) == (str(len(DATA)), "?0")
    assert ietf.request("GET", path).status == 204
    bucket.is_readable = True
    done = ietf.append(path, len(DATA), b"", complete=True)
    assert (done.status, done["Repr-Digest"]) == (201, digest(DATA))


def test_R21_the_object_is_read_on_where_its_response_was_cut(ietf: Ietf, bucket: Bucket) -> None:
    path = ietf.new(len(DATA), DATA, WANTED)
    bucket.plan("GetObject", "cut-response")
    done = ietf.append(path, len(DATA), b"", complete=True)
    assert (done.status, done["Repr-Digest"]) == (201, digest(DATA))
    assert bucket.injected["cut-response"] == 1
