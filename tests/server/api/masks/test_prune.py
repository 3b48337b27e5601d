"""Old versions of a name are removed in one request, and their files soon after."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import redis
from bmt_server.ipc.blob import blob_key

from tests.support.replica import make_mask, replica
from tests.support.scenarios.full_registry import fill


@pytest.fixture
def name(api, valkey):
    """A name of ten versions of the year 2026."""
    with contextlib.closing(redis.Redis(unix_socket_path=valkey.socket)) as client:
        return fill(client, 1, 10)[0]


async def pruned(api, name: str, key: str = "admin", **params):
    async with api.client(key) as client:
        return await client.post(f"/v1/masks/{name}/prune", params=params)


async def revs(api, name: str) -> list[int]:
    async with api.client() as client:
        return [v["rev"] for v in (await client.get(f"/v1/masks/{name}/versions")).json()["data"]]


@pytest.mark.found
async def test_the_newest_the_latest_and_aliases_stay(api, name):
    await api.put(name, make_mask(2), params={"alias": "prod"})
    async with api.client() as client:
        for alias, rev in (("latest", 5), ("prod", 4)):
            await client.put(f"/v1/masks/{name}/aliases/{alias}", json={"rev": rev})
    tried = (await pruned(api, name, keep_last=2, dry_run=True)).json()
    assert (len(tried["removed"]), tried["versions"]) == (6, 4)
    assert len(await revs(api, name)) == 10
    done = (await pruned(api, name, keep_last=2)).json()
    assert done["removed"] == tried["removed"]
    assert await revs(api, name) == [11, 10, 5, 4]
    assert (await pruned(api, name, keep_last=2)).json()["removed"] == []


async def test_by_age(api, name):
    await api.put(name, make_mask(100))
    await api.put(name, make_mask(101))
    assert len((await pruned(api, name, older_than="1h")).json()["removed"]) == 10
    assert await revs(api, name) == [12, 11]
    assert (await pruned(api, name, older_than="1h")).json()["versions"] == 2


async def test_refusals(api, name):
    assert (await pruned(api, name)).json()["error"]["code"] == "prune_unbounded"
    assert (await pruned(api, name, older_than="soon")).status_code == 400
    assert (await pruned(api, name, keep_last=0)).status_code in (400, 422)
    assert (await pruned(api, "none", keep_last=1)).status_code == 404
    assert (await pruned(api, name, "upload", keep_last=1)).status_code == 403
    assert (await pruned(api, name, "other", keep_last=1)).status_code == 404
    assert len(await revs(api, name)) == 10


async def test_other_replicas_follow(api, name, valkey, tmp_path):
    async with replica(valkey.url, tmp_path / "second", api.keys) as second:
        await pruned(api, name, keep_last=3)
        async with asyncio.timeout(5):
            while len(second.state.replica.get("default", name).versions) != 3:
                await asyncio.sleep(0.01)


@pytest.mark.found
async def test_files_go_with_their_last_version(api):
    """A file that another name has stays, and one that is published again meanwhile."""
    files = {}
    for seed in range(4):
        files[seed] = (await api.put("m", make_mask(seed))).json()["file_digest"]
    await api.put("other", make_mask(1))
    api.state.housekeeper._removal_delay_s = 0.3
    assert len((await pruned(api, "m", keep_last=1)).json()["removed"]) == 3
    await api.put("again", make_mask(2))
    quick = api.state.connection.quick
    assert await quick.exists(*(blob_key(d) for d in files.values())) == 4
    async with asyncio.timeout(5):
        while await quick.exists(blob_key(files[0])):
            await asyncio.sleep(0.02)
    left = [seed for seed, digest in files.items() if await quick.exists(blob_key(digest))]
    assert left == [1, 2, 3]
    async with api.client() as client:
        await client.delete("/v1/masks/m")
    async with asyncio.timeout(5):
        while await quick.exists(blob_key(files[3])):
            await asyncio.sleep(0.02)
