"""Streamed responses: they begin when the engine has answered, and their errors have one form."""

from __future__ import annotations

import asyncio
import json

import pytest
from bmt_server.api.response.refusals import note
from bmt_server.errors import BadRequest
from fastapi import HTTPException
from fastapi.responses import StreamingResponse

FIRST = 'data: {"choices": []}\n\n'
DONE = "data: [DONE]\n\n"
CREATED = 'event: response.created\ndata: {"type": "response.created"}\n\n'
CHAT_ERROR = 'data: {"error": {"message": "m", "type": "t", "param": "stop", "code": %d}}\n\n'
ANTHROPIC = 'event: error\ndata: {"type": "error", "error": {"type": "x", "message": "m"}}\n\n'


@pytest.fixture
def stream(api):
    """Let a route of the app stream given events; an error among them is raised there."""

    def serve(*events, fault=None):
        async def send():
            # Handlers call the engine inside the stream, in a task of their own.
            if fault is not None:
                await asyncio.create_task(refuse(fault))
            for event in events:
                if isinstance(event, Exception):
                    raise event
                yield event

        async def refuse(error):
            note(error)

        async def chat():
            return StreamingResponse(send(), media_type="text/event-stream")

        api.app.router.routes[:] = [
            r for r in api.app.router.routes if getattr(r, "path", "") != "/v1/chat/completions"
        ]
        api.app.post("/v1/chat/completions")(chat)

    return serve


@pytest.mark.parametrize("status", [400, 404, 500, 503])
@pytest.mark.parametrize("before", [(), (CREATED,)])
async def test_a_stream_that_begins_with_an_error_is_that_error(
    api, stream, status, before, caplog
):
    stream(*before, CHAT_ERROR % status, DONE)
    answer = await api.ask("tiny", "infer")
    error = answer.json()["error"]
    assert answer.status_code == status
    assert set(error) == {"message", "type", "code", "param", "request_id"}
    assert api.state.metrics.errors.labels(error["code"])._value.get() == 1
    assert (error["message"] == "m") == (status != 500)
    assert (error["request_id"] in caplog.text) or status != 500


@pytest.mark.parametrize(
    "events", [(ANTHROPIC,), (CREATED, RuntimeError("lost")), (RuntimeError("lost"),)]
)
async def test_a_noted_fault_is_the_answer_whatever_the_route_makes_of_it(api, stream, events):
    stream(*events, fault=BadRequest("no such backend", code="field_invalid", param="stop"))
    answer = await api.ask("tiny", "infer")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "field_invalid", "stop")
    assert error["message"] == "no such backend"


@pytest.mark.parametrize("events", [(ANTHROPIC,), (CREATED, HTTPException(418))])
async def test_a_broken_stream_without_a_fault_is_500(api, stream, events, caplog):
    stream(*events)
    answer = await api.ask("tiny", "infer")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert answer.json()["error"]["request_id"] in caplog.text


async def test_later_errors_of_a_stream_have_the_form_and_are_counted(api, stream, caplog):
    stream(FIRST, CHAT_ERROR % 500, DONE)
    answer = await api.ask("tiny", "infer")
    assert answer.status_code == 200
    assert answer.text.startswith(FIRST)
    assert answer.text.endswith(DONE)
    error = json.loads(answer.text.split("data: ")[2])["error"]
    assert error["code"] == "internal"
    assert error["message"] != "m"
    assert error["request_id"] in caplog.text
    assert api.state.metrics.errors.labels("internal")._value.get() == 1


@pytest.mark.parametrize("events", [(FIRST, DONE), (CREATED, FIRST, DONE), (CREATED,), ()])
async def test_streams_arrive_as_they_are(api, stream, events):
    stream(*events)
    answer = await api.ask("tiny", "infer")
    assert (answer.status_code, answer.text) == (200, "".join(events))
