"""`/v1/fine_tuning/jobs` by the stock client, and `/v1/workers` as a worker calls it."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from bmt_server.registry.jobs import transitions
from bmt_server.registry.jobs.record import read_job
from bmt_server.registry.jobs.transitions import leased

from tests.support.replica import make_mask
from tests.support.requests.jobs import (
    BASE,
    ROWS,
    end,
    file_of,
    lease,
    publish,
    report,
    started,
    status_of,
    stock,
    work,
)
from tests.support.requests.rows import jsonl


async def test_a_job_from_file_to_model_by_the_stock_client(files):
    async with stock(files) as client:
        file = await file_of(files)
        made = await client.fine_tuning.jobs.create(
            model="tiny",
            training_file=file,
            suffix="sums",
            seed=7,
            metadata={"team": "a"},
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}},
            },
        )
        assert (made.status, made.model, made.training_file) == ("queued", "tiny", file)
        assert (made.seed, made.metadata, made.fine_tuned_model) == (7, {"team": "a"}, None)
        job = await lease(files)
        assert job["id"] == made.id
        assert job["method"]["hyperparameters"]["n_epochs"] == 2
        read = await work(
            files, f"jobs/{made.id}/file", "GET", headers={"x-bmt-lease": job["token"]}
        )
        assert read.content == jsonl([ROWS["supervised"]] * 3)
        steps = [{"step": n, "train_loss": 1 / n, "learning_rate": 0.5} for n in (1, 2, 3)]
        for _ in range(2):  # reported again after a lost answer
            assert (await report(files, job, metrics=steps, steps=3)).json()["step"] == 3
        done = await publish(files, job)
        assert done.json() == {"id": made.id, "status": "succeeded", "model": job["model"]}
        ended = await client.fine_tuning.jobs.retrieve(made.id)
        assert (ended.status, ended.fine_tuned_model) == ("succeeded", job["model"])
        assert ended.fine_tuned_model.startswith("ft-sums-")
        assert ended.finished_at is not None
        events = [e async for e in client.fine_tuning.jobs.list_events(made.id, limit=2)]
        assert [e.message for e in events] == [
            "The job has successfully completed",
            *(f"Step {n}/3: loss={1 / n:.4g}" for n in (3, 2, 1)),
            "Job started",
            f"Created fine-tuning job: {made.id}",
        ]
        assert events[1].data == {"step": 3, "train_loss": 1 / 3, "learning_rate": 0.5}
        (checkpoint,) = (await client.fine_tuning.jobs.checkpoints.list(made.id)).data
        assert checkpoint.fine_tuned_model_checkpoint == f"{job['model']}@{make_mask().digest[:12]}"
        assert {m.id async for m in client.models.list()} >= {job["model"]}
        async with files.client("infer") as other:
            body = {"model": job["model"]}
            assert (await other.post("/v1/chat/completions", json=body)).status_code == 200
    assert (await publish(files, job)).json()["error"]["code"] == "lease_lost"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"model": "other"}, "model"),
        ({"training_file": "file-" + "0" * 24}, "training_file"),
        ({"training_file": "../x"}, "training_file"),
        ({"suffix": "My Model"}, "suffix"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"validation_file": "file-1"}, "validation_file"),
        ({"integrations": [{"type": "wandb"}]}, "integrations"),
        ({"unknown": 1}, "unknown"),
        ({"method": {"type": "distillation"}}, "method.type"),
        ({"method": {"type": "reinforcement"}}, "method.reinforcement.grader"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"beta": 0.1}}, "hyperparameters.beta"),
        ({"hyperparameters": {"learning_rate": 1}}, "hyperparameters.learning_rate"),
        ({"hyperparameters": {"batch_size": True}}, "hyperparameters.batch_size"),
        ({"method": {"type": "dpo", "dpo": {}}}, "training_file"),
        (
            {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": -1}}}},
            "method.dpo.hyperparameters.beta",
        ),
    ],
)
async def test_what_a_job_cannot_keep_to_is_refused_by_name(files, more, param):
    body = {"model": "tiny", "training_file": await file_of(files), **more}
    async with files.client("upload") as client:
        answer = await client.post("/v1/fine_tuning/jobs", json=body)
        error = answer.json()["error"]
        assert answer.status_code in (400, 404)
        assert error["param"] == param
        assert error["message"]
        assert (await client.get("/v1/fine_tuning/jobs")).json()["data"] == []


async def test_pause_resume_cancel_end_a_workers_lease(files):
    id = await started(files)
    async with stock(files) as client:
        jobs = client.fine_tuning.jobs
        assert (await jobs.pause(id)).status == "paused"
        assert await lease(files) is None
        assert (await jobs.resume(id)).status == "queued"
        job = await lease(files)
        assert await status_of(files, id) == "running"
        await jobs.pause(id)
        for answer in (await report(files, job), await publish(files, job)):
            assert (answer.status_code, answer.json()["error"]["code"]) == (412, "lease_lost")
        read = await work(files, f"jobs/{id}/file", "GET", headers={"x-bmt-lease": job["token"]})
        assert read.status_code == 412
        await jobs.resume(id)
        again = await lease(files)
        assert (again["id"], again["seed"]) == (id, job["seed"])
        assert (await report(files, job)).status_code == 412
        assert (await report(files, again)).status_code == 200
        assert (await jobs.cancel(id)).status == "cancelled"
        assert (await publish(files, again)).status_code == 412
        for change in (jobs.resume, jobs.pause):
            with pytest.raises(openai.APIStatusError) as caught:
                await change(id)
            assert (caught.value.status_code, caught.value.code) == (412, "job_state")
        assert (await jobs.cancel(id)).status == "cancelled"
        assert again["model"] not in {m.id async for m in client.models.list()}


async def test_a_mask_of_a_job_that_is_cancelled_in_between_is_withdrawn(files, monkeypatch):
    id = await started(files)
    job = await lease(files)
    registry_publish = files.state.registry.publish

    async def cancelled_in_between(*args, **options):
        done = await registry_publish(*args, **options)
        async with stock(files) as client:
            await client.fine_tuning.jobs.cancel(id)
        return done

    monkeypatch.setattr(files.state.registry, "publish", cancelled_in_between)
    assert (await publish(files, job)).status_code == 412
    assert await files.state.replica.refresh("default", job["model"]) is None
    assert await status_of(files, id) == "cancelled"


async def test_a_mask_of_a_job_that_another_worker_took_over_stays(files, monkeypatch):
    """The other worker may have published the same mask already, and ends the job with it."""
    id = await started(files)
    job, state = await lease(files), files.state
    registry_publish = state.registry.publish

    def taken(record, now_ms):
        return leased(record, now_ms + 600_000, token="0" * 32, worker="b", lease_ms=60_000)

    async def taken_over(*args, **options):
        done = await registry_publish(*args, **options)
        await state.jobs.change(id, taken)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(state.registry, "publish", taken_over)
        assert (await publish(files, job)).status_code == 412
    assert await state.replica.refresh("default", job["model"]) is not None
    assert (await publish(files, {**job, "token": "0" * 32})).status_code == 200


async def test_a_lost_lease_is_taken_over_and_ends_once(files):
    id = await started(files)
    first = await lease(files, seconds=2)
    assert await lease(files) is None
    await report(files, first, metrics=[{"step": 1, "train_loss": 1.0}], lease_seconds=2)
    await asyncio.sleep(2.1)
    second = await lease(files)
    assert (second["id"], second["step"]) == (id, 1)
    assert second["token"] != first["token"]
    answers = [await publish(files, job) for job in (first, second, second)]
    assert [answer.status_code for answer in answers] == [412, 200, 412]
    async with stock(files) as client:
        events = [e.message async for e in client.fine_tuning.jobs.list_events(id)]
    assert events.count("The job has successfully completed") == 1
    assert "Job continues" in events


async def test_two_workers_at_once_never_have_one_job(files):
    ids = [await started(files, key=key) for key in ("upload", "other")]
    found = await asyncio.gather(*(lease(files, worker=str(n)) for n in range(8)))
    leased = [job["id"] for job in found if job is not None]
    assert sorted(leased) == sorted(ids)
    jobs = [job for job in found if job is not None]
    ends = await asyncio.gather(*(publish(files, jobs[0]) for _ in range(4)))
    assert sorted(answer.status_code for answer in ends)[0] == 200
    async with stock(files) as client:
        id = next(id for id in ids if id == jobs[0]["id"])
        if id == ids[0]:
            events = [e.message async for e in client.fine_tuning.jobs.list_events(id)]
            assert events.count("The job has successfully completed") == 1


async def test_failed_crashed_and_released_jobs(files):
    id = await started(files)
    for outcome, state in (("released", "queued"), ("crashed", "queued"), ("failed", "failed")):
        job = await lease(files)
        assert (await end(files, job, outcome, "row 3 is too long")).json()["status"] == state
    async with stock(files) as client:
        failed = await client.fine_tuning.jobs.retrieve(id)
    assert failed.error.message == "row 3 is too long"
    assert await lease(files) is None


async def test_a_job_that_ends_its_workers_fails_in_the_end(files):
    id = await started(files)
    crashes = 0
    while (job := await lease(files)) is not None:
        await end(files, job, "crashed")
        crashes += 1
        assert crashes < 20
    assert await status_of(files, id) == "failed"


async def test_another_tenant_and_other_scopes_see_and_change_nothing(files):
    id = await started(files)
    job = await lease(files)
    ends = [("GET", ""), ("GET", "/events"), ("GET", "/checkpoints")]
    ends += [("POST", f"/{what}") for what in ("cancel", "pause", "resume")]
    for key, status in (("other", 404), ("infer", 403), ("", 401)):
        async with files.client(key) as client:
            for method, path in ends:
                answer = await client.request(method, f"/v1/fine_tuning/jobs/{id}{path}")
                assert answer.status_code == status, (key, path)
    async with files.client("other") as client:
        assert (await client.get("/v1/fine_tuning/jobs")).json()["data"] == []
        body = {"model": "tiny", "training_file": await file_of(files)}
        answer = await client.post("/v1/fine_tuning/jobs", json=body)
        assert answer.json()["error"]["param"] == "training_file"
    # An administrator of another tenant is no worker.
    for key, status in (("other", 403), ("upload", 403), ("", 401)):
        for method, path in (("POST", "lease"), ("POST", f"jobs/{id}/report")):
            answer = await work(files, path, method, key=key, json={"token": job["token"]})
            assert answer.status_code == status
    assert await status_of(files, id) == "running"


async def test_masks_are_published_for_the_jobs_tenant(files):
    await started(files, key="other")
    job = await lease(files)
    assert (await publish(files, job)).status_code == 200
    for key, there in (("other", True), ("upload", False)):
        async with files.client(key) as client:
            listed = {m["id"] for m in (await client.get("/v1/models")).json()["data"]}
        assert (job["model"] in listed) == there


async def test_a_tenants_administrator_sees_no_key_or_address_of_the_worker(files):
    id = await started(files, key="other")
    job = await lease(files)
    assert (await publish(files, job)).status_code == 200
    created_by = (await files.state.jobs.find(id)).key_id
    async with files.client("other") as client:
        shown = (await client.get(f"/v1/masks/{job['model']}")).json()
    assert shown["published_by"] == {"key_id": created_by, "key_name": job["id"], "address": ""}


async def test_who_paused_all_jobs_has_saved_up_no_worker_time(files):
    id = await started(files, key="other")
    async with stock(files, "other") as client:
        await client.fine_tuning.jobs.pause(id)
        await started(files)
        quick = files.state.connection.quick
        await quick.hset("{bmt}:job-seconds", "default", 100_000)
        await client.fine_tuning.jobs.resume(id)
    assert int(await quick.hget("{bmt}:job-seconds", "other")) == 100_000


async def test_events_of_a_job_are_bounded_and_its_end_is_among_them(files, monkeypatch):
    monkeypatch.setattr(transitions, "MAX_EVENTS", 5)
    id = await started(files)
    async with stock(files) as client:
        for _ in range(4):
            await client.fine_tuning.jobs.pause(id)
            await client.fine_tuning.jobs.resume(id)
        await client.fine_tuning.jobs.cancel(id)
        events = [e.message async for e in client.fine_tuning.jobs.list_events(id)]
    assert (len(events), events[0]) == (6, "Job cancelled")


async def test_metrics_of_a_long_job_are_apart_and_reach_its_end(files, monkeypatch):
    monkeypatch.setattr(transitions, "MAX_METRICS", 10)
    id = await started(files)
    job = await lease(files)
    for first in (1, 51):
        steps = [{"step": n, "train_loss": 1.0} for n in range(first, first + 50)]
        assert (await report(files, job, metrics=steps, steps=100)).status_code == 200
    async with stock(files) as client:
        events = [e async for e in client.fine_tuning.jobs.list_events(id)]
    shown = [e.data["step"] for e in events if e.type == "metrics"]
    assert shown == [*range(100, 0, -10), 1]


async def test_jobs_are_listed_by_their_metadata(files):
    one = await started(files, metadata={"team": "a", "x y": "1"})
    two = await started(files, metadata={"team": "b"})
    three = await started(files)

    async def listed(**query):
        async with stock(files) as client:
            return {job.id async for job in client.fine_tuning.jobs.list(limit=1, **query)}

    assert await listed() == {one, two, three}
    assert await listed(metadata={"team": "a"}) == {one}
    assert await listed(metadata={"team": "a", "x y": "2"}) == set()
    assert await listed(extra_query={"metadata": "null"}) == {three}


async def test_forged_entries_run_nothing(files):
    """Whoever writes the registry gives a worker no job that a server did not make."""
    quick = files.state.connection.quick
    good = await started(files)
    record = json.loads(await quick.hget("{bmt}:jobs", good))
    forged = {
        "ftjob-" + "1" * 24: b"\x80\x04\x95cos\nsystem\n.",
        "ftjob-" + "2" * 24: json.dumps({**record, "command": "x"}).encode(),
        "ftjob-" + "3" * 24: json.dumps({**record, "method": {"type": "shell"}}).encode(),
        "ftjob-" + "4" * 24: json.dumps({**record, "seed": "1; rm"}).encode(),
        "ftjob-" + "5" * 24: json.dumps({**record, "tenant": "other"}).encode(),
        "ftjob-" + "6" * 24: json.dumps({**record, "training_file": "../x"}).encode(),
    }
    for id, data in forged.items():
        await quick.hset("{bmt}:jobs", id, data)
        await quick.zadd(f"{{bmt}}:job-queue:{BASE}", {f"default/{id}": 0})
    await quick.zadd(f"{{bmt}}:job-queue:{BASE}", {"default/../../x": 0, "nothing": 0})
    assert (await lease(files))["id"] == good
    assert await lease(files) is None
    for id in forged:
        assert await quick.zscore(f"{{bmt}}:job-queue:{BASE}", f"default/{id}") is None
        async with files.client("upload") as client:
            answer = await client.get(f"/v1/fine_tuning/jobs/{id}")
        assert answer.status_code == 404 or read_job(forged[id]) is not None


async def test_numbers_of_jobs_and_sizes_of_bodies_are_bounded(files, monkeypatch):
    monkeypatch.setattr("bmt_server.registry.jobs.store.MAX_OPEN", 2)
    for _ in range(2):
        id = await started(files)
    with pytest.raises(openai.BadRequestError) as caught:
        await started(files, key="upload")
    assert caught.value.code in ("too_many_jobs", "quota_exceeded")
    async with files.client("upload") as client:
        large = {"model": "x" * 100_000, "training_file": "file-0"}
        assert (await client.post("/v1/fine_tuning/jobs", json=large)).status_code == 413
        for limit in ("0", "101", "x"):
            answer = await client.get(f"/v1/fine_tuning/jobs?limit={limit}")
            assert answer.status_code in (400, 422)
        for after in ("ftevent-x-1", "x", f"ftevent-{id[6:]}-x"):
            answer = await client.get(f"/v1/fine_tuning/jobs/{id}/events?after={after}")
            assert answer.status_code == 400
    job = await lease(files)
    for body in (
        {"metrics": [{"step": 0, "train_loss": 1.0}]},
        {"metrics": [{"step": 1, "train_loss": 1.0, "x": 1}]},
        {"messages": [{"message": "x" * 3000}]},
        {"lease_seconds": 10**6},
        {"token": "x"},
    ):
        assert (await report(files, job, **body)).status_code == 400
    wrong = await work(files, "lease", json={"base": "cd" * 32, "worker": "w"})
    assert wrong.json()["error"]["code"] == "base_mismatch"


async def test_ended_jobs_make_room_for_new_ones(files, monkeypatch):
    monkeypatch.setattr("bmt_server.registry.jobs.store.MAX_KEPT", 2)
    ids = []
    file = await file_of(files)
    async with stock(files) as client:
        for _ in range(3):
            made = await client.fine_tuning.jobs.create(model="tiny", training_file=file)
            ids.append(made.id)
            await client.fine_tuning.jobs.cancel(made.id)
            await asyncio.sleep(0.01)
        listed = [job.id async for job in client.fine_tuning.jobs.list()]
    assert listed == ids[:0:-1]
    assert await files.state.connection.quick.exists(f"{{bmt}}:job-events:{ids[0]}") == 0
