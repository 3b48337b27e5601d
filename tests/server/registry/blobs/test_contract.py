"""Blobs in Redis, in a folder and in S3: the same behavior, whoever keeps the bytes."""

from __future__ import annotations

import asyncio

import bmt_core
import pytest
from bmt_server.errors import ApiError, NotFound, Unavailable
from bmt_server.ipc.blob import OBJECTS, blob_key
from bmt_server.ipc.mask_source import MaskSource
from bmt_server.registry.maintenance import check_consistency, collect_orphans
from bmt_server.registry.registry import Registry
from bmt_server.registry.usage.limits import Limits
from bmt_server.worker.engine_vllm.mask_fetcher import FetchError, MaskFetcher

from tests.support.blobs.places import damage, lose, places
from tests.support.replica import make_mask

pytestmark = pytest.mark.redis


def digest_of(mask) -> str:
    return bmt_core.file_digest(bmt_core.encode(mask))


async def test_an_upload_is_read_by_all_who_read_blobs(api, open_replica, place, tmp_path):
    masks = [make_mask(seed) for seed in range(3)]
    for seed, mask in enumerate(masks):
        assert (await api.put(f"m{seed}", mask)).status_code == 201
    registry, data = api.state.registry, bmt_core.encode(masks[0])
    digest = digest_of(masks[0])
    assert await registry.blob(digest, len(data)) == data
    assert await registry.blob_size(digest) == len(data)
    async with api.client() as client:
        assert (await client.get(f"/v1/blobs/{digest}")).content == data
        assert (await client.head(f"/v1/blobs/{digest}")).headers["content-length"] == str(
            len(data)
        )
    async with open_replica(place) as other:
        assert (await other.ask("m1")).status_code == 200
        # A worker on a node of its own.
        fetcher = MaskFetcher(other.state.settings)
        source = MaskSource("default", masks[2].digest, digest_of(masks[2]))
        layout = await asyncio.to_thread(fetcher.open, str(source))
        assert (layout.digest, fetcher.fetches) == (masks[2].digest, 1)
    in_redis, in_store = await places(api)
    assert (in_redis, in_store) == ((0, 3) if place else (3, 0))


async def test_what_does_not_exist_is_said_so(api, tmp_path):
    digest = "0" * 64
    assert await api.state.registry.blob_sizes([digest]) == [0]
    with pytest.raises(NotFound):
        await api.state.registry.blob(digest, 10)
    fetcher = MaskFetcher(api.state.settings)
    with pytest.raises(FetchError, match="upload the mask again"):
        await asyncio.to_thread(fetcher.open, str(MaskSource("default", "1" * 64, digest)))


async def test_a_file_that_the_registry_lost_is_missing_and_not_damaged(api):
    mask = make_mask(0)
    await api.put("m", mask)
    await api.state.connection.quick.delete(OBJECTS, blob_key(digest_of(mask)))
    async with api.client() as client:
        answer = await client.get(f"/v1/blobs/{digest_of(mask)}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "blob_unknown")


@pytest.mark.parametrize("how", ["flip", "cut", "grow", "lose"])
async def test_damage_is_noticed_named_and_repaired_by_an_upload(
    api, open_replica, place, how, tmp_path
):
    mask = make_mask(0)
    await api.put("m", mask)
    await (lose(api, digest_of(mask)) if how == "lose" else damage(api, digest_of(mask), how))
    async with open_replica(place) as other:
        answer = await other.ask("m")
        assert answer.status_code == 503
        code = "blob_missing" if how == "lose" else "blob_damaged"
        assert answer.json()["error"]["code"] == code
        assert answer.headers["retry-after"]
        fetcher = MaskFetcher(other.state.settings)
        source = str(MaskSource("default", mask.digest, digest_of(mask)))
        with pytest.raises(FetchError):
            await asyncio.to_thread(fetcher.open, source)
        report = await check_consistency(api.state.registry)
        assert [p.code for p in report.problems] == [code]
        assert (await api.put("again", mask)).status_code == 201
        assert (await other.ask("m")).status_code == 200
    assert (await check_consistency(api.state.registry)).problems == []


async def test_a_consistent_registry_has_no_problems_and_no_orphans(api):
    for name, seed in (("a", 0), ("b", 1), ("c", 1)):
        assert (await api.put(name, make_mask(seed))).status_code == 201
    found = await check_consistency(api.state.registry)
    assert (found.names, found.versions, found.blobs, found.orphans) == (3, 3, 2, 0)
    assert found.problems == []
    assert found.bytes == sum(len(bmt_core.encode(make_mask(seed))) for seed in (0, 1))


async def test_the_second_collection_removes_orphans_and_nothing_else(api):
    await api.put("a", make_mask(0))
    await api.put("b", make_mask(1))
    async with api.client() as client:
        await client.delete("/v1/masks/a")
    registry = api.state.registry
    tried = await collect_orphans(registry, min_age_s=0, dry_run=True)
    assert (tried.orphans, tried.removed) == (1, 0)
    first = await collect_orphans(registry, min_age_s=1)
    assert (first.orphans, first.removed) == (1, 0)
    assert sum(await places(api)) == 2
    await asyncio.sleep(2)
    second = await collect_orphans(registry, min_age_s=1)
    assert (second.orphans, second.removed) == (1, 1)
    assert second.bytes == len(bmt_core.encode(make_mask(0)))
    assert sum(await places(api)) == 1
    assert (await check_consistency(registry)).problems == []


async def test_a_refused_upload_leaves_nothing(api):
    await api.put("a", make_mask(0))
    answer = await api.put("a", make_mask(1), headers={"If-None-Match": "*"})
    assert answer.status_code == 412
    await collect_orphans(api.state.registry, min_age_s=0)
    assert sum(await places(api)) == 1


@pytest.mark.parametrize("limit", ["versions", "storage_bytes"])
async def test_the_bytes_of_refused_uploads_go_by_themselves(api, limit):
    """Else a tenant would fill the registry beyond its quota by uploads that are refused."""
    api.state.housekeeper._removal_delay_s = 0.05
    assert (await api.put("a", make_mask(0))).status_code == 201
    for seed in (1, 2):
        answer = await api.put("a", make_mask(seed), headers={"If-None-Match": "*"})
        assert answer.status_code == 412
    room = {"versions": 2, "storage_bytes": 800}[limit]
    await api.state.limit_store.set("tenant", "default", Limits(**{limit: room}))
    uploads = [api.put(f"m{seed}", make_mask(seed)) for seed in range(3, 9)]
    answers = [answer.status_code for answer in await asyncio.gather(*uploads)]
    assert sorted(answers) == [201, 413, 413, 413, 413, 413]
    async with asyncio.timeout(5):
        while sum(await places(api)) != 2:
            await asyncio.sleep(0.05)
    assert (await check_consistency(api.state.registry)).problems == []


async def test_racing_uploads_and_collections_lose_nothing(api):
    """Collections with a minimum age of zero, against uploads of masks that were just deleted."""
    masks = [make_mask(seed) for seed in range(4)]
    stop, registry = asyncio.Event(), api.state.registry

    async def collect():
        while not stop.is_set():
            try:
                await collect_orphans(registry, min_age_s=0, strays=True)
            except Unavailable as busy:
                if busy.code != "registry_busy":
                    raise

    async def upload(at: int):
        async with api.client() as client:
            for turn in range(8):
                mask = masks[(at + turn) % len(masks)]
                answer = await api.put(f"m{at}", mask)
                if answer.status_code == 503:
                    # Its bytes were collected three times in a row: refused, and not published.
                    assert answer.json()["error"]["code"] == "not_durable", answer.text
                    continue
                assert answer.status_code in (200, 201), answer.text
                stored = await registry.blob(answer.json()["file_digest"], answer.json()["bytes"])
                assert bmt_core.file_digest(bytes(stored)) == answer.json()["file_digest"]
                await client.delete(f"/v1/masks/m{at}")

    collector = asyncio.create_task(collect())
    await asyncio.gather(*(upload(at) for at in range(3)))
    stop.set()
    await collector
    for at in range(3):
        assert (await api.put(f"m{at}", masks[at])).status_code == 201
    found = await check_consistency(registry)
    assert (found.names, found.problems) == (3, [])


async def test_flips_are_of_the_stored_version(api):
    mask, other = make_mask(0), make_mask(1)
    before = (await api.put("m", mask)).json()
    flips = bmt_core.encode(bmt_core.symmetric_difference(mask, other, {}))
    async with api.client() as client:
        answer = await client.patch(
            "/v1/masks/m",
            params={"parent": before["digest"], "digest": other.digest},
            content=flips,
        )
    assert answer.status_code == 201, answer.text
    assert (await check_consistency(api.state.registry)).problems == []


async def test_a_dead_redis_is_no_wrong_answer(api, valkey):
    await api.put("m", make_mask(0))
    registry: Registry = api.state.registry
    valkey.kill()
    try:
        with pytest.raises(ApiError) as down:
            await registry.blob(digest_of(make_mask(0)), 100)
        assert down.value.status == 503
        assert (await api.put("n", make_mask(1))).status_code == 503
        assert (await api.ask("m")).status_code == 200
    finally:
        valkey.start()
