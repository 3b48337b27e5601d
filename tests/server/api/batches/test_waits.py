"""Batches that wait: for a budget, for whoever may still have their lease, for a shorter file."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from bmt_server.api.batches import lines
from bmt_server.api.batches.lines import LineCheck, Lines
from bmt_server.api.body.bounds import BodyBounds
from bmt_server.registry.batches import transitions
from bmt_server.registry.batches.store import Change

from tests.support.requests.batches import CHAT, asked, created, ended, line, until


@pytest.mark.found
async def test_a_batch_whose_budget_is_spent_takes_no_place_meanwhile(start, model, monkeypatch):
    """Other tenants' batches have its share; it goes on when its bounds allow it."""
    model.answers["a"], model.headers = (429, "tokens_per_day"), {"retry-after": "3600"}
    async with start("a", model) as api:
        batch = await created(api, [asked("b"), asked("a")])
        while not (found := await until(api, batch.id, "in_progress")).errors:
            await asyncio.sleep(0.02)
        assert found.errors.data[0].code == "budget_spent"
        assert "tokens_per_day" in found.errors.data[0].message
        record = await api.state.batches.find(batch.id)
        assert record.lease.worker == transitions.NO_WORKER
        assert 500_000 < record.lease.until_ms - 1000 * time.time() < 601_000
        while api.state.batch_runner._runs:
            await asyncio.sleep(0.02)
        # The operator raises the budget; the wait is over.
        model.answers.clear()
        await _lease_ended(api, batch.id)
        batch = await ended(api, batch.id)
        assert (batch.status, batch.errors) == ("completed", None)
        assert (await api.state.batches.find(batch.id)).losses == 0
        assert model.asked["b"] == 1


@pytest.mark.found
async def test_a_process_does_not_take_its_own_batch_after_an_outage(start, model):
    model.hold_after = 0
    async with start("a", model) as api:
        batch = await created(api, [asked("a"), asked("b")])
        while not model.asked:
            await asyncio.sleep(0.02)
        await _lease_ended(api, batch.id)
        api.state.batch_runner.wake()
        await asyncio.sleep(0.5)
        assert len(api.state.batch_runner._runs) == 1
        model.hold.set()
        assert (await ended(api, batch.id)).status == "completed"
        assert set(model.asked.values()) == {1}
        assert (await api.state.batches.find(batch.id)).losses == 0


@pytest.mark.found
async def test_a_lease_that_nobody_could_prolong_has_its_time_once_more(start, model):
    """Its holder may be at work: it could not reach this server, or this server its registry."""
    async with start("a", model, batch_sequences=0) as api:
        batch = await created(api, [asked("a")])
        await api.state.batches.change(batch.id, _leased_elsewhere)
    async with start("a", model) as api:
        api.state.batch_runner.wake()
        await asyncio.sleep(0.5)
        assert not model.asked
        api.state.batches._connection._up_since -= 31
        assert (await ended(api, batch.id)).status == "completed"
        assert (await api.state.batches.find(batch.id)).losses == 1


def _leased_elsewhere(batch, now_ms):
    """A lease of half a minute, which has just ended."""
    return transitions.leased(
        batch, now_ms - 30_001, token="0" * 32, worker="elsewhere", lease_ms=30_000
    )


async def _lease_ended(api, batch_id):
    def changed(batch, now_ms):
        lease = batch.lease.model_copy(update={"until_ms": now_ms - 1, "since_ms": now_ms - 1})
        return Change(batch.model_copy(update={"lease": lease}))

    await api.state.batches.change(batch_id, changed)


@pytest.mark.found
def test_a_file_of_empty_lines_is_refused_and_not_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_MOST_NUMBERS", 4)
    check = LineCheck(CHAT, BodyBounds.of_context(512, 1), needs_model=True)
    for count, code in ((2, None), (3, "too_many_lines")):
        file = (tmp_path / "f").open("w+b")
        file.write(b"\n".join(json.dumps(line(f"{n}")).encode() + b"\n" for n in range(count)))
        with file:
            errors = check.errors(Lines.read(file))
        assert [one.code for one in errors] == ([code] if code else [])
        assert not code or "empty ones" in errors[0].message
