"""Traces of requests by OpenTelemetry: a span for each, which continues the trace of its client.

The spans go to the tracer provider of the process: that of an application in which uploads are mounted, or the one that
`export_by_environment` makes for `tusd-py serve`. Nothing of OpenTelemetry is imported unless one of them has done so. Not for:
metrics, which Prometheus reads.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tusd_py import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.trace import Span, Tracer
    from starlette.types import Scope

logger = logging.getLogger(__name__)

SCOPE_KEY = "tusd_py.trace"
"""Where a request's ASGI scope has its trace."""

FIELDS = ("traceparent", "tracestate")
"""Header fields that name a trace (W3C Trace Context)."""

_RAW_FIELDS = [name.encode() for name in FIELDS]
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_STOP_SECONDS = 2.0
"""Time for the last spans to be sent, so that a collector that is away does not hold up the end of a server."""
_is_traceparent = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}").fullmatch


class RequestTrace:
    """The span of one request."""

    def __init__(self, span: Span, fields: Mapping[str, str]) -> None:
        self._span = span
        self._fields = fields

    @property
    def id(self) -> str:
        """The id of the trace, for the log."""
        return self._fields.get("traceparent", "")[3:35]

    def passed_on(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Header fields of a request, with this span in place of its client's, for what the request causes."""
        others = {name: value for name, value in headers.items() if name not in FIELDS}
        return {**others, **self._fields}

    def answered(
        self,
        *,
        route: str,
        method: str,
        status: int,
        code: str | None,
        details: Mapping[str, str | int],
    ) -> None:
        """Record what became of the request.

        route: its path without what differs from upload to upload. code: why it was refused or failed. details: further
        attributes.
        """
        from opentelemetry.trace import StatusCode  # noqa: PLC0415

        self._span.update_name(f"{method} {route}")
        attributes: dict[str, str | int] = {
            "http.route": route,
            "http.response.status_code": status,
            **details,
        }
        if code is not None:
            attributes["error.type"] = code
        self._span.set_attributes(attributes)
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)


@contextmanager
def of_request(tracer: Tracer, scope: Scope) -> Iterator[RequestTrace]:
    """The trace of a request: the current one of the application, else its client's, else a new one.

    scope: as ASGI has it. The query is left out, as it may contain secrets.
    """
    from opentelemetry import trace  # noqa: PLC0415
    from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415

    propagator = tracecontext.TraceContextTextMapPropagator()
    parent = None
    if not trace.get_current_span().get_span_context().is_valid:
        parent = propagator.extract(
            {
                name.decode(): value.decode("latin-1")
                for name, value in scope["headers"]
                if name in _RAW_FIELDS
            }
        )
    with tracer.start_as_current_span(
        scope["method"],
        context=parent,
        kind=trace.SpanKind.SERVER,
        attributes={"http.request.method": scope["method"], "url.path": scope["path"]},
        # Its text may contain what belongs to the log alone.
        record_exception=False,
    ) as span:
        carrier: dict[str, str] = {}
        propagator.inject(carrier)
        yield RequestTrace(span, carrier)


def tracer_of_process() -> Tracer | None:
    """A tracer of the tracer provider of this process; None if it has none."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        return None
    tracer: Tracer = provider.get_tracer("tusd_py", __version__)
    return tracer


def passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    """The fields by which a call continues the trace that a request belongs to; empty for none."""
    if _is_traceparent(headers.get("traceparent", "")) is None:
        return {}
    return {name: headers[name] for name in FIELDS if name in headers}


def export_by_environment(environment: Mapping[str, str] = os.environ) -> Callable[[], None] | None:
    """Send spans of this process where OpenTelemetry's environment variables say; None if they do not.

    Returns what sends the last ones and ends it; blocking, for two seconds at most.
    """
    if not _is_wanted(environment):
        return None
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), "")
    if protocol not in ("", "http/protobuf"):
        logger.warning(
            "no traces are sent: set %s to http/protobuf, not %s", _PROTOCOLS[1], protocol
        )
        return None
    try:
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as problem:
        logger.warning(
            "no traces are sent, though the environment asks for them: install tusd-py[otel] (%s)",
            problem,
        )
        return None
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        # opentelemetry-instrument, for instance.
        return None
    provider = TracerProvider(resource=_resource(Resource, environment), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

    def stop() -> None:
        ending = threading.Thread(target=provider.shutdown, daemon=True)
        ending.start()
        ending.join(_STOP_SECONDS)

    return stop


def _is_wanted(environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter not in ("", "otlp", "none"):
        logger.warning("no traces are sent: OTEL_TRACES_EXPORTER is %s, not otlp", exporter)
        return False
    return exporter == "otlp" or (
        not exporter and any(environment.get(name) for name in _ENDPOINTS)
    )


def _resource(kind: type[Resource], environment: Mapping[str, str]) -> Resource:
    """What the spans come from; the environment takes precedence."""
    named = environment.get("OTEL_SERVICE_NAME") or "service.name=" in environment.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    name = {} if named else {"service.name": "tusd-py"}
    return kind.create({**name, "service.version": __version__})
