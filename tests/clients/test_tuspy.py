"""tuspy, the Python client of the tus project, against a server process.

It knows no time-out and makes one connection a request, so a fault proxy's connection number n is
its request number n: what is cut or stalled here is always the request that the test means.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from tusclient.exceptions import TusCommunicationError, TusUploadFailed
from tusclient.storage.filestorage import FileStorage
from tusclient.uploader.uploader import Uploader

from tests.clients.conftest import MakeSource
from tests.clients.content import MIB, SourceFile, assert_stored
from tests.clients.tuspy import uploader_of
from tests.conftest import MakeServer
from tests.support.faults import FaultProxy, Plan, Way
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, path_of, wait_for_size

# Given a path, it does not close what it opens.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

CUT = Plan(up=Way(cut_after=400_000, cut="rst"))


@pytest.fixture
def in_background() -> Iterator[Callable[[Callable[[], None]], Future[None]]]:
    """Runs a blocking client while the test does things to its server."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit


def test_plain(server: ServerProcess, tus: Tus, make_source: MakeSource) -> None:
    source = make_source(3 * MIB + 7)
    uploader = uploader_of(
        server.url, source.path, metadata={"filename": "Röntgen 胸部.dcm", "study": "17"}
    )
    uploader.upload()
    assert uploader.offset == source.size
    assert_stored(server, uploader.url, source)
    info = tus.info(path_of(uploader.url))
    assert info["MetaData"] == {"filename": "Röntgen 胸部.dcm", "study": "17"}


def test_zero_length(server: ServerProcess, make_source: MakeSource) -> None:
    source = make_source(0)
    uploader = uploader_of(server.url, source.stream())
    uploader.upload()
    assert_stored(server, uploader.url, source)


def test_chunked(server: ServerProcess, make_source: MakeSource) -> None:
    source = make_source(MIB + 7)
    uploader = uploader_of(server.url, source.stream(), chunk_size=300_000)
    seen = []
    while uploader.offset < source.size:
        uploader.upload_chunk()
        seen.append(uploader.offset)
    assert seen == [300_000, 600_000, 900_000, source.size]
    assert_stored(server, uploader.url, source)


@pytest.mark.parametrize("chunk_size", [100_000, 10 * MIB])
def test_checksums(server: ServerProcess, make_source: MakeSource, chunk_size: int) -> None:
    source = make_source(MIB + 7)
    uploader = uploader_of(server.url, source.stream(), chunk_size=chunk_size, upload_checksum=True)
    uploader.upload()
    assert_stored(server, uploader.url, source)


def test_wrong_checksum(
    server: ServerProcess, tus: Tus, make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checksum that is not that of the bytes: refused, and none of them counts."""
    source = make_source(MIB)
    with monkeypatch.context() as wrong:
        of_other_bytes = ("sha1", lambda chunk: hashlib.sha1(chunk[:-1]))
        wrong.setattr(Uploader, "CHECKSUM_ALGORITHM_PAIR", of_other_bytes)
        uploader = uploader_of(server.url, source.stream(), upload_checksum=True)
    with pytest.raises(TusUploadFailed) as failure:
        uploader.upload()
    assert failure.value.status_code == 460
    assert tus.offset(path_of(uploader.url)) == 0
    again = uploader_of(server.url, source.stream(), url=uploader.url, upload_checksum=True)
    again.upload()
    assert_stored(server, again.url, source)


def test_resumed_by_url(server: ServerProcess, make_source: MakeSource) -> None:
    source = make_source(2 * MIB)
    first = uploader_of(server.url, source.stream(), chunk_size=300_000)
    first.upload(stop_at=900_000)
    second = uploader_of(server.url, source.stream(), url=first.url)
    assert second.offset == 900_000
    second.upload()
    assert second.url == first.url
    assert_stored(server, second.url, source)


def test_fingerprint_storage(
    server: ServerProcess, make_source: MakeSource, tmp_path: Path
) -> None:
    """The URL is remembered under the file's fingerprint: the next uploader goes on."""
    source = make_source(2 * MIB)
    urls = tmp_path / "urls.json"
    with closing(FileStorage(str(urls))) as storage:
        first = uploader_of(
            server.url, source.path, chunk_size=300_000, store_url=True, url_storage=storage
        )
        first.upload(stop_at=900_000)
        second = uploader_of(server.url, source.path, store_url=True, url_storage=storage)
    assert second.url == first.url
    assert second.offset == 900_000
    second.upload()
    assert_stored(server, second.url, source)


def test_retries_over_a_line_that_is_cut(server: ServerProcess, make_source: MakeSource) -> None:
    """Every other PATCH is cut in its middle; the HEADs in between pass."""
    source = make_source(2 * MIB)
    with FaultProxy(server.address) as proxy:
        create, head = Plan(), Plan()
        proxy.plan(create, CUT, head, CUT, head, CUT, head, Plan())
        uploader = uploader_of(proxy.url(), source.stream(), retries=3, retry_delay=0)
        uploader.upload()
        assert [link.cut.is_set() for link in proxy.links] == [
            *(False, True),
            *(False, True),
            *(False, True),
            *(False, False),
        ]
    assert_stored(server, uploader.url, source)


def test_a_cut_keeps_what_arrived(server: ServerProcess, tus: Tus, make_source: MakeSource) -> None:
    source = make_source(MIB)
    with FaultProxy(server.address) as proxy:
        proxy.plan(Plan(), CUT)
        uploader = uploader_of(proxy.url(), source.stream())
        with pytest.raises(TusUploadFailed):
            uploader.upload()
        proxy.link(1).wait("closed")
    kept = tus.offset(path_of(uploader.url))
    # All that went through the proxy but the request's head.
    assert 399_000 < kept < 400_000


def test_a_cut_chunk_with_a_checksum_is_dropped(
    server: ServerProcess, tus: Tus, make_source: MakeSource
) -> None:
    source = make_source(MIB)
    with FaultProxy(server.address) as proxy:
        proxy.plan(Plan(), CUT)
        uploader = uploader_of(
            proxy.url(), source.stream(), upload_checksum=True, retries=1, retry_delay=0
        )
        uploader.upload()
        assert proxy.link(1).cut.is_set()
        # The HEAD in between said 0: the whole chunk went over the line once more.
        assert proxy.link(3).up_bytes > source.size
    assert_stored(server, uploader.url, source)


def test_lost_last_response(server: ServerProcess, make_source: MakeSource) -> None:
    """The client repeats with an empty PATCH at the end, and is told that all is well."""
    source = make_source(MIB)
    with FaultProxy(server.address) as proxy:
        proxy.plan(Plan(), Plan(down=Way(cut_after=10, cut="rst")))
        uploader = uploader_of(proxy.url(), source.stream(), retries=1, retry_delay=0)
        uploader.upload()
        assert proxy.link(1).cut.is_set()
    assert_stored(server, uploader.url, source)


@pytest.mark.parametrize("checksum", [False, True])
def test_kill_in_the_middle_of_a_patch(
    make_server: MakeServer,
    make_source: MakeSource,
    in_background: Callable[[Callable[[], None]], Future[None]],
    checksum: bool,
) -> None:
    server = make_server()
    source = make_source(4 * MIB)
    with FaultProxy(server.address) as proxy:
        proxy.plan(Plan(), Plan(up=Way(stall_after=2 * MIB)))
        uploader = uploader_of(
            proxy.url(), source.stream(), retries=600, retry_delay=0.1, upload_checksum=checksum
        )
        upload = in_background(uploader.upload)
        proxy.link(1).wait("stalled")
        wait_for_size(server, path_of(uploader.url), 1)
        server.kill9()
        server.restart()
        proxy.link(1).release()
        upload.result(60)
        *_, last = proxy.links
        sent_again = last.up_bytes
    assert (sent_again > source.size) is checksum
    assert_stored(server, uploader.url, source)


def test_kill_between_two_chunks(make_server: MakeServer, make_source: MakeSource) -> None:
    server = make_server()
    source = make_source(4 * MIB)
    uploader = uploader_of(server.url, source.stream(), chunk_size=MIB)
    uploader.upload_chunk()
    uploader.upload_chunk()
    server.kill9()
    with pytest.raises((TusCommunicationError, TusUploadFailed)):
        uploader.upload_chunk()
    server.restart()
    assert uploader.get_offset() == 2 * MIB
    uploader.upload()
    assert_stored(server, uploader.url, source)


def test_several_at_the_same_time(server: ServerProcess, make_source: MakeSource) -> None:
    sources = [make_source(MIB + number, f"source-{number}.bin") for number in range(8)]
    gate = threading.Barrier(len(sources))

    def upload(source: SourceFile) -> str:
        uploader = uploader_of(server.url, source.stream(), chunk_size=200_000)
        gate.wait(60)
        uploader.upload()
        return uploader.url

    with ThreadPoolExecutor(len(sources)) as pool:
        urls = list(pool.map(upload, sources))
    assert len({id_of(path_of(url)) for url in urls}) == len(sources)
    for url, source in zip(urls, sources, strict=True):
        assert_stored(server, url, source)
