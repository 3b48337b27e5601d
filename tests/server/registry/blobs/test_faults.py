"""An object store that is dead, hangs or is slow, before real servers' parts."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import bmt_core
import pytest
from bmt_server.ipc.blob import OBJECTS
from bmt_server.registry.blobs.in_redis import LOOSE
from bmt_server.registry.maintenance import check_consistency, collect_orphans

from tests.support.blobs.places import places
from tests.support.replica import make_mask
from tests.support.scenarios.proxy import FaultProxy

pytestmark = pytest.mark.redis


@pytest.fixture
def proxy(s3):
    made = FaultProxy(s3.port)
    yield made
    made.close()


@pytest.fixture
def place(place_of, s3, proxy, monkeypatch):
    url = place_of("s3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.environment(proxy.port)["AWS_ENDPOINT_URL"])
    return url


@asynccontextmanager
async def steady(most_s: float):
    """The event loop is never held for longer."""
    gaps, end = [], asyncio.Event()

    async def tick():
        while not end.is_set():
            start = time.perf_counter()
            await asyncio.sleep(0.01)
            gaps.append(time.perf_counter() - start)

    task = asyncio.create_task(tick())
    yield
    end.set()
    await task
    assert max(gaps) < most_s, f"held for {max(gaps):.3f} s"


@pytest.mark.parametrize("fault", ["cut", "reset", "stall"])
async def test_resident_masks_are_served_and_others_get_503(
    open_replica, place, proxy, fault, monkeypatch
):
    monkeypatch.setattr("bmt_server.ipc.object_store.ANSWER_S", 0.5)
    async with open_replica(place) as writer, open_replica(place) as other:
        for seed in range(8):
            assert (await writer.put(f"m{seed}", make_mask(seed))).status_code == 201
        assert (await other.ask("m0")).status_code == 200
        proxy.set(fault)
        async with steady(0.25):
            start = time.perf_counter()
            cold = await asyncio.gather(*(other.ask(f"m{seed}") for seed in range(1, 8)))
            assert time.perf_counter() - start < 10
            for answer in cold:
                assert answer.status_code == 503, answer.text
                assert answer.json()["error"]["code"] == "blobs_unavailable"
                assert int(answer.headers["retry-after"]) >= 1
            assert (await other.ask("m0")).status_code == 200
            assert (await writer.ask("m3")).status_code == 200
        proxy.set("pass")
        await asyncio.sleep(1.1)
        for seed in range(8):
            assert (await other.ask(f"m{seed}")).status_code == 200


@pytest.mark.parametrize("fault", ["cut", "stall"])
async def test_an_upload_without_the_store_is_not_acknowledged_nor_published(
    open_replica, place, proxy, fault, monkeypatch
):
    for name in ("ANSWER_S", "WRITE_S"):
        monkeypatch.setattr(f"bmt_server.ipc.object_store.{name}", 0.5)
    async with open_replica(place) as one:
        await one.put("m", make_mask(0))
        proxy.set(fault)
        async with steady(0.25):
            answer = await one.put("m", make_mask(1))
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "blobs_unavailable"
        assert answer.headers["retry-after"]
        async with one.client() as client:
            assert (await client.get("/v1/masks/m")).json()["rev"] == 1
        proxy.set("pass")
        await asyncio.sleep(1.1)
        assert (await one.put("m", make_mask(1))).status_code == 201


async def test_an_upload_that_ended_half_way_is_an_orphan_that_gc_removes(
    open_replica, place, monkeypatch
):
    """Its bytes are in the store, and the server died before it moved the name."""
    async with open_replica(place) as one:
        registry = one.state.registry
        data = bmt_core.encode(make_mask(0))
        staged = await registry.blobs.stage(bmt_core.file_digest(data), data)
        assert staged.written is not None
        report = await check_consistency(registry)
        assert (report.orphans, report.bytes, report.problems) == (1, len(data), [])
        # It has its time: another server's upload may be about to name it.
        assert (await collect_orphans(registry, min_age_s=60)).removed == 0
        assert await places(one) == (0, 1)
        gone = await collect_orphans(registry, min_age_s=0)
        assert (gone.orphans, gone.removed, gone.bytes) == (1, 1, len(data))
        assert await places(one) == (0, 0)
        assert not await one.state.connection.quick.exists(LOOSE, OBJECTS)
        # And one that comes to its end after all learns that it has to write again.
        assert (await one.put("m", make_mask(0))).status_code == 201
        assert (await check_consistency(registry)).problems == []


async def test_objects_that_redis_does_not_know_are_found_by_the_command(open_replica, place):
    """As after a restored backup of Redis; what is not of this registry stays."""
    async with open_replica(place) as one:
        await one.put("m", make_mask(0))
        registry, store = one.state.registry, one.state.registry.blobs.store
        await store.put(f"blobs/ab/{'ab' * 32}-0123456789abcdef", b"x")
        await store.put("notes/of/somebody.txt", b"x")
        await store.put("blobs/readme", b"x")
        assert (await collect_orphans(registry, min_age_s=0)).removed == 0
        assert (await collect_orphans(registry, min_age_s=60, strays=True)).removed == 0
        assert (await collect_orphans(registry, min_age_s=0, strays=True)).removed == 1
        left = {name async for page in store.pages() for name in page}
        assert {"notes/of/somebody.txt", "blobs/readme"} <= left
        assert (await check_consistency(registry)).problems == []


async def test_a_failed_removal_is_repeated(open_replica, place, proxy):
    async with open_replica(place) as one:
        await one.put("m", make_mask(0))
        async with one.client() as client:
            await client.delete("/v1/masks/m")
        proxy.set("cut")
        with pytest.raises(Exception, match="does not answer"):
            await collect_orphans(one.state.registry, min_age_s=0)
        proxy.set("pass")
        await asyncio.sleep(1.1)
        await collect_orphans(one.state.registry, min_age_s=0)
        assert await places(one) == (0, 0)


async def test_a_server_starts_without_its_store(open_replica, place, proxy):
    async with open_replica(place) as one:
        await one.put("m", make_mask(0))
    proxy.set("cut")
    async with open_replica(place) as late:
        assert await late.state.ready()
        assert (await late.ask("m")).status_code == 503
        proxy.set("pass")
        await asyncio.sleep(1.1)
        assert (await late.ask("m")).status_code == 200
        assert (await late.put("n", make_mask(1))).status_code == 201


async def test_a_slow_store_delays_cold_masks_alone(open_replica, place, proxy):
    async with open_replica(place) as writer, open_replica(place) as other:
        for seed in range(3):
            await writer.put(f"m{seed}", make_mask(seed))
        await other.ask("m0")
        proxy.set("delay", 2)
        cold = asyncio.create_task(other.ask("m1"))
        await asyncio.sleep(0.05)
        start = time.perf_counter()
        assert (await other.ask("m0")).status_code == 200
        assert time.perf_counter() - start < 1.6
        assert not cold.done()
        assert (await cold).status_code == 200
