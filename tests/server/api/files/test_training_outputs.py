"""Reinforcement jobs, validation files, checkpoints and results of jobs, by the stock client."""

from __future__ import annotations

import json

import bmt_core
import openai
import pytest
from bmt_server.api.jobs import worker_routes
from bmt_server.errors import RegistryDown
from bmt_server.registry.jobs import transitions

from tests.support.replica import make_mask
from tests.support.requests import jobs as calls
from tests.support.requests.rows import form, graded, jsonl, supervised

CHECK = {
    **{"type": "string_check", "name": "right", "operation": "eq"},
    **{"input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"},
}
STEP = {"step": 4, "train_loss": 0.5, "full_valid_loss": 0.25}


def reinforcement(grader=CHECK, **hyperparameters):
    return {
        "type": "reinforcement",
        "reinforcement": {"grader": grader, "hyperparameters": hyperparameters},
    }


async def put(api, job, path, content, **options):
    headers = {"x-bmt-lease": job["token"], "content-type": "application/octet-stream"}
    return await calls.work(
        api, f"jobs/{job['id']}/{path}", "PUT", content=content, headers=headers, **options
    )


async def checkpoint(api, job, step, mask):
    params = {"metrics": json.dumps({**STEP, "step": step})}
    return await put(api, job, f"checkpoints/{step}", bmt_core.encode(mask), params=params)


async def test_a_reinforcement_job_reaches_its_worker_whole(files):
    async with calls.stock(files) as client:
        file = await calls.file_of(files, "reinforcement")
        job = await client.fine_tuning.jobs.create(
            model="tiny",
            training_file=file,
            validation_file=file,
            method=reinforcement(n_epochs=2, compute_multiplier=0.5, eval_interval="auto"),
        )
        assert job.method.reinforcement.grader.operation == "eq"
        assert job.method.reinforcement.hyperparameters.compute_multiplier == 0.5
        assert job.validation_file == file
        leased = await calls.lease(files)
        assert leased["method"]["grader"] == CHECK
        assert leased["validation"] is True
        for of in ("training", "validation"):
            read = await calls.work(
                files,
                f"jobs/{job.id}/file",
                "GET",
                params={"of": of},
                headers={"x-bmt-lease": leased["token"]},
            )
            assert read.content == jsonl([graded()] * 3)
        steps = [{"step": 1, "train_loss": 0.0, "train_reward_mean": 0.25}]
        await calls.report(files, leased, metrics=steps, steps=2)
        (event,) = (await client.fine_tuning.jobs.list_events(job.id, limit=1)).data
        assert event.message == "Step 1/2: reward=0.25"
        assert event.data["train_reward_mean"] == 0.25


@pytest.mark.parametrize(
    ("method", "param"),
    [
        (reinforcement(None), "method.reinforcement.grader"),
        (reinforcement({**CHECK, "operation": "in"}), "method.reinforcement.grader.operation"),
        (
            reinforcement({**CHECK, "reference": "{{ item.x | upper }}"}),
            "method.reinforcement.grader.reference",
        ),
        (
            reinforcement({"type": "score_model", "name": "j", "model": "gpt", "input": []}),
            "method.reinforcement.grader.input",
        ),
        (
            reinforcement(
                {
                    **{"type": "score_model", "name": "j", "model": "gpt"},
                    "input": [{"role": "user", "content": "{{ sample.output_text }}"}],
                }
            ),
            "method.reinforcement.grader",
        ),
        (
            reinforcement(
                {
                    **{"type": "score_model", "name": "j", "model": "tiny", "range": [0, 10**400]},
                    "input": [{"role": "user", "content": "{{ sample.output_text }}"}],
                }
            ),
            "method.reinforcement.grader.range",
        ),
        (reinforcement(eval_samples=3), "method.reinforcement.hyperparameters.eval_samples"),
        (reinforcement(beta=0.1), "method.reinforcement.hyperparameters.beta"),
        (
            reinforcement(reasoning_effort="low"),
            "method.reinforcement.hyperparameters.reasoning_effort",
        ),
    ],
)
async def test_what_no_grader_keeps_to_is_refused_by_name(files, method, param):
    file = await calls.file_of(files, "reinforcement")
    body = {"model": "tiny", "training_file": file, "method": method}
    async with files.client("upload") as client:
        answer = await client.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


async def test_a_model_that_grades_is_the_base_or_a_mask_of_the_workers_tenant(files):
    """A worker's key is of `default`: by another tenant's job it would read that one's masks."""
    await files.put("judge", make_mask())
    answers = {}
    for key in ("upload", "other"):
        async with files.client(key) as client:
            sent = await client.post("/v1/files", **form(jsonl([graded()])))
            for model in ("tiny", "judge"):
                grader = {
                    **{"type": "score_model", "name": "j", "model": model},
                    "input": [{"role": "user", "content": "{{ sample.output_text }}"}],
                }
                body = {"model": "tiny", "training_file": sent.json()["id"]}
                body["method"] = reinforcement(grader)
                answer = await client.post("/v1/fine_tuning/jobs", json=body)
                answers[key, model] = answer.status_code
    assert answers == {
        ("upload", "tiny"): 200,
        ("upload", "judge"): 200,
        ("other", "tiny"): 200,
        ("other", "judge"): 400,
    }


async def test_a_validation_file_has_the_methods_rows(files):
    training, other = await calls.file_of(files), await calls.file_of(files, "dpo")
    async with calls.stock(files) as client:
        for file in (other, "file-" + "0" * 24):
            with pytest.raises(openai.BadRequestError) as refused:
                await client.fine_tuning.jobs.create(
                    model="tiny", training_file=training, validation_file=file
                )
            assert refused.value.param == "validation_file"


async def test_checkpoints_can_be_called_before_the_job_ends(files):
    async with calls.stock(files, "admin") as client:
        id = await calls.started(files)
        job = await calls.lease(files)
        for step in (1, 2, 3, 4, 4):  # the last one again after a lost answer
            answer = await checkpoint(files, job, step, make_mask(step))
            assert answer.json() == {"id": id, "kept": True}, answer.text
        page = await client.fine_tuning.jobs.checkpoints.list(id, limit=2)
        listed = [one async for one in page]
        assert [one.step_number for one in listed] == [4, 3, 2]
        first = listed[0]
        assert first.fine_tuned_model_checkpoint == f"{job['model']}:ckpt-step-4"
        assert (first.metrics.train_loss, first.metrics.full_valid_loss) == (0.5, 0.25)
        assert (await client.fine_tuning.jobs.retrieve(id)).status == "running"
        messages = [{"role": "user", "content": "x"}]
        for one in listed:
            made = make_mask(one.step_number)
            said = await client.chat.completions.create(
                model=one.fine_tuned_model_checkpoint, messages=messages
            )
            assert said.model == f"{job['model']}@{made.digest[:12]}"
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(
                model=f"{job['model']}:ckpt-step-1", messages=messages
            )
        async with files.client("admin") as raw:
            versions = (await raw.get(f"/v1/masks/{job['model']}/versions")).json()
        kept = {version["digest"] for version in versions["data"]}
        assert kept == {make_mask(step).digest for step in (2, 3, 4)}
        await calls.report(files, job, metrics=[{"step": 5, "train_loss": 0.1}])
        await calls.publish(files, job, make_mask(5))
        names = [
            one.fine_tuned_model_checkpoint
            for one in (await client.fine_tuning.jobs.checkpoints.list(id)).data
        ]
        last = f"{job['model']}@{make_mask(5).digest[:12]}"
        assert names == [last, *(f"{job['model']}:ckpt-step-{step}" for step in (4, 3, 2))]
        said = await client.chat.completions.create(model=job["model"], messages=messages)
        assert said.model == last


async def test_a_checkpoint_of_a_lost_lease_is_refused(files):
    id = await calls.started(files)
    job = await calls.lease(files)
    assert (await checkpoint(files, job, 1, make_mask(1))).status_code == 200
    async with calls.stock(files) as client:
        await client.fine_tuning.jobs.cancel(id)
        assert (await checkpoint(files, job, 2, make_mask(2))).status_code == 412
        # As those of hosted jobs, checkpoints of a cancelled one stay.
        (kept,) = (await client.fine_tuning.jobs.checkpoints.list(id)).data
        assert kept.step_number == 1
    for metrics in ("[]", '{"step": 1}', "x", '{"step": 1, "train_loss": NaN}'):
        answer = await put(files, job, "checkpoints/1", b"x", params={"metrics": metrics})
        assert answer.json()["error"]["param"] == "metrics"


async def test_a_mask_that_arrives_as_its_job_is_cancelled_leaves_the_checkpoints(
    files, monkeypatch
):
    id = await calls.started(files)
    job = await calls.lease(files)
    await checkpoint(files, job, 1, make_mask(1))
    publish = worker_routes.publish_for

    async def cancelled_meanwhile(*args, **options):
        answer = await publish(*args, **options)
        async with calls.stock(files) as client:
            await client.fine_tuning.jobs.cancel(id)
        return answer

    monkeypatch.setattr(worker_routes, "publish_for", cancelled_meanwhile)
    assert (await calls.publish(files, job, make_mask(2))).status_code == 412
    async with files.client("admin") as client:
        found = (await client.get(f"/v1/masks/{job['model']}")).json()
    assert found["digest"] == make_mask(1).digest


async def test_results_are_a_file_of_the_tenant(files):
    async with calls.stock(files) as client:
        id = await calls.started(files)
        job = await calls.lease(files)
        csv = b"step,train_loss\n1,0.5\n2,0.25\n"
        first = (await put(files, job, "results", csv)).json()
        assert (await put(files, job, "results", csv)).json() == first
        await calls.publish(files, job)
        ended = await client.fine_tuning.jobs.retrieve(id)
        assert ended.result_files == [first["file"]]
        kept = await client.files.retrieve(first["file"])
        assert (kept.purpose, kept.filename) == ("fine-tune-results", "step_metrics.csv")
        assert (await client.files.content(first["file"])).content == csv
        listed = [one.id async for one in client.files.list(purpose="fine-tune-results")]
        assert listed == [first["file"]]
        with pytest.raises(openai.BadRequestError, match="a job wrote it"):
            await client.fine_tuning.jobs.create(model="tiny", training_file=first["file"])
    async with calls.stock(files, "other") as other:
        with pytest.raises(openai.NotFoundError):
            await other.files.content(first["file"])


async def test_a_tenant_at_its_quota_of_files_still_gets_its_model(files):
    async with files.client("upload") as client:
        for _ in range(2):
            assert (await client.post("/v1/files", **form(jsonl([supervised()])))).is_success
    id = await calls.started(files)
    job = await calls.lease(files)
    assert (await put(files, job, "results", b"step\n")).json() == {"id": id, "file": None}
    await calls.publish(files, job)
    async with calls.stock(files) as client:
        ended = await client.fine_tuning.jobs.retrieve(id)
        assert (ended.status, ended.result_files) == ("succeeded", [])
        events = (await client.fine_tuning.jobs.list_events(id)).data
    assert [e.level for e in events if "results file is not kept" in e.message] == ["warn"]


@pytest.mark.found
async def test_results_may_be_larger_than_a_mask_of_the_base(files):
    csv = b"step,train_loss\n" + b"1,0.5\n" * 100_000
    assert files.state.max_upload_bytes < len(csv) < files.state.settings.max_file_bytes
    await calls.started(files)
    job = await calls.lease(files)
    assert (await put(files, job, "results", csv)).json()["file"] is not None
    refused = await put(files, job, "results", b"x" * ((1 << 20) + 1))
    assert refused.status_code == 413


@pytest.mark.found
async def test_results_whose_answer_was_lost_stay(files, monkeypatch):
    """The job's record names the file, which was removed."""
    id = await calls.started(files)
    job = await calls.lease(files)
    store = files.state.jobs
    change = store.change

    async def without_an_answer(job_id, make):
        await change(job_id, make)
        if make.func is transitions.resulted:
            raise RegistryDown("the answer was lost")
        return await store.find(job_id), True

    with monkeypatch.context() as patch:
        patch.setattr(store, "change", without_an_answer)
        assert (await put(files, job, "results", b"step\n1\n")).status_code == 503
    kept = (await put(files, job, "results", b"step\n1\n")).json()["file"]
    async with calls.stock(files) as client:
        assert (await client.files.content(kept)).content == b"step\n1\n"
        assert (await client.fine_tuning.jobs.retrieve(id)).result_files == [kept]
