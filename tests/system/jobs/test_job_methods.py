"""Jobs of each method on the real model by the stock client alone: time, and what they teach.

A file, a job, a chat with the model that it makes; sums and lists that no job has seen.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from bmt_trainer.evaluation.intervals import wilson

from tests.support.requests.rows import jsonl, pair, supervised
from tests.support.scenarios.figures import Figures, scaled
from tests.support.training.job_place import job_place

pytestmark = [pytest.mark.operate, pytest.mark.engine, pytest.mark.timeout(3 * 3600)]

HELD_OUT = scaled(400, 20)
STEPS = {"supervised": scaled(70, 4), "dpo": scaled(40, 4), "reinforcement": scaled(40, 2)}
BATCH = {"supervised": 4, "dpo": 4, "reinforcement": 8}
MOST = 30
JOB_S = 3600

Asked = list[tuple[str, str]]


@pytest.fixture(scope="module")
def client(smol, tmp_path_factory) -> Iterator[openai.OpenAI]:
    """The stock client of a server that a worker trains for."""
    folder = tmp_path_factory.mktemp("jobs")
    with job_place(smol, folder, "--max-new-tokens", "16", threads=2) as served:
        yield openai.OpenAI(api_key=served.key, base_url=f"{served.url}/v1")


def sums(count: int) -> tuple[Asked, Asked]:
    """Questions with their answers: `count` to train on, and others."""
    pairs = list(itertools.product(range(1, MOST + 1), repeat=2))
    random.Random(0).shuffle(pairs)
    asked = [
        (f"What is {a} + {b}? Answer with the number only.", str(a + b))
        for a, b in pairs[: count + HELD_OUT]
    ]
    return asked[:count], asked[count:]


def lists(count: int) -> tuple[Asked, Asked]:
    """Lists of four or five numbers to sort, greatest first."""
    rng, made = random.Random(0), dict[str, str]()
    while len(made) < count + HELD_OUT:
        numbers = rng.sample(range(100), rng.choice((4, 5)))
        question = f"Sort in descending order: {' '.join(map(str, numbers))}"
        made[question] = " ".join(map(str, sorted(numbers, reverse=True)))
    asked = list(made.items())
    return asked[:count], asked[count:]


def whole(said: str, answer: str) -> bool:
    """True if that is the answer and nothing else."""
    return said.strip() == answer


def last_number(said: str, answer: str) -> bool:
    """True if the last number is the answer, in a sentence or alone."""
    return re.findall(r"-?\d+", said)[-1:] == [answer]


@dataclass(frozen=True)
class Method:
    """A method's questions, rows of them, and settings of its own."""

    questions: Callable[[int], tuple[Asked, Asked]]
    row: Callable[[str, str], Any]
    settings: dict[str, Any]
    reading: Callable[[str, str], bool]


def compared(question: str, answer: str) -> Any:
    """The right sum, rather than the next number."""
    return pair(question, answer, str(int(answer) + 1))


def graded(question: str, answer: str) -> Any:
    return {"messages": [{"role": "user", "content": question}], "sum": answer}


RIGHT = {
    **{"type": "string_check", "name": "right", "operation": "like"},
    **{"input": "{{ sample.output_text }}", "reference": "{{ item.sum }}"},
}
GRADER = {
    **{"type": "multi", "name": "right, and nothing else"},
    "graders": {"right": RIGHT, "exact": {**RIGHT, "name": "exact", "operation": "eq"}},
    "calculate_output": "0.5 * right + 0.5 * exact",
}
METHODS = {
    "supervised": Method(lists, supervised, {}, whole),
    "dpo": Method(sums, compared, {}, last_number),
    "reinforcement": Method(sums, graded, {"grader": GRADER}, last_number),
}


def right(
    client: openai.OpenAI, model: str, asked: Asked, reading: Callable[[str, str], bool]
) -> list[bool]:
    """True for each question that the model answers right, greedily."""

    def one(question: str) -> str:
        reply = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            max_tokens=24,
            temperature=0,
        )
        return reply.choices[0].message.content or ""

    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(one, [question for question, _ in asked])
        return [reading(said, answer) for said, (_, answer) in zip(answers, asked, strict=True)]


def trained(client: openai.OpenAI, name: str, rows: Sequence[Any]) -> str:
    """The model of a job on the rows."""
    file = client.files.create(file=(f"{name}.jsonl", jsonl(rows)), purpose="fine-tune")
    hyperparameters = {"n_epochs": 1, "batch_size": BATCH[name]}
    settings = {**METHODS[name].settings, "hyperparameters": hyperparameters}
    method: Any = {"type": name, name: settings}
    job = client.fine_tuning.jobs.create(
        model="smol", training_file=file.id, seed=0, method=method, suffix=name
    )
    deadline = time.monotonic() + JOB_S
    while job.status in ("queued", "running") and time.monotonic() < deadline:
        time.sleep(1)
        job = client.fine_tuning.jobs.retrieve(job.id)
    events = client.fine_tuning.jobs.list_events(job.id, limit=3).data
    assert job.status == "succeeded", (job.error, [event.message for event in events])
    print(json.dumps([event.message for event in events]))
    assert job.fine_tuned_model
    return job.fine_tuned_model


@pytest.mark.parametrize("name", METHODS)
def test_a_job_from_its_file_to_a_chat(client, name):
    method, figures = METHODS[name], Figures("job", "test_job_methods")
    train, held_out = method.questions(STEPS[name] * BATCH[name])
    before = right(client, "smol", held_out, method.reading)
    began = time.monotonic()
    model = trained(client, name, [method.row(*one) for one in train])
    right(client, model, held_out[:1], method.reading)
    seconds = time.monotonic() - began
    after = right(client, model, held_out, method.reading)
    n = len(held_out)
    for key, answers in (("base", before), ("model", after)):
        low, high = wilson(sum(answers), n)
        figures.record(
            f"{name}_{key}_right",
            100 * sum(answers) / n,
            "%",
            size=f"{n} questions that the job has not seen",
            note=f"{100 * low:.1f} to {100 * high:.1f}, Wilson",
        )
    figures.record(
        f"{name}_minutes", seconds / 60, "min", size=f"{STEPS[name]} steps of {BATCH[name]}"
    )
    lift = 100 * (sum(after) - sum(before)) / n
    # Pairs of the right and the next sum need not raise greedy answers: the reference of DPO is
    # the base, and both answers may lose.
    bound = (
        {"supervised": ">= 20", "reinforcement": ">= 20"}.get(name, "") if STEPS[name] >= 40 else ""
    )
    figures.record(f"{name}_lift", lift, "points", bound, size=f"{n} questions, one run")
    figures.end()
