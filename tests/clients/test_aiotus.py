"""aiotus, an asyncio client, against a server process.

It retries by itself and tells its caller no more than the URL at the end, or None.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import aiotus
import pytest

from tests.clients.conftest import MakeSource
from tests.clients.content import MIB, SourceFile, assert_stored
from tests.clients.stalls import stalled_links
from tests.conftest import MakeServer
from tests.support.faults import FaultProxy, Plan, Way
from tests.support.server import ServerProcess
from tests.support.tus import Tus, path_of

# It hands each chunk to aiohttp as one piece of bytes, of which that warns.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")

IMPATIENT = aiotus.RetryConfiguration(retry_attempts=600, max_retry_period_seconds=0.1)

METADATA = {"filename": "Röntgen 胸部.dcm".encode(), "raw": bytes(range(256)), "flag": None}


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def upload(
    url: str,
    source: SourceFile,
    session: aiohttp.ClientSession,
    chunk_size: int = 4 * MIB,
) -> str:
    with source.path.open("rb") as file:
        location = await aiotus.upload(
            url, file, METADATA, session, config=IMPATIENT, chunksize=chunk_size
        )
    assert location is not None
    return str(location)


@pytest.mark.parametrize("size", [0, 1, 3 * MIB + 7])
@pytest.mark.parametrize("chunk_size", [MIB, 10 * MIB])
async def test_upload(
    server: ServerProcess,
    session: aiohttp.ClientSession,
    make_source: MakeSource,
    size: int,
    chunk_size: int,
) -> None:
    source = make_source(size)
    url = await upload(server.url, source, session, chunk_size)
    assert_stored(server, url, source)


async def test_metadata_read_back(
    server: ServerProcess, session: aiohttp.ClientSession, make_source: MakeSource
) -> None:
    """Bytes that are no UTF-8, and a key without a value, come back as they went."""
    url = await upload(server.url, make_source(1000), session)
    assert await aiotus.metadata(url, session) == METADATA


async def test_multiple(
    server: ServerProcess, tus: Tus, session: aiohttp.ClientSession, make_source: MakeSource
) -> None:
    """Parts uploaded at the same time, joined by concatenation in the order listed."""
    whole = make_source(5 * MIB + 7, "whole.bin")
    content = whole.path.read_bytes()
    parts = [whole.path.with_name(f"part-{number}.bin") for number in range(5)]
    for number, part in enumerate(parts):
        part.write_bytes(content[number * MIB : (number + 1) * MIB if number < 4 else None])
    files = [part.open("rb") for part in parts]
    try:
        location = await aiotus.upload_multiple(
            server.url,
            files,
            {"filename": b"whole"},
            session,
            config=IMPATIENT,
            chunksize=300_000,
            parallel_uploads=3,
        )
    finally:
        for file in files:
            file.close()
    assert location is not None
    head = tus.head(path_of(str(location)))
    assert head["Upload-Concat"].startswith("final;")
    assert await aiotus.metadata(location, session) == {"filename": b"whole"}
    assert_stored(server, str(location), whole)


async def test_at_the_same_time(
    server: ServerProcess, session: aiohttp.ClientSession, make_source: MakeSource
) -> None:
    sources = [make_source(MIB + number, f"source-{number}.bin") for number in range(8)]
    urls = await asyncio.gather(
        *(upload(server.url, source, session, 200_000) for source in sources)
    )
    for url, source in zip(urls, sources, strict=True):
        assert_stored(server, url, source)


async def test_retry_over_a_line_that_is_cut(
    server: ServerProcess, session: aiohttp.ClientSession, make_source: MakeSource
) -> None:
    """Each connection is cut after 400 kB, so no chunk ever goes through whole."""
    source = make_source(2 * MIB)
    plan = Plan(up=Way(cut_after=400_000, cut="rst"))
    with FaultProxy(server.address, default=plan) as proxy:
        url = await upload(proxy.url(), source, session, MIB)
        assert sum(link.cut.is_set() for link in proxy.links) >= 5
    assert_stored(server, url, source)


async def test_kill_in_the_middle_of_a_patch(
    make_server: MakeServer, session: aiohttp.ClientSession, make_source: MakeSource
) -> None:
    server = make_server()
    source = make_source(4 * MIB)
    with FaultProxy(server.address, default=Plan(up=Way(stall_after=2 * MIB))) as proxy:
        uploading = asyncio.create_task(upload(proxy.url(), source, session))
        (link,) = await asyncio.to_thread(stalled_links, proxy)
        server.kill9()
        proxy.heal()
        link.release()
        server.restart()
        async with asyncio.timeout(60):
            url = await uploading
    assert_stored(server, url, source)
