"""Rates and budgets of keys and tenants, over two replicas on a real Valkey."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import asynccontextmanager

import pytest
from bmt_server.api.request_limits import most_tokens
from bmt_server.api.usage.budgets import duration
from bmt_server.registry.usage.limits import LIMITS, Limits

from tests.support.replica import replica
from tests.support.requests.metered import install_model_routes

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 9}


async def post(api, key="infer", path="/v1/chat/completions", **fields):
    async with api.client(key) as client:
        return await client.post(path, json={**BODY, **fields})


async def limit(api, kind, name, **limits):
    """Set limits over HTTP."""
    async with api.client("admin") as client:
        answer = await client.put(f"/v1/limits/{kind}/{name}", json=limits)
    assert answer.status_code == 200, answer.text


async def key_id(api, key="infer"):
    async with api.client(key) as client:
        return (await client.get("/v1/me")).json()["key_id"]


async def settled(api):
    """Wait until the tokens of ended requests are counted."""
    for _ in range(200):
        if not api.state.budgets._pending:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(api.state.budgets._pending)


@asynccontextmanager
async def twin(api, valkey, tmp_path, **settings):
    async with replica(valkey.url, tmp_path / "twin", api.keys, **settings) as other:
        install_model_routes(other)
        await other.state.limit_store.refresh()
        yield other


def ratelimit(answer):
    found = {k: v for k, v in answer.headers.items() if k.startswith("x-ratelimit-")}
    return {k.removeprefix("x-ratelimit-"): v for k, v in found.items()}


async def test_requests_of_a_key_over_two_replicas(api, engine, valkey, tmp_path):
    await limit(api, "keys", await key_id(api), requests_per_minute=10)
    async with twin(api, valkey, tmp_path) as other:
        answers = await asyncio.gather(*(post(one) for one in (api, other) * 12))
    assert sorted(a.status_code for a in answers) == [200] * 10 + [429] * 14
    refused = next(a for a in answers if a.status_code == 429)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert "10 requests per minute" in refused.json()["error"]["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert ratelimit(refused)["limit-requests"] == "10"
    assert ratelimit(refused)["remaining-requests"] == "0"
    # Another key, and the same key on a route that needs no model.
    assert (await post(api, "other")).status_code == 200
    assert await key_id(api)


async def test_requests_of_a_tenant_are_those_of_all_its_keys(api, engine):
    await limit(api, "tenants", "default", requests_per_minute=4)
    found = [(await post(api, key)).status_code for key in ("infer", "admin") * 3]
    assert found == [200] * 4 + [429] * 2
    assert (await post(api, "other")).status_code == 200


async def test_a_key_reads_its_own_limits(api, engine):
    await limit(api, "keys", await key_id(api), tokens_per_day=5)
    async with api.client("infer") as client:
        budgets = (await client.get("/v1/me")).json()["budgets"]
    assert budgets["key"]["tokens_per_day"] == 5
    assert budgets["key"]["requests_per_minute"] == budgets["tenant"]["tokens_per_day"] == 0


async def test_headers_say_what_is_left(api, engine):
    await limit(api, "keys", await key_id(api), requests_per_minute=60, tokens_per_minute=1000)
    await limit(api, "tenants", "default", tokens_per_day=500)
    first = await post(api)
    await settled(api)
    second = await post(api)
    assert ratelimit(first)["limit-requests"] == "60"
    assert ratelimit(first)["remaining-requests"] == "59"
    assert ratelimit(second)["remaining-requests"] == "58"
    # The tighter of the two: 12 tokens of 500 are used.
    assert (ratelimit(first)["limit-tokens"], ratelimit(second)["limit-tokens"]) == ("500", "500")
    assert (ratelimit(first)["remaining-tokens"], ratelimit(second)["remaining-tokens"]) == (
        "500",
        "488",
    )
    assert ratelimit(second)["reset-requests"].endswith("s")
    assert ratelimit(second)["reset-tokens"].startswith(("23h59m", "24h0m"))
    assert ratelimit(await post(api, "other")) == {}


@pytest.mark.parametrize("field", ["tokens_per_minute", "tokens_per_day", "tokens_per_month"])
async def test_tokens_over_two_replicas(api, engine, valkey, tmp_path, field):
    await limit(api, "tenants", "default", **{field: 60})
    statuses = []
    async with twin(api, valkey, tmp_path) as other:
        for number in range(8):
            one = (api, other)[number % 2]
            last = await post(one, ("infer", "admin")[number % 2], stream=bool(number % 3))
            statuses.append(last.status_code)
            await settled(one)
    # 12 tokens each.
    assert statuses == [200] * 5 + [429] * 3
    minute = field.endswith("minute")
    code = "rate_limit_exceeded" if minute else "budget_exceeded"
    assert last.json()["error"]["code"] == code
    assert (int(last.headers["retry-after"]) > 60) != minute
    assert ("x-should-retry" in last.headers) != minute
    async with api.client("admin") as client:
        assert (await client.get("/v1/usage")).json()["total"]["requests"] == 5


async def test_requests_at_once_do_not_pass_a_budget_together(api, engine):
    """Tokens are known at the end: until then a process holds back the most that they may be."""
    await limit(api, "keys", await key_id(api), tokens_per_minute=30)
    engine.pause = 1
    tasks = [asyncio.create_task(post(api, stream=True, max_tokens=20)) for _ in range(20)]
    done, running = await asyncio.wait(tasks, timeout=1.0)
    assert len(running) == 2  # 20 of 30 are held back after the first one
    for task in done:
        assert task.result().status_code == 429
        assert "max_tokens" in task.result().json()["error"]["message"]
        assert task.result().headers["retry-after"] == "1"
    engine.go.set()
    await asyncio.gather(*running)
    await settled(api)
    assert api.state.budgets._reserved == {}
    assert (await post(api)).status_code == 200


async def test_a_stream_that_is_cancelled_is_charged(api, engine):
    await limit(api, "keys", await key_id(api), tokens_per_day=1000)
    engine.pause = 2
    task = asyncio.create_task(post(api, stream=True))
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0.05)
    await settled(api)
    assert api.state.budgets._reserved == {}
    assert ratelimit(await post(api))["remaining-tokens"] == str(1000 - 7 - 2)


async def test_counting_tokens_takes_none(api, engine):
    await limit(api, "keys", await key_id(api), tokens_per_day=1, requests_per_minute=100)
    assert (await post(api)).status_code == 200
    await settled(api)
    assert (await post(api)).status_code == 429
    assert (await post(api, path="/tokenize")).status_code == 200


async def test_flags_are_defaults_and_stored_limits_count_before_them(
    api, engine, valkey, tmp_path
):
    async with twin(api, valkey, tmp_path, key_requests_per_minute=2) as other:
        assert [(await post(other)).status_code for _ in range(3)] == [200, 200, 429]
        await limit(api, "keys", await key_id(api, "admin"), requests_per_minute=0)
        await other.state.limit_store.refresh()
        assert {(await post(other, "admin")).status_code for _ in range(4)} == {200}
        async with other.client("admin") as client:
            listed = (await client.get("/v1/limits")).json()
            assert listed["defaults"]["keys"]["requests_per_minute"] == 2
            (name,) = listed["keys"]
            assert listed["keys"][name] == {"requests_per_minute": 0}
            assert (await client.delete(f"/v1/limits/keys/{name}")).status_code == 204
            assert (await client.delete(f"/v1/limits/keys/{name}")).status_code == 404
        assert [(await post(other, "admin")).status_code for _ in range(3)] == [200, 200, 429]


async def test_changes_reach_the_other_replica(api, engine, valkey, tmp_path):
    async with twin(api, valkey, tmp_path) as other:
        await limit(api, "tenants", "default", requests_per_minute=7)
        for _ in range(100):
            if other.state.limit_store.of("tenant", "default").requests_per_minute == 7:
                return
            await asyncio.sleep(0.05)
    raise AssertionError("not seen")


async def test_limits_are_the_operators(api, engine):
    for key, status in (("infer", 403), ("other", 403), ("", 401)):
        async with api.client(key) as client:
            for method, path in (
                ("GET", "/v1/limits"),
                ("PUT", "/v1/limits/tenants/other"),
                ("DELETE", "/v1/limits/tenants/other"),
            ):
                answer = await client.request(method, path, json={})
                assert answer.status_code == status, (key, path)
    async with api.client("admin") as client:
        for path, body in (
            ("tenants/a", {"tokens_per_day": -1}),
            ("tenants/a", {"tokens_per_day": "1"}),
            ("tenants/a", {"tokens_per_day": 2**64}),
            ("tenants/a", {"tokens_per_week": 1}),
            ("tenants/A%20b", {}),
            ("keys/a:b", {}),
            ("keys/abc", {"versions": 1}),
            ("masks/a", {}),
        ):
            answer = await client.put(f"/v1/limits/{path}", json=body)
            assert answer.status_code in (400, 404, 422), (path, body)
        assert (await client.get("/v1/limits")).json()["tenants"] == {}


async def test_stored_limits_of_other_builds_are_read(api):
    quick = api.state.connection.quick
    await quick.hset(LIMITS, "tenant:a", json.dumps({"tokens_per_day": 5, "later": 1}))
    await quick.hset(LIMITS, "tenant:b", "nonsense")
    await quick.hset(LIMITS, "team:c", "{}")
    assert await api.state.limit_store.stored() == {("tenant", "a"): Limits(tokens_per_day=5)}


@pytest.mark.parametrize("outage", ["allow", "refuse"])
async def test_while_the_registry_is_away(api, valkey, tmp_path, caplog, outage):
    settings = {"key_requests_per_minute": 3, "key_tokens_per_day": 10_000}
    async with twin(api, valkey, tmp_path, budget_outage=outage, **settings) as other:
        assert (await post(other)).status_code == 200
        gauge = other.state.metrics.budgets_enforced._value
        assert gauge.get() == 1
        valkey.process.send_signal(signal.SIGSTOP)
        try:
            started = asyncio.get_running_loop().time()
            answers = [await post(other) for _ in range(8)]
            assert asyncio.get_running_loop().time() - started < 1.5
        finally:
            valkey.process.send_signal(signal.SIGCONT)
        assert {a.status_code for a in answers} == {200 if outage == "allow" else 503}
        if outage == "refuse":
            assert answers[0].json()["error"]["code"] == "budgets_unavailable"
        assert gauge.get() == 0
        assert len([r for r in caplog.records if "not enforced" in r.message]) == 1
        for _ in range(100):
            if gauge.get() == 1:
                break
            await asyncio.sleep(0.1)
            await post(other)
        assert gauge.get() == 1
        await settled(other)
        assert {(await post(other)).status_code for _ in range(4)} == {429}


def test_the_most_that_a_request_may_take():
    chat = {"messages": [{"role": "user", "content": "x" * 50}], "max_tokens": 10}
    assert 60 <= most_tokens(chat, 1, 1000, generates=True) <= 80
    assert most_tokens({**chat, "max_tokens": None}, 1, 1000, generates=True) == 1000
    assert most_tokens({"prompt": ["a", "b"], "max_tokens": 5}, 2, 1000, generates=True) < 20
    assert most_tokens({"input": ["ab"] * 9}, 9, 1000, generates=False) < 40
    assert most_tokens({**chat, "max_tokens": 10**30}, 3, 1000, generates=True) == 3000
    assert [duration(s) for s in (0.2, 60, 3601)] == ["1s", "1m0s", "1h0m1s"]
