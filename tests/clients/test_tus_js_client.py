"""tus-js-client under Node against a server process: typical uploads of browsers and Node.

The judge is the server's disk and its GET; the client's own events say that it got there in the way
that it should have (resumed, and not sent all again).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from tests.clients.conftest import MakeSource, RunTusJs
from tests.clients.content import MIB, SourceFile, assert_stored
from tests.clients.stalls import stalled_links
from tests.clients.tus_js import Job, Options, PreviousUpload, Source, TusJsClient
from tests.conftest import MakeServer
from tests.support.faults import FaultProxy, Plan, Way
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, path_of, wait_for_size
from tests.support.waiting import wait_until

PATIENT = [0, *[100] * 600]
"""Delays between retries, in ms, for tests in which the server is away for a while."""

STALLING = Plan(up=Way(stall_after=MIB))
"""A connection on which something can be done in the middle, and nothing happens meanwhile."""


def from_file(source: SourceFile, kind: Literal["file", "buffer", "stream"] = "file") -> Source:
    return {"kind": kind, "path": str(source.path)}


def stored_urls(storage: Path) -> list[PreviousUpload]:
    """The URLs in the client's FileUrlStorage."""
    entries: dict[str, PreviousUpload] = json.loads(storage.read_text())
    return list(entries.values())


def offsets(client: TusJsClient) -> list[int]:
    """The offsets of the PATCH requests that the client sent, in order."""
    return [
        int(event["headers"]["Upload-Offset"])
        for event in client.all("request")
        if event["method"] == "PATCH"
    ]


def wait_for_bytes(server: ServerProcess, client: TusJsClient, uploads: int = 1) -> None:
    """Waits until the server has written something of each upload that the client has created.

    Not by the client's URLs, which it does not tell of the parts of a parallel upload.
    """

    def created() -> list[str]:
        answers = client.all("response")
        return [each["headers"]["Location"] for each in answers if each["method"] == "POST"]

    wait_until(lambda: len(created()) == uploads, "the creations")
    for url in created():
        wait_for_size(server, path_of(url), 1)


# -- an undisturbed line ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "buffer"])
def test_plain(
    server: ServerProcess,
    run_tus_js: RunTusJs,
    make_source: MakeSource,
    kind: Literal["file", "buffer"],
) -> None:
    source = make_source(3 * MIB + 7)
    client = run_tus_js({"source": from_file(source, kind), "options": {"endpoint": server.url}})
    url = client.succeed()
    assert client.requests() == [("POST", 201), ("PATCH", 204)]
    assert url.startswith(server.url)
    assert_stored(server, url, source)


def test_chunked(server: ServerProcess, run_tus_js: RunTusJs, make_source: MakeSource) -> None:
    source = make_source(MIB + 7)
    size = 300_000
    client = run_tus_js(
        {
            "source": from_file(source),
            "options": {"endpoint": server.url, "chunkSize": size},
        }
    )
    url = client.succeed()
    assert client.requests() == [("POST", 201), *[("PATCH", 204)] * 4]
    assert [event["accepted"] for event in client.all("chunk")] == [
        size,
        2 * size,
        3 * size,
        source.size,
    ]
    assert_stored(server, url, source)


def test_metadata(
    server: ServerProcess, tus: Tus, run_tus_js: RunTusJs, make_source: MakeSource
) -> None:
    """Names that are not ASCII and an empty value (sent as `key `) come back as they went."""
    source = make_source(1000)
    client = run_tus_js(
        {
            "source": from_file(source),
            "options": {
                "endpoint": server.url,
                "metadata": {
                    "filename": "Röntgen 胸部 📷.dcm",
                    "empty": "",
                    "filetype": "application/dicom",
                },
            },
        }
    )
    url = client.succeed()
    sent = client.all("request")[0]["headers"]["Upload-Metadata"]
    assert "empty ," in sent
    assert tus.head(path_of(url))["Upload-Metadata"] == sent
    assert_stored(server, url, source)
    info = tus.info(path_of(url))
    assert info["MetaData"] == {
        "filename": "Röntgen 胸部 📷.dcm",
        "empty": "",
        "filetype": "application/dicom",
    }


def test_zero_length(server: ServerProcess, run_tus_js: RunTusJs, make_source: MakeSource) -> None:
    source = make_source(0)
    client = run_tus_js({"source": from_file(source), "options": {"endpoint": server.url}})
    url = client.succeed()
    assert client.requests() == [("POST", 201)]
    assert_stored(server, url, source)


def test_method_override(
    server: ServerProcess, run_tus_js: RunTusJs, make_source: MakeSource
) -> None:
    source = make_source(MIB)
    client = run_tus_js(
        {
            "source": from_file(source),
            "options": {"endpoint": server.url, "overridePatchMethod": True, "chunkSize": 600_000},
        }
    )
    url = client.succeed()
    assert client.requests() == [("POST", 201), ("POST", 204), ("POST", 204)]
    assert_stored(server, url, source)


@pytest.mark.parametrize("chunk_size", [400_000, 10_000_000])
def test_deferred_length_from_a_stream(
    server: ServerProcess,
    tus: Tus,
    run_tus_js: RunTusJs,
    make_source: MakeSource,
    chunk_size: int,
) -> None:
    source = make_source(MIB + 7)
    client = run_tus_js(
        {
            "source": from_file(source, "stream"),
            "options": {
                "endpoint": server.url,
                "uploadLengthDeferred": True,
                "chunkSize": chunk_size,
            },
        }
    )
    url = client.succeed()
    create, *patches = client.all("request")
    assert create["headers"]["Upload-Defer-Length"] == "1"
    told = [request["headers"].get("Upload-Length") for request in patches]
    assert told == [None] * (len(patches) - 1) + [str(source.size)]
    head = tus.head(path_of(url))
    assert head["Upload-Length"] == str(source.size)
    assert "Upload-Defer-Length" not in head
    assert_stored(server, url, source)


def test_data_during_creation(
    server: ServerProcess, run_tus_js: RunTusJs, make_source: MakeSource
) -> None:
    source = make_source(3 * MIB + 7)
    client = run_tus_js(
        {
            "source": from_file(source),
            "options": {"endpoint": server.url, "uploadDataDuringCreation": True},
        }
    )
    url = client.succeed()
    assert client.requests() == [("POST", 201)]
    assert_stored(server, url, source)


def test_data_during_creation_chunked(
    server: ServerProcess, run_tus_js: RunTusJs, make_source: MakeSource
) -> None:
    source = make_source(3 * MIB + 7)
    client = run_tus_js(
        {
            "source": from_file(source),
            "options": {
                "endpoint": server.url,
                "uploadDataDuringCreation": True,
                "chunkSize": MIB,
            },
        }
    )
    url = client.succeed()
    assert client.requests() == [("POST", 201), *[("PATCH", 204)] * 3]
    assert offsets(client) == [MIB, 2 * MIB, 3 * MIB]
    assert_stored(server, url, source)


@pytest.mark.parametrize("remove", [True, False])
def test_remove_fingerprint_on_success(
    server: ServerProcess,
    run_tus_js: RunTusJs,
    make_source: MakeSource,
    tmp_path: Path,
    remove: bool,
) -> None:
    source = make_source(MIB)
    storage = tmp_path / "urls.json"
    client = run_tus_js(
        {
            "source": from_file(source),
            "options": {"endpoint": server.url, "removeFingerprintOnSuccess": remove},
            "urlStorage": str(storage),
        }
    )
    url = client.succeed()
    remembered = [entry["uploadUrl"] for entry in stored_urls(storage)]
    assert remembered == ([] if remove else [url])
    assert_stored(server, url, source)


# -- parallel uploads ------------------------------------------------------------------------------


def test_parallel_uploads(
    server: ServerProcess, tus: Tus, run_tus_js: RunTusJs, make_source: MakeSource
) -> None:
    source = make_source(3 * MIB + 7)
    client = run_tus_js(
        {
            "source": from_file(source),
            "options": {
                "endpoint": server.url,
                "parallelUploads": 3,
                "metadata": {"filename": "whole"},
                "metadataForPartialUploads": {"filename": "part"},
            },
        }
    )
    url = client.succeed()
    assert sorted(client.requests()) == [*[("PATCH", 204)] * 3, *[("POST", 201)] * 4]
    assert client.requests()[-1] == ("POST", 201)
    *parts, final = [event for event in client.all("request") if event["method"] == "POST"]
    assert {part["headers"]["Upload-Concat"] for part in parts} == {"partial"}
    head = tus.head(path_of(url))
    assert head["Upload-Concat"] == final["headers"]["Upload-Concat"]
    assert head["Upload-Metadata"] == "filename d2hvbGU="
    assert head["Upload-Length"] == head["Upload-Offset"] == str(source.size)
    assert_stored(server, url, source)


def test_parallel_uploads_resumed_after_an_abort(
    server: ServerProcess, run_tus_js: RunTusJs, make_source: MakeSource, tmp_path: Path
) -> None:
    source = make_source(6 * MIB)
    storage = tmp_path / "urls.json"
    with FaultProxy(server.address, default=STALLING) as proxy:
        job: Job = {
            "source": from_file(source),
            "options": {"endpoint": proxy.url(), "parallelUploads": 3},
            "urlStorage": str(storage),
        }
        first = run_tus_js(job)
        stalled_links(proxy, 3)
        wait_for_bytes(server, first, 3)
        first.tell("abort")
        assert first.finish()["event"] == "aborted"
        (remembered,) = stored_urls(storage)
        proxy.heal()
        client = run_tus_js({**job, "resume": True})
        url = client.succeed()
    assert client.wait_for("previous")["uploads"][0]["size"] == source.size
    assert sorted(client.requests()) == [
        *[("HEAD", 200)] * 3,
        *[("PATCH", 204)] * 3,
        ("POST", 201),
    ]
    assert sorted(remembered["parallelUploadUrls"]) == sorted(
        event["url"] for event in client.all("request") if event["method"] == "HEAD"
    )
    assert min(offsets(client)) > 0
    assert_stored(server, url, source)


def test_parallel_uploads_across_a_kill(
    make_server: MakeServer, run_tus_js: RunTusJs, make_source: MakeSource
) -> None:
    server = make_server()
    source = make_source(6 * MIB)
    with FaultProxy(server.address, default=STALLING) as proxy:
        client = run_tus_js(
            {
                "source": from_file(source),
                "options": {
                    "endpoint": proxy.url(),
                    "parallelUploads": 3,
                    "retryDelays": PATIENT,
                },
            }
        )
        stalled_links(proxy, 3)
        wait_for_bytes(server, client, 3)
        server.kill9()
        proxy.heal()
        server.restart()
        for link in proxy.links:
            link.release()
        url = client.succeed()
    assert [status for method, status in client.requests() if method == "HEAD"] == [200] * 3
    assert sum(offset > 0 for offset in offsets(client)) == 3
    assert_stored(server, url, source)


# -- resumed ---------------------------------------------------------------------------------------


def test_resumed_after_an_abort(
    server: ServerProcess, run_tus_js: RunTusJs, make_source: MakeSource, tmp_path: Path
) -> None:
    """Another process finds the URL in its storage, and goes on where the first ended."""
    source = make_source(4 * MIB)
    storage = tmp_path / "urls.json"
    with FaultProxy(server.address, default=STALLING) as proxy:
        job: Job = {
            "source": from_file(source),
            "options": {"endpoint": proxy.url()},
            "urlStorage": str(storage),
        }
        first = run_tus_js(job)
        stalled_links(proxy)
        wait_for_bytes(server, first)
        first.tell("abort")
        assert first.finish()["event"] == "aborted"
        (remembered,) = stored_urls(storage)
        proxy.heal()
        client = run_tus_js({**job, "resume": True})
        url = client.succeed()
    assert url == remembered["uploadUrl"]
    assert client.requests() == [("HEAD", 200), ("PATCH", 204)]
    (resumed_at,) = offsets(client)
    assert 0 < resumed_at < source.size
    assert_stored(server, url, source)


def test_started_again_after_an_abort(
    server: ServerProcess, run_tus_js: RunTusJs, make_source: MakeSource
) -> None:
    """The HEAD comes while the server still waits for the rest of the PATCH, and is answered."""
    source = make_source(4 * MIB)
    with FaultProxy(server.address, default=STALLING) as proxy:
        client = run_tus_js({"source": from_file(source), "options": {"endpoint": proxy.url()}})
        stalled_links(proxy)
        wait_for_bytes(server, client)
        proxy.heal()
        client.tell("restart")
        url = client.succeed(timeout=30)
    assert client.requests() == [("POST", 201), ("HEAD", 200), ("PATCH", 204)]
    first, second = offsets(client)
    assert first == 0 < second < source.size
    assert_stored(server, url, source)


def test_kill_in_the_middle_of_a_patch(
    make_server: MakeServer, run_tus_js: RunTusJs, make_source: MakeSource
) -> None:
    server = make_server()
    source = make_source(8 * MIB)
    with FaultProxy(server.address, default=Plan(up=Way(stall_after=3 * MIB))) as proxy:
        client = run_tus_js(
            {
                "source": from_file(source),
                "options": {"endpoint": proxy.url(), "retryDelays": PATIENT},
            }
        )
        (link,) = stalled_links(proxy)
        wait_for_bytes(server, client)
        server.kill9()
        proxy.heal()
        link.release()
        server.restart()
        url = client.succeed()
    assert client.requests() == [("POST", 201), ("HEAD", 200), ("PATCH", 204)]
    first, second = offsets(client)
    assert first == 0 < second < source.size
    assert_stored(server, url, source)


def test_kill_between_two_chunks(
    make_server: MakeServer, run_tus_js: RunTusJs, make_source: MakeSource
) -> None:
    """Bytes acknowledged with 204 survive the kill: the client resumes exactly behind them."""
    server = make_server()
    source = make_source(4 * MIB)
    client = run_tus_js(
        {
            "source": from_file(source),
            "options": {"endpoint": server.url, "chunkSize": MIB, "retryDelays": PATIENT},
            "holdAt": 2 * MIB,
        }
    )
    client.wait_for("held")
    server.kill9()
    client.tell("continue")
    server.restart()
    url = client.succeed()
    assert ("HEAD", 200) in client.requests()
    assert offsets(client) == [0, MIB, 2 * MIB, 2 * MIB, 3 * MIB]
    assert_stored(server, url, source)


def test_server_and_client_killed(
    make_server: MakeServer, run_tus_js: RunTusJs, make_source: MakeSource, tmp_path: Path
) -> None:
    server = make_server()
    source = make_source(4 * MIB)
    options: Options = {"endpoint": server.url, "chunkSize": MIB}
    storage = str(tmp_path / "urls.json")
    first = run_tus_js(
        {
            "source": from_file(source),
            "options": options,
            "urlStorage": storage,
            "holdAt": 2 * MIB,
        }
    )
    first.wait_for("held")
    first.kill()
    server.kill9()
    server.restart()
    client = run_tus_js(
        {"source": from_file(source), "options": options, "urlStorage": storage, "resume": True}
    )
    url = client.succeed()
    assert client.requests() == [("HEAD", 200), ("PATCH", 204), ("PATCH", 204)]
    assert offsets(client) == [2 * MIB, 3 * MIB]
    assert_stored(server, url, source)


def test_deferred_length_across_a_kill(
    make_server: MakeServer, run_tus_js: RunTusJs, make_source: MakeSource
) -> None:
    server = make_server()
    source = make_source(3 * MIB + 7)
    client = run_tus_js(
        {
            "source": from_file(source, "stream"),
            "options": {
                "endpoint": server.url,
                "uploadLengthDeferred": True,
                "chunkSize": MIB,
                "retryDelays": PATIENT,
            },
            "holdAt": 2 * MIB,
        }
    )
    client.wait_for("held")
    server.kill9()
    client.tell("continue")
    server.restart()
    url = client.succeed()
    assert offsets(client) == [0, MIB, 2 * MIB, 2 * MIB, 3 * MIB]
    assert_stored(server, url, source)


# -- terminated ------------------------------------------------------------------------------------


def test_terminate(
    server: ServerProcess, tus: Tus, run_tus_js: RunTusJs, make_source: MakeSource, tmp_path: Path
) -> None:
    """abort(true) in the middle of a PATCH: DELETE ends it, and frees what it had stored."""
    source = make_source(4 * MIB)
    storage = tmp_path / "urls.json"
    with FaultProxy(server.address, default=STALLING) as proxy:
        client = run_tus_js(
            {
                "source": from_file(source),
                "options": {"endpoint": proxy.url()},
                "urlStorage": str(storage),
            }
        )
        stalled_links(proxy)
        wait_for_bytes(server, client)
        proxy.heal()
        client.tell("terminate")
        ending = client.finish(timeout=30)
    assert ending == {"event": "aborted", "terminated": True}
    assert client.requests() == [("POST", 201), ("DELETE", 204)]
    assert stored_urls(storage) == []
    path = path_of(client.wait_for("url")["url"])
    assert tus.head(path).status == 410
    assert not server.data_file(id_of(path)).exists()
    assert not server.info_file(id_of(path)).exists()


def test_resuming_what_was_terminated_starts_anew(
    server: ServerProcess, tus: Tus, run_tus_js: RunTusJs, make_source: MakeSource
) -> None:
    source = make_source(MIB)
    gone = tus.new(source.size)
    assert tus.delete(gone).status == 204
    client = run_tus_js(
        {
            "source": from_file(source),
            "options": {
                "endpoint": server.url,
                "uploadUrl": server.url + id_of(gone),
            },
        }
    )
    url = client.succeed()
    assert client.requests() == [("HEAD", 410), ("POST", 201), ("PATCH", 204)]
    assert_stored(server, url, source)


# -- a bad line ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["rst", "fin"])
@pytest.mark.parametrize("chunk_size", [None, 512 * 1024])
def test_cuts(
    server: ServerProcess,
    run_tus_js: RunTusJs,
    make_source: MakeSource,
    cut: Literal["rst", "fin"],
    chunk_size: int | None,
) -> None:
    """Every connection is cut after 400 kB; few retries do, as each of them gets on."""
    source = make_source(6 * MIB)
    options: Options = {"retryDelays": [0, 100, 100]}
    if chunk_size is not None:
        options["chunkSize"] = chunk_size
    plan = Plan(up=Way(cut_after=400_000, cut=cut))
    with FaultProxy(server.address, default=plan) as proxy:
        options["endpoint"] = proxy.url()
        client = run_tus_js({"source": from_file(source), "options": options})
        url = client.succeed()
        assert sum(link.cut.is_set() for link in proxy.links) >= 5
    assert ("HEAD", 200) in client.requests()
    assert offsets(client) == sorted(offsets(client))
    assert_stored(server, url, source)


def test_stall(make_server: MakeServer, run_tus_js: RunTusJs, make_source: MakeSource) -> None:
    """The line goes dead: the server ends the request, keeps the bytes, and a retry goes on."""
    server = make_server("--network-timeout", "4s")
    source = make_source(4 * MIB)
    with FaultProxy(server.address, default=Plan(up=Way(stall_after=2 * MIB))) as proxy:
        client = run_tus_js(
            {
                "source": from_file(source),
                "options": {"endpoint": proxy.url(), "retryDelays": [0, 100, 100]},
            }
        )
        stalled_links(proxy)
        proxy.heal()
        url = client.succeed()
    first, second = offsets(client)
    assert first == 0 < second < source.size
    assert_stored(server, url, source)


def test_slow_line(server: ServerProcess, run_tus_js: RunTusJs, make_source: MakeSource) -> None:
    source = make_source(256 * 1024)
    slow = Way(rate=200_000, delay=0.01)
    with FaultProxy(server.address, default=Plan(up=slow, down=slow)) as proxy:
        client = run_tus_js(
            {
                "source": from_file(source),
                "options": {"endpoint": proxy.url(), "chunkSize": 100_000},
            }
        )
        url = client.succeed()
    assert client.requests() == [("POST", 201), *[("PATCH", 204)] * 3]
    assert_stored(server, url, source)


def test_lost_last_response(
    server: ServerProcess, run_tus_js: RunTusJs, make_source: MakeSource
) -> None:
    """All bytes arrived, the 204 did not: the client learns by HEAD that it is done."""
    source = make_source(MIB)
    with FaultProxy(server.address) as proxy:
        proxy.plan(Plan(), Plan(down=Way(cut_after=10, cut="rst")))
        client = run_tus_js(
            {
                "source": from_file(source),
                "options": {
                    "endpoint": proxy.url(),
                    "retryDelays": [0, 100],
                    # One connection a request, whatever this version of Node does by default.
                    "headers": {"Connection": "close"},
                },
            }
        )
        url = client.succeed()
    assert client.requests() == [("POST", 201), ("HEAD", 200)]
    assert_stored(server, url, source)


def test_lost_response_of_the_creation(
    server: ServerProcess, run_tus_js: RunTusJs, make_source: MakeSource
) -> None:
    source = make_source(MIB)
    with FaultProxy(server.address) as proxy:
        proxy.plan(Plan(down=Way(cut_after=10, cut="rst")))
        client = run_tus_js(
            {
                "source": from_file(source),
                "options": {"endpoint": proxy.url(), "retryDelays": [0, 100]},
            }
        )
        url = client.succeed()
    assert client.requests() == [("POST", 201), ("PATCH", 204)]
    assert_stored(server, url, source)
