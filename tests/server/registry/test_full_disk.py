"""A registry whose disk is full: it lives, serves and acknowledges nothing that it may lose."""

from __future__ import annotations

import asyncio

import pytest
from bmt_server.registry.maintenance import collect_orphans

from tests.support.replica import make_mask, replica
from tests.support.scenarios.nodes import node, until
from tests.support.scenarios.registry import new_key

LIMIT = 64 << 10


@pytest.mark.found
async def test_a_full_disk_refuses_uploads_and_loses_nothing_acknowledged(tmp_path):
    with node(tmp_path / "r", "--appendfsync", "everysec") as one:
        keys = {"admin": await new_key(one.url)}
        one.fill_disk(LIMIT)
        acknowledged, refused = [], []
        async with replica(one.url, tmp_path / "cache", keys) as api:
            for i in range(400):
                answer = await api.put(f"m{i}", make_mask(i))
                if answer.status_code == 201:
                    assert not refused, "an upload was acknowledged on a full disk"
                    acknowledged.append(f"m{i}")
                else:
                    assert answer.status_code in (503, 507), answer.text
                    assert int(answer.headers["retry-after"]) >= 1
                    refused.append(f"m{i}")
                if len(refused) == 3:
                    break
            assert acknowledged
            assert refused
            assert one.process.poll() is None, "Valkey ended"
            # Once the disk is known to be full: a refusal that no client repeats at once, with
            # the cause, and nothing of it is published.
            answer = await api.put("late", make_mask(2000))
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (507, "registry_full")
            assert "disk" in error["message"]
            async with api.client() as client:
                assert (await client.get("/v1/masks/late")).status_code == 404
                answer = await client.delete(f"/v1/masks/{acknowledged[0]}")
                assert (answer.status_code, answer.json()["error"]["code"]) == (
                    507,
                    "registry_full",
                )
            async with api.client() as client:
                answer = await client.get(f"/v1/masks/{acknowledged[0]}")
                assert answer.status_code == 200
            # Room again: the next upload works without a restart of anything.
            one.fill_disk()
            until(lambda: one.client().info("persistence")["aof_last_write_status"] == "ok")
            answer = await api.put("later", make_mask(1000))
            assert answer.status_code == 201
            async with api.client() as client:
                assert (await client.delete(f"/v1/masks/{acknowledged.pop()}")).status_code == 204
            assert (await collect_orphans(api.state.registry, min_age_s=0)).removed >= 1
        one.kill()
        one.start()
        names = {key.rsplit("/", 1)[1] for key in one.client().keys("{bmt}:name:*")}
        assert {*acknowledged, "later"} <= names


@pytest.mark.found
async def test_a_full_disk_under_fsync_of_each_write_loses_nothing_acknowledged(tmp_path):
    """Valkey ends at the first write that fails; with room it starts and takes uploads again."""
    with node(tmp_path / "r", "--appendfsync", "always") as one:
        keys = {"admin": await new_key(one.url)}
        one.fill_disk(LIMIT)
        acknowledged = []
        async with replica(one.url, tmp_path / "cache", keys) as api:
            for i in range(400):
                answer = await api.put(f"m{i}", make_mask(i))
                if answer.status_code != 201:
                    break
                acknowledged.append(f"m{i}")
            assert acknowledged
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            until(lambda: one.process.poll() is not None)
            # Masks on the server's disk are served meanwhile.
            assert (await api.ask(acknowledged[0])).status_code == 200
            one.start()
            async with api.client() as client:
                until_ready = [await client.get("/readyz")]
                for _ in range(200):
                    if (await api.put("later", make_mask(1000))).status_code == 201:
                        break
                    await asyncio.sleep(0.05)
                assert until_ready[0].status_code == 200
                listed = (await client.get("/v1/masks", params={"limit": 1000})).json()["data"]
                assert (await client.delete(f"/v1/masks/{acknowledged[0]}")).status_code == 204
        names = {entry["name"] for entry in listed}
        assert {*acknowledged, "later"} <= names
        assert len(names) <= len(acknowledged) + 2  # the one that was cut off is there or not
