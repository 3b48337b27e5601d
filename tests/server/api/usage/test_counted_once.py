"""Budgets and usage by what the engine may do and did: once, and not for refused requests."""

from __future__ import annotations

import asyncio

import pytest
from bmt_server.api.request_limits import most_tokens
from bmt_server.api.usage import budgets
from bmt_server.errors import BadRequest, RegistryDown
from bmt_server.registry.usage.limits import Limits
from starlette.routing import Route

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 9}


async def post(api, key="infer", **fields):
    async with api.client(key) as client:
        return await client.post("/v1/chat/completions", json={**BODY, **fields})


async def limit(api, kind, name, **limits):
    await api.state.limit_store.set(kind, name, Limits(**limits))


async def key_id(api, key="infer"):
    async with api.client(key) as client:
        return (await client.get("/v1/me")).json()["key_id"]


async def test_tokens_whose_reply_was_lost_are_counted_once(api, engine, monkeypatch):
    """A stalled registry does what it was sent, although the server has given up waiting."""
    await limit(api, "key", await key_id(api), tokens_per_day=1000)
    await api.state.limit_store.refresh()
    monkeypatch.setattr(budgets, "_AWAY_S", 0.05)
    real, lost = api.state.connection.call, []

    async def call(command, within_s=None):
        result = await real(command, within_s)
        if asyncio.current_task().get_name() == "bmt-budgets" and len(lost) < 3:
            lost.append(result)
            raise RegistryDown("the mask registry does not answer")
        return result

    monkeypatch.setattr(api.state.connection, "call", call)
    assert (await post(api)).status_code == 200
    for _ in range(200):
        if not api.state.budgets._pending:
            break
        await asyncio.sleep(0.01)
    assert len(lost) == 3
    await asyncio.sleep(0.1)
    # Without a further request, which would find the registry there.
    assert api.state.metrics.budgets_enforced._value.get() == 1
    left = (await post(api)).headers["x-ratelimit-remaining-tokens"]
    assert left == str(1000 - 12)


async def test_requests_that_a_key_is_refused_are_none_of_its_tenants(api, engine):
    await limit(api, "key", await key_id(api), requests_per_minute=1)
    await limit(api, "tenant", "default", requests_per_minute=10)
    assert [(await post(api)).status_code for _ in range(15)] == [200] + [429] * 14
    answer = await post(api, "admin")
    assert (answer.status_code, answer.headers["x-ratelimit-remaining-requests"]) == (200, "8")


async def test_a_request_whose_answer_is_an_error_is_not_counted(api, engine):
    """Also if the app raises the error, and sends none."""
    for error, status in ((BadRequest("no"), 400), (RuntimeError("no"), 500)):

        async def fail(request, error=error):
            raise error

        api.app.router.routes.insert(0, Route("/v1/chat/completions", fail, methods=["POST"]))
        assert (await post(api)).status_code == status
        del api.app.router.routes[0]
    async with api.client("admin") as client:
        assert (await client.get("/v1/usage")).json()["total"]["requests"] == 0


@pytest.mark.parametrize(
    ("body", "least"),
    [
        ({"system": "x" * 500, "messages": [], "max_tokens": 1}, 500),
        ({"instructions": "x" * 500, "input": "x", "max_output_tokens": 1}, 500),
        ({"messages": [], "tools": [{"function": {"parameters": {"y" * 500: 1}}}]}, 500),
        ({"messages": [], "max_tokens": 1, "max_completion_tokens": 700}, 700),
        ({"messages": [], "max_tokens": 700, "max_completion_tokens": 1}, 700),
        ({"prompt": "x" * 100, "max_tokens": 10, "use_beam_search": True, "n": 8}, 8000),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_most_is_held_back(body, least):
    """All text that templates put in a prompt, the larger limit of two, and all runs of beams."""
    sequences = body.get("n", 1)
    taken = most_tokens({"max_tokens": 1, **body}, sequences, 4096, generates=True)
    assert least <= taken <= 1.2 * least + 30


def test_a_limit_that_the_route_does_not_know_holds_nothing_down():
    body = {"input": "x", "max_tokens": 1}
    fields = {"input", "max_output_tokens"}
    assert most_tokens(body, 1, 1000, generates=True, fields=fields) == 1000
