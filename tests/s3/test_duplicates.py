"""An upload to a bucket is in the way of its duplicates while it is being sent, even if the bucket has no byte of it yet."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.s3.servers import S3Server
from tests.s3.test_server import Servers
from tests.support.redis import RedisServer
from tests.support.tus import Tus, checksum, metadata
from tests.support.waiting import wait_until

STUDY = {"Upload-Metadata": metadata(study="17")}
GRACE = 2.0
"""Seconds, of `--duplicates-pending-grace`. Parts are larger than what is sent here, and are not flushed meanwhile."""
PIECE = b"x" * 20_000
"""What is sent at a time: not so little that the system gathers it."""
LENGTH = 4_000_000


@pytest.mark.parametrize("by", ["the same server", "another server", "a chunk with a checksum"])
def test_what_is_being_sent_is_in_the_way(
    make_server: MakeServer, seaweedfs: S3Server, prefix: str, tmp_path: Path, by: str
) -> None:
    servers = Servers(make_server, seaweedfs.endpoint, prefix)
    with RedisServer(tmp_path / "redis") as redis:
        flags = (
            *("--redis-url", redis.url, "--duplicates", "on"),
            *("--duplicates-pending-grace", f"{GRACE:g}s"),
        )
        tus = Tus(servers(*flags))
        asked = Tus(servers(*flags)) if by == "another server" else tus
        path = tus.new(LENGTH, headers=STUDY)
        headers = {"Upload-Checksum": checksum(b"")} if by == "a chunk with a checksum" else {}
        with tus.begin_patch(path, 0, LENGTH, headers=headers) as patch:
            end = time.monotonic() + 2 * GRACE
            while time.monotonic() < end:
                patch.send(PIECE)
                time.sleep(0.1)
            refused = asked.create(LENGTH, headers=STUDY)
            assert refused.status == 409
            assert 1 <= int(refused["Retry-After"]) <= GRACE
        # Its client is gone.
        wait_until(lambda: asked.create(LENGTH, headers=STUDY).status == 201, "its turn")
