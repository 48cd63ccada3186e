"""Chunks with a checksum and the memory that all uploads share: none waits for room that only those who wait could make."""

from __future__ import annotations

import random
from contextlib import ExitStack

import pytest

from tests.conftest import MakeServer
from tests.s3.servers import S3Server
from tests.s3.test_observed import scraped
from tests.s3.test_server import Servers
from tests.support.tus import OpenPatch, Tus, checksum
from tests.support.waiting import wait_until

MIB = 1 << 20
BODY = random.Random(9).randbytes(7 * MIB)


@pytest.fixture
def tus(make_server: MakeServer, seaweedfs: S3Server, prefix: str) -> Tus:
    """Of a server whose memory has room for two parts."""
    sizes = ("--s3-part-size", "8MiB", "--s3-spool-size", "16MiB")
    return Tus(Servers(make_server, seaweedfs.endpoint, prefix)(*sizes))


def begun(stack: ExitStack, tus: Tus, body: bytes, rest: int) -> OpenPatch:
    """A request with a chunk of which the last `rest` bytes are missing."""
    headers = {"Upload-Checksum": checksum(body)}
    path = tus.new(len(body))
    return stack.enter_context(tus.begin_patch(path, 0, len(body), body[:-rest], headers))


def wait_for_memory(tus: Tus, size: int) -> None:
    wait_until(lambda: scraped(tus)["tusd_s3_spool_bytes"] >= size, f"{size} bytes in memory")


def test_chunks_that_are_passed_on_together_make_room_for_each_other(tus: Tus) -> None:
    """All of them are in memory when the last byte comes, and fill it."""
    sizes = {7 * MIB: 1, 7 * MIB - 1: 1, 2 * MIB + 1000: 1000}
    with ExitStack() as stack:
        patches = [
            (begun(stack, tus, BODY[:size], rest), BODY[:size], rest)
            for size, rest in sizes.items()
        ]
        wait_for_memory(tus, sum(sizes) - sum(sizes.values()))
        for patch, body, rest in patches:
            patch.send(body[-rest:])
        for patch, body, _ in patches:
            assert patch.response().status == 204
            assert tus.get(patch.path).body == body


def test_chunks_whose_clients_pause_make_room_for_others(tus: Tus) -> None:
    bodies = (BODY, BODY, BODY[: 2 * MIB + 1000])
    with ExitStack() as stack:
        paused = [begun(stack, tus, body, 1001) for body in bodies]
        sent = sum(map(len, bodies)) - 3 * 1001
        wait_for_memory(tus, sent)
        for patch, body in zip(paused, bodies, strict=True):
            patch.send(body[-1001:-1])
        wait_for_memory(tus, sent + 3 * 1000)
        other = tus.finished(BODY * 3)
        assert tus.get(other).body == BODY * 3
        for patch, body in zip(paused, bodies, strict=True):
            patch.send(body[-1:])
            assert patch.response().status == 204
            assert tus.get(patch.path).body == body
