"""Blobs in an S3 server on loopback: 10,000 masks of 1 MiB, the server dead and slow, moves."""

from __future__ import annotations

import asyncio
import os
import statistics
import time

import pytest
from bmt_server.registry.blobs.moving import Mover, whereabouts
from bmt_server.registry.maintenance import check_consistency, collect_orphans

from benchmarks.suites.cold import first_token, served
from tests.support.blobs import many as many_blobs
from tests.support.blobs.object_store import S3
from tests.support.replica import make_mask, replica
from tests.support.scenarios.figures import Figures, scaled
from tests.support.scenarios.proxy import FaultProxy
from tests.support.scenarios.registry import new_key
from tests.support.served import Valkey

pytestmark = [pytest.mark.operate, pytest.mark.timeout(3600)]

MASKS, COLD, MOVED = scaled(10_000, 200), scaled(60, 20), scaled(1_000, 100)
FAULT_S = scaled(10, 8)


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    server = S3(tmp_path_factory.mktemp("s3"))
    server.start()
    os.environ.update(server.environment())
    yield server
    server.close()


@pytest.fixture
def redis_alone(tmp_path):
    """A second registry, whose blobs are in Redis."""
    (tmp_path / "redis").mkdir()
    store = Valkey(tmp_path / "redis")
    store.start()
    yield store
    store.close()


def test_blobs_memory_and_cold_masks(valkey, redis_alone, s3, tmp_path):
    figures, place = Figures("blobs"), "s3://masks/many"
    masks = many_blobs.large_masks(COLD)

    async def fill() -> float:
        async with many_blobs.registry_at(valkey.url, place) as registry:
            seconds = await many_blobs.publish(registry, masks, MASKS - COLD)
        async with many_blobs.registry_at(redis_alone.url) as registry:
            await many_blobs.publish(registry, masks)
        return seconds

    seconds = asyncio.run(fill())
    used, resident = asyncio.run(many_blobs.memory(valkey.url))
    size = f"{MASKS} masks of 1 MiB in S3 on loopback"
    figures.record("redis_used", used, "MiB", "<= 100", size=size)
    figures.record("redis_resident", resident, "MiB", "<= 100", size=size)
    figures.record("published", MASKS / seconds, "masks/s", size=size)

    at = [(redis_alone.url, ""), (valkey.url, place)]
    in_redis, in_s3 = many_blobs.cold_seconds(masks, at, tmp_path / "nodes")
    size = f"{COLD} masks of 1 MiB, one worker, in turns"
    extra = statistics.median(in_s3) - statistics.median(in_redis)
    figures.record("cold_redis", 1e3 * statistics.median(in_redis), "ms", size=size)
    figures.record("cold_s3", 1e3 * statistics.median(in_s3), "ms", size=size)
    figures.record("cold_extra", 1e3 * extra, "ms", "<= 20", size=size)

    async def kept_up() -> tuple[float, float]:
        async with many_blobs.registry_at(valkey.url, place) as registry:
            start = time.monotonic()
            report = await check_consistency(registry, deep=False)
            checked = time.monotonic() - start
            assert report.problems == []
            assert (report.versions, report.orphans) == (MASKS, 0)
            for number in range(MASKS // 10):
                await registry.delete_name("default", f"f{number}")
            start = time.monotonic()
            swept = await collect_orphans(registry, min_age_s=0, strays=True)
            assert swept.removed == MASKS // 10
            return checked, time.monotonic() - start

    checked, swept = asyncio.run(kept_up())
    size = f"{MASKS} masks of 1 MiB in S3 on loopback"
    figures.record("fsck_quick", checked, "s", size=size)
    figures.record("gc", swept, "s", size=f"{MASKS // 10} orphans of {MASKS}")
    figures.end()


def test_blobs_first_token(smol, s3, tmp_path):
    """On real servers, one after the other: what a cold mask costs more than the same one warm."""
    figures, extra = Figures("blobs_first_token"), {}
    for place, flags in (("redis", ()), ("s3", ("--blobs", "s3://masks/engine"))):
        (tmp_path / place).mkdir()
        with served(smol, tmp_path / place, ("--enforce-eager", *flags)) as endpoint:
            found = asyncio.run(first_token(endpoint, scaled(40, 10)))
        cold, warm = (1e3 * statistics.median(found[kind]) for kind in ("cold", "warm"))
        extra[place] = cold - warm
        size = f"{len(found['cold'])} masks of SmolLM2-135M"
        figures.record(f"cold_{place}", cold, "ms", size=size)
        figures.record(f"warm_{place}", warm, "ms", size=size)
    more = extra["s3"] - extra["redis"]
    figures.record("extra_of_s3", more, "ms", "<= 20", size=size)
    figures.end()


def test_blobs_store_dead_and_slow(redis_alone, s3, tmp_path, monkeypatch):
    figures, place = Figures("blobs_store", "blobs_store_dead"), "s3://masks/faults"
    proxy = FaultProxy(s3.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")

    async def scenario() -> None:
        keys = {"admin": await new_key(redis_alone.url)}
        settings = {"blobs_url": place, "keys": keys}
        async with (
            replica(redis_alone.url, tmp_path / "w", **settings) as writer,
            replica(redis_alone.url, tmp_path / "r", **settings) as reader,
        ):
            names = [f"m{seed}" for seed in range(16)]
            for seed, name in enumerate(names):
                assert (await writer.put(name, make_mask(seed))).status_code == 201
            for name in names[:8]:
                assert (await reader.ask(name)).status_code == 200
            acknowledged: dict[str, str] = {}
            for number, fault in enumerate(("cut", "reset", "stall", "delay")):
                traffic = many_blobs.Traffic(writer, reader, names[:8], names[8:], 1000 * number)
                await asyncio.sleep(1)
                proxy.set(fault, 0.3 if fault == "delay" else 0.0)
                await asyncio.sleep(FAULT_S)
                proxy.set("pass")
                await asyncio.sleep(2)
                load = await traffic.end()
                acknowledged |= load.acknowledged
                size = f"{FAULT_S} s of the fault, {load.resident} requests for resident masks"
                figures.record(
                    f"{fault}_resident_failed", load.resident_failed, "requests", "== 0", size=size
                )
                figures.record(
                    f"{fault}_wrong",
                    len(load.wrong),
                    "answers",
                    "== 0",
                    size=size,
                    note="; ".join(load.wrong[:3]),
                )
                figures.record(f"{fault}_longest_503", load.longest_503_s, "s", "<= 6", size=size)
                figures.record(f"{fault}_stall", 1e3 * load.stall_s, "ms", "<= 250", size=size)
                if fault != "delay":
                    assert load.cold_refused > 0
                if fault in ("cut", "reset"):
                    assert load.refused > 0
                assert load.cold_served > 0
            gone = await many_blobs.lost(reader.state.registry, acknowledged)
            figures.record(
                "acknowledged_lost", gone, "uploads", "== 0", size=f"{len(acknowledged)} uploads"
            )
            report = await check_consistency(reader.state.registry)
            assert report.problems == []

    try:
        asyncio.run(scenario())
    finally:
        proxy.close()
    figures.end()


def test_blobs_move(redis_alone, s3, tmp_path):
    figures, place = Figures("blobs_move"), "s3://masks/moved"

    async def scenario() -> None:
        url = redis_alone.url
        keys = {"admin": await new_key(url)}
        masks = many_blobs.large_masks(4)
        async with many_blobs.registry_at(url) as registry:
            await many_blobs.publish(registry, masks, MOVED - len(masks))
            names = [f"s{seed}" for seed in range(8)]
            async with replica(url, tmp_path / "0", keys) as first:
                for seed, name in enumerate(names):
                    await first.put(name, make_mask(seed))
        async with (
            replica(url, tmp_path / "w", keys, blobs_url=place) as writer,
            replica(url, tmp_path / "r", keys, blobs_url=place) as reader,
        ):
            for name in names:
                assert (await reader.ask(name)).status_code == 200
            cold = [f"f{number}" for number in range(MOVED - len(masks))]
            traffic = many_blobs.Traffic(writer, reader, names, cold)
            connection = reader.state.connection
            start = time.monotonic()
            out = await Mover(connection, place).out()
            out_s = time.monotonic() - start
            assert (out.damaged, (await whereabouts(connection)).in_redis) == ((), 0)
            used, _ = await many_blobs.memory(url)
            await asyncio.sleep(1)
            start = time.monotonic()
            back = await Mover(connection, place, read_s=5).back()
            back_s = time.monotonic() - start
            assert (back.damaged, (await whereabouts(connection)).in_objects) == ((), 0)
            load = await traffic.end()
            seen = f"{load.cold_served} reads, {len(load.acknowledged)} uploads meanwhile"
            size = f"{MOVED} masks of 1 MiB, {seen}"
            figures.record(
                "wrong",
                len(load.wrong),
                "answers",
                "== 0",
                size=size,
                note="; ".join(load.wrong[:3]),
            )
            figures.record(
                "refused", load.cold_refused + load.refused, "answers", "== 0", size=size
            )
            figures.record("resident_failed", load.resident_failed, "requests", "== 0", size=size)
            gone = await many_blobs.lost(reader.state.registry, load.acknowledged)
            figures.record("acknowledged_lost", gone, "uploads", "== 0", size=size)
            figures.record("out", out.bytes / 1e6 / out_s, "MB/s", size=size)
            figures.record("back", back.bytes / 1e6 / back_s, "MB/s", size=size)
            figures.record("redis_used_between", used, "MiB", "<= 100", size=size)
            assert (await check_consistency(reader.state.registry, deep=True)).blobs >= MOVED

    asyncio.run(scenario())
    figures.end()
