"""Jobs from a file to a served model: the stock client, a server, and `bmt-train worker`."""

from __future__ import annotations

import asyncio
import signal

import bmt_core
import httpx2

from tests.support.requests.rows import jsonl, pair, supervised

WORDS = ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op")
ROWS = {
    "supervised": [supervised(f"{word}?", word[::-1]) for word in WORDS],
    "dpo": [pair(f"{word}?", word[::-1], word) for word in WORDS],
}


async def create(client, kind, rows=None, seed=1, **hyperparameters):
    data = jsonl(ROWS[kind] if rows is None else rows)
    file = await client.files.create(file=("f.jsonl", data), purpose="fine-tune")
    method = {"type": kind, kind: {"hyperparameters": hyperparameters}}
    return await client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, seed=seed, method=method
    )


async def until(client, job_id, done, within_s=240):
    """The job, once `done` of it and its newest events is true."""
    for _ in range(within_s * 5):
        job = await client.fine_tuning.jobs.retrieve(job_id)
        events = (await client.fine_tuning.jobs.list_events(job_id, limit=100)).data
        if done(job, events):
            return job
        assert job.status != "failed", job.error
        await asyncio.sleep(0.2)
    raise AssertionError(f"{job_id} is {job.status}: {[e.message for e in events]}")


def steps_of(events):
    return [event.data["step"] for event in events if event.type == "metrics"]


async def mask_of(jobs, model, tenant="default"):
    """The published mask."""
    async with httpx2.AsyncClient(base_url=jobs.url) as client:
        headers = {"Authorization": f"Bearer {jobs.keys[tenant]}"}
        found = (await client.get(f"/v1/masks/{model}", headers=headers)).json()
        blob = await client.get(f"/v1/blobs/{found['file_digest']}", headers=headers)
    return bmt_core.decode(blob.content)


async def test_jobs_of_every_method_end_as_models_that_answer(jobs, tmp_path):
    async with jobs.client() as client, jobs.client("other") as other:
        sft = await create(client, "supervised", n_epochs=2, batch_size=4)
        dpo = await create(other, "dpo", n_epochs=1, batch_size=4, beta=0.2)
        long = await create(client, "supervised", [*ROWS["supervised"], supervised("x" * 2000)])
        worker = await jobs.worker(tmp_path / "work", "--once", "--max-length", "256")
        assert await worker.wait() == 0
        ended = await client.fine_tuning.jobs.retrieve(sft.id)
        assert ended.status == "succeeded", ended.error
        assert ended.trained_tokens
        events = (await client.fine_tuning.jobs.list_events(sft.id, limit=100)).data
        assert steps_of(events) == [4, 3, 2, 1]
        assert all(e.data["train_loss"] > 0 for e in events if e.type == "metrics")
        assert ended.fine_tuned_model in {m.id async for m in client.models.list()}
        answer = await client.chat.completions.with_raw_response.create(
            model=ended.fine_tuned_model, messages=[{"role": "user", "content": "ab?"}]
        )
        assert answer.http_response.json()["model"].startswith(ended.fine_tuned_model)
        theirs = await other.fine_tuning.jobs.retrieve(dpo.id)
        assert theirs.status == "succeeded", theirs.error
        assert theirs.fine_tuned_model not in {m.id async for m in client.models.list()}
        failed = await client.fine_tuning.jobs.retrieve(long.id)
        assert failed.status == "failed"
        # Rows are counted from one, and no folder of the worker's host is named.
        assert "9" in failed.error.message
        assert str(tmp_path) not in failed.error.message
    mask = await mask_of(jobs, ended.fine_tuned_model)
    assert mask.zeros
    assert str(tmp_path) not in str(mask.metadata)
    assert list((tmp_path / "work").iterdir()) == []


async def test_a_killed_worker_and_a_pause_change_nothing_of_the_mask(jobs, tmp_path):
    flags = ("--lease-seconds", "3", "--checkpoint-every", "5")
    async with jobs.client() as client, jobs.client("other") as other:
        job = await create(client, "supervised", n_epochs=100, batch_size=4)
        first = await jobs.worker(tmp_path / "work", *flags)
        await until(client, job.id, lambda _, e: max(steps_of(e), default=0) >= 6)
        first.send_signal(signal.SIGKILL)
        await first.wait()
        second = await jobs.worker(tmp_path / "work", *flags)
        # The newest event may be that the second one has taken the job.
        reached = max(steps_of((await client.fine_tuning.jobs.list_events(job.id)).data))
        await until(client, job.id, lambda _, e: max(steps_of(e), default=0) > reached)
        assert (await client.fine_tuning.jobs.pause(job.id)).status == "paused"
        await client.fine_tuning.jobs.resume(job.id)
        ended = await until(client, job.id, lambda j, _: j.status == "succeeded")
        # Of another tenant, with the same seed and rows, not disturbed.
        same = await create(other, "supervised", n_epochs=100, batch_size=4)
        whole = await until(other, same.id, lambda j, _: j.status == "succeeded")
        second.send_signal(signal.SIGTERM)
        assert await second.wait() == 143
        pages = client.fine_tuning.jobs.list_events(job.id, limit=100)
        messages = [event.message async for event in pages]
        assert messages.count("The job has successfully completed") == 1
        steps = [int(m.split("/")[0].split()[1]) for m in messages if m.startswith("Step ")]
        assert steps == list(range(200, 0, -1))
        assert messages.count("Job continues") == 2
    masks = [
        await mask_of(jobs, ended.fine_tuned_model),
        await mask_of(jobs, whole.fine_tuned_model, "other"),
    ]
    assert masks[0].digest == masks[1].digest


async def test_a_worker_with_another_base_or_key_ends_with_a_line(jobs, tmp_path):
    jobs.worker_key = jobs.keys["default"]
    assert await (await jobs.worker(tmp_path / "work", "--once")).wait() == 2
