"""Access log: one line and one span per request, without prompts and keys."""

from __future__ import annotations

import logging

import pytest
from bmt_server.api import tracing
from bmt_server.api.access_log import RequestRecord
from fastapi import Request

from tests.support.replica import make_mask

LOGGER = "vllm.bmt_server.requests"


@pytest.fixture
def lines(caplog, monkeypatch):
    """Records of the access log; vLLM's logger does not propagate to pytest's handler."""
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.INFO, LOGGER)
    return lambda: [r for r in caplog.records if r.name == LOGGER]


@pytest.fixture
def spans(monkeypatch):
    """Finished spans."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_TRACER", provider.get_tracer("test"))
    return exporter.get_finished_spans


async def test_a_request_is_logged_with_its_mask_and_key(api, lines, spans):
    stored = (await api.put("m", make_mask(0))).json()
    passed: list[str] = []

    @api.app.post("/v1/completions")
    async def completions(request: Request) -> dict[str, str]:
        passed.append(request.headers["traceparent"])
        return {}

    async with api.client("infer") as client:
        answer = await client.post(
            "/v1/completions",
            json={"model": "m", "prompt": "a secret prompt"},
            headers={"X-Request-Id": "mine-1", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"},
        )
        key = client.headers["authorization"].partition(" ")[2]
    assert answer.status_code == 200
    line = lines()[-1]
    assert (line.request_id, line.status, line.model) == ("mine-1", 200, stored["model"])
    assert line.mask_digest == stored["digest"]
    assert line.key_id
    assert line.key_id in line.getMessage()
    span = spans()[-1]
    assert span.attributes["bmt.mask.digest"] == stored["digest"]
    assert span.attributes["http.response.status_code"] == 200
    assert [e.name for e in span.events] == ["mask ready"]
    assert f"{span.context.trace_id:032x}" == "a" * 32
    assert f"{span.parent.span_id:016x}" == "b" * 16
    # vLLM's own span becomes a child of this server's span, not of the client's.
    assert passed == [f"00-{'a' * 32}-{span.context.span_id:016x}-01"]
    for logged in (str(vars(line)), str(span.attributes)):
        assert "secret" not in logged
        assert key not in logged


async def test_errors_are_logged_by_code_and_lines_cannot_be_forged(api, lines, spans):
    async with api.client("infer") as client:
        missing = await client.post("/v1/chat/completions", json={"model": "none"})
        odd = await client.get("/v1/mas%0Aks?key=secret")
        await client.get("/livez")
        await client.get("/metrics")
    assert (missing.status_code, odd.status_code) == (404, 404)
    assert [line.error for line in lines()] == ["model_not_found", "route_not_found"]
    assert "\n" not in lines()[-1].getMessage()
    assert "secret" not in str(vars(lines()[-1]))
    assert "error.type" in spans()[0].attributes


async def test_each_error_is_counted_once_with_internal_ones(api, lines):
    @api.app.post("/v1/completions")
    async def completions() -> None:
        raise ValueError("a defect")

    async with api.client("infer") as client:
        await client.post("/v1/completions", json={"model": "none"})
        broken = await client.post("/v1/completions", json={"model": "tiny"})
    assert broken.status_code == 500
    assert "a defect" not in broken.text
    assert [line.error for line in lines()] == ["model_not_found", "internal"]
    (family,) = api.state.metrics.errors.collect()
    counted = {s.labels["code"]: s.value for s in family.samples if s.name.endswith("_total")}
    assert counted == {"model_not_found": 1, "internal": 1}


def test_without_an_exporter_no_span_is_recorded():
    span = tracing.Span("GET", {})
    assert not span.is_recording
    record = RequestRecord("r", "GET", "/x", span)
    record.end(quiet=True)
