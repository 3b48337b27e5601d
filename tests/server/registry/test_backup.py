"""Backup and restore of a registry under load, as docs/operating/operate.md describes them."""

from __future__ import annotations

import asyncio
import os
import shutil

from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.maintenance import check_consistency
from bmt_server.registry.registry import Registry

from tests.support.replica import make_mask, replica
from tests.support.served import Valkey


async def test_copy_of_the_append_only_files_is_a_complete_registry(api, valkey, tmp_path):
    stored = [
        (await api.put(f"m{i}", make_mask(i), params={"alias": "prod"})).json() for i in range(8)
    ]
    publishing = True

    async def publish() -> int:
        count = 0
        while publishing:
            count += (await api.put("busy", make_mask(100 + count))).status_code == 201
        return count

    busy = asyncio.create_task(publish())
    await asyncio.sleep(0.2)
    quick = api.state.connection.quick
    # A rewrite would replace files while they are copied.
    before = await quick.config_get("auto-aof-rewrite-percentage")
    await quick.config_set("auto-aof-rewrite-percentage", 0)
    while (await quick.info("persistence"))["aof_rewrite_in_progress"]:
        await asyncio.sleep(0.05)
    copy = tmp_path / "backup"
    await asyncio.to_thread(
        shutil.copytree, valkey.folder / "appendonlydir", copy / "appendonlydir"
    )
    await quick.config_set("auto-aof-rewrite-percentage", *before.values())
    publishing = False
    assert await busy > 0

    restored = Valkey(copy)
    restored.start()
    store = RegistryConnection(restored.url)
    try:
        found = await check_consistency(Registry(store))
        assert found.problems == []
        assert found.names >= len(stored)
        async with replica(restored.url, tmp_path / "cold", api.keys) as other:
            for i, version in enumerate(stored):
                assert (await other.ask(f"m{i}:prod")).json()["model"] == version["model"]
            # Revs and ids continue after those of the backup.
            newer = (await other.put("m0", make_mask(50))).json()
            assert newer["rev"] > stored[0]["rev"]
            assert newer["id"] > max(v["id"] for v in stored)
    finally:
        await store.close()
        restored.close()


async def test_running_server_follows_a_restored_registry(valkey, tmp_path, api):
    """Versions published after the backup disappear from a running server without a restart."""
    store = Valkey(tmp_path / "live")
    os.mkdir(store.folder)
    store.start()
    try:
        async with replica(store.url, tmp_path / "cache", api.keys) as one:
            keys = await api.state.connection.quick.hgetall("{bmt}:keys")
            await one.state.connection.quick.hset("{bmt}:keys", mapping=keys)
            old = (await one.put("m", make_mask(0))).json()
            shutil.copytree(store.folder / "appendonlydir", tmp_path / "backup")
            new = (await one.put("m", make_mask(1))).json()
            store.kill()
            shutil.rmtree(store.folder / "appendonlydir")
            shutil.copytree(tmp_path / "backup", store.folder / "appendonlydir")
            assert (await one.ask("m")).json()["model"] == new["model"]
            store.start()
            for _ in range(1000):
                if (await one.ask("m")).json().get("model") == old["model"]:
                    break
                await asyncio.sleep(0.05)
            assert (await one.ask("m")).json()["model"] == old["model"]
            assert (await one.ask(new["model"])).status_code == 404
    finally:
        store.close()
