"""Acknowledged changes: on the primary's disk, and on as many replicas as the operator wants."""

from __future__ import annotations

import contextlib

import pytest

from tests.support.replica import make_mask, replica
from tests.support.scenarios.nodes import RIGHTS, node, replicated, until
from tests.support.scenarios.registry import new_key


@contextlib.asynccontextmanager
async def served(one, folder, replicas):
    keys = {"admin": await new_key(one.url)}
    async with replica(one.url, folder, keys, registry_replicas=replicas) as api:
        yield api


async def not_durable(answer) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_durable"), answer.text
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("appends", ["yes", "no"])
async def test_a_replica_has_what_is_acknowledged(tmp_path, appends):
    with replicated(tmp_path / "r", 2, "--appendonly", appends) as (first, *others):
        async with served(first, tmp_path / "cache", 2) as api:
            for i in range(5):
                assert (await api.put(f"m{i}", make_mask(i))).status_code == 201
                for other in others:
                    assert other.client().hexists(f"{{bmt}}:name:default/m{i}", "latest")
            # One replica fewer: what changes something, and what repeats it, is not acknowledged.
            others[0].kill()
            until(lambda: first.client().info("replication")["connected_slaves"] == 1)
            await not_durable(await api.put("n", make_mask(7)))
            await not_durable(await api.put("n", make_mask(7)))
            async with api.client() as client:
                await not_durable(await client.delete("/v1/masks/m0"))
            others[0].start()
            until(lambda: others[0].client().info("replication")["master_link_status"] == "up")
            answer = await api.put("n", make_mask(7))
            assert (answer.status_code, answer.json()["outcome"]) == (200, "unchanged")


async def test_replicas_without_a_file_confirm_by_receiving(tmp_path, caplog):
    with (
        node(tmp_path / "0") as first,
        node(
            tmp_path / "1", *("--appendonly", "no", "--replicaof", "127.0.0.1", str(first.port))
        ) as other,
    ):
        until(lambda: other.client().info("replication")["master_link_status"] == "up")
        async with served(first, tmp_path / "cache", 1) as api:
            for i in range(3):
                assert (await api.put(f"m{i}", make_mask(i))).status_code == 201
        assert sum("replicas" in r.message for r in caplog.records) == 1


async def test_a_registry_without_replicas_acknowledges_nothing_that_needs_one(tmp_path):
    with node(tmp_path / "r") as one:
        async with served(one, tmp_path / "cache", 1) as api:
            await not_durable(await api.put("m", make_mask(0)))
        async with served(one, tmp_path / "cache0", 0) as api:
            assert (await api.put("m", make_mask(0))).status_code == 200


async def test_a_user_without_the_right_to_wait(tmp_path):
    with replicated(tmp_path / "r", 1) as (first, _):
        first.add_user("few", f"{RIGHTS} -wait -waitaof")
        keys = {"admin": await new_key(first.url)}
        url = first.url.replace("://", "://few:p@")
        async with replica(url, tmp_path / "0", keys, registry_replicas=1) as api:
            answer = await api.put("m", make_mask(0))
            await not_durable(answer)
            assert "+waitaof" in answer.text
        async with replica(url, tmp_path / "1", keys) as api:
            assert (await api.put("n", make_mask(1))).status_code == 201


@pytest.mark.found
async def test_a_repeated_upload_waits_for_the_disk_too(tmp_path):
    """WAITAOF waits for the writes of its own connection, so a repeat writes something too."""
    with node(tmp_path / "r", "--appendfsync", "no") as one:
        async with served(one, tmp_path / "cache", 0) as api:
            # `no` leaves fsync to the system, so nothing is confirmed within the time.
            await not_durable(await api.put("m", make_mask(0)))
            await not_durable(await api.put("m", make_mask(0)))
            one.client().config_set("appendfsync", "everysec")
            assert (await api.put("m", make_mask(0))).status_code == 200
