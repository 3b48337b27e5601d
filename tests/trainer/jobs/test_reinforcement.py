"""Reinforcement jobs, validation, checkpoints and results by a real worker on a tiny model."""

from __future__ import annotations

import csv
import io

import openai
import pytest

from tests.support.requests.rows import graded, jsonl, supervised

WORDS = ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op")
LIKE = {
    **{"type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match"},
    **{"input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"},
}
RIGHT = {
    **{"type": "string_check", "name": "right", "operation": "ilike"},
    **{"input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"},
}
GRADER = {
    **{"type": "multi", "name": "both", "calculate_output": "0.5 * near + 0.5 * right"},
    "graders": {"near": LIKE, "right": RIGHT},
}


async def upload(client, rows):
    file = await client.files.create(file=("f.jsonl", jsonl(rows)), purpose="fine-tune")
    return file.id


async def create(client, rows, grader=GRADER, validation=(), **hyperparameters):
    method = {"grader": grader, "hyperparameters": hyperparameters}
    return await client.fine_tuning.jobs.create(
        model="tiny",
        training_file=await upload(client, rows),
        validation_file=await upload(client, validation) if validation else openai.omit,
        seed=1,
        method={"type": "reinforcement", "reinforcement": method},
    )


async def work(jobs, folder, *flags):
    worker = await jobs.worker(folder, "--once", "--max-new-tokens", "8", *flags)
    assert await worker.wait() == 0


async def table(client, job):
    (file,) = job.result_files
    text = (await client.files.content(file)).text
    return list(csv.DictReader(io.StringIO(text)))


async def test_a_grader_rewards_and_each_step_is_seen(jobs, tmp_path):
    rows = [{**graded(f"{word}?", word[0]), "more": {"n": [1]}} for word in WORDS]
    held = [graded(f"{word}!", word[0]) for word in WORDS[:3]]
    async with jobs.client() as client:
        job = await create(client, rows, validation=held, n_epochs=2, batch_size=4, eval_interval=2)
        short = await create(client, [graded(), {**graded(), "answer": None}, supervised_prompt()])
        code = {"type": "python", "name": "p", "source": "def grade(sample, item): return 1"}
        refused = await create(client, rows, code)
        await work(jobs, tmp_path / "work")
        ended = await client.fine_tuning.jobs.retrieve(job.id)
        assert ended.status == "succeeded", ended.error
        assert ended.validation_file == job.validation_file
        lines = await table(client, ended)
        assert [int(line["step"]) for line in lines] == [1, 2, 3, 4]
        assert all(0 <= float(line["train_reward_mean"]) <= 1 for line in lines)
        assert [bool(line["valid_reward_mean"]) for line in lines] == [False, True, False, True]
        events = (await client.fine_tuning.jobs.list_events(job.id, limit=100)).data
        metrics = {e.data["step"]: e.data for e in events if e.type == "metrics"}
        assert metrics[2]["valid_reward_mean"] == pytest.approx(
            float(lines[1]["valid_reward_mean"])
        )
        checkpoints = (await client.fine_tuning.jobs.checkpoints.list(job.id)).data
        assert checkpoints[0].step_number == 4
        assert checkpoints[0].fine_tuned_model_checkpoint.startswith(f"{ended.fine_tuned_model}@")
        # The row without the column that the grader reads is named.
        failed = await client.fine_tuning.jobs.retrieve(short.id)
        assert (failed.status, failed.fine_tuned_model) == ("failed", None)
        assert "row 3" in failed.error.message
        assert "item.answer" in failed.error.message
        off = await client.fine_tuning.jobs.retrieve(refused.id)
        assert "--run-grader-code" in off.error.message


def supervised_prompt():
    return {"messages": supervised()["messages"][:1]}


async def test_a_supervised_job_is_validated_on_its_file_and_has_checkpoints(jobs, tmp_path):
    rows = [supervised(f"{word}?", word[::-1]) for word in WORDS]
    async with jobs.client() as client:
        made = {}
        for name in ("validated", "plain"):
            held = [supervised("xy!", "yx"), supervised("zw!", "wz")]
            made[name] = await client.fine_tuning.jobs.create(
                model="tiny",
                training_file=await upload(client, rows),
                validation_file=await upload(client, held) if name == "validated" else openai.omit,
                seed=3,
                method={
                    "type": "supervised",
                    "supervised": {"hyperparameters": {"n_epochs": 50, "batch_size": 4}},
                },
            )
        await work(jobs, tmp_path / "work")
        ended = {n: await client.fine_tuning.jobs.retrieve(j.id) for n, j in made.items()}
        assert {job.status for job in ended.values()} == {"succeeded"}, ended
        lines = await table(client, ended["validated"])
        seen = [int(line["step"]) for line in lines if line["full_valid_loss"]]
        assert seen == list(range(10, 101, 10))
        assert "full_valid_loss" not in (await table(client, ended["plain"]))[0]
        checkpoints = (await client.fine_tuning.jobs.checkpoints.list(made["validated"].id)).data
        losses = {c.step_number: c.metrics.full_valid_loss for c in checkpoints}
        for step, loss in losses.items():
            assert loss == pytest.approx(float(lines[step - 1]["full_valid_loss"]))
        assert len(checkpoints) >= 2
        for one in checkpoints:
            said = await client.chat.completions.create(
                model=one.fine_tuned_model_checkpoint, messages=[{"role": "user", "content": "x"}]
            )
            assert said.model.startswith(f"{ended['validated'].fine_tuned_model}@")
        # To look at the mask in training changes nothing of it.
        digests = {c.step_number: c for c in checkpoints}[100].fine_tuned_model_checkpoint
        plain = (await client.fine_tuning.jobs.checkpoints.list(made["plain"].id)).data[0]
        assert digests.partition("@")[2] == plain.fine_tuned_model_checkpoint.partition("@")[2]
