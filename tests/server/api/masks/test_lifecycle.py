"""Mask lifecycle: one load per mask, concurrent with its request, bounded; typed errors."""

from __future__ import annotations

import asyncio
import errno
import time

import bmt_core
import pytest
from bmt_server.ipc import disk_cache
from bmt_server.ipc.mask_layout import write_layout
from bmt_server.ipc.worker_channel import WorkerError

from tests.support.replica import make_mask, replica


async def until(condition, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def forget_file(api, mask: bmt_core.Mask) -> None:
    api.state.cache.disk.path(mask.digest).unlink()


async def test_a_request_is_prepared_while_its_mask_loads(api):
    """The app receives the request at once; its response waits for the mask."""
    await api.put("m", make_mask())
    api.engine.slow = asyncio.Event()
    asked = asyncio.create_task(api.ask("m"))
    await until(lambda: api.calls == ["m@" + make_mask().digest[:12]])
    await asyncio.sleep(0.05)
    assert not asked.done()
    api.engine.slow.set()
    assert (await asked).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failed_load_replaces_the_apps_response(api, stream):
    await api.put("m", make_mask())
    api.engine.fail = WorkerError("no such gates", "unusable")
    async with api.client() as client:
        answer = await client.post("/v1/chat/completions", json={"model": "m", "stream": stream})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "mask_unusable")
    assert "no such gates" in answer.json()["error"]["message"]
    counted = api.state.metrics.errors.labels("mask_unusable")._value.get()
    assert counted == 1


async def test_counting_tokens_loads_nothing(api):
    await api.put("m", make_mask())
    async with api.client() as client:
        answer = await client.post("/tokenize", json={"model": "m"})
    assert answer.json()["model"] == "m@" + make_mask().digest[:12]
    assert api.engine.loads == []


async def test_a_mask_is_loaded_once_and_again_after_its_eviction(api):
    stored = (await api.put("m", make_mask())).json()
    for _ in range(3):
        await api.ask("m")
    assert api.engine.loads == [stored["id"]]
    api.engine.evict(stored["id"])
    await api.ask("m")
    assert api.engine.loads == [stored["id"]] * 2


async def test_evicted_and_unused_masks_are_unloaded(api):
    stored = (await api.put("m", make_mask())).json()
    await api.ask("m")
    held = api.state.cache.disk._held
    assert set(held) == {stored["digest"]}
    api.engine.evict(stored["id"])
    await until(lambda: api.engine.dropped == [stored["id"]])
    await until(lambda: not held)
    assert len(api.state.lifecycle) == 0
    assert (await api.ask("m")).status_code == 200


async def test_a_running_request_keeps_its_evicted_mask(api):
    stored = (await api.put("m", make_mask())).json()

    async def stream():
        async with api.client() as client:
            return await client.post("/v1/chat/completions", json={"model": "m", "stream": True})

    running = asyncio.create_task(stream())
    await until(lambda: api.engine.in_memory)
    api.engine.evict(stored["id"])
    await asyncio.sleep(0.2)
    assert api.engine.dropped == []
    assert stored["digest"] in api.state.cache.disk._held
    api.hold.set()
    assert (await running).status_code == 200
    await until(lambda: api.engine.dropped == [stored["id"]])


async def test_engine_calls_load_their_mask_first(api):
    """vLLM's background responses reach the engine after their HTTP response has ended."""
    stored = (await api.put("m", make_mask())).json()
    await api.ask("m")
    api.engine.evict(stored["id"])
    async with api.state.lifecycle.hold_for_engine(stored["id"]):
        assert stored["id"] in api.engine.in_memory
    api.engine.fail = WorkerError("no", "unusable")
    api.engine.evict(stored["id"])
    with pytest.raises(Exception, match="could not load"):
        async with api.state.lifecycle.hold_for_engine(stored["id"]):
            raise AssertionError("not loaded")
    with pytest.raises(Exception, match="was deleted"):
        async with api.state.lifecycle.hold_for_engine(12345):
            raise AssertionError("not known")


async def test_deleting_and_publishing_again_while_a_stream_runs(api):
    """Two ids share one of vLLM's names: the end of one does not retire the other."""
    await api.put("m", make_mask())

    async def stream():
        async with api.client() as client:
            return await client.post("/v1/chat/completions", json={"model": "m", "stream": True})

    old = asyncio.create_task(stream())
    await until(lambda: len(api.engine.loads) == 1)
    async with api.client() as client:
        await client.delete("/v1/masks/m")
    await api.put("m", make_mask())
    new = asyncio.create_task(stream())
    await until(lambda: len(api.engine.loads) == 2)
    old.cancel()
    await until(lambda: sum(api.state.lifecycle.in_flight().values()) == 1)
    assert [i for i, _ in api.engine.published.values()] == [api.engine.loads[1]]
    api.hold.set()
    assert (await new).status_code == 200
    assert api.engine.published == {}


async def test_the_disk_stays_within_its_bound(api, valkey, tmp_path):
    one = write_layout(make_mask(), tmp_path / "probe")
    api.state.cache.disk.bound_bytes = 4 * one
    api.state.cache.disk.trim()
    for i in range(20):
        await api.put(f"m{i}", make_mask(i))
        await api.ask(f"m{i}")
        if i >= 3:
            api.engine.evict(api.engine.loads[i - 3])
    await until(lambda: len(api.state.lifecycle) <= 3)
    await until(lambda: api.state.cache.disk.nbytes <= 4 * one)
    for i in (0, 19):
        assert (await api.ask(f"m{i}")).status_code == 200


async def test_a_full_disk_refuses_new_masks_and_serves_the_others(api, monkeypatch):
    assert (await api.put("known", make_mask(0))).status_code == 201
    assert (await api.ask("known")).status_code == 200

    def full(mask, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk_cache, "write_layout", full)
    # The registry has room, so the upload succeeds.
    assert (await api.put("cold", make_mask(1))).status_code == 201
    answer = await api.ask("cold")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "cache_full")
    assert "retry-after" in answer.headers
    assert (await api.ask("known")).status_code == 200
    monkeypatch.undo()
    assert (await api.ask("cold")).status_code == 200


async def test_an_upload_can_be_made_resident(api):
    stored = (await api.put("m", make_mask(), params={"resident": "true"})).json()
    await until(lambda: api.engine.loads == [stored["id"]])
    await api.ask("m")
    assert api.engine.loads == [stored["id"]]
    assert (await api.put("m", make_mask(), params={"resident": "true"})).status_code == 200


async def test_pins_hold_on_every_replica_and_follow_the_latest(api, valkey, tmp_path):
    one = (await api.put("m", make_mask(0))).json()
    async with api.client() as client:
        assert (await client.put("/v1/masks/m/pin")).status_code == 200
    assert api.engine.pinned == {one["id"]}
    async with replica(valkey.url, tmp_path / "second", api.keys) as second:
        await until(lambda: second.engine.pinned == {one["id"]})
        two = (await api.put("m", make_mask(1))).json()
        await until(lambda: second.engine.pinned == {two["id"]})
        await until(lambda: api.engine.pinned == {two["id"]})
        async with api.client() as client:
            await client.delete("/v1/masks/m/pin")
        await until(lambda: second.engine.pinned == set())
    assert api.engine.pinned == set()


async def test_a_pin_beyond_the_memory_is_refused(api):
    await api.put("m", make_mask())

    async def refuse(adapter, pinned):
        raise WorkerError("unpin some", "pinned")

    api.engine.pin = refuse
    async with api.client() as client:
        answer = await client.put("/v1/masks/m/pin")
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "memory_full")
        assert not (await client.get("/v1/masks/m")).json()["pinned"]


async def test_equal_masks_of_two_tenants_are_one_file(api):
    await api.put("m", make_mask())
    await api.put("m", make_mask(), "other")
    await api.ask("m")
    await api.ask("m", "other")
    assert len(list(api.state.cache.disk.folder.glob("*.lay"))) == 1
    assert len(api.engine.loads) == 2


async def test_a_lost_blob_is_an_error_of_the_request(api):
    mask = make_mask()
    stored = (await api.put("m", mask)).json()
    forget_file(api, mask)
    await api.state.connection.quick.delete("{bmt}:blob:" + stored["file_digest"])
    answer = await api.ask("m")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "blob_missing")


async def test_a_disconnect_does_not_cancel_a_shared_load(api):
    await api.put("m", make_mask())
    api.engine.slow = asyncio.Event()
    first, second = (asyncio.create_task(api.ask("m")) for _ in range(2))
    await until(lambda: len(api.calls) == 2)
    first.cancel()
    await asyncio.sleep(0.05)
    api.engine.slow.set()
    assert (await second).status_code == 200
    assert len(api.engine.loads) == 1


async def test_loads_do_not_block_the_event_loop(api):
    """Forty cold masks of a few hundred kB, with a limit on every other task's wait.

    A busy machine makes tasks wait too, so the limit grows with the wait next to idle tasks.
    """
    waits = []
    for attempt in range(3):
        names = range(40 * attempt, 40 * attempt + 40)
        for i in names:
            mask = make_mask(i, zeros=150)
            await api.put(f"m{i}", mask)
            forget_file(api, mask)
        idle, _ = await _longest_wait(asyncio.sleep(0.5))
        wait, answers = await _longest_wait(asyncio.gather(*(api.ask(f"m{i}") for i in names)))
        assert {a.status_code for a in answers} == {200}
        waits.append((wait, idle))
        if wait < 0.25 + 2 * idle:
            return
    raise AssertionError(waits)


async def _longest_wait(work):
    """Longest wait of another task on the event loop while `work` runs, seconds; its result."""
    worst = 0.0

    async def watch() -> None:
        nonlocal worst
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - start)

    watching = asyncio.create_task(watch())
    result = await work
    watching.cancel()
    return worst, result
