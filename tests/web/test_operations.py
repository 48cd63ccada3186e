"""Probes and metrics of a running server."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.conftest import MakeServer
from tests.support.events import Recorder
from tests.support.files import files_below
from tests.support.tus import Tus, checksum
from tests.support.waiting import wait_until

_SAMPLE = re.compile(r"([a-z_]+)(?:\{(.*)\})? (\S+)")


def numbers(tus: Tus, path: str = "/metrics") -> dict[str, float]:
    """Every sample of a scrape by its name and labels, as they are written."""
    response = tus.request("GET", path)
    assert response.status == 200
    found = {}
    for line in response.text.splitlines():
        if not line.startswith("#"):
            sample = _SAMPLE.fullmatch(line)
            assert sample, line
            name = f"{sample[1]}{{{sample[2]}}}" if sample[2] else sample[1]
            assert name not in found
            found[name] = float(sample[3])
    return found


def difference(tus: Tus, before: dict[str, float], name: str) -> float:
    return numbers(tus).get(name, 0) - before.get(name, 0)


class TestProbes:
    def test_alive_and_ready(self, tus: Tus) -> None:
        alive = tus.request("GET", "/healthz")
        assert (alive.status, alive.text.strip()) == (200, "ok")
        ready = tus.request("GET", "/readyz")
        assert ready.status == 200
        assert json.loads(ready.body) == {"ready": True, "checks": {"store": "ok"}}
        for response in (alive, ready):
            assert response["Cache-Control"] == "no-store"
        assert tus.request("HEAD", "/readyz").status == 200
        assert tus.request("POST", "/healthz", {"Content-Length": "0"}).status == 405

    def test_probes_leave_nothing_in_the_directory(self, tus: Tus) -> None:
        def files() -> set[Path]:
            # The server's first sweep may end meanwhile, which it records.
            return {path for path in files_below(tus.server.upload_dir) if path.name != "swept"}

        before = files()
        for _ in range(3):
            tus.request("GET", "/readyz")
        assert files() == before

    def test_not_ready_where_nothing_can_be_written(self, make_server: MakeServer) -> None:
        server = make_server()
        tus = Tus(server)
        aside = server.upload_dir.with_name("aside")
        server.upload_dir.rename(aside)
        response = tus.request("GET", "/readyz")
        assert response.status == 503
        assert json.loads(response.body) == {"ready": False, "checks": {"store": "failed"}}
        assert str(server.upload_dir) not in response.text
        server.wait_for_line("not ready")
        assert tus.request("GET", "/healthz").status == 200
        aside.rename(server.upload_dir)
        assert tus.request("GET", "/readyz").status == 200
        server.wait_for_line("ready again")


class TestMetrics:
    def test_parsers_understand_both_formats(self, tus: Tus) -> None:
        tus.create(1)
        response = tus.request("GET", "/metrics")
        assert response["Content-Type"].startswith("text/plain; version=0.0.4")
        assert response["Cache-Control"] == "no-store"
        names = {family.name for family in parse_text(response.text)}
        assert {"tusd_requests", "tusd_request_duration_seconds", "tusd_build_info"} <= names
        accept = {"Accept": "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;q=0.2"}
        response = tus.request("GET", "/metrics", accept)
        assert response["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        assert list(parse_open(response.text))  # type: ignore[no-untyped-call]

    def test_the_life_of_uploads(self, make_server: MakeServer) -> None:
        tus = Tus(make_server())
        assert numbers(tus)["tusd_uploads_created"] == 0
        path = tus.new(10, body=b"12345")
        assert tus.patch(path, 5, b"67890").status == 204
        assert tus.delete(tus.new(1)).status == 204
        tus.finished(b"")
        got = numbers(tus)
        assert got["tusd_uploads_created"] == 3
        assert got["tusd_uploads_finished"] == 2
        assert got["tusd_uploads_terminated"] == 1
        assert got["tusd_uploads_expired"] == 0
        assert got["tusd_uploads_active"] == 0
        assert got["tusd_bytes_received"] == 10
        assert got['tusd_received_bytes_by_outcome_total{outcome="complete"}'] == 10
        assert got['tusd_requests_total{method="POST"}'] == 3
        assert got['tusd_requests_total{method="PATCH"}'] == 1
        assert got['tusd_requests_total{method="DELETE"}'] == 1
        assert got['tusd_request_duration_seconds_count{method="POST"}'] == 3
        assert got["tusd_lock_wait_seconds_count"] >= 1

    def test_errors_by_status_and_code(self, tus: Tus) -> None:
        before = numbers(tus)
        path = tus.new(5)
        assert tus.patch(path, 1, b"x").status == 409
        assert tus.head(tus.collection + "0" * 32).status == 404
        assert tus.create(1, headers={"Tus-Resumable": "2.0.0"}).status == 412
        for status, code in (
            (409, "ERR_MISMATCHED_OFFSET"),
            (404, "ERR_UPLOAD_NOT_FOUND"),
            (412, "ERR_UNSUPPORTED_VERSION"),
        ):
            name = f'tusd_errors_total{{code="{code}",status="{status}"}}'
            assert difference(tus, before, name) == 1

    def test_methods_that_nobody_knows_are_one(self, tus: Tus) -> None:
        before = numbers(tus)
        for method in ("TRACE", "LINK", "PROPFIND"):
            assert tus.request(method, tus.collection).status == 405
        assert difference(tus, before, 'tusd_requests_total{method="OTHER"}') == 3

    def test_bytes_by_what_became_of_them(self, tus: Tus) -> None:
        before = numbers(tus)

        def gained(outcome: str) -> float:
            name = f'tusd_received_bytes_by_outcome_total{{outcome="{outcome}"}}'
            return difference(tus, before, name)

        path = tus.new(100)
        with tus.begin_patch(path, 0, 100, b"x" * 60) as patch:
            patch.wait_stored()
            assert numbers(tus)["tusd_uploads_active"] == 1
        wait_until(lambda: gained("disconnected") == 60, "60 bytes of a cut request")
        with tus.begin_patch(path, 60, 40, b"x" * 15) as patch:
            patch.wait_stored()
            assert tus.offset(path) == 75
            assert patch.response().status == 409
        assert gained("interrupted") == 15
        wrong = {"Upload-Checksum": checksum(b"something else")}
        assert tus.patch(path, 75, b"y" * 25, wrong).status == 460
        assert gained("discarded") == 25
        assert tus.patch(path, 75, b"y" * 25).status == 204
        assert gained("complete") == 25
        assert difference(tus, before, "tusd_bytes_received") == 125
        assert numbers(tus)["tusd_uploads_active"] == 0

    def test_the_disk(self, make_server: MakeServer) -> None:
        server = make_server("--disk-reserve", "1MiB")
        tus = Tus(server)
        wait_until(lambda: "tusd_disk_free_bytes" in numbers(tus), "the space to be read")
        got, status = numbers(tus), os.statvfs(server.upload_dir)
        assert got["tusd_disk_size_bytes"] == status.f_blocks * status.f_frsize
        assert 0 < got["tusd_disk_free_bytes"] < got["tusd_disk_size_bytes"]
        assert got["tusd_disk_reserve_bytes"] == 1024**2
        assert got.get("tusd_disk_free_files", 1) > 0

    def test_connections(self, tus: Tus) -> None:
        with tus.connect(), tus.connect(), tus.connect() as third:
            # An answer shows that the connections before it have been accepted.
            assert tus.request("OPTIONS", tus.collection, on=third).status == 204
            assert numbers(tus)["tusd_connections_open"] >= 4
        wait_until(lambda: numbers(tus)["tusd_connections_open"] == 1, "only the scrape's own")

    def test_hooks(self, make_server: MakeServer, tmp_path_factory: pytest.TempPathFactory) -> None:
        recorder = Recorder(tmp_path_factory.mktemp("hooks"))
        tus = Tus(make_server(*recorder.flags, env=recorder.env))
        path = tus.finished(b"12345")
        recorder.wait_for("post-finish", path.rsplit("/", 1)[1])
        got = numbers(tus)
        assert got['tusd_hook_invocations_total{hooktype="pre-create"}'] == 1
        assert got['tusd_hook_invocations_total{hooktype="post-finish"}'] == 1
        # From zero on: Prometheus does not see the first increase of what appears with it.
        assert got['tusd_hook_errors_total{hooktype="post-finish"}'] == 0
        assert got['tusd_errors_total{code="ERR_BYTES_LOST",status="500"}'] == 0

    def test_hooks_that_fail(self, make_server: MakeServer, tmp_path: Path) -> None:
        file = tmp_path / "failing.py"
        file.write_text("def post_create(event):\n    raise RuntimeError('unforeseen')\n")
        tus = Tus(make_server("--hook", str(file)))
        tus.new(1)
        name = 'tusd_hook_errors_total{hooktype="post-create"}'
        wait_until(lambda: numbers(tus).get(name) == 1, "the failure to be counted")

    def test_expiry(self, make_server: MakeServer) -> None:
        tus = Tus(make_server("--expire-after", "300ms", "--sweep-interval", "200ms"))
        tus.new(5)
        wait_until(lambda: numbers(tus)["tusd_uploads_expired"] == 1, "the upload to expire")

    def test_elsewhere_and_not_at_all(self, make_server: MakeServer) -> None:
        tus = Tus(make_server("--metrics-path", "/internal/numbers"))
        assert "tusd_build_info" in tus.request("GET", "/internal/numbers").text
        assert tus.request("GET", "/metrics").status == 404
        tus = Tus(make_server("--expose-metrics=false"))
        assert tus.request("GET", "/metrics").status == 404

    def test_downloads_are_counted_too(self, tus: Tus) -> None:
        before = numbers(tus)
        path = tus.finished(b"12345")
        assert tus.get(path).status == 200
        assert tus.get(path, {"If-None-Match": "*"}).status == 304
        # Of a download the last bytes are with the client before the server has looked at what it sent.
        name = 'tusd_requests_total{method="GET"}'
        wait_until(lambda: difference(tus, before, name) == 2, "both to be counted")


def test_the_log_tells_the_life_of_uploads(make_server: MakeServer) -> None:
    server = make_server("--log-format", "json")
    tus = Tus(server)
    finished, terminated = tus.new(10), tus.new(7)
    for offset, piece in ((0, b"hello"), (5, b"world")):
        assert tus.patch(finished, offset, piece).status == 204
    assert tus.patch(terminated, 3, b"oops").status == 409
    assert tus.delete(terminated).status == 204
    # Written after the response.
    server.wait_for_line("upload terminated")
    lives = [
        (line["event"], line["upload"], line["size"])
        for line in server.json_lines()
        if str(line["event"]).startswith("upload ")
    ]
    one, other = (path.rsplit("/", 1)[1] for path in (finished, terminated))
    assert lives == [
        ("upload created", one, 10),
        ("upload created", other, 7),
        ("upload finished", one, 10),
        ("upload terminated", other, 7),
    ]
    end = next(line for line in server.json_lines() if line["event"] == "upload finished")
    assert isinstance(end["seconds"], float)
    assert 0 <= end["seconds"] < 60
    requests = [line for line in server.json_lines() if line["event"] == "request"]
    assert [line["status"] for line in requests if line["method"] == "PATCH"] == [409]
