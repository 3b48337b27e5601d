"""Places that batches take: of sequences, of a tenant's quota, of a newer server's entries."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time

import pytest
from bmt_server.api.admission import SequenceLimiter
from bmt_server.api.batches import run
from bmt_server.api.batches.line_queue import LineQueue
from bmt_server.api.batches.room import Room
from bmt_server.errors import BlobsDown
from bmt_server.registry.batches.record import new_batch_id
from bmt_server.registry.connection import end_task

from tests.server.api.batches.conftest import Model
from tests.support.requests.batches import created, ended, line, rows, until, upload
from tests.support.requests.jobs import stock


def test_a_line_of_many_sequences_has_its_turn():
    """While others have lines of one sequence each, all places are never free by themselves."""
    room = Room(4, SequenceLimiter(100))
    with room.batch("small", "a"), room.batch("large", "b"):
        for _ in range(2):
            assert room.fits("small", 1)
            room.take("small", 1)
        assert not room.fits("large", 9)
        room.give("small", 1)
        assert not room.fits("small", 1), "it waits for the large one"
        room.give("small", 1)
        assert room.fits("large", 9)
        room.take("large", 9)
        assert not room.fits("small", 1)
        room.give("large", 9)
        assert room.fits("small", 1)
        assert room.fits("large", 9)
    with room.batch("small", "a"):
        assert room.fits("small", 1), "the large one has gone"


def test_a_large_line_that_pauses_keeps_no_place(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    limiter = SequenceLimiter(100)
    room = Room(4, limiter)
    with room.batch("small", "a"), room.batch("large", "b"):
        room.take("small", 1)
        assert not room.fits("large", 9)
        assert not room.fits("small", 1)
        now[0] = 1.0  # its key has no budget, for instance
        assert room.fits("small", 1)
        room.give("small", 1)
        with limiter.admit(1):
            # It does not begin as long as live requests run, so the others need not wait.
            assert not room.fits("large", 9)
            assert room.fits("small", 1)


def test_a_moment_without_live_requests_gives_lines_no_more_places(monkeypatch):
    """Clients that ask one question after another all have their answers now and then."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    limiter = SequenceLimiter(100)
    room = Room(16, limiter)
    with room.batch("b", "key"):

        def begun() -> int:
            count = 0
            while room.fits("b", 1):
                room.take("b", 1)
                count += 1
            room.give("b", count)
            return count

        assert begun() == 16
        with limiter.admit(1), limiter.admit(3, background=True):
            # Lines that have not come to the limiter yet are no live requests that have gone.
            assert begun() == 4
        now[0] = 1.0
        assert begun() == 4
        now[0] = 4.0
        assert begun() == 16


async def test_answers_without_a_place_wait_for_one(start, model, monkeypatch):
    """A batch that runs stops where the tenant's quota ends, and goes on from there."""
    monkeypatch.setattr(run, "_NO_PLACE_S", 0.3)
    model.pause_s, padding = 0.02, "x" * 2000
    many = [line(f"w{n}", messages=[{"role": "user", "content": f"w{n}"}]) for n in range(60)]
    async with start("a", model, batch_sequences=2, tenant_files_bytes=32_000) as api:
        other = await upload(api, [line(f"o{n}", user=padding) for n in range(6)])
        batch = await created(api, many)
        while not (found := await until(api, batch.id, "in_progress")).errors:
            await asyncio.sleep(0.02)
        assert found.errors.data[0].code == "quota_exceeded"
        await asyncio.sleep(0.5)
        assert 0 < sum(model.asked.values()) < 60
        assert (await api.state.batches.find(batch.id)).losses == 0
        async with stock(api, "admin") as client:
            await client.files.delete(other)
        batch = await ended(api, batch.id)
        assert (batch.status, batch.errors) == ("completed", None)
        assert set(await rows(api, batch.output_file_id)) == {f"w{n}" for n in range(60)}
        assert set(model.asked.values()) == {1}


async def test_a_batch_without_a_place_ends_with_its_window(start, model, monkeypatch):
    monkeypatch.setattr(run, "_NO_PLACE_S", 0.3)
    model.pause_s = 0.02
    many = [line(f"w{n}") for n in range(60)]
    async with start("a", model, batch_sequences=2, tenant_files_bytes=16_000) as api:
        batch = await created(api, many)
        while not (await until(api, batch.id, "in_progress")).errors:
            await asyncio.sleep(0.02)
        late = time.time() + 100_000
        monkeypatch.setattr(run.time, "time", lambda: late)
        async with asyncio.timeout(10):
            while not (await api.state.batches.find(batch.id)).ending:
                await asyncio.sleep(0.05)
        assert (await api.state.batches.find(batch.id)).ending == "expired"


@pytest.mark.parametrize("late", ["fails", "arrives"])
async def test_files_of_a_lost_server_are_not_the_batchs(start, model, monkeypatch, late):
    """It still writes when another server ends the batch; what it writes or removes is its own."""
    monkeypatch.setattr(run, "LEASE_S", 1.0)
    monkeypatch.setattr("bmt_server.api.batches.runner.LEASE_S", 1.0)
    arrived, goes_on = asyncio.Event(), asyncio.Event()
    async with start("a", model) as api:
        put = api.state.files.objects.put_file

        async def slow(name, file):
            arrived.set()
            await goes_on.wait()
            if late == "fails":
                raise BlobsDown("the place of files is away")
            await put(name, file)

        monkeypatch.setattr(api.state.files.objects, "put_file", slow, raising=False)
        file = await _uploaded(start, [line()])
        async with stock(api, "admin") as client:
            batch = await client.batches.create(
                input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h"
            )
        await arrived.wait()
        runs = list(api.state.batch_runner._runs)
        await _takes_no_more(api)
        async with start("b", Model()) as second:
            batch = await ended(second, batch.id)
            assert batch.status == "completed"
            goes_on.set()
            await asyncio.wait(runs, timeout=10)
            assert set(await rows(second, batch.output_file_id)) == {"a"}
            async with stock(second, "admin") as client:
                made = (await client.files.list(purpose="batch_output")).data
            assert [one.id for one in made] == [batch.output_file_id]
            stored = await second.state.connection.quick.hlen("{bmt}:files:default")
            assert stored == 2, "the input and the output"


async def _uploaded(start, lines):
    async with start("c", Model(), batch_sequences=0) as api:
        return await upload(api, lines)


async def _takes_no_more(api):
    task = api.state.batch_runner._task
    await end_task(task)


async def test_a_newer_servers_entry_stays_in_the_queue(start, model):
    """In a rolling upgrade this one cannot read its record, and does not touch it."""
    async with start("a", model, batch_sequences=0) as api:
        newer = await created(api, [line()])
        own = await created(api, [line()])
        quick = api.state.connection.quick
        record = json.loads(await quick.hget("{bmt}:batches", newer.id))
        unread = json.dumps({**record, "of_a_later_version": 1})
        await quick.hset("{bmt}:batches", newer.id, unread)
        queue = f"{{bmt}}:batch-queue:{record['base']}"
        forged, old = new_batch_id(), new_batch_id()
        await quick.hset("{bmt}:batches", old, unread)
        # Without a record, or older than any upgrade.
        await quick.zadd(queue, {f"default/{forged}": time.time(), f"default/{old}": 5})
    async with start("b", model) as api:
        assert (await ended(api, own.id)).status == "completed"
        async with asyncio.timeout(10):
            while await quick_members(api, queue) != [f"default/{newer.id}"]:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        assert await quick_members(api, queue) == [f"default/{newer.id}"]
        assert await api.state.connection.quick.hget("{bmt}:batches", newer.id) == unread.encode()


async def quick_members(api, queue):
    return [one.decode() for one in await api.state.connection.quick.zrange(queue, 0, -1)]


async def test_a_long_line_is_parsed_in_a_thread(start, model, monkeypatch):
    parsed, threads = LineQueue._parsed, {}

    def seen(self, index):
        threads[index] = threading.current_thread() is threading.main_thread()
        return parsed(self, index)

    monkeypatch.setattr(LineQueue, "_parsed", seen)
    async with start("a", model) as api:
        api.engine.max_model_len = 1 << 20
        batch = await created(api, [line("short"), line("long", user="x" * 300_000)])
        batch = await ended(api, batch.id)
        assert set(await rows(api, batch.output_file_id)) == {"short", "long"}
    assert threads == {0: True, 1: False}


async def test_lines_begin_one_by_one_while_live_requests_run(start, model, monkeypatch):
    """Each starts with a step of its prompt; together they would make one long step."""
    take, taken = Room.take, []

    def seen(self, batch_id, sequences):
        taken.append(time.monotonic())
        take(self, batch_id, sequences)

    monkeypatch.setattr(Room, "take", seen)
    model.pause_s = 0.2
    many = [line(f"w{n}") for n in range(24)]
    async with start("a", model, batch_sequences=16) as api:
        with api.state.sequence_limiter.admit(1):
            assert (await ended(api, (await created(api, many)).id)).status == "completed"
        alone = await created(api, many)
        assert (await ended(api, alone.id)).status == "completed"
    gaps = [later - earlier for earlier, later in itertools.pairwise(taken)]
    # Four at a time, each of 0.2 s or more; what they take is not known for the first ones.
    assert min(gaps[4:23]) > 0.03
    assert min(gaps[24:]) < 0.01
