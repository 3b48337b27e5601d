"""Splits in the registry: one step each, held versions, and servers that know no splits."""

from __future__ import annotations

import asyncio

import pytest
from bmt_server.errors import Conflict, NotFound
from bmt_server.registry.blobs.lua import ALLOW_OOM
from bmt_server.registry.canary.split import Split, Target
from bmt_server.registry.maintenance import check_consistency

from tests.support.replica import make_mask, replica

MAIN, CANARY, SHADOW, LAST = MASKS = [make_mask(i) for i in range(4)]
BOTH = Split(MAIN.digest, Target(CANARY.digest, 500), Target(SHADOW.digest, 10_000))
# SET_ALIAS of the version before splits: it moves an alias and knows no other field.
FORMER_SET_ALIAS = (
    ALLOW_OOM
    + """
redis.call('HSET', KEYS[1], 'alias:' .. ARGV[2], ARGV[3])
local generation = redis.call('INCR', KEYS[6])
redis.call('XADD', KEYS[4], 'MAXLEN', '~', 10000, '*', 'where', ARGV[1], 'kind', 'alias',
           'generation', generation, 'changed', '')
return {'ok', ''}
"""
)
FORMER_DELETE_VERSION = FORMER_SET_ALIAS.replace(
    "redis.call('HSET', KEYS[1], 'alias:' .. ARGV[2], ARGV[3])",
    "redis.call('HDEL', KEYS[2], ARGV[2])",
).replace("'changed', ''", "'changed', ARGV[2]")


@pytest.fixture
async def stored(api):
    """`m` with four versions; `prod` is the first."""
    for mask in MASKS:
        assert (await api.put("m", mask)).status_code == 201
    await api.state.registry.set_alias("default", "m", "prod", MAIN.digest)
    await api.state.replica.refresh("default", "m", ())
    return api


def state_of(api):
    return api.state.replica.get("default", "m")


async def refreshed(api):
    return await api.state.replica.refresh("default", "m", ())


async def fields(api):
    """Fields of the name's hash that belong to the split."""
    head = await api.state.connection.quick.hgetall("{bmt}:name:default/m")
    kinds = (b"split:", b"canary:", b"shadow:")
    return {k.decode() for k in head if k.startswith(kinds)}


async def test_a_split_is_set_promoted_and_rolled_back(stored):
    splits = stored.state.splits
    await splits.set("default", "m", "prod", BOTH)
    assert (await refreshed(stored)).split("prod") == BOTH
    more = Split(MAIN.digest, Target(CANARY.digest, 2000))
    await splits.set("default", "m", "prod", more, MAIN.digest)
    assert (await refreshed(stored)).split("prod") == more
    assert await fields(stored) == {"split:prod", "canary:prod"}
    with pytest.raises(Conflict):
        await splits.promote("default", "m", "prod", None, CANARY.digest)
    with pytest.raises(Conflict, match="canary of m:prod is"):
        await splits.promote("default", "m", "prod", SHADOW.digest)
    assert await splits.promote("default", "m", "prod", CANARY.digest, MAIN.digest) == CANARY.digest
    state = await refreshed(stored)
    assert (state.aliases["prod"], state.split("prod")) == (CANARY.digest, None)
    assert await fields(stored) == set()
    for again in (splits.promote, splits.roll_back):
        with pytest.raises(Conflict) as refused:
            await again("default", "m", "prod")
        assert refused.value.code == "no_canary"
    await splits.set("default", "m", "prod", BOTH)
    assert await splits.roll_back("default", "m", "prod", MAIN.digest) == MAIN.digest
    assert (await refreshed(stored)).aliases["prod"] == MAIN.digest
    assert await fields(stored) == set()
    for call in (splits.promote, splits.roll_back):
        with pytest.raises((NotFound, Conflict)):
            await call("default", "m", "none")
        with pytest.raises(NotFound):
            await call("other", "m", "prod")


async def test_a_split_of_versions_that_are_not_there_is_refused(stored):
    for bad in (
        Split("0" * 64, Target(CANARY.digest, 1)),
        Split(MAIN.digest, Target("0" * 64, 1)),
        Split(MAIN.digest, None, Target("0" * 64, 1)),
    ):
        with pytest.raises(NotFound):
            await stored.state.splits.set("default", "m", "prod", bad)
    assert await fields(stored) == set()


async def test_whatever_moves_or_removes_the_alias_ends_its_split(stored):
    registry, splits = stored.state.registry, stored.state.splits

    async def upload():
        await stored.put("m", SHADOW, params={"alias": "prod"})

    for move in (
        lambda: registry.set_alias("default", "m", "prod", LAST.digest),
        lambda: registry.set_alias("default", "m", "prod", MAIN.digest),
        lambda: registry.set_alias("default", "m", "prod", None),
        upload,
    ):
        await splits.set("default", "m", "prod", BOTH)
        await move()
        assert await fields(stored) == set()
        assert (await refreshed(stored)).splits == {}
    # Of another alias, it stays.
    await splits.set("default", "m", "prod", BOTH)
    await registry.set_alias("default", "m", "eu", LAST.digest)
    await stored.put("m", make_mask(9))
    assert (await refreshed(stored)).split("prod") == BOTH


async def test_versions_of_a_split_are_held(stored):
    await stored.state.splits.set("default", "m", "prod", BOTH)
    await refreshed(stored)
    async with stored.client() as client:
        for mask, what in ((CANARY, "canary"), (SHADOW, "shadow")):
            answer = await client.delete(f"/v1/masks/m/versions/{mask.digest}")
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (412, "in_use")
            assert f"the {what} of m:prod" in error["message"]
        await stored.put("m", make_mask(9))
        answer = await client.post("/v1/masks/m/prune", params={"keep_last": 1})
        assert [one["digest"] for one in answer.json()["removed"]] == [LAST.digest]
        rule = {"keep_last": 1}
        await client.put("/v1/masks/m/retention", json=rule)
        assert (await client.get("/v1/masks/m/retention")).json()["due"] == 0
    # The scripts keep them too, whatever a server that knows no splits asks for.
    asked = [CANARY.digest, SHADOW.digest]
    assert await stored.state.registry.prune("default", "m", asked) == []
    await stored.state.splits.roll_back("default", "m", "prod")
    assert await stored.state.registry.prune("default", "m", asked) == asked


async def run_former(api, script, *arguments):
    outcome = await api.state.registry.run_script(script, "default/m", [], arguments)
    assert outcome[0] == "ok"


@pytest.mark.found
async def test_a_server_that_knows_no_splits_moves_the_alias(stored, caplog):
    """Its move ends the split, for good: not in force, removed, and said once."""
    await stored.state.splits.set("default", "m", "prod", BOTH)
    await refreshed(stored)
    await run_former(stored, FORMER_SET_ALIAS, "prod", LAST.digest)
    state = await refreshed(stored)
    assert (state.aliases["prod"], state.split("prod")) == (LAST.digest, None)
    await ended(stored)
    await run_former(stored, FORMER_SET_ALIAS, "prod", MAIN.digest)
    assert (await refreshed(stored)).split("prod") is None
    said = [r.message for r in caplog.records if "The split of m:prod" in r.message]
    assert len(said) == 1
    assert CANARY.digest[:12] in said[0]


async def test_a_server_that_knows_no_splits_removes_the_canary(stored, caplog):
    await stored.state.splits.set("default", "m", "prod", BOTH)
    await refreshed(stored)
    await run_former(stored, FORMER_DELETE_VERSION, CANARY.digest)
    report = await check_consistency(stored.state.registry)
    assert {p.code for p in report.problems} <= {"dangling"}
    await stored.state.replica.refresh("default", "m", [CANARY.digest])
    split = state_of(stored).split("prod")
    assert split is None or split.canary is None
    await ended(stored)
    assert "The split of m:prod" in caplog.text


async def ended(api):
    """Wait for the removal of the void split."""
    for _ in range(200):
        if not await fields(api):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the void split is still there")


async def test_a_missing_canary_is_a_problem_of_the_registry(stored):
    await stored.state.splits.set("default", "m", "prod", BOTH)
    await stored.state.replica.close()  # or this server would end the split
    await run_former(stored, FORMER_DELETE_VERSION, CANARY.digest)
    report = await check_consistency(stored.state.registry)
    assert [p.code for p in report.problems] == ["dangling"]
    assert "m:prod (canary)" in report.problems[0].what


async def test_a_second_replica_sees_a_split_whole(stored, valkey, tmp_path):
    await stored.state.splits.set("default", "m", "prod", BOTH)
    async with replica(valkey.url, tmp_path / "second") as second:
        assert second.state.replica.get("default", "m").split("prod") == BOTH
