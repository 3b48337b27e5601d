"""OpenTelemetry spans of requests, where `--otlp-traces-endpoint` has vLLM export any.

The span is of the whole request. vLLM's own, of what the engine did (`llm_request`, in
`v1/engine/output_processor.py`), becomes its child: the request reaches vLLM in our context.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

# Finds what exports spans when vLLM has set it up, which is later.
_TRACER = trace.get_tracer("bmt_server")
_CONTEXT = TraceContextTextMapPropagator()
HEADERS = ("traceparent", "tracestate")


class Span:
    """A request's span, in the trace that its headers name. Costs nothing where none is kept."""

    def __init__(self, method: str, headers: Mapping[str, str]) -> None:
        context = _CONTEXT.extract({k: headers[k] for k in HEADERS if k in headers})
        # By method alone: a name has few values, and a path has a mask's name in it.
        self._span = _TRACER.start_span(
            method, context, kind=SpanKind.SERVER, attributes={"http.request.method": method}
        )

    @property
    def kept(self) -> bool:
        """Somebody exports it."""
        return self._span.is_recording()

    def set(self, attributes: Mapping[str, str | int]) -> None:
        """Those that have a value."""
        self._span.set_attributes({name: value for name, value in attributes.items() if value})

    def event(self, name: str) -> None:
        """Something happened now."""
        self._span.add_event(name)

    def headers(self) -> dict[str, str]:
        """What puts whatever is done for the request into this span."""
        found: dict[str, str] = {}
        _CONTEXT.inject(found, trace.set_span_in_context(self._span))
        return found

    def end(self, *, failed: bool) -> None:
        if failed:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
