"""The gate's schemas accept what vLLM's own accept, and cost less."""

from __future__ import annotations

import json
import random
import time

import pytest
from bmt_server.api.body.schemas import RequestSchema
from bmt_server.api.request_limits import MAX_INPUT_ITEMS
from bmt_server.errors import BadRequest
from pydantic import TypeAdapter

from tests.support.cpu_time import answer_and_cpu
from tests.support.requests.bodies import hostile_bodies

PER_ROUTE = 400


def accepts(check, body) -> bool:
    try:
        check(json.loads(body))
    except Exception:
        return False
    return True


def test_they_accept_what_vllms_own_accept(models, schemas):
    """Valid items of each kind, and bodies that are wrong at one position."""
    chance = random.Random(7)
    accepted = 0
    for path, schema in schemas.items():
        ours, vllms = RequestSchema.of(models[path]), TypeAdapter(models[path])
        bodies = [json.dumps(schema.valid()).encode()]
        for position, kinds in schema.positions().items():
            bodies += [
                json.dumps(schema.put(position, [i])).encode() for i in schema.item(position)
            ]
            bodies += [b.data for b in hostile_bodies(schema, position, kinds, 100, "m")]
        for body in chance.sample(bodies, min(len(bodies), PER_ROUTE)) + bodies[:80]:
            expected = accepts(vllms.validate_python, body)
            assert accepts(ours.check, body) == expected, (path, body)
            accepted += expected
    assert accepted > 200


@pytest.mark.parametrize("item", [{"role": "user", "content": "x"}, {"type": "item_reference"}])
def test_a_long_conversation_is_checked_in_milliseconds(models, item):
    schema = RequestSchema.of(models["/v1/responses"])
    item = {"id": "x", **item}
    best = 1.0
    for _ in range(5):
        body = {"model": "m", "input": [dict(item) for _ in range(MAX_INPUT_ITEMS)]}
        started = time.thread_time()
        schema.check(body)
        best = min(best, time.thread_time() - started)
    assert best < 0.03


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": [{"type": "nonsense"}]}, "input"),
        ({"input": [{"role": "user", "content": 5}]}, "input"),
        ({"input": [{}]}, "input"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools"),
        ({"input": "x", "temperature": "hot"}, "temperature"),
        ({}, "input"),
    ],
)
def test_errors_name_the_field(models, body, param):
    with pytest.raises(BadRequest) as caught:
        RequestSchema.of(models["/v1/responses"]).check(body)
    assert (caught.value.code, caught.value.param) == ("field_invalid", param)
    assert str(caught.value).startswith(f"`{param}")
    assert len(str(caught.value)) < 800


async def test_the_app_validates_with_them_too(api, calls):
    """Gate and app together take twice the time of the gate alone."""
    body = {"model": "tiny", "input": [{"role": "user", "content": "x"}] * MAX_INPUT_ITEMS}
    async with api.client("infer") as client:
        answer, seconds = await answer_and_cpu(
            lambda: client.post("/v1/responses", json=body), bound_s=0.06
        )
    assert answer.status_code == 200
    assert len(calls[0].request.input) == MAX_INPUT_ITEMS
    assert seconds < 0.06
