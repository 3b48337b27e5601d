"""A registry whose memory is used up: uploads get 507, and everything that removes works."""

from __future__ import annotations

import asyncio

import pytest
from bmt_server.registry.blobs.in_redis import LOOSE
from bmt_server.registry.blobs.lua import ADD_LOOSE
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.housekeeping import Housekeeper
from bmt_server.registry.maintenance import collect_orphans
from bmt_server.registry.sessions import SessionStore

from tests.support.replica import make_mask, replica
from tests.support.requests.metered import install_model_routes
from tests.support.scenarios.nodes import node
from tests.support.scenarios.registry import new_key

pytestmark = pytest.mark.found
SPARE = 1 << 20
ORPHAN = "{bmt}:blob:" + "ab" * 32  # of a deleted mask, and larger than what is missing


@pytest.fixture
async def full(tmp_path):
    """A replica with two names and a version without a name's alias, and its full registry."""
    with node(tmp_path / "r") as one:
        keys = {"admin": await new_key(one.url)}
        async with replica(one.url, tmp_path / "cache", keys) as api:
            for name, seed in (("a", 0), ("a", 1), ("b", 2)):
                assert (await api.put(name, make_mask(seed, zeros=150))).status_code == 201
            await api.state.housekeeper.close()
            one.client().set(ORPHAN, "x" * 4 * SPARE)
            fill(one)
            yield api, one


def fill(one) -> None:
    """Leave no memory for anything that needs some, whatever connections use meanwhile."""
    used = int(one.client().info("memory")["used_memory"])
    one.client().config_set("maxmemory", used - SPARE)


async def test_uploads_are_refused_and_removals_work(full):
    api, _ = full
    assert (await api.put("c", make_mask(9))).status_code == 507
    async with api.client() as client:
        old = make_mask(0, zeros=150).digest
        assert (await client.delete(f"/v1/masks/a/versions/{old}")).status_code == 204
        assert (await client.delete("/v1/masks/b")).status_code == 204
        assert (await client.get("/v1/masks/b")).status_code == 404
        listed = (await client.get("/v1/masks")).json()["data"]
        assert [entry["name"] for entry in listed] == ["a"]


async def test_old_versions_are_pruned_and_rules_are_set(full):
    api, _ = full
    async with api.client() as client:
        answer = await client.post("/v1/masks/a/prune", params={"keep_last": 1})
        assert len(answer.json()["removed"]) == 1
        answer = await client.put("/v1/masks/a/retention", json={"keep_last": 1})
        assert (answer.status_code, answer.json()["due"]) == (200, 0)
        target = {"digest": make_mask(1, zeros=150).digest}
        assert (await client.put("/v1/masks/a/aliases/x", json=target)).status_code == 200
    await api.state.retention.hold()
    assert await api.state.retention.apply_all() == 0


async def test_a_version_can_be_rolled_back(full):
    api, _ = full
    async with api.client() as client:
        target = {"digest": make_mask(0, zeros=150).digest}
        assert (await client.put("/v1/masks/a/aliases/latest", json=target)).status_code == 200
        assert (await client.put("/v1/masks/a/pin")).status_code in (200, 204)


async def test_a_key_is_revoked(full):
    api, _ = full
    (record,) = await api.state.keys.records()
    assert (await api.state.keys.revoke(record.key_id)).key_id == record.key_id
    assert await api.state.keys.records() == []


async def test_a_key_is_rotated_and_prolonged_and_signs_in_to_the_console(full):
    """All that a person needs who comes to make room."""
    api, one = full
    (record,) = await api.state.keys.records()
    connection = RegistryConnection(one.url)
    sessions = SessionStore(connection)
    cookie = await sessions.open(record.key_id, "0" * 64)
    assert await sessions.find(cookie) is not None
    assert await connection.call(lambda: connection.quick.eval(ADD_LOOSE, 1, LOOSE, "x-y")) == 1
    await connection.close()
    await api.state.keys.prolong(record.key_id, "2d")
    rotated = await api.state.keys.rotate(record.key_id)
    assert rotated.new.key_id != record.key_id


async def test_gc_removes_at_once_and_needs_no_memory(full):
    api, one = full
    found = await collect_orphans(api.state.registry)
    assert (found.orphans, found.removed, found.bytes) == (1, 1, 4 * SPARE)
    assert not one.client().exists(ORPHAN)
    # What a version names is still there.
    assert (await api.ask("a")).status_code == 200
    assert await api.state.registry.blob_size((await entry(api, "a"))["file_digest"])


async def test_limits_of_keys_and_tenants_hold(full):
    """Counts of requests and tokens go on without memory, and so do changes of limits."""
    api, one = full
    install_model_routes(api)
    async with api.client() as client:
        (key,) = await api.state.keys.records()
        path = f"/v1/limits/keys/{key.key_id}"
        assert (await client.put(path, json={"requests_per_minute": 3})).status_code == 200
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 9}
        answers = [await client.post("/v1/chat/completions", json=body) for _ in range(5)]
        assert [a.status_code for a in answers] == [200] * 3 + [429] * 2
        assert one.client().info("stats")["evicted_keys"] == 0
        assert (await client.delete(path)).status_code == 204
        tenant = {"tokens_per_day": 1}
        assert (await client.put("/v1/limits/tenants/default", json=tenant)).status_code == 200
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        async with asyncio.timeout(5):
            while (await client.post("/v1/chat/completions", json=body)).status_code != 429:
                await asyncio.sleep(0.05)
        assert (await client.put("/v1/masks/c", content=b"x")).status_code != 201
        await api.state.usage.flush()
        (total,) = [(await client.get("/v1/usage?group_by=")).json()["total"]]
    assert total["requests"] >= 4


async def entry(api, name: str) -> dict:
    async with api.client() as client:
        return (await client.get(f"/v1/masks/{name}")).json()


async def test_servers_make_room_by_themselves(full):
    """A refused upload lets a server collect orphans; repeated, it is taken."""
    api, _ = full
    housekeeper = Housekeeper(api.state.registry)
    housekeeper.start()
    try:
        assert (await api.put("c", make_mask(9, zeros=150))).status_code == 507
        async with asyncio.timeout(10):
            while (await api.put("d", make_mask(3))).status_code != 201:
                await asyncio.sleep(0.1)
    finally:
        await housekeeper.close()


async def test_orphans_of_a_registry_with_room_wait_for_their_age(full):
    api, one = full
    one.client().config_set("maxmemory", 0)
    assert (await collect_orphans(api.state.registry)).removed == 0
    assert (await collect_orphans(api.state.registry, min_age_s=0)).removed == 1
