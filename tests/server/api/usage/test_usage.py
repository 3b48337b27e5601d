"""Usage: requests and tokens by tenant, key and mask, from every route and every process."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime, timedelta

import pytest
from bmt_server.api.usage.caller import Caller
from bmt_server.api.usage.counter import UsageCounter
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.usage import counts as stored
from bmt_server.registry.usage.counts import OTHER, Counts, Slot, UsageStore, today

from tests.support.replica import make_mask, replica
from tests.support.requests.metered import COUNTING, GENERATING

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 9}


async def usage(api, key="admin", status=200, **query):
    async with api.client(key) as client:
        answer = await client.get("/v1/usage", params=query)
    assert answer.status_code == status, answer.text
    return answer.json()


async def post(api, path, key="infer", **fields):
    async with api.client(key) as client:
        return await client.post(path, json={**BODY, **fields})


def row(*numbers):
    names = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
    return dict(zip(names, numbers, strict=True))


@pytest.mark.found
async def test_every_route_is_counted_alike(api, engine):
    """Embeddings were in no counter, and no counter knew keys or tenants."""
    assert (await api.put("m", make_mask())).status_code == 201
    routes = 0
    for path in GENERATING:
        for more in (
            *({}, {"stream": True}),
            {"stream": True, "stream_options": {"include_usage": True}},
        ):
            assert (await post(api, path, model="m", **more)).status_code == 200
            routes += 1
    assert (await usage(api))["total"] == row(routes, 7 * routes, 4 * routes, 5 * routes)
    for path in COUNTING:
        assert (await post(api, path)).status_code == 200
    assert (await post(api, "/v1/embeddings", input=["a", "b"])).status_code == 200
    found = await usage(api, group_by="mask")
    assert found["data"] == [
        {"mask": None, **row(len(COUNTING) + 1, 14, 8, 0)},
        {"mask": "m", **row(routes, 7 * routes, 4 * routes, 5 * routes)},
    ]
    tokens = api.state.metrics.tokens
    # The stub's calls are without an adapter.
    assert tokens.labels("base", "prompt")._value.get() == 14 + 7 * routes
    assert tokens.labels("base", "cached")._value.get() == 8 + 4 * routes


async def test_refused_requests_are_not_counted(api, engine):
    for path, fields in (
        *(("/v1/completions", {"model": "gone"}), ("/v1/completions", {"n": 1000})),
        ("/v1/completions", {"model": None}),
    ):
        assert (await post(api, path, **fields)).status_code in (400, 404)
    assert (await usage(api))["total"] == row(0, 0, 0, 0)


@pytest.mark.parametrize("generated", [0, 2])
async def test_a_cancelled_stream_counts_what_it_generated(api, engine, generated):
    engine.pause = generated
    task = asyncio.create_task(post(api, "/v1/chat/completions", stream=True))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task])
    for _ in range(100):
        found = (await usage(api))["total"]
        if found["prompt_tokens"]:
            break
        await asyncio.sleep(0.02)
    assert found == row(1, 7, 4 if generated else 0, generated)


async def test_a_tenant_sees_its_own_usage(api, engine):
    await post(api, "/v1/completions", key="infer")
    await post(api, "/v1/completions", key="other")
    await post(api, "/v1/completions", key="other")
    for key, requests in (("infer", 1), ("upload", 1), ("other", 2)):
        found = await usage(api, key)
        assert found["total"]["requests"] == requests
        (line,) = found["data"]
        assert line["requests"] == requests
        assert line["key"] in {r.key_id for r in await api.state.keys.records()}
    for key, tenant in (("infer", "other"), ("other", "default"), ("other", "*"), ("upload", "*")):
        assert (await usage(api, key, 403, tenant=tenant))["error"]["code"] == "operator_only"
    everything = await usage(api, tenant="*", group_by="tenant,day")
    day = datetime.now(UTC).date().isoformat()
    assert [(r["tenant"], r["day"], r["requests"]) for r in everything["data"]] == [
        ("default", day, 1),
        ("other", day, 2),
    ]
    assert (await usage(api, tenant="other"))["total"]["requests"] == 2
    assert (await usage(api, "other", tenant="other"))["total"]["requests"] == 2
    api.keys["operator"] = (await api.state.keys.create(("operator",)))[0]
    assert (await usage(api, "operator", tenant="other"))["total"]["requests"] == 2


async def test_days_are_chosen_and_wrong_queries_are_refused(api, engine):
    await post(api, "/v1/completions")
    day = datetime.now(UTC).date()
    before = (day - timedelta(days=1)).isoformat()
    assert (await usage(api, end=before))["data"] == []
    assert (await usage(api, start=before, group_by=""))["data"] == [row(1, 7, 4, 5)]
    for query in (
        {"start": "2026-02-30"},
        {"start": "today"},
        {"start": "2026-01-01T00:00"},
        {"end": "0001-01-01"},
        {"start": "9999-12-31", "end": "9999-12-01"},
        {"start": "1000-01-01"},
        {"group_by": "prompt"},
        {"group_by": "key,key"},
    ):
        found = await usage(api, status=400, **query)
        assert found["error"]["param"] in ("start", "end", "group_by"), query
    for query in ({"start": "0001-01-01", "end": "0001-01-02"}, {"end": "9999-12-31"}):
        assert (await usage(api, **query))["data"] == []


async def test_processes_and_restarts_add_up(api, valkey, tmp_path):
    one = Caller("k", "default", "m")
    for number in range(3):
        async with replica(valkey.url, tmp_path / f"r{number}", api.keys) as other:
            other.state.usage.add(one, Counts(1, 10, 5, 2))
    api.state.usage.add(one, Counts(1, 10, 5, 2))
    assert (await usage(api))["total"] == row(4, 40, 20, 8)


@pytest.mark.found
async def test_counting_goes_on_while_the_registry_is_away(api, engine, valkey):
    await post(api, "/v1/completions")
    assert (await usage(api))["total"]["requests"] == 1
    valkey.process.send_signal(signal.SIGSTOP)
    try:
        for _ in range(20):
            assert (await post(api, "/v1/completions")).status_code == 200
        assert (await usage(api, status=503))["error"]["code"] == "registry_unavailable"
        assert api.state.usage.waiting
    finally:
        valkey.process.send_signal(signal.SIGCONT)
    await asyncio.sleep(1.2)
    # The batch of the request that got 503 may have been stored when its reply was given up.
    assert (await usage(api))["total"] == row(21, 147, 84, 105)


class Losing(UsageStore):
    """Loses the reply to each batch once."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.numbers: set[int] = set()

    async def add(self, number, batch):
        await super().add(number, batch)
        if number not in self.numbers:
            self.numbers.add(number)
            raise ConnectionError


async def test_a_batch_whose_reply_was_lost_counts_once(api, monkeypatch):
    monkeypatch.setattr("bmt_server.api.usage.counter.MAX_BATCH", 2)
    counter = UsageCounter(Losing(api.state.connection, 1))
    for number in range(5):
        counter.add(Caller("k", "default", f"m{number}"), Counts(1, 1))
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await counter.flush()
        counter.add(Caller("k", "default", "m0"), Counts(1, 1))
    await _flushed(counter)
    assert (await usage(api))["total"] == row(8, 8, 0, 0)


async def _flushed(counter):
    while counter.waiting:
        try:
            await counter.flush()
        except ConnectionError:
            continue


async def test_lines_are_bounded_here_and_there(api, monkeypatch):
    lost = []
    counter = UsageCounter(api.state.usage_store, lost.append, max_lines=3)
    for number in range(50):
        counter.add(Caller(f"k{number % 8}", "default", f"m{number}"), Counts(1))
    assert counter.waiting == 6  # 3 with their mask, then those of 3 keys
    assert sum(lost) > 0
    await counter.flush()
    total = (await usage(api))["total"]["requests"]
    assert total + sum(lost) == 50
    monkeypatch.setattr(stored, "MAX_ENTRIES", 4)
    for number in range(60):
        counter.add(Caller("k", "acme", f"n{number}"), Counts(1))
        counter.add(Caller(f"key{number}", "acme", "m"), Counts(1))
        await counter.flush()
    lines = [line async for some in api.state.usage_store.read("acme", 0, today()) for line in some]
    assert len(lines) <= 10
    assert sum(found.requests for _, found in lines) == 120
    assert (OTHER, OTHER) in {(slot.key_id, slot.mask) for slot, _ in lines}


async def test_counts_are_exact_at_any_size_and_expire(api):
    counter = UsageCounter(api.state.usage_store)
    big = 2**52
    counter.add(Caller("k", "default"), Counts(1, big))
    await counter.flush()
    counter.add(Caller("k", "default"), Counts(1, 1))
    await counter.flush()
    assert (await usage(api))["total"]["prompt_tokens"] == big + 1
    quick = api.state.connection.quick
    for key in await quick.keys("{bmt}:usage:*"):
        assert await quick.ttl(key) > 0, key


async def test_a_day_that_ends_in_between_counts_by_day(api, monkeypatch):
    counter, caller = UsageCounter(api.state.usage_store), Caller("k", "default")
    for day in (today() - 1, today()):
        monkeypatch.setattr("bmt_server.api.usage.counter.today", lambda day=day: day)
        counter.add(caller, Counts(1))
    await counter.flush()
    assert [r["requests"] for r in (await usage(api, group_by="day"))["data"]] == [1, 1]


async def test_a_full_registry_still_counts(api, valkey):
    connection = RegistryConnection(valkey.url)
    used = int((await connection.quick.info("memory"))["used_memory"])
    await connection.quick.config_set("maxmemory", used - 20_000)
    try:
        await api.state.usage_store.add(1, {Slot(today(), "default", "k", ""): Counts(1)})
    finally:
        await connection.quick.config_set("maxmemory", 0)
        await connection.close()
    assert (await usage(api))["total"]["requests"] == 1
