"""Bounds, names and ends of jobs where several requests meet, and a registry without memory."""

from __future__ import annotations

import asyncio
import time

import openai
import pytest
from bmt_server.api.jobs import create, worker_routes
from bmt_server.registry.jobs import store as job_store
from bmt_server.registry.jobs import transitions
from bmt_server.registry.jobs.record import read_job
from bmt_server.registry.leased import store as work_store

from tests.support.replica import make_mask
from tests.support.requests.jobs import (
    end,
    file_of,
    full_registry,
    lease,
    publish,
    report,
    started,
    status_of,
    stock,
)

pytestmark = pytest.mark.found


async def test_requests_at_once_do_not_pass_the_bound_on_open_jobs(files, monkeypatch):
    monkeypatch.setattr(job_store, "MAX_OPEN", 3)
    file = await file_of(files)
    async with stock(files) as client:

        async def one():
            return await client.fine_tuning.jobs.create(model="tiny", training_file=file)

        made = await asyncio.gather(*(one() for _ in range(12)), return_exceptions=True)
        jobs = [job for job in made if not isinstance(job, BaseException)]
        assert len(jobs) == 3
        refused = [error for error in made if isinstance(error, openai.APIStatusError)]
        assert {error.code for error in refused} == {"too_many_jobs"}
        await client.fine_tuning.jobs.cancel(jobs[0].id)
        await one()


async def test_requests_at_once_do_not_pass_the_bound_on_kept_jobs(files, monkeypatch):
    monkeypatch.setattr(job_store, "MAX_KEPT", 4)
    file = await file_of(files)
    async with stock(files) as client:

        async def one():
            job = await client.fine_tuning.jobs.create(model="tiny", training_file=file)
            await client.fine_tuning.jobs.cancel(job.id)

        for _ in range(3):
            await asyncio.gather(*(one() for _ in range(4)))
        assert len([job async for job in client.fine_tuning.jobs.list()]) <= 4
    quick = files.state.connection.quick
    kept = await quick.zcard("{bmt}:jobs-of:default")
    assert await quick.hlen("{bmt}:jobs") == kept <= 4
    assert len(await quick.keys("{bmt}:job-events:*")) == kept


async def test_a_list_reads_the_records_of_its_page(files, monkeypatch):
    monkeypatch.setattr(work_store, "PIECE", 3)
    file = await file_of(files)
    async with stock(files) as client:
        ids = [
            (await client.fine_tuning.jobs.create(model="tiny", training_file=file)).id
            for _ in range(8)
        ]
        read = []
        monkeypatch.setattr(job_store, "read_job", lambda data: read.append(1) or read_job(data))
        page = await client.fine_tuning.jobs.list(limit=2)
        assert ([job.id for job in page.data], page.has_more) == (ids[:-3:-1], True)
        assert len(read) <= 3
        assert [job.id async for job in page] == ids[::-1]
        with pytest.raises(openai.NotFoundError):
            await client.fine_tuning.jobs.list(after="ftjob-" + "0" * 24)


async def test_a_name_that_the_tenant_has_is_not_a_new_jobs(files, monkeypatch):
    assert (await files.put("ft-x-00000000", make_mask(3), key="upload")).status_code == 201
    drawn = iter(["ftjob-" + digit * 24 for digit in "001"])
    monkeypatch.setattr(create, "new_job_id", lambda: next(drawn))
    assert await started(files, suffix="x") == "ftjob-" + "1" * 24


async def test_a_name_that_the_tenant_took_meanwhile_keeps_its_versions(files):
    id = await started(files)
    job = await lease(files)
    assert (await files.put(job["model"], make_mask(3), key="upload")).status_code == 201
    answer = await publish(files, job)
    assert (answer.status_code, answer.json()["error"]["code"]) == (412, "name_taken")
    await end(files, job, "failed", answer.json()["error"]["message"])
    assert await status_of(files, id) == "failed"
    stored = await files.state.replica.refresh("default", job["model"])
    assert list(stored.versions) == [make_mask(3).digest]


async def test_workers_of_one_job_that_publish_at_once_end_it_once(files, monkeypatch):
    """The one that has the lease succeeds, though the other's mask is another."""
    id = await started(files)
    first, state = await lease(files), files.state

    def taken(record, now_ms):
        return transitions.leased(
            record, now_ms + 600_000, token="0" * 32, worker="b", lease_ms=60_000
        )

    registry_publish = state.registry.publish

    async def taken_over(*args, **options):
        monkeypatch.setattr(state.registry, "publish", registry_publish)
        await state.jobs.change(id, taken)
        second = await publish(files, {**first, "token": "0" * 32}, make_mask(4))
        assert second.status_code == 200
        return await registry_publish(*args, **options)

    monkeypatch.setattr(state.registry, "publish", taken_over)
    assert (await publish(files, first)).status_code == 412
    assert await status_of(files, id) == "succeeded"
    async with stock(files) as client:
        (checkpoint,) = (await client.fine_tuning.jobs.checkpoints.list(id)).data
    assert checkpoint.fine_tuned_model_checkpoint.endswith(make_mask(4).digest[:12])


@pytest.mark.parametrize("how", ["cancelled", "failed", "lost"])
async def test_a_mask_goes_with_a_job_that_ends_without_it_later(files, monkeypatch, how):
    """Published by a worker whose lease was lost; then the job does not succeed."""
    id = await started(files)
    job, state = await lease(files), files.state
    registry_publish = state.registry.publish

    def taken(record, now_ms):
        return transitions.leased(record, now_ms + 600_000, token="0" * 32, worker="b", lease_ms=1)

    async def taken_over(*args, **options):
        done = await registry_publish(*args, **options)
        await state.jobs.change(id, taken)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(state.registry, "publish", taken_over)
        assert (await publish(files, job)).status_code == 412
    assert await state.replica.refresh("default", job["model"]) is not None
    if how == "cancelled":
        async with stock(files) as client:
            await client.fine_tuning.jobs.cancel(id)
    elif how == "failed":
        await end(files, {**job, "token": "0" * 32}, "failed")
    else:
        # Of two leases, the one that its tenant ends does not count.
        monkeypatch.setattr(transitions, "MAX_LEASES", 1)
        # The second lease is in the future of the registry's clock.
        await state.jobs.change(id, lambda record, _: transitions.asked("pause", record, 0))
        await state.jobs.change(id, lambda record, _: transitions.asked("resume", record, 0))
        assert await lease(files) is None
    assert await status_of(files, id) == ("cancelled" if how == "cancelled" else "failed")
    assert await state.replica.refresh("default", job["model"]) is None


async def test_publishing_does_not_shorten_a_long_lease(files, monkeypatch):
    id = await started(files)
    job = await lease(files, seconds=3600)

    async def fails(*_):
        raise worker_routes.Conflict("no", code="x")

    monkeypatch.setattr(worker_routes, "publish_for", fails)
    assert (await publish(files, job)).status_code == 412
    record = await files.state.jobs.find(id)
    assert record.lease.until_ms > (time.time() + 3000) * 1000


async def test_the_last_reason_of_a_job_that_is_given_up_is_its_error(files, monkeypatch):
    monkeypatch.setattr(transitions, "MAX_LEASES", 3)
    id = await started(files)
    for reason in ("the disk of host a is full", "the disk of host b is full", "no memory"):
        job = await lease(files)
        state = (await end(files, job, "crashed", reason)).json()["status"]
        assert state == ("failed" if reason == "no memory" else "queued")
    async with stock(files) as client:
        ended = await client.fine_tuning.jobs.retrieve(id)
        events = [e.message async for e in client.fine_tuning.jobs.list_events(id)]
    assert ended.error.code == "worker_lost"
    assert "no memory" in ended.error.message
    assert "the disk of host a is full" in events


@pytest.mark.found
async def test_a_job_may_be_paused_any_number_of_times(files, monkeypatch):
    """Each pause of a running job counted as a worker that was lost."""
    monkeypatch.setattr(transitions, "MAX_LEASES", 2)
    id = await started(files)
    async with stock(files) as client:
        for _ in range(3):
            assert (await lease(files))["id"] == id
            await client.fine_tuning.jobs.pause(id)
            await client.fine_tuning.jobs.resume(id)
    assert await status_of(files, id) == "queued"
    assert (await lease(files))["id"] == id


async def test_a_full_registry_lets_jobs_be_cancelled_and_go_on(tmp_path):
    async with full_registry(tmp_path) as (files, fill):
        ids = [await started(files, key="admin") for _ in range(3)]
        jobs = [await lease(files, seconds=2), await lease(files)]
        # Jobs of one second have no order.
        (waits,) = set(ids) - {job["id"] for job in jobs}
        file = await file_of(files, key="admin")
        fill()
        async with stock(files, "admin") as client:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.fine_tuning.jobs.create(model="tiny", training_file=file)
            assert caught.value.status_code == 507
        steps = [{"step": n, "train_loss": 1.0} for n in range(1, 1000)]
        answer = await report(files, jobs[0], metrics=steps, lease_seconds=60)
        assert (answer.status_code, answer.json()["step"]) == (200, 999)
        async with stock(files, "admin") as client:
            await client.fine_tuning.jobs.cancel(waits)
        await end(files, jobs[1], "failed", "row 3")
        ids = [*(job["id"] for job in jobs), waits]
        for id, status in zip(ids, ("running", "failed", "cancelled"), strict=True):
            assert await status_of(files, id, "admin") == status


@pytest.mark.found
async def test_jobs_of_one_second_run_in_the_order_in_which_they_were_made(files):
    """Also those that a worker gave back."""
    file = await file_of(files)
    async with stock(files) as client:
        create = client.fine_tuning.jobs.create
        made = [(await create(model="tiny", training_file=file)).id for _ in range(6)]
    first = await lease(files)
    await end(files, first, "released")
    order = [(await lease(files))["id"] for _ in made]
    assert order == made
