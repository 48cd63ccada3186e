"""Buffers of parts that are used again: only once nothing reads from them."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from tusd_py.storage.s3.request_body import RequestBody
from tusd_py.storage.s3.spool import Spool
from tusd_py.storage.s3.verified import VerifiedS3Writer
from tusd_py.storage.s3.writer import S3Writer

SIZE = 1024


class Writer:
    idle_bytes = part_bytes = 0

    async def relieve(self) -> None:
        raise AssertionError

    async def close(self, *, sync: bool, finishing: bool) -> None:
        pass

    def note_arrival(self) -> None:
        pass


def test_a_buffer_is_used_again_for_a_part_of_the_same_size() -> None:
    spool = Spool(10 * SIZE)
    buffer = spool.buffer(SIZE)
    spool.reuse(buffer)
    assert len(spool.buffer(2 * SIZE)) == 2 * SIZE
    spool.reuse(buffer)
    assert spool.buffer(SIZE) is buffer
    assert len(buffer) == SIZE
    assert spool.buffer(SIZE) is not buffer


def test_what_a_request_reads_from_is_not_written_over() -> None:
    spool = Spool(10 * SIZE)
    buffer = spool.buffer(SIZE)
    body = RequestBody(buffer)
    sent = body.read(10)
    del body
    spool.reuse(buffer)
    assert spool.buffer(SIZE) is not buffer
    del sent
    spool.reuse(buffer)
    assert spool.buffer(SIZE) is buffer


def test_buffers_go_with_the_last_writer() -> None:
    spool, first, second = Spool(10 * SIZE), Writer(), Writer()
    spool.enter(first)
    spool.enter(second)
    buffer = spool.buffer(SIZE)
    spool.reuse(buffer)
    spool.leave(first)
    assert spool.buffer(SIZE) is buffer
    spool.reuse(buffer)
    spool.leave(second)
    assert spool.buffer(SIZE) is not buffer


def test_a_body_is_read_as_a_file_is() -> None:
    body = RequestBody(bytearray(b"0123456789"))
    assert (bytes(body.read(3)), body.tell()) == (b"012", 3)
    assert (body.seek(0, 2), body.seek(-4, 1), bytes(body.read())) == (10, 6, b"6789")
    assert bytes(body.read(5)) == b""
    assert (body.seek(0), bytes(body.read(100)), len(body.getbuffer())) == (0, b"0123456789", 10)


async def test_a_chunk_stays_in_memory_if_no_file_takes_it(tmp_path: Path) -> None:
    spool, none = Spool(SIZE), cast(S3Writer, Writer())
    staying = VerifiedS3Writer(none, spool, SIZE, str(tmp_path / "missing"))
    moving = VerifiedS3Writer(none, spool, SIZE, str(tmp_path))
    for writer in (staying, moving):
        writer.write(memoryview(b"x" * 100))
        await writer.relieve()
    assert (spool.used, staying.idle_bytes, moving.idle_bytes) == (100, 0, 0)
    await moving.close(sync=False)
