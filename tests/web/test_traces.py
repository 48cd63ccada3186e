"""Spans of requests: sent to a collector, in the trace of the client, and passed on to hooks."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.conftest import MakeServer
from tests.hooks.endpoint import Call, Endpoint, Reply, closed_port
from tests.support.server import ServerProcess, environment
from tests.support.tus import Tus, id_of
from tests.support.waiting import wait_until
from tusd_py.telemetry import tracing

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}


class Collector(Endpoint):
    """Receives spans by OTLP over HTTP."""

    def reply_to(self, call: Call) -> Reply:
        self.calls.append(call)
        return Reply(body=b"")

    @property
    def environment(self) -> dict[str, str]:
        """What makes a server send its spans here, soon."""
        endpoint = self.url.removesuffix("/hooks")
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}

    def spans(self) -> list[Span]:
        """All spans so far, with the version of their service checked."""
        found: list[Span] = []
        for call in list(self.calls):
            assert call.path == "/v1/traces"
            message = ExportTraceServiceRequest.FromString(call.raw)
            for each in message.resource_spans:
                names = {pair.key: pair.value.string_value for pair in each.resource.attributes}
                assert names["service.name"] == "tusd-py"
                found += [span for scope in each.scope_spans for span in scope.spans]
        return found

    def wait_for(self, count: int) -> Sequence[Span]:  # type: ignore[override]
        """Wait for so many spans in the trace of the client, in the order of their begin."""

        def ours() -> list[Span]:
            found = [span for span in self.spans() if span.trace_id.hex() == TRACE]
            return sorted(found, key=lambda span: span.start_time_unix_nano)

        wait_until(lambda: len(ours()) == count, f"{count} spans")
        return ours()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as running:
        yield running


@dataclass(frozen=True)
class Traced:
    """A server that sends its spans to a collector, and its events to an endpoint."""

    tus: Tus
    collector: Collector
    endpoint: Endpoint


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    directory = tmp_path_factory.mktemp("traced") / "uploads"
    with (
        Collector() as collector,
        Endpoint() as endpoint,
        ServerProcess(directory, "--hooks-http", endpoint.url, env=collector.environment) as server,
    ):
        yield Traced(Tus(server), collector, endpoint)


def attributes(span: Span) -> dict[str, str | int]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


def test_each_request_is_a_span_in_the_trace_of_its_client(traced: Traced) -> None:
    tus, collector, endpoint = traced.tus, traced.collector, traced.endpoint
    path = tus.new(10, headers=SAMPLED)
    tus.patch(path, 0, b"12345", SAMPLED)
    tus.patch(path, 0, b"12345", SAMPLED)
    tus.patch(path, 5, b"67890", SAMPLED)
    created, begun, refused, ended = collector.wait_for(4)
    assert {span.parent_span_id.hex() for span in (created, begun, refused, ended)} == {PARENT}
    assert {span.kind for span in (created, ended)} == {Span.SPAN_KIND_SERVER}
    assert created.name == "POST /files/"
    assert [span.name for span in (begun, refused, ended)] == ["PATCH /files/{id}"] * 3
    assert attributes(created) == {
        "http.request.method": "POST",
        "http.response.status_code": 201,
        "http.route": "/files/",
        "url.path": "/files/",
        "tus.protocol": "tus",
        "tus.request.bytes": 0,
        "tus.upload.id": id_of(path),
        "tusd_py.request_id": attributes(created)["tusd_py.request_id"],
    }
    facts = {"tus.upload.offset": 5, "tus.request.bytes": 5, "http.response.status_code": 204}
    assert attributes(begun).items() >= facts.items()
    assert attributes(refused)["http.response.status_code"] == 409
    assert attributes(refused)["error.type"] == "ERR_MISMATCHED_OFFSET"
    assert refused.status.code == Status.STATUS_CODE_UNSET
    # Hooks continue the span of the request that caused their event.
    for event_type, span in (("pre-create", created), ("post-finish", ended)):
        [call] = endpoint.wait_for(event_type, where=lambda call: TRACE in str(call.headers))
        passed = f"00-{TRACE}-{span.span_id.hex()}-01"
        assert call.headers["traceparent"] == passed
        assert call.headers["tracestate"] == "vendor=1"
        assert call.request["Header"]["Traceparent"] == [passed]


def test_the_client_decides_whether_its_trace_is_recorded(traced: Traced) -> None:
    tus, collector, endpoint = traced.tus, traced.collector, traced.endpoint
    unwanted = f"00-{'ab' * 16}-{PARENT}-00"
    tus.new(1, headers={"traceparent": unwanted})
    [passed] = [
        call.headers["traceparent"]
        for call in endpoint.of("pre-create")
        if "ab" * 16 in call.headers["traceparent"]
    ]
    assert passed.startswith(f"00-{'ab' * 16}-")
    assert passed.endswith("-00")
    assert PARENT not in passed

    def new() -> list[Span]:
        return [span for span in collector.spans() if not span.parent_span_id]

    # Without a trace of the client, and with what is none, the server begins one.
    tus.new(1)
    tus.new(1, headers={"traceparent": "none"})
    wait_until(lambda: len(new()) == 2, "two spans")
    assert not any(span.trace_id == bytes.fromhex("ab" * 16) for span in collector.spans())


def test_the_spans_of_the_last_second_are_sent_when_the_server_ends(
    make_server: MakeServer, collector: Collector
) -> None:
    env = {**collector.environment, "OTEL_BSP_SCHEDULE_DELAY": "60000"}
    server = make_server("--workers", "2", env=env)
    Tus(server).new(1)
    assert server.terminate() == 0
    assert [span.name for span in collector.spans()] == ["POST /files/"]


def test_a_collector_that_is_away_holds_nothing_up(make_server: MakeServer) -> None:
    with closed_port() as port:
        server = make_server(env={"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"})
        Tus(server).finished(b"stored")
        began = time.monotonic()
        assert server.terminate() == 0
        # Two seconds, where the exporter itself would try for ten.
        assert time.monotonic() - began < 8


def test_nothing_is_imported_unless_it_is_asked_for(
    make_server: MakeServer, endpoint: Endpoint, tmp_path: Path
) -> None:
    hook = tmp_path / "loaded.py"
    hook.write_text(
        "import sys\nfrom tusd_py import Reject\n"
        # The Redis client imports the rest of it wherever it is installed.
        "BOTH = {'opentelemetry.sdk.trace', 'opentelemetry.exporter.otlp'}\n"
        "def pre_create(event):\n"
        "    if event.upload.metadata:\n"
        "        raise Reject(400, str(sorted({*sys.modules} & BOTH)))\n"
    )
    flags = ("--hook", str(hook), "--hooks-http", endpoint.url)
    tus = Tus(make_server(*flags))
    assert tus.create(1, headers={"Upload-Metadata": "a YQ=="}).text.endswith(": []\n")
    # The trace of the client is passed on as it is.
    tus.new(1, headers=SAMPLED)
    [call] = endpoint.wait_for("pre-create", where=lambda call: not call.upload["MetaData"])
    assert call.headers["traceparent"] == SAMPLED["traceparent"]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "install tusd-py[otel]"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is zipkin"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf, not grpc",
        ),
    ],
)
def test_why_no_traces_are_sent_is_logged(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variables: dict[str, str],
    said: str,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert tracing.export_by_environment(variables) is None
    assert said in caplog.text


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"},
    ],
)
def test_traces_that_nobody_asks_for_are_not_mentioned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variables: dict[str, str]
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert tracing.export_by_environment(variables) is None
    assert caplog.text == ""


APPLICATION = """
import asyncio, sys
import httpx
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from tusd_py import Settings, TusApp

exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("application")

class Hook:
    def pre_create(self, event):
        with tracer.start_as_current_span("in the hook"):
            pass

uploads = TusApp(Settings(upload_dir=sys.argv[1], base_path="/", duplicates="off"), hooks=[Hook()])
app = Starlette()
app.mount("/files", uploads)

async def main():
    async with uploads.lifespan():
        with tracer.start_as_current_span("of the application"):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
                await client.post("http://a/files/", headers={"Tus-Resumable": "1.0.0", "Upload-Length": "1"})

asyncio.run(main())
spans = {span.context.span_id: span for span in exporter.get_finished_spans()}
for span in spans.values():
    print(span.name, "<", spans[span.parent.span_id].name if span.parent else None)
"""


def test_an_application_that_traces_itself_has_the_spans_of_uploads_and_hooks_in_its_own(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", APPLICATION, str(tmp_path / "uploads")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment(),
    )
    assert sorted(done.stdout.splitlines()) == [
        "POST / < of the application",
        "in the hook < POST /",
        "of the application < None",
    ], done.stderr
