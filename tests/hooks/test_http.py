"""Hooks over HTTP with a real server and a real endpoint: calls, and effects of responses."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import MakeServer
from tests.hooks.conftest import ALL_EVENTS, QUICK, MakeTus
from tests.hooks.endpoint import Call, Document, Endpoint, Reply
from tests.support.certificate import make_certificate
from tests.support.files import files_below
from tests.support.server import environment
from tests.support.tus import Tus, id_of, metadata, path_of
from tests.support.waiting import wait_until

METADATA = {"Upload-Metadata": metadata(filename="a.txt", odd=b"\xff")}


def uploads(tus: Tus) -> list[str]:
    """All that lies in the upload directory, beside what the server keeps for itself."""
    root = tus.server.upload_dir
    paths = (str(path.relative_to(root)) for path in files_below(root))
    return sorted(path for path in paths if not path.startswith(".tusd-py"))


def logged(tus: Tus, pattern: str) -> None:
    """Wait until the server has logged a line that matches, in this test."""
    server = tus.server
    since = len(server.lines) - len(server.lines_since_mark())
    server.wait_for_line(pattern, timeout=30, since=since)


def errors_of(tus: Tus, event_type: str) -> int:
    """The number of failed hooks for events of a type, by the server's metrics."""
    text = tus.request("GET", "/metrics").text
    found = re.search(
        rf'^tusd_hook_errors_total{{hooktype="{event_type}"}} (\d+)', text, re.MULTILINE
    )
    return int(found[1]) if found else 0


# --- what is sent ---------------------------------------------------------------------------------


def told(calls: Iterable[Call]) -> list[tuple[str, str]]:
    return [(call.type, call.request["Method"]) for call in calls]


def test_every_event_is_told_in_tusds_format(hooked: MakeTus, endpoint: Endpoint) -> None:
    tus = hooked("--hooks-enabled-events", ALL_EVENTS)
    path = tus.finished(b"hello", {**METADATA, "X-Request-ID": "abc"})
    tus.head(path)
    tus.get(f"{path}?a=b%20c")
    tus.delete(path)
    endpoint.wait_for("post-terminate")
    # A post- event may be told while the next request is already under way.
    assert told(call for call in endpoint.calls if call.type.startswith("pre-")) == [
        ("pre-create", "POST"),
        ("pre-access", "PATCH"),
        ("pre-finish", "PATCH"),
        ("pre-access", "HEAD"),
        ("pre-access", "GET"),
        ("pre-access", "DELETE"),
        ("pre-terminate", "DELETE"),
    ]
    assert told(call for call in endpoint.calls if call.type.startswith("post-")) == [
        ("post-create", "POST"),
        ("post-receive", "PATCH"),
        ("post-finish", "PATCH"),
        ("post-terminate", "DELETE"),
    ]
    types = endpoint.types()
    for what in ("create", "finish", "terminate"):
        assert types.index(f"pre-{what}") < types.index(f"post-{what}")
    (created,), (finished,) = endpoint.of("pre-create"), endpoint.of("post-finish")
    port = created.request["RemoteAddr"].rpartition(":")[2]
    assert created.raw.decode() == json.dumps(
        {
            "Type": "pre-create",
            "Event": {
                "Upload": {
                    "ID": "",
                    "Size": 5,
                    "SizeIsDeferred": False,
                    "Offset": 0,
                    "MetaData": {"filename": "a.txt", "odd": "\ufffd"},
                    "IsPartial": False,
                    "IsFinal": False,
                    "PartialUploads": None,
                    "Storage": None,
                },
                "HTTPRequest": {
                    "Method": "POST",
                    "URI": "/files/",
                    "RemoteAddr": f"127.0.0.1:{port}",
                    "Header": {
                        "Content-Length": ["0"],
                        "Host": [f"127.0.0.1:{tus.server.port}"],
                        "Tus-Resumable": ["1.0.0"],
                        "Upload-Length": ["5"],
                        "Upload-Metadata": [METADATA["Upload-Metadata"]],
                        "X-Request-Id": ["abc"],
                    },
                },
            },
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )
    assert finished.upload["ID"] == id_of(path)
    assert finished.upload["Offset"] == 5
    assert list(finished.upload["Storage"].items()) == [
        ("InfoPath", f"{tus.server.info_file(id_of(path))}"),
        ("Path", f"{tus.server.data_file(id_of(path))}"),
        ("Type", "filestore"),
    ]
    assert finished.request["URI"] == path
    assert endpoint.of("pre-access")[2].request["URI"] == f"{path}?a=b%20c"


def test_lengths_that_are_not_known_and_parts(hooked: MakeTus, endpoint: Endpoint) -> None:
    tus = hooked("--hooks-enabled-events", "pre-create,post-finish")
    tus.new(None)
    (deferred,) = endpoint.of("pre-create")
    assert (deferred.upload["Size"], deferred.upload["SizeIsDeferred"]) == (0, True)
    part = tus.finished(b"hello", {"Upload-Concat": "partial"})
    final = path_of(tus.create(headers={"Upload-Concat": f"final;{part}"})["Location"])
    (finished,) = endpoint.wait_for("post-finish")
    assert finished.upload["ID"] == id_of(final)
    assert finished.upload["IsFinal"] is True
    assert finished.upload["PartialUploads"] == [id_of(part)]
    assert [call.upload["IsPartial"] for call in endpoint.of("pre-create")] == [False, True, False]


def test_tusds_default_events_are_on_and_no_others(hooked: MakeTus, endpoint: Endpoint) -> None:
    tus = hooked("--progress-hooks-interval", "1h")
    tus.delete(tus.finished(b"hello"))
    endpoint.wait_for("post-terminate")
    assert endpoint.types() == [
        *("pre-create", "post-create", "post-receive", "post-finish", "post-terminate")
    ]
    assert 'hooktype="pre-access"' not in tus.request("GET", "/metrics").text


def test_only_enabled_events_are_told(hooked: MakeTus, endpoint: Endpoint) -> None:
    tus = hooked("--hooks-enabled-events", "post-finish")
    tus.finished(b"hello")
    endpoint.wait_for("post-finish")
    assert endpoint.types() == ["post-finish"]


def test_an_expired_upload_is_told(hooked: MakeTus, endpoint: Endpoint) -> None:
    tus = hooked(
        *("--hooks-enabled-events", "post-expire"),
        *("--expire-after", "100ms", "--sweep-interval", "50ms"),
    )
    path = tus.new(5)
    (expired,) = endpoint.wait_for("post-expire")
    assert expired.upload["ID"] == id_of(path)


def test_header_fields_are_forwarded_by_name(hooked: MakeTus, endpoint: Endpoint) -> None:
    tus = hooked("--hooks-http-forward-headers", "Cookie,X-Trace,Content-Length,X-Missing")
    tus.create(5, headers={"cookie": "a=b", "x-trace": "42", "Authorization": "secret"})
    (call,) = endpoint.of("pre-create")
    assert (call.headers["cookie"], call.headers["x-trace"]) == ("a=b", "42")
    assert call.headers["content-length"] == str(len(call.raw))
    assert call.headers["content-type"] == "application/json"
    assert not {"authorization", "x-missing"} & set(call.headers)
    logged(tus, "Content-Length cannot be forwarded")


def test_a_name_and_a_password_in_the_url_are_sent_and_never_logged(
    make_server: MakeServer, endpoint: Endpoint
) -> None:
    url = endpoint.url.replace("://", "://me:p%40ss@") + "?key=hidden"
    tus = Tus(make_server("--hooks-http", url, *QUICK))
    endpoint.script("pre-create", Reply(status=404))
    assert tus.create(5).status == 500
    (call,) = endpoint.of("pre-create")
    assert call.headers["authorization"] == "Basic bWU6cEBzcw=="
    assert call.path == "/hooks?key=hidden"
    logged(tus, "answered 404")
    assert not re.search(r"p%40ss|p@ss|hidden", tus.server.log())


def test_a_forwarded_authorization_goes_before_that_of_the_url(
    make_server: MakeServer, endpoint: Endpoint
) -> None:
    url = endpoint.url.replace("://", "://me:secret@")
    tus = Tus(make_server("--hooks-http", url, "--hooks-http-forward-headers", "authorization"))
    tus.create(5, headers={"Authorization": "Bearer x"})
    (call,) = endpoint.of("pre-create")
    assert call.headers["authorization"] == "Bearer x"


def test_cookies_of_an_endpoint_are_not_kept(make_server: MakeServer, endpoint: Endpoint) -> None:
    # Clients keep no cookies of addresses; of names they would.
    tus = Tus(make_server("--hooks-http", endpoint.url.replace("127.0.0.1", "localhost")))
    endpoint.script("pre-create", Reply(headers={"Set-Cookie": "session=1"}))
    tus.new(5)
    tus.new(5)
    calls = endpoint.wait_for("pre-create", 2)
    assert all("cookie" not in call.headers for call in calls)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    hooked: MakeTus, endpoint: Endpoint, nobody: str
) -> None:
    tus = hooked(env={"HTTP_PROXY": nobody})
    tus.new(5)
    assert endpoint.of("pre-create")


def test_a_proxy_of_the_environment_is_asked_for_other_machines(
    make_server: MakeServer, endpoint: Endpoint
) -> None:
    proxy = endpoint.url.replace("://", "://me:p%40ss@")
    url = "http://hooks.invalid/here"
    tus = Tus(make_server("--hooks-http", url, env={"HTTP_PROXY": proxy}))
    tus.new(5)
    (call,) = endpoint.of("pre-create")
    assert call.path == url
    assert call.headers["proxy-authorization"] == "Basic bWU6cEBzcw=="
    assert "authorization" not in call.headers
    bypassing = Tus(
        make_server("--hooks-http", url, *QUICK, env={"HTTP_PROXY": proxy, "NO_PROXY": ".invalid"})
    )
    assert bypassing.create(5).status == 500
    assert len(endpoint.of("pre-create")) == 1


def test_certificates_are_verified(make_server: MakeServer, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Endpoint(context) as endpoint:
        flags = ("--hooks-http", endpoint.url, *QUICK)
        trusting = Tus(make_server(*flags, env={"SSL_CERT_FILE": str(certificate)}))
        assert trusting.create(5).status == 201
        assert endpoint.of("pre-create")
        endpoint.forget()
        others = Tus(make_server(*flags))
        assert others.create(5).status == 500
        logged(others, "pre-create hook .* failed .*(?i:certificate)")
        assert endpoint.of("pre-create") == []


def test_connections_are_used_again(hooked: MakeTus, endpoint: Endpoint) -> None:
    tus = hooked("--hooks-enabled-events", "pre-create")
    for _ in range(20):
        tus.new(5)
    for earlier, later in pairwise(endpoint.calls):
        # The client keeps a connection for 4 seconds; what comes later needs another.
        assert later.connection == earlier.connection or later.at - earlier.at > 4


# --- what an answer can do ------------------------------------------------------------------------


def test_a_creation_is_rejected_with_status_headers_and_body(
    hooked: MakeTus, endpoint: Endpoint
) -> None:
    details = {
        "StatusCode": 422,
        "Body": '{"message":"no such project"}',
        "Header": {"Content-Type": "application/json", "X-Reason": "project"},
    }
    endpoint.script("pre-create", Reply(body={"RejectUpload": True, "HTTPResponse": details}))
    tus = hooked("--hooks-enabled-events", "pre-create,post-create")
    response = tus.create(5)
    assert response.status == 422
    assert response.body == b'{"message":"no such project"}'
    assert response["Content-Type"] == "application/json"
    assert response["X-Reason"] == "project"
    assert uploads(tus) == []
    assert endpoint.types() == ["pre-create"]


def test_a_body_without_a_media_type_is_sent_as_it_is(hooked: MakeTus, endpoint: Endpoint) -> None:
    answer = {"RejectUpload": True, "HTTPResponse": {"StatusCode": 403, "Body": "go away"}}
    endpoint.script("pre-create", Reply(body=answer))
    response = hooked().create(5)
    assert (response.status, response.text) == (403, "go away")
    assert response["Content-Type"].startswith("text/plain")


def test_a_rejection_without_details_is_a_400(hooked: MakeTus, endpoint: Endpoint) -> None:
    endpoint.script("pre-create", Reply(body={"RejectUpload": True}))
    response = hooked().create(5)
    assert (response.status, response.code) == (400, "ERR_UPLOAD_REJECTED")


def test_names_count_without_case_as_in_go(hooked: MakeTus, endpoint: Endpoint) -> None:
    answer = {"rejectupload": True, "httpResponse": {"statuscode": 418}}
    endpoint.script("pre-create", Reply(body=answer))
    assert hooked().create(5).status == 418


def test_a_rejection_may_come_with_an_error_status(hooked: MakeTus, endpoint: Endpoint) -> None:
    answer = {"RejectUpload": True, "HTTPResponse": {"StatusCode": 401}}
    endpoint.script("pre-create", Reply(status=403, body=answer))
    assert hooked().create(5).status == 401


@pytest.mark.parametrize("status", [302, 400, 403, 404])
@pytest.mark.parametrize("body", ["{}", "nothing here", '{"StopUpload": true}'])
def test_any_other_answer_with_an_error_status_is_a_failure(
    hooked: MakeTus, endpoint: Endpoint, status: int, body: str
) -> None:
    elsewhere = {"Location": f"{endpoint.url}/elsewhere"}
    endpoint.script("pre-create", Reply(status=status, body=body, headers=elsewhere))
    tus = hooked()
    before, failed = uploads(tus), errors_of(tus, "pre-create")
    assert tus.create(5).status == 500
    assert uploads(tus) == before
    logged(tus, f"answered {status}")
    assert errors_of(tus, "pre-create") == failed + 1
    # Neither tried again nor redirected.
    assert [call.path for call in endpoint.of("pre-create")] == ["/hooks"]


def test_the_id_is_set_and_may_have_directories(hooked: MakeTus, endpoint: Endpoint) -> None:
    endpoint.script("pre-create", Reply(body={"ChangeFileInfo": {"ID": "2026/kant/scan-1"}}))
    tus = hooked()
    response = tus.create(5)
    path = path_of(response["Location"])
    assert path == "/files/2026/kant/scan-1"
    assert tus.patch(path, 0, b"hello").status == 204
    assert (tus.server.upload_dir / "2026/kant/scan-1").read_bytes() == b"hello"
    endpoint.wait_for("post-finish", where=lambda call: call.upload["ID"] == "2026/kant/scan-1")
    assert tus.get(path).body == b"hello"


@pytest.mark.parametrize("upload_id", ["../out", "/out", "a//b", "a/", ".hidden", "x.info", "a\\b"])
def test_an_id_that_cannot_be_is_a_failure(
    hooked: MakeTus, endpoint: Endpoint, upload_id: str
) -> None:
    endpoint.script("pre-create", Reply(body={"ChangeFileInfo": {"ID": upload_id}}))
    tus = hooked()
    before = uploads(tus)
    assert tus.create(5).status == 500
    assert uploads(tus) == before


def test_metadata_is_replaced(hooked: MakeTus, endpoint: Endpoint) -> None:
    answer = {"ChangeFileInfo": {"MetaData": {"filename": "b.txt", "owner": "ä", "bare": ""}}}
    endpoint.script("pre-create", Reply(body=answer))
    tus = hooked()
    path = tus.new(5, headers=METADATA)
    assert tus.head(path)["Upload-Metadata"] == "filename Yi50eHQ=,owner w6Q=,bare"
    (created,) = endpoint.wait_for(
        "post-create", where=lambda call: call.upload["ID"] == id_of(path)
    )
    assert created.upload["MetaData"] == {"filename": "b.txt", "owner": "ä", "bare": ""}


def test_metadata_is_taken_away_by_an_empty_object_and_kept_by_null(
    hooked: MakeTus, endpoint: Endpoint
) -> None:
    empty: Document = {"ChangeFileInfo": {"MetaData": {}}}
    null: Document = {"ChangeFileInfo": {"MetaData": None}}
    endpoint.script("pre-create", Reply(body=empty), Reply(body=null))
    tus = hooked()
    assert "Upload-Metadata" not in tus.head(tus.new(5, headers=METADATA))
    assert tus.head(tus.new(5, headers=METADATA))["Upload-Metadata"] == METADATA["Upload-Metadata"]


@pytest.mark.parametrize(
    "given", ["./by-name/scan.dcm", "by-name/other.dcm", "{root}/by-name/third.dcm"]
)
def test_the_storage_path_is_set(hooked: MakeTus, endpoint: Endpoint, given: str) -> None:
    tus = hooked()
    wanted = given.format(root=tus.server.upload_dir)
    answer = {"ChangeFileInfo": {"Storage": {"Path": wanted}}}
    endpoint.script("pre-create", Reply(body=answer))
    path = tus.finished(b"hello")
    file = tus.server.upload_dir / "by-name" / given.rpartition("/")[2]
    assert file.read_bytes() == b"hello"
    assert not tus.server.data_file(id_of(path)).exists()
    (finished,) = endpoint.wait_for(
        "post-finish", where=lambda call: call.upload["ID"] == id_of(path)
    )
    assert finished.upload["Storage"]["Path"] == str(file)
    assert finished.upload["Storage"]["InfoPath"] == str(tus.server.info_file(id_of(path)))
    assert tus.get(path).body == b"hello"


@pytest.mark.parametrize(
    "outside", ["../out", "a/../../out", "{parent}/out", "/etc/tusd", "{root}/../out", ".tusd-py/x"]
)
def test_a_storage_path_that_leads_out_is_a_failure(
    hooked: MakeTus, endpoint: Endpoint, outside: str
) -> None:
    tus = hooked()
    root = tus.server.upload_dir
    before = sorted(root.parent.rglob("*"))
    path = outside.format(root=root, parent=root.parent)
    endpoint.script("pre-create", Reply(body={"ChangeFileInfo": {"Storage": {"Path": path}}}))
    assert tus.create(5).status == 500
    assert sorted(root.parent.rglob("*")) == before
    logged(tus, "ERROR.*pre-create hook")


def test_the_response_to_a_creation_is_shaped(hooked: MakeTus, endpoint: Endpoint) -> None:
    shape = {"Body": "welcome", "Header": {"X-Project": "42", "Content-Length": "1000"}}
    endpoint.script("pre-create", Reply(body={"HTTPResponse": shape}))
    tus = hooked()
    response = tus.create(5)
    assert (response.status, response.text, response["X-Project"]) == (201, "welcome", "42")
    assert tus.offset(path_of(response["Location"])) == 0


def test_the_response_to_the_last_bytes_is_shaped(hooked: MakeTus, endpoint: Endpoint) -> None:
    shape = {"StatusCode": 200, "Body": '{"study":7}', "Header": {"Link": "<https://x/7>"}}
    endpoint.script("pre-finish", Reply(body={"HTTPResponse": shape}))
    tus = hooked("--hooks-enabled-events", "pre-finish")
    path = tus.new(10)
    assert tus.patch(path, 0, b"hello").status == 204
    response = tus.patch(path, 5, b"world")
    assert (response.status, response.text, response["Link"]) == (
        200,
        '{"study":7}',
        "<https://x/7>",
    )
    assert response["Upload-Offset"] == "10"


def test_a_failed_pre_finish_runs_again(hooked: MakeTus, endpoint: Endpoint) -> None:
    endpoint.script("pre-finish", Reply(status=404), Reply())
    tus = hooked("--hooks-enabled-events", "pre-finish,post-finish")
    # It would finish the upload.
    tus.server.wait_for_first_sweep()
    path = tus.new(5)
    assert tus.patch(path, 0, b"hello").status == 500
    assert endpoint.types() == ["pre-finish"]
    assert tus.patch(path, 5, b"").status == 204
    endpoint.wait_for("post-finish")


def test_a_termination_is_rejected(hooked: MakeTus, endpoint: Endpoint) -> None:
    answer = {"RejectTermination": True, "HTTPResponse": {"StatusCode": 409}}
    endpoint.script("pre-terminate", Reply(body=answer), Reply(body={"RejectUpload": True}))
    tus = hooked("--hooks-enabled-events", "pre-terminate")
    path = tus.new(5)
    response = tus.delete(path)
    assert (response.status, response.code) == (409, "ERR_UPLOAD_TERMINATION_REJECTED")
    assert tus.offset(path) == 0
    # The field for creations means nothing here.
    assert tus.delete(path).status == 204


@pytest.mark.parametrize("method", ["HEAD", "PATCH", "GET", "DELETE"])
def test_access_is_rejected(hooked: MakeTus, endpoint: Endpoint, method: str) -> None:
    tus = hooked("--hooks-enabled-events", "pre-access")
    path = tus.finished(b"hello") if method == "GET" else tus.new(5)
    answer: Document = {"RejectAccess": True, "HTTPResponse": {"StatusCode": 403}}
    endpoint.script("pre-access", Reply(body=answer), Reply(body={"RejectAccess": True}), Reply())
    for status in (403, 404):
        headers = tus.patch_headers(0)
        body = b"hello" if method == "PATCH" else None
        response = tus.request(method, path, headers, body)
        assert response.status == status
        if method != "HEAD" and status == 404:
            assert response.code == "ERR_UPLOAD_NOT_FOUND"
    assert {call.request["Method"] for call in endpoint.of("pre-access")[-2:]} == {method}
    assert tus.offset(path) == (5 if method == "GET" else 0)


def test_a_running_upload_is_stopped(hooked: MakeTus, endpoint: Endpoint) -> None:
    answer: Document = {
        "StopUpload": True,
        "HTTPResponse": {"StatusCode": 410, "Body": "the project is gone"},
    }
    endpoint.script("post-receive", Reply(), Reply(body=answer))
    tus = hooked("--progress-hooks-interval", "20ms")
    path = tus.new(1_000_000)
    with tus.begin_patch(path, 0, 1_000_000, b"x") as patch:

        def asked_twice() -> bool:
            with suppress(ConnectionError):
                patch.send(b"x")
            return len(endpoint.of("post-receive")) >= 2

        wait_until(asked_twice, "two calls", 30)
        response = patch.response()
    assert (response.status, response.text) == (410, "the project is gone")
    first = endpoint.of("post-receive")[0]
    assert first.upload["Offset"] > 0
    assert first.upload["ID"] == id_of(path)


def test_every_request_with_bytes_is_told_of_however_short_it_is(
    hooked: MakeTus, endpoint: Endpoint
) -> None:
    tus = hooked("--progress-hooks-interval", "1h")
    created = tus.create(12, body=b"abc")
    path = path_of(created["Location"])
    endpoint.wait_for("post-receive")
    with tus.begin_patch(path, 3, 5, b"de") as cut:
        cut.wait_stored()
    wait_until(lambda: len(endpoint.of("post-receive")) == 2, "that of the cut one")
    # Nothing new comes with these.
    assert tus.patch(path, 5, b"").status == 204
    assert tus.patch(path, 4, b"x").status == 409
    wrong = {"Upload-Checksum": "sha1 AAAAAAAAAAAAAAAAAAAAAAAAAAA="}
    assert tus.patch(path, 5, b"xyz", wrong).status == 460
    assert tus.patch(path, 5, b"fghijkl").status == 204
    endpoint.wait_for("post-finish")
    assert [call.upload["Offset"] for call in endpoint.of("post-receive")] == [3, 5, 12]
    types = endpoint.types()
    assert types[-2:] == ["post-receive", "post-finish"]


def test_while_hooks_are_slow_only_the_latest_progress_waits(
    hooked: MakeTus, endpoint: Endpoint
) -> None:
    let_go = threading.Event()
    endpoint.script("post-receive", Reply(hold=let_go))
    tus = hooked("--progress-hooks-interval", "1h")
    path = tus.new(100)
    try:
        for offset in range(100):
            assert tus.patch(path, offset, b"x").status == 204
            if not offset:
                endpoint.wait_for("post-receive")
    finally:
        let_go.set()
    endpoint.wait_for("post-finish")
    assert [call.upload["Offset"] for call in endpoint.of("post-receive")] == [1, 100]


def test_a_slow_answer_holds_no_bytes_up(hooked: MakeTus, endpoint: Endpoint) -> None:
    let_go = threading.Event()
    endpoint.script("post-receive", Reply(hold=let_go))
    tus = hooked("--progress-hooks-interval", "20ms")
    path = tus.new(1_000_000)
    try:
        with tus.begin_patch(path, 0, 1_000_000, b"x") as patch:

            def asked() -> bool:
                patch.send(b"x")
                return bool(endpoint.of("post-receive"))

            wait_until(asked, "a call", 30)
            patch.send(b"y" * (1_000_000 - patch.received_to))
            assert patch.response().status == 204
        assert len(endpoint.of("post-receive")) == 1
    finally:
        let_go.set()
    endpoint.wait_for("post-finish")


# --- failures -------------------------------------------------------------------------------------


def test_a_call_is_tried_again_after_5xx(hooked: MakeTus, endpoint: Endpoint) -> None:
    endpoint.script("pre-create", Reply(status=500), Reply(status=503), Reply())
    tus = hooked("--hooks-http-backoff", "200ms", "--hooks-enabled-events", "pre-create")
    tus.new(5)
    first, second, third = endpoint.calls
    assert second.at - first.at >= 0.19
    assert third.at - second.at >= 0.19
    assert first.raw == second.raw == third.raw
    assert len({call.headers["hook-event-id"] for call in endpoint.calls}) == 1
    tus.new(5)
    assert endpoint.calls[3].headers["hook-event-id"] != first.headers["hook-event-id"]
    assert errors_of(tus, "pre-create") == 0


def test_a_call_is_tried_again_when_the_connection_breaks(
    hooked: MakeTus, endpoint: Endpoint
) -> None:
    endpoint.script("pre-create", Reply(cut=True), Reply(cut=True), Reply())
    hooked().new(5)
    assert len(endpoint.of("pre-create")) == 3


def test_after_the_last_try_it_is_a_failure(hooked: MakeTus, endpoint: Endpoint) -> None:
    endpoint.script("pre-create", Reply(status=502, body="bad gateway"))
    tus = hooked("--hooks-http-retry", "2")
    assert tus.create(5).status == 500
    assert len(endpoint.of("pre-create")) == 2
    assert uploads(tus) == []
    logged(tus, "answered 502: .*bad gateway.*tried 2 times")


def test_nobody_waits_for_ever(hooked: MakeTus, endpoint: Endpoint) -> None:
    never = threading.Event()
    endpoint.script("pre-create", Reply(status=500), Reply(hold=never))
    # It is one time-out for both tries, and must not be over before the second.
    tus = hooked("--hooks-http-timeout", "3s")
    try:
        assert tus.create(5).status == 500
    finally:
        never.set()
    assert uploads(tus) == []
    logged(tus, r"no answer within 3 s; before that: answered 500")


def test_an_endpoint_that_is_down_refuses_creations(make_server: MakeServer, nobody: str) -> None:
    tus = Tus(make_server("--hooks-http", nobody, *QUICK))
    response = tus.create(5)
    assert (response.status, response.code) == (500, "ERR_INTERNAL_SERVER_ERROR")
    assert nobody not in response.text
    assert uploads(tus) == []
    logged(tus, "pre-create hook .* failed .*tried 3 times")
    assert errors_of(tus, "pre-create") == 1


def test_an_endpoint_that_is_down_does_not_fail_what_has_happened(
    make_server: MakeServer, nobody: str
) -> None:
    events = ("--hooks-enabled-events", "post-create,post-receive,post-finish,post-terminate")
    tus = Tus(make_server("--hooks-http", nobody, *QUICK, *events))
    path = tus.finished(b"hello")
    assert tus.delete(path).status == 204
    for event_type in ("post-create", "post-finish", "post-terminate"):
        logged(tus, f"{event_type} hook .* failed")
        assert errors_of(tus, event_type) == 1


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}])
def test_a_large_answer_is_a_failure(
    hooked: MakeTus, endpoint: Endpoint, headers: dict[str, str]
) -> None:
    fits = '{"x": "' + "y" * (5120 - 9) + '"}'
    assert len(fits) == 5120
    endpoint.script("pre-create", Reply(body=fits), Reply(body=fits + " ", headers=headers))
    tus = hooked()
    assert tus.create(5).status == 201
    assert tus.create(5).status == 500
    logged(tus, "the answer is larger than 5120 bytes")
    assert len(endpoint.of("pre-create")) == 2


def test_the_limit_of_an_answer_is_a_setting(hooked: MakeTus, endpoint: Endpoint) -> None:
    endpoint.script("pre-create", Reply(body=json.dumps({"x": "y" * 10_000})))
    assert hooked("--hooks-http-size-limit", "20kB").create(5).status == 201


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "the answer is empty"),
        ("<html>", "the answer is not JSON"),
        ("[]", "the answer must be an object, not a list"),
        ('{"RejectUpload": "yes"}', "RejectUpload must be true or false, not text"),
        ('{"HTTPResponse": {"StatusCode": 99}}', "StatusCode must be from 200 to 599, not 99"),
        ('{"HTTPResponse": {"Header": {"A": "b\\r\\nC: d"}}}', "Header.A has control characters"),
        ('{"ChangeFileInfo": {"MetaData": {"a b": "c"}}}', "has the key 'a b'"),
    ],
)
def test_a_malformed_answer_is_a_failure(
    hooked: MakeTus, endpoint: Endpoint, body: str, reason: str
) -> None:
    endpoint.script("pre-create", Reply(body=body))
    tus = hooked()
    before = uploads(tus)
    assert tus.create(5).status == 500
    assert uploads(tus) == before
    logged(tus, re.escape(reason))


def test_no_content_is_an_answer(hooked: MakeTus, endpoint: Endpoint) -> None:
    endpoint.script("pre-create", Reply(status=204, body=""))
    assert hooked().create(5).status == 201


def test_what_is_answered_to_other_events_is_ignored(hooked: MakeTus, endpoint: Endpoint) -> None:
    for event_type in ("post-create", "post-finish"):
        endpoint.script(event_type, Reply(body="thank you" * 1000))
    tus = hooked("--hooks-enabled-events", "post-create,post-finish")
    tus.finished(b"hello")
    endpoint.wait_for("post-finish")
    tus.server.terminate()
    assert "failed" not in tus.server.log()


def test_a_slow_hook_holds_up_nobody_else(hooked: MakeTus, endpoint: Endpoint) -> None:
    let_go = threading.Event()
    endpoint.script("pre-create", *[Reply(hold=let_go)] * 5, Reply())
    tus = hooked()
    with ThreadPoolExecutor(5) as pool:
        slow = [pool.submit(tus.create, 5) for _ in range(5)]
        endpoint.wait_for("pre-create", 5)
        try:
            tus.finished(b"hello")
            assert not any(each.done() for each in slow)
        finally:
            let_go.set()
        assert [each.result().status for each in slow] == [201] * 5


# --- several endpoints ----------------------------------------------------------------------------


def test_several_endpoints_are_asked_in_turn(make_server: MakeServer) -> None:
    with Endpoint() as first, Endpoint() as second:
        tus = Tus(make_server("--hooks-http", f"{first.url},{second.url}", *QUICK))
        first.script("pre-create", Reply(body={"ChangeFileInfo": {"MetaData": {"a": "1"}}}))
        second.script("pre-create", Reply(body={"ChangeFileInfo": {"ID": "mine"}}))
        path = tus.finished(b"hello", METADATA)
        assert path == "/files/mine"
        assert tus.head(path)["Upload-Metadata"] == "a MQ=="
        assert second.calls[0].upload["MetaData"] == {"a": "1"}
        first.wait_for("post-finish")
        second.wait_for("post-finish")
        assert first.calls[0].headers["hook-event-id"] == second.calls[0].headers["hook-event-id"]

        first.script("pre-create", Reply(body={"RejectUpload": True}))
        assert tus.create(5).status == 400
        assert len(first.of("pre-create")) == 2
        assert len(second.of("pre-create")) == 1


def test_one_endpoint_that_is_down_keeps_nothing_from_the_other(
    make_server: MakeServer, endpoint: Endpoint, nobody: str
) -> None:
    urls = f"{nobody},{endpoint.url}"
    tus = Tus(make_server("--hooks-http", urls, "--hooks-enabled-events", "post-finish", *QUICK))
    tus.finished(b"hello")
    endpoint.wait_for("post-finish")
    logged(tus, "post-finish hook .* failed")


# --- starting -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--hooks-http", "example.org/hooks"), "give URLs such as"),
        (("--hooks-http", "ftp://example.org/"), "give URLs such as"),
        (("--hooks-http", "http:///hooks"), "give URLs such as"),
        (("--hooks-http", "http://h:99999/"), "give URLs such as"),
        (("--hooks-http", "http://h/ x"), "give URLs such as"),
        (("--hooks-enabled-events", "pre-creat"), "give one or more of pre-create"),
        (("--hooks-http-secret", "short"), "give at least 16 characters"),
        (("--hooks-http", "http://h", "--hooks-http-timeout", "1m"), "does not fit into"),
    ],
)
def test_settings_that_cannot_be(
    make_server: MakeServer, flags: tuple[str, ...], reason: str
) -> None:
    server = make_server(*flags, launch=True)
    assert server.wait() == 2
    assert reason in server.log()


def test_what_is_secret_is_not_shown(tmp_path: Path) -> None:
    url = "https://me:pass@example.org/hooks,https://token@example.org/"
    secret = {"TUSD_HOOKS_HTTP_SECRET": "0123456789abcdef"}
    for way in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "tusd_py", "config", *way, "--hooks-http", url],
            capture_output=True,
            text=True,
            check=True,
            env=environment(secret),
        )
        assert "https://********@example.org/hooks" in done.stdout
        assert not re.search("pass|token@|0123456789abcdef", done.stdout)


def test_the_endpoint_need_not_be_there_at_start(
    make_server: MakeServer, tmp_path: Path, nobody: str
) -> None:
    server = make_server("--hooks-http", nobody)
    assert server.running
    assert urlsplit(server.url).path == "/files/"
    assert tmp_path.exists()
