"""tus-js-client under Node as a client of Resumable Uploads for HTTP, in the two drafts that it speaks.

From buffers: of a file that it sends in several requests it never says that the last of them completes the upload.
"""

from __future__ import annotations

from typing import Literal

import pytest

from tests.clients.conftest import MakeSource, RunTusJs
from tests.clients.content import MIB, assert_stored
from tests.clients.stalls import stalled_links
from tests.clients.test_tus_js_client import from_file, offsets, wait_for_bytes
from tests.clients.tus_js import Options
from tests.conftest import MakeServer
from tests.support.faults import FaultProxy, Plan, Way
from tests.support.ietf import Ietf
from tests.support.server import ServerProcess
from tests.support.tus import Tus, path_of

Draft = Literal["ietf-draft-03", "ietf-draft-05"]
DRAFTS: tuple[Draft, ...] = ("ietf-draft-03", "ietf-draft-05")


@pytest.fixture(params=DRAFTS)
def draft(request: pytest.FixtureRequest) -> Draft:
    found: Draft = request.param
    return found


def test_R22_chunks(
    server: ServerProcess, run_tus_js: RunTusJs, make_source: MakeSource, draft: Draft
) -> None:
    source = make_source(MIB + 7)
    options: Options = {
        "endpoint": server.url,
        "protocol": draft,
        "chunkSize": 500_000,
        "metadata": {"filename": "a.bin"},
    }
    client = run_tus_js({"source": from_file(source, "buffer"), "options": options})
    url = client.succeed()
    assert client.requests() == [("POST", 201), *[("PATCH", 201)] * 3]
    assert_stored(server, url, source)
    assert '"filename":"a.bin"' in server.info_file(url.rpartition("/")[2]).read_text()
    assert Ietf(server, 6).head(path_of(url))["Upload-Complete"] == "?1"


def test_R22_cuts(
    server: ServerProcess, run_tus_js: RunTusJs, make_source: MakeSource, draft: Draft
) -> None:
    source = make_source(3 * MIB)
    with FaultProxy(server.address, default=Plan(up=Way(cut_after=700_000))) as proxy:
        options: Options = {
            "endpoint": proxy.url(),
            "protocol": draft,
            "retryDelays": [0, 100, 100],
        }
        client = run_tus_js({"source": from_file(source, "buffer"), "options": options})
        url = client.succeed()
        assert sum(link.cut.is_set() for link in proxy.links) >= 3
    assert ("HEAD", 204) in client.requests()
    assert offsets(client) == sorted(offsets(client))
    assert_stored(server, url, source)


def test_R22_data_with_the_creation(
    server: ServerProcess, run_tus_js: RunTusJs, make_source: MakeSource, draft: Draft
) -> None:
    source = make_source(MIB)
    options: Options = {"endpoint": server.url, "protocol": draft, "uploadDataDuringCreation": True}
    client = run_tus_js({"source": from_file(source, "buffer"), "options": options})
    url = client.succeed()
    assert client.requests() == [("POST", 201)]
    assert_stored(server, url, source)


def test_R18_R22_terminated_in_the_middle(
    make_server: MakeServer, run_tus_js: RunTusJs, make_source: MakeSource, draft: Draft
) -> None:
    server = make_server()
    source = make_source(2 * MIB)
    with FaultProxy(server.address, default=Plan(up=Way(stall_after=MIB))) as proxy:
        options: Options = {"endpoint": proxy.url(), "protocol": draft}
        client = run_tus_js({"source": from_file(source, "buffer"), "options": options})
        stalled_links(proxy)
        wait_for_bytes(server, client)
        proxy.heal()
        client.tell("terminate")
        client.finish()
    assert ("DELETE", 204) in client.requests()
    assert Tus(server).data_files() == []


def test_R23_begun_with_tus(
    server: ServerProcess, run_tus_js: RunTusJs, make_source: MakeSource, draft: Draft
) -> None:
    source = make_source(MIB)
    tus = Tus(server)
    path = tus.new(source.size)
    tus.patch(path, 0, source.path.read_bytes()[:1000])
    url = f"http://127.0.0.1:{server.port}{path}"
    client = run_tus_js(
        {"source": from_file(source, "buffer"), "options": {"uploadUrl": url, "protocol": draft}}
    )
    assert client.succeed() == url
    assert offsets(client) == [1000]
    assert_stored(server, url, source)
