"""A registry's full disk, and the way out of docs/operating/operate.md: a reserve that is freed."""

from __future__ import annotations

import random

import pytest
import redis
from bmt_server.registry.maintenance import collect_orphans

from tests.support.replica import make_mask, replica
from tests.support.scenarios.mounts import small_disk
from tests.support.scenarios.nodes import Node, node, until
from tests.support.scenarios.registry import new_key

DISK, RESERVE = 3 << 20, 1 << 20


@pytest.mark.found
async def test_a_reserve_makes_removals_possible_on_a_full_disk(tmp_path):
    with small_disk(tmp_path / "disk", DISK) as disk, node(disk / "r") as one:
        keys = {"admin": await new_key(one.url)}
        reserve = disk / "reserve"
        reserve.write_bytes(bytes(RESERVE))
        async with replica(one.url, tmp_path / "cache", keys) as api:
            acknowledged = await filled(api)
            async with api.client() as client:
                # Without the reserve: removals are refused, and a rewrite does not help.
                assert (await client.delete("/v1/masks/m0")).status_code == 507
                assert not rewritten(one)
                reserve.unlink()
                until(lambda: one.client().info("persistence")["aof_last_write_status"] == "ok")
                kept = acknowledged[-8:]
                for name in acknowledged[:-8]:
                    assert (await client.delete(f"/v1/masks/{name}")).status_code == 204
            assert (await collect_orphans(api.state.registry, min_age_s=0)).removed >= 1
            assert rewritten(one)
            # All of the reserve is there again, and room for uploads too.
            reserve.write_bytes(bytes(RESERVE))
            for i in range(5):
                answer = await api.put(f"later{i}", make_mask(5000 + i))
                assert answer.status_code == 201
        one.kill()
        one.start()
        names = {key.rsplit("/", 1)[1] for key in one.client().keys("{bmt}:name:*")}
        assert {*kept, *(f"later{i}" for i in range(5))} <= names


async def filled(api) -> list[str]:
    """Upload until the disk is full; the names that were acknowledged."""
    acknowledged: list[str] = []
    for i in range(400):
        note = random.Random(i).randbytes(12000).hex()
        answer = await api.put(f"m{i}", make_mask(i, note=note))
        if answer.status_code == 201:
            acknowledged.append(f"m{i}")
        elif answer.json()["error"]["code"] == "registry_full":
            return acknowledged
        else:  # the first refusals are of a disk that does not confirm
            assert answer.json()["error"]["code"] == "not_durable", answer.text
    raise AssertionError("the disk does not fill up")


def rewritten(one: Node) -> bool:
    """Rewrite the append-only file; False if there is no room."""
    client = one.client()
    try:
        client.bgrewriteaof()
    except redis.ResponseError:
        return False
    until(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
    return client.info("persistence")["aof_last_bgrewrite_status"] == "ok"
