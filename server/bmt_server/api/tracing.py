"""OpenTelemetry spans of requests, exported if vLLM was started with `--otlp-traces-endpoint`.

One span covers the whole request. vLLM's own span of the engine's work (`llm_request`, in vLLM
0.32.0, `v1/engine/output_processor.py`) becomes its child, because the request reaches vLLM with
this span's context in its headers.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

# A proxy tracer: it uses the exporter that vLLM configures later.
_TRACER = trace.get_tracer("bmt_server")
_PROPAGATOR = TraceContextTextMapPropagator()
CONTEXT_HEADERS = ("traceparent", "tracestate")


class Span:
    """Span of one request, in the trace that its headers name. Free if no exporter is set."""

    def __init__(self, method: str, headers: Mapping[str, str]) -> None:
        context = _PROPAGATOR.extract({k: headers[k] for k in CONTEXT_HEADERS if k in headers})
        # Named by the method alone: span names need few values, and paths contain mask names.
        self._span = _TRACER.start_span(
            method, context, kind=SpanKind.SERVER, attributes={"http.request.method": method}
        )

    @property
    def is_recording(self) -> bool:
        """True if an exporter takes this span."""
        return self._span.is_recording()

    def set_attributes(self, attributes: Mapping[str, str | int]) -> None:
        """Set the attributes that have a value."""
        self._span.set_attributes({name: value for name, value in attributes.items() if value})

    def add_event(self, name: str) -> None:
        """Record an event at the present time."""
        self._span.add_event(name)

    def headers(self) -> dict[str, str]:
        """Request headers that make later spans children of this one."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(self._span))
        return carrier

    def end(self, *, failed: bool) -> None:
        """End the span now."""
        if failed:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
