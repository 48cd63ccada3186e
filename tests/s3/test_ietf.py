"""Resumable Uploads for HTTP with uploads in a bucket."""

from __future__ import annotations

import os

import pytest

from tests.conftest import MakeServer
from tests.s3.servers import BUCKET, ENVIRONMENT, S3Server
from tests.support.ietf import Ietf, announced
from tests.support.tus import path_of

DATA = os.urandom(7_000_000)


@pytest.fixture
def ietf(make_server: MakeServer, seaweedfs: S3Server, prefix: str) -> Ietf:
    flags = ("--s3-bucket", BUCKET, "--s3-endpoint", seaweedfs.endpoint, "--s3-part-size", "5MiB")
    prefixes = ("--s3-object-prefix", prefix, "--s3-info-prefix", prefix)
    return Ietf(make_server(*flags, *prefixes, env=ENVIRONMENT), 9)


def test_R1_R13_complete_when_a_request_says_so(ietf: Ietf) -> None:
    path = ietf.new(len(DATA), DATA[:6_000_000], {"Repr-Digest": "sha-256=:" + "A" * 43 + "=:"})
    assert ietf.append(path, 6_000_000, DATA[6_000_000:]).status == 204
    status = ietf.head(path)
    assert (status["Upload-Offset"], status["Upload-Complete"]) == (str(len(DATA)), "?0")
    # What cannot be read before the upload is finished is not compared.
    assert ietf.append(path, len(DATA), b"", complete=True).status == 201
    assert ietf.head(path)["Upload-Complete"] == "?1"
    assert ietf.request("GET", path).body == DATA


def test_R2_R9_a_cut_creation_is_resumed(ietf: Ietf) -> None:
    """Bytes that are only in memory are not acknowledged."""
    with ietf.begin_creation(len(DATA), DATA[:1_000_000]) as connection:
        path = path_of(announced(connection)["Location"])
        assert connection.silent_for(0.7)
        assert ietf.offset(path) == 1_000_000
    assert ietf.append(path, 1_000_000, DATA[1_000_000:], complete=True).status == 201
    assert ietf.request("GET", path).body == DATA


def test_R16_bytes_past_the_length_end_the_upload(ietf: Ietf) -> None:
    path = ietf.new(5, b"abc")
    assert ietf.append(path, 3, b"x" * 100).status == 400
    assert ietf.head(path).status == 410
