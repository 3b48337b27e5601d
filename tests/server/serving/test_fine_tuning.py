"""A file, a job, a worker and a real engine: the stock client's model answers by its mask."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest
import redis

from tests.support.requests import batches
from tests.support.requests.rows import form, jsonl, supervised
from tests.support.served import Served, Valkey, until
from tests.support.tiny_model import save_tiny_llama

pytestmark = pytest.mark.engine

SHAPE = {
    **{"hidden_size": 128, "intermediate_size": 192, "max_position_embeddings": 512},
    # Random weights, large enough for a mask to change what they answer.
    "initializer_range": 0.2,
}
FLAGS = ("--enforce-eager", "--dtype", "float32")


@pytest.fixture
def registry_of_test(tmp_path):
    (tmp_path / "valkey").mkdir()
    store = Valkey(tmp_path / "valkey")
    store.start()
    yield store
    store.close()


# With other tests on all cores, a worker of the lowest priority has nothing of them.
@pytest.mark.parametrize("train", [(), pytest.param(("--train",), marks=pytest.mark.operate)])
def test_a_finished_jobs_model_answers_at_once(tmp_path, registry_of_test, train):
    model = save_tiny_llama(tmp_path / "base", **SHAPE)
    flags = (*FLAGS, "--files", str(tmp_path / "files"), *train)
    served = Served(
        model, tmp_path, *flags, registry=registry_of_test.url, env={"OMP_NUM_THREADS": "1"}
    )
    try:
        client = openai.OpenAI(api_key=served.key, base_url=f"{served.url}/v1", max_retries=0)
        data = form(jsonl([supervised(word, word[::-1]) for word in ("abc", "def", "ghi")]))
        file = client.files.create(file=data["files"]["file"], purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model="smol", training_file=file.id, seed=0, hyperparameters={"n_epochs": 4}
        )
        if not train:
            run_worker(served, model, tmp_path / "work")
        until(lambda: ended(client, job.id), 300)
        job = client.fine_tuning.jobs.retrieve(job.id)
        assert job.status == "succeeded", job.error
        assert job.fine_tuned_model in {m.id for m in client.models.list()}
        answers = {
            name: client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": "abc"}],
                max_tokens=8,
                temperature=0,
                logprobs=True,
            )
            for name in ("smol", job.fine_tuned_model)
        }
        assert answers[job.fine_tuned_model].model.startswith(f"{job.fine_tuned_model}@")
        logprobs = [[t.logprob for t in a.choices[0].logprobs.content] for a in answers.values()]
        assert logprobs[0] != logprobs[1]
        check_batch(client, answers)
        assert served.metrics().get("bmt_training_worker_up", 0) == bool(train)
    finally:
        code = served.stop()
    assert code == 0, served.log.read_text()[-4000:]
    # What the worker had ends with it: one key is left, the first.
    assert redis.Redis(unix_socket_path=registry_of_test.socket).hlen("{bmt}:keys") == 1
    assert not list(worker_processes(tmp_path))


def run_worker(served, model, folder):
    command = [sys.executable, "-m", "bmt_trainer", "worker", "--server", served.url, "--once"]
    command += ["--model", str(model), "--folder", str(folder), "--device", "cpu"]
    environment = {**os.environ, "BMT_API_KEY": served.key, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, timeout=300)


def check_batch(client, answers):
    """The lines of a batch have the answers of live requests, and errors that vLLM words too."""
    asked = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 8, "temperature": 0}
    lines = [batches.line(name, name, **asked) for name in answers]
    lines += [batches.line("none", "none"), batches.line("n", "smol", n="x")]
    lines += [batches.line("long", "smol", max_tokens=10**6)]
    file = client.files.create(file=("b.jsonl", batches.text(lines)), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint=batches.CHAT, completion_window="24h"
    )
    until(lambda: client.batches.retrieve(batch.id).status == "completed", 60)
    batch = client.batches.retrieve(batch.id)
    files = {"output": batch.output_file_id, "error": batch.error_file_id}
    rows = {
        name: [json.loads(row)["response"] for row in client.files.content(id).content.splitlines()]
        for name, id in files.items()
    }
    assert [row["status_code"] for row in rows["error"]] == [404, 400, 400]
    for row, answer in zip(rows["output"], answers.values(), strict=True):
        body = row["body"]
        assert (body["model"], body["usage"]) == (
            answer.model,
            answer.usage.model_dump(mode="json"),
        )
        assert body["choices"][0]["message"]["content"] == answer.choices[0].message.content


def ended(client, job_id):
    return client.fine_tuning.jobs.retrieve(job_id).status not in ("queued", "running")


def worker_processes(folder):
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder) in path.read_text():
                yield path
