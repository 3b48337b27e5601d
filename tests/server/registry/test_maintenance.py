"""Consistency check (`fsck`) and orphan collection (`gc`) on a real registry."""

from __future__ import annotations

import asyncio
import json

import bmt_core
import pytest
from bmt_server.cli.main import app
from bmt_server.errors import Unavailable
from bmt_server.ipc.blob import PREFIX, blob_key
from bmt_server.registry.maintenance import check_consistency, collect_orphans
from bmt_server.registry.names.changes import Changes
from bmt_server.registry.names.reader import GENERATION, versions_key
from bmt_server.registry.registry import EVENTS, Registry
from typer.testing import CliRunner

from tests.support.replica import make_mask, replica


@pytest.fixture
def registry(api):
    return Registry(api.state.connection)


async def blobs(registry) -> int:
    return len([k async for k in registry.connection.quick.scan_iter(f"{blob_key('')}*")])


async def test_a_consistent_registry_has_no_problems(api, registry):
    for name, seed in (("a", 0), ("b", 1), ("c", 1)):
        assert (await api.put(name, make_mask(seed))).status_code == 201
    found = await check_consistency(registry)
    assert (found.names, found.versions, found.blobs, found.orphans) == (3, 3, 2, 0)
    assert found.problems == []
    assert found.bytes == sum(len(bmt_core.encode(make_mask(seed))) for seed in (0, 1))


async def test_each_damage_is_found_and_named(api, registry):
    for name, seed in (("gone", 0), ("short", 1), ("other", 2), ("alias", 3)):
        await api.put(name, make_mask(seed))
    quick = registry.connection.quick
    (gone, short, other) = [
        blob_key(next(iter(s.versions.values())).file_digest)
        for s in await registry.states([("default", n) for n in ("gone", "short", "other")])
    ]
    await quick.delete(gone)
    await quick.set(short, (await quick.get(short))[:-1])
    data = bytearray(await quick.get(other))
    data[-1] ^= 1
    await quick.set(other, bytes(data))
    await quick.hset(f"{PREFIX}name:default/alias", "alias:prod", "f" * 64)
    found = await check_consistency(registry)
    assert sorted((p.code, p.what.split()[0].partition("@")[0]) for p in found.problems) == [
        ("blob_damaged", "other"),
        ("blob_damaged", "short"),
        ("blob_missing", "gone"),
        ("dangling", "default/alias:prod"),
    ]
    quickly = await check_consistency(registry, deep=False)
    assert {p.code for p in quickly.problems} == {"blob_damaged", "blob_missing", "dangling"}
    assert len(quickly.problems) == 3  # only hashing detects a flipped bit


async def test_the_second_run_removes_orphans_and_nothing_else(api, registry):
    await api.put("a", make_mask(0))
    await api.put("a", make_mask(1))
    await api.put("b", make_mask(1))
    async with api.client() as client:
        await client.delete("/v1/masks/a")
    assert await blobs(registry) == 2
    tried = await collect_orphans(registry, min_age_s=0, dry_run=True)
    assert (tried.orphans, tried.removed, await blobs(registry)) == (1, 0, 2)
    first = await collect_orphans(registry, min_age_s=0.2)
    assert (first.orphans, first.removed, await blobs(registry)) == (1, 0, 2)
    await asyncio.sleep(0.25)
    second = await collect_orphans(registry, min_age_s=0.2)
    assert (second.orphans, second.removed, await blobs(registry)) == (1, 1, 1)
    assert second.bytes == len(bmt_core.encode(make_mask(0)))
    assert (await check_consistency(registry)).problems == []
    assert not await registry.connection.quick.exists(f"{PREFIX}orphans")


async def test_a_blob_in_use_again_is_no_longer_an_orphan(api, registry):
    await api.put("a", make_mask(0))
    async with api.client() as client:
        await client.delete("/v1/masks/a")
    await collect_orphans(registry, min_age_s=0.1)
    await api.put("a", make_mask(0))
    await asyncio.sleep(0.15)
    assert (await collect_orphans(registry, min_age_s=0.1)).orphans == 0
    async with api.client() as client:
        await client.delete("/v1/masks/a")
    # A new orphan: its age counts from now.
    assert (await collect_orphans(registry, min_age_s=0.1)).removed == 0


async def test_an_upload_stores_its_blob_again_if_a_collection_removed_it(
    api, registry, monkeypatch
):
    """The collection runs between the write of the blob and the move of the name."""
    script, taken = Registry.run_script, []

    async def late(self, source, where, keys, args):
        if keys and not taken:
            taken.append(await self.connection.quick.unlink(*keys))
        return await script(self, source, where, keys, args)

    monkeypatch.setattr(Registry, "run_script", late)
    answer = await api.put("a", make_mask(0))
    assert taken == [1]
    assert answer.status_code == 201
    assert (await check_consistency(registry)).problems == []


async def test_racing_uploads_and_collections_lose_nothing(api, registry):
    """Collections with a minimum age of zero, against uploads of masks that were just deleted."""
    masks = [make_mask(seed) for seed in range(6)]
    stop = asyncio.Event()

    async def collect():
        while not stop.is_set():
            try:
                await collect_orphans(registry, min_age_s=0)
            except Unavailable as busy:  # the registry changed during each of its attempts
                if busy.code != "registry_busy":
                    raise

    async def upload(at: int):
        async with api.client() as client:
            for turn in range(12):
                mask = masks[(at + turn) % len(masks)]
                answer = await api.put(f"m{at}", mask)
                assert answer.status_code in (200, 201), answer.text
                blob = await registry.blob_size(answer.json()["file_digest"])
                assert blob, "an acknowledged upload without its blob"
                await client.delete(f"/v1/masks/m{at}")
            assert (await api.put(f"m{at}", masks[at])).status_code == 201

    collector = asyncio.create_task(collect())
    await asyncio.gather(*(upload(at) for at in range(3)))
    stop.set()
    await collector
    found = await check_consistency(registry)
    assert (found.names, found.problems) == (3, [])


@pytest.mark.parametrize("more", [0, 40])
@pytest.mark.parametrize(
    "damage", [(b'"created": "', b'"created": "of a newer build '), (b'"metadata": ', b"\xff")]
)
async def test_bytes_of_a_version_that_cannot_be_read_stay(
    api, valkey, registry, tmp_path, damage, more
):
    """A collection by an older build, or one of damaged text, would make the damage final."""
    for seed in range(3 + more):
        await api.put("m", make_mask(seed))
    key, old, quick = versions_key("default/m"), make_mask(0).digest, registry.connection.quick
    text = await quick.hget(key, old)
    await quick.hset(key, old, text.replace(*damage))
    found = await check_consistency(registry)
    (problem,) = found.problems
    assert (problem.code, found.versions, found.orphans) == ("version_unreadable", 2 + more, 0)
    assert old in problem.fix
    for _ in range(2):
        assert (await collect_orphans(registry, min_age_s=0)).removed == 0
    # The other versions of the name are served, and the repaired one too.
    async with replica(valkey.url, tmp_path / "second", api.keys) as second:
        for seed, status in ((0, 404), (1, 200), (2, 200)):
            answer = await second.ask(f"m@{make_mask(seed).digest[:12]}")
            assert answer.status_code == status
    await quick.hset(key, old, text)
    assert (await check_consistency(registry)).problems == []


async def test_an_upload_repairs_an_alias_that_points_at_nothing(api, registry):
    await api.put("m", make_mask(0))
    digest = make_mask(0).digest
    await registry.connection.quick.hdel(versions_key("default/m"), digest)
    (problem,) = (await check_consistency(registry)).problems
    assert (problem.code, problem.fix.split(",")[0]) == ("dangling", "upload the mask again")
    answer = await api.put("m", make_mask(0))
    assert (answer.status_code, answer.json()["parent"]) == (201, None)
    assert (await check_consistency(registry)).problems == []


async def test_fsck_and_gc_commands(api, registry, valkey):
    await api.put("a", make_mask(0))
    runner = CliRunner()

    def run(*arguments: str):
        return runner.invoke(app, [*arguments, "--registry", valkey.url])

    whole = await asyncio.to_thread(run, "fsck")
    assert whole.exit_code == 0, whole.output
    assert "1 names, 1 versions, 1 blobs" in whole.output
    (state,) = await registry.states([("default", "a")])
    (version,) = state.versions.values()
    await registry.connection.quick.delete(blob_key(version.file_digest))
    broken = await asyncio.to_thread(run, "fsck", "--json")
    assert broken.exit_code == 1
    (problem,) = json.loads(broken.output)["problems"]
    assert problem["code"] == "blob_missing"
    assert "upload the mask again" in problem["fix"]
    swept = await asyncio.to_thread(run, "gc", "--min-age", "0", "--json")
    assert json.loads(swept.output) == {"orphans": 0, "removed": 0, "bytes": 0}


@pytest.mark.found
async def test_a_collection_follows_what_is_published_meanwhile(api, registry, monkeypatch):
    """It does not restart, and keeps a blob that a version names again."""
    for name, seed in (("a", 0), ("b", 1)):
        await api.put(name, make_mask(seed))
        async with api.client() as client:
            await client.delete(f"/v1/masks/{name}")
    scans, pages, sizes = [], registry.reader.pages, registry.blob_sizes

    async def late(digests):
        for seed in (1, 2, 3):
            assert (await api.put(f"m{seed}", make_mask(seed))).status_code == 201
        return await sizes(digests)

    monkeypatch.setattr(registry, "blob_sizes", late)
    monkeypatch.setattr(registry.reader, "pages", lambda: scans.append(1) or pages())
    found = await collect_orphans(registry, min_age_s=0)
    assert (found.removed, len(scans)) == (1, 1)
    monkeypatch.undo()
    assert (await check_consistency(registry)).problems == []
    assert await blobs(registry) == 3


async def test_a_collection_follows_changes_of_more_versions_than_a_script_may_name(api, registry):
    """As of a prune of ten thousand versions."""
    await api.put("m", make_mask(0))
    changes = Changes(registry)
    await changes.start()
    generation, quick = changes.generation, registry.connection.quick
    for at in range(1, 51):
        gone = " ".join(f"{at * 1000 + i:064x}" for i in range(200))
        event = {"where": "default/m", "kind": "delete", "generation": generation + at}
        await quick.incr(GENERATION)
        await quick.xadd(EVENTS, {**event, "changed": gone})
    file = bmt_core.file_digest(bmt_core.encode(make_mask(0)))
    assert await changes.files() == {bytes.fromhex(file)}
