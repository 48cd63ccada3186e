"""Tokens, hooks, duplicates, pages of other origins, metrics and shutdown hold for Resumable Uploads for HTTP too."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.auth.people import SECRET, access, bearer, upload_token
from tests.conftest import MakeServer
from tests.ietf.url_session import UrlSession
from tests.support.certificate import make_certificate
from tests.support.ietf import VERSIONS, Ietf, announced, wait_told
from tests.support.server import ROOT, ServerProcess
from tests.support.tus import Tus, id_of, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Connection, ConnectionEnded

LARGE = 300_000
SPOKEN = VERSIONS[:-1]
ALICE, BOB = bearer(access()), bearer(access("bob"))


def named(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'inline; filename="{name}"'}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Tokens are needed, duplicates found, and a hook shapes responses."""
    env = {"TUSD_JWT_SECRET": SECRET}
    flags = (
        "--auth",
        "jwt",
        "--duplicates",
        "on",
        "--hook",
        str(ROOT / "tests/ietf/shaping_hooks.py"),
    )
    directory = tmp_path_factory.mktemp("guarded") / "uploads"
    with ServerProcess(directory, *flags, env=env) as process:
        yield process


@pytest.fixture
def ietf(guarded: ServerProcess) -> Ietf:
    return Ietf(guarded, 6)


# Tokens


def test_tokens_are_asked_for_before_the_first_byte(ietf: Ietf) -> None:
    for headers, status in (({}, 401), (bearer(access(scope="uploads:read")), 403)):
        with ietf.begin_creation(
            LARGE, headers={**headers, "Expect": "100-continue"}
        ) as connection:
            response = connection.read_response("POST")
        assert (response.status, response.interim) == (status, ())
        assert not ietf.is_complete(response)
    path = ietf.new(10, b"abc", ALICE)
    for headers, status in (({}, 401), (BOB, 404), (bearer(upload_token("0" * 32)), 404)):
        assert ietf.append(path, 3, b"d", headers=headers).status == status
        assert ietf.head(path, headers).status == status
        assert ietf.request("DELETE", path, headers).status == status
    assert ietf.head(path, ALICE)["Upload-Offset"] == "3"


def test_upload_tokens_come_with_the_url(ietf: Ietf) -> None:
    """Also in the interim response, as a client may never see another."""
    with ietf.begin_creation(LARGE, b"x" * 1000, headers=ALICE) as connection:
        interim = announced(connection)
        path, token = path_of(interim["Location"]), bearer(interim["Upload-Token"])
        ietf.wait_stored(path, 1000)
    assert ietf.head(path, token)["Upload-Offset"] == "1000"
    done = ietf.append(path, 1000, b"x" * (LARGE - 1000), complete=True, headers=token)
    assert done.status == 201


# Hooks


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_R7_hooks_shape_the_final_response(guarded: ServerProcess, version: int | None) -> None:
    ietf = Ietf(guarded, version)
    force = {**ALICE, **named("shaped.txt"), "Upload-Force": "true"}
    at_once = ietf.create(b"hello", headers=force)
    path = ietf.new(5, b"hel", force)
    in_pieces = ietf.append(path, 3, b"lo", complete=True, headers=ALICE)
    for response in (at_once, in_pieces):
        assert (response.status, response.body) == (200, b'{"bytes": 5}')
        assert response["Content-Type"] == "application/json"
        assert response["Upload-Offset"] == "5"
        assert ietf.is_complete(response)


def test_R15_a_hooks_refusal_is_the_answer_of_the_resource(ietf: Ietf) -> None:
    before = ietf.create(b"hello", headers={**ALICE, **named("refused.txt")})
    assert (before.status, before["X-Price"], before["Upload-Complete"]) == (402, "1", "?1")
    assert before.interim == ()
    after = ietf.create(b"hello", headers={**ALICE, **named("unfit.txt")})
    assert (after.status, after["Upload-Complete"]) == (422, "?1")
    assert after.body == b'{"reason": "unfit"}'
    path = path_of(after["Location"])
    assert ietf.head(path, ALICE)["Upload-Offset"] == "5"
    again = ietf.append(path, 5, b"", complete=True, headers=ALICE)
    assert (again.status, again["Upload-Complete"]) == (422, "?1")


# Duplicates


def test_a_duplicate_is_refused_with_problem_details(ietf: Ietf) -> None:
    twice = {**ALICE, **named("twice.txt")}
    assert ietf.create(b"hello", headers=twice).status == 201
    response = ietf.create(b"hello", headers=twice)
    assert (response.status, response["Upload-Complete"]) == (409, "?1")
    assert json.loads(response.body)["code"] == "ERR_DUPLICATE_UPLOAD"
    assert response.interim == ()
    # Of a page of another origin, of a client that sends the file in pieces, and of one that reads the reason.
    path = ietf.new(5, b"he", {**ALICE, **named("begun.txt")})
    begun = {**ALICE, **named("begun.txt")}
    for response in (
        ietf.create(b"hello", headers={**begun, "Origin": "http://a.example"}),
        ietf.create(b"hello", headers={**begun, "Accept": "application/problem+json"}),
        ietf.create(b"", complete=False, headers={**begun, "Upload-Length": "5"}),
        Ietf(ietf.server, None).create(b"hello", headers=begun),
    ):
        assert (response.status, response["Upload-Complete"]) == (409, "?0")
        assert (path_of(response["Location"]), response["Upload-Offset"]) == (path, "2")
    # Somebody else's is none.
    assert ietf.create(b"hello", headers={**BOB, **named("begun.txt")}).status == 201


@pytest.mark.parametrize("version", SPOKEN)
def test_R24_a_duplicate_is_resumed_by_a_client_below_the_application(
    guarded: ServerProcess, version: int
) -> None:
    ietf = Ietf(guarded, version)
    data = bytes(range(256)) * 2000
    headers = {**ALICE, **named(f"resumed-{version}.txt")}
    path = ietf.new(len(data), data[:1000], headers)
    with ietf.begin_creation(len(data), headers=headers) as connection:
        offer = announced(connection)
        assert path_of(offer["Location"]) == path
        assert offer["Upload-Draft-Interop-Version"] == str(version)
        with pytest.raises(ConnectionEnded):
            connection.read_response("POST")
    session = UrlSession(ietf, guarded.address, headers=headers)
    response = session.upload(data)
    assert ietf.is_complete(response)
    assert (session.losses, session.path) == (1, path)
    assert ietf.stored(path) == data


def test_files_of_the_same_size_and_type_are_no_duplicates(ietf: Ietf) -> None:
    for data in (b"hello", b"jello"):
        assert ietf.create(data, headers={**ALICE, "Content-Type": "text/plain"}).status == 201


# Pages, metrics, log


def test_pages_of_other_origins_may_speak_it(server: ServerProcess) -> None:
    ietf = Ietf(server, 6)
    asked = "upload-complete,upload-draft-interop-version,content-disposition,content-digest"
    preflight = ietf.request(
        "OPTIONS",
        ietf.collection,
        {
            "Origin": "http://a.example",
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": asked,
        },
    )
    assert "PUT" in preflight.items("Access-Control-Allow-Methods")
    allowed = {name.lower() for name in preflight.items("Access-Control-Allow-Headers")}
    assert set(asked.split(",")) <= allowed
    response = ietf.create(b"hello", headers={"Origin": "http://a.example"})
    exposed = set(response.items("Access-Control-Expose-Headers"))
    assert {
        "Upload-Complete",
        "Upload-Incomplete",
        "Upload-Offset",
        "Upload-Limit",
        "Location",
    } <= exposed
    refused = ietf.create(b"hello", headers={"Origin": "http://a.example", "Upload-Length": "9"})
    assert refused["Access-Control-Allow-Origin"] == "http://a.example"


def test_requests_are_counted_and_logged_by_protocol(make_server: MakeServer) -> None:
    server = make_server("--log-format", "json")
    tus = Tus(server)
    tus.new(5)
    for version in (3, 3, None):
        Ietf(server, version).create(b"hello")
    Ietf(server, None).create(b"hello", method="PUT")
    page = tus.get("/metrics").body.decode()
    assert 'tusd_requests_total{method="PUT"} 1.0\n' in page
    for protocol, count in (("tus", 1), ("ietf-3", 2), ("ietf", 2)):
        assert f'tusd_requests_by_protocol_total{{protocol="{protocol}"}} {count}.0\n' in page

    def seen() -> list[object]:
        lines = server.json_lines()
        return [line.get("protocol") for line in lines if line.get("event") == "request"]

    wait_until(lambda: len(seen()) >= 4, "the lines of four requests")
    assert seen()[:4] == [None, "ietf-3", "ietf-3", "ietf"]


def test_watching_does_not_end_a_request(server: ServerProcess) -> None:
    ietf = Ietf(server, 6)
    with ietf.begin_creation(LARGE, b"x" * 1000) as connection:
        path = path_of(announced(connection)["Location"])
        ietf.wait_stored(path, 1000)
        wanted = {"Accept": "application/vnd.tusd-py.progress+json"}
        assert json.loads(ietf.request("GET", path, wanted).body)["id"] == id_of(path)
        connection.send(b"x" * (LARGE - 1000))
        assert connection.read_response("POST").status == 201


def test_R6_over_a_unix_socket(make_server: MakeServer, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    ietf = Ietf(make_server("--unix-sock", path), 9)
    fields = {**ietf.marks(), **ietf.complete(True), "Content-Length": str(4 * LARGE)}
    with Connection(path) as connection:
        connection.send_head("POST", "/files/", fields)
        upload = announced(connection)["Location"]
        connection.send(b"x" * (2 * LARGE))
        wait_told(connection, 2 * LARGE)
    with Connection(path) as connection:
        status = connection.request("HEAD", path_of(upload), ietf.marks())
        assert status["Upload-Offset"] == str(2 * LARGE)


def test_R6_over_tls(make_server: MakeServer, tmp_path: Path) -> None:
    """Over TLS the body takes the same way, and a close without a response is one of the connection."""
    certificate, key = make_certificate(tmp_path)
    server = make_server("--tls-certificate", str(certificate), "--tls-key", str(key))
    trusting = ssl.create_default_context(cafile=str(certificate))
    ietf = Ietf(server, 8)
    fields = {**ietf.marks(), **ietf.complete(True), "Content-Length": str(4 * LARGE)}
    with Connection(server.address, tls=trusting) as connection:
        connection.send_head("POST", ietf.collection, fields)
        path = path_of(announced(connection)["Location"])
        connection.send(b"x" * (2 * LARGE))
        wait_told(connection, 2 * LARGE)
        with Connection(server.address, tls=trusting) as other:
            status = other.request("HEAD", path, ietf.marks())
        assert status["Upload-Offset"] == str(2 * LARGE)
        with pytest.raises(ConnectionError):
            connection.read_response("POST")


# Memory


@pytest.mark.parametrize("protocol", ["tus", "ietf"])
def test_requests_leave_no_cycles_with_their_buffers(
    make_server: MakeServer, tmp_path: Path, protocol: str
) -> None:
    """The garbage collector counts objects and not bytes, so that megabytes would wait for it."""
    hook = tmp_path / "hook.py"
    hook.write_text(
        """
import gc, sys
def start(context):
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
def post_finish(event):
    if event.upload.metadata.get("filename") == b"count":
        gc.collect()
        ours = [each for each in gc.garbage if type(each).__module__.startswith("tusd_py")]
        gc.garbage.clear()
        print(f"{event.upload.id}: {len(ours)} unreachable objects", file=sys.stderr, flush=True)
"""
    )
    server = make_server("--hook", str(hook), "--hooks-delivery", "server")
    ietf, uploads = Ietf(server, 9), 30

    def count() -> int:
        upload_id = id_of(ietf.create(b"", headers=named("count"))["Location"])
        return int(server.wait_for_line(rf"{upload_id}: (\d+) unreachable objects")[1])

    count()
    tus = Tus(server)
    for _ in range(uploads):
        if protocol == "ietf":
            path = ietf.new(body=b"hello")
            ietf.begin_append(path, 5, LARGE, b"x" * 50_000).close()
        else:
            path = tus.new(LARGE + 5, body=b"hello")
            tus.begin_patch(path, 5, LARGE, b"x" * 50_000).close()
        offset = int(tus.head(path)["Upload-Offset"])
        if protocol == "ietf":
            last = ietf.append(path, offset, b"x" * LARGE, complete=True)
        else:
            last = tus.patch(path, offset, b"x" * (LARGE + 5 - offset))
        assert last.status in (201, 204)
        assert tus.get(path).status == 200
        assert tus.get(f"{path}0").status == 404
    assert count() < uploads
