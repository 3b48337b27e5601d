"""Batches over the ends of servers: every line once in the files, whoever answered it."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import msgspec
import pytest
from bmt_server.api.batches import files, line_queue, run
from bmt_server.api.batches.answer import _one_line
from bmt_server.errors import BlobsDown, Conflict
from bmt_server.registry.batches import transitions
from bmt_server.registry.connection import end_task

from tests.server.api.batches.conftest import Model
from tests.support.requests.batches import created, ended, line, rows
from tests.support.requests.jobs import stock

WORDS = [f"w{n}" for n in range(60)]


def lines():
    return [line(word, messages=[{"role": "user", "content": word}]) for word in WORDS]


async def check(api, batch_id):
    """Every line has its own answer, once."""
    batch = await ended(api, batch_id)
    assert (batch.status, batch.request_counts.completed) == ("completed", len(WORDS)), batch
    found = await rows(api, batch.output_file_id)
    assert {word: row["response"]["body"]["word"] for word, row in found.items()} == {
        word: word for word in WORDS
    }
    return batch


async def held(model):
    while model.running < 2:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)  # what came before is kept


async def dies(api):
    """The replica's runs end, and neither give their leases back nor say anything more."""
    runner = api.state.batch_runner
    for one in runner._runs.values():

        async def nothing(*_, **__):
            await asyncio.sleep(3600)

        one._change = nothing
    await end_task(runner._task)
    runner._task = None
    for task in list(runner._runs):
        task.cancel()


async def test_several_servers_run_a_batch_once(start, model):
    async with start("a", model) as one, start("b", model) as two:
        for api in (one, two):
            await check(api, (await created(api, lines())).id)
    assert set(model.asked.values()) == {2}


async def test_a_server_that_ends_gives_its_batches_back(start, model):
    model.hold_after = 30
    other = Model()
    async with start("a", model) as api:
        batch = await created(api, lines())
        await held(model)
    first = model.asked.total()
    async with start("b", other) as api:
        started = time.monotonic()
        await check(api, batch.id)
        # No lease had to run out.
        assert time.monotonic() - started < run.LEASE_S / 2
    assert first + other.asked.total() <= len(WORDS) + model.most
    assert other.asked.total() < len(WORDS)


async def test_a_shutdown_lets_lines_end_and_keeps_them(start, model):
    model.hold_after = 30
    other = Model()
    async with start("a", model) as api:
        batch = await created(api, lines())
        await held(model)
        api.state.shutdown.started = True
        await asyncio.sleep(0.1)
        model.hold.set()
        async with asyncio.timeout(10):
            while api.state.batch_runner._runs:
                await asyncio.sleep(0.02)
        assert set(model.asked.values()) == {1}
    async with start("b", other) as api:
        await check(api, batch.id)
    # None was answered again.
    assert set((model.asked + other.asked).values()) == {1}


async def test_a_server_that_dies_loses_no_line(start, model, monkeypatch):
    monkeypatch.setattr(run, "LEASE_S", 1.0)
    monkeypatch.setattr("bmt_server.api.batches.runner.LEASE_S", 1.0)
    model.hold_after = 30
    other = Model()
    async with start("a", model) as api:
        batch = await created(api, lines())
        await held(model)
        await dies(api)
        async with start("b", other) as second:
            await check(second, batch.id)
        # Only what was not kept is asked again.
        assert other.asked.total() <= len(WORDS) - 30 + model.most
        model.hold.set()


async def test_who_has_lost_the_lease_adds_nothing(start, model):
    model.hold.clear()
    async with start("a", model) as api:
        batch = await created(api, lines())
        await held(model)
        store = api.state.batches
        late = partial(transitions.leased, token="0" * 32, worker="b", lease_ms=60_000)
        _, changed = await store.change(batch.id, lambda b, now_ms: late(b, now_ms + 600_000))
        assert changed
        (one,) = api.state.batch_runner._runs.values()
        model.hold.set()
        async with asyncio.timeout(10):
            while api.state.batch_runner._runs:
                await asyncio.sleep(0.02)
        record = await store.find(batch.id)
        assert (record.completed, record.parts, record.lease.token) == (0, 0, "0" * 32)
        part = await files.keep(api.state.files.objects, record, [], files.new_name())
        with pytest.raises(Conflict):
            await one._change(transitions.answered, part=part)
        # The other one gives it back.
        await store.change(batch.id, partial(transitions.released, token="0" * 32))
        await check(api, batch.id)


async def test_a_death_between_file_and_end_makes_no_second_file(start, model, monkeypatch):
    monkeypatch.setattr(run, "LEASE_S", 1.0)
    monkeypatch.setattr("bmt_server.api.batches.runner.LEASE_S", 1.0)
    dead = asyncio.Event()
    publish = files.publish

    async def then_dies(*args):
        await publish(*args)
        if not dead.is_set():
            dead.set()
            await asyncio.sleep(3600)

    monkeypatch.setattr(files, "publish", then_dies)
    async with start("a", model) as api:
        batch = await created(api, lines())
        await dead.wait()
        await dies(api)
        async with start("b", model) as second:
            batch = await check(second, batch.id)
            async with second.client() as client:
                made = (await client.get("/v1/files?purpose=batch_output")).json()["data"]
            assert [one["id"] for one in made] == [batch.output_file_id]


async def test_a_registry_that_is_away_delays_a_batch(start, model, valkey):
    model.hold_after = 20
    async with start("a", model) as api:
        batch = await created(api, lines())
        await held(model)
        valkey.kill()
        model.hold.set()
        await asyncio.sleep(1.0)
        valkey.start()
        await asyncio.sleep(1.2)  # the breaker
        await check(api, batch.id)


async def test_a_batch_that_ends_its_servers_ends(start, model, monkeypatch):
    monkeypatch.setattr(transitions, "MAX_LOSSES", 2)
    async with start("a", model, batch_sequences=0) as api:
        batch = await created(api, lines())
        store, at = api.state.batches, int(time.time() * 1000)
        for n in range(3):
            late = partial(transitions.leased, token=f"{n}" * 32, worker="w", lease_ms=1000)
            then = at - 60_000 + n * 9000
            await store.change(batch.id, lambda b, _, then=then, late=late: late(b, then))
        async with start("b", model) as second:
            found = await ended(second, batch.id)
            assert (found.status, found.errors.data[0].code) == ("failed", "servers_lost")
    assert not model.asked


async def test_a_damaged_part_is_no_answer(start, model, tmp_path):
    """Its lines are answered again, with a line in the log."""
    model.hold_after = 30
    async with start("a", model) as api:
        batch = await created(api, lines())
        await held(model)
    part = next((tmp_path / "files" / "default" / "parts").iterdir())
    data = part.read_bytes()
    part.write_bytes(data[:-10] + b"x" * 10)
    other = Model()
    async with start("b", other) as api:
        await check(api, batch.id)
    assert other.asked.total() >= len(WORDS) - 30 + data.count(b"\n")


async def test_a_line_that_ends_every_engine_ends_its_batch(start, model, monkeypatch):
    monkeypatch.setattr(transitions, "MAX_LOSSES", 2)
    model.answers["w0"] = (500, "EngineDeadError")
    async with start("a", model) as api:
        seen = 0

        async def healthy():
            nonlocal seen
            before, seen = seen, model.asked["w0"]
            return before == seen

        monkeypatch.setattr(api.engine, "healthy", healthy)
        found = await ended(api, (await created(api, lines())).id)
        assert (found.status, found.errors.data[0].code) == ("failed", "servers_lost")
        assert model.asked["w0"] >= 3


async def test_a_batch_cancelled_without_a_server_asks_nothing_more(start, model, monkeypatch):
    monkeypatch.setattr(run, "LEASE_S", 1.0)
    monkeypatch.setattr("bmt_server.api.batches.runner.LEASE_S", 1.0)
    model.hold_after = 30
    other = Model()
    async with start("a", model) as api:
        batch = await created(api, lines())
        await held(model)
        await dies(api)
        async with stock(api, "admin") as client:
            assert (await client.batches.cancel(batch.id)).status == "cancelling"
        # Longer than its lines would take.
        monkeypatch.setattr(run, "_LOOK_S", 2.0)
        async with start("b", other) as second:
            found = await ended(second, batch.id)
        assert (found.status, found.request_counts.total, other.asked.total()) == (
            "cancelled",
            len(WORDS),
            0,
        )
        model.hold.set()


async def test_parts_that_a_dead_server_left_go_with_the_next_batch(start, model, monkeypatch):
    async def dead(*_):
        raise BlobsDown("away")

    async with start("a", model) as api:
        objects = api.state.files.objects
        with monkeypatch.context() as patch:
            patch.setattr(files, "remove_parts", dead)
            first = await check(api, (await created(api, lines())).id)
        left = [name async for page in objects.pages("default/parts") for name in page]
        assert left
        assert all(first.id in name for name in left)
        await check(api, (await created(api, lines())).id)
        async with asyncio.timeout(5):
            while [page async for page in objects.pages("default/parts") if page]:
                await asyncio.sleep(0.02)


async def test_a_line_whose_answer_could_not_be_taken_is_asked_again(start, model, monkeypatch):
    monkeypatch.setattr(line_queue, "_FAULT_S", 0.1)
    row, failed = line_queue.answered_row, []

    def fails_once(batch, index, *rest):
        if not failed:
            failed.append(index)
            raise OSError(5, "Input/output error")
        return row(batch, index, *rest)

    monkeypatch.setattr(line_queue, "answered_row", fails_once)
    async with start("a", model) as api:
        await check(api, (await created(api, lines())).id)
    assert (len(failed), model.asked.total()) == (1, len(WORDS) + 1)


def test_attempts_without_a_place_are_further_and_further_apart():
    assert [run._no_place_s(since_s) for since_s in (0, 3000, 86_400)] == [60, 300, 600]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_a_row_is_one_line_whatever_ends_lines_of_an_answer(end):
    row = msgspec.json.encode(_one_line(b'{"a":' + end + b"1}"))
    assert row == b'{"a":1}'


async def test_a_server_of_a_smaller_context_ends_a_batch_too(start, model):
    """Its bound on a body is an error of the lines beyond it, and of no other."""
    async with start("a", model) as api:
        api.engine.max_model_len = 4096
        model.hold.clear()
        batch = await created(api, [line("long", user="x" * 290_000), line("short")])
        await held(model)
    async with start("b", Model()) as api:
        batch = await ended(api, batch.id)
        assert (batch.status, batch.request_counts.completed) == ("completed", 1), batch
        wrong = await rows(api, batch.error_file_id)
        assert wrong["long"]["response"]["status_code"] == 413
